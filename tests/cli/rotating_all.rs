//! `rotate --kek --all`: several volumes under one key, some of which fail.

use serde_json::{Value, json};

use crate::desk::{Desk, SIZE};
use crate::plugins::{Plugin, with_config};
use crate::terminal::on_terminal;

const QUICK: Plugin = Plugin::Quick("quick-keys");

/// Volumes `a` and `b` whose keys the key `default` wraps, and what else the configuration is to hold.
pub(crate) fn fleet(more: &str) -> Desk {
    let desk = Desk::with_plugins(&[QUICK], "");
    for name in ["a", "b"] {
        desk.managed_volume(name, "kms:quick-keys");
    }
    let slots = "slots = ['kms:quick-keys']\n";
    desk.configure(&format!(
        "{}[volume.a]\nbackend = 'DIR/a'\n{slots}[volume.b]\nbackend = 'DIR/b'\n{slots}{more}",
        QUICK.provider("60s", "0s")
    ));
    desk
}

#[test]
fn all_volumes_are_rotated_and_the_key_that_they_share_is_retired_by_the_last_one() {
    let desk = fleet("");
    let report = desk.told(&["rotate", "--kek", "--all", "--retire-old"]);
    assert_eq!((&report["rotated"], &report["failed"]), (&json!(2), &json!(0)), "{report}");
    assert!(report["volumes"][0]["rotated"][0]["old"].as_str().expect("text").contains("volume b"));
    assert_eq!(report["volumes"][1]["rotated"][0]["old"], "destroyed");
    assert_eq!(QUICK.live(&desk, "default"), [2, 3]);
    for name in ["a", "b"] {
        desk.ok(&with_config(&["check", name]));
    }
    // The next run finds nothing due and takes the waiting keyslot away.
    let report = desk.told(&["rotate", "--kek", "--all", "--older-than", "90d"]);
    assert_eq!((&report["rotated"], &report["left"], &report["failed"]), (&json!(0), &json!(2), &json!(0)));
    assert_eq!(desk.slots_in("a"), [0, 1]);
    let done = desk.records().into_iter().filter(|record| record["verb"] == "rotate");
    let done: Vec<_> = done.map(|record| (record["outcome"].clone(), record["backend"].clone())).collect();
    let of = |name: &str| json!(desk.path(name).display().to_string());
    assert_eq!(
        done[..4].iter().map(|(outcome, _)| outcome).collect::<Vec<_>>(),
        ["started", "done", "started", "done"]
    );
    assert!(done.iter().any(|(_, backend)| *backend == of("a")) && done.iter().any(|(_, b)| *b == of("b")));
}

#[test]
fn a_volume_that_fails_is_listed_and_recorded_and_the_others_are_done() {
    let more = "[volume.c]\nbackend = 'DIR/gone'\nslots = ['kms:quick-keys']\n\
        [volume.d]\nbackend = 'DIR/d'\nslots = ['kms:quick-keys']\n\
        [volume.e]\nbackend = 'DIR/e'\nslots = ['keyfile:DIR/key']\n[volume.f]\nbackend = 'DIR/f'\n";
    let desk = fleet(more);
    desk.ok(&["format", "e", "--size", SIZE, "--slot", "keyfile:key", "--no-recovery"]);
    // Of `d` the key manager says no: its version is gone.
    desk.managed_volume("./d", "kms:quick-keys/d");
    std::fs::write(desk.path("quick-keys/d.1"), "gone\n").expect("ours");
    let ended = desk.try_out(&["rotate", "--kek", "--all", "--json"]);
    assert_eq!(ended.code, 14, "{}", ended.stderr);
    let report = ended.object();
    let counts = ["rotated", "left", "failed"].map(|what| report[what].as_u64().expect("a number"));
    assert_eq!(counts, [2, 1, 3], "{report}");
    let volumes = report["volumes"].as_array().expect("a list");
    let exits: Vec<_> = volumes.iter().map(|volume| volume["problem"]["exit"].clone()).collect();
    let none = Value::Null;
    assert_eq!(exits, [none.clone(), none.clone(), json!(4), json!(7), none, json!(1)]);
    assert!(ended.stderr.contains("3 of 6 volumes failed"), "{}", ended.stderr);
    let prose = desk.try_out(&["rotate", "--kek", "--all", "--older-than", "1h"]);
    assert_eq!(prose.code, 14);
    for line in ["a: nothing was due", "c: FAILED: ", "d: FAILED: ", "e: nothing was due", "f: FAILED: "] {
        assert!(prose.stdout.contains(line), "{line}: {}", prose.stdout);
    }
    assert!(!prose.stderr.contains("rotating"), "no terminal, no bar: {}", prose.stderr);
    // Every failure stands in the log, that of a volume which is not there too.
    let failed: Vec<_> = desk.records().into_iter().filter(|record| record["outcome"] == "failed").collect();
    let of = |name: &str| {
        let backend = json!(desk.path(name).display().to_string());
        let found = failed.iter().find(|record| record["backend"] == backend);
        found.map(|record| record["error"].clone())
    };
    assert_eq!(
        (of("gone"), of("d"), of("f")),
        (Some(json!("not_a_volume")), Some(json!("kms_denied")), Some(json!("usage")))
    );
}

#[test]
fn a_rotation_of_all_shows_a_bar_on_a_terminal_and_never_with_json() {
    let desk = fleet("");
    let rotate = with_config(&["rotate", "--kek", "--all"]);
    let Some(result) = on_terminal(&desk, &rotate, &json!([])) else { return };
    let screen = result["screen"].as_str().expect("a screen");
    assert_eq!(result["code"], 0, "{result}");
    assert!(screen.contains("/2 ETA"), "{screen}");
    let quiet =
        on_terminal(&desk, &[&rotate[..], &["--json"]].concat(), &json!([])).expect("python3 is there");
    let told: Value =
        serde_json::from_str(quiet["screen"].as_str().expect("a screen").trim()).expect("one object");
    assert_eq!(told["rotated"], 2);
}
