//! Addresses and lengths on a volume. The only place where logical block addresses
//! become bytes and back; everything else passes these types on.
//!
//! A *sector* is 4 KiB, the unit of encryption (docs/FORMAT.md §1).

use std::fmt;

/// Bytes of one sector, the unit of encryption.
pub const SECTOR_BYTES: u64 = 4096;
/// [`SECTOR_BYTES`] for indexing memory.
pub const SECTOR_LEN: usize = 4096;

/// Number of a sector on a volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Lba(pub u64);

impl Lba {
    /// First byte of the sector.
    #[must_use]
    pub fn byte_offset(self) -> u64 {
        self.0 * SECTOR_BYTES
    }
}

impl fmt::Display for Lba {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Number of a root: one consistent state of a volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Generation(pub u64);

/// A run of whole sectors, `start .. start + count`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SectorRange {
    /// First sector.
    pub start: Lba,
    /// Number of sectors.
    pub count: u64,
}

impl SectorRange {
    /// The range `start .. start + count`.
    #[must_use]
    pub fn new(start: Lba, count: u64) -> Self {
        Self { start, count }
    }

    /// First sector behind the range.
    #[must_use]
    pub fn end(self) -> Lba {
        Lba(self.start.0 + self.count)
    }

    /// Whether both ranges share a sector.
    #[must_use]
    pub fn overlaps(self, other: SectorRange) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// Whether `lba` lies in the range.
    #[must_use]
    pub fn contains(self, lba: Lba) -> bool {
        self.start <= lba && lba < self.end()
    }

    /// Length in bytes.
    #[must_use]
    pub fn byte_len(self) -> u64 {
        self.count * SECTOR_BYTES
    }
}

/// A run of bytes of an export, `offset .. offset + len`.
///
/// Built only by [`ByteRange::within`], so the end is known to lie inside the export and the
/// arithmetic below cannot overflow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ByteRange {
    offset: u64,
    len: u64,
}

impl ByteRange {
    /// Checks a client's numbers against the size of the export.
    ///
    /// Returns `None` when `offset + len` overflows or lies behind `export_bytes`.
    #[must_use]
    pub fn within(offset: u64, len: u64, export_bytes: u64) -> Option<Self> {
        let end = offset.checked_add(len)?;
        (end <= export_bytes).then_some(Self { offset, len })
    }

    /// First byte.
    #[must_use]
    pub fn offset(self) -> u64 {
        self.offset
    }

    /// Number of bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a range has a length; emptiness is len() == 0")]
    pub fn len(self) -> u64 {
        self.len
    }

    /// First byte behind the range.
    #[must_use]
    pub fn end(self) -> u64 {
        self.offset + self.len
    }

    /// Whether the range starts and ends on sector boundaries.
    #[must_use]
    pub fn is_sector_aligned(self) -> bool {
        self.offset.is_multiple_of(SECTOR_BYTES) && self.len.is_multiple_of(SECTOR_BYTES)
    }

    /// Every sector that the range touches.
    #[must_use]
    pub fn covering_sectors(self) -> SectorRange {
        let start = self.offset / SECTOR_BYTES;
        if self.len == 0 {
            return SectorRange::new(Lba(start), 0);
        }
        SectorRange::new(Lba(start), self.end().div_ceil(SECTOR_BYTES) - start)
    }

    /// The sectors that lie wholly inside the range; empty when there is none.
    #[must_use]
    pub fn whole_sectors(self) -> SectorRange {
        let start = self.offset.div_ceil(SECTOR_BYTES);
        let end = self.end() / SECTOR_BYTES;
        SectorRange::new(Lba(start), end.saturating_sub(start))
    }

    /// The part of `self` that starts `skip` bytes in and is `len` bytes long.
    ///
    /// # Panics
    /// When the part does not lie inside `self`.
    #[must_use]
    pub fn part(self, skip: u64, len: u64) -> Self {
        assert!(skip.checked_add(len).is_some_and(|end| end <= self.len), "part of a range lies inside it");
        Self { offset: self.offset + skip, len }
    }
}
