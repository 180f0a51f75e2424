//! One process's way to the store.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sealbd::format::header::RING_OFFSET;
use sealbd::store::{BoxFuture, Capability, Persist, SlotStore, StoreError};

use super::{Change, Medium, Operation, State};
use crate::content::UNIT;

/// See the module.
pub(crate) struct Session {
    medium: Arc<Medium>,
    number: u32,
}

impl Session {
    pub(super) fn new(medium: Arc<Medium>, number: u32) -> Self {
        Self { medium, number }
    }

    /// Checks that the session is let through and waits as long as the store takes.
    async fn pass(&self) -> Result<(), StoreError> {
        let wait = {
            let mut state = self.medium.state();
            state.admits(self.number)?;
            let max = state.manners.latency_ms_max;
            // Most operations are quick, so that some overtake others.
            let max = if state.dice.one_in(4) { max } else { max.min(2) };
            if max == 0 { 0 } else { state.dice.below(max + 1) }
        };
        if wait == 0 {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
        Ok(())
    }

    fn arrive(&self) -> Result<std::sync::MutexGuard<'_, State>, StoreError> {
        let state = self.medium.state();
        state.admits(self.number)?;
        Ok(state)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), StoreError> {
        let now = self.medium.elapsed_ms();
        let len = buf.len() as u64;
        let end = offset.checked_add(len);
        let mut state = self.arrive()?;
        let size = state.size;
        if end.is_none_or(|end| end > size) {
            return Err(StoreError::OutOfRange { offset, len });
        }
        state.counts.reads += 1;
        if state.takes_fault(Operation::Read) {
            state.trace.note(&[1, offset, buf.len() as u64, now]);
            let (wanted, got) = (buf.len(), buf.len() / 2);
            if state.dice.one_in(2) {
                return Err(StoreError::ShortRead { offset, wanted, got });
            }
            return Err(eio("read"));
        }
        if state.wrong_reads > 0 {
            state.wrong_reads -= 1;
            state.note_trouble();
            state.read_wrongly(offset, buf, size);
        } else {
            state.now.read(offset, buf);
        }
        // Of long reads a part: what matters is where they go.
        let print = fingerprint(offset, &buf[..buf.len().min(8192)]);
        state.trace.note(&[0, offset, len, now, print]);
        Ok(())
    }

    async fn write(&self, offset: u64, parts: Vec<Bytes>, persist: Persist) -> Result<(), StoreError> {
        let bytes: Arc<[u8]> = parts.concat().into();
        let len = bytes.len() as u64;
        let capability = self.medium.capability;
        let unit = u64::from(capability.write_unit);
        assert!(len <= u64::from(capability.io_bytes_max), "callers split");
        assert!(offset.is_multiple_of(unit) && len.is_multiple_of(unit), "whole units");
        if offset + len > self.medium.state().size {
            return Err(StoreError::OutOfRange { offset, len });
        }
        let number = {
            let now = self.medium.elapsed_ms();
            let mut state = self.arrive()?;
            state.counts.writes += 1;
            state.counts.bytes_written += len;
            state.counts.fills += u64::from(bytes.iter().all(|byte| *byte == 0));
            let durable = persist == Persist::Durable;
            state.trace.note(&[2, offset, len, now, fingerprint(offset, &bytes), durable.into()]);
            // Seen when asked for, not when done: a write that fails has left the process, too.
            state.watch_write(self.number, offset, &bytes);
            let number = state.next_number;
            state.next_number += 1;
            let durable = durable && !state.manners.lies;
            let change = Change { landed: 0, offset, bytes: Some(bytes.clone()), len, durable, kept: None };
            state.in_flight.insert(number, change);
            state.count_change();
            number
        };
        self.pass().await?;
        let mut state = self.arrive()?;
        // Gone when the store was put back to an earlier state meanwhile.
        let Some(change) = state.in_flight.remove(&number) else { return Ok(()) };
        if state.takes_fault(Operation::Write) {
            if state.dice.one_in(4) {
                return Err(StoreError::NoSpace);
            }
            let fate = state.dice.below(3);
            if let Some(landed) = state.chosen(&change, fate) {
                state.land(Change { durable: false, ..landed });
            }
            return Err(eio("write"));
        }
        state.land(change);
        state.watch.landed(offset);
        Ok(())
    }

    async fn sync_now(&self) -> Result<(), StoreError> {
        let up_to = self.begin_sync()?;
        self.pass().await?;
        self.end_sync(up_to)
    }

    /// Returns what it makes durable: exactly what has landed when it begins.
    fn begin_sync(&self) -> Result<u64, StoreError> {
        let now = self.medium.elapsed_ms();
        let mut state = self.arrive()?;
        state.counts.syncs += 1;
        state.trace.note(&[3, now]);
        state.count_change();
        let up_to = state.next_number;
        state.next_number += 1;
        Ok(up_to)
    }

    fn end_sync(&self, up_to: u64) -> Result<(), StoreError> {
        let mut state = self.arrive()?;
        if state.sync_failed {
            return Err(StoreError::SyncFailed("an earlier one failed".into()));
        }
        if state.takes_fault(Operation::Sync) {
            state.sync_failed = true;
            if state.dice.one_in(2) {
                state.lose_cache();
            }
            return Err(StoreError::SyncFailed("told to".into()));
        }
        if !state.manners.lies {
            state.make_durable(up_to);
        }
        Ok(())
    }

    /// As a file does: what comes to it is a hole, durably.
    async fn extend_to(&self, size: u64) -> Result<(), StoreError> {
        {
            let mut state = self.arrive()?;
            state.trace.note(&[5, size]);
            state.count_change();
        }
        self.pass().await?;
        let mut state = self.arrive()?;
        state.size = state.size.max(size);
        Ok(())
    }

    async fn discard_now(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        {
            let mut state = self.arrive()?;
            state.trace.note(&[4, offset, len]);
            state.watch_discard(self.number, offset, len);
            state.count_change();
        }
        self.pass().await?;
        let mut state = self.arrive()?;
        if state.dice.one_in(2) {
            let change = Change { landed: 0, offset, bytes: None, len, durable: false, kept: None };
            state.land(change);
        }
        Ok(())
    }
}

impl State {
    /// Old bytes, bytes of another place, or bytes with one bit changed.
    fn read_wrongly(&mut self, offset: u64, buf: &mut [u8], size: u64) {
        match (self.dice.below(3), self.older.take()) {
            (0, Some(older)) => {
                older.read(offset, buf);
                self.older = Some(older);
            }
            (1, older) => {
                self.older = older;
                let blocks = (size - buf.len() as u64) / UNIT as u64 + 1;
                let other = self.dice.below(blocks) * UNIT as u64;
                self.now.read(other, buf);
            }
            (_, older) => {
                self.older = older;
                self.now.read(offset, buf);
                let at = usize::try_from(self.dice.below(buf.len().max(1) as u64)).expect("in memory");
                if let Some(byte) = buf.get_mut(at) {
                    *byte ^= 1 << (at % 8);
                }
            }
        }
    }

    fn watch_write(&mut self, session: u32, offset: u64, bytes: &[u8]) {
        let Self { watch, now, .. } = self;
        watch.write(session, offset, bytes, now);
    }

    fn watch_discard(&mut self, session: u32, offset: u64, len: u64) {
        self.watch.discard(session, offset, len);
    }
}

/// A fingerprint for the trace. Headers are left out: their keyslots say when they were made.
fn fingerprint(offset: u64, bytes: &[u8]) -> u64 {
    if offset < RING_OFFSET { 0 } else { crc32c::crc32c(bytes).into() }
}

fn eio(context: &'static str) -> StoreError {
    StoreError::Io { context, source: std::io::Error::from_raw_os_error(5) }
}

impl SlotStore for Session {
    fn capability(&self) -> Capability {
        Capability { size: self.medium.state().size, ..self.medium.capability }
    }

    fn describe(&self) -> String {
        format!("simulated, session {}", self.number)
    }

    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Option<Result<(), StoreError>> {
        // As a page cache, which has it or has not.
        let has = self.medium.state().dice.one_in(2);
        has.then(|| self.read(offset, buf))
    }

    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'_, Result<Vec<u8>, StoreError>> {
        Box::pin(async move {
            assert!(len as u64 <= u64::from(self.medium.capability.io_bytes_max), "callers split");
            self.pass().await?;
            let mut buf = vec![0; len];
            self.read(offset, &mut buf)?;
            Ok(buf)
        })
    }

    fn write_at(
        &self,
        offset: u64,
        parts: Vec<Bytes>,
        persist: Persist,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.write(offset, parts, persist))
    }

    fn try_sync(&self) -> Option<Result<(), StoreError>> {
        // As a disk that is short of work, or is not.
        let short = self.medium.state().dice.one_in(2);
        short.then(|| self.begin_sync().and_then(|up_to| self.end_sync(up_to)))
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.sync_now())
    }

    fn extend(&self, size: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.extend_to(size))
    }

    fn extends(&self) -> bool {
        true
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.discard_now(offset, len))
    }
}
