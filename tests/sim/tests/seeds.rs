//! What every test run plays of the simulation, in an unoptimised build; that a seed is all there is to know of a run.
//! `tests/run` plays 200 seeds of 2,000 steps in an optimised one.

use std::time::Duration;

use sim::{Plan, Profile, minimise};

const STEPS: usize = 500;
/// Time for shortening a run that failed.
const MINIMISE_TIME: Duration = Duration::from_secs(60);

/// Plays seeds `first .. first + 15`: every profile is among them.
#[track_caller]
fn hold(first: u64) {
    for seed in first..first + 15 {
        let plan = Plan::new(seed, STEPS, None);
        if let Err(failure) = plan.play() {
            panic!("{}", minimise(&plan, failure, MINIMISE_TIME));
        }
    }
}

#[test]
fn every_invariant_holds_in_a_few_seeds() {
    hold(0);
}

#[test]
fn every_invariant_holds_in_a_few_seeds_more() {
    hold(200);
}

#[test]
fn the_same_seed_gives_the_same_run_to_the_byte() {
    let profiles = [Profile::Honest, Profile::Failing, Profile::Lying, Profile::Hostile, Profile::Zombie];
    let mut traces = Vec::new();
    for (seed, profile) in (1000..).zip(profiles) {
        let play = || Plan::new(seed, 600, Some(profile)).play().map(|tally| tally.trace);
        let first = play().unwrap_or_else(|failure| panic!("seed {seed}, {profile:?}: {failure:?}"));
        assert_eq!(Ok(first), play(), "seed {seed}, {profile:?}");
        traces.push(first);
    }
    traces.sort_unstable();
    traces.dedup();
    assert_eq!(traces.len(), profiles.len(), "runs of other seeds differ");
}

#[test]
fn a_run_does_what_it_is_there_for() {
    let honest = Plan::new(1003, 1000, Some(Profile::Honest)).play().expect("holds");
    assert!(honest.answered > 600 && honest.refused < 100, "{honest:?}");
    assert!(honest.sessions > 15 && honest.power_losses > 5 && honest.segments > 30, "{honest:?}");
    assert!(honest.rolled_back > 0 && honest.store.faults == 0, "{honest:?}");
    let resizing = Plan::new(1001, 1000, Some(Profile::Honest)).play().expect("holds");
    assert!(resizing.resized > 3 && resizing.compacted > 1, "{resizing:?}");
    let committing = Plan::new(1004, 1000, Some(Profile::Honest)).play().expect("holds");
    assert!(committing.store.fills > 20, "{committing:?}");
    let failing = Plan::new(1003, 1000, Some(Profile::Failing)).play().expect("holds");
    assert!(failing.store.faults > 10 && failing.refused > 10, "{failing:?}");
    let tainted = Plan::new(1005, 1000, Some(Profile::Zombie)).play().expect("holds");
    assert!(tainted.opened_tainted + tainted.openings_refused > 3, "{tainted:?}");
}
