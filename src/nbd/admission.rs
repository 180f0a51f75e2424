//! Who may have how much under way: bytes and requests, before a payload is received.
//!
//! Every connection has a reserve of its own, large enough for one request of any length, so that
//! clients that do not read their replies cannot starve the others. What goes beyond the reserve
//! comes from a pool that all connections share. No admission means no reading: the client's
//! socket fills up and the client waits.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use super::PAYLOAD_LEN_MAX;

/// Requests of one connection under way, replies that are not yet sent included. Kernel clients
/// keep up to 128 in the queue of one connection.
pub const REQUESTS_MAX: usize = 128;
/// Bytes of one connection's reserve: one request of any length.
pub const RESERVE_BYTES: u32 = PAYLOAD_LEN_MAX;
/// Bytes of one connection under way: one long request while another one is received.
pub const CONNECTION_BYTES_MAX: u32 = 2 * PAYLOAD_LEN_MAX;
/// Bytes that all connections share beyond their reserves.
pub const SHARED_BYTES_MAX: usize = 512 << 20;

/// The pool that all connections of a server share.
#[derive(Clone, Debug)]
pub struct SharedBytes(Arc<Semaphore>);

impl SharedBytes {
    /// A pool of `bytes`.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))))
    }
}

impl Default for SharedBytes {
    fn default() -> Self {
        Self::new(SHARED_BYTES_MAX)
    }
}

/// One connection's part.
pub(super) struct Account {
    shared: SharedBytes,
    requests: usize,
    bytes: u32,
    reserve_used: u32,
    /// In the queue for shared bytes: how many, and the place in the queue.
    queued: Option<(u32, Queued)>,
}

type Queued = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

/// One admitted request; to be given back with [`Account::release`].
#[must_use]
pub(super) struct Ticket {
    bytes: u32,
    /// Shared bytes; without, the bytes are the reserve's.
    shared: Option<OwnedSemaphorePermit>,
}

impl Account {
    pub(super) fn new(shared: SharedBytes) -> Self {
        Self { shared, requests: 0, bytes: 0, reserve_used: 0, queued: None }
    }

    /// Requests that are admitted and not released.
    pub(super) fn requests(&self) -> usize {
        self.requests
    }

    /// Admits a request of `bytes` (at most [`PAYLOAD_LEN_MAX`]). Pending wakes when shared bytes
    /// come free; when it is this connection's own requests that stand in the way, their end must
    /// wake the task.
    pub(super) fn poll_admit(&mut self, cx: &mut Context<'_>, bytes: u32) -> Poll<Ticket> {
        debug_assert!(bytes <= PAYLOAD_LEN_MAX, "requests are judged before");
        if self.requests >= REQUESTS_MAX || bytes > CONNECTION_BYTES_MAX - self.bytes {
            return Poll::Pending;
        }
        if bytes <= RESERVE_BYTES - self.reserve_used {
            self.queued = None;
            self.reserve_used += bytes;
            return Poll::Ready(self.admit(bytes, None));
        }
        if self.queued.as_ref().is_none_or(|(wanted, _)| *wanted != bytes) {
            self.queued = Some((bytes, Box::pin(Arc::clone(&self.shared.0).acquire_many_owned(bytes))));
        }
        let Some((_, queued)) = &mut self.queued else { return Poll::Pending };
        match queued.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(permit) => {
                self.queued = None;
                let permit = permit.expect("the pool is never closed");
                Poll::Ready(self.admit(bytes, Some(permit)))
            }
        }
    }

    fn admit(&mut self, bytes: u32, shared: Option<OwnedSemaphorePermit>) -> Ticket {
        self.requests += 1;
        self.bytes += bytes;
        Ticket { bytes, shared }
    }

    /// Takes a ticket back.
    pub(super) fn release(&mut self, ticket: Ticket) {
        let Ticket { bytes, shared } = ticket;
        self.requests -= 1;
        self.bytes -= bytes;
        if shared.is_none() {
            self.reserve_used -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn admit(account: &mut Account, bytes: u32) -> Option<Ticket> {
        match account.poll_admit(&mut Context::from_waker(Waker::noop()), bytes) {
            Poll::Ready(ticket) => Some(ticket),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_connection_that_holds_the_whole_pool_does_not_starve_another_one() {
        let shared = SharedBytes::new(RESERVE_BYTES as usize);
        let mut stuck = Account::new(shared.clone());
        let held: Vec<_> = std::iter::from_fn(|| admit(&mut stuck, 8 << 20)).collect();
        assert_eq!(held.len(), 8, "64 MiB in requests of 8 MiB");
        let mut other = Account::new(shared);
        let ticket = admit(&mut other, PAYLOAD_LEN_MAX).expect("the reserve is its own");
        assert!(admit(&mut other, 1).is_none());
        other.release(ticket);
        assert!(admit(&mut other, PAYLOAD_LEN_MAX).is_some());
    }

    #[test]
    fn requests_without_data_are_counted_too() {
        let mut account = Account::new(SharedBytes::default());
        let mut held: Vec<_> = std::iter::from_fn(|| admit(&mut account, 0)).collect();
        assert_eq!(held.len(), REQUESTS_MAX);
        account.release(held.pop().unwrap());
        assert!(admit(&mut account, 0).is_some());
    }
}
