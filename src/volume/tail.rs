//! The end of the log: the segment being filled and the one announced to follow it.

use std::collections::VecDeque;

use super::new_segment::Links;
use super::segments::new_row;
use super::{Core, VolumeError};
use crate::cipher::{FreshUid, OpenSegmentKey, TAG_LEN, Uid};
use crate::format::page::Handle;
use crate::format::root::LogSpan;
use crate::format::segment::{SEGMENT_HEADER_LEN, SegmentKind};
use crate::geometry::Generation;

/// A segment that was given a uid, a slot and a row, and into which nothing was written yet.
pub(super) struct Prepared {
    pub(super) uid: FreshUid,
    pub(super) phys: u64,
    pub(super) handle: Handle,
}

/// The log segment being filled.
pub(super) struct OpenLog {
    pub(super) key: OpenSegmentKey,
    pub(super) uid: Uid,
    pub(super) phys: u64,
    pub(super) handle: Handle,
    /// The sealed header until the first chunk takes it along.
    pub(super) header: Option<Vec<u8>>,
}

/// Where the log goes on. Its lock orders composing: whoever holds it assigns the next number.
pub(super) struct Tail {
    pub(super) current: Option<OpenLog>,
    pub(super) next: Option<Prepared>,
    pub(super) next_seq: u64,
    /// Tag of the last chunk header.
    pub(super) chain: [u8; TAG_LEN],
    /// What was composed so far is being flushed: the next chunk may not share a physical block with it.
    pub(super) new_block: bool,
    previous_uid: Uid,
    /// Log segments that a replay of the last root would visit, oldest first, `next` included.
    pub(super) segments: VecDeque<Handle>,
}

impl Tail {
    /// The tail of a log that ends before chunk `next_seq`.
    pub(super) fn new(
        next_seq: u64,
        chain: [u8; TAG_LEN],
        previous_uid: Uid,
        segments: VecDeque<Handle>,
    ) -> Self {
        Self { current: None, next: None, next_seq, chain, new_block: false, previous_uid, segments }
    }

    /// Where the first chunk of `next` will be found.
    pub(super) fn span_of_next(&self, epoch: u32) -> Option<LogSpan> {
        let next = self.next.as_ref()?;
        Some(LogSpan {
            handle: next.handle,
            uid: next.uid.uid(),
            phys: next.phys,
            epoch,
            start_offset: u32::try_from(SEGMENT_HEADER_LEN).expect("4096"),
            start_seq: self.next_seq,
            chain: self.chain,
            end_offset: None,
        })
    }
}

impl Core {
    /// Prepares a log segment in a slot that the last root reserved; `None` when none is left.
    pub(super) fn prepare_log_segment(
        &self,
        generation: Generation,
    ) -> Result<Option<Prepared>, VolumeError> {
        let uid = self.uids.fresh(&self.keys)?;
        let mut table = self.segments.table_mut();
        let Some(slot) = table.slots_mut().take_available() else {
            return Ok(None);
        };
        let phys = self.header().slot_offset(slot);
        let epoch = self.epoch16();
        let handle = table.add_row(new_row(SegmentKind::Log, uid.uid(), phys, epoch, generation));
        Ok(Some(Prepared { uid, phys, handle }))
    }

    /// Ends the current segment and opens the announced one, announcing another.
    ///
    /// Returns `false`, having changed nothing, when there is no slot to announce.
    ///
    /// # Errors
    /// [`VolumeError::Randomness`].
    pub(super) fn rotate(&self, tail: &mut Tail) -> Result<bool, VolumeError> {
        if tail.next.is_none() {
            return Ok(false);
        }
        let generation = Generation(self.generation.load(std::sync::atomic::Ordering::Relaxed) + 1);
        let Some(successor) = self.prepare_log_segment(generation)? else {
            return Ok(false);
        };
        let Some(Prepared { uid, phys, handle, .. }) = tail.next.take() else {
            return Ok(false);
        };
        if let Some(old) = tail.current.take() {
            tail.previous_uid = old.uid;
            self.segments.table_mut().close(old.handle);
        }
        let id = uid.uid();
        let links = Links {
            first_log_seq: tail.next_seq,
            previous_uid: tail.previous_uid,
            previous_chain: tail.chain,
            next_uid: successor.uid.uid(),
            next_phys: successor.phys,
        };
        let (key, header) = self.begin_segment(SegmentKind::Log, uid, phys, links);
        tail.segments.push_back(successor.handle);
        tail.next = Some(successor);
        tail.current = Some(OpenLog { key, uid: id, phys, handle, header: Some(header) });
        Ok(true)
    }

    /// The active epoch as the table stores it.
    pub(super) fn epoch16(&self) -> u16 {
        u16::try_from(self.header().active_epoch).expect("checked when the header was read")
    }

    pub(super) fn count_sealed(&self, messages: u64) {
        self.counters.sealed_messages.fetch_add(messages, std::sync::atomic::Ordering::Relaxed);
    }
}
