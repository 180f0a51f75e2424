//! `rotate --kek` with a key manager outside sealbd: what is new, what becomes of the old version, and what is left
//! alone. A process that is killed meanwhile: `killed.rs`.

use serde_json::{Value, json};

use crate::desk::{Desk, SIZE};
use crate::plugins::{Plugin, with_config};
use crate::rotating_all::fleet;

const LOCAL: Plugin = Plugin::Example("local");
const QUICK: Plugin = Plugin::Quick("quick-keys");
const OTHER: Plugin = Plugin::Quick("other-keys");

const PHASES: [&str; 4] = ["staged", "verified", "committed", "retired"];

/// A volume with a keyslot of the shell plug-in and one of a keyfile.
fn quick() -> Desk {
    let desk = Desk::with_plugins(&[QUICK], "");
    desk.managed_volume("vol", "kms:quick-keys/db");
    desk
}

const ROTATE: [&str; 5] = ["rotate", "vol", "--kek", "--slot", "kms:quick-keys"];

fn rotate_with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&ROTATE[..], more].concat()
}

#[test]
fn a_rotation_makes_a_version_that_the_keyslot_names_and_keeps_the_old_one() {
    let desk = Desk::with_plugins(&[LOCAL], "");
    desk.managed_volume("vol", "kms:local/db");
    desk.ok(&["header", "backup", "vol", "backup"]);
    let report = desk.told(&["rotate", "vol", "--kek", "--slot", "kms:local"]);
    assert_eq!(report["phases"], json!(PHASES), "{report}");
    assert_eq!((&report["reopened_ok"], &report["data_rewritten"]), (&json!(true), &json!(false)));
    let version = |number: &str| json!({"key_id": "db", "version": number});
    let rotated = json!([{
        "slot": 0, "manager": "exec", "from": version("1"), "to": version("2"), "old": "kept"
    }]);
    assert_eq!(report["rotated"], rotated);
    assert_eq!(report["skipped"][0]["reason"], "your own secret: sealbd key change");
    assert_eq!((&report["failed"], &report["finished"]), (&json!([]), &json!([])));
    assert_eq!(desk.version_in("vol", 0).as_deref(), Some("2"));
    desk.ok(&with_config(&["check", "vol", "--slot", "kms:local"]));
    // The old version is in the manager still, so the old header opens.
    assert_eq!(LOCAL.live(&desk, "db"), [1, 2]);
    desk.ok(&with_config(&["header", "restore", "vol", "backup", "--yes", "--slot", "kms:local"]));
    assert_eq!(desk.version_in("vol", 0).as_deref(), Some("1"));
}

#[test]
fn an_old_version_is_destroyed_when_that_is_wanted_and_header_backups_open_no_longer() {
    let desk = Desk::with_plugins(&[LOCAL], "");
    desk.managed_volume("vol", "kms:local/db");
    desk.ok(&["header", "backup", "vol", "backup"]);
    let report = desk.told(&["rotate", "vol", "--kek", "--slot", "kms:local", "--retire-old"]);
    assert_eq!((&report["phases"], &report["rotated"][0]["old"]), (&json!(PHASES), &json!("destroyed")));
    assert_eq!(LOCAL.live(&desk, "db"), [2]);
    assert_eq!(desk.slots_in("vol"), [0, 1], "the place of the old version is free again");
    desk.ok(&with_config(&["check", "vol", "--slot", "kms:local"]));
    desk.ok(&with_config(&["header", "verify", "vol", "--slot", "kms:local"]));
    let restore = ["header", "restore", "vol", "backup", "--yes", "--slot", "kms:local"];
    desk.fails(7, "version 1 of key db is destroyed", &with_config(&restore));
}

#[test]
fn the_old_version_is_destroyed_last_behind_a_reopening_by_the_new_one() {
    let desk = quick();
    QUICK.tell(&desk, "calls", "");
    desk.ok(&with_config(&rotate_with(&["--retire-old"])));
    let calls = QUICK.calls(&desk);
    let verbs: Vec<&str> = calls.iter().map(|(verb, _)| verb.as_str()).collect();
    let at = |verb| verbs.iter().position(|called| *called == verb).expect("called");
    let last_but = verbs.iter().rposition(|called| *called == "wrap").expect("called");
    assert!(at("rotate") < last_but && last_but < at("destroy"), "{verbs:?}");
    assert!(verbs[last_but..at("destroy")].contains(&"unwrap"), "the staged header was opened: {verbs:?}");
    // A manager that makes versions and then refuses them: nothing is destroyed, nothing changed.
    let before = desk.bytes("vol");
    let live = QUICK.live(&desk, "db");
    let script = "#!/bin/sh\nIFS= read -r line\ncase $line in *'\"version\":\"3\"'*) \
        echo '{\"error\":{\"kind\":\"denied\",\"message\":\"not this one\"}}'; exit;; esac\n\
        printf '%s\\n' \"$line\" | exec \"$(dirname \"$0\")/quick\" \"$1\"\n";
    std::fs::write(desk.path("picky.source"), script).expect("the directory is ours");
    desk.install("picky.source", "picky");
    desk.configure(&QUICK.provider("60s", "0s").replace("DIR/quick'", "DIR/picky'"));
    desk.fails(7, "not this one", &with_config(&rotate_with(&["--retire-old"])));
    assert_eq!(desk.bytes("vol"), before);
    assert_eq!((live, QUICK.live(&desk, "db")), (vec![2], vec![2, 3]));
}

#[test]
fn a_dry_run_tells_and_changes_neither_store_nor_manager() {
    let desk = quick();
    let plan = |more: &[&str]| {
        let before = desk.contents(&["vol", "key"]);
        QUICK.tell(&desk, "calls", "");
        let live = QUICK.live(&desk, "db");
        let report = desk.told(&rotate_with(&[more, &["--dry-run"]].concat()));
        assert_eq!((&report["dry_run"], &report["phases"]), (&json!(true), &json!([])), "{report}");
        assert_eq!(report["rotated"][0]["to"], Value::Null);
        assert_eq!((desk.contents(&["vol", "key"]), QUICK.live(&desk, "db")), (before, live));
        let changing = |(verb, _): &(String, String)| verb != "unwrap";
        assert!(!QUICK.calls(&desk).iter().any(changing), "it is only asked to unwrap");
        report["rotated"][0]["old"].as_str().expect("text").to_owned()
    };
    assert_eq!(plan(&[]), "kept");
    assert_eq!(plan(&["--retire-old"]), "to be destroyed");
    let prose = desk.ok(&with_config(&rotate_with(&["--dry-run", "--retire-old"])));
    assert!(prose.contains("db version 1 → a new version (dry run)"), "{prose}");
    // With the example the whole directory of its keys is compared.
    let desk = Desk::with_plugins(&[LOCAL], "");
    desk.managed_volume("vol", "kms:local/db");
    let before = desk.contents(&["vol", "local"]);
    desk.ok(&with_config(&["rotate", "vol", "--kek", "--slot", "kms:local", "--retire-old", "--dry-run"]));
    assert_eq!(desk.contents(&["vol", "local"]), before);
}

#[test]
fn a_bare_rotate_is_refused_and_a_new_data_key_is_reserved() {
    let desk = quick();
    let before = desk.contents(&["vol", "quick-keys"]);
    let bare = with_config(&["rotate", "vol", "--slot", "kms:quick-keys"]);
    let next = desk.fails(1, "--kek wraps the data key under a new key", &bare);
    assert!(next.contains("--kek"), "{next}");
    let dek = with_config(&["rotate", "vol", "--dek", "--slot", "kms:quick-keys"]);
    assert_eq!(desk.fails_in_both_forms(13, "reserved", &dek), "refused");
    let both = desk.try_out(&rotate_with(&["--dek"]));
    assert!(both.code == 1 && both.stderr.contains("cannot be"), "{}", both.stderr);
    let none = desk.command(&["rotate", "--kek"]).output().expect("it starts");
    assert_eq!(none.status.code(), Some(1));
    assert_eq!(desk.contents(&["vol", "quick-keys"]), before);
}

#[test]
fn rotating_again_and_again_is_safe_and_each_time_one_version_more() {
    let desk = quick();
    for version in ["2", "3", "4"] {
        desk.ok(&with_config(&rotate_with(&["--retire-old"])));
        assert_eq!(desk.version_in("vol", 0).as_deref(), Some(version));
        assert_eq!(QUICK.live(&desk, "db"), [version.parse::<u32>().expect("a number")]);
    }
    assert_eq!(desk.slots_in("vol"), [0, 1]);
    desk.ok(&["check", "vol", "--slot", "keyfile:key"]);
}

#[test]
fn young_keys_are_left_and_that_is_no_failure() {
    let desk = quick();
    let before = desk.contents(&["vol"]);
    let report = desk.told(&rotate_with(&["--older-than", "90d"]));
    assert_eq!((&report["rotated"], &report["phases"]), (&json!([]), &json!([])), "{report}");
    let reason = report["skipped"][0]["reason"].as_str().expect("a reason");
    assert!(reason.starts_with("made ") && reason.ends_with(" ago"), "{reason}");
    assert_eq!((desk.contents(&["vol"]), QUICK.live(&desk, "db")), (before, vec![1]));
    assert!(desk.ok(&with_config(&rotate_with(&["--older-than", "90d"]))).contains("nothing was due"));
    desk.ok(&with_config(&rotate_with(&["--older-than", "0s"])));
    assert_eq!(QUICK.live(&desk, "db"), [1, 2]);
}

#[test]
fn a_keyslot_of_a_key_that_was_not_given_is_left_and_one_that_fails_is_told_with_exit_14() {
    let desk = Desk::with_plugins(&[QUICK, OTHER], "");
    desk.managed_volume("vol", "kms:quick-keys/db");
    desk.ok(&with_config(&[
        "key",
        "add",
        "vol",
        "--slot",
        "keyfile:key",
        "--new-slot",
        "kms:other-keys/db2",
    ]));
    // The key that is named leaves others' keyslots alone.
    let rotate = ["rotate", "vol", "--kek", "--slot", "kms:quick-keys/db"];
    let report = desk.told(&rotate);
    assert_eq!(report["rotated"][0]["slot"], 0);
    let left = json!({"slot": 2, "manager": "exec", "reason": "no key manager that was given opens it"});
    assert_eq!(report["skipped"][1], left);
    // A no may be that of another manager of its kind, which was not given.
    let report = desk.told(&["rotate", "vol", "--kek", "--slot", "kms:quick-keys"]);
    assert_eq!(report["rotated"][0]["slot"], 0, "{report}");
    let reason = report["skipped"][1]["reason"].as_str().expect("a reason");
    assert!(
        reason.starts_with("no key manager that was given opens it (") && reason.contains("of key db2"),
        "{reason}"
    );
    // When all were given it is a failure, and told. What could be done is done.
    let slots = ["--slot", "kms:quick-keys", "--slot", "kms:other-keys"];
    OTHER.mood(&desk, "denied");
    let both = [&["rotate", "vol", "--kek", "--json"][..], &slots].concat();
    let ended = desk.try_out(&both);
    assert_eq!(ended.code, 14, "{}", ended.stderr);
    let report = ended.object();
    assert_eq!(report["rotated"].as_array().map(Vec::len), Some(1), "{report}");
    assert_eq!(
        (&report["failed"][0]["slot"], &report["failed"][0]["problem"]["exit"]),
        (&json!(2), &json!(7))
    );
    assert!(ended.stderr.contains("1 keyslots rotated; slot 2 (exec): ") && !ended.next().is_empty());
    assert_eq!((QUICK.live(&desk, "db"), OTHER.live(&desk, "db2")), (vec![1, 2, 3, 4], vec![1]));
    let record = desk.records().pop().expect("a record");
    assert_eq!((&record["outcome"], &record["error"]), (&json!("failed"), &json!("partly_done")));
    // Older headers are refused all the same: the change that was made is a whole one.
    desk.ok(&["header", "verify", "vol", "--slot", "keyfile:key"]);
    // Nothing at all could be done: the cause is the failure.
    QUICK.mood(&desk, "unreachable");
    let words = [&["rotate", "vol", "--kek", "--slot", "keyfile:key"][..], &slots].concat();
    assert_eq!(desk.fails_in_both_forms(6, "slot 0 (exec)", &with_config(&words)), "kms_unreachable");
    OTHER.mood(&desk, "");
    QUICK.mood(&desk, "");
    let report = desk.told(&[&["rotate", "vol", "--kek"][..], &slots].concat());
    assert_eq!(report["rotated"].as_array().map(Vec::len), Some(2), "{report}");
}

#[test]
fn a_manager_that_makes_no_new_version_stops_no_other_and_changes_nothing_alone() {
    let desk = Desk::with_plugins(&[QUICK, OTHER], "");
    desk.managed_volume("vol", "kms:quick-keys/db");
    let add = ["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "kms:other-keys/db2"];
    desk.ok(&with_config(&add));
    QUICK.mood(&desk, "denied rotate");
    let before = desk.bytes("vol");
    desk.fails(7, "as it was told", &with_config(&["rotate", "vol", "--kek", "--slot", "kms:quick-keys/db"]));
    assert_eq!(desk.bytes("vol"), before);
    let both = ["--slot", "kms:quick-keys/db", "--slot", "kms:other-keys/db2"];
    let ended = desk.try_out(&[&["rotate", "vol", "--kek", "--json"][..], &both].concat());
    assert_eq!(ended.code, 14, "{}", ended.stderr);
    let report = ended.object();
    assert_eq!(
        (&report["rotated"][0]["slot"], &report["failed"][0]["slot"]),
        (&json!(2), &json!(0)),
        "{report}"
    );
    desk.ok(&["header", "verify", "vol", "--slot", "keyfile:key"]);
}

#[test]
fn an_old_version_that_cannot_be_destroyed_now_waits_and_one_that_never_can_is_told() {
    let desk = quick();
    for mood in ["denied destroy", "unreachable destroy"] {
        QUICK.mood(&desk, mood);
        let ended = desk.try_out(&rotate_with(&["--retire-old", "--json"]));
        assert_eq!(ended.code, 14, "{mood}: {}", ended.stderr);
        let old = ended.object()["rotated"][0]["old"].as_str().expect("text").to_owned();
        assert!(
            old.starts_with("failed: ") && old.contains("waits in keyslot 2, which opens nothing"),
            "{old}"
        );
        desk.ok(&with_config(&["check", "vol", "--slot", "kms:quick-keys"]));
        // No further version is made to finish.
        QUICK.mood(&desk, "");
        let live = QUICK.live(&desk, "db");
        let report = desk.told(&rotate_with(&["--older-than", "1h"]));
        assert_eq!(report["finished"], json!([{"slot": 2, "old": "destroyed"}]), "{report}");
        assert_eq!(QUICK.live(&desk, "db"), live[1..]);
    }
    QUICK.mood(&desk, "unsupported destroy");
    let report = desk.told(&rotate_with(&["--retire-old"]));
    let old = report["rotated"][0]["old"].as_str().expect("text");
    assert!(old.starts_with("kept: ") && old.ends_with("as it was told"), "{old}");
    assert_eq!(desk.slots_in("vol"), [0, 1]);
}

#[test]
fn a_rotation_without_a_keyslot_for_the_old_version_makes_no_new_one() {
    let desk = quick();
    for number in 2..16 {
        let new = format!("keyfile:key{number}");
        desk.ok(&["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", &new]);
    }
    let retire = with_config(&rotate_with(&["--retire-old"]));
    assert_eq!(desk.fails_in_both_forms(13, "all 16 keyslots are in use", &retire), "refused");
    assert_eq!(QUICK.live(&desk, "db"), [1]);
    desk.ok(&with_config(&ROTATE));
    assert_eq!(desk.version_in("vol", 0).as_deref(), Some("2"));
}

#[test]
fn a_volume_without_a_key_manager_cannot_be_rotated() {
    let desk = quick();
    desk.ok(&["format", "own", "--size", SIZE, "--slot", "keyfile:key", "--no-recovery"]);
    let words = ["rotate", "own", "--kek", "--slot", "keyfile:key"];
    assert_eq!(desk.fails_in_both_forms(13, "your own secret", &with_config(&words)), "refused");
    let words = ["rotate", "vol", "--kek", "--slot", "keyfile:key"];
    desk.fails(13, "no key manager that was given opens it", &with_config(&words));
    desk.fails(1, "is not in use", &with_config(&rotate_with(&["--key-slot", "7"])));
}

#[test]
fn one_keyslot_of_two_under_the_same_version_is_rotated_and_the_version_stays_while_it_is_needed() {
    let desk = quick();
    desk.ok(&with_config(&["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "kms:quick-keys/db"]));
    let report = desk.told(&rotate_with(&["--retire-old", "--key-slot", "0"]));
    let old = report["rotated"][0]["old"].as_str().expect("text");
    assert!(old.contains("keyslot 2 is wrapped by the same version"), "{old}");
    assert_eq!(QUICK.live(&desk, "db"), [1, 2]);
    let waits = json!("opens nothing; its key waits to be destroyed");
    assert_eq!(report_of_test(&desk, "vol", "kms:quick-keys"), [json!(true), json!(true), waits]);
    // As soon as nobody needs it any more it goes, too.
    let report = desk.told(&rotate_with(&["--retire-old", "--key-slot", "2"]));
    assert_eq!(report["rotated"][0]["old"], "destroyed", "{report}");
    assert_eq!(QUICK.live(&desk, "db"), [2, 3]);
    assert_eq!(desk.told(&rotate_with(&["--older-than", "1h"]))["failed"], json!([]));
    assert_eq!(desk.slots_in("vol"), [0, 1, 2]);
}

/// Which keyslots of the manager's kind a key opens.
fn report_of_test(desk: &Desk, volume: &str, spec: &str) -> Vec<Value> {
    let report = desk.told(&["key", "test", volume, "--slot", spec]);
    let slots = report["keyslots"].as_array().expect("a list").iter();
    let opens = |slot: &Value| if slot["opens"] == true { json!(true) } else { slot["reason"].clone() };
    slots.filter(|slot| slot["type"] == "exec").map(opens).collect()
}

#[test]
fn a_version_that_wraps_two_volumes_is_not_destroyed_under_the_second_one() {
    let desk = fleet("");
    let report = desk.told(&["rotate", "a", "--kek", "--retire-old"]);
    let old = report["rotated"][0]["old"].as_str().expect("text").to_owned();
    assert!(old.contains("volume b, keyslot 0, is wrapped by the same version"), "{old}");
    assert_eq!(QUICK.live(&desk, "default"), [1, 2]);
    desk.ok(&with_config(&["check", "b"]));
    // Nor by revoking or erasing the first one.
    let revoke = ["revoke", "a", "--key-slot", "0", "--slot", "keyfile:key", "--slot", "kms:quick-keys"];
    assert_eq!(desk.told(&revoke)["kek"], "destroyed", "version 2 is its own");
    desk.managed_volume("c", "kms:quick-keys");
    assert_eq!(desk.version_in("c", 0).as_deref(), Some("3"));
    desk.ok(&with_config(&["rotate", "b", "--kek"]));
    let report = desk.told(&["rotate", "b", "--kek", "--retire-old"]);
    assert_eq!(report["rotated"][0]["from"]["version"], "4", "{report}");
    assert_eq!(QUICK.live(&desk, "default"), [1, 3, 5]);
    // What waited in the first volume goes when that is rotated next, by whatever key opens it.
    let words = ["rotate", "a", "--kek", "--slot", "keyfile:key", "--slot", "kms:quick-keys"];
    let report = desk.told(&words);
    assert_eq!(report["finished"], json!([{"slot": 2, "old": "destroyed"}]), "{report}");
    assert_eq!(QUICK.live(&desk, "default"), [3, 5]);
    for (name, spec) in [("a", "keyfile:key"), ("b", "kms:quick-keys"), ("c", "kms:quick-keys")] {
        desk.ok(&with_config(&["check", name, "--slot", spec]));
    }
}
