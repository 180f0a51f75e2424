//! `sealbd compact`: offline and through the server, what it gives back, and that it can be interrupted.

use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::common::programs::{record_in, skip, wait_for};
use crate::desk::{AUDIT, Desk, Ended, Server};
use crate::servers;

const KEY: [&str; 2] = ["--slot", "keyfile:key"];
const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;
/// Anything here is done long before.
const SECONDS_MAX: Duration = Duration::from_secs(60);

fn with_key<'w>(words: &[&'w str]) -> Vec<&'w str> {
    [words, &KEY].concat()
}

fn serve(desk: &Desk) -> Server {
    Server::start(desk, &with_key(&["vol"]))
}

/// A volume of which all was written and most trimmed, in small pieces, and its server.
fn sparse() -> (Desk, Server) {
    let desk = Desk::new();
    desk.ok(&["format", "vol", "--size", "32M", "--slot", "keyfile:key", "--no-recovery"]);
    let server = serve(&desk);
    let mut client = server.connect("vol");
    for offset in (0..SIZE).step_by(1 << 20) {
        client.write(offset, &vec![fill(offset); 1 << 20], 0).expect("written");
    }
    for offset in (0..SIZE).step_by(64 << 10) {
        client.trim(offset + (16 << 10), 48 << 10).expect("trimmed");
    }
    client.disconnect().expect("disconnected");
    (desk, server)
}

fn fill(offset: u64) -> u8 {
    u8::try_from(offset >> 20).expect("32 MiB") + 1
}

fn end(mut server: Server) {
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
}

fn all_is_there(desk: &Desk) {
    let server = serve(desk);
    let mut client = server.connect("vol");
    for offset in (0..SIZE).step_by(1 << 20) {
        let read = client.read(offset, 64 << 10).expect("read");
        let (data, hole) = read.split_at(16 << 10);
        assert!(
            data.iter().all(|byte| *byte == fill(offset)) && hole.iter().all(|byte| *byte == 0),
            "{offset}"
        );
    }
    drop(client);
    end(server);
    desk.ok(&with_key(&["check", "vol", "--deep"]));
}

/// nbdkit over files of the desk.
fn nbdkit(desk: &Desk, words: &[&str]) -> Option<servers::Server> {
    let vol = desk.path("vol").display().to_string();
    let words: Vec<&str> = words.iter().map(|word| if *word == "vol" { &vol } else { *word }).collect();
    servers::Server::nbdkit(desk.dir(), &words)
}

fn stored(desk: &Desk) -> u64 {
    desk.path("vol").metadata().expect("the file is ours").blocks() * 512
}

#[test]
fn a_volume_that_is_not_served_gives_back_what_lies_between_its_data() {
    let (desk, server) = sparse();
    end(server);
    let before = stored(&desk);
    let report = desk.json(&with_key(&["compact", "vol"]));
    assert_eq!((&report["target"], &report["reached"]), (&json!(90), &json!(true)), "{report}");
    assert!(report["live_percent_before"].as_u64() < Some(40), "{report}");
    assert!(report["live_percent"].as_u64() >= Some(90), "{report}");
    let given_back = report["bytes_given_back"].as_u64().expect("a number");
    assert!(given_back >= 16 * MIB, "{report}");
    assert!(before - stored(&desk) >= given_back / 2, "{before} bytes before, {} now", stored(&desk));
    // Run again there is nothing to do.
    let again = desk.ok(&with_key(&["compact", "vol"]));
    assert!(again.contains("0 segments") || again.contains("no segment became free"), "{again}");
    all_is_there(&desk);
    let log = String::from_utf8(desk.bytes(AUDIT)).expect("text");
    let told: Vec<&str> = log.lines().filter(|line| line.contains("\"verb\":\"compact\"")).collect();
    assert!(told.len() == 4 && told[1].contains("\"outcome\":\"done\""), "{told:?}");
}

#[test]
fn a_served_volume_is_compacted_by_its_server_while_a_client_reads() {
    let (desk, server) = sparse();
    let mut client = server.connect("vol");
    let report = desk.json(&["compact", "vol", "--target", "80"]);
    assert_eq!((&report["served_by"], &report["reached"]), (&json!(server.id()), &json!(true)), "{report}");
    assert!(report["live_percent"].as_u64() >= Some(80), "{report}");
    assert_eq!(client.read(0, 4096).expect("read"), [fill(0); 4096]);
    drop(client);
    let told = desk.ok(&["compact", "vol", "--target", "100"]);
    assert!(told.contains("100 % cannot be reached now"), "{told}");
    end(server);
    all_is_there(&desk);
}

#[test]
fn an_interrupted_compaction_ends_in_good_order_and_is_finished_by_the_next_one() {
    let (desk, server) = sparse();
    end(server);
    // On a store that takes its time there is always something left to be interrupted.
    let slow = ["--filter=delay", "file", "vol", "rdelay=5ms", "wdelay=5ms"];
    let Some(mut store) = nbdkit(&desk, &slow) else {
        skip("nbdkit is not on this machine");
        return;
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealbd"));
    command.args(with_key(&["compact", &store.uri, "--json"])).current_dir(desk.dir()).stdin(Stdio::null());
    record_in(&mut command, &desk.path(AUDIT));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    wait_for("the record", SECONDS_MAX, || {
        let log = String::from_utf8(desk.bytes(AUDIT)).expect("text");
        log.contains("\"verb\":\"compact\",\"outcome\":\"started\"").then_some(())
    });
    kill_process(Pid::from_child(&child), Signal::INT).expect("our own child");
    let ended = Ended::of(child.wait_with_output().expect("our own child"), &["compact"]);
    assert_eq!(ended.code, 130, "{}", ended.stderr);
    assert!(ended.stderr.contains("interrupted; what was done stays"), "{}", ended.stderr);
    let report = ended.object();
    assert_eq!((&report["interrupted"], &report["reached"]), (&json!(true), &json!(false)), "{report}");
    store.kill();
    let report = desk.json(&with_key(&["compact", "vol"]));
    assert_eq!(report["reached"], true, "{report}");
    all_is_there(&desk);
}

#[test]
fn compacting_needs_a_key_where_no_server_has_it_and_a_target_that_is_a_percentage() {
    let desk = Desk::with_volume();
    desk.fails(1, "--slot", &["compact", "vol"]);
    for target in ["0", "101", "x"] {
        desk.fails(1, "--target", &with_key(&["compact", "vol", "--target", target]));
    }
    let report = desk.json(&with_key(&["compact", "vol"]));
    assert_eq!((&report["reached"], &report["segments_given_back"]), (&json!(true), &json!(0)), "{report}");
}
