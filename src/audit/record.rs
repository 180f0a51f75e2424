//! One record: what a line of the log holds, written and read (docs/AUDIT.md §2).
//!
//! A record has one spelling. Reading encodes again what it found and compares: spaces, another order, a field
//! twice or an unknown one make a line that is no record.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::text::Text;
use super::who::Who;

/// Version of the form of a record; any new field is a new version.
const SCHEMA: u32 = 1;
/// What every line begins with.
pub(super) const LINE_START: &[u8] = b"{\"schema\":1,\"seq\":";
/// Bytes of the longest line, its line feed included: a record with all texts and changes at their longest
/// takes less, which a test holds.
pub const LINE_MAX: usize = 32 * 1024;
/// Keyslots that one record tells of: every one of a volume's sixteen removed and made anew.
const CHANGES_MAX: usize = 32;

/// A SHA-256 as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// What the first record of a chain has before it.
    pub const NONE: Self = Self([0; 32]);

    /// The hash of a line. Its line feed counts, whether it is there yet or not.
    #[must_use]
    pub fn of_line(line: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update(line.strip_suffix(b"\n").unwrap_or(line));
        hash.update(b"\n");
        Self(hash.finalize().into())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Hash {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "a hash has 64 digits of 0-9 and a-f";
        if text.len() != 64 || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong);
        }
        let mut hash = [0; 32];
        for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| wrong)?;
        }
        Ok(Self(hash))
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// A moment in milliseconds, UTC, as RFC 3339 has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Moment(u64);

/// The last millisecond of the year 9999, the last that RFC 3339 can write.
const MOMENT_MAX: u64 = 253_402_300_799_999;

impl Moment {
    /// What the clock says; a clock before 1970 or behind 9999 counts as the nearest moment.
    pub(super) fn now() -> Self {
        Self::of(SystemTime::now())
    }

    fn of(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(MOMENT_MAX).min(MOMENT_MAX))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = UNIX_EPOCH + Duration::from_millis(self.0);
        fmt::Display::fmt(&humantime::format_rfc3339_millis(time), f)
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map(Self::of).map_err(D::Error::custom)
    }
}

/// How far a verb came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Something is about to be changed or served.
    Started,
    /// It was done.
    Done,
    /// A dry run: it could have been done, and nothing was changed.
    Tried,
    /// It failed.
    Failed,
    /// Not the verb's own: what stood at the end of the log was no record and is kept before this one.
    Recovered,
}

impl Outcome {
    /// The word in the log.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Done => "done",
            Self::Tried => "tried",
            Self::Failed => "failed",
            Self::Recovered => "recovered",
        }
    }
}

/// A keyslot and the key that wraps the data key in it; nothing secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Key {
    /// Number of the keyslot.
    pub slot: u16,
    /// Which kind of key manager.
    pub manager: Text<32>,
    /// What the manager calls the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<Text<256>>,
    /// Which version of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_version: Option<Text<64>>,
}

/// What became of a keyslot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
}

/// A keyslot that the verb made or removed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// What became of it.
    pub change: ChangeKind,
    /// Which one it is.
    #[serde(flatten)]
    pub key: Key,
}

/// What is recorded. A new one has its verb and request; the rest is added as it gets known.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Number of the request, the same that key managers were told.
    pub request: Text<64>,
    /// What was asked for, e.g. `key-add`.
    pub verb: Text<32>,
    /// How far it came.
    pub outcome: Outcome,
    /// The code word of a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Text<32>>,
    /// The exit code of a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<u8>,
    /// Where the volume lies, as it was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<Text<256>>,
    /// The volume. It is what its header claims until a key authenticated it: with `key` it is certain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<Uuid>,
    /// The volume that is overwritten by a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaces: Option<Uuid>,
    /// The keyslot that opened the volume.
    #[serde(flatten)]
    pub key: Option<Key>,
    /// Keyslots that were made or removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

impl Event {
    /// An event of which only this is known.
    #[must_use]
    pub fn new(verb: &str, request: &str, outcome: Outcome) -> Self {
        Self {
            request: Text::of(request),
            verb: Text::of(verb),
            outcome,
            error: None,
            exit: None,
            backend: None,
            volume: None,
            replaces: None,
            key: None,
            changes: Vec::new(),
        }
    }
}

/// What stood between two records and is none.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Torn {
    /// How many bytes, line feeds included.
    pub torn_bytes: u64,
    /// Their hash.
    pub torn_sha256: Hash,
}

/// A line of the log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    schema: u32,
    /// Its number, from 1 on.
    pub seq: u64,
    time: Moment,
    /// Who did it.
    #[serde(flatten)]
    pub who: Who,
    /// What was done.
    #[serde(flatten)]
    pub event: Event,
    #[serde(flatten)]
    pub(super) torn: Option<Torn>,
    /// Hash of the line of the record before.
    pub prev: Hash,
}

/// Why a line is no record.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotARecord {
    /// It is something else, or was changed.
    #[error("is not a record")]
    Form,
    /// A newer sealbd wrote it.
    #[error("is a record of schema {0}, which this sealbd does not know")]
    Newer(u32),
}

impl Record {
    /// The record of `event` that follows a line whose hash is `prev`, made now.
    ///
    /// # Panics
    /// When more than 32 keyslots changed; a volume has sixteen.
    #[must_use]
    pub(super) fn now(seq: u64, who: Who, event: Event, torn: Option<Torn>, prev: Hash) -> Self {
        assert!(event.changes.len() <= CHANGES_MAX, "a record tells of at most {CHANGES_MAX} changes");
        Self { schema: SCHEMA, seq, time: Moment::now(), who, event, torn, prev }
    }

    /// When it was made, RFC 3339.
    #[must_use]
    pub fn time(&self) -> String {
        self.time.to_string()
    }

    /// The line, with its line feed.
    ///
    /// # Panics
    /// Never: a record is plain data.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("a record is plain data");
        line.push(b'\n');
        line
    }

    /// Reads a line, with or without its line feed. Costs a few times the length of the line, which is at most
    /// [`LINE_MAX`].
    ///
    /// # Errors
    /// [`NotARecord`].
    pub fn decode(line: &[u8]) -> Result<Self, NotARecord> {
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        if text.len() >= LINE_MAX {
            return Err(NotARecord::Form);
        }
        let version: Version = serde_json::from_slice(text).map_err(|_| NotARecord::Form)?;
        if version.schema > SCHEMA {
            return Err(NotARecord::Newer(version.schema));
        }
        let record: Self = serde_json::from_slice(text).map_err(|_| NotARecord::Form)?;
        let canonical = record.encode();
        let sound = record.schema == SCHEMA
            && record.seq != 0
            && record.event.changes.len() <= CHANGES_MAX
            && record.torn.is_some() == (record.event.outcome == Outcome::Recovered);
        if !sound || canonical.strip_suffix(b"\n") != Some(text) {
            return Err(NotARecord::Form);
        }
        Ok(record)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A record with everything in it, as long as it gets.
    pub(crate) fn longest() -> Record {
        // A backslash takes the most room: two bytes in a text, four in JSON.
        let worst = "\\".repeat(1000);
        let key = Key {
            slot: u16::MAX,
            manager: Text::of(&worst),
            key_id: Some(Text::of(&worst)),
            key_version: Some(Text::of(&worst)),
        };
        let mut event = Event::new(&worst, &worst, Outcome::Recovered);
        event.error = Some(Text::of(&worst));
        event.exit = Some(u8::MAX);
        event.backend = Some(Text::of(&worst));
        event.volume = Some(Uuid::max());
        event.replaces = Some(Uuid::max());
        event.changes = vec![Change { change: ChangeKind::Removed, key: key.clone() }; CHANGES_MAX];
        event.key = Some(key);
        let torn = Torn { torn_bytes: u64::MAX, torn_sha256: Hash([0xff; 32]) };
        Record::now(u64::MAX, Who::longest(), event, Some(torn), Hash([0xff; 32]))
    }

    #[test]
    fn the_longest_record_fits_into_a_line_and_is_read_back() {
        let line = longest().encode();
        assert!(line.len() <= LINE_MAX, "{}", line.len());
        assert!(line.starts_with(LINE_START));
        assert_eq!(Record::decode(&line), Ok(longest_at(&line)));
    }

    /// The longest record with the time of that line.
    fn longest_at(line: &[u8]) -> Record {
        Record { time: Record::decode(line).unwrap().time, ..longest() }
    }

    #[test]
    fn a_record_has_one_spelling() {
        let event = Event::new("key-add", "0b5e", Outcome::Started);
        let record = Record::now(7, Who::current(), event, None, Hash::NONE);
        let line = String::from_utf8(record.encode()).unwrap();
        assert_eq!(Record::decode(line.as_bytes()), Ok(record.clone()));
        assert_eq!(Record::decode(line.trim_end().as_bytes()), Ok(record));
        for (from, to) in [
            ("{\"schema\"", "{ \"schema\""),
            ("\"seq\":7", "\"seq\":07"),
            ("\"seq\":7", "\"seq\":0"),
            ("\"seq\":7", "\"seq\":7,\"more\":1"),
            ("\"seq\":7", "\"seq\":7,\"seq\":7"),
            ("\"started\"", "\"recovered\""),
            ("\"key-add\"", "\"key\\u002dadd\""),
            ("\"schema\":1", "\"schema\":0"),
            ("\n", "\r\n"),
            ("\n", "\n\n"),
        ] {
            let other = line.replacen(from, to, 1);
            assert_ne!(other, line, "{from}");
            assert_eq!(Record::decode(other.as_bytes()), Err(NotARecord::Form), "{to}");
        }
        let newer = line.replacen("\"schema\":1", "\"schema\":2", 1);
        assert_eq!(Record::decode(newer.as_bytes()), Err(NotARecord::Newer(2)));
    }

    #[test]
    fn a_clock_that_is_wrong_by_ages_still_writes_a_moment() {
        let year = |seconds| Moment::of(UNIX_EPOCH + Duration::from_secs(seconds)).to_string();
        assert_eq!(year(1 << 40), "9999-12-31T23:59:59.999Z");
        assert_eq!(Moment::of(UNIX_EPOCH - Duration::from_secs(9)).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(year(1_700_000_000), "2023-11-14T22:13:20.000Z");
    }
}
