//! What happens to a server that whoever runs it should know, told without flooding the log.
//!
//! Nothing is said about a single client or request: a thousand of them would write a thousand lines. Occasions are counted by
//! kind; the first one of a kind is told at once, the later ones together, at most every ten seconds.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::wire::Errno;

/// Between two lines about the same thing.
pub(super) const TELL_EVERY: Duration = Duration::from_secs(10);

/// What happened, how often since it was last told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notice {
    /// What.
    pub occasion: Occasion,
    /// How often.
    pub count: u64,
}

/// Things that are worth a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Occasion {
    /// A connection was closed unanswered: so many are in use, which is all that are served at a time.
    Full(usize),
    /// The oldest unfinished handshake was ended, since so many connections are in use and another one came.
    MadeRoom(usize),
    /// A handshake was not finished in this time.
    Slow(Duration),
    /// A client had requests under way that left no memory for others, and did nothing for this time.
    Stalled(Duration),
    /// A handshake was broken off: what came is not the protocol, or more or longer options than are taken.
    Malformed,
    /// No connection could be accepted, for this reason of the operating system (an errno).
    CannotAccept(i32),
    /// An export failed a request: what the client was told, and the export's name and reason.
    Failed(Errno, String),
}

impl Occasion {
    /// Number of kinds.
    const KINDS: usize = 8;

    fn kind(&self) -> usize {
        match self {
            Self::Full(_) => 0,
            Self::MadeRoom(_) => 1,
            Self::Slow(_) => 2,
            Self::Malformed => 3,
            Self::CannotAccept(_) => 4,
            Self::Failed(Errno::ENOSPC, _) => 5,
            Self::Failed(..) => 6,
            Self::Stalled(_) => 7,
        }
    }
}

impl Notice {
    /// What is to be done, where anything is.
    #[must_use]
    pub fn next(&self) -> Option<&'static str> {
        match self.occasion {
            Occasion::CannotAccept(_) => {
                Some("a higher limit of open files (ulimit -n, LimitNOFILE= in the systemd unit)")
            }
            Occasion::Failed(Errno::ENOSPC, _) => Some(
                "make room on the file system of the backend, or trim in the volume; nothing has to be restarted",
            ),
            Occasion::Failed(..) => Some(
                "look for the cause in the backend's own log (dmesg for a disk); a volume that stopped takes changes \
                 again after a restart; then sealbd check BACKEND",
            ),
            Occasion::Stalled(_) => Some("--memory with more than now, if such clients are to be kept"),
            Occasion::Full(_) | Occasion::MadeRoom(_) | Occasion::Slow(_) | Occasion::Malformed => None,
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { occasion, count } = self;
        match occasion {
            Occasion::Full(max) => {
                write!(
                    f,
                    "connections refused: {count}; {max} are in use, which is the most that are served at a time"
                )
            }
            Occasion::MadeRoom(max) => write!(
                f,
                "unfinished handshakes ended to make room for others: {count}; {max} connections are in use, which is \
                 the most that are served at a time"
            ),
            Occasion::Slow(deadline) => {
                write!(f, "handshakes ended that were not finished within {deadline:?}: {count}")
            }
            Occasion::Stalled(deadline) => write!(
                f,
                "connections cut: {count}; others waited for memory that their requests held, and nothing moved for \
                 {deadline:?}"
            ),
            Occasion::Malformed => write!(
                f,
                "handshakes broken off: {count}; what came is not the protocol, or more or longer options than are taken"
            ),
            Occasion::CannotAccept(errno) => {
                let error = std::io::Error::from_raw_os_error(*errno);
                write!(f, "cannot accept connections: {error} ({count} attempts); those that are open go on")
            }
            Occasion::Failed(_, why) => write!(f, "requests failed: {count}; the last one, of {why}"),
        }
    }
}

/// Who is told.
pub(super) type Tell = Box<dyn Fn(&Notice) + Send + Sync>;

/// Counts and tells.
pub(super) struct Notices {
    tell: Tell,
    /// By kind. Held while telling, so that lines come in the order of their counts.
    kinds: Mutex<[Option<Counted>; Occasion::KINDS]>,
}

struct Counted {
    /// As it was last.
    occasion: Occasion,
    /// Not yet told.
    count: u64,
    told: Instant,
}

impl Notices {
    pub(super) fn new(tell: Tell) -> Self {
        Self { tell, kinds: Mutex::default() }
    }

    /// Counts one; tells it when nothing was told of its kind of late.
    pub(super) fn note(&self, occasion: Occasion) {
        let now = Instant::now();
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = occasion.kind();
        match &mut kinds[kind] {
            Some(counted) => {
                counted.occasion = occasion;
                counted.count += 1;
                if now.duration_since(counted.told) >= TELL_EVERY {
                    self.tell_now(counted, now);
                }
            }
            never => self.tell_now(never.insert(Counted { occasion, count: 1, told: now }), now),
        }
    }

    /// Tells what is left of every kind, at most every [`TELL_EVERY`]; never ends.
    pub(super) async fn tell_on(&self) {
        loop {
            tokio::time::sleep(TELL_EVERY).await;
            self.tell_rest();
        }
    }

    /// Tells all that was counted and not yet told.
    pub(super) fn tell_rest(&self) {
        let now = Instant::now();
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        for counted in kinds.iter_mut().flatten().filter(|counted| counted.count > 0) {
            self.tell_now(counted, now);
        }
    }

    fn tell_now(&self, counted: &mut Counted, now: Instant) {
        (self.tell)(&Notice { occasion: counted.occasion.clone(), count: counted.count });
        (counted.count, counted.told) = (0, now);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ten_thousand_refusals_are_told_in_two_lines() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&lines);
        let notices = Notices::new(Box::new(move |notice| heard.lock().unwrap().push(notice.to_string())));
        for _ in 0..10_000 {
            notices.note(Occasion::Full(128));
        }
        notices.note(Occasion::Malformed);
        let ends = " are in use, which is the most that are served at a time";
        assert_eq!(lines.lock().unwrap()[0], format!("connections refused: 1; 128{ends}"));
        assert_eq!(lines.lock().unwrap().len(), 2, "the second one is of another kind");
        let _ = tokio::time::timeout(3 * TELL_EVERY, notices.tell_on()).await;
        assert_eq!(lines.lock().unwrap()[2..], [format!("connections refused: 9999; 128{ends}")]);
    }
}
