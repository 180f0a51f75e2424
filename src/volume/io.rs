//! Reading and writing segments on the store: from handles and offsets to bytes, with the keys.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, UnitWeighter};

use super::VolumeError;
use super::lock_order::{Ordered, Rank};
use super::segments::Segments;
use crate::cipher::{SegmentKey, Uid, VolumeKeys};
use crate::format::page::Loc;
use crate::format::segment::SegmentKind;
use crate::format::table::Row;
use crate::store::{Persist, SlotStore, StoreError};

/// Expanded segment keys kept; about 1 KiB each.
const KEYS_MAX: usize = 4096;

/// Parts of a cache with a lock each; as many on every host, so that what is evicted is the same on all.
pub(super) const CACHE_SHARDS: usize = 16;

/// Hashes uids, alone or with an offset, the same in every process. They are the output of a keyed hash, so nobody
/// can choose them to collide, and little work is enough.
pub(super) type UidHash = BuildHasherDefault<UidHasher>;

#[derive(Default)]
pub(super) struct UidHasher(u64);

/// An odd number whose bits look random: 2^64 divided by the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for UidHasher {
    fn write(&mut self, bytes: &[u8]) {
        for word in bytes.chunks(8) {
            let mut eight = [0; 8];
            eight[..word.len()].copy_from_slice(word);
            self.0 = (self.0.rotate_left(23) ^ u64::from_le_bytes(eight)).wrapping_mul(SPREAD);
        }
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

/// Where a segment lies and how it is opened.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) phys: u64,
    pub(super) key: Arc<SegmentKey>,
}

/// Reads segments by handle.
pub(super) struct SegmentReader {
    pub(super) store: Arc<dyn SlotStore>,
    pub(super) keys: Arc<VolumeKeys>,
    pub(super) segments: RwLock<Segments>,
    pub(super) segment_bytes: u64,
    cache: Cache<Uid, Arc<SegmentKey>, UnitWeighter, UidHash>,
}

impl SegmentReader {
    pub(super) fn new(
        store: Arc<dyn SlotStore>,
        keys: Arc<VolumeKeys>,
        segments: Segments,
        segment_bytes: u64,
    ) -> Self {
        let options = OptionsBuilder::new()
            .estimated_items_capacity(KEYS_MAX)
            .weight_capacity(KEYS_MAX as u64)
            .shards(CACHE_SHARDS)
            .build()
            .expect("both capacities are given");
        let cache =
            Cache::with_options(options, UnitWeighter, UidHash::default(), DefaultLifecycle::default());
        Self { store, keys, segments: RwLock::new(segments), segment_bytes, cache }
    }

    /// The table, to look at.
    pub(super) fn table(&self) -> Ordered<RwLockReadGuard<'_, Segments>> {
        Ordered::take(Rank::Table, || self.segments.read().expect("no panic while the table is held"))
    }

    /// The table, to change.
    pub(super) fn table_mut(&self) -> Ordered<RwLockWriteGuard<'_, Segments>> {
        Ordered::take(Rank::Table, || self.segments.write().expect("no panic while the table is held"))
    }

    /// The key of a segment.
    pub(super) fn key(&self, kind: SegmentKind, uid: Uid) -> Arc<SegmentKey> {
        if let Some(key) = self.cache.get(&uid) {
            return key;
        }
        let key = Arc::new(self.keys.segment_key(kind as u8, uid));
        self.cache.insert(uid, key.clone());
        key
    }

    /// Remembers the key of a segment that this session opened.
    pub(super) fn remember(&self, key: Arc<SegmentKey>) {
        self.cache.insert(key.uid(), key);
    }

    /// The row of the segment that a location lies in.
    ///
    /// # Errors
    /// [`VolumeError::Inconsistent`] for a special location, and for a segment that is not there.
    pub(super) fn row(&self, loc: Loc) -> Result<Row, VolumeError> {
        let handle = loc
            .handle()
            .ok_or_else(|| VolumeError::Inconsistent("a special location has no place".into()))?;
        let row = self.table().row(handle).copied();
        row.ok_or_else(|| {
            VolumeError::Inconsistent(format!(
                "the index names segment {handle}, which the table does not have"
            ))
        })
    }

    /// The place of a location.
    ///
    /// # Errors
    /// As [`row`](Self::row).
    pub(super) fn place(&self, loc: Loc) -> Result<Place, VolumeError> {
        self.row(loc).map(|row| self.place_in(&row))
    }

    /// The place of a segment.
    pub(super) fn place_in(&self, row: &Row) -> Place {
        Place { phys: row.phys, key: self.key(row.kind, row.uid) }
    }

    /// Reads `len` bytes at `offset` of a segment.
    pub(super) async fn read(&self, place: &Place, offset: u64, len: usize) -> Result<Vec<u8>, VolumeError> {
        if offset + len as u64 > self.segment_bytes {
            return Err(VolumeError::Inconsistent(format!(
                "a location ends behind its segment ({offset}+{len})"
            )));
        }
        read_store(&*self.store, place.phys + offset, len).await.map_err(VolumeError::from)
    }
}

/// Reads any length, without waiting where the store can do that.
pub(super) async fn read_store(
    store: &dyn SlotStore,
    offset: u64,
    len: usize,
) -> Result<Vec<u8>, StoreError> {
    if len == 0 {
        // A log that ends with its segment; what a remote store makes of an empty read is its own affair.
        return Ok(Vec::new());
    }
    if len <= store.capability().io_bytes_max as usize {
        let mut buf = vec![0; len];
        if let Some(read) = store.try_read_at(offset, &mut buf) {
            return read.map(|()| buf);
        }
    }
    fetch_store(store, offset, len).await
}

/// Reads any length, at least one byte, of which it is known that the store has to wait for it.
pub(super) async fn fetch_store(
    store: &dyn SlotStore,
    offset: u64,
    len: usize,
) -> Result<Vec<u8>, StoreError> {
    let piece = store.capability().io_bytes_max as usize;
    if len <= piece {
        return store.read_at(offset, len).await;
    }
    let mut out = Vec::with_capacity(len);
    while out.len() < len {
        let now = piece.min(len - out.len());
        out.extend_from_slice(&store.read_at(offset + out.len() as u64, now).await?);
    }
    Ok(out)
}

/// Writes any length from `offset` on; split only where the store takes no more at once.
pub(super) async fn write_store(
    store: &dyn SlotStore,
    offset: u64,
    parts: Vec<Bytes>,
    persist: Persist,
) -> Result<(), StoreError> {
    let max = store.capability().io_bytes_max as usize;
    if parts.iter().map(Bytes::len).sum::<usize>() <= max {
        return store.write_at(offset, parts, persist).await;
    }
    let whole = Bytes::from(parts.concat());
    let mut at = 0;
    while at < whole.len() {
        let end = (at + max).min(whole.len());
        store.write_at(offset + at as u64, vec![whole.slice(at..end)], persist).await?;
        at = end;
    }
    Ok(())
}
