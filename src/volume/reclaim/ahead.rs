//! What may be live in segments that are being emptied, looked up, read and opened ahead of the chunk that takes it:
//! on other threads, while the chunk before is sealed and written.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::BytesMut;
use futures_util::stream::{self, StreamExt};
use tokio::task::JoinHandle;

use crate::buffers;
use crate::cipher::Uid;
use crate::format::FormatError;
use crate::geometry::{Lba, SECTOR_LEN, SectorRange};
use crate::payload::RECORD_LEN;
use crate::volume::delta::Run;
use crate::volume::segments::ReadGuard;
use crate::volume::tree::{LEAVES_AT_ONCE, page_sectors};
use crate::volume::{Core, VolumeError};

/// Sectors that one task opens: about 200 µs of work.
const PORTION_SECTORS: u64 = 64;
/// Tasks at once. Their reads hide the latency of a remote store, and what they open takes 1 MiB.
const PORTIONS_AT_ONCE: usize = 4;

/// Runs of sectors, by sector, on their way to a chunk.
pub(super) struct Ahead {
    /// Not looked at yet; last first.
    candidates: Vec<Run>,
    /// Sectors there were, and those that may still come.
    total: u64,
    left: u64,
    /// Being opened, the first ones first.
    portions: VecDeque<JoinHandle<Result<Portion, VolumeError>>>,
    /// Waiting for a chunk: plaintext, with room for the tags.
    opened: VecDeque<(Run, BytesMut)>,
    damaged: Vec<Uid>,
}

/// What one task opened.
#[derive(Default)]
struct Portion {
    opened: Vec<(Run, BytesMut)>,
    /// Sectors that were looked at and are not among them.
    left_out: u64,
    damaged: Vec<Uid>,
}

impl Ahead {
    /// Of `candidates`, which are sorted by sector, the last one first.
    pub(super) fn new(candidates: Vec<Run>) -> Self {
        let total = sectors_of(&candidates);
        Self {
            candidates,
            total,
            left: total,
            portions: VecDeque::new(),
            opened: VecDeque::new(),
            damaged: Vec::new(),
        }
    }

    /// Whether there is nothing left.
    pub(super) fn is_empty(&self) -> bool {
        self.candidates.is_empty() && self.portions.is_empty() && self.opened.is_empty()
    }

    /// How many sectors may still come, and how many there were, at least one.
    pub(super) fn left(&self) -> (u64, u64) {
        (self.left, self.total.max(1))
    }

    /// The segments in which damage was found since this was last asked.
    pub(super) fn damaged(&mut self) -> Vec<Uid> {
        std::mem::take(&mut self.damaged)
    }

    /// The next live runs, `sectors_max` sectors, fewer only at the end. `guard` keeps the places what they were.
    ///
    /// # Errors
    /// [`VolumeError`], but not that records are damaged: those are left out.
    pub(super) async fn next(
        &mut self,
        core: &Arc<Core>,
        guard: &ReadGuard,
        sectors_max: u64,
    ) -> Result<Vec<(Run, BytesMut)>, VolumeError> {
        loop {
            while self.portions.len() < PORTIONS_AT_ONCE && !self.candidates.is_empty() {
                let (core, guard) = (core.clone(), guard.clone());
                let candidates = self.portion();
                self.portions.push_back(tokio::spawn(async move {
                    let opened = core.open_live(candidates).await;
                    drop(guard);
                    opened
                }));
            }
            let sectors: u64 = self.opened.iter().map(|(run, _)| run.sectors.count).sum();
            if sectors >= sectors_max {
                break;
            }
            let Some(first) = self.portions.front_mut() else { break };
            let joined = first.await;
            self.portions.pop_front();
            let portion = joined.unwrap_or_else(|error| match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(stopped) => Err(VolumeError::Stopped(format!("the runtime is shutting down: {stopped}"))),
            })?;
            self.left -= portion.left_out;
            self.opened.extend(portion.opened);
            self.damaged.extend(portion.damaged);
        }
        Ok(self.take(sectors_max))
    }

    /// Ends what is being read. When it returns, no task is left.
    pub(super) async fn stop(&mut self) {
        self.portions.iter().for_each(JoinHandle::abort);
        while let Some(first) = self.portions.front_mut() {
            // Of one that panicked the panic hook has told; what was looked at is looked at again by another batch.
            let _ended = first.await;
            self.portions.pop_front();
        }
    }

    /// The candidates of one task: no more than lie in the leaves that are fetched together.
    fn portion(&mut self) -> Vec<Run> {
        let mut taken = Vec::new();
        let mut left = PORTION_SECTORS;
        while left > 0 && taken.len() < LEAVES_AT_ONCE {
            let Some(run) = self.candidates.pop() else { break };
            let (now, later) = run.split(left);
            self.candidates.extend(later);
            left -= now.sectors.count;
            taken.push(now);
        }
        taken
    }

    fn take(&mut self, sectors_max: u64) -> Vec<(Run, BytesMut)> {
        let mut taken = Vec::new();
        let mut left = sectors_max;
        while left > 0 {
            let Some((run, mut data)) = self.opened.pop_front() else { break };
            let (now, later) = run.split(left);
            if let Some(later) = later {
                let len = usize::try_from(now.sectors.count).expect("a portion") * RECORD_LEN;
                // Memory that is used again must be whole.
                let mut rest = buffers::take(data.len() - len);
                rest.copy_from_slice(&data[len..]);
                data.truncate(len);
                self.opened.push_front((later, rest));
            }
            left -= now.sectors.count;
            taken.push((now, data));
        }
        self.left -= sectors_max - left;
        taken
    }
}

fn sectors_of(runs: &[Run]) -> u64 {
    runs.iter().map(|run| run.sectors.count).sum()
}

impl Core {
    /// Opens what of ascending `candidates` the index still finds in its place.
    async fn open_live(&self, candidates: Vec<Run>) -> Result<Portion, VolumeError> {
        self.fetch_leaves_of(&candidates).await;
        let mut portion = Portion { left_out: sectors_of(&candidates), ..Portion::default() };
        let mut live = Vec::new();
        for run in candidates {
            live.append(&mut self.still_there(run).await?);
        }
        let mut opened = stream::iter(live)
            .map(|run| async move { (run, self.open_run(run).await) })
            .buffered(LEAVES_AT_ONCE);
        while let Some((run, data)) = opened.next().await {
            match data {
                Ok(data) => {
                    portion.left_out -= run.sectors.count;
                    portion.opened.push((run, data));
                }
                Err(VolumeError::Damaged { .. } | VolumeError::Inconsistent(_)) => {
                    let handle = run.loc.handle().expect("only records are moved");
                    portion.damaged.extend(self.segments.table().row(handle).map(|row| row.uid));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(portion)
    }

    /// Brings the leaves that ascending `runs` start in into memory.
    async fn fetch_leaves_of(&self, runs: &[Run]) {
        let _guard = self.segments.table().guard();
        let tree = self.map().tree.clone();
        let mut leaves: Vec<u64> = runs.iter().map(|run| run.sectors.start.0 / page_sectors(0)).collect();
        leaves.dedup();
        self.pages.fetch(&self.segments, &tree, &leaves).await;
    }

    /// The parts of `run` that the index still finds there.
    async fn still_there(&self, run: Run) -> Result<Vec<Run>, VolumeError> {
        let mut found: Vec<Run> = Vec::new();
        let mut at = run.sectors.start;
        let (newer, tree, _guard) = self.resolve(run.sectors);
        let mut walk = self.pages.walk(&self.segments, &tree);
        for (sectors, loc) in newer {
            while at < sectors.end() {
                let left = SectorRange::new(at, sectors.end().0 - at.0);
                let current = match loc {
                    Some(loc) => Run { sectors, loc }.clip(left).expect("inside"),
                    None => walk.run_at(at, left.count).await?,
                };
                let here = run.clip(current.sectors).expect("inside the run");
                if here.loc == current.loc {
                    found.push(here);
                }
                at = current.sectors.end();
            }
        }
        Ok(found)
    }

    /// Reads and opens the records of a run: plaintext, with room for the tags.
    async fn open_run(&self, run: Run) -> Result<BytesMut, VolumeError> {
        let place = self.segments.place(run.loc)?;
        let len = usize::try_from(run.sectors.count).expect("a chunk") * RECORD_LEN;
        let sealed = self.segments.read(&place, run.loc.offset(), len).await?;
        let mut records = buffers::take(len);
        let pairs = sealed.chunks_exact(RECORD_LEN).zip(records.chunks_exact_mut(RECORD_LEN));
        for (i, (sealed, record)) in (0u64..).zip(pairs) {
            let at = run.loc.step(i).offset();
            let lba = Lba(run.sectors.start.0 + i);
            place.key.open_record(at, lba, sealed, &mut record[..SECTOR_LEN]).map_err(|_| {
                VolumeError::damaged("sector", place.phys + at, FormatError::Authentication("sector"))
            })?;
        }
        Ok(records)
    }
}
