//! Key managers in Vault and OpenBao: the Transit engine wraps the DEK itself, the key/value engine keeps a
//! KEK and hands it out. RustyVault has only the latter, in version 1.
//!
//! What both share is here: the settings, and names of mounts and keys that can stand in a path without
//! harm. [`client`] speaks the HTTP API, [`auth`] logs in and keeps the token, [`transit`] and [`kv`] are the
//! managers. Nothing that the service says is repeated in an error: it could repeat a token of ours.

mod auth;
mod client;
mod kv;
mod transit;

use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use ureq::http::Uri;
use zeroize::Zeroizing;

use crate::manager::KeyError;
use crate::provider::TlsSettings;
use crate::secret::Secret32;
use crate::source::SecretSource;

pub(crate) use kv::{KvSettings, describe as describe_kv};
pub(crate) use transit::{TransitSettings, describe as describe_transit};

/// Longest path of a mount, a namespace or a key, in bytes: key uris have room for 256.
const PLACE_MAX: usize = 128;
/// Where the kubelet puts the token of a pod's service account.
const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Where a server is: `https://HOST[:PORT]`. Without TLS only on this host, for Transit is sent data keys
/// and key/value answers with KEKs.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Address(String);

impl TryFrom<String> for Address {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const FORM: &str = "address has the form https://HOST[:PORT], nothing behind it";
        let uri: Uri = text.parse().map_err(|_| FORM)?;
        let authority = uri.authority().ok_or(FORM)?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() || authority.as_str().contains('@') {
            return Err(FORM);
        }
        match uri.scheme_str() {
            Some("https") => {}
            Some("http") if is_loopback(authority.host()) => {}
            Some("http") => {
                return Err("address is http:// and not on this host: keys travel there, use https://");
            }
            _ => return Err(FORM),
        }
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A path of plain segments: a mount, a namespace, a prefix, the name of a secret. Every character of it
/// stands for itself in a URL, and no segment leads elsewhere.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Place(String);

impl Place {
    /// Reads one; none where the text is anything else.
    fn parse(text: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let is_segment = |segment: &str| {
            segment.bytes().all(plain) && segment.bytes().next().is_some_and(|byte| byte != b'.')
        };
        (text.len() <= PLACE_MAX && text.split('/').all(is_segment)).then(|| Self(text.to_owned()))
    }

    fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Place {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(text.trim_end_matches('/'))
            .ok_or("a path has at most 128 letters, digits, dots, dashes and underscores, separated by /")
    }
}

/// What every provider of this kind is set to.
struct Service<'a> {
    address: &'a Address,
    namespace: Option<&'a Place>,
    tls: &'a TlsSettings,
    auth: &'a AuthSettings,
}

/// How sealbd proves to the server who it is.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "AuthTable")]
pub(crate) enum AuthSettings {
    /// A token that something else keeps alive, such as Vault Agent.
    TokenFile { token: SecretSource },
    /// A role of this host and its secret.
    AppRole { role_id: String, secret_id: SecretSource, mount: Place },
    /// The certificate of the connection.
    Cert { name: Option<String>, mount: Place },
    /// The service account of this pod.
    Kubernetes { role: String, jwt: PathBuf, mount: Place },
}

/// The table as it is written; which settings belong to which method is checked when it is taken apart.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AuthTable {
    method: String,
    token: Option<String>,
    role_id: Option<String>,
    secret_id: Option<String>,
    name: Option<String>,
    role: Option<String>,
    jwt: Option<PathBuf>,
    mount: Option<Place>,
}

impl TryFrom<AuthTable> for AuthSettings {
    type Error = String;

    fn try_from(table: AuthTable) -> Result<Self, String> {
        let AuthTable { method, token, role_id, secret_id, name, role, jwt, mount } = table;
        let given = [
            ("token", token.is_some()),
            ("role_id", role_id.is_some()),
            ("secret_id", secret_id.is_some()),
            ("name", name.is_some()),
            ("role", role.is_some()),
            ("jwt", jwt.is_some()),
            ("mount", mount.is_some()),
        ];
        let only = |known: &[&str]| match given.iter().find(|(name, is)| *is && !known.contains(name)) {
            Some((name, _)) => Err(format!("auth: method {method} has no {name}")),
            None => Ok(()),
        };
        let missing = |name: &str| format!("auth: method {method} needs {name}");
        let secret = |name: &str, text: Option<String>| {
            let text = text.ok_or_else(|| missing(name))?;
            text.parse::<SecretSource>().map_err(|error| format!("auth: {name}: {error}"))
        };
        let mounted = |default: &str| mount.clone().unwrap_or_else(|| Place(default.to_owned()));
        match method.as_str() {
            "token-file" => {
                only(&["token"])?;
                Ok(Self::TokenFile { token: secret("token", token)? })
            }
            "approle" => {
                only(&["role_id", "secret_id", "mount"])?;
                let role_id = role_id.ok_or_else(|| missing("role_id"))?;
                Ok(Self::AppRole {
                    role_id,
                    secret_id: secret("secret_id", secret_id)?,
                    mount: mounted("approle"),
                })
            }
            "cert" => {
                only(&["name", "mount"])?;
                Ok(Self::Cert { name, mount: mounted("cert") })
            }
            "kubernetes" => {
                only(&["role", "jwt", "mount"])?;
                let role = role.ok_or_else(|| missing("role"))?;
                let jwt = jwt.unwrap_or_else(|| PathBuf::from(SERVICE_ACCOUNT_TOKEN));
                Ok(Self::Kubernetes { role, jwt, mount: mounted("kubernetes") })
            }
            // The text is not repeated: a secret may stand there by mistake.
            _ => Err("auth: method is token-file, approle, cert or kubernetes".to_owned()),
        }
    }
}

/// The name of a key from a spec `kms:PROVIDER/KEY`.
fn key_of_spec(key: Option<&str>) -> Result<Option<Place>, KeyError> {
    let parsed = key.map(|key| Place::parse(key).ok_or(key)).transpose();
    parsed.map_err(|_| {
        KeyError::Settings(
            "the name of the key has letters, digits, dots, dashes, underscores and / only".into(),
        )
    })
}

/// The 32 bytes of a key from their text; none where there are more or fewer.
fn key_from_text(text: &str, decode: impl FnOnce(&str, &mut [u8]) -> Option<usize>) -> Option<Secret32> {
    // A base64 decoder wants room for the padding, too.
    let mut bytes = Zeroizing::new([0; 36]);
    let len = decode(text, &mut *bytes)?;
    let exact: &[u8; 32] = bytes.get(..len)?.try_into().ok()?;
    let Ok(secret) = Secret32::fill(|out| {
        out.copy_from_slice(exact);
        Ok::<(), std::convert::Infallible>(())
    });
    Some(secret)
}

fn base64(text: &str, bytes: &mut [u8]) -> Option<usize> {
    STANDARD.decode_slice(text, bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exactly_32_bytes_are_a_key() {
        for len in [0, 1, 31, 33, 34, 64] {
            assert!(key_from_text(&STANDARD.encode(vec![1; len]), base64).is_none(), "{len}");
        }
        assert_eq!(key_from_text(&STANDARD.encode([1; 32]), base64).unwrap().expose(), &[1; 32]);
    }

    #[test]
    fn keys_never_travel_to_another_host_without_tls() {
        let address = |text: &str| Address::try_from(text.to_owned());
        for fine in [
            "https://vault.example:8200",
            "https://vault/",
            "http://127.0.0.1:8200",
            "http://[::1]:1",
            "http://localhost",
        ] {
            assert!(address(fine).is_ok(), "{fine}");
        }
        for refused in [
            "http://vault.example:8200",
            "http://10.0.0.1",
            "http://127.0.0.1.example",
            "http://localhost.example",
        ] {
            assert!(address(refused).unwrap_err().contains("https://"), "{refused}");
        }
        for refused in [
            "vault:8200",
            "https://vault/v1",
            "https://vault?x",
            "https://a@vault",
            "unix:/x",
            "ftp://vault",
            "",
        ] {
            assert!(address(refused).unwrap_err().contains("form"), "{refused}");
        }
        assert_eq!(address("https://vault/").unwrap().0, "https://vault");
    }

    #[test]
    fn a_place_leads_nowhere_else() {
        for fine in ["transit", "team-a/kv.v2", "A_b-3"] {
            assert_eq!(Place::parse(fine).unwrap().as_str(), fine);
        }
        let long = "x".repeat(PLACE_MAX + 1);
        for refused in [
            "", "/", "a/", "/a", "a//b", "..", "a/../b", ".", "a/.b", "a b", "a?b", "a#b", "a%2f", "ä",
            "a\n", &long,
        ] {
            assert_eq!(Place::parse(refused), None, "{refused:?}");
        }
    }

    #[test]
    fn every_method_takes_its_own_settings_and_no_others() {
        let auth = |text: &str| toml::from_str::<AuthSettings>(text);
        assert!(auth("method='token-file'\ntoken='file:/t'").is_ok());
        assert!(auth("method='approle'\nrole_id='r'\nsecret_id='cred:s'").is_ok());
        assert!(auth("method='cert'").is_ok());
        assert!(auth("method='kubernetes'\nrole='r'").is_ok());
        for (text, told) in [
            ("method='approle'\nsecret_id='cred:s'", "needs role_id"),
            ("method='approle'\nrole_id='r'", "needs secret_id"),
            ("method='approle'\nrole_id='r'\nsecret_id='hunter2'", "never as itself"),
            ("method='token-file'", "needs token"),
            ("method='token-file'\ntoken='file:/t'\nrole='r'", "has no role"),
            ("method='kubernetes'", "needs role"),
            ("method='hunter2'", "is token-file"),
            ("", "is token-file"),
            ("methods='x'", "unknown field"),
        ] {
            let error = auth(text).unwrap_err().to_string();
            assert!(error.contains(told), "{text}: {error}");
            assert!(!error.lines().last().unwrap_or_default().contains("hunter2"), "{error}");
        }
    }
}
