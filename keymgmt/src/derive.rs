//! Wrapping under secrets of full strength (keyfiles, recovery words): KEK and fingerprint by
//! HKDF-SHA256 (RFC 5869).
//!
//! Every HKDF label of this crate stands here or in `stored`. The salt is the volume's uuid: the same keyfile gives
//! every volume another KEK and another fingerprint. A slow derivation would add nothing to a
//! secret of 256 random bits; only passphrases need one.

use std::convert::Infallible;

use hkdf::HkdfExtract;
use sha2::Sha256;
use zeroize::Zeroize;

use crate::manager::{KeyError, SlotType, WrapContext, WrappedKey};
use crate::secret::{Dek, Kek, Secret32};
use crate::verify;
use crate::wrap::{unwrap_dek, wrap_dek};

/// One kind of secret of full strength: its keyslots and its labels.
pub(crate) struct Strong {
    slot_type: SlotType,
    kek_label: &'static str,
    fingerprint_label: &'static str,
}

/// Keyfiles.
pub(crate) const KEYFILE: Strong = Strong {
    slot_type: SlotType::Keyfile,
    kek_label: "sealbd keyfile kek v1",
    fingerprint_label: "sealbd keyfile fingerprint v1",
};

/// Recovery words.
pub(crate) const RECOVERY: Strong = Strong {
    slot_type: SlotType::Recovery,
    kek_label: "sealbd recovery kek v1",
    fingerprint_label: "sealbd recovery fingerprint v1",
};

impl Strong {
    /// Wraps a DEK under the secret's KEK for the volume.
    ///
    /// # Errors
    /// [`KeyError::Secret`] when the operating system's random number generator fails.
    pub(crate) fn wrap(
        &self,
        secret: &Secret32,
        dek: &Dek,
        context: WrapContext,
    ) -> Result<WrappedKey, KeyError> {
        let wrapped = wrap_dek(&self.kek(secret, context), dek, context, self.slot_type)?;
        Ok(WrappedKey {
            slot_type: self.slot_type,
            kek_uri: String::new(),
            wrapped: wrapped.to_vec(),
            private: StrongPrivate { fingerprint: self.fingerprint(secret, context) }.encode(),
        })
    }

    /// Unwraps a DEK; `Ok(None)` when the keyslot is of another kind or the secret does not fit.
    ///
    /// # Errors
    /// [`KeyError::Malformed`].
    pub(crate) fn unwrap(
        &self,
        secret: &Secret32,
        key: &WrappedKey,
        context: WrapContext,
    ) -> Result<Option<Dek>, KeyError> {
        if key.slot_type != self.slot_type {
            return Ok(None);
        }
        verify::no_uri(key)?;
        let private = StrongPrivate::decode(&key.private)?;
        let dek = unwrap_dek(&self.kek(secret, context), &key.wrapped, context, self.slot_type)?;
        // The wrap does not authenticate the fingerprint; comparing it leaves no byte that can be
        // changed unseen.
        Ok(dek.filter(|_| private.fingerprint == self.fingerprint(secret, context)))
    }

    /// The fingerprint that a keyslot keeps.
    ///
    /// # Errors
    /// [`KeyError::Malformed`], also for a keyslot of another kind.
    pub(crate) fn stored_fingerprint(&self, key: &WrappedKey) -> Result<Fingerprint, KeyError> {
        verify::is_type(key, self.slot_type)?;
        Ok(StrongPrivate::decode(&key.private)?.fingerprint)
    }

    fn kek(&self, secret: &Secret32, context: WrapContext) -> Kek {
        let Ok(bytes) = Secret32::fill(|bytes| {
            expand(secret, context, self.kek_label, bytes);
            Ok::<(), Infallible>(())
        });
        Kek(bytes)
    }

    fn fingerprint(&self, secret: &Secret32, context: WrapContext) -> Fingerprint {
        let mut bytes = [0; 2];
        expand(secret, context, self.fingerprint_label, &mut bytes);
        Fingerprint(bytes)
    }
}

/// Version of [`StrongPrivate`]'s encoding and of the derivation it stands for.
const PRIVATE_VERSION: u8 = 1;
const PRIVATE_LEN: usize = 3;
const _: () = assert!(PRIVATE_LEN <= crate::manager::PRIVATE_MAX);

/// 16 bits that tell which of one's keyfiles or recovery sheets belongs to a keyslot.
///
/// Not secret: it is an HKDF output under a label of its own, so it says nothing about the KEK. It
/// lets an attacker drop 65535 of 65536 guesses of a 256-bit secret without trying the wrap, which
/// the wrap's tag allows anyway.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fingerprint([u8; 2]);

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02X}{:02X}", self.0[0], self.0[1])
    }
}

/// The type-private part of a keyslot whose secret has full strength: version u8 ‖ fingerprint(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct StrongPrivate {
    fingerprint: Fingerprint,
}

impl StrongPrivate {
    fn encode(self) -> Vec<u8> {
        let Self { fingerprint: Fingerprint([high, low]) } = self;
        vec![PRIVATE_VERSION, high, low]
    }

    fn decode(bytes: &[u8]) -> Result<Self, KeyError> {
        match *bytes {
            [PRIVATE_VERSION, high, low] => Ok(Self { fingerprint: Fingerprint([high, low]) }),
            [version, ..] if version != PRIVATE_VERSION => {
                Err(KeyError::Malformed(format!("key derivation version {version} is not known")))
            }
            _ => Err(KeyError::Malformed(format!("{} private bytes, not {PRIVATE_LEN}", bytes.len()))),
        }
    }
}

/// HKDF-SHA256 with the volume's uuid as its salt.
pub(crate) fn expand(secret: &Secret32, context: WrapContext, label: &str, out: &mut [u8]) {
    let mut extract = HkdfExtract::<Sha256>::new(Some(&context.volume));
    extract.input_ikm(secret.expose());
    let (mut prk, hkdf) = extract.finalize();
    hkdf.expand(label.as_bytes(), out).expect("32 bytes are within the limits of HKDF-SHA256");
    prk.as_mut_slice().zeroize();
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Volume 00..0f, epoch 7, suite 1.
    pub(crate) const CONTEXT: WrapContext =
        WrapContext { volume: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], epoch: 7, suite: 1 };
    /// The secret of the known answers: 80..9f.
    pub(crate) const IKM: [u8; 32] = ascending(0x80);
    /// Made with Python's hmac and hashlib, as are all answers here.
    pub(crate) const KEYFILE_KEK: &str = "cc3661629783825986eb765a2c9159ae32a8570eb0d94717a2fe6effdc8037a7";
    const RECOVERY_KEK: &str = "c44ebede7aee6833d4a9925a8db1aecd1cdd6375e4701b3282c71e78ec5bb36e";

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

    pub(crate) fn hex<const N: usize>(text: &str) -> [u8; N] {
        assert_eq!(text.len(), 2 * N);
        std::array::from_fn(|index| u8::from_str_radix(&text[2 * index..2 * index + 2], 16).unwrap())
    }

    #[test]
    fn keks_are_the_same_bytes_as_another_implementation_makes() {
        let secret = Secret32::take(&mut IKM.clone());
        assert_eq!(KEYFILE.kek(&secret, CONTEXT).0.expose(), &hex(KEYFILE_KEK));
        assert_eq!(RECOVERY.kek(&secret, CONTEXT).0.expose(), &hex(RECOVERY_KEK));
    }

    #[test]
    fn fingerprints_are_the_same_bytes_as_another_implementation_makes() {
        let secret = Secret32::take(&mut IKM.clone());
        assert_eq!(KEYFILE.fingerprint(&secret, CONTEXT).to_string(), "6F05");
        assert_eq!(RECOVERY.fingerprint(&secret, CONTEXT).to_string(), "3F31");
    }

    #[test]
    fn the_private_part_decodes_to_what_was_encoded_and_nothing_else_decodes() {
        let private = StrongPrivate { fingerprint: Fingerprint([0x9f, 0x3a]) };
        let bytes = private.encode();
        assert_eq!(bytes, [1, 0x9f, 0x3a]);
        assert_eq!(StrongPrivate::decode(&bytes).unwrap(), private);
        for wrong in [&[][..], &[1], &[1, 2], &[1, 2, 3, 4], &[0, 2, 3], &[2, 2, 3]] {
            assert!(matches!(StrongPrivate::decode(wrong), Err(KeyError::Malformed(_))), "{wrong:?}");
        }
    }
}
