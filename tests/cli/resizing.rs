//! `sealbd resize`: offline and through the server, both ways, and what it refuses.

use rustix::process::Signal;
use serde_json::json;

use crate::common::programs::outcome;
use crate::desk::{AUDIT, Desk, Ended, Server};

const KEY: [&str; 2] = ["--slot", "keyfile:key"];
const MIB: u64 = 1 << 20;
/// What a volume of a desk has.
const OLD: u64 = 16 * MIB;
const NEW: u64 = 40 * MIB;

fn with_key<'w>(words: &[&'w str]) -> Vec<&'w str> {
    [words, &KEY].concat()
}

fn serve(desk: &Desk, words: &[&str]) -> Server {
    Server::start(desk, &[&["vol"][..], &KEY, words].concat())
}

fn end(mut server: Server) {
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
}

/// One session of a server that writes there.
fn write(desk: &Desk, offset: u64, fill: u8) {
    let server = serve(desk, &[]);
    server.connect("vol").write(offset, &[fill; 4096], 0).expect("written");
    end(server);
}

fn header_size(desk: &Desk) -> u64 {
    desk.json(&["dump", "vol"])["size"].as_u64().expect("a number")
}

#[test]
fn a_volume_that_is_not_served_grows_with_its_file_and_keeps_its_data() {
    let desk = Desk::with_volume();
    write(&desk, OLD - 4096, 1);
    let file = || desk.path("vol").metadata().expect("the file is ours").len();
    let before = file();
    let report = desk.json(&with_key(&["resize", "vol", "40M"]));
    assert_eq!((&report["size"], &report["before"]["size"]), (&json!(NEW), &json!(OLD)), "{report}");
    assert_eq!((&report["changed"], &report["dry_run"]), (&json!(true), &json!(false)), "{report}");
    assert_eq!(report["header_generation"], 2, "{report}");
    assert_eq!(report["store_bytes"], file(), "{report}");
    assert!(file() > before, "{before} bytes before");
    let server = serve(&desk, &[]);
    let mut client = server.connect("vol");
    assert_eq!(client.size(), NEW);
    assert_eq!(client.read(OLD - 4096, 4096).expect("read"), [1; 4096]);
    client.write(NEW - 4096, &[2; 4096], 1).expect("written");
    drop(client);
    end(server);
    desk.ok(&with_key(&["check", "vol", "--deep"]));
    // Once more: there is nothing to do.
    let again = desk.json(&with_key(&["resize", "vol", "40M"]));
    assert_eq!((&again["changed"], &again["header_generation"]), (&json!(false), &json!(2)), "{again}");
}

#[test]
fn a_dry_run_tells_the_same_and_changes_nothing() {
    let desk = Desk::with_volume();
    write(&desk, OLD - 4096, 1);
    let before = desk.bytes("vol");
    let words = with_key(&["resize", "vol", "40M", "--over-provisioning", "1.5", "--dry-run"]);
    let tried = desk.json(&words);
    desk.fails(13, "first at byte 16773120", &with_key(&["resize", "vol", "8M", "--dry-run"]));
    assert!(desk.bytes("vol") == before, "nothing was written");
    let done = desk.json(&words[..words.len() - 3].iter().chain(&KEY).copied().collect::<Vec<_>>());
    assert_eq!((&tried["size"], &tried["segments"]), (&done["size"], &done["segments"]));
    assert!(done["segments"].as_u64() > desk.json(&["dump", "vol"])["segments"].as_u64().map(|all| all / 2));
    let log = String::from_utf8(desk.bytes(AUDIT)).expect("text");
    assert!(log.contains("\"verb\":\"resize\",\"outcome\":\"tried\""), "{log}");
}

#[test]
fn over_provisioning_is_chosen_anew_at_the_same_size() {
    let desk = Desk::with_volume();
    let report = desk.json(&with_key(&["resize", "vol", "16M", "--over-provisioning", "2"]));
    assert!(report["segments"].as_u64() > report["before"]["segments"].as_u64(), "{report}");
    assert_eq!(report["size"], OLD);
    desk.ok(&with_key(&["check", "vol"]));
}

#[test]
fn a_shrink_is_refused_with_the_first_byte_in_use_and_the_next_command_until_the_tail_is_trimmed() {
    let desk = Desk::with_volume();
    write(&desk, 12 * MIB, 1);
    let shrink = with_key(&["resize", "vol", "8M"]);
    let before = desk.bytes("vol")[..64 << 10].to_vec();
    assert_eq!(desk.fails_in_both_forms(13, "first at byte 12582912", &shrink), "tail_in_use");
    let next = desk.fails(13, "in use behind byte 8388608", &shrink);
    assert!(next.contains("blkdiscard --offset 8388608 DEVICE"), "{next}");
    assert!(desk.bytes("vol")[..64 << 10] == before, "the header is the old one");
    let server = serve(&desk, &[]);
    server.connect("vol").trim(8 * MIB, 8 << 20).expect("trimmed");
    end(server);
    let told = desk.ok(&shrink);
    assert!(told.contains("8.00 MiB (8388608 bytes), before 16.00 MiB"), "{told}");
    assert!(told.contains("segments stay"), "{told}");
    let server = serve(&desk, &[]);
    let mut client = server.connect("vol");
    assert_eq!(client.size(), 8 * MIB);
    assert!(client.read(8 * MIB, 4096).is_err(), "nothing is there to be read");
    drop(client);
    end(server);
    desk.ok(&with_key(&["check", "vol", "--deep"]));
    desk.ok(&["audit", "verify"]);
}

#[test]
fn a_served_volume_grows_under_its_clients_which_keep_the_size_that_they_were_told() {
    let desk = Desk::with_volume();
    let server = serve(&desk, &[]);
    let mut old = server.connect("vol");
    old.write(0, &[1; 4096], 0).expect("written");
    // The server has the key.
    let report = desk.json(&["resize", "vol", "40M"]);
    assert_eq!((&report["size"], &report["served_by"]), (&json!(NEW), &json!(server.id())), "{report}");
    let mut new = server.connect("vol");
    assert_eq!((old.size(), new.size()), (OLD, NEW));
    new.write(NEW - 4096, &[2; 4096], 0).expect("written");
    old.write(OLD - 4096, &[3; 4096], 1).expect("written");
    assert!(old.read(OLD, 4096).is_err(), "behind the end that it was told");
    assert_eq!(new.read(OLD - 4096, 4096).expect("read"), [3; 4096]);
    drop((old, new));
    end(server);
    assert_eq!(header_size(&desk), NEW);
    desk.ok(&with_key(&["check", "vol", "--deep"]));
}

#[test]
fn a_served_volume_becomes_smaller_only_while_nobody_is_connected() {
    let desk = Desk::with_volume();
    let server = serve(&desk, &[]);
    let (mut one, two) = (server.connect("vol"), server.connect("vol"));
    let shrink = ["resize", "vol", "8M"];
    for words in [&shrink[..], &["resize", "vol", "8M", "--dry-run"]] {
        assert_eq!(desk.fails_in_both_forms(10, "there are 2 connections", words), "in_use");
    }
    two.disconnect().expect("disconnected");
    one.write(12 * MIB, &[1; 4096], 0).expect("written");
    assert!(desk.fails(10, "there is one connection", &shrink).contains("disconnect"));
    one.disconnect().expect("disconnected");
    let refused = retried(&desk, &shrink);
    assert_eq!(refused.code, 13, "{}", refused.stderr);
    assert!(refused.stderr.contains("first at byte 12582912"), "{}", refused.stderr);
    assert!(refused.next().contains("blkdiscard --offset 8388608 DEVICE"), "{}", refused.stderr);
    let mut again = server.connect("vol");
    assert_eq!(again.size(), OLD, "refused, so it is as large as before");
    again.trim(8 * MIB, 8 << 20).expect("trimmed");
    again.disconnect().expect("disconnected");
    let done = retried(&desk, &shrink);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(server.connect("vol").size(), 8 * MIB);
    end(server);
    assert_eq!(header_size(&desk), 8 * MIB);
    desk.ok(&with_key(&["check", "vol", "--deep"]));
}

/// Runs a command until the server has noticed that its clients have gone.
fn retried(desk: &Desk, words: &[&str]) -> Ended {
    let mut ended = desk.run(words);
    crate::common::programs::wait_for("the clients to be gone", std::time::Duration::from_secs(60), || {
        if ended.code == 10 {
            ended = desk.run(words);
        }
        (ended.code != 10).then_some(())
    });
    ended
}

#[test]
fn a_served_volume_that_was_resized_is_suspended_and_resumed_with_its_new_size() {
    let desk = Desk::with_volume();
    let server = serve(&desk, &[]);
    desk.ok(&["resize", "vol", "40M"]);
    desk.ok(&["suspend", "vol"]);
    assert_eq!(desk.fails_in_both_forms(10, "suspended", &["resize", "vol", "48M"]), "suspended");
    desk.ok(&with_key(&["resume", "vol"]));
    assert_eq!(server.connect("vol").size(), NEW);
    end(server);
}

#[test]
fn a_size_that_no_volume_has_is_told_before_anything_is_opened() {
    let desk = Desk::with_volume();
    assert_eq!(
        desk.fails_in_both_forms(1, "multiple of 4096", &with_key(&["resize", "vol", "16777217"])),
        "usage"
    );
    assert_eq!(desk.fails_in_both_forms(1, "is outside", &with_key(&["resize", "vol", "4K"])), "usage");
    desk.fails(1, "--slot", &["resize", "vol", "40M"]);
    desk.fails(4, "", &with_key(&["resize", "none", "40M"]));
    assert_eq!(header_size(&desk), OLD);
}

#[test]
fn max_takes_what_the_backend_has_and_never_makes_it_smaller() {
    let desk = Desk::with_volume();
    let store_bytes = desk.json(&["dump", "vol"])["store_bytes"].as_u64();
    let same = desk.json(&with_key(&["resize", "vol", "max"]));
    assert!(same["size"].as_u64() >= Some(OLD), "{same}");
    assert_eq!(same["store_bytes"].as_u64(), store_bytes, "{same}");
    assert_eq!(desk.json(&with_key(&["resize", "vol", "max"]))["changed"], false);
    let file = std::fs::File::options().write(true).open(desk.path("vol")).expect("the file is ours");
    file.set_len(200 * MIB).expect("a sparse file");
    let grown = desk.json(&with_key(&["resize", "vol", "max"]));
    assert!(grown["size"].as_u64() > Some(100 * MIB), "{grown}");
    assert!(grown["store_bytes"].as_u64() <= Some(200 * MIB), "{grown}");
    desk.ok(&with_key(&["check", "vol"]));
}

#[test]
fn a_resize_moves_the_anchor_so_that_the_old_size_cannot_come_back_unseen() {
    let desk = Desk::with_volume();
    let anchored = ["--anchor", "anchors"];
    let server = serve(&desk, &anchored);
    server.connect("vol").write(0, &[1; 4096], 0).expect("written");
    end(server);
    let old = desk.bytes("vol");
    for online in [false, true] {
        let newer = desk.bytes("vol");
        if online {
            let server = serve(&desk, &anchored);
            desk.ok(&["resize", "vol", "64M"]);
            end(server);
        } else {
            desk.ok(&with_key(&[&["resize", "vol", "40M"][..], &anchored].concat()));
        }
        let now = desk.bytes("vol");
        for earlier in [&old, &newer] {
            std::fs::write(desk.path("vol"), earlier).expect("the file is ours");
            desk.fails(9, "(rollback)", &with_key(&[&["status", "vol"][..], &anchored].concat()));
        }
        std::fs::write(desk.path("vol"), now).expect("the file is ours");
        desk.ok(&with_key(&[&["check", "vol"][..], &anchored].concat()));
    }
    assert_eq!(header_size(&desk), 64 * MIB);
}

#[test]
fn a_resize_is_recorded_before_it_is_done() {
    let desk = Desk::with_volume();
    desk.ok(&with_key(&["resize", "vol", "40M"]));
    desk.fails(13, "", &{
        write(&desk, 30 * MIB, 1);
        with_key(&["resize", "vol", "8M"])
    });
    let log = String::from_utf8(desk.bytes(AUDIT)).expect("text");
    let told: Vec<&str> = log.lines().filter(|line| line.contains("\"verb\":\"resize\"")).collect();
    let has = |line: &str, outcome: &str| line.contains(&format!("\"outcome\":\"{outcome}\""));
    assert_eq!(told.len(), 4, "{told:?}");
    assert!(has(told[0], "started") && has(told[1], "done") && has(told[2], "started"), "{told:?}");
    assert!(has(told[3], "failed") && told[3].contains("\"error\":\"tail_in_use\""), "{told:?}");
    // What cannot be recorded is not done.
    let before = desk.bytes("vol");
    let mut command = desk.command(&with_key(&["resize", "vol", "48M"]));
    let refused = outcome(command.env("SEALBD_AUDIT", desk.path("none/audit.jsonl")));
    assert_eq!(refused.status.code(), Some(13), "{}", String::from_utf8_lossy(&refused.stderr));
    assert!(desk.bytes("vol") == before, "nothing was written");
}
