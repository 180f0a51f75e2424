//! A store whose changes can be held back, so that a test decides what is under way.

use bytes::Bytes;
use tokio::sync::watch;

use super::*;
use crate::store::{BoxFuture, Capability, Persist, StoreError};

/// Holds changes back while it is told to; reads go through.
pub(in crate::control) struct HoldStore {
    inner: Arc<MemoryStore>,
    holding: watch::Sender<bool>,
    held: AtomicUsize,
}

impl HoldStore {
    pub(in crate::control) fn new(inner: Arc<MemoryStore>) -> Self {
        Self { inner, holding: watch::Sender::new(false), held: AtomicUsize::new(0) }
    }

    /// Changes wait from now on.
    pub(in crate::control) fn hold(&self) {
        self.holding.send_replace(true);
    }

    /// They go on.
    pub(in crate::control) fn release(&self) {
        self.holding.send_replace(false);
    }

    /// How many wait.
    pub(in crate::control) fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    async fn pass(&self) {
        let mut holding = self.holding.subscribe();
        self.held.fetch_add(1, Ordering::SeqCst);
        let _ = holding.wait_for(|holding| !holding).await;
        self.held.fetch_sub(1, Ordering::SeqCst);
    }
}

impl SlotStore for HoldStore {
    fn capability(&self) -> Capability {
        self.inner.capability()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn try_read_at(&self, offset: u64, buf: &mut [u8]) -> Option<Result<(), StoreError>> {
        self.inner.try_read_at(offset, buf)
    }

    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'_, Result<Vec<u8>, StoreError>> {
        self.inner.read_at(offset, len)
    }

    fn write_at(
        &self,
        offset: u64,
        parts: Vec<Bytes>,
        persist: Persist,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.pass().await;
            self.inner.write_at(offset, parts, persist).await
        })
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.pass().await;
            self.inner.sync().await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.discard(offset, len)
    }
}
