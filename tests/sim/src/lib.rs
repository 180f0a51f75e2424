//! A deterministic simulation of sealbd's volumes: the engine that serves data, on one thread, in virtual
//! time, over a model of a store that reorders, loses, tears, fails, lies and goes back in time. Everything
//! follows from a seed; the same seed gives the same run, to the byte.
//!
//! | file | topic |
//! |---|---|
//! | `step`, `profile` | what happens in a run, and how it follows from the seed |
//! | `store`, `watch` | the model of a store; rules that hold of everything that reaches it |
//! | `world`, `client` | one run: sessions, requests, and judging their answers |
//! | `oracle`, `content` | what a volume may read as |
//! | `minimise`, `failure` | what is told of a run that failed |
//!
//! `README.md` beside this crate says how to run it, and what is checked.

mod client;
pub mod content;
mod failure;
mod keys;
mod minimise;
mod oracle;
mod panics;
mod profile;
mod random;
mod step;
mod store;
mod watch;
mod world;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use failure::{Failure, Violation};
pub use minimise::{Story, minimise};
pub use profile::{Profile, Setting};
pub use random::Dice;
pub use step::{Action, Step};
pub use store::{Counts, Manners, Operation};
pub use world::Tally;

/// A run that is about to be played.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What everything follows from.
    pub seed: u64,
    /// Sizes, and how good the store is.
    pub setting: Setting,
    /// How many steps it has when none is left out.
    pub length: usize,
    /// The steps, each with its number.
    pub steps: Vec<(usize, Step)>,
}

impl Plan {
    /// The run of a seed, `length` steps long, of its own profile or of another one. Every third seed resizes and
    /// compacts its volume.
    #[must_use]
    pub fn new(seed: u64, length: usize, profile: Option<Profile>) -> Self {
        let mut dice = Dice::new(seed);
        let mut setting = Setting::new(profile.unwrap_or_else(|| Profile::of_seed(seed)), &mut dice);
        setting.resizes = seed % 3 == 2;
        // None is kept, a few are, all are.
        setting.page_bytes = [24 << 20, 16 << 10, 0][usize::try_from(seed / 3 % 3).expect("below 3")];
        let mut steps: Vec<(usize, Step)> =
            (0..length).map(|number| (number, Step::random(&setting, &mut dice))).collect();
        if let Some((_, first)) = steps.first_mut().filter(|_| setting.begins_full) {
            first.action = Action::Write { offset: 0, len: setting.geometry.export_bytes, fua: true };
        }
        Self { seed, setting, length, steps }
    }

    /// The same run with some of its steps only.
    #[must_use]
    pub fn with_only(&self, keep: &dyn Fn(usize) -> bool) -> Self {
        let steps = self.steps.iter().copied().filter(|(number, _)| keep(*number)).collect();
        Self { setting: self.setting.clone(), steps, ..*self }
    }

    /// Plays the run.
    ///
    /// # Errors
    /// The first violation, with the number of the step after which it was seen.
    ///
    /// # Panics
    /// When the runtime cannot be made.
    pub fn play(&self) -> Result<Tally, Failure> {
        panics::note(self.seed);
        let steps: Vec<Step> = self.steps.iter().map(|(_, step)| *step).collect();
        let at = Cell::new(0);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime without I/O needs nothing");
        let played = catch_unwind(AssertUnwindSafe(|| {
            runtime.block_on(Box::pin(world::play(&self.setting, self.seed, &steps, &|step| at.set(step))))
        }));
        // What is left of the engine's tasks goes here, and may panic, too.
        let ended = catch_unwind(AssertUnwindSafe(|| drop(runtime)));
        let panicked = panics::taken();
        panics::print_again();
        let outcome = match (played, ended, panicked) {
            (Ok(Err(failure)), ..) => Err(failure),
            (Ok(Ok(tally)), Ok(()), None) => Ok(tally),
            (_, _, what) => {
                let what = what.unwrap_or_else(|| "without a word".into());
                Err(Failure { step: at.get(), violation: Violation { invariant: "no panic", what } })
            }
        };
        // Numbers of steps as they were before some were left out.
        outcome.map_err(|Failure { step, violation }| {
            let number = self.steps.get(step).map_or(self.length, |(number, _)| *number);
            Failure { step: number, violation }
        })
    }
}
