//! The side of the serving process: one socket per volume.
//!
//! Only our own user and root are listened to. Changes wait for each other; whoever connects and says nothing is cut
//! off.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use keymgmt::secret::Dek;
use rustix::process::{Uid, geteuid};
use tokio::io::{AsyncReadExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use super::client::socket_path;
use super::gate::{Gate, GateState, NotRunning, ResizeError, ResumeError, SuspendError};
use super::memory::MemoryStatus;
use super::protocol::{
    Answer, Ask, Code, Done, Refusal, Request, State, Status, VERSION, read_line, write_line,
};
use super::{check, compact};
use crate::export::Export;
use crate::format::header::UnverifiedHeader;
use crate::private_socket::{PrivateSocketError, SocketPath, listen_private};
use crate::volume::{Volume, VolumeError};

/// Connections at a time, per volume: a few commands and a monitor.
const CONNECTIONS_MAX: usize = 8;
/// Between two requests, within one, and for an answer to be taken.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// Pause after a failed accept: when descriptors have run out, some will be closed by then.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A control socket that is listened to; ends when dropped.
pub struct ControlSocket {
    task: JoinHandle<()>,
    _path: SocketPath,
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a control socket is about.
pub(super) struct Subject {
    pub(super) gate: Arc<Gate>,
    volume: [u8; 16],
    export: String,
    /// In bytes, for the whole process.
    memory_budget: u64,
    /// One check at a time.
    pub(super) checking: Semaphore,
    /// One compaction at a time.
    pub(super) compacting: Semaphore,
}

impl ControlSocket {
    /// Listens in `directory`, which exists. `memory_budget`, in bytes, is told to whoever asks for the status.
    ///
    /// # Errors
    /// [`PrivateSocketError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn listen(
        directory: &Path,
        volume: [u8; 16],
        export: &str,
        gate: Arc<Gate>,
        memory_budget: u64,
    ) -> Result<Self, PrivateSocketError> {
        let (listener, path) = listen_private(&socket_path(directory, volume))?;
        let (checking, compacting) = (Semaphore::new(1), Semaphore::new(1));
        let export = export.to_owned();
        let subject = Arc::new(Subject { gate, volume, export, memory_budget, checking, compacting });
        Ok(Self { task: tokio::spawn(accept(listener, subject)), _path: path })
    }
}

async fn accept(listener: UnixListener, subject: Arc<Subject>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let subject = subject.clone();
        tokio::spawn(async move {
            // A connection that breaks ends; nobody is left to be told.
            let _ = converse(stream, &subject).await;
            drop(place);
        });
    }
}

async fn converse(stream: UnixStream, subject: &Subject) -> io::Result<()> {
    let peer = Uid::from_raw(stream.peer_cred()?.uid());
    let mut stream = BufReader::new(stream);
    if peer != geteuid() && !peer.is_root() {
        let refusal =
            Refusal::new(Code::Refused, "only the user who serves the volume, and root, are listened to");
        return send(&mut stream, &Answer::Error(refusal)).await;
    }
    loop {
        let request = match timeout(IDLE_MAX, read_line::<Request>(&mut stream)).await {
            Ok(Ok(Some(request))) => request,
            Ok(Ok(None)) | Err(_) => return Ok(()),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                // The cause may quote what was sent, and that may be anything.
                let refusal = Refusal::new(Code::Malformed, "not a request of this protocol");
                return send(&mut stream, &Answer::Error(refusal)).await;
            }
            Ok(Err(error)) => return Err(error),
        };
        let answer = match (request.sealbd_control, request.ask) {
            (VERSION, Ask::Resume) if subject.state() == State::Suspended => {
                send(&mut stream, &Answer::Ok(Done::SendKey)).await?;
                let dek = read_key(&mut stream).await?;
                subject.resume(dek).await
            }
            (VERSION, Ask::Check { deep }) => check::run(&mut stream, subject, deep).await?,
            (VERSION, Ask::Compact { target }) => compact::run(&mut stream, subject, target).await?,
            (VERSION, ask) => subject.answer(ask).await,
            _ => Err(Refusal::new(Code::Malformed, format!("this is version {VERSION} of the protocol"))),
        };
        send(&mut stream, &answer.map_or_else(Answer::Error, Answer::Ok)).await?;
    }
}

/// Whoever does not take its answers gives its place up.
pub(super) async fn send(stream: &mut BufReader<UnixStream>, answer: &Answer) -> io::Result<()> {
    timeout(IDLE_MAX, write_line(stream, answer)).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// From the socket into memory that is wiped, past the reader's buffer.
async fn read_key(stream: &mut BufReader<UnixStream>) -> io::Result<Dek> {
    if !stream.buffer().is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a key that came before it was asked for"));
    }
    let mut bytes = Zeroizing::new(vec![0; 32]);
    timeout(IDLE_MAX, stream.get_mut().read_exact(&mut bytes))
        .await
        .map_err(|_| io::ErrorKind::TimedOut)??;
    Ok(Dek::take((&mut bytes[..]).try_into().expect("32 bytes were read")))
}

impl Subject {
    async fn answer(&self, ask: Ask) -> Result<Done, Refusal> {
        match ask {
            Ask::Status => Ok(Done::Status(self.status())),
            Ask::Header => {
                let volume = self.gate.volume().map_err(|NotRunning| self.not_running())?;
                header_done(&volume.newest_header_bytes().await.map_err(|error| refusal(&error))?)
            }
            Ask::ReplaceHeader { header } => {
                let bytes = BASE64.decode(header).map_err(|_| Refusal::new(Code::Malformed, "not base64"))?;
                let volume = self.gate.volume().map_err(|NotRunning| self.not_running())?;
                if let Err(error) = volume.replace_header(&bytes).await {
                    return Err(overtaken(&volume, &bytes).await.unwrap_or_else(|| refusal(&error)));
                }
                drop(volume);
                self.gate.tell_anew();
                header_done(&bytes)
            }
            Ask::Suspend => {
                self.gate.suspend().await.map_err(|error| {
                    let code = match error {
                        SuspendError::Unclean(_) | SuspendError::KeysInUse => Code::Failed,
                        SuspendError::Stopped => Code::Stopped,
                    };
                    Refusal::new(code, error.to_string())
                })?;
                Ok(Done::State(self.state()))
            }
            Ask::Resize(wanted) => match self.gate.resize(wanted).await {
                Ok(resized) => Ok(Done::Resized(resized)),
                Err(ResizeError::NotRunning(NotRunning)) => Err(self.not_running()),
                Err(error @ ResizeError::Clients(_)) => Err(Refusal::new(Code::Clients, error.to_string())),
                Err(ResizeError::Volume(error)) => Err(refusal(&error)),
            },
            Ask::Check { .. } | Ask::Compact { .. } => unreachable!("answered above"),
            // One that is suspended was answered above.
            Ask::Resume if self.state() == State::Running => Ok(Done::State(State::Running)),
            Ask::Resume => Err(Refusal::new(Code::Stopped, "the volume is stopped for good")),
            Ask::Stop => {
                // For good in any case; a last root that could not be written is replayed by the next session.
                let closed = self.gate.close().await;
                closed.map_err(|error| {
                    Refusal::new(Code::Failed, format!("stopped, but not closed cleanly: {error}"))
                })?;
                Ok(Done::State(self.state()))
            }
        }
    }

    async fn resume(&self, dek: Dek) -> Result<Done, Refusal> {
        let resumed = self.gate.resume(dek).await;
        resumed.map_err(|error| {
            let code = match error {
                ResumeError::Stopped => Code::Stopped,
                ResumeError::Volume(VolumeError::Store(_)) => Code::Failed,
                _ => Code::Refused,
            };
            Refusal::new(code, error.to_string())
        })?;
        Ok(Done::State(self.state()))
    }

    pub(super) fn not_running(&self) -> Refusal {
        match self.state() {
            State::Stopped => Refusal::new(Code::Stopped, "the volume is stopped for good"),
            // Running: it is on its way there.
            State::Suspended | State::Running => Refusal::new(Code::State, "the volume is suspended"),
        }
    }

    fn status(&self) -> Status {
        let since = self.gate.since().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Status {
            uuid: uuid::Uuid::from_bytes(self.volume).to_string(),
            pid: std::process::id(),
            export: self.export.clone(),
            read_only: self.gate.info().read_only,
            state: self.state(),
            since,
            parked: self.gate.parked() as u64,
            memory: MemoryStatus::of_this_process(self.memory_budget),
            volume: self.gate.volume().ok().map(|volume| Box::new(volume.status())),
        }
    }

    fn state(&self) -> State {
        match self.gate.state() {
            GateState::Running => State::Running,
            GateState::Suspended => State::Suspended,
            GateState::Stopped => State::Stopped,
        }
    }
}

/// What a header is told whose generation others have reached in the meantime.
async fn overtaken(volume: &Volume, bytes: &[u8]) -> Option<Refusal> {
    let offered = UnverifiedHeader::decode(bytes).ok()?.generation();
    let now = volume.newest_header().await.ok()?.generation;
    let text = format!("somebody else was first: the header is of generation {now} now, not {offered}");
    (offered <= now).then(|| Refusal::new(Code::Busy, text))
}

fn header_done(bytes: &[u8]) -> Result<Done, Refusal> {
    let copy = UnverifiedHeader::decode(bytes);
    let generation = copy.map_err(|error| Refusal::new(Code::Failed, error.to_string()))?.generation();
    Ok(Done::Header { generation, header: BASE64.encode(bytes) })
}

pub(super) fn refusal(error: &VolumeError) -> Refusal {
    let code = match error {
        VolumeError::Refused(_) | VolumeError::Damaged { .. } | VolumeError::HeaderRollback { .. } => {
            Code::Refused
        }
        VolumeError::InUse { .. } => Code::InUse,
        VolumeError::StoreTooSmall { .. } => Code::TooSmall,
        _ => Code::Failed,
    };
    Refusal::new(code, error.to_string())
}
