//! Tests: what a table of as many segments as a volume of terabytes has costs in memory and time.

use std::sync::Arc;
use std::time::Instant;

use keymgmt::keyfile::Keyfile;
use keymgmt::secret::Secret32;

use super::create::{Geometry, NewVolume};
use super::segments::{LiveChange, new_row};
use super::unlock::read_header;
use super::{OpenMode, Volume};
use crate::cipher::{Engine, Uid};
use crate::export::{Durability, Export};
use crate::format::segment::SegmentKind;
use crate::format::table::ROW_LEN;
use crate::geometry::{ByteRange, Generation, SECTOR_LEN};
use crate::payload::Payload;
use crate::store::Access;
use crate::store::SlotStore;
use crate::store::file::{Existing, FileStore};

/// Segments in use. `SEALBD_WIDE_SEGMENTS` makes it more: 2,400,000 are those of a full volume of 16 TiB, and need a TMPDIR on XFS.
const SEGMENTS: u64 = 400_000;

/// The most that this process ever had in memory since the last [`forget_peak`], in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("told");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
}

fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").expect("the peak of one's own process");
}

async fn open(store: &Arc<dyn SlotStore>) -> Volume {
    let manager = Keyfile::from_secret(Secret32::take(&mut [7; 32]));
    let header = read_header(&**store).await.unwrap();
    let unlocked = header.unlock(Engine::default(), &[Box::new(manager) as _]).await.unwrap();
    Volume::open(store.clone(), unlocked, OpenMode::ReadWrite).await.unwrap()
}

/// Gives the table rows of closed, live segments, as if they had been written.
fn fill_table(volume: &Volume, segments: u64) {
    let header = volume.core.header();
    let mut table = volume.core.segments.table_mut();
    let mut live = LiveChange::default();
    for number in 0..u128::from(segments) {
        let slot = table.slots_mut().take_any().expect("the volume has as many");
        let uid = Uid((number | 1 << 100).to_be_bytes());
        let row = new_row(SegmentKind::Log, uid, header.slot_offset(slot), 1, Generation(1));
        let handle = table.add_row(row);
        table.set_bytes(handle, header.segment_bytes);
        table.close(handle);
        live.add(handle, header.segment_bytes as usize);
    }
    table.apply(&live);
    let _told_by_the_table = table.take_added();
}

#[tokio::test]
async fn a_root_with_a_large_table_is_written_and_opened_in_little_more_memory_than_the_table() {
    let asked = std::env::var("SEALBD_WIDE_SEGMENTS").ok().map(|text| text.parse().expect("a number"));
    let segments: u64 = asked.unwrap_or(SEGMENTS);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("volume");
    let geometry = Geometry::for_export(segments * (7 << 20)).unwrap();
    assert!(geometry.slots > segments + 1000, "{geometry:?}");
    let store = FileStore::create(&path, geometry.store_bytes(), Existing::Refuse).unwrap();
    let store: Arc<dyn SlotStore> = Arc::new(store);
    let mut new = NewVolume::prepare(geometry, 4096, "wide", Engine::default()).unwrap();
    new.add_key(&Keyfile::from_secret(Secret32::take(&mut [7; 32])), 0).await.unwrap();
    new.write(store.clone()).await.unwrap();

    let volume = open(&store).await;
    fill_table(&volume, segments);
    let range = ByteRange::within(0, SECTOR_LEN as u64, geometry.export_bytes).unwrap();
    volume.write(Payload::copy_of(range, &[1; SECTOR_LEN]), Durability::Accepted).await.unwrap();
    forget_peak();
    let (before, begun) = (peak(), Instant::now());
    volume.checkpoint().await.unwrap();
    let (grown, took) = (peak() - before, begun.elapsed());
    let table = segments * ROW_LEN as u64;
    eprintln!(
        "{segments} segments: checkpoint {took:?}, {} KiB more; the table is {} KiB",
        grown >> 10,
        table >> 10
    );
    assert!(grown < 12 << 20, "{grown} bytes to write a table of {table}");
    volume.close().await.unwrap();
    drop((volume, store));

    let store: Arc<dyn SlotStore> = Arc::new(FileStore::open(&path, Access::ReadWrite).unwrap());
    forget_peak();
    let (before, begun) = (peak(), Instant::now());
    let volume = open(&store).await;
    let (grown, took) = (peak() - before, begun.elapsed());
    eprintln!("opened in {took:?}, {} KiB more", grown >> 10);
    // What was freed above may be used again, so that it may look like less.
    assert!(grown < table * 5 / 4 + (12 << 20), "{grown} bytes to open a table of {table}");
    let live = volume.status().space.live_bytes;
    assert!(live >= segments * u64::from(geometry.segment_bytes), "{live}");
    let mut sector = [0; SECTOR_LEN];
    volume.read(range, &mut sector).await.unwrap();
    assert_eq!(sector, [1; SECTOR_LEN]);
}
