//! The NBD protocol as bytes: every number, and encode beside decode for every message.
//!
//! The only big-endian code of the project. Pure and synchronous, knows no state machine, and is
//! used by both ends: our server ([`crate::nbd`]) and our client (the remote store). Whatever is
//! decoded comes from the other side of a network and is believed in nothing: decoders return a
//! [`WireError`], read nothing behind what they were given and allocate nothing from a length that
//! they did not see the bytes of. Names are those of proto.md (NetworkBlockDevice/nbd).
//!
//! [`option`] holds the handshake, [`transmission`] everything after it, [`payload`] what its chunks carry.

pub mod option;
pub mod payload;
pub mod transmission;

/// Why bytes were not a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// The magic number is not the one that belongs here.
    #[error("wrong magic number {0:#x}")]
    Magic(u64),
    /// The message ends before its last field, or a length inside it points behind its end.
    #[error("message too short")]
    Short,
    /// Bytes follow the last field.
    #[error("{0} bytes behind the last field")]
    Trailing(usize),
    /// A string is longer than [`STRING_LEN_MAX`].
    #[error("string of {0} bytes, at most {STRING_LEN_MAX} are allowed")]
    StringTooLong(u32),
    /// A string is not UTF-8 or has a NUL in it.
    #[error("string is not UTF-8, or holds a NUL")]
    StringMalformed,
}

/// Longest string of the protocol, in bytes (proto.md "Values": strings SHOULD NOT, names MUST NOT be longer).
pub const STRING_LEN_MAX: usize = 4096;

/// Declares a number of the protocol: an open set of values, some of which have names.
macro_rules! numbers {
    ($(#[$doc:meta])* $name:ident: $int:ty { $($(#[$vdoc:meta])* $value:ident = $n:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(pub $int);

        impl $name {
            $($(#[$vdoc])* pub const $value: Self = Self($n);)*
        }
    };
}

/// Declares a set of flags: named bits that can be joined and asked for.
macro_rules! flags {
    ($(#[$doc:meta])* $name:ident: $int:ty { $($(#[$vdoc:meta])* $value:ident = $bit:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
        pub struct $name(pub $int);

        impl $name {
            /// No flag.
            pub const NONE: Self = Self(0);
            $($(#[$vdoc])* pub const $value: Self = Self(1 << $bit);)*

            /// Both sets together.
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// Whether every flag of `other` is set.
            #[must_use]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// Whether no flag outside `allowed` is set.
            #[must_use]
            pub const fn only(self, allowed: Self) -> bool {
                self.0 & !allowed.0 == 0
            }
        }
    };
}

numbers! {
    /// `error` of a reply: the eight values of proto.md "Error values", and 0.
    Errno: u32 {
        /// No error.
        OK = 0,
        /// Operation not permitted.
        EPERM = 1,
        /// Input/output error.
        EIO = 5,
        /// Cannot allocate memory.
        ENOMEM = 12,
        /// Invalid argument.
        EINVAL = 22,
        /// No space left on device.
        ENOSPC = 28,
        /// Value too large.
        EOVERFLOW = 75,
        /// Operation not supported.
        ENOTSUP = 95,
        /// Server is in the process of being shut down.
        ESHUTDOWN = 108,
    }
}

flags! {
    /// Transmission flags: what an export can do (`NBD_FLAG_*`).
    TransmissionFlags: u16 {
        /// The other bits mean something; always set.
        HAS_FLAGS = 0,
        /// Refuses changes.
        READ_ONLY = 1,
        /// Serves `NBD_CMD_FLUSH`.
        SEND_FLUSH = 2,
        /// Serves `NBD_CMD_FLAG_FUA`.
        SEND_FUA = 3,
        /// Seeks are slow.
        ROTATIONAL = 4,
        /// Serves `NBD_CMD_TRIM`.
        SEND_TRIM = 5,
        /// Serves `NBD_CMD_WRITE_ZEROES`.
        SEND_WRITE_ZEROES = 6,
        /// Serves `NBD_CMD_FLAG_DF`.
        SEND_DF = 7,
        /// A flush on one connection covers what was answered on all.
        CAN_MULTI_CONN = 8,
        /// Serves `NBD_CMD_RESIZE` (a draft).
        SEND_RESIZE = 9,
        /// Serves `NBD_CMD_CACHE`.
        SEND_CACHE = 10,
        /// Serves `NBD_CMD_FLAG_FAST_ZERO`.
        SEND_FAST_ZERO = 11,
        /// Serves `NBD_CMD_BLOCK_STATUS` with a payload.
        BLOCK_STATUS_PAYLOAD = 12,
    }
}

/// Reads the fields of one message in order.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (now, later) = self.0.split_at_checked(len).ok_or(WireError::Short)?;
        self.0 = later;
        Ok(now)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (now, later) = self.0.split_first_chunk().ok_or(WireError::Short)?;
        self.0 = later;
        Ok(*now)
    }

    fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string behind its 32-bit length.
    fn string(&mut self) -> Result<&'a str, WireError> {
        let len = self.u32()?;
        if len as usize > STRING_LEN_MAX {
            return Err(WireError::StringTooLong(len));
        }
        text(self.bytes(len as usize)?)
    }

    /// What is left, as a string.
    fn rest_as_string(&mut self) -> Result<&'a str, WireError> {
        let rest = std::mem::take(&mut self.0);
        if rest.len() > STRING_LEN_MAX {
            return Err(WireError::StringTooLong(u32::try_from(rest.len()).unwrap_or(u32::MAX)));
        }
        text(rest)
    }

    fn magic_u32(&mut self, expected: u32) -> Result<(), WireError> {
        let found = self.u32()?;
        if found == expected { Ok(()) } else { Err(WireError::Magic(found.into())) }
    }

    fn magic_u64(&mut self, expected: u64) -> Result<(), WireError> {
        let found = self.u64()?;
        if found == expected { Ok(()) } else { Err(WireError::Magic(found)) }
    }

    /// Refuses trailing bytes.
    fn end(self) -> Result<(), WireError> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError::Trailing(self.0.len())) }
    }
}

/// Checks a string of the protocol: UTF-8 without NUL, at most [`STRING_LEN_MAX`] bytes.
///
/// # Errors
/// [`WireError::StringTooLong`], [`WireError::StringMalformed`].
pub fn text(bytes: &[u8]) -> Result<&str, WireError> {
    if bytes.len() > STRING_LEN_MAX {
        return Err(WireError::StringTooLong(u32::try_from(bytes.len()).unwrap_or(u32::MAX)));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(WireError::StringMalformed),
    }
}

fn put_u16(out: &mut Vec<u8>, n: u16) {
    out.extend_from_slice(&n.to_be_bytes());
}

fn put_u32(out: &mut Vec<u8>, n: u32) {
    out.extend_from_slice(&n.to_be_bytes());
}

fn put_u64(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(&n.to_be_bytes());
}

/// A string behind its 32-bit length.
fn put_string(out: &mut Vec<u8>, text: &str) {
    debug_assert!(text.len() <= STRING_LEN_MAX, "strings are bounded where they are made");
    put_u32(out, u32::try_from(text.len()).expect("at most STRING_LEN_MAX bytes"));
    out.extend_from_slice(text.as_bytes());
}

use {flags, numbers};
