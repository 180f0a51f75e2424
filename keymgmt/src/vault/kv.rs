//! The key/value engine, versions 1 and 2: the server keeps a KEK and hands it out, type `vault-kv`.
//!
//! Every wrap makes a KEK of its own, 32 random bytes in field `key` (base64) of a new secret whose name is
//! a random uuid, so that one KEK can be destroyed without touching another volume, and nothing is ever
//! overwritten: version 1 of the engine keeps no old values. Version 2 numbers them; the number is pinned in
//! the keyslot and always asked for. A secret that is there already can be named in the spec; hex in field
//! `value`, as OpenStack's Castellan writes it, is understood, too. Such secrets are others' to rotate and
//! to destroy.
//!
//! A keyslot's uri is `vault-kv:NAME`, below the mount and the prefix of the settings; the details in its
//! private part (see [`stored`]) are engine u8 ‖ version u32 LE ‖ origin u8.

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
use crate::secret::{Dek, Secret32, fill_random};
use crate::{stored, verify};

/// `[provider.NAME]` with `type = "vault-kv"`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KvSettings {
    address: Address,
    namespace: Option<Place>,
    #[serde(default = "default_mount")]
    mount: Place,
    #[serde(default)]
    tls: TlsSettings,
    auth: AuthSettings,
    #[serde(default = "default_engine")]
    version: Engines,
    #[serde(default = "default_prefix")]
    prefix: Place,
}

fn default_mount() -> Place {
    Place("secret".to_owned())
}

fn default_prefix() -> Place {
    Place("sealbd".to_owned())
}

fn default_engine() -> Engines {
    Engines::Versioned
}

/// The two versions of the engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "u8")]
enum Engines {
    Plain,
    Versioned,
}

impl Engines {
    fn number(self) -> u8 {
        match self {
            Self::Plain => 1,
            Self::Versioned => 2,
        }
    }
}

impl TryFrom<u8> for Engines {
    type Error = &'static str;

    fn try_from(number: u8) -> Result<Self, Self::Error> {
        match number {
            1 => Ok(Self::Plain),
            2 => Ok(Self::Versioned),
            _ => Err("version is 1 or 2, that of the key/value engine"),
        }
    }
}

impl Settings for KvSettings {
    fn open(&self, key: Option<&str>, bounds: Bounds, opening: &mut Opening<'_, '_>) -> Opened {
        let Self { address, namespace, mount, tls, auth, version, prefix } = self;
        let service = Service { address, namespace: namespace.as_ref(), tls, auth };
        let key = key_of_spec(key)?;
        let session = Session::open(&service, bounds, opening)?;
        let (mount, prefix) = (mount.clone(), prefix.clone());
        Ok(Box::new(Kv { session, mount, prefix, engine: *version, key }))
    }
}

/// KEKs of the key/value engine.
struct Kv {
    session: Session,
    mount: Place,
    prefix: Place,
    engine: Engines,
    /// The secret that new keyslots use; without one they make their own.
    key: Option<Place>,
}

const SLOT_TYPE: SlotType = SlotType::VaultKv;
const SCHEME: &str = "vault-kv:";

/// Tells what a keyslot of this kind is made of.
///
/// # Errors
/// [`KeyError::Malformed`].
pub(crate) fn describe(key: &WrappedKey) -> Result<KeyDescription, KeyError> {
    let Slot { name, details } = Slot::parse(key)?;
    let version = (details.engine == Engines::Versioned).then(|| details.version.to_string());
    let shown = version.as_ref().map(|version| format!(" v{version}")).unwrap_or_default();
    Ok(KeyDescription {
        text: format!("kv secret {}{shown}", name.as_str()),
        key_id: Some(name.as_str().to_owned()),
        version,
    })
}

impl Kv {
    /// The API's path of a secret's value or, in version 2, of all of its versions.
    fn path(&self, part: &str, name: &Place) -> String {
        let (mount, prefix, name) = (self.mount.as_str(), self.prefix.as_str(), name.as_str());
        match self.engine {
            Engines::Plain => format!("{mount}/{prefix}/{name}"),
            Engines::Versioned => format!("{mount}/{part}/{prefix}/{name}"),
        }
    }

    /// The secret of exactly that version.
    async fn read(&self, name: &Place, version: u32) -> Result<Secret32, KeyError> {
        let path = self.path("data", name);
        let fields = match self.engine {
            Engines::Plain => {
                let Data { data } = self.session.call(Call::get(&path)).await?.read(&path)?;
                data
            }
            Engines::Versioned => {
                let pinned = format!("{path}?version={version}");
                let Data { data: Versioned { data, .. } } =
                    self.session.call(Call::get(&pinned)).await?.read(&pinned)?;
                data
            }
        };
        Fields::secret(&fields).ok_or_else(|| {
            KeyError::Denied(format!(
                "{path}: neither field key (base64) nor field value (hex) holds a key of 32 bytes"
            ))
        })
    }

    /// A new KEK under a new name, and its version.
    async fn make(&self, context: WrapContext) -> Result<(Place, u32, Secret32), KeyError> {
        let (name, secret) = (Place(random_uuid()?), Secret32::generate()?);
        let encoded = Zeroizing::new(STANDARD.encode(secret.expose()));
        // For people who look into the engine; never read by us.
        let fields = NewFields { key: &encoded, volume: &uuid(context.volume), made_by: "sealbd" };
        let path = self.path("data", &name);
        let version = match self.engine {
            Engines::Plain => {
                let reply = self.session.call(Call::post(&path, &json(&fields))).await?;
                if !reply.is_done() {
                    return Err(reply.refused(&path));
                }
                0
            }
            Engines::Versioned => {
                // Nothing may be there yet.
                let body = json(&NewVersioned { options: Options { cas: 0 }, data: fields });
                let reply = self.session.call(Call::post(&path, &body)).await?;
                let Data { data: Made { version } } = reply.read(&path)?;
                version
            }
        };
        Ok((name, version, secret))
    }

    /// The newest version of a secret that is there.
    async fn newest(&self, name: &Place) -> Result<u32, KeyError> {
        match self.engine {
            Engines::Plain => Ok(0),
            Engines::Versioned => {
                let path = self.path("data", name);
                let Data { data: Versioned { metadata: Made { version }, .. } } =
                    self.session.call(Call::get(&path)).await?.read(&path)?;
                Ok(version)
            }
        }
    }

    async fn wrap_stored(&self, dek: &Dek, context: WrapContext) -> Result<WrappedKey, KeyError> {
        let (name, version, secret, origin) = match &self.key {
            Some(name) => {
                let version = self.newest(name).await?;
                // What was the newest version is asked for by number, as every unwrap will.
                let secret = self.read(name, version).await?;
                (name.clone(), version, secret, Origin::Given)
            }
            None => {
                let (name, version, secret) = self.make(context).await?;
                (name, version, secret, Origin::Made)
            }
        };
        let details = Details { engine: self.engine, version, origin }.encode();
        stored::wrap(&secret, dek, context, SLOT_TYPE, format!("{SCHEME}{}", name.as_str()), &details)
    }

    async fn unwrap_stored(&self, key: &WrappedKey, context: WrapContext) -> Result<Option<Dek>, KeyError> {
        if key.slot_type != SLOT_TYPE {
            return Ok(None);
        }
        let slot = Slot::parse(key)?;
        if !self.is_ours(&slot.name) {
            return Ok(None);
        }
        verify::wrapped_len(key)?;
        self.same_engine(&slot)?;
        let secret = self.read(&slot.name, slot.details.version).await?;
        stored::unwrap(&secret, key, context)
    }

    /// Whether keyslots of that secret are ours, and not left to others.
    fn is_ours(&self, name: &Place) -> bool {
        self.key.as_ref().is_none_or(|key| key == name)
    }

    fn same_engine(&self, slot: &Slot) -> Result<(), KeyError> {
        if slot.details.engine == self.engine {
            return Ok(());
        }
        let (theirs, ours) = (slot.details.engine.number(), self.engine.number());
        Err(KeyError::Denied(format!(
            "the keyslot is of version {theirs} of the key/value engine, the provider has version = {ours}"
        )))
    }

    /// The answer to `rotate` and `destroy` of a secret that was there already.
    fn of_others(&self, slot: &Slot, verb: &str, next: &str) -> KeyError {
        let (mount, prefix, name) = (self.mount.as_str(), self.prefix.as_str(), slot.name.as_str());
        KeyError::Unsupported(format!(
            "sealbd did not make the secret {name}, others may use it, so it is not {verb}; next: vault kv {next} \
             -mount={mount} {prefix}/{name}"
        ))
    }

    /// There is nothing to make ahead: every wrap makes a KEK of its own.
    fn rotate_secret(&self, current: &WrappedKey) -> Result<(), KeyError> {
        let slot = Slot::parse(current)?;
        match self.key {
            None => Ok(()),
            Some(_) => Err(self.of_others(&slot, "rotated", "put")),
        }
    }

    async fn destroy_secret(&self, key: &WrappedKey) -> Result<(), KeyError> {
        let slot = Slot::parse(key)?;
        self.same_engine(&slot)?;
        if !self.is_ours(&slot.name) || slot.details.origin == Origin::Given {
            return Err(self.of_others(&slot, "destroyed", "metadata delete"));
        }
        let Slot { name, details } = slot;
        let path = self.path("metadata", &name);
        let reply = self.session.call(Call::delete(&path)).await?;
        if !reply.is_done() && !reply.is_missing() {
            return Err(reply.refused(&path));
        }
        // It is told as destroyed only when it cannot be had any more.
        let left = self.path("data", &name);
        let left = match self.engine {
            Engines::Plain => left,
            Engines::Versioned => format!("{left}?version={}", details.version),
        };
        let reply: Reply = self.session.call(Call::get(&left)).await?;
        match reply {
            reply if reply.is_missing() => Ok(()),
            reply if reply.is_done() => {
                Err(KeyError::Denied(format!("{path}: was deleted and is still there")))
            }
            reply => Err(reply.refused(&format!("{path} was deleted, which could not be checked: {left}"))),
        }
    }
}

impl KeyManager for Kv {
    fn slot_type(&self) -> SlotType {
        SLOT_TYPE
    }

    fn wrap<'a>(&'a self, dek: &'a Dek, context: WrapContext) -> BoxFuture<'a, Result<WrappedKey, KeyError>> {
        Box::pin(self.wrap_stored(dek, context))
    }

    fn unwrap<'a>(
        &'a self,
        key: &'a WrappedKey,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Option<Dek>, KeyError>> {
        Box::pin(self.unwrap_stored(key, context))
    }

    fn describe(&self, key: &WrappedKey) -> Result<KeyDescription, KeyError> {
        describe(key)
    }

    fn rotate<'a>(&'a self, current: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(async { self.rotate_secret(current) })
    }

    fn destroy<'a>(&'a self, key: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(self.destroy_secret(key))
    }

    fn probe(&self) -> BoxFuture<'_, Result<Health, KeyError>> {
        Box::pin(self.session.probe())
    }
}

/// What a keyslot says. Nothing of it is authenticated before the wrap has been opened.
struct Slot {
    name: Place,
    details: Details,
}

impl Slot {
    fn parse(key: &WrappedKey) -> Result<Self, KeyError> {
        verify::is_type(key, SLOT_TYPE)?;
        let name = key.kek_uri.strip_prefix(SCHEME).and_then(Place::parse);
        let name = name.ok_or_else(|| KeyError::Malformed("the key uri names no key/value secret".into()))?;
        let details = Details::decode(stored::details(key)?)
            .filter(|details| details.origin == Origin::Given || is_uuid(name.as_str()))
            .ok_or_else(|| KeyError::Malformed("the private part is none of a key/value keyslot".into()))?;
        Ok(Self { name, details })
    }
}

/// Who made a secret: only what sealbd made it destroys.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Given,
    Made,
}

/// engine u8 ‖ version u32 LE (0 in version 1 of the engine) ‖ origin u8.
struct Details {
    engine: Engines,
    version: u32,
    origin: Origin,
}

const DETAILS_LEN: usize = 6;

impl Details {
    fn encode(&self) -> [u8; DETAILS_LEN] {
        let Self { engine, version, origin } = self;
        let [a, b, c, d] = version.to_le_bytes();
        [engine.number(), a, b, c, d, u8::from(*origin == Origin::Made)]
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let &[engine, a, b, c, d, origin] = bytes else { return None };
        let engine = Engines::try_from(engine).ok()?;
        let version = u32::from_le_bytes([a, b, c, d]);
        let origin = match origin {
            0 => Origin::Given,
            1 => Origin::Made,
            _ => return None,
        };
        ((engine == Engines::Versioned) == (version > 0)).then_some(Self { engine, version, origin })
    }
}

/// What is read of a secret.
#[derive(Deserialize)]
struct Fields {
    #[serde(default)]
    key: Option<SecretText>,
    #[serde(default)]
    value: Option<SecretText>,
}

#[derive(Deserialize)]
#[serde(transparent)]
struct SecretText(#[serde(deserialize_with = "secret_text")] Zeroizing<String>);

impl Fields {
    fn secret(&self) -> Option<Secret32> {
        match self {
            Self { key: Some(SecretText(text)), .. } => key_from_text(text, base64),
            Self { value: Some(SecretText(text)), .. } => key_from_text(text, hex),
            Self { key: None, value: None } => None,
        }
    }
}

#[derive(Serialize)]
struct NewFields<'a> {
    key: &'a str,
    volume: &'a str,
    made_by: &'a str,
}

#[derive(Serialize)]
struct NewVersioned<'a> {
    options: Options,
    data: NewFields<'a>,
}

#[derive(Serialize)]
struct Options {
    cas: u32,
}

#[derive(Deserialize)]
struct Versioned {
    data: Fields,
    metadata: Made,
}

#[derive(Deserialize)]
struct Made {
    version: u32,
}

fn hex(text: &str, bytes: &mut [u8]) -> Option<usize> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    for (byte, [high, low]) in bytes.get_mut(..pairs.len())?.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(pairs.len())
}

fn random_uuid() -> Result<String, KeyError> {
    let mut bytes = [0; 16];
    fill_random(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(uuid(bytes))
}

fn uuid(bytes: [u8; 16]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Lower case only: one secret has one name.
fn is_uuid(text: &str) -> bool {
    let dashes = [8, 13, 18, 23];
    let fits = |(at, byte): (usize, u8)| match byte {
        b'-' => dashes.contains(&at),
        b'0'..=b'9' | b'a'..=b'f' => !dashes.contains(&at),
        _ => false,
    };
    text.len() == 36 && text.bytes().enumerate().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_decode_to_what_was_encoded_and_nothing_else_decodes() {
        let details = Details { engine: Engines::Versioned, version: 0x0102, origin: Origin::Made };
        assert_eq!(details.encode(), [2, 2, 1, 0, 0, 1]);
        let decoded = Details::decode(&details.encode()).unwrap();
        assert!(decoded.version == 0x0102 && decoded.origin == Origin::Made);
        for wrong in [
            &[][..],
            &[2, 2, 1, 0, 0],
            &[2, 2, 1, 0, 0, 1, 0],
            &[3, 1, 0, 0, 0, 1],
            &[2, 1, 0, 0, 0, 2],
            &[2, 0, 0, 0, 0, 1],
            &[1, 1, 0, 0, 0, 1],
        ] {
            assert!(Details::decode(wrong).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn a_secret_is_32_bytes_in_base64_or_in_castellans_hex() {
        let secret = |json: &str| serde_json::from_str::<Fields>(json).unwrap().secret();
        let base64 = STANDARD.encode([0xa5; 32]);
        let hex = "a5".repeat(32);
        assert_eq!(secret(&format!(r#"{{"key":"{base64}","x":1}}"#)).unwrap().expose(), &[0xa5; 32]);
        assert_eq!(
            secret(&format!(r#"{{"value":"{hex}","type":"SymmetricKey"}}"#)).unwrap().expose(),
            &[0xa5; 32]
        );
        for wrong in [
            "{}".to_owned(),
            format!(r#"{{"key":"{hex}"}}"#),
            format!(r#"{{"value":"{base64}"}}"#),
            format!(r#"{{"value":"{hex}a5"}}"#),
            format!(r#"{{"value":"{}"}}"#, &hex[1..]),
            format!(r#"{{"value":"{}"}}"#, "a5".repeat(40)),
            format!(r#"{{"value":"+{}"}}"#, &hex[1..]),
            r#"{"key":""}"#.to_owned(),
        ] {
            assert!(secret(&wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn made_names_are_uuids_in_lower_case() {
        let name = random_uuid().unwrap();
        assert!(is_uuid(&name) && Place::parse(&name).is_some());
        assert!(!is_uuid(&name.to_uppercase()) || name == name.to_uppercase());
        assert!(!is_uuid(&name[1..]) && !is_uuid(&name.replace('-', "0")));
    }
}
