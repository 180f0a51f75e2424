//! What chunks of structured replies and filtered block-status requests carry: places of data, holes,
//! errors, descriptors (proto.md "Structured reply types", "Extended headers").

use super::transmission::{ChunkKind, ERROR_TEXT_LEN_MAX, HeaderStyle, compact_len};
use super::{Errno, Fields, WireError, put_u16, put_u32, put_u64};

/// Bytes in front of the data in an `OFFSET_DATA` chunk.
pub const OFFSET_DATA_PREFIX_LEN: usize = 8;

/// Appends what stands in front of the data in an `OFFSET_DATA` chunk.
pub fn encode_offset_data(offset: u64, out: &mut Vec<u8>) {
    put_u64(out, offset);
}

/// Reads what stands in front of the data in an `OFFSET_DATA` chunk: the data's offset.
///
/// # Errors
/// The lengths' errors.
pub fn decode_offset_data(prefix: &[u8]) -> Result<u64, WireError> {
    let mut fields = Fields(prefix);
    let offset = fields.u64()?;
    fields.end()?;
    Ok(offset)
}

/// Payload of an `OFFSET_HOLE` chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OffsetHole {
    /// First byte.
    pub offset: u64,
    /// Bytes, not 0.
    pub len: u32,
}

impl OffsetHole {
    /// Bytes of the payload.
    pub const LEN: usize = 12;

    /// Appends the payload.
    pub fn encode(self, out: &mut Vec<u8>) {
        put_u64(out, self.offset);
        put_u32(out, self.len);
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// The lengths' errors.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields(bytes);
        let hole = Self { offset: fields.u64()?, len: fields.u32()? };
        fields.end()?;
        Ok(hole)
    }
}

/// Payload of an `ERROR` chunk, and of an `ERROR_OFFSET` chunk when it has an offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrorChunk<'a> {
    /// Why.
    pub error: Errno,
    /// Text for people.
    pub text: &'a str,
    /// Where, for `ERROR_OFFSET`.
    pub offset: Option<u64>,
}

impl<'a> ErrorChunk<'a> {
    /// The kind of chunk that carries this payload.
    #[must_use]
    pub fn kind(&self) -> ChunkKind {
        if self.offset.is_some() { ChunkKind::ERROR_OFFSET } else { ChunkKind::ERROR }
    }

    /// Appends the payload. Text behind [`ERROR_TEXT_LEN_MAX`] bytes is cut off.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let text = &self.text[..self.text.floor_char_boundary(ERROR_TEXT_LEN_MAX)];
        put_u32(out, self.error.0);
        put_u16(out, u16::try_from(text.len()).expect("at most ERROR_TEXT_LEN_MAX bytes"));
        out.extend_from_slice(text.as_bytes());
        if let Some(offset) = self.offset {
            put_u64(out, offset);
        }
    }

    /// Reads the payload of a chunk of `kind`. Kinds of error that this version does not know are
    /// read as `ERROR`, what follows the text is ignored (proto.md). Malformed text becomes empty.
    ///
    /// # Errors
    /// The lengths' errors.
    pub fn decode(kind: ChunkKind, bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut fields = Fields(bytes);
        let error = Errno(fields.u32()?);
        let text_len = usize::from(fields.u16()?);
        let text = super::text(fields.bytes(text_len)?).unwrap_or("");
        let offset = match kind {
            ChunkKind::ERROR_OFFSET => Some(fields.u64()?),
            _ => None,
        };
        if kind == ChunkKind::ERROR || kind == ChunkKind::ERROR_OFFSET {
            fields.end()?;
        }
        Ok(Self { error, text, offset })
    }
}

/// One run in the answer to `NBD_CMD_BLOCK_STATUS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// Bytes, not 0.
    pub len: u64,
    /// What the context says of them; 32 bits with compact headers.
    pub flags: u64,
}

/// Payload of a `BLOCK_STATUS` or `BLOCK_STATUS_EXT` chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockStatus {
    /// Which metadata context.
    pub context_id: u32,
    /// The runs, from the request's offset on.
    pub descriptors: Vec<Descriptor>,
}

impl BlockStatus {
    /// The kind of chunk that carries the payload.
    #[must_use]
    pub const fn kind(style: HeaderStyle) -> ChunkKind {
        match style {
            HeaderStyle::Compact => ChunkKind::BLOCK_STATUS,
            HeaderStyle::Extended => ChunkKind::BLOCK_STATUS_EXT,
        }
    }

    /// Bytes of the payload for `count` descriptors.
    #[must_use]
    pub const fn encoded_len(style: HeaderStyle, count: usize) -> usize {
        match style {
            HeaderStyle::Compact => 4 + 8 * count,
            HeaderStyle::Extended => 8 + 16 * count,
        }
    }

    /// Appends the payload.
    ///
    /// # Panics
    /// When a number needs more than 32 bits and the style is compact.
    pub fn encode(&self, style: HeaderStyle, out: &mut Vec<u8>) {
        put_u32(out, self.context_id);
        match style {
            HeaderStyle::Compact => {
                for descriptor in &self.descriptors {
                    put_u32(out, compact_len(descriptor.len));
                    put_u32(out, u32::try_from(descriptor.flags).expect("flags fit the style"));
                }
            }
            HeaderStyle::Extended => {
                put_u32(out, u32::try_from(self.descriptors.len()).expect("bounded by the caller"));
                for descriptor in &self.descriptors {
                    put_u64(out, descriptor.len);
                    put_u64(out, descriptor.flags);
                }
            }
        }
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// [`WireError::Short`] when the count does not agree with the length or no descriptor is
    /// there, [`WireError::Trailing`].
    pub fn decode(style: HeaderStyle, bytes: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields(bytes);
        let context_id = fields.u32()?;
        let mut descriptors = Vec::new();
        match style {
            HeaderStyle::Compact => {
                while !fields.0.is_empty() {
                    descriptors.push(Descriptor { len: fields.u32()?.into(), flags: fields.u32()?.into() });
                }
            }
            HeaderStyle::Extended => {
                for _ in 0..fields.u32()? {
                    descriptors.push(Descriptor { len: fields.u64()?, flags: fields.u64()? });
                }
                fields.end()?;
            }
        }
        if descriptors.is_empty() {
            return Err(WireError::Short);
        }
        Ok(Self { context_id, descriptors })
    }
}

/// Payload of `NBD_CMD_BLOCK_STATUS` with `PAYLOAD_LEN`: the range's length and the contexts wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StatusFilter {
    /// Bytes of the range.
    pub effect_len: u64,
    /// Metadata contexts to answer for.
    pub context_ids: Vec<u32>,
}

impl StatusFilter {
    /// Appends the payload.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_u64(out, self.effect_len);
        for id in &self.context_ids {
            put_u32(out, *id);
        }
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// [`WireError::Short`] when it does not hold a whole number of identifiers.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields(bytes);
        let effect_len = fields.u64()?;
        let mut context_ids = Vec::with_capacity(fields.0.len() / 4);
        while !fields.0.is_empty() {
            context_ids.push(fields.u32()?);
        }
        Ok(Self { effect_len, context_ids })
    }
}
