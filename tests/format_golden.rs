//! Volume format 1, byte for byte. The vectors of `tests/golden` were laid out and sealed by another
//! program (`tests/golden/make.py`); this one must read them as they were meant and, where it can
//! encode without sealing, make the same bytes.
//!
//! Nothing here seals: a sealing key exists only for a fresh uid (rule R3, docs/FORMAT.md §3), and a
//! fixed one for tests would be a way around that rule.

#[path = "common/golden.rs"]
mod golden;

use golden::{CHAIN, INDEX_UID, LOG_UID, NEXT_UID, VOLUME, ascending, keys, vector};
use keymgmt::manager::{SlotType, WrappedKey};
use sealbd::cipher::{AuthenticationFailed, Engine};
use sealbd::format::FormatError;
use sealbd::format::chunk::{ChunkHeader, ChunkPrefix, Entry, Op};
use sealbd::format::header::{Header, UnverifiedHeader};
use sealbd::format::keyslot::{Keyslot, KeyslotState};
use sealbd::format::page::{DENSE_FROM, FANOUT, Inner, Leaf, LeafExtent, Loc, open_sealed_page};
use sealbd::format::root::{BlobPointer, LogSpan, Place, RingBlock, Root, open_table_part};
use sealbd::format::segment::{SegmentHeader, SegmentKind};
use sealbd::format::table::{Row, SegmentState, TablePart};
use sealbd::geometry::{Lba, SectorRange};
use sealbd::payload::RECORD_LEN;

const LOG: u8 = SegmentKind::Log as u8;
const INDEX: u8 = SegmentKind::Index as u8;

#[test]
fn the_vectors_are_what_the_other_program_makes() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/make.py");
    let probe = std::process::Command::new("/usr/bin/python3").args(["-c", "import cryptography"]).status();
    if !probe.is_ok_and(|status| status.success()) {
        let required = std::env::var_os("SEALBD_REQUIRE_CLIENTS").is_some_and(|value| value == "1");
        assert!(!required, "python3-cryptography is not installed, and SEALBD_REQUIRE_CLIENTS=1");
        return;
    }
    let status = std::process::Command::new("/usr/bin/python3").args([script, "--check"]).status().unwrap();
    assert!(status.success());
}

#[test]
fn keys_are_derived_as_written_down() {
    let keys = keys(Engine::default());
    assert_eq!(keys.commit().as_slice(), &vector("derived")[..32]);
    assert_eq!(keys.header_mac(b"abc").as_slice(), vector("header_mac_of_abc"));
    assert_eq!(keys.root_mac(b"abc").as_slice(), vector("root_mac_of_abc"));
}

#[test]
fn a_segment_key_belongs_to_one_kind_and_one_uid() {
    let keys = keys(Engine::default());
    let sealed = vector("sealed_leaf");
    let open = |kind, uid| open_sealed_page(&keys.segment_key(kind, uid), 0x2000, 0, 77, &sealed);
    let refused = Err(FormatError::Authentication("index page"));
    assert_eq!(open(INDEX, INDEX_UID), Ok(vector("leaf_sparse")));
    assert_eq!(open(LOG, INDEX_UID), refused);
    assert_eq!(open(INDEX, LOG_UID), refused);
}

#[test]
fn a_header_with_two_keyslots() {
    let keys = keys(Engine::default());
    let bytes = vector("header");
    let copy = UnverifiedHeader::decode(&bytes).unwrap();
    assert_eq!(copy.generation(), 7);
    let header = copy.verify(&keys).unwrap();
    let mut label = [0; 64];
    label[..16].copy_from_slice("golden volume é".as_bytes());
    let mut keyslots = [const { None }; 16];
    keyslots[0] = Some(keyfile_slot());
    keyslots[5] = Some(longest_slot());
    let expected = Header {
        volume: VOLUME,
        generation: 7,
        compat: 5,
        ro_compat: 2,
        align: 4096,
        segment_bytes: 2 << 20,
        export_bytes: 1 << 30,
        slots: 700,
        data_start: 2 << 20,
        active_epoch: 1,
        ring_slots: 8,
        ring_offset: (1 << 20) + 65536,
        dek_created: 1_690_000_000,
        salt: ascending(0xa0),
        label,
        keyslots,
    };
    assert_eq!(header, expected);
    assert_eq!(header.label_text(), "golden volume é");
    assert!(!header.is_writable(), "a read-only feature is set that this program does not know");
    assert_eq!(header.encode(&keys), bytes);
}

fn keyfile_slot() -> Keyslot {
    let bytes = vector("keyfile_slot");
    let key = WrappedKey {
        slot_type: SlotType::Keyfile,
        kek_uri: String::new(),
        wrapped: bytes[280..340].to_vec(),
        private: bytes[1336..1339].to_vec(),
    };
    let commit = *keys(Engine::default()).commit();
    Keyslot { state: KeyslotState::Active, epoch: 1, created: 1_700_000_000, priority: 3, key, commit }
}

fn longest_slot() -> Keyslot {
    let all: [u8; 256] = ascending(0);
    let private: [u8; 256] = ascending(0x11);
    let key = WrappedKey {
        slot_type: SlotType::Recovery,
        kek_uri: format!("key:{}", "u".repeat(252)),
        wrapped: all.repeat(4),
        private: private.repeat(2),
    };
    Keyslot {
        state: KeyslotState::DecryptOnly,
        epoch: 65535,
        created: u64::MAX,
        priority: u16::MAX,
        key,
        commit: ascending(0xe0),
    }
}

#[test]
fn keyslots() {
    for (name, slot) in [("keyfile_slot", keyfile_slot()), ("second_slot", longest_slot())] {
        let bytes = vector(name);
        assert_eq!(
            Keyslot::decode(bytes.as_slice().try_into().unwrap()).unwrap().as_ref(),
            Some(&slot),
            "{name}"
        );
        assert_eq!(Keyslot::encode(Some(&slot)), bytes, "{name}");
    }
    assert_eq!(Keyslot::decode(&[0; 2048]), Ok(None));
    assert_eq!(Keyslot::encode(None), [0; 2048]);
}

#[test]
fn a_ring_block() {
    let keys = keys(Engine::default());
    let bytes = vector("ring_block");
    let expected = RingBlock {
        generation: 42,
        writer_epoch: 9,
        session_id: ascending(0x50),
        header_generation: 7,
        payload: BlobPointer { uid: INDEX_UID, phys: 0x20_0000, epoch: 1, offset: 0x3000, len: 700 },
    };
    let (block, mac) = RingBlock::decode(&bytes, &keys).unwrap().unwrap();
    assert_eq!(block, expected);
    assert_eq!(mac.as_slice(), &bytes[4064..4080]);
    assert_eq!(expected.encode(&keys), (bytes, mac));
}

fn root() -> Root {
    let span = LogSpan {
        handle: 3,
        uid: LOG_UID,
        phys: 0x40_0000,
        epoch: 1,
        start_offset: 4096,
        start_seq: 17,
        chain: CHAIN,
        end_offset: Some(0x9000),
    };
    let open = LogSpan {
        handle: 4,
        uid: NEXT_UID,
        phys: 0x60_0000,
        start_offset: 8192,
        start_seq: 19,
        chain: ascending(0xc1),
        end_offset: None,
        ..span
    };
    Root {
        generation: 42,
        added: vec![Place { uid: LOG_UID, phys: 0x40_0000 }, Place { uid: INDEX_UID, phys: 0x20_0000 }],
        freed: vec![Place { uid: sealbd::cipher::Uid(ascending(0x60)), phys: 0xa0_0000 }],
        previous: vec![ascending(1), ascending(2)],
        writer_epoch: 9,
        min_header_generation: 7,
        export_bytes: 1 << 30,
        log_spans: vec![span, open],
        reserved: vec![5, 6, 699],
        tops: vec![Loc::new(2, 0x2000, 48), Loc::HOLE, Loc::ZERO],
        table: vec![
            BlobPointer { uid: INDEX_UID, phys: 0x20_0000, epoch: 1, offset: 0x1000, len: 300 },
            BlobPointer { uid: NEXT_UID, phys: 0x80_0000, epoch: 1, offset: 0x5000, len: 1_040_024 },
        ],
        sealed_messages: 123_456_789,
    }
}

#[test]
fn a_root_payload() {
    for engine in Engine::ALL {
        let key = keys(*engine).segment_key(INDEX, INDEX_UID);
        let stored = vector("root_payload");
        assert_eq!(Root::open(&key, 0x3000, 42, &stored), Ok(root()), "{engine:?}");
        let refused = Err(FormatError::Authentication("root payload"));
        assert_eq!(Root::open(&key, 0x3000, 43, &stored), refused, "another generation");
        assert_eq!(Root::open(&key, 0x3010, 42, &stored), refused, "another place");
    }
    assert_eq!(root().encode(), vector("root_plaintext"));
    assert_eq!(root().sealed_len(), vector("root_payload").len());
}

#[test]
fn a_part_of_the_segment_table() {
    let row = Row {
        uid: LOG_UID,
        phys: 0x40_0000,
        epoch: 1,
        kind: SegmentKind::Log,
        state: SegmentState::Closed,
        live: 4112,
        bytes: 0x9000,
        birth: 40,
    };
    let index = Row {
        uid: INDEX_UID,
        phys: 0x20_0000,
        kind: SegmentKind::Index,
        state: SegmentState::Open,
        live: 64,
        bytes: 0x20_0000,
        birth: 41,
        ..row
    };
    let moved = Row {
        uid: NEXT_UID,
        phys: 0x60_0000,
        epoch: u16::MAX,
        kind: SegmentKind::Gc,
        state: SegmentState::Open,
        live: 0,
        bytes: 0,
        birth: u32::MAX,
    };
    let part = TablePart { first: 26_000, rows: vec![None, Some(row), Some(index), Some(moved)] };
    let key = keys(Engine::default()).segment_key(INDEX, INDEX_UID);
    let plaintext = open_table_part(&key, 0x1000, 1, &vector("table_part")).unwrap();
    assert_eq!(plaintext, vector("table_plaintext"));
    assert_eq!(TablePart::decode(&plaintext), Ok(part.clone()));
    assert_eq!(part.encode(), plaintext);
    let other = open_table_part(&key, 0x1000, 0, &vector("table_part"));
    assert_eq!(other, Err(FormatError::Authentication("segment table")), "another part");
}

#[test]
fn a_segment_header() {
    let expected = SegmentHeader {
        kind: SegmentKind::Log,
        epoch: 1,
        volume: VOLUME,
        uid: LOG_UID,
        phys: 0x40_0000,
        writer_epoch: 9,
        first_log_seq: 17,
        previous_uid: sealbd::cipher::Uid(ascending(0x70)),
        previous_chain: CHAIN,
        next_uid: NEXT_UID,
        next_phys: 0x60_0000,
        created: 1_700_000_001,
    };
    for engine in Engine::ALL {
        let keys = keys(*engine);
        let key = keys.segment_key(LOG, LOG_UID);
        let opened = SegmentHeader::open(&vector("segment_header"), &keys, &key, SegmentKind::Log);
        assert_eq!(opened, Ok(expected.clone()), "{engine:?}");
    }
}

#[test]
fn a_chunk_with_its_records() {
    for engine in Engine::ALL {
        let key = keys(*engine).segment_key(LOG, LOG_UID);
        let bytes = vector("chunk");
        let prefix = ChunkPrefix::decode(bytes.first_chunk().unwrap(), 4096, bytes.len() as u64).unwrap();
        let expected =
            ChunkPrefix { chunk_bytes: 16384, log_seq: 17, header_len: 108, record_count: 3, ..prefix };
        assert_eq!(prefix, expected);
        assert_eq!(prefix.encode(), bytes[..32]);
        assert!(prefix.checksum_fits(&bytes));
        let (header, tag) = ChunkHeader::open(&prefix, &key, 4096, &bytes).unwrap();
        assert_eq!(tag.as_slice(), &bytes[124..140]);
        let entry = |lba, count, op, rec| Entry { sectors: SectorRange::new(Lba(lba), count), op, rec };
        let entries = vec![
            entry(100, 2, Op::Write, 0),
            entry(7, 9, Op::Zero, 0),
            entry((1 << 40) + 5, 0xffff_ffff, Op::Trim, 0),
            entry(3, 1, Op::Write, 2),
        ];
        assert_eq!(header, ChunkHeader { chain: CHAIN, durable_seq: 15, entries });
        let layout = prefix.layout(4096);
        assert_eq!((layout.records_offset, layout.chunk_len), (144, bytes.len()));
        for (rec, (lba, byte)) in (0u32..).zip([(100, b'a'), (101, b'b'), (3, b'c')]) {
            let at = layout.record_offset(rec);
            let record = &bytes[at..at + RECORD_LEN];
            let mut sector = [0; 4096];
            assert_eq!(key.open_record(4096 + at as u64, Lba(lba), record, &mut sector), Ok(()));
            assert_eq!(sector, [byte; 4096]);
            let elsewhere = key.open_record(4096 + at as u64, Lba(lba + 1), record, &mut sector);
            assert_eq!(elsewhere, Err(AuthenticationFailed), "another address");
            assert_eq!(sector, [0; 4096], "nothing unauthenticated is left");
        }
    }
}

#[test]
fn leaves_in_both_forms() {
    let extent = |start, len, loc| LeafExtent { start, len, loc };
    let sparse = Leaf::Extents(vec![
        extent(0, 2, Loc::record(3, 4256)),
        extent(7, 9, Loc::ZERO),
        extent(511, 1, Loc::record(3, 12480)),
    ]);
    assert_eq!(Leaf::decode(&vector("leaf_sparse")), Ok(sparse.clone()));
    assert_eq!(sparse.encode(), vector("leaf_sparse"));
    let mut locs = [Loc::HOLE; FANOUT];
    for (i, loc) in (0u64..).zip(locs.iter_mut()) {
        *loc = [Loc::HOLE, Loc::ZERO, Loc::record(3, 4256 + 8224 * i)][usize::try_from(i % 3).unwrap()];
    }
    let dense = Leaf::Dense(Box::new(locs));
    assert_eq!(Leaf::decode(&vector("leaf_dense")), Ok(dense.clone()));
    assert_eq!(dense.encode(), vector("leaf_dense"));
    // 512 locations of which 341 are no hole and none follows another: just dense.
    assert_eq!(locs.iter().filter(|loc| **loc != Loc::HOLE).count(), DENSE_FROM);
    assert_eq!(Leaf::from_locs(&locs), Some(dense));
}

#[test]
fn inner_pages_in_both_forms() {
    let mut children = [Loc::HOLE; FANOUT];
    children[0] = Loc::new(2, 0x2000, 64);
    children[5] = Loc::ZERO;
    children[511] = Loc::new(2, 0x2040, 4128);
    let sparse = Inner { level: 1, children: Box::new(children) };
    assert_eq!(Inner::decode(&vector("inner_sparse"), 1), Ok(sparse.clone()));
    assert_eq!(sparse.encode(), vector("inner_sparse"));
    for (i, child) in (0u64..).zip(children.iter_mut()) {
        *child = if i % 6 == 0 { Loc::HOLE } else { Loc::new(2, 0x2000 + 64 * i, 64) };
    }
    let dense = Inner { level: 2, children: Box::new(children) };
    assert_eq!(Inner::decode(&vector("inner_dense"), 2), Ok(dense.clone()));
    assert_eq!(dense.encode(), vector("inner_dense"));
}

#[test]
fn a_sealed_page_belongs_to_one_level_number_and_place() {
    for engine in Engine::ALL {
        let key = keys(*engine).segment_key(INDEX, INDEX_UID);
        let refused = Err(FormatError::Authentication("index page"));
        let inner = vector("sealed_inner");
        assert_eq!(open_sealed_page(&key, 0x4000, 1, 3, &inner), Ok(vector("inner_sparse")));
        assert_eq!(open_sealed_page(&key, 0x4000, 2, 3, &inner), refused, "another level");
        assert_eq!(open_sealed_page(&key, 0x4000, 1, 4, &inner), refused, "another number");
        assert_eq!(open_sealed_page(&key, 0x4010, 1, 3, &inner), refused, "another place");
    }
}
