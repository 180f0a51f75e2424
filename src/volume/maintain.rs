//! Background work of an open volume: flushing the tail of the log, checkpoints, repair, and waiting
//! writers that need slots.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::queue::{Health, Queue};
use super::{Core, VolumeError};

/// Log bytes after which the store is flushed without being asked (docs/FORMAT.md §8.5).
const FLUSH_BYTES: u64 = 64 << 20;
/// Time after which it is.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// Entries of the delta that start a checkpoint: 32768 runs take about 2 MiB.
const DELTA_RUNS: usize = 32 << 10;
/// Entries at which writers wait for the checkpoint: bounds memory at about 16 MiB.
pub(super) const DELTA_RUNS_MAX: usize = 256 << 10;
/// Log bytes that start a checkpoint (§10).
const CHECKPOINT_BYTES: u64 = 1 << 30;
/// Log bytes that start one after [`CHECKPOINT_EVERY`] (§10).
const CHECKPOINT_BYTES_IDLE: u64 = 64 << 20;
/// See [`CHECKPOINT_BYTES_IDLE`].
const CHECKPOINT_EVERY: Duration = Duration::from_secs(60);
/// Reserved slots left that start one: the next root reserves more.
const SLOTS_LOW: usize = 8;

impl Core {
    /// Starts the background task; it ends with the volume.
    pub(super) fn start_maintenance(self: &Arc<Self>) {
        let core = Arc::downgrade(self);
        let wake = self.wake.clone();
        tokio::spawn(async move {
            let mut last_checkpoint = Instant::now();
            loop {
                let ticked = tokio::time::timeout(FLUSH_EVERY, wake.notified()).await.is_err();
                let Some(core) = Weak::upgrade(&core) else { return };
                if matches!(core.queue().health, Health::Stopped(_)) {
                    return;
                }
                if core.maintain(ticked, last_checkpoint.elapsed()).await {
                    last_checkpoint = Instant::now();
                }
            }
        });
    }

    /// One round; returns whether it wrote a root.
    async fn maintain(self: &Arc<Self>, ticked: bool, since_checkpoint: Duration) -> bool {
        let (health, stalled, unflushed, unrooted) = {
            let queue = self.queue();
            (queue.health.clone(), queue.stalled, queue.unflushed_bytes, queue.unrooted_bytes)
        };
        if matches!(health, Health::NeedsRepair(_)) {
            // The next change tries again and tells its client.
            return self.repair().await.is_ok();
        }
        if stalled {
            self.make_space().await;
            return true;
        }
        let due = self.checkpoint_is_due(unrooted)
            || since_checkpoint >= CHECKPOINT_EVERY && unrooted >= CHECKPOINT_BYTES_IDLE;
        let written = due && self.checkpoint().await.is_ok();
        if self.space_is_low() && self.reclaim().await.is_ok_and(|moved| moved > 0) {
            return self.checkpoint().await.is_ok() || written;
        }
        if written {
            return true;
        }
        if unflushed >= FLUSH_BYTES || ticked && unflushed > 0 {
            let completed = self.queue().completed_seq();
            // A failure stops the volume; every later request hears of it.
            let _ = self.flush_to(completed).await;
        }
        false
    }

    /// Whether a completed chunk calls for background work.
    pub(super) fn needs_maintenance(&self, queue: &Queue) -> bool {
        queue.unflushed_bytes >= FLUSH_BYTES || self.checkpoint_is_due(queue.unrooted_bytes)
    }

    fn checkpoint_is_due(&self, unrooted_bytes: u64) -> bool {
        let low = {
            let table = self.segments.table();
            // A root reserves half of what is in no use; before that has halved again it would not help.
            let unused = table.available_slots() + usize::try_from(table.free_slots()).unwrap_or(usize::MAX);
            table.available_slots() < SLOTS_LOW.min(unused.div_ceil(4)) && table.free_slots() > 0
        };
        unrooted_bytes >= CHECKPOINT_BYTES || low || self.map().active.len() >= DELTA_RUNS
    }

    /// Gets slots for writers that wait for them: a root frees dead segments, the next one makes them
    /// usable; then the emptiest segments are emptied. When none of that yields anything any more, the
    /// waiting writes fail for want of space.
    async fn make_space(self: &Arc<Self>) {
        // Every round that helps empties a segment; there are no more of them than slots.
        for _ in 0..self.header.slots {
            for _ in 0..2 {
                if let Err(error) = self.checkpoint().await {
                    return self.fail_waiting(&error);
                }
                if !self.queue().stalled {
                    return;
                }
            }
            match self.reclaim().await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => return self.fail_waiting(&error),
            }
        }
        self.fail_data();
    }

    fn fail_waiting(&self, error: &VolumeError) {
        let waiting = self.queue().drain_waiting();
        waiting.iter().for_each(|done| done.part_done(Err(error.to_export())));
    }

    /// There is no room: what brings data fails, what gives space back goes on.
    fn fail_data(self: &Arc<Self>) {
        let (data, leader) = {
            let mut queue = self.queue();
            let mut data = queue.drain_data();
            if self.segments.table().available_slots() == 0 {
                data.append(&mut queue.drain_waiting());
            }
            queue.stalled = false;
            (data, queue.becomes_leader())
        };
        if leader {
            self.spawn_commit();
        }
        data.iter().for_each(|done| done.part_done(Err(VolumeError::NoSpace.to_export())));
    }

    /// Lets waiting changes go on if a root brought what they wait for.
    pub(super) fn resume_stalled(self: &Arc<Self>) {
        let data_fits = self.writers_have_room();
        let fits = self.segments.table().available_slots() > 0;
        let room = self.map().active.len() < DELTA_RUNS_MAX;
        let mut queue = self.queue();
        let goes_on = if queue.brings_data() { data_fits } else { fits };
        if queue.stalled && room && goes_on {
            queue.stalled = false;
            if queue.becomes_leader() {
                self.spawn_commit();
            }
        }
    }

    /// Whether the log may take another slot for a write: the last ones are for checkpoints and for
    /// giving space back.
    pub(super) fn writers_have_room(&self) -> bool {
        let table = self.segments.table();
        table.available_slots() > 0
            && table.free_slots() + table.available_slots() as u64 > private_reserve(self.header.slots)
    }
}

/// Slots that only checkpoints, reclaim and TRIM may use (docs/FORMAT.md §11). A round of reclaim must
/// gain more than the checkpoint behind it writes into the index, so it must empty many segments at once.
pub(super) fn private_reserve(slots: u64) -> u64 {
    (slots / 50).max(24).min((slots / 4).max(8))
}
