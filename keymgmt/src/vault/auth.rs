//! Logging in, and keeping the token alive while it is used.
//!
//! The token lives in the manager and nowhere else. From half of its lease on it is renewed before it is
//! used, or made anew where the server does not renew it. A token that the server no longer knows is made
//! anew once and the request repeated once; a refusal of a token that is known is final, so that secret ids
//! with few uses are not spent on it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::client::{Call, Client, Data, Reply, json, secret_text};
use super::{AuthSettings, Place, Service};
use crate::manager::{Health, KeyError};
use crate::provider::Bounds;
use crate::registry::Opening;
use crate::secret::{SECRET_BYTES_MAX, SecretBytes};
use crate::source::{NoPrompt, Purpose, SecretReader, SecretSource};

/// A server and our right to use it.
pub(super) struct Session {
    client: Client,
    method: Method,
    token: Mutex<Option<Arc<Token>>>,
}

/// [`AuthSettings`] with what they name read.
enum Method {
    /// A token in a file is read again for every login, for whoever keeps it alive writes it anew.
    TokenFile(SecretSource),
    Token(SecretBytes),
    AppRole {
        mount: Place,
        role_id: String,
        secret_id: SecretBytes,
    },
    Cert {
        mount: Place,
        name: Option<String>,
    },
    Kubernetes {
        mount: Place,
        role: String,
        jwt: PathBuf,
    },
}

struct Token {
    text: Zeroizing<String>,
    /// When it was made or renewed. Not the time of day: the server's clock may differ.
    since: Instant,
    /// None where it does not end, or where that cannot be known.
    lease: Option<Duration>,
    renewable: bool,
    /// The lease it once began with.
    granted: Option<Duration>,
}

/// Whether a token was made for this very request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Age {
    New,
    Used,
}

impl Session {
    /// Reads the credentials; reaches nothing.
    ///
    /// # Errors
    /// [`KeyError::Secret`] and [`KeyError::Settings`].
    pub(super) fn open(
        service: &Service<'_>,
        bounds: Bounds,
        opening: &mut Opening<'_, '_>,
    ) -> Result<Self, KeyError> {
        let client = Client::new(service, bounds, opening.request_id.clone())?;
        let method = match service.auth.clone() {
            AuthSettings::TokenFile { token } => {
                let secret = read(opening, &token, "token")?;
                match token {
                    SecretSource::File(_) => Method::TokenFile(token),
                    _ => Method::Token(secret),
                }
            }
            AuthSettings::AppRole { role_id, secret_id, mount } => {
                Method::AppRole { mount, role_id, secret_id: read(opening, &secret_id, "secret id")? }
            }
            AuthSettings::Cert { .. } if service.tls.cert.is_none() => {
                return Err(KeyError::Settings("auth method cert needs tls = { cert, key }".into()));
            }
            AuthSettings::Cert { name, mount } => Method::Cert { mount, name },
            AuthSettings::Kubernetes { role, jwt, mount } => Method::Kubernetes { mount, role, jwt },
        };
        Ok(Self { client, method, token: Mutex::new(None) })
    }

    /// Asks with a token.
    ///
    /// # Errors
    /// Those of [`Client::send`] and of a login.
    pub(super) async fn call(&self, call: Call<'_>) -> Result<Reply, KeyError> {
        let Call { method, path, body, token: _ } = call;
        let ask = async |token: &Token| {
            self.client.send(Call { method: method.clone(), path, token: Some(&token.text), body }).await
        };
        let (token, age) = self.ready().await?;
        let reply = ask(&token).await?;
        if !reply.is_forbidden() || age == Age::New || self.knows(&token).await? {
            return Ok(reply);
        }
        ask(&*self.login().await?).await
    }

    /// Whether the server is there and lets us in.
    ///
    /// # Errors
    /// Those of [`Client::health`] and of a login; [`KeyError::Denied`] for a token that is not known.
    pub(super) async fn probe(&self) -> Result<Health, KeyError> {
        let text = self.client.health().await?;
        let reply = self.call(Call::get("auth/token/lookup-self")).await?;
        let is_login = !matches!(self.method, Method::TokenFile(_) | Method::Token(_));
        // A login that went well proves the token; one from elsewhere may be without the right to ask.
        let looked_up = match reply.read::<Data<LookedUp>>("the token") {
            Ok(Data { data }) => data.lease(),
            Err(_) if is_login => None,
            Err(error) => return Err(error),
        };
        let left = self.held().and_then(|token| token.left());
        let ends = [looked_up, left].into_iter().flatten().min();
        let credential_expires = ends.and_then(|left| SystemTime::now().checked_add(left));
        Ok(Health { text, credential_expires })
    }

    /// A token that is good as far as we know.
    async fn ready(&self) -> Result<(Arc<Token>, Age), KeyError> {
        let Some(token) = self.held().filter(|token| !token.is_over()) else {
            return Ok((self.login().await?, Age::New));
        };
        if !token.is_half_over() {
            return Ok((token, Age::Used));
        }
        if let Ok(renewed) = self.renew(&token).await {
            return Ok((renewed, Age::Used));
        }
        match self.login().await {
            Ok(new) => Ok((new, Age::New)),
            // There is half a lease left.
            Err(_) => Ok((token, Age::Used)),
        }
    }

    fn held(&self) -> Option<Arc<Token>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn hold(&self, token: Token) -> Arc<Token> {
        let token = Arc::new(token);
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
        token
    }

    async fn renew(&self, token: &Token) -> Result<Arc<Token>, KeyError> {
        let over = || KeyError::Denied("the token is not renewed any further".into());
        if !token.renewable {
            return Err(over());
        }
        let (since, body) = (Instant::now(), json(&Nothing {}));
        let call = Call { token: Some(&token.text), ..Call::post("auth/token/renew-self", &body) };
        let Login { auth } = self.client.send(call).await?.read("renewal of the token")?;
        let lease = auth.lease();
        // A token near the end of its longest life is renewed for ever less.
        if lease.zip(token.granted).is_some_and(|(lease, granted)| lease < granted / 2) {
            return Err(over());
        }
        let (renewable, granted) = (auth.renewable, token.granted);
        Ok(self.hold(Token { text: auth.token()?, since, lease, renewable, granted }))
    }

    async fn login(&self) -> Result<Arc<Token>, KeyError> {
        let since = Instant::now();
        let (mount, body) = match &self.method {
            Method::TokenFile(source) => {
                let secret = read_again(source)?;
                return self.take_over(&secret).await;
            }
            Method::Token(secret) => return self.take_over(secret).await,
            Method::AppRole { mount, role_id, secret_id } => {
                (mount, json(&AppRole { role_id, secret_id: &one_line(secret_id.expose(), "secret id")? }))
            }
            Method::Cert { mount, name } => (mount, json(&Cert { name: name.as_deref() })),
            Method::Kubernetes { mount, role, jwt } => {
                (mount, json(&Kubernetes { role, jwt: &service_account(jwt)? }))
            }
        };
        let path = format!("auth/{}/login", mount.as_str());
        let Login { auth } =
            self.client.send(Call::post(&path, &body)).await?.read(&format!("login at {path}"))?;
        let (lease, renewable) = (auth.lease(), auth.renewable);
        Ok(self.hold(Token { text: auth.token()?, since, lease, renewable, granted: lease }))
    }

    /// Uses a token that was made elsewhere. How long it lasts is asked; it may be without the right to ask.
    async fn take_over(&self, secret: &SecretBytes) -> Result<Arc<Token>, KeyError> {
        let (since, text) = (Instant::now(), one_line(secret.expose(), "token")?);
        let reply =
            self.client.send(Call { token: Some(&text), ..Call::get("auth/token/lookup-self") }).await?;
        let looked_up = reply.read::<Data<LookedUp>>("the token").ok();
        let (lease, renewable) =
            looked_up.map_or((None, false), |Data { data }| (data.lease(), data.renewable));
        Ok(self.hold(Token { text, since, lease, renewable, granted: lease }))
    }

    /// Whether the server still knows a token.
    async fn knows(&self, token: &Token) -> Result<bool, KeyError> {
        let call = Call { token: Some(&token.text), ..Call::get("auth/token/lookup-self") };
        Ok(self.client.send(call).await?.is_done())
    }
}

impl Token {
    fn is_over(&self) -> bool {
        self.lease.is_some_and(|lease| self.since.elapsed() >= lease)
    }

    fn is_half_over(&self) -> bool {
        self.lease.is_some_and(|lease| self.since.elapsed() >= lease / 2)
    }

    fn left(&self) -> Option<Duration> {
        self.lease.map(|lease| lease.saturating_sub(self.since.elapsed()))
    }
}

#[derive(Serialize)]
struct AppRole<'a> {
    role_id: &'a str,
    secret_id: &'a str,
}

#[derive(Serialize)]
struct Cert<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

#[derive(Serialize)]
struct Kubernetes<'a> {
    role: &'a str,
    jwt: &'a str,
}

#[derive(Serialize)]
struct Nothing {}

/// Of a login or a renewal.
#[derive(Deserialize)]
struct Login {
    auth: Auth,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(deserialize_with = "secret_text")]
    client_token: Zeroizing<String>,
    #[serde(default)]
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
}

impl Auth {
    fn lease(&self) -> Option<Duration> {
        (self.lease_duration > 0).then(|| Duration::from_secs(self.lease_duration))
    }

    fn token(self) -> Result<Zeroizing<String>, KeyError> {
        one_line(self.client_token.as_bytes(), "token")
            .map_err(|_| KeyError::Untrusted("the answer to the login holds no token".into()))
    }
}

/// Of `auth/token/lookup-self`. The time of day at which the token ends is not read: clocks differ.
#[derive(Deserialize)]
struct LookedUp {
    #[serde(default)]
    ttl: u64,
    #[serde(default)]
    renewable: bool,
}

impl LookedUp {
    fn lease(&self) -> Option<Duration> {
        (self.ttl > 0).then(|| Duration::from_secs(self.ttl))
    }
}

/// A trailing newline of a token or a secret id is no part of it, so it is not warned of either.
fn read(opening: &mut Opening<'_, '_>, source: &SecretSource, what: &str) -> Result<SecretBytes, KeyError> {
    let secret = opening.reader.read(source, what, opening.purpose)?.secret;
    one_line(secret.expose(), what)?;
    Ok(secret)
}

fn read_again(source: &SecretSource) -> Result<SecretBytes, KeyError> {
    SecretReader::new(&mut NoPrompt).read(source, "token", Purpose::Unlock).map(|input| input.secret)
}

/// A secret that can stand in a header.
fn one_line(bytes: &[u8], what: &str) -> Result<Zeroizing<String>, KeyError> {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let fits = (1..=SECRET_BYTES_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic);
    let text = fits.then(|| std::str::from_utf8(bytes).ok()).flatten();
    text.map(|text| Zeroizing::new(text.to_owned()))
        .ok_or_else(|| KeyError::Secret(format!("the {what} is not one line of printable characters")))
}

/// The kubelet makes the token's file readable to whoever is in the pod, so its mode says nothing.
fn service_account(path: &Path) -> Result<Zeroizing<String>, KeyError> {
    let failed = |why: String| KeyError::Settings(format!("service account token {}: {why}", path.display()));
    if !std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.is_file() {
        return Err(failed("not a regular file".into()));
    }
    let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_BYTES_MAX + 1));
    let longest = u64::try_from(SECRET_BYTES_MAX).expect("8 KiB fit any count") + 1;
    file.take(longest).read_to_end(&mut bytes).map_err(|error| failed(error.to_string()))?;
    one_line(&bytes, "service account token")
}
