//! Getting space back beyond what writers need: segments are emptied until, of those that are left, a chosen
//! share is live (docs/FORMAT.md §11). The moving is that of `reclaim`, the freeing that of any root.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::queue::Health;
use super::reclaim::Step;
use super::{Core, OpenMode, Volume, VolumeError};
use crate::format::segment::SegmentKind;
use crate::format::table::SegmentState;

/// Roots behind the last checkpoint: what the table of one root makes superfluous is dead to the next, and
/// free by the one after.
const LAST_ROOTS: u32 = 2;

/// How dense the segments that hold data are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Density {
    /// Bytes that are live in segments which are full.
    pub live_bytes: u64,
    /// Bytes of those segments.
    pub used_bytes: u64,
    /// Slots in no use.
    pub unused_slots: u64,
}

impl Density {
    /// Live bytes in percent of the segments; 100 when there are none.
    #[must_use]
    pub fn percent(&self) -> u64 {
        (self.live_bytes * 100).checked_div(self.used_bytes).unwrap_or(100)
    }
}

/// What [`Volume::compact`] came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Compacted {
    /// Before.
    pub before: Density,
    /// Afterwards.
    pub after: Density,
    /// Whether the share that was asked for is reached; else it was stopped, or no segment is worth emptying.
    pub reached: bool,
}

impl Volume {
    /// Empties segments, those that gain most first, until `percent` of what the others hold is live.
    /// `progress` is told after every step and may end it; run again it goes on from there. What is gained
    /// is discarded on the store.
    ///
    /// # Errors
    /// [`VolumeError::Refused`] on a volume that is open for reading, and the store's. What was moved by then
    /// counts.
    ///
    /// # Cancel safety
    /// May be dropped only together with the volume, for a checkpoint is part of it; let `progress` end it.
    pub async fn compact(
        &self,
        percent: u64,
        mut progress: impl FnMut(Density) -> ControlFlow<()> + Send,
    ) -> Result<Compacted, VolumeError> {
        let core = &self.core;
        if core.mode == OpenMode::ReadOnly {
            return Err(VolumeError::Refused("the volume is open for reading only".into()));
        }
        // What clients have written counts where it lies, and full segments leave the log.
        core.free_what_is_dead().await?;
        let before = core.density();
        let mut best = before;
        loop {
            let now = core.density();
            if now.percent() >= percent || core.empty_a_batch(&mut progress).await?.is_break() {
                break;
            }
            core.free_what_is_dead().await?;
            let then = core.density();
            // Neither denser nor smaller than ever: writers undo it as fast as it is done.
            if then.percent() <= best.percent() && then.unused_slots <= best.unused_slots {
                break;
            }
            best = then;
        }
        // What was moved in a batch that was not finished takes effect as well; until it is given up, nothing
        // that was freed since it began is free. Held to the end, for another one would begin.
        let mut reclaimer = core.reclaimer.lock().await;
        reclaimer.give_up(core).await;
        core.checkpoint().await?;
        for _ in 0..LAST_ROOTS {
            core.root_again().await?;
        }
        core.drop_unused().await;
        let after = core.density();
        drop(reclaimer);
        Ok(Compacted { before, after, reached: after.percent() >= percent })
    }
}

impl Core {
    /// Moves what is live in the segments of one batch. Breaks when it was told to, or no segment is worth it.
    async fn empty_a_batch(
        self: &Arc<Self>,
        progress: &mut (impl FnMut(Density) -> ControlFlow<()> + Send),
    ) -> Result<ControlFlow<()>, VolumeError> {
        loop {
            let step = {
                let mut reclaimer = self.reclaimer.lock().await;
                // Closed while this waited: nothing may reach the store any more.
                if let Health::Stopped(error) = &self.queue().health {
                    return Err(VolumeError::Stopped(error.to_string()));
                }
                reclaimer.step(self).await
            };
            let told = progress(self.density());
            match step {
                Ok(Step::Going) if told.is_break() => return Ok(told),
                Ok(Step::Going) => tokio::task::yield_now().await,
                // Out of slots to move to: the roots behind this bring more.
                Ok(Step::Finished) | Err(VolumeError::NoSpace) => return Ok(told),
                Ok(Step::Nothing) => return Ok(ControlFlow::Break(())),
                Err(error) => return Err(error),
            }
        }
    }

    /// Of the segments that can be emptied: not the log that a replay visits, nor what is being filled.
    fn density(&self) -> Density {
        let in_log: std::collections::HashSet<_> = self.tail().segments.iter().copied().collect();
        let segment = u64::from(self.header().segment_bytes);
        let table = self.segments.table();
        let mut density = Density { unused_slots: table.slots().unused(), ..Density::default() };
        for (handle, row) in table.rows() {
            let is_full = row.kind != SegmentKind::Index && row.state == SegmentState::Closed;
            if is_full && !in_log.contains(&handle) {
                density.live_bytes += u64::from(row.live);
                density.used_bytes += segment;
            }
        }
        density
    }
}
