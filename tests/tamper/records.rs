//! Records, and the segments they stand in.

use super::*;

#[tokio::test]
async fn record_flipped_zeroed_or_cut_fails_the_reads_of_its_sector_alone() {
    for damage in [flip, zero, truncate] {
        let scene = closed().await;
        let (lba, place) = scene.anatomy.records[7];
        damage(&scene.store, place);
        assert_eq!(scene.errors().await, [(lba, damaged_sector(place))]);
    }
}

#[tokio::test]
async fn record_tag_flipped_fails_the_read() {
    let scene = closed().await;
    let (lba, place) = scene.anatomy.records[7];
    flip_at(&scene.store, place.offset + RECORD_LEN as u64 - 1);
    assert_eq!(scene.errors().await, [(lba, damaged_sector(place))]);
}

#[tokio::test]
async fn records_swapped_inside_a_segment_fail_both_reads() {
    let scene = closed().await;
    let (one, other) = (scene.anatomy.records[3], scene.anatomy.records[9]);
    assert_eq!(scene.model[one.0 as usize], scene.model[other.0 as usize], "even of one content");
    swap(&scene.store, one.1, other.1);
    let expected = [(one.0, damaged_sector(one.1)), (other.0, damaged_sector(other.1))];
    assert_eq!(scene.errors().await, expected);
}

#[tokio::test]
async fn records_swapped_between_segments_fail_both_reads() {
    let scene = closed().await;
    let segment = |place: Place| place.offset / u64::from(scene.anatomy.header.segment_bytes);
    let one = scene.anatomy.records[0];
    let other = *scene.anatomy.records.iter().find(|(_, place)| segment(*place) != segment(one.1)).unwrap();
    swap(&scene.store, one.1, other.1);
    let expected = [(one.0, damaged_sector(one.1)), (other.0, damaged_sector(other.1))];
    assert_eq!(scene.errors().await, expected);
}

#[tokio::test]
async fn record_of_an_older_write_of_the_same_sector_fails_the_read() {
    let (disk, model, old) = closed_with_history().await;
    let scene = Scene::of(&disk.store, model).await;
    let find = |anatomy: &Anatomy| anatomy.records.iter().find(|(lba, _)| *lba == 30).unwrap().1;
    let (now, before) = (find(&scene.anatomy), find(&old.anatomy));
    assert_ne!(now, before);
    scene.store.write_raw(now.offset, &old.store.read_raw(before.offset, before.len));
    assert_eq!(scene.errors().await, [(30, damaged_sector(now))]);
}

#[tokio::test]
async fn records_of_another_volume_with_the_same_key_file_fail_the_reads() {
    let (scene, other) = (closed().await, closed().await);
    for (now, theirs) in scene.anatomy.records.iter().zip(&other.anatomy.records) {
        scene.store.write_raw(now.1.offset, &other.store.read_raw(theirs.1.offset, RECORD_LEN));
    }
    let expected: Vec<_> =
        scene.anatomy.records.iter().map(|(lba, place)| (*lba, damaged_sector(*place))).collect();
    assert_eq!(scene.errors().await, expected);
}

#[tokio::test]
async fn segment_put_back_to_what_its_slot_held_before_fails_the_reads_of_it() {
    let (disk, model, old) = closed_with_history().await;
    let scene = Scene::of(&disk.store, model).await;
    let len = scene.anatomy.header.segment_bytes as usize;
    let find = |lba| scene.anatomy.records.iter().find(|(l, _)| *l == lba).unwrap().1;
    let phys = scene.anatomy.rows.iter().flatten().map(|row| row.phys);
    let phys: Vec<u64> = phys.filter(|phys| (*phys..*phys + len as u64).contains(&find(30).offset)).collect();
    let place = Place { offset: phys[0], len };
    replay(&scene.store, place, &old.store);
    for (lba, error) in scene.errors().await {
        assert_eq!(error, damaged_sector(find(lba)));
    }
    assert!(scene.errors().await.iter().any(|(lba, _)| *lba == 30));
}

#[tokio::test]
async fn segment_header_damaged_does_not_matter_to_records_in_the_tree() {
    let scene = closed().await;
    for row in scene.anatomy.rows.iter().flatten() {
        flip(&scene.store, Place { offset: row.phys, len: 160 });
    }
    assert_eq!(scene.errors().await, []);
}
