//! A volume behaves like an array of bytes: random operations, reopening in between, against a
//! model, and with errors of the store injected.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking; its sizes are small"
)]

#[path = "common/volumes.rs"]
mod volumes;

use proptest::prelude::*;
use sealbd::export::{Durability, Export, ZeroMode};
use sealbd::geometry::ByteRange;
use sealbd::payload::Payload;
use sealbd::volume::{OpenMode, Volume};
use volumes::Disk;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_is_read_back_also_after_reopening() {
    let mut disk = Disk::new(8 << 20).await;
    let volume = disk.open().await;
    let data: Vec<u8> = (0..300_000u32).map(|i| (i % 253) as u8).collect();
    let range = ByteRange::within(1_000_001, data.len() as u64, 8 << 20).unwrap();
    volume.write(Payload::copy_of(range, &data), Durability::Accepted).await.unwrap();
    assert_eq!(volumes::read(&volume, range).await, data);
    volume.flush().await.unwrap();
    assert_eq!(volumes::read(&volume, range).await, data);
    volume.close().await.unwrap();
    drop(volume);
    let volume = disk.open().await;
    assert_eq!(volumes::read(&volume, range).await, data);
    // Without closing: the log is replayed.
    let one = ByteRange::within(5000, 3, 8 << 20).unwrap();
    volume.write(Payload::copy_of(one, b"abc"), Durability::Durable).await.unwrap();
    let volume = disk.reopen().await;
    assert_eq!(volumes::read(&volume, one).await, b"abc");
    assert_eq!(volumes::read(&volume, range).await, data);
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Write { offset: u64, len: u64, fill: u8, durable: bool },
    Zero { offset: u64, len: u64, no_hole: bool },
    Trim { offset: u64, len: u64 },
    Read { offset: u64, len: u64 },
    Flush,
    Checkpoint,
    Reopen,
    Close,
}

const SIZE: u64 = 2 << 20;

fn place() -> impl Strategy<Value = (u64, u64)> {
    prop_oneof![
        (0..SIZE, 0..70_000u64),
        (0..SIZE / 4096, 0..40u64).prop_map(|(lba, count)| (lba * 4096, count * 4096)),
        (0..SIZE / 512, 0..20u64).prop_map(|(at, count)| (at * 512, count * 512)),
    ]
    .prop_map(|(offset, len)| (offset, len.min(SIZE - offset)))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (place(), any::<u8>(), any::<bool>())
            .prop_map(|((offset, len), fill, durable)| Step::Write { offset, len, fill, durable }),
        2 => (place(), any::<bool>()).prop_map(|((offset, len), no_hole)| Step::Zero { offset, len, no_hole }),
        2 => place().prop_map(|(offset, len)| Step::Trim { offset, len }),
        4 => place().prop_map(|(offset, len)| Step::Read { offset, len }),
        1 => Just(Step::Flush),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Reopen),
        1 => Just(Step::Close),
    ]
}

/// Applies a step to volume and model.
async fn apply(disk: &mut Disk, volume: &mut Volume, model: &mut [u8], step: Step) {
    let within = |offset, len| ByteRange::within(offset, len, SIZE).unwrap();
    match step {
        Step::Write { offset, len, fill, durable } => {
            let data: Vec<u8> = (0..len).map(|i| fill.wrapping_add((i % 247) as u8)).collect();
            let durability = if durable { Durability::Durable } else { Durability::Accepted };
            volume.write(Payload::copy_of(within(offset, len), &data), durability).await.unwrap();
            model[offset as usize..][..len as usize].copy_from_slice(&data);
        }
        Step::Zero { offset, len, no_hole } => {
            let mode = if no_hole { ZeroMode::NoHole } else { ZeroMode::MayPunch };
            volume.write_zeroes(within(offset, len), mode, Durability::Accepted).await.unwrap();
            model[offset as usize..][..len as usize].fill(0);
        }
        Step::Trim { offset, len } => {
            volume.trim(within(offset, len), Durability::Accepted).await.unwrap();
            let sectors = within(offset, len).whole_sectors();
            if sectors.count > 0 {
                model[sectors.start.byte_offset() as usize..sectors.end().byte_offset() as usize].fill(0);
            }
        }
        Step::Read { offset, len } => {
            let data = volumes::read(volume, within(offset, len)).await;
            assert!(data == model[offset as usize..][..len as usize], "read {offset}+{len}");
        }
        Step::Flush => volume.flush().await.unwrap(),
        Step::Checkpoint => volume.checkpoint().await.unwrap(),
        Step::Reopen => *volume = disk.reopen().await,
        Step::Close => {
            volume.close().await.unwrap();
            *volume = disk.open().await;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn a_volume_is_an_array_of_bytes(steps in proptest::collection::vec(step(), 1..60)) {
        volumes::run(async move {
            let mut disk = Disk::new(SIZE).await;
            let mut volume = disk.open().await;
            let mut model = vec![0; SIZE as usize];
            for step in steps {
                apply(&mut disk, &mut volume, &mut model, step).await;
            }
            let all = volumes::read(&volume, ByteRange::within(0, SIZE, SIZE).unwrap()).await;
            assert!(all == model);
            volumes::check(&volume).await;
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overlapping_concurrent_writes_never_mix_inside_a_sector() {
    let disk = Disk::new(SIZE).await;
    let volume = disk.open().await;
    let mut tasks = Vec::new();
    for writer in 1..=8u8 {
        let volume = volume.clone();
        tasks.push(tokio::spawn(async move {
            for i in 0..100u64 {
                let aligned = (i + u64::from(writer)) % 2 == 0;
                let (offset, len) = if aligned { (0, 16384) } else { (512 * (i % 16), 4096) };
                let range = ByteRange::within(offset, len, SIZE).unwrap();
                let data = vec![writer; len as usize];
                volume.write(Payload::copy_of(range, &data), Durability::Accepted).await.unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    // Every 512-byte block was written by one writer in one piece.
    let data = volumes::read(&volume, ByteRange::within(0, 16384, SIZE).unwrap()).await;
    for block in data.chunks(512) {
        assert!(block.iter().all(|byte| *byte == block[0] && *byte != 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partial_writes_to_one_sector_from_many_connections_are_all_there() {
    let disk = Disk::new(SIZE).await;
    let volume = disk.open().await;
    for round in 1..20u8 {
        let mut tasks = Vec::new();
        for block in 0..64u64 {
            let volume = volume.clone();
            tasks.push(tokio::spawn(async move {
                let range = ByteRange::within(block * 512, 512, SIZE).unwrap();
                let data = vec![round.wrapping_mul(7).wrapping_add(block as u8); 512];
                volume.write(Payload::copy_of(range, &data), Durability::Accepted).await.unwrap();
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let data = volumes::read(&volume, ByteRange::within(0, 64 * 512, SIZE).unwrap()).await;
        for (block, bytes) in data.chunks(512).enumerate() {
            let expected = round.wrapping_mul(7).wrapping_add(block as u8);
            assert!(bytes.iter().all(|b| *b == expected), "block {block} in round {round}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_volumes_replay_the_log_and_write_nothing() {
    let disk = Disk::new(SIZE).await;
    let volume = disk.open().await;
    let range = ByteRange::within(4096, 4096, SIZE).unwrap();
    volume.write(Payload::copy_of(range, &[7; 4096]), Durability::Accepted).await.unwrap();
    drop(volume);
    let changes = disk.store.change_count();
    let volume = disk.open_as(OpenMode::ReadOnly).await.unwrap();
    assert_eq!(volumes::read(&volume, range).await, [7; 4096]);
    let refused = volume.write(Payload::copy_of(range, &[8; 4096]), Durability::Accepted).await;
    assert_eq!(refused, Err(sealbd::export::ExportError::ReadOnly));
    volume.close().await.unwrap();
    assert_eq!(disk.store.change_count(), changes);
}
