//! Reports of many volumes: `list`, `status` and `kms`, key ages, gauges for Prometheus. Headers are made with
//! old dates and hostile text through the library.

use std::path::Path;

use keymgmt::keyfile::Keyfile;
use keymgmt::manager::{KeyManager, SlotType, WrappedKey};
use sealbd::cipher::Engine;
use sealbd::format::header::Header;
use sealbd::format::keyslot::Keyslot;
use sealbd::store::Access;
use sealbd::store::uri::{self, StoreUri};
use sealbd::volume::unlock::{read_header, write_header};
use serde_json::{Value, json};

use crate::common::programs::{have, outcome, program};
use crate::desk::{Desk, Ended, SIZE};

const DAY: u64 = 86_400;
const CONFIG: [&str; 2] = ["--config", "sealbd.toml"];

fn with_config<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [&CONFIG[..], words].concat()
}

fn days_ago(days: u64) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    now.as_secs() - days * DAY
}

/// Changes the header of a volume, authenticated, as the library lets one.
fn rewrite(volume: &Path, key: &Path, change: impl FnOnce(&mut Header)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let store =
            uri::open(&StoreUri::File(volume.to_owned()), Access::ReadWrite).await.expect("the volume");
        let managers: [Box<dyn KeyManager>; 1] = [Box::new(Keyfile::open(key).expect("the keyfile"))];
        let copies = read_header(&*store).await.expect("a header");
        let mut unlocked = copies.unlock(Engine::default(), &managers).await.expect("the key fits");
        change(&mut unlocked.header);
        write_header(&*store, &mut unlocked.header, &unlocked.keys).await.expect("written");
    });
}

/// A keyslot of a key manager, as old as told.
fn managed(like: &Keyslot, days: u64, kek_uri: &str) -> Keyslot {
    let key = WrappedKey {
        slot_type: SlotType::Barbican,
        kek_uri: kek_uri.to_owned(),
        wrapped: vec![7; 60],
        private: vec![1],
    };
    Keyslot { key, created: days_ago(days), ..like.clone() }
}

/// Volumes `a` (old keys) and `b` (new ones), and `gone`, which is not there.
fn fleet() -> Desk {
    let desk = Desk::new();
    for name in ["a", "b"] {
        desk.ok(&[
            "format",
            name,
            "--size",
            SIZE,
            "--slot",
            "keyfile:key",
            "--no-recovery",
            "--label",
            "lab\nel \u{1b}[2J",
        ]);
    }
    rewrite(&desk.path("a"), &desk.path("key"), |header| {
        header.dek_created = days_ago(400);
        let own = header.keyslots[0].as_mut().expect("the keyfile's");
        own.created = days_ago(300);
        let own = own.clone();
        header.keyslots[1] = Some(managed(&own, 91, "barbican:\u{1b}[2J\"} 1\nforged 2"));
        header.keyslots[2] = Some(managed(&own, 89, "barbican:x"));
    });
    desk.configure(
        "[volume.a]\nbackend = 'DIR/a'\nrotate_kek = '90d'\n[volume.b]\nbackend = 'DIR/b'\n\
         [volume.gone]\nbackend = 'DIR/gone'\n",
    );
    desk
}

fn listed(desk: &Desk, code: i32) -> Value {
    let ended = desk.run(&with_config(&["list", "--json"]));
    assert_eq!(ended.code, code, "{}", ended.stderr);
    ended.object()
}

#[test]
fn list_tells_the_age_of_keys_and_what_is_overdue_without_a_key() {
    let desk = fleet();
    let report = listed(&desk, 14);
    assert_eq!(report["schema"], 1);
    assert_eq!(report["authenticated"], false);
    assert_eq!((&report["overdue"], &report["unreadable"]), (&json!(1), &json!(1)));
    let a = &report["volumes"][0];
    assert_eq!((&a["name"], &a["readable"], &a["overdue"]), (&json!("a"), &json!(true), &json!(true)));
    assert_eq!(a["rotate_kek_seconds"], 90 * DAY);
    assert_eq!(a["dek"]["epoch"], 1);
    let age = |value: &Value| value["age_seconds"].as_u64().expect("an age") / DAY;
    assert_eq!(age(&a["dek"]), 400);
    let keks = a["keks"].as_array().expect("a list");
    let told: Vec<_> = keks
        .iter()
        .map(|kek| (kek["type"].as_str().expect("text"), age(kek), kek["overdue"] == true))
        .collect();
    // A keyfile is the user's own: no rotation renews it.
    assert_eq!(told, [("keyfile", 300, false), ("barbican", 91, true), ("barbican", 89, false)]);
    let b = &report["volumes"][1];
    assert_eq!((&b["overdue"], age(&b["dek"])), (&json!(false), 0));
    assert_eq!(b["uuid"].as_str(), desk.json(&["uuid", "b"])["uuid"].as_str());
}

#[test]
fn a_volume_that_cannot_be_read_is_listed_with_the_reason_and_the_others_too() {
    let desk = fleet();
    let pin = desk.json(&["uuid", "a"])["uuid"].as_str().expect("a uuid").to_owned();
    std::fs::write(desk.path("text"), vec![b'x'; 3 << 20]).expect("the directory is ours");
    desk.configure(&format!(
        "[volume.a]\nbackend = 'DIR/a'\n[volume.b]\nbackend = 'DIR/b'\nuuid = '{pin}'\n\
         [volume.far]\nbackend = 'nbd://127.0.0.1:1/x'\n[volume.gone]\nbackend = 'DIR/gone'\n\
         [volume.text]\nbackend = 'DIR/text'\n"
    ));
    let report = listed(&desk, 14);
    let problems: Vec<_> =
        report["volumes"].as_array().expect("a list").iter().map(|v| v["problem"]["exit"].clone()).collect();
    assert_eq!(problems, [Value::Null, json!(13), json!(11), json!(4), json!(4)]);
    assert_eq!(report["volumes"][2]["problem"]["retryable"], true);
    let ended = desk.run(&with_config(&["list"]));
    assert_eq!(ended.code, 14);
    assert!(ended.stdout.contains("NOT READ: ") && ended.stdout.contains("No such file"), "{}", ended.stdout);
    assert!(ended.stderr.contains("4 of 5 volumes could not be read"), "{}", ended.stderr);
    ended.next();
}

#[test]
fn nothing_configured_is_an_empty_list() {
    let desk = Desk::new();
    assert_eq!(desk.ok(&["list"]), "no volume is configured\n");
    assert_eq!(desk.json(&["list"])["volumes"], json!([]));
    assert_eq!(desk.json(&["kms", "list"])["providers"], json!([]));
    desk.fails(1, "no key manager is configured", &["kms", "test"]);
    desk.fails(1, "no provider of that name", &["kms", "list", "--provider", "prod"]);
}

#[test]
fn text_of_a_hostile_header_stays_text_in_every_report() {
    let desk = fleet();
    for words in [
        &["list"][..],
        &["list", "--json"],
        &["list", "--prometheus"],
        &["status", "a"],
        &["status", "a", "--json"],
    ] {
        let ended = desk.run(&with_config(words));
        assert!(!ended.stdout.contains('\u{1b}'), "{words:?}: {}", ended.stdout);
        assert!(ended.stdout.lines().all(|line| !line.starts_with("forged") && !line.starts_with("el ")));
    }
}

#[test]
fn status_tells_the_ages_and_whether_the_header_was_authenticated() {
    let desk = fleet();
    let report = desk.json(&with_config(&["status", "a"]));
    assert_eq!((&report["name"], &report["authenticated"]), (&json!("a"), &json!(false)));
    assert_eq!((&report["overdue"], report["keks"].as_array().map(Vec::len)), (&json!(true), Some(3)));
    let report = desk.json(&with_config(&["status", "a", "--slot", "keyfile:key"]));
    assert_eq!((&report["authenticated"], &report["overdue"]), (&json!(true), &json!(true)));
    // Without a configuration nothing is overdue.
    let report = desk.json(&["status", "a"]);
    assert_eq!((report.get("name"), &report["overdue"]), (None, &json!(false)));
    let prose = desk.ok(&with_config(&["status", "a"]));
    assert!(prose.contains("data key           epoch 1, 400d old"), "{prose}");
    assert!(prose.contains("barbican        91d old") && prose.contains("OVERDUE"), "{prose}");
}

#[test]
fn a_volume_from_before_the_date_was_kept_has_a_data_key_of_unknown_age() {
    let desk = fleet();
    rewrite(&desk.path("b"), &desk.path("key"), |header| header.dek_created = 0);
    let report = listed(&desk, 14);
    assert_eq!(report["volumes"][1]["dek"], json!({"epoch": 1, "created": null, "age_seconds": null}));
    let gauges = desk.run(&with_config(&["list", "--prometheus"])).stdout;
    assert!(!gauges.contains("sealbd_dek_age_seconds{volume=\"b\""), "{gauges}");
    // A date in the future is no age below zero.
    rewrite(&desk.path("b"), &desk.path("key"), |header| header.dek_created = u64::MAX);
    assert_eq!(listed(&desk, 14)["volumes"][1]["dek"]["age_seconds"], 0);
}

/// Reads an exposition with Prometheus' own client library; prints the samples as JSON.
const PARSER: &str = r#"
import json, sys
from prometheus_client.parser import text_string_to_metric_families
families = list(text_string_to_metric_families(open(sys.argv[1]).read()))
assert all(family.type == "gauge" and family.documentation for family in families), families
print(json.dumps([[s.name, s.labels, s.value] for family in families for s in family.samples]))
"#;

#[test]
fn gauges_are_what_prometheus_reads_and_replace_the_file_in_one_step() {
    let desk = fleet();
    let old = "old\n".repeat(100_000);
    std::fs::write(desk.path("sealbd.prom"), old).expect("the directory is ours");
    let inode =
        |name| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(desk.path(name)).expect("it is there"));
    let before = inode("sealbd.prom");
    let ended = desk.run(&with_config(&["list", "--prometheus", "sealbd.prom"]));
    assert_eq!((ended.code, ended.stdout.as_str()), (14, ""), "{}", ended.stderr);
    assert_ne!(inode("sealbd.prom"), before, "a new file in its place");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(desk.path("sealbd.prom")).expect("it is there").permissions(),
    );
    assert_eq!(mode & 0o777, 0o644);
    let left = std::fs::read_dir(desk.dir()).expect("readable").count();
    assert_eq!(left, 6, "a, b, key, sealbd.toml, the audit log and the gauges: nothing half made");
    desk.fails(1, "cannot write none/x", &with_config(&["list", "--prometheus", "none/x"]));
    let both = desk.run(&with_config(&["list", "--prometheus", "x", "--json"]));
    assert!(both.code == 1 && both.stderr.contains("cannot be given together"), "{}", both.stderr);
    if !have(&["python3"]) {
        return;
    }
    let told = outcome(program("/usr/bin/python3").args(["-c", PARSER]).arg(desk.path("sealbd.prom")));
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let samples: Vec<(String, Value, f64)> = serde_json::from_slice(&told.stdout).expect("JSON");
    let of = |name: &str| samples.iter().filter(|sample| sample.0 == name).collect::<Vec<_>>();
    let readable: Vec<_> =
        of("sealbd_volume_readable").iter().map(|s| (s.1["volume"].clone(), s.2)).collect();
    assert_eq!(readable, [(json!("a"), 1.0), (json!("b"), 1.0), (json!("gone"), 0.0)]);
    let overdue: Vec<_> = of("sealbd_kek_overdue").iter().map(|s| (s.1["slot"].clone(), s.2)).collect();
    assert_eq!(
        overdue,
        [(json!("0"), 0.0), (json!("1"), 1.0), (json!("2"), 0.0)],
        "only of a: b has no rotate_kek"
    );
    let ages = of("sealbd_kek_age_seconds");
    assert_eq!(ages.len(), 4);
    for label in ["volume", "uuid", "slot", "manager", "key_id"] {
        assert!(ages.iter().all(|sample| sample.1[label].is_string()), "{label}");
    }
    let day = f64::from(u32::try_from(DAY).expect("a day"));
    assert!((ages[1].2 / day - 91.0).abs() < 0.1, "{:?}", ages[1]);
    assert!((of("sealbd_dek_age_seconds")[0].2 / day - 400.0).abs() < 0.1);
    assert_eq!(samples.len(), 3 + 3 + 4 + 2, "{samples:?}");
}

#[test]
fn config_of_a_provider_that_is_not_in_this_build_is_told_by_every_verb() {
    let desk = Desk::new();
    desk.configure("[provider.prod]\ntype = 'tang'\n");
    for verb in [&["kms", "list"][..], &["kms", "test"], &["list"], &["dump", "x"]] {
        desk.fails(1, "sealbd.toml:1: provider prod: type tang is planned", &with_config(verb));
    }
    let ended: Ended = desk.run(&with_config(&["config", "check"]));
    assert_eq!(ended.code, 1);
}
