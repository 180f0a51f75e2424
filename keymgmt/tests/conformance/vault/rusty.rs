//! Key/value version 1, AppRole, sealing and restarts against RustyVault 0.2.1, a real server.
//!
//! Building it takes minutes, so these tests are ignored unless the runner knows that it is there already
//! (`keymgmt/tests/services/rvault cached`) or that it may be built; run by hand they build it.

use std::time::Instant;

use keymgmt::manager::{KeyError, KeyManager};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{kv, open, wrapped};
use crate::services::Service;
use crate::suite::{CONTEXT, KekOf, Subject, keeps_the_contract, outcome};

/// A server, and a host that may use it.
struct World {
    server: Service,
    credentials: TempDir,
}

impl World {
    fn start(settings: &[(&str, &str)]) -> Self {
        let world =
            Self { server: Service::start("rvault", settings), credentials: tempfile::tempdir().unwrap() };
        world.write("secret-id", world.server.says("SECRET_ID"));
        world
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.credentials.path().join(name), text).unwrap();
    }

    fn manager(&self, spec: &str, more: &str) -> Box<dyn KeyManager> {
        let (address, role) = (self.server.says("ADDRESS"), self.server.says("ROLE_ID"));
        let auth =
            format!("auth = {{ method = 'approle', role_id = '{role}', secret_id = 'cred:secret-id' }}");
        let auth = if more.contains("auth = ") { String::new() } else { auth };
        let table =
            format!("type = 'vault-kv'\naddress = '{address}'\nretry_for = '0s'\n{auth}\n{more}\n{}", kv(1));
        open(&table, spec, &self.credentials).unwrap()
    }

    /// Asks as the administrator.
    fn post(&self, path: &str, body: &Value) -> Value {
        let url = format!("{}/v1/{path}", self.server.says("ADDRESS"));
        let request = ureq::post(&url).header("X-Vault-Token", self.server.says("TOKEN"));
        let text = request.send(body.to_string()).unwrap().body_mut().read_to_string().unwrap();
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }
}

#[tokio::test]
#[ignore = "needs RustyVault: keymgmt/tests/services/rvault"]
async fn key_value_version_1_of_a_real_server_keeps_the_contract() {
    let world = World::start(&[]);
    let (right, wrong) = (world.manager("kms:prod", ""), world.manager("kms:prod/other", ""));
    keeps_the_contract(&Subject { right, wrong, kek: KekOf::Manager }).await;
}

#[tokio::test]
#[ignore = "needs RustyVault: keymgmt/tests/services/rvault"]
async fn unwrapping_takes_little_more_than_the_round_trip() {
    for tls in ["", "1"] {
        let world = World::start(&[("TLS", tls)]);
        let ca = world.server.directory().join("tls/ca.pem");
        let more =
            if tls.is_empty() { String::new() } else { format!("tls = {{ ca = '{}' }}", ca.display()) };
        let manager = world.manager("kms:prod", &more);
        let key = wrapped(&*manager).await;
        let mut times = Vec::new();
        for _ in 0..200 {
            let begun = Instant::now();
            assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
            times.push(begun.elapsed());
        }
        times.sort();
        let (middle, slow) = (times[100], times[198]);
        println!(
            "vault-kv 1, RustyVault 0.2.1 {}: unwrap p50 {middle:?}, p99 {slow:?}",
            world.server.says("ADDRESS")
        );
        assert!(middle.as_millis() < 500, "{middle:?}");
    }
}

#[tokio::test]
#[ignore = "needs RustyVault: keymgmt/tests/services/rvault"]
async fn a_real_server_that_is_sealed_is_unreachable_until_it_is_unsealed() {
    let mut world = World::start(&[]);
    let manager = world.manager("kms:prod", "");
    let key = wrapped(&*manager).await;
    manager.probe().await.unwrap();
    world.server.run("seal", &[]);
    // A new manager fails at its login, an old one at its request.
    for manager in [&manager, &world.manager("kms:prod", "")] {
        for error in
            [outcome(&**manager, &key, CONTEXT).await.unwrap_err(), manager.probe().await.unwrap_err()]
        {
            assert!(matches!(&error, KeyError::Unreachable(why) if why.contains("is sealed")), "{error}");
        }
    }
    world.server.run("unseal", &[]);
    assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
}

#[tokio::test]
#[ignore = "needs RustyVault: keymgmt/tests/services/rvault"]
async fn a_real_server_that_was_restarted_still_opens_what_it_wrapped() {
    let mut world = World::start(&[]);
    let manager = world.manager("kms:prod", "");
    let key = wrapped(&*manager).await;
    world.server.run("stop", &[]);
    let error = outcome(&*manager, &key, CONTEXT).await.unwrap_err();
    assert!(matches!(error, KeyError::Unreachable(_)), "{error}");
    world.server.run("start", &[]);
    assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
}

#[tokio::test]
#[ignore = "needs RustyVault: keymgmt/tests/services/rvault"]
async fn a_real_server_is_reached_by_tls_and_only_by_its_own_name() {
    let world = World::start(&[("TLS", "1")]);
    let ca = |name: &str| {
        format!("tls = {{ ca = '{}' }}", world.server.directory().join("tls").join(name).display())
    };
    wrapped(&*world.manager("kms:prod", &ca("ca.pem"))).await;
    let stranger = world.manager("kms:prod", &ca("stranger.pem"));
    let error = stranger.probe().await.unwrap_err();
    assert!(matches!(error, KeyError::Untrusted(_)), "{error}");
}

#[tokio::test]
#[ignore = "needs RustyVault: keymgmt/tests/services/rvault"]
async fn a_real_server_denies_a_wrong_secret_id_and_a_revoked_token() {
    let world = World::start(&[]);
    let key = wrapped(&*world.manager("kms:prod", "")).await;
    world.write("secret-id", "CANARY-wrong");
    let error = outcome(&*world.manager("kms:prod", ""), &key, CONTEXT).await.unwrap_err();
    assert!(matches!(error, KeyError::Denied(_)) && !error.to_string().contains("CANARY"), "{error}");

    let made = world.post("auth/token/create", &json!({ "ttl": "1h", "policies": ["default"] }));
    let token = made.pointer("/auth/client_token").and_then(Value::as_str).expect("a token");
    world.write("token", token);
    let manager = world.manager("kms:prod", "auth = { method = 'token-file', token = 'cred:token' }");
    assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
    world.post(&format!("auth/token/revoke/{token}"), &json!({}));
    let error = outcome(&*manager, &key, CONTEXT).await.unwrap_err();
    assert!(matches!(error, KeyError::Denied(_)) && !error.to_string().contains(token), "{error}");
}
