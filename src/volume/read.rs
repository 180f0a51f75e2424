//! Reading (docs/FORMAT.md §9): newer entries, then the tree, then records, verified into the reply.
//!
//! A reader holds a guard while it uses locations, so their slots are not reused under it. Should a
//! record fail to authenticate all the same, its location is looked up once more before the read fails.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::delta::{Resolved, Run, resolve};
use super::io::read_store;
use super::tree::Tree;
use super::{Core, VolumeError};
use crate::export::{Allocation, ExportError, Extent};
use crate::format::page::Loc;
use crate::geometry::{ByteRange, Lba, SECTOR_BYTES, SECTOR_LEN, SectorRange};
use crate::payload::RECORD_LEN;

/// Records read from the store at once: about 1 MiB.
const READ_RECORDS_MAX: u64 = 256;

impl Core {
    /// Reads `range` into `buf` and tells which parts of it are holes or zeros.
    pub(super) async fn read(&self, range: ByteRange, buf: &mut [u8]) -> Result<Vec<ByteRange>, ExportError> {
        self.check_end(range)?;
        let mut zeros = Vec::new();
        let (newer, tree, _guard) = self.resolve(range.covering_sectors());
        for (sectors, loc) in newer {
            let mut at = sectors.start;
            while at < sectors.end() {
                let left = sectors.end().0 - at.0;
                let run = match loc {
                    Some(loc) => {
                        let whole = Run { sectors, loc };
                        whole.clip(SectorRange::new(at, left)).expect("the run covers the window")
                    }
                    None => self
                        .pages
                        .run_at(&self.segments, &tree, at, left)
                        .await
                        .map_err(|error| error.to_export())?,
                };
                self.read_run(run, range, buf, &mut zeros).await?;
                at = run.sectors.end();
            }
        }
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

    async fn read_run(
        &self,
        run: Run,
        range: ByteRange,
        buf: &mut [u8],
        zeros: &mut Vec<ByteRange>,
    ) -> Result<(), ExportError> {
        if run.loc.handle().is_none() {
            let (from, to) = clip_bytes(run.sectors, range);
            buf[index(from - range.offset())..index(to - range.offset())].fill(0);
            push_joined(zeros, range.part(from - range.offset(), to - from), range);
            return Ok(());
        }
        let mut done = 0;
        while done < run.sectors.count {
            let count = READ_RECORDS_MAX.min(run.sectors.count - done);
            let sectors = SectorRange::new(Lba(run.sectors.start.0 + done), count);
            let piece = Run { sectors, loc: run.loc.step(done) };
            match self.read_records(piece, range, buf).await {
                Ok(()) => {}
                Err(VolumeError::Damaged { .. } | VolumeError::Inconsistent(_)) => {
                    self.read_again(sectors, range, buf).await?;
                }
                Err(other) => return Err(other.to_export()),
            }
            done += count;
        }
        Ok(())
    }

    /// Looks the sectors up afresh, one by one, and reads them; the second failure is the answer.
    async fn read_again(
        &self,
        sectors: SectorRange,
        range: ByteRange,
        buf: &mut [u8],
    ) -> Result<(), ExportError> {
        for lba in sectors.start.0..sectors.end().0 {
            let (newer, tree, _guard) = self.resolve(SectorRange::new(Lba(lba), 1));
            let run = match newer.as_slice() {
                [(sectors, Some(loc))] => Run { sectors: *sectors, loc: *loc },
                _ => {
                    let found = self.pages.run_at(&self.segments, &tree, Lba(lba), 1).await;
                    found.map_err(|error| error.to_export())?
                }
            };
            if run.loc.handle().is_none() {
                let (from, to) = clip_bytes(run.sectors, range);
                buf[index(from - range.offset())..index(to - range.offset())].fill(0);
                continue;
            }
            if let Err(error) = self.read_records(run, range, buf).await {
                self.counters.authentication_failures.fetch_add(1, Ordering::Relaxed);
                return Err(error.to_export());
            }
        }
        Ok(())
    }

    /// Reads and opens records that stand one behind the other.
    pub(super) async fn read_records(
        &self,
        run: Run,
        range: ByteRange,
        buf: &mut [u8],
    ) -> Result<(), VolumeError> {
        let place = self.segments.place(run.loc)?;
        let offset = run.loc.offset();
        let len = index(run.sectors.count) * RECORD_LEN;
        if offset + len as u64 > self.segments.segment_bytes {
            return Err(VolumeError::Inconsistent("a run of records ends behind its segment".into()));
        }
        let records = read_store(&*self.store, place.phys + offset, len).await?;
        for (i, record) in (0u64..).zip(records.chunks_exact(RECORD_LEN)) {
            let lba = Lba(run.sectors.start.0 + i);
            let at = offset + i * RECORD_LEN as u64;
            let damaged = |_| {
                let source = crate::format::FormatError::Authentication("sector");
                VolumeError::damaged("sector", place.phys + at, source)
            };
            let (from, to) = clip_bytes(SectorRange::new(lba, 1), range);
            let target = &mut buf[index(from - range.offset())..index(to - range.offset())];
            if target.len() == SECTOR_LEN {
                place.key.open_record(at, lba, record, target).map_err(damaged)?;
            } else {
                let mut sector = [0; SECTOR_LEN];
                place.key.open_record(at, lba, record, &mut sector).map_err(damaged)?;
                let skip = index(from - lba.byte_offset());
                target.copy_from_slice(&sector[skip..skip + target.len()]);
            }
        }
        Ok(())
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
        for (sectors, loc) in newer {
            let mut at = sectors.start;
            while at < sectors.end() {
                let left = sectors.end().0 - at.0;
                let run = match loc {
                    Some(loc) => Run { sectors: SectorRange::new(at, left), loc },
                    None => {
                        let found = self.pages.run_at(&self.segments, &tree, at, left).await;
                        found.map_err(|error| error.to_export())?
                    }
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
