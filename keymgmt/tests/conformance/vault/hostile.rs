//! Servers that are down, sealed, slow, lying, or not the one that was meant.

use std::time::Duration;

use keymgmt::manager::KeyError;

use super::{World, wrapped};
use crate::scripted_vault::{Fault, ScriptedVault};
use crate::services::certificates;
use crate::suite::{CONTEXT, Kind, canary_dek, kind, outcome};

/// What unwrapping and wrapping come to when every request for a key meets a fault.
async fn under(fault: &Fault) -> (Vec<KeyError>, Vec<Result<(), KeyError>>) {
    let world = World::new();
    let more = "timeout = '300ms'";
    let (mut unwraps, mut wraps) = (Vec::new(), Vec::new());
    for manager in [
        world.open("kms:prod/db", "vault-transit", more).unwrap(),
        world.open("kms:prod", "vault-kv", &format!("{more}\n{}", super::kv(1))).unwrap(),
        world.open("kms:prod", "vault-kv", &format!("{more}\n{}", super::kv(2))).unwrap(),
    ] {
        world.vault.state().faults.clear();
        let key = wrapped(&*manager).await;
        let faults = ["transit/", "secret/", "kv/"].map(|path| (path, fault.clone()));
        world.vault.state().faults.extend(faults);
        unwraps.push(outcome(&*manager, &key, CONTEXT).await.expect_err("a fault"));
        wraps.push(manager.wrap(&canary_dek(), CONTEXT).await.map(drop));
    }
    (unwraps, wraps)
}

fn assert_all(errors: &[KeyError], expected: Kind, what: &str) {
    for error in errors {
        assert_eq!(kind(error), expected, "{what}: {error}");
        assert!(error.to_string().len() < 600, "{what}: {error}");
    }
}

fn http(body: &str) -> Fault {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    Fault::Raw([head.as_bytes(), body.as_bytes()].concat())
}

#[tokio::test]
async fn every_fault_is_told_for_what_it_means() {
    for (what, fault, expected) in [
        ("sealed", Fault::Status(503, r#"{"errors":["Vault is sealed"]}"#), Kind::Unreachable),
        ("failing", Fault::Status(500, ""), Kind::Unreachable),
        ("a proxy's page", Fault::Status(502, "<html>"), Kind::Unreachable),
        ("standby", Fault::Status(429, ""), Kind::Unreachable),
        ("behind", Fault::Status(412, ""), Kind::Unreachable),
        ("recovery site", Fault::Status(472, ""), Kind::Unreachable),
        ("performance standby", Fault::Status(473, ""), Kind::Unreachable),
        ("no answer", Fault::Hang, Kind::Unreachable),
        ("half an answer", Fault::Drip, Kind::Unreachable),
        ("connection lost", Fault::HangUp, Kind::Unreachable),
        ("no right", Fault::Status(403, r#"{"errors":["permission denied"]}"#), Kind::Denied),
        ("not found", Fault::Status(404, r#"{"errors":[]}"#), Kind::Denied),
        ("not found by RustyVault", Fault::Status(404, ""), Kind::Denied),
        ("another engine", Fault::Status(405, r#"{"errors":["unsupported operation"]}"#), Kind::Denied),
        (
            "a derived key",
            Fault::Status(400, r#"{"errors":["missing 'context' for key derivation"]}"#),
            Kind::Denied,
        ),
        ("a foreign status", Fault::Status(401, ""), Kind::Untrusted),
        ("redirect", Fault::Redirect("http://127.0.0.1:1/v1/x".into()), Kind::Untrusted),
        ("no HTTP", Fault::Raw(b"\x16\x03\x01 no http at all\r\n\r\n".to_vec()), Kind::Untrusted),
        ("oversize", http(&format!("{{\"data\":\"{}\"}}", "x".repeat(2 << 20))), Kind::Untrusted),
    ] {
        let (unwraps, wraps) = under(&fault).await;
        assert_all(&unwraps, expected, what);
        let wraps: Vec<_> = wraps.into_iter().map(|result| result.expect_err(what)).collect();
        assert_all(&wraps, expected, what);
    }
}

/// Version 1 of the key/value engine answers a write with nothing that could be wrong.
#[tokio::test]
async fn an_answer_that_is_none_is_not_trusted() {
    let deep = "[".repeat(100_000);
    for (what, body) in [
        ("nothing", ""),
        ("a page", "<html>please log in</html>"),
        ("null", "null"),
        ("null inside", r#"{"data":null}"#),
        ("other types", r#"{"data":{"plaintext":5,"ciphertext":[],"key":{},"data":7,"version":"x"}}"#),
        ("depth", &deep),
    ] {
        let (unwraps, wraps) = under(&http(body)).await;
        assert_all(&unwraps, Kind::Untrusted, what);
        let [transit, _, kv2] = <[_; 3]>::try_from(wraps).unwrap();
        for result in [transit, kv2] {
            assert_all(&[result.expect_err(what)], Kind::Untrusted, what);
        }
    }
}

#[tokio::test]
async fn keys_of_another_length_and_ciphertexts_of_another_form_are_refused() {
    let long = format!(r#"{{"data":{{"plaintext":"{0}","key":"{0}"}}}}"#, "A".repeat(4 * 43));
    let (unwraps, _) = under(&http(&long)).await;
    let kinds: Vec<_> = unwraps.iter().map(kind).collect();
    assert_eq!(kinds[..2], [Kind::Untrusted, Kind::Denied], "64 bytes for a key of 32");
    let (_, wraps) = under(&http(r#"{"data":{"ciphertext":"vault:v1:AAAA"}}"#)).await;
    assert_eq!(wraps[0].as_ref().map_err(kind), Err(Kind::Untrusted), "three bytes for a wrapped key");
}

#[tokio::test]
async fn no_error_repeats_a_token_or_a_key_that_the_server_repeats() {
    for status in [400, 401, 403, 404, 405, 500, 503] {
        let (unwraps, wraps) = under(&Fault::Echo(status)).await;
        for error in unwraps.into_iter().chain(wraps.into_iter().map(|result| result.expect_err("a fault"))) {
            let told = format!("{error} {error:?}");
            assert!(!told.contains("CANARY") && !told.contains("Q0FOQVJZ"), "{told}");
        }
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (world, elsewhere) = (World::new(), ScriptedVault::start());
    let key = wrapped(&*world.transit()).await;
    let to = format!("{}/v1/transit/decrypt/db", elsewhere.address());
    world.vault.state().faults.push(("transit/", Fault::Redirect(to)));
    let error = outcome(&*world.transit(), &key, CONTEXT).await.unwrap_err();
    assert!(matches!(&error, KeyError::Untrusted(why) if why.contains("redirect")), "{error}");
    assert!(elsewhere.state().requests.is_empty());
}

#[tokio::test]
async fn a_sealed_server_is_unreachable_by_that_word_and_works_again_once_unsealed() {
    let world = World::new();
    for manager in world.managers() {
        let key = wrapped(&*manager).await;
        world.vault.state().sealed = true;
        let errors =
            [outcome(&*manager, &key, CONTEXT).await.unwrap_err(), manager.probe().await.unwrap_err()];
        for error in errors {
            assert!(matches!(&error, KeyError::Unreachable(why) if why.contains("is sealed")), "{error}");
        }
        world.vault.state().sealed = false;
        assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
        manager.probe().await.unwrap();
    }
}

/// `retry_for` is for a server that comes back in time.
#[tokio::test]
async fn a_server_that_comes_back_in_time_is_waited_for() {
    let world = World::new();
    let key = wrapped(&*world.transit()).await;
    let patient = world.open("kms:prod/db", "vault-transit", "retry_for = '30s'").unwrap();
    world.vault.state().sealed = true;
    let unseal = async {
        while world.vault.count("transit/decrypt/db") + world.vault.count("auth/token/lookup-self") < 5 {
            tokio::task::yield_now().await;
        }
        world.vault.state().sealed = false;
    };
    let (opened, ()) = tokio::join!(outcome(&*patient, &key, CONTEXT), unseal);
    assert!(opened.unwrap());
}

#[tokio::test]
async fn a_server_that_is_gone_is_unreachable() {
    let world = World::new();
    let manager = world.transit();
    let key = wrapped(&*manager).await;
    drop(world);
    let error = outcome(&*manager, &key, CONTEXT).await.unwrap_err();
    assert!(matches!(error, KeyError::Unreachable(_)), "{error}");
}

#[tokio::test]
async fn a_probe_tells_what_is_missing() {
    let world = World::new();
    let manager = world.transit();
    assert_eq!(manager.probe().await.unwrap().credential_expires, None);
    for (status, expected) in [(501, Kind::Unreachable), (429, Kind::Unreachable), (472, Kind::Unreachable)] {
        world.vault.state().faults = vec![("sys/health", Fault::Status(status, "{}"))];
        assert_eq!(kind(&manager.probe().await.unwrap_err()), expected, "{status}");
    }
    // RustyVault has no sys/health.
    world.vault.state().faults = vec![("sys/health", Fault::Status(404, ""))];
    manager.probe().await.unwrap();
    world.vault.state().faults.push(("sys/seal-status", Fault::Status(200, "{}")));
    assert_eq!(kind(&manager.probe().await.unwrap_err()), Kind::Untrusted);
    world.vault.state().faults.clear();
    let hostile = r#"{"version":"\u001b[31m CANARY"}"#;
    world.vault.state().faults.push(("sys/health", Fault::Status(200, hostile)));
    let text = manager.probe().await.unwrap().text;
    assert!(!text.contains("CANARY") && !text.contains(char::is_control), "{text}");
    world.vault.state().faults.clear();
    world.vault.state().tokens.clear();
    assert_eq!(kind(&manager.probe().await.unwrap_err()), Kind::Denied);
}

/// `future` is a server whose certificate begins later: one of the two clocks is wrong.
#[tokio::test]
async fn a_certificate_that_does_not_fit_is_never_trusted_and_no_token_is_sent() {
    let files = certificates();
    for name in ["other", "expired", "future", "untrusted"] {
        let world = World::with(ScriptedVault::start_tls(files.path(), name));
        let tls = format!("tls = {{ ca = '{}' }}", files.path().join("ca.pem").display());
        let manager = world.open("kms:prod/db", "vault-transit", &tls).unwrap();
        for error in
            [manager.wrap(&canary_dek(), CONTEXT).await.unwrap_err(), manager.probe().await.unwrap_err()]
        {
            assert!(matches!(error, KeyError::Untrusted(_)), "{name}: {error}");
        }
        assert!(world.vault.state().requests.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn a_signer_that_was_not_configured_is_not_trusted() {
    let files = certificates();
    let world = World::with(ScriptedVault::start_tls(files.path(), "server"));
    let error = world.transit().wrap(&canary_dek(), CONTEXT).await.unwrap_err();
    assert!(matches!(error, KeyError::Untrusted(_)), "{error}");
}

#[tokio::test]
async fn a_slow_server_costs_no_more_than_the_timeout_for_each_request() {
    let world = World::new();
    let manager = world.open("kms:prod/db", "vault-transit", "timeout = '200ms'").unwrap();
    let key = wrapped(&*manager).await;
    world.vault.state().faults.push(("transit/", Fault::Drip));
    let begun = std::time::Instant::now();
    let error = outcome(&*manager, &key, CONTEXT).await.unwrap_err();
    assert!(matches!(error, KeyError::Unreachable(_)), "{error}");
    assert!(begun.elapsed() >= Duration::from_millis(200) && begun.elapsed() < Duration::from_secs(5));
}
