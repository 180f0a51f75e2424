//! A cloud of one scripted server: Keystone and Barbican as they are, but for what a test takes over.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use keymgmt::manager::{KeyError, KeyManager, WrappedKey};
use keymgmt::verify::wrap_tested;
use serde_json::{Value, json};

use super::{CANARY_PASSWORD, Files, open, wrap};
use crate::hostile::{Act, Hostile, Request, answer};
use crate::suite::{CONTEXT, canary_dek};

/// One attempt of these tests, and what it may take at most on a machine that is busy.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(1);
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
pub(crate) const SECRET: &str = "3547f40c-37ea-4ce5-88e0-25b9d38b0b7c";
pub(crate) const TOKEN: &str = "CANARY-TOKEN";

/// A cloud of one server that answers as the real ones do, but for what `lie` takes over.
pub(crate) fn cloud(lie: impl Fn(&Request) -> Option<Act> + Send + Sync + 'static) -> Hostile {
    let honest = honest();
    Hostile::start(move |request| lie(request).unwrap_or_else(|| honest(request)))
}

/// Keystone and Barbican with room for one secret.
pub(crate) fn honest() -> impl Fn(&Request) -> Act + Send + Sync + 'static {
    let payload = Mutex::new(Vec::new());
    move |request| {
        let host = request.header("host").unwrap();
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/v3/auth/tokens") => token(&format!("http://{host}"), |_| {}),
            _ if request.header("x-auth-token") != Some(TOKEN) => answer(401, &[], ""),
            ("POST", "/v1/secrets") => {
                let body: Value = serde_json::from_slice(&request.body).unwrap();
                *payload.lock().unwrap() = BASE64_STANDARD.decode(body["payload"].as_str().unwrap()).unwrap();
                answer(
                    201,
                    &[],
                    json!({ "secret_ref": format!("http://{host}/v1/secrets/{SECRET}") }).to_string(),
                )
            }
            ("GET", path) if path.ends_with("/payload") => answer(200, &[], &*payload.lock().unwrap()),
            ("GET", "/v1/secrets?limit=1") => answer(200, &[], "{}"),
            _ => answer(404, &[], ""),
        }
    }
}

/// What Keystone answers to a login, changed by `lie`.
pub(crate) fn token(barbican: &str, lie: impl Fn(&mut Value)) -> Act {
    let mut body = json!({ "token": {
        "issued_at": "2026-11-21T07:00:00.000000Z", "expires_at": "2026-11-21T08:00:00.000000Z",
        "user": { "id": "ab", "password_expires_at": null },
        "catalog": [{ "type": "key-manager", "endpoints": [
            { "interface": "public", "region_id": "R1", "url": barbican }] }] } });
    lie(&mut body["token"]);
    answer(201, &[("X-Subject-Token", TOKEN)], body.to_string())
}

pub(crate) fn is_login(request: &Request) -> bool {
    request.path == "/v3/auth/tokens"
}

pub(crate) fn is_payload(request: &Request) -> bool {
    request.path.ends_with("/payload")
}

pub(crate) fn manager(files: &Files, keystone: &str, more: &str) -> Box<dyn KeyManager> {
    let auth = files.password(keystone, "owner", "tenant", CANARY_PASSWORD);
    open(&format!("{auth}timeout = '{}s'\n{more}", TIMEOUT.as_secs()), None).unwrap()
}

/// A keyslot of an honest cloud.
pub(crate) async fn keyslot(files: &Files) -> WrappedKey {
    let cloud = cloud(|_| None);
    let manager = manager(files, &cloud.url(), "");
    let key = wrap_tested(&*manager, &canary_dek(), CONTEXT).await.unwrap();
    assert_eq!(key.kek_uri, format!("barbican:{SECRET}"));
    key
}

/// What went wrong holds nothing secret, and came in time.
pub(crate) fn assert_harmless(error: &KeyError, begun: Instant) {
    let told = format!("{error} {error:?}");
    assert!(!told.contains("CANARY") && told.len() < 2000 && !told.contains('\u{1b}'), "{told}");
    assert!(begun.elapsed() < PATIENCE, "{:?}: {told}", begun.elapsed());
}

/// An honest cloud in which the labels of the one secret are those.
pub(crate) fn labelled(labels: &'static str) -> Hostile {
    cloud(move |request| {
        (request.method == "GET" && request.path.ends_with(SECRET)).then(|| answer(200, &[], labels))
    })
}

/// Named as in `kms:PROVIDER/UUID`, after the secret was made.
pub(crate) async fn named(files: &Files, cloud: &Hostile) -> Box<dyn KeyManager> {
    wrap(&*manager(files, &cloud.url(), "")).await.unwrap();
    let auth = files.password(&cloud.url(), "owner", "tenant", CANARY_PASSWORD);
    open(&auth, Some(SECRET)).unwrap()
}
