//! A file system on a served volume on a kernel without an NBD client: nbdfuse makes a file of the export, a
//! loop device makes a disk of the file. Taken down in the reverse order, on failure too.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use super::programs::{call, outcome, program, report, wait_for};

/// nbdfuse answers and ends well within this.
const FUSE_SECONDS_MAX: u64 = 30;

/// nbdfuse and a loop device over one export, and perhaps a mount.
pub(crate) struct Disk {
    fuse_file: PathBuf,
    mount_point: PathBuf,
    fuse: Option<Child>,
    device: Option<String>,
    mounted: bool,
}

impl Disk {
    /// Attaches `uri` with its working files in `dir`, which exists.
    pub(crate) fn attach(uri: &str, dir: &Path) -> Self {
        let fuse_file = dir.join("nbd");
        let mount_point = dir.join("mnt");
        std::fs::create_dir_all(&mount_point).expect("mount point");
        std::fs::File::create(&fuse_file).expect("file for nbdfuse to cover");
        let log = std::fs::File::create(dir.join("nbdfuse.log")).expect("log");
        // Without `timeout` before it: this one lives as long as the disk.
        let fuse = std::process::Command::new("nbdfuse")
            .arg(&fuse_file)
            .arg(uri)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("nbdfuse starts");
        let mut disk = Self { fuse_file, mount_point, fuse: Some(fuse), device: None, mounted: false };
        wait_for("nbdfuse", Duration::from_secs(FUSE_SECONDS_MAX), || {
            std::fs::metadata(&disk.fuse_file).is_ok_and(|file| file.len() > 0).then_some(())
        });
        let file = disk.fuse_file.display().to_string();
        disk.device = Some(call("losetup", &["--find", "--show", "--direct-io=on", &file]).trim().to_owned());
        disk
    }

    /// The loop device.
    pub(crate) fn device(&self) -> &str {
        self.device.as_deref().expect("attached")
    }

    /// Mounts it; returns where.
    pub(crate) fn mount(&mut self, options: &str) -> PathBuf {
        let place = self.mount_point.display().to_string();
        call("mount", &["-o", options, self.device(), &place]);
        self.mounted = true;
        self.mount_point.clone()
    }

    /// Unmounts what is mounted.
    pub(crate) fn unmount(&mut self) {
        call("umount", &[&self.mount_point]);
        self.mounted = false;
    }

    /// Takes everything down and expects every step to succeed.
    pub(crate) fn detach(mut self) {
        assert!(self.take_down(), "the disk comes down in order");
    }

    fn take_down(&mut self) -> bool {
        let mut clean = true;
        if std::mem::take(&mut self.mounted) {
            clean &= succeeds("umount", &self.mount_point);
        }
        if let Some(device) = self.device.take() {
            let output = outcome(program("losetup").args(["-d", &device]));
            clean &= output.status.success();
        }
        if let Some(mut fuse) = self.fuse.take() {
            clean &= succeeds_fusermount(&self.fuse_file);
            let ended = super::programs::poll(Duration::from_secs(FUSE_SECONDS_MAX), || {
                fuse.try_wait().expect("our child").is_some()
            });
            if !ended {
                report("nbdfuse does not end by itself");
                let _ = fuse.kill();
                let _ = fuse.wait();
                clean = false;
            }
        }
        clean
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.take_down();
    }
}

fn succeeds(name: &str, argument: &Path) -> bool {
    outcome(program(name).arg(argument)).status.success()
}

/// The loop device lets go of the file a moment after `losetup -d` has returned.
fn succeeds_fusermount(file: &Path) -> bool {
    super::programs::poll(Duration::from_secs(FUSE_SECONDS_MAX), || {
        outcome(program("fusermount3").arg("-u").arg(file)).status.success()
    })
}
