//! The part of the index that is newer than the tree on the store: an ordered map of runs of
//! sectors. A run of any length is one entry, so trimming a terabyte costs what trimming a sector does.

use std::collections::BTreeMap;

use crate::format::page::Loc;
use crate::geometry::{Lba, SectorRange};

/// Where a run of sectors lies: the first one at `loc`, the others in step behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    pub(super) sectors: SectorRange,
    pub(super) loc: Loc,
}

impl Run {
    /// The part of the run that lies in `window`, if any.
    pub(super) fn clip(self, window: SectorRange) -> Option<Self> {
        let start = self.sectors.start.max(window.start);
        let end = self.sectors.end().min(window.end());
        if start >= end {
            return None;
        }
        let loc = self.loc.step(start.0 - self.sectors.start.0);
        Some(Self { sectors: SectorRange::new(start, end.0 - start.0), loc })
    }

    /// The first `count` sectors of the run, and the rest if there is one.
    pub(super) fn split(self, count: u64) -> (Self, Option<Self>) {
        let Self { sectors, loc } = self;
        if sectors.count <= count {
            return (self, None);
        }
        let rest = SectorRange::new(Lba(sectors.start.0 + count), sectors.count - count);
        let first = Self { sectors: SectorRange::new(sectors.start, count), loc };
        (first, Some(Self { sectors: rest, loc: loc.step(count) }))
    }
}

/// Newer entries of the index, by first sector; runs do not overlap.
#[derive(Clone, Default, Debug)]
pub(super) struct Delta {
    runs: BTreeMap<u64, (u64, Loc)>,
}

impl Delta {
    /// Number of runs held.
    pub(super) fn len(&self) -> usize {
        self.runs.len()
    }

    /// Records that the sectors of `run` now lie there, whatever was known of them.
    pub(super) fn insert(&mut self, run: Run) {
        let (start, end) = (run.sectors.start.0, run.sectors.end().0);
        if start == end {
            return;
        }
        let before = self.runs.range(..start).next_back().map(|(before, run)| (*before, *run));
        if let Some((before, (count, loc))) = before.filter(|(before, (count, _))| before + count > start) {
            self.runs.insert(before, (start - before, loc));
            if before + count > end {
                self.runs.insert(end, (before + count - end, loc.step(end - before)));
            }
        }
        while let Some((&inside, &(count, loc))) = self.runs.range(start..end).next() {
            self.runs.remove(&inside);
            if inside + count > end {
                self.runs.insert(end, (inside + count - end, loc.step(end - inside)));
            }
        }
        if let Some((before, (count, loc))) = self.runs.range_mut(..start).next_back() {
            let in_step = before + *count == start && loc.step(*count) == run.loc;
            if in_step && fits_one_run(*loc, *count + run.sectors.count) {
                *count += run.sectors.count;
                return;
            }
        }
        self.runs.insert(start, (run.sectors.count, run.loc));
    }

    /// Every run that touches `window`, clipped to it, ascending.
    pub(super) fn runs_in(&self, window: SectorRange) -> impl Iterator<Item = Run> + '_ {
        let first = self
            .runs
            .range(..=window.start.0)
            .next_back()
            .filter(|(start, (count, _))| **start + count > window.start.0)
            .map_or(window.start.0, |(start, _)| *start);
        self.runs
            .range(first..window.end().0.max(first))
            .map(|(start, (count, loc))| Run { sectors: SectorRange::new(Lba(*start), *count), loc: *loc })
            .filter_map(move |run| run.clip(window))
    }

    /// Every run, ascending.
    pub(super) fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        self.runs
            .iter()
            .map(|(start, (count, loc))| Run { sectors: SectorRange::new(Lba(*start), *count), loc: *loc })
    }

    /// Puts everything of `newer` on top.
    pub(super) fn overlay(&mut self, newer: &Self) {
        newer.runs().for_each(|run| self.insert(run));
    }
}

/// Whether `count` records in step from `loc` on stay inside one segment; zeros always do.
fn fits_one_run(loc: Loc, count: u64) -> bool {
    loc.handle().is_none() || loc.offset() / 16 + count * 257 <= 1 << 22
}

/// A window cut into what is known of it and what is not (`None`), in order of address.
pub(super) type Resolved = Vec<(SectorRange, Option<Loc>)>;

/// Cuts `window` into what `delta` knows and the gaps between, appended to `out`.
pub(super) fn resolve(delta: &Delta, window: SectorRange, out: &mut Resolved) {
    let mut at = window.start.0;
    for run in delta.runs_in(window) {
        if run.sectors.start.0 > at {
            out.push((SectorRange::new(Lba(at), run.sectors.start.0 - at), None));
        }
        at = run.sectors.end().0;
        out.push((run.sectors, Some(run.loc)));
    }
    if at < window.end().0 {
        out.push((SectorRange::new(Lba(at), window.end().0 - at), None));
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "test addresses are small")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn delta_equals_an_array_of_locations(
            steps in proptest::collection::vec((0u64..200, 1u64..60, any::<bool>()), 1..60),
            from in 0u64..200, count in 1u64..60,
        ) {
            let mut delta = Delta::default();
            let mut model = vec![None; 300];
            for (i, (start, count, hole)) in steps.into_iter().enumerate() {
                let loc = if hole { Loc::HOLE } else { Loc::record(1, (i * 60 * 4112) as u64) };
                delta.insert(Run { sectors: SectorRange::new(Lba(start), count), loc });
                for k in 0..count {
                    model[(start + k) as usize] = Some(loc.step(k));
                }
            }
            let mut found = vec![None; 300];
            for run in delta.runs_in(SectorRange::new(Lba(from), count)) {
                for k in 0..run.sectors.count {
                    found[(run.sectors.start.0 + k) as usize] = Some(run.loc.step(k));
                }
            }
            for lba in 0..300u64 {
                let expected = if (from..from + count).contains(&lba) { model[lba as usize] } else { None };
                prop_assert_eq!(found[lba as usize], expected);
            }
        }
    }
}
