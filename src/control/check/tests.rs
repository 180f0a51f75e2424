//! A check over the socket of a volume whose store keeps it waiting.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use tokio::sync::watch;

use super::*;
use crate::control::client::{Control, ControlError};
use crate::control::gate::tests::{dek, fill_of, format, open_as, put, soon, until};
use crate::control::gate::{Gate, GateState};
use crate::control::server::ControlSocket;
use crate::geometry::{Lba, SectorRange};
use crate::store::memory::MemoryStore;
use crate::store::{Capability, Persist, SlotStore, StoreError};
use crate::volume::OpenMode;
use crate::volume::check::{Finding, Structure};

/// Holds reads back while it is told to.
struct HeldReads {
    inner: Arc<MemoryStore>,
    holding: watch::Sender<bool>,
    held: AtomicUsize,
}

/// Counts a read that waits, for as long as somebody waits for it.
struct Held<'a>(&'a AtomicUsize);

impl<'a> Held<'a> {
    fn count(held: &'a AtomicUsize) -> Self {
        held.fetch_add(1, Ordering::SeqCst);
        Self(held)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl SlotStore for HeldReads {
    fn capability(&self) -> Capability {
        self.inner.capability()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'_, Result<Vec<u8>, StoreError>> {
        Box::pin(async move {
            let mut holding = self.holding.subscribe();
            {
                let _held = Held::count(&self.held);
                let _ = holding.wait_for(|holding| !holding).await;
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

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.discard(offset, len)
    }
}

struct Desk {
    dir: tempfile::TempDir,
    store: Arc<HeldReads>,
    gate: Arc<Gate>,
    volume: [u8; 16],
    _socket: ControlSocket,
}

impl Desk {
    /// A volume with a sector in it, and a socket.
    async fn new() -> Self {
        let inner = format(4 << 20).await;
        let store =
            Arc::new(HeldReads { inner, holding: watch::Sender::new(false), held: AtomicUsize::new(0) });
        let gate = open_as(store.clone(), OpenMode::ReadWrite).await;
        put(&gate, 1, 7).await.unwrap();
        gate.volume().unwrap().checkpoint().await.unwrap();
        let volume = gate.volume().unwrap().header().volume;
        let dir = tempfile::tempdir().unwrap();
        let socket = ControlSocket::listen(dir.path(), volume, "vol", gate.clone(), 64 << 20).unwrap();
        Self { dir, store, gate, volume, _socket: socket }
    }

    async fn control(&self) -> Control {
        Control::connect(self.dir.path(), self.volume).await.unwrap().expect("it is served")
    }

    /// A check that waits for its first read.
    async fn checking(&self) -> tokio::task::JoinHandle<Result<CheckReport, ControlError>> {
        self.store.holding.send_replace(true);
        let mut control = self.control().await;
        let task = tokio::spawn(async move { control.check(true, |_, _| {}).await });
        until("the check reads", || self.store.held.load(Ordering::SeqCst) > 0).await;
        task
    }
}

fn refused(result: Result<CheckReport, ControlError>) -> Refusal {
    match result {
        Err(ControlError::Refused(refusal)) => refusal,
        other => panic!("not a refusal: {other:?}"),
    }
}

#[tokio::test]
async fn a_check_answers_with_all_that_was_found() {
    let desk = Desk::new().await;
    let report = soon("check", desk.control().await.check(true, |_, _| {})).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.mapped_sectors, report.verified_sectors), (1, 1));
}

#[tokio::test]
async fn long_lists_come_in_lines_that_are_short_enough_and_nothing_is_lost() {
    let (near, far) = UnixStream::pair().unwrap();
    let mut lists = CheckReport::default();
    for number in 0..1000 {
        let message = format!("{number} {}", "x".repeat(400));
        let problem = Finding { structure: Structure::LiveCount, offset: Some(number), message };
        lists.problems.push(problem.clone());
        lists.warnings.push(problem);
    }
    for lba in 0..10_000u64 {
        lists.damaged.push(SectorRange::new(Lba(lba * 1_000_000_007), 1).into());
    }
    let sent = lists.clone();
    let sending = tokio::spawn(async move {
        let mut near = BufReader::new(near);
        let end = found(&mut near, sent).await.unwrap();
        send(&mut near, &Answer::Ok(end)).await.unwrap();
    });
    let mut far = BufReader::new(far);
    let mut got = CheckReport::default();
    loop {
        // A line that is too long is an error here.
        match soon("a line", crate::control::protocol::read_line::<Answer>(&mut far)).await.unwrap() {
            Some(Answer::Ok(Done::Found { problems, warnings, damaged })) => {
                got.problems.extend(problems);
                got.warnings.extend(warnings);
                got.damaged.extend(damaged);
            }
            Some(Answer::Ok(Done::Checked(_))) => break,
            other => panic!("{other:?}"),
        }
    }
    sending.await.unwrap();
    assert!(got.problems == lists.problems && got.warnings == lists.warnings && got.damaged == lists.damaged);
}

#[tokio::test]
async fn suspending_ends_a_check_and_does_not_wait_for_it() {
    let desk = Desk::new().await;
    let checking = desk.checking().await;
    let suspending = tokio::spawn({
        let gate = desk.gate.clone();
        async move { gate.suspend().await }
    });
    assert_eq!(refused(soon("the check ends", checking).await.unwrap()).code, Code::State);
    desk.store.holding.send_replace(false);
    soon("suspended", suspending).await.unwrap().unwrap();
    assert_eq!(desk.gate.state(), GateState::Suspended);
    assert_eq!(refused(desk.control().await.check(true, |_, _| {}).await).code, Code::State);
    desk.gate.resume(dek(&*desk.store.inner).await).await.unwrap();
    assert!(soon("check", desk.control().await.check(true, |_, _| {})).await.unwrap().is_clean());
}

#[tokio::test]
async fn requests_are_answered_while_a_check_waits_for_the_store() {
    let desk = Desk::new().await;
    let checking = desk.checking().await;
    soon("a write", Box::pin(put(&desk.gate, 9, 3))).await.unwrap();
    desk.store.holding.send_replace(false);
    assert!(soon("the check", checking).await.unwrap().unwrap().is_clean());
    assert_eq!(fill_of(&desk.gate, 9).await.unwrap(), 3);
}

#[tokio::test]
async fn a_second_check_is_told_to_come_again_and_one_whose_client_has_gone_makes_room() {
    let desk = Desk::new().await;
    let checking = desk.checking().await;
    assert_eq!(refused(desk.control().await.check(false, |_, _| {}).await).code, Code::Busy);
    checking.abort();
    // It notices within the time between two words of progress, although its store keeps it waiting.
    until("the first check has ended", || desk.store.held.load(Ordering::SeqCst) == 0).await;
    desk.store.holding.send_replace(false);
    assert!(soon("check", desk.control().await.check(false, |_, _| {})).await.unwrap().is_clean());
}
