//! Reading the records of one request, in the order of their places: what lies together comes with one call.
//!
//! What clients wrote over at random leaves gaps in what was written before, and what reclaim moved lies sorted by sector: of
//! a long range, much lies together on the store that does not follow each other in the range.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::{clip_bytes, index};
use crate::buffers;
use crate::export::ExportError;
use crate::format::FormatError;
use crate::geometry::{ByteRange, Lba, SECTOR_LEN, SectorRange};
use crate::payload::RECORD_LEN;
use crate::volume::check::is_local;
use crate::volume::delta::Run;
use crate::volume::io::{Place, fetch_store};
use crate::volume::turn::{PIECE_RECORDS, Turn};
use crate::volume::{Core, VolumeError};

/// Bytes of one request that are fetched from the store at once, and the most that one call brings: about 1 MiB.
const FETCH_BYTES_MAX: u64 = 256 * RECORD_BYTES;
/// Calls of one request that are under way at once, where the store has to be waited for.
const FETCHES_AT_ONCE: usize = 32;
/// Records of one segment with no more than this between them are read with one call: what a call costs is more than
/// what it brings in vain. Enough for the header of a chunk, or two records that others have replaced.
const GAP_BYTES_MAX: u64 = 2 * RECORD_BYTES + 4096;
/// Runs of one request whose places are put in order together.
const RUNS_IN_ORDER_MAX: usize = 256;

const RECORD_BYTES: u64 = RECORD_LEN as u64;

/// Records as they lie on the store, from the first of the runs to the end of the last, on their way.
type Fetch<'a> = Pin<Box<dyn Future<Output = (Vec<Run>, Result<(Place, Vec<u8>), VolumeError>)> + Send + 'a>>;

/// What of one request is on its way.
#[derive(Default)]
struct Fetches<'a> {
    /// None for most requests: they have nothing to wait for.
    under_way: Option<FuturesUnordered<Fetch<'a>>>,
    bytes: u64,
}

impl<'a> Fetches<'a> {
    fn has_room_for(&self, bytes: u64) -> bool {
        let calls = self.under_way.as_ref().map_or(0, FuturesUnordered::len);
        calls == 0 || calls < FETCHES_AT_ONCE && self.bytes + bytes <= FETCH_BYTES_MAX
    }

    fn begin(&mut self, bytes: u64, fetch: Fetch<'a>) {
        self.bytes += bytes;
        self.under_way.get_or_insert_default().push(fetch);
    }

    /// The next that arrives; `None` when nothing is on its way.
    async fn next(&mut self) -> Option<(Vec<Run>, Result<(Place, Vec<u8>), VolumeError>)> {
        let arrived = self.under_way.as_mut()?.next().await?;
        self.bytes -= span_bytes(&arrived.0);
        Some(arrived)
    }
}

/// A request that is being read.
pub(super) struct Reading<'a, 'b> {
    core: &'a Core,
    range: ByteRange,
    buf: &'b mut [u8],
    /// Runs that were not asked for yet.
    runs: Vec<Run>,
    turn: Turn<'a>,
    fetches: Fetches<'a>,
}

impl<'a, 'b> Reading<'a, 'b> {
    pub(super) fn new(core: &'a Core, range: ByteRange, buf: &'b mut [u8]) -> Self {
        let turn = Turn::new(&core.turns, range.len());
        Self { core, range, buf, runs: Vec::with_capacity(1), turn, fetches: Fetches::default() }
    }

    /// Fills what a hole or zeros cover; says which part of the range that is.
    pub(super) fn zero(&mut self, sectors: SectorRange) -> ByteRange {
        let (from, to) = clip_bytes(sectors, self.range);
        let (skip, len) = (from - self.range.offset(), to - from);
        self.buf[index(skip)..index(skip + len)].fill(0);
        self.range.part(skip, len)
    }

    /// Adds records to what is read; some may be only when it is [finished](Self::finish).
    pub(super) async fn add(&mut self, run: Run) -> Result<(), ExportError> {
        let mut left = Some(run);
        while let Some(run) = left {
            let (piece, later) = run.split(PIECE_RECORDS);
            left = later;
            self.runs.push(piece);
            if self.runs.len() == RUNS_IN_ORDER_MAX {
                self.read().await?;
            }
        }
        Ok(())
    }

    /// Reads what is left.
    pub(super) async fn finish(&mut self) -> Result<(), ExportError> {
        self.read().await?;
        while self.finish_fetch().await? {}
        Ok(())
    }

    /// Reads what of the runs is at hand, in the order of their places; begins to fetch the rest.
    async fn read(&mut self) -> Result<(), ExportError> {
        let mut runs = std::mem::take(&mut self.runs);
        runs.sort_unstable_by_key(|run| (run.loc.handle(), run.loc.offset()));
        let mut left = runs.as_slice();
        while !left.is_empty() {
            self.turn.begin().await;
            let (piece, later) = split_span(left, PIECE_RECORDS * RECORD_BYTES);
            if let Some(opened) = self.try_piece(piece) {
                self.opened(piece, opened).await?;
                left = later;
            } else {
                let (span, later) = split_span(left, FETCH_BYTES_MAX);
                self.begin_fetch(span).await?;
                left = later;
            }
        }
        Ok(())
    }

    /// Reads and opens records that the store has at hand; `None` when it has not.
    fn try_piece(&mut self, runs: &[Run]) -> Option<Result<(), VolumeError>> {
        let place = match self.core.place_of(runs) {
            Ok(place) => place,
            Err(error) => return Some(Err(error)),
        };
        let mut read = |bytes: &mut [u8]| {
            let read = self.core.store.try_read_at(place.phys + runs[0].loc.offset(), bytes)?;
            let read = read.map_err(VolumeError::from);
            Some(read.and_then(|()| open(&place, runs, bytes, self.range, self.buf)))
        };
        let len = span_bytes(runs);
        if len == RECORD_BYTES {
            return read(&mut [0; RECORD_LEN]);
        }
        let mut bytes = buffers::take(index(len));
        let outcome = read(&mut bytes);
        buffers::give(bytes);
        outcome
    }

    async fn begin_fetch(&mut self, runs: &[Run]) -> Result<(), ExportError> {
        let bytes = span_bytes(runs);
        while !self.fetches.has_room_for(bytes) {
            self.finish_fetch().await?;
        }
        self.turn.end();
        let (core, runs) = (self.core, runs.to_vec());
        let fetch = async move {
            let fetched = core.fetch(&runs).await;
            (runs, fetched)
        };
        self.fetches.begin(bytes, Box::pin(fetch));
        Ok(())
    }

    /// Waits for the next of the fetches and opens what it brings; whether there was one.
    async fn finish_fetch(&mut self) -> Result<bool, ExportError> {
        self.turn.end();
        let Some((runs, fetched)) = self.fetches.next().await else { return Ok(false) };
        self.turn.begin().await;
        let opened = fetched.and_then(|(place, bytes)| open(&place, &runs, &bytes, self.range, self.buf));
        self.opened(&runs, opened).await?;
        Ok(true)
    }

    /// Lets others run after enough of this. After an error that may be one of their place only, or of what lies
    /// between them, the runs are read once more.
    async fn opened(&mut self, runs: &[Run], opened: Result<(), VolumeError>) -> Result<(), ExportError> {
        self.turn.opened(runs.iter().map(|run| run.sectors.count).sum()).await;
        match opened {
            Ok(()) => Ok(()),
            Err(VolumeError::Damaged { .. } | VolumeError::Inconsistent(_)) => self.read_again(runs).await,
            Err(error) if runs.len() > 1 && is_local(&error) => self.read_again(runs).await,
            Err(error) => Err(error.to_export()),
        }
    }

    /// Looks the sectors up afresh, one by one, and reads them; the second failure is the answer.
    async fn read_again(&mut self, runs: &[Run]) -> Result<(), ExportError> {
        self.turn.end();
        let core = self.core;
        for lba in runs.iter().flat_map(|run| run.sectors.start.0..run.sectors.end().0) {
            let (newer, tree, _guard) = core.resolve(SectorRange::new(Lba(lba), 1));
            let run = match newer.as_slice() {
                [(sectors, Some(loc))] => Run { sectors: *sectors, loc: *loc },
                _ => {
                    let found = core.pages.walk(&core.segments, &tree).run_at(Lba(lba), 1).await;
                    found.map_err(|error| error.to_export())?
                }
            };
            if run.loc.handle().is_none() {
                let _ = self.zero(run.sectors);
                continue;
            }
            if let Err(error) = core.read_records(run, self.range, self.buf).await {
                if let VolumeError::Damaged { .. } = error {
                    core.counters.authentication_failures.fetch_add(1, Ordering::Relaxed);
                }
                return Err(error.to_export());
            }
        }
        Ok(())
    }
}

impl Core {
    /// Reads and opens records that stand one behind the other.
    pub(in crate::volume) async fn read_records(
        &self,
        run: Run,
        range: ByteRange,
        buf: &mut [u8],
    ) -> Result<(), VolumeError> {
        let place = self.segments.place(run.loc)?;
        let bytes = self.segments.read(&place, run.loc.offset(), index(span_bytes(&[run]))).await?;
        open(&place, &[run], &bytes, range, buf)
    }

    /// The bytes from the first of the runs to the end of the last, of which it is known that the store has to wait
    /// for them.
    async fn fetch(&self, runs: &[Run]) -> Result<(Place, Vec<u8>), VolumeError> {
        let place = self.place_of(runs)?;
        let bytes =
            fetch_store(&*self.store, place.phys + runs[0].loc.offset(), index(span_bytes(runs))).await?;
        Ok((place, bytes))
    }

    /// The place of the segment that all the runs lie in.
    fn place_of(&self, runs: &[Run]) -> Result<Place, VolumeError> {
        let place = self.segments.place(runs[0].loc)?;
        if run_end(runs[runs.len() - 1]) > self.segments.segment_bytes {
            return Err(VolumeError::Inconsistent("a run of records ends behind its segment".into()));
        }
        Ok(place)
    }
}

/// Opens the records of `runs` out of the bytes from the first of them on, up to the first that cannot be opened.
fn open(
    place: &Place,
    runs: &[Run],
    bytes: &[u8],
    range: ByteRange,
    buf: &mut [u8],
) -> Result<(), VolumeError> {
    let start = runs[0].loc.offset();
    for run in runs {
        let (skip, len) = (index(run.loc.offset() - start), index(run.sectors.count) * RECORD_LEN);
        let Some(records) = bytes.get(skip..skip + len) else {
            return Err(VolumeError::Inconsistent("the store brought less than it was asked for".into()));
        };
        for (i, record) in (0u64..).zip(records.chunks_exact(RECORD_LEN)) {
            let lba = Lba(run.sectors.start.0 + i);
            let at = run.loc.step(i).offset();
            let damaged =
                |_| VolumeError::damaged("sector", place.phys + at, FormatError::Authentication("sector"));
            let (from, to) = clip_bytes(SectorRange::new(lba, 1), range);
            let target = &mut buf[index(from - range.offset())..index(to - range.offset())];
            if target.len() == SECTOR_LEN {
                place.key.open_record(at, lba, record, target).map_err(damaged)?;
            } else {
                let mut sector = [0; SECTOR_LEN];
                place.key.open_record(at, lba, record, &mut sector).map_err(damaged)?;
                let skip = index(from - lba.byte_offset());
                target.copy_from_slice(&sector[skip..skip + target.len()]);
            }
        }
    }
    Ok(())
}

/// The first of `runs`, which are in the order of their places, that are read with one call, and the rest.
fn split_span(runs: &[Run], bytes_max: u64) -> (&[Run], &[Run]) {
    let start = runs[0].loc.offset();
    let joined = runs.windows(2).take_while(|pair| {
        let (end, next) = (run_end(pair[0]), pair[1].loc);
        next.handle() == pair[0].loc.handle()
            && (end..=end + GAP_BYTES_MAX).contains(&next.offset())
            && run_end(pair[1]) - start <= bytes_max
    });
    runs.split_at(1 + joined.count())
}

/// Bytes from the first of `runs` to the end of the last.
fn span_bytes(runs: &[Run]) -> u64 {
    run_end(runs[runs.len() - 1]) - runs[0].loc.offset()
}

/// Where in its segment a run ends.
fn run_end(run: Run) -> u64 {
    run.loc.offset() + run.sectors.count * RECORD_BYTES
}
