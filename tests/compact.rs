//! Compacting a volume: what it gives back, that it stops when told to, and that nobody sees it
//! (docs/FORMAT.md §11, I7).
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/volumes.rs"]
mod volumes;

use std::ops::ControlFlow;
use std::sync::Arc;

use sealbd::export::{Durability, Export};
use sealbd::geometry::ByteRange;
use sealbd::payload::Payload;
use sealbd::volume::compact::Density;
use sealbd::volume::{OpenMode, Volume, VolumeError};
use volumes::Disk;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
/// For a test that opens many volumes.
const SMALL: u64 = 16 * MIB;

async fn write(volume: &Volume, offset: u64, len: u64, byte: u8) {
    let data = vec![byte; usize::try_from(len).unwrap()];
    let payload = Payload::copy_of(ByteRange::within(offset, len, u64::MAX).unwrap(), &data);
    volume.write(payload, Durability::Accepted).await.unwrap();
}

/// A volume whose segments are live to three eighths: all of it written, and five eighths trimmed.
async fn sparse(size: u64) -> (Disk, Volume) {
    let disk = Disk::new(size).await;
    let volume = disk.open().await;
    for megabyte in 0..size / MIB {
        write(&volume, megabyte * MIB, MIB, u8::try_from(megabyte).unwrap() + 1).await;
    }
    for part in (0..size).step_by(32 << 10) {
        let trimmed = ByteRange::within(part + (12 << 10), 20 << 10, size).unwrap();
        volume.trim(trimmed, Durability::Accepted).await.unwrap();
    }
    volume.flush().await.unwrap();
    (disk, volume)
}

fn goes_on(_: Density) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn a_compacted_volume_is_dense_and_gives_its_slots_back_to_the_store() {
    volumes::run(async {
        let (mut disk, volume) = sparse(SIZE).await;
        let content = volumes::read_all(&volume).await;
        let resident = disk.store.resident_bytes();
        let compacted = volume.compact(90, goes_on).await.unwrap();
        assert!(compacted.reached, "{compacted:?}");
        assert!(compacted.before.percent() < 45 && compacted.after.percent() >= 90, "{compacted:?}");
        let gained = compacted.after.unused_slots - compacted.before.unused_slots;
        assert!(gained >= 16, "{gained} slots: more than half of the 33 that 64 MiB fill");
        let given_back = resident - disk.store.resident_bytes();
        assert!(given_back >= (gained - 2) * 2 * MIB, "{given_back} bytes discarded, {gained} slots gained");
        assert!(volumes::read_all(&volume).await == content);
        volumes::check(&volume).await;
        // There is no more to do.
        let again = volume.compact(90, goes_on).await.unwrap();
        assert!(again.reached && again.before.percent() >= 90, "{again:?}");
        drop(volume);
        let volume = disk.reopen().await;
        assert!(volumes::read_all(&volume).await == content);
        volumes::check(&volume).await;
    });
}

#[test]
fn compacting_stops_when_told_to_and_goes_on_when_run_again() {
    volumes::run(async {
        let (_disk, volume) = sparse(SIZE).await;
        let content = volumes::read_all(&volume).await;
        let mut steps = 0;
        let stopped = volume
            .compact(90, |_| {
                steps += 1;
                if steps == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .await
            .unwrap();
        assert_eq!(steps, 2);
        assert!(!stopped.reached, "{stopped:?}");
        assert!(volumes::read_all(&volume).await == content);
        volumes::check(&volume).await;
        let finished = volume.compact(90, goes_on).await.unwrap();
        assert!(finished.reached, "{finished:?}");
        assert!(volumes::read_all(&volume).await == content);
        volumes::check(&volume).await;
        volume.close().await.unwrap();
    });
}

#[test]
fn what_cannot_get_denser_ends_short_of_the_target() {
    volumes::run(async {
        let (disk, volume) = sparse(SIZE).await;
        let compacted = volume.compact(100, goes_on).await.unwrap();
        assert!(!compacted.reached && compacted.after.percent() >= 90, "{compacted:?}");
        volume.close().await.unwrap();
        let refused = volume.compact(100, goes_on).await.unwrap_err();
        assert!(matches!(refused, VolumeError::Stopped(_)), "{refused}");
        drop(volume);
        let readers = disk.open_as(OpenMode::ReadOnly).await.unwrap();
        assert!(matches!(readers.compact(90, goes_on).await, Err(VolumeError::Refused(_))));
    });
}

#[test]
fn a_power_cut_in_compacting_loses_nothing() {
    volumes::run(async {
        let (first, volume) = sparse(SMALL).await;
        let content = volumes::read_all(&volume).await;
        volume.close().await.unwrap();
        drop(volume);
        let mut at = 0;
        loop {
            let disk = Disk { store: Arc::new(first.store.snapshot()) };
            let volume = disk.open().await;
            disk.store.freeze_at(at);
            let finished = volume.compact(90, goes_on).await.is_ok();
            for keep in [0, 1] {
                let store = Arc::new(disk.store.crash(&mut |_| keep));
                let again = volumes::open(store, OpenMode::ReadWrite).await.unwrap();
                assert!(volumes::read_all(&again).await == content, "cut at {at}, keeping {keep}");
                volumes::check(&again).await;
            }
            if finished {
                assert!(at > 20, "{at} places to cut");
                break;
            }
            at += 5;
        }
    });
}
