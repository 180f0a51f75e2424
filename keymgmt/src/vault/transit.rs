//! The Transit engine: the server wraps the DEK under a key that never leaves it, type `vault-transit`.
//!
//! The DEK is sent to the server to be wrapped and comes back when it is unwrapped, over TLS or on this
//! host. Volume, epoch, suite, slot type and the key's name are authenticated as associated data, so a
//! keyslot fits nothing else; a server that ignores associated data (Vault before 1.9) is found out while
//! wrapping and refused.
//!
//! A keyslot's uri is `vault-transit:NAME`, its wrapped key the server's own `vault:vN:BASE64`, its private
//! part version u8 ‖ N u32 LE.

use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::auth::Session;
use super::client::{Call, Data, Reply, json, secret_text};
use super::{Address, AuthSettings, Place, Service, base64, key_from_text, key_of_spec};
use crate::manager::{
    BoxFuture, Health, KeyDescription, KeyError, KeyManager, SlotType, WrapContext, WrappedKey,
};
use crate::provider::{Bounds, Settings, TlsSettings};
use crate::registry::{Opened, Opening};
use crate::secret::Dek;
use crate::verify;
use crate::wrap::aad;

/// `[provider.NAME]` with `type = "vault-transit"`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TransitSettings {
    address: Address,
    namespace: Option<Place>,
    #[serde(default = "default_mount")]
    mount: Place,
    #[serde(default)]
    tls: TlsSettings,
    auth: AuthSettings,
}

fn default_mount() -> Place {
    Place("transit".to_owned())
}

impl Settings for TransitSettings {
    fn open(&self, key: Option<&str>, bounds: Bounds, opening: &mut Opening<'_, '_>) -> Opened {
        let Self { address, namespace, mount, tls, auth } = self;
        let service = Service { address, namespace: namespace.as_ref(), tls, auth };
        let key = key_of_spec(key)?;
        if key.as_ref().is_some_and(|name| !is_name(name)) {
            return Err(KeyError::Settings("the name of a transit key has no /".into()));
        }
        let session = Session::open(&service, bounds, opening)?;
        Ok(Box::new(Transit { session, mount: mount.clone(), key, rotated: Mutex::new(None) }))
    }
}

/// A key of the Transit engine.
struct Transit {
    session: Session,
    mount: Place,
    /// The key that new keyslots use; without one only what a keyslot names.
    key: Option<Place>,
    /// The key that was rotated last: without another one, new keyslots use it.
    rotated: Mutex<Option<Place>>,
}

const SLOT_TYPE: SlotType = SlotType::VaultTransit;
const SCHEME: &str = "vault-transit:";

/// Tells what a keyslot of this kind is made of.
///
/// # Errors
/// [`KeyError::Malformed`].
pub(crate) fn describe(key: &WrappedKey) -> Result<KeyDescription, KeyError> {
    let Slot { name, version } = Slot::parse(key)?;
    Ok(KeyDescription {
        text: format!("transit key {} v{version}", name.as_str()),
        key_id: Some(name.as_str().to_owned()),
        version: Some(version.to_string()),
    })
}

impl Transit {
    fn path(&self, operation: &str, name: &Place) -> String {
        format!("{}/{operation}/{}", self.mount.as_str(), name.as_str())
    }

    /// Whether keyslots of that key are ours, and not left to others.
    fn is_ours(&self, name: &Place) -> bool {
        self.key.as_ref().is_none_or(|key| key == name)
    }

    async fn encrypt(&self, name: &Place, dek: &Dek, bound: &str) -> Result<String, KeyError> {
        let path = self.path("encrypt", name);
        let plaintext = Zeroizing::new(STANDARD.encode(dek.0.expose()));
        let body = json(&Encrypt { plaintext: &plaintext, associated_data: bound });
        let reply = self.session.call(Call::post(&path, &body)).await?;
        let Data { data: Encrypted { ciphertext } } = reply.read(&path)?;
        Ok(ciphertext)
    }

    async fn decrypt(&self, name: &Place, ciphertext: &str, bound: &str) -> Result<Reply, KeyError> {
        let body = json(&Decrypt { ciphertext, associated_data: bound });
        self.session.call(Call::post(&self.path("decrypt", name), &body)).await
    }

    async fn wrap_bound(&self, dek: &Dek, context: WrapContext) -> Result<WrappedKey, KeyError> {
        let rotated = self.rotated.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(name) = self.key.as_ref().or(rotated.as_ref()) else {
            return Err(KeyError::Settings(
                "a new vault-transit keyslot needs the name of its key: kms:PROVIDER/KEY".into(),
            ));
        };
        let kek_uri = format!("{SCHEME}{}", name.as_str());
        let ciphertext = self.encrypt(name, dek, &bound(context, &kek_uri)).await?;
        let version = Ciphertext::parse(ciphertext.as_bytes())
            .map_err(|_| {
                let path = self.path("encrypt", name);
                KeyError::Untrusted(format!(
                    "{path}: the answer is no ciphertext of an AEAD key (aes256-gcm96)"
                ))
            })?
            .version;
        self.prove_bound(name, &ciphertext, context, &kek_uri).await?;
        let private = private(version);
        Ok(WrappedKey { slot_type: SLOT_TYPE, kek_uri, wrapped: ciphertext.into_bytes(), private })
    }

    /// The same with another volume must not open, else the server binds nothing.
    async fn prove_bound(
        &self,
        name: &Place,
        ciphertext: &str,
        context: WrapContext,
        kek_uri: &str,
    ) -> Result<(), KeyError> {
        let mut other = context;
        other.volume[0] ^= 1;
        let reply = self.decrypt(name, ciphertext, &bound(other, kek_uri)).await?;
        if reply.is_invalid() {
            return Ok(());
        }
        if reply.is_done() {
            return Err(KeyError::Unsupported(
                "this server ignores associated_data, so a keyslot would fit any volume; Vault 1.9 or newer \
                 or OpenBao is needed"
                    .into(),
            ));
        }
        Err(reply.refused(&self.path("decrypt", name)))
    }

    async fn unwrap_bound(&self, key: &WrappedKey, context: WrapContext) -> Result<Option<Dek>, KeyError> {
        if key.slot_type != SLOT_TYPE {
            return Ok(None);
        }
        let Slot { name, version } = Slot::parse(key)?;
        if !self.is_ours(&name) {
            return Ok(None);
        }
        let ciphertext = std::str::from_utf8(&key.wrapped).expect("what was parsed is ASCII");
        let reply = self.decrypt(&name, ciphertext, &bound(context, &key.kek_uri)).await?;
        if reply.is_invalid() {
            return self.unfit(&reply, &name, version);
        }
        let path = self.path("decrypt", &name);
        let Data { data: Decrypted { plaintext } } = reply.read(&path)?;
        key_from_text(&plaintext, base64)
            .map(Dek)
            .map(Some)
            .ok_or_else(|| KeyError::Untrusted(format!("{path}: what was unwrapped is no key of 32 bytes")))
    }

    /// What the server means that will not decrypt. Its texts are the same since Vault 0.7.
    fn unfit(&self, reply: &Reply, name: &Place, version: u32) -> Result<Option<Dek>, KeyError> {
        if reply.says("message authentication failed") || reply.says("unable to decrypt") {
            return Ok(None);
        }
        let why = if reply.says("too old") {
            "is below the key's min_decryption_version"
        } else if reply.says("too new") {
            "is not there (any more): was the server restored from a backup?"
        } else if reply.says("encryption key not found") {
            "is not there: the key does not exist (any more)"
        } else {
            "is refused as invalid: is it a key of type aes256-gcm96, not derived?"
        };
        Err(KeyError::Denied(format!("{}: version {version} {why}", self.path("decrypt", name))))
    }

    async fn rotate_key(&self, current: &WrappedKey) -> Result<(), KeyError> {
        let Slot { name, .. } = Slot::parse(current)?;
        if !self.is_ours(&name) {
            return Err(KeyError::Denied("the keyslot is of another key than the one that was named".into()));
        }
        let path = format!("{}/rotate", self.path("keys", &name));
        let reply = self.session.call(Call::post(&path, &json(&Nothing {}))).await?;
        if !reply.is_done() {
            return Err(reply.refused(&path));
        }
        *self.rotated.lock().unwrap_or_else(PoisonError::into_inner) = Some(name);
        Ok(())
    }

    fn cannot_destroy(&self, key: &WrappedKey) -> Result<(), KeyError> {
        let Slot { name, version } = Slot::parse(key)?;
        let path = self.path("keys", &name);
        let next = u64::from(version) + 1;
        Err(KeyError::Unsupported(format!(
            "transit drops versions of a key only together with all older ones, for every volume; next, when no \
             keyslot of version {version} or older is left anywhere: vault write {path}/config \
             min_decryption_version={next} min_encryption_version={next} && vault write {path}/trim \
             min_available_version={next}"
        )))
    }
}

impl KeyManager for Transit {
    fn slot_type(&self) -> SlotType {
        SLOT_TYPE
    }

    fn wrap<'a>(&'a self, dek: &'a Dek, context: WrapContext) -> BoxFuture<'a, Result<WrappedKey, KeyError>> {
        Box::pin(self.wrap_bound(dek, context))
    }

    fn unwrap<'a>(
        &'a self,
        key: &'a WrappedKey,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Option<Dek>, KeyError>> {
        Box::pin(self.unwrap_bound(key, context))
    }

    fn describe(&self, key: &WrappedKey) -> Result<KeyDescription, KeyError> {
        describe(key)
    }

    fn rotate<'a>(&'a self, current: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(self.rotate_key(current))
    }

    fn destroy<'a>(&'a self, key: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(async { self.cannot_destroy(key) })
    }

    fn probe(&self) -> BoxFuture<'_, Result<Health, KeyError>> {
        Box::pin(self.session.probe())
    }
}

/// What a keyslot says, with its parts checked against each other. Nothing of it is authenticated.
struct Slot {
    name: Place,
    version: u32,
}

impl Slot {
    fn parse(key: &WrappedKey) -> Result<Self, KeyError> {
        verify::is_type(key, SLOT_TYPE)?;
        let name = key.kek_uri.strip_prefix(SCHEME).and_then(Place::parse).filter(is_name);
        let name = name.ok_or_else(|| KeyError::Malformed("the key uri names no transit key".into()))?;
        let Ciphertext { version } = Ciphertext::parse(&key.wrapped)?;
        if key.private != private(version) {
            return Err(KeyError::Malformed("the private part does not fit the wrapped key".into()));
        }
        Ok(Self { name, version })
    }
}

/// Names of keys have one segment.
fn is_name(place: &Place) -> bool {
    !place.as_str().contains('/')
}

const PRIVATE_VERSION: u8 = 1;

fn private(version: u32) -> Vec<u8> {
    let mut private = vec![PRIVATE_VERSION];
    private.extend(version.to_le_bytes());
    private
}

/// A ciphertext in its one spelling: `vault:v` N `:` BASE64.
struct Ciphertext {
    version: u32,
}

/// What an AEAD makes of 32 bytes: nonce, ciphertext and tag, with the nonce of 12 bytes of AES-GCM and
/// ChaCha20 or the one of 24 bytes of XChaCha20.
const SEALED_LENS: [usize; 2] = [12 + 32 + 16, 24 + 32 + 16];

impl Ciphertext {
    fn parse(bytes: &[u8]) -> Result<Self, KeyError> {
        let malformed = || KeyError::Malformed("the wrapped key is no ciphertext of transit".into());
        if bytes.len() > crate::manager::WRAPPED_MAX {
            return Err(malformed());
        }
        let text = std::str::from_utf8(bytes).map_err(|_| malformed())?;
        let (version, sealed) =
            text.strip_prefix("vault:v").and_then(|rest| rest.split_once(':')).ok_or_else(malformed)?;
        let number =
            version.parse::<u32>().ok().filter(|number| *number > 0 && number.to_string() == version);
        let sealed = STANDARD.decode(sealed).map_err(|_| malformed())?;
        let version = number.filter(|_| SEALED_LENS.contains(&sealed.len())).ok_or_else(malformed)?;
        Ok(Self { version })
    }
}

/// The associated data: what every wrap binds ‖ the key's uri, in base64 as the API wants it. The version
/// is bound by being the key's, the private part by being the version.
fn bound(context: WrapContext, kek_uri: &str) -> String {
    STANDARD.encode([aad(context, SLOT_TYPE).as_slice(), kek_uri.as_bytes()].concat())
}

#[derive(Serialize)]
struct Encrypt<'a> {
    plaintext: &'a str,
    associated_data: &'a str,
}

#[derive(Deserialize)]
struct Encrypted {
    ciphertext: String,
}

#[derive(Serialize)]
struct Decrypt<'a> {
    ciphertext: &'a str,
    associated_data: &'a str,
}

#[derive(Deserialize)]
struct Decrypted {
    #[serde(deserialize_with = "secret_text")]
    plaintext: Zeroizing<String>,
}

#[derive(Serialize)]
struct Nothing {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ciphertext_has_one_spelling() {
        let sealed = STANDARD.encode([7; 60]);
        let version = |text: &str| Ciphertext::parse(text.as_bytes()).ok().map(|parsed| parsed.version);
        assert_eq!(version(&format!("vault:v3:{sealed}")), Some(3));
        assert_eq!(version(&format!("vault:v4294967295:{sealed}")), Some(u32::MAX));
        assert_eq!(version(&format!("vault:v1:{}", STANDARD.encode([7; 72]))), Some(1));
        for text in [
            format!("vault:v03:{sealed}"),
            format!("vault:v+3:{sealed}"),
            format!("vault:v0:{sealed}"),
            format!("vault:v4294967296:{sealed}"),
            format!("vault:v:{sealed}"),
            format!("Vault:v3:{sealed}"),
            format!("vault:v3:{sealed}\n"),
            format!("vault:v3:{sealed}:"),
            format!("vault:v3:{}", STANDARD.encode([7; 61])),
            "vault:v3:".to_owned(),
            String::new(),
        ] {
            assert_eq!(version(&text), None, "{text}");
        }
    }

    /// Made with Python's struct and base64.
    #[test]
    fn the_associated_data_are_the_same_bytes_as_another_implementation_makes() {
        let expected = "AAECAwQFBgcICQoLDA0ODwcAAAABAAAABXZhdWx0LXRyYW5zaXQ6ZGI=";
        assert_eq!(bound(crate::derive::tests::CONTEXT, "vault-transit:db"), expected);
    }
}
