//! Looks at everything that reaches the store, across sessions, crashes and forks of one run:
//!
//! - I3: no block of a segment is ever written twice with different bytes, and a session writes only into
//!   segments that it opened itself;
//! - I4, I6: a slot is used anew, or given back, only when neither the newest durable root nor the one before
//!   it needs what lies there; and for the log, or filled ahead of it, only when the newest durable root reserved it.
//!
//! Roots are read with the engine's own decoders; what they say of slots is taken from their tables.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use sealbd::cipher::{Uid, VolumeKeys};
use sealbd::format::header::{HEADER_LEN, HEADER_OFFSETS, Header, UnverifiedHeader};
use sealbd::format::root::{BlobPointer, RING_BLOCK_LEN, RingBlock, Root, open_table_part};
use sealbd::format::segment::SegmentKind;
use sealbd::format::table::TablePart;

use crate::failure::Violation;
use crate::store::Image;

/// Slots from which on there are enough for a claim: three, and as many as the log may have taken since the root.
const FREE_FOR_CLAIMS: u64 = 6;

/// See the module.
#[derive(Default)]
pub(crate) struct Watch {
    volume: Option<(Header, Arc<VolumeKeys>)>,
    /// Fingerprints of blocks by segment and number of the block.
    blocks: HashMap<([u8; 16], u64), u32>,
    /// The segment that a session has in a slot.
    opened: HashMap<(u32, u64), [u8; 16]>,
    /// The first session that used a uid.
    homes: HashMap<[u8; 16], (u32, u64)>,
    /// The newest durable root and the one before.
    roots: [Option<Slots>; 2],
    /// A root on its way into the ring.
    coming: Option<Slots>,
    /// Sessions that wrote a root.
    claimed: Vec<u32>,
    /// Whether what roots say of slots binds anybody.
    pub(crate) strict: bool,
    violation: Option<Violation>,
}

/// What a root says of slots.
#[derive(Clone)]
struct Slots {
    generation: u64,
    used: BTreeMap<u64, Uid>,
    reserved: Vec<u64>,
}

impl Watch {
    /// Begins to watch a volume.
    pub(crate) fn attach(&mut self, header: Header, keys: Arc<VolumeKeys>) {
        self.volume = Some((header, keys));
    }

    /// Stops watching the volume, whose place is given to another one.
    pub(crate) fn detach(&mut self) {
        self.volume = None;
        self.roots = [None, None];
        self.coming = None;
    }

    /// The first rule that was broken, once.
    pub(crate) fn take_violation(&mut self) -> Option<Violation> {
        self.violation.take()
    }

    /// Segments seen, and blocks of them.
    pub(crate) fn seen(&self) -> (usize, usize) {
        (self.homes.len(), self.blocks.len())
    }

    /// Reads the ring anew: a crash may have taken a root away or brought one to light.
    pub(crate) fn reload(&mut self, image: &Image) {
        if let Some((header, keys)) = &mut self.volume {
            // A resize may have been taken back, or have come to light.
            let mut bytes = vec![0; HEADER_LEN];
            let mut copies: Vec<Header> = Vec::new();
            for offset in HEADER_OFFSETS {
                image.read(offset, &mut bytes);
                copies.extend(UnverifiedHeader::decode(&bytes).and_then(|copy| copy.verify(keys)).ok());
            }
            if let Some(newest) = copies.into_iter().max_by_key(|copy| copy.generation) {
                *header = newest;
            }
        }
        let Some((header, keys)) = &self.volume else { return };
        let mut blocks: Vec<RingBlock> = (0..header.ring_slots)
            .filter_map(|slot| {
                let mut bytes = [0; RING_BLOCK_LEN];
                image.read(header.ring_offset + u64::from(slot) * RING_BLOCK_LEN as u64, &mut bytes);
                RingBlock::decode(&bytes, keys).ok().flatten().map(|(block, _)| block)
            })
            .collect();
        blocks.sort_by_key(|block| std::cmp::Reverse(block.generation));
        let mut roots = blocks.iter().filter_map(|block| slots(header, keys, block, image));
        self.roots = [roots.next(), roots.next()];
    }

    /// A session asks for a write.
    pub(crate) fn write(&mut self, session: u32, offset: u64, bytes: &[u8], now: &Image) {
        let Some((header, keys)) = &mut self.volume else { return };
        if HEADER_OFFSETS.contains(&offset)
            && let Ok(new) = UnverifiedHeader::decode(bytes).and_then(|copy| copy.verify(keys))
        {
            *header = new;
            return;
        }
        if offset < header.data_start {
            self.ring_write(session, offset, bytes, now);
            return;
        }
        let segment = u64::from(header.segment_bytes);
        let (slot, within) = ((offset - header.data_start) / segment, (offset - header.data_start) % segment);
        if within + bytes.len() as u64 > segment {
            return self.report("I3", format!("a write at {offset} leaves slot {slot}"));
        }
        let align = u64::from(header.align);
        if bytes.iter().all(|byte| *byte == 0) {
            return self.fills(session, slot);
        }
        if within == 0 {
            let uid: [u8; 16] = bytes[32..48].try_into().expect("sixteen bytes");
            self.begins(session, slot, uid, bytes[10]);
        }
        let Some(uid) = self.opened.get(&(session, slot)).copied() else {
            return self.report(
                "I3 (R2)",
                format!("session {session} goes on in slot {slot}, which it did not open"),
            );
        };
        for (index, block) in (within / align..).zip(bytes.chunks(usize::try_from(align).expect("4096"))) {
            let print = crc32c::crc32c(block);
            if *self.blocks.entry((uid, index)).or_insert(print) != print {
                let what = format!(
                    "slot {slot}, byte {} of its segment: sealed twice with different bytes",
                    index * align
                );
                return self.report("I3", what);
            }
        }
    }

    /// A segment begins in a slot.
    fn begins(&mut self, session: u32, slot: u64, uid: [u8; 16], kind: u8) {
        let home = *self.homes.entry(uid).or_insert((session, slot));
        if home != (session, slot) {
            self.report("I3 (R3)", format!("the uid of slot {slot} was that of slot {} before", home.1));
        }
        self.opened.insert((session, slot), uid);
        self.is_free(session, slot, Some(uid), "used anew");
        let known = |root: &Slots| root.used.get(&slot).is_some_and(|known| known.0 == uid);
        if kind == SegmentKind::Log as u8 && !self.roots[0].as_ref().is_some_and(known) {
            self.is_reserved(session, slot, "becomes the log's");
        }
    }

    /// Only what the newest durable root reserved is for the log.
    fn is_reserved(&mut self, session: u32, slot: u64, what: &str) {
        let newest = self.roots[0].as_ref().filter(|_| self.strict && self.claimed.contains(&session));
        if let Some(root) = newest.filter(|root| !root.reserved.contains(&slot)) {
            let text = format!("slot {slot} {what}, and root {} did not reserve it", root.generation);
            self.report("one writer (§12)", text);
        }
    }

    /// Zeros go into a slot ahead of the log: nothing sealed is nothing but zeros.
    fn fills(&mut self, session: u32, slot: u64) {
        // Whoever had a segment there goes on at its peril.
        self.opened.remove(&(session, slot));
        self.is_free(session, slot, None, "filled");
        self.is_reserved(session, slot, "is filled");
    }

    /// A session gives slots back.
    pub(crate) fn discard(&mut self, session: u32, offset: u64, len: u64) {
        let Some((header, _)) = &self.volume else { return };
        let places = (offset..offset + len).step_by(header.segment_bytes as usize);
        let slots: Vec<u64> = places.filter_map(|place| header.slot_at(place)).collect();
        slots.into_iter().for_each(|slot| self.is_free(session, slot, None, "given back"));
    }

    fn is_free(&mut self, session: u32, slot: u64, uid: Option<[u8; 16]>, what: &str) {
        let (true, Some((header, _))) = (self.strict, &self.volume) else { return };
        let taken = self.roots.iter().flatten().flat_map(|root| root.used.keys());
        let free = header.slots - taken.collect::<BTreeSet<_>>().len() as u64;
        // A session that finds the volume full gives the root before the last up for its claim (§10).
        let full = free < FREE_FOR_CLAIMS && !self.claimed.contains(&session);
        for (root, which) in self.roots.iter().flatten().zip(["newest durable root", "root before it"]) {
            if full && which == "root before it" {
                continue;
            }
            if root.used.get(&slot).is_some_and(|used| Some(used.0) != uid) {
                let text = format!("slot {slot} is {what}, but the {which} ({}) needs it", root.generation);
                return self.report("I6", text);
            }
        }
    }

    fn ring_write(&mut self, session: u32, offset: u64, bytes: &[u8], now: &Image) {
        let Some((header, keys)) = &self.volume else { return };
        let ring_end = header.ring_offset + u64::from(header.ring_slots) * RING_BLOCK_LEN as u64;
        if offset < header.ring_offset || offset >= ring_end {
            return;
        }
        let Ok(Some((block, _))) = RingBlock::decode(bytes, keys) else {
            return self.report("I4", "something that is no root is written to the ring".into());
        };
        self.coming = slots(header, keys, &block, now);
        if self.coming.is_none() && self.strict {
            self.report("I4", format!("root {} is named before it can be read", block.generation));
        }
        self.claimed.push(session);
    }

    /// A write arrived and was answered well; of a root, durably.
    pub(crate) fn landed(&mut self, offset: u64) {
        let Some((header, _)) = &self.volume else { return };
        if offset < header.ring_offset || offset >= header.data_start {
            return;
        }
        if let Some(root) = self.coming.take() {
            self.roots[1] = self.roots[0].replace(root);
        }
    }

    fn report(&mut self, invariant: &'static str, what: String) {
        self.violation.get_or_insert(Violation { invariant, what });
    }
}

/// What the root that `block` names says of slots; `None` when it cannot be read.
fn slots(header: &Header, keys: &VolumeKeys, block: &RingBlock, image: &Image) -> Option<Slots> {
    let read = |pointer: &BlobPointer| {
        let len = usize::try_from(pointer.len).ok()?;
        let inside = header.slot_at(pointer.phys).is_some()
            && u64::from(pointer.offset) + u64::from(pointer.len) <= u64::from(header.segment_bytes);
        let mut bytes = vec![0; if inside { len } else { 0 }];
        image.read(pointer.phys + u64::from(pointer.offset), &mut bytes);
        Some((keys.segment_key(SegmentKind::Index as u8, pointer.uid), bytes))
    };
    let (key, bytes) = read(&block.payload)?;
    let root = Root::open(&key, block.payload.offset.into(), block.generation, &bytes).ok()?;
    let mut used = BTreeMap::new();
    for (number, pointer) in (0u64..).zip(&root.table) {
        let (key, bytes) = read(pointer)?;
        let plaintext = open_table_part(&key, pointer.offset.into(), number, &bytes).ok()?;
        for row in TablePart::decode(&plaintext).ok()?.rows.into_iter().flatten() {
            used.insert(header.slot_at(row.phys)?, row.uid);
        }
    }
    Some(Slots { generation: block.generation, used, reserved: root.reserved })
}
