//! What clients and key holders may rely on while a volume is suspended and resumed.

mod cycles;
mod refusals;
mod resizing;
mod stopping;
pub(in crate::control) mod store;

use std::sync::Weak;

use keymgmt::keyfile::Keyfile;
use keymgmt::manager::KeyManager;
use keymgmt::secret::Secret32;
use tokio::task::JoinHandle;

use self::store::HoldStore;
use super::*;
use crate::store::memory::{Fault, MemoryStore, Operation};
use crate::volume::create::{Geometry, NewVolume};
use crate::volume::unlock::Unlocked;

const SIZE: u64 = 4 << 20;

/// How long anything here may take.
const DEADLINE: Duration = Duration::from_secs(60);

pub(in crate::control) fn managers() -> Vec<Box<dyn KeyManager>> {
    vec![Box::new(Keyfile::from_secret(Secret32::take(&mut [7; 32])))]
}

pub(in crate::control) async fn format(size: u64) -> Arc<MemoryStore> {
    let geometry = Geometry::for_export(size).unwrap();
    let store = Arc::new(MemoryStore::new(geometry.store_bytes()));
    let mut new = NewVolume::prepare(geometry, 4096, "gate", Engine::default()).unwrap();
    new.add_key(&*managers()[0], 0).await.unwrap();
    new.write(store.clone()).await.unwrap();
    store
}

pub(in crate::control) async fn unlock(store: &dyn SlotStore) -> Unlocked {
    read_header(store).await.unwrap().unlock(Engine::default(), &managers()).await.unwrap()
}

pub(in crate::control) async fn open_as(store: Arc<dyn SlotStore>, mode: OpenMode) -> Arc<Gate> {
    let volume = Volume::open(store.clone(), unlock(&*store).await, mode).await.unwrap();
    Arc::new(Gate::new(volume, store, Engine::default()))
}

pub(in crate::control) async fn running() -> (Arc<MemoryStore>, Arc<Gate>) {
    let store = format(SIZE).await;
    let gate = open_as(store.clone(), OpenMode::ReadWrite).await;
    (store, gate)
}

pub(in crate::control) async fn dek(store: &dyn SlotStore) -> Dek {
    unlock(store).await.dek
}

fn sector(lba: u64) -> ByteRange {
    ByteRange::within(lba * 4096, 4096, SIZE).unwrap()
}

pub(in crate::control) async fn put(gate: &Gate, lba: u64, fill: u8) -> Result<(), ExportError> {
    gate.write(Payload::copy_of(sector(lba), &[fill; 4096]), Durability::Accepted).await
}

/// What the sector is full of.
pub(in crate::control) async fn fill_of(gate: &Gate, lba: u64) -> Result<u8, ExportError> {
    let mut buf = [0xee; 4096];
    gate.read(sector(lba), &mut buf).await?;
    assert!(buf.iter().all(|byte| *byte == buf[0]), "one write fills a sector");
    Ok(buf[0])
}

/// The keys of the running volume, to see whether they are gone.
fn keys(gate: &Gate) -> Weak<VolumeKeys> {
    let keys = gate.volume().unwrap().keys();
    assert!(keys.upgrade().is_some(), "a running volume has its keys");
    keys
}

fn gone(keys: &Weak<VolumeKeys>) -> bool {
    keys.strong_count() == 0
}

/// What does not hang.
pub(in crate::control) async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    timeout(DEADLINE, work).await.unwrap_or_else(|_| panic!("hangs: {what}"))
}

/// Waits until it is so.
pub(in crate::control) async fn until(what: &str, so: impl Fn() -> bool) {
    let waited = async {
        while !so() {
            tokio::task::yield_now().await;
        }
    };
    soon(what, waited).await;
}

/// Starts a request that must park as number `count`.
pub(in crate::control) async fn park<T: Send + 'static>(
    gate: &Arc<Gate>,
    count: usize,
    request: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    let task = tokio::spawn(request);
    until("parked", || gate.parked() == count).await;
    task
}

#[tokio::test]
async fn requests_wait_while_suspended_and_are_answered_in_their_order() {
    let (store, gate) = running().await;
    put(&gate, 0, 1).await.unwrap();
    let dek = dek(&*store).await;
    gate.suspend().await.unwrap();
    assert_eq!(gate.state(), GateState::Suspended);
    let answers = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for number in 1..=20 {
        let (mine, answers) = (gate.clone(), answers.clone());
        let request = async move {
            // All to one place: what is there in the end tells which came last.
            put(&mine, 0, number).await.unwrap();
            answers.lock().unwrap().push(number);
        };
        tasks.push(park(&gate, number.into(), request).await);
    }
    let mine = gate.clone();
    tasks.push(park(&gate, 21, async move { mine.flush().await.unwrap() }).await);
    assert!(answers.lock().unwrap().is_empty(), "nothing is answered while suspended");

    gate.resume(dek).await.unwrap();
    for task in tasks {
        soon("a request that waited", task).await.unwrap();
    }
    assert_eq!(*answers.lock().unwrap(), Vec::from_iter(1..=20));
    assert_eq!(fill_of(&gate, 0).await.unwrap(), 20);
    assert_eq!((gate.state(), gate.parked()), (GateState::Running, 0));
    gate.close().await.unwrap();
}

#[tokio::test]
async fn every_kind_of_request_waits_and_none_fails() {
    let (store, gate) = running().await;
    put(&gate, 3, 9).await.unwrap();
    let dek = dek(&*store).await;
    gate.suspend().await.unwrap();
    let g = [(); 7].map(|()| gate.clone());
    let [a, b, c, d, e, f, h] = g;
    let tasks =
        vec![
            park(&gate, 1, async move { fill_of(&a, 3).await.map(|fill| assert_eq!(fill, 9)) }).await,
            park(&gate, 2, async move { put(&b, 4, 1).await }).await,
            park(&gate, 3, async move { c.trim(sector(5), Durability::Durable).await }).await,
            park(
                &gate,
                4,
                async move { d.write_zeroes(sector(6), ZeroMode::NoHole, Durability::Accepted).await },
            )
            .await,
            park(&gate, 5, async move { e.flush().await }).await,
            park(&gate, 6, async move { f.cache(sector(3)).await }).await,
            park(&gate, 7, async move {
                h.block_status(sector(3), 4).await.map(|found| assert_eq!(found.len(), 1))
            })
            .await,
        ];
    // What a client is told of the export needs no key.
    assert_eq!(gate.info().size, SIZE);
    gate.resume(dek).await.unwrap();
    for task in tasks {
        soon("a request that waited", task).await.unwrap().unwrap();
    }
    gate.close().await.unwrap();
}

#[tokio::test]
async fn a_client_that_goes_away_while_it_waits_leaves_no_trace() {
    let (store, gate) = running().await;
    let dek = dek(&*store).await;
    gate.suspend().await.unwrap();
    let mine = gate.clone();
    let task = park(&gate, 1, async move { put(&mine, 0, 5).await }).await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert_eq!(gate.parked(), 0);
    gate.resume(dek).await.unwrap();
    assert_eq!(fill_of(&gate, 0).await.unwrap(), 0, "it was never written");
    gate.close().await.unwrap();
}

#[tokio::test]
async fn suspending_waits_for_what_is_under_way_and_that_succeeds() {
    let store = format(SIZE).await;
    let hold = Arc::new(HoldStore::new(store.clone()));
    let gate = open_as(hold.clone(), OpenMode::ReadWrite).await;
    let watched = keys(&gate);
    hold.hold();
    let mine = gate.clone();
    let write = tokio::spawn(async move { put(&mine, 0, 7).await });
    until("a write at the store", || hold.held() == 1).await;
    let mine = gate.clone();
    let suspend = tokio::spawn(async move { mine.suspend().await });
    // Whoever comes behind it waits already, and what is under way still has its keys.
    until("suspending has begun", || gate.volume().is_err()).await;
    let mine = gate.clone();
    let behind = park(&gate, 1, async move { fill_of(&mine, 0).await }).await;
    assert!(!suspend.is_finished() && !write.is_finished());
    assert_eq!(gate.state(), GateState::Running, "on its way it is where it comes from");
    assert!(!gone(&watched));

    hold.release();
    soon("the write", write).await.unwrap().unwrap();
    soon("suspending", suspend).await.unwrap().unwrap();
    assert!(gone(&watched));
    assert_eq!(gate.parked(), 1);
    gate.resume(dek(&*store).await).await.unwrap();
    assert_eq!(soon("the read behind", behind).await.unwrap().unwrap(), 7);
    gate.close().await.unwrap();
}

#[tokio::test]
async fn no_key_is_left_when_suspending_returns() {
    let (store, gate) = running().await;
    // Segment keys, index pages and background work come with data.
    for lba in 0..200 {
        put(&gate, lba, 1).await.unwrap();
    }
    gate.flush().await.unwrap();
    let watched = keys(&gate);
    gate.suspend().await.unwrap();
    assert!(gone(&watched), "the volume's keys");
    gate.resume(dek(&*store).await).await.unwrap();
    assert!(gone(&watched), "they are others than before");
    gate.close().await.unwrap();
}

#[tokio::test]
async fn suspending_and_resuming_again_do_nothing() {
    let (store, gate) = running().await;
    put(&gate, 0, 1).await.unwrap();
    let (one, two) = (dek(&*store).await, dek(&*store).await);
    gate.suspend().await.unwrap();
    let (since, changes) = (gate.since(), store.change_count());
    gate.suspend().await.unwrap();
    assert_eq!((gate.state(), gate.since(), store.change_count()), (GateState::Suspended, since, changes));

    gate.resume(one).await.unwrap();
    let (since, changes, watched) = (gate.since(), store.change_count(), keys(&gate));
    gate.resume(two).await.unwrap();
    assert_eq!((gate.state(), gate.since(), store.change_count()), (GateState::Running, since, changes));
    assert!(!gone(&watched), "the same session goes on");
    // A running volume does not look at the key that it does not need.
    gate.resume(Dek::take(&mut [1; 32])).await.unwrap();
    assert_eq!(fill_of(&gate, 0).await.unwrap(), 1);
    gate.close().await.unwrap();
}

#[tokio::test]
async fn whoever_suspends_may_go_away_half_way() {
    let store = format(SIZE).await;
    let hold = Arc::new(HoldStore::new(store.clone()));
    let gate = open_as(hold.clone(), OpenMode::ReadWrite).await;
    let watched = keys(&gate);
    put(&gate, 0, 3).await.unwrap();
    hold.hold();
    let mine = gate.clone();
    let suspend = tokio::spawn(async move { mine.suspend().await });
    until("the last root at the store", || hold.held() == 1).await;
    suspend.abort();
    assert!(suspend.await.unwrap_err().is_cancelled());
    assert_eq!(gate.state(), GateState::Running, "it is on its way");
    hold.release();
    until("suspended", || gate.state() == GateState::Suspended).await;
    assert!(gone(&watched));

    // The same for whoever resumes.
    hold.hold();
    let (mine, key) = (gate.clone(), dek(&*store).await);
    let resume = tokio::spawn(async move { mine.resume(key).await });
    until("the claim at the store", || hold.held() == 1).await;
    resume.abort();
    assert!(resume.await.unwrap_err().is_cancelled());
    hold.release();
    until("running", || gate.state() == GateState::Running).await;
    assert_eq!(fill_of(&gate, 0).await.unwrap(), 3);
    gate.close().await.unwrap();
}

#[tokio::test]
async fn a_read_only_volume_is_suspended_and_resumed_and_nothing_is_written() {
    let (store, gate) = running().await;
    put(&gate, 0, 8).await.unwrap();
    gate.close().await.unwrap();
    let gate = open_as(store.clone(), OpenMode::ReadOnly).await;
    let (changes, watched) = (store.change_count(), keys(&gate));
    assert!(gate.info().read_only);
    gate.suspend().await.unwrap();
    assert!(gone(&watched));
    let mine = gate.clone();
    let read = park(&gate, 1, async move { fill_of(&mine, 0).await }).await;
    gate.resume(dek(&*store).await).await.unwrap();
    assert_eq!(soon("the read", read).await.unwrap().unwrap(), 8);
    assert!(gate.info().read_only);
    assert_eq!(put(&gate, 0, 1).await, Err(ExportError::ReadOnly));
    gate.suspend().await.unwrap();
    gate.close().await.unwrap();
    assert_eq!(store.change_count(), changes);
}
