//! The header of a segment: 4096 bytes, written in the same I/O as the segment's first chunk
//! (docs/FORMAT.md §6).

use super::codec::{FormatError, Put, Reader};
use crate::cipher::nonce::Domain;
use crate::cipher::{SealRange, SegmentKey, TAG_LEN, Uid, VolumeKeys};

/// Bytes of a segment header.
pub const SEGMENT_HEADER_LEN: usize = 4096;

/// Bytes that a disk may lose together when a write to one of them is cut short. Nothing is appended into such a
/// block that holds flushed bytes (docs/FORMAT.md §6).
pub const PHYSICAL_BLOCK: u64 = 4096;

const STRUCTURE: &str = "segment header";
const MAGIC: &[u8; 8] = b"SEALSEG1";
const VERSION: u16 = 1;
const ENVELOPE_LEN: usize = 72;
const SEALED_LEN: usize = 64;
const CRC_OFFSET: usize = 4092;

/// What a segment holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum SegmentKind {
    /// Chunks of the log.
    Log = 1,
    /// Index pages and blobs.
    Index = 2,
    /// Sectors moved by space reclaim.
    Gc = 3,
}

impl SegmentKind {
    /// The kind of that number.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Self> {
        [Self::Log, Self::Index, Self::Gc].into_iter().find(|kind| *kind as u8 == number)
    }
}

/// A segment's own account of itself. The envelope is plaintext, the links are sealed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// What it holds.
    pub kind: SegmentKind,
    /// Epoch of its key.
    pub epoch: u32,
    /// The volume that it was written for.
    pub volume: [u8; 16],
    /// Its identity.
    pub uid: Uid,
    /// Where it lies on the store.
    pub phys: u64,
    /// The session that wrote it.
    pub writer_epoch: u64,
    /// Sequence number of its first chunk; 0 outside the log.
    pub first_log_seq: u64,
    /// The segment before it in the log.
    pub previous_uid: Uid,
    /// Tag of the last chunk header before it in the log.
    pub previous_chain: [u8; TAG_LEN],
    /// The segment that will follow it in the log.
    pub next_uid: Uid,
    /// Where the following segment will lie.
    pub next_phys: u64,
    /// When it was opened, seconds since 1970.
    pub created: u64,
}

impl SegmentHeader {
    /// The 4096 bytes, sealed.
    ///
    /// # Panics
    /// When `range` is not the segment's first 4096 bytes.
    #[must_use]
    pub fn seal(&self, range: SealRange) -> Vec<u8> {
        assert_eq!(
            (range.offset(), range.remaining()),
            (0, SEGMENT_HEADER_LEN as u64),
            "segment header place"
        );
        let Self {
            kind,
            epoch,
            volume,
            uid,
            phys,
            writer_epoch,
            first_log_seq,
            previous_uid,
            previous_chain,
            next_uid,
            next_phys,
            created,
        } = self;
        let mut out = Vec::with_capacity(SEGMENT_HEADER_LEN);
        out.put(MAGIC);
        out.put_u16(VERSION);
        out.put_u8(*kind as u8);
        out.put_u8(0);
        out.put_u32(*epoch);
        out.put(volume);
        out.put(&uid.0);
        out.put_u64(*phys);
        out.put_u64(*writer_epoch);
        out.put_u64(*first_log_seq);
        debug_assert_eq!(out.len(), ENVELOPE_LEN);
        let mut links = Vec::with_capacity(SEALED_LEN);
        links.put(&previous_uid.0);
        links.put(previous_chain);
        links.put(&next_uid.0);
        links.put_u64(*next_phys);
        links.put_u64(*created);
        let tag = range.seal_message(Domain::SegmentHeader, &out, &mut links);
        out.put(&links);
        out.put(&tag);
        out.pad_to(CRC_OFFSET);
        let crc = crc32c::crc32c(&out);
        out.put_u32(crc);
        out
    }

    /// Reads and authenticates a header that should belong to the segment `uid` of kind `kind`.
    ///
    /// # Errors
    /// [`FormatError`]; anything that is not exactly this segment's header fails.
    pub fn open(
        bytes: &[u8],
        keys: &VolumeKeys,
        key: &SegmentKey,
        kind: SegmentKind,
    ) -> Result<Self, FormatError> {
        let mut reader = Reader::new(STRUCTURE, bytes);
        reader.magic(MAGIC)?;
        if bytes.len() != SEGMENT_HEADER_LEN {
            return Err(FormatError::Truncated(STRUCTURE));
        }
        let crc = u32::from_le_bytes(bytes[CRC_OFFSET..].try_into().expect("four bytes"));
        if crc != crc32c::crc32c(&bytes[..CRC_OFFSET]) {
            return Err(FormatError::Checksum(STRUCTURE));
        }
        let version = reader.u16()?;
        if version != VERSION {
            let (found, supported) = (version.into(), VERSION.into());
            return Err(FormatError::Version { structure: STRUCTURE, found, supported });
        }
        let number = reader.u8()?;
        let found_kind = SegmentKind::from_u8(number).ok_or(reader.field("kind", number.into()))?;
        reader.zeros(1)?;
        let epoch = reader.u32()?;
        let volume = reader.array()?;
        let uid = Uid(reader.array()?);
        let phys = reader.u64()?;
        let writer_epoch = reader.u64()?;
        let first_log_seq = reader.u64()?;
        let sealed = reader.bytes(SEALED_LEN + TAG_LEN)?;
        reader.zeros(CRC_OFFSET - ENVELOPE_LEN - SEALED_LEN - TAG_LEN)?;
        reader.bytes(4)?;
        reader.end()?;
        if uid != key.uid() || &volume != keys.volume() || found_kind != kind {
            return Err(FormatError::Authentication(STRUCTURE));
        }
        let links = key
            .open_message(Domain::SegmentHeader, 0, &bytes[..ENVELOPE_LEN], sealed)
            .map_err(|_| FormatError::Authentication(STRUCTURE))?;
        let mut reader = Reader::new(STRUCTURE, &links);
        let previous_uid = Uid(reader.array()?);
        let previous_chain = reader.array()?;
        let next_uid = Uid(reader.array()?);
        let next_phys = reader.u64()?;
        let created = reader.u64()?;
        reader.end()?;
        Ok(Self {
            kind,
            epoch,
            volume,
            uid,
            phys,
            writer_epoch,
            first_log_seq,
            previous_uid,
            previous_chain,
            next_uid,
            next_phys,
            created,
        })
    }
}
