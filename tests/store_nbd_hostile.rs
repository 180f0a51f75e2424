//! The NBD store against a server that means it badly (USERS.md §3.2 "hostile server"): whatever the
//! server sends, the connection is dropped, the reason is kept and the request fails; nothing panics,
//! hangs for ever or is taken for data.

#[path = "common/scripted_nbd.rs"]
mod scripted_nbd;

use std::time::Duration;

use sealbd::store::nbd::NbdOptions;
use sealbd::store::{SlotStore, StoreError};
use sealbd::wire::option::{BlockSizes, Info, OptionKind, OptionReplyKind};
use sealbd::wire::transmission::{ChunkFlags, ChunkKind, Command, Request};
use sealbd::wire::{Errno, TransmissionFlags};

use scripted_nbd::{Door, OFFER, Offer, Peer, SIZE, chunk, data_chunk, hasty, in_time, lying_chunk};

const DONE: ChunkFlags = ChunkFlags::DONE;
const MORE: ChunkFlags = ChunkFlags::NONE;

/// Reads 8192 bytes at 4096 from a server that answers with `reply`; the connection must end.
async fn read_answered_with(offer: Offer, reply: impl FnOnce(Request) -> Vec<u8>) -> StoreError {
    let door = Door::new();
    let (store, mut peer) = door.reader(offer, hasty()).await;
    let serve = async {
        let (request, _) = peer.request(Command::READ).await;
        peer.send(&reply(request)).await;
        peer.closed().await;
    };
    let (read, ()) = tokio::join!(in_time("an end of the read", store.read_at(4096, 8192)), serve);
    assert!(store.last_loss().is_some(), "the reason is kept");
    read.expect_err("an answer that is none")
}

#[track_caller]
fn assert_breach(error: &StoreError, what: &str) {
    assert!(
        matches!(error, StoreError::Protocol(said) if said.contains(what)),
        "{error:?}, expected: {what}"
    );
}

#[tokio::test]
async fn an_honest_answer_in_chunks_and_holes_is_taken() {
    let door = Door::new();
    let (store, mut peer) = door.reader(OFFER, hasty()).await;
    let serve = async {
        let (request, _) = peer.request(Command::READ).await;
        peer.send(&data_chunk(request.cookie, MORE, 8192, &[2; 4096])).await;
        peer.send(&chunk(request.cookie, MORE, ChunkKind::OFFSET_HOLE, &hole(4096, 4096))).await;
        peer.send(&chunk(request.cookie, DONE, ChunkKind::NONE, &[])).await;
    };
    let (read, ()) = tokio::join!(store.read_at(4096, 8192), serve);
    assert_eq!(read.unwrap(), [[0; 4096], [2; 4096]].concat());
}

#[tokio::test]
async fn a_reply_to_nothing_is_a_breach() {
    let error = read_answered_with(OFFER, |ask| data_chunk(ask.cookie + 1, DONE, 4096, &[0; 8192])).await;
    assert_breach(&error, "reply to nothing");
}

#[tokio::test]
async fn a_second_reply_to_one_request_is_a_breach() {
    let door = Door::new();
    let (store, mut peer) = door.reader(OFFER, hasty()).await;
    let serve = async {
        let (request, _) = peer.request(Command::READ).await;
        peer.answer_read(request, 1).await;
        peer.answer_read(request, 2).await;
        peer.closed().await;
    };
    let (read, ()) = tokio::join!(store.read_at(4096, 4096), serve);
    assert_eq!(read.unwrap(), [1; 4096]);
    assert!(store.last_loss().unwrap().contains("reply to nothing"));
}

#[tokio::test]
async fn a_reply_with_a_wrong_magic_is_a_breach() {
    assert_breach(&read_answered_with(OFFER, |_| vec![0x41; 64]).await, "magic");
}

#[tokio::test]
async fn replies_of_a_kind_not_agreed_on_are_a_breach() {
    let simple = Offer { structured: false, ..OFFER };
    let error = read_answered_with(simple, |ask| data_chunk(ask.cookie, DONE, 4096, &[0; 8192])).await;
    assert_breach(&error, "not agreed on");
    let error = read_answered_with(OFFER, |ask| {
        let mut bytes = vec![0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0];
        bytes.extend_from_slice(&ask.cookie.to_be_bytes());
        bytes
    })
    .await;
    assert_breach(&error, "simple reply to a read");
}

#[tokio::test]
async fn data_outside_of_what_was_asked_is_a_breach() {
    for (offset, len) in [(0, 8192), (4095, 2), (8192, 8192), (u64::MAX, 2), (12288, 1)] {
        let error =
            read_answered_with(OFFER, |ask| data_chunk(ask.cookie, DONE, offset, &vec![0; len])).await;
        assert_breach(&error, "outside of what was asked");
    }
}

#[tokio::test]
async fn a_huge_length_is_a_breach_and_costs_no_memory() {
    for kind in [ChunkKind::OFFSET_DATA, ChunkKind::ERROR, ChunkKind::OFFSET_HOLE, ChunkKind::NONE] {
        let payload = 4096_u64.to_be_bytes();
        let error = read_answered_with(OFFER, |ask| {
            lying_chunk(ask.cookie, DONE, kind, u64::from(u32::MAX), &payload)
        })
        .await;
        assert!(matches!(error, StoreError::Protocol(_)), "{kind:?}: {error:?}");
    }
}

#[tokio::test]
async fn a_hole_of_any_other_place_or_size_is_a_breach() {
    for (offset, len) in [(0, 4096), (4096, u32::MAX), (u64::MAX - 1, 1)] {
        let payload = hole(offset, len);
        let error =
            read_answered_with(OFFER, |ask| chunk(ask.cookie, DONE, ChunkKind::OFFSET_HOLE, &payload)).await;
        assert_breach(&error, "outside of what was asked");
    }
    let nothing = hole(4096, 0);
    let error =
        read_answered_with(OFFER, |ask| chunk(ask.cookie, DONE, ChunkKind::OFFSET_HOLE, &nothing)).await;
    assert_breach(&error, "without content");
}

#[tokio::test]
async fn chunks_over_each_other_are_a_breach() {
    let error = read_answered_with(OFFER, |ask| {
        let first = data_chunk(ask.cookie, MORE, 4096, &[1; 8192]);
        [first, data_chunk(ask.cookie, DONE, 8192, &[2; 512])].concat()
    })
    .await;
    assert_breach(&error, "had come before");
}

#[tokio::test]
async fn a_read_answered_in_part_is_a_breach_and_not_filled_with_zeros() {
    let error = read_answered_with(OFFER, |ask| data_chunk(ask.cookie, DONE, 4096, &[1; 8191])).await;
    assert_breach(&error, "only in part");
    let error = read_answered_with(OFFER, |ask| chunk(ask.cookie, DONE, ChunkKind::NONE, &[])).await;
    assert_breach(&error, "only in part");
}

#[tokio::test]
async fn a_chunk_cut_off_by_the_end_of_the_connection_is_a_loss() {
    let door = Door::new();
    let (store, mut peer) = door.reader(OFFER, hasty()).await;
    let serve = async {
        let (request, _) = peer.request(Command::READ).await;
        let whole = data_chunk(request.cookie, DONE, 4096, &[1; 8192]);
        peer.send(&whole[..whole.len() - 1]).await;
        drop(peer);
    };
    let (read, ()) = tokio::join!(in_time("an end of the read", store.read_at(4096, 8192)), serve);
    assert!(matches!(&read, Err(StoreError::Unreachable(why)) if why.contains("closed")), "{read:?}");
}

#[tokio::test]
async fn errors_that_lie_about_their_text_or_place_are_a_breach() {
    let text_longer_than_chunk = [&[0, 0, 0, 5, 0xff, 0xff][..], b"short"].concat();
    let place_outside = [&[0, 0, 0, 5, 0, 0][..], &0_u64.to_be_bytes()].concat();
    let no_error = vec![0; 6];
    let cut = vec![0, 0, 0];
    let too_long = [&[0, 0, 0, 5, 0x20, 0][..], &[b'x'; 8192]].concat();
    for (kind, payload) in [
        (ChunkKind::ERROR, text_longer_than_chunk),
        (ChunkKind::ERROR_OFFSET, place_outside),
        (ChunkKind::ERROR, no_error),
        (ChunkKind::ERROR, cut),
        (ChunkKind::ERROR, too_long),
    ] {
        let error = read_answered_with(OFFER, |ask| chunk(ask.cookie, DONE, kind, &payload)).await;
        assert!(matches!(error, StoreError::Protocol(_)), "{payload:?}: {error:?}");
    }
}

#[tokio::test]
async fn endless_error_chunks_are_a_breach() {
    let error = read_answered_with(OFFER, |ask| {
        chunk(ask.cookie, MORE, ChunkKind::ERROR, &[0, 0, 0, 5, 0, 0]).repeat(100)
    })
    .await;
    assert_breach(&error, "error chunk too many");
}

#[tokio::test]
async fn an_honest_error_is_the_requests_and_leaves_the_connection_up() {
    let door = Door::new();
    let (store, mut peer) = door.reader(OFFER, hasty()).await;
    let serve = async {
        let (request, _) = peer.request(Command::READ).await;
        let payload = [&[0, 0, 0, 5, 0, 7][..], b"bad\x1b[mo"].concat();
        peer.send(&chunk(request.cookie, DONE, ChunkKind::ERROR, &payload)).await;
        let (request, _) = peer.request(Command::READ).await;
        peer.answer_read(request, 3).await;
    };
    let reads = async { (store.read_at(0, 4096).await, store.read_at(0, 4096).await) };
    let ((failed, read), ()) = tokio::join!(reads, serve);
    let said = match failed {
        Err(StoreError::Io { source, .. }) => source.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(said.contains("bad[mo"), "{said}");
    assert_eq!(read.unwrap(), [3; 4096]);
    assert_eq!(store.last_loss(), None);
}

#[tokio::test]
async fn a_negative_size_is_a_breach() {
    for size in [1 << 63, u64::MAX] {
        let error = Door::new()
            .open_against(hasty(), async |mut peer: Peer| peer.shake_hands(Offer { size, ..OFFER }).await)
            .await;
        assert_breach(&error, "negative");
    }
}

#[tokio::test]
async fn block_sizes_that_make_no_sense_are_a_breach() {
    let error = Door::new()
        .open_against(hasty(), async |mut peer: Peer| {
            peer.up_to_go().await;
            peer.info(Info::BlockSize(BlockSizes { minimum: 0, preferred: 0, maximum: 0 })).await;
        })
        .await;
    assert_breach(&error, "block sizes");
}

#[tokio::test]
async fn a_huge_option_reply_is_a_breach() {
    let error = Door::new()
        .open_against(hasty(), async |mut peer: Peer| {
            peer.hello().await;
            let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
            for field in [8, 1, u32::MAX] {
                bytes.extend_from_slice(&field.to_be_bytes());
            }
            peer.send(&bytes).await;
        })
        .await;
    assert_breach(&error, "bytes to an option");
}

#[tokio::test]
async fn replies_to_another_option_or_of_another_kind_are_a_breach() {
    let error = Door::new()
        .open_against(hasty(), async |mut peer: Peer| {
            peer.hello().await;
            peer.option_reply(OptionKind::LIST, OptionReplyKind::ACK, &[]).await;
        })
        .await;
    assert_breach(&error, "a reply to option 3, asked was 8");
    let error = Door::new()
        .open_against(hasty(), async |mut peer: Peer| {
            peer.up_to_go().await;
            peer.option_reply(OptionKind::GO, OptionReplyKind::SERVER, &[]).await;
        })
        .await;
    assert_breach(&error, "reply 0x2 to option 7");
}

#[tokio::test]
async fn an_end_without_the_size_is_a_breach() {
    let error = Door::new()
        .open_against(hasty(), async |mut peer: Peer| {
            peer.up_to_go().await;
            peer.option_reply(OptionKind::GO, OptionReplyKind::ACK, &[]).await;
        })
        .await;
    assert_breach(&error, "size of the export");
}

#[tokio::test]
async fn an_endless_handshake_is_a_breach() {
    let error = Door::new()
        .open_against(hasty(), async |mut peer: Peer| {
            peer.up_to_go().await;
            loop {
                peer.info(Info::Description("again")).await;
                tokio::task::yield_now().await;
            }
        })
        .await;
    assert_breach(&error, "more than 64 replies");
}

#[tokio::test]
async fn a_silent_server_is_given_up_at_the_deadline_of_the_handshake() {
    let options = NbdOptions { handshake_max: Duration::from_millis(100), ..hasty() };
    let error =
        Door::new().open_against(options, async |_peer: Peer| std::future::pending::<()>().await).await;
    assert!(matches!(&error, StoreError::Unreachable(why) if why.contains("0.1 seconds")), "{error:?}");
}

#[tokio::test]
async fn a_server_of_something_else_is_a_breach() {
    let error = Door::new()
        .open_against(hasty(), async |mut peer: Peer| peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n").await)
        .await;
    assert_breach(&error, "magic");
}

#[tokio::test]
async fn a_server_that_leaves_requests_unanswered_is_given_up() {
    let door = Door::new();
    let options = NbdOptions { silence_max: Duration::from_millis(100), ..hasty() };
    let (store, mut peer) = door.reader(OFFER, options).await;
    let serve = async {
        peer.request(Command::READ).await;
        peer.closed().await;
    };
    let (read, ()) = tokio::join!(in_time("an end of the read", store.read_at(0, 4096)), serve);
    assert!(matches!(&read, Err(StoreError::Unreachable(why)) if why.contains("unanswered")), "{read:?}");
}

#[tokio::test]
async fn a_server_that_hangs_up_at_every_request_is_given_up() {
    let door = Door::new();
    // Longer than the longest wait between two attempts, so that no attempt comes too late by itself.
    let options = NbdOptions { outage_max: Duration::from_millis(2500), ..hasty() };
    let (store, mut peer) = door.reader(OFFER, options).await;
    let serve = async {
        loop {
            peer.request(Command::READ).await;
            drop(peer);
            peer = door.accept(OFFER).await;
        }
    };
    let read = tokio::select! {
        read = in_time("an end of the read", store.read_at(0, 4096)) => read,
        () = serve => unreachable!("the server does not end"),
    };
    assert!(matches!(read, Err(StoreError::Unreachable(_))), "{read:?}");
}

#[tokio::test]
async fn a_server_that_insists_on_tls_is_refused_with_that_cause() {
    let error = Door::new()
        .open_against(hasty(), async |mut peer: Peer| {
            peer.hello().await;
            peer.option(OptionKind::STRUCTURED_REPLY).await;
            peer.option_reply(OptionKind::STRUCTURED_REPLY, OptionReplyKind::ERR_TLS_REQD, b"no\x07").await;
        })
        .await;
    assert!(
        matches!(&error, StoreError::Open(why) if why.contains("TLS") && why.ends_with("no)")),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_server_without_flush_is_refused_for_writing() {
    let door = Door::new();
    let offer = Offer { flags: TransmissionFlags::HAS_FLAGS, ..OFFER };
    let open = sealbd::store::nbd::NbdStore::open(door.target(), sealbd::store::Access::ReadWrite, hasty());
    let (opened, _peer) = tokio::join!(open, door.accept(offer));
    let error = opened.err().unwrap();
    assert!(matches!(&error, StoreError::Open(why) if why.contains("no FLUSH")), "{error:?}");
}

#[tokio::test]
async fn error_numbers_from_outside_of_the_protocol_are_errors_all_the_same() {
    let door = Door::new();
    let (store, mut peer) = door.reader(Offer { structured: false, ..OFFER }, hasty()).await;
    let serve = async {
        let (request, _) = peer.request(Command::READ).await;
        peer.simple_reply(request.cookie, Errno(0xffff_fffe)).await;
    };
    let (read, ()) = tokio::join!(store.read_at(SIZE - 4096, 4096), serve);
    let failed = matches!(&read, Err(StoreError::Io { source, .. }) if source.raw_os_error() == Some(22));
    assert!(failed, "{read:?}");
}

fn hole(offset: u64, len: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat()
}
