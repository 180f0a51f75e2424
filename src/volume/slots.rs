//! The slots in no use: which are free, which are reserved for the log, and which still have room on the store.
//!
//! A slot that was used keeps its room for a while: a file system writes into blocks that are there, while giving
//! them back and taking others costs it a transaction each time.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;

/// How long a slot must have been in no use before the store is told to drop what it holds.
pub(super) const IDLE: Duration = Duration::from_secs(30);

/// Slots that no root reserves for the log: what a checkpoint of a small volume writes, twice, and the
/// segment that it began in before.
const INDEX_SLOTS: usize = 3;

/// Slots written ahead of the log: one is filled while the log is in the other.
pub(super) const FILLED_AHEAD: usize = 2;
/// Slots that the log may use beside one that is being filled.
const USABLE_BESIDE_FILLING: usize = 3;

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
    /// Slots that the store is being told to drop, or that are being filled: nobody's until that has been done. Where it
    /// was given up half-way it may still come to effect, so the slot stays here until the volume is opened again.
    withheld: Vec<Range<u64>>,
    next_search: usize,
}

struct Unused {
    slot: u64,
    room: Held,
}

/// What the store holds of an unused slot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    None,
    /// It was in use until then.
    Since(Instant),
    /// It was filled for the log.
    Filled,
}

impl Held {
    /// Whether nothing has needed it for `idle`; what was filled is needed soon.
    fn is_idle(self, idle: Duration) -> bool {
        match self {
            Self::None => false,
            Self::Since(since) => since.elapsed() >= idle,
            Self::Filled => idle.is_zero(),
        }
    }
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
            withheld: Vec::new(),
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
        if self.withheld.is_empty() {
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
        !is_in(&self.withheld, unused.slot)
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
        Some(Unused { slot: found as u64, room: Held::None })
    }

    fn mark_taken(&mut self, slot: u64) {
        self.taken[index(slot)] = true;
        self.free -= 1;
    }

    /// Makes a slot free that may have room on the store.
    pub(super) fn release(&mut self, slot: u64) {
        self.release_without_room(slot);
        self.with_room.push_back(Unused { slot, room: Held::Since(Instant::now()) });
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

    /// The slot that has had room for longest without being used, if that is for `idle` at least, and those behind it that
    /// were freed after it, `count_max` in all: for the store to drop what they hold. They are used by nobody
    /// until [`dropped`](Self::dropped).
    pub(super) fn begin_drop(&mut self, idle: Duration, count_max: u64) -> Option<Range<u64>> {
        let is_idle = |unused: &Unused| unused.room.is_idle(idle);
        let mut slots: Option<Range<u64>> = None;
        while let Some(unused) = self.with_room.front().filter(|unused| is_idle(unused)) {
            let slots = slots.get_or_insert(unused.slot..unused.slot);
            if unused.slot != slots.end || slots.end - slots.start == count_max {
                break;
            }
            slots.end += 1;
            let slot = unused.slot;
            self.with_room.pop_front();
            self.mark_taken(slot);
        }
        if slots.is_none() {
            // It stays reserved: roots that are written meanwhile name it, too.
            let withheld = &self.withheld;
            let mut reserved = self.available.iter_mut().chain(&mut self.reserving);
            let unused = reserved.find(|unused| is_idle(unused) && !is_in(withheld, unused.slot))?;
            unused.room = Held::None;
            slots = Some(unused.slot..unused.slot + 1);
        }
        self.withheld.extend(slots.clone());
        slots
    }

    /// The same of free slots from `from` on, `count_max` in all, whatever is known of them.
    pub(super) fn begin_drop_from(&mut self, from: u64, count_max: u64) -> Option<Range<u64>> {
        let free = |slot: &u64| self.taken.get(index(*slot)) == Some(&false);
        let first = (from..self.taken.len() as u64).find(free)?;
        let slots = first..(first..first + count_max).take_while(free).last()? + 1;
        slots.clone().for_each(|slot| self.mark_taken(slot));
        self.with_room.retain(|unused| !slots.contains(&unused.slot));
        self.withheld.push(slots.clone());
        Some(slots)
    }

    /// Takes all that is reserved for slots with room: an earlier session may have used them.
    pub(super) fn assume_room(&mut self) {
        let reserved = self.available.iter_mut().chain(&mut self.reserving);
        for unused in reserved.filter(|unused| unused.room == Held::None) {
            unused.room = Held::Since(Instant::now());
        }
    }

    /// Whether [`begin_fill`](Self::begin_fill) has something to give.
    pub(super) fn wants_filling(&self) -> bool {
        self.next_to_fill().is_some()
    }

    /// One of the slots that the log will take next, if it has no room: to be filled, and used by nobody until
    /// [`filled`](Self::filled).
    pub(super) fn begin_fill(&mut self) -> Option<u64> {
        let slot = self.next_to_fill()?;
        self.withheld.push(slot..slot + 1);
        Some(slot)
    }

    fn next_to_fill(&self) -> Option<u64> {
        let usable = || self.available.iter().filter(|unused| self.is_usable(unused));
        usable().nth(USABLE_BESIDE_FILLING)?;
        usable().take(FILLED_AHEAD).find(|unused| unused.room == Held::None).map(|unused| unused.slot)
    }

    /// The slot was filled.
    pub(super) fn filled(&mut self, slot: u64) {
        self.withheld.retain(|other| *other != (slot..slot + 1));
        if let Some(unused) = self.available.iter_mut().find(|unused| unused.slot == slot) {
            unused.room = Held::Filled;
        }
    }

    /// The store was told to drop what `slots` held.
    pub(super) fn dropped(&mut self, slots: &Range<u64>) {
        self.withheld.retain(|other| other != slots);
        for slot in slots.clone() {
            if !self.available.iter().chain(&self.reserving).any(|unused| unused.slot == slot) {
                self.release_without_room(slot);
            }
        }
    }
}

fn is_in(ranges: &[Range<u64>], slot: u64) -> bool {
    ranges.iter().any(|slots| slots.contains(&slot))
}

fn index(slot: u64) -> usize {
    usize::try_from(slot).expect("slots are below 2^32")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of `count` slots, used and freed again in this order.
    fn used(count: u64, freed: &[u64]) -> Slots {
        let mut slots = Slots::new(count);
        while slots.take_any().is_some() {}
        freed.iter().for_each(|slot| slots.release(*slot));
        slots
    }

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
        assert_eq!(slots.begin_drop(IDLE, 9), Some(1..2));
        assert_eq!(slots.free(), 3, "nobody's while the store drops it");
        slots.dropped(&(1..2));
        assert_eq!(slots.begin_drop(IDLE, 9), None);
        assert_eq!((slots.take(3), slots.take(3)), (Ok(()), Err(())));
        assert_eq!(slots.begin_drop(Duration::ZERO, 9), None);
        slots.grow(7);
        let rest: Vec<u64> = std::iter::from_fn(|| slots.take_any()).collect();
        assert_eq!(rest, [4, 5, 6, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn neighbours_are_dropped_together() {
        let mut slots = used(9, &[3, 4, 5, 6, 8]);
        tokio::time::advance(IDLE).await;
        let mut dropped = Vec::new();
        while let Some(slots_now) = slots.begin_drop(IDLE, 3) {
            slots.dropped(&slots_now);
            dropped.push(slots_now);
        }
        assert_eq!((dropped, slots.free()), (vec![3..6, 6..7, 8..9], 5));
        // Whatever is known of them, in order of address.
        let mut dropped = Vec::new();
        while let Some(slots_now) =
            slots.begin_drop_from(dropped.last().map_or(0, |last: &Range<u64>| last.end), 3)
        {
            slots.dropped(&slots_now);
            dropped.push(slots_now);
        }
        assert_eq!((dropped, slots.free()), (vec![3..6, 6..7, 8..9], 5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reserved_slot_is_dropped_and_stays_reserved() {
        let mut slots = used(8, &[2, 3, 4, 5, 6, 7]);
        assert_eq!(slots.reserve(2), [7, 6]);
        assert_eq!(slots.available(), 0, "not before a root names them");
        slots.use_reserving();
        tokio::time::advance(IDLE).await;
        assert_eq!(slots.begin_drop(IDLE, 9), Some(2..6), "those that are free come first");
        slots.dropped(&(2..6));
        assert_eq!(slots.begin_drop(IDLE, 9), Some(7..8));
        assert_eq!((slots.available(), slots.unused(), slots.reserve(2)), (1, 6, vec![7, 6]));
        assert_eq!(slots.take_available(), Some(6));
        assert_eq!(slots.take_available(), None, "it is being dropped");
        slots.dropped(&(7..8));
        assert_eq!(slots.begin_drop(Duration::ZERO, 9), None);
        slots.assume_room();
        assert_eq!(slots.begin_drop(Duration::ZERO, 9), Some(7..8));
        slots.dropped(&(7..8));
        assert_eq!((slots.unused(), slots.take_available()), (5, Some(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_slots_that_the_log_takes_next_are_filled_and_stay_so() {
        let mut slots = Slots::new(12);
        assert_eq!(slots.reserve(6), [0, 1, 2, 3, 4, 5]);
        assert!(!slots.wants_filling(), "not before a root names them");
        slots.use_reserving();
        assert_eq!((slots.begin_fill(), slots.available()), (Some(0), 5));
        assert_eq!(slots.take_available(), Some(1), "the other is being filled");
        slots.filled(0);
        assert_eq!(slots.begin_fill(), Some(2));
        slots.filled(2);
        assert_eq!((slots.begin_fill(), slots.available()), (None, 5), "two are enough");
        tokio::time::advance(2 * IDLE).await;
        assert_eq!(slots.begin_drop(IDLE, 9), None);
        assert_eq!((slots.take_available(), slots.begin_fill()), (Some(0), Some(3)));
        slots.filled(3);
        assert_eq!((slots.take_available(), slots.begin_fill()), (Some(2), None), "only three are left");
        assert_eq!(slots.begin_drop(Duration::ZERO, 9), Some(3..4), "who compacts wants all");
        slots.dropped(&(3..4));
        assert_eq!((slots.available(), slots.take_available()), (3, Some(3)));
    }

    /// Once `compact` brought it back into use, though what failed might still have been written there.
    #[tokio::test]
    async fn a_slot_whose_filling_was_given_up_is_not_brought_back_by_dropping_all() {
        let mut slots = Slots::new(12);
        slots.reserve(6);
        slots.use_reserving();
        assert_eq!(slots.begin_fill(), Some(0));
        slots.assume_room();
        let mut dropped = Vec::new();
        while let Some(slots_now) = slots.begin_drop(Duration::ZERO, 9) {
            slots.dropped(&slots_now);
            dropped.push(slots_now);
        }
        assert_eq!(dropped, [1..2, 2..3, 3..4, 4..5, 5..6]);
        assert_eq!((slots.available(), slots.take_available()), (5, Some(1)));
    }

    /// Once a panic of whoever dropped slots next: a simulated client was gone in the middle of compacting, its volume was not.
    #[tokio::test]
    async fn a_drop_that_was_given_up_half_way_keeps_its_slots_from_use_and_no_others() {
        let mut slots = used(6, &[0, 1, 3, 4, 5]);
        assert_eq!(slots.reserve(2), [5, 4]);
        slots.use_reserving();
        let mut begin = || slots.begin_drop(Duration::ZERO, 9);
        assert_eq!([begin(), begin(), begin()], [Some(0..2), Some(3..4), Some(5..6)]);
        let next = begin().unwrap();
        slots.dropped(&next);
        assert_eq!((slots.available(), slots.take_any(), slots.take_any()), (1, Some(4), None));
    }
}
