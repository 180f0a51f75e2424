//! Opening a volume (docs/FORMAT.md §10 o2–o7): the newest usable root, the log behind it, and the claim
//! of this session.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, RwLock};

use tokio::sync::Notify;

use super::anchor::{Anchored, Anchoring, GENERATION_MAX, Held, Mooring, OnRollback, judge};
use super::checkpoint::Checkpointer;
use super::io::{SegmentReader, read_store};
use super::queue::Queue;
use super::replay::{Replayed, replay};
use super::resize::{settle_size, top_count};
use super::segments::{BadTable, Segments};
use super::space::Room;
use super::tail::Tail;
use super::tree::{Pages, Tree};
use super::turn::turns;
use super::unlock::Unlocked;
use super::{Core, Counters, Map, Volume, VolumeError};
use crate::cipher::{Surroundings, UidSource, VolumeKeys};
use crate::format::FormatError;
use crate::format::header::{EXPORT_BYTES_MAX, Header};
use crate::format::page::Loc;
use crate::format::root::{BlobPointer, LogSpan, RING_BLOCK_LEN, RingBlock, Root, open_table_part};
use crate::format::segment::SegmentKind;
use crate::format::table::TablePart;
use crate::geometry::{Generation, Lba, SECTOR_BYTES};
use crate::store::{Capability, SlotStore};

/// Longest stored table part: its rows and a tag.
const TABLE_PART_LEN_MAX: u32 = 2 << 20;
/// Closed spans from which on a volume folds its log in when it is opened, so that crashing again and
/// again does not make the list grow.
const SPANS_BEFORE_CHECKPOINT: usize = 64;

/// Slots that a claim takes: one for the log, and for the index as many as its largest root fills. With
/// less than that a full volume opens at the price of the root before the last.
const CLAIM_SLOTS: u64 = 3;

/// What a volume is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// Nothing is written to the store.
    ReadOnly,
    /// The volume is claimed for this process.
    ReadWrite,
}

impl Volume {
    /// Opens an unlocked volume: finds the newest root, replays the log, and claims the volume
    /// when it is opened for writing.
    ///
    /// # Errors
    /// [`VolumeError`]; nothing was written unless the claim itself failed.
    pub async fn open(
        store: Arc<dyn SlotStore>,
        unlocked: Unlocked,
        mode: OpenMode,
    ) -> Result<Self, VolumeError> {
        let Unlocked { header, keys, .. } = unlocked;
        Self::open_authentic(store, header, keys, mode, None).await
    }

    /// As [`open`](Self::open), with a header that was authenticated with `keys` and no data key, and held
    /// against an anchor if there is one: every root of this volume is anchored before anything depends on it.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`VolumeError::Rollback`] when the store is behind the anchor,
    /// [`VolumeError::Anchor`] when that cannot be known, and [`VolumeError::NotAnchored`] when the claim
    /// could not be anchored: it is on the store by then.
    pub async fn open_authentic(
        store: Arc<dyn SlotStore>,
        header: Header,
        keys: Arc<VolumeKeys>,
        mode: OpenMode,
        anchoring: Option<Anchoring>,
    ) -> Result<Self, VolumeError> {
        Box::pin(Self::open_in(Surroundings::system(host_id()), store, header, keys, mode, anchoring)).await
    }

    /// As [`open_authentic`](Self::open_authentic), for a session in `surroundings`, which no other session
    /// may share.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_in(
        surroundings: Surroundings,
        store: Arc<dyn SlotStore>,
        mut header: Header,
        keys: Arc<VolumeKeys>,
        mode: OpenMode,
        anchoring: Option<Anchoring>,
    ) -> Result<Self, VolumeError> {
        if mode == OpenMode::ReadWrite && !header.is_writable() {
            return Err(VolumeError::Unsupported(FormatError::Incompatible(header.ro_compat)));
        }
        let Capability { size, write_unit: unit, .. } = store.capability();
        if mode == OpenMode::ReadWrite && !header.align.is_multiple_of(unit) {
            return Err(VolumeError::StoreUnit { align: header.align, unit });
        }
        if size < header.store_bytes() {
            return Err(VolumeError::StoreTooSmall { found: size, needed: header.store_bytes() });
        }
        let anchored = match &anchoring {
            Some(anchoring) => anchoring.load(header.volume).await?,
            None => None,
        };
        let refusing = anchoring.as_ref().is_some_and(|to| to.on_rollback == OnRollback::Refuse);
        let oldest = anchored.filter(|_| refusing).map_or(0, |anchored| anchored.generation);
        let state = load(&store, &header, &keys, oldest).await?;
        let LoadedRoot { mut root, mut last_number, mac, segments } = state;
        if root.min_header_generation > header.generation {
            let (found, known) = (header.generation, root.min_header_generation);
            return Err(VolumeError::HeaderRollback { found, known });
        }
        let found_header = header.generation;
        let smaller = settle_size(&mut header, &mut root)?;
        let reader = SegmentReader::new(store.clone(), keys.clone(), segments, header.segment_bytes.into());
        let replayed = replay(&header, &reader, &root.log_spans).await?;
        let mooring = match anchoring {
            Some(anchoring) => {
                let held = judge(&anchoring, anchored, &root, mac, replayed.next_seq.saturating_sub(1))?;
                check_header(&held, found_header)?;
                Some(Mooring::new(anchoring, held))
            }
            None => None,
        };
        last_number = above_anchor(last_number, anchored.as_ref(), header.ring_slots.into());
        let last_epoch = anchored.map_or(0, |anchored| anchored.writer_epoch).max(root.writer_epoch);
        let freed = root.freed.iter().filter_map(|place| header.slot_at(place.phys));
        freed.for_each(|slot| reader.table_mut().hold(slot));
        let uids = UidSource::new(surroundings)?;
        let core = Core::assemble(
            uids, store, header, keys, mode, reader, root, mac, replayed, mooring, last_epoch,
        )?;
        core.generation.store(last_number, std::sync::atomic::Ordering::Relaxed);
        if mode == OpenMode::ReadWrite {
            core.take_over().await?;
            if let Some(smaller) = smaller {
                core.finish_shrink(smaller).await?;
            }
        }
        Ok(Self { core })
    }
}

impl Volume {
    /// The header generation that the newest root of a volume demands; what a restored header must
    /// not be below.
    ///
    /// # Errors
    /// [`VolumeError`] when there is no usable root.
    pub async fn header_generation_of_root(
        store: &dyn SlotStore,
        unlocked: &Unlocked,
    ) -> Result<u64, VolumeError> {
        let Unlocked { header, keys, .. } = unlocked;
        let ring = read_ring(store, header, keys).await?;
        Ok(ring.first().map_or(0, |(block, _)| block.header_generation))
    }
}

impl Volume {
    /// Holds the newest root of a volume against its anchor, without opening the volume: for whoever changes
    /// nothing but the header.
    ///
    /// # Errors
    /// [`VolumeError::Rollback`], [`VolumeError::HeaderRollback`], [`VolumeError::Anchor`]. What is wrong with
    /// the root itself is left to whoever opens the volume.
    pub async fn held_against(
        store: &dyn SlotStore,
        unlocked: &Unlocked,
        anchoring: &Anchoring,
    ) -> Result<(), VolumeError> {
        let Unlocked { header, keys, .. } = unlocked;
        let Some(anchored) = anchoring.load(header.volume).await? else { return Ok(()) };
        let Ok(ring) = read_ring(store, header, keys).await else { return Ok(()) };
        let Some((block, mac)) = ring.first() else { return Ok(()) };
        let Ok(root) = read_payload(store, header, keys, block).await else { return Ok(()) };
        let held = judge(anchoring, Some(anchored), &root, *mac, anchored.log_seq)?;
        check_header(&held, header.generation)
    }
}

impl Core {
    /// An open volume that has not been claimed yet.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is one finding of the steps before; none belongs together"
    )]
    pub(super) fn assemble(
        uids: UidSource,
        store: Arc<dyn SlotStore>,
        header: Header,
        keys: Arc<VolumeKeys>,
        mode: OpenMode,
        segments: SegmentReader,
        root: Root,
        mac: [u8; 16],
        replayed: Replayed,
        mooring: Option<Mooring>,
        last_epoch: u64,
    ) -> Result<Arc<Self>, VolumeError> {
        let Replayed { delta, spans, segments: log, next_seq, chain, last_uid } = replayed;
        let tail = Tail::new(next_seq, chain, last_uid, VecDeque::from(log));
        let nowhere = LogSpan {
            handle: 0,
            uid: last_uid,
            phys: 0,
            epoch: header.active_epoch,
            start_offset: 0,
            start_seq: next_seq,
            chain,
            end_offset: None,
        };
        let mut previous = root.previous;
        previous.insert(0, mac);
        previous.truncate(crate::format::root::PREVIOUS_MAX);
        let checkpointer = Checkpointer {
            index: super::index_writer::IndexWriter::default(),
            previous,
            replayed: spans,
            rooted: None,
            header_generation: header.generation,
        };
        let fills = AtomicBool::new(store.capability().prefers_written);
        Ok(Arc::new(Self {
            store,
            mode,
            keys,
            uids,
            segments,
            pages: Pages::new(),
            map: RwLock::new(Map { active: delta, frozen: None, tree: Arc::new(Tree { tops: root.tops }) }),
            queue: Mutex::new(Queue::new(nowhere, Lba(header.export_bytes / SECTOR_BYTES))),
            tail: Mutex::new(tail),
            checkpointer: tokio::sync::Mutex::new(checkpointer),
            reclaimer: tokio::sync::Mutex::default(),
            moves: Mutex::default(),
            room: Room::new(header.slots, header.export_bytes, header.segment_bytes.into()),
            flusher: tokio::sync::Mutex::new(()),
            read_lately: AtomicBool::new(false),
            fills,
            wake: Arc::new(Notify::new()),
            progress: Notify::new(),
            turns: turns(),
            counters: Counters {
                sealed_messages: AtomicU64::new(root.sealed_messages),
                ..Counters::default()
            },
            generation: AtomicU64::new(root.generation),
            writer_epoch: last_epoch + u64::from(mode == OpenMode::ReadWrite),
            mooring,
            header: RwLock::new(Arc::new(header)),
            gone: tokio::sync::watch::Sender::new(()),
        }))
    }

    /// A core for a volume that has no root yet.
    pub(super) fn unborn(
        surroundings: Surroundings,
        store: Arc<dyn SlotStore>,
        header: Header,
        keys: Arc<VolumeKeys>,
    ) -> Result<Arc<Self>, VolumeError> {
        let segments = Segments::new(header.slots);
        let reader = SegmentReader::new(store.clone(), keys.clone(), segments, header.segment_bytes.into());
        let root = Root {
            generation: 0,
            added: Vec::new(),
            freed: Vec::new(),
            previous: Vec::new(),
            writer_epoch: 0,
            min_header_generation: 0,
            export_bytes: header.export_bytes,
            log_spans: Vec::new(),
            reserved: Vec::new(),
            tops: Tree::empty(header.export_bytes / SECTOR_BYTES).tops,
            table: Vec::new(),
            sealed_messages: 0,
        };
        let replayed = Replayed {
            delta: super::delta::Delta::default(),
            spans: Vec::new(),
            segments: Vec::new(),
            next_seq: 1,
            chain: [0; 16],
            last_uid: crate::cipher::Uid::default(),
        };
        let uids = UidSource::new(surroundings)?;
        let core = Self::assemble(
            uids,
            store,
            header,
            keys,
            OpenMode::ReadOnly,
            reader,
            root,
            [0; 16],
            replayed,
            None,
            0,
        )?;
        core.checkpointer.try_lock().expect("nobody else knows the core").previous.clear();
        Ok(core)
    }

    /// Claims the volume: a fresh segment for the log, and a root that closes the old one where it
    /// ends. From here on no other session's chunks can become part of the volume.
    async fn take_over(self: &Arc<Self>) -> Result<(), VolumeError> {
        self.flush_store().await?;
        {
            let mut table = self.segments.table_mut();
            table.close_all();
            if table.slots().free() < CLAIM_SLOTS {
                table.release_held();
            }
            // Any free slot will do, one that the old root reserved included: whoever reserved it has
            // lost the store's lock. Without such a lock this would have to leave them out (§12).
            table.slots_mut().reserve(1);
            table.slots_mut().use_reserving();
        }
        let generation = Generation(self.generation.load(std::sync::atomic::Ordering::Relaxed) + 1);
        let first = self.prepare_log_segment(generation)?.ok_or(VolumeError::NoSpace)?;
        let mut checkpointer = self.checkpointer.lock().await;
        {
            let mut tail = self.tail();
            tail.segments.push_back(first.handle);
            tail.next = Some(first);
            let span = tail.span_of_next(self.header().active_epoch).expect("prepared above");
            let mut queue = self.queue();
            *queue = Queue::new(span, queue.end);
            queue.replayed_bytes = checkpointer.replayed.iter().map(replayed_bytes).sum();
        }
        let many = checkpointer.replayed.len() >= SPANS_BEFORE_CHECKPOINT;
        self.claim_twice(&mut checkpointer).await?;
        drop(checkpointer);
        // Whoever asked for an anchor is not served without one.
        self.check_anchored()?;
        if many {
            self.checkpoint().await?;
        }
        self.start_maintenance();
        Ok(())
    }

    /// What was replayed may lie in a cache only; it must not be lost behind the claim.
    async fn flush_store(&self) -> Result<(), VolumeError> {
        Ok(self.sync_store().await?)
    }
}

fn replayed_bytes(span: &LogSpan) -> u64 {
    span.end_offset.map_or(0, |end| end.saturating_sub(span.start_offset)).into()
}

/// A root with all that hangs on it.
pub(super) struct LoadedRoot {
    pub(super) root: Root,
    /// The number that the next root's follows.
    pub(super) last_number: u64,
    pub(super) mac: [u8; 16],
    pub(super) segments: Segments,
}

/// The number that the next root's follows: that of the last root or, where the anchor holds a higher one, the
/// first above it that leads to the same ring block. So a state that is taken in spite of its anchor is newer
/// than what it was taken for, and no second block of the ring is ever torn.
fn above_anchor(last_number: u64, anchored: Option<&Anchored>, rounds: u64) -> u64 {
    let behind = anchored.map_or(0, |known| known.generation.min(GENERATION_MAX).saturating_sub(last_number));
    last_number + behind.next_multiple_of(rounds)
}

/// A header that an anchored root would refuse.
fn check_header(held: &Held, found: u64) -> Result<(), VolumeError> {
    let known = held.last.map_or(0, |anchored| anchored.header_generation);
    if found < known && held.accepted.is_none() {
        return Err(VolumeError::HeaderRollback { found, known });
    }
    Ok(())
}

/// Loads the newest root, or the one before it.
///
/// Older ones are out of the question: the slots that they need may have been used again (c8). So is one
/// before the root `oldest` in the place of a newer one: that it is behind the anchor is then no rollback but
/// damage of the newer one.
async fn load(
    store: &Arc<dyn SlotStore>,
    header: &Header,
    keys: &VolumeKeys,
    oldest: u64,
) -> Result<LoadedRoot, VolumeError> {
    let ring = read_ring(&**store, header, keys).await?;
    let mut reasons = Vec::new();
    for (block, mac) in ring.iter().take(2) {
        // Numbers that were tried in vain lie whole rounds apart; the root before is one block back.
        if (ring[0].0.generation - block.generation) % u64::from(header.ring_slots) > 1 {
            break;
        }
        if block.generation < oldest && ring[0].0.generation >= oldest {
            reasons.push(format!("root {} is older than the anchor allows", block.generation));
            break;
        }
        match load_root(&**store, header, keys, block).await {
            Ok((root, segments)) => {
                let newest = ring[0].0.generation;
                let rounds = u64::from(header.ring_slots);
                // A number that was used is never used again: the next root takes the place of the
                // newest one if that one cannot be read.
                let last_number = if block.generation == newest { newest } else { newest + rounds - 1 };
                return Ok(LoadedRoot { root, mac: *mac, segments, last_number });
            }
            Err(error @ VolumeError::Store(_)) => return Err(error),
            Err(error) => reasons.push(format!("root {}: {error}", block.generation)),
        }
    }
    Err(VolumeError::NoRoot(reasons.join("; ")))
}

/// The ring as it stands on the store.
pub(super) struct Ring {
    /// Valid blocks with their codes, newest first.
    pub(super) valid: Vec<(RingBlock, [u8; 16])>,
    /// The others that are not empty, by their number in the ring.
    pub(super) bad: Vec<(u64, FormatError)>,
}

/// Reads every block of the ring.
pub(super) async fn read_ring_blocks(
    store: &dyn SlotStore,
    header: &Header,
    keys: &VolumeKeys,
) -> Result<Ring, VolumeError> {
    let slots = u64::from(header.ring_slots);
    let len = usize::try_from(slots).expect("at most 1024") * RING_BLOCK_LEN;
    let bytes = read_store(store, header.ring_offset, len).await?;
    let mut ring = Ring { valid: Vec::new(), bad: Vec::new() };
    for (slot, block) in (0u64..).zip(bytes.chunks_exact(RING_BLOCK_LEN)) {
        match RingBlock::decode(block, keys) {
            Ok(Some((block, mac))) if block.generation % slots == slot => ring.valid.push((block, mac)),
            Ok(None) => {}
            Ok(Some(_)) => ring.bad.push((slot, FormatError::Authentication("ring block"))),
            Err(source) => ring.bad.push((slot, source)),
        }
    }
    ring.valid.sort_by_key(|(block, _)| std::cmp::Reverse(block.generation));
    Ok(ring)
}

/// The valid ring blocks, newest first.
///
/// Only the block behind the newest root's may be torn: a root is written while all others rest. Any
/// other one that is not what it should be is damage, and named.
pub(super) async fn read_ring(
    store: &dyn SlotStore,
    header: &Header,
    keys: &VolumeKeys,
) -> Result<Vec<(RingBlock, [u8; 16])>, VolumeError> {
    let slots = u64::from(header.ring_slots);
    let Ring { valid, bad } = read_ring_blocks(store, header, keys).await?;
    let Some(newest) = valid.first().map(|(block, _)| block.generation) else {
        let why = bad.into_iter().map(|(slot, source)| format!("block {slot}: {source}")).collect::<Vec<_>>();
        let why = if why.is_empty() { "the root ring is empty".to_owned() } else { why.join("; ") };
        return Err(VolumeError::NoRoot(why));
    };
    for (slot, source) in bad {
        if slot != (newest + 1) % slots {
            let offset = header.ring_offset + slot * RING_BLOCK_LEN as u64;
            return Err(VolumeError::damaged("ring block", offset, source));
        }
    }
    Ok(valid)
}

pub(super) async fn load_root(
    store: &dyn SlotStore,
    header: &Header,
    keys: &VolumeKeys,
    block: &RingBlock,
) -> Result<(Root, Segments), VolumeError> {
    let root = read_payload(store, header, keys, block).await?;
    if root.table.is_empty() {
        return Err(VolumeError::Inconsistent("the root has no segment table".into()));
    }
    let mut segments = Segments::new(header.slots);
    for number in 0..root.table.len() {
        let part = read_table_part(store, header, keys, &root, number).await?;
        segments
            .load(&part, |phys| header.slot_at(phys))
            .map_err(|BadTable(why)| VolumeError::Inconsistent(why))?;
    }
    for span in &root.log_spans {
        let row = segments.row(span.handle);
        if row.is_none_or(|row| row.uid != span.uid || row.phys != span.phys) {
            return Err(VolumeError::Inconsistent(
                "a log span names a segment that the table does not have".into(),
            ));
        }
    }
    Ok((root, segments))
}

/// One part of the segment table that a root names.
///
/// # Panics
/// When the root has no part of that number.
pub(super) async fn read_table_part(
    store: &dyn SlotStore,
    header: &Header,
    keys: &VolumeKeys,
    root: &Root,
    number: usize,
) -> Result<TablePart, VolumeError> {
    let pointer = &root.table[number];
    let stored = read_blob(store, header, pointer, TABLE_PART_LEN_MAX).await?;
    let key = keys.segment_key(SegmentKind::Index as u8, pointer.uid);
    let at = pointer.phys + u64::from(pointer.offset);
    open_table_part(&key, pointer.offset.into(), number as u64, &stored)
        .and_then(|plaintext| TablePart::decode(&plaintext))
        .map_err(|source| VolumeError::damaged("segment table", at, source))
}

/// What a ring block names.
pub(super) async fn read_payload(
    store: &dyn SlotStore,
    header: &Header,
    keys: &VolumeKeys,
    block: &RingBlock,
) -> Result<Root, VolumeError> {
    let stored = read_blob(store, header, &block.payload, crate::format::root::PAYLOAD_LEN_MAX).await?;
    let key = keys.segment_key(SegmentKind::Index as u8, block.payload.uid);
    let at = block.payload.phys + u64::from(block.payload.offset);
    let root = Root::open(&key, block.payload.offset.into(), block.generation, &stored)
        .map_err(|source| VolumeError::damaged("root payload", at, source))?;
    check_root(&root)?;
    Ok(root)
}

fn check_root(root: &Root) -> Result<(), VolumeError> {
    if !root.export_bytes.is_multiple_of(SECTOR_BYTES) || !(1..=EXPORT_BYTES_MAX).contains(&root.export_bytes)
    {
        return Err(VolumeError::Inconsistent("the root names a size that no volume has".into()));
    }
    if root.tops.len() != top_count(root.export_bytes) {
        return Err(VolumeError::Inconsistent(
            "the root has another number of top pointers than the size needs".into(),
        ));
    }
    if root.tops.iter().any(|loc| loc.handle().is_none() && *loc != Loc::HOLE && *loc != Loc::ZERO) {
        return Err(VolumeError::Inconsistent("a top pointer is malformed".into()));
    }
    if root.log_spans.iter().rev().skip(1).any(|span| span.end_offset.is_none()) {
        return Err(VolumeError::Inconsistent("a log span before the last one is open".into()));
    }
    Ok(())
}

async fn read_blob(
    store: &dyn SlotStore,
    header: &Header,
    pointer: &BlobPointer,
    len_max: u32,
) -> Result<Vec<u8>, VolumeError> {
    let end = u64::from(pointer.offset) + u64::from(pointer.len);
    if header.slot_at(pointer.phys).is_none() || pointer.len > len_max || end > header.segment_bytes.into() {
        return Err(VolumeError::Inconsistent("a blob pointer names no place on the store".into()));
    }
    Ok(read_store(store, pointer.phys + u64::from(pointer.offset), pointer.len as usize).await?)
}

/// Something that differs from host to host, for making uids; empty where there is nothing.
pub(super) fn host_id() -> Vec<u8> {
    let mut id = std::fs::read("/etc/machine-id").unwrap_or_default();
    id.truncate(64);
    id.extend_from_slice(&std::process::id().to_le_bytes());
    id
}
