#!/usr/bin/python3
"""A second reader of sealbd volumes, written from docs/FORMAT.md alone.

It shares no code with sealbd: hashlib, hmac and the Debian package python3-cryptography do all of
the cryptography. Given a volume file and its key it walks header -> keyslot -> root ring -> root
payload -> segment table -> index -> records, replays the log, and prints any range of what clients
see. It is slow and writes nothing, and it is stricter than sealbd: only the newest root will do.

    format_reader.py VOLUME (--keyfile FILE | --dek-file FILE)
        [--range OFFSET LEN | --sector LBA | --verify-all]

--range and --sector write plain bytes to standard output. --verify-all authenticates every index
page and every mapped sector and prints a summary as JSON. Exit code 1: the volume is damaged or
the key does not fit, and standard error says where and why.
"""

import argparse
import hashlib
import hmac
import json
import struct
import sys

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SECTOR = 4096
TAG = 16
RECORD = SECTOR + TAG
FANOUT = 512
TOP_LEVEL = 2
HEADER_LEN = 64 * 1024
HEADER_OFFSETS = (0, 1 << 20)
SEGMENT_HEADER = 4096
BLOCK = 4096
RECORD_DOMAIN, CHUNK_DOMAIN, SEGMENT_DOMAIN, PAGE_DOMAIN, BLOB_DOMAIN = 1, 2, 3, 4, 5
LOG, INDEX, GC = 1, 2, 3
WRITE, ZERO, TRIM = 1, 2, 3
HOLE, ALLOCATED_ZERO = 0, 1
PASSPHRASE, KEYFILE, RECOVERY = 1, 2, 3


class Damaged(Exception):
    """The volume is not what the format says."""


def need(condition, why):
    if not condition:
        raise Damaged(why)


# --- primitives (FORMAT 2, 3) -------------------------------------------------------------------


def _crc_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC_TABLE = _crc_table()


def crc32c(data):
    """CRC-32C (Castagnoli), as iSCSI and ext4 use it."""
    crc = 0xFFFFFFFF
    table = _CRC_TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def mac(key, message):
    return hmac.new(key, message, hashlib.sha256).digest()


def expand(prk, info, length=32):
    """HKDF-Expand (RFC 5869)."""
    out, block, counter = b"", b"", 1
    while len(out) < length:
        block = mac(prk, block + info + bytes([counter]))
        out += block
        counter += 1
    return out[:length]


def nonce(domain, offset):
    return struct.pack("<IQ", domain, offset)


class Keys:
    """Every key of one epoch (FORMAT 2)."""

    def __init__(self, dek, salt, volume):
        prk = mac(salt + volume, dek)
        self.volume = volume
        self.commit = expand(prk, b"commit")
        self.header_mac = expand(prk, b"header-mac")
        self.root_ring = expand(prk, b"root-ring")
        self.segment_base = expand(prk, b"segment")
        self.uid = expand(prk, b"uid")

    def segment(self, kind, uid):
        return expand(self.segment_base, b"seg1" + bytes([kind]) + self.volume + uid)


class SegmentKey:
    """Seals and opens messages of one segment."""

    def __init__(self, keys, kind, uid):
        self.aead = AESGCM(keys.segment(kind, uid))

    def seal(self, domain, offset, aad, message):
        return self.aead.encrypt(nonce(domain, offset), message, aad)

    def open(self, domain, offset, aad, sealed, what):
        try:
            return self.aead.decrypt(nonce(domain, offset), bytes(sealed), aad)
        except (InvalidTag, ValueError):
            raise Damaged(f"{what}: authentication failed") from None


class Fields:
    """Takes fields off the front of bytes."""

    def __init__(self, data, what):
        self.data, self.at, self.what = data, 0, what

    def bytes(self, length):
        need(self.at + length <= len(self.data), f"{self.what}: cut short")
        self.at += length
        return bytes(self.data[self.at - length : self.at])

    def _unpack(self, form, length):
        return struct.unpack(form, self.bytes(length))[0]

    def u8(self):
        return self.bytes(1)[0]

    def u16(self):
        return self._unpack("<H", 2)

    def u32(self):
        return self._unpack("<I", 4)

    def u64(self):
        return self._unpack("<Q", 8)

    def zeros(self, length):
        need(not any(self.bytes(length)), f"{self.what}: bytes that must be zero are not")

    def end(self):
        need(self.at == len(self.data), f"{self.what}: bytes behind the structure")

    def end_padded(self):
        self.zeros(len(self.data) - self.at)

    def list(self, most, item):
        count = self.u32()
        need(count <= most, f"{self.what}: list of {count}")
        return [item() for _ in range(count)]


# --- header and keyslots (FORMAT 4) --------------------------------------------------------------


class Keyslot:
    def __init__(self, data):
        fields = Fields(data, "keyslot")
        self.state = fields.u8()
        if self.state == 0:
            fields.end_padded()
            return
        need(self.state <= 3, "keyslot: unknown state")
        self.type = fields.u8()
        fields.zeros(2)
        self.epoch = fields.u32()
        self.created = fields.u64()
        uri, wrapped, private = fields.u16(), fields.u16(), fields.u16()
        self.priority = fields.u16()
        need(uri <= 256 and wrapped <= 1024 and private <= 512, "keyslot: a part is too long")
        self.uri = fields.bytes(uri).decode()
        fields.zeros(256 - uri)
        self.wrapped = fields.bytes(wrapped)
        fields.zeros(1024 - wrapped)
        self.commit = fields.bytes(32)
        self.private = fields.bytes(private)
        fields.end_padded()


class Header:
    def __init__(self, data):
        fields = Fields(data, "header")
        need(len(data) == HEADER_LEN, "header: cut short")
        need(fields.bytes(8) == b"SEALBDV1", "header: wrong magic")
        image = bytearray(data)
        (crc,) = struct.unpack_from("<I", image, 4092)
        image[4092:4096] = bytes(4)
        need(crc == crc32c(image), "header: checksum mismatch")
        self.mac = bytes(image[4032:4064])
        image[4032:4064] = bytes(32)
        self.image = bytes(image)
        need((fields.u16(), fields.u16()) == (1, 0), "header: unknown version")
        need(fields.u32() == HEADER_LEN, "header: length")
        self.volume = fields.bytes(16)
        self.generation = fields.u64()
        self.compat, self.ro_compat, incompat = fields.u64(), fields.u64(), fields.u64()
        need(incompat == 0, "header: unknown incompatible features")
        self.suite = fields.u32()
        need(self.suite == 1, "header: unknown suite")
        need(fields.u32() == SECTOR, "header: sector size")
        self.align, self.segment_bytes = fields.u32(), fields.u32()
        self.export_bytes, self.slots, self.data_start = fields.u64(), fields.u64(), fields.u64()
        self.active_epoch, self.ring_slots = fields.u32(), fields.u32()
        self.ring_offset, self.dek_created = fields.u64(), fields.u64()
        self.salt, self.label = fields.bytes(32), fields.bytes(64)
        fields.zeros(4032 - 224)
        fields.bytes(32)
        fields.zeros(28)
        fields.bytes(4)
        self.keyslots = [Keyslot(fields.bytes(2048)) for _ in range(16)]
        fields.end_padded()

    def is_slot(self, phys):
        slot, rest = divmod(phys - self.data_start, self.segment_bytes)
        return phys >= self.data_start and rest == 0 and slot < self.slots


def unwrap(slot, header, secret):
    """The DEK of a keyslot that a keyfile (or recovery key) of 32 bytes wraps; None when it does not fit."""
    labels = {KEYFILE: b"sealbd keyfile ", RECOVERY: b"sealbd recovery "}
    if slot.type not in labels or len(slot.wrapped) != 60:
        return None
    prk = mac(header.volume, secret)
    kek = expand(prk, labels[slot.type] + b"kek v1")
    aad = header.volume + struct.pack("<IIB", slot.epoch, header.suite, slot.type)
    try:
        return AESGCM(kek).decrypt(slot.wrapped[:12], slot.wrapped[12:], aad)
    except InvalidTag:
        return None


# --- roots (FORMAT 5) ------------------------------------------------------------------------------


class Pointer:
    """Place of a blob."""

    def __init__(self, fields):
        self.uid, self.phys, self.epoch = fields.bytes(16), fields.u64(), fields.u32()
        self.offset, self.len = fields.u32(), fields.u32()


class RingBlock:
    def __init__(self, data, keys):
        fields = Fields(data, "ring block")
        need(fields.bytes(8) == b"SEALROOT", "ring block: wrong magic")
        need(struct.unpack_from("<I", data, 4092)[0] == crc32c(data[:4092]), "ring block: checksum mismatch")
        self.mac = mac(keys.root_ring, data[:4064])[:16]
        need(hmac.compare_digest(self.mac, data[4064:4080]), "ring block: authentication failed")
        self.generation, self.writer_epoch = fields.u64(), fields.u64()
        self.session_id = fields.bytes(16)
        self.header_generation = fields.u64()
        self.payload = Pointer(fields)
        fields.zeros(4064 - fields.at)
        fields.bytes(16)
        fields.zeros(12)
        fields.bytes(4)
        fields.end()


class LogSpan:
    def __init__(self, fields):
        self.handle, self.uid, self.phys = fields.u32(), fields.bytes(16), fields.u64()
        self.epoch, self.start_offset, self.start_seq = fields.u32(), fields.u32(), fields.u64()
        self.chain = fields.bytes(16)
        end = fields.u32()
        self.end_offset = None if end == 0xFFFFFFFF else end


class Root:
    def __init__(self, key, offset, generation, stored):
        envelope = Fields(stored, "root payload")
        place = lambda: (envelope.bytes(16), envelope.u64())
        self.added = envelope.list(8192, place)
        self.freed = envelope.list(8192, place)
        aad = struct.pack("<BQ", 1, generation) + stored[: envelope.at]
        plaintext = key.open(BLOB_DOMAIN, offset, aad, stored[envelope.at :], f"root {generation}")
        fields = Fields(plaintext, "root payload")
        self.generation = generation
        self.writer_epoch, self.min_header_generation = fields.u64(), fields.u64()
        self.export_bytes, self.sealed_messages = fields.u64(), fields.u64()
        self.previous = fields.list(16, lambda: fields.bytes(16))
        self.log_spans = fields.list(4096, lambda: LogSpan(fields))
        self.reserved = fields.list(4096, fields.u64)
        self.tops = fields.list(8192, fields.u64)
        self.table = fields.list(8192, lambda: Pointer(fields))
        fields.zeros(8)
        fields.end()


class Row:
    def __init__(self, fields):
        self.uid, self.phys, self.epoch = fields.bytes(16), fields.u64(), fields.u16()
        self.kind, self.state = fields.u8(), fields.u8()
        self.live, self.bytes, self.birth = fields.u32(), fields.u32(), fields.u32()
        need(self.kind in (LOG, INDEX, GC) and self.state in (1, 2), "segment table: bad row")
        need(self.live <= self.bytes, "segment table: live bytes")


def decode_table_part(plaintext):
    """first handle, rows (None: free)."""
    fields = Fields(plaintext, "segment table")
    first = fields.u32()

    def row():
        data = fields.bytes(40)
        return Row(Fields(data, "segment table")) if any(data) else None

    rows = fields.list(26_000, row)
    fields.end()
    return first, rows


# --- segments and chunks (FORMAT 6) -----------------------------------------------------------------


class SegmentHeader:
    def __init__(self, data, keys, key, kind):
        fields = Fields(data, "segment header")
        need(fields.bytes(8) == b"SEALSEG1", "segment header: wrong magic")
        need(struct.unpack_from("<I", data, 4092)[0] == crc32c(data[:4092]), "segment header: checksum mismatch")
        need((fields.u16(), fields.u8()) == (1, kind), "segment header: version or kind")
        fields.zeros(1)
        self.epoch, self.volume, self.uid = fields.u32(), fields.bytes(16), fields.bytes(16)
        self.phys, self.writer_epoch, self.first_log_seq = fields.u64(), fields.u64(), fields.u64()
        need(self.volume == keys.volume, "segment header: of another volume")
        links = key.open(SEGMENT_DOMAIN, 0, bytes(data[:72]), fields.bytes(80), "segment header")
        fields.zeros(4092 - fields.at)
        sealed = Fields(links, "segment header")
        self.previous_uid, self.previous_chain = sealed.bytes(16), sealed.bytes(16)
        self.next_uid, self.next_phys, self.created = sealed.bytes(16), sealed.u64(), sealed.u64()
        sealed.end()


def round_up(value, unit):
    return -(-value // unit) * unit


def chunk_places(end):
    """Where the chunk behind one that ends there may start: right there, or in the next physical block."""
    return sorted({end, round_up(end, BLOCK)})


class Chunk:
    """A chunk; raises Damaged unless an authentic one starts at `offset` of the segment."""

    def __init__(self, data, key, offset, align):
        fields = Fields(data, "chunk")
        need(fields.bytes(4) == b"CHNK", "chunk: wrong magic")
        self.len, self.seq = fields.u32(), fields.u64()
        self.header_len, self.record_count, self.crc = fields.u32(), fields.u32(), fields.u32()
        fields.zeros(4)
        entries, odd = divmod(self.header_len - 44, 16)
        need(odd == 0 and 0 <= entries <= 2048 and self.record_count <= 256, "chunk: header length")
        self.records_offset = round_up(32 + self.header_len, 16)
        need(self.len == round_up(self.records_offset + self.record_count * RECORD, align), "chunk: length")
        need(self.len <= len(data), "chunk: ends behind its segment")
        aad = bytes(data[:24]) + bytes(8)
        sealed = fields.bytes(self.header_len)
        self.tag = sealed[-TAG:]
        plaintext = Fields(key.open(CHUNK_DOMAIN, offset, aad, sealed, "chunk"), "chunk")
        self.chain, self.durable_seq = plaintext.bytes(16), plaintext.u64()
        self.entries = plaintext.list(2048, lambda: self._entry(plaintext))
        plaintext.end()
        self.offset = offset
        self.data = data[: self.len]

    def _entry(self, fields):
        lba = int.from_bytes(fields.bytes(6), "little")
        op = fields.u8()
        fields.zeros(1)
        count, rec = fields.u32(), fields.u32()
        need(op in (WRITE, ZERO, TRIM) and count > 0, "chunk: bad entry")
        need(rec + count <= self.record_count if op == WRITE else rec == 0, "chunk: records of an entry")
        return lba, op, count, rec

    def is_whole(self):
        """Whether no part of it was torn."""
        return crc32c(bytes(self.data[:24]) + bytes(4) + bytes(self.data[28:])) == self.crc


# --- index (FORMAT 7) ----------------------------------------------------------------------------------


def make_loc(handle, offset, length):
    return handle << 32 | offset // 16 << 10 | length // 16


def loc_parts(loc):
    """handle, offset and length in bytes."""
    return loc >> 32, (loc >> 10 & 0x3FFFFF) * 16, (loc & 0x3FF) * 16


def step(loc, records):
    return loc if loc >> 32 == 0 else loc + (records * (RECORD // 16) << 10)


def decode_page(plaintext, level):
    """The 512 locations of a page."""
    fields = Fields(plaintext, f"index page of level {level}")
    form, found, count = fields.u8(), fields.u8(), fields.u16()
    fields.zeros(4)
    need(form <= 1 and found == level, "index page: form or level")
    locs = [HOLE] * FANOUT
    if form == 1:
        need(count == FANOUT, "index page: count")
        locs = [fields.u64() for _ in range(FANOUT)]
    elif level == 0:
        end = 0
        for _ in range(count):
            start, length, loc = fields.u16(), fields.u16(), fields.u64()
            need(start >= end and length > 0 and start + length <= FANOUT, "leaf: extent")
            end = start + length
            for i in range(length):
                locs[start + i] = step(loc, i)
    else:
        least = 0
        for _ in range(count):
            index, loc = fields.u16(), fields.u64()
            need(least <= index < FANOUT and loc != HOLE, "index page: child")
            least = index + 1
            locs[index] = loc
    need(len(plaintext) % 16 == 0 and len(plaintext) - fields.at < 16, "index page: padding")
    fields.end_padded()
    for loc in locs:
        need(loc >> 32 or loc in (HOLE, ALLOCATED_ZERO), "index page: location")
    return locs


# --- a volume --------------------------------------------------------------------------------------------


class Volume:
    """A volume opened read-only: `read` gives what clients see."""

    def __init__(self, file, keyfile=None, dek=None):
        self.file = file
        self.counts = {"pages": 0, "mapped_sectors": 0, "verified_sectors": 0, "chunks": 0}
        self._unlock(keyfile, dek)
        self._segment_keys = {}
        self._pages = {}
        self._load_root()
        self.newer = {}  # lba -> loc
        self.newer_runs = []  # (first, count, loc) of ZERO and HOLE entries, too long to list
        self._replay()

    def at(self, offset, length):
        self.file.seek(offset)
        data = self.file.read(length)
        need(len(data) == length, f"the store ends before byte {offset + length}")
        return data

    def _unlock(self, keyfile, dek):
        copies, reasons = [], []
        for offset in HEADER_OFFSETS:
            try:
                copies.append(Header(self.at(offset, HEADER_LEN)))
            except Damaged as error:
                reasons.append(f"copy at {offset}: {error}")
        need(copies, "no header: " + "; ".join(reasons))
        self.header = header = max(copies, key=lambda copy: copy.generation)
        deks = [dek] if dek else []
        if keyfile:
            active = [slot for slot in header.keyslots if slot.state == 1 and slot.epoch == header.active_epoch]
            deks = [unwrap(slot, header, keyfile) for slot in active]
        for dek in filter(None, deks):
            keys = Keys(dek, header.salt, header.volume)
            if any(slot.state and slot.commit == keys.commit for slot in header.keyslots):
                break
        else:
            raise Damaged("no key fits")
        self.keys = keys
        need(hmac.compare_digest(mac(keys.header_mac, header.image), header.mac), "header: authentication failed")

    def key(self, kind, uid):
        if (kind, uid) not in self._segment_keys:
            self._segment_keys[kind, uid] = SegmentKey(self.keys, kind, uid)
        return self._segment_keys[kind, uid]

    def blob(self, pointer):
        need(self.header.is_slot(pointer.phys), "a blob lies in no slot")
        need(pointer.offset + pointer.len <= self.header.segment_bytes, "a blob ends behind its segment")
        return self.at(pointer.phys + pointer.offset, pointer.len)

    def _load_root(self):
        header = self.header
        blocks = []
        for slot in range(header.ring_slots):
            data = self.at(header.ring_offset + slot * 4096, 4096)
            if any(data):
                try:
                    block = RingBlock(data, self.keys)
                    need(block.generation % header.ring_slots == slot, "ring block: wrong place")
                    blocks.append(block)
                except Damaged as error:
                    blocks.append((slot, error))
        good = [block for block in blocks if isinstance(block, RingBlock)]
        need(good, "no usable root")
        newest = max(good, key=lambda block: block.generation)
        for bad in (block for block in blocks if not isinstance(block, RingBlock)):
            need(bad[0] == (newest.generation + 1) % header.ring_slots, f"ring slot {bad[0]}: {bad[1]}")
        pointer = newest.payload
        stored = self.blob(pointer)
        self.root = Root(self.key(INDEX, pointer.uid), pointer.offset, newest.generation, stored)
        need(self.root.min_header_generation <= header.generation, "the header is older than the root")
        need(self.root.export_bytes == header.export_bytes, "header and root name different sizes")
        self.rows = []
        for number, part in enumerate(self.root.table):
            aad = struct.pack("<BQ", 2, number)
            key = self.key(INDEX, part.uid)
            plaintext = key.open(BLOB_DOMAIN, part.offset, aad, self.blob(part), "segment table")
            first, rows = decode_table_part(plaintext)
            need(first == len(self.rows), "segment table: parts out of order")
            self.rows += rows
        need(self.rows and self.rows[0] is None, "segment table: row 0")

    def row(self, handle):
        need(handle < len(self.rows) and self.rows[handle], f"handle {handle} is not in the segment table")
        return self.rows[handle]

    # the log

    def _replay(self):
        spans = self.root.log_spans
        if not spans:
            return
        self._seq, self._chain, self._durable = spans[0].start_seq, spans[0].chain, 0
        for number, span in enumerate(spans):
            need((span.start_seq, span.chain) == (self._seq, self._chain), "log spans do not join")
            row = self.row(span.handle)
            need((row.uid, row.phys) == (span.uid, span.phys), "a log span names another segment")
            place = (span.uid, span.phys, span.handle)
            if span.end_offset is not None:
                chunks = self._chunks(place, span.start_offset, span.end_offset, self._seq, self._chain)
                end = chunks[-1].offset + chunks[-1].len if chunks else span.start_offset
                need(end == span.end_offset, "the closed log is damaged")
                self._take(chunks, place)
            else:
                need(number == len(spans) - 1, "an open log span before the last")
                self._replay_open(place, span)

    def _segment(self, phys, start, end):
        return memoryview(self.at(phys + start, end - start))

    def _chunk(self, place, data, start, offset):
        try:
            return Chunk(data[offset - start :], self.key(LOG, place[0]), offset, self.header.align)
        except Damaged:
            return None

    def _chunks(self, place, start, end, seq, chain):
        need(self.header.is_slot(place[1]) and start <= end <= self.header.segment_bytes, "log span")
        data = self._segment(place[1], start, end)
        chunks, offset = [], start
        while True:
            found = [self._chunk(place, data, start, at) for at in chunk_places(offset) if at < end]
            chunk = next((chunk for chunk in found if chunk and (chunk.seq, chunk.chain) == (seq, chain)), None)
            if not chunk:
                return chunks
            chunks.append(chunk)
            offset, seq, chain = chunk.offset + chunk.len, seq + 1, chunk.tag

    def _segment_header(self, uid, phys):
        try:
            header = SegmentHeader(self.at(phys, SEGMENT_HEADER), self.keys, self.key(LOG, uid), LOG)
        except Damaged:
            return None
        return header if (header.uid, header.phys) == (uid, phys) else None

    def _replay_open(self, place, span):
        tail = []
        seq, chain, start = self._seq, self._chain, span.start_offset
        while True:
            chunks = self._chunks(place, start, self.header.segment_bytes, seq, chain)
            tail.append((place, chunks))
            if chunks:
                seq, chain = chunks[-1].seq + 1, chunks[-1].tag
            own = self._segment_header(place[0], place[1])
            if not own or not self.header.is_slot(own.next_phys):
                break
            following = self._segment_header(own.next_uid, own.next_phys)
            if not following:
                break
            joins = (following.previous_uid, following.previous_chain, following.first_log_seq)
            if joins != (place[0], chain, seq):
                break
            place, start = (own.next_uid, own.next_phys, self._handle(own.next_uid, own.next_phys)), SEGMENT_HEADER
        durable = max([self._durable] + [c.durable_seq for _, chunks in tail for c in chunks])
        end = start
        for place, chunks in tail:
            whole = [chunk.seq <= durable or chunk.is_whole() for chunk in chunks] + [False]
            kept = whole.index(False)
            self._take(chunks[:kept], place)
            end = chunks[kept - 1].offset + chunks[kept - 1].len if kept else SEGMENT_HEADER
            if place is tail[0][0] and not kept:
                end = span.start_offset
            if kept < len(chunks):
                break
        self._no_later_proof(place, end)

    def _no_later_proof(self, place, end):
        """Nothing behind the end of the log may prove that the chunk missing there was flushed."""
        while True:
            data = self._segment(place[1], end, self.header.segment_bytes)
            for at in range(0, len(data), self.header.align):
                chunk = self._chunk(place, data, end, end + at) if data[at : at + 4] == b"CHNK" else None
                proves = chunk and chunk.seq > self._seq and chunk.durable_seq >= self._seq
                need(not proves, f"the log is damaged at chunk {self._seq}: a later one proves that it was flushed")
            own = self._segment_header(place[0], place[1])
            if not own or not self.header.is_slot(own.next_phys):
                return
            place, end = (own.next_uid, own.next_phys, 0), SEGMENT_HEADER

    def _handle(self, uid, phys):
        for handle, row in enumerate(self.rows):
            if row and row.uid == uid:
                return handle
        row = Row(Fields(uid + struct.pack("<QHBBIII", phys, 1, LOG, 1, 0, 0, 0), "row"))
        self.rows.append(row)
        return len(self.rows) - 1

    def _take(self, chunks, place):
        for chunk in chunks:
            self.counts["chunks"] += 1
            self._seq, self._chain = chunk.seq + 1, chunk.tag
            self._durable = max(self._durable, chunk.durable_seq)
            for lba, op, count, rec in chunk.entries:
                need((lba + count) * SECTOR <= self.header.export_bytes, "a chunk reaches behind the export")
                if op == WRITE:
                    first = make_loc(place[2], chunk.offset + chunk.records_offset + rec * RECORD, RECORD)
                    for i in range(count):
                        self.newer[lba + i] = step(first, i)
                else:
                    special = ALLOCATED_ZERO if op == ZERO else HOLE
                    for known in [known for known in self.newer if lba <= known < lba + count]:
                        del self.newer[known]
                    self.newer_runs.append((lba, count, special))

    # the index

    def page(self, loc, level, number):
        if loc not in self._pages:
            handle, offset, length = loc_parts(loc)
            row = self.row(handle)
            need(offset + length <= self.header.segment_bytes, "an index page ends behind its segment")
            aad = struct.pack("<BQ", level, number)
            sealed = self.at(row.phys + offset, length)
            what = f"index page {number} of level {level} at byte {row.phys + offset}"
            plaintext = self.key(row.kind, row.uid).open(PAGE_DOMAIN, offset, aad, sealed, what)
            self._pages[loc] = decode_page(plaintext, level)
            self.counts["pages"] += 1
        return self._pages[loc]

    def locate(self, lba):
        """Where a sector lies."""
        if lba in self.newer:
            return self.newer[lba]
        for first, count, loc in reversed(self.newer_runs):
            if first <= lba < first + count:
                return loc
        numbers = [lba // FANOUT ** (level + 1) for level in range(TOP_LEVEL + 1)]
        need(numbers[TOP_LEVEL] < len(self.root.tops), "a sector behind the index")
        loc = self.root.tops[numbers[TOP_LEVEL]]
        for level in range(TOP_LEVEL, -1, -1):
            if loc >> 32 == 0:
                return loc
            child = numbers[level - 1] if level else lba
            loc = self.page(loc, level, numbers[level])[child % FANOUT]
        return loc

    def sector(self, lba):
        loc = self.locate(lba)
        if loc >> 32 == 0:
            return bytes(SECTOR)
        handle, offset, length = loc_parts(loc)
        row = self.row(handle)
        need(length == RECORD and offset + RECORD <= self.header.segment_bytes, "a location is no record's")
        record = self.at(row.phys + offset, RECORD)
        aad = struct.pack("<Q", lba)
        what = f"sector {lba} at byte {row.phys + offset}"
        self.counts["verified_sectors"] += 1
        return self.key(row.kind, row.uid).open(RECORD_DOMAIN, offset, aad, record, what)

    def read(self, offset, length):
        need(0 <= offset and 0 <= length and offset + length <= self.header.export_bytes, "behind the export")
        first, last = offset // SECTOR, -(-(offset + length) // SECTOR)
        data = b"".join(self.sector(lba) for lba in range(first, last))
        return data[offset - first * SECTOR :][:length]

    def mapped(self):
        """Every sector that is mapped to a record, ascending."""
        found = set(self.newer)

        def walk(loc, level, number):
            if loc >> 32 == 0:
                return
            for index, child in enumerate(self.page(loc, level, number)):
                if level:
                    walk(child, level - 1, number * FANOUT + index)
                elif child >> 32:
                    found.add(number * FANOUT + index)

        for number, top in enumerate(self.root.tops):
            walk(top, TOP_LEVEL, number)
        return sorted(lba for lba in found if self.locate(lba) >> 32)

    def verify_all(self):
        mapped = self.mapped()
        self.counts["mapped_sectors"] = len(mapped)
        self.counts["verified_sectors"] = 0
        for lba in mapped:
            self.sector(lba)
        return {
            "volume": self.header.volume.hex(),
            "header_generation": self.header.generation,
            "root": self.root.generation,
            "writer_epoch": self.root.writer_epoch,
            "export_bytes": self.header.export_bytes,
            **self.counts,
        }


def main():
    parser = argparse.ArgumentParser(description="Reads a sealbd volume without sealbd.")
    parser.add_argument("volume")
    secret = parser.add_mutually_exclusive_group(required=True)
    secret.add_argument("--keyfile", help="file of 32 bytes that a keyslot was made with")
    secret.add_argument("--dek-file", help="file of 32 bytes: the data key itself (tests)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--range", nargs=2, type=int, metavar=("OFFSET", "LEN"))
    what.add_argument("--sector", type=int, metavar="LBA")
    what.add_argument("--verify-all", action="store_true")
    args = parser.parse_args()
    keyfile = open(args.keyfile, "rb").read() if args.keyfile else None
    dek = open(args.dek_file, "rb").read() if args.dek_file else None
    try:
        with open(args.volume, "rb") as file:
            volume = Volume(file, keyfile, dek)
            if args.range:
                sys.stdout.buffer.write(volume.read(*args.range))
            elif args.sector is not None:
                sys.stdout.buffer.write(volume.sector(args.sector))
            else:
                print(json.dumps(volume.verify_all()))
    except Damaged as error:
        print(f"format_reader: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
