//! What happens at a terminal: prompts without echo, consent, Ctrl-C, progress bars. The terminal is made by
//! Debian's python3.

use serde_json::{Value, json};

use crate::common::programs::{have, outcome, program};
use crate::desk::{Desk, SIZE};
use crate::servers::Server as Peer;

/// Runs argv on a terminal of its own; at each text expected it types an answer (`null`: SIGTERM instead);
/// prints the screen, the exit code and whether the terminal echoes at the end.
const ON_TERMINAL: &str = r#"
import fcntl, json, os, pty, select, signal, subprocess, sys, termios, time
talk, argv = json.loads(sys.argv[1]), sys.argv[2:]
master, slave = pty.openpty()
fcntl.ioctl(slave, termios.TIOCSWINSZ, b"\x28\x00\x78\x00\x00\x00\x00\x00")
own = lambda: (os.setsid(), fcntl.ioctl(slave, termios.TIOCSCTTY, 0))
child = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, preexec_fn=own)
screen, seen, deadline = b"", 0, time.monotonic() + 100
while time.monotonic() < deadline:
    # Asked before: what it wrote last is read then.
    ended = child.poll() is not None
    if select.select([master], [], [], 0.02)[0]:
        screen += os.read(master, 65536)
    elif ended:
        break
    if talk and talk[0][0].encode() in screen[seen:]:
        expected, answer = talk.pop(0)
        seen = len(screen)
        while "passphrase" in expected and termios.tcgetattr(slave)[3] & termios.ECHO:
            assert time.monotonic() < deadline, "a prompt that echoes"
        if answer is None:
            child.send_signal(signal.SIGTERM)
        else:
            os.write(master, answer.encode())
if child.poll() is None:
    child.kill()
echo = bool(termios.tcgetattr(slave)[3] & termios.ECHO)
print(json.dumps({"screen": screen.decode(), "code": child.wait(), "echo": echo, "left": talk}))
"#;

/// `sealbd ARGS` on a terminal where somebody answers; `None` without python3.
pub(crate) fn on_terminal(desk: &Desk, args: &[&str], talk: &Value) -> Option<Value> {
    if !have(&["python3"]) {
        return None;
    }
    let mut command = program("python3");
    command.args(["-c", ON_TERMINAL, &talk.to_string(), env!("CARGO_BIN_EXE_sealbd")]).args(args);
    let told = outcome(command.current_dir(desk.dir()));
    let stderr = String::from_utf8_lossy(&told.stderr);
    let result: Value =
        serde_json::from_slice(&told.stdout).unwrap_or_else(|error| panic!("{error}: {stderr}"));
    assert_eq!(result["left"], json!([]), "not everything was asked: {result}");
    assert_eq!(result["echo"], true, "the terminal echoes again: {result}");
    Some(result)
}

fn screen(result: &Value) -> &str {
    result["screen"].as_str().expect("a screen")
}

#[test]
fn consent_is_the_word_yes_in_capitals() {
    let desk = Desk::with_volume();
    let before = desk.json(&["uuid", "vol"]);
    let format = ["format", "vol", "--size", SIZE, "--slot", "keyfile:key", "--no-recovery"];
    for answer in ["yes\n", "\n", "\u{4}", "no\n"] {
        let Some(result) = on_terminal(&desk, &format, &json!([["Type YES", answer]])) else { return };
        assert_eq!(result["code"], 5, "{result}");
        assert!(screen(&result).contains("next: --yes"), "{result}");
        assert_eq!(desk.json(&["uuid", "vol"]), before);
    }
    let result = on_terminal(&desk, &format, &json!([["Type YES", "YES\n"]])).expect("python3 is there");
    assert_eq!(result["code"], 0, "{result}");
    assert_ne!(desk.json(&["uuid", "vol"]), before);
}

#[test]
fn a_prompt_that_is_interrupted_changes_nothing_and_gives_the_echo_back() {
    let desk = Desk::with_volume();
    let before = desk.bytes("vol");
    let add = ["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "passphrase"];
    for (answer, code) in [(json!("half\u{3}"), 130), (json!("\u{4}"), 2), (json!(null), 143)] {
        let talk = json!([["Enter new passphrase", answer]]);
        let Some(result) = on_terminal(&desk, &add, &talk) else { return };
        assert_eq!(result["code"], code, "{result}");
        assert!(screen(&result).contains("next: "), "{result}");
        assert!(!screen(&result).contains("half"), "{result}");
        assert_eq!(desk.bytes("vol"), before);
    }
    let talk = json!([["Enter new passphrase", "one\n"], ["Repeat new passphrase", "other\n"]]);
    let result = on_terminal(&desk, &add, &talk).expect("python3 is there");
    assert_eq!(result["code"], 2, "{result}");
    assert!(screen(&result).contains("differ"), "{result}");
    assert_eq!(desk.bytes("vol"), before);
    desk.ok(&["check", "vol", "--slot", "keyfile:key"]);
}

#[test]
fn ctrl_c_while_a_volume_is_made_leaves_none() {
    let desk = Desk::new();
    // Every write takes a while, so that the signal comes between the first and the last.
    let Some(server) = Peer::nbdkit(desk.dir(), &["--filter=delay", "memory", "64M", "wdelay=500ms"]) else {
        return;
    };
    let format = ["format", &server.uri, "--slot", "keyfile:key", "--no-recovery"];
    let Some(result) = on_terminal(&desk, &format, &json!([["made key", "\u{3}"]])) else { return };
    assert_ne!(result["code"], 0, "{result}");
    desk.fails(4, "not a sealbd volume", &["check", &server.uri, "--slot", "keyfile:key"]);
    desk.ok(&format);
    desk.ok(&["check", &server.uri, "--slot", "keyfile:key"]);
}

#[test]
fn a_long_check_shows_a_bar_on_a_terminal_and_never_with_json() {
    if !have(&["qemu-io"]) {
        return;
    }
    let desk = Desk::with_volume();
    let write = "qemu-io -f raw -c 'write -P 0xab 0 4M' -c flush \"$uri\"";
    desk.ok(&["serve", "vol", "--slot", "keyfile:key", "--run", write]);
    let volume = desk.path("vol");
    let slow = ["-r", "--filter=delay", "file", volume.to_str().expect("a plain path"), "rdelay=20ms"];
    let Some(server) = Peer::nbdkit(desk.dir(), &slow) else { return };
    let check = ["check", &server.uri, "--deep", "--slot", "keyfile:key"];
    let Some(result) = on_terminal(&desk, &check, &json!([])) else { return };
    assert_eq!(result["code"], 0, "{result}");
    assert!(screen(&result).contains("checking") && screen(&result).contains("ETA"), "{result}");
    let quiet =
        on_terminal(&desk, &[&check[..], &["--json"]].concat(), &json!([])).expect("python3 is there");
    let told: Value = serde_json::from_str(screen(&quiet).trim()).expect("the screen holds one JSON object");
    assert_eq!(told["verified_sectors"], 1024);
    let ended = desk.run(&check);
    assert!(!ended.stderr.contains("checking"), "no terminal, no bar: {}", ended.stderr);
}
