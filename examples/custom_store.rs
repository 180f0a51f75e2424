//! A store of one's own: keeps 4 KiB blocks in a map, carries an encrypted volume, and turns hostile for a moment.
//!
//! Run it with `cargo run --example custom_store`. A store that is to be relied on is held by
//! `tests/store_conformance.rs` besides.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use keymgmt::keyfile::Keyfile;
use keymgmt::manager::KeyManager;
use keymgmt::secret::Secret32;
use sealbd::cipher::Engine;
use sealbd::export::{Durability, Export, ExportError};
use sealbd::geometry::ByteRange;
use sealbd::payload::Payload;
use sealbd::store::{BoxFuture, Capability, Persist, SlotStore, StoreError};
use sealbd::volume::create::{Geometry, NewVolume};
use sealbd::volume::unlock::read_header;
use sealbd::volume::{OpenMode, Volume};

/// Unit of the map; a write is made of whole ones.
const BLOCK: u32 = 4096;
const BLOCK_LEN: usize = BLOCK as usize;
/// Longest single read or write in bytes; the volume splits above it.
const IO_BYTES_MAX: u32 = 8 << 20;
/// Size that clients of the volume see, in bytes.
const EXPORT_BYTES: u64 = 16 << 20;
/// What is written; looked for in the store afterwards.
const TEXT: &[u8] = b"The quick brown fox jumps over the lazy dog.";

type Blocks = HashMap<u64, Vec<u8>>;

/// Blocks by number. One that was never written is not there and reads as zeros.
struct BlockMap {
    size: u64,
    blocks: Mutex<Blocks>,
}

impl BlockMap {
    fn new(size: u64) -> Self {
        Self { size, blocks: Mutex::default() }
    }

    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(StoreError::OutOfRange { offset, len }),
        }
    }

    fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        self.check_range(offset, len as u64)?;
        let blocks = self.blocks();
        let zeros = vec![0; BLOCK_LEN];
        let first = offset / u64::from(BLOCK);
        let last = (offset + len as u64).div_ceil(u64::from(BLOCK));
        let whole: Vec<u8> =
            (first..last).flat_map(|number| blocks.get(&number).unwrap_or(&zeros)).copied().collect();
        let skip = usize::try_from(offset % u64::from(BLOCK)).expect("below 4096");
        Ok(whole[skip..skip + len].to_vec())
    }

    fn write(&self, offset: u64, parts: &[Bytes]) -> Result<(), StoreError> {
        let bytes = parts.concat();
        self.check_range(offset, bytes.len() as u64)?;
        let mut blocks = self.blocks();
        for (number, block) in (offset / u64::from(BLOCK)..).zip(bytes.chunks_exact(BLOCK_LEN)) {
            blocks.insert(number, block.to_vec());
        }
        Ok(())
    }

    /// Flips one bit of every block from byte `from` on; a second call undoes the first.
    fn flip_bits(&self, from: u64) {
        let behind = |number: &u64| number * u64::from(BLOCK) >= from;
        self.blocks().iter_mut().filter(|(number, _)| behind(number)).for_each(|(_, block)| block[2048] ^= 1);
    }

    fn holds(&self, text: &[u8]) -> bool {
        self.blocks().values().any(|block| block.windows(text.len()).any(|window| window == text))
    }
}

impl SlotStore for BlockMap {
    fn capability(&self) -> Capability {
        Capability {
            size: self.size,
            write_unit: BLOCK,
            best_unit: BLOCK,
            io_bytes_max: IO_BYTES_MAX,
            discard: true,
            read_only: false,
            prefers_written: false,
        }
    }

    fn describe(&self) -> String {
        "a map of blocks".into()
    }

    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'_, Result<Vec<u8>, StoreError>> {
        Box::pin(async move { self.read(offset, len) })
    }

    fn write_at(
        &self,
        offset: u64,
        parts: Vec<Bytes>,
        _persist: Persist,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        // A map is as durable after this as it will ever be.
        Box::pin(async move { self.write(offset, &parts) })
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.check_range(offset, len)?;
            // Whole blocks only: the rest of a block may be somebody's.
            let whole = offset.div_ceil(u64::from(BLOCK))..(offset + len) / u64::from(BLOCK);
            self.blocks().retain(|number, _| !whole.contains(number));
            Ok(())
        })
    }
}

async fn open(store: Arc<BlockMap>, keys: &[Box<dyn KeyManager>]) -> Result<Volume, Box<dyn Error>> {
    let unlocked = read_header(&*store).await?.unlock(Engine::default(), keys).await?;
    Ok(Volume::open(store, unlocked, OpenMode::ReadWrite).await?)
}

async fn read(volume: &Volume, range: ByteRange) -> Result<Vec<u8>, ExportError> {
    let mut bytes = vec![0; TEXT.len()];
    volume.read(range, &mut bytes).await?;
    Ok(bytes)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let geometry = Geometry::for_export(EXPORT_BYTES)?;
    let store = Arc::new(BlockMap::new(geometry.store_bytes()));
    let key = Keyfile::from_secret(Secret32::generate()?);
    let mut new = NewVolume::prepare(geometry, BLOCK, "custom store", Engine::default())?;
    new.add_key(&key, 0).await?;
    let header = new.write(store.clone()).await?;
    report(&format!("a volume of {EXPORT_BYTES} bytes on {}", store.describe()));

    let keys: [Box<dyn KeyManager>; 1] = [Box::new(key)];
    let range = ByteRange::within(10_000, TEXT.len() as u64, EXPORT_BYTES).expect("inside the volume");
    let volume = open(store.clone(), &keys).await?;
    volume.write(Payload::copy_of(range, TEXT), Durability::Durable).await?;
    assert_eq!(read(&volume, range).await?, TEXT);
    assert!(!store.holds(TEXT), "nothing but ciphertext leaves for the store");
    report("wrote and read back a text; the store does not hold it");

    store.flip_bits(header.data_start);
    match read(&volume, range).await {
        Err(ExportError::Io(why)) => report(&format!("with a bit flipped in every block: {why}")),
        other => return Err(format!("altered data must not be read: {other:?}").into()),
    }
    store.flip_bits(header.data_start);
    volume.close().await?;

    let volume = open(store, &keys).await?;
    assert_eq!(read(&volume, range).await?, TEXT);
    report("restored, closed and opened again: the text is there");
    volume.close().await?;
    Ok(())
}

#[expect(clippy::print_stdout, reason = "an example shows what happens")]
fn report(line: &str) {
    println!("{line}");
}
