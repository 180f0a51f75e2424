//! What is in the memory of a suspended server: no key, in no form in which one is used.

use std::collections::HashMap;

use hkdf::Hkdf;
use rustix::process::Pid;
use sha2::Sha256;

use super::*;
use crate::common::memory::memory_of;
use crate::common::programs::skip;

/// A round key of AES, and half a key.
type Piece = [u8; 16];

/// All keys of a volume by their pieces, derived as docs/FORMAT.md §2 says.
struct Keys {
    pieces: HashMap<Piece, String>,
}

impl Keys {
    fn of(desk: &Desk) -> Self {
        let Unlocked { header, dek, .. } = unlocked(desk);
        let mut keys = Self { pieces: HashMap::new() };
        keys.add("data key", dek.0.expose());
        let salt = [&header.salt[..], &header.volume].concat();
        let (prk, hkdf) = Hkdf::<Sha256>::extract(Some(&salt), dek.0.expose());
        keys.add("extracted key", &prk.into());
        let mut derived = HashMap::new();
        for label in ["header-mac", "root-ring", "segment", "uid"] {
            let mut key = [0; 32];
            hkdf.expand(label.as_bytes(), &mut key).expect("one block");
            keys.add(label, &key);
            derived.insert(label, key);
        }
        let base = Hkdf::<Sha256>::from_prk(&derived["segment"]).expect("32 bytes");
        let store = desk.bytes("vol");
        for slot in 0..header.slots {
            let at = usize::try_from(header.slot_offset(slot)).expect("a small volume");
            // Kind and uid of a segment stand in its header in plain text (docs/FORMAT.md §6).
            let Some(segment) = store.get(at..at + 48).filter(|bytes| bytes.starts_with(b"SEALSEG1")) else {
                continue;
            };
            let info = [b"seg1", &segment[10..11], &header.volume, &segment[32..48]].concat();
            let mut key = [0; 32];
            base.expand(&info, &mut key).expect("one block");
            for (round, piece) in schedule(&key).into_iter().enumerate() {
                keys.pieces.insert(piece, format!("segment key of slot {slot}, round {round}"));
            }
        }
        keys
    }

    fn add(&mut self, name: &str, key: &[u8; 32]) {
        for half in key.chunks(16) {
            self.pieces.insert(half.try_into().expect("half a key"), name.to_owned());
        }
    }

    /// Which of them are in the memory of a process, sorted.
    fn found(&self, pid: u32) -> Vec<String> {
        let pid = Pid::from_raw(pid.cast_signed()).expect("a process");
        // Most places are passed over by their first two bytes alone.
        let mut begins = vec![false; 1 << 16];
        let begin = |piece: &[u8]| usize::from(piece[0]) << 8 | usize::from(piece[1]);
        self.pieces.keys().for_each(|piece| begins[begin(piece)] = true);
        let mut found = Vec::new();
        for (range, bytes) in memory_of(pid) {
            for window in bytes.windows(16).filter(|window| begins[begin(window)]) {
                if let Some(name) = self.pieces.get(window) {
                    let place = range.split_whitespace().nth(5).unwrap_or("anonymous");
                    found.push(format!("{name} in {place}"));
                }
            }
        }
        found.sort();
        found.dedup();
        found
    }
}

/// The round keys of AES-256 (FIPS 197 §5.2): whoever finds two in a row has the key.
fn schedule(key: &[u8; 32]) -> Vec<Piece> {
    let box_of = substitution();
    let mut words: Vec<[u8; 4]> = key.chunks(4).map(|word| word.try_into().expect("four bytes")).collect();
    let mut constant = 1u8;
    while words.len() < 60 {
        let mut word = words[words.len() - 1];
        if words.len().is_multiple_of(8) {
            word.rotate_left(1);
            word = word.map(|byte| box_of[usize::from(byte)]);
            word[0] ^= constant;
            constant = double(constant);
        } else if words.len() % 8 == 4 {
            word = word.map(|byte| box_of[usize::from(byte)]);
        }
        let before = words[words.len() - 8];
        words.push(std::array::from_fn(|i| word[i] ^ before[i]));
    }
    words.chunks(4).map(|round| round.concat().try_into().expect("16 bytes")).collect()
}

fn double(byte: u8) -> u8 {
    byte << 1 ^ if byte & 0x80 == 0 { 0 } else { 0x1b }
}

/// The S-box (FIPS 197 §5.1.1), walked through along powers of 3.
fn substitution() -> [u8; 256] {
    let (mut table, mut power, mut inverse) = ([0x63; 256], 1u8, 1u8);
    loop {
        power ^= double(power);
        // Division by 3.
        inverse ^= inverse << 1;
        inverse ^= inverse << 2;
        inverse ^= inverse << 4;
        inverse ^= if inverse & 0x80 == 0 { 0 } else { 0x09 };
        let mixed = (1..5).fold(inverse, |sum, by| sum ^ inverse.rotate_left(by));
        table[usize::from(power)] = mixed ^ 0x63;
        if power == 1 {
            return table;
        }
    }
}

#[test]
fn the_schedule_is_that_of_the_standard() {
    // FIPS 197, appendix A.3.
    let key = [
        0x60, 0x3d, 0xeb, 0x10, 0x15, 0xca, 0x71, 0xbe, 0x2b, 0x73, 0xae, 0xf0, 0x85, 0x7d, 0x77, 0x81, 0x1f,
        0x35, 0x2c, 0x07, 0x3b, 0x61, 0x08, 0xd7, 0x2d, 0x98, 0x10, 0xa3, 0x09, 0x14, 0xdf, 0xf4,
    ];
    let rounds = schedule(&key);
    assert_eq!(rounds.len(), 15);
    assert_eq!(rounds[14][12..], [0x70, 0x6c, 0x63, 0x1e]);
}

#[test]
fn no_key_is_in_the_memory_of_a_suspended_server() {
    if !rustix::process::geteuid().is_root() {
        return skip("reading the memory of a process that is not dumpable needs root");
    }
    let desk = Desk::with_volume();
    let server = serve(&desk);
    let mut client = server.connect(EXPORT);
    // Enough for several segments, and for every worker to seal and open.
    for number in 0..40u64 {
        client.write(number * (256 << 10), &vec![0x5a; 256 << 10], 0).expect("written");
    }
    for number in 0..40u64 {
        client.read(number * (256 << 10), 4096).expect("read");
    }
    let mut post = Post::open(&desk);
    for round in 0..3 {
        client.write(round * 4096, &[7; 4096], 1).expect("written");
        let keys = Keys::of(&desk);
        // What is there is found: while it runs, it has its keys.
        let found = keys.found(server.id());
        for name in ["header-mac", "root-ring", "segment", "uid"] {
            assert!(found.contains(&format!("{name} in anonymous")), "round {round}, {name}: {found:?}");
        }
        assert!(found.iter().any(|name| name.starts_with("segment key")), "round {round}: {found:?}");
        assert!(!found.iter().any(|name| name.starts_with("data key")), "it works without: {found:?}");

        post.suspend();
        let found = keys.found(server.id());
        assert!(found.is_empty(), "round {round}: {found:#?}");
        // A key that was refused leaves nothing behind either.
        let mut other = [0xa5 ^ u8::try_from(round).expect("small"); 32];
        post.resume_with(&Dek::take(&mut other)).expect_err("refused");
        let found = keys.found(server.id());
        assert!(found.is_empty(), "round {round}, after a refusal: {found:#?}");
        post.resume();
    }
}
