//! A directory to work in, and the commands as a user types them there.
//!
//! Whatever a test is about: no command may panic, every failure ends with a `next:` line without a
//! placeholder for the backend, and with `--json` standard output is one JSON object with the exit code.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::common::client::Client;
use crate::common::programs::{outcome, program_within, record_in, wait_for};

/// No command of these tests takes longer on a slow machine, in a debug build.
const COMMAND_SECONDS_MAX: u64 = 120;
/// Large enough for a few segments, small enough for a check to be quick.
pub(crate) const SIZE: &str = "16M";
/// Where all commands of a desk are recorded.
pub(crate) const AUDIT: &str = "audit.jsonl";

/// A temporary directory; commands run in it.
pub(crate) struct Desk {
    dir: tempfile::TempDir,
}

/// A configuration and the commands that use it.
impl Desk {
    /// Writes `sealbd.toml`; `DIR` in it stands for this directory.
    pub(crate) fn configure(&self, text: &str) {
        self.configure_file("sealbd.toml", text);
    }

    /// Writes another file of the configuration, mode 0600.
    pub(crate) fn configure_file(&self, name: &str, text: &str) {
        let path = self.path(name);
        let text = text.replace("DIR", &self.dir().display().to_string());
        std::fs::write(&path, text).expect("the directory is ours");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(path, mode).expect("the file is ours");
    }
}

/// How a command ended.
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Desk {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::Builder::new().prefix("sealbd-cli-").tempdir().expect("temporary directory") }
    }

    /// One in a directory of its own below another one.
    pub(crate) fn in_directory(parent: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("sealbd-cli-").tempdir_in(parent);
        Self { dir: dir.expect("temporary directory") }
    }

    /// One with the volume `vol` of [`SIZE`], which the keyfile `key` opens.
    pub(crate) fn with_volume() -> Self {
        let desk = Self::new();
        desk.ok(&["format", "vol", "--size", SIZE, "--slot", "keyfile:key", "--no-recovery"]);
        desk
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `sealbd ARGS`, not yet started, with an empty standard input.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = program_within(env!("CARGO_BIN_EXE_sealbd"), COMMAND_SECONDS_MAX);
        command.args(args).current_dir(self.dir()).stdin(Stdio::null());
        command.env_remove("SEALBD_FORMAT").env_remove("CREDENTIALS_DIRECTORY");
        record_in(&mut command, &self.path(AUDIT));
        command
    }

    /// `sealbd ARGS`, to its end, however it ends.
    pub(crate) fn run(&self, args: &[&str]) -> Ended {
        Ended::of(outcome(&mut self.command(args)), args)
    }

    /// `sealbd ARGS` with `input` on standard input.
    pub(crate) fn run_with_input(&self, args: &[&str], input: &[u8]) -> Ended {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("sealbd starts");
        // A command that fails early does not read.
        let _ = child.stdin.take().expect("piped").write_all(input);
        Ended::of(child.wait_with_output().expect("our own child"), args)
    }

    /// `sealbd ARGS`, which must succeed; what it printed.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let ended = self.run(args);
        assert_eq!(ended.code, 0, "{args:?}: {}", ended.stderr);
        ended.stdout
    }

    /// `sealbd ARGS --json`, which must succeed; its report.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let ended = self.run(&[args, &["--json"]].concat());
        assert_eq!(ended.code, 0, "{args:?}: {}", ended.stderr);
        let report = ended.object();
        assert_eq!(report["schema"], 1, "{report}");
        report
    }

    /// `sealbd ARGS`, which must fail with `code` and say `cause`; the line behind `next:`.
    pub(crate) fn fails(&self, code: i32, cause: &str, args: &[&str]) -> String {
        let prose = self.run(args);
        assert_eq!(prose.code, code, "{args:?}: {}", prose.stderr);
        assert!(prose.stderr.contains(cause), "{args:?} should say {cause:?}: {}", prose.stderr);
        assert_eq!(prose.stdout, "", "{args:?}");
        prose.next()
    }

    /// As [`fails`](Self::fails), and the same with `--json`; the code word.
    pub(crate) fn fails_in_both_forms(&self, code: i32, cause: &str, args: &[&str]) -> String {
        let next = self.fails(code, cause, args);
        let ended = self.run(&[args, &["--json"]].concat());
        assert_eq!(ended.code, code, "{args:?}: {}", ended.stderr);
        let error = &ended.object()["error"];
        assert_eq!(error["exit"], code, "{error}");
        assert_eq!(error["hint"], next.as_str(), "{error}");
        assert!(error["message"].as_str().is_some_and(|message| message.contains(cause)), "{error}");
        error["code"].as_str().expect("a code word").to_owned()
    }

    /// Puts bytes over a file of this directory.
    pub(crate) fn overwrite(&self, name: &str, offset: u64, bytes: &[u8]) {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::options().write(true).open(self.path(name)).expect("the file is ours");
        file.write_all_at(bytes, offset).expect("room for a few bytes");
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("the file is ours")
    }
}

impl Ended {
    /// Takes what a command left behind and holds it to what is promised of all commands.
    pub(crate) fn of(output: Output, args: &[&str]) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("commands print UTF-8");
        let ended = Self {
            code: output.status.code().unwrap_or_else(|| panic!("{args:?} ended with {}", output.status)),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        };
        assert!(!ended.stderr.contains("panicked"), "{args:?}: {}", ended.stderr);
        assert!(!ended.stderr.contains("BACKEND"), "{args:?}: {}", ended.stderr);
        ended
    }

    /// The last line of standard error, behind `next:`.
    pub(crate) fn next(&self) -> String {
        let last = self.stderr.lines().last().unwrap_or_default();
        let next = last.strip_prefix("next: ").unwrap_or_else(|| panic!("no next line: {}", self.stderr));
        assert!(next.len() > 5, "{next}");
        next.to_owned()
    }

    /// Standard output as exactly one JSON object on one line.
    pub(crate) fn object(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "one line: {}", self.stdout);
        let value: Value = serde_json::from_str(&self.stdout).expect("valid JSON");
        assert!(value.is_object(), "{value}");
        value
    }
}

/// `sealbd serve ARGS -U socket`, killed when dropped.
pub(crate) struct Server {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Server {
    /// Starts it and waits until it answers.
    pub(crate) fn start(desk: &Desk, args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealbd"));
        command.arg("serve").args(args);
        Self::start_as(desk, command)
    }

    /// As [`start`](Self::start), by a command of the caller's.
    pub(crate) fn start_as(desk: &Desk, mut command: Command) -> Self {
        command.args(["-U", "socket"]);
        Self::start_listening(desk, command, "socket")
    }

    /// As [`start_as`](Self::start_as), by a command that listens on that socket of its own accord.
    pub(crate) fn start_listening(desk: &Desk, mut command: Command, socket: &str) -> Self {
        let (socket, log) = (desk.path(socket), desk.path("log"));
        let output = std::fs::File::options().create(true).append(true).open(&log).expect("log file");
        let errors = output.try_clone().expect("a descriptor is free");
        record_in(&mut command, &desk.path(AUDIT));
        let command = command.current_dir(desk.dir());
        let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn().expect("it starts");
        let mut server = Self { child, socket, log };
        wait_for("the server", Duration::from_secs(COMMAND_SECONDS_MAX), || {
            let ended = server.child.try_wait().expect("our own child");
            assert!(ended.is_none(), "ended with {ended:?}: {}", server.log());
            UnixStream::connect(&server.socket).is_ok().then_some(())
        });
        server
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn connect(&self, export: &str) -> Client {
        Client::unix(&self.socket, export).unwrap_or_else(|error| panic!("{error:?}: {}", self.log()))
    }

    /// Sends a signal and waits for the end; the exit code, -1 for a process that was killed.
    pub(crate) fn stop(&mut self, signal: Signal) -> i32 {
        kill_process(Pid::from_child(&self.child), signal).expect("our own child");
        self.wait()
    }

    /// Waits for the end, sends nothing; the exit code, -1 for a process that was killed.
    pub(crate) fn wait(&mut self) -> i32 {
        let ended = wait_for("the server's end", Duration::from_secs(COMMAND_SECONDS_MAX), || {
            self.child.try_wait().expect("our own child")
        });
        ended.code().unwrap_or(-1)
    }

    /// What it printed so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
