//! Key derivation (docs/FORMAT.md §2): every key of a volume comes from its DEK by HKDF-SHA256
//! (RFC 5869), and every label stands in this file.

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use keymgmt::secret::{Dek, Secret32, on_wiped_stack};
use sha2::Sha256;
use zeroize::Zeroize;

use super::engine::{AeadKey, Engine};
use super::segment::{SegmentKey, Uid};

const LABEL_COMMIT: &[u8] = b"commit";
const LABEL_HEADER_MAC: &[u8] = b"header-mac";
const LABEL_ROOT_RING: &[u8] = b"root-ring";
const LABEL_SEGMENT: &[u8] = b"segment";
const LABEL_SEGMENT_KEY: &[u8] = b"seg1";
const LABEL_UID: &[u8] = b"uid";

/// All keys of one epoch of one volume. The DEK itself is not kept.
pub struct VolumeKeys {
    engine: Engine,
    volume: [u8; 16],
    commit: [u8; 32],
    header_mac: Secret32,
    root_ring: Secret32,
    segment_base: Secret32,
    uid: Secret32,
}

impl VolumeKeys {
    /// Derives the keys: PRK = HKDF-Extract(salt = header salt ‖ volume uuid, DEK), then one
    /// Expand per purpose.
    #[must_use]
    pub fn derive(engine: Engine, dek: &Dek, salt: &[u8; 32], volume: &[u8; 16]) -> Self {
        on_wiped_stack(|| Self::extract_and_expand(engine, dek, salt, volume))
    }

    fn extract_and_expand(engine: Engine, dek: &Dek, salt: &[u8; 32], volume: &[u8; 16]) -> Self {
        let mut extract_salt = [0; 48];
        extract_salt[..32].copy_from_slice(salt);
        extract_salt[32..].copy_from_slice(volume);
        let (mut prk, hkdf) = Hkdf::<Sha256>::extract(Some(&extract_salt), dek.0.expose());
        prk.as_mut_slice().zeroize();
        let mut commit = [0; 32];
        expand_into(&hkdf, &[LABEL_COMMIT], &mut commit);
        Self {
            engine,
            volume: *volume,
            commit,
            header_mac: expand(&hkdf, LABEL_HEADER_MAC),
            root_ring: expand(&hkdf, LABEL_ROOT_RING),
            segment_base: expand(&hkdf, LABEL_SEGMENT),
            uid: expand(&hkdf, LABEL_UID),
        }
    }

    /// The value stored beside every wrapped DEK: it tells a wrong key from a damaged header.
    /// Reveals nothing of the keys.
    #[must_use]
    pub fn commit(&self) -> &[u8; 32] {
        &self.commit
    }

    /// HMAC-SHA256 that authenticates a copy of the volume header.
    #[must_use]
    pub fn header_mac(&self, message: &[u8]) -> [u8; 32] {
        hmac(&self.header_mac, &[message])
    }

    /// HMAC-SHA256, cut to 128 bits, that authenticates a ring block.
    #[must_use]
    pub fn root_mac(&self, message: &[u8]) -> [u8; 16] {
        truncate(hmac(&self.root_ring, &[message]))
    }

    /// The key of one segment: Expand(K_sb, "seg1" ‖ kind ‖ volume uuid ‖ uid).
    #[must_use]
    pub fn segment_key(&self, kind: u8, uid: Uid) -> SegmentKey {
        on_wiped_stack(|| self.expand_segment_key(kind, uid))
    }

    fn expand_segment_key(&self, kind: u8, uid: Uid) -> SegmentKey {
        let hkdf = Hkdf::<Sha256>::from_prk(self.segment_base.expose()).expect("32 bytes are a SHA-256 PRK");
        let mut key = [0; 32];
        expand_into(&hkdf, &[LABEL_SEGMENT_KEY, &[kind], &self.volume, &uid.0], &mut key);
        let expanded = AeadKey::new(self.engine, &key);
        key.zeroize();
        SegmentKey::new(uid, expanded)
    }

    /// The keyed hash that uids are made with.
    pub(super) fn uid_hash(&self, parts: &[&[u8]]) -> [u8; 16] {
        truncate(hmac(&self.uid, parts))
    }

    /// The volume that these keys belong to.
    #[must_use]
    pub fn volume(&self) -> &[u8; 16] {
        &self.volume
    }
}

fn expand(hkdf: &Hkdf<Sha256>, label: &[u8]) -> Secret32 {
    let mut key = [0; 32];
    expand_into(hkdf, &[label], &mut key);
    Secret32::take(&mut key)
}

fn expand_into(hkdf: &Hkdf<Sha256>, info: &[&[u8]], key: &mut [u8; 32]) {
    hkdf.expand_multi_info(info, key).expect("32 bytes are one HKDF block");
}

fn hmac(key: &Secret32, parts: &[&[u8]]) -> [u8; 32] {
    on_wiped_stack(|| {
        let mut mac = Hmac::<Sha256>::new_from_slice(key.expose()).expect("HMAC takes keys of any length");
        for part in parts {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    })
}

fn truncate(full: [u8; 32]) -> [u8; 16] {
    full[..16].try_into().expect("half of 32 bytes")
}
