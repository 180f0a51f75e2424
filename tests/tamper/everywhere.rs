//! Any byte at all.

use super::*;

#[tokio::test]
async fn one_flipped_bit_anywhere_in_a_closed_volume_never_shows_anything_wrong() {
    let scene = closed().await;
    let blocks = written_blocks(&scene.store, scene.anatomy.header.store_bytes());
    assert!(blocks.len() > 100);
    for (number, block) in (0u64..).zip(blocks) {
        let store = scene.store.snapshot();
        // Another byte of every block, from its start to its end.
        flip_at(&store, block + number * 97 % 4096);
        shows_nothing_wrong(store, &scene.model).await;
    }
}

#[tokio::test]
async fn every_block_zeroed_in_a_closed_volume_never_shows_anything_wrong() {
    let scene = closed().await;
    for block in written_blocks(&scene.store, scene.anatomy.header.store_bytes()) {
        let store = scene.store.snapshot();
        zero(&store, Place { offset: block, len: 4096 });
        shows_nothing_wrong(store, &scene.model).await;
    }
}

#[tokio::test]
async fn no_plaintext_and_no_key_is_on_the_store() {
    let disk = Disk::new(SIZE).await;
    let volume = disk.open().await;
    let text: Vec<u8> = (0u32..4096).flat_map(|i| format!("canary{i:08} ").into_bytes()).collect();
    let lens = [1, 511, 4096, 5000, 60_000];
    for (at, len) in (0u64..).zip(lens) {
        let range = ByteRange::within(at * 100_001, len, SIZE).unwrap();
        let data = &text[..usize::try_from(len).unwrap()];
        volume.write(Payload::copy_of(range, data), Durability::Durable).await.unwrap();
        if at % 2 == 0 {
            volume.checkpoint().await.unwrap();
        }
    }
    volume.close().await.unwrap();
    let Anatomy { dek, header, .. } = Anatomy::of(&disk.store).await;
    let size = header.store_bytes();
    let bytes = disk.store.read_raw(0, usize::try_from(size).unwrap());
    let runs: std::collections::HashSet<&[u8]> = text.windows(8).chain(dek.windows(8)).collect();
    let found = bytes.windows(8).position(|run| runs.contains(run));
    assert_eq!(found, None, "a run of 8 bytes of plaintext or key");
}
