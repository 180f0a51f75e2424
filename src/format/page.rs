//! Index pages and the locations they hold (docs/FORMAT.md §7).
//!
//! A leaf covers 512 sectors (2 MiB), a level-1 page 512 leaves (1 GiB), a level-2 page 512 of
//! those (512 GiB). Pages are write-once; a parent names a child by location alone, since a location
//! admits one valid ciphertext.

use super::codec::{FormatError, Put, Reader};
use crate::cipher::nonce::{Domain, page_aad};
use crate::cipher::{SealRange, SegmentKey, TAG_LEN};
use crate::payload::RECORD_LEN;

/// Children of a page, and sectors of a leaf.
pub const FANOUT: usize = 512;
/// Extents from which on a leaf is stored densely: 341 × 12 B are as long as 512 × 8 B.
pub const DENSE_FROM: usize = 341;
/// Level of the pages that the root points to.
pub const TOP_LEVEL: u8 = 2;

const STRUCTURE: &str = "index page";
const FORM_SPARSE: u8 = 0;
const FORM_DENSE: u8 = 1;
/// A record in units of 16 bytes.
const RECORD_LEN16: u64 = (RECORD_LEN / 16) as u64;

/// A place in a segment: handle ‖ offset / 16 ‖ length / 16, in 32, 22 and 10 bits.
///
/// Two values of handle 0 are special: [`Loc::HOLE`], nothing was ever written or it was trimmed,
/// and [`Loc::ZERO`], allocated zeros. Both may stand at any level, for everything below.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Loc(pub u64);

/// Row of the segment table; never 0.
pub type Handle = u32;

impl Loc {
    /// Not allocated; reads as zeros.
    pub const HOLE: Self = Self(0);
    /// Allocated; reads as zeros.
    pub const ZERO: Self = Self(1);

    /// The location of `len` bytes at `offset` of a segment.
    ///
    /// # Panics
    /// When offset or length is no multiple of 16 or too large; places are made by this program.
    #[must_use]
    pub fn new(handle: Handle, offset: u64, len: usize) -> Self {
        let (offset16, len16) = (offset / 16, len as u64 / 16);
        assert!(
            handle != 0 && offset.is_multiple_of(16) && len.is_multiple_of(16),
            "places are multiples of 16"
        );
        assert!(offset16 < 1 << 22 && (1..1 << 10).contains(&len16), "places fit their bits");
        Self(u64::from(handle) << 32 | offset16 << 10 | len16)
    }

    /// The location of a record.
    ///
    /// # Panics
    /// As [`Loc::new`].
    #[must_use]
    pub fn record(handle: Handle, offset: u64) -> Self {
        Self::new(handle, offset, RECORD_LEN)
    }

    /// Row of the segment table, unless the location is special.
    #[must_use]
    pub fn handle(self) -> Option<Handle> {
        match u32::try_from(self.0 >> 32).expect("32 bits") {
            0 => None,
            handle => Some(handle),
        }
    }

    /// Bytes from the start of the segment.
    #[must_use]
    pub fn offset(self) -> u64 {
        ((self.0 >> 10) & 0x3f_ffff) * 16
    }

    /// Length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a location has a length; none is empty")]
    pub fn len(self) -> usize {
        usize::try_from(self.0 & 0x3ff).expect("10 bits") * 16
    }

    /// The location of the record `steps` records further on; a special location stays itself.
    #[must_use]
    pub fn step(self, steps: u64) -> Self {
        if self.handle().is_none() { self } else { Self(self.0 + ((steps * RECORD_LEN16) << 10)) }
    }

    fn is_record_run(self, count: u64) -> bool {
        if self.handle().is_none() {
            return self == Self::ZERO;
        }
        self.0 & 0x3ff == RECORD_LEN16 && self.offset() / 16 + count * RECORD_LEN16 <= 1 << 22
    }

    fn is_page(self) -> bool {
        if self.handle().is_none() { self == Self::ZERO } else { self.len() > TAG_LEN }
    }
}

/// A run of sectors in a leaf whose records stand one behind the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeafExtent {
    /// First sector, from the start of the leaf.
    pub start: u16,
    /// Number of sectors.
    pub len: u16,
    /// Where the first one lies.
    pub loc: Loc,
}

/// A leaf: where each of 512 sectors lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Leaf {
    /// Runs, ascending and disjoint; what no run covers is a hole. Fewer than [`DENSE_FROM`].
    Extents(Vec<LeafExtent>),
    /// One location per sector.
    Dense(Box<[Loc; FANOUT]>),
}

impl Leaf {
    /// The shorter form of 512 locations; `None` when all are holes.
    #[must_use]
    pub fn from_locs(locs: &[Loc; FANOUT]) -> Option<Self> {
        let mut extents: Vec<LeafExtent> = Vec::new();
        for (start, loc) in (0u16..).zip(locs) {
            match extents.last_mut() {
                _ if *loc == Loc::HOLE => {}
                Some(last) if last.start + last.len == start && follows(*last, *loc) => last.len += 1,
                _ => extents.push(LeafExtent { start, len: 1, loc: *loc }),
            }
        }
        match extents.len() {
            0 => None,
            n if n >= DENSE_FROM => Some(Self::Dense(Box::new(*locs))),
            // A copy, since leaves stay in memory: while it grew, the list took room for up to twice as many.
            _ => Some(Self::Extents(extents.as_slice().to_vec())),
        }
    }

    /// All 512 locations.
    #[must_use]
    pub fn to_locs(&self) -> [Loc; FANOUT] {
        match self {
            Self::Dense(locs) => **locs,
            Self::Extents(extents) => {
                let mut locs = [Loc::HOLE; FANOUT];
                for LeafExtent { start, len, loc } in extents {
                    for i in 0..*len {
                        locs[usize::from(start + i)] = loc.step(i.into());
                    }
                }
                locs
            }
        }
    }

    /// Where sector `index` of the leaf lies, and how many sectors from it on lie in step with it, of which at most
    /// `count` are looked at.
    ///
    /// # Panics
    /// When `index` is 512 or more.
    #[must_use]
    pub fn run_at(&self, index: usize, count: usize) -> (Loc, usize) {
        match self {
            Self::Dense(locs) => {
                let first = locs[index];
                let in_step = |(i, loc): &(u64, &Loc)| **loc == first.step(*i);
                (first, (0..).zip(&locs[index..]).take(count).take_while(in_step).count())
            }
            Self::Extents(extents) => {
                assert!(index < FANOUT, "a leaf has 512 sectors");
                let after = extents.partition_point(|e| usize::from(e.start) <= index);
                let next = extents.get(after).map_or(FANOUT, |e| e.start.into());
                match after.checked_sub(1).map(|i| extents[i]) {
                    Some(e) if index < usize::from(e.start + e.len) => {
                        let skip = index - usize::from(e.start);
                        (e.loc.step(skip as u64), usize::from(e.len) - skip)
                    }
                    _ => (Loc::HOLE, next - index),
                }
            }
        }
    }

    /// The plaintext of the page.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Dense(locs) => encode_dense(0, locs),
            Self::Extents(extents) => {
                let mut out = start_page(0, FORM_SPARSE, extents.len());
                for LeafExtent { start, len, loc } in extents {
                    out.put_u16(*start);
                    out.put_u16(*len);
                    out.put_u64(loc.0);
                }
                pad_page(out)
            }
        }
    }

    /// Reads the plaintext of a leaf.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(plaintext: &[u8]) -> Result<Self, FormatError> {
        let (mut reader, form, count) = open_page(plaintext, 0)?;
        if form == FORM_DENSE {
            let locs = decode_dense(&mut reader, count)?;
            if let Some(bad) = locs.iter().find(|loc| **loc != Loc::HOLE && !loc.is_record_run(1)) {
                return Err(reader.field("location", bad.0));
            }
            end_page(reader)?;
            return Ok(Self::Dense(locs));
        }
        if count >= DENSE_FROM {
            return Err(reader.field("extent count", count as u64));
        }
        let mut extents: Vec<LeafExtent> = Vec::with_capacity(count);
        let mut end = 0;
        for _ in 0..count {
            let start = reader.u16()?;
            let len = reader.u16()?;
            let loc = Loc(reader.u64()?);
            if start < end || len == 0 || usize::from(start) + usize::from(len) > FANOUT {
                return Err(reader.field("extent start", start.into()));
            }
            if !loc.is_record_run(len.into()) {
                return Err(reader.field("location", loc.0));
            }
            end = start + len;
            extents.push(LeafExtent { start, len, loc });
        }
        end_page(reader)?;
        Ok(Self::Extents(extents))
    }
}

/// Whether `loc` is the next one in step, in the same segment.
fn follows(extent: LeafExtent, loc: Loc) -> bool {
    extent.loc.handle() == loc.handle() && extent.loc.step(extent.len.into()) == loc
}

/// A page of level 1 or 2: where its 512 children lie.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inner {
    /// Level, 1 or 2.
    pub level: u8,
    /// The children.
    pub children: Box<[Loc; FANOUT]>,
}

/// Children from which on an inner page is stored densely: 410 × 10 B exceed 512 × 8 B.
const INNER_DENSE_FROM: usize = 410;

impl Inner {
    /// The plaintext of the page.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let used = self.children.iter().filter(|loc| **loc != Loc::HOLE).count();
        if used >= INNER_DENSE_FROM {
            return encode_dense(self.level, &self.children);
        }
        let mut out = start_page(self.level, FORM_SPARSE, used);
        for (index, loc) in (0u16..).zip(self.children.iter()).filter(|(_, loc)| **loc != Loc::HOLE) {
            out.put_u16(index);
            out.put_u64(loc.0);
        }
        pad_page(out)
    }

    /// Reads the plaintext of a page of that level.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(plaintext: &[u8], level: u8) -> Result<Self, FormatError> {
        let (mut reader, form, count) = open_page(plaintext, level)?;
        let children = if form == FORM_DENSE {
            decode_dense(&mut reader, count)?
        } else {
            let mut children = Box::new([Loc::HOLE; FANOUT]);
            let mut next = 0;
            for _ in 0..count {
                let index = usize::from(reader.u16()?);
                let loc = Loc(reader.u64()?);
                if index < next || index >= FANOUT || loc == Loc::HOLE {
                    return Err(reader.field("child", index as u64));
                }
                children[index] = loc;
                next = index + 1;
            }
            children
        };
        let used = children.iter().filter(|loc| **loc != Loc::HOLE).count();
        if (form == FORM_DENSE) != (used >= INNER_DENSE_FROM) {
            return Err(reader.field("form", form.into()));
        }
        if let Some(bad) = children.iter().find(|loc| **loc != Loc::HOLE && !loc.is_page()) {
            return Err(reader.field("location", bad.0));
        }
        end_page(reader)?;
        Ok(Self { level, children })
    }
}

/// Bytes that the sealed form of a page of that plaintext length takes.
#[must_use]
pub fn sealed_len(plaintext_len: usize) -> usize {
    plaintext_len + TAG_LEN
}

/// Seals a page; `range` is exactly its place.
#[must_use]
pub fn seal_page(level: u8, number: u64, mut plaintext: Vec<u8>, range: SealRange) -> Vec<u8> {
    let tag = range.seal_message(Domain::IndexPage, &page_aad(level, number), &mut plaintext);
    plaintext.put(&tag);
    plaintext
}

/// Opens a page that lies at `offset` of the segment of `key`.
///
/// # Errors
/// [`FormatError::Authentication`] unless it is exactly the page `number` of `level`.
pub fn open_sealed_page(
    key: &SegmentKey,
    offset: u64,
    level: u8,
    number: u64,
    sealed: &[u8],
) -> Result<Vec<u8>, FormatError> {
    key.open_message(Domain::IndexPage, offset, &page_aad(level, number), sealed)
        .map_err(|_| FormatError::Authentication(STRUCTURE))
}

/// form u8 ‖ level u8 ‖ count u16 ‖ zero u32.
fn start_page(level: u8, form: u8, count: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(4128);
    out.put_u8(form);
    out.put_u8(level);
    out.put_u16(u16::try_from(count).expect("at most 512 items"));
    out.put_u32(0);
    out
}

fn pad_page(mut out: Vec<u8>) -> Vec<u8> {
    out.pad_to(out.len().next_multiple_of(16));
    out
}

fn open_page(plaintext: &[u8], level: u8) -> Result<(Reader<'_>, u8, usize), FormatError> {
    let mut reader = Reader::new(STRUCTURE, plaintext);
    if !plaintext.len().is_multiple_of(16) {
        // A location counts in units of 16 bytes; without this a page had more than one encoding.
        return Err(FormatError::Truncated(STRUCTURE));
    }
    let form = reader.u8()?;
    let found = reader.u8()?;
    let count = reader.u16()?.into();
    reader.zeros(4)?;
    if form > FORM_DENSE {
        return Err(reader.field("form", form.into()));
    }
    if found != level {
        return Err(reader.field("level", found.into()));
    }
    Ok((reader, form, count))
}

fn end_page(mut reader: Reader<'_>) -> Result<(), FormatError> {
    if reader.remaining() >= 16 {
        return Err(FormatError::Trailing(STRUCTURE));
    }
    reader.zeros(reader.remaining())
}

fn encode_dense(level: u8, locs: &[Loc; FANOUT]) -> Vec<u8> {
    let mut out = start_page(level, FORM_DENSE, FANOUT);
    for loc in locs {
        out.put_u64(loc.0);
    }
    pad_page(out)
}

fn decode_dense(reader: &mut Reader<'_>, count: usize) -> Result<Box<[Loc; FANOUT]>, FormatError> {
    if count != FANOUT {
        return Err(reader.field("count", count as u64));
    }
    let mut locs = Box::new([Loc::HOLE; FANOUT]);
    for loc in locs.iter_mut() {
        *loc = Loc(reader.u64()?);
    }
    Ok(locs)
}
