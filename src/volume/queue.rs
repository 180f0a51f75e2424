//! What waits to be written and what is being written: the state that orders a volume's changes.
//!
//! A *part* waits until it is composed into a *chunk*. Chunks complete in any order, but take
//! effect, and are answered, strictly in log order, because recovery yields a prefix of the log.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use tokio::sync::{Semaphore, oneshot};

use super::delta::Run;
use crate::buffers;
use crate::export::ExportError;
use crate::format::chunk::Op;
use crate::format::root::LogSpan;
use crate::geometry::{Lba, SECTOR_LEN, SectorRange};
use crate::payload::RECORD_LEN;

/// Chunks being written at once (docs/FORMAT.md §8): enough to hide the latency of a store; more would
/// only make groups smaller.
const IN_FLIGHT_MAX: usize = 4;
/// The same for small chunks, which are padded to whole blocks: what comes in while two are being written
/// makes one larger chunk instead of two more.
const SMALL_IN_FLIGHT_MAX: usize = 2;
/// Records from which on padding costs little.
const SMALL_BELOW: usize = 16;

/// Log bytes up to which a flush is small: what a database or a file system commits at once.
const SMALL_FLUSH_BYTES: u64 = 64 << 10;

/// A change on its way into the log.
pub(super) struct Part {
    /// Counts the changes as they come in.
    pub(super) number: u64,
    pub(super) sectors: SectorRange,
    pub(super) op: Op,
    /// Records of a [`Op::Write`], plaintext; empty otherwise.
    pub(super) records: BytesMut,
    pub(super) done: Arc<Completion>,
}

impl Part {
    /// Whether the part needs room for data.
    pub(super) fn brings_data(&self) -> bool {
        self.op == Op::Write
    }

    /// Whether the part stays where it is while data does not fit, behind those at `passed` that stay, too.
    pub(super) fn waits_for_room(&self, passed: &[SectorRange]) -> bool {
        self.brings_data() || passed.iter().any(|earlier| earlier.overlaps(self.sectors))
    }

    /// Plaintext of a sector that this part changes; `None` when it becomes zeros.
    ///
    /// # Panics
    /// When the part does not change the sector.
    pub(super) fn sector(&self, lba: Lba) -> Option<&[u8]> {
        assert!(self.sectors.contains(lba), "the part covers the sector");
        let index = usize::try_from(lba.0 - self.sectors.start.0).expect("a part fits in memory");
        (self.op == Op::Write).then(|| &self.records[index * RECORD_LEN..][..SECTOR_LEN])
    }

    /// Cuts the part behind its first `count` sectors and returns the rest.
    pub(super) fn split_behind(&mut self, count: u64) -> Self {
        let at = usize::try_from(count).expect("a part fits in memory") * RECORD_LEN;
        // Memory that is used again must be whole; a copy of what is left over costs less than new memory.
        let rest = if buffers::is_kept(&self.records) {
            let mut rest = buffers::take(self.records.len() - at);
            rest.copy_from_slice(&self.records[at..]);
            self.records.truncate(at);
            rest
        } else {
            self.records.split_off(at)
        };
        let start = Lba(self.sectors.start.0 + count);
        let sectors = SectorRange::new(start, self.sectors.count - count);
        self.sectors.count = count;
        self.done.one_more();
        Self { number: self.number, sectors, op: self.op, records: rest, done: self.done.clone() }
    }
}

/// Tells a request when all of its parts are in the log, or that one is not.
pub(super) struct Completion(Mutex<CompletionState>);

struct CompletionState {
    parts_left: usize,
    seq: u64,
    error: Option<ExportError>,
    sender: Option<oneshot::Sender<Result<u64, ExportError>>>,
}

impl Completion {
    /// A completion of one part; the receiver yields the number of the last chunk used.
    pub(super) fn new() -> (Arc<Self>, oneshot::Receiver<Result<u64, ExportError>>) {
        let (sender, receiver) = oneshot::channel();
        let state = CompletionState { parts_left: 1, seq: 0, error: None, sender: Some(sender) };
        (Arc::new(Self(Mutex::new(state))), receiver)
    }

    fn one_more(&self) {
        self.state().parts_left += 1;
    }

    /// One part is in the log as part of chunk `seq`, or failed.
    pub(super) fn part_done(&self, result: Result<u64, ExportError>) {
        let mut state = self.state();
        state.parts_left -= 1;
        match result {
            Ok(seq) => state.seq = state.seq.max(seq),
            Err(error) => state.error = Some(error),
        }
        if state.parts_left == 0 {
            let outcome = state.error.take().map_or(Ok(state.seq), Err);
            if let Some(sender) = state.sender.take() {
                // Nobody listens when the client has gone.
                let _ = sender.send(outcome);
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, CompletionState> {
        self.0.lock().expect("no panic while a completion is held")
    }
}

/// A chunk that was composed and is being sealed and written.
pub(super) struct Chunk {
    pub(super) seq: u64,
    /// What the index says once the chunk took effect.
    pub(super) effects: Vec<Run>,
    pub(super) waiters: Vec<Arc<Completion>>,
    pub(super) outcome: Option<Result<LogSpan, ExportError>>,
}

/// A read-merge-write under way: nothing else may change these sectors meanwhile.
pub(super) struct Merge {
    pub(super) id: u64,
    pub(super) sectors: SectorRange,
    /// Closed when it ends.
    pub(super) done: Arc<Semaphore>,
}

/// Whether the log takes changes.
#[derive(Clone, Debug)]
pub(super) enum Health {
    /// It does.
    Good,
    /// A chunk could not be written; the log must be closed before it, by a root, before it goes on.
    NeedsRepair(ExportError),
    /// It takes no more changes until the volume is opened again.
    Stopped(ExportError),
}

/// The queue of one volume.
pub(super) struct Queue {
    pub(super) waiting: VecDeque<Part>,
    /// Number of the next part to come in.
    pub(super) next_number: u64,
    /// A task is about to compose what waits.
    pub(super) committing: bool,
    /// What waits cannot be composed before a root brings new slots.
    pub(super) stalled: bool,
    pub(super) in_flight: VecDeque<Chunk>,
    pub(super) merges: Vec<Merge>,
    pub(super) next_merge_id: u64,
    /// Nothing may change from here on.
    pub(super) end: Lba,
    /// Where the chunk behind the last one that took effect will be found.
    pub(super) completed: LogSpan,
    pub(super) durable_seq: u64,
    pub(super) health: Health,
    /// Log bytes since the last store flush.
    pub(super) unflushed_bytes: u64,
    /// Flushes of clients in a row that had little to make durable.
    pub(super) small_flushes: u32,
    /// Log bytes since the last root.
    pub(super) unrooted_bytes: u64,
    /// Log bytes of earlier sessions that were replayed, and that no root has made superfluous yet.
    pub(super) replayed_bytes: u64,
}

impl Queue {
    pub(super) fn new(completed: LogSpan, end: Lba) -> Self {
        Self {
            waiting: VecDeque::new(),
            next_number: 0,
            committing: false,
            stalled: false,
            in_flight: VecDeque::new(),
            merges: Vec::new(),
            next_merge_id: 0,
            end,
            durable_seq: completed.start_seq - 1,
            completed,
            health: Health::Good,
            unflushed_bytes: 0,
            small_flushes: 0,
            unrooted_bytes: 0,
            replayed_bytes: 0,
        }
    }

    /// Log bytes that the next session would have to replay.
    pub(super) fn unfolded_bytes(&self) -> u64 {
        self.unrooted_bytes + self.replayed_bytes
    }

    /// A client flushes.
    pub(super) fn note_flush(&mut self) {
        self.small_flushes = match self.unflushed_bytes {
            // Tells nothing; another client may have flushed just now.
            0 => self.small_flushes,
            1..=SMALL_FLUSH_BYTES => self.small_flushes.saturating_add(1),
            _ => 0,
        };
    }

    /// Number of the last chunk that took effect.
    pub(super) fn completed_seq(&self) -> u64 {
        self.completed.start_seq - 1
    }

    /// Whether the volume is being closed and its last chunk has taken effect.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.health, Health::Stopped(ExportError::ShuttingDown)) && self.in_flight.is_empty()
    }

    /// The read-merge-write that a change of `sectors` must wait for.
    pub(super) fn merge_over(&self, sectors: SectorRange) -> Option<Arc<Semaphore>> {
        self.merges.iter().find(|m| m.sectors.overlaps(sectors)).map(|m| m.done.clone())
    }

    /// Whether a chunk being written changes any of `sectors`.
    pub(super) fn in_flight_over(&self, sectors: SectorRange) -> bool {
        self.in_flight.iter().any(|chunk| chunk.effects.iter().any(|run| run.sectors.overlaps(sectors)))
    }

    /// Whether the caller is to start a commit of what waits.
    pub(super) fn becomes_committer(&mut self) -> bool {
        let now = !self.committing
            && !self.stalled
            && !self.waiting.is_empty()
            && self.takes_another()
            && matches!(self.health, Health::Good);
        self.committing |= now;
        now
    }

    /// Whether a chunk of what waits may be written beside those that are.
    pub(super) fn takes_another(&self) -> bool {
        let records = || self.waiting.iter().take(SMALL_BELOW).map(|part| part.records.len() / RECORD_LEN);
        self.in_flight.len() < SMALL_IN_FLIGHT_MAX
            || self.in_flight.len() < IN_FLIGHT_MAX && records().sum::<usize>() >= SMALL_BELOW
    }

    /// Takes everything that waits, to be told of a failure.
    pub(super) fn drain_waiting(&mut self) -> Vec<Arc<Completion>> {
        self.stalled = false;
        self.waiting.drain(..).map(|part| part.done).collect()
    }

    /// Adds a part behind those that wait.
    pub(super) fn push(&mut self, sectors: SectorRange, op: Op, records: BytesMut, done: Arc<Completion>) {
        self.waiting.push_back(Part { number: self.next_number, sectors, op, records, done });
        self.next_number += 1;
    }

    /// Takes what came in before number `before` and is `refused`, to be told that there is no room.
    pub(super) fn drain_before(
        &mut self,
        before: u64,
        refused: impl Fn(&Part) -> bool,
    ) -> Vec<Arc<Completion>> {
        let takes = |part: &Part| part.number < before && refused(part);
        let (taken, left) = self.waiting.drain(..).partition::<VecDeque<_>, _>(takes);
        self.waiting = left;
        taken.into_iter().map(|part| part.done).collect()
    }

    /// Whether something waits that needs no room for data and may go in front of what does: it overlaps
    /// none of it, for a part may hold bytes of its sectors that were there before.
    pub(super) fn goes_without_room(&self) -> bool {
        let mut passed: Vec<SectorRange> = Vec::new();
        for part in &self.waiting {
            if !part.waits_for_room(&passed) {
                return true;
            }
            passed.push(part.sectors);
        }
        false
    }

    /// Stops the log for good; the first reason stays, unless it is that the volume was closed.
    pub(super) fn stop(&mut self, reason: ExportError) {
        if !matches!(&self.health, Health::Stopped(error) if *error != ExportError::ShuttingDown) {
            self.health = Health::Stopped(reason);
        }
    }
}
