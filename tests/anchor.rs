//! Anchors: one contract for all of them, and what a volume that has one refuses: a store that was put back
//! as a whole, whenever and however far (docs/FORMAT.md §13).
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "common/anatomy.rs"]
mod anatomy;
#[path = "common/volumes.rs"]
mod volumes;

#[path = "anchor/contract.rs"]
mod contract;
#[path = "anchor/power.rs"]
mod power;
#[path = "anchor/rollback.rs"]
mod rollback;

use std::sync::Arc;

use sealbd::export::{Durability, Export};
use sealbd::geometry::ByteRange;
use sealbd::payload::Payload;
use sealbd::store::memory::MemoryStore;
use sealbd::volume::anchor::{Anchor, Anchored, Anchoring, MemoryAnchor, OnRollback};
use sealbd::volume::{OpenMode, Volume, VolumeError};

const SIZE: u64 = 8 << 20;

/// A volume and the anchor of its host.
struct Host {
    store: Arc<MemoryStore>,
    anchor: Arc<MemoryAnchor>,
}

impl Host {
    async fn new() -> Self {
        Self { store: volumes::Disk::new(SIZE).await.store, anchor: Arc::default() }
    }

    async fn open_as(&self, mode: OpenMode, on_rollback: OnRollback) -> Result<Volume, VolumeError> {
        let unlocked = volumes::unlock(&*self.store).await?;
        let anchoring = Anchoring { anchor: self.anchor.clone(), on_rollback };
        let (header, keys) = (unlocked.header, unlocked.keys);
        Volume::open_authentic(self.store.clone(), header, keys, mode, Some(anchoring)).await
    }

    async fn open(&self) -> Volume {
        self.open_as(OpenMode::ReadWrite, OnRollback::Refuse).await.unwrap()
    }

    /// Opening must fail in both modes, and write nothing.
    async fn refusal(&self) -> VolumeError {
        let before = self.store.change_count();
        let reading = self.open_as(OpenMode::ReadOnly, OnRollback::Refuse).await.err().expect("reads");
        let writing = self.open_as(OpenMode::ReadWrite, OnRollback::Refuse).await.err().expect("writes");
        assert_eq!(reading.to_string(), writing.to_string());
        assert_eq!(self.store.change_count(), before, "a refused volume is not written to");
        writing
    }

    /// The same host after somebody put the store back to a state that was kept.
    fn put_back(self, state: &MemoryStore) -> Self {
        Self { store: Arc::new(state.snapshot()), ..self }
    }

    async fn anchored(&self) -> Anchored {
        let volume = volumes::unlock(&*self.store).await.unwrap().header.volume;
        self.anchor.load(volume).await.unwrap().expect("anchored")
    }

    /// One session that fills the first sector, closed well.
    async fn session(&self, fill: u8) {
        let volume = self.open().await;
        write(&volume, 0, fill).await;
        volume.close().await.unwrap();
    }
}

fn sector(lba: u64) -> ByteRange {
    ByteRange::within(lba * 4096, 4096, SIZE).unwrap()
}

async fn write(volume: &Volume, lba: u64, fill: u8) {
    volume.write(Payload::copy_of(sector(lba), &[fill; 4096]), Durability::Accepted).await.unwrap();
}

async fn first_sector(volume: &Volume) -> u8 {
    let bytes = volumes::read(volume, sector(0)).await;
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a sector of one fill");
    bytes[0]
}
