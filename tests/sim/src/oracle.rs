//! What a volume may read as: for every sector, the requests whose bytes may be found there.
//!
//! Time here counts events: a request has the time at which it was issued and the time at which it was answered, and
//! came *before* another one when it was answered before the other was issued. A request may take effect at
//! any moment between the two, on each sector separately, and never mixes with another inside a sector.
//!
//! After a power loss the volume is a prefix of the log. Of that a client knows: if a request left a trace,
//! everything answered before it was issued is there too. So the state is explained by a time T such that
//! all that was answered before T took effect: at least the time of the last flush, and at least the
//! time at which any request that left a trace was issued.

use std::fmt::Write as _;

use crate::content::{OpId, SECTOR_UNITS, UNIT, UNIT_BYTES, Value, value_of};
use crate::failure::Violation;

/// A moment: so many events were before.
pub(crate) type Time = u64;

const SECTOR: usize = SECTOR_UNITS * UNIT;
/// Requests of a sector from which on those that can play no part any more are dropped.
const ENTRIES_KEPT: usize = 12;

/// A request that changes something.
#[derive(Clone, Copy)]
struct Op {
    issued: Time,
    /// `Time::MAX` while it is under way.
    answered: Time,
    /// It was answered well, so it took effect.
    done: bool,
    /// It was answered well and had to be durable by then.
    durable: bool,
}

impl Op {
    const UNKNOWN: Self = Self { issued: 0, answered: Time::MAX, done: false, durable: false };
}

/// What a request does to a sector.
#[derive(Clone, Copy)]
struct Entry {
    op: OpId,
    /// The units that it covers.
    mask: u8,
    zeroes: bool,
}

/// What came to an end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Survived {
    /// The process: what it answered is there.
    ProcessDeath,
    /// The host: what was flushed is there, and of the rest a prefix.
    PowerLoss,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Oracle {
    now: Time,
    ops: Vec<Op>,
    /// What every unit held when it was last known.
    base: Vec<Value>,
    /// By sector, in the order in which they were issued.
    changes: Vec<Vec<Entry>>,
    /// What was answered before that is durable.
    durable_before: Time,
}

impl Oracle {
    /// A volume of `bytes` zeros.
    pub(crate) fn new(bytes: u64) -> Self {
        let bytes = usize::try_from(bytes).expect("a volume of the simulation lies in memory");
        Self {
            now: 1,
            ops: Vec::new(),
            base: vec![Value::Zero; bytes / UNIT],
            changes: vec![Vec::new(); bytes / SECTOR],
            durable_before: 0,
        }
    }

    /// Bytes of the volume.
    pub(crate) fn bytes(&self) -> u64 {
        self.base.len() as u64 * UNIT_BYTES
    }

    /// The volume has another size. What comes to it is zeros; what goes is forgotten.
    pub(crate) fn resize(&mut self, bytes: u64) {
        self.base.resize(units(bytes), Value::Zero);
        self.changes.resize(units(bytes) / SECTOR_UNITS, Vec::new());
    }

    /// A new moment.
    pub(crate) fn tick(&mut self) -> Time {
        self.now += 1;
        self.now
    }

    /// Request `op` is issued: it writes (or zeroes) bytes `from .. to` of the export.
    pub(crate) fn issue(&mut self, op: OpId, from: u64, to: u64, zeroes: bool, oldest_read: Time) {
        let issued = self.tick();
        let index = op as usize;
        self.ops.resize(self.ops.len().max(index + 1), Op::UNKNOWN);
        self.ops[index] = Op { issued, ..Op::UNKNOWN };
        let (first, last) = (units(from), units(to));
        for sector in first / SECTOR_UNITS..last.div_ceil(SECTOR_UNITS) {
            let start = sector * SECTOR_UNITS;
            let (low, high) = (first.max(start) - start, last.min(start + SECTOR_UNITS) - start);
            let mask = u8::try_from(((1u16 << high) - 1) & !((1u16 << low) - 1)).expect("eight bits");
            self.changes[sector].push(Entry { op, mask, zeroes });
            if self.changes[sector].len() > ENTRIES_KEPT {
                self.prune(sector, oldest_read);
            }
        }
    }

    /// Request `op` was answered.
    pub(crate) fn answer(&mut self, op: OpId, done: bool, durable: bool) {
        let answered = self.tick();
        let known = &mut self.ops[op as usize];
        known.answered = answered;
        known.done = done;
        known.durable = done && durable;
        let issued = known.issued;
        if done && durable {
            self.durable_before = self.durable_before.max(issued);
        }
    }

    /// What was answered before `issued`, when a flush was issued that was answered well, is durable.
    pub(crate) fn flushed(&mut self, issued: Time) {
        self.tick();
        self.durable_before = self.durable_before.max(issued);
    }

    /// Drops what no read and no power loss can bring to light any more.
    fn prune(&mut self, sector: usize, oldest_read: Time) {
        let settled = self.durable_before.min(oldest_read);
        let entries = std::mem::take(&mut self.changes[sector]);
        let kept = entries.iter().filter(|entry| {
            let op = self.ops[entry.op as usize];
            !entries.iter().any(|other| {
                let over = self.ops[other.op as usize];
                let covers = other.mask & entry.mask == entry.mask;
                covers && over.done && over.answered <= settled && op.answered <= over.issued
            })
        });
        self.changes[sector] = kept.copied().collect();
    }

    /// Judges what a read that was issued at `since` found at `offset`.
    pub(crate) fn judge_read(&self, since: Time, offset: u64, data: &[u8]) -> Result<(), Violation> {
        let applied = |op: &Op| op.done && op.answered <= since;
        for (index, unit) in data.chunks_exact(UNIT).enumerate() {
            let at = units(offset) + index;
            let value = self.value(at, unit)?;
            if self.explanations(at, value, applied).next().is_none() {
                return Err(self.unexplained("I1", at, value, applied));
            }
        }
        self.judge_sectors(offset, data)
    }

    /// Judges all that a volume reads as when it was opened again, and takes it as what is known from here on.
    pub(crate) fn settle(&mut self, content: &[u8], survived: Survived) -> Result<(), Violation> {
        let mut values = Vec::with_capacity(self.base.len());
        for (at, unit) in content.chunks_exact(UNIT).enumerate() {
            values.push(self.value(at, unit)?);
        }
        let mut time = match survived {
            Survived::ProcessDeath => Time::MAX,
            Survived::PowerLoss => self.durable_before,
        };
        loop {
            let applied = |op: &Op| op.done && (op.answered <= time || op.durable);
            let mut evidence = time;
            for (at, value) in values.iter().enumerate() {
                // A base that nobody changed explains itself.
                if self.changes[at / SECTOR_UNITS].is_empty() && self.base[at] == *value {
                    continue;
                }
                match self.explanations(at, *value, applied).min() {
                    Some(issued) => evidence = evidence.max(issued),
                    None => return Err(self.unexplained("I2", at, *value, applied)),
                }
            }
            if evidence == time {
                break;
            }
            time = evidence;
        }
        self.judge_sectors(0, content)?;
        self.know(values);
        Ok(())
    }

    /// Takes what was read, when nothing was under way and all was durable, as what is known from here on.
    pub(crate) fn know_content(&mut self, content: &[u8]) {
        let values = content.chunks_exact(UNIT).enumerate();
        let values = values.map(|(at, unit)| value_of(unit, at as u64 * UNIT_BYTES).unwrap_or(Value::Zero));
        self.know(values.collect());
    }

    fn know(&mut self, values: Vec<Value>) {
        self.base = values;
        self.changes.iter_mut().for_each(Vec::clear);
        self.durable_before = self.tick();
    }

    fn value(&self, at: usize, unit: &[u8]) -> Result<Value, Violation> {
        value_of(unit, at as u64 * UNIT_BYTES).ok_or_else(|| Violation {
            invariant: "I1",
            what: format!("byte {} holds what nobody wrote there: {:02x?}…", at * UNIT, &unit[..16]),
        })
    }

    /// When the requests were issued that explain `value`, given which others took effect; 0 for the base.
    fn explanations(
        &self,
        at: usize,
        value: Value,
        applied: impl Fn(&Op) -> bool,
    ) -> impl Iterator<Item = Time> {
        let entries = &self.changes[at / SECTOR_UNITS];
        let bit = 1u8 << (at % SECTOR_UNITS);
        let over = move |answered: Time| {
            let mut covering = entries.iter().filter(move |entry| entry.mask & bit != 0);
            covering.any(|entry| {
                let op = &self.ops[entry.op as usize];
                applied(op) && answered <= op.issued
            })
        };
        let base = (self.base[at] == value && !over(0)).then_some(0);
        let fits = move |entry: &&Entry| {
            entry.mask & bit != 0
                && match value {
                    Value::Zero => entry.zeroes,
                    Value::Of(op) => entry.op == op && !entry.zeroes,
                }
        };
        let changes = entries.iter().filter(fits).filter_map(move |entry| {
            let op = &self.ops[entry.op as usize];
            (!over(op.answered)).then_some(op.issued)
        });
        base.into_iter().chain(changes)
    }

    /// Two requests never mix inside a sector.
    fn judge_sectors(&self, offset: u64, data: &[u8]) -> Result<(), Violation> {
        let first = units(offset);
        let count = data.len() / UNIT;
        for sector in first / SECTOR_UNITS..(first + count).div_ceil(SECTOR_UNITS) {
            let entries = &self.changes[sector];
            if entries.len() < 2 && !entries.iter().any(|entry| !entry.zeroes) {
                continue;
            }
            let range = first.max(sector * SECTOR_UNITS)..(first + count).min((sector + 1) * SECTOR_UNITS);
            let found: Vec<(u8, Option<Entry>, Value)> = range
                .filter_map(|at| {
                    let unit = &data[(at - first) * UNIT..][..UNIT];
                    let value = value_of(unit, at as u64 * UNIT_BYTES)?;
                    let by = entries.iter().find(|entry| value == Value::Of(entry.op) && !entry.zeroes);
                    Some((1 << (at % SECTOR_UNITS), by.copied(), value))
                })
                .collect();
            for trace in found.iter().filter_map(|(_, trace, _)| *trace) {
                let same = |by: &Option<Entry>| by.is_some_and(|by| by.op == trace.op);
                let seen = found.iter().filter(|(_, by, _)| same(by)).fold(0, |seen, (bit, ..)| seen | bit);
                for (_, other, value) in found.iter().filter(|(bit, ..)| trace.mask & bit != 0) {
                    if self.contradicts(sector, trace, seen, *other, *value) {
                        let op = trace.op;
                        return Err(Violation {
                            invariant: "I1 (no mixing inside a sector)",
                            what: format!(
                                "sector {sector} holds units of request {op} beside {value:?}, which it covers"
                            ),
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether `other` cannot stand where `trace` wrote too, which was seen in the units `seen` of the sector.
    fn contradicts(&self, sector: usize, trace: Entry, seen: u8, other: Option<Entry>, value: Value) -> bool {
        match (other, value) {
            (Some(other), _) if other.op == trace.op => false,
            // One of the two came last, on all that both cover.
            (Some(other), _) => {
                other.mask & seen != 0
                    || self.ops[other.op as usize].answered <= self.ops[trace.op as usize].issued
            }
            // Zeros of some request, or what was there before.
            (None, Value::Zero) => !self.changes[sector].iter().any(|entry| entry.zeroes),
            (None, Value::Of(_)) => true,
        }
    }

    fn unexplained(
        &self,
        invariant: &'static str,
        at: usize,
        found: Value,
        applied: impl Fn(&Op) -> bool,
    ) -> Violation {
        let mut what = format!("byte {} (sector {}) holds {found:?};", at * UNIT, at / SECTOR_UNITS);
        let _ = write!(what, " known before: {:?}; changes since:", self.base[at]);
        let bit = 1u8 << (at % SECTOR_UNITS);
        for entry in self.changes[at / SECTOR_UNITS].iter().filter(|entry| entry.mask & bit != 0) {
            let op = &self.ops[entry.op as usize];
            let kind = if entry.zeroes { "zeroes" } else { "write" };
            let state = match op.answered {
                Time::MAX => "under way".to_owned(),
                answered => format!("{} at {answered}", if op.done { "done" } else { "failed" }),
            };
            let must = if applied(op) { ", must have taken effect" } else { "" };
            let _ = write!(what, " [{kind} {} issued at {}, {state}{must}]", entry.op, op.issued);
        }
        let _ = write!(what, "; durable before {}", self.durable_before);
        Violation { invariant, what }
    }
}

fn units(offset: u64) -> usize {
    usize::try_from(offset / UNIT_BYTES).expect("a volume of the simulation lies in memory")
}
