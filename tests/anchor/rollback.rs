//! A store that was put back is refused, by how much ever; an honest one never is.

use std::sync::Arc;

use sealbd::format::header::{HEADER_LEN, HEADER_OFFSETS};
use sealbd::volume::anchor::{MemoryAnchor, OnRollback, RollbackKind};
use sealbd::volume::{OpenMode, VolumeError};

use crate::anatomy::{Anatomy, Place, flip, replay, zero};
use crate::volumes::Disk;
use crate::{Host, first_sector, volumes, write};

/// The one error, its numbers put aside.
fn kind(error: &VolumeError) -> RollbackKind {
    match error {
        VolumeError::Rollback { kind, .. } => *kind,
        other => panic!("another error: {other}"),
    }
}

#[tokio::test]
async fn an_honest_store_opens_again_and_again() {
    let host = Host::new().await;
    for fill in 1..20 {
        host.session(fill).await;
        let anchored = host.anchored().await;
        let newest = Anatomy::of(&host.store).await;
        assert_eq!(anchored.generation, newest.newest.generation, "closed, so nothing is unknown");
        assert_eq!(anchored.writer_epoch, u64::from(fill));
    }
    assert_eq!(first_sector(&host.open().await).await, 19);
}

#[tokio::test]
async fn a_stopped_volume_put_back_by_a_session_is_refused() {
    let host = Host::new().await;
    host.session(1).await;
    let old = host.store.snapshot();
    host.session(2).await;
    let known = host.anchored().await.generation;
    let host = host.put_back(&old);
    let found = Anatomy::of(&host.store).await.newest.generation;
    match host.refusal().await {
        VolumeError::Rollback { found: f, known: k, kind } => {
            assert_eq!((f, k, kind), (found, known, RollbackKind::Older));
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_store_put_back_by_one_root_is_refused() {
    let host = Host::new().await;
    let volume = host.open().await;
    write(&volume, 0, 1).await;
    volume.checkpoint().await.unwrap();
    let old = host.store.snapshot();
    volume.checkpoint().await.unwrap();
    drop(volume);
    let host = host.put_back(&old);
    assert_eq!(kind(&host.refusal().await), RollbackKind::Older);
}

#[tokio::test]
async fn a_copy_that_went_on_elsewhere_is_refused_at_any_number_of_roots() {
    for more in 0..12 {
        let host = Host::new().await;
        host.session(1).await;
        let fork = Disk { store: Arc::new(host.store.snapshot()) };
        host.session(2).await;
        let volume = fork.open().await;
        for fill in 0..more {
            write(&volume, 0, 100 + fill).await;
            volume.checkpoint().await.unwrap();
        }
        volume.close().await.unwrap();
        let host = host.put_back(&fork.store);
        // Three roots of a session and those in between; all of them are numbers that the anchor knows or lists.
        assert_eq!(kind(&host.refusal().await), RollbackKind::Forked, "{more} checkpoints");
    }
}

#[tokio::test]
async fn sessions_without_the_anchor_are_taken_as_what_they_are() {
    let host = Host::new().await;
    host.session(1).await;
    let elsewhere = Disk { store: host.store.clone() };
    elsewhere.open().await.close().await.unwrap();
    let volume = host.open().await;
    assert!(!volume.anchor_status().unwrap().on_trust, "their roots name the anchored one");
    volume.close().await.unwrap();
    // More than a root lists: nothing is wrong, and it is told.
    let volume = elsewhere.open().await;
    for _ in 0..20 {
        volume.checkpoint().await.unwrap();
    }
    volume.close().await.unwrap();
    let volume = host.open().await;
    assert!(volume.anchor_status().unwrap().on_trust);
    volume.close().await.unwrap();
    assert!(!host.open().await.anchor_status().unwrap().on_trust);
}

#[tokio::test]
async fn an_accepted_rollback_is_newer_than_what_it_was_taken_for() {
    let host = Host::new().await;
    host.session(1).await;
    let old = host.store.snapshot();
    for fill in 2..9 {
        host.session(fill).await;
    }
    let lost = host.store.snapshot();
    let known = host.anchored().await;
    let host = host.put_back(&old);
    host.refusal().await;
    let volume = host.open_as(OpenMode::ReadWrite, OnRollback::Accept).await.unwrap();
    assert_eq!(first_sector(&volume).await, 1);
    assert!(volume.anchor_status().unwrap().accepted.unwrap().contains("(rollback)"));
    let now = host.anchored().await;
    assert!(now.generation > known.generation && now.writer_epoch > known.writer_epoch, "{now:?}");
    write(&volume, 0, 50).await;
    volume.close().await.unwrap();
    volumes::check(&host.open().await).await;
    // From here on neither the state before nor the one that was given up is taken.
    let kept = host.store.snapshot();
    for older in [&old, &lost] {
        let host = Host { store: Arc::new(older.snapshot()), anchor: host.anchor.clone() };
        host.refusal().await;
    }
    let host = host.put_back(&kept);
    assert_eq!(first_sector(&host.open().await).await, 50);
}

#[tokio::test]
async fn a_rollback_accepted_for_reading_writes_nothing() {
    let host = Host::new().await;
    host.session(1).await;
    let old = host.store.snapshot();
    host.session(2).await;
    let known = host.anchored().await;
    let host = host.put_back(&old);
    let volume = host.open_as(OpenMode::ReadOnly, OnRollback::Accept).await.unwrap();
    assert_eq!(first_sector(&volume).await, 1);
    drop(volume);
    assert_eq!((host.store.change_count(), host.anchored().await), (0, known));
    host.refusal().await;
}

#[tokio::test]
async fn an_accepted_rollback_whose_claim_was_not_anchored_is_accepted_again() {
    let host = Host::new().await;
    host.session(1).await;
    let old = host.store.snapshot();
    host.session(2).await;
    let host = host.put_back(&old);
    host.anchor.fail(Some("no room"));
    let refused = host.open_as(OpenMode::ReadWrite, OnRollback::Accept).await.err().unwrap();
    assert!(matches!(refused, VolumeError::NotAnchored(_)), "{refused}");
    host.anchor.fail(None);
    let host = Host { store: Arc::new(host.store.snapshot()), ..host };
    assert_eq!(kind(&host.refusal().await), RollbackKind::Forked);
    let volume = host.open_as(OpenMode::ReadWrite, OnRollback::Accept).await.unwrap();
    assert_eq!(first_sector(&volume).await, 1);
    volume.close().await.unwrap();
    host.open().await;
}

#[tokio::test]
async fn an_anchored_root_that_the_ring_has_lost_is_a_rollback_and_one_that_is_damaged_is_damage() {
    let host = Host::new().await;
    host.session(1).await;
    let anatomy = Anatomy::of(&host.store).await;
    let good = host.store.snapshot();
    zero(&host.store, anatomy.ring_block(anatomy.newest.generation));
    assert_eq!(kind(&host.refusal().await), RollbackKind::Older);
    let host = host.put_back(&good);
    for place in [anatomy.payload(), anatomy.table()] {
        let host = Host { store: Arc::new(good.snapshot()), anchor: host.anchor.clone() };
        flip(&host.store, place);
        match host.refusal().await {
            VolumeError::NoRoot(why) => assert!(why.contains("older than the anchor allows"), "{why}"),
            other => panic!("{other}"),
        }
    }
    host.open().await;
}

#[tokio::test]
async fn a_header_older_than_the_anchored_one_is_refused_with_its_roots() {
    let host = Host::new().await;
    let old = host.store.snapshot();
    let mut unlocked = volumes::unlock(&*host.store).await.unwrap();
    sealbd::volume::unlock::write_header(&*host.store, &mut unlocked.header, &unlocked.keys).await.unwrap();
    host.session(1).await;
    assert_eq!(host.anchored().await.header_generation, 2);
    for offset in HEADER_OFFSETS {
        replay(&host.store, Place { offset, len: HEADER_LEN }, &old);
    }
    let error = host.refusal().await;
    assert!(matches!(error, VolumeError::HeaderRollback { found: 1, known: 2 }), "{error}");
}

#[tokio::test]
async fn a_log_put_back_under_its_root_is_damage_when_the_root_knows_its_end() {
    // A session that died: the next one's claim names where its log ends.
    let host = Host::new().await;
    let volume = host.open().await;
    write(&volume, 0, 1).await;
    let shorter = host.store.snapshot();
    write(&volume, 0, 2).await;
    drop(volume);
    let host = Host { store: Arc::new(host.store.snapshot()), ..host };
    let volume = host.open().await;
    drop(volume);
    let host = Host { store: Arc::new(host.store.snapshot()), ..host };
    let log = Anatomy::of(&host.store).await.log[0].place;
    let len = 64 << 10;
    replay(&host.store, Place { offset: log.offset, len }, &shorter);
    let error = host.refusal().await;
    assert!(matches!(error, VolumeError::Damaged { structure: "closed log", .. }), "{error}");
}

#[tokio::test]
async fn what_was_written_since_the_last_root_is_the_window_that_the_status_tells() {
    let host = Host::new().await;
    let volume = host.open().await;
    let status = || volume.anchor_status().unwrap();
    assert_eq!((status().undetected_chunks, status().undetected_bytes), (0, 0));
    write(&volume, 0, 1).await;
    let before = host.store.snapshot();
    for fill in 2..5 {
        write(&volume, 0, fill).await;
    }
    assert_eq!(status().undetected_chunks, 4);
    assert!(status().undetected_bytes >= 4 * 4096, "{:?}", status());
    // That much can be lost unseen, and no more: here the three last chunks of it.
    let window = Host { store: Arc::new(before), anchor: Arc::new(MemoryAnchor::default()) };
    let anchor = Host { store: window.store.clone(), anchor: host.anchor.clone() };
    let opened = anchor.open_as(OpenMode::ReadOnly, OnRollback::Refuse).await.unwrap();
    assert_eq!(first_sector(&opened).await, 1);
    volume.checkpoint().await.unwrap();
    assert_eq!((status().undetected_chunks, status().undetected_bytes), (0, 0));
    assert_eq!(kind(&anchor.refusal().await), RollbackKind::Older);
}

#[tokio::test]
async fn an_anchor_that_fails_under_a_running_volume_widens_the_window_and_is_told() {
    let host = Host::new().await;
    let volume = host.open().await;
    let held = host.anchored().await;
    host.anchor.fail(Some("no room"));
    for fill in 1..4 {
        write(&volume, 0, fill).await;
        volume.checkpoint().await.unwrap();
    }
    let status = volume.anchor_status().unwrap();
    assert_eq!(status.generation, Some(held.generation));
    assert!(status.failed.unwrap().contains("no room"));
    assert_eq!(status.undetected_chunks, 3);
    assert!(status.undetected_bytes >= 3 * 4096);
    // The next root tries again.
    host.anchor.fail(None);
    volume.checkpoint().await.unwrap();
    let status = volume.anchor_status().unwrap();
    assert_eq!((status.failed, status.undetected_chunks), (None, 0));
    // One that fails at the last root is told by whoever closes.
    host.anchor.fail(Some("no room"));
    assert!(matches!(volume.close().await, Err(VolumeError::NotAnchored(_))));
    host.anchor.fail(None);
    // Behind, but honest.
    assert_eq!(first_sector(&host.open().await).await, 3);
}

#[tokio::test]
async fn a_volume_whose_claim_cannot_be_anchored_is_not_opened_for_writing() {
    let host = Host::new().await;
    host.anchor.fail(Some("no room"));
    let refused = host.open_as(OpenMode::ReadWrite, OnRollback::Refuse).await.err().unwrap();
    assert!(matches!(refused, VolumeError::NotAnchored(_)), "{refused}");
    // Reading writes no root.
    host.open_as(OpenMode::ReadOnly, OnRollback::Refuse).await.unwrap();
    host.anchor.fail(None);
    host.open().await;
}
