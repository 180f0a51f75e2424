//! What a client did, group by group, and the question of the power-cut test: is what a volume reads as after the cut
//! some prefix of that history, long enough to hold everything that was promised to be durable?
//!
//! The requests of one group were in flight together and touch different sectors; a group was answered completely before
//! the next one was sent. Hence a prefix is: every earlier group whole, any whole sectors of one group, nothing later.

use super::logging_server::Moment;
use super::pattern::BLOCK_LEN;

/// Blocks of one sector, the unit that never tears.
pub(crate) const SECTOR_BLOCKS: usize = 4096 / BLOCK_LEN;

/// One change of the region: blocks `first .. first + count` took the pattern of `stamp` (0: zeros).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Step {
    pub(crate) first: usize,
    pub(crate) count: usize,
    pub(crate) stamp: u64,
}

/// Requests that were in flight together.
#[derive(Clone, Default, Debug)]
pub(crate) struct Group {
    pub(crate) steps: Vec<Step>,
    /// When the client knew that this group and all before it were durable: the store's clock at the answer to a
    /// flush, or to a write with FUA that came alone.
    pub(crate) durable_at: Option<Moment>,
}

/// Everything a client did, oldest first.
#[derive(Default)]
pub(crate) struct History {
    pub(crate) groups: Vec<Group>,
}

/// Why a state is not a legal outcome.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Violation {
    /// A block's bytes are not of any write to that place.
    Foreign { block: usize },
    /// No prefix of at least `promised_groups` groups reads like this. `nearest` is the group at which the best match
    /// ends, and `block` the first block that differs there.
    NotAPrefix { promised_groups: usize, nearest: usize, block: usize },
}

impl History {
    /// How many groups a cut at `cut` must leave.
    pub(crate) fn promised_groups(&self, cut: Moment) -> usize {
        self.groups
            .iter()
            .rposition(|group| group.durable_at.is_some_and(|at| at <= cut))
            .map_or(0, |last| last + 1)
    }

    /// Checks the stamps of the region's blocks (`None`: not the pattern of any stamp) after a cut.
    ///
    /// # Errors
    /// The [`Violation`] found.
    pub(crate) fn check(&self, found: &[Option<u64>], cut: Moment) -> Result<usize, Violation> {
        if let Some(block) = found.iter().position(Option::is_none) {
            return Err(Violation::Foreign { block });
        }
        let found: Vec<u64> = found.iter().map(|stamp| stamp.unwrap_or(0)).collect();
        let promised_groups = self.promised_groups(cut);
        let mut state = vec![0; found.len()];
        let mut nearest = (usize::MAX, 0, 0);
        for (number, group) in self.groups.iter().enumerate() {
            if number >= promised_groups {
                match mismatch(&state, group, &found) {
                    None => return Ok(number),
                    Some((count, block)) if count < nearest.0 => nearest = (count, number, block),
                    Some(_) => {}
                }
            }
            apply(&mut state, group);
        }
        match mismatch(&state, &Group::default(), &found) {
            None => Ok(self.groups.len()),
            Some((count, block)) if count < nearest.0 => {
                Err(Violation::NotAPrefix { promised_groups, nearest: self.groups.len(), block })
            }
            Some(_) => Err(Violation::NotAPrefix { promised_groups, nearest: nearest.1, block: nearest.2 }),
        }
    }
}

fn apply(state: &mut [u64], group: &Group) {
    for step in &group.steps {
        state[step.first..step.first + step.count].fill(step.stamp);
    }
}

/// How many blocks, and which first, are neither as in `state` nor, sector by sector, as `group` makes them.
fn mismatch(state: &[u64], group: &Group, found: &[u64]) -> Option<(usize, usize)> {
    let mut after = state.to_vec();
    apply(&mut after, group);
    let mut differing = (0, usize::MAX);
    for start in (0..found.len()).step_by(SECTOR_BLOCKS) {
        let sector = start..(start + SECTOR_BLOCKS).min(found.len());
        let found = &found[sector.clone()];
        if found != &state[sector.clone()] && found != &after[sector.clone()] {
            let first = sector.clone().find(|&i| found[i - start] != after[i]).unwrap_or(start);
            differing = (differing.0 + 1, differing.1.min(first));
        }
    }
    (differing.0 > 0).then_some(differing)
}
