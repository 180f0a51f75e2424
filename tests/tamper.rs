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

// The header.

#[tokio::test]
async fn header_one_copy_flipped_zeroed_or_cut_opens_by_the_other() {
    for copy in HEADER_OFFSETS {
        for damage in [flip, zero, truncate] {
            let scene = closed().await;
            damage(&scene.store, Place { offset: copy, len: 8192 });
            assert_eq!(scene.errors().await, []);
        }
    }
}

#[tokio::test]
async fn header_both_copies_flipped_is_damage_of_the_first() {
    let scene = closed().await;
    HEADER_OFFSETS.into_iter().for_each(|copy| flip_at(&scene.store, copy + 20));
    let damage = scene.structure_damage(&scene.refusal().await);
    assert_eq!(damage, ("header", 0, FormatError::Checksum("header")));
}

#[tokio::test]
async fn header_both_copies_zeroed_is_no_volume() {
    let scene = closed().await;
    for offset in HEADER_OFFSETS {
        zero(&scene.store, Place { offset, len: HEADER_LEN });
    }
    assert!(matches!(scene.refusal().await, VolumeError::NotAVolume));
}

#[tokio::test]
async fn header_altered_with_a_right_checksum_does_not_authenticate() {
    // uuid and salt lead to other keys, so the keyslot's commitment notices first.
    for (field, offset) in [("align", 73), ("export size", 84), ("label", 161), ("keyslot's creation", 4105)]
    {
        let scene = closed().await;
        for copy in HEADER_OFFSETS {
            if field == "align" {
                scene.store.write_raw(copy + 72, &512u32.to_le_bytes());
            } else {
                scene.store.write_raw(copy + offset, &[1]);
            }
            fix_header_checksum(&scene.store, copy);
        }
        let damage = scene.structure_damage(&scene.refusal().await);
        assert_eq!(damage, ("header", 0, FormatError::Authentication("header")), "{field}");
    }
}

#[tokio::test]
async fn header_with_another_uuid_or_salt_fails_at_the_commitment() {
    for offset in [16, 128] {
        let scene = closed().await;
        for copy in HEADER_OFFSETS {
            flip_at(&scene.store, copy + offset);
            fix_header_checksum(&scene.store, copy);
        }
        let VolumeError::NoKeyFits(lines) = scene.refusal().await else { panic!("another error") };
        assert_eq!(lines, ["slot 0 (keyfile): the keyslot was altered (commitment differs)"]);
    }
}

#[tokio::test]
async fn header_asking_for_the_unknown_is_refused_by_name() {
    let cases: [(u64, &[u8], FormatError); 4] = [
        (8, &[2], FormatError::Version { structure: "header", found: 2, supported: 1 }),
        (10, &[7], FormatError::Version { structure: "header (minor)", found: 7, supported: 0 }),
        (56, &[0x40], FormatError::Incompatible(0x40)),
        (64, &[9], FormatError::Suite(9)),
    ];
    for (offset, bytes, expected) in cases {
        let scene = closed().await;
        for copy in HEADER_OFFSETS {
            scene.store.write_raw(copy + offset, bytes);
            fix_header_checksum(&scene.store, copy);
        }
        match scene.refusal().await {
            VolumeError::Unsupported(found) => assert_eq!(found, expected),
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn header_of_an_older_generation_is_refused_once_a_newer_root_exists() {
    let disk = Disk::new(SIZE).await;
    let old = disk.store.snapshot();
    let unlocked = volumes::unlock_with(&*disk.store, Engine::default()).await.unwrap();
    let mut header = unlocked.header;
    write_header(&*disk.store, &mut header, &unlocked.keys).await.unwrap();
    disk.open().await.close().await.unwrap();
    let scene = Scene::of(&disk.store, vec![0; SECTORS as usize]).await;
    for offset in HEADER_OFFSETS {
        replay(&scene.store, Place { offset, len: HEADER_LEN }, &old);
    }
    let error = scene.refusal().await;
    assert!(matches!(error, VolumeError::HeaderRollback { found: 1, known: 2 }), "{error}");
}

#[tokio::test]
async fn keyslot_commitment_flipped_is_an_altered_keyslot() {
    let scene = closed().await;
    for copy in HEADER_OFFSETS {
        flip_at(&scene.store, copy + 4096 + 1304);
        fix_header_checksum(&scene.store, copy);
    }
    let VolumeError::NoKeyFits(lines) = scene.refusal().await else { panic!("another error") };
    assert_eq!(lines, ["slot 0 (keyfile): the keyslot was altered (commitment differs)"]);
}

#[tokio::test]
async fn keyslot_wrapped_key_flipped_yields_no_key() {
    // The test's manager does not authenticate its wraps: the commitment catches what it lets through.
    let scene = closed().await;
    for copy in HEADER_OFFSETS {
        flip_at(&scene.store, copy + 4096 + 280);
        fix_header_checksum(&scene.store, copy);
    }
    let VolumeError::NoKeyFits(lines) = scene.refusal().await else { panic!("another error") };
    assert_eq!(lines, ["slot 0 (keyfile): the keyslot was altered (commitment differs)"]);
}

#[tokio::test]
async fn keyslot_zeroed_leaves_no_key() {
    let scene = closed().await;
    for copy in HEADER_OFFSETS {
        zero(&scene.store, Place { offset: copy + 4096, len: 2048 });
        fix_header_checksum(&scene.store, copy);
    }
    let VolumeError::NoKeyFits(lines) = scene.refusal().await else { panic!("another error") };
    assert_eq!(lines, ["no keyslot is in use"]);
}

#[tokio::test]
async fn header_of_another_volume_opens_none_of_this_ones_roots() {
    let scene = closed().await;
    let other = closed().await;
    for offset in HEADER_OFFSETS {
        replay(&scene.store, Place { offset, len: HEADER_LEN }, &other.store);
    }
    let VolumeError::NoRoot(why) = scene.refusal().await else { panic!("another error") };
    assert!(why.contains("ring block: authentication failed"), "{why}");
    assert!(why.split("; ").all(|block| block.ends_with("of another volume)")), "{why}");
}

// The root ring.

#[tokio::test]
async fn ring_newest_block_damaged_falls_back_to_the_root_before_and_its_log() {
    for damage in [flip, zero, truncate] {
        let scene = closed().await;
        damage(&scene.store, scene.anatomy.ring_block(scene.anatomy.newest.generation));
        assert_eq!(scene.errors().await, []);
    }
}

#[tokio::test]
async fn ring_older_block_flipped_is_damage_of_that_block() {
    let scene = closed().await;
    let place = scene.anatomy.ring_block(scene.anatomy.newest.generation - 2);
    flip(&scene.store, place);
    let damage = scene.structure_damage(&scene.refusal().await);
    assert_eq!(damage, ("ring block", place.offset, FormatError::Checksum("ring block")));
}

#[tokio::test]
async fn ring_older_block_altered_with_a_right_checksum_does_not_authenticate() {
    let scene = closed().await;
    let place = scene.anatomy.ring_block(scene.anatomy.newest.generation - 2);
    flip_at(&scene.store, place.offset + 50);
    fix_block_checksum(&scene.store, place.offset);
    let damage = scene.structure_damage(&scene.refusal().await);
    assert_eq!(damage, ("ring block", place.offset, FormatError::Authentication("ring block")));
}

#[tokio::test]
async fn ring_block_moved_to_another_place_does_not_count() {
    let scene = closed().await;
    let newest = scene.anatomy.newest.generation;
    let (from, to) = (scene.anatomy.ring_block(newest - 1), scene.anatomy.ring_block(newest - 3));
    scene.store.write_raw(to.offset, &scene.store.read_raw(from.offset, from.len));
    let damage = scene.structure_damage(&scene.refusal().await);
    assert_eq!(damage, ("ring block", to.offset, FormatError::Authentication("ring block")));
}

#[tokio::test]
async fn ring_blocks_swapped_do_not_count() {
    let scene = closed().await;
    let newest = scene.anatomy.newest.generation;
    swap(&scene.store, scene.anatomy.ring_block(newest), scene.anatomy.ring_block(newest - 1));
    let VolumeError::Damaged { structure: "ring block", source, .. } = scene.refusal().await else {
        panic!("another error")
    };
    assert_eq!(source, FormatError::Authentication("ring block"));
}

#[tokio::test]
async fn ring_flipped_whole_leaves_no_root() {
    let scene = closed().await;
    (0..8).for_each(|slot| flip(&scene.store, scene.anatomy.ring_block(slot)));
    let VolumeError::NoRoot(why) = scene.refusal().await else { panic!("another error") };
    assert!(why.contains("block 2: ring block: checksum mismatch"), "{why}");
}

#[tokio::test]
async fn ring_zeroed_whole_is_empty() {
    let scene = closed().await;
    (0..8).for_each(|slot| zero(&scene.store, scene.anatomy.ring_block(slot)));
    let VolumeError::NoRoot(why) = scene.refusal().await else { panic!("another error") };
    assert_eq!(why, "the root ring is empty");
}

#[tokio::test]
async fn ring_of_another_volume_does_not_authenticate() {
    let (scene, other) = (closed().await, closed().await);
    (0..8).for_each(|slot| replay(&scene.store, scene.anatomy.ring_block(slot), &other.store));
    let VolumeError::NoRoot(why) = scene.refusal().await else { panic!("another error") };
    assert!(why.contains("ring block: authentication failed"), "{why}");
    assert!(why.split("; ").all(|block| block.ends_with("of another volume)")), "{why}");
}

#[tokio::test]
async fn ring_of_an_older_state_shows_that_state_or_errors_but_never_a_mixture() {
    // Without an anchor a ring that was put back cannot be told from a volume of that time (§13).
    let (disk, model, old) = closed_with_history().await;
    let scene = Scene::of(&disk.store, model).await;
    (0..8).for_each(|slot| replay(&scene.store, scene.anatomy.ring_block(slot), &old.store));
    let Ok(volume) = scene.open().await else { return };
    sector_errors(&volume, &old.model).await;
}

// Payload and table.

#[tokio::test]
async fn payload_damaged_falls_back_to_the_root_before_and_its_log() {
    for damage in [flip, zero, truncate] {
        let scene = closed().await;
        damage(&scene.store, scene.anatomy.payload());
        assert_eq!(scene.errors().await, []);
    }
}

#[tokio::test]
async fn payload_of_the_last_two_roots_flipped_leaves_no_root() {
    let scene = closed().await;
    let newest = scene.anatomy.newest.generation;
    for generation in [newest, newest - 1] {
        let pointer = scene.anatomy.root_of(&scene.store, generation).0.payload;
        flip(
            &scene.store,
            Place { offset: pointer.phys + u64::from(pointer.offset), len: pointer.len as usize },
        );
    }
    let VolumeError::NoRoot(why) = scene.refusal().await else { panic!("another error") };
    let payload = scene.anatomy.payload();
    let first = format!(
        "root {newest}: root payload at byte {} of the store is damaged: root payload: authentication failed",
        payload.offset
    );
    assert!(why.starts_with(&first), "{why}");
    assert!(why.contains(&format!("root {}: root payload at byte", newest - 1)), "{why}");
}

#[tokio::test]
async fn payload_envelope_flipped_does_not_authenticate() {
    // The list of places for replication is plaintext, and bound to the payload all the same.
    let scene = died().await;
    let newest = scene.anatomy.newest.generation;
    let with_places = |generation| {
        let (block, root) = scene.anatomy.root_of(&scene.store, generation);
        (!root.added.is_empty()).then_some((block, root))
    };
    let (block, root) = with_places(newest).or_else(|| with_places(newest - 1)).unwrap();
    let pointer = block.payload;
    let payload = Place { offset: pointer.phys + u64::from(pointer.offset), len: pointer.len as usize };
    let key = scene.anatomy.keys.segment_key(2, pointer.uid);
    let open = || {
        let stored = scene.store.read_raw(payload.offset, payload.len);
        Root::open(&key, pointer.offset.into(), block.generation, &stored)
    };
    assert_eq!(open(), Ok(root));
    flip_at(&scene.store, payload.offset + 4);
    assert_eq!(open(), Err(FormatError::Authentication("root payload")));
}

#[tokio::test]
async fn table_damaged_falls_back_to_the_root_before_and_its_log() {
    for damage in [flip, zero, truncate] {
        let scene = closed().await;
        damage(&scene.store, scene.anatomy.table());
        assert_eq!(scene.errors().await, []);
    }
}

// The index.

#[tokio::test]
async fn index_page_damaged_at_any_level_fails_the_reads_below_it() {
    for level in 0..3 {
        for damage in [flip, zero, truncate] {
            let scene = closed().await;
            let place = scene.anatomy.pages[level][0];
            damage(&scene.store, place);
            let errors = scene.errors().await;
            let below = if level == 0 { 512 } else { SECTORS };
            assert_eq!(errors.len() as u64, below, "level {level}");
            assert!(errors.iter().all(|(_, error)| *error == damaged_page(place)), "level {level}");
        }
    }
}

#[tokio::test]
async fn index_leaves_swapped_fail_the_reads_below_them() {
    let scene = closed().await;
    let leaves = &scene.anatomy.pages[0];
    let (one, other) = (leaves[1], leaves[2]);
    assert_eq!(one.len, other.len, "two leaves with one extent each");
    swap(&scene.store, one, other);
    let errors = scene.errors().await;
    assert_eq!(errors.len(), 1024);
    assert!(errors.iter().all(|(_, error)| [damaged_page(one), damaged_page(other)].contains(error)));
}

#[tokio::test]
async fn index_page_of_an_older_state_fails_the_reads_below_it() {
    let (disk, model, old) = closed_with_history().await;
    let scene = Scene::of(&disk.store, model).await;
    for level in 0..3 {
        let (now, before) = (scene.anatomy.pages[level][0], old.anatomy.pages[level][0]);
        assert_ne!(now, before, "pages are write-once");
        let damaged = Scene::of(&scene.store, scene.model.clone()).await;
        let mut bytes = old.store.read_raw(before.offset, before.len);
        bytes.resize(now.len, 0);
        damaged.store.write_raw(now.offset, &bytes);
        let errors = damaged.errors().await;
        assert!(!errors.is_empty(), "level {level}");
        assert!(errors.iter().all(|(_, error)| *error == damaged_page(now)), "level {level}");
    }
}

#[tokio::test]
async fn index_damage_fails_a_check_and_a_write_into_the_page_keeps_the_rest_readable() {
    let scene = closed().await;
    let place = scene.anatomy.pages[0][0];
    flip(&scene.store, place);
    let report = scene.open().await.unwrap().check(true, |_| {}).await.unwrap();
    assert!(!report.is_clean());
    let listed: Vec<_> = report.damaged.iter().map(|range| (range.first_sector, range.sectors)).collect();
    assert_eq!(listed, [(0, 512)]);
    assert_eq!((report.damaged[0].offset, report.damaged[0].bytes), (0, 2 << 20));
    assert_eq!(
        (report.problems[0].structure, report.problems[0].offset),
        (Structure::IndexPage, Some(place.offset))
    );
    assert!(report.problems[0].message.contains("above sectors 0+512: index page at byte"), "{report:?}");
}

// Records.

#[tokio::test]
async fn record_flipped_zeroed_or_cut_fails_the_reads_of_its_sector_alone() {
    for damage in [flip, zero, truncate] {
        let scene = closed().await;
        let (lba, place) = scene.anatomy.records[7];
        damage(&scene.store, place);
        assert_eq!(scene.errors().await, [(lba, damaged_sector(place))]);
    }
}

#[tokio::test]
async fn record_tag_flipped_fails_the_read() {
    let scene = closed().await;
    let (lba, place) = scene.anatomy.records[7];
    flip_at(&scene.store, place.offset + RECORD_LEN as u64 - 1);
    assert_eq!(scene.errors().await, [(lba, damaged_sector(place))]);
}

#[tokio::test]
async fn records_swapped_inside_a_segment_fail_both_reads() {
    let scene = closed().await;
    let (one, other) = (scene.anatomy.records[3], scene.anatomy.records[9]);
    assert_eq!(scene.model[one.0 as usize], scene.model[other.0 as usize], "even of one content");
    swap(&scene.store, one.1, other.1);
    let expected = [(one.0, damaged_sector(one.1)), (other.0, damaged_sector(other.1))];
    assert_eq!(scene.errors().await, expected);
}

#[tokio::test]
async fn records_swapped_between_segments_fail_both_reads() {
    let scene = closed().await;
    let segment = |place: Place| place.offset / u64::from(scene.anatomy.header.segment_bytes);
    let one = scene.anatomy.records[0];
    let other = *scene.anatomy.records.iter().find(|(_, place)| segment(*place) != segment(one.1)).unwrap();
    swap(&scene.store, one.1, other.1);
    let expected = [(one.0, damaged_sector(one.1)), (other.0, damaged_sector(other.1))];
    assert_eq!(scene.errors().await, expected);
}

#[tokio::test]
async fn record_of_an_older_write_of_the_same_sector_fails_the_read() {
    let (disk, model, old) = closed_with_history().await;
    let scene = Scene::of(&disk.store, model).await;
    let find = |anatomy: &Anatomy| anatomy.records.iter().find(|(lba, _)| *lba == 30).unwrap().1;
    let (now, before) = (find(&scene.anatomy), find(&old.anatomy));
    assert_ne!(now, before);
    scene.store.write_raw(now.offset, &old.store.read_raw(before.offset, before.len));
    assert_eq!(scene.errors().await, [(30, damaged_sector(now))]);
}

#[tokio::test]
async fn records_of_another_volume_with_the_same_key_file_fail_the_reads() {
    let (scene, other) = (closed().await, closed().await);
    for (now, theirs) in scene.anatomy.records.iter().zip(&other.anatomy.records) {
        scene.store.write_raw(now.1.offset, &other.store.read_raw(theirs.1.offset, RECORD_LEN));
    }
    let expected: Vec<_> =
        scene.anatomy.records.iter().map(|(lba, place)| (*lba, damaged_sector(*place))).collect();
    assert_eq!(scene.errors().await, expected);
}

#[tokio::test]
async fn segment_put_back_to_what_its_slot_held_before_fails_the_reads_of_it() {
    let (disk, model, old) = closed_with_history().await;
    let scene = Scene::of(&disk.store, model).await;
    let len = scene.anatomy.header.segment_bytes as usize;
    let find = |lba| scene.anatomy.records.iter().find(|(l, _)| *l == lba).unwrap().1;
    let phys = scene.anatomy.rows.iter().flatten().map(|row| row.phys);
    let phys: Vec<u64> = phys.filter(|phys| (*phys..*phys + len as u64).contains(&find(30).offset)).collect();
    let place = Place { offset: phys[0], len };
    replay(&scene.store, place, &old.store);
    for (lba, error) in scene.errors().await {
        assert_eq!(error, damaged_sector(find(lba)));
    }
    assert!(scene.errors().await.iter().any(|(lba, _)| *lba == 30));
}

#[tokio::test]
async fn segment_header_damaged_does_not_matter_to_records_in_the_tree() {
    let scene = closed().await;
    for row in scene.anatomy.rows.iter().flatten() {
        flip(&scene.store, Place { offset: row.phys, len: 160 });
    }
    assert_eq!(scene.errors().await, []);
}

// The log.

#[tokio::test]
async fn chunk_header_flushed_and_flipped_is_damage_not_a_torn_tail() {
    for index in 0..7 {
        let scene = died().await;
        let chunk = &scene.anatomy.log[index];
        flip_at(&scene.store, chunk.place.offset + 40);
        let error = scene.refusal().await;
        match error {
            VolumeError::LogDamaged { seq, offset, later } => {
                assert_eq!((seq, offset), (chunk.seq, chunk.place.offset));
                assert!(later > chunk.seq);
            }
            other => panic!("chunk {}: {other}", chunk.seq),
        }
    }
}

#[tokio::test]
async fn chunk_prefix_flushed_and_zeroed_is_damage_not_a_torn_tail() {
    let scene = died().await;
    let chunk = &scene.anatomy.log[4];
    zero(&scene.store, Place { offset: chunk.place.offset, len: 4096 });
    let error = scene.refusal().await;
    assert!(matches!(error, VolumeError::LogDamaged { seq, .. } if seq == chunk.seq), "{error}");
}

#[tokio::test]
async fn chunks_swapped_in_the_log_are_damage() {
    let scene = died().await;
    swap(&scene.store, scene.anatomy.log[2].place, scene.anatomy.log[5].place);
    let error = scene.refusal().await;
    let first = scene.anatomy.log[2].seq;
    assert!(matches!(error, VolumeError::LogDamaged { seq, .. } if seq == first), "{error}");
}

#[tokio::test]
async fn record_of_a_flushed_chunk_flipped_fails_the_read_of_its_sector_alone() {
    let scene = died().await;
    let chunk = &scene.anatomy.log[3];
    let record = Place { offset: chunk.place.offset + chunk.records_offset as u64, len: RECORD_LEN };
    flip(&scene.store, record);
    assert_eq!(scene.errors().await, [(3, damaged_sector(record))]);
}

#[tokio::test]
async fn chunk_unflushed_and_damaged_was_never_written() {
    for at in [0, 40, 60, 2000] {
        let mut scene = died().await;
        flip_at(&scene.store, scene.anatomy.log[8].place.offset + at);
        scene.model[8] = 0;
        assert_eq!(scene.errors().await, [], "byte {at} of the last chunk");
    }
}

/// A volume whose server died with flushed writes in the second segment of the log, the first of the
/// session being full.
async fn died_in_the_second_segment() -> Scene {
    // Larger than what is looked at: with few slots a checkpoint would come in between.
    let disk = Disk::new(8 * SIZE).await;
    let mut model = vec![0; SECTORS as usize];
    let volume = disk.open().await;
    for part in 0..6 {
        write(&volume, &mut model, part * 100, 100, 10 + part as u8).await;
        volume.flush().await.unwrap();
    }
    for lba in 600..604 {
        write(&volume, &mut model, lba, 1, 77).await;
        volume.flush().await.unwrap();
    }
    let scene = Scene::of(&disk.store, model).await;
    let segments: std::collections::HashSet<u64> = scene.anatomy.log.iter().map(|chunk| chunk.phys).collect();
    assert_eq!(segments.len(), 2);
    assert_eq!(scene.errors().await, []);
    scene
}

#[tokio::test]
async fn segment_header_flipped_in_the_log_is_damage_not_the_end_of_it() {
    let scene = died_in_the_second_segment().await;
    let second = scene.anatomy.log.last().unwrap().phys;
    let first = scene.anatomy.log.iter().find(|chunk| chunk.phys == second).unwrap();
    for at in [0, 20, 50, 80, 140, 4093] {
        let damaged = Scene::of(&scene.store, scene.model.clone()).await;
        flip_at(&damaged.store, second + at);
        let error = damaged.refusal().await;
        assert!(
            matches!(error, VolumeError::LogDamaged { seq, .. } if seq == first.seq),
            "byte {at}: {error}"
        );
    }
}

#[tokio::test]
async fn chunk_torn_and_the_one_behind_it_zeroed_is_damage_when_a_later_one_proves_a_flush() {
    let scene = died().await;
    let log = &scene.anatomy.log;
    let torn = Place { offset: log[3].place.offset + log[3].records_offset as u64, len: RECORD_LEN };
    flip(&scene.store, torn);
    zero(&scene.store, log[4].place);
    let error = scene.refusal().await;
    assert!(matches!(error, VolumeError::LogDamaged { .. }), "{error}");
}

#[tokio::test]
async fn newest_root_of_a_session_damaged_loses_no_flushed_write() {
    let scene = died().await;
    let newest = scene.anatomy.newest.generation;
    for place in [scene.anatomy.ring_block(newest), scene.anatomy.payload(), scene.anatomy.table()] {
        for damage in [flip, zero, truncate] {
            let store = scene.store.snapshot();
            damage(&store, place);
            shows_nothing_wrong(store, &scene.model).await;
        }
    }
}

#[tokio::test]
async fn one_flipped_bit_anywhere_after_a_crash_loses_no_flushed_write_unseen() {
    let scene = died().await;
    for (number, block) in (0u64..).zip(written_blocks(&scene.store, scene.anatomy.header.store_bytes())) {
        let store = scene.store.snapshot();
        flip_at(&store, block + number * 97 % 4096);
        let disk = Disk { store: Arc::new(store) };
        let Ok(volume) = disk.open_as(OpenMode::ReadOnly).await else { continue };
        let mut model = scene.model.clone();
        let mut last = [0; 4096];
        if volume.read(sectors(8, 1), &mut last).await.is_ok() {
            // Written and not flushed: there, or not.
            assert!(last == [99; 4096] || last == [0; 4096]);
            model[8] = last[0];
        }
        sector_errors(&volume, &model).await;
    }
}

#[tokio::test]
async fn closed_span_flipped_is_damage_of_the_closed_log() {
    let disk = Disk::new(4 * SIZE).await;
    let mut model = vec![0; SECTORS as usize];
    let volume = disk.open().await;
    write(&volume, &mut model, 0, 1, 1).await;
    write(&volume, &mut model, 1, 1, 2).await;
    drop(volume);
    // The next session claims the volume: the span is closed where it ends.
    let disk = Disk { store: Arc::new(disk.store.snapshot()) };
    let volume = disk.open().await;
    let scene = Scene::of(&disk.store, model).await;
    drop(volume);
    assert_eq!(scene.errors().await, []);
    let place = scene.anatomy.log[1].place;
    flip_at(&scene.store, place.offset + 40);
    let damage = scene.structure_damage(&scene.refusal().await);
    assert_eq!(damage, ("closed log", place.offset, FormatError::Authentication("chunk")));
}

#[tokio::test]
async fn log_of_an_older_session_cannot_be_put_back_behind_a_claim() {
    // A copy of the store goes on by itself; its chunks mean nothing to the original.
    let disk = Disk::new(SIZE).await;
    let mut model = vec![0; SECTORS as usize];
    let volume = disk.open().await;
    write(&volume, &mut model, 0, 1, 1).await;
    drop(volume);
    let fork = Disk { store: Arc::new(disk.store.snapshot()) };
    let mut forked = model.clone();
    let volume = fork.open().await;
    write(&volume, &mut forked, 0, 1, 66).await;
    volume.flush().await.unwrap();
    let theirs = Anatomy::of(&fork.store).await;
    drop(volume);
    let disk = Disk { store: Arc::new(disk.store.snapshot()) };
    let volume = disk.open().await;
    write(&volume, &mut model, 1, 1, 2).await;
    volume.flush().await.unwrap();
    let scene = Scene::of(&disk.store, model).await;
    drop(volume);
    for phys in &theirs.log_segments {
        let len = scene.anatomy.header.segment_bytes as usize;
        replay(&scene.store, Place { offset: *phys, len }, &fork.store);
    }
    let Ok(volume) = scene.open().await else { return };
    let mut sector = [0; 4096];
    if volume.read(sectors(0, 1), &mut sector).await.is_ok() {
        assert_eq!(sector, [1; 4096], "the write of the fork is nowhere");
    }
}

#[tokio::test]
async fn store_shorter_than_the_volume_is_refused() {
    let scene = closed().await;
    let needed = scene.anatomy.header.store_bytes();
    let found = needed - 4096;
    let bytes = scene.store.read_raw(0, usize::try_from(found).unwrap());
    let scene = Scene { store: Arc::new(MemoryStore::from_bytes(&bytes)), ..scene };
    match scene.refusal().await {
        VolumeError::StoreTooSmall { found: f, needed: n } => assert_eq!((f, n), (found, needed)),
        other => panic!("{other}"),
    }
}

// Everywhere.

/// Every block of 4096 bytes that is not zero.
fn written_blocks(store: &MemoryStore, len: u64) -> Vec<u64> {
    (0..len).step_by(4096).filter(|at| store.read_raw(*at, 4096).iter().any(|byte| *byte != 0)).collect()
}

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

/// Whatever the volume says to the damage, it shows nothing but what was written.
async fn shows_nothing_wrong(store: MemoryStore, model: &[u8]) {
    let disk = Disk { store: Arc::new(store) };
    if let Ok(volume) = disk.open_as(OpenMode::ReadOnly).await {
        sector_errors(&volume, model).await;
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
