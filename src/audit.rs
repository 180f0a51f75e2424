//! The audit log: who did what to which volume and key, one record per line, each chained to the one before
//! by its hash (docs/AUDIT.md, which is normative).
//!
//! [`Log`] appends, [`Chain`] verifies, [`Settings`] say where. Nothing here knows a volume, a store or a key
//! manager: whoever records something hands over plain words and numbers ([`Event`]). There is no field for a
//! secret, and text from outside is bounded and escaped ([`Text`]), so that it can neither forge a record nor
//! fill the disk. What the log holds is read as hostile all the same.

mod chain;
mod file;
mod journal;
mod log;
mod record;
mod settings;
mod tail;
mod text;
mod who;

use std::path::PathBuf;

pub use chain::{Broken, Chain, Fault, Summary, verify_files};
pub use file::{LineReader, offset_of_last};
pub use journal::{Journal, MESSAGE_ID};
pub use log::Log;
pub use record::{Change, ChangeKind, Event, Hash, Key, LINE_MAX, NotARecord, Outcome, Record, Torn};
pub use settings::Settings;
pub use text::Text;
pub use who::Who;

/// Why a record could not be written, or a log not be read.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file cannot be opened, read, written or made durable.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The log.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// What is there is no audit log, or not one that may be continued.
    #[error("{}: {why}", path.display())]
    NotALog {
        /// The log.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Somebody else kept the log locked.
    #[error("{}: locked by another process", .0.display())]
    Locked(PathBuf),
}
