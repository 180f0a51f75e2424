//! One contract for every anchor, and what damage of a file leads to.

use std::os::unix::fs::PermissionsExt;

use sealbd::volume::anchor::{Anchor, AnchorError, Anchored, FileAnchor, MemoryAnchor};

const VOLUME: [u8; 16] = *b"one volume of it";
const OTHER: [u8; 16] = *b"another volume..";

fn anchored(generation: u64, mac: u8) -> Anchored {
    Anchored {
        generation,
        root_mac: [mac; 16],
        log_seq: generation * 10,
        chain: [0xc4; 16],
        header_generation: 2,
        writer_epoch: 3,
    }
}

/// What every anchor must do.
async fn keeps_the_contract(anchor: &dyn Anchor) {
    assert_eq!(anchor.load(VOLUME).await.unwrap(), None);
    anchor.store(VOLUME, anchored(5, 1)).await.unwrap();
    assert_eq!(anchor.load(VOLUME).await.unwrap(), Some(anchored(5, 1)));
    assert_eq!(anchor.load(OTHER).await.unwrap(), None, "each volume has its own");
    // The same again is no step back.
    anchor.store(VOLUME, anchored(5, 1)).await.unwrap();
    for older in [anchored(4, 1), anchored(5, 2), anchored(1, 9)] {
        match anchor.store(VOLUME, older).await {
            Err(AnchorError::Older { held: 5, offered }) => assert_eq!(offered, older.generation),
            other => panic!("{other:?}"),
        }
        assert_eq!(anchor.load(VOLUME).await.unwrap(), Some(anchored(5, 1)), "it stays as it was");
    }
    // A claim of an older state has a shorter log and a higher number.
    let claim = Anchored { log_seq: 1, ..anchored(6, 7) };
    anchor.store(VOLUME, claim).await.unwrap();
    anchor.store(OTHER, anchored(1, 1)).await.unwrap();
    assert_eq!(anchor.load(VOLUME).await.unwrap(), Some(claim));
    assert_eq!(anchor.load(OTHER).await.unwrap(), Some(anchored(1, 1)));
    assert!(!anchor.describe().is_empty());
}

#[tokio::test]
async fn an_anchor_in_memory_keeps_the_contract() {
    keeps_the_contract(&MemoryAnchor::default()).await;
}

#[tokio::test]
async fn an_anchor_in_a_directory_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    // One that does not exist yet is made.
    keeps_the_contract(&FileAnchor::new(dir.path().join("deep/anchors"))).await;
}

#[tokio::test]
async fn an_anchor_file_outlives_its_process_and_is_for_its_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let anchor = FileAnchor::new(dir.path().join("anchors"));
    anchor.store(VOLUME, anchored(5, 1)).await.unwrap();
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(anchor.path(VOLUME)), mode(dir.path().join("anchors"))), (0o600, 0o700));
    let again = FileAnchor::new(dir.path().join("anchors"));
    assert_eq!(again.load(VOLUME).await.unwrap(), Some(anchored(5, 1)));
    assert_eq!(
        std::fs::read_dir(dir.path().join("anchors")).unwrap().count(),
        1,
        "no file is left beside it"
    );
}

#[tokio::test]
async fn a_damaged_anchor_file_is_an_error_and_never_no_anchor() {
    let dir = tempfile::tempdir().unwrap();
    let anchor = FileAnchor::new(dir.path());
    anchor.store(VOLUME, anchored(5, 1)).await.unwrap();
    let path = anchor.path(VOLUME);
    let good = std::fs::read(&path).unwrap();
    let mut cases: Vec<Vec<u8>> = (0..good.len()).map(|len| good[..len].to_vec()).collect();
    cases.extend((0..good.len()).map(|at| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    }));
    cases.push([&good[..], b"\n"].concat());
    cases.push(vec![b'x'; 10_000]);
    for case in cases {
        std::fs::write(&path, &case).unwrap();
        let text = String::from_utf8_lossy(&case).into_owned();
        assert!(matches!(anchor.load(VOLUME).await, Err(AnchorError::Damaged { .. })), "{text}");
        let stored = anchor.store(VOLUME, anchored(9, 9)).await;
        assert!(matches!(stored, Err(AnchorError::Damaged { .. })), "it is not written over: {text}");
    }
}

#[tokio::test]
async fn an_anchor_file_of_another_volume_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let anchor = FileAnchor::new(dir.path());
    anchor.store(OTHER, anchored(5, 1)).await.unwrap();
    std::fs::rename(anchor.path(OTHER), anchor.path(VOLUME)).unwrap();
    let error = anchor.load(VOLUME).await.unwrap_err().to_string();
    assert!(error.contains("it is that of volume"), "{error}");
}

#[tokio::test]
async fn an_anchor_file_that_cannot_be_read_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let anchor = FileAnchor::new(dir.path());
    std::fs::create_dir(anchor.path(VOLUME)).unwrap();
    assert!(matches!(anchor.load(VOLUME).await, Err(AnchorError::Io { .. })));
    // A directory in which nothing can be made.
    let anchor = FileAnchor::new("/proc/anchors");
    assert!(matches!(anchor.store(VOLUME, anchored(1, 1)).await, Err(AnchorError::Io { .. })));
}
