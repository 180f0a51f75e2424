//! Millions of requests of all kinds, and the server has no more memory at the end than when it was warm.
//!
//! `tests/soak` makes a long run of it: `SEALBD_SOAK_SECONDS` is how long, `SEALBD_SOAK_OPERATIONS` how many requests
//! there must be by then at least.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;

use super::common::client::{Client, Command, FUA};
use super::common::pattern::Random;
use super::common::served::Listen;
use super::*;

/// What clients use of a volume of twice the size: all of it is overwritten all the time.
const USED_LEN: u64 = 512 << 20;
const CLIENTS: u64 = 4;
/// Requests that a client keeps in flight.
const IN_FLIGHT: usize = 32;
/// Long requests; short ones are of one sector.
const LONG: u64 = 64 << 10;
const SHORT: u64 = 4096;
/// Looks at the memory, in all: the first third is warm-up, when caches fill.
const LOOKS: u64 = 30;
/// What the memory may grow by after the warm-up: entries of the index between two checkpoints come and go, and the
/// allocator does not give everything back at once.
const GROWTH_KIB_MAX: u64 = 8 << 10;

/// Requests that were answered.
#[derive(Default)]
struct Done {
    reads: AtomicU64,
    writes: AtomicU64,
    trims: AtomicU64,
    zeroes: AtomicU64,
    flushes: AtomicU64,
}

impl Done {
    fn counter(&self, command: Command) -> &AtomicU64 {
        match command {
            Command::Read => &self.reads,
            Command::Write => &self.writes,
            Command::Trim => &self.trims,
            Command::WriteZeroes => &self.zeroes,
            Command::Flush => &self.flushes,
            Command::Disconnect => unreachable!("has no answer"),
        }
    }

    fn all(&self) -> u64 {
        let counters = [&self.reads, &self.writes, &self.trims, &self.zeroes, &self.flushes];
        counters.iter().map(|counter| counter.load(Ordering::Relaxed)).sum()
    }

    fn told(&self) -> String {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (reads, writes, trims) = (of(&self.reads), of(&self.writes), of(&self.trims));
        let (zeroes, flushes) = (of(&self.zeroes), of(&self.flushes));
        format!("{reads} reads, {writes} writes, {trims} trims, {zeroes} zeroes, {flushes} flushes")
    }
}

/// Sends requests of all kinds until it is over.
fn load(client: &mut Client, mut random: Random, done: &Done, over: &AtomicBool) {
    let mut in_flight: HashMap<u64, (Command, u64)> = HashMap::new();
    let mut data = vec![0; usize::try_from(LONG).unwrap()];
    while !over.load(Ordering::Relaxed) || !in_flight.is_empty() {
        while in_flight.len() < IN_FLIGHT && !over.load(Ordering::Relaxed) {
            let len = if random.one_in(16) { LONG } else { SHORT };
            let (command, offset, len) = match random.below(1000) {
                0 => (Command::Flush, 0, 0),
                1..30 => (Command::Trim, random.below(USED_LEN / LONG) * LONG, LONG),
                30..60 => (Command::WriteZeroes, random.below(USED_LEN / LONG) * LONG, LONG),
                60..500 => (Command::Read, random.below(USED_LEN / len) * len, len),
                _ => (Command::Write, random.below(USED_LEN / len) * len, len),
            };
            let flags = if command == Command::Write && random.one_in(500) { FUA } else { 0 };
            let payload = if command == Command::Write { usize::try_from(len).unwrap() } else { 0 };
            data[..8].copy_from_slice(&random.next().to_le_bytes());
            let cookie = client.send(command, flags, offset, u32::try_from(len).unwrap(), &data[..payload]);
            in_flight.insert(cookie.expect("sent"), (command, len));
        }
        let Ok(reply) = client.receive() else { panic!("the connection is lost") };
        assert_eq!(reply.error, 0, "no request is refused");
        let (command, len) = in_flight.remove(&reply.cookie).expect("a reply to a request of ours");
        if command == Command::Read {
            client.receive_data(&mut data[..usize::try_from(len).unwrap()]).expect("data follows");
        }
        done.counter(command).fetch_add(1, Ordering::Relaxed);
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn memory_is_flat_under_requests_of_all_kinds() {
    let seed = Random::fresh_seed();
    report(&format!("SEALBD_TEST_SEED={seed}"));
    let mut random = Random::new(seed);
    let seconds = setting("SEALBD_SOAK_SECONDS", 4);
    let wanted = setting("SEALBD_SOAK_OPERATIONS", 1000);
    let mut served = Served::formatted(2 * USED_LEN, Listen::Unix, None);
    served.start();
    let (done, over) = (Done::default(), AtomicBool::new(false));
    let mut resident = Vec::new();
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let (mut client, random) = (served.connect(), Random::new(random.next()));
            let (done, over) = (&done, &over);
            scope.spawn(move || load(&mut client, random, done, over));
        }
        let _ends = OnDrop(&over);
        let begun = Instant::now();
        // Ten seconds apart in a long run.
        let pause = Duration::from_secs(seconds).div_f64(LOOKS as f64).min(Duration::from_secs(10));
        while begun.elapsed() < Duration::from_secs(seconds) {
            std::thread::sleep(pause);
            let now = footprint(&served);
            resident.push(now.resident_kib);
            report(&format!(
                "{:6.1} s  {:6} KiB resident  {:3} descriptors  {}",
                begun.elapsed().as_secs_f64(),
                now.resident_kib,
                now.descriptors,
                done.told()
            ));
        }
    });
    let warm = &resident[resident.len() / 3..];
    let (early, late) = warm.split_at(warm.len() / 2);
    let most = |part: &[u64]| part.iter().copied().max().expect("several looks");
    let (early, late) = (most(early), most(late));
    report(&format!(
        "{} requests; at most {early} KiB in the first half after the warm-up, {late} KiB in the second",
        done.all()
    ));
    assert!(done.all() >= wanted, "{} requests of {wanted}", done.all());
    assert!(late <= early + GROWTH_KIB_MAX, "memory grows: {early} KiB, then {late} KiB: {resident:?}");
    serves_on(&mut served);
}
