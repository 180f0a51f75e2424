//! A mock of Vault and OpenBao, for the engines that no server at hand has.
//!
//! Neither Vault nor OpenBao can be had from a package registry, and RustyVault has neither Transit nor
//! key/value version 2. This server is written from their public API documentation (Transit, KV version 2,
//! token, AppRole, Kubernetes and certificate auth, policies, `sys/health`) and the error texts given there.
//! It proves that our client keeps to the documentation as we read it, not that Vault does. What it claims
//! to do it does: it encrypts with AES-256-GCM and associated data, counts versions, checks policies read
//! from the HCL files that sealbd ships, and lets tokens end by a clock that the test sets.

mod engines;
mod tokens;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

pub(crate) use engines::{Secret, TransitKey, Version};
pub(crate) use tokens::{Policy, Role, TokenEntry};

/// A running server; stops when dropped.
pub(crate) struct ScriptedVault {
    address: SocketAddr,
    scheme: &'static str,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
}

/// Everything the server knows; tests change it directly, as an administrator would.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) sealed: bool,
    /// Seconds; only tests move it.
    pub(crate) now: u64,
    pub(crate) tokens: HashMap<String, TokenEntry>,
    /// Logins by the path of their method, e.g. `approle`.
    pub(crate) roles: HashMap<&'static str, Role>,
    /// By namespace (empty: the root's) and name.
    pub(crate) transit: HashMap<(String, String), TransitKey>,
    pub(crate) kv1: HashMap<(String, String), Value>,
    pub(crate) kv2: HashMap<(String, String), Secret>,
    /// As Vault before 1.9.
    pub(crate) ignores_associated_data: bool,
    /// What `metadata.version` claims in answers of KV version 2.
    pub(crate) claims_version: Option<u32>,
    /// What happens to requests whose path begins so, before anything else.
    pub(crate) faults: Vec<(&'static str, Fault)>,
    pub(crate) requests: Vec<Request>,
}

/// What goes wrong with a request.
#[derive(Clone)]
pub(crate) enum Fault {
    /// An answer of that status and body.
    Status(u16, &'static str),
    /// Bytes that may be no HTTP at all.
    Raw(Vec<u8>),
    /// An error that repeats everything that was sent.
    Echo(u16),
    Redirect(String),
    /// No answer for as long as the client waits.
    Hang,
    /// The beginning of an answer, and no end for as long as the client waits.
    Drip,
    /// The connection ends without an answer.
    HangUp,
}

/// One request.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Below `/v1/`, without the query.
    pub(crate) path: String,
    pub(crate) query: HashMap<String, String>,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Value,
    has_certificate: bool,
}

/// Status and body.
type Answer = (u16, Value);

pub(crate) fn errors(status: u16, text: &str) -> Answer {
    (status, json!({ "errors": [text] }))
}

impl ScriptedVault {
    /// A server on this host without TLS.
    pub(crate) fn start() -> Self {
        Self::listen(None)
    }

    /// A server with the certificate `NAME.pem` and `NAME.key` of that directory, where `ca.pem` signs
    /// clients.
    pub(crate) fn start_tls(certificates: &Path, name: &str) -> Self {
        let read = |file: String| std::fs::read(certificates.join(file)).unwrap();
        let chain =
            CertificateDer::pem_slice_iter(&read(format!("{name}.pem"))).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(&read(format!("{name}.key"))).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&read("ca.pem".into())).unwrap()).unwrap();
        let crypto = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), crypto.clone());
        let config =
            ServerConfig::builder_with_provider(crypto).with_safe_default_protocol_versions().unwrap();
        let config = config.with_client_cert_verifier(clients.allow_unauthenticated().build().unwrap());
        Self::listen(Some(Arc::new(config.with_single_cert(chain, key).unwrap())))
    }

    fn listen(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (state, stop) = (Arc::new(Mutex::new(State::default())), Arc::new(AtomicBool::new(false)));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let server = Self { address, scheme, state: state.clone(), stop: stop.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(stream), state, tls) = (stream, state.clone(), tls.clone()) else { continue };
                std::thread::spawn(move || serve(stream, tls, &state));
            }
        });
        server
    }

    pub(crate) fn address(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How often that was asked for.
    pub(crate) fn count(&self, path: &str) -> usize {
        self.state().requests.iter().filter(|request| request.path == path).count()
    }
}

impl Drop for ScriptedVault {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the listener, so that its port is free again.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(mut stream: TcpStream, tls: Option<Arc<ServerConfig>>, state: &Mutex<State>) {
    match tls {
        None => answer(&mut stream, |_| false, state),
        Some(config) => {
            let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
            answer(&mut stream, |stream| stream.conn.peer_certificates().is_some(), state);
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    }
}

/// One request, one answer, and the connection ends.
fn answer<S: Read + Write>(stream: &mut S, has_certificate: impl Fn(&S) -> bool, state: &Mutex<State>) {
    let Some((mut request, raw)) = read_request(stream) else { return };
    request.has_certificate = has_certificate(stream);
    let fault = {
        let mut state = state.lock().unwrap();
        state.requests.push(request.clone());
        let fault = state.faults.iter().find(|(path, _)| request.path.starts_with(path));
        fault.map(|(_, fault)| fault.clone())
    };
    let (status, body) = match fault {
        None => {
            let (status, body) = state.lock().unwrap().handle(&request);
            (status, if body.is_null() { String::new() } else { body.to_string() })
        }
        Some(Fault::Status(status, body)) => (status, body.to_owned()),
        Some(Fault::Echo(status)) => (status, json!({ "errors": [raw], "error": raw }).to_string()),
        Some(Fault::Redirect(to)) => {
            let _ = write!(
                stream,
                "HTTP/1.1 307 x\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            return;
        }
        Some(Fault::Raw(bytes)) => {
            let _ = stream.write_all(&bytes);
            return;
        }
        Some(Fault::HangUp) => return,
        Some(Fault::Hang) => return until_gone(stream),
        Some(Fault::Drip) => {
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
                .and_then(|()| stream.flush());
            return until_gone(stream);
        }
    };
    let head = format!("HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nConnection: close\r\n");
    let _ =
        write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).and_then(|()| stream.flush());
}

fn until_gone(stream: &mut impl Read) {
    while !matches!(stream.read(&mut [0; 64]), Ok(0) | Err(_)) {}
}

fn read_request(stream: &mut impl Read) -> Option<(Request, String)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    let head_len = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(count) => bytes.extend(&buffer[..count]),
        }
    };
    let head = String::from_utf8(bytes[..head_len].to_vec()).ok()?;
    let mut lines = head.lines();
    let (method, target) = lines.next()?.strip_suffix(" HTTP/1.1")?.split_once(' ')?;
    let headers: HashMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let body_len = headers.get("content-length").map_or(0, |len| len.parse().unwrap());
    while bytes.len() < head_len + body_len {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(count) => bytes.extend(&buffer[..count]),
        }
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let request = Request {
        method: method.to_owned(),
        path: path.strip_prefix("/v1/")?.to_owned(),
        query: query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        headers,
        body: serde_json::from_slice(&bytes[head_len..]).unwrap_or(Value::Null),
        has_certificate: false,
    };
    Some((request, String::from_utf8_lossy(&bytes).into_owned()))
}

impl Request {
    fn namespace(&self) -> String {
        self.headers.get("x-vault-namespace").cloned().unwrap_or_default()
    }

    fn text(&self, field: &str) -> Option<&str> {
        self.body.get(field).and_then(Value::as_str)
    }
}

impl State {
    fn handle(&mut self, request: &Request) -> Answer {
        match request.path.as_str() {
            "sys/health" if self.sealed => {
                (503, json!({ "initialized": true, "sealed": true, "version": "1.15.2" }))
            }
            "sys/health" => (200, json!({ "initialized": true, "sealed": false, "version": "1.15.2" })),
            "sys/seal-status" => (200, json!({ "sealed": self.sealed })),
            _ if self.sealed => errors(503, "Vault is sealed"),
            path => {
                if let Some(mount) = path.strip_prefix("auth/").and_then(|rest| rest.strip_suffix("/login")) {
                    return self.login(mount, request);
                }
                if let Err(refusal) = self.authorise(request) {
                    return refusal;
                }
                self.route(request)
            }
        }
    }

    fn route(&mut self, request: &Request) -> Answer {
        let path = request.path.as_str();
        if let Some(rest) = path.strip_prefix("auth/token/") {
            return self.token(rest, request);
        }
        match path.split_once('/') {
            Some(("transit", rest)) => self.transit(rest, request),
            Some(("secret", rest)) => self.kv2(rest, request),
            Some(("kv", rest)) => self.kv1(rest, request),
            _ => errors(404, &format!("no handler for route \"{path}\". route entry not found.")),
        }
    }
}
