//! One budget of memory for the process, shared out when its volumes are open (docs/FORMAT.md §16, I9).
//!
//! What a volume cannot do without comes first: its segment table, the newer entries of the index, what a
//! checkpoint and a batch of moves need. The rest is halved between requests under way and index pages.

use crate::buffers::KEPT_BYTES_MAX;
use crate::nbd::admission::RESERVE_BYTES;
use crate::server::CONNECTIONS_MAX;
use crate::volume::create::Geometry;

const MIB: u64 = 1 << 20;
/// The program, its threads, and the reserves of all connections.
const PROCESS_BYTES: u64 = 14 * MIB + CONNECTIONS_MAX as u64 * RESERVE_BYTES as u64;
/// Of one volume, whatever its size: newer entries and those that a checkpoint folds in (12 MiB), chunks and
/// moves under way, segment keys (4 MiB).
const VOLUME_BYTES: u64 = 20 * MIB;
/// Of one slot: the row of its segment, its handle and whether it is taken.
const SLOT_BYTES: u64 = 45;
/// Least for the requests of a volume. A longer one is admitted alone.
const REQUEST_BYTES_MIN: u64 = 8 * MIB;
/// Most: with more under way nothing gets faster.
const REQUEST_BYTES_MAX: u64 = 64 * MIB;
/// Least for the index pages of a volume: every read would load pages.
const PAGE_BYTES_MIN: u64 = 4 * MIB;

/// Bytes that the process may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Budget(u64);

/// What every volume may use beyond what it cannot do without, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Share {
    /// Requests under way on one export ([`crate::server::Limits::request_bytes_max`]).
    pub(super) requests: usize,
    /// Index pages of one volume ([`crate::volume::Volume::limit_pages`]).
    pub(super) pages: u64,
}

/// A budget that the volumes do not fit in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{budget} bytes of memory are too few, the volumes to be served need {needed}")]
pub(super) struct TooSmall {
    /// The budget, in bytes.
    pub(super) budget: u64,
    /// The least that would do, in bytes.
    pub(super) needed: u64,
}

impl Budget {
    /// So many bytes.
    #[must_use]
    pub(super) fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// What volumes of these sizes get when nothing is said: 64 MiB, 11 MB for each TiB, and 32 MiB for each
    /// volume but the first one; more where a volume has more segments than usual.
    #[must_use]
    pub(super) fn default_for(volumes: &[Geometry]) -> Self {
        let exported: u64 = volumes.iter().map(|volume| volume.export_bytes).sum();
        let tables = ((exported >> 20) * 11_000_000) >> 20;
        let more = volumes.len().saturating_sub(1) as u64;
        Self((64 * MIB + more * 32 * MIB + tables).max(needed(volumes) + KEPT_BYTES_MAX as u64))
    }

    /// Shares the budget out.
    ///
    /// # Errors
    /// [`TooSmall`].
    pub(super) fn share(self, volumes: &[Geometry]) -> Result<Share, TooSmall> {
        let needed = needed(volumes);
        let count = volumes.len().max(1) as u64;
        let rest = self.0.checked_sub(needed).ok_or(TooSmall { budget: self.0, needed })?;
        // What is kept beside the requests under way comes on top where the budget is small.
        let free = rest.saturating_sub(KEPT_BYTES_MAX as u64) / count + REQUEST_BYTES_MIN + PAGE_BYTES_MIN;
        let requests = (free / 2).clamp(REQUEST_BYTES_MIN, REQUEST_BYTES_MAX);
        let requests_len = usize::try_from(requests).expect("64 MiB at most");
        Ok(Share { requests: requests_len, pages: free - requests })
    }

    /// In bytes.
    #[must_use]
    pub(super) fn get(self) -> u64 {
        self.0
    }
}

fn needed(volumes: &[Geometry]) -> u64 {
    let one =
        |volume: &Geometry| VOLUME_BYTES + volume.slots * SLOT_BYTES + REQUEST_BYTES_MIN + PAGE_BYTES_MIN;
    PROCESS_BYTES + volumes.iter().map(one).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::create::OverProvisioning;

    fn volumes(sizes: &[u64]) -> Vec<Geometry> {
        sizes.iter().map(|size| Geometry::for_export(*size).unwrap()).collect()
    }

    #[test]
    fn the_default_is_64_mib_and_11_mb_a_tib_and_is_enough() {
        const TIB: u64 = 1 << 40;
        for (sizes, expected) in [
            (&[1 << 30][..], 64 * MIB),
            (&[16 * TIB], 64 * MIB + 16 * 11_000_000),
            (&[TIB, TIB], 96 * MIB + 2 * 11_000_000),
        ] {
            let volumes = volumes(sizes);
            let budget = Budget::default_for(&volumes);
            assert!(budget.get().abs_diff(expected) < MIB, "{sizes:?}: {budget:?}");
            let share = budget.share(&volumes).unwrap();
            let shared = (share.requests as u64 + share.pages) * sizes.len() as u64;
            let taken = needed(&volumes) - (REQUEST_BYTES_MIN + PAGE_BYTES_MIN) * sizes.len() as u64;
            assert!(shared + taken + KEPT_BYTES_MAX as u64 <= budget.get(), "{sizes:?}: {share:?}");
        }
    }

    /// They once came on top of any budget.
    #[test]
    fn buffers_that_are_kept_are_within_the_budget() {
        let volumes = volumes(&[1 << 30]);
        let (least, kept) = (needed(&volumes), KEPT_BYTES_MAX as u64);
        let sum = |budget| {
            let share = Budget::bytes(budget).share(&volumes).unwrap();
            share.requests as u64 + share.pages
        };
        assert_eq!(sum(least + kept), sum(least));
        assert_eq!(sum(least + kept + 2 * MIB), sum(least) + 2 * MIB);
    }

    /// Segments beyond the usual number once took the place of those buffers.
    #[test]
    fn buffers_that_are_kept_are_within_the_default_of_volumes_with_many_segments() {
        let volumes = [Geometry::with_spare(4 << 40, OverProvisioning::MAX).unwrap()];
        let least = needed(&volumes);
        assert!(least > 64 * MIB + 44_000_000, "more than what the size alone gives");
        assert_eq!(Budget::default_for(&volumes).get(), least + KEPT_BYTES_MAX as u64);
    }

    #[test]
    fn too_small_a_budget_is_told_with_the_least_that_would_do() {
        let volumes = volumes(&[16 << 40]);
        let error = Budget::bytes(64 * MIB).share(&volumes).unwrap_err();
        assert_eq!(error.budget, 64 * MIB);
        let share = Budget::bytes(error.needed).share(&volumes).unwrap();
        assert_eq!((share.requests as u64, share.pages), (REQUEST_BYTES_MIN, PAGE_BYTES_MIN));
        assert!(Budget::bytes(error.needed - 1).share(&volumes).is_err());
    }
}
