//! Roots: the ring block that names one, and the payload that describes one consistent state of a
//! volume (docs/FORMAT.md §5).

use super::codec::{FormatError, Put, Reader, mac_eq};
use super::page::{Handle, Loc};
use crate::cipher::nonce::Domain;
use crate::cipher::{SealRange, SegmentKey, TAG_LEN, Uid, VolumeKeys};

/// Bytes of a ring block.
pub const RING_BLOCK_LEN: usize = 4096;
/// Longest stored root payload; 4096 spans, 4096 slots and 8192 top pointers stay far below it.
pub const PAYLOAD_LEN_MAX: u32 = 1 << 20;
/// Roots whose authentication codes a payload carries.
pub const PREVIOUS_MAX: usize = 16;
/// Most log spans of a root. A checkpoint is forced long before.
pub const SPANS_MAX: usize = 4096;
/// Most reserved slots of a root.
pub const RESERVED_MAX: usize = 4096;
/// Most top pointers: 8192 × 512 GiB.
pub const TOPS_MAX: usize = 8192;
/// Most parts of the segment table.
pub const TABLE_PARTS_MAX: usize = 8192;
/// Most places added or freed by one root.
pub const PLACES_MAX: usize = 8192;
/// Bytes of one place.
pub const PLACE_LEN: usize = 24;
/// Bytes of a pointer to a blob.
pub const BLOB_POINTER_LEN: usize = 36;

const RING: &str = "ring block";
const PAYLOAD: &str = "root payload";
const MAGIC: &[u8; 8] = b"SEALROOT";
const MAC_OFFSET: usize = 4064;
const CRC_OFFSET: usize = 4092;
const BLOB_ROOT: u8 = 1;
const BLOB_TABLE: u8 = 2;

/// Where a sealed blob lies; explicit, since the table that handles refer to is a blob itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlobPointer {
    /// Segment.
    pub uid: Uid,
    /// Where the segment lies on the store.
    pub phys: u64,
    /// Epoch of the segment's key.
    pub epoch: u32,
    /// Offset in the segment.
    pub offset: u32,
    /// Stored length.
    pub len: u32,
}

/// A ring block: names one root. One physical-block write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RingBlock {
    /// Number of the root.
    pub generation: u64,
    /// The session count of the volume.
    pub writer_epoch: u64,
    /// Who wrote it.
    pub session_id: [u8; 16],
    /// Header generation known when it was written.
    pub header_generation: u64,
    /// Where the payload lies; its epoch is also that of the ring's key.
    pub payload: BlobPointer,
}

impl RingBlock {
    /// The 4096 bytes, and the authentication code among them.
    #[must_use]
    pub fn encode(&self, keys: &VolumeKeys) -> (Vec<u8>, [u8; 16]) {
        let Self { generation, writer_epoch, session_id, header_generation, payload } = self;
        let mut out = Vec::with_capacity(RING_BLOCK_LEN);
        out.put(MAGIC);
        out.put_u64(*generation);
        out.put_u64(*writer_epoch);
        out.put(session_id);
        out.put_u64(*header_generation);
        put_blob_pointer(&mut out, payload);
        out.pad_to(MAC_OFFSET);
        let mac = keys.root_mac(&out);
        out.put(&mac);
        out.pad_to(CRC_OFFSET);
        let crc = crc32c::crc32c(&out);
        out.put_u32(crc);
        (out, mac)
    }

    /// Reads and authenticates a ring block; `Ok(None)` for a block that was never written.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(bytes: &[u8], keys: &VolumeKeys) -> Result<Option<(Self, [u8; 16])>, FormatError> {
        if bytes.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let mut reader = Reader::new(RING, bytes);
        reader.magic(MAGIC)?;
        if bytes.len() != RING_BLOCK_LEN {
            return Err(FormatError::Truncated(RING));
        }
        let crc = u32::from_le_bytes(bytes[CRC_OFFSET..].try_into().expect("four bytes"));
        if crc != crc32c::crc32c(&bytes[..CRC_OFFSET]) {
            return Err(FormatError::Checksum(RING));
        }
        let mac = keys.root_mac(&bytes[..MAC_OFFSET]);
        if !mac_eq(&mac, &bytes[MAC_OFFSET..][..16]) {
            return Err(FormatError::Authentication(RING));
        }
        let generation = reader.u64()?;
        let writer_epoch = reader.u64()?;
        let session_id = reader.array()?;
        let header_generation = reader.u64()?;
        let payload = take_blob_pointer(&mut reader)?;
        reader.zeros(reader.remaining() - (RING_BLOCK_LEN - MAC_OFFSET))?;
        reader.bytes(16)?;
        reader.zeros(CRC_OFFSET - MAC_OFFSET - 16)?;
        reader.bytes(4)?;
        reader.end()?;
        if payload.len > PAYLOAD_LEN_MAX {
            return Err(FormatError::Field {
                structure: RING,
                field: "payload length",
                found: payload.len.into(),
            });
        }
        Ok(Some((Self { generation, writer_epoch, session_id, header_generation, payload }, mac)))
    }
}

/// A stretch of the log that recovery replays on top of a root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogSpan {
    /// Row of the segment table.
    pub handle: Handle,
    /// The segment.
    pub uid: Uid,
    /// Where it lies on the store.
    pub phys: u64,
    /// Epoch of its key.
    pub epoch: u32,
    /// Offset of the first chunk to replay.
    pub start_offset: u32,
    /// Number of that chunk.
    pub start_seq: u64,
    /// Tag of the chunk header before it.
    pub chain: [u8; TAG_LEN],
    /// Where the span ends exactly, or `None` while the segment is being written.
    pub end_offset: Option<u32>,
}

/// A place of a segment on the store, for replication without keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The segment.
    pub uid: Uid,
    /// Where it lies on the store.
    pub phys: u64,
}

/// One consistent state of a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Root {
    /// Its number.
    pub generation: u64,
    /// Places that came since the root before; plaintext.
    pub added: Vec<Place>,
    /// Places that nothing needs any more; plaintext.
    pub freed: Vec<Place>,
    /// Authentication codes of the roots before, newest first.
    pub previous: Vec<[u8; 16]>,
    /// The session count of the volume.
    pub writer_epoch: u64,
    /// Headers older than this are refused.
    pub min_header_generation: u64,
    /// Bytes that clients see.
    pub export_bytes: u64,
    /// The log to replay, in order; only the last may be open.
    pub log_spans: Vec<LogSpan>,
    /// The only slots that the writer may use before the next root.
    pub reserved: Vec<u64>,
    /// One location per 512 GiB.
    pub tops: Vec<Loc>,
    /// The parts of the segment table.
    pub table: Vec<BlobPointer>,
    /// Messages sealed under the active DEK so far, counted up front per root (§3, key budget).
    pub sealed_messages: u64,
}

impl Root {
    /// The stored form: plaintext envelope, then the sealed rest. Its length is known beforehand
    /// by [`Root::sealed_len`].
    #[must_use]
    pub fn seal(&self, range: SealRange) -> Vec<u8> {
        let mut out = self.envelope();
        let mut plaintext = self.encode();
        let tag = range.seal_message(Domain::Blob, &root_aad(self.generation, &out), &mut plaintext);
        out.put(&plaintext);
        out.put(&tag);
        out
    }

    /// Bytes that [`Root::seal`] will make.
    #[must_use]
    pub fn sealed_len(&self) -> usize {
        self.envelope().len() + self.encode().len() + TAG_LEN
    }

    /// Opens the payload of root `generation`.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn open(key: &SegmentKey, offset: u64, generation: u64, stored: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(PAYLOAD, stored);
        let added = take_places(&mut reader)?;
        let freed = take_places(&mut reader)?;
        let envelope_len = stored.len() - reader.remaining();
        let (envelope, sealed) = stored.split_at(envelope_len);
        let plaintext = key
            .open_message(Domain::Blob, offset, &root_aad(generation, envelope), sealed)
            .map_err(|_| FormatError::Authentication(PAYLOAD))?;
        Self::decode(generation, added, freed, &plaintext)
    }

    fn envelope(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_places(&mut out, &self.added);
        put_places(&mut out, &self.freed);
        out
    }

    /// The plaintext of the sealed part.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Self {
            generation: _,
            added: _,
            freed: _,
            previous,
            writer_epoch,
            min_header_generation,
            export_bytes,
            log_spans,
            reserved,
            tops,
            table,
            sealed_messages,
        } = self;
        let mut out = Vec::new();
        out.put_u64(*writer_epoch);
        out.put_u64(*min_header_generation);
        out.put_u64(*export_bytes);
        out.put_u64(*sealed_messages);
        out.put_count(previous.len());
        previous.iter().for_each(|mac| out.put(mac));
        out.put_count(log_spans.len());
        for LogSpan { handle, uid, phys, epoch, start_offset, start_seq, chain, end_offset } in log_spans {
            out.put_u32(*handle);
            out.put(&uid.0);
            out.put_u64(*phys);
            out.put_u32(*epoch);
            out.put_u32(*start_offset);
            out.put_u64(*start_seq);
            out.put(chain);
            out.put_u32(end_offset.unwrap_or(u32::MAX));
        }
        out.put_count(reserved.len());
        reserved.iter().for_each(|slot| out.put_u64(*slot));
        out.put_count(tops.len());
        tops.iter().for_each(|loc| out.put_u64(loc.0));
        out.put_count(table.len());
        table.iter().for_each(|part| put_blob_pointer(&mut out, part));
        out.put_u32(0); // snapshots
        out.put_u32(0); // re-encryption
        out
    }

    /// Reads the plaintext of the sealed part.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(
        generation: u64,
        added: Vec<Place>,
        freed: Vec<Place>,
        plaintext: &[u8],
    ) -> Result<Self, FormatError> {
        let mut reader = Reader::new(PAYLOAD, plaintext);
        let writer_epoch = reader.u64()?;
        let min_header_generation = reader.u64()?;
        let export_bytes = reader.u64()?;
        let sealed_messages = reader.u64()?;
        let previous = list(&mut reader, "previous roots", 16, PREVIOUS_MAX, Reader::array)?;
        let log_spans = list(&mut reader, "log spans", 64, SPANS_MAX, |reader| {
            Ok(LogSpan {
                handle: reader.u32()?,
                uid: Uid(reader.array()?),
                phys: reader.u64()?,
                epoch: reader.u32()?,
                start_offset: reader.u32()?,
                start_seq: reader.u64()?,
                chain: reader.array()?,
                end_offset: Some(reader.u32()?).filter(|end| *end != u32::MAX),
            })
        })?;
        let reserved = list(&mut reader, "reserved slots", 8, RESERVED_MAX, Reader::u64)?;
        let tops = list(&mut reader, "top pointers", 8, TOPS_MAX, |reader| Ok(Loc(reader.u64()?)))?;
        let table = list(&mut reader, "table parts", BLOB_POINTER_LEN, TABLE_PARTS_MAX, take_blob_pointer)?;
        reader.zeros(8)?;
        reader.end()?;
        Ok(Self {
            generation,
            added,
            freed,
            previous,
            writer_epoch,
            min_header_generation,
            export_bytes,
            log_spans,
            reserved,
            tops,
            table,
            sealed_messages,
        })
    }
}

/// Seals part number `part` of the segment table; `range` is exactly its place.
#[must_use]
pub fn seal_table_part(part: u64, mut plaintext: Vec<u8>, range: SealRange) -> Vec<u8> {
    let tag = range.seal_message(Domain::Blob, &blob_aad(BLOB_TABLE, part), &mut plaintext);
    plaintext.put(&tag);
    plaintext
}

/// Opens part number `part` of the segment table.
///
/// # Errors
/// [`FormatError::Authentication`].
pub fn open_table_part(
    key: &SegmentKey,
    offset: u64,
    part: u64,
    stored: &[u8],
) -> Result<Vec<u8>, FormatError> {
    key.open_message(Domain::Blob, offset, &blob_aad(BLOB_TABLE, part), stored)
        .map_err(|_| FormatError::Authentication("segment table"))
}

fn blob_aad(kind: u8, number: u64) -> Vec<u8> {
    let mut aad = vec![kind];
    aad.put_u64(number);
    aad
}

fn root_aad(generation: u64, envelope: &[u8]) -> Vec<u8> {
    let mut aad = blob_aad(BLOB_ROOT, generation);
    aad.put(envelope);
    aad
}

fn put_blob_pointer(out: &mut Vec<u8>, pointer: &BlobPointer) {
    let BlobPointer { uid, phys, epoch, offset, len } = pointer;
    out.put(&uid.0);
    out.put_u64(*phys);
    out.put_u32(*epoch);
    out.put_u32(*offset);
    out.put_u32(*len);
}

fn take_blob_pointer(reader: &mut Reader<'_>) -> Result<BlobPointer, FormatError> {
    Ok(BlobPointer {
        uid: Uid(reader.array()?),
        phys: reader.u64()?,
        epoch: reader.u32()?,
        offset: reader.u32()?,
        len: reader.u32()?,
    })
}

fn put_places(out: &mut Vec<u8>, places: &[Place]) {
    out.put_count(places.len());
    for Place { uid, phys } in places {
        out.put(&uid.0);
        out.put_u64(*phys);
    }
}

fn take_places(reader: &mut Reader<'_>) -> Result<Vec<Place>, FormatError> {
    list(reader, "places", PLACE_LEN, PLACES_MAX, |reader| {
        Ok(Place { uid: Uid(reader.array()?), phys: reader.u64()? })
    })
}

fn list<'a, T>(
    reader: &mut Reader<'a>,
    field: &'static str,
    item_bytes: usize,
    max: usize,
    mut item: impl FnMut(&mut Reader<'a>) -> Result<T, FormatError>,
) -> Result<Vec<T>, FormatError> {
    let count = reader.count(field, item_bytes, max)?;
    (0..count).map(|_| item(reader)).collect()
}
