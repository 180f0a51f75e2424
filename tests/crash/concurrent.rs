//! Writers on several tasks: what they did, and what a power cut may leave of it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use sealbd::export::Durability;
use sealbd::payload::Payload;

use super::*;

/// One write of a concurrent history; times are ticks of a common clock.
pub(super) struct Written {
    pub(super) id: u64,
    /// Blocks of 512 bytes.
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) issued: u64,
    pub(super) acked: Option<u64>,
    pub(super) durable: bool,
}

impl Written {
    /// Whether this write was answered before the other was asked for, and so comes first in the log.
    fn before(&self, issued: u64) -> bool {
        self.acked.is_some_and(|acked| acked < issued)
    }
}

/// What writers on several tasks did.
#[derive(Default)]
pub(super) struct Record {
    pub(super) writes: Vec<Written>,
    /// When the newest good flush was asked for.
    pub(super) flushed: u64,
}

const BLOCKS: u64 = 128;

pub(super) fn block(id: u64) -> Vec<u8> {
    history::pattern(id, 512)
}

async fn write_at_random(volume: Volume, writer: u64, seed: u64, clock: Arc<AtomicU64>) -> Record {
    let tick = || clock.fetch_add(1, Ordering::SeqCst);
    let mut dice = Dice::new(seed ^ (writer << 8));
    let mut record = Record::default();
    for round in 0..40 {
        let issued = tick();
        if dice.below(8) == 0 {
            if volume.flush().await.is_err() {
                break;
            }
            record.flushed = issued;
            continue;
        }
        let unit = 1 + 7 * dice.below(2);
        let first = dice.below(BLOCKS / unit) * unit;
        let count = ((1 + dice.below(3)) * unit).min(BLOCKS - first);
        let durable = dice.below(8) == 0;
        let id = (writer << 32) | round | (1 << 63);
        let data: Vec<u8> = (0..count).flat_map(|_| block(id)).collect();
        let range = ByteRange::within(first * 512, count * 512, SIZE).unwrap();
        let durability = if durable { Durability::Durable } else { Durability::Accepted };
        let answer = volume.write(Payload::copy_of(range, &data), durability).await;
        let acked = answer.is_ok().then(tick);
        record.writes.push(Written { id, first, count, issued, acked, durable });
        if answer.is_err() {
            break;
        }
        if durable {
            record.flushed = issued;
        }
    }
    record
}

/// Checks that what is found is what the log may have held at some point not before the last durable
/// answer: nothing is lost that comes before something kept. Where nothing is kept stands what was there `initially`.
pub(super) fn judge_concurrent(
    found: &[u8],
    initially: &[u8],
    records: &[Record],
    survived: Survived,
) -> Result<(), String> {
    let writes: Vec<&Written> = records.iter().flat_map(|record| &record.writes).collect();
    let flushed = records.iter().map(|record| record.flushed).max().unwrap_or(0);
    let ids: HashMap<Vec<u8>, &Written> = writes.iter().map(|write| (block(write.id), *write)).collect();
    let mut covering: Vec<Vec<&Written>> = vec![Vec::new(); found.len() / 512];
    for write in &writes {
        for block in write.first..write.first + write.count {
            covering[usize::try_from(block).unwrap()].push(write);
        }
    }
    let mut kept: Vec<&Written> = Vec::new();
    let mut lost: Vec<&Written> = Vec::new();
    for (number, (bytes, old)) in found.chunks(512).zip(initially.chunks(512)).enumerate() {
        let here = ids.get(bytes).copied();
        let known = here.is_some_and(|here| covering[number].iter().any(|write| write.id == here.id));
        if !known && bytes != old {
            return Err(format!("block {number} holds what was never written there"));
        }
        kept.extend(here);
        let newer = |write: &&Written| here.is_none_or(|here| here.before(write.issued));
        lost.extend(covering[number].iter().copied().filter(newer));
    }
    let newest_kept = kept.iter().map(|write| write.issued).max().unwrap_or(0);
    for write in lost {
        let must_stay = write.before(flushed)
            || write.durable && write.acked.is_some()
            || survived == Survived::ProcessDeath && write.acked.is_some();
        if must_stay {
            return Err(format!("write {:x} was durable and is lost", write.id));
        }
        if write.before(newest_kept) {
            return Err(format!("write {:x} is lost and a later one is not", write.id));
        }
    }
    Ok(())
}

#[test]
fn concurrent_writers_leave_a_prefix_wherever_the_power_is_cut() {
    let base = fresh();
    for seed in 0..60 {
        let store = Arc::new(base.snapshot());
        volumes::run(async {
            let volume = volumes::open(store.clone(), OpenMode::ReadWrite).await.unwrap();
            let mut dice = Dice::new(seed);
            store.freeze_at(dice.below(120));
            let clock = Arc::new(AtomicU64::new(1));
            let writers: Vec<_> = (0..6)
                .map(|writer| tokio::spawn(write_at_random(volume.clone(), writer, seed, clock.clone())))
                .collect();
            if seed % 3 == 0 {
                let _ = volume.checkpoint().await;
            }
            let mut records = Vec::new();
            for writer in writers {
                records.push(writer.await.unwrap());
            }
            let images = Left::cases(seed, 3).into_iter().map(|how| (how.of(&store), Survived::PowerCut));
            let dead = (Arc::new(store.snapshot()), Survived::ProcessDeath);
            for (left, survived) in images.chain([dead]) {
                let volume = volumes::open(left, OpenMode::ReadWrite).await;
                let volume = volume.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                let range = ByteRange::within(0, BLOCKS * 512, SIZE).unwrap();
                let found = volumes::read(&volume, range).await;
                judge_concurrent(&found, &vec![0; found.len()], &records, survived)
                    .unwrap_or_else(|why| panic!("seed {seed}, {survived:?}: {why}"));
                volumes::check(&volume).await;
            }
        });
    }
}
