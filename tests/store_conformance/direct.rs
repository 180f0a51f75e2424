//! The same contract past the page cache (O_DIRECT).

use sealbd::store::file::Caching;

use super::*;

/// Under `target`: the directory for temporary files may be a file system that has nothing but a cache.
fn disk_directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory of the build")
}

fn past_the_cache() -> (tempfile::TempDir, PathBuf, FileStore) {
    let directory = disk_directory();
    let path = directory.path().join("volume");
    drop(FileStore::create(&path, SIZE, Existing::Refuse).expect("a file"));
    let store = FileStore::open_with(&path, Access::ReadWrite, Caching::Direct).expect("a disk");
    (directory, path, store)
}

#[tokio::test]
async fn a_file_past_the_page_cache_keeps_the_contract() {
    let (_directory, path, store) = past_the_cache();
    keeps_the_contract(&store).await;
    assert!(store.try_read_at(0, &mut [0; 512]).is_none(), "there is no cache to read from");
    // Other processes, which go through the cache, see the same.
    write(&store, 8192, &[5; 4096]).await;
    let seen = FileStore::open(&path, Access::Inspect).unwrap();
    assert_eq!(seen.read_at(8192, 4096).await.unwrap(), [5; 4096]);
    drop(store);
    refuses_changes(&FileStore::open_with(&path, Access::ReadOnly, Caching::Direct).unwrap()).await;
}

#[tokio::test]
async fn a_file_past_the_page_cache_that_was_cut_short_gives_no_zeros() {
    let (_directory, path, store) = past_the_cache();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(6000).unwrap();
    let short = store.read_at(4096, 4096).await;
    assert!(
        matches!(short, Err(StoreError::ShortRead { offset: 4096, wanted: 4096, got: 1904 })),
        "{short:?}"
    );
    assert_eq!(store.read_at(5000, 1000).await.unwrap(), [0; 1000], "up to the end it is read");
}

#[tokio::test]
async fn a_device_with_large_blocks_is_written_in_units_of_them_past_the_page_cache() {
    let directory = disk_directory();
    let file = sparse_file(directory.path(), SIZE);
    let Some(disk) = LoopDevice::attach_with(&file, &["--sector-size", "4096"]) else { return };
    let store = FileStore::open_with(&disk.device, Access::ReadWrite, Caching::Direct).unwrap();
    assert_eq!(store.capability().write_unit, 4096);
    keeps_the_contract(&store).await;
}

#[tokio::test]
async fn what_has_no_way_past_a_cache_says_so() {
    let memory = uri::open_with(&"mem:1M".parse().unwrap(), Access::ReadWrite, Caching::Direct).await;
    assert!(matches!(memory.err(), Some(StoreError::NoDirectAccess(_))));
}
