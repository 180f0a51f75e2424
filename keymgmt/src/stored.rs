//! Wrapping under a KEK that a key manager keeps and hands out, or wraps without binding it to a volume:
//! Barbican, Vault's key/value engine, KMIP, a TPM.
//!
//! The KEK for a volume is HKDF-SHA256(salt = volume uuid, ikm = the 32 bytes from the manager, info =
//! `sealbd stored kek v1`). The keyslot's key uri, and in its private part the manager's own details (a
//! version, a blob), are authenticated by the wrap. The private part is version u8 ‖ check(8) ‖ details.
//! The check is an HKDF output under a label of its own: it tells *another key under the same name*
//! (managers reuse ids, people overwrite secrets) from a changed keyslot, and says nothing about the KEK.

use crate::derive::expand;
use crate::manager::{KeyError, PRIVATE_MAX, SlotType, WrapContext, WrappedKey};
use crate::secret::{Dek, Kek, Secret32};
use crate::verify;
use crate::wrap::{aad, unwrap_bound, wrap_bound};

const KEK_LABEL: &str = "sealbd stored kek v1";
const CHECK_LABEL: &str = "sealbd stored kek check v1";
const PRIVATE_VERSION: u8 = 1;
const CHECK_LEN: usize = 8;
/// What comes before the details.
const PREFIX_LEN: usize = 1 + CHECK_LEN;
/// Longest details of a manager, in bytes.
pub(crate) const DETAILS_MAX: usize = PRIVATE_MAX - PREFIX_LEN;

/// Wraps a DEK under `secret`; `details` is what the manager needs to find the secret again, at most
/// [`DETAILS_MAX`] bytes.
///
/// # Errors
/// [`KeyError::Secret`] when the operating system's random number generator fails.
///
/// # Panics
/// When `details` are too long.
pub(crate) fn wrap(
    secret: &Secret32,
    dek: &Dek,
    context: WrapContext,
    slot_type: SlotType,
    kek_uri: String,
    details: &[u8],
) -> Result<WrappedKey, KeyError> {
    assert!(details.len() <= DETAILS_MAX, "{} bytes of details", details.len());
    let mut private = vec![PRIVATE_VERSION];
    private.extend(check(secret, context));
    private.extend(details);
    let bound = bound(context, slot_type, &kek_uri, &private);
    let wrapped = wrap_bound(&kek(secret, context), dek, &bound)?.to_vec();
    Ok(WrappedKey { slot_type, kek_uri, wrapped, private })
}

/// Unwraps a DEK with the secret that the manager gave for this keyslot. `Ok(None)` means that the
/// keyslot was changed or belongs to another volume.
///
/// # Errors
/// [`KeyError::Denied`] when the manager gave another key than the one that made the keyslot;
/// [`KeyError::Malformed`].
pub(crate) fn unwrap(
    secret: &Secret32,
    key: &WrappedKey,
    context: WrapContext,
) -> Result<Option<Dek>, KeyError> {
    details(key)?;
    verify::wrapped_len(key)?;
    let bound = bound(context, key.slot_type, &key.kek_uri, &key.private);
    let dek = unwrap_bound(&kek(secret, context), &key.wrapped, &bound)?;
    if dek.is_none() && key.private[1..PREFIX_LEN] != check(secret, context) {
        return Err(KeyError::Denied(format!(
            "{} is another key than the one that made this keyslot, or the keyslot is of another volume",
            key.kek_uri
        )));
    }
    Ok(dek)
}

/// The manager's details in a keyslot. Not authenticated until [`unwrap`] has succeeded.
///
/// # Errors
/// [`KeyError::Malformed`].
pub(crate) fn details(key: &WrappedKey) -> Result<&[u8], KeyError> {
    match key.private.as_slice() {
        [PRIVATE_VERSION, rest @ ..] if (CHECK_LEN..=CHECK_LEN + DETAILS_MAX).contains(&rest.len()) => {
            Ok(&rest[CHECK_LEN..])
        }
        [version, ..] if *version != PRIVATE_VERSION => {
            Err(KeyError::Malformed(format!("key derivation version {version} is not known")))
        }
        private => Err(KeyError::Malformed(format!("{} private bytes", private.len()))),
    }
}

/// Additional authenticated data: what every wrap binds, then key uri and private part, each behind its
/// length, so that no byte of one can pass for the other's.
pub(crate) fn bound(context: WrapContext, slot_type: SlotType, kek_uri: &str, private: &[u8]) -> Vec<u8> {
    let mut bound = aad(context, slot_type).to_vec();
    for part in [kek_uri.as_bytes(), private] {
        let len = u32::try_from(part.len()).expect("parts of a keyslot are far below 4 GiB");
        bound.extend(len.to_le_bytes());
        bound.extend(part);
    }
    bound
}

fn kek(secret: &Secret32, context: WrapContext) -> Kek {
    let Ok(bytes) = Secret32::fill(|bytes| {
        expand(secret, context, KEK_LABEL, bytes);
        Ok::<(), std::convert::Infallible>(())
    });
    Kek(bytes)
}

fn check(secret: &Secret32, context: WrapContext) -> [u8; CHECK_LEN] {
    let mut check = [0; CHECK_LEN];
    expand(secret, context, CHECK_LABEL, &mut check);
    check
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::tests::{CONTEXT, IKM, ascending, hex};

    fn wrapped(dek: &Dek) -> WrappedKey {
        let secret = Secret32::take(&mut IKM.clone());
        wrap(&secret, dek, CONTEXT, SlotType::Barbican, "barbican:key".into(), b"v3").unwrap()
    }

    #[test]
    fn every_byte_of_a_keyslot_is_bound_to_the_wrap() {
        let dek = Dek::take(&mut ascending(0x40));
        let key = wrapped(&dek);
        let secret = Secret32::take(&mut IKM.clone());
        assert!(unwrap(&secret, &key, CONTEXT).unwrap().unwrap().matches(&dek));
        assert_eq!(details(&key).unwrap(), b"v3");
        let unopened = |key: &WrappedKey| !matches!(unwrap(&secret, key, CONTEXT), Ok(Some(_)));
        for at in 0..key.private.len() {
            let mut changed = key.clone();
            changed.private[at] ^= 1;
            assert!(unopened(&changed), "private byte {at}");
        }
        assert!(unopened(&WrappedKey { kek_uri: "barbican:kez".into(), ..key.clone() }));
        assert!(unopened(&WrappedKey { slot_type: SlotType::Kmip, ..key }));
    }

    #[test]
    fn another_key_under_the_same_name_is_told_from_a_changed_keyslot() {
        let key = wrapped(&Dek::take(&mut ascending(0x40)));
        let other = Secret32::generate().unwrap();
        assert!(matches!(unwrap(&other, &key, CONTEXT), Err(KeyError::Denied(_))));
        let mut changed = key;
        changed.wrapped[20] ^= 1;
        let secret = Secret32::take(&mut IKM.clone());
        assert!(matches!(unwrap(&secret, &changed, CONTEXT), Ok(None)));
    }

    /// Made with Python's hmac and hashlib.
    #[test]
    fn the_kek_and_the_check_are_the_same_bytes_as_another_implementation_makes() {
        let secret = Secret32::take(&mut IKM.clone());
        assert_eq!(kek(&secret, CONTEXT).0.expose(), &hex(KEK));
        assert_eq!(check(&secret, CONTEXT), hex(CHECK));
    }

    const KEK: &str = "5ccd406d9a9813ab89bfa032c3222a6ef704162f1c6de3e48eecbe95237ec22a";
    const CHECK: &str = "3eb4cf5841d8741e";
}
