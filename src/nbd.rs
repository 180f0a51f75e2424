//! One NBD connection, from the hello to the last reply.
//!
//! The protocol core is synchronous and does no I/O: [`handshake`] negotiates, [`request`] judges
//! requests, [`reply`] lays out answers; each takes bytes or values and gives bytes or values, and
//! a fuzz target may call any of them with anything. Around it [`connection`] and `session`
//! move bytes between a [`transport`] and an [`Export`](crate::export::Export). Nothing here knows
//! of keys, ciphers or stores.
//!
//! All connections of an export share one [`Export`](crate::export::Export), so that
//! `NBD_FLAG_CAN_MULTI_CONN` is true by construction.

pub mod admission;
pub mod connection;
mod contexts;
pub mod errno;
pub mod handshake;
mod input;
pub mod reply;
pub mod request;
mod running;
mod session;
pub mod stop;
pub mod transport;

use crate::wire::option::BlockSizes;
use crate::wire::transmission::HeaderStyle;

/// Longest data of one request or reply, in bytes. 32 MiB: what every client may assume (proto.md
/// "Block size constraints") and what qemu's client sends at most.
pub const PAYLOAD_LEN_MAX: u32 = 1 << 25;

/// What `NBD_INFO_BLOCK_SIZE` says of every export. Any alignment is served, to the byte; whole
/// sectors are served without read-merge-write.
pub const BLOCK_SIZES: BlockSizes = BlockSizes { minimum: 1, preferred: 4096, maximum: PAYLOAD_LEN_MAX };

/// How replies are framed on a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplyStyle {
    /// Nothing was negotiated: 16-byte headers, read errors without text.
    Simple,
    /// Chunks, with compact or extended headers.
    Structured(HeaderStyle),
}

/// What a connection agreed on before transmission.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mode {
    /// Index of the export among those offered.
    pub export: usize,
    /// Framing of replies.
    pub replies: ReplyStyle,
    /// The number under which the client knows `base:allocation`, when it selected it.
    pub allocation_context: Option<u32>,
}

impl Mode {
    /// Framing of requests.
    #[must_use]
    pub fn headers(&self) -> HeaderStyle {
        match self.replies {
            ReplyStyle::Simple => HeaderStyle::Compact,
            ReplyStyle::Structured(style) => style,
        }
    }
}
