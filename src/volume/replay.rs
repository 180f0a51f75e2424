//! Reading the log back (docs/FORMAT.md §10 o5, o6): chunk headers in order, from where a root says, to
//! where the log ends. What ends it is decided here: a torn tail is the end; a chunk that is missing
//! although a later one proves that it was flushed is damage.

use super::check::is_local;
use super::delta::{Delta, Run};
use super::io::{SegmentReader, read_store};
use super::log::effects;
use super::segments::new_row;
use super::{VolumeError, segments};
use crate::cipher::Uid;
use crate::format::FormatError;
use crate::format::chunk::{ChunkHeader, ChunkPrefix, PREFIX_LEN, chunk_places};
use crate::format::header::Header;
use crate::format::page::Handle;
use crate::format::root::LogSpan;
use crate::format::segment::{SEGMENT_HEADER_LEN, SegmentHeader, SegmentKind};
use crate::geometry::Generation;

/// What the log holds behind a root.
pub(super) struct Replayed {
    pub(super) delta: Delta,
    /// The stretches that were read, closed where they end; empty ones left out.
    pub(super) spans: Vec<LogSpan>,
    /// Segments visited, oldest first.
    pub(super) segments: Vec<Handle>,
    pub(super) next_seq: u64,
    pub(super) chain: [u8; 16],
    pub(super) last_uid: Uid,
}

/// A chunk that was found in its place.
struct Found {
    offset: u64,
    end: u64,
    seq: u64,
    durable_seq: u64,
    whole: bool,
    tag: [u8; 16],
    effects: Vec<Run>,
}

/// The log while it is read.
struct Replay<'a> {
    header: &'a Header,
    reader: &'a SegmentReader,
    out: Replayed,
    durable_seq: u64,
    /// Whether damage ends the log, instead of being an error.
    is_salvage: bool,
    /// The damage that ended it.
    damage: Option<VolumeError>,
}

/// Reads the log that `spans` name, adopting segments that follow them into the table.
pub(super) async fn replay(
    header: &Header,
    reader: &SegmentReader,
    spans: &[LogSpan],
) -> Result<Replayed, VolumeError> {
    replay_as(header, reader, spans, false).await.map(|(replayed, _)| replayed)
}

/// The same as far as the log goes: what is damaged ends it, and is told.
pub(super) async fn replay_what_is_whole(
    header: &Header,
    reader: &SegmentReader,
    spans: &[LogSpan],
) -> Result<(Replayed, Option<VolumeError>), VolumeError> {
    replay_as(header, reader, spans, true).await
}

async fn replay_as(
    header: &Header,
    reader: &SegmentReader,
    spans: &[LogSpan],
    is_salvage: bool,
) -> Result<(Replayed, Option<VolumeError>), VolumeError> {
    let first = spans.first();
    let out = Replayed {
        delta: Delta::default(),
        spans: Vec::new(),
        segments: Vec::new(),
        next_seq: first.map_or(1, |span| span.start_seq),
        chain: first.map_or([0; 16], |span| span.chain),
        last_uid: first.map_or(Uid::default(), |span| span.uid),
    };
    let mut replay = Replay { header, reader, durable_seq: 0, out, is_salvage, damage: None };
    for span in spans {
        if let Err(error) = replay.span(*span).await {
            replay.ends_by(error)?;
        }
        if replay.damage.is_some() {
            break;
        }
    }
    Ok((replay.out, replay.damage))
}

impl Replay<'_> {
    /// Damage: the end of the log, or the end of everything.
    fn ends_by(&mut self, error: VolumeError) -> Result<(), VolumeError> {
        if !self.is_salvage || !is_local(&error) {
            return Err(error);
        }
        self.damage.get_or_insert(error);
        Ok(())
    }

    /// Reads one span; an open one goes on into the segments announced behind it.
    async fn span(&mut self, span: LogSpan) -> Result<(), VolumeError> {
        if span.start_seq != self.out.next_seq || span.chain != self.out.chain {
            return Err(VolumeError::Inconsistent(format!(
                "a log span starts at chunk {} where {} is next",
                span.start_seq, self.out.next_seq
            )));
        }
        if let Some(end) = span.end_offset {
            let found = self.segment(span, u64::from(end)).await?;
            if found.last().map_or(u64::from(span.start_offset), |chunk| chunk.end) != u64::from(end) {
                let offset = span.phys + found.last().map_or(u64::from(span.start_offset), |chunk| chunk.end);
                let source = FormatError::Authentication("chunk");
                self.ends_by(VolumeError::damaged("closed log", offset, source))?;
            }
            self.take(span, found);
            return Ok(());
        }
        let mut tail: Vec<(LogSpan, Vec<Found>)> = Vec::new();
        let mut next = Some(span);
        let (mut seq, mut chain) = (self.out.next_seq, self.out.chain);
        while let Some(span) = next {
            let found = match self.segment(span, self.reader.segment_bytes).await {
                Ok(found) => found,
                Err(error) => {
                    self.ends_by(error)?;
                    break;
                }
            };
            if let Some(last) = found.last() {
                (seq, chain) = (last.seq + 1, last.tag);
            }
            tail.push((span, found));
            next = self.announced(&span, seq, chain).await?;
        }
        if tail.is_empty() { Ok(()) } else { self.end_of_log(tail).await }
    }

    /// The chunks of one segment from the span's start on, as far as they follow one another.
    async fn segment(&self, span: LogSpan, end: u64) -> Result<Vec<Found>, VolumeError> {
        let start = u64::from(span.start_offset);
        if end > self.reader.segment_bytes || start > end {
            return Err(VolumeError::Inconsistent("a log span ends behind its segment".into()));
        }
        let bytes = self.load(span.phys, start, end).await?;
        let mut found = Vec::new();
        let mut next = span;
        while let Some(chunk) = self.next_chunk(&next, &bytes, start)? {
            next.start_offset = u32::try_from(chunk.end).expect("segments are at most 64 MiB");
            (next.start_seq, next.chain) = (chunk.seq + 1, chunk.tag);
            found.push(chunk);
        }
        Ok(found)
    }

    /// The chunk that `next` says is next, in either of the places where it may start.
    fn next_chunk(&self, next: &LogSpan, bytes: &[u8], start: u64) -> Result<Option<Found>, VolumeError> {
        for place in chunk_places(next.start_offset.into()) {
            if let Some((chunk, before)) = self.chunk_at(next, bytes, start, place)?
                && (chunk.seq, before) == (next.start_seq, next.chain)
            {
                return Ok(Some(chunk));
            }
        }
        Ok(None)
    }

    async fn load(&self, phys: u64, start: u64, end: u64) -> Result<Vec<u8>, VolumeError> {
        let len = usize::try_from(end - start).expect("segments are at most 64 MiB");
        match read_store(&*self.reader.store, phys + start, len).await.map_err(VolumeError::from) {
            Err(error) if self.is_salvage && is_local(&error) => {
                Ok(self.load_readable(phys + start, len).await)
            }
            read => read,
        }
    }

    /// What of a range can be read; nothing authenticates where the zeros stand that take the place of the rest.
    async fn load_readable(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut at = at;
        for piece in bytes.chunks_mut(self.header.align as usize) {
            if let Ok(read) = read_store(&*self.reader.store, at, piece.len()).await {
                piece.copy_from_slice(&read);
            }
            at += piece.len() as u64;
        }
        bytes
    }

    /// The chunk at `offset`, if an authentic one starts there, and the tag that it names as the
    /// one before. `bytes` holds the segment from `start` on.
    fn chunk_at(
        &self,
        span: &LogSpan,
        bytes: &[u8],
        start: u64,
        offset: u64,
    ) -> Result<Option<(Found, [u8; 16])>, VolumeError> {
        let at = usize::try_from(offset - start).expect("segments are at most 64 MiB");
        let Some(rest) = bytes.get(at..) else { return Ok(None) };
        let Some(prefix) = rest.first_chunk::<PREFIX_LEN>() else { return Ok(None) };
        let align = self.header.align as usize;
        let Ok(prefix) = ChunkPrefix::decode(prefix, align, rest.len() as u64) else { return Ok(None) };
        let key = self.reader.key(SegmentKind::Log, span.uid);
        let Ok((header, tag)) = ChunkHeader::open(&prefix, &key, offset, rest) else { return Ok(None) };
        let sectors = self.header.export_bytes / crate::geometry::SECTOR_BYTES;
        if let Some(bad) = header.entries.iter().find(|entry| entry.sectors.end().0 > sectors) {
            return Err(VolumeError::Inconsistent(format!(
                "chunk {} changes sector {} behind the end of the export",
                prefix.log_seq, bad.sectors.start
            )));
        }
        let chunk = &rest[..prefix.chunk_bytes as usize];
        let found = Found {
            offset,
            end: offset + u64::from(prefix.chunk_bytes),
            seq: prefix.log_seq,
            durable_seq: header.durable_seq,
            whole: prefix.checksum_fits(chunk),
            tag,
            effects: effects(&header.entries, &prefix.layout(align), span.handle, offset),
        };
        Ok(Some((found, header.chain)))
    }

    /// The segment that `span`'s segment announces, if it exists and goes on where the log stands.
    async fn announced(
        &self,
        span: &LogSpan,
        seq: u64,
        chain: [u8; 16],
    ) -> Result<Option<LogSpan>, VolumeError> {
        let Some(next) = self.announcement(span).await? else { return Ok(None) };
        let Some(header) = self.segment_header(&next).await? else { return Ok(None) };
        let follows =
            header.previous_uid == span.uid && header.previous_chain == chain && header.first_log_seq == seq;
        if !follows {
            return Ok(None);
        }
        let handle = self.handle_for(&next)?;
        Ok(Some(LogSpan { handle, start_seq: seq, chain, ..next }))
    }

    /// Where the segment behind `span`'s will lie, as its header says. `None` when the header was
    /// never written, or names no slot.
    async fn announcement(&self, span: &LogSpan) -> Result<Option<LogSpan>, VolumeError> {
        let Some(own) = self.segment_header(span).await? else { return Ok(None) };
        if self.header.slot_at(own.next_phys).is_none() {
            return Ok(None);
        }
        Ok(Some(LogSpan {
            uid: own.next_uid,
            phys: own.next_phys,
            start_offset: u32::try_from(SEGMENT_HEADER_LEN).expect("4096"),
            end_offset: None,
            ..*span
        }))
    }

    async fn segment_header(&self, span: &LogSpan) -> Result<Option<SegmentHeader>, VolumeError> {
        let bytes = self.load(span.phys, 0, SEGMENT_HEADER_LEN as u64).await?;
        let key = self.reader.key(SegmentKind::Log, span.uid);
        let header = SegmentHeader::open(&bytes, &self.reader.keys, &key, SegmentKind::Log).ok();
        Ok(header.filter(|header| header.phys == span.phys && header.epoch == span.epoch))
    }

    /// The row of a segment that the root does not know yet, or knows as announced.
    fn handle_for(&self, span: &LogSpan) -> Result<Handle, VolumeError> {
        let mut table = self.reader.table_mut();
        let known = table.rows().find(|(_, row)| row.uid == span.uid).map(|(handle, _)| handle);
        if let Some(handle) = known {
            return Ok(handle);
        }
        let slot = self.header.slot_at(span.phys).expect("announcements name slots");
        let epoch = u16::try_from(span.epoch).expect("epochs of a checked header");
        let row = new_row(SegmentKind::Log, span.uid, span.phys, epoch, Generation(0));
        table.adopt(row, slot).map_err(|segments::BadTable(why)| VolumeError::Inconsistent(why))
    }

    /// Decides where the log ends, and takes what is before that.
    async fn end_of_log(&mut self, mut tail: Vec<(LogSpan, Vec<Found>)>) -> Result<(), VolumeError> {
        let seen = tail.iter().flat_map(|(_, found)| found).map(|chunk| chunk.durable_seq).max();
        let durable = self.durable_seq.max(seen.unwrap_or(0));
        // A torn chunk, and all behind it, was never part of the log, unless it was flushed.
        let torn = |chunk: &Found| !chunk.whole && chunk.seq > durable;
        let mut cut = None;
        for (span, found) in &mut tail {
            if cut.is_some() {
                found.clear();
            } else if let Some(keep) = found.iter().position(torn) {
                cut = Some((*span, found[keep].seq, found[keep].offset, found[keep].end));
                found.truncate(keep);
            }
        }
        let (span, missing, offset, from) = cut.unwrap_or_else(|| {
            let (span, found) = tail.last().expect("one span at least");
            let end = found.last().map_or(u64::from(span.start_offset), |chunk| chunk.end);
            (*span, found.last().map_or(span.start_seq, |chunk| chunk.seq + 1), end, end)
        });
        if let Some(later) = self.later_proof(&span, from, missing).await? {
            let offset = span.phys + offset;
            self.ends_by(VolumeError::LogDamaged { seq: missing, offset, later })?;
        }
        if let Some((span, found)) = tail.last()
            && let Err(error) = self.check_last_header(span, found, durable).await
        {
            self.ends_by(error)?;
        }
        self.durable_seq = durable;
        for (span, found) in tail {
            self.take(span, found);
        }
        Ok(())
    }

    /// A later chunk that proves chunk `missing` to have been flushed: in the rest of the segment or in
    /// those announced behind it.
    async fn later_proof(&self, span: &LogSpan, from: u64, missing: u64) -> Result<Option<u64>, VolumeError> {
        let mut span = *span;
        let mut from = from;
        // Every step follows an authentic header to another slot; there are no more than slots.
        for _ in 0..self.header.slots {
            let start = from.next_multiple_of(u64::from(self.header.align));
            let end = self.reader.segment_bytes;
            let bytes = self.load(span.phys, start.min(end), end).await?;
            let mut offset = start;
            while offset + (PREFIX_LEN as u64) <= end {
                if let Ok(Some((chunk, _))) = self.chunk_at(&span, &bytes, start, offset)
                    && chunk.seq > missing
                    && chunk.durable_seq >= missing
                {
                    return Ok(Some(chunk.seq));
                }
                offset += u64::from(self.header.align);
            }
            // What is announced is looked through even when its own header is gone.
            let Some(next) = self.announcement(&span).await? else { return Ok(None) };
            span = next;
            from = SEGMENT_HEADER_LEN as u64;
        }
        Ok(None)
    }

    /// A segment that holds flushed chunks has a flushed header. Without it what is announced behind
    /// the segment, and may hold flushed chunks too, cannot be found.
    async fn check_last_header(
        &self,
        span: &LogSpan,
        found: &[Found],
        durable: u64,
    ) -> Result<(), VolumeError> {
        let flushed =
            span.start_offset as usize > SEGMENT_HEADER_LEN || found.iter().any(|chunk| chunk.seq <= durable);
        if flushed && self.segment_header(span).await?.is_none() {
            let source = FormatError::Authentication("segment header");
            return Err(VolumeError::damaged("segment header", span.phys, source));
        }
        Ok(())
    }

    /// Takes chunks into the result.
    fn take(&mut self, span: LogSpan, found: Vec<Found>) {
        self.out.segments.push(span.handle);
        let Some(last) = found.last() else { return };
        let end = u32::try_from(last.end).expect("segments are at most 64 MiB");
        self.reader.table_mut().set_bytes(span.handle, end);
        debug_assert!(found.iter().all(|chunk| chunk.offset >= u64::from(span.start_offset)));
        self.out.spans.push(LogSpan { end_offset: Some(end), ..span });
        self.out.next_seq = last.seq + 1;
        self.out.chain = last.tag;
        self.out.last_uid = span.uid;
        self.durable_seq = self.durable_seq.max(last.durable_seq);
        found.into_iter().flat_map(|chunk| chunk.effects).for_each(|run| self.out.delta.insert(run));
    }
}
