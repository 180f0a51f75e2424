//! Foreign programs: whether they are here, and running them with a deadline.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// No client program of the tests works longer than this on a slow machine.
pub(crate) const PROGRAM_SECONDS_MAX: u64 = 180;

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(10);

/// Whether every named program is on the machine. When one is not: prints why the test is skipped,
/// or fails it if `SEALBD_REQUIRE_CLIENTS=1`, as `tests/run` sets it.
pub(crate) fn have(programs: &[&str]) -> bool {
    let missing: Vec<&str> = programs.iter().copied().filter(|name| !is_program(name)).collect();
    if missing.is_empty() {
        return true;
    }
    skip(&format!("not on this machine: {}", missing.join(", ")));
    false
}

/// Whether this process may mount. When it may not, skips as [`have`] does.
pub(crate) fn may_mount() -> bool {
    let usable = rustix::process::geteuid().is_root()
        && Path::new("/dev/fuse").exists()
        && Path::new("/dev/loop-control").exists();
    if !usable {
        skip("mounting needs root, /dev/fuse and /dev/loop-control");
    }
    usable
}

/// Prints why a test does nothing, or fails when skipping is forbidden.
pub(crate) fn skip(reason: &str) {
    assert!(
        std::env::var_os("SEALBD_REQUIRE_CLIENTS").is_none_or(|v| v != "1"),
        "would be skipped: {reason}"
    );
    eprintln!("skipped: {reason}");
}

fn is_program(name: &str) -> bool {
    let path = format!("/usr/bin:/usr/sbin:{}", std::env::var("PATH").unwrap_or_default());
    path.split(':').any(|dir| Path::new(dir).join(name).is_file())
}

/// A command that `timeout` ends after [`PROGRAM_SECONDS_MAX`]. The system's own directories come first in
/// its PATH, since `nbdsh` needs the interpreter that its module was built for.
pub(crate) fn program(name: &str) -> Command {
    program_within(name, PROGRAM_SECONDS_MAX)
}

/// [`program`] with a deadline of its own.
pub(crate) fn program_within(name: &str, seconds: u64) -> Command {
    let path = format!("/usr/bin:/usr/sbin:{}", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("/usr/bin/timeout");
    command.args(["--kill-after=5", &seconds.to_string(), name]).env("PATH", path);
    // Whatever runs sealbd in the end: its records are not for the log of this machine.
    let log = format!("{}/{}.audit.jsonl", env!("CARGO_TARGET_TMPDIR"), env!("CARGO_CRATE_NAME"));
    record_in(&mut command, Path::new(&log));
    command
}

/// Has sealbd keep its audit log there, with what else it keeps on a host beside it, and not tell the journal. Whatever
/// configuration this machine has is none of the tests'.
pub(crate) fn record_in<'c>(command: &'c mut Command, log: &Path) -> &'c mut Command {
    let beside = log.parent().expect("a log lies in a directory");
    command.env("SEALBD_CONTROL_DIRECTORY", beside.join("control"));
    command.env("SEALBD_STATE_DIRECTORY", beside.join("state")).env("SEALBD_CONFIG", "");
    command.env("SEALBD_AUDIT", log).env("SEALBD_AUDIT_JOURNAL", "")
}

/// Runs a command that must succeed; returns what it printed on stdout.
pub(crate) fn run(command: &mut Command) -> String {
    let output = outcome(command);
    assert!(
        output.status.success(),
        "{:?} ended with {}\n--- stdout\n{}\n--- stderr\n{}",
        command,
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command to its end, however it ends.
pub(crate) fn outcome(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"))
}

/// Shorthand for [`run`] of a [`program`] with arguments.
pub(crate) fn call<S: AsRef<OsStr>>(name: &str, arguments: &[S]) -> String {
    run(program(name).args(arguments))
}

/// Asks again and again until the answer is `Some`, 10 ms apart.
///
/// # Panics
/// After `deadline`, naming what was waited for.
pub(crate) fn wait_for<T>(what: &str, deadline: Duration, ask: impl FnMut() -> Option<T>) -> T {
    wait_for_within(what, deadline, PAUSE, ask)
}

/// As [`wait_for`], `pause` apart.
pub(crate) fn wait_for_within<T>(
    what: &str,
    deadline: Duration,
    pause: Duration,
    mut ask: impl FnMut() -> Option<T>,
) -> T {
    let mut answer = None;
    poll_within(deadline, pause, || {
        answer = ask();
        answer.is_some()
    });
    answer.unwrap_or_else(|| panic!("waited {deadline:?} for {what}"))
}

/// Asks again and again until the answer is yes, 10 ms apart; `false` after `deadline`.
pub(crate) fn poll(deadline: Duration, ask: impl FnMut() -> bool) -> bool {
    poll_within(deadline, PAUSE, ask)
}

fn poll_within(deadline: Duration, pause: Duration, mut ask: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while !ask() {
        if started.elapsed() >= deadline {
            return false;
        }
        std::thread::sleep(pause);
    }
    true
}

/// Prints what helps to understand a failure.
pub(crate) fn report(text: &str) {
    eprintln!("{text}");
}
