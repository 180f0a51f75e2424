//! Suspending and resuming under load: clients notice a pause, nothing else.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::common::client::Client;
use crate::common::pattern::{BLOCK_LEN, Random, filled};
use crate::common::programs::{have, report};

const CYCLES: u64 = 50;
const WRITERS: u64 = 2;
/// Each writer has a region of its own; fio has the one behind them.
const REGION_LEN: u64 = 4 << 20;
/// Pieces of a region that are written as one.
const PLACES: u64 = 128;
const PLACE_LEN: u64 = REGION_LEN / PLACES;
const VOLUME: &str = "256M";

/// Writes, and verifies what it wrote before, until told to end.
fn write_and_verify(mut client: Client, writer: u64, seed: u64, end: &AtomicBool, count: &AtomicU64) {
    let mut random = Random::new(seed ^ writer);
    let mut known = vec![0; usize::try_from(PLACES).expect("small")];
    while !end.load(Ordering::Relaxed) {
        let place = random.below(PLACES);
        let stamp = &mut known[usize::try_from(place).expect("small")];
        let offset = writer * REGION_LEN + place * PLACE_LEN;
        let len = usize::try_from(PLACE_LEN).expect("small");
        if random.one_in(2) {
            let found = client.read(offset, len).expect("no read fails");
            assert!(found == filled(offset, len, *stamp), "seed {seed}: writer {writer} at {offset}");
        } else {
            *stamp = random.next() | 1;
            client.write(offset, &filled(offset, len, *stamp), 0).expect("no write fails");
        }
        count.fetch_add(1, Ordering::Relaxed);
    }
    for (place, stamp) in (0..).zip(known) {
        let offset = writer * REGION_LEN + place * PLACE_LEN;
        let found = client.read(offset, BLOCK_LEN).expect("no read fails");
        assert!(found == filled(offset, BLOCK_LEN, stamp), "seed {seed}: writer {writer} at {offset}");
    }
}

#[test]
fn fifty_suspensions_under_load_fail_no_request_of_any_client() {
    let desk = Desk::new();
    desk.ok(&["format", "vol", "--size", VOLUME, "--slot", "keyfile:key", "--no-recovery"]);
    let server = serve(&desk);
    let seed = Random::fresh_seed();
    report(&format!("SEALBD_TEST_SEED={seed}"));
    // fio ends by itself, with an error as its exit code if any block was not what it should be.
    let fio = have(&["fio"]).then(|| {
        let mut fio = Command::new("fio");
        fio.current_dir(desk.dir()).args(["--name=load", "--ioengine=nbd", "--rw=randrw", "--bs=4k"]);
        fio.arg(format!("--uri=nbd+unix:///{EXPORT}?socket={}", desk.path("socket").display()));
        fio.args(["--offset=64m", "--size=8m", "--iodepth=8", "--verify=crc32c", "--verify_fatal=1"]);
        fio.args(["--do_verify=1", "--loops=1000"]);
        fio.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("fio starts")
    });
    let mut random = Random::new(seed);
    let mut post = Post::open(&desk);
    let (end, count) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (client, end, count) = (server.connect(EXPORT), &end, &count);
                scope.spawn(move || write_and_verify(client, writer, seed, end, count))
            })
            .collect();
        for cycle in 0..CYCLES {
            // The pause comes after a number of answers, not after a time.
            let enough = count.load(Ordering::Relaxed) + 1 + random.below(40);
            wait_for("answers", ANSWER_MAX, || {
                let stuck = writers.iter().any(std::thread::ScopedJoinHandle::is_finished);
                (stuck || count.load(Ordering::Relaxed) >= enough).then_some(())
            });
            post.suspend();
            if random.one_in(4) {
                wait_for("every writer waits", ANSWER_MAX, || (post.parked() >= WRITERS).then_some(()));
                let before = count.load(Ordering::Relaxed);
                let refused = post.resume_with(&Dek::take(&mut [cycle.to_le_bytes()[0]; 32]));
                assert!(refused.is_err() && count.load(Ordering::Relaxed) == before);
            }
            post.resume();
        }
        end.store(true, Ordering::Relaxed);
    });
    if let Some(mut fio) = fio {
        assert!(fio.try_wait().expect("our own child").is_none(), "fio worked all the time");
        // SIGINT: it ends the loop it is in, and tells what it found.
        rustix::process::kill_process(rustix::process::Pid::from_child(&fio), rustix::process::Signal::INT)
            .expect("our own child");
        let ended = fio.wait_with_output().expect("our own child");
        let told = String::from_utf8_lossy(&ended.stdout);
        let errors = String::from_utf8_lossy(&ended.stderr);
        assert!(told.contains("err= 0"), "{told}\n{errors}");
        assert!(!errors.contains("verify"), "{errors}");
    }
    drop(server);
    assert!(desk.ok(&["check", "vol", "--slot", "keyfile:key", "--deep"]).contains("clean"));
}
