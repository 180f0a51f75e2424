//! Holding what was found on a store against its anchor (docs/FORMAT.md §10 o2).

use super::{Anchored, Anchoring, OnRollback};
use crate::format::root::{PREVIOUS_MAX, Root};
use crate::volume::VolumeError;

/// How a store is behind its anchor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RollbackKind {
    /// Its newest root is older.
    Older,
    /// Its newest root has the number of the anchored one, or a higher one, and does not come from it: the
    /// volume was written elsewhere from an older state on.
    Forked,
    /// Its newest root has a higher number and is of an earlier session.
    EarlierSession {
        /// Session of the newest root.
        found: u64,
        /// Session of the anchored one.
        known: u64,
    },
    /// Its log ends before the end that the anchored root stood on.
    ShorterLog {
        /// Number of the last chunk found.
        found: u64,
        /// Number of the last chunk that the anchored root stood on.
        known: u64,
    },
}

impl std::fmt::Display for RollbackKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Older => write!(f, "the store was put back to an older state"),
            Self::Forked => write!(f, "the volume was written elsewhere from an older state on"),
            Self::EarlierSession { found, known } => {
                write!(f, "it is of session {found}, the anchored one of session {known}")
            }
            Self::ShorterLog { found, known } => {
                write!(f, "its log ends with chunk {found}, and chunk {known} had been flushed")
            }
        }
    }
}

/// What opening found out about the anchor.
#[derive(Default)]
pub(in crate::volume) struct Held {
    /// What is anchored.
    pub(in crate::volume) last: Option<Anchored>,
    /// The rollback that was accepted.
    pub(in crate::volume) accepted: Option<String>,
    /// Whether descent could not be proved.
    pub(in crate::volume) on_trust: bool,
}

/// Holds the loaded root against the anchor. `log_seq` is where the replayed log ends.
///
/// # Errors
/// [`VolumeError::Rollback`] unless it is to be accepted.
pub(in crate::volume) fn judge(
    anchoring: &Anchoring,
    anchored: Option<Anchored>,
    root: &Root,
    mac: [u8; 16],
    log_seq: u64,
) -> Result<Held, VolumeError> {
    let Some(known) = anchored else { return Ok(Held::default()) };
    let held = Held { last: anchored, ..Held::default() };
    let descent = descent(&known, root, mac);
    let kind = match descent {
        Descent::Broken(kind) => Some(kind),
        Descent::Proved | Descent::Unknown => {
            let (found, known) = (log_seq, known.log_seq);
            (found < known).then_some(RollbackKind::ShorterLog { found, known })
        }
    };
    let Some(kind) = kind else {
        return Ok(Held { on_trust: descent == Descent::Unknown, ..held });
    };
    let error = VolumeError::Rollback { found: root.generation, known: known.generation, kind };
    match anchoring.on_rollback {
        OnRollback::Refuse => Err(error),
        OnRollback::Accept => Ok(Held { accepted: Some(error.to_string()), ..held }),
    }
}

#[derive(PartialEq, Eq)]
enum Descent {
    Proved,
    /// There are more roots in between than a root has codes of.
    Unknown,
    Broken(RollbackKind),
}

/// Whether the root is the anchored one or comes from it. A root carries the codes of those before it, and
/// each has a number of its own: so many roots further the code must still be there.
fn descent(known: &Anchored, root: &Root, mac: [u8; 16]) -> Descent {
    let (found, epoch) = (root.generation, root.writer_epoch);
    if found < known.generation {
        return Descent::Broken(RollbackKind::Older);
    }
    if found == known.generation {
        return if mac == known.root_mac { Descent::Proved } else { Descent::Broken(RollbackKind::Forked) };
    }
    if epoch < known.writer_epoch {
        return Descent::Broken(RollbackKind::EarlierSession { found: epoch, known: known.writer_epoch });
    }
    if root.previous.contains(&known.root_mac) {
        return Descent::Proved;
    }
    let listed_all = root.previous.len() < PREVIOUS_MAX || found - known.generation <= PREVIOUS_MAX as u64;
    if listed_all { Descent::Broken(RollbackKind::Forked) } else { Descent::Unknown }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Anchored {
        Anchored {
            generation: 20,
            root_mac: [7; 16],
            log_seq: 5,
            chain: [0; 16],
            header_generation: 1,
            writer_epoch: 3,
        }
    }

    fn root(generation: u64, previous: Vec<[u8; 16]>) -> Root {
        Root {
            generation,
            added: Vec::new(),
            freed: Vec::new(),
            previous,
            writer_epoch: 3,
            min_header_generation: 1,
            export_bytes: 4096,
            log_spans: Vec::new(),
            reserved: Vec::new(),
            tops: Vec::new(),
            table: Vec::new(),
            sealed_messages: 0,
        }
    }

    #[test]
    fn a_root_descends_when_the_anchored_one_is_among_those_before_it() {
        let mut before = vec![[1; 16]; PREVIOUS_MAX];
        before[15] = [7; 16];
        assert!(descent(&known(), &root(36, before), [9; 16]) == Descent::Proved);
        assert!(descent(&known(), &root(20, Vec::new()), [7; 16]) == Descent::Proved);
    }

    #[test]
    fn a_root_whose_list_reaches_the_anchored_number_and_lacks_its_code_is_a_fork() {
        let forked = Descent::Broken(RollbackKind::Forked);
        assert!(descent(&known(), &root(20, Vec::new()), [8; 16]) == forked);
        assert!(descent(&known(), &root(36, vec![[1; 16]; PREVIOUS_MAX]), [9; 16]) == forked);
        // It lists every root that there ever was.
        assert!(descent(&known(), &root(90, vec![[1; 16]; 3]), [9; 16]) == forked);
    }

    #[test]
    fn descent_from_further_back_than_a_root_lists_is_not_known() {
        let found = descent(&known(), &root(37, vec![[1; 16]; PREVIOUS_MAX]), [9; 16]);
        assert!(found == Descent::Unknown);
    }

    #[test]
    fn an_earlier_session_is_a_rollback_whatever_its_number() {
        let mut earlier = root(90, vec![[7; 16]]);
        earlier.writer_epoch = 2;
        let kind = RollbackKind::EarlierSession { found: 2, known: 3 };
        assert!(descent(&known(), &earlier, [9; 16]) == Descent::Broken(kind));
    }
}
