//! The words of the command line: usage errors, help, completions, manual pages, cryptsetup's spellings, and
//! one JSON object from every verb that reports.

use crate::desk::{Desk, SIZE};

const SECRET: &str = "correct-horse-battery";

#[test]
fn what_is_given_in_a_wrong_place_is_never_repeated() {
    let desk = Desk::with_volume();
    let slot = ["--slot", "keyfile:key"];
    let with = |words: &[&'static str]| [&["serve", "vol"][..], &slot[..], words].concat();
    let joined = format!("--passphrase={SECRET}");
    let short = format!("-Q{SECRET}");
    let (typed, padded) = (format!("passphrase:{SECRET}"), format!("passphrase:env:{SECRET}"));
    for words in [
        vec!["serve", "vol", "--slot", &typed, "-U", "s"],
        vec!["serve", "vol", "--slot", &padded, "-U", "s"],
        vec!["serve", "vol", "--slot", SECRET, "-U", "s"],
        vec!["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", &typed],
        vec!["dump", "vol", SECRET],
        with(&["-p", SECRET]),
        with(&["-p", "1", "--bind", SECRET]),
        vec!["serve", "vol", "--slot", "keyfile:key", &joined],
        vec!["serve", "vol", "--slot", "keyfile:key", &short],
        vec!["format", "vol", "--slot", "keyfile:key", "--size", SECRET],
        vec!["key", "remove", "vol", "--slot", "keyfile:key", "--key-slot", SECRET],
        vec!["completions", SECRET],
        vec!["key", SECRET],
        vec![SECRET],
        vec!["dump", "vol", "--engine", SECRET],
    ] {
        for json in [&[][..], &["--json"]] {
            let ended = desk.run(&[&words[..], json].concat());
            assert_eq!(ended.code, 1, "{words:?}: {}", ended.stderr);
            assert!(!ended.stderr.contains(SECRET) && !ended.stdout.contains(SECRET), "{}", ended.stderr);
            ended.next();
            if json.is_empty() {
                assert_eq!(ended.stdout, "", "{words:?}");
            } else {
                assert_eq!(ended.object()["error"]["exit"], 1);
            }
        }
    }
}

#[test]
fn a_slip_in_an_option_or_verb_is_answered_with_the_right_one() {
    let desk = Desk::new();
    desk.fails(1, "--read-only", &["serve", "vol", "--slot", "keyfile:key", "--red-only"]);
    desk.fails(1, "is it dump", &["dumb", "vol"]);
    let next = desk.fails(1, "missing: --slot", &["key", "add", "vol", "--new-slot", "keyfile:key"]);
    assert!(next.starts_with("sealbd key add --help "), "{next}");
    desk.fails(1, "cannot be given together", &["serve", "v", "--slot", "keyfile:k", "-p", "0", "--stdio"]);
}

#[test]
fn help_and_version_go_to_standard_output_and_succeed() {
    let desk = Desk::new();
    for words in [&["--help"][..], &["serve", "--help"], &["key", "add", "-h"], &["--version"]] {
        assert!(desk.ok(words).contains("sealbd"));
    }
}

#[test]
fn completions_and_manual_pages_are_made_from_the_same_definition() {
    let desk = Desk::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = desk.ok(&["completions", shell]);
        assert!(script.contains("sealbd") && script.contains("no-recovery"), "{shell}");
    }
    assert!(desk.ok(&["man"]).contains(".TH sealbd"));
    std::fs::create_dir(desk.path("man")).expect("the directory is ours");
    desk.ok(&["man", "--directory", "man"]);
    for page in ["sealbd.1", "sealbd-serve.1", "sealbd-key-add.1", "sealbd-header-restore.1"] {
        assert!(desk.path("man").join(page).is_file(), "{page}");
    }
    desk.fails(1, "No such file", &["man", "--directory", "none"]);
}

#[test]
fn a_reader_that_goes_early_is_no_failure() {
    let desk = Desk::new();
    for words in ["completions bash", "man", "--help", "dump --help"] {
        let shell = format!("{} {words} | true; echo ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_sealbd"));
        let mut command = crate::common::programs::program("bash");
        let told = crate::common::programs::outcome(command.args(["-c", &shell]).current_dir(desk.dir()));
        assert_eq!(String::from_utf8_lossy(&told.stdout), "0\n", "{words}");
        assert_eq!(String::from_utf8_lossy(&told.stderr), "", "{words}");
    }
}

#[test]
fn spellings_of_cryptsetup_work_and_tell_ours() {
    let desk = Desk::new();
    for (words, ours) in [
        (&["luksFormat", "vol", "--size", SIZE, "--slot", "keyfile:key", "--batch-mode"][..], "format"),
        (&["luksDump", "vol"], "dump"),
        (&["luksUUID", "vol"], "uuid"),
        (&["luksAddKey", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:two"], "key add"),
        (&["luksChangeKey", "vol", "--slot", "keyfile:two", "--new-slot", "keyfile:three"], "key change"),
        (&["luksRemoveKey", "vol", "--slot", "keyfile:three"], "key remove"),
        (&["luksHeaderBackup", "vol", "backup"], "header backup"),
        (&["luksHeaderRestore", "vol", "backup", "--slot", "keyfile:key", "--yes"], "header restore"),
    ] {
        let ended = desk.run(words);
        assert_eq!(ended.code, 0, "{words:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(&format!("'sealbd {ours}'")), "{}", ended.stderr);
    }
    assert!(!desk.ok(&["--help"]).contains("luks"), "hidden");
}

#[test]
fn every_verb_that_reports_prints_one_json_object() {
    let desk = Desk::new();
    let key = ["--slot", "keyfile:key"];
    let with_key = |words: &[&'static str]| [words, &key[..]].concat();
    let mut uuids = Vec::new();
    for words in [
        with_key(&["format", "vol", "--size", SIZE]),
        vec!["dump", "vol"],
        vec!["uuid", "vol"],
        vec!["status", "vol"],
        with_key(&["status", "vol"]),
        with_key(&["check", "vol"]),
        with_key(&["check", "vol", "--deep"]),
        vec!["key", "list", "vol"],
        with_key(&["key", "test", "vol"]),
        with_key(&["key", "add", "vol", "--new-slot", "keyfile:two"]),
        vec!["key", "change", "vol", "--slot", "keyfile:two", "--new-slot", "keyfile:three"],
        with_key(&["key", "remove", "vol", "--key-slot", "2"]),
        vec!["header", "backup", "vol", "backup"],
        with_key(&["header", "restore", "vol", "backup", "--yes"]),
    ] {
        uuids.extend(desk.json(&words).get("uuid").cloned());
    }
    assert!(uuids.len() > 10 && uuids.iter().all(|uuid| *uuid == uuids[0]), "{uuids:?}");

    let mut by_variable = desk.command(&["uuid", "vol"]);
    let told = crate::common::programs::outcome(by_variable.env("SEALBD_FORMAT", "json"));
    assert_eq!(crate::desk::Ended::of(told, &["uuid"]).object()["uuid"], uuids[0]);
}
