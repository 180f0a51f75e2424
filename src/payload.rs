//! The data of one write on its way from a client to the store.
//!
//! A payload is laid out as the records it will become: every 4096-byte sector is followed by
//! room for its 16-byte tag. The network side receives straight into the sectors, sealing happens
//! in place, and the same memory goes to the store: the data is never copied in between.
//! Partial sectors at either edge of an unaligned write are completed by the volume
//! (read-merge-write) in the same memory.

use bytes::BytesMut;

use crate::buffers;
use crate::geometry::{ByteRange, SECTOR_BYTES, SECTOR_LEN, SectorRange};

/// Bytes of one record: a sealed sector and its tag (docs/FORMAT.md §1).
pub const RECORD_LEN: usize = SECTOR_LEN + 16;

/// Plaintext of one write, laid out as records.
pub struct Payload {
    range: ByteRange,
    /// `range.covering_sectors().count` records of [`RECORD_LEN`] bytes.
    records: BytesMut,
}

impl Payload {
    /// Room for the data of `range`, all zero.
    ///
    /// # Panics
    /// When the range does not fit in memory; the caller bounds a request's length first.
    #[must_use]
    pub fn zeroed(range: ByteRange) -> Self {
        let count = usize::try_from(range.covering_sectors().count).expect("request length is bounded");
        Self { range, records: BytesMut::zeroed(count * RECORD_LEN) }
    }

    /// Room for the data of `range` with any content: the caller fills every window of it.
    ///
    /// # Panics
    /// As [`zeroed`](Self::zeroed).
    #[must_use]
    pub fn unfilled(range: ByteRange) -> Self {
        let count = usize::try_from(range.covering_sectors().count).expect("request length is bounded");
        Self { range, records: buffers::take(count * RECORD_LEN) }
    }

    /// A payload holding `data`, whose length is that of `range`.
    ///
    /// # Panics
    /// When the lengths differ.
    #[must_use]
    pub fn copy_of(range: ByteRange, data: &[u8]) -> Self {
        assert_eq!(range.len(), data.len() as u64, "payload has the length of its range");
        let mut payload = Self::unfilled(range);
        let mut rest = data;
        for window in payload.windows_mut() {
            let (now, later) = rest.split_at(window.len());
            window.copy_from_slice(now);
            rest = later;
        }
        payload
    }

    /// The bytes of the export that this payload writes.
    #[must_use]
    pub fn range(&self) -> ByteRange {
        self.range
    }

    /// The sectors that this payload touches, whole or in part.
    #[must_use]
    pub fn sectors(&self) -> SectorRange {
        self.range.covering_sectors()
    }

    /// The places where the client's bytes go, in order: one slice per sector, together exactly
    /// `range().len()` bytes long. The first and the last may be shorter than a sector.
    pub fn windows_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let (offset, end) = (self.range.offset(), self.range.end());
        let first = self.range.covering_sectors().start.0;
        self.records.chunks_exact_mut(RECORD_LEN).enumerate().map(move |(i, record)| {
            let sector_start = (first + i as u64) * SECTOR_BYTES;
            let from = in_sector(offset.saturating_sub(sector_start));
            let to = in_sector(end - sector_start);
            &mut record[from..to]
        })
    }

    /// The whole memory: `sectors().count` records of [`RECORD_LEN`] bytes.
    pub fn records_mut(&mut self) -> &mut [u8] {
        &mut self.records
    }

    /// The whole memory, read only.
    #[must_use]
    pub fn records(&self) -> &[u8] {
        &self.records
    }

    /// Gives the memory away.
    #[must_use]
    pub fn into_records(self) -> BytesMut {
        self.records
    }
}

/// An offset clamped to one sector.
fn in_sector(offset: u64) -> usize {
    usize::try_from(offset.min(SECTOR_BYTES)).expect("at most 4096")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_an_unaligned_write_cover_exactly_its_bytes() {
        let range = ByteRange::within(4000, 4300, 1 << 20).unwrap();
        let data: Vec<u8> = (0..4300u32).map(|i| (i % 251) as u8).collect();
        let mut payload = Payload::copy_of(range, &data);
        assert_eq!(payload.sectors().count, 3);
        let lens: Vec<usize> = payload.windows_mut().map(|w| w.len()).collect();
        assert_eq!(lens, [96, 4096, 108]);
        let back: Vec<u8> = payload.windows_mut().flat_map(|w| w.to_vec()).collect();
        assert_eq!(back, data);
    }
}
