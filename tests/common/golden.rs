//! The golden vectors of `tests/golden`, and the keys that they were made with.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "every test uses a part of these")]

use keymgmt::secret::{Dek, Secret32};
use sealbd::cipher::{Engine, Uid, VolumeKeys};

/// Volume uuid of all vectors: 00 01 … 0f.
pub(crate) const VOLUME: [u8; 16] = ascending(0x00);
/// Uid of the log segment.
pub(crate) const LOG_UID: Uid = Uid(ascending(0x10));
/// Uid of the index segment.
pub(crate) const INDEX_UID: Uid = Uid(ascending(0x20));
/// Uid of the segment behind the log segment.
pub(crate) const NEXT_UID: Uid = Uid(ascending(0x30));
/// Tag of the chunk header before chunk 17.
pub(crate) const CHAIN: [u8; 16] = ascending(0xc0);

/// `first`, `first + 1`, …
pub(crate) const fn ascending<const N: usize>(first: u8) -> [u8; N] {
    let mut bytes = [0; N];
    let mut value = first;
    let mut index = 0;
    while index < N {
        bytes[index] = value;
        value = value.wrapping_add(1);
        index += 1;
    }
    bytes
}

/// The keys of all vectors: DEK 40 41 …, salt a0 a1 ….
pub(crate) fn keys(engine: Engine) -> VolumeKeys {
    let dek = Dek(Secret32::take(&mut ascending(0x40)));
    VolumeKeys::derive(engine, &dek, &ascending(0xa0), &VOLUME)
}

/// The bytes of a vector: hex, and `*COUNT` for so many lines of 32 zero bytes.
pub(crate) fn vector(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/golden/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut bytes = Vec::new();
    for line in text.lines() {
        match line.strip_prefix('*') {
            Some(count) => bytes.resize(bytes.len() + 32 * count.parse::<usize>().unwrap(), 0),
            None => bytes
                .extend((0..line.len()).step_by(2).map(|i| u8::from_str_radix(&line[i..i + 2], 16).unwrap())),
        }
    }
    bytes
}
