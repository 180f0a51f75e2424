//! Folding newer entries into the tree: touched leaves in order of address, then their parents, as
//! new pages (docs/FORMAT.md §10 c2, c3). Counts what becomes live and what does not stay so.
//!
//! Newer entries come first. Then a move takes effect where the tree still finds the sector in its old
//! place. Pages that are asked for are written again as they are, to empty the segment that they lie in.

use std::future::Future;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;

use super::cold::Move;
use super::delta::Run;
use super::index_writer::IndexWriter;
use super::segments::LiveChange;
use super::tree::{LEAVES_AT_ONCE, Page, Tree, page_range, page_sectors};
use super::{Core, VolumeError};
use crate::format::page::{FANOUT, Inner, Leaf, Loc, TOP_LEVEL};
use crate::geometry::{Lba, SectorRange};
use crate::payload::RECORD_LEN;

/// More pages than are in memory in most cases; what a merge takes does not grow with what a client trims.
const REPLACED_MAX: usize = 1 << 16;

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What is to change in one part of the tree, or more: what touches it. Ascending; runs and moves do not overlap.
#[derive(Clone, Copy, Debug)]
pub(super) struct Changes<'a> {
    pub(super) runs: &'a [Run],
    pub(super) moves: &'a [Move],
    /// Pages to write again, as level and number, in order of their first sector.
    pub(super) pages: &'a [(u8, u64)],
}

impl Changes<'_> {
    /// What of it touches the page `number` of `level`.
    fn below(self, level: u8, number: u64) -> Self {
        let window = page_range(level, number);
        let start = |(level, number): &(u8, u64)| page_range(*level, *number).start;
        let first = self.pages.partition_point(|page| start(page) < window.start);
        let end = self.pages.partition_point(|page| start(page) < window.end());
        Self {
            runs: touching(self.runs, window, |run| run.sectors),
            moves: touching(self.moves, window, |moved| moved.sectors),
            pages: &self.pages[first..end],
        }
    }

    fn is_empty(self) -> bool {
        self.runs.is_empty() && self.moves.is_empty() && self.pages.is_empty()
    }

    /// The children, of `level`, in `window` that anything touches; ascending, each once.
    fn children(self, level: u8, window: SectorRange) -> Vec<u64> {
        let sectors = page_sectors(level);
        let of = |touched: SectorRange| {
            let (start, end) = (touched.start.max(window.start), touched.end().min(window.end()));
            start.0 / sectors..=(end.0 - 1) / sectors
        };
        let mut found: Vec<u64> = Vec::new();
        // Neighbours are in the same page most of the time, and need no place of their own here.
        let mut touches = |children: RangeInclusive<u64>| {
            let (first, last) = children.into_inner();
            found.extend(first + u64::from(found.last() == Some(&first))..=last);
        };
        self.runs.iter().for_each(|run| touches(of(run.sectors)));
        self.moves.iter().for_each(|moved| touches(of(moved.sectors)));
        let pages = self.pages.iter().filter(|page| page.0 <= level);
        found.extend(pages.map(|page| page_range(page.0, page.1).start.0 / sectors));
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// One merge under way.
pub(super) struct Merger<'a> {
    pub(super) core: &'a Core,
    /// The tree before.
    pub(super) old: &'a Tree,
    pub(super) index: &'a mut IndexWriter,
    pub(super) change: LiveChange,
    /// Pages of the old tree that the new one does not have, at most [`REPLACED_MAX`] of them.
    pub(super) replaced: Vec<Loc>,
}

impl Merger<'_> {
    /// The tree that says what the old one says with `changes` made.
    pub(super) async fn merge(&mut self, changes: Changes<'_>) -> Result<Tree, VolumeError> {
        let mut tops = self.old.tops.clone();
        for (number, top) in (0u64..).zip(tops.iter_mut()) {
            let below = changes.below(TOP_LEVEL, number);
            if !below.is_empty() {
                *top = self.node(TOP_LEVEL, number, *top, below).await?;
            }
        }
        Ok(Tree { tops })
    }

    /// The new location of a page that `changes`, all below it, touch.
    fn node<'s>(
        &'s mut self,
        level: u8,
        number: u64,
        old: Loc,
        changes: Changes<'s>,
    ) -> BoxFuture<'s, Result<Loc, VolumeError>> {
        Box::pin(async move {
            let window = page_range(level, number);
            if let [run] = changes.runs
                && run.loc.handle().is_none()
                && run.clip(window).is_some_and(|part| part.sectors == window)
            {
                self.forget(level, number, old).await?;
                return Ok(run.loc);
            }
            if changes.runs.is_empty() && old.handle().is_none() {
                // Nothing below has a place that anything could have moved from.
                return Ok(old);
            }
            if level == 0 {
                return self.leaf(number, old, changes).await;
            }
            let mut children = match old.handle() {
                None => Box::new([old; FANOUT]),
                Some(_) => {
                    self.core.pages.inner(&self.core.segments, old, level, number).await?.children.clone()
                }
            };
            let below = level - 1;
            let mut changed = changes.pages.contains(&(level, number));
            for touched in changes.children(below, window).chunks(LEAVES_AT_ONCE) {
                self.fetch_leaves(below, touched).await;
                for child in touched {
                    let touching = changes.below(below, *child);
                    let index = usize::try_from(child % FANOUT as u64).expect("below 512");
                    let new = self.node(below, *child, children[index], touching).await?;
                    changed |= new != children[index];
                    children[index] = new;
                }
            }
            if !changed {
                return Ok(old);
            }
            self.drop_page(old);
            if let Some(same) = uniform(&children) {
                return Ok(same);
            }
            self.append(level, number, Page::Inner(Arc::new(Inner { level, children }))).await
        })
    }

    async fn leaf(&mut self, number: u64, old: Loc, changes: Changes<'_>) -> Result<Loc, VolumeError> {
        let mut locs = match old.handle() {
            None => [old; FANOUT],
            Some(_) => self.core.pages.leaf(&self.core.segments, old, number).await?.to_locs(),
        };
        let window = page_range(0, number);
        let index = |sector: Lba, step| {
            usize::try_from(sector.0 + step - window.start.0).expect("a leaf has 512 sectors")
        };
        let mut changed = changes.pages.contains(&(0, number));
        for run in changes.runs.iter().filter_map(|run| run.clip(window)) {
            for step in 0..run.sectors.count {
                changed |= self.replace(&mut locs[index(run.sectors.start, step)], run.loc.step(step));
            }
        }
        for moved in changes.moves.iter().filter_map(|moved| moved.clip(window)) {
            for step in 0..moved.sectors.count {
                let loc = &mut locs[index(moved.sectors.start, step)];
                // A client has written the sector since when it is not there any more.
                if *loc == moved.old.step(step) {
                    changed |= self.replace(loc, moved.new.step(step));
                }
            }
        }
        if !changed {
            return Ok(old);
        }
        self.drop_page(old);
        if let Some(same) = uniform(&locs) {
            return Ok(same);
        }
        let leaf = Leaf::from_locs(&locs).expect("a leaf of holes is uniform");
        self.append(0, number, Page::Leaf(Arc::new(leaf))).await
    }

    /// Lets a sector lie at `new`; whether that is another place.
    fn replace(&mut self, loc: &mut Loc, new: Loc) -> bool {
        if let Some(handle) = loc.handle() {
            self.change.remove(handle, RECORD_LEN);
        }
        if let Some(handle) = new.handle() {
            self.change.add(handle, RECORD_LEN);
        }
        std::mem::replace(loc, new) != new
    }

    async fn append(&mut self, level: u8, number: u64, page: Page) -> Result<Loc, VolumeError> {
        let loc = self.index.page(self.core, level, number, page.encode()).await?;
        self.core.pages.keep(&self.core.segments, loc, page);
        let handle = loc.handle().expect("pages lie in segments");
        self.change.add(handle, loc.len());
        Ok(loc)
    }

    /// What comes next, if that is leaves: a remote store would be waited for at each of them.
    async fn fetch_leaves(&self, level: u8, numbers: &[u64]) {
        if level == 0 {
            self.core.pages.fetch(&self.core.segments, self.old, numbers).await;
        }
    }

    /// Counts everything below a page, and the page, as no longer live.
    fn forget(&mut self, level: u8, number: u64, loc: Loc) -> BoxFuture<'_, Result<(), VolumeError>> {
        Box::pin(async move {
            if loc.handle().is_none() {
                return Ok(());
            }
            if level == 0 {
                let leaf: Arc<Leaf> = self.core.pages.leaf(&self.core.segments, loc, number).await?;
                for handle in leaf.to_locs().iter().filter_map(|loc| loc.handle()) {
                    self.change.remove(handle, RECORD_LEN);
                }
            } else {
                let page = self.core.pages.inner(&self.core.segments, loc, level, number).await?;
                let numbers: Vec<u64> = (number * FANOUT as u64..).take(FANOUT).collect();
                let pieces = numbers.chunks(LEAVES_AT_ONCE).zip(page.children.chunks(LEAVES_AT_ONCE));
                for (numbers, children) in pieces {
                    self.fetch_leaves(level - 1, numbers).await;
                    for (number, child) in numbers.iter().zip(children) {
                        self.forget(level - 1, *number, *child).await?;
                    }
                }
            }
            self.drop_page(loc);
            Ok(())
        })
    }

    fn drop_page(&mut self, loc: Loc) {
        if let Some(handle) = loc.handle() {
            self.change.remove(handle, loc.len());
            if self.replaced.len() < REPLACED_MAX {
                self.replaced.push(loc);
            }
        }
    }
}

/// Those of ascending, disjoint `changes` that have `sectors` in `window`.
fn touching<T>(changes: &[T], window: SectorRange, sectors: impl Fn(&T) -> SectorRange) -> &[T] {
    let first = changes.partition_point(|change| sectors(change).end() <= window.start);
    let end = changes.partition_point(|change| sectors(change).start < window.end());
    &changes[first..end]
}

/// The special location that all children share, if they do.
fn uniform(locs: &[Loc; FANOUT]) -> Option<Loc> {
    (locs[0].handle().is_none() && locs.iter().all(|loc| *loc == locs[0])).then_some(locs[0])
}
