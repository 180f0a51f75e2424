//! How much room there is, and for whom (docs/FORMAT.md §11): two marks in numbers of unused slots.
//!
//! Below the *reclaim mark* segments are emptied. Down to the *reserve* writers may go, less what a
//! batch of moves that is under way still needs: they are slowed to the pace at which room is made, and
//! the last slots are for checkpoints, without which nothing is ever freed. TRIM is held up by neither.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Core;
use super::maintain::DELTA_RUNS;
use crate::format::page::FANOUT;
use crate::format::table::ROW_LEN;
use crate::geometry::SECTOR_BYTES;

/// Bytes of a dense leaf on the store.
const LEAF_BYTES: u64 = 4 << 10;
/// Most slots that the store is told to drop at once: 4 GiB.
const DROPPED_AT_ONCE: u64 = 512;
/// Checkpoints whose pages must find room before the first of them frees anything.
const CHECKPOINTS_AHEAD: u64 = 2;

/// Slots that only checkpoints and moves may use: what two checkpoints write into the index at most, and
/// the segments that log, index and cold stream have open.
pub(super) fn private_reserve(slots: u64, export_bytes: u64, segment_bytes: u64) -> u64 {
    let leaves = export_bytes.div_ceil(FANOUT as u64 * SECTOR_BYTES);
    // A checkpoint folds the entries that start it and as many moves; inner pages are few.
    let leaves = leaves.min(2 * DELTA_RUNS as u64);
    let bytes = (leaves + leaves / 256 + 4) * LEAF_BYTES + slots * ROW_LEN as u64;
    CHECKPOINTS_AHEAD * bytes.div_ceil(segment_bytes) + 4
}

/// Unused slots below which segments are emptied. What lies between this and the reserve holds what is
/// moved, and what clients write meanwhile; more of it would be room that data cannot use.
pub(super) fn reclaim_mark(slots: u64, export_bytes: u64, segment_bytes: u64) -> u64 {
    let pool = (slots / 50).max(16).min((slots / 6).max(4));
    private_reserve(slots, export_bytes, segment_bytes) + pool
}

/// The marks of an open volume.
pub(super) struct Room {
    reserve: AtomicU64,
    reclaim_mark: AtomicU64,
    /// Slots that the batch of moves under way keeps from writers.
    kept: AtomicU64,
}

impl Room {
    pub(super) fn new(slots: u64, export_bytes: u64, segment_bytes: u64) -> Self {
        let room =
            Self { reserve: AtomicU64::new(0), reclaim_mark: AtomicU64::new(0), kept: AtomicU64::new(0) };
        room.resize(slots, export_bytes, segment_bytes);
        room
    }

    /// Sets the marks for another size.
    pub(super) fn resize(&self, slots: u64, export_bytes: u64, segment_bytes: u64) {
        self.reserve.store(private_reserve(slots, export_bytes, segment_bytes), Ordering::Relaxed);
        self.reclaim_mark.store(reclaim_mark(slots, export_bytes, segment_bytes), Ordering::Relaxed);
    }

    pub(super) fn reserve(&self) -> u64 {
        self.reserve.load(Ordering::Relaxed)
    }

    pub(super) fn reclaim_mark(&self) -> u64 {
        self.reclaim_mark.load(Ordering::Relaxed)
    }

    pub(super) fn keep_from_writers(&self, slots: u64) {
        self.kept.store(slots, Ordering::Relaxed);
    }
}

impl Core {
    /// Whether so few slots are in no use that segments must be emptied.
    pub(super) fn space_is_low(&self) -> bool {
        let table = self.segments.table();
        (table.slots().unused() + table.freed_slots() as u64) < self.room.reclaim_mark()
    }

    /// Whether the log may take another slot for a write.
    pub(super) fn writers_have_room(&self) -> bool {
        let table = self.segments.table();
        let kept = self.room.reserve() + self.room.kept.load(Ordering::Relaxed);
        table.slots().available() > 0 && table.slots().unused() > kept
    }

    /// Lets the store drop what slots hold that have been in no use for `idle`.
    ///
    /// # Cancel safety
    /// When dropped half-way some slots are not used any more before the volume is opened again.
    pub(super) async fn drop_idle(&self, idle: Duration) {
        loop {
            let count_max = self.slots_to_drop();
            let begun = self.segments.table_mut().slots_mut().begin_drop(idle, count_max);
            let Some(slots) = begun else { return };
            self.drop_slots(slots).await;
        }
    }

    /// The same of all that is in no use, whichever session used it.
    ///
    /// # Cancel safety
    /// As [`drop_idle`](Self::drop_idle).
    pub(super) async fn drop_unused(&self) {
        let mut from = 0;
        loop {
            let count_max = self.slots_to_drop();
            let begun = self.segments.table_mut().slots_mut().begin_drop_from(from, count_max);
            let Some(slots) = begun else { break };
            from = slots.end;
            self.drop_slots(slots).await;
        }
        self.segments.table_mut().slots_mut().assume_room();
        self.drop_idle(Duration::ZERO).await;
    }

    /// How many slots may be out of use for the moment without others running short of them.
    fn slots_to_drop(&self) -> u64 {
        self.segments
            .table()
            .slots()
            .unused()
            .saturating_sub(2 * self.room.reclaim_mark())
            .clamp(1, DROPPED_AT_ONCE)
    }

    /// Nobody uses them before this is done: the store could drop what somebody else has written there by then.
    pub(super) async fn drop_slots(&self, slots: Range<u64>) {
        let header = self.header();
        let len = (slots.end - slots.start) * u64::from(header.segment_bytes);
        // A hint; slots are free whether or not the store takes them back.
        let _ = self.store.discard(header.slot_offset(slots.start), len).await;
        self.segments.table_mut().slots_mut().dropped(&slots);
    }

    /// Slots that a batch of moves may fill now, at least one.
    pub(super) fn room_for_moves(&self) -> u64 {
        self.free_for_moves().max(1)
    }

    /// Whether a batch of moves may fill another slot.
    pub(super) fn has_room_for_moves(&self) -> bool {
        self.free_for_moves() > 0
    }

    fn free_for_moves(&self) -> u64 {
        // Of the reserve, half is left to the checkpoint that frees what is emptied.
        self.segments.table().slots().unused().saturating_sub(self.room.reserve().div_ceil(2))
    }

    /// Slots that writers may use while a batch of moves fills `moved` of them.
    pub(super) fn room_beside(&self, moved: u64) -> u64 {
        self.segments.table().slots().unused().saturating_sub(self.room.reserve() + moved)
    }
}
