//! Claims about a real `sealbd serve` whose store fails under it: nothing is acknowledged that is not so, nothing that
//! was acknowledged is lost, the log names the cause and what to do, and it goes on when the cause is gone.
#![allow(clippy::print_stderr, reason = "a skipped test says why")]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use common::client::{Client, FUA, Failure};
use common::pattern::{BLOCK_LEN, Random, filled, stamp_of};
use common::programs::{call, have, may_mount, outcome, poll, program, wait_for};
use common::served::{Listen, Served};

/// Larger than the file systems of these tests.
const VOLUME_LEN: u64 = 256 << 20;
/// One write.
const CHUNK: usize = 64 << 10;
/// NBD's error values.
const EIO: u32 = 5;
const ENOSPC: u32 = 28;

/// What a client knows: by offset, the stamps that a chunk may have. One once it was acknowledged; one more for each
/// write since that failed, for nobody knows how far that came.
#[derive(Default)]
struct Model(BTreeMap<u64, Vec<u64>>);

impl Model {
    /// Writes a chunk; what the server said.
    fn write(&mut self, client: &mut Client, offset: u64, stamp: u64, flags: u16) -> Result<(), u32> {
        let known = self.0.entry(offset).or_insert_with(|| vec![0]);
        match client.write(offset, &filled(offset, CHUNK, stamp), flags) {
            Ok(()) => {
                *known = vec![stamp];
                Ok(())
            }
            Err(Failure::Refused(error)) => {
                known.push(stamp);
                Err(error)
            }
            Err(lost) => panic!("the connection is lost: {lost:?}"),
        }
    }

    /// Every chunk holds what it may; a read that fails is told by its error.
    fn holds(&self, client: &mut Client) -> Result<(), u32> {
        let mut failed = Ok(());
        for (&offset, known) in &self.0 {
            let data = match client.read(offset, CHUNK) {
                Ok(data) => data,
                Err(Failure::Refused(error)) => {
                    failed = Err(error);
                    continue;
                }
                Err(lost) => panic!("the connection is lost: {lost:?}"),
            };
            for (i, block) in data.chunks_exact(BLOCK_LEN).enumerate() {
                let at = offset + (i * BLOCK_LEN) as u64;
                let stamp = if block.iter().all(|&byte| byte == 0) { Some(0) } else { stamp_of(block, at) };
                let right = stamp.is_some_and(|stamp| known.contains(&stamp));
                assert!(right, "byte {at} holds {stamp:x?}, may hold {known:x?}");
            }
        }
        failed
    }
}

/// A small file system in memory, unmounted when dropped; its mount point is removed after that.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(mib: u32) -> Self {
        let small = Self(tempfile::tempdir().expect("a temporary directory"));
        let size = format!("size={mib}m");
        call("mount", &["-t", "tmpfs", "-o", &size, "sealbd-test", &small.path().display().to_string()]);
        small
    }

    fn remount(&self, option: &str) {
        call("mount", &["-o", &format!("remount,{option}"), &self.path().display().to_string()]);
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = outcome(program("umount").arg("--lazy").arg(self.path()));
    }
}

/// A volume that is not yet served, on a file in a directory of the caller's.
fn volume_in(directory: &Path) -> Served {
    Served::formatted(VOLUME_LEN, Listen::Unix, Some(directory.join("volume").display().to_string()))
}

/// One on a small file system of its own, which is dropped after it; nothing where none can be mounted.
fn volume_on(mib: u32) -> Option<(Small, Served)> {
    may_mount().then(|| {
        let small = Small::mount(mib);
        let served = volume_in(small.path());
        (small, served)
    })
}

/// Tries to serve it, which fails.
fn refused(served: &Served) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = outcome(&mut within(served.serve_command()));
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

/// The same command line; a server that starts after all ends by itself.
fn within(command: Command) -> Command {
    let mut limited = program("timeout");
    limited.arg("20").arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            limited.env(name, value);
        }
    }
    limited
}

#[test]
fn a_full_disk_is_told_as_such_and_writes_go_on_without_a_restart_once_there_is_room() {
    let Some((small, mut served)) = volume_on(64) else { return };
    let ballast = small.path().join("ballast");
    fs::write(&ballast, vec![1; 24 << 20]).expect("there is room");
    served.start();
    let mut client = served.connect();
    let (mut model, mut random) = (Model::default(), Random::new(1));
    let mut offsets = (0..).map(|number| number * CHUNK as u64);
    let error = offsets.by_ref().find_map(|at| model.write(&mut client, at, random.next() | 1, 0).err());
    assert_eq!(error, Some(ENOSPC));
    assert!(model.0.len() > 100, "{} writes found room", model.0.len());
    // Full is full: nothing is acknowledged, what was is there, on this connection and another one.
    for at in offsets.by_ref().take(20) {
        assert_eq!(model.write(&mut client, at, random.next() | 1, FUA), Err(ENOSPC));
    }
    assert_eq!(model.holds(&mut client), Ok(()));
    assert_eq!(model.holds(&mut served.connect()), Ok(()));
    let log = served.log_text();
    assert!(log.contains("no space left on the backing store"), "{log}");
    assert!(log.contains("next: make room on the file system of the backend"), "{log}");

    fs::remove_file(&ballast).expect("ours");
    for at in offsets.by_ref().take(50) {
        assert_eq!(model.write(&mut client, at, random.next() | 1, FUA), Ok(()), "there is room");
    }
    assert_eq!(model.holds(&mut client), Ok(()));
    drop(client);
    served.restart();
    assert_eq!(model.holds(&mut served.connect()), Ok(()));
    assert!(served.stop().success() && !served.log_text().contains("panicked"), "{}", served.log_text());
}

#[test]
fn a_server_killed_on_a_full_disk_loses_nothing_and_opens_once_there_is_room() {
    let Some((small, mut served)) = volume_on(40) else { return };
    served.start();
    let mut client = served.connect();
    let (mut model, mut random) = (Model::default(), Random::new(2));
    let mut offsets = (0..).map(|number| number * CHUNK as u64);
    let error = offsets.by_ref().find_map(|at| model.write(&mut client, at, random.next() | 1, 0).err());
    assert_eq!(error, Some(ENOSPC));
    drop(client);
    served.kill9();
    let (code, said) = refused(&served);
    assert_eq!(code, Some(11), "{said}");
    assert!(
        said.contains("no space left on the backing store\nnext: make room on the file system"),
        "{said}"
    );
    small.remount("size=80m");
    served.start();
    let mut client = served.connect();
    assert_eq!(model.holds(&mut client), Ok(()));
    assert_eq!(model.write(&mut client, 0, 99, FUA), Ok(()));
    drop(client);
    assert!(served.stop().success() && !served.log_text().contains("panicked"), "{}", served.log_text());
}

#[test]
fn a_volume_on_a_read_only_file_system_is_refused_with_the_cause_and_served_read_only() {
    let Some((small, mut served)) = volume_on(64) else { return };
    served.start();
    let mut model = Model::default();
    let mut client = served.connect();
    assert_eq!(model.write(&mut client, 0, 7, FUA), Ok(()));
    drop(client);
    assert!(served.stop().success());
    small.remount("ro");
    let (code, said) = refused(&served);
    assert!(code.is_some_and(|code| code != 0 && code != 124), "{code:?}: {said}");
    assert!(said.contains("Read-only file system") && said.contains("\nnext: "), "{said}");
    let mut read_only = served.serve_command();
    let mut reading =
        read_only.arg("--read-only").stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    let mut client = wait_for("the read-only server", Duration::from_secs(20), || served.try_connect().ok());
    assert_eq!(model.holds(&mut client), Ok(()));
    drop(client);
    reading.kill().and_then(|()| reading.wait()).expect("our own child");
    small.remount("rw");
    served.start();
    let mut client = served.connect();
    assert_eq!(model.holds(&mut client), Ok(()));
    assert_eq!(model.write(&mut client, 0, 8, FUA), Ok(()), "it can be written again");
    drop(client);
    assert!(served.stop().success());
}

#[test]
fn a_file_cut_short_while_open_gives_errors_never_other_data_and_its_copy_put_back_has_all() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let mut served = volume_in(place.path());
    let (image, copy) = (place.path().join("volume"), place.path().join("copy"));
    served.start();
    let mut client = served.connect();
    let (mut model, mut random) = (Model::default(), Random::new(3));
    for number in 0..400u64 {
        model.write(&mut client, number * CHUNK as u64, random.next() | 1, 0).expect("written");
    }
    client.flush().expect("flushed");
    fs::copy(&image, &copy).expect("there is room");
    let file = OpenOptions::new().write(true).open(&image).expect("ours");
    let len = file.metadata().expect("ours").len();
    file.set_len(12 << 20).expect("cut");
    assert_eq!(model.holds(&mut client), Err(EIO));
    let log = served.log_text();
    assert!(log.contains("requests failed: 1; the last one, of \"vol\": input/output error: "), "{log}");
    assert!(log.contains("\nnext: "), "{log}");
    // As long as before, and zeros where data was: they are no data.
    file.set_len(len).expect("grown");
    assert_eq!(model.holds(&mut client), Err(EIO));
    drop(client);
    served.kill9();
    fs::copy(&copy, &image).expect("put back");
    served.start();
    let mut client = served.connect();
    assert_eq!(model.holds(&mut client), Ok(()));
    assert_eq!(model.write(&mut client, 0, 99, FUA), Ok(()));
    drop(client);
    assert!(served.stop().success() && !served.log_text().contains("panicked"), "{}", served.log_text());
}

/// nbdkit with a switch: while `fails` exists, every request fails with EIO.
struct Failing {
    child: Child,
    fails: PathBuf,
    uri: String,
}

impl Failing {
    fn start(directory: &Path) -> Self {
        let (socket, fails, disk) =
            (directory.join("nbdkit"), directory.join("fails"), directory.join("disk"));
        fs::File::create(&disk).and_then(|file| file.set_len(2 * VOLUME_LEN)).expect("a sparse file");
        let child = Command::new("nbdkit")
            .args(["-f", "-U"])
            .arg(&socket)
            .args(["--filter=error", "file"])
            .arg(&disk)
            .args(["error=EIO", "error-rate=100%", &format!("error-file={}", fails.display())])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nbdkit starts");
        wait_for("nbdkit", Duration::from_secs(20), || socket.exists().then_some(()));
        Self { child, fails, uri: format!("nbd+unix:///?socket={}", socket.display()) }
    }

    fn fail(&self) {
        fs::write(&self.fails, "").expect("the directory is ours");
    }

    fn mend(&self) {
        fs::remove_file(&self.fails).expect("it is there");
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn io_errors_of_the_store_are_told_nothing_answered_is_lost_and_it_goes_on_afterwards() {
    if !have(&["nbdkit"]) {
        return;
    }
    let place = tempfile::tempdir().expect("a temporary directory");
    let store = Failing::start(place.path());
    let mut served = Served::formatted(VOLUME_LEN, Listen::Unix, Some(store.uri.clone()));
    served.start();
    let (mut model, mut random) = (Model::default(), Random::new(4));
    for round in 0..4u64 {
        let mut client = served.connect();
        for number in 0..50 {
            let at = (round * 50 + number) * CHUNK as u64;
            assert_eq!(model.write(&mut client, at, random.next() | 1, 0), Ok(()), "round {round}");
        }
        store.fail();
        for _ in 0..20 {
            let at = random.below(round * 50 + 50) * CHUNK as u64;
            // Durable: what is only accepted may wait in memory.
            let answer = model.write(&mut client, at, random.next() | 1, FUA);
            assert_eq!(answer, Err(EIO), "round {round}");
        }
        let log = served.log_text();
        assert!(
            log.contains("requests failed: ") && log.contains("look for the cause in the backend's own log"),
            "{log}"
        );
        store.mend();
        assert_eq!(model.holds(&mut client), Ok(()), "round {round}: reads go on at once");
        // A failed write is tried again by the volume; a failed flush stops it, since nobody knows what became of what
        // was answered before.
        let goes_on =
            poll(Duration::from_secs(2), || model.write(&mut client, 0, random.next() | 1, FUA).is_ok());
        common::programs::report(&format!("round {round}: writes go on without a restart: {goes_on}"));
        drop(client);
        if !goes_on {
            assert!(served.log_text().contains("stopped"), "{}", served.log_text());
            served.kill9();
            served.start();
            let mut client = served.connect();
            assert_eq!(model.holds(&mut client), Ok(()), "round {round}: after the restart");
        }
    }
    assert!(served.stop().success() && !served.log_text().contains("panicked"), "{}", served.log_text());
}
