//! What a keyslot of a KMIP server holds: encode beside decode, strict, without any server.
//!
//! The key uri is `kmip:` and the Unique Identifier of the KEK. Three forms of the private part are told apart
//! by its first bytes:
//!
//! ```text
//! get       1 ‖ check(8) ‖ 1 ‖ origin u8 ‖ made u64
//! key wrap  1 ‖ check(8) ‖ 2 ‖ origin u8 ‖ made u64 ‖ wrapped local KEK(40)
//! AES-GCM   2 ‖ origin u8 ‖ made u64
//! ```
//!
//! In the first, the server hands the KEK out, and it wraps as in [`crate::stored`]. In the second, the server
//! encrypts a fresh KEK of ours by AES Key Wrap (RFC 3394), and that one wraps. In the third, the server itself
//! encrypts the DEK: IV(12) ‖ ciphertext(32) ‖ tag(16), with everything in the keyslot as additional
//! authenticated data. Origin is 1 where sealbd made the KEK, else 0. Made is the KEK's Initial Date in seconds
//! since 1970, little endian, 0 where the server does not say: identifiers repeat after a reset.

use crate::manager::{KeyDescription, KeyError, SlotType, WrappedKey};
use crate::{stored, verify};

use super::Mode;

/// Length of a KEK wrapped by AES Key Wrap: 32 bytes and the integrity check.
pub(crate) const BLOB_LEN: usize = 40;
/// Longest identifier: uuids have 36 characters, and specs of keys room for 64.
const ID_MAX: usize = 128;
const URI_PREFIX: &str = "kmip:";
const FORM_GET: u8 = 1;
const FORM_KEY_WRAP: u8 = 2;
const PRIVATE_GCM: u8 = 2;
const _: () = assert!(2 + 8 + BLOB_LEN <= stored::DETAILS_MAX);

/// A Unique Identifier: visible ASCII without spaces. A uuid, or `1`: it says nothing, and repeats.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct KeyId(String);

impl KeyId {
    /// Reads one; none where the text is anything else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let fits = (1..=ID_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a keyslot says. Not authenticated until it has been unwrapped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Keyslot {
    pub(crate) id: KeyId,
    pub(crate) form: Form,
    pub(crate) origin: Origin,
    /// The KEK's Initial Date; zero where it is not known.
    pub(crate) made: u64,
}

/// How a DEK is wrapped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    /// Here, under the KEK that the server hands out.
    Get,
    /// Here, under a KEK that the server encrypts by AES Key Wrap.
    KeyWrap {
        /// That KEK, wrapped.
        blob: [u8; BLOB_LEN],
    },
    /// By AES-GCM in the server.
    Gcm,
}

impl Form {
    /// In words for people.
    fn text(&self) -> &'static str {
        match self {
            Self::Get => "fetched KEK",
            Self::KeyWrap { .. } => "AES key wrap in the server",
            Self::Gcm => "AES-GCM in the server",
        }
    }

    /// Whether a provider of that mode may use it.
    pub(crate) fn fits(&self, mode: Mode) -> bool {
        match mode {
            Mode::Auto => true,
            Mode::Get => matches!(self, Self::Get),
            Mode::Encrypt => matches!(self, Self::KeyWrap { .. } | Self::Gcm),
        }
    }
}

/// Who made a KEK: only what sealbd made it destroys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    Given,
    Made,
}

impl Keyslot {
    /// The key uri.
    pub(crate) fn uri(&self) -> String {
        format!("{URI_PREFIX}{}", self.id.as_str())
    }

    /// The private part of the GCM form, or the details of the others.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Self { id: _, form, origin, made } = self;
        let first = match form {
            Form::Get => FORM_GET,
            Form::KeyWrap { .. } => FORM_KEY_WRAP,
            Form::Gcm => PRIVATE_GCM,
        };
        let mut bytes = vec![first, u8::from(*origin == Origin::Made)];
        bytes.extend(made.to_le_bytes());
        if let Form::KeyWrap { blob } = form {
            bytes.extend(blob);
        }
        bytes
    }

    /// Reads a keyslot.
    ///
    /// # Errors
    /// [`KeyError::Malformed`].
    pub(crate) fn decode(key: &WrappedKey) -> Result<Self, KeyError> {
        let malformed = |why: &str| KeyError::Malformed(why.to_owned());
        verify::is_type(key, SlotType::Kmip)?;
        verify::wrapped_len(key)?;
        let id = key.kek_uri.strip_prefix(URI_PREFIX).and_then(KeyId::parse);
        let id = id.ok_or_else(|| malformed("its key uri is not kmip: and an identifier"))?;
        let (is_gcm, rest) = match key.private.as_slice() {
            [PRIVATE_GCM, rest @ ..] => (true, rest),
            _ => (false, stored::details(key)?),
        };
        let (form, rest) = match (is_gcm, rest) {
            (true, rest) => (Form::Gcm, rest),
            (false, [FORM_GET, rest @ ..]) => (Form::Get, rest),
            (false, [FORM_KEY_WRAP, rest @ ..]) => {
                let (rest, blob) = rest
                    .split_last_chunk::<BLOB_LEN>()
                    .ok_or_else(|| malformed("its private part is too short"))?;
                (Form::KeyWrap { blob: *blob }, rest)
            }
            _ => return Err(malformed("its private part is of no form that is known")),
        };
        let (origin, made) = match rest {
            [0, made @ ..] => (Origin::Given, made),
            [1, made @ ..] => (Origin::Made, made),
            _ => return Err(malformed("its origin is unknown")),
        };
        let made = made.try_into().map_err(|_| malformed("its private part has a wrong length"))?;
        Ok(Self { id, form, origin, made: u64::from_le_bytes(made) })
    }
}

/// Tells what such a keyslot is made of.
///
/// # Errors
/// [`KeyError::Malformed`].
pub(crate) fn describe(key: &WrappedKey) -> Result<KeyDescription, KeyError> {
    let Keyslot { id, form, .. } = Keyslot::decode(key)?;
    Ok(KeyDescription {
        text: format!("{}, key {}", form.text(), id.as_str()),
        key_id: Some(id.as_str().to_owned()),
        version: None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stored(keyslot: &Keyslot) -> WrappedKey {
        let mut private = keyslot.encode();
        if !matches!(keyslot.form, Form::Gcm) {
            private.splice(0..0, [1, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
        WrappedKey { slot_type: SlotType::Kmip, kek_uri: keyslot.uri(), wrapped: vec![0; 60], private }
    }

    fn sample(form: Form, origin: Origin) -> Keyslot {
        let id = KeyId::parse("9fca5b8c-8f2d-4a0b-8b73-000000000001").unwrap();
        Keyslot { id, form, origin, made: 1_700_000_000 }
    }

    #[test]
    fn every_form_is_read_as_it_was_written() {
        for form in [Form::Get, Form::KeyWrap { blob: [7; BLOB_LEN] }, Form::Gcm] {
            for origin in [Origin::Given, Origin::Made] {
                let keyslot = sample(form.clone(), origin);
                assert_eq!(Keyslot::decode(&stored(&keyslot)).unwrap(), keyslot);
            }
        }
    }

    /// Keyslots are for ever.
    #[test]
    fn the_forms_have_these_bytes() {
        let made = [0x00, 0xf1, 0x53, 0x65, 0, 0, 0, 0];
        let get = sample(Form::Get, Origin::Made);
        assert_eq!(stored(&get).private, [[1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1].as_slice(), &made].concat());
        let wrap = stored(&sample(Form::KeyWrap { blob: [7; BLOB_LEN] }, Origin::Given)).private;
        assert_eq!(wrap, [[1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0].as_slice(), &made, &[7; BLOB_LEN]].concat());
        assert_eq!(sample(Form::Gcm, Origin::Made).encode(), [[2, 1].as_slice(), &made].concat());
        assert_eq!(get.uri(), "kmip:9fca5b8c-8f2d-4a0b-8b73-000000000001");
    }

    #[test]
    fn an_identifier_is_visible_and_has_an_end() {
        let longest = "x".repeat(ID_MAX);
        for text in ["1", "9fca5b8c-8f2d-4a0b-8b73-000000000001", "a/b:c", &longest] {
            assert_eq!(KeyId::parse(text).unwrap().as_str(), text);
        }
        for text in ["", " ", "a b", "a\n", "\u{1b}[31m", "é", &"x".repeat(ID_MAX + 1)] {
            assert_eq!(KeyId::parse(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_what_encodes_to_them_or_are_refused(
            private in prop::collection::vec(any::<u8>(), 0..80),
            first in 0_u8..4,
            form in 0_u8..4,
            len in prop_oneof![Just(10_usize), Just(19), Just(59), 0_usize..80],
        ) {
            let mut private = private;
            private.resize(len, 0);
            private.splice(0..len.min(1), [first]);
            if let [1, _, _, _, _, _, _, _, _, at, origin, ..] = private.as_mut_slice() {
                (*at, *origin) = (form, *origin % 3);
            }
            let key = WrappedKey {
                slot_type: SlotType::Kmip,
                kek_uri: "kmip:1".into(),
                wrapped: vec![0; 60],
                private,
            };
            if let Ok(keyslot) = Keyslot::decode(&key) {
                let again = stored(&keyslot).private;
                prop_assert_eq!(again.len(), key.private.len());
                // The check is not the keyslot's.
                prop_assert!(again[again.len() - 10..] == key.private[key.private.len() - 10..]);
            }
        }
    }
}
