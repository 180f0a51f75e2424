//! What a hostile or broken store can do to the structures of a volume, one damage per test, and what
//! exactly comes of it. The rule behind all of them: a read gives what was written, or an error.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking; its sizes are small"
)]

#[path = "common/anatomy.rs"]
mod anatomy;
#[path = "common/volumes.rs"]
mod volumes;

#[path = "tamper/everywhere.rs"]
mod everywhere;
#[path = "tamper/header.rs"]
mod header;
#[path = "tamper/index.rs"]
mod index;
#[path = "tamper/log.rs"]
mod log;
#[path = "tamper/reclaimed.rs"]
mod reclaimed;
#[path = "tamper/records.rs"]
mod records;
#[path = "tamper/roots.rs"]
mod roots;

use std::sync::Arc;

use anatomy::{Anatomy, Place, flip, flip_at, replay, swap, truncate, zero};
use sealbd::cipher::Engine;
use sealbd::export::{Durability, Export, ExportError};
use sealbd::format::FormatError;
use sealbd::format::header::{HEADER_LEN, HEADER_OFFSETS};
use sealbd::format::root::Root;
use sealbd::geometry::ByteRange;
use sealbd::payload::{Payload, RECORD_LEN};
use sealbd::store::memory::MemoryStore;
use sealbd::volume::check::Structure;
use sealbd::volume::unlock::write_header;
use sealbd::volume::{OpenMode, Volume, VolumeError};
use volumes::Disk;

const SIZE: u64 = 8 << 20;
const SECTORS: u64 = SIZE / 4096;

/// A store, and what a client may see on it.
struct Scene {
    store: Arc<MemoryStore>,
    /// The byte that fills each sector.
    model: Vec<u8>,
    anatomy: Anatomy,
}

impl Scene {
    async fn of(store: &MemoryStore, model: Vec<u8>) -> Self {
        Self { store: Arc::new(store.snapshot()), model, anatomy: Anatomy::of(store).await }
    }

    async fn open(&self) -> Result<Volume, VolumeError> {
        Disk { store: self.store.clone() }.open_as(OpenMode::ReadOnly).await
    }

    /// Opening for writing must fail the same way as for reading, and leave the store alone.
    async fn refusal(&self) -> VolumeError {
        let before = self.store.change_count();
        let refused = Disk { store: self.store.clone() }.open_as(OpenMode::ReadWrite).await;
        let error = refused.err().expect("opens for writing");
        assert_eq!(self.store.change_count(), before, "a refused volume is not written to");
        assert_eq!(error.to_string(), self.open().await.err().expect("opens for reading").to_string());
        error
    }

    /// Opens the volume, which must go well, and reads every sector; returns the errors by sector.
    async fn errors(&self) -> Vec<(u64, ExportError)> {
        let volume = self.open().await.unwrap();
        sector_errors(&volume, &self.model).await
    }

    fn structure_damage(&self, error: &VolumeError) -> (&'static str, u64, FormatError) {
        match error {
            VolumeError::Damaged { structure, offset, source } => (structure, *offset, source.clone()),
            other => panic!("another error: {other}"),
        }
    }
}

/// Reads every sector by itself: it is what was written, or an error.
async fn sector_errors(volume: &Volume, model: &[u8]) -> Vec<(u64, ExportError)> {
    let mut errors = Vec::new();
    for lba in 0..SECTORS {
        let mut sector = [0xee; 4096];
        match volume.read(sectors(lba, 1), &mut sector).await {
            Ok(_) => assert!(sector == [model[lba as usize]; 4096], "sector {lba} is {}", sector[0]),
            Err(error) => errors.push((lba, error)),
        }
    }
    errors
}

fn sectors(lba: u64, count: u64) -> ByteRange {
    ByteRange::within(lba * 4096, count * 4096, SIZE).unwrap()
}

async fn write(volume: &Volume, model: &mut [u8], lba: u64, count: u64, fill: u8) {
    let range = sectors(lba, count);
    let data = vec![fill; usize::try_from(range.len()).unwrap()];
    volume.write(Payload::copy_of(range, &data), Durability::Accepted).await.unwrap();
    model[lba as usize..][..count as usize].fill(fill);
}

fn damaged_sector(place: Place) -> ExportError {
    let source = FormatError::Authentication("sector");
    let error = VolumeError::Damaged { structure: "sector", offset: place.offset, source };
    ExportError::Io(error.to_string())
}

fn damaged_page(place: Place) -> ExportError {
    let source = FormatError::Authentication("index page");
    let error = VolumeError::Damaged { structure: "index page", offset: place.offset, source };
    ExportError::Io(error.to_string())
}

/// A volume that was closed well: everything is in the tree. Leaves 0, 1 and 3 hold data, twice
/// overwritten in part.
async fn closed() -> Scene {
    let (disk, model, _) = closed_with_history().await;
    Scene::of(&disk.store, model).await
}

/// The same, with an older state of the same store: closed well before the last writes.
async fn closed_with_history() -> (Disk, Vec<u8>, Scene) {
    let disk = Disk::new(SIZE).await;
    let mut model = vec![0; SECTORS as usize];
    let volume = disk.open().await;
    write(&volume, &mut model, 0, 40, 1).await;
    write(&volume, &mut model, 700, 5, 2).await;
    volume.close().await.unwrap();
    let old = Scene::of(&disk.store, model.clone()).await;
    let volume = disk.open().await;
    write(&volume, &mut model, 20, 30, 3).await;
    write(&volume, &mut model, 1600, 2, 4).await;
    volume.checkpoint().await.unwrap();
    write(&volume, &mut model, 30, 2, 5).await;
    volume.close().await.unwrap();
    (disk, model, old)
}

/// A volume whose server died: in its last session chunk after chunk was written and flushed, the last
/// one only written. Sectors 0..8 are flushed, 8 is not.
async fn died() -> Scene {
    // Larger than what is looked at: with few slots a checkpoint could come in between.
    let disk = Disk::new(4 * SIZE).await;
    let mut model = vec![0; SECTORS as usize];
    let volume = disk.open().await;
    for lba in 0..8 {
        write(&volume, &mut model, lba, 1, 10 + lba as u8).await;
        volume.flush().await.unwrap();
    }
    write(&volume, &mut model, 8, 1, 99).await;
    let scene = Scene::of(&disk.store, model).await;
    assert_eq!(scene.anatomy.log.len(), 9);
    scene
}

/// Recomputes the checksum of a header copy, as whoever alters one on purpose would.
fn fix_header_checksum(store: &MemoryStore, copy: u64) {
    let mut image = store.read_raw(copy, HEADER_LEN);
    image[4092..4096].fill(0);
    let crc = crc32c::crc32c(&image);
    store.write_raw(copy + 4092, &crc.to_le_bytes());
}

/// Recomputes the checksum at the end of a ring block or segment header.
fn fix_block_checksum(store: &MemoryStore, offset: u64) {
    let crc = crc32c::crc32c(&store.read_raw(offset, 4092));
    store.write_raw(offset + 4092, &crc.to_le_bytes());
}

#[tokio::test]
async fn undamaged_volumes_read_without_error() {
    for scene in [closed().await, died().await] {
        assert_eq!(scene.errors().await, []);
    }
}

/// Every block of 4096 bytes that is not zero.
fn written_blocks(store: &MemoryStore, len: u64) -> Vec<u64> {
    (0..len).step_by(4096).filter(|at| store.read_raw(*at, 4096).iter().any(|byte| *byte != 0)).collect()
}

/// Whatever the volume says to the damage, it shows nothing but what was written.
async fn shows_nothing_wrong(store: MemoryStore, model: &[u8]) {
    let disk = Disk { store: Arc::new(store) };
    if let Ok(volume) = disk.open_as(OpenMode::ReadOnly).await {
        sector_errors(&volume, model).await;
    }
}
