//! barbican-api and Keystone, as `keymgmt/tests/services/barbican` starts them.

use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use keymgmt::manager::{KeyError, KeyManager, WrapContext, WrappedKey};
use serde_json::{Value, json};
use ureq::http::{HeaderMap, Method, Request};
use ureq::{Agent, RequestExt};

use super::{Files, assert_denied, health, open, open_with_id, opens, opens_in, refusal, wrap};
use crate::hostile::{Act, Hostile, Signer, VALID, forward};
use crate::services::Service;
use crate::suite::{CONTEXT, KekOf, Subject, canary_dek, keeps_the_contract};

const OTHER: WrapContext = WrapContext { volume: *b"another volume !", ..CONTEXT };

/// The cloud of a test, and what only its administrators do.
struct Cloud {
    service: Service,
    files: Files,
    agent: Agent,
}

impl Cloud {
    fn start(variables: &[(&str, &str)]) -> Self {
        let agent = Agent::config_builder().http_status_as_error(false).build().into();
        Self { service: Service::start("barbican", variables), files: Files::new(), agent }
    }

    fn keystone(&self) -> &str {
        self.service.says("KEYSTONE")
    }

    fn owner(&self) -> String {
        self.files.password(self.keystone(), "owner", "tenant", self.service.says("OWNER_PASSWORD"))
    }

    fn reader(&self) -> String {
        self.files.password(self.keystone(), "reader", "hosts", self.service.says("READER_PASSWORD"))
    }

    fn ask(
        &self,
        method: &str,
        url: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> (u16, HeaderMap, Value) {
        let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(url);
        if let Some(token) = token {
            request = request.header("X-Auth-Token", token);
        }
        let body = body.map_or(String::new(), Value::to_string);
        let request = request.header("Content-Type", "application/json").header("Accept", "application/json");
        let request = request.header("OpenStack-API-Version", "key-manager 1.1").body(body).unwrap();
        let run = request.with_agent(&self.agent).configure().allow_non_standard_methods(true).run();
        let mut response = run.unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        (
            response.status().as_u16(),
            response.headers().clone(),
            serde_json::from_str(&text).unwrap_or_default(),
        )
    }

    /// A token, and the id of its user.
    fn log_in(&self, user: &str, project: &str, password: &str) -> (String, String) {
        let default = json!({ "name": "Default" });
        let body = json!({ "auth": {
            "identity": { "methods": ["password"], "password": { "user": {
                "name": user, "domain": default, "password": password } } },
            "scope": { "project": { "name": project, "domain": default } } } });
        let url = format!("{}/auth/tokens", self.keystone());
        let (status, headers, body) = self.ask("POST", &url, None, Some(&body));
        assert_eq!(status, 201, "{body}");
        let id = body["token"]["user"]["id"].as_str().unwrap().to_owned();
        (headers["X-Subject-Token"].to_str().unwrap().to_owned(), id)
    }

    fn admin(&self) -> String {
        self.log_in("admin", "admin", self.service.says("ADMIN_PASSWORD")).0
    }

    /// As the owner of the secrets, to Barbican.
    fn as_owner(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let (token, _) = self.log_in("owner", "tenant", self.service.says("OWNER_PASSWORD"));
        let url = format!("{}/v1/secrets{path}", self.service.says("BARBICAN"));
        let (status, _, body) = self.ask(method, &url, Some(&token), body);
        (status, body)
    }

    /// A secret of the owner's that sealbd did not make.
    fn secret(&self, payload: &Value) -> String {
        let (status, body) = self.as_owner("POST", "", Some(payload));
        assert_eq!(status, 201, "{body}");
        body["secret_ref"].as_str().unwrap().rsplit('/').next().unwrap().to_owned()
    }

    /// Changes Barbican's database behind its back.
    fn poison(&self, sql: &str) {
        let program = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); \
                       count = db.execute(sys.argv[2]).rowcount; db.commit(); assert count > 0, count";
        let mut python = Command::new(self.service.says("PYTHON"));
        let done = python.args(["-c", program, self.service.says("DATABASE"), sql]).output().unwrap();
        assert!(done.status.success(), "{sql}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

/// 32 bytes of the owner's own making.
fn own_key() -> Value {
    bytes_of(32)
}

fn bytes_of(len: usize) -> Value {
    let payload = base64(&(0..len).map(|at| 0xff - at.to_le_bytes()[0]).collect::<Vec<_>>());
    json!({ "name": "own", "payload": payload, "payload_content_type": "application/octet-stream",
            "payload_content_encoding": "base64", "algorithm": "aes", "bit_length": 256 })
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::prelude::BASE64_STANDARD.encode(bytes)
}

fn id_of(manager: &dyn KeyManager, key: &WrappedKey) -> String {
    manager.describe(key).unwrap().key_id.unwrap()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[tokio::test]
async fn barbican_keeps_the_contract() {
    let cloud = Cloud::start(&[]);
    let right = open(&cloud.owner(), None).unwrap();
    let subject = Subject { right, wrong: open(&cloud.reader(), None).unwrap(), kek: KekOf::Manager };
    keeps_the_contract(&subject).await;

    every_login_opens_the_same_keyslot(&cloud).await;
    named_secrets(&cloud).await;
    access(&cloud).await;
    destruction_spares_what_others_use(&cloud).await;
    poisoned_databases(&cloud).await;
    a_front_with_tls(&cloud).await;
    latency(&cloud).await;
}

async fn every_login_opens_the_same_keyslot(cloud: &Cloud) {
    println!("barbican: every way to log in");
    let owner = open(&cloud.owner(), None).unwrap();
    let key = wrap(&*owner).await.unwrap();
    assert_eq!(health(&*owner).await.credential_expires, None);

    let (token, user) = cloud.log_in("owner", "tenant", cloud.service.says("OWNER_PASSWORD"));
    let url = format!("{}/users/{user}/application_credentials", cloud.keystone());
    let wish =
        json!({ "application_credential": { "name": "host-1", "expires_at": "2999-01-01T00:00:00Z" } });
    let (status, _, made) = cloud.ask("POST", &url, Some(&token), Some(&wish));
    assert_eq!(status, 201, "{made}");
    let text = |name: &str| made["application_credential"][name].as_str().unwrap().to_owned();
    let (id, secret) = (text("id"), text("secret"));
    let file = cloud.files.write("application", &secret);
    let table = format!(
        "auth = {{ method = 'application-credential', url = '{}', id = '{id}', secret = 'file:{}' }}\n\
         region = 'RegionOne'\ninterface = 'internal'\n",
        cloud.keystone(),
        file.display()
    );
    let application = open(&table, None).unwrap();
    assert!(opens(&*application, &key).await);
    let end = health(&*application).await.credential_expires.unwrap();
    assert!(end > SystemTime::now() + Duration::from_secs(900 * 365 * 86400));

    let clouds = format!(
        "clouds:\n  tenant:\n    auth:\n      auth_url: {}\n      username: owner\n      user_domain_name: Default\n      \
         project_name: tenant\n      project_domain_id: default\n    region_name: RegionOne\n  host:\n    \
         auth_type: v3applicationcredential\n    auth: {{auth_url: '{0}', application_credential_id: {id}}}\n",
        cloud.keystone(),
    );
    cloud.files.write("clouds.yaml", &clouds);
    let secure = format!(
        "clouds: {{tenant: {{auth: {{password: \"{}\"}}}}, host: {{auth: {{application_credential_secret: '{secret}'}}}}}}",
        cloud.service.says("OWNER_PASSWORD")
    );
    cloud.files.write("secure.yaml", &secure);
    std::env::set_current_dir(cloud.files.path()).unwrap();
    for name in ["tenant", "host"] {
        let table = format!("auth = {{ method = 'cloud', cloud = '{name}' }}");
        assert!(opens(&*open(&table, None).unwrap(), &key).await, "cloud {name}");
    }

    // Withdrawn: whoever holds it opens nothing any more.
    let status = cloud.ask("DELETE", &format!("{url}/{id}"), Some(&token), None).0;
    assert_eq!(status, 204);
    assert_denied(
        &refusal(&*open(&table, None).unwrap(), &key).await,
        &format!("application credential {id}"),
    );

    let wrong = cloud.files.password(cloud.keystone(), "owner", "tenant", "CANARY-WRONG");
    let error = refusal(&*open(&wrong, None).unwrap(), &key).await;
    assert_denied(&error, "refuses the login of user owner");
    assert!(!error.to_string().contains("CANARY"));
    let region = open(&format!("{}region = 'Elsewhere'\n", cloud.owner()), None).unwrap();
    let error = refusal(&*region, &key).await;
    assert!(matches!(error, KeyError::Settings(_)) && error.to_string().contains("RegionOne"), "{error}");
}

async fn named_secrets(cloud: &Cloud) {
    println!("barbican: secrets that were named");
    let owner = cloud.owner();
    let id = cloud.secret(&own_key());
    let named = open(&owner, Some(&id)).unwrap();
    let key = wrap(&*named).await.unwrap();
    assert_eq!(key.kek_uri, format!("barbican:{id}"));
    assert!(opens(&*named, &key).await && opens(&*open(&owner, None).unwrap(), &key).await);
    assert_eq!(named.describe(&key).unwrap().text, format!("secret {id}, not made by sealbd"));
    assert!(matches!(named.rotate(&key).await, Err(KeyError::Unsupported(_))));
    assert!(matches!(named.destroy(&key).await, Err(KeyError::Unsupported(_))));
    assert!(opens(&*named, &key).await, "it is still there");
    let other = open(&owner, Some(&cloud.secret(&own_key()))).unwrap();
    assert!(
        other.unwrap(&key, CONTEXT).await.unwrap().is_none(),
        "a keyslot of another secret is left to others"
    );
    for wrong in ["x", &id.to_uppercase(), &format!("{}/v1/secrets/{id}", cloud.service.says("BARBICAN"))] {
        assert!(matches!(open(&owner, Some(wrong)), Err(KeyError::Settings(_))), "{wrong}");
    }

    let (_, listed) = cloud.as_owner("GET", &format!("/{id}"), None);
    let consumer = json!({ "service": "sealbd", "resource_type": "VOLUME",
                           "resource_id": "766f6c75-6d65-206f-6620-612074657374" });
    assert_eq!(listed["consumers"], json!([consumer]), "once, however often it wraps");

    for len in [1, 16, 31, 33, 64] {
        let manager = open(&owner, Some(&cloud.secret(&bytes_of(len)))).unwrap();
        assert_denied(&wrap(&*manager).await.unwrap_err(), &format!("has {len} bytes and not 32"));
    }
    let text = json!({ "payload": "k".repeat(32), "payload_content_type": "text/plain" });
    let manager = open(&owner, Some(&cloud.secret(&text))).unwrap();
    assert_denied(&wrap(&*manager).await.unwrap_err(), "holds text or one byte over and over");
    let manager = open(&owner, Some(&cloud.secret(&json!({ "name": "empty" })))).unwrap();
    assert_denied(&wrap(&*manager).await.unwrap_err(), "unknown, was deleted, has expired or has no payload");

    let mut expiring = own_key();
    expiring["expiration"] = json!("2999-01-01T00:00:00");
    let id = cloud.secret(&expiring);
    let named = open(&owner, Some(&id)).unwrap();
    let key = wrap(&*named).await.unwrap();
    let warning = "WARNING: the secret expires 2999-01-01T00:00:00Z";
    assert!(named.describe(&key).unwrap().text.contains(warning));
    assert!(health(&*named).await.text.contains(warning));
    cloud.poison(&format!("update secrets set expiration = '2020-01-01 00:00:00' where id = '{id}'"));
    assert_denied(&refusal(&*named, &key).await, "has expired");
    assert_denied(&named.probe().await.unwrap_err(), "has expired");
}

async fn access(cloud: &Cloud) {
    println!("barbican: access lists");
    let (owner, reader) = (open(&cloud.owner(), None).unwrap(), open(&cloud.reader(), None).unwrap());
    let key = wrap(&*owner).await.unwrap();
    let id = id_of(&*owner, &key);
    assert_denied(&refusal(&*reader, &key).await, "access list (ACL)");

    let (_, user) = cloud.log_in("reader", "hosts", cloud.service.says("READER_PASSWORD"));
    let list = |users: Value| json!({ "read": { "users": users, "project-access": true } });
    assert_eq!(cloud.as_owner("PUT", &format!("/{id}/acl"), Some(&list(json!([user])))).0, 200);
    assert!(opens(&*reader, &key).await);
    assert!(health(&*reader).await.text.contains("without the right to list secrets"));
    // Whoever may only read makes no new secrets, and destroys none.
    assert_denied(&wrap(&*reader).await.unwrap_err(), "does not let us create secrets");
    assert_denied(&reader.destroy(&key).await.unwrap_err(), "does not let us delete secret");

    assert_eq!(cloud.as_owner("PUT", &format!("/{id}/acl"), Some(&list(json!([])))).0, 200);
    assert_denied(&refusal(&*reader, &key).await, "access list (ACL)");
    assert!(opens(&*owner, &key).await);
}

async fn destruction_spares_what_others_use(cloud: &Cloud) {
    println!("barbican: destruction");
    let owner = open(&cloud.owner(), None).unwrap();
    let key = wrap(&*owner).await.unwrap();
    let id = id_of(&*owner, &key);
    // Another volume names the secret that was made for the first.
    let second = open(&cloud.owner(), Some(&id)).unwrap();
    let other = second.wrap(&canary_dek(), OTHER).await.unwrap();
    let error = owner.destroy(&key).await.unwrap_err();
    assert!(matches!(&error, KeyError::Unsupported(why) if why.contains("has 2 users")), "{error}");
    assert!(opens_in(&*second, &other, OTHER).await);

    // A keyslot that was changed to name somebody's secret.
    let own = cloud.secret(&own_key());
    let changed = WrappedKey { kek_uri: format!("barbican:{own}"), ..key };
    assert!(matches!(owner.destroy(&changed).await, Err(KeyError::Unsupported(_))));
    assert_eq!(cloud.as_owner("GET", &format!("/{own}"), None).0, 200);

    // A secret that others deleted is not made again behind the user's back.
    let (owner, request_id) = open_with_id(&cloud.owner(), None).unwrap();
    let key = wrap(&*owner).await.unwrap();
    assert_eq!(cloud.as_owner("DELETE", &format!("/{}", id_of(&*owner, &key)), None).0, 204);
    assert_denied(&refusal(&*owner, &key).await, "was deleted");
    assert_denied(&wrap(&*owner).await.unwrap_err(), "was deleted");
    owner.destroy(&key).await.unwrap();
    let log = std::fs::read_to_string(cloud.service.says("LOG")).unwrap();
    assert!(log.contains(&format!("req-{request_id}")), "Barbican's audit log tells our request");
}

async fn poisoned_databases(cloud: &Cloud) {
    println!("barbican: a database that was changed");
    let owner = open(&cloud.owner(), None).unwrap();
    let key = wrap(&*owner).await.unwrap();
    let other = owner.wrap(&canary_dek(), OTHER).await.unwrap();
    let (one, two) = (id_of(&*owner, &key), id_of(&*owner, &other));

    // Labels lie: nothing that opens a volume looks at them.
    cloud.poison(&format!(
        "update secrets set name = 'sealbd x', algorithm = 'none', bit_length = 8, mode = 'ecb', secret_type = \
         'opaque' where id = '{one}'"
    ));
    assert!(opens(&*owner, &key).await);

    // The payloads of two volumes change places.
    let swap = |from: &str, to: &str| {
        format!("update encrypted_data set secret_id = '{to}' where secret_id = '{from}'")
    };
    for (from, to) in [(one.as_str(), "parked"), (&two, &one), ("parked", &two)] {
        cloud.poison(&swap(from, to));
    }
    assert_denied(&refusal(&*owner, &key).await, "another key than the one that made this keyslot");
    assert_denied(&owner.unwrap(&other, OTHER).await.err().unwrap(), "another key");
    for (from, to) in [(one.as_str(), "parked"), (&two, &one), ("parked", &two)] {
        cloud.poison(&swap(from, to));
    }
    assert!(opens(&*owner, &key).await && opens_in(&*owner, &other, OTHER).await);
}

async fn a_front_with_tls(cloud: &Cloud) {
    println!("barbican: behind TLS");
    let signer = Signer::new();
    let ca = cloud.files.write("ca.pem", &signer.pem);
    let front = |service: &str| {
        let service = service.to_owned();
        let certificate = signer.sign("localhost", VALID);
        Hostile::start_tls(certificate, move |request| Act::AnswerAndClose(forward(&service, request)))
    };
    let (keystone, barbican) = (front(cloud.keystone()), front(cloud.service.says("BARBICAN")));
    let auth = cloud.files.password(
        &keystone.url_by_name(),
        "owner",
        "tenant",
        cloud.service.says("OWNER_PASSWORD"),
    );
    let table =
        format!("{auth}endpoint = '{}'\ntls = {{ ca = '{}' }}\n", barbican.url_by_name(), ca.display());
    let manager = open(&table, None).unwrap();
    let key = wrap(&*manager).await.unwrap();
    assert!(opens(&*manager, &key).await);
    assert_eq!(keystone.count("POST", "/v3/auth/tokens"), 1, "one login for all");
    assert!(barbican.count("GET", "/payload") == 1 && barbican.count("POST", "/v1/secrets") == 1);
}

/// Told, not judged: machines differ.
async fn latency(cloud: &Cloud) {
    let owner = open(&cloud.owner(), None).unwrap();
    let key = wrap(&*owner).await.unwrap();
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..9 {
        let begun = Instant::now();
        assert!(opens(&*open(&cloud.owner(), None).unwrap(), &key).await);
        times[0].push(begun.elapsed());
        let begun = Instant::now();
        assert!(opens(&*owner, &key).await);
        times[1].push(begun.elapsed());
    }
    let [fresh, kept] = times.map(median);
    println!("barbican: unwrap p50 {fresh:.1?} with a login, {kept:.1?} with a token that is there");
}

/// A front before Keystone, to count logins.
fn counting(keystone: &str) -> Hostile {
    let keystone = keystone.to_owned();
    Hostile::start(move |request| Act::AnswerAndClose(forward(&keystone, request)))
}

/// Barbican keeps no validated tokens here, so that what is revoked is revoked at once.
#[tokio::test]
async fn a_token_that_barbican_refuses_costs_one_login_and_no_more() {
    let mut cloud = Cloud::start(&[("TOKEN_CACHE", "-1")]);
    let (keystone, barbican) = (counting(cloud.keystone()), counting(cloud.service.says("BARBICAN")));
    let auth = cloud.files.password(&keystone.url(), "owner", "tenant", cloud.service.says("OWNER_PASSWORD"));
    let owner = open(&format!("{auth}endpoint = '{}'\n", barbican.url()), None).unwrap();
    let key = wrap(&*owner).await.unwrap();
    assert!(opens(&*owner, &key).await);
    let logins = || keystone.count("POST", "/auth/tokens");
    assert_eq!(logins(), 1);

    let revoke = || {
        let token = barbican.seen().last().unwrap().header("x-auth-token").unwrap().to_owned();
        let mut request =
            Request::builder().method("DELETE").uri(format!("{}/auth/tokens", cloud.keystone()));
        request = request.header("X-Auth-Token", cloud.admin()).header("X-Subject-Token", token);
        let run = request.body(()).unwrap().with_agent(&cloud.agent).run();
        assert_eq!(run.unwrap().status(), 204);
    };
    revoke();
    let asked = barbican.count("GET", "/payload");
    assert!(opens(&*owner, &key).await);
    assert_eq!((logins(), barbican.count("GET", "/payload") - asked), (2, 2));

    // The user is locked out: one try, and the password is not tried again and again.
    let (admin, (_, user)) =
        (cloud.admin(), cloud.log_in("owner", "tenant", cloud.service.says("OWNER_PASSWORD")));
    let url = format!("{}/users/{user}", cloud.keystone());
    let enable = |enabled: bool| {
        let body = json!({ "user": { "enabled": enabled } });
        assert_eq!(cloud.ask("PATCH", &url, Some(&admin), Some(&body)).0, 200);
    };
    enable(false);
    assert_denied(&refusal(&*owner, &key).await, "refuses the login of user owner");
    assert_eq!(logins(), 3);
    enable(true);
    // Keystone counts in seconds: a token of the second in which a user was locked out is dead from the start.
    let begun = Instant::now();
    let url = format!("{}/v1/secrets?limit=1", cloud.service.says("BARBICAN"));
    let let_in = || {
        let (token, _) = cloud.log_in("owner", "tenant", cloud.service.says("OWNER_PASSWORD"));
        cloud.ask("GET", &url, Some(&token), None).0 == 200
    };
    while !let_in() {
        assert!(begun.elapsed() < Duration::from_secs(30), "never let in again");
    }
    assert!(opens(&*owner, &key).await, "let in again");
    assert_eq!(logins(), 4);

    // Down, and up again; the keyslot outlives it.
    let table = format!("{}timeout = '1s'\n", cloud.owner());
    cloud.service.run("stop", &[]);
    let error = refusal(&*open(&table, None).unwrap(), &key).await;
    assert!(matches!(error, KeyError::Unreachable(_)), "{error}");
    cloud.service.run("start", &[("TOKEN_CACHE", "-1"), ("TOKEN_TTL", "20")]);

    // Tokens that live for twenty seconds: one that has ended is not even sent. Shorter ones end on a busy machine before
    // they are looked at.
    // Barbican itself logs in for every request then.
    let patient = format!("{auth}endpoint = '{}'\ntimeout = '30s'\n", barbican.url());
    let owner = open(&patient, None).unwrap();
    let begun = Instant::now();
    assert!(opens(&*owner, &key).await);
    let (first, token) =
        (logins(), barbican.seen().last().unwrap().header("x-auth-token").unwrap().to_owned());
    let url = format!("{}/v1/secrets?limit=1", cloud.service.says("BARBICAN"));
    while cloud.ask("GET", &url, Some(&token), None).0 != 401 {
        assert!(begun.elapsed() < Duration::from_secs(60), "the token never ends");
        std::thread::sleep(Duration::from_millis(200));
    }
    let asked = barbican.count("GET", "/payload");
    assert!(opens(&*owner, &key).await);
    assert_eq!((logins() - first, barbican.count("GET", "/payload") - asked), (1, 1));
}
