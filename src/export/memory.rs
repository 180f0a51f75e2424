//! A plain disk in memory, for protocol tests and as the smallest example of an [`Export`].

use std::sync::{Mutex, PoisonError};

use super::{Allocation, Durability, Export, ExportError, ExportInfo, Extent, ZeroMode};
use crate::geometry::{ByteRange, SECTOR_BYTES, SECTOR_LEN};
use crate::payload::Payload;

/// A disk whose bytes lie in memory, in the clear.
pub struct MemoryExport {
    info: ExportInfo,
    disk: Mutex<Disk>,
}

struct Disk {
    bytes: Vec<u8>,
    /// One per sector.
    allocation: Vec<Allocation>,
}

impl MemoryExport {
    /// A disk of `size` bytes, all hole.
    ///
    /// # Panics
    /// When `size` does not fit in memory.
    #[must_use]
    pub fn new(size: u64) -> Self {
        let len = usize::try_from(size).expect("a test disk fits in memory");
        let sectors = len.div_ceil(SECTOR_LEN);
        Self {
            info: ExportInfo { size, read_only: false, description: "memory".into() },
            disk: Mutex::new(Disk { bytes: vec![0; len], allocation: vec![Allocation::Hole; sectors] }),
        }
    }

    /// The same disk, refusing changes.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.info.read_only = true;
        self
    }

    fn disk(&self) -> std::sync::MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writable(&self) -> Result<std::sync::MutexGuard<'_, Disk>, ExportError> {
        if self.info.read_only { Err(ExportError::ReadOnly) } else { Ok(self.disk()) }
    }
}

/// A range as indices; it was checked against a disk that lies in memory.
fn span(range: ByteRange) -> std::ops::Range<usize> {
    let index = |at: u64| usize::try_from(at).expect("the disk fits in memory");
    index(range.offset())..index(range.end())
}

impl Disk {
    fn mark(&mut self, sectors: crate::geometry::SectorRange, allocation: Allocation) {
        let index = |at: u64| usize::try_from(at).expect("the disk fits in memory");
        self.allocation[index(sectors.start.0)..index(sectors.end().0)].fill(allocation);
    }
}

impl Export for MemoryExport {
    fn info(&self) -> ExportInfo {
        self.info.clone()
    }

    async fn read<'a>(&'a self, range: ByteRange, buf: &'a mut [u8]) -> Result<Vec<ByteRange>, ExportError> {
        let disk = self.disk();
        buf.copy_from_slice(&disk.bytes[span(range)]);
        let mut holes: Vec<ByteRange> = Vec::new();
        for lba in range.covering_sectors().start.0..range.covering_sectors().end().0 {
            let index = usize::try_from(lba).expect("the disk fits in memory");
            if disk.allocation[index] == Allocation::Data {
                continue;
            }
            let from = (lba * SECTOR_BYTES).max(range.offset());
            let to = ((lba + 1) * SECTOR_BYTES).min(range.end());
            match holes.last_mut() {
                Some(last) if last.end() == from => {
                    *last = range.part(last.offset() - range.offset(), to - last.offset());
                }
                _ => holes.push(range.part(from - range.offset(), to - from)),
            }
        }
        Ok(holes)
    }

    async fn write(&self, mut payload: Payload, _: Durability) -> Result<(), ExportError> {
        let mut disk = self.writable()?;
        let range = payload.range();
        let mut at = span(range).start;
        for window in payload.windows_mut() {
            disk.bytes[at..at + window.len()].copy_from_slice(window);
            at += window.len();
        }
        disk.mark(range.covering_sectors(), Allocation::Data);
        Ok(())
    }

    async fn trim(&self, range: ByteRange, _: Durability) -> Result<(), ExportError> {
        let mut disk = self.writable()?;
        let sectors = range.whole_sectors();
        let at = usize::try_from(sectors.start.byte_offset()).expect("the disk fits in memory");
        let len = usize::try_from(sectors.byte_len()).expect("the disk fits in memory");
        if len > 0 {
            disk.bytes[at..at + len].fill(0);
            disk.mark(sectors, Allocation::Hole);
        }
        Ok(())
    }

    async fn write_zeroes(&self, range: ByteRange, mode: ZeroMode, _: Durability) -> Result<(), ExportError> {
        let mut disk = self.writable()?;
        disk.bytes[span(range)].fill(0);
        let allocation = match mode {
            ZeroMode::MayPunch => Allocation::Hole,
            ZeroMode::NoHole => Allocation::Zero,
        };
        if range.whole_sectors().count > 0 {
            disk.mark(range.whole_sectors(), allocation);
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), ExportError> {
        Ok(())
    }

    async fn cache(&self, _: ByteRange) -> Result<(), ExportError> {
        Ok(())
    }

    async fn block_status(&self, range: ByteRange, extents_max: usize) -> Result<Vec<Extent>, ExportError> {
        let disk = self.disk();
        let mut extents: Vec<Extent> = Vec::new();
        for lba in range.covering_sectors().start.0..range.covering_sectors().end().0 {
            let allocation = disk.allocation[usize::try_from(lba).expect("the disk fits in memory")];
            let from = (lba * SECTOR_BYTES).max(range.offset());
            let len = ((lba + 1) * SECTOR_BYTES).min(range.end()) - from;
            let full = extents.len() == extents_max;
            match extents.last_mut() {
                Some(last) if last.allocation == allocation => last.len += len,
                _ if full => break,
                _ => extents.push(Extent { len, allocation }),
            }
        }
        Ok(extents)
    }
}
