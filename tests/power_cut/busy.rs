//! Power cuts of the real binary while a small volume is full and overwritten at random: sixteen requests in flight, segments
//! emptied for new ones, a checkpoint every few megabytes; in the end it grows. Cuts are aimed by what the store was being
//! written, and counted by it. How a volume becomes smaller under cuts is in `crash/busy.rs`.

use std::collections::BTreeMap;

use super::common::client::Client;
use super::common::logging_server::Change;
use super::common::programs::{program, record_in, run};
use super::common::served::sealbd;
use super::targets::{Target, Targets};
use super::*;

/// The volume: full of noise but for the region of the history.
const BUSY_LEN: u64 = 16 * MIB;
const BUSY_STORE_LEN: u64 = 128 * MIB;
/// Of every volume below 4 GiB.
const SEGMENT_LEN: u64 = 2 * MIB;
const SECTOR_LEN: u64 = 4096;
const SECTOR_COUNT: u64 = BUSY_LEN / SECTOR_LEN;
/// The region of the history: the first sectors.
const REGION_SECTORS: u64 = 64;
const REGION_BLOCKS: usize = 64 * SECTOR_BLOCKS;
const BUSY_GROUPS: usize = 260;
/// Writes of noise in a group, of up to so many sectors.
const NOISE: u64 = 13;
const NOISE_SECTORS: u64 = 8;
/// Changes of the region in a group.
const CHANGES: u64 = 3;
/// Groups before which the volume grows by [`GROWTH`], late, because there is more room from then on.
const GROWS_AT: [usize; 3] = [200, 220, 240];
const GROWTH: u64 = 2 * MIB;
/// Groups between two looks at the status.
const LOOK_EVERY: usize = 10;
/// Cuts aimed at each of [`Place`].
const AIMED: usize = 12;

/// Where a cut falls.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Place {
    /// Moved sectors are on their way to the store.
    Reclaim,
    /// Pages of the index are.
    Checkpoint,
    /// A block of the ring is.
    Root,
    /// A copy of the header is.
    Resize,
    /// Fewer slots are free than reclaim wants to have, before and after.
    LowSpace,
}

const PLACES: [Place; 5] = [Place::Reclaim, Place::Checkpoint, Place::Root, Place::Resize, Place::LowSpace];

/// What was written to a sector outside of the region: group and stamp, oldest first.
type Noise = Vec<Vec<(usize, u64)>>;

/// All that the client did, and when.
struct Busy {
    history: History,
    noise: Noise,
    /// When each group was sent and when it was answered.
    times: Vec<(Moment, Moment)>,
    /// Looks at the status: when, and whether space was low.
    looks: Vec<(Moment, bool)>,
}

fn keep_busy(
    client: &mut Client,
    random: &mut Random,
    now: impl Fn() -> Moment,
    is_low: impl Fn() -> bool,
    grow: impl Fn(u64) + Sync,
) -> Busy {
    let sectors = usize::try_from(SECTOR_COUNT).expect("small");
    let mut busy = Busy {
        history: History::default(),
        noise: vec![Vec::new(); sectors],
        times: Vec::new(),
        looks: Vec::new(),
    };
    let mut next_stamp = 1;
    let mut stamp = || {
        next_stamp += 1;
        next_stamp - 1
    };
    for number in 0..BUSY_GROUPS {
        if number.is_multiple_of(LOOK_EVERY) {
            busy.looks.push((now(), is_low()));
        }
        let step = GROWS_AT.iter().position(|at| *at == number);
        let size = step.map(|step| BUSY_LEN + (step as u64 + 1) * GROWTH);
        let sent = now();
        let mut group = Group::default();
        if random.one_in(12) && size.is_none() {
            client.flush().expect("flushed");
            group.durable_at = Some(now());
        } else {
            // In the order of the stamps, so that no two requests of a group meet.
            let share = REGION_SECTORS / CHANGES;
            for change in 0..CHANGES {
                let first =
                    usize::try_from(change * share + random.below(share)).expect("small") * SECTOR_BLOCKS;
                group.steps.push(Step { first, count: SECTOR_BLOCKS, stamp: stamp() });
            }
            let share = (SECTOR_COUNT - REGION_SECTORS) / NOISE;
            let mut in_flight = Vec::new();
            for part in 0..NOISE {
                let count = 1 + random.below(NOISE_SECTORS);
                let first = REGION_SECTORS + part * share + random.below(share - count);
                let stamp = stamp();
                in_flight.push((first * SECTOR_LEN, count * SECTOR_LEN, stamp));
                for sector in first..first + count {
                    busy.noise[usize::try_from(sector).expect("small")].push((number, stamp));
                }
            }
            in_flight.extend(group.steps.iter().map(|step| (place_of(step.first), SECTOR_LEN, step.stamp)));
            std::thread::scope(|scope| {
                if let Some(size) = size {
                    let grow = &grow;
                    scope.spawn(move || grow(size));
                }
                send_all(client, &in_flight);
            });
        }
        busy.times.push((sent, now()));
        busy.history.groups.push(group);
    }
    busy
}

fn send_all(client: &mut Client, writes: &[(u64, u64, u64)]) {
    for &(offset, len, stamp) in writes {
        let data = filled(offset, usize::try_from(len).expect("small"), stamp);
        client.send(Command::Write, 0, offset, u32::try_from(len).expect("small"), &data).expect("sent");
    }
    for _ in writes {
        assert_eq!(client.receive().expect("answered").error, 0);
    }
}

/// Where a block of the region lies.
fn place_of(block: usize) -> u64 {
    (block * BLOCK_LEN) as u64
}

impl Busy {
    /// What the volume reads as is a prefix: of the history of the region, and the noise as it was then. Returns how long
    /// it is, in groups.
    fn judge(&self, client: &mut Client, cut: Moment) -> Result<usize, String> {
        let mut found = Vec::new();
        for offset in (0..BUSY_LEN).step_by(1 << 20) {
            let data = client.read(offset, 1 << 20).expect("readable after a cut");
            let blocks = data.chunks_exact(BLOCK_LEN).zip((offset..).step_by(BLOCK_LEN));
            found.extend(blocks.map(|(block, at)| stamp_of(block, at)));
        }
        let groups =
            self.history.check(&found[..REGION_BLOCKS], cut).map_err(|violation| format!("{violation:?}"))?;
        // A prefix may end behind the last change of the region in a group, and then be in the noise of the next one.
        let next =
            self.history.groups.iter().skip(groups + 1).take_while(|group| group.steps.is_empty()).count();
        for (sector, blocks) in found.chunks(SECTOR_BLOCKS).enumerate().skip(REGION_BLOCKS / SECTOR_BLOCKS) {
            let written = &self.noise[sector];
            let before =
                written.iter().rev().find(|(group, _)| *group < groups).map_or(0, |(_, stamp)| *stamp);
            let of_end = written.iter().filter(|(group, _)| (groups..=groups + next + 1).contains(group));
            let allowed =
                blocks[0] == Some(before) || of_end.clone().any(|(_, stamp)| blocks[0] == Some(*stamp));
            if !allowed || blocks.iter().any(|block| *block != blocks[0]) {
                return Err(format!(
                    "sector {sector} holds {blocks:?} in a prefix of {groups} groups: {written:?}"
                ));
            }
        }
        Ok(groups)
    }

    fn is_low_at(&self, cut: Moment) -> bool {
        self.looks.windows(2).any(|look| (look[0].0..=look[1].0).contains(&cut) && look[0].1 && look[1].1)
    }
}

/// What the store was written: what it belonged to, when it came in, when it was answered.
fn writes(store: &LoggingServer, end: Moment) -> Vec<(Target, Moment, Moment)> {
    let mut targets = Targets::new(SEGMENT_LEN);
    let mut writes = Vec::new();
    for event in store.log().events() {
        match &event.change {
            Change::Write(data) => {
                let target = targets.of(event.offset, data);
                writes.push((target, event.received, event.replied.unwrap_or(end)));
            }
            Change::Trim(_) => targets.dropped(event.offset),
            Change::Zero(_) | Change::Flush => {}
        }
    }
    writes
}

/// What the store was being written at a moment.
fn under_way(log: &[(Target, Moment, Moment)], cut: Moment) -> Vec<Place> {
    let mut places: Vec<Place> = log
        .iter()
        .filter(|(_, received, replied)| (*received..*replied).contains(&cut))
        .filter_map(|(target, ..)| match target {
            Target::Moved => Some(Place::Reclaim),
            Target::Index => Some(Place::Checkpoint),
            Target::Ring => Some(Place::Root),
            Target::Header => Some(Place::Resize),
            Target::Log => None,
        })
        .collect();
    places.sort_unstable();
    places.dedup();
    places
}

#[test]
fn a_power_cut_in_reclaim_checkpoint_resize_or_low_space_leaves_a_prefix() {
    if is_control_run() {
        return;
    }
    let seed = Random::fresh_seed();
    report(&format!("SEALBD_TEST_SEED={seed}"));
    let mut random = Random::new(seed);
    let store = LoggingServer::start(BUSY_STORE_LEN);
    let mut served = Served::formatted(BUSY_LEN, Listen::Unix, Some(store.uri()));
    served.start();
    let mut client = served.connect();
    client.flush().expect("flushed");
    let first = store.moment();
    let is_low = || {
        let mut status = program(&sealbd());
        status.args(["status", &store.uri(), "--json"]);
        let told: serde_json::Value =
            serde_json::from_str(&run(record_in(&mut status, &served.path("audit.jsonl")))).expect("JSON");
        let space = &told["volume"]["space"];
        space["free_slots"].as_u64().expect("told") < space["reclaim_below_slots"].as_u64().expect("told")
    };
    let grow = |size: u64| {
        let mut resize = program(&sealbd());
        resize.args(["resize", &store.uri(), &size.to_string()]);
        run(record_in(&mut resize, &served.path("audit.jsonl")));
    };
    let busy = keep_busy(&mut client, &mut random, || store.moment(), is_low, grow);
    let end = store.moment();
    drop(client);
    served.kill9();
    let log = writes(&store, end);
    let mut cuts: Vec<(Moment, u64)> = Vec::new();
    for place in PLACES {
        let moments: Vec<Moment> = (first..end)
            .filter(|cut| match place {
                Place::LowSpace => busy.is_low_at(*cut),
                other => under_way(&log, *cut).contains(&other),
            })
            .collect();
        assert!(!moments.is_empty(), "{place:?} never happened: the test is blind");
        for _ in 0..AIMED {
            let cut = moments[usize::try_from(random.below(moments.len() as u64)).expect("small")];
            cuts.push((cut, random.next()));
        }
    }
    let mut hits: BTreeMap<Place, usize> = BTreeMap::new();
    for (cut, _) in &cuts {
        let low = busy.is_low_at(*cut).then_some(Place::LowSpace);
        for place in under_way(&log, *cut).into_iter().chain(low) {
            *hits.entry(place).or_default() += 1;
        }
    }
    let flying = cuts
        .iter()
        .filter(|(cut, _)| busy.times.iter().any(|(sent, done)| (*sent..*done).contains(cut)))
        .count();
    let outcomes = judge_cuts(&store, &served, &busy, &cuts);
    let violations: Vec<_> = outcomes.iter().filter(|(.., outcome)| outcome.is_err()).collect();
    let lengths = outcomes.iter().filter_map(|(.., outcome)| outcome.as_ref().ok());
    report(&format!(
        "{} cuts in moments {first} to {end}, {flying} with requests in flight; {hits:?}; prefixes of {:?} to {:?} groups",
        outcomes.len(),
        lengths.clone().min(),
        lengths.max(),
    ));
    assert!(violations.is_empty(), "(cut, seed, outcome): {violations:?}");
    assert_eq!(outcomes.len(), cuts.len());
    assert!(
        PLACES.iter().all(|place| hits[place] >= AIMED),
        "every place is hit as often as aimed at: {hits:?}"
    );
    assert!(flying * 2 >= cuts.len(), "{flying} of {} cuts while requests were in flight", cuts.len());
}

type Outcome = (Moment, u64, Result<usize, String>);

fn judge_cuts(store: &LoggingServer, served: &Served, busy: &Busy, cuts: &[(Moment, u64)]) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from).min(4) {
            scope.spawn(|| {
                while let Some(&(cut, seed)) = cuts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut reopened = Served::adopting(BUSY_LEN, Listen::Unix, &served.key());
                    let image = std::fs::File::create(reopened.image()).expect("image");
                    image.set_len(BUSY_STORE_LEN).expect("sparse image");
                    store.log().write_image(cut, &mut Random::new(seed), &image).expect("written image");
                    drop(image);
                    reopened.start();
                    let outcome = busy.judge(&mut reopened.connect(), cut);
                    outcomes.lock().expect("no thread panics while it holds this").push((cut, seed, outcome));
                }
            });
        }
    });
    outcomes.into_inner().expect("no thread panicked")
}
