//! Telling connections to come to an end.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::watch;

/// How far a server is in stopping.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// Not stopping.
    Serving,
    /// Requests already received are finished, later ones refused.
    Draining,
    /// Connections are cut.
    Closing,
}

/// The server's end: moves all connections from phase to phase. Dropped, it cuts them.
#[derive(Debug)]
pub struct Stopper(watch::Sender<Phase>);

/// A connection's end.
#[derive(Clone, Debug)]
pub struct StopSignal(watch::Receiver<Phase>);

/// Both ends, serving.
#[must_use]
pub fn stop_signal() -> (Stopper, StopSignal) {
    let (sender, receiver) = watch::channel(Phase::Serving);
    (Stopper(sender), StopSignal(receiver))
}

impl Stopper {
    /// Enters a phase. Phases do not go back.
    pub fn enter(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let later = phase > *now;
            *now = phase.max(*now);
            later
        });
    }
}

impl StopSignal {
    /// Waits until `phase` or a later one is entered.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn reached(&mut self, phase: Phase) {
        // An error means that the server is gone, which is the last phase.
        let _ = self.0.wait_for(|now| *now >= phase).await;
    }

    /// The phase as something that can be polled.
    pub(super) fn watch(self) -> PhaseWatch {
        PhaseWatch { now: Phase::Serving, next: Some(next_phase(self.0, Phase::Serving)) }
    }
}

type Next = Pin<Box<dyn Future<Output = (Phase, Option<watch::Receiver<Phase>>)> + Send>>;

fn next_phase(mut receiver: watch::Receiver<Phase>, after: Phase) -> Next {
    Box::pin(async move {
        let reached = receiver.wait_for(|now| *now > after).await.map(|now| *now);
        match reached {
            Ok(phase) => (phase, Some(receiver)),
            Err(_) => (Phase::Closing, None),
        }
    })
}

/// Remembers the phase and wakes its task when it changes.
pub(super) struct PhaseWatch {
    now: Phase,
    next: Option<Next>,
}

impl PhaseWatch {
    /// The phase now; the task is woken when it changes.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Phase {
        while let Some(next) = &mut self.next {
            let Poll::Ready((phase, receiver)) = next.as_mut().poll(cx) else { break };
            self.now = phase;
            self.next =
                receiver.filter(|_| phase < Phase::Closing).map(|receiver| next_phase(receiver, phase));
        }
        self.now
    }
}
