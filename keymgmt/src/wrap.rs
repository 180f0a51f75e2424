//! Wrapping a DEK under a KEK with AES-256-GCM (NIST SP 800-38D).
//!
//! A wrapped DEK is nonce(12) ‖ ciphertext(32) ‖ tag(16). The additional authenticated data is
//! uuid(16) ‖ epoch u32 ‖ suite u32 ‖ slot type u8, little endian (docs/FORMAT.md §2), so that a
//! keyslot copied to another volume, epoch, suite or type does not unwrap. Managers that keep a key's
//! name and version in the keyslot have these authenticated, too, behind the rest.
//!
//! Nonce budget: the nonce is 96 random bits, for which SP 800-38D §8.3 allows 2^32 uses of one
//! key. A KEK here belongs to one volume and one secret (passphrases even have a new salt and so a
//! new KEK for every wrap) and wraps one DEK per epoch: a handful in its whole life.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit};

use crate::manager::{KeyError, SlotType, WrapContext};
use crate::secret::{Dek, Kek, Secret32, fill_random, on_wiped_stack};

const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;
const AAD_LEN: usize = 25;

/// Length of a wrapped DEK in bytes.
pub const WRAPPED_LEN: usize = NONCE_LEN + 32 + TAG_LEN;
const _: () = assert!(WRAPPED_LEN == 60 && WRAPPED_LEN <= crate::manager::WRAPPED_MAX);

/// Wraps `dek` under `kek`; two wraps of the same key differ.
///
/// # Errors
/// [`KeyError::Secret`] when the operating system's random number generator fails.
pub fn wrap_dek(
    kek: &Kek,
    dek: &Dek,
    context: WrapContext,
    slot_type: SlotType,
) -> Result<[u8; WRAPPED_LEN], KeyError> {
    wrap_bound(kek, dek, &aad(context, slot_type))
}

/// As [`wrap_dek`], with all of the additional authenticated data given.
pub(crate) fn wrap_bound(kek: &Kek, dek: &Dek, aad: &[u8]) -> Result<[u8; WRAPPED_LEN], KeyError> {
    let mut nonce = [0; NONCE_LEN];
    fill_random(&mut nonce)?;
    Ok(wrap_with_nonce(kek, dek, aad, nonce))
}

/// Unwraps a DEK. `Ok(None)` means that it was not wrapped under this KEK for this context, or was
/// changed since: the two cannot be told apart.
///
/// # Errors
/// [`KeyError::Malformed`] when `wrapped` has another length than [`WRAPPED_LEN`].
pub fn unwrap_dek(
    kek: &Kek,
    wrapped: &[u8],
    context: WrapContext,
    slot_type: SlotType,
) -> Result<Option<Dek>, KeyError> {
    unwrap_bound(kek, wrapped, &aad(context, slot_type))
}

/// As [`unwrap_dek`], with all of the additional authenticated data given.
pub(crate) fn unwrap_bound(kek: &Kek, wrapped: &[u8], aad: &[u8]) -> Result<Option<Dek>, KeyError> {
    let wrapped: &[u8; WRAPPED_LEN] = wrapped.try_into().map_err(|_| {
        KeyError::Malformed(format!("the wrapped key is {} bytes, not {WRAPPED_LEN}", wrapped.len()))
    })?;
    let (nonce, rest) = wrapped.split_first_chunk::<NONCE_LEN>().expect("60 bytes hold a nonce");
    let (ciphertext, tag) = rest.split_first_chunk::<32>().expect("48 bytes hold a key");
    let tag: &[u8; TAG_LEN] = tag.try_into().expect("16 bytes are left");
    let opened = on_wiped_stack(|| {
        Secret32::fill(|bytes| {
            bytes.copy_from_slice(ciphertext);
            cipher(kek).decrypt_inout_detached(nonce.into(), aad, bytes.as_mut_slice().into(), tag.into())
        })
    });
    Ok(opened.ok().map(Dek))
}

fn wrap_with_nonce(kek: &Kek, dek: &Dek, aad: &[u8], nonce: [u8; NONCE_LEN]) -> [u8; WRAPPED_LEN] {
    let mut wrapped = [0; WRAPPED_LEN];
    wrapped[..NONCE_LEN].copy_from_slice(&nonce);
    let sealed = on_wiped_stack(|| {
        Secret32::fill(|bytes| {
            bytes.copy_from_slice(dek.0.expose());
            let tag =
                cipher(kek).encrypt_inout_detached((&nonce).into(), aad, bytes.as_mut_slice().into())?;
            wrapped[NONCE_LEN + 32..].copy_from_slice(&tag);
            Ok::<(), aes_gcm::Error>(())
        })
    })
    .expect("32 bytes are within the limits of AES-GCM");
    wrapped[NONCE_LEN..NONCE_LEN + 32].copy_from_slice(sealed.expose());
    wrapped
}

fn cipher(kek: &Kek) -> Aes256Gcm {
    Aes256Gcm::new(kek.0.expose().into())
}

pub(crate) fn aad(context: WrapContext, slot_type: SlotType) -> [u8; AAD_LEN] {
    let mut aad = [0; AAD_LEN];
    aad[..AAD_LEN - 1].copy_from_slice(&context.aad());
    aad[AAD_LEN - 1] = slot_type.number();
    aad
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::tests::{CONTEXT, IKM, KEYFILE_KEK, ascending, hex};

    /// Made with python3-cryptography: AESGCM(kek).encrypt(nonce, dek, aad).
    const WRAPPED: &str = "c0c1c2c3c4c5c6c7c8c9cacb05ba1290efbde96b756ddecd7e612d19\
                           ffd22349e423364bbc35df832cf605cb114320c31947f42c77a3bdd96407b376";

    #[test]
    fn a_wrap_is_the_same_bytes_as_another_implementation_makes() {
        assert_eq!(IKM, ascending(0x80));
        let kek = Kek(Secret32::take(&mut hex(KEYFILE_KEK)));
        let dek = Dek::take(&mut ascending(0x40));
        let wrapped = wrap_with_nonce(&kek, &dek, &aad(CONTEXT, SlotType::Keyfile), ascending(0xc0));
        assert_eq!(wrapped, hex(WRAPPED));
        let unwrapped = unwrap_dek(&kek, &wrapped, CONTEXT, SlotType::Keyfile).unwrap().unwrap();
        assert!(unwrapped.matches(&dek));
    }

    #[test]
    fn a_wrap_of_one_slot_type_does_not_unwrap_as_another() {
        let (kek, dek) = (Kek::generate().unwrap(), Dek::generate().unwrap());
        let wrapped = wrap_dek(&kek, &dek, CONTEXT, SlotType::Keyfile).unwrap();
        assert!(unwrap_dek(&kek, &wrapped, CONTEXT, SlotType::Recovery).unwrap().is_none());
    }

    #[test]
    fn another_length_is_malformed_not_a_misfit() {
        let kek = Kek::generate().unwrap();
        for len in [0, 1, WRAPPED_LEN - 1, WRAPPED_LEN + 1, 1024] {
            let result = unwrap_dek(&kek, &vec![0; len], CONTEXT, SlotType::Keyfile);
            assert!(matches!(result, Err(KeyError::Malformed(_))), "{len} bytes");
        }
    }
}
