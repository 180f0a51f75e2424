//! Chunks share physical blocks until one of them is flushed, and no longer (docs/FORMAT.md §6).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "common/anatomy.rs"]
mod anatomy;
#[path = "common/volumes.rs"]
mod volumes;

use std::sync::Arc;

use anatomy::Anatomy;
use sealbd::export::{Durability, Export};
use sealbd::format::segment::PHYSICAL_BLOCK;
use sealbd::geometry::ByteRange;
use sealbd::payload::Payload;
use sealbd::store::SlotStore;
use sealbd::store::memory::MemoryStore;
use sealbd::volume::create::Geometry;
use sealbd::volume::{OpenMode, Volume, VolumeError};
use volumes::{Disk, format, open, read, run};

const SIZE: u64 = 1 << 20;

fn sector(number: u64) -> ByteRange {
    ByteRange::within(number * 4096, 4096, SIZE).unwrap()
}

fn content(number: u64) -> Vec<u8> {
    vec![u8::try_from(number).unwrap() + 1; 4096]
}

async fn write(volume: &Volume, number: u64, durability: Durability) {
    volume.write(Payload::copy_of(sector(number), &content(number)), durability).await.unwrap();
}

/// Where the chunks of the log lie: start and end.
async fn chunks(store: &MemoryStore) -> Vec<(u64, u64)> {
    let log = Anatomy::of(store).await.log;
    log.iter().map(|chunk| (chunk.place.offset, chunk.place.offset + chunk.place.len as u64)).collect()
}

#[test]
fn chunks_share_a_block_until_one_of_them_is_flushed() {
    run(async {
        let disk = Disk::new(SIZE).await;
        let volume = disk.open().await;
        for number in 0..3 {
            write(&volume, number, Durability::Accepted).await;
        }
        volume.flush().await.unwrap();
        write(&volume, 3, Durability::Accepted).await;
        write(&volume, 4, Durability::Durable).await;
        write(&volume, 5, Durability::Accepted).await;
        let found = chunks(&disk.store).await;
        let [a, b, c, d, e, f] = found[..] else { panic!("six chunks: {found:?}") };
        assert!(a.1 == b.0 && b.1 == c.0 && d.1 == e.0, "unflushed ones stand side by side: {found:?}");
        assert!(!a.1.is_multiple_of(PHYSICAL_BLOCK), "or there is nothing to share: {found:?}");
        assert_eq!(d.0, c.1.next_multiple_of(PHYSICAL_BLOCK), "a flush ends the block: {found:?}");
        assert_eq!(f.0, e.1.next_multiple_of(PHYSICAL_BLOCK), "so does FUA: {found:?}");
        assert_ne!(c.1, d.0);
    });
}

#[test]
fn a_log_with_gaps_is_read_to_its_end_and_reclaimed() {
    run(async {
        let mut disk = Disk::new(SIZE).await;
        let mut volume = disk.open().await;
        // Ten times its size, so that what is read and moved has gaps, too.
        for round in 0..10 {
            for number in 0..250 {
                let durable = (number + round) % 3 == 0;
                write(&volume, number, if durable { Durability::Durable } else { Durability::Accepted })
                    .await;
            }
            volume = disk.reopen().await;
            for number in 0..250 {
                assert_eq!(read(&volume, sector(number)).await, content(number), "round {round}");
            }
        }
    });
}

#[test]
fn a_store_that_takes_no_writes_as_short_is_refused() {
    run(async {
        let geometry = Geometry::for_export(SIZE).unwrap();
        let store = Arc::new(MemoryStore::new(geometry.store_bytes()));
        format(store.clone(), geometry).await.unwrap();
        let coarse = Arc::new(store.snapshot().with_write_unit(4096));
        let before = coarse.change_count();
        let refused = open(coarse.clone(), OpenMode::ReadWrite).await.err().unwrap();
        assert!(matches!(refused, VolumeError::StoreUnit { align: 512, unit: 4096 }), "{refused}");
        assert_eq!(coarse.change_count(), before);
        // Reading needs no writes.
        open(coarse, OpenMode::ReadOnly).await.unwrap();
        assert_eq!(store.capability().write_unit, 512);
    });
}
