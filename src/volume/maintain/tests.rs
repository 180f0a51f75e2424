//! When a checkpoint is due, and whom a want of room is told.

use std::sync::Arc;

use bytes::BytesMut;
use keymgmt::keyfile::Keyfile;
use keymgmt::secret::Secret32;

use super::*;
use crate::cipher::Engine;
use crate::export::{Durability, Export, ExportError};
use crate::format::chunk::Op;
use crate::geometry::{ByteRange, Lba, SectorRange};
use crate::payload::{Payload, RECORD_LEN};
use crate::store::SlotStore;
use crate::store::memory::MemoryStore;
use crate::volume::create::{Geometry, NewVolume};
use crate::volume::queue::Completion;
use crate::volume::unlock::read_header;
use crate::volume::{OpenMode, Volume};

const SIZE: u64 = 16 << 20;

fn manager() -> Keyfile {
    Keyfile::from_secret(Secret32::take(&mut [7; 32]))
}

async fn format() -> MemoryStore {
    let geometry = Geometry::for_export(SIZE).unwrap();
    let store = Arc::new(MemoryStore::new(geometry.store_bytes()));
    let mut new = NewVolume::prepare(geometry, 512, "maintain", Engine::default()).unwrap();
    new.add_key(&manager(), 0).await.unwrap();
    new.write(store.clone()).await.unwrap();
    store.snapshot()
}

async fn open(store: MemoryStore) -> (Arc<MemoryStore>, Volume) {
    let store = Arc::new(store);
    let header = read_header(&*store).await.unwrap();
    let unlocked = header.unlock(Engine::default(), &[Box::new(manager()) as _]).await.unwrap();
    let volume =
        Volume::open(store.clone() as Arc<dyn SlotStore>, unlocked, OpenMode::ReadWrite).await.unwrap();
    (store, volume)
}

#[tokio::test]
async fn the_log_of_sessions_that_died_counts_until_a_root_has_it() {
    const WRITTEN: u64 = 1 << 20;
    let mut left = format().await;
    for died in 0..3 {
        let (store, volume) = open(left).await;
        let replayed = volume.core.queue().replayed_bytes;
        assert!(
            (died * WRITTEN..=died * (WRITTEN + WRITTEN / 8)).contains(&replayed),
            "{replayed} after {died}"
        );
        let range = ByteRange::within(died * WRITTEN, WRITTEN, SIZE).unwrap();
        let payload = Payload::copy_of(range, &vec![5; usize::try_from(WRITTEN).unwrap()]);
        volume.write(payload, Durability::Accepted).await.unwrap();
        let unfolded = volume.core.queue().unfolded_bytes();
        assert!(unfolded >= (died + 1) * WRITTEN, "{unfolded} after {died}");
        left = store.snapshot();
    }
    let (_, volume) = open(left).await;
    volume.checkpoint().await.unwrap();
    assert_eq!(volume.core.queue().unfolded_bytes(), 0);
}

#[tokio::test]
async fn replayed_log_brings_a_checkpoint_as_written_log_does() {
    let (_, volume) = open(format().await).await;
    let core = &volume.core;
    assert!(!core.needs_maintenance(&core.queue()));
    core.queue().replayed_bytes = CHECKPOINT_BYTES / 2;
    assert!(!core.needs_maintenance(&core.queue()));
    core.queue().unrooted_bytes = CHECKPOINT_BYTES / 2;
    assert!(core.needs_maintenance(&core.queue()));
}

/// A judgement that began before a TRIM once told writes behind that TRIM that there was no room.
#[tokio::test]
async fn a_write_that_came_after_a_judgement_began_is_not_refused_by_it() {
    let (_, volume) = open(format().await).await;
    let core = &volume.core;
    let sector = |lba| SectorRange::new(Lba(lba), 1);
    let records = || BytesMut::from(&[7; RECORD_LEN][..]);
    let mut rounds = Rounds::new(Instant::now());
    let (before, behind) = {
        let mut queue = core.queue();
        queue.stalled = true;
        let (done, before) = Completion::new();
        queue.push(sector(1), Op::Write, records(), done);
        rounds.judged_before = queue.next_number;
        let (done, behind) = Completion::new();
        queue.push(sector(2), Op::Write, records(), done);
        (before, behind)
    };
    core.no_room(&mut rounds).await;
    assert!(matches!(before.await.unwrap(), Err(ExportError::NoSpace(_))));
    assert_eq!(behind.await.unwrap(), Ok(core.queue().completed_seq()));
    assert_eq!(rounds.rooted, 0, "what comes now is judged anew");
}

#[tokio::test]
async fn a_flush_ahead_is_begun_once_there_is_enough_for_it() {
    let (_, volume) = open(format().await).await;
    let core = &volume.core;
    let write = |at: u64, len: u64| {
        let range = ByteRange::within(at, len, SIZE).unwrap();
        let payload = Payload::copy_of(range, &vec![5; usize::try_from(len).unwrap()]);
        volume.write(payload, Durability::Accepted)
    };
    write(0, FLUSH_BYTES_MOVING / 2).await.unwrap();
    core.flush_ahead();
    tokio::task::yield_now().await;
    assert!(core.queue().unflushed_bytes > 0, "there is little");
    write(FLUSH_BYTES_MOVING / 2, FLUSH_BYTES_MOVING / 2).await.unwrap();
    let written = core.queue().completed_seq();
    core.flush_ahead();
    while core.queue().durable_seq < written {
        tokio::task::yield_now().await;
    }
    assert_eq!(core.queue().unflushed_bytes, 0);
}
