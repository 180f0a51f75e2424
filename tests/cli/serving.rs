//! `serve`: every way to listen, several exports, how it ends, and stores that fail underneath.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::common::client::{Client, Failure};
use crate::common::programs::{call, have, may_mount, outcome, program, run, wait_for};
use crate::desk::{Desk, SIZE, Server};

/// NBD errors (proto.md, "Error values").
const EPERM: u32 = 1;
const EIO: u32 = 5;
const ENOSPC: u32 = 28;

#[test]
fn it_listens_on_a_private_unix_socket_until_sigterm_or_sigint_and_then_leaves_nothing_behind() {
    for signal in [Signal::TERM, Signal::INT] {
        let desk = Desk::with_volume();
        let mut server = Server::start(&desk, &["vol", "--slot", "keyfile:key", "--pid-file", "pid"]);
        let mode = std::fs::metadata(desk.path("socket")).expect("the socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // It answers connections a moment before it says so in the file.
        let written = || std::fs::read_to_string(desk.path("pid")).ok().filter(|text| text.ends_with('\n'));
        let pid = wait_for("the pid-file", Duration::from_secs(60), written);
        assert_eq!(pid, format!("{}\n", server.id()));

        let mut client = server.connect("vol");
        client.write(0, &[7; 1 << 20], 0).expect("written");
        assert_eq!(server.stop(signal), 0, "{}", server.log());
        assert!(!desk.path("socket").exists() && !desk.path("pid").exists());
        // The last root holds everything: nothing is left for a replay.
        let report = desk.json(&["check", "vol", "--deep", "--slot", "keyfile:key"]);
        assert_eq!(report["verified_sectors"], 256);
        assert!(report["pages"].as_u64().expect("a count") > 0, "{report}");
    }
}

#[test]
fn the_socket_of_a_killed_server_is_replaced_and_that_of_a_living_one_refused() {
    let desk = Desk::with_volume();
    desk.ok(&["format", "other", "--size", SIZE, "--slot", "keyfile:key", "--no-recovery"]);
    let mut server = Server::start(&desk, &["vol", "--slot", "keyfile:key"]);
    server.connect("vol").write(4096, &[9; 4096], 1).expect("written, durable");
    let other = ["serve", "other", "--slot", "keyfile:key", "-U", "socket"];
    assert_eq!(desk.fails_in_both_forms(5, "in use by a running server", &other), "exists");
    server.stop(Signal::KILL);
    assert!(desk.path("socket").exists(), "nobody was there to remove it");

    let mut server = Server::start(&desk, &["vol", "--slot", "keyfile:key"]);
    assert_eq!(server.connect("vol").read(4096, 4096).expect("read"), [9; 4096]);
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
}

#[test]
fn addresses_that_cannot_be_had_are_refused_with_a_way_out() {
    let desk = Desk::with_volume();
    let serve = |words: &[&'static str]| [&["serve", "vol", "--slot", "keyfile:key"][..], words].concat();
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = taken.local_addr().expect("bound").port().to_string();
    desk.fails(5, "in use", &[&serve(&["-p"])[..], &[&port]].concat());
    assert_eq!(
        desk.fails_in_both_forms(13, "without TLS", &serve(&["-p", "0", "--bind", "0.0.0.0"])),
        "refused"
    );
    desk.fails(5, "not a socket", &serve(&["-U", "key"]));
    desk.fails(1, "No such file", &serve(&["-U", "none/socket"]));
    desk.fails(1, "cannot write the pid-file", &serve(&["-p", "0", "--pid-file", "none/pid"]));
    desk.fails(1, "nowhere to listen", &serve(&[]));
    desk.fails(1, "neither a socket nor pipes", &serve(&["--stdio"]));
    desk.fails(1, "1 names for 2", &serve(&["vol", "-p", "0", "--name", "a"]));
    desk.fails(1, "two exports are named \"vol\"", &serve(&["vol", "-p", "0"]));
    desk.fails(10, "in use by another process", &serve(&["vol", "-p", "0", "-x", "a", "-x", "b"]));
}

#[test]
fn the_command_of_run_gets_the_address_and_gives_the_exit_code() {
    let desk = Desk::with_volume();
    let run = |listen: &[&str], command: &str| {
        desk.run(&[&["serve", "vol", "--slot", "keyfile:key"][..], listen, &["--run", command]].concat())
    };
    let ended = run(&[], "echo \"$uri|$exportname|$port|$unixsocket\"; test -S \"$unixsocket\" && exit 7");
    assert_eq!(ended.code, 7, "{}", ended.stderr);
    let parts: Vec<&str> = ended.stdout.trim().split('|').collect();
    assert_eq!(parts[0], format!("nbd+unix:///vol?socket={}", parts[3]));
    assert_eq!(parts[1..3], ["vol", ""]);
    assert!(!Path::new(parts[3]).exists(), "its directory goes, too");

    let ended = run(&["-p", "0"], "echo \"$uri|$port|$unixsocket\"");
    assert_eq!(ended.code, 0);
    let parts: Vec<&str> = ended.stdout.trim().split('|').collect();
    assert_eq!((parts[0], parts[2]), (&*format!("nbd://127.0.0.1:{}/vol", parts[1]), ""));
    assert_eq!(run(&[], "kill -9 $$").code, 128 + 9);
    assert_eq!(run(&[], "exit 0").code, 0);
}

#[test]
fn a_server_that_is_told_to_stop_tells_the_command_of_run() {
    let desk = Desk::with_volume();
    let command = "trap 'echo told > told; exit 3' TERM; echo up > up; while :; do sleep 0.05; done";
    let mut server = Server::start(&desk, &["vol", "--slot", "keyfile:key", "--run", command]);
    wait_for("the command", Duration::from_secs(30), || desk.path("up").exists().then_some(()));
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
    wait_for("the command's end", Duration::from_secs(30), || desk.path("told").exists().then_some(()));
}

#[test]
fn several_volumes_are_several_exports() {
    let desk = Desk::with_volume();
    desk.ok(&["format", "two", "--size", "17M", "--slot", "keyfile:key2", "--no-recovery"]);
    let keys = ["--slot", "keyfile:key", "--slot", "keyfile:key2"];
    let mut server = Server::start(&desk, &[&["vol", "two"][..], &keys].concat());
    assert_eq!(server.connect("vol").size(), 16 << 20);
    assert_eq!(server.connect("two").size(), 17 << 20);
    server.connect("two").write(0, b"only in two", 0).expect("written");
    assert_eq!(server.connect("vol").read(0, 11).expect("read"), [0; 11]);
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());

    let mut server = Server::start(&desk, &[&["vol", "two", "-x", "a", "-x", "b c"][..], &keys].concat());
    assert_eq!(server.connect("b c").read(0, 11).expect("read"), b"only in two");
    assert!(server.log().contains("/b%20c?"), "{}", server.log());
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
}

#[test]
fn read_only_refuses_changes_and_writes_nothing() {
    let desk = Desk::with_volume();
    let before = desk.bytes("vol");
    let mut server = Server::start(&desk, &["vol", "--slot", "keyfile:key", "--read-only"]);
    let mut client = server.connect("vol");
    assert!(matches!(client.write(0, &[1; 4096], 0), Err(Failure::Refused(EPERM))));
    assert_eq!(client.read(0, 4096).expect("read"), [0; 4096]);
    // Readers share it; a writer is refused.
    desk.ok(&["check", "vol", "--slot", "keyfile:key"]);
    desk.fails(10, "in use", &["key", "add", "vol", "--slot", "keyfile:key", "--new-slot", "keyfile:two"]);
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
    assert_eq!(desk.bytes("vol"), before);
}

#[test]
fn a_volume_is_served_past_the_page_cache() {
    // Under `target`: the directory for temporary files may be a file system that has nothing but a cache.
    let desk = Desk::in_directory(Path::new(env!("CARGO_TARGET_TMPDIR")));
    desk.ok(&["format", "vol", "--size", SIZE, "--slot", "keyfile:key", "--no-recovery"]);
    for (direct, fill) in [(&["--direct"][..], 1), (&[], 2), (&["--direct"], 3)] {
        let mut server = Server::start(&desk, &[&["vol", "--slot", "keyfile:key"][..], direct].concat());
        let mut client = server.connect("vol");
        for other in 1..fill {
            let at = u64::from(other) * 100_000;
            assert_eq!(client.read(at, 70_000).expect("read"), [other; 70_000]);
        }
        client.write(u64::from(fill) * 100_000, &[fill; 70_000], 0).expect("written");
        assert_eq!(client.read(u64::from(fill) * 100_000, 70_000).expect("read"), [fill; 70_000]);
        assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
    }
    desk.ok(&["check", "vol", "--slot", "keyfile:key", "--deep"]);
    let memory = ["serve", "nbd+unix:///x?socket=/nowhere", "--slot", "keyfile:key", "--direct", "-U", "s"];
    desk.fails(1, "O_DIRECT", &memory);
}

#[test]
fn a_socket_handed_over_is_served() {
    if !have(&["nbdinfo", "nbdsh"]) {
        return;
    }
    let desk = Desk::with_volume();
    let sealbd = env!("CARGO_BIN_EXE_sealbd");
    // libnbd's `[ … ]` is socket activation as systemd does it (LISTEN_FDS).
    let serve = [sealbd, "serve", "vol", "--slot", "keyfile:key"];
    let words = [&["--size", "--", "["][..], &serve, &["]"]].concat();
    assert_eq!(run(program("nbdinfo").args(words).current_dir(desk.dir())), "16777216\n");
    // And one connection on standard input and output.
    let words: Vec<String> = serve.iter().chain(&["--stdio"]).map(|word| format!("{word:?}")).collect();
    let script =
        format!("h.connect_command([{}]); h.pwrite(b'x' * 4096, 0); print(h.pread(2, 0))", words.join(","));
    let told = run(program("nbdsh").args(["-c", &script]).current_dir(desk.dir()));
    assert!(told.contains("xx"), "{told}");
    wait_for("the end of the server", Duration::from_secs(30), || {
        (desk.run(&["check", "vol", "--slot", "keyfile:key"]).code == 0).then_some(())
    });
}

#[test]
fn a_full_disk_is_no_space_for_clients_and_works_again_once_there_is_room() {
    if !may_mount() {
        return;
    }
    let desk = Desk::new();
    let small = Tmpfs::mount(&desk, 24 << 20);
    desk.ok(&["format", "small/vol", "--size", "64M", "--slot", "keyfile:key", "--no-recovery"]);
    std::fs::write(desk.path("small/ballast"), vec![1; 8 << 20]).expect("room for the ballast");
    let mut server = Server::start(&desk, &["small/vol", "--slot", "keyfile:key"]);
    let mut client = server.connect("vol");
    let megabyte = |number: u64| vec![u8::try_from(number + 1).expect("few"); 1 << 20];
    let full = (0..64).find_map(|number| match client.write(number << 20, &megabyte(number), 0) {
        Ok(()) => None,
        Err(Failure::Refused(error)) => Some((number, error)),
        Err(Failure::Lost(error)) => panic!("connection lost: {error}; {}", server.log()),
    });
    let (number, error) = full.expect("the file system is smaller than the volume");
    assert_eq!(error, ENOSPC);
    assert!(number > 4, "room for some");
    assert_eq!(client.read(0, 1 << 20).expect("what was written is there"), megabyte(0));

    std::fs::remove_file(desk.path("small/ballast")).expect("the ballast is ours");
    client.write(number << 20, &megabyte(number), 0).expect("there is room now");
    client.flush().expect("flushed");
    assert_eq!(client.read(number << 20, 1 << 20).expect("read"), megabyte(number));
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
    assert!(!server.log().contains("panicked"), "{}", server.log());
    let mut server = Server::start(&desk, &["small/vol", "--slot", "keyfile:key"]);
    for written in 0..=number {
        let read = server.connect("vol").read(written << 20, 1 << 20).expect("read");
        assert!(read == megabyte(written), "megabyte {written} is whole");
    }
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
    desk.ok(&["check", "small/vol", "--deep", "--slot", "keyfile:key"]);
    drop(small);
}

#[test]
fn a_file_cut_short_while_it_is_served_gives_errors_and_no_zeros() {
    let desk = Desk::with_volume();
    let mut server = Server::start(&desk, &["vol", "--slot", "keyfile:key"]);
    let mut client = server.connect("vol");
    client.write(0, &[5; 1 << 20], 1).expect("written, durable");
    let cut = std::fs::File::options().write(true).open(desk.path("vol"));
    cut.and_then(|file| file.set_len(3 << 20)).expect("the volume is ours");
    let read = client.read(0, 1 << 20);
    assert!(matches!(read, Err(Failure::Refused(EIO))), "{read:?}");
    server.stop(Signal::TERM);
    assert!(!server.log().contains("panicked"), "{}", server.log());
    desk.fails(4, "the volume needs", &["check", "vol", "--slot", "keyfile:key"]);
}

/// A small file system at `small`, until dropped.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn mount(desk: &Desk, size: u64) -> Self {
        let place = desk.path("small");
        std::fs::create_dir(&place).expect("the directory is ours");
        call("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "none", &place.display().to_string()]);
        Self(place)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: on a failure the server may still have it open.
        let _ = outcome(program("umount").arg("--lazy").arg(&self.0));
    }
}

#[test]
fn tcp_is_served_on_the_loopback_address() {
    let desk = Desk::with_volume();
    let port = crate::servers::free_port();
    let mut server = Server::start(&desk, &["vol", "--slot", "keyfile:key", "-p", &port.to_string()]);
    // A server that answers on one address listens on all.
    assert_eq!(server.connect("vol").size(), 16 << 20);
    assert_eq!(Client::tcp(port, "vol").expect("connected").size(), 16 << 20);
    assert!(server.log().contains(&format!("and nbd://127.0.0.1:{port}/vol")), "{}", server.log());
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
}

#[test]
fn a_server_stays_within_the_memory_it_is_given_and_tells_of_it() {
    let desk = Desk::with_volume();
    let serve = ["serve", "vol", "--slot", "keyfile:key", "-U", "socket", "--memory", "20M"];
    let needed = "this volume cannot be served in less than";
    assert_eq!(desk.fails_in_both_forms(1, needed, &serve), "usage");
    assert!(desk.fails(1, needed, &serve).starts_with("--memory "), "with a way out");

    let mut server = Server::start(&desk, &["vol", "--slot", "keyfile:key", "--memory", "60M"]);
    let mut client = server.connect("vol");
    let len = usize::try_from(client.size()).expect("small");
    for round in 0..3 {
        (0..len).step_by(1 << 20).for_each(|at| {
            client.write(at as u64, &vec![round; 1 << 20], 0).expect("written");
            assert_eq!(client.read(at as u64, 1 << 20).expect("read"), vec![round; 1 << 20]);
        });
    }
    let status = desk.json(&["status", "vol"]);
    let memory = &status["serving"]["memory"];
    assert_eq!(memory["budget_bytes"], 60 << 20);
    let (now, peak) = (memory["resident_bytes"].as_u64().unwrap(), memory["peak_bytes"].as_u64().unwrap());
    assert!(now <= peak && peak <= 60 << 20, "{memory}");
    let pages = status["volume"]["page_bytes_max"].as_u64().unwrap();
    assert!((4 << 20..16 << 20).contains(&pages), "{pages}");
    assert!(desk.ok(&["status", "vol"]).contains(" of 60.00 MiB"));
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
    // As the configuration has it.
    std::fs::write(desk.path("memory.toml"), "[daemon]\nmemory = '70M'\n").unwrap();
    let mut server = Server::start(&desk, &["vol", "--slot", "keyfile:key", "--config", "memory.toml"]);
    let budget = desk.json(&["status", "vol"])["serving"]["memory"]["budget_bytes"].as_u64();
    assert_eq!(budget, Some(70 << 20));
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
}
