//! The whole tree of one root, read from the store: every page authenticated, every location one that the
//! table knows, and how many bytes of each segment are needed.

use futures_util::{StreamExt, stream};
use tokio::task::yield_now;

use super::report::{CheckReport, Structure};
use super::state::Expected;
use super::{Still, Stop, is_local};
use crate::format::page::{FANOUT, Inner, Leaf, Loc, TOP_LEVEL, open_sealed_page};
use crate::format::segment::SegmentKind;
use crate::geometry::{SECTOR_BYTES, SectorRange};
use crate::payload::RECORD_LEN;
use crate::store::BoxFuture;
use crate::volume::tree::page_range;
use crate::volume::{Core, VolumeError};

/// Leaves read at the same time: keeps a disk or a connection busy, and takes 64 KiB.
const LEAVES_AT_ONCE_MAX: usize = 16;

/// What stands below a page.
type Children = Box<[Loc; FANOUT]>;

pub(super) struct Walk<'a> {
    core: &'a Core,
    report: &'a mut CheckReport,
    table: &'a [Expected],
    still: &'a Still<'a>,
    /// Sectors of the volume, as the root has it.
    end: u64,
    live: Vec<u32>,
    /// Some page could not be read, so nobody knows what is needed.
    blind: bool,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        core: &'a Core,
        report: &'a mut CheckReport,
        table: &'a [Expected],
        still: &'a Still<'a>,
        export_bytes: u64,
    ) -> Self {
        let (end, live) = (export_bytes / SECTOR_BYTES, vec![0; table.len()]);
        Self { core, report, table, still, end, live, blind: false }
    }

    /// The bytes of each segment that the tree needs; `None` when not all of it could be read.
    pub(super) async fn tree(
        mut self,
        tops: &[Loc],
        progress: &(impl Fn(u64) + Send + Sync),
    ) -> Result<Option<Vec<u32>>, Stop> {
        for (number, top) in (0u64..).zip(tops) {
            self.page(TOP_LEVEL, number, *top, progress).await?;
        }
        Ok((!self.blind).then_some(self.live))
    }

    fn page<'b>(
        &'b mut self,
        level: u8,
        number: u64,
        loc: Loc,
        progress: &'b (impl Fn(u64) + Send + Sync),
    ) -> BoxFuture<'b, Result<(), Stop>> {
        Box::pin(async move {
            let passed = page_range(level, number).end().0.min(self.end) * SECTOR_BYTES;
            if loc.handle().is_none() {
                progress(passed);
                return Ok(());
            }
            let read = read_page(self.core, level, number, loc).await;
            if let Some(children) = self.found(level, number, loc, read)? {
                if level == 1 {
                    self.leaves(number, &children, progress).await?;
                } else {
                    for (index, child) in (0u64..).zip(children.iter()) {
                        self.page(level - 1, number * FANOUT as u64 + index, *child, progress).await?;
                    }
                }
            }
            progress(passed);
            Ok(())
        })
    }

    async fn leaves(
        &mut self,
        parent: u64,
        children: &[Loc; FANOUT],
        progress: &(impl Fn(u64) + Send + Sync),
    ) -> Result<(), Stop> {
        let core = self.core;
        let numbered = (0u64..).zip(children).map(|(index, loc)| (parent * FANOUT as u64 + index, *loc));
        let present: Vec<(u64, Loc)> = numbered.filter(|(_, loc)| loc.handle().is_some()).collect();
        let reads = present.into_iter().map(|(number, loc)| read_leaf(core, number, loc));
        let mut read = stream::iter(reads).buffered(LEAVES_AT_ONCE_MAX);
        while let Some((number, loc, read)) = read.next().await {
            if let Some(children) = self.found(0, number, loc, read)? {
                for (index, child) in (0u64..).zip(children.iter()) {
                    self.record(number * FANOUT as u64 + index, *child);
                }
            }
            progress(self.inside(page_range(0, number)).end().0 * SECTOR_BYTES);
            // A store that never waits must not keep others waiting.
            yield_now().await;
        }
        Ok(())
    }

    /// Notes what became of reading a page; its children, when it is as it should be.
    fn found(
        &mut self,
        level: u8,
        number: u64,
        loc: Loc,
        read: Result<Children, VolumeError>,
    ) -> Result<Option<Children>, Stop> {
        self.still.check()?;
        self.count(loc, "page");
        match read {
            Ok(children) => {
                self.report.pages += 1;
                Ok(Some(children))
            }
            Err(error) if is_local(&error) => {
                self.blind = true;
                let sectors = self.inside(page_range(level, number));
                let (start, count) = (sectors.start, sectors.count);
                let text = format!("level {level}, above sectors {start}+{count}: {error}");
                let place = self.core.segments.place(loc).ok().map(|place| place.phys + loc.offset());
                self.report.problem(Structure::IndexPage, place, text);
                self.below(sectors);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn inside(&self, sectors: SectorRange) -> SectorRange {
        let end = sectors.end().0.min(self.end);
        SectorRange::new(sectors.start, end.saturating_sub(sectors.start.0))
    }

    /// Nobody knows what lies below a damaged page, but for what the log has of it.
    fn below(&mut self, sectors: SectorRange) {
        let (newer, ..) = self.core.resolve(sectors);
        newer.into_iter().filter(|(_, loc)| loc.is_none()).for_each(|(lost, _)| self.report.damage(lost));
    }

    fn record(&mut self, lba: u64, loc: Loc) {
        if loc.handle().is_none() {
            return;
        }
        self.report.mapped_sectors += 1;
        if self.count(loc, "record") == Some(SegmentKind::Index) {
            let text = format!("sector {lba} is mapped into a segment of index pages");
            self.report.problem(Structure::IndexPage, None, text);
        }
        if lba >= self.end {
            let text = format!("sector {lba} lies behind the end of the volume");
            self.report.problem(Structure::IndexPage, None, text);
        }
    }

    /// Counts what a location needs; the kind of its segment, when the table has it.
    fn count(&mut self, loc: Loc, what: &str) -> Option<SegmentKind> {
        let handle = loc.handle()?;
        let at = usize::try_from(handle).expect("handles are u32");
        let kind = self.table.get(at).and_then(|row| row.kind);
        if kind.is_none() {
            let text = format!("a {what} lies in segment {handle}, which is not in use");
            self.report.problem(Structure::SegmentTable, None, text);
            return None;
        }
        let len = if what == "record" { RECORD_LEN } else { loc.len() };
        let len = u32::try_from(len).expect("a page or a record");
        self.live[at] = self.live[at].saturating_add(len);
        kind
    }
}

type LeafRead = (u64, Loc, Result<Children, VolumeError>);

fn read_leaf(core: &Core, number: u64, loc: Loc) -> BoxFuture<'_, LeafRead> {
    Box::pin(async move { (number, loc, read_page(core, 0, number, loc).await) })
}

/// A page as it stands on the store, whatever the cache holds.
async fn read_page(core: &Core, level: u8, number: u64, loc: Loc) -> Result<Children, VolumeError> {
    let place = core.segments.place(loc)?;
    let at = place.phys + loc.offset();
    let damaged = |source| VolumeError::damaged("index page", at, source);
    let sealed = core.segments.read(&place, loc.offset(), loc.len()).await?;
    let plaintext = open_sealed_page(&place.key, loc.offset(), level, number, &sealed).map_err(damaged)?;
    if level == 0 {
        return Ok(Box::new(Leaf::decode(&plaintext).map_err(damaged)?.to_locs()));
    }
    let inner = Inner::decode(&plaintext, level).map_err(damaged)?;
    if inner.level != level {
        return Err(VolumeError::Inconsistent("a page pointer names a page of another level".into()));
    }
    Ok(inner.children)
}
