//! Getting space back from index segments that hold only a few pages which are still needed: the next
//! checkpoint writes those pages again, with everything else that it writes, and frees the segment.
//!
//! An index segment has no list of its pages. Locations say which segment a page lies in, and those of
//! the leaves are in the pages of level 1, one per GiB: no leaf is read for this.

use std::collections::HashSet;

use super::tree::{Tree, page_range};
use super::{Core, VolumeError};
use crate::format::page::{FANOUT, Handle, Loc, TOP_LEVEL};
use crate::format::segment::SegmentKind;
use crate::format::table::SegmentState;

/// Sparse segments for whose sake the tree is searched.
const SPARSE_MIN: usize = 8;
/// Segments emptied by one checkpoint.
const VICTIMS_MAX: usize = 64;
/// A segment is sparse when less than this part of it is needed.
const SPARSE_BELOW: (u64, u64) = (1, 4);

impl Core {
    /// The pages that lie in sparse index segments, as level and number, in order of their first sector.
    pub(super) async fn pages_to_move(&self, tree: &Tree) -> Result<Vec<(u8, u64)>, VolumeError> {
        let sparse = self.sparse_index_segments();
        if sparse.len() < SPARSE_MIN {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        let lies_there = |loc: Loc| loc.handle().is_some_and(|handle| sparse.contains(&handle));
        for (number, top) in (0u64..).zip(&tree.tops) {
            let mut inner = vec![(TOP_LEVEL, number, *top)];
            while let Some((level, number, loc)) = inner.pop() {
                if lies_there(loc) {
                    found.push((level, number));
                }
                if level == 0 || loc.handle().is_none() {
                    continue;
                }
                let page = self.pages.inner(&self.segments, loc, level, number).await?;
                let children = (0u64..).zip(page.children.iter());
                let children = children.map(|(index, child)| (number * FANOUT as u64 + index, *child));
                if level > 1 {
                    inner.extend(children.map(|(number, child)| (level - 1, number, child)));
                } else {
                    found.extend(
                        children.filter(|(_, child)| lies_there(*child)).map(|(number, _)| (0, number)),
                    );
                }
            }
        }
        found.sort_by_key(|(level, number)| page_range(*level, *number).start);
        Ok(found)
    }

    fn sparse_index_segments(&self) -> HashSet<Handle> {
        let segment = u64::from(self.header().segment_bytes);
        let table = self.segments.table();
        let mut sparse: Vec<(u32, Handle)> = table
            .rows()
            .filter(|(_, row)| row.kind == SegmentKind::Index && row.state == SegmentState::Closed)
            .filter(|(_, row)| row.live > 0)
            .filter(|(_, row)| u64::from(row.live) * SPARSE_BELOW.1 < segment * SPARSE_BELOW.0)
            .map(|(handle, row)| (row.live, handle))
            .collect();
        sparse.sort_unstable();
        sparse.truncate(VICTIMS_MAX);
        sparse.into_iter().map(|(_, handle)| handle).collect()
    }
}
