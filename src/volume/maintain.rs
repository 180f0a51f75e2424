//! Background work of an open volume: flushing the tail of the log, checkpoints, repair, making room, and
//! the writers that wait for it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::queue::{Health, Queue};
use super::reclaim::Step;
use super::slots::IDLE;
use super::{Core, VolumeError};

/// Log bytes after which the store is flushed without being asked (docs/FORMAT.md §8.5).
const FLUSH_BYTES: u64 = 64 << 20;
/// The same while sectors are moved.
const FLUSH_BYTES_MOVING: u64 = 4 << 20;
/// Time after which it is.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// Entries of the delta that start a checkpoint: 65536 runs take about 3 MiB.
pub(super) const DELTA_RUNS: usize = 64 << 10;
/// Entries at which writers wait for the checkpoint: bounds memory at about 12 MiB.
pub(super) const DELTA_RUNS_MAX: usize = 256 << 10;
/// Log bytes that start a checkpoint (§10), those that were replayed included: what is written while it is made comes on
/// top, and all of it is read again after a crash, at one to three gigabytes a second.
const CHECKPOINT_BYTES: u64 = 512 << 20;
/// Log bytes that start one after [`CHECKPOINT_EVERY`] (§10).
const CHECKPOINT_BYTES_IDLE: u64 = 64 << 20;
/// See [`CHECKPOINT_BYTES_IDLE`].
const CHECKPOINT_EVERY: Duration = Duration::from_secs(60);
/// Reserved slots left that start one: the next root reserves more.
const SLOTS_LOW: usize = 8;
/// Batches of moves in a row that may fail to make room before that is given up, and writers that wait for
/// it are told that there is none.
const FRUITLESS_MAX: u32 = 8;

/// Times that roots alone are tried for writers that wait. What one root makes superfluous, such as the table
/// of the root before, is dead to the next, free to the one after, and reserved for the log by one more.
const ROOTS_MAX: u32 = 3;

/// What the background task remembers from round to round.
struct Rounds {
    last_checkpoint: Instant,
    /// The last chunk of the log when a batch of moves last ended, the most slots in no use since that chunk,
    /// and the batches since that brought no more.
    written: u64,
    best: u64,
    fruitless: u32,
    /// How often roots alone were tried since writers began to wait.
    rooted: u32,
    /// Number of the first change that came in after the first of these roots was begun.
    judged_before: u64,
    /// The root at which no segment was worth emptying; before the next one it is not looked again.
    nothing_at: Option<u64>,
}

impl Rounds {
    fn new(last_checkpoint: Instant) -> Self {
        Self {
            last_checkpoint,
            written: 0,
            best: 0,
            fruitless: 0,
            rooted: 0,
            judged_before: 0,
            nothing_at: None,
        }
    }
}

/// Whether there is more to do at once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Again,
    Wait,
}

impl Core {
    /// Starts the background task; it ends with the volume.
    pub(super) fn start_maintenance(self: &Arc<Self>) {
        let core = Arc::downgrade(self);
        let wake = self.wake.clone();
        tokio::spawn(async move {
            let mut rounds = Rounds::new(Instant::now());
            let mut next = Next::Wait;
            loop {
                let ticked =
                    next == Next::Wait && tokio::time::timeout(FLUSH_EVERY, wake.notified()).await.is_err();
                let Some(core) = Weak::upgrade(&core) else { return };
                if matches!(core.queue().health, Health::Stopped(_)) {
                    return;
                }
                next = core.maintain(ticked, &mut rounds).await;
                if next == Next::Again {
                    // Clients go first: on one thread they would not get a turn otherwise.
                    tokio::task::yield_now().await;
                }
            }
        });
    }

    /// One round.
    async fn maintain(self: &Arc<Self>, ticked: bool, rounds: &mut Rounds) -> Next {
        let (health, unflushed, unfolded) = {
            let queue = self.queue();
            (queue.health.clone(), queue.unflushed_bytes, queue.unfolded_bytes())
        };
        if matches!(health, Health::NeedsRepair(_)) {
            // The next change tries again and tells its client.
            let _repaired = self.repair().await;
            return Next::Wait;
        }
        let due = self.checkpoint_is_due(unfolded)
            || rounds.last_checkpoint.elapsed() >= CHECKPOINT_EVERY && unfolded >= CHECKPOINT_BYTES_IDLE;
        if due && self.fold().await.is_ok() {
            rounds.last_checkpoint = Instant::now();
        } else if unflushed >= FLUSH_BYTES || ticked && unflushed > 0 {
            let completed = self.queue().completed_seq();
            // A failure stops the volume; every later request hears of it.
            let _flushed = self.flush_to(completed).await;
        }
        let next = self.gain_room(rounds).await;
        if next == Next::Wait {
            self.drop_idle_slots().await;
        }
        self.fill_slots().await;
        next
    }

    /// Begins a flush while sectors are moved, and does not wait for it: the roots behind the batch flush everything, and
    /// writers wait for those. What is on the store by then does not take their time.
    pub(super) fn flush_ahead(self: &Arc<Self>) {
        let seq = {
            let queue = self.queue();
            if queue.unflushed_bytes < FLUSH_BYTES_MOVING {
                return;
            }
            queue.completed_seq()
        };
        if self.flusher.try_lock().is_ok() {
            let core = self.clone();
            tokio::spawn(async move {
                // A failure stops the volume; every later request hears of it.
                let _flushed = core.flush_to(seq).await;
            });
        }
    }

    async fn drop_idle_slots(&self) {
        // Held, so that nothing is dropped any more once the volume is closed.
        let _turn = self.reclaimer.lock().await;
        if !matches!(self.queue().health, Health::Stopped(_)) && !self.space_is_low() {
            self.drop_idle(IDLE).await;
        }
    }

    /// Whether a completed chunk calls for background work.
    pub(super) fn needs_maintenance(&self, queue: &Queue) -> bool {
        queue.unflushed_bytes >= FLUSH_BYTES
            || self.checkpoint_is_due(queue.unfolded_bytes())
            || self.space_is_low()
            || self.is_to_fill(queue)
    }

    fn checkpoint_is_due(&self, unfolded_bytes: u64) -> bool {
        let low = {
            let table = self.segments.table();
            // A root reserves half of what is in no use; before that has halved again it would not help.
            let unused =
                table.slots().available() + usize::try_from(table.slots().free()).unwrap_or(usize::MAX);
            table.slots().available() < SLOTS_LOW.min(unused.div_ceil(4)) && table.slots().free() > 0
        };
        unfolded_bytes >= CHECKPOINT_BYTES || low || self.map().active.len() >= DELTA_RUNS
    }

    /// Makes room where it is low or writers wait for it: one chunk of moves, or the roots that free what
    /// was emptied.
    async fn gain_room(self: &Arc<Self>, rounds: &mut Rounds) -> Next {
        let mut reclaimer = self.reclaimer.lock().await;
        if matches!(self.queue().health, Health::Stopped(_)) {
            // Closed while this waited: nothing may reach the store any more.
            return Next::Wait;
        }
        {
            let mut table = self.segments.table_mut();
            let unused = table.take_unread();
            table.release(&unused);
        }
        // Room may have come between a writer's look at it and its wait.
        self.resume_stalled();
        let stalled = self.queue().stalled;
        if !stalled {
            rounds.rooted = 0;
        }
        let root = self.generation.load(Ordering::Relaxed);
        let needless = !self.space_is_low() || rounds.nothing_at == Some(root);
        if !stalled && !reclaimer.is_going() && needless {
            return Next::Wait;
        }
        // Moves whose checkpoint failed are among the readers, and end with the next one.
        let waits = self.segments.table().waits_for_readers() && self.moves().guards.is_empty();
        if waits && !reclaimer.is_going() && !self.has_room_for_moves() {
            // What is emptied comes back when they end; until then moves and roots only take from the reserve.
            drop(reclaimer);
            self.readers_end().await;
            return Next::Again;
        }
        if stalled && rounds.rooted == 0 && !reclaimer.is_going() {
            // What is dead already needs no moving.
            rounds.rooted += 1;
            rounds.judged_before = self.queue().next_number;
            return self.roots(stalled).await;
        }
        let step = reclaimer.step(self).await;
        drop(reclaimer);
        match step {
            Ok(Step::Going) => {
                self.resume_stalled();
                self.flush_ahead();
                Next::Again
            }
            Ok(Step::Finished) | Err(VolumeError::NoSpace) => {
                let next = self.roots(stalled).await;
                let unused = self.segments.table().slots().unused();
                let written = self.queue().completed_seq();
                let gained = unused > rounds.best || written != rounds.written;
                rounds.fruitless = if gained { 0 } else { rounds.fruitless + 1 };
                // What writers took in the meantime was a gain, too.
                rounds.best = if written == rounds.written { rounds.best.max(unused) } else { unused };
                rounds.written = written;
                if rounds.fruitless <= FRUITLESS_MAX {
                    return next;
                }
                if stalled {
                    self.no_room(rounds).await;
                    return next;
                }
                // Nobody waits for it: looked again when something has changed.
                rounds.nothing_at = Some(self.generation.load(Ordering::Relaxed));
                Next::Wait
            }
            Ok(Step::Nothing) if stalled && rounds.rooted < ROOTS_MAX => {
                rounds.rooted += 1;
                self.roots(stalled).await
            }
            Ok(Step::Nothing) if stalled => {
                self.no_room(rounds).await;
                Next::Again
            }
            Ok(Step::Nothing) => {
                rounds.nothing_at = Some(root);
                Next::Wait
            }
            Err(error) if stalled => {
                self.fail_waiting(&error);
                Next::Wait
            }
            // Told to nobody yet: room is made again when it is needed more.
            Err(_) => Next::Wait,
        }
    }

    /// A checkpoint that has come due. Where space is low, what it made superfluous becomes usable at once: moves
    /// count on no more than one checkpoint's pages being on the store twice.
    async fn fold(self: &Arc<Self>) -> Result<(), VolumeError> {
        let frees = self.space_is_low() && !self.segments.table().waits_for_readers();
        if frees { self.free_what_is_dead().await } else { self.checkpoint().await }
    }

    /// Two roots: the first one frees what is dead, the second one makes it usable.
    ///
    /// # Errors
    /// As [`Self::checkpoint`].
    pub(super) async fn free_what_is_dead(self: &Arc<Self>) -> Result<(), VolumeError> {
        self.checkpoint().await?;
        self.root_again().await
    }

    /// The same for writers that wait.
    async fn roots(self: &Arc<Self>, stalled: bool) -> Next {
        let result = self.free_what_is_dead().await;
        self.resume_stalled();
        match result {
            Ok(()) => Next::Again,
            Err(error) => {
                if stalled {
                    self.fail_waiting(&error);
                }
                Next::Wait
            }
        }
    }

    /// Nothing more can be emptied: waits for readers, if that is what room depends on, else tells the
    /// writers that wait.
    async fn no_room(self: &Arc<Self>, rounds: &mut Rounds) {
        if self.segments.table().waits_for_readers() {
            self.readers_end().await;
            return;
        }
        rounds.rooted = 0;
        if self.queue().stalled {
            self.fail_data(rounds.judged_before);
        }
    }

    /// Waits until some reader has ended, or it is time to look at other things. Readers do end: one holds nothing
    /// while it waits for its client.
    async fn readers_end(&self) {
        let ended = self.segments.table().readers_ended();
        let _late = tokio::time::timeout(FLUSH_EVERY, ended.notified()).await;
    }

    fn fail_waiting(&self, error: &VolumeError) {
        let waiting = self.queue().drain_waiting();
        waiting.iter().for_each(|done| done.part_done(Err(error.to_export())));
    }

    /// There is no room: what brings data fails, what gives space back goes on. So does what came in after `before`: a
    /// change that was answered meanwhile may have made room for it.
    fn fail_data(self: &Arc<Self>, before: u64) {
        let (data, commits) = {
            let mut queue = self.queue();
            let has_slots = self.segments.table().slots().available() > 0;
            let data = queue.drain_before(before, |part| part.brings_data() || !has_slots);
            queue.stalled = false;
            (data, queue.becomes_committer())
        };
        if commits {
            self.spawn_commit();
        }
        data.iter().for_each(|done| done.part_done(Err(VolumeError::NoSpace.to_export())));
    }

    /// Lets waiting changes go on if what they wait for is there.
    pub(super) fn resume_stalled(self: &Arc<Self>) {
        let data_fits = self.writers_have_room();
        // Two statements: the tail's lock comes before the table's, so the table's must be free by then.
        let has_slots = self.segments.table().slots().available() > 0;
        let fits = has_slots || self.segment_has_room(&self.tail());
        let room = self.map().active.len() < DELTA_RUNS_MAX;
        let mut queue = self.queue();
        if queue.stalled && room && fits && (data_fits || queue.goes_without_room()) {
            queue.stalled = false;
            if queue.becomes_committer() {
                self.spawn_commit();
            }
        }
    }
}

#[cfg(test)]
mod tests;
