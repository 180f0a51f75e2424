//! What the chunks of a segment say they hold, from their headers.

use super::delta::Run;
use super::io::fetch_store;
use super::log::effects;
use super::{Core, VolumeError};
use crate::cipher::SegmentKey;
use crate::format::chunk::{ChunkHeader, ChunkPrefix, PREFIX_LEN, chunk_places};
use crate::format::page::Handle;
use crate::format::segment::SEGMENT_HEADER_LEN;
use crate::format::table::Row;
use crate::store::{SlotStore, StoreError};

/// Bytes looked at first to see a chunk's header; more where it is longer.
const HEADER_GUESS: usize = 4096;
/// Bytes read at once where the store has to be waited for: the headers of a few chunks, for the time that one takes.
const WINDOW_BYTES: usize = 256 << 10;

/// Part of a segment.
struct Window<'a> {
    store: &'a dyn SlotStore,
    phys: u64,
    /// Where the segment was written up to.
    end: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// The bytes from `at` on, `len` of them, or as many as there are.
    async fn get(&mut self, at: u64, len: usize) -> Result<&[u8], StoreError> {
        let len = len.min(index(self.end - at));
        if at < self.start || at + len as u64 > self.start + self.bytes.len() as u64 {
            self.bytes = vec![0; len];
            self.start = at;
            match self.store.try_read_at(self.phys + at, &mut self.bytes) {
                Some(read) => read?,
                None => {
                    let more = len.max(WINDOW_BYTES).min(index(self.end - at));
                    self.bytes = fetch_store(self.store, self.phys + at, more).await?;
                }
            }
        }
        Ok(&self.bytes[index(at - self.start)..][..len])
    }
}

impl Core {
    /// Every run of records that the chunks of a segment say they hold.
    ///
    /// # Errors
    /// [`VolumeError::Damaged`] where a chunk does not follow the one before; the store's.
    pub(super) async fn written_in(&self, handle: Handle, row: &Row) -> Result<Vec<Run>, VolumeError> {
        let key = self.segments.key(row.kind, row.uid);
        let (mut offset, end) = (SEGMENT_HEADER_LEN as u64, u64::from(row.bytes));
        let mut window = Window { store: &*self.store, phys: row.phys, end, start: 0, bytes: Vec::new() };
        let mut runs = Vec::new();
        while offset + (PREFIX_LEN as u64) <= end {
            let (at, prefix, header) = self.chunk_behind(&key, &mut window, offset).await?;
            let here = effects(&header.entries, &prefix.layout(self.align()), handle, at);
            runs.extend(here.into_iter().filter(|run| run.loc.handle().is_some()));
            offset = at + u64::from(prefix.chunk_bytes);
        }
        Ok(runs)
    }

    /// The header of the chunk behind one that ends at `offset`, and where it starts.
    async fn chunk_behind(
        &self,
        key: &SegmentKey,
        window: &mut Window<'_>,
        offset: u64,
    ) -> Result<(u64, ChunkPrefix, ChunkHeader), VolumeError> {
        let mut missing = None;
        let end = window.end;
        for at in chunk_places(offset).filter(|at| at + (PREFIX_LEN as u64) <= end) {
            match self.chunk_header(key, window, at).await {
                Ok((prefix, header)) => return Ok((at, prefix, header)),
                Err(error) => missing = missing.or(Some(error)),
            }
        }
        Err(missing.expect("the caller looks before the end only"))
    }

    async fn chunk_header(
        &self,
        key: &SegmentKey,
        window: &mut Window<'_>,
        at: u64,
    ) -> Result<(ChunkPrefix, ChunkHeader), VolumeError> {
        let (place, room) = (window.phys + at, window.end - at);
        let damaged = |source| VolumeError::damaged("chunk", place, source);
        let bytes = window.get(at, HEADER_GUESS).await?;
        let prefix = bytes.first_chunk::<PREFIX_LEN>().expect("the caller sees to it that one fits");
        let prefix = ChunkPrefix::decode(prefix, self.align(), room).map_err(damaged)?;
        let bytes = window.get(at, prefix.layout(self.align()).records_offset).await?;
        let (header, _) = ChunkHeader::open(&prefix, key, at, bytes).map_err(damaged)?;
        Ok((prefix, header))
    }
}

fn index(at: u64) -> usize {
    usize::try_from(at).expect("segments are at most 64 MiB")
}
