//! Long reads where the store has to be waited for.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use crate::export::{Durability, Export};
use crate::geometry::{ByteRange, SECTOR_BYTES, SECTOR_LEN};
use crate::payload::{Payload, RECORD_LEN};
use crate::store::memory::MemoryStore;
use crate::store::{BoxFuture, Capability, Persist, SlotStore, StoreError};
use crate::volume::Volume;
use crate::volume::create::Geometry;
use crate::volume::read::index;
use crate::volume::reclaim::tests::fresh_on;

const SIZE: u64 = 16 << 20;
/// Sectors of the longest read here.
const SECTORS: u64 = 256;
const READ_LEN: usize = 256 * SECTOR_LEN;
pub(in crate::volume) const DISTANCE: Duration = Duration::from_millis(1);

/// A store whose reads take a millisecond each, as many at once as one likes.
pub(in crate::volume) struct Distant {
    inner: MemoryStore,
    /// Bytes of reads under way, now and at most.
    under_way: (AtomicUsize, AtomicUsize),
    /// Where each read began and ended.
    reads: Mutex<Vec<Range<u64>>>,
    /// A byte that cannot be read.
    bad: AtomicU64,
}

impl Distant {
    /// With room for the volume of `geometry`.
    pub(in crate::volume) fn new(geometry: &Geometry) -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryStore::new(geometry.store_bytes()),
            under_way: (AtomicUsize::new(0), AtomicUsize::new(0)),
            reads: Mutex::default(),
            bad: AtomicU64::new(u64::MAX),
        })
    }

    fn take_reads(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.reads.lock().unwrap())
    }
}

impl SlotStore for Distant {
    fn capability(&self) -> Capability {
        self.inner.capability()
    }

    fn describe(&self) -> String {
        "distant".into()
    }

    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'_, Result<Vec<u8>, StoreError>> {
        Box::pin(async move {
            let (now, most) = &self.under_way;
            most.fetch_max(now.fetch_add(len, Ordering::Relaxed) + len, Ordering::Relaxed);
            sleep(DISTANCE).await;
            let bytes = offset..offset + len as u64;
            let bad = bytes.contains(&self.bad.load(Ordering::Relaxed));
            self.reads.lock().unwrap().push(bytes);
            now.fetch_sub(len, Ordering::Relaxed);
            if bad {
                let source = std::io::ErrorKind::Other.into();
                return Err(StoreError::Io { context: "a bad place", source });
            }
            self.inner.read_at(offset, len).await
        })
    }

    fn write_at(
        &self,
        offset: u64,
        parts: Vec<Bytes>,
        persist: Persist,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.write_at(offset, parts, persist)
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.sync()
    }

    fn extend(&self, size: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.extend(size)
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.discard(offset, len)
    }
}

fn range(lba: u64, count: u64) -> ByteRange {
    ByteRange::within(lba * SECTOR_BYTES, count * SECTOR_BYTES, SIZE).unwrap()
}

/// A volume whose sectors lie in an order of their own: no two of them follow each other, and there are `between`
/// sectors of another part of it between them.
async fn scattered(between: u64) -> (Arc<Distant>, Volume) {
    let (distant, volume) = distant().await;
    for lba in (0..SECTORS).step_by(2).chain((1..SECTORS).step_by(2)) {
        let payload = Payload::copy_of(range(lba, 1), &[fill(lba); SECTOR_LEN]);
        volume.write(payload, Durability::Accepted).await.unwrap();
        if between > 0 {
            let payload = Payload::copy_of(range(SECTORS, between), &vec![0xdd; index(between) * SECTOR_LEN]);
            volume.write(payload, Durability::Accepted).await.unwrap();
        }
    }
    (distant, volume)
}

async fn distant() -> (Arc<Distant>, Volume) {
    let geometry = Geometry::for_export(SIZE).unwrap();
    let distant = Distant::new(&geometry);
    let volume = fresh_on(distant.clone(), geometry).await;
    (distant, volume)
}

fn fill(lba: u64) -> u8 {
    u8::try_from(lba % 251 + 1).unwrap()
}

#[tokio::test(start_paused = true)]
async fn scattered_sectors_of_one_read_are_fetched_together() {
    let (store, volume) = scattered(4).await;
    let mut data = vec![0xee; READ_LEN];
    store.take_reads();
    let began = Instant::now();
    volume.read(range(0, SECTORS), &mut data).await.unwrap();
    assert!(began.elapsed() < DISTANCE * 20, "{:?} for {SECTORS} sectors", began.elapsed());
    assert_eq!(store.take_reads().len() as u64, SECTORS, "too far apart for fewer calls");
    for (lba, sector) in (0..SECTORS).zip(data.chunks_exact(SECTOR_LEN)) {
        assert!(sector.iter().all(|byte| *byte == fill(lba)), "sector {lba}");
    }
    // Edges within sectors.
    let mut part = vec![0xee; 40 * SECTOR_LEN];
    let edges = ByteRange::within(SECTOR_BYTES + 100, 40 * SECTOR_BYTES, SIZE).unwrap();
    volume.read(edges, &mut part).await.unwrap();
    assert_eq!(part, data[SECTOR_LEN + 100..][..part.len()]);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_sector_among_many_that_are_fetched_fails_the_read() {
    let (store, volume) = scattered(4).await;
    let memory = &store.inner;
    let wanted = [fill(77); 64];
    let content = memory.read_raw(0, usize::try_from(memory.capability().size).unwrap());
    let mut data = vec![0; READ_LEN];
    volume.read(range(0, SECTORS), &mut data).await.unwrap();
    assert_eq!(data[77 * SECTOR_LEN..][..64], wanted);
    // Wherever it lies: everything is damaged and put back, but for one half of the store at a time.
    let half = content.len() / 2;
    let mut failed = 0;
    for damaged in [0..half, half..content.len()] {
        let broken: Vec<u8> = content[damaged.clone()].iter().map(|byte| byte ^ 1).collect();
        memory.write_raw(damaged.start as u64, &broken);
        failed += usize::from(volume.read(range(0, SECTORS), &mut data).await.is_err());
        memory.write_raw(damaged.start as u64, &content[damaged]);
    }
    assert!(failed > 0, "what was damaged was read");
    assert!(volume.status().authentication_failures > 0);
    volume.read(range(0, SECTORS), &mut data).await.unwrap();
}

/// Once 32 fetches of a megabyte each, whatever their request was long.
#[tokio::test(start_paused = true)]
async fn a_long_read_has_no_more_than_a_megabyte_under_way() {
    let (distant, volume) = distant().await;
    for lba in (0..SIZE / SECTOR_BYTES).step_by(256) {
        let payload = Payload::copy_of(range(lba, 256), &[fill(lba); READ_LEN]);
        volume.write(payload, Durability::Accepted).await.unwrap();
    }
    let mut data = vec![0xee; 8 * READ_LEN];
    distant.under_way.1.store(0, Ordering::Relaxed);
    volume.read(range(0, 8 * 256), &mut data).await.unwrap();
    assert!(
        (0..)
            .zip(data.chunks_exact(READ_LEN))
            .all(|(i, part)| part.iter().all(|byte| *byte == fill(256 * i)))
    );
    let most = distant.under_way.1.load(Ordering::Relaxed);
    assert!((READ_LEN / 4..=256 * RECORD_LEN).contains(&most), "{most} bytes under way");
}

#[tokio::test(start_paused = true)]
async fn sectors_that_lie_together_are_fetched_with_one_call() {
    let (store, volume) = scattered(0).await;
    let mut data = vec![0xee; READ_LEN];
    store.take_reads();
    volume.read(range(0, SECTORS), &mut data).await.unwrap();
    let reads = store.take_reads();
    assert!(reads.len() < 16, "{} calls for {SECTORS} sectors", reads.len());
    assert!((0..).zip(data.chunks_exact(SECTOR_LEN)).all(|(lba, sector)| sector == [fill(lba); SECTOR_LEN]));
}

/// What lies between records is read with them, and is no reason for them to be lost.
#[tokio::test(start_paused = true)]
async fn a_bad_place_between_records_does_not_fail_them() {
    let (store, volume) = distant().await;
    volume.write(Payload::copy_of(range(0, 8), &[1; 8 * SECTOR_LEN]), Durability::Accepted).await.unwrap();
    let mut data = vec![0xee; 8 * SECTOR_LEN];
    store.take_reads();
    volume.read(range(0, 8), &mut data).await.unwrap();
    let [bytes] = &store.take_reads()[..] else { panic!("one run, one call") };
    let old = bytes.start + 3 * RECORD_LEN as u64;
    volume.write(Payload::copy_of(range(3, 1), &[2; SECTOR_LEN]), Durability::Accepted).await.unwrap();
    store.bad.store(old + 100, Ordering::Relaxed);

    data.fill(0xee);
    volume.read(range(0, 8), &mut data).await.unwrap();
    assert!(store.take_reads().iter().any(|read| read.contains(&(old + 100))), "it was read along");
    for (lba, sector) in data.chunks_exact(SECTOR_LEN).enumerate() {
        assert_eq!(sector, [if lba == 3 { 2 } else { 1 }; SECTOR_LEN], "sector {lba}");
    }
    // A record that lies there itself is lost, and says so.
    store.bad.store(bytes.start, Ordering::Relaxed);
    assert!(volume.read(range(0, 8), &mut data).await.is_err());
    assert_eq!(volume.status().authentication_failures, 0, "nothing was forged");
}
