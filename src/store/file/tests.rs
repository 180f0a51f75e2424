//! Tests of the store in a file.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use super::*;

const SIZE: u64 = 1 << 20;

fn new_store() -> (tempfile::TempDir, PathBuf, FileStore) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("volume");
    let store = FileStore::create(&path, SIZE, Existing::Refuse).unwrap();
    (directory, path, store)
}

#[test]
fn a_new_file_is_sparse_private_and_of_the_size_asked_for() {
    let (_directory, path, _store) = new_store();
    let metadata = std::fs::metadata(path).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert_eq!(metadata.len(), SIZE);
    assert_eq!(metadata.blocks(), 0);
}

#[test]
fn a_second_writer_and_a_reader_beside_a_writer_are_refused() {
    let (_directory, path, store) = new_store();
    for access in [Access::ReadWrite, Access::ReadOnly] {
        assert!(matches!(FileStore::open(&path, access), Err(StoreError::Busy(_))));
    }
    drop(store);
    FileStore::open(&path, Access::ReadWrite).unwrap();
}

#[test]
fn readers_share_a_file_and_keep_a_writer_out() {
    let (_directory, path, store) = new_store();
    drop(store);
    let readers: Vec<_> = (0..2).map(|_| FileStore::open(&path, Access::ReadOnly).unwrap()).collect();
    assert!(matches!(FileStore::open(&path, Access::ReadWrite), Err(StoreError::Busy(_))));
    drop(readers);
    FileStore::open(&path, Access::ReadWrite).unwrap();
}

#[test]
fn an_existing_file_is_replaced_only_when_told_and_not_in_use() {
    let (_directory, path, store) = new_store();
    assert!(matches!(FileStore::create(&path, SIZE, Existing::Refuse), Err(StoreError::Open(_))));
    assert!(matches!(FileStore::create(&path, SIZE, Existing::Replace), Err(StoreError::Busy(_))));
    store.inner.write(0, &[Bytes::from_static(&[7; 4096])]).unwrap();
    drop(store);
    let store = FileStore::create(&path, 2 * SIZE, Existing::Replace).unwrap();
    assert_eq!(store.capability().size, 2 * SIZE);
    assert_eq!(store.inner.read(0, 4096, Vec::with_capacity(4096)).unwrap(), [0; 4096]);
}

#[test]
fn what_is_neither_file_nor_device_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    for path in [directory.path(), Path::new("/dev/null"), Path::new("/nonexistent/volume")] {
        let opened = FileStore::open(path, Access::ReadWrite);
        assert!(matches!(opened, Err(StoreError::Open(_))), "{}", path.display());
    }
}

#[test]
fn a_file_that_cannot_be_made_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("volume");
    assert!(FileStore::create(&path, u64::MAX, Existing::Refuse).is_err());
    assert!(!path.exists());
}

#[tokio::test]
async fn a_file_cut_short_while_open_gives_no_zeros_and_fails_the_sync() {
    let (_directory, path, store) = new_store();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(6000).unwrap();
    let short = store.read_at(4096, 4096).await;
    assert!(
        matches!(short, Err(StoreError::ShortRead { offset: 4096, wanted: 4096, got: 1904 })),
        "{short:?}"
    );
    assert!(store.try_read_at(4096, &mut [0; 4096]).is_none());
    let failed = store.sync().await;
    assert!(matches!(&failed, Err(StoreError::SyncFailed(cause)) if cause.contains("6000")), "{failed:?}");
    OpenOptions::new().write(true).open(&path).unwrap().set_len(SIZE).unwrap();
    assert!(matches!(store.sync().await, Err(StoreError::SyncFailed(_))), "a failed sync is final");
    // However long the first one took.
    while !store.inner.pace.is_short() {
        store.inner.pace.end(0, Duration::ZERO);
    }
    let here = store.try_sync();
    assert!(matches!(here, Some(Err(StoreError::SyncFailed(_)))), "whoever does it: {here:?}");
}

/// The kernel tells a failure to one caller only.
#[tokio::test]
async fn a_sync_on_the_callers_thread_does_not_pass_by_one_under_way() {
    let (_directory, _path, store) = new_store();
    assert!(store.try_sync().is_none(), "nothing is known yet of how long it takes");
    store.inner.pace.end(0, Duration::ZERO);
    let under_way = store.inner.sync_failed.lock().unwrap();
    assert!(store.try_sync().is_none());
    drop(under_way);
    assert!(matches!(store.try_sync(), Some(Ok(()))));
}

#[tokio::test]
async fn what_is_in_the_page_cache_is_read_without_waiting() {
    let (_directory, _path, store) = new_store();
    store.write_at(4096, vec![Bytes::from(vec![3; 8192])], Persist::Volatile).await.unwrap();
    let mut bytes = [0; 5000];
    let read = store.try_read_at(5000, &mut bytes);
    // Some file systems (overlays, network) do not know how; then nothing is tried again.
    let known = store.inner.reads_without_waiting.load(Ordering::Relaxed);
    assert_eq!(matches!(read, Some(Ok(()))), known);
    assert!(!known || bytes == [3; 5000]);
}

#[tokio::test]
async fn a_write_of_many_parts_lands_in_order() {
    let (_directory, _path, store) = new_store();
    let parts: Vec<Bytes> = (0..3 * PARTS_PER_CALL_MAX)
        .map(|at| Bytes::from(vec![at.to_le_bytes()[0]; if at % 2 == 0 { 8 } else { 0 }]))
        .collect();
    let whole = parts.concat();
    store.write_at(8192, parts, Persist::Volatile).await.unwrap();
    assert_eq!(store.read_at(8192, whole.len()).await.unwrap(), whole);
}

#[tokio::test]
async fn a_discarded_range_gives_its_blocks_back() {
    let (_directory, path, store) = new_store();
    store.write_at(0, vec![Bytes::from(vec![1; 1 << 20])], Persist::Durable).await.unwrap();
    let before = std::fs::metadata(&path).unwrap().blocks();
    store.discard(0, 1 << 19).await.unwrap();
    store.sync().await.unwrap();
    let after = std::fs::metadata(&path).unwrap().blocks();
    assert_eq!(after < before, store.capability().discard, "{before} blocks before, {after} after");
    assert_eq!(store.read_at(1 << 19, 1).await.unwrap(), [1]);
}

#[tokio::test]
async fn a_file_without_room_says_so() {
    const CHILD: &str = "SEALBD_TEST_FULL_FILE";
    if let Some(path) = std::env::var_os(CHILD) {
        let store = FileStore::open(Path::new(&path), Access::ReadWrite).unwrap();
        let block = || vec![Bytes::from_static(&[1; 4096])];
        store.write_at(4096, block(), Persist::Volatile).await.unwrap();
        let full = store.write_at(8192, block(), Persist::Volatile).await;
        assert!(matches!(full, Err(StoreError::NoSpace)), "{full:?}");
        return;
    }
    // The limit (16 blocks of 512 bytes) is a process', so the test runs itself under it.
    let (_directory, path, store) = new_store();
    drop(store);
    let child = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "store::file::tests::a_file_without_room_says_so"])
        .env(CHILD, &path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
}
