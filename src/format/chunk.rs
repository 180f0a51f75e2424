//! A chunk: what one group commit appends to a log segment (docs/FORMAT.md §6).
//!
//! ```text
//! 0  prefix, 32 bytes, plaintext, authenticated as additional data of the sealed header
//! 32 sealed header: chain ‖ durable_seq ‖ entries, then its tag, then zeros to 16
//!    n_records × 4112 bytes of records, then zeros to the volume's alignment
//! ```

use super::codec::{FormatError, Put, Reader};
use super::segment::PHYSICAL_BLOCK;
use crate::cipher::nonce::Domain;
use crate::cipher::{SealRange, SegmentKey, TAG_LEN};
use crate::geometry::{Lba, SectorRange};
use crate::payload::RECORD_LEN;

/// Bytes of the plaintext prefix.
pub const PREFIX_LEN: usize = 32;
/// Most entries of a chunk: 2048 × 16 B keep a header at 32 KiB, so recovery reads it in one piece.
pub const ENTRIES_MAX: usize = 2048;
/// Most records of a chunk: 1 MiB of sectors, the group-commit limit of §8.
pub const RECORDS_MAX: usize = 256;

const STRUCTURE: &str = "chunk";
const MAGIC: u32 = u32::from_le_bytes(*b"CHNK");
const ENTRY_LEN: usize = 16;
/// chain, durable_seq, entry count.
const FIXED_LEN: usize = 16 + 8 + 4;
const CRC_OFFSET: usize = 24;

/// What an entry does to its sectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// They hold the records from number `rec` of this chunk on.
    Write,
    /// They read as zeros and stay allocated.
    Zero,
    /// They become a hole.
    Trim,
}

/// One entry of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The sectors.
    pub sectors: SectorRange,
    /// What happens to them.
    pub op: Op,
    /// First record of a [`Op::Write`]; 0 otherwise.
    pub rec: u32,
}

/// The plaintext prefix of a chunk: enough to find its end, trusted for nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkPrefix {
    /// Length of the whole chunk in bytes.
    pub chunk_bytes: u32,
    /// Its number in the log.
    pub log_seq: u64,
    /// Length of the sealed header with its tag.
    pub header_len: u32,
    /// Number of records.
    pub record_count: u32,
    /// CRC-32C of the whole chunk with this field zero; finds torn writes, proves nothing.
    pub crc: u32,
}

/// The sealed header of a chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkHeader {
    /// Tag of the chunk header before it in the log.
    pub chain: [u8; TAG_LEN],
    /// Every chunk up to this number was known durable when this one was composed.
    pub durable_seq: u64,
    /// What the chunk does, in order.
    pub entries: Vec<Entry>,
}

/// Where the parts of a chunk lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkLayout {
    /// Length of the sealed header with its tag.
    pub header_len: usize,
    /// First byte of record 0.
    pub records_offset: usize,
    /// Length of the whole chunk.
    pub chunk_len: usize,
}

impl ChunkLayout {
    /// The layout of a chunk with that many entries and records on a store with that alignment.
    #[must_use]
    pub fn new(entry_count: usize, record_count: usize, align: usize) -> Self {
        let header_len = FIXED_LEN + entry_count * ENTRY_LEN + TAG_LEN;
        let records_offset = (PREFIX_LEN + header_len).next_multiple_of(16);
        let chunk_len = (records_offset + record_count * RECORD_LEN).next_multiple_of(align);
        Self { header_len, records_offset, chunk_len }
    }

    /// Offset of a record from the start of the chunk.
    #[must_use]
    pub fn record_offset(&self, rec: u32) -> usize {
        self.records_offset + rec as usize * RECORD_LEN
    }
}

/// Where the chunk behind one that ends at `end` of a segment may start: right there, or in the next physical block
/// if what is before it was flushed in between.
pub fn chunk_places(end: u64) -> impl Iterator<Item = u64> {
    let next_block = end.next_multiple_of(PHYSICAL_BLOCK);
    std::iter::once(end).chain((next_block != end).then_some(next_block))
}

impl ChunkPrefix {
    /// The 32 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; PREFIX_LEN] {
        let Self { chunk_bytes, log_seq, header_len, record_count, crc } = *self;
        let mut out = Vec::with_capacity(PREFIX_LEN);
        out.put_u32(MAGIC);
        out.put_u32(chunk_bytes);
        out.put_u64(log_seq);
        out.put_u32(header_len);
        out.put_u32(record_count);
        out.put_u32(crc);
        out.put_u32(0); // flags
        out.try_into().expect("the fields are 32 bytes")
    }

    /// Reads a prefix and checks its numbers against each other and against `room`, the bytes
    /// from here to the end of the segment.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(bytes: &[u8; PREFIX_LEN], align: usize, room: u64) -> Result<Self, FormatError> {
        let mut reader = Reader::new(STRUCTURE, bytes);
        if reader.u32()? != MAGIC {
            return Err(FormatError::Magic(STRUCTURE));
        }
        let chunk_bytes = reader.u32()?;
        let log_seq = reader.u64()?;
        let header_len = reader.u32()?;
        let record_count = reader.u32()?;
        let crc = reader.u32()?;
        reader.zeros(4)?;
        if record_count as usize > RECORDS_MAX {
            return Err(reader.field("record count", record_count.into()));
        }
        let entry_bytes = (header_len as usize).checked_sub(FIXED_LEN + TAG_LEN);
        let entry_count = match entry_bytes {
            Some(bytes) if bytes % ENTRY_LEN == 0 && bytes / ENTRY_LEN <= ENTRIES_MAX => bytes / ENTRY_LEN,
            _ => return Err(reader.field("header length", header_len.into())),
        };
        let layout = ChunkLayout::new(entry_count, record_count as usize, align);
        if chunk_bytes as usize != layout.chunk_len || u64::from(chunk_bytes) > room {
            return Err(reader.field("chunk length", chunk_bytes.into()));
        }
        Ok(Self { chunk_bytes, log_seq, header_len, record_count, crc })
    }

    /// Where the parts of this chunk lie.
    #[must_use]
    pub fn layout(&self, align: usize) -> ChunkLayout {
        let entry_count = (self.header_len as usize - FIXED_LEN - TAG_LEN) / ENTRY_LEN;
        ChunkLayout::new(entry_count, self.record_count as usize, align)
    }

    /// Whether the checksum fits the whole chunk.
    ///
    /// # Panics
    /// When `chunk` is shorter than a prefix.
    #[must_use]
    pub fn checksum_fits(&self, chunk: &[u8]) -> bool {
        self.crc == chunk_checksum([chunk])
    }

    fn aad(&self) -> [u8; PREFIX_LEN] {
        Self { crc: 0, ..*self }.encode()
    }
}

impl ChunkHeader {
    /// Seals a chunk's header. `range` is the chunk's place up to its first record.
    ///
    /// Returns the bytes before the first record, the checksum still zero, and the header's tag.
    ///
    /// # Panics
    /// When `range` does not match the layout.
    #[must_use]
    pub fn seal(
        &self,
        log_seq: u64,
        record_count: usize,
        align: usize,
        range: SealRange,
    ) -> (Vec<u8>, [u8; 16]) {
        let layout = ChunkLayout::new(self.entries.len(), record_count, align);
        assert_eq!(range.remaining(), layout.records_offset as u64, "the header is sealed at its own place");
        let prefix = ChunkPrefix {
            chunk_bytes: u32::try_from(layout.chunk_len).expect("a chunk is at most a few MiB"),
            log_seq,
            header_len: u32::try_from(layout.header_len).expect("bounded by ENTRIES_MAX"),
            record_count: u32::try_from(record_count).expect("bounded by RECORDS_MAX"),
            crc: 0,
        };
        let mut plaintext = self.encode();
        let tag = range.seal_message(Domain::ChunkHeader, &prefix.aad(), &mut plaintext);
        let mut out = Vec::with_capacity(layout.records_offset);
        out.put(&prefix.encode());
        out.put(&plaintext);
        out.put(&tag);
        out.pad_to(layout.records_offset);
        (out, tag)
    }

    /// Opens the header of the chunk at `offset`; `bytes` starts at the chunk and holds at least
    /// everything before its first record. Returns the header and its tag.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn open(
        prefix: &ChunkPrefix,
        key: &SegmentKey,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(Self, [u8; TAG_LEN]), FormatError> {
        let mut reader = Reader::new(STRUCTURE, bytes);
        reader.bytes(PREFIX_LEN)?;
        let sealed = reader.bytes(prefix.header_len as usize)?;
        let tag = sealed[sealed.len() - TAG_LEN..].try_into().expect("a header ends with its tag");
        let plaintext = key
            .open_message(Domain::ChunkHeader, offset, &prefix.aad(), sealed)
            .map_err(|_| FormatError::Authentication(STRUCTURE))?;
        Ok((Self::decode(&plaintext, prefix.record_count)?, tag))
    }

    fn encode(&self) -> Vec<u8> {
        let Self { chain, durable_seq, entries } = self;
        let mut out = Vec::with_capacity(FIXED_LEN + entries.len() * ENTRY_LEN);
        out.put(chain);
        out.put_u64(*durable_seq);
        out.put_count(entries.len());
        for Entry { sectors, op, rec } in entries {
            let number = match op {
                Op::Write => 1,
                Op::Zero => 2,
                Op::Trim => 3,
            };
            out.put(&sectors.start.0.to_le_bytes()[..6]);
            out.put_u8(number);
            out.put_u8(0);
            out.put_u32(u32::try_from(sectors.count).expect("entries are split at 2^32 sectors"));
            out.put_u32(*rec);
        }
        out
    }

    /// Reads an opened header.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(plaintext: &[u8], record_count: u32) -> Result<Self, FormatError> {
        let mut reader = Reader::new(STRUCTURE, plaintext);
        let chain = reader.array()?;
        let durable_seq = reader.u64()?;
        let count = reader.count("entry count", ENTRY_LEN, ENTRIES_MAX)?;
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let mut lba = [0; 8];
            lba[..6].copy_from_slice(reader.bytes(6)?);
            let start = Lba(u64::from_le_bytes(lba));
            let number = reader.u8()?;
            let op = match number {
                1 => Op::Write,
                2 => Op::Zero,
                3 => Op::Trim,
                _ => return Err(reader.field("operation", number.into())),
            };
            reader.zeros(1)?;
            let sectors = SectorRange::new(start, reader.u32()?.into());
            let rec = reader.u32()?;
            let fits = match op {
                Op::Write => u64::from(rec) + sectors.count <= record_count.into(),
                Op::Zero | Op::Trim => rec == 0,
            };
            if !fits || sectors.count == 0 {
                return Err(reader.field("records of an entry", rec.into()));
            }
            entries.push(Entry { sectors, op, rec });
        }
        reader.end()?;
        Ok(Self { chain, durable_seq, entries })
    }

    /// The plaintext of a header, for tests of the layout.
    #[must_use]
    pub fn encode_plaintext(&self) -> Vec<u8> {
        self.encode()
    }
}

/// CRC-32C of a chunk given in parts, its checksum field taken as zero.
///
/// # Panics
/// When the first part is shorter than a prefix.
#[must_use]
pub fn chunk_checksum<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let mut parts = parts.into_iter();
    let first = parts.next().unwrap_or_default();
    let crc = crc32c::crc32c(&first[..CRC_OFFSET]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    let crc = crc32c::crc32c_append(crc, &first[CRC_OFFSET + 4..]);
    parts.fold(crc, crc32c::crc32c_append)
}

/// Writes the checksum into the bytes of a sealed chunk header.
///
/// # Panics
/// When `head` is shorter than a prefix.
pub fn set_checksum(head: &mut [u8], crc: u32) {
    head[CRC_OFFSET..][..4].copy_from_slice(&crc.to_le_bytes());
}
