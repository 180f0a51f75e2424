//! One damage per test, and what the report says of it.

use sealbd::format::header::HEADER_OFFSETS;
use sealbd::format::root::Place as SegmentPlace;
use sealbd::format::segment::SegmentKind;
use sealbd::volume::check::{CheckReport, Finding, Structure};

use crate::anatomy::{Anatomy, Place, flip, flip_at, zero};
use crate::volumes::Disk;
use crate::{SIZE, checked, closed, forge, ranges, write};

/// The one problem, and no other.
fn only(findings: &[Finding]) -> (Structure, Option<u64>) {
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(!findings[0].message.is_empty());
    (findings[0].structure, findings[0].offset)
}

fn clean_with_warning(report: &CheckReport, structure: Structure, offset: u64) {
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(only(&report.warnings), (structure, Some(offset)));
}

#[tokio::test]
async fn a_good_volume_is_clean_without_a_warning_and_all_of_it_is_counted() {
    let store = closed().await;
    let anatomy = Anatomy::of(&store).await;
    let report = checked(&store, true).await;
    assert!(report.is_clean() && report.warnings.is_empty() && !report.gave_way, "{report:?}");
    let pages: usize = anatomy.pages.iter().map(Vec::len).sum();
    assert_eq!(report.root, anatomy.root.generation);
    assert_eq!((report.pages, report.mapped_sectors), (pages as u64, 57));
    assert_eq!((report.verified_sectors, report.log.chunks, report.log.sectors), (57, 0, 0));
    assert!(report.segments >= 3, "{report:?}");
    assert_eq!(checked(&store, false).await.verified_sectors, 0);
}

#[tokio::test]
async fn what_stands_in_the_log_alone_is_told_as_that() {
    let mut disk = Disk::new(SIZE).await;
    let volume = disk.open().await;
    for lba in 0..9 {
        write(&volume, lba, 1, 1).await;
    }
    write(&volume, 3, 1, 2).await;
    // A server that died: its log is all there is.
    let dead = disk.reopen().await;
    drop((volume, dead));
    let report = checked(&disk.store, true).await;
    assert_eq!((report.mapped_sectors, report.verified_sectors), (0, 9), "{report:?}");
    assert_eq!((report.log.chunks, report.log.sectors), (10, 9));
}

#[tokio::test]
async fn one_header_copy_damaged_or_older_is_a_warning_of_that_copy() {
    for offset in HEADER_OFFSETS {
        let store = closed().await;
        flip_at(&store, offset + 100);
        clean_with_warning(&checked(&store, true).await, Structure::Header, offset);
    }
    let store = closed().await;
    let old = store.snapshot();
    let mut unlocked = crate::volumes::unlock(&*store).await.unwrap();
    sealbd::volume::unlock::write_header(&*store, &mut unlocked.header, &unlocked.keys).await.unwrap();
    store.write_raw(HEADER_OFFSETS[1], &old.read_raw(HEADER_OFFSETS[1], 65536));
    clean_with_warning(&checked(&store, false).await, Structure::Header, HEADER_OFFSETS[1]);
}

#[tokio::test]
async fn a_ring_block_that_a_crash_may_have_torn_is_a_warning_and_any_other_a_problem() {
    let store = closed().await;
    let anatomy = Anatomy::of(&store).await;
    let newest = anatomy.newest.generation;
    assert!(newest > 4, "{newest}");
    let torn = anatomy.ring_block(newest + 1);
    store.write_raw(torn.offset, &[7; 512]);
    clean_with_warning(&checked(&store, false).await, Structure::RootRing, torn.offset);
    let older = anatomy.ring_block(newest - 2);
    flip(&store, older);
    let report = checked(&store, false).await;
    assert_eq!(only(&report.problems), (Structure::RootRing, Some(older.offset)));
}

#[tokio::test]
async fn the_newest_root_damaged_is_a_problem_and_its_predecessor_is_verified_instead() {
    for damage in [Anatomy::payload, Anatomy::table] {
        let store = closed().await;
        let anatomy = Anatomy::of(&store).await;
        flip(&store, damage(&anatomy));
        let report = checked(&store, true).await;
        let at = anatomy.payload().offset;
        assert_eq!(only(&report.problems), (Structure::Root, Some(at)));
        assert_eq!(report.root, anatomy.newest.generation - 1);
        assert_eq!(report.verified_sectors, 57, "the log behind it has the rest");
    }
}

#[tokio::test]
async fn the_root_before_the_newest_damaged_is_a_warning() {
    let store = closed().await;
    let anatomy = Anatomy::of(&store).await;
    let (block, _) = anatomy.root_of(&store, anatomy.newest.generation - 1);
    let at = block.payload.phys + u64::from(block.payload.offset);
    flip_at(&store, at + 40);
    clean_with_warning(&checked(&store, false).await, Structure::Root, at);
}

#[tokio::test]
async fn a_segment_header_damaged_is_a_warning_for_each() {
    let store = closed().await;
    let anatomy = Anatomy::of(&store).await;
    let rows: Vec<_> = anatomy.rows.iter().flatten().filter(|row| row.live > 0).collect();
    rows.iter().for_each(|row| flip(&store, Place { offset: row.phys, len: 160 }));
    let report = checked(&store, true).await;
    assert!(report.is_clean(), "{report:?}");
    let mut told: Vec<_> = report.warnings.iter().map(|warning| warning.offset.unwrap()).collect();
    told.sort_unstable();
    let mut expected: Vec<_> = rows.iter().map(|row| row.phys).collect();
    expected.sort_unstable();
    assert_eq!(told, expected);
    assert!(report.warnings.iter().all(|warning| warning.structure == Structure::SegmentHeader));
}

#[tokio::test]
async fn a_page_damaged_at_any_level_lists_every_sector_below_it_without_deep() {
    for (level, expected) in [(0, (512, 512)), (1, (0, 2048)), (2, (0, 2048))] {
        let store = closed().await;
        let anatomy = Anatomy::of(&store).await;
        // Of the leaves the second one, sectors 512 to 1023.
        let place = anatomy.pages[level][if level == 0 { 1 } else { 0 }];
        flip(&store, place);
        for deep in [false, true] {
            let report = checked(&store, deep).await;
            assert_eq!(only(&report.problems), (Structure::IndexPage, Some(place.offset)), "level {level}");
            assert_eq!(ranges(&report), [expected], "level {level}, deep {deep}");
            assert_eq!(report.damaged[0].offset, expected.0 * 4096);
            assert_eq!(report.damaged[0].bytes, expected.1 * 4096);
        }
    }
}

#[tokio::test]
async fn sectors_that_the_log_has_are_not_lost_with_their_page() {
    let mut disk = Disk::new(SIZE).await;
    let volume = disk.open().await;
    write(&volume, 0, 20, 1).await;
    volume.checkpoint().await.unwrap();
    write(&volume, 5, 10, 2).await;
    drop(disk.reopen().await);
    drop(volume);
    flip(&disk.store, Anatomy::of(&disk.store).await.pages[0][0]);
    for deep in [false, true] {
        let report = checked(&disk.store, deep).await;
        assert_eq!(ranges(&report), [(0, 5), (15, 497)], "deep {deep}");
        assert_eq!(report.verified_sectors, if deep { 10 } else { 0 });
    }
}

#[tokio::test]
async fn records_damaged_are_listed_as_ranges_by_a_deep_check_alone() {
    let store = closed().await;
    let anatomy = Anatomy::of(&store).await;
    for lba in [3, 4, 5, 39, 702] {
        let (_, place) = anatomy.records.iter().find(|(found, _)| *found == lba).unwrap();
        flip(&store, *place);
    }
    assert!(checked(&store, false).await.is_clean());
    let report = checked(&store, true).await;
    assert_eq!(ranges(&report), [(3, 3), (39, 1), (702, 1)]);
    assert_eq!((report.verified_sectors, report.damaged_sectors()), (52, 5));
    assert!(report.problems.is_empty());
}

#[tokio::test]
async fn a_log_damaged_in_the_middle_is_a_problem_and_what_precedes_it_is_verified() {
    let mut disk = Disk::new(4 * SIZE).await;
    let volume = disk.open().await;
    for lba in 0..8 {
        write(&volume, lba, 1, 1).await;
        sealbd::export::Export::flush(&volume).await.unwrap();
    }
    drop(disk.reopen().await);
    drop(volume);
    let place = Anatomy::of(&disk.store).await.log[3].place;
    flip_at(&disk.store, place.offset + 40);
    let report = checked(&disk.store, true).await;
    assert_eq!(only(&report.problems).0, Structure::Log);
    assert_eq!(report.verified_sectors, 3);
}

#[tokio::test]
async fn a_wrong_live_count_is_told_with_both_numbers() {
    let store = closed().await;
    let rows = Anatomy::of(&store).await.rows;
    let handle = rows.iter().position(|row| row.is_some_and(|row| row.live > 4112)).unwrap();
    let live = rows[handle].unwrap().live;
    forge::next_root(&store, |_, table| table.rows[handle].as_mut().unwrap().live -= 4112).await;
    let report = checked(&store, true).await;
    assert_eq!(only(&report.problems), (Structure::LiveCount, None));
    let told = &report.problems[0].message;
    assert!(told.contains(&format!("segment {handle} ")) && told.contains(&live.to_string()), "{told}");
}

#[tokio::test]
async fn a_segment_in_use_that_the_root_gave_up_is_told() {
    let store = closed().await;
    forge::next_root(&store, |root, table| {
        let row = table.rows.iter().flatten().find(|row| row.live > 0).unwrap();
        root.freed.push(SegmentPlace { uid: row.uid, phys: row.phys });
    })
    .await;
    let report = checked(&store, false).await;
    assert_eq!(only(&report.problems).0, Structure::SegmentTable);
    assert!(report.problems[0].message.contains("gave up"), "{report:?}");
}

#[tokio::test]
async fn a_table_with_two_segments_in_one_slot_is_no_root_to_open_by() {
    let store = closed().await;
    let newest = Anatomy::of(&store).await.newest.generation;
    forge::next_root(&store, |_, table| {
        let phys = table.rows.iter().flatten().next().unwrap().phys;
        let last = table.rows.iter_mut().flatten().next_back().unwrap();
        assert_ne!(last.phys, phys);
        last.phys = phys;
    })
    .await;
    let report = checked(&store, false).await;
    assert_eq!(only(&report.problems).0, Structure::Root);
    assert!(report.problems[0].message.contains("which another row has"), "{report:?}");
    assert_eq!(report.root, newest);
}

#[tokio::test]
async fn a_sector_in_a_segment_that_is_not_in_use_is_told_and_lost() {
    let store = closed().await;
    let rows = Anatomy::of(&store).await.rows;
    let used = |row: &sealbd::format::table::Row| row.kind == SegmentKind::Log && row.live > 0;
    let handle = rows.iter().position(|row| row.as_ref().is_some_and(used)).unwrap();
    forge::next_root(&store, |_, table| table.rows[handle] = None).await;
    let report = checked(&store, true).await;
    assert!(report.problems.iter().all(|problem| problem.structure == Structure::SegmentTable), "{report:?}");
    assert!(report.problems.iter().any(|problem| problem.message.contains("not in use")), "{report:?}");
    assert!(report.damaged_sectors() > 0 && report.damaged_sectors() < 57, "{report:?}");
}

#[tokio::test]
async fn a_zeroed_segment_is_told_by_every_sector_in_it() {
    let store = closed().await;
    let anatomy = Anatomy::of(&store).await;
    let phys = |lba: u64| {
        let (_, place) = anatomy.records.iter().find(|(found, _)| *found == lba).unwrap();
        let rows = anatomy.rows.iter().flatten();
        rows.map(|row| row.phys).filter(|phys| *phys <= place.offset).max().unwrap()
    };
    let len = anatomy.header.segment_bytes as usize;
    zero(&store, Place { offset: phys(700), len });
    let lost: Vec<u64> =
        anatomy.records.iter().map(|(lba, _)| *lba).filter(|lba| phys(*lba) == phys(700)).collect();
    let report = checked(&store, true).await;
    assert_eq!(report.damaged_sectors(), lost.len() as u64);
    assert!(lost.iter().all(|lba| ranges(&report).iter().any(|(at, count)| (*at..at + count).contains(lba))));
}
