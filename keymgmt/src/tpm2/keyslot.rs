//! What a keyslot of a TPM holds: encode beside decode, strict, without any TPM.
//!
//! The key uri is `tpm2:` and the SHA-256 name of the storage key, as 64 lower-case hexadecimal digits: it
//! names the TPM and its owner's seed. The DEK is wrapped as in [`crate::stored`] under the sealed KEK, with
//! these details:
//!
//! ```text
//! bank u8 (1 SHA-256, 2 SHA-384) ‖ PCRs u24 ‖ flags u8 (1 PIN) ‖ policy(32) ‖ unique(32) ‖ private blob
//! ```
//!
//! PCRs is a bit per register, little endian. Policy and unique are what varies in the public area of the
//! sealed object; the private blob is what the TPM returned, encrypted and authenticated by its storage key.

use crate::manager::{KeyDescription, KeyError, SlotType, WrappedKey};
use crate::stored;
use crate::verify;

/// PCRs are numbered from 0 up to this, exclusive.
pub(crate) const PCR_COUNT: u8 = 24;
/// Longest private blob; TPMs of today return 160 to 200 bytes.
pub(crate) const BLOB_MAX: usize = stored::DETAILS_MAX - FIXED_LEN;
/// Length of what comes before the private blob.
const FIXED_LEN: usize = 1 + 3 + 1 + 32 + 32;

const URI_PREFIX: &str = "tpm2:";
const FLAG_PIN: u8 = 1;

/// A bank of PCRs.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Bank {
    #[default]
    Sha256,
    Sha384,
}

/// What opens a sealed KEK.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Policy {
    pub(crate) bank: Bank,
    /// A bit per register, at least one and none above [`PCR_COUNT`].
    pub(crate) pcrs: u32,
    pub(crate) pin: bool,
}

/// A sealed KEK.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Sealed {
    /// Name of the storage key, without its algorithm.
    pub(crate) parent: [u8; 32],
    pub(crate) policy: Policy,
    pub(crate) policy_digest: [u8; 32],
    pub(crate) unique: [u8; 32],
    pub(crate) blob: Vec<u8>,
}

impl Policy {
    /// The registers.
    pub(crate) fn registers(&self) -> impl Iterator<Item = u8> + use<> {
        let pcrs = self.pcrs;
        (0..PCR_COUNT).filter(move |pcr| pcrs >> pcr & 1 == 1)
    }

    /// For people, e.g. `sha256:0+7`.
    pub(crate) fn text(&self) -> String {
        let bank = match self.bank {
            Bank::Sha256 => "sha256",
            Bank::Sha384 => "sha384",
        };
        let registers: Vec<_> = self.registers().map(|pcr| pcr.to_string()).collect();
        format!("{bank}:{}", registers.join("+"))
    }
}

impl Sealed {
    /// The key uri.
    pub(crate) fn uri(&self) -> String {
        format!("{URI_PREFIX}{}", hex(&self.parent))
    }

    /// The details.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Self { parent: _, policy: Policy { bank, pcrs, pin }, policy_digest, unique, blob } = self;
        let bank = match bank {
            Bank::Sha256 => 1,
            Bank::Sha384 => 2,
        };
        let mut bytes = vec![bank];
        bytes.extend(&pcrs.to_le_bytes()[..3]);
        bytes.push(if *pin { FLAG_PIN } else { 0 });
        bytes.extend(policy_digest);
        bytes.extend(unique);
        bytes.extend(blob);
        bytes
    }

    /// Reads a keyslot. Not authenticated until [`stored::unwrap`] has succeeded.
    ///
    /// # Errors
    /// [`KeyError::Malformed`].
    pub(crate) fn decode(key: &WrappedKey) -> Result<Self, KeyError> {
        let malformed = |why: &str| KeyError::Malformed(why.to_owned());
        verify::is_type(key, SlotType::Tpm2)?;
        verify::wrapped_len(key)?;
        let parent = key.kek_uri.strip_prefix(URI_PREFIX).and_then(unhex);
        let parent =
            parent.ok_or_else(|| malformed("its key uri is not tpm2: and the name of a storage key"))?;
        let (fixed, blob) = stored::details(key)?
            .split_first_chunk::<FIXED_LEN>()
            .ok_or_else(|| malformed("its private part is too short"))?;
        let [bank, low, middle, high, flags, digests @ ..] = fixed;
        let bank = match bank {
            1 => Bank::Sha256,
            2 => Bank::Sha384,
            _ => return Err(malformed("its bank of PCRs is not known")),
        };
        let pcrs = u32::from_le_bytes([*low, *middle, *high, 0]);
        if pcrs == 0 || *flags > FLAG_PIN || blob.is_empty() {
            return Err(malformed("its policy or its blob is empty or not known"));
        }
        let (policy_digest, unique) = digests.split_at(32);
        Ok(Self {
            parent,
            policy: Policy { bank, pcrs, pin: *flags == FLAG_PIN },
            policy_digest: policy_digest.try_into().expect("64 bytes in two halves"),
            unique: unique.try_into().expect("64 bytes in two halves"),
            blob: blob.to_vec(),
        })
    }
}

/// Tells what such a keyslot is made of.
///
/// # Errors
/// [`KeyError::Malformed`].
pub fn describe(key: &WrappedKey) -> Result<KeyDescription, KeyError> {
    let sealed = Sealed::decode(key)?;
    let pin = if sealed.policy.pin { " and PIN" } else { "" };
    Ok(KeyDescription {
        text: format!("sealed to TPM {}, PCRs {}{pin}", hex(&sealed.parent[..4]), sealed.policy.text()),
        key_id: Some(sealed.uri()),
        // Every sealed KEK is another one.
        version: Some(hex(&sealed.unique[..8])),
    })
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let plain = text.len() == 64 && text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    let pairs = (0..32).map(|at| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok());
    let bytes: Vec<u8> = plain.then(|| pairs.collect()).flatten()?;
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stored(sealed: &Sealed) -> WrappedKey {
        let private = [vec![1, 0, 0, 0, 0, 0, 0, 0, 0], sealed.encode()].concat();
        WrappedKey { slot_type: SlotType::Tpm2, kek_uri: sealed.uri(), wrapped: vec![0; 60], private }
    }

    fn sample() -> Sealed {
        Sealed {
            parent: [0xab; 32],
            policy: Policy { bank: Bank::Sha256, pcrs: 1 << 0 | 1 << 7 | 1 << 23, pin: true },
            policy_digest: [2; 32],
            unique: [3; 32],
            blob: vec![4; 180],
        }
    }

    #[test]
    fn a_keyslot_is_read_as_it_was_written() {
        let sealed = sample();
        assert_eq!(Sealed::decode(&stored(&sealed)).unwrap(), sealed);
        let description = describe(&stored(&sealed)).unwrap();
        assert_eq!(description.text, "sealed to TPM abababab, PCRs sha256:0+7+23 and PIN");
        assert_eq!(description.version.unwrap(), "0303030303030303");
    }

    #[test]
    fn a_storage_key_has_one_spelling() {
        let key = stored(&sample());
        for uri in ["tpm2:", &"ab".repeat(32), &key.kek_uri.to_uppercase(), &format!("{}ab", key.kek_uri)] {
            let changed = WrappedKey { kek_uri: uri.to_owned(), ..key.clone() };
            assert!(matches!(Sealed::decode(&changed), Err(KeyError::Malformed(_))), "{uri}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_what_encodes_to_them_or_are_refused(
            details in prop::collection::vec(any::<u8>(), 0..520),
            bank in 0_u8..4,
            flags in 0_u8..4,
        ) {
            let mut private = [vec![1, 0, 0, 0, 0, 0, 0, 0, 0], details].concat();
            if let [_, _, _, _, _, _, _, _, _, at_bank, _, _, _, at_flags, ..] = private.as_mut_slice() {
                (*at_bank, *at_flags) = (bank, flags);
            }
            let key = WrappedKey { private, ..stored(&sample()) };
            if let Ok(sealed) = Sealed::decode(&key) {
                prop_assert_eq!(sealed.encode(), &key.private[9..]);
            }
        }
    }
}
