//! Key managers that have settings: the `[provider.NAME]` tables of `sealbd.toml`.
//!
//! A provider is one key manager of the organisation, under a name of this host. Its table is checked
//! whole when it is read, without touching the service; a setting that is not known is an error. Settings
//! hold where secrets are, never a secret. A new kind of provider is one file and one row in `KINDS`.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::cache::CacheSettings;
use crate::exec;
use crate::manager::{KeyDescription, KeyError, SlotType, WrappedKey};
use crate::registry::{Opened, Opening};
use crate::source::SecretSource;

/// One attempt, by default.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Attempts go on for so long, by default. Long enough for a restart of the service, short enough for
/// somebody who waits.
const RETRY_FOR: Duration = Duration::from_secs(15);
/// What no timeout may exceed: an open that hangs for longer is taken for dead.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// Longest name of a provider, and of a key in a spec.
const NAME_MAX: usize = 64;

/// One row: a kind of provider.
pub struct ProviderKind {
    /// The `type` of its table.
    pub name: &'static str,
    /// The keyslots it makes.
    pub slot_type: SlotType,
    /// Reads what is special in its table.
    pub settings: fn(toml::Table) -> Result<Box<dyn Settings>, SettingsError>,
    /// Tells what such a keyslot is made of, without any secret.
    pub describe: fn(&WrappedKey) -> Result<KeyDescription, KeyError>,
}

/// Every kind in this build, in the order in which they are told to people.
pub const KINDS: &[ProviderKind] = &[
    #[cfg(feature = "barbican")]
    crate::barbican::KIND,
    #[cfg(feature = "vault")]
    ProviderKind {
        name: "vault-transit",
        slot_type: SlotType::VaultTransit,
        settings: settings::<crate::vault::TransitSettings>,
        describe: crate::vault::describe_transit,
    },
    #[cfg(feature = "vault")]
    ProviderKind {
        name: "vault-kv",
        slot_type: SlotType::VaultKv,
        settings: settings::<crate::vault::KvSettings>,
        describe: crate::vault::describe_kv,
    },
    #[cfg(feature = "kmip")]
    crate::kmip::KIND,
    ProviderKind {
        name: "exec",
        slot_type: SlotType::Exec,
        settings: settings::<exec::ExecSettings>,
        describe: exec::describe,
    },
    #[cfg(feature = "pkcs11")]
    ProviderKind {
        name: "pkcs11",
        slot_type: SlotType::Pkcs11,
        settings: settings::<crate::pkcs11::Pkcs11Settings>,
        describe: crate::pkcs11::describe,
    },
    #[cfg(feature = "tpm2")]
    ProviderKind {
        name: "tpm2",
        slot_type: SlotType::Tpm2,
        settings: settings::<crate::tpm2::Tpm2Settings>,
        describe: crate::tpm2::describe,
    },
];

/// Kinds that a keyslot number is set aside for.
const LATER: [&str; 3] = ["aws-kms", "kubernetes-kms", "tang"];
/// Kinds that are built with a feature.
const OPTIONAL: [&str; 6] = ["barbican", "vault-transit", "vault-kv", "kmip", "pkcs11", "tpm2"];

/// What one kind of provider is set to; read and checked, nothing reached yet.
pub trait Settings: Send + Sync {
    /// Makes a manager ready for use: reads its credentials, but reaches the service only when it is asked
    /// for something. `key` names a key in the manager: new keyslots use that one, and keyslots of other
    /// keys are left to others.
    ///
    /// # Errors
    /// Any [`KeyError`].
    fn open(&self, key: Option<&str>, bounds: Bounds, opening: &mut Opening<'_, '_>) -> Opened;
}

/// How long a manager may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// One attempt, connecting included.
    pub timeout: Duration,
    /// All attempts together; zero tries once.
    pub retry_for: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { timeout: TIMEOUT, retry_for: RETRY_FOR }
    }
}

/// Why a table cannot be used. Holds names of settings and never their values: a secret may stand there by
/// mistake.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(pub String);

/// One `[provider.NAME]` table, read.
pub struct Provider {
    /// Its name on this host.
    pub name: String,
    /// How long it may take.
    pub bounds: Bounds,
    /// Whether and how its keys are kept for an outage.
    pub(crate) cache: Option<CacheSettings>,
    kind: &'static ProviderKind,
    settings: Box<dyn Settings>,
}

/// What every kind of provider has.
#[derive(Deserialize)]
struct Common {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, with = "humantime_serde::option")]
    timeout: Option<Duration>,
    #[serde(default, with = "humantime_serde::option")]
    retry_for: Option<Duration>,
    cache: Option<CacheSettings>,
}

const COMMON: [&str; 4] = ["type", "timeout", "retry_for", "cache"];

impl Provider {
    /// Reads a table.
    ///
    /// # Errors
    /// [`SettingsError`], naming the setting.
    pub fn parse(name: &str, mut table: toml::Table) -> Result<Self, SettingsError> {
        let failed = |why: String| SettingsError(format!("provider {name}: {why}"));
        if !is_name(name) {
            return Err(SettingsError("a provider's name has 1 to 64 letters, digits, - and _".into()));
        }
        let common: toml::Table = COMMON.iter().filter_map(|key| table.remove_entry(*key)).collect();
        let Common { kind, timeout, retry_for, cache } = read(common).map_err(|error| failed(error.0))?;
        let kind = kind_of(&kind).map_err(failed)?;
        let bounds =
            Bounds { timeout: timeout.unwrap_or(TIMEOUT), retry_for: retry_for.unwrap_or(RETRY_FOR) };
        if bounds.timeout.is_zero() || bounds.timeout > WAIT_MAX || bounds.retry_for > WAIT_MAX {
            return Err(failed(
                "timeout and retry_for are at most 10 minutes, and timeout is not zero".into(),
            ));
        }
        let settings = (kind.settings)(table).map_err(|error| failed(error.0))?;
        Ok(Self { name: name.to_owned(), bounds, cache, kind, settings })
    }

    /// Which kind it is, e.g. `barbican`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind.name
    }

    /// The keyslots it makes.
    #[must_use]
    pub fn slot_type(&self) -> SlotType {
        self.kind.slot_type
    }

    /// Makes its manager ready for use, see [`Settings::open`].
    ///
    /// # Errors
    /// Any [`KeyError`].
    pub fn open(&self, key: Option<&str>, opening: &mut Opening<'_, '_>) -> Opened {
        self.settings.open(key, self.bounds, opening)
    }
}

/// Reads a table strictly into settings of one kind; the function of a row in [`KINDS`].
///
/// # Errors
/// [`SettingsError`], naming the setting.
pub fn settings<T: DeserializeOwned + Settings + 'static>(
    table: toml::Table,
) -> Result<Box<dyn Settings>, SettingsError> {
    read::<T>(table).map(|settings| Box::new(settings) as Box<dyn Settings>)
}

fn read<T: DeserializeOwned>(table: toml::Table) -> Result<T, SettingsError> {
    table.try_into().map_err(|error: toml::de::Error| SettingsError(without_values(error.message())))
}

/// A message without the value that it is about: names of settings stand in backquotes, strings in double
/// quotes, and numbers, and words where one of several was expected, in backquotes, too.
fn without_values(message: &str) -> String {
    let of_name = ["unknown field", "missing field", "duplicate field"];
    let names = of_name.iter().any(|kind| message.starts_with(kind));
    let (found, expected) = message.split_at(message.rfind(", expected").unwrap_or(message.len()));
    let quote = |c: char| c == '"' || (c == '`' && !names);
    match (found.find(quote), found.rfind(quote)) {
        (Some(first), Some(last)) => format!("{}…{}{expected}", &found[..first], &found[last + 1..]),
        _ => message.to_owned(),
    }
}

fn kind_of(name: &str) -> Result<&'static ProviderKind, String> {
    let known = || KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ");
    match KINDS.iter().find(|kind| kind.name == name) {
        Some(kind) => Ok(kind),
        None if LATER.contains(&name) => {
            Err(format!("type {name} is planned, not there yet; known are {}", known()))
        }
        None if OPTIONAL.contains(&name) => {
            Err(format!("this build has no {name}: build it with --features {name}"))
        }
        None => Err(format!("no such type; known are {}", known())),
    }
}

/// Whether that can name a provider.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(plain)
}

/// A secret's source as a setting: `file:PATH`, `cred:NAME` or `fd:N`.
///
/// # Errors
/// When it is anything else; the text is never repeated, it may be the secret itself.
pub fn secret_source<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SecretSource, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

/// A secret's source that needs nobody and can be read again: `file:PATH` or `cred:NAME`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct KeptSecret(pub(crate) SecretSource);

impl<'de> Deserialize<'de> for KeptSecret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match secret_source(deserializer)? {
            source @ (SecretSource::File(_) | SecretSource::Credential(_)) => Ok(Self(source)),
            SecretSource::Prompt | SecretSource::Fd(_) => {
                Err(serde::de::Error::custom("this secret is given as file:PATH or cred:NAME"))
            }
        }
    }
}

/// As [`secret_source`], for a setting that may be left out.
///
/// # Errors
/// Those of [`secret_source`].
pub fn optional_secret_source<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SecretSource>, D::Error> {
    secret_source(deserializer).map(Some)
}

/// Certificates for a connection to a manager, PEM files.
#[derive(Clone, Default, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// Certificates that may sign the manager's; default: those of the system.
    pub ca: Option<PathBuf>,
    /// Our certificate and those that lead to its signer.
    pub cert: Option<PathBuf>,
    /// The key of our certificate; only its owner may read it.
    pub key: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(table: &str) -> String {
        Provider::parse("prod", table.parse().unwrap()).err().unwrap().to_string()
    }

    #[test]
    fn a_type_that_is_not_there_is_told_apart() {
        assert!(refused("").contains("missing field `type`"));
        assert!(refused("type = 'passphrase'").contains("no such type"));
        assert!(refused("type = 'tang'").contains("planned"));
        assert!(refused("type = 3").contains("type"));
    }

    #[test]
    fn a_value_in_the_wrong_place_is_never_repeated() {
        assert_eq!(
            without_values("invalid type: string \"hunter2\", expected a map"),
            "invalid type: string …, expected a map"
        );
        assert_eq!(without_values(r#"string "a\"hunter2\"b", x"#), "string …, x");
        for (message, told) in [
            ("unknown variant `hunter2`, expected `a` or `b`", "unknown variant …, expected `a` or `b`"),
            ("unknown variant `a`, expected b`, expected `c`", "unknown variant …, expected `c`"),
            ("invalid type: integer `1234`, expected a string", "invalid type: integer …, expected a string"),
            ("unknown field `pin`, expected `a` or `b`", "unknown field `pin`, expected `a` or `b`"),
            ("missing field `type`", "missing field `type`"),
        ] {
            assert_eq!(without_values(message), told);
        }
    }
}
