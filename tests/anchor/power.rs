//! Power cuts with an anchor: whatever a cut leaves of an honest store is never taken for a rollback.

use std::sync::Arc;

use sealbd::export::Export;
use sealbd::volume::OpenMode;
use sealbd::volume::anchor::OnRollback;

use crate::{Host, first_sector, volumes, write};

/// What is done until the power goes; the fill that was flushed last, and the last one asked for.
async fn play(host: &Host) -> (u8, u8) {
    let (mut flushed, mut asked) = (0, 0);
    for session in 0..2 {
        let Ok(volume) = host.open_as(OpenMode::ReadWrite, OnRollback::Refuse).await else {
            break;
        };
        for step in 0..4 {
            asked = session * 10 + step + 1;
            let range = crate::sector(0);
            let payload = sealbd::payload::Payload::copy_of(range, &[asked; 4096]);
            if volume.write(payload, sealbd::export::Durability::Durable).await.is_err() {
                return (flushed, asked);
            }
            flushed = asked;
            if step % 2 == 1 && volume.checkpoint().await.is_err() {
                return (flushed, asked);
            }
        }
        if volume.close().await.is_err() {
            break;
        }
    }
    (flushed, asked)
}

#[tokio::test]
async fn no_power_cut_at_any_change_is_taken_for_a_rollback() {
    let fresh = Host::new().await;
    for nth in 0.. {
        let host = Host { store: Arc::new(fresh.store.snapshot()), anchor: Arc::default() };
        host.store.freeze_at(nth);
        let (flushed, asked) = play(&host).await;
        let frozen = host.store.is_frozen();
        let mut dice = nth;
        let mut torn = |bound: u64| {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (dice >> 33) % bound
        };
        let states =
            [host.store.crash(&mut |_| 0), host.store.crash(&mut |_| 1), host.store.crash(&mut torn)];
        for (case, state) in states.into_iter().enumerate() {
            let when = format!("cut at change {nth}, case {case}");
            // The anchor of this host is the one that was written before the cut.
            let after = Host { store: Arc::new(state), anchor: copy_of(&host).await };
            let opened = after.open_as(OpenMode::ReadWrite, OnRollback::Refuse).await;
            let volume = opened.unwrap_or_else(|error| panic!("{when}: {error}"));
            let found = first_sector(&volume).await;
            assert!(found == flushed || found == asked, "{when}: {found} instead of {flushed} or {asked}");
            write(&volume, 0, 77).await;
            volume.close().await.unwrap();
            volumes::check(&after.open().await).await;
        }
        if !frozen {
            return;
        }
    }
}

/// An anchor that holds the same.
async fn copy_of(host: &Host) -> Arc<sealbd::volume::anchor::MemoryAnchor> {
    use sealbd::volume::anchor::{Anchor, MemoryAnchor};
    let volume = volumes::unlock(&host.store.snapshot()).await.unwrap().header.volume;
    let copy = MemoryAnchor::default();
    if let Some(held) = host.anchor.load(volume).await.unwrap() {
        copy.store(volume, held).await.unwrap();
    }
    Arc::new(copy)
}
