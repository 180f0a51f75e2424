//! What the process does so that keys in its memory stay there.
//!
//! None of it is a wall against root on the same host; each step is reported and none is fatal, for
//! a container may forbid any of them. Secrets lock their own pages besides ([`crate::secret`]).

use std::fmt;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

use crate::secret::unlocked_count;

/// Whether one measure holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Measure {
    /// It does.
    Holds,
    /// It does not, and why.
    Missing(String),
}

/// Which part of the process's memory stays out of swap.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LockedMemory {
    /// All of it.
    Process,
    /// Keys and passphrases only: `RLIMIT_MEMLOCK` is limited to so many bytes, and locking all would make
    /// allocations beyond that fail.
    SecretsOnly {
        /// The limit in bytes.
        limit: u64,
    },
    /// Keys and passphrases only: the kernel refused to lock all.
    Refused(String),
}

/// What holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Other processes of the same user cannot attach to this one or read its memory (`PR_SET_DUMPABLE` 0).
    pub not_dumpable: Measure,
    /// A crash writes no core file (`RLIMIT_CORE` 0).
    pub no_core: Measure,
    /// What stays out of swap.
    pub locked_memory: LockedMemory,
    /// How many secrets the kernel would not lock since the start of the process.
    pub unlocked_secrets: usize,
}

/// One line for a log, e.g. `not dumpable, no core files, secrets locked (RLIMIT_MEMLOCK 8192 KiB)`.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { not_dumpable, no_core, locked_memory, unlocked_secrets } = self;
        match not_dumpable {
            Measure::Holds => write!(f, "not dumpable")?,
            Measure::Missing(why) => write!(f, "DUMPABLE ({why})")?,
        }
        match no_core {
            Measure::Holds => write!(f, ", no core files")?,
            Measure::Missing(why) => write!(f, ", CORE FILES POSSIBLE ({why})")?,
        }
        match locked_memory {
            LockedMemory::Process => write!(f, ", all memory locked")?,
            LockedMemory::SecretsOnly { limit } => {
                write!(f, ", secrets locked (RLIMIT_MEMLOCK {} KiB)", limit / 1024)?;
            }
            LockedMemory::Refused(why) => write!(f, ", secrets locked (all memory: {why})")?,
        }
        if *unlocked_secrets > 0 {
            write!(f, ", {unlocked_secrets} SECRETS NOT LOCKED")?;
        }
        Ok(())
    }
}

/// Hardens this process; to be called once, first thing, before any secret is read.
///
/// Lowers `RLIMIT_CORE`, which child processes inherit. A process that is not dumpable loses its own
/// /proc/PID/ files to root, but for /proc/PID/fd of itself.
#[must_use]
pub fn harden_process() -> Report {
    let not_dumpable = measure(set_dumpable_behavior(DumpableBehavior::NotDumpable));
    let no_core = measure(setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }));
    Report { not_dumpable, no_core, locked_memory: lock_memory(), unlocked_secrets: unlocked_count() }
}

/// `MCL_ONFAULT`: pages are locked when they are used, not for being mapped.
fn lock_memory() -> LockedMemory {
    if let Some(limit) = getrlimit(Resource::Memlock).current {
        return LockedMemory::SecretsOnly { limit };
    }
    match mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT) {
        Ok(()) => LockedMemory::Process,
        Err(error) => LockedMemory::Refused(error.to_string()),
    }
}

fn measure(result: rustix::io::Result<()>) -> Measure {
    match result {
        Ok(()) => Measure::Holds,
        Err(error) => Measure::Missing(error.to_string()),
    }
}
