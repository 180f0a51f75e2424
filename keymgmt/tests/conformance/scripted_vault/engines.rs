//! The engines of the mock: Transit, and key/value in both versions.

use std::collections::hash_map::Entry;

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keymgmt::secret::Secret32;
use serde_json::{Value, json};

use super::{Answer, Request, State, errors};

/// A key of Transit, of type aes256-gcm96.
#[derive(Clone)]
pub(crate) struct TransitKey {
    /// From version 1 on; trimmed ones are gone.
    versions: Vec<Option<[u8; 32]>>,
    pub(crate) min_decryption_version: usize,
    min_encryption_version: usize,
}

impl TransitKey {
    pub(crate) fn new() -> Self {
        Self { versions: vec![Some(random())], min_decryption_version: 1, min_encryption_version: 0 }
    }

    pub(crate) fn latest(&self) -> usize {
        self.versions.len()
    }

    fn encrypt(&self, plaintext: &[u8], aad: &[u8]) -> String {
        let (version, nonce) = (self.latest(), random());
        let cipher = Aes256Gcm::new(&self.versions[version - 1].expect("the newest is never trimmed").into());
        let nonce: &[u8; 12] = nonce.first_chunk().unwrap();
        let sealed = cipher.encrypt(nonce.into(), Payload { msg: plaintext, aad }).unwrap();
        format!("vault:v{version}:{}", STANDARD.encode([nonce.as_slice(), &sealed].concat()))
    }

    fn decrypt(&self, ciphertext: &str, aad: &[u8]) -> Result<Vec<u8>, &'static str> {
        let rest = ciphertext.strip_prefix("vault:v").ok_or("invalid ciphertext: no prefix")?;
        let (version, sealed) = rest.split_once(':').ok_or("invalid ciphertext: wrong number of fields")?;
        let version: usize =
            version.parse().map_err(|_| "invalid ciphertext: version number could not be decoded")?;
        if version > self.latest() {
            return Err("invalid ciphertext: version is too new");
        }
        let key = version.checked_sub(1).and_then(|at| self.versions[at]);
        let key = key.filter(|_| version >= self.min_decryption_version);
        let key = key.ok_or("ciphertext or signature version is disallowed by policy (too old)")?;
        let sealed = STANDARD.decode(sealed).map_err(|_| "invalid ciphertext: could not decode base64")?;
        let (nonce, sealed) = sealed.split_first_chunk::<12>().ok_or("invalid ciphertext length")?;
        let cipher = Aes256Gcm::new(&key.into());
        cipher
            .decrypt(nonce.into(), Payload { msg: sealed, aad })
            .map_err(|_| "cipher: message authentication failed")
    }
}

/// A secret of key/value version 2.
#[derive(Default)]
pub(crate) struct Secret {
    /// From version 1 on.
    pub(crate) versions: Vec<Version>,
}

pub(crate) struct Version {
    pub(crate) data: Value,
    deleted: bool,
    destroyed: bool,
}

impl Version {
    pub(crate) fn new(data: Value) -> Self {
        Self { data, deleted: false, destroyed: false }
    }
}

impl State {
    /// Whether a write would change something or make it: the policies tell these apart.
    pub(super) fn exists(&self, request: &Request) -> bool {
        let at = |name: &str| (request.namespace(), name.to_owned());
        match request.path.split_once('/') {
            Some(("transit", rest)) => match rest.split('/').collect::<Vec<_>>()[..] {
                ["encrypt" | "keys", name] => self.transit.contains_key(&at(name)),
                _ => true,
            },
            Some(("secret", rest)) => match rest.split_once('/') {
                Some(("data", path)) => self.kv2.contains_key(&at(path)),
                _ => true,
            },
            Some(("kv", path)) => self.kv1.contains_key(&at(path)),
            _ => true,
        }
    }

    pub(super) fn transit(&mut self, rest: &str, request: &Request) -> Answer {
        let parts: Vec<_> = rest.split('/').collect();
        let Some(name) = parts.get(1) else { return errors(404, "unsupported path") };
        let at = (request.namespace(), (*name).to_owned());
        let method = request.method.as_str();
        if let (["keys", _], "POST") | (["encrypt", _], "POST") = (&parts[..], method) {
            // Encrypting with a key that is not there makes it, for whoever may create.
            self.transit.entry(at.clone()).or_insert_with(TransitKey::new);
        }
        let decode = |field: &str| STANDARD.decode(request.text(field).unwrap_or_default());
        let (Ok(plaintext), Ok(mut aad)) = (decode("plaintext"), decode("associated_data")) else {
            return errors(400, "illegal base64 data at input byte 0");
        };
        if self.ignores_associated_data {
            aad.clear();
        }
        let Some(key) = self.transit.get_mut(&at) else { return errors(400, "encryption key not found") };
        let number = |field: &str| {
            request.body.get(field).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok())
        };
        match (&parts[..], method) {
            (["keys", _], "POST") | (["keys", _, "config"], "POST") => {
                key.min_decryption_version =
                    number("min_decryption_version").unwrap_or(key.min_decryption_version);
                key.min_encryption_version =
                    number("min_encryption_version").unwrap_or(key.min_encryption_version);
                (204, Value::Null)
            }
            (["keys", _], "GET") => {
                (200, json!({ "data": { "latest_version": key.latest(), "name": name } }))
            }
            (["keys", _, "rotate"], "POST") => {
                key.versions.push(Some(random()));
                (200, json!({ "data": { "latest_version": key.latest() } }))
            }
            (["keys", _, "trim"], "POST") => {
                let first = number("min_available_version").unwrap_or_default();
                if first > key.min_decryption_version || first > key.min_encryption_version {
                    return errors(400, "min_available_version is above the minimum versions");
                }
                key.versions[..first - 1].fill(None);
                (204, Value::Null)
            }
            (["encrypt", _], "POST") => {
                let ciphertext = key.encrypt(&plaintext, &aad);
                (200, json!({ "data": { "ciphertext": ciphertext, "key_version": key.latest() } }))
            }
            (["decrypt", _], "POST") => {
                match key.decrypt(request.text("ciphertext").unwrap_or_default(), &aad) {
                    Ok(plaintext) => (200, json!({ "data": { "plaintext": STANDARD.encode(plaintext) } })),
                    Err(text) => errors(400, text),
                }
            }
            _ => errors(405, "unsupported operation"),
        }
    }

    pub(super) fn kv2(&mut self, rest: &str, request: &Request) -> Answer {
        let Some((part, path)) = rest.split_once('/') else { return errors(404, "unsupported path") };
        let at = (request.namespace(), path.to_owned());
        match (part, request.method.as_str()) {
            ("data", "GET") => {
                let asked = request.query.get("version").and_then(|number| number.parse::<usize>().ok());
                self.read_version(&at, asked.filter(|number| *number > 0))
            }
            ("data", "POST") => {
                let Some(data) = request.body.get("data").filter(|data| data.is_object()) else {
                    return errors(400, "no data provided");
                };
                let secret = self.kv2.entry(at).or_default();
                let cas = request.body.pointer("/options/cas").and_then(Value::as_u64);
                if cas.is_some_and(|cas| usize::try_from(cas).ok() != Some(secret.versions.len())) {
                    return errors(400, "check-and-set parameter did not match the current version");
                }
                secret.versions.push(Version::new(data.clone()));
                let version = secret.versions.len();
                (
                    200,
                    json!({ "data": { "version": version, "created_time": "2020-01-01T00:00:00Z", "destroyed": false } }),
                )
            }
            ("data", "DELETE") => {
                if let Some(newest) = self.kv2.get_mut(&at).and_then(|secret| secret.versions.last_mut()) {
                    newest.deleted = true;
                }
                (204, Value::Null)
            }
            ("destroy", "POST" | "PUT") => {
                let numbers =
                    request.body.get("versions").and_then(Value::as_array).cloned().unwrap_or_default();
                let Entry::Occupied(mut secret) = self.kv2.entry(at) else { return (204, Value::Null) };
                for number in numbers.iter().filter_map(Value::as_u64).filter_map(|n| usize::try_from(n).ok())
                {
                    if let Some(version) = secret.get_mut().versions.get_mut(number - 1) {
                        *version = Version { data: Value::Null, deleted: true, destroyed: true };
                    }
                }
                (204, Value::Null)
            }
            ("metadata", "DELETE") => {
                self.kv2.remove(&at);
                (204, Value::Null)
            }
            _ => errors(405, "unsupported operation"),
        }
    }

    fn read_version(&self, at: &(String, String), asked: Option<usize>) -> Answer {
        let Some(secret) = self.kv2.get(at) else { return (404, json!({ "errors": [] })) };
        let number = asked.unwrap_or(secret.versions.len());
        let Some(version) = secret.versions.get(number - 1) else { return (404, json!({ "errors": [] })) };
        let claimed = self.claims_version.map_or(json!(number), |claimed| json!(claimed));
        let metadata = json!({ "version": claimed, "destroyed": version.destroyed,
            "deletion_time": if version.deleted { "2020-01-01T00:00:00Z" } else { "" } });
        match version.deleted {
            true => (404, json!({ "data": { "data": null, "metadata": metadata } })),
            false => (200, json!({ "data": { "data": version.data, "metadata": metadata } })),
        }
    }

    pub(super) fn kv1(&mut self, path: &str, request: &Request) -> Answer {
        let at = (request.namespace(), path.to_owned());
        match request.method.as_str() {
            "GET" => match self.kv1.get(&at) {
                Some(data) => (200, json!({ "data": data, "lease_duration": 2_764_800 })),
                None => (404, json!({ "errors": [] })),
            },
            "POST" | "PUT" => {
                self.kv1.insert(at, request.body.clone());
                (204, Value::Null)
            }
            "DELETE" => {
                self.kv1.remove(&at);
                (204, Value::Null)
            }
            _ => errors(405, "unsupported operation"),
        }
    }
}

fn random() -> [u8; 32] {
    *Secret32::generate().unwrap().expose()
}
