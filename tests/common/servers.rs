//! Foreign programs for tests: started in a directory of their own, waited for until they serve,
//! and killed by their process id when the test ends, however it ends.

#![allow(dead_code, reason = "every test uses a part of these")]

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// For how long a server may start up.
const START_MAX: Duration = Duration::from_secs(20);
/// For how long a server may take to stop before it is killed.
const STOP_MAX: Duration = Duration::from_secs(2);

/// The path of a program, or `None` when it is not installed: the test then prints why it is
/// skipped and returns.
///
/// # Panics
/// When it is not installed and `SEALBD_REQUIRE_CLIENTS=1` says that it must be.
#[expect(clippy::print_stderr, reason = "the reason for a skip belongs into the output of the test")]
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Servers may lie where only root looks.
    let directories =
        std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from));
    let found = directories.map(|directory| directory.join(name)).find(|path| path.is_file());
    if found.is_none() {
        let required = std::env::var_os("SEALBD_REQUIRE_CLIENTS").is_some_and(|value| value == "1");
        assert!(!required, "{name} is not installed, and SEALBD_REQUIRE_CLIENTS=1");
        eprintln!("skipped: {name} is not installed");
    }
    found
}

/// A started program. Killed and waited for when dropped, also by a panic.
pub(crate) struct Process {
    child: Child,
    /// For a program that goes to the background and cannot be told not to.
    daemon: Option<Daemon>,
    log: PathBuf,
}

/// A program in the background, known by the process id that it wrote down.
struct Daemon {
    pid_file: PathBuf,
}

impl Process {
    /// Starts a program with its output in `DIRECTORY/NAME.log`.
    pub(crate) fn start(mut command: Command, directory: &Path, name: &str) -> Self {
        let log = directory.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log).expect("the directory is ours");
        let errors = output.try_clone().expect("a descriptor is free");
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, daemon: None, log }
    }

    /// The same program, known to go to the background and to write its process id to `pid_file`.
    fn going_to_background(mut self, pid_file: &Path) -> Self {
        self.daemon = Some(Daemon { pid_file: pid_file.to_owned() });
        self
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub(crate) fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `ready`.
    ///
    /// # Panics
    /// When the program ends before, or is not ready in time.
    pub(crate) fn wait_until(&mut self, what: &str, ready: impl Fn() -> bool) {
        let deadline = Instant::now() + START_MAX;
        while !ready() {
            let ended = self.child.try_wait().expect("the child is ours");
            if let Some(status) = ended.filter(|status| self.daemon.is_none() || !status.success()) {
                panic!("ended with {status} before {what}: {}", self.output());
            }
            assert!(Instant::now() < deadline, "not in time: {what}: {}", self.output());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(&mut self) {
        // An error means that it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(daemon) = &self.daemon {
            daemon.stop();
        }
    }
}

impl Daemon {
    /// SIGTERM, so that it takes the processes of its clients along, and SIGKILL if that is not enough.
    fn stop(&self) {
        use rustix::process::{Pid, Signal, kill_process};
        let written = std::fs::read_to_string(&self.pid_file).unwrap_or_default();
        let Some(pid) = written.trim().parse().ok().and_then(Pid::from_raw) else { return };
        // Empty for a process that has ended, even before it is reaped; never kill another one.
        let alive = || {
            let command_line =
                std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
            let its_name = self.pid_file.to_string_lossy();
            String::from_utf8_lossy(&command_line).contains(&*its_name)
        };
        for signal in [Signal::TERM, Signal::KILL] {
            let deadline = Instant::now() + STOP_MAX;
            if alive() {
                // An error means that it has just ended.
                let _ = kill_process(pid, signal);
            }
            while alive() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// An NBD server of somebody else's.
pub(crate) struct Server {
    launch: Launch,
    /// Left behind by a killed server and in the way of the next one.
    leftovers: Vec<PathBuf>,
    directory: PathBuf,
    name: &'static str,
    process: Process,
    /// Where it serves: `nbd+unix:///?socket=…` or `nbd://127.0.0.1:port/…`.
    pub(crate) uri: String,
}

/// How a server is started, once or again.
struct Launch {
    command: Box<dyn Fn() -> Command>,
    ready: Box<dyn Fn() -> bool>,
    /// Where it writes its process id when it goes to the background.
    daemon: Option<PathBuf>,
}

impl Launch {
    fn run(&self, directory: &Path, name: &str) -> Process {
        let process = Process::start((self.command)(), directory, name);
        let mut process = match &self.daemon {
            Some(pid_file) => process.going_to_background(pid_file),
            None => process,
        };
        process.wait_until("serving", &self.ready);
        process
    }
}

impl Server {
    /// `nbdkit ARGS` on a Unix socket in `directory`. `None` when nbdkit is not installed.
    pub(crate) fn nbdkit(directory: &Path, args: &[&str]) -> Option<Self> {
        let program = program("nbdkit")?;
        let (socket, pid_file) = (directory.join("nbdkit.sock"), directory.join("nbdkit.pid"));
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let (socket_arg, pid_arg) = (socket.clone(), pid_file.clone());
        let command = move || {
            let mut command = Command::new(&program);
            // The end of the test process ends nbdkit, even if that was killed.
            command
                .args(["-f", "--exit-with-parent", "-U"])
                .arg(&socket_arg)
                .arg("-P")
                .arg(&pid_arg)
                .args(&args);
            command
        };
        Some(Self::start_unix("nbdkit", command, directory, socket, pid_file))
    }

    /// `qemu-nbd ARGS` on a Unix socket in `directory`, for any number of clients. `None` when
    /// qemu-nbd is not installed.
    pub(crate) fn qemu_nbd(directory: &Path, args: &[&str]) -> Option<Self> {
        let program = program("qemu-nbd")?;
        let (socket, pid_file) = (directory.join("qemu.sock"), directory.join("qemu.pid"));
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let (socket_arg, pid_arg) = (socket.clone(), pid_file.clone());
        let command = move || {
            let mut command = Command::new(&program);
            command.args(["-t", "-e", "0", "-x", "", "-k"]).arg(&socket_arg);
            command.arg("--pid-file").arg(&pid_arg).args(&args);
            command
        };
        Some(Self::start_unix("qemu-nbd", command, directory, socket, pid_file))
    }

    /// `nbd-server` on a TCP port of 127.0.0.1, serving `file` as the export `disk`, with FLUSH, FUA
    /// and TRIM. `None` when nbd-server is not installed.
    pub(crate) fn nbd_server(directory: &Path, file: &Path) -> Option<Self> {
        let program = program("nbd-server")?;
        let port = free_port();
        let config = directory.join("nbd-server.conf");
        let file = file.display();
        let text = format!(
            "[generic]\nlistenaddr = 127.0.0.1\nport = {port}\nallowlist = true\nmaxconnections = 64\n\
             [disk]\nexportname = {file}\nflush = true\nfua = true\ntrim = true\n"
        );
        std::fs::write(&config, text).expect("the directory is ours");
        let pid_file = directory.join("nbd-server.pid");
        let pid_arg = pid_file.clone();
        let command = move || {
            let mut command = Command::new(&program);
            command.arg("-C").arg(&config).arg("-p").arg(&pid_arg);
            command
        };
        let ready = move || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        let launch = Launch { command: Box::new(command), ready: Box::new(ready), daemon: Some(pid_file) };
        let uri = format!("nbd://127.0.0.1:{port}/disk");
        Some(Self::start("nbd-server", launch, directory, Vec::new(), uri))
    }

    fn start_unix(
        name: &'static str,
        command: impl Fn() -> Command + 'static,
        directory: &Path,
        socket: PathBuf,
        pid_file: PathBuf,
    ) -> Self {
        // Both write their process id after they listen.
        let (its_socket, its_pid) = (socket.clone(), pid_file.clone());
        let written = |path: &Path| std::fs::metadata(path).is_ok_and(|found| found.len() > 0);
        let ready = move || its_socket.exists() && written(&its_pid);
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let launch = Launch { command: Box::new(command), ready: Box::new(ready), daemon: None };
        Self::start(name, launch, directory, vec![socket, pid_file], uri)
    }

    fn start(
        name: &'static str,
        launch: Launch,
        directory: &Path,
        leftovers: Vec<PathBuf>,
        uri: String,
    ) -> Self {
        let process = launch.run(directory, name);
        Self { launch, leftovers, directory: directory.to_owned(), name, process, uri }
    }

    /// SIGKILL: as little warning as a crash of its host gives.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
        for path in &self.leftovers {
            // Not every server leaves all of them.
            let _ = std::fs::remove_file(path);
        }
    }

    /// Starts it again at the same place after [`kill`](Self::kill).
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.process = self.launch.run(&self.directory, self.name);
    }

    /// What it has printed so far.
    pub(crate) fn output(&self) -> String {
        self.process.output()
    }
}

/// A sparse file of `size` bytes in `directory`.
pub(crate) fn sparse_file(directory: &Path, size: u64) -> PathBuf {
    let path = directory.join("disk");
    let made = File::create(&path).and_then(|file| file.set_len(size));
    made.expect("the directory is ours");
    path
}

/// A port of 127.0.0.1 that nobody listens on.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
    listener.local_addr().expect("the listener is bound").port()
}
