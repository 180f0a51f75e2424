//! The power goes out under the store, at hundreds of moments. The real binary serves a volume over a store that keeps
//! every change in order (`common/logging_server.rs`); a client writes and notes what it was promised. For each cut an
//! image is made with a legal, perhaps torn subset of what the store had not flushed; served again, the volume must
//! read as a prefix of the client's history which holds every answered FLUSH and FUA (docs/FORMAT.md §15, I2).

#[path = "power_cut/busy.rs"]
mod busy;
mod common;
#[path = "common/targets.rs"]
mod targets;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::client::{Client, Command, FUA};
use common::history::{Group, History, SECTOR_BLOCKS, Step, Violation};
use common::logging_server::{LoggingServer, Moment};
use common::pattern::{BLOCK_LEN, Random, filled, stamp_of};
use common::programs::report;
use common::served::{Listen, Served, is_control_run};

const MIB: u64 = 1 << 20;
/// The store: room for a volume of `VOLUME_LEN` with its over-provisioning.
const STORE_LEN: u64 = 512 * MIB;
const VOLUME_LEN: u64 = 256 * MIB;
/// The client changes only this many sectors, so that it overwrites itself all the time.
const SECTORS: usize = 256;
const REGION_OFFSET: u64 = 64 * MIB;
const BLOCKS: usize = SECTORS * SECTOR_BLOCKS;
const GROUPS: usize = 500;
const CUTS: usize = 300;

/// Changes the region for [`GROUPS`] groups. `moment` tells the store's clock.
fn make_history(client: &mut Client, random: &mut Random, moment: impl Fn() -> Moment) -> History {
    let mut history = History::default();
    let mut next_stamp = 1;
    for _ in 0..GROUPS {
        let mut group = Group::default();
        if random.one_in(6) {
            client.flush().expect("flushed");
            group.durable_at = Some(moment());
        } else {
            let together = if random.one_in(3) { 1 + random.below(8) } else { 1 };
            let flags = if random.one_in(8) { FUA } else { 0 };
            for _ in 0..together {
                let step = random_step(random, next_stamp);
                let clash = group.steps.iter().any(|other: &Step| sectors_meet(step, *other));
                if !clash {
                    next_stamp += 1;
                    group.steps.push(step);
                }
            }
            send_group(client, &group, flags);
            if flags == FUA {
                group.durable_at = Some(moment());
            }
        }
        history.groups.push(group);
    }
    history
}

/// Mostly whole sectors, at times a few blocks of one, at times zeros.
fn random_step(random: &mut Random, stamp: u64) -> Step {
    let small = |n: u64| usize::try_from(n).expect("small");
    let sector = small(random.below(SECTORS as u64));
    if random.one_in(5) {
        let from = small(random.below(SECTOR_BLOCKS as u64));
        let count = 1 + small(random.below((SECTOR_BLOCKS - from) as u64));
        return Step { first: sector * SECTOR_BLOCKS + from, count, stamp };
    }
    let count = (1 + small(random.below(16))).min(SECTORS - sector);
    let stamp = if random.one_in(10) { 0 } else { stamp };
    Step { first: sector * SECTOR_BLOCKS, count: count * SECTOR_BLOCKS, stamp }
}

fn sectors_meet(a: Step, b: Step) -> bool {
    let sectors = |step: Step| step.first / SECTOR_BLOCKS..=(step.first + step.count - 1) / SECTOR_BLOCKS;
    let (a, b) = (sectors(a), sectors(b));
    a.start() <= b.end() && b.start() <= a.end()
}

fn send_group(client: &mut Client, group: &Group, flags: u16) {
    for step in &group.steps {
        let (offset, len) = (block_offset(step.first), step.count * BLOCK_LEN);
        let (command, data) = if step.stamp == 0 {
            (Command::WriteZeroes, Vec::new())
        } else {
            (Command::Write, filled(offset, len, step.stamp))
        };
        client.send(command, flags, offset, u32::try_from(len).expect("small"), &data).expect("sent");
    }
    for _ in &group.steps {
        assert_eq!(client.receive().expect("answered").error, 0);
    }
}

fn block_offset(block: usize) -> u64 {
    REGION_OFFSET + (block * BLOCK_LEN) as u64
}

fn stamps(client: &mut Client) -> Vec<Option<u64>> {
    let data = client.read(REGION_OFFSET, BLOCKS * BLOCK_LEN).expect("readable after a cut");
    let blocks = data.chunks_exact(BLOCK_LEN).enumerate();
    blocks
        .map(|(i, block)| {
            // Zeros are the pattern of stamp 0.
            stamp_of(block, block_offset(i))
        })
        .collect()
}

#[test]
fn after_a_power_cut_a_volume_is_a_prefix_with_every_promise_kept() {
    let seed = Random::fresh_seed();
    report(&format!("SEALBD_TEST_SEED={seed}"));
    let mut random = Random::new(seed);
    let store = LoggingServer::start(STORE_LEN);
    let mut served = Served::formatted(VOLUME_LEN, Listen::Unix, Some(store.uri()));
    served.start();
    let mut client = served.connect();
    // Cuts inside `format` leave no volume, which is nobody's promise.
    client.flush().expect("flushed");
    let first = store.moment();
    let history = make_history(&mut client, &mut random, || store.moment());
    let whole = history.check(&stamps(&mut client), store.moment());
    // A prefix may end inside its last group, so a whole history is found one group early.
    assert!(whole.as_ref().is_ok_and(|&groups| groups + 1 >= GROUPS), "without a cut: {whole:?}");
    // The checkpoint of a clean end can be cut as well.
    drop(client);
    assert!(served.stop().success());
    let end = store.moment();
    report(&format!("{} groups, store moments {first} to {end}", history.groups.len()));

    let cuts: Vec<(Moment, u64)> =
        (0..CUTS).map(|_| (first + random.below(end - first + 1), random.next())).collect();
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from).min(4) {
            scope.spawn(|| {
                while let Some(&(cut, cut_seed)) = cuts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = cut_and_reopen(&store, &served, &history, cut, cut_seed);
                    outcomes
                        .lock()
                        .expect("no thread panics while it holds this")
                        .push((cut, cut_seed, outcome));
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().expect("no thread panicked");
    let violations: Vec<_> = outcomes.iter().filter(|(_, _, outcome)| outcome.is_err()).collect();
    let lengths = outcomes.iter().filter_map(|(_, _, outcome)| outcome.as_ref().ok());
    let (shortest, longest) = (lengths.clone().min(), lengths.max());
    report(&format!(
        "{} cuts, {} violations, prefixes of {shortest:?} to {longest:?} groups",
        outcomes.len(),
        violations.len()
    ));
    if is_control_run() {
        // A plain disk promises no prefix: a check that does not see it sees nothing.
        assert!(!violations.is_empty(), "the check is blind");
        return;
    }
    assert_eq!(outcomes.len(), CUTS);
    assert!(violations.is_empty(), "(cut, seed, outcome): {violations:?}");
    assert!(shortest < Some(&(GROUPS / 2)), "some cut came early and counted");
}

/// Makes one image, serves it and reads the region. Returns how long the prefix is, in groups.
fn cut_and_reopen(
    store: &LoggingServer,
    original: &Served,
    history: &History,
    cut: Moment,
    seed: u64,
) -> Result<usize, Violation> {
    let mut reopened = Served::adopting(VOLUME_LEN, Listen::Unix, &original.key());
    let image = std::fs::File::create(reopened.image()).expect("image");
    image.set_len(STORE_LEN).expect("sparse image");
    store.log().write_image(cut, &mut Random::new(seed), &image).expect("written image");
    drop(image);
    reopened.start();
    let mut client = reopened.connect();
    let outcome = history.check(&stamps(&mut client), cut);
    // What recovery made of it stays: after a second death the same prefix is there.
    drop(client);
    reopened.kill9();
    reopened.start();
    assert_eq!(history.check(&stamps(&mut reopened.connect()), cut), outcome, "recovery is repeatable");
    outcome
}

fn step(first: usize, count: usize, stamp: u64) -> Step {
    Step { first, count, stamp }
}

/// Three groups of one sector each; the second is durable from moment 10 on.
fn small_history() -> History {
    let group = |steps: &[Step], durable_at| Group { steps: steps.to_vec(), durable_at };
    History {
        groups: vec![
            group(&[step(0, 8, 1)], None),
            group(&[step(8, 8, 2)], Some(10)),
            group(&[step(0, 8, 3), step(16, 8, 4)], None),
        ],
    }
}

fn sectors(stamps: [u64; 3]) -> Vec<Option<u64>> {
    stamps.iter().flat_map(|&stamp| [Some(stamp); 8]).collect()
}

#[test]
fn the_check_accepts_every_prefix_and_part_of_the_last_group() {
    let history = small_history();
    for (state, cut) in
        [([0, 0, 0], 9), ([1, 0, 0], 9), ([1, 2, 0], 10), ([3, 2, 0], 10), ([1, 2, 4], 10), ([3, 2, 4], 10)]
    {
        assert!(history.check(&sectors(state), cut).is_ok(), "{state:?}");
    }
}

#[test]
fn the_check_refuses_gaps_losses_mixtures_and_strangers() {
    let history = small_history();
    assert!(history.check(&sectors([0, 2, 0]), 9).is_err(), "the second without the first");
    assert!(history.check(&sectors([0, 2, 4]), 9).is_err());
    assert!(history.check(&sectors([1, 0, 0]), 10).is_err(), "a promise broken");
    let mut torn = sectors([3, 2, 0]);
    torn[3] = Some(1);
    assert!(history.check(&torn, 10).is_err(), "a sector of two writes");
    let mut foreign = sectors([3, 2, 4]);
    foreign[20] = None;
    assert_eq!(history.check(&foreign, 10), Err(Violation::Foreign { block: 20 }));
}
