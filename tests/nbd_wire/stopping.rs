//! Coming to an end: the client's, the server's, and that of things in between.

use std::time::{Duration, Instant};

use sealbd::server::Limits;
use sealbd::wire::Errno;
use sealbd::wire::option::{OptionKind, OptionReplyKind};
use sealbd::wire::transmission::{Command, CommandFlags};

use crate::nbd_client::{PATIENCE, RawClient, STYLES, Style, TestServer, assemble, info_query};
use crate::programs::wait_for;
use crate::{GATED_FROM, Staged, pattern, staged};

const NONE: CommandFlags = CommandFlags::NONE;

#[test]
fn writes_before_a_disconnect_are_finished_and_answered_and_then_the_server_closes() {
    for style in STYLES {
        let (server, export) = staged();
        let mut client = server.session("disk", style);
        let cookies: Vec<u64> =
            (0..8).map(|n| client.send_write(NONE, GATED_FROM + n * 4096, &pattern(4096, 3))).collect();
        let read = client.request(NONE, Command::READ, 0, 512);
        client.disconnect();
        export.wait_until_waiting(8);
        assert_eq!(client.answer(512).cookie, read, "it waits for nothing");
        export.open();
        let mut answered: Vec<u64> = (0..8)
            .map(|_| {
                let answer = client.answer(0);
                assert_eq!(answer.error, Errno::OK);
                answer.cookie
            })
            .collect();
        answered.sort_unstable();
        assert_eq!(answered, cookies);
        client.assert_closed();
        assert_eq!(export.writes_done(), 8);
    }
}

#[test]
fn requests_behind_a_disconnect_are_not_served() {
    let (server, export) = staged();
    let mut client = server.session("disk", Style::Simple);
    client.disconnect();
    let mut late = Vec::new();
    let request = sealbd::wire::transmission::Request {
        flags: NONE,
        command: Command::WRITE,
        cookie: 1,
        offset: 0,
        len: 1,
    };
    request.encode(client.style.headers(), &mut late);
    late.push(7);
    // The server may have closed by now.
    let _ = std::io::Write::write_all(&mut client.stream, &late);
    client.assert_closed();
    assert_eq!(export.writes_done(), 0);
}

#[test]
fn a_client_that_only_ends_its_sending_still_gets_its_replies() {
    let (server, export) = staged();
    let mut client = server.session("disk", Style::Structured);
    let cookie = client.request(NONE, Command::READ, GATED_FROM, 4096);
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    export.wait_until_waiting(1);
    export.open();
    assert_eq!(client.answer(0).cookie, cookie);
    client.assert_closed();
}

#[test]
fn a_write_under_way_is_finished_when_its_client_vanishes() {
    let (mut server, export) = staged();
    let mut client = server.session("disk", Style::Simple);
    // One inline and one in a task of its own.
    client.send_write(NONE, GATED_FROM, &pattern(4096, 1));
    client.send_write(NONE, GATED_FROM + 4096, &pattern(300 << 10, 1));
    client.request(NONE, Command::READ, GATED_FROM, 4096);
    export.wait_until_waiting(3);
    drop(client);
    export.open();
    server.join();
    assert_eq!(export.writes_done(), 2);
}

#[test]
fn a_client_that_vanishes_inside_a_payload_or_header_leaves_no_trace() {
    for style in STYLES {
        let (mut server, export) = staged();
        for cut in [1, 20, 40, 4096, 40_000, 99_999] {
            let mut client = server.session("disk", style);
            let mut bytes = Vec::new();
            let request = sealbd::wire::transmission::Request {
                flags: if style == Style::Extended { CommandFlags::PAYLOAD_LEN } else { NONE },
                command: Command::WRITE,
                cookie: 1,
                offset: 0,
                len: 100_000,
            };
            request.encode(style.headers(), &mut bytes);
            bytes.extend(pattern(100_000, 9));
            client.send(&bytes[..cut]);
        }
        let mut other = server.session("disk", style);
        assert_eq!(other.read(0, 100_000), Ok(vec![0; 100_000]));
        drop(other);
        server.join();
        assert_eq!(export.writes_done(), 0);
    }
}

#[test]
fn a_client_that_vanishes_with_reads_under_way_harms_nobody() {
    let (server, export) = staged();
    let mut client = server.session("disk", Style::Structured);
    for _ in 0..64 {
        client.request(NONE, Command::READ, GATED_FROM, 4096);
    }
    export.wait_until_waiting(64);
    drop(client);
    export.open();
    assert_eq!(server.session("disk", Style::Simple).read(0, 8), Ok(vec![0; 8]));
}

#[test]
fn all_of_64_reads_in_flight_are_answered_when_the_server_is_stopped() {
    let (mut server, export) = staged();
    let mut client = server.session("disk", Style::Structured);
    let cookies: Vec<u64> =
        (0..64).map(|n| client.request(NONE, Command::READ, GATED_FROM + n * 4096, 4096)).collect();
    export.wait_until_waiting(64);
    server.begin_stop();
    export.open();
    let mut answered: Vec<u64> = (0..64)
        .map(|_| {
            let answer = client.answer(0);
            let offset = GATED_FROM + (answer.cookie - cookies[0]) * 4096;
            assert_eq!(assemble(&answer, offset, 4096), Ok(vec![0; 4096]));
            answer.cookie
        })
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, cookies);
    client.assert_closed();
    server.join();
}

#[test]
fn requests_that_come_while_the_server_stops_are_told_so() {
    for style in STYLES {
        let (mut server, export) = staged();
        let mut client = server.session("disk", style);
        client.request(NONE, Command::READ, GATED_FROM, 8);
        export.wait_until_waiting(1);
        server.begin_stop();
        // What was sent before the server noticed may still be served; soon nothing is.
        let deadline = Instant::now() + PATIENCE;
        while client.errno(NONE, Command::TRIM, 0, 4096) != Errno::ESHUTDOWN {
            assert!(Instant::now() < deadline, "the server goes on serving");
        }
        assert_eq!(client.write(0, &pattern(5000, 1)), Errno::ESHUTDOWN);
        assert_eq!(client.write(0, &pattern(50_000, 1)), Errno::ESHUTDOWN, "its payload was consumed");
        export.open();
        assert_eq!(client.answer(8).error, Errno::OK);
        client.assert_closed();
        server.join();
        assert_eq!(export.writes_done(), 0);
    }
}

#[test]
fn an_idle_client_does_not_keep_the_server_from_stopping() {
    let (mut server, _) = staged();
    let path = server.path();
    let mut idle = server.session("disk", Style::Simple);
    let mut half_open = RawClient::connect(&path);
    half_open.hello();
    let begun = Instant::now();
    server.join();
    assert!(begun.elapsed() < Duration::from_secs(5), "took {:?}", begun.elapsed());
    idle.assert_closed();
    half_open.assert_closed();
    assert!(!path.exists(), "the socket is removed");
}

#[test]
fn options_are_answered_with_err_shutdown_while_the_server_stops() {
    let (mut server, _) = staged();
    let mut client = server.client();
    let mut by_name = server.client();
    let mut aborting = server.client();
    server.begin_stop();
    // The socket goes when stopping has begun. Asking until then may be a flood of options, which is cut off.
    wait_for("the socket to go", PATIENCE, || (!server.path().exists()).then_some(()));
    assert_eq!(client.verdict(OptionKind::INFO, &info_query("disk", &[])), OptionReplyKind::ERR_SHUTDOWN);
    assert_eq!(aborting.verdict(OptionKind::ABORT, &[]), OptionReplyKind::ACK);
    by_name.option(OptionKind::EXPORT_NAME, b"disk");
    by_name.assert_closed();
    server.join();
}

#[test]
fn a_request_that_never_ends_is_cut_at_the_drain_deadline() {
    let export = Staged::new();
    let limits = Limits { drain_deadline: Duration::from_millis(300), ..Limits::default() };
    let mut server = TestServer::start(vec![("disk", export.clone())], limits);
    let mut client = server.session("disk", Style::Simple);
    client.request(NONE, Command::READ, GATED_FROM, 8);
    export.wait_until_waiting(1);
    server.join();
    client.assert_closed();
}
