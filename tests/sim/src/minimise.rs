//! From a run that failed to a short one that fails the same way: steps are left out, many at once and then one by
//! one, as long as the same invariant breaks.

use std::fmt;
use std::time::{Duration, Instant};

use crate::{Failure, Plan};

/// A failure with the steps that it takes.
#[derive(Debug)]
pub struct Story {
    /// The run as it was.
    plan: Plan,
    /// How it failed.
    failure: Failure,
    /// The steps that are left.
    short: Plan,
    /// How that fails.
    short_failure: Failure,
}

/// Shortens a run that failed, for at most `time`.
#[must_use]
pub fn minimise(plan: &Plan, failure: Failure, time: Duration) -> Story {
    let deadline = Instant::now() + time;
    let mut short = plan.with_only(&|number| number <= failure.step);
    let mut short_failure = failure.clone();
    let mut chunk = short.steps.len().div_ceil(2);
    while chunk > 0 && Instant::now() < deadline {
        let mut from = 0;
        let mut shorter = false;
        while from < short.steps.len() && Instant::now() < deadline {
            let mut steps = short.steps.clone();
            steps.drain(from..(from + chunk).min(short.steps.len()));
            let tried = Plan { steps, ..short.clone() };
            match tried.play() {
                Err(found) if found.violation.invariant == failure.violation.invariant => {
                    (short, short_failure, shorter) = (tried, found, true);
                }
                _ => from += chunk,
            }
        }
        if !shorter || chunk > 1 {
            chunk /= 2;
        }
    }
    Story { plan: plan.clone(), failure, short, short_failure }
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { plan, failure, short, short_failure } = self;
        writeln!(f, "seed {} fails at step {} of {}", plan.seed, failure.step, plan.length)?;
        writeln!(f, "  {}", failure.violation)?;
        writeln!(f, "{:?}", plan.setting)?;
        writeln!(f, "{} steps are enough, and end with", short.steps.len())?;
        writeln!(f, "  {}", short_failure.violation)?;
        for (number, step) in &short.steps {
            writeln!(f, "  {number:>6}  {:?}", step.action)?;
        }
        let command = format!(
            "cargo run --release --bin sim -- --seed {} --steps {} --profile {}",
            plan.seed,
            plan.length,
            format!("{:?}", plan.setting.profile).to_lowercase()
        );
        let keep = ranges(short.steps.iter().map(|(number, _)| *number));
        writeln!(f, "again:  {command}")?;
        write!(f, "short:  {command} --keep {keep}")
    }
}

/// Ascending numbers as `1,4-9,12`.
fn ranges(numbers: impl Iterator<Item = usize>) -> String {
    let mut joined: Vec<(usize, usize)> = Vec::new();
    for number in numbers {
        match joined.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => joined.push((number, number)),
        }
    }
    let shown = joined.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    shown.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_follow_one_another_are_told_as_ranges() {
        assert_eq!(ranges([1, 4, 5, 6, 9, 10].into_iter()), "1,4-6,9-10");
        assert_eq!(ranges(std::iter::empty()), "");
    }
}
