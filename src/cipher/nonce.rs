//! Nonces and additional data (docs/FORMAT.md §3).
//!
//! nonce(96) = domain u32 ‖ byte offset in the segment u64, both little endian. A segment's key is
//! its own, so a nonce repeats only if one offset of one segment is sealed twice in one domain;
//! the types of [`super::segment`] prevent that.

use crate::geometry::Lba;

/// What kind of message lies at an offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Domain {
    /// A sealed sector.
    Record = 1,
    /// The header of a chunk.
    ChunkHeader = 2,
    /// The header of a segment.
    SegmentHeader = 3,
    /// An index page.
    IndexPage = 4,
    /// A root payload or a part of the segment table.
    Blob = 5,
}

/// The nonce of the message of kind `domain` at `offset` bytes into its segment.
#[must_use]
pub fn nonce(domain: Domain, offset: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&(domain as u32).to_le_bytes());
    nonce[4..].copy_from_slice(&offset.to_le_bytes());
    nonce
}

/// Additional data of a record: its address on the volume.
#[must_use]
pub fn record_aad(lba: Lba) -> [u8; 8] {
    lba.0.to_le_bytes()
}

/// Additional data of an index page: level ‖ page number.
#[must_use]
pub fn page_aad(level: u8, number: u64) -> [u8; 9] {
    let mut aad = [level; 9];
    aad[1..].copy_from_slice(&number.to_le_bytes());
    aad
}
