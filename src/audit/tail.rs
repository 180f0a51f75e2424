//! The end of a log: what the next record is chained to. Looks at a bounded part of the file, which may hold
//! anything.

use std::fs::File;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use super::record::{Hash, LINE_MAX, LINE_START, NotARecord, Record, Torn};

/// Most bytes between two records that are none: a crash leaves a part of one write, which is at most two
/// records. Several crashes in a row leave several.
pub(super) const TORN_MAX: usize = 3 * LINE_MAX;
/// Bytes looked at: the last record and what may stand behind it.
const WINDOW: usize = TORN_MAX + LINE_MAX;

/// Where a chain stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct End {
    /// Number of the last record; 0 when there is none.
    pub(super) seq: u64,
    /// Hash of its line.
    pub(super) hash: Hash,
    /// What stands behind it and is no record, as it will be with a line feed at its end.
    pub(super) torn: Option<Torn>,
    /// The last line has none.
    pub(super) wants_line_feed: bool,
}

impl End {
    /// Of a log without a record.
    pub(super) const NEW: Self = Self { seq: 0, hash: Hash::NONE, torn: None, wants_line_feed: false };

    /// Of a file of `len` bytes.
    ///
    /// # Errors
    /// Those of the file.
    pub(super) fn of_file(file: &File, len: u64) -> std::io::Result<Result<Self, String>> {
        let window = usize::try_from(len.min(WINDOW as u64)).unwrap_or(WINDOW);
        let mut bytes = vec![0; window];
        file.read_exact_at(&mut bytes, len - window as u64)?;
        Ok(Self::of_bytes(&bytes, window as u64 == len))
    }

    /// Of the last bytes of a file, which are all of it or begin anywhere.
    ///
    /// # Errors
    /// Why a log may not be continued like that.
    fn of_bytes(bytes: &[u8], is_whole_file: bool) -> Result<Self, String> {
        let mut end = bytes.len();
        while end > 0 {
            // The line that ends at `end`, whose own line feed may be the last byte.
            let start = bytes[..end - 1].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            if start == 0 && !is_whole_file {
                break;
            }
            match Record::decode(&bytes[start..end]) {
                Ok(record) => return Self::after(&record, &bytes[start..end], &bytes[end..]),
                Err(error @ NotARecord::Newer(_)) => return Err(format!("its end {error}")),
                Err(NotARecord::Form) => end = start,
            }
        }
        // The very first record may be torn, too; anything else is a file of somebody else's.
        let is_start = |line: &[u8]| line.starts_with(LINE_START) || LINE_START.starts_with(line);
        if is_whole_file && bytes.len() <= TORN_MAX && bytes.split(|byte| *byte == b'\n').all(is_start) {
            return Ok(Self::with_torn(Self::NEW, bytes));
        }
        Err(format!("no record in its last {} bytes; move it away if it is an audit log", bytes.len()))
    }

    fn after(record: &Record, line: &[u8], behind: &[u8]) -> Result<Self, String> {
        if behind.len() > TORN_MAX {
            return Err(format!("{} bytes at its end are no records", behind.len()));
        }
        let end = Self { seq: record.seq, hash: Hash::of_line(line), ..Self::NEW };
        if behind.is_empty() {
            return Ok(Self { wants_line_feed: !line.ends_with(b"\n"), ..end });
        }
        Ok(Self::with_torn(end, behind))
    }

    fn with_torn(end: Self, torn: &[u8]) -> Self {
        if torn.is_empty() {
            return end;
        }
        let wants_line_feed = !torn.ends_with(b"\n");
        let mut hash = Sha256::new_with_prefix(torn);
        if wants_line_feed {
            hash.update(b"\n");
        }
        let torn_bytes = torn.len() as u64 + u64::from(wants_line_feed);
        let torn = Torn { torn_bytes, torn_sha256: Hash(hash.finalize().into()) };
        Self { torn: Some(torn), wants_line_feed, ..end }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::audit::record::{Event, Outcome};
    use crate::audit::who::Who;

    fn line(seq: u64) -> Vec<u8> {
        let event = Event::new("check", "r", Outcome::Done);
        Record::now(seq, Who::current(), event, None, Hash::NONE).encode()
    }

    fn seq_and_torn(bytes: &[u8]) -> (u64, Option<u64>, bool) {
        let end = End::of_bytes(bytes, true).unwrap();
        (end.seq, end.torn.map(|torn| torn.torn_bytes), end.wants_line_feed)
    }

    #[test]
    fn the_last_whole_record_is_what_the_next_is_chained_to() {
        let two = [line(1), line(2)].concat();
        let half = &line(3)[..40];
        assert_eq!(seq_and_torn(b""), (0, None, false));
        assert_eq!(seq_and_torn(&two), (2, None, false));
        assert_eq!(seq_and_torn(&two[..two.len() - 1]), (2, None, true), "only the line feed is missing");
        assert_eq!(seq_and_torn(&[&two, half].concat()), (2, Some(41), true));
        assert_eq!(seq_and_torn(&[&two, half, b"\n"].concat()), (2, Some(41), false));
        assert_eq!(seq_and_torn(&[&two, half, b"\n", half].concat()), (2, Some(82), true));
        assert_eq!(seq_and_torn(&[&two[..], b"\0\0\0"].concat()), (2, Some(4), true));
        assert_eq!(seq_and_torn(half), (0, Some(41), true));
        assert_eq!(seq_and_torn(b"{\"sch"), (0, Some(6), true));
    }

    #[test]
    fn a_file_of_somebody_else_is_not_continued() {
        for text in [&b"ssh-ed25519 AAAA me@host\n"[..], b"\0", b"{\"schema\":1,\"seq\":\nx", b"{}\n"] {
            let why = End::of_bytes(text, true).unwrap_err();
            assert!(why.starts_with("no record in its last"), "{why}");
        }
        let long = vec![b'x'; TORN_MAX + 1];
        assert!(End::of_bytes(&[&line(1), &long[..]].concat(), true).is_err());
        // What begins in the middle of a line is not taken for one.
        assert!(End::of_bytes(&line(1), false).is_err());
        let newer = String::from_utf8(line(1)).unwrap().replacen("\"schema\":1", "\"schema\":2", 1);
        assert!(End::of_bytes(newer.as_bytes(), true).unwrap_err().contains("schema 2"));
    }

    proptest! {
        #[test]
        fn any_end_is_judged_without_a_panic(bytes in any::<Vec<u8>>(), whole in any::<bool>()) {
            let bytes = [line(5), bytes].concat();
            if let Ok(end) = End::of_bytes(&bytes, whole) {
                prop_assert!(end.seq == 5 && whole);
            }
        }
    }
}
