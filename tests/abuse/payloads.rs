//! Clients that leave in the midst of a request or a reply, or never finish one.

use std::io::{Read, Write};

use sealbd::wire::Errno;
use sealbd::wire::transmission::{Command, CommandFlags};

use super::*;
use crate::common::pattern::Random;
use crate::nbd_client::{RawClient, STYLES, Style};

/// Where nothing is written completely.
const VICTIM: u64 = 64 << 20;
const VICTIM_LEN: usize = 4 << 20;
/// Longest payload of a request.
const PAYLOAD_LEN_MAX: usize = 32 << 20;

fn session(served: &Served, style: Style) -> RawClient {
    let mut client = RawClient::connect(&served.socket());
    client.hello();
    client.client_flags(3);
    client.go("vol", style);
    client
}

/// Says part of something and leaves.
fn leave_in_the_middle(served: &Served, random: &mut Random) {
    let style = STYLES[usize::try_from(random.below(3)).unwrap()];
    let mut client = session(served, style);
    let at = VICTIM + random.below(VICTIM_LEN as u64 / 2);
    let len = 1 + random.below(1 << 20);
    let payload = CommandFlags::PAYLOAD_LEN;
    match random.below(6) {
        0 | 1 => {
            let flags = if style == Style::Extended { payload } else { CommandFlags::NONE };
            client.request(flags, Command::WRITE, at, len);
            client.send(&vec![0xee; usize::try_from(random.below(len)).unwrap()]);
        }
        2 => {
            for _ in 0..4 {
                client.request(CommandFlags::NONE, Command::READ, at, 1 << 20);
            }
            let some = usize::try_from(random.below(1 << 20)).unwrap();
            let _ = client.stream.read(&mut vec![0; some]);
        }
        3 => {
            // Half a header of each of the others.
            let command = [Command::TRIM, Command::WRITE_ZEROES, Command::FLUSH, Command::CACHE]
                [usize::try_from(random.below(4)).unwrap()];
            let mut bytes = Vec::new();
            let request = sealbd::wire::transmission::Request {
                flags: CommandFlags::NONE,
                command,
                cookie: 1,
                offset: at,
                len: 4096,
            };
            request.encode(style.headers(), &mut bytes);
            client.send(&bytes[..1 + usize::try_from(random.below(bytes.len() as u64 - 1)).unwrap()]);
        }
        4 => {
            client.request(payload, Command::BLOCK_STATUS, at, 4096);
            client.send(&[0; 3]);
        }
        _ => {
            // Answers are not waited for; what was asked completely may happen.
            client.request(CommandFlags::NONE, Command::FLUSH, 0, 0);
            client.request(CommandFlags::NONE, Command::BLOCK_STATUS, at, 1 << 20);
            client.request(CommandFlags::NONE, Command::READ, at, 4096);
        }
    }
}

#[test]
fn clients_that_leave_inside_payloads_leave_no_trace() {
    let seed = Random::fresh_seed();
    report(&format!("SEALBD_TEST_SEED={seed}"));
    let mut served = Served::unix(VOLUME_LEN);
    let mut keeper = session(&served, Style::Extended);
    assert_eq!(keeper.write(VICTIM, &vec![0x11; VICTIM_LEN]), Errno::OK);
    let before = footprint(&served);
    beside_a_good_client(&served, || {
        std::thread::scope(|scope| {
            for worker in 0..8 {
                let served = &served;
                scope.spawn(move || {
                    let mut random = Random::new(seed.wrapping_add(worker));
                    (0..60).for_each(|_| leave_in_the_middle(served, &mut random));
                });
            }
        });
    });
    assert!(
        keeper.read(VICTIM, VICTIM_LEN).unwrap() == vec![0x11; VICTIM_LEN],
        "an unfinished write is seen"
    );
    let after = footprint(&served);
    report(&format!("480 clients left in the middle: before {before:?}, after {after:?}"));
    assert!(after.descriptors <= before.descriptors + 10, "{before:?}, {after:?}");
    // 8 at a time with at most 4 MiB of replies, their read-ahead, and as much again for what an allocator keeps.
    assert!(after.peak_kib - before.peak_kib <= 2 * 8 * (4 << 10) + (32 << 10), "{before:?}, {after:?}");
    drop(keeper);
    serves_on(&mut served);
}

#[test]
fn writes_that_never_end_take_the_memory_of_one_and_give_it_back() {
    const STALLED: usize = 12;
    let mut served = Served::unix(VOLUME_LEN);
    let before = footprint(&served);
    beside_a_good_client(&served, || {
        let mut stalled = Vec::new();
        for _ in 0..STALLED {
            let mut client = session(&served, Style::Simple);
            client.request(CommandFlags::NONE, Command::WRITE, VICTIM, PAYLOAD_LEN_MAX as u64);
            // The first one is taken in; of the others what the sockets hold.
            client.stream.set_write_timeout(Some(Duration::from_millis(300))).expect("set");
            let _blocks = client.stream.write_all(&vec![0xee; PAYLOAD_LEN_MAX - 1]);
            stalled.push(client);
        }
        let during = footprint(&served);
        let payload_kib = PAYLOAD_LEN_MAX as u64 / 1024;
        report(&format!("{STALLED} payloads of 32 MiB stall: before {before:?}, during {during:?}"));
        assert!(during.resident_kib > before.resident_kib + payload_kib / 2, "one of them is there");
        // Sectors have room for their tags (a 256th more); 16 MiB for all else.
        let most = before.resident_kib + payload_kib + payload_kib / 256 + (16 << 10);
        assert!(during.peak_kib <= most, "{} KiB, {most} at most", during.peak_kib);
        drop(stalled);
        let back = common::programs::poll(Duration::from_secs(20), || {
            footprint(&served).resident_kib <= before.resident_kib + (16 << 10)
        });
        assert!(back, "{:?} after they have left, {before:?} before they came", footprint(&served));
    });
    let mut client = served.connect();
    assert_eq!(client.read(VICTIM, 4096).expect("read"), [0; 4096]);
    drop(client);
    serves_on(&mut served);
}
