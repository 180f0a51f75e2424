//! Appending pages and blobs to index segments (kind 2). Used only by a checkpoint, one at a time.

use std::collections::VecDeque;

use bytes::Bytes;

use super::io::write_store;
use super::new_segment::NewSegment;
use super::{Core, VolumeError};
use crate::cipher::{OpenSegmentKey, SealRange, Uid};
use crate::format::page::{Handle, Loc, seal_page, sealed_len};
use crate::format::segment::{PHYSICAL_BLOCK, SegmentKind};
use crate::store::Persist;

/// Bytes collected before they are written.
const BUFFER_BYTES: usize = 1 << 20;

/// The index segments being filled: the last one goes on from checkpoint to checkpoint, those
/// before it are full and end at the next [`write_out`](IndexWriter::write_out).
#[derive(Default)]
pub(super) struct IndexWriter {
    open: Vec<OpenIndex>,
    /// Opened in advance, nothing in them yet; the next ones to be filled.
    ahead: VecDeque<OpenIndex>,
    /// Segments that no root names and none that was tried can name.
    unnamed: Vec<(Handle, u64)>,
}

struct OpenIndex {
    key: OpenSegmentKey,
    uid: Uid,
    phys: u64,
    handle: Handle,
    /// Bytes from `written` on, not on the store yet.
    buffer: Vec<u8>,
    /// Where the buffer starts in the segment; a multiple of the alignment.
    written: u64,
}

/// A place in an index segment, and the right to seal it.
pub(super) struct IndexPlace {
    pub(super) handle: Handle,
    pub(super) uid: Uid,
    pub(super) phys: u64,
    pub(super) range: SealRange,
}

impl IndexWriter {
    /// A place of `len` bytes, rounded up to 16. What it is filled with may be shorter.
    ///
    /// # Errors
    /// [`VolumeError::NoSpace`].
    pub(super) fn place(&mut self, core: &Core, len: usize) -> Result<IndexPlace, VolumeError> {
        if !self.fits_next(len) && self.ahead.is_empty() {
            self.open_ahead(core)?;
        }
        self.prepared(core, len)
    }

    /// Opens segments until blobs of `lens` fit one behind the other, so that [`prepared`](Self::prepared) finds
    /// a place for each of them even when all are [written](Self::write_out) one by one.
    ///
    /// # Errors
    /// [`VolumeError::NoSpace`].
    pub(super) fn prepare(&mut self, core: &Core, lens: &[usize]) -> Result<(), VolumeError> {
        while !self.has_room(lens) {
            self.open_ahead(core)?;
        }
        Ok(())
    }

    fn has_room(&self, lens: &[usize]) -> bool {
        let mut ahead = self.ahead.iter().map(|open| open.key.remaining());
        let mut left = self.open.last().map_or(0, |open| open.key.remaining());
        let padding = PHYSICAL_BLOCK;
        for len in lens {
            let len = len.next_multiple_of(16) as u64 + padding;
            while left < len {
                let Some(next) = ahead.next() else { return false };
                left = next;
            }
            left -= len;
        }
        true
    }

    /// As [`place`](Self::place), in a segment that is open already.
    ///
    /// # Errors
    /// [`VolumeError::Inconsistent`] when it was not [prepared](Self::prepare) for.
    pub(super) fn prepared(&mut self, core: &Core, len: usize) -> Result<IndexPlace, VolumeError> {
        if !self.fits_next(len) {
            let missing = || VolumeError::Inconsistent("the segment table outgrew its place".into());
            self.open.push(self.ahead.pop_front().ok_or_else(missing)?);
        }
        let open = self.open.last_mut().expect("pushed above");
        let len = len.next_multiple_of(16) as u64;
        let range = open.key.reserve(len).expect("checked above");
        core.count_sealed(1);
        Ok(IndexPlace { handle: open.handle, uid: open.uid, phys: open.phys, range })
    }

    /// Whether the segment that is being filled has room for `len` bytes, and the padding that ends it.
    fn fits_next(&self, len: usize) -> bool {
        let len = len.next_multiple_of(16) as u64 + PHYSICAL_BLOCK;
        self.open.last().is_some_and(|open| open.key.remaining() >= len)
    }

    fn open_ahead(&mut self, core: &Core) -> Result<(), VolumeError> {
        let NewSegment { key, uid, phys, slot, handle, header } =
            core.open_outside_log(SegmentKind::Index)?;
        // Grows as it is written; live bytes may be counted before that.
        core.segments.table_mut().set_bytes(handle, core.header().segment_bytes);
        self.unnamed.push((handle, slot));
        self.ahead.push_back(OpenIndex { key, uid, phys, handle, buffer: header, written: 0 });
        Ok(())
    }

    /// Puts sealed bytes where they belong; `offset` came from a place since the last `write_out`.
    ///
    /// # Panics
    /// When it did not.
    pub(super) fn put(&mut self, handle: Handle, offset: u64, sealed: &[u8]) {
        let open = self.open.iter_mut().find(|open| open.handle == handle);
        let open = open.expect("a place is filled before its segment ends");
        let at = usize::try_from(offset - open.written).expect("the buffer fits in memory");
        if open.buffer.len() < at + sealed.len() {
            open.buffer.resize(at + sealed.len(), 0);
        }
        open.buffer[at..at + sealed.len()].copy_from_slice(sealed);
    }

    /// Seals a page and appends it.
    pub(super) async fn page(
        &mut self,
        core: &Core,
        level: u8,
        number: u64,
        plaintext: Vec<u8>,
    ) -> Result<Loc, VolumeError> {
        let len = sealed_len(plaintext.len());
        let place = self.place(core, len)?;
        let loc = Loc::new(place.handle, place.range.offset(), len);
        let sealed = seal_page(level, number, plaintext, place.range);
        self.put(place.handle, loc.offset(), &sealed);
        self.write_if_full(core).await?;
        Ok(loc)
    }

    /// Writes what was collected if that is much.
    pub(super) async fn write_if_full(&mut self, core: &Core) -> Result<(), VolumeError> {
        if self.open.last().is_some_and(|open| open.buffer.len() >= BUFFER_BYTES) {
            self.write_out(core).await?;
        }
        Ok(())
    }

    /// Writes what was collected. The next page starts in a new physical block, so that nothing is
    /// ever appended to a block that holds flushed bytes (docs/FORMAT.md §6).
    pub(super) async fn write_out(&mut self, core: &Core) -> Result<(), VolumeError> {
        for open in &mut self.open {
            if let Some((offset, bytes)) = open.take_buffer(core) {
                write_store(&*core.store, offset, vec![Bytes::from(bytes)], Persist::Volatile).await?;
            }
        }
        while self.open.len() > 1 {
            core.segments.table_mut().close(self.open.remove(0).handle);
        }
        Ok(())
    }

    /// Tells that the ring is about to name what was written: a crash may find it from now on, so
    /// that the slots stay taken until a later root frees them.
    pub(super) fn keep(&mut self) {
        self.unnamed.clear();
    }

    /// Gives up what is unfinished after a failure. Slots that nothing can name are free again, so that
    /// trying again and again does not use them up; the segments that were written to before go no
    /// further when what reached the store is unknown.
    pub(super) fn take_back(&mut self, core: &Core) {
        let mut table = core.segments.table_mut();
        // With everything written and flushed before the ring was tried, filling may go on.
        let whole = self.unnamed.is_empty() && self.open.iter().all(|open| open.buffer.is_empty());
        if whole {
            return;
        }
        for (handle, slot) in self.unnamed.drain(..) {
            self.open.retain(|open| open.handle != handle);
            self.ahead.retain(|open| open.handle != handle);
            table.withdraw(handle, slot);
        }
        for open in self.open.drain(..) {
            table.close(open.handle);
        }
    }
}

impl OpenIndex {
    /// What was collected, padded to whole blocks, and where it goes on the store.
    fn take_buffer(&mut self, core: &Core) -> Option<(u64, Vec<u8>)> {
        if self.buffer.is_empty() {
            return None;
        }
        self.key.skip_to_multiple(PHYSICAL_BLOCK);
        let end = self.key.offset();
        let mut bytes = std::mem::take(&mut self.buffer);
        bytes.resize(usize::try_from(end - self.written).expect("the buffer fits in memory"), 0);
        let offset = self.phys + self.written;
        self.written = end;
        core.counters.index_bytes.fetch_add(bytes.len() as u64, std::sync::atomic::Ordering::Relaxed);
        Some((offset, bytes))
    }
}
