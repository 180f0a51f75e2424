//! Reading (docs/FORMAT.md §9): newer entries, then the tree, then records, verified into the reply.
//!
//! A reader holds a guard while it uses locations, so their slots are not reused under it. Should a
//! record fail to authenticate all the same, its location is looked up once more before the read fails.

mod records;
#[cfg(test)]
pub(super) mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use records::Reading;

use super::Core;
use super::delta::{Resolved, Run, resolve};
use super::tree::Tree;
use crate::export::{Allocation, ExportError, Extent};
use crate::format::page::Loc;
use crate::geometry::{ByteRange, Lba, SECTOR_BYTES, SECTOR_LEN, SectorRange};

impl Core {
    /// Reads `range` into `buf` and tells which parts of it are holes or zeros.
    pub(super) async fn read(&self, range: ByteRange, buf: &mut [u8]) -> Result<Vec<ByteRange>, ExportError> {
        self.check_end(range)?;
        // Looked at first: most find it set, and many threads share what it is in.
        if !self.read_lately.load(Ordering::Relaxed) {
            self.read_lately.store(true, Ordering::Relaxed);
        }
        let mut zeros = Vec::new();
        let (newer, tree, _guard) = self.resolve(range.covering_sectors());
        let mut walk = self.pages.walk(&self.segments, &tree);
        let mut reading = Reading::new(self, range, buf);
        for (sectors, loc) in newer {
            let mut at = sectors.start;
            while at < sectors.end() {
                let left = sectors.end().0 - at.0;
                let run = match loc {
                    Some(loc) => {
                        let whole = Run { sectors, loc };
                        whole.clip(SectorRange::new(at, left)).expect("the run covers the window")
                    }
                    None => walk.run_at(at, left).await.map_err(|error| error.to_export())?,
                };
                at = run.sectors.end();
                if run.loc.handle().is_some() {
                    reading.add(run).await?;
                } else {
                    push_joined(&mut zeros, reading.zero(run.sectors), range);
                }
            }
        }
        reading.finish().await?;
        Ok(zeros)
    }

    /// Reads one whole sector as it is now.
    pub(super) async fn read_sector(
        &self,
        lba: Lba,
        sector: &mut [u8; SECTOR_LEN],
    ) -> Result<(), ExportError> {
        let range =
            ByteRange::within(lba.byte_offset(), SECTOR_BYTES, u64::MAX).expect("a sector of the export");
        self.read(range, sector).await.map(|_| ())
    }

    /// The newer entries of a window, the tree for the rest, and a guard for both.
    pub(super) fn resolve(&self, window: SectorRange) -> (Resolved, Arc<Tree>, super::segments::ReadGuard) {
        let guard = self.segments.table().guard();
        let map = self.map();
        let mut resolved = Resolved::with_capacity(1);
        resolve(&map.active, window, &mut resolved);
        if let Some(frozen) = &map.frozen {
            for (sectors, loc) in std::mem::take(&mut resolved) {
                match loc {
                    Some(_) => resolved.push((sectors, loc)),
                    None => resolve(frozen, sectors, &mut resolved),
                }
            }
        }
        (resolved, map.tree.clone(), guard)
    }

    /// Brings the index pages of a range into memory.
    pub(super) async fn prefetch(&self, range: ByteRange) -> Result<(), ExportError> {
        self.block_status(range, 64).await.map(|_| ())
    }

    /// What a range is made of, from the index alone.
    pub(super) async fn block_status(
        &self,
        range: ByteRange,
        extents_max: usize,
    ) -> Result<Vec<Extent>, ExportError> {
        self.check_end(range)?;
        let mut extents: Vec<Extent> = Vec::new();
        let (newer, tree, _guard) = self.resolve(range.covering_sectors());
        let mut walk = self.pages.walk(&self.segments, &tree);
        for (sectors, loc) in newer {
            let mut at = sectors.start;
            while at < sectors.end() {
                let left = sectors.end().0 - at.0;
                let run = match loc {
                    Some(loc) => Run { sectors: SectorRange::new(at, left), loc },
                    None => walk.run_at(at, left).await.map_err(|error| error.to_export())?,
                };
                let allocation = match run.loc {
                    Loc::HOLE => Allocation::Hole,
                    Loc::ZERO => Allocation::Zero,
                    _ => Allocation::Data,
                };
                let (from, to) = clip_bytes(run.sectors, range);
                let full = extents.len() >= extents_max;
                match extents.last_mut() {
                    Some(last) if last.allocation == allocation => last.len += to - from,
                    _ if full => return Ok(extents),
                    _ => extents.push(Extent { len: to - from, allocation }),
                }
                at = run.sectors.end();
            }
        }
        Ok(extents)
    }
}

/// The bytes of `sectors` that lie in `range`, as offsets on the export.
fn clip_bytes(sectors: SectorRange, range: ByteRange) -> (u64, u64) {
    (sectors.start.byte_offset().max(range.offset()), sectors.end().byte_offset().min(range.end()))
}

fn push_joined(zeros: &mut Vec<ByteRange>, next: ByteRange, whole: ByteRange) {
    match zeros.last_mut() {
        Some(last) if last.end() == next.offset() => {
            *last = whole.part(last.offset() - whole.offset(), next.end() - last.offset());
        }
        _ => zeros.push(next),
    }
}

fn index(at: u64) -> usize {
    usize::try_from(at).expect("requests fit in memory")
}
