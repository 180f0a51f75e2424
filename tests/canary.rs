//! Secrets that are recognised anywhere: real commands run under strace with passphrases, keyfiles, recovery
//! words and a data key that no other bytes resemble, and none of them is found where it does not belong:
//! arguments and environment of any process, anything that is written, output, logs, audit log, journal, store,
//! core dumps, memory after use. Control runs show that the search finds what is there.
#![allow(clippy::print_stderr, reason = "a skipped test says why")]

mod common;
#[path = "cli/desk.rs"]
#[allow(dead_code, reason = "the commands of `tests/cli.rs` need more of it")]
mod desk;

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use common::memory::memory_of;
use common::programs::{have, program, record_in, skip};
use desk::{AUDIT, Desk, Ended, SIZE, Server};
use keymgmt::keyfile::Keyfile;
use keymgmt::manager::KeyManager;
use rustix::process::{Pid, Signal, kill_process};
use sealbd::cipher::Engine;
use sealbd::store::Access;
use sealbd::store::file::FileStore;
use sealbd::volume::unlock::read_header;

/// So many bytes of a secret in a row are a leak. By chance they do not occur.
const PIECE: usize = 16;
/// Long enough for whatever a command writes at once to be in the trace as a whole.
const TRACED_BYTES_MAX: &str = "200000";
/// Every call by which bytes leave a process, or a program gets its arguments and environment.
const TRACED: &str = "trace=execve,execveat,write,writev,pwrite64,pwritev,pwritev2,sendto,sendmsg,sendmmsg,\
                      vmsplice,splice,tee,sendfile,copy_file_range,io_uring_setup,io_submit";
/// Those whose bytes the trace does not show; sealbd has no use for them.
const UNSEEN: [&str; 7] =
    ["vmsplice(", "splice(", "tee(", "sendfile(", "copy_file_range(", "io_uring_setup(", "io_submit("];

/// Secrets, by pieces of every spelling in which they might leak.
struct Canaries {
    pieces: HashMap<[u8; PIECE], &'static str>,
    /// Which two bytes a piece begins with: most places are passed over by this alone.
    begins: Vec<bool>,
}

/// The number of a piece's first two bytes.
fn begin(piece: &[u8]) -> usize {
    usize::from(piece[0]) << 8 | usize::from(piece[1])
}

impl Canaries {
    fn new() -> Self {
        Self { pieces: HashMap::new(), begins: vec![false; 1 << 16] }
    }

    fn add(&mut self, name: &'static str, secret: &[u8]) {
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let escaped: String = secret.iter().map(|byte| format!("\\x{byte:02x}")).collect();
        let numbers: Vec<String> = secret.iter().map(u8::to_string).collect();
        for spelling in [
            secret.to_vec(),
            hex.to_uppercase().into_bytes(),
            hex.into_bytes(),
            base64(secret).into_bytes(),
            // As strace, JSON and Debug show bytes.
            escaped.into_bytes(),
            numbers.join(",").into_bytes(),
            numbers.join(", ").into_bytes(),
        ] {
            for piece in spelling.windows(PIECE) {
                self.begins[begin(piece)] = true;
                self.pieces.insert(piece.try_into().expect("a window of that length"), name);
            }
        }
    }

    /// The secret of which a piece is in there, and the place.
    fn found(&self, bytes: &[u8]) -> Option<(&'static str, usize)> {
        let mut pieces = bytes.windows(PIECE).enumerate().filter(|(_, piece)| self.begins[begin(piece)]);
        pieces.find_map(|(at, piece)| Some((*self.pieces.get(piece)?, at)))
    }

    fn assert_absent(&self, place: &str, bytes: &[u8]) {
        if let Some((name, at)) = self.found(bytes) {
            panic!("the {name} is in {place}, at byte {at}");
        }
    }
}

/// Standard alphabet, without padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let number = group.iter().fold(0usize, |number, byte| number << 8 | usize::from(*byte));
        let number = number << (8 * (3 - group.len()));
        (0..=group.len()).for_each(|i| text.push(char::from(DIGITS[number >> (18 - 6 * i) & 63])));
    }
    text
}

/// Bytes that nothing else resembles, as text that can be typed.
fn random_text() -> String {
    random().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    let mut file = std::fs::File::open("/dev/urandom").expect("urandom");
    std::io::Read::read_exact(&mut file, &mut bytes).expect("32 random bytes");
    bytes
}

fn secret_file(desk: &Desk, name: &str, bytes: &[u8]) {
    std::fs::write(desk.path(name), bytes).expect("the directory is ours");
    std::fs::set_permissions(desk.path(name), PermissionsExt::from_mode(0o600)).expect("it is ours");
}

/// `strace … PROGRAM`, whose trace goes to `trace.N`; all strings in it are in hexadecimal.
fn strace(command: &mut Command, trace: &Path) {
    command.args(["-f", "-v", "-qq", "-xx", "-s", TRACED_BYTES_MAX, "-e", TRACED, "-e", "signal=none", "-o"]);
    command.arg(trace);
}

/// Runs a command under strace; how it ended, and the calls with their bytes as bytes.
fn traced(desk: &Desk, words: &[&str], input: &[u8]) -> (Ended, Vec<u8>) {
    let trace = desk.path("trace");
    let mut command = program("strace");
    strace(&mut command, &trace);
    command.arg(env!("CARGO_BIN_EXE_sealbd")).args(words).current_dir(desk.dir());
    record_in(&mut command, &desk.path(AUDIT)).env("SEALBD_AUDIT_JOURNAL", desk.path("journal"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("strace starts");
    // A command that does not want it does not read it.
    let _ = child.stdin.take().expect("piped").write_all(input);
    let ended = Ended::of(child.wait_with_output().expect("our own child"), words);
    (ended, calls(&trace))
}

/// The calls of a trace, with their bytes as bytes; none may have moved bytes unseen.
fn calls(trace: &Path) -> Vec<u8> {
    let trace = std::fs::read(trace).expect("a trace");
    let text = String::from_utf8_lossy(&trace);
    let unseen: Vec<_> = text.lines().filter(|line| UNSEEN.iter().any(|call| line.contains(call))).collect();
    assert!(unseen.is_empty(), "{unseen:?}");
    unescaped(&trace)
}

/// A trace with `\x41` as the byte that it is.
fn unescaped(trace: &[u8]) -> Vec<u8> {
    let (mut bytes, mut at) = (Vec::with_capacity(trace.len() / 2), 0);
    while at < trace.len() {
        let digits = trace.get(at + 2..at + 4).filter(|_| trace[at..].starts_with(b"\\x"));
        let byte = digits.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(trace[at]));
        at += if byte.is_some() { 4 } else { 1 };
    }
    bytes
}

fn count(haystack: &[u8], needle: &[u8]) -> usize {
    haystack.windows(needle.len()).filter(|window| *window == needle).count()
}

/// Everything that the journal was sent.
fn datagrams(journal: &UnixDatagram) -> Vec<u8> {
    journal.set_nonblocking(true).expect("our own socket");
    let (mut all, mut buffer) = (Vec::new(), vec![0; 65536]);
    while let Ok(len) = journal.recv(&mut buffer) {
        all.extend_from_slice(&buffer[..len]);
        all.push(b'\n');
    }
    all
}

/// The data key of a volume.
fn data_key(desk: &Desk, keyfile: &str) -> [u8; 32] {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let store = FileStore::open(&desk.path("vol"), Access::ReadOnly).expect("the volume");
        let key: [Box<dyn KeyManager>; 1] = [Box::new(Keyfile::open(&desk.path(keyfile)).expect("the key"))];
        let copies = read_header(&store).await.expect("a header");
        *copies.unlock(Engine::default(), &key).await.expect("the key fits").dek.0.expose()
    })
}

#[test]
fn the_search_finds_what_is_there() {
    if !have(&["strace"]) {
        return;
    }
    let (secret, key) = (random_text(), random());
    let mut canaries = Canaries::new();
    canaries.add("passphrase", secret.as_bytes());
    canaries.add("keyfile", &key);
    assert_eq!(base64(b"any carnal pleas"), "YW55IGNhcm5hbCBwbGVhcw");
    let dir = tempfile::tempdir().expect("temporary directory");
    std::fs::write(dir.path().join("secret"), &secret).expect("the directory is ours");
    std::fs::write(dir.path().join("key"), key).expect("the directory is ours");
    for (name, script, variable) in [
        ("passphrase", format!("true {secret}"), ""),
        ("passphrase", "true".to_owned(), secret.as_str()),
        ("passphrase", "cat secret".to_owned(), ""),
        ("passphrase", "dd if=secret of=copy".to_owned(), ""),
        ("passphrase", "base64 -w0 secret".to_owned(), ""),
        ("keyfile", "cat key".to_owned(), ""),
        ("keyfile", "od -An -v -tx1 key | tr -d ' \\n'".to_owned(), ""),
        ("keyfile", "tail -c +10 key | head -c 16 > part".to_owned(), ""),
    ] {
        // Started from a shell, so that what is found is a child's.
        let mut command = program("strace");
        strace(&mut command, &dir.path().join("trace"));
        command.args(["sh", "-c", &format!("{script}; true")]).current_dir(dir.path());
        command.env("VARIABLE", variable).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().expect("strace starts").success());
        let trace = unescaped(&std::fs::read(dir.path().join("trace")).expect("a trace"));
        assert_eq!(canaries.found(&trace).map(|(name, _)| name), Some(name), "{script}");
    }
    // Each by itself: one time in 256 the two together are a piece.
    for harmless in [&secret.as_bytes()[..PIECE - 1], &key[..PIECE - 1]] {
        assert_eq!(canaries.found(harmless), None, "less than a piece");
    }
}

#[test]
fn no_secret_leaves_any_command_but_where_it_belongs() {
    if !have(&["strace"]) {
        return;
    }
    let desk = Desk::new();
    let journal = UnixDatagram::bind(desk.path("journal")).expect("the directory is ours");
    let [first, second, third, wrong] = [(); 4].map(|()| random_text());
    secret_file(&desk, "first", first.as_bytes());
    secret_file(&desk, "third", third.as_bytes());
    secret_file(&desk, "wrong", wrong.as_bytes());
    secret_file(&desk, "key", &random());
    // Of the right kind and the wrong length: what is refused is not repeated.
    secret_file(&desk, "long", &[random(), random()].concat());
    let mut canaries = Canaries::new();
    for (name, secret) in [("first", &first), ("second", &second), ("third", &third), ("wrong", &wrong)] {
        canaries.add(name, secret.as_bytes());
    }
    canaries.add("key", &desk.bytes("key"));
    canaries.add("long", &desk.bytes("long"));

    // The recovery words and the new keyfile are written once, each to its place.
    let format =
        ["format", "vol", "--size", SIZE, "--slot", "passphrase:file:first", "--slot", "keyfile:key"];
    let (ended, trace) = traced(&desk, &[&format[..], &["--slot", "keyfile:made", "--json"]].concat(), b"");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let words = ended.object()["recovery_key"].as_str().expect("words").to_owned();
    assert_eq!(count(&trace, words.as_bytes()), 1, "told on standard output");
    assert_eq!(count(&trace, &desk.bytes("made")), 1, "written to the file");
    assert_eq!(canaries.found(&trace), None, "format");
    assert_eq!(canaries.found(ended.stdout.as_bytes()), None);
    canaries.add("recovery words", words.as_bytes());
    canaries.add("recovery words, typed", words.replace('-', " ").as_bytes());
    canaries.add("new keyfile", &desk.bytes("made"));
    canaries.add("data key", &data_key(&desk, "key"));
    canaries.assert_absent("stderr of format", ended.stderr.as_bytes());

    let misspelt = words.replacen('-', "x-", 1);
    let verbs: [(&[&str], &str, i32); 13] = [
        (
            &["key", "add", "vol", "--slot", "passphrase:file:first", "--new-slot", "passphrase:fd:0"],
            &second,
            0,
        ),
        (
            &["key", "change", "vol", "--slot", "passphrase:fd:0", "--new-slot", "passphrase:file:third"],
            &second,
            0,
        ),
        (&["key", "test", "vol", "--slot", "passphrase:fd:0"], &third, 0),
        (&["key", "test", "vol", "--slot", "recovery:fd:0"], &words, 0),
        (&["key", "test", "vol", "--slot", "recovery:fd:0"], &misspelt, 2),
        (&["key", "test", "vol", "--slot", "passphrase:file:wrong"], "", 2),
        (&["key", "test", "vol", "--slot", "keyfile:long"], "", 2),
        (&["serve", "vol", "--slot", "passphrase:fd:0", "-U", "socket"], &wrong, 2),
        (&["check", "vol", "--slot", "keyfile:made", "--json"], "", 0),
        (&["status", "vol", "--slot", "keyfile:key"], "", 0),
        (&["header", "backup", "vol", "backup"], "", 0),
        (&["header", "restore", "vol", "backup", "--yes", "--slot", "keyfile:made"], "", 0),
        (&["key", "remove", "vol", "--slot", "keyfile:key", "--key-slot", "2"], "", 0),
    ];
    for (words, input, code) in verbs {
        let (ended, trace) = traced(&desk, words, input.as_bytes());
        assert_eq!(ended.code, code, "{words:?}: {}", ended.stderr);
        assert!(count(&trace, b"execve(") == 1, "the trace is there");
        canaries.assert_absent(&format!("a call of {words:?}"), &trace);
        canaries.assert_absent(&format!("output of {words:?}"), ended.stdout.as_bytes());
        canaries.assert_absent(&format!("errors of {words:?}"), ended.stderr.as_bytes());
    }
    for place in ["vol", "backup", AUDIT] {
        canaries.assert_absent(place, &desk.bytes(place));
    }
    let told = datagrams(&journal);
    assert!(count(&told, b"SEALBD_VERB=key-change\n") == 2, "{}", String::from_utf8_lossy(&told));
    canaries.assert_absent("the journal", &told);
}

/// The process that `strace` runs, once it has written its number.
fn traced_process(desk: &Desk) -> Pid {
    let number = std::fs::read_to_string(desk.path("pid")).expect("the pid-file");
    number.trim().parse().ok().and_then(Pid::from_raw).expect("a number")
}

#[test]
fn no_secret_leaves_a_serving_process_nor_stays_in_its_memory() {
    if !have(&["strace"]) || !rustix::process::geteuid().is_root() {
        return skip("reading the memory of a process that is not dumpable needs root");
    }
    let desk = Desk::new();
    let passphrase = random_text();
    secret_file(&desk, "secret", passphrase.as_bytes());
    let slots = ["--slot", "passphrase:file:secret", "--slot", "keyfile:key", "--no-recovery"];
    desk.ok(&[&["format", "vol", "--size", SIZE][..], &slots].concat());
    let mut canaries = Canaries::new();
    canaries.add("passphrase", passphrase.as_bytes());
    canaries.add("keyfile", &desk.bytes("key"));
    canaries.add("data key", &data_key(&desk, "key"));

    let mut command = program("sh");
    command.args(["-c", "ulimit -c unlimited; exec \"$@\"", "sh", "strace"]);
    strace(&mut command, &desk.path("trace"));
    command.args([env!("CARGO_BIN_EXE_sealbd"), "serve", "vol", "--pid-file", "pid"]);
    command.args(["--slot", "passphrase:file:secret", "--slot", "keyfile:key"]);
    let mut server = Server::start_as(&desk, command);
    let mut client = server.connect("vol");
    let plain = random();
    client.write(4096, &plain.repeat(128), 0).expect("written");
    client.write(1 << 20, &plain, 1).expect("written, durable");
    client.flush().expect("flushed");
    assert_eq!(client.read(1 << 20, plain.len()).expect("read"), plain);

    let pid = traced_process(&desk);
    let proc_file = |name: &str| format!("/proc/{}/{name}", pid.as_raw_nonzero());
    for name in ["cmdline", "environ", "status", "maps", "limits"] {
        canaries.assert_absent(name, &std::fs::read(proc_file(name)).expect("root reads it"));
    }
    // Root can read the memory of any process; what opened the volume is no longer in it.
    let memory = memory_of(pid);
    for (range, bytes) in &memory {
        canaries.assert_absent(&format!("memory, {range}"), bytes);
    }
    // What is there is found.
    let arguments = memory.iter().filter(|(_, bytes)| count(bytes, b"passphrase:file:secret") > 0).count();
    assert!(arguments > 0, "the arguments are in memory");

    // A crash leaves no core, although the shell allows one of any size.
    let limits = std::fs::read_to_string(proc_file("limits")).expect("root reads it");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    kill_process(pid, Signal::ABORT).expect("our own child's");
    assert_eq!(server.wait(), -1, "strace ends by the signal that its program ended by");
    let cores = std::fs::read_dir(desk.dir()).expect("ours").filter_map(Result::ok);
    let cores: Vec<_> =
        cores.filter(|entry| entry.file_name().to_string_lossy().starts_with("core")).collect();
    assert!(cores.is_empty(), "{cores:?}");
    let trace = calls(&desk.path("trace"));
    assert!(count(&trace, b"pwrite") > 0, "the trace is there");
    canaries.assert_absent("a call of serve", &trace);
    canaries.assert_absent("the log of serve", server.log().as_bytes());
    canaries.add("plain text", &plain);
    for place in ["vol", AUDIT, "log"] {
        canaries.assert_absent(place, &desk.bytes(place));
    }
    drop(server);
}
