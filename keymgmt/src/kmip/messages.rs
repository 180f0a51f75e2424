//! KMIP messages as far as sealbd uses them: a request of one operation, and its answer (KMIP Specification 1.2
//! and 1.4 §6 and §7, 2.0 §8).
//!
//! An answer is read tolerantly where the versions and servers differ (fields that are not known are passed
//! over) and strictly where something follows from it. Texts of the server are never repeated.

use zeroize::Zeroizing;

use super::tags::{self, Operation};
use super::ttlv::{Item, TtlvError, Writer};

/// A version of the protocol that sealbd speaks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Version {
    /// The first with Encrypt and Decrypt.
    V1_2,
    /// The first with authenticated encryption.
    V1_4,
    /// Attributes are structures of their own.
    V2_0,
}

impl Version {
    /// The newest first, as Discover Versions wants them.
    pub(crate) const ALL: [Self; 3] = [Self::V2_0, Self::V1_4, Self::V1_2];

    /// Major and minor number.
    #[must_use]
    pub fn numbers(self) -> (i32, i32) {
        match self {
            Self::V1_2 => (1, 2),
            Self::V1_4 => (1, 4),
            Self::V2_0 => (2, 0),
        }
    }

    /// The version of a text such as `1.4`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.to_string() == text)
    }

    fn write(self, writer: &mut Writer) {
        let (major, minor) = self.numbers();
        writer.structure(tags::PROTOCOL_VERSION, |writer| {
            writer.integer(tags::PROTOCOL_VERSION_MAJOR, major);
            writer.integer(tags::PROTOCOL_VERSION_MINOR, minor);
        });
    }

    /// Those of ours that a list has. Numbers that we do not know are passed over.
    pub(crate) fn listed(payload: &Item<'_>) -> Vec<Self> {
        let listed: Vec<_> = payload.all(tags::PROTOCOL_VERSION).filter_map(version_numbers).collect();
        Self::ALL.into_iter().filter(|version| listed.contains(&version.numbers())).collect()
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor) = self.numbers();
        write!(f, "{major}.{minor}")
    }
}

fn version_numbers(item: &Item<'_>) -> Option<(i32, i32)> {
    item.integer(tags::PROTOCOL_VERSION_MAJOR).zip(item.integer(tags::PROTOCOL_VERSION_MINOR))
}

/// A request of one operation, whose payload `payload` writes.
pub(crate) fn request(
    version: Version,
    operation: Operation,
    payload: impl FnOnce(&mut Writer),
) -> Zeroizing<Vec<u8>> {
    let mut writer = Writer::new();
    writer.structure(tags::REQUEST_MESSAGE, |writer| {
        writer.structure(tags::REQUEST_HEADER, |writer| {
            version.write(writer);
            writer.integer(tags::BATCH_COUNT, 1);
        });
        writer.structure(tags::BATCH_ITEM, |writer| {
            writer.enumeration(tags::OPERATION, operation.number());
            writer.structure(tags::REQUEST_PAYLOAD, payload);
        });
    });
    writer.finish()
}

/// The payload of Discover Versions: what we speak.
pub(crate) fn our_versions(writer: &mut Writer) {
    Version::ALL.iter().for_each(|version| version.write(writer));
}

/// What was answered to a request of one operation.
pub struct Answer<'a> {
    /// The version that the server spoke.
    pub version: (i32, i32),
    /// The number of the operation, where the server says it.
    pub operation: Option<u32>,
    /// Whether it was done.
    pub outcome: Outcome<'a>,
}

/// Whether an operation was done.
pub enum Outcome<'a> {
    /// It was; the payload is empty where the operation has none.
    Done(Item<'a>),
    /// It was not, for a reason that is a number of §9.1.3.2.29.
    Refused(u32),
}

/// Why bytes are no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AnswerError {
    /// They are no TTLV.
    #[error("the answer is no KMIP message: {0}")]
    Ttlv(#[from] TtlvError),
    /// They are, and another message.
    #[error("the answer is no response to one request")]
    Form,
    /// The operation was put off or undone, which nobody asked for.
    #[error("the answer is that there will be one")]
    Pending,
}

impl<'a> Answer<'a> {
    /// Reads an answer.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, AnswerError> {
        let Item { tag, value } = Item::decode(bytes)?;
        let super::ttlv::Value::Structure(parts) = value else { return Err(AnswerError::Form) };
        let [header, item] = <[Item<'a>; 2]>::try_from(parts).map_err(|_| AnswerError::Form)?;
        let version = header.one(tags::PROTOCOL_VERSION).and_then(version_numbers);
        let is_response = tag == tags::RESPONSE_MESSAGE
            && header.tag == tags::RESPONSE_HEADER
            && item.tag == tags::BATCH_ITEM
            && header.integer(tags::BATCH_COUNT) == Some(1);
        let version = version.filter(|_| is_response).ok_or(AnswerError::Form)?;
        let operation = item.enumeration(tags::OPERATION);
        let outcome = match item.enumeration(tags::RESULT_STATUS) {
            Some(0) => Outcome::Done(payload(item)?),
            Some(1) => {
                Outcome::Refused(item.enumeration(tags::RESULT_REASON).unwrap_or(REASON_GENERAL_FAILURE))
            }
            Some(2 | 3) => return Err(AnswerError::Pending),
            _ => return Err(AnswerError::Form),
        };
        Ok(Self { version, operation, outcome })
    }
}

/// Result Reason: none of the others.
const REASON_GENERAL_FAILURE: u32 = 0x100;

fn payload(item: Item<'_>) -> Result<Item<'_>, AnswerError> {
    let super::ttlv::Value::Structure(parts) = item.value else { return Err(AnswerError::Form) };
    let mut payloads = parts.into_iter().filter(|part| part.tag == tags::RESPONSE_PAYLOAD);
    let none = Item { tag: tags::RESPONSE_PAYLOAD, value: super::ttlv::Value::Structure(Vec::new()) };
    let payload = payloads.next().unwrap_or(none);
    match payloads.next() {
        None => Ok(payload),
        Some(_) => Err(AnswerError::Form),
    }
}

#[cfg(test)]
mod tests;
