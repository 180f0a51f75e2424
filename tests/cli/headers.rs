//! `header backup` and `header restore`, damaged copies, and old headers put back.

use crate::desk::Desk;

/// Bytes of a header, and where its copies lie (docs/FORMAT.md §4).
const HEADER_LEN: usize = 64 * 1024;
const COPIES: [u64; 2] = [0, 1 << 20];

fn overwrite_both(desk: &Desk, header: &[u8]) {
    COPIES.iter().for_each(|at| desk.overwrite("vol", *at, header));
}

#[test]
fn a_backup_is_private_and_never_overwrites() {
    let desk = Desk::with_volume();
    let report = desk.json(&["header", "backup", "vol", "backup"]);
    assert_eq!(report["op"], "header-backup");
    let backup = desk.bytes("backup");
    assert_eq!(backup, desk.bytes("vol")[..HEADER_LEN]);
    let metadata = std::fs::metadata(desk.path("backup")).expect("the backup is there");
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777, 0o600);
    desk.fails_in_both_forms(5, "backup exists", &["header", "backup", "vol", "backup"]);
    assert_eq!(desk.bytes("backup"), backup);
    desk.fails(1, "No such file", &["header", "backup", "vol", "none/backup"]);
}

#[test]
fn one_damaged_copy_is_noted_and_written_anew_by_the_next_change() {
    for damaged in [0, 1] {
        let desk = Desk::with_volume();
        desk.overwrite("vol", COPIES[damaged] + 5000, &[0xff; 8]);
        let check = desk.run(&["check", "vol", "--slot", "keyfile:key"]);
        assert_eq!(check.code, 0, "{}", check.stderr);
        assert!(check.stderr.contains(&format!("header copy {damaged} is not usable")), "{}", check.stderr);
        assert_eq!(desk.json(&["dump", "vol"])["damaged_copies"], serde_json::json!([damaged]));
        desk.ok(&["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:key2"]);
        assert_eq!(desk.json(&["dump", "vol"])["damaged_copies"], serde_json::json!([]));
    }
}

#[test]
fn both_copies_damaged_is_another_failure_than_no_volume_and_both_are_restored() {
    let desk = Desk::with_volume();
    desk.ok(&["header", "backup", "vol", "backup"]);
    let restore = ["header", "restore", "vol", "backup", "--slot", "keyfile:key", "--yes"];

    COPIES.iter().for_each(|at| desk.overwrite("vol", *at + 5000, &[0xff; 8]));
    let check = ["check", "vol", "--slot", "keyfile:key"];
    assert_eq!(desk.fails_in_both_forms(8, "checksum mismatch", &check), "integrity");
    assert!(desk.fails(8, "header at byte 0", &check).contains("sealbd header restore vol FILE"));
    desk.ok(&restore);
    desk.ok(&check);

    overwrite_both(&desk, &[0; HEADER_LEN]);
    assert_eq!(desk.fails_in_both_forms(4, "not a sealbd volume", &check), "not_a_volume");
    desk.ok(&restore);
    desk.ok(&check);
}

#[test]
fn a_header_of_another_volume_is_refused() {
    let desk = Desk::with_volume();
    desk.ok(&["format", "other", "--size", "16M", "--slot", "keyfile:key", "--no-recovery"]);
    desk.ok(&["header", "backup", "other", "backup"]);
    let before = desk.bytes("vol");
    let restore = ["header", "restore", "vol", "backup", "--slot", "keyfile:key", "--yes"];
    assert_eq!(desk.fails_in_both_forms(13, "is of volume", &restore), "refused");
    assert_eq!(desk.bytes("vol"), before);
    std::fs::write(desk.path("text"), "not a header").expect("the directory is ours");
    let restore = ["header", "restore", "vol", "text", "--slot", "keyfile:key", "--yes"];
    assert_eq!(desk.fails_in_both_forms(8, "text: ", &restore), "integrity");
    assert_eq!(desk.bytes("vol"), before);
}

#[test]
fn a_header_copied_raw_from_another_volume_does_not_open_this_one() {
    let desk = Desk::with_volume();
    desk.ok(&["format", "other", "--size", "16M", "--slot", "keyfile:key", "--no-recovery"]);
    overwrite_both(&desk, &desk.bytes("other")[..HEADER_LEN]);
    desk.fails(8, "", &["check", "vol", "--slot", "keyfile:key"]);
}

#[test]
fn an_old_header_put_back_is_a_rollback_for_every_verb_with_a_key_until_restored_knowingly() {
    let desk = Desk::with_volume();
    desk.ok(&["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:removed"]);
    desk.ok(&["header", "backup", "vol", "old"]);
    desk.ok(&["key", "remove", "vol", "--slot", "keyfile:key", "--key-slot", "1"]);
    desk.fails(2, "no key fits", &["key", "test", "vol", "--slot", "keyfile:removed"]);

    overwrite_both(&desk, &desk.bytes("old"));
    for slot in ["keyfile:removed", "keyfile:key"] {
        for verb in [
            &["serve", "vol", "--slot", slot, "-U", "socket"][..],
            &["serve", "vol", "--slot", slot, "-U", "socket", "--read-only"],
            &["check", "vol", "--slot", slot],
            &["status", "vol", "--slot", slot],
            &["key", "test", "vol", "--slot", slot],
            &["key", "add", "vol", "--slot", slot, "--new-slot", "keyfile:key"],
            &["key", "change", "vol", "--slot", slot, "--new-slot", "keyfile:key"],
            &["key", "remove", "vol", "--slot", slot],
        ] {
            let next = desk.fails(9, "is older than 3", verb);
            assert!(next.contains("sealbd header restore vol FILE"), "{next}");
        }
    }
    assert_eq!(
        desk.fails_in_both_forms(9, "rollback", &["check", "vol", "--slot", "keyfile:key"]),
        "rollback"
    );

    desk.fails(5, "removed since then", &["header", "restore", "vol", "old", "--slot", "keyfile:key"]);
    desk.ok(&["header", "restore", "vol", "old", "--slot", "keyfile:key", "--yes"]);
    assert_eq!(desk.json(&["key", "test", "vol", "--slot", "keyfile:removed"])["slot"], 1);
    desk.ok(&["check", "vol", "--slot", "keyfile:key"]);
}
