//! The encrypted volume: a log-structured disk on a slot store (docs/FORMAT.md §8–§12).
//!
//! A 4 KiB write: `write` validates nothing (the NBD side did) and hands the payload to the
//! `log`: it waits for nobody, is composed into a chunk with whatever else is waiting, sealed,
//! written, and answered in log order. `checkpoint` folds the newer entries into the tree and writes a
//! root; `recover` is its counterpart at open.
//!
//! | file | topic |
//! |---|---|
//! | `write`, `read`, `turn`, `flush` | what clients ask for |
//! | `log`, `queue`, `tail`, `chunk_io` | group commit, order, the open segment, sealing and writing |
//! | `delta`, `tree`, `merge` | index: newer entries, pages on the store, folding one into the other |
//! | `rows`, `slots`, `segments`, `io`, `new_segment`, `index_writer` | table and slots, places and keys, opening segments, appending pages |
//! | `checkpoint`, `replay`, `recover` | roots, reading the log back, opening |
//! | `maintain` | background work |
//! | `space`, `reclaim`, `written`, `cold`, `index_reclaim`, [`compact`] | how much room there is, getting space back |
//! | [`anchor`] | the newest root remembered outside the store |
//! | `header_change`, `resize` | new keyslots, another size while the volume is open |
//! | `wipe` | knowing that the keys are gone |
//! | [`create`], [`unlock`], [`check`], [`salvage`] | making, unlocking, verifying volumes; opening damaged ones |

pub mod anchor;
pub mod check;
mod checkpoint;
mod chunk_io;
mod cold;
pub mod compact;
pub mod create;
mod delta;
mod error;
mod fill;
mod flush;
mod header_change;
mod index_reclaim;
mod index_writer;
mod io;
mod lock_order;
mod log;
mod maintain;
mod merge;
mod new_segment;
mod queue;
mod read;
mod reclaim;
mod recover;
mod replay;
mod resize;
mod rows;
pub mod salvage;
mod segments;
mod slots;
mod space;
mod status;
mod tail;
mod tree;
mod turn;
pub mod unlock;
#[cfg(test)]
mod wide_table;
mod wipe;
mod write;
mod written;

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use lock_order::{Ordered, Rank};
use tokio::sync::{Notify, Semaphore, watch};

use crate::cipher::{UidSource, VolumeKeys};
use crate::export::{Durability, Export, ExportError, ExportInfo, Extent, ZeroMode};
use crate::format::header::Header;
use crate::geometry::ByteRange;
use crate::payload::Payload;
use crate::store::SlotStore;

pub use error::VolumeError;
pub use recover::OpenMode;
pub use resize::{Resized, Sizes, WantedSize};
pub use status::{SpaceStatus, VolumeStatus};
pub(crate) use wipe::KeysWiped;

/// An open volume. Cheap to clone; the last clone should be [`close`](Volume::close)d.
#[derive(Clone)]
pub struct Volume {
    core: Arc<Core>,
}

/// What all parts of an open volume share.
///
/// Locks are taken in this order and never held across an await: `tail`, `queue`, `map`, the
/// segment table; `moves` and `header` alone. `reclaimer`, `checkpointer` and `flusher` are asynchronous and come before
/// all of them, in this order.
struct Core {
    store: Arc<dyn SlotStore>,
    /// As this session goes by it: keyslots and sizes change, the rest does not.
    header: RwLock<Arc<Header>>,
    mode: OpenMode,
    keys: Arc<VolumeKeys>,
    uids: UidSource,
    segments: io::SegmentReader,
    pages: tree::Pages,
    map: RwLock<Map>,
    queue: Mutex<queue::Queue>,
    tail: Mutex<tail::Tail>,
    checkpointer: tokio::sync::Mutex<checkpoint::Checkpointer>,
    reclaimer: tokio::sync::Mutex<reclaim::Reclaimer>,
    moves: Mutex<cold::Moves>,
    room: space::Room,
    flusher: tokio::sync::Mutex<()>,
    /// Whether a client has read since the last store flush.
    read_lately: AtomicBool,
    /// Whether slots may be filled ahead of the log; not where that gains nothing, nor once it has failed.
    fills: AtomicBool,
    /// Wakes the background task.
    wake: Arc<Notify>,
    /// Told whenever a chunk completes.
    progress: Notify,
    /// Turns of long reads.
    turns: Semaphore,
    counters: Counters,
    /// Number of the last root that was written or tried.
    generation: AtomicU64,
    /// This session's number.
    writer_epoch: u64,
    /// Where roots are remembered outside the store.
    mooring: Option<anchor::Mooring>,
    /// The last field, so the last to go: whoever sees it go knows that all keys are wiped.
    gone: watch::Sender<()>,
}

/// The index: newest entries first.
struct Map {
    /// Entries of completed chunks since the last freeze.
    active: delta::Delta,
    /// Entries that a checkpoint is folding into the tree right now.
    frozen: Option<Arc<delta::Delta>>,
    /// The tree of the last root.
    tree: Arc<tree::Tree>,
}

/// Totals since open.
#[derive(Default)]
struct Counters {
    bytes_written: AtomicU64,
    log_bytes: AtomicU64,
    chunks: AtomicU64,
    index_bytes: AtomicU64,
    moved_bytes: AtomicU64,
    filled_bytes: AtomicU64,
    sealed_messages: AtomicU64,
    authentication_failures: AtomicU64,
}

impl Core {
    fn queue(&self) -> Ordered<MutexGuard<'_, queue::Queue>> {
        Ordered::take(Rank::Queue, || self.queue.lock().expect("no panic while the queue is held"))
    }

    fn tail(&self) -> Ordered<MutexGuard<'_, tail::Tail>> {
        Ordered::take(Rank::Tail, || self.tail.lock().expect("no panic while the tail is held"))
    }

    fn moves(&self) -> Ordered<MutexGuard<'_, cold::Moves>> {
        Ordered::take(Rank::Moves, || self.moves.lock().expect("no panic while the moves are held"))
    }

    fn map(&self) -> Ordered<RwLockReadGuard<'_, Map>> {
        Ordered::take(Rank::Map, || self.map.read().expect("no panic while the map is held"))
    }

    fn map_mut(&self) -> Ordered<RwLockWriteGuard<'_, Map>> {
        Ordered::take(Rank::Map, || self.map.write().expect("no panic while the map is held"))
    }

    /// The header that holds now.
    fn header(&self) -> Arc<Header> {
        self.header.read().expect("no panic while the header is held").clone()
    }

    /// Refuses what reaches behind the end, which may have come nearer since a client was told of it.
    fn check_end(&self, range: ByteRange) -> Result<(), ExportError> {
        let end = self.header.read().expect("no panic while the header is held").export_bytes;
        if range.end() > end {
            return Err(ExportError::Io(format!("the volume has become smaller: it ends at byte {end}")));
        }
        Ok(())
    }

    fn align(&self) -> usize {
        self.header().align as usize
    }

    /// Refuses changes to a volume that was opened for reading.
    fn check_writable(&self) -> Result<(), ExportError> {
        match self.mode {
            OpenMode::ReadWrite => Ok(()),
            OpenMode::ReadOnly => Err(ExportError::ReadOnly),
        }
    }
}

impl Volume {
    /// The authenticated header that this session goes by: as it was opened, or as this volume has changed
    /// it since. [`Volume::newest_header`] is the one on the store.
    #[must_use]
    pub fn header(&self) -> Arc<Header> {
        self.core.header()
    }

    /// Keeps at most so many bytes of index pages in memory from now on, about. Less makes reads load more of them.
    pub fn limit_pages(&self, bytes: u64) {
        self.core.pages.limit(bytes);
    }

    /// Finishes what is being written, folds the log into the tree, and writes a last root. Changes that
    /// still wait, and every later one, are refused with [`ExportError::ShuttingDown`]. Afterwards
    /// nothing of this session reaches the store.
    ///
    /// # Errors
    /// When the last root could not be written; the volume opens all the same, by replaying its log.
    pub async fn close(&self) -> Result<(), VolumeError> {
        if self.core.mode == OpenMode::ReadOnly {
            return Ok(());
        }
        self.core.close().await
    }

    /// Folds the newer entries into the tree and writes a root now.
    ///
    /// # Errors
    /// [`VolumeError`]; the volume goes on with its old root.
    pub async fn checkpoint(&self) -> Result<(), VolumeError> {
        self.core.checkpoint().await
    }
}

impl Export for Volume {
    fn info(&self) -> ExportInfo {
        let header = self.core.header();
        let id = uuid::Uuid::from_bytes(header.volume);
        let label = header.label_text();
        let description =
            if label.is_empty() { format!("sealbd {id}") } else { format!("sealbd {id} {label}") };
        let read_only = self.core.mode == OpenMode::ReadOnly;
        ExportInfo { size: header.export_bytes, read_only, description }
    }

    async fn read<'a>(&'a self, range: ByteRange, buf: &'a mut [u8]) -> Result<Vec<ByteRange>, ExportError> {
        self.core.read(range, buf).await
    }

    async fn write(&self, payload: Payload, durability: Durability) -> Result<(), ExportError> {
        let seq = self.core.write(payload).await?;
        self.core.make(durability, seq).await
    }

    async fn trim(&self, range: ByteRange, durability: Durability) -> Result<(), ExportError> {
        let seq = self.core.trim(range).await?;
        self.core.make(durability, seq).await
    }

    async fn write_zeroes(
        &self,
        range: ByteRange,
        mode: ZeroMode,
        durability: Durability,
    ) -> Result<(), ExportError> {
        let seq = self.core.write_zeroes(range, mode).await?;
        self.core.make(durability, seq).await
    }

    async fn flush(&self) -> Result<(), ExportError> {
        self.core.flush().await
    }

    async fn cache(&self, range: ByteRange) -> Result<(), ExportError> {
        self.core.prefetch(range).await
    }

    async fn block_status(&self, range: ByteRange, extents_max: usize) -> Result<Vec<Extent>, ExportError> {
        self.core.block_status(range, extents_max).await
    }
}
