//! What `packaging/` promises: systemd understands every line of the units, and the command line in them serves a volume
//! on a socket that was handed over, with a keyfile from the credentials directory.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::programs::{call, have, outcome, program, wait_for};
use common::served::{Listen, Served};
use rustix::process::{Pid, Signal, kill_process};

const SIZE: u64 = 64 << 20;
/// Opening a small volume and stopping again take a tenth of it.
const SECONDS_MAX: u64 = 60;
/// Where the units say that the program is.
const INSTALLED: &str = "/usr/bin/sealbd";

fn unit(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn systemd_understands_every_line_of_the_units() {
    if !have(&["systemd-analyze"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd");
    let names =
        std::fs::read_dir(shipped).expect("the units").map(|entry| entry.expect("an entry").file_name());
    let copies: Vec<PathBuf> = names
        .map(|name| {
            let name = name.to_str().expect("a plain name");
            let text = unit(name).replace(INSTALLED, env!("CARGO_BIN_EXE_sealbd"));
            std::fs::write(dir.path().join(name), text).expect("copy of the unit");
            dir.path().join(name.replace('@', "@vol"))
        })
        .collect();
    assert!(copies.len() >= 6, "{copies:?}");
    let output = outcome(program("systemd-analyze").args(["verify", "--man=no"]).args(copies));
    // Unknown words are only told, with status 0.
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
}

#[test]
fn the_command_line_of_the_metrics_unit_writes_what_the_collector_reads() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let service = unit("sealbd-metrics.service");
    let line = service.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("ExecStart");
    let here = dir.path().display().to_string();
    let words = line.replace("/var/lib/prometheus/node-exporter", &here);
    let mut words = words.split(' ').skip(1);
    let mut report = program(env!("CARGO_BIN_EXE_sealbd"));
    let told = outcome(report.args(&mut words).env("SEALBD_CONFIG", ""));
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    // Debian's collector reads *.prom of that directory.
    let gauges = std::fs::read_to_string(dir.path().join("sealbd.prom")).expect("the gauges");
    assert!(gauges.contains("# TYPE sealbd_kek_overdue gauge\n"), "{gauges}");
}

/// A process that ends with its owner.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_command_line_of_the_unit_serves_on_the_socket_handed_over() {
    if !have(&["systemd-socket-activate", "nbdinfo"]) {
        return;
    }
    let served = Served::formatted(SIZE, Listen::Unix, None);
    // As systemd shows a credential that the service's user reads by an access list.
    std::fs::set_permissions(served.key(), std::fs::Permissions::from_mode(0o440)).expect("our file");
    let dir = served.dir().display().to_string();
    let service = unit("sealbd@.service");
    let line = service.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("ExecStart");
    let words = line
        .replace(INSTALLED, env!("CARGO_BIN_EXE_sealbd"))
        .replace("${BACKEND}", &served.image().display().to_string())
        .replace("%d", &dir)
        .replace("%i", "vol");
    let socket = served.socket();
    let mut server = Command::new("systemd-socket-activate");
    server.arg("-l").arg(&socket).arg("-E").arg(format!("CREDENTIALS_DIRECTORY={dir}"));
    server.args(words.split(' ')).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut server = Ends(server.spawn().expect("starts"));
    let deadline = Duration::from_secs(SECONDS_MAX);
    wait_for("the socket", deadline, || socket.exists().then_some(()));

    let uri = format!("nbd+unix:///vol?socket={}", socket.display());
    assert_eq!(call("nbdinfo", &["--size", &uri]).trim(), SIZE.to_string());

    kill_process(Pid::from_child(&server.0), Signal::TERM).expect("our own child");
    let status = wait_for("the server's end", deadline, || server.0.try_wait().expect("our child"));
    assert!(status.success(), "{status}");
}
