//! Transmission as bytes: requests, and replies of all three kinds (proto.md "Transmission phase",
//! "Structured reply", "Extended headers"). What chunks carry is in [`super::payload`].

use super::{Errno, Fields, WireError, flags, numbers, put_u16, put_u32, put_u64};

/// Start of a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Start of an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Start of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Start of a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Start of a chunk with an extended header.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Bytes of a simple reply's header.
pub const SIMPLE_REPLY_LEN: usize = 16;
/// Longest text of an error chunk that this project sends, in bytes; the protocol allows 4096.
pub const ERROR_TEXT_LEN_MAX: usize = 512;

numbers! {
    /// Request type (`NBD_CMD_*`).
    Command: u16 {
        /// Reads.
        READ = 0,
        /// Writes; the payload follows the header.
        WRITE = 1,
        /// Ends the connection; has no reply.
        DISC = 2,
        /// Makes everything answered durable.
        FLUSH = 3,
        /// Gives a range back.
        TRIM = 4,
        /// Brings a range near.
        CACHE = 5,
        /// Makes a range zero.
        WRITE_ZEROES = 6,
        /// Asks what a range is made of.
        BLOCK_STATUS = 7,
        /// Changes the size (a draft).
        RESIZE = 8,
    }
}

flags! {
    /// Flags of a request (`NBD_CMD_FLAG_*`).
    CommandFlags: u16 {
        /// Durable before it is answered.
        FUA = 0,
        /// `WRITE_ZEROES` must not punch a hole.
        NO_HOLE = 1,
        /// `READ` must be answered in one content chunk.
        DF = 2,
        /// `BLOCK_STATUS` wants one descriptor.
        REQ_ONE = 3,
        /// `WRITE_ZEROES` must be fast or fail.
        FAST_ZERO = 4,
        /// The length is that of a payload behind the header (extended headers only).
        PAYLOAD_LEN = 5,
    }
}

flags! {
    /// Flags of a chunk (`NBD_REPLY_FLAG_*`).
    ChunkFlags: u16 {
        /// The last chunk of its reply.
        DONE = 0,
    }
}

numbers! {
    /// Kind of a chunk (`NBD_REPLY_TYPE_*`).
    ChunkKind: u16 {
        /// Nothing but success.
        NONE = 0,
        /// Offset and data.
        OFFSET_DATA = 1,
        /// Offset and length of zeroes.
        OFFSET_HOLE = 2,
        /// 32-bit block-status descriptors.
        BLOCK_STATUS = 5,
        /// 64-bit block-status descriptors.
        BLOCK_STATUS_EXT = 6,
        /// An error.
        ERROR = 0x8001,
        /// An error and where it happened.
        ERROR_OFFSET = 0x8002,
    }
}

impl ChunkKind {
    /// Whether the chunk says that the request failed.
    #[must_use]
    pub fn is_error(self) -> bool {
        self.0 & 0x8000 != 0
    }
}

flags! {
    /// State of an extent in `base:allocation` (`NBD_STATE_*`).
    AllocationFlags: u32 {
        /// Not allocated.
        HOLE = 0,
        /// Reads as zeroes.
        ZERO = 1,
    }
}

/// Which headers a connection negotiated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderStyle {
    /// 32-bit lengths: 28-byte requests, 20-byte chunks.
    Compact,
    /// 64-bit lengths: 32-byte requests and chunks (`NBD_OPT_EXTENDED_HEADERS`).
    Extended,
}

impl HeaderStyle {
    /// Bytes of a request's header.
    #[must_use]
    pub const fn request_len(self) -> usize {
        match self {
            Self::Compact => 28,
            Self::Extended => 32,
        }
    }

    /// Bytes of a chunk's header.
    #[must_use]
    pub const fn chunk_len(self) -> usize {
        match self {
            Self::Compact => 20,
            Self::Extended => 32,
        }
    }
}

/// Header of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Flags; those that the command does not know are the receiver's to refuse.
    pub flags: CommandFlags,
    /// What is asked.
    pub command: Command,
    /// The client's tag, opaque to the server.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes, of the range or of the payload (see [`CommandFlags::PAYLOAD_LEN`]).
    pub len: u64,
}

impl Request {
    /// Appends the header.
    ///
    /// # Panics
    /// When the length needs more than 32 bits and the style is compact.
    pub fn encode(&self, style: HeaderStyle, out: &mut Vec<u8>) {
        put_u32(
            out,
            match style {
                HeaderStyle::Compact => REQUEST_MAGIC,
                HeaderStyle::Extended => EXTENDED_REQUEST_MAGIC,
            },
        );
        put_u16(out, self.flags.0);
        put_u16(out, self.command.0);
        put_u64(out, self.cookie);
        put_u64(out, self.offset);
        match style {
            HeaderStyle::Compact => put_u32(out, compact_len(self.len)),
            HeaderStyle::Extended => put_u64(out, self.len),
        }
    }

    /// Reads the header: `bytes` are [`HeaderStyle::request_len`] long.
    ///
    /// # Errors
    /// [`WireError::Magic`] also for the other style, and the lengths' errors.
    pub fn decode(style: HeaderStyle, bytes: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields(bytes);
        fields.magic_u32(match style {
            HeaderStyle::Compact => REQUEST_MAGIC,
            HeaderStyle::Extended => EXTENDED_REQUEST_MAGIC,
        })?;
        let request = Self {
            flags: CommandFlags(fields.u16()?),
            command: Command(fields.u16()?),
            cookie: fields.u64()?,
            offset: fields.u64()?,
            len: match style {
                HeaderStyle::Compact => fields.u32()?.into(),
                HeaderStyle::Extended => fields.u64()?,
            },
        };
        fields.end()?;
        Ok(request)
    }
}

/// A reply without structure; the data of a successful read follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SimpleReply {
    /// 0 or why not.
    pub error: Errno,
    /// The request's tag.
    pub cookie: u64,
}

impl SimpleReply {
    /// Appends the header.
    pub fn encode(self, out: &mut Vec<u8>) {
        put_u32(out, SIMPLE_REPLY_MAGIC);
        put_u32(out, self.error.0);
        put_u64(out, self.cookie);
    }

    /// Reads the header.
    ///
    /// # Errors
    /// [`WireError::Magic`], and the lengths' errors.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields(bytes);
        fields.magic_u32(SIMPLE_REPLY_MAGIC)?;
        let reply = Self { error: Errno(fields.u32()?), cookie: fields.u64()? };
        fields.end()?;
        Ok(reply)
    }
}

/// Header of one chunk of a structured reply; `len` bytes of payload follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// Whether it is the last.
    pub flags: ChunkFlags,
    /// What the payload is.
    pub kind: ChunkKind,
    /// The request's tag.
    pub cookie: u64,
    /// The request's offset; only on the wire with extended headers, else 0.
    pub offset: u64,
    /// Bytes that follow.
    pub len: u64,
}

impl Chunk {
    /// Appends the header.
    ///
    /// # Panics
    /// When the length needs more than 32 bits and the style is compact.
    pub fn encode(&self, style: HeaderStyle, out: &mut Vec<u8>) {
        put_u32(
            out,
            match style {
                HeaderStyle::Compact => STRUCTURED_REPLY_MAGIC,
                HeaderStyle::Extended => EXTENDED_REPLY_MAGIC,
            },
        );
        put_u16(out, self.flags.0);
        put_u16(out, self.kind.0);
        put_u64(out, self.cookie);
        match style {
            HeaderStyle::Compact => put_u32(out, compact_len(self.len)),
            HeaderStyle::Extended => {
                put_u64(out, self.offset);
                put_u64(out, self.len);
            }
        }
    }

    /// Reads the header: `bytes` are [`HeaderStyle::chunk_len`] long.
    ///
    /// # Errors
    /// [`WireError::Magic`] also for the other style, and the lengths' errors.
    pub fn decode(style: HeaderStyle, bytes: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields(bytes);
        fields.magic_u32(match style {
            HeaderStyle::Compact => STRUCTURED_REPLY_MAGIC,
            HeaderStyle::Extended => EXTENDED_REPLY_MAGIC,
        })?;
        let flags = ChunkFlags(fields.u16()?);
        let kind = ChunkKind(fields.u16()?);
        let cookie = fields.u64()?;
        let (offset, len) = match style {
            HeaderStyle::Compact => (0, fields.u32()?.into()),
            HeaderStyle::Extended => (fields.u64()?, fields.u64()?),
        };
        fields.end()?;
        Ok(Self { flags, kind, cookie, offset, len })
    }
}

/// What a reply's first four bytes say that it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplyMagic {
    /// [`SimpleReply`], [`SIMPLE_REPLY_LEN`] bytes.
    Simple,
    /// [`Chunk`] in the given style, [`HeaderStyle::chunk_len`] bytes.
    Chunk(HeaderStyle),
}

impl ReplyMagic {
    /// Reads the first four bytes of a reply.
    ///
    /// # Errors
    /// [`WireError::Magic`] when they start no reply, [`WireError::Short`] when there are not four.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        match Fields(bytes).u32()? {
            SIMPLE_REPLY_MAGIC => Ok(Self::Simple),
            STRUCTURED_REPLY_MAGIC => Ok(Self::Chunk(HeaderStyle::Compact)),
            EXTENDED_REPLY_MAGIC => Ok(Self::Chunk(HeaderStyle::Extended)),
            other => Err(WireError::Magic(other.into())),
        }
    }

    /// Bytes of the header, its magic included.
    #[must_use]
    pub const fn header_len(self) -> usize {
        match self {
            Self::Simple => SIMPLE_REPLY_LEN,
            Self::Chunk(style) => style.chunk_len(),
        }
    }
}

pub(super) fn compact_len(len: u64) -> u32 {
    u32::try_from(len).expect("lengths fit the negotiated headers")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::payload::*;
    use super::*;

    const STYLES: [HeaderStyle; 2] = [HeaderStyle::Compact, HeaderStyle::Extended];

    fn bytes(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut out);
        out
    }

    #[test]
    fn headers_have_the_lengths_of_proto_md_and_round_trip() {
        for (style, request_len, chunk_len) in [(STYLES[0], 28, 20), (STYLES[1], 32, 32)] {
            let request = Request {
                flags: CommandFlags::FUA,
                command: Command::WRITE,
                cookie: u64::MAX - 1,
                offset: 1 << 63,
                len: u64::from(u32::MAX),
            };
            let wire = bytes(|out| request.encode(style, out));
            assert_eq!((wire.len(), style.request_len()), (request_len, request_len));
            assert_eq!(Request::decode(style, &wire), Ok(request));

            let offset = if style == HeaderStyle::Extended { 77 } else { 0 };
            let chunk = Chunk { flags: ChunkFlags::DONE, kind: ChunkKind::ERROR, cookie: 3, offset, len: 9 };
            let wire = bytes(|out| chunk.encode(style, out));
            assert_eq!((wire.len(), style.chunk_len()), (chunk_len, chunk_len));
            assert_eq!(Chunk::decode(style, &wire), Ok(chunk));
            assert_eq!(ReplyMagic::decode(&wire), Ok(ReplyMagic::Chunk(style)));
        }
        let simple = SimpleReply { error: Errno::EIO, cookie: 5 };
        let wire = bytes(|out| simple.encode(out));
        assert_eq!(wire.len(), SIMPLE_REPLY_LEN);
        assert_eq!(SimpleReply::decode(&wire), Ok(simple));
    }

    #[test]
    fn block_status_of_both_widths_round_trips_and_lying_counts_are_refused() {
        let status = BlockStatus {
            context_id: 1,
            descriptors: vec![Descriptor { len: 4096, flags: 3 }, Descriptor { len: 512, flags: 0 }],
        };
        for style in STYLES {
            let mut wire = bytes(|out| status.encode(style, out));
            assert_eq!(wire.len(), BlockStatus::encoded_len(style, 2));
            assert_eq!(BlockStatus::decode(style, &wire).as_ref(), Ok(&status));
            wire.pop();
            assert_eq!(BlockStatus::decode(style, &wire), Err(WireError::Short));
        }
        let mut lie = bytes(|out| status.encode(HeaderStyle::Extended, out));
        lie[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(BlockStatus::decode(HeaderStyle::Extended, &lie), Err(WireError::Short));
    }

    #[test]
    fn error_chunks_round_trip_and_long_text_is_cut_at_a_character() {
        for offset in [None, Some(4096)] {
            let error = ErrorChunk { error: Errno::EIO, text: "no", offset };
            let wire = bytes(|out| error.encode(out));
            assert_eq!(ErrorChunk::decode(error.kind(), &wire), Ok(error));
        }
        let text = "ä".repeat(400) + "x";
        let wire = bytes(|out| ErrorChunk { error: Errno::EIO, text: &text, offset: None }.encode(out));
        assert_eq!(wire.len(), 6 + ERROR_TEXT_LEN_MAX);
    }

    proptest! {
        #[test]
        fn no_decoder_panics_on_any_bytes(data in proptest::collection::vec(any::<u8>(), 0..80)) {
            for style in STYLES {
                let _ = Request::decode(style, &data);
                let _ = Chunk::decode(style, &data);
                let _ = BlockStatus::decode(style, &data);
            }
            let _ = SimpleReply::decode(&data);
            let _ = ReplyMagic::decode(&data);
            let _ = OffsetHole::decode(&data);
            let _ = StatusFilter::decode(&data);
            let _ = ErrorChunk::decode(ChunkKind::ERROR_OFFSET, &data);
        }
    }
}
