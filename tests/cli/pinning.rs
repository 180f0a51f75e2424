//! `header verify`, `header diff` and `header pin`.

use crate::desk::{Desk, SIZE};

const HEADER_LEN: usize = 64 * 1024;
const COPIES: [u64; 2] = [0, 1 << 20];

fn put_back(desk: &Desk, header: &[u8]) {
    COPIES.iter().for_each(|at| desk.overwrite("vol", *at, &header[..HEADER_LEN]));
}

#[test]
fn a_pinned_volume_refuses_every_older_header_even_with_its_roots() {
    let desk = Desk::with_volume();
    let before = desk.bytes("vol");
    desk.ok(&["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:second"]);
    let pinned = desk.json(&["header", "pin", "vol", "--slot", "keyfile:key"]);
    assert_eq!(pinned["pinned"], 2);
    // The whole backend is put back: no root on it knows better.
    std::fs::write(desk.path("vol"), &before).expect("the file is ours");
    for verb in [&["check", "vol"][..], &["key", "test", "vol"], &["header", "verify", "vol"]] {
        let words = [verb, &["--slot", "keyfile:key"]].concat();
        assert_eq!(desk.fails_in_both_forms(9, "rollback", &words), "rollback");
    }
    desk.ok(&["header", "pin", "vol", "--remove"]);
    desk.ok(&["check", "vol", "--slot", "keyfile:key"]);
}

#[test]
fn a_pin_follows_the_changes_of_this_host() {
    let desk = Desk::with_volume();
    desk.ok(&["header", "pin", "vol", "--slot", "keyfile:key"]);
    let pinned = || desk.json(&["header", "verify", "vol", "--slot", "keyfile:key"])["pinned"].clone();
    assert_eq!(pinned(), 1);
    desk.ok(&["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:second"]);
    assert_eq!(pinned(), 2);
}

#[test]
fn another_volume_under_the_same_uuid_is_refused_by_the_pin() {
    let desk = Desk::with_volume();
    desk.ok(&["header", "pin", "vol", "--slot", "keyfile:key"]);
    let uuid = desk.json(&["uuid", "vol"])["uuid"].as_str().expect("a uuid").to_owned();
    // An enemy's volume with a key of the enemy's: opens, but is not the pinned one.
    desk.ok(&["format", "theirs", "--size", SIZE, "--slot", "keyfile:key", "--no-recovery"]);
    let theirs = desk.json(&["uuid", "theirs"])["uuid"].as_str().expect("a uuid").to_owned();
    let known = desk.path("state").join("known");
    std::fs::rename(known.join(format!("{uuid}.json")), known.join(format!("{theirs}.json")))
        .expect("renamed");
    let check = ["check", "theirs", "--slot", "keyfile:key"];
    assert_eq!(desk.fails_in_both_forms(8, "not the volume that was pinned", &check), "integrity");
}

#[test]
fn a_pin_that_cannot_be_read_is_no_missing_pin() {
    let desk = Desk::with_volume();
    desk.ok(&["header", "pin", "vol", "--slot", "keyfile:key"]);
    let known = desk.path("state").join("known");
    let file =
        std::fs::read_dir(&known).expect("a directory").next().expect("a file").expect("readable").path();
    for damage in ["", "{}x", "{\"pin\": null, \"extra\": 1}", "{\"pin\": {\"header_generation\": -1}}"] {
        std::fs::write(&file, damage).expect("the file is ours");
        desk.fails(13, "cannot be read", &["check", "vol", "--slot", "keyfile:key"]);
    }
}

#[test]
fn verify_tells_a_good_header_from_one_with_a_damaged_copy() {
    let desk = Desk::with_volume();
    let verify = ["header", "verify", "vol", "--slot", "keyfile:key"];
    let report = desk.json(&verify);
    assert_eq!(
        (&report["copies_good"], &report["pinned"]),
        (&2.into(), &serde_json::Value::Null),
        "{report}"
    );
    let header = desk.bytes("vol");
    desk.overwrite("vol", COPIES[1] + 5000, &[0xff; 8]);
    assert_eq!(desk.fails_in_both_forms(8, "the other is not", &verify), "integrity");
    put_back(&desk, &header);
    desk.ok(&verify);
    // The second copy one generation behind, as a crash between the two leaves it.
    desk.ok(&["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:second"]);
    desk.overwrite("vol", COPIES[1], &header[..HEADER_LEN]);
    desk.fails(8, "the two copies differ", &verify);
    desk.ok(&["key", "priority", "vol", "--slot", "keyfile:key", "--key-slot", "1", "--priority", "3"]);
    desk.ok(&verify);
}

#[test]
fn diff_tells_what_changed_since_a_backup() {
    let desk = Desk::with_volume();
    desk.ok(&["header", "backup", "vol", "backup"]);
    let diff = || desk.json(&["header", "diff", "vol", "backup"]);
    assert_eq!((diff()["same"].clone(), diff()["changes"].clone()), (true.into(), serde_json::json!([])));
    desk.ok(&["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:second"]);
    desk.ok(&["key", "change", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:third"]);
    let report = diff();
    assert_eq!((&report["backup_generation"], &report["header_generation"]), (&1.into(), &3.into()));
    let changes: Vec<_> =
        report["changes"].as_array().expect("changes").iter().map(ToString::to_string).collect();
    assert_eq!(changes.len(), 2, "{changes:?}");
    assert!(changes[0].contains("slot 0: keyfile") && changes[1].contains("slot 1: free"), "{changes:?}");
}
