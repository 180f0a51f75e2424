//! TTLV, the encoding of KMIP messages: tag(3) ‖ type u8 ‖ length u32 ‖ value, big endian, values padded with
//! zeros to eight bytes (KMIP Specification 1.4 §9.1, OASIS; the same in 1.2 and 2.0 §10).
//!
//! What comes in is another's: a message is read whole and strictly before anything of it is used. Lengths
//! are compared with what is left, nesting is bounded, padding is zero, and each value has one spelling, so
//! that what was read is written again as the same bytes. Values borrow from the message; nothing is copied,
//! so a key in one is wiped with its buffer.

use zeroize::Zeroizing;

/// Largest message, either way. Keys have some hundred bytes, all attributes of one a few KiB.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Bytes of tag, type and length.
pub const HEADER_LEN: usize = 8;
/// Deepest nesting. A transparent key lies eight structures deep.
const DEPTH_MAX: usize = 16;
/// Room for a request at once, so that no key is left behind in a buffer that grew. The longest has an
/// identifier, a key and the additional authenticated data of a keyslot: about one KiB.
const REQUEST_ROOM: usize = 4096;

/// A tag, a type and a value. No `Debug`: it may be a key.
#[derive(PartialEq, Eq)]
pub struct Item<'a> {
    /// What it is, e.g. 0x420094 for a Unique Identifier.
    pub tag: u32,
    /// Its value.
    pub value: Value<'a>,
}

/// A value of one of the types of §9.1.1.2.
#[derive(PartialEq, Eq)]
pub enum Value<'a> {
    /// Type 1: items in their order.
    Structure(Vec<Item<'a>>),
    /// Type 2.
    Integer(i32),
    /// Type 3.
    LongInteger(i64),
    /// Type 4, a multiple of eight bytes.
    BigInteger(&'a [u8]),
    /// Type 5.
    Enumeration(u32),
    /// Type 6.
    Boolean(bool),
    /// Type 7, UTF-8.
    Text(&'a str),
    /// Type 8.
    Bytes(&'a [u8]),
    /// Type 9, seconds since 1970.
    DateTime(i64),
    /// Type 10, seconds.
    Interval(u32),
    /// Type 11 (2.0), microseconds since 1970.
    DateTimeExtended(i64),
}

/// Why bytes are no message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TtlvError {
    /// A length is beyond the end.
    #[error("it is cut off")]
    Short,
    /// Bytes are left over.
    #[error("bytes are left behind its end")]
    Trailing,
    /// More than [`MESSAGE_BYTES_MAX`].
    #[error("it is longer than 64 KiB")]
    Long,
    /// Structures within structures without end.
    #[error("its structures are nested too deep")]
    Deep,
    /// Neither a tag of the specification nor one of an extension.
    #[error("it has a tag that is none")]
    Tag,
    /// A type that does not exist.
    #[error("it has a value of an unknown type")]
    Type,
    /// A length that its type does not have.
    #[error("it has a value of a wrong length")]
    Length,
    /// Padding, a truth value or a text that is not spelled as it must be.
    #[error("it has a value that is misspelled")]
    Spelling,
}

impl<'a> Item<'a> {
    /// Reads one message, all of `bytes`.
    ///
    /// # Errors
    /// [`TtlvError`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, TtlvError> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(TtlvError::Long);
        }
        let mut rest = bytes;
        let item = Self::read(&mut rest, DEPTH_MAX)?;
        if rest.is_empty() { Ok(item) } else { Err(TtlvError::Trailing) }
    }

    /// The same bytes again.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut writer = Writer::new();
        writer.item(self);
        writer.finish()
    }

    /// The items of a structure; none of anything else.
    #[must_use]
    pub fn items(&self) -> &[Self] {
        match &self.value {
            Value::Structure(items) => items,
            _ => &[],
        }
    }

    /// The values of that tag in a structure, in their order.
    pub fn all(&self, tag: u32) -> impl Iterator<Item = &Self> {
        self.items().iter().filter(move |item| item.tag == tag)
    }

    /// The only value of that tag in a structure: of several none is.
    #[must_use]
    pub fn one(&self, tag: u32) -> Option<&Self> {
        let mut all = self.all(tag);
        all.next().filter(|_| all.next().is_none())
    }

    /// The only text of that tag.
    #[must_use]
    pub fn text(&self, tag: u32) -> Option<&'a str> {
        match self.one(tag)?.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The only bytes of that tag.
    #[must_use]
    pub fn bytes(&self, tag: u32) -> Option<&'a [u8]> {
        match self.one(tag)?.value {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The only enumeration of that tag.
    #[must_use]
    pub fn enumeration(&self, tag: u32) -> Option<u32> {
        match self.one(tag)?.value {
            Value::Enumeration(number) => Some(number),
            _ => None,
        }
    }

    /// The only integer of that tag.
    #[must_use]
    pub fn integer(&self, tag: u32) -> Option<i32> {
        match self.one(tag)?.value {
            Value::Integer(number) => Some(number),
            _ => None,
        }
    }

    fn read(rest: &mut &'a [u8], depth: usize) -> Result<Self, TtlvError> {
        let (head, after) = rest.split_first_chunk::<HEADER_LEN>().ok_or(TtlvError::Short)?;
        let [a, b, c, kind, len @ ..] = *head;
        let tag = u32::from_be_bytes([0, a, b, c]);
        if !matches!(a, 0x42 | 0x54) {
            return Err(TtlvError::Tag);
        }
        let len = usize::try_from(u32::from_be_bytes(len)).map_err(|_| TtlvError::Short)?;
        let (value, after) = after.split_at_checked(len).ok_or(TtlvError::Short)?;
        let (padding, after) = after.split_at_checked(padding_len(len)).ok_or(TtlvError::Short)?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(TtlvError::Spelling);
        }
        *rest = after;
        Ok(Self { tag, value: Value::read(kind, value, depth)? })
    }

    fn write_to(&self, writer: &mut Writer) {
        let tag = self.tag;
        match &self.value {
            Value::Structure(items) => {
                writer.structure(tag, |writer| items.iter().for_each(|item| writer.item(item)));
            }
            Value::Integer(number) => writer.integer(tag, *number),
            Value::LongInteger(number) => writer.put(tag, 3, &number.to_be_bytes()),
            Value::BigInteger(bytes) => writer.put(tag, 4, bytes),
            Value::Enumeration(number) => writer.enumeration(tag, *number),
            Value::Boolean(truth) => writer.boolean(tag, *truth),
            Value::Text(text) => writer.text(tag, text),
            Value::Bytes(bytes) => writer.bytes(tag, bytes),
            Value::DateTime(seconds) => writer.date_time(tag, *seconds),
            Value::Interval(seconds) => writer.put(tag, 10, &seconds.to_be_bytes()),
            Value::DateTimeExtended(micros) => writer.put(tag, 11, &micros.to_be_bytes()),
        }
    }
}

impl<'a> Value<'a> {
    fn read(kind: u8, bytes: &'a [u8], depth: usize) -> Result<Self, TtlvError> {
        let four = || <[u8; 4]>::try_from(bytes).map_err(|_| TtlvError::Length);
        let eight = || <[u8; 8]>::try_from(bytes).map_err(|_| TtlvError::Length);
        Ok(match kind {
            1 => {
                let depth = depth.checked_sub(1).ok_or(TtlvError::Deep)?;
                let (mut rest, mut items) = (bytes, Vec::new());
                while !rest.is_empty() {
                    items.push(Item::read(&mut rest, depth)?);
                }
                Self::Structure(items)
            }
            2 => Self::Integer(i32::from_be_bytes(four()?)),
            3 => Self::LongInteger(i64::from_be_bytes(eight()?)),
            4 if bytes.is_empty() || !bytes.len().is_multiple_of(8) => return Err(TtlvError::Length),
            4 => Self::BigInteger(bytes),
            5 => Self::Enumeration(u32::from_be_bytes(four()?)),
            6 => match u64::from_be_bytes(eight()?) {
                0 => Self::Boolean(false),
                1 => Self::Boolean(true),
                _ => return Err(TtlvError::Spelling),
            },
            7 => Self::Text(std::str::from_utf8(bytes).map_err(|_| TtlvError::Spelling)?),
            8 => Self::Bytes(bytes),
            9 => Self::DateTime(i64::from_be_bytes(eight()?)),
            10 => Self::Interval(u32::from_be_bytes(four()?)),
            11 => Self::DateTimeExtended(i64::from_be_bytes(eight()?)),
            _ => return Err(TtlvError::Type),
        })
    }
}

/// Writes a message.
pub struct Writer {
    message: Zeroizing<Vec<u8>>,
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self { message: Zeroizing::new(Vec::with_capacity(REQUEST_ROOM)) }
    }

    /// A structure of what `items` writes.
    pub fn structure(&mut self, tag: u32, items: impl FnOnce(&mut Self)) {
        self.head(tag, 1, 0);
        let begin = self.message.len();
        items(self);
        let len = len_u32(self.message.len() - begin);
        self.message[begin - 4..begin].copy_from_slice(&len.to_be_bytes());
    }

    /// An item as it was read.
    pub fn item(&mut self, item: &Item<'_>) {
        item.write_to(self);
    }

    /// An integer.
    pub fn integer(&mut self, tag: u32, number: i32) {
        self.put(tag, 2, &number.to_be_bytes());
    }

    /// A value of an enumeration.
    pub fn enumeration(&mut self, tag: u32, number: u32) {
        self.put(tag, 5, &number.to_be_bytes());
    }

    /// A truth value.
    pub fn boolean(&mut self, tag: u32, truth: bool) {
        self.put(tag, 6, &u64::from(truth).to_be_bytes());
    }

    /// A text.
    pub fn text(&mut self, tag: u32, text: &str) {
        self.put(tag, 7, text.as_bytes());
    }

    /// Bytes.
    pub fn bytes(&mut self, tag: u32, bytes: &[u8]) {
        self.put(tag, 8, bytes);
    }

    /// A time, in seconds since 1970.
    pub fn date_time(&mut self, tag: u32, seconds: i64) {
        self.put(tag, 9, &seconds.to_be_bytes());
    }

    /// The message.
    #[must_use]
    pub fn finish(self) -> Zeroizing<Vec<u8>> {
        self.message
    }

    fn put(&mut self, tag: u32, kind: u8, value: &[u8]) {
        self.head(tag, kind, len_u32(value.len()));
        self.message.extend_from_slice(value);
        let end = self.message.len() + padding_len(value.len());
        self.message.resize(end, 0);
    }

    fn head(&mut self, tag: u32, kind: u8, len: u32) {
        let [_, tag @ ..] = tag.to_be_bytes();
        self.message.extend_from_slice(&tag);
        self.message.push(kind);
        self.message.extend_from_slice(&len.to_be_bytes());
    }
}

fn padding_len(len: usize) -> usize {
    (8 - len % 8) % 8
}

fn len_u32(len: usize) -> u32 {
    u32::try_from(len).expect("messages are far below 4 GiB")
}

#[cfg(test)]
mod tests;
