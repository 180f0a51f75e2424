//! A raw NBD client for tests: fixed newstyle, `NBD_OPT_GO`, simple replies, requests sent and replies received
//! as separate steps, so that a test decides what is in flight. Blocking, one connection.

use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// No server of the tests lets a request wait longer.
const REPLY_SECONDS_MAX: u64 = 60;
/// Longest payload that an option reply of the tests has.
const OPTION_REPLY_LEN_MAX: u32 = 65_536;

/// `NBD_CMD_FLAG_FUA`.
pub(crate) const FUA: u16 = 1;

/// Request types of proto.md.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub(crate) enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
    Trim = 4,
    WriteZeroes = 6,
}

/// Why a request did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server answered with this NBD error.
    Refused(u32),
    /// The connection is gone, or what came was not the protocol.
    Lost(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

/// A simple reply's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Reply {
    pub(crate) error: u32,
    pub(crate) cookie: u64,
}

/// One connection in the transmission phase.
pub(crate) struct Client {
    input: BufReader<Box<dyn Read + Send>>,
    output: Box<dyn Write + Send>,
    size: u64,
    flags: u16,
    next_cookie: u64,
}

impl Client {
    /// Connects to a unix socket and enters the export.
    pub(crate) fn unix(socket: &Path, export: &str) -> Result<Self, Failure> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(REPLY_SECONDS_MAX)))?;
        Self::negotiate(Box::new(stream.try_clone()?), Box::new(stream), export)
    }

    /// Connects to the loopback address and enters the export.
    pub(crate) fn tcp(port: u16, export: &str) -> Result<Self, Failure> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(REPLY_SECONDS_MAX)))?;
        Self::negotiate(Box::new(stream.try_clone()?), Box::new(stream), export)
    }

    fn negotiate(
        input: Box<dyn Read + Send>,
        mut output: Box<dyn Write + Send>,
        export: &str,
    ) -> Result<Self, Failure> {
        let mut input = BufReader::new(input);
        let mut hello = [0; 18];
        input.read_exact(&mut hello)?;
        if &hello[..16] != b"NBDMAGICIHAVEOPT" {
            return Err(broken("not a newstyle server"));
        }
        let mut go = Vec::new();
        go.extend_from_slice(&3u32.to_be_bytes()); // fixed newstyle, no zeroes
        go.extend_from_slice(b"IHAVEOPT");
        go.extend_from_slice(&7u32.to_be_bytes()); // NBD_OPT_GO
        let name_len = u32::try_from(export.len()).expect("short name");
        go.extend_from_slice(&(name_len + 6).to_be_bytes());
        go.extend_from_slice(&name_len.to_be_bytes());
        go.extend_from_slice(export.as_bytes());
        go.extend_from_slice(&0u16.to_be_bytes());
        output.write_all(&go)?;
        let (mut size, mut flags) = (0, 0);
        loop {
            let mut head = [0; 20];
            input.read_exact(&mut head)?;
            let (kind, len) = (be32(&head[12..]), be32(&head[16..]));
            if len > OPTION_REPLY_LEN_MAX {
                return Err(broken("option reply too long"));
            }
            let mut data = vec![0; len as usize];
            input.read_exact(&mut data)?;
            match kind {
                1 => break, // ACK
                3 if data.len() == 12 && data[..2] == [0, 0] => {
                    size = be64(&data[2..]);
                    flags = u16::from_be_bytes([data[10], data[11]]);
                }
                3 => {}
                error => return Err(Failure::Refused(error)),
            }
        }
        Ok(Self { input, output, size, flags, next_cookie: 1 })
    }

    /// Size of the export in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Transmission flags.
    pub(crate) fn flags(&self) -> u16 {
        self.flags
    }

    /// Sends a request; `data` is the payload of a write. Returns its cookie.
    pub(crate) fn send(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> Result<u64, Failure> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut request = Vec::with_capacity(28 + data.len());
        request.extend_from_slice(&0x2560_9513u32.to_be_bytes());
        request.extend_from_slice(&flags.to_be_bytes());
        request.extend_from_slice(&(command as u16).to_be_bytes());
        request.extend_from_slice(&cookie.to_be_bytes());
        request.extend_from_slice(&offset.to_be_bytes());
        request.extend_from_slice(&len.to_be_bytes());
        request.extend_from_slice(data);
        self.output.write_all(&request)?;
        Ok(cookie)
    }

    /// Receives the next reply; the data of a good read is still to come ([`receive_data`](Self::receive_data)).
    pub(crate) fn receive(&mut self) -> Result<Reply, Failure> {
        let mut head = [0; 16];
        self.input.read_exact(&mut head)?;
        if be32(&head) != 0x6744_6698 {
            return Err(broken("not a simple reply"));
        }
        Ok(Reply { error: be32(&head[4..]), cookie: be64(&head[8..]) })
    }

    /// Receives the data behind a good reply to a read.
    pub(crate) fn receive_data(&mut self, buf: &mut [u8]) -> Result<(), Failure> {
        Ok(self.input.read_exact(buf)?)
    }

    fn call(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> Result<(), Failure> {
        let cookie = self.send(command, flags, offset, len, data)?;
        let reply = self.receive()?;
        if reply.cookie != cookie {
            return Err(broken("reply to another request"));
        }
        if reply.error == 0 { Ok(()) } else { Err(Failure::Refused(reply.error)) }
    }

    /// Reads; nothing else may be in flight.
    pub(crate) fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, Failure> {
        self.call(Command::Read, 0, offset, length(len), &[])?;
        let mut data = vec![0; len];
        self.input.read_exact(&mut data)?;
        Ok(data)
    }

    /// Writes; nothing else may be in flight. `flags` is 0 or [`FUA`].
    pub(crate) fn write(&mut self, offset: u64, data: &[u8], flags: u16) -> Result<(), Failure> {
        self.call(Command::Write, flags, offset, length(data.len()), data)
    }

    /// Flushes; nothing else may be in flight.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.call(Command::Flush, 0, 0, 0, &[])
    }

    /// Trims; nothing else may be in flight.
    pub(crate) fn trim(&mut self, offset: u64, len: u32) -> Result<(), Failure> {
        self.call(Command::Trim, 0, offset, len, &[])
    }

    /// Zeroes; nothing else may be in flight.
    pub(crate) fn write_zeroes(&mut self, offset: u64, len: u32, flags: u16) -> Result<(), Failure> {
        self.call(Command::WriteZeroes, flags, offset, len, &[])
    }

    /// Says goodbye and waits until the server has closed.
    pub(crate) fn disconnect(mut self) -> Result<(), Failure> {
        self.send(Command::Disconnect, 0, 0, 0, &[])?;
        let mut rest = Vec::new();
        self.input.read_to_end(&mut rest)?;
        if rest.is_empty() { Ok(()) } else { Err(broken("bytes after the last reply")) }
    }
}

fn length(len: usize) -> u32 {
    u32::try_from(len).expect("a request is below 4 GiB")
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"))
}

fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().expect("eight bytes"))
}

fn broken(what: &str) -> Failure {
    Failure::Lost(io::Error::new(io::ErrorKind::InvalidData, what.to_owned()))
}
