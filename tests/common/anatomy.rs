//! Where the structures of a volume lie on its store, found with the library's own decoders, and ways to
//! damage them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "every test uses a part of these")]

use std::sync::Arc;

use sealbd::cipher::{Engine, Uid, VolumeKeys};
use sealbd::format::chunk::{ChunkHeader, ChunkPrefix, chunk_places};
use sealbd::format::header::Header;
use sealbd::format::page::{FANOUT, Inner, Leaf, Loc, TOP_LEVEL, open_sealed_page};
use sealbd::format::root::{RING_BLOCK_LEN, RingBlock, Root, open_table_part};
use sealbd::format::segment::{SEGMENT_HEADER_LEN, SegmentHeader, SegmentKind};
use sealbd::format::table::{Row, TablePart};
use sealbd::store::memory::MemoryStore;

use super::volumes;

/// A run of bytes on the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) offset: u64,
    pub(crate) len: usize,
}

/// A chunk of the log.
pub(crate) struct FoundChunk {
    pub(crate) seq: u64,
    pub(crate) durable_seq: u64,
    pub(crate) phys: u64,
    pub(crate) place: Place,
    pub(crate) records_offset: usize,
}

/// A volume taken apart.
pub(crate) struct Anatomy {
    pub(crate) header: Header,
    pub(crate) keys: Arc<VolumeKeys>,
    pub(crate) dek: [u8; 32],
    pub(crate) newest: RingBlock,
    pub(crate) root: Root,
    pub(crate) rows: Vec<Option<Row>>,
    /// Index pages by level, ascending.
    pub(crate) pages: [Vec<Place>; 3],
    /// Where sectors lie that the tree maps, by address.
    pub(crate) records: Vec<(u64, Place)>,
    /// The chunks that a replay visits.
    pub(crate) log: Vec<FoundChunk>,
    /// Segments that the replay visits.
    pub(crate) log_segments: Vec<u64>,
}

impl Anatomy {
    pub(crate) async fn of(store: &MemoryStore) -> Self {
        let unlocked = volumes::unlock_with(store, Engine::default()).await.unwrap();
        let (header, keys) = (unlocked.header, unlocked.keys);
        let blocks = (0..u64::from(header.ring_slots)).filter_map(|slot| {
            let block = store.read_raw(header.ring_offset + slot * 4096, RING_BLOCK_LEN);
            Some(RingBlock::decode(&block, &keys).unwrap()?.0)
        });
        let newest = blocks.max_by_key(|block| block.generation).unwrap();
        let root = open_root(store, &keys, &newest);
        let mut rows = Vec::new();
        for (number, part) in (0u64..).zip(&root.table) {
            let stored = store.read_raw(part.phys + u64::from(part.offset), part.len as usize);
            let key = keys.segment_key(SegmentKind::Index as u8, part.uid);
            let plaintext = open_table_part(&key, part.offset.into(), number, &stored).unwrap();
            rows.extend(TablePart::decode(&plaintext).unwrap().rows);
        }
        let mut anatomy = Self {
            header,
            keys,
            dek: *unlocked.dek.0.expose(),
            newest,
            root,
            rows,
            pages: Default::default(),
            records: Vec::new(),
            log: Vec::new(),
            log_segments: Vec::new(),
        };
        for (number, top) in (0u64..).zip(anatomy.root.tops.clone()) {
            anatomy.walk(store, TOP_LEVEL, number, top);
        }
        anatomy.walk_log(store);
        anatomy
    }

    pub(crate) fn place(&self, loc: Loc) -> Option<(Place, Row)> {
        let row = self.rows[loc.handle()? as usize].unwrap();
        Some((Place { offset: row.phys + loc.offset(), len: loc.len() }, row))
    }

    /// The ring block of root `generation`.
    pub(crate) fn ring_block(&self, generation: u64) -> Place {
        let slot = generation % u64::from(self.header.ring_slots);
        Place { offset: self.header.ring_offset + slot * 4096, len: RING_BLOCK_LEN }
    }

    /// Ring block and payload of root `generation`, which must be in the ring.
    pub(crate) fn root_of(&self, store: &MemoryStore, generation: u64) -> (RingBlock, Root) {
        let place = self.ring_block(generation);
        let bytes = store.read_raw(place.offset, place.len);
        let (block, _) = RingBlock::decode(&bytes, &self.keys).unwrap().unwrap();
        assert_eq!(block.generation, generation);
        let root = open_root(store, &self.keys, &block);
        (block, root)
    }

    /// The payload of the newest root.
    pub(crate) fn payload(&self) -> Place {
        let pointer = self.newest.payload;
        Place { offset: pointer.phys + u64::from(pointer.offset), len: pointer.len as usize }
    }

    /// The first part of the segment table.
    pub(crate) fn table(&self) -> Place {
        let pointer = self.root.table[0];
        Place { offset: pointer.phys + u64::from(pointer.offset), len: pointer.len as usize }
    }

    fn walk(&mut self, store: &MemoryStore, level: u8, number: u64, loc: Loc) {
        let Some((place, row)) = self.place(loc) else { return };
        let sealed = store.read_raw(place.offset, place.len);
        let key = self.keys.segment_key(row.kind as u8, row.uid);
        let plaintext = open_sealed_page(&key, loc.offset(), level, number, &sealed).unwrap();
        self.pages[usize::from(level)].push(place);
        if level > 0 {
            let children = Inner::decode(&plaintext, level).unwrap().children;
            for (index, child) in (0u64..).zip(children.iter()) {
                self.walk(store, level - 1, number * FANOUT as u64 + index, *child);
            }
            return;
        }
        for (index, loc) in (0u64..).zip(Leaf::decode(&plaintext).unwrap().to_locs()) {
            if let Some((place, _)) = self.place(loc) {
                self.records.push((number * FANOUT as u64 + index, place));
            }
        }
    }

    fn walk_log(&mut self, store: &MemoryStore) {
        let segment_bytes = u64::from(self.header.segment_bytes);
        for span in self.root.log_spans.clone() {
            let end = span.end_offset.map_or(segment_bytes, u64::from);
            let (mut uid, mut phys, mut at) = (span.uid, span.phys, u64::from(span.start_offset));
            loop {
                self.log_segments.push(phys);
                let behind = |at| chunk_places(at).find_map(|at| self.chunk(store, uid, phys, at, end));
                let found: Vec<_> = std::iter::successors(behind(at), |chunk| {
                    behind(chunk.place.offset + chunk.place.len as u64 - phys)
                })
                .collect();
                self.log.extend(found);
                let key = self.keys.segment_key(SegmentKind::Log as u8, uid);
                let bytes = store.read_raw(phys, SEGMENT_HEADER_LEN);
                let header = SegmentHeader::open(&bytes, &self.keys, &key, SegmentKind::Log);
                let Ok(header) = header else { break };
                if span.end_offset.is_some() {
                    break;
                }
                (uid, phys, at) = (header.next_uid, header.next_phys, SEGMENT_HEADER_LEN as u64);
            }
        }
    }

    fn chunk(&self, store: &MemoryStore, uid: Uid, phys: u64, at: u64, end: u64) -> Option<FoundChunk> {
        let room = end.checked_sub(at)?;
        let bytes = store.read_raw(phys + at, usize::try_from(room).unwrap());
        let align = self.header.align as usize;
        let prefix = ChunkPrefix::decode(bytes.first_chunk()?, align, room).ok()?;
        let key = self.keys.segment_key(SegmentKind::Log as u8, uid);
        let (header, _) = ChunkHeader::open(&prefix, &key, at, &bytes).ok()?;
        Some(FoundChunk {
            seq: prefix.log_seq,
            durable_seq: header.durable_seq,
            phys,
            place: Place { offset: phys + at, len: prefix.chunk_bytes as usize },
            records_offset: prefix.layout(align).records_offset,
        })
    }
}

fn open_root(store: &MemoryStore, keys: &VolumeKeys, block: &RingBlock) -> Root {
    let pointer = block.payload;
    let stored = store.read_raw(pointer.phys + u64::from(pointer.offset), pointer.len as usize);
    let key = keys.segment_key(SegmentKind::Index as u8, pointer.uid);
    Root::open(&key, pointer.offset.into(), block.generation, &stored).unwrap()
}

/// Changes one bit in the middle of a place.
pub(crate) fn flip(store: &MemoryStore, place: Place) {
    flip_at(store, place.offset + place.len as u64 / 2);
}

/// Changes one bit.
pub(crate) fn flip_at(store: &MemoryStore, offset: u64) {
    let byte = store.read_raw(offset, 1)[0];
    store.write_raw(offset, &[byte ^ 0x10]);
}

/// Overwrites a place with zeros.
pub(crate) fn zero(store: &MemoryStore, place: Place) {
    store.write_raw(place.offset, &vec![0; place.len]);
}

/// Cuts a place short: its second half becomes zeros.
pub(crate) fn truncate(store: &MemoryStore, place: Place) {
    let half = place.len / 2;
    zero(store, Place { offset: place.offset + half as u64, len: place.len - half });
}

/// Puts into a place what another store (or the same one earlier) holds there.
pub(crate) fn replay(store: &MemoryStore, place: Place, from: &MemoryStore) {
    store.write_raw(place.offset, &from.read_raw(place.offset, place.len));
}

/// Exchanges two places of one length.
pub(crate) fn swap(store: &MemoryStore, one: Place, other: Place) {
    assert_eq!(one.len, other.len, "only places of one length can be exchanged");
    let (first, second) = (store.read_raw(one.offset, one.len), store.read_raw(other.offset, other.len));
    store.write_raw(one.offset, &second);
    store.write_raw(other.offset, &first);
}
