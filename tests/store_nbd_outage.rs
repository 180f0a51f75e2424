//! The NBD store across lost connections: what is made again, what is not, and what a sync may still
//! claim (the rules of `store::nbd`). Scripted servers for the exact moments, nbdkit for the real thing.

#[path = "common/scripted_nbd.rs"]
mod scripted_nbd;
#[path = "common/servers.rs"]
mod servers;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use sealbd::store::nbd::{NbdOptions, NbdStore};
use sealbd::store::uri::StoreUri;
use sealbd::store::{Access, Persist, SlotStore, StoreError};
use sealbd::wire::transmission::{Command, CommandFlags};
use sealbd::wire::{Errno, TransmissionFlags};

use scripted_nbd::{Door, OFFER, Offer, Peer, SIZE, hasty, in_time, patient};
use servers::{Server, sparse_file};

fn block(fill: u8) -> Vec<Bytes> {
    vec![Bytes::from(vec![fill; 4096])]
}

async fn acked_write(store: &NbdStore, peer: &mut Peer) {
    let (written, _) =
        tokio::join!(store.write_at(0, block(1), Persist::Volatile), peer.answer(Command::WRITE));
    written.expect("the server said so");
}

async fn acked_sync(store: &NbdStore, peer: &mut Peer) {
    let (synced, _) = tokio::join!(store.sync(), peer.answer(Command::FLUSH));
    synced.expect("the server said so");
}

#[track_caller]
fn assert_sync_failed(outcome: &Result<(), StoreError>) {
    assert!(matches!(outcome, Err(StoreError::SyncFailed(_))), "{outcome:?}");
}

/// Two connections to one server, the older one first.
async fn two_connections(door: &Door) -> (NbdStore, Peer, Peer) {
    let offer = Offer { flags: OFFER.flags.with(TransmissionFlags::CAN_MULTI_CONN), ..OFFER };
    let options = NbdOptions { connections: NonZeroUsize::new(2).expect("two"), ..patient() };
    let (store, older) = door.writer(offer, options).await;
    let younger = door.accept(offer).await;
    in_time("the second connection", async {
        while store.connection_count() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    (store, older, younger)
}

#[tokio::test]
async fn requests_are_pipelined_and_answered_in_any_order() {
    let door = Door::new();
    let (store, mut peer) = door.reader(OFFER, patient()).await;
    let serve = async {
        let (first, _) = peer.request(Command::READ).await;
        let (second, _) = peer.request(Command::READ).await;
        peer.answer_read(second, 2).await;
        peer.answer_read(first, 1).await;
    };
    let (first, second, ()) = tokio::join!(store.read_at(0, 4096), store.read_at(8192, 4096), serve);
    assert_eq!((first.unwrap(), second.unwrap()), (vec![1; 4096], vec![2; 4096]));
}

#[tokio::test]
async fn unanswered_reads_and_writes_are_made_again_and_answered_once() {
    let door = Door::new();
    let (store, mut peer) = door.writer(OFFER, patient()).await;
    let serve = async {
        let (read, _) = peer.request(Command::READ).await;
        let (write, data) = peer.request(Command::WRITE).await;
        drop(peer);
        let mut peer = door.accept(OFFER).await;
        for _ in 0..2 {
            let header = peer.receive(28).await;
            let request = sealbd::wire::transmission::Request::decode(
                sealbd::wire::transmission::HeaderStyle::Compact,
                &header,
            )
            .unwrap();
            if request.command == Command::READ {
                assert_eq!((request.offset, request.len), (read.offset, read.len));
                peer.answer_read(request, 7).await;
            } else {
                assert_eq!((request.command, request.offset), (Command::WRITE, write.offset));
                assert_eq!(peer.receive(4096).await, data, "the same data");
                peer.simple_reply(request.cookie, Errno::OK).await;
            }
        }
        peer
    };
    let write = store.write_at(4096, block(5), Persist::Volatile);
    let (read, written, mut peer) = tokio::join!(store.read_at(0, 4096), write, serve);
    assert_eq!(read.unwrap(), [7; 4096]);
    written.unwrap();
    acked_sync(&store, &mut peer).await;
}

#[tokio::test]
async fn a_dropped_connection_is_closed_before_its_requests_are_made_again() {
    let door = Door::new();
    let (store, mut old) = door.reader(OFFER, patient()).await;
    let serve = async {
        old.request(Command::READ).await;
        old.send(&[0x41; 64]).await;
        let mut new = door.accept(OFFER).await;
        let (request, _) = new.request(Command::READ).await;
        let mut rest = [0; 1];
        let at_once = old.stream.try_read(&mut rest);
        assert!(matches!(at_once, Ok(0)), "the old connection has ended: {at_once:?}");
        new.answer_read(request, 9).await;
    };
    let (read, ()) = tokio::join!(store.read_at(0, 4096), serve);
    assert_eq!(read.unwrap(), [9; 4096]);
}

#[tokio::test]
async fn a_server_that_says_it_shuts_down_is_left_and_asked_again() {
    let door = Door::new();
    let (store, mut peer) = door.writer(OFFER, patient()).await;
    let serve = async {
        let (request, _) = peer.request(Command::WRITE).await;
        peer.simple_reply(request.cookie, Errno::ESHUTDOWN).await;
        door.accept(OFFER).await.answer(Command::WRITE).await;
    };
    let (written, ()) = tokio::join!(store.write_at(0, block(1), Persist::Volatile), serve);
    written.unwrap();
}

#[tokio::test]
async fn a_flush_lost_with_nothing_unsynced_is_made_again() {
    let door = Door::new();
    let (store, mut peer) = door.writer(OFFER, patient()).await;
    acked_write(&store, &mut peer).await;
    acked_sync(&store, &mut peer).await;
    let serve = async {
        peer.request(Command::FLUSH).await;
        drop(peer);
        door.accept(OFFER).await.answer(Command::FLUSH).await;
    };
    let (synced, _) = tokio::join!(store.sync(), serve);
    synced.unwrap();
}

#[tokio::test]
async fn a_flush_lost_over_an_unsynced_write_fails_the_sync_for_ever() {
    let door = Door::new();
    let (store, mut peer) = door.writer(OFFER, patient()).await;
    acked_write(&store, &mut peer).await;
    let serve = async {
        peer.request(Command::FLUSH).await;
        drop(peer);
    };
    let (synced, ()) = tokio::join!(store.sync(), serve);
    assert_sync_failed(&synced);
    let mut peer = door.accept(OFFER).await;
    assert_sync_failed(&store.sync().await);
    let serve = async {
        let (request, _) = peer.request(Command::READ).await;
        peer.answer_read(request, 1).await;
    };
    let (read, ()) = tokio::join!(store.read_at(0, 4096), serve);
    assert_eq!(read.unwrap(), [1; 4096], "reads go on, and no flush was sent before this one");
}

#[tokio::test]
async fn the_loss_of_any_connection_puts_unsynced_writes_in_doubt() {
    let door = Door::new();
    let (store, mut older, mut younger) = two_connections(&door).await;
    let serve = async {
        tokio::select! {
            _ = older.answer(Command::WRITE) => older,
            _ = younger.answer(Command::WRITE) => younger,
        }
    };
    // Who of the two took the write stays, the other one goes.
    let (written, mut took_it) = tokio::join!(store.write_at(0, block(1), Persist::Volatile), serve);
    written.unwrap();
    in_time("the loss", async {
        while store.connection_count() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_sync_failed(&store.sync().await);
    drop(store);
    took_it.request(Command::DISC).await;
}

#[tokio::test]
async fn a_flush_goes_over_the_oldest_connection() {
    let door = Door::new();
    let (store, mut older, _younger) = two_connections(&door).await;
    for _ in 0..5 {
        acked_sync(&store, &mut older).await;
    }
}

#[tokio::test]
async fn a_durable_write_is_a_single_request_where_the_server_knows_fua() {
    let door = Door::new();
    let (store, mut peer) = door.writer(OFFER, patient()).await;
    let (written, request) =
        tokio::join!(store.write_at(0, block(1), Persist::Durable), peer.answer(Command::WRITE));
    written.unwrap();
    assert!(request.flags.contains(CommandFlags::FUA));
    drop(peer);
    let mut peer = door.accept(OFFER).await;
    acked_sync(&store, &mut peer).await;
}

#[tokio::test]
async fn a_durable_write_is_followed_by_a_flush_where_the_server_does_not_know_fua() {
    let door = Door::new();
    let flags = TransmissionFlags::HAS_FLAGS.with(TransmissionFlags::SEND_FLUSH);
    let (store, mut peer) = door.writer(Offer { flags, ..OFFER }, patient()).await;
    let serve = async {
        let request = peer.answer(Command::WRITE).await;
        assert_eq!(request.flags, CommandFlags::NONE);
        peer.answer(Command::FLUSH).await;
    };
    let (written, ()) = tokio::join!(store.write_at(0, block(1), Persist::Durable), serve);
    written.unwrap();
}

#[tokio::test]
async fn a_refused_flush_is_final() {
    let door = Door::new();
    let (store, mut peer) = door.writer(OFFER, patient()).await;
    let serve = async {
        let (request, _) = peer.request(Command::FLUSH).await;
        peer.simple_reply(request.cookie, Errno::EIO).await;
    };
    let (synced, ()) = tokio::join!(store.sync(), serve);
    assert_sync_failed(&synced);
    assert_sync_failed(&store.sync().await);
}

#[tokio::test]
async fn a_refused_durable_write_puts_unsynced_writes_in_doubt() {
    let door = Door::new();
    let (store, mut peer) = door.writer(OFFER, patient()).await;
    acked_write(&store, &mut peer).await;
    let serve = async {
        let (request, _) = peer.request(Command::WRITE).await;
        peer.simple_reply(request.cookie, Errno::EIO).await;
    };
    let (written, ()) = tokio::join!(store.write_at(4096, block(2), Persist::Durable), serve);
    assert!(matches!(written, Err(StoreError::Io { .. })), "{written:?}");
    assert_sync_failed(&store.sync().await);
}

#[tokio::test]
async fn an_export_of_another_size_is_not_the_same_store() {
    let door = Door::new();
    let (store, peer) = door.reader(OFFER, patient()).await;
    drop(peer);
    let serve = door.accept(Offer { size: 2 * SIZE, ..OFFER });
    let (read, _) = tokio::join!(in_time("an end of the read", store.read_at(0, 4096)), serve);
    let told = matches!(&read, Err(StoreError::Protocol(what)) if what.contains("from 1048576 to 2097152"));
    assert!(told, "{read:?}");
}

#[tokio::test]
async fn a_server_that_stays_away_is_unreachable_in_time_and_then_at_once() {
    let door = Door::new();
    let options = hasty();
    let (store, peer) = door.reader(OFFER, options).await;
    drop((peer, door));
    let started = Instant::now();
    let read = in_time("an end of the read", store.read_at(0, 4096)).await;
    assert!(matches!(read, Err(StoreError::Unreachable(_))), "{read:?}");
    assert!(started.elapsed() >= options.outage_max / 2, "it was waited for");
    let again = in_time("an end of the read", store.read_at(0, 4096)).await;
    assert!(matches!(again, Err(StoreError::Unreachable(_))), "{again:?}");
}

#[tokio::test]
async fn a_dropped_store_says_goodbye() {
    let door = Door::new();
    let (store, mut peer) = door.reader(OFFER, patient()).await;
    drop(store);
    peer.request(Command::DISC).await;
    peer.closed().await;
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable() {
    let door = Door::new();
    let target = door.target();
    drop(door);
    let opened = NbdStore::open(target, Access::ReadOnly, hasty()).await;
    assert!(matches!(opened.err(), Some(StoreError::Unreachable(_))));
}

/// A store on `nbdkit file`.
async fn on_nbdkit(directory: &std::path::Path) -> Option<(NbdStore, Server)> {
    let disk = sparse_file(directory, 16 << 20);
    let server = Server::nbdkit(directory, &["file", &disk.to_string_lossy()])?;
    let Ok(StoreUri::Nbd(target)) = server.uri.parse() else { panic!("{} is an NBD URI", server.uri) };
    let store =
        NbdStore::open(target, Access::ReadWrite, NbdOptions::default()).await.expect("nbdkit serves");
    Some((store, server))
}

#[tokio::test]
async fn nbdkit_killed_and_started_again_serves_on_when_everything_was_synced() {
    let directory = tempfile::tempdir().unwrap();
    let Some((store, mut server)) = on_nbdkit(directory.path()).await else { return };
    for round in 1..=3 {
        store.write_at(0, block(round), Persist::Volatile).await.unwrap();
        store.sync().await.unwrap();
        server.restart();
        assert_eq!(store.read_at(0, 4096).await.unwrap(), [round; 4096]);
        store.sync().await.unwrap();
    }
}

#[tokio::test]
async fn nbdkit_killed_over_an_unsynced_write_fails_the_sync_until_it_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let Some((store, mut server)) = on_nbdkit(directory.path()).await else { return };
    store.write_at(0, block(1), Persist::Volatile).await.unwrap();
    server.restart();
    store.read_at(0, 4096).await.unwrap();
    assert_sync_failed(&store.sync().await);
    assert_sync_failed(&store.sync().await);
    let Ok(StoreUri::Nbd(target)) = server.uri.parse() else { panic!("{} is an NBD URI", server.uri) };
    let reopened = NbdStore::open(target, Access::ReadWrite, NbdOptions::default()).await.unwrap();
    reopened.sync().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_under_way_survive_the_death_of_nbdkit() {
    let directory = tempfile::tempdir().unwrap();
    let Some((store, mut server)) = on_nbdkit(directory.path()).await else { return };
    for at in 0..64_u8 {
        store.write_at(u64::from(at) * 4096, block(at), Persist::Volatile).await.unwrap();
    }
    store.sync().await.unwrap();
    let (store, stop) = (Arc::new(store), Arc::new(AtomicBool::new(false)));
    let (reader, stopped) = (Arc::clone(&store), Arc::clone(&stop));
    let reads = tokio::spawn(async move {
        let mut count = 0_u64;
        while !stopped.load(Ordering::Relaxed) {
            let at = u8::try_from(count % 64).unwrap();
            assert_eq!(reader.read_at(u64::from(at) * 4096, 4096).await.unwrap(), [at; 4096]);
            count += 1;
        }
        count
    });
    for _ in 0..4 {
        // Blocks this thread; the reads run on others.
        server.restart();
        store.read_at(0, 4096).await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    assert!(reads.await.unwrap() > 0);
    assert!(store.last_loss().is_some(), "connections were lost under the reads");
}
