//! Verbs on a volume that is served: what is refused, who is first, what is recorded.

use std::sync::atomic::{AtomicUsize, Ordering};

use sealbd::control::protocol::Code;
use sealbd::format::header::{HEADER_LEN, HEADER_OFFSETS, UnverifiedHeader};

use rustix::process::Signal;

use super::*;
use crate::common::client::Command as Request;
use crate::common::programs::{outcome, report};
use crate::desk::AUDIT;

#[test]
fn a_served_volume_is_suspended_and_resumed_by_the_commands() {
    let desk = Desk::with_volume();
    let server = serve(&desk);
    let mut client = server.connect(EXPORT);
    client.write(0, &[5; 4096], 0).expect("written");
    let report = desk.json(&["suspend", "vol"]);
    assert_eq!((&report["op"], &report["state"]), (&"suspend".into(), &"suspended".into()), "{report}");
    assert!(desk.ok(&["status", "vol"]).contains("suspended"));
    // Keys are not changed meanwhile, and the hint says what helps.
    let add = ["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:new"];
    let next = desk.fails(10, "suspended", &add);
    assert!(next.starts_with("sealbd resume vol"), "{next}");
    assert_eq!(desk.json(&["suspend", "vol"])["state"], "suspended", "again");
    let report = desk.json(&["resume", "vol", "--slot", "keyfile:key"]);
    assert_eq!((&report["op"], &report["state"]), (&"resume".into(), &"running".into()), "{report}");
    assert_eq!(desk.json(&["resume", "vol", "--slot", "keyfile:key"])["state"], "running", "again");
    assert_eq!(client.read(0, 4096).expect("read"), [5; 4096]);
}

#[test]
fn a_suspended_volume_does_not_hold_up_another_of_the_same_server() {
    let desk = Desk::with_volume();
    desk.ok(&["format", "other", "--size", "16M", "--slot", "keyfile:key", "--no-recovery"]);
    let mut server = serve_and_control(&desk, &["other", "--name", "other"]);
    let (mut client, mut other) = (server.connect(EXPORT), server.connect("other"));
    client.write(0, &[1; 4096], 0).expect("written");
    Post::open(&desk).suspend();
    let waiting = client.send(Request::Read, 0, 0, 4096, &[]).expect("sent");
    for number in 0..50u8 {
        other.write(u64::from(number) * 4096, &[number; 4096], 1).expect("written");
        assert_eq!(other.read(u64::from(number) * 4096, 4096).expect("read"), [number; 4096]);
    }
    // Who comes now gets in, and waits with its requests only.
    assert_eq!(server.connect(EXPORT).size(), 16 << 20);
    Post::open(&desk).resume();
    let reply = client.receive().expect("answered");
    assert_eq!((reply.cookie, reply.error), (waiting, 0));
    assert_eq!(server.stop(Signal::TERM), 0);
}

#[test]
fn without_a_control_socket_nothing_changes_while_it_is_served() {
    let desk = Desk::with_volume();
    let _server = serve_with(&desk, &["--no-control"]);
    assert!(!desk.path("control").exists());
    desk.fails(4, "no process on this host serves it with a control socket", &["suspend", "vol"]);
    desk.fails(4, "no process", &["resume", "vol", "--slot", "keyfile:key"]);
    let add = ["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:new"];
    desk.fails(10, "in use", &add);
}

#[test]
fn a_wrong_key_an_old_header_and_an_old_store_do_not_resume_it() {
    let desk = Desk::with_volume();
    let server = serve(&desk);
    let mut client = server.connect(EXPORT);
    client.write(0, &[1; 4096], 1).expect("written");
    let mut post = Post::open(&desk);
    let told = |answer: Result<State, ControlError>| answer.expect_err("refused").to_string();
    let copies = || HEADER_OFFSETS.map(|offset| bytes_at(&desk, offset, HEADER_LEN));
    let put_back = |copies: &[Vec<u8>; 2]| {
        HEADER_OFFSETS.into_iter().zip(copies).for_each(|(offset, copy)| desk.overwrite("vol", offset, copy));
    };
    let old = copies();
    desk.ok(&["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:new"]);
    post.suspend();
    let old_store = desk.bytes("vol");
    post.resume();
    client.write(0, &[2; 4096], 1).expect("written");
    post.suspend();

    assert_eq!(told(post.resume_with(&Dek::take(&mut [7; 32]))), "the data key is not this volume's");
    let new = copies();
    put_back(&old);
    assert!(told(post.resume_with(&unlocked(&desk).dek)).contains("header generation 1 is older than 2"));
    desk.fails(9, "header generation 1 is older than 2", &["resume", "vol", "--slot", "keyfile:key"]);
    put_back(&new);

    let new_store = desk.bytes("vol");
    desk.overwrite("vol", 0, &old_store);
    desk.fails(13, "(rollback)", &["resume", "vol", "--slot", "keyfile:key"]);
    assert_eq!(post.state(), State::Suspended);
    desk.overwrite("vol", 0, &new_store);
    desk.ok(&["resume", "vol", "--slot", "keyfile:key"]);
    assert_eq!(client.read(0, 4096).expect("read"), [2; 4096]);
}

fn bytes_at(desk: &Desk, offset: u64, len: usize) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; len];
    let file = std::fs::File::open(desk.path("vol")).expect("the file is ours");
    file.read_exact_at(&mut bytes, offset).expect("it is as long");
    bytes
}

#[test]
fn an_older_header_is_not_put_in_place_of_the_newest() {
    let desk = Desk::with_volume();
    let _server = serve(&desk);
    let answer = say(&mut raw(&desk), &ask("header"));
    let first: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    let old = first["ok"]["header"]["header"].as_str().expect("base64").to_owned();
    desk.ok(&["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:new"]);
    let replay = format!(r#"{{"sealbd_control":1,"ask":{{"replace-header":{{"header":"{old}"}}}}}}"#);
    let told = say(&mut raw(&desk), &replay);
    assert!(told.starts_with(r#"{"error":{"code":"busy""#), "{told}");
    assert_eq!(header(&desk).generation, 2);
    desk.ok(&["key", "test", "vol", "--slot", "keyfile:new"]);
}

/// Everybody adds a keyslot to the newest header, again and again until it lands.
#[test]
fn changes_at_the_same_time_land_one_by_one_or_hear_that_somebody_was_first() {
    const ASKERS: usize = 4;
    let desk = Desk::with_volume();
    let _server = serve(&desk);
    let lost = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for asker in 0..ASKERS {
            let (desk, lost) = (&desk, &lost);
            scope.spawn(move || {
                let Unlocked { keys, .. } = unlocked(desk);
                let mut post = Post::open(desk);
                loop {
                    let bytes = post.runtime.block_on(post.control.header()).expect("a header");
                    let copy = UnverifiedHeader::decode(&bytes).expect("well-formed");
                    let mut header = copy.verify(&keys).expect("authentic");
                    header.keyslots[1 + asker] = header.keyslots[0].clone();
                    header.generation += 1;
                    match post.runtime.block_on(post.control.replace_header(&header.encode(&keys))) {
                        Ok(()) => return,
                        Err(ControlError::Refused(refusal)) => {
                            assert_eq!(refusal.code, Code::Busy, "{refusal}")
                        }
                        Err(error) => panic!("{error}"),
                    }
                    lost.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    report(&format!("{} changes came too late", lost.load(Ordering::Relaxed)));
    let header = header(&desk);
    assert_eq!(header.keyslots.iter().flatten().count(), 1 + ASKERS, "nobody's change was lost");
    assert_eq!(header.generation, 1 + ASKERS as u64);
    desk.ok(&["key", "test", "vol", "--slot", "keyfile:key"]);
}

#[test]
fn verbs_on_a_served_volume_leave_their_records() {
    let desk = Desk::with_volume();
    let _server = serve(&desk);
    desk.ok(&["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:new"]);
    desk.ok(&["suspend", "vol"]);
    desk.fails(10, "suspended", &["key", "remove", "vol", "--slot", "keyfile:key", "--key-slot", "1"]);
    desk.ok(&["resume", "vol", "--slot", "keyfile:new"]);
    desk.ok(&["revoke", "vol", "--slot", "keyfile:key", "--key-slot", "1", "--now"]);
    desk.fails(10, "stopped for good", &["suspend", "vol"]);
    let log = String::from_utf8(desk.bytes(AUDIT)).expect("UTF-8");
    let records: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let volume = uuid::Uuid::from_bytes(header(&desk).volume).to_string();
    for (verb, outcomes) in [
        ("key-add", &["started", "done"][..]),
        ("suspend", &["started", "done", "started", "failed"]),
        ("key-remove", &["failed"]),
        ("resume", &["started", "done"]),
        ("revoke", &["started", "done"]),
    ] {
        let of_verb: Vec<_> = records.iter().filter(|record| record["verb"] == verb).collect();
        let found: Vec<_> =
            of_verb.iter().map(|record| record["outcome"].as_str().expect("a word")).collect();
        assert_eq!(found, outcomes, "{verb}");
        assert!(of_verb.iter().all(|record| record["backend"] == "vol"), "{of_verb:?}");
        // What failed before the volume told its name has none.
        let known = of_verb.iter().filter(|record| record["outcome"] != "failed");
        assert!(known.clone().all(|record| record["volume"] == volume.as_str()), "{of_verb:?}");
    }
    let verified = outcome(&mut desk.command(&["audit", "verify"]));
    assert!(verified.status.success());
}
