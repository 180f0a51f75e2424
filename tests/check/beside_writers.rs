//! A check beside writers: it holds no lock that a root needs, gives way when space runs out, and takes nothing that
//! is in motion for damage.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sealbd::export::{Durability, Export};
use sealbd::geometry::ByteRange;
use sealbd::payload::Payload;
use sealbd::volume::Volume;

use crate::anatomy::{Anatomy, flip};
use crate::volumes::{Disk, run};
use crate::{SIZE, ranges, write};

/// Longest that anything here may take.
const DEADLINE: Duration = Duration::from_secs(100);

#[test]
fn a_check_under_way_stops_no_root() {
    run(async {
        let disk = Disk::new(SIZE).await;
        let volume = disk.open().await;
        for lba in (0..2048).step_by(512) {
            write(&volume, lba, 8, 1).await;
        }
        volume.checkpoint().await.unwrap();
        let (ask, asked) = tokio::sync::mpsc::unbounded_channel();
        let (answer, answered) = std::sync::mpsc::channel();
        let checking = tokio::spawn({
            let volume = volume.clone();
            let answered = std::sync::Mutex::new(answered);
            async move {
                // At every step of the walk a root is asked for and waited for.
                let step = |_| {
                    ask.send(()).unwrap();
                    answered.lock().unwrap().recv_timeout(DEADLINE).expect("a root is written meanwhile");
                };
                volume.check(true, step).await
            }
        });
        let mut roots = 0;
        let mut asked = asked;
        while asked.recv().await.is_some() {
            write(&volume, roots % 2048, 1, 2).await;
            volume.checkpoint().await.unwrap();
            roots += 1;
            answer.send(()).unwrap();
        }
        let report = checking.await.unwrap().unwrap();
        assert!(report.is_clean() && report.warnings.is_empty(), "{report:?}");
        assert!(roots > 10, "{roots}");
        volume.close().await.unwrap();
    });
}

#[test]
fn a_volume_that_is_overwritten_all_the_while_is_clean_whenever_it_is_looked_at() {
    run(async {
        let disk = Disk::new(4 * SIZE).await;
        let volume = disk.open().await;
        let (end, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let (volume, end, written) = (volume.clone(), end.clone(), written.clone());
                tokio::spawn(overwrite(volume, writer, end, written))
            })
            .collect();
        let mut looks = 0;
        let mut complete = 0;
        while looks < 12 || written.load(Ordering::SeqCst) < 20_000 {
            let report = tokio::time::timeout(DEADLINE, volume.check(true, |_| {})).await.unwrap().unwrap();
            assert!(report.is_clean() && report.warnings.is_empty(), "look {looks}: {report:?}");
            complete += u32::from(!report.gave_way);
            looks += 1;
        }
        end.store(true, Ordering::SeqCst);
        for writer in writers {
            writer.await.unwrap();
        }
        // Room is still being made for a while.
        let at_rest = async {
            loop {
                let report = volume.check(true, |_| {}).await.unwrap();
                assert!(report.is_clean(), "{report:?}");
                if !report.gave_way {
                    break;
                }
            }
        };
        tokio::time::timeout(DEADLINE, at_rest).await.expect("nothing disturbs it any more");
        assert!(complete > 0, "some look was not disturbed");
        volume.close().await.unwrap();
    });
}

/// Overwrites at random, trims now and then.
async fn overwrite(volume: Volume, writer: u64, end: Arc<AtomicBool>, written: Arc<AtomicU64>) {
    let mut state = writer + 1;
    while !end.load(Ordering::SeqCst) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let size = 4 * SIZE;
        let (lba, count) = ((state >> 33) % (size / 4096 - 16), 1 + (state >> 20) % 16);
        let range = ByteRange::within(lba * 4096, count * 4096, size).unwrap();
        if state.is_multiple_of(16) {
            volume.trim(range, Durability::Accepted).await.unwrap();
        } else {
            let data = vec![state as u8; range.len() as usize];
            volume.write(Payload::copy_of(range, &data), Durability::Accepted).await.unwrap();
        }
        written.fetch_add(count, Ordering::SeqCst);
    }
}

#[test]
fn a_check_gives_way_before_a_writer_is_told_that_there_is_no_room() {
    run(async {
        // Data in every leaf, so that the walk has many steps; in each a megabyte is overwritten.
        let size = 32 * SIZE;
        let disk = Disk::new(size).await;
        let volume = disk.open().await;
        let put = |lba: u64, count: u64, fill: u8| {
            let volume = volume.clone();
            async move {
                let range = ByteRange::within(lba * 4096, count * 4096, size).unwrap();
                let data = vec![fill; range.len() as usize];
                volume.write(Payload::copy_of(range, &data), Durability::Accepted).await
            }
        };
        for leaf in 0..size / (2 << 20) {
            put(leaf * 512, 1, 1).await.unwrap();
        }
        volume.checkpoint().await.unwrap();
        let slots = volume.status().space.slots;
        let (ask, mut asked) = tokio::sync::mpsc::unbounded_channel();
        let (answer, answered) = std::sync::mpsc::channel();
        let checking = tokio::spawn({
            let volume = volume.clone();
            let answered = std::sync::Mutex::new(answered);
            async move {
                let step = |_| {
                    ask.send(()).unwrap();
                    answered.lock().unwrap().recv_timeout(DEADLINE).expect("the writer goes on");
                };
                volume.check(false, step).await
            }
        });
        let mut round = 0u64;
        while asked.recv().await.is_some() {
            // A tenth of a segment more than what one root after the other frees again.
            for part in 0..8 {
                put(1024 + part * 256, 256, round as u8)
                    .await
                    .unwrap_or_else(|error| panic!("{round}: {error}"));
            }
            volume.checkpoint().await.unwrap();
            round += 1;
            answer.send(()).unwrap();
        }
        let report = checking.await.unwrap().unwrap();
        assert!(report.gave_way, "after {round} rounds of 8 MiB on {slots} slots: {report:?}");
        assert!(report.is_clean(), "{report:?}");
        // With nobody in its way the next one is complete.
        let report = volume.check(false, |_| {}).await.unwrap();
        assert!(report.is_clean() && !report.gave_way, "{report:?}");
    });
}

#[test]
fn damage_under_a_running_volume_is_found_although_its_pages_are_in_memory() {
    run(async {
        let disk = Disk::new(SIZE).await;
        let volume = disk.open().await;
        write(&volume, 0, 8, 1).await;
        volume.checkpoint().await.unwrap();
        assert!(volume.check(true, |_| {}).await.unwrap().is_clean());
        let anatomy = Anatomy::of(&disk.store).await;
        flip(&disk.store, anatomy.records[3].1);
        let report = volume.check(true, |_| {}).await.unwrap();
        assert_eq!(ranges(&report), [(3, 1)]);
        flip(&disk.store, anatomy.pages[0][0]);
        let report = volume.check(false, |_| {}).await.unwrap();
        assert_eq!(report.problems.len(), 1, "{report:?}");
        assert_eq!(ranges(&report), [(0, 512)]);
        // The ring block of the root in use.
        flip(&disk.store, anatomy.ring_block(anatomy.newest.generation));
        let report = volume.check(false, |_| {}).await.unwrap();
        assert!(report.problems.iter().any(|p| p.message.contains("not in it any more")), "{report:?}");
    });
}
