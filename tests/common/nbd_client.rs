//! A raw NBD client for tests: every byte is the test's own choice. And a server in a thread.
//!
//! The client is synchronous and gives up after [`PATIENCE`]; a test that would hang fails.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use sealbd::export::Export;
use sealbd::server::{Limits, Listener, Server};
use sealbd::wire::option::{
    ClientFlags, HELLO_LEN, Hello, Info, InfoKind, InfoQuery, MetaContextQuery, OPTION_REPLY_LEN, OptionKind,
    OptionReply, OptionReplyKind, OptionRequest,
};
use sealbd::wire::payload::{ErrorChunk, OffsetHole};
use sealbd::wire::transmission::{
    Chunk, ChunkFlags, ChunkKind, Command, CommandFlags, HeaderStyle, Request, SIMPLE_REPLY_LEN, SimpleReply,
};
use sealbd::wire::{Errno, TransmissionFlags};

/// How long the client waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A server on a unix socket, in a thread with its own runtime; stopped and joined when dropped.
pub(crate) struct TestServer {
    directory: tempfile::TempDir,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl TestServer {
    /// Serves `exports` by name.
    pub(crate) fn start<E: Export>(exports: Vec<(&str, Arc<E>)>, limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sock");
        let exports = exports.into_iter().map(|(name, export)| (name.to_owned(), export)).collect();
        let server = Server::new(exports, limits).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, listening) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = Listener::unix(&path).unwrap();
                ready.send(()).unwrap();
                let stopped = async { drop(stopped.await) };
                server.serve(vec![listener], stopped).await;
            });
        });
        listening.recv().unwrap();
        Self { directory, stop: Some(stop), thread: Some(thread) }
    }

    /// Where it listens.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("sock")
    }

    /// Tells it to stop; does not wait.
    pub(crate) fn begin_stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// Waits until it has stopped.
    pub(crate) fn join(&mut self) {
        self.begin_stop();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server does not panic");
        }
    }

    /// A client that has received the hello and sent its flags.
    pub(crate) fn client(&self) -> RawClient {
        let mut client = RawClient::connect(&self.path());
        client.hello();
        client.client_flags(3);
        client
    }

    /// A client in transmission.
    pub(crate) fn session(&self, name: &str, style: Style) -> RawClient {
        let mut client = self.client();
        client.go(name, style);
        client
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.begin_stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the server panicked");
        }
    }
}

/// What is negotiated before `NBD_OPT_GO`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Style {
    /// Nothing.
    Simple,
    /// Structured replies and `base:allocation`.
    Structured,
    /// Extended headers and `base:allocation`.
    Extended,
}

pub(crate) const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];

impl Style {
    pub(crate) fn headers(self) -> HeaderStyle {
        if self == Self::Extended { HeaderStyle::Extended } else { HeaderStyle::Compact }
    }
}

/// One reply, put together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Answer {
    pub(crate) cookie: u64,
    pub(crate) error: Errno,
    pub(crate) text: String,
    /// Chunks of a structured reply with their payloads.
    pub(crate) chunks: Vec<(Chunk, Vec<u8>)>,
    /// Data of a simple reply.
    pub(crate) data: Vec<u8>,
}

/// A connection on which the test says every byte.
pub(crate) struct RawClient {
    pub(crate) stream: UnixStream,
    pub(crate) style: Style,
    next_cookie: u64,
}

impl RawClient {
    pub(crate) fn connect(path: &Path) -> Self {
        Self::over(UnixStream::connect(path).unwrap())
    }

    pub(crate) fn over(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, style: Style::Simple, next_cookie: 1 }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn receive(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Asserts that the server closes the connection without another byte.
    pub(crate) fn assert_closed(&mut self) {
        match self.stream.read(&mut [0; 1]) {
            Ok(0) => {}
            Ok(_) => panic!("the server goes on talking"),
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {}
            Err(error) => panic!("the server did not close: {error}"),
        }
    }

    pub(crate) fn hello(&mut self) -> Hello {
        let bytes = self.receive(HELLO_LEN);
        Hello::decode(&bytes).unwrap()
    }

    pub(crate) fn client_flags(&mut self, flags: u32) {
        let mut out = Vec::new();
        ClientFlags(flags).encode(&mut out);
        self.send(&out);
    }

    pub(crate) fn option(&mut self, option: OptionKind, payload: &[u8]) {
        let mut out = Vec::new();
        OptionRequest::encode(option, payload, &mut out);
        self.send(&out);
    }

    pub(crate) fn option_reply(&mut self) -> (OptionReply, Vec<u8>) {
        let header = self.receive(OPTION_REPLY_LEN);
        let reply = OptionReply::decode(&header).unwrap();
        let payload = self.receive(reply.len as usize);
        (reply, payload)
    }

    /// Sends an option and collects the replies up to the last one.
    pub(crate) fn ask(&mut self, option: OptionKind, payload: &[u8]) -> Vec<(OptionReplyKind, Vec<u8>)> {
        self.option(option, payload);
        let mut replies = Vec::new();
        loop {
            let (reply, payload) = self.option_reply();
            assert_eq!(reply.option, option, "the reply names the option");
            replies.push((reply.kind, payload));
            if reply.kind == OptionReplyKind::ACK || reply.kind.is_error() {
                return replies;
            }
        }
    }

    /// The last reply to an option.
    pub(crate) fn verdict(&mut self, option: OptionKind, payload: &[u8]) -> OptionReplyKind {
        self.ask(option, payload).last().unwrap().0
    }

    /// Negotiates and enters transmission; returns what the server said of the export.
    pub(crate) fn go(&mut self, name: &str, style: Style) -> (u64, TransmissionFlags) {
        let option = match style {
            Style::Simple => None,
            Style::Structured => Some(OptionKind::STRUCTURED_REPLY),
            Style::Extended => Some(OptionKind::EXTENDED_HEADERS),
        };
        if let Some(option) = option {
            assert_eq!(self.verdict(option, &[]), OptionReplyKind::ACK);
            let query = meta_query(name, &["base:allocation"]);
            assert_eq!(self.ask(OptionKind::SET_META_CONTEXT, &query).len(), 2);
        }
        self.style = style;
        let replies = self.ask(OptionKind::GO, &info_query(name, &[]));
        assert_eq!(replies.last().unwrap().0, OptionReplyKind::ACK);
        export_info(&replies).expect("NBD_INFO_EXPORT always comes")
    }

    /// Sends a request's header; returns its cookie.
    pub(crate) fn request(&mut self, flags: CommandFlags, command: Command, offset: u64, len: u64) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut out = Vec::new();
        Request { flags, command, cookie, offset, len }.encode(self.style.headers(), &mut out);
        self.send(&out);
        cookie
    }

    /// Sends a write; returns its cookie.
    pub(crate) fn send_write(&mut self, flags: CommandFlags, offset: u64, data: &[u8]) -> u64 {
        let flags = if self.style == Style::Extended { flags.with(CommandFlags::PAYLOAD_LEN) } else { flags };
        let cookie = self.request(flags, Command::WRITE, offset, data.len() as u64);
        self.send(data);
        cookie
    }

    pub(crate) fn chunk(&mut self) -> (Chunk, Vec<u8>) {
        let style = self.style.headers();
        let header = self.receive(style.chunk_len());
        let chunk = Chunk::decode(style, &header).unwrap();
        let payload = self.receive(usize::try_from(chunk.len).unwrap());
        (chunk, payload)
    }

    /// The next reply. `data_len` is how much follows a simple reply without error.
    pub(crate) fn answer(&mut self, data_len: usize) -> Answer {
        if self.style == Style::Simple {
            let header = self.receive(SIMPLE_REPLY_LEN);
            let SimpleReply { error, cookie } = SimpleReply::decode(&header).unwrap();
            let data = if error == Errno::OK { self.receive(data_len) } else { Vec::new() };
            return Answer { cookie, error, text: String::new(), chunks: Vec::new(), data };
        }
        let mut chunks: Vec<(Chunk, Vec<u8>)> = Vec::new();
        loop {
            let (chunk, payload) = self.chunk();
            assert!(chunks.iter().all(|(first, _)| first.cookie == chunk.cookie), "chunks are not mixed");
            chunks.push((chunk, payload));
            if chunk.flags.contains(ChunkFlags::DONE) {
                break;
            }
        }
        let (last, payload) = chunks.last().unwrap();
        let cookie = last.cookie;
        let (error, text) = if last.kind.is_error() {
            let chunk = ErrorChunk::decode(last.kind, payload).unwrap();
            (chunk.error, chunk.text.to_owned())
        } else {
            (Errno::OK, String::new())
        };
        Answer { cookie, error, text, chunks, data: Vec::new() }
    }

    /// Sends a request without payload and gives the error value of its reply.
    pub(crate) fn errno(&mut self, flags: CommandFlags, command: Command, offset: u64, len: u64) -> Errno {
        let cookie = self.request(flags, command, offset, len);
        let data_len = if command == Command::READ { len } else { 0 };
        let answer = self.answer(usize::try_from(data_len).unwrap());
        assert_eq!(answer.cookie, cookie);
        answer.error
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Errno {
        let cookie = self.send_write(CommandFlags::NONE, offset, data);
        let answer = self.answer(0);
        assert_eq!(answer.cookie, cookie);
        answer.error
    }

    pub(crate) fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let cookie = self.request(CommandFlags::NONE, Command::READ, offset, len as u64);
        let answer = self.answer(len);
        assert_eq!(answer.cookie, cookie);
        assemble(&answer, offset, len)
    }

    pub(crate) fn disconnect(&mut self) {
        self.request(CommandFlags::NONE, Command::DISC, 0, 0);
    }
}

/// The data of a read's reply; asserts that the chunks cover the range exactly once.
pub(crate) fn assemble(answer: &Answer, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
    if answer.error != Errno::OK {
        return Err(answer.error);
    }
    if answer.chunks.is_empty() {
        return Ok(answer.data.clone());
    }
    let mut data: Vec<Option<u8>> = vec![None; len];
    let mut put = |at: u64, bytes: &[u8]| {
        let start = usize::try_from(at.checked_sub(offset).expect("chunk inside the range")).unwrap();
        for (slot, byte) in data[start..start + bytes.len()].iter_mut().zip(bytes) {
            assert!(slot.replace(*byte).is_none(), "chunks do not overlap");
        }
    };
    for (chunk, payload) in &answer.chunks {
        match chunk.kind {
            ChunkKind::NONE => {}
            ChunkKind::OFFSET_DATA => {
                let (at, bytes) = payload.split_first_chunk::<8>().unwrap();
                put(u64::from_be_bytes(*at), bytes);
            }
            ChunkKind::OFFSET_HOLE => {
                let hole = OffsetHole::decode(payload).unwrap();
                put(hole.offset, &vec![0; hole.len as usize]);
            }
            other => panic!("{other:?} in a read"),
        }
    }
    Ok(data.into_iter().map(|byte| byte.expect("chunks cover the range")).collect())
}

pub(crate) fn info_query(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut out = Vec::new();
    InfoQuery { name, infos: infos.iter().map(|kind| InfoKind(*kind)).collect() }.encode(&mut out);
    out
}

pub(crate) fn meta_query(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    MetaContextQuery { name, queries: queries.to_vec() }.encode(&mut out);
    out
}

/// `NBD_INFO_EXPORT` among an option's replies.
pub(crate) fn export_info(replies: &[(OptionReplyKind, Vec<u8>)]) -> Option<(u64, TransmissionFlags)> {
    replies.iter().find_map(|(kind, payload)| match Info::decode(payload) {
        Ok(Info::Export { size, flags }) if *kind == OptionReplyKind::INFO => Some((size, flags)),
        _ => None,
    })
}
