//! Passphrases from every source, and what a header may demand for one. A derivation takes a second and
//! 256 MiB, so each test makes few.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::common::programs::{outcome, program_within};
use crate::desk::{Desk, Ended, SIZE};
use crate::keys::with_checksum;
use crate::terminal::on_terminal;

/// Where the first keyslot's private part lies, and in it memory in KiB and passes (docs/FORMAT.md §4).
const PRIVATE: usize = 4096 + 24 + 256 + 1024 + 32;
const HEADER_LEN: usize = 64 * 1024;
/// Address space of a command that is given a header demanding more, in KiB.
const ROOM_KIB: u32 = 2 << 20;

fn write_secret(desk: &Desk, name: &str, secret: &str) {
    std::fs::write(desk.path(name), secret).expect("the directory is ours");
    std::fs::set_permissions(desk.path(name), PermissionsExt::from_mode(0o600)).expect("it is ours");
}

#[test]
fn a_passphrase_is_the_same_from_a_file_a_descriptor_a_credential_and_a_terminal() {
    let desk = Desk::new();
    write_secret(&desk, "secret", "correct horse");
    let format = ["format", "vol", "--size", SIZE, "--slot", "passphrase:file:secret", "--no-recovery"];
    desk.ok(&format);

    let test = ["key", "test", "vol", "--slot"];
    let by_descriptor = desk.run_with_input(&[&test[..], &["passphrase:fd:0"]].concat(), b"correct horse");
    assert_eq!(by_descriptor.code, 0, "{}", by_descriptor.stderr);

    let mut by_credential = desk.command(&[&test[..], &["passphrase:cred:secret"]].concat());
    let told = outcome(by_credential.env("CREDENTIALS_DIRECTORY", desk.dir()));
    assert_eq!(Ended::of(told, &["cred"]).code, 0);

    let talk = json!([["Enter passphrase", "correct horse\n"]]);
    let Some(typed) = on_terminal(&desk, &[&test[..], &["passphrase"]].concat(), &talk) else { return };
    assert_eq!(typed["code"], 0, "{typed}");
    assert!(!typed["screen"].as_str().expect("a screen").contains("horse"), "{typed}");
}

#[test]
fn a_passphrase_typed_twice_becomes_a_key_and_a_wrong_one_is_no_damage() {
    let desk = Desk::with_volume();
    let add = ["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "passphrase:prompt"];
    let talk = json!([["Enter new passphrase", "pässwörd\n"], ["Repeat new passphrase", "pässwörd\n"]]);
    let Some(result) = on_terminal(&desk, &add, &talk) else { return };
    assert_eq!(result["code"], 0, "{result}");
    let list = desk.ok(&["key", "list", "vol"]);
    assert!(list.contains("argon2id 256 MiB t=4"), "{list}");

    write_secret(&desk, "wrong", "pässwörd\n");
    let test = ["key", "test", "vol", "--slot", "passphrase:file:wrong"];
    let ended = desk.run(&[&test[..], &["--json"]].concat());
    assert_eq!(
        (ended.code, &ended.object()["error"]["code"]),
        (2, &"no_key_fits".into()),
        "{}",
        ended.stderr
    );
    // As it was read, with its last byte; the user is told of the newline, not left to wonder.
    assert!(ended.stderr.contains("ends with a newline"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("pässwörd"), "{}", ended.stderr);
}

#[test]
fn a_header_that_demands_a_huge_derivation_is_refused_without_allocating() {
    let desk = Desk::new();
    write_secret(&desk, "secret", "correct horse");
    desk.ok(&["format", "vol", "--size", SIZE, "--slot", "passphrase:file:secret", "--no-recovery"]);
    let header = desk.bytes("vol")[..HEADER_LEN].to_vec();
    for (memory_kib, passes) in [(u32::MAX, 4), (64 << 20, 4), (256 << 10, u32::MAX)] {
        let mut hostile = header.clone();
        hostile[PRIVATE + 1..][..4].copy_from_slice(&memory_kib.to_le_bytes());
        hostile[PRIVATE + 5..][..4].copy_from_slice(&passes.to_le_bytes());
        let hostile = with_checksum(hostile);
        desk.overwrite("vol", 0, &hostile);
        desk.overwrite("vol", 1 << 20, &hostile);
        // More than the limit cannot be allocated, and a derivation of minutes would run into the deadline.
        let limited =
            format!("ulimit -v {ROOM_KIB}; exec \"$0\" check vol --json --slot passphrase:file:secret");
        let mut command = program_within("sh", 20);
        command.args(["-c", &limited, env!("CARGO_BIN_EXE_sealbd")]).current_dir(desk.dir());
        let ended = Ended::of(outcome(&mut command), &["check"]);
        assert_eq!(ended.code, 3, "{}", ended.stderr);
        assert_eq!(ended.object()["error"]["code"], "kdf_cost");
        assert!(ended.stderr.contains("ceiling"), "{}", ended.stderr);
        ended.next();
        desk.ok(&["dump", "vol"]);
    }
}
