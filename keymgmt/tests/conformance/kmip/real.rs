//! PyKMIP 0.11.0, as `keymgmt/tests/services/pykmip` starts it: the contract, and what an administrator or an accident
//! does to a server.

use keymgmt::manager::{KeyError, KeyManager, WrappedKey};

use super::{Server, assert_denied, id_of, latency, open, opens, refusal, table, wrap};
use crate::services::Service;
use crate::suite::{CONTEXT, KekOf, Subject, canary_dek, keeps_the_contract, outcome};

const MODES: [&str; 2] = ["mode = 'get'", "mode = 'encrypt'"];

/// AES-GCM came with version 1.4; AES key wrap this server has not.
#[tokio::test]
async fn pykmip_keeps_the_contract_in_every_version_and_mode() {
    let server = Server::start("pykmip");
    for (version, mode, form) in [
        ("1.2", "get", "fetched KEK"),
        ("1.4", "get", "fetched KEK"),
        ("2.0", "get", "fetched KEK"),
        ("1.4", "encrypt", "AES-GCM in the server"),
        ("2.0", "encrypt", "AES-GCM in the server"),
    ] {
        let more = format!("version = '{version}'\nmode = '{mode}'");
        let right = server.manager("kms:prod", &more);
        let key = wrap(&*right).await;
        assert!(right.describe(&key).unwrap().text.starts_with(form) && opens(&*right, &key).await);
        let text = right.probe().await.unwrap().text;
        assert!(text.starts_with(&format!("KMIP {version} at ")) && text.contains("PyKMIP"), "{text}");
        let subject = Subject { right, wrong: server.other(&more), kek: KekOf::Manager };
        assert_eq!(keeps_the_contract(&subject).await, 14, "{version} {mode}");
    }
}

#[tokio::test]
async fn auto_takes_the_best_that_pykmip_can() {
    let server = Server::start("pykmip");
    for (version, form) in
        [("1.2", "fetched KEK"), ("1.4", "AES-GCM"), ("2.0", "AES-GCM"), ("auto", "AES-GCM")]
    {
        let manager = server.manager("kms:prod", &format!("version = '{version}'"));
        let key = wrap(&*manager).await;
        assert!(manager.describe(&key).unwrap().text.starts_with(form), "{version}");
        assert!(opens(&*manager, &key).await);
    }
    let version = server.manager("kms:prod", "").probe().await.unwrap().text;
    assert!(version.starts_with("KMIP 2.0 at "), "{version}");
    let manager = server.manager("kms:prod", "mode = 'encrypt'\nversion = '1.2'");
    let error = manager.wrap(&canary_dek(), CONTEXT).await.unwrap_err();
    assert!(error.to_string().contains("Encrypt by AES key wrap"), "{error}");
}

/// A keyslot, and its key in the state that an administrator's `action` brings it into.
async fn after(server: &mut Server, mode: &str, action: &str) -> (Box<dyn KeyManager>, WrappedKey) {
    let manager = server.manager("kms:prod", mode);
    let key = wrap(&*manager).await;
    server.administrate(action, id_of(&key));
    (manager, key)
}

#[tokio::test]
async fn what_an_administrator_of_pykmip_does_to_a_key_is_honoured() {
    let mut server = Server::start("pykmip");
    for mode in MODES {
        let (manager, key) = after(&mut server, mode, "compromise").await;
        assert_denied(&refusal(&*manager, &key).await, "is Compromised");
        // This server hands it out all the same.
        server.administrate("get", id_of(&key));
        assert_eq!(server.service.says("KEY").len(), 64);
        manager.destroy(&key).await.unwrap();
        assert_denied(&refusal(&*manager, &key).await, "no such object");

        let (manager, key) = after(&mut server, mode, "deactivate").await;
        if mode.contains("get") {
            assert!(opens(&*manager, &key).await);
            assert!(manager.notes()[0].contains("Deactivated"));
        } else {
            // It decrypts with Active keys only.
            assert!(matches!(refusal(&*manager, &key).await, KeyError::Denied(_)));
        }
        let named = server.manager(&format!("kms:prod/{}", id_of(&key)), mode);
        assert_denied(&named.wrap(&canary_dek(), CONTEXT).await.unwrap_err(), "is Deactivated");
        server.administrate("destroy", id_of(&key));
        assert_denied(&refusal(&*manager, &key).await, "no such object");
        manager.destroy(&key).await.unwrap();
    }
}

#[tokio::test]
async fn a_key_of_the_administrators_wraps_once_it_is_active() {
    let mut server = Server::start("pykmip");
    server.administrate("create-preactive", "");
    let id = server.service.says("ID").to_owned();
    let manager = server.manager(&format!("kms:prod/{id}"), "");
    assert_denied(&manager.wrap(&canary_dek(), CONTEXT).await.unwrap_err(), "is Pre-Active");
    assert_denied(&manager.probe().await.unwrap_err(), "is Pre-Active");
    server.administrate("activate", &id);
    let key = wrap(&*manager).await;
    assert_eq!(id_of(&key), id);
    assert!(opens(&*manager, &key).await);
    assert!(matches!(manager.destroy(&key).await, Err(KeyError::Unsupported(_))));
    let missing = server.manager("kms:prod/4711", "");
    assert_denied(&missing.wrap(&canary_dek(), CONTEXT).await.unwrap_err(), "kmip:4711");
}

#[tokio::test]
async fn after_a_reset_the_same_identifier_is_another_key_and_that_is_told() {
    let mut server = Server::start("pykmip");
    for mode in MODES {
        let manager = server.manager("kms:prod", mode);
        let key = wrap(&*manager).await;
        server.run("reset");
        let fresh = server.manager("kms:prod", mode);
        assert_denied(&refusal(&*fresh, &key).await, "no such object");
        while id_of(&wrap(&*fresh).await) != id_of(&key) {}
        for manager in [manager, fresh] {
            assert_denied(&refusal(&*manager, &key).await, "another key");
            assert_denied(&manager.destroy(&key).await.unwrap_err(), "was not destroyed");
        }
    }
}

#[tokio::test]
async fn another_client_gets_nothing_and_one_of_another_signer_does_not_get_in() {
    let server = Server::start("pykmip");
    let key = wrap(&*server.manager("kms:prod", "")).await;
    let other = server.other("");
    assert!(matches!(refusal(&*other, &key).await, KeyError::Denied(_)));
    let named = table(server.address(), server.tls(), "client2", "");
    let named = open(&named, &format!("kms:prod/{}", id_of(&key))).unwrap();
    assert!(matches!(named.wrap(&canary_dek(), CONTEXT).await, Err(KeyError::Denied(_))));
    let rogue = open(&table(server.address(), server.tls(), "rogue", ""), "kms:prod").unwrap();
    assert_denied(&rogue.probe().await.unwrap_err(), "refuses the certificate of this client");
    assert!(opens(&*server.manager("kms:prod", ""), &key).await);
}

#[tokio::test]
async fn a_server_of_another_signer_or_another_name_is_not_trusted() {
    let server = Server::start("pykmip");
    let stranger = format!("tls.ca = '{}'", server.tls().join("stranger.pem").display());
    let error = server.manager("kms:prod", &stranger).probe().await.unwrap_err();
    assert!(matches!(error, KeyError::Untrusted(_)), "{error}");
    let by_name = server.address().replace("127.0.0.1", "localhost");
    let by_name = open(&table(&by_name, server.tls(), "client", ""), "kms:prod").unwrap();
    by_name.probe().await.unwrap();

    let server = Server { service: Service::start("pykmip", &[("SERVER_CERTIFICATE", "other")]) };
    let error = server.manager("kms:prod", "").probe().await.unwrap_err();
    assert!(matches!(error, KeyError::Untrusted(_)), "{error}");
}

#[tokio::test]
async fn a_server_that_was_restarted_still_opens_what_it_wrapped() {
    let mut server = Server::start("pykmip");
    let manager = server.manager("kms:prod", "");
    let key = wrap(&*manager).await;
    server.run("stop");
    let error = outcome(&*manager, &key, CONTEXT).await.unwrap_err();
    assert!(matches!(error, KeyError::Unreachable(_)), "{error}");
    server.run("start");
    assert!(opens(&*manager, &key).await);
    // Its kept connection has ended meanwhile.
    server.run("stop");
    server.run("start");
    assert!(opens(&*manager, &key).await);
    wrap(&*manager).await;
}

#[tokio::test]
async fn unwrapping_takes_little_more_than_its_requests() {
    let server = Server::start("pykmip");
    for mode in MODES {
        latency(&server, "PyKMIP 0.11.0", mode).await;
    }
}
