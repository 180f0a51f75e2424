//! What the process has in memory, as the kernel tells it.

use serde::{Deserialize, Serialize};

/// Memory of a server, in bytes.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct MemoryStatus {
    /// What it is to stay within (`serve --memory`).
    pub budget_bytes: u64,
    /// What it has in memory now, programs and libraries included (`VmRSS` of proc_pid_status(5)).
    pub resident_bytes: u64,
    /// The most that it ever had (`VmHWM`).
    pub peak_bytes: u64,
}

impl MemoryStatus {
    /// Of this process; nothing where the kernel does not say.
    pub(super) fn of_this_process(budget_bytes: u64) -> Option<Self> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let bytes = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
            Some(kib << 10)
        };
        Some(Self { budget_bytes, resident_bytes: bytes("VmRSS:")?, peak_bytes: bytes("VmHWM:")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_used_is_counted() {
        let before = MemoryStatus::of_this_process(1).expect("Linux tells");
        let ballast = vec![1u8; 64 << 20];
        let with = MemoryStatus::of_this_process(1).expect("Linux tells");
        assert!(with.resident_bytes > before.resident_bytes + (32 << 20), "{before:?} {with:?}");
        drop(ballast);
        let after = MemoryStatus::of_this_process(1).expect("Linux tells");
        // The kernel counts in batches.
        assert!(after.peak_bytes > before.resident_bytes + (32 << 20), "{with:?} {after:?}");
        assert_eq!(after.budget_bytes, 1);
    }
}
