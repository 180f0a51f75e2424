//! Negotiation: every option, every lie, every early end.

use std::io::{Read, Write};
use std::time::Duration;

use sealbd::server::Limits;
use sealbd::wire::option::{
    BlockSizes, HELLO_LEN, Info, ListedExport, MetaContext, OptionKind, OptionReplyKind,
};
use sealbd::wire::{Errno, TransmissionFlags};

use crate::nbd_client::{PATIENCE, RawClient, Style, TestServer, export_info, info_query, meta_query};
use crate::{SIZE, Staged, two_disks};

const ACK: OptionReplyKind = OptionReplyKind::ACK;
const INVALID: OptionReplyKind = OptionReplyKind::ERR_INVALID;

/// Asserts that the stream is in step: an option is answered as it should be.
fn assert_in_step(client: &mut RawClient) {
    assert_eq!(client.verdict(OptionKind::INFO, &info_query("one", &[])), ACK);
}

#[test]
fn the_hello_offers_fixed_newstyle_without_zeroes_and_nothing_else() {
    let server = two_disks();
    assert_eq!(RawClient::connect(&server.path()).hello().flags.0, 3);
}

#[test]
fn a_client_flag_that_was_not_offered_ends_the_connection() {
    let server = two_disks();
    for flags in [4, 1 << 31, u32::MAX] {
        let mut client = RawClient::connect(&server.path());
        client.hello();
        client.client_flags(flags);
        client.assert_closed();
    }
}

#[test]
fn export_name_is_padded_with_124_zeroes_unless_both_sides_said_otherwise() {
    let server = two_disks();
    for (flags, len) in [(0, 134), (1, 134), (2, 10), (3, 10)] {
        let mut client = RawClient::connect(&server.path());
        client.hello();
        client.client_flags(flags);
        client.option(OptionKind::EXPORT_NAME, b"one");
        let reply = client.receive(len);
        assert_eq!(reply[..8], SIZE.to_be_bytes());
        assert!(reply[10..].iter().all(|byte| *byte == 0));
        assert_eq!(client.read(0, 4), Ok(vec![0; 4]));
    }
}

#[test]
fn export_name_of_an_unknown_or_malformed_name_closes_without_a_word() {
    let server = two_disks();
    for name in [b"three".to_vec(), b"".to_vec(), b"one\0".to_vec(), b"\xff".to_vec(), vec![b'a'; 5000]] {
        let mut client = server.client();
        client.option(OptionKind::EXPORT_NAME, &name);
        client.assert_closed();
    }
}

#[test]
fn a_client_without_fixed_newstyle_gets_export_name_only() {
    let server = two_disks();
    let mut client = RawClient::connect(&server.path());
    client.hello();
    client.client_flags(2);
    client.option(OptionKind::LIST, &[]);
    client.assert_closed();
}

#[test]
fn the_empty_name_is_the_only_export_and_no_export_when_there_are_two() {
    let server = two_disks();
    let unknown = OptionReplyKind::ERR_UNKNOWN;
    assert_eq!(server.client().verdict(OptionKind::INFO, &info_query("", &[])), unknown);
    let server = TestServer::start(vec![("disk", Staged::new())], Limits::default());
    let replies = server.client().ask(OptionKind::INFO, &info_query("", &[1]));
    assert!(replies.iter().any(|(_, payload)| Info::decode(payload) == Ok(Info::Name("disk"))));
}

#[test]
fn abort_is_acknowledged_with_or_without_data_and_then_the_connection_ends() {
    let server = two_disks();
    for data in [&b""[..], b"ignored"] {
        let mut client = server.client();
        assert_eq!(client.verdict(OptionKind::ABORT, data), ACK);
        client.assert_closed();
    }
}

#[test]
fn list_names_and_describes_every_export() {
    let server = two_disks();
    let replies = server.client().ask(OptionKind::LIST, &[]);
    let listed: Vec<_> = replies[..2].iter().map(|(_, payload)| ListedExport::decode(payload)).collect();
    let expected = ["one", "two"].map(|name| Ok(ListedExport { name, description: "memory" }));
    assert_eq!(listed, expected);
    assert_eq!(replies[2].0, ACK);
}

#[test]
fn options_that_take_no_data_refuse_it_and_the_stream_stays_in_step() {
    let server = two_disks();
    let mut client = server.client();
    for option in [OptionKind::LIST, OptionKind::STRUCTURED_REPLY, OptionKind::EXTENDED_HEADERS] {
        for len in [1, 16, 70_000] {
            assert_eq!(client.verdict(option, &vec![0x49; len]), INVALID);
            assert_in_step(&mut client);
        }
    }
}

#[test]
fn starttls_is_refused_by_policy_and_nothing_asks_for_tls() {
    let server = two_disks();
    let mut client = server.client();
    assert_eq!(client.verdict(OptionKind::STARTTLS, &[]), OptionReplyKind::ERR_POLICY);
    assert_eq!(client.verdict(OptionKind::STARTTLS, b"x"), OptionReplyKind::ERR_POLICY);
    assert_in_step(&mut client);
}

#[test]
fn info_and_go_answer_alike_and_ignore_unknown_and_repeated_kinds() {
    let server = two_disks();
    let mut client = server.client();
    let query = info_query("two", &[2, 1, 3, 77, 3, 1]);
    let info = client.ask(OptionKind::INFO, &query);
    let go = client.ask(OptionKind::GO, &query);
    assert_eq!(info, go);
    assert_eq!(export_info(&info).unwrap().0, 2 * SIZE);
    let sizes = Info::BlockSize(BlockSizes { minimum: 1, preferred: 4096, maximum: 1 << 25 });
    for expected in [Info::Name("two"), Info::Description("memory"), sizes] {
        let times = info.iter().filter(|(_, payload)| Info::decode(payload) == Ok(expected)).count();
        assert_eq!(times, 1, "{expected:?}");
    }
    client.style = Style::Simple;
    assert_eq!(client.read(0, 1), Ok(vec![0]), "no padding stands between GO and transmission");
}

#[test]
fn info_of_an_unknown_export_is_err_unknown_without_any_info() {
    let server = two_disks();
    let mut client = server.client();
    for option in [OptionKind::INFO, OptionKind::GO] {
        let replies = client.ask(option, &info_query("three", &[3]));
        assert_eq!(replies.len(), 1);
        assert_eq!(replies[0].0, OptionReplyKind::ERR_UNKNOWN);
    }
    assert_in_step(&mut client);
}

#[test]
fn flags_are_defined_ones_and_follow_what_was_negotiated() {
    let server = two_disks();
    let common = TransmissionFlags(0b1101_0000_1101 & !TransmissionFlags::SEND_FAST_ZERO.0);
    let common = common.with(TransmissionFlags::CAN_MULTI_CONN).with(TransmissionFlags::SEND_CACHE);
    let changes = TransmissionFlags::SEND_TRIM
        .with(TransmissionFlags::SEND_WRITE_ZEROES)
        .with(TransmissionFlags::SEND_FAST_ZERO);
    let df = TransmissionFlags::SEND_DF;
    let expected = [
        (Style::Simple, common.with(changes)),
        (Style::Structured, common.with(changes).with(df)),
        (Style::Extended, common.with(changes).with(df).with(TransmissionFlags::BLOCK_STATUS_PAYLOAD)),
    ];
    for (style, flags) in expected {
        assert_eq!(server.client().go("one", style), (SIZE, flags), "{style:?}");
    }
    let read_only = common.with(TransmissionFlags::READ_ONLY);
    assert_eq!(server.client().go("two", Style::Simple), (2 * SIZE, read_only));
}

#[test]
fn structured_replies_twice_and_after_extended_headers_are_refused() {
    let server = two_disks();
    let mut client = server.client();
    assert_eq!(client.verdict(OptionKind::STRUCTURED_REPLY, &[]), ACK);
    assert_eq!(client.verdict(OptionKind::STRUCTURED_REPLY, &[]), INVALID);
    assert_eq!(client.verdict(OptionKind::EXTENDED_HEADERS, &[]), ACK);
    assert_eq!(client.verdict(OptionKind::EXTENDED_HEADERS, &[]), INVALID);
    let refused = OptionReplyKind::ERR_EXT_HEADER_REQD;
    assert_eq!(client.verdict(OptionKind::STRUCTURED_REPLY, &[]), refused);
    client.option(OptionKind::EXPORT_NAME, b"one");
    client.assert_closed();
}

#[test]
fn listing_contexts_knows_wildcards_and_ignores_unknown_namespaces() {
    let server = two_disks();
    let mut client = server.client();
    let cases: [(&[&str], usize); 6] = [
        (&[], 1),
        (&["base:"], 1),
        (&["base:allocation", "base:"], 1),
        (&["base:nonsense"], 0),
        (&["qemu:allocation-depth", "x-other:"], 0),
        (&["qemu:", "base:allocation"], 1),
    ];
    for (queries, contexts) in cases {
        let replies = client.ask(OptionKind::LIST_META_CONTEXT, &meta_query("one", queries));
        assert_eq!((replies.len() - 1, replies.last().unwrap().0), (contexts, ACK), "{queries:?}");
    }
    let replies = client.ask(OptionKind::LIST_META_CONTEXT, &meta_query("one", &["allocation"]));
    assert_eq!(replies[0].0, INVALID);
}

#[test]
fn a_context_selected_twice_is_answered_once_so_that_ids_are_unique() {
    let server = two_disks();
    let mut client = server.client();
    client.verdict(OptionKind::STRUCTURED_REPLY, &[]);
    let query = meta_query("one", &["base:allocation", "base:allocation", "base:", "x-a:b"]);
    let replies = client.ask(OptionKind::SET_META_CONTEXT, &query);
    assert_eq!(replies.len(), 2);
    let context = MetaContext::decode(&replies[0].1).unwrap();
    assert_eq!(context.name, "base:allocation");
}

/// Whether block status works after the given selections.
fn block_status_after(selections: &[(OptionReplyKind, Vec<u8>)]) -> bool {
    let server = two_disks();
    let mut client = server.client();
    client.verdict(OptionKind::STRUCTURED_REPLY, &[]);
    for (expected, query) in selections {
        assert_eq!(client.verdict(OptionKind::SET_META_CONTEXT, query), *expected);
    }
    client.verdict(OptionKind::GO, &info_query("one", &[]));
    client.style = Style::Structured;
    let none = sealbd::wire::transmission::CommandFlags::NONE;
    let command = sealbd::wire::transmission::Command::BLOCK_STATUS;
    client.errno(none, command, 0, 4096) == Errno::OK
}

#[test]
fn selected_contexts_are_replaced_cleared_and_lost_on_failure() {
    let good = || (ACK, meta_query("one", &["base:allocation"]));
    assert!(block_status_after(&[good()]));
    assert!(!block_status_after(&[]));
    for second in [
        (ACK, meta_query("one", &[])),
        (ACK, meta_query("one", &["base:"])),
        (ACK, meta_query("one", &["x-other:y"])),
        (INVALID, b"\0\0\0\x09one".to_vec()),
        (INVALID, meta_query("one", &["colonless"])),
        (OptionReplyKind::ERR_UNKNOWN, meta_query("three", &["base:allocation"])),
        (OptionReplyKind::ERR_TOO_BIG, vec![0; 70_000]),
        (ACK, meta_query("two", &["base:allocation"])),
    ] {
        assert!(!block_status_after(&[good(), second.clone()]), "{second:?}");
    }
}

#[test]
fn contexts_cannot_be_selected_before_structured_replies() {
    let server = two_disks();
    let mut client = server.client();
    let query = meta_query("one", &["base:allocation"]);
    assert_eq!(client.verdict(OptionKind::SET_META_CONTEXT, &query), INVALID);
    assert_in_step(&mut client);
}

#[test]
fn lies_about_lengths_inside_an_option_are_invalid_and_nothing_is_overread() {
    let server = two_disks();
    let mut client = server.client();
    client.verdict(OptionKind::STRUCTURED_REPLY, &[]);
    let go = info_query("one", &[3]);
    let meta = meta_query("one", &["base:allocation"]);
    let options = [
        (OptionKind::INFO, &go),
        (OptionKind::GO, &go),
        (OptionKind::SET_META_CONTEXT, &meta),
        (OptionKind::LIST_META_CONTEXT, &meta),
    ];
    for (option, good) in options {
        // Cut anywhere, with a byte too many, and with the largest counts.
        let mut lies: Vec<Vec<u8>> =
            [0, 3, 4, 6, 7, 8, good.len() - 1].map(|at| good[..at].to_vec()).to_vec();
        lies.push([good, &b"x"[..]].concat());
        lies.push([&[0xff; 4], &good[4..]].concat());
        lies.push([&good[..7], &[0xff; 4]].concat());
        lies.push([&4097u32.to_be_bytes()[..], &[b'a'; 4097], &good[7..]].concat());
        for lie in lies {
            assert_eq!(client.verdict(option, &lie), INVALID, "{option:?} {lie:?}");
        }
        assert_in_step(&mut client);
        // Each lie costs an option; begin afresh before the bound is reached.
        client = server.client();
        client.verdict(OptionKind::STRUCTURED_REPLY, &[]);
    }
}

#[test]
fn an_unknown_option_is_unsupported_and_its_payload_skipped() {
    let server = two_disks();
    let mut client = server.client();
    for (option, len) in [(4, 0), (12, 5), (0, 70_000), (u32::MAX, 4 << 20)] {
        assert_eq!(client.verdict(OptionKind(option), &vec![0xee; len]), OptionReplyKind::ERR_UNSUP);
    }
    assert_in_step(&mut client);
}

#[test]
fn an_option_of_four_gibibytes_ends_the_connection_at_once() {
    let server = two_disks();
    let mut client = server.client();
    client.send(b"IHAVEOPT\0\0\0\x63\xff\xff\xff\xff");
    client.assert_closed();
}

#[test]
fn a_wrong_option_magic_ends_the_connection() {
    let server = two_disks();
    let mut client = server.client();
    client.send(b"IHAVEOPS\0\0\0\x03\0\0\0\0");
    client.assert_closed();
}

#[test]
fn the_number_of_options_is_bounded() {
    let server = two_disks();
    let mut client = server.client();
    let mut answered = 0;
    let mut option = Vec::new();
    sealbd::wire::option::OptionRequest::encode(OptionKind(99), &[], &mut option);
    while client.stream.write_all(&option).is_ok() {
        let mut reply = [0; 20];
        if client.stream.read_exact(&mut reply).is_err() {
            break;
        }
        let text_len = u32::from_be_bytes(reply[16..].try_into().unwrap());
        client.receive(text_len as usize);
        answered += 1;
        assert!(answered < 1000, "the server never has enough");
    }
    assert_eq!(answered, 64 + 2 * 8);
}

#[test]
fn half_open_connections_end_at_the_deadline() {
    let limits = Limits { handshake_deadline: Duration::from_millis(300), ..Limits::default() };
    let server = TestServer::start(vec![("one", Staged::new())], limits);
    let mut silent = RawClient::connect(&server.path());
    silent.hello();
    let mut slow = server.client();
    slow.send(b"IHAVE");
    silent.assert_closed();
    slow.assert_closed();
    assert_in_step(&mut server.client());
}

#[test]
fn the_oldest_half_open_connection_makes_room_when_all_are_in_use() {
    let limits =
        Limits { connections_max: 2, handshake_deadline: Duration::from_secs(600), ..Limits::default() };
    let server = TestServer::start(vec![("one", Staged::new())], limits);
    let mut silent = RawClient::connect(&server.path());
    silent.hello();
    let mut slow = server.client();
    slow.send(b"IHAVE");
    let mut third = server.session("one", Style::Simple);
    silent.assert_closed();
    let mut fourth = server.session("one", Style::Simple);
    slow.assert_closed();
    // Both are in transmission, as an answer shows: they stay, and nobody else comes in.
    for _ in 0..2 {
        for client in [&mut third, &mut fourth] {
            assert_eq!(client.write(0, &[1; 4096]), Errno::OK);
        }
        RawClient::connect(&server.path()).assert_closed();
    }
    third.disconnect();
    third.assert_closed();
    assert_in_step(&mut fifth_after(&server));
}

/// A client as soon as there is a place: the server knows of an end only when both sides have closed.
fn fifth_after(server: &TestServer) -> RawClient {
    let begun = std::time::Instant::now();
    loop {
        let mut client = RawClient::connect(&server.path());
        if client.stream.read_exact(&mut [0; HELLO_LEN]).is_ok() {
            client.client_flags(3);
            return client;
        }
        assert!(begun.elapsed() < PATIENCE, "the place stays taken");
    }
}

#[test]
fn a_connection_in_transmission_knows_no_deadline() {
    let limits = Limits { handshake_deadline: Duration::from_millis(100), ..Limits::default() };
    let server = TestServer::start(vec![("one", Staged::new())], limits);
    let mut idle = server.session("one", Style::Simple);
    let mut clock = RawClient::connect(&server.path());
    clock.hello();
    clock.assert_closed();
    assert_eq!(idle.read(0, 1), Ok(vec![0]), "it has outlived a handshake that began later");
}

#[test]
fn a_client_that_vanishes_at_any_byte_of_its_handshake_harms_nobody() {
    let server = two_disks();
    let mut script = 3u32.to_be_bytes().to_vec();
    for (option, payload) in [
        (OptionKind::STRUCTURED_REPLY, vec![]),
        (OptionKind::LIST, vec![]),
        (OptionKind::SET_META_CONTEXT, meta_query("one", &["base:allocation"])),
        (OptionKind::INFO, info_query("one", &[3])),
        (OptionKind::EXPORT_NAME, b"one".to_vec()),
    ] {
        sealbd::wire::option::OptionRequest::encode(option, &payload, &mut script);
    }
    for end in 0..=script.len() {
        let mut client = RawClient::connect(&server.path());
        client.send(&script[..end]);
    }
    // Some may still be counted: the cap is 128, the vanished ones leave as they are noticed.
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let mut client = RawClient::connect(&server.path());
        let mut hello = [0; 18];
        if client.stream.read_exact(&mut hello).is_ok() {
            client.client_flags(3);
            assert_in_step(&mut client);
            return;
        }
        assert!(std::time::Instant::now() < deadline, "vanished clients are never let go");
    }
}
