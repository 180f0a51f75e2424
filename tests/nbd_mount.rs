//! The main job, end to end: a file system made, filled with a real tree, unmounted, checked, served by another process
//! and compared, over nbdfuse and a loop device. Needs root; skipped or failed like the other client tests.

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::mounted::Disk;
use common::programs::{call, have, may_mount, outcome, poll, program, record_in, run};
use common::served::{Listen, Served, is_control_run};

const GIB: u64 = 1 << 30;
/// The tree that is copied has about this many bytes at most, so that the test stays within a minute.
const TREE_BYTES_MAX: u64 = 300 << 20;

/// Files of 1 MiB in the file system that is resized.
const FILES: u64 = 24;

/// Directories of `/usr/share`, smallest first, as long as they fit; with their number of files.
fn real_tree() -> (Vec<PathBuf>, u64) {
    let mut children: Vec<(u64, u64, PathBuf)> = std::fs::read_dir("/usr/share")
        .expect("/usr/share")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.is_dir() && !path.is_symlink())
        .map(|path| {
            let (bytes, files) = weigh(&path);
            (bytes, files, path)
        })
        .collect();
    children.sort();
    let (mut bytes, mut files, mut chosen) = (0, 0, Vec::new());
    for (child_bytes, child_files, path) in children {
        if bytes + child_bytes <= TREE_BYTES_MAX {
            bytes += child_bytes;
            files += child_files;
            chosen.push(path);
        }
    }
    assert!(bytes > 20 << 20 && files > 1000, "a real tree: {bytes} bytes in {files} files");
    (chosen, files)
}

fn weigh(dir: &Path) -> (u64, u64) {
    let (mut bytes, mut files) = (0, 0);
    for entry in std::fs::read_dir(dir).expect("readable").map(|entry| entry.expect("entry")) {
        let kind = entry.file_type().expect("kind");
        if kind.is_dir() {
            let (b, f) = weigh(&entry.path());
            bytes += b;
            files += f;
        } else if kind.is_file() {
            bytes += entry.metadata().expect("metadata").len().next_multiple_of(4096);
            files += 1;
        }
    }
    (bytes, files)
}

fn a_file_system_survives_a_restart(mkfs: &[&str], check: &[&str], mount_options: &str) {
    if !may_mount() || !have(&["nbdfuse", "fusermount3", "losetup", "mount", "diff", mkfs[0], check[0]]) {
        return;
    }
    let (tree, files) = real_tree();
    // Declared before the disks, so that it outlives them when the test fails.
    let mut served = Served::unix(4 * GIB);

    let mut disk = Disk::attach(&served.uri(), served.dir());
    run(program(mkfs[0]).args(&mkfs[1..]).arg(disk.device()));
    let mount = disk.mount(mount_options);
    run(program("cp").args(["-a", "--"]).args(&tree).arg(&mount));
    disk.unmount();
    run(program(check[0]).args(&check[1..]).arg(disk.device()));
    disk.detach();

    served.restart();

    let mut disk = Disk::attach(&served.uri(), served.dir());
    run(program(check[0]).args(&check[1..]).arg(disk.device()));
    let mount = disk.mount(mount_options);
    for dir in &tree {
        run(program("diff")
            .args(["-r", "--no-dereference"])
            .arg(dir)
            .arg(mount.join(dir.file_name().expect("named"))));
    }
    let found = call("find", &[mount.to_str().expect("ascii"), "-type", "f"]).lines().count() as u64;
    assert_eq!(found, files, "every file is there");
    // Deleting gives the space back through TRIM, and the rest stays sound.
    run(program("rm").arg("-rf").arg(mount.join(tree[0].file_name().expect("named"))));
    disk.unmount();
    run(program(check[0]).args(&check[1..]).arg(disk.device()));
    disk.detach();
    assert!(served.stop().success());
}

#[test]
fn ext4_with_a_real_tree_survives_a_restart() {
    a_file_system_survives_a_restart(&["mkfs.ext4", "-q", "-F"], &["e2fsck", "-fn"], "discard");
}

#[test]
fn xfs_with_a_real_tree_survives_a_restart() {
    // A file system may be mounted twice under one identity only with nouuid; ours is gone before it returns.
    a_file_system_survives_a_restart(&["mkfs.xfs", "-q", "-f"], &["xfs_repair", "-n"], "discard");
}

/// `sealbd resize` of a volume that is served.
fn resize(served: &Served, size: u64) {
    let mut command = program(env!("CARGO_BIN_EXE_sealbd"));
    command.args(["resize", &served.image().display().to_string(), &size.to_string()]);
    // The server of a volume that nobody uses any more notices that a moment later.
    let done = poll(Duration::from_secs(60), || {
        let output = outcome(record_in(&mut command, &served.path("audit.jsonl")));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() || output.status.code() == Some(10), "{text}");
        output.status.success()
    });
    assert!(done, "resized to {size}");
}

#[test]
fn ext4_grows_and_shrinks_with_its_volume_while_it_is_served() {
    let tools = ["nbdfuse", "fusermount3", "losetup", "mkfs.ext4", "e2fsck", "resize2fs", "blkdiscard"];
    if !may_mount() || !have(&tools) || is_control_run() {
        return;
    }
    const SMALL: u64 = GIB / 4;
    // Files that differ everywhere.
    let content =
        |number: u64| (0..1 << 17).flat_map(|word| (number << 32 | word).to_le_bytes()).collect::<Vec<u8>>();
    let same = |root: &Path| {
        for number in 0..FILES {
            let read = std::fs::read(root.join(number.to_string())).expect("the file is there");
            assert!(read == content(number), "file {number}");
        }
    };
    let mut served = Served::unix(SMALL);
    let mut disk = Disk::attach(&served.uri(), served.dir());
    run(program("mkfs.ext4").args(["-q", "-F"]).arg(disk.device()));
    let mount = disk.mount("discard");
    for number in 0..FILES {
        std::fs::write(mount.join(number.to_string()), content(number)).expect("room");
    }
    // Under its eyes; it goes on with the size that it was told.
    resize(&served, GIB);
    same(&mount);
    disk.unmount();
    disk.detach();

    let mut disk = Disk::attach(&served.uri(), served.dir());
    run(program("e2fsck").args(["-f", "-p"]).arg(disk.device()));
    run(program("resize2fs").arg(disk.device()));
    let mount = disk.mount("discard");
    same(&mount);
    let filler = std::fs::File::create(mount.join("filler")).expect("room");
    rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, 2 * SMALL)
        .expect("more than there was");
    drop(filler);
    std::fs::remove_file(mount.join("filler")).expect("ours");
    disk.unmount();
    run(program("e2fsck").args(["-f", "-p"]).arg(disk.device()));
    run(program("resize2fs").arg(disk.device()).arg(format!("{}K", SMALL >> 10)));
    run(program("blkdiscard").args(["--offset", &SMALL.to_string()]).arg(disk.device()));
    disk.detach();
    resize(&served, SMALL);

    let mut disk = Disk::attach(&served.uri(), served.dir());
    assert_eq!(std::fs::metadata(served.path("nbd")).expect("the disk").len(), SMALL);
    run(program("e2fsck").arg("-fn").arg(disk.device()));
    let mount = disk.mount("discard");
    same(&mount);
    disk.unmount();
    disk.detach();
    assert!(served.stop().success());
}

#[test]
fn a_volume_of_4_tib_is_made_at_once_and_stays_thin_and_light() {
    if !may_mount() || !have(&["nbdfuse", "fusermount3", "losetup", "mkfs.xfs", "xfs_repair"]) {
        return;
    }
    if is_control_run() {
        return;
    }
    let begun = Instant::now();
    let mut served = Served::formatted(4096 * GIB, Listen::Unix, None);
    assert!(begun.elapsed() < Duration::from_secs(2), "formatting took {:?}", begun.elapsed());
    served.start();
    let disk = Disk::attach(&served.uri(), served.dir());
    run(program("mkfs.xfs").args(["-q", "-f"]).arg(disk.device()));
    run(program("xfs_repair").arg("-n").arg(disk.device()));
    let stored = std::fs::metadata(served.image()).expect("the volume's file").blocks() * 512;
    assert!(stored < 4096 * GIB / 100, "{stored} bytes are stored");
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", served.pid())).expect("status of the server");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("peak memory");
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(peak < 64 << 10, "{peak} KiB of memory");
    disk.detach();
    assert!(served.stop().success());
}
