//! The log behind the root.

use sealbd::format::segment::PHYSICAL_BLOCK;

use super::*;

#[tokio::test]
async fn chunk_header_flushed_and_flipped_is_damage_not_a_torn_tail() {
    for index in 0..7 {
        let scene = died().await;
        let chunk = &scene.anatomy.log[index];
        flip_at(&scene.store, chunk.place.offset + 40);
        let error = scene.refusal().await;
        match error {
            VolumeError::LogDamaged { seq, offset, later } => {
                assert_eq!(seq, chunk.seq);
                // Behind the chunk before it, or in the next block: that cannot be told any more.
                let behind = chunk.place.offset.checked_sub(offset);
                assert!(behind.is_some_and(|bytes| bytes < PHYSICAL_BLOCK), "{offset} {behind:?}");
                assert!(later > chunk.seq);
            }
            other => panic!("chunk {}: {other}", chunk.seq),
        }
    }
}

#[tokio::test]
async fn chunk_prefix_flushed_and_zeroed_is_damage_not_a_torn_tail() {
    let scene = died().await;
    let chunk = &scene.anatomy.log[4];
    zero(&scene.store, Place { offset: chunk.place.offset, len: 4096 });
    let error = scene.refusal().await;
    assert!(matches!(error, VolumeError::LogDamaged { seq, .. } if seq == chunk.seq), "{error}");
}

#[tokio::test]
async fn chunks_swapped_in_the_log_are_damage() {
    let scene = died().await;
    swap(&scene.store, scene.anatomy.log[2].place, scene.anatomy.log[5].place);
    let error = scene.refusal().await;
    let first = scene.anatomy.log[2].seq;
    assert!(matches!(error, VolumeError::LogDamaged { seq, .. } if seq == first), "{error}");
}

#[tokio::test]
async fn record_of_a_flushed_chunk_flipped_fails_the_read_of_its_sector_alone() {
    let scene = died().await;
    let chunk = &scene.anatomy.log[3];
    let record = Place { offset: chunk.place.offset + chunk.records_offset as u64, len: RECORD_LEN };
    flip(&scene.store, record);
    assert_eq!(scene.errors().await, [(3, damaged_sector(record))]);
}

#[tokio::test]
async fn chunk_unflushed_and_damaged_was_never_written() {
    for at in [0, 40, 60, 2000] {
        let mut scene = died().await;
        flip_at(&scene.store, scene.anatomy.log[8].place.offset + at);
        scene.model[8] = 0;
        assert_eq!(scene.errors().await, [], "byte {at} of the last chunk");
    }
}

/// A volume whose server died with flushed writes in the second segment of the log, the first of the
/// session being full.
async fn died_in_the_second_segment() -> Scene {
    // Larger than what is looked at: with few slots a checkpoint would come in between.
    let disk = Disk::new(8 * SIZE).await;
    let mut model = vec![0; SECTORS as usize];
    let volume = disk.open().await;
    for part in 0..6 {
        write(&volume, &mut model, part * 100, 100, 10 + part as u8).await;
        volume.flush().await.unwrap();
    }
    for lba in 600..604 {
        write(&volume, &mut model, lba, 1, 77).await;
        volume.flush().await.unwrap();
    }
    let scene = Scene::of(&disk.store, model).await;
    let segments: std::collections::HashSet<u64> = scene.anatomy.log.iter().map(|chunk| chunk.phys).collect();
    assert_eq!(segments.len(), 2);
    assert_eq!(scene.errors().await, []);
    scene
}

#[tokio::test]
async fn segment_header_flipped_in_the_log_is_damage_not_the_end_of_it() {
    let scene = died_in_the_second_segment().await;
    let second = scene.anatomy.log.last().unwrap().phys;
    let first = scene.anatomy.log.iter().find(|chunk| chunk.phys == second).unwrap();
    for at in [0, 20, 50, 80, 140, 4093] {
        let damaged = Scene::of(&scene.store, scene.model.clone()).await;
        flip_at(&damaged.store, second + at);
        let error = damaged.refusal().await;
        assert!(
            matches!(error, VolumeError::LogDamaged { seq, .. } if seq == first.seq),
            "byte {at}: {error}"
        );
    }
}

#[tokio::test]
async fn chunk_torn_and_the_one_behind_it_zeroed_is_damage_when_a_later_one_proves_a_flush() {
    let scene = died().await;
    let log = &scene.anatomy.log;
    let torn = Place { offset: log[3].place.offset + log[3].records_offset as u64, len: RECORD_LEN };
    flip(&scene.store, torn);
    zero(&scene.store, log[4].place);
    let error = scene.refusal().await;
    assert!(matches!(error, VolumeError::LogDamaged { .. }), "{error}");
}

#[tokio::test]
async fn newest_root_of_a_session_damaged_loses_no_flushed_write() {
    let scene = died().await;
    let newest = scene.anatomy.newest.generation;
    for place in [scene.anatomy.ring_block(newest), scene.anatomy.payload(), scene.anatomy.table()] {
        for damage in [flip, zero, truncate] {
            let store = scene.store.snapshot();
            damage(&store, place);
            shows_nothing_wrong(store, &scene.model).await;
        }
    }
}

#[tokio::test]
async fn one_flipped_bit_anywhere_after_a_crash_loses_no_flushed_write_unseen() {
    let scene = died().await;
    for (number, block) in (0u64..).zip(written_blocks(&scene.store, scene.anatomy.header.store_bytes())) {
        let store = scene.store.snapshot();
        flip_at(&store, block + number * 97 % 4096);
        let disk = Disk { store: Arc::new(store) };
        let Ok(volume) = disk.open_as(OpenMode::ReadOnly).await else { continue };
        let mut model = scene.model.clone();
        let mut last = [0; 4096];
        if volume.read(sectors(8, 1), &mut last).await.is_ok() {
            // Written and not flushed: there, or not.
            assert!(last == [99; 4096] || last == [0; 4096]);
            model[8] = last[0];
        }
        sector_errors(&volume, &model).await;
    }
}

#[tokio::test]
async fn closed_span_flipped_is_damage_of_the_closed_log() {
    let disk = Disk::new(4 * SIZE).await;
    let mut model = vec![0; SECTORS as usize];
    let volume = disk.open().await;
    write(&volume, &mut model, 0, 1, 1).await;
    write(&volume, &mut model, 1, 1, 2).await;
    drop(volume);
    // The next session claims the volume: the span is closed where it ends.
    let disk = Disk { store: Arc::new(disk.store.snapshot()) };
    let volume = disk.open().await;
    let scene = Scene::of(&disk.store, model).await;
    drop(volume);
    assert_eq!(scene.errors().await, []);
    let place = scene.anatomy.log[1].place;
    flip_at(&scene.store, place.offset + 40);
    let damage = scene.structure_damage(&scene.refusal().await);
    assert_eq!(damage, ("closed log", place.offset, FormatError::Authentication("chunk")));
}

#[tokio::test]
async fn log_of_an_older_session_cannot_be_put_back_behind_a_claim() {
    // A copy of the store goes on by itself; its chunks mean nothing to the original.
    let disk = Disk::new(SIZE).await;
    let mut model = vec![0; SECTORS as usize];
    let volume = disk.open().await;
    write(&volume, &mut model, 0, 1, 1).await;
    drop(volume);
    let fork = Disk { store: Arc::new(disk.store.snapshot()) };
    let mut forked = model.clone();
    let volume = fork.open().await;
    write(&volume, &mut forked, 0, 1, 66).await;
    volume.flush().await.unwrap();
    let theirs = Anatomy::of(&fork.store).await;
    drop(volume);
    let disk = Disk { store: Arc::new(disk.store.snapshot()) };
    let volume = disk.open().await;
    write(&volume, &mut model, 1, 1, 2).await;
    volume.flush().await.unwrap();
    let scene = Scene::of(&disk.store, model).await;
    drop(volume);
    for phys in &theirs.log_segments {
        let len = scene.anatomy.header.segment_bytes as usize;
        replay(&scene.store, Place { offset: *phys, len }, &fork.store);
    }
    let Ok(volume) = scene.open().await else { return };
    let mut sector = [0; 4096];
    if volume.read(sectors(0, 1), &mut sector).await.is_ok() {
        assert_eq!(sector, [1; 4096], "the write of the fork is nowhere");
    }
}

#[tokio::test]
async fn store_shorter_than_the_volume_is_refused() {
    let scene = closed().await;
    let needed = scene.anatomy.header.store_bytes();
    let found = needed - 4096;
    let bytes = scene.store.read_raw(0, usize::try_from(found).unwrap());
    let scene = Scene { store: Arc::new(MemoryStore::from_bytes(&bytes)), ..scene };
    match scene.refusal().await {
        VolumeError::StoreTooSmall { found: f, needed: n } => assert_eq!((f, n), (found, needed)),
        other => panic!("{other}"),
    }
}
