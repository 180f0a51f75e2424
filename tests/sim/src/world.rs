//! A run: a store, a volume on it, clients, and everything that happens to them, one step after the other.

mod answers;
mod sessions;
mod sizes;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use sealbd::cipher::VolumeKeys;
use sealbd::export::Export;
use sealbd::format::header::Header;
use sealbd::volume::Volume;
use tokio::time::{Instant, timeout, timeout_at};

use crate::client::{self, Answer, Refusal, Request};
use crate::content::OpId;
use crate::failure::{Failure, Violation};
use crate::oracle::{Oracle, Survived, Time};
use crate::profile::{Profile, Setting};
use crate::random::Dice;
use crate::step::{Action, Step};
use crate::store::{Counts, Image, Medium, Session};

/// Virtual time after which a request that was not answered never will be.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What happened in a run.
#[derive(Clone, Copy, Default, Debug)]
pub struct Tally {
    /// Requests answered well.
    pub answered: u64,
    /// Requests refused, where that is allowed.
    pub refused: u64,
    /// Sessions opened.
    pub sessions: u64,
    /// Openings refused, where that is allowed.
    pub openings_refused: u64,
    /// Times that a stopped volume was put back to an earlier state, and opened as that.
    pub rolled_back: u64,
    /// Times that a volume opened although the store had lied, been put back under it, or had two writers.
    pub opened_tainted: u64,
    /// Times that the volume was given another size.
    pub resized: u64,
    /// Times that it was compacted, or a part of that done.
    pub compacted: u64,
    /// Power losses.
    pub power_losses: u64,
    /// Changes refused for want of space, where nothing else was wrong.
    pub no_space: u64,
    /// Segments written, and blocks of them.
    pub segments: u64,
    /// What the store was asked for.
    pub store: Counts,
    /// Fingerprint of all that the store was asked for.
    pub trace: u64,
    /// Virtual seconds.
    pub seconds: u64,
}

/// An open volume.
struct Live {
    volume: Volume,
    store: Arc<Session>,
    /// Troubles of the store before it was opened.
    troubles: u64,
}

pub(crate) struct World<'a> {
    setting: &'a Setting,
    medium: Arc<Medium>,
    volume: Option<(Header, Arc<VolumeKeys>)>,
    live: Option<Live>,
    /// The first session, when a second one has taken over.
    zombie: Option<Live>,
    oracle: Oracle,
    /// Of every request that changes something: its bytes, empty where it writes zeros.
    ranges: Vec<(u64, u64)>,
    requests: FuturesUnordered<LocalBoxFuture<'static, (u64, Answer)>>,
    /// What the zombie was asked for.
    foreign: FuturesUnordered<LocalBoxFuture<'static, (u64, Answer)>>,
    next_request: u64,
    /// When each read under way was issued.
    reads: BTreeMap<u64, Time>,
    snapshot: Option<(Image, Oracle, Vec<u64>)>,
    /// Other sizes that the volume may have when it is opened next: resizes were begun.
    other_sizes: Vec<u64>,
    /// A resize is under way; requests stay below both sizes.
    resizing: Option<u64>,
    /// Nothing is promised any more of what stands on the store, except that it is never taken for something else.
    tainted: bool,
    closing: bool,
    /// For what sessions take from outside.
    seeds: Dice,
    tally: Tally,
}

/// Plays steps from a fresh volume on; stops at the first violation.
pub(crate) async fn play(
    setting: &Setting,
    seed: u64,
    steps: &[Step],
    at: &dyn Fn(usize),
) -> Result<Tally, Failure> {
    let started = Instant::now();
    let mut world = World::new(setting, seed);
    let fail = |step| move |violation| Failure { step, violation };
    world.make_volume().await.map_err(fail(0))?;
    for (index, step) in steps.iter().enumerate() {
        at(index);
        world.medium.state().dice = Dice::new(step.seed);
        let mut dice = Dice::new(step.seed ^ 0x5eed);
        world.step(step, &mut dice).await.map_err(fail(index))?;
        world.check_memory().map_err(fail(index))?;
    }
    at(steps.len());
    world.medium.state().dice = Dice::new(seed);
    world.end().await.map_err(fail(steps.len()))?;
    let mut tally = world.tally;
    let state = world.medium.state();
    tally.store = state.counts;
    tally.trace = state.trace();
    tally.segments = state.watch.seen().0 as u64;
    tally.seconds = started.elapsed().as_secs();
    Ok(tally)
}

impl<'a> World<'a> {
    fn new(setting: &'a Setting, seed: u64) -> Self {
        Self {
            setting,
            medium: Medium::new(setting.capability(), setting.manners),
            volume: None,
            live: None,
            zombie: None,
            oracle: Oracle::new(setting.geometry.export_bytes),
            ranges: vec![(0, 0)],
            requests: FuturesUnordered::new(),
            foreign: FuturesUnordered::new(),
            next_request: 0,
            reads: BTreeMap::new(),
            snapshot: None,
            other_sizes: Vec::new(),
            resizing: None,
            tainted: false,
            closing: false,
            seeds: Dice::new(seed ^ 0x005e_5510),
            tally: Tally::default(),
        }
    }

    async fn step(&mut self, step: &Step, dice: &mut Dice) -> Result<(), Violation> {
        while self.requests.len() >= self.setting.depth {
            self.next_answer().await?;
        }
        self.perform(step.action, dice).await?;
        if self.zombie.is_some() && dice.one_in(3) {
            self.ask_zombie(dice);
        }
        let pauses = if self.setting.busy { [(32, 0), (4, 1), (1, 10)] } else { [(4, 0), (4, 1), (4, 30)] };
        let pause = dice.weighted(&pauses);
        self.let_pass(if pause == 0 { 0 } else { dice.between(1, pause) }).await?;
        self.watched()
    }

    async fn perform(&mut self, action: Action, dice: &mut Dice) -> Result<(), Violation> {
        match action {
            Action::Read { offset, len } => {
                let since = self.oracle.tick();
                let (offset, len) = self.fit(offset, len);
                self.ask(Request::Read { since, offset, len });
            }
            Action::Write { offset, len, fua } => {
                let (offset, len) = self.fit(offset, len);
                let op = self.change(offset, len, false);
                self.ask(Request::Write { op, offset, len, fua });
            }
            Action::Trim { offset, len, fua } => {
                let (offset, len) = self.fit(offset, len);
                // Only whole sectors are given back.
                let (from, to) = (offset.next_multiple_of(4096), (offset + len) / 4096 * 4096);
                let op = self.change(from, to.saturating_sub(from), true);
                self.ask(Request::Trim { op, offset, len, fua });
            }
            Action::Zero { offset, len, fua, may_punch } => {
                let (offset, len) = self.fit(offset, len);
                let op = self.change(offset, len, true);
                self.ask(Request::Zero { op, offset, len, fua, may_punch });
            }
            Action::Flush => {
                let since = self.oracle.tick();
                self.ask(Request::Flush { since });
            }
            Action::Status { offset, len } => {
                let (offset, len) = self.fit(offset, len);
                self.ask(Request::Status { offset, len });
            }
            Action::Checkpoint => {
                let since = self.oracle.tick();
                self.ask(Request::Checkpoint { since });
            }
            Action::Check => self.ask(Request::Check),
            Action::Wait { ms } => self.let_pass(ms).await?,
            Action::Verify => self.verify().await?,
            Action::Close => {
                self.close().await?;
                self.reopen(Survived::ProcessDeath, dice).await?;
            }
            Action::Kill => {
                self.kill().await?;
                self.reopen(Survived::ProcessDeath, dice).await?;
            }
            Action::PowerLoss { recoveries } => self.lose_power(recoveries, dice).await?,
            Action::Snapshot => {
                let image = self.medium.state().durable_image();
                self.medium.state().remember();
                self.snapshot = Some((image, self.oracle.clone(), self.other_sizes.clone()));
            }
            Action::RollBack => self.roll_back(dice).await?,
            Action::Resize { size, keep_spare, trims } => self.resize(size, keep_spare, trims).await?,
            Action::Compact { percent, steps } => self.ask(Request::Compact { percent, steps }),
            Action::Fail { operation, count } => self.medium.state().fail_next(operation, count),
            Action::WrongReads { count } => self.medium.state().answer_wrongly(count),
            Action::RollBackUnder => self.roll_back_under(),
            Action::TakeOver => self.take_over().await?,
        }
        Ok(())
    }

    /// I9: index pages stay within their share.
    fn check_memory(&self) -> Result<(), Violation> {
        let Some(live) = &self.live else { return Ok(()) };
        let status = live.volume.status();
        let (held, most) = (status.page_bytes, status.page_bytes_max);
        if held <= most && most <= self.setting.page_bytes.next_multiple_of(16) {
            return Ok(());
        }
        Err(Violation {
            invariant: "I9",
            what: format!("{held} bytes of index pages are kept, {most} at most"),
        })
    }

    /// A new request that changes bytes of the export.
    fn change(&mut self, offset: u64, len: u64, zeroes: bool) -> OpId {
        let op = OpId::try_from(self.ranges.len()).expect("runs are short");
        self.ranges.push(if zeroes { (0, 0) } else { (offset, offset + len) });
        let oldest_read = self.reads.values().min().copied().unwrap_or(Time::MAX);
        self.oracle.issue(op, offset, offset + len, zeroes, oldest_read);
        op
    }

    fn ask(&mut self, request: Request) {
        let Some(live) = &self.live else { return };
        let id = self.next_request;
        self.next_request += 1;
        if let Request::Read { since, .. } = request {
            self.reads.insert(id, since);
        }
        let done = client::perform(live.volume.clone(), self.oracle.bytes(), request);
        self.requests.push(done.map(move |answer| (id, answer)).boxed_local());
    }

    fn ask_zombie(&mut self, dice: &mut Dice) {
        let Some(zombie) = &self.zombie else { return };
        let step = Step::random(self.setting, dice);
        let size = zombie.volume.info().size;
        let request = match step.action {
            Action::Read { offset, len } => {
                let (offset, len) = fit(offset, len, size);
                Request::Read { since: 0, offset, len }
            }
            Action::Write { offset, len, fua } => {
                let (offset, len) = fit(offset, len, size);
                let op = OpId::try_from(self.ranges.len()).expect("runs are short");
                self.ranges.push((offset, offset + len));
                Request::Write { op, offset, len, fua }
            }
            Action::Checkpoint => Request::Checkpoint { since: 0 },
            Action::Trim { offset, len, fua } => {
                let (offset, len) = fit(offset, len, size);
                Request::Trim { op: 0, offset, len, fua }
            }
            _ => Request::Flush { since: 0 },
        };
        let done = client::perform(zombie.volume.clone(), size, request);
        self.foreign.push(done.map(|answer| (0, answer)).boxed_local());
    }

    /// Lets virtual time pass, taking answers.
    async fn let_pass(&mut self, ms: u64) -> Result<(), Violation> {
        let deadline = Instant::now() + Duration::from_millis(ms);
        loop {
            while let Some(Some((_, answer))) = self.foreign.next().now_or_never() {
                self.take_foreign(answer)?;
            }
            if ms == 0 {
                match self.requests.next().now_or_never() {
                    Some(Some((id, answer))) => self.take(id, answer)?,
                    _ => return Ok(()),
                }
                continue;
            }
            match timeout_at(deadline, self.requests.next()).await {
                Ok(Some((id, answer))) => self.take(id, answer)?,
                Ok(None) => {
                    tokio::time::sleep_until(deadline).await;
                    return Ok(());
                }
                Err(_) => return Ok(()),
            }
        }
    }

    /// Waits for one answer.
    async fn next_answer(&mut self) -> Result<(), Violation> {
        match timeout(PATIENCE, self.requests.next()).await {
            Ok(Some((id, answer))) => self.take(id, answer),
            Ok(None) => Ok(()),
            Err(_) => Err(Violation {
                invariant: "progress",
                what: format!("{} requests were not answered within an hour", self.requests.len()),
            }),
        }
    }

    /// Waits for all answers.
    async fn drain(&mut self) -> Result<(), Violation> {
        while !self.requests.is_empty() {
            self.next_answer().await?;
        }
        Ok(())
    }

    /// What was seen at the store, and panics of the engine's own tasks.
    fn watched(&self) -> Result<(), Violation> {
        if let Some(what) = crate::panics::taken() {
            return Err(Violation { invariant: "no panic", what });
        }
        self.medium.state().watch.take_violation().map_or(Ok(()), Err)
    }

    /// Whether requests may fail.
    fn troubled(&self) -> bool {
        let before = self.live.as_ref().map_or(0, |live| live.troubles);
        self.tainted || self.medium.state().troubles() > before
    }

    fn is_lying(&self) -> bool {
        self.setting.profile == Profile::Lying
    }
}

/// A request as it fits into `size` bytes.
fn fit(offset: u64, len: u64, size: u64) -> (u64, u64) {
    let offset = offset % size;
    (offset, len.min(size - offset))
}

/// A violation, from a refusal that nothing excuses.
fn inexcusable(request: &str, refusal: &Refusal) -> Violation {
    let invariant = match refusal {
        Refusal::NoSpace(_) => "I10",
        Refusal::Wrong(_) => "I5",
        Refusal::ShuttingDown | Refusal::InUse(_) | Refusal::Other(_) => "no error without a cause",
    };
    Violation { invariant, what: format!("{request}: {refusal}") }
}
