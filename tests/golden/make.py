#!/usr/bin/python3
"""Makes the golden vectors of volume format 1, from docs/FORMAT.md and fixed inputs.

The bytes are laid out and sealed here with struct, hashlib, hmac and python3-cryptography; sealbd only
ever reads them (tests/format_golden.rs). Nothing is random. A change of the format means: document,
version, this file, its output, changelog, in one commit. Run without arguments it rewrites
tests/golden/*.hex; with --check it says whether they are what it would write.
"""

import os
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from format_reader import (  # noqa: E402  the primitives only; layouts are written out below
    BLOB_DOMAIN,
    CHUNK_DOMAIN,
    INDEX,
    LOG,
    PAGE_DOMAIN,
    RECORD_DOMAIN,
    SEGMENT_DOMAIN,
    AESGCM,
    Keys,
    SegmentKey,
    crc32c,
    expand,
    mac,
)


def ascending(first, length):
    return bytes((first + i) % 256 for i in range(length))


DEK = ascending(0x40, 32)
SALT = ascending(0xA0, 32)
VOLUME = ascending(0x00, 16)
KEYFILE = ascending(0x80, 32)
LOG_UID = ascending(0x10, 16)
INDEX_UID = ascending(0x20, 16)
NEXT_UID = ascending(0x30, 16)
CHAIN = ascending(0xC0, 16)
KEYS = Keys(DEK, SALT, VOLUME)
LOG_KEY = SegmentKey(KEYS, LOG, LOG_UID)
INDEX_KEY = SegmentKey(KEYS, INDEX, INDEX_UID)


def pad(data, length):
    assert len(data) <= length
    return data + bytes(length - len(data))


def record_loc(handle, offset):
    return handle << 32 | offset // 16 << 10 | 257


def page_loc(handle, offset, length):
    return handle << 32 | offset // 16 << 10 | length // 16


# --- keys ------------------------------------------------------------------------------------------


def derived():
    return KEYS.commit + KEYS.header_mac + KEYS.root_ring + KEYS.segment_base + KEYS.uid


def header_mac_of_abc():
    return mac(KEYS.header_mac, b"abc")


def root_mac_of_abc():
    return mac(KEYS.root_ring, b"abc")[:16]


def segment_keys():
    return b"".join(KEYS.segment(kind, LOG_UID) for kind in (1, 2, 3))


# --- header ------------------------------------------------------------------------------------------


def keyslot(state, slot_type, epoch, created, priority, uri, wrapped, private, commit):
    out = struct.pack("<BBHIQ", state, slot_type, 0, epoch, created)
    out += struct.pack("<HHHH", len(uri), len(wrapped), len(private), priority)
    out = pad(out + uri, 24 + 256)
    out = pad(out + wrapped, 24 + 256 + 1024)
    return pad(out + commit + private, 2048)


def keyfile_slot():
    prk = mac(VOLUME, KEYFILE)
    kek = expand(prk, b"sealbd keyfile kek v1")
    nonce = ascending(0xD0, 12)
    wrapped = nonce + AESGCM(kek).encrypt(nonce, DEK, VOLUME + struct.pack("<IIB", 1, 1, 2))
    private = b"\x01" + expand(prk, b"sealbd keyfile fingerprint v1", 2)
    return keyslot(1, 2, 1, 1_700_000_000, 3, b"", wrapped, private, KEYS.commit)


def second_slot():
    """Every part at its longest."""
    uri = b"key:" + b"u" * 252
    wrapped = (ascending(0, 256) * 4)[:1024]
    private = (ascending(0x11, 256) * 2)[:512]
    return keyslot(2, 3, 65_535, (1 << 64) - 1, 65_535, uri, wrapped, private, ascending(0xE0, 32))


def header():
    out = b"SEALBDV1" + struct.pack("<HHI", 1, 0, 65_536) + VOLUME
    out += struct.pack("<QQQQ", 7, 0x5, 0x2, 0)  # generation, compat, ro_compat, incompat
    out += struct.pack("<IIII", 1, 4096, 4096, 2 << 20)  # suite, sector, align, segment bytes
    out += struct.pack("<QQQ", 1 << 30, 700, 2 << 20)  # export bytes, slots, data start
    out += struct.pack("<IIQQ", 1, 8, (1 << 20) + 65_536, 1_690_000_000)  # epoch, ring slots, ring offset, DEK created
    out += SALT + pad("golden volume é".encode(), 64)
    out = pad(out, 4096)
    slots = [bytes(2048)] * 16
    slots[0], slots[5] = keyfile_slot(), second_slot()
    out = bytearray(pad(out + b"".join(slots), 65_536))
    out[4032:4064] = mac(KEYS.header_mac, bytes(out))
    out[4092:4096] = struct.pack("<I", crc32c(out))
    return bytes(out)


# --- roots ---------------------------------------------------------------------------------------------


def pointer(uid, phys, epoch, offset, length):
    return uid + struct.pack("<QIII", phys, epoch, offset, length)


def ring_block():
    out = b"SEALROOT" + struct.pack("<QQ", 42, 9) + ascending(0x50, 16) + struct.pack("<Q", 7)
    out += pointer(INDEX_UID, 0x20_0000, 1, 0x3000, 700)
    out = pad(out, 4064)
    out = pad(out + mac(KEYS.root_ring, out)[:16], 4092)
    return out + struct.pack("<I", crc32c(out))


def places(*items):
    return struct.pack("<I", len(items)) + b"".join(uid + struct.pack("<Q", phys) for uid, phys in items)


def root_plaintext():
    out = struct.pack("<QQQQ", 9, 7, 1 << 30, 123_456_789)
    out += struct.pack("<I", 2) + ascending(1, 16) + ascending(2, 16)
    closed = struct.pack("<I", 3) + LOG_UID + struct.pack("<QIIQ", 0x40_0000, 1, 4096, 17)
    closed += CHAIN + struct.pack("<I", 0x9000)
    opened = struct.pack("<I", 4) + NEXT_UID + struct.pack("<QIIQ", 0x60_0000, 1, 8192, 19)
    opened += ascending(0xC1, 16) + struct.pack("<I", 0xFFFF_FFFF)
    out += struct.pack("<I", 2) + closed + opened
    out += struct.pack("<I", 3) + struct.pack("<QQQ", 5, 6, 699)
    out += struct.pack("<I", 3) + struct.pack("<QQQ", page_loc(2, 0x2000, 48), 0, 1)
    out += struct.pack("<I", 2) + pointer(INDEX_UID, 0x20_0000, 1, 0x1000, 300)
    out += pointer(NEXT_UID, 0x80_0000, 1, 0x5000, 1_040_024)
    return out + struct.pack("<II", 0, 0)


def root_payload():
    envelope = places((LOG_UID, 0x40_0000), (INDEX_UID, 0x20_0000)) + places((ascending(0x60, 16), 0xA0_0000))
    aad = struct.pack("<BQ", 1, 42) + envelope
    return envelope + INDEX_KEY.seal(BLOB_DOMAIN, 0x3000, aad, root_plaintext())


def table_plaintext():
    out = struct.pack("<II", 26_000, 4) + bytes(40)
    out += LOG_UID + struct.pack("<QHBBIII", 0x40_0000, 1, 1, 2, 4112, 0x9000, 40)
    out += INDEX_UID + struct.pack("<QHBBIII", 0x20_0000, 1, 2, 1, 64, 0x20_0000, 41)
    return out + NEXT_UID + struct.pack("<QHBBIII", 0x60_0000, 65_535, 3, 1, 0, 0, 0xFFFF_FFFF)


def table_part():
    return INDEX_KEY.seal(BLOB_DOMAIN, 0x1000, struct.pack("<BQ", 2, 1), table_plaintext())


# --- segments -------------------------------------------------------------------------------------------


def segment_header():
    envelope = b"SEALSEG1" + struct.pack("<HBBI", 1, LOG, 0, 1) + VOLUME + LOG_UID
    envelope += struct.pack("<QQQ", 0x40_0000, 9, 17)
    links = ascending(0x70, 16) + CHAIN + NEXT_UID + struct.pack("<QQ", 0x60_0000, 1_700_000_001)
    out = pad(envelope + LOG_KEY.seal(SEGMENT_DOMAIN, 0, envelope, links), 4092)
    return out + struct.pack("<I", crc32c(out))


def entry(lba, op, count, rec):
    return lba.to_bytes(6, "little") + struct.pack("<BBII", op, 0, count, rec)


def sectors():
    return [bytes([0x61 + i]) * 4096 for i in range(3)]


def chunk():
    """Chunk 17 at offset 4096: two runs of records, zeros, and a trim of 2^32-1 sectors."""
    entries = [entry(100, 1, 2, 0), entry(7, 2, 9, 0), entry((1 << 40) + 5, 3, 0xFFFF_FFFF, 0), entry(3, 1, 1, 2)]
    plaintext = CHAIN + struct.pack("<QI", 15, len(entries)) + b"".join(entries)
    header_len = len(plaintext) + 16
    records_offset = (32 + header_len + 15) // 16 * 16
    length = (records_offset + 3 * 4112 + 4095) // 4096 * 4096
    prefix = b"CHNK" + struct.pack("<IQIIII", length, 17, header_len, 3, 0, 0)
    out = pad(prefix + LOG_KEY.seal(CHUNK_DOMAIN, 4096, prefix, plaintext), records_offset)
    for lba, data in zip((100, 101, 3), sectors()):
        out += LOG_KEY.seal(RECORD_DOMAIN, 4096 + len(out), struct.pack("<Q", lba), data)
    out = bytearray(pad(out, length))
    out[24:28] = struct.pack("<I", crc32c(out))
    return bytes(out)


# --- index ------------------------------------------------------------------------------------------------


def page(level, form, count, body):
    out = struct.pack("<BBHI", form, level, count, 0) + body
    return pad(out, (len(out) + 15) // 16 * 16)


def leaf_sparse():
    extents = [(0, 2, record_loc(3, 4256)), (7, 9, 1), (511, 1, record_loc(3, 12_480))]
    return page(0, 0, 3, b"".join(struct.pack("<HHQ", *extent) for extent in extents))


def leaf_dense():
    locs = [(0, 1, record_loc(3, 4256 + 8224 * i))[i % 3] for i in range(512)]
    return page(0, 1, 512, struct.pack("<512Q", *locs))


def inner_sparse():
    children = [(0, page_loc(2, 0x2000, 64)), (5, 1), (511, page_loc(2, 0x2040, 4128))]
    return page(1, 0, 3, b"".join(struct.pack("<HQ", *child) for child in children))


def inner_dense():
    locs = [0 if i % 6 == 0 else page_loc(2, 0x2000 + 64 * i, 64) for i in range(512)]
    return page(2, 1, 512, struct.pack("<512Q", *locs))


def sealed_leaf():
    return INDEX_KEY.seal(PAGE_DOMAIN, 0x2000, struct.pack("<BQ", 0, 77), leaf_sparse())


def sealed_inner():
    return INDEX_KEY.seal(PAGE_DOMAIN, 0x4000, struct.pack("<BQ", 1, 3), inner_sparse())


VECTORS = [
    derived, header_mac_of_abc, root_mac_of_abc, segment_keys, keyfile_slot, second_slot, header, ring_block,
    root_plaintext, root_payload, table_plaintext, table_part, segment_header, chunk, leaf_sparse, leaf_dense,
    inner_sparse, inner_dense, sealed_leaf, sealed_inner,
]  # fmt: skip


def to_text(data):
    """Hex, 32 bytes a line; runs of whole zero lines as `*COUNT`."""
    lines, zeros = [], 0
    for at in range(0, len(data), 32):
        line = data[at : at + 32]
        if not any(line) and len(line) == 32:
            zeros += 1
            continue
        if zeros:
            lines.append(f"*{zeros}")
            zeros = 0
        lines.append(line.hex())
    if zeros:
        lines.append(f"*{zeros}")
    return "\n".join(lines) + "\n"


def main():
    wrong = []
    for vector in VECTORS:
        path = os.path.join(HERE, vector.__name__ + ".hex")
        text = to_text(vector())
        if "--check" in sys.argv[1:]:
            if not os.path.exists(path) or open(path).read() != text:
                wrong.append(path)
        else:
            with open(path, "w") as file:
                file.write(text)
    for path in wrong:
        print(f"{path} is not what make.py makes", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
