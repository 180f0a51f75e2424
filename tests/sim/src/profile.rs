//! Kinds of runs: how good the store is, how large the volume, how many requests at once. All of it follows
//! from the seed.

use clap::ValueEnum;
use sealbd::store::Capability;
use sealbd::volume::create::Geometry;

use crate::random::Dice;
use crate::store::Manners;

/// What may happen in a run besides requests, checkpoints, crashes and power losses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Profile {
    /// A good disk. Nothing may fail, and nothing may be lost.
    Honest,
    /// Reads, writes and syncs fail now and then; a failed sync may lose what was in the cache.
    Failing,
    /// Syncs answer well and do nothing.
    Lying,
    /// Reads are answered with old bytes, bytes of another place, or a flipped bit; the whole store is put back to
    /// an earlier state under a running session.
    Hostile,
    /// A second session opens the volume while the first one goes on: the lock is broken.
    Zombie,
}

impl Profile {
    /// The profile of a seed: half of all runs are on a good disk.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        match seed % 10 {
            1 | 4 => Self::Failing,
            3 => Self::Lying,
            6 => Self::Hostile,
            8 => Self::Zombie,
            _ => Self::Honest,
        }
    }
}

/// The sizes of a run.
#[derive(Clone, Debug)]
pub struct Setting {
    /// See [`Profile`].
    pub profile: Profile,
    /// Sizes of the volume.
    pub geometry: Geometry,
    /// The volume's alignment, in bytes.
    pub align: u32,
    /// The store's longest read or write.
    pub io_bytes_max: u32,
    /// See [`Manners`].
    pub manners: Manners,
    /// Clients hardly ever pause: there is always something waiting.
    pub busy: bool,
    /// Sessions are long: reclaim has more to do than recovery.
    pub calm: bool,
    /// Whether the volume begins with all of it written.
    pub begins_full: bool,
    /// Requests under way at once.
    pub depth: usize,
    /// Sectors that half of all requests go to.
    pub hot_sectors: u64,
    /// Whether a good store may be too full for a write. The format says that it never is (I10), so only
    /// volumes with fewer slots than it asks for may.
    pub may_be_full: bool,
    /// Parts of a hundred requests that are large.
    pub large_percent: u64,
    /// Most requests are small writes that must last, one after the other, as those of a database.
    pub commits: bool,
    /// Whether the volume is resized and compacted now and then.
    pub resizes: bool,
    /// Bytes of index pages that sessions keep in memory.
    pub page_bytes: u64,
}

impl Setting {
    /// The setting of a seed.
    ///
    /// # Panics
    /// Never: the sizes chosen are allowed.
    #[must_use]
    pub fn new(profile: Profile, dice: &mut Dice) -> Self {
        let export_bytes = dice.pick(&[1, 1, 2, 2, 4, 4, 6, 8, 16]) << 20;
        let mut geometry = Geometry::for_export(export_bytes).expect("an allowed size");
        // With fewer slots reclaim is at it all the time.
        let tight = dice.one_in(4);
        if tight {
            geometry.slots -= dice.between(1, 3);
        }
        let manners =
            Manners { latency_ms_max: dice.pick(&[0, 2, 5, 20, 80]), lies: profile == Profile::Lying };
        let calm = dice.one_in(3);
        let commits = dice.one_in(4);
        Self {
            profile,
            geometry,
            align: dice.pick(&[512, 512, 4096]),
            io_bytes_max: dice.pick(&[64 << 10, 1 << 20, 8 << 20, 8 << 20]),
            manners,
            busy: dice.one_in(2),
            calm,
            begins_full: dice.one_in(2),
            depth: dice.pick(&[1, 2, 4, 8, 16, 32]),
            may_be_full: tight,
            hot_sectors: dice.pick(&[4, 16, 64]),
            large_percent: if commits {
                0
            } else if calm {
                40
            } else {
                dice.pick(&[2, 10, 30])
            },
            commits,
            resizes: false,
            page_bytes: 24 << 20,
        }
    }

    /// The largest size that the volume ever has: half as much again when it is resized.
    #[must_use]
    pub fn largest_bytes(&self) -> u64 {
        let export_bytes = self.geometry.export_bytes;
        if self.resizes { export_bytes / 2 * 3 } else { export_bytes }
    }

    /// What the store tells of itself at first; it grows when it is asked to.
    #[must_use]
    pub fn capability(&self) -> Capability {
        Capability {
            size: self.geometry.store_bytes(),
            write_unit: self.align,
            best_unit: self.align,
            io_bytes_max: self.io_bytes_max,
            discard: true,
            read_only: false,
            prefers_written: true,
        }
    }
}
