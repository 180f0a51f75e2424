//! What sealbd asks of a KMIP server: the operations on keys, each one request (KMIP Specification 1.2 and 1.4 §4,
//! 2.0 §6). Every answer is checked before it is used; what a key may be used for is its manager's to decide.

use super::client::Session;
use super::failure::Refusal;
use super::keyslot::{BLOB_LEN, KeyId};
use super::messages::Version;
use super::tags::{self, Operation, State};
use super::ttlv::{Item, Value, Writer};
use crate::manager::KeyError;
use crate::secret::{Dek, Secret32, fill_random};
use crate::wrap::WRAPPED_LEN;

const IV_LEN: usize = 12;
const TAG_LEN: usize = 16;
/// Most operations of a server's list that are read: the specification has about fifty.
const OPERATIONS_MAX: usize = 256;
/// Longest text of a server that is shown.
const VENDOR_MAX: usize = 64;

/// What the server says of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Attributes {
    pub(crate) state: State,
    /// Initial Date, in seconds since 1970; zero where it is not told.
    pub(crate) made: u64,
}

/// Whether a new key may leave the server in the clear.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Leaves {
    Never,
    Maybe,
}

/// What a server can, by its own word.
#[derive(Clone, Debug)]
pub(crate) struct Abilities {
    operations: Vec<u32>,
    /// What it calls itself, made fit to be shown.
    pub(crate) vendor: String,
}

impl Abilities {
    pub(crate) fn has(&self, operation: Operation) -> bool {
        self.operations.contains(&operation.number())
    }
}

impl Session<'_> {
    /// Query. It may be refused to clients that may use keys.
    pub(crate) fn abilities(&mut self) -> Result<Result<Abilities, Refusal>, KeyError> {
        let ask = |writer: &mut Writer| {
            writer.enumeration(tags::QUERY_FUNCTION, tags::QUERY_OPERATIONS);
            writer.enumeration(tags::QUERY_FUNCTION, tags::QUERY_SERVER);
        };
        self.ask(Operation::Query, ask, |payload| {
            let listed = payload.all(tags::OPERATION).take(OPERATIONS_MAX);
            let operations = listed.filter_map(|item| match item.value {
                Value::Enumeration(number) => Some(number),
                _ => None,
            });
            let vendor = payload.text(tags::VENDOR_IDENTIFICATION).unwrap_or_default();
            Ok(Abilities { operations: operations.collect(), vendor: printable(vendor) })
        })
    }

    /// Whether the server offers all of these, by its own word where it gives that.
    pub(crate) fn offers(&mut self, operations: &[Operation]) -> Result<bool, KeyError> {
        Ok(match self.abilities()? {
            Ok(able) => operations.iter().all(|operation| able.has(*operation)),
            // Then it shows when they are asked for.
            Err(_) => true,
        })
    }

    /// Create: an AES-256 key of these uses. Its name is for people who look into the server. One that never
    /// leaves the server is Sensitive, which came with 1.4.
    pub(crate) fn create(
        &mut self,
        usage: i32,
        leaves: Leaves,
        name: &str,
    ) -> Result<Result<KeyId, Refusal>, KeyError> {
        let version = self.version()?;
        let attributes = |writer: &mut Writer| {
            let mut attribute = |tag, name: &str, write: &dyn Fn(&mut Writer, u32)| {
                attribute(writer, version, tag, name, write);
            };
            attribute(tags::CRYPTOGRAPHIC_ALGORITHM, "Cryptographic Algorithm", &|writer, tag| {
                writer.enumeration(tag, tags::ALGORITHM_AES);
            });
            attribute(tags::CRYPTOGRAPHIC_LENGTH, "Cryptographic Length", &|writer, tag| {
                writer.integer(tag, 256);
            });
            attribute(tags::CRYPTOGRAPHIC_USAGE_MASK, "Cryptographic Usage Mask", &|writer, tag| {
                writer.integer(tag, usage);
            });
            if leaves == Leaves::Never {
                attribute(tags::SENSITIVE, "Sensitive", &|writer, tag| writer.boolean(tag, true));
            }
            attribute(tags::NAME, "Name", &|writer, tag| {
                writer.structure(tag, |writer| {
                    writer.text(tags::NAME_VALUE, name);
                    writer.enumeration(tags::NAME_TYPE, tags::NAME_TEXT);
                });
            });
        };
        let ask = |writer: &mut Writer| {
            writer.enumeration(tags::OBJECT_TYPE, tags::OBJECT_SYMMETRIC_KEY);
            let holder = if version < Version::V2_0 { tags::TEMPLATE_ATTRIBUTE } else { tags::ATTRIBUTES };
            writer.structure(holder, attributes);
        };
        self.ask(Operation::Create, ask, identifier)
    }

    /// Re-key: the key that replaces another.
    pub(crate) fn re_key(&mut self, id: &KeyId) -> Result<Result<KeyId, Refusal>, KeyError> {
        let answer = self.ask(Operation::ReKey, named(id), identifier)?;
        match answer {
            Ok(new) if new == *id => {
                Err(KeyError::Untrusted(format!("Re-key {}: the new key is the old one", id.as_str())))
            }
            answer => Ok(answer),
        }
    }

    /// Activate.
    pub(crate) fn activate(&mut self, id: &KeyId) -> Result<Result<(), Refusal>, KeyError> {
        self.ask(Operation::Activate, named(id), |_| Ok(()))
    }

    /// Revoke, because it is not used any more.
    pub(crate) fn revoke(&mut self, id: &KeyId) -> Result<Result<(), Refusal>, KeyError> {
        let ask = |writer: &mut Writer| {
            named(id)(writer);
            writer.structure(tags::REVOCATION_REASON, |writer| {
                writer.enumeration(tags::REVOCATION_REASON_CODE, tags::REVOKED_CESSATION);
            });
        };
        self.ask(Operation::Revoke, ask, |_| Ok(()))
    }

    /// Destroy.
    pub(crate) fn destroy(&mut self, id: &KeyId) -> Result<Result<(), Refusal>, KeyError> {
        self.ask(Operation::Destroy, named(id), |_| Ok(()))
    }

    /// State and age, by Get Attributes.
    pub(crate) fn attributes(&mut self, id: &KeyId) -> Result<Result<Attributes, Refusal>, KeyError> {
        let version = self.version()?;
        let ask = |writer: &mut Writer| {
            named(id)(writer);
            // In 2.0 all attributes are asked for: servers differ in how they read a list of them.
            if version < Version::V2_0 {
                writer.text(tags::ATTRIBUTE_NAME, "State");
                writer.text(tags::ATTRIBUTE_NAME, "Initial Date");
            }
        };
        self.ask(Operation::GetAttributes, ask, |payload| {
            is_of(payload, id)?;
            let found = |tag, name| found(payload, version, tag, name);
            let state = match found(tags::STATE, "State") {
                Some(Value::Enumeration(number)) => State::from_number(*number),
                _ => None,
            };
            let made = match found(tags::INITIAL_DATE, "Initial Date") {
                Some(Value::DateTime(seconds)) => u64::try_from(*seconds).unwrap_or_default(),
                _ => 0,
            };
            Ok(Attributes { state: state.ok_or("the answer tells no state of the key")?, made })
        })
    }

    /// Get: the key itself.
    pub(crate) fn fetch(&mut self, id: &KeyId) -> Result<Result<Secret32, Refusal>, KeyError> {
        self.ask(Operation::Get, named(id), |payload| {
            is_of(payload, id)?;
            key_of(payload).ok_or("the answer holds no AES key of 32 bytes in the clear")
        })
    }

    /// Encrypt by AES Key Wrap.
    pub(crate) fn wrap(
        &mut self,
        id: &KeyId,
        secret: &Secret32,
    ) -> Result<Result<[u8; BLOB_LEN], Refusal>, KeyError> {
        let ask = |writer: &mut Writer| {
            named(id)(writer);
            parameters(writer, tags::MODE_NIST_KEY_WRAP, None);
            writer.bytes(tags::DATA, secret.expose());
        };
        self.ask(Operation::Encrypt, ask, |payload| {
            is_of(payload, id)?;
            let blob = payload.bytes(tags::DATA).and_then(|data| data.try_into().ok());
            blob.ok_or("the answer holds no wrapped key of 40 bytes")
        })
    }

    /// Decrypt by AES Key Wrap.
    pub(crate) fn unwrap(
        &mut self,
        id: &KeyId,
        blob: &[u8; BLOB_LEN],
    ) -> Result<Result<Secret32, Refusal>, KeyError> {
        let ask = |writer: &mut Writer| {
            named(id)(writer);
            parameters(writer, tags::MODE_NIST_KEY_WRAP, None);
            writer.bytes(tags::DATA, blob);
        };
        self.ask(Operation::Decrypt, ask, |payload| {
            is_of(payload, id)?;
            payload.bytes(tags::DATA).and_then(secret).ok_or("the answer holds no key of 32 bytes")
        })
    }

    /// Encrypt by AES-GCM: IV ‖ ciphertext ‖ tag. A server that returns no tag cannot.
    pub(crate) fn seal(
        &mut self,
        id: &KeyId,
        dek: &Dek,
        aad: &[u8],
    ) -> Result<Result<[u8; WRAPPED_LEN], Refusal>, KeyError> {
        let mut iv = [0; IV_LEN];
        fill_random(&mut iv)?;
        let ask = |writer: &mut Writer| {
            named(id)(writer);
            parameters(writer, tags::MODE_GCM, Some(TAG_LEN));
            writer.bytes(tags::DATA, dek.0.expose());
            writer.bytes(tags::IV_COUNTER_NONCE, &iv);
            writer.bytes(tags::AEAD_ADDITIONAL_DATA, aad);
        };
        let answer = self.ask(Operation::Encrypt, ask, |payload| {
            is_of(payload, id)?;
            // A server may have chosen its own.
            let iv = payload.bytes(tags::IV_COUNTER_NONCE).unwrap_or(&iv);
            let Some(tag) = payload.bytes(tags::AEAD_TAG) else { return Ok(None) };
            let data = payload.bytes(tags::DATA).unwrap_or_default();
            let fits = (iv.len(), data.len(), tag.len()) == (IV_LEN, 32, TAG_LEN);
            let sealed = fits.then(|| [iv, data, tag].concat()).and_then(|sealed| sealed.try_into().ok());
            sealed.map(Some).ok_or("the answer is no ciphertext of AES-GCM")
        })?;
        Ok(answer.and_then(|sealed| sealed.ok_or(Refusal::Unsupported)))
    }

    /// Decrypt by AES-GCM.
    pub(crate) fn open(
        &mut self,
        id: &KeyId,
        sealed: &[u8; WRAPPED_LEN],
        aad: &[u8],
    ) -> Result<Result<Secret32, Refusal>, KeyError> {
        let (iv, rest) = sealed.split_at(IV_LEN);
        let (data, tag) = rest.split_at(32);
        let ask = |writer: &mut Writer| {
            named(id)(writer);
            parameters(writer, tags::MODE_GCM, Some(TAG_LEN));
            writer.bytes(tags::DATA, data);
            writer.bytes(tags::IV_COUNTER_NONCE, iv);
            writer.bytes(tags::AEAD_ADDITIONAL_DATA, aad);
            writer.bytes(tags::AEAD_TAG, tag);
        };
        self.ask(Operation::Decrypt, ask, |payload| {
            is_of(payload, id)?;
            payload.bytes(tags::DATA).and_then(secret).ok_or("the answer holds no key of 32 bytes")
        })
    }
}

/// Writes one attribute in the way of a version.
fn attribute(writer: &mut Writer, version: Version, tag: u32, name: &str, write: &dyn Fn(&mut Writer, u32)) {
    if version >= Version::V2_0 {
        return write(writer, tag);
    }
    writer.structure(tags::ATTRIBUTE, |writer| {
        writer.text(tags::ATTRIBUTE_NAME, name);
        write(writer, tags::ATTRIBUTE_VALUE);
    });
}

/// The value of one attribute in the way of a version. Of several none is taken.
fn found<'p, 'a>(payload: &'p Item<'a>, version: Version, tag: u32, name: &str) -> Option<&'p Value<'a>> {
    if version >= Version::V2_0 {
        return payload.one(tags::ATTRIBUTES)?.one(tag).map(|item| &item.value);
    }
    let mut named = payload.all(tags::ATTRIBUTE).filter(|item| item.text(tags::ATTRIBUTE_NAME) == Some(name));
    let first = named.next().filter(|_| named.next().is_none())?;
    first.one(tags::ATTRIBUTE_VALUE).map(|item| &item.value)
}

/// Writes which key is meant.
fn named(id: &KeyId) -> impl Fn(&mut Writer) {
    move |writer| writer.text(tags::UNIQUE_IDENTIFIER, id.as_str())
}

/// Writes the cryptographic parameters of Encrypt and Decrypt.
fn parameters(writer: &mut Writer, mode: u32, tag_len: Option<usize>) {
    writer.structure(tags::CRYPTOGRAPHIC_PARAMETERS, |writer| {
        writer.enumeration(tags::BLOCK_CIPHER_MODE, mode);
        writer.enumeration(tags::CRYPTOGRAPHIC_ALGORITHM, tags::ALGORITHM_AES);
        if let Some(len) = tag_len {
            writer.integer(tags::TAG_LENGTH, i32::try_from(len).expect("a tag has 16 bytes"));
        }
    });
}

/// The identifier of what was made.
fn identifier(payload: &Item<'_>) -> Result<KeyId, &'static str> {
    let id = payload.text(tags::UNIQUE_IDENTIFIER).and_then(KeyId::parse);
    id.ok_or("the answer names no key, or by more than 128 visible characters")
}

/// Refuses an answer about another key.
fn is_of(payload: &Item<'_>, id: &KeyId) -> Result<(), &'static str> {
    let is = payload.text(tags::UNIQUE_IDENTIFIER) == Some(id.as_str());
    if is { Ok(()) } else { Err("the answer is about another key") }
}

/// The key in the payload of Get, raw or as a transparent symmetric key.
fn key_of(payload: &Item<'_>) -> Option<Secret32> {
    let block = payload.one(tags::SYMMETRIC_KEY)?.one(tags::KEY_BLOCK)?;
    let is_aes = payload.enumeration(tags::OBJECT_TYPE) == Some(tags::OBJECT_SYMMETRIC_KEY)
        && block.enumeration(tags::CRYPTOGRAPHIC_ALGORITHM).is_none_or(|it| it == tags::ALGORITHM_AES)
        && block.integer(tags::CRYPTOGRAPHIC_LENGTH).is_none_or(|bits| bits == 256)
        && block.all(tags::KEY_WRAPPING_DATA).next().is_none();
    let value = block.one(tags::KEY_VALUE).filter(|_| is_aes)?;
    match block.enumeration(tags::KEY_FORMAT_TYPE)? {
        tags::FORMAT_RAW => value.bytes(tags::KEY_MATERIAL).and_then(secret),
        tags::FORMAT_TRANSPARENT => value.one(tags::KEY_MATERIAL)?.bytes(tags::KEY).and_then(secret),
        _ => None,
    }
}

/// 32 bytes in memory of their own; none where there are more or fewer.
fn secret(bytes: &[u8]) -> Option<Secret32> {
    let bytes: &[u8; 32] = bytes.try_into().ok()?;
    let Ok(secret) = Secret32::fill(|out| {
        out.copy_from_slice(bytes);
        Ok::<(), std::convert::Infallible>(())
    });
    Some(secret)
}

/// What a server says of itself, made fit to be shown.
fn printable(text: &str) -> String {
    let shown = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    text.trim().chars().take(VENDOR_MAX).map(shown).collect()
}
