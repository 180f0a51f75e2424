//! The segments of a volume in memory: the table of rows by handle, which slots are free, and
//! how much of every segment is still needed.
//!
//! A slot goes through: free → reserved (named by the last durable root, so this writer may use
//! it) → used by a segment → freed by root g → reusable once root g+1 is durable and no reader
//! that might still look at it is left (docs/FORMAT.md §10 c8, §12).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use tokio::sync::Notify;

use super::rows::Rows;
use super::slots::Slots;
use crate::cipher::Uid;
use crate::format::page::Handle;
use crate::format::root::Place;
use crate::format::segment::SegmentKind;
use crate::format::table::{Row, SegmentState, TablePart};
use crate::geometry::Generation;

/// Changes of live bytes by handle, collected while a tree is merged and applied when its root is.
#[derive(Default, Debug)]
pub(super) struct LiveChange(HashMap<Handle, i64>);

impl LiveChange {
    pub(super) fn add(&mut self, handle: Handle, bytes: usize) {
        *self.0.entry(handle).or_default() += i64::try_from(bytes).expect("lengths in a segment are small");
    }

    pub(super) fn remove(&mut self, handle: Handle, bytes: usize) {
        *self.0.entry(handle).or_default() -= i64::try_from(bytes).expect("lengths in a segment are small");
    }

    /// The change that undoes this one.
    pub(super) fn inverse(&self) -> Self {
        Self(self.0.iter().map(|(handle, bytes)| (*handle, -bytes)).collect())
    }
}

/// Readers hold a clone of the current guard while they use locations; see [`Segments::guard`].
pub(super) type ReadGuard = Arc<Reading>;

/// Tells when the last reader of one state of the index is gone.
pub(super) struct Reading {
    ended: Arc<Notify>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.ended.notify_one();
    }
}

/// The slots that one root freed.
struct Freed {
    /// Handle, row and slot of each.
    segments: Vec<(Handle, Row, u64)>,
    by: Generation,
    /// Dead once every reader that may have seen their locations is gone.
    readers: Weak<Reading>,
}

/// Rows, free slots, live counts.
pub(super) struct Segments {
    rows: Rows,
    free_handles: Vec<Handle>,
    slots: Slots,
    freed: VecDeque<Freed>,
    /// Slots that the root this table was loaded from freed: the root before it needs them until
    /// another one is durable.
    held: Vec<u64>,
    guard: ReadGuard,
    readers_ended: Arc<Notify>,
    /// The newest durable root.
    durable: Generation,
    added: Vec<Place>,
}

/// A segment's row that does not fit the volume.
#[derive(Debug, thiserror::Error)]
#[error("segment table: {0}")]
pub(super) struct BadTable(pub(super) String);

impl Segments {
    /// An empty table for a volume of `slots` slots.
    pub(super) fn new(slots: u64) -> Self {
        let readers_ended = Arc::new(Notify::new());
        Self {
            rows: Rows::new(),
            free_handles: Vec::new(),
            slots: Slots::new(slots),
            freed: VecDeque::new(),
            held: Vec::new(),
            guard: Arc::new(Reading { ended: readers_ended.clone() }),
            readers_ended,
            durable: Generation(0),
            added: Vec::new(),
        }
    }

    /// Makes room for `slots` slots, if there are fewer.
    pub(super) fn grow(&mut self, slots: u64) {
        self.slots.grow(slots);
    }

    /// Takes over one part of the table that a root stored, parts in order, into an empty table. `slot_at` maps
    /// a place to its slot.
    ///
    /// # Errors
    /// [`BadTable`] when the part does not follow the one before, or its rows do not fit the volume.
    pub(super) fn load(
        &mut self,
        part: &TablePart,
        slot_at: impl Fn(u64) -> Option<u64>,
    ) -> Result<(), BadTable> {
        let expected = if part.first == 0 { 1 } else { part.first as usize };
        if expected != self.rows.len() {
            return Err(BadTable(format!("a part starts at handle {}", part.first)));
        }
        let rows = match (part.first, part.rows.split_first()) {
            (0, Some((None, rows))) => rows,
            (0, _) => return Err(BadTable("row 0 is not empty".into())),
            _ => &part.rows[..],
        };
        for row in rows {
            let handle = self.rows.push(*row);
            match row {
                None => self.free_handles.push(handle),
                Some(row) => {
                    let slot = slot_at(row.phys).ok_or_else(|| {
                        BadTable(format!("row {handle} names place {:#x}, which is no slot", row.phys))
                    })?;
                    self.slots.take(slot).map_err(|()| {
                        BadTable(format!("row {handle} names slot {slot}, which another row has"))
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Keeps a slot that the loaded root freed from being used before the next root is durable. One
    /// that the log behind the root uses already is left alone.
    pub(super) fn hold(&mut self, slot: u64) {
        if self.slots.take(slot).is_ok() {
            self.held.push(slot);
        }
    }

    /// Frees the slots of [`hold`](Self::hold).
    pub(super) fn release_held(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.release(&held);
    }

    /// Makes slots free that may have room on the store.
    pub(super) fn release(&mut self, slots: &[u64]) {
        slots.iter().for_each(|slot| self.slots.release(*slot));
    }

    /// The row of a handle; also of a freed one for as long as a reader may ask for it.
    pub(super) fn row(&self, handle: Handle) -> Option<&Row> {
        let freed = || {
            let mut freed = self.freed.iter().flat_map(|batch| &batch.segments);
            freed.find(|(freed, _, _)| *freed == handle).map(|(_, row, _)| row)
        };
        self.rows.get(handle).or_else(freed)
    }

    fn row_mut(&mut self, handle: Handle) -> &mut Row {
        self.rows.at_mut(handle).as_mut().expect("handles in use have a row")
    }

    /// A clone of the current read guard. Whoever holds it may use locations that it resolved
    /// after taking it: their slots are not reused before the guard is dropped.
    pub(super) fn guard(&self) -> ReadGuard {
        self.guard.clone()
    }

    /// The slots in no use.
    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }

    /// The same, to take some.
    pub(super) fn slots_mut(&mut self) -> &mut Slots {
        &mut self.slots
    }

    /// Adds a row for a segment whose slot was taken.
    pub(super) fn add_row(&mut self, row: Row) -> Handle {
        self.added.push(Place { uid: row.uid, phys: row.phys });
        let Some(handle) = self.free_handles.pop() else { return self.rows.push(Some(row)) };
        *self.rows.at_mut(handle) = Some(row);
        handle
    }

    /// Adds a row for a segment that recovery found on the store.
    pub(super) fn adopt(&mut self, row: Row, slot: u64) -> Result<Handle, BadTable> {
        self.slots.take(slot).map_err(|()| BadTable(format!("slot {slot} of a log segment is in use")))?;
        Ok(self.add_row(row))
    }

    /// Removes the row of a segment that nothing durable names, and frees its slot.
    pub(super) fn withdraw(&mut self, handle: Handle, slot: u64) {
        if let Some(row) = self.rows.at_mut(handle).take() {
            self.added.retain(|place| place.uid != row.uid);
        }
        self.free_handles.push(handle);
        self.slots.release(slot);
    }

    pub(super) fn set_bytes(&mut self, handle: Handle, bytes: u32) {
        let row = self.row_mut(handle);
        row.bytes = row.bytes.max(bytes);
    }

    pub(super) fn close(&mut self, handle: Handle) {
        self.row_mut(handle).state = SegmentState::Closed;
    }

    /// Applies the changes of one merge.
    pub(super) fn apply(&mut self, change: &LiveChange) {
        for (handle, bytes) in &change.0 {
            let row = self.row_mut(*handle);
            let live = i64::from(row.live) + bytes;
            row.live = u32::try_from(live).expect("live bytes of a segment are counted exactly");
            assert!(row.live <= row.bytes, "no more bytes live than were written");
        }
    }

    /// Closes every segment: a session never goes on in another's.
    pub(super) fn close_all(&mut self) {
        self.rows.iter_mut().for_each(|row| row.state = SegmentState::Closed);
    }

    /// Rows that nothing needs, ascending: closed, no live byte, and not `pinned` by the log.
    pub(super) fn dead(&self, pinned: impl Fn(Handle) -> bool) -> Vec<Handle> {
        let dead = |handle, row: &Row| row.live == 0 && row.state == SegmentState::Closed && !pinned(handle);
        self.rows.iter().filter(|(handle, row)| dead(*handle, row)).map(|(handle, _)| handle).collect()
    }

    /// Takes rows out of the table that root `by` did not list any more. The index that readers
    /// are given must be that root's by now.
    pub(super) fn free(&mut self, handles: &[Handle], by: Generation, slot_at: impl Fn(u64) -> Option<u64>) {
        if handles.is_empty() {
            return;
        }
        let new_guard = Arc::new(Reading { ended: self.readers_ended.clone() });
        let old_guard = std::mem::replace(&mut self.guard, new_guard);
        let mut segments = Vec::with_capacity(handles.len());
        for handle in handles {
            let row = self.rows.at_mut(*handle).take().expect("dead rows exist");
            segments.push((*handle, row, slot_at(row.phys).expect("rows name slots")));
        }
        self.freed.push_back(Freed { segments, by, readers: Arc::downgrade(&old_guard) });
    }

    /// Tells that root `durable` is: what it reserved may be used, and what an earlier root freed is in
    /// no use any more, see [`take_unread`](Self::take_unread).
    pub(super) fn root_is_durable(&mut self, durable: Generation) -> Vec<u64> {
        self.slots.use_reserving();
        self.durable = durable;
        let mut unused = std::mem::take(&mut self.held);
        unused.append(&mut self.take_unread());
        unused
    }

    /// The slots that an earlier root freed and no reader can see any more, to be [released](Self::release).
    pub(super) fn take_unread(&mut self) -> Vec<u64> {
        let mut unused = Vec::new();
        // In order: a reader that blocks one batch may have seen every later one, too.
        while self.freed.front().is_some_and(|f| f.by < self.durable && f.readers.strong_count() == 0) {
            for (handle, _, slot) in self.freed.pop_front().into_iter().flat_map(|f| f.segments) {
                self.free_handles.push(handle);
                unused.push(slot);
            }
        }
        unused
    }

    /// Told whenever the last reader of some state of the index is gone; what to do then is
    /// [`take_unread`](Self::take_unread).
    pub(super) fn readers_ended(&self) -> Arc<Notify> {
        self.readers_ended.clone()
    }

    /// Whether slots are free but for readers that may still look at them.
    pub(super) fn waits_for_readers(&self) -> bool {
        self.freed.front().is_some_and(|freed| freed.by < self.durable)
    }

    /// Slots on their way to being free.
    pub(super) fn freed_slots(&self) -> usize {
        self.held.len() + self.freed.iter().map(|freed| freed.segments.len()).sum::<usize>()
    }

    /// The places added since the last call.
    pub(super) fn take_added(&mut self) -> Vec<Place> {
        std::mem::take(&mut self.added)
    }

    /// Places added since a root took them.
    pub(super) fn added_count(&self) -> usize {
        self.added.len()
    }

    /// Puts places back that a root took and that did not become durable.
    pub(super) fn restore_added(&mut self, mut places: Vec<Place>) {
        places.append(&mut self.added);
        self.added = places;
    }

    /// Where the segments of these rows lie.
    pub(super) fn places(&self, handles: &[Handle]) -> Vec<Place> {
        let rows = handles.iter().filter_map(|handle| self.row(*handle));
        rows.map(|row| Place { uid: row.uid, phys: row.phys }).collect()
    }

    /// The rows as they are now.
    pub(super) fn snapshot(&self) -> Rows {
        self.rows.clone()
    }

    /// Rows of each part that a root written now stores.
    pub(super) fn part_lens(&self) -> Vec<usize> {
        self.rows.part_lens().collect()
    }

    /// Handles given out so far, free ones included.
    pub(super) fn row_count(&self) -> usize {
        self.rows.len()
    }

    /// Every row in use.
    pub(super) fn rows(&self) -> impl Iterator<Item = (Handle, &Row)> {
        self.rows.iter()
    }
}

/// A new row of a segment that this session opens.
pub(super) fn new_row(kind: SegmentKind, uid: Uid, phys: u64, epoch: u16, birth: Generation) -> Row {
    let birth = u32::try_from(birth.0 & 0xffff_ffff).expect("masked to 32 bits");
    Row { uid, phys, epoch, kind, state: SegmentState::Open, live: 0, bytes: 0, birth }
}
