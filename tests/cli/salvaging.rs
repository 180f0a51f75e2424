//! `sealbd check --salvage OUT`: a raw copy, compared with what a client read before the damage.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::common::programs::wait_for;
use crate::desk::{Desk, Server};

const KEY: [&str; 2] = ["--slot", "keyfile:key"];

/// Fills some of the volume and gives what a client reads from all of it.
fn filled(desk: &Desk, pieces: &[(u64, usize, u8)]) -> Vec<u8> {
    let mut server = Server::start(desk, &[&["vol"][..], &KEY].concat());
    let mut client = server.connect("vol");
    for (at, len, fill) in pieces {
        client.write(*at, &vec![*fill; *len], 0).expect("written");
    }
    client.flush().expect("flushed");
    let size = usize::try_from(client.size()).expect("small");
    let mut all = Vec::with_capacity(size);
    for at in (0..size).step_by(1 << 20) {
        all.extend(client.read(at as u64, 1 << 20).expect("read"));
    }
    drop(client);
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
    all
}

fn salvage<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["check", "vol", "--salvage", out][..], &KEY, more].concat()
}

#[test]
fn a_good_volume_is_copied_byte_for_byte_and_sparse() {
    let desk = Desk::with_volume();
    let wanted = filled(&desk, &[(0, 70_000, 1), (5 << 20, 4096, 2), (10_000, 100, 3)]);
    let told = desk.run(&salvage("out", &[]));
    assert_eq!(told.code, 0, "{}", told.stderr);
    assert!(told.stdout.ends_with("complete\n"), "{}", told.stdout);
    assert!(desk.bytes("out") == wanted, "what the client read");
    let out = std::fs::metadata(desk.path("out")).expect("it is there");
    assert!(out.blocks() * 512 < 1 << 20, "holes stay holes: {} blocks", out.blocks());
    assert_eq!(out.permissions().mode() & 0o777, 0o600, "it is plaintext");
    assert!(!desk.path("out.part").exists() && !desk.path("out.damaged.json").exists());
    // Nothing is ever written over.
    let before = desk.bytes("out");
    assert_eq!(desk.fails_in_both_forms(5, "out exists", &salvage("out", &[])), "exists");
    assert!(desk.bytes("out") == before);
    std::fs::write(desk.path("two.part"), b"somebody's").expect("the directory is ours");
    desk.fails(5, "two.part exists", &salvage("two", &[]));
    desk.fails(1, "cannot make", &salvage("none/out", &[]));
}

#[test]
fn what_does_not_authenticate_is_a_hole_and_on_the_list() {
    let desk = Desk::with_volume();
    let mut wanted = filled(&desk, &[(0, 64 << 10, 7)]);
    let bytes = desk.bytes("vol");
    let chunk = bytes.windows(4).rposition(|word| word == b"CHNK").expect("a chunk of the log");
    desk.overwrite("vol", chunk as u64 + 4096, &[bytes[chunk + 4096] ^ 0xff]);
    let told = desk.run(&salvage("out", &["--json"]));
    assert_eq!(told.code, 8, "{}", told.stderr);
    let report = told.object();
    let lost = json!([{"first_sector": 0, "sectors": 1, "offset": 0, "bytes": 4096}]);
    assert_eq!((&report["lost"], &report["complete"]), (&lost, &json!(false)));
    assert_eq!(report["copied_bytes"], 15 * 4096);
    let list: Value = serde_json::from_slice(&desk.bytes("out.damaged.json")).expect("JSON");
    assert_eq!(list["lost"], lost);
    wanted[..4096].fill(0);
    assert!(desk.bytes("out") == wanted, "the rest is what the client read");
    assert!(told.next().contains("out.damaged.json"), "{}", told.stderr);
}

#[test]
fn a_volume_that_does_not_open_any_more_is_copied_by_an_older_root_which_is_named() {
    let desk = Desk::with_volume();
    let wanted = filled(&desk, &[(0, 64 << 10, 7)]);
    let bytes = desk.bytes("vol");
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let ring = (1usize << 20) + (64 << 10);
    let mut blocks: Vec<usize> = (0..8).map(|slot| ring + slot * 4096).filter(|at| word(*at) != 0).collect();
    blocks.sort_by_key(|at| std::cmp::Reverse(word(at + 8)));
    // A block further back than a crash can tear, and the newest root with it.
    desk.overwrite("vol", blocks[2] as u64 + 20, &[0xff; 8]);
    desk.fails(8, "ring block", &[&["status", "vol"][..], &KEY].concat());
    let told = desk.run(&salvage("out", &["--json"]));
    assert_eq!(told.code, 8, "{}", told.stderr);
    let report = told.object();
    assert_eq!(report["problems"][0]["structure"], "root-ring", "{report}");
    assert!(desk.bytes("out") == wanted, "and yet all of it is there");

    let phys = word(blocks[0] + 48 + 16);
    let offset = u32::from_le_bytes(bytes[blocks[0] + 48 + 28..][..4].try_into().expect("four bytes"));
    desk.overwrite("vol", phys + u64::from(offset) + 20, &[0xff; 8]);
    let told = desk.run(&salvage("older", &[]));
    assert_eq!(told.code, 8, "{}", told.stderr);
    let newest = word(blocks[0] + 8);
    let named = format!("root {newest} cannot be used: this is the state of root {}", newest - 1);
    assert!(told.stderr.contains(&named) && told.stderr.contains("not older than 20"), "{}", told.stderr);
    assert!(desk.bytes("older") == wanted, "the log behind it has the rest");
}

#[test]
fn a_served_volume_is_not_salvaged() {
    let desk = Desk::with_volume();
    let words = [&["vol", "--control-directory", "control"][..], &KEY].concat();
    let mut server = Server::start(&desk, &words);
    let told = desk
        .command(&salvage("out", &[]))
        .env("SEALBD_CONTROL_DIRECTORY", desk.path("control"))
        .output()
        .expect("it runs");
    assert_eq!(told.status.code(), Some(10), "{}", String::from_utf8_lossy(&told.stderr));
    assert!(!desk.path("out").exists() && !desk.path("out.part").exists());
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
}

#[test]
fn an_interrupted_copy_leaves_nothing_behind() {
    let desk = Desk::new();
    desk.ok(&["format", "vol", "--size", "256M", "--slot", "keyfile:key", "--no-recovery"]);
    let piece = 8 << 20;
    filled(&desk, &(0..24).map(|number| (number * piece as u64, piece, 9)).collect::<Vec<_>>());
    // It may be done before the signal comes: then there is a whole copy, and another try.
    for number in 0..20 {
        let out = format!("out{number}");
        let mut child = desk
            .command(&salvage(&out, &[]))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let part = desk.path(&format!("{out}.part"));
        wait_for("the copy", Duration::from_secs(60), || {
            (part.exists() || desk.path(&out).exists()).then_some(())
        });
        // A process that has ended is still ours until it is waited for.
        kill_process(Pid::from_child(&child), Signal::INT).expect("our own child");
        let ended = child.wait().expect("our own child");
        assert!(!part.exists(), "{ended}");
        match ended.code() {
            Some(0) => assert_eq!(desk.bytes(&out).len(), 256 << 20),
            Some(130) => return assert!(!desk.path(&out).exists()),
            other => panic!("ended with {other:?}"),
        }
    }
    panic!("twenty copies of 192 MiB were all done before a signal came");
}
