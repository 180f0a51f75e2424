//! A store that remembers: a small NBD server over memory which keeps every change in order, with the moments at which
//! its request came in and its reply went out. From that a test makes any image that a power cut could have left: a
//! flush covers only what had been replied before it came in; everything younger may be there, missing, or torn into
//! 512-byte blocks.
//!
//! Fixed newstyle, simple replies, blocking threads. Requests of one connection are worked on by several threads
//! and answered out of order, so a client that counts a write as done before its reply is found out.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};

use super::pattern::{BLOCK_LEN, Random};

/// Longest payload of a request: what the server advertises as its maximum block size.
const PAYLOAD_LEN_MAX: u32 = 32 << 20;
/// Longest option of a handshake.
const OPTION_LEN_MAX: u32 = 65_536;
/// Threads that work on the requests of one connection.
const WORKERS: usize = 3;
/// HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN.
const FLAGS: u16 = 1 | 4 | 8 | 32 | 64 | 256;
/// The memory is kept in pieces of this size.
const PIECE_LEN: usize = 65_536;
/// What a trimmed block reads as: a trim promises nothing, so the reader must not care.
const TRIMMED: u8 = 0xdb;

/// A moment: counts requests coming in and replies going out, over all connections.
pub(crate) type Moment = u64;

/// What a request changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    Write(Vec<u8>),
    Zero(u64),
    Trim(u64),
    Flush,
}

/// One request that changed something, or made it durable.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) offset: u64,
    pub(crate) change: Change,
    pub(crate) fua: bool,
    pub(crate) received: Moment,
    /// Taken just before the reply leaves.
    pub(crate) replied: Option<Moment>,
}

impl Event {
    fn len(&self) -> u64 {
        match &self.change {
            Change::Write(data) => data.len() as u64,
            Change::Zero(len) | Change::Trim(len) => *len,
            Change::Flush => 0,
        }
    }

    fn block(&self, block_offset: u64) -> Option<Vec<u8>> {
        let skip = usize::try_from(block_offset - self.offset).expect("inside the event");
        match &self.change {
            Change::Write(data) => Some(data[skip..data.len().min(skip + BLOCK_LEN)].to_vec()),
            Change::Zero(_) => Some(vec![0; BLOCK_LEN]),
            Change::Trim(_) => Some(vec![TRIMMED; BLOCK_LEN]),
            Change::Flush => None,
        }
    }
}

/// Everything that happened, in the order in which it took effect.
#[derive(Default)]
pub(crate) struct Log {
    events: Vec<Event>,
    clock: Moment,
    memory: BTreeMap<u64, Vec<u8>>,
}

impl Log {
    fn tick(&mut self) -> Moment {
        self.clock += 1;
        self.clock
    }

    /// The events, in the order in which they took effect.
    pub(crate) fn events(&self) -> &[Event] {
        &self.events
    }

    /// Forgets what happened, not what is stored; nothing may be in flight.
    pub(crate) fn forget_events(&mut self) {
        self.events.clear();
    }

    /// Whether a store that loses power at `cut` may not lose the event any more: its own FUA, or a flush that came in
    /// after the event's reply had left, was replied by then.
    pub(crate) fn is_durable(&self, event: &Event, cut: Moment) -> bool {
        is_durable_given(event, cut, self.last_flush(cut))
    }

    /// When the youngest flush replied by `cut` had come in.
    fn last_flush(&self, cut: Moment) -> Option<Moment> {
        let flushes = self.events.iter().filter(|event| event.change == Change::Flush);
        flushes.filter(|flush| flush.replied.is_some_and(|at| at <= cut)).map(|flush| flush.received).max()
    }

    /// One image that a power cut at `cut` may leave, written over the zeros of `image`. Of what is not durable each
    /// event is kept, lost, or torn, as `random` has it.
    ///
    /// # Errors
    /// Those of writing the image.
    pub(crate) fn write_image(
        &self,
        cut: Moment,
        random: &mut Random,
        image: &std::fs::File,
    ) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        // Some cuts lose everything that they may, some nothing.
        let keep = [0, 25, 50, 75, 100][usize::try_from(random.below(5)).expect("small")];
        let flushed = self.last_flush(cut);
        for event in self.events.iter().filter(|event| event.received <= cut) {
            let durable = is_durable_given(event, cut, flushed);
            let whole = durable || random.below(100) < keep;
            let torn = !whole && random.one_in(2);
            if !whole && !torn {
                continue;
            }
            if whole && let Change::Write(data) = &event.change {
                image.write_all_at(data, event.offset)?;
                continue;
            }
            for block in (event.offset..event.offset + event.len()).step_by(BLOCK_LEN) {
                if (whole || random.one_in(2))
                    && let Some(data) = event.block(block)
                {
                    image.write_all_at(&data, block)?;
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self, offset: u64, change: &Change) {
        match change {
            Change::Write(data) => self.write_memory(offset, data),
            Change::Zero(len) => self.set_memory(offset, *len, 0),
            Change::Trim(len) => self.set_memory(offset, *len, TRIMMED),
            Change::Flush => {}
        }
    }

    fn set_memory(&mut self, offset: u64, len: u64, byte: u8) {
        let piece_len = PIECE_LEN as u64;
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let now = (piece_len - at % piece_len).min(end - at);
            let base = at / piece_len * piece_len;
            if now == piece_len && byte == 0 {
                self.memory.remove(&base);
            } else if byte == 0 && !self.memory.contains_key(&base) {
                // Absent already reads as zero.
            } else {
                let now = usize::try_from(now).expect("at most a piece");
                self.write_memory(at, &vec![byte; now]);
            }
            at += now;
        }
    }

    fn write_memory(&mut self, offset: u64, mut data: &[u8]) {
        let mut at = offset;
        while !data.is_empty() {
            let (base, skip) = piece_of(at);
            let now = data.len().min(PIECE_LEN - skip);
            let piece = self.memory.entry(base).or_insert_with(|| vec![0; PIECE_LEN]);
            piece[skip..skip + now].copy_from_slice(&data[..now]);
            data = &data[now..];
            at += now as u64;
        }
    }

    fn read_memory(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        let mut done = 0;
        while done < len {
            let (base, skip) = piece_of(offset + done as u64);
            let now = (len - done).min(PIECE_LEN - skip);
            if let Some(piece) = self.memory.get(&base) {
                data[done..done + now].copy_from_slice(&piece[skip..skip + now]);
            }
            done += now;
        }
        data
    }
}

/// [`Log::is_durable`] when the youngest flush replied by `cut` came in at `flush_received`.
fn is_durable_given(event: &Event, cut: Moment, flush_received: Option<Moment>) -> bool {
    let Some(replied) = event.replied.filter(|&at| at <= cut) else { return false };
    event.fua || flush_received.is_some_and(|received| replied < received)
}

fn piece_of(offset: u64) -> (u64, usize) {
    let piece_len = PIECE_LEN as u64;
    (offset / piece_len * piece_len, usize::try_from(offset % piece_len).expect("below a piece"))
}

/// The server. Serves from its creation until it is dropped.
pub(crate) struct LoggingServer {
    shared: Arc<Shared>,
    port: u16,
}

struct Shared {
    log: Mutex<Log>,
    size: u64,
    stop: AtomicBool,
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().expect("no worker panics")
    }
}

impl LoggingServer {
    /// Serves `size` zero bytes under any export name, on a free port of the loopback address.
    pub(crate) fn start(size: u64) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let shared = Arc::new(Shared { log: Mutex::new(Log::default()), size, stop: AtomicBool::new(false) });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.stop.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { return };
                let shared = Arc::clone(&accepting);
                // A connection that breaks the protocol or goes away just ends.
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { shared, port }
    }

    pub(crate) fn uri(&self) -> String {
        format!("nbd://127.0.0.1:{}/store", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Now, as the log counts.
    pub(crate) fn moment(&self) -> Moment {
        self.shared.log().clock
    }

    /// What happened so far. The server stands still while the guard lives.
    pub(crate) fn log(&self) -> MutexGuard<'_, Log> {
        self.shared.log()
    }
}

impl Drop for LoggingServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

struct Request {
    flags: u16,
    kind: u16,
    cookie: [u8; 8],
    offset: u64,
    len: u32,
    data: Vec<u8>,
    received: Moment,
}

fn serve(mut stream: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    if !negotiate(&mut stream, shared.size)? {
        return Ok(());
    }
    let output = Arc::new(Mutex::new(stream.try_clone()?));
    let (sender, receiver) = mpsc::sync_channel::<Request>(64);
    let receiver = Arc::new(Mutex::new(receiver));
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        let (receiver, output, shared) = (Arc::clone(&receiver), Arc::clone(&output), Arc::clone(shared));
        workers.push(std::thread::spawn(move || {
            loop {
                let next = receiver.lock().expect("no worker panics").recv();
                let Ok(request) = next else { return };
                if answer(&request, &shared, &output).is_err() {
                    return;
                }
            }
        }));
    }
    let ended = read_requests(&mut stream, shared, &sender);
    drop(sender);
    for worker in workers {
        let _ = worker.join();
    }
    ended
}

fn read_requests(
    stream: &mut TcpStream,
    shared: &Shared,
    sender: &mpsc::SyncSender<Request>,
) -> io::Result<()> {
    loop {
        let mut head = [0; 28];
        stream.read_exact(&mut head)?;
        let (magic, len) = (be32(&head), be32(&head[24..]));
        let kind = u16::from_be_bytes([head[6], head[7]]);
        if magic != 0x2560_9513 || (kind <= 1 && len > PAYLOAD_LEN_MAX) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if kind == 2 {
            return Ok(());
        }
        let mut data = vec![0; if kind == 1 { len as usize } else { 0 }];
        stream.read_exact(&mut data)?;
        let request = Request {
            flags: u16::from_be_bytes([head[4], head[5]]),
            kind,
            cookie: head[8..16].try_into().expect("eight bytes"),
            offset: u64::from_be_bytes(head[16..24].try_into().expect("eight bytes")),
            len,
            data,
            received: shared.log().tick(),
        };
        if sender.send(request).is_err() {
            return Ok(());
        }
    }
}

fn answer(request: &Request, shared: &Shared, output: &Mutex<TcpStream>) -> io::Result<()> {
    let in_range = request.offset.checked_add(u64::from(request.len)).is_some_and(|end| end <= shared.size);
    let change = match request.kind {
        1 => Some(Change::Write(request.data.clone())),
        3 => Some(Change::Flush),
        4 => Some(Change::Trim(u64::from(request.len))),
        6 => Some(Change::Zero(u64::from(request.len))),
        _ => None,
    };
    let mut error = 0u32;
    let mut data = Vec::new();
    match change {
        _ if !in_range => error = 22,
        None if request.kind == 0 => data = shared.log().read_memory(request.offset, request.len as usize),
        None => error = 22,
        Some(change) => {
            let mut log = shared.log();
            log.apply(request.offset, &change);
            log.events.push(Event {
                offset: request.offset,
                change,
                fua: request.flags & 1 != 0,
                received: request.received,
                replied: None,
            });
            let at = log.events.len() - 1;
            drop(log);
            // The effect and the reply are two moments: another worker may take in a flush in between.
            std::thread::yield_now();
            let mut log = shared.log();
            let now = log.tick();
            log.events[at].replied = Some(now);
        }
    }
    let mut reply = Vec::with_capacity(16 + data.len());
    reply.extend_from_slice(&0x6744_6698u32.to_be_bytes());
    reply.extend_from_slice(&error.to_be_bytes());
    reply.extend_from_slice(&request.cookie);
    reply.extend_from_slice(&data);
    output.lock().expect("no worker panics").write_all(&reply)
}

/// The option haggling; `true` when the client entered the export.
fn negotiate(stream: &mut TcpStream, size: u64) -> io::Result<bool> {
    stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03")?;
    let mut client_flags = [0; 4];
    stream.read_exact(&mut client_flags)?;
    let no_zeroes = client_flags[3] & 2 != 0;
    loop {
        let mut head = [0; 16];
        stream.read_exact(&mut head)?;
        let (option, len) = (be32(&head[8..]), be32(&head[12..]));
        if &head[..8] != b"IHAVEOPT" || len > OPTION_LEN_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut data = vec![0; len as usize];
        stream.read_exact(&mut data)?;
        let mut export = size.to_be_bytes().to_vec();
        export.extend_from_slice(&FLAGS.to_be_bytes());
        match option {
            1 => {
                if !no_zeroes {
                    export.resize(export.len() + 124, 0);
                }
                stream.write_all(&export)?;
                return Ok(true);
            }
            2 => {
                option_reply(stream, option, 1, &[])?;
                return Ok(false);
            }
            6 | 7 => {
                let mut info = vec![0, 0];
                info.extend_from_slice(&export);
                option_reply(stream, option, 3, &info)?;
                let mut block_size = vec![0, 3];
                for bytes in [512u32, 4096, PAYLOAD_LEN_MAX] {
                    block_size.extend_from_slice(&bytes.to_be_bytes());
                }
                option_reply(stream, option, 3, &block_size)?;
                option_reply(stream, option, 1, &[])?;
                if option == 7 {
                    return Ok(true);
                }
            }
            _ => option_reply(stream, option, 0x8000_0001, &[])?, // ERR_UNSUP
        }
    }
}

fn option_reply(stream: &mut TcpStream, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut reply = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
    reply.extend_from_slice(&option.to_be_bytes());
    reply.extend_from_slice(&kind.to_be_bytes());
    reply.extend_from_slice(&u32::try_from(data.len()).expect("short").to_be_bytes());
    reply.extend_from_slice(data);
    stream.write_all(&reply)
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"))
}
