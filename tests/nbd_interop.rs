//! Clients that other people wrote, against the real binary: each test is one program's view of a served volume, and
//! compares what it reads with what was written. Without the program a test is skipped and says so; with
//! `SEALBD_REQUIRE_CLIENTS=1`, as `tests/run` sets it, it fails.

mod common;

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use common::pattern::{Random, fill, filled};
use common::programs::{call, have, outcome, program, report, run, skip};
use common::served::{EXPORT, Served, is_control_run};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// A file of `len` bytes: data in the first half of every MiB, holes in the second.
fn half_sparse_file(path: &Path, len: u64, stamp: u64) {
    let file = std::fs::File::create(path).expect("source file");
    file.set_len(len).expect("sparse file");
    for offset in (0..len).step_by(1 << 20) {
        file.write_all_at(&filled(offset, 512 << 10, stamp), offset).expect("fill the source");
    }
}

#[test]
fn the_nbd_crate_reads_back_what_it_wrote() {
    let served = Served::unix(GIB);
    let mut stream = UnixStream::connect(served.socket()).unwrap();
    let export = nbd::client::handshake(&mut stream, EXPORT.as_bytes()).unwrap();
    assert_eq!(export.size, GIB);
    assert!(export.send_flush && !export.readonly);
    let mut disk = nbd::client::NbdClient::new(&mut stream, &export);
    let mut random = Random::new(1);
    let places: Vec<(u64, usize)> =
        (0..64).map(|i: usize| (i as u64 * 16 * MIB + random.below(2048) * 512, 512 * (1 + i * 3))).collect();
    for (i, &(offset, len)) in places.iter().enumerate() {
        disk.seek(SeekFrom::Start(offset)).unwrap();
        disk.write_all(&filled(offset, len, i as u64 + 1)).unwrap();
    }
    disk.flush().unwrap();
    for (i, &(offset, len)) in places.iter().enumerate() {
        let mut data = vec![0; len];
        disk.seek(SeekFrom::Start(offset)).unwrap();
        disk.read_exact(&mut data).unwrap();
        assert_eq!(data, filled(offset, len, i as u64 + 1), "write {i} at {offset}");
    }
}

#[test]
fn nbdinfo_describes_the_export() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let served = Served::unix(GIB);
    let json: serde_json::Value =
        serde_json::from_str(&call("nbdinfo", &["--json", &served.uri()])).expect("nbdinfo prints JSON");
    assert_eq!(json["protocol"], "newstyle-fixed");
    assert_eq!(json["structured"], true);
    let export = &json["exports"][0];
    assert_eq!(export["export-name"], EXPORT);
    assert_eq!(export["export-size"], GIB);
    for capability in [
        "can_cache",
        "can_df",
        "can_fast_zero",
        "can_flush",
        "can_fua",
        "can_multi_conn",
        "can_trim",
        "can_zero",
    ] {
        assert_eq!(export[capability], true, "{capability}");
    }
    assert_eq!(export["is_read_only"], false);
    assert_eq!(export["block_size_minimum"], 1);
    assert_eq!(export["block_size_preferred"], 4096);
    assert_eq!(export["block_size_maximum"], 32 * MIB);
    assert_eq!(export["contexts"][0], "base:allocation");
    let listed = call("nbdinfo", &["--list", "--json", &served.uri()]);
    assert!(listed.contains(EXPORT), "{listed}");
}

#[test]
fn nbdinfo_maps_data_and_holes() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let served = Served::unix(GIB);
    served.connect().write(MIB, &filled(MIB, 65_536, 1), common::client::FUA).unwrap();
    let map: serde_json::Value =
        serde_json::from_str(&call("nbdinfo", &["--map", "--json", &served.uri()])).expect("JSON");
    let data: Vec<(u64, u64)> = map
        .as_array()
        .expect("a list of extents")
        .iter()
        .filter(|extent| extent["type"] == 0)
        .map(|extent| {
            (extent["offset"].as_u64().expect("number"), extent["length"].as_u64().expect("number"))
        })
        .collect();
    let (first, last) = (data.first().expect("data"), data.last().expect("data"));
    assert_eq!((first.0, last.0 + last.1), (MIB, MIB + 65_536), "{map}");
}

#[test]
fn nbdcopy_copies_in_and_out() {
    if !have(&["nbdcopy", "cmp"]) {
        return;
    }
    let served = Served::unix(256 * MIB);
    let (source, back) = (served.path("source"), served.path("back"));
    half_sparse_file(&source, 256 * MIB, 3);
    run(program("nbdcopy")
        .args(["--connections=4", "--requests=64", "--flush"])
        .arg(&source)
        .arg(served.uri()));
    run(program("nbdcopy").args(["--connections=4", "--requests=64"]).arg(served.uri()).arg(&back));
    run(program("cmp").arg(&source).arg(&back));
}

#[test]
fn nbdsh_exercises_every_command() {
    if !have(&["nbdsh"]) {
        return;
    }
    let served = Served::unix(GIB);
    let script = r#"
import nbd, os
size = h.get_size()
assert size == 1 << 30, size
data = os.urandom(100000)
h.pwrite(data, 12345)
assert h.pread(len(data), 12345) == bytearray(data)
h.pwrite(b"\xab" * 4096, 1 << 20, nbd.CMD_FLAG_FUA)
h.zero(8192, (1 << 20) + 1000, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(1000, 1 << 20) == bytearray(b"\xab" * 1000)
assert h.pread(8192, (1 << 20) + 1000) == bytearray(8192)
h.zero(1 << 20, 2 << 20, nbd.CMD_FLAG_FAST_ZERO)
h.trim(1 << 20, 0)
h.cache(1 << 20, 0)
h.flush()
seen = []
def chunk(sub, offset, status, error):
    seen.append((offset, len(sub), status))
h.pread_structured(1 << 20, 1 << 20, chunk)
assert sum(length for _, length, _ in seen) == 1 << 20, seen
extents = []
h.block_status(size, 0, lambda context, offset, entries, error: extents.extend(entries))
assert extents
for offset in (size, size - 1, 2**63, 2**64 - 512):
    for command in (lambda: h.pread(512, offset), lambda: h.pwrite(bytes(512), offset)):
        h.set_strict_mode(0)
        try:
            command()
            raise AssertionError("out of range at %d" % offset)
        except nbd.Error as error:
            assert error.errno in ("EINVAL", "ENOSPC"), error
h.flush()
print("all commands answered")
"#;
    let printed = run(program("nbdsh").args(["--base-allocation", "-u", &served.uri(), "-c", script]));
    assert!(printed.contains("all commands answered"), "{printed}");
}

#[test]
fn qemu_img_converts_in_and_compares() {
    if !have(&["qemu-img"]) {
        return;
    }
    let served = Served::unix(256 * MIB);
    let source = served.path("source");
    half_sparse_file(&source, 256 * MIB, 5);
    run(program("qemu-img")
        .args(["convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw"])
        .arg(&source)
        .arg(served.uri()));
    run(program("qemu-img").args(["compare", "-f", "raw", "-F", "raw"]).arg(&source).arg(served.uri()));
    let map: serde_json::Value =
        serde_json::from_str(&call("qemu-img", &["map", "--output=json", "-f", "raw", &served.uri()]))
            .expect("qemu-img prints JSON");
    let data_bytes: u64 = map
        .as_array()
        .expect("a list of extents")
        .iter()
        .filter(|extent| extent["data"] == true)
        .map(|extent| extent["length"].as_u64().expect("number"))
        .sum();
    assert_eq!(data_bytes, 128 * MIB, "half of every MiB is data");
    // And out again, into a format of its own.
    let copy = served.path("copy.qcow2");
    run(program("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).arg(served.uri()).arg(&copy));
    run(program("qemu-img").args(["compare", "-f", "raw", "-F", "qcow2"]).arg(&source).arg(&copy));
}

#[test]
fn qemu_io_patterns_read_back() {
    if !have(&["qemu-io"]) {
        return;
    }
    let served = Served::unix(GIB);
    let first = [
        "write -P 0xab 0 64k",
        "read -P 0xab 0 64k",
        "write -z -u 4k 8k",
        "read -P 0 4k 8k",
        "read -P 0xab 0 4k",
        "read -P 0xab 12k 52k",
        "write -f -P 5 1M 1M",
        "aio_write -P 7 2M 64k",
        "aio_write -P 8 3M 64k",
        "aio_flush",
        "write -P 9 4609 1537",
        "read -P 9 4609 1537",
        "read -P 0 4096 513",
        "discard 8M 1M",
        "flush",
    ];
    let again = [
        "read -P 5 1M 1M",
        "read -P 7 2M 64k",
        "read -P 8 3M 64k",
        "read -P 9 4609 1537",
        "read -P 0 6146 2046",
    ];
    for commands in [&first[..], &again[..]] {
        let mut qemu_io = program("qemu-io");
        qemu_io.args(["-f", "raw"]);
        for command in commands {
            qemu_io.args(["-c", command]);
        }
        // A pattern that differs is told in words only.
        let printed = run(qemu_io.arg(served.uri()));
        assert!(!printed.contains("failed") && !printed.contains("rror"), "{printed}");
    }
}

#[test]
fn fio_verifies_its_checksums() {
    if !have(&["fio"]) {
        return;
    }
    let served = Served::unix(GIB);
    // fio takes an engine's options only behind the engine's name.
    let mut fio = program("fio");
    fio.current_dir(served.dir()).args(["--name=verify", "--ioengine=nbd"]);
    fio.arg(format!("--uri={}", served.uri())).args([
        "--rw=randwrite",
        "--bsrange=512-128k",
        "--blockalign=512",
        "--size=48M",
        "--io_size=96M",
        "--iodepth=32",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--randseed=7",
        "--fsync=64",
    ]);
    run(&mut fio);
}

#[test]
fn a_second_server_on_the_same_file_is_refused() {
    if is_control_run() {
        report("the peer of a control run has its own way of locking");
        return;
    }
    let mut served = Served::unix(GIB);
    served.connect().write(0, &filled(0, 4096, 1), common::client::FUA).unwrap();
    let other = served.path("other-socket");
    let mut second = program(env!("CARGO_BIN_EXE_sealbd"));
    second.args(["serve".as_ref(), served.image().as_os_str(), "--slot".as_ref(), served.slot().as_ref()]);
    second.arg("-U").arg(&other);
    let output = outcome(&mut second);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(10), "fenced: {said}");
    assert!(!other.exists(), "a refused server leaves no socket");
    assert_eq!(served.connect().read(0, 4096).unwrap(), filled(0, 4096, 1), "the first one goes on");
    assert!(served.stop().success());
}

#[test]
fn two_servers_in_turn_see_the_same_volume() {
    let mut served = Served::unix(GIB);
    let mut stamps = vec![0u64; 64];
    for round in 1..=6u64 {
        let mut client = served.connect();
        for (i, stamp) in stamps.iter_mut().enumerate() {
            let offset = i as u64 * 15 * MIB + 512;
            assert_eq!(
                client.read(offset, 8192).unwrap(),
                filled(offset, 8192, *stamp),
                "round {round}, place {i}"
            );
            if (i as u64).is_multiple_of(round) {
                *stamp = round * 1000 + i as u64;
                client.write(offset, &filled(offset, 8192, *stamp), 0).unwrap();
            }
        }
        drop(client);
        served.restart();
    }
    assert!(served.stop().success());
}

#[test]
fn a_restart_between_two_sockets_keeps_unaligned_data() {
    let mut served = Served::tcp(GIB);
    let mut expected = vec![0; 1 << 20];
    let mut random = Random::new(11);
    let mut client = served.connect();
    for _ in 0..200 {
        let offset = random.below((1 << 20) - 20_000);
        let mut data = vec![0; usize::try_from(1 + random.below(20_000)).unwrap()];
        let blocks = data.len() / 512 * 512;
        fill(&mut data[..blocks], offset / 512 * 512, offset + 1);
        client.write(offset, &data, 0).unwrap();
        let at = usize::try_from(offset).unwrap();
        expected[at..at + data.len()].copy_from_slice(&data);
    }
    assert!(client.read(0, 1 << 20).unwrap() == expected, "before the restart");
    drop(client);
    served.restart();
    assert!(served.connect().read(0, 1 << 20).unwrap() == expected, "after the restart");
}

/// docs/FORMAT.md describes what is on the store, and not only what this program makes of it.
#[test]
fn an_independent_reader_finds_what_was_written_through_nbd() {
    const PYTHON: &str = "/usr/bin/python3";
    const SIZE: u64 = 64 * MIB;
    if is_control_run() {
        return;
    }
    let found = program(PYTHON).args(["-c", "import cryptography"]).output();
    if !found.is_ok_and(|output| output.status.success()) {
        skip("python3-cryptography is not installed");
        return;
    }
    let mut served = Served::unix(SIZE);
    let mut expected = vec![0; 4 << 20];
    let mut random = Random::new(23);
    let mut client = served.connect();
    for stamp in 1..=300u64 {
        // 512-byte blocks: most sectors are written in part.
        let offset = random.below((4 << 11) - 40) * 512;
        let len = (1 + random.below(40)) * 512;
        let at = usize::try_from(offset).unwrap();
        let end = usize::try_from(offset + len).unwrap();
        if stamp % 7 == 0 {
            client.write_zeroes(offset, u32::try_from(len).unwrap(), 0).unwrap();
            expected[at..end].fill(0);
        } else {
            let data = filled(offset, end - at, stamp);
            client.write(offset, &data, 0).unwrap();
            expected[at..end].copy_from_slice(&data);
        }
    }
    client.flush().unwrap();
    let reads_the_same = |served: &Served, state: &str| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/format_reader.py");
        let output = program(PYTHON)
            .arg(script)
            .arg(served.image())
            .arg("--keyfile")
            .arg(served.key())
            .args(["--range", "0", &expected.len().to_string()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{state}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout == expected, "{state}: other bytes");
    };
    served.kill9();
    reads_the_same(&served, "the server was killed: a log only");
    served.start();
    assert!(served.stop().success());
    reads_the_same(&served, "closed: a tree only");
}
