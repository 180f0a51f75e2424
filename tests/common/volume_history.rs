//! Histories of changes and what may be left of them after a crash.
//!
//! A step is expanded into the changes of single sectors that the log makes of it, in log order. A
//! volume that crashed must equal the state after some prefix of them (docs/FORMAT.md §16, I2).

#![allow(dead_code, unreachable_pub, reason = "every test file that includes this uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use proptest::prelude::*;
use sealbd::export::{Durability, Export, ExportError, ZeroMode};
use sealbd::geometry::ByteRange;
use sealbd::payload::Payload;
use sealbd::volume::Volume;

pub const SECTOR: u64 = 4096;

/// One request of a client, or what else moves a volume.
#[derive(Clone, Debug)]
pub enum Step {
    Write {
        offset: u64,
        len: u64,
        fill: u64,
        durable: bool,
    },
    Zero {
        offset: u64,
        len: u64,
        no_hole: bool,
        durable: bool,
    },
    Trim {
        offset: u64,
        len: u64,
        durable: bool,
    },
    Flush,
    Checkpoint,
    /// An orderly end and a new session.
    Close,
    /// The process dies and a new one opens the volume.
    Reopen,
}

/// The bytes that a write with this `fill` brings: different from those of every other fill.
pub fn pattern(fill: u64, len: u64) -> Vec<u8> {
    let mut state = fill;
    let mut next = || {
        state = splitmix(state);
        state.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| next()).take(usize::try_from(len).unwrap()).collect()
}

/// A step of a small random generator: deterministic, so a seed is all that a failure has to print.
pub fn splitmix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Random numbers from a seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        splitmix(self.0) % bound
    }
}

/// Random steps on an export of `size` bytes.
pub fn step(size: u64) -> impl Strategy<Value = Step> {
    let place = prop_oneof![
        3 => (0..size / SECTOR, 1..24u64).prop_map(|(lba, count)| (lba * SECTOR, count * SECTOR)),
        2 => (0..size / 512, 1..12u64).prop_map(|(at, count)| (at * 512, count * 512)),
        2 => (0..size, 1..30_000u64),
        1 => (0..size, 1..size),
    ];
    let place = move || place.clone().prop_map(move |(offset, len)| (offset, len.min(size - offset)));
    prop_oneof![
        8 => (place(), any::<u64>(), 0..4u8).prop_map(|((offset, len), fill, fua)| Step::Write {
            offset, len, fill, durable: fua == 0
        }),
        2 => (place(), any::<bool>(), 0..4u8).prop_map(|((offset, len), no_hole, fua)| Step::Zero {
            offset, len, no_hole, durable: fua == 0
        }),
        2 => (place(), 0..4u8).prop_map(|((offset, len), fua)| Step::Trim { offset, len, durable: fua == 0 }),
        2 => Just(Step::Flush),
        2 => Just(Step::Checkpoint),
        1 => Just(Step::Close),
        1 => Just(Step::Reopen),
    ]
}

/// Runs a step that needs no new session.
pub async fn apply(volume: &Volume, size: u64, step: &Step) -> Result<(), ExportError> {
    let within = |offset, len| ByteRange::within(offset, len, size).unwrap();
    let durability = |durable| if durable { Durability::Durable } else { Durability::Accepted };
    match *step {
        Step::Write { offset, len, fill, durable } => {
            let payload = Payload::copy_of(within(offset, len), &pattern(fill, len));
            volume.write(payload, durability(durable)).await
        }
        Step::Zero { offset, len, no_hole, durable } => {
            let mode = if no_hole { ZeroMode::NoHole } else { ZeroMode::MayPunch };
            volume.write_zeroes(within(offset, len), mode, durability(durable)).await
        }
        Step::Trim { offset, len, durable } => volume.trim(within(offset, len), durability(durable)).await,
        Step::Flush => volume.flush().await,
        Step::Checkpoint => volume.checkpoint().await.map_err(|error| ExportError::Io(error.to_string())),
        Step::Close | Step::Reopen => {
            volume.close().await.map_err(|error| ExportError::Io(error.to_string()))
        }
    }
}

/// A sector's new content at one point of the log.
struct Change {
    lba: usize,
    content: Arc<[u8]>,
}

/// Everything that was asked of a volume so far, in log order.
pub struct Model {
    now: Vec<Arc<[u8]>>,
    base: Vec<Arc<[u8]>>,
    changes: Vec<Change>,
    /// Changes that a power cut may not undo.
    durable: usize,
    /// Changes that the death of the process may not undo.
    acked: usize,
}

impl Model {
    /// The model of a new volume.
    pub fn new(size: u64) -> Self {
        Self::holding(&vec![0; usize::try_from(size).unwrap()])
    }

    /// The model of a volume that holds `content`, durably.
    pub fn holding(content: &[u8]) -> Self {
        let base: Vec<Arc<[u8]>> = content.chunks(4096).map(Arc::from).collect();
        Self { now: base.clone(), base, changes: Vec::new(), durable: 0, acked: 0 }
    }

    /// Enters a step before it is asked for.
    pub fn ask(&mut self, step: &Step) {
        match *step {
            Step::Write { offset, len, fill, .. } => self.put(offset, &pattern(fill, len)),
            Step::Trim { offset, len, .. } => {
                let (from, to) = (offset.next_multiple_of(SECTOR), (offset + len) / SECTOR * SECTOR);
                self.zero(from, to.saturating_sub(from));
            }
            Step::Zero { offset, len, .. } => {
                let end = offset + len;
                let (from, to) = (offset.next_multiple_of(SECTOR), end / SECTOR * SECTOR);
                if from >= to {
                    return self.put(offset, &vec![0; usize::try_from(len).unwrap()]);
                }
                // Whole sectors first, then the edges.
                self.zero(from, to - from);
                self.put(offset, &vec![0; usize::try_from(from - offset).unwrap()]);
                self.put(to, &vec![0; usize::try_from(end - to).unwrap()]);
            }
            Step::Flush | Step::Checkpoint | Step::Close | Step::Reopen => {}
        }
    }

    /// Enters that the last step was answered well.
    pub fn answered(&mut self, step: &Step) {
        self.acked = self.changes.len();
        let durable = match *step {
            Step::Write { durable, .. } | Step::Zero { durable, .. } | Step::Trim { durable, .. } => durable,
            Step::Flush | Step::Checkpoint | Step::Close => true,
            Step::Reopen => false,
        };
        if durable {
            self.durable = self.changes.len();
        }
    }

    fn put(&mut self, offset: u64, data: &[u8]) {
        let mut at = usize::try_from(offset).unwrap();
        let mut rest = data;
        while !rest.is_empty() {
            let (lba, skip) = (at / 4096, at % 4096);
            let count = rest.len().min(4096 - skip);
            let mut content = self.now[lba].to_vec();
            content[skip..skip + count].copy_from_slice(&rest[..count]);
            self.set(lba, content.into());
            rest = &rest[count..];
            at += count;
        }
    }

    fn zero(&mut self, offset: u64, len: u64) {
        let zero: Arc<[u8]> = Arc::from(vec![0; 4096]);
        for lba in offset / SECTOR..(offset + len) / SECTOR {
            self.set(usize::try_from(lba).unwrap(), zero.clone());
        }
    }

    fn set(&mut self, lba: usize, content: Arc<[u8]>) {
        self.now[lba] = content.clone();
        self.changes.push(Change { lba, content });
    }

    /// The number of changes that `found`, the whole content of a volume, holds: the largest prefix
    /// that it equals, if that is at least what had to survive.
    pub fn prefix_found(&self, found: &[u8], survived: Survived) -> Result<usize, String> {
        let least = match survived {
            Survived::PowerCut => self.durable,
            Survived::ProcessDeath => self.acked,
        };
        let mut state = self.base.clone();
        for change in &self.changes[..least] {
            state[change.lba] = change.content.clone();
        }
        let sector = |lba: usize| &found[lba * 4096..][..4096];
        let mut wrong: Vec<bool> = (0..state.len()).map(|lba| *state[lba] != *sector(lba)).collect();
        let mut wrong_count = wrong.iter().filter(|wrong| **wrong).count();
        let mut best = (wrong_count == 0).then_some(least);
        let mut fewest = (wrong_count, least, wrong.clone());
        for (index, change) in self.changes.iter().enumerate().skip(least) {
            let now_wrong = *change.content != *sector(change.lba);
            wrong_count = wrong_count + usize::from(now_wrong) - usize::from(wrong[change.lba]);
            wrong[change.lba] = now_wrong;
            if wrong_count == 0 {
                best = Some(index + 1);
            }
            if wrong_count < fewest.0 {
                fewest = (wrong_count, index + 1, wrong.clone());
            }
        }
        best.ok_or_else(|| {
            let lbas: Vec<usize> = (0..wrong.len()).filter(|lba| fewest.2[*lba]).take(20).collect();
            format!(
                "no prefix of {} changes from {least} on fits; nearest is {} with {} wrong sectors: {lbas:?}",
                self.changes.len(),
                fewest.1,
                fewest.0
            )
        })
    }

    /// Goes on from what a crash left: the first `count` changes are history, the others never were.
    pub fn settle(&mut self, count: usize) {
        for change in self.changes.drain(..count) {
            self.base[change.lba] = change.content;
        }
        self.changes.clear();
        self.now = self.base.clone();
        (self.durable, self.acked) = (0, 0);
    }
}

/// What came to an end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Survived {
    PowerCut,
    ProcessDeath,
}
