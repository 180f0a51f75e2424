//! `format`: sizes, targets that exist, consent, labels, and what it leaves behind.

use crate::common::programs::{have, may_mount, program, run};
use crate::desk::{Desk, SIZE};

#[test]
fn a_new_file_needs_a_size() {
    let desk = Desk::new();
    let next = desk.fails(1, "a new file needs a size", &["format", "vol", "--slot", "keyfile:key"]);
    assert!(next.starts_with("--size "));
    assert!(!desk.path("vol").exists() && !desk.path("key").exists(), "nothing is made");
}

#[test]
fn a_size_that_is_impossible_is_refused_with_the_nearest_one() {
    let desk = Desk::new();
    for (size, next) in [("10000001", "--size 10002432"), ("4096", "--size 1048576"), ("0", "--size 1048576")]
    {
        let told = desk.fails(1, size, &["format", "vol", "--size", size, "--slot", "keyfile:key"]);
        assert_eq!(told, next);
        assert!(!desk.path("vol").exists());
    }
    desk.ok(&["format", "vol", "--size", "10002432", "--slot", "keyfile:key"]);
}

#[test]
fn the_report_tells_size_slots_and_the_recovery_key_once() {
    let desk = Desk::new();
    let report = desk.json(&["format", "vol", "--size", SIZE, "--slot", "keyfile:key", "--label", "db one"]);
    assert_eq!(report["size"], 16 << 20);
    assert_eq!(report["keyslots"].as_array().expect("slots").len(), 2);
    assert!(report["keyslots"].as_array().expect("slots").iter().all(|slot| slot["tested"] == true));
    let words = report["recovery_key"].as_str().expect("words");
    assert_eq!(words.split('-').count(), 24);
    let dump = desk.json(&["dump", "vol"]);
    assert_eq!(dump["label"], "db one");
    assert_eq!(dump["uuid"], report["uuid"]);
    assert!(!dump.to_string().contains(words), "shown once");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(desk.path("vol")).expect("the volume is there").permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_label_that_is_too_long_is_refused_before_anything_is_made() {
    let desk = Desk::new();
    let label = "x".repeat(65);
    desk.fails(1, "65 bytes", &["format", "vol", "--size", SIZE, "--slot", "keyfile:key", "--label", &label]);
    assert!(!desk.path("vol").exists() && !desk.path("key").exists());
}

#[test]
fn a_label_cannot_steer_the_terminal_or_pass_for_a_line_of_the_report() {
    let desk = Desk::new();
    let label = "a\x1b[2J\nuuid fake";
    desk.ok(&["format", "vol", "--size", SIZE, "--slot", "keyfile:key", "--label", label]);
    let dump = desk.ok(&["dump", "vol"]);
    assert!(!dump.contains('\x1b'), "{dump:?}");
    assert!(!dump.lines().any(|line| line.starts_with("uuid fake")), "{dump:?}");
    assert_eq!(desk.json(&["dump", "vol"])["label"], label);
}

#[test]
fn what_exists_is_only_replaced_with_consent() {
    let desk = Desk::with_volume();
    let before = desk.json(&["uuid", "vol"]);
    let format = ["format", "vol", "--size", SIZE, "--slot", "keyfile:key", "--no-recovery"];
    assert_eq!(desk.fails_in_both_forms(5, "there is no terminal to ask", &format), "exists");
    assert_eq!(desk.json(&["uuid", "vol"]), before);
    // Also without a size, when the file itself has the size.
    desk.fails(5, "becomes unreadable", &["format", "vol", "--slot", "keyfile:key"]);
    assert_eq!(desk.json(&["uuid", "vol"]), before);

    desk.ok(&[&format[..], &["--yes"]].concat());
    assert_ne!(desk.json(&["uuid", "vol"]), before);
    desk.ok(&["check", "vol", "--deep", "--slot", "keyfile:key"]);
}

#[test]
fn a_volume_in_use_is_not_formatted() {
    let desk = Desk::with_volume();
    let format = format!(
        "{} format vol --size 16M --slot keyfile:key --yes; echo code $?",
        env!("CARGO_BIN_EXE_sealbd")
    );
    let told = desk.run(&["serve", "vol", "--slot", "keyfile:key", "--run", &format]);
    assert!(told.stdout.contains("code 10"), "{} {}", told.stdout, told.stderr);
    desk.ok(&["check", "vol", "--slot", "keyfile:key"]);
}

#[test]
fn a_store_of_fixed_size_takes_what_fits_and_refuses_more_with_the_figure() {
    let desk = Desk::new();
    std::fs::File::create(desk.path("vol")).and_then(|file| file.set_len(100 << 20)).expect("sparse file");
    let report = desk.json(&["format", "vol", "--slot", "keyfile:key", "--no-recovery"]);
    let fitting = report["size"].as_u64().expect("a size");
    assert!((48 << 20..100 << 20).contains(&fitting), "{report}");
    assert!(report["store_bytes"].as_u64().expect("bytes") <= 100 << 20, "{report}");
}

#[test]
fn a_block_device_is_formatted_and_more_than_fits_is_refused_with_the_figure() {
    if !have(&["losetup"]) || !may_mount() {
        return;
    }
    let desk = Desk::new();
    std::fs::File::create(desk.path("disk")).and_then(|file| file.set_len(100 << 20)).expect("sparse file");
    let device = Loop::new(&desk);
    let too_much = ["format", &device.0, "--size", "100M", "--slot", "keyfile:key", "--no-recovery"];
    let next = desk.fails(1, "do not fit", &too_much);
    let size = next.strip_prefix("--size ").and_then(|rest| rest.split(',').next()).expect("the figure");
    let fitting = ["format", &device.0, "--size", size, "--slot", "keyfile:key", "--no-recovery"];
    let report = desk.json(&fitting);
    assert_eq!(report["size"].to_string(), size);
    desk.ok(&["check", &device.0, "--deep", "--slot", "keyfile:key"]);
    desk.fails(5, "becomes unreadable", &fitting);
}

/// A loop device over `disk`, until dropped.
struct Loop(String);

impl Loop {
    fn new(desk: &Desk) -> Self {
        let device = run(program("losetup").args(["--find", "--show"]).arg(desk.path("disk")));
        Self(device.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = program("losetup").args(["--detach", &self.0]).status();
    }
}
