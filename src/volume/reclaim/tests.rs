//! What clients and space may rely on while sectors are moved.

use std::sync::Arc;
use std::time::Duration;

use keymgmt::keyfile::Keyfile;
use keymgmt::secret::Secret32;

use super::*;
use crate::cipher::Engine;
use crate::export::{Durability, Export, ExportError};
use crate::geometry::{ByteRange, Lba, SECTOR_BYTES, SECTOR_LEN, SectorRange};
use crate::payload::Payload;
use crate::random::Random;
use crate::store::SlotStore;
use crate::store::memory::{Fault, MemoryStore, Operation};
use crate::volume::create::{Geometry, NewVolume, OverProvisioning};
use crate::volume::read::tests::{DISTANCE, Distant};
use crate::volume::unlock::read_header;
use crate::volume::{OpenMode, Volume};

const SIZE: u64 = 32 << 20;
const SECTORS: u64 = SIZE / SECTOR_BYTES;

/// How long anything here may take.
const DEADLINE: Duration = Duration::from_secs(60);

async fn fresh(size: u64, spare: OverProvisioning) -> Volume {
    let geometry = Geometry::with_spare(size, spare).unwrap();
    fresh_on(Arc::new(MemoryStore::new(geometry.store_bytes())), geometry).await
}

/// A new volume on `store`, open.
pub(in crate::volume) async fn fresh_on(store: Arc<dyn SlotStore>, geometry: Geometry) -> Volume {
    let manager = || Keyfile::from_secret(Secret32::take(&mut [7; 32]));
    let mut new = NewVolume::prepare(geometry, 512, "reclaim", Engine::default()).unwrap();
    new.add_key(&manager(), 0).await.unwrap();
    new.write(store.clone()).await.unwrap();
    let header = read_header(&*store).await.unwrap();
    let unlocked = header.unlock(Engine::default(), &[Box::new(manager()) as _]).await.unwrap();
    Volume::open(store, unlocked, OpenMode::ReadWrite).await.unwrap()
}

fn sectors(volume: &Volume, lba: u64, count: u64) -> ByteRange {
    let size = volume.core.header().export_bytes;
    ByteRange::within(lba * SECTOR_BYTES, count * SECTOR_BYTES, size).unwrap()
}

async fn write(volume: &Volume, lba: u64, fill: u8) -> Result<(), ExportError> {
    let payload = Payload::copy_of(sectors(volume, lba, 1), &[fill; SECTOR_LEN]);
    volume.write(payload, Durability::Accepted).await
}

async fn fill_of(volume: &Volume, lba: u64) -> u8 {
    let mut sector = [0xee; SECTOR_LEN];
    volume.read(sectors(volume, lba, 1), &mut sector).await.unwrap();
    assert!(sector.iter().all(|byte| *byte == sector[0]), "one write fills a sector");
    sector[0]
}

/// Every other sector written again, so that the segments of the first writing are half dead.
async fn half_dead(spare: OverProvisioning) -> Volume {
    let volume = fresh(SIZE, spare).await;
    let_half_die(&volume).await;
    volume
}

/// The same where each read takes [`DISTANCE`].
async fn half_dead_and_distant() -> Volume {
    let geometry = Geometry::with_spare(SIZE, OverProvisioning::MAX).unwrap();
    let volume = fresh_on(Distant::new(&geometry), geometry).await;
    let_half_die(&volume).await;
    volume
}

async fn let_half_die(volume: &Volume) {
    for lba in 0..SECTORS {
        write(volume, lba, 1).await.unwrap();
    }
    for lba in (0..SECTORS).step_by(2) {
        write(volume, lba, 2).await.unwrap();
    }
    volume.checkpoint().await.unwrap();
}

async fn clean(volume: &Volume) {
    let report = volume.check(true, |_| ()).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
}

/// Moves a whole batch without a checkpoint; the number of sectors moved.
async fn batch(volume: &Volume) -> u64 {
    let mut reclaimer = Reclaimer::default();
    while reclaimer.step(&volume.core).await.unwrap() == Step::Going {}
    volume.core.moves().moves.iter().map(|moved| moved.sectors.count).sum()
}

#[tokio::test]
async fn a_batch_empties_segments_and_everything_reads_as_before() {
    let volume = half_dead(OverProvisioning::MAX).await;
    let before = volume.status().space;
    assert!(batch(&volume).await > 1000);
    volume.checkpoint().await.unwrap();
    volume.core.root_again().await.unwrap();
    let after = volume.status().space;
    assert!(after.free_slots > before.free_slots, "{before:?} {after:?}");
    assert_eq!(after.live_bytes, before.live_bytes);
    for lba in 0..SECTORS {
        assert_eq!(fill_of(&volume, lba).await, if lba % 2 == 0 { 2 } else { 1 });
    }
    clean(&volume).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_next_chunk_takes_is_read_before_it_is_asked_for() {
    let volume = half_dead_and_distant().await;
    let mut reclaimer = Reclaimer::default();
    assert_eq!(reclaimer.step(&volume.core).await.unwrap(), Step::Going);
    tokio::time::sleep(DISTANCE * 10).await;
    let moved = volume.core.moves().moves.len();
    let began = tokio::time::Instant::now();
    assert_eq!(reclaimer.step(&volume.core).await.unwrap(), Step::Going);
    assert!(volume.core.moves().moves.len() >= moved + 32, "a chunk was moved");
    // Half of it: the other half of what was looked up is dead.
    assert!(began.elapsed() <= DISTANCE, "{:?}", began.elapsed());
}

/// It once counted runs, and what was being read as many of them: with few and long ones, writers got nothing
/// before the batch was at its end.
#[tokio::test]
async fn what_is_left_of_long_runs_falls_with_what_was_moved() {
    let volume = fresh(SIZE, OverProvisioning::MAX).await;
    for lba in (0..SECTORS).step_by(256) {
        let payload = Payload::copy_of(sectors(&volume, lba, 256), &[1; 256 * SECTOR_LEN]);
        volume.write(payload, Durability::Accepted).await.unwrap();
    }
    volume.checkpoint().await.unwrap();
    for lba in (0..SECTORS).step_by(256 * 3) {
        volume.trim(sectors(&volume, lba, 256), Durability::Accepted).await.unwrap();
    }
    volume.checkpoint().await.unwrap();
    let mut reclaimer = Reclaimer::default();
    let mut steps = 0;
    while reclaimer.step(&volume.core).await.unwrap() == Step::Going {
        let batch = reclaimer.batch.as_ref().expect("it goes on");
        let moved: u64 = volume.core.moves().moves.iter().map(|moved| moved.sectors.count).sum();
        let (left, total) = batch.live.left();
        assert!(left <= total - moved, "{left} of {total} sectors are left, {moved} were moved");
        assert!(batch.kept() <= (batch.moves + batch.beside) * (total + left) / (2 * total) + 1);
        steps += 1;
    }
    assert!(steps > 4, "{steps}");
}

/// Nobody wants what is being read, and writers wait for the slots that the batch kept.
#[tokio::test(start_paused = true)]
async fn a_batch_that_is_given_up_does_not_wait_for_the_store() {
    let volume = half_dead_and_distant().await;
    let mut reclaimer = Reclaimer::default();
    assert_eq!(reclaimer.step(&volume.core).await.unwrap(), Step::Going);
    let began = tokio::time::Instant::now();
    reclaimer.give_up(&volume.core).await;
    assert!(began.elapsed() < DISTANCE / 2, "{:?}", began.elapsed());
    assert!(!reclaimer.is_going());
    clean(&volume).await;
}

/// In front of what is moved next, sectors were looked up already when clients write and trim them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_between_look_up_and_move_stays() {
    let volume = half_dead(OverProvisioning::MAX).await;
    let core = &volume.core;
    let mut model: Vec<u8> = (0..SECTORS).map(|lba| if lba % 2 == 0 { 2 } else { 1 }).collect();
    let mut random = Random(1);
    let mut going = 0;
    for round in 0..300 {
        let step = core.reclaimer.lock().await.step(core).await;
        going += u32::from(matches!(step, Ok(Step::Going)));
        let front = core.moves().moves.iter().map(|moved| moved.sectors.end().0).max().unwrap_or(0);
        for near in [true, false].repeat(20) {
            let lba = if near { (front + random.below(1200)) % SECTORS } else { random.below(SECTORS) };
            if random.below(4) == 0 {
                let count = (random.below(8) + 1).min(SECTORS - lba);
                volume.trim(sectors(&volume, lba, count), Durability::Accepted).await.unwrap();
                (lba..lba + count).for_each(|lba| model[usize::try_from(lba).unwrap()] = 0);
            } else {
                let fill = u8::try_from(random.below(250) + 3).unwrap();
                write(&volume, lba, fill).await.unwrap();
                model[usize::try_from(lba).unwrap()] = fill;
            }
        }
        if round % 3 == 0 {
            volume.checkpoint().await.unwrap();
        }
        if round % 4 == 0 {
            core.root_again().await.unwrap();
        }
        if random.below(23) == 0 {
            core.reclaimer.lock().await.give_up(core).await;
        }
    }
    assert!(going > 20, "{going}");
    assert!(core.reclaimer.lock().await.damaged.is_empty());
    for (lba, fill) in (0..).zip(model) {
        assert_eq!(fill_of(&volume, lba).await, fill, "sector {lba}");
    }
    clean(&volume).await;
    volume.close().await.unwrap();
}

/// Each run that did not fit into the rest of a segment is divided, and what was read of it with it.
#[tokio::test]
async fn long_runs_that_are_moved_read_as_before() {
    let volume = fresh(SIZE, OverProvisioning::MAX).await;
    // Runs of 61 sectors, which no chunk holds a whole number of.
    for (k, lba) in (0..SECTORS - 61).step_by(61).enumerate() {
        let fills: Vec<u8> = (0..61).flat_map(|i| [long_fill(lba + i); SECTOR_LEN]).collect();
        volume
            .write(Payload::copy_of(sectors(&volume, lba, 61), &fills), Durability::Accepted)
            .await
            .unwrap();
        if k % 2 == 0 {
            write(&volume, SECTORS - 1, 3).await.unwrap();
            write(&volume, SECTORS - 2, 3).await.unwrap();
        }
    }
    for lba in (0..SECTORS - 61).step_by(61 * 3) {
        volume.trim(sectors(&volume, lba, 61), Durability::Accepted).await.unwrap();
    }
    volume.checkpoint().await.unwrap();
    assert!(batch(&volume).await > 1000);
    volume.checkpoint().await.unwrap();
    for lba in (0..SECTORS / 61 * 61 - 61).filter(|lba| lba / 61 % 3 > 0) {
        assert_eq!(fill_of(&volume, lba).await, long_fill(lba), "sector {lba}");
    }
    clean(&volume).await;
}

fn long_fill(lba: u64) -> u8 {
    u8::try_from(lba % 251).unwrap()
}

#[tokio::test]
async fn moves_leave_checkpoints_what_they_need_also_when_others_took_slots_meanwhile() {
    let volume = half_dead(OverProvisioning::MAX).await;
    let least = volume.core.room.reserve().div_ceil(2);
    let mut reclaimer = Reclaimer::default();
    assert_eq!(reclaimer.step(&volume.core).await.unwrap(), Step::Going);
    let mut taken = Vec::new();
    while volume.core.segments.table().slots().unused() > least {
        taken.push(volume.core.segments.table_mut().slots_mut().take_any().unwrap());
    }
    while reclaimer.step(&volume.core).await.unwrap() == Step::Going {}
    assert_eq!(volume.core.segments.table().slots().unused(), least);
    let moved: u64 = volume.core.moves().moves.iter().map(|moved| moved.sectors.count).sum();
    assert!(moved > 0);
    volume.core.segments.table_mut().release(&taken);
    volume.checkpoint().await.unwrap();
    clean(&volume).await;
}

#[tokio::test]
async fn a_write_between_a_move_and_its_checkpoint_is_never_undone() {
    let volume = half_dead(OverProvisioning::MAX).await;
    assert!(batch(&volume).await > 0);
    let moved: Vec<_> = volume.core.moves().moves.iter().map(|moved| moved.sectors.start.0).collect();
    let rewritten: Vec<_> = moved.iter().copied().step_by(3).collect();
    for lba in &rewritten {
        write(&volume, *lba, 3).await.unwrap();
    }
    let trimmed = *moved.iter().find(|lba| !rewritten.contains(lba)).unwrap();
    volume.trim(sectors(&volume, trimmed, 1), Durability::Accepted).await.unwrap();
    volume.checkpoint().await.unwrap();
    for lba in &moved {
        let fill = fill_of(&volume, *lba).await;
        let expected = if rewritten.contains(lba) {
            3
        } else if *lba == trimmed {
            0
        } else {
            2 - u8::from(lba % 2 == 1)
        };
        assert_eq!(fill, expected, "sector {lba}");
    }
    clean(&volume).await;
}

#[tokio::test]
async fn a_place_that_a_move_came_from_is_nobody_elses_before_it_took_effect() {
    let volume = half_dead(OverProvisioning::MAX).await;
    assert!(batch(&volume).await > 0);
    // What was moved out of one segment is written anew, which frees it, with many roots that could give its
    // handle away; but the moves are kept back.
    let moves = std::mem::take(&mut *volume.core.moves());
    let old = moves.moves[0].old.handle().unwrap();
    let moved: Vec<_> = moves
        .moves
        .iter()
        .filter(|moved| moved.old.handle() == Some(old))
        .flat_map(|moved| moved.sectors.start.0..moved.sectors.end().0)
        .collect();
    for lba in &moved {
        write(&volume, *lba, 6).await.unwrap();
    }
    for lba in 0..64 {
        volume.checkpoint().await.unwrap();
        volume.core.root_again().await.unwrap();
        write(&volume, 2 * lba, 6).await.unwrap();
    }
    assert!(volume.core.segments.table().rows().all(|(handle, _)| handle != old));
    *volume.core.moves() = moves;
    volume.checkpoint().await.unwrap();
    for lba in moved {
        assert_eq!(fill_of(&volume, lba).await, 6);
    }
    clean(&volume).await;
}

/// What a long run left behind it was once passed over, and its old place kept for ever.
#[tokio::test]
async fn moves_take_effect_in_whatever_order_they_were_made() {
    let volume = half_dead(OverProvisioning::MAX).await;
    assert!(batch(&volume).await > 100);
    let moves = {
        let mut moves = volume.core.moves();
        // Every third one first, the others backwards.
        let (first, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut moves.moves).into_iter().partition(|moved| moved.sectors.start.0 % 3 == 0);
        moves.moves = first.into_iter().chain(rest.into_iter().rev()).collect();
        moves.moves.clone()
    };
    volume.checkpoint().await.unwrap();
    let tree = volume.core.map().tree.clone();
    for moved in moves {
        for step in 0..moved.sectors.count {
            let lba = Lba(moved.sectors.start.0 + step);
            let found = volume.core.pages.walk(&volume.core.segments, &tree).run_at(lba, 1).await.unwrap();
            assert_eq!(found.loc, moved.new.step(step), "sector {lba}");
        }
    }
    clean(&volume).await;
}

#[tokio::test]
async fn moves_that_never_took_effect_leave_nothing_behind() {
    let volume = half_dead(OverProvisioning::MAX).await;
    let before = volume.status().space;
    assert!(batch(&volume).await > 0);
    for lba in 0..SECTORS {
        write(&volume, lba, 9).await.unwrap();
    }
    for _ in 0..3 {
        volume.checkpoint().await.unwrap();
        volume.core.root_again().await.unwrap();
    }
    let after = volume.status().space;
    assert_eq!(after.live_bytes, before.live_bytes);
    assert!(after.free_slots >= before.free_slots, "{before:?} {after:?}");
    clean(&volume).await;
}

/// Writers once got "no space" while freed slots only waited for a reader to end.
#[tokio::test]
async fn writers_wait_for_a_slow_reader_and_are_not_told_that_there_is_no_space() {
    let volume = half_dead(OverProvisioning::DEFAULT).await;
    let reader = volume.core.segments.table().guard();
    let writer = {
        let volume = volume.clone();
        tokio::spawn(async move {
            for round in 0..4 {
                for lba in 0..SECTORS {
                    write(&volume, lba, 10 + round).await?;
                }
            }
            Ok::<(), ExportError>(())
        })
    };
    let waits = async {
        while !volume.core.queue().stalled || !volume.core.segments.table().waits_for_readers() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, waits).await.expect("the writer comes to where the reader is in its way");
    assert!(!writer.is_finished());
    drop(reader);
    tokio::time::timeout(DEADLINE, writer).await.expect("it goes on").unwrap().unwrap();
    clean(&volume).await;
}

#[tokio::test]
async fn trim_is_not_held_up_by_writes_that_wait_for_room() {
    let volume = half_dead(OverProvisioning::DEFAULT).await;
    let reader = volume.core.segments.table().guard();
    let writers: Vec<_> = (0..64)
        .map(|writer| {
            let volume = volume.clone();
            tokio::spawn(async move {
                for round in 0..3 {
                    for lba in (writer..SECTORS).step_by(64) {
                        write(&volume, lba, 20 + round).await?;
                    }
                }
                Ok::<(), ExportError>(())
            })
        })
        .collect();
    let waits = async {
        while !volume.core.queue().stalled || !volume.core.segments.table().waits_for_readers() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, waits).await.expect("writers come to where the reader is in their way");
    // With nothing coming back, moves and roots once went on until there was no slot for a checkpoint.
    assert!(volume.core.segments.table().slots().unused() > 0);
    // Somewhere else than what waits: it would have to wait for that.
    let far = {
        let queue = volume.core.queue();
        let waits = |lba: u64| {
            queue.waiting.iter().any(|part| part.sectors.overlaps(SectorRange::new(Lba(lba), 512)))
        };
        (0..SECTORS).step_by(512).find(|lba| !waits(*lba)).unwrap()
    };
    let trimmed = sectors(&volume, far, 512);
    tokio::time::timeout(DEADLINE, volume.trim(trimmed, Durability::Durable))
        .await
        .expect("at once")
        .unwrap();
    assert!(writers.iter().any(|writer| !writer.is_finished()));
    drop(reader);
    for writer in writers {
        tokio::time::timeout(DEADLINE, writer).await.expect("they go on").unwrap().unwrap();
    }
    clean(&volume).await;
}

/// Index segments with a page or two that were still needed were once kept for ever.
#[tokio::test]
async fn index_segments_with_few_needed_pages_are_emptied() {
    let volume = fresh(16 << 30, OverProvisioning::DEFAULT).await;
    let leaves = (16 << 30) / SECTOR_BYTES / 512;
    // Each checkpoint writes some pages that stay, among many that the next one writes again.
    for round in 0..40u64 {
        for leaf in 0..400 {
            let stays = leaf < 8;
            let leaf = if stays { leaves / 2 + round * 8 + leaf } else { leaf };
            for extent in 0..4 {
                write(&volume, leaf * 512 + extent * 7, u8::try_from(round).unwrap() + 1).await.unwrap();
            }
        }
        volume.checkpoint().await.unwrap();
    }
    let rows = |volume: &Volume| {
        let table = volume.core.segments.table();
        table.rows().filter(|(_, row)| row.kind == SegmentKind::Index).count() as u64
    };
    let (segments, space) = (rows(&volume), volume.status().space);
    let needed = space.index_bytes.div_ceil(space.segment_bytes);
    assert!(segments <= needed + 12, "{segments} index segments for what {needed} hold");
    clean(&volume).await;
}

/// A batch that ended with an error once left moves behind, which kept what was freed from being free, while the background
/// task waited for that: nothing was written any more.
#[tokio::test]
async fn room_is_not_waited_for_while_moves_of_a_failed_batch_keep_it() {
    let volume = half_dead(OverProvisioning::DEFAULT).await;
    let core = &volume.core;
    let mut taken = Vec::new();
    {
        // Held, so that the background task stays out of it.
        let mut reclaimer = core.reclaimer.lock().await;
        while core.moves().guards.is_empty() {
            assert_eq!(reclaimer.step(core).await.unwrap(), Step::Going);
        }
        reclaimer.give_up(core).await;
        // What dies now is freed, and kept by the guard of the moves.
        volume.trim(sectors(&volume, 0, SECTORS / 2), Durability::Accepted).await.unwrap();
        while !core.segments.table().waits_for_readers() {
            core.root_again().await.unwrap();
        }
        while core.has_room_for_moves() {
            taken.push(core.segments.table_mut().slots_mut().take_any().unwrap());
        }
    }
    let write = write(&volume, 1, 9);
    let answer = tokio::time::timeout(DEADLINE, write).await.expect("it is answered");
    assert!(matches!(answer, Ok(()) | Err(ExportError::NoSpace(_))), "{answer:?}");
    assert!(core.moves().moves.is_empty());
    core.segments.table_mut().release(&taken);
    clean(&volume).await;
}

/// Each batch whose first write failed once took a slot that nothing gave back: a store that failed for a minute left a
/// volume without a slot for the root that opens it.
#[tokio::test]
async fn moves_that_cannot_be_written_do_not_use_up_the_slots() {
    let geometry = Geometry::with_spare(SIZE, OverProvisioning::DEFAULT).unwrap();
    let store = Arc::new(MemoryStore::new(geometry.store_bytes()));
    let volume = fresh_on(store.clone(), geometry).await;
    let_half_die(&volume).await;
    let core = &volume.core;
    {
        // Held, so that the background task stays out of it.
        let mut reclaimer = core.reclaimer.lock().await;
        let before = core.segments.table().slots().unused();
        store.inject(Operation::Write, 0, Fault::Io);
        assert!(reclaimer.step(core).await.is_err());
        for _ in 0..before {
            store.inject(Operation::Write, 0, Fault::Io);
            assert_eq!(reclaimer.step(core).await.unwrap(), Step::Finished, "a checkpoint comes first");
            assert!(volume.checkpoint().await.is_err());
        }
        assert_eq!(core.segments.table().slots().unused(), before - 1);
        // It is closed by one root, freed by the next, and may be used behind the one after.
        for _ in 0..3 {
            volume.checkpoint().await.unwrap();
        }
        assert!(core.segments.table().slots().unused() >= before, "it is given back");
        assert_eq!(reclaimer.step(core).await.unwrap(), Step::Going);
    }
    clean(&volume).await;
}

#[tokio::test]
async fn pages_that_were_replaced_make_room_for_those_of_the_newest_index() {
    let volume = fresh(SIZE, OverProvisioning::hundredths(125).unwrap()).await;
    let scattered = |volume: &Volume| {
        let volume = volume.clone();
        async move {
            // Nothing follows anything else: leaves are as long as they get.
            for lba in (0..SECTORS).step_by(3).chain((1..SECTORS).step_by(3)).chain((2..SECTORS).step_by(3)) {
                write(&volume, lba, 1).await.unwrap();
            }
            volume.checkpoint().await.unwrap();
            for lba in 0..SECTORS {
                fill_of(&volume, lba).await;
            }
            volume.status().page_bytes
        }
    };
    let once = scattered(&volume).await;
    assert!(once > 0, "reads keep pages");
    for _ in 0..3 {
        let again = scattered(&volume).await;
        assert!(again <= once + once / 8, "{again} bytes of pages, {once} after the first writing");
    }
}
