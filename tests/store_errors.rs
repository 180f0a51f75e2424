//! Stores that fail, heal, and run full: requests get errors, nothing answered is lost, and the volume
//! goes on as far as it may (docs/FORMAT.md §15).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "common/faults.rs"]
mod faults;
#[path = "common/volume_history.rs"]
mod history;
#[path = "common/volumes.rs"]
mod volumes;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use faults::{Faults, FaultyStore, Landing};
use history::{Dice, SECTOR, Step};
use sealbd::export::{Export, ExportError};
use sealbd::geometry::ByteRange;
use sealbd::store::memory::MemoryStore;
use sealbd::volume::create::Geometry;
use sealbd::volume::unlock::write_header;
use sealbd::volume::{OpenMode, Volume};
use volumes::Disk;

const SIZE: u64 = 1 << 20;
/// Where the segments start; before it are headers and ring.
const DATA: u64 = 2 << 20;
/// The root ring: eight blocks behind the second header copy.
const RING: (u64, u64) = ((1 << 20) + (64 << 10), (1 << 20) + (96 << 10));

/// Runs to the end, or says that something waits for ever.
fn run<T>(future: impl Future<Output = T>) -> T {
    volumes::run(async {
        tokio::time::timeout(Duration::from_secs(60), future).await.expect("nothing hangs")
    })
}

async fn volume_on(store: &Arc<FaultyStore>) -> Volume {
    volumes::open(store.clone(), OpenMode::ReadWrite).await.unwrap()
}

async fn fresh() -> (Arc<FaultyStore>, Volume) {
    let store = FaultyStore::new(Disk::new(SIZE).await.store);
    let volume = volume_on(&store).await;
    (store, volume)
}

async fn write(volume: &Volume, offset: u64, len: u64, fill: u64) -> Result<(), ExportError> {
    let size = volume.info().size;
    history::apply(volume, size, &Step::Write { offset, len, fill, durable: false }).await
}

async fn holds(volume: &Volume, offset: u64, len: u64, fill: u64) -> bool {
    let range = ByteRange::within(offset, len, volume.info().size).unwrap();
    volumes::read(volume, range).await == history::pattern(fill, len)
}

/// A volume with as little room to spare as a large one has: beside the private reserve of eight slots
/// there is room for its data only if it is packed densely.
fn tight() -> Geometry {
    Geometry { export_bytes: 4 << 20, segment_bytes: 2 << 20, slots: 14 }
}

async fn tight_volume() -> (Arc<FaultyStore>, Volume) {
    let store = FaultyStore::new(Arc::new(MemoryStore::new(tight().store_bytes())));
    volumes::format(store.clone(), tight()).await.unwrap();
    let volume = volume_on(&store).await;
    (store, volume)
}

#[test]
fn overwriting_a_full_volume_ten_times_with_small_random_writes_keeps_working() {
    for unit in [4096, 512] {
        run(async {
            let (_, volume) = tight_volume().await;
            let size = tight().export_bytes;
            let mut dice = Dice::new(unit);
            let mut model = vec![0; usize::try_from(size).unwrap()];
            let in_order = (0..size / 4096).map(|lba| (lba * 4096, 4096));
            let random = (0..10 * size / 4096).map(|_| (dice.below(size / unit) * unit, unit));
            for (fill, (offset, len)) in (0..).zip(in_order.chain(random)) {
                let step = Step::Write { offset, len, fill, durable: false };
                let written = history::apply(&volume, size, &step).await;
                written.unwrap_or_else(|e| panic!("write {fill}: {e} {:?}", volume.status()));
                let at = usize::try_from(offset).unwrap();
                model[at..][..usize::try_from(len).unwrap()].copy_from_slice(&history::pattern(fill, len));
            }
            assert!(volumes::read_all(&volume).await == model);
            volumes::check(&volume).await;
        });
    }
}

#[test]
fn a_torn_ring_write_does_not_keep_the_volume_from_opening() {
    for landing in [Landing::Nothing, Landing::Half, Landing::Everything] {
        for (failures, roots) in [(1, 0), (1, 1), (2, 1), (3, 12)] {
            run(async {
                let (store, volume) = fresh().await;
                write(&volume, 0, 4096, 1).await.unwrap();
                store.set(Faults::writes(RING.0, RING.1).landing(landing));
                for fill in 0..failures {
                    write(&volume, 4096, 4096, fill).await.unwrap();
                    assert!(volume.checkpoint().await.is_err());
                }
                store.heal();
                for fill in 0..roots {
                    write(&volume, 8192, 4096, fill).await.unwrap();
                    volume.checkpoint().await.unwrap();
                }
                write(&volume, 12288, 512, 7).await.unwrap();
                volumes::check(&volume).await;
                // The process dies, also while it writes one more root.
                store.set(Faults::writes(RING.0, RING.1).landing(landing));
                for again in 0..2 {
                    let left = FaultyStore::new(Arc::new(store.inner.snapshot()));
                    let reopened = volumes::open(left, OpenMode::ReadWrite).await;
                    let when = format!("{landing:?} {failures} {roots} {again}");
                    let reopened = reopened.unwrap_or_else(|error| panic!("{when}: {error}"));
                    assert!(holds(&reopened, 0, 4096, 1).await, "{when}");
                    assert!(holds(&reopened, 4096, 4096, failures - 1).await, "{when}");
                    assert!(roots == 0 || holds(&reopened, 8192, 4096, roots - 1).await, "{when}");
                    assert!(holds(&reopened, 12288, 512, 7).await, "{when}");
                    volumes::check(&reopened).await;
                    assert!(volume.checkpoint().await.is_err());
                }
            });
        }
    }
}

#[test]
fn failing_checkpoints_use_up_no_room() {
    run(async {
        let (store, volume) = fresh().await;
        let slots = Geometry::for_export(SIZE).unwrap().slots;
        write(&volume, 0, 4096, 1).await.unwrap();
        volume.checkpoint().await.unwrap();
        // Index segments lie behind the first slots; the log is not disturbed: it is not written.
        for faults in [Faults::writes(DATA, u64::MAX), Faults::writes(DATA, u64::MAX).no_space()] {
            store.set(faults);
            for _ in 0..3 * slots {
                assert!(volume.checkpoint().await.is_err());
            }
            store.heal();
            volume.checkpoint().await.unwrap();
            write(&volume, 4096, 4096, 2).await.unwrap();
            volumes::check(&volume).await;
        }
        store.set(Faults::writes(RING.0, RING.1));
        for _ in 0..3 * slots {
            assert!(volume.checkpoint().await.is_err());
        }
        store.heal();
        volume.checkpoint().await.unwrap();
        assert!(holds(&volume, 4096, 4096, 2).await);
        volumes::check(&volume).await;
    });
}

#[test]
fn a_failed_chunk_write_is_told_and_nothing_answered_is_lost() {
    for landing in [Landing::Nothing, Landing::Half, Landing::Everything] {
        for no_space in [false, true] {
            for after in 0..3 {
                run(async {
                    let (store, volume) = fresh().await;
                    write(&volume, 0, 8192, 1).await.unwrap();
                    let mut faults = Faults::writes(DATA, u64::MAX).landing(landing).after(after);
                    faults.no_space = no_space;
                    store.set(faults);
                    let mut last = 1;
                    let error = loop {
                        match write(&volume, 0, 8192, last + 1).await {
                            Ok(()) => last += 1,
                            Err(error) => break error,
                        }
                    };
                    assert_eq!(last, 1 + after);
                    assert_eq!(matches!(error, ExportError::NoSpace(_)), no_space, "{error}");
                    // As long as it lasts: the same error, and reads of what was answered.
                    assert!(write(&volume, 16384, 512, 9).await.is_err());
                    assert!(holds(&volume, 0, 8192, last).await);
                    store.heal();
                    write(&volume, 4096, 4096, 50).await.unwrap();
                    // The failed write must not come back over it.
                    for left in [store.inner.snapshot(), store.inner.crash(&mut |_| 1)] {
                        let left = FaultyStore::new(Arc::new(left));
                        let reopened = volume_on(&left).await;
                        assert!(holds(&reopened, 4096, 4096, 50).await, "{landing:?} {after}");
                        let first = ByteRange::within(0, 4096, SIZE).unwrap();
                        assert_eq!(
                            volumes::read(&reopened, first).await,
                            history::pattern(last, 8192)[..4096]
                        );
                        volumes::check(&reopened).await;
                    }
                    volume.flush().await.unwrap();
                    let left = FaultyStore::new(Arc::new(store.inner.crash(&mut |_| 0)));
                    let reopened = volume_on(&left).await;
                    assert!(holds(&reopened, 4096, 4096, 50).await);
                    volumes::check(&volume).await;
                    volume.close().await.unwrap();
                });
            }
        }
    }
}

#[test]
fn concurrent_writers_survive_an_outage_with_what_was_answered() {
    for seed in 0..6 {
        run(async {
            let (store, volume) = fresh().await;
            let mut writers = Vec::new();
            for writer in 0..8u64 {
                let volume = volume.clone();
                writers.push(tokio::spawn(async move {
                    // What the sector may hold: the last answered write or a failed one behind it.
                    let mut allowed = vec![None];
                    for round in 0..60u64 {
                        let fill = (writer << 32) | round;
                        let (offset, len) = (writer * 65536 + 512 * (round % 3), 4096);
                        if round % 3 == 0 {
                            match write(&volume, offset, len, fill).await {
                                Ok(()) => allowed = vec![Some(fill)],
                                Err(_) => allowed.push(Some(fill)),
                            }
                        } else {
                            // Neighbours, to have read-merge-writes under way.
                            let _ = write(&volume, offset + 8192, 700, fill).await;
                        }
                        tokio::task::yield_now().await;
                    }
                    allowed
                }));
            }
            let mut dice = Dice::new(seed);
            for _ in 0..6 {
                for _ in 0..dice.below(40) {
                    tokio::task::yield_now().await;
                }
                let landing = [Landing::Nothing, Landing::Half, Landing::Everything];
                let landing = landing[usize::try_from(dice.below(3)).unwrap()];
                store.set(Faults::all_writes().landing(landing).after(dice.below(4)));
                for _ in 0..dice.below(40) {
                    tokio::task::yield_now().await;
                }
                store.heal();
            }
            let mut allowed = Vec::new();
            for writer in writers {
                allowed.push(writer.await.unwrap());
            }
            write(&volume, SIZE - 4096, 4096, 1).await.unwrap();
            volumes::check(&volume).await;
            let left = FaultyStore::new(Arc::new(store.inner.snapshot()));
            for volume in [volume, volume_on(&left).await] {
                for (writer, allowed) in (0u64..).zip(&allowed) {
                    let range = ByteRange::within(writer * 65536, 4096, SIZE).unwrap();
                    let found = volumes::read(&volume, range).await;
                    let fits = |fill: &Option<u64>| {
                        fill.map_or(vec![0; 4096], |fill| history::pattern(fill, 4096)) == found
                    };
                    assert!(allowed.iter().any(fits), "seed {seed}: writer {writer}");
                }
                volumes::check(&volume).await;
            }
        });
    }
}

#[test]
fn a_failed_flush_stops_changes_but_not_reads_and_the_flushed_state_opens() {
    run(async {
        let (store, volume) = fresh().await;
        write(&volume, 0, 4096, 1).await.unwrap();
        volume.flush().await.unwrap();
        write(&volume, 4096, 4096, 2).await.unwrap();
        store.set(Faults::syncs());
        assert!(matches!(volume.flush().await, Err(ExportError::Io(_))));
        // Even when the store says that it is well again: what it lost is lost.
        store.heal();
        assert!(matches!(volume.flush().await, Err(ExportError::Io(_))));
        assert!(matches!(write(&volume, 8192, 4096, 3).await, Err(ExportError::Io(_))));
        assert!(volume.checkpoint().await.is_err());
        assert!(holds(&volume, 0, 4096, 1).await && holds(&volume, 4096, 4096, 2).await);
        let changes = store.inner.change_count();
        assert!(volume.close().await.is_err());
        assert_eq!(store.inner.change_count(), changes, "a stopped volume writes nothing more");
        let left = FaultyStore::new(Arc::new(store.inner.crash(&mut |_| 0)));
        let reopened = volume_on(&left).await;
        assert!(holds(&reopened, 0, 4096, 1).await);
        volumes::check(&reopened).await;
    });
}

#[test]
fn a_failed_sync_inside_a_checkpoint_is_fail_stop_too() {
    for after in 0..2 {
        run(async {
            let (store, volume) = fresh().await;
            write(&volume, 0, 4096, 1).await.unwrap();
            store.set(Faults::syncs().after(after));
            assert!(volume.checkpoint().await.is_err());
            store.heal();
            assert!(volume.flush().await.is_err(), "sync {after}: nothing more is promised");
            assert!(write(&volume, 0, 4096, 2).await.is_err());
            assert!(holds(&volume, 0, 4096, 1).await);
        });
    }
}

#[test]
fn trim_works_on_a_full_volume_and_brings_room_back() {
    run(async {
        // Less room than data: 8 MiB of export on ten slots for use.
        let geometry = Geometry { export_bytes: 24 << 20, segment_bytes: 2 << 20, slots: 16 };
        let store = FaultyStore::new(Arc::new(MemoryStore::new(geometry.store_bytes())));
        volumes::format(store.clone(), geometry).await.unwrap();
        let volume = volume_on(&store).await;
        for round in 0..3u64 {
            let mut written = Vec::new();
            let error = loop {
                let offset = written.len() as u64 * 65536;
                let fill = (round << 32) | offset;
                assert!(offset < geometry.export_bytes, "the volume is never full");
                match write(&volume, offset, 65536, fill).await {
                    Ok(()) => written.push((offset, fill)),
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, ExportError::NoSpace(_)), "{error}");
            assert!(written.len() > 40, "room for {} only", written.len());
            for (offset, fill) in &written {
                assert!(holds(&volume, *offset, 65536, *fill).await, "round {round}: {offset}");
            }
            volume.flush().await.unwrap();
            // Trims queued together with writes that find no room go on all the same.
            let trim = Step::Trim { offset: 0, len: geometry.export_bytes, durable: false };
            let (write, trim) = tokio::join!(
                write(&volume, 20 << 20, 65536, 1),
                history::apply(&volume, geometry.export_bytes, &trim)
            );
            drop(write);
            trim.unwrap();
            volumes::check(&volume).await;
        }
        volume.close().await.unwrap();
        let reopened = volume_on(&store).await;
        volumes::check(&reopened).await;
    });
}

#[test]
fn closing_answers_every_writer_and_ends_all_writing() {
    for seed in 0..20 {
        run(async {
            let (store, volume) = fresh().await;
            let mut writers = Vec::new();
            for writer in 0..8u64 {
                let volume = volume.clone();
                writers.push(tokio::spawn(async move {
                    let mut answered = None;
                    for round in 0..100u64 {
                        let offset = writer * 4096 + 512 * (round % 2) * (writer % 2);
                        let fill = (writer << 32) | round;
                        if write(&volume, writer * 8192 + offset % 4096, 4096, fill).await.is_err() {
                            return (answered, Some(fill));
                        }
                        answered = Some(fill);
                    }
                    (answered, None)
                }));
            }
            for _ in 0..seed * 3 {
                tokio::task::yield_now().await;
            }
            volume.close().await.unwrap();
            let changes = store.inner.change_count();
            for writer in writers {
                writer.await.unwrap();
            }
            assert_eq!(store.inner.change_count(), changes);
            volume.close().await.unwrap();
            let reopened = volume_on(&store).await;
            volumes::check(&reopened).await;
        });
    }
}

/// On one thread, so that what the first poll began cannot have ended by the time that it is dropped.
#[tokio::test]
async fn a_dropped_writer_does_not_take_the_lead_with_it() {
    let (_, volume) = fresh().await;
    // Polled once: the commit that it started has not composed yet.
    let mut first = Box::pin(write(&volume, 0, 4096, 1));
    assert!(futures_util::poll!(first.as_mut()).is_pending());
    drop(first);
    let second = tokio::time::timeout(Duration::from_secs(10), write(&volume, 4096, 4096, 2)).await;
    second.expect("somebody leads").unwrap();
    assert!(holds(&volume, 4096, 4096, 2).await);
}

#[test]
fn a_dropped_checkpoint_stops_the_volume_and_loses_nothing() {
    run(async {
        let (store, volume) = fresh().await;
        write(&volume, 0, 4096, 1).await.unwrap();
        let mut checkpoint = Box::pin(volume.checkpoint());
        assert!(futures_util::poll!(checkpoint.as_mut()).is_pending());
        drop(checkpoint);
        assert!(write(&volume, 4096, 4096, 2).await.is_err());
        assert!(volume.checkpoint().await.is_err());
        assert!(holds(&volume, 0, 4096, 1).await);
        let reopened = volume_on(&FaultyStore::new(Arc::new(store.inner.snapshot()))).await;
        assert!(holds(&reopened, 0, 4096, 1).await);
    });
}

#[test]
fn a_header_update_tried_again_after_a_failure_never_overwrites_the_only_good_copy() {
    for landing in [Landing::Nothing, Landing::Half, Landing::Everything] {
        for after in 0..2 {
            run(async {
                let store = FaultyStore::new(Disk::new(SIZE).await.store);
                let mut unlocked = volumes::unlock(&*store).await.unwrap();
                // Two tries fail, and the power goes during the third.
                for _ in 0..2 {
                    store.set(Faults::writes(0, DATA).landing(landing).after(after));
                    assert!(write_header(&*store, &mut unlocked.header, &unlocked.keys).await.is_err());
                }
                store.heal();
                for nth in 0..5 {
                    let cut = Arc::new(store.inner.snapshot());
                    cut.freeze_at(nth);
                    let mut again = volumes::unlock(&*cut).await.unwrap();
                    let done = write_header(&*cut, &mut again.header, &again.keys).await.is_ok();
                    assert_eq!(done, !cut.is_frozen());
                    for seed in 0..8 {
                        let mut dice = Dice::new(seed);
                        let left = cut.crash(&mut |bound| dice.below(bound));
                        let opened = volumes::open(Arc::new(left), OpenMode::ReadWrite).await;
                        opened.unwrap_or_else(|error| panic!("{landing:?} {after} {nth} {seed}: {error}"));
                    }
                }
            });
        }
    }
}

#[test]
fn concurrent_writers_on_a_volume_with_little_room_all_end() {
    for seed in 0..3 {
        run(async {
            let (store, volume) = tight_volume().await;
            let size = tight().export_bytes;
            let mut writers = Vec::new();
            for writer in 0..8u64 {
                let volume = volume.clone();
                writers.push(tokio::spawn(async move {
                    let mut dice = Dice::new((seed << 8) | writer);
                    let mut model: HashMap<u64, u64> = HashMap::new();
                    for round in 0..400u64 {
                        // Sectors of its own, all over the volume.
                        let offset = (dice.below(size / SECTOR / 8) * 8 + writer) * SECTOR;
                        let fill = (writer << 32) | round;
                        if dice.below(10) == 0 {
                            let step = Step::Trim { offset, len: SECTOR, durable: round % 2 == 0 };
                            history::apply(&volume, size, &step).await.unwrap();
                            model.remove(&offset);
                        } else {
                            write(&volume, offset, SECTOR, fill).await.unwrap();
                            model.insert(offset, fill);
                        }
                        if dice.below(50) == 0 {
                            volume.checkpoint().await.unwrap();
                        }
                    }
                    model
                }));
            }
            let mut models = Vec::new();
            for writer in writers {
                models.push(writer.await.unwrap());
            }
            volumes::check(&volume).await;
            let left = FaultyStore::new(Arc::new(store.inner.snapshot()));
            for volume in [volume, volume_on(&left).await] {
                for (offset, fill) in models.iter().flatten() {
                    assert!(holds(&volume, *offset, SECTOR, *fill).await, "seed {seed}: {offset}");
                }
                volumes::check(&volume).await;
            }
        });
    }
}

/// The emptiest segments may hold nothing but sectors that waiting writes are about to replace.
#[test]
fn overwriting_a_full_aged_volume_in_sequence_never_runs_out_of_room() {
    const LARGE: u64 = 64 << 20;
    const PIECE: u64 = 1 << 20;
    run(async {
        let disk = Disk::new(LARGE).await;
        let volume = disk.open().await;
        let write = |volume: Volume, offset: u64, len: u64| async move {
            let range = ByteRange::within(offset, len, LARGE).unwrap();
            let payload = sealbd::payload::Payload::zeroed(range);
            volume.write(payload, sealbd::export::Durability::Accepted).await
        };
        for offset in (0..LARGE).step_by(usize::try_from(PIECE).unwrap()) {
            write(volume.clone(), offset, PIECE).await.unwrap();
        }
        let mut dice = Dice::new(11);
        for _ in 0..1000 {
            let writes = (0..32).map(|_| write(volume.clone(), dice.below(LARGE / SECTOR) * SECTOR, SECTOR));
            for written in futures_util::future::join_all(writes).await {
                written.unwrap();
            }
        }
        for lap in 0..6 {
            for first in (0..LARGE).step_by(usize::try_from(8 * PIECE).unwrap()) {
                let writes = (0..8).map(|i| write(volume.clone(), first + i * PIECE, PIECE));
                for written in futures_util::future::join_all(writes).await {
                    assert_eq!(written, Ok(()), "lap {lap}, {first}");
                }
            }
        }
        volumes::check(&volume).await;
    });
}
