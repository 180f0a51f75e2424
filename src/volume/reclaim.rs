//! Getting space back from segments that are live only in part (docs/FORMAT.md §11): what is live in them
//! moves to the cold stream, and the root of the next checkpoint frees them.
//!
//! A batch chooses segments by what emptying them gains, collects from their chunk headers what might be
//! live, and sorts it by sector. Then, one chunk a step: what the index still finds in its old place is read and
//! authenticated ([`ahead`]), sealed anew and written. Nobody is kept from the sectors meanwhile: the checkpoint lets a move
//! take effect only where no client has written since.

mod ahead;

use std::collections::HashSet;
use std::sync::Arc;

use ahead::Ahead;
use futures_util::stream::{self, StreamExt};

use super::cold::{ColdStream, Move};
use super::delta::Run;
use super::segments::ReadGuard;
use super::{Core, VolumeError};
use crate::cipher::Uid;
use crate::format::chunk::{ChunkLayout, ENTRIES_MAX, RECORDS_MAX};
use crate::format::page::Handle;
use crate::format::segment::{SEGMENT_HEADER_LEN, SegmentKind};
use crate::format::table::{Row, SegmentState};
use crate::payload::RECORD_LEN;

/// Segments emptied by one batch: with fewer, the pages that a checkpoint writes for their sake cost more
/// than they give.
const VICTIMS_MAX: usize = 64;
/// Sectors moved by one batch: bounds its memory at about 4 MiB.
const SECTORS_MAX: u64 = 64 << 10;
/// A segment that is fuller than this is not worth moving, in parts of its size.
const WORTH_BELOW: (u64, u64) = (15, 16);
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
    /// What may be live in them, by sector.
    live: Ahead,
    /// Whether any of it was moved.
    has_moved: bool,
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
    pub(super) async fn step(&mut self, core: &Arc<Core>) -> Result<Step, VolumeError> {
        if self.batch.is_none() {
            if core.moves().wait_for_checkpoint() {
                return Ok(Step::Finished);
            }
            let Some(batch) = self.begin(core).await? else { return Ok(Step::Nothing) };
            self.batch = Some(batch);
        }
        if self.takes_from_checkpoints(core) {
            self.give_up(core).await;
            return Ok(Step::Finished);
        }
        let moved = self.move_chunk(core).await;
        let is_over = self.batch.as_ref().is_none_or(|batch| batch.live.is_empty());
        if moved.is_err() || is_over {
            self.give_up(core).await;
        }
        moved.map(|()| if is_over { Step::Finished } else { Step::Going })
    }

    /// Whether the next chunk would take a slot that the checkpoints need which free what was emptied so far: what
    /// a batch fills is an estimate, and checkpoints may have come in between.
    fn takes_from_checkpoints(&self, core: &Core) -> bool {
        let has_moved = self.batch.as_ref().is_some_and(|batch| batch.has_moved);
        has_moved && self.cold.wants_segment(core) && !core.has_room_for_moves()
    }

    /// Ends the batch; what was moved counts. When it returns, no task of it is left.
    pub(super) async fn give_up(&mut self, core: &Core) {
        let batch = self.batch.take();
        core.room.keep_from_writers(0);
        if let Some(mut batch) = batch {
            batch.live.stop().await;
        }
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
        let moves = sectors.div_ceil(core.sectors_per_cold_segment());
        let beside = core.room_beside(moves);
        Ok(Some(Batch { live: Ahead::new(candidates), has_moved: false, moves, beside, guard }))
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

    async fn move_chunk(&mut self, core: &Arc<Core>) -> Result<(), VolumeError> {
        let Some(batch) = &mut self.batch else { return Ok(()) };
        let room = self.cold.room(core)? as u64;
        let opened = batch.live.next(core, &batch.guard, room).await;
        self.damaged.extend(batch.live.damaged());
        let opened = opened?;
        core.room.keep_from_writers(batch.kept());
        if opened.is_empty() {
            return Ok(());
        }
        batch.has_moved = true;
        let guard = batch.guard.clone();
        let (old, records): (Vec<Run>, _) =
            opened.into_iter().map(|(run, data)| (run, (run.sectors, data))).unzip();
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
    /// Slots that writers must leave alone: those still to be filled, and of the others a part. When the
    /// batch ends half of theirs is left, for the time until the roots behind it are written.
    fn kept(&self) -> u64 {
        let (left, total) = self.live.left();
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
