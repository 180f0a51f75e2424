//! sealbd is killed at every call of its key manager, before the manager does anything and behind its answer. Whatever
//! verb it was: the volume opens afterwards by the keys that it promises, the same command once more finishes, and
//! nothing is left that is in the way. What a cut between the store and the power leaves: `tests/key_crash.rs`.

use std::process::Command;

use crate::common::programs::{program, report, run};
use crate::desk::Desk;
use crate::plugins::{Plugin, with_config};

const QUICK: Plugin = Plugin::Quick("quick-keys");

/// A verb that changes keys, and what must hold behind it.
struct Verb<'t> {
    words: &'t [&'t str],
    /// Keys of which one opens the volume at any time, whatever was cut off; none when nothing need open it.
    always: &'t [&'t str],
    /// How the same command may end after a run that was killed, besides with 0.
    again: &'t [i32],
    /// Fewest calls of the key manager.
    calls_min: u32,
}

/// Runs the verb on copies of the volume, each time killed at another call; `settled` judges what the last run left.
/// Tells how often it was killed and how many versions were left over that no keyslot names.
fn killed_everywhere(desk: &Desk, verb: &Verb<'_>, settled: impl Fn(&Desk)) -> u32 {
    let words = with_config(verb.words);
    keep(desk);
    let mut cuts = 0;
    for when in ["before", "after"] {
        for at in 1.. {
            put_back(desk);
            QUICK.tell(desk, "count", "");
            QUICK.tell(desk, "kill", &format!("{at} {when}"));
            let ended = desk.ended_or_killed(&words);
            QUICK.tell(desk, "kill", "");
            if let Some(ended) = ended {
                assert_eq!(ended.code, 0, "{words:?}, not killed: {}", ended.stderr);
                assert!(at > verb.calls_min, "{words:?}: only {} calls", at - 1);
                settled(desk);
                break;
            }
            cuts += 1;
            let place = format!("{words:?}, killed {when} call {at}");
            let opens = |spec: &&&str| desk.try_out(&["key", "test", "vol", "--slot", spec]).code == 0;
            if !verb.always.is_empty() {
                assert!(verb.always.iter().any(|spec| opens(&spec)), "{place}: nothing opens the volume");
            }
            let again = desk.try_out(verb.words);
            let expected = again.code == 0 || verb.again.contains(&again.code);
            assert!(expected, "{place}, once more: {} {}", again.code, again.stderr);
            settled(desk);
            desk.ok(&["audit", "verify"]);
        }
    }
    report(&format!("{}: killed {cuts} times", verb.words.join(" ")));
    cuts
}

fn keep(desk: &Desk) {
    run(copy().args(["vol", "quick-keys", "kept"]).current_dir(desk.dir()));
}

fn put_back(desk: &Desk) {
    std::fs::remove_dir_all(desk.path("quick-keys")).expect("ours");
    run(copy().args(["kept/vol", "kept/quick-keys", "."]).current_dir(desk.dir()));
}

fn copy() -> Command {
    let mut command = program("cp");
    command.args(["-a", "--sparse=always"]);
    command
}

/// A volume with the key manager in slot 0 and a keyfile in slot 1.
fn scene() -> Desk {
    let desk = Desk::with_plugins(&[QUICK], "");
    desk.managed_volume("vol", "kms:quick-keys/db");
    std::fs::create_dir(desk.path("kept")).expect("the directory is ours");
    desk
}

/// Every keyslot that is in use opens, and no other is left.
fn opens_by_all(desk: &Desk, slots: &[u64]) {
    assert_eq!(desk.slots_in("vol"), slots);
    let report = desk.told(&["key", "test", "vol", "--slot", "keyfile:key", "--slot", "kms:quick-keys"]);
    for slot in report["keyslots"].as_array().expect("a list") {
        assert_eq!(slot["opens"], true, "{report}");
    }
    desk.ok(&["check", "vol", "--slot", "keyfile:key"]);
    desk.ok(&["header", "verify", "vol", "--slot", "keyfile:key"]);
}

#[test]
fn a_rotation_that_is_killed_at_any_call_leaves_a_volume_that_opens_and_is_finished_by_the_next() {
    let desk = scene();
    let verb = Verb {
        words: &["rotate", "vol", "--kek", "--retire-old", "--slot", "kms:quick-keys"],
        always: &["kms:quick-keys"],
        again: &[],
        calls_min: 6,
    };
    let cuts = killed_everywhere(&desk, &verb, |desk| {
        opens_by_all(desk, &[0, 1]);
        let named = desk.version_in("vol", 0).expect("a version").parse::<u32>().expect("a number");
        let live = QUICK.live(desk, "db");
        // The version that a killed run made and put into no keyslot may be left in the manager: one at most,
        // never the old one, and the newest is the one in use.
        assert!(
            live.last() == Some(&named) && !live.contains(&1) && live.len() <= 2,
            "{live:?}, in use {named}"
        );
    });
    assert!(cuts >= 12, "{cuts}");
}

#[test]
fn a_rotation_that_keeps_the_old_version_may_be_killed_at_any_call() {
    let desk = scene();
    let verb = Verb {
        words: &["rotate", "vol", "--kek", "--slot", "kms:quick-keys"],
        always: &["kms:quick-keys"],
        again: &[],
        calls_min: 4,
    };
    killed_everywhere(&desk, &verb, |desk| {
        opens_by_all(desk, &[0, 1]);
        assert!(QUICK.live(desk, "db").contains(&1), "nothing was to be destroyed");
    });
}

#[test]
fn a_key_that_is_being_added_when_sealbd_is_killed_is_there_or_not_and_ensure_adds_it_once() {
    let spec = "kms:quick-keys/two";
    for verb in ["add", "ensure"] {
        let desk = scene();
        let words = ["key", verb, "vol", "--slot", "keyfile:key", "--new-slot", spec];
        let verb = Verb { words: &words, always: &["keyfile:key"], again: &[], calls_min: 1 };
        killed_everywhere(&desk, &verb, |desk| opens_by_all(desk, &[0, 1, 2]));
    }
}

#[test]
fn a_key_that_is_being_changed_when_sealbd_is_killed_is_the_old_or_the_new_one() {
    let desk = scene();
    let verb = Verb {
        words: &["key", "change", "vol", "--slot", "kms:quick-keys", "--new-slot", "kms:quick-keys/two"],
        always: &["kms:quick-keys"],
        again: &[],
        calls_min: 2,
    };
    killed_everywhere(&desk, &verb, |desk| opens_by_all(desk, &[0, 1]));
    let desk = scene();
    let verb = Verb {
        words: &["key", "change", "vol", "--slot", "keyfile:key", "--new-slot", "kms:quick-keys/two"],
        always: &["keyfile:key"],
        again: &[],
        calls_min: 1,
    };
    killed_everywhere(&desk, &verb, |desk| {
        let report = desk.told(&["key", "test", "vol", "--slot", "kms:quick-keys"]);
        let opens: Vec<_> =
            report["keyslots"].as_array().expect("a list").iter().map(|s| &s["opens"]).collect();
        assert_eq!(opens, [true, true], "{report}");
    });
}

#[test]
fn a_revocation_that_is_killed_at_any_call_is_finished_by_the_next() {
    let desk = scene();
    let verb = Verb {
        words: &["revoke", "vol", "--key-slot", "0", "--slot", "keyfile:key", "--slot", "kms:quick-keys"],
        always: &["keyfile:key"],
        again: &[],
        calls_min: 3,
    };
    killed_everywhere(&desk, &verb, |desk| {
        only_the_keyfile_is_left(desk);
        assert_eq!(QUICK.live(desk, "db"), [] as [u32; 0]);
    });
}

fn only_the_keyfile_is_left(desk: &Desk) {
    assert_eq!(desk.slots_in("vol"), [1]);
    desk.ok(&["check", "vol", "--slot", "keyfile:key"]);
    desk.ok(&["header", "verify", "vol", "--slot", "keyfile:key"]);
}

/// The two copies of the header.
fn both_headers(desk: &Desk) -> Vec<u8> {
    let bytes = desk.bytes("vol");
    [0, 1 << 20].iter().flat_map(|copy| bytes[*copy..][..64 << 10].to_vec()).collect()
}

#[test]
fn an_erasure_that_is_killed_leaves_the_volume_as_it_was_or_opened_by_nothing() {
    let desk = scene();
    let verb = Verb {
        words: &["erase", "vol", "--yes", "--slot", "kms:quick-keys"],
        always: &[],
        // No key opens the volume any more, so none may erase it.
        again: &[2],
        calls_min: 3,
    };
    killed_everywhere(&desk, &verb, |desk| {
        for spec in ["keyfile:key", "kms:quick-keys"] {
            desk.fails(2, "no keyslot is in use", &with_config(&["check", "vol", "--slot", spec]));
        }
        // The key itself may be left in the manager when the process ended between the two; the wrapped one is
        // gone from the store, so nothing opens by it.
        let (before, after) = (desk.bytes("kept/vol"), both_headers(desk));
        let wrapped = &before[4096 + 24 + 256..][..60];
        assert!(!after.windows(60).any(|window| window == wrapped), "the wrapped key is on the store");
    });
}
