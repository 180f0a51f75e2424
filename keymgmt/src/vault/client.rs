//! The HTTP API of Vault and OpenBao as far as sealbd uses it, with answers read tolerantly: RustyVault
//! leaves fields out that Vault always has.
//!
//! What an answer means for whoever waits is decided here once: who may try again and who may not. Texts of
//! the service are compared with known ones and never repeated.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use ureq::http::Method;
use zeroize::Zeroizing;

use super::{Address, Place, Service};
use crate::http::{Answer, Ask, Http};
use crate::manager::KeyError;
use crate::provider::Bounds;
use crate::request::RequestId;

/// Room for a request's body at once, so that no secret is left behind in a buffer that grew: the longest
/// secret is 8 KiB, twice that with every character escaped.
const BODY_ROOM: usize = 32 << 10;
/// Longest version of a server that is told.
const VERSION_MAX: usize = 32;

/// A server, reached on behalf of one request of a user.
pub(super) struct Client {
    http: Http,
    address: Address,
    namespace: Option<Place>,
    request_id: RequestId,
}

/// One question.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    /// Below `/v1/`.
    pub(super) path: &'a str,
    pub(super) token: Option<&'a str>,
    pub(super) body: Option<&'a Zeroizing<Vec<u8>>>,
}

/// An answer that is one: done, or a refusal that its reader must understand.
pub(super) struct Reply {
    status: u16,
    body: Zeroizing<Vec<u8>>,
}

impl Client {
    /// # Errors
    /// [`KeyError::Settings`] and [`KeyError::Secret`] for certificates that cannot be read.
    pub(super) fn new(
        service: &Service<'_>,
        bounds: Bounds,
        request_id: RequestId,
    ) -> Result<Self, KeyError> {
        let Service { address, namespace, tls, auth: _ } = service;
        Ok(Self {
            http: Http::new(tls, bounds.timeout)?,
            address: (*address).clone(),
            namespace: namespace.cloned(),
            request_id,
        })
    }

    /// Asks once.
    ///
    /// # Errors
    /// [`KeyError::Unreachable`] when the server does not answer, is sealed, failing or pressed;
    /// [`KeyError::Untrusted`] when it redirects or answers what no such server answers.
    pub(super) async fn send(&self, call: Call<'_>) -> Result<Reply, KeyError> {
        let path = call.path.to_owned();
        let Answer { status, body, .. } = self.exchange(call, self.namespace.as_ref()).await?;
        let reply = Reply { status, body };
        let told = |what: &str| format!("{}/v1/{path}: {what}", self.address.0);
        match status {
            200..=299 | 400 | 403 | 404 | 405 => Ok(reply),
            300..=399 => Err(KeyError::Untrusted(told(
                "answers with a redirect, which is not followed; set the address of the active server or of \
                 what stands before all of them",
            ))),
            500..=599 if reply.says("sealed") => Err(self.sealed()),
            429 => Err(KeyError::Unreachable(told("is on standby or has too many requests (status 429)"))),
            412 | 472 | 473 | 500..=599 => {
                Err(KeyError::Unreachable(told(&format!("fails with status {status}"))))
            }
            _ => Err(KeyError::Untrusted(told(&format!("answers with status {status}")))),
        }
    }

    /// Whether the server is there and unsealed, in one line for people. Asked of the whole server, not of
    /// a namespace.
    ///
    /// # Errors
    /// Those of [`Self::send`].
    pub(super) async fn health(&self) -> Result<String, KeyError> {
        let path = "sys/health?standbyok=true&perfstandbyok=true";
        let Answer { status, body, .. } = self.exchange(Call::get(path), None).await?;
        let version = serde_json::from_slice(&body).ok().and_then(|Status { version, .. }| version);
        let version =
            version.filter(|text| is_version(text)).map(|text| format!(" {text}")).unwrap_or_default();
        match status {
            200 => Ok(format!("server{version} at {} is unsealed", self.address.0)),
            503 => Err(self.sealed()),
            501 => Err(KeyError::Unreachable(format!("{} is not initialised", self.address.0))),
            400..=405 => self.seal_status().await,
            429 | 472 | 473 | 500..=599 => {
                Err(KeyError::Unreachable(format!("{} is not ready (health {status})", self.address.0)))
            }
            _ => Err(self.no_vault()),
        }
    }

    /// The same of servers without `sys/health`.
    async fn seal_status(&self) -> Result<String, KeyError> {
        let Answer { status, body, .. } = self.exchange(Call::get("sys/seal-status"), None).await?;
        match (status, serde_json::from_slice(&body)) {
            (200, Ok(Status { sealed: Some(false), .. })) => {
                Ok(format!("server at {} is unsealed", self.address.0))
            }
            (200, Ok(Status { sealed: Some(true), .. })) => Err(self.sealed()),
            (500..=599, _) => {
                Err(KeyError::Unreachable(format!("{} fails with status {status}", self.address.0)))
            }
            _ => Err(self.no_vault()),
        }
    }

    async fn exchange(&self, call: Call<'_>, namespace: Option<&Place>) -> Result<Answer, KeyError> {
        let Call { method, path, token, body } = call;
        let plain = |text: &str| Zeroizing::new(text.to_owned());
        // Vault Agent and OpenBao Proxy refuse what has no such header: pages cannot forge it.
        let mut headers = vec![("X-Vault-Request", plain("true"))];
        headers.push(("X-Correlation-Id", plain(self.request_id.as_str())));
        headers.extend(namespace.map(|namespace| ("X-Vault-Namespace", plain(namespace.as_str()))));
        headers.extend(token.map(|token| ("X-Vault-Token", plain(token))));
        headers.extend(body.map(|_| ("Content-Type", plain("application/json"))));
        let url = format!("{}/v1/{path}", self.address.0);
        self.http.ask(Ask { method, url, headers, body: body.cloned() }).await
    }

    fn no_vault(&self) -> KeyError {
        KeyError::Untrusted(format!("{} does not answer as Vault does", self.address.0))
    }

    fn sealed(&self) -> KeyError {
        KeyError::Unreachable(format!("{} is sealed; next: vault operator unseal", self.address.0))
    }
}

impl<'a> Call<'a> {
    pub(super) fn get(path: &'a str) -> Self {
        Self { method: Method::GET, path, token: None, body: None }
    }

    pub(super) fn post(path: &'a str, body: &'a Zeroizing<Vec<u8>>) -> Self {
        Self { method: Method::POST, path, token: None, body: Some(body) }
    }

    pub(super) fn delete(path: &'a str) -> Self {
        Self { method: Method::DELETE, path, token: None, body: None }
    }
}

impl Reply {
    pub(super) fn is_done(&self) -> bool {
        (200..=299).contains(&self.status)
    }

    pub(super) fn is_invalid(&self) -> bool {
        self.status == 400
    }

    pub(super) fn is_forbidden(&self) -> bool {
        self.status == 403
    }

    /// Also said of an operation that the engine at that path does not know.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self.status, 404 | 405)
    }

    /// The body of what was done.
    ///
    /// # Errors
    /// [`KeyError::Denied`] when it was not done; [`KeyError::Untrusted`] when the body is another. The
    /// parser's message is not told: it may quote the body.
    pub(super) fn read<T: DeserializeOwned>(&self, what: &str) -> Result<T, KeyError> {
        if !self.is_done() {
            return Err(self.refused(what));
        }
        serde_json::from_slice(&self.body)
            .map_err(|_| KeyError::Untrusted(format!("{what}: the answer is not what Vault answers")))
    }

    /// Why it was not done.
    pub(super) fn refused(&self, what: &str) -> KeyError {
        let why = match self.status {
            403 => "permission denied: the token's policies do not allow it, or the token has expired",
            404 | 405 => "not found: no such name, version, mount or namespace",
            _ => "the request was refused as invalid",
        };
        KeyError::Denied(format!("{what}: {why}"))
    }

    /// Whether one of the error texts has that phrase.
    pub(super) fn says(&self, phrase: &str) -> bool {
        let Ok(Errors { errors, error }) = serde_json::from_slice(&self.body) else { return false };
        errors.iter().chain(&error).any(|text| text.contains(phrase))
    }
}

/// Errors as Vault (`errors`) and RustyVault (`error`) tell them.
#[derive(Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<String>,
    error: Option<String>,
}

/// Of `sys/health` and `sys/seal-status`.
#[derive(Deserialize)]
struct Status {
    sealed: Option<bool>,
    version: Option<String>,
}

/// What stands around an engine's own answer.
#[derive(Deserialize)]
pub(super) struct Data<T> {
    pub(super) data: T,
}

/// A secret text in an answer.
pub(super) fn secret_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Zeroizing<String>, D::Error> {
    String::deserialize(deserializer).map(Zeroizing::new)
}

/// The body of a request.
pub(super) fn json(body: &impl Serialize) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(BODY_ROOM));
    serde_json::to_writer(&mut *bytes, body).expect("texts and numbers have a JSON form");
    bytes
}

fn is_version(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'+' | b'-');
    (1..=VERSION_MAX).contains(&text.len()) && text.bytes().all(plain)
}
