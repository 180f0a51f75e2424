//! Compacting over the socket of a volume whose store keeps it waiting.

use std::sync::Arc;

use super::*;
use crate::control::client::{Control, ControlError};
use crate::control::gate::tests::store::HoldStore;
use crate::control::gate::tests::{dek, fill_of, format, open_as, soon, until};
use crate::control::gate::{Gate, GateState};
use crate::control::server::ControlSocket;
use crate::export::{Durability, Export};
use crate::geometry::ByteRange;
use crate::payload::Payload;
use crate::store::memory::MemoryStore;
use crate::volume::OpenMode;
use crate::volume::compact::Compacted;

const SIZE: u64 = 24 << 20;
const PIECE: u64 = 1 << 20;

struct Desk {
    dir: tempfile::TempDir,
    inner: Arc<MemoryStore>,
    store: Arc<HoldStore>,
    gate: Arc<Gate>,
    volume: [u8; 16],
    _socket: ControlSocket,
}

impl Desk {
    /// A volume of which a quarter is live, all over its segments, and a socket.
    async fn new() -> Self {
        let inner = format(SIZE).await;
        let store = Arc::new(HoldStore::new(inner.clone()));
        let gate = open_as(store.clone(), OpenMode::ReadWrite).await;
        for offset in (0..SIZE).step_by(1 << 20) {
            let piece = ByteRange::within(offset, PIECE, SIZE).unwrap();
            let payload = Payload::copy_of(piece, &vec![7; usize::try_from(PIECE).unwrap()]);
            gate.write(payload, Durability::Accepted).await.unwrap();
            for hole in (0..PIECE).step_by(64 << 10) {
                let hole = ByteRange::within(offset + hole + (16 << 10), 48 << 10, SIZE).unwrap();
                gate.trim(hole, Durability::Accepted).await.unwrap();
            }
        }
        let volume = gate.volume().unwrap().header().volume;
        let dir = tempfile::tempdir().unwrap();
        let socket = ControlSocket::listen(dir.path(), volume, "vol", gate.clone(), 64 << 20).unwrap();
        Self { dir, inner, store, gate, volume, _socket: socket }
    }

    async fn control(&self) -> Control {
        Control::connect(self.dir.path(), self.volume).await.unwrap().expect("it is served")
    }

    async fn compact(&self) -> Result<Compacted, ControlError> {
        let mut control = self.control().await;
        soon("compacting", control.compact(90, |_| {})).await
    }

    /// A compaction that waits for its store.
    async fn compacting(&self) -> tokio::task::JoinHandle<Result<Compacted, ControlError>> {
        self.store.hold();
        let mut control = self.control().await;
        let task = tokio::spawn(async move { control.compact(90, |_| {}).await });
        until("the compaction writes", || self.store.held() > 0).await;
        task
    }
}

fn code(result: Result<Compacted, ControlError>) -> Code {
    match result {
        Err(ControlError::Refused(refusal)) => refusal.code,
        other => panic!("not a refusal: {other:?}"),
    }
}

#[tokio::test]
async fn compacting_is_answered_with_what_was_gained_and_one_at_a_time() {
    let desk = Desk::new().await;
    let compacting = desk.compacting().await;
    assert_eq!(code(desk.compact().await), Code::Busy);
    desk.store.release();
    let compacted = soon("compacting", compacting).await.unwrap().unwrap();
    assert!(compacted.reached && compacted.before.percent() < 50, "{compacted:?}");
    assert!(compacted.after.unused_slots > compacted.before.unused_slots, "{compacted:?}");
    assert_eq!(fill_of(&desk.gate, 0).await.unwrap(), 7);
}

#[tokio::test]
async fn suspending_ends_a_compaction_and_nothing_is_lost() {
    let desk = Desk::new().await;
    let compacting = desk.compacting().await;
    let suspending = tokio::spawn({
        let gate = desk.gate.clone();
        async move { gate.suspend().await }
    });
    until("suspending waits for the volume", || desk.gate.volume().is_err()).await;
    desk.store.release();
    assert_eq!(code(soon("the compaction ends", compacting).await.unwrap()), Code::State);
    soon("suspended", suspending).await.unwrap().unwrap();
    assert_eq!((desk.gate.state(), code(desk.compact().await)), (GateState::Suspended, Code::State));
    desk.gate.resume(dek(&*desk.inner).await).await.unwrap();
    assert!(desk.compact().await.unwrap().reached);
    assert_eq!(fill_of(&desk.gate, 0).await.unwrap(), 7);
}

#[tokio::test]
async fn a_compaction_whose_client_has_gone_ends_and_makes_room_for_another_one() {
    let desk = Desk::new().await;
    let compacting = desk.compacting().await;
    compacting.abort();
    let _ = compacting.await;
    desk.store.release();
    let compacted = loop {
        match desk.compact().await {
            Ok(compacted) => break compacted,
            busy => assert_eq!(code(busy), Code::Busy),
        }
        tokio::task::yield_now().await;
    };
    assert!(compacted.reached, "{compacted:?}");
}
