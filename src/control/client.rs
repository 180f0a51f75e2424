//! The side of a command: finds the process that serves a volume and asks it.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use keymgmt::secret::Dek;
use rustix::process::{Uid, geteuid};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::protocol::{Answer, Ask, Done, Refusal, Request, State, Status, VERSION, read_line, write_line};

/// How long an answer is waited for. A suspension finishes what is in flight and writes a root first.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// Why the serving process could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The connection failed, or what answers is no control socket of sealbd.
    #[error("{path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The process says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// A connection to the process that serves a volume.
pub struct Control {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

/// Where the control socket of a volume is.
#[must_use]
pub fn socket_path(directory: &Path, volume: [u8; 16]) -> PathBuf {
    directory.join(format!("{}.control", uuid::Uuid::from_bytes(volume)))
}

impl Control {
    /// Connects to the process that serves the volume; `None` when none does.
    ///
    /// # Errors
    /// [`ControlError::Io`], also when the socket belongs to another user than us or root.
    pub async fn connect(directory: &Path, volume: [u8; 16]) -> Result<Option<Self>, ControlError> {
        let path = socket_path(directory, volume);
        let wrap = |source| ControlError::Io { path: path.clone(), source };
        let stream = match UnixStream::connect(&path).await {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => return Err(wrap(error)),
        };
        // Keys go over this socket: whoever listens must be able to read our memory anyway.
        let peer = Uid::from_raw(stream.peer_cred().map_err(wrap)?.uid());
        if peer != geteuid() && !peer.is_root() {
            return Err(wrap(io::Error::new(ErrorKind::PermissionDenied, "served by another user")));
        }
        Ok(Some(Self { path, stream: BufReader::new(stream) }))
    }

    /// How the volume is served.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn status(&mut self) -> Result<Status, ControlError> {
        match self.ask(Ask::Status).await? {
            Done::Status(status) => Ok(status),
            _ => Err(self.nonsense()),
        }
    }

    /// The newest header, byte for byte.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn header(&mut self) -> Result<Vec<u8>, ControlError> {
        match self.ask(Ask::Header).await? {
            Done::Header { header, .. } => BASE64.decode(header).map_err(|_| self.nonsense()),
            _ => Err(self.nonsense()),
        }
    }

    /// Puts the next header generation in place.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn replace_header(&mut self, bytes: &[u8]) -> Result<(), ControlError> {
        match self.ask(Ask::ReplaceHeader { header: BASE64.encode(bytes) }).await? {
            Done::Header { .. } => Ok(()),
            _ => Err(self.nonsense()),
        }
    }

    /// Parks requests and wipes the keys of the serving process.
    ///
    /// # Errors
    /// [`ControlError`]; a store that failed is told, and the keys are wiped all the same.
    pub async fn suspend(&mut self) -> Result<State, ControlError> {
        self.state(Ask::Suspend).await
    }

    /// Gives the key back; parked requests go on.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn resume(&mut self, dek: &Dek) -> Result<State, ControlError> {
        match self.ask(Ask::Resume).await? {
            // Running already.
            Done::State(state) => return Ok(state),
            Done::SendKey => {}
            _ => return Err(self.nonsense()),
        }
        let sent = async {
            self.stream.write_all(dek.0.expose()).await?;
            self.stream.flush().await?;
            read_line(&mut self.stream).await?.ok_or_else(|| ErrorKind::UnexpectedEof.into())
        };
        let answer = timeout(ANSWER_WITHIN, sent).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
        match self.taken(answer)? {
            Done::State(state) => Ok(state),
            _ => Err(self.nonsense()),
        }
    }

    /// Ends the serving of the volume for good.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn stop(&mut self) -> Result<State, ControlError> {
        self.state(Ask::Stop).await
    }

    async fn state(&mut self, ask: Ask) -> Result<State, ControlError> {
        match self.ask(ask).await? {
            Done::State(state) => Ok(state),
            _ => Err(self.nonsense()),
        }
    }

    async fn ask(&mut self, ask: Ask) -> Result<Done, ControlError> {
        let exchange = async {
            write_line(&mut self.stream, &Request { sealbd_control: VERSION, ask }).await?;
            read_line(&mut self.stream).await?.ok_or_else(|| ErrorKind::UnexpectedEof.into())
        };
        let answer =
            timeout(ANSWER_WITHIN, exchange).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
        self.taken(answer)
    }

    fn taken(&self, answer: io::Result<Answer>) -> Result<Done, ControlError> {
        match answer.map_err(|source| ControlError::Io { path: self.path.clone(), source })? {
            Answer::Ok(done) => Ok(done),
            Answer::Error(refusal) => Err(refusal.into()),
        }
    }

    fn nonsense(&self) -> ControlError {
        let source = io::Error::new(ErrorKind::InvalidData, "an answer to another question");
        ControlError::Io { path: self.path.clone(), source }
    }
}
