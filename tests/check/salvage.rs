//! What is copied from a damaged volume is what was written, and what is not copied is listed.

use std::sync::Arc;

use sealbd::store::memory::MemoryStore;
use sealbd::volume::VolumeError;
use sealbd::volume::check::Structure;
use sealbd::volume::salvage::Copied;

use crate::anatomy::{Anatomy, flip, flip_at, zero};
use crate::volumes::Disk;
use crate::{SECTORS, SIZE, closed, closed_model, salvaged, volumes, write};

/// The copy, sector by sector: `None` where nothing was copied, else the byte that fills it.
async fn copy(store: &Arc<MemoryStore>) -> (Vec<Option<u8>>, Copied) {
    let salvaged = salvaged(store).await;
    let mut out = vec![None; SECTORS as usize];
    let copied = salvaged.volume.salvage(
        |_| {},
        |at, bytes| {
            for (lba, sector) in (at as usize / 4096..).zip(bytes.chunks_exact(4096)) {
                assert!(sector.iter().all(|byte| *byte == sector[0]), "sector {lba} is of one write");
                out[lba] = Some(sector[0]);
            }
            Ok(())
        },
    );
    let copied = copied.await.unwrap();
    assert_eq!(copied.sectors, out.iter().flatten().count() as u64);
    (out, copied)
}

/// Holes of the copy read as zeros.
fn filled(out: &[Option<u8>]) -> Vec<u8> {
    out.iter().map(|sector| sector.unwrap_or(0)).collect()
}

#[tokio::test]
async fn a_good_volume_is_copied_whole_and_its_holes_stay_holes() {
    let (out, copied) = copy(&closed().await).await;
    assert_eq!(filled(&out), closed_model());
    assert_eq!((copied.sectors, copied.lost.len()), (57, 0), "no hole is written");
}

#[tokio::test]
async fn sectors_that_do_not_authenticate_are_left_out_and_listed() {
    let store = closed().await;
    let anatomy = Anatomy::of(&store).await;
    for lba in [3, 4, 39, 702] {
        flip(&store, anatomy.records.iter().find(|(found, _)| *found == lba).unwrap().1);
    }
    let (out, copied) = copy(&store).await;
    let lost: Vec<_> = copied.lost.iter().map(|range| (range.first_sector, range.sectors)).collect();
    assert_eq!(lost, [(3, 2), (39, 1), (702, 1)]);
    for (lba, (found, wanted)) in out.iter().zip(closed_model()).enumerate() {
        let is_lost = [3, 4, 39, 702].contains(&lba);
        assert_eq!(*found, (wanted != 0 && !is_lost).then_some(wanted), "sector {lba}");
    }
}

#[tokio::test]
async fn the_newest_root_damaged_costs_nothing_as_the_log_behind_the_one_before_has_it() {
    for damage in [Anatomy::payload, Anatomy::table] {
        let store = closed().await;
        let anatomy = Anatomy::of(&store).await;
        flip(&store, damage(&anatomy));
        let salvaged = salvaged(&store).await;
        assert_eq!(
            (salvaged.root, salvaged.newest),
            (anatomy.newest.generation - 1, anatomy.newest.generation)
        );
        assert!(salvaged.begun.is_some_and(|begun| begun > 1_600_000_000), "{:?}", salvaged.begun);
        assert_eq!(filled(&copy(&store).await.0), closed_model());
    }
}

#[tokio::test]
async fn an_older_root_gives_what_was_written_by_then_or_nothing_and_never_anything_else() {
    let store = closed().await;
    let anatomy = Anatomy::of(&store).await;
    let newest = anatomy.newest.generation;
    // What each sector ever held.
    let history = |lba: usize| {
        let writes = [(0, 40, 1), (700, 5, 2), (20, 30, 3), (1600, 2, 4), (30, 2, 5)];
        writes.into_iter().filter(move |(at, count, _)| (*at..at + count).contains(&lba)).map(|write| write.2)
    };
    let mut used = Vec::new();
    for back in 0..newest {
        let (block, _) = anatomy.root_of(&store, newest - back);
        flip_at(&store, block.payload.phys + u64::from(block.payload.offset) + 40);
        let unlocked = volumes::unlock(&*store).await.unwrap();
        let opened = sealbd::volume::Volume::open_salvage(store.clone(), unlocked).await;
        let salvaged = match opened {
            Ok(salvaged) => salvaged,
            Err(VolumeError::NoRoot(_)) => break,
            Err(other) => panic!("{other}"),
        };
        assert_eq!((salvaged.root, salvaged.newest), (newest - back - 1, newest));
        assert_eq!(salvaged.findings.len() as u64, back + 1, "each is named: {:?}", salvaged.findings);
        used.push(salvaged.root);
        let (out, _) = copy(&store).await;
        for (lba, found) in out.iter().enumerate() {
            let is_old = found.is_none_or(|found| history(lba).any(|fill| fill == found));
            assert!(is_old, "root {}: sector {lba} is {found:?}", salvaged.root);
        }
    }
    assert!(used.len() >= 2, "more than the one root that opening allows: {used:?}");
}

#[tokio::test]
async fn a_log_damaged_in_the_middle_gives_its_beginning() {
    let mut disk = Disk::new(SIZE).await;
    let volume = disk.open().await;
    for lba in 0..8 {
        write(&volume, lba, 1, 10 + lba as u8).await;
        sealbd::export::Export::flush(&volume).await.unwrap();
    }
    drop(disk.reopen().await);
    drop(volume);
    let log = Anatomy::of(&disk.store).await.log;
    flip_at(&disk.store, log[5].place.offset + 40);
    let opened = salvaged(&disk.store).await;
    assert_eq!(opened.findings.len(), 1);
    assert_eq!(opened.findings[0].structure, Structure::Log);
    let (out, _) = copy(&disk.store).await;
    assert_eq!(&filled(&out)[..9], [10, 11, 12, 13, 14, 0, 0, 0, 0]);
}

#[tokio::test]
async fn a_store_cut_short_gives_what_lies_before_the_cut() {
    let store = closed().await;
    let anatomy = Anatomy::of(&store).await;
    // The roots, the index and the log of a small volume lie in its first segments; behind them is nothing.
    let rows = anatomy.rows.iter().flatten();
    let end = rows.map(|row| row.phys).max().unwrap() + u64::from(anatomy.header.segment_bytes);
    let needed = anatomy.header.store_bytes();
    assert!(end < needed);
    let cut = Arc::new(MemoryStore::from_bytes(&store.read_raw(0, end as usize)));
    let opened = salvaged(&cut).await;
    assert!(opened.findings[0].message.contains("the volume needs"), "{:?}", opened.findings);
    assert_eq!(filled(&copy(&cut).await.0), closed_model());
    // In the middle of the data: what lies behind the cut is listed.
    let (_, first) = anatomy.records[0];
    let cut = Arc::new(MemoryStore::from_bytes(&store.read_raw(0, end as usize)));
    zero(&cut, first);
    assert_eq!(copy(&cut).await.1.lost.len(), 1);
}

#[tokio::test]
async fn a_copy_that_cannot_be_written_is_an_error_and_not_a_loss() {
    let opened = salvaged(&closed().await).await;
    let failed = opened.volume.salvage(|_| {}, |_, _| Err(std::io::ErrorKind::StorageFull.into())).await;
    assert!(matches!(failed, Err(VolumeError::Store(_))), "{failed:?}");
}
