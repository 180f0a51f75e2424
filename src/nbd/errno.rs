//! The one place where errors become NBD error values (proto.md "Error values").

use crate::export::ExportError;
use crate::wire::Errno;

/// The error value of an export's failure.
#[must_use]
pub fn errno(error: &ExportError) -> Errno {
    match error {
        ExportError::Io(_) => Errno::EIO,
        ExportError::NoSpace(_) => Errno::ENOSPC,
        ExportError::ReadOnly => Errno::EPERM,
        ExportError::ShuttingDown => Errno::ESHUTDOWN,
    }
}

/// Why a request never reached the export.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// A change on a read-only export.
    #[error("the export is read-only")]
    ReadOnly,
    /// A write or a zeroing that ends behind the export.
    #[error("the range ends behind the export, there is no room")]
    NoRoom,
    /// Any other request that ends behind the export.
    #[error("the range ends behind the export")]
    OutOfRange,
    /// The data would be longer than [`PAYLOAD_LEN_MAX`](super::PAYLOAD_LEN_MAX).
    #[error("the request is longer than the maximum payload")]
    TooLong,
    /// The command is unknown or was not offered.
    #[error("unknown command")]
    UnknownCommand,
    /// A flag is unknown, was not offered, or does not belong to the command.
    #[error("flag not allowed here")]
    UnknownFlag,
    /// A command that takes no payload came with one.
    #[error("the command takes no payload")]
    UnexpectedPayload,
    /// Block status without a metadata context.
    #[error("no metadata context was selected")]
    NoContext,
    /// Block status of nothing.
    #[error("block status of an empty range")]
    EmptyStatus,
    /// A filter of block status names no context, an unknown one, or one twice.
    #[error("malformed list of metadata contexts")]
    BadFilter,
    /// The server is being stopped.
    #[error("the server is shutting down")]
    ShuttingDown,
}

impl Refusal {
    /// The error value of the refusal.
    #[must_use]
    pub fn errno(self) -> Errno {
        match self {
            Self::ReadOnly => Errno::EPERM,
            Self::NoRoom => Errno::ENOSPC,
            Self::ShuttingDown => Errno::ESHUTDOWN,
            Self::OutOfRange
            | Self::TooLong
            | Self::UnknownCommand
            | Self::UnknownFlag
            | Self::UnexpectedPayload
            | Self::NoContext
            | Self::EmptyStatus
            | Self::BadFilter => Errno::EINVAL,
        }
    }
}
