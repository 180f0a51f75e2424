//! Reading (docs/FORMAT.md §9): newer entries, then the tree, then records, verified into the reply.
//!
//! A reader holds a guard while it uses locations, so their slots are not reused under it. Should a
//! record fail to authenticate all the same, its location is looked up once more before the read fails.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::delta::{Resolved, Run, resolve};
use super::io::{Place, fetch_store};
use super::tree::Tree;
use super::turn::{PIECE_RECORDS, Turn};
use super::{Core, VolumeError};
use crate::buffers;
use crate::export::{Allocation, ExportError, Extent};
use crate::format::FormatError;
use crate::format::page::Loc;
use crate::geometry::{ByteRange, Lba, SECTOR_BYTES, SECTOR_LEN, SectorRange};
use crate::payload::RECORD_LEN;

/// Records of one request that are read from the store at once: about 1 MiB.
const READ_RECORDS_MAX: u64 = 256;
/// Runs of one request that are fetched at once, where the store has to be waited for.
const FETCHES_AT_ONCE: usize = 32;

/// Records as they lie on the store, on their way.
type Fetch<'a> = Pin<Box<dyn Future<Output = (Run, Result<(Place, Vec<u8>), VolumeError>)> + Send + 'a>>;

/// What of one request is on its way.
#[derive(Default)]
struct Fetches<'a> {
    /// None for most requests: they have nothing to wait for.
    under_way: Option<FuturesUnordered<Fetch<'a>>>,
    records: u64,
}

impl<'a> Fetches<'a> {
    fn has_room_for(&self, run: Run) -> bool {
        let runs = self.under_way.as_ref().map_or(0, FuturesUnordered::len);
        runs == 0 || runs < FETCHES_AT_ONCE && self.records + run.sectors.count <= READ_RECORDS_MAX
    }

    fn begin(&mut self, run: Run, fetch: Fetch<'a>) {
        self.records += run.sectors.count;
        self.under_way.get_or_insert_default().push(fetch);
    }

    /// The next that arrives; `None` when nothing is on its way.
    async fn next(&mut self) -> Option<(Run, Result<(Place, Vec<u8>), VolumeError>)> {
        let arrived = self.under_way.as_mut()?.next().await?;
        self.records -= arrived.0.sectors.count;
        Some(arrived)
    }
}

impl Core {
    /// Reads `range` into `buf` and tells which parts of it are holes or zeros.
    pub(super) async fn read(&self, range: ByteRange, buf: &mut [u8]) -> Result<Vec<ByteRange>, ExportError> {
        self.check_end(range)?;
        // Looked at first: most find it set, and many threads share what it is in.
        if !self.read_lately.load(Ordering::Relaxed) {
            self.read_lately.store(true, Ordering::Relaxed);
        }
        let mut zeros = Vec::new();
        let mut turn = Turn::new(&self.turns, range.len());
        let mut fetches = Fetches::default();
        let (newer, tree, _guard) = self.resolve(range.covering_sectors());
        let mut walk = self.pages.walk(&self.segments, &tree);
        for (sectors, loc) in newer {
            let mut at = sectors.start;
            while at < sectors.end() {
                let left = sectors.end().0 - at.0;
                let run = match loc {
                    Some(loc) => {
                        let whole = Run { sectors, loc };
                        whole.clip(SectorRange::new(at, left)).expect("the run covers the window")
                    }
                    None => walk.run_at(at, left).await.map_err(|error| error.to_export())?,
                };
                self.read_run(run, range, buf, &mut zeros, &mut turn, &mut fetches).await?;
                at = run.sectors.end();
            }
        }
        while self.finish_fetch(&mut fetches, range, buf, &mut turn).await? {}
        Ok(zeros)
    }

    /// Reads one whole sector as it is now.
    pub(super) async fn read_sector(
        &self,
        lba: Lba,
        sector: &mut [u8; SECTOR_LEN],
    ) -> Result<(), ExportError> {
        let range =
            ByteRange::within(lba.byte_offset(), SECTOR_BYTES, u64::MAX).expect("a sector of the export");
        self.read(range, sector).await.map(|_| ())
    }

    /// The newer entries of a window, the tree for the rest, and a guard for both.
    pub(super) fn resolve(&self, window: SectorRange) -> (Resolved, Arc<Tree>, super::segments::ReadGuard) {
        let guard = self.segments.table().guard();
        let map = self.map();
        let mut resolved = Resolved::with_capacity(1);
        resolve(&map.active, window, &mut resolved);
        if let Some(frozen) = &map.frozen {
            for (sectors, loc) in std::mem::take(&mut resolved) {
                match loc {
                    Some(_) => resolved.push((sectors, loc)),
                    None => resolve(frozen, sectors, &mut resolved),
                }
            }
        }
        (resolved, map.tree.clone(), guard)
    }

    /// Reads what of a run is at hand, and begins to fetch the rest.
    async fn read_run<'a>(
        &'a self,
        run: Run,
        range: ByteRange,
        buf: &mut [u8],
        zeros: &mut Vec<ByteRange>,
        turn: &mut Turn<'_>,
        fetches: &mut Fetches<'a>,
    ) -> Result<(), ExportError> {
        if run.loc.handle().is_none() {
            let (from, to) = clip_bytes(run.sectors, range);
            buf[index(from - range.offset())..index(to - range.offset())].fill(0);
            push_joined(zeros, range.part(from - range.offset(), to - from), range);
            return Ok(());
        }
        let mut left = Some(run);
        while let Some(run) = left {
            let (piece, later) = run.split(READ_RECORDS_MAX);
            left = later;
            match self.read_at_hand(piece, range, buf, turn).await {
                Ok(None) => {}
                Ok(Some(rest)) => {
                    while !fetches.has_room_for(rest) {
                        self.finish_fetch(fetches, range, buf, turn).await?;
                    }
                    turn.end();
                    fetches.begin(rest, Box::pin(async move { (rest, self.fetch(rest).await) }));
                }
                Err(error) => self.read_after(error, piece.sectors, range, buf, turn).await?,
            }
        }
        Ok(())
    }

    /// Waits for the next of the fetches and opens what it brings; whether there was one.
    async fn finish_fetch(
        &self,
        fetches: &mut Fetches<'_>,
        range: ByteRange,
        buf: &mut [u8],
        turn: &mut Turn<'_>,
    ) -> Result<bool, ExportError> {
        turn.end();
        let Some((run, fetched)) = fetches.next().await else { return Ok(false) };
        turn.begin().await;
        let opened = fetched.and_then(|(place, records)| open_fetched(&place, run, range, buf, &records));
        turn.opened(run.sectors.count).await;
        if let Err(error) = opened {
            self.read_after(error, run.sectors, range, buf, turn).await?;
        }
        Ok(true)
    }

    /// Reads sectors once more after an error that may be one of their place only.
    async fn read_after(
        &self,
        error: VolumeError,
        sectors: SectorRange,
        range: ByteRange,
        buf: &mut [u8],
        turn: &mut Turn<'_>,
    ) -> Result<(), ExportError> {
        match error {
            VolumeError::Damaged { .. } | VolumeError::Inconsistent(_) => {
                self.read_again(sectors, range, buf, turn).await
            }
            other => Err(other.to_export()),
        }
    }

    /// Looks the sectors up afresh, one by one, and reads them; the second failure is the answer.
    async fn read_again(
        &self,
        sectors: SectorRange,
        range: ByteRange,
        buf: &mut [u8],
        turn: &mut Turn<'_>,
    ) -> Result<(), ExportError> {
        for lba in sectors.start.0..sectors.end().0 {
            let (newer, tree, _guard) = self.resolve(SectorRange::new(Lba(lba), 1));
            let run = match newer.as_slice() {
                [(sectors, Some(loc))] => Run { sectors: *sectors, loc: *loc },
                _ => {
                    let found = self.pages.walk(&self.segments, &tree).run_at(Lba(lba), 1).await;
                    found.map_err(|error| error.to_export())?
                }
            };
            if run.loc.handle().is_none() {
                let (from, to) = clip_bytes(run.sectors, range);
                buf[index(from - range.offset())..index(to - range.offset())].fill(0);
                continue;
            }
            if let Err(error) = self.read_records(run, range, buf, turn).await {
                self.counters.authentication_failures.fetch_add(1, Ordering::Relaxed);
                return Err(error.to_export());
            }
        }
        Ok(())
    }

    /// Reads and opens records that stand one behind the other.
    pub(super) async fn read_records(
        &self,
        run: Run,
        range: ByteRange,
        buf: &mut [u8],
        turn: &mut Turn<'_>,
    ) -> Result<(), VolumeError> {
        let Some(rest) = self.read_at_hand(run, range, buf, turn).await? else { return Ok(()) };
        turn.end();
        let (place, records) = self.fetch(rest).await?;
        turn.begin().await;
        open_fetched(&place, rest, range, buf, &records)
    }

    /// Reads and opens the records of a run that the store has at hand, up to the first that it has not; what is left.
    async fn read_at_hand(
        &self,
        run: Run,
        range: ByteRange,
        buf: &mut [u8],
        turn: &mut Turn<'_>,
    ) -> Result<Option<Run>, VolumeError> {
        let place = self.segments.place(run.loc)?;
        let len = index(run.sectors.count) * RECORD_LEN;
        if run.loc.offset() + len as u64 > self.segments.segment_bytes {
            return Err(VolumeError::Inconsistent("a run of records ends behind its segment".into()));
        }
        let mut reply = Reply { place: &place, range, buf };
        turn.begin().await;
        let mut left = Some(run);
        while let Some(run) = left {
            let (piece, later) = run.split(PIECE_RECORDS);
            let Some(read) = self.try_piece(&mut reply, piece) else { return Ok(left) };
            read?;
            turn.opened(piece.sectors.count).await;
            left = later;
        }
        Ok(None)
    }

    /// Reads and opens records that the store has at hand; `None` when it has not.
    fn try_piece(&self, reply: &mut Reply<'_>, piece: Run) -> Option<Result<(), VolumeError>> {
        let mut read = |records: &mut [u8]| {
            let read = self.store.try_read_at(reply.place.phys + piece.loc.offset(), records)?;
            Some(read.map_err(VolumeError::from).and_then(|()| reply.open(piece, records)))
        };
        if piece.sectors.count == 1 {
            return read(&mut [0; RECORD_LEN]);
        }
        let mut records = buffers::take(index(piece.sectors.count) * RECORD_LEN);
        let outcome = read(&mut records);
        buffers::give(records);
        outcome
    }

    /// The records of a run as they lie on the store, with one call.
    async fn fetch(&self, run: Run) -> Result<(Place, Vec<u8>), VolumeError> {
        let place = self.segments.place(run.loc)?;
        let len = index(run.sectors.count) * RECORD_LEN;
        let records = fetch_store(&*self.store, place.phys + run.loc.offset(), len).await?;
        Ok((place, records))
    }

    /// Brings the index pages of a range into memory.
    pub(super) async fn prefetch(&self, range: ByteRange) -> Result<(), ExportError> {
        self.block_status(range, 64).await.map(|_| ())
    }

    /// What a range is made of, from the index alone.
    pub(super) async fn block_status(
        &self,
        range: ByteRange,
        extents_max: usize,
    ) -> Result<Vec<Extent>, ExportError> {
        self.check_end(range)?;
        let mut extents: Vec<Extent> = Vec::new();
        let (newer, tree, _guard) = self.resolve(range.covering_sectors());
        let mut walk = self.pages.walk(&self.segments, &tree);
        for (sectors, loc) in newer {
            let mut at = sectors.start;
            while at < sectors.end() {
                let left = sectors.end().0 - at.0;
                let run = match loc {
                    Some(loc) => Run { sectors: SectorRange::new(at, left), loc },
                    None => walk.run_at(at, left).await.map_err(|error| error.to_export())?,
                };
                let allocation = match run.loc {
                    Loc::HOLE => Allocation::Hole,
                    Loc::ZERO => Allocation::Zero,
                    _ => Allocation::Data,
                };
                let (from, to) = clip_bytes(run.sectors, range);
                let full = extents.len() >= extents_max;
                match extents.last_mut() {
                    Some(last) if last.allocation == allocation => last.len += to - from,
                    _ if full => return Ok(extents),
                    _ => extents.push(Extent { len: to - from, allocation }),
                }
                at = run.sectors.end();
            }
        }
        Ok(extents)
    }
}

/// Where opened records go.
struct Reply<'a> {
    place: &'a Place,
    range: ByteRange,
    buf: &'a mut [u8],
}

impl Reply<'_> {
    /// Opens the records of a run, all of them or up to the first that cannot be.
    fn open(&mut self, run: Run, records: &[u8]) -> Result<(), VolumeError> {
        let range = self.range;
        for (i, record) in (0u64..).zip(records.chunks_exact(RECORD_LEN)) {
            let lba = Lba(run.sectors.start.0 + i);
            let at = run.loc.step(i).offset();
            let damaged = |_| {
                let source = FormatError::Authentication("sector");
                VolumeError::damaged("sector", self.place.phys + at, source)
            };
            let (from, to) = clip_bytes(SectorRange::new(lba, 1), range);
            let target = &mut self.buf[index(from - range.offset())..index(to - range.offset())];
            if target.len() == SECTOR_LEN {
                self.place.key.open_record(at, lba, record, target).map_err(damaged)?;
            } else {
                let mut sector = [0; SECTOR_LEN];
                self.place.key.open_record(at, lba, record, &mut sector).map_err(damaged)?;
                let skip = index(from - lba.byte_offset());
                target.copy_from_slice(&sector[skip..skip + target.len()]);
            }
        }
        Ok(())
    }
}

fn open_fetched(
    place: &Place,
    run: Run,
    range: ByteRange,
    buf: &mut [u8],
    records: &[u8],
) -> Result<(), VolumeError> {
    Reply { place, range, buf }.open(run, records)
}

/// The bytes of `sectors` that lie in `range`, as offsets on the export.
fn clip_bytes(sectors: SectorRange, range: ByteRange) -> (u64, u64) {
    (sectors.start.byte_offset().max(range.offset()), sectors.end().byte_offset().min(range.end()))
}

fn push_joined(zeros: &mut Vec<ByteRange>, next: ByteRange, whole: ByteRange) {
    match zeros.last_mut() {
        Some(last) if last.end() == next.offset() => {
            *last = whole.part(last.offset() - whole.offset(), next.end() - last.offset());
        }
        _ => zeros.push(next),
    }
}

fn index(at: u64) -> usize {
    usize::try_from(at).expect("requests fit in memory")
}

#[cfg(test)]
pub(super) mod tests;
