//! An NBD server that does what a test tells it, message by message: for the things that no honest
//! server does, or not at the right moment.

#![allow(dead_code, reason = "every test uses a part of this")]

use std::num::NonZeroUsize;
use std::time::Duration;

use sealbd::store::nbd::{NbdAddress, NbdOptions, NbdStore, NbdTarget};
use sealbd::store::{Access, StoreError};
use sealbd::wire::option::{
    ClientFlags, HELLO_LEN, HandshakeFlags, Hello, Info, OPTION_REQUEST_LEN, OptionKind, OptionReply,
    OptionReplyKind, OptionRequest,
};
use sealbd::wire::payload::encode_offset_data;
use sealbd::wire::transmission::{Chunk, ChunkFlags, ChunkKind, Command, HeaderStyle, Request, SimpleReply};
use sealbd::wire::{Errno, TransmissionFlags};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// Size of the export, unless a test offers another.
pub(crate) const SIZE: u64 = 1 << 20;

/// How long a test waits for what must happen: an upper bound, never slept through.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the server says in the handshake.
#[derive(Clone, Copy)]
pub(crate) struct Offer {
    pub(crate) size: u64,
    pub(crate) flags: TransmissionFlags,
    pub(crate) structured: bool,
}

/// One connection, structured replies, FLUSH and FUA.
pub(crate) const OFFER: Offer = Offer {
    size: SIZE,
    flags: TransmissionFlags::HAS_FLAGS.with(TransmissionFlags::SEND_FLUSH).with(TransmissionFlags::SEND_FUA),
    structured: true,
};

/// A client that loses patience soon.
pub(crate) fn hasty() -> NbdOptions {
    NbdOptions {
        connections: NonZeroUsize::MIN,
        outage_max: Duration::from_millis(300),
        silence_max: PATIENCE,
        handshake_max: PATIENCE,
    }
}

/// A client that waits for the test to go on.
pub(crate) fn patient() -> NbdOptions {
    NbdOptions { outage_max: PATIENCE, ..hasty() }
}

/// Fails the test when something does not happen.
pub(crate) async fn in_time<T>(what: &str, happens: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, happens).await;
    waited.unwrap_or_else(|_| panic!("did not happen: {what}"))
}

/// Where clients knock.
pub(crate) struct Door {
    listener: UnixListener,
    directory: TempDir,
}

impl Door {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let listener = UnixListener::bind(directory.path().join("socket")).expect("the directory is ours");
        Self { listener, directory }
    }

    pub(crate) fn target(&self) -> NbdTarget {
        let address = NbdAddress::Unix(self.directory.path().join("socket"));
        NbdTarget { address, export: "disk".into() }
    }

    /// The next connection, before any handshake.
    pub(crate) async fn knock(&self) -> Peer {
        let (stream, _) =
            in_time("a connection", self.listener.accept()).await.expect("the listener listens");
        Peer { stream }
    }

    /// The next connection, in transmission.
    pub(crate) async fn accept(&self, offer: Offer) -> Peer {
        let mut peer = self.knock().await;
        peer.shake_hands(offer).await;
        peer
    }

    /// A store for reading, and the other end of its connection.
    pub(crate) async fn reader(&self, offer: Offer, options: NbdOptions) -> (NbdStore, Peer) {
        let open = NbdStore::open(self.target(), Access::ReadOnly, options);
        let (store, peer) = tokio::join!(open, self.accept(offer));
        (store.expect("an honest handshake"), peer)
    }

    /// A store for writing, and the other end of its first connection, the first flush answered.
    pub(crate) async fn writer(&self, offer: Offer, options: NbdOptions) -> (NbdStore, Peer) {
        let open = NbdStore::open(self.target(), Access::ReadWrite, options);
        let serve = async {
            let mut peer = self.accept(offer).await;
            peer.answer(Command::FLUSH).await;
            peer
        };
        let (store, peer) = tokio::join!(open, serve);
        (store.expect("an honest handshake"), peer)
    }

    /// What opening comes to when the server behaves like `serve`.
    pub(crate) async fn open_against(
        &self,
        options: NbdOptions,
        serve: impl AsyncFnOnce(Peer),
    ) -> StoreError {
        let open = NbdStore::open(self.target(), Access::ReadOnly, options);
        let serve = async { serve(self.knock().await).await };
        tokio::pin!(serve);
        // The server may be in the middle of something endless.
        let opened = tokio::select! {
            opened = in_time("an end of the handshake", open) => opened,
            () = async { serve.await; std::future::pending().await } => unreachable!("pending never ends"),
        };
        opened.err().expect("no honest server would do that")
    }
}

/// The server's end of one connection.
pub(crate) struct Peer {
    pub(crate) stream: UnixStream,
}

impl Peer {
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        // The client may have hung up on what was sent before: that is for the test to find out.
        let _ = self.stream.write_all(bytes).await;
    }

    pub(crate) async fn receive(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        in_time("a message", self.stream.read_exact(&mut bytes)).await.expect("the client sends");
        bytes
    }

    /// Waits until the client has closed the connection.
    pub(crate) async fn closed(&mut self) {
        let mut rest = Vec::new();
        // A reset is a close, too.
        let _ = in_time("the end of the connection", self.stream.read_to_end(&mut rest)).await;
    }

    pub(crate) async fn hello(&mut self) {
        let mut bytes = Vec::new();
        Hello { flags: HandshakeFlags::FIXED_NEWSTYLE.with(HandshakeFlags::NO_ZEROES) }.encode(&mut bytes);
        assert_eq!(bytes.len(), HELLO_LEN);
        self.send(&bytes).await;
        let flags = ClientFlags::decode(&self.receive(4).await).expect("the client's flags");
        assert_eq!(flags, ClientFlags::FIXED_NEWSTYLE.with(ClientFlags::NO_ZEROES));
    }

    /// Receives an option of a certain kind.
    pub(crate) async fn option(&mut self, kind: OptionKind) -> Vec<u8> {
        let request = OptionRequest::decode(&self.receive(OPTION_REQUEST_LEN).await).expect("an option");
        assert_eq!(request.option, kind);
        self.receive(request.len as usize).await
    }

    pub(crate) async fn option_reply(&mut self, option: OptionKind, kind: OptionReplyKind, payload: &[u8]) {
        let mut bytes = Vec::new();
        OptionReply::encode(option, kind, payload, &mut bytes);
        self.send(&bytes).await;
    }

    pub(crate) async fn structured_replies(&mut self, agreed: bool) {
        self.option(OptionKind::STRUCTURED_REPLY).await;
        let kind = if agreed { OptionReplyKind::ACK } else { OptionReplyKind::ERR_UNSUP };
        self.option_reply(OptionKind::STRUCTURED_REPLY, kind, &[]).await;
    }

    /// Everything up to the `GO` of the client, received but not answered.
    pub(crate) async fn up_to_go(&mut self) {
        self.hello().await;
        self.structured_replies(true).await;
        self.option(OptionKind::GO).await;
    }

    pub(crate) async fn info(&mut self, info: Info<'_>) {
        let mut payload = Vec::new();
        info.encode(&mut payload);
        self.option_reply(OptionKind::GO, OptionReplyKind::INFO, &payload).await;
    }

    pub(crate) async fn shake_hands(&mut self, offer: Offer) {
        self.hello().await;
        self.structured_replies(offer.structured).await;
        self.option(OptionKind::GO).await;
        self.info(Info::Export { size: offer.size, flags: offer.flags }).await;
        self.option_reply(OptionKind::GO, OptionReplyKind::ACK, &[]).await;
    }

    /// The next request, which must be of a certain kind, and the data of a write.
    pub(crate) async fn request(&mut self, command: Command) -> (Request, Vec<u8>) {
        let header = self.receive(HeaderStyle::Compact.request_len()).await;
        let request = Request::decode(HeaderStyle::Compact, &header).expect("a request");
        assert_eq!(request.command, command, "{request:?}");
        let len = if command == Command::WRITE { usize::try_from(request.len).expect("32 bits") } else { 0 };
        (request, self.receive(len).await)
    }

    pub(crate) async fn simple_reply(&mut self, cookie: u64, error: Errno) {
        let mut bytes = Vec::new();
        SimpleReply { error, cookie }.encode(&mut bytes);
        self.send(&bytes).await;
    }

    /// Answers the next request, which must be of a certain kind and not a read, well.
    pub(crate) async fn answer(&mut self, command: Command) -> Request {
        let (request, _) = self.request(command).await;
        self.simple_reply(request.cookie, Errno::OK).await;
        request
    }

    /// Answers a read, all bytes being `fill`.
    pub(crate) async fn answer_read(&mut self, request: Request, fill: u8) {
        let len = usize::try_from(request.len).expect("32 bits");
        self.send(&data_chunk(request.cookie, ChunkFlags::DONE, request.offset, &vec![fill; len])).await;
    }
}

/// A chunk whose header tells the truth about its payload.
pub(crate) fn chunk(cookie: u64, flags: ChunkFlags, kind: ChunkKind, payload: &[u8]) -> Vec<u8> {
    lying_chunk(cookie, flags, kind, payload.len() as u64, payload)
}

/// A chunk whose header says that its payload is `len` bytes long.
pub(crate) fn lying_chunk(
    cookie: u64,
    flags: ChunkFlags,
    kind: ChunkKind,
    len: u64,
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    Chunk { flags, kind, cookie, offset: 0, len }.encode(HeaderStyle::Compact, &mut bytes);
    bytes.extend_from_slice(payload);
    bytes
}

/// A chunk of data.
pub(crate) fn data_chunk(cookie: u64, flags: ChunkFlags, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    encode_offset_data(offset, &mut payload);
    payload.extend_from_slice(data);
    chunk(cookie, flags, ChunkKind::OFFSET_DATA, &payload)
}
