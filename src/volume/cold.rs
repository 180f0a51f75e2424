//! The cold stream: segments of kind 3, which hold sectors that space reclaim moved (docs/FORMAT.md §11).
//!
//! They stand outside the log: nothing replays them, only a root leads to them. What was moved waits in
//! [`Moves`] for the next checkpoint, which lets a move take effect where the index still finds the sector
//! in its old place, and drops it where a client has written since. Until then readers use the old place.

use bytes::BytesMut;

use super::chunk_io::UnsealedChunk;
use super::delta::Run;
use super::new_segment::NewSegment;
use super::segments::ReadGuard;
use super::{Core, VolumeError};
use crate::cipher::{OpenSegmentKey, TAG_LEN};
use crate::format::chunk::{ChunkHeader, ChunkLayout, Entry, Op, RECORDS_MAX};
use crate::format::page::{Handle, Loc};
use crate::format::segment::{PHYSICAL_BLOCK, SegmentKind};
use crate::geometry::SectorRange;
use crate::payload::RECORD_LEN;

/// Records for whose sake the rest of a segment is used; for fewer a new one is opened.
const WORTH_A_CHUNK: usize = 32;

/// Sectors that lie in two places: `old`, where the index finds them, and `new`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Move {
    pub(super) sectors: SectorRange,
    pub(super) old: Loc,
    pub(super) new: Loc,
}

impl Move {
    /// The part of the move that lies in `window`, if any.
    pub(super) fn clip(self, window: SectorRange) -> Option<Self> {
        let old = Run { sectors: self.sectors, loc: self.old }.clip(window)?;
        let new = Run { sectors: self.sectors, loc: self.new }.clip(window)?;
        Some(Self { sectors: old.sectors, old: old.loc, new: new.loc })
    }
}

/// What was moved since the last checkpoint.
#[derive(Default)]
pub(super) struct Moves {
    /// In no order; no two of one sector.
    pub(super) moves: Vec<Move>,
    /// Cold segments that take no more; they count as closed once the moves into them took effect.
    pub(super) full: Vec<Handle>,
    /// Keeps the handles of old places from being given to other segments before that: a place is
    /// recognised by its handle.
    pub(super) guards: Vec<ReadGuard>,
}

impl Moves {
    /// Whether a checkpoint comes before another batch: one has failed, and these would be moved again; or a write into a
    /// new segment has, and each further one would take another slot that no root gives back.
    pub(super) fn wait_for_checkpoint(&self) -> bool {
        !self.moves.is_empty() || !self.full.is_empty()
    }

    /// Puts `older` moves, which did not take effect, back in front.
    pub(super) fn put_back(&mut self, mut older: Self) {
        older.moves.append(&mut self.moves);
        older.full.append(&mut self.full);
        older.guards.append(&mut self.guards);
        *self = older;
    }
}

/// The cold segment being filled.
#[derive(Default)]
pub(super) struct ColdStream {
    open: Option<OpenCold>,
}

struct OpenCold {
    key: OpenSegmentKey,
    phys: u64,
    handle: Handle,
    /// The sealed segment header until the first chunk takes it along.
    header: Option<Vec<u8>>,
}

impl ColdStream {
    /// Whether the next chunk needs another segment.
    pub(super) fn wants_segment(&self, core: &Core) -> bool {
        self.room_left(core) < WORTH_A_CHUNK
    }

    /// Records that the next chunk can hold in the open segment.
    fn room_left(&self, core: &Core) -> usize {
        let Some(open) = &self.open else { return 0 };
        // What is before may have been flushed.
        let padding = open.key.offset().next_multiple_of(PHYSICAL_BLOCK) - open.key.offset();
        let room = open.key.remaining().saturating_sub(padding);
        let fits = |count| ChunkLayout::new(count, count, core.align()).chunk_len as u64 <= room;
        (1..=RECORDS_MAX).rev().find(|count| fits(*count)).unwrap_or(0)
    }

    /// Records that the next chunk can hold, opening a segment when there is none with room for some.
    ///
    /// # Errors
    /// [`VolumeError::NoSpace`], [`VolumeError::Randomness`].
    pub(super) fn room(&mut self, core: &Core) -> Result<usize, VolumeError> {
        let left = self.room_left(core);
        if left >= WORTH_A_CHUNK {
            return Ok(left);
        }
        self.give_up(core);
        let NewSegment { key, phys, handle, header, .. } = core.open_outside_log(SegmentKind::Gc)?;
        self.open = Some(OpenCold { key, phys, handle, header: Some(header) });
        Ok(RECORDS_MAX)
    }

    /// Goes no further in the open segment.
    pub(super) fn give_up(&mut self, core: &Core) {
        if let Some(open) = self.open.take() {
            core.moves().full.push(open.handle);
        }
    }

    /// Seals runs of sectors into one chunk and writes it. `records` holds, for each run, its plaintext with
    /// room for the tags. Returns the place of each run.
    ///
    /// # Errors
    /// The store's; the segment is given up then, since what reached the store is unknown.
    ///
    /// # Panics
    /// When there are more records than [`room`](Self::room) said.
    pub(super) async fn append(
        &mut self,
        core: &Core,
        records: Vec<(SectorRange, BytesMut)>,
    ) -> Result<Vec<Loc>, VolumeError> {
        let open = self.open.as_mut().expect("room was asked for");
        let mut entries = Vec::with_capacity(records.len());
        let mut count = 0;
        for (sectors, data) in &records {
            let rec = u32::try_from(count).expect("at most 256");
            entries.push(Entry { sectors: *sectors, op: Op::Write, rec });
            count += data.len() / RECORD_LEN;
        }
        let layout = ChunkLayout::new(entries.len(), count, core.align());
        open.key.skip_to_multiple(PHYSICAL_BLOCK);
        let mut range = open.key.reserve(layout.chunk_len as u64).expect("no more than there is room for");
        let offset = range.offset();
        let places = entries
            .iter()
            .map(|entry| Loc::record(open.handle, offset + layout.record_offset(entry.rec) as u64))
            .collect();
        // No number, no chain: the chunk follows no other.
        let header = ChunkHeader { chain: [0; TAG_LEN], durable_seq: 0, entries };
        let head_place = range.split_front(layout.records_offset as u64);
        let (head, _) = header.seal(0, count, core.align(), head_place);
        core.count_sealed(1 + count as u64);
        let records = records
            .into_iter()
            .map(|(sectors, data)| {
                let place = range.split_front(data.len() as u64);
                (sectors.start, data, place)
            })
            .collect();
        let padding = layout.chunk_len - layout.records_offset - count * RECORD_LEN;
        let segment_header = open.header.take();
        let before = segment_header.as_ref().map_or(0, Vec::len) as u64;
        let (handle, at) = (open.handle, open.phys + offset - before);
        let chunk = UnsealedChunk { segment_header, head, records, padding };
        let bytes = match chunk.write(&*core.store, at).await {
            Ok(bytes) => bytes,
            Err(error) => {
                self.give_up(core);
                return Err(error.into());
            }
        };
        core.counters.moved_bytes.fetch_add(bytes as u64, std::sync::atomic::Ordering::Relaxed);
        let end = u32::try_from(offset + layout.chunk_len as u64).expect("segments are at most 64 MiB");
        core.segments.table_mut().set_bytes(handle, end);
        Ok(places)
    }
}
