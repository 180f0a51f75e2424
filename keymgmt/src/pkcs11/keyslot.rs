//! What a keyslot of a PKCS#11 token holds: encode beside decode, strict, without any token.
//!
//! The key uri is `pkcs11:` and the CKA_ID of the KEK as lower-case hexadecimal digits. There are two forms
//! of the private part, told apart by its first byte:
//!
//! ```text
//! 1  key wrap   1 ‖ check(8) ‖ wrapped local KEK(40) ‖ serial length u8 ‖ serial ‖ label
//! 2  AES-GCM    2 ‖ serial length u8 ‖ serial ‖ label
//! ```
//!
//! In the first, the token wraps a fresh KEK of ours by AES Key Wrap (RFC 3394), and that one wraps the DEK
//! as in [`crate::stored`]. In the second, the token itself wraps the DEK: IV(12) ‖ ciphertext(32) ‖ tag(16),
//! with everything in the keyslot as additional authenticated data. Serial (of the token) and label (of the
//! KEK) are for people; both are printable.

use crate::manager::{KeyDescription, KeyError, SlotType, WrappedKey};
use crate::stored;
use crate::verify;

/// The label of keys that sealbd makes for one keyslot alone.
pub(crate) const OWN_LABEL: &str = "sealbd";
/// Longest label in bytes; the tokens that are known have 32 to 64.
pub(crate) const LABEL_MAX: usize = 64;
/// Longest CKA_ID in bytes: those of people are hashes or numbers, ours have 16.
pub(crate) const ID_MAX: usize = 64;
/// Length of a KEK wrapped by AES Key Wrap: 32 bytes and the integrity check.
pub(crate) const BLOB_LEN: usize = 40;
/// A token's serial number (CK_TOKEN_INFO).
const SERIAL_MAX: usize = 16;

const URI_PREFIX: &str = "pkcs11:";
const FORM_GCM: u8 = 2;

/// What a keyslot says. Not authenticated until it has been unwrapped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Keyslot {
    /// CKA_ID of the KEK.
    pub(crate) id: Vec<u8>,
    /// How the DEK is wrapped.
    pub(crate) form: Form,
    /// Serial number of the token that wrapped it.
    pub(crate) serial: String,
    /// CKA_LABEL of the KEK.
    pub(crate) label: String,
}

/// How a DEK is wrapped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    /// By AES-GCM in the token.
    Gcm,
    /// Under a KEK that the token wrapped by AES Key Wrap.
    KeyWrap { blob: [u8; BLOB_LEN] },
}

impl Keyslot {
    /// The key uri.
    pub(crate) fn uri(&self) -> String {
        format!("{URI_PREFIX}{}", hex(&self.id))
    }

    /// The private part of the GCM form, or the details of the key wrap form.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let serial = self.serial.as_bytes();
        assert!(serial.len() <= SERIAL_MAX && self.label.len() <= LABEL_MAX && self.id.len() <= ID_MAX);
        let mut bytes = match &self.form {
            Form::Gcm => vec![FORM_GCM],
            Form::KeyWrap { blob } => blob.to_vec(),
        };
        bytes.push(u8::try_from(serial.len()).expect("a serial number has at most 16 bytes"));
        bytes.extend(serial);
        bytes.extend(self.label.as_bytes());
        bytes
    }

    /// Reads a keyslot.
    ///
    /// # Errors
    /// [`KeyError::Malformed`].
    pub(crate) fn decode(key: &WrappedKey) -> Result<Self, KeyError> {
        verify::is_type(key, SlotType::Pkcs11)?;
        verify::wrapped_len(key)?;
        let id = key.kek_uri.strip_prefix(URI_PREFIX).and_then(unhex);
        let id = id.ok_or_else(|| malformed("its key uri is not pkcs11: and a key id"))?;
        let (form, rest) = match key.private.as_slice() {
            [FORM_GCM, rest @ ..] => (Form::Gcm, rest),
            _ => {
                let (blob, rest) = stored::details(key)?
                    .split_first_chunk::<BLOB_LEN>()
                    .ok_or_else(|| malformed("its private part is too short"))?;
                (Form::KeyWrap { blob: *blob }, rest)
            }
        };
        let (serial, label) = match rest {
            [len, rest @ ..] if usize::from(*len) <= SERIAL_MAX => {
                rest.split_at_checked(usize::from(*len)).ok_or_else(|| malformed("its serial is cut off"))?
            }
            _ => return Err(malformed("its serial is too long")),
        };
        if !(1..=LABEL_MAX).contains(&label.len()) {
            return Err(malformed("its label is of no label's length"));
        }
        let (serial, label) = (plain(serial)?, plain(label)?);
        Ok(Self { id, form, serial, label })
    }
}

/// Tells what such a keyslot is made of.
///
/// # Errors
/// [`KeyError::Malformed`].
pub fn describe(key: &WrappedKey) -> Result<KeyDescription, KeyError> {
    let keyslot = Keyslot::decode(key)?;
    let how = match keyslot.form {
        Form::Gcm => "AES-GCM",
        Form::KeyWrap { .. } => "AES key wrap",
    };
    let Keyslot { serial, label, .. } = &keyslot;
    let text = format!("{how} in token {serial}, key {label}");
    Ok(KeyDescription { text, key_id: Some(keyslot.uri()), version: None })
}

/// What a token says of itself, made fit to be shown and stored: at most `max` printable characters.
pub(crate) fn printable(text: &str, max: usize) -> String {
    let shown = |byte: char| if byte == ' ' || byte.is_ascii_graphic() { byte } else { '?' };
    text.trim().chars().take(max).map(shown).collect()
}

/// A serial number as a keyslot stores it.
pub(crate) fn printable_serial(serial: &str) -> String {
    printable(serial, SERIAL_MAX)
}

fn plain(bytes: &[u8]) -> Result<String, KeyError> {
    let printable = bytes.iter().all(|byte| *byte == b' ' || byte.is_ascii_graphic());
    match std::str::from_utf8(bytes) {
        Ok(text) if printable => Ok(text.to_owned()),
        _ => Err(malformed("its serial or label is not printable")),
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of an id as it is spelled in a key uri: pairs of lower-case digits, 1 to [`ID_MAX`] of them.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    (1..=2 * ID_MAX).contains(&text.len()).then(|| pairs.collect()).flatten()
}

fn malformed(why: &str) -> KeyError {
    KeyError::Malformed(why.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stored(keyslot: &Keyslot) -> WrappedKey {
        let mut private = keyslot.encode();
        if let Form::KeyWrap { .. } = keyslot.form {
            private.splice(0..0, [1, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
        WrappedKey { slot_type: SlotType::Pkcs11, kek_uri: keyslot.uri(), wrapped: vec![0; 60], private }
    }

    fn sample(form: Form) -> Keyslot {
        Keyslot { id: vec![0xa5; 16], form, serial: "e4d909c290d0fb1c".into(), label: "kek of db".into() }
    }

    #[test]
    fn both_forms_are_read_as_they_were_written() {
        for form in [Form::Gcm, Form::KeyWrap { blob: [7; BLOB_LEN] }] {
            let keyslot = sample(form);
            assert_eq!(Keyslot::decode(&stored(&keyslot)).unwrap(), keyslot);
        }
        let bare = Keyslot { serial: String::new(), ..sample(Form::Gcm) };
        assert_eq!(Keyslot::decode(&stored(&bare)).unwrap(), bare);
    }

    #[test]
    fn a_description_names_token_and_key() {
        let description = describe(&stored(&sample(Form::Gcm))).unwrap();
        assert_eq!(description.text, "AES-GCM in token e4d909c290d0fb1c, key kek of db");
        assert_eq!(description.key_id.unwrap(), format!("pkcs11:{}", "a5".repeat(16)));
    }

    #[test]
    fn an_id_has_one_spelling() {
        assert_eq!(unhex("00ff10"), Some(vec![0, 255, 16]));
        for text in ["", "0", "0F", "0g", "00 ", "+1", "é0", &"00".repeat(ID_MAX + 1)] {
            assert_eq!(unhex(text), None, "{text}");
        }
        assert_eq!(hex(&unhex(&"9a".repeat(ID_MAX)).unwrap()), "9a".repeat(ID_MAX));
    }

    #[test]
    fn what_is_not_printable_is_neither_read_nor_shown() {
        let mut key = stored(&sample(Form::Gcm));
        *key.private.last_mut().unwrap() = 0x1b;
        assert!(matches!(describe(&key), Err(KeyError::Malformed(_))));
        assert_eq!(printable(" a\u{1b}[2J\u{e9} ", 64), "a?[2J?");
        assert_eq!(printable("long", 2), "lo");
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_what_encodes_to_them_or_are_refused(
            private in prop::collection::vec(any::<u8>(), 0..600),
            first in prop_oneof![Just(1_u8), Just(2)],
            serial in 0_u8..20,
            printable in any::<bool>(),
        ) {
            let mut private = private;
            if printable {
                private.iter_mut().for_each(|byte| *byte = b' ' + *byte % 95);
            }
            let serial_at = if first == 1 { 49 } else { 1 };
            private.splice(0..private.len().min(1), [first]);
            if private.len() > serial_at {
                private[serial_at] = serial;
            }
            let key = WrappedKey {
                slot_type: SlotType::Pkcs11,
                kek_uri: "pkcs11:01".into(),
                wrapped: vec![0; 60],
                private,
            };
            if let Ok(keyslot) = Keyslot::decode(&key) {
                let prefix = if first == 1 { 9 } else { 0 };
                prop_assert_eq!(keyslot.encode(), &key.private[prefix..]);
            }
        }
    }
}
