//! Servers that run as a user of their own, and the commands of root.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Signal, geteuid};

use crate::common::programs::{have, record_in, run, skip};
use crate::desk::{AUDIT, Desk, SIZE, Server};

/// `nobody`.
const USER: u32 = 65534;

/// `sealbd` as that user: a copy of it, for the user need not be able to reach where it was built.
fn as_user(desk: &Desk) -> Command {
    let mut command = Command::new("setpriv");
    let user = USER.to_string();
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]).arg(desk.path("sealbd"));
    record_in(&mut command, &desk.path(AUDIT)).current_dir(desk.dir());
    command
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("we are root");
}

#[test]
fn root_commands_the_server_of_another_user_only_where_nobody_else_can_stand_in_for_it() {
    if !geteuid().is_root() {
        return skip("taking another user's identity needs root");
    }
    if !have(&["setpriv"]) {
        return;
    }
    let desk = Desk::new();
    std::fs::copy(env!("CARGO_BIN_EXE_sealbd"), desk.path("sealbd")).expect("room for a copy");
    chown(desk.dir(), Some(USER), Some(USER)).expect("we are root");
    let format = ["format", "vol", "--size", SIZE, "--slot", "keyfile:key", "--no-recovery"];
    run(as_user(&desk).args(format).stdin(Stdio::null()));
    let mut serve = as_user(&desk);
    serve.args(["serve", "vol", "--slot", "keyfile:key", "-U", "socket"]);
    let mut server = Server::start_listening(&desk, serve, "socket");

    desk.ok(&["suspend", "vol"]);
    assert_eq!(desk.json(&["status", "vol"])["serving"]["state"], "suspended");
    desk.ok(&["resume", "vol", "--slot", "keyfile:key"]);
    // Where others can make a socket, one of theirs could be it, and would be sent the key.
    mode(&desk.path("control"), 0o777);
    desk.fails(11, "served by another user", &["suspend", "vol"]);
    mode(&desk.path("control"), 0o700);
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
}
