//! What a client can do with a disk: the seam between the NBD server and volumes.
//!
//! The server knows only this trait. A volume implements it; so does the plain in-memory disk of
//! the protocol tests ([`memory::MemoryExport`]).

pub mod memory;

use std::any::Any;
use std::future::Future;

use crate::geometry::ByteRange;
use crate::payload::Payload;

/// What a client is told about an export before it uses it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportInfo {
    /// Size in bytes.
    pub size: u64,
    /// Refuses every change.
    pub read_only: bool,
    /// Free text shown by `NBD_OPT_LIST` and `NBD_INFO_DESCRIPTION`; at most 4096 bytes.
    pub description: String,
}

/// How far a write must have come before it is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Accepted: survives the death of this process, not of the host.
    Accepted,
    /// Forced Unit Access: on stable storage, together with everything answered before it.
    Durable,
}

/// What a zeroed range may become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ZeroMode {
    /// The range may become a hole.
    MayPunch,
    /// The range stays allocated (`NBD_CMD_FLAG_NO_HOLE`).
    NoHole,
}

/// What a run of bytes is made of, as `base:allocation` tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocation {
    /// Written data.
    Data,
    /// Allocated and reads as zeros.
    Zero,
    /// Not allocated and reads as zeros.
    Hole,
}

/// A run of bytes of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Length in bytes, never 0.
    pub len: u64,
    /// What it is made of.
    pub allocation: Allocation,
}

/// Why an export did not do what was asked. The NBD layer maps each to one errno.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ExportError {
    /// The store failed or returned something that did not authenticate.
    #[error("input/output error: {0}")]
    Io(String),
    /// There is no room for the data.
    #[error("no space left: {0}")]
    NoSpace(String),
    /// The export refuses changes.
    #[error("the export is read-only")]
    ReadOnly,
    /// The export is being closed.
    #[error("the export is shutting down")]
    ShuttingDown,
}

/// A client that uses an export as it was told of it; gone when this is dropped.
#[derive(Default)]
#[must_use = "a client counts for as long as this is held"]
pub struct Attached(#[expect(dead_code, reason = "held to be dropped")] Option<Box<dyn Any + Send + Sync>>);

impl Attached {
    /// A client that `guard` counts until it is dropped.
    pub fn counted_by(guard: impl Any + Send + Sync) -> Self {
        Self(Some(Box::new(guard)))
    }
}

/// A disk.
///
/// Ranges were checked against [`ExportInfo::size`] by the caller; zero-length ranges are allowed
/// and do nothing. Any number of calls may be under way at once. A call that starts after another
/// one *returned* sees its effect, on whichever connection (`NBD_FLAG_CAN_MULTI_CONN`, proto.md).
/// Overlapping concurrent writes never mix inside one sector.
///
/// # Cancel safety
/// `read` and `block_status` may be dropped. The futures of all other calls must be run to their
/// end: a write dropped half-way stops the export (every later change fails with
/// [`ExportError::Io`]).
pub trait Export: Send + Sync + 'static {
    /// What clients are told. Must be cheap.
    fn info(&self) -> ExportInfo;

    /// A client begins to use the export as `told`, which it was a moment ago; NBD cannot tell it of another size
    /// later. `None` when the export has become smaller meanwhile: the client has to be told anew. As long as what is
    /// returned is held, an export that can become smaller does not.
    fn attach(&self, told: &ExportInfo) -> Option<Attached> {
        let _ = told;
        Some(Attached::default())
    }

    /// Reads `range` into `buf`, which has the range's length. On success every byte of `buf` is
    /// set, and the returned list names the parts that are holes or zeroes (offsets relative to
    /// the export, ascending, disjoint), so that they need not be sent.
    ///
    /// # Errors
    /// [`ExportError::Io`] when any byte could not be read and authenticated; then `buf` holds
    /// nothing that may be shown.
    fn read<'a>(
        &'a self,
        range: ByteRange,
        buf: &'a mut [u8],
    ) -> impl Future<Output = Result<Vec<ByteRange>, ExportError>> + Send + 'a;

    /// Writes a payload.
    ///
    /// # Errors
    /// Any [`ExportError`]; then the range holds old data, new data, or a mix of whole sectors.
    fn write(
        &self,
        payload: Payload,
        durability: Durability,
    ) -> impl Future<Output = Result<(), ExportError>> + Send + '_;

    /// Gives the range back. What it reads as afterwards is zeros for whole sectors; edges that
    /// cover only part of a sector are left as they are.
    ///
    /// # Errors
    /// Any [`ExportError`].
    fn trim(
        &self,
        range: ByteRange,
        durability: Durability,
    ) -> impl Future<Output = Result<(), ExportError>> + Send + '_;

    /// Makes the range read as zeros, to the byte. Always fast: no data is written but for the
    /// two edges.
    ///
    /// # Errors
    /// Any [`ExportError`].
    fn write_zeroes(
        &self,
        range: ByteRange,
        mode: ZeroMode,
        durability: Durability,
    ) -> impl Future<Output = Result<(), ExportError>> + Send + '_;

    /// Makes everything answered so far durable.
    ///
    /// # Errors
    /// [`ExportError::Io`]; then nothing is promised and the export takes no more changes.
    fn flush(&self) -> impl Future<Output = Result<(), ExportError>> + Send + '_;

    /// Brings the range near (`NBD_CMD_CACHE`); a hint.
    ///
    /// # Errors
    /// [`ExportError::Io`] when its place could not be found out.
    fn cache(&self, range: ByteRange) -> impl Future<Output = Result<(), ExportError>> + Send + '_;

    /// Tells what `range` is made of: at most `extents_max` runs from its first byte on, together
    /// not longer than the range; neighbours differ in kind. At least one unless the range is empty.
    ///
    /// # Errors
    /// [`ExportError::Io`] when the index could not be read.
    fn block_status(
        &self,
        range: ByteRange,
        extents_max: usize,
    ) -> impl Future<Output = Result<Vec<Extent>, ExportError>> + Send + '_;
}
