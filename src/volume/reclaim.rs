//! Getting space back from segments that are live only in part: what is live moves to the end of the
//! log, and the next root frees the segment.
//!
//! A move is a read-merge-write that changes nothing: nobody else may change the sectors while it is put
//! into the log, and it goes in front of every change that already waits, so a newer write can never be
//! undone by it. Replay needs no rule of its own.
//! Moves are collected into full chunks, so that what was written in small pieces takes less room.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::sync::Semaphore;

use super::delta::Run;
use super::io::read_store;
use super::log::effects;
use super::queue::{Completion, Health, Merge, Part, Queue};
use super::write::MergeGuard;
use super::{Core, VolumeError};
use crate::cipher::SegmentKey;
use crate::export::ExportError;
use crate::format::FormatError;
use crate::format::chunk::{ChunkHeader, ChunkPrefix, Op, PREFIX_LEN, RECORDS_MAX};
use crate::format::page::Handle;
use crate::format::segment::{SEGMENT_HEADER_LEN, SegmentKind};
use crate::format::table::{Row, SegmentState};
use crate::geometry::{Lba, SECTOR_LEN, SectorRange};
use crate::payload::RECORD_LEN;

/// Segments emptied before a root frees them, when there is room for what was live in them.
const VICTIMS_MAX: usize = 16;
/// A segment that is fuller than this is not worth moving, in parts of its size.
const WORTH_BELOW: (u64, u64) = (15, 16);
/// Sectors moved at once: a full chunk. Smaller ones would need as much room as they give back, since
/// what a client wrote sector by sector fills a segment only to the half.
const MOVED_AT_ONCE: u64 = RECORDS_MAX as u64;

/// Live sectors on their way out of a segment, opened.
#[derive(Default)]
struct Batch {
    moves: Vec<(Run, BytesMut)>,
    sectors: u64,
}

impl Core {
    /// Whether less than a fifth of the slots is in no use (docs/FORMAT.md §11).
    pub(super) fn space_is_low(&self) -> bool {
        let table = self.segments.table();
        let unused = table.free_slots() + table.available_slots() as u64 + table.freed_slots() as u64;
        unused < self.header.slots / 5
    }

    /// Moves what is live in the emptiest segments. Returns the number of sectors moved; 0 when
    /// nothing is worth it or there is no room to move it to. The next root frees what is empty then.
    ///
    /// # Errors
    /// When the log does not take what is moved. A segment that cannot be read is left alone.
    pub(super) async fn reclaim(self: &Arc<Self>) -> Result<u64, VolumeError> {
        let mut batch = Batch::default();
        let mut moved = 0;
        let outcome = self.empty_segments(&mut batch, &mut moved).await;
        match outcome {
            Ok(()) | Err(VolumeError::NoSpace) => Ok(moved),
            Err(error) => Err(error),
        }
    }

    async fn empty_segments(self: &Arc<Self>, batch: &mut Batch, moved: &mut u64) -> Result<(), VolumeError> {
        let mut emptied = 0;
        // What moves needs slots before any comes back, and the segment behind the last must have one.
        let victims_max = self.segments.table().available_slots().saturating_sub(1).clamp(1, VICTIMS_MAX);
        for (handle, row) in self.victims() {
            let moves = match self.live_of(handle, &row).await {
                Ok(moves) => moves,
                // Damage does not get better by moving it; its sectors say so when they are read.
                Err(VolumeError::Damaged { .. } | VolumeError::Inconsistent(_)) => continue,
                Err(error) => return Err(error),
            };
            // All or nothing: what is left behind would keep the segment, and the rest moved for nothing.
            if self.any_busy(&moves) {
                continue;
            }
            for (run, records) in moves {
                batch.sectors += run.sectors.count;
                batch.moves.push((run, records));
                if batch.sectors >= MOVED_AT_ONCE {
                    self.relocate(batch, moved).await?;
                }
            }
            emptied += 1;
            if emptied == victims_max {
                break;
            }
        }
        self.relocate(batch, moved).await
    }

    /// Whether any of these sectors is being changed right now.
    fn any_busy(&self, moves: &[(Run, BytesMut)]) -> bool {
        let queue = self.queue();
        moves.iter().any(|(run, _)| is_busy(&queue, run.sectors))
    }

    fn victims(&self) -> Vec<(Handle, Row)> {
        let in_log: HashSet<Handle> = self.tail().segments.iter().copied().collect();
        let segment = u64::from(self.header.segment_bytes);
        let table = self.segments.table();
        let mut found: Vec<(Handle, Row)> = table
            .rows()
            .filter(|(handle, row)| {
                row.kind == SegmentKind::Log
                    && row.state == SegmentState::Closed
                    && row.live > 0
                    && u64::from(row.live) * WORTH_BELOW.1 < segment * WORTH_BELOW.0
                    && !in_log.contains(handle)
            })
            .map(|(handle, row)| (handle, *row))
            .collect();
        found.sort_by_key(|(_, row)| row.live);
        found
    }

    /// What the index still finds in a segment, opened.
    async fn live_of(&self, handle: Handle, row: &Row) -> Result<Vec<(Run, BytesMut)>, VolumeError> {
        let len = usize::try_from(row.bytes).expect("segments are at most 64 MiB");
        let bytes = read_store(&*self.store, row.phys, len).await?;
        let key = self.segments.key(row.kind, row.uid);
        let mut moves = Vec::new();
        let mut offset = SEGMENT_HEADER_LEN;
        while let Some(prefix) = bytes.get(offset..).and_then(|rest| rest.first_chunk::<PREFIX_LEN>()) {
            let room = (bytes.len() - offset) as u64;
            let Ok(prefix) = ChunkPrefix::decode(prefix, self.align(), room) else { break };
            let (header, _) = ChunkHeader::open(&prefix, &key, offset as u64, &bytes[offset..])
                .map_err(|source| VolumeError::damaged("chunk", row.phys + offset as u64, source))?;
            let layout = prefix.layout(self.align());
            for run in effects(&header.entries, &layout, handle, offset as u64) {
                if run.loc.handle().is_none() {
                    continue;
                }
                for live in self.still_there(run).await? {
                    moves.push((live, open_records(&key, row.phys, live, &bytes)?));
                }
            }
            offset += prefix.chunk_bytes as usize;
        }
        Ok(moves)
    }

    /// Puts those sectors of a batch into the log that still lie where they were read.
    async fn relocate(self: &Arc<Self>, batch: &mut Batch, moved: &mut u64) -> Result<(), VolumeError> {
        let Batch { moves, .. } = std::mem::take(batch);
        let mut guards = Vec::with_capacity(moves.len());
        let mut receivers = Vec::with_capacity(moves.len());
        let mut parts = Vec::with_capacity(moves.len());
        let mut sectors = 0;
        for (run, mut records) in moves {
            let Some(guard) = self.hold(run.sectors) else { continue };
            guards.push(guard);
            // Looked up again now that nobody can change it.
            let mut at = run.sectors.start;
            for still in self.still_there(run).await? {
                let count = |sectors: u64| usize::try_from(sectors).expect("a chunk") * RECORD_LEN;
                let _gone = records.split_to(count(still.sectors.start.0 - at.0));
                let records = records.split_to(count(still.sectors.count));
                at = still.sectors.end();
                sectors += still.sectors.count;
                let (done, receiver) = Completion::new();
                parts.push(Part { sectors: still.sectors, op: Op::Write, records, done, reclaims: true });
                receivers.push(receiver);
            }
        }
        if parts.is_empty() {
            return Ok(());
        }
        let leader = {
            let mut queue = self.queue();
            if let Health::NeedsRepair(error) | Health::Stopped(error) = &queue.health {
                return Err(VolumeError::Stopped(error.to_string()));
            }
            // First in line: what waits for space must not wait in front of what makes space.
            parts.into_iter().rev().for_each(|part| queue.waiting.push_front(part));
            queue.stalled = false;
            queue.becomes_leader()
        };
        drop(guards);
        if leader {
            self.commit().await;
        }
        for receiver in receivers {
            match receiver.await {
                Ok(Ok(_)) => {}
                Ok(Err(ExportError::NoSpace(_))) => return Err(VolumeError::NoSpace),
                Ok(Err(error)) => return Err(VolumeError::Stopped(error.to_string())),
                Err(_) => return Err(VolumeError::Stopped("the log lost a move".into())),
            }
        }
        *moved += sectors;
        Ok(())
    }

    /// Keeps everybody else off the sectors; `None` when somebody is already changing them, which makes
    /// moving them pointless.
    fn hold(&self, sectors: SectorRange) -> Option<MergeGuard<'_>> {
        let mut queue = self.queue();
        if is_busy(&queue, sectors) {
            return None;
        }
        let id = queue.next_merge_id;
        queue.next_merge_id += 1;
        let done = Arc::new(Semaphore::new(0));
        queue.merges.push(Merge { id, sectors, done: done.clone() });
        Some(MergeGuard::new(self, id, done))
    }

    /// The parts of `run` that the index still finds there.
    async fn still_there(&self, run: Run) -> Result<Vec<Run>, VolumeError> {
        let mut found: Vec<Run> = Vec::new();
        let mut at = run.sectors.start;
        let (newer, tree, _guard) = self.resolve(run.sectors);
        for (sectors, loc) in newer {
            while at < sectors.end() {
                let left = SectorRange::new(at, sectors.end().0 - at.0);
                let current = match loc {
                    Some(loc) => Run { sectors, loc }.clip(left).expect("inside"),
                    None => self.pages.run_at(&self.segments, &tree, at, left.count).await?,
                };
                let here = run.clip(current.sectors).expect("inside the run");
                if here.loc == current.loc {
                    found.push(here);
                }
                at = current.sectors.end();
            }
        }
        Ok(found)
    }
}

/// Opens the records of `run`, which lie in `segment`.
fn open_records(key: &SegmentKey, phys: u64, run: Run, segment: &[u8]) -> Result<BytesMut, VolumeError> {
    let mut records = BytesMut::zeroed(usize::try_from(run.sectors.count).expect("a chunk") * RECORD_LEN);
    for (i, record) in (0u64..).zip(records.chunks_exact_mut(RECORD_LEN)) {
        let at = run.loc.step(i).offset();
        let lba = Lba(run.sectors.start.0 + i);
        let index = usize::try_from(at).expect("segments are at most 64 MiB");
        let sealed = segment.get(index..index + RECORD_LEN).ok_or_else(|| {
            VolumeError::Inconsistent("a record lies behind what was written of its segment".into())
        })?;
        key.open_record(at, lba, sealed, &mut record[..SECTOR_LEN])
            .map_err(|_| VolumeError::damaged("sector", phys + at, FormatError::Authentication("sector")))?;
    }
    Ok(records)
}

/// Whether a chunk being written, or a read-merge-write, changes any of the sectors. A change that only
/// waits does not count: a move goes in front of it, so it stays the newer one.
fn is_busy(queue: &Queue, sectors: SectorRange) -> bool {
    queue.merge_over(sectors).is_some() || queue.in_flight_over(sectors)
}
