//! `key`: adding, changing, removing, listing and testing keyfiles and recovery words.

use crate::desk::{Desk, SIZE};

/// Where the keyslots of a header lie, and the bytes of one (docs/FORMAT.md §4).
const KEYSLOTS: usize = 4096;
const KEYSLOT_LEN: usize = 2048;
const HEADER_LEN: usize = 64 * 1024;

fn slots(desk: &Desk) -> Vec<u64> {
    let list = desk.json(&["key", "list", "vol"]);
    let slots = list["keyslots"].as_array().expect("slots").iter();
    slots.map(|slot| slot["slot"].as_u64().expect("a number")).collect()
}

#[test]
fn a_key_is_added_changed_and_removed_and_each_step_is_proved() {
    let desk = Desk::with_volume();
    let added = desk.json(&["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:second"]);
    assert_eq!((&added["added"], &added["reopened"]), (&1.into(), &true.into()), "{added}");
    desk.ok(&["key", "test", "vol", "--slot", "keyfile:second"]);

    let changed =
        desk.json(&["key", "change", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:third"]);
    assert_eq!((&changed["slot"], &changed["reopened"]), (&0.into(), &true.into()), "{changed}");
    let phases = ["staged", "verified", "committed", "retired"];
    assert_eq!(changed["phases"], serde_json::json!(phases));
    assert_eq!(
        desk.fails_in_both_forms(2, "does not fit", &["key", "test", "vol", "--slot", "keyfile:key"]),
        "no_key_fits"
    );
    desk.ok(&["key", "test", "vol", "--slot", "keyfile:third"]);

    let removed = desk.json(&["key", "remove", "vol", "--slot", "keyfile:third", "--key-slot", "1"]);
    assert_eq!((&removed["removed"], &removed["reopened"]), (&1.into(), &true.into()), "{removed}");
    desk.fails(2, "no key fits", &["key", "test", "vol", "--slot", "keyfile:second"]);
    assert_eq!(slots(&desk), [0]);
    desk.ok(&["check", "vol", "--slot", "keyfile:third"]);
}

#[test]
fn a_keyfile_that_removes_itself_is_not_reported_as_reopened() {
    let desk = Desk::with_volume();
    desk.ok(&["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:second"]);
    let removed = desk.json(&["key", "remove", "vol", "--slot", "keyfile:second"]);
    assert_eq!((&removed["removed"], &removed["reopened"]), (&1.into(), &false.into()), "{removed}");
    desk.ok(&["key", "test", "vol", "--slot", "keyfile:key"]);
}

#[test]
fn the_last_key_stays_unless_forced() {
    let desk = Desk::with_volume();
    let remove = ["key", "remove", "vol", "--slot", "keyfile:key"];
    assert_eq!(desk.fails_in_both_forms(13, "is the last one", &remove), "refused");
    desk.ok(&["key", "test", "vol", "--slot", "keyfile:key"]);
    desk.ok(&[&remove[..], &["--force-last"]].concat());
    assert_eq!(slots(&desk), [] as [u64; 0]);
    desk.fails(2, "no keyslot is in use", &["check", "vol", "--slot", "keyfile:key"]);
    desk.fails(2, "no keyslot is in use", &["serve", "vol", "--slot", "keyfile:key", "-U", "socket"]);
}

#[test]
fn a_keyslot_that_is_free_cannot_be_removed() {
    let desk = Desk::with_volume();
    for number in ["1", "16", "999999"] {
        let remove = ["key", "remove", "vol", "--slot", "keyfile:key", "--key-slot", number];
        let next = desk.fails(1, "is not in use", &remove);
        assert!(next.starts_with("sealbd key list vol "), "{next}");
    }
}

#[test]
fn sixteen_keys_fit_and_the_seventeenth_is_refused() {
    let desk = Desk::with_volume();
    for number in 1..16 {
        let new = format!("keyfile:key{number}");
        desk.ok(&["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", &new]);
    }
    let before = desk.bytes("vol");
    let one_more = ["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:more"];
    assert_eq!(desk.fails_in_both_forms(13, "all 16 keyslots are in use", &one_more), "refused");
    assert_eq!(desk.bytes("vol"), before);
    assert_eq!(slots(&desk), (0..16).collect::<Vec<_>>());
    // A change needs no free one.
    desk.ok(&["key", "change", "vol", "--slot", "keyfile:key15", "--new-slot", "keyfile:more"]);
    desk.ok(&["key", "test", "vol", "--slot", "keyfile:more"]);
    desk.fails(2, "does not fit", &["key", "test", "vol", "--slot", "keyfile:key15"]);
}

#[test]
fn a_key_is_ensured_once_however_often_it_is_asked_for() {
    let desk = Desk::with_volume();
    let ensure = ["key", "ensure", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:second"];
    assert_eq!(desk.json(&ensure)["added"], 1);
    let before = desk.bytes("vol");
    let again = desk.json(&ensure);
    assert_eq!((&again["slot"], &again["phases"]), (&1.into(), &serde_json::json!([])), "{again}");
    assert_eq!(desk.bytes("vol"), before);
}

#[test]
fn a_dry_run_changes_nothing_and_makes_no_keyfile() {
    let desk = Desk::with_volume();
    let before = desk.bytes("vol");
    for verb in ["add", "ensure", "change"] {
        let report = desk.json(&[
            "key",
            verb,
            "vol",
            "--slot",
            "keyfile:key",
            "--new-slot",
            "keyfile:second",
            "--dry-run",
        ]);
        assert_eq!(
            (&report["dry_run"], &report["phases"]),
            (&true.into(), &serde_json::json!([])),
            "{report}"
        );
    }
    desk.ok(&[
        "key",
        "priority",
        "vol",
        "--slot",
        "keyfile:key",
        "--key-slot",
        "0",
        "--priority",
        "9",
        "--dry-run",
    ]);
    desk.ok(&["key", "remove", "vol", "--slot", "keyfile:key", "--force-last", "--dry-run"]);
    assert_eq!(desk.bytes("vol"), before);
    assert!(!desk.path("second").exists());
    let wrong = ["key", "add", "vol", "--slot", "keyfile:none", "--new-slot", "keyfile:second", "--dry-run"];
    desk.fails(2, "does not exist", &wrong);
}

#[test]
fn a_keyslot_is_killed_only_by_a_key_that_stays() {
    let desk = Desk::with_volume();
    desk.ok(&["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:second"]);
    let kill = |slot, number| ["key", "kill", "vol", "--slot", slot, "--key-slot", number];
    assert_eq!(
        desk.fails_in_both_forms(13, "opens another keyslot", &kill("keyfile:second", "1")),
        "refused"
    );
    assert_eq!(desk.json(&kill("keyfile:key", "1"))["reopened"], true);
    assert_eq!(slots(&desk), [0]);
    assert_eq!(desk.fails_in_both_forms(13, "opens another keyslot", &kill("keyfile:key", "0")), "refused");
    desk.fails(1, "is not in use", &kill("keyfile:key", "1"));
}

#[test]
fn keyslots_are_tried_in_order_of_their_priority() {
    let desk = Desk::with_volume();
    desk.ok(&["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:second"]);
    let opens = || desk.json(&["key", "test", "vol", "--slot", "keyfile:key", "--slot", "keyfile:second"]);
    assert_eq!(opens()["slot"], 0);
    desk.ok(&["key", "priority", "vol", "--slot", "keyfile:key", "--key-slot", "0", "--priority", "5"]);
    let report = opens();
    assert_eq!(report["slot"], 1);
    let all: Vec<_> = report["keyslots"].as_array().unwrap().iter().map(|slot| &slot["opens"]).collect();
    assert_eq!(all, [true, true]);
    let one = desk.json(&["key", "test", "vol", "--slot", "keyfile:key"]);
    assert_eq!((&one["slot"], &one["keyslots"][1]["opens"]), (&0.into(), &false.into()));
    assert!(one["keyslots"][1]["reason"].as_str().unwrap().contains("does not fit"), "{one}");
}

#[test]
fn recovery_words_open_the_volume_however_they_are_typed() {
    let desk = Desk::new();
    let report = desk.json(&["format", "vol", "--size", SIZE, "--slot", "keyfile:key"]);
    let words = report["recovery_key"].as_str().expect("words");
    for typed in [words.to_owned(), words.replace('-', " "), format!("{}\n", words.to_uppercase())] {
        let test = ["key", "test", "vol", "--slot", "recovery:fd:0", "--json"];
        let ended = desk.run_with_input(&test, typed.as_bytes());
        assert_eq!(ended.code, 0, "{typed:?}: {}", ended.stderr);
        assert_eq!(ended.object()["type"], "recovery");
    }
    // The checksum tells a slip of the pen from a wrong key.
    let (first, rest) = words.split_once('-').expect("24 words");
    let slip = format!("{}-{rest}", if first == "zoo" { "zone" } else { "zoo" });
    let ended = desk.run_with_input(&["key", "test", "vol", "--slot", "recovery:fd:0"], slip.as_bytes());
    assert_eq!(ended.code, 2, "{}", ended.stderr);
    ended.next();
    assert!(!ended.stderr.contains(rest), "{}", ended.stderr);
}

#[test]
fn several_keys_may_be_given_and_one_that_fits_is_enough() {
    let desk = Desk::with_volume();
    std::fs::copy(desk.path("key"), desk.path("good")).expect("the directory is ours");
    desk.ok(&["format", "other", "--size", SIZE, "--slot", "keyfile:wrong", "--no-recovery"]);
    desk.ok(&["key", "test", "vol", "--slot", "keyfile:wrong", "--slot", "keyfile:good"]);
}

#[test]
fn keys_and_keyslots_of_one_volume_are_nothing_to_another() {
    let desk = Desk::with_volume();
    desk.ok(&["format", "other", "--size", SIZE, "--slot", "keyfile:other-key", "--no-recovery"]);
    desk.fails(2, "does not fit", &["key", "test", "other", "--slot", "keyfile:key"]);

    // Both volumes open with the same key now; still, a slot of one does not open the other.
    desk.ok(&["key", "add", "other", "--slot", "keyfile:other-key", "--new-slot", "keyfile:key"]);
    let mut header = desk.bytes("vol")[..HEADER_LEN].to_vec();
    let foreign = desk.bytes("other");
    let slot = KEYSLOTS;
    header[slot..][..KEYSLOT_LEN].copy_from_slice(&foreign[slot + KEYSLOT_LEN..][..KEYSLOT_LEN]);
    for copy in [0, 1 << 20] {
        desk.overwrite("vol", copy, &with_checksum(header.clone()));
    }
    desk.fails(2, "does not fit", &["key", "test", "vol", "--slot", "keyfile:key"]);
}

#[test]
fn a_keyslot_moved_within_its_volume_is_an_altered_header() {
    let desk = Desk::with_volume();
    let mut header = desk.bytes("vol")[..HEADER_LEN].to_vec();
    let slot = KEYSLOTS;
    header.copy_within(slot..slot + KEYSLOT_LEN, slot + KEYSLOT_LEN);
    header[slot..][..KEYSLOT_LEN].fill(0);
    for copy in [0, 1 << 20] {
        desk.overwrite("vol", copy, &with_checksum(header.clone()));
    }
    let test = ["key", "test", "vol", "--slot", "keyfile:key"];
    assert_eq!(desk.fails_in_both_forms(8, "header", &test), "integrity");
}

/// A header with the CRC-32C that fits: what an enemy with a hex editor makes.
pub(crate) fn with_checksum(mut header: Vec<u8>) -> Vec<u8> {
    header[4092..4096].fill(0);
    let crc = crc32c::crc32c(&header);
    header[4092..4096].copy_from_slice(&crc.to_le_bytes());
    header
}
