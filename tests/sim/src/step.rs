//! The steps of a run. A step holds all that it needs, its own dice included, so that it does the same
//! when others are left out.
//!
//! A new kind of step is a variant of [`Action`], a line in [`Step::random`], and an arm in
//! `World::perform` (`world.rs`).

use crate::content::UNIT_BYTES;
use crate::profile::{Profile, Setting};
use crate::random::Dice;
use crate::store::Operation;

const SECTOR: u64 = 4096;

/// What a step does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the fields are an NBD request's")]
pub enum Action {
    /// A client reads.
    Read { offset: u64, len: u64 },
    /// A client writes.
    Write { offset: u64, len: u64, fua: bool },
    /// A client gives space back.
    Trim { offset: u64, len: u64, fua: bool },
    /// A client writes zeros.
    Zero { offset: u64, len: u64, fua: bool, may_punch: bool },
    /// A client flushes.
    Flush,
    /// A client asks what a range is made of.
    Status { offset: u64, len: u64 },
    /// A root is asked for.
    Checkpoint,
    /// The index and every sector are verified, while clients go on.
    Check,
    /// Nothing, for so many virtual milliseconds.
    Wait { ms: u64 },
    /// All requests end; everything is flushed, read, and verified.
    Verify,
    /// The session is closed, with requests under way, and another one opened.
    Close,
    /// The process dies and another one opens the volume.
    Kill,
    /// The host loses power; so it does again so many times while the volume is opened.
    PowerLoss { recoveries: u8 },
    /// The store's durable state is remembered.
    Snapshot,
    /// The process ends and the store is put back to the remembered state.
    RollBack,
    /// The volume gets another size; what lies behind a smaller end is given back first, or not.
    Resize { size: u64, keep_spare: bool, trims: bool },
    /// The volume is compacted, and told to end after so many steps of it.
    Compact { percent: u64, steps: u64 },
    /// The next operations of a kind fail.
    Fail { operation: Operation, count: u32 },
    /// The next reads are answered wrongly.
    WrongReads { count: u32 },
    /// The store is put back to the remembered state under the running session.
    RollBackUnder,
    /// A second session opens the volume, and the first goes on.
    TakeOver,
}

/// A step with its dice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// What the store's latencies, and what is left after a crash, follow from.
    pub seed: u64,
    /// See [`Action`].
    pub action: Action,
}

#[derive(Clone, Copy)]
enum Kind {
    Read,
    Write,
    Trim,
    Zero,
    Flush,
    Status,
    Checkpoint,
    Check,
    Wait,
    Verify,
    Close,
    Kill,
    PowerLoss,
    Snapshot,
    RollBack,
    Trouble,
    Resize,
    Compact,
}

impl Step {
    /// A step as dice choose it.
    #[must_use]
    pub fn random(setting: &Setting, dice: &mut Dice) -> Self {
        let trouble = if matches!(setting.profile, Profile::Honest | Profile::Lying) { 0 } else { 25 };
        let kind = dice.weighted(&[
            (220, Kind::Read),
            (440, Kind::Write),
            (40, Kind::Trim),
            (50, Kind::Zero),
            (50, Kind::Flush),
            (20, Kind::Status),
            (20, Kind::Checkpoint),
            (6, Kind::Check),
            (60, Kind::Wait),
            (10, Kind::Verify),
            (if setting.calm { 1 } else { 8 }, Kind::Close),
            (if setting.calm { 1 } else { 8 }, Kind::Kill),
            (if setting.calm { 2 } else { 14 }, Kind::PowerLoss),
            (10, Kind::Snapshot),
            (if setting.calm { 1 } else { 4 }, Kind::RollBack),
            (trouble, Kind::Trouble),
            (if setting.resizes { 12 } else { 0 }, Kind::Resize),
            (if setting.resizes { 6 } else { 0 }, Kind::Compact),
        ]);
        let (offset, len) = place(setting, dice);
        let fua = dice.one_in(8);
        if setting.commits && !dice.one_in(4) {
            let action = Action::Write { offset, len: len.min(2 * SECTOR), fua: true };
            return Self { seed: dice.any(), action };
        }
        let action = match kind {
            Kind::Read => Action::Read { offset, len },
            Kind::Write => Action::Write { offset, len, fua },
            Kind::Trim => Action::Trim { offset, len, fua },
            Kind::Zero => Action::Zero { offset, len, fua, may_punch: dice.one_in(2) },
            Kind::Flush => Action::Flush,
            Kind::Status => Action::Status { offset, len },
            Kind::Checkpoint => Action::Checkpoint,
            Kind::Check => Action::Check,
            Kind::Wait => Action::Wait { ms: dice.pick(&[1, 10, 100, 1500, 90_000]) },
            Kind::Verify => Action::Verify,
            Kind::Close => Action::Close,
            Kind::Kill => Action::Kill,
            Kind::PowerLoss => Action::PowerLoss { recoveries: dice.pick(&[0, 0, 0, 1, 2, 4]) },
            Kind::Snapshot => Action::Snapshot,
            Kind::RollBack => Action::RollBack,
            Kind::Trouble => trouble_of(setting.profile, dice),
            Kind::Resize => Action::Resize {
                size: (setting.largest_bytes() / 8 * dice.between(2, 8)).max(1 << 20),
                keep_spare: dice.one_in(2),
                trims: !dice.one_in(6),
            },
            Kind::Compact => {
                Action::Compact { percent: dice.pick(&[50, 90, 100]), steps: dice.pick(&[0, 1, 5, 1000]) }
            }
        };
        Self { seed: dice.any(), action }
    }
}

fn trouble_of(profile: Profile, dice: &mut Dice) -> Action {
    match profile {
        Profile::Failing => {
            let operation =
                dice.pick(&[Operation::Read, Operation::Write, Operation::Write, Operation::Sync]);
            Action::Fail { operation, count: dice.pick(&[1, 1, 2, 5, 500]) }
        }
        Profile::Hostile if dice.one_in(6) => Action::RollBackUnder,
        Profile::Hostile => Action::WrongReads { count: dice.pick(&[1, 3, 20]) },
        Profile::Zombie => Action::TakeOver,
        Profile::Honest | Profile::Lying => Action::Flush,
    }
}

/// Where a request goes, in whole units; for the largest size that the volume may have.
fn place(setting: &Setting, dice: &mut Dice) -> (u64, u64) {
    let export = setting.largest_bytes();
    let sectors = if dice.one_in(2) { setting.hot_sectors } else { export / SECTOR };
    let (offset, len) = if dice.below(100) < setting.large_percent {
        (dice.below(sectors) * SECTOR, dice.between(8, 280) * SECTOR)
    } else if dice.one_in(2) {
        (dice.below(sectors) * SECTOR, dice.between(1, 6) * SECTOR)
    } else {
        (dice.below(sectors * 8) * UNIT_BYTES, dice.between(1, 20) * UNIT_BYTES)
    };
    // Now and then all of it.
    if dice.one_in(200) { (0, export) } else { (offset, len.min(export - offset)) }
}
