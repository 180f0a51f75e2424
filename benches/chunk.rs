//! Composing a chunk of the log from writes of 4 KiB: header, records, checksum (docs/FORMAT.md §6).
//!
//! `cargo bench --bench chunk`
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sealbd::cipher::Engine;
use sealbd::format::chunk::{ChunkHeader, ChunkLayout, Entry, Op, chunk_checksum, set_checksum};
use sealbd::geometry::{Lba, SECTOR_LEN, SectorRange};
use sealbd::payload::RECORD_LEN;

#[path = "common/keys.rs"]
mod keys;

use keys::Segments;

const ALIGN: usize = 512;

fn compose(c: &mut Criterion) {
    let mut group = c.benchmark_group("compose");
    for count in [1usize, 8, 32, 256] {
        group.throughput(Throughput::Bytes((count * SECTOR_LEN) as u64));
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            let mut segments = Segments::new(Engine::default());
            let layout = ChunkLayout::new(count, count, ALIGN);
            let mut records = vec![vec![7; RECORD_LEN]; count];
            let lba = |i: usize| Lba(i as u64 * 1000);
            let entry = |i| Entry {
                sectors: SectorRange::new(lba(i), 1),
                op: Op::Write,
                rec: u32::try_from(i).expect("a chunk"),
            };
            b.iter(|| {
                let mut range = segments.reserve(layout.chunk_len);
                let header =
                    ChunkHeader { chain: [1; 16], durable_seq: 1, entries: (0..count).map(entry).collect() };
                let place = range.split_front(layout.records_offset as u64);
                let (mut head, tag) = header.seal(2, count, ALIGN, place);
                for (i, record) in records.iter_mut().enumerate() {
                    range.split_front(RECORD_LEN as u64).seal_records(lba(i), record);
                }
                let parts = std::iter::once(&head[..]).chain(records.iter().map(|record| &record[..]));
                let crc = chunk_checksum(parts);
                set_checksum(&mut head, crc);
                black_box((head, tag))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, compose);
criterion_main!(benches);
