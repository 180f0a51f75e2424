//! Connections that never get as far as a request.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sealbd::wire::option::OptionKind;

use super::*;
use crate::common::served::Listen;
use crate::nbd_client::RawClient;

/// Half-open sockets at a time, where our own limit of descriptors lets us.
const HALF_OPEN: usize = 10_000;
/// What handshakes may cost: a read-ahead of 256 KiB for each of 128 connections, as much again for what an allocator
/// keeps of the thousands that were before, and as much again for the index and cache of the volume, which the
/// well-behaved client fills meanwhile. Ten thousand read-aheads would be 2500 MiB.
const HANDSHAKES_KIB_MAX: u64 = 3 * 128 * 256;
/// What the server may have open beside its connections: volume, listeners, runtime, standard streams.
const OTHER_DESCRIPTORS_MAX: usize = 40;
/// From accept to the end of a silent connection, and some for a busy machine.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10 + 5);
/// Lines that a flood may write to the log: one of each kind every ten seconds.
const LINES_MAX: usize = 30;

/// Any stream.
trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// How many half-open sockets we can have: raises our own limit as far as it goes.
fn as_many_as_possible() -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("up to the hard limit");
    let room = maximum.map_or(usize::MAX, |hard| usize::try_from(hard).unwrap_or(usize::MAX));
    let count = HALF_OPEN.min(room.saturating_sub(200));
    if count < HALF_OPEN {
        report(&format!(
            "the hard limit of {room} descriptors leaves {count} half-open sockets of {HALF_OPEN}"
        ));
    }
    count
}

/// What a half-open client says before it falls silent.
fn beginning(number: usize) -> &'static [u8] {
    match number % 4 {
        0 => b"",
        1 => b"\0\0",
        2 => b"\0\0\0\x03IHAVEOP",
        _ => b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\x10\0half a payload",
    }
}

fn half_open_sockets(listen: Listen, connect: impl Fn(&Served) -> Box<dyn Stream>) {
    let count = as_many_as_possible();
    let mut served = Served::formatted(VOLUME_LEN, listen, None);
    served.start();
    let before = footprint(&served);
    let lines_before = served.log_text().lines().count();
    let mut tries = 0;
    let mut descriptors_max = 0;
    let begun = Instant::now();
    let mut open = Vec::with_capacity(count);
    beside_a_good_client(&served, || {
        for number in 0..count {
            let mut stream = connect(&served);
            // It may have been ended already to make room.
            let _ = stream.write_all(beginning(number));
            if number % 100 == 99 {
                // A word or an end: what waited before it was accepted. With the kernel's queue full, TCP would have
                // us wait a second for each connection.
                let _ = stream.read(&mut [0; 1]);
            }
            open.push(stream);
            if number % 500 == 499 {
                descriptors_max = descriptors_max.max(footprint(&served).descriptors);
                // A newcomer in the midst of the flood.
                let client = std::iter::repeat_with(|| served.try_connect()).inspect(|_| tries += 1).take(20);
                let mut client = client.flatten().next().expect("a newcomer gets in");
                assert_eq!(client.read(200 << 20, 4096).expect("read"), [0; 4096]);
            }
        }
    });
    let flooded = begun.elapsed();
    let after = footprint(&served);
    report(&format!(
        "{listen:?}: {count} half-open sockets in {flooded:?}; {} newcomers got in by {tries} tries; at most \
         {descriptors_max} descriptors; before {before:?}, after {after:?}",
        count / 500
    ));
    assert!(descriptors_max <= CONNECTIONS_MAX + OTHER_DESCRIPTORS_MAX, "{descriptors_max} descriptors");
    let grown = after.peak_kib - before.resident_kib;
    assert!(grown <= HANDSHAKES_KIB_MAX, "{grown} KiB more: before {before:?}, after {after:?}");
    // All of them are still open on our side: a newcomer is not kept out.
    for _ in 0..3 {
        served.connect().disconnect().expect("a clean end");
    }
    drop(open);
    serves_on(&mut served);
    let log = served.log_text();
    assert!(log.contains("unfinished handshakes ended to make room for others: "), "{log}");
    assert!(log.lines().count() - lines_before <= LINES_MAX, "{log}");
}

#[test]
fn ten_thousand_half_open_unix_sockets_keep_nobody_out() {
    half_open_sockets(Listen::Unix, |served| {
        Box::new(UnixStream::connect(served.socket()).expect("it listens"))
    });
}

#[test]
fn ten_thousand_half_open_tcp_sockets_keep_nobody_out() {
    half_open_sockets(Listen::Tcp, |served| {
        Box::new(TcpStream::connect(("127.0.0.1", served.port())).expect("it listens"))
    });
}

/// The server has closed it, and has said nothing.
fn assert_ended(read: std::io::Result<usize>) {
    match read {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("{other:?} to half a handshake"),
    }
}

#[test]
fn a_handshake_of_one_byte_a_second_ends_at_the_deadline() {
    let mut served = Served::unix(VOLUME_LEN);
    let go = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x09\0\0\0\x03vol\0\0";
    let before = footprint(&served);
    beside_a_good_client(&served, || {
        let begun = Instant::now();
        let mut slow: Vec<_> =
            (0..64).map(|_| UnixStream::connect(served.socket()).expect("it listens")).collect();
        slow.iter().for_each(|stream| stream.set_nonblocking(true).expect("our own socket"));
        let mut said = 0;
        // The hello is all that they ever hear.
        slow.retain_mut(|stream| {
            stream.set_nonblocking(false).and_then(|()| stream.read_exact(&mut [0; 18])).is_ok()
        });
        assert_eq!(slow.len(), 64, "there is a place for each");
        // A second of listening for the end of the first is the pace.
        slow[0].set_read_timeout(Some(Duration::from_secs(1))).expect("our own socket");
        loop {
            assert!(begun.elapsed() < HANDSHAKE_MAX, "they are still served");
            let byte = &go[said..=said];
            said += 1;
            for stream in &mut slow {
                let _ = stream.write_all(byte);
            }
            match slow[0].read(&mut [0; 1]) {
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                ended => break assert_ended(ended),
            }
        }
        for stream in &mut slow[1..] {
            let left = HANDSHAKE_MAX.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
            stream.set_read_timeout(Some(left)).expect("our own socket");
            assert_ended(stream.read(&mut [0; 1]));
        }
        assert!(said < go.len(), "nobody came to the end of it");
    });
    let grown = footprint(&served).peak_kib - before.resident_kib;
    assert!(grown <= HANDSHAKES_KIB_MAX, "{grown} KiB more");
    serves_on(&mut served);
    assert!(
        served.log_text().contains("handshakes ended that were not finished within 10s"),
        "{}",
        served.log_text()
    );
}

#[test]
fn floods_of_options_and_oversize_options_end_their_own_connections_only() {
    let mut served = Served::unix(VOLUME_LEN);
    let before = footprint(&served);
    let lines_before = served.log_text().lines().count();
    let greeted = || {
        let mut client = RawClient::connect(&served.socket());
        client.hello();
        client.client_flags(3);
        client
    };
    beside_a_good_client(&served, || {
        // Many, their answers unread: the server stops answering, or hangs up at its limit.
        for round in 0..300u32 {
            let kind = if round.is_multiple_of(2) { OptionKind::LIST } else { OptionKind(0xdead + round) };
            let mut flood = Vec::new();
            for _ in 0..500 {
                sealbd::wire::option::OptionRequest::encode(kind, &[], &mut flood);
            }
            let mut client = greeted();
            let _ = client.stream.write_all(&flood);
            let mut answers = Vec::new();
            // A reset is an end, too: there was more than the server read.
            let _ = client.stream.read_to_end(&mut answers);
            assert!(answers.len() < 16 << 10, "{} bytes of answers", answers.len());
        }
        // Longer than is skipped: an end at once.
        for len in [(32u32 << 20) + 1, u32::MAX] {
            let mut client = greeted();
            client.send(b"IHAVEOPT\0\0\0\x07");
            client.send(&len.to_be_bytes());
            client.assert_closed();
        }
        // As long as is skipped: it costs time, not memory.
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut client = greeted();
                    client.option(OptionKind(77), &vec![7; 32 << 20]);
                    let (reply, _) = client.option_reply();
                    assert!(reply.kind.is_error());
                    client.go("vol", nbd_client::Style::Extended);
                });
            }
        });
    });
    let after = footprint(&served);
    let grown = after.peak_kib - before.resident_kib;
    assert!(grown <= HANDSHAKES_KIB_MAX, "{grown} KiB more: before {before:?}, after {after:?}");
    serves_on(&mut served);
    let log = served.log_text();
    assert!(log.contains("handshakes broken off: "), "{log}");
    assert!(log.lines().count() - lines_before <= LINES_MAX, "{log}");
}
