//! Clients that flush after every few writes: slots are filled ahead of the log, and flushes stay on their thread.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "common/volumes.rs"]
mod volumes;

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use sealbd::export::{Durability, Export};
use sealbd::geometry::ByteRange;
use sealbd::payload::Payload;
use sealbd::store::memory::MemoryStore;
use sealbd::store::{BoxFuture, Capability, Persist, SlotStore, StoreError};
use sealbd::volume::create::Geometry;
use sealbd::volume::{OpenMode, Volume};

const EXPORT: u64 = 48 << 20;
const SEGMENT: u64 = 2 << 20;
/// Where the segments start; before it are headers and ring.
const DATA: u64 = 2 << 20;
const SECTOR: u64 = 4096;

/// How a write of zeros fails.
#[derive(Clone, Copy)]
enum Failure {
    NoSpace,
    Io,
}

/// A store that is asked to be written before it is used, and remembers what it is asked.
struct Noted {
    inner: Arc<MemoryStore>,
    /// Writes of nothing but zeros to segments: place and length.
    zeros: Mutex<Vec<(u64, u64)>>,
    /// Places of other writes.
    others: Mutex<Vec<u64>>,
    dropped: Mutex<Vec<(u64, u64)>>,
    failure: Option<Failure>,
    syncs_here: AtomicUsize,
}

impl Noted {
    fn slots_filled(&self) -> Vec<u64> {
        let mut slots: Vec<u64> =
            self.zeros.lock().unwrap().iter().map(|(at, _)| (at - DATA) / SEGMENT).collect();
        slots.dedup();
        slots
    }
}

impl SlotStore for Noted {
    fn capability(&self) -> Capability {
        Capability { prefers_written: true, ..self.inner.capability() }
    }

    fn describe(&self) -> String {
        "noted".into()
    }

    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'_, Result<Vec<u8>, StoreError>> {
        self.inner.read_at(offset, len)
    }

    fn write_at(
        &self,
        offset: u64,
        parts: Vec<Bytes>,
        persist: Persist,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        let len: usize = parts.iter().map(Bytes::len).sum();
        let fills = offset >= DATA && parts.iter().all(|part| part.iter().all(|byte| *byte == 0));
        if !fills {
            self.others.lock().unwrap().push(offset);
            return self.inner.write_at(offset, parts, persist);
        }
        assert_eq!(persist, Persist::Durable, "else a client's flush would have to wait for all of it");
        self.zeros.lock().unwrap().push((offset, len as u64));
        match self.failure {
            None => self.inner.write_at(offset, parts, persist),
            Some(Failure::NoSpace) => Box::pin(async { Err(StoreError::NoSpace) }),
            Some(Failure::Io) => Box::pin(async {
                let source = std::io::Error::from_raw_os_error(5);
                Err(StoreError::Io { context: "write to a noted store", source })
            }),
        }
    }

    fn try_sync(&self) -> Option<Result<(), StoreError>> {
        self.syncs_here.fetch_add(1, Ordering::Relaxed);
        self.inner.try_sync()
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.sync()
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        self.dropped.lock().unwrap().push((offset, len));
        self.inner.discard(offset, len)
    }
}

async fn fresh(failure: Option<Failure>) -> (Arc<Noted>, Volume) {
    let geometry = Geometry { export_bytes: EXPORT, segment_bytes: 2 << 20, slots: 40 };
    let store = Arc::new(Noted {
        inner: Arc::new(MemoryStore::new(geometry.store_bytes())),
        zeros: Mutex::default(),
        others: Mutex::default(),
        dropped: Mutex::default(),
        failure,
        syncs_here: AtomicUsize::new(0),
    });
    volumes::format(store.clone(), geometry).await.unwrap();
    let volume = volumes::open(store.clone(), OpenMode::ReadWrite).await.unwrap();
    store.others.lock().unwrap().clear();
    (store, volume)
}

/// Writes `sectors` sectors that tell who they are, from `sector` on.
async fn write(volume: &Volume, sector: u64, sectors: u64, durability: Durability) {
    let range = ByteRange::within(sector * SECTOR, sectors * SECTOR, EXPORT).unwrap();
    let mut payload = Payload::unfilled(range);
    payload.windows_mut().for_each(|window| window.fill(fill(sector)));
    volume.write(payload, durability).await.unwrap();
}

fn fill(sector: u64) -> u8 {
    sector.to_le_bytes()[0] | 1
}

/// Runs a future on one thread in virtual time, which goes on only when everybody waits.
fn run<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().unwrap().block_on(future)
}

/// Returns when nobody has anything left to do.
async fn everybody_rests() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// Writes and flushes one sector after the other; the background task has its turn.
async fn write_and_flush(volume: &Volume, sectors: std::ops::Range<u64>) {
    for sector in sectors {
        write(volume, sector, 1, Durability::Accepted).await;
        volume.flush().await.unwrap();
        if sector % 16 == 0 {
            everybody_rests().await;
        }
    }
}

async fn holds(volume: &Volume, sectors: std::ops::Range<u64>) {
    for sector in sectors {
        let range = ByteRange::within(sector * SECTOR, SECTOR, EXPORT).unwrap();
        let read = volumes::read(volume, range).await;
        assert!(read.iter().all(|byte| *byte == fill(sector)), "sector {sector}");
    }
}

#[test]
fn slots_are_filled_ahead_of_the_log_for_who_flushes_little_at_a_time() {
    run(async {
        let (store, volume) = fresh(None).await;
        write_and_flush(&volume, 0..2000).await;
        let filled = store.slots_filled();
        let written = store.zeros.lock().unwrap().iter().map(|(_, len)| len).sum::<u64>();
        assert_eq!(written, filled.len() as u64 * SEGMENT, "whole slots");
        // 2000 blocks of 8 KiB are eight segments.
        assert!((4..=12).contains(&filled.len()), "{filled:?}");
        let used: Vec<u64> =
            store.others.lock().unwrap().iter().map(|at| at.saturating_sub(DATA) / SEGMENT).collect();
        let used_later = filled.iter().filter(|slot| used.contains(slot)).count();
        // Two, and the one that the log has announced.
        assert!(used_later + 3 >= filled.len(), "filled {filled:?}, used {used:?}");
        // What a power cut leaves, between filled slots and others.
        let left = Arc::new(store.inner.crash(&mut |_| 0));
        drop(volume);
        let reopened = volumes::open(left, OpenMode::ReadWrite).await.unwrap();
        holds(&reopened, 0..2000).await;
        volumes::check(&reopened).await;
    });
}

#[test]
fn nothing_is_filled_for_who_flushes_much_at_a_time_or_not_at_all() {
    run(async {
        let (store, volume) = fresh(None).await;
        for at in 0..200 {
            write(&volume, at * 17, 17, Durability::Accepted).await;
            volume.flush().await.unwrap();
        }
        for sector in 0..2000 {
            write(&volume, sector, 1, Durability::Accepted).await;
        }
        everybody_rests().await;
        assert_eq!(store.slots_filled().len(), 0);
        // FUA is a flush as well.
        for sector in 0..100 {
            write(&volume, sector, 1, Durability::Durable).await;
        }
        everybody_rests().await;
        assert_eq!(store.slots_filled().len(), 2);
    });
}

#[test]
fn a_slot_for_which_there_is_no_space_is_given_back_and_no_other_is_tried() {
    run(async {
        let (store, volume) = fresh(Some(Failure::NoSpace)).await;
        write_and_flush(&volume, 0..1500).await;
        let zeros = store.zeros.lock().unwrap().clone();
        assert_eq!(zeros.len(), 1);
        assert_eq!(*store.dropped.lock().unwrap(), [(zeros[0].0, SEGMENT)]);
        holds(&volume, 0..1500).await;
    });
}

#[test]
fn a_slot_that_may_still_be_written_to_is_used_by_nobody() {
    run(async {
        let (store, volume) = fresh(Some(Failure::Io)).await;
        write_and_flush(&volume, 0..1500).await;
        let zeros = store.zeros.lock().unwrap().clone();
        assert_eq!(zeros.len(), 1);
        // So many more that every slot is used in turn.
        for round in 0..3 {
            for sector in 0..EXPORT / SECTOR {
                write(&volume, sector, 1, Durability::Accepted).await;
            }
            volume.flush().await.unwrap();
            let slot = zeros[0].0..zeros[0].0 + SEGMENT;
            let others = store.others.lock().unwrap();
            assert!(!others.iter().any(|at| slot.contains(at)), "round {round}");
        }
        holds(&volume, 0..EXPORT / SECTOR).await;
    });
}

#[test]
fn a_flush_leaves_its_thread_when_somebody_reads_besides() {
    run(async {
        let (store, volume) = fresh(None).await;
        let before = store.syncs_here.load(Ordering::Relaxed);
        write(&volume, 0, 1, Durability::Durable).await;
        let here = store.syncs_here.load(Ordering::Relaxed);
        assert_eq!(here, before + 1);
        write(&volume, 1, 1, Durability::Accepted).await;
        holds(&volume, 0..1).await;
        volume.flush().await.unwrap();
        assert_eq!(store.syncs_here.load(Ordering::Relaxed), here);
        write(&volume, 2, 1, Durability::Accepted).await;
        volume.flush().await.unwrap();
        assert_eq!(store.syncs_here.load(Ordering::Relaxed), here + 1);
    });
}
