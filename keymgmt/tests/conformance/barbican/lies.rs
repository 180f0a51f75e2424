//! Services that lie, fail or hang in place of Keystone and Barbican, and certificates that do not fit.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use keymgmt::manager::KeyError;
use keymgmt::provider::Provider;
use keymgmt::registry::{Opening, Registry};
use keymgmt::source::{NoPrompt, Purpose, SecretReader};
use keymgmt::verify::wrap_tested;
use serde_json::{Value, json};

use super::fake::{
    PATIENCE, SECRET, TOKEN, assert_harmless, cloud, honest, is_login, is_payload, keyslot, labelled,
    manager, named, token,
};
use super::{CANARY_PASSWORD, Files, assert_denied, health, opens, refusal, wrap};
use crate::hostile::{Act, Hostile, Signer, VALID, answer};
use crate::suite::{CONTEXT, canary_dek};

/// What an HTTP server does wrong, how, and whether another try may help.
type Wrong = (&'static str, fn() -> Act, bool);

fn wrongs() -> Vec<Wrong> {
    vec![
        ("never answers", || Act::Never, true),
        ("closes", || Act::AnswerAndClose(Vec::new()), true),
        ("closes in the middle", || Act::AnswerAndClose(b"HTTP/1.1 200 OK\r\nContent-Le".to_vec()), true),
        (
            "closes before the announced end",
            || Act::AnswerAndClose(b"HTTP/1.1 200 OK\r\nContent-Length: 32\r\n\r\n0123456789".to_vec()),
            true,
        ),
        (
            "announces more than comes",
            || Act::Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 32\r\n\r\n0123456789".to_vec()),
            true,
        ),
        (
            "answers byte by byte",
            || {
                Act::Trickle(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 32\r\n\r\n".to_vec(),
                    Duration::from_millis(300),
                )
            },
            true,
        ),
        ("fails", || answer(503, &[], "\u{1b}[31mCANARY"), true),
        ("is pressed", || answer(429, &[("Retry-After", "86400")], ""), true),
        ("answers garbage", || Act::AnswerAndClose(vec![0xff; 300]), false),
        ("answers SSH", || Act::AnswerAndClose(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()), false),
        ("answers a head without end", || Act::Endless(b"HTTP/1.1 200 OK\r\nX: ".to_vec()), false),
        (
            "answers a body without end",
            || Act::Endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFF\r\n".to_vec()),
            false,
        ),
        (
            "announces an exabyte",
            || Act::Endless(b"HTTP/1.1 200 OK\r\nContent-Length: 1152921504606846976\r\n\r\n".to_vec()),
            false,
        ),
        (
            "announces a negative length",
            || Act::AnswerAndClose(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n".to_vec()),
            false,
        ),
        (
            "has no such thing as a status",
            || Act::AnswerAndClose(b"HTTP/1.1 999999 OK\r\n\r\n".to_vec()),
            false,
        ),
        ("has another mind", || answer(418, &[], "teapot"), false),
    ]
}

#[tokio::test]
async fn whatever_barbican_does_wrong_costs_bounded_time_and_yields_no_key() {
    let files = Files::new();
    let key = keyslot(&files).await;
    for (what, act, again) in wrongs() {
        let cloud = cloud(move |request| is_payload(request).then(act));
        let manager = manager(&files, &cloud.url(), "");
        let begun = Instant::now();
        let error = refusal(&*manager, &key).await;
        assert_harmless(&error, begun);
        assert_eq!(matches!(error, KeyError::Unreachable(_)), again, "{what}: {error}");
        assert!(again || matches!(error, KeyError::Untrusted(_)), "{what}: {error}");
    }
}

#[tokio::test]
async fn whatever_keystone_does_wrong_costs_bounded_time_and_yields_no_key() {
    let files = Files::new();
    let key = keyslot(&files).await;
    for (what, act, again) in wrongs() {
        let cloud = cloud(move |request| is_login(request).then(act));
        let manager = manager(&files, &cloud.url(), "");
        let begun = Instant::now();
        let error = refusal(&*manager, &key).await;
        assert_harmless(&error, begun);
        assert_eq!(matches!(error, KeyError::Unreachable(_)), again, "{what}: {error}");
        assert_eq!(cloud.count("GET", ""), 0, "{what}: Barbican is not asked without a login");
    }
}

#[tokio::test]
async fn an_answer_that_is_slow_but_in_time_is_taken() {
    let files = Files::new();
    let honest = honest();
    let cloud = Hostile::start(move |request| match honest(request) {
        Act::Answer(bytes) if is_payload(request) => Act::Trickle(bytes, Duration::from_millis(2)),
        act => act,
    });
    let manager = manager(&files, &cloud.url(), "");
    let key = wrap(&*manager).await.unwrap();
    assert!(opens(&*manager, &key).await);
}

#[tokio::test]
async fn only_what_time_can_help_is_tried_again() {
    let files = Files::new();
    let key = keyslot(&files).await;
    for (status, tried_again) in [(503, true), (404, false), (403, false), (418, false)] {
        let cloud = cloud(move |request| is_payload(request).then(|| answer(status, &[], "")));
        let auth = files.password(&cloud.url(), "owner", "tenant", CANARY_PASSWORD);
        let table = format!("type = 'barbican'\ntimeout = '1s'\nretry_for = '1s'\n{auth}");
        let provider = Provider::parse("prod", table.parse().unwrap()).unwrap();
        let registry = Registry::built_in().with_providers(vec![provider]);
        let spec = registry.parse(&format!("kms:prod/{SECRET}")).unwrap();
        let mut prompter = NoPrompt;
        let mut reader = SecretReader::with_credentials(&mut prompter, None);
        let manager = registry.open(&spec, &mut Opening::new(&mut reader, Purpose::Unlock)).unwrap();
        let error = refusal(&*manager, &key).await;
        assert_eq!(matches!(error, KeyError::Unreachable(_)), tried_again, "{status}: {error}");
        assert_eq!(cloud.count("GET", "/payload") > 1, tried_again, "{status}");
        assert_eq!(cloud.count("POST", "/auth/tokens"), 1, "one login for all tries");
    }
}

#[tokio::test]
async fn a_redirect_is_never_followed() {
    let files = Files::new();
    let key = keyslot(&files).await;
    for status in [301, 302, 303, 307, 308] {
        let elsewhere = Arc::new(Hostile::start(|_| answer(200, &[], [7; 32])));
        for at in [is_login, is_payload] {
            let target = elsewhere.url();
            let cloud =
                cloud(move |request| at(request).then(|| answer(status, &[("Location", &target)], "")));
            let error = refusal(&*manager(&files, &cloud.url(), ""), &key).await;
            assert!(matches!(&error, KeyError::Untrusted(why) if why.contains("elsewhere")), "{error}");
        }
        assert_eq!(elsewhere.seen().len(), 0, "{status}");
    }
}

#[tokio::test]
async fn a_payload_of_another_length_is_no_key() {
    let files = Files::new();
    let key = keyslot(&files).await;
    for len in [0, 1, 31, 33, 64, 4096, 1 << 19] {
        let cloud = cloud(move |request| is_payload(request).then(|| answer(200, &[], vec![7; len])));
        assert_denied(&refusal(&*manager(&files, &cloud.url(), ""), &key).await, &format!("has {len} bytes"));
    }
    let cloud = cloud(|request| is_payload(request).then(|| answer(200, &[], vec![7; (1 << 20) + 1])));
    let error = refusal(&*manager(&files, &cloud.url(), ""), &key).await;
    assert!(matches!(error, KeyError::Untrusted(_)), "{error}");
}

#[tokio::test]
async fn another_payload_of_the_right_length_is_denied() {
    let files = Files::new();
    let key = keyslot(&files).await;
    let cloud = cloud(|request| is_payload(request).then(|| answer(200, &[], [7; 32])));
    assert_denied(&refusal(&*manager(&files, &cloud.url(), ""), &key).await, "is another key than the one");
}

#[tokio::test]
async fn a_service_that_never_likes_a_token_is_asked_twice_and_no_more() {
    let files = Files::new();
    let key = keyslot(&files).await;
    let cloud = cloud(|request| is_payload(request).then(|| answer(401, &[], "")));
    let manager = manager(&files, &cloud.url(), "");
    assert_denied(&refusal(&*manager, &key).await, "refuses a token that");
    assert_eq!((cloud.count("POST", "/auth/tokens"), cloud.count("GET", "/payload")), (2, 2));
}

#[tokio::test]
async fn a_login_that_is_refused_is_not_tried_again() {
    let files = Files::new();
    let key = keyslot(&files).await;
    for status in [401, 403] {
        let cloud = cloud(move |request| is_login(request).then(|| answer(status, &[], "CANARY")));
        assert_denied(&refusal(&*manager(&files, &cloud.url(), ""), &key).await, "");
        assert_eq!(cloud.seen().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_token_that_ended_before_it_was_given_serves_one_call() {
    let files = Files::new();
    let logins = Arc::new(AtomicUsize::new(0));
    for (issued, expires) in [
        (json!("2026-11-21T08:00:00Z"), json!("2026-11-21T07:00:00Z")),
        (json!("2026-11-21T08:00:00Z"), json!("soon")),
        (Value::Null, json!("1999-01-01T00:00:00Z")),
        (Value::Null, Value::Null),
    ] {
        let counted = logins.clone();
        let cloud = cloud(move |request| {
            is_login(request).then(|| {
                counted.fetch_add(1, Ordering::Relaxed);
                token(&format!("http://{}", request.header("host").unwrap()), |token| {
                    (token["issued_at"], token["expires_at"]) = (issued.clone(), expires.clone());
                })
            })
        });
        let manager = manager(&files, &cloud.url(), "");
        // One to create the secret, one to register with it.
        let key = wrap(&*manager).await.unwrap();
        assert_eq!(logins.swap(0, Ordering::Relaxed), 2);
        assert!(opens(&*manager, &key).await && opens(&*manager, &key).await);
        assert_eq!(logins.swap(0, Ordering::Relaxed), 2);
    }
}

#[tokio::test]
async fn clocks_that_differ_by_years_do_no_harm() {
    let files = Files::new();
    for (issued, expires) in
        [("1999-01-01T00:00:00Z", "1999-01-01T01:00:00Z"), ("2999-01-01T00:00:00Z", "2999-01-01T01:00:00Z")]
    {
        let cloud = cloud(move |request| {
            is_login(request).then(|| {
                token(&format!("http://{}", request.header("host").unwrap()), |token| {
                    (token["issued_at"], token["expires_at"]) = (json!(issued), json!(expires));
                })
            })
        });
        let manager = manager(&files, &cloud.url(), "");
        let key = wrap(&*manager).await.unwrap();
        assert!(opens(&*manager, &key).await);
        assert_eq!(cloud.count("POST", "/auth/tokens"), 1);
    }
}

#[tokio::test]
async fn a_login_answered_with_nonsense_is_not_trusted() {
    let files = Files::new();
    let key = keyslot(&files).await;
    let long = "x".repeat(9000);
    let answers: Vec<(Vec<(String, String)>, String)> = vec![
        (vec![], "{\"token\": {}}".into()),
        (vec![("X-Subject-Token".into(), String::new())], "{\"token\": {}}".into()),
        (vec![("X-Subject-Token".into(), long)], "{\"token\": {}}".into()),
        (vec![("X-Subject-Token".into(), "a b".into())], "{\"token\": {}}".into()),
        (vec![("X-Subject-Token".into(), TOKEN.into())], "CANARY".into()),
        (vec![("X-Subject-Token".into(), TOKEN.into())], "[".repeat(100_000)),
        (vec![("X-Subject-Token".into(), TOKEN.into())], "{\"token\": {\"catalog\": \"CANARY\"}}".into()),
    ];
    for (headers, body) in answers {
        let shown = format!("{:.60}", body);
        let cloud = cloud(move |request| {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
            is_login(request).then(|| answer(201, &headers, &body))
        });
        let begun = Instant::now();
        let error = refusal(&*manager(&files, &cloud.url(), ""), &key).await;
        assert!(matches!(error, KeyError::Untrusted(_)), "{shown}: {error}");
        assert_harmless(&error, begun);
    }
}

#[tokio::test]
async fn a_catalog_sends_keys_and_tokens_nowhere_in_the_clear() {
    let files = Files::new();
    let key = keyslot(&files).await;
    for url in [
        "http://keys.example:9311",
        "http://169.254.169.254/latest",
        "file:///etc/passwd",
        "https://a@b",
        "\u{1b}[31m",
    ] {
        let cloud = cloud(move |request| is_login(request).then(|| token(url, |_| {})));
        let error = refusal(&*manager(&files, &cloud.url(), ""), &key).await;
        assert!(matches!(error, KeyError::Settings(_)), "{url}: {error}");
        assert_eq!(cloud.seen().len(), 1);
    }
}

#[tokio::test]
async fn a_creation_that_names_another_secret_or_none_makes_no_keyslot() {
    let files = Files::new();
    for reference in [
        "",
        "http://evil.example/",
        "http://x/v1/secrets/../../etc/passwd",
        "http://x/v1/secrets/3547F40C-37EA-4CE5-88E0-25B9D38B0B7C",
    ] {
        let created = json!({ "secret_ref": reference }).to_string();
        let cloud = cloud(move |request| {
            (request.method == "POST" && !is_login(request)).then(|| answer(201, &[], &created))
        });
        let error = wrap(&*manager(&files, &cloud.url(), "")).await.unwrap_err();
        assert!(matches!(error, KeyError::Untrusted(_)), "{reference}: {error}");
    }
    // Of a secret that holds another key the keyslot is made, and found out before it is stored.
    let other = json!({ "secret_ref": format!("http://x/v1/secrets/{SECRET}") }).to_string();
    let cloud = cloud(move |request| {
        let creates = request.method == "POST" && !is_login(request);
        let act = creates.then(|| answer(201, &[], &other));
        act.or_else(|| is_payload(request).then(|| answer(200, &[], [9; 32])))
    });
    let error = wrap_tested(&*manager(&files, &cloud.url(), ""), &canary_dek(), CONTEXT).await.unwrap_err();
    assert_denied(&error, "another key");
}

#[tokio::test]
async fn consumers_that_cannot_be_registered_do_not_fail_a_wrap() {
    let files = Files::new();
    for act in
        [|| answer(403, &[], ""), || answer(500, &[], ""), || Act::Never, || Act::AnswerAndClose(Vec::new())]
    {
        let cloud = cloud(move |request| request.path.ends_with("/consumers").then(act));
        let manager = manager(&files, &cloud.url(), "");
        let key = wrap_tested(&*manager, &canary_dek(), CONTEXT).await.unwrap();
        assert!(opens(&*manager, &key).await);
        assert_eq!(cloud.count("POST", "/consumers"), 1);
    }
}

#[tokio::test]
async fn labels_of_a_named_secret_that_make_no_sense_make_no_keyslot() {
    let files = Files::new();
    for labels in
        ["", "[]", "CANARY", r#"{"expiration": "CANARY"}"#, r#"{"expiration": -1}"#, r#"{"consumers": 1}"#]
    {
        let cloud = labelled(labels);
        let begun = Instant::now();
        let error = wrap(&*named(&files, &cloud).await).await.unwrap_err();
        assert!(matches!(error, KeyError::Untrusted(_)), "{labels}: {error}");
        assert!(begun.elapsed() < PATIENCE);
    }
    // What else they say changes nothing.
    let cloud = labelled(
        r#"{"name": "x", "status": "ERROR", "bit_length": -7, "content_types": {"default": "a/b"}}"#,
    );
    let manager = named(&files, &cloud).await;
    let key = wrap(&*manager).await.unwrap();
    assert!(opens(&*manager, &key).await);
}

#[tokio::test]
async fn an_older_barbican_that_knows_no_consumers_is_asked_without_them() {
    let files = Files::new();
    let cloud = cloud(|request| {
        let labels = request.method == "GET" && request.path.ends_with(SECRET);
        let status = if request.header("openstack-api-version").is_some() { 406 } else { 200 };
        labels.then(|| answer(status, &[], "{}"))
    });
    let manager = named(&files, &cloud).await;
    let key = wrap(&*manager).await.unwrap();
    assert!(opens(&*manager, &key).await);
    assert_eq!(cloud.count("GET", SECRET), 2);
}

#[tokio::test]
async fn a_password_that_ends_is_told() {
    let files = Files::new();
    for (ends, told) in
        [(json!("2999-01-01T00:00:00.000000"), true), (json!(null), false), (json!("CANARY"), false)]
    {
        let cloud = cloud(move |request| {
            is_login(request).then(|| {
                token(&format!("http://{}", request.header("host").unwrap()), |token| {
                    token["user"]["password_expires_at"] = ends.clone();
                })
            })
        });
        let health = health(&*manager(&files, &cloud.url(), "")).await;
        assert_eq!(health.credential_expires.is_some(), told);
    }
}

#[tokio::test]
async fn a_certificate_that_does_not_fit_ends_it_before_a_password_is_sent() {
    let files = Files::new();
    let key = keyslot(&files).await;
    let (ours, foreign) = (Signer::new(), Signer::new());
    let ca = files.write("ca.pem", &ours.pem);
    let trusted = format!("tls = {{ ca = '{}' }}\n", ca.display());
    for (what, certificate, more) in [
        ("of another signer", foreign.sign("localhost", VALID), &*trusted),
        ("of another name", ours.sign("keystone.example", VALID), &trusted),
        ("expired", ours.sign("localhost", (-30, -1)), &trusted),
        ("not yet valid", ours.sign("localhost", (1, 30)), &trusted),
        ("of a signer that the system does not know", ours.sign("localhost", VALID), ""),
    ] {
        let keystone = Hostile::start_tls(certificate, honest());
        let begun = Instant::now();
        let error = refusal(&*manager(&files, &keystone.url_by_name(), more), &key).await;
        assert!(matches!(error, KeyError::Untrusted(_)), "{what}: {error:?}");
        assert_harmless(&error, begun);
        assert_eq!(keystone.seen().len(), 0, "{what}");
    }
    let keystone = Hostile::start_tls(ours.sign("localhost", VALID), honest());
    let barbican = cloud(|_| None);
    let more = format!("{trusted}endpoint = '{}'\n", barbican.url());
    let manager = manager(&files, &keystone.url_by_name(), &more);
    assert!(health(&*manager).await.text.contains("logged in"), "the one that fits is trusted");

    // A server that speaks no TLS.
    let plain = cloud(|_| None);
    let url = plain.url().replace("http://", "https://");
    let error = refusal(&*super::fake::manager(&files, &url, &trusted), &key).await;
    assert!(matches!(error, KeyError::Untrusted(_)), "{error:?}");
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let files = Files::new();
    let key = keyslot(&files).await;
    let url = cloud(|_| None).url();
    let error = refusal(&*manager(&files, &url, ""), &key).await;
    assert!(matches!(error, KeyError::Unreachable(_)), "{error:?}");
}

#[test]
fn tables_that_cannot_work_are_refused_without_repeating_them() {
    let refused = |table: &str| {
        let table = format!("type = 'barbican'\n{table}").parse().unwrap();
        let error = Provider::parse("prod", table).err().unwrap().to_string();
        assert!(!error.contains("hunter2"), "{error}");
        error
    };
    assert!(refused("").contains("missing field `auth`"));
    assert!(refused("auth = { method = 'none' }").contains("unknown variant"));
    let user = "method = 'password', url = 'https://k', username = 'u', project = 'p'";
    assert!(refused(&format!("auth = {{ {user} }}")).contains("password"));
    assert!(refused(&format!("auth = {{ {user}, password = 'hunter2' }}")).contains("never as itself"));
    assert!(refused(&format!("auth = {{ {user}, password = 'fd:3', hunter = 1 }}")).contains("hunter"));
    assert!(refused(&format!("auth = {{ {user}, password = 'fd:3' }}\nurl = 'https://k'")).contains("url"));
    let plain = user.replace("https", "http");
    assert!(refused(&format!("auth = {{ {plain}, password = 'fd:3' }}")).contains("plain http"));
    let cloud = "auth = { method = 'cloud', cloud = 'x' }";
    assert!(refused(&format!("{cloud}\nendpoint = 'http://keys.example'")).contains("plain http"));
    assert!(refused(&format!("{cloud}\ninterface = 'hunter2'")).contains("expected one of `public`"));
    assert!(refused("auth = { method = 'cloud', cloud = 'x', password = 'hunter2' }").contains("password"));
}
