//! Volumes on a memory store, for tests of the engine.
#![allow(dead_code, unreachable_pub, reason = "every test file that includes this uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::future::Future;
use std::sync::Arc;

use keymgmt::manager::{BoxFuture, KeyDescription, KeyError, KeyManager, SlotType, WrapContext, WrappedKey};
use keymgmt::secret::{Dek, Secret32};
use sealbd::cipher::Engine;
use sealbd::export::Export;
use sealbd::geometry::ByteRange;
use sealbd::store::SlotStore;
use sealbd::store::memory::MemoryStore;
use sealbd::volume::create::{Geometry, NewVolume};
use sealbd::volume::unlock::{Unlocked, read_header};
use sealbd::volume::{OpenMode, Volume, VolumeError};

/// A formatted volume in memory.
pub(crate) struct Disk {
    pub(crate) store: Arc<MemoryStore>,
}

/// Runs a future on a runtime of its own.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

impl Disk {
    /// A new volume of `export_bytes`.
    pub(crate) async fn new(export_bytes: u64) -> Self {
        let geometry = Geometry::for_export(export_bytes).unwrap();
        let store = Arc::new(MemoryStore::new(geometry.store_bytes()));
        format(store.clone(), geometry).await.unwrap();
        Self { store }
    }

    /// What a new process finds after the old one died without a word: its store, which the old
    /// volume, still at work, no longer reaches.
    pub(crate) async fn reopen(&mut self) -> Volume {
        self.store = Arc::new(self.store.snapshot());
        self.open().await
    }

    pub(crate) async fn open(&self) -> Volume {
        self.open_as(OpenMode::ReadWrite).await.unwrap()
    }

    pub(crate) async fn open_as(&self, mode: OpenMode) -> Result<Volume, VolumeError> {
        open(self.store.clone(), mode).await
    }
}

/// Opens the volume on any store.
pub(crate) async fn open(store: Arc<dyn SlotStore>, mode: OpenMode) -> Result<Volume, VolumeError> {
    let unlocked = unlock(&*store).await?;
    Volume::open(store, unlocked, mode).await
}

/// Reads and unlocks the header on any store.
pub(crate) async fn unlock(store: &dyn SlotStore) -> Result<Unlocked, VolumeError> {
    unlock_with(store, Engine::default()).await
}

/// Reads and unlocks the header, for an engine of choice.
pub(crate) async fn unlock_with(store: &dyn SlotStore, engine: Engine) -> Result<Unlocked, VolumeError> {
    let managers: Vec<Box<dyn KeyManager>> = vec![Box::new(FixedKey)];
    read_header(store).await?.unlock(engine, &managers).await
}

/// Makes a volume on any store.
pub(crate) async fn format(store: Arc<dyn SlotStore>, geometry: Geometry) -> Result<(), VolumeError> {
    let mut new = NewVolume::prepare(geometry, store.capability().best_unit, "test", Engine::default())?;
    new.add_key(&FixedKey, 0).await?;
    new.write(store).await.map(|_| ())
}

/// Reads the whole volume.
pub(crate) async fn read_all(volume: &Volume) -> Vec<u8> {
    let size = volume.info().size;
    read(volume, ByteRange::within(0, size, size).unwrap()).await
}

/// Reads a range whole.
pub(crate) async fn read(volume: &Volume, range: ByteRange) -> Vec<u8> {
    let mut buf = vec![0xee; usize::try_from(range.len()).unwrap()];
    let zeros = volume.read(range, &mut buf).await.unwrap();
    for zero in zeros {
        let at = usize::try_from(zero.offset() - range.offset()).unwrap();
        assert!(
            buf[at..][..usize::try_from(zero.len()).unwrap()].iter().all(|b| *b == 0),
            "a hole reads as zeros"
        );
    }
    buf
}

/// A key manager whose key encrypts nothing: the engine's tests are not about keys.
pub(crate) struct FixedKey;

impl KeyManager for FixedKey {
    fn slot_type(&self) -> SlotType {
        SlotType::Keyfile
    }

    fn wrap<'a>(&'a self, dek: &'a Dek, _: WrapContext) -> BoxFuture<'a, Result<WrappedKey, KeyError>> {
        let wrapped = dek.0.expose().iter().map(|byte| byte ^ 0x5a).collect();
        let key =
            WrappedKey { slot_type: SlotType::Keyfile, kek_uri: String::new(), wrapped, private: Vec::new() };
        Box::pin(async move { Ok(key) })
    }

    fn unwrap<'a>(
        &'a self,
        key: &'a WrappedKey,
        _: WrapContext,
    ) -> BoxFuture<'a, Result<Option<Dek>, KeyError>> {
        // Other keyfiles' wraps are longer.
        let bytes: Result<[u8; 32], _> = key.wrapped.as_slice().try_into();
        let dek = bytes.ok().map(|mut bytes| {
            bytes.iter_mut().for_each(|byte| *byte ^= 0x5a);
            Dek(Secret32::take(&mut bytes))
        });
        Box::pin(async move { Ok(dek) })
    }

    fn describe(&self, _: &WrappedKey) -> Result<KeyDescription, KeyError> {
        Ok(KeyDescription::own("fixed".into()))
    }

    fn rotate<'a>(&'a self, _current: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(async { Err(KeyError::Unsupported("fixed".into())) })
    }

    fn destroy<'a>(&'a self, _: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(async { Err(KeyError::Unsupported("fixed".into())) })
    }
}

/// Every invariant that a check knows holds.
pub(crate) async fn check(volume: &Volume) {
    let report = volume.check(true, |_| {}).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
}
