//! Puts the answer to one read together from the chunks of a structured reply.
//!
//! Pure. The chunks are a stranger's: each must lie inside what was asked and none may come twice,
//! and the answer is given out only when every byte has come. Holes are zeros because the server
//! says so; a byte of which nothing was said is never made up.

use std::ops::Range;

/// Pieces a read may be in while it is put together, beyond one for each [`FRAGMENT_BYTES`]: a server
/// that reports holes cuts at its block size, one that cuts finer and out of order is after our memory.
const FRAGMENTS_MAX: usize = 16;
/// Smallest block a server reports holes in, in bytes.
const FRAGMENT_BYTES: usize = 512;

/// The bytes of one read, as far as they have come.
pub(super) struct Assembly {
    offset: u64,
    bytes: Vec<u8>,
    /// What has come: sorted, apart from each other, none empty.
    filled: Vec<Range<usize>>,
}

/// Why a chunk does not belong into the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Misfit {
    #[error("a chunk without content")]
    Empty,
    #[error("a chunk outside of what was asked")]
    OutOfRange,
    #[error("a chunk over bytes that had come before")]
    Overlap,
    #[error("more pieces than a read can have")]
    TooManyPieces,
}

impl Assembly {
    /// An answer of `len` bytes from `offset` on, of which nothing has come.
    pub(super) fn new(offset: u64, len: usize) -> Self {
        Self { offset, bytes: vec![0; len], filled: Vec::new() }
    }

    /// The room for all of it, to be filled at once (simple replies).
    pub(super) fn claim_all(&mut self) -> &mut [u8] {
        self.filled.clear();
        self.filled.push(0..self.bytes.len());
        &mut self.bytes
    }

    /// The room for a chunk of `len` bytes at `offset`, which from now on counts as come. It holds zeros.
    pub(super) fn claim(&mut self, offset: u64, len: u64) -> Result<&mut [u8], Misfit> {
        if len == 0 {
            return Err(Misfit::Empty);
        }
        let start = offset.checked_sub(self.offset).ok_or(Misfit::OutOfRange)?;
        let end = start.checked_add(len).ok_or(Misfit::OutOfRange)?;
        let index = |at: u64| usize::try_from(at).map_err(|_| Misfit::OutOfRange);
        let range = index(start)?..index(end)?;
        if range.end > self.bytes.len() {
            return Err(Misfit::OutOfRange);
        }
        self.note(range.clone())?;
        Ok(&mut self.bytes[range])
    }

    /// The whole answer, or `None` while bytes are missing.
    pub(super) fn finish(self) -> Option<Vec<u8>> {
        let whole = match self.filled.as_slice() {
            [] => self.bytes.is_empty(),
            [only] => only.len() == self.bytes.len(),
            _ => false,
        };
        whole.then_some(self.bytes)
    }

    fn note(&mut self, range: Range<usize>) -> Result<(), Misfit> {
        let behind = self.filled.partition_point(|filled| filled.start < range.start);
        let joins_left = match behind.checked_sub(1).map(|at| &self.filled[at]) {
            Some(left) if left.end > range.start => return Err(Misfit::Overlap),
            Some(left) => left.end == range.start,
            None => false,
        };
        let joins_right = match self.filled.get(behind) {
            Some(right) if right.start < range.end => return Err(Misfit::Overlap),
            Some(right) => right.start == range.end,
            None => false,
        };
        match (joins_left, joins_right) {
            (true, true) => {
                self.filled[behind - 1].end = self.filled[behind].end;
                self.filled.remove(behind);
            }
            (true, false) => self.filled[behind - 1].end = range.end,
            (false, true) => self.filled[behind].start = range.start,
            (false, false) => {
                if self.filled.len() >= FRAGMENTS_MAX + self.bytes.len() / FRAGMENT_BYTES {
                    return Err(Misfit::TooManyPieces);
                }
                self.filled.insert(behind, range);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_in_any_order_make_the_answer() {
        let mut assembly = Assembly::new(100, 10);
        assembly.claim(107, 3).unwrap().fill(3);
        assembly.claim(100, 2).unwrap().fill(1);
        assembly.claim(104, 3).unwrap();
        assembly.claim(102, 2).unwrap().fill(2);
        assert_eq!(assembly.finish().unwrap(), [1, 1, 2, 2, 0, 0, 0, 3, 3, 3]);
    }

    #[test]
    fn a_missing_byte_gives_no_answer() {
        for missing in [0, 4, 9] {
            let mut assembly = Assembly::new(0, 10);
            for at in (0..10).filter(|at| *at != missing) {
                assembly.claim(at, 1).unwrap();
            }
            assert_eq!(assembly.finish(), None, "byte {missing}");
        }
        assert_eq!(Assembly::new(0, 10).finish(), None);
    }

    #[test]
    fn chunks_that_reach_outside_or_over_others_are_refused() {
        let mut assembly = Assembly::new(100, 10);
        for (offset, len) in
            [(99, 2), (99, 1), (105, 6), (110, 1), (u64::MAX, 1), (100, u64::MAX), (105, u64::MAX - 104)]
        {
            assert_eq!(assembly.claim(offset, len).unwrap_err(), Misfit::OutOfRange, "{offset}+{len}");
        }
        assert_eq!(assembly.claim(100, 0).unwrap_err(), Misfit::Empty);
        assembly.claim(103, 4).unwrap();
        for (offset, len) in [(100, 4), (103, 1), (104, 2), (106, 2), (100, 10)] {
            assert_eq!(assembly.claim(offset, len).unwrap_err(), Misfit::Overlap, "{offset}+{len}");
        }
    }

    #[test]
    fn a_server_cannot_make_us_remember_every_other_byte() {
        let mut assembly = Assembly::new(0, 4096);
        let refused = (0..2048).map(|at| assembly.claim(at * 2, 1).map(|_| ())).find_map(Result::err);
        assert_eq!(refused, Some(Misfit::TooManyPieces));
        assert_eq!(assembly.filled.len(), FRAGMENTS_MAX + 8);
    }
}
