//! What may be believed about durability on a server that can go away: the rule of the module
//! documentation of [`super`], as a small state machine without any I/O.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counts acknowledged writes against good flushes.
#[derive(Default)]
pub(super) struct Ledger(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    /// Writes that were answered well and were not durable by themselves.
    acked: u64,
    /// How many of them the last good flush covers.
    synced: u64,
    /// Why nothing unsynced can be promised any more; stays.
    suspect: Option<String>,
}

/// What a flush that starts now will cover.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Covers(u64);

impl Ledger {
    /// A write that is not durable by itself was answered well.
    pub(super) fn write_acked(&self) {
        self.entries().acked += 1;
    }

    /// A sync starts.
    ///
    /// # Errors
    /// The reason why its outcome could not be believed.
    pub(super) fn sync_started(&self) -> Result<Covers, String> {
        let entries = self.entries();
        entries.believable()?;
        Ok(Covers(entries.acked))
    }

    /// The flush of a sync was answered well.
    ///
    /// # Errors
    /// As [`sync_started`](Self::sync_started): a connection may have been lost in between.
    pub(super) fn sync_succeeded(&self, covers: Covers) -> Result<(), String> {
        let mut entries = self.entries();
        entries.believable()?;
        entries.synced = entries.synced.max(covers.0);
        Ok(())
    }

    /// The flush of a sync was lost together with its connection: whether it may be sent again.
    ///
    /// # Errors
    /// As [`sync_started`](Self::sync_started).
    pub(super) fn may_repeat_sync(&self) -> Result<(), String> {
        self.entries().believable()
    }

    /// The server said that it failed to make something durable. Returns the reason that counts.
    pub(super) fn sync_refused(&self, reason: &str) -> String {
        let mut entries = self.entries();
        entries.suspect.get_or_insert_with(|| reason.to_owned()).clone()
    }

    /// The server may have lost its cache, or swallowed the only report of a failure to write it
    /// back: what was answered since the last good flush is in doubt.
    pub(super) fn doubt(&self, reason: &str) {
        let mut entries = self.entries();
        if entries.acked > entries.synced {
            entries.suspect.get_or_insert_with(|| reason.to_owned());
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn believable(&self) -> Result<(), String> {
        self.suspect.clone().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_with_an_unsynced_write_fails_every_later_sync() {
        let ledger = Ledger::default();
        ledger.write_acked();
        ledger.doubt("lost");
        assert_eq!(ledger.sync_started(), Err("lost".into()));
        ledger.doubt("lost again");
        assert_eq!(ledger.sync_started(), Err("lost".into()));
    }

    #[test]
    fn a_loss_with_everything_synced_is_harmless() {
        let ledger = Ledger::default();
        ledger.write_acked();
        let covers = ledger.sync_started().unwrap();
        ledger.sync_succeeded(covers).unwrap();
        ledger.doubt("lost");
        let covers = ledger.sync_started().unwrap();
        ledger.doubt("lost under the flush");
        ledger.may_repeat_sync().unwrap();
        ledger.sync_succeeded(covers).unwrap();
    }

    #[test]
    fn a_write_answered_during_a_flush_is_not_covered_by_it() {
        let ledger = Ledger::default();
        ledger.write_acked();
        let covers = ledger.sync_started().unwrap();
        ledger.write_acked();
        ledger.sync_succeeded(covers).unwrap();
        ledger.doubt("lost");
        assert_eq!(ledger.sync_started(), Err("lost".into()));
    }

    #[test]
    fn a_flush_answered_after_a_loss_is_not_believed() {
        let ledger = Ledger::default();
        ledger.write_acked();
        let covers = ledger.sync_started().unwrap();
        ledger.doubt("another connection went away");
        assert!(ledger.may_repeat_sync().is_err());
        assert!(ledger.sync_succeeded(covers).is_err());
    }

    #[test]
    fn a_refused_flush_is_final_even_with_nothing_unsynced() {
        let ledger = Ledger::default();
        assert_eq!(ledger.sync_refused("EIO"), "EIO");
        assert!(ledger.sync_started().is_err());
    }
}
