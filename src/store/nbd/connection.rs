//! One connection in transmission: requests go out in a pipeline, replies come back in any order and
//! find their request by its cookie.
//!
//! A [`Connection`] is the handle that requests are made through, its [`Driver`] does the I/O. When
//! the driver ends, for whatever reason, its socket is closed *before* anybody waiting learns of it:
//! nothing of an old connection can be sent once its requests are made again on a new one.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::assembly::Assembly;
use super::handshake::{Agreement, ReplyStyle, Stream};
use super::ledger::Ledger;
use super::{Loss, printable};
use crate::wire::Errno;
use crate::wire::payload::{ErrorChunk, OFFSET_DATA_PREFIX_LEN, OffsetHole, decode_offset_data};
use crate::wire::transmission::{
    Chunk, ChunkFlags, ChunkKind, Command, CommandFlags, HeaderStyle, ReplyMagic, Request, SimpleReply,
};

/// Requests on their way on one connection: what common servers work on at the same time (nbdkit 16,
/// qemu-nbd 16) and as many again to keep them busy.
const IN_FLIGHT_MAX: usize = 32;

/// Parts that one `sendmsg` takes: Linux' `IOV_MAX`.
const PARTS_PER_CALL_MAX: usize = 1024;

/// What is received at once, in bytes; larger data goes straight to where it belongs.
const RECEIVE_LEN: usize = 64 << 10;

/// Bytes of an error chunk: the longest string and the fields around it.
const ERROR_CHUNK_BYTES_MAX: u64 = 4096 + 16;

/// Error chunks in one reply: a server may name several places, not talk for ever.
const ERROR_CHUNKS_MAX: u32 = 16;

const STYLE: HeaderStyle = HeaderStyle::Compact;

/// A request before it has a cookie. Cheap to copy, so that it can be made again elsewhere.
#[derive(Clone)]
pub(super) struct Ask {
    pub(super) command: Command,
    pub(super) flags: CommandFlags,
    pub(super) offset: u64,
    pub(super) len: u32,
    /// The data of a write, `len` bytes in all.
    pub(super) payload: Vec<Bytes>,
}

/// Why a request has no answer.
#[derive(Debug)]
pub(super) enum CallError {
    /// The connection was lost before the answer came: nobody knows whether the server acted.
    Lost,
    /// The server answered with an error.
    Refused(Refusal),
}

/// A server's error reply.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) error: Errno,
    /// What the server says for people, made printable; may be empty.
    pub(super) text: String,
}

/// The handle of one connection. When the last one goes, the server is told goodbye.
pub(super) struct Connection {
    /// Later connections have larger numbers.
    pub(super) serial: u64,
    queue: mpsc::Sender<Outgoing>,
    table: Arc<Table>,
    room: Arc<Semaphore>,
}

/// The I/O of one connection.
pub(super) struct Driver {
    stream: Stream,
    replies: ReplyStyle,
    queue: mpsc::Receiver<Outgoing>,
    table: Arc<Table>,
    ledger: Arc<Ledger>,
    silence_max: Duration,
}

struct Outgoing {
    request: Request,
    payload: Vec<Bytes>,
}

/// Who waits for which cookie.
struct Table(Mutex<TableState>);

struct TableState {
    closed: bool,
    next_cookie: u64,
    waiting: HashMap<u64, Waiting>,
    /// When the server last gave a sign of life, or the first request of a series was made.
    last_sign: Instant,
}

/// Stays in the table until the request is answered or the connection has ended: whoever waits must
/// not learn of a loss before the socket is closed.
struct Waiting {
    /// Taken out while a reply is being received.
    answer: Option<Answer>,
    tell: oneshot::Sender<Result<Vec<u8>, Refusal>>,
    /// Given back when the request is answered, not when its maker gives up: it still occupies the server.
    _room: OwnedSemaphorePermit,
}

/// What has come of an answer.
struct Answer {
    ask: Request,
    /// For reads.
    assembly: Option<Assembly>,
    refusal: Option<Refusal>,
    error_chunks: u32,
}

impl Connection {
    /// A connection over a negotiated stream. A server that leaves requests unanswered for
    /// `silence_max` and says nothing else is given up.
    pub(super) fn new(
        serial: u64,
        stream: Stream,
        agreement: Agreement,
        ledger: Arc<Ledger>,
        silence_max: Duration,
    ) -> (Self, Driver) {
        let (sender, receiver) = mpsc::channel(IN_FLIGHT_MAX);
        let table = Arc::new(Table(Mutex::new(TableState {
            closed: false,
            next_cookie: 1,
            waiting: HashMap::new(),
            last_sign: Instant::now(),
        })));
        let room = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
        let driver = Driver {
            stream,
            replies: agreement.replies,
            queue: receiver,
            table: Arc::clone(&table),
            ledger,
            silence_max,
        };
        (Self { serial, queue: sender, table, room }, driver)
    }

    /// How many more requests fit into the pipeline.
    pub(super) fn room(&self) -> usize {
        self.room.available_permits()
    }

    /// Makes a request and waits for its answer: the data of a read, nothing for everything else.
    ///
    /// # Cancel safety
    /// A dropped request that was sent is answered and the answer thrown away.
    pub(super) async fn call(&self, ask: &Ask) -> Result<Vec<u8>, CallError> {
        let room = Arc::clone(&self.room).acquire_owned().await.map_err(|_| CallError::Lost)?;
        let spot = self.queue.reserve().await.map_err(|_| CallError::Lost)?;
        // Nothing below waits, so a request is either in the table and in the queue, or in neither.
        let (tell, answer) = oneshot::channel();
        let request = self.table.enter(ask, tell, room).ok_or(CallError::Lost)?;
        spot.send(Outgoing { request, payload: ask.payload.clone() });
        match answer.await {
            Ok(answered) => answered.map_err(CallError::Refused),
            Err(_) => Err(CallError::Lost),
        }
    }
}

/// What is left of a connection: those who wait on it, and do not know yet. Dropping it tells them.
pub(super) struct Remains(Arc<Table>);

impl Drop for Remains {
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.0.state();
            state.closed = true;
            std::mem::take(&mut state.waiting)
        };
        drop(waiting);
    }
}

impl Driver {
    /// Sends and receives until the connection ends, and closes it.
    pub(super) async fn run(self) -> (Loss, Remains) {
        let Self { stream, replies, queue, table, ledger, silence_max } = self;
        let remains = Remains(Arc::clone(&table));
        let receiver = Receiver {
            reader: BufReader::with_capacity(RECEIVE_LEN, stream.reader),
            replies,
            table: Arc::clone(&table),
            ledger,
        };
        // Each branch owns its half of the socket; `select!` drops both before its value is used.
        let loss = tokio::select! {
            loss = receiver.run() => loss,
            loss = send_requests(stream.writer, queue) => loss,
            loss = watch_silence(&table, silence_max) => loss,
        };
        (loss, remains)
    }
}

async fn send_requests(
    mut writer: Box<dyn AsyncWrite + Send + Unpin>,
    mut queue: mpsc::Receiver<Outgoing>,
) -> Loss {
    let mut batch = Vec::with_capacity(IN_FLIGHT_MAX);
    loop {
        if queue.recv_many(&mut batch, IN_FLIGHT_MAX).await == 0 {
            // Nobody waits for anything any more, so an error is nobody's.
            let _ = say_goodbye(&mut writer).await;
            return Loss::Finished;
        }
        if let Err(error) = send_batch(&mut writer, &batch).await {
            return error.into();
        }
        batch.clear();
    }
}

async fn send_batch(writer: &mut (dyn AsyncWrite + Send + Unpin), batch: &[Outgoing]) -> io::Result<()> {
    let header_len = STYLE.request_len();
    let mut headers = Vec::with_capacity(batch.len() * header_len);
    for outgoing in batch {
        outgoing.request.encode(STYLE, &mut headers);
    }
    let mut slices = Vec::with_capacity(2 * batch.len());
    for (outgoing, header) in batch.iter().zip(headers.chunks_exact(header_len)) {
        slices.push(IoSlice::new(header));
        slices.extend(outgoing.payload.iter().map(|part| IoSlice::new(part)));
    }
    let mut rest = &mut slices[..];
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        let now = rest.len().min(PARTS_PER_CALL_MAX);
        match writer.write_vectored(&rest[..now]).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            sent => IoSlice::advance_slices(&mut rest, sent),
        }
    }
    writer.flush().await
}

async fn say_goodbye(writer: &mut (dyn AsyncWrite + Send + Unpin)) -> io::Result<()> {
    let request = Request { flags: CommandFlags::NONE, command: Command::DISC, cookie: 0, offset: 0, len: 0 };
    let mut header = Vec::new();
    request.encode(STYLE, &mut header);
    writer.write_all(&header).await?;
    writer.shutdown().await
}

async fn watch_silence(table: &Table, silence_max: Duration) -> Loss {
    loop {
        tokio::time::sleep(silence_max / 4).await;
        let state = table.state();
        if !state.waiting.is_empty() && state.last_sign.elapsed() > silence_max {
            let seconds = silence_max.as_secs_f32();
            return Loss::Gone(format!("it left requests unanswered for {seconds} seconds"));
        }
    }
}

/// The receiving side.
struct Receiver {
    reader: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    replies: ReplyStyle,
    table: Arc<Table>,
    ledger: Arc<Ledger>,
}

impl Receiver {
    async fn run(mut self) -> Loss {
        loop {
            if let Err(loss) = self.receive_one().await {
                return loss;
            }
        }
    }

    async fn receive_one(&mut self) -> Result<(), Loss> {
        const MAGIC_LEN: usize = 4;
        const LONGEST: usize = STYLE.chunk_len();
        let mut head = [0; LONGEST];
        self.reader.read_exact(&mut head[..MAGIC_LEN]).await?;
        let magic = ReplyMagic::decode(&head[..MAGIC_LEN])?;
        match (magic, self.replies) {
            (ReplyMagic::Simple, _) => {
                let head = &mut head[..magic.header_len()];
                self.reader.read_exact(&mut head[MAGIC_LEN..]).await?;
                let reply = SimpleReply::decode(head)?;
                self.simple(reply).await
            }
            (ReplyMagic::Chunk(HeaderStyle::Compact), ReplyStyle::Structured) => {
                self.reader.read_exact(&mut head[MAGIC_LEN..]).await?;
                let chunk = Chunk::decode(STYLE, &head)?;
                self.chunk(chunk).await
            }
            (ReplyMagic::Chunk(_), _) => Err(breach("a kind of reply that was not agreed on")),
        }
    }

    async fn simple(&mut self, reply: SimpleReply) -> Result<(), Loss> {
        let mut answer = self.table.take(reply.cookie)?;
        match &mut answer.assembly {
            Some(_) if self.replies == ReplyStyle::Structured => {
                return Err(breach("a simple reply to a read, agreed were structured ones"));
            }
            Some(assembly) if reply.error == Errno::OK => {
                self.reader.read_exact(assembly.claim_all()).await?;
            }
            _ => {}
        }
        if reply.error != Errno::OK {
            answer.refusal = Some(Refusal { error: reply.error, text: String::new() });
        }
        self.finish(answer)
    }

    async fn chunk(&mut self, chunk: Chunk) -> Result<(), Loss> {
        let mut answer = self.table.take(chunk.cookie)?;
        let done = chunk.flags.contains(ChunkFlags::DONE);
        match (chunk.kind, &mut answer.assembly) {
            (ChunkKind::NONE, _) if done && chunk.len == 0 => {}
            (ChunkKind::OFFSET_DATA, Some(assembly)) => self.data(chunk.len, assembly).await?,
            (ChunkKind::OFFSET_HOLE, Some(assembly)) => self.hole(chunk.len, assembly).await?,
            (kind, _) if kind.is_error() => self.error(chunk, &mut answer).await?,
            (kind, _) => {
                return Err(breach(&format!("a chunk of kind {} and {} bytes", kind.0, chunk.len)));
            }
        }
        if done {
            return self.finish(answer);
        }
        self.table.put_back(answer);
        Ok(())
    }

    async fn data(&mut self, chunk_len: u64, assembly: &mut Assembly) -> Result<(), Loss> {
        let len = chunk_len
            .checked_sub(OFFSET_DATA_PREFIX_LEN as u64)
            .ok_or_else(|| breach("a data chunk without an offset"))?;
        let mut prefix = [0; OFFSET_DATA_PREFIX_LEN];
        self.reader.read_exact(&mut prefix).await?;
        let room = assembly.claim(decode_offset_data(&prefix)?, len).map_err(misfit)?;
        self.reader.read_exact(room).await?;
        Ok(())
    }

    async fn hole(&mut self, chunk_len: u64, assembly: &mut Assembly) -> Result<(), Loss> {
        if chunk_len != OffsetHole::LEN as u64 {
            return Err(breach("a hole chunk of the wrong length"));
        }
        let mut payload = [0; OffsetHole::LEN];
        self.reader.read_exact(&mut payload).await?;
        let hole = OffsetHole::decode(&payload)?;
        assembly.claim(hole.offset, hole.len.into()).map_err(misfit)?;
        Ok(())
    }

    async fn error(&mut self, chunk: Chunk, answer: &mut Answer) -> Result<(), Loss> {
        answer.error_chunks += 1;
        if chunk.len > ERROR_CHUNK_BYTES_MAX || answer.error_chunks > ERROR_CHUNKS_MAX {
            return Err(breach("an error chunk too many or too long"));
        }
        let mut payload = vec![0; usize::try_from(chunk.len).expect("bounded just now")];
        self.reader.read_exact(&mut payload).await?;
        let said = ErrorChunk::decode(chunk.kind, &payload)?;
        let Request { offset: asked, len, .. } = answer.ask;
        if said.offset.is_some_and(|offset| offset < asked || offset - asked >= len) {
            return Err(breach("an error outside of what was asked"));
        }
        if said.error == Errno::OK {
            return Err(breach("an error chunk that says that there is no error"));
        }
        answer.refusal.get_or_insert_with(|| Refusal { error: said.error, text: printable(said.text) });
        Ok(())
    }

    /// The last of a reply has come.
    fn finish(&self, answer: Answer) -> Result<(), Loss> {
        let Answer { ask, assembly, refusal, error_chunks: _ } = answer;
        let outcome = match (refusal, assembly) {
            // The request was not carried out and the server is going: it belongs to the next connection.
            (Some(Refusal { error: Errno::ESHUTDOWN, .. }), _) => {
                return Err(Loss::Gone("it is shutting down".into()));
            }
            (Some(refusal), _) => Err(refusal),
            (None, Some(assembly)) => {
                Ok(assembly.finish().ok_or_else(|| breach("a read answered only in part"))?)
            }
            (None, None) => {
                let changes = matches!(ask.command, Command::WRITE | Command::WRITE_ZEROES);
                if changes && !ask.flags.contains(CommandFlags::FUA) {
                    // Before anybody is told: a sync that starts then must cover it.
                    self.ledger.write_acked();
                }
                Ok(Vec::new())
            }
        };
        self.table.tell(ask.cookie, outcome);
        Ok(())
    }
}

impl Table {
    /// Gives a request its cookie; `None` when the connection is gone.
    fn enter(
        &self,
        ask: &Ask,
        tell: oneshot::Sender<Result<Vec<u8>, Refusal>>,
        room: OwnedSemaphorePermit,
    ) -> Option<Request> {
        let assembly = (ask.command == Command::READ).then(|| Assembly::new(ask.offset, ask.len as usize));
        let mut state = self.state();
        if state.closed {
            return None;
        }
        let cookie = state.next_cookie;
        state.next_cookie += 1;
        let Ask { command, flags, offset, len, payload: _ } = *ask;
        let request = Request { flags, command, cookie, offset, len: len.into() };
        if state.waiting.is_empty() {
            state.last_sign = Instant::now();
        }
        let answer = Answer { ask: request, assembly, refusal: None, error_chunks: 0 };
        state.waiting.insert(cookie, Waiting { answer: Some(answer), tell, _room: room });
        Some(request)
    }

    /// What has come so far of the answer to the request whose cookie a reply carries.
    fn take(&self, cookie: u64) -> Result<Answer, Loss> {
        let mut state = self.state();
        state.last_sign = Instant::now();
        let known = state.waiting.get_mut(&cookie).and_then(|waiting| waiting.answer.take());
        known.ok_or_else(|| breach(&format!("a reply to nothing (cookie {cookie:#x})")))
    }

    fn put_back(&self, answer: Answer) {
        if let Some(waiting) = self.state().waiting.get_mut(&answer.ask.cookie) {
            waiting.answer = Some(answer);
        }
    }

    /// Ends a request.
    fn tell(&self, cookie: u64, outcome: Result<Vec<u8>, Refusal>) {
        let waiting = {
            let mut state = self.state();
            state.last_sign = Instant::now();
            state.waiting.remove(&cookie)
        };
        if let Some(Waiting { tell, answer: _, _room }) = waiting {
            // Whoever asked may have gone.
            let _ = tell.send(outcome);
        }
    }

    fn state(&self) -> MutexGuard<'_, TableState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn breach(what: &str) -> Loss {
    Loss::Protocol(what.to_owned())
}

fn misfit(why: super::assembly::Misfit) -> Loss {
    Loss::Protocol(why.to_string())
}
