//! The index tree on the store: fixed radix, write-once pages, found from the root's top pointers
//! (docs/FORMAT.md §7). Reading it; `merge.rs` makes new ones.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use super::VolumeError;
use super::delta::Run;
use super::io::{CACHE_SHARDS, SegmentReader, UidHash};
use crate::format::page::{FANOUT, Inner, Leaf, Loc, TOP_LEVEL, open_sealed_page};
use crate::geometry::{Lba, SectorRange};

/// Memory for decoded pages until [`Pages::limit`] says otherwise.
const CACHE_BYTES: u64 = 24 << 20;
/// Leaves that are worth fetching together: hides the latency of a remote store.
pub(super) const LEAVES_AT_ONCE: usize = 64;
/// A page in memory, about; sizes the cache's table.
const PAGE_BYTES_TYPICAL: usize = 4096;

/// Sectors below one page of that level.
pub(super) fn page_sectors(level: u8) -> u64 {
    (FANOUT as u64).pow(u32::from(level) + 1)
}

/// The sectors below page `number` of `level`.
pub(super) fn page_range(level: u8, number: u64) -> SectorRange {
    SectorRange::new(Lba(number * page_sectors(level)), page_sectors(level))
}

/// A decoded page.
#[derive(Clone)]
pub(super) enum Page {
    Leaf(Arc<Leaf>),
    Inner(Arc<Inner>),
}

impl Page {
    /// Its plaintext, as it is sealed.
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Leaf(leaf) => leaf.encode(),
            Self::Inner(inner) => inner.encode(),
        }
    }
}

/// Pages by location. A location is one page for ever: the handle of a freed segment may come back,
/// so the segment's uid is part of the key.
#[derive(Clone, PartialEq, Eq, Hash)]
struct PageKey {
    uid: crate::cipher::Uid,
    offset: u64,
}

#[derive(Clone)]
struct PageWeight;

impl Weighter<PageKey, Page> for PageWeight {
    fn weight(&self, _: &PageKey, page: &Page) -> u64 {
        let body = match page {
            Page::Inner(_) => FANOUT * size_of::<Loc>(),
            Page::Leaf(leaf) => match &**leaf {
                Leaf::Dense(_) => FANOUT * size_of::<Loc>(),
                Leaf::Extents(extents) => extents.capacity() * 16,
            },
        };
        body as u64 + 96
    }
}

/// One state of the tree: its top pointers, one per 512 GiB.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Tree {
    pub(super) tops: Vec<Loc>,
}

impl Tree {
    /// The tree of an empty volume of `sectors` sectors.
    pub(super) fn empty(sectors: u64) -> Self {
        let tops = usize::try_from(sectors.div_ceil(page_sectors(TOP_LEVEL))).expect("at most 8192");
        Self { tops: vec![Loc::HOLE; tops] }
    }
}

/// Reads pages, with a bounded cache.
pub(super) struct Pages {
    cache: Cache<PageKey, Page, PageWeight, UidHash>,
}

impl Pages {
    pub(super) fn new() -> Self {
        let items = usize::try_from(CACHE_BYTES).unwrap_or(usize::MAX) / PAGE_BYTES_TYPICAL;
        let options = OptionsBuilder::new()
            .estimated_items_capacity(items)
            .weight_capacity(CACHE_BYTES)
            .shards(CACHE_SHARDS)
            .build()
            .expect("both capacities are given");
        let cache = Cache::with_options(options, PageWeight, UidHash::default(), DefaultLifecycle::default());
        Self { cache }
    }

    /// Keeps at most so many bytes of pages, from now on. Pages may go at any time.
    pub(super) fn limit(&self, bytes: u64) {
        self.cache.set_capacity(bytes);
    }

    /// Bytes of pages kept now, and at most.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.cache.weight(), self.cache.capacity())
    }

    /// Keeps a page that was written just now: it is asked for as soon as the one that it replaces was. `loc` lies
    /// in a segment of the table.
    pub(super) fn keep(&self, segments: &SegmentReader, loc: Loc, page: Page) {
        if let Ok(row) = segments.row(loc) {
            self.cache.insert(PageKey { uid: row.uid, offset: loc.offset() }, page);
        }
    }

    /// Lets go of pages that nobody will look for any more, so that the memory is for those of the newest tree. Who
    /// still reads by an older one finds them on the store.
    pub(super) fn forget(&self, segments: &SegmentReader, pages: &[Loc]) {
        for loc in pages {
            if let Ok(row) = segments.row(*loc) {
                self.cache.remove(&PageKey { uid: row.uid, offset: loc.offset() });
            }
        }
    }

    /// The page `number` of `level` at `loc`.
    async fn page(
        &self,
        segments: &SegmentReader,
        loc: Loc,
        level: u8,
        number: u64,
    ) -> Result<Page, VolumeError> {
        let row = segments.row(loc)?;
        let key = PageKey { uid: row.uid, offset: loc.offset() };
        if let Some(page) = self.cache.get(&key) {
            return Ok(page);
        }
        let place = segments.place_in(&row);
        let sealed = segments.read(&place, loc.offset(), loc.len()).await?;
        let plaintext = open_sealed_page(&place.key, loc.offset(), level, number, &sealed)
            .map_err(|source| VolumeError::damaged("index page", place.phys + loc.offset(), source))?;
        let damaged = |source| VolumeError::damaged("index page", place.phys + loc.offset(), source);
        let page = if level == 0 {
            Page::Leaf(Arc::new(Leaf::decode(&plaintext).map_err(damaged)?))
        } else {
            Page::Inner(Arc::new(Inner::decode(&plaintext, level).map_err(damaged)?))
        };
        self.cache.insert(key, page.clone());
        Ok(page)
    }

    pub(super) async fn leaf(
        &self,
        segments: &SegmentReader,
        loc: Loc,
        number: u64,
    ) -> Result<Arc<Leaf>, VolumeError> {
        match self.page(segments, loc, 0, number).await? {
            Page::Leaf(leaf) => Ok(leaf),
            Page::Inner(_) => Err(VolumeError::Inconsistent("a leaf pointer names an inner page".into())),
        }
    }

    pub(super) async fn inner(
        &self,
        segments: &SegmentReader,
        loc: Loc,
        level: u8,
        number: u64,
    ) -> Result<Arc<Inner>, VolumeError> {
        match self.page(segments, loc, level, number).await? {
            Page::Inner(inner) if inner.level == level => Ok(inner),
            _ => Err(VolumeError::Inconsistent("a page pointer names a page of another level".into())),
        }
    }

    /// Brings leaves into memory, by number, all at once, for who looks at one after the other; no more than
    /// [`LEAVES_AT_ONCE`], or the first may be gone before it is looked at. What cannot be had is told to who looks.
    pub(super) async fn fetch(&self, segments: &SegmentReader, tree: &Tree, leaves: &[u64]) {
        let walk = &self.walk(segments, tree);
        let fetch = |number: &u64| {
            let sectors = page_range(0, *number);
            async move { drop(walk.find_leaf(sectors.start).await) }
        };
        stream::iter(leaves).for_each_concurrent(LEAVES_AT_ONCE, fetch).await;
    }

    /// Looks sectors up in a tree.
    pub(super) fn walk<'a>(&'a self, segments: &'a SegmentReader, tree: &'a Tree) -> Walk<'a> {
        Walk { pages: self, segments, tree, leaf: None }
    }
}

/// Looks up one sector after the other. Remembers the last leaf, since the next sector is in it most of the time.
pub(super) struct Walk<'a> {
    pages: &'a Pages,
    segments: &'a SegmentReader,
    tree: &'a Tree,
    leaf: Option<(u64, Arc<Leaf>)>,
}

impl Walk<'_> {
    /// The longest run known at once from sector `at` on: what the tree says of it, not longer than
    /// `count`. Costs at most three pages, whatever the length of the run. Behind the end there is a hole: whoever
    /// reads there began before the volume became smaller.
    ///
    /// # Errors
    /// The store's, [`VolumeError::Damaged`], [`VolumeError::Inconsistent`].
    pub(super) async fn run_at(&mut self, at: Lba, count: u64) -> Result<Run, VolumeError> {
        let number = at.0 / page_sectors(0);
        if self.leaf.as_ref().is_none_or(|(found, _)| *found != number) {
            match self.find_leaf(at).await? {
                Found::Leaf(leaf) => self.leaf = Some((number, leaf)),
                Found::All(run) => {
                    return Ok(run.clip(SectorRange::new(at, count)).expect("it covers the sector"));
                }
            }
        }
        let (_, leaf) = self.leaf.as_ref().expect("it was found");
        let in_leaf = usize::try_from(at.0 % FANOUT as u64).expect("below 512");
        let (loc, len) = leaf.run_at(in_leaf, usize::try_from(count).unwrap_or(usize::MAX));
        let run = Run { sectors: SectorRange::new(at, len as u64), loc };
        Ok(run.clip(SectorRange::new(at, count)).expect("the run starts in the window"))
    }

    /// The leaf of a sector, or what a page above it says of all below.
    async fn find_leaf(&self, at: Lba) -> Result<Found, VolumeError> {
        let Self { pages, segments, tree, .. } = self;
        let number = |level| at.0 / page_sectors(level);
        let top = usize::try_from(number(TOP_LEVEL)).expect("at most 8192");
        let Some(mut loc) = tree.tops.get(top).copied() else {
            let behind = SectorRange::new(at, u64::MAX - at.0);
            return Ok(Found::All(Run { sectors: behind, loc: Loc::HOLE }));
        };
        for level in (1..=TOP_LEVEL).rev() {
            if loc.handle().is_none() {
                return Ok(Found::All(Run { sectors: page_range(level, number(level)), loc }));
            }
            let child = usize::try_from(number(level - 1) % FANOUT as u64).expect("below 512");
            loc = pages.inner(segments, loc, level, number(level)).await?.children[child];
        }
        if loc.handle().is_none() {
            return Ok(Found::All(Run { sectors: page_range(0, number(0)), loc }));
        }
        pages.leaf(segments, loc, number(0)).await.map(Found::Leaf)
    }
}

/// What a sector is found in.
enum Found {
    Leaf(Arc<Leaf>),
    /// All of its sectors are the same.
    All(Run),
}

#[cfg(test)]
mod tests;
