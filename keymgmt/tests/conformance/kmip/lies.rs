//! Servers that are down, slow, lying, or not the one that was meant.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use keymgmt::manager::{KeyError, WrappedKey};
use keymgmt::provider::Provider;

use super::{World, open, opens, refusal, table, wrap};
use crate::scripted_kmip::{
    ACTIVATE, CREATE, DECRYPT, DISCOVER, ENCRYPT, Fault, GET, GET_ATTRIBUTES, QUERY, ScriptedKmip,
};
use crate::suite::{CONTEXT, Kind, canary_dek, kind, outcome};

const EVERY: [u32; 7] = [GET, DECRYPT, ENCRYPT, GET_ATTRIBUTES, CREATE, QUERY, DISCOVER];

/// How unwraps in both modes, wraps and probes of new managers end when every operation has that fault.
async fn under(fault: &Fault) -> Vec<KeyError> {
    let mut errors = Vec::new();
    // Short where it is waited for, and beyond what any machine needs where it is not.
    let timeout = if matches!(fault, Fault::Hang | Fault::Drip) { "300ms" } else { "60s" };
    for mode in ["get", "encrypt"] {
        let world = World::new();
        let more = format!("mode = '{mode}'\ntimeout = '{timeout}'\nversion = '1.4'");
        let manager = world.manager("kms:prod", &more);
        let key = wrap(&*world.manager("kms:prod", &more.replace("300ms", "60s"))).await;
        world.server.state().faults = EVERY.map(|operation| (operation, fault.clone())).to_vec();
        errors.push(outcome(&*manager, &key, CONTEXT).await.expect_err("a fault"));
        let fresh = world.manager("kms:prod", &more);
        errors.push(outcome(&*fresh, &key, CONTEXT).await.expect_err("a fault"));
        errors.push(fresh.wrap(&canary_dek(), CONTEXT).await.expect_err("a fault"));
        errors.push(fresh.probe().await.expect_err("a fault"));
        // The key itself, after its state was told.
        world.server.state().faults = vec![(GET, fault.clone()), (DECRYPT, fault.clone())];
        errors.push(outcome(&*fresh, &key, CONTEXT).await.expect_err("a fault"));
    }
    errors
}

fn assert_all(errors: &[KeyError], expected: Kind, what: &str) {
    for error in errors {
        assert_eq!(kind(error), expected, "{what}: {error}");
        let told = format!("{error} {error:?}");
        assert!(told.len() < 1200 && !told.contains("CANARY") && !told.contains('\u{1b}'), "{what}: {told}");
    }
}

fn ttlv(tag: u32, kind: u8, len: u32, value: &[u8]) -> Vec<u8> {
    let [_, tag @ ..] = tag.to_be_bytes();
    [tag.as_slice(), &[kind], &len.to_be_bytes(), value].concat()
}

#[tokio::test]
async fn every_fault_of_a_connection_is_told_for_what_it_means() {
    let deep = |depth: u32| {
        (0..depth)
            .fold(Vec::new(), |inner, _| ttlv(0x42_007b, 1, u32::try_from(inner.len()).unwrap(), &inner))
    };
    for (what, fault, expected) in [
        ("no answer", Fault::Hang, Kind::Unreachable),
        ("an answer without end in time", Fault::Drip, Kind::Unreachable),
        ("connection lost", Fault::HangUp, Kind::Unreachable),
        ("a web server", Fault::Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()), Kind::Untrusted),
        ("a request as answer", Fault::Raw(ttlv(0x42_0078, 1, 0, b"")), Kind::Untrusted),
        ("an empty message", Fault::Raw(ttlv(0x42_007b, 1, 0, b"")), Kind::Untrusted),
        ("no structure", Fault::Raw(ttlv(0x42_007b, 8, 8, &[0; 8])), Kind::Untrusted),
        ("oversize", Fault::Raw(ttlv(0x42_007b, 1, (64 << 10) - 7, b"")), Kind::Untrusted),
        ("4 GiB", Fault::Raw(ttlv(0x42_007b, 1, u32::MAX, b"")), Kind::Untrusted),
        ("oversize and sent", Fault::Endless(ttlv(0x42_007b, 1, 1 << 30, b"")), Kind::Untrusted),
        ("zeros", Fault::Endless(ttlv(0x42_007b, 1, 4096, b"")), Kind::Untrusted),
        ("depth", Fault::Raw(deep(4000)), Kind::Untrusted),
        ("another operation's", Fault::change(|answer| swap_operation(answer)), Kind::Untrusted),
        ("a batch of two", Fault::change(|answer| set_batch_count(answer, 2)), Kind::Untrusted),
        ("another version's", Fault::change(|answer| swap_version(answer)), Kind::Untrusted),
        ("put off", Fault::change(|answer| set_status(answer, 2)), Kind::Untrusted),
        ("an unknown status", Fault::change(|answer| set_status(answer, 9)), Kind::Untrusted),
    ] {
        assert_all(&under(&fault).await, expected, what);
    }
}

/// The value of the first item of that tag that is an integer or an enumeration.
fn place(answer: &[u8], tag: u32) -> Option<usize> {
    let [_, tag @ ..] = tag.to_be_bytes();
    (0..answer.len().saturating_sub(15)).step_by(8).find(|at| answer[*at..at + 3] == tag).map(|at| at + 8)
}

fn swap_operation(answer: &mut [u8]) {
    let at = place(answer, 0x42_005c).unwrap();
    answer[at + 3] ^= 0x40;
}

fn swap_version(answer: &mut [u8]) {
    let at = place(answer, 0x42_006b).unwrap();
    answer[at + 3] ^= 0x40;
}

fn set_batch_count(answer: &mut [u8], count: u8) {
    let at = place(answer, 0x42_000d).unwrap();
    answer[at + 3] = count;
}

fn set_status(answer: &mut [u8], status: u8) {
    let at = place(answer, 0x42_007f).unwrap();
    answer[at + 3] = status;
}

#[tokio::test]
async fn every_refusal_is_told_for_what_it_means() {
    for (reason, expected) in [
        (0x01, Kind::Denied),
        (0x03, Kind::Denied),
        (0x04, Kind::Denied),
        (0x05, Kind::Unsupported),
        (0x07, Kind::Denied),
        (0x08, Kind::Unsupported),
        (0x0a, Kind::Denied),
        (0x0c, Kind::Denied),
        (0x0d, Kind::Denied),
        (0x16, Kind::Denied),
        (0x2a, Kind::Unreachable),
        (0x36, Kind::Denied),
        (0x37, Kind::Denied),
        (0x39, Kind::Denied),
        (0x3a, Kind::Unreachable),
        (0x3f, Kind::Settings),
        (0x43, Kind::Denied),
        (0x100, Kind::Denied),
        (0xdead_beef, Kind::Denied),
    ] {
        assert_all(&under(&Fault::Refuse(reason)).await, expected, &format!("{reason:#x}"));
    }
}

/// An answer whose bits were changed is refused, or it says the same: a key is never another one.
#[tokio::test]
async fn no_changed_answer_yields_another_key() {
    let (mut refused, mut same) = (0, 0);
    for mode in ["get", "encrypt"] {
        let world = World::new();
        let manager = world.manager("kms:prod", &format!("mode = '{mode}'\ntimeout = '60s'"));
        let key = wrap(&*manager).await;
        assert!(opens(&*manager, &key).await);
        for operation in [GET, DECRYPT, GET_ATTRIBUTES] {
            let recorded =
                world.server.state().answers.iter().rev().find(|(of, _)| *of == operation).cloned();
            let Some((_, answer)) = recorded else { continue };
            // Beyond the length of the message, which only makes the client wait.
            for at in (0..4).chain(8..answer.len()) {
                let mask = 1 << (at % 8);
                let change = move |answer: &mut Vec<u8>| answer[at] ^= mask;
                world.server.state().faults = vec![(operation, Fault::change(change))];
                match manager.unwrap(&key, CONTEXT).await {
                    Ok(Some(dek)) => {
                        assert!(dek.matches(&canary_dek()));
                        same += 1;
                    }
                    Ok(None) => refused += 1,
                    Err(error) => {
                        assert!(
                            matches!(error, KeyError::Denied(_) | KeyError::Untrusted(_)),
                            "{at}: {error}"
                        );
                        refused += 1;
                    }
                }
            }
        }
    }
    assert!(refused > same, "{refused} refused, {same} the same");
}

#[tokio::test]
async fn a_key_of_another_kind_is_refused() {
    for (what, tag, value) in [
        ("another algorithm", 0x42_0028, 2),
        ("another object", 0x42_0057, 4),
        ("an opaque format", 0x42_0042, 2),
        ("another length", 0x42_002a, 128),
    ] {
        let world = World::new();
        let manager = world.manager("kms:prod", "mode = 'get'");
        let key = wrap(&*manager).await;
        let change = move |answer: &mut Vec<u8>| {
            let at = place(answer, tag).unwrap();
            answer[at + 3] = value;
        };
        world.server.state().faults = vec![(GET, Fault::change(change))];
        assert_eq!(kind(&refusal(&*manager, &key).await), Kind::Untrusted, "{what}");
    }
}

#[tokio::test]
async fn one_connection_is_kept_for_all_operations() {
    let world = World::new();
    let manager = world.manager("kms:prod", "");
    let key = wrap(&*manager).await;
    for _ in 0..5 {
        assert!(opens(&*manager, &key).await);
    }
    manager.rotate(&key).await.unwrap();
    manager.probe().await.unwrap();
    assert_eq!(world.server.state().connections, 1);
}

#[tokio::test]
async fn a_server_that_ends_each_connection_costs_no_failure_of_an_unwrap() {
    for mode in ["get", "encrypt"] {
        let world = World::new();
        let manager = world.manager("kms:prod", &format!("mode = '{mode}'"));
        let key = wrap(&*manager).await;
        world.server.state().hangs_up = true;
        for _ in 0..20 {
            assert!(opens(&*manager, &key).await);
        }
        assert!(world.server.state().connections > 20);
    }
}

#[tokio::test]
async fn what_changes_something_is_asked_on_a_connection_that_lives_and_never_twice() {
    let world = World::new();
    let manager = world.manager("kms:prod", "mode = 'get'\nversion = '1.4'");
    let key = wrap(&*manager).await;
    for _ in 0..10 {
        // The kept connection ends with the last answer of an unwrap, which a wrap then begins with.
        world.server.state().hangs_up = true;
        assert!(opens(&*manager, &key).await);
        world.server.state().hangs_up = false;
        let before = world.server.count(CREATE);
        wrap(&*manager).await;
        assert_eq!(world.server.count(CREATE), before + 1);
    }
    for changed in [CREATE, ACTIVATE] {
        world.server.state().faults = vec![(changed, Fault::HangUp)];
        let before = world.server.count(changed);
        let error = manager.wrap(&canary_dek(), CONTEXT).await.unwrap_err();
        assert_eq!(kind(&error), Kind::Unreachable, "{error}");
        assert_eq!(world.server.count(changed), before + 1);
    }
}

#[tokio::test]
async fn a_server_that_refuses_query_is_asked_for_what_it_may_do() {
    let world = World::new();
    world.server.state().faults = vec![(QUERY, Fault::Refuse(0xc))];
    let manager = world.manager("kms:prod", "");
    let key = wrap(&*manager).await;
    manager.rotate(&key).await.unwrap();
    assert!(opens(&*manager, &key).await);
    assert!(manager.describe(&key).unwrap().text.starts_with("AES key wrap"));
    assert_eq!(kind(&manager.probe().await.unwrap_err()), Kind::Denied);
}

#[tokio::test]
async fn an_operation_takes_no_longer_than_its_timeout() {
    let world = World::new();
    let patient = world.manager("kms:prod", "timeout = '60s'\nmode = 'get'");
    let key = wrap(&*patient).await;
    let manager = world.manager("kms:prod", "timeout = '400ms'\nmode = 'get'");
    for fault in [Fault::Drip, Fault::Hang] {
        world.server.state().faults = vec![(GET, fault)];
        let begun = Instant::now();
        let error = outcome(&*manager, &key, CONTEXT).await.unwrap_err();
        assert_eq!(kind(&error), Kind::Unreachable, "{error}");
        assert!(begun.elapsed() >= Duration::from_millis(400) && begun.elapsed() < Duration::from_secs(5));
    }
    world.server.state().faults.clear();
    assert!(opens(&*patient, &key).await);
}

#[tokio::test]
async fn a_server_that_is_gone_is_unreachable() {
    let World { server, tls } = World::new();
    let address = server.address().to_string();
    let manager = open(&table(&address, tls.path(), "client", ""), "kms:prod").unwrap();
    let key = wrap(&*manager).await;
    drop(server);
    let fresh = open(&table(&address, tls.path(), "client", ""), "kms:prod").unwrap();
    assert_eq!(kind(&outcome(&*fresh, &key, CONTEXT).await.unwrap_err()), Kind::Unreachable);
    assert_eq!(kind(&fresh.probe().await.unwrap_err()), Kind::Unreachable);
}

/// `future` is a server whose certificate begins later: one of the two clocks is wrong.
#[tokio::test]
async fn a_certificate_that_does_not_fit_is_never_trusted_and_nothing_is_asked() {
    for name in ["other", "expired", "future", "untrusted"] {
        let World { server, tls } = World::new();
        let lying = ScriptedKmip::start(tls.path(), name);
        drop(server);
        let manager =
            open(&table(&lying.address().to_string(), tls.path(), "client", ""), "kms:prod").unwrap();
        let wrapped = manager.wrap(&canary_dek(), CONTEXT).await.unwrap_err();
        for error in [wrapped, manager.probe().await.unwrap_err()] {
            assert_eq!(kind(&error), Kind::Untrusted, "{name}: {error}");
        }
        assert!(lying.state().asked.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn a_client_that_the_server_does_not_know_is_denied_by_either_version_of_tls() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let tls = crate::services::certificates();
        let server = ScriptedKmip::start_with(tls.path(), "server", &[version]);
        let address = server.address().to_string();
        let known = open(&table(&address, tls.path(), "client", ""), "kms:prod").unwrap();
        let key = wrap(&*known).await;
        assert!(opens(&*known, &key).await);
        let rogue = open(&table(&address, tls.path(), "rogue", ""), "kms:prod").unwrap();
        let error = rogue.probe().await.unwrap_err();
        assert!(
            matches!(&error, KeyError::Denied(why) if why.contains("certificate of this client")),
            "{error}"
        );
    }
}

#[tokio::test]
async fn the_newest_version_that_both_speak_is_spoken() {
    for (versions, spoken) in [
        (vec![(2, 1), (2, 0), (1, 4), (1, 2), (1, 0)], "KMIP 2.0"),
        (vec![(1, 4), (1, 3), (1, 2)], "KMIP 1.4"),
        (vec![(1, 3), (1, 2), (1, 1)], "KMIP 1.2"),
        // One that refuses a header of version 1.2.
        (vec![(2, 1), (2, 0)], "KMIP 2.0"),
    ] {
        let world = World::new();
        world.server.state().versions = versions;
        let manager = world.manager("kms:prod", "");
        assert!(manager.probe().await.unwrap().text.starts_with(spoken), "{spoken}");
        assert!(opens(&*manager, &wrap(&*manager).await).await);
        assert!(world.server.count(DISCOVER) <= 2, "asked once");
    }
    let world = World::new();
    world.server.state().versions = vec![(1, 0)];
    let error = world.manager("kms:prod", "").probe().await.unwrap_err();
    assert!(matches!(&error, KeyError::Settings(why) if why.contains("none of the versions")), "{error}");
    let error = world.manager("kms:prod", "version = '1.4'").probe().await.unwrap_err();
    assert_eq!(kind(&error), Kind::Settings, "{error}");
}

#[tokio::test]
async fn what_a_server_calls_itself_is_made_fit_to_be_shown() {
    let world = World::new();
    let rename = |answer: &mut Vec<u8>| {
        let at = answer.windows(8).position(|run| run == b"scripted").unwrap();
        answer[at..at + 8].copy_from_slice(b"\x1b[31m\r\nx");
    };
    world.server.state().faults = vec![(QUERY, Fault::change(rename))];
    let text = world.manager("kms:prod", "").probe().await.unwrap().text;
    assert!(!text.contains(char::is_control) && text.contains("?[31m??x"), "{text}");
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_before_anything_is_reached() {
    let tls = crate::services::certificates();
    let with = |more: &str| table("127.0.0.1:1", tls.path(), "client", more);
    let refused = |table: &str| match Provider::parse("prod", table.parse().unwrap()) {
        Err(error) => error.to_string(),
        Ok(_) => match open(table, "kms:prod") {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{table}"),
        },
    };
    for (more, told) in [
        ("version = '1.3'", "version is auto, 1.2, 1.4 or 2.0"),
        ("version = 'hunter2'", "version is auto"),
        ("mode = 'hunter2'", "expected one of `auto`, `get`, `encrypt`"),
        ("modes = 'get'", "unknown field `modes`"),
    ] {
        let error = refused(&with(more));
        assert!(error.contains(told) && !error.contains("hunter2"), "{more}: {error}");
    }
    let address = |address: &str| with("").replace("127.0.0.1:1", address);
    for text in [
        "",
        "kms.example:",
        "kms.example:0",
        "kms.example:65536",
        "https://kms.example",
        "a b",
        "[::1",
        "::1",
        "a@b",
        "kms.example:5696/x",
        "[1.2.3.4]:5",
    ] {
        assert!(refused(&address(text)).contains("HOST[:PORT]"), "{text}");
    }
    for text in ["kms.example", "kms.example:5696", "127.0.0.1:1", "[::1]", "[::1]:5696"] {
        assert!(open(&address(text), "kms:prod").is_ok(), "{text}");
    }
    let without = |name: &str| -> String {
        with("").lines().filter(|line| !line.starts_with(name)).map(|line| format!("{line}\n")).collect()
    };
    assert!(refused(&without("tls.ca")).contains("tls = { ca, cert, key }"));
    assert!(refused(&without("tls.key")).contains("cert and key together"));
    assert!(refused(&without("tls.")).contains("tls"));
    let others = with("").replace("client.key", "client2.key");
    assert!(refused(&others).contains("not the key of tls.cert"));
    let key = tls.path().join("client.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(refused(&with("")).contains("open to others"));
}

#[tokio::test]
async fn a_keyslot_of_no_form_reaches_no_server() {
    let world = World::new();
    let manager = world.manager("kms:prod", "");
    let key = wrap(&*manager).await;
    let asked = world.server.state().asked.len();
    let long = format!("kmip:{}", "x".repeat(129));
    for uri in ["kmip:", "kmip:a b", "kmip:\u{e9}", "kmip:a\n", "KMIP:1", "1", &long] {
        let changed = WrappedKey { kek_uri: uri.to_owned(), ..key.clone() };
        assert!(matches!(refusal(&*manager, &changed).await, KeyError::Malformed(_)), "{uri}");
        assert!(matches!(manager.destroy(&changed).await, Err(KeyError::Malformed(_))), "{uri}");
    }
    assert_eq!(world.server.state().asked.len(), asked);
}
