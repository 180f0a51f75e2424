//! The server dies between two instructions, twenty times, while clients write: what had been acknowledged is there
//! afterwards, to the byte, and nothing else than what was written.

mod common;

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::client::{Client, Command as Request, FUA};
use common::pattern::{BLOCK_LEN, Random, filled, stamp_of};
use common::programs::{report, wait_for};
use common::served::{Listen, Served};

const ROUNDS: u64 = 20;
const WRITERS: u64 = 4;
/// Every writer has a region of its own, where nobody else writes.
const REGION_LEN: u64 = 8 << 20;
/// Places in a region; each write covers the head of one.
const PLACES: u64 = 256;
const PLACE_LEN: u64 = REGION_LEN / PLACES;
/// Requests that a writer keeps in flight.
const IN_FLIGHT: usize = 16;
const VOLUME_LEN: u64 = 4 << 30;

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

/// Other load next to the writers, on the upper half; it fails when the server dies, as it must.
fn fio(served: &Served) -> Option<Child> {
    let fio = Command::new("fio")
        .current_dir(served.dir())
        .args([
            "--name=load",
            "--ioengine=nbd",
            &format!("--uri={}", served.uri()),
            "--rw=randwrite",
            "--bs=4k",
        ])
        .args(["--offset=2g", "--size=64m", "--iodepth=16", "--time_based", "--runtime=60"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    if fio.is_err() {
        report("without fio: the writers alone make the load");
    }
    fio.ok()
}

#[test]
fn every_acknowledged_write_survives_kill_9() {
    let seed = Random::fresh_seed();
    report(&format!("SEALBD_TEST_SEED={seed}"));
    let mut random = Random::new(seed);
    let mut served = Served::formatted(VOLUME_LEN, Listen::Unix, None);
    let mut journals = vec![Journal::new(); usize::try_from(WRITERS).expect("small")];
    let mut total = 0;
    for round in 0..ROUNDS {
        served.start();
        let acks = AtomicU64::new(0);
        let mut load = fio(&served);
        let mut clients = Vec::new();
        for (journal, writer) in journals.iter_mut().zip(0..) {
            let mut client = served.connect();
            check(&mut client, writer, journal, round);
            clients.push(client);
        }
        // The kill comes after a number of acknowledgements, not after a time.
        let enough = 200 + random.below(2000);
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
            wait_for("enough acknowledged writes", Duration::from_secs(60), || {
                let stuck = writers.iter().any(std::thread::ScopedJoinHandle::is_finished);
                (stuck || acks.load(Ordering::Relaxed) >= enough).then_some(())
            });
            report(&format!(
                "round {round}: {} writes in {:?}",
                acks.load(Ordering::Relaxed),
                started.elapsed()
            ));
            served.kill9();
        });
        assert!(acks.load(Ordering::Relaxed) >= enough, "the server left before it was killed");
        total += acks.into_inner();
        if let Some(load) = &mut load {
            let _ = load.kill();
            let _ = load.wait();
        }
    }
    served.start();
    let mut client = served.connect();
    for (journal, writer) in journals.iter_mut().zip(0..) {
        check(&mut client, writer, journal, ROUNDS);
    }
    assert!(total >= ROUNDS * 200);
    drop(client);
    assert!(served.stop().success());
}
