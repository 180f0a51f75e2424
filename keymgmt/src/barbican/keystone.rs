//! Keystone v3 (OpenStack's identity service): logging in, the token, and where the catalog says that the
//! key manager is. Source: the Identity API v3 reference, `POST /v3/auth/tokens`.
//!
//! A token is kept until shortly before its end. Its lifetime is the difference of two times of Keystone's
//! clock, counted on ours, so that clocks that differ do no harm. A service that refuses a token (401) is
//! asked once more with a new one, never a third time: every login costs Keystone a slow password hash, and
//! accounts lock.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use ureq::http::Method;
use zeroize::Zeroizing;

use crate::address::Address;
use crate::http::{Answer, Ask, Http};
use crate::manager::KeyError;
use crate::secret::SecretBytes;

use super::answer::{json, printable, refusal};

/// Longest token; those of Keystone have 180 to 260 characters, with PKI some thousand.
const TOKEN_BYTES_MAX: usize = 8192;
/// A token is not used in the last seconds of its life, lest it end on the way.
const TOKEN_MARGIN_MAX: Duration = Duration::from_secs(30);
/// No token is used for longer without a new login, whatever it says.
const TOKEN_USE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Longest id of a user or an application credential: a uuid without dashes, or a SHA-256 of LDAP users.
const ID_BYTES_MAX: usize = 64;

/// A user or a project.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Named {
    /// By its id.
    Id { id: String },
    /// By its name in a domain.
    Name { name: String, domain: Domain },
}

/// What users and projects belong to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Domain {
    Id(String),
    Name(String),
}

/// Who logs in.
pub(crate) enum Credential {
    /// A user, for one project.
    Password { user: Named, project: Named, password: SecretBytes },
    /// An application credential, which belongs to one project already.
    Application { id: String, secret: SecretBytes },
}

/// Which of a service's endpoints is taken.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Interface {
    #[default]
    Public,
    Internal,
    Admin,
}

impl Interface {
    fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Internal => "internal",
            Self::Admin => "admin",
        }
    }
}

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

impl Credential {
    /// The body of a login, in memory that is wiped.
    fn request(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let (secret, body) = match self {
            Self::Password { user, project, password } => {
                let secret = text(password)?;
                let password = Some(ByPassword { user: WithPassword { user, password: secret } });
                let identity = Identity { methods: ["password"], password, application_credential: None };
                (secret, Auth { identity, scope: Some(Scope { project }) })
            }
            Self::Application { id, secret } => {
                let secret = text(secret)?;
                let application_credential = Some(ByApplication { id, secret });
                let methods = ["application_credential"];
                (
                    secret,
                    Auth {
                        identity: Identity { methods, password: None, application_credential },
                        scope: None,
                    },
                )
            }
        };
        // Room for the secret with every character escaped: a buffer that grows leaves copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(6 * secret.len() + 4096));
        serde_json::to_writer(&mut *bytes, &Request { auth: body })
            .map_err(|_| KeyError::Settings("the login cannot be written as JSON".into()))?;
        Ok(bytes)
    }

    fn told(&self) -> String {
        match self {
            Self::Password { user: Named::Id { id } | Named::Name { name: id, .. }, .. } => {
                format!("user {id}")
            }
            Self::Application { id, .. } => format!("application credential {id}"),
        }
    }
}

/// Whether that can be an id of Keystone's. It becomes part of a path.
pub(crate) fn is_id(id: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn text(secret: &SecretBytes) -> Result<&str, KeyError> {
    std::str::from_utf8(secret.expose())
        .map_err(|_| KeyError::Settings("Keystone takes a password or secret that is UTF-8 text only".into()))
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

/// The key manager's endpoint in a catalog.
fn endpoint(catalog: &[Service], region: Option<&str>, interface: Interface) -> Result<Address, KeyError> {
    let all = catalog.iter().filter(|service| service.kind == "key-manager").flat_map(|it| &it.endpoints);
    let of_interface: Vec<_> = all.filter(|endpoint| endpoint.interface == interface.name()).collect();
    let regions = || {
        let mut regions: Vec<_> = of_interface.iter().filter_map(|endpoint| endpoint.region()).collect();
        regions.sort_unstable();
        regions.dedup();
        // Enough to choose from, whatever the catalog holds.
        regions.iter().take(8).map(|region| printable(region)).collect::<Vec<_>>().join(", ")
    };
    let mut fitting =
        of_interface.iter().filter(|it| region.is_none_or(|region| it.region() == Some(region)));
    let Some(first) = fitting.next() else {
        let place = region.map_or(String::new(), |region| format!(" in region {region}"));
        return Err(KeyError::Settings(format!(
            "the catalog has no key-manager with a {} endpoint{place}; regions that have one: {}",
            interface.name(),
            if of_interface.is_empty() { "none".to_owned() } else { regions() }
        )));
    };
    if fitting.any(|other| other.url != first.url) {
        return Err(KeyError::Settings(format!(
            "the catalog has several key-managers; set region to one of: {}",
            regions()
        )));
    }
    Address::parse(&first.url).map_err(|why| {
        KeyError::Settings(format!("the catalog's address of the key-manager: {why}; endpoint sets another"))
    })
}

#[derive(Serialize)]
struct Request<'a> {
    auth: Auth<'a>,
}

#[derive(Serialize)]
struct Auth<'a> {
    identity: Identity<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<Scope<'a>>,
}

#[derive(Serialize)]
struct Identity<'a> {
    methods: [&'static str; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<ByPassword<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    application_credential: Option<ByApplication<'a>>,
}

#[derive(Serialize)]
struct ByPassword<'a> {
    user: WithPassword<'a>,
}

#[derive(Serialize)]
struct WithPassword<'a> {
    #[serde(flatten)]
    user: &'a Named,
    password: &'a str,
}

#[derive(Serialize)]
struct ByApplication<'a> {
    id: &'a str,
    secret: &'a str,
}

#[derive(Serialize)]
struct Scope<'a> {
    project: &'a Named,
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

#[derive(Deserialize)]
struct Service {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    interface: String,
    url: String,
    region: Option<String>,
    region_id: Option<String>,
}

impl Endpoint {
    fn region(&self) -> Option<&str> {
        self.region_id.as_deref().or(self.region.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> SecretBytes {
        SecretBytes::take(&mut text.as_bytes().to_vec()).unwrap()
    }

    fn catalog(endpoints: &str) -> Vec<Service> {
        serde_json::from_str(&format!(r#"[{{"type": "key-manager", "endpoints": [{endpoints}]}}]"#)).unwrap()
    }

    #[test]
    fn logins_are_what_the_identity_api_asks_for() {
        let name = |name: &str| Named::Name { name: name.into(), domain: Domain::Name("Default".into()) };
        let password =
            Credential::Password { user: name("owner"), project: name("tenant"), password: secret("p\"w") };
        assert_eq!(
            std::str::from_utf8(&password.request().unwrap()).unwrap(),
            r#"{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"owner","domain":{"name":"Default"},"password":"p\"w"}}},"scope":{"project":{"name":"tenant","domain":{"name":"Default"}}}}}"#
        );
        let application = Credential::Application { id: "ab".into(), secret: secret("s") };
        assert_eq!(
            std::str::from_utf8(&application.request().unwrap()).unwrap(),
            r#"{"auth":{"identity":{"methods":["application_credential"],"application_credential":{"id":"ab","secret":"s"}}}}"#
        );
        let binary = SecretBytes::take(&mut [0xff, 0xfe]).unwrap();
        let binary = Credential::Application { id: "ab".into(), secret: binary };
        assert!(matches!(binary.request(), Err(KeyError::Settings(_))));
    }

    #[test]
    fn a_login_of_only_escapes_does_not_outgrow_its_buffer() {
        let password = secret(&"\u{1}".repeat(8000));
        let request = Credential::Application { id: "ab".into(), secret: password }.request().unwrap();
        assert!(request.len() > 6 * 8000 && request.capacity() == 6 * 8000 + 4096);
    }

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

    #[test]
    fn the_endpoint_is_the_one_of_region_and_interface_or_none() {
        let two = catalog(
            r#"{"interface": "public", "url": "https://one/", "region_id": "R1", "region": "R1"},
               {"interface": "internal", "url": "https://inner", "region_id": "R1"},
               {"interface": "public", "url": "https://two", "region": "R2"}"#,
        );
        let of = |region, interface| endpoint(&two, region, interface).map(|it| it.to_string());
        assert_eq!(of(Some("R1"), Interface::Public).unwrap(), "https://one");
        assert_eq!(of(Some("R2"), Interface::Public).unwrap(), "https://two");
        assert_eq!(of(None, Interface::Internal).unwrap(), "https://inner");
        let told = of(None, Interface::Public).unwrap_err().to_string();
        assert!(told.ends_with("set region to one of: R1, R2"), "{told}");
        let told = of(Some("R3"), Interface::Public).unwrap_err().to_string();
        assert!(told.contains("no key-manager with a public endpoint in region R3"), "{told}");
        let told = endpoint(&[], None, Interface::Admin).err().unwrap().to_string();
        assert!(told.ends_with("none"), "{told}");
    }

    #[test]
    fn an_address_from_the_catalog_is_judged_like_any_other() {
        for url in ["http://keys.example", "file:///etc/passwd", "https://user@keys.example"] {
            let catalog = catalog(&format!(r#"{{"interface": "public", "url": "{url}"}}"#));
            let error = endpoint(&catalog, None, Interface::Public).unwrap_err();
            assert!(matches!(error, KeyError::Settings(_)), "{error}");
        }
    }
}
