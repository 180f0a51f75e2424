//! No offset of a segment is ever sealed twice with different bytes (docs/FORMAT.md §3 R1–R3, §16 I3):
//! not by retries after failures, not by later sessions, not by two futures of one snapshot.
//!
//! Everything runs on one thread, where a chunk is handed to the store in the order it was composed;
//! so the watching store knows which segment a slot holds when bytes for it arrive.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "common/faults.rs"]
mod faults;
#[path = "common/volume_history.rs"]
mod history;
#[path = "common/volumes.rs"]
mod volumes;

use std::sync::Arc;

use faults::{Faults, FaultyStore, Landing, Ledger};
use history::{Dice, Step};
use proptest::prelude::*;
use sealbd::store::memory::MemoryStore;
use sealbd::volume::OpenMode;
use sealbd::volume::create::Geometry;

const SIZE: u64 = 1 << 20;
/// Where the segments start, and their length.
const DATA: (u64, u64) = (2 << 20, 2 << 20);

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Plays steps, with random failures of the store in between; sessions end and begin as told.
async fn play(store: &Arc<FaultyStore>, steps: &[Step], dice: &mut Dice) {
    let nobody = Arc::strong_count(store);
    let Ok(mut volume) = volumes::open(store.clone(), OpenMode::ReadWrite).await else { return };
    for step in steps {
        if dice.below(4) == 0 {
            let landing = [Landing::Nothing, Landing::Half, Landing::Everything];
            let landing = landing[usize::try_from(dice.below(3)).unwrap()];
            let faults = Faults::all_writes().landing(landing).after(dice.below(3));
            store.set(if dice.below(2) == 0 { faults.no_space() } else { faults });
        } else {
            store.heal();
        }
        if matches!(step, Step::Close | Step::Reopen) {
            store.heal();
            let _ = if matches!(step, Step::Close) { volume.close().await } else { Ok(()) };
            drop(volume);
            over(store, nobody).await;
            volume = volumes::open(store.clone(), OpenMode::ReadWrite).await.unwrap();
            continue;
        }
        // Together with a second change, so that chunks fail behind one another.
        let other = Step::Write { offset: dice.below(SIZE - 9000), len: 9000, fill: 5, durable: false };
        let _ = tokio::join!(history::apply(&volume, SIZE, step), history::apply(&volume, SIZE, &other));
    }
    store.heal();
    drop(volume);
    over(store, nobody).await;
}

/// Waits for the end of what a session that was dropped still had under way: a repair, or a root. No other one
/// may begin before that; between processes the lock of the store sees to it.
async fn over(store: &Arc<FaultyStore>, nobody: usize) {
    while Arc::strong_count(store) > nobody {
        tokio::task::yield_now().await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn nothing_is_sealed_twice_across_failures_sessions_and_forks(
        before in proptest::collection::vec(history::step(SIZE), 1..20),
        after in proptest::collection::vec(history::step(SIZE), 1..12),
        seed: u64,
    ) {
        run(async {
            let ledger = Arc::new(Ledger::default());
            let mut dice = Dice::new(seed);
            let geometry = Geometry::for_export(SIZE).unwrap();
            let memory = Arc::new(MemoryStore::new(geometry.store_bytes()));
            let store = FaultyStore::watched(memory, &ledger, DATA);
            volumes::format(store.clone(), geometry).await.unwrap();
            play(&store, &before, &mut dice).await;
            // Three futures of the same past: two the same, one after a power cut, and the past itself.
            let cut = store.inner.crash(&mut |bound| dice.below(bound));
            for fork in [store.inner.snapshot(), store.inner.snapshot(), cut] {
                let fork = FaultyStore::watched(Arc::new(fork), &ledger, DATA);
                play(&fork, &after, &mut Dice::new(seed)).await;
            }
            play(&store, &after, &mut Dice::new(seed)).await;
            assert!(ledger.segments() > 4 && ledger.blocks() > 8, "the ledger sees what is written");
        });
    }
}
