//! Writing: what a client's WRITE, TRIM and WRITE_ZEROES do. The file to read first.
//!
//! Whole sectors go into the log as they are. A write that covers a sector only in part is a
//! read-merge-write: the missing bytes come from the newest waiting part, or are read, while nothing
//! else may change the sectors of the request. So concurrent writes never mix inside a sector.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::sync::{Semaphore, oneshot};

use super::Core;
use super::log::entry_pieces;
use super::queue::{Completion, Health, Merge, Queue};
use crate::export::{ExportError, ZeroMode};
use crate::format::chunk::Op;
use crate::geometry::{ByteRange, Lba, SECTOR_BYTES, SECTOR_LEN, SectorRange};
use crate::payload::{Payload, RECORD_LEN};

/// The number of the last chunk that a request went into; 0 when it changed nothing.
pub(super) type Seq = u64;

type Receiver = oneshot::Receiver<Result<Seq, ExportError>>;

/// What adding to the queue came to.
enum Added {
    Waiting(Receiver),
    /// Something is under way that must end first.
    Blocked(Blocked),
}

enum Blocked {
    OnMerge(Arc<Semaphore>),
    OnRepair,
}

impl Core {
    /// Writes a payload; returns when it is in the log.
    pub(super) async fn write(self: &Arc<Self>, payload: Payload) -> Result<Seq, ExportError> {
        self.check_writable()?;
        let range = payload.range();
        if range.len() == 0 {
            return Ok(0);
        }
        self.counters.bytes_written.fetch_add(range.len(), std::sync::atomic::Ordering::Relaxed);
        let sectors = payload.sectors();
        let mut records = payload.into_records();
        if range.is_sector_aligned() {
            return self.put(sectors, Op::Write, records).await;
        }
        let edges = edges(range);
        loop {
            match self.begin_merge(sectors, &edges, &mut records)? {
                Begun::Blocked(Blocked::OnMerge(done)) => merge_ended(&done).await,
                Begun::Blocked(Blocked::OnRepair) => self.repair().await?,
                Begun::InFlight(progress) => progress.await,
                Begun::Reading { merge, missing } => {
                    for edge in &missing {
                        let mut sector = [0; SECTOR_LEN];
                        self.read_sector(edge.lba, &mut sector).await?;
                        edge.complete(&mut records, &sector);
                    }
                    let added = {
                        let mut queue = self.queue();
                        // Removed first: the merge must not block its own write.
                        queue.merges.retain(|m| m.id != merge.id);
                        self.add(&mut queue, sectors, Op::Write, &mut records)
                    };
                    drop(merge);
                    match added {
                        Added::Waiting(receiver) => return finished(receiver).await,
                        // The log needs repair: from the start, on what is there then.
                        Added::Blocked(_) => {}
                    }
                }
            }
        }
    }

    /// Gives whole sectors back.
    pub(super) async fn trim(self: &Arc<Self>, range: ByteRange) -> Result<Seq, ExportError> {
        self.check_writable()?;
        self.put_header_only(range.whole_sectors(), Op::Trim).await
    }

    /// Makes a range read as zeros, to the byte.
    pub(super) async fn write_zeroes(
        self: &Arc<Self>,
        range: ByteRange,
        mode: ZeroMode,
    ) -> Result<Seq, ExportError> {
        self.check_writable()?;
        let whole = range.whole_sectors();
        let op = match mode {
            ZeroMode::MayPunch => Op::Trim,
            ZeroMode::NoHole => Op::Zero,
        };
        if whole.count == 0 {
            return self.write(Payload::zeroed(range)).await;
        }
        let (from, to) = (whole.start.byte_offset(), whole.end().byte_offset());
        let head = range.part(0, from - range.offset());
        let tail = range.part(to - range.offset(), range.end() - to);
        let mut seq = self.put_header_only(whole, op).await?;
        for edge in [head, tail].into_iter().filter(|edge| edge.len() > 0) {
            seq = seq.max(Box::pin(self.write(Payload::zeroed(edge))).await?);
        }
        Ok(seq)
    }

    async fn put_header_only(self: &Arc<Self>, sectors: SectorRange, op: Op) -> Result<Seq, ExportError> {
        let mut seq = 0;
        for piece in entry_pieces(sectors) {
            seq = seq.max(self.put(piece, op, BytesMut::new()).await?);
        }
        Ok(seq)
    }

    /// Puts one change of whole sectors into the log.
    async fn put(
        self: &Arc<Self>,
        sectors: SectorRange,
        op: Op,
        mut records: BytesMut,
    ) -> Result<Seq, ExportError> {
        loop {
            let added = self.add(&mut self.queue(), sectors, op, &mut records);
            match added {
                Added::Waiting(receiver) => {
                    if op != Op::Write {
                        // What gives space back does not wait for those who make room.
                        self.resume_stalled();
                    }
                    return finished(receiver).await;
                }
                Added::Blocked(Blocked::OnMerge(done)) => merge_ended(&done).await,
                Added::Blocked(Blocked::OnRepair) => self.repair().await?,
            }
        }
    }

    fn add(
        self: &Arc<Self>,
        queue: &mut Queue,
        sectors: SectorRange,
        op: Op,
        records: &mut BytesMut,
    ) -> Added {
        match &queue.health {
            Health::Good => {}
            Health::NeedsRepair(_) => return Added::Blocked(Blocked::OnRepair),
            Health::Stopped(error) => {
                let (done, receiver) = Completion::new();
                done.part_done(Err(error.clone()));
                return Added::Waiting(receiver);
            }
        }
        if sectors.end() > queue.end {
            let (done, receiver) = Completion::new();
            done.part_done(Err(ExportError::NoSpace("the volume has become smaller".into())));
            return Added::Waiting(receiver);
        }
        if let Some(done) = queue.merge_over(sectors) {
            return Added::Blocked(Blocked::OnMerge(done));
        }
        let (done, receiver) = Completion::new();
        queue.push(sectors, op, std::mem::take(records), done);
        if queue.becomes_committer() {
            self.spawn_commit();
        }
        Added::Waiting(receiver)
    }

    /// Starts a read-merge-write: copies from waiting parts what they know of the edges and keeps
    /// everybody else off the sectors.
    fn begin_merge<'a>(
        self: &'a Arc<Self>,
        sectors: SectorRange,
        edges: &[Edge],
        records: &mut BytesMut,
    ) -> Result<Begun<'a>, ExportError> {
        // Registered before looking, so that a completion in between is not missed.
        let mut progress = Box::pin(self.progress.notified());
        progress.as_mut().enable();
        let mut queue = self.queue();
        match &queue.health {
            Health::Good => {}
            Health::NeedsRepair(_) => return Ok(Begun::Blocked(Blocked::OnRepair)),
            Health::Stopped(error) => return Err(error.clone()),
        }
        if let Some(done) = queue.merge_over(sectors) {
            return Ok(Begun::Blocked(Blocked::OnMerge(done)));
        }
        let mut missing = Vec::new();
        for edge in edges {
            let newest = queue.waiting.iter().rev().find(|part| part.sectors.contains(edge.lba));
            match newest {
                Some(part) => edge.complete(records, part.sector(edge.lba).unwrap_or(&[0; SECTOR_LEN])),
                None if queue.in_flight_over(SectorRange::new(edge.lba, 1)) => {
                    return Ok(Begun::InFlight(progress));
                }
                None => missing.push(*edge),
            }
        }
        let id = queue.next_merge_id;
        queue.next_merge_id += 1;
        let done = Arc::new(Semaphore::new(0));
        queue.merges.push(Merge { id, sectors, done: done.clone() });
        Ok(Begun::Reading { merge: MergeGuard::new(self, id, done), missing })
    }
}

async fn finished(receiver: Receiver) -> Result<Seq, ExportError> {
    receiver.await.unwrap_or_else(|_| Err(ExportError::Io("the log lost a write".into())))
}

/// What starting a read-merge-write came to.
enum Begun<'a> {
    Blocked(Blocked),
    InFlight(std::pin::Pin<Box<tokio::sync::futures::Notified<'a>>>),
    Reading { merge: MergeGuard<'a>, missing: Vec<Edge> },
}

/// Lets others at the sectors again, however the merge ended.
pub(super) struct MergeGuard<'a> {
    core: &'a Core,
    id: u64,
    done: Arc<Semaphore>,
}

impl<'a> MergeGuard<'a> {
    /// A guard of the merge `id`, which the queue holds already.
    pub(super) fn new(core: &'a Core, id: u64, done: Arc<Semaphore>) -> Self {
        Self { core, id, done }
    }
}

impl Drop for MergeGuard<'_> {
    fn drop(&mut self) {
        self.core.queue().merges.retain(|merge| merge.id != self.id);
        self.done.close();
    }
}

/// Waits for a read-merge-write to end: its semaphore never has a permit, it is closed.
async fn merge_ended(done: &Semaphore) {
    let _closed = done.acquire().await;
}

/// A sector that a request covers only in part.
#[derive(Clone, Copy)]
struct Edge {
    lba: Lba,
    /// Position among the sectors of the request.
    index: usize,
    /// The bytes that the request brings, from the start of the sector.
    from: usize,
    to: usize,
}

impl Edge {
    /// Fills in what the request does not bring.
    fn complete(&self, records: &mut BytesMut, old: &[u8]) {
        let sector = &mut records[self.index * RECORD_LEN..][..SECTOR_LEN];
        sector[..self.from].copy_from_slice(&old[..self.from]);
        sector[self.to..].copy_from_slice(&old[self.to..]);
    }
}

/// The one or two sectors that `range` covers only in part.
fn edges(range: ByteRange) -> Vec<Edge> {
    let sectors = range.covering_sectors();
    let in_sector = |at: u64| usize::try_from(at.min(SECTOR_BYTES)).expect("at most 4096");
    let edge = |index: u64| {
        let start = (sectors.start.0 + index) * SECTOR_BYTES;
        Edge {
            lba: Lba(sectors.start.0 + index),
            index: usize::try_from(index).expect("a request fits in memory"),
            from: in_sector(range.offset().saturating_sub(start)),
            to: in_sector(range.end() - start),
        }
    };
    let mut found = vec![edge(0)];
    if sectors.count > 1 {
        found.push(edge(sectors.count - 1));
    }
    found.retain(|edge| edge.from > 0 || edge.to < SECTOR_LEN);
    found
}
