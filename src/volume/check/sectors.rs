//! Every sector as readers see it now, read and authenticated, whether the index or the log has it.

use futures_util::{StreamExt, stream};
use tokio::task::yield_now;

use super::is_local;
use super::report::CheckReport;
use crate::format::page::{FANOUT, Loc};
use crate::geometry::{ByteRange, Lba, SECTOR_BYTES, SECTOR_LEN, SectorRange};
use crate::store::BoxFuture;
use crate::volume::delta::{Delta, Run};
use crate::volume::{Core, VolumeError};

/// Sectors looked up at once: 16 MiB. Their slots are not used again until all of them are read, so not more.
const WINDOW: u64 = 4096;
/// Sectors read at once: 1 MiB.
const PIECE: u64 = 256;
/// Pieces read at the same time.
const PIECES_AT_ONCE_MAX: usize = 4;

/// A piece of a volume, as somebody else may want to have it.
pub(in crate::volume) struct Piece<'a> {
    pub(in crate::volume) sectors: SectorRange,
    /// What stands there; a sector that cannot be read is zeros, and in `damaged`.
    pub(in crate::volume) bytes: &'a [u8],
    pub(in crate::volume) damaged: &'a [SectorRange],
}

impl Core {
    pub(super) async fn check_sectors(
        &self,
        report: &mut CheckReport,
        progress: impl Fn(u64) + Send + Sync,
    ) -> Result<(), VolumeError> {
        self.read_everything(progress, |piece: Piece<'_>| {
            let lost: u64 = piece.damaged.iter().map(|range| range.count).sum();
            report.verified_sectors += (piece.bytes.len() as u64 / SECTOR_BYTES).saturating_sub(lost);
            piece.damaged.iter().for_each(|range| report.damage(*range));
            Ok(())
        })
        .await
    }

    /// Reads all data in the order of addresses and hands it over. Holes and zeros are left out; sectors whose
    /// index cannot be read come as damaged ones without bytes.
    pub(in crate::volume) async fn read_everything(
        &self,
        progress: impl Fn(u64) + Send + Sync,
        mut take: impl FnMut(Piece<'_>) -> Result<(), VolumeError> + Send,
    ) -> Result<(), VolumeError> {
        let sectors = self.header().export_bytes / SECTOR_BYTES;
        let mut at = 0;
        while at < sectors {
            let window = SectorRange::new(Lba(at), WINDOW.min(sectors - at));
            let (newer, tree, guard) = self.resolve(window);
            let mut parts = Vec::new();
            let mut next = window.end().0;
            for (part, loc) in newer {
                let mut from = part.start;
                while from < part.end() {
                    let left = part.end().0 - from.0;
                    let found = match loc {
                        Some(loc) => {
                            let run = Run { sectors: part, loc };
                            Ok(run.clip(SectorRange::new(from, left)).expect("the run covers it"))
                        }
                        None => {
                            // Beyond the window only to see how far a hole goes.
                            let ahead = if part.end() == window.end() { sectors - from.0 } else { left };
                            self.pages.walk(&self.segments, &tree).run_at(from, ahead).await
                        }
                    };
                    let run = match found {
                        Ok(run) => run,
                        Err(error) if is_local(&error) => {
                            let leaf = FANOUT as u64;
                            let end = ((from.0 / leaf + 1) * leaf).min(part.end().0);
                            let lost = SectorRange::new(from, end - from.0);
                            parts.push(Part::Lost(lost));
                            from = Lba(end);
                            continue;
                        }
                        Err(error) => return Err(error),
                    };
                    let is_hole = run.loc.handle().is_none();
                    let inside = run.clip(SectorRange::new(from, left)).expect("it starts there");
                    if !is_hole {
                        pieces(inside).for_each(|piece| parts.push(Part::Data(piece)));
                    }
                    let newer_beyond = || self.has_newer(run.sectors, window.end());
                    if is_hole && run.sectors.end() > window.end() && !newer_beyond() {
                        next = run.sectors.end().0;
                    }
                    from = inside.sectors.end();
                }
            }
            let reads = parts.into_iter().map(|part| self.read_part(part));
            let mut read = stream::iter(reads).buffered(PIECES_AT_ONCE_MAX);
            while let Some(piece) = read.next().await {
                let (sectors, bytes, damaged) = piece?;
                take(Piece { sectors, bytes: &bytes, damaged: &damaged })?;
                progress(sectors.end().0 * SECTOR_BYTES);
                // A store that never waits must not keep others waiting.
                yield_now().await;
            }
            drop(read);
            drop(guard);
            at = next;
            progress(at * SECTOR_BYTES);
            yield_now().await;
        }
        Ok(())
    }

    /// Whether the log has anything of what lies in `sectors` from `from` on.
    fn has_newer(&self, sectors: SectorRange, from: Lba) -> bool {
        let window = SectorRange::new(from, sectors.end().0 - from.0);
        let map = self.map();
        let any = |delta: &Delta| delta.runs_in(window).next().is_some();
        any(&map.active) || map.frozen.as_deref().is_some_and(any)
    }

    fn read_part(&self, part: Part) -> BoxFuture<'_, Result<Read, VolumeError>> {
        Box::pin(async move {
            match part {
                Part::Lost(sectors) => Ok((sectors, Vec::new(), vec![sectors])),
                Part::Data(run) => self.read_piece(run).await,
            }
        })
    }

    async fn read_piece(&self, run: Run) -> Result<Read, VolumeError> {
        let sectors = run.sectors;
        let len = usize::try_from(sectors.count * SECTOR_BYTES).expect("1 MiB");
        let mut bytes = vec![0; len];
        match self.read_records(run, Self::bytes_of(sectors), &mut bytes).await {
            Ok(()) => return Ok((sectors, bytes, Vec::new())),
            Err(error) if is_local(&error) => {}
            Err(error) => return Err(error),
        }
        // One by one, each where it is by now: what was being moved is not damaged.
        let mut damaged: Vec<SectorRange> = Vec::new();
        for (lba, target) in (sectors.start.0..).zip(bytes.chunks_exact_mut(SECTOR_LEN)) {
            let target: &mut [u8; SECTOR_LEN] = target.try_into().expect("whole sectors");
            if self.read_sector(Lba(lba), target).await.is_ok() {
                continue;
            }
            target.fill(0);
            match damaged.last_mut() {
                Some(last) if last.end().0 == lba => last.count += 1,
                _ => damaged.push(SectorRange::new(Lba(lba), 1)),
            }
        }
        Ok((sectors, bytes, damaged))
    }

    fn bytes_of(sectors: SectorRange) -> ByteRange {
        let (offset, len) = (sectors.start.byte_offset(), sectors.count * SECTOR_BYTES);
        // Not held against the size of now: the volume may have become smaller since this began.
        ByteRange::within(offset, len, u64::MAX).expect("bytes of an export")
    }
}

/// Sectors, their bytes, and those of them that are damaged.
type Read = (SectorRange, Vec<u8>, Vec<SectorRange>);

enum Part {
    Data(Run),
    /// The index page is damaged.
    Lost(SectorRange),
}

fn pieces(run: Run) -> impl Iterator<Item = Run> {
    let starts = (0..run.sectors.count).step_by(usize::try_from(PIECE).expect("small"));
    starts.map(move |skip| {
        let sectors = SectorRange::new(Lba(run.sectors.start.0 + skip), PIECE.min(run.sectors.count - skip));
        let loc: Loc = run.loc.step(skip);
        Run { sectors, loc }
    })
}
