//! `sealbd check`: offline, through the server, and what both say of damage.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::desk::{Desk, Ended, Server};

const KEY: [&str; 2] = ["--slot", "keyfile:key"];
const SECOND_HEADER: u64 = 1 << 20;

/// A desk whose servers have their control sockets in it, and a server with some data.
fn served() -> (Desk, Server) {
    let desk = Desk::with_volume();
    let server = Server::start(&desk, &[&["vol", "--control-directory", "control"][..], &KEY].concat());
    let mut client = server.connect("vol");
    client.write(0, &[7; 64 << 10], 0).expect("written");
    client.flush().expect("flushed");
    (desk, server)
}

/// `sealbd ARGS`, which finds the server.
fn ask(desk: &Desk, args: &[&str]) -> Ended {
    let mut command = desk.command(args);
    let told = command.env("SEALBD_CONTROL_DIRECTORY", desk.path("control")).output().expect("it runs");
    Ended::of(told, args)
}

fn socket(desk: &Desk) -> PathBuf {
    let uuid = desk.json(&["uuid", "vol"])["uuid"].as_str().expect("a uuid").to_owned();
    desk.path("control").join(format!("{uuid}.control"))
}

/// Where the byte stands with which a piece of the file begins that was sealed last: the first record of the log.
fn damage_a_record(desk: &Desk) {
    let bytes = desk.bytes("vol");
    let chunk = bytes.windows(4).rposition(|word| word == b"CHNK").expect("a chunk of the log");
    // Behind its header, in the first of sixteen records.
    let at = chunk as u64 + 4096;
    desk.overwrite("vol", at, &[bytes[chunk + 4096] ^ 0xff]);
}

#[test]
fn a_served_volume_is_checked_by_its_server_without_a_key_while_clients_go_on() {
    let (desk, mut server) = served();
    let told = ask(&desk, &["check", "vol", "--deep"]);
    assert_eq!(told.code, 0, "{}", told.stderr);
    assert!(told.stdout.contains(&format!("checked by process {}", server.id())), "{}", told.stdout);
    assert!(told.stdout.contains("in the log behind it: 1 chunks, 16 sectors"), "{}", told.stdout);
    assert!(told.stdout.ends_with("16 sectors authenticated\nclean\n"), "{}", told.stdout);
    let report = ask(&desk, &["check", "vol", "--json"]).object();
    assert_eq!((&report["served_by"], &report["clean"]), (&json!(server.id()), &json!(true)));
    assert_eq!(server.connect("vol").read(0, 2).expect("read"), [7, 7]);
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
    // Nobody serves it any more: here, with a key.
    let report = desk.json(&[&["check", "vol", "--deep"][..], &KEY].concat());
    assert_eq!((&report["served_by"], &report["verified_sectors"]), (&Value::Null, &json!(16)));
    assert_eq!(report["log"], json!({"chunks": 0, "sectors": 0}), "closed, so all is in the index");
}

#[test]
fn damage_is_listed_in_sectors_and_bytes_with_exit_8_served_or_not() {
    let (desk, mut server) = served();
    damage_a_record(&desk);
    for words in [&["check", "vol", "--deep"][..], &["check", "vol", "--deep", "--json"]] {
        let told = ask(&desk, words);
        assert_eq!(told.code, 8, "{}", told.stderr);
        assert!(told.next().contains("--salvage"), "{}", told.stderr);
        if words.len() == 3 {
            assert!(told.stdout.contains("damaged: sectors 0+1, bytes 0+4096\n"), "{}", told.stdout);
            assert!(told.stdout.contains("DAMAGED: 1 sectors (4.00 KiB) cannot be read"), "{}", told.stdout);
        } else {
            let report = told.object();
            let range = json!([{"first_sector": 0, "sectors": 1, "offset": 0, "bytes": 4096}]);
            assert_eq!((&report["damaged"], &report["clean"]), (&range, &json!(false)));
        }
    }
    assert_eq!(ask(&desk, &["check", "vol"]).code, 0, "without --deep no sector is read");
    server.stop(Signal::TERM);
    let words = [&["check", "vol", "--deep", "--json"][..], &KEY].concat();
    let report = desk.run(&words);
    assert_eq!(report.code, 8);
    assert_eq!(report.object()["damaged_sectors"], 1);
}

#[test]
fn a_damaged_second_header_is_a_warning_with_exit_0_and_a_next_step() {
    let (desk, mut server) = served();
    desk.overwrite("vol", SECOND_HEADER + 100, &[0xff; 8]);
    let online = ask(&desk, &["check", "vol"]);
    server.stop(Signal::TERM);
    let offline = desk.run(&[&["check", "vol"][..], &KEY].concat());
    for told in [online, offline] {
        assert_eq!(told.code, 0, "{}", told.stderr);
        let warned = "warning: header at byte 1048576 of the store: one copy is damaged";
        assert!(told.stdout.contains(warned), "{}", told.stdout);
        assert!(told.stdout.contains("next: sealbd header verify"), "{}", told.stdout);
        assert!(told.stdout.ends_with("clean, 1 warning\n"), "{}", told.stdout);
    }
}

#[test]
fn a_root_that_cannot_be_used_is_named_with_its_place_and_the_rest_is_checked() {
    let desk = Desk::with_volume();
    let mut server = Server::start(&desk, &[&["vol"][..], &KEY].concat());
    server.connect("vol").write(0, &[7; 4096], 0).expect("written");
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
    // The payload that the newest ring block names: uid(16), phys u64, epoch u32, offset u32 at 48.
    let bytes = desk.bytes("vol");
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let ring = (1usize << 20) + (64 << 10);
    let newest = (0..8).map(|slot| ring + slot * 4096).max_by_key(|at| word(at + 8)).expect("a ring");
    let phys = word(newest + 48 + 16);
    let offset = u32::from_le_bytes(bytes[newest + 48 + 28..][..4].try_into().expect("four bytes"));
    let at = phys + u64::from(offset);
    desk.overwrite("vol", at + 20, &[bytes[usize::try_from(at).expect("small") + 20] ^ 1]);
    let told = desk.run(&[&["check", "vol", "--deep", "--json"][..], &KEY].concat());
    assert_eq!(told.code, 8, "{}", told.stderr);
    let report = told.object();
    let problem = &report["problems"][0];
    assert_eq!((&problem["structure"], &problem["offset"]), (&json!("root"), &json!(at)));
    assert!(problem["next"].as_str().is_some_and(|next| next.contains("sealbd check")), "{problem}");
    assert_eq!((&report["root"], &report["verified_sectors"]), (&json!(word(newest + 8) - 1), &json!(1)));
}

#[test]
fn a_backend_behind_its_anchor_is_a_finding_with_exit_9() {
    let desk = Desk::with_volume();
    let session = |fill: u8| {
        let words = [&["vol", "--anchor", "anchors"][..], &KEY].concat();
        let mut server = Server::start(&desk, &words);
        server.connect("vol").write(0, &[fill; 4096], 0).expect("written");
        assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
    };
    session(1);
    let old = desk.bytes("vol");
    session(2);
    std::fs::write(desk.path("vol"), &old).expect("the file is ours");
    let words = [&["check", "vol", "--deep", "--anchor", "anchors", "--json"][..], &KEY].concat();
    let told = desk.run(&words);
    assert_eq!(told.code, 9, "{}", told.stderr);
    let report = told.object();
    assert_eq!(
        (&report["problems"][0]["structure"], &report["verified_sectors"]),
        (&json!("anchor"), &json!(1))
    );
    desk.overwrite("vol", SECOND_HEADER + 100, &[0xff; 8]);
    assert_eq!(desk.run(&words).code, 9, "a warning changes nothing");
}

#[test]
fn a_suspended_volume_is_not_checked_and_the_next_command_is_told() {
    let (desk, mut server) = served();
    assert_eq!(ask(&desk, &["suspend", "vol"]).code, 0);
    let told = ask(&desk, &["check", "vol"]);
    assert_eq!((told.code, told.next().contains("sealbd resume vol")), (10, true), "{}", told.stderr);
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
}

#[test]
fn the_words_of_a_check_on_the_socket_are_those_of_the_page() {
    let (desk, mut server) = served();
    let mut stream = UnixStream::connect(socket(&desk)).expect("it listens");
    stream.write_all(b"{\"sealbd_control\":1,\"ask\":{\"check\":{\"deep\":true}}}\n").expect("sent");
    let mut lines = BufReader::new(stream).lines().map(|line| line.expect("a line"));
    let last = lines.find(|line| !line.starts_with("{\"ok\":{\"checking\":")).expect("an end");
    let last: Value = serde_json::from_str(&last).expect("JSON");
    assert_eq!(last["ok"]["checked"]["verified_sectors"], 16, "{last}");
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
}
