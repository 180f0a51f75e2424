//! The Linux kernel's own NBD client, and a disk that QEMU brings, in the small virtual machine of `tests/vm`. The
//! machine is built from Debian packages at the first run; without network for that the tests are skipped or fail as
//! the other client tests do.

mod common;

use common::programs::{have, outcome, program_within, skip};
use common::served::{EXPORT, Served};

const GIB: u64 = 1 << 30;
/// Building the machine takes 10 s with a warm package mirror; a boot with its file systems 20 s under emulation.
const MACHINE_SECONDS_MAX: u64 = 400;

fn machine_is_there() -> bool {
    if !have(&["apt-get", "dpkg-deb", "nbd-client", "mkfs.ext4", "mkfs.xfs", "xz"]) {
        return false;
    }
    let build = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vm/build");
    let output = outcome(&mut program_within(build, MACHINE_SECONDS_MAX));
    if !output.status.success() {
        skip(&format!("the machine cannot be built: {}", String::from_utf8_lossy(&output.stderr)));
    }
    output.status.success()
}

fn boot(arguments: &[&str]) {
    let run = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vm/run");
    common::programs::run(program_within(run, MACHINE_SECONDS_MAX).args(arguments));
}

/// Two file systems are made and filled in one boot; the server restarts; a second boot checks, compares and discards.
fn kernel_client(block_size: &str, connections: &str) {
    if !machine_is_there() {
        return;
    }
    let mut served = Served::tcp(GIB);
    boot(&["kernel", &served.port().to_string(), EXPORT, block_size, connections]);
    served.restart();
    boot(&["kernel-again", &served.port().to_string(), EXPORT, block_size, connections]);
    assert!(served.stop().success());
}

#[test]
fn the_kernel_client_with_512_byte_blocks() {
    kernel_client("512", "1");
}

#[test]
fn the_kernel_client_with_4096_byte_blocks() {
    kernel_client("4096", "1");
}

#[test]
fn the_kernel_client_over_two_connections() {
    kernel_client("512", "2");
}

#[test]
fn a_virtual_machine_has_its_disk_from_qemus_own_client() {
    if !machine_is_there() {
        return;
    }
    let mut served = Served::unix(GIB);
    boot(&["disk", served.socket().to_str().expect("ascii"), EXPORT]);
    served.restart();
    boot(&["disk-again", served.socket().to_str().expect("ascii"), EXPORT]);
    assert!(served.stop().success());
}
