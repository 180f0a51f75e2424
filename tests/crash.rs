//! Power cuts and deaths of the process at every point: what is left is always a volume, always a
//! prefix of its history that holds every durable answer (docs/FORMAT.md §15, §16).
//!
//! A run is cut at the nth change of the store; that change and all that was not flushed is then
//! lost, kept or torn as dice decide, whose seed a failure prints.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "crash/busy.rs"]
mod busy;
#[path = "crash/concurrent.rs"]
mod concurrent;
#[path = "common/volume_history.rs"]
mod history;
#[path = "common/targets.rs"]
mod targets;
#[path = "common/volumes.rs"]
mod volumes;

use std::sync::Arc;

use history::{Dice, Model, Step, Survived};
use proptest::prelude::*;
use sealbd::export::Export;
use sealbd::geometry::ByteRange;
use sealbd::store::memory::MemoryStore;
use sealbd::volume::create::Geometry;
use sealbd::volume::unlock::{read_header, write_header};
use sealbd::volume::{OpenMode, Volume, VolumeError};
use volumes::Disk;

const SIZE: u64 = 1 << 20;
const SECTOR: u64 = history::SECTOR;

/// Runs a future on this thread alone, so that the same steps give the same changes of the store.
fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// What a power cut leaves of the changes since the last sync.
#[derive(Clone, Copy, Debug)]
enum Left {
    Nothing,
    Everything,
    /// Each change is kept or lost whole.
    Some(u64),
    /// Each change is kept, lost, or torn at 512 bytes.
    Torn(u64),
}

impl Left {
    fn of(self, store: &MemoryStore) -> Arc<MemoryStore> {
        Arc::new(match self {
            Self::Nothing => store.crash(&mut |_| 0),
            Self::Everything => store.crash(&mut |_| 1),
            Self::Some(seed) => {
                let mut dice = Dice::new(seed);
                store.crash(&mut |_| dice.below(2))
            }
            Self::Torn(seed) => {
                let mut dice = Dice::new(seed);
                store.crash(&mut |bound| dice.below(bound))
            }
        })
    }

    /// The plain cases, and `count` random ones of each kind.
    fn cases(seed: u64, count: u64) -> Vec<Self> {
        let mut cases = vec![Self::Nothing, Self::Everything];
        for i in 0..count {
            cases.push(Self::Torn(history::splitmix(seed ^ i)));
            cases.push(Self::Some(history::splitmix(seed ^ i ^ 0xffff)));
        }
        cases
    }
}

/// Runs `steps` on `store` until one fails; sessions end and begin as the steps say.
async fn play(store: &Arc<MemoryStore>, steps: &[Step], model: &mut Model) -> Result<(), String> {
    let open = || volumes::open(store.clone(), OpenMode::ReadWrite);
    let mut volume = open().await.map_err(|error| error.to_string())?;
    for step in steps {
        model.ask(step);
        if !matches!(step, Step::Reopen) {
            history::apply(&volume, SIZE, step).await.map_err(|error| error.to_string())?;
        }
        if matches!(step, Step::Close | Step::Reopen) {
            // The old session is idle: every step was awaited.
            drop(volume);
            volume = open().await.map_err(|error| error.to_string())?;
        }
        model.answered(step);
    }
    Ok(())
}

/// Opens what is left and returns how much of the history is there.
async fn judge(store: &Arc<MemoryStore>, model: &Model, survived: Survived, when: &str) -> (Volume, usize) {
    let volume = volumes::open(store.clone(), OpenMode::ReadWrite)
        .await
        .unwrap_or_else(|error| panic!("{when}: does not open: {error}"));
    let found = volumes::read_all(&volume).await;
    let prefix = model.prefix_found(&found, survived).unwrap_or_else(|why| panic!("{when}: {why}"));
    let report = volume.check(true, |_| {}).await.unwrap();
    assert!(report.is_clean(), "{when}: {report:?}");
    (volume, prefix)
}

/// Opens what is left with the power failing again at every change of the opening.
async fn cut_the_recovery(left: &Arc<MemoryStore>, model: &Model, survived: Survived, seed: u64, when: &str) {
    for nth in 0.. {
        let again = Arc::new(left.snapshot());
        again.freeze_at(nth);
        let opened = volumes::open(again.clone(), OpenMode::ReadWrite).await;
        let frozen = again.is_frozen();
        assert!(frozen || opened.is_ok(), "{when}: opening fails without a cause");
        drop(opened);
        for how in Left::cases(seed ^ nth, 1) {
            let when = format!("{when}, recovery cut at {nth}, left {how:?}");
            judge(&how.of(&again), model, survived, &when).await;
        }
        if !frozen {
            return;
        }
    }
}

/// Everything that must hold of a store on which `steps` were played until it froze.
async fn verify(store: &Arc<MemoryStore>, model: Model, seed: u64, cases: u64, when: &str) {
    let dead = Arc::new(store.snapshot());
    judge(&dead, &model, Survived::ProcessDeath, &format!("{when}, process died")).await;
    let mut model = model;
    let cases = Left::cases(seed, cases);
    for (index, how) in cases.iter().enumerate() {
        let when = format!("{when}, left {how:?}");
        let left = how.of(store);
        if index == 2 {
            cut_the_recovery(&left, &model, Survived::PowerCut, seed, &when).await;
        }
        let (volume, prefix) = judge(&left, &model, Survived::PowerCut, &when).await;
        if index + 1 < cases.len() {
            continue;
        }
        // Life goes on, and ends again.
        model.settle(prefix);
        let steps = [
            Step::Write { offset: 4096, len: 9000, fill: 1, durable: true },
            Step::Write { offset: 0, len: 512, fill: 2, durable: false },
            Step::Checkpoint,
            Step::Trim { offset: 0, len: 65536, durable: false },
            Step::Flush,
            Step::Write { offset: 8192, len: 4096, fill: 3, durable: false },
        ];
        for step in &steps {
            model.ask(step);
            history::apply(&volume, SIZE, step).await.unwrap_or_else(|e| panic!("{when}: {step:?}: {e}"));
            model.answered(step);
        }
        for how in Left::cases(seed, 1) {
            let when = format!("{when}, went on, left {how:?}");
            judge(&how.of(&left), &model, Survived::PowerCut, &when).await;
        }
    }
}

/// A freshly made volume, to start every run from.
fn fresh() -> Arc<MemoryStore> {
    run(Disk::new(SIZE)).store
}

fn cut_everywhere(steps: &[Step], cases: u64, stride: u64) {
    let base = fresh();
    for nth in (0..).step_by(usize::try_from(stride).unwrap()) {
        let store = Arc::new(base.snapshot());
        store.freeze_at(nth);
        let mut model = Model::new(SIZE);
        let frozen = run(async {
            let ended = play(&store, steps, &mut model).await;
            assert!(ended.is_ok() || store.is_frozen(), "change {nth}: {ended:?}");
            verify(&store, model, nth, cases, &format!("cut at change {nth}")).await;
            store.is_frozen()
        });
        if !frozen {
            return;
        }
    }
}

fn write(offset: u64, len: u64, fill: u64) -> Step {
    Step::Write { offset, len, fill, durable: false }
}

#[test]
fn a_power_cut_at_any_change_leaves_a_prefix_that_holds_every_durable_answer() {
    let steps = [
        write(0, 4096, 10),
        write(4000, 200, 11),
        Step::Flush,
        write(100 * SECTOR, 30 * SECTOR, 12),
        Step::Write { offset: 512, len: 1024, fill: 13, durable: true },
        Step::Zero { offset: 300, len: 20_000, no_hole: true, durable: false },
        Step::Checkpoint,
        write(5 * SECTOR, 4096, 14),
        Step::Trim { offset: 0, len: SIZE, durable: false },
        write(7 * SECTOR + 5, 9000, 15),
        Step::Flush,
        Step::Reopen,
        write(7 * SECTOR + 4096, 512, 16),
        Step::Checkpoint,
        Step::Close,
        write(0, 512, 17),
        Step::Write { offset: 8 * SECTOR, len: 8192, fill: 18, durable: true },
        write(0, 512, 19),
    ];
    cut_everywhere(&steps, 2, 1);
}

#[test]
fn a_power_cut_while_segments_change_leaves_a_prefix() {
    // Every write fills a good part of a segment of 2 MiB.
    let big = |fill| write(0, SIZE, fill);
    let steps = [
        big(1),
        big(2),
        Step::Flush,
        big(3),
        write(4096, 512, 4),
        big(5),
        Step::Checkpoint,
        big(6),
        Step::Reopen,
        big(7),
        Step::Flush,
        big(8),
        Step::Checkpoint,
        Step::Checkpoint,
        big(9),
        big(10),
    ];
    cut_everywhere(&steps, 1, 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn a_power_cut_in_any_history_leaves_a_prefix(
        steps in proptest::collection::vec(history::step(SIZE), 1..25), seed: u64,
    ) {
        let base = fresh();
        let changes = run(async {
            let store = Arc::new(base.snapshot());
            play(&store, &steps, &mut Model::new(SIZE)).await.unwrap();
            store.change_count()
        });
        for i in 0..3 {
            let nth = history::splitmix(seed ^ i) % (changes + 1);
            let store = Arc::new(base.snapshot());
            store.freeze_at(nth);
            let mut model = Model::new(SIZE);
            run(async {
                let ended = play(&store, &steps, &mut model).await;
                assert!(ended.is_ok() || store.is_frozen(), "{ended:?}");
                verify(&store, model, seed, 1, &format!("cut at change {nth} of {changes}")).await;
            });
        }
    }
}

#[test]
fn a_durable_request_that_changes_nothing_makes_durable_what_was_answered_before_it() {
    let store = fresh();
    run(async {
        let volume = volumes::open(store.clone(), OpenMode::ReadWrite).await.unwrap();
        for (lba, len) in [(1, 512), (2, 0)] {
            history::apply(&volume, SIZE, &write(lba * SECTOR, SECTOR, lba)).await.unwrap();
            let trim = Step::Trim { offset: 0, len, durable: true };
            history::apply(&volume, SIZE, &trim).await.unwrap();
            let left = Left::Nothing.of(&store);
            let left = volumes::open(left, OpenMode::ReadOnly).await.unwrap();
            let range = ByteRange::within(lba * SECTOR, SECTOR, SIZE).unwrap();
            assert!(
                volumes::read(&left, range).await == history::pattern(lba, SECTOR),
                "trim of {len} bytes"
            );
        }
    });
}

#[test]
fn making_a_volume_leaves_none_or_a_whole_one_wherever_it_is_cut() {
    let geometry = Geometry::for_export(SIZE).unwrap();
    // What was there before: another volume.
    let old = fresh();
    for nth in 0.. {
        let store = Arc::new(old.snapshot());
        store.freeze_at(nth);
        let made = run(volumes::format(store.clone(), geometry));
        assert_eq!(made.is_err(), store.is_frozen(), "cut at {nth}");
        for how in Left::cases(nth, 6) {
            let when = format!("cut at {nth}, left {how:?}");
            run(async {
                let left = how.of(&store);
                match volumes::open(left.clone(), OpenMode::ReadWrite).await {
                    Ok(volume) => {
                        assert!(volumes::read_all(&volume).await.iter().all(|byte| *byte == 0), "{when}");
                        volumes::check(&volume).await;
                    }
                    Err(error) => {
                        assert!(made.is_err(), "{when}: {error}");
                        // Neither old nor new, and said so before any key is asked for, or by the ring.
                        let named = matches!(
                            error,
                            VolumeError::NotAVolume | VolumeError::Damaged { .. } | VolumeError::NoRoot(_)
                        );
                        assert!(named, "{when}: {error}");
                    }
                }
                // It can always be made again.
                volumes::format(left.clone(), geometry).await.unwrap();
                let volume = volumes::open(left, OpenMode::ReadWrite).await.unwrap();
                volumes::check(&volume).await;
            });
        }
        if !store.is_frozen() {
            return;
        }
    }
}

#[test]
fn a_header_update_leaves_the_old_or_the_new_generation_wherever_it_is_cut() {
    let base = fresh();
    for updates in 1..=3u64 {
        for nth in 0..=updates * 4 {
            let store = Arc::new(base.snapshot());
            let mut done = 0;
            run(async {
                store.freeze_at(nth);
                let mut unlocked = volumes::unlock(&*store).await.unwrap();
                for _ in 0..updates {
                    match write_header(&*store, &mut unlocked.header, &unlocked.keys).await {
                        Ok(()) => done += 1,
                        Err(_) => return,
                    }
                }
            });
            for how in Left::cases(nth, 6) {
                let when = format!("cut at {nth} of {updates} updates, left {how:?}");
                run(async {
                    let left = how.of(&store);
                    let copies = read_header(&*left).await.unwrap_or_else(|e| panic!("{when}: {e}"));
                    let generation = copies.claimed().generation;
                    assert!((1 + done..=2 + done).contains(&generation), "{when}: found {generation}");
                    let volume = volumes::open(left.clone(), OpenMode::ReadWrite).await;
                    drop(volume.unwrap_or_else(|error| panic!("{when}: {error}")));
                    // And it can be updated again.
                    let mut unlocked = volumes::unlock(&*left).await.unwrap();
                    write_header(&*left, &mut unlocked.header, &unlocked.keys).await.unwrap();
                    let again = volumes::unlock(&*left).await.unwrap();
                    assert_eq!(again.header.generation, generation + 1, "{when}");
                });
            }
        }
    }
}

#[test]
fn a_store_that_was_cut_refuses_everything_and_nothing_hangs() {
    let base = fresh();
    for nth in 0..12 {
        let store = Arc::new(base.snapshot());
        run(async {
            let volume = volumes::open(store.clone(), OpenMode::ReadWrite).await.unwrap();
            store.freeze_at(nth);
            let mut tasks = Vec::new();
            for writer in 0..8u64 {
                let volume = volume.clone();
                tasks.push(tokio::spawn(async move {
                    for i in 0..6u64 {
                        let offset = (writer * 5 + i) * 4096 + (i % 2) * 512;
                        let _ = history::apply(&volume, SIZE, &write(offset, 4096, i)).await;
                        let _ = volume.flush().await;
                    }
                }));
            }
            for task in tasks {
                let ended = tokio::time::timeout(std::time::Duration::from_secs(20), task).await;
                ended.expect("nothing waits for a dead store for ever").unwrap();
            }
        });
    }
}

#[test]
fn what_the_last_root_freed_is_not_written_over_before_the_next_one_is_durable() {
    let geometry = Geometry::for_export(SIZE).unwrap();
    // Slots that may be used again are discarded after some time, and a session writes to no segment of another: so
    // what is not empty is needed by the last root or by the one before.
    let slot = |store: &MemoryStore, number: u64| {
        let segment = u64::from(geometry.segment_bytes);
        let first = geometry.store_bytes() - geometry.slots * segment;
        store.read_raw(first + number * segment, 64 << 10)
    };
    let base = fresh();
    for segments in 2..12 {
        let store = Arc::new(base.snapshot());
        run(async {
            let volume = volumes::open(store.clone(), OpenMode::ReadWrite).await.unwrap();
            // One sector that stays in every segment, so that only the trim frees them.
            for fill in 0..segments {
                history::apply(&volume, SIZE, &write((240 + fill) * SECTOR, SECTOR, fill)).await.unwrap();
                for _ in 0..2 {
                    history::apply(&volume, SIZE, &write(0, 200 * SECTOR, fill)).await.unwrap();
                }
            }
            volume.checkpoint().await.unwrap();
            let trim = Step::Trim { offset: 0, len: SIZE, durable: false };
            history::apply(&volume, SIZE, &trim).await.unwrap();
            volume.checkpoint().await.unwrap();
            // Virtual time: nothing waits.
            tokio::time::pause();
            tokio::time::sleep(std::time::Duration::from_secs(60)).await;
        });
        // A sync, the claim's payload, a sync, and the ring block that is cut.
        let next = Arc::new(store.snapshot());
        next.freeze_at(3);
        assert!(run(volumes::open(next.clone(), OpenMode::ReadWrite)).is_err());
        let left = next.crash(&mut |_| 1);
        for number in 0..geometry.slots {
            let before = slot(&store, number);
            let used = before.iter().any(|byte| *byte != 0);
            assert!(!used || before == slot(&left, number), "slot {number} was written over");
        }
    }
}

#[test]
fn a_power_cut_while_space_is_reclaimed_leaves_a_prefix() {
    // Fourteen slots, of which eight are the private reserve: four for data and log.
    let geometry = Geometry { export_bytes: 4 << 20, segment_bytes: 2 << 20, slots: 14 };
    let size = geometry.export_bytes;
    let base = Arc::new(MemoryStore::new(geometry.store_bytes()));
    let mut model = Model::new(size);
    let mut dice = Dice::new(7);
    let mut random = |count: u64| -> Vec<Step> {
        let mut step = |fill| write(dice.below(size / 512 - 8) * 512, 512 + 3584 * dice.below(2), fill);
        (0..count).map(&mut step).collect()
    };
    run(async {
        volumes::format(base.clone(), geometry).await.unwrap();
        let volume = volumes::open(base.clone(), OpenMode::ReadWrite).await.unwrap();
        for step in random(1500) {
            model.ask(&step);
            history::apply(&volume, size, &step).await.unwrap();
        }
        volume.close().await.unwrap();
    });
    let content = run(async {
        let volume = volumes::open(base.clone(), OpenMode::ReadOnly).await.unwrap();
        volumes::read_all(&volume).await
    });
    model.prefix_found(&content, Survived::ProcessDeath).unwrap();
    let mut cuts = Dice::new(8);
    for round in 0..10 {
        let store = Arc::new(base.snapshot());
        let nth = cuts.below(700);
        store.freeze_at(nth);
        let mut model = Model::holding(&content);
        run(async {
            let volume = volumes::open(store.clone(), OpenMode::ReadWrite).await;
            if let Ok(volume) = volume {
                for step in random(600) {
                    model.ask(&step);
                    if history::apply(&volume, size, &step).await.is_err() {
                        break;
                    }
                    model.answered(&step);
                }
            }
            for how in Left::cases(round, 1) {
                let when = format!("round {round}, cut at {nth}, left {how:?}");
                judge(&how.of(&store), &model, Survived::PowerCut, &when).await;
            }
            let dead = Arc::new(store.snapshot());
            judge(&dead, &model, Survived::ProcessDeath, &format!("round {round}, cut at {nth}")).await;
        });
    }
}

#[test]
fn a_volume_opens_however_many_sessions_died_before() {
    // Each makes one change and dies before it could fold its log in. Trims are let at the last slots.
    for trims in [false, true] {
        let mut store = fresh();
        let mut model = Model::new(SIZE);
        for session in 0..100u64 {
            let when = format!("session {session}, trims {trims}");
            run(async {
                let (volume, _) = judge(&store, &model, Survived::ProcessDeath, &when).await;
                let step = match trims {
                    true => Step::Trim { offset: session * SECTOR, len: SECTOR, durable: false },
                    false => write(session * SECTOR, SECTOR, session),
                };
                model.ask(&step);
                history::apply(&volume, SIZE, &step).await.unwrap_or_else(|error| panic!("{when}: {error}"));
                model.answered(&step);
            });
            store = Arc::new(store.snapshot());
        }
    }
}
