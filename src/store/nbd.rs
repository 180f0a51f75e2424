//! A store on a remote NBD server: our own client, asynchronous, over several connections.
//!
//! The server is not trusted: every reply is checked against what was asked, a breach of the protocol
//! ends the connection, and no length of the server's is allocated before it was bounded.
//!
//! # Across a lost connection
//! A lost connection is made again, with growing waits. Requests that were not answered are made again
//! on another connection, for at most [`NbdOptions::outage_max`]. That is harmless, because a read or
//! write done twice is the same as done once, and because the volume never has two writes to the same
//! range on their way. The socket of a lost connection is closed before anything is made again. What
//! the server itself still does with requests that it had received, NBD gives no means to know or
//! stop; the volume writes each place once per generation and authenticates what it reads, so a write
//! that comes too late is noticed as damage, never taken for data.
//!
//! # What a sync may claim
//! A server may keep answered writes in a cache of its own until a flush. When a connection is lost the
//! server may have been restarted, and its cache with it; whether it was, a client cannot tell. So:
//! - When *any* connection is lost while a write is answered that no good flush covers, the store is
//!   in doubt: the sync under way and every later one fail with [`StoreError::SyncFailed`]. The volume
//!   then stops, and whoever opens it again starts from what is really there.
//! - When everything answered was flushed before, a lost flush is simply made again.
//! - A flush goes over the oldest connection. `CAN_MULTI_CONN` makes it cover all of them, and the
//!   oldest has lived through every unsynced write: had the server been restarted since, it would be
//!   gone too. A younger one might reach a restarted server, whose flush says nothing.
//! - A refused flush is final, as with files. A refused durable write puts what is unsynced in doubt,
//!   because the server's operating system may have reported a failure only this once.
//! - Opening for writing flushes first, so that what is read from then on cannot vanish.
//!
//! A server without `NBD_CMD_FLUSH` is refused for writing: nothing there could be made durable.

mod assembly;
mod connection;
mod handshake;
mod ledger;
mod pool;

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use self::connection::{Ask, Refusal};
use self::handshake::Agreement;
use self::pool::{Pool, PoolError};
use super::{Access, BoxFuture, Capability, Persist, SlotStore, StoreError, whole_blocks};
use crate::wire::transmission::{Command, CommandFlags};
use crate::wire::{Errno, TransmissionFlags};

/// Longest payload, in bytes: what every server of the field takes (proto.md: 32 MiB by default).
const IO_BYTES_MAX: u32 = 32 << 20;

/// Longest range of one request without payload, in bytes; the protocol has 32 bits for it.
const RANGE_BYTES_MAX: u32 = 1 << 30;

/// Characters kept of what a server says for people.
const SAID_CHARS_MAX: usize = 200;

/// An export of an NBD server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NbdTarget {
    /// Where the server listens.
    pub address: NbdAddress,
    /// The export's name; empty is the server's default. At most 4096 bytes.
    pub export: String,
}

/// Where an NBD server listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NbdAddress {
    /// A TCP port.
    Tcp {
        /// Name or address, an IPv6 address without brackets.
        host: String,
        /// Port number.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

/// How the client behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NbdOptions {
    /// Connections, if the server advertises `CAN_MULTI_CONN`; else one.
    pub connections: NonZeroUsize,
    /// For how long a request waits for a server that went away.
    pub outage_max: Duration,
    /// For how long a server may leave requests unanswered without any sign of life. Long, because
    /// a flush of much data takes its time; a host that died is noticed by TCP earlier.
    pub silence_max: Duration,
    /// For how long connecting and negotiating may take together.
    pub handshake_max: Duration,
}

impl Default for NbdOptions {
    fn default() -> Self {
        Self {
            connections: NonZeroUsize::new(4).expect("four is not zero"),
            outage_max: Duration::from_secs(30),
            silence_max: Duration::from_secs(120),
            handshake_max: Duration::from_secs(10),
        }
    }
}

/// A store on a remote NBD server.
pub struct NbdStore {
    pool: Arc<Pool>,
    name: String,
    capability: Capability,
}

/// Why there is no connection.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Loss {
    /// The server, or the way to it, is gone.
    Gone(String),
    /// The server broke the protocol.
    Protocol(String),
    /// The server does not want us, or cannot be used.
    Refused(String),
    /// Nobody needs it any more.
    Finished,
}

impl NbdStore {
    /// Connects to a server and opens an export. Needs a tokio runtime, on which it leaves one task
    /// per connection for as long as the store lives.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`] when there is no server or it does not answer in time,
    /// [`StoreError::Protocol`] when it breaks the protocol, [`StoreError::Open`] when it refuses or
    /// cannot be used, [`StoreError::SyncFailed`] when it fails the first flush.
    pub async fn open(target: NbdTarget, access: Access, options: NbdOptions) -> Result<Self, StoreError> {
        let name = target.to_string();
        let pool = Pool::open(target, options).await.map_err(|loss| match loss {
            Loss::Gone(why) => StoreError::Unreachable(format!("{name}: {why}")),
            Loss::Protocol(what) => StoreError::Protocol(format!("{name}: {what}")),
            Loss::Refused(_) | Loss::Finished => StoreError::Open(format!("{name}: {loss}")),
        })?;
        let agreement = pool.agreement();
        if access == Access::ReadWrite {
            if agreement.flags.contains(TransmissionFlags::READ_ONLY) {
                return Err(StoreError::Open(format!("{name}: the export is read-only")));
            }
            if !agreement.flags.contains(TransmissionFlags::SEND_FLUSH) {
                let why = "the server has no FLUSH, so nothing there could be made durable";
                return Err(StoreError::Open(format!("{name}: {why}")));
            }
        }
        let store = Self { pool, name, capability: capability(agreement, access) };
        if access == Access::ReadWrite {
            store.flush().await?;
        }
        Ok(store)
    }

    /// How many connections are up right now.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.pool.live_count()
    }

    /// Why a connection was last lost or could not be made, for people.
    #[must_use]
    pub fn last_loss(&self) -> Option<String> {
        self.pool.last_loss().map(|loss| loss.to_string())
    }

    /// Makes a range zero without sending zeros. Offset and length are multiples of
    /// [`Capability::write_unit`].
    ///
    /// # Errors
    /// As [`SlotStore::write_at`]; [`StoreError::Io`] with `Unsupported` when the server cannot.
    pub async fn write_zeroes(&self, offset: u64, len: u64, persist: Persist) -> Result<(), StoreError> {
        self.capability.check_discard(offset, len)?;
        if !self.has(TransmissionFlags::SEND_WRITE_ZEROES) {
            let source = std::io::ErrorKind::Unsupported.into();
            return Err(StoreError::Io { context: "write zeros on the NBD server", source });
        }
        let flags = self.persist_flags(persist);
        for (at, piece) in pieces(offset, len, RANGE_BYTES_MAX) {
            let ask =
                Ask { command: Command::WRITE_ZEROES, flags, offset: at, len: piece, payload: Vec::new() };
            self.change(&ask, "write zeros on the NBD server").await?;
        }
        self.settle(persist).await
    }

    async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        self.capability.check_read(offset, len)?;
        let block = u64::from(self.pool.agreement().blocks.minimum);
        let start = offset - offset % block;
        let end = (offset + len as u64).next_multiple_of(block);
        let skip = usize::try_from(offset - start).expect("shorter than a block");
        let mut bytes = Vec::new();
        for (at, piece) in pieces(start, end - start, self.capability.io_bytes_max) {
            let flags = CommandFlags::NONE;
            let ask = Ask { command: Command::READ, flags, offset: at, len: piece, payload: Vec::new() };
            let data = self.perform(&ask, "read from the NBD server").await?;
            if bytes.is_empty() { bytes = data } else { bytes.extend_from_slice(&data) }
        }
        bytes.drain(..skip);
        bytes.truncate(len);
        Ok(bytes)
    }

    async fn write(&self, offset: u64, payload: Vec<Bytes>, persist: Persist) -> Result<(), StoreError> {
        let len = self.capability.check_write(offset, &payload)?;
        if len == 0 {
            return Ok(());
        }
        let flags = self.persist_flags(persist);
        let len = u32::try_from(len).expect("at most io_bytes_max");
        let ask = Ask { command: Command::WRITE, flags, offset, len, payload };
        self.change(&ask, "write to the NBD server").await?;
        self.settle(persist).await
    }

    async fn flush(&self) -> Result<(), StoreError> {
        let ledger = &self.pool.ledger;
        let covers = ledger.sync_started().map_err(StoreError::SyncFailed)?;
        let ask = Ask {
            command: Command::FLUSH,
            flags: CommandFlags::NONE,
            offset: 0,
            len: 0,
            payload: Vec::new(),
        };
        let may_repeat = || ledger.may_repeat_sync().map_err(StoreError::SyncFailed);
        match self.pool.perform_on_oldest(&ask, may_repeat).await {
            Ok(()) => ledger.sync_succeeded(covers).map_err(StoreError::SyncFailed),
            Err(PoolError::Refused(refusal)) => {
                let reason = format!("{} answered {}", self.name, refusal.into_io());
                Err(StoreError::SyncFailed(ledger.sync_refused(&reason)))
            }
            Err(PoolError::Failed(error)) => Err(error),
        }
    }

    async fn give_back(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.capability.check_discard(offset, len)?;
        if !self.capability.discard {
            return Ok(());
        }
        let (start, len) = whole_blocks(offset, len, self.pool.agreement().blocks.minimum);
        for (at, piece) in pieces(start, len, RANGE_BYTES_MAX) {
            let flags = CommandFlags::NONE;
            let ask = Ask { command: Command::TRIM, flags, offset: at, len: piece, payload: Vec::new() };
            match self.pool.perform(&ask).await {
                // A hint that the server does not take is no failure.
                Ok(_) | Err(PoolError::Refused(_)) => {}
                Err(PoolError::Failed(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Performs a request that changes data.
    async fn change(&self, ask: &Ask, context: &'static str) -> Result<(), StoreError> {
        let changed = self.perform(ask, context).await;
        if changed.is_err() && ask.flags.contains(CommandFlags::FUA) {
            self.pool.ledger.doubt(&format!("{} failed a durable write", self.name));
        }
        changed.map(|_| ())
    }

    async fn perform(&self, ask: &Ask, context: &'static str) -> Result<Vec<u8>, StoreError> {
        self.pool.perform(ask).await.map_err(|error| match error {
            PoolError::Failed(error) => error,
            PoolError::Refused(refusal) => StoreError::from_io(context, refusal.into_io()),
        })
    }

    /// What makes a single request durable, where the server can.
    fn persist_flags(&self, persist: Persist) -> CommandFlags {
        match persist {
            Persist::Durable if self.has(TransmissionFlags::SEND_FUA) => CommandFlags::FUA,
            Persist::Durable | Persist::Volatile => CommandFlags::NONE,
        }
    }

    /// Makes what was just written durable, where the requests themselves could not.
    async fn settle(&self, persist: Persist) -> Result<(), StoreError> {
        match persist {
            Persist::Durable if !self.has(TransmissionFlags::SEND_FUA) => self.flush().await,
            Persist::Durable | Persist::Volatile => Ok(()),
        }
    }

    fn has(&self, ability: TransmissionFlags) -> bool {
        self.pool.agreement().flags.contains(ability)
    }
}

impl SlotStore for NbdStore {
    fn capability(&self) -> Capability {
        self.capability
    }

    fn describe(&self) -> String {
        self.name.clone()
    }

    fn read_at(&self, offset: u64, len: usize) -> BoxFuture<'_, Result<Vec<u8>, StoreError>> {
        Box::pin(self.read(offset, len))
    }

    fn write_at(
        &self,
        offset: u64,
        parts: Vec<Bytes>,
        persist: Persist,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.write(offset, parts, persist))
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.flush())
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.give_back(offset, len))
    }
}

/// What the volume may do with an export.
fn capability(agreement: Agreement, access: Access) -> Capability {
    let Agreement { size, flags, blocks, replies: _ } = agreement;
    let write_unit = if blocks.minimum <= 512 { 512 } else { 4096 };
    // A server that prefers 512 says that it reads nothing before it writes less than a page.
    let best_unit = if blocks.preferred <= 512 { write_unit } else { 4096 };
    let io_bytes_max = blocks.maximum.min(IO_BYTES_MAX);
    Capability {
        // Only whole units can be written.
        size: size - size % u64::from(write_unit),
        write_unit,
        best_unit,
        io_bytes_max: io_bytes_max - io_bytes_max % 4096,
        discard: access == Access::ReadWrite && flags.contains(TransmissionFlags::SEND_TRIM),
        read_only: access == Access::ReadOnly,
        prefers_written: false,
    }
}

/// Cuts a range into pieces of at most `len_max` bytes.
fn pieces(offset: u64, len: u64, len_max: u32) -> impl Iterator<Item = (u64, u32)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        let piece = u32::try_from(end - at).unwrap_or(u32::MAX).min(len_max);
        let start = at;
        at += u64::from(piece);
        (piece > 0).then_some((start, piece))
    })
}

/// What a server says, fit for a terminal: control characters gone, not longer than a line or two.
fn printable(said: &str) -> String {
    said.chars().filter(|c| !c.is_control()).take(SAID_CHARS_MAX).collect::<String>().trim().to_owned()
}

impl Refusal {
    /// The error as the operating system would say it; numbers outside of proto.md are `EINVAL`, as
    /// it demands.
    fn into_io(self) -> std::io::Error {
        let Self { error, text } = self;
        let number = match error {
            Errno::EPERM
            | Errno::EIO
            | Errno::ENOMEM
            | Errno::ENOSPC
            | Errno::EOVERFLOW
            | Errno::ENOTSUP
            | Errno::ESHUTDOWN => error,
            _ => Errno::EINVAL,
        };
        let plain = std::io::Error::from_raw_os_error(i32::try_from(number.0).expect("small numbers"));
        if text.is_empty() { plain } else { std::io::Error::new(plain.kind(), format!("{plain}: {text}")) }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone(why) => write!(f, "{why}"),
            Self::Protocol(what) => write!(f, "the server broke the protocol: {what}"),
            Self::Refused(why) => write!(f, "the server cannot be used: {why}"),
            Self::Finished => write!(f, "closed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::option::BlockSizes;

    fn agreed(size: u64, minimum: u32, preferred: u32, maximum: u32) -> Agreement {
        Agreement {
            size,
            flags: TransmissionFlags::NONE,
            blocks: BlockSizes { minimum, preferred, maximum },
            replies: handshake::ReplyStyle::Structured,
        }
    }

    #[test]
    fn block_sizes_of_the_server_become_limits_of_the_store() {
        let limits = |agreement| {
            let found = capability(agreement, Access::ReadWrite);
            (found.size, found.write_unit, found.best_unit, found.io_bytes_max)
        };
        assert_eq!(limits(agreed(10_000, 1, 4096, 32 << 20)), (9728, 512, 4096, 32 << 20));
        assert_eq!(limits(agreed(10_000, 512, 512, u32::MAX)), (9728, 512, 512, 32 << 20));
        assert_eq!(limits(agreed(10_000, 1024, 1024, u32::MAX)), (8192, 4096, 4096, 32 << 20));
        assert_eq!(limits(agreed(10_000, 512, 65536, (1 << 20) + 512)), (9728, 512, 4096, 1 << 20));
    }

    #[test]
    fn pieces_cover_a_range_without_gaps() {
        assert_eq!(pieces(5, 0, 10).count(), 0);
        assert_eq!(pieces(5, 25, 10).collect::<Vec<_>>(), [(5, 10), (15, 10), (25, 5)]);
        let huge: Vec<_> = pieces(0, 1 << 33, RANGE_BYTES_MAX).collect();
        assert_eq!(huge.len(), 8);
        assert!(huge.iter().all(|(_, len)| *len == RANGE_BYTES_MAX));
    }

    #[test]
    fn what_a_server_says_cannot_drive_a_terminal() {
        assert_eq!(printable("a\x1b[2Jb\r\n"), "a[2Jb");
        assert_eq!(printable(&"x".repeat(5000)).len(), SAID_CHARS_MAX);
    }

    #[test]
    fn error_numbers_outside_of_the_protocol_are_invalid_arguments() {
        let kind = |number| Refusal { error: Errno(number), text: "why".into() }.into_io().kind();
        assert_eq!(kind(28), std::io::ErrorKind::StorageFull);
        assert_eq!(kind(0xffff_ffff), std::io::ErrorKind::InvalidInput);
        assert_eq!(kind(2), std::io::ErrorKind::InvalidInput);
    }
}
