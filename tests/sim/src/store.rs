//! The model of a store: what a disk with a volatile cache may do, and what a bad one does.
//!
//! A write lands after a while, in any order with others; a `sync` makes durable exactly what had landed
//! before it began. On power loss everything else, landed or under way, is lost, kept or torn into units of 512
//! bytes, each by its own dice; a torn write may take the physical blocks at its ends with it, whatever else they
//! hold. A session is one process's way to the store; once cut, nothing of it
//! arrives any more.

mod image;
mod session;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sealbd::format::segment::PHYSICAL_BLOCK;
use sealbd::store::{Capability, StoreError};
use tokio::time::Instant;

use crate::content::UNIT;
use crate::random::Dice;
use crate::watch::Watch;
pub(crate) use image::Image;
pub(crate) use session::Session;

/// What a physical block holds after a write to it was cut short, at worst.
const SPOILED: [u8; 4096] = [0xb5; 4096];
const _: () = assert!(SPOILED.len() as u64 == PHYSICAL_BLOCK, "a whole one");

/// Changes that a disk which lies about syncs holds back.
const LIES_HELD_MAX: usize = 48;

/// A kind of operation, for faults.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Operation {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A sync.
    Sync,
}

/// How a store treats its sessions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Manners {
    /// Longest time that an operation takes, in milliseconds; 0 for an answer at once.
    pub latency_ms_max: u64,
    /// `sync` and durable writes answer well and do nothing.
    pub lies: bool,
}

/// The store, shared by its sessions.
pub(crate) struct Medium {
    /// But for the size, which grows.
    capability: Capability,
    started: Instant,
    state: Mutex<State>,
}

/// What happens behind the interface.
pub(crate) struct State {
    pub(crate) manners: Manners,
    pub(crate) dice: Dice,
    pub(crate) watch: Watch,
    /// Bytes that can be addressed.
    size: u64,
    /// What reads see.
    now: Image,
    /// What no power loss takes away.
    durable: Image,
    /// Landed, oldest first, and not durable.
    unflushed: VecDeque<Change>,
    /// Under way.
    in_flight: BTreeMap<u64, Change>,
    next_number: u64,
    /// Number of the session that may write; others were cut, but for [`State::zombie`].
    owner: u32,
    zombie: Option<u32>,
    sessions: u32,
    /// Changes after which the owner is cut.
    cut_after: Option<u64>,
    faults: BTreeMap<Operation, u32>,
    /// Reads that are answered with something else.
    wrong_reads: u32,
    /// Where wrong answers come from.
    older: Option<Image>,
    /// A sync failed in this session: so does every later one, as the contract has it.
    sync_failed: bool,
    /// A sync failed and took with it some of what was not durable.
    cache_lost: bool,
    /// Times that the store did not do what a good one does.
    troubles: u64,
    trace: Trace,
    pub(crate) counts: Counts,
}

/// What a store was asked for.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counts {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Of these, of nothing but zeros: three of a new volume, others ahead of the log.
    pub fills: u64,
    /// Bytes of all writes.
    pub bytes_written: u64,
    /// Syncs.
    pub syncs: u64,
    /// Operations that were made to fail or to lie.
    pub faults: u64,
}

#[derive(Clone)]
struct Change {
    /// Counts landings; 0 while under way.
    landed: u64,
    offset: u64,
    /// `None` is a discard.
    bytes: Option<Arc<[u8]>>,
    len: u64,
    durable: bool,
    /// Of a torn write, the units that arrived.
    kept: Option<Arc<[bool]>>,
}

/// A fingerprint of everything that a store was asked for, in order and with the time.
struct Trace(u64);

impl Trace {
    fn note(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.0 = Dice::new(self.0 ^ number).any();
        }
    }
}

impl Medium {
    pub(crate) fn new(capability: Capability, manners: Manners) -> Arc<Self> {
        let image = Image::default();
        let state = State {
            manners,
            dice: Dice::new(0),
            watch: Watch::default(),
            size: capability.size,
            now: image.clone(),
            durable: image,
            unflushed: VecDeque::new(),
            in_flight: BTreeMap::new(),
            next_number: 1,
            owner: 0,
            zombie: None,
            sessions: 0,
            cut_after: None,
            faults: BTreeMap::new(),
            wrong_reads: 0,
            older: None,
            sync_failed: false,
            cache_lost: false,
            troubles: 0,
            trace: Trace(0),
            counts: Counts::default(),
        };
        Arc::new(Self { capability, started: Instant::now(), state: Mutex::new(state) })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new session, the only one that may write from now on.
    pub(crate) fn session(self: &Arc<Self>) -> Arc<Session> {
        let mut state = self.state();
        state.sessions += 1;
        state.owner = state.sessions;
        state.zombie = None;
        state.faults.clear();
        state.wrong_reads = 0;
        state.sync_failed = false;
        let number = state.owner;
        let State { watch, now, .. } = &mut *state;
        watch.reload(now);
        drop(state);
        Arc::new(Session::new(self.clone(), number))
    }

    /// A new session beside the one that there is, which knows nothing of it.
    pub(crate) fn second_session(self: &Arc<Self>) -> Arc<Session> {
        let first = self.state().owner;
        let session = self.session();
        self.state().zombie = Some(first);
        session
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl State {
    /// Ends every session: nothing that they ask for arrives any more. What they had under way may.
    pub(crate) fn kill(&mut self) {
        self.owner = 0;
        self.zombie = None;
        self.cut_after = None;
        self.faults.clear();
        self.wrong_reads = 0;
        let under_way = std::mem::take(&mut self.in_flight);
        for change in under_way.into_values() {
            let landed = self.dice.below(3);
            if let Some(change) = self.chosen(&change, landed) {
                self.land(change);
            }
        }
    }

    /// Loses what was not flushed, as the dice fall, and all sessions.
    pub(crate) fn lose_power(&mut self) {
        let under_way = std::mem::take(&mut self.in_flight);
        self.kill();
        let mut left = self.durable.clone();
        let all: Vec<Change> = self.unflushed.drain(..).chain(under_way.into_values()).collect();
        let style = self.dice.below(4);
        for change in all {
            let fate = if change.durable && change.landed > 0 {
                1
            } else {
                match style {
                    0 => 0,
                    1 => 1,
                    2 => self.dice.below(2),
                    _ => self.dice.below(3),
                }
            };
            if let Some(change) = self.chosen(&change, fate) {
                change.apply(&mut left);
                if change.kept.is_some() && self.dice.one_in(2) {
                    change.spoil_ends(&mut left);
                }
            }
        }
        self.now = left.clone();
        self.durable = left;
    }

    /// The change as `fate` leaves it: 0 nothing of it, 1 all, 2 some units.
    fn chosen(&mut self, change: &Change, fate: u64) -> Option<Change> {
        match (fate, &change.bytes) {
            (0, _) => None,
            (1, _) | (_, None) => Some(change.clone()),
            (_, Some(bytes)) => {
                let units = bytes.len() / UNIT;
                // Sometimes the write stopped somewhere, sometimes any unit may be missing.
                let end = if self.dice.one_in(2) { self.dice.below(units as u64 + 1) } else { u64::MAX };
                let kept = (0..units as u64).map(|unit| match end {
                    u64::MAX => self.dice.one_in(2),
                    end => unit < end,
                });
                Some(Change { kept: Some(kept.collect()), ..change.clone() })
            }
        }
    }

    /// What is durable now, to come back to.
    pub(crate) fn durable_image(&self) -> Image {
        self.durable.clone()
    }

    /// Puts the whole store back to an earlier state, durably, under whoever uses it.
    pub(crate) fn roll_back(&mut self, image: &Image) {
        self.unflushed.clear();
        self.in_flight.clear();
        self.now = image.clone();
        self.durable = image.clone();
    }

    /// Keeps what is there now, for answering reads wrongly later.
    pub(crate) fn remember(&mut self) {
        self.older = Some(self.now.clone());
    }

    pub(crate) fn fail_next(&mut self, operation: Operation, count: u32) {
        self.faults.insert(operation, count);
    }

    pub(crate) fn answer_wrongly(&mut self, reads: u32) {
        self.wrong_reads = reads;
    }

    /// Cuts the owner at a change to come.
    pub(crate) fn cut_after(&mut self, changes: u64) {
        self.cut_after = Some(changes);
    }

    /// Whether a failed sync lost something since this was asked last.
    pub(crate) fn take_cache_lost(&mut self) -> bool {
        std::mem::take(&mut self.cache_lost)
    }

    /// Whether anything is under way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Whether the owner was cut.
    pub(crate) fn is_cut(&self) -> bool {
        self.owner == 0
    }

    /// Times that the store did something that a good one does not.
    pub(crate) fn troubles(&self) -> u64 {
        self.troubles
    }

    /// Counts what the caller does to the store as trouble.
    pub(crate) fn note_trouble(&mut self) {
        self.troubles += 1;
        self.counts.faults += 1;
    }

    /// The fingerprint so far.
    pub(crate) fn trace(&self) -> u64 {
        self.trace.0
    }

    fn land(&mut self, mut change: Change) {
        self.next_number += 1;
        change.landed = self.next_number;
        change.apply(&mut self.now);
        self.unflushed.push_back(change);
        // A disk that lies writes back all the same, some time.
        if self.manners.lies && self.unflushed.len() > LIES_HELD_MAX {
            let oldest = self.unflushed.front().map_or(0, |change| change.landed);
            self.make_durable(oldest);
        }
    }

    /// Makes everything durable that landed up to that number.
    fn make_durable(&mut self, up_to: u64) {
        while self.unflushed.front().is_some_and(|change| change.landed <= up_to) {
            let Some(change) = self.unflushed.pop_front() else { return };
            change.apply(&mut self.durable);
        }
    }

    /// A sync that failed: the cache has forgotten some of what it held, and reads see that.
    fn lose_cache(&mut self) {
        self.cache_lost = true;
        let held = std::mem::take(&mut self.unflushed);
        self.now = self.durable.clone();
        for change in held {
            let fate = if change.durable { 1 } else { self.dice.below(3) };
            if let Some(change) = self.chosen(&change, fate) {
                change.apply(&mut self.now);
                self.unflushed.push_back(change);
            }
        }
    }

    fn admits(&self, session: u32) -> Result<(), StoreError> {
        if self.owner == session || self.zombie == Some(session) {
            return Ok(());
        }
        Err(StoreError::Unreachable("this session was cut off".into()))
    }

    /// Counts a change and cuts the owner when its time has come.
    fn count_change(&mut self) {
        match &mut self.cut_after {
            Some(0) => {
                self.cut_after = None;
                self.owner = 0;
            }
            Some(left) => *left -= 1,
            None => {}
        }
    }

    fn takes_fault(&mut self, operation: Operation) -> bool {
        let Some(left) = self.faults.get_mut(&operation).filter(|left| **left > 0) else { return false };
        *left -= 1;
        self.note_trouble();
        true
    }
}

impl Change {
    /// The physical blocks that the change begins and ends in hold nothing any more.
    fn spoil_ends(&self, image: &mut Image) {
        for at in [self.offset, self.offset + self.len - 1] {
            image.write(at - at % PHYSICAL_BLOCK, &SPOILED);
        }
    }

    fn apply(&self, image: &mut Image) {
        match (&self.bytes, &self.kept) {
            (None, _) => image.clear(self.offset, self.len),
            (Some(bytes), None) => image.write(self.offset, bytes),
            (Some(bytes), Some(kept)) => {
                let units = (0u64..).zip(bytes.chunks(UNIT)).zip(kept.iter());
                for ((index, unit), _) in units.filter(|(_, kept)| **kept) {
                    image.write(self.offset + index * UNIT as u64, unit);
                }
            }
        }
    }
}
