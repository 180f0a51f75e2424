#!/usr/bin/python3
"""Writes the seeds of the fuzz corpora: the golden vectors in the form that each target takes, messages of the
NBD protocol, laid out from its specification, and recorded answers of KMIP servers."""

import hashlib
import json
import os
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "tests", "golden"))

import make  # noqa: E402


def option(kind, payload=b""):
    return struct.pack(">QII", 0x49484156454F5054, kind, len(payload)) + payload


def text(data):
    return struct.pack(">I", len(data)) + data


def request(flags, command, cookie, offset, length, extended=False):
    if extended:
        return struct.pack(">IHHQQQ", 0x21E41C71, flags, command, cookie, offset, length)
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)


def chunk(flags, kind, cookie, payload):
    return struct.pack(">IHHQI", 0x668E33EF, flags, kind, cookie, len(payload)) + payload


def chunk_extended(flags, kind, cookie, offset, payload):
    return struct.pack(">IHHQQQ", 0x6E8A278C, flags, kind, cookie, offset, len(payload)) + payload


def nbd_seeds():
    flags = struct.pack(">I", 3)
    info = text(b"disk") + struct.pack(">HH", 1, 3)
    context = text(b"disk") + struct.pack(">I", 1) + text(b"base:allocation")
    go = option(7, info)
    yield "nbd_handshake", "go", flags + go
    yield "nbd_handshake", "export_name", flags + option(1, b"disk")
    yield "nbd_handshake", "list_and_abort", flags + option(3) + option(2)
    yield "nbd_handshake", "all", flags + option(8) + option(11) + option(9, context) + option(10, context) + option(6, info) + go
    yield "nbd_handshake", "unknown", flags + option(5) + option(99, b"x" * 40) + go
    yield "nbd_handshake", "too_long", flags + struct.pack(">QII", 0x49484156454F5054, 3, 1 << 20)
    yield "nbd_options", "hello", b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3)
    yield "nbd_options", "client_flags", flags
    yield "nbd_options", "info_query", info
    yield "nbd_options", "meta_query", context
    yield "nbd_options", "meta_context", struct.pack(">I", 1) + b"base:allocation"
    yield "nbd_options", "info_export", struct.pack(">HQH", 0, 1 << 30, 0x5ED)
    yield "nbd_options", "info_blocks", struct.pack(">HIII", 3, 1, 4096, 1 << 25)
    yield "nbd_options", "info_name", struct.pack(">H", 1) + b"disk"
    yield "nbd_options", "listed", text(b"disk") + b"a disk"
    yield "nbd_options", "option", option(7, info)
    yield "nbd_options", "reply", struct.pack(">QIII", 0x3E889045565A9, 7, 1, 0)
    commands = b"".join(request(0, command, command, 4096, 8192) for command in (0, 3, 4, 5, 6, 7, 2))
    yield "nbd_session", "simple", b"\x00" + request(1, 1, 9, 0, 16) + b"0123456789abcdef" + commands
    yield "nbd_session", "structured", b"\x05" + commands
    commands = b"".join(request(0, command, command, 4096, 8192, True) for command in (0, 3, 4, 5, 6, 7))
    filtered = request(32, 7, 3, 0, 12, True) + struct.pack(">QI", 4096, 1)
    yield "nbd_session", "extended", b"\x06" + commands + filtered + request(32, 1, 1, 0, 4, True) + b"data"
    yield "nbd_session", "read_only", b"\x08" + request(0, 1, 1, 0, 4) + b"data" + request(0, 4, 2, 0, 4096)
    yield "nbd_session", "behind_the_end", b"\x00" + request(0, 0, 1, (1 << 64) - 1, 0xFFFFFFFF)
    simple = struct.pack(">IIQ", 0x67446698, 0, 1) + struct.pack(">IIQ", 0x67446698, 5, 2)
    data = struct.pack(">Q", 4096) + b"data"
    hole = struct.pack(">QI", 8192, 4096)
    error = struct.pack(">IH", 5, 4) + b"text"
    structured = chunk(0, 1, 3, data) + chunk(0, 2, 3, hole) + chunk(1, 0, 3, b"")
    status = struct.pack(">IIIII", 1, 4096, 0, 8192, 3)
    structured += chunk(1, 5, 4, status) + chunk(0, 0x8001, 5, error)
    structured += chunk(1, 0x8002, 5, error + struct.pack(">Q", 4096)) + chunk(1, 0x8077, 5, error + b"more")
    status = struct.pack(">IIQQQQ", 1, 2, 4096, 0, 1 << 40, 3)
    yield "nbd_replies", "simple", simple
    yield "nbd_replies", "structured", structured
    yield "nbd_replies", "extended", chunk_extended(1, 6, 6, 0, status) + chunk_extended(0, 1, 7, 4096, data)


def format_seeds():
    header = make.header()
    yield "header", "golden", header[:224] + header[4096 : 4096 + 6 * 2048]
    yield "header", "raw", header[:4096]
    yield "keyslot", "keyfile", make.keyfile_slot()
    yield "keyslot", "longest", make.second_slot()
    yield "keyslot", "free", b""
    for number in range(1, 11):
        # Of every type of manager; what is in it is another's.
        slot = make.keyfile_slot()
        yield "keyslot", f"of_type_{number}", slot[:1] + bytes([number]) + slot[2:]
    yield "ring_block", "golden", make.ring_block()[:84]
    yield "root_plaintext", "golden", make.root_plaintext()
    stored, plaintext = make.root_payload(), make.root_plaintext()
    envelope = stored[: len(stored) - len(plaintext) - 16]
    yield "root_stored", "golden", struct.pack("<H", len(envelope)) + envelope + plaintext
    yield "root_stored", "empty", struct.pack("<H", 8) + bytes(8) + bytes(60)
    yield "table_part", "golden", make.table_plaintext()
    yield "segment_header", "golden", make.segment_header()[:136]
    chunk_bytes = make.chunk()
    yield "chunk_prefix", "golden", chunk_bytes[:32]
    key, prefix = make.LOG_KEY, chunk_bytes[:24] + bytes(8)
    entries = key.open(make.CHUNK_DOMAIN, 4096, prefix, chunk_bytes[32:140], "chunk")
    yield "chunk_header", "golden", b"\x03" + entries
    yield "leaf", "sparse", make.leaf_sparse()
    yield "leaf", "dense", make.leaf_dense()
    yield "inner", "sparse", b"\x01" + make.inner_sparse()
    yield "inner", "dense", b"\x02" + make.inner_dense()


def audit_seeds():
    """A chain of records as docs/AUDIT.md has them, whole, torn and continued."""
    lines, prev = [], "0" * 64

    def append(fields):
        nonlocal prev
        record = {"schema": 1, "seq": len(lines) + 1, "time": "2026-01-02T03:04:05.678Z"}
        record |= {"host": "h", "uid": 0, "user": "root", "sudo_uid": 1000, "pid": 7, "request": "r"} | fields
        line = json.dumps(record | {"prev": prev}, separators=(",", ":")).encode() + b"\n"
        prev = hashlib.sha256(line).hexdigest()
        lines.append(line)

    slot = {"slot": 0, "manager": "barbican", "key_id": "k", "key_version": "3"}
    volume = {"backend": "vol", "volume": "6f1c2b0e-0000-4000-8000-000000000001"}
    append({"verb": "key-add", "outcome": "started"} | volume | slot)
    changes = [{"change": "added", "slot": 1, "manager": "keyfile"}, {"change": "removed"} | slot]
    append({"verb": "key-add", "outcome": "done"} | volume | slot | {"changes": changes})
    append({"verb": "check", "outcome": "failed", "error": "no_key_fits", "exit": 2} | volume)
    yield "audit_log", "whole", b"".join(lines)
    torn = lines[0][:60] + b"\n"
    told = {"torn_bytes": len(torn), "torn_sha256": hashlib.sha256(torn).hexdigest()}
    append({"verb": "check", "outcome": "recovered"} | told)
    yield "audit_log", "recovered", b"".join(lines[:3]) + torn + lines[3]
    yield "audit_log", "torn", b"".join(lines[:3]) + torn[:-1]


def control_seeds():
    """Both sides of a control socket as docs/CONTROL.md has them."""
    asks = ["status", "header", {"replace-header": {"header": "U0VBTA=="}}, "suspend", "resume", "stop"]
    asks += [{"check": {"deep": True}}]
    requests = [{"sealbd_control": 1, "ask": ask} for ask in asks]
    status = {"uuid": "6f1c2b0e-0000-4000-8000-000000000001", "pid": 7, "export": "vol", "read_only": False, "state": "running"}
    answers = [
        {"ok": {"status": status | {"since": 1767323045, "parked": 3}}},
        {"ok": {"header": {"generation": 2, "header": "U0VBTA=="}}},
        {"ok": "send-key"},
        {"ok": {"state": "suspended"}},
        {"error": {"code": "busy", "message": "somebody else was first"}},
    ]
    report = {"root": 6, "segments": 2, "pages": 3, "mapped_sectors": 256, "log": {"chunks": 1, "sectors": 16}}
    report |= {"verified_sectors": 272, "gave_way": False, "problems": [], "warnings": [], "damaged": [], "not_listed": 0}
    checks = [
        {"ok": {"checking": {"at": 4096, "of": 1 << 40}}},
        {"ok": {"found": {"problems": [], "warnings": [], "damaged": []}}},
        {"ok": {"checked": report}},
    ]
    for name, messages in ("requests", requests), ("answers", answers), ("checks", checks):
        yield "control_lines", name, b"".join(json.dumps(message).encode() + b"\n" for message in messages)


def anchor_seeds():
    """Files of an anchor as docs/FORMAT.md section 13 has them."""
    fields = {"sealbd_anchor": 1, "volume": "5e" * 4 + "-5e5e-5e5e-5e5e-" + "5e" * 6, "generation": 7, "root_mac": "a5" * 16}
    fields |= {"log_seq": 40, "chain": "5a" * 16, "header_generation": 2, "writer_epoch": 3}
    line = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
    yield "anchor_file", "whole", line + hashlib.sha256(line).hexdigest().encode() + b"\n"
    yield "anchor_file", "spaced", json.dumps(fields).encode() + b"\n"


def argument_seeds():
    """Stores, keys and recovery words as people type them."""
    typed = {
        "file": "volume.img", "colon": "./a:b", "file_uri": "file:///srv/a%20volume", "memory": "mem:64M",
        "nbd": "nbd://[::1]:10809/disk", "nbd_unix": "nbd+unix:///disk?socket=/run/nbd%20sock", "keyfile": "keyfile:/etc/key",
        "prompt": "passphrase", "variable": "passphrase:env:SECRET", "kms": "kms:cloud/0b1c2d3e", "words": "abandon " * 23 + "art",
    }
    for name, text in typed.items():
        yield "arguments", name, text.encode()


def kmip_seeds():
    """Answers of real servers, as they were recorded for the tests of the client."""
    with open(os.path.join(HERE, "..", "keymgmt", "src", "kmip", "recorded.txt")) as file:
        lines = [line.split() for line in file if not line.startswith("#")]
    for operation, version, outcome, server, answer in lines:
        name = "_".join([operation, version, outcome, server]).lower()
        yield "kmip_response", name, bytes.fromhex(answer)


def main():
    for target, name, data in [*format_seeds(), *nbd_seeds(), *audit_seeds(), *control_seeds(), *anchor_seeds(), *argument_seeds(), *kmip_seeds()]:
        directory = os.path.join(HERE, "corpus", target)
        os.makedirs(directory, exist_ok=True)
        with open(os.path.join(directory, name), "wb") as file:
            file.write(data)


if __name__ == "__main__":
    main()
