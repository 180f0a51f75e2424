//! Getting space back from segments that are live only in part (docs/FORMAT.md §11): what is live in them
//! moves to the cold stream, and the root of the next checkpoint frees them.
//!
//! A batch chooses segments by what emptying them gains, collects from their chunk headers what might be
//! live, and sorts it by sector. Then, one chunk a step: what the index still finds in its old place is read,
//! authenticated and sealed anew. Nobody is kept from the sectors meanwhile: the checkpoint lets a move
//! take effect only where no client has written since.

use std::collections::HashSet;

use bytes::BytesMut;
use futures_util::stream::{self, StreamExt};

use super::cold::{ColdStream, Move};
use super::delta::Run;
use super::segments::ReadGuard;
use super::tree::{LEAVES_AT_ONCE, page_sectors};
use super::{Core, VolumeError};
use crate::cipher::Uid;
use crate::format::FormatError;
use crate::format::chunk::{ChunkLayout, ENTRIES_MAX, RECORDS_MAX};
use crate::format::page::Handle;
use crate::format::segment::{SEGMENT_HEADER_LEN, SegmentKind};
use crate::format::table::{Row, SegmentState};
use crate::geometry::{Lba, SECTOR_LEN, SectorRange};
use crate::payload::RECORD_LEN;

/// Segments emptied by one batch: with fewer, the pages that a checkpoint writes for their sake cost more
/// than they give.
const VICTIMS_MAX: usize = 64;
/// Sectors moved by one batch: bounds its memory at about 4 MiB.
const SECTORS_MAX: u64 = 64 << 10;
/// A segment that is fuller than this is not worth moving, in parts of its size.
const WORTH_BELOW: (u64, u64) = (15, 16);
/// Reads of live sectors under way at once: hides the latency of a remote store.
const READS_AT_ONCE: usize = 64;
/// Segments whose chunk headers are read at once, one behind the other in each.
const SEGMENTS_READ_AT_ONCE: usize = 16;

/// The moving of live sectors, a step at a time.
#[derive(Default)]
pub(super) struct Reclaimer {
    cold: ColdStream,
    batch: Option<Batch>,
    /// Segments that could not be read. Damage does not get better by moving it; its sectors say so
    /// when they are read.
    damaged: HashSet<Uid>,
}

/// Segments that are being emptied.
struct Batch {
    /// What may be live in them, by sector, not looked at yet; last first.
    candidates: Vec<Run>,
    total: usize,
    /// Slots that moving takes in all, and those left to writers beside it.
    moves: u64,
    beside: u64,
    /// No slot that was freed since is used again, so that a place stays what it was.
    guard: ReadGuard,
}

/// What a step came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// There is more to do.
    Going,
    /// The batch is at its end: a checkpoint frees what was emptied.
    Finished,
    /// No segment is worth emptying.
    Nothing,
}

impl Reclaimer {
    /// Whether a batch is under way.
    pub(super) fn is_going(&self) -> bool {
        self.batch.is_some()
    }

    /// Moves one chunk of what is live in the segments of the batch; begins a batch when there is none.
    ///
    /// # Errors
    /// The store's, and [`VolumeError::NoSpace`] when there is no slot to move to. The batch is over then;
    /// what was moved counts all the same.
    pub(super) async fn step(&mut self, core: &Core) -> Result<Step, VolumeError> {
        if self.batch.is_none() {
            if core.moves().wait_for_checkpoint() {
                return Ok(Step::Finished);
            }
            let Some(batch) = self.begin(core).await? else { return Ok(Step::Nothing) };
            self.batch = Some(batch);
        }
        if self.takes_from_checkpoints(core) {
            self.give_up(core);
            return Ok(Step::Finished);
        }
        let moved = self.move_chunk(core).await;
        let left = self.batch.as_ref().map_or(0, |batch| batch.candidates.len());
        if moved.is_err() || left == 0 {
            self.give_up(core);
        }
        moved.map(|()| if left == 0 { Step::Finished } else { Step::Going })
    }

    /// Whether the next chunk would take a slot that the checkpoints need which free what was emptied so far: what
    /// a batch fills is an estimate, and checkpoints may have come in between.
    fn takes_from_checkpoints(&self, core: &Core) -> bool {
        let has_moved = self.batch.as_ref().is_some_and(|batch| batch.candidates.len() < batch.total);
        has_moved && self.cold.wants_segment(core) && !core.has_room_for_moves()
    }

    /// Ends the batch; what was moved counts.
    pub(super) fn give_up(&mut self, core: &Core) {
        self.batch = None;
        core.room.keep_from_writers(0);
    }

    async fn begin(&mut self, core: &Core) -> Result<Option<Batch>, VolumeError> {
        let guard = core.segments.table().guard();
        let slots = core.room_for_moves();
        let sectors_max = SECTORS_MAX.min(slots * core.sectors_per_cold_segment());
        let (mut candidates, sectors) = loop {
            let known_damaged = self.damaged.len();
            let (candidates, sectors) = self.candidates(core, sectors_max).await?;
            if candidates.is_empty() && self.damaged.len() > known_damaged {
                // Nothing but segments that cannot be read: others come after them.
                continue;
            }
            if candidates.is_empty() {
                return Ok(None);
            }
            break (candidates, sectors);
        };
        candidates.sort_unstable_by_key(|run| std::cmp::Reverse(run.sectors.start));
        let total = candidates.len();
        let moves = sectors.div_ceil(core.sectors_per_cold_segment());
        Ok(Some(Batch { candidates, total, moves, beside: core.room_beside(moves), guard }))
    }

    /// What may be live in the segments that are best emptied, and how many sectors are. No more are chosen than have
    /// `sectors_max` live sectors together, and always one.
    async fn candidates(&mut self, core: &Core, sectors_max: u64) -> Result<(Vec<Run>, u64), VolumeError> {
        let live = |row: &Row| u64::from(row.live) / RECORD_LEN as u64;
        let mut chosen = Vec::new();
        let mut sectors = 0;
        for (handle, row) in core.victims(&self.damaged).into_iter().take(VICTIMS_MAX) {
            if !chosen.is_empty() && sectors + live(&row) > sectors_max {
                break;
            }
            sectors += live(&row);
            chosen.push((handle, row));
        }
        let mut written = stream::iter(chosen)
            .map(|(handle, row)| async move { (row, core.written_in(handle, &row).await) })
            .buffered(SEGMENTS_READ_AT_ONCE);
        let (mut candidates, mut sectors) = (Vec::new(), 0);
        while let Some((row, written)) = written.next().await {
            match written {
                Ok(mut runs) => {
                    candidates.append(&mut runs);
                    sectors += live(&row);
                }
                Err(VolumeError::Damaged { .. } | VolumeError::Inconsistent(_)) => {
                    self.damaged.insert(row.uid);
                }
                Err(error) => return Err(error),
            }
        }
        Ok((candidates, sectors))
    }

    async fn move_chunk(&mut self, core: &Core) -> Result<(), VolumeError> {
        let Some(batch) = &mut self.batch else { return Ok(()) };
        let room = self.cold.room(core)? as u64;
        let mut runs: Vec<Run> = Vec::new();
        let mut sectors = 0;
        while sectors < room {
            let looked_at = batch.next(room - sectors);
            if looked_at.is_empty() {
                break;
            }
            core.fetch_leaves_of(&looked_at).await;
            for run in looked_at {
                for live in core.still_there(run).await? {
                    sectors += live.sectors.count;
                    runs.push(live);
                }
            }
        }
        core.room.keep_from_writers(batch.kept());
        let guard = batch.guard.clone();
        let read: Vec<(Run, Result<BytesMut, VolumeError>)> = stream::iter(runs)
            .map(|run| async move { (run, core.open_run(run).await) })
            .buffered(READS_AT_ONCE)
            .collect()
            .await;
        let mut records = Vec::with_capacity(read.len());
        let mut old = Vec::with_capacity(read.len());
        for (run, opened) in read {
            match opened {
                Ok(data) => {
                    records.push((run.sectors, data));
                    old.push(run);
                }
                Err(VolumeError::Damaged { .. } | VolumeError::Inconsistent(_)) => {
                    let handle = run.loc.handle().expect("only records are moved");
                    self.damaged.extend(core.segments.table().row(handle).map(|row| row.uid));
                }
                Err(error) => return Err(error),
            }
        }
        if records.is_empty() {
            return Ok(());
        }
        let new = self.cold.append(core, records).await?;
        let mut moves = core.moves();
        moves.moves.extend(old.iter().zip(new).map(|(run, new)| Move {
            sectors: run.sectors,
            old: run.loc,
            new,
        }));
        if moves.guards.is_empty() {
            moves.guards.push(guard);
        }
        Ok(())
    }
}

impl Batch {
    /// Takes the candidates that come next: at most `sectors_max` sectors, in no more leaves than are fetched together.
    fn next(&mut self, sectors_max: u64) -> Vec<Run> {
        let mut taken = Vec::new();
        let mut left = sectors_max;
        while left > 0 && taken.len() < LEAVES_AT_ONCE {
            let Some(run) = self.candidates.pop() else { break };
            let (now, later) = run.split(left);
            self.candidates.extend(later);
            left -= now.sectors.count;
            taken.push(now);
        }
        taken
    }

    /// Slots that writers must leave alone: those still to be filled, and of the others a part. When the
    /// batch ends half of theirs is left, for the time until the roots behind it are written.
    fn kept(&self) -> u64 {
        let (left, total) = (self.candidates.len() as u64, self.total.max(1) as u64);
        (self.moves * left).div_ceil(total) + self.beside * (total + left) / (2 * total)
    }
}

impl Core {
    /// Sectors that a cold segment holds, about.
    fn sectors_per_cold_segment(&self) -> u64 {
        let chunk = ChunkLayout::new(RECORDS_MAX, RECORDS_MAX, self.align()).chunk_len;
        let room = self.header().segment_bytes as usize - SEGMENT_HEADER_LEN;
        (room * RECORDS_MAX / chunk) as u64
    }

    /// The segments that may be emptied, the best first. The score is what emptying one gains, times the root
    /// of its age, by what it costs (docs/FORMAT.md §11): an old segment will hardly get emptier by itself.
    fn victims(&self, damaged: &HashSet<Uid>) -> Vec<(Handle, Row)> {
        let in_log: HashSet<Handle> = self.tail().segments.iter().copied().collect();
        let now = self.generation.load(std::sync::atomic::Ordering::Relaxed);
        let segment = u64::from(self.header().segment_bytes);
        let table = self.segments.table();
        let mut found: Vec<(u64, Handle, Row)> = table
            .rows()
            .filter(|(handle, row)| {
                row.kind != SegmentKind::Index
                    && row.state == SegmentState::Closed
                    && row.live > 0
                    && u64::from(row.live) * WORTH_BELOW.1 < segment * WORTH_BELOW.0
                    && !in_log.contains(handle)
                    && !damaged.contains(&row.uid)
            })
            .map(|(handle, row)| (score(row, now, segment), handle, *row))
            .collect();
        found.sort_by_key(|(score, handle, _)| (std::cmp::Reverse(*score), *handle));
        found.into_iter().map(|(_, handle, row)| (handle, row)).collect()
    }

    /// Live bytes that have to be moved before `free` slots become as many as the reclaim mark wants.
    pub(super) fn reclaim_debt(&self, free: u64) -> u64 {
        let segment = u64::from(self.header().segment_bytes);
        let mut wanted = self.room.reclaim_mark().saturating_sub(free) * segment;
        let mut debt = 0;
        for (_, row) in self.victims(&HashSet::new()) {
            if wanted == 0 {
                break;
            }
            debt += u64::from(row.live);
            wanted = wanted.saturating_sub(segment - u64::from(row.live));
        }
        debt
    }

    /// Brings the leaves that ascending `runs` start in into memory.
    async fn fetch_leaves_of(&self, runs: &[Run]) {
        let _guard = self.segments.table().guard();
        let tree = self.map().tree.clone();
        let mut leaves: Vec<u64> = runs.iter().map(|run| run.sectors.start.0 / page_sectors(0)).collect();
        leaves.dedup();
        self.pages.fetch(&self.segments, &tree, &leaves).await;
    }

    /// The parts of `run` that the index still finds there.
    async fn still_there(&self, run: Run) -> Result<Vec<Run>, VolumeError> {
        let mut found: Vec<Run> = Vec::new();
        let mut at = run.sectors.start;
        let (newer, tree, _guard) = self.resolve(run.sectors);
        let mut walk = self.pages.walk(&self.segments, &tree);
        for (sectors, loc) in newer {
            while at < sectors.end() {
                let left = SectorRange::new(at, sectors.end().0 - at.0);
                let current = match loc {
                    Some(loc) => Run { sectors, loc }.clip(left).expect("inside"),
                    None => walk.run_at(at, left.count).await?,
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

    /// Reads and opens the records of a run: plaintext, with room for the tags.
    async fn open_run(&self, run: Run) -> Result<BytesMut, VolumeError> {
        let place = self.segments.place(run.loc)?;
        let len = usize::try_from(run.sectors.count).expect("a chunk") * RECORD_LEN;
        let sealed = self.segments.read(&place, run.loc.offset(), len).await?;
        let mut records = BytesMut::zeroed(len);
        let pairs = sealed.chunks_exact(RECORD_LEN).zip(records.chunks_exact_mut(RECORD_LEN));
        for (i, (sealed, record)) in (0u64..).zip(pairs) {
            let at = run.loc.step(i).offset();
            let lba = Lba(run.sectors.start.0 + i);
            place.key.open_record(at, lba, sealed, &mut record[..SECTOR_LEN]).map_err(|_| {
                VolumeError::damaged("sector", place.phys + at, FormatError::Authentication("sector"))
            })?;
        }
        Ok(records)
    }
}

/// (1 - u) · √age / (1 + u), with u the part of the segment that is live, and age in roots.
///
/// The root of the age, not the age: nearly as good where some sectors are written more often than others,
/// and no worse than choosing the emptiest where all are written alike.
fn score(row: &Row, now: u64, segment: u64) -> u64 {
    let live = u64::from(row.live).min(segment);
    // Birth is kept modulo 2^32; whoever is older than that is old enough.
    let age = (now.wrapping_sub(row.birth.into()) & 0xffff_ffff).max(1);
    (((segment - live) << 16) / (segment + live)).saturating_mul((age << 8).isqrt())
}

const _: () = assert!(RECORDS_MAX <= ENTRIES_MAX, "every record of a cold chunk may be an entry of its own");

#[cfg(test)]
pub(super) mod tests;
