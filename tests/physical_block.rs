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
/// Of several segments.
const LARGE: u64 = 16 << 20;

fn sector(number: u64) -> ByteRange {
    ByteRange::within(number * 4096, 4096, LARGE).unwrap()
}

/// What a sector holds that was written in a round.
fn content(number: u64, round: u64) -> Vec<u8> {
    vec![u8::try_from((number * 7 + round * 31) % 255).unwrap() + 1; 4096]
}

async fn write_in(round: u64, volume: &Volume, number: u64, durability: Durability) {
    volume.write(Payload::copy_of(sector(number), &content(number, round)), durability).await.unwrap();
}

async fn write(volume: &Volume, number: u64, durability: Durability) {
    write_in(0, volume, number, durability).await;
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
        let mut disk = Disk::new(LARGE).await;
        let mut volume = disk.open().await;
        let mut last = vec![0; usize::try_from(LARGE / 4096).unwrap()];
        let (mut moved, mut dice) = (0, 1u64);
        for round in 1..=4 {
            for step in 0..last.len() as u64 {
                // First all of it in order, then sectors in none, so that segments are live in part.
                dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let number = if round == 1 { step } else { (dice >> 33) % last.len() as u64 };
                let durable = step % 3 == 0;
                let durability = if durable { Durability::Durable } else { Durability::Accepted };
                write_in(round, &volume, number, durability).await;
                last[usize::try_from(number).unwrap()] = round;
            }
            moved += volume.status().moved_bytes_written;
            volume = disk.reopen().await;
            for (number, round) in (0..).zip(&last) {
                assert_eq!(read(&volume, sector(number)).await, content(number, *round), "sector {number}");
            }
        }
        assert!(moved > 0, "nothing was moved");
        let report = volume.check(true, |_| ()).await.unwrap();
        assert!(report.is_clean(), "{report:?}");
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
