//! The slots in no use: which are free, which are reserved for the log, and which still have room on the store.
//!
//! A slot that was used keeps its room for a while: a file system writes into blocks that are there, while giving
//! them back and taking others costs it a transaction each time.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// How long a slot must have been in no use before the store is told to drop what it holds.
pub(super) const IDLE: Duration = Duration::from_secs(30);

/// Slots that no root reserves for the log: what a checkpoint of a small volume writes, twice, and the
/// segment that it began in before.
const INDEX_SLOTS: usize = 3;

/// The slots of a volume, by number.
pub(super) struct Slots {
    /// Whether it is anything but free.
    taken: Vec<bool>,
    free: u64,
    /// Free slots that have room, the newest last.
    with_room: VecDeque<Unused>,
    /// Slots that the last durable root reserved and that are still unused.
    available: VecDeque<Unused>,
    /// Slots that the next root reserves in addition.
    reserving: VecDeque<Unused>,
    /// Slots that the store is being told to drop: nobody's until it has been. Where that was given up half-way
    /// it may still come to effect, so the slot stays here until the volume is opened again.
    dropping: Vec<u64>,
    next_search: usize,
}

struct Unused {
    slot: u64,
    /// Since when it has been in no use, if it has room.
    room: Option<Instant>,
}

impl Slots {
    /// `count` slots, all free, without room.
    pub(super) fn new(count: u64) -> Self {
        Self {
            taken: vec![false; usize::try_from(count).expect("slot counts are below 2^32")],
            free: count,
            with_room: VecDeque::new(),
            available: VecDeque::new(),
            reserving: VecDeque::new(),
            dropping: Vec::new(),
            next_search: 0,
        }
    }

    /// Makes it `count` slots, if there are fewer.
    pub(super) fn grow(&mut self, count: u64) {
        let count = usize::try_from(count).expect("slot counts are below 2^32");
        let more = count.saturating_sub(self.taken.len());
        self.taken.resize(self.taken.len() + more, false);
        self.free += more as u64;
    }

    /// Number of slots that are neither taken nor reserved.
    pub(super) fn free(&self) -> u64 {
        self.free
    }

    /// Number of slots that hold no segment and wait for nothing.
    pub(super) fn unused(&self) -> u64 {
        self.free + (self.available.len() + self.reserving.len()) as u64
    }

    /// Number of slots that the log may use right now.
    pub(super) fn available(&self) -> usize {
        if self.dropping.is_empty() {
            return self.available.len();
        }
        self.available.iter().filter(|unused| self.is_usable(unused)).count()
    }

    /// Takes a certain slot.
    ///
    /// # Errors
    /// When it is not free.
    pub(super) fn take(&mut self, slot: u64) -> Result<(), ()> {
        if self.taken[index(slot)] {
            return Err(());
        }
        self.mark_taken(slot);
        self.with_room.retain(|unused| unused.slot != slot);
        Ok(())
    }

    /// Takes a slot that the last durable root reserved.
    pub(super) fn take_available(&mut self) -> Option<u64> {
        let at = self.available.iter().position(|unused| self.is_usable(unused))?;
        self.available.remove(at).map(|unused| unused.slot)
    }

    /// Takes any unused slot, the reserved ones last: those are the log's.
    pub(super) fn take_any(&mut self) -> Option<u64> {
        if let Some(unused) = self.take_free() {
            return Some(unused.slot);
        }
        self.take_available().or_else(|| {
            let at = self.reserving.iter().rposition(|unused| self.is_usable(unused))?;
            self.reserving.remove(at).map(|unused| unused.slot)
        })
    }

    fn is_usable(&self, unused: &Unused) -> bool {
        !self.dropping.contains(&unused.slot)
    }

    /// One that has room, if there is one, and of these the one that was used last.
    fn take_free(&mut self) -> Option<Unused> {
        if let Some(unused) = self.with_room.pop_back() {
            self.mark_taken(unused.slot);
            return Some(unused);
        }
        if self.free == 0 {
            return None;
        }
        let count = self.taken.len();
        let found = (0..count).map(|i| (self.next_search + i) % count).find(|slot| !self.taken[*slot])?;
        self.next_search = found + 1;
        self.mark_taken(found as u64);
        Some(Unused { slot: found as u64, room: None })
    }

    fn mark_taken(&mut self, slot: u64) {
        self.taken[index(slot)] = true;
        self.free -= 1;
    }

    /// Makes a slot free that may have room on the store.
    pub(super) fn release(&mut self, slot: u64) {
        self.release_without_room(slot);
        self.with_room.push_back(Unused { slot, room: Some(Instant::now()) });
    }

    fn release_without_room(&mut self, slot: u64) {
        self.taken[index(slot)] = false;
        self.free += 1;
    }

    /// Picks up to `target` slots in all that the next root will reserve, leaving some for the index.
    pub(super) fn reserve(&mut self, target: usize) -> Vec<u64> {
        let unused = usize::try_from(self.unused()).unwrap_or(usize::MAX);
        let target = target.min(unused.saturating_sub(INDEX_SLOTS).max(unused.div_ceil(2)));
        while self.available.len() + self.reserving.len() < target {
            match self.take_free() {
                Some(unused) => self.reserving.push_back(unused),
                None => break,
            }
        }
        self.available.iter().chain(&self.reserving).map(|unused| unused.slot).collect()
    }

    /// What [`reserve`](Self::reserve) picked may be used.
    pub(super) fn use_reserving(&mut self) {
        self.available.append(&mut self.reserving);
    }

    /// The slot that has had room for longest without being used, if that is for `idle` at least, for the store to drop
    /// what it holds. It is used by nobody until [`dropped`](Self::dropped).
    pub(super) fn begin_drop(&mut self, idle: Duration) -> Option<u64> {
        let is_idle = |unused: &Unused| unused.room.is_some_and(|since| since.elapsed() >= idle);
        let slot = match self.with_room.pop_front_if(|unused| is_idle(unused)) {
            Some(unused) => {
                self.mark_taken(unused.slot);
                unused.slot
            }
            None => {
                // It stays reserved: roots that are written meanwhile name it, too.
                let mut reserved = self.available.iter_mut().chain(&mut self.reserving);
                let unused = reserved.find(|unused| is_idle(unused))?;
                unused.room = None;
                unused.slot
            }
        };
        self.dropping.push(slot);
        Some(slot)
    }

    /// The store was told to drop what `slot` held.
    pub(super) fn dropped(&mut self, slot: u64) {
        self.dropping.retain(|other| *other != slot);
        if !self.available.iter().chain(&self.reserving).any(|unused| unused.slot == slot) {
            self.release_without_room(slot);
        }
    }
}

fn index(slot: u64) -> usize {
    usize::try_from(slot).expect("slots are below 2^32")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn freed_slots_are_used_first_and_dropped_when_idle() {
        let mut slots = Slots::new(6);
        assert_eq!((0..4).map(|_| slots.take_any().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
        for slot in [1, 3] {
            slots.release(slot);
            tokio::time::advance(Duration::from_secs(20)).await;
        }
        assert_eq!((slots.free(), slots.take_any()), (4, Some(3)), "the one that was freed last");
        slots.release(3);
        assert_eq!(slots.begin_drop(IDLE), Some(1));
        assert_eq!(slots.free(), 3, "nobody's while the store drops it");
        slots.dropped(1);
        assert_eq!(slots.begin_drop(IDLE), None);
        assert_eq!((slots.take(3), slots.take(3)), (Ok(()), Err(())));
        assert_eq!(slots.begin_drop(Duration::ZERO), None);
        slots.grow(7);
        let rest: Vec<u64> = std::iter::from_fn(|| slots.take_any()).collect();
        assert_eq!(rest, [4, 5, 6, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reserved_slot_is_dropped_and_stays_reserved() {
        let mut slots = Slots::new(8);
        while slots.take_any().is_some() {}
        (2..8).for_each(|slot| slots.release(slot));
        assert_eq!(slots.reserve(2), [7, 6]);
        assert_eq!(slots.available(), 0, "not before a root names them");
        slots.use_reserving();
        tokio::time::advance(IDLE).await;
        let idle: Vec<u64> = (0..4)
            .map(|_| {
                let slot = slots.begin_drop(IDLE).unwrap();
                slots.dropped(slot);
                slot
            })
            .collect();
        assert_eq!(idle, [2, 3, 4, 5], "those that are free come first");
        assert_eq!(slots.begin_drop(IDLE), Some(7));
        assert_eq!((slots.available(), slots.unused(), slots.reserve(2)), (1, 6, vec![7, 6]));
        assert_eq!(slots.take_available(), Some(6));
        assert_eq!(slots.take_available(), None, "it is being dropped");
        slots.dropped(7);
        assert_eq!((slots.unused(), slots.take_available()), (5, Some(7)));
        assert_eq!(slots.begin_drop(Duration::ZERO), None);
    }

    /// A command to compact that went away in the middle of it once kept every later one from giving anything back.
    #[tokio::test]
    async fn a_drop_that_was_given_up_half_way_keeps_its_slot_from_use_and_no_other() {
        let mut slots = Slots::new(4);
        while slots.take_any().is_some() {}
        (0..4).for_each(|slot| slots.release(slot));
        assert_eq!(slots.reserve(2), [3, 2]);
        slots.use_reserving();
        let given_up = [
            slots.begin_drop(Duration::ZERO),
            slots.begin_drop(Duration::ZERO),
            slots.begin_drop(Duration::ZERO),
        ];
        assert_eq!(given_up, [Some(0), Some(1), Some(3)]);
        let next = slots.begin_drop(Duration::ZERO).unwrap();
        slots.dropped(next);
        assert_eq!((slots.available(), slots.take_any(), slots.take_any()), (1, Some(2), None));
    }
}
