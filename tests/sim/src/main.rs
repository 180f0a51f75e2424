//! `cargo run --release --bin sim -- --seed N --steps M`: runs of the simulation, as many as one likes.
#![expect(clippy::print_stdout, reason = "a program for the command line")]

use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use sim::{Plan, Profile, Tally, minimise};

/// Real time after which a run is taken to be stuck.
const STUCK_AFTER: Duration = Duration::from_secs(300);

/// Deterministic simulation of volumes over a store that fails.
#[derive(Parser)]
struct Options {
    /// First seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Steps of each run
    #[arg(long, default_value_t = 2000)]
    steps: usize,
    /// Number of seeds, from the first on
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Runs at the same time
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Go on with further seeds for so many minutes
    #[arg(long)]
    minutes: Option<u64>,
    /// Kind of run, instead of the seed's own
    #[arg(long, value_enum)]
    profile: Option<Profile>,
    /// Only these steps, as a failure prints them
    #[arg(long, value_delimiter = ',', value_parser = range)]
    keep: Vec<RangeInclusive<usize>>,
    /// Count writes that are refused for want of space instead of taking them for failures
    #[arg(long)]
    may_be_full: bool,
    /// Seconds for shortening a run that failed
    #[arg(long, default_value_t = 60)]
    shorten: u64,
    /// Go on after a failure
    #[arg(long)]
    keep_going: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let started = Instant::now();
    let until = options.minutes.map(|minutes| started + Duration::from_secs(60 * minutes));
    let next = AtomicU64::new(options.seed);
    let stop = AtomicBool::new(false);
    let results = Mutex::new((Totals::default(), 0u64));
    let running: Vec<Mutex<Option<(u64, Instant)>>> = (0..options.jobs).map(|_| Mutex::default()).collect();
    std::thread::scope(|scope| {
        for slot in &running {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let enough = seed - options.seed >= options.seeds;
                    if until.map_or(enough, |until| enough && Instant::now() >= until) {
                        break;
                    }
                    *slot.lock().expect("held for a moment") = Some((seed, Instant::now()));
                    let played = play(&options, seed);
                    *slot.lock().expect("held for a moment") = None;
                    let mut results = results.lock().expect("held for a moment");
                    match played {
                        Ok(tally) => results.0.add(&tally),
                        Err(story) => {
                            println!("{story}\n");
                            results.1 += 1;
                            stop.store(!options.keep_going, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
        scope.spawn(|| watch_for_stuck_runs(&running, &next, options.jobs));
        // The watcher ends when every slot has been empty for a while.
    });
    let (totals, failed) = results.into_inner().expect("the threads have ended");
    println!("{totals}{:.1} s, {failed} failed", started.elapsed().as_secs_f64());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn play(options: &Options, seed: u64) -> Result<Tally, String> {
    let mut whole = Plan::new(seed, options.steps, options.profile);
    whole.setting.may_be_full |= options.may_be_full;
    let plan = if options.keep.is_empty() {
        whole
    } else {
        whole.with_only(&|step| options.keep.iter().any(|range| range.contains(&step)))
    };
    plan.play().map_err(|failure| minimise(&plan, failure, Duration::from_secs(options.shorten)).to_string())
}

/// Numbers of steps: `7` or `7-12`.
fn range(text: &str) -> Result<RangeInclusive<usize>, std::num::ParseIntError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Ok(first.parse()?..=last.parse()?)
}

/// Ends the program when a run does not: virtual time cannot help where a task never waits.
fn watch_for_stuck_runs(running: &[Mutex<Option<(u64, Instant)>>], next: &AtomicU64, jobs: usize) {
    let mut idle = 0;
    while idle < 3 {
        std::thread::sleep(Duration::from_millis(30));
        let now: Vec<(u64, Instant)> =
            running.iter().filter_map(|slot| *slot.lock().expect("held for a moment")).collect();
        idle = if now.is_empty() { idle + 1 } else { 0 };
        for (seed, since) in now {
            if since.elapsed() > STUCK_AFTER {
                println!("seed {seed} is stuck ({jobs} jobs, next seed {})", next.load(Ordering::Relaxed));
                std::process::exit(2);
            }
        }
    }
}

/// Sums over runs.
#[derive(Default)]
struct Totals {
    runs: u64,
    sum: Tally,
}

impl Totals {
    fn add(&mut self, tally: &Tally) {
        self.runs += 1;
        let Tally {
            answered,
            refused,
            sessions,
            openings_refused,
            rolled_back,
            opened_tainted,
            resized,
            compacted,
            power_losses,
            no_space,
            segments,
            store,
            trace,
            seconds,
        } = tally;
        let sum = &mut self.sum;
        sum.answered += answered;
        sum.refused += refused;
        sum.sessions += sessions;
        sum.openings_refused += openings_refused;
        sum.rolled_back += rolled_back;
        sum.opened_tainted += opened_tainted;
        sum.resized += resized;
        sum.compacted += compacted;
        sum.power_losses += power_losses;
        sum.no_space += no_space;
        sum.segments += segments;
        sum.seconds += seconds;
        sum.trace ^= trace;
        sum.store.reads += store.reads;
        sum.store.writes += store.writes;
        sum.store.fills += store.fills;
        sum.store.bytes_written += store.bytes_written;
        sum.store.syncs += store.syncs;
        sum.store.faults += store.faults;
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { runs, sum } = self;
        writeln!(f, "{runs} runs, trace {:016x}", sum.trace)?;
        writeln!(
            f,
            "requests: {} answered, {} refused for a cause, {} of them for want of space",
            sum.answered, sum.refused, sum.no_space
        )?;
        writeln!(
            f,
            "sessions: {} opened, {} refused for a cause, {} after rollback, {} of which nothing is promised",
            sum.sessions, sum.openings_refused, sum.rolled_back, sum.opened_tainted
        )?;
        writeln!(f, "volumes: {} times resized, {} times compacted", sum.resized, sum.compacted)?;
        writeln!(
            f,
            "store: {} reads, {} writes of {} MiB, {} of zeros, {} syncs, {} faults, {} power losses, {} segments",
            sum.store.reads,
            sum.store.writes,
            sum.store.bytes_written >> 20,
            sum.store.fills,
            sum.store.syncs,
            sum.store.faults,
            sum.power_losses,
            sum.segments
        )?;
        write!(f, "{} virtual seconds in ", sum.seconds)
    }
}
