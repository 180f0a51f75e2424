//! Failures a user meets with a backend: each has its own words, its code, and a next step.

use std::os::unix::fs::PermissionsExt;

use crate::common::programs::{have, outcome, program};
use crate::desk::{AUDIT, Desk, Ended, SIZE};

#[test]
fn what_is_no_volume_is_told_apart_by_why() {
    let desk = Desk::with_volume();
    std::fs::write(desk.path("text"), vec![b'x'; 3 << 20]).expect("the directory is ours");
    std::fs::write(desk.path("empty"), "").expect("the directory is ours");
    std::fs::create_dir(desk.path("directory")).expect("the directory is ours");
    for (backend, code_word, cause, next) in [
        ("none", "not_a_volume", "No such file", "sealbd format none --size"),
        ("directory", "not_a_volume", "neither a file nor a block device", "ls directory"),
        ("/dev/null", "not_a_volume", "neither a file nor a block device", "sealbd --help"),
        ("text", "not_a_volume", "not a sealbd volume", "check the name"),
        ("empty", "not_a_volume", "not a sealbd volume", "check the name"),
        ("text/vol", "not_a_volume", "Not a directory", "sealbd --help"),
    ] {
        for verb in ["dump", "uuid", "status"] {
            assert_eq!(desk.fails_in_both_forms(4, cause, &[verb, backend]), code_word);
        }
        let check = ["check", backend, "--slot", "keyfile:key"];
        assert!(desk.fails(4, cause, &check).starts_with(next), "{backend}");
    }
    for (backend, cause) in [
        ("", "empty"),
        ("s3://bucket/x", "no backend is called"),
        ("nbds://host/x", "TLS"),
        ("mem:64M", "no volume can be kept there"),
    ] {
        assert_eq!(desk.fails_in_both_forms(1, cause, &["dump", backend]), "usage");
    }
    let format = ["format", "mem:64M", "--slot", "keyfile:new"];
    desk.fails(1, "no volume can be kept there", &format);
    assert!(!desk.path("new").exists());
}

#[test]
fn a_volume_of_somebody_else_is_no_wrong_key_and_no_missing_file() {
    if !have(&["setpriv"]) || !rustix::process::geteuid().is_root() {
        return crate::common::programs::skip("another user needs root and setpriv");
    }
    let desk = Desk::with_volume();
    let open = |path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755));
    open(desk.dir().to_owned()).expect("the directory is ours");
    // Where the build lies may be closed to others; a copy beside the volume is not.
    std::fs::copy(env!("CARGO_BIN_EXE_sealbd"), desk.path("sealbd")).expect("room for the program");
    let mut other = program("setpriv");
    other.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(desk.path("sealbd"));
    let told = outcome(other.args(["dump", "--json"]).arg(desk.path("vol")));
    let ended = Ended::of(told, &["dump"]);
    assert_eq!(ended.code, 4, "{}", ended.stderr);
    assert_eq!(ended.object()["error"]["code"], "permission");
    assert!(ended.next().starts_with("ls -l "), "{}", ended.stderr);
}

#[test]
fn wrong_key_missing_key_and_a_key_that_others_can_read_are_told_apart() {
    let desk = Desk::with_volume();
    desk.ok(&["format", "other", "--size", SIZE, "--slot", "keyfile:wrong", "--no-recovery"]);
    std::fs::write(desk.path("short"), "x").expect("the directory is ours");
    std::fs::set_permissions(desk.path("short"), PermissionsExt::from_mode(0o600)).expect("it is ours");
    std::fs::copy(desk.path("key"), desk.path("open")).expect("the directory is ours");
    std::fs::set_permissions(desk.path("open"), PermissionsExt::from_mode(0o644)).expect("it is ours");
    for (slot, cause, word) in [
        ("keyfile:wrong", "the key does not fit", "no_key_fits"),
        ("keyfile:none", "does not exist", "secret"),
        ("keyfile:short", "short", "secret"),
        ("keyfile:open", "open", "secret"),
        ("passphrase:cred:x", "$CREDENTIALS_DIRECTORY", "secret"),
        ("passphrase:fd:77", "fd:77", "secret"),
        ("passphrase", "there is no terminal to ask", "secret"),
    ] {
        let mut command = program("setsid");
        // A session of its own has no terminal, wherever the tests run.
        command.args(["--wait", env!("CARGO_BIN_EXE_sealbd"), "check", "vol", "--json", "--slot", slot]);
        let told = outcome(command.current_dir(desk.dir()).stdin(std::process::Stdio::null()));
        let ended = Ended::of(told, &[slot]);
        assert_eq!(ended.code, 2, "{slot}: {}", ended.stderr);
        assert!(ended.stderr.contains(cause), "{slot}: {}", ended.stderr);
        assert_eq!(ended.object()["error"]["code"], word, "{slot}");
    }
}

#[test]
fn a_file_that_was_cut_short_is_told_with_both_sizes() {
    let desk = Desk::with_volume();
    let whole = std::fs::metadata(desk.path("vol")).expect("the volume is there").len();
    for left in [3 << 20, 600 << 10] {
        let cut = std::fs::File::options().write(true).open(desk.path("vol"));
        cut.and_then(|file| file.set_len(left)).expect("the volume is ours");
        let check = ["check", "vol", "--slot", "keyfile:key"];
        assert!(desk.fails(4, &left.to_string(), &check).contains("cut short"));
        desk.fails(4, &whole.to_string(), &check);
        desk.ok(&["dump", "vol"]);
    }
}

#[test]
fn a_volume_in_use_is_left_alone_and_can_be_inspected() {
    let desk = Desk::with_volume();
    // With a control socket keys change while it is served: tests/control.rs.
    let other = ["serve", "vol", "--slot", "keyfile:key", "--no-control", "--run"];
    let s = env!("CARGO_BIN_EXE_sealbd");
    for verb in [
        "check vol --slot keyfile:key",
        "status vol --slot keyfile:key",
        "serve vol --slot keyfile:key -U other",
        "key add vol --slot keyfile:key --new-slot keyfile:two",
        "key change vol --slot keyfile:key --new-slot keyfile:two",
        "key remove vol --slot keyfile:key",
        "header restore vol backup --slot keyfile:key --yes",
    ] {
        let ended = desk.run(&[&other[..], &[&format!("{s} {verb} --json")]].concat());
        assert_eq!(ended.code, 10, "{verb}: {}", ended.stderr);
        let error = &ended.object()["error"];
        assert_eq!((&error["code"], &error["retryable"]), (&"in_use".into(), &true.into()), "{error}");
        assert_eq!(error["hint"], "stop the process that has it open; meanwhile sealbd dump vol works");
    }
    for verb in ["dump vol", "uuid vol", "status vol", "key list vol", "key test vol --slot keyfile:key"] {
        let ended = desk.run(&[&other[..], &[&format!("{s} {verb} --json")]].concat());
        assert_eq!(ended.code, 0, "{verb}: {}", ended.stderr);
    }
    let backup = format!("{s} header backup vol backup");
    assert_eq!(desk.run(&[&other[..], &[&backup]].concat()).code, 0);
}

#[test]
fn the_next_command_is_one_that_a_shell_takes_as_it_is() {
    let desk = Desk::new();
    let name = "it's a $name";
    desk.ok(&["format", name, "--size", SIZE, "--slot", "keyfile:key", "--no-recovery"]);
    desk.ok(&["format", "other", "--size", SIZE, "--slot", "keyfile:wrong", "--no-recovery"]);
    let next = desk.fails(2, "no key fits", &["check", name, "--slot", "keyfile:wrong"]);
    let command = next.strip_suffix(" shows which keys there are").expect("a command and what it shows");
    let command = command.replacen("sealbd", env!("CARGO_BIN_EXE_sealbd"), 1);
    let told = outcome(program("sh").args(["-c", &command]).current_dir(desk.dir()));
    assert!(told.status.success(), "{command}: {}", String::from_utf8_lossy(&told.stderr));
}

#[test]
fn damage_behind_the_header_is_named_and_found_by_check() {
    let desk = Desk::with_volume();
    let write = "qemu-io -f raw -c 'write -P 0xab 0 1M' -c flush \"$uri\"";
    if !have(&["qemu-io"]) {
        return;
    }
    desk.ok(&["serve", "vol", "--slot", "keyfile:key", "--run", write]);
    let report = desk.json(&["check", "vol", "--deep", "--slot", "keyfile:key"]);
    assert_eq!(report["verified_sectors"], 256);
    // The middle of the first segment that holds data.
    let bytes = desk.bytes("vol");
    let used = (2 << 20..bytes.len()).rev().find(|at| bytes[*at] != 0).expect("data is there");
    let segment = used >> 21 << 21;
    let data = (2 << 20..segment + (2 << 20)).step_by(2 << 20).map(|at| at + (512 << 10));
    // One byte of ciphertext is zero once in 256 times.
    for (at, sealed) in data.map(|at| (at, &bytes[at..at + 16])).filter(|(_, sealed)| *sealed != [0; 16]) {
        let damaged: Vec<u8> = sealed.iter().map(|byte| !byte).collect();
        desk.overwrite("vol", at as u64, &damaged);
    }
    let ended = desk.run(&["check", "vol", "--deep", "--slot", "keyfile:key", "--json"]);
    assert_eq!(ended.code, 8, "{}", ended.stderr);
    let report = ended.object();
    assert_ne!(report["damaged"], serde_json::json!([]), "{report}");
    // A command that ends by itself and yet failed.
    let log = String::from_utf8(desk.bytes(AUDIT)).expect("ASCII");
    let last = log.lines().last().expect("a record");
    assert!(last.contains(r#""outcome":"failed","error":"integrity","exit":8"#), "{last}");
    assert!(ended.next().contains("vol"), "{}", ended.stderr);
}
