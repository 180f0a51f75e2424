//! Data that tells who wrote it: a block is filled from a seed and its own address, so a test knows from the
//! bytes alone which write they came from, and that none of them was moved.

/// The unit of the patterns: the smallest piece that a store may tear.
pub(crate) const BLOCK_LEN: usize = 512;

/// SplitMix64: a small generator whose whole state is its seed, so that a failure is repeated by the number that it
/// printed.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From `SEALBD_TEST_SEED`, else from the clock. The caller prints it.
    pub(crate) fn fresh_seed() -> u64 {
        if let Ok(text) = std::env::var("SEALBD_TEST_SEED") {
            return text.parse().expect("SEALBD_TEST_SEED is a number");
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        now.as_secs() ^ (u64::from(now.subsec_nanos()) << 32)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True once in `n`.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Fills whole blocks that start at byte `offset` of the volume with the pattern of `stamp`. Stamp 0 is zeros.
pub(crate) fn fill(buf: &mut [u8], offset: u64, stamp: u64) {
    assert!(buf.len().is_multiple_of(BLOCK_LEN) && offset.is_multiple_of(BLOCK_LEN as u64), "whole blocks");
    if stamp == 0 {
        buf.fill(0);
        return;
    }
    for (i, block) in buf.chunks_exact_mut(BLOCK_LEN).enumerate() {
        let address = offset + (i * BLOCK_LEN) as u64;
        let mut random = Random::new(stamp.rotate_left(32) ^ address);
        block[..8].copy_from_slice(&stamp.to_be_bytes());
        for word in block[8..].chunks_exact_mut(8) {
            word.copy_from_slice(&random.next().to_be_bytes());
        }
    }
}

/// The pattern of `stamp` for `len` bytes at `offset`.
pub(crate) fn filled(offset: u64, len: usize, stamp: u64) -> Vec<u8> {
    let mut buf = vec![0; len];
    fill(&mut buf, offset, stamp);
    buf
}

/// Which stamp the block at `offset` was written with; `None` when its bytes are nobody's.
pub(crate) fn stamp_of(block: &[u8], offset: u64) -> Option<u64> {
    let stamp = u64::from_be_bytes(block[..8].try_into().expect("a block has more than 8 bytes"));
    (filled(offset, BLOCK_LEN, stamp) == block).then_some(stamp)
}
