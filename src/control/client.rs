//! The side of a command: finds the process that serves a volume and asks it.
//!
//! Every request has a connection of its own. Between two of them a user may be looking for a passphrase, or a
//! key manager be slow, and the server keeps no place for whoever is silent.

use std::io;
use std::io::ErrorKind::{
    ConnectionRefused, InvalidData, InvalidInput, NotFound, PermissionDenied, TimedOut, UnexpectedEof,
    WouldBlock,
};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use keymgmt::secret::Dek;
use rustix::process::{Uid, geteuid};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use crate::volume::check::CheckReport;
use crate::volume::compact::{Compacted, Density};
use crate::volume::{Resized, WantedSize};

use super::protocol::{Answer, Ask, Done, Refusal, Request, State, Status, VERSION, read_line, write_line};

/// How long an answer is waited for. A suspension finishes what is in flight and writes a root first.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);
/// The same for what is answered from memory.
const STATUS_WITHIN: Duration = Duration::from_secs(15);
/// How long a place is waited for when others have them all: the server cuts off the silent ones by then.
const PLACE_WITHIN: Duration = Duration::from_secs(15);
/// Findings and ranges that a check may have; a report has no more.
const FOUND_MAX: usize = 20_000;
/// Between two tries to get one.
const PLACE_PAUSE: Duration = Duration::from_millis(50);

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

/// Whether keys may be sent to that user's process: it could read our memory anyway, or we are root and the
/// directory of the socket, in which nobody else can make one, is its own.
fn is_trusted(peer: Uid, socket: &Path) -> io::Result<bool> {
    if peer == geteuid() || peer.is_root() {
        return Ok(true);
    }
    let Some(directory) = socket.parent() else { return Ok(false) };
    let place = std::fs::metadata(directory)?;
    Ok(geteuid().is_root() && place.uid() == peer.as_raw() && place.mode() & 0o022 == 0)
}

/// The process that serves a volume.
pub struct Control {
    path: PathBuf,
}

/// Where the control socket of a volume is.
#[must_use]
pub fn socket_path(directory: &Path, volume: [u8; 16]) -> PathBuf {
    directory.join(format!("{}.control", uuid::Uuid::from_bytes(volume)))
}

impl Control {
    /// Finds the process that serves the volume; `None` when none does.
    ///
    /// # Errors
    /// [`ControlError::Io`], also when who serves is not to be trusted with keys.
    pub async fn connect(directory: &Path, volume: [u8; 16]) -> Result<Option<Self>, ControlError> {
        let control = Self { path: socket_path(directory, volume) };
        Ok(control.dial().await?.map(|_| control))
    }

    /// How the volume is served.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn status(&mut self) -> Result<Status, ControlError> {
        match self.ask(Ask::Status, STATUS_WITHIN).await? {
            Done::Status(status) => Ok(status),
            _ => Err(self.nonsense()),
        }
    }

    /// The newest header, byte for byte.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn header(&mut self) -> Result<Vec<u8>, ControlError> {
        match self.ask(Ask::Header, ANSWER_WITHIN).await? {
            Done::Header { header, .. } => BASE64.decode(header).map_err(|_| self.nonsense()),
            _ => Err(self.nonsense()),
        }
    }

    /// Puts the next header generation in place.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn replace_header(&mut self, bytes: &[u8]) -> Result<(), ControlError> {
        match self.ask(Ask::ReplaceHeader { header: BASE64.encode(bytes) }, ANSWER_WITHIN).await? {
            Done::Header { .. } => Ok(()),
            _ => Err(self.nonsense()),
        }
    }

    /// Lets the serving process verify the volume; `progress` is told how far it is, and of how much.
    ///
    /// # Errors
    /// [`ControlError`].
    ///
    /// # Cancel safety
    /// Dropping it ends the check.
    pub async fn check(
        &mut self,
        deep: bool,
        progress: impl Fn(u64, u64),
    ) -> Result<CheckReport, ControlError> {
        let mut stream = self.place().await?;
        let mut lists = CheckReport::default();
        let mut done = Box::pin(self.exchange(&mut stream, Ask::Check { deep }, ANSWER_WITHIN)).await?;
        loop {
            match done {
                Done::Checking { at, of } => progress(at, of),
                Done::Found { problems, warnings, damaged } => {
                    lists.problems.extend(problems);
                    lists.warnings.extend(warnings);
                    lists.damaged.extend(damaged);
                    let count = lists.problems.len() + lists.warnings.len() + lists.damaged.len();
                    if count > FOUND_MAX {
                        return Err(self.nonsense());
                    }
                }
                Done::Checked(report) => {
                    let CheckReport { problems, warnings, damaged, .. } = lists;
                    return Ok(CheckReport { problems, warnings, damaged, ..*report });
                }
                _ => return Err(self.nonsense()),
            }
            done = self.within(ANSWER_WITHIN, answer(&mut stream)).await?;
        }
    }

    /// Lets the serving process give the volume another size.
    ///
    /// # Errors
    /// [`ControlError`].
    ///
    /// # Cancel safety
    /// When dropped, the resize goes on to its end.
    pub async fn resize(&mut self, wanted: WantedSize) -> Result<Resized, ControlError> {
        match self.ask(Ask::Resize(wanted), ANSWER_WITHIN).await? {
            Done::Resized(resized) => Ok(resized),
            _ => Err(self.nonsense()),
        }
    }

    /// Lets the serving process compact the volume; `progress` is told how dense it is by then.
    ///
    /// # Errors
    /// [`ControlError`].
    ///
    /// # Cancel safety
    /// Dropping it ends the compaction; what was gained stays.
    pub async fn compact(
        &mut self,
        target: u64,
        progress: impl Fn(Density),
    ) -> Result<Compacted, ControlError> {
        let mut stream = self.place().await?;
        let mut done = Box::pin(self.exchange(&mut stream, Ask::Compact { target }, ANSWER_WITHIN)).await?;
        loop {
            match done {
                Done::Compacting(density) => progress(density),
                Done::Compacted(compacted) => return Ok(compacted),
                _ => return Err(self.nonsense()),
            }
            done = self.within(ANSWER_WITHIN, answer(&mut stream)).await?;
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
        let mut stream = self.place().await?;
        match self.exchange(&mut stream, Ask::Resume, ANSWER_WITHIN).await? {
            // Running already.
            Done::State(state) => return Ok(state),
            Done::SendKey => {}
            _ => return Err(self.nonsense()),
        }
        let finish = async {
            stream.write_all(dek.0.expose()).await?;
            stream.flush().await?;
            answer(&mut stream).await
        };
        match self.within(ANSWER_WITHIN, finish).await? {
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
        match self.ask(ask, ANSWER_WITHIN).await? {
            Done::State(state) => Ok(state),
            _ => Err(self.nonsense()),
        }
    }

    async fn ask(&self, ask: Ask, limit: Duration) -> Result<Done, ControlError> {
        let mut stream = self.place().await?;
        Box::pin(self.exchange(&mut stream, ask, limit)).await
    }

    /// A connection to a process that was there before.
    async fn place(&self) -> Result<BufReader<UnixStream>, ControlError> {
        self.dial().await?.ok_or_else(|| self.failed(ConnectionRefused.into()))
    }

    /// A new connection, if anybody listens.
    async fn dial(&self) -> Result<Option<BufReader<UnixStream>>, ControlError> {
        let begun = Instant::now();
        let stream = loop {
            match UnixStream::connect(&self.path).await {
                Ok(stream) => break stream,
                // The last one: the path is longer than that of any socket.
                Err(error) if matches!(error.kind(), NotFound | ConnectionRefused | InvalidInput) => {
                    return Ok(None);
                }
                Err(error) if error.kind() == WouldBlock && begun.elapsed() < PLACE_WITHIN => {
                    sleep(PLACE_PAUSE).await;
                }
                Err(error) => return Err(self.failed(error)),
            }
        };
        // Keys go over this socket: whoever listens must be able to read our memory anyway.
        let peer = Uid::from_raw(stream.peer_cred().map_err(|error| self.failed(error))?.uid());
        if !is_trusted(peer, &self.path).map_err(|error| self.failed(error))? {
            return Err(self.failed(io::Error::new(PermissionDenied, "served by another user")));
        }
        Ok(Some(BufReader::new(stream)))
    }

    async fn exchange(
        &self,
        stream: &mut BufReader<UnixStream>,
        ask: Ask,
        limit: Duration,
    ) -> Result<Done, ControlError> {
        let exchange = async {
            write_line(stream, &Request { sealbd_control: VERSION, ask }).await?;
            answer(stream).await
        };
        self.within(limit, exchange).await
    }

    async fn within(
        &self,
        limit: Duration,
        answer: impl Future<Output = io::Result<Answer>>,
    ) -> Result<Done, ControlError> {
        let answer = timeout(limit, answer).await.unwrap_or_else(|_| Err(TimedOut.into()));
        match answer.map_err(|source| self.failed(source))? {
            Answer::Ok(done) => Ok(done),
            Answer::Error(refusal) => Err(refusal.into()),
        }
    }

    fn failed(&self, source: io::Error) -> ControlError {
        ControlError::Io { path: self.path.clone(), source }
    }

    fn nonsense(&self) -> ControlError {
        self.failed(io::Error::new(InvalidData, "an answer to another question"))
    }
}

async fn answer(stream: &mut BufReader<UnixStream>) -> io::Result<Answer> {
    read_line(stream).await?.ok_or_else(|| UnexpectedEof.into())
}
