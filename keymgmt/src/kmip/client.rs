//! The connection to a KMIP server: TTLV over mutual TLS 1.2 or 1.3 (KMIP Profiles 1.4 §3.1, Basic Authentication
//! Suite), bounded in time and size.
//!
//! One connection is kept between operations. It may have gone stale meanwhile, which shows only when it is
//! used; so a request that changes nothing is asked again once on a new connection, and one that changes
//! something is asked on a connection that has proven itself in the same operation, or on a new one. A
//! request whose answer was lost is never repeated otherwise. What the TLS library buffers is its own: it is not
//! wiped, but never swapped out or dumped where [`crate::hygiene`] could see to it.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use zeroize::Zeroizing;

use super::Address;
use super::failure::{Refusal, broken, refused};
use super::messages::{Answer, Outcome, Version, our_versions, request};
use super::tags::{self, Operation};
use super::ttlv::{HEADER_LEN, Item, MESSAGE_BYTES_MAX, Writer};
use crate::manager::KeyError;
use crate::provider::TlsSettings;
use crate::tls::{Certificates, crypto};

/// Most addresses of a name that are tried.
const ADDRESSES_MAX: usize = 4;

/// A server and our right to use it.
pub(crate) struct Client {
    address: Address,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    kept: Mutex<Option<Link>>,
    /// What both speak, once it is known.
    version: Mutex<Option<Version>>,
}

type Link = Box<StreamOwned<ClientConnection, Timed>>;

/// One operation: requests with one deadline.
pub(crate) struct Session<'c> {
    client: &'c Client,
    deadline: Instant,
    link: Option<Link>,
    /// Whether the link was made or answered in this operation.
    proven: bool,
}

impl Client {
    /// Reads the certificates; reaches nothing. Without a `version` both sides agree on one.
    ///
    /// # Errors
    /// [`KeyError::Settings`] and [`KeyError::Secret`] for certificates and keys that cannot be used.
    pub(crate) fn new(
        address: Address,
        settings: &TlsSettings,
        version: Option<Version>,
    ) -> Result<Self, KeyError> {
        let Certificates { roots, client } = Certificates::read(settings)?;
        let (Some(roots), Some((chain, key))) = (roots, client) else {
            return Err(KeyError::Settings("KMIP needs tls = { ca, cert, key }".into()));
        };
        let unfit = |what: &str| KeyError::Settings(format!("tls.{what} holds what TLS cannot use"));
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root).map_err(|_| unfit("ca"))?;
        }
        let key = PrivateKeyDer::from_pem_slice(&key.pem).map_err(|_| unfit("key"))?;
        let tls = ClientConfig::builder_with_provider(crypto())
            .with_safe_default_protocol_versions()
            .map_err(|_| unfit("ca"))?
            .with_root_certificates(store)
            .with_client_auth_cert(chain, key)
            .map_err(|_| KeyError::Settings("tls.key is not the key of tls.cert".into()))?;
        let name = ServerName::try_from(address.host().to_owned())
            .map_err(|_| KeyError::Settings("address names no host".into()))?;
        Ok(Self { address, name, tls: Arc::new(tls), kept: Mutex::new(None), version: Mutex::new(version) })
    }

    /// Begins an operation that may take `timeout`.
    pub(crate) fn begin(&self, timeout: Duration) -> Session<'_> {
        let link = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        Session { client: self, deadline: Instant::now() + timeout, link, proven: false }
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    fn connect(&self, deadline: Instant) -> Result<Link, KeyError> {
        let server = self.address.to_string();
        let failed = |error: io::Error| broken(&server, &error);
        let (host, port) = (self.address.host(), self.address.port());
        // A resolver that hangs is left behind by whoever waits for this thread.
        let addresses = (host, port).to_socket_addrs().map_err(failed)?;
        let mut last = None;
        for address in addresses.take(ADDRESSES_MAX) {
            match left(deadline).and_then(|left| TcpStream::connect_timeout(&address, left)) {
                Ok(tcp) => {
                    // Requests are one write each.
                    tcp.set_nodelay(true).map_err(failed)?;
                    let tls = ClientConnection::new(self.tls.clone(), self.name.clone())
                        .map_err(|error| KeyError::Settings(format!("{server}: {error}")))?;
                    let mut link = Box::new(StreamOwned::new(tls, Timed { tcp, deadline }));
                    while link.conn.is_handshaking() {
                        let StreamOwned { conn, sock } = &mut *link;
                        if let Err(error) = conn.complete_io(sock) {
                            return Err(failed(last_words(&mut link, error)));
                        }
                    }
                    return Ok(link);
                }
                Err(error) => last = Some(error),
            }
        }
        let nobody = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        Err(failed(last.unwrap_or_else(nobody)))
    }

    fn agreed(&self) -> Option<Version> {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session<'_> {
    /// The version that both speak, the newest of ours.
    ///
    /// # Errors
    /// Those of [`Self::ask`]; [`KeyError::Settings`] when there is none.
    pub(crate) fn version(&mut self) -> Result<Version, KeyError> {
        if let Some(version) = self.client.agreed() {
            return Ok(version);
        }
        let mut listed = Err(Refusal::Version);
        // The header has a version itself, before any is known: the oldest, or else the newest.
        for header in [Version::V1_2, Version::V2_0] {
            let message = request(header, Operation::DiscoverVersions, our_versions);
            listed = self.exchange(header, Operation::DiscoverVersions, &message, |answer| {
                Ok(Version::listed(answer))
            })?;
            if listed.is_ok() {
                break;
            }
        }
        let version = listed.ok().and_then(|listed| listed.into_iter().next()).ok_or_else(|| {
            let address = &self.client.address;
            KeyError::Settings(format!("{address} speaks none of the versions 1.2, 1.4 and 2.0 of KMIP"))
        })?;
        *self.client.version.lock().unwrap_or_else(PoisonError::into_inner) = Some(version);
        Ok(version)
    }

    /// Asks one thing and reads the payload of the answer; `Err` inside is the server's no.
    ///
    /// # Errors
    /// [`KeyError::Unreachable`] when nobody answers in time; [`KeyError::Untrusted`] when the certificate does
    /// not fit or the answer is none; [`KeyError::Denied`] when the server refuses our certificate.
    pub(crate) fn ask<T>(
        &mut self,
        operation: Operation,
        payload: impl FnOnce(&mut Writer),
        read: impl FnOnce(&Item<'_>) -> Result<T, &'static str>,
    ) -> Result<Result<T, Refusal>, KeyError> {
        let version = self.version()?;
        let message = request(version, operation, payload);
        self.exchange(version, operation, &message, read)
    }

    fn exchange<T>(
        &mut self,
        asked: Version,
        operation: Operation,
        message: &[u8],
        read: impl FnOnce(&Item<'_>) -> Result<T, &'static str>,
    ) -> Result<Result<T, Refusal>, KeyError> {
        let server = self.client.address.to_string();
        let untrusted =
            |why: &str| KeyError::Untrusted(format!("{server}, asked for {}: {why}", operation.name()));
        let bytes = self.transfer(operation, message)?;
        let answer = Answer::decode(&bytes).map_err(|error| untrusted(&error.to_string()))?;
        match answer.outcome {
            Outcome::Refused(reason) => Ok(Err(Refusal::from_reason(reason))),
            Outcome::Done(_) if answer.operation.is_some_and(|number| number != operation.number()) => {
                Err(untrusted("the answer is to another request"))
            }
            Outcome::Done(_) if answer.version != asked.numbers() => {
                Err(untrusted("the answer is of another version"))
            }
            Outcome::Done(payload) => read(&payload).map(Ok).map_err(untrusted),
        }
    }

    fn transfer(&mut self, operation: Operation, message: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let repeatable = operation.changes_nothing();
        if let Some(mut link) = self.link.take().filter(|link| !link.sock.has_ended())
            && (self.proven || repeatable)
        {
            link.sock.deadline = self.deadline;
            match send_and_receive(&mut link, message) {
                Ok(answer) => return Ok(self.keep(link, answer)),
                Err(Failed::Lie(why)) => return Err(self.lie(operation, why)),
                Err(Failed::Io(error)) if !repeatable || !is_stale(&error) => return Err(self.broken(&error)),
                Err(Failed::Io(_)) => {}
            }
        }
        let mut link = self.client.connect(self.deadline)?;
        match send_and_receive(&mut link, message) {
            Ok(answer) => Ok(self.keep(link, answer)),
            Err(Failed::Lie(why)) => Err(self.lie(operation, why)),
            Err(Failed::Io(error)) => Err(self.broken(&error)),
        }
    }

    fn keep(&mut self, link: Link, answer: Zeroizing<Vec<u8>>) -> Zeroizing<Vec<u8>> {
        (self.link, self.proven) = (Some(link), true);
        answer
    }

    fn broken(&self, error: &io::Error) -> KeyError {
        broken(&self.client.address.to_string(), error)
    }

    fn lie(&self, operation: Operation, why: &str) -> KeyError {
        KeyError::Untrusted(format!("{}, asked for {}: {why}", self.client.address, operation.name()))
    }
}

impl Drop for Session<'_> {
    /// A link that answered its last request is kept for the next operation.
    fn drop(&mut self) {
        if let Some(link) = self.link.take().filter(|_| self.proven) {
            *self.client.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(link);
        }
    }
}

/// Refused, with what was asked for.
pub(crate) fn granted<T>(what: &str, answer: Result<T, Refusal>) -> Result<T, KeyError> {
    answer.map_err(|refusal| refused(what, refusal))
}

enum Failed {
    Io(io::Error),
    Lie(&'static str),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn send_and_receive(link: &mut Link, message: &[u8]) -> Result<Zeroizing<Vec<u8>>, Failed> {
    if let Err(error) = link.write_all(message).and_then(|()| link.flush()) {
        return Err(Failed::Io(last_words(link, error)));
    }
    let mut head = [0; HEADER_LEN];
    link.read_exact(&mut head)?;
    let [a, b, c, kind, len @ ..] = head;
    let len = u32::from_be_bytes(len);
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if (u32::from_be_bytes([0, a, b, c]), kind) != (tags::RESPONSE_MESSAGE, 1) {
        return Err(Failed::Lie("the answer is no KMIP message"));
    }
    if len > MESSAGE_BYTES_MAX - HEADER_LEN {
        return Err(Failed::Lie("the answer is longer than 64 KiB"));
    }
    let mut answer = Zeroizing::new(vec![0; HEADER_LEN + len]);
    answer[..HEADER_LEN].copy_from_slice(&head);
    link.read_exact(&mut answer[HEADER_LEN..])?;
    Ok(answer)
}

/// Whether a connection may just have been idle for too long. A deadline that has passed is none of these.
fn is_stale(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
    )
}

/// What a server said before it closed, in place of what failed because it closed. In TLS 1.3 it refuses our
/// certificate when we are done already, so that what fails first is our next write.
fn last_words(link: &mut Link, error: io::Error) -> io::Error {
    while is_stale(&error) && link.conn.read_tls(&mut link.sock).is_ok_and(|count| count > 0) {
        if let Err(why) = link.conn.process_new_packets() {
            return io::Error::other(why);
        }
    }
    error
}

/// A socket whose reads and writes all end at one deadline, however slowly bytes come.
struct Timed {
    tcp: TcpStream,
    deadline: Instant,
}

impl Timed {
    /// Whether the server has ended the connection, as far as that has come here: by the end of the stream, or by
    /// an alert of TLS, which says so.
    fn has_ended(&self) -> bool {
        const ALERT: u8 = 21;
        let mut first = [0];
        let peeked = self.tcp.set_nonblocking(true).and_then(|()| self.tcp.peek(&mut first));
        let is_blocking = self.tcp.set_nonblocking(false).is_ok();
        match peeked {
            Ok(count) => count == 0 || first == [ALERT] || !is_blocking,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock || !is_blocking,
        }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tcp.set_read_timeout(Some(left(self.deadline)?))?;
        self.tcp.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.tcp.set_write_timeout(Some(left(self.deadline)?))?;
        self.tcp.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}
