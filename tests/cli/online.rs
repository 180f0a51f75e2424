//! Keys change while the volume is served: every verb goes over the control socket, a client writes and reads back what it
//! wrote all the while, and nothing of it is lost.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::programs::wait_for;
use crate::desk::{Desk, Server};
use crate::plugins::{CONFIG, Plugin, with_config};

const LOCAL: Plugin = Plugin::Example("local");
const QUICK: Plugin = Plugin::Quick("quick-keys");
/// Longest that a client waits for its next round on a slow machine.
const ROUND_SECONDS_MAX: Duration = Duration::from_secs(60);
const PIECE: usize = 64 << 10;
const PIECES: u64 = 64;

/// A client that writes, flushes and reads back until it is told to end.
struct Writer {
    end: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

/// What stands in a piece after a round.
fn piece(round: u64) -> Vec<u8> {
    round.to_le_bytes().repeat(PIECE / 8)
}

impl Writer {
    fn start(server: &Server) -> Self {
        let (end, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut client = server.connect("vol");
        let thread = std::thread::spawn({
            let (end, rounds) = (end.clone(), rounds.clone());
            move || {
                for round in 1.. {
                    let at = |round: u64| round % PIECES * PIECE as u64;
                    client.write(at(round), &piece(round), u16::from(round % 2 == 0)).expect("written");
                    let oldest = round.saturating_sub(PIECES - 1).max(1);
                    for earlier in [round, oldest] {
                        let read = client.read(at(earlier), PIECE).expect("read");
                        assert!(
                            read == piece(earlier),
                            "round {earlier} reads back differently in round {round}"
                        );
                    }
                    rounds.store(round, Ordering::SeqCst);
                    if end.load(Ordering::SeqCst) {
                        client.flush().expect("flushed");
                        return;
                    }
                }
            }
        });
        Self { end, rounds, thread }
    }

    /// Returns when a round has begun and ended since now.
    fn goes_on(&self) {
        let before = self.rounds.load(Ordering::SeqCst);
        wait_for("the client", ROUND_SECONDS_MAX, || {
            assert!(!self.thread.is_finished(), "the client has ended");
            (self.rounds.load(Ordering::SeqCst) >= before + 2).then_some(())
        });
    }

    /// Ends it; how many rounds there were.
    fn end(self) -> u64 {
        self.end.store(true, Ordering::SeqCst);
        self.thread.join().expect("every round read back what was written");
        self.rounds.load(Ordering::SeqCst)
    }
}

fn serve(desk: &Desk, spec: &str) -> Server {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealbd"));
    command.args(CONFIG).args(["serve", "vol", "--slot", spec]);
    Server::start_as(desk, command)
}

/// What the client wrote last is there after a restart, and every sector is authentic.
fn all_is_there(desk: &Desk, rounds: u64) {
    let mut server = serve(desk, "keyfile:key");
    let mut client = server.connect("vol");
    for round in rounds.saturating_sub(PIECES - 1).max(1)..=rounds {
        let read = client.read(round % PIECES * PIECE as u64, PIECE).expect("read");
        assert!(read == piece(round), "round {round} of {rounds}");
    }
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
    desk.ok(&["check", "vol", "--deep", "--slot", "keyfile:key"]);
    desk.ok(&["header", "verify", "vol", "--slot", "keyfile:key"]);
    desk.ok(&["audit", "verify"]);
}

#[test]
fn every_key_verb_works_on_a_served_volume_while_a_client_writes() {
    let desk = Desk::with_plugins(&[LOCAL], "");
    desk.managed_volume("vol", "kms:local/db");
    let before = desk.bytes("vol")[..64 << 10].to_vec();
    let mut server = serve(&desk, "kms:local/db");
    let writer = Writer::start(&server);
    let generation = |report: &Value| report["header_generation"].as_u64().expect("a number");
    let mut last = 1;
    for words in [
        &["rotate", "vol", "--kek", "--retire-old", "--slot", "kms:local"][..],
        &["key", "add", "vol", "--slot", "kms:local", "--new-slot", "kms:local/second"],
        &["key", "change", "vol", "--slot", "kms:local/second", "--new-slot", "kms:local/third"],
        &["key", "priority", "vol", "--slot", "keyfile:key", "--key-slot", "2", "--priority", "4"],
        &["rotate", "vol", "--kek", "--key-slot", "2", "--slot", "kms:local"],
        &["key", "add", "vol", "--slot", "kms:local", "--new-slot", "keyfile:fourth"],
        &["key", "kill", "vol", "--slot", "keyfile:key", "--key-slot", "2"],
        &["key", "remove", "vol", "--slot", "keyfile:fourth"],
    ] {
        writer.goes_on();
        let report = desk.told(words);
        assert_eq!(report["phases"], json!(["staged", "verified", "committed", "retired"]), "{words:?}");
        assert!(generation(&report) > last, "{words:?}: {report}");
        last = generation(&report);
        desk.ok(&with_config(&["key", "test", "vol", "--slot", "kms:local"]));
    }
    assert_eq!((LOCAL.live(&desk, "db"), desk.slots_in("vol")), (vec![2], vec![0, 1]));
    // A served volume's key is revoked, too, and its server needs none.
    let revoke = ["revoke", "vol", "--key-slot", "0", "--slot", "keyfile:key", "--slot", "kms:local"];
    let report = desk.told(&revoke);
    let told = (&report["kek"], &report["serving"]);
    assert_eq!(told, (&json!("destroyed"), &json!("goes on until it is stopped")), "{report}");
    writer.goes_on();
    let rounds = writer.end();
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
    all_is_there(&desk, rounds);
    // The header of before the first change, put back, is refused: its key was taken away since.
    [0, 1 << 20].iter().for_each(|copy| desk.overwrite("vol", *copy, &before));
    desk.fails(9, "rollback", &["check", "vol", "--slot", "keyfile:key"]);
}

#[test]
fn a_command_that_is_killed_disturbs_no_server_and_the_next_one_finishes() {
    let desk = Desk::with_plugins(&[QUICK], "");
    desk.managed_volume("vol", "kms:quick-keys/db");
    let mut server = serve(&desk, "kms:quick-keys/db");
    let writer = Writer::start(&server);
    let rotate = ["rotate", "vol", "--kek", "--retire-old", "--slot", "kms:quick-keys"];
    let mut cuts = 0;
    for when in ["before", "after"] {
        for at in 1.. {
            QUICK.tell(&desk, "count", "");
            QUICK.tell(&desk, "kill", &format!("{at} {when}"));
            let ended = desk.ended_or_killed(&with_config(&rotate));
            QUICK.tell(&desk, "kill", "");
            writer.goes_on();
            desk.ok(&with_config(&["key", "test", "vol", "--slot", "kms:quick-keys/db"]));
            if let Some(ended) = ended {
                assert_eq!(ended.code, 0, "{}", ended.stderr);
                break;
            }
            cuts += 1;
        }
    }
    assert!(cuts >= 12, "{cuts}");
    // The last one was not killed and finished what was left.
    assert_eq!(desk.slots_in("vol"), [0, 1]);
    let named = desk.version_in("vol", 0).expect("a version").parse::<u32>().expect("a number");
    assert_eq!(QUICK.live(&desk, "db").last(), Some(&named));
    let rounds = writer.end();
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
    all_is_there(&desk, rounds);
}

#[test]
fn revoke_now_ends_the_serving_also_when_the_key_manager_is_gone() {
    let desk = Desk::with_plugins(&[QUICK], "");
    desk.managed_volume("vol", "kms:quick-keys/db");
    let mut server = serve(&desk, "kms:quick-keys/db");
    let mut client = server.connect("vol");
    client.write(0, &[1; 4096], 1).expect("written");
    QUICK.mood(&desk, "unreachable");
    let slots = ["--slot", "keyfile:key", "--slot", "kms:quick-keys"];
    let revoke = [&["revoke", "vol", "--key-slot", "0", "--now", "--json"][..], &slots].concat();
    let ended = desk.try_out(&revoke);
    assert_eq!(ended.code, 14, "{}", ended.stderr);
    assert_eq!(ended.object()["serving"], "ended");
    assert!(client.write(0, &[2; 4096], 1).is_err(), "nothing is served any more");
    server.stop(Signal::TERM);
    desk.fails(2, "no key fits", &with_config(&["check", "vol", "--slot", "kms:quick-keys"]));
    desk.ok(&["check", "vol", "--slot", "keyfile:key"]);
    QUICK.mood(&desk, "");
    assert_eq!(desk.told(&[&["revoke", "vol", "--key-slot", "0"][..], &slots].concat())["kek"], "destroyed");
}
