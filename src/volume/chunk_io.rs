//! Sealing a chunk's records and writing the chunk, for the log and for the cold stream.

use bytes::{Bytes, BytesMut};

use super::io::write_store;
use crate::buffers;
use crate::cipher::SealRange;
use crate::format::chunk::{chunk_checksum, set_checksum};
use crate::geometry::Lba;
use crate::payload::RECORD_LEN;
use crate::store::{Persist, SlotStore, StoreError};

/// Records sealed before they are summed up: 64 KiB, which the nearest caches hold.
const RECORDS_AT_ONCE: usize = 16;

/// A chunk whose header is sealed and whose records are still plaintext.
pub(super) struct UnsealedChunk {
    /// The header of its segment, in front of the first chunk.
    pub(super) segment_header: Option<Vec<u8>>,
    /// What stands before the first record, the checksum still zero.
    pub(super) head: Vec<u8>,
    /// Records with the right to seal them, in order.
    pub(super) records: Vec<(Lba, BytesMut, SealRange)>,
    /// Bytes behind the last record.
    pub(super) padding: usize,
}

impl UnsealedChunk {
    /// Seals the records in place and writes all of it to `at`; returns how many bytes that were.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn write(self, store: &dyn SlotStore, at: u64) -> Result<usize, StoreError> {
        let parts = self.seal();
        let len = parts.iter().map(Bytes::len).sum();
        let long: Vec<Bytes> =
            parts.iter().filter(|part| buffers::has_kept_len(part.len())).cloned().collect();
        let result = write_store(store, at, parts, Persist::Volatile).await;
        // What a store still holds on to is not whole, and goes to the allocator.
        long.into_iter().filter_map(|part| part.try_into_mut().ok()).for_each(buffers::give);
        result.map(|()| len)
    }

    fn seal(self) -> Vec<Bytes> {
        let Self { segment_header, mut head, records, padding } = self;
        let mut crc = chunk_checksum([head.as_slice()]);
        let mut parts: Vec<Bytes> = Vec::with_capacity(records.len() + 3);
        for (mut first, mut data, mut place) in records {
            for records in data.chunks_mut(RECORDS_AT_ONCE * RECORD_LEN) {
                place.split_front(records.len() as u64).seal_records(first, records);
                crc = crc32c::crc32c_append(crc, records);
                first.0 += (records.len() / RECORD_LEN) as u64;
            }
            parts.push(data.freeze());
        }
        if padding > 0 {
            parts.push(Bytes::from(vec![0; padding]));
            crc = crc32c::crc32c_append(crc, &parts[parts.len() - 1]);
        }
        set_checksum(&mut head, crc);
        parts.splice(0..0, segment_header.into_iter().chain([head]).map(Bytes::from));
        parts
    }
}
