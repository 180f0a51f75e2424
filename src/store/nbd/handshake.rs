//! Reaching an NBD server and agreeing with it on an export (proto.md "Fixed newstyle negotiation").
//!
//! The caller sets the deadline for all of it. What the server sends is bounded here: the length of
//! every message, and their number.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::{Loss, NbdAddress, printable};
use crate::wire::option::{
    BlockSizes, ClientFlags, HELLO_LEN, HandshakeFlags, Hello, Info, InfoKind, InfoQuery, OPTION_REPLY_LEN,
    OptionKind, OptionReply, OptionReplyKind, OptionRequest,
};
use crate::wire::{TransmissionFlags, WireError};

/// Replies to one option: a server has four kinds of information about an export and may repeat itself.
const OPTION_REPLIES_MAX: u32 = 64;

/// Bytes in one reply to an option: more than the longest string and the fields around it.
const OPTION_REPLY_BYTES_MAX: u32 = 16 << 10;

/// Largest minimum block: what the volume writes is made of blocks of 4096 bytes.
const MINIMUM_BLOCK_MAX: u32 = 4096;

/// Block sizes of a server that names none (proto.md "Block size constraints").
const DEFAULT_BLOCKS: BlockSizes = BlockSizes { minimum: 1, preferred: 4096, maximum: 32 << 20 };

/// How long the peer of a TCP connection may stay silent before the kernel gives it up.
const TCP_SILENCE_MAX: Duration = Duration::from_secs(30);

/// Both directions of a connection.
pub(super) struct Stream {
    pub(super) reader: Box<dyn AsyncRead + Send + Unpin>,
    pub(super) writer: Box<dyn AsyncWrite + Send + Unpin>,
}

/// What was agreed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Agreement {
    /// Bytes of the export.
    pub(super) size: u64,
    pub(super) flags: TransmissionFlags,
    pub(super) blocks: BlockSizes,
    pub(super) replies: ReplyStyle,
}

/// How the server answers reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ReplyStyle {
    Simple,
    Structured,
}

/// Connects to `address`.
pub(super) async fn connect(address: &NbdAddress) -> io::Result<Stream> {
    match address {
        NbdAddress::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            notice_silence(&stream)?;
            let (reader, writer) = stream.into_split();
            Ok(Stream { reader: Box::new(reader), writer: Box::new(writer) })
        }
        NbdAddress::Unix(path) => {
            let (reader, writer) = UnixStream::connect(path).await?.into_split();
            Ok(Stream { reader: Box::new(reader), writer: Box::new(writer) })
        }
    }
}

/// Lets the kernel find out when the host behind a connection is gone, idle or not.
fn notice_silence(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    let millis = u32::try_from(TCP_SILENCE_MAX.as_millis()).expect("half a minute");
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, TCP_SILENCE_MAX / 2)?;
    sockopt::set_tcp_keepintvl(stream, TCP_SILENCE_MAX / 6)?;
    sockopt::set_tcp_user_timeout(stream, millis)?;
    Ok(())
}

/// Agrees with the server on `export` and leaves the stream in transmission.
pub(super) async fn negotiate(stream: &mut Stream, export: &str) -> Result<Agreement, Loss> {
    let hello = Hello::decode(&receive::<HELLO_LEN>(stream).await?)?;
    if !hello.flags.contains(HandshakeFlags::FIXED_NEWSTYLE) {
        return Err(Loss::Refused("it does not speak fixed newstyle".into()));
    }
    let mut flags = ClientFlags::FIXED_NEWSTYLE;
    if hello.flags.contains(HandshakeFlags::NO_ZEROES) {
        flags = flags.with(ClientFlags::NO_ZEROES);
    }
    let mut message = Vec::new();
    flags.encode(&mut message);
    OptionRequest::encode(OptionKind::STRUCTURED_REPLY, &[], &mut message);
    send(stream, &message).await?;
    let replies = structured_replies(stream).await?;

    let mut query = Vec::new();
    InfoQuery { name: export, infos: vec![InfoKind::BLOCK_SIZE] }.encode(&mut query);
    message.clear();
    OptionRequest::encode(OptionKind::GO, &query, &mut message);
    send(stream, &message).await?;
    let (size, flags, blocks) = go(stream).await?;
    Ok(Agreement { size, flags, blocks, replies })
}

async fn structured_replies(stream: &mut Stream) -> Result<ReplyStyle, Loss> {
    let (kind, payload) = option_reply(stream, OptionKind::STRUCTURED_REPLY).await?;
    match kind {
        OptionReplyKind::ACK if payload.is_empty() => Ok(ReplyStyle::Structured),
        OptionReplyKind::ERR_TLS_REQD => Err(refusal(kind, &payload)),
        _ if kind.is_error() => Ok(ReplyStyle::Simple),
        _ => Err(unexpected(OptionKind::STRUCTURED_REPLY, kind)),
    }
}

async fn go(stream: &mut Stream) -> Result<(u64, TransmissionFlags, BlockSizes), Loss> {
    let mut export = None;
    let mut blocks = DEFAULT_BLOCKS;
    for _ in 0..OPTION_REPLIES_MAX {
        let (kind, payload) = option_reply(stream, OptionKind::GO).await?;
        match kind {
            OptionReplyKind::INFO => match Info::decode(&payload)? {
                Info::Export { size, flags } => export = Some(sane_export(size, flags)?),
                Info::BlockSize(sizes) => blocks = sane_blocks(sizes)?,
                Info::Name(_) | Info::Description(_) | Info::Unknown(_) => {}
            },
            OptionReplyKind::ACK => {
                let (size, flags) =
                    export.ok_or_else(|| Loss::Protocol("it did not tell the size of the export".into()))?;
                return Ok((size, flags, blocks));
            }
            _ if kind.is_error() => return Err(refusal(kind, &payload)),
            _ => return Err(unexpected(OptionKind::GO, kind)),
        }
    }
    Err(Loss::Protocol(format!("more than {OPTION_REPLIES_MAX} replies to one option")))
}

fn sane_export(size: u64, flags: TransmissionFlags) -> Result<(u64, TransmissionFlags), Loss> {
    if i64::try_from(size).is_err() {
        return Err(Loss::Protocol(format!("the export's size {size:#x} is negative")));
    }
    let known = flags.contains(TransmissionFlags::HAS_FLAGS);
    Ok((size, if known { flags } else { TransmissionFlags::NONE }))
}

fn sane_blocks(sizes: BlockSizes) -> Result<BlockSizes, Loss> {
    let BlockSizes { minimum, preferred, maximum } = sizes;
    let limited = maximum != u32::MAX;
    if !minimum.is_power_of_two()
        || !preferred.is_power_of_two()
        || preferred < minimum
        || (limited && (maximum < minimum || !maximum.is_multiple_of(minimum)))
    {
        return Err(Loss::Protocol(format!("block sizes {minimum}/{preferred}/{maximum} make no sense")));
    }
    if minimum > MINIMUM_BLOCK_MAX {
        return Err(Loss::Refused(format!(
            "it wants requests in blocks of {minimum} bytes, at most {MINIMUM_BLOCK_MAX} can be used"
        )));
    }
    if maximum < MINIMUM_BLOCK_MAX {
        return Err(Loss::Refused(format!(
            "it takes at most {maximum} bytes at once, {MINIMUM_BLOCK_MAX} are needed"
        )));
    }
    Ok(sizes)
}

/// One reply to `option`: its kind and payload.
async fn option_reply(stream: &mut Stream, option: OptionKind) -> Result<(OptionReplyKind, Vec<u8>), Loss> {
    let reply = OptionReply::decode(&receive::<OPTION_REPLY_LEN>(stream).await?)?;
    if reply.option != option {
        return Err(Loss::Protocol(format!("a reply to option {}, asked was {}", reply.option.0, option.0)));
    }
    if reply.len > OPTION_REPLY_BYTES_MAX {
        return Err(Loss::Protocol(format!("a reply of {} bytes to an option", reply.len)));
    }
    let mut payload = vec![0; reply.len as usize];
    stream.reader.read_exact(&mut payload).await?;
    Ok((reply.kind, payload))
}

fn refusal(kind: OptionReplyKind, payload: &[u8]) -> Loss {
    let why = match kind {
        OptionReplyKind::ERR_UNSUP => "it is too old (no NBD_OPT_GO)".into(),
        OptionReplyKind::ERR_UNKNOWN => "it has no such export".into(),
        OptionReplyKind::ERR_TLS_REQD => "it insists on TLS, which sealbd does not speak to backends".into(),
        OptionReplyKind::ERR_POLICY => "its policy forbids it".into(),
        OptionReplyKind::ERR_SHUTDOWN => "it is shutting down".into(),
        other => format!("error {:#x}", other.0),
    };
    match printable(&String::from_utf8_lossy(payload)) {
        text if text.is_empty() => Loss::Refused(why),
        text => Loss::Refused(format!("{why} (it says: {text})")),
    }
}

fn unexpected(option: OptionKind, kind: OptionReplyKind) -> Loss {
    Loss::Protocol(format!("reply {:#x} to option {}", kind.0, option.0))
}

async fn receive<const N: usize>(stream: &mut Stream) -> Result<[u8; N], Loss> {
    let mut bytes = [0; N];
    stream.reader.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn send(stream: &mut Stream, message: &[u8]) -> Result<(), Loss> {
    stream.writer.write_all(message).await?;
    Ok(stream.writer.flush().await?)
}

impl From<WireError> for Loss {
    fn from(error: WireError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<io::Error> for Loss {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Gone("it closed the connection".into()),
            _ => Self::Gone(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(minimum: u32, preferred: u32, maximum: u32) -> Result<BlockSizes, Loss> {
        sane_blocks(BlockSizes { minimum, preferred, maximum })
    }

    #[test]
    fn usable_block_sizes_are_taken() {
        for (minimum, preferred, maximum) in [(1, 4096, 32 << 20), (512, 512, u32::MAX), (4096, 65536, 4096)]
        {
            assert!(blocks(minimum, preferred, maximum).is_ok());
        }
    }

    #[test]
    fn block_sizes_that_make_no_sense_are_a_breach_and_unusable_ones_a_refusal() {
        for (minimum, preferred, maximum) in [
            (0, 4096, 1 << 20),
            (3, 4096, 1 << 20),
            (4096, 512, 1 << 20),
            (512, 3000, 1 << 20),
            (512, 512, 1000),
        ] {
            assert!(matches!(blocks(minimum, preferred, maximum), Err(Loss::Protocol(_))), "{minimum}");
        }
        for (minimum, preferred, maximum) in [(8192, 8192, 1 << 20), (1, 512, 2048)] {
            assert!(matches!(blocks(minimum, preferred, maximum), Err(Loss::Refused(_))), "{minimum}");
        }
    }
}
