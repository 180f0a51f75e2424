//! The connections to one server: keeps them up, finds one for each request, and makes requests again
//! whose connection was lost. [`super`] says what may be promised across a loss.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::connection::{Ask, CallError, Connection, Driver, Refusal};
use super::handshake::{self, Agreement};
use super::ledger::Ledger;
use super::{Loss, NbdOptions, NbdTarget};
use crate::store::StoreError;
use crate::wire::TransmissionFlags;

/// First wait between two attempts to connect; it doubles from attempt to attempt.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// Longest wait between two attempts: short against what a client of ours puts up with.
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A connection that lived this long counts as a success: the next loss is met without a wait.
const STEADY: Duration = Duration::from_secs(10);

/// The connections to one export.
pub(super) struct Pool {
    target: NbdTarget,
    options: NbdOptions,
    agreement: Agreement,
    pub(super) ledger: Arc<Ledger>,
    state: Mutex<State>,
    /// Told when `state` changes.
    changed: Notify,
}

struct State {
    /// Oldest first.
    live: Vec<Arc<Connection>>,
    next_serial: u64,
    /// Since when `live` is empty.
    down_since: Instant,
    last_loss: Option<Loss>,
    /// Set when the export turned into another one; stays.
    changed_export: Option<String>,
}

impl Pool {
    /// Connects once, and starts the tasks that keep the connections up for as long as the pool lives.
    pub(super) async fn open(target: NbdTarget, options: NbdOptions) -> Result<Arc<Self>, Loss> {
        let (stream, agreement) = reach(&target, options.handshake_max).await?;
        let state = State {
            live: Vec::new(),
            next_serial: 0,
            down_since: Instant::now(),
            last_loss: None,
            changed_export: None,
        };
        let pool = Arc::new(Self {
            target,
            options,
            agreement,
            ledger: Arc::default(),
            state: Mutex::new(state),
            changed: Notify::new(),
        });
        let first = pool.take_up(stream, agreement);
        let several = agreement.flags.contains(TransmissionFlags::CAN_MULTI_CONN);
        let count = if several { options.connections.get() } else { 1 };
        tokio::spawn(keep_up(Arc::downgrade(&pool), Some(first)));
        for _ in 1..count {
            tokio::spawn(keep_up(Arc::downgrade(&pool), None));
        }
        Ok(pool)
    }

    /// What every connection agreed on.
    pub(super) fn agreement(&self) -> Agreement {
        self.agreement
    }

    /// How many connections are up.
    pub(super) fn live_count(&self) -> usize {
        self.state().live.len()
    }

    /// Why a connection was last lost, or could not be made.
    pub(super) fn last_loss(&self) -> Option<Loss> {
        self.state().last_loss.clone()
    }

    /// Makes a request on the connection that has most room, again and again until it is answered or
    /// the server has been away for too long.
    pub(super) async fn perform(&self, ask: &Ask) -> Result<Vec<u8>, PoolError> {
        let mut patience = Patience::new(self.options.outage_max);
        loop {
            let connection =
                self.connection(patience, |live| live.iter().max_by_key(|one| one.room())).await?;
            match connection.call(ask).await {
                Ok(data) => return Ok(data),
                Err(CallError::Refused(refusal)) => return Err(PoolError::Refused(refusal)),
                Err(CallError::Lost) => patience.starts_to_run(),
            }
        }
    }

    /// Makes a flush on the oldest connection, again while `may_repeat` allows.
    ///
    /// The oldest, because it has lived through every unsynced write: a connection that was made in
    /// between might reach a server that was restarted and knows nothing of them.
    pub(super) async fn perform_on_oldest(
        &self,
        ask: &Ask,
        may_repeat: impl Fn() -> Result<(), StoreError>,
    ) -> Result<(), PoolError> {
        let mut patience = Patience::new(self.options.outage_max);
        loop {
            let connection = self.connection(patience, |live| live.first()).await?;
            match connection.call(ask).await {
                Ok(_) => return Ok(()),
                Err(CallError::Refused(refusal)) => return Err(PoolError::Refused(refusal)),
                Err(CallError::Lost) => may_repeat().map_err(PoolError::Failed)?,
            }
            patience.starts_to_run();
        }
    }

    /// A live connection, waiting for one as long as the outage may last.
    async fn connection(
        &self,
        patience: Patience,
        pick: impl Fn(&[Arc<Connection>]) -> Option<&Arc<Connection>>,
    ) -> Result<Arc<Connection>, PoolError> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Before looking, so that no change between looking and waiting is missed.
            changed.as_mut().enable();
            let deadline = {
                let state = self.state();
                if let Some(what) = &state.changed_export {
                    return Err(PoolError::Failed(StoreError::Protocol(what.clone())));
                }
                let deadline = patience.deadline(state.down_since);
                let expired = deadline <= Instant::now();
                match pick(&state.live) {
                    // A server that takes every connection and answers nothing is as good as away.
                    Some(connection) if !(expired && patience.runs()) => return Ok(Arc::clone(connection)),
                    _ if expired => return Err(PoolError::Failed(self.outage(&state))),
                    _ => deadline,
                }
            };
            // Whether it changed or the time is up is found out by looking again.
            let _ = tokio::time::timeout_at(deadline.into(), changed).await;
        }
    }

    fn outage(&self, state: &State) -> StoreError {
        let target = &self.target;
        match &state.last_loss {
            Some(Loss::Protocol(what)) => StoreError::Protocol(format!("{target}: {what}")),
            Some(loss) => StoreError::Unreachable(format!("{target}: {loss}")),
            None => StoreError::Unreachable(format!("{target}: no answer")),
        }
    }

    /// Makes a negotiated stream one of the live connections.
    fn take_up(&self, stream: handshake::Stream, agreement: Agreement) -> (u64, Driver) {
        let mut state = self.state();
        let serial = state.next_serial;
        state.next_serial += 1;
        let ledger = Arc::clone(&self.ledger);
        let (connection, driver) =
            Connection::new(serial, stream, agreement, ledger, self.options.silence_max);
        state.live.push(Arc::new(connection));
        drop(state);
        self.changed.notify_waiters();
        (serial, driver)
    }

    /// A connection is lost: its socket is closed, those waiting on it do not know yet.
    fn lost(&self, serial: u64, loss: Loss) {
        // First the doubt, then the news: a sync that hears of the loss must find it in the ledger.
        self.ledger.doubt(&format!("connection to {} lost with unsynced writes: {loss}", self.target));
        let mut state = self.state();
        state.live.retain(|connection| connection.serial != serial);
        if state.live.is_empty() {
            state.down_since = Instant::now();
        }
        state.last_loss = Some(loss);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Refuses an export that is not the one that was opened.
    fn check_same(&self, found: Agreement) -> Result<(), String> {
        let opened = self.agreement;
        if found.size != opened.size {
            let (was, is) = (opened.size, found.size);
            return Err(format!("the size of the export changed from {was} to {is} bytes"));
        }
        if found.blocks != opened.blocks {
            return Err("the block sizes of the export changed".into());
        }
        let became_read_only = found.flags.contains(TransmissionFlags::READ_ONLY)
            && !opened.flags.contains(TransmissionFlags::READ_ONLY);
        if became_read_only || !found.flags.contains(opened.flags) {
            return Err("the export lost abilities that it had when it was opened".into());
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a request failed for good.
pub(super) enum PoolError {
    /// The server answered with an error.
    Refused(Refusal),
    /// There is no answer to be had.
    Failed(StoreError),
}

/// How long a request may still wait. Runs from the first loss that the request met; until then
/// only the outage as a whole counts.
#[derive(Clone, Copy)]
struct Patience {
    outage_max: Duration,
    since: Option<Instant>,
}

impl Patience {
    fn new(outage_max: Duration) -> Self {
        Self { outage_max, since: None }
    }

    fn starts_to_run(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    fn runs(self) -> bool {
        self.since.is_some()
    }

    fn deadline(self, down_since: Instant) -> Instant {
        self.since.unwrap_or(down_since) + self.outage_max
    }
}

/// Connects and negotiates, all within `deadline`.
async fn reach(target: &NbdTarget, deadline: Duration) -> Result<(handshake::Stream, Agreement), Loss> {
    let attempt = async {
        let mut stream =
            handshake::connect(&target.address).await.map_err(|error| Loss::Gone(error.to_string()))?;
        let agreement = handshake::negotiate(&mut stream, &target.export).await?;
        Ok((stream, agreement))
    };
    let seconds = deadline.as_secs_f32();
    let timed_out = |_| Err(Loss::Gone(format!("no agreement within {seconds} seconds")));
    tokio::time::timeout(deadline, attempt).await.unwrap_or_else(timed_out)
}

/// Keeps one connection up until the pool is gone.
async fn keep_up(pool: Weak<Pool>, mut current: Option<(u64, Driver)>) {
    let mut wait = Duration::ZERO;
    loop {
        if let Some((serial, driver)) = current.take() {
            let started = Instant::now();
            let (loss, remains) = driver.run().await;
            let Some(pool) = pool.upgrade() else { return };
            pool.lost(serial, loss);
            drop(remains);
            if started.elapsed() >= STEADY {
                wait = Duration::ZERO;
            }
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).clamp(BACKOFF_FIRST, BACKOFF_MAX);
        let Some((target, handshake_max)) =
            pool.upgrade().map(|pool| (pool.target.clone(), pool.options.handshake_max))
        else {
            return;
        };
        let reached = reach(&target, handshake_max).await;
        let Some(pool) = pool.upgrade() else { return };
        match reached {
            Ok((stream, agreement)) => match pool.check_same(agreement) {
                Ok(()) => current = Some(pool.take_up(stream, agreement)),
                Err(what) => {
                    pool.state().changed_export = Some(format!("{target}: {what}"));
                    pool.changed.notify_waiters();
                    return;
                }
            },
            Err(loss) => pool.state().last_loss = Some(loss),
        }
    }
}
