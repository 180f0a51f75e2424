//! Every decoder: what was encoded is decoded to itself; whatever else comes is refused or encoded again to the same
//! bytes, and nothing panics. Random structures, random bytes, changed bytes, and the corpora of the fuzz targets.

#[path = "common/golden.rs"]
mod golden;
#[path = "common/roundtrip.rs"]
mod roundtrip;

use keymgmt::manager::{SlotType, WrappedKey};
use proptest::array::uniform32;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use roundtrip::TARGETS;
use sealbd::cipher::{Engine, Uid};
use sealbd::format::chunk::{ChunkHeader, ENTRIES_MAX, Entry, Op};
use sealbd::format::header::{EXPORT_BYTES_MAX, Header, UnverifiedHeader};
use sealbd::format::keyslot::{Keyslot, KeyslotState};
use sealbd::format::page::{FANOUT, Inner, Leaf, Loc};
use sealbd::format::root::{BlobPointer, LogSpan, Place, RingBlock, Root};
use sealbd::format::segment::SegmentKind;
use sealbd::format::table::{Row, SegmentState, TablePart};
use sealbd::geometry::{Lba, SectorRange};

#[test]
fn every_file_of_the_fuzz_corpora_is_decoded_without_panic_and_encoded_to_itself() {
    for (name, target) in TARGETS {
        let directory = format!("{}/fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
        let files = std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{directory}: {error}"));
        let mut count = 0;
        for file in files {
            target(&std::fs::read(file.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{directory} is empty");
    }
}

#[test]
fn every_corpus_belongs_to_a_target() {
    let corpora = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus")).unwrap();
    for corpus in corpora {
        let name = corpus.unwrap().file_name();
        assert!(TARGETS.iter().any(|(target, _)| name == *target), "{}", name.display());
    }
}

#[test]
fn every_target_has_a_fuzz_target_of_its_name() {
    let manifest = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/Cargo.toml")).unwrap();
    let mut names: Vec<&str> = manifest
        .split("[[bin]]\nname = \"")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap_or_default())
        .collect();
    names.sort_unstable();
    let mut expected: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    expected.sort_unstable();
    assert_eq!(names, expected);
}

/// One of the files of a corpus.
fn of_corpus(name: &str, pick: prop::sample::Index) -> Vec<u8> {
    let directory = format!("{}/fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
    let files = std::fs::read_dir(directory).expect("a corpus");
    let mut files: Vec<_> = files.map(|file| file.expect("an entry").path()).collect();
    files.sort();
    std::fs::read(&files[pick.index(files.len())]).expect("a file of the corpus")
}

fn uid() -> impl Strategy<Value = Uid> {
    any::<[u8; 16]>().prop_map(Uid)
}

fn pointer() -> impl Strategy<Value = BlobPointer> {
    (uid(), any::<u64>(), any::<u32>(), any::<u32>(), 0..=1u32 << 20)
        .prop_map(|(uid, phys, epoch, offset, len)| BlobPointer { uid, phys, epoch, offset, len })
}

fn place() -> impl Strategy<Value = Place> {
    (uid(), any::<u64>()).prop_map(|(uid, phys)| Place { uid, phys })
}

fn span() -> impl Strategy<Value = LogSpan> {
    let end = option::of(0..u32::MAX);
    (any::<u32>(), uid(), any::<u64>(), any::<u32>(), any::<u32>(), any::<u64>(), any::<[u8; 16]>(), end)
        .prop_map(|(handle, uid, phys, epoch, start_offset, start_seq, chain, end_offset)| LogSpan {
            handle,
            uid,
            phys,
            epoch,
            start_offset,
            start_seq,
            chain,
            end_offset,
        })
}

fn root() -> impl Strategy<Value = Root> {
    let lists = (
        vec(place(), 0..9),
        vec(place(), 0..9),
        vec(any::<[u8; 16]>(), 0..=16),
        vec(span(), 0..5),
        vec(any::<u64>(), 0..20),
        vec(any::<u64>().prop_map(Loc), 0..20),
        vec(pointer(), 0..5),
    );
    (lists, any::<[u64; 5]>()).prop_map(
        |((added, freed, previous, log_spans, reserved, tops, table), numbers)| Root {
            generation: numbers[0],
            added,
            freed,
            previous,
            writer_epoch: numbers[1],
            min_header_generation: numbers[2],
            export_bytes: numbers[3],
            log_spans,
            reserved,
            tops,
            table,
            sealed_messages: numbers[4],
        },
    )
}

fn row() -> impl Strategy<Value = Row> {
    let kind = prop_oneof![Just(SegmentKind::Log), Just(SegmentKind::Index), Just(SegmentKind::Gc)];
    let state = prop_oneof![Just(SegmentState::Open), Just(SegmentState::Closed)];
    (uid(), any::<u64>(), any::<u16>(), kind, state, any::<[u32; 3]>()).prop_map(
        |(uid, phys, epoch, kind, state, [one, other, birth])| Row {
            uid,
            phys,
            epoch,
            kind,
            state,
            live: one.min(other),
            bytes: one.max(other),
            birth,
        },
    )
}

fn keyslot() -> impl Strategy<Value = Keyslot> {
    let state = prop_oneof![
        Just(KeyslotState::Active),
        Just(KeyslotState::DecryptOnly),
        Just(KeyslotState::Destroyed)
    ];
    let slot_type =
        prop_oneof![Just(SlotType::Passphrase), Just(SlotType::Keyfile), Just(SlotType::Recovery)];
    let key = (slot_type, "\\PC{0,60}", vec(any::<u8>(), 0..=1024), vec(any::<u8>(), 0..=512)).prop_map(
        |(slot_type, kek_uri, wrapped, private)| WrappedKey { slot_type, kek_uri, wrapped, private },
    );
    (state, any::<u32>(), any::<u64>(), any::<u16>(), key, any::<[u8; 32]>()).prop_map(
        |(state, epoch, created, priority, key, commit)| Keyslot {
            state,
            epoch,
            created,
            priority,
            key,
            commit,
        },
    )
}

fn header() -> impl Strategy<Value = Header> {
    let ids = (any::<[u8; 16]>(), any::<[u64; 4]>(), uniform32(any::<u8>()), uniform32(any::<u8>()));
    let geometry =
        (any::<bool>(), 21..=26u32, 1..=EXPORT_BYTES_MAX / 4096, 1..=1u64 << 30, 1..=65535u32, 2..=1024u32);
    let slots = vec((0..16usize, keyslot()), 0..4);
    (ids, geometry, slots).prop_map(|(ids, geometry, used)| {
        let (volume, [generation, compat, ro_compat, dek_created], salt, half_label) = ids;
        let (small_align, segment_bits, sectors, slots, active_epoch, ring_slots) = geometry;
        let mut keyslots = [const { None }; 16];
        used.into_iter().for_each(|(number, slot)| keyslots[number] = Some(slot));
        let mut label = [0; 64];
        label[..32].copy_from_slice(&half_label);
        Header {
            volume,
            generation,
            compat,
            ro_compat,
            align: if small_align { 512 } else { 4096 },
            segment_bytes: 1 << segment_bits,
            export_bytes: sectors * 4096,
            slots,
            data_start: 8 << 20,
            active_epoch,
            ring_slots,
            ring_offset: (1 << 20) + 65536,
            dek_created,
            salt,
            label,
            keyslots,
        }
    })
}

fn entry() -> impl Strategy<Value = Entry> {
    let lba = 0..1u64 << 48;
    prop_oneof![
        (lba.clone(), 1..=32u64, 0..=200u32).prop_map(|(lba, count, rec)| (lba, count, Op::Write, rec)),
        (lba.clone(), 1..=u64::from(u32::MAX)).prop_map(|(lba, count)| (lba, count, Op::Zero, 0)),
        (lba, 1..=u64::from(u32::MAX)).prop_map(|(lba, count)| (lba, count, Op::Trim, 0)),
    ]
    .prop_map(|(lba, count, op, rec)| Entry { sectors: SectorRange::new(Lba(lba), count), op, rec })
}

/// Locations of a leaf: runs of records, zeros and holes of any length.
fn leaf_locs() -> impl Strategy<Value = [Loc; FANOUT]> {
    let piece = (1..40usize, 0..4u8, 1..9u32, 0..500u64);
    vec(piece, 1..600).prop_map(|pieces| {
        let mut locs = [Loc::HOLE; FANOUT];
        let mut at = 0;
        for (len, what, handle, record) in pieces {
            // Short pieces now and then, so that dense leaves come up.
            let len = if what == 3 { 1 } else { len };
            for i in 0..len.min(FANOUT - at) {
                locs[at + i] = match what {
                    0 => Loc::HOLE,
                    1 => Loc::ZERO,
                    _ => Loc::record(handle, (record + i as u64) * 4112),
                };
            }
            at += len.min(FANOUT - at);
        }
        locs
    })
}

fn children() -> impl Strategy<Value = Vec<Loc>> {
    let child = prop_oneof![
        Just(Loc::HOLE),
        Just(Loc::ZERO),
        (1..u32::MAX, 0..1u64 << 22, 2..1024usize).prop_map(|(handle, offset, len)| Loc::new(
            handle,
            offset * 16,
            len * 16
        )),
    ];
    prop_oneof![
        vec(child.clone(), FANOUT),
        (vec(child, 20), 0..490usize).prop_map(|(some, at)| {
            let mut all = vec![Loc::HOLE; FANOUT];
            all[at..at + 20].copy_from_slice(&some);
            all
        }),
    ]
}

/// An input for a target, with bytes changed at some places.
fn changed(bytes: &[u8], changes: &[(usize, u8)]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, value) in changes {
        if !bytes.is_empty() {
            let at = at % bytes.len();
            bytes[at] = *value;
        }
    }
    bytes
}

fn changes() -> impl Strategy<Value = Vec<(usize, u8)>> {
    // Mostly near the start, where counts and lengths are.
    vec((prop_oneof![0..64usize, 0..1usize << 16], any::<u8>()), 1..4)
}

proptest! {
    #[test]
    fn random_bytes_are_refused_or_encoded_to_themselves(data in vec(any::<u8>(), 0..5000)) {
        TARGETS.iter().for_each(|(_, target)| target(&data));
    }

    #[test]
    fn random_sparse_bytes_are_refused_or_encoded_to_themselves(
        len in 0..5000usize, set in vec((0..300usize, 0..5u8), 0..12),
    ) {
        let data = changed(&vec![0; len], &set);
        TARGETS.iter().for_each(|(_, target)| target(&data));
    }

    #[test]
    fn headers(header in header(), changes in changes()) {
        let keys = golden::keys(Engine::default());
        let bytes = header.encode(&keys);
        let decoded = UnverifiedHeader::decode(&bytes).unwrap().verify(&keys).unwrap();
        prop_assert_eq!(&decoded, &header);
        prop_assert!(decoded.encode(&keys) == bytes);
        let input = [&bytes[..224], &bytes[4096..]].concat();
        roundtrip::header(&changed(&input, &changes));
    }

    #[test]
    fn keyslots(slot in keyslot(), changes in changes()) {
        let bytes = Keyslot::encode(Some(&slot));
        prop_assert_eq!(Keyslot::decode(bytes.as_slice().try_into().unwrap()), Ok(Some(slot)));
        roundtrip::keyslot(&changed(&bytes, &changes));
    }

    #[test]
    fn ring_blocks(numbers in any::<[u64; 3]>(), session_id in any::<[u8; 16]>(), payload in pointer(), changes in changes()) {
        let keys = golden::keys(Engine::default());
        let [generation, writer_epoch, header_generation] = numbers;
        let block = RingBlock { generation, writer_epoch, session_id, header_generation, payload };
        let (bytes, mac) = block.encode(&keys);
        prop_assert_eq!(RingBlock::decode(&bytes, &keys), Ok(Some((block, mac))));
        roundtrip::ring_block(&changed(&bytes, &changes));
    }

    #[test]
    fn roots(root in root(), changes in changes()) {
        let plaintext = root.encode();
        let decoded = Root::decode(root.generation, root.added.clone(), root.freed.clone(), &plaintext);
        prop_assert_eq!(decoded.as_ref(), Ok(&root));
        let mut envelope = Vec::new();
        for list in [&root.added, &root.freed] {
            envelope.extend_from_slice(&u32::try_from(list.len()).unwrap().to_le_bytes());
            for Place { uid, phys } in list {
                envelope.extend_from_slice(&uid.0);
                envelope.extend_from_slice(&phys.to_le_bytes());
            }
        }
        let len = u16::try_from(envelope.len()).unwrap().to_le_bytes();
        let input = [len.as_slice(), &envelope, &plaintext].concat();
        roundtrip::root_stored(&input);
        roundtrip::root_stored(&changed(&input, &changes));
        roundtrip::root_plaintext(&changed(&plaintext, &changes));
    }

    #[test]
    fn table_parts(first in any::<u32>(), rows in vec(option::of(row()), 0..50), changes in changes()) {
        let part = TablePart { first, rows };
        let bytes = part.encode();
        prop_assert_eq!(TablePart::decode(&bytes), Ok(part));
        roundtrip::table_part(&changed(&bytes, &changes));
    }

    #[test]
    fn segment_headers(data in vec(any::<u8>(), 136), good in any::<bool>(), changes in changes()) {
        let mut data = data;
        if good {
            data[8..12].copy_from_slice(&[1, 0, 0, 0]);
        }
        roundtrip::segment_header(&data);
        roundtrip::segment_header(&changed(&data, &changes));
    }

    #[test]
    fn chunk_headers(
        chain in any::<[u8; 16]>(), durable_seq in any::<u64>(), entries in vec(entry(), 0..40), changes in changes(),
    ) {
        let header = ChunkHeader { chain, durable_seq, entries };
        let plaintext = header.encode_plaintext();
        prop_assert_eq!(ChunkHeader::decode(&plaintext, 232), Ok(header));
        let input = [&[232], plaintext.as_slice()].concat();
        roundtrip::chunk_header(&input);
        roundtrip::chunk_header(&changed(&input, &changes));
    }

    #[test]
    fn chunk_prefixes(entries in 0..=ENTRIES_MAX, records in 0..=256usize, changes in changes()) {
        use sealbd::format::chunk::{ChunkLayout, ChunkPrefix};
        for align in [512, 4096] {
            let layout = ChunkLayout::new(entries, records, align);
            let prefix = ChunkPrefix {
                chunk_bytes: u32::try_from(layout.chunk_len).unwrap(),
                log_seq: 9,
                header_len: u32::try_from(layout.header_len).unwrap(),
                record_count: u32::try_from(records).unwrap(),
                crc: 5,
            };
            let bytes = prefix.encode();
            prop_assert_eq!(ChunkPrefix::decode(&bytes, align, layout.chunk_len as u64), Ok(prefix));
            prop_assert_eq!(prefix.layout(align), layout);
            prop_assert!(ChunkPrefix::decode(&bytes, align, layout.chunk_len as u64 - 1).is_err());
            roundtrip::chunk_prefix(&changed(&bytes, &changes));
        }
    }

    #[test]
    fn leaves(locs in leaf_locs(), changes in changes()) {
        match Leaf::from_locs(&locs) {
            None => prop_assert!(locs.iter().all(|loc| *loc == Loc::HOLE)),
            Some(leaf) => {
                let bytes = leaf.encode();
                prop_assert_eq!(Leaf::decode(&bytes), Ok(leaf.clone()));
                prop_assert!(leaf.to_locs() == locs);
                for index in 0..FANOUT {
                    let (loc, count) = leaf.run_at(index, FANOUT);
                    let run: Vec<Loc> = (0..count as u64).map(|i| loc.step(i)).collect();
                    prop_assert!(locs[index..index + count] == run[..]);
                }
                roundtrip::leaf(&changed(&bytes, &changes));
            }
        }
    }

    #[test]
    fn inner_pages(level in 1..=2u8, children in children(), changes in changes()) {
        let page = Inner { level, children: children.try_into().unwrap() };
        let bytes = page.encode();
        prop_assert_eq!(Inner::decode(&bytes, level), Ok(page));
        roundtrip::inner(&changed(&[&[level], bytes.as_slice()].concat(), &changes));
    }

    #[test]
    fn locations(handle in 1..=u32::MAX, offset in 0..1u64 << 22, len in 1..1024usize) {
        let loc = Loc::new(handle, offset * 16, len * 16);
        prop_assert_eq!((loc.handle(), loc.offset(), loc.len()), (Some(handle), offset * 16, len * 16));
    }

    #[test]
    fn what_clients_and_servers_send_with_bytes_changed(
        pick in any::<usize>(), changes in changes(), again in any::<prop::sample::Index>(),
    ) {
        let nbd: Vec<_> = TARGETS.iter().filter(|(name, _)| name.starts_with("nbd_")).collect();
        let (name, target) = nbd[pick % nbd.len()];
        target(&changed(&of_corpus(name, again), &changes));
    }

    #[test]
    fn audit_logs_with_bytes_changed(changes in changes(), again in any::<prop::sample::Index>()) {
        roundtrip::audit_log(&changed(&of_corpus("audit_log", again), &changes));
        roundtrip::control_lines(&changed(&of_corpus("control_lines", again), &changes));
    }

    #[test]
    fn arguments_with_bytes_changed(changes in changes(), again in any::<prop::sample::Index>()) {
        roundtrip::arguments(&changed(&of_corpus("arguments", again), &changes));
    }
}
