//! Sealing and opening records, by engine and by how many lie one behind the other.
//!
//! `cargo bench --bench cipher`
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;

use criterion::{Bencher, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sealbd::cipher::Engine;
use sealbd::geometry::{Lba, SECTOR_LEN};
use sealbd::payload::RECORD_LEN;

#[path = "common/keys.rs"]
mod keys;

use keys::Segments;

fn engines() -> impl Iterator<Item = Engine> {
    ["aws-lc", "portable"].into_iter().filter_map(Engine::by_name)
}

/// One of them for each engine, over one record and over as many as a chunk holds.
fn measure(c: &mut Criterion, name: &str, run: impl Fn(&mut Bencher<'_>, Segments, usize)) {
    let mut group = c.benchmark_group(name);
    for engine in engines() {
        for records in [1, 256] {
            group.throughput(Throughput::Bytes((records * SECTOR_LEN) as u64));
            group.bench_function(BenchmarkId::new(engine.name(), records), |b| {
                run(b, Segments::new(engine), records);
            });
        }
    }
    group.finish();
}

fn seal(c: &mut Criterion) {
    measure(c, "seal", |b, mut segments, records| {
        let mut memory = vec![7; records * RECORD_LEN];
        b.iter(|| segments.reserve(memory.len()).seal_records(Lba(9), black_box(&mut memory)));
    });
}

fn open(c: &mut Criterion) {
    measure(c, "open", |b, mut segments, records| {
        let mut sealed = vec![7; records * RECORD_LEN];
        let range = segments.reserve(sealed.len());
        let (key, start) = (segments.reader(), range.offset());
        range.seal_records(Lba(9), &mut sealed);
        let mut sector = vec![0; SECTOR_LEN];
        b.iter(|| {
            for (i, record) in (0u64..).zip(sealed.chunks_exact(RECORD_LEN)) {
                let at = start + i * RECORD_LEN as u64;
                key.open_record(at, Lba(9 + i), record, black_box(&mut sector)).expect("it was sealed");
            }
        });
    });
}

criterion_group!(benches, seal, open);
criterion_main!(benches);
