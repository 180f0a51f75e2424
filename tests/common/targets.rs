//! What a change of the store is a part of, told from its place and its bytes alone (docs/FORMAT.md §5, §6): so a test of
//! power cuts knows where its cuts fell.

#![allow(dead_code, unreachable_pub, reason = "every test file that includes this uses its part")]

use std::collections::BTreeMap;

use sealbd::format::header::{DATA_START, HEADER_LEN, HEADER_OFFSETS, RING_OFFSET};

/// What a write to the store belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Target {
    /// A copy of the header: a resize, where keys do not change.
    Header,
    /// A block of the ring: the end of a checkpoint or of another root.
    Ring,
    /// A segment of the log: what clients write.
    Log,
    /// A segment of the index: pages and roots of a checkpoint.
    Index,
    /// A segment of the cold stream: sectors that reclaim moves.
    Moved,
}

/// The segments that lie in slots now, from the changes seen so far.
pub struct Targets {
    segment_bytes: u64,
    /// By number of the slot.
    kinds: BTreeMap<u64, Target>,
}

impl Targets {
    /// Of a new volume with segments of that size.
    pub fn new(segment_bytes: u64) -> Self {
        Self { segment_bytes, kinds: BTreeMap::new() }
    }

    /// What a write of `bytes` at `offset` belongs to; changes are told in the order in which they take effect.
    ///
    /// # Panics
    /// When it is no part of a volume.
    pub fn of(&mut self, offset: u64, bytes: &[u8]) -> Target {
        let header = |copy: &u64| (*copy..*copy + HEADER_LEN as u64).contains(&offset);
        if HEADER_OFFSETS.iter().any(header) {
            return Target::Header;
        }
        if (RING_OFFSET..DATA_START).contains(&offset) {
            return Target::Ring;
        }
        let slot = (offset - DATA_START) / self.segment_bytes;
        if bytes.starts_with(b"SEALSEG1") {
            let kind = match bytes[10] {
                1 => Target::Log,
                2 => Target::Index,
                3 => Target::Moved,
                other => panic!("a segment of kind {other} at {offset}"),
            };
            self.kinds.insert(slot, kind);
        }
        // Only chunks of the log are written several at a time, so that a later one may come before the segment's header.
        let is_chunk = bytes.starts_with(b"CHNK");
        self.kinds.get(&slot).copied().unwrap_or_else(|| {
            assert!(is_chunk, "a write at {offset} before the segment's header");
            Target::Log
        })
    }

    /// A slot is dropped before it is used again.
    pub fn dropped(&mut self, offset: u64) {
        if let Some(behind) = offset.checked_sub(DATA_START) {
            self.kinds.remove(&(behind / self.segment_bytes));
        }
    }
}
