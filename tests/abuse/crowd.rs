//! Many clients that write to the same places at the same time.

use std::sync::{Barrier, Mutex};

use super::*;
use crate::common::pattern::{BLOCK_LEN, Random, filled, stamp_of};

const CLIENTS: u64 = 64;
const SECTOR: u64 = 4096;
/// Sectors that all of them write to.
const SHARED_SECTORS: u64 = 128;
/// Where the ranges begin that one client has for itself, and how long they are.
const PRIVATE: u64 = 32 << 20;
const PRIVATE_LEN: u64 = 256 << 10;
const ROUNDS: u64 = 25;

/// One write to a shared sector, from before it was sent until after it was answered.
struct Write {
    stamp: u64,
    begun: Instant,
    answered: Instant,
}

/// The stamp that a whole sector was written with.
fn stamp_of_sector(data: &[u8], at: u64) -> u64 {
    let mut stamps = data.chunks_exact(BLOCK_LEN).zip(0u64..).map(|(block, i)| {
        let at = at + i * BLOCK_LEN as u64;
        if block.iter().all(|&byte| byte == 0) { Some(0) } else { stamp_of(block, at) }
    });
    let first = stamps.next().flatten().unwrap_or_else(|| panic!("the sector at {at} is of no write"));
    assert!(stamps.all(|stamp| stamp == Some(first)), "the sector at {at} is of several writes");
    first
}

#[test]
fn sectors_that_64_clients_overwrite_at_once_hold_one_write_each_and_their_own_ranges_are_right() {
    let seed = Random::fresh_seed();
    report(&format!("SEALBD_TEST_SEED={seed}"));
    let mut served = Served::unix(VOLUME_LEN);
    let before = footprint(&served);
    let writes: Vec<Mutex<Vec<Write>>> = (0..SHARED_SECTORS).map(|_| Mutex::default()).collect();
    let together = Barrier::new(usize::try_from(CLIENTS).unwrap());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (served, writes, together) = (&served, &writes, &together);
            scope.spawn(move || {
                let mut client = served.connect();
                together.wait();
                let mut random = Random::new(seed ^ number.rotate_left(40));
                let mut own = 0;
                for _ in 0..ROUNDS {
                    let first = random.below(SHARED_SECTORS - 8);
                    let count = 1 + random.below(8);
                    let stamp = random.next() | 1;
                    let data = filled(first * SECTOR, usize::try_from(count * SECTOR).unwrap(), stamp);
                    let begun = Instant::now();
                    client.write(first * SECTOR, &data, u16::from(random.one_in(20))).expect("written");
                    let answered = Instant::now();
                    for sector in first..first + count {
                        let write = Write { stamp, begun, answered };
                        writes[usize::try_from(sector).unwrap()].lock().unwrap().push(write);
                    }
                    // Nobody ever reads half of a write.
                    let seen = random.below(SHARED_SECTORS) * SECTOR;
                    stamp_of_sector(&client.read(seen, 4096).expect("read"), seen);

                    own = random.next() | 1;
                    let at = PRIVATE + number * PRIVATE_LEN;
                    client.write(at, &filled(at, 256 << 10, own), 0).expect("written");
                    if random.one_in(4) {
                        assert!(client.read(at, 256 << 10).expect("read") == filled(at, 256 << 10, own));
                    }
                }
                let at = PRIVATE + number * PRIVATE_LEN;
                assert!(client.read(at, 256 << 10).expect("read") == filled(at, 256 << 10, own));
            });
        }
    });
    let after = footprint(&served);
    report(&format!(
        "{CLIENTS} clients, {ROUNDS} rounds: {:?}; before {before:?}, after {after:?}",
        begun.elapsed()
    ));
    // Each client has one request of 256 KiB under way, twice (payload, record), its read-ahead, and as much again;
    // the log's own buffers and the volume's cache are of a fixed size below 64 MiB.
    let most = CLIENTS * 4 * 256 + (64 << 10);
    assert!(
        after.peak_kib - before.resident_kib <= most,
        "before {before:?}, after {after:?}, {most} KiB at most"
    );
    let mut client = served.connect();
    for (writes, at) in writes.iter().zip((0..SHARED_SECTORS).map(|sector| sector * SECTOR)) {
        let writes = writes.lock().unwrap();
        let stamp = stamp_of_sector(&client.read(at, 4096).expect("read"), at);
        let Some(last) = writes.iter().find(|write| write.stamp == stamp) else {
            assert!(stamp == 0 && writes.is_empty(), "the sector at {at} is of no write");
            continue;
        };
        let later = writes.iter().find(|write| write.begun > last.answered);
        assert!(later.is_none(), "the write at {at} that was begun after this one was answered is lost");
    }
    drop(client);
    serves_on(&mut served);
}
