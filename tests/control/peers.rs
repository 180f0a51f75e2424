//! Who is listened to, and what strangers can do: nothing to the disk.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::common::programs::{have, program, run, skip};

/// A user that owns nothing here.
const NOBODY: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];

/// Connects to a unix socket, says a line, prints the answer or why there is none.
const SPEAK: &str = r#"use Socket; $SIG{PIPE} = 'IGNORE'; socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die; $| = 1;
    unless (connect($s, pack_sockaddr_un($ARGV[0]))) { print "connect: $!\n"; exit }
    syswrite($s, "$ARGV[1]\n"); print while <$s>; print "end\n";"#;

/// Listens on a unix socket, says so, and prints what it is told.
const LISTEN: &str = r#"use Socket; socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die; $| = 1;
    bind($s, pack_sockaddr_un($ARGV[0])) or die "bind: $!"; chmod 0666, $ARGV[0]; listen($s, 9) or die;
    print "listening\n"; while (accept(my $c, $s)) { print while <$c>; print "end\n" }"#;

/// Whether we may become another user.
fn may_become_nobody() -> bool {
    if !rustix::process::geteuid().is_root() {
        skip("becoming another user needs root");
        return false;
    }
    have(&["setpriv", "perl"])
}

fn mode(path: &std::path::Path) -> u32 {
    std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777
}

fn set_mode(path: &std::path::Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("it is ours");
}

#[test]
fn the_socket_is_for_our_user_alone_and_goes_with_the_server() {
    let desk = Desk::with_volume();
    let mut server = serve(&desk);
    let path = socket(&desk);
    assert_eq!((mode(&path), mode(&desk.path("control"))), (0o600, 0o700));
    let answer = say(&mut raw(&desk), &ask("status"));
    let status: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    let status = &status["ok"]["status"];
    assert_eq!((&status["state"], &status["export"]), (&"running".into(), &EXPORT.into()), "{answer}");
    assert_eq!(status["pid"], server.id());
    assert_eq!(server.stop(Signal::TERM), 0);
    assert!(!path.exists());
}

#[test]
fn another_user_is_not_listened_to_even_where_the_file_lets_it_in() {
    if !may_become_nobody() {
        return;
    }
    let desk = Desk::with_volume();
    let _server = serve(&desk);
    let path = socket(&desk);
    let speak = |line: &str| {
        let mut command = program("setpriv");
        run(command.args(NOBODY).args(["perl", "-e", SPEAK]).arg(&path).arg(line))
    };
    set_mode(desk.dir(), 0o755);
    set_mode(&desk.path("control"), 0o755);
    assert_eq!(speak(&ask("status")), "connect: Permission denied\n", "the mode of the socket alone");
    set_mode(&path, 0o666);
    for what in ["status", "header", "suspend", "resume", "stop"] {
        assert_eq!(
            speak(&ask(what)),
            "{\"error\":{\"code\":\"refused\",\"message\":\"only the user who serves the volume, and root, are \
             listened to\"}}\nend\n",
            "{what}"
        );
    }
    assert_eq!(Post::open(&desk).state(), State::Running);
}

#[test]
fn no_key_is_given_to_a_process_of_another_user() {
    if !may_become_nobody() {
        return;
    }
    let desk = Desk::with_volume();
    let control = desk.path("control");
    std::fs::create_dir(&control).expect("the directory is ours");
    set_mode(desk.dir(), 0o755);
    set_mode(&control, 0o777);
    let log = desk.path("heard");
    let output = std::fs::File::create(&log).expect("the directory is ours");
    let mut command = program("setpriv");
    command.args(NOBODY).args(["perl", "-e", LISTEN]).arg(socket(&desk));
    let mut impostor = command.stdin(Stdio::null()).stdout(output).spawn().expect("perl starts");
    let heard = || std::fs::read_to_string(&log).expect("the log is ours");
    wait_for("the impostor", ANSWER_MAX, || heard().contains("listening").then_some(()));
    for args in [
        &["resume", "vol", "--slot", "keyfile:key"][..],
        &["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:new"],
    ] {
        desk.fails(11, "served by another user", args);
    }
    assert!(heard().lines().all(|line| ["listening", "end"].contains(&line)), "{}", heard());
    // `timeout` passes it on.
    kill_process(Pid::from_child(&impostor), Signal::TERM).expect("our own child");
    impostor.wait().expect("our own child");
}

#[test]
fn garbage_and_a_thousand_connections_do_not_disturb_the_disk() {
    let desk = Desk::with_volume();
    let server = serve(&desk);
    let mut client = server.connect(EXPORT);
    let mut number = 0u8;
    let mut disk_works = || {
        number += 1;
        client.write(4096 * u64::from(number), &[number; 4096], 1).expect("written");
        assert_eq!(client.read(4096 * u64::from(number), 4096).expect("read"), [number; 4096]);
    };
    let malformed = r#"{"error":{"code":"malformed","message":"not a request of this protocol"}}"#;
    for line in ["", "GET / HTTP/1.1", "\0\0\0\0", "{\"sealbd_control\":1}", &"[".repeat(50_000)] {
        assert_eq!(say(&mut raw(&desk), line), malformed, "{line:.20}");
        disk_works();
    }
    // Longer than any line: whoever sends on is cut off.
    let mut stream = raw(&desk);
    let sent = (0..100).find_map(|_| stream.write_all(&[b'x'; 65536]).err());
    assert!(sent.is_some(), "6 MiB are not taken");
    disk_works();

    // Half-open ones: those beyond the places wait in the queue of the kernel, those beyond that are refused.
    let path = socket(&desk);
    let mut open = Vec::new();
    let mut refused = 0;
    for _ in 0..1000 {
        let socket = rustix::net::socket_with(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
            rustix::net::SocketFlags::NONBLOCK | rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .expect("a descriptor is free");
        let address = rustix::net::SocketAddrUnix::new(&path).expect("a short path");
        match rustix::net::connect(&socket, &address) {
            Ok(()) => open.push(UnixStream::from(socket)),
            Err(error) => {
                assert_eq!(error, rustix::io::Errno::AGAIN);
                refused += 1;
            }
        }
    }
    assert!((8..300).contains(&open.len()), "{} are kept, {refused} refused", open.len());
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", server.id())).expect("our own child").count();
    assert!(descriptors < 60, "{descriptors} descriptors");
    disk_works();
    for stream in &mut open[..8] {
        stream.set_nonblocking(false).expect("our own socket");
        stream.set_read_timeout(Some(ANSWER_MAX)).expect("our own socket");
        let mut answer = Vec::new();
        // Whoever is silent is cut off, and the next in the queue has its place.
        stream.read_to_end(&mut answer).expect("the end");
        assert!(answer.is_empty());
    }
    drop(open);
    assert_eq!(Post::open(&desk).state(), State::Running);
    disk_works();
}
