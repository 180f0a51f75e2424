//! A store in memory, for tests and for volumes that need not outlive the process (`mem:`).
//!
//! It behaves like a disk with a volatile write cache and shows both sides of it: what reads see
//! now, and what is on stable storage. A crash test freezes it at the nth change, asks for one of
//! the states that a power cut could have left behind ([`MemoryStore::crash`]), and opens that.
//! Nothing in here is random or timed: the same calls give the same states.

mod pages;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use self::pages::Pages;
use super::{BoxFuture, Capability, Persist, SlotStore, StoreError};

/// Unit in which an interrupted write may be torn: what a disk writes as one.
pub const TEAR_BYTES: u64 = 512;

/// Longest single read or write: that of the file store, so that tests split as the real thing does.
const IO_BYTES_MAX: u32 = 8 << 20;

/// Unflushed data kept to choose from in a crash. Beyond it the oldest becomes durable by itself,
/// as a disk's cache writes back: a user that never syncs must not fill the memory.
const UNFLUSHED_BYTES_MAX: u64 = 256 << 20;

/// A store whose bytes lie in memory.
pub struct MemoryStore {
    capability: Capability,
    state: Mutex<State>,
}

/// What an injected fault waits for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Operation {
    /// [`SlotStore::read_at`] and [`SlotStore::try_read_at`], counted together.
    Read,
    /// [`SlotStore::write_at`].
    Write,
    /// [`SlotStore::sync`].
    Sync,
    /// [`SlotStore::discard`].
    Discard,
}

/// How an operation fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// `EIO`. A write that fails so is not seen by reads, yet some of it may be found after a crash.
    Io,
    /// `ENOSPC`. Nothing of the write lands.
    NoSpace,
}

/// What [`MemoryStore::crash`] asks of its chooser: a number below the bound it passes.
pub type Chooser<'a> = dyn FnMut(u64) -> u64 + 'a;

#[derive(Default)]
struct State {
    /// What reads see.
    now: Pages,
    /// What is on stable storage whatever happens.
    durable: Pages,
    /// Changes since the last good sync, oldest first.
    unflushed: VecDeque<Change>,
    /// Sum of the lengths of the writes in `unflushed`.
    unflushed_bytes: u64,
    /// Operations of each kind since the store was made.
    counts: BTreeMap<Operation, u64>,
    faults: BTreeMap<(Operation, u64), Fault>,
    /// Writes, syncs and discards since the store was made.
    changes: u64,
    freeze_at: Option<u64>,
    frozen: bool,
    sync_failed: bool,
}

struct Change {
    offset: u64,
    len: u64,
    /// `None` is a discard.
    bytes: Option<Vec<u8>>,
    fate: Fate,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Returned well; a crash may lose or tear it.
    Volatile,
    /// Was [`Persist::Durable`] and returned well: no crash undoes it. It stays in the list because
    /// an older unflushed write to the same place must not come back over it.
    Durable,
    /// Returned an error: reads do not see it, a crash may bring any part of it to light.
    Failed,
}

impl MemoryStore {
    /// A store of `size` bytes, all zero, with writes of whole 512 bytes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        let capability = Capability {
            size,
            write_unit: 512,
            best_unit: 512,
            io_bytes_max: IO_BYTES_MAX,
            discard: true,
            read_only: false,
            prefers_written: false,
        };
        Self { capability, state: Mutex::default() }
    }

    /// A store that holds `bytes`, durably.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let store = Self::new(bytes.len() as u64);
        store.write_raw(0, bytes);
        store
    }

    /// The same store with writes of whole 512 or 4096 bytes.
    ///
    /// # Panics
    /// When `unit` is neither.
    #[must_use]
    pub fn with_write_unit(mut self, unit: u32) -> Self {
        assert!(matches!(unit, 512 | 4096), "units are 512 or 4096 bytes");
        self.capability.write_unit = unit;
        self.capability.best_unit = unit;
        self
    }

    /// The same store with another limit on single reads and writes, in bytes.
    #[must_use]
    pub fn with_io_bytes_max(mut self, io_bytes_max: u32) -> Self {
        self.capability.io_bytes_max = io_bytes_max;
        self
    }

    /// The same store, refusing writes.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.capability.read_only = true;
        self
    }

    /// Lets the `nth` operation of this kind from now on fail; 0 is the next one.
    /// Several faults may wait at the same time. After a failed sync every later one fails too.
    pub fn inject(&self, operation: Operation, nth: u64, fault: Fault) {
        let mut state = self.state();
        let at = state.counts.get(&operation).copied().unwrap_or(0) + nth;
        state.faults.insert((operation, at), fault);
    }

    /// Cuts the power at the `nth` change (write, sync or discard) from now on; 0 is the next one.
    /// That change does not return well, but it was under way: [`crash`](Self::crash) may let any
    /// part of it land. Every later operation fails.
    pub fn freeze_at(&self, nth: u64) {
        let mut state = self.state();
        state.freeze_at = Some(state.changes + nth);
    }

    /// Whether [`freeze_at`](Self::freeze_at) has struck.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.state().frozen
    }

    /// Writes, syncs and discards asked for since the store was made: the number of points at
    /// which a crash test can cut.
    #[must_use]
    pub fn change_count(&self) -> u64 {
        self.state().changes
    }

    /// Changes that a crash now could lose or tear.
    #[must_use]
    pub fn unflushed_count(&self) -> usize {
        self.state().unflushed.iter().filter(|change| change.fate != Fate::Durable).count()
    }

    /// Bytes of memory that the contents take.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.state().now.resident_bytes()
    }

    /// A store as a power cut could leave it: everything durable, and of the changes since the last
    /// sync those that `choose` picks.
    ///
    /// For every such change, oldest first, `choose(3)` is asked: 0 loses it, 1 keeps it, 2 tears
    /// it. Of a torn change each [`TEAR_BYTES`] piece is kept when `choose(2)` is 1. So `|_| 0`
    /// loses all, and `|_| 1` keeps all. Answers are taken modulo the bound.
    #[must_use]
    pub fn crash(&self, choose: &mut Chooser<'_>) -> Self {
        let state = self.state();
        let mut left = state.durable.clone();
        for change in &state.unflushed {
            let answer = if change.fate == Fate::Durable { 1 } else { choose(3) % 3 };
            match answer {
                0 => {}
                1 => change.land(&mut left, change.offset, change.len),
                _ => change.land_torn(&mut left, choose),
            }
        }
        self.holding(left)
    }

    /// A store that holds what reads see now, durably, without any fault waiting.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        self.holding(self.state().now.clone())
    }

    /// Reads past every injected fault.
    ///
    /// # Panics
    /// When the range does not lie inside the store.
    #[must_use]
    pub fn read_raw(&self, offset: u64, len: usize) -> Vec<u8> {
        self.capability.check_range(offset, len as u64).expect("the caller knows the size");
        let mut bytes = vec![0; len];
        self.state().now.read(offset, &mut bytes);
        bytes
    }

    /// Damages the store: writes at any alignment, durably, past every injected fault.
    ///
    /// # Panics
    /// When the range does not lie inside the store.
    pub fn write_raw(&self, offset: u64, bytes: &[u8]) {
        self.capability.check_range(offset, bytes.len() as u64).expect("the caller knows the size");
        let mut state = self.state();
        state.now.write(offset, bytes);
        state.durable.write(offset, bytes);
    }

    fn holding(&self, pages: Pages) -> Self {
        let state = State { now: pages.clone(), durable: pages, ..State::default() };
        Self { capability: self.capability, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        self.capability.check_read(offset, buf.len())?;
        let mut state = self.state();
        match state.enter(Operation::Read) {
            Verdict::Go => {}
            Verdict::Fault(fault) => return Err(fault.error("read from memory")),
            Verdict::Freeze | Verdict::Frozen => return Err(frozen()),
        }
        state.now.read(offset, buf);
        Ok(())
    }

    fn write(&self, offset: u64, parts: &[Bytes], persist: Persist) -> Result<(), StoreError> {
        let len = self.capability.check_write(offset, parts)?;
        let mut state = self.state();
        let mut change = Change::new(offset, len as u64, Some(parts.concat()));
        let verdict = state.enter(Operation::Write);
        match verdict {
            Verdict::Go => {
                if persist == Persist::Durable {
                    change.fate = Fate::Durable;
                }
                state.apply(change);
                Ok(())
            }
            Verdict::Fault(Fault::Io) | Verdict::Freeze => {
                state.keep_failed(change);
                Err(verdict.error("write to memory"))
            }
            Verdict::Fault(Fault::NoSpace) | Verdict::Frozen => Err(verdict.error("write to memory")),
        }
    }

    fn sync_now(&self) -> Result<(), StoreError> {
        let mut state = self.state();
        let verdict = state.enter(Operation::Sync);
        if verdict != Verdict::Go {
            state.sync_failed = true;
        }
        if state.sync_failed {
            return Err(StoreError::SyncFailed("a sync of this store was made to fail".into()));
        }
        state.make_durable();
        Ok(())
    }

    fn discard_now(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.capability.check_discard(offset, len)?;
        let mut state = self.state();
        let verdict = state.enter(Operation::Discard);
        let change = Change::new(offset, len, None);
        match verdict {
            Verdict::Go => {
                state.apply(change);
                Ok(())
            }
            Verdict::Freeze => {
                state.keep_failed(change);
                Err(frozen())
            }
            Verdict::Fault(_) | Verdict::Frozen => Err(verdict.error("discard from memory")),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Go,
    Fault(Fault),
    /// The power goes while this operation is under way.
    Freeze,
    /// The power went before.
    Frozen,
}

impl Verdict {
    fn error(self, context: &'static str) -> StoreError {
        match self {
            Self::Fault(fault) => fault.error(context),
            Self::Go | Self::Freeze | Self::Frozen => frozen(),
        }
    }
}

impl State {
    /// Counts an operation and tells how it goes.
    fn enter(&mut self, operation: Operation) -> Verdict {
        if self.frozen {
            return Verdict::Frozen;
        }
        if operation != Operation::Read {
            let change = self.changes;
            self.changes += 1;
            if self.freeze_at == Some(change) {
                self.frozen = true;
                return Verdict::Freeze;
            }
        }
        let count = self.counts.entry(operation).or_default();
        let at = *count;
        *count += 1;
        self.faults.remove(&(operation, at)).map_or(Verdict::Go, Verdict::Fault)
    }

    /// Lets reads see the change.
    fn apply(&mut self, change: Change) {
        change.land(&mut self.now, change.offset, change.len);
        self.unflushed_bytes += change.held_bytes();
        self.unflushed.push_back(change);
        while self.unflushed_bytes > UNFLUSHED_BYTES_MAX {
            let Some(oldest) = self.unflushed.pop_front() else { break };
            self.unflushed_bytes -= oldest.held_bytes();
            if oldest.fate != Fate::Failed {
                oldest.land(&mut self.durable, oldest.offset, oldest.len);
            }
        }
    }

    fn keep_failed(&mut self, mut change: Change) {
        change.fate = Fate::Failed;
        self.unflushed_bytes += change.held_bytes();
        self.unflushed.push_back(change);
    }

    /// What reads see now is on stable storage.
    fn make_durable(&mut self) {
        for change in self.unflushed.drain(..) {
            self.durable.share(&self.now, change.offset, change.len);
        }
        self.unflushed_bytes = 0;
    }
}

impl Change {
    fn new(offset: u64, len: u64, bytes: Option<Vec<u8>>) -> Self {
        Self { offset, len, bytes, fate: Fate::Volatile }
    }

    /// Memory that keeping the change costs.
    fn held_bytes(&self) -> u64 {
        self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)
    }

    /// Brings `len` bytes of the change, from `from` on, to `pages`.
    fn land(&self, pages: &mut Pages, from: u64, len: u64) {
        match &self.bytes {
            None => pages.clear(from, len),
            Some(bytes) => {
                let index = |at: u64| usize::try_from(at).expect("a change lies in memory");
                pages.write(from, &bytes[index(from - self.offset)..index(from - self.offset + len)]);
            }
        }
    }

    fn land_torn(&self, pages: &mut Pages, choose: &mut Chooser<'_>) {
        let end = self.offset + self.len;
        let mut at = self.offset;
        while at < end {
            let piece_end = end.min((at / TEAR_BYTES + 1) * TEAR_BYTES);
            if choose(2) % 2 == 1 {
                self.land(pages, at, piece_end - at);
            }
            at = piece_end;
        }
    }
}

impl Fault {
    fn error(self, context: &'static str) -> StoreError {
        match self {
            Self::NoSpace => StoreError::NoSpace,
            Self::Io => StoreError::Io { context, source: std::io::Error::from_raw_os_error(EIO) },
        }
    }
}

/// `EIO`, the same number on every Linux.
const EIO: i32 = 5;

fn frozen() -> StoreError {
    StoreError::Unreachable("the memory store is frozen".into())
}

impl SlotStore for MemoryStore {
    fn capability(&self) -> Capability {
        self.capability
    }

    fn describe(&self) -> String {
        format!("mem:{}", self.capability.size)
    }

    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Option<Result<(), StoreError>> {
        Some(self.read(offset, buf))
    }

    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'_, Result<Vec<u8>, StoreError>> {
        Box::pin(async move {
            self.capability.check_read(offset, len)?;
            let mut bytes = vec![0; len];
            self.read(offset, &mut bytes)?;
            Ok(bytes)
        })
    }

    fn write_at(
        &self,
        offset: u64,
        parts: Vec<Bytes>,
        persist: Persist,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.write(offset, &parts, persist) })
    }

    fn try_sync(&self) -> Option<Result<(), StoreError>> {
        Some(self.sync_now())
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.sync_now() })
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.discard_now(offset, len) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 4096;

    fn block(fill: u8) -> Vec<Bytes> {
        vec![Bytes::from(vec![fill; BLOCK])]
    }

    async fn write(store: &MemoryStore, at: u64, fill: u8, persist: Persist) {
        store.write_at(at * BLOCK as u64, block(fill), persist).await.unwrap();
    }

    fn first_bytes(store: &MemoryStore, blocks: u64) -> Vec<u8> {
        (0..blocks).map(|at| store.read_raw(at * BLOCK as u64, 1)[0]).collect()
    }

    #[tokio::test]
    async fn a_crash_keeps_what_was_synced_and_may_lose_the_rest() {
        let store = MemoryStore::new(1 << 20);
        write(&store, 0, 1, Persist::Volatile).await;
        store.sync().await.unwrap();
        write(&store, 0, 2, Persist::Volatile).await;
        write(&store, 1, 3, Persist::Volatile).await;
        assert_eq!(store.unflushed_count(), 2);
        assert_eq!(first_bytes(&store.crash(&mut |_| 0), 2), [1, 0]);
        assert_eq!(first_bytes(&store.crash(&mut |_| 1), 2), [2, 3]);
        let mut answers = [0, 1].into_iter();
        assert_eq!(first_bytes(&store.crash(&mut |_| answers.next().unwrap()), 2), [1, 3]);
    }

    #[tokio::test]
    async fn a_torn_write_mixes_old_and_new_in_pieces_of_512_bytes() {
        let store = MemoryStore::new(1 << 20);
        write(&store, 0, 1, Persist::Durable).await;
        write(&store, 0, 2, Persist::Volatile).await;
        let mut answers = [2, 1, 0, 0, 1, 0, 0, 0, 0].into_iter();
        let left = store.crash(&mut |_| answers.next().unwrap());
        let pieces: Vec<u8> = left.read_raw(0, BLOCK).chunks(512).map(|piece| piece[0]).collect();
        assert_eq!(pieces, [2, 1, 1, 2, 1, 1, 1, 1]);
        assert!(left.read_raw(0, BLOCK).chunks(512).all(|piece| piece.iter().all(|byte| *byte == piece[0])));
    }

    #[tokio::test]
    async fn a_durable_write_survives_and_no_older_write_comes_back_over_it() {
        let store = MemoryStore::new(1 << 20);
        write(&store, 0, 1, Persist::Volatile).await;
        write(&store, 0, 2, Persist::Durable).await;
        assert_eq!(first_bytes(&store.crash(&mut |_| 0), 1), [2]);
        assert_eq!(first_bytes(&store.crash(&mut |_| 1), 1), [2]);
    }

    #[tokio::test]
    async fn the_write_at_the_freeze_fails_but_may_be_found_after_the_crash() {
        let store = MemoryStore::new(1 << 20);
        store.freeze_at(1);
        write(&store, 0, 1, Persist::Volatile).await;
        assert!(!store.is_frozen());
        let cut = store.write_at(BLOCK as u64, block(2), Persist::Durable).await;
        assert!(matches!(cut, Err(StoreError::Unreachable(_))), "{cut:?}");
        assert!(store.is_frozen());
        assert!(matches!(store.read_at(0, 1).await, Err(StoreError::Unreachable(_))));
        assert!(matches!(store.sync().await, Err(StoreError::SyncFailed(_))));
        assert_eq!(first_bytes(&store.crash(&mut |_| 0), 2), [0, 0]);
        assert_eq!(first_bytes(&store.crash(&mut |_| 1), 2), [1, 2]);
    }

    #[tokio::test]
    async fn injected_errors_strike_once_and_at_the_right_operation() {
        let store = MemoryStore::new(1 << 20);
        store.inject(Operation::Write, 1, Fault::NoSpace);
        store.inject(Operation::Read, 0, Fault::Io);
        write(&store, 0, 1, Persist::Volatile).await;
        assert!(matches!(store.write_at(0, block(2), Persist::Volatile).await, Err(StoreError::NoSpace)));
        assert!(matches!(store.read_at(0, 1).await, Err(StoreError::Io { .. })));
        assert_eq!(store.read_at(0, 1).await.unwrap(), [1]);
        assert_eq!(first_bytes(&store.crash(&mut |_| 1), 1), [1], "nothing lands of a write without space");
    }

    #[tokio::test]
    async fn a_failed_sync_makes_nothing_durable_and_stays_failed() {
        let store = MemoryStore::new(1 << 20);
        store.inject(Operation::Sync, 0, Fault::Io);
        write(&store, 0, 1, Persist::Volatile).await;
        assert!(matches!(store.sync().await, Err(StoreError::SyncFailed(_))));
        assert!(matches!(store.sync().await, Err(StoreError::SyncFailed(_))));
        assert_eq!(first_bytes(&store.crash(&mut |_| 0), 1), [0]);
    }

    #[tokio::test]
    async fn four_tebibytes_cost_what_was_written() {
        let store = MemoryStore::new(4 << 40);
        store.write_at((4 << 40) - 4096, block(9), Persist::Volatile).await.unwrap();
        assert_eq!(store.resident_bytes(), 4096);
        assert_eq!(store.snapshot().read_raw((4 << 40) - 1, 1), [9]);
    }

    #[test]
    fn a_store_from_bytes_can_be_damaged_at_any_byte() {
        let store = MemoryStore::from_bytes(&[5; 10000]);
        store.write_raw(4999, &[6]);
        assert_eq!(store.read_raw(4998, 3), [5, 6, 5]);
        assert_eq!(store.crash(&mut |_| 0).read_raw(4999, 1), [6]);
    }
}
