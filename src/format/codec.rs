//! Little-endian reading and writing of fixed layouts. Reading never panics and never allocates
//! from a length that it did not check against the bytes at hand.

use subtle::ConstantTimeEq;

/// Why bytes are not the structure they should be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// The bytes end early.
    #[error("{0}: cut short")]
    Truncated(&'static str),
    /// The magic number is another one.
    #[error("{0}: wrong magic")]
    Magic(&'static str),
    /// Written by a version that this program does not know.
    #[error("{structure}: version {found} is not supported (this program reads {supported})")]
    Version {
        /// Which structure.
        structure: &'static str,
        /// What it says.
        found: u32,
        /// What is known.
        supported: u32,
    },
    /// The header demands features that this program does not know.
    #[error("header: unknown incompatible features {0:#018x}; a newer sealbd is needed")]
    Incompatible(u64),
    /// The header names a cipher suite that does not exist here.
    #[error("header: unknown cipher suite {0}; this program knows suite 1 (AES-256-GCM + HKDF-SHA256)")]
    Suite(u32),
    /// The checksum does not fit: a torn write or damage.
    #[error("{0}: checksum mismatch (torn or damaged)")]
    Checksum(&'static str),
    /// The keyed authentication failed: altered, or not of this volume.
    #[error("{0}: authentication failed (altered, or of another volume)")]
    Authentication(&'static str),
    /// A field holds what it must not.
    #[error("{structure}: {field} is {found}, which is not allowed")]
    Field {
        /// Which structure.
        structure: &'static str,
        /// Which field.
        field: &'static str,
        /// What it holds.
        found: u64,
    },
    /// More bytes than the structure has, or padding that is not zero.
    #[error("{0}: unexpected bytes behind the structure")]
    Trailing(&'static str),
}

/// Takes fields off the front of a byte slice.
pub(super) struct Reader<'a> {
    structure: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(structure: &'static str, bytes: &'a [u8]) -> Self {
        Self { structure, rest: bytes }
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let (now, later) = self.rest.split_at_checked(len).ok_or(FormatError::Truncated(self.structure))?;
        self.rest = later;
        Ok(now)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        Ok(self.bytes(N)?.try_into().expect("exactly N bytes were taken"))
    }

    pub(super) fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, FormatError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count of items that take at least `item_bytes` each and of which there are at most `max`.
    pub(super) fn count(
        &mut self,
        field: &'static str,
        item_bytes: usize,
        max: usize,
    ) -> Result<usize, FormatError> {
        let found = self.u32()?;
        let count = found as usize;
        if count > max || count.saturating_mul(item_bytes) > self.rest.len() {
            return Err(self.field(field, u64::from(found)));
        }
        Ok(count)
    }

    /// Takes `len` bytes that must be zero.
    pub(super) fn zeros(&mut self, len: usize) -> Result<(), FormatError> {
        if self.bytes(len)?.iter().any(|b| *b != 0) {
            return Err(FormatError::Trailing(self.structure));
        }
        Ok(())
    }

    pub(super) fn magic(&mut self, magic: &[u8]) -> Result<(), FormatError> {
        if self.bytes(magic.len())? != magic {
            return Err(FormatError::Magic(self.structure));
        }
        Ok(())
    }

    /// Ends the reading: whatever is left must be nothing.
    pub(super) fn end(self) -> Result<(), FormatError> {
        if self.rest.is_empty() { Ok(()) } else { Err(FormatError::Trailing(self.structure)) }
    }

    /// Ends the reading: whatever is left must be zero padding.
    pub(super) fn end_padded(mut self) -> Result<(), FormatError> {
        self.zeros(self.rest.len())
    }

    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn field(&self, field: &'static str, found: u64) -> FormatError {
        FormatError::Field { structure: self.structure, field, found }
    }
}

/// Appends fields to a byte vector.
pub(super) trait Put {
    fn put(&mut self, bytes: &[u8]);

    fn put_u8(&mut self, value: u8) {
        self.put(&[value]);
    }
    fn put_u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }
    fn put_u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }
    fn put_u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }
    /// A count; every list of the format is bounded far below 2^32.
    fn put_count(&mut self, count: usize) {
        self.put_u32(u32::try_from(count).expect("lists of the format are bounded"));
    }
    /// Zeros up to `len` bytes in all.
    fn pad_to(&mut self, len: usize);
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn pad_to(&mut self, len: usize) {
        assert!(self.len() <= len, "a structure fits its place");
        self.resize(len, 0);
    }
}

/// Compares two authentication codes in constant time.
pub(super) fn mac_eq(left: &[u8], right: &[u8]) -> bool {
    left.ct_eq(right).into()
}
