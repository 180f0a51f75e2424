//! Roots that are authentic and wrong: what a bug, or a store that loses single writes, could leave behind.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "every test uses a part of these")]

use sealbd::cipher::{OpenSegmentKey, TAG_LEN, UidSource};
use sealbd::format::root::{BlobPointer, RingBlock, Root, seal_table_part};
use sealbd::format::segment::SegmentKind;
use sealbd::format::table::TablePart;
use sealbd::store::memory::MemoryStore;

use super::anatomy::Anatomy;

/// Writes the next root with what `change` makes of the newest one and its table. It lies in the last slot, which is
/// in no use.
pub(crate) async fn next_root(store: &MemoryStore, change: impl FnOnce(&mut Root, &mut TablePart)) {
    let Anatomy { header, keys, newest, mut root, rows, .. } = Anatomy::of(store).await;
    let phys = header.slot_offset(header.slots - 1);
    assert!(rows.iter().flatten().all(|row| row.phys != phys), "the last slot is free");
    let place = header.ring_offset + newest.generation % u64::from(header.ring_slots) * 4096;
    let (_, mac) = RingBlock::decode(&store.read_raw(place, 4096), &keys).unwrap().unwrap();
    root.generation += 1;
    root.previous.insert(0, mac);
    root.previous.truncate(16);
    let mut part = TablePart { first: 0, rows };
    change(&mut root, &mut part);

    let uid = UidSource::new(sealbd::cipher::Surroundings::system(b"forge".to_vec()))
        .unwrap()
        .fresh(&keys)
        .unwrap();
    let id = uid.uid();
    let mut key =
        OpenSegmentKey::create(&keys, SegmentKind::Index as u8, uid, u64::from(header.segment_bytes));
    let pointer = |offset: u64, len: usize| BlobPointer {
        uid: id,
        phys,
        epoch: header.active_epoch,
        offset: u32::try_from(offset).unwrap(),
        len: u32::try_from(len).unwrap(),
    };
    let plaintext = part.encode();
    let len = (plaintext.len() + TAG_LEN).next_multiple_of(16);
    let table = key.reserve(len as u64).unwrap();
    let (offset, plain_len) = (table.offset(), plaintext.len());
    root.table = vec![pointer(offset, plain_len + TAG_LEN)];
    let mut table = table;
    let sealed = seal_table_part(0, plaintext, table.split_front((plain_len + TAG_LEN) as u64));
    store.write_raw(phys + offset, &sealed);
    let mut rest = key.reserve((root.sealed_len() as u64).next_multiple_of(16)).unwrap();
    let payload = pointer(rest.offset(), root.sealed_len());
    let sealed = root.seal(rest.split_front(root.sealed_len() as u64));
    store.write_raw(phys + u64::from(payload.offset), &sealed);
    let block = RingBlock { generation: root.generation, payload, ..newest };
    let (bytes, _) = block.encode(&keys);
    let slot = root.generation % u64::from(header.ring_slots);
    store.write_raw(header.ring_offset + slot * 4096, &bytes);
}
