//! Everything that can be wrong with a volume, by cause.

use super::anchor::{AnchorError, RollbackKind};
use crate::cipher::NoRandomness;
use crate::export::ExportError;
use crate::format::FormatError;
use crate::store::StoreError;

/// Why a volume did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Neither place of a header holds one.
    #[error("this is not a sealbd volume (no header at 0 or at 1 MiB)")]
    NotAVolume,
    /// The header asks for something that this program does not know.
    #[error(transparent)]
    Unsupported(FormatError),
    /// A structure did not decode or authenticate.
    #[error("{structure} at byte {offset} of the store is damaged: {source}")]
    Damaged {
        /// Which structure.
        structure: &'static str,
        /// Where it lies on the store.
        offset: u64,
        /// What is wrong with it.
        source: FormatError,
    },
    /// Authenticated structures contradict each other: a bug here or a lost write.
    #[error("the volume contradicts itself: {0}")]
    Inconsistent(String),
    /// A part of the log that was flushed is missing.
    #[error(
        "the log is damaged at chunk {seq} (byte {offset} of the store): chunk {later} proves that it was flushed, \
         so this is not a torn write"
    )]
    LogDamaged {
        /// Number of the missing chunk.
        seq: u64,
        /// Where it should lie, or at the next multiple of 4096 behind that.
        offset: u64,
        /// A later chunk that is intact.
        later: u64,
    },
    /// No root can be used.
    #[error("no usable root: {0}")]
    NoRoot(String),
    /// The header is older than one that the volume has already seen.
    #[error("header generation {found} is older than {known}, which the volume already uses (rollback)")]
    HeaderRollback {
        /// What was found.
        found: u64,
        /// What the root knows.
        known: u64,
    },
    /// The store is behind its anchor.
    #[error("the newest root on the store is {found}, and the anchor holds root {known} (rollback): {kind}")]
    Rollback {
        /// Number of the newest root that was found.
        found: u64,
        /// Number of the anchored one.
        known: u64,
        /// How.
        kind: RollbackKind,
    },
    /// The anchor cannot be read, so it is not known whether the store was put back.
    #[error(transparent)]
    Anchor(#[from] AnchorError),
    /// A root is on the store and could not be anchored.
    #[error("the last root could not be anchored: {0}")]
    NotAnchored(String),
    /// No keyslot could be unwrapped; a line per slot says why.
    #[error("no key fits: {}", .0.join("; "))]
    NoKeyFits(Vec<String>),
    /// No keyslot could be unwrapped, and at least one of them because its key manager cannot be reached.
    #[error("no key fits, and a key manager is unreachable: {}", .0.join("; "))]
    KeyManagerUnreachable(Vec<String>),
    /// No keyslot could be unwrapped, and at least one of them because its key manager says no.
    #[error("no key fits, and a key manager refuses: {}", .0.join("; "))]
    KeyManagerDenied(Vec<String>),
    /// A keyslot demands more than is allowed.
    #[error("no key fits, and a keyslot demands too much: {}", .0.join("; "))]
    KeyTooCostly(Vec<String>),
    /// The store is smaller than the volume.
    #[error("the store has {found} bytes, the volume needs {needed}")]
    StoreTooSmall {
        /// Bytes there.
        found: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// The store takes no writes as short as the volume's.
    #[error("the volume writes whole {align} bytes, and the store takes whole {unit} bytes only")]
    StoreUnit {
        /// What the volume's writes are multiples of.
        align: u32,
        /// What the store's are.
        unit: u32,
    },
    /// The volume cannot end where it was asked to.
    #[error("the volume is in use behind byte {end}: first at byte {first}")]
    InUse {
        /// Where it was to end.
        end: u64,
        /// The first byte behind that which is data, or allocated.
        first: u64,
    },
    /// What was asked for does not fit or is not allowed.
    #[error("{0}")]
    Refused(String),
    /// No free slot is left.
    #[error("no free segment is left on the store")]
    NoSpace,
    /// The volume stopped earlier.
    #[error("the volume stopped: {0}")]
    Stopped(String),
    /// No random numbers.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// A key manager failed.
    #[error(transparent)]
    Key(#[from] keymgmt::manager::KeyError),
}

impl VolumeError {
    pub(super) fn damaged(structure: &'static str, offset: u64, source: FormatError) -> Self {
        Self::Damaged { structure, offset, source }
    }

    /// What a client is told.
    pub(super) fn to_export(&self) -> ExportError {
        match self {
            Self::NoSpace => ExportError::NoSpace(self.to_string()),
            Self::Store(error) => store_to_export(error),
            other => ExportError::Io(other.to_string()),
        }
    }
}

/// What a client is told of a store's failure.
pub(super) fn store_to_export(error: &StoreError) -> ExportError {
    match error {
        StoreError::NoSpace => ExportError::NoSpace(error.to_string()),
        other => ExportError::Io(other.to_string()),
    }
}
