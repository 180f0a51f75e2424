//! AES-256-GCM (NIST SP 800-38D) by either of two libraries behind one type. Both make the same
//! bytes; the differential test below holds that.

use aes_gcm::aead::{AeadInOut, KeyInit};

use super::{AuthenticationFailed, TAG_LEN};

/// Which library does the work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    /// `aws-lc-rs`: assembly for AES-NI, VAES and AVX-512. The default where it is built in.
    #[cfg(feature = "aws-lc")]
    AwsLc,
    /// `aes-gcm`: pure Rust, built without a C compiler.
    Portable,
}

impl Default for Engine {
    fn default() -> Self {
        #[cfg(feature = "aws-lc")]
        return Self::AwsLc;
        #[cfg(not(feature = "aws-lc"))]
        return Self::Portable;
    }
}

impl Engine {
    /// Every engine in this build.
    pub const ALL: &'static [Self] = &[
        #[cfg(feature = "aws-lc")]
        Self::AwsLc,
        Self::Portable,
    ];

    /// The name that users choose it by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "aws-lc")]
            Self::AwsLc => "aws-lc",
            Self::Portable => "portable",
        }
    }

    /// The engine of that name, if it is in this build.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|engine| engine.name() == name)
    }
}

/// An expanded AES-256-GCM key. Both libraries wipe it on drop.
pub(super) enum AeadKey {
    #[cfg(feature = "aws-lc")]
    AwsLc(Box<aws_lc_rs::aead::LessSafeKey>),
    Portable(Box<aes_gcm::Aes256Gcm>),
}

impl AeadKey {
    pub(super) fn new(engine: Engine, key: &[u8; 32]) -> Self {
        match engine {
            #[cfg(feature = "aws-lc")]
            Engine::AwsLc => {
                let key = aws_lc_rs::aead::UnboundKey::new(&aws_lc_rs::aead::AES_256_GCM, key)
                    .expect("32 bytes are an AES-256 key");
                Self::AwsLc(Box::new(aws_lc_rs::aead::LessSafeKey::new(key)))
            }
            Engine::Portable => Self::Portable(Box::new(aes_gcm::Aes256Gcm::new(&(*key).into()))),
        }
    }

    /// Encrypts `data` in place and returns its tag.
    pub(super) fn seal(&self, nonce: [u8; 12], aad: &[u8], data: &mut [u8]) -> [u8; TAG_LEN] {
        match self {
            #[cfg(feature = "aws-lc")]
            Self::AwsLc(key) => {
                let nonce = aws_lc_rs::aead::Nonce::assume_unique_for_key(nonce);
                let tag = key
                    .seal_in_place_separate_tag(nonce, aws_lc_rs::aead::Aad::from(aad), data)
                    .expect("messages are far below the limit of 2^36 bytes");
                tag.as_ref().try_into().expect("a GCM tag has 16 bytes")
            }
            Self::Portable(key) => key
                .encrypt_inout_detached(&nonce.into(), aad, data.into())
                .expect("messages are far below the limit of 2^36 bytes")
                .into(),
        }
    }

    /// Decrypts `ciphertext` into `plaintext`, which has the same length. On failure `plaintext`
    /// is zeroed: nothing unauthenticated is ever left in it.
    pub(super) fn open(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        ciphertext: &[u8],
        tag: &[u8; TAG_LEN],
        plaintext: &mut [u8],
    ) -> Result<(), AuthenticationFailed> {
        let opened = match self {
            #[cfg(feature = "aws-lc")]
            Self::AwsLc(key) => {
                let nonce = aws_lc_rs::aead::Nonce::assume_unique_for_key(nonce);
                key.open_separate_gather(nonce, aws_lc_rs::aead::Aad::from(aad), ciphertext, tag, plaintext)
                    .is_ok()
            }
            Self::Portable(key) => {
                plaintext.copy_from_slice(ciphertext);
                key.decrypt_inout_detached(&nonce.into(), aad, plaintext.into(), &(*tag).into()).is_ok()
            }
        };
        if opened {
            return Ok(());
        }
        plaintext.fill(0);
        Err(AuthenticationFailed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// NIST GCM test vector (gcmEncryptExtIV256, count 0 of Keylen 256, IVlen 96, PTlen 128, AADlen 128).
    #[test]
    fn every_engine_reproduces_a_nist_vector() {
        let key = hex("92e11dcdaa866f5ce790fd24501f92509aacf4cb8b1339d50c9c1240935dd08b");
        let nonce = hex("ac93a1a6145299bde902f21a");
        let aad = hex("1e0889016f67601c8ebea4943bc23ad6");
        for engine in Engine::ALL {
            let key = AeadKey::new(*engine, key.as_slice().try_into().unwrap());
            let mut data = hex("2d71bcfa914e4ac045b2aa60955fad24");
            let tag = key.seal(nonce.as_slice().try_into().unwrap(), &aad, &mut data);
            assert_eq!(data, hex("8995ae2e6df3dbf96fac7b7137bae67f"), "{engine:?}");
            assert_eq!(tag.as_slice(), hex("eca5aa77d51d4a0a14d9c51e1da474ab"), "{engine:?}");
        }
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
    }

    proptest! {
        #[test]
        fn all_engines_make_the_same_bytes_and_open_each_others(
            key in any::<[u8; 32]>(), nonce in any::<[u8; 12]>(),
            aad in proptest::collection::vec(any::<u8>(), 0..64),
            data in proptest::collection::vec(any::<u8>(), 0..5000),
            flip in any::<usize>(),
        ) {
            let mut made = Vec::new();
            for engine in Engine::ALL {
                let mut sealed = data.clone();
                let tag = AeadKey::new(*engine, &key).seal(nonce, &aad, &mut sealed);
                made.push((sealed, tag));
            }
            let (sealed, tag) = made[0].clone();
            prop_assert!(made.iter().all(|m| *m == made[0]));
            for engine in Engine::ALL {
                let reader = AeadKey::new(*engine, &key);
                let mut out = vec![1; data.len()];
                prop_assert!(reader.open(nonce, &aad, &sealed, &tag, &mut out).is_ok());
                prop_assert_eq!(&out, &data);
                let mut bad = [sealed.as_slice(), tag.as_slice()].concat();
                let at = flip % (bad.len() * 8);
                bad[at / 8] ^= 1 << (at % 8);
                let (ct, t) = bad.split_at(sealed.len());
                prop_assert!(reader.open(nonce, &aad, ct, t.try_into().unwrap(), &mut out).is_err());
                prop_assert!(out.iter().all(|b| *b == 0), "nothing unauthenticated is left");
            }
        }
    }
}
