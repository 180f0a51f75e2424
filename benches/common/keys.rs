//! Keys to measure with.

use std::sync::Arc;

use sealbd::cipher::derive::VolumeKeys;
use sealbd::cipher::surroundings::Surroundings;
use sealbd::cipher::{Engine, OpenSegmentKey, SealRange, SegmentKey, UidSource};

/// Longest range that is reserved at once fits many times.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Segments, a new one whenever the last is full.
pub(crate) struct Segments {
    keys: VolumeKeys,
    uids: UidSource,
    open: OpenSegmentKey,
}

impl Segments {
    pub(crate) fn new(engine: Engine) -> Self {
        let surroundings = Surroundings::replayed(1);
        let dek = surroundings.dek().expect("random bytes");
        let keys = VolumeKeys::derive(engine, &dek, &[1; 32], &[2; 16]);
        let uids = UidSource::new(surroundings).expect("random bytes");
        let open = fresh(&keys, &uids);
        Self { keys, uids, open }
    }

    /// The next `len` bytes.
    pub(crate) fn reserve(&mut self, len: usize) -> SealRange {
        if self.open.remaining() < len as u64 {
            self.open = fresh(&self.keys, &self.uids);
        }
        self.open.reserve(len as u64).expect("a segment is longer")
    }

    /// The key of the segment that [`reserve`](Self::reserve) last took from.
    #[allow(dead_code, reason = "not every benchmark reads back")]
    pub(crate) fn reader(&self) -> Arc<SegmentKey> {
        self.open.reader()
    }
}

fn fresh(keys: &VolumeKeys, uids: &UidSource) -> OpenSegmentKey {
    let uid = uids.fresh(keys).expect("random bytes");
    OpenSegmentKey::create(keys, 1, uid, SEGMENT_BYTES)
}
