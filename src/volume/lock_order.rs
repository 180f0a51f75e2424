//! The order in which the engine's locks are taken: whoever holds one takes only those that come later. Debug builds
//! hold every thread to it, so that each test that takes two locks the wrong way round fails, and not one run in
//! thousands that hangs.
//!
//! These locks are held for a few instructions, never across an `.await`. The asynchronous ones (`reclaimer`, then
//! `checkpointer`, then `flusher`) are taken before all of them.

use std::ops::{Deref, DerefMut};

/// A lock of the engine, first to last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Rank {
    /// Where the log goes on.
    Tail,
    /// What waits and what is being written.
    Queue,
    /// The index.
    Map,
    /// The segment table.
    Table,
    /// What was moved.
    Moves,
}

/// A guard that knows its place in the order.
pub(super) struct Ordered<G> {
    // Before the note of it: a lock is given back first.
    guard: G,
    _held: Held,
}

impl<G> Ordered<G> {
    /// Takes a lock.
    ///
    /// # Panics
    /// In debug builds, when this thread holds it already, or one that comes later.
    pub(super) fn take(rank: Rank, lock: impl FnOnce() -> G) -> Self {
        let held = Held::note(rank);
        Self { guard: lock(), _held: held }
    }
}

impl<G: Deref> Deref for Ordered<G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for Ordered<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

#[cfg(debug_assertions)]
use checked::Held;
#[cfg(not(debug_assertions))]
use unchecked::Held;

#[cfg(debug_assertions)]
mod checked {
    use std::cell::Cell;

    use super::Rank;

    thread_local! {
        /// The ranks that this thread holds, a bit each.
        static HELD: Cell<u8> = const { Cell::new(0) };
    }

    pub(super) struct Held(Rank);

    impl Held {
        pub(super) fn note(rank: Rank) -> Self {
            let held = HELD.get();
            let later = u8::MAX << rank as u8;
            assert!(held & later == 0, "{rank:?} is taken while what comes later is held ({held:#b})");
            HELD.set(held | 1 << rank as u8);
            Self(rank)
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            HELD.set(HELD.get() & !(1 << self.0 as u8));
        }
    }
}

#[cfg(not(debug_assertions))]
mod unchecked {
    pub(super) struct Held;

    impl Held {
        pub(super) fn note(_: super::Rank) -> Self {
            Self
        }
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn locks_in_order_are_taken() {
        let (tail, table) = (Mutex::new(1), Mutex::new(2));
        let first = Ordered::take(Rank::Tail, || tail.lock().unwrap());
        let second = Ordered::take(Rank::Table, || table.lock().unwrap());
        assert_eq!(*first + *second, 3);
        drop((first, second));
        let _again = Ordered::take(Rank::Tail, || tail.lock().unwrap());
    }

    #[test]
    #[should_panic(expected = "Tail is taken while what comes later is held")]
    fn locks_against_the_order_are_refused() {
        let (tail, table) = (Mutex::new(1), Mutex::new(2));
        let _second = Ordered::take(Rank::Table, || table.lock().unwrap());
        let _first = Ordered::take(Rank::Tail, || tail.lock().unwrap());
    }

    #[test]
    #[should_panic(expected = "Map is taken")]
    fn a_lock_is_not_taken_twice() {
        let map = std::sync::RwLock::new(1);
        let _first = Ordered::take(Rank::Map, || map.read().unwrap());
        let _second = Ordered::take(Rank::Map, || map.read().unwrap());
    }
}
