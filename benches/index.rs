//! Finding where one sector lies: in the newer entries, in the tree, in a hole, on volumes of two sizes.
//!
//! `cargo bench --bench index`
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use keymgmt::keyfile::Keyfile;
use keymgmt::manager::KeyManager;
use keymgmt::secret::Secret32;
use sealbd::cipher::Engine;
use sealbd::export::{Durability, Export};
use sealbd::geometry::{ByteRange, SECTOR_BYTES};
use sealbd::payload::Payload;
use sealbd::store::memory::MemoryStore;
use sealbd::volume::create::{Geometry, NewVolume, OverProvisioning};
use sealbd::volume::unlock::read_header;
use sealbd::volume::{OpenMode, Volume};

/// Sectors that are written, at the start of the volume.
const WRITTEN: u64 = 16 << 10;
const STEP: u64 = 7919;

async fn volume(size: u64) -> Volume {
    let geometry = Geometry::with_spare(size, OverProvisioning::DEFAULT).expect("a size");
    let store = Arc::new(MemoryStore::new(geometry.store_bytes()));
    let key = || Keyfile::from_secret(Secret32::take(&mut [7; 32]));
    let mut new = NewVolume::prepare(geometry, 512, "", Engine::default()).expect("random bytes");
    new.add_key(&key(), 0).await.expect("a keyslot");
    new.write(store.clone()).await.expect("memory");
    let managers: [Box<dyn KeyManager>; 1] = [Box::new(key())];
    let header = read_header(&*store).await.expect("a header");
    let unlocked = header.unlock(Engine::default(), &managers).await.expect("the key fits");
    Volume::open(store, unlocked, OpenMode::ReadWrite).await.expect("it opens")
}

fn sector(number: u64) -> ByteRange {
    ByteRange::within(number * SECTOR_BYTES, SECTOR_BYTES, u64::MAX).expect("inside the volume")
}

/// Every sector by itself, in an order that makes every entry one of its own.
async fn write(volume: &Volume) {
    for i in 0..WRITTEN {
        let payload = Payload::zeroed(sector(i * STEP % WRITTEN));
        volume.write(payload, Durability::Accepted).await.expect("memory");
    }
}

fn lookup(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let mut group = c.benchmark_group("lookup");
    for (name, size) in [("1G", 1u64 << 30), ("4T", 4 << 40)] {
        let volume = runtime.block_on(volume(size));
        runtime.block_on(write(&volume));
        let find = |number: u64| {
            let status = volume.block_status(sector(number), 1);
            futures_util::FutureExt::now_or_never(status)
                .expect("nothing is waited for")
                .expect("it is found")
        };
        let mut at = 0;
        let mut next = || {
            at = (at + STEP) % WRITTEN;
            at
        };
        group.bench_function(BenchmarkId::new("newer", name), |b| b.iter(|| black_box(find(next()))));
        runtime.block_on(volume.checkpoint()).expect("memory");
        // Pages come into memory first.
        (0..WRITTEN).step_by(100).for_each(|number| {
            runtime.block_on(volume.block_status(sector(number), 1)).expect("it is found");
        });
        group.bench_function(BenchmarkId::new("tree", name), |b| b.iter(|| black_box(find(next()))));
        group.bench_function(BenchmarkId::new("hole", name), |b| {
            b.iter(|| black_box(find(4 * WRITTEN + next())));
        });
        runtime.block_on(volume.close()).expect("memory");
    }
    group.finish();
}

criterion_group!(benches, lookup);
criterion_main!(benches);
