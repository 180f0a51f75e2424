//! The end of a server while its volume is suspended.

use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::common::client::{Command, Failure};

/// `NBD_ESHUTDOWN` (proto.md).
const SHUTDOWN: u32 = 108;
/// Stopping a small volume takes no longer, on a slow machine and in a debug build.
const STOP_MAX: Duration = Duration::from_secs(15);

#[test]
fn a_suspended_server_that_is_told_to_stop_ends_cleanly_and_nobody_hangs() {
    let desk = Desk::with_volume();
    let mut server = serve(&desk);
    let mut client = server.connect(EXPORT);
    client.write(0, &[1; 4096], 0).expect("written");
    let mut post = Post::open(&desk);
    post.suspend();
    let sent: Vec<u64> =
        (0..20).map(|_| client.send(Command::Write, 0, 0, 4096, &[2; 4096]).expect("sent")).collect();
    wait_for("twenty requests that wait", ANSWER_MAX, || (post.parked() == 20).then_some(()));
    let begun = Instant::now();
    kill_process(Pid::from_raw(server.id().cast_signed()).expect("a process"), Signal::TERM)
        .expect("our own child");
    for _ in sent {
        match client.receive() {
            Ok(reply) => assert_eq!(reply.error, SHUTDOWN),
            Err(Failure::Lost(_)) => break,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(server.wait(), 0, "{}", server.log());
    assert!(begun.elapsed() < STOP_MAX, "{:?}", begun.elapsed());
    assert!(!socket(&desk).exists());
    // What had been answered is there, what was refused is not.
    let server = serve(&desk);
    assert_eq!(server.connect(EXPORT).read(0, 4096).expect("read"), [1; 4096]);
}

#[test]
fn a_server_that_is_told_to_stop_while_it_suspends_or_resumes_ends_cleanly() {
    let desk = Desk::with_volume();
    for round in 0..8u8 {
        let mut server = serve(&desk);
        let mut client = server.connect(EXPORT);
        client.write(u64::from(round) * 4096, &[round + 1; 4096], 0).expect("written");
        let mut post = Post::open(&desk);
        let resumes = round % 2 == 1;
        if resumes {
            post.suspend();
        }
        let pid = Pid::from_raw(server.id().cast_signed()).expect("a process");
        std::thread::scope(|scope| {
            let asker = scope.spawn(move || match resumes {
                true => post.resume_with(&post.dek_again()),
                false => post.runtime.block_on(post.control.suspend()),
            });
            kill_process(pid, Signal::TERM).expect("our own child");
            match asker.join().expect("no panic") {
                // It came first, or too late, or the server was gone before it could say so.
                Ok(_) | Err(ControlError::Refused(_) | ControlError::Io { .. }) => {}
            }
        });
        assert_eq!(server.wait(), 0, "round {round}: {}", server.log());
    }
    let server = serve(&desk);
    let mut client = server.connect(EXPORT);
    for round in 0..8u8 {
        assert_eq!(client.read(u64::from(round) * 4096, 4096).expect("read"), [round + 1; 4096]);
    }
    drop(server);
    assert!(desk.ok(&["check", "vol", "--slot", "keyfile:key", "--deep"]).contains("clean"));
}

#[test]
fn what_was_answered_survives_kill_9_of_a_suspended_server_and_its_socket_is_replaced() {
    let desk = Desk::with_volume();
    let mut server = serve(&desk);
    let mut client = server.connect(EXPORT);
    for number in 0..64u8 {
        client.write(u64::from(number) * 4096, &[number + 1; 4096], 0).expect("written");
    }
    let mut post = Post::open(&desk);
    post.suspend();
    client.send(Command::Write, 0, 0, 4096, &[99; 4096]).expect("sent");
    wait_for("a request that waits", ANSWER_MAX, || (post.parked() == 1).then_some(()));
    assert_eq!(server.stop(Signal::KILL), -1);
    assert!(socket(&desk).exists(), "nobody could remove it");
    // A verb finds nobody there, and does its work on the backend.
    desk.ok(&["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:new"]);
    desk.fails(4, "no process", &["suspend", "vol"]);

    let server = serve(&desk);
    let mut client = server.connect(EXPORT);
    for number in 0..64u8 {
        assert_eq!(client.read(u64::from(number) * 4096, 4096).expect("read"), [number + 1; 4096]);
    }
    Post::open(&desk).suspend();
}
