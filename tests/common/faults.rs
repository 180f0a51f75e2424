//! A store that fails as told and heals as told, and that watches what is sealed where.
//!
//! Unlike the faults of the memory store, a failed write may land here, whole or torn, and be seen
//! at once: an error says nothing of what reached the medium.

#![allow(dead_code, unreachable_pub, reason = "every test file that includes this uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use sealbd::store::memory::MemoryStore;
use sealbd::store::{BoxFuture, Capability, Persist, SlotStore, StoreError};

/// What a failing write leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Landing {
    Nothing,
    /// The first half, to the 512 bytes.
    Half,
    Everything,
}

/// Which operations fail, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Faults {
    /// Writes that touch this range of the store fail.
    pub writes: Option<(u64, u64)>,
    pub landing: Landing,
    /// They fail with `ENOSPC` instead of `EIO`.
    pub no_space: bool,
    pub syncs: bool,
    /// Operations of that kind that still go well before the first one fails.
    pub after: u64,
}

impl Faults {
    pub const NONE: Self =
        Self { writes: None, landing: Landing::Nothing, no_space: false, syncs: false, after: 0 };

    pub fn writes(from: u64, to: u64) -> Self {
        Self { writes: Some((from, to)), ..Self::NONE }
    }

    pub fn all_writes() -> Self {
        Self::writes(0, u64::MAX)
    }

    pub fn syncs() -> Self {
        Self { syncs: true, ..Self::NONE }
    }

    pub fn after(self, after: u64) -> Self {
        Self { after, ..self }
    }

    pub fn landing(self, landing: Landing) -> Self {
        Self { landing, ..self }
    }

    pub fn no_space(self) -> Self {
        Self { no_space: true, ..self }
    }
}

/// See the module.
pub struct FaultyStore {
    pub inner: Arc<MemoryStore>,
    faults: Mutex<Faults>,
    watch: Option<Watch>,
}

impl FaultyStore {
    pub fn new(inner: Arc<MemoryStore>) -> Arc<Self> {
        Arc::new(Self { inner, faults: Mutex::new(Faults::NONE), watch: None })
    }

    /// One whose writes to segments are entered in `ledger`.
    pub fn watched(inner: Arc<MemoryStore>, ledger: &Arc<Ledger>, data: (u64, u64)) -> Arc<Self> {
        let store = ledger.stores.fetch_add(1, Ordering::Relaxed);
        let watch = Watch {
            store,
            ledger: ledger.clone(),
            data_start: data.0,
            slot_bytes: data.1,
            uids: Mutex::default(),
        };
        Arc::new(Self { inner, faults: Mutex::new(Faults::NONE), watch: Some(watch) })
    }

    pub fn set(&self, faults: Faults) {
        *self.faults.lock().unwrap() = faults;
    }

    pub fn heal(&self) {
        self.set(Faults::NONE);
    }

    fn fails(&self, this: impl Fn(&Faults) -> bool) -> Option<Faults> {
        let mut faults = self.faults.lock().unwrap();
        if !this(&faults) {
            return None;
        }
        if faults.after > 0 {
            faults.after -= 1;
            return None;
        }
        Some(*faults)
    }
}

impl SlotStore for FaultyStore {
    fn capability(&self) -> Capability {
        self.inner.capability()
    }

    fn describe(&self) -> String {
        "faulty".into()
    }

    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Option<Result<(), StoreError>> {
        self.inner.try_read_at(offset, buf)
    }

    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'_, Result<Vec<u8>, StoreError>> {
        self.inner.read_at(offset, len)
    }

    fn write_at(
        &self,
        offset: u64,
        parts: Vec<Bytes>,
        persist: Persist,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        let bytes = parts.concat();
        // Entered when asked for, not when done: a write that fails has left the process, too.
        if let Some(watch) = &self.watch {
            watch.write(offset, &bytes);
        }
        let end = offset + bytes.len() as u64;
        let fails = self.fails(|faults| faults.writes.is_some_and(|(from, to)| offset < to && from < end));
        Box::pin(async move {
            // Others get their turn, as with a real store.
            tokio::task::yield_now().await;
            let Some(faults) = fails else { return self.inner.write_at(offset, parts, persist).await };
            let landed = match faults.landing {
                Landing::Nothing => 0,
                Landing::Half => bytes.len() / 1024 * 512,
                Landing::Everything => bytes.len(),
            };
            self.inner.write_raw(offset, &bytes[..landed]);
            if faults.no_space {
                return Err(StoreError::NoSpace);
            }
            let source = std::io::Error::from_raw_os_error(5);
            Err(StoreError::Io { context: "write to a faulty store", source })
        })
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        let fails = self.fails(|faults| faults.syncs);
        Box::pin(async move {
            tokio::task::yield_now().await;
            match fails {
                Some(_) => Err(StoreError::SyncFailed("told to".into())),
                None => self.inner.sync().await,
            }
        })
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.discard(offset, len)
    }
}

type SegmentUid = [u8; 16];

/// What was ever sealed at which offset of which segment, on any number of stores.
#[derive(Default)]
pub struct Ledger {
    /// Blocks of 4096 bytes by segment and offset.
    blocks: Mutex<HashMap<(SegmentUid, u64), Vec<u8>>>,
    /// The slot and the store, by number, that a uid was used for.
    homes: Mutex<HashMap<SegmentUid, (usize, u64)>>,
    stores: AtomicUsize,
}

impl Ledger {
    /// Segments seen.
    pub fn segments(&self) -> usize {
        self.homes.lock().unwrap().len()
    }

    pub fn blocks(&self) -> usize {
        self.blocks.lock().unwrap().len()
    }
}

struct Watch {
    /// Number of the store.
    store: usize,
    ledger: Arc<Ledger>,
    data_start: u64,
    slot_bytes: u64,
    /// The segment that each slot holds.
    uids: Mutex<HashMap<u64, SegmentUid>>,
}

impl Watch {
    fn write(&self, offset: u64, bytes: &[u8]) {
        if offset < self.data_start {
            return;
        }
        let slot = (offset - self.data_start) / self.slot_bytes;
        let in_slot = (offset - self.data_start) % self.slot_bytes;
        assert!(in_slot + bytes.len() as u64 <= self.slot_bytes, "a write stays in its slot");
        let mut uids = self.uids.lock().unwrap();
        if in_slot == 0 {
            // Envelope of the segment header: magic, version, kind, epoch, volume, uid (FORMAT.md §6).
            assert_eq!(&bytes[..8], b"SEALSEG1", "a segment starts with its header");
            let uid: SegmentUid = bytes[32..48].try_into().unwrap();
            let here = (self.store, slot);
            let home = *self.ledger.homes.lock().unwrap().entry(uid).or_insert(here);
            assert_eq!(home, here, "a uid belongs to one segment of one session on one store");
            uids.insert(slot, uid);
        }
        let uid = uids.get(&slot).expect("a session writes only to segments that it opened");
        let mut blocks = self.ledger.blocks.lock().unwrap();
        for (index, block) in (0u64..).zip(bytes.chunks(4096)) {
            let known = blocks.entry((*uid, in_slot + index * 4096)).or_insert_with(|| block.to_vec());
            assert!(
                known == block,
                "sealed twice with different bytes: slot {slot}, offset {in_slot}+{index} blocks"
            );
        }
    }
}
