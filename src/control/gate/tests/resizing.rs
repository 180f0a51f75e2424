//! Another size for a served volume: who is told which, and when it may become smaller.

use super::*;
use crate::volume::WantedSize;

const SMALL: u64 = SIZE / 2;

fn to(size: u64) -> WantedSize {
    WantedSize { size: Some(size), over_provisioning: None, dry_run: false }
}

fn refused_for_clients(result: &Result<crate::volume::Resized, ResizeError>) -> bool {
    matches!(result, Err(ResizeError::Clients(_)))
}

#[tokio::test]
async fn a_volume_becomes_smaller_only_when_the_last_client_has_gone() {
    let (_store, gate) = running().await;
    let told = gate.info();
    let (one, two) = (gate.attach(&told).unwrap(), gate.attach(&told).unwrap());
    assert!(refused_for_clients(&gate.resize(to(SMALL)).await));
    drop(one);
    assert!(refused_for_clients(&gate.resize(to(SMALL)).await));
    drop(two);
    assert_eq!(gate.resize(to(SMALL)).await.unwrap().after.size, SMALL);
    assert_eq!(gate.info().size, SMALL);
    assert!(gate.attach(&told).is_none(), "told of the larger size, and not in yet");
    assert!(gate.attach(&gate.info()).is_some());
}

#[tokio::test]
async fn who_comes_while_the_volume_becomes_smaller_is_told_the_smaller_size() {
    let inner = format(SIZE).await;
    let store = Arc::new(HoldStore::new(inner));
    let gate = open_as(store.clone(), OpenMode::ReadWrite).await;
    let told = gate.info();
    store.hold();
    let shrinking = tokio::spawn({
        let gate = gate.clone();
        async move { gate.resize(to(SMALL)).await }
    });
    until("the store is asked", || store.held() > 0).await;
    assert_eq!(gate.info().size, SMALL);
    assert!(gate.attach(&told).is_none());
    let client = gate.attach(&gate.info()).unwrap();
    store.release();
    assert_eq!(soon("resizing", shrinking).await.unwrap().unwrap().after.size, SMALL);
    drop(client);
}

#[tokio::test]
async fn a_shrink_that_is_refused_leaves_the_old_size_to_clients() {
    let (_store, gate) = running().await;
    put(&gate, SMALL / 4096, 1).await.unwrap();
    for dry_run in [true, false] {
        let refused = gate.resize(WantedSize { dry_run, ..to(SMALL) }).await;
        assert!(
            matches!(refused, Err(ResizeError::Volume(VolumeError::InUse { first: SMALL, .. }))),
            "{refused:?}"
        );
        assert_eq!(gate.info().size, SIZE);
        assert!(gate.attach(&gate.info()).is_some());
    }
    assert_eq!(fill_of(&gate, SMALL / 4096).await.unwrap(), 1);
}

#[tokio::test]
async fn a_volume_that_was_resized_is_resumed_and_one_of_another_size_without_a_newer_header_is_not() {
    let (store, gate) = running().await;
    put(&gate, 0, 1).await.unwrap();
    gate.resize(to(SMALL)).await.unwrap();
    gate.suspend().await.unwrap();
    gate.resume(dek(&*store).await).await.unwrap();
    assert_eq!((gate.info().size, fill_of(&gate, 0).await.unwrap()), (SMALL, 1));
    gate.suspend().await.unwrap();
    assert!(matches!(gate.resize(to(SMALL)).await, Err(ResizeError::NotRunning(_))));
    let mut unlocked = unlock(&*store).await;
    unlocked.header.export_bytes = SIZE;
    for offset in crate::format::header::HEADER_OFFSETS {
        store.write_raw(offset, &unlocked.header.encode(&unlocked.keys));
    }
    let refused = gate.resume(unlocked.dek).await.unwrap_err();
    assert!(matches!(refused, ResumeError::OtherVolume("its size")), "{refused}");
}
