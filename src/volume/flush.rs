//! Making answered writes durable (docs/FORMAT.md §8.5).

use std::sync::Arc;

use super::Core;
use super::error::store_to_export;
use super::queue::Health;
use super::write::Seq;
use crate::export::{Durability, ExportError};

impl Core {
    /// Makes everything answered so far durable.
    pub(super) async fn flush(self: &Arc<Self>) -> Result<(), ExportError> {
        if self.check_writable().is_err() {
            return Ok(());
        }
        let seq = {
            let queue = self.queue();
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
            Durability::Durable => self.flush_to(seq).await,
        }
    }

    /// Makes every chunk up to `seq` durable. Concurrent calls share one store flush: whoever comes
    /// while one is under way waits for the next, which serves all of them.
    ///
    /// A failed store flush stops the volume: what it lost is unknown, so nothing more may be
    /// promised, and trying again could succeed without the lost data (docs/FORMAT.md §15).
    pub(super) async fn flush_to(self: &Arc<Self>, seq: Seq) -> Result<(), ExportError> {
        let _turn = self.flusher.lock().await;
        let reached = {
            let mut queue = self.queue();
            if queue.durable_seq >= seq {
                return Ok(());
            }
            if let Health::Stopped(error) = &queue.health {
                return Err(error.clone());
            }
            queue.unflushed_bytes = 0;
            queue.completed_seq()
        };
        let result = self.store.sync().await;
        let mut queue = self.queue();
        match result {
            Ok(()) => {
                queue.durable_seq = queue.durable_seq.max(reached);
                Ok(())
            }
            Err(error) => {
                let error = store_to_export(&error);
                queue.stop(error.clone());
                let waiting = queue.drain_waiting();
                drop(queue);
                waiting.iter().for_each(|done| done.part_done(Err(error.clone())));
                Err(error)
            }
        }
    }
}
