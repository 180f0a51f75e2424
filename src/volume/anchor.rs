//! Anchors: what is remembered of the newest root outside the store, so that a store that was put back to
//! an older state as a whole is refused (docs/FORMAT.md §13).
//!
//! An [`Anchor`] is a place to remember in, trusted as the store is not. It is written after each root is
//! durable, so an honest store is never behind it; what it does not know yet is the window that
//! [`AnchorStatus`] tells. Judging at open is `judge.rs`, where it is remembered `file.rs` and `memory.rs`.

mod file;
mod judge;
mod memory;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Core, Volume, VolumeError};
use crate::format::root::Root;
use crate::store::BoxFuture;

pub use file::FileAnchor;
pub use judge::RollbackKind;
pub(super) use judge::{Held, judge};
pub use memory::MemoryAnchor;

/// How long an anchor may take. A root waits for it, and writers for roots; one that hangs must not stop them.
const ANCHOR_WITHIN: Duration = Duration::from_secs(30);
/// Highest generation that an anchor may name: roots are counted one by one, and eight at a time after a
/// failure, so no volume gets there.
pub(super) const GENERATION_MAX: u64 = 1 << 60;

/// The newest root, as far as an anchor knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Anchored {
    /// Its number.
    pub generation: u64,
    /// Its authentication code.
    pub root_mac: [u8; 16],
    /// Number of the last chunk of the log that it stands on.
    pub log_seq: u64,
    /// Tag of that chunk's header.
    pub chain: [u8; 16],
    /// The header generation that it demands at least.
    pub header_generation: u64,
    /// Number of the session that wrote it.
    pub writer_epoch: u64,
}

/// Why an anchor could not be read or written. None of it means "not anchored".
#[derive(Debug, thiserror::Error)]
pub enum AnchorError {
    /// The file cannot be read or written.
    #[error("anchor {}: {source}", path.display())]
    Io {
        /// The file or its directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// What stands there is no anchor of this volume.
    #[error("anchor {place}: {why}")]
    Damaged {
        /// Where.
        place: String,
        /// What is wrong with it.
        why: String,
    },
    /// It holds something newer, or another root of the same number. It stays as it is.
    #[error("the anchor holds root {held} and was given root {offered}, which does not follow it")]
    Older {
        /// What it holds.
        held: u64,
        /// What it was given.
        offered: u64,
    },
    /// No answer in time.
    #[error("the anchor did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
}

/// A trusted place that remembers one [`Anchored`] per volume.
///
/// The contract, held by `tests/anchor.rs` for every anchor:
/// - What `store` was given is durable when it returns, and what `load` returns from then on, whole.
/// - It never goes back: what [`follows`](Anchored::follows) not is refused with [`AnchorError::Older`].
/// - What cannot be read is an error. `None` means that nothing was ever stored.
///
/// # Cancel safety
/// A dropped `store` may still take effect.
pub trait Anchor: Send + Sync + 'static {
    /// Where it is, for people.
    fn describe(&self) -> String;

    /// What it remembers of a volume.
    fn load(&self, volume: [u8; 16]) -> BoxFuture<'_, Result<Option<Anchored>, AnchorError>>;

    /// Remembers a newer root.
    fn store(&self, volume: [u8; 16], newest: Anchored) -> BoxFuture<'_, Result<(), AnchorError>>;
}

impl Anchored {
    /// What is remembered of a root whose authentication code is `root_mac`.
    pub(super) fn of(root: &Root, root_mac: [u8; 16]) -> Self {
        // Everything before the last span's start is durable before its root is.
        let last = root.log_spans.last();
        Self {
            generation: root.generation,
            root_mac,
            log_seq: last.map_or(0, |span| span.start_seq.saturating_sub(1)),
            chain: last.map_or([0; 16], |span| span.chain),
            header_generation: root.min_header_generation,
            writer_epoch: root.writer_epoch,
        }
    }

    /// Whether an anchor that holds `held` may take this: a higher number, or the same root again.
    #[must_use]
    pub fn follows(&self, held: &Self) -> bool {
        self.generation > held.generation
            || self.generation == held.generation && self.root_mac == held.root_mac
    }
}

/// An anchor, and what is done when the store is behind it.
#[derive(Clone)]
pub struct Anchoring {
    /// Where roots are remembered.
    pub anchor: Arc<dyn Anchor>,
    /// What a rollback leads to.
    pub on_rollback: OnRollback,
}

impl Anchoring {
    /// Refuses a store that is behind `anchor`.
    #[must_use]
    pub fn refusing(anchor: Arc<dyn Anchor>) -> Self {
        Self { anchor, on_rollback: OnRollback::Refuse }
    }

    /// What the anchor remembers of a volume, if it answers in time.
    pub(super) async fn load(&self, volume: [u8; 16]) -> Result<Option<Anchored>, AnchorError> {
        let loaded = tokio::time::timeout(ANCHOR_WITHIN, self.anchor.load(volume)).await;
        loaded.unwrap_or(Err(AnchorError::TimedOut(ANCHOR_WITHIN)))
    }
}

/// What is done when the store is behind the anchor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnRollback {
    /// The volume is not opened: [`VolumeError::Rollback`].
    Refuse,
    /// The older state is taken, and opening for writing claims it with a root above the anchor.
    Accept,
}

/// What an open volume and its anchor have to do with one another.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnchorStatus {
    /// Number of the root that is anchored; `None` before the first one is.
    pub generation: Option<u64>,
    /// Chunks of the log since that root: a rollback that loses these alone would not be noticed.
    pub undetected_chunks: u64,
    /// The same in bytes of the log.
    pub undetected_bytes: u64,
    /// Why the last root could not be anchored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// The rollback that was accepted when the volume was opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<String>,
    /// Whether more roots were written without the anchor than a root knows of: that this state descends
    /// from the anchored one was taken on trust.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub on_trust: bool,
}

/// The anchor of an open volume.
pub(super) struct Mooring {
    anchoring: Anchoring,
    state: std::sync::Mutex<State>,
}

struct State {
    last: Option<Anchored>,
    /// Bytes of the log written by this session that the last anchored root stands on.
    log_bytes: u64,
    failed: Option<String>,
    accepted: Option<String>,
    on_trust: bool,
}

impl Mooring {
    pub(super) fn new(anchoring: Anchoring, held: Held) -> Self {
        let Held { last, accepted, on_trust } = held;
        let state = State { last, log_bytes: 0, failed: None, accepted, on_trust };
        Self { anchoring, state: std::sync::Mutex::new(state) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the state is held")
    }
}

impl Core {
    /// Remembers a root that is durable. A failure is kept for whoever asks; the next root tries again.
    pub(super) async fn anchor_root(&self, newest: Anchored) {
        let Some(mooring) = &self.mooring else { return };
        let storing = mooring.anchoring.anchor.store(self.header().volume, newest);
        let stored = tokio::time::timeout(ANCHOR_WITHIN, storing)
            .await
            .unwrap_or(Err(AnchorError::TimedOut(ANCHOR_WITHIN)));
        let written = self.counters.log_bytes.load(std::sync::atomic::Ordering::Relaxed);
        let unrooted = self.queue().unrooted_bytes;
        let mut state = mooring.state();
        match stored {
            Ok(()) => {
                state.last = Some(newest);
                state.log_bytes = written.saturating_sub(unrooted);
                state.failed = None;
            }
            Err(error) => state.failed = Some(error.to_string()),
        }
    }

    /// Fails when the last root could not be anchored.
    ///
    /// # Errors
    /// [`VolumeError::NotAnchored`].
    pub(super) fn check_anchored(&self) -> Result<(), VolumeError> {
        let failed = self.mooring.as_ref().and_then(|mooring| mooring.state().failed.clone());
        failed.map_or(Ok(()), |why| Err(VolumeError::NotAnchored(why)))
    }
}

impl Volume {
    /// What the anchor knows of the volume; `None` without an anchor.
    #[must_use]
    pub fn anchor_status(&self) -> Option<AnchorStatus> {
        let core = &self.core;
        let mooring = core.mooring.as_ref()?;
        let log_seq = core.queue().completed_seq();
        let written = core.counters.log_bytes.load(std::sync::atomic::Ordering::Relaxed);
        let state = mooring.state();
        Some(AnchorStatus {
            generation: state.last.map(|last| last.generation),
            undetected_chunks: log_seq.saturating_sub(state.last.map_or(0, |last| last.log_seq)),
            undetected_bytes: written.saturating_sub(state.log_bytes),
            failed: state.failed.clone(),
            accepted: state.accepted.clone(),
            on_trust: state.on_trust,
        })
    }

    /// The anchor, for opening the volume again.
    pub(crate) fn anchor(&self) -> Option<Arc<dyn Anchor>> {
        self.core.mooring.as_ref().map(|mooring| mooring.anchoring.anchor.clone())
    }
}
