//! Making answered writes durable (docs/FORMAT.md §8.5).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Core;
use super::error::store_to_export;
use super::queue::Health;
use super::write::Seq;
use crate::export::{Durability, ExportError};
use crate::store::StoreError;

impl Core {
    /// Makes everything answered so far durable.
    pub(super) async fn flush(self: &Arc<Self>) -> Result<(), ExportError> {
        if self.check_writable().is_err() {
            return Ok(());
        }
        let seq = {
            let mut queue = self.queue();
            queue.note_flush();
            match &queue.health {
                // What was answered before the failed chunk can still be made durable.
                Health::Good | Health::NeedsRepair(_) => queue.completed_seq(),
                Health::Stopped(error) => return Err(error.clone()),
            }
        };
        self.flush_to(seq).await
    }

    /// Brings a request that ended in chunk `seq` as far as asked.
    pub(super) async fn make(self: &Arc<Self>, durability: Durability, seq: Seq) -> Result<(), ExportError> {
        match durability {
            Durability::Accepted => Ok(()),
            // One that changed nothing is in no chunk; what was answered before it is durable all the same.
            Durability::Durable if seq == 0 => self.flush().await,
            Durability::Durable => {
                self.queue().note_flush();
                self.flush_to(seq).await
            }
        }
    }

    /// Makes every chunk up to `seq` durable. Concurrent calls share one store flush: whoever comes
    /// while one is under way waits for the next, which serves all of them.
    ///
    /// A failed store flush stops the volume: what it lost is unknown, so nothing more may be
    /// promised, and trying again could succeed without the lost data (docs/FORMAT.md §15).
    pub(super) async fn flush_to(self: &Arc<Self>, seq: Seq) -> Result<(), ExportError> {
        {
            let queue = self.queue();
            if queue.durable_seq >= seq {
                return Ok(());
            }
            if let Health::Stopped(error) = &queue.health {
                return Err(error.clone());
            }
        }
        self.sync_to(seq).await
    }

    /// [`flush_to`](Self::flush_to), also for the last root of a volume that takes no more changes.
    pub(super) async fn sync_to(&self, seq: Seq) -> Result<(), ExportError> {
        let _turn = self.flusher.lock().await;
        if self.queue().durable_seq >= seq {
            return Ok(());
        }
        let last = self.end_block().await;
        let reached = {
            let mut queue = self.queue();
            match &queue.health {
                Health::Stopped(ExportError::ShuttingDown) | Health::Good | Health::NeedsRepair(_) => {}
                Health::Stopped(error) => return Err(error.clone()),
            }
            queue.unflushed_bytes = 0;
            // What was written behind the end of the block is flushed, too, but not to stay so for certain.
            queue.completed_seq().min(last)
        };
        self.sync_store().await.map_err(|error| store_to_export(&error))?;
        let mut queue = self.queue();
        queue.durable_seq = queue.durable_seq.max(reached);
        Ok(())
    }

    /// Lets the log go on in a new physical block, and waits until everything before it is written: no byte of
    /// a block that is being flushed is written later (docs/FORMAT.md §6). Returns the last chunk before it.
    async fn end_block(&self) -> Seq {
        let last = {
            let mut tail = self.tail();
            tail.new_block = true;
            tail.next_seq - 1
        };
        loop {
            let progress = self.progress.notified();
            if self.queue().in_flight.front().is_none_or(|chunk| chunk.seq > last) {
                return last;
            }
            progress.await;
        }
    }

    /// Flushes the store; a failure stops the volume.
    pub(super) async fn sync_store(&self) -> Result<(), StoreError> {
        // Whoever reads besides does not wait for the disk.
        let alone = !self.read_lately.swap(false, Ordering::Relaxed);
        let result = match alone.then(|| self.store.try_sync()).flatten() {
            Some(result) => result,
            None => self.store.sync().await,
        };
        if let Err(error) = &result {
            self.stop(store_to_export(error));
        }
        result
    }

    /// Stops the log, and tells what waits.
    pub(super) fn stop(&self, reason: ExportError) {
        let waiting = {
            let mut queue = self.queue();
            queue.stop(reason.clone());
            queue.drain_waiting()
        };
        self.wake.notify_one();
        waiting.iter().for_each(|done| done.part_done(Err(reason.clone())));
    }
}
