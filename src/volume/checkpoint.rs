//! Checkpoints and roots (docs/FORMAT.md §10): folding the newer entries into the tree, and writing
//! down one consistent state.
//!
//! Every root is written by [`Core::write_root`]: the first one of a new volume, the claim root of
//! an opened one, and those of checkpoints. One checkpoint runs at a time; writers go on meanwhile.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use super::anchor::Anchored;
use super::cold::Moves;
use super::delta::{Delta, Run};
use super::error::store_to_export;
use super::index_writer::IndexWriter;
use super::io::write_store;
use super::merge::{Changes, Merger};
use super::queue::Health;
use super::segments::LiveChange;
use super::tree::Tree;
use super::{Core, VolumeError};
use crate::cipher::TAG_LEN;
use crate::export::ExportError;
use crate::format::page::{Handle, Loc};
use crate::format::root::{
    BLOB_POINTER_LEN, BlobPointer, LogSpan, PLACE_LEN, PLACES_MAX, PREVIOUS_MAX, RING_BLOCK_LEN, RingBlock,
    Root, seal_table_part,
};
use crate::format::table::TablePart;
use crate::geometry::Generation;
use crate::store::{Persist, StoreError};

/// Slots that a root reserves for the time until the next: three times the log after which a checkpoint comes (§10),
/// at 8 MiB a segment, which is room for what is written while it is made, and for the index.
const RESERVE_TARGET: usize = 192;

/// What only the running checkpoint touches.
#[derive(Default)]
pub(super) struct Checkpointer {
    pub(super) index: IndexWriter,
    /// Authentication codes of the last roots, newest first.
    pub(super) previous: Vec<[u8; 16]>,
    /// Closed stretches of log that recovery replayed and no checkpoint has folded in yet.
    pub(super) replayed: Vec<LogSpan>,
    /// Where the log of the last checkpoint's root starts, if this session wrote one.
    pub(super) rooted: Option<LogSpan>,
    /// Header generation that roots demand from now on.
    pub(super) header_generation: u64,
}

/// What a root is to say.
struct Plan {
    tree: Tree,
    spans: Vec<LogSpan>,
    change: LiveChange,
    /// The oldest log segment that a replay of this root visits, if there is one.
    oldest_log: Option<Handle>,
}

/// A root that is durable, and what it made superfluous.
struct Durable {
    generation: Generation,
    dead: Vec<Handle>,
}

/// What a checkpoint leads to.
struct Folded {
    tree: Tree,
    /// Pages that only the tree before had, not always all of them.
    replaced: Vec<Loc>,
    root: Durable,
}

impl Core {
    /// Folds every entry of completed chunks into the tree and writes a root.
    ///
    /// # Errors
    /// [`VolumeError`]; the volume goes on with its old root.
    pub(super) async fn checkpoint(self: &Arc<Self>) -> Result<(), VolumeError> {
        let mut checkpointer = self.checkpointer.lock().await;
        if let Health::Stopped(error) = &self.queue().health {
            return Err(stopped(error.clone()));
        }
        self.checkpoint_locked(&mut checkpointer).await
    }

    /// Finishes what is being written, refuses everything from now on, and writes a last root. When
    /// it returns, nothing of this session reaches the store any more.
    pub(super) async fn close(self: &Arc<Self>) -> Result<(), VolumeError> {
        // When that fails, the last root leaves the failed chunk to the next session's replay.
        let _repaired = self.repair().await;
        // Held to the end: nothing is moved any more.
        let mut still = self.reclaimer.lock().await;
        still.give_up(self).await;
        let mut checkpointer = self.checkpointer.lock().await;
        let (before, waiting) = {
            let mut queue = self.queue();
            let before = queue.health.clone();
            queue.stop(ExportError::ShuttingDown);
            (before, queue.drain_waiting())
        };
        waiting.iter().for_each(|done| done.part_done(Err(ExportError::ShuttingDown)));
        self.wake.notify_one();
        self.nothing_in_flight().await;
        match before {
            Health::Stopped(ExportError::ShuttingDown) => Ok(()),
            Health::Stopped(error) => Err(stopped(error)),
            Health::Good | Health::NeedsRepair(_) => {
                self.checkpoint_locked(&mut checkpointer).await?;
                self.drop_idle(Duration::ZERO).await;
                self.check_anchored()
            }
        }
    }

    async fn nothing_in_flight(&self) {
        loop {
            let progress = self.progress.notified();
            if self.queue().in_flight.is_empty() {
                return;
            }
            progress.await;
        }
    }

    /// The same for who holds the checkpointer.
    pub(super) async fn checkpoint_locked(
        self: &Arc<Self>,
        checkpointer: &mut Checkpointer,
    ) -> Result<(), VolumeError> {
        let mut unfinished = Unfinished { core: self, armed: true };
        // c1: freeze at a chunk boundary.
        let (frozen, span, unrooted, replayed) = {
            let mut queue = self.queue();
            let unrooted = std::mem::take(&mut queue.unrooted_bytes);
            let replayed = std::mem::take(&mut queue.replayed_bytes);
            let mut map = self.map_mut();
            let frozen = Arc::new(std::mem::take(&mut map.active));
            map.frozen = Some(frozen.clone());
            let mut span = queue.completed;
            if queue.is_over() {
                // Nothing follows in this session: its last root says where the log ends.
                span.end_offset = Some(span.start_offset);
            }
            (frozen, span, unrooted, replayed)
        };
        let tree = self.map().tree.clone();
        let mut moves = std::mem::take(&mut *self.moves());
        // What a long run has left may lie around what a short one has.
        moves.moves.sort_unstable_by_key(|moved| moved.sectors.start);
        let written = self.fold_and_write(checkpointer, &frozen, &moves, &tree, span).await;
        let result = match written {
            Ok(Folded { tree, replaced, root }) => {
                {
                    let mut map = self.map_mut();
                    map.tree = Arc::new(tree);
                    map.frozen = None;
                }
                // While their rows are there.
                self.pages.forget(&self.segments, &replaced);
                {
                    let mut table = self.segments.table_mut();
                    moves.full.iter().for_each(|handle| table.close(*handle));
                }
                // With their guards, before what they may have looked at is retired.
                drop(moves);
                self.retire(root);
                Ok(())
            }
            Err(error) => {
                {
                    let mut queue = self.queue();
                    queue.unrooted_bytes += unrooted;
                    queue.replayed_bytes += replayed;
                }
                self.moves().put_back(moves);
                let mut map = self.map_mut();
                map.frozen = None;
                let newer = std::mem::replace(&mut map.active, Arc::unwrap_or_clone(frozen));
                map.active.overlay(&newer);
                Err(error)
            }
        };
        unfinished.armed = false;
        result
    }

    async fn fold_and_write(
        self: &Arc<Self>,
        checkpointer: &mut Checkpointer,
        frozen: &Delta,
        moves: &Moves,
        tree: &Tree,
        span: LogSpan,
    ) -> Result<Folded, VolumeError> {
        // The frozen entries name records that must be durable before a root does.
        self.sync_to(span.start_seq - 1).await.map_err(stopped)?;
        // c2, c3: new pages.
        let pages = self.pages_to_move(tree).await?;
        let runs: Vec<Run> = frozen.runs().collect();
        let changes = Changes { runs: &runs, moves: &moves.moves, pages: &pages };
        let (change, replaced) = (LiveChange::default(), Vec::new());
        let mut merger = Merger { core: self, old: tree, index: &mut checkpointer.index, change, replaced };
        let merged = merger.merge(changes).await;
        let Merger { change, replaced, .. } = merger;
        drop(runs);
        let new = match merged {
            Ok(new) => new,
            Err(error) => {
                checkpointer.index.take_back(self);
                return Err(error);
            }
        };
        let plan = Plan { tree: new.clone(), spans: vec![span], change, oldest_log: Some(span.handle) };
        let replayed = std::mem::take(&mut checkpointer.replayed);
        let durable = self.write_root(checkpointer, plan).await;
        if durable.is_err() {
            checkpointer.replayed = replayed;
        } else {
            self.forget_log_before(span.handle);
            checkpointer.rooted = Some(span);
        }
        durable.map(|root| Folded { tree: new, replaced, root })
    }

    /// Writes a root that says what the last checkpoint's said: what that one freed becomes usable, and
    /// no page is written for it.
    ///
    /// # Errors
    /// As [`Self::checkpoint`].
    pub(super) async fn root_again(self: &Arc<Self>) -> Result<(), VolumeError> {
        let mut checkpointer = self.checkpointer.lock().await;
        if let Health::Stopped(error) = &self.queue().health {
            return Err(stopped(error.clone()));
        }
        let Some(span) = checkpointer.rooted else {
            return self.checkpoint_locked(&mut checkpointer).await;
        };
        let tree = (*self.map().tree).clone();
        let oldest_log = Some(span.handle);
        let plan = Plan { tree, spans: vec![span], change: LiveChange::default(), oldest_log };
        let root = self.write_root(&mut checkpointer, plan).await?;
        self.retire(root);
        Ok(())
    }

    /// Writes the root that claims the volume for this session, or the first one of a new volume:
    /// the tree as it is, the log closed where it ends, and a fresh segment to go on in.
    pub(super) async fn claim(self: &Arc<Self>, checkpointer: &mut Checkpointer) -> Result<(), VolumeError> {
        let tree = (*self.map().tree).clone();
        let spans = checkpointer.replayed.iter().copied().chain(self.open_span()).collect();
        let oldest_log = self.tail().segments.front().copied();
        let plan = Plan { tree, spans, change: LiveChange::default(), oldest_log };
        let root = self.write_root(checkpointer, plan).await?;
        self.retire(root);
        Ok(())
    }

    /// Writes a claim root and the same again. The root before a claim does not lead to the segment that
    /// the log goes on in; with two that do, no single damaged block hides what is logged from here on.
    pub(super) async fn claim_twice(
        self: &Arc<Self>,
        checkpointer: &mut Checkpointer,
    ) -> Result<(), VolumeError> {
        self.claim(checkpointer).await?;
        self.claim(checkpointer).await
    }

    fn open_span(&self) -> Option<LogSpan> {
        let has_log = self.tail().next.is_some();
        has_log.then(|| self.queue().completed)
    }

    /// Closes the log behind the last chunk that took effect, so that nothing of the chunk that
    /// could not be written, or of those behind it, is ever replayed; then the log goes on in a
    /// fresh segment (docs/FORMAT.md §15).
    pub(super) async fn repair(self: &Arc<Self>) -> Result<(), ExportError> {
        let mut checkpointer = self.checkpointer.lock().await;
        let cause = match &self.queue().health {
            Health::Good => return Ok(()),
            Health::Stopped(error) => return Err(error.clone()),
            Health::NeedsRepair(error) => error.clone(),
        };
        self.nothing_in_flight().await;
        self.restart_log();
        let rooted = match self.checkpoint_locked(&mut checkpointer).await {
            // As in `claim_twice`: the root before does not lead to where the log goes on.
            Ok(()) => self.claim(&mut checkpointer).await,
            Err(error) => Err(error),
        };
        match rooted {
            Ok(()) => {
                let mut queue = self.queue();
                if matches!(queue.health, Health::NeedsRepair(_)) {
                    queue.health = Health::Good;
                }
                Ok(())
            }
            Err(_) => Err(cause),
        }
    }

    /// Gives up the segment that a chunk failed in: the announced one is next, and needs no slot that
    /// might not be there.
    fn restart_log(&self) {
        let mut tail = self.tail();
        if let Some(old) = tail.current.take() {
            self.segments.table_mut().close(old.handle);
        }
        let mut queue = self.queue();
        tail.next_seq = queue.completed.start_seq;
        tail.chain = queue.completed.chain;
        queue.completed = tail.span_of_next(self.header().active_epoch).expect("a claimed log announces");
    }

    fn forget_log_before(&self, first: Handle) {
        let mut tail = self.tail();
        while tail.segments.front().is_some_and(|handle| *handle != first) {
            tail.segments.pop_front();
        }
    }

    /// Writes root number generation + 1: table and payload into the index, a flush, the ring block.
    async fn write_root(
        self: &Arc<Self>,
        checkpointer: &mut Checkpointer,
        plan: Plan,
    ) -> Result<Durable, VolumeError> {
        // A number is never tried twice: whether a failed try reached the store is unknown.
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let Plan { tree, spans, change, oldest_log } = plan;
        let reserved = self.segments.table_mut().slots_mut().reserve(RESERVE_TARGET);
        let mut root = Root {
            generation,
            added: Vec::new(),
            freed: Vec::new(),
            previous: checkpointer.previous.clone(),
            writer_epoch: self.writer_epoch,
            min_header_generation: checkpointer.header_generation,
            export_bytes: self.header().export_bytes,
            log_spans: spans,
            reserved,
            tops: tree.tops,
            table: Vec::new(),
            sealed_messages: self.counters.sealed_messages.load(Ordering::Relaxed) + SEALED_MARGIN,
        };
        self.segments.table_mut().apply(&change);
        let tried = match self.write_payload(checkpointer, &mut root, oldest_log).await {
            Ok((payload, dead)) => {
                // Written or not, a root that has got this far may be found after a crash: its pages stay.
                checkpointer.index.keep();
                self.write_ring(checkpointer, generation, payload).await.map(|mac| (mac, dead))
            }
            Err(error) => Err(error),
        };
        let (mac, dead) = match tried {
            Ok(done) => done,
            Err(error) => {
                // The next number that belongs in the same ring block: a torn block there is
                // written over by the next root, and at no time is more than one torn.
                self.generation.fetch_add(u64::from(self.header().ring_slots) - 1, Ordering::Relaxed);
                {
                    let mut table = self.segments.table_mut();
                    table.apply(&change.inverse());
                    table.restore_added(root.added);
                }
                checkpointer.index.take_back(self);
                if let VolumeError::Store(error @ StoreError::SyncFailed(_)) = &error {
                    self.stop(store_to_export(error));
                }
                return Err(error);
            }
        };
        checkpointer.previous.insert(0, mac);
        checkpointer.previous.truncate(PREVIOUS_MAX);
        // c7: before anything that an older root needs is given up.
        self.anchor_root(Anchored::of(&root, mac)).await;
        Ok(Durable { generation: Generation(generation), dead })
    }

    /// Takes what a durable root does not need any more out of use. Readers must be given that root's
    /// index by now.
    fn retire(self: &Arc<Self>, root: Durable) {
        {
            let mut table = self.segments.table_mut();
            table.free(&root.dead, root.generation, |phys| self.header().slot_at(phys));
            let unused = table.root_is_durable(root.generation);
            table.release(&unused);
        }
        self.resume_stalled();
    }

    /// Writes all of a root but its ring block, durably. Returns where its payload lies and what it frees.
    async fn write_payload(
        self: &Arc<Self>,
        checkpointer: &mut Checkpointer,
        root: &mut Root,
        oldest_log: Option<Handle>,
    ) -> Result<(BlobPointer, Vec<Handle>), VolumeError> {
        let index = &mut checkpointer.index;
        let (rows, dead) = loop {
            // Segments first: opening one adds a row that the table must hold.
            let lens = self.blob_lens(root);
            index.prepare(self, &lens)?;
            // Writers go on: a log segment may have been opened and filled since the freeze. With
            // the tail held none can be, between looking and listing.
            let tail = self.tail();
            if self.blob_lens(root) != lens {
                continue;
            }
            let log = tail.segments.iter().skip_while(|handle| Some(**handle) != oldest_log);
            let pinned: HashSet<Handle> = log.copied().collect();
            let mut table = self.segments.table_mut();
            let mut dead = table.dead(|handle| pinned.contains(&handle));
            dead.truncate(PLACES_MAX);
            root.added = table.take_added();
            root.freed = table.places(&dead);
            break (table.snapshot(), dead);
        };
        // Replication needs the list whole or not at all; a longer one is told by the table.
        let mut stored = root.clone();
        if stored.added.len() > PLACES_MAX {
            stored.added.clear();
        }
        for (number, part) in (0u64..).zip(rows.parts(&dead)) {
            let plaintext = part.encode();
            let len = plaintext.len() + TAG_LEN;
            let place = index.prepared(self, len)?;
            let offset = place.range.offset();
            stored.table.push(blob_pointer(self, &place, offset, len));
            index.put(place.handle, offset, &seal_table_part(number, plaintext, place.range));
            index.write_if_full(self).await?;
        }
        drop(rows);
        let len = stored.sealed_len();
        let payload = index.prepared(self, len)?;
        let offset = payload.range.offset();
        let pointer = blob_pointer(self, &payload, offset, len);
        index.put(payload.handle, offset, &stored.seal(payload.range));
        index.write_out(self).await?;
        // c4: everything that the root names is durable before the ring names the root.
        self.sync_store().await?;
        Ok((pointer, dead))
    }

    /// The most bytes that the blobs of a root written now take, in the order in which they are written: the parts
    /// of the table, and the payload.
    fn blob_lens(&self, root: &Root) -> Vec<usize> {
        let table = self.segments.table();
        let parts = table.part_lens();
        // How many rows are dead is known only later; a few kilobytes more do no harm.
        let listed = table.row_count().min(PLACES_MAX) + table.added_count().min(PLACES_MAX);
        let payload = root.sealed_len() + parts.len() * BLOB_POINTER_LEN + listed * PLACE_LEN;
        parts.into_iter().map(|rows| TablePart::encoded_len(rows) + TAG_LEN).chain([payload]).collect()
    }

    /// c5, c6: names the root in the ring, durably. Returns its authentication code.
    async fn write_ring(
        &self,
        checkpointer: &Checkpointer,
        generation: u64,
        payload: BlobPointer,
    ) -> Result<[u8; 16], VolumeError> {
        let block = RingBlock {
            generation,
            writer_epoch: self.writer_epoch,
            session_id: self.uids.session_id(),
            header_generation: checkpointer.header_generation,
            payload,
        };
        let (bytes, mac) = block.encode(&self.keys);
        let slot = generation % u64::from(self.header().ring_slots);
        let at = self.header().ring_offset + slot * RING_BLOCK_LEN as u64;
        write_store(&*self.store, at, vec![Bytes::from(bytes)], Persist::Durable).await?;
        Ok(mac)
    }
}

/// Stops the volume when a checkpoint is dropped half-way: the entries that it had frozen are in no
/// root, and the next one would be written without them; a discard may come to effect later.
struct Unfinished<'a> {
    core: &'a Core,
    armed: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.core.stop(ExportError::Io("a checkpoint was abandoned half-way".into()));
        }
    }
}

/// Messages that may be sealed between two roots, counted before they are: 512 MiB of sectors, 16-fold.
const SEALED_MARGIN: u64 = 1 << 21;

fn blob_pointer(
    core: &Core,
    place: &super::index_writer::IndexPlace,
    offset: u64,
    len: usize,
) -> BlobPointer {
    BlobPointer {
        uid: place.uid,
        phys: place.phys,
        epoch: core.header().active_epoch,
        offset: u32::try_from(offset).expect("segments are at most 64 MiB"),
        len: u32::try_from(len).expect("blobs are at most a few MiB"),
    }
}

fn stopped(error: ExportError) -> VolumeError {
    VolumeError::Stopped(error.to_string())
}
