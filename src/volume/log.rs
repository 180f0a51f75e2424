//! Group commit: from waiting parts to a chunk on the store (docs/FORMAT.md §8).
//!
//! A request that finds nothing being composed starts a *commit*, a task of its own: by the time that it runs,
//! everything that arrived together with the request waits beside it. It composes one chunk, seals and writes
//! it. When four chunks are being written, what arrives waits and forms the next, larger one. There are no timers.
//!
//! Offsets are assigned and the small chunk header is sealed under the tail's lock, since each
//! header holds the tag of the one before; records are sealed and I/O is done outside every lock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::chunk_io::UnsealedChunk;
use super::delta::Run;
use super::error::store_to_export;
use super::maintain::DELTA_RUNS_MAX;
use super::queue::{Chunk, Completion, Health, Part};
use super::tail::{OpenLog, Tail};
use super::{Core, VolumeError};
use crate::export::ExportError;
use crate::format::chunk::{ChunkHeader, ChunkLayout, ENTRIES_MAX, Entry, Op, RECORDS_MAX};
use crate::format::page::Loc;
use crate::format::root::LogSpan;
use crate::format::segment::PHYSICAL_BLOCK;
use crate::geometry::{Lba, SectorRange};
use crate::payload::RECORD_LEN;

/// Messages that may be sealed under one DEK (docs/FORMAT.md §3): 2^50 at an advantage of 2^-50.
const MESSAGES_MAX: u64 = 1 << 50;

/// A chunk whose place, number and header are fixed.
struct Composed {
    seq: u64,
    /// Where it goes on the store.
    at: u64,
    chunk: UnsealedChunk,
    /// Where the chunk behind this one will be found.
    end: LogSpan,
}

impl Core {
    /// Starts a task that composes, seals, writes and completes one chunk of what waits. Whoever calls this has seen
    /// that it [is to](super::queue::Queue::becomes_committer).
    pub(super) fn spawn_commit(self: &Arc<Self>) {
        let core = self.clone();
        tokio::spawn(async move {
            let Some(composed) = core.compose() else { return };
            let Composed { seq, at, chunk, end } = composed;
            let mut guard = Uncommitted { core: &core, seq, armed: true };
            let result = core.write_chunk(at, chunk).await;
            guard.armed = false;
            core.complete(seq, result.map(|()| end));
        });
    }

    fn compose(self: &Arc<Self>) -> Option<Composed> {
        let mut tail = self.tail();
        // Asked once, before a new segment is opened: opening it takes a slot of those counted.
        let data_fits = self.writers_have_room();
        match self.make_room(&mut tail, data_fits) {
            Ok(true) => {}
            Ok(false) => {
                let mut queue = self.queue();
                queue.committing = false;
                queue.stalled = true;
                self.wake.notify_one();
                return None;
            }
            Err(error) => {
                let waiters = {
                    let mut queue = self.queue();
                    queue.committing = false;
                    queue.drain_waiting()
                };
                waiters.iter().for_each(|done| done.part_done(Err(error.to_export())));
                return None;
            }
        }
        let Tail { current, next_seq, chain, .. } = &mut *tail;
        let open = current.as_mut().expect("make_room opened a segment");
        let mut queue = self.queue();
        queue.committing = false;
        if !matches!(queue.health, Health::Good) || !queue.takes_another() {
            return None;
        }
        let parts = take_parts(&mut queue.waiting, open.key.remaining(), self.align(), data_fits);
        if parts.is_empty() {
            queue.stalled = !queue.waiting.is_empty();
            self.wake.notify_one();
            return None;
        }
        let seq = *next_seq;
        let plan = Plan::new(&parts, self.align());
        let mut range = open.key.reserve(plan.layout.chunk_len as u64).expect("take_parts kept to the room");
        let offset = range.offset();
        let effects = plan.effects(open.handle, offset);
        let waiters = parts.iter().map(|part| part.done.clone()).collect();
        queue.in_flight.push_back(Chunk { seq, effects, waiters, outcome: None });
        let durable_seq = queue.durable_seq;
        if queue.becomes_committer() {
            self.spawn_commit();
        }
        drop(queue);
        let header = ChunkHeader { chain: *chain, durable_seq, entries: plan.entries };
        let head_place = range.split_front(plan.layout.records_offset as u64);
        let (head, tag) = header.seal(seq, plan.record_count, self.align(), head_place);
        *chain = tag;
        *next_seq += 1;
        self.count_sealed(1 + plan.record_count as u64);
        let records = parts
            .into_iter()
            .filter(|part| part.op == Op::Write)
            .map(|part| {
                let place = range.split_front(part.records.len() as u64);
                (part.sectors.start, part.records, place)
            })
            .collect();
        let segment_header = open.header.take();
        let before = segment_header.as_ref().map_or(0, Vec::len) as u64;
        let end_offset = offset + plan.layout.chunk_len as u64;
        Some(Composed {
            seq,
            at: open.phys + offset - before,
            chunk: UnsealedChunk { segment_header, head, records, padding: plan.padding },
            end: self.span_behind(open, end_offset, seq + 1, tag),
        })
    }

    fn span_behind(&self, open: &OpenLog, offset: u64, seq: u64, chain: [u8; 16]) -> LogSpan {
        LogSpan {
            handle: open.handle,
            uid: open.uid,
            phys: open.phys,
            epoch: self.header().active_epoch,
            start_offset: u32::try_from(offset).expect("segments are at most 64 MiB"),
            start_seq: seq,
            chain,
            end_offset: None,
        }
    }

    /// Makes sure that the current segment takes at least one record. `false`: no slot is left.
    fn make_room(&self, tail: &mut Tail, data_fits: bool) -> Result<bool, VolumeError> {
        if self.counters.sealed_messages.load(Ordering::Relaxed) >= MESSAGES_MAX {
            return Err(VolumeError::Stopped("the key has sealed as much as it may; re-encrypt".into()));
        }
        if self.map().active.len() >= DELTA_RUNS_MAX {
            return Ok(false);
        }
        // Giving space back must work when there is none: only data stays out of the last slots.
        if !data_fits && !self.queue().goes_without_room() {
            return Ok(false);
        }
        let new_block = std::mem::take(&mut tail.new_block);
        if let Some(open) = tail.current.as_mut().filter(|_| new_block) {
            open.key.skip_to_multiple(PHYSICAL_BLOCK);
        }
        if self.segment_has_room(tail) {
            return Ok(true);
        }
        self.rotate(tail)
    }

    /// Whether the segment being filled takes a chunk of one record.
    pub(super) fn segment_has_room(&self, tail: &Tail) -> bool {
        let least = ChunkLayout::new(1, 1, self.align()).chunk_len as u64;
        tail.current.as_ref().is_some_and(|open| open.key.remaining() >= least)
    }

    async fn write_chunk(&self, at: u64, chunk: UnsealedChunk) -> Result<(), ExportError> {
        let bytes = chunk.write(&*self.store, at).await.map_err(|error| store_to_export(&error))?;
        self.counters.log_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.counters.chunks.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Records how the writing of chunk `seq` ended, and lets every chunk take effect whose turn it is.
    fn complete(self: &Arc<Self>, seq: u64, outcome: Result<LogSpan, ExportError>) {
        let mut answers: Vec<(Arc<Completion>, Result<u64, ExportError>)> = Vec::new();
        let mut queue = self.queue();
        if let Some(chunk) = queue.in_flight.iter_mut().find(|chunk| chunk.seq == seq) {
            chunk.outcome = Some(outcome);
        }
        while queue.in_flight.front().is_some_and(|chunk| chunk.outcome.is_some()) {
            let Some(Chunk { seq, effects, waiters, outcome: Some(outcome) }) = queue.in_flight.pop_front()
            else {
                break;
            };
            // A chunk behind one that failed is not part of the log: recovery would not reach it.
            let outcome = match &queue.health {
                Health::Good => outcome,
                Health::NeedsRepair(error) | Health::Stopped(error) => Err(error.clone()),
            };
            let answer = match outcome {
                Ok(end) => {
                    let same = end.handle == queue.completed.handle;
                    let before = if same { queue.completed.start_offset } else { 0 };
                    let bytes = u64::from(end.start_offset - before);
                    queue.unflushed_bytes += bytes;
                    queue.unrooted_bytes += bytes;
                    queue.completed = end;
                    self.segments.table_mut().set_bytes(end.handle, end.start_offset);
                    let mut map = self.map_mut();
                    effects.into_iter().for_each(|run| map.active.insert(run));
                    Ok(seq)
                }
                Err(error) => {
                    if matches!(queue.health, Health::Good) {
                        queue.health = Health::NeedsRepair(error.clone());
                    }
                    Err(error)
                }
            };
            answers.extend(waiters.into_iter().map(|done| (done, answer.clone())));
        }
        if let Health::NeedsRepair(error) | Health::Stopped(error) = queue.health.clone() {
            answers.extend(queue.drain_waiting().into_iter().map(|done| (done, Err(error.clone()))));
            self.wake.notify_one();
        }
        if queue.becomes_committer() {
            self.spawn_commit();
        }
        let maintain = self.needs_maintenance(&queue);
        drop(queue);
        self.progress.notify_waiters();
        if maintain {
            self.wake.notify_one();
        }
        for (done, answer) in answers {
            done.part_done(answer);
        }
    }
}

/// Makes a chunk count as failed when its task is dropped, or panics, before it ends; the log is repaired then
/// before it goes on.
struct Uncommitted<'a> {
    core: &'a Arc<Core>,
    seq: u64,
    armed: bool,
}

impl Drop for Uncommitted<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.core.complete(self.seq, Err(ExportError::Io("a write was abandoned half-way".into())));
        }
    }
}

/// Takes as many parts as one chunk in `room` bytes holds; the last may be cut. Where data does not fit,
/// the others go in front of it as far as they may ([`Part::waits_for_room`]).
fn take_parts(waiting: &mut VecDeque<Part>, room: u64, align: usize, data_fits: bool) -> Vec<Part> {
    let room = usize::try_from(room).expect("segments are at most 64 MiB");
    let mut taken: Vec<Part> = Vec::new();
    let mut records = 0;
    let mut next = 0;
    let mut passed: Vec<SectorRange> = Vec::new();
    while let Some(part) = waiting.get_mut(next) {
        let wanted = part.records.len() / RECORD_LEN;
        let entries = taken.len() + 1;
        if entries > ENTRIES_MAX {
            break;
        }
        if !data_fits && part.waits_for_room(&passed) {
            passed.push(part.sectors);
            next += 1;
            continue;
        }
        let fits = |count| count <= RECORDS_MAX && ChunkLayout::new(entries, count, align).chunk_len <= room;
        if !fits(records + wanted) {
            let possible = (1..=wanted).take_while(|extra| fits(records + extra)).count();
            // Cutting is for parts that no chunk holds whole, or for the end of a segment.
            let worth_cutting = possible > 0 && (taken.is_empty() || room < RECORDS_MAX * RECORD_LEN);
            if worth_cutting {
                let rest = part.split_behind(possible as u64);
                taken.push(std::mem::replace(part, rest));
            }
            break;
        }
        records += wanted;
        taken.extend(waiting.remove(next));
    }
    taken
}

/// Where everything of a chunk goes.
struct Plan {
    entries: Vec<Entry>,
    record_count: usize,
    layout: ChunkLayout,
    padding: usize,
}

impl Plan {
    fn new(parts: &[Part], align: usize) -> Self {
        let mut record_count = 0;
        let mut entries = Vec::with_capacity(parts.len());
        for part in parts {
            let rec =
                if part.op == Op::Write { u32::try_from(record_count).expect("at most 256") } else { 0 };
            entries.push(Entry { sectors: part.sectors, op: part.op, rec });
            record_count += part.records.len() / RECORD_LEN;
        }
        let layout = ChunkLayout::new(entries.len(), record_count, align);
        let padding = layout.chunk_len - layout.records_offset - record_count * RECORD_LEN;
        Self { entries, record_count, layout, padding }
    }

    /// What the index says once the chunk at `offset` of the segment took effect.
    fn effects(&self, handle: u32, offset: u64) -> Vec<Run> {
        effects(&self.entries, &self.layout, handle, offset)
    }
}

/// What the entries of the chunk at `offset` of segment `handle` do to the index, in order.
pub(super) fn effects(entries: &[Entry], layout: &ChunkLayout, handle: u32, offset: u64) -> Vec<Run> {
    entries
        .iter()
        .map(|Entry { sectors, op, rec }| Run {
            sectors: *sectors,
            loc: match op {
                Op::Write => Loc::record(handle, offset + layout.record_offset(*rec) as u64),
                Op::Zero => Loc::ZERO,
                Op::Trim => Loc::HOLE,
            },
        })
        .collect()
}

/// A sector range cut into pieces that an entry's 32-bit length holds.
pub(super) fn entry_pieces(sectors: SectorRange) -> impl Iterator<Item = SectorRange> {
    let max = u64::from(u32::MAX);
    (0..sectors.count.div_ceil(max)).map(move |i| {
        let start = i * max;
        SectorRange::new(Lba(sectors.start.0 + start), max.min(sectors.count - start))
    })
}
