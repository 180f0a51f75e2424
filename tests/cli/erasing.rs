//! `erase`: nothing opens afterwards, and the certificate says what was done and what is out of reach.

use serde_json::Value;

use crate::desk::Desk;

fn certificate(desk: &Desk, name: &str) -> Value {
    serde_json::from_slice(&desk.bytes(name)).expect("a certificate is JSON")
}

#[test]
fn an_erased_volume_opens_by_no_key_and_its_certificate_names_the_header_backups() {
    let desk = Desk::with_volume();
    desk.ok(&["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:second"]);
    desk.ok(&["header", "backup", "vol", "backup"]);
    let uuid = desk.json(&["uuid", "vol"])["uuid"].clone();
    let before = desk.bytes("vol");
    desk.ok(&["erase", "vol", "--slot", "keyfile:key", "--yes", "--certificate", "certificate"]);
    let told = certificate(&desk, "certificate");
    assert_eq!((&told["uuid"], &told["verified"]), (&uuid, &Value::Bool(true)), "{told}");
    assert_eq!(told["keyslots"].as_array().map(Vec::len), Some(2));
    assert_eq!(told["known_header_backups"][0]["file"], desk.path("backup").display().to_string());
    assert!(told["not_reached"].as_array().is_some_and(|list| list.len() > 2), "{told}");
    for key in ["keyfile:key", "keyfile:second"] {
        desk.fails(2, "no keyslot is in use", &["check", "vol", "--slot", key]);
    }
    // None of the wrapped keys is left on the backend.
    let (after, mut compared) = (desk.bytes("vol"), 0);
    for slot in [4096, 4096 + 2048] {
        let wrapped = &before[slot + 24 + 256..][..60];
        assert!(!after.windows(60).any(|window| window == wrapped), "slot at {slot}");
        compared += 1;
    }
    assert_eq!(compared, 2);
    // What the certificate warns of: a backup brings the keyslots back.
    desk.ok(&["header", "restore", "vol", "backup", "--slot", "keyfile:key", "--yes"]);
    desk.ok(&["check", "vol", "--slot", "keyfile:key"]);
}

#[test]
fn nothing_is_erased_without_consent_a_key_or_a_place_for_the_certificate() {
    let desk = Desk::with_volume();
    let before = desk.bytes("vol");
    desk.fails(5, "terminal", &["erase", "vol", "--slot", "keyfile:key"]);
    desk.ok(&["format", "other", "--size", "16M", "--slot", "keyfile:wrong", "--no-recovery"]);
    desk.fails(2, "does not fit", &["erase", "vol", "--slot", "keyfile:wrong", "--yes"]);
    let exists = ["erase", "vol", "--slot", "keyfile:key", "--yes", "--certificate", "other"];
    desk.fails(1, "cannot make other", &exists);
    let dry = desk.json(&["erase", "vol", "--slot", "keyfile:key", "--dry-run", "--certificate", "none"]);
    assert_eq!((&dry["dry_run"], &dry["verified"]), (&true.into(), &false.into()), "{dry}");
    assert!(!desk.path("none").exists());
    assert_eq!(desk.bytes("vol"), before);
}

#[test]
fn a_revoked_keyslot_opens_no_longer_and_a_key_that_stays_is_needed() {
    let desk = Desk::with_volume();
    desk.ok(&["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:second"]);
    let revoke = |slot, number| ["revoke", "vol", "--slot", slot, "--key-slot", number];
    assert_eq!(
        desk.fails_in_both_forms(13, "opens another keyslot", &revoke("keyfile:second", "1")),
        "refused"
    );
    let report = desk.json(&revoke("keyfile:key", "1"));
    assert_eq!(report["kek"], "not destroyed: the user's own secret", "{report}");
    desk.fails(2, "does not fit", &["check", "vol", "--slot", "keyfile:second"]);
    desk.ok(&["check", "vol", "--slot", "keyfile:key"]);
}
