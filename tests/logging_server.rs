//! The logging store of the power-cut test keeps its word: what a flush covers, what FUA covers, and which images a
//! cut may leave. A mistake here would let a real loss pass, or accuse an innocent.

mod common;

use std::os::unix::fs::FileExt;

use common::client::{Client, Command, FUA};
use common::logging_server::{Change, LoggingServer};
use common::pattern::{BLOCK_LEN, Random, filled, stamp_of};

const MIB: u64 = 1 << 20;

fn connect(server: &LoggingServer) -> Client {
    Client::tcp(server.port(), "store").expect("connects")
}

/// The stamp of every block of one image that a cut at `cut` leaves; `None` for blocks nobody wrote.
fn stamps_after_cut(server: &LoggingServer, cut: u64, seed: u64, blocks: u64) -> Vec<Option<u64>> {
    let image = tempfile::tempfile().expect("image file");
    image.set_len(MIB).expect("image file");
    server.log().write_image(cut, &mut Random::new(seed), &image).expect("image file");
    (0..blocks)
        .map(|i| {
            let mut block = [0; BLOCK_LEN];
            let offset = i * BLOCK_LEN as u64;
            image.read_exact_at(&mut block, offset).expect("image file");
            stamp_of(&block, offset)
        })
        .collect()
}

#[test]
fn reads_return_what_was_written_over_any_connection() {
    let server = LoggingServer::start(MIB);
    let (mut one, mut two) = (connect(&server), connect(&server));
    assert_eq!(one.size(), MIB);
    let data = filled(65_024, 4096, 7);
    one.write(65_024, &data, 0).unwrap();
    assert_eq!(two.read(65_024, 4096).unwrap(), data);
    two.write_zeroes(65_536, 512, 0).unwrap();
    assert_eq!(one.read(65_536, 512).unwrap(), vec![0; 512]);
    assert_eq!(one.read(65_024, 512).unwrap(), data[..512]);
    assert!(matches!(one.read(MIB - 1, 2), Err(common::client::Failure::Refused(22))));
    one.disconnect().unwrap();
}

#[test]
fn a_flush_covers_what_was_replied_before_it_came_in() {
    let server = LoggingServer::start(MIB);
    let mut client = connect(&server);
    client.write(0, &filled(0, 512, 1), 0).unwrap();
    client.flush().unwrap();
    client.write(512, &filled(512, 512, 2), 0).unwrap();
    let now = server.moment();
    let log = server.log();
    let events = log.events();
    assert!(log.is_durable(&events[0], now));
    assert!(!log.is_durable(&events[0], events[1].received), "the flush had not been answered yet");
    assert!(!log.is_durable(&events[2], now));
}

#[test]
fn a_flush_does_not_cover_a_write_that_was_still_in_flight() {
    let server = LoggingServer::start(64 * MIB);
    let mut client = connect(&server);
    let data = vec![1; 16 << 20];
    let mut uncovered = 0;
    // Sent back to back, the flush comes in while the large write is being worked on, at least now and then.
    for _ in 0..64 {
        client.send(Command::Write, 0, 0, 16 << 20, &data).unwrap();
        client.send(Command::Flush, 0, 0, 0, &[]).unwrap();
        client.receive().unwrap();
        client.receive().unwrap();
        let now = server.moment();
        let mut log = server.log();
        let events = log.events();
        let write = events.iter().find(|event| event.change != Change::Flush).unwrap();
        let flush = events.iter().find(|event| event.change == Change::Flush).unwrap();
        assert_eq!(log.is_durable(write, now), write.replied < Some(flush.received));
        uncovered += u32::from(!log.is_durable(write, now));
        log.forget_events();
    }
    assert!(uncovered > 0, "no flush overtook its write: the workers do not run side by side");
}

#[test]
fn fua_covers_its_own_write_and_no_other() {
    let server = LoggingServer::start(MIB);
    let mut client = connect(&server);
    client.write(0, &filled(0, 512, 1), 0).unwrap();
    client.write(512, &filled(512, 512, 2), FUA).unwrap();
    let now = server.moment();
    let log = server.log();
    assert!(!log.is_durable(&log.events()[0], now));
    assert!(log.is_durable(&log.events()[1], now));
}

#[test]
fn images_keep_durable_data_and_lose_or_tear_the_rest() {
    let server = LoggingServer::start(MIB);
    let mut client = connect(&server);
    client.write(0, &filled(0, 4096, 1), 0).unwrap();
    client.flush().unwrap();
    client.write(4096, &filled(4096, 4096, 2), 0).unwrap();
    let now = server.moment();
    let (mut kept, mut lost, mut torn) = (0, 0, 0);
    for seed in 0..200 {
        let stamps = stamps_after_cut(&server, now, seed, 16);
        assert_eq!(stamps[..8], [Some(1); 8], "seed {seed}");
        match stamps[8..].iter().filter(|&&stamp| stamp == Some(2)).count() {
            8 => kept += 1,
            0 => lost += 1,
            _ => torn += 1,
        }
    }
    assert!(kept > 20 && lost > 20 && torn > 20, "kept {kept}, lost {lost}, torn {torn}");
}

#[test]
fn images_hold_nothing_from_after_the_cut() {
    let server = LoggingServer::start(MIB);
    let mut client = connect(&server);
    client.write(0, &filled(0, 512, 1), FUA).unwrap();
    let cut = server.moment();
    client.write(0, &filled(0, 512, 2), FUA).unwrap();
    for seed in 0..20 {
        assert_eq!(stamps_after_cut(&server, cut, seed, 1), [Some(1)]);
    }
    assert_eq!(stamps_after_cut(&server, server.moment(), 0, 1), [Some(2)]);
}
