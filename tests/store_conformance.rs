//! The contract of `SlotStore`, asked of every store: memory, file, and the NBD client against the
//! NBD servers of others. A server that is not installed is skipped with a printed reason; with
//! `SEALBD_REQUIRE_CLIENTS=1` it is missed.

#[path = "store_conformance/direct.rs"]
mod direct;
#[path = "common/servers.rs"]
mod servers;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use futures_util::future::join_all;
use sealbd::store::file::{Existing, FileStore};
use sealbd::store::memory::MemoryStore;
use sealbd::store::nbd::{NbdOptions, NbdStore};
use sealbd::store::uri::{self, StoreUri};
use sealbd::store::{Access, Persist, SlotStore, StoreError};

use servers::{Server, sparse_file};

/// Large enough for the longest single write of every store, twice.
const SIZE: u64 = 64 << 20;

#[tokio::test]
async fn memory_keeps_the_contract_with_both_units() {
    for block in [512, 4096] {
        keeps_the_contract(&MemoryStore::new(SIZE).with_write_unit(block)).await;
    }
    refuses_changes(&MemoryStore::new(SIZE).read_only()).await;
}

#[tokio::test]
async fn a_file_keeps_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("volume");
    keeps_the_contract(&FileStore::create(&path, SIZE, Existing::Refuse).unwrap()).await;
    let reader = FileStore::open(&path, Access::ReadOnly).unwrap();
    let len = reader.capability().size;
    assert!(matches!(reader.extend(2 * SIZE).await, Err(StoreError::Io { .. })));
    assert_eq!(path.metadata().unwrap().len(), len, "a store opened read-only does not grow");
    refuses_changes(&reader).await;
}

#[tokio::test]
async fn what_was_synced_is_in_the_file_for_whoever_opens_it_next() {
    let directory = tempfile::tempdir().unwrap();
    let uri = StoreUri::File(directory.path().join("volume"));
    let store = uri::create(&uri, SIZE, Existing::Refuse).unwrap();
    store.write_at(0, vec![Bytes::from_static(&[7; 4096])], Persist::Volatile).await.unwrap();
    store.sync().await.unwrap();
    drop(store);
    let store = uri::open(&uri, Access::ReadOnly).await.unwrap();
    assert_eq!(store.read_at(0, 4096).await.unwrap(), [7; 4096]);
}

/// A loop device, detached when dropped.
struct LoopDevice {
    losetup: PathBuf,
    device: PathBuf,
}

impl LoopDevice {
    /// `None` when there are no loop devices for us: that takes root and a kernel that has them.
    fn attach(file: &Path) -> Option<Self> {
        Self::attach_with(file, &[])
    }

    #[expect(clippy::print_stderr, reason = "the reason for a skip belongs into the output of the test")]
    fn attach_with(file: &Path, options: &[&str]) -> Option<Self> {
        let losetup = servers::program("losetup")?;
        let line = [&["--find", "--show"], options].concat();
        let output = Command::new(&losetup).args(line).arg(file).output().expect("it runs");
        if !output.status.success() {
            eprintln!("skipped: no loop device: {}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        let device = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        Some(Self { losetup, device })
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // Nothing is left to be done when it fails.
        let _ = Command::new(&self.losetup).arg("--detach").arg(&self.device).status();
    }
}

#[tokio::test]
async fn a_block_device_keeps_the_contract_and_has_one_owner() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = LoopDevice::attach(&sparse_file(directory.path(), SIZE)) else { return };
    let store = FileStore::open(&disk.device, Access::ReadWrite).unwrap();
    keeps_the_contract(&store).await;
    let second = FileStore::open(&disk.device, Access::ReadWrite);
    assert!(matches!(second.err(), Some(StoreError::Busy(_))));
    let made = FileStore::create(&disk.device, SIZE, Existing::Replace);
    assert!(matches!(made.err(), Some(StoreError::Busy(_))));
    drop(store);
    let made = FileStore::create(&disk.device, SIZE, Existing::Replace);
    assert!(matches!(made.err(), Some(StoreError::Open(why)) if why.contains("size is fixed")));
}

#[tokio::test]
async fn a_block_device_that_has_grown_is_seen_when_it_is_asked_to_extend() {
    let directory = tempfile::tempdir().unwrap();
    let file = sparse_file(directory.path(), SIZE);
    let Some(disk) = LoopDevice::attach(&file) else { return };
    let store = FileStore::open(&disk.device, Access::ReadWrite).unwrap();
    let larger = SIZE + (8 << 20);
    std::fs::File::options().write(true).open(&file).unwrap().set_len(larger).unwrap();
    let told = Command::new(&disk.losetup).arg("--set-capacity").arg(&disk.device).status().expect("it runs");
    assert!(told.success());
    assert_eq!(store.capability().size, SIZE, "as it was opened");
    store.extend(SIZE + 4096).await.unwrap();
    assert_eq!(store.capability().size, larger);
    write(&store, larger - 4096, &[1; 4096]).await;
}

/// A server, its arguments, and what the store must have found out about it.
struct Peer {
    args: &'static [&'static str],
    connections: usize,
    write_unit: u32,
    best_unit: u32,
    io_bytes_max: u32,
}

const PLAIN: Peer =
    Peer { args: &[], connections: 4, write_unit: 512, best_unit: 4096, io_bytes_max: 32 << 20 };

#[tokio::test]
async fn nbdkit_memory_keeps_the_contract() {
    nbdkit_keeps_the_contract(&Peer { args: &["memory", "64M"], ..PLAIN }).await;
}

#[tokio::test]
async fn nbdkit_without_structured_replies_keeps_the_contract() {
    nbdkit_keeps_the_contract(&Peer { args: &["--no-sr", "memory", "64M"], ..PLAIN }).await;
}

#[tokio::test]
async fn nbdkit_without_fua_keeps_the_contract() {
    let args = &["--filter=fua", "memory", "64M"];
    nbdkit_keeps_the_contract(&Peer { args, ..PLAIN }).await;
}

#[tokio::test]
async fn nbdkit_without_multi_conn_gets_one_connection() {
    let args = &["--filter=multi-conn", "memory", "64M", "multi-conn-mode=disable"];
    nbdkit_keeps_the_contract(&Peer { args, connections: 1, ..PLAIN }).await;
}

#[tokio::test]
async fn blocks_of_4096_bytes_demanded_by_the_server_are_obeyed() {
    let args = &[
        "--filter=blocksize-policy",
        "memory",
        "64M",
        "blocksize-minimum=4096",
        "blocksize-preferred=4096",
        "blocksize-maximum=1M",
        "blocksize-error-policy=error",
    ];
    nbdkit_keeps_the_contract(&Peer { args, write_unit: 4096, io_bytes_max: 1 << 20, ..PLAIN }).await;
}

#[tokio::test]
async fn blocks_of_512_bytes_preferred_by_the_server_are_used() {
    let args = &[
        "--filter=blocksize-policy",
        "memory",
        "64M",
        "blocksize-minimum=512",
        "blocksize-preferred=512",
        "blocksize-maximum=65536",
        "blocksize-error-policy=error",
    ];
    nbdkit_keeps_the_contract(&Peer { args, best_unit: 512, io_bytes_max: 65536, ..PLAIN }).await;
}

#[tokio::test]
async fn a_server_that_demands_larger_blocks_is_refused_with_the_figure() {
    let directory = tempfile::tempdir().unwrap();
    let args =
        ["--filter=blocksize-policy", "memory", "64M", "blocksize-minimum=8192", "blocksize-preferred=8192"];
    let Some(server) = Server::nbdkit(directory.path(), &args) else { return };
    let refused = open(&server.uri, Access::ReadWrite).await.err();
    assert!(matches!(&refused, Some(StoreError::Open(why)) if why.contains("8192")), "{refused:?}");
}

#[tokio::test]
async fn nbdkit_file_keeps_the_contract_and_gets_space_back() {
    let directory = tempfile::tempdir().unwrap();
    let disk = sparse_file(directory.path(), SIZE);
    let Some(server) = Server::nbdkit(directory.path(), &["file", &disk.to_string_lossy()]) else {
        return;
    };
    let store = open(&server.uri, Access::ReadWrite).await.unwrap();
    keeps_the_contract(&store).await;
    gives_space_back(&store, &disk).await;
}

#[tokio::test]
async fn qemu_nbd_keeps_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    let disk = sparse_file(directory.path(), SIZE);
    let args = ["-f", "raw", "--discard=unmap", &disk.to_string_lossy()];
    let Some(server) = Server::qemu_nbd(directory.path(), &args) else { return };
    let store = open(&server.uri, Access::ReadWrite).await.unwrap();
    keeps_the_contract(&store).await;
    all_connections_come_up(&store, 4).await;
    zeroes_a_range(&store).await;
    gives_space_back(&store, &disk).await;
}

#[tokio::test]
async fn nbd_server_keeps_the_contract_over_tcp() {
    let directory = tempfile::tempdir().unwrap();
    let disk = sparse_file(directory.path(), SIZE);
    let Some(server) = Server::nbd_server(directory.path(), &disk) else { return };
    let store = open(&server.uri, Access::ReadWrite).await.unwrap();
    keeps_the_contract(&store).await;
}

#[tokio::test]
async fn an_export_that_does_not_exist_is_named_as_the_cause() {
    let directory = tempfile::tempdir().unwrap();
    let disk = sparse_file(directory.path(), SIZE);
    let Some(server) = Server::nbd_server(directory.path(), &disk) else { return };
    let refused = open(&server.uri.replace("/disk", "/other"), Access::ReadWrite).await.err();
    assert!(matches!(&refused, Some(StoreError::Open(why)) if why.contains("no such export")), "{refused:?}");
}

#[tokio::test]
async fn a_read_only_export_opens_for_reading_only() {
    let directory = tempfile::tempdir().unwrap();
    let Some(server) = Server::nbdkit(directory.path(), &["-r", "memory", "64M"]) else { return };
    let refused = open(&server.uri, Access::ReadWrite).await.err();
    assert!(matches!(&refused, Some(StoreError::Open(why)) if why.contains("read-only")), "{refused:?}");
    refuses_changes(&open(&server.uri, Access::ReadOnly).await.unwrap()).await;
}

#[tokio::test]
async fn errors_of_the_server_arrive_as_what_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let trigger = directory.path().join("trigger");
    let args = [
        "--filter=error",
        "memory",
        "64M",
        "error-pread=EIO",
        "error-pwrite=ENOSPC",
        "error-rate=100%",
        &format!("error-file={}", trigger.display()),
    ];
    let Some(server) = Server::nbdkit(directory.path(), &args) else { return };
    let store = open(&server.uri, Access::ReadWrite).await.unwrap();
    std::fs::write(&trigger, "").unwrap();
    let read = store.read_at(0, 4096).await;
    assert!(
        matches!(&read, Err(StoreError::Io { source, .. }) if source.raw_os_error() == Some(5)),
        "{read:?}"
    );
    let write = store.write_at(0, vec![block(1)], Persist::Volatile).await;
    assert!(matches!(write, Err(StoreError::NoSpace)), "{write:?}");
    std::fs::remove_file(&trigger).unwrap();
    assert_eq!(store.read_at(0, 4096).await.unwrap(), [0; 4096], "an error is no reason to hang up");
}

async fn open(uri: &str, access: Access) -> Result<NbdStore, StoreError> {
    match uri.parse() {
        Ok(StoreUri::Nbd(target)) => NbdStore::open(target, access, NbdOptions::default()).await,
        other => panic!("{uri} is no NBD URI: {other:?}"),
    }
}

async fn nbdkit_keeps_the_contract(peer: &Peer) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let Some(server) = Server::nbdkit(directory.path(), peer.args) else { return };
    let store = open(&server.uri, Access::ReadWrite).await.expect("the server serves");
    let found = store.capability();
    assert_eq!((found.size, found.write_unit, found.best_unit), (SIZE, peer.write_unit, peer.best_unit));
    assert_eq!(found.io_bytes_max, peer.io_bytes_max);
    all_connections_come_up(&store, peer.connections).await;
    keeps_the_contract(&store).await;
    zeroes_a_range(&store).await;
}

/// The others are made behind the first one's back; requests go on meanwhile.
async fn all_connections_come_up(store: &NbdStore, count: usize) {
    let up = async {
        while store.connection_count() < count {
            store.read_at(0, 4096).await.expect("the server serves");
        }
    };
    let in_time = tokio::time::timeout(std::time::Duration::from_secs(20), up).await;
    assert!(in_time.is_ok(), "{} of {count} connections, {:?}", store.connection_count(), store.last_loss());
    assert_eq!(store.connection_count(), count);
}

/// The whole contract, on a store of [`SIZE`] bytes.
async fn keeps_the_contract(store: &dyn SlotStore) {
    assert_eq!(store.capability().size, SIZE);
    assert!(!store.describe().is_empty());
    what_was_written_is_read_at_any_alignment(store).await;
    parts_land_one_behind_the_other(store).await;
    the_longest_write_and_read_work(store).await;
    both_ends_of_the_store_can_be_written(store).await;
    nothing_outside_is_touched(store).await;
    concurrent_writes_do_not_disturb_each_other(store).await;
    abandoned_requests_do_no_harm(store).await;
    a_durable_write_is_a_write(store).await;
    a_discard_leaves_its_neighbours_alone(store).await;
    random_changes_match_a_model(store).await;
    extending_loses_nothing_and_never_shortens(store).await;
    store.sync().await.expect("a sync after many changes");
    store.sync().await.expect("a sync with nothing to do");
}

fn block(fill: u8) -> Bytes {
    Bytes::from(vec![fill; 4096])
}

async fn write(store: &dyn SlotStore, offset: u64, bytes: &[u8]) {
    let written = store.write_at(offset, vec![Bytes::copy_from_slice(bytes)], Persist::Volatile).await;
    written.unwrap_or_else(|error| panic!("write {offset}+{}: {error}", bytes.len()));
}

async fn read(store: &dyn SlotStore, offset: u64, len: usize) -> Vec<u8> {
    let bytes =
        store.read_at(offset, len).await.unwrap_or_else(|error| panic!("read {offset}+{len}: {error}"));
    assert_eq!(bytes.len(), len);
    bytes
}

/// Numbers that are the same in every run (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound
    }

    fn index(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).expect("below a usize")
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.below(256).to_le_bytes()[0]).collect()
    }
}

async fn what_was_written_is_read_at_any_alignment(store: &dyn SlotStore) {
    let bytes = Numbers(1).bytes(5 * 4096);
    write(store, 8192, &bytes).await;
    for (skip, len) in [(0, bytes.len()), (1, 1), (511, 2), (4095, 4098), (0, 0), (17, 5 * 4096 - 17)] {
        let offset = 8192 + skip as u64;
        assert_eq!(read(store, offset, len).await, bytes[skip..skip + len], "{skip}+{len}");
        let mut buf = vec![0; len];
        if let Some(tried) = store.try_read_at(offset, &mut buf) {
            tried.expect("a read that does not wait");
            assert_eq!(buf, bytes[skip..skip + len], "{skip}+{len} without waiting");
        }
    }
}

async fn parts_land_one_behind_the_other(store: &dyn SlotStore) {
    let bytes = Numbers(2).bytes(16 * 4096);
    let cuts = [0, 1, 1, 100, 5000, 4096 * 7, 16 * 4096];
    let parts = cuts.windows(2).map(|cut| Bytes::copy_from_slice(&bytes[cut[0]..cut[1]])).collect();
    store.write_at(1 << 20, parts, Persist::Volatile).await.expect("a write in parts");
    assert_eq!(read(store, 1 << 20, bytes.len()).await, bytes);
    store.write_at(0, Vec::new(), Persist::Volatile).await.expect("a write of nothing");
    store.write_at(0, Vec::new(), Persist::Durable).await.expect("a durable write of nothing");
}

async fn the_longest_write_and_read_work(store: &dyn SlotStore) {
    let len = store.capability().io_bytes_max as usize;
    let mut bytes = vec![0x5a; len];
    bytes[..4096].fill(1);
    bytes[len - 4096..].fill(2);
    write(store, 4096, &bytes).await;
    assert_eq!(read(store, 4096, len).await, bytes);
    // One byte off every boundary, so that a server's blocks are cut at both ends.
    assert_eq!(read(store, 4097, len).await[..len - 1], bytes[1..]);
}

async fn both_ends_of_the_store_can_be_written(store: &dyn SlotStore) {
    for offset in [0, SIZE - 4096] {
        write(store, offset, &[0xee; 4096]).await;
        assert_eq!(read(store, offset, 4096).await, [0xee; 4096]);
    }
    assert!(read(store, SIZE, 0).await.is_empty());
}

async fn nothing_outside_is_touched(store: &dyn SlotStore) {
    for offset in [SIZE, SIZE - 2048, u64::MAX - 4095, u64::MAX] {
        let read = store.read_at(offset, 4096).await;
        assert!(matches!(read, Err(StoreError::OutOfRange { .. })), "read at {offset}: {read:?}");
        let discarded = store.discard(offset, 4096).await;
        assert!(
            matches!(discarded, Err(StoreError::OutOfRange { .. })),
            "discard at {offset}: {discarded:?}"
        );
        let mut buf = [0; 4096];
        let tried = store.try_read_at(offset, &mut buf);
        assert!(matches!(tried, None | Some(Err(StoreError::OutOfRange { .. }))), "{tried:?}");
    }
    for offset in [SIZE, u64::MAX - 4095] {
        let written = store.write_at(offset, vec![block(1)], Persist::Volatile).await;
        assert!(matches!(written, Err(StoreError::OutOfRange { .. })), "write at {offset}: {written:?}");
    }
}

async fn concurrent_writes_do_not_disturb_each_other(store: &dyn SlotStore) {
    let places: Vec<(u64, u8)> = (0..=255).map(|fill| ((1 << 20) + u64::from(fill) * 8192, fill)).collect();
    let writes = places.iter().map(|(at, fill)| async move { write(store, *at, &[*fill; 8192]).await });
    join_all(writes).await;
    let reads = places.iter().map(|(at, fill)| async move {
        assert_eq!(read(store, *at, 8192).await, [*fill; 8192]);
    });
    join_all(reads).await;
}

/// Every request is begun and dropped at once; those after them are answered with their own data.
async fn abandoned_requests_do_no_harm(store: &dyn SlotStore) {
    write(store, 0, &[1; 4096]).await;
    for _ in 0..200 {
        let mut abandoned = store.read_at(4096, 65536);
        std::future::poll_fn(|cx| {
            let _ = abandoned.as_mut().poll(cx);
            Poll::Ready(())
        })
        .await;
        drop(abandoned);
    }
    assert_eq!(read(store, 0, 4096).await, [1; 4096]);
}

async fn a_durable_write_is_a_write(store: &dyn SlotStore) {
    store.write_at(4096, vec![block(3), block(4)], Persist::Durable).await.expect("a durable write");
    let bytes = read(store, 4096, 8192).await;
    assert_eq!((bytes[0], bytes[4095], bytes[4096], bytes[8191]), (3, 3, 4, 4));
}

async fn a_discard_leaves_its_neighbours_alone(store: &dyn SlotStore) {
    write(store, 0, &[9; 16 * 4096]).await;
    for (offset, len) in [(4096, 4096), (3 * 4096 + 100, 2 * 4096), (6 * 4096, 0), (7 * 4096, 10)] {
        store.discard(offset, len).await.unwrap_or_else(|error| panic!("discard {offset}+{len}: {error}"));
    }
    let bytes = read(store, 0, 16 * 4096).await;
    let untouched = [0..4096, 8192..3 * 4096 + 100, 5 * 4096 + 100..7 * 4096, 7 * 4096 + 10..16 * 4096];
    for range in untouched {
        assert!(bytes[range.clone()].iter().all(|byte| *byte == 9), "{range:?}");
    }
    store.discard(0, SIZE).await.expect("a discard of everything");
}

async fn random_changes_match_a_model(store: &dyn SlotStore) {
    const LEN: usize = 1 << 20;
    let block = store.capability().write_unit as usize;
    let mut numbers = Numbers(0x5ea1);
    let mut model = vec![0x11; LEN];
    write_in_pieces(store, &model).await;
    for _ in 0..300 {
        let start = numbers.index(LEN / block) * block;
        let len = (numbers.index(16) + 1) * block;
        let len = len.min(LEN - start).min(store.capability().io_bytes_max as usize);
        match numbers.below(10) {
            0..5 => {
                let bytes = numbers.bytes(len);
                write(store, start as u64, &bytes).await;
                model[start..start + len].copy_from_slice(&bytes);
            }
            5..9 => assert_eq!(read(store, start as u64, len).await, model[start..start + len]),
            _ => store.sync().await.expect("a sync between changes"),
        }
    }
    for start in (0..LEN).step_by(65536) {
        assert_eq!(read(store, start as u64, 65536).await, model[start..start + 65536]);
    }
}

async fn extending_loses_nothing_and_never_shortens(store: &dyn SlotStore) {
    write(store, SIZE - 4096, &[9; 4096]).await;
    for smaller in [0, SIZE / 2, SIZE] {
        store.extend(smaller).await.expect("nothing to do");
        assert_eq!(store.capability().size, SIZE);
    }
    let larger = SIZE + (1 << 20);
    store.extend(larger).await.expect("what cannot grow stays as it is");
    assert_eq!(store.capability().size, if store.extends() { larger } else { SIZE });
    assert_eq!(read(store, SIZE - 4096, 4096).await, [9; 4096]);
    if store.extends() {
        assert!(read(store, SIZE, 1 << 20).await.iter().all(|byte| *byte == 0), "a hole");
        write(store, larger - 4096, &[8; 4096]).await;
        assert_eq!(read(store, larger - 4096, 4096).await, [8; 4096]);
    }
    let end = store.capability().size;
    let behind = store.write_at(end, vec![block(1)], Persist::Volatile).await;
    assert!(matches!(behind, Err(StoreError::OutOfRange { .. })), "{behind:?}");
}

async fn write_in_pieces(store: &dyn SlotStore, bytes: &[u8]) {
    for (at, piece) in bytes.chunks(65536).enumerate() {
        write(store, at as u64 * 65536, piece).await;
    }
}

async fn refuses_changes(store: &dyn SlotStore) {
    assert!(store.capability().read_only);
    let refused = |done: Result<(), StoreError>| {
        let why = done.expect_err("a store opened read-only takes no changes");
        let StoreError::Io { source, .. } = &why else { panic!("{why:?}") };
        assert_eq!(source.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    };
    refused(store.write_at(0, vec![block(1)], Persist::Volatile).await);
    refused(store.discard(0, 4096).await);
    read(store, 0, 4096).await;
}

async fn zeroes_a_range(store: &NbdStore) {
    write(store, 0, &[8; 4 * 4096]).await;
    for persist in [Persist::Volatile, Persist::Durable] {
        store.write_zeroes(4096, 2 * 4096, persist).await.expect("zeros without sending them");
    }
    let bytes = read(store, 0, 4 * 4096).await;
    assert!(bytes[4096..3 * 4096].iter().all(|byte| *byte == 0));
    assert!(bytes[..4096].iter().chain(&bytes[3 * 4096..]).all(|byte| *byte == 8));
}

async fn gives_space_back(store: &dyn SlotStore, disk: &Path) {
    use std::os::unix::fs::MetadataExt;
    let blocks = || std::fs::metadata(disk).expect("the disk is there").blocks();
    write(store, 0, &vec![1; 4 << 20]).await;
    store.sync().await.expect("a sync");
    let before = blocks();
    store.discard(0, 4 << 20).await.expect("a discard");
    store.sync().await.expect("a sync");
    assert!(store.capability().discard);
    assert!(blocks() < before, "{} blocks after, {before} before", blocks());
}

/// Stores are shared between tasks.
#[test]
fn every_store_can_be_shared_as_a_trait_object() {
    fn shared<S: SlotStore>(store: S) -> Arc<dyn SlotStore> {
        Arc::new(store)
    }
    assert_eq!(shared(MemoryStore::new(4096)).capability().size, 4096);
}
