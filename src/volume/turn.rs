//! Turns of long reads at the processors.
//!
//! Opening a megabyte takes as long as a hundred short requests. Long reads take turns, as many at once as there are
//! threads, first come, first served: so that the first is answered while the others are being opened, not all of
//! them at the end. Between pieces they let whatever else is ready run.

use tokio::sync::{Semaphore, SemaphorePermit};

/// Reads from this length on are long.
const LONG_BYTES_MIN: u64 = 256 << 10;
/// Records that are opened in one piece: 124 KiB, which the processor's own cache still holds after they were read.
pub(super) const PIECE_RECORDS: u64 = 31;

/// As many turns at once as the runtime has threads.
pub(super) fn turns() -> Semaphore {
    Semaphore::new(tokio::runtime::Handle::current().metrics().num_workers())
}

/// The turn of one read. Short ones need none.
pub(super) struct Turn<'a> {
    turns: Option<&'a Semaphore>,
    held: Option<SemaphorePermit<'a>>,
    opened: u64,
}

impl<'a> Turn<'a> {
    pub(super) fn new(turns: &'a Semaphore, read_bytes: u64) -> Self {
        Self { turns: (read_bytes >= LONG_BYTES_MIN).then_some(turns), held: None, opened: 0 }
    }

    /// Waits until it has come.
    pub(super) async fn begin(&mut self) {
        if let (Some(turns), None) = (self.turns, &self.held) {
            self.held = turns.acquire().await.ok();
        }
    }

    /// Gives it up, to wait for the store.
    pub(super) fn end(&mut self) {
        self.held = None;
    }

    /// Notes that so many records were opened; lets others run after a piece of them.
    pub(super) async fn opened(&mut self, records: u64) {
        if self.turns.is_none() {
            return;
        }
        self.opened += records;
        if self.opened >= PIECE_RECORDS {
            self.opened = 0;
            tokio::task::yield_now().await;
        }
    }
}
