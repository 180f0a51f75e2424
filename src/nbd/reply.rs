//! Laying out replies, and the queue in which they wait for the socket.
//!
//! A reply is its headers and its data side by side, and the order in which pieces of both go out,
//! so that read data is never copied. The queue gathers many replies into one vectored write and
//! remembers how far the socket took them.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;

use bytes::BytesMut;

use super::request::Fragments;
use super::{Mode, ReplyStyle};
use crate::buffers;
use crate::export::{Allocation, Extent};
use crate::geometry::ByteRange;
use crate::wire::Errno;
use crate::wire::payload::{
    BlockStatus, Descriptor, ErrorChunk, OFFSET_DATA_PREFIX_LEN, OffsetHole, encode_offset_data,
};
use crate::wire::transmission::{AllocationFlags, Chunk, ChunkFlags, ChunkKind, HeaderStyle, SimpleReply};

/// Most replies in one vectored write: enough to make the system call cheap beside them.
pub const REPLIES_PER_SEND_MAX: usize = 64;
/// Most slices in one vectored write; the kernel takes 1024.
const SLICES_PER_SEND_MAX: usize = 256;
/// Buffers up to this length are used again by their connection.
const SPARE_LEN_MAX: usize = 4096;
/// Most of them.
const SPARES_MAX: usize = 32;
/// Shorter holes are sent as data, in bytes: a hole costs two more chunk headers.
const HOLE_LEN_MIN: u64 = 4096;

/// What identifies a request in its reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    /// The client's tag.
    pub cookie: u64,
    /// The request's offset, echoed by extended headers.
    pub offset: u64,
}

/// How a request ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Done, nothing to tell.
    Done,
    /// Read.
    Data {
        /// The bytes of the export that were read.
        range: ByteRange,
        /// Their content.
        data: BytesMut,
        /// Parts that read as zeroes: ascending, disjoint, inside `range`.
        holes: Vec<ByteRange>,
        /// Whether the parts may be left out.
        fragments: Fragments,
    },
    /// Block status, at least one extent.
    Status(Vec<Extent>),
    /// Failed: error value and text for people.
    Failed(Errno, String),
}

/// One laid-out reply.
#[derive(PartialEq, Eq, Debug)]
pub struct Reply {
    headers: Vec<u8>,
    data: BytesMut,
    order: Order,
}

#[derive(PartialEq, Eq, Debug)]
enum Order {
    HeadersThenData,
    Pieces(Vec<Piece>),
}

#[derive(PartialEq, Eq, Debug)]
enum Piece {
    Headers(Range<usize>),
    Data(Range<usize>),
}

impl Reply {
    /// Lays out the reply to one request.
    #[must_use]
    pub fn new(asked: Asked, mode: &Mode, outcome: Outcome) -> Self {
        match mode.replies {
            ReplyStyle::Simple => Self::simple(asked, outcome),
            ReplyStyle::Structured(style) => Self::structured(asked, style, mode, outcome),
        }
    }

    /// The pieces in the order in which they go out; none is empty.
    fn piece(&self, index: usize) -> Option<&[u8]> {
        match (&self.order, index) {
            (Order::HeadersThenData, 0) => Some(&self.headers),
            (Order::HeadersThenData, 1) if !self.data.is_empty() => Some(&self.data),
            (Order::HeadersThenData, _) => None,
            (Order::Pieces(pieces), _) => pieces.get(index).map(|piece| match piece {
                Piece::Headers(range) => &self.headers[range.clone()],
                Piece::Data(range) => &self.data[range.clone()],
            }),
        }
    }

    /// The whole reply in one piece, for tests and fuzzing.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        (0..).map_while(|index| self.piece(index)).flatten().copied().collect()
    }

    fn simple(asked: Asked, outcome: Outcome) -> Self {
        let (error, data) = match outcome {
            Outcome::Data { data, .. } => (Errno::OK, data),
            Outcome::Done => (Errno::OK, BytesMut::new()),
            Outcome::Failed(errno, _) => (errno, BytesMut::new()),
            Outcome::Status(_) => unreachable!("block status needs structured replies"),
        };
        let mut headers = Vec::new();
        SimpleReply { error, cookie: asked.cookie }.encode(&mut headers);
        Self { headers, data, order: Order::HeadersThenData }
    }

    fn structured(asked: Asked, style: HeaderStyle, mode: &Mode, outcome: Outcome) -> Self {
        let mut headers = Vec::with_capacity(style.chunk_len() + OFFSET_DATA_PREFIX_LEN);
        let last = |kind: ChunkKind, payload: &[u8], headers: &mut Vec<u8>| {
            put_chunk(asked, style, ChunkFlags::DONE, kind, payload.len() as u64, headers);
            headers.extend_from_slice(payload);
        };
        match outcome {
            Outcome::Done => last(ChunkKind::NONE, &[], &mut headers),
            Outcome::Failed(error, text) => {
                let error = ErrorChunk { error, text: &text, offset: None };
                let mut payload = Vec::new();
                error.encode(&mut payload);
                last(error.kind(), &payload, &mut headers);
            }
            Outcome::Status(extents) => {
                let context_id = mode.allocation_context.expect("a context was selected");
                let descriptors = extents.iter().map(descriptor).collect();
                let mut payload = Vec::with_capacity(BlockStatus::encoded_len(style, extents.len()));
                BlockStatus { context_id, descriptors }.encode(style, &mut payload);
                last(BlockStatus::kind(style), &payload, &mut headers);
            }
            Outcome::Data { range, data, .. } if range.len() == 0 => {
                debug_assert!(data.is_empty(), "data has the length of its range");
                last(ChunkKind::NONE, &[], &mut headers);
            }
            Outcome::Data { range, data, holes, fragments } => {
                return Self::read(asked, style, range, data, &holes, fragments);
            }
        }
        Self { headers, data: BytesMut::new(), order: Order::HeadersThenData }
    }

    fn read(
        asked: Asked,
        style: HeaderStyle,
        range: ByteRange,
        data: BytesMut,
        holes: &[ByteRange],
        fragments: Fragments,
    ) -> Self {
        debug_assert_eq!(range.len(), data.len() as u64, "data has the length of its range");
        let index = |at: u64| usize::try_from(at - range.offset()).expect("a reply fits in memory");
        let mut headers = Vec::new();
        let mut pieces = Vec::new();
        let put_data = |from: u64, to: u64, headers: &mut Vec<u8>, pieces: &mut Vec<Piece>| {
            if from < to {
                let start = headers.len();
                let flags = if to == range.end() { ChunkFlags::DONE } else { ChunkFlags::NONE };
                let len = OFFSET_DATA_PREFIX_LEN as u64 + (to - from);
                put_chunk(asked, style, flags, ChunkKind::OFFSET_DATA, len, headers);
                encode_offset_data(from, headers);
                pieces.push(Piece::Headers(start..headers.len()));
                pieces.push(Piece::Data(index(from)..index(to)));
            }
        };
        let mut at = range.offset();
        let worth_it = |hole: &&ByteRange| hole.len() >= HOLE_LEN_MIN || **hole == range;
        let skipped = match fragments {
            Fragments::Allowed => holes,
            // One content chunk; it may be a hole.
            Fragments::Refused if holes == [range] => holes,
            Fragments::Refused => &[],
        };
        for hole in skipped.iter().filter(worth_it) {
            debug_assert!(at <= hole.offset() && hole.end() <= range.end(), "holes ascend inside the range");
            put_data(at, hole.offset(), &mut headers, &mut pieces);
            let start = headers.len();
            let flags = if hole.end() == range.end() { ChunkFlags::DONE } else { ChunkFlags::NONE };
            put_chunk(asked, style, flags, ChunkKind::OFFSET_HOLE, OffsetHole::LEN as u64, &mut headers);
            let len = u32::try_from(hole.len()).expect("a read is at most PAYLOAD_LEN_MAX long");
            OffsetHole { offset: hole.offset(), len }.encode(&mut headers);
            pieces.push(Piece::Headers(start..headers.len()));
            at = hole.end();
        }
        put_data(at, range.end(), &mut headers, &mut pieces);
        Self { headers, data, order: Order::Pieces(pieces) }
    }
}

fn put_chunk(
    asked: Asked,
    style: HeaderStyle,
    flags: ChunkFlags,
    kind: ChunkKind,
    len: u64,
    out: &mut Vec<u8>,
) {
    Chunk { flags, kind, cookie: asked.cookie, offset: asked.offset, len }.encode(style, out);
}

fn descriptor(extent: &Extent) -> Descriptor {
    let flags = match extent.allocation {
        Allocation::Data => AllocationFlags::NONE,
        Allocation::Zero => AllocationFlags::ZERO,
        Allocation::Hole => AllocationFlags::HOLE.with(AllocationFlags::ZERO),
    };
    Descriptor { len: extent.len, flags: flags.0.into() }
}

/// Replies waiting for the socket, each with what is given back when it is sent.
pub(super) struct ReplyQueue<T> {
    replies: VecDeque<(Reply, T)>,
    /// Where the socket stopped in the first reply: piece, and bytes of it.
    sent: (usize, usize),
    /// Short buffers of replies that are sent.
    spare: Vec<BytesMut>,
}

impl<T> ReplyQueue<T> {
    pub(super) fn new() -> Self {
        Self { replies: VecDeque::new(), sent: (0, 0), spare: Vec::new() }
    }

    /// A buffer of `len` bytes with any content, for the data of a reply.
    pub(super) fn buffer(&mut self, len: usize) -> BytesMut {
        if len > SPARE_LEN_MAX {
            return buffers::take(len);
        }
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.resize(len, 0);
        buffer
    }

    fn recycle(&mut self, buffer: BytesMut) {
        if buffer.capacity() > SPARE_LEN_MAX {
            buffers::give(buffer);
        } else if buffer.capacity() > 0 && self.spare.len() < SPARES_MAX {
            self.spare.push(buffer);
        }
    }

    pub(super) fn push(&mut self, reply: Reply, ticket: T) {
        self.replies.push_back((reply, ticket));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// What to send next.
    pub(super) fn slices(&self) -> Vec<IoSlice<'_>> {
        let mut slices = Vec::with_capacity(SLICES_PER_SEND_MAX.min(2 * self.replies.len()));
        let (mut piece, mut skip) = self.sent;
        for (reply, _) in self.replies.iter().take(REPLIES_PER_SEND_MAX) {
            while let Some(bytes) = reply.piece(piece) {
                if slices.len() == SLICES_PER_SEND_MAX {
                    return slices;
                }
                slices.push(IoSlice::new(&bytes[skip..]));
                (piece, skip) = (piece + 1, 0);
            }
            piece = 0;
        }
        slices
    }

    /// Notes that the socket took `len` bytes; hands each wholly sent reply's ticket to `done`.
    pub(super) fn advance(&mut self, mut len: usize, mut done: impl FnMut(T)) {
        while let Some((reply, _)) = self.replies.front() {
            let (piece, skip) = self.sent;
            match reply.piece(piece) {
                Some(bytes) if len < bytes.len() - skip => {
                    self.sent.1 += len;
                    return;
                }
                Some(bytes) => {
                    len -= bytes.len() - skip;
                    self.sent = (piece + 1, 0);
                }
                None => {
                    self.sent = (0, 0);
                    if let Some((reply, ticket)) = self.replies.pop_front() {
                        self.recycle(reply.data);
                        done(ticket);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(style: HeaderStyle) -> Mode {
        Mode { export: 0, replies: ReplyStyle::Structured(style), allocation_context: Some(1) }
    }

    fn read_outcome(fragments: Fragments) -> Outcome {
        let whole = ByteRange::within(4096, 16384, 1 << 20).unwrap();
        let mut data = BytesMut::from(&[7; 16384][..]);
        data[4096..8192].fill(0);
        Outcome::Data { range: whole, data, holes: vec![whole.part(4096, 4096)], fragments }
    }

    /// Kinds and content lengths of a reply's chunks.
    fn chunks(mut bytes: &[u8], style: HeaderStyle) -> Vec<(ChunkKind, u64, bool)> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let chunk = Chunk::decode(style, &bytes[..style.chunk_len()]).unwrap();
            let len = usize::try_from(chunk.len).unwrap();
            found.push((chunk.kind, chunk.len, chunk.flags == ChunkFlags::DONE));
            bytes = &bytes[style.chunk_len() + len..];
        }
        found
    }

    #[test]
    fn a_hole_inside_a_read_is_left_out_and_only_the_last_chunk_is_done() {
        for style in [HeaderStyle::Compact, HeaderStyle::Extended] {
            let asked = Asked { cookie: 9, offset: 4096 };
            let reply = Reply::new(asked, &mode(style), read_outcome(Fragments::Allowed));
            assert_eq!(
                chunks(&reply.to_bytes(), style),
                [
                    (ChunkKind::OFFSET_DATA, 4104, false),
                    (ChunkKind::OFFSET_HOLE, 12, false),
                    (ChunkKind::OFFSET_DATA, 8200, true)
                ]
            );
            let reply = Reply::new(asked, &mode(style), read_outcome(Fragments::Refused));
            assert_eq!(chunks(&reply.to_bytes(), style), [(ChunkKind::OFFSET_DATA, 16392, true)]);
        }
    }

    #[test]
    fn the_queue_sends_every_byte_once_however_the_socket_cuts_it() {
        for step in [1, 3, 19, 20, 21, 4096, 100_000] {
            let mut queue = ReplyQueue::new();
            let mut expected = Vec::new();
            for cookie in 0..100 {
                let outcome = if cookie % 9 == 0 { read_outcome(Fragments::Allowed) } else { Outcome::Done };
                let reply = Reply::new(Asked { cookie, offset: 0 }, &mode(HeaderStyle::Compact), outcome);
                expected.extend(reply.to_bytes());
                queue.push(reply, cookie);
            }
            let (mut sent, mut done) = (Vec::new(), Vec::new());
            while !queue.is_empty() {
                let now: Vec<u8> =
                    queue.slices().iter().flat_map(|slice| slice.to_vec()).take(step).collect();
                sent.extend_from_slice(&now);
                queue.advance(now.len(), |cookie| done.push(cookie));
            }
            assert!(sent == expected, "the same bytes in steps of {step}");
            assert_eq!(done, (0..100).collect::<Vec<_>>());
        }
    }
}
