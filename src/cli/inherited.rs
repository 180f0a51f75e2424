//! Descriptors that this process was started with: they stay with it and are not handed on to programs that it starts.
//!
//! Whoever starts sealbd may have a secret open (`fd:N`), a listening socket (`LISTEN_FDS`), or files of its own that
//! it forgot to mark. A plug-in of a key manager is to have none of them. sealbd itself still reads `fd:N`,
//! `/dev/fd/N` and handed-over sockets: the numbers stay what they were.

use std::os::fd::{AsRawFd, IntoRawFd};

use nix::unistd::close;
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_getfd};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// Marks every open descriptor but the three standard ones close-on-exec. Called before there is any other thread
/// and before anything else was opened, so that every number belongs to whoever started us.
///
/// What cannot be marked stays as it is: some container filters refuse pidfd_getfd(2).
pub(super) fn keep_from_children() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    // The directory's own descriptor is closed when the list is complete.
    let numbers: Vec<i32> = numbers.filter(|number| *number > 2).collect();
    numbers.into_iter().for_each(mark);
}

/// There is no way from a number to its flags without `unsafe`, so a duplicate takes its place: the same open file
/// under the same number.
fn mark(number: i32) {
    let Ok(own) = pidfd_open(getpid(), PidfdFlags::empty()) else { return };
    // With the mark already.
    let Ok(copy) = pidfd_getfd(own, number, PidfdGetfdFlags::empty()) else { return };
    debug_assert!(fcntl_getfd(&copy).is_ok_and(|flags| flags.contains(FdFlags::CLOEXEC)));
    if is_marked(number) || close(number).is_err() {
        return;
    }
    // The lowest free number from there on is the one that was just closed.
    if let Ok(marked) = fcntl_dupfd_cloexec(&copy, number) {
        debug_assert_eq!(marked.as_raw_fd(), number);
        // Whoever was told the number finds it by that; open until the process ends.
        let _ = marked.into_raw_fd();
    }
}

/// Whether the descriptor is marked: the kernel tells in proc(5), `fdinfo`, as O_CLOEXEC in octal.
fn is_marked(number: i32) -> bool {
    const O_CLOEXEC: u32 = 0o2_000_000;
    let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
    let flags = told.lines().find_map(|line| line.strip_prefix("flags:"));
    flags
        .and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok())
        .is_some_and(|flags| flags & O_CLOEXEC != 0)
}
