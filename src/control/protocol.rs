//! What is said on a control socket (docs/CONTROL.md): one JSON object per line each way, bounded.
//!
//! A request names its operation; an answer is `{"ok": …}` or `{"error": …}`. Keys never stand in JSON: a `resume`
//! is answered by `send-key`, and then exactly 32 raw bytes are sent, which go from the socket into memory that is
//! wiped.

use std::io;

use crate::volume::check::{CheckReport, DamagedRange, Finding};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::memory::MemoryStatus;
use crate::volume::compact::{Compacted, Density};
use crate::volume::{Resized, VolumeStatus, WantedSize};

/// Longest line: a header of 64 KiB in base64 has 87,384 characters.
pub const LINE_BYTES_MAX: u64 = 128 << 10;
/// Version of the protocol.
pub const VERSION: u32 = 1;

/// A request.
#[derive(Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`VERSION`].
    pub sealbd_control: u32,
    /// What is asked for.
    pub ask: Ask,
}

/// What is asked for.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ask {
    /// How the volume is served.
    Status,
    /// The newest authenticated header.
    Header,
    /// The next header generation takes the place of the newest.
    ReplaceHeader {
        /// 64 KiB in base64.
        header: String,
    },
    /// Verify the volume while it is served.
    Check {
        /// Every sector, too.
        deep: bool,
    },
    /// Another size for the volume.
    Resize(WantedSize),
    /// Empty segments until of what is left so much is live.
    Compact {
        /// In percent.
        target: u64,
    },
    /// Park requests, wipe the keys.
    Suspend,
    /// Go on with the data key that is sent when the answer asks for it.
    Resume,
    /// End the serving of this volume for good.
    Stop,
}

/// An answer.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Answer {
    /// It was done.
    Ok(Done),
    /// It was not.
    Error(Refusal),
}

/// What was done.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Done {
    /// To `status`.
    Status(Status),
    /// To `header` and `replace-header`.
    Header {
        /// Its generation.
        generation: u64,
        /// 64 KiB in base64.
        header: String,
    },
    /// To `check`, about once a second: how far it is.
    Checking {
        /// Bytes passed.
        at: u64,
        /// Of so many.
        of: u64,
    },
    /// To `check`, before its end: some of what was found.
    Found {
        /// What is needed and wrong.
        problems: Vec<Finding>,
        /// What is wrong and not needed.
        warnings: Vec<Finding>,
        /// Sectors that cannot be read.
        damaged: Vec<DamagedRange>,
    },
    /// To `check`, at its end: the report, its lists empty.
    Checked(Box<CheckReport>),
    /// To `resize`: what came of it, or would.
    Resized(Resized),
    /// To `compact`, about once a second: how dense the volume is.
    Compacting(Density),
    /// To `compact`, at its end.
    Compacted(Compacted),
    /// To `resume`: the 32 bytes of the data key are waited for.
    SendKey,
    /// To `suspend`, the key of a `resume`, and `stop`: how things stand now.
    State(State),
}

/// How a volume is served.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// The volume.
    pub uuid: String,
    /// Process number of the server.
    pub pid: u32,
    /// Name of the export.
    pub export: String,
    /// Whether clients may only read; such a server changes no header either.
    pub read_only: bool,
    /// Whether requests are answered.
    pub state: State,
    /// Since when, seconds since 1970.
    pub since: u64,
    /// Requests that wait for a resume.
    pub parked: u64,
    /// Memory of the server; absent where the kernel does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryStatus>,
    /// Figures of the volume; absent while it is not open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Box<VolumeStatus>>,
}

/// Whether requests are answered.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// They are.
    Running,
    /// They wait, and no key is in memory.
    Suspended,
    /// They are refused.
    Stopped,
}

impl State {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Suspended => "suspended",
            Self::Stopped => "stopped",
        }
    }
}

/// Why something was not done.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// For programs.
    pub code: Code,
    /// For people.
    pub message: String,
}

/// Which kind of refusal.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The request is none.
    Malformed,
    /// The volume is suspended.
    State,
    /// The volume is stopped for good.
    Stopped,
    /// Somebody else changed the header first; read it again. Or another one of its kind is under way.
    Busy,
    /// Clients are connected that cannot be told.
    Clients,
    /// There is something behind the end that the volume is to have.
    InUse,
    /// The store is too small for the volume.
    TooSmall,
    /// Header or key do not belong to the volume, or are older than what is known.
    Refused,
    /// The store failed.
    Failed,
}

impl Refusal {
    /// A refusal.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Reads one line; `None` at the end.
///
/// # Errors
/// `InvalidData` for a line that is too long, not ended, or not of this protocol.
///
/// # Cancel safety
/// Not cancel safe: what was read of a line is lost.
pub async fn read_line<T: DeserializeOwned>(
    reader: &mut (impl AsyncBufRead + Unpin),
) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    let count = reader.take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await?;
    if count == 0 {
        return Ok(None);
    }
    if line.pop() != Some(b'\n') {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a line that has no end or is too long"));
    }
    serde_json::from_slice(&line).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Writes one line.
///
/// # Errors
/// The connection's.
///
/// # Panics
/// Never: the messages are plain structures.
pub async fn write_line(writer: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message).expect("messages are plain structures");
    line.push(b'\n');
    writer.write_all(&line).await?;
    writer.flush().await
}
