//! Roots: the ring, payloads, the segment table.

use super::*;

#[tokio::test]
async fn ring_newest_block_damaged_falls_back_to_the_root_before_and_its_log() {
    for damage in [flip, zero, truncate] {
        let scene = closed().await;
        damage(&scene.store, scene.anatomy.ring_block(scene.anatomy.newest.generation));
        assert_eq!(scene.errors().await, []);
    }
}

#[tokio::test]
async fn ring_older_block_flipped_is_damage_of_that_block() {
    let scene = closed().await;
    let place = scene.anatomy.ring_block(scene.anatomy.newest.generation - 2);
    flip(&scene.store, place);
    let damage = scene.structure_damage(&scene.refusal().await);
    assert_eq!(damage, ("ring block", place.offset, FormatError::Checksum("ring block")));
}

#[tokio::test]
async fn ring_older_block_altered_with_a_right_checksum_does_not_authenticate() {
    let scene = closed().await;
    let place = scene.anatomy.ring_block(scene.anatomy.newest.generation - 2);
    flip_at(&scene.store, place.offset + 50);
    fix_block_checksum(&scene.store, place.offset);
    let damage = scene.structure_damage(&scene.refusal().await);
    assert_eq!(damage, ("ring block", place.offset, FormatError::Authentication("ring block")));
}

#[tokio::test]
async fn ring_block_moved_to_another_place_does_not_count() {
    let scene = closed().await;
    let newest = scene.anatomy.newest.generation;
    let (from, to) = (scene.anatomy.ring_block(newest - 1), scene.anatomy.ring_block(newest - 3));
    scene.store.write_raw(to.offset, &scene.store.read_raw(from.offset, from.len));
    let damage = scene.structure_damage(&scene.refusal().await);
    assert_eq!(damage, ("ring block", to.offset, FormatError::Authentication("ring block")));
}

#[tokio::test]
async fn ring_blocks_swapped_do_not_count() {
    let scene = closed().await;
    let newest = scene.anatomy.newest.generation;
    swap(&scene.store, scene.anatomy.ring_block(newest), scene.anatomy.ring_block(newest - 1));
    let VolumeError::Damaged { structure: "ring block", source, .. } = scene.refusal().await else {
        panic!("another error")
    };
    assert_eq!(source, FormatError::Authentication("ring block"));
}

#[tokio::test]
async fn ring_flipped_whole_leaves_no_root() {
    let scene = closed().await;
    (0..8).for_each(|slot| flip(&scene.store, scene.anatomy.ring_block(slot)));
    let VolumeError::NoRoot(why) = scene.refusal().await else { panic!("another error") };
    assert!(why.contains("block 2: ring block: checksum mismatch"), "{why}");
}

#[tokio::test]
async fn ring_zeroed_whole_is_empty() {
    let scene = closed().await;
    (0..8).for_each(|slot| zero(&scene.store, scene.anatomy.ring_block(slot)));
    let VolumeError::NoRoot(why) = scene.refusal().await else { panic!("another error") };
    assert_eq!(why, "the root ring is empty");
}

#[tokio::test]
async fn ring_of_another_volume_does_not_authenticate() {
    let (scene, other) = (closed().await, closed().await);
    (0..8).for_each(|slot| replay(&scene.store, scene.anatomy.ring_block(slot), &other.store));
    let VolumeError::NoRoot(why) = scene.refusal().await else { panic!("another error") };
    assert!(why.contains("ring block: authentication failed"), "{why}");
    assert!(why.split("; ").all(|block| block.ends_with("of another volume)")), "{why}");
}

#[tokio::test]
async fn ring_of_an_older_state_shows_that_state_or_errors_but_never_a_mixture() {
    // Without an anchor a ring that was put back cannot be told from a volume of that time (§13).
    let (disk, model, old) = closed_with_history().await;
    let scene = Scene::of(&disk.store, model).await;
    (0..8).for_each(|slot| replay(&scene.store, scene.anatomy.ring_block(slot), &old.store));
    let Ok(volume) = scene.open().await else { return };
    sector_errors(&volume, &old.model).await;
}

#[tokio::test]
async fn payload_damaged_falls_back_to_the_root_before_and_its_log() {
    for damage in [flip, zero, truncate] {
        let scene = closed().await;
        damage(&scene.store, scene.anatomy.payload());
        assert_eq!(scene.errors().await, []);
    }
}

#[tokio::test]
async fn payload_of_the_last_two_roots_flipped_leaves_no_root() {
    let scene = closed().await;
    let newest = scene.anatomy.newest.generation;
    for generation in [newest, newest - 1] {
        let pointer = scene.anatomy.root_of(&scene.store, generation).0.payload;
        flip(
            &scene.store,
            Place { offset: pointer.phys + u64::from(pointer.offset), len: pointer.len as usize },
        );
    }
    let VolumeError::NoRoot(why) = scene.refusal().await else { panic!("another error") };
    let payload = scene.anatomy.payload();
    let first = format!(
        "root {newest}: root payload at byte {} of the store is damaged: root payload: authentication failed",
        payload.offset
    );
    assert!(why.starts_with(&first), "{why}");
    assert!(why.contains(&format!("root {}: root payload at byte", newest - 1)), "{why}");
}

#[tokio::test]
async fn payload_envelope_flipped_does_not_authenticate() {
    // The list of places for replication is plaintext, and bound to the payload all the same.
    let scene = died().await;
    let newest = scene.anatomy.newest.generation;
    let with_places = |generation| {
        let (block, root) = scene.anatomy.root_of(&scene.store, generation);
        (!root.added.is_empty()).then_some((block, root))
    };
    let (block, root) = with_places(newest).or_else(|| with_places(newest - 1)).unwrap();
    let pointer = block.payload;
    let payload = Place { offset: pointer.phys + u64::from(pointer.offset), len: pointer.len as usize };
    let key = scene.anatomy.keys.segment_key(2, pointer.uid);
    let open = || {
        let stored = scene.store.read_raw(payload.offset, payload.len);
        Root::open(&key, pointer.offset.into(), block.generation, &stored)
    };
    assert_eq!(open(), Ok(root));
    flip_at(&scene.store, payload.offset + 4);
    assert_eq!(open(), Err(FormatError::Authentication("root payload")));
}

#[tokio::test]
async fn table_damaged_falls_back_to_the_root_before_and_its_log() {
    for damage in [flip, zero, truncate] {
        let scene = closed().await;
        damage(&scene.store, scene.anatomy.table());
        assert_eq!(scene.errors().await, []);
    }
}
