//! What `packaging/` promises: systemd understands every line of the units, and the command line in them serves a volume
//! on a socket that was handed over, with a keyfile from the credentials directory.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::programs::{call, have, outcome, program, record_in, wait_for};
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
fn the_recipe_for_logrotate_keeps_the_chain() {
    if !have(&["logrotate"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let log = dir.path().join("audit.jsonl");
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/logrotate/sealbd");
    let text = std::fs::read_to_string(recipe).expect("the recipe");
    let (text, _) = text.split_once("\n}\n").expect("the first of two");
    let text = text.replace("/var/log/sealbd/audit.jsonl", &log.display().to_string());
    std::fs::write(dir.path().join("recipe"), format!("{text}\n}}\n")).expect("ours");
    let sealbd = |words: &[&str]| {
        let mut command = program(env!("CARGO_BIN_EXE_sealbd"));
        let command = record_in(&mut command, &log).args(words).current_dir(dir.path());
        let told = outcome(command);
        (told.status.code(), String::from_utf8_lossy(&told.stdout).into_owned())
    };
    for _ in 0..3 {
        assert_eq!(sealbd(&["check", "none", "--slot", "keyfile:none"]).0, Some(4));
        assert_eq!(sealbd(&["check", "none", "--slot", "keyfile:none"]).0, Some(4));
        let mut rotate = program("logrotate");
        rotate.args(["--force", "--state", "state", "recipe"]).current_dir(dir.path());
        let told = outcome(&mut rotate);
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        assert!(!log.exists());
    }
    assert_eq!(sealbd(&["check", "none", "--slot", "keyfile:none"]).0, Some(4));
    let whole = format!(
        "cd {} && {{ zcat $(ls -v -r audit.jsonl.*.gz); cat audit.jsonl.1 audit.jsonl; }} > whole",
        dir.path().display()
    );
    call("sh", &["-c", &whole]);
    let (code, told) = sealbd(&["audit", "verify", "whole"]);
    assert!(code == Some(0) && told.contains("whole: 7 records, every one follows"), "{told}");
    let (code, told) = sealbd(&["audit", "verify", "audit.jsonl.1", "audit.jsonl"]);
    assert!(code == Some(0) && told.contains("begins with record 5"), "{told}");
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
    // As systemd names the directory of LogsDirectory=.
    server.arg("-E").arg(format!("LOGS_DIRECTORY={dir}/log")).args(["-E", "SEALBD_AUDIT_JOURNAL="]);
    server.args(words.split(' ')).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut server = Ends(server.spawn().expect("starts"));
    let deadline = Duration::from_secs(SECONDS_MAX);
    wait_for("the socket", deadline, || socket.exists().then_some(()));

    let uri = format!("nbd+unix:///vol?socket={}", socket.display());
    assert_eq!(call("nbdinfo", &["--size", &uri]).trim(), SIZE.to_string());

    kill_process(Pid::from_child(&server.0), Signal::TERM).expect("our own child");
    let status = wait_for("the server's end", deadline, || server.0.try_wait().expect("our child"));
    assert!(status.success(), "{status}");
    let log = std::fs::read_to_string(served.dir().join("log/audit.jsonl")).expect("the log of the service");
    assert_eq!(log.lines().filter(|line| line.contains("\"verb\":\"serve\"")).count(), 2, "{log}");
}
