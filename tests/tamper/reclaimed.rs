//! A volume that was overwritten many times, so that its space was reclaimed: what moved is held by the same rule.

use super::*;
use sealbd::format::segment::SegmentKind;
use sealbd::volume::check::{CheckReport, Structure};
use sealbd::volume::salvage::Salvaged;

/// Rounds after which something must have been moved.
const ROUNDS_MAX: u32 = 400;

/// Sectors that are written once: every fourth one.
fn is_cold(lba: u64) -> bool {
    lba.is_multiple_of(4)
}

/// A closed volume in which space was reclaimed.
struct Reclaimed {
    scene: Scene,
    /// Cold sectors that were moved, and where they lie now.
    moved: Vec<(u64, Place)>,
    /// The store before anything was overwritten.
    before: MemoryStore,
    /// What each sector ever held.
    history: Vec<Vec<u8>>,
}

async fn reclaimed() -> Reclaimed {
    let disk = Disk::new(SIZE).await;
    let mut model = vec![0; SECTORS as usize];
    let volume = disk.open().await;
    for lba in 0..SECTORS {
        write(&volume, &mut model, lba, 1, 1 + (lba % 200) as u8).await;
    }
    volume.checkpoint().await.unwrap();
    let before = disk.store.snapshot();
    let mut history: Vec<Vec<u8>> = model.iter().map(|fill| vec![0, *fill]).collect();
    let first = Anatomy::of(&before).await;
    let place = |anatomy: &Anatomy, lba: u64| anatomy.records[lba as usize].1;
    let mut state = 1u64;
    for _ in 0..ROUNDS_MAX {
        for _ in 0..256 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let lba = (state >> 33) % SECTORS;
            if !is_cold(lba) {
                write(&volume, &mut model, lba, 1, (state >> 20) as u8).await;
                history[lba as usize].push((state >> 20) as u8);
            }
        }
        volume.checkpoint().await.unwrap();
        let now = Anatomy::of(&disk.store).await;
        assert_eq!(now.records.len() as u64, SECTORS);
        let moved = (0..SECTORS).filter(|lba| is_cold(*lba) && place(&now, *lba) != place(&first, *lba));
        if moved.count() >= 64 {
            break;
        }
    }
    volume.close().await.unwrap();
    let scene = Scene::of(&disk.store, model).await;
    let moved =
        (0..SECTORS).filter(|lba| is_cold(*lba) && place(&scene.anatomy, *lba) != place(&first, *lba));
    let moved: Vec<_> = moved.map(|lba| (lba, place(&scene.anatomy, lba))).collect();
    assert!(moved.len() >= 64, "nothing was moved in {ROUNDS_MAX} rounds: {}", moved.len());
    Reclaimed { scene, moved, before, history }
}

impl Scene {
    /// The same scene on a copy of its store.
    fn copy(&self) -> Arc<MemoryStore> {
        Arc::new(self.store.snapshot())
    }
}

/// What a check says of a store, and that reading it shows nothing wrong.
async fn told(store: &Arc<MemoryStore>, model: &[u8]) -> CheckReport {
    shows_nothing_wrong(store.snapshot(), model).await;
    let unlocked = volumes::unlock(&**store).await.unwrap();
    let Salvaged { volume, findings, .. } = Volume::open_salvage(store.clone(), unlocked).await.unwrap();
    let mut report = volume.check(true, |_| {}).await.unwrap();
    report.problems.extend(findings);
    report
}

#[tokio::test]
async fn every_structure_of_a_reclaimed_volume_is_an_error_and_named_when_it_is_damaged() {
    let Reclaimed { scene, moved, before, .. } = reclaimed().await;
    let report = told(&scene.copy(), &scene.model).await;
    assert!(report.is_clean() && report.warnings.is_empty(), "{report:?}");
    assert_eq!(report.verified_sectors, SECTORS);

    // Records that were moved: flipped, cut, zeroed, and exchanged.
    for (damage, (lba, place)) in [flip, truncate, zero].into_iter().zip(moved.iter().step_by(13)) {
        let store = scene.copy();
        damage(&store, *place);
        let report = told(&store, &scene.model).await;
        let listed: Vec<_> = report.damaged.iter().map(|range| (range.first_sector, range.sectors)).collect();
        assert_eq!(listed, [(*lba, 1)]);
    }
    let store = scene.copy();
    swap(&store, moved[1].1, moved[40].1);
    let report = told(&store, &scene.model).await;
    assert_eq!(report.damaged_sectors(), 2, "{report:?}");

    // What stood there before, and the whole segment as it was.
    let store = scene.copy();
    replay(&store, moved[3].1, &before);
    assert_eq!(told(&store, &scene.model).await.damaged[0].first_sector, moved[3].0);
    let bytes = scene.anatomy.header.segment_bytes as usize;
    let row = scene.anatomy.rows.iter().flatten().filter(|row| row.phys <= moved[3].1.offset);
    let row = row.max_by_key(|row| row.phys).unwrap();
    assert!(row.kind != SegmentKind::Index, "moved sectors lie among data");
    let store = scene.copy();
    replay(&store, Place { offset: row.phys, len: bytes }, &before);
    let report = told(&store, &scene.model).await;
    let lost =
        |lba: u64| report.damaged.iter().any(|r| (r.first_sector..r.first_sector + r.sectors).contains(&lba));
    assert!(lost(moved[3].0), "{report:?}");

    // The header of that segment is not needed for what is in it.
    let store = scene.copy();
    flip(&store, Place { offset: row.phys, len: 160 });
    let report = told(&store, &scene.model).await;
    assert!(report.is_clean(), "{report:?}");
    assert!(
        report.warnings.iter().any(|w| (w.structure, w.offset) == (Structure::SegmentHeader, Some(row.phys)))
    );
}

#[tokio::test]
async fn the_index_and_the_roots_of_a_reclaimed_volume_are_named_when_they_are_damaged() {
    let Reclaimed { scene, before, history, .. } = reclaimed().await;
    let newest = scene.anatomy.newest.generation;
    for level in 0..3 {
        for place in [scene.anatomy.pages[level][0], *scene.anatomy.pages[level].last().unwrap()] {
            for again in [false, true] {
                let store = scene.copy();
                if again {
                    replay(&store, place, &before)
                } else {
                    flip(&store, place)
                }
                let report = told(&store, &scene.model).await;
                let named = |problem: &sealbd::volume::check::Finding| {
                    (problem.structure, problem.offset) == (Structure::IndexPage, Some(place.offset))
                };
                assert!(report.problems.iter().any(named), "level {level}, replayed {again}: {report:?}");
                assert!(!report.damaged.is_empty(), "level {level}");
            }
        }
    }
    for (place, structure) in
        [(scene.anatomy.payload(), Structure::Root), (scene.anatomy.table(), Structure::Root)]
    {
        let store = scene.copy();
        flip(&store, place);
        let report = told(&store, &scene.model).await;
        assert!(report.problems.iter().any(|problem| problem.structure == structure), "{report:?}");
    }
    // The newest ring block may have been torn: the root before it is there, and so is the log behind it.
    let store = scene.copy();
    flip(&store, scene.anatomy.ring_block(newest));
    let report = told(&store, &scene.model).await;
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.root, report.warnings[0].structure), (newest - 1, Structure::RootRing));
    // A ring of long ago leads to slots that were used again. What can still be read of it, with as much of the log
    // as still follows it, is what the sector held at some time.
    let store = scene.copy();
    (0..8).for_each(|slot| replay(&store, scene.anatomy.ring_block(slot), &before));
    let disk = Disk { store };
    if let Ok(volume) = disk.open_as(OpenMode::ReadOnly).await {
        for lba in 0..SECTORS {
            let mut sector = [0xee; 4096];
            let read = volume.read(sectors(lba, 1), &mut sector).await;
            let held = &history[lba as usize];
            let is_old = held.contains(&sector[0]) && sector == [sector[0]; 4096];
            assert!(read.is_err() || is_old, "sector {lba} never held {}", sector[0]);
        }
    }
}

#[tokio::test]
async fn one_flipped_bit_anywhere_in_a_reclaimed_volume_never_shows_anything_wrong() {
    let Reclaimed { scene, .. } = reclaimed().await;
    let blocks = written_blocks(&scene.store, scene.anatomy.header.store_bytes());
    for (number, block) in (0u64..).zip(blocks).step_by(41) {
        let store = scene.store.snapshot();
        flip_at(&store, block + number * 97 % 4096);
        shows_nothing_wrong(store, &scene.model).await;
    }
}
