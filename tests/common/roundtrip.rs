//! One function per decoder of bytes that come from outside: whatever the bytes are, it does not panic, and what it
//! accepts is encoded again to the same bytes. Shared by the fuzz targets (`fuzz/`), by the test that replays their
//! corpora, and by the random tests.
#![allow(dead_code, reason = "every test and fuzz target uses a part of these")]

use keymgmt::keyfile::Keyfile;
use keymgmt::manager::{KeyManager, WrapContext, WrappedKey};
use keymgmt::recovery::Recovery;
use keymgmt::registry::Registry;
use keymgmt::secret::{Secret32, SecretBytes};
use sealbd::audit::{Chain, LineReader, Record};
use sealbd::cipher::nonce::Domain;
use sealbd::cipher::{OpenSegmentKey, Surroundings, UidSource, VolumeKeys};
use sealbd::control::protocol::{self, read_line, write_line};
use sealbd::export::ExportInfo;
use sealbd::format::chunk::{ChunkHeader, ChunkLayout, ChunkPrefix, PREFIX_LEN};
use sealbd::format::header::{HEADER_LEN, UnverifiedHeader};
use sealbd::format::keyslot::{KEYSLOT_LEN, Keyslot};
use sealbd::format::page::{Inner, Leaf};
use sealbd::format::root::{RING_BLOCK_LEN, RingBlock, Root};
use sealbd::format::segment::{SEGMENT_HEADER_LEN, SegmentHeader, SegmentKind};
use sealbd::format::table::TablePart;
use sealbd::nbd::handshake::{Handshake, Offer, Step};
use sealbd::nbd::request::{Verdict, judge, judge_filter};
use sealbd::nbd::{Mode, ReplyStyle};
use sealbd::store::uri::StoreUri;
use sealbd::volume::anchor::FileAnchor;
use sealbd::wire::WireError;
use sealbd::wire::option::{
    ClientFlags, ExportNameReply, Hello, Info, InfoQuery, ListedExport, MetaContext, MetaContextQuery,
    OptionReply, OptionRequest, export_name,
};
use sealbd::wire::payload::{BlockStatus, ErrorChunk, OffsetHole, StatusFilter, decode_offset_data};
use sealbd::wire::transmission::{
    Chunk, ChunkKind, ERROR_TEXT_LEN_MAX, HeaderStyle, ReplyMagic, Request, SimpleReply,
};
use sha2::{Digest, Sha256};

/// The name of a fuzz target, and what it does with an input.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// Every fuzz target.
pub(crate) const TARGETS: &[Target] = &[
    ("header", header),
    ("keyslot", keyslot),
    ("ring_block", ring_block),
    ("root_plaintext", root_plaintext),
    ("root_stored", root_stored),
    ("table_part", table_part),
    ("segment_header", segment_header),
    ("chunk_prefix", chunk_prefix),
    ("chunk_header", chunk_header),
    ("leaf", leaf),
    ("inner", inner),
    ("nbd_handshake", nbd_handshake),
    ("nbd_options", nbd_options),
    ("nbd_session", nbd_session),
    ("nbd_replies", nbd_replies),
    ("audit_log", audit_log),
    ("control_lines", control_lines),
    ("anchor_file", anchor_file),
    ("arguments", arguments),
    #[cfg(feature = "kmip")]
    ("kmip_response", kmip_response),
];

const STYLES: [HeaderStyle; 2] = [HeaderStyle::Compact, HeaderStyle::Extended];

fn keys() -> VolumeKeys {
    super::golden::keys(sealbd::cipher::Engine::default())
}

/// A key that seals, for a uid of its own (rule R3), and its reader.
fn fresh_key(keys: &VolumeKeys, kind: SegmentKind, bytes: u64) -> OpenSegmentKey {
    let source = UidSource::new(Surroundings::system(Vec::new())).expect("the system has random numbers");
    let uid = source.fresh(keys).expect("the system has random numbers");
    OpenSegmentKey::create(keys, kind as u8, uid, bytes)
}

/// The first `len` bytes of the input, filled up with zeros.
fn padded(data: &[u8], len: usize) -> Vec<u8> {
    let mut bytes = data[..data.len().min(len)].to_vec();
    bytes.resize(len, 0);
    bytes
}

/// The input as it is; then its first 224 bytes as the fields of a header and the rest as its keyslots, with
/// the magic and the checksum made right.
pub(crate) fn header(data: &[u8]) {
    let _ = UnverifiedHeader::decode(data);
    let (fields, keyslots) = data.split_at(data.len().min(224));
    let mut image = padded(fields, 4096);
    image.extend(padded(keyslots, HEADER_LEN - 4096));
    image[..8].copy_from_slice(b"SEALBDV1");
    let fix = |image: &mut [u8]| {
        image[4092..4096].fill(0);
        let crc = crc32c::crc32c(image);
        image[4092..4096].copy_from_slice(&crc.to_le_bytes());
    };
    fix(&mut image);
    let Ok(copy) = UnverifiedHeader::decode(&image) else { return };
    let keys = keys();
    let again = copy.claimed().encode(&keys);
    let claimed = copy.claimed().clone();
    assert!(copy.verify(&keys).is_err(), "a MAC of zeros");
    // Only the MAC is new.
    image[4032..4064].copy_from_slice(&again[4032..4064]);
    fix(&mut image);
    assert!(again == image, "re-encoded");
    let verified = UnverifiedHeader::decode(&again).and_then(|copy| copy.verify(&keys));
    assert_eq!(verified, Ok(claimed));
}

pub(crate) fn keyslot(data: &[u8]) {
    let bytes = padded(data, KEYSLOT_LEN);
    if let Ok(slot) = Keyslot::decode(bytes.as_slice().try_into().expect("padded")) {
        assert!(Keyslot::encode(slot.as_ref()) == bytes, "re-encoded");
        slot.iter().for_each(|slot| foreign_key(&slot.key));
    }
}

/// A wrapped key that a stranger wrote: every manager describes or refuses it, and none takes it for its own.
fn foreign_key(key: &WrappedKey) {
    let _ = Registry::built_in().describe(key);
    let context = WrapContext { volume: [0x5e; 16], epoch: 1, suite: 1 };
    let keyfile = Keyfile::from_secret(Secret32::take(&mut [9; 32]));
    assert!(
        !matches!(at_once(keyfile.unwrap(key, context)), Ok(Some(_))),
        "opened by a key that did not wrap it"
    );
}

/// What people type: a store, a key, recovery words.
pub(crate) fn arguments(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        if let Ok(uri) = text.parse::<StoreUri>() {
            let printed = uri.to_string();
            let again: StoreUri = printed.parse().expect("what is printed can be typed");
            assert_eq!(again.to_string(), printed, "and means the same");
        }
        let _ = Registry::built_in().parse(text);
    }
    let Ok(typed) = SecretBytes::take(&mut data.to_vec()) else { return };
    if let Ok(recovery) = Recovery::parse(&typed) {
        let words = recovery.words();
        let again = Recovery::parse(&words).expect("what is shown can be typed");
        assert!(again.words().expose() == words.expose(), "and is the same");
    }
}

/// The input as it is, and with checksum and MAC made right.
pub(crate) fn ring_block(data: &[u8]) {
    let keys = keys();
    let mut bytes = padded(data, RING_BLOCK_LEN);
    let _ = RingBlock::decode(data, &keys);
    bytes[..8].copy_from_slice(b"SEALROOT");
    let mac = keys.root_mac(&bytes[..4064]);
    bytes[4064..4080].copy_from_slice(&mac);
    let crc = crc32c::crc32c(&bytes[..4092]);
    bytes[4092..].copy_from_slice(&crc.to_le_bytes());
    if let Ok(Some((block, found))) = RingBlock::decode(&bytes, &keys) {
        assert_eq!(found, mac);
        assert!(block.encode(&keys) == (bytes, mac), "re-encoded");
    }
}

pub(crate) fn root_plaintext(data: &[u8]) {
    if let Ok(root) = Root::decode(1, Vec::new(), Vec::new(), data) {
        assert!(root.encode() == data, "re-encoded");
    }
}

/// Two bytes: the length of the envelope; then the envelope, then the plaintext of the sealed part.
pub(crate) fn root_stored(data: &[u8]) {
    let Some((len, rest)) = data.split_first_chunk::<2>() else { return };
    let (envelope, plaintext) = rest.split_at(rest.len().min(u16::from_le_bytes(*len).into()));
    let keys = keys();
    let generation = 7u64;
    let room = data.len() as u64 + 64;
    let mut key = fresh_key(&keys, SegmentKind::Index, room);
    let aad = [&[1u8], generation.to_le_bytes().as_slice(), envelope].concat();
    let mut stored = plaintext.to_vec();
    let place = key.reserve(room).expect("the segment's whole length");
    let tag = place.seal_message(Domain::Blob, &aad, &mut stored);
    let stored = [envelope, &stored, &tag].concat();
    let Ok(root) = Root::open(&key.reader(), 0, generation, &stored) else { return };
    assert!(root.encode() == plaintext, "re-encoded");
    assert_eq!(root.sealed_len(), stored.len());
    let mut key = fresh_key(&keys, SegmentKind::Index, room);
    let again = root.seal(key.reserve(room).expect("the segment's whole length"));
    assert!(again.starts_with(envelope), "the envelope is the same");
    assert_eq!(Root::open(&key.reader(), 0, generation, &again), Ok(root));
}

pub(crate) fn table_part(data: &[u8]) {
    if let Ok(part) = TablePart::decode(data) {
        assert!(part.encode() == data, "re-encoded");
    }
}

/// The first 72 bytes as envelope, the next 64 as links, sealed.
pub(crate) fn segment_header(data: &[u8]) {
    let keys = keys();
    for kind in [SegmentKind::Log, SegmentKind::Index, SegmentKind::Gc] {
        let mut key = fresh_key(&keys, kind, SEGMENT_HEADER_LEN as u64);
        let _ = SegmentHeader::open(data, &keys, &key.reader(), kind);
        let mut envelope = padded(data, 72);
        envelope[..8].copy_from_slice(b"SEALSEG1");
        envelope[10] = kind as u8;
        envelope[16..32].copy_from_slice(keys.volume());
        envelope[32..48].copy_from_slice(&key.reader().uid().0);
        let links = padded(data.get(72..).unwrap_or_default(), 64);
        let mut sealed = links.clone();
        let place = key.reserve(SEGMENT_HEADER_LEN as u64).expect("the segment's whole length");
        let tag = place.seal_message(Domain::SegmentHeader, &envelope, &mut sealed);
        let mut bytes = padded(&[envelope.as_slice(), &sealed, &tag].concat(), 4092);
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        let Ok(header) = SegmentHeader::open(&bytes, &keys, &key.reader(), kind) else { continue };
        // The same header under another uid: all but what depends on the key is the same.
        let mut other = fresh_key(&keys, kind, SEGMENT_HEADER_LEN as u64);
        let header = SegmentHeader { uid: other.reader().uid(), ..header };
        let place = other.reserve(SEGMENT_HEADER_LEN as u64).expect("the segment's whole length");
        let again = header.seal(place);
        assert!(again[..32] == bytes[..32] && again[48..72] == bytes[48..72], "re-encoded");
        let opened = other.reader().open_message(Domain::SegmentHeader, 0, &again[..72], &again[72..152]);
        assert_eq!(opened.as_deref(), Ok(links.as_slice()), "re-encoded");
    }
}

pub(crate) fn chunk_prefix(data: &[u8]) {
    let bytes: [u8; PREFIX_LEN] = padded(data, PREFIX_LEN).try_into().expect("padded");
    for align in [512, 4096] {
        for room in [0, 4096, 1 << 20, 64 << 20] {
            let Ok(prefix) = ChunkPrefix::decode(&bytes, align, room) else { continue };
            assert_eq!(prefix.encode(), bytes);
            let layout = prefix.layout(align);
            assert_eq!(layout.chunk_len, prefix.chunk_bytes as usize);
            assert!(layout.chunk_len as u64 <= room && layout.records_offset <= layout.chunk_len);
            let _ = prefix.checksum_fits(&bytes);
        }
    }
}

/// One byte: the number of records; then the plaintext of a chunk header.
pub(crate) fn chunk_header(data: &[u8]) {
    let Some((records, plaintext)) = data.split_first() else { return };
    let Ok(header) = ChunkHeader::decode(plaintext, (*records).into()) else { return };
    assert!(header.encode_plaintext() == plaintext, "re-encoded");
    let keys = keys();
    let layout = ChunkLayout::new(header.entries.len(), (*records).into(), 4096);
    // Chunks of the log and of the cold stream are laid out alike, under keys of their own.
    for kind in [SegmentKind::Log, SegmentKind::Gc] {
        let mut key = fresh_key(&keys, kind, 2 << 20);
        let place = key.reserve(layout.records_offset as u64).expect("a header is at most 33 KiB long");
        let (mut bytes, tag) = header.seal(5, (*records).into(), 4096, place);
        bytes.resize(layout.chunk_len, 0);
        let prefix = bytes.first_chunk().expect("longer than a prefix");
        let prefix = ChunkPrefix::decode(prefix, 4096, bytes.len() as u64).expect("just encoded");
        assert_eq!(ChunkHeader::open(&prefix, &key.reader(), 0, &bytes), Ok((header.clone(), tag)));
    }
}

pub(crate) fn leaf(data: &[u8]) {
    let Ok(leaf) = Leaf::decode(data) else { return };
    assert!(leaf.encode() == data, "re-encoded");
    let locs = leaf.to_locs();
    if let Some(shortest) = Leaf::from_locs(&locs) {
        assert!(shortest.to_locs() == locs);
        assert_eq!(Leaf::decode(&shortest.encode()), Ok(shortest.clone()));
        for index in [0, 1, 255, 511] {
            assert_eq!(leaf.run_at(index, 1).0, locs[index]);
            assert_eq!(shortest.run_at(index, 1).0, locs[index]);
        }
    }
}

/// One byte: the level; then the plaintext of a page.
pub(crate) fn inner(data: &[u8]) {
    let Some((level, plaintext)) = data.split_first() else { return };
    if let Ok(inner) = Inner::decode(plaintext, *level) {
        assert!(inner.encode() == plaintext, "re-encoded");
    }
}

fn offers() -> Vec<Offer> {
    let info = |size, read_only| ExportInfo { size, read_only, description: "a test".into() };
    vec![Offer::new("disk", info(1 << 30, false)), Offer::new("", info(4096, true))]
}

/// What a client sends before transmission; returns what was agreed on and what is left of the input.
fn negotiate(data: &[u8]) -> Option<(Mode, &[u8])> {
    let mut handshake = Handshake::new(offers());
    let mut out = Vec::new();
    handshake.hello(&mut out);
    let mut rest = data;
    loop {
        let before = out.len();
        let (done, step) = handshake.receive(rest, &mut out);
        assert!(out.len() - before <= 64 << 10, "answers are bounded");
        rest = &rest[done..];
        match step {
            Step::Again => assert!(done > 0, "no progress"),
            // The whole input is there already: nothing more comes.
            Step::Receive | Step::Close => return None,
            Step::Transmit(mode) => return Some((mode, rest)),
        }
    }
}

pub(crate) fn nbd_handshake(data: &[u8]) {
    if let Some((mode, _)) = negotiate(data) {
        assert!(mode.export < offers().len());
    }
}

/// The payloads of options and of their answers, which both sides read.
pub(crate) fn nbd_options(data: &[u8]) {
    macro_rules! same {
        ($decoded:expr) => {
            if let Ok(message) = $decoded {
                let mut out = Vec::new();
                message.encode(&mut out);
                assert!(out == data, "re-encoded");
            }
        };
    }
    same!(Hello::decode(data));
    same!(ClientFlags::decode(data));
    same!(ExportNameReply::decode(data));
    same!(InfoQuery::decode(data));
    same!(MetaContextQuery::decode(data));
    same!(MetaContext::decode(data));
    same!(ListedExport::decode(data));
    // Of information that this version does not know, the kind alone is kept.
    same!(Info::decode(data).and_then(|info| match info {
        Info::Unknown(_) => Err(WireError::Short),
        known => Ok(known),
    }));
    let _ = export_name(data);
    let _ = OptionRequest::decode(data);
    let _ = OptionReply::decode(data);
}

/// What a client sends after the handshake. The first byte chooses what was agreed on.
pub(crate) fn nbd_session(data: &[u8]) {
    let Some((choice, mut rest)) = data.split_first() else { return };
    let replies = match choice % 3 {
        0 => ReplyStyle::Simple,
        1 => ReplyStyle::Structured(HeaderStyle::Compact),
        _ => ReplyStyle::Structured(HeaderStyle::Extended),
    };
    let mode = Mode { export: 0, replies, allocation_context: (choice & 4 != 0).then_some(1) };
    let info = ExportInfo { size: 1 << 30, read_only: choice & 8 != 0, description: String::new() };
    let style = mode.headers();
    while let Some((bytes, later)) = rest.split_at_checked(style.request_len()) {
        let Ok(request) = Request::decode(style, bytes) else { return };
        let mut out = Vec::new();
        request.encode(style, &mut out);
        assert!(out == bytes, "re-encoded");
        rest = later;
        match judge(&request, &mode, &info) {
            Verdict::Run(operation) => {
                assert!(operation.cost_bytes() <= sealbd::nbd::PAYLOAD_LEN_MAX);
                if let sealbd::nbd::request::Operation::Write(range, _) = operation {
                    rest = rest.get(usize::try_from(range.len()).expect("32 MiB")..).unwrap_or_default();
                }
            }
            Verdict::Filter(len) => {
                assert!(len <= 12);
                let Some((payload, later)) = rest.split_at_checked(len) else { return };
                rest = later;
                if let Ok(filter) = StatusFilter::decode(payload) {
                    let mut out = Vec::new();
                    filter.encode(&mut out);
                    assert!(out == payload, "re-encoded");
                }
                let _ = judge_filter(&request, payload, &mode, &info);
            }
            Verdict::Refuse(_, len) => {
                let len = usize::try_from(len).expect("bounded by REFUSED_PAYLOAD_LEN_MAX");
                rest = rest.get(len..).unwrap_or_default();
            }
            Verdict::Disconnect | Verdict::HangUp => return,
        }
    }
}

/// What a server sends to us as its client, after the handshake.
pub(crate) fn nbd_replies(data: &[u8]) {
    let mut rest = data;
    while let Ok(magic) = ReplyMagic::decode(rest) {
        let Some((bytes, later)) = rest.split_at_checked(magic.header_len()) else { return };
        rest = later;
        let mut out = Vec::new();
        let style = match magic {
            ReplyMagic::Simple => {
                SimpleReply::decode(bytes).expect("the magic fits").encode(&mut out);
                assert!(out == bytes, "re-encoded");
                continue;
            }
            ReplyMagic::Chunk(style) => style,
        };
        let chunk = Chunk::decode(style, bytes).expect("the magic fits");
        chunk.encode(style, &mut out);
        assert!(out == bytes, "re-encoded");
        let len = usize::try_from(chunk.len).unwrap_or(usize::MAX);
        let Some((payload, later)) = rest.split_at_checked(len) else { return };
        rest = later;
        chunk_payload(chunk.kind, payload);
    }
}

/// An audit log: every line of it alone, and the chain.
pub(crate) fn audit_log(data: &[u8]) {
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        if let Ok(record) = Record::decode(line) {
            let encoded = record.encode();
            assert!(
                encoded.strip_suffix(b"\n") == Some(line.strip_suffix(b"\n").unwrap_or(line)),
                "re-encoded"
            );
        }
    }
    let (mut chain, mut reader) = (Chain::new(None, None), LineReader::new(data));
    while let Some(piece) = reader.piece().expect("bytes in memory are read") {
        if chain.piece(piece).is_err() {
            return;
        }
    }
    if chain.end_of_file().is_ok() {
        let summary = chain.finish().expect("nothing was awaited");
        let lines = data.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
        assert!(summary.records <= lines as u64, "a record is a line");
    }
}

/// What is said on a control socket, as requests and as answers; spellings differ, meanings do not.
pub(crate) fn control_lines(data: &[u8]) {
    let mut reader = data;
    while let Some(read) = control_line(&mut reader, |reader| at_once(read_line::<protocol::Request>(reader)))
    {
        let Ok(Some(request)) = read else { continue };
        let encoded = control_encoded(|out| at_once(write_line(out, &request)));
        let again: protocol::Request = control_decoded(at_once(read_line(&mut encoded.as_slice())));
        assert!(control_encoded(|out| at_once(write_line(out, &again))) == encoded, "re-encoded");
    }
    let mut reader = data;
    while let Some(read) = control_line(&mut reader, |reader| at_once(read_line::<protocol::Answer>(reader)))
    {
        let Ok(Some(answer)) = read else { continue };
        let encoded = control_encoded(|out| at_once(write_line(out, &answer)));
        let again: protocol::Answer = control_decoded(at_once(read_line(&mut encoded.as_slice())));
        assert!(control_encoded(|out| at_once(write_line(out, &again))) == encoded, "re-encoded");
    }
}

/// The file of an anchor: as it is, and with the right sum behind its first line, or fuzzing would end there. Its JSON
/// may be spaced otherwise than ours.
pub(crate) fn anchor_file(data: &[u8]) {
    const VOLUME: [u8; 16] = [0x5e; 16];
    let line = data.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
    let sum: String = Sha256::digest(line).iter().map(|byte| format!("{byte:02x}")).collect();
    for text in [data, &[line, sum.as_bytes(), b"\n"].concat()] {
        let Ok(anchored) = FileAnchor::decode(VOLUME, text) else { continue };
        let encoded = FileAnchor::encode(VOLUME, anchored);
        assert_eq!(FileAnchor::decode(VOLUME, &encoded), Ok(anchored));
        FileAnchor::decode([0x5f; 16], &encoded).expect_err("it is that of another volume");
    }
}

/// Reads a line, if there is one, and nothing beyond it.
fn control_line<T>(reader: &mut &[u8], read: impl FnOnce(&mut &[u8]) -> T) -> Option<T> {
    let before = *reader;
    let line_len = before.iter().position(|byte| *byte == b'\n').map_or(before.len(), |at| at + 1);
    let line = (!before.is_empty()).then(|| read(reader));
    assert!(before.len() - reader.len() <= line_len, "nothing is read beyond a line");
    line
}

fn control_encoded(write: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out).expect("memory takes it");
    out
}

fn control_decoded<T>(read: std::io::Result<Option<T>>) -> T {
    read.expect("our own").expect("a line")
}

/// Polls what never waits.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(done) => done,
        std::task::Poll::Pending => panic!("reading from memory waits"),
    }
}

fn chunk_payload(kind: ChunkKind, payload: &[u8]) {
    let mut out = Vec::new();
    if let Ok(hole) = OffsetHole::decode(payload) {
        hole.encode(&mut out);
        assert!(out == payload, "re-encoded");
    }
    let _ = decode_offset_data(payload);
    for style in STYLES {
        if let Ok(status) = BlockStatus::decode(style, payload) {
            out.clear();
            status.encode(style, &mut out);
            assert!(out == payload, "re-encoded");
        }
    }
    if let Ok(error) = ErrorChunk::decode(kind, payload) {
        out.clear();
        error.encode(&mut out);
        // Kinds that this version does not know carry more, and text may be malformed or longer than ours.
        let known = kind == error.kind() && error.text.len() <= ERROR_TEXT_LEN_MAX;
        let text_len = usize::from(u16::from_be_bytes([payload[4], payload[5]]));
        if known && error.text.len() == text_len {
            assert!(out == payload, "re-encoded");
        }
    }
}

/// An answer of a KMIP server: the message, and every value in it asked for by its tag.
#[cfg(feature = "kmip")]
pub(crate) fn kmip_response(data: &[u8]) {
    use keymgmt::kmip::messages::{Answer, Outcome};
    use keymgmt::kmip::ttlv::Item;

    fn walk(item: &Item<'_>) {
        for part in item.items() {
            let found = [item.text(part.tag).is_some(), item.bytes(part.tag).is_some()];
            let number = [item.enumeration(part.tag).is_some(), item.integer(part.tag).is_some()];
            let types = found.into_iter().chain(number).filter(|is| *is).count();
            assert!(types <= usize::from(item.one(part.tag).is_some()), "one type at most");
            walk(part);
        }
    }
    match Item::decode(data) {
        Ok(item) => {
            assert!(*item.encode() == data, "re-encoded");
            walk(&item);
        }
        Err(_) => assert!(Answer::decode(data).is_err()),
    }
    if let Ok(Answer { outcome: Outcome::Done(payload), .. }) = Answer::decode(data) {
        walk(&payload);
    }
}
