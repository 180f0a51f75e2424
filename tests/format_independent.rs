//! Volumes that this program wrote are read by another one: `tests/format_reader.py`, which was
//! written from docs/FORMAT.md and shares no code with it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/volumes.rs"]
mod volumes;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use sealbd::cipher::Engine;
use sealbd::export::{Durability, Export, ZeroMode};
use sealbd::geometry::ByteRange;
use sealbd::payload::Payload;
use sealbd::store::Access;
use sealbd::store::file::FileStore;
use sealbd::store::memory::MemoryStore;
use sealbd::volume::unlock::read_header;
use sealbd::volume::{OpenMode, Volume};
use volumes::Disk;

const SIZE: u64 = 6 << 20;
const PYTHON: &str = "/usr/bin/python3";

/// Whether the reader can run here.
#[expect(clippy::print_stderr, reason = "the reason for a skip belongs into the output of the test")]
fn reader_runs() -> bool {
    let probe = Command::new(PYTHON).args(["-c", "import cryptography"]).output();
    let runs = probe.is_ok_and(|output| output.status.success());
    if !runs {
        let required = std::env::var_os("SEALBD_REQUIRE_CLIENTS").is_some_and(|value| value == "1");
        assert!(!required, "python3-cryptography is not installed, and SEALBD_REQUIRE_CLIENTS=1");
        eprintln!("skipped: python3-cryptography is not installed");
    }
    runs
}

/// Runs the reader on what the store holds now.
async fn reader(store: &MemoryStore, arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let (image, dek) = (directory.path().join("image"), directory.path().join("dek"));
    std::fs::write(&image, store.read_raw(0, store_len(store))).unwrap();
    std::fs::write(&dek, data_key(store).await).unwrap();
    run_reader(&image, &dek, arguments)
}

/// The data key of the volume on a store.
async fn data_key(store: &MemoryStore) -> [u8; 32] {
    *volumes::unlock_with(store, Engine::default()).await.unwrap().dek.0.expose()
}

fn store_len(store: &MemoryStore) -> usize {
    use sealbd::store::SlotStore;
    usize::try_from(store.capability().size).unwrap()
}

fn run_reader(image: &Path, dek: &Path, arguments: &[&str]) -> Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/format_reader.py");
    Command::new(PYTHON).arg(script).arg(image).arg("--dek-file").arg(dek).args(arguments).output().unwrap()
}

/// The reader gives exactly `expected`, and every sector and page authenticates.
async fn reads_the_same(store: &MemoryStore, expected: &[u8], state: &str) {
    let output = reader(store, &["--range", "0", &SIZE.to_string()]).await;
    assert!(output.status.success(), "{state}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == expected, "{state}: other bytes");
    let output = reader(store, &["--verify-all"]).await;
    assert!(output.status.success(), "{state}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A history that leaves extents, dense leaves, zeros, holes and overwritten sectors.
async fn write_history(volume: &Volume, model: &mut [u8], seed: u64) {
    let mut random = seed;
    let mut next = move |bound: u64| {
        // Knuth's MMIX generator: reproducible is all it has to be.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % bound
    };
    for step in 0..400u64 {
        let offset = next(SIZE);
        let len = (1 + next(40_000)).min(SIZE - offset);
        let range = ByteRange::within(offset, len, SIZE).unwrap();
        let (from, to) = (usize::try_from(offset).unwrap(), usize::try_from(offset + len).unwrap());
        match next(8) {
            0 => {
                volume.write_zeroes(range, ZeroMode::NoHole, Durability::Accepted).await.unwrap();
                model[from..to].fill(0);
            }
            1 => {
                volume.write_zeroes(range, ZeroMode::MayPunch, Durability::Accepted).await.unwrap();
                model[from..to].fill(0);
            }
            _ => {
                let data: Vec<u8> = (0..len).map(|i| ((i + step * 7) % 251) as u8).collect();
                volume.write(Payload::copy_of(range, &data), Durability::Accepted).await.unwrap();
                model[from..to].copy_from_slice(&data);
            }
        }
    }
    // Every second sector of a leaf, alone: more than 341 extents, so a dense page.
    for lba in (0..1024u64).rev().step_by(2).skip(256).chain((0..512).step_by(2)) {
        let range = ByteRange::within(lba * 4096, 4096, SIZE).unwrap();
        let data = vec![u8::try_from(lba % 199).unwrap(); 4096];
        volume.write(Payload::copy_of(range, &data), Durability::Accepted).await.unwrap();
        model[usize::try_from(lba).unwrap() * 4096..][..4096].copy_from_slice(&data);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_program_reads_every_state_of_a_volume() {
    if !reader_runs() {
        return;
    }
    let mut disk = Disk::new(SIZE).await;
    let mut model = vec![0; usize::try_from(SIZE).unwrap()];
    reads_the_same(&disk.store, &model, "fresh").await;

    let volume = disk.open().await;
    reads_the_same(&disk.store, &model, "claimed and empty").await;
    write_history(&volume, &mut model, 1).await;
    reads_the_same(&disk.store, &model, "log only, not flushed").await;
    volume.flush().await.unwrap();
    reads_the_same(&disk.store, &model, "log only, flushed").await;

    let volume = disk.reopen().await;
    reads_the_same(&disk.store, &model, "closed spans and a new claim").await;
    write_history(&volume, &mut model, 2).await;
    reads_the_same(&disk.store, &model, "closed spans and an open one").await;
    volume.checkpoint().await.unwrap();
    reads_the_same(&disk.store, &model, "after a checkpoint").await;

    let whole = ByteRange::within(2 << 20, 2 << 20, SIZE).unwrap();
    volume.trim(whole, Durability::Accepted).await.unwrap();
    model[2 << 20..4 << 20].fill(0);
    write_history(&volume, &mut model, 3).await;
    reads_the_same(&disk.store, &model, "checkpoint and log").await;
    volume.close().await.unwrap();
    reads_the_same(&disk.store, &model, "closed").await;

    let everything = ByteRange::within(0, SIZE, SIZE).unwrap();
    let volume = disk.open().await;
    assert!(volumes::read(&volume, everything).await == model);
    volume.trim(everything, Durability::Accepted).await.unwrap();
    volume.close().await.unwrap();
    model.fill(0);
    reads_the_same(&disk.store, &model, "trimmed whole").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_program_reads_a_file_while_it_is_served_and_after() {
    if !reader_runs() {
        return;
    }
    let fresh = Disk::new(SIZE).await;
    let directory = tempfile::tempdir().unwrap();
    let (image, dek) = (directory.path().join("image"), directory.path().join("dek"));
    std::fs::write(&image, fresh.store.read_raw(0, store_len(&fresh.store))).unwrap();
    std::fs::write(&dek, data_key(&fresh.store).await).unwrap();

    let file = Arc::new(FileStore::open(&image, Access::ReadWrite).unwrap());
    let unlocked = volumes::unlock_with(&*fresh.store, Engine::default()).await.unwrap();
    let volume = Volume::open(file, unlocked, OpenMode::ReadWrite).await.unwrap();
    let mut model = vec![0; usize::try_from(SIZE).unwrap()];
    let everything = ["--range", "0", &SIZE.to_string()];
    for (state, seed) in [("log", 4), ("log and tree", 5), ("closed", 6)] {
        write_history(&volume, &mut model, seed).await;
        match state {
            "log" => volume.flush().await.unwrap(),
            "log and tree" => volume.checkpoint().await.unwrap(),
            _ => volume.close().await.unwrap(),
        }
        let output = run_reader(&image, &dek, &everything);
        assert!(output.status.success(), "{state}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout == model, "{state}: other bytes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_program_refuses_what_was_altered() {
    if !reader_runs() {
        return;
    }
    let disk = Disk::new(SIZE).await;
    let volume = disk.open().await;
    let range = ByteRange::within(8192, 4096, SIZE).unwrap();
    volume.write(Payload::copy_of(range, &[9; 4096]), Durability::Accepted).await.unwrap();
    volume.close().await.unwrap();
    let header = read_header(&*disk.store).await.unwrap().claimed().clone();
    let good = reader(&disk.store, &["--sector", "2"]).await;
    assert_eq!(good.stdout, [9; 4096]);

    let block = header.ring_offset;
    for (damage, offset, says) in [
        ("both headers", 200, "checksum mismatch"),
        ("every ring block", block, "no usable root"),
        ("every segment", header.data_start, "authentication failed"),
    ] {
        let altered = disk.store.snapshot();
        let mut bytes = altered.read_raw(0, store_len(&altered));
        let end = u64::try_from(bytes.len()).unwrap();
        let places: Vec<u64> = match damage {
            "both headers" => vec![offset, (1 << 20) + offset],
            "every ring block" => (0..8).map(|slot| block + slot * 4096).collect(),
            _ => (offset..end).step_by(64).collect(),
        };
        for place in places {
            bytes[usize::try_from(place).unwrap()] ^= 1;
        }
        altered.write_raw(0, &bytes);
        let directory = tempfile::tempdir().unwrap();
        let (image, dek) = (directory.path().join("image"), directory.path().join("dek"));
        std::fs::write(&image, &bytes).unwrap();
        std::fs::write(&dek, data_key(&disk.store).await).unwrap();
        let refused = run_reader(&image, &dek, &["--sector", "2"]);
        assert_eq!(refused.status.code(), Some(1), "{damage}");
        assert!(refused.stdout.is_empty(), "{damage}");
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(text.contains(says), "{damage}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_program_tells_damage_of_the_log_from_a_torn_tail() {
    if !reader_runs() {
        return;
    }
    // Larger than what is looked at: with few slots a checkpoint could come in between.
    let disk = Disk::new(4 * SIZE).await;
    let volume = disk.open().await;
    for (lba, durability) in [(0, Durability::Durable), (1, Durability::Durable), (2, Durability::Accepted)] {
        let range = ByteRange::within(lba * 4096, 4096, SIZE).unwrap();
        volume.write(Payload::copy_of(range, &[7; 4096]), durability).await.unwrap();
    }
    let store = disk.store.snapshot();
    let bytes = store.read_raw(0, store_len(&store));
    let chunks: Vec<usize> =
        (0..bytes.len()).step_by(4096).filter(|at| bytes[*at..].starts_with(b"CHNK")).collect();
    assert_eq!(chunks.len(), 3);
    for (chunk, says) in [(0, Some("a later one proves")), (1, Some("a later one proves")), (2, None)] {
        let altered = store.snapshot();
        altered.write_raw(chunks[chunk] as u64 + 40, &[bytes[chunks[chunk] + 40] ^ 1]);
        let output = reader(&altered, &["--sector", "2"]).await;
        match says {
            Some(says) => {
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(text.contains(says), "chunk {chunk}: {text}");
            }
            None => assert_eq!(output.stdout, [0; 4096], "never flushed, so never there"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_engines_write_volumes_that_the_other_opens() {
    for (writes, opens) in Engine::ALL.iter().flat_map(|w| Engine::ALL.iter().map(move |o| (*w, *o))) {
        let disk = Disk::new(SIZE).await;
        let range = ByteRange::within(0, 4096, SIZE).unwrap();
        let unlocked = volumes::unlock_with(&*disk.store, writes).await.unwrap();
        let volume = Volume::open(disk.store.clone(), unlocked, OpenMode::ReadWrite).await.unwrap();
        volume.write(Payload::copy_of(range, &[3; 4096]), Durability::Durable).await.unwrap();
        let copy = Arc::new(disk.store.snapshot());
        let unlocked = volumes::unlock_with(&*copy, opens).await.unwrap();
        let volume = Volume::open(copy, unlocked, OpenMode::ReadOnly).await.unwrap();
        assert_eq!(volumes::read(&volume, range).await, [3; 4096], "{writes:?} then {opens:?}");
    }
}
