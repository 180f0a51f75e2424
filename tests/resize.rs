//! Another size for a volume: what clients see, what stays, and what a power cut anywhere leaves
//! (docs/FORMAT.md §10, §15).
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/volumes.rs"]
mod volumes;

use std::sync::Arc;

use sealbd::export::{Allocation, Durability, Export, ZeroMode};
use sealbd::format::header::{HEADER_OFFSETS, Header};
use sealbd::geometry::ByteRange;
use sealbd::payload::Payload;
use sealbd::store::file::{Existing, FileStore};
use sealbd::store::memory::{Fault, MemoryStore, Operation};
use sealbd::store::{Access, SlotStore};
use sealbd::volume::create::{Geometry, OverProvisioning};
use sealbd::volume::unlock::write_header;
use sealbd::volume::{OpenMode, Volume, VolumeError};
use volumes::Disk;

const MIB: u64 = 1 << 20;
const SMALL: u64 = 8 * MIB;
const LARGE: u64 = 24 * MIB;

/// A volume of `size` on a store that has room for one of `room`.
async fn disk(size: u64, room: u64) -> Disk {
    let store = Arc::new(MemoryStore::new(Geometry::for_export(room).unwrap().store_bytes()));
    volumes::format(store.clone(), Geometry::for_export(size).unwrap()).await.unwrap();
    Disk { store }
}

async fn resize(volume: &Volume, size: u64) -> Result<Arc<Header>, VolumeError> {
    volume.resize(Geometry::resized(&volume.header(), size, None).unwrap()).await
}

fn range(offset: u64, len: u64) -> ByteRange {
    ByteRange::within(offset, len, u64::MAX).unwrap()
}

async fn write(volume: &Volume, offset: u64, byte: u8) {
    let payload = Payload::copy_of(range(offset, 4096), &[byte; 4096]);
    volume.write(payload, Durability::Durable).await.unwrap();
}

async fn byte_at(volume: &Volume, offset: u64) -> u8 {
    volumes::read(volume, range(offset, 4096)).await[0]
}

#[test]
fn a_grown_volume_keeps_its_data_and_all_of_it_can_be_written() {
    volumes::run(async {
        let mut disk = disk(SMALL, LARGE).await;
        let volume = disk.open().await;
        write(&volume, SMALL - 4096, 1).await;
        let slots = volume.header().slots;
        let header = resize(&volume, LARGE).await.unwrap();
        assert_eq!((volume.info().size, header.export_bytes, header.generation), (LARGE, LARGE, 2));
        assert!(header.slots > slots, "more room on the store, {slots} slots before");
        assert_eq!(header.slots, Geometry::for_export(LARGE).unwrap().slots, "with the same spare");
        assert_eq!(byte_at(&volume, LARGE - 4096).await, 0);
        for megabyte in SMALL / MIB..LARGE / MIB {
            for sector in 0..256 {
                write(&volume, megabyte * MIB + sector * 4096, 2).await;
            }
        }
        drop(volume);
        let volume = disk.reopen().await;
        assert_eq!(volume.info().size, LARGE);
        assert_eq!(byte_at(&volume, SMALL - 4096).await, 1);
        assert_eq!(byte_at(&volume, SMALL).await, 2);
        assert_eq!(byte_at(&volume, LARGE - 4096).await, 2);
        volumes::check(&volume).await;
        volume.close().await.unwrap();
    });
}

#[test]
fn a_volume_grows_over_what_one_top_pointer_covers() {
    volumes::run(async {
        let large = (512 << 30) + 8 * MIB;
        let mut disk = disk(SMALL, 700 << 30).await;
        let volume = disk.open().await;
        write(&volume, 0, 1).await;
        resize(&volume, large).await.unwrap();
        write(&volume, large - 4096, 2).await;
        drop(volume);
        let volume = disk.reopen().await;
        assert_eq!((byte_at(&volume, 0).await, byte_at(&volume, large - 4096).await), (1, 2));
        let error = resize(&volume, SMALL).await.unwrap_err();
        let first = large - 4096;
        assert!(
            matches!(error, VolumeError::InUse { end: SMALL, first: found } if found == first),
            "{error}"
        );
        volume.trim(range(large - 4096, 4096), Durability::Accepted).await.unwrap();
        resize(&volume, SMALL).await.unwrap();
        volumes::check(&volume).await;
        volume.close().await.unwrap();
        drop(volume);
        let volume = disk.reopen().await;
        assert_eq!((volume.info().size, byte_at(&volume, 0).await), (SMALL, 1));
        volumes::check(&volume).await;
    });
}

#[test]
fn a_store_that_is_too_small_is_refused_and_nothing_has_changed() {
    volumes::run(async {
        let disk = disk(SMALL, SMALL).await;
        let volume = disk.open().await;
        let before = disk.store.change_count();
        let error = resize(&volume, LARGE).await.unwrap_err();
        let needed = Geometry::for_export(LARGE).unwrap().store_bytes();
        assert!(
            matches!(error, VolumeError::StoreTooSmall { needed: told, .. } if told == needed),
            "{error}"
        );
        assert_eq!(disk.store.change_count(), before);
        assert_eq!(volume.info().size, SMALL);
        let readers = disk.open_as(OpenMode::ReadOnly).await.unwrap();
        let refused = resize(&readers, LARGE).await.unwrap_err();
        assert!(refused.to_string().contains("reading only"), "{refused}");
    });
}

#[test]
fn a_volume_shrinks_only_to_behind_the_last_thing_that_is_allocated() {
    volumes::run(async {
        let mut disk = disk(LARGE, LARGE).await;
        let volume = disk.open().await;
        write(&volume, 0, 1).await;
        write(&volume, SMALL, 2).await;
        volume.write_zeroes(range(LARGE - 4096, 4096), ZeroMode::NoHole, Durability::Durable).await.unwrap();
        let first = |error: VolumeError| match error {
            VolumeError::InUse { end: SMALL, first } => first,
            other => panic!("{other}"),
        };
        assert_eq!(first(resize(&volume, SMALL).await.unwrap_err()), SMALL);
        // Refused or not, the volume is as it was: what lies there can be changed.
        volume.trim(range(SMALL, 4096), Durability::Accepted).await.unwrap();
        assert_eq!(first(resize(&volume, SMALL).await.unwrap_err()), LARGE - 4096, "zeros are allocated");
        volume.trim(range(LARGE - 4096, 4096), Durability::Accepted).await.unwrap();
        let slots = volume.header().slots;
        let header = resize(&volume, SMALL).await.unwrap();
        assert_eq!((volume.info().size, header.slots), (SMALL, slots), "the slots stay");
        assert_eq!(byte_at(&volume, 0).await, 1);
        // A client that still believes in the old end.
        for at in [SMALL - 4096, SMALL, LARGE - 8192] {
            let late = range(at, 8192);
            let mut buf = [0; 8192];
            let refusals = [
                volume.write(Payload::zeroed(late), Durability::Accepted).await.unwrap_err(),
                volume.write(Payload::zeroed(range(at + 4196, 8)), Durability::Accepted).await.unwrap_err(),
                volume.trim(late, Durability::Accepted).await.unwrap_err(),
                volume.write_zeroes(late, ZeroMode::NoHole, Durability::Accepted).await.unwrap_err(),
                volume.read(late, &mut buf).await.unwrap_err(),
                volume.block_status(late, 8).await.unwrap_err(),
                volume.cache(late).await.unwrap_err(),
            ];
            for refusal in refusals {
                assert!(refusal.to_string().contains("smaller"), "{at}: {refusal}");
            }
        }
        volumes::check(&volume).await;
        drop(volume);
        let volume = disk.reopen().await;
        assert_eq!((volume.info().size, byte_at(&volume, 0).await), (SMALL, 1));
        // The slots that stayed are over-provisioning now, which growing would keep.
        assert!(matches!(resize(&volume, LARGE).await, Err(VolumeError::StoreTooSmall { .. })));
        let before = Geometry::resized(&volume.header(), LARGE, Some(OverProvisioning::DEFAULT)).unwrap();
        volume.resize(before).await.unwrap();
        assert_eq!(byte_at(&volume, SMALL).await, 0, "nothing of before comes back");
        assert_eq!(
            volume.block_status(range(SMALL, LARGE - SMALL), 8).await.unwrap()[0].allocation,
            Allocation::Hole
        );
        volumes::check(&volume).await;
    });
}

#[test]
fn the_file_under_a_volume_grows_with_it() {
    volumes::run(async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("volume");
        let geometry = Geometry::for_export(SMALL).unwrap();
        let file = FileStore::create(&path, geometry.store_bytes(), Existing::Refuse).unwrap();
        let store = Arc::new(file);
        volumes::format(store.clone(), geometry).await.unwrap();
        let volume = volumes::open(store.clone(), OpenMode::ReadWrite).await.unwrap();
        write(&volume, 0, 1).await;
        resize(&volume, LARGE).await.unwrap();
        let needed = Geometry::for_export(LARGE).unwrap().store_bytes();
        assert_eq!((store.capability().size, path.metadata().unwrap().len()), (needed, needed));
        write(&volume, LARGE - 4096, 2).await;
        volume.close().await.unwrap();
        drop((volume, store));
        let store = Arc::new(FileStore::open(&path, Access::ReadWrite).unwrap());
        let volume = volumes::open(store, OpenMode::ReadWrite).await.unwrap();
        assert_eq!((byte_at(&volume, 0).await, byte_at(&volume, LARGE - 4096).await), (1, 2));
        volumes::check(&volume).await;
    });
}

#[test]
fn over_provisioning_can_be_chosen_anew_at_the_same_size() {
    volumes::run(async {
        let disk = disk(SMALL, 4 * LARGE).await;
        let volume = disk.open().await;
        let more = Geometry::resized(&volume.header(), SMALL, OverProvisioning::hundredths(400)).unwrap();
        let before = volume.status().space;
        let header = volume.resize(more).await.unwrap();
        let after = volume.status().space;
        assert_eq!((header.export_bytes, header.slots), (SMALL, more.slots));
        assert_eq!(after.free_slots - before.free_slots, more.slots - before.slots);
        volumes::check(&volume).await;
    });
}

/// The resize is tried with the store frozen at every one of its changes. What a cut there leaves opens with
/// the old size or the new one, and holds what was made durable.
async fn cut_everywhere(from: u64, to: u64) {
    let (mut old, mut new) = (0, 0);
    for at in 0.. {
        let disk = disk(from, LARGE).await;
        let volume = disk.open().await;
        write(&volume, SMALL - 4096, 7).await;
        if from > to {
            write(&volume, to, 8).await;
            volume.trim(range(to, 4096), Durability::Accepted).await.unwrap();
        }
        disk.store.freeze_at(at);
        let result = resize(&volume, to).await;
        let mut odd = 0;
        let mut some = |bound: u64| {
            odd += 1;
            odd % bound
        };
        let survivors =
            [disk.store.crash(&mut |_| 0), disk.store.crash(&mut |_| 1), disk.store.crash(&mut some)];
        for store in survivors {
            let store = Arc::new(store);
            let readers = volumes::open(store.clone(), OpenMode::ReadOnly).await.unwrap();
            assert!([from, to].contains(&readers.info().size));
            assert_eq!(byte_at(&readers, SMALL - 4096).await, 7);
            drop(readers);
            let volume = volumes::open(store.clone(), OpenMode::ReadWrite).await.unwrap();
            let size = volume.info().size;
            assert!([from, to].contains(&size), "{size} bytes, cut at {at}");
            assert!(size == to || result.is_err(), "what was reported as done is done, cut at {at}");
            *(if size == to { &mut new } else { &mut old }) += 1;
            assert_eq!(byte_at(&volume, SMALL - 4096).await, 7);
            write(&volume, size - 4096, 9).await;
            volumes::check(&volume).await;
            drop(volume);
            let again = volumes::open(Arc::new(store.snapshot()), OpenMode::ReadWrite).await.unwrap();
            assert_eq!((again.info().size, byte_at(&again, size - 4096).await), (size, 9));
            // What was begun can be done again.
            resize(&again, to).await.map(|_| ()).or_else(only_in_use).unwrap();
            volumes::check(&again).await;
        }
        if result.is_ok() {
            assert!(old > 2 && new > 2, "{at} places to cut: {old} of the old size, {new} of the new one");
            break;
        }
    }
}

/// The end of the larger size was written to.
fn only_in_use(error: VolumeError) -> Result<(), VolumeError> {
    if matches!(error, VolumeError::InUse { .. }) { Ok(()) } else { Err(error) }
}

#[test]
fn a_power_cut_anywhere_in_growing_leaves_the_old_size_or_the_new_one() {
    volumes::run(cut_everywhere(SMALL, LARGE));
}

#[test]
fn a_power_cut_anywhere_in_shrinking_leaves_the_old_size_or_the_new_one() {
    volumes::run(cut_everywhere(LARGE, SMALL));
}

/// Puts a header on the store that says `change`, and no root after it.
async fn forge(disk: &Disk, change: impl FnOnce(&mut Header)) {
    let unlocked = volumes::unlock(&*disk.store).await.unwrap();
    let mut header = unlocked.header;
    change(&mut header);
    for offset in HEADER_OFFSETS {
        disk.store.write_raw(offset, &header.encode(&unlocked.keys));
    }
}

#[test]
fn a_header_of_another_size_that_is_not_newer_than_the_root_is_refused() {
    volumes::run(async {
        let disk = disk(SMALL, LARGE).await;
        forge(&disk, |header| header.export_bytes += 4096).await;
        for mode in [OpenMode::ReadOnly, OpenMode::ReadWrite] {
            let error = disk.open_as(mode).await.err().unwrap();
            assert!(matches!(error, VolumeError::Inconsistent(_)), "{error}");
        }
    });
}

#[test]
fn an_unfinished_shrink_with_data_behind_its_end_is_refused() {
    volumes::run(async {
        let mut disk = disk(LARGE, LARGE).await;
        let volume = disk.open().await;
        write(&volume, LARGE - 4096, 1).await;
        drop(volume);
        disk.store = Arc::new(disk.store.snapshot());
        let smaller = |header: &mut Header| {
            header.generation += 1;
            header.export_bytes = SMALL;
        };
        forge(&disk, smaller).await;
        let error = disk.open_as(OpenMode::ReadWrite).await.err().unwrap();
        assert!(matches!(error, VolumeError::Inconsistent(_)), "{error}");
        assert!(error.to_string().contains(&(LARGE - 4096).to_string()), "{error}");
        // For looking at, the volume has the size that the root knows.
        let readers = disk.open_as(OpenMode::ReadOnly).await.unwrap();
        assert_eq!(byte_at(&readers, LARGE - 4096).await, 1);
    });
}

#[test]
fn a_header_write_that_fails_leaves_a_larger_size_to_be_tried_again() {
    volumes::run(async {
        for nth in 0..2 {
            let mut disk = disk(SMALL, LARGE).await;
            let volume = disk.open().await;
            disk.store.inject(Operation::Write, nth, Fault::Io);
            assert!(matches!(resize(&volume, LARGE).await, Err(VolumeError::Store(_))));
            assert_eq!(volume.info().size, SMALL);
            write(&volume, 0, 1).await;
            volume.checkpoint().await.unwrap();
            resize(&volume, LARGE).await.unwrap();
            write(&volume, LARGE - 4096, 2).await;
            drop(volume);
            let volume = disk.reopen().await;
            assert_eq!((byte_at(&volume, 0).await, byte_at(&volume, LARGE - 4096).await), (1, 2));
            volumes::check(&volume).await;
        }
    });
}

#[test]
fn a_header_write_that_fails_in_shrinking_stops_the_volume_before_the_end_is_written_to() {
    volumes::run(async {
        let disk = disk(LARGE, LARGE).await;
        let volume = disk.open().await;
        write(&volume, 0, 1).await;
        drop(volume);
        let mut stopped = 0;
        for nth in 0..6 {
            let disk_now = Disk { store: Arc::new(disk.store.snapshot()) };
            let volume = disk_now.open().await;
            disk_now.store.inject(Operation::Write, nth, Fault::Io);
            if resize(&volume, SMALL).await.is_err() {
                let end = volume.write(Payload::zeroed(range(LARGE - 4096, 4096)), Durability::Durable).await;
                stopped += u32::from(end.is_err());
                drop(volume);
                let again = volumes::open(Arc::new(disk_now.store.snapshot()), OpenMode::ReadWrite).await;
                assert_eq!(byte_at(&again.unwrap(), 0).await, 1);
            }
        }
        assert!(stopped >= 2, "both copies of the header were tried");
    });
}

#[test]
fn a_header_backup_of_before_a_resize_is_put_back_with_the_size_of_now() {
    volumes::run(async {
        for copies_are_gone in [false, true] {
            for (from, to) in [(SMALL, LARGE), (LARGE, SMALL)] {
                let disk = disk(from, LARGE).await;
                let mut backup = volumes::unlock(&*disk.store).await.unwrap();
                let volume = disk.open().await;
                write(&volume, 0, 1).await;
                resize(&volume, to).await.unwrap();
                let slots = volume.header().slots;
                write(&volume, to - 4096, 2).await;
                volume.close().await.unwrap();
                drop(volume);
                if copies_are_gone {
                    HEADER_OFFSETS.iter().for_each(|at| disk.store.write_raw(*at, &[0; 65536]));
                }
                Volume::keep_sizes(&*disk.store, &mut backup).await.unwrap();
                let demanded = Volume::header_generation_of_root(&*disk.store, &backup).await.unwrap();
                backup.header.generation = demanded;
                write_header(&*disk.store, &mut backup.header, &backup.keys).await.unwrap();
                let volume = disk.open().await;
                assert_eq!((volume.info().size, volume.header().slots), (to, slots));
                assert_eq!((byte_at(&volume, 0).await, byte_at(&volume, to - 4096).await), (1, 2));
                volumes::check(&volume).await;
            }
        }
    });
}
