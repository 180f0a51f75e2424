//! Verifying a volume: everything that opening and reading it rest on, and with `deep` every sector
//! (docs/FORMAT.md §16, I4 and I5).
//!
//! It works beside writers. `state.rs` reads one state of the volume as the next opening would find it: headers, ring, root, table.
//! What is compared is that state, held still by a reader's guard and by no lock, so checkpoints go on; when the
//! volume needs the slots that the guard keeps, the check gives way and says so. `walk.rs` goes through its
//! tree, page by page from the store, past every cache. `sectors.rs` authenticates what readers see, in the order of
//! addresses, holding nothing for longer than a read takes.

mod report;
mod sectors;
mod state;
mod walk;

use super::segments::ReadGuard;
use super::{Core, Volume, VolumeError};
use crate::store::{BoxFuture, StoreError};

pub use report::{CheckReport, DamagedRange, Finding, LogSummary, Structure};
pub(super) use sectors::Piece;

/// Why a part of a check ends early.
enum Stop {
    /// Writers need what it holds.
    GaveWay,
    /// The store cannot be asked.
    Failed(VolumeError),
}

impl From<VolumeError> for Stop {
    fn from(error: VolumeError) -> Self {
        Self::Failed(error)
    }
}

/// Keeps the slots of one state of the volume from being used again, for as long as nobody needs them.
struct Still<'a> {
    core: &'a Core,
    _guard: ReadGuard,
}

impl<'a> Still<'a> {
    fn new(core: &'a Core) -> Self {
        Self { core, _guard: core.segments.table().guard() }
    }

    /// # Errors
    /// [`Stop::GaveWay`] when slots run out that this keeps.
    fn check(&self) -> Result<(), Stop> {
        let short = {
            let table = self.core.segments.table();
            table.freed_slots() > 0 && table.slots().unused() <= 2 * self.core.room.reserve()
        };
        if short || self.core.queue().stalled { Err(Stop::GaveWay) } else { Ok(()) }
    }
}

/// Whether an error is about one place, so that others can be read all the same.
pub(super) fn is_local(error: &VolumeError) -> bool {
    matches!(
        error,
        VolumeError::Damaged { .. }
            | VolumeError::Inconsistent(_)
            | VolumeError::LogDamaged { .. }
            | VolumeError::Store(
                StoreError::Io { .. } | StoreError::ShortRead { .. } | StoreError::OutOfRange { .. }
            )
    )
}

impl Volume {
    /// How far the progress of [`check`](Self::check) goes, in bytes of the export passed: once for the index, and when
    /// `deep` once more.
    #[must_use]
    pub fn check_len(&self, deep: bool) -> u64 {
        self.core.header().export_bytes * if deep { 2 } else { 1 }
    }

    /// Verifies both headers, the root ring, the newest root and the one before, the segment table, the headers of
    /// segments, the whole index, and that the table counts what the index needs; when `deep`, reads and
    /// authenticates every sector that holds data. `progress` is told the bytes passed, of
    /// [`check_len`](Self::check_len).
    ///
    /// # Errors
    /// The store's, when it cannot be asked at all. Damage is no error: it is in the report.
    ///
    /// # Cancel safety
    /// May be dropped: it changes nothing.
    pub fn check<'a>(
        &'a self,
        deep: bool,
        progress: impl Fn(u64) + Send + Sync + 'a,
    ) -> BoxFuture<'a, Result<CheckReport, VolumeError>> {
        Box::pin(self.core.check(deep, progress))
    }
}

impl Core {
    async fn check(
        &self,
        deep: bool,
        progress: impl Fn(u64) + Send + Sync,
    ) -> Result<CheckReport, VolumeError> {
        let mut report = CheckReport::default();
        let size = self.header().export_bytes;
        match self.check_structures(&mut report, &progress).await {
            Ok(()) => {}
            Err(Stop::Failed(error)) => return Err(error),
            Err(Stop::GaveWay) => report.gave_way = true,
        }
        progress(size);
        if deep {
            self.check_sectors(&mut report, |at| progress(size + at)).await?;
        }
        report.settle();
        Ok(report)
    }
}
