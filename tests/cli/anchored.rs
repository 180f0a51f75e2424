//! `--anchor`: a backend that was put back as a whole is refused until somebody says otherwise.

use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::Value;

use crate::desk::{AUDIT, Desk, Server};

const KEY: [&str; 2] = ["--slot", "keyfile:key"];

/// One session of a server with the anchor, which fills the first sector; what the server said.
fn session(desk: &Desk, fill: u8, words: &[&str]) -> String {
    let _ = std::fs::remove_file(desk.path("log"));
    let mut server = Server::start(desk, &[&["vol", "--anchor", "anchors"][..], &KEY, words].concat());
    server.connect("vol").write(0, &[fill; 4096], 0).expect("written");
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
    server.log()
}

fn anchor_file(desk: &Desk) -> PathBuf {
    let uuid = desk.json(&["uuid", "vol"])["uuid"].as_str().expect("a uuid").to_owned();
    desk.path("anchors").join(format!("{uuid}.anchor"))
}

fn put_back(desk: &Desk, state: &[u8]) {
    std::fs::write(desk.path("vol"), state).expect("the file is ours");
}

#[test]
fn a_backend_put_back_is_refused_until_it_is_accepted_and_refused_again_after_that() {
    let desk = Desk::with_volume();
    let log = session(&desk, 1, &[]);
    assert!(log.contains("taken on trust"), "{log}");
    assert!(anchor_file(&desk).exists());
    desk.ok(&["header", "backup", "vol", "backup"]);
    let old = desk.bytes("vol");
    assert!(!session(&desk, 2, &[]).contains("made; this state"), "told once");
    put_back(&desk, &old);
    // Without the anchor nothing is noticed; with it every verb that needs a key refuses.
    desk.ok(&[&["check", "vol"][..], &KEY].concat());
    let serve = [&["serve", "vol", "-p", "0", "--anchor", "anchors"][..], &KEY].concat();
    assert_eq!(desk.fails_in_both_forms(9, "(rollback)", &serve), "rollback");
    assert!(desk.fails(9, "the anchor holds root", &serve).contains("--accept-rollback"));
    for verb in [&["key", "test", "vol"][..], &["status", "vol"], &["header", "verify", "vol"]] {
        let words = [verb, &["--anchor", "anchors"], &KEY].concat();
        assert_eq!(desk.fails_in_both_forms(9, "(rollback)", &words), "rollback");
    }
    let add = ["key", "add", "vol", "--anchor", "anchors", "--new-slot", "keyfile:two"];
    let before = desk.bytes("vol");
    desk.fails(9, "(rollback)", &[&add[..], &KEY].concat());
    assert!(desk.bytes("vol") == before, "nothing was written");

    let restore = ["header", "restore", "vol", "backup", "--yes", "--anchor", "anchors"];
    desk.fails(9, "(rollback)", &[&restore[..], &KEY].concat());
    assert!(desk.bytes("vol") == before, "nothing was written");

    let log = session(&desk, 3, &["--accept-rollback"]);
    assert!(log.contains("THIS OLDER STATE IS TAKEN"), "{log}");
    assert!(!session(&desk, 4, &["--accept-rollback"]).contains("TAKEN"), "nothing to take");
    let newest = desk.bytes("vol");
    put_back(&desk, &old);
    desk.fails(9, "(rollback)", &serve);
    put_back(&desk, &newest);
    session(&desk, 5, &[]);
}

#[test]
fn taking_an_older_state_is_recorded_before_it_is_done() {
    let desk = Desk::with_volume();
    session(&desk, 1, &[]);
    let old = desk.bytes("vol");
    session(&desk, 2, &[]);
    put_back(&desk, &old);
    session(&desk, 3, &["--accept-rollback"]);
    let log = String::from_utf8(desk.bytes(AUDIT)).expect("text");
    let records = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let story: Vec<String> =
        records.map(|record| format!("{} {}", record["verb"], record["outcome"]).replace('"', "")).collect();
    let tail: Vec<&str> = story.iter().rev().take(4).rev().map(String::as_str).collect();
    let expected = ["serve started", "rollback-accept started", "rollback-accept done", "serve done"];
    assert_eq!(tail, expected, "{story:?}");
    desk.ok(&["audit", "verify", AUDIT]);

    // What cannot be recorded is not done.
    put_back(&desk, &old);
    let before = desk.bytes("vol");
    let words = ["serve", "vol", "-p", "0", "--anchor", "anchors", "--accept-rollback"];
    let mut command = desk.command(&[&words[..], &KEY].concat());
    let refused = command.env("SEALBD_AUDIT", desk.path("none/audit.jsonl")).output().expect("it runs");
    assert_eq!(refused.status.code(), Some(13), "{}", String::from_utf8_lossy(&refused.stderr));
    assert!(desk.bytes("vol") == before, "nothing was written");
}

#[test]
fn an_anchor_that_cannot_be_read_is_no_missing_anchor() {
    let desk = Desk::with_volume();
    session(&desk, 1, &[]);
    let file = anchor_file(&desk);
    let good = std::fs::read(&file).expect("the file is ours");
    let check = [&["status", "vol", "--anchor", "anchors"][..], &KEY].concat();
    for damage in [&b""[..], &good[..good.len() / 2], b"{}\n"] {
        std::fs::write(&file, damage).expect("the file is ours");
        assert_eq!(desk.fails_in_both_forms(13, "anchor", &check), "anchor");
    }
    std::fs::write(&file, good).expect("the file is ours");
    desk.ok(&check);
}

#[test]
fn a_directory_in_which_no_anchor_can_be_made_serves_nothing() {
    let desk = Desk::with_volume();
    std::fs::write(desk.path("anchors"), b"a file").expect("the directory is ours");
    let serve = [&["serve", "vol", "-p", "0", "--anchor", "anchors"][..], &KEY].concat();
    assert_eq!(desk.fails_in_both_forms(13, "anchor", &serve), "anchor");
}

#[test]
fn the_anchor_of_the_configuration_holds_for_every_verb_and_follows_changes_of_keys() {
    let desk = Desk::with_volume();
    desk.configure(
        "[volume.vol]\nbackend = 'DIR/vol'\nslots = ['keyfile:DIR/key']\nanchor = 'DIR/anchors'\n",
    );
    let old = desk.bytes("vol");
    let config = ["--config", "sealbd.toml"];
    desk.ok(&[&["key", "add", "vol", "--new-slot", "keyfile:two"][..], &config].concat());
    desk.ok(&[&["key", "remove", "vol", "--key-slot", "1"][..], &config].concat());
    let anchored = std::fs::read_to_string(anchor_file(&desk)).expect("a removal writes a root");
    assert!(anchored.contains("\"header_generation\":3"), "{anchored}");
    put_back(&desk, &old);
    assert_eq!(
        desk.fails_in_both_forms(9, "(rollback)", &[&["key", "test", "vol"][..], &config].concat()),
        "rollback"
    );
}

#[test]
fn the_status_of_a_served_volume_tells_what_a_rollback_could_take_unseen() {
    let desk = Desk::with_volume();
    let words = ["vol", "--anchor", "anchors", "--control-directory", "control"];
    let mut server = Server::start(&desk, &[&words[..], &KEY].concat());
    let mut client = server.connect("vol");
    let status = |form: &str| {
        let mut command = desk.command(&["status", "vol", form][..if form.is_empty() { 2 } else { 3 }]);
        let told = command.env("SEALBD_CONTROL_DIRECTORY", desk.path("control")).output().expect("it runs");
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        String::from_utf8(told.stdout).expect("text")
    };
    let anchor = || {
        let told: Value = serde_json::from_str(&status("--json")).expect("JSON");
        told["volume"]["anchor"].clone()
    };
    assert_eq!(anchor()["undetected_chunks"], 0, "{}", anchor());
    assert!(status("").contains("a rollback would be noticed"), "{}", status(""));
    client.write(0, &[1; 4096], 0).expect("written");
    assert_eq!(anchor()["undetected_chunks"], 1, "{}", anchor());
    assert!(anchor()["undetected_bytes"].as_u64() >= Some(4096), "{}", anchor());
    assert!(status("").contains("a rollback of the last chunk ("), "{}", status(""));
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
    let told = desk.ok(&[&["status", "vol", "--anchor", "anchors"][..], &KEY].concat());
    assert!(told.contains("a rollback would be noticed"), "{told}");
}
