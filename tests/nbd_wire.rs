//! Claims about the server's side of the protocol, byte by byte over a raw socket. Most of them
//! are about something that another server gets wrong.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "nbd_wire/handshake.rs"]
mod handshake;
#[path = "common/nbd_client.rs"]
#[allow(dead_code, reason = "shared with other tests, each uses a part")]
mod nbd_client;
#[path = "common/programs.rs"]
#[allow(dead_code, clippy::print_stderr, reason = "shared with other tests, each uses a part")]
mod programs;
#[path = "nbd_wire/stopping.rs"]
mod stopping;
#[path = "nbd_wire/transmission.rs"]
mod transmission;
#[path = "nbd_wire/transports.rs"]
mod transports;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sealbd::export::memory::MemoryExport;
use sealbd::export::{Durability, Export, ExportError, ExportInfo, Extent, ZeroMode};
use sealbd::geometry::ByteRange;
use sealbd::payload::Payload;
use sealbd::server::Limits;
use tokio::sync::watch;

use nbd_client::TestServer;

/// Size of the test disks: not a multiple of the sector.
const SIZE: u64 = (1 << 20) + 512;
/// A read that starts here fails.
const FAILS_AT: u64 = 0x10_000;
/// A read that starts here panics.
const PANICS_AT: u64 = 0x11_000;
/// Reads and writes that start from here on wait at the gate.
const GATED_FROM: u64 = 0x80_000;

/// A memory disk with a gate and two bad places.
struct Staged {
    disk: MemoryExport,
    gate: watch::Sender<bool>,
    /// Calls that have come to the gate.
    waiting: watch::Sender<usize>,
    writes_done: AtomicUsize,
}

impl Staged {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            disk: MemoryExport::new(SIZE),
            gate: watch::Sender::new(false),
            waiting: watch::Sender::new(0),
            writes_done: AtomicUsize::new(0),
        })
    }

    fn open(&self) {
        self.gate.send_replace(true);
    }

    /// Blocks until `count` calls have come to the gate.
    fn wait_until_waiting(&self, count: usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut waiting = self.waiting.subscribe();
        runtime
            .block_on(async {
                tokio::time::timeout(nbd_client::PATIENCE, waiting.wait_for(|now| *now >= count))
                    .await
                    .map(|reached| reached.map(|_| ()))
            })
            .expect("the calls come")
            .unwrap();
    }

    fn writes_done(&self) -> usize {
        self.writes_done.load(Ordering::SeqCst)
    }

    async fn pass(&self, range: ByteRange) {
        if range.offset() >= GATED_FROM {
            self.waiting.send_modify(|count| *count += 1);
            self.gate.subscribe().wait_for(|open| *open).await.unwrap();
        }
    }
}

impl Export for Staged {
    fn info(&self) -> ExportInfo {
        self.disk.info()
    }

    async fn read<'a>(&'a self, range: ByteRange, buf: &'a mut [u8]) -> Result<Vec<ByteRange>, ExportError> {
        self.pass(range).await;
        match range.offset() {
            FAILS_AT => Err(ExportError::Io("sector 16 does not authenticate".into())),
            PANICS_AT => panic!("staged"),
            _ => self.disk.read(range, buf).await,
        }
    }

    async fn write(&self, payload: Payload, durability: Durability) -> Result<(), ExportError> {
        self.pass(payload.range()).await;
        let result = self.disk.write(payload, durability).await;
        self.writes_done.fetch_add(1, Ordering::SeqCst);
        result
    }

    async fn trim(&self, range: ByteRange, durability: Durability) -> Result<(), ExportError> {
        self.disk.trim(range, durability).await
    }

    async fn write_zeroes(
        &self,
        range: ByteRange,
        mode: ZeroMode,
        durability: Durability,
    ) -> Result<(), ExportError> {
        self.disk.write_zeroes(range, mode, durability).await
    }

    async fn flush(&self) -> Result<(), ExportError> {
        self.disk.flush().await
    }

    async fn cache(&self, range: ByteRange) -> Result<(), ExportError> {
        self.disk.cache(range).await
    }

    async fn block_status(&self, range: ByteRange, extents_max: usize) -> Result<Vec<Extent>, ExportError> {
        self.disk.block_status(range, extents_max).await
    }
}

/// A server of one staged disk.
fn staged() -> (TestServer, Arc<Staged>) {
    let export = Staged::new();
    (TestServer::start(vec![("disk", Arc::clone(&export))], Limits::default()), export)
}

/// A server of two memory disks, `one` and the larger, read-only `two`.
fn two_disks() -> TestServer {
    let one = Arc::new(MemoryExport::new(SIZE));
    let two = Arc::new(MemoryExport::new(2 * SIZE).read_only());
    TestServer::start(vec![("one", one), ("two", two)], Limits::default())
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 251).expect("below 251") ^ seed).collect()
}
