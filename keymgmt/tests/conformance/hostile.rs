//! A scripted HTTP server that can do what no honest one does, in the clear or behind TLS.
//!
//! A script looks at each request and says what happens to it. What came in is kept, so that a test can claim
//! what was never sent. A script may also [`forward`] to a real service and look on, or change the answer.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// No request of a test is longer.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// What happens to a request.
pub(crate) enum Act {
    /// These bytes, whatever they are; the connection stays.
    Answer(Vec<u8>),
    /// These bytes, and the end of the connection.
    AnswerAndClose(Vec<u8>),
    /// Nothing, for as long as the client waits.
    Never,
    /// These bytes and then zeros without end.
    Endless(Vec<u8>),
    /// These bytes one by one with pauses.
    Trickle(Vec<u8>, Duration),
}

/// A whole answer with a right length.
pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Act {
    let body = body.as_ref();
    let mut bytes = format!("HTTP/1.1 {status} Whatever\r\nContent-Length: {}\r\n", body.len()).into_bytes();
    for (name, value) in headers {
        bytes.extend(format!("{name}: {value}\r\n").bytes());
    }
    bytes.extend(b"\r\n");
    bytes.extend(body);
    Act::Answer(bytes)
}

/// What a real service (`http://HOST:PORT…`) answers to a request. The connection is closed after it.
pub(crate) fn forward(service: &str, request: &Request) -> Vec<u8> {
    let host = service.strip_prefix("http://").unwrap().split('/').next().unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    let Request { method, path, headers, body } = request;
    let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    for (name, value) in headers.iter().filter(|(name, _)| name != "connection") {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all
}

/// A server that runs until it is dropped.
pub(crate) struct Hostile {
    address: SocketAddr,
    scheme: &'static str,
    seen: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

type Script = dyn Fn(&Request) -> Act + Send + Sync;

impl Hostile {
    /// A server without TLS.
    pub(crate) fn start(script: impl Fn(&Request) -> Act + Send + Sync + 'static) -> Self {
        Self::start_with(None, Box::new(script))
    }

    /// A server with a certificate.
    pub(crate) fn start_tls(
        certificate: Certificate,
        script: impl Fn(&Request) -> Act + Send + Sync + 'static,
    ) -> Self {
        let Certificate { chain, key } = certificate;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config =
            ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
        Self::start_with(Some(Arc::new(config)), Box::new(script))
    }

    fn start_with(tls: Option<Arc<ServerConfig>>, script: Box<Script>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let script: Arc<Script> = Arc::from(script);
        let acceptor = std::thread::spawn({
            let (seen, stop) = (seen.clone(), stop.clone());
            move || {
                for stream in listener.incoming() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let (script, seen, tls) = (script.clone(), seen.clone(), tls.clone());
                    // Ends when the client closes; a client of a test always does.
                    std::thread::spawn(move || serve(stream.unwrap(), tls, &*script, &seen));
                }
            }
        });
        Self { address, scheme, seen, stop, acceptor: Some(acceptor) }
    }

    /// `http://127.0.0.1:PORT`, or `https`.
    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// The same by name: `https://localhost:PORT`.
    pub(crate) fn url_by_name(&self) -> String {
        format!("{}://localhost:{}", self.scheme, self.address.port())
    }

    /// Every request so far.
    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// How many requests of that method had a path with that end.
    pub(crate) fn count(&self, method: &str, path_end: &str) -> usize {
        self.seen().iter().filter(|it| it.method == method && it.path.ends_with(path_end)).count()
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.address);
        let _ = self.acceptor.take().map(JoinHandle::join);
    }
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn serve(stream: TcpStream, tls: Option<Arc<ServerConfig>>, script: &Script, seen: &Mutex<Vec<Request>>) {
    let mut stream: Box<dyn Stream> = match tls {
        None => Box::new(stream),
        Some(config) => Box::new(StreamOwned::new(ServerConnection::new(config).unwrap(), stream)),
    };
    while let Some(request) = read_request(&mut *stream) {
        seen.lock().unwrap().push(request.clone());
        // Whatever fails from here on: the client went away, which is what some tests want.
        let done = match script(&request) {
            Act::Answer(bytes) => stream.write_all(&bytes).and_then(|()| stream.flush()),
            Act::AnswerAndClose(bytes) => {
                let _ = stream.write_all(&bytes).and_then(|()| stream.flush());
                return;
            }
            Act::Never => {
                let _ = stream.read(&mut [0]);
                return;
            }
            Act::Endless(bytes) => {
                let mut sent = stream.write_all(&bytes);
                while sent.is_ok() {
                    sent = stream.write_all(&[0; 4096]);
                }
                sent
            }
            Act::Trickle(bytes, pause) => bytes.iter().try_for_each(|byte| {
                std::thread::sleep(pause);
                stream.write_all(&[*byte]).and_then(|()| stream.flush())
            }),
        };
        if done.is_err() {
            return;
        }
    }
}

fn read_request(stream: &mut dyn Stream) -> Option<Request> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        // The first byte of a TLS handshake, sent to a server that has none: told as web servers do.
        if bytes.first() == Some(&0x16) {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
            return None;
        }
        if let Some(end) = bytes.windows(4).position(|run| run == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let mut lines = head.split("\r\n");
            let mut first = lines.next()?.split(' ').map(str::to_owned);
            let (method, path) = (first.next()?, first.next()?);
            let header = |line: &str| {
                let (name, value) = line.split_once(':')?;
                Some((name.to_lowercase(), value.trim().to_owned()))
            };
            let headers: Vec<_> = lines.filter_map(header).collect();
            let len = headers.iter().find(|(name, _)| name == "content-length");
            let len: usize = len.map_or(0, |(_, value)| value.parse().unwrap());
            let mut body = bytes.split_off(end + 4);
            assert!(len <= REQUEST_BYTES_MAX);
            while body.len() < len {
                let count = stream.read(&mut buffer).ok().filter(|count| *count > 0)?;
                body.extend(&buffer[..count]);
            }
            return Some(Request { method, path, headers, body });
        }
        match stream.read(&mut buffer) {
            Ok(count) if count > 0 && bytes.len() < REQUEST_BYTES_MAX => bytes.extend(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            _ => return None,
        }
    }
}

/// A certificate with its key.
pub(crate) struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// A signer of certificates.
pub(crate) struct Signer {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, PEM.
    pub(crate) pem: String,
}

/// The days, before and after today, of a certificate that is valid.
pub(crate) const VALID: (i64, i64) = (-1, 1);

impl Signer {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    /// A server's certificate for a name, valid from one day to another, counted from today.
    pub(crate) fn sign(&self, name: &str, (first, last): (i64, i64)) -> Certificate {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let now = time::OffsetDateTime::now_utc();
        (params.not_before, params.not_after) =
            (now + time::Duration::days(first), now + time::Duration::days(last));
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Certificate { chain: vec![certificate.der().clone()], key }
    }
}
