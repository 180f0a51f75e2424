//! Stores that fail, heal, and run full: requests get errors, nothing answered is lost, and the volume
//! goes on as far as it may (docs/FORMAT.md §15).

#[path = "common/faults.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod faults;
#[path = "common/history.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod history;
#[path = "common/volumes.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod volumes;

use std::sync::Arc;
use std::time::Duration;

use faults::{Faults, FaultyStore, Landing};
use history::{Dice, Step};
use sealbd::export::{Export, ExportError};
use sealbd::geometry::ByteRange;
use sealbd::store::memory::MemoryStore;
use sealbd::volume::create::Geometry;
use sealbd::volume::{OpenMode, Volume};
use volumes::Disk;

const SIZE: u64 = 1 << 20;
/// Where the segments start; before it are headers and ring.
const DATA: u64 = 2 << 20;
const RING: (u64, u64) = (64 << 10, 128 << 10);

/// Runs to the end, or says that something waits for ever.
fn run<T>(future: impl Future<Output = T>) -> T {
    volumes::run(async {
        tokio::time::timeout(Duration::from_secs(60), future).await.expect("nothing hangs")
    })
}

async fn volume_on(store: &Arc<FaultyStore>) -> Volume {
    volumes::open(store.clone(), OpenMode::ReadWrite).await.unwrap()
}

async fn fresh() -> (Arc<FaultyStore>, Volume) {
    let store = FaultyStore::new(Disk::new(SIZE).await.store);
    let volume = volume_on(&store).await;
    (store, volume)
}

async fn write(volume: &Volume, offset: u64, len: u64, fill: u64) -> Result<(), ExportError> {
    let size = volume.info().size;
    history::apply(volume, size, &Step::Write { offset, len, fill, durable: false }).await
}

async fn holds(volume: &Volume, offset: u64, len: u64, fill: u64) -> bool {
    let range = ByteRange::within(offset, len, volume.info().size).unwrap();
    volumes::read(volume, range).await == history::pattern(fill, len)
}

/// A volume with as little room to spare as a large one has: beside the private reserve of eight slots
/// there is room for its data only if it is packed densely.
fn tight() -> Geometry {
    Geometry { export_bytes: 4 << 20, segment_bytes: 2 << 20, slots: 14 }
}

async fn tight_volume() -> (Arc<FaultyStore>, Volume) {
    let store = FaultyStore::new(Arc::new(MemoryStore::new(tight().store_bytes())));
    volumes::format(store.clone(), tight()).await.unwrap();
    let volume = volume_on(&store).await;
    (store, volume)
}

#[test]
fn overwriting_a_full_volume_ten_times_with_small_random_writes_keeps_working() {
    for unit in [4096, 512] {
        run(async {
            let (_, volume) = tight_volume().await;
            let size = tight().export_bytes;
            let mut dice = Dice::new(unit);
            let mut model = vec![0; usize::try_from(size).unwrap()];
            let in_order = (0..size / 4096).map(|lba| (lba * 4096, 4096));
            let random = (0..10 * size / 4096).map(|_| (dice.below(size / unit) * unit, unit));
            for (fill, (offset, len)) in (0..).zip(in_order.chain(random)) {
                let step = Step::Write { offset, len, fill, durable: false };
                let written = history::apply(&volume, size, &step).await;
                written.unwrap_or_else(|e| panic!("write {fill}: {e} {:?}", volume.status()));
                let at = usize::try_from(offset).unwrap();
                model[at..][..usize::try_from(len).unwrap()].copy_from_slice(&history::pattern(fill, len));
            }
            assert!(volumes::read_all(&volume).await == model);
            volumes::check(&volume).await;
        });
    }
}
