//! The structures of one state: headers, ring, roots, segment table, segment headers, and the counts.

use std::collections::HashSet;

use futures_util::{StreamExt, stream};
use tokio::task::yield_now;

use super::report::{CheckReport, Structure};
use super::walk::Walk;
use super::{Still, Stop, is_local};
use crate::cipher::Uid;
use crate::format::root::{RING_BLOCK_LEN, RingBlock, Root};
use crate::format::segment::{SEGMENT_HEADER_LEN, SegmentHeader, SegmentKind};
use crate::format::table::{Row, SegmentState};
use crate::store::BoxFuture;
use crate::volume::delta::Run;
use crate::volume::io::read_store;
use crate::volume::recover::{Ring, read_payload, read_ring_blocks, read_table_part};
use crate::volume::unlock::examine_copies;
use crate::volume::{Core, VolumeError};

/// Segment headers read at the same time: keeps a disk or a connection busy, and takes 128 KiB.
const HEADERS_AT_ONCE_MAX: usize = 32;

/// What the table says of a segment; by handle, in 8 bytes.
#[derive(Clone, Copy, Default)]
pub(super) struct Expected {
    /// `None` for a free handle.
    pub(super) kind: Option<SegmentKind>,
    pub(super) live: u32,
}

impl Core {
    /// Verifies everything but the sectors.
    pub(super) async fn check_structures(
        &self,
        report: &mut CheckReport,
        progress: &(impl Fn(u64) + Send + Sync),
    ) -> Result<(), Stop> {
        let (ring, still, completed) = {
            // Neither headers nor roots are written meanwhile; the guard is that of this very state.
            let checkpointer = self.checkpointer.lock().await;
            self.check_headers(report).await?;
            let ring = read_ring_blocks(&*self.store, &self.header(), &self.keys).await?;
            // Between checkpoints nothing is frozen.
            let records = |run: &Run| run.loc.handle().is_some();
            report.log.sectors = self.map().active.runs().filter(records).map(|run| run.sectors.count).sum();
            let used = checkpointer.previous.first().copied();
            (self.check_ring(report, ring, used), Still::new(self), self.queue().completed_seq())
        };
        let Some((block, before)) = ring else { return Ok(()) };
        report.root = block.generation;
        let root = match read_payload(&*self.store, &self.header(), &self.keys, &block).await {
            Ok(root) => root,
            Err(error) if is_local(&error) => {
                let at = block.payload.phys + u64::from(block.payload.offset);
                report.problem(Structure::Root, Some(at), format!("root {}: {error}", block.generation));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let begin = root.log_spans.first().map_or(completed + 1, |span| span.start_seq);
        report.log.chunks = (completed + 1).saturating_sub(begin);
        self.check_root_before(report, before.as_ref()).await?;
        let Some(table) = self.check_table(report, &root, &still).await? else { return Ok(()) };
        let walked =
            Walk::new(self, report, &table, &still, root.export_bytes).tree(&root.tops, progress).await?;
        if let Some(live) = walked {
            compare(report, &table, &live);
        }
        Ok(())
    }

    async fn check_headers(&self, report: &mut CheckReport) -> Result<(), VolumeError> {
        let copies = examine_copies(&*self.store, &self.keys).await?;
        let newest = copies.iter().filter_map(|(_, copy)| copy.as_ref().ok()).map(|h| h.generation).max();
        for (offset, copy) in copies {
            match copy {
                Ok(header) if Some(header.generation) == newest => {}
                Ok(header) => report.warning(
                    Structure::Header,
                    Some(offset),
                    format!("this copy is of generation {}, the other one is newer", header.generation),
                ),
                Err(source) if newest.is_some() => {
                    report.warning(Structure::Header, Some(offset), format!("one copy is damaged: {source}"));
                }
                Err(source) => report.problem(Structure::Header, Some(offset), source.to_string()),
            }
        }
        Ok(())
    }

    /// Names damaged blocks; returns that of the root in use, and that of the root before it.
    fn check_ring(
        &self,
        report: &mut CheckReport,
        ring: Ring,
        used: Option<[u8; 16]>,
    ) -> Option<(RingBlock, Option<RingBlock>)> {
        let Ring { valid, bad } = ring;
        let slots = u64::from(self.header().ring_slots);
        let newest = valid.first().map(|(block, _)| block.generation);
        for (slot, source) in bad {
            let at = Some(self.header().ring_offset + slot * RING_BLOCK_LEN as u64);
            if newest.is_some_and(|newest| slot == (newest + 1) % slots) {
                let text = format!("block {slot} is damaged, or was torn when a root was written: {source}");
                report.warning(Structure::RootRing, at, text);
            } else {
                report.problem(Structure::RootRing, at, format!("block {slot} is damaged: {source}"));
            }
        }
        let at = valid.iter().position(|(_, mac)| Some(*mac) == used);
        let Some(at) = at else {
            let text = "the root in use is not in it any more".to_owned();
            report.problem(Structure::RootRing, Some(self.header().ring_offset), text);
            return None;
        };
        let mut blocks = valid.into_iter().skip(at).map(|(block, _)| block);
        let block = blocks.next().expect("found above");
        let before = blocks.next().filter(|before| (block.generation - before.generation) % slots == 1);
        Some((block, before))
    }

    /// Whether the volume would open by the root before, were the newest one lost.
    async fn check_root_before(
        &self,
        report: &mut CheckReport,
        before: Option<&RingBlock>,
    ) -> Result<(), VolumeError> {
        let Some(block) = before else { return Ok(()) };
        let read = async {
            let root = read_payload(&*self.store, &self.header(), &self.keys, block).await?;
            for number in 0..root.table.len() {
                read_table_part(&*self.store, &self.header(), &self.keys, &root, number).await?;
            }
            Ok::<_, VolumeError>(())
        };
        match read.await {
            Ok(()) => Ok(()),
            // A newer root may have taken its place meanwhile, and its slots with it.
            Err(error) if is_local(&error) && self.newest_generation() > block.generation + 1 => Ok(()),
            Err(error) if is_local(&error) => {
                let at = block.payload.phys + u64::from(block.payload.offset);
                report.warning(
                    Structure::Root,
                    Some(at),
                    format!("root {}, the one before the newest, cannot be used: {error}", block.generation),
                );
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn newest_generation(&self) -> u64 {
        self.generation.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Goes through the table part by part; `None` when some of it cannot be read.
    async fn check_table(
        &self,
        report: &mut CheckReport,
        root: &Root,
        still: &Still<'_>,
    ) -> Result<Option<Vec<Expected>>, Stop> {
        let mut expected: Vec<Expected> = Vec::new();
        let mut taken = vec![0u64; usize::try_from(self.header().slots.div_ceil(64)).expect("below 2^32")];
        let freed: HashSet<Uid> = root.freed.iter().map(|place| place.uid).collect();
        let mut spans: HashSet<Uid> = root.log_spans.iter().map(|span| span.uid).collect();
        for number in 0..root.table.len() {
            still.check()?;
            let pointer = root.table[number];
            let at = Some(pointer.phys + u64::from(pointer.offset));
            let part = match read_table_part(&*self.store, &self.header(), &self.keys, root, number).await {
                Ok(part) if part.first as usize == expected.len() => part,
                Ok(part) => {
                    let text = format!(
                        "part {number} starts at segment {} instead of {}",
                        part.first,
                        expected.len()
                    );
                    report.problem(Structure::SegmentTable, at, text);
                    return Ok(None);
                }
                Err(error) if is_local(&error) => {
                    report.problem(Structure::SegmentTable, at, format!("part {number}: {error}"));
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            };
            for (index, row) in part.rows.iter().enumerate() {
                let handle = expected.len();
                expected.push(
                    row.map_or_else(Expected::default, |row| Expected {
                        kind: Some(row.kind),
                        live: row.live,
                    }),
                );
                let Some(row) = row else { continue };
                debug_assert_eq!(handle, part.first as usize + index);
                let Some(slot) = self.header().slot_at(row.phys) else {
                    let text = format!("segment {handle} lies at byte {}, which is no slot", row.phys);
                    report.problem(Structure::SegmentTable, at, text);
                    continue;
                };
                let (word, bit) = (usize::try_from(slot / 64).expect("below 2^32"), 1 << (slot % 64));
                if taken[word] & bit != 0 {
                    let text = format!("segment {handle} lies in slot {slot}, where another one lies, too");
                    report.problem(Structure::SegmentTable, at, text);
                }
                taken[word] |= bit;
                if freed.contains(&row.uid) {
                    let text = format!("segment {handle} is in use and among those that the root gave up");
                    report.problem(Structure::SegmentTable, at, text);
                }
                spans.remove(&row.uid);
            }
            self.check_segment_headers(report, &part.rows, still).await?;
        }
        if !spans.is_empty() {
            let text = format!("{} segments of the log are not in it", spans.len());
            report.problem(Structure::SegmentTable, None, text);
        }
        Ok(Some(expected))
    }

    async fn check_segment_headers(
        &self,
        report: &mut CheckReport,
        rows: &[Option<Row>],
        still: &Still<'_>,
    ) -> Result<(), Stop> {
        let written: Vec<Row> = rows.iter().flatten().filter(|row| self.is_written(row)).copied().collect();
        let reads = written.into_iter().map(|row| self.segment_header(row));
        let mut read = stream::iter(reads).buffered(HEADERS_AT_ONCE_MAX);
        while let Some((row, found)) = read.next().await {
            still.check()?;
            // A store that never waits must not keep others waiting.
            yield_now().await;
            match found {
                Ok(()) => report.segments += 1,
                Err(error) if is_local(&error) => report.warning(
                    Structure::SegmentHeader,
                    Some(row.phys),
                    format!("{error}; what the segment holds is read without it"),
                ),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// One that was announced, or opened a moment ago, may not have been written to yet.
    fn is_written(&self, row: &Row) -> bool {
        let closed = row.state == SegmentState::Closed && row.bytes > 0;
        (row.live > 0 || closed) && self.header().slot_at(row.phys).is_some()
    }

    fn segment_header(&self, row: Row) -> BoxFuture<'_, (Row, Result<(), VolumeError>)> {
        Box::pin(async move { (row, self.read_segment_header(&row).await) })
    }

    async fn read_segment_header(&self, row: &Row) -> Result<(), VolumeError> {
        let bytes = read_store(&*self.store, row.phys, SEGMENT_HEADER_LEN).await?;
        let key = self.segments.key(row.kind, row.uid);
        let header = SegmentHeader::open(&bytes, &self.keys, &key, row.kind)
            .map_err(|source| VolumeError::damaged("segment header", row.phys, source))?;
        if header.phys != row.phys || header.epoch != u32::from(row.epoch) {
            return Err(VolumeError::Inconsistent("the segment is of another place or epoch".into()));
        }
        Ok(())
    }
}

/// I5: the table counts what the index needs.
fn compare(report: &mut CheckReport, table: &[Expected], live: &[u32]) {
    for (handle, (row, walked)) in table.iter().zip(live).enumerate() {
        if row.kind.is_some() && row.live != *walked {
            let text = format!("segment {handle} counts {} live bytes; the index needs {walked}", row.live);
            report.problem(Structure::LiveCount, None, text);
        }
    }
}
