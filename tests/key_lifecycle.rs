//! The life of a key in the key manager of an OpenStack cloud, end to end: a volume formatted under a Barbican secret,
//! served, with a file system on it; its key rotated while fio writes and verifies; restarted; and opened by the
//! recovery words when the cloud is gone.
//!
//! Real are all parts: Keystone and Barbican, nbdfuse, a loop device, ext4, fio. What is typed and what comes
//! back is printed, so `--no-capture` shows it as a transcript.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::client::Client;
use common::mounted::Disk;
use common::programs::{
    call, have, may_mount, outcome, program, program_within, record_in, report, run, wait_for,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Installing the cloud takes a minute where its packages are not cached yet.
const CLOUD_SECONDS_MAX: u64 = 420;
/// How long opening may take when the key manager is gone: its retries end after 15 s (docs/CONFIG.md).
const OUTAGE_SECONDS_MAX: u64 = 30;
const SERVER_SECONDS_MAX: u64 = 60;

/// Keystone and Barbican on loopback.
struct Cloud {
    script: PathBuf,
    dir: tempfile::TempDir,
    says: Vec<(String, String)>,
}

impl Cloud {
    fn start() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("keymgmt/tests/services/barbican");
        let dir = tempfile::Builder::new().prefix("sealbd-cloud-").tempdir().unwrap();
        let name = script.display().to_string();
        // Dropped, and so stopped, also when starting fails half-way.
        let mut cloud = Self { script, dir, says: Vec::new() };
        let text = run(program_within(&name, CLOUD_SECONDS_MAX).arg("start").arg(cloud.dir.path()));
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        cloud.says = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        cloud
    }

    fn says(&self, name: &str) -> &str {
        &self.says.iter().find(|(key, _)| key == name).unwrap_or_else(|| panic!("no {name}")).1
    }

    fn stop(&self) {
        run(program(&self.script.display().to_string()).arg("stop").arg(self.dir.path()));
    }

    /// Which HTTP status the owner of the secret gets when asking for it.
    fn status_of(&self, secret: &str) -> String {
        let default = json!({"name": "Default"});
        let password = self.says("OWNER_PASSWORD");
        let user = json!({"name": "owner", "domain": default, "password": password});
        let project = json!({"project": {"name": "tenant", "domain": default}});
        let login = json!({"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": project}});
        let body = self.dir.path().join("login.json");
        fs::write(&body, login.to_string()).unwrap();
        let body = format!("@{}", body.display());
        let tokens = format!("{}/auth/tokens", self.says("KEYSTONE"));
        let json = "Content-Type: application/json";
        let answer = call("curl", &["-sS", "-D", "-", "-o", "/dev/null", "-H", json, "-d", &body, &tokens]);
        let token = answer.lines().find_map(|line| line.strip_prefix("X-Subject-Token: "));
        let token = format!("X-Auth-Token: {}", token.expect("a token").trim());
        let url = format!("{}/v1/secrets/{secret}", self.says("BARBICAN"));
        call("curl", &["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-H", &token, &url])
    }

    fn log(&self) -> String {
        fs::read_to_string(self.says("LOG")).unwrap()
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        let _ = outcome(program(&self.script.display().to_string()).arg("stop").arg(self.dir.path()));
    }
}

/// A compute host with one configured volume.
struct Host {
    dir: tempfile::TempDir,
}

struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
    took: Duration,
}

impl Host {
    fn new(cloud: &Cloud) -> Self {
        let host = Self { dir: tempfile::Builder::new().prefix("sealbd-host-").tempdir().unwrap() };
        host.write("password", cloud.says("OWNER_PASSWORD"));
        let place = host.dir.path().display();
        host.write(
            "sealbd.toml",
            &format!(
                "[provider.cloud]\ntype = 'barbican'\nauth = {{ method = 'password', url = '{}', username = 'owner', \
                 project = 'tenant', password = 'file:{place}/password' }}\n\n\
                 [volume.db]\nbackend = '{place}/volume'\nslots = ['kms:cloud']\nlisten = 'unix:{place}/socket'\n",
                cloud.says("KEYSTONE"),
            ),
        );
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file that only we can read.
    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(0o600)).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealbd"));
        command.args(arguments).current_dir(self.dir.path()).stdin(Stdio::null());
        record_in(&mut command, &self.path("audit.jsonl"));
        command.env("SEALBD_CONFIG", self.path("sealbd.toml"));
        command
    }

    /// Types a command, and prints it with what came back.
    fn types(&self, arguments: &[&str]) -> Ended {
        let begun = Instant::now();
        let output = outcome(&mut self.command(arguments));
        let took = begun.elapsed();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let ended = Ended {
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
            took,
        };
        report(&format!("$ sealbd {}\n{}{}", arguments.join(" "), ended.stderr, ended.stdout.trim_end()));
        report(&format!("(exit {:?}, {} ms)\n", ended.code.unwrap_or(-1), took.as_millis()));
        ended
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let ended = self.types(arguments);
        assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.stderr);
        ended.stdout
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[arguments, &["--json"]].concat())).unwrap()
    }

    fn serve(&self, arguments: &[&str]) -> Serving {
        let log = fs::File::options().create(true).append(true).open(self.path("serve.log")).unwrap();
        report(&format!("$ sealbd serve db {} &\n", arguments.join(" ")));
        let command = [&["serve", "db"], arguments].concat();
        let child = self.command(&command).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut serving = Serving { child };
        wait_for("the server", Duration::from_secs(SERVER_SECONDS_MAX), || {
            if let Some(status) = serving.child.try_wait().unwrap() {
                panic!("the server ended with {status}: {}", self.log());
            }
            Client::unix(&self.path("socket"), "db").ok().map(drop)
        });
        serving
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("serve.log")).unwrap()
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///db?socket={}", self.path("socket").display())
    }

    /// The secret of Barbican that keyslot 0 names.
    fn secret(&self) -> String {
        let report = self.json(&["list"]);
        let slots = report["volumes"][0]["keks"].as_array().unwrap();
        let slot = slots.iter().find(|slot| slot["type"] == "barbican").unwrap();
        slot["key_id"].as_str().unwrap().to_owned()
    }

    /// Records of the audit log of one verb.
    fn records(&self, verb: &str) -> Vec<Value> {
        let log = fs::read_to_string(self.path("audit.jsonl")).unwrap();
        let records = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        records.filter(|record| record["verb"] == verb).collect()
    }
}

/// `sealbd serve`, killed when dropped.
struct Serving {
    child: Child,
}

impl Serving {
    fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let status =
            wait_for("its end", Duration::from_secs(SERVER_SECONDS_MAX), || self.child.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// fio on a file of the mounted file system: writes, reads back, compares.
fn fio(file: &Path, seconds: u64) -> Child {
    let file = format!("--filename={}", file.display());
    let runtime = format!("--runtime={seconds}");
    let fixed =
        ["--name=verify", "--ioengine=libaio", "--direct=1", "--rw=randrw", "--bs=4k", "--iodepth=16"];
    let checks =
        ["--verify=crc32c", "--verify_fatal=1", "--verify_backlog=256", "--time_based", "--size=32M"];
    let output = ["--output-format=json", "--allow_file_create=1", "--verify_state_save=0"];
    let mut command = program("fio");
    command.args(fixed).args(checks).args(output).args([&file, &runtime]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_barbican_key_from_format_to_the_loss_of_the_cloud() {
    if !may_mount() || !have(&["nbdfuse", "fusermount3", "losetup", "mkfs.ext4", "e2fsck", "fio", "curl"]) {
        return;
    }
    let cloud = Cloud::start();
    let host = Host::new(&cloud);

    // Format: one slot in Barbican, one on paper.
    let made = host.json(&["format", "db", "--size", "256M"]);
    let words = made["recovery_key"].as_str().expect("the words are told once").to_owned();
    let first = host.secret();
    assert_eq!(cloud.status_of(&first), "200");

    // Serve, and make a file system with files on it.
    let serving = host.serve(&[]);
    let mut disk = Disk::attach(&host.uri(), host.dir.path());
    run(program("mkfs.ext4").args(["-q", "-F", disk.device()]));
    let mount = disk.mount("discard");
    run(program("cp").args(["-a", "/usr/share/doc/fio"]).arg(mount.join("kept")));

    // Three rotations online, old versions destroyed, under fio.
    let writer = fio(&mount.join("fio"), 12);
    wait_for("fio's file", Duration::from_secs(30), || mount.join("fio").exists().then_some(()));
    let mut secrets = vec![first];
    for round in 0..3 {
        let dry = host.ok(&["rotate", "db", "--kek", "--retire-old", "--dry-run"]);
        assert!(dry.contains("old version to be destroyed"), "{dry}");
        assert_eq!(&host.secret(), secrets.last().unwrap(), "a dry run changes nothing");
        host.ok(&["rotate", "db", "--kek", "--retire-old"]);
        secrets.push(host.secret());
        assert_eq!(cloud.status_of(&secrets[round]), "404", "the old version is destroyed");
        assert_eq!(cloud.status_of(&secrets[round + 1]), "200");
    }
    let ended = writer.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let figures: Value = serde_json::from_slice(&ended.stdout).unwrap();
    let job = &figures["jobs"][0];
    let (reads, writes) = (&job["read"]["total_ios"], &job["write"]["total_ios"]);
    report(&format!("fio meanwhile: {reads} reads verified, {writes} writes, error {}\n", job["error"]));
    assert_eq!(job["error"], 0);
    assert!(
        writes.as_u64().unwrap() > 1000 && reads.as_u64().unwrap() > 1000,
        "{reads} reads, {writes} writes"
    );
    disk.unmount();
    run(program("e2fsck").args(["-fn", disk.device()]));
    disk.detach();
    serving.stop();

    // Another process, which knows only the new version.
    let serving = host.serve(&[]);
    let mut disk = Disk::attach(&host.uri(), host.dir.path());
    run(program("e2fsck").args(["-fn", disk.device()]));
    let mount = disk.mount("discard");
    run(program("diff").args(["-r", "/usr/share/doc/fio"]).arg(mount.join("kept")));

    // The cloud dies. Whoever is mounted notices nothing.
    cloud.stop();
    report("(Keystone and Barbican are stopped)\n");
    run(program("cp").arg("-a").arg(mount.join("kept")).arg(mount.join("without-cloud")));
    disk.unmount();
    disk.detach();
    serving.stop();

    // Opening by Barbican alone fails within its bounds, as unreachable; by the recovery words it opens.
    let ended = host.types(&["check", "db"]);
    assert_eq!(ended.code, Some(6), "{}", ended.stderr);
    assert!(ended.took < Duration::from_secs(OUTAGE_SECONDS_MAX), "{:?}", ended.took);
    host.write("words", &words);
    let spec = format!("recovery:file:{}", host.path("words").display());
    let serving = host.serve(&["--slot", "kms:cloud", "--slot", &spec]);
    let log = host.log();
    assert!(
        log.contains("slot 0 (barbican): key manager unreachable") && log.contains("slot 1 opens it"),
        "{log}"
    );
    let mut disk = Disk::attach(&host.uri(), host.dir.path());
    run(program("e2fsck").args(["-fn", disk.device()]));
    let mount = disk.mount("discard");
    run(program("diff").args(["-r", "/usr/share/doc/fio"]).arg(mount.join("without-cloud")));
    disk.unmount();
    disk.detach();
    serving.stop();
    report(&host.log());

    // The trail is whole, and names each request as Barbican's own log does.
    host.ok(&["audit", "verify"]);
    let rotations = host.records("rotate");
    let done: Vec<&Value> = rotations.iter().filter(|record| record["outcome"] == "done").collect();
    assert_eq!(done.len(), 3, "{rotations:#?}");
    assert_eq!(rotations.iter().filter(|record| record["outcome"] == "tried").count(), 3, "{rotations:#?}");
    let log = cloud.log();
    for record in done {
        let request = record["request"].as_str().unwrap();
        let seen: Vec<&str> = log.lines().filter(|line| line.contains(request)).collect();
        assert!(!seen.is_empty(), "Barbican knows nothing of {request}");
        report(&format!("rotate {request}: {} lines of Barbican's log\n", seen.len()));
    }
    // Nothing secret in the trail.
    let trail = fs::read_to_string(host.path("audit.jsonl")).unwrap();
    assert!(!trail.contains(cloud.says("OWNER_PASSWORD")) && !trail.contains(&words));
}
