//! Cosmian KMS 5.28.0, as `keymgmt/tests/services/cosmian-kms` starts it: a server that re-keys, wraps, and holds to the
//! states of keys.
//!
//! Building it takes twenty minutes, so these tests are ignored unless the runner knows that it is there already
//! (`keymgmt/tests/services/cosmian-kms cached`) or that it may be built; run by hand they build it.

use keymgmt::manager::KeyError;

use super::{Server, assert_denied, id_of, latency, open, opens, refusal, table, wrap};
use crate::suite::{CONTEXT, KekOf, Subject, canary_dek, keeps_the_contract};

const MODES: [&str; 2] = ["mode = 'encrypt'", "mode = 'get'"];

#[tokio::test]
#[ignore = "needs Cosmian KMS: keymgmt/tests/services/cosmian-kms"]
async fn cosmian_keeps_the_contract_in_every_version_and_mode() {
    let server = Server::start("cosmian-kms");
    for version in ["1.2", "1.4", "2.0"] {
        for mode in ["encrypt", "auto", "get"] {
            let more = format!("version = '{version}'\nmode = '{mode}'");
            let right = server.manager("kms:prod", &more);
            let key = wrap(&*right).await;
            assert!(opens(&*right, &key).await);
            let text = right.describe(&key).unwrap().text;
            let form = if mode == "get" { "fetched KEK" } else { "AES key wrap in the server" };
            assert!(text.starts_with(form), "{text}");
            let subject = Subject { right, wrong: server.other(&more), kek: KekOf::Manager };
            assert_eq!(keeps_the_contract(&subject).await, 14, "{version} {mode}");
        }
    }
}

#[tokio::test]
#[ignore = "needs Cosmian KMS: keymgmt/tests/services/cosmian-kms"]
async fn re_key_replaces_the_key_and_the_old_one_only_decrypts() {
    let server = Server::start("cosmian-kms");
    for version in ["1.2", "1.4", "2.0"] {
        let manager = server.manager("kms:prod", &format!("mode = 'encrypt'\nversion = '{version}'"));
        let old = wrap(&*manager).await;
        manager.rotate(&old).await.unwrap();
        let new = wrap(&*manager).await;
        assert_ne!(id_of(&new), id_of(&old));
        assert!(opens(&*manager, &new).await && manager.notes().is_empty());
        assert!(opens(&*manager, &old).await);
        assert!(manager.notes()[0].contains("Deactivated"));
        let named = server.manager(&format!("kms:prod/{}", id_of(&old)), "");
        assert_denied(&named.wrap(&canary_dek(), CONTEXT).await.unwrap_err(), "is Deactivated");
        manager.destroy(&old).await.unwrap();
        assert!(matches!(refusal(&*manager, &old).await, KeyError::Denied(_)));
        assert!(opens(&*manager, &new).await);
    }
}

#[tokio::test]
#[ignore = "needs Cosmian KMS: keymgmt/tests/services/cosmian-kms"]
async fn a_key_that_encrypts_never_leaves_the_server() {
    let server = Server::start("cosmian-kms");
    for version in ["1.4", "2.0"] {
        let manager = server.manager("kms:prod", &format!("mode = 'encrypt'\nversion = '{version}'"));
        let mut key = wrap(&*manager).await;
        for _ in 0..2 {
            let fetched = server.manager(&format!("kms:prod/{}", id_of(&key)), "mode = 'get'");
            let error = fetched.wrap(&canary_dek(), CONTEXT).await.unwrap_err();
            assert_denied(&error, "the key does not leave the server");
            // What replaces it does not either.
            manager.rotate(&key).await.unwrap();
            key = wrap(&*manager).await;
        }
        assert!(opens(&*manager, &key).await && manager.notes().is_empty());
    }
}

#[tokio::test]
#[ignore = "needs Cosmian KMS: keymgmt/tests/services/cosmian-kms"]
async fn in_get_mode_the_old_key_stays_active_for_it_would_not_be_handed_out() {
    let mut server = Server::start("cosmian-kms");
    let manager = server.manager("kms:prod", "mode = 'get'");
    let old = wrap(&*manager).await;
    manager.rotate(&old).await.unwrap();
    let new = wrap(&*manager).await;
    assert_ne!(id_of(&new), id_of(&old));
    assert!(opens(&*manager, &old).await);
    server.administrate("deactivate", id_of(&old));
    assert!(matches!(refusal(&*manager, &old).await, KeyError::Denied(_)), "as this server has it");
}

#[tokio::test]
#[ignore = "needs Cosmian KMS: keymgmt/tests/services/cosmian-kms"]
async fn a_compromised_key_opens_nothing() {
    let mut server = Server::start("cosmian-kms");
    for mode in MODES {
        let manager = server.manager("kms:prod", mode);
        let key = wrap(&*manager).await;
        server.administrate("compromise", id_of(&key));
        assert_denied(&refusal(&*manager, &key).await, "is Compromised");
        manager.destroy(&key).await.unwrap();
        assert!(matches!(refusal(&*manager, &key).await, KeyError::Denied(_)));
        manager.destroy(&key).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs Cosmian KMS: keymgmt/tests/services/cosmian-kms"]
async fn another_client_gets_nothing_and_one_of_another_signer_does_not_get_in() {
    let server = Server::start("cosmian-kms");
    for mode in MODES {
        let key = wrap(&*server.manager("kms:prod", mode)).await;
        assert!(matches!(refusal(&*server.other(mode), &key).await, KeyError::Denied(_)));
        assert!(opens(&*server.manager("kms:prod", mode), &key).await);
    }
    let rogue = open(&table(server.address(), server.tls(), "rogue", ""), "kms:prod").unwrap();
    let error = rogue.probe().await.unwrap_err();
    assert!(matches!(error, KeyError::Denied(_) | KeyError::Unreachable(_)), "{error}");
    let stranger = format!("tls.ca = '{}'", server.tls().join("stranger.pem").display());
    let error = server.manager("kms:prod", &stranger).probe().await.unwrap_err();
    assert!(matches!(error, KeyError::Untrusted(_)), "{error}");
}

#[tokio::test]
#[ignore = "needs Cosmian KMS: keymgmt/tests/services/cosmian-kms"]
async fn a_server_that_was_restarted_still_opens_and_one_that_was_emptied_does_not() {
    let mut server = Server::start("cosmian-kms");
    let manager = server.manager("kms:prod", "");
    let key = wrap(&*manager).await;
    server.run("stop");
    let error = refusal(&*manager, &key).await;
    assert!(matches!(error, KeyError::Unreachable(_)), "{error}");
    server.run("start");
    assert!(opens(&*manager, &key).await);
    server.run("reset");
    assert!(matches!(refusal(&*manager, &key).await, KeyError::Denied(_)));
}

#[tokio::test]
#[ignore = "needs Cosmian KMS: keymgmt/tests/services/cosmian-kms"]
async fn unwrapping_takes_little_more_than_its_requests() {
    let server = Server::start("cosmian-kms");
    for mode in MODES {
        latency(&server, "Cosmian KMS 5.28.0", mode).await;
    }
}
