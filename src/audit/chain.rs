//! Verifying a log: every record follows the one before (docs/AUDIT.md §3).

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::AuditError;
use super::file::{LineReader, open_whole};
use super::record::{Hash, NotARecord, Record, Torn};
use super::tail::TORN_MAX;

/// What a whole chain looks like.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    /// Records in it.
    pub records: u64,
    /// Number of the first; 0 when there is none.
    pub first_seq: u64,
    /// What the first is chained to: [`Hash::NONE`] at the very beginning.
    pub from: Hash,
    /// Number of the last; 0 when there is none.
    pub last_seq: u64,
    /// Hash of the last.
    pub last: Hash,
    /// How often the end was torn by a crash and the chain went on.
    pub recovered: u64,
}

/// Where a chain breaks, and how.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line} {fault}")]
pub struct Broken {
    /// The line, from 1 on.
    pub line: u64,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a line.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// Not a record, and no record says that it was torn by a crash.
    #[error(transparent)]
    NotARecord(#[from] NotARecord),
    /// The file ends with it, and it is no whole record.
    #[error(
        "is the last one and no whole record: torn by a crash, or cut; the next record that is written will say so"
    )]
    Unfinished,
    /// The hash in it is not that of the line before.
    #[error(
        "does not follow the line before, whose hash is {expected}, but one with {found}: a line was changed, removed, moved or put in"
    )]
    Prev {
        /// The hash of the line before.
        expected: Hash,
        /// What the record says it is.
        found: Hash,
    },
    /// The numbers do not go on.
    #[error("has number {found} where {expected} comes")]
    Number {
        /// The number after the last.
        expected: u64,
        /// That of the record.
        found: u64,
    },
    /// It says that something torn stood before it, and that is not what stands there.
    #[error("tells of a torn line that is not what stands before it")]
    NotWhatWasTorn,
    /// The chain is whole and does not reach the hash that was kept.
    #[error(
        "is the last one, and no record of the chain has the hash {0}: its end was cut off, or all of it was replaced"
    )]
    NotReached(Hash),
}

/// Goes through a log line by line.
pub struct Chain {
    summary: Summary,
    /// The hash that the first record must follow.
    begin: Option<Hash>,
    /// The hash that must come.
    awaited: Option<Hash>,
    /// What stands behind the last record and is none.
    torn: Option<Tear>,
    line: u64,
}

/// Bytes that are no record.
struct Tear {
    /// Where they begin.
    line: u64,
    why: NotARecord,
    bytes: u64,
    hash: Sha256,
    ends_a_line: bool,
}

impl Chain {
    /// A chain that begins behind the record with the hash `from` and contains one with the hash `to`.
    #[must_use]
    pub fn new(from: Option<Hash>, to: Option<Hash>) -> Self {
        let summary = Summary {
            records: 0,
            first_seq: 0,
            from: from.unwrap_or(Hash::NONE),
            last_seq: 0,
            last: from.unwrap_or(Hash::NONE),
            recovered: 0,
        };
        // A chain that begins behind the record that is wanted has it.
        let awaited = to.filter(|to| Some(*to) != from);
        Self { summary, begin: from, awaited, torn: None, line: 0 }
    }

    /// Takes the next line with its line feed, or a piece of one ([`LineReader`]).
    ///
    /// # Errors
    /// [`Broken`]; nothing is to be had from the chain then.
    pub fn piece(&mut self, piece: &[u8]) -> Result<(), Broken> {
        let continues = self.torn.as_ref().is_some_and(|torn| !torn.ends_a_line);
        if !continues {
            self.line += 1;
        }
        // What follows in the same line is no record, whatever it looks like.
        let decoded = if continues { Err(NotARecord::Form) } else { Record::decode(piece) };
        match decoded {
            Ok(record) => self.record(&record, piece),
            Err(why) => self.tear(why, piece),
        }
    }

    /// The end of a file; another may follow.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn end_of_file(&mut self) -> Result<(), Broken> {
        if let Some(torn) = self.torn.take() {
            let fault =
                if torn.why == NotARecord::Form { Fault::Unfinished } else { Fault::NotARecord(torn.why) };
            return Err(Broken { line: torn.line, fault });
        }
        Ok(())
    }

    /// The end of the chain.
    ///
    /// # Errors
    /// [`Broken`] when what was awaited did not come.
    pub fn finish(self) -> Result<Summary, Broken> {
        match self.awaited {
            Some(hash) => Err(Broken { line: self.line, fault: Fault::NotReached(hash) }),
            None => Ok(self.summary),
        }
    }

    fn tear(&mut self, why: NotARecord, piece: &[u8]) -> Result<(), Broken> {
        let line = self.line;
        let torn = self.torn.get_or_insert_with(|| Tear {
            line,
            why,
            bytes: 0,
            hash: Sha256::new(),
            ends_a_line: true,
        });
        torn.bytes += piece.len() as u64;
        torn.hash.update(piece);
        torn.ends_a_line = piece.ends_with(b"\n");
        // Nothing that is written could make this good.
        if torn.bytes > TORN_MAX as u64 || torn.why != NotARecord::Form {
            return Err(Broken { line: torn.line, fault: Fault::NotARecord(torn.why.clone()) });
        }
        Ok(())
    }

    fn record(&mut self, record: &Record, line: &[u8]) -> Result<(), Broken> {
        let broken = |line, fault| Err(Broken { line, fault });
        match (self.torn.take(), &record.torn) {
            (None, None) => {}
            (Some(torn), Some(told)) => {
                let found = Torn { torn_bytes: torn.bytes, torn_sha256: Hash(torn.hash.finalize().into()) };
                if found != *told {
                    return broken(self.line, Fault::NotWhatWasTorn);
                }
                self.summary.recovered += 1;
            }
            (Some(torn), None) => return broken(torn.line, Fault::NotARecord(torn.why)),
            (None, Some(_)) => return broken(self.line, Fault::NotWhatWasTorn),
        }
        let Record { seq, prev, .. } = record;
        if self.summary.records == 0 {
            // A file that was begun after a rotation goes on with the numbers of the one before.
            let expected = self.begin.or((*seq == 1).then_some(Hash::NONE));
            if let Some(expected) = expected.filter(|expected| expected != prev) {
                return broken(self.line, Fault::Prev { expected, found: *prev });
            }
            (self.summary.first_seq, self.summary.from) = (*seq, *prev);
            // The record that it follows is the last of the file before.
            self.awaited = self.awaited.filter(|hash| hash != prev);
        } else {
            let expected = self.summary.last_seq.saturating_add(1);
            if *prev != self.summary.last {
                let expected = self.summary.last;
                return broken(self.line, Fault::Prev { expected, found: *prev });
            }
            if *seq != expected {
                return broken(self.line, Fault::Number { expected, found: *seq });
            }
        }
        self.summary.records += 1;
        (self.summary.last_seq, self.summary.last) = (*seq, Hash::of_line(line));
        self.awaited = self.awaited.filter(|hash| *hash != self.summary.last);
        Ok(())
    }
}

/// Verifies the files of a chain, the oldest first.
///
/// # Errors
/// [`AuditError`] when a file cannot be read; within it, the file where the chain breaks and how.
pub fn verify_files(
    paths: &[PathBuf],
    from: Option<Hash>,
    to: Option<Hash>,
) -> Result<Result<Summary, (PathBuf, Broken)>, AuditError> {
    let mut chain = Chain::new(from, to);
    for path in paths {
        if let Err(broken) = verify_file(&mut chain, path)? {
            return Ok(Err((path.clone(), broken)));
        }
    }
    let last = paths.last().cloned().unwrap_or_default();
    Ok(chain.finish().map_err(|broken| (last, broken)))
}

fn verify_file(chain: &mut Chain, path: &Path) -> Result<Result<(), Broken>, AuditError> {
    let failed = AuditError::io(path);
    let mut reader = LineReader::new(open_whole(path)?);
    chain.line = 0;
    while let Some(piece) = reader.piece().map_err(&failed)? {
        if let Err(broken) = chain.piece(piece) {
            return Ok(Err(broken));
        }
    }
    Ok(chain.end_of_file())
}
