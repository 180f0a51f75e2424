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

/// The segments that lie in slots now, from the writes seen so far.
#[derive(Default)]
pub struct Targets {
    kinds: BTreeMap<u64, Target>,
}

impl Targets {
    /// What a write of `bytes` at `offset` belongs to; writes are told in the order in which they took effect.
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
        if bytes.starts_with(b"SEALSEG1") {
            let kind = match bytes[10] {
                1 => Target::Log,
                2 => Target::Index,
                3 => Target::Moved,
                other => panic!("a segment of kind {other} at {offset}"),
            };
            self.kinds.insert(offset, kind);
        }
        *self.kinds.range(..=offset).next_back().expect("a segment starts with its header").1
    }
}
