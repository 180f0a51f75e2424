//! Verifying a volume: the whole tree, the live counts, and with `deep` every sector
//! (docs/FORMAT.md §16, I4 and I5).

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;

use super::tree::{Tree, page_range};
use super::{Core, Volume, VolumeError};
use crate::export::{Allocation, Export};
use crate::format::page::{FANOUT, Handle, Loc, TOP_LEVEL};
use crate::format::segment::SegmentKind;
use crate::geometry::{ByteRange, Lba, SECTOR_BYTES, SECTOR_LEN, SectorRange};
use crate::payload::RECORD_LEN;

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Bytes read at once by a deep check.
const PIECE_BYTES: u64 = 1 << 20;
/// Damaged ranges and problems listed; more are only counted.
const LISTED_MAX: usize = 1000;
/// Runs asked for at once while walking the map.
const EXTENTS_MAX: usize = 1024;

/// What a check found.
#[derive(Clone, Default, Debug, serde::Serialize)]
pub struct CheckReport {
    /// Index pages read and authenticated.
    pub pages: u64,
    /// Sectors that the tree maps to records.
    pub mapped_sectors: u64,
    /// Sectors read and authenticated (deep).
    pub verified_sectors: u64,
    /// Contradictions found, each in words.
    pub problems: Vec<String>,
    /// Sectors that cannot be read, as first sector and count.
    pub damaged: Vec<(u64, u64)>,
}

impl CheckReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty() && self.damaged.is_empty()
    }

    fn problem(&mut self, text: String) {
        if self.problems.len() < LISTED_MAX {
            self.problems.push(text);
        }
    }

    fn damage(&mut self, sectors: SectorRange) {
        let full = self.damaged.len() >= LISTED_MAX;
        match self.damaged.last_mut() {
            Some((start, count)) if *start + *count == sectors.start.0 => *count += sectors.count,
            _ if full => {}
            _ => self.damaged.push((sectors.start.0, sectors.count)),
        }
    }
}

impl Volume {
    /// Walks the whole index and compares what it needs with the segment table; when `deep`, reads
    /// and authenticates every mapped sector. `progress` is told the bytes of the export passed.
    ///
    /// # Errors
    /// The store's. Damage is no error: it is in the report.
    pub async fn check(
        &self,
        deep: bool,
        progress: impl Fn(u64) + Send + Sync,
    ) -> Result<CheckReport, VolumeError> {
        let mut report = CheckReport::default();
        {
            // No root is written, so tree and table stay of one state.
            let _still = self.core.checkpointer.lock().await;
            let tree = self.core.map().tree.clone();
            let mut walk = Walk { core: &self.core, report: &mut report, live: HashMap::new() };
            walk.tree(&tree).await?;
            let live = walk.live;
            self.core.compare_live(&live, &mut report);
        }
        if deep {
            self.verify_sectors(&mut report, progress).await?;
        }
        Ok(report)
    }

    async fn verify_sectors(
        &self,
        report: &mut CheckReport,
        progress: impl Fn(u64) + Send + Sync,
    ) -> Result<(), VolumeError> {
        let size = self.core.header.export_bytes;
        let mut at = 0;
        while at < size {
            let rest = ByteRange::within(at, size - at, size).expect("inside the export");
            let Ok(extents) = self.block_status(rest, EXTENTS_MAX).await else {
                // The walk of the tree has named the page; go on behind its leaf.
                let leaf = FANOUT as u64 * SECTOR_BYTES;
                let end = ((at / leaf + 1) * leaf).min(size);
                report.damage(SectorRange::new(Lba(at / SECTOR_BYTES), (end - at) / SECTOR_BYTES));
                at = end;
                continue;
            };
            for extent in extents {
                if extent.allocation == Allocation::Data {
                    self.verify_extent(report, at, extent.len, &progress).await;
                }
                at += extent.len;
                progress(at);
            }
        }
        Ok(())
    }

    async fn verify_extent(&self, report: &mut CheckReport, start: u64, len: u64, progress: &impl Fn(u64)) {
        let size = self.core.header.export_bytes;
        let mut buf = vec![0; usize::try_from(PIECE_BYTES.min(len)).expect("1 MiB")];
        for at in (start..start + len).step_by(usize::try_from(PIECE_BYTES).expect("1 MiB")) {
            let piece = PIECE_BYTES.min(start + len - at);
            let range = ByteRange::within(at, piece, size).expect("inside the export");
            let target = &mut buf[..usize::try_from(piece).expect("1 MiB")];
            if self.read(range, target).await.is_ok() {
                report.verified_sectors += piece / SECTOR_BYTES;
            } else {
                self.verify_each(report, range).await;
            }
            progress(at + piece);
        }
    }

    async fn verify_each(&self, report: &mut CheckReport, range: ByteRange) {
        let sectors = range.covering_sectors();
        let mut sector = [0; SECTOR_LEN];
        for lba in sectors.start.0..sectors.end().0 {
            match self.core.read_sector(Lba(lba), &mut sector).await {
                Ok(()) => report.verified_sectors += 1,
                Err(_) => report.damage(SectorRange::new(Lba(lba), 1)),
            }
        }
    }
}

impl Core {
    fn compare_live(&self, live: &HashMap<Handle, u64>, report: &mut CheckReport) {
        let table = self.segments.table();
        for (handle, row) in table.rows() {
            let walked = live.get(&handle).copied().unwrap_or(0);
            if walked != u64::from(row.live) {
                report.problem(format!(
                    "segment {handle} at byte {} counts {} live bytes; the index needs {walked}",
                    row.phys, row.live
                ));
            }
        }
        for (handle, bytes) in live {
            if table.row(*handle).is_none() {
                report.problem(format!(
                    "the index needs {bytes} bytes of segment {handle}, which is not in the table"
                ));
            }
        }
    }
}

struct Walk<'a> {
    core: &'a Core,
    report: &'a mut CheckReport,
    live: HashMap<Handle, u64>,
}

impl Walk<'_> {
    async fn tree(&mut self, tree: &Tree) -> Result<(), VolumeError> {
        for (number, top) in (0u64..).zip(&tree.tops) {
            self.page(TOP_LEVEL, number, *top).await?;
        }
        Ok(())
    }

    fn page(&mut self, level: u8, number: u64, loc: Loc) -> BoxFuture<'_, Result<(), VolumeError>> {
        Box::pin(async move {
            let Some(handle) = loc.handle() else { return Ok(()) };
            *self.live.entry(handle).or_default() += loc.len() as u64;
            self.report.pages += 1;
            let children = if level == 0 {
                self.core
                    .pages
                    .leaf(&self.core.segments, loc, number)
                    .await
                    .map(|leaf| Box::new(leaf.to_locs()))
            } else {
                let page = self.core.pages.inner(&self.core.segments, loc, level, number).await;
                page.map(|inner| inner.children.clone())
            };
            let children = match children {
                Ok(children) => children,
                Err(error @ VolumeError::Store(_)) => return Err(error),
                Err(error) => {
                    let sectors = page_range(level, number);
                    self.report.problem(format!("sectors {}+{}: {error}", sectors.start, sectors.count));
                    return Ok(());
                }
            };
            for (index, child) in (0u64..).zip(children.iter()) {
                if level > 0 {
                    self.page(level - 1, number * FANOUT as u64 + index, *child).await?;
                } else {
                    self.record(number * FANOUT as u64 + index, *child);
                }
            }
            Ok(())
        })
    }

    fn record(&mut self, lba: u64, loc: Loc) {
        let Some(handle) = loc.handle() else { return };
        self.report.mapped_sectors += 1;
        *self.live.entry(handle).or_default() += RECORD_LEN as u64;
        let kind = self.core.segments.table().row(handle).map(|row| row.kind);
        if kind == Some(SegmentKind::Index) {
            self.report.problem(format!("sector {lba} is mapped into an index segment"));
        }
    }
}
