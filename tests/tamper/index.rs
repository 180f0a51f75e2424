//! Pages of the index.

use super::*;

#[tokio::test]
async fn index_page_damaged_at_any_level_fails_the_reads_below_it() {
    for level in 0..3 {
        for damage in [flip, zero, truncate] {
            let scene = closed().await;
            let place = scene.anatomy.pages[level][0];
            damage(&scene.store, place);
            let errors = scene.errors().await;
            let below = if level == 0 { 512 } else { SECTORS };
            assert_eq!(errors.len() as u64, below, "level {level}");
            assert!(errors.iter().all(|(_, error)| *error == damaged_page(place)), "level {level}");
        }
    }
}

#[tokio::test]
async fn index_leaves_swapped_fail_the_reads_below_them() {
    let scene = closed().await;
    let leaves = &scene.anatomy.pages[0];
    let (one, other) = (leaves[1], leaves[2]);
    assert_eq!(one.len, other.len, "two leaves with one extent each");
    swap(&scene.store, one, other);
    let errors = scene.errors().await;
    assert_eq!(errors.len(), 1024);
    assert!(errors.iter().all(|(_, error)| [damaged_page(one), damaged_page(other)].contains(error)));
}

#[tokio::test]
async fn index_page_of_an_older_state_fails_the_reads_below_it() {
    let (disk, model, old) = closed_with_history().await;
    let scene = Scene::of(&disk.store, model).await;
    for level in 0..3 {
        let (now, before) = (scene.anatomy.pages[level][0], old.anatomy.pages[level][0]);
        assert_ne!(now, before, "pages are write-once");
        let damaged = Scene::of(&scene.store, scene.model.clone()).await;
        let mut bytes = old.store.read_raw(before.offset, before.len);
        bytes.resize(now.len, 0);
        damaged.store.write_raw(now.offset, &bytes);
        let errors = damaged.errors().await;
        assert!(!errors.is_empty(), "level {level}");
        assert!(errors.iter().all(|(_, error)| *error == damaged_page(now)), "level {level}");
    }
}

#[tokio::test]
async fn index_damage_fails_a_check_and_a_write_into_the_page_keeps_the_rest_readable() {
    let scene = closed().await;
    let place = scene.anatomy.pages[0][0];
    flip(&scene.store, place);
    let report = scene.open().await.unwrap().check(true, |_| {}).await.unwrap();
    assert!(!report.is_clean());
    let listed: Vec<_> = report.damaged.iter().map(|range| (range.first_sector, range.sectors)).collect();
    assert_eq!(listed, [(0, 512)]);
    assert_eq!((report.damaged[0].offset, report.damaged[0].bytes), (0, 2 << 20));
    assert_eq!(
        (report.problems[0].structure, report.problems[0].offset),
        (Structure::IndexPage, Some(place.offset))
    );
    assert!(report.problems[0].message.contains("above sectors 0+512: index page at byte"), "{report:?}");
}
