//! No secret where others look: arguments, environment, output, logs, the store; and a process that keeps
//! its memory to itself.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use rustix::process::Signal;

use crate::common::programs::{have, outcome, program};
use crate::desk::{AUDIT, Desk, SIZE, Server};

/// Written through NBD; a run of these bytes in the store would be plain text.
const CANARY: &[u8] = b"canary-5f1c3d-do-not-store-me";
const PASSPHRASE: &str = "canary passphrase 7c2f";

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn no_secret_is_in_arguments_environment_output_log_or_store() {
    let desk = Desk::new();
    std::fs::write(desk.path("secret"), PASSPHRASE).expect("the directory is ours");
    std::fs::set_permissions(desk.path("secret"), PermissionsExt::from_mode(0o600)).expect("it is ours");
    let slots = ["--slot", "keyfile:key", "--slot", "passphrase:file:secret"];
    let report = desk.json(&[&["format", "vol", "--size", SIZE][..], &slots].concat());
    let words = report["recovery_key"].as_str().expect("words").to_owned();
    let key = desk.bytes("key");
    let secrets = [&key[..], PASSPHRASE.as_bytes(), words.as_bytes()];

    let mut server = Server::start(&desk, &["vol", "--slot", "keyfile:key"]);
    let proc_file = |name| std::fs::read(format!("/proc/{}/{name}", server.id())).expect("our own child's");
    let mut seen = vec![proc_file("cmdline")];
    // Not even root may read more of some kernels' /proc of a process that is not dumpable.
    seen.extend(std::fs::read(format!("/proc/{}/environ", server.id())));
    let mut client = server.connect("vol");
    client.write(0, &CANARY.repeat(4096), 0).expect("written");
    client.write(12_345_678, CANARY, 1).expect("written, durable");
    client.flush().expect("flushed");
    assert_eq!(client.read(12_345_678, CANARY.len()).expect("read"), CANARY);
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());

    let text = |words: &[&str]| {
        let ended = desk.run(words);
        [ended.stdout, ended.stderr].concat().into_bytes()
    };
    seen.push(server.log().into_bytes());
    for words in [
        &["dump", "vol"][..],
        &["dump", "vol", "--json"],
        &["status", "vol", "--slot", "keyfile:key", "--json"],
        &["key", "list", "vol", "--json"],
        &["key", "test", "vol", "--slot", "keyfile:key"],
        &["check", "vol", "--deep", "--slot", "keyfile:key"],
        &["header", "backup", "vol", "backup"],
    ] {
        seen.push(text(words));
    }
    seen.push(desk.bytes("backup"));
    // What was never written need not be searched.
    let written = desk.bytes("vol");
    seen.push(
        written.chunks(4096).filter(|block| block.iter().any(|byte| *byte != 0)).flatten().copied().collect(),
    );
    for (place, bytes) in seen.iter().enumerate() {
        assert!(!contains(bytes, CANARY), "plain text in place {place}");
        assert!(secrets.iter().all(|secret| !contains(bytes, secret)), "a secret in place {place}");
    }
    let stored = seen.last().expect("the store");
    assert!(CANARY.windows(12).all(|part| !contains(stored, part)), "not even a part");
    assert!(key.windows(12).all(|part| !contains(stored, part)));
}

#[test]
fn a_serving_process_keeps_its_memory_to_itself() {
    let desk = Desk::with_volume();
    let mut server = Server::start(&desk, &["vol", "--slot", "keyfile:key"]);
    let proc_file = |name: &str| {
        std::fs::read_to_string(format!("/proc/{}/{name}", server.id())).expect("our own child's")
    };
    let status = proc_file("status");
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).expect("a line of status");
    let locked: u64 = locked.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(locked > 0, "keys are locked: {status}");
    let limits = proc_file("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    assert_eq!(server.stop(Signal::TERM), 0);
    // It says so when it has begun, which a client need not wait for.
    assert!(server.log().contains("not dumpable, no core files"), "{}", server.log());
}

#[test]
fn another_process_of_the_same_user_cannot_look_into_it() {
    if !have(&["setpriv"]) || !rustix::process::geteuid().is_root() {
        return crate::common::programs::skip("another user needs root and setpriv");
    }
    const USER: u32 = 65534;
    let desk = Desk::with_volume();
    std::fs::copy(env!("CARGO_BIN_EXE_sealbd"), desk.path("sealbd")).expect("room for the program");
    for name in ["", "vol", "key", AUDIT] {
        std::os::unix::fs::chown(desk.path(name), Some(USER), Some(USER)).expect("we are root");
    }
    let as_user = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let mut command = Command::new("setpriv");
    command.args(as_user).arg(desk.path("sealbd")).args(["serve", "vol", "--slot", "keyfile:key"]);
    let mut server = Server::start_as(&desk, command);
    // The kernel gives the files of a process that is not dumpable to root (proc(5)), which also refuses
    // ptrace to anybody without CAP_SYS_PTRACE.
    let its = |name: &str| format!("/proc/{}/{name}", server.id());
    assert_eq!(std::fs::metadata(its("environ")).expect("it runs").uid(), 0);
    for (name, look) in [("environ", "head -c 1"), ("mem", "head -c 1"), ("maps", "head -c 1"), ("fd", "ls")]
    {
        let look = format!("{look} {}", its(name));
        let told = outcome(program("setpriv").args(as_user).args(["sh", "-c", &look]));
        assert_eq!(String::from_utf8_lossy(&told.stdout), "", "{name} shows something to its own user");
    }
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
}
