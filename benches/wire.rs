//! Parsing requests and laying out replies, compact and extended.
//!
//! `cargo bench --bench wire`
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;

use bytes::BytesMut;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use sealbd::export::ExportInfo;
use sealbd::geometry::ByteRange;
use sealbd::nbd::reply::{Asked, Outcome, Reply};
use sealbd::nbd::request::{Fragments, judge};
use sealbd::nbd::{Mode, ReplyStyle};
use sealbd::wire::transmission::{Command, CommandFlags, HeaderStyle, Request};

const STYLES: [(&str, HeaderStyle); 2] =
    [("compact", HeaderStyle::Compact), ("extended", HeaderStyle::Extended)];
const SIZE: u64 = 1 << 30;

fn mode(style: HeaderStyle) -> Mode {
    Mode { export: 0, replies: ReplyStyle::Structured(style), allocation_context: Some(1) }
}

fn requests(c: &mut Criterion) {
    let info = ExportInfo { size: SIZE, read_only: false, description: String::new() };
    let mut group = c.benchmark_group("request");
    for (name, style) in STYLES {
        let request = Request {
            flags: CommandFlags::NONE,
            command: Command::READ,
            cookie: 77,
            offset: 4096,
            len: 4096,
        };
        let mut bytes = Vec::new();
        request.encode(style, &mut bytes);
        let mode = mode(style);
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| {
                let request = Request::decode(style, black_box(&bytes)).expect("a request");
                black_box(judge(&request, &mode, &info))
            });
        });
    }
    group.finish();
}

fn replies(c: &mut Criterion) {
    let asked = Asked { cookie: 77, offset: 4096 };
    let mut group = c.benchmark_group("reply");
    for (name, style) in STYLES {
        let mode = mode(style);
        group.bench_function(BenchmarkId::new("done", name), |b| {
            b.iter(|| black_box(Reply::new(asked, &mode, Outcome::Done)));
        });
        group.bench_function(BenchmarkId::new("read", name), |b| {
            let range = ByteRange::within(4096, 4096, SIZE).expect("inside");
            b.iter_batched(
                || BytesMut::zeroed(4096),
                |data| {
                    let outcome =
                        Outcome::Data { range, data, holes: Vec::new(), fragments: Fragments::Allowed };
                    black_box(Reply::new(asked, &mode, outcome))
                },
                criterion::BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, requests, replies);
criterion_main!(benches);
