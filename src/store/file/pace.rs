//! How long a sync is likely to take.
//!
//! Handing a sync to another thread and hearing of its end takes a tenth of a millisecond or two: as much as the sync
//! itself where the disk is fast and little was written. Such a sync is done on the thread that asks for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a thread of the runtime may wait for.
const SHORT: Duration = Duration::from_millis(1);
/// Syncs of at most so many bytes are compared with each other.
const FEW_BYTES: u64 = 64 << 10;
/// Every new sync counts for one in so many.
const WEIGHT: u64 = 4;

/// What is known of one file's syncs.
pub(super) struct Pace {
    unsynced_bytes: AtomicU64,
    /// Of syncs of few bytes, in nanoseconds; the highest number before the first.
    usual: AtomicU64,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { unsynced_bytes: AtomicU64::new(0), usual: AtomicU64::new(u64::MAX) }
    }

    pub(super) fn wrote(&self, bytes: usize) {
        self.unsynced_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Whether a sync that begins now is likely to be over soon.
    pub(super) fn is_short(&self) -> bool {
        let usual = Duration::from_nanos(self.usual.load(Ordering::Relaxed));
        self.unsynced_bytes.load(Ordering::Relaxed) <= FEW_BYTES && usual <= SHORT
    }

    /// A sync begins; returns how many bytes it has to bring to the disk.
    pub(super) fn begin(&self) -> u64 {
        self.unsynced_bytes.swap(0, Ordering::Relaxed)
    }

    /// The sync of `bytes` took so long.
    pub(super) fn end(&self, bytes: u64, took: Duration) {
        if bytes > FEW_BYTES {
            return;
        }
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        // Syncs of a file take turns, so nobody writes it in between.
        let usual = match self.usual.load(Ordering::Relaxed) {
            u64::MAX => took,
            usual => usual / WEIGHT * (WEIGHT - 1) + took / WEIGHT,
        };
        self.usual.store(usual, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_micros(200);

    #[test]
    fn a_sync_of_little_is_short_once_one_was_and_until_one_is_not() {
        let pace = Pace::new();
        assert!(!pace.is_short(), "nothing is known");
        let took = |bytes, took| {
            pace.wrote(bytes);
            let bytes = pace.begin();
            pace.end(bytes, took);
            pace.is_short()
        };
        assert!(took(4096, QUICK));
        assert!(took(1 << 20, Duration::from_secs(1)), "tells nothing of those of few bytes");
        assert!(!took(4096, Duration::from_millis(50)));
        let again = (1..).find(|_| took(4096, QUICK)).unwrap();
        assert!((5..40).contains(&again), "{again}");
        assert!(!took(0, Duration::MAX));
    }

    #[test]
    fn a_sync_of_much_is_not_expected_to_be_short() {
        let pace = Pace::new();
        pace.end(pace.begin(), QUICK);
        pace.wrote(60 << 10);
        assert!(pace.is_short());
        pace.wrote(5 << 10);
        assert!(!pace.is_short());
        assert_eq!(pace.begin(), 65 << 10);
        assert!(pace.is_short());
    }
}
