//! Many suspensions under load: nothing fails, nothing is lost.

use super::*;
use crate::random::Random;

const CYCLES: usize = 200;
const WRITERS: u64 = 4;
/// Sectors of each writer, where nobody else writes.
const SECTORS: u64 = 16;

/// Writes and verifies its own sectors until told to end; how often, and what is there.
async fn write(gate: Arc<Gate>, writer: u64, seed: u64, end: watch::Receiver<bool>) -> (u64, Vec<u8>) {
    let mut random = Random(seed ^ writer);
    let (mut count, mut known) = (0, vec![0; usize::try_from(SECTORS).unwrap()]);
    while !*end.borrow() {
        let place = random.below(SECTORS);
        let (lba, index) = (writer * SECTORS + place, usize::try_from(place).unwrap());
        match random.below(8) {
            0 => gate.flush().await.unwrap(),
            1 => {
                gate.trim(sector(lba), Durability::Accepted).await.unwrap();
                known[index] = 0;
            }
            2..=4 => {
                assert_eq!(fill_of(&gate, lba).await.unwrap(), known[index], "writer {writer} sector {lba}")
            }
            _ => {
                let fill = u8::try_from(1 + random.below(255)).unwrap();
                put(&gate, lba, fill).await.unwrap();
                known[index] = fill;
            }
        }
        count += 1;
    }
    (count, known)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_suspensions_under_load_fail_no_request_and_lose_nothing() {
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = std::env::var("SEALBD_TEST_SEED").map_or(nanos.into(), |seed| seed.parse().unwrap());
    // A small volume: every session begins segments of its own, and few of them are ever full.
    let (store, gate) = running().await;
    let (end, ended) = watch::channel(false);
    let writers: Vec<_> =
        (0..WRITERS).map(|writer| tokio::spawn(write(gate.clone(), writer, seed, ended.clone()))).collect();
    let mut random = Random(seed);
    for cycle in 0..CYCLES {
        for _ in 0..random.below(64) {
            tokio::task::yield_now().await;
        }
        let watched = loop {
            // Whoever has just resumed is running, however many requests there are.
            if let Ok(volume) = gate.volume() {
                break volume.keys();
            }
            tokio::task::yield_now().await;
        };
        soon("suspending", gate.suspend()).await.unwrap();
        assert!(gone(&watched), "seed {seed}, cycle {cycle}: a key is left");
        if random.below(8) == 0 {
            until("every writer waits", || gate.parked() == usize::try_from(WRITERS).unwrap()).await;
        }
        if random.below(4) == 0 {
            assert!(gate.resume(Dek::take(&mut [1; 32])).await.is_err(), "seed {seed}, cycle {cycle}");
        }
        soon("resuming", gate.resume(dek(&*store).await)).await.unwrap();
    }
    end.send_replace(true);
    let mut all = Vec::new();
    for writer in writers {
        let (count, known) =
            soon("a writer", writer).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(count > 0, "it worked");
        all.extend(known);
    }
    soon("stopping", gate.close()).await.unwrap();
    let gate = open_as(store, OpenMode::ReadOnly).await;
    for (lba, known) in (0..).zip(all) {
        assert_eq!(fill_of(&gate, lba).await.unwrap(), known, "seed {seed}, sector {lba}");
    }
}
