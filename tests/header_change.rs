//! Keyslots of a volume that is in use: what `replace_header` takes, refuses, and leaves after a power cut.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/volumes.rs"]
mod volumes;

use std::sync::Arc;

use keymgmt::keyfile::Keyfile;
use keymgmt::manager::KeyManager;
use keymgmt::secret::Secret32;
use sealbd::cipher::Engine;
use sealbd::export::{Durability, Export};
use sealbd::format::header::{HEADER_OFFSETS, Header};
use sealbd::geometry::ByteRange;
use sealbd::payload::Payload;
use sealbd::store::memory::MemoryStore;
use sealbd::store::{Persist, SlotStore};
use sealbd::volume::create::add_key;
use sealbd::volume::unlock::{Unlocked, read_header};
use sealbd::volume::{OpenMode, Volume, VolumeError};
use volumes::Disk;

const SIZE: u64 = 4 << 20;

fn new_key() -> Keyfile {
    Keyfile::from_secret(Secret32::take(&mut [9; 32]))
}

/// The next header of the volume: the first keyslot replaced by one of the new key.
async fn next_header(disk: &Disk) -> (Unlocked, Vec<u8>) {
    let mut unlocked = volumes::unlock(&*disk.store).await.unwrap();
    let Unlocked { header, keys, dek, .. } = &mut unlocked;
    header.keyslots[0] = None;
    add_key(header, dek, keys, &new_key(), 0).await.unwrap();
    header.generation += 1;
    let bytes = header.encode(keys);
    (unlocked, bytes)
}

async fn opens_with_new_key(store: &dyn SlotStore) -> bool {
    let managers: Vec<Box<dyn KeyManager>> = vec![Box::new(new_key())];
    read_header(store).await.unwrap().unlock(Engine::default(), &managers).await.is_ok()
}

fn range() -> ByteRange {
    ByteRange::within(0, 8192, SIZE).unwrap()
}

async fn write(volume: &Volume, fill: u8) {
    volume.write(Payload::copy_of(range(), &[fill; 8192]), Durability::Durable).await.unwrap();
}

async fn first_byte(volume: &Volume) -> u8 {
    volumes::read(volume, range()).await[0]
}

fn refusal(result: Result<Header, VolumeError>) -> String {
    match result {
        Err(error @ VolumeError::Refused(_)) => error.to_string(),
        other => panic!("{:?}", other.map(|header| header.generation)),
    }
}

#[test]
fn the_new_key_opens_the_volume_the_old_one_does_not_and_the_old_header_is_refused() {
    volumes::run(async {
        let disk = Disk::new(SIZE).await;
        let volume = disk.open().await;
        write(&volume, 1).await;
        let old = volumes::unlock(&*disk.store).await.unwrap();
        let old_bytes = old.header.encode(&old.keys);
        let (_, bytes) = next_header(&disk).await;
        let header = volume.replace_header(&bytes).await.unwrap();
        assert_eq!(header, volume.newest_header().await.unwrap());
        write(&volume, 2).await;
        volume.close().await.unwrap();
        assert!(volumes::unlock(&*disk.store).await.is_err(), "the old key opens nothing");
        assert!(opens_with_new_key(&*disk.store).await);
        for offset in HEADER_OFFSETS {
            disk.store.write_at(offset, vec![old_bytes.clone().into()], Persist::Durable).await.unwrap();
        }
        let refused = disk.open_as(OpenMode::ReadOnly).await.err().unwrap();
        assert!(matches!(refused, VolumeError::HeaderRollback { .. }), "{refused}");
    });
}

#[test]
fn only_the_very_next_generation_is_taken() {
    volumes::run(async {
        let disk = Disk::new(SIZE).await;
        let volume = disk.open().await;
        let (unlocked, bytes) = next_header(&disk).await;
        volume.replace_header(&bytes).await.unwrap();
        assert!(refusal(volume.replace_header(&bytes).await).contains("is not the next"), "replayed");
        let mut far = unlocked.header.clone();
        far.generation += 2;
        assert!(
            refusal(volume.replace_header(&far.encode(&unlocked.keys)).await).contains("is not the next")
        );
        far.generation = u64::MAX;
        assert!(
            refusal(volume.replace_header(&far.encode(&unlocked.keys)).await).contains("is not the next")
        );
    });
}

#[test]
fn a_header_that_changes_more_than_keyslots_is_refused() {
    volumes::run(async {
        let disk = Disk::new(SIZE).await;
        let volume = disk.open().await;
        let (Unlocked { header, keys, .. }, _) = next_header(&disk).await;
        let changes: [fn(&mut Header); 4] = [
            |header| header.export_bytes -= 4096,
            |header| header.slots -= 1,
            |header| header.volume[0] ^= 1,
            |header| header.active_epoch += 1,
        ];
        let before = disk.store.change_count();
        for change in changes {
            let mut changed = header.clone();
            change(&mut changed);
            assert!(
                refusal(volume.replace_header(&changed.encode(&keys)).await).contains("more than keyslots")
            );
        }
        assert_eq!(disk.store.change_count(), before, "nothing was written");
    });
}

#[test]
fn a_header_that_is_not_authentic_is_refused() {
    volumes::run(async {
        let (disk, other) = (Disk::new(SIZE).await, Disk::new(SIZE).await);
        let volume = disk.open().await;
        let (unlocked, bytes) = next_header(&disk).await;
        let (theirs, foreign) = next_header(&other).await;
        let forged = unlocked.header.encode(&theirs.keys);
        for wrong in [foreign, forged, bytes[..1000].to_vec(), Vec::new()] {
            let result = volume.replace_header(&wrong).await;
            assert!(matches!(result, Err(VolumeError::Damaged { .. })), "{:?}", result.err());
        }
        let readers = disk.open_as(OpenMode::ReadOnly).await.unwrap();
        assert!(refusal(readers.replace_header(&bytes).await).contains("reading only"));
    });
}

/// The change is tried with the store frozen at every one of its changes; what a cut there leaves opens with the
/// old key or with the new one, and holds what was made durable.
#[test]
fn a_power_cut_anywhere_leaves_the_old_key_or_the_new_one() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut old, mut new) = (0, 0);
        for at in 0.. {
            let disk = Disk::new(SIZE).await;
            let volume = disk.open().await;
            write(&volume, 7).await;
            let (_, bytes) = next_header(&disk).await;
            disk.store.freeze_at(at);
            let result = volume.replace_header(&bytes).await;
            let survivors: [MemoryStore; 2] = [disk.store.crash(&mut |_| 0), disk.store.crash(&mut |_| 1)];
            for store in survivors {
                let by_new = opens_with_new_key(&store).await;
                assert_ne!(
                    by_new,
                    volumes::unlock(&store).await.is_ok(),
                    "exactly one key opens, cut at {at}"
                );
                assert!(by_new || result.is_err(), "what was reported as done is done, cut at {at}");
                *(if by_new { &mut new } else { &mut old }) += 1;
                let managers: Vec<Box<dyn KeyManager>> =
                    vec![Box::new(new_key()), Box::new(volumes::FixedKey)];
                let unlocked = read_header(&store).await.unwrap().unlock(Engine::default(), &managers).await;
                let volume =
                    Volume::open(Arc::new(store), unlocked.unwrap(), OpenMode::ReadWrite).await.unwrap();
                assert_eq!(first_byte(&volume).await, 7);
            }
            if result.is_ok() {
                assert!(
                    old > 2 && new > 2,
                    "{at} places to cut: {old} with the old key, {new} with the new one"
                );
                break;
            }
        }
    });
}
