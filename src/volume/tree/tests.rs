//! Leaves of the index where the store has to be waited for.

use tokio::time::Instant;

use super::*;
use crate::export::{Durability, Export, ZeroMode};
use crate::geometry::{ByteRange, SECTOR_BYTES, SECTOR_LEN};
use crate::payload::Payload;
use crate::volume::Volume;
use crate::volume::create::Geometry;
use crate::volume::read::tests::{DISTANCE, Distant};
use crate::volume::reclaim::Reclaimer;
use crate::volume::reclaim::tests::fresh_on;

const LEAVES: u64 = 256;
const SIZE: u64 = LEAVES * FANOUT as u64 * SECTOR_BYTES;
/// Far less than one after the other takes.
const SOON: u32 = 20;

async fn distant() -> Volume {
    let geometry = Geometry::for_export(SIZE).unwrap();
    fresh_on(Distant::new(&geometry), geometry).await
}

fn sector(leaf: u64, index: u64) -> ByteRange {
    ByteRange::within((leaf * FANOUT as u64 + index) * SECTOR_BYTES, SECTOR_BYTES, SIZE).unwrap()
}

/// Writes one sector in each leaf.
async fn write_each(volume: &Volume, index: u64, fill: u8) {
    for leaf in 0..LEAVES {
        let payload = Payload::copy_of(sector(leaf, index), &[fill; SECTOR_LEN]);
        volume.write(payload, Durability::Accepted).await.unwrap();
    }
}

/// Whether each leaf says that its sector has this content.
async fn each_is(volume: &Volume, index: u64, fill: u8) -> bool {
    let mut data = [0xee; SECTOR_LEN];
    for leaf in 0..LEAVES {
        volume.read(sector(leaf, index), &mut data).await.unwrap();
        if data != [fill; SECTOR_LEN] {
            return false;
        }
    }
    true
}

/// As if other pages had been asked for since.
fn forget_all(volume: &Volume) {
    volume.core.pages.limit(0);
    assert_eq!(volume.core.pages.bytes().0, 0);
    volume.core.pages.limit(CACHE_BYTES);
}

#[tokio::test(start_paused = true)]
async fn pages_that_a_checkpoint_wrote_are_in_memory() {
    let volume = distant().await;
    for fill in [1, 2] {
        write_each(&volume, 0, fill).await;
        volume.checkpoint().await.unwrap();
        let began = Instant::now();
        assert!(each_is(&volume, 0, fill).await);
        // Nothing but the records.
        assert_eq!(began.elapsed(), DISTANCE * u32::try_from(LEAVES).unwrap());
    }
    // They are what the store has.
    forget_all(&volume);
    assert!(each_is(&volume, 0, 2).await);
}

#[tokio::test(start_paused = true)]
async fn leaves_that_a_checkpoint_changes_are_fetched_together() {
    let volume = distant().await;
    write_each(&volume, 0, 1).await;
    volume.checkpoint().await.unwrap();
    write_each(&volume, 1, 2).await;
    forget_all(&volume);
    let began = Instant::now();
    volume.checkpoint().await.unwrap();
    assert!(began.elapsed() < DISTANCE * SOON, "{:?} for {LEAVES} leaves", began.elapsed());
    assert!(each_is(&volume, 0, 1).await && each_is(&volume, 1, 2).await);
}

#[tokio::test(start_paused = true)]
async fn leaves_of_what_was_trimmed_are_fetched_together() {
    let volume = distant().await;
    write_each(&volume, 0, 1).await;
    volume.checkpoint().await.unwrap();
    let live = volume.status().space.live_bytes;
    assert!(live > 0);
    let all = ByteRange::within(0, SIZE, SIZE).unwrap();
    volume.write_zeroes(all, ZeroMode::MayPunch, Durability::Accepted).await.unwrap();
    forget_all(&volume);
    let began = Instant::now();
    volume.checkpoint().await.unwrap();
    assert!(began.elapsed() < DISTANCE * SOON, "{:?} for {LEAVES} leaves", began.elapsed());
    assert!(each_is(&volume, 0, 0).await);
    assert!(volume.check(true, |_| ()).await.unwrap().is_clean());
}

#[tokio::test(start_paused = true)]
async fn leaves_of_what_may_be_moved_are_fetched_together() {
    const INDEXES: u64 = 16;
    let volume = distant().await;
    for index in 0..INDEXES {
        write_each(&volume, index, 1).await;
    }
    for index in (0..INDEXES).filter(|index| index % 8 > 0) {
        write_each(&volume, index, 2).await;
    }
    volume.checkpoint().await.unwrap();
    let mut reclaimer = Reclaimer::default();
    // Reads the headers of what it empties.
    reclaimer.step(&volume.core).await.unwrap();
    forget_all(&volume);
    let began = Instant::now();
    reclaimer.step(&volume.core).await.unwrap();
    assert!(began.elapsed() < DISTANCE * SOON, "{:?}", began.elapsed());
    let moved: u64 = volume.core.moves().moves.iter().map(|moved| moved.sectors.count).sum();
    assert!(moved > 300, "{moved} moved");
}
