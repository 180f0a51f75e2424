//! What a suspended volume is not resumed with: another key, another volume, an older state of its store.

use super::*;
use crate::format::header::{HEADER_LEN, HEADER_OFFSETS};
use crate::volume::create::add_key;

/// Suspended, with this in sector 0.
async fn suspended(fill: u8) -> (Arc<MemoryStore>, Arc<Gate>) {
    let (store, gate) = running().await;
    put(&gate, 0, fill).await.unwrap();
    gate.suspend().await.unwrap();
    (store, gate)
}

/// Nothing came of it: it is suspended as before, requests wait, and the right key resumes it.
async fn still_suspended(store: &MemoryStore, gate: &Arc<Gate>, fill: u8) {
    assert_eq!(gate.state(), GateState::Suspended);
    let mine = gate.clone();
    let read = park(gate, 1, async move { fill_of(&mine, 0).await }).await;
    gate.resume(dek(store).await).await.unwrap();
    assert_eq!(soon("the read", read).await.unwrap().unwrap(), fill);
    gate.close().await.unwrap();
}

/// Both copies of the header.
fn header_of(store: &MemoryStore) -> [Vec<u8>; 2] {
    HEADER_OFFSETS.map(|offset| store.read_raw(offset, HEADER_LEN))
}

fn put_back(store: &MemoryStore, copies: &[Vec<u8>; 2]) {
    for (offset, copy) in HEADER_OFFSETS.into_iter().zip(copies) {
        store.write_raw(offset, copy);
    }
}

#[tokio::test]
async fn a_wrong_data_key_is_refused_and_changes_nothing() {
    let (store, gate) = suspended(4).await;
    let before = store.change_count();
    let refused = gate.resume(Dek::take(&mut [9; 32])).await;
    assert!(matches!(refused, Err(ResumeError::WrongKey)), "{refused:?}");
    assert_eq!(store.change_count(), before);
    still_suspended(&store, &gate, 4).await;
}

#[tokio::test]
async fn the_data_key_of_another_volume_is_refused() {
    let (store, gate) = suspended(4).await;
    let other = format(SIZE).await;
    let refused = gate.resume(dek(&*other).await).await;
    assert!(matches!(refused, Err(ResumeError::WrongKey)), "{refused:?}");
    still_suspended(&store, &gate, 4).await;
}

#[tokio::test]
async fn another_volume_in_the_place_of_the_suspended_one_is_refused_even_with_its_own_key() {
    let (store, gate) = suspended(4).await;
    let (own, other) = (header_of(&store), format(SIZE).await);
    put_back(&store, &header_of(&other));
    let refused = gate.resume(dek(&*other).await).await;
    assert!(matches!(refused, Err(ResumeError::OtherVolume("its UUID"))), "{refused:?}");
    put_back(&store, &own);
    still_suspended(&store, &gate, 4).await;
}

#[tokio::test]
async fn a_header_that_was_altered_is_told_from_a_wrong_key() {
    let (store, gate) = suspended(4).await;
    let (own, key) = (header_of(&store), dek(&*store).await);
    let mut header = unlock(&*store).await.header;
    header.label[0] ^= 1;
    // Well-formed, and authenticated by nobody who has this volume's key.
    let foreign =
        VolumeKeys::derive(Engine::default(), &Dek::take(&mut [3; 32]), &header.salt, &header.volume);
    put_back(&store, &[header.encode(&foreign), header.encode(&foreign)]);
    let refused = gate.resume(key).await;
    assert!(matches!(refused, Err(ResumeError::Volume(VolumeError::Damaged { .. }))), "{refused:?}");
    put_back(&store, &own);
    still_suspended(&store, &gate, 4).await;
}

#[tokio::test]
async fn a_header_older_than_the_one_in_use_is_refused() {
    let (store, gate) = running().await;
    put(&gate, 0, 4).await.unwrap();
    let old = header_of(&store);
    // A keyslot is added while it is served.
    let unlocked = unlock(&*store).await;
    let mut next = unlocked.header.clone();
    add_key(&mut next, &unlocked.dek, &unlocked.keys, &*managers()[0], 1).await.unwrap();
    next.generation += 1;
    gate.volume().unwrap().replace_header(&next.encode(&unlocked.keys)).await.unwrap();
    drop(unlocked);
    gate.suspend().await.unwrap();
    let new = header_of(&store);
    put_back(&store, &old);
    let refused = gate.resume(dek(&*store).await).await;
    assert!(
        matches!(refused, Err(ResumeError::HeaderRollback { found: 1, known: 2 })),
        "the suspended process remembers: {refused:?}"
    );
    put_back(&store, &new);
    still_suspended(&store, &gate, 4).await;
}

#[tokio::test]
async fn a_key_added_and_a_header_made_newer_while_suspended_are_taken() {
    let (store, gate) = suspended(4).await;
    let unlocked = unlock(&*store).await;
    let mut next = unlocked.header.clone();
    add_key(&mut next, &unlocked.dek, &unlocked.keys, &*managers()[0], 1).await.unwrap();
    crate::volume::unlock::write_header(&*store, &mut next, &unlocked.keys).await.unwrap();
    gate.resume(unlocked.dek).await.unwrap();
    assert_eq!(gate.volume().unwrap().header().generation, 2);
    assert_eq!(fill_of(&gate, 0).await.unwrap(), 4);
    gate.close().await.unwrap();
}

#[tokio::test]
async fn a_store_put_back_to_an_earlier_state_while_suspended_is_refused() {
    let store = format(SIZE).await;
    let gate = open_as(store.clone(), OpenMode::ReadWrite).await;
    put(&gate, 0, 1).await.unwrap();
    gate.flush().await.unwrap();
    gate.suspend().await.unwrap();
    let len = usize::try_from(store.capability().size).unwrap();
    let old = store.read_raw(0, len);
    gate.resume(dek(&*store).await).await.unwrap();
    put(&gate, 0, 2).await.unwrap();
    gate.flush().await.unwrap();
    gate.suspend().await.unwrap();
    let new = store.read_raw(0, len);

    store.write_raw(0, &old);
    let refused = gate.resume(dek(&*store).await).await;
    assert!(
        matches!(refused, Err(ResumeError::DataRollback { .. })),
        "an answered write is missing: {refused:?}"
    );
    store.write_raw(0, &new);
    still_suspended(&store, &gate, 2).await;
}

#[tokio::test]
async fn a_store_that_fails_while_resuming_leaves_it_suspended_for_another_try() {
    for operation in [Operation::Read, Operation::Write, Operation::Sync] {
        for nth in 0.. {
            let (store, gate) = suspended(4).await;
            let key = dek(&*store).await;
            store.inject(operation, nth, Fault::Io);
            let resumed = gate.resume(key).await;
            if resumed.is_ok() {
                assert!(nth > 1, "resuming needs more of {operation:?}");
                break;
            }
            assert!(matches!(resumed, Err(ResumeError::Volume(_))), "{operation:?} {nth}: {resumed:?}");
            if operation == Operation::Sync {
                // A store whose sync failed stays failed.
                assert!(gate.resume(dek(&*store).await).await.is_err());
                assert_eq!(gate.state(), GateState::Suspended);
            } else {
                still_suspended(&store, &gate, 4).await;
            }
        }
    }
}
