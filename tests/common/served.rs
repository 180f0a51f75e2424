//! A volume in a temporary directory and a `sealbd serve` process over it. Everything ends with the guard.
//!
//! `SEALBD_BINARY=PATH` takes another build of sealbd, for long runs and times that mean something.
//!
//! `SEALBD_TEST_PEER=qemu-nbd` puts an unencrypted qemu-nbd in the place of sealbd: a control run that
//! tells a fault of the test, the client or the machine from a fault of ours.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::client::Client;
use super::programs::{outcome, program, record_in, wait_for, wait_for_within};

/// A server that is not there by then has failed. Recovery of a test volume in a debug build takes a tenth of it.
const START_SECONDS_MAX: u64 = 60;
/// SIGTERM drains and writes a checkpoint; then the process is gone.
const STOP_SECONDS_MAX: u64 = 60;
/// The name under which every test volume is exported.
pub(crate) const EXPORT: &str = "vol";

/// Whether a control run replaces sealbd by a peer.
pub(crate) fn is_control_run() -> bool {
    std::env::var("SEALBD_TEST_PEER").is_ok_and(|peer| peer == "qemu-nbd")
}

/// The sealbd that is tested.
pub(crate) fn sealbd() -> String {
    std::env::var("SEALBD_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_sealbd").to_owned())
}

/// Where the server listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Listen {
    Unix,
    /// A free port of the loopback address.
    Tcp,
}

/// A formatted volume and, between `start` and `stop`, its server.
pub(crate) struct Served {
    dir: tempfile::TempDir,
    backend: String,
    size: u64,
    listen: Listen,
    port: u16,
    child: Option<Child>,
}

impl Served {
    /// A new volume of `size` bytes in a file, served on a unix socket.
    pub(crate) fn unix(size: u64) -> Self {
        let mut served = Self::formatted(size, Listen::Unix, None);
        served.start();
        served
    }

    /// A new volume of `size` bytes in a file, served on the loopback address.
    pub(crate) fn tcp(size: u64) -> Self {
        let mut served = Self::formatted(size, Listen::Tcp, None);
        served.start();
        served
    }

    /// A new volume of `size` bytes, not yet served. `backend` is a URI; without one it is a file.
    pub(crate) fn formatted(size: u64, listen: Listen, backend: Option<String>) -> Self {
        let mut served = Self::unformatted(size, listen, backend);
        served.format();
        served
    }

    /// The place of a volume whose store somebody else fills. `key` is that of the volume that it came from.
    pub(crate) fn adopting(size: u64, listen: Listen, key: &Path) -> Self {
        let served = Self::unformatted(size, listen, None);
        std::fs::copy(key, served.key()).expect("copy the keyfile");
        served
    }

    fn unformatted(size: u64, listen: Listen, backend: Option<String>) -> Self {
        let dir = tempfile::Builder::new().prefix("sealbd-test-").tempdir().expect("temporary directory");
        let backend = backend.unwrap_or_else(|| dir.path().join("volume").display().to_string());
        Self { dir, backend, size, listen, port: 0, child: None }
    }

    fn format(&mut self) {
        let mut key = [0; 32];
        std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").expect("urandom"), &mut key)
            .expect("32 random bytes");
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.key())
            .and_then(|mut file| file.write_all(&key))
            .expect("write the keyfile");
        if is_control_run() {
            if !self.backend.contains("://") {
                std::fs::File::create(self.image()).and_then(|f| f.set_len(self.size)).expect("raw image");
            }
            return;
        }
        let size = self.size.to_string();
        let output = outcome(
            program(&sealbd())
                .args(["format", &self.backend, "--size", &size, "--slot", &self.slot()])
                .args(["--no-recovery", "--yes"])
                .stdin(Stdio::null()),
        );
        assert!(output.status.success(), "format failed: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Starts the server and waits until a client gets through the handshake. Returns how long that took.
    pub(crate) fn start(&mut self) -> Duration {
        assert!(self.child.is_none(), "already running");
        if self.listen == Listen::Tcp {
            // Free now; taken by somebody else in between only if the whole range is in use.
            let probe = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
            self.port = probe.local_addr().expect("bound").port();
        } else {
            // What kill -9 left behind must not be mistaken for the new server.
            let _ = std::fs::remove_file(self.socket());
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).expect("log file");
        let started = Instant::now();
        let child = self
            .serve_command()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("server starts");
        self.child = Some(child);
        let deadline = Duration::from_secs(START_SECONDS_MAX);
        wait_for_within("the server", deadline, Duration::from_millis(1), || {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().expect("our child")) {
                panic!("the server ended at once with {status}: {}", self.log_text());
            }
            self.connected()
        });
        started.elapsed()
    }

    /// The command line that serves this volume, as another process would run it.
    pub(crate) fn serve_command(&self) -> Command {
        let socket = self.socket().display().to_string();
        let port = self.port.to_string();
        let mut command;
        if is_control_run() {
            command = Command::new("qemu-nbd");
            command.args(["-f", "raw", "-t", "-e", "0", "-x", EXPORT, "--discard=unmap"]);
            match self.listen {
                Listen::Unix => command.args(["-k", &socket]),
                Listen::Tcp => command.args(["-b", "127.0.0.1", "-p", &port]),
            };
            command.arg(&self.backend);
        } else {
            command = Command::new(sealbd());
            command.args(["serve", &self.backend, "--slot", &self.slot(), "--name", EXPORT]);
            match self.listen {
                Listen::Unix => command.args(["-U", &socket]),
                Listen::Tcp => command.args(["-p", &port]),
            };
        }
        record_in(&mut command, &self.dir.path().join("audit.jsonl"));
        command
    }

    /// Asks the server to end, as systemd does, and waits for it.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_for_end()
    }

    /// Stops, expects a clean end, and starts again.
    pub(crate) fn restart(&mut self) {
        let status = self.stop();
        assert!(status.success(), "the server ended with {status}: {}", self.log_text());
        self.start();
    }

    /// Ends the server between two instructions. It stays down until [`start`](Self::start).
    pub(crate) fn kill9(&mut self) {
        self.signal(Signal::KILL);
        self.wait_for_end();
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("our own child");
    }

    fn wait_for_end(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("running");
        wait_for("the server's end", Duration::from_secs(STOP_SECONDS_MAX), || {
            child.try_wait().expect("our child")
        })
    }

    /// Process number of the running server.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("running"))
    }

    /// A raw connection.
    ///
    /// # Panics
    /// When the server does not let us in.
    pub(crate) fn connect(&self) -> Client {
        self.try_connect().unwrap_or_else(|e| panic!("no connection: {e:?}; server: {}", self.log_text()))
    }

    fn connected(&self) -> Option<()> {
        self.try_connect().ok().map(drop)
    }

    /// A raw connection, if the server is there.
    pub(crate) fn try_connect(&self) -> Result<Client, super::client::Failure> {
        match self.listen {
            Listen::Unix => Client::unix(&self.socket(), EXPORT),
            Listen::Tcp => Client::tcp(self.port, EXPORT),
        }
    }

    /// What clients are given.
    pub(crate) fn uri(&self) -> String {
        match self.listen {
            Listen::Unix => format!("nbd+unix:///{EXPORT}?socket={}", self.socket().display()),
            Listen::Tcp => format!("nbd://127.0.0.1:{}/{EXPORT}", self.port),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The file under the volume, unless the backend is a URI.
    pub(crate) fn image(&self) -> PathBuf {
        self.dir.path().join("volume")
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    pub(crate) fn slot(&self) -> String {
        format!("keyfile:{}", self.key().display())
    }

    /// Room for a test's own files.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("server.log")
    }

    /// What the server said so far.
    pub(crate) fn log_text(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            super::programs::report(&format!("server log: {}", self.log_text()));
        }
    }
}
