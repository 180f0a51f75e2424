//! Keyslots of KMIP servers, versions 1.2 to 2.0 of the protocol (OASIS Key Management Interoperability Protocol
//! Specification), over mutual TLS.
//!
//! A key of the server wraps, in one of two modes: *encrypt*, where it stays in the server, and *get*, where it
//! is handed out for each wrap and unwrap and forgotten at once. Which one wrapped a keyslot stands in the keyslot
//! (`keyslot`). What a key may be used for is the word of the server itself over TLS, its State; names and other
//! attributes decide nothing. The codec is [`ttlv`], the messages are [`messages`].

mod client;
mod failure;
mod keys;
mod keyslot;
mod manager;
pub mod messages;
mod tags;
pub mod ttlv;

use std::fmt;
use std::net::Ipv6Addr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;

use self::client::Client;
use self::keyslot::{KeyId, Keyslot};
use self::manager::Inner;
use self::messages::Version;
use crate::blocking::Blocking;
use crate::manager::{
    BoxFuture, Health, KeyDescription, KeyError, KeyManager, SlotType, WrapContext, WrappedKey,
};
use crate::provider::{Bounds, ProviderKind, Settings, TlsSettings, settings};
use crate::registry::{Opened, Opening};
use crate::secret::Dek;

/// The row of this kind.
pub(crate) const KIND: ProviderKind = ProviderKind {
    name: "kmip",
    slot_type: SLOT_TYPE,
    settings: settings::<KmipSettings>,
    describe: keyslot::describe,
};

const SLOT_TYPE: SlotType = SlotType::Kmip;
const DEVICE: &str = "KMIP server";
/// Registered for KMIP.
const PORT: u16 = 5696;
/// Longest name of a host (RFC 1035 §2.3.4).
const HOST_MAX: usize = 253;
/// Beyond the deadline of an operation, for the thread that it runs on to tell how it ended.
const GRACE: Duration = Duration::from_millis(500);

/// `[provider.NAME]` with `type = "kmip"`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KmipSettings {
    address: Address,
    tls: TlsSettings,
    #[serde(default)]
    version: Versions,
    #[serde(default)]
    mode: Mode,
}

/// Where a server is: `HOST[:PORT]`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Address {
    host: String,
    port: u16,
}

impl Address {
    fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']')?;
                host.parse::<Ipv6Addr>().ok()?;
                (host, port)
            }
            None => {
                let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
                if !(1..=HOST_MAX).contains(&host.len()) || !host.bytes().all(plain) {
                    return None;
                }
                (host, port)
            }
        };
        let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
        let port = match port {
            "" => PORT,
            port => port.strip_prefix(':').filter(|port| digits(port))?.parse().ok()?,
        };
        (port != 0).then(|| Self { host: host.to_owned(), port })
    }

    fn host(&self) -> &str {
        &self.host
    }

    fn port(&self) -> u16 {
        self.port
    }
}

impl TryFrom<String> for Address {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("address has the form HOST[:PORT], with an IPv6 address as [::1]")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// How keyslots are wrapped.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// As the server can: encrypt before get.
    #[default]
    Auto,
    /// The KEK is fetched.
    Get,
    /// The KEK stays in the server.
    Encrypt,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Get => "get",
            Self::Encrypt => "encrypt",
        }
    }
}

/// Which version is spoken; without one, the newest that both do.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
struct Versions(Option<Version>);

impl TryFrom<String> for Versions {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "auto" {
            return Ok(Self(None));
        }
        let version = Version::parse(&text).ok_or("version is auto, 1.2, 1.4 or 2.0")?;
        Ok(Self(Some(version)))
    }
}

impl Settings for KmipSettings {
    fn open(&self, key: Option<&str>, bounds: Bounds, _opening: &mut Opening<'_, '_>) -> Opened {
        let Self { address, tls, version: Versions(version), mode } = self;
        let no_id = || KeyError::Settings("the identifier of the key has visible ASCII only".into());
        let named = key.map(|key| KeyId::parse(key).ok_or_else(no_id)).transpose()?;
        let client = Client::new(address.clone(), tls, *version)?;
        let (next, notes) = (Mutex::new(None), Mutex::new(Vec::new()));
        let inner = Inner { client, mode: *mode, named, timeout: bounds.timeout, next, notes };
        Ok(Box::new(Kmip(Blocking::new(inner, DEVICE, bounds.timeout + GRACE))))
    }
}

/// Keys of a KMIP server.
struct Kmip(Blocking<Inner>);

impl KeyManager for Kmip {
    fn slot_type(&self) -> SlotType {
        SLOT_TYPE
    }

    fn wrap<'a>(&'a self, dek: &'a Dek, context: WrapContext) -> BoxFuture<'a, Result<WrappedKey, KeyError>> {
        Box::pin(async move {
            let dek = Dek(dek.0.duplicate());
            self.0.run(move |inner| inner.wrap(&dek, context)).await
        })
    }

    fn unwrap<'a>(
        &'a self,
        key: &'a WrappedKey,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Option<Dek>, KeyError>> {
        Box::pin(async move {
            if key.slot_type != SLOT_TYPE {
                return Ok(None);
            }
            let keyslot = Keyslot::decode(key)?;
            if self.0.named.as_ref().is_some_and(|named| *named != keyslot.id) {
                return Ok(None);
            }
            let key = key.clone();
            self.0.run(move |inner| inner.unwrap(&key, &keyslot, context)).await
        })
    }

    fn describe(&self, key: &WrappedKey) -> Result<KeyDescription, KeyError> {
        keyslot::describe(key)
    }

    fn rotate<'a>(&'a self, current: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(async move {
            let keyslot = Keyslot::decode(current)?;
            self.0.run(move |inner| inner.rotate(&keyslot)).await
        })
    }

    fn destroy<'a>(&'a self, key: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(async move {
            let keyslot = Keyslot::decode(key)?;
            self.0.run(move |inner| inner.destroy(&keyslot)).await
        })
    }

    fn probe(&self) -> BoxFuture<'_, Result<Health, KeyError>> {
        Box::pin(self.0.run(Inner::probe))
    }

    fn notes(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
