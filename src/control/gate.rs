//! A served volume whose keys can be taken out of memory and brought back, without a client noticing
//! more than a pause.
//!
//! Requests hold the slot of the volume for reading; whoever changes it holds it for writing, and keeps
//! it so for as long as the volume is suspended. So what arrives meanwhile waits in the lock's queue, first
//! come first served, and running costs one lock that nobody holds. What is parked is in memory and bounded by
//! the server's admission ([`crate::nbd::admission`]).
//!
//! Suspending and its like run on a task of their own: whoever asked may go away half-way, the change
//! comes to its end.

mod doors;
mod resizing;
#[cfg(test)]
pub(super) mod tests;

use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use keymgmt::secret::Dek;
use subtle::ConstantTimeEq;
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, RwLockReadGuard, watch};
use tokio::time::timeout;

use crate::cipher::{Engine, VolumeKeys};
use crate::export::{Attached, Durability, Export, ExportError, ExportInfo, Extent, ZeroMode};
use crate::format::header::Header;
use crate::geometry::ByteRange;
use crate::payload::Payload;
use crate::store::SlotStore;
use crate::volume::anchor::{Anchor, Anchoring};
use crate::volume::unlock::read_header;
use crate::volume::{KeysWiped, OpenMode, Volume, VolumeError};
use doors::Doors;
pub use resizing::ResizeError;

/// How long a closed volume's background work may take to notice, before suspending is told as failed. It
/// waits for one store operation at most.
const WIPE_DEADLINE: Duration = Duration::from_secs(30);

/// What a gate lets through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GateState {
    /// Requests are answered.
    Running,
    /// No key is in memory; requests wait.
    Suspended,
    /// Closed for good; requests fail with [`ExportError::ShuttingDown`].
    Stopped,
}

/// The volume is suspended, on its way there or back, or stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the volume is not running")]
pub struct NotRunning;

/// What went wrong in suspending. But for the last, requests wait from then on.
#[derive(Debug, thiserror::Error)]
pub enum SuspendError {
    /// The keys are wiped; resuming replays the log.
    #[error("suspended and the keys wiped, but the volume was not closed cleanly: {0}")]
    Unclean(VolumeError),
    /// Something that was under way did not come to its end in time. Suspending again waits for it again.
    #[error("requests wait, but keys are still in memory: something that was under way does not end")]
    KeysInUse,
    /// There is nothing to suspend any more.
    #[error("the volume is stopped for good")]
    Stopped,
}

/// Why a suspended volume was not resumed; it stays as it was.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// The data key does not belong to the header.
    #[error("the data key is not this volume's")]
    WrongKey,
    /// The store holds another volume than the one that was suspended.
    #[error("the store holds another volume now ({0} differs)")]
    OtherVolume(&'static str),
    /// The header is older than one that was in use.
    #[error("header generation {found} is older than {known}, which was in use (rollback)")]
    HeaderRollback {
        /// What was found.
        found: u64,
        /// What the volume had when it was suspended.
        known: u64,
    },
    /// The store was put back to a state from before the volume was suspended.
    #[error("the log on the store ends with chunk {found}, and {known} had been answered (rollback)")]
    DataRollback {
        /// Number of the last chunk that was found.
        found: u64,
        /// Number of the last one that was answered.
        known: u64,
    },
    /// The volume was stopped, or is about to be.
    #[error("the volume is being closed for good")]
    Stopped,
    /// The header cannot be read, or the volume does not open.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

/// A volume that is served, and can be suspended and resumed.
pub struct Gate {
    inner: Arc<Inner>,
}

/// A running volume, which is not suspended while this is held. Not to be held while waiting for a request
/// to the same gate: behind somebody who suspends, that would wait for itself.
pub struct VolumeInUse<'a>(RwLockReadGuard<'a, Volume>);

struct Inner {
    store: Arc<dyn SlotStore>,
    engine: Engine,
    mode: OpenMode,
    /// What the volume is held against when it comes back.
    anchor: Option<Arc<dyn Anchor>>,
    /// Bytes of index pages that it keeps in memory when it comes back.
    page_bytes: u64,
    doors: Arc<Doors>,
    slot: Arc<RwLock<Slot>>,
    /// One change at a time; taken before the slot.
    control: tokio::sync::Mutex<Control>,
    seen: Mutex<Seen>,
    /// Requests that wait.
    parked: AtomicUsize,
    /// Told when nothing may wait any more.
    shutdown: watch::Sender<bool>,
    /// Whether somebody waits to change the slot: whoever uses the volume for long gives way.
    wanted: watch::Sender<bool>,
}

enum Slot {
    Open(Volume),
    Closed,
}

/// What only the running change touches.
struct Control {
    /// The slot, while suspended: everybody waits for it.
    barrier: Option<OwnedRwLockWriteGuard<Slot>>,
    /// Ends with the last key of the session before; `None` when that has been seen.
    wiped: Option<KeysWiped>,
    identity: Identity,
}

/// What must not differ when the volume comes back.
#[derive(Clone, Copy)]
struct Identity {
    volume: [u8; 16],
    export_bytes: u64,
    /// The newest header generation that was in use.
    header_generation: u64,
    /// Number of the last chunk of the log that took effect.
    log_seq: u64,
}

#[derive(Clone, Copy)]
struct Seen {
    state: GateState,
    since: SystemTime,
}

impl Gate {
    /// A running gate around an open volume. `store` is the volume's, `engine` seals after a resume.
    ///
    /// The gate must be given the only clone of the volume: keys live as long as any of them.
    #[must_use]
    pub fn new(volume: Volume, store: Arc<dyn SlotStore>, engine: Engine) -> Self {
        let identity = Identity::of(&volume);
        let inner = Inner {
            store,
            engine,
            mode: volume.mode(),
            anchor: volume.anchor(),
            page_bytes: volume.status().page_bytes_max,
            doors: Doors::new(volume.info()),
            slot: Arc::new(RwLock::new(Slot::Open(volume))),
            control: tokio::sync::Mutex::new(Control { barrier: None, wiped: None, identity }),
            seen: Mutex::new(Seen { state: GateState::Running, since: SystemTime::now() }),
            parked: AtomicUsize::new(0),
            shutdown: watch::Sender::new(false),
            wanted: watch::Sender::new(false),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Lets requests wait from now on, waits for those under way, closes the volume and wipes every key. Does
    /// nothing when the volume is suspended already.
    ///
    /// # Errors
    /// [`SuspendError`].
    ///
    /// # Panics
    /// When closing the volume does.
    ///
    /// # Cancel safety
    /// When dropped, suspending goes on to its end.
    pub async fn suspend(&self) -> Result<(), SuspendError> {
        let inner = Arc::clone(&self.inner);
        finish(async move { inner.suspend().await }).await
    }

    /// Opens the volume again, as it was open before, and answers what waits. Does nothing when the volume
    /// is running.
    ///
    /// # Errors
    /// [`ResumeError`]; the volume stays suspended and `dek` is wiped.
    ///
    /// # Panics
    /// When opening the volume does.
    ///
    /// # Cancel safety
    /// When dropped, resuming goes on to its end.
    pub async fn resume(&self, dek: Dek) -> Result<(), ResumeError> {
        let inner = Arc::clone(&self.inner);
        finish(async move { inner.resume(dek).await }).await
    }

    /// Ends it for good: what waits and what comes fails with [`ExportError::ShuttingDown`], what is under way is
    /// finished, the volume is closed and its keys are wiped. Takes as long as the store does, and never waits
    /// for requests that wait. Does nothing when the volume is stopped already.
    ///
    /// # Errors
    /// When the last root could not be written, or keys are still in use after half a minute; nothing that was
    /// answered is lost.
    ///
    /// # Panics
    /// When closing the volume does.
    ///
    /// # Cancel safety
    /// When dropped, stopping goes on to its end.
    pub async fn close(&self) -> Result<(), VolumeError> {
        let inner = Arc::clone(&self.inner);
        finish(async move { inner.close().await }).await
    }

    /// Lets nothing wait any more: while the volume is suspended, requests fail with
    /// [`ExportError::ShuttingDown`]. While it runs they are answered as ever, until it is
    /// [`close`](Self::close)d. For a server that is told to stop. It cannot be taken back.
    pub fn begin_shutdown(&self) {
        self.inner.shutdown.send_replace(true);
    }

    /// Where the gate stands. On its way it is still where it comes from.
    #[must_use]
    pub fn state(&self) -> GateState {
        self.inner.seen().state
    }

    /// Since when it stands there.
    #[must_use]
    pub fn since(&self) -> SystemTime {
        self.inner.seen().since
    }

    /// How many requests wait.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.inner.parked.load(Ordering::Relaxed)
    }

    /// The volume, for more than requests. Suspending waits until this is dropped; a clone made of it must
    /// not outlive it.
    ///
    /// # Errors
    /// [`NotRunning`]; it never waits.
    pub fn volume(&self) -> Result<VolumeInUse<'_>, NotRunning> {
        let slot = self.inner.slot.try_read().map_err(|_| NotRunning)?;
        RwLockReadGuard::try_map(slot, Slot::volume).map(VolumeInUse).map_err(|_| NotRunning)
    }
}

impl Gate {
    /// Ends when somebody waits for a volume in use to be given back: whoever holds one for long, and waits for this
    /// since before, gives it up then.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub fn is_wanted(&self) -> impl Future<Output = ()> + use<> {
        let mut wanted = self.inner.wanted.subscribe();
        // It ends with the gate.
        async move { drop(wanted.wait_for(|wanted| *wanted).await) }
    }
}

impl Deref for VolumeInUse<'_> {
    type Target = Volume;

    fn deref(&self) -> &Volume {
        &self.0
    }
}

/// Runs a change on a task of its own, so that it comes to its end.
async fn finish<T: Send + 'static>(change: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(change).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that is being shut down aborts the task, and it polls nobody any more.
            Err(_) => std::future::pending().await,
        },
    }
}

impl Slot {
    fn volume(&self) -> Option<&Volume> {
        match self {
            Self::Open(volume) => Some(volume),
            Self::Closed => None,
        }
    }
}

impl Inner {
    async fn suspend(&self) -> Result<(), SuspendError> {
        let mut control = self.control.lock().await;
        let closed = match self.seen().state {
            GateState::Running => {
                self.wanted.send_replace(true);
                let mut slot = Arc::clone(&self.slot).write_owned().await;
                self.wanted.send_replace(false);
                let closed = control.close_volume(&mut slot).await;
                control.barrier = Some(slot);
                closed
            }
            GateState::Suspended => Ok(()),
            GateState::Stopped => return Err(SuspendError::Stopped),
        };
        let wiped = control.keys_are_wiped().await;
        self.enter(GateState::Suspended);
        wiped.map_err(|StillInUse| SuspendError::KeysInUse)?;
        closed.map_err(SuspendError::Unclean)
    }

    async fn close(&self) -> Result<(), VolumeError> {
        self.shutdown.send_replace(true);
        let mut control = self.control.lock().await;
        let closed = match self.seen().state {
            GateState::Running => {
                self.wanted.send_replace(true);
                let mut slot = Arc::clone(&self.slot).write_owned().await;
                control.close_volume(&mut slot).await
            }
            GateState::Suspended => {
                // Its slot is closed: whoever gets at it now is refused.
                control.barrier = None;
                Ok(())
            }
            GateState::Stopped => Ok(()),
        };
        let wiped = control.keys_are_wiped().await;
        self.enter(GateState::Stopped);
        closed?;
        wiped.map_err(|StillInUse| VolumeError::Stopped("its keys are still in use".into()))
    }

    async fn resume(&self, dek: Dek) -> Result<(), ResumeError> {
        let mut control = self.control.lock().await;
        match self.seen().state {
            GateState::Running => return Ok(()),
            GateState::Suspended if !*self.shutdown.borrow() => {}
            GateState::Suspended | GateState::Stopped => return Err(ResumeError::Stopped),
        }
        let (header, keys) = self.unlock(dek, &control.identity).await?;
        let anchoring = self.anchor.clone().map(Anchoring::refusing);
        let store = Arc::clone(&self.store);
        let volume = Volume::open_authentic(store, header, keys, self.mode, anchoring).await?;
        volume.limit_pages(self.page_bytes);
        let (found, known) = (volume.log_seq(), control.identity.log_seq);
        if found < known {
            control.abandon(volume).await;
            return Err(ResumeError::DataRollback { found, known });
        }
        control.identity = Identity::of(&volume);
        self.doors.tell(volume.info());
        control.wiped = None;
        let mut slot = control.barrier.take().expect("held while suspended");
        *slot = Slot::Open(volume);
        self.enter(GateState::Running);
        Ok(())
    }

    /// The header on the store and the keys that it authenticates with, if both are those of before.
    async fn unlock(&self, dek: Dek, before: &Identity) -> Result<(Header, Arc<VolumeKeys>), ResumeError> {
        let copies = read_header(&*self.store).await?;
        let claimed = copies.claimed();
        if claimed.volume != before.volume {
            return Err(ResumeError::OtherVolume("its UUID"));
        }
        let keys = VolumeKeys::derive(self.engine, &dek, &claimed.salt, &claimed.volume);
        drop(dek);
        // An altered header and a wrong key look alike but for the commitments in its keyslots.
        let mut slots = claimed.keyslots.iter().flatten();
        let committed = slots.any(|slot| slot.commit.ct_eq(keys.commit()).into());
        let header = match copies.authenticate(&keys) {
            Ok(header) => header,
            Err(error) if committed => return Err(error.into()),
            Err(_) => return Err(ResumeError::WrongKey),
        };
        let (found, known) = (header.generation, before.header_generation);
        if found < known {
            return Err(ResumeError::HeaderRollback { found, known });
        }
        // A newer one may finish a resize that was begun.
        if found == known && header.export_bytes != before.export_bytes {
            return Err(ResumeError::OtherVolume("its size"));
        }
        Ok((header, Arc::new(keys)))
    }

    /// The volume, for one request.
    async fn admit(&self) -> Result<RwLockReadGuard<'_, Volume>, ExportError> {
        let slot = match self.slot.try_read() {
            Ok(slot) => slot,
            Err(_) => self.park().await?,
        };
        RwLockReadGuard::try_map(slot, Slot::volume).map_err(|_| ExportError::ShuttingDown)
    }

    /// Waits in line for the slot.
    #[cold]
    async fn park(&self) -> Result<RwLockReadGuard<'_, Slot>, ExportError> {
        let _parked = Parked::count(&self.parked);
        let mut shutdown = self.shutdown.subscribe();
        tokio::select! {
            biased;
            slot = self.slot.read() => Ok(slot),
            _ = shutdown.wait_for(|begun| *begun) => Err(ExportError::ShuttingDown),
        }
    }

    /// Notes where it stands now; the time is that of the change.
    fn enter(&self, state: GateState) {
        let mut seen = self.seen_mut();
        if seen.state != state {
            *seen = Seen { state, since: SystemTime::now() };
        }
    }

    fn seen(&self) -> Seen {
        *self.seen_mut()
    }

    fn seen_mut(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keys of the session before are in memory after [`WIPE_DEADLINE`].
struct StillInUse;

impl Control {
    /// Closes the volume in the slot and lets it go.
    async fn close_volume(&mut self, slot: &mut Slot) -> Result<(), VolumeError> {
        let Slot::Open(volume) = std::mem::replace(slot, Slot::Closed) else {
            // Closing it panicked before.
            return Ok(());
        };
        let export_bytes = volume.header().export_bytes;
        self.identity.export_bytes = export_bytes;
        self.identity.header_generation = volume.header_generation().await;
        self.wiped = Some(volume.keys_wiped());
        let closed = volume.close().await;
        self.identity.log_seq = volume.log_seq();
        closed
    }

    /// Lets go of a volume that was opened and must not be used.
    async fn abandon(&mut self, volume: Volume) {
        self.wiped = Some(volume.keys_wiped());
        // Nobody was answered from it: its last root does not matter.
        let _ = volume.close().await;
        drop(volume);
        // Whoever suspends it again is told.
        let _ = self.keys_are_wiped().await;
    }

    async fn keys_are_wiped(&mut self) -> Result<(), StillInUse> {
        let Some(wiped) = &mut self.wiped else { return Ok(()) };
        timeout(WIPE_DEADLINE, wiped.wait()).await.map_err(|_| StillInUse)?;
        self.wiped = None;
        Ok(())
    }
}

impl Identity {
    fn of(volume: &Volume) -> Self {
        let &Header { volume: uuid, export_bytes, generation: header_generation, .. } = &*volume.header();
        Self { volume: uuid, export_bytes, header_generation, log_seq: volume.log_seq() }
    }
}

/// Counts a request that waits.
struct Parked<'a>(&'a AtomicUsize);

impl<'a> Parked<'a> {
    fn count(parked: &'a AtomicUsize) -> Self {
        parked.fetch_add(1, Ordering::Relaxed);
        Self(parked)
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// # Cancel safety
/// A request that waits may be dropped, whatever it asks; under way it is as the volume's.
impl Export for Gate {
    fn info(&self) -> ExportInfo {
        self.inner.doors.told()
    }

    fn attach(&self, told: &ExportInfo) -> Option<Attached> {
        self.inner.doors.enter(told).map(Attached::counted_by)
    }

    async fn read<'a>(&'a self, range: ByteRange, buf: &'a mut [u8]) -> Result<Vec<ByteRange>, ExportError> {
        self.inner.admit().await?.read(range, buf).await
    }

    async fn write(&self, payload: Payload, durability: Durability) -> Result<(), ExportError> {
        self.inner.admit().await?.write(payload, durability).await
    }

    async fn trim(&self, range: ByteRange, durability: Durability) -> Result<(), ExportError> {
        self.inner.admit().await?.trim(range, durability).await
    }

    async fn write_zeroes(
        &self,
        range: ByteRange,
        mode: ZeroMode,
        durability: Durability,
    ) -> Result<(), ExportError> {
        self.inner.admit().await?.write_zeroes(range, mode, durability).await
    }

    async fn flush(&self) -> Result<(), ExportError> {
        self.inner.admit().await?.flush().await
    }

    async fn cache(&self, range: ByteRange) -> Result<(), ExportError> {
        self.inner.admit().await?.cache(range).await
    }

    async fn block_status(&self, range: ByteRange, extents_max: usize) -> Result<Vec<Extent>, ExportError> {
        self.inner.admit().await?.block_status(range, extents_max).await
    }
}
