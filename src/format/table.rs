//! The segment table: one row per handle, stored in parts of at most 1 MiB (docs/FORMAT.md §7).

use super::codec::{FormatError, Put, Reader};
use super::page::Handle;
use super::segment::SegmentKind;
use crate::cipher::Uid;

/// Bytes of a row.
pub const ROW_LEN: usize = 40;
/// Most rows of one stored part.
pub const PART_ROWS_MAX: usize = 26_000;

const STRUCTURE: &str = "segment table";

/// Whether a segment may still grow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum SegmentState {
    /// Its writer may append to it.
    Open = 1,
    /// It is complete.
    Closed = 2,
}

/// What the table says of one segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// Its identity.
    pub uid: Uid,
    /// Where it lies on the store.
    pub phys: u64,
    /// Epoch of its key.
    pub epoch: u16,
    /// What it holds.
    pub kind: SegmentKind,
    /// Whether it may grow.
    pub state: SegmentState,
    /// Bytes in it that the index of this root still needs.
    pub live: u32,
    /// Bytes written to it.
    pub bytes: u32,
    /// Generation of the first root that knows it, modulo 2^32.
    pub birth: u32,
}

/// A part of the table: the rows from handle `first` on. `None` is a free handle.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TablePart {
    /// Handle of the first row.
    pub first: Handle,
    /// The rows.
    pub rows: Vec<Option<Row>>,
}

impl TablePart {
    /// Bytes that a part of `rows` rows encodes to.
    #[must_use]
    pub fn encoded_len(rows: usize) -> usize {
        8 + rows * ROW_LEN
    }

    /// The plaintext of the part.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Self { first, rows } = self;
        let mut out = Vec::with_capacity(Self::encoded_len(rows.len()));
        out.put_u32(*first);
        out.put_count(rows.len());
        for row in rows {
            let Some(Row { uid, phys, epoch, kind, state, live, bytes, birth }) = row else {
                out.put(&[0; ROW_LEN]);
                continue;
            };
            out.put(&uid.0);
            out.put_u64(*phys);
            out.put_u16(*epoch);
            out.put_u8(*kind as u8);
            out.put_u8(*state as u8);
            out.put_u32(*live);
            out.put_u32(*bytes);
            out.put_u32(*birth);
        }
        out
    }

    /// Reads the plaintext of a part.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(plaintext: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(STRUCTURE, plaintext);
        let first = reader.u32()?;
        let count = reader.count("row count", ROW_LEN, PART_ROWS_MAX)?;
        let mut rows = Vec::with_capacity(count);
        for _ in 0..count {
            rows.push(decode_row(reader.bytes(ROW_LEN)?)?);
        }
        reader.end()?;
        Ok(Self { first, rows })
    }
}

fn decode_row(bytes: &[u8]) -> Result<Option<Row>, FormatError> {
    if bytes.iter().all(|b| *b == 0) {
        return Ok(None);
    }
    let mut reader = Reader::new(STRUCTURE, bytes);
    let uid = Uid(reader.array()?);
    let phys = reader.u64()?;
    let epoch = reader.u16()?;
    let number = reader.u8()?;
    let kind = SegmentKind::from_u8(number).ok_or(reader.field("kind", number.into()))?;
    let state = match reader.u8()? {
        1 => SegmentState::Open,
        2 => SegmentState::Closed,
        other => return Err(reader.field("state", other.into())),
    };
    let live = reader.u32()?;
    let bytes = reader.u32()?;
    let birth = reader.u32()?;
    if live > bytes {
        return Err(reader.field("live bytes", live.into()));
    }
    Ok(Some(Row { uid, phys, epoch, kind, state, live, bytes, birth }))
}
