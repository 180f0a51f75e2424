//! Where ciphertext goes. A *slot store* is addressed by byte offset: a file, a remote NBD
//! server, memory. It is never trusted: whatever it returns is authenticated above.

pub mod file;
pub mod memory;
pub mod nbd;
pub mod uri;

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;

/// A boxed future: stores are chosen at run time.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a store can do, found out once when it is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capability {
    /// Bytes that can be addressed; [`SlotStore::extend`] may make them more.
    pub size: u64,
    /// Offsets and lengths of writes are multiples of it: 512 or 4096.
    pub write_unit: u32,
    /// What a new volume is to align its writes to: less would make the store read before it writes.
    /// 512 or 4096, and never below `write_unit`.
    pub best_unit: u32,
    /// Longest single read or write in bytes; callers split above it.
    pub io_bytes_max: u32,
    /// `discard` gives space back.
    pub discard: bool,
    /// The store refuses writes.
    pub read_only: bool,
    /// A sync is shorter behind a write of what was written before than behind a first one.
    pub prefers_written: bool,
}

impl Capability {
    /// Checks a read of `len` bytes from `offset` on.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`] when it does not lie inside the store.
    ///
    /// # Panics
    /// When it is longer than `io_bytes_max`: splitting is the caller's work.
    pub(crate) fn check_read(&self, offset: u64, len: usize) -> Result<(), StoreError> {
        assert!(len as u64 <= u64::from(self.io_bytes_max), "callers split reads at io_bytes_max");
        self.check_range(offset, len as u64)
    }

    /// Checks a write of `parts` from `offset` on; returns their total length in bytes.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`] when it does not lie inside the store, [`StoreError::Io`] with
    /// `EROFS` when the store refuses writes.
    ///
    /// # Panics
    /// When it is longer than `io_bytes_max` or not made of whole units: both are the caller's work.
    pub(crate) fn check_write(&self, offset: u64, parts: &[Bytes]) -> Result<usize, StoreError> {
        let len: usize = parts.iter().map(Bytes::len).sum();
        let unit = u64::from(self.write_unit);
        assert!(len as u64 <= u64::from(self.io_bytes_max), "callers split writes at io_bytes_max");
        assert!(
            offset.is_multiple_of(unit) && (len as u64).is_multiple_of(unit),
            "a write is made of whole units"
        );
        self.check_writable()?;
        self.check_range(offset, len as u64)?;
        Ok(len)
    }

    /// Checks that `offset .. offset + len` may be given back.
    ///
    /// # Errors
    /// As [`check_write`](Self::check_write).
    pub(crate) fn check_discard(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.check_writable()?;
        self.check_range(offset, len)
    }

    fn check_writable(&self) -> Result<(), StoreError> {
        if self.read_only {
            let source = std::io::ErrorKind::ReadOnlyFilesystem.into();
            return Err(StoreError::Io { context: "change a store opened read-only", source });
        }
        Ok(())
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(StoreError::OutOfRange { offset, len }),
        }
    }
}

/// The whole blocks inside a range, as offset and length: what may be given back of it. The rest of
/// a block may be somebody's, and devices and servers refuse parts.
fn whole_blocks(offset: u64, len: u64, block: u32) -> (u64, u64) {
    let block = u64::from(block);
    let start = offset.next_multiple_of(block);
    let end = (offset + len) - (offset + len) % block;
    (start, end.saturating_sub(start))
}

/// What a store is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reads what is there at this moment, also while somebody else writes: for looking at headers.
    Inspect,
    /// Reads only; others may read at the same time.
    ReadOnly,
    /// Reads and writes; nobody else may have it open, where the store can tell.
    ReadWrite,
}

/// How far a store write must have come before it returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Persist {
    /// Accepted; durable after the next [`SlotStore::sync`].
    Volatile,
    /// On stable storage when the call returns. Says nothing of earlier writes.
    Durable,
}

/// Why a store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The backend cannot be opened as named.
    #[error("{0}")]
    Open(String),
    /// Another process has the store open for writing.
    #[error("{0} is in use by another process")]
    Busy(String),
    /// It cannot be opened past the page cache.
    #[error(
        "{0} cannot be opened with O_DIRECT: it is no file or block device, or its file system does not offer it"
    )]
    NoDirectAccess(String),
    /// The backend cannot be reached, or went away and did not come back in time.
    #[error("backend unreachable: {0}")]
    Unreachable(String),
    /// The device under the store is full.
    #[error("no space left on the backing store")]
    NoSpace,
    /// The range lies behind the end of the store.
    #[error("range {offset}+{len} lies behind the end of the store")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The store ended before the range did.
    #[error("short read at {offset}: wanted {wanted} bytes, got {got}")]
    ShortRead {
        /// First byte.
        offset: u64,
        /// Bytes asked for.
        wanted: usize,
        /// Bytes that came.
        got: usize,
    },
    /// A remote store broke the protocol.
    #[error("backend broke the protocol: {0}")]
    Protocol(String),
    /// The outcome of a sync is unknown or failed: nothing since the last good one is promised.
    #[error("sync failed: {0}")]
    SyncFailed(String),
    /// The operating system's word.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: &'static str,
        /// The cause.
        source: std::io::Error,
    },
}

impl StoreError {
    /// The operating system's word, with a full device told apart from everything else.
    pub(crate) fn from_io(context: &'static str, source: std::io::Error) -> Self {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match source.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => Self::NoSpace,
            _ => Self::Io { context, source },
        }
    }
}

/// A store addressed by byte offset.
///
/// The contract, held by `tests/store_conformance.rs` for every store:
/// - A returned write is visible to every later read of this process, and survives the death of
///   the process. It survives the death of the host only after a `sync` that started after it
///   returned, or when it was [`Persist::Durable`].
/// - Concurrent calls on disjoint ranges do not disturb each other, though they may land in any order.
/// - A read returns exactly `len` bytes or an error, never invented zeros.
/// - After a failed `sync` the store makes no promise about anything unsynced; the caller stops.
///
/// # Cancel safety
/// Reads may be dropped. A dropped write or discard may still take effect later.
pub trait SlotStore: Send + Sync + 'static {
    /// What the store can do.
    fn capability(&self) -> Capability;

    /// Where the store is, for people: the URI without anything secret.
    fn describe(&self) -> String;

    /// Reads without waiting, if that is possible right now (page cache, memory). `None` means
    /// "use [`read_at`](Self::read_at)"; it is never an error. `buf` is filled only on `Some(Ok)`.
    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Option<Result<(), StoreError>> {
        let _ = (offset, buf);
        None
    }

    /// Reads `len` bytes, at most [`Capability::io_bytes_max`]. Any alignment.
    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'_, Result<Vec<u8>, StoreError>>;

    /// Writes the parts one behind the other from `offset` on; together at most
    /// [`Capability::io_bytes_max`]. Offset and total length are multiples of
    /// [`Capability::write_unit`].
    fn write_at(
        &self,
        offset: u64,
        parts: Vec<Bytes>,
        persist: Persist,
    ) -> BoxFuture<'_, Result<(), StoreError>>;

    /// [`sync`](Self::sync)s on the caller's thread, if that is likely to be over soon: in about a millisecond.
    /// `None` means "use [`sync`](Self::sync)"; it is never an error.
    fn try_sync(&self) -> Option<Result<(), StoreError>> {
        None
    }

    /// Makes every returned write durable.
    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Makes the store as long as `size` bytes, durably, as far as that is in its power: a file grows, a device may
    /// have grown, others stay. What came of it is in [`capability`](Self::capability). It never gets shorter.
    ///
    /// # Errors
    /// The operating system's; the store is as long as before or longer then.
    fn extend(&self, size: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        let _ = size;
        Box::pin(async { Ok(()) })
    }

    /// Whether [`extend`](Self::extend) makes it longer by itself, so that its size is no bound.
    fn extends(&self) -> bool {
        false
    }

    /// Gives a range back to the store; a hint. What it reads as afterwards is undefined.
    fn discard(&self, offset: u64, len: u64) -> BoxFuture<'_, Result<(), StoreError>>;
}
