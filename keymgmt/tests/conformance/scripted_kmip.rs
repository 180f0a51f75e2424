//! A KMIP server of our own, for what no server at hand does: AES-GCM with its tag but no AES key wrap, Re-key without
//! deactivation, and everything that no honest one does.
//!
//! It is written from the specification, with the codec of the client: that both are right is for PyKMIP and Cosmian KMS
//! to show. Its clients show certificates, and own what they make. Its "AES key wrap" is AES-GCM with a short tag: the
//! same lengths, and bound to the key in the same way.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit};
use keymgmt::kmip::ttlv::{Item, Value, Writer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion};

/// Operations.
pub(crate) const CREATE: u32 = 0x1;
pub(crate) const RE_KEY: u32 = 0x4;
pub(crate) const GET: u32 = 0xa;
pub(crate) const GET_ATTRIBUTES: u32 = 0xb;
pub(crate) const ACTIVATE: u32 = 0x12;
pub(crate) const REVOKE: u32 = 0x13;
pub(crate) const DESTROY: u32 = 0x14;
pub(crate) const QUERY: u32 = 0x18;
pub(crate) const DISCOVER: u32 = 0x1e;
pub(crate) const ENCRYPT: u32 = 0x1f;
pub(crate) const DECRYPT: u32 = 0x20;

/// States.
pub(crate) const PRE_ACTIVE: u32 = 1;
pub(crate) const ACTIVE: u32 = 2;
pub(crate) const DEACTIVATED: u32 = 3;
pub(crate) const COMPROMISED: u32 = 4;
pub(crate) const DESTROYED: u32 = 5;

/// Result reasons.
const NOT_FOUND: u32 = 0x1;
const NOT_SUPPORTED: u32 = 0x5;
const CRYPTOGRAPHIC_FAILURE: u32 = 0xa;
const SENSITIVE: u32 = 0x16;
const UNSUPPORTED_ATTRIBUTE: u32 = 0x1f;
const WRONG_STATE: u32 = 0x43;

const IDENTIFIER: u32 = 0x42_0094;
const DATA: u32 = 0x42_00c2;
const NONCE: u32 = 0x42_003d;
const ADDITIONAL_DATA: u32 = 0x42_00fe;
const TAG: u32 = 0x42_00ff;

/// A running server; stops when dropped.
pub(crate) struct ScriptedKmip {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
}

/// Everything the server knows; tests change it directly, as an administrator would.
pub(crate) struct State {
    pub(crate) keys: HashMap<String, Key>,
    /// How many were made.
    pub(crate) made: u32,
    /// The Initial Date of new keys.
    pub(crate) now: i64,
    pub(crate) versions: Vec<(i32, i32)>,
    pub(crate) operations: Vec<u32>,
    pub(crate) key_wrap: bool,
    pub(crate) gcm: bool,
    /// Whether keys may be Sensitive.
    pub(crate) sensitive: bool,
    /// Whether it passes over the additional authenticated data.
    pub(crate) ignores_aad: bool,
    /// Whether Re-key deactivates the old key, and Get refuses what is not Active.
    pub(crate) strict: bool,
    /// Whether new keys are Active at once.
    pub(crate) active: bool,
    /// Whether each connection ends after one answer.
    pub(crate) hangs_up: bool,
    /// What happens to requests of an operation, in place of what is right.
    pub(crate) faults: Vec<(u32, Fault)>,
    /// The operations that were asked for.
    pub(crate) asked: Vec<u32>,
    pub(crate) connections: usize,
    /// Every answer that was right.
    pub(crate) answers: Vec<(u32, Vec<u8>)>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            keys: HashMap::new(),
            made: 0,
            now: 1_700_000_000,
            versions: vec![(2, 1), (2, 0), (1, 4), (1, 3), (1, 2)],
            operations: vec![
                CREATE,
                RE_KEY,
                GET,
                GET_ATTRIBUTES,
                ACTIVATE,
                REVOKE,
                DESTROY,
                QUERY,
                DISCOVER,
                ENCRYPT,
                DECRYPT,
            ],
            key_wrap: true,
            gcm: true,
            sensitive: true,
            ignores_aad: false,
            strict: true,
            active: false,
            hangs_up: false,
            faults: Vec::new(),
            asked: Vec::new(),
            connections: 0,
            answers: Vec::new(),
        }
    }
}

/// A key of the server.
#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) bytes: [u8; 32],
    pub(crate) state: u32,
    pub(crate) made: i64,
    /// Whether it never leaves the server.
    sensitive: bool,
    /// The certificate of who made it.
    owner: Vec<u8>,
}

/// Changes an answer.
type Change = Arc<dyn Fn(&mut Vec<u8>) + Send + Sync>;

/// What goes wrong with a request.
#[derive(Clone)]
pub(crate) enum Fault {
    /// A refusal for that reason.
    Refuse(u32),
    /// These bytes as the answer.
    Raw(Vec<u8>),
    /// The right answer, changed.
    Change(Change),
    /// These bytes, then zeros without end.
    Endless(Vec<u8>),
    /// The right answer, byte by byte with pauses.
    Drip,
    /// No answer.
    Hang,
    /// The connection ends after the request has been done.
    HangUp,
}

impl Fault {
    pub(crate) fn change(change: impl Fn(&mut Vec<u8>) + Send + Sync + 'static) -> Self {
        Self::Change(Arc::new(change))
    }
}

impl ScriptedKmip {
    /// A server with the certificate of that name in `tls`.
    pub(crate) fn start(tls: &Path, certificate: &str) -> Self {
        Self::start_with(tls, certificate, rustls::ALL_VERSIONS)
    }

    pub(crate) fn start_with(
        tls: &Path,
        certificate: &str,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Self {
        let config = Arc::new(server_config(tls, certificate, versions));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (state, stop) = (Arc::new(Mutex::new(State::default())), Arc::new(AtomicBool::new(false)));
        std::thread::spawn({
            let (state, stop) = (state.clone(), stop.clone());
            move || {
                for stream in listener.incoming() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let (state, config) = (state.clone(), config.clone());
                    // Ends when the client closes; a client of a test always does.
                    std::thread::spawn(move || {
                        let connection = ServerConnection::new(config).unwrap();
                        let _ = serve(StreamOwned::new(connection, stream.unwrap()), &state);
                    });
                }
            }
        });
        Self { address, state, stop }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How often an operation was asked for.
    pub(crate) fn count(&self, operation: u32) -> usize {
        self.state().asked.iter().filter(|asked| **asked == operation).count()
    }
}

impl Drop for ScriptedKmip {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the acceptor, and frees the port with it.
        let _ = TcpStream::connect(self.address);
    }
}

fn server_config(
    tls: &Path,
    certificate: &str,
    versions: &[&'static SupportedProtocolVersion],
) -> ServerConfig {
    let file = |name: String| std::fs::read(tls.join(name)).unwrap();
    let chain = |name: &str| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(&file(format!("{name}.pem"))).map(Result::unwrap).collect()
    };
    let mut roots = RootCertStore::empty();
    chain("ca").into_iter().for_each(|root| roots.add(root).unwrap());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let key = PrivateKeyDer::from_pem_slice(&file(format!("{certificate}.key"))).unwrap();
    let config = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    config.with_client_cert_verifier(clients).with_single_cert(chain(certificate), key).unwrap()
}

fn serve(mut stream: StreamOwned<ServerConnection, TcpStream>, state: &Mutex<State>) -> std::io::Result<()> {
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    let owner = stream.conn.peer_certificates().unwrap()[0].to_vec();
    state.lock().unwrap().connections += 1;
    loop {
        let mut message = vec![0; 8];
        stream.read_exact(&mut message)?;
        let len = u32::from_be_bytes(message[4..].try_into().unwrap()) as usize;
        assert!(len < 1 << 16, "a client asks for little");
        message.resize(8 + len, 0);
        stream.read_exact(&mut message[8..])?;
        let (answer, fault, hangs_up) = {
            let mut state = state.lock().unwrap();
            let (operation, answer) = state.answer(&message, &owner);
            let fault = state.faults.iter().find(|(of, _)| *of == operation).map(|(_, fault)| fault.clone());
            if fault.is_none() {
                state.answers.push((operation, answer.clone()));
            }
            (answer, fault, state.hangs_up)
        };
        match fault {
            None => stream.write_all(&answer)?,
            Some(Fault::Refuse(reason)) => stream.write_all(&refusal(reason))?,
            Some(Fault::Raw(bytes)) => stream.write_all(&bytes)?,
            Some(Fault::Change(change)) => {
                let mut answer = answer;
                change(&mut answer);
                stream.write_all(&answer)?;
            }
            Some(Fault::Endless(bytes)) => {
                stream.write_all(&bytes)?;
                loop {
                    stream.write_all(&[0; 4096])?;
                }
            }
            Some(Fault::Drip) => {
                for byte in answer {
                    stream.write_all(&[byte])?;
                    stream.flush()?;
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            Some(Fault::Hang) => {
                let _ = stream.read(&mut [0]);
                return Ok(());
            }
            Some(Fault::HangUp) => return Ok(()),
        }
        stream.flush()?;
        if hangs_up {
            stream.conn.send_close_notify();
            return stream.flush();
        }
    }
}

/// What an operation returns: its payload, or the reason why not.
type Done = Result<Box<dyn FnOnce(&mut Writer)>, u32>;

impl State {
    /// Does what is right, and says how it ended.
    fn answer(&mut self, message: &[u8], owner: &[u8]) -> (u32, Vec<u8>) {
        let request = Item::decode(message).unwrap_or_else(|error| panic!("a request: {error}"));
        let [header, item] = request.items() else { panic!("one request at a time") };
        let version = header.one(0x42_0069).unwrap();
        let version = (version.integer(0x42_006a).unwrap(), version.integer(0x42_006b).unwrap());
        let operation = item.enumeration(0x42_005c).unwrap();
        self.asked.push(operation);
        let payload = item.one(0x42_0079).unwrap();
        let done = if self.versions.contains(&version) {
            self.perform(operation, payload, version, owner)
        } else {
            Err(0x3f)
        };
        (operation, response(version, operation, done))
    }

    fn perform(&mut self, operation: u32, payload: &Item<'_>, version: (i32, i32), owner: &[u8]) -> Done {
        if !self.operations.contains(&operation) {
            return Err(NOT_SUPPORTED);
        }
        let id = payload.text(IDENTIFIER).unwrap_or_default().to_owned();
        let named = |id: String| -> Done { Ok(Box::new(move |writer| writer.text(IDENTIFIER, &id))) };
        match operation {
            DISCOVER => {
                let asked: Vec<_> = payload
                    .all(0x42_0069)
                    .map(|item| (item.integer(0x42_006a).unwrap(), item.integer(0x42_006b).unwrap()))
                    .collect();
                let both: Vec<_> = self.versions.iter().copied().filter(|it| asked.contains(it)).collect();
                return Ok(Box::new(move |writer| both.iter().for_each(|it| write_version(writer, *it))));
            }
            QUERY => {
                let operations = self.operations.clone();
                return Ok(Box::new(move |writer| {
                    operations.iter().for_each(|number| writer.enumeration(0x42_005c, *number));
                    writer.text(0x42_009d, "scripted");
                }));
            }
            CREATE if is_sensitive(payload) && !self.sensitive => return Err(UNSUPPORTED_ATTRIBUTE),
            CREATE => return named(self.create(owner, is_sensitive(payload))),
            _ => {}
        }
        let (strict, key_wrap, gcm, ignores_aad) = (self.strict, self.key_wrap, self.gcm, self.ignores_aad);
        let key = self.keys.get_mut(&id).filter(|key| key.owner == owner).ok_or(NOT_FOUND)?;
        if key.state == DESTROYED && operation != GET_ATTRIBUTES {
            return Err(0x36);
        }
        match operation {
            ACTIVATE if key.state == PRE_ACTIVE => key.state = ACTIVE,
            ACTIVATE => return Err(WRONG_STATE),
            REVOKE => key.state = DEACTIVATED,
            DESTROY if key.state == ACTIVE => return Err(WRONG_STATE),
            DESTROY => key.state = DESTROYED,
            RE_KEY => {
                if strict {
                    key.state = DEACTIVATED;
                }
                let sensitive = key.sensitive;
                return named(self.create(owner, sensitive));
            }
            GET if key.sensitive => return Err(SENSITIVE),
            GET if strict && key.state != ACTIVE => return Err(WRONG_STATE),
            GET => return Ok(key_payload(id, key.bytes)),
            GET_ATTRIBUTES => return Ok(attributes_payload(id, version, key.state, key.made)),
            ENCRYPT if key.state != ACTIVE => return Err(WRONG_STATE),
            ENCRYPT | DECRYPT => {
                let parameters = payload.one(0x42_002b).unwrap();
                let aead = parameters.enumeration(0x42_0011) == Some(9);
                if !(if aead { gcm && version >= (1, 4) } else { key_wrap }) {
                    return Err(NOT_SUPPORTED);
                }
                let aad = payload.bytes(ADDITIONAL_DATA).filter(|_| !ignores_aad).unwrap_or_default();
                let out =
                    if operation == ENCRYPT { sealed(key, payload, aad) } else { opened(key, payload, aad) };
                let (data, tag) = out.ok_or(CRYPTOGRAPHIC_FAILURE)?;
                return Ok(Box::new(move |writer| {
                    writer.text(IDENTIFIER, &id);
                    writer.bytes(DATA, &data);
                    if let Some(tag) = tag {
                        writer.bytes(TAG, &tag);
                    }
                }));
            }
            _ => return Err(NOT_SUPPORTED),
        }
        named(id)
    }

    fn create(&mut self, owner: &[u8], sensitive: bool) -> String {
        self.made += 1;
        let mut bytes = [0; 32];
        std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
        let state = if self.active { ACTIVE } else { PRE_ACTIVE };
        let key = Key { bytes, state, made: self.now, sensitive, owner: owner.to_vec() };
        let id = self.made.to_string();
        self.keys.insert(id.clone(), key);
        id
    }
}

/// Whether Create asks for a key that never leaves the server.
fn is_sensitive(payload: &Item<'_>) -> bool {
    let named = |item: &Item<'_>| item.text(0x42_000a) == Some("Sensitive");
    payload.one(0x42_0091).is_some_and(|template| template.all(0x42_0008).any(named))
        || payload.one(0x42_0125).is_some_and(|attributes| attributes.one(0x42_0120).is_some())
}

/// Of what Encrypt and Decrypt return: data, and the tag where there is one.
type Output = Option<(Vec<u8>, Option<Vec<u8>>)>;

fn sealed(key: &Key, payload: &Item<'_>, aad: &[u8]) -> Output {
    let mut data = payload.bytes(DATA)?.to_vec();
    let nonce = nonce(payload)?;
    let tag = cipher(key).encrypt_inout_detached((&nonce).into(), aad, data.as_mut_slice().into()).ok()?;
    if payload.bytes(NONCE).is_some() {
        return Some((data, Some(tag.to_vec())));
    }
    data.extend(&tag[..8]);
    Some((data, None))
}

fn opened(key: &Key, payload: &Item<'_>, aad: &[u8]) -> Output {
    let data = payload.bytes(DATA)?;
    let nonce = nonce(payload)?;
    if let Some(tag) = payload.bytes(TAG) {
        let mut data = data.to_vec();
        let tag: &[u8; 16] = tag.try_into().ok()?;
        let data_mut = data.as_mut_slice().into();
        cipher(key).decrypt_inout_detached((&nonce).into(), aad, data_mut, tag.into()).ok()?;
        return Some((data, None));
    }
    // The keystream is the same both ways; the tag tells whether it fits.
    let (data, tag) = data.split_last_chunk::<8>()?;
    let mut plain = data.to_vec();
    cipher(key).encrypt_inout_detached((&nonce).into(), aad, plain.as_mut_slice().into()).ok()?;
    let mut again = plain.clone();
    let right = cipher(key).encrypt_inout_detached((&nonce).into(), aad, again.as_mut_slice().into()).ok()?;
    (right[..8] == *tag).then_some((plain, None))
}

fn nonce(payload: &Item<'_>) -> Option<[u8; 12]> {
    payload.bytes(NONCE).map_or(Ok([0; 12]), TryInto::try_into).ok()
}

fn cipher(key: &Key) -> Aes256Gcm {
    Aes256Gcm::new((&key.bytes).into())
}

fn write_version(writer: &mut Writer, (major, minor): (i32, i32)) {
    writer.structure(0x42_0069, |writer| {
        writer.integer(0x42_006a, major);
        writer.integer(0x42_006b, minor);
    });
}

fn response(version: (i32, i32), operation: u32, done: Done) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.structure(0x42_007b, |writer| {
        writer.structure(0x42_007a, |writer| {
            write_version(writer, version);
            writer.date_time(0x42_0092, 1_700_000_000);
            writer.integer(0x42_000d, 1);
        });
        writer.structure(0x42_000f, |writer| {
            writer.enumeration(0x42_005c, operation);
            match done {
                Ok(payload) => {
                    writer.enumeration(0x42_007f, 0);
                    writer.structure(0x42_007c, payload);
                }
                Err(reason) => {
                    writer.enumeration(0x42_007f, 1);
                    writer.enumeration(0x42_007e, reason);
                    writer.text(0x42_007d, "CANARY \u{1b}[31m");
                }
            }
        });
    });
    writer.finish().to_vec()
}

fn refusal(reason: u32) -> Vec<u8> {
    response((1, 2), 0, Err(reason))
}

fn key_payload(id: String, bytes: [u8; 32]) -> Box<dyn FnOnce(&mut Writer)> {
    Box::new(move |writer| {
        writer.enumeration(0x42_0057, 2);
        writer.text(IDENTIFIER, &id);
        writer.structure(0x42_008f, |writer| {
            writer.structure(0x42_0040, |writer| {
                writer.enumeration(0x42_0042, 1);
                writer.structure(0x42_0045, |writer| writer.bytes(0x42_0043, &bytes));
                writer.enumeration(0x42_0028, 3);
                writer.integer(0x42_002a, 256);
            });
        });
    })
}

fn attributes_payload(
    id: String,
    version: (i32, i32),
    state: u32,
    made: i64,
) -> Box<dyn FnOnce(&mut Writer)> {
    Box::new(move |writer| {
        writer.text(IDENTIFIER, &id);
        if version >= (2, 0) {
            return writer.structure(0x42_0125, |writer| {
                writer.enumeration(0x42_008d, state);
                writer.date_time(0x42_0039, made);
            });
        }
        let mut attribute = |name: &str, value: Value<'_>| {
            let items =
                vec![Item { tag: 0x42_000a, value: Value::Text(name) }, Item { tag: 0x42_000b, value }];
            writer.item(&Item { tag: 0x42_0008, value: Value::Structure(items) });
        };
        attribute("State", Value::Enumeration(state));
        attribute("Initial Date", Value::DateTime(made));
    })
}
