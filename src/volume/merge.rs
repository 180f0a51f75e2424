//! Folding newer entries into the tree: touched leaves in order of address, then their parents, as
//! new pages (docs/FORMAT.md §10 c2, c3). Counts what becomes live and what does not stay so.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::delta::{Delta, Run};
use super::index_writer::IndexWriter;
use super::segments::LiveChange;
use super::tree::{Tree, page_range, page_sectors};
use super::{Core, VolumeError};
use crate::format::page::{FANOUT, Inner, Leaf, Loc, TOP_LEVEL};
use crate::geometry::SectorRange;
use crate::payload::RECORD_LEN;

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One merge under way.
pub(super) struct Merger<'a> {
    pub(super) core: &'a Core,
    pub(super) index: &'a mut IndexWriter,
    pub(super) change: LiveChange,
}

impl Merger<'_> {
    /// The tree that says what `tree` says with `delta` on top.
    pub(super) async fn merge(&mut self, tree: &Tree, delta: &Delta) -> Result<Tree, VolumeError> {
        let runs: Vec<Run> = delta.runs().collect();
        let mut tops = tree.tops.clone();
        for (number, top) in (0u64..).zip(tops.iter_mut()) {
            let below = clip(&runs, page_range(TOP_LEVEL, number));
            if !below.is_empty() {
                *top = self.node(TOP_LEVEL, number, *top, below).await?;
            }
        }
        Ok(Tree { tops })
    }

    /// The new location of a page that `runs`, all within it, change.
    fn node(
        &mut self,
        level: u8,
        number: u64,
        old: Loc,
        runs: Vec<Run>,
    ) -> BoxFuture<'_, Result<Loc, VolumeError>> {
        Box::pin(async move {
            if let [run] = runs.as_slice()
                && run.loc.handle().is_none()
                && run.sectors == page_range(level, number)
            {
                self.forget(level, number, old).await?;
                return Ok(run.loc);
            }
            if level == 0 {
                return self.leaf(number, old, &runs).await;
            }
            let mut children = match old.handle() {
                None => Box::new([old; FANOUT]),
                Some(_) => {
                    self.core.pages.inner(&self.core.segments, old, level, number).await?.children.clone()
                }
            };
            let below = level - 1;
            let child_of = |sector: u64| sector / page_sectors(below);
            let mut next = 0;
            for run in &runs {
                let (first, last) = (child_of(run.sectors.start.0), child_of(run.sectors.end().0 - 1));
                for child in first.max(next)..=last {
                    let touching = clip(&runs, page_range(below, child));
                    let index = usize::try_from(child % FANOUT as u64).expect("below 512");
                    children[index] = self.node(below, child, children[index], touching).await?;
                }
                next = last + 1;
            }
            self.drop_page(old);
            if let Some(same) = uniform(&children) {
                return Ok(same);
            }
            let page = Inner { level, children };
            self.append(level, number, page.encode()).await
        })
    }

    async fn leaf(&mut self, number: u64, old: Loc, runs: &[Run]) -> Result<Loc, VolumeError> {
        let mut locs = match old.handle() {
            None => [old; FANOUT],
            Some(_) => self.core.pages.leaf(&self.core.segments, old, number).await?.to_locs(),
        };
        let first = page_range(0, number).start.0;
        for run in runs {
            for step in 0..run.sectors.count {
                let index = usize::try_from(run.sectors.start.0 + step - first).expect("below 512");
                let new = run.loc.step(step);
                if let Some(handle) = locs[index].handle() {
                    self.change.remove(handle, RECORD_LEN);
                }
                if let Some(handle) = new.handle() {
                    self.change.add(handle, RECORD_LEN);
                }
                locs[index] = new;
            }
        }
        self.drop_page(old);
        if let Some(same) = uniform(&locs) {
            return Ok(same);
        }
        let leaf = Leaf::from_locs(&locs).expect("a leaf of holes is uniform");
        self.append(0, number, leaf.encode()).await
    }

    async fn append(&mut self, level: u8, number: u64, plaintext: Vec<u8>) -> Result<Loc, VolumeError> {
        let loc = self.index.page(self.core, level, number, plaintext).await?;
        let handle = loc.handle().expect("pages lie in segments");
        self.change.add(handle, loc.len());
        Ok(loc)
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
                for (index, child) in (0u64..).zip(page.children.iter()) {
                    self.forget(level - 1, number * FANOUT as u64 + index, *child).await?;
                }
            }
            self.drop_page(loc);
            Ok(())
        })
    }

    fn drop_page(&mut self, loc: Loc) {
        if let Some(handle) = loc.handle() {
            self.change.remove(handle, loc.len());
        }
    }
}

/// The parts of ascending, disjoint `runs` that lie in `window`.
fn clip(runs: &[Run], window: SectorRange) -> Vec<Run> {
    let first = runs.partition_point(|run| run.sectors.end() <= window.start);
    runs[first..]
        .iter()
        .take_while(|run| run.sectors.start < window.end())
        .filter_map(|run| run.clip(window))
        .collect()
}

/// The special location that all children share, if they do.
fn uniform(locs: &[Loc; FANOUT]) -> Option<Loc> {
    (locs[0].handle().is_none() && locs.iter().all(|loc| *loc == locs[0])).then_some(locs[0])
}
