//! The main job, end to end: a file system made, filled with a real tree, unmounted, checked, served by another process
//! and compared, over nbdfuse and a loop device. Needs root; skipped or failed like the other client tests.

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::mounted::Disk;
use common::programs::{call, have, may_mount, program, run};
use common::served::{Listen, Served, is_control_run};

const GIB: u64 = 1 << 30;
/// The tree that is copied has about this many bytes at most, so that the test stays within a minute.
const TREE_BYTES_MAX: u64 = 300 << 20;

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
