//! Slots that are written before the log reaches them.
//!
//! File systems note which blocks of a file were ever written, and a sync behind the first write of a block brings that
//! note to the disk as well: it takes twice as long as one behind the second. A client that flushes after every few
//! writes feels that, so zeros go into the slots that the log will take next.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::Core;
use super::queue::{Health, Queue};
use super::slots::FILLED_AHEAD;
use crate::store::{Persist, StoreError};

/// Small flushes of clients in a row from which on it is worth while.
const SMALL_FLUSHES: u32 = 32;
/// Zeros written at once. A flush of a client waits for no more than that.
const PIECE_BYTES: u64 = 2 << 20;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

impl Core {
    /// Whether slots are to be filled for clients that flush often.
    pub(super) fn is_to_fill(&self, queue: &Queue) -> bool {
        queue.small_flushes >= SMALL_FLUSHES
            && self.fills.load(Ordering::Relaxed)
            && self.segments.table().slots().wants_filling()
    }

    /// Fills the slots that the log will take next, if clients flush often.
    ///
    /// # Cancel safety
    /// When dropped half-way a slot is not used any more before the volume is opened again.
    pub(super) async fn fill_slots(&self) {
        // Held, so that nothing is written any more once the volume is closed.
        let _turn = self.reclaimer.lock().await;
        for _ in 0..FILLED_AHEAD {
            let wanted = {
                let queue = self.queue();
                !matches!(queue.health, Health::Stopped(_)) && self.is_to_fill(&queue)
            };
            if !wanted || self.space_is_low() {
                return;
            }
            let Some(slot) = self.segments.table_mut().slots_mut().begin_fill() else { return };
            match self.fill(slot).await {
                Ok(()) => self.segments.table_mut().slots_mut().filled(slot),
                Err(error) => {
                    self.fills.store(false, Ordering::Relaxed);
                    if matches!(error, StoreError::NoSpace) {
                        // Others need what is left.
                        self.drop_slots(slot..slot + 1).await;
                    }
                    // After any other error nobody knows what may still land there.
                    return;
                }
            }
        }
    }

    async fn fill(&self, slot: u64) -> Result<(), StoreError> {
        let header = self.header();
        let (start, len) = (header.slot_offset(slot), u64::from(header.segment_bytes));
        let piece_bytes = PIECE_BYTES.min(self.store.capability().io_bytes_max.into());
        let mut at = 0;
        while at < len {
            let piece = piece_bytes.min(len - at);
            self.store.write_at(start + at, zeros(piece), Persist::Durable).await?;
            self.counters.filled_bytes.fetch_add(piece, Ordering::Relaxed);
            at += piece;
        }
        Ok(())
    }
}

/// So many zeros that take no memory.
fn zeros(len: u64) -> Vec<Bytes> {
    let mut left = usize::try_from(len).expect("a piece fits in memory");
    std::iter::from_fn(|| {
        let part = left.min(ZEROS.len());
        left -= part;
        (part > 0).then(|| Bytes::from_static(&ZEROS[..part]))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_have_the_length_asked_for() {
        for len in [0, 512, 64 << 10, (64 << 10) + 512, 2 << 20] {
            assert_eq!(zeros(len).iter().map(Bytes::len).sum::<usize>() as u64, len);
        }
    }
}
