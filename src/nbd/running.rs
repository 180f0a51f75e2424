//! The requests of a connection that are under way.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};

use super::admission::Ticket;
use super::reply::{Asked, Outcome};
use crate::wire::Errno;

/// Requests from this length on get a task of their own, so that sealing and opening them does
/// not keep the connection from small ones.
const OWN_TASK_BYTES_MIN: u32 = 256 << 10;

/// A request that has ended.
pub(super) struct Finished {
    pub(super) asked: Asked,
    pub(super) ticket: Ticket,
    pub(super) outcome: Outcome,
}

type Running = Pin<Box<dyn Future<Output = Finished> + Send>>;

/// Requests under way, in no order.
pub(super) struct RunningSet(FuturesUnordered<Running>);

impl RunningSet {
    pub(super) fn new() -> Self {
        let set = FuturesUnordered::new();
        // Never ends. A set that has just polled all it holds wakes its task to be polled again, which after a
        // request that came alone is a round for nothing; with this one in it, what it has polled is never all.
        let endless: Running = Box::pin(std::future::pending());
        set.push(endless);
        Self(set)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.len() == 1
    }

    /// Adds a request of `cost` bytes. A panic in it is an error of this request only.
    pub(super) fn push(
        &mut self,
        asked: Asked,
        ticket: Ticket,
        cost: u32,
        work: impl Future<Output = Outcome> + Send + 'static,
    ) {
        let guarded = AssertUnwindSafe(work).catch_unwind();
        if cost < OWN_TASK_BYTES_MIN {
            self.0.push(here(asked, ticket, guarded));
            return;
        }
        let task = tokio::spawn(guarded);
        self.0.push(Box::pin(async move {
            let outcome = match task.await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) | Err(_) => panicked(),
            };
            Finished { asked, ticket, outcome }
        }));
    }

    /// The same, but lets it run at once as far as it goes: one that has nothing to wait for, such as a read of what is
    /// in a cache, ends with that.
    pub(super) fn begin(
        &mut self,
        cx: &mut Context<'_>,
        asked: Asked,
        ticket: Ticket,
        cost: u32,
        work: impl Future<Output = Outcome> + Send + 'static,
    ) -> Option<Finished> {
        if cost >= OWN_TASK_BYTES_MIN {
            self.push(asked, ticket, cost, work);
            return None;
        }
        let mut running = here(asked, ticket, AssertUnwindSafe(work).catch_unwind());
        match running.as_mut().poll(cx) {
            Poll::Ready(finished) => Some(finished),
            Poll::Pending => {
                self.0.push(running);
                None
            }
        }
    }

    /// Lets requests run; one that has ended.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Finished> {
        self.0.poll_next_unpin(cx).map(|finished| finished.expect("one of them never ends"))
    }

    /// Waits for a request to end; `None` when there is none.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub(super) async fn next(&mut self) -> Option<Finished> {
        if self.is_empty() { None } else { self.0.next().await }
    }
}

/// A request that runs on the task of its connection.
fn here(
    asked: Asked,
    ticket: Ticket,
    guarded: impl Future<Output = std::thread::Result<Outcome>> + Send + 'static,
) -> Running {
    Box::pin(async move {
        let outcome = guarded.await.unwrap_or_else(|_| panicked());
        Finished { asked, ticket, outcome }
    })
}

fn panicked() -> Outcome {
    Outcome::Failed(Errno::EIO, "internal error".into())
}
