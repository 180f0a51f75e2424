//! `Volume::check` and `Volume::salvage`: every damage is named with its structure, its place and the sectors that it
//! takes, beside writers as well; and what is copied is what was written.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking; its sizes are small"
)]

#[path = "common/anatomy.rs"]
mod anatomy;
#[path = "common/forge.rs"]
mod forge;
#[path = "common/volumes.rs"]
mod volumes;

#[path = "check/beside_writers.rs"]
mod beside_writers;
#[path = "check/salvage.rs"]
mod salvage;
#[path = "check/structures.rs"]
mod structures;

use std::sync::Arc;

use sealbd::export::{Durability, Export};
use sealbd::geometry::ByteRange;
use sealbd::payload::Payload;
use sealbd::store::memory::MemoryStore;
use sealbd::volume::Volume;
use sealbd::volume::check::CheckReport;
use sealbd::volume::salvage::Salvaged;
use volumes::Disk;

const SIZE: u64 = 8 << 20;
const SECTORS: u64 = SIZE / 4096;

fn sectors(lba: u64, count: u64) -> ByteRange {
    ByteRange::within(lba * 4096, count * 4096, SIZE).unwrap()
}

async fn write(volume: &Volume, lba: u64, count: u64, fill: u8) {
    let data = vec![fill; (count * 4096) as usize];
    volume.write(Payload::copy_of(sectors(lba, count), &data), Durability::Accepted).await.unwrap();
}

/// A volume that was closed well: leaves 0, 1 and 3 hold data, partly overwritten.
async fn closed() -> Arc<MemoryStore> {
    let disk = Disk::new(SIZE).await;
    let volume = disk.open().await;
    write(&volume, 0, 40, 1).await;
    write(&volume, 700, 5, 2).await;
    volume.close().await.unwrap();
    let volume = disk.open().await;
    write(&volume, 20, 30, 3).await;
    write(&volume, 1600, 2, 4).await;
    volume.checkpoint().await.unwrap();
    write(&volume, 30, 2, 5).await;
    volume.close().await.unwrap();
    disk.store
}

/// What stands in each sector of [`closed`].
fn closed_model() -> Vec<u8> {
    let mut model = vec![0; SECTORS as usize];
    for (lba, count, fill) in [(0, 40, 1), (700, 5, 2), (20, 30, 3), (1600, 2, 4), (30, 2, 5)] {
        model[lba..lba + count].fill(fill);
    }
    model
}

/// Opens what can be opened and checks it as the command does.
async fn checked(store: &Arc<MemoryStore>, deep: bool) -> CheckReport {
    let Salvaged { volume, findings, .. } = salvaged(store).await;
    let mut report = volume.check(deep, |_| {}).await.unwrap();
    report.problems.retain(|problem| !findings.contains(problem));
    report.problems.splice(0..0, findings);
    report
}

async fn salvaged(store: &Arc<MemoryStore>) -> Salvaged {
    let unlocked = volumes::unlock(&**store).await.unwrap();
    Volume::open_salvage(store.clone(), unlocked).await.unwrap()
}

fn ranges(report: &CheckReport) -> Vec<(u64, u64)> {
    report.damaged.iter().map(|range| (range.first_sector, range.sectors)).collect()
}
