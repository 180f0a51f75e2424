//! Power cuts where most is going on at once: several clients write and trim a volume with hardly any room, while
//! sectors are moved, checkpoints made, and the volume is grown and shrunk again. A first run tells what each change of the
//! store was a part of; the cuts are then aimed, and counted by what they hit.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use sealbd::export::Durability;
use sealbd::payload::Payload;
use sealbd::store::{BoxFuture, Capability, Persist, SlotStore, StoreError};

use super::concurrent::{Record, Written, block, judge_concurrent};
use super::targets::{Target, Targets};
use super::*;

/// What clients change; the volume is grown to [`LARGE`] and back.
const EXPORT: u64 = 4 << 20;
const LARGE: u64 = 6 << 20;
const SEGMENT: u64 = 2 << 20;
const WRITERS: u64 = 6;
/// Requests of a writer in a run.
const REQUESTS: u64 = 60;
/// Cuts aimed at each of [`Place`].
const CUTS: u64 = 8;

/// Where a cut falls.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Place {
    /// A write of moved sectors.
    Reclaim,
    /// A write of pages, or the flush before the ring block.
    Checkpoint,
    /// The ring block itself.
    Root,
    /// A copy of the header, or the root that follows it.
    Resize,
    /// A write of the log when so few slots were free that segments are emptied, and writers held to the pace of that.
    LowSpace,
}

const PLACES: [Place; 5] = [Place::Reclaim, Place::Checkpoint, Place::Root, Place::Resize, Place::LowSpace];

/// A change of the store, as it was asked for.
#[derive(Clone, Copy)]
struct Seen {
    /// `None`: a flush or a discard.
    target: Option<Target>,
    is_sync: bool,
    /// Requests of clients without an answer.
    in_flight: usize,
    is_resizing: bool,
    is_low: bool,
}

/// A memory store under eyes.
struct Watched {
    inner: Arc<MemoryStore>,
    targets: Mutex<Targets>,
    seen: Mutex<Vec<Seen>>,
    volume: Mutex<Option<Volume>>,
    in_flight: AtomicUsize,
    resizing: AtomicUsize,
}

impl Watched {
    fn new(inner: Arc<MemoryStore>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            targets: Mutex::new(Targets::new(SEGMENT)),
            seen: Mutex::default(),
            volume: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            resizing: AtomicUsize::new(0),
        })
    }

    /// Notes a change just before it happens; changes of a store that is frozen are none.
    fn note(&self, target: Option<Target>, is_sync: bool) {
        if self.inner.is_frozen() {
            return;
        }
        let is_low = self.volume.lock().unwrap().as_ref().is_some_and(|volume| {
            let space = volume.status().space;
            space.free_slots < space.reclaim_below_slots
        });
        self.seen.lock().unwrap().push(Seen {
            target,
            is_sync,
            in_flight: self.in_flight.load(Ordering::Relaxed),
            is_resizing: self.resizing.load(Ordering::Relaxed) > 0,
            is_low,
        });
    }
}

impl SlotStore for Watched {
    fn capability(&self) -> Capability {
        self.inner.capability()
    }

    fn describe(&self) -> String {
        "watched".into()
    }

    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Option<Result<(), StoreError>> {
        self.inner.try_read_at(offset, buf)
    }

    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'_, Result<Vec<u8>, StoreError>> {
        self.inner.read_at(offset, len)
    }

    fn write_at(
        &self,
        offset: u64,
        parts: Vec<Bytes>,
        persist: Persist,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            // Others get their turn, so that several are under way when the power goes.
            tokio::task::yield_now().await;
            let target = self.targets.lock().unwrap().of(offset, &parts.concat());
            self.note(Some(target), false);
            self.inner.write_at(offset, parts, persist).await
        })
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.note(None, true);
            self.inner.sync().await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.note(None, false);
            self.targets.lock().unwrap().dropped(offset);
            self.inner.discard(offset, len).await
        })
    }
}

/// What a change was a part of. A flush belongs to the checkpoint whose pages came before it.
fn places(seen: &[Seen], at: usize) -> Vec<Place> {
    let change = seen[at];
    let before = seen[..at].iter().rev().find_map(|earlier| earlier.target);
    let mut places = Vec::new();
    match change.target {
        Some(Target::Moved) => places.push(Place::Reclaim),
        Some(Target::Index) => places.push(Place::Checkpoint),
        Some(Target::Ring) => places.push(Place::Root),
        Some(Target::Header) => places.push(Place::Resize),
        Some(Target::Log) if change.is_low => places.push(Place::LowSpace),
        None if change.is_sync && before == Some(Target::Index) => places.push(Place::Checkpoint),
        Some(Target::Log) | None => {}
    }
    if change.is_resizing && change.target == Some(Target::Ring) {
        places.push(Place::Resize);
    }
    places
}

/// A volume that is full and has been written to at random, and what it holds.
fn used_up() -> (Arc<MemoryStore>, Vec<u8>) {
    let small = Geometry::for_export(EXPORT).unwrap();
    let large = Geometry::for_export(LARGE).unwrap();
    let store = Arc::new(MemoryStore::new(large.store_bytes()));
    let content = run(async {
        volumes::format(store.clone(), small).await.unwrap();
        let volume = volumes::open(store.clone(), OpenMode::ReadWrite).await.unwrap();
        let mut dice = Dice::new(11);
        for fill in 0..EXPORT / SECTOR {
            history::apply(&volume, EXPORT, &write(fill * SECTOR, SECTOR, fill)).await.unwrap();
        }
        for fill in 0..1500 {
            let offset = dice.below(EXPORT / SECTOR) * SECTOR;
            history::apply(&volume, EXPORT, &write(offset, SECTOR, (1 << 32) | fill)).await.unwrap();
        }
        volume.close().await.unwrap();
        let volume = volumes::open(store.clone(), OpenMode::ReadOnly).await.unwrap();
        volumes::read_all(&volume).await
    });
    (Arc::new(store.snapshot()), content)
}

/// Clients and a resize at work until they are done or the power is gone.
async fn work(store: &Arc<Watched>, seed: u64) -> Vec<Record> {
    let Ok(volume) = volumes::open(store.clone(), OpenMode::ReadWrite).await else { return Vec::new() };
    *store.volume.lock().unwrap() = Some(volume.clone());
    let clock = Arc::new(AtomicU64::new(1));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(client(store.clone(), volume.clone(), writer, seed, clock.clone())))
        .collect();
    let resizer = tokio::spawn(resize_and_back(store.clone(), volume.clone(), clock));
    let mut records = Vec::new();
    for writer in writers {
        records.push(writer.await.unwrap());
    }
    resizer.await.unwrap();
    // Nothing of this session reaches the store behind the judge's back.
    *store.volume.lock().unwrap() = None;
    let _ = volume.close().await;
    records
}

async fn client(
    store: Arc<Watched>,
    volume: Volume,
    writer: u64,
    seed: u64,
    clock: Arc<AtomicU64>,
) -> Record {
    let tick = || clock.fetch_add(1, Ordering::SeqCst);
    let mut dice = Dice::new(seed ^ (writer << 8));
    let mut record = Record::default();
    for round in 0..REQUESTS {
        let issued = tick();
        store.in_flight.fetch_add(1, Ordering::Relaxed);
        let durable = dice.below(8) == 0;
        let is_flush = dice.below(12) == 0;
        let answer = if is_flush {
            volume.flush().await
        } else {
            let unit = if dice.below(4) == 0 { 1 } else { 8 };
            let first = dice.below(EXPORT / 512 / unit) * unit;
            let count = ((1 + dice.below(6)) * unit).min(EXPORT / 512 - first);
            let id = (writer << 32) | round | (1 << 63);
            let data: Vec<u8> = (0..count).flat_map(|_| block(id)).collect();
            let range = ByteRange::within(first * 512, count * 512, EXPORT).unwrap();
            let durability = if durable { Durability::Durable } else { Durability::Accepted };
            let answer = volume.write(Payload::copy_of(range, &data), durability).await;
            let acked = answer.is_ok().then(tick);
            record.writes.push(Written { id, first, count, issued, acked, durable });
            answer
        };
        store.in_flight.fetch_sub(1, Ordering::Relaxed);
        if answer.is_err() {
            break;
        }
        if is_flush || durable {
            record.flushed = issued;
        }
    }
    record
}

/// Another size in the middle of it, and the old one again.
async fn resize_and_back(store: Arc<Watched>, volume: Volume, clock: Arc<AtomicU64>) {
    for (size, from) in [(LARGE, 30), (EXPORT, 200)] {
        while clock.load(Ordering::SeqCst) < from {
            if store.inner.is_frozen() {
                return;
            }
            tokio::task::yield_now().await;
        }
        store.resizing.fetch_add(1, Ordering::Relaxed);
        let resized = volume.resize(Geometry::resized(&volume.header(), size, None).unwrap()).await;
        store.resizing.fetch_sub(1, Ordering::Relaxed);
        if resized.is_err() {
            assert!(store.inner.is_frozen(), "{:?}", resized.err());
            return;
        }
    }
}

#[test]
fn cuts_that_hit_reclaim_checkpoints_roots_resizes_and_low_space_leave_a_prefix() {
    let (base, content) = used_up();
    let mut hits: BTreeMap<Place, u64> = BTreeMap::new();
    let (mut busy, mut cuts) = (0, 0);
    for round in 0..CUTS {
        // The same seed makes the same changes; what the first run saw is where the others are cut.
        let rehearsal = Watched::new(Arc::new(base.snapshot()));
        run(work(&rehearsal, round));
        let seen = rehearsal.seen.lock().unwrap().clone();
        let mut dice = Dice::new(round);
        for place in PLACES {
            let there: Vec<usize> =
                (0..seen.len()).filter(|at| places(&seen, *at).contains(&place)).collect();
            assert!(!there.is_empty(), "round {round}: {place:?} never happens in {} changes", seen.len());
            let cut = there[usize::try_from(dice.below(there.len() as u64)).unwrap()];
            let store = Watched::new(Arc::new(base.snapshot()));
            store.inner.freeze_at(cut as u64);
            let records = run(work(&store, round));
            cuts += 1;
            let seen = store.seen.lock().unwrap().clone();
            assert_eq!(seen.len(), cut + 1, "the power was cut");
            for hit in places(&seen, cut) {
                *hits.entry(hit).or_default() += 1;
            }
            busy += u64::from(seen[cut].in_flight >= 2);
            judge_busy(
                &store.inner,
                &content,
                &records,
                round ^ cut as u64,
                &format!("round {round}, {place:?}, cut at {cut}"),
            );
        }
    }
    eprintln!("{cuts} cuts, {busy} with two requests or more in flight; hits: {hits:?}");
    for place in PLACES {
        assert!(hits.get(&place) >= Some(&(CUTS / 2)), "{place:?} was missed: {hits:?}");
    }
    assert!(busy >= cuts / 2, "{busy} of {cuts} with several requests in flight");
}

/// Of what a cut left, and of what the death of the process left, everything holds.
fn judge_busy(store: &Arc<MemoryStore>, content: &[u8], records: &[Record], seed: u64, when: &str) {
    let images = Left::cases(seed, 1).into_iter().skip(1).map(|how| (how.of(store), Survived::PowerCut));
    let dead = (Arc::new(store.snapshot()), Survived::ProcessDeath);
    for (left, survived) in images.chain([dead]) {
        run(async {
            let volume = volumes::open(left, OpenMode::ReadWrite).await;
            let volume = volume.unwrap_or_else(|error| panic!("{when}, {survived:?}: {error}"));
            let range = ByteRange::within(0, EXPORT, EXPORT).unwrap();
            let found = volumes::read(&volume, range).await;
            judge_concurrent(&found, content, records, survived)
                .unwrap_or_else(|why| panic!("{when}, {survived:?}: {why}"));
            volumes::check(&volume).await;
        });
    }
}
