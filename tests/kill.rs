//! The server dies between two instructions, again and again, while clients write: what had been acknowledged is there
//! afterwards, to the byte, and nothing else than what was written; and it is served again at once.
//!
//! Four connections keep journals, and four jobs of fio logs (`kill/fio.rs`). `tests/kill_long` makes a long run of it:
//!
//! | environment | |
//! |---|---|
//! | `SEALBD_KILL_ROUNDS` | deaths, by default [`ROUNDS`] |
//! | `SEALBD_KILL_SIZE` | bytes of the volume, by default [`VOLUME_LEN`] |
//! | `SEALBD_KILL_MILLISECONDS` | a death comes after some hundred acknowledgements and up to so long, by default at once |
//! | `SEALBD_KILL_FILL` | 1: the volume is full before the first death |
//! | `SEALBD_KILL_REOPEN_MILLISECONDS` | bound of the time from the start of the server to a client's handshake |

mod common;
#[path = "kill/fio.rs"]
mod fio;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::client::{Client, Command as Request, FUA};
use common::pattern::{BLOCK_LEN, Random, filled, stamp_of};
use common::programs::{have, report, wait_for};
use common::served::{Listen, Served};
use fio::Witness;

const ROUNDS: u64 = 8;
const WRITERS: u64 = 4;
/// Every writer has a region of its own, where nobody else writes.
const REGION_LEN: u64 = 8 << 20;
/// Places in a region; each write covers the head of one.
const PLACES: u64 = 256;
const PLACE_LEN: u64 = REGION_LEN / PLACES;
/// Requests that a writer keeps in flight.
const IN_FLIGHT: usize = 16;
const VOLUME_LEN: u64 = 256 << 20;
/// A server that is not back by then keeps its clients waiting. This is a debug build on a machine with other work to do;
/// `tests/kill_long` asks for a second.
const REOPEN_MILLISECONDS: u64 = 10_000;

/// What a writer knows of one place: the stamps of its blocks as last acknowledged, and of what was sent since.
#[derive(Clone, Default)]
struct Place {
    acknowledged: Vec<u64>,
    /// Blocks and stamp of writes without an answer, oldest first.
    open: Vec<(usize, u64)>,
}

/// A writer's journal, by number of the place.
type Journal = BTreeMap<u64, Place>;

/// Writes until the server is gone.
fn write_until_the_end(
    client: &mut Client,
    writer: u64,
    journal: &mut Journal,
    mut random: Random,
    acks: &AtomicU64,
) {
    let mut in_flight: BTreeMap<u64, u64> = BTreeMap::new();
    loop {
        while in_flight.len() < IN_FLIGHT {
            let place = random.below(PLACES);
            // One write at a time in a place: the order of two in flight is the server's to choose.
            if in_flight.values().any(|&taken| taken == place) {
                continue;
            }
            let blocks = usize::try_from(1 + random.below(PLACE_LEN / BLOCK_LEN as u64)).expect("small");
            let stamp = random.next() | 1;
            let offset = writer * REGION_LEN + place * PLACE_LEN;
            let data = filled(offset, blocks * BLOCK_LEN, stamp);
            let flags = if random.one_in(16) { FUA } else { 0 };
            journal.entry(place).or_default().open.push((blocks, stamp));
            let len = u32::try_from(data.len()).expect("small");
            match client.send(Request::Write, flags, offset, len, &data) {
                Ok(cookie) => in_flight.insert(cookie, place),
                Err(_) => return,
            };
        }
        let Ok(reply) = client.receive() else { return };
        assert_eq!(reply.error, 0, "no write is refused");
        let place = in_flight.remove(&reply.cookie).expect("a reply to a request of ours");
        acknowledge(journal.get_mut(&place).expect("journaled"));
        acks.fetch_add(1, Ordering::Relaxed);
    }
}

/// The only open write of a place is answered.
fn acknowledge(place: &mut Place) {
    for (blocks, stamp) in place.open.drain(..) {
        if place.acknowledged.len() < blocks {
            place.acknowledged.resize(blocks, 0);
        }
        place.acknowledged[..blocks].fill(stamp);
    }
}

/// Every block holds what was acknowledged last, or what an unanswered write brought since; that is then known.
fn check(client: &mut Client, writer: u64, journal: &mut Journal, round: u64) {
    for (&number, place) in journal {
        let offset = writer * REGION_LEN + number * PLACE_LEN;
        let data = client.read(offset, usize::try_from(PLACE_LEN).expect("small")).expect("readable");
        let mut found = Vec::new();
        for (i, block) in data.chunks_exact(BLOCK_LEN).enumerate() {
            let at = offset + (i * BLOCK_LEN) as u64;
            let stamp = stamp_of(block, at)
                .unwrap_or_else(|| panic!("round {round}: the block at {at} is not of any write"));
            let acknowledged = place.acknowledged.get(i).copied().unwrap_or(0);
            let allowed =
                stamp == acknowledged || place.open.iter().any(|&(blocks, open)| i < blocks && open == stamp);
            assert!(
                allowed,
                "round {round}: lost an acknowledged write at {at}: wanted {acknowledged:x}, is {stamp:x}"
            );
            found.push(stamp);
        }
        place.acknowledged = found;
        place.open.clear();
    }
}

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// How long the server's threads have run, and how long they were ready to and did not: what of a slow reopen is the
/// machine's.
fn processor_time(served: &Served) -> (Duration, Duration) {
    let tasks =
        std::fs::read_dir(format!("/proc/{}/task", served.pid().as_raw_nonzero())).expect("our child");
    let (mut busy, mut queued) = (0, 0);
    for task in tasks {
        // A thread may end before it is looked at.
        let Ok(text) = std::fs::read_to_string(task.expect("an entry").path().join("schedstat")) else {
            continue;
        };
        let mut numbers = text.split_whitespace().map(|number| number.parse::<u64>().expect("nanoseconds"));
        busy += numbers.next().expect("time on a processor");
        queued += numbers.next().expect("time in its queue");
    }
    (Duration::from_nanos(busy), Duration::from_nanos(queued))
}

/// Prints how long the servers took to be back, and holds them to it.
fn judge_reopens(mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() * share / 1000).min(times.len() - 1)];
    let (min, median, p99, max) = (at(0), at(500), at(990), at(1000));
    report(&format!(
        "{} reopens: min {min:.1?}, median {median:.1?}, p99 {p99:.1?}, max {max:.1?}",
        times.len()
    ));
    let bound = setting("SEALBD_KILL_REOPEN_MILLISECONDS", REOPEN_MILLISECONDS);
    assert!(max < Duration::from_millis(bound), "a reopen took {max:?}");
}

#[test]
fn every_acknowledged_write_survives_kill_9() {
    if !have(&["fio"]) {
        return;
    }
    let seed = Random::fresh_seed();
    let (rounds, size) = (setting("SEALBD_KILL_ROUNDS", ROUNDS), setting("SEALBD_KILL_SIZE", VOLUME_LEN));
    let longest = setting("SEALBD_KILL_MILLISECONDS", 0);
    report(&format!("SEALBD_TEST_SEED={seed}: {rounds} rounds on {size} bytes"));
    let mut random = Random::new(seed);
    let mut served = Served::formatted(size, Listen::Unix, None);
    let mut journals = vec![Journal::new(); usize::try_from(WRITERS).expect("small")];
    let mut witness = Witness::new(WRITERS * REGION_LEN..size);
    let (mut total, mut reopens) = (0, Vec::new());
    served.start();
    if setting("SEALBD_KILL_FILL", 0) == 1 {
        witness.fill(&served);
    }
    for round in 0..rounds {
        let mut clients = Vec::new();
        for _ in 0..WRITERS {
            clients.push(served.connect());
        }
        // Round 1 is what the volume is filled with.
        let stamp = u32::try_from(round).expect("fewer rounds") + 2;
        witness.start(&served, stamp);
        let acks = AtomicU64::new(0);
        // The kill comes after a number of acknowledgements, not after a time alone.
        let enough = 200 + random.below(2000);
        let late = Duration::from_millis(random.below(longest + 1));
        std::thread::scope(|scope| {
            let writers: Vec<_> = journals
                .iter_mut()
                .zip(clients)
                .zip(0..)
                .map(|((journal, mut client), writer)| {
                    let (random, acks) = (Random::new(random.next()), &acks);
                    scope.spawn(move || write_until_the_end(&mut client, writer, journal, random, acks))
                })
                .collect();
            let started = Instant::now();
            wait_for("enough acknowledged writes", Duration::from_secs(60) + late, || {
                let stuck = writers.iter().any(std::thread::ScopedJoinHandle::is_finished);
                let due = acks.load(Ordering::Relaxed) >= enough && started.elapsed() >= late;
                (stuck || due).then_some(())
            });
            served.kill9();
        });
        let acks = acks.into_inner();
        assert!(acks >= enough, "the server left before it was killed");
        total += acks;
        let touched = witness.end(&served, stamp);
        let reopen = served.start();
        let (busy, queued) = processor_time(&served);
        reopens.push(reopen);
        for (journal, writer) in journals.iter_mut().zip(0..) {
            check(&mut served.connect(), writer, journal, round);
        }
        witness.check(&served, &touched, stamp);
        let theirs = witness.answered();
        report(&format!(
            "round {round}: {acks} writes, {theirs} of fio so far, served again in {reopen:.1?}, \
             {busy:.1?} of it at work and {queued:.1?} kept from it by others"
        ));
    }
    witness.check_all(&served, u32::try_from(rounds).expect("fewer rounds") + 1);
    assert!(total >= rounds * 200);
    assert!(witness.answered() >= rounds, "fio was there when the server died");
    assert!(served.stop().success());
    judge_reopens(reopens);
}
