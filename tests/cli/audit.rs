//! The audit log of every verb: what is recorded, that it is before the change, that nothing can be forged, and
//! that a log that was asked for must be there. The chain itself: `src/audit/log.rs`.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::programs::{call, outcome, program, skip, wait_for};
use crate::desk::{AUDIT, Desk, Ended, SIZE, Server};

/// A new record is shown after this long on a slow machine.
const SECONDS_MAX: std::time::Duration = std::time::Duration::from_secs(60);

/// The records of a desk.
fn records(desk: &Desk) -> Vec<Value> {
    let text = String::from_utf8(desk.bytes(AUDIT)).expect("records are ASCII");
    assert!(text.bytes().all(|byte| matches!(byte, b'\n' | b' '..=b'~')), "{text}");
    text.lines().map(|line| serde_json::from_str(line).expect("a record is JSON")).collect()
}

/// Verb, outcome and keyslot that opened, of every record.
fn story(desk: &Desk) -> Vec<String> {
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let line = |record: &Value| {
        let slot = record.get("slot").map_or(String::new(), |slot| format!(" {slot}"));
        format!("{} {}{slot}", word(&record["verb"]), word(&record["outcome"]))
    };
    records(desk).iter().map(line).collect()
}

fn verified(desk: &Desk) -> Value {
    desk.json(&["audit", "verify"])
}

#[test]
fn every_verb_that_needs_or_changes_a_key_leaves_its_records_and_others_leave_none() {
    let desk = Desk::new();
    let key = ["--slot", "keyfile:key"];
    let with_key = |words: &[&'static str]| [words, &key[..]].concat();
    for (words, expected) in [
        (with_key(&["format", "vol", "--size", SIZE]), &["format started", "format done"][..]),
        (with_key(&["status", "vol"]), &["status done 0"]),
        (vec!["status", "vol"], &[]),
        (vec!["dump", "vol"], &[]),
        (vec!["uuid", "vol"], &[]),
        (vec!["key", "list", "vol"], &[]),
        (with_key(&["check", "vol"]), &["check done 0"]),
        (with_key(&["key", "test", "vol"]), &["key-test done 0"]),
        (
            with_key(&["key", "add", "vol", "--new-slot", "keyfile:two"]),
            &["key-add started 0", "key-add done 0"],
        ),
        (
            vec!["key", "change", "vol", "--slot", "keyfile:two", "--new-slot", "keyfile:three"],
            &["key-change started 2", "key-change done 2"],
        ),
        (
            with_key(&["key", "remove", "vol", "--key-slot", "2"]),
            &["key-remove started 0", "key-remove done 0"],
        ),
        (vec!["header", "backup", "vol", "backup"], &["header-backup done"]),
        (
            with_key(&["header", "restore", "vol", "backup", "--yes"]),
            &["header-restore started 0", "header-restore done 0"],
        ),
        (with_key(&["serve", "vol", "--run", "true"]), &["serve started 0", "serve done 0"]),
        (vec!["audit", "verify"], &[]),
        (vec!["audit", "tail"], &[]),
        (vec!["dump", "none", "--jsom"], &[]),
    ] {
        let before = if desk.path(AUDIT).exists() { story(&desk) } else { Vec::new() };
        desk.run(&words);
        assert_eq!(
            story(&desk),
            [&before[..], &expected.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()].concat()
        );
    }
    let uuid = desk.json(&["uuid", "vol"])["uuid"].clone();
    let records = records(&desk);
    let of = |verb: &str| records.iter().filter(|record| record["verb"] == verb).collect::<Vec<_>>();
    // Of a new volume only the end knows the name.
    assert_eq!((of("format")[0].get("volume"), &of("format")[1]["volume"]), (None, &uuid));
    assert!(records[2..].iter().all(|record| record["volume"] == uuid && record["backend"] == "vol"));
    let keyslot =
        |change: &str, slot: u8, manager: &str| json!({ "change": change, "slot": slot, "manager": manager });
    assert_eq!(
        of("format")[1]["changes"],
        json!([keyslot("added", 0, "keyfile"), keyslot("added", 1, "recovery")])
    );
    assert_eq!(of("key-add")[0].get("changes"), None);
    assert_eq!(of("key-add")[1]["changes"], json!([keyslot("added", 2, "keyfile")]));
    let change = json!([keyslot("removed", 2, "keyfile"), keyslot("added", 2, "keyfile")]);
    assert_eq!(of("key-change")[1]["changes"], change);
    assert_eq!(of("key-remove")[1]["changes"], json!([keyslot("removed", 2, "keyfile")]));
    // Both records of a command have its number, others have others.
    let requests: std::collections::HashSet<_> = records.iter().map(|record| &record["request"]).collect();
    assert_eq!(requests.len(), 10, "{requests:?}");
    assert_eq!(of("key-add")[0]["request"], of("key-add")[1]["request"]);
    assert_eq!(verified(&desk)["records"], records.len());
    assert_eq!(verified(&desk)["last_seq"], records.len());
}

#[test]
fn a_record_tells_who_when_and_where() {
    let desk = Desk::with_volume();
    let begun = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    let mut command = desk.command(&["check", "vol", "--slot", "keyfile:key"]);
    assert!(outcome(command.env("SUDO_UID", "4711")).status.success());
    let record = records(&desk).pop().expect("a record");
    assert_eq!(record["host"], call("uname", &["-n"]).trim());
    assert_eq!(record["uid"], rustix::process::getuid().as_raw());
    assert_eq!(record["user"], call("id", &["-un"]).trim());
    assert_eq!(record["sudo_uid"], 4711);
    assert!(record["pid"].as_u64().is_some_and(|pid| pid > 1), "{record}");
    let time = record["time"].as_str().expect("a time");
    assert_eq!((time.len(), &time[19..20], &time[23..]), (24, ".", "Z"), "{time}");
    assert!(time[..19] >= begun[..19], "{time} {begun}");
    assert_eq!(record["request"].as_str().map(str::len), Some(36));
    let mode = std::fs::metadata(desk.path(AUDIT)).expect("the log").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}

#[test]
fn failures_are_recorded_with_code_word_exit_code_and_volume() {
    let desk = Desk::with_volume();
    desk.ok(&["format", "other", "--size", SIZE, "--slot", "keyfile:wrong", "--no-recovery"]);
    let uuid = desk.json(&["uuid", "vol"])["uuid"].clone();
    let last = |words: &[&str], expected: [Value; 3], volume: Option<&Value>| {
        desk.run(words);
        let record = records(&desk).pop().expect("a record");
        let found = [&record["outcome"], &record["error"], &record["exit"]];
        assert_eq!(found, expected.each_ref(), "{words:?}: {record}");
        assert_eq!(record.get("volume"), volume, "{record}");
    };
    let no_key = || [json!("failed"), json!("no_key_fits"), json!(2)];
    for words in [
        &["check", "vol", "--slot", "keyfile:wrong"][..],
        &["status", "vol", "--slot", "keyfile:wrong"],
        &["key", "test", "vol", "--slot", "keyfile:wrong"],
        &["key", "add", "vol", "--slot", "keyfile:wrong", "--new-slot", "keyfile:new"],
        &["key", "remove", "vol", "--slot", "keyfile:wrong"],
        &["serve", "vol", "--slot", "keyfile:wrong", "-U", "socket"],
    ] {
        last(words, no_key(), Some(&uuid));
    }
    assert_eq!(story(&desk).iter().filter(|line| line.ends_with("started")).count(), 2, "the two of format");
    let none = [json!("failed"), json!("not_a_volume"), json!(4)];
    last(&["check", "none", "--slot", "keyfile:key"], none, None);
    let refused = [json!("failed"), json!("refused"), json!(13)];
    last(&["key", "remove", "vol", "--slot", "keyfile:key"], refused, Some(&uuid));
    verified(&desk);
}

#[test]
fn serving_is_recorded_at_its_begin_and_its_end_for_every_volume() {
    let desk = Desk::with_volume();
    desk.ok(&["format", "other", "--size", SIZE, "--slot", "keyfile:key", "--no-recovery"]);
    let uuids = ["vol", "other"].map(|name| desk.json(&["uuid", name])["uuid"].clone());
    let before = records(&desk).len();
    let mut server = Server::start(&desk, &["vol", "other", "--slot", "keyfile:key"]);
    let of = |outcome: &str| {
        let records = records(&desk).split_off(before);
        let fitting = records.into_iter().filter(|record| record["outcome"] == outcome);
        fitting.map(|record| record["volume"].clone()).collect::<Vec<_>>()
    };
    assert_eq!((of("started"), of("done")), (uuids.to_vec(), vec![]));
    let serving = server.id();
    assert_eq!(server.stop(Signal::TERM), 0);
    assert_eq!((of("started"), of("done")), (uuids.to_vec(), uuids.to_vec()));
    assert!(
        records(&desk)[before..].iter().all(|record| record["pid"] == serving && record["verb"] == "serve")
    );
    // A process that is killed says nothing; that is what a begin without an end means.
    let mut server = Server::start(&desk, &["vol", "--slot", "keyfile:key"]);
    server.stop(Signal::KILL);
    assert_eq!((of("started").len(), of("done").len()), (3, 2));
    verified(&desk);
}

#[test]
fn a_volume_that_is_written_over_is_named() {
    let desk = Desk::with_volume();
    let old = desk.json(&["uuid", "vol"])["uuid"].clone();
    desk.ok(&["format", "vol", "--size", SIZE, "--slot", "keyfile:key", "--no-recovery", "--yes"]);
    let new = desk.json(&["uuid", "vol"])["uuid"].clone();
    assert_ne!(old, new);
    let records = records(&desk).split_off(2);
    assert_eq!((&records[0]["outcome"], &records[0]["replaces"]), (&json!("started"), &old));
    assert_eq!((&records[1]["outcome"], &records[1]["volume"]), (&json!("done"), &new));
    assert_eq!(records[1]["replaces"], old);
}

#[test]
fn what_cannot_be_recorded_where_it_was_asked_for_is_not_done() {
    let desk = Desk::with_volume();
    desk.ok(&["header", "backup", "vol", "backup"]);
    let before = desk.bytes("vol");
    std::fs::write(desk.path("text"), "not a log\n").expect("the directory is ours");
    std::fs::copy(desk.path("vol"), desk.path("image")).expect("the directory is ours");
    let run = |log: &str, words: &[&str]| {
        let mut command = desk.command(words);
        Ended::of(outcome(command.env("SEALBD_AUDIT", log)), words)
    };
    for log in ["none/audit.jsonl", "/dev/full", "text", "image", "."] {
        for words in [
            &["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:new"][..],
            &["key", "change", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:new"],
            &["key", "remove", "vol", "--slot", "keyfile:key", "--force-last"],
            &["header", "restore", "vol", "backup", "--slot", "keyfile:key", "--yes"],
            &["serve", "vol", "--slot", "keyfile:key", "-U", "socket"],
            &["format", "vol", "--size", SIZE, "--slot", "keyfile:new", "--yes"],
            &["format", "fresh", "--size", SIZE, "--slot", "keyfile:new"],
        ] {
            let ended = run(log, &[words, &["--json"]].concat());
            assert_eq!(ended.code, 13, "{log}: {words:?}: {}", ended.stderr);
            let error = &ended.object()["error"];
            assert_eq!((&error["code"], &error["exit"]), (&json!("audit"), &json!(13)));
            assert!(ended.stderr.contains("nothing was changed"), "{}", ended.stderr);
            assert_eq!(desk.bytes("vol"), before);
            assert!(
                !desk.path("new").exists() && !desk.path("fresh").exists() && !desk.path("socket").exists()
            );
        }
        // What only looks goes on, and says what is missing.
        let ended = run(log, &["check", "vol", "--slot", "keyfile:key"]);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        assert!(ended.stderr.contains("the end is not recorded"), "{}", ended.stderr);
    }
    assert_eq!((desk.bytes("text"), desk.bytes("image")), (b"not a log\n".to_vec(), before));
}

#[test]
fn the_usual_log_may_be_missing_and_that_is_told() {
    let desk = Desk::with_volume();
    std::fs::write(desk.path("file"), "").expect("the directory is ours");
    let add = |logs: &str, new: &str| {
        let words = ["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", new];
        let mut command = desk.command(&words);
        command.env_remove("SEALBD_AUDIT").env("LOGS_DIRECTORY", desk.path(logs));
        Ended::of(outcome(&mut command), &words)
    };
    let ended = add("file/logs", "keyfile:two");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("sealbd: not recorded: "), "{}", ended.stderr);
    // Where it can be, it is, and so is its directory, for its owner alone.
    let ended = add("new/logs", "keyfile:three");
    assert_eq!((ended.code, ended.stderr.contains("recorded")), (0, false), "{}", ended.stderr);
    let mode = |name: &str| std::fs::metadata(desk.path(name)).expect("made").permissions().mode() & 0o777;
    assert_eq!((mode("new/logs"), mode("new/logs/audit.jsonl")), (0o700, 0o600));
    desk.ok(&["audit", "verify", "new/logs/audit.jsonl"]);
}

#[test]
fn a_full_disk_refuses_the_change_and_leaves_the_chain_whole() {
    if !rustix::process::geteuid().is_root() {
        return skip("a file system of its own size needs root");
    }
    let desk = Desk::with_volume();
    std::fs::create_dir(desk.path("small")).expect("the directory is ours");
    // In a mount namespace of its own: a log that grows until there is no room for another record.
    let script = "set -e; mount -t tmpfs -o size=8k none small; \
        export SEALBD_AUDIT=small/audit.jsonl; n=0; \
        while \"$0\" key test vol --slot keyfile:key 2>told >/dev/null && ! [ -s told ]; do n=$((n+1)); done; \
        set +e; cat told; cp vol before; \
        \"$0\" key add vol --slot keyfile:key --new-slot keyfile:two 2>&1; echo \"exit $?\"; \
        cmp vol before && echo unchanged; echo \"records $n\"; \"$0\" audit verify; echo \"exit $?\"";
    let mut command = program("unshare");
    command.args(["-m", "sh", "-c", script, env!("CARGO_BIN_EXE_sealbd")]).current_dir(desk.dir());
    let told = String::from_utf8_lossy(&outcome(&mut command).stdout).into_owned();
    let records =
        told.lines().find_map(|line| line.strip_prefix("records ")).unwrap_or_else(|| panic!("{told}"));
    let records: u64 = records.parse().expect("a number");
    assert!(records > 5, "{told}");
    assert!(told.contains("the end is not recorded: small/audit.jsonl: No space left"), "{told}");
    assert!(told.contains("exit 13\nunchanged\n"), "{told}");
    assert!(told.contains(&format!("small/audit.jsonl: {records} records, every one follows")), "{told}");
    assert!(told.ends_with("exit 0\n"), "{told}");
}

#[test]
fn eight_processes_at_once_never_break_the_chain() {
    let desk = Desk::with_volume();
    let script = "i=0; while [ $i -lt 50 ]; do \"$0\" check none --slot keyfile:key 2>/dev/null; \
        [ $? = 4 ] || exit 1; i=$((i+1)); done";
    let start = |_| {
        let mut command = program("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_sealbd")]).current_dir(desk.dir());
        command.env("SEALBD_AUDIT", desk.path(AUDIT)).spawn().expect("it starts")
    };
    let children: Vec<_> = (0..8).map(start).collect();
    for mut child in children {
        assert!(child.wait().expect("our own child").success());
    }
    let report = verified(&desk);
    assert_eq!((&report["records"], &report["recovered"]), (&json!(2 + 8 * 50), &json!(0)));
    let pids: std::collections::HashSet<_> =
        records(&desk).iter().map(|record| record["pid"].clone()).collect();
    assert_eq!(pids.len(), 1 + 8 * 50);
}

#[test]
fn no_name_from_outside_can_forge_a_record_or_drive_a_terminal() {
    let desk = Desk::with_volume();
    let hostile = "x\n{\"schema\":1,\"seq\":9,\"verb\":\"erase\"}\n\u{1b}[2K\u{9b}1m\"\\\u{202e}é";
    let label = "l\n{\"schema\":1}\n\u{1b}[8m";
    let format =
        ["format", hostile, "--size", SIZE, "--slot", "keyfile:key", "--no-recovery", "--label", label];
    desk.ok(&format);
    desk.ok(&["check", hostile, "--slot", "keyfile:key"]);
    desk.run(&["check", &"long".repeat(1000), "--slot", "keyfile:key"]);
    let records = records(&desk);
    assert_eq!(records.len(), 2 + 2 + 1 + 1);
    let escaped = r#"x\u{a}{"schema":1,"seq":9,"verb":"erase"}\u{a}\u{1b}[2K\u{9b}1m"\\\u{202e}\u{e9}"#;
    assert_eq!(records[4]["backend"], escaped);
    let cut = records[5]["backend"].as_str().expect("a name");
    assert!(cut.len() == 256 && cut.ends_with("long\\..."), "{cut}");
    assert_eq!(verified(&desk)["records"], 6);
    let shown = desk.ok(&["audit", "tail"]);
    assert_eq!(shown.lines().count(), 6, "{shown}");
    assert!(shown.bytes().all(|byte| matches!(byte, b'\n' | b' '..=b'~')), "{shown}");
}

#[test]
fn tail_shows_the_last_records_and_what_is_none() {
    let desk = Desk::with_volume();
    for _ in 0..12 {
        desk.ok(&["key", "test", "vol", "--slot", "keyfile:key"]);
    }
    let rows = desk.ok(&["audit", "tail"]);
    assert_eq!(rows.lines().count(), 10);
    let last = rows.lines().last().expect("a row");
    for part in ["  14  key-test       done", "@", "slot 0 keyfile", " on vol", "request "] {
        assert!(last.contains(part), "{part:?} in {last}");
    }
    let text = String::from_utf8(desk.bytes(AUDIT)).expect("ASCII");
    let lines: Vec<_> = text.split_inclusive('\n').collect();
    assert_eq!(desk.ok(&["audit", "tail", "-n", "3", "--json"]), lines[11..].concat());
    assert_eq!(desk.ok(&["audit", "tail", "-n", "99", "--json", AUDIT]), text);
    assert_eq!(desk.ok(&["audit", "tail", "-n", "0", "--json"]), "");
    std::fs::write(desk.path("torn"), [lines[0], "\u{1b}[2Jgarbage\n{\"schema"].concat()).expect("ours");
    let shown = desk.ok(&["audit", "tail", "torn"]);
    assert!(
        shown.ends_with("(a line of 12 bytes is not a record)\n(a line of 8 bytes is not a record)\n"),
        "{shown}"
    );
    let shown = desk.ok(&["audit", "tail", "torn", "--json"]);
    assert!(shown.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{shown}");
    desk.fails(1, "No such file", &["audit", "tail", "none"]);
}

#[test]
fn tail_follows_over_a_rotation() {
    let desk = Desk::with_volume();
    let shown = desk.path("shown");
    let output = std::fs::File::create(&shown).expect("the directory is ours");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealbd"));
    command.args(["audit", "tail", "--follow", "-n", "1", AUDIT, "--json"]).current_dir(desk.dir());
    let mut child = command.stdout(output).spawn().expect("it starts");
    let wait = |count: usize| {
        wait_for("records that are shown", SECONDS_MAX, || {
            let text = std::fs::read_to_string(&shown).expect("the directory is ours");
            (text.lines().count() == count).then_some(text)
        })
    };
    wait(1);
    desk.ok(&["key", "test", "vol", "--slot", "keyfile:key"]);
    wait(2);
    std::fs::rename(desk.path(AUDIT), desk.path("audit.jsonl.1")).expect("ours");
    desk.ok(&["check", "vol", "--slot", "keyfile:key"]);
    let text = wait(3);
    child.kill().expect("our own child");
    child.wait().expect("our own child");
    let seqs: Vec<_> =
        text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["seq"].clone()).collect();
    assert_eq!(seqs, [2, 3, 4]);
    let both = ["audit", "verify", "audit.jsonl.1", AUDIT];
    assert_eq!(desk.json(&both)["records"], 4);
}

#[test]
fn verify_names_the_line_and_what_is_wrong() {
    let desk = Desk::with_volume();
    for _ in 0..3 {
        desk.ok(&["key", "test", "vol", "--slot", "keyfile:key"]);
    }
    let kept = verified(&desk);
    let hash = kept["last_hash"].as_str().expect("a hash").to_owned();
    // As anybody computes it.
    let sum = call("sh", &["-c", &format!("tail -n 1 {} | sha256sum", desk.path(AUDIT).display())]);
    assert_eq!(sum.split(' ').next(), Some(hash.as_str()));
    desk.ok(&["audit", "verify", "--to", &hash]);
    let text = String::from_utf8(desk.bytes(AUDIT)).expect("ASCII");
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let put = |lines: &[&str]| std::fs::write(desk.path(AUDIT), lines.concat()).expect("ours");
    let failing = |cause: &str, words: &[&str]| {
        assert_eq!(desk.fails_in_both_forms(8, cause, words), "integrity");
    };
    put(&[lines[0], &lines[1].replace("\"slot\":0", "\"slot\":7"), lines[2], lines[3]]);
    failing("audit.jsonl: line 3 does not follow the line before", &["audit", "verify"]);
    put(&lines[..3]);
    desk.ok(&["audit", "verify"]);
    failing("no record of the chain has the hash", &["audit", "verify", "--to", &hash]);
    put(&[&text, "{\"schema\":1,"]);
    failing("line 6 is the last one and no whole record", &["audit", "verify"]);
    put(&lines[2..]);
    let anchored = format!("line 1 does not follow the line before, whose hash is {hash}");
    failing(&anchored, &["audit", "verify", "--from", &hash]);
    assert!(
        desk.ok(&["audit", "verify"]).contains("begins with record 3"),
        "told, where nothing can be checked"
    );
    assert_eq!(desk.fails_in_both_forms(1, "No such file", &["audit", "verify", "none"]), "system");
    desk.fails(1, "", &["audit", "verify", "--to", "abc"]);
    let unpacked = format!("cat {AUDIT} | '{}' audit verify /dev/stdin", env!("CARGO_BIN_EXE_sealbd"));
    let told = outcome(program("sh").args(["-c", &unpacked]).current_dir(desk.dir()));
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
}

#[test]
fn the_journal_gets_every_record_and_may_be_missing() {
    let desk = Desk::with_volume();
    let socket = std::os::unix::net::UnixDatagram::bind(desk.path("journal")).expect("the directory is ours");
    let run = |journal: &Path| {
        let words = ["key", "test", "vol", "--slot", "keyfile:key"];
        let told = outcome(desk.command(&words).env("SEALBD_AUDIT_JOURNAL", journal));
        Ended::of(told, &words)
    };
    assert_eq!(run(&desk.path("journal")).stderr, "");
    let mut buffer = vec![0; 65536];
    let len = socket.recv(&mut buffer).expect("a datagram");
    let told = String::from_utf8_lossy(&buffer[..len]).into_owned();
    let record = records(&desk).pop().expect("a record");
    for (field, value) in [
        ("SYSLOG_IDENTIFIER", &json!("sealbd")),
        ("SEALBD_VERB", &record["verb"]),
        ("SEALBD_OUTCOME", &record["outcome"]),
        ("SEALBD_VOLUME", &record["volume"]),
        ("SEALBD_MANAGER", &record["manager"]),
        ("SEALBD_REQUEST", &record["request"]),
    ] {
        let line = format!("{field}={}\n", value.as_str().expect("text"));
        assert!(told.contains(&line), "{line} in {told}");
    }
    assert_eq!(run(&desk.path("none")).stderr, "", "no journal, nobody to tell");
    drop(socket);
    let ended = run(&desk.path("journal"));
    assert_eq!(ended.code, 0);
    assert!(ended.stderr.contains("the journal did not take the record"), "{}", ended.stderr);
}
