//! Key managers that hang, refuse, lie or are gone, and what the commands and the audit log tell of them; `kms`, and the
//! key verbs on keyslots of a manager.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::programs::program;
use crate::desk::{AUDIT, Desk, Ended, SIZE, Server};
use crate::plugins::{CONFIG, Plugin, assert_absent, with_config};

const LOCAL: Plugin = Plugin::Example("local");
const QUICK: Plugin = Plugin::Quick("quick-keys");
const OTHER: Plugin = Plugin::Quick("other-keys");

/// A volume with `quick-keys` in slot 0, a keyfile in slot 1 and `other-keys` in slot 2.
fn both() -> Desk {
    let desk = Desk::with_plugins(&[QUICK, OTHER], "");
    desk.managed_volume("vol", "kms:quick-keys/db");
    let add = ["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "kms:other-keys/db2"];
    desk.ok(&with_config(&add));
    desk
}

/// Has both give up soon.
fn impatient(desk: &Desk) {
    desk.configure(&[QUICK, OTHER].map(|plugin| plugin.provider("300ms", "500ms")).concat());
}

#[test]
fn a_key_manager_that_hangs_is_given_up_in_time_and_the_next_keyslot_opens() {
    let desk = both();
    impatient(&desk);
    QUICK.mood(&desk, "hang");
    let begun = Instant::now();
    let check = ["check", "vol", "--slot", "kms:quick-keys/db"];
    let next = desk.fails(6, "had not ended after 300ms", &with_config(&check));
    assert!(next.contains("sealbd kms test"), "{next}");
    // Twice 300 ms and a pause; the rest is for a slow machine.
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let report = desk.try_out(&[&check[..], &["--json"]].concat());
    let error = report.object()["error"].clone();
    let told = json!({"code": "kms_unreachable", "exit": 6, "retryable": true});
    assert!(["code", "exit", "retryable"].iter().all(|field| error[field] == told[field]), "{error}");
    // With another way in it opens, and what is broken is told.
    let ended = desk.try_out(&[&check[..], &["--slot", "keyfile:key"]].concat());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("vol: slot 0 (exec): key manager unreachable: "), "{}", ended.stderr);
    assert!(!ended.stderr.contains("slot 2"), "what was not tried is not told: {}", ended.stderr);
    let record = desk.records().pop().expect("recorded");
    assert_eq!((&record["outcome"], &record["slot"]), (&json!("done"), &json!(1)), "{record}");
    // Nor the no of a manager of the same kind where the right one opens.
    QUICK.mood(&desk, "");
    let ended = desk.try_out(&["check", "vol", "--slot", "kms:other-keys", "--slot", "kms:quick-keys"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    QUICK.mood(&desk, "hang");
    // Also in the order of their priority, with two managers and nothing else.
    desk.ok(&["key", "priority", "vol", "--slot", "keyfile:key", "--key-slot", "2", "--priority", "5"]);
    let both = ["check", "vol", "--slot", "kms:quick-keys/db", "--slot", "kms:other-keys/db2"];
    let ended = desk.try_out(&both);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("slot 0 (exec): key manager unreachable"), "{}", ended.stderr);
}

#[test]
fn a_key_manager_that_refuses_is_asked_once_and_the_exit_code_is_7() {
    let desk = both();
    impatient(&desk);
    let check = ["check", "vol", "--slot", "kms:quick-keys/db"];
    for (mood, code) in [("denied", "kms_denied"), ("nonsense", "kms_denied")] {
        QUICK.mood(&desk, mood);
        QUICK.tell(&desk, "calls", "");
        let ended = desk.try_out(&[&check[..], &["--json"]].concat());
        assert_eq!(ended.code, 7, "{mood}: {}", ended.stderr);
        let error = &ended.object()["error"];
        assert_eq!((&error["code"], &error["retryable"]), (&json!(code), &json!(false)));
        assert_eq!(QUICK.calls(&desk).len(), 1, "{mood}");
        let record = desk.records().pop().expect("recorded");
        assert_eq!((&record["error"], &record["exit"]), (&json!(code), &json!(7)), "{record}");
    }
    // An outage is what may be mended, so it comes first in what is told.
    OTHER.mood(&desk, "unreachable");
    let ended = desk.try_out(&[&check[..], &["--slot", "kms:other-keys/db2"]].concat());
    assert_eq!(ended.code, 6, "{}", ended.stderr);
    assert!(ended.stderr.contains("slot 0 (exec): ") && ended.stderr.contains("slot 2 (exec): "));
    let record = desk.records().pop().expect("recorded");
    assert_eq!((&record["error"], &record["exit"]), (&json!("kms_unreachable"), &json!(6)));
    // Malformed settings are neither: a program that is not there.
    desk.configure(&QUICK.provider("60s", "0s").replace("DIR/quick'", "DIR/none'"));
    desk.fails(1, "No such file", &with_config(&check));
}

#[test]
fn a_running_volume_needs_no_key_manager() {
    let desk = both();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sealbd"));
    command.args(CONFIG).args(["serve", "vol", "--slot", "kms:quick-keys/db"]);
    let mut server = Server::start_as(&desk, command);
    let mut client = server.connect("vol");
    client.write(0, &[7; 8192], 1).expect("written");
    std::fs::remove_dir_all(desk.path("quick-keys")).expect("ours");
    std::fs::remove_file(desk.path("quick")).expect("ours");
    client.write(8192, &[8; 8192], 1).expect("written");
    assert_eq!(client.read(0, 8192).expect("read"), [7; 8192]);
    client.flush().expect("flushed");
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
    desk.ok(&["check", "vol", "--deep", "--slot", "keyfile:key"]);
}

#[test]
fn the_audit_log_has_the_number_that_the_key_manager_was_given() {
    let desk = both();
    let slots = ["--slot", "keyfile:key", "--slot", "kms:quick-keys"];
    let of = |verb: &[&'static str]| [verb, &slots[..]].concat();
    for words in [
        vec!["check", "vol", "--slot", "kms:quick-keys/db"],
        vec!["key", "test", "vol", "--slot", "kms:quick-keys"],
        vec!["rotate", "vol", "--kek", "--retire-old", "--slot", "kms:quick-keys"],
        of(&["key", "add", "vol", "--new-slot", "kms:quick-keys/new"]),
        vec!["serve", "vol", "--run", "true", "--slot", "kms:quick-keys/db"],
        of(&["revoke", "vol", "--key-slot", "0"]),
    ] {
        QUICK.tell(&desk, "calls", "");
        desk.try_out(&words);
        let record = desk.records().pop().expect("recorded");
        let calls = QUICK.calls(&desk);
        assert!(!calls.is_empty(), "{words:?}");
        for (verb, request) in calls {
            assert_eq!(json!(request), record["request"], "{words:?}: {verb}");
        }
    }
    QUICK.mood(&desk, "denied");
    QUICK.tell(&desk, "calls", "");
    desk.fails(7, "denied", &with_config(&["check", "vol", "--slot", "kms:quick-keys/new"]));
    let record = desk.records().pop().expect("recorded");
    assert_eq!((&record["outcome"], &record["request"]), (&json!("failed"), &json!(QUICK.calls(&desk)[0].1)));
    // The report of a rotation has it, too, and the records name key and version.
    QUICK.mood(&desk, "");
    let report = desk.told(&["rotate", "vol", "--kek", "--slot", "kms:quick-keys"]);
    let record = desk.records().pop().expect("recorded");
    assert_eq!(report["request_id"], record["request"]);
    assert_eq!(
        (&record["manager"], &record["key_id"], &record["key_version"]),
        (&json!("exec"), &json!("new"), &json!("1"))
    );
    let changes = record["changes"].as_array().expect("a list").iter();
    let changes: Vec<_> =
        changes.map(|change| (change["change"].clone(), change["key_version"].clone())).collect();
    assert_eq!(changes, [(json!("removed"), json!("1")), (json!("added"), json!("2"))]);
}

#[test]
fn no_key_is_in_output_log_or_store_whatever_is_done_with_it() {
    let desk = Desk::with_plugins(&[LOCAL], "");
    let mut seen = Vec::new();
    let mut run = |words: &[&str]| {
        let Ended { stdout, stderr, .. } = desk.try_out(words);
        seen.extend([stdout.into_bytes(), stderr.into_bytes()]);
    };
    let mut secrets = Vec::new();
    let keep = |desk: &Desk, secrets: &mut Vec<Vec<u8>>| {
        let files = desk.contents(&["local"]).into_iter();
        secrets.extend(files.map(|(_, bytes)| bytes).filter(|bytes| bytes.len() == 32));
    };
    run(&["format", "vol", "--size", SIZE, "--slot", "kms:local", "--slot", "keyfile:key", "--no-recovery"]);
    keep(&desk, &mut secrets);
    run(&["rotate", "vol", "--kek", "--slot", "kms:local", "--json"]);
    keep(&desk, &mut secrets);
    run(&["rotate", "vol", "--kek", "--retire-old", "--slot", "kms:local"]);
    run(&["key", "add", "vol", "--slot", "kms:local", "--new-slot", "kms:local/new", "--json"]);
    keep(&desk, &mut secrets);
    for words in [
        &["key", "test", "vol", "--slot", "kms:local", "--json"][..],
        &["dump", "vol"],
        &["dump", "vol", "--json"],
        &["key", "list", "vol", "--json"],
        &["status", "vol", "--slot", "kms:local", "--json"],
        &["kms", "status", "--json"],
        &["key", "change", "vol", "--slot", "kms:local/new", "--new-slot", "kms:local/third"],
        &["revoke", "vol", "--key-slot", "0", "--slot", "keyfile:key", "--slot", "kms:local", "--json"],
        &["check", "vol", "--slot", "kms:none"],
        &["audit", "tail", "-n", "100"],
    ] {
        run(words);
    }
    secrets.extend([desk.data_key("vol", "key").to_vec(), desk.bytes("key")]);
    run(&["erase", "vol", "--yes", "--slot", "kms:local", "--json"]);
    assert!(secrets.len() >= 6, "{} keys", secrets.len());
    // What was never written need not be searched.
    let store = desk.bytes("vol");
    let store = store.chunks(4096).filter(|block| **block != [0; 4096]);
    let store: Vec<u8> = store.flatten().copied().collect();
    seen.extend([desk.bytes(AUDIT), store, desk.bytes("sealbd.toml")]);
    assert!(desk.records().len() > 15);
    for (place, bytes) in seen.iter().enumerate() {
        assert_absent(&format!("place {place}"), bytes, &secrets);
    }
}

#[test]
fn kms_lists_asks_and_tells_who_depends_on_it() {
    let desk = both();
    let volume = "[volume.db1]\nbackend = 'DIR/vol'\nslots = ['kms:quick-keys/db']\n";
    desk.configure(&format!("{}{}{volume}", QUICK.provider("60s", "0s"), OTHER.provider("2s", "1s")));
    let of = |report: &Value, name: &str| {
        let providers = report["providers"].as_array().expect("a list").iter();
        providers.clone().find(|provider| provider["name"] == name).expect("listed").clone()
    };
    QUICK.tell(&desk, "calls", "");
    let listed = of(&desk.told(&["kms", "list"]), "other-keys");
    let expected = json!({"name": "other-keys", "type": "exec", "timeout_ms": 2000, "retry_for_ms": 1000});
    assert_eq!(listed, expected);
    assert_eq!(QUICK.calls(&desk), [], "nobody is asked");
    let report = desk.told(&["kms", "status"]);
    let quick = of(&report, "quick-keys");
    assert_eq!(
        (&quick["up"], &quick["text"], &quick["volumes"]),
        (&json!(true), &json!("ready"), &json!(["db1"]))
    );
    assert_eq!(of(&report, "other-keys")["volumes"], json!([]));
    assert_eq!(QUICK.calls(&desk).len(), 1);
    // One that is down does not hide the other; the worst of them is the exit code.
    OTHER.mood(&desk, "unreachable");
    let ended = desk.try_out(&["kms", "test", "--json"]);
    assert_eq!(ended.code, 6, "{}", ended.stderr);
    let report = ended.object();
    assert_eq!(
        (&of(&report, "quick-keys")["up"], &of(&report, "other-keys")["up"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(of(&report, "other-keys")["problem"]["code"], "kms_unreachable");
    QUICK.mood(&desk, "denied");
    let ended = desk.try_out(&["kms", "test"]);
    assert_eq!(ended.code, 7, "{}", ended.stderr);
    assert!(ended.stdout.contains("FAILED after") && !ended.next().is_empty(), "{}", ended.stdout);
    assert_eq!(desk.try_out(&["kms", "test", "--provider", "other-keys"]).code, 6);
    desk.fails(1, "no provider of that name", &with_config(&["kms", "test", "--provider", "none"]));
}

#[test]
fn what_a_key_manager_notes_is_told_by_every_verb_that_asks_it() {
    let desk = both();
    std::fs::write(desk.path("seal"), [7; 32]).expect("ours");
    std::fs::set_permissions(desk.path("seal"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("ours");
    let cache = "cache = { secret = 'file:DIR/seal', directory = 'DIR/cache', ttl = '1h' }\n";
    desk.configure(&format!("{}{cache}", QUICK.provider("60s", "0s")));
    let slot = ["--slot", "kms:quick-keys/db"];
    let of = |words: &[&'static str]| [words, &slot[..]].concat();
    desk.ok(&with_config(&of(&["check", "vol"])));
    QUICK.mood(&desk, "unreachable");
    let note = "sealbd: key manager quick-keys unreachable (";
    for words in [
        of(&["check", "vol"]),
        of(&["status", "vol"]),
        of(&["key", "test", "vol"]),
        of(&["header", "verify", "vol"]),
        of(&["serve", "vol", "--run", "true"]),
        of(&["key", "add", "vol", "--new-slot", "keyfile:new"]),
        of(&["key", "priority", "vol", "--key-slot", "0", "--priority", "1"]),
        [&of(&["check", "vol"])[..], &["--slot", "keyfile:none"]].concat(),
    ] {
        let ended = desk.try_out(&words);
        assert_eq!(ended.code, 0, "{words:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(note), "{words:?}: {}", ended.stderr);
    }
    // Where the verb itself fails, too.
    let ended = desk.try_out(&of(&["rotate", "vol", "--kek"]));
    assert_eq!((ended.code, ended.stderr.contains(note)), (6, true), "{}", ended.stderr);
}

#[test]
fn key_test_tells_of_every_keyslot_why_it_does_not_open() {
    let desk = both();
    OTHER.mood(&desk, "denied");
    let test = ["key", "test", "vol", "--slot", "kms:quick-keys/db", "--slot", "kms:other-keys/db2"];
    let report = desk.told(&test);
    assert_eq!((&report["slot"], &report["type"]), (&json!(0), &json!("exec")), "{report}");
    let slots = report["keyslots"].as_array().expect("a list");
    let opens: Vec<_> = slots.iter().map(|slot| slot["opens"].clone()).collect();
    assert_eq!(opens, [json!(true), json!(false), json!(false)]);
    let why = |number: usize| slots[number]["reason"].as_str().expect("a reason").to_owned();
    assert!(why(1).contains("no such key was given") && why(2).contains("as it was told"), "{report}");
}

#[test]
fn keyslots_of_a_manager_are_put_in_order_killed_and_removed_like_any_other() {
    let desk = both();
    let test = ["key", "test", "vol", "--slot", "kms:quick-keys/db", "--slot", "kms:other-keys/db2"];
    assert_eq!(desk.told(&test)["slot"], 0);
    let by = |verb: &[&'static str], spec: &'static str| [&["key"][..], verb, &["--slot", spec]].concat();
    let first = ["priority", "vol", "--key-slot", "0", "--priority", "9"];
    desk.ok(&with_config(&by(&first, "kms:other-keys/db2")));
    assert_eq!(desk.told(&test)["slot"], 2);
    // Only a key that stays may kill, and the last one stays unless forced.
    let kill = ["kill", "vol", "--key-slot", "2"];
    let refused = with_config(&by(&kill, "kms:other-keys/db2"));
    assert_eq!(desk.fails_in_both_forms(13, "opens another keyslot", &refused), "refused");
    let killed = desk.told(&by(&kill, "kms:quick-keys/db"));
    assert_eq!((&killed["removed"], &killed["reopened"]), (&json!(2), &json!(true)), "{killed}");
    assert_eq!(OTHER.live(&desk, "db2"), [1], "its key stays in the manager: revoke destroys it");
    desk.ok(&["key", "remove", "vol", "--slot", "keyfile:key", "--key-slot", "1"]);
    let remove = ["remove", "vol"];
    desk.fails(13, "is the last one", &with_config(&by(&remove, "kms:quick-keys/db")));
    desk.ok(&with_config(&[&by(&remove, "kms:quick-keys/db")[..], &["--force-last"]].concat()));
    assert_eq!(desk.slots_in("vol"), [] as [u64; 0]);
    desk.fails(2, "no keyslot is in use", &with_config(&["check", "vol", "--slot", "kms:quick-keys"]));
}

#[test]
fn ensure_adds_a_second_manager_of_the_same_kind_and_then_nothing_more() {
    let desk = Desk::with_plugins(&[QUICK, OTHER], "");
    desk.managed_volume("vol", "kms:quick-keys");
    // The other one denies the keyslot of the first.
    let ensure = ["key", "ensure", "vol", "--slot", "keyfile:key", "--new-slot", "kms:other-keys"];
    assert_eq!(desk.told(&ensure)["added"], 2);
    let before = desk.bytes("vol");
    let again = desk.told(&ensure);
    assert_eq!((&again["slot"], &again["phases"]), (&json!(2), &json!([])), "{again}");
    assert_eq!(desk.bytes("vol"), before);
    // Whether it has one cannot be told of a manager that is not there.
    OTHER.mood(&desk, "unreachable");
    desk.fails(6, "as it was told", &with_config(&ensure));
    assert_eq!(desk.bytes("vol"), before);
}

#[test]
fn descriptors_that_sealbd_was_started_with_are_not_handed_on_to_plug_ins() {
    let desk = both();
    let script = "#!/bin/sh\nls -l /proc/self/fd > \"$1/open\"\nexec \"$(dirname \"$0\")/quick\" \"$1\"\n";
    std::fs::write(desk.path("nosy.source"), script).expect("the directory is ours");
    desk.install("nosy.source", "nosy");
    desk.configure(&QUICK.provider("60s", "0s").replace("DIR/quick'", "DIR/nosy'"));
    let own = desk.json(&["format", "own", "--size", SIZE, "--slot", "keyfile:key"]);
    let words = own["recovery_key"].as_str().expect("words");
    std::fs::write(desk.path("words"), words).expect("ours");
    // A file, a pipe and a secret that is asked for by its number; all of them open in the shell, too.
    let start = "exec 7<sealbd.toml 8<words 9>left; echo | { exec 6<&0; exec \"$0\" \"$@\"; }";
    let run = |words: &[&str]| {
        let mut command = program("sh");
        command.args(["-c", start, env!("CARGO_BIN_EXE_sealbd")]).args(words).current_dir(desk.dir());
        crate::common::programs::record_in(&mut command, &desk.path(AUDIT));
        Ended::of(crate::common::programs::outcome(&mut command), words)
    };
    let ended = run(&["--config", "/dev/fd/7", "check", "vol", "--slot", "kms:quick-keys/db"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let open = String::from_utf8(desk.bytes("quick-keys/open")).expect("text");
    // `ls` has its own for the directory.
    let numbers = open.lines().filter_map(|line| line.split_once(" -> ")?.0.split(' ').next_back());
    assert_eq!(numbers.collect::<Vec<_>>(), ["0", "1", "2", "3"], "{open}");
    assert!(!open.contains("words") && !open.contains("left"), "{open}");
    // Who names one still has it.
    let ended = run(&["key", "test", "own", "--slot", "recovery:fd:8"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
}
