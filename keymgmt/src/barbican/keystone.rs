//! Keystone v3 (OpenStack's identity service): logging in, the token, and where the catalog says that the
//! key manager is. Source: the Identity API v3 reference, `POST /v3/auth/tokens`.
//!
//! A token is kept until shortly before its end. Its lifetime is the difference of two times of Keystone's
//! clock, counted on ours, so that clocks that differ do no harm. A service that refuses a token (401) is
//! asked once more with a new one, never a third time: every login costs Keystone a slow password hash, and
//! accounts lock.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::Deserialize;
use ureq::http::Method;
use zeroize::Zeroizing;

use crate::address::Address;
use crate::http::{Answer, Ask, Http};
use crate::manager::KeyError;

use super::answer::{json, refusal};
use super::catalog::{Interface, Service, endpoint};
use super::login::{Credential, is_id};

/// Longest token; those of Keystone have 180 to 260 characters, with PKI some thousand.
const TOKEN_BYTES_MAX: usize = 8192;
/// A token is not used in the last seconds of its life, lest it end on the way.
const TOKEN_MARGIN_MAX: Duration = Duration::from_secs(30);
/// No token is used for longer without a new login, whatever it says.
const TOKEN_USE_MAX: Duration = Duration::from_secs(24 * 3600);

/// Where to log in, as whom, and which endpoint to take.
pub(crate) struct Login {
    pub(crate) keystone: Address,
    pub(crate) credential: Credential,
    pub(crate) region: Option<String>,
    pub(crate) interface: Interface,
    /// Instead of what the catalog says.
    pub(crate) endpoint: Option<Address>,
}

/// Asks the key manager, with a token that is there when it is needed.
pub(crate) struct Session {
    http: Http,
    login: Login,
    /// `X-Openstack-Request-Id`: `req-` and a uuid, or the services drop it (oslo.middleware, request_id).
    request_id: String,
    token: Mutex<Option<Arc<Token>>>,
}

/// What is asked of the key manager.
pub(crate) struct Call {
    pub(crate) method: Method,
    /// Below the endpoint's `/v1`.
    pub(crate) path: String,
    pub(crate) headers: Vec<(&'static str, &'static str)>,
    pub(crate) body: Option<Zeroizing<Vec<u8>>>,
}

/// A token, and what came with it.
pub(crate) struct Token {
    value: Zeroizing<String>,
    usable_until: Instant,
    endpoint: Address,
    user_id: Option<String>,
    password_expires: Option<SystemTime>,
}

impl Session {
    pub(crate) fn new(http: Http, login: Login, request_id: &str) -> Self {
        Self { http, login, request_id: format!("req-{request_id}"), token: Mutex::new(None) }
    }

    /// Asks the key manager. Should it refuse the token: one new login, one more try.
    ///
    /// # Errors
    /// Those of [`Http::ask`]; [`KeyError::Denied`] when Keystone refuses the login, or the key manager a
    /// token that is new.
    pub(crate) async fn ask(&self, call: &Call) -> Result<Answer, KeyError> {
        let token = self.token().await?;
        let answer = self.ask_with(&token, call).await?;
        if answer.status != 401 {
            return Ok(answer);
        }
        self.forget(&token);
        let token = self.token().await?;
        let answer = self.ask_with(&token, call).await?;
        if answer.status == 401 {
            self.forget(&token);
            return Err(KeyError::Denied(format!(
                "{} refuses a token that {} has just given",
                token.endpoint, self.login.keystone
            )));
        }
        Ok(answer)
    }

    /// Where the key manager is.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) async fn endpoint(&self) -> Result<Address, KeyError> {
        Ok(self.token().await?.endpoint.clone())
    }

    /// When the credential ends, where it does: the user's password, or the application credential. The
    /// latter may be forbidden to read about itself; then nothing is known.
    ///
    /// # Errors
    /// As [`Self::ask`], but for refusals.
    pub(crate) async fn credential_expires(&self) -> Result<Option<SystemTime>, KeyError> {
        #[derive(Deserialize)]
        struct Body {
            application_credential: Expiring,
        }
        #[derive(Deserialize)]
        struct Expiring {
            expires_at: Option<String>,
        }
        let token = self.token().await?;
        let Credential::Application { id, .. } = &self.login.credential else {
            return Ok(token.password_expires);
        };
        let Some(user) = &token.user_id else { return Ok(None) };
        let path = format!("/users/{user}/application_credentials/{id}");
        let headers = vec![self.token_header(&token), self.request_header()];
        let url = self.login.keystone.at(&path);
        let answer = self.http.ask(Ask { method: Method::GET, url, headers, body: None }).await?;
        if answer.status != 200 {
            return Ok(None);
        }
        let Body { application_credential } = json(&answer, "Keystone")?;
        Ok(application_credential.expires_at.as_deref().and_then(time))
    }

    async fn ask_with(&self, token: &Token, call: &Call) -> Result<Answer, KeyError> {
        let Call { method, path, headers, body } = call;
        let mut all = vec![self.token_header(token), self.request_header()];
        all.extend(headers.iter().map(|(name, value)| (*name, Zeroizing::new((*value).to_owned()))));
        let url = token.endpoint.at(path);
        self.http.ask(Ask { method: method.clone(), url, headers: all, body: body.clone() }).await
    }

    fn token_header(&self, token: &Token) -> (&'static str, Zeroizing<String>) {
        ("X-Auth-Token", token.value.clone())
    }

    fn request_header(&self) -> (&'static str, Zeroizing<String>) {
        ("X-Openstack-Request-Id", Zeroizing::new(self.request_id.clone()))
    }

    /// The token that is there, or a new one. Two who come at once may both log in: no lock is held while
    /// Keystone is asked.
    async fn token(&self) -> Result<Arc<Token>, KeyError> {
        if let Some(token) = &*self.kept()
            && Instant::now() < token.usable_until
        {
            return Ok(token.clone());
        }
        let token = Arc::new(self.log_in().await?);
        *self.kept() = Some(token.clone());
        Ok(token)
    }

    fn forget(&self, refused: &Arc<Token>) {
        let mut kept = self.kept();
        // Somebody else may have a newer one by now.
        if kept.as_ref().is_some_and(|token| Arc::ptr_eq(token, refused)) {
            *kept = None;
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Option<Arc<Token>>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn log_in(&self) -> Result<Token, KeyError> {
        let Login { keystone, credential, .. } = &self.login;
        let asked = Instant::now();
        let ask = Ask {
            method: Method::POST,
            url: keystone.at("/auth/tokens"),
            headers: vec![
                ("Content-Type", Zeroizing::new("application/json".to_owned())),
                ("Accept", Zeroizing::new("application/json".to_owned())),
                self.request_header(),
            ],
            body: Some(credential.request()?),
        };
        let answer = self.http.ask(ask).await?;
        match answer.status {
            200 | 201 => self.read_token(&answer, asked),
            401 => Err(KeyError::Denied(format!(
                "{keystone} refuses the login of {}: the name, the project or the secret is wrong, or the \
                 credential has ended, was removed or is locked",
                credential.told()
            ))),
            // Keystone tells so of an application credential that was deleted, and of a path that it has not.
            404 if matches!(credential, Credential::Application { .. }) => Err(KeyError::Denied(format!(
                "{keystone} knows no {}: it was deleted, or this is no Keystone v3",
                credential.told()
            ))),
            404 => Err(KeyError::Settings(format!("{keystone} is no Keystone v3: it knows no /auth/tokens"))),
            status => Err(refusal(&keystone.to_string(), status, "log in")),
        }
    }

    fn read_token(&self, answer: &Answer, asked: Instant) -> Result<Token, KeyError> {
        let keystone = &self.login.keystone;
        let value = answer.headers.get("X-Subject-Token").and_then(|value| value.to_str().ok());
        let value = value.filter(|value| {
            (1..=TOKEN_BYTES_MAX).contains(&value.len()) && value.bytes().all(|byte| byte.is_ascii_graphic())
        });
        let value = value.ok_or_else(|| {
            KeyError::Untrusted(format!("{keystone} answers a login without a token that could be one"))
        })?;
        let TokenBody { token: body } = json(answer, "Keystone")?;
        let endpoint = match &self.login.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => endpoint(&body.catalog, self.login.region.as_deref(), self.login.interface)?,
        };
        let user_id = body.user.as_ref().and_then(|user| user.id.clone()).filter(|id| is_id(id));
        let password_expires = body.user.and_then(|user| user.password_expires_at).as_deref().and_then(time);
        let usable_for = lifetime(body.issued_at.as_deref(), body.expires_at.as_deref(), SystemTime::now());
        Ok(Token {
            value: Zeroizing::new(value.to_owned()),
            usable_until: asked + usable_for,
            endpoint: endpoint.versioned("v1"),
            user_id,
            password_expires,
        })
    }
}

/// A time as OpenStack writes it, UTC with or without a Z.
pub(crate) fn time(text: &str) -> Option<SystemTime> {
    // The parser cuts the text at byte positions.
    if text.is_ascii() { humantime::parse_rfc3339_weak(text).ok() } else { None }
}

/// How long a token can be used from now on. A token whose times say nothing or lie in the past serves the
/// call for which it was fetched, and no other.
fn lifetime(issued: Option<&str>, expires: Option<&str>, now: SystemTime) -> Duration {
    let Some(expires) = expires.and_then(time) else { return Duration::ZERO };
    let issued = issued.and_then(time).unwrap_or(now);
    let life = expires.duration_since(issued).unwrap_or_default().min(TOKEN_USE_MAX);
    life - (life / 10).min(TOKEN_MARGIN_MAX)
}

#[derive(Deserialize)]
struct TokenBody {
    token: TokenFields,
}

#[derive(Deserialize)]
struct TokenFields {
    expires_at: Option<String>,
    issued_at: Option<String>,
    user: Option<UserFields>,
    #[serde(default)]
    catalog: Vec<Service>,
}

#[derive(Deserialize)]
struct UserFields {
    id: Option<String>,
    password_expires_at: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_counted_on_one_clock() {
        let (issued, expires) = (Some("2026-11-21T07:00:00.000000Z"), Some("2026-11-21T08:00:00.000000Z"));
        let usable = Duration::from_secs(3570);
        for now in ["2026-11-21T07:00:00Z", "1999-01-01T00:00:00Z", "2099-01-01T00:00:00Z"] {
            assert_eq!(lifetime(issued, expires, time(now).unwrap()), usable, "{now}");
        }
        let now = time("2026-11-21T07:00:00Z").unwrap();
        assert_eq!(lifetime(None, expires, now), usable);
        for (issued, expires) in
            [(expires, issued), (issued, None), (issued, Some("soon")), (issued, Some("é"))]
        {
            assert_eq!(lifetime(issued, expires, now), Duration::ZERO, "{expires:?}");
        }
        assert!(lifetime(issued, Some("9999-12-31T23:59:59Z"), now) <= TOKEN_USE_MAX);
    }
}
