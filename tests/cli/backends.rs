//! Volumes on NBD servers of others, and servers that cannot be reached.

use crate::common::programs::have;
use crate::desk::Desk;
use crate::servers::{Server, sparse_file};

#[test]
fn a_server_that_is_not_there_is_told_as_such_and_may_be_tried_again() {
    let desk = Desk::new();
    let socket = format!("nbd+unix:///x?socket={}", desk.path("none").display());
    for backend in ["nbd://127.0.0.1:1/x", &socket] {
        assert_eq!(desk.fails_in_both_forms(11, backend, &["dump", backend]), "backend_unreachable");
        let error = &desk.run(&["dump", backend, "--json"]).object()["error"];
        assert_eq!(error["retryable"], true);
    }
}

#[test]
fn a_volume_on_nbdkit_takes_what_fits_and_refuses_more_with_the_figure() {
    let desk = Desk::new();
    let Some(server) = Server::nbdkit(desk.dir(), &["memory", "100M"]) else { return };
    let too_much = ["format", &server.uri, "--size", "100M", "--slot", "keyfile:key", "--no-recovery"];
    let next = desk.fails(1, "do not fit", &too_much);
    let size = next.strip_prefix("--size ").and_then(|rest| rest.split(',').next()).expect("the figure");
    desk.ok(&["format", &server.uri, "--size", size, "--slot", "keyfile:key", "--no-recovery"]);
    desk.ok(&["check", &server.uri, "--deep", "--slot", "keyfile:key"]);
    desk.ok(&["key", "change", &server.uri, "--slot", "keyfile:key", "--new-slot", "keyfile:two"]);
    desk.fails(5, "becomes unreadable", &["format", &server.uri, "--slot", "keyfile:key"]);
}

#[test]
fn a_volume_on_qemu_nbd_is_made_served_and_checked() {
    let desk = Desk::new();
    let image = sparse_file(desk.dir(), 100 << 20);
    let image = image.to_str().expect("a plain path");
    let Some(server) = Server::qemu_nbd(desk.dir(), &["-f", "raw", "--discard=unmap", image]) else { return };
    if !have(&["qemu-io"]) {
        return;
    }
    desk.ok(&["format", &server.uri, "--slot", "keyfile:key", "--no-recovery"]);
    let write = "qemu-io -f raw -c 'write -P 0xab 0 4M' -c flush \"$uri\"";
    desk.ok(&["serve", &server.uri, "--slot", "keyfile:key", "--name", "vol", "--run", write]);
    let read = "qemu-io -r -f raw -c 'read -P 0xab 0 4M' \"$uri\" | grep -q 'read 4194304'";
    desk.ok(&["serve", &server.uri, "--slot", "keyfile:key", "--read-only", "--run", read]);
    let report = desk.json(&["check", &server.uri, "--deep", "--slot", "keyfile:key"]);
    assert_eq!(report["verified_sectors"], 1024);
}

#[test]
fn a_read_only_export_is_inspected_and_not_changed() {
    let desk = Desk::with_volume();
    let volume = desk.path("vol");
    let volume = volume.to_str().expect("a plain path");
    let Some(server) = Server::nbdkit(desk.dir(), &["-r", "file", volume]) else { return };
    desk.ok(&["dump", &server.uri]);
    desk.ok(&["check", &server.uri, "--slot", "keyfile:key"]);
    let add = ["key", "add", &server.uri, "--slot", "keyfile:key", "--new-slot", "keyfile:two"];
    desk.fails(4, "read-only", &add);
}
