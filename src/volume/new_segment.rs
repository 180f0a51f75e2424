//! Opening a segment: its key, and the header that stands at its beginning (docs/FORMAT.md §6).

use std::sync::atomic::Ordering;

use super::segments::new_row;
use super::{Core, VolumeError};
use crate::cipher::{FreshUid, OpenSegmentKey, TAG_LEN, Uid};
use crate::format::page::Handle;
use crate::format::segment::{SEGMENT_HEADER_LEN, SegmentHeader, SegmentKind};
use crate::geometry::Generation;

/// What ties a segment of the log to its neighbours; nothing for those of other kinds.
#[derive(Default)]
pub(super) struct Links {
    pub(super) first_log_seq: u64,
    pub(super) previous_uid: Uid,
    pub(super) previous_chain: [u8; TAG_LEN],
    pub(super) next_uid: Uid,
    pub(super) next_phys: u64,
}

/// A segment outside the log that nothing was written to yet.
pub(super) struct NewSegment {
    pub(super) key: OpenSegmentKey,
    pub(super) uid: Uid,
    pub(super) phys: u64,
    pub(super) slot: u64,
    pub(super) handle: Handle,
    /// Sealed: the first bytes to be written.
    pub(super) header: Vec<u8>,
}

impl Core {
    /// Opens a segment of the index or of the cold stream, in any free slot, and gives it a row.
    ///
    /// # Errors
    /// [`VolumeError::NoSpace`], [`VolumeError::Randomness`].
    pub(super) fn open_outside_log(&self, kind: SegmentKind) -> Result<NewSegment, VolumeError> {
        let fresh = self.uids.fresh(&self.keys)?;
        let uid = fresh.uid();
        let generation = Generation(self.generation.load(Ordering::Relaxed));
        let (handle, slot, phys) = {
            let mut table = self.segments.table_mut();
            let slot = table.slots_mut().take_any().ok_or(VolumeError::NoSpace)?;
            let phys = self.header().slot_offset(slot);
            (table.add_row(new_row(kind, uid, phys, self.epoch16(), generation)), slot, phys)
        };
        let (key, header) = self.begin_segment(kind, fresh, phys, Links::default());
        Ok(NewSegment { key, uid, phys, slot, handle, header })
    }

    /// The key of a segment at `phys`, known to readers from now on, and its sealed header.
    pub(super) fn begin_segment(
        &self,
        kind: SegmentKind,
        uid: FreshUid,
        phys: u64,
        links: Links,
    ) -> (OpenSegmentKey, Vec<u8>) {
        let volume = self.header();
        let id = uid.uid();
        let mut key = OpenSegmentKey::create(&self.keys, kind as u8, uid, u64::from(volume.segment_bytes));
        let Links { first_log_seq, previous_uid, previous_chain, next_uid, next_phys } = links;
        let header = SegmentHeader {
            kind,
            epoch: volume.active_epoch,
            volume: volume.volume,
            uid: id,
            phys,
            writer_epoch: self.writer_epoch,
            first_log_seq,
            previous_uid,
            previous_chain,
            next_uid,
            next_phys,
            created: self.uids.surroundings().unix_seconds(),
        };
        let place = key.reserve(SEGMENT_HEADER_LEN as u64).expect("a segment is longer than its header");
        let header = header.seal(place);
        self.count_sealed(1);
        self.segments.remember(key.reader());
        (key, header)
    }
}
