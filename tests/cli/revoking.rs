//! `revoke` and `erase` with a key manager outside sealbd: the key goes where it was kept, or the report says why not.

use serde_json::{Value, json};

use crate::desk::Desk;
use crate::plugins::{Plugin, with_config};

const LOCAL: Plugin = Plugin::Example("local");
const QUICK: Plugin = Plugin::Quick("quick-keys");
const OTHER: Plugin = Plugin::Quick("other-keys");

fn quick() -> Desk {
    let desk = Desk::with_plugins(&[QUICK, OTHER], "");
    desk.managed_volume("vol", "kms:quick-keys/db");
    desk
}

const REVOKE: [&str; 6] = ["revoke", "vol", "--key-slot", "0", "--slot", "keyfile:key"];

fn revoke_by<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&REVOKE[..], more].concat()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

#[test]
fn a_revoked_key_is_destroyed_in_its_manager_and_no_old_header_brings_it_back() {
    let desk = Desk::with_plugins(&[LOCAL], "");
    desk.managed_volume("vol", "kms:local/db");
    desk.ok(&["header", "backup", "vol", "backup"]);
    let revoke = revoke_by(&["--slot", "kms:local"]);
    let before = desk.contents(&["vol", "local"]);
    let dry = desk.told(&[&revoke[..], &["--dry-run"]].concat());
    assert_eq!((&dry["dry_run"], &dry["kek"]), (&json!(true), &json!("not destroyed: dry run")));
    assert_eq!(desk.contents(&["vol", "local"]), before);
    let report = desk.told(&revoke);
    assert_eq!((&report["kek"], &report["manager"]), (&json!("destroyed"), &json!("exec")), "{report}");
    assert_eq!(LOCAL.live(&desk, "db"), [] as [u32; 0]);
    assert_eq!(desk.slots_in("vol"), [1]);
    desk.fails(2, "no such key was given", &with_config(&["check", "vol", "--slot", "kms:local"]));
    let restore = ["header", "restore", "vol", "backup", "--yes", "--slot", "kms:local"];
    desk.fails(7, "version 1 of key db is destroyed", &with_config(&restore));
    desk.ok(&["check", "vol", "--slot", "keyfile:key"]);
    desk.fails(1, "is not in use", &with_config(&revoke));
}

#[test]
fn a_key_whose_manager_was_not_given_is_not_told_as_destroyed_and_waits() {
    let desk = quick();
    // No manager at all, then another one of the same kind.
    for given in [&[][..], &["--slot", "kms:other-keys"]] {
        let kek = desk.told(&revoke_by(given))["kek"].clone();
        assert!(text(&kek).starts_with("not destroyed: its key manager was not given; "), "{kek}");
        assert_eq!((QUICK.live(&desk, "db"), desk.slots_in("vol")), (vec![1], vec![0, 1]));
        desk.fails(2, "no key fits", &with_config(&["check", "vol", "--slot", "kms:quick-keys"]));
    }
    // The same verb with it finishes.
    assert_eq!(desk.told(&revoke_by(&["--slot", "kms:quick-keys"]))["kek"], "destroyed");
    assert_eq!((QUICK.live(&desk, "db"), desk.slots_in("vol")), (vec![], vec![1]));
}

#[test]
fn a_key_manager_that_lets_nobody_in_has_destroyed_nothing() {
    for (mood, code) in [("denied", "kms_denied"), ("unreachable", "kms_unreachable")] {
        let desk = quick();
        QUICK.mood(&desk, mood);
        let revoke = revoke_by(&["--slot", "kms:quick-keys"]);
        let ended = desk.try_out(&[&revoke[..], &["--json"]].concat());
        assert_eq!(ended.code, 14, "{code}: {}", ended.stderr);
        let report = ended.object();
        assert!(text(&report["kek"]).starts_with("failed: "), "{report}");
        assert!(ended.next().starts_with("sealbd revoke vol --key-slot 0"), "{}", ended.stderr);
        // The keyslot is out of use all the same, and the key is not forgotten.
        desk.fails(2, "no key fits", &with_config(&["check", "vol", "--slot", "kms:quick-keys"]));
        let record = desk.records().into_iter().rfind(|record| record["verb"] == "revoke").expect("recorded");
        assert_eq!((&record["outcome"], &record["error"]), (&json!("failed"), &json!("partly_done")));
        QUICK.mood(&desk, "");
        assert_eq!(desk.told(&revoke)["kek"], "destroyed");
        assert_eq!(QUICK.live(&desk, "db"), [] as [u32; 0]);
    }
}

#[test]
fn a_key_that_somebody_destroyed_before_is_told_as_that_and_is_not_in_the_way() {
    let desk = quick();
    std::fs::write(desk.path("quick-keys/db.1"), "gone\n").expect("ours");
    let revoke = revoke_by(&["--slot", "kms:quick-keys", "--slot", "kms:other-keys"]);
    let kek = desk.told(&revoke)["kek"].clone();
    assert!(text(&kek).starts_with("destroyed before, or out of reach ("), "{kek}");
    assert_eq!(desk.slots_in("vol"), [1]);
}

#[test]
fn an_erased_volume_takes_its_keys_with_it_and_the_certificate_says_so_of_each() {
    let desk = Desk::with_plugins(&[LOCAL], "");
    desk.managed_volume("vol", "kms:local/db");
    for spec in ["kms:local/db", "kms:local/second"] {
        desk.ok(&with_config(&["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", spec]));
    }
    let erase = ["erase", "vol", "--yes", "--slot", "kms:local", "--certificate", "certificate"];
    let before = desk.contents(&["vol", "local"]);
    desk.ok(&with_config(&[&erase[..5], &["--dry-run"]].concat()));
    assert_eq!(desk.contents(&["vol", "local"]), before);
    desk.ok(&with_config(&erase));
    let told: Value = serde_json::from_slice(&desk.bytes("certificate")).expect("JSON");
    assert_eq!((&told["verified"], &told["header_generation"]), (&json!(true), &json!(4)), "{told}");
    let slots = told["keyslots"].as_array().expect("a list").iter();
    let fates: Vec<_> = slots.map(|slot| (slot["key_id"].clone(), slot["kek"].clone())).collect();
    // Two keyslots under one version: it is destroyed once and gone for both.
    let destroyed = |key: &str| (json!(key), json!("destroyed"));
    let own = (Value::Null, json!("the user's own secret"));
    assert_eq!(fates, [destroyed("db"), own, destroyed("db"), destroyed("second")]);
    assert_eq!((LOCAL.live(&desk, "db"), LOCAL.live(&desk, "second")), (vec![], vec![]));
    desk.fails(2, "no keyslot is in use", &with_config(&["check", "vol", "--slot", "kms:local"]));
}

#[test]
fn a_certificate_never_says_destroyed_of_a_key_that_may_be_there() {
    for (mood, fate, code) in [
        ("unreachable", "failed: key manager unreachable: ", 14),
        ("denied", "failed: key manager denied: ", 14),
        ("", "not destroyed: its key manager was not given", 0),
    ] {
        let desk = quick();
        QUICK.mood(&desk, mood);
        let manager = if mood.is_empty() { "keyfile:key" } else { "kms:quick-keys" };
        let erase = ["erase", "vol", "--yes", "--slot", "keyfile:key", "--slot", manager];
        let ended = desk.try_out(&[&erase[..], &["--json"]].concat());
        assert_eq!(ended.code, code, "{}", ended.stderr);
        let kek = ended.object()["keyslots"][0]["kek"].clone();
        assert!(text(&kek).starts_with(fate), "{kek}");
        assert_eq!(QUICK.live(&desk, "db"), [1]);
        desk.fails(2, "no keyslot is in use", &["check", "vol", "--slot", "keyfile:key"]);
        let record = desk.records().into_iter().rfind(|record| record["verb"] == "erase").expect("recorded");
        let (outcome, error) =
            if code == 0 { ("done", None) } else { ("failed", Some(json!("partly_done"))) };
        assert_eq!((&record["outcome"], record.get("error")), (&json!(outcome), error.as_ref()));
        if code != 0 {
            assert!(ended.next().contains("key manager's own tools"), "{}", ended.stderr);
        }
    }
}

#[test]
fn a_key_that_another_configured_volume_needs_survives_the_erasure_of_this_one() {
    let desk = quick();
    desk.managed_volume("second", "kms:quick-keys/db");
    desk.managed_volume("third", "kms:other-keys/db");
    let volumes = "[volume.second]\nbackend = 'DIR/second'\n[volume.third]\nbackend = 'DIR/third'\n\
        [volume.blank]\nbackend = 'DIR/blank'\n";
    std::fs::write(desk.path("blank"), vec![0; 4 << 20]).expect("ours");
    let providers = [QUICK, OTHER].map(|plugin| plugin.provider("60s", "0s")).concat();
    desk.configure(&format!("{providers}{volumes}"));
    let report = desk.told(&["erase", "vol", "--yes", "--slot", "kms:quick-keys"]);
    assert_eq!(
        report["keyslots"][0]["kek"],
        "not destroyed: volume second, keyslot 0, is wrapped by the same version"
    );
    desk.ok(&with_config(&["check", "second", "--slot", "kms:quick-keys"]));
    // One of the same name in another manager is another key, and a backend without a volume needs none.
    let report = desk.told(&["erase", "second", "--yes", "--slot", "kms:quick-keys"]);
    assert_eq!(report["keyslots"][0]["kek"], "destroyed", "{report}");
    desk.ok(&with_config(&["check", "third", "--slot", "kms:other-keys"]));
    // Of a volume that cannot be read nobody knows what it needs.
    desk.configure(&format!("{providers}[volume.gone]\nbackend = 'DIR/gone'\n"));
    let report = desk.told(&["erase", "third", "--yes", "--slot", "kms:other-keys"]);
    let kek = text(&report["keyslots"][0]["kek"]);
    assert!(kek.starts_with("not destroyed: volume gone may need it and cannot be read: "), "{kek}");
    assert_eq!(OTHER.live(&desk, "db"), [1]);
}
