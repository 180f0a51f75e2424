//! Who may have how much under way: bytes and requests, before a payload is received.
//!
//! Every connection has a small reserve of its own, so that clients that do not read their replies cannot keep
//! others from small requests. What goes beyond the reserve comes from a pool that all connections of an export
//! share, first come, first served. No admission means no reading: the client's socket fills up and the client
//! waits. A client that holds some of the pool, and neither sends nor takes a byte while others wait for it, is
//! cut off.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use super::PAYLOAD_LEN_MAX;

/// Requests of one connection under way, replies that are not yet sent included. Kernel clients
/// keep up to 128 in the queue of one connection.
pub const REQUESTS_MAX: usize = 128;
/// Bytes of one connection's reserve: 16 requests of 4 KiB.
pub const RESERVE_BYTES: u32 = 64 << 10;
/// Bytes of one connection under way: one long request while another one is received.
pub const CONNECTION_BYTES_MAX: u32 = 2 * PAYLOAD_LEN_MAX;
/// Bytes that all connections of an export share beyond their reserves, unless said otherwise.
pub const SHARED_BYTES_MAX: usize = 64 << 20;
/// Least bytes of a pool.
const SHARED_BYTES_MIN: usize = 1 << 20;

/// The pool that all connections of an export share. A request that is longer than the pool takes all of it:
/// no more than one such request is under way.
#[derive(Clone, Debug)]
pub struct SharedBytes {
    pool: Arc<Semaphore>,
    /// Bytes of the pool.
    len: u32,
    /// Connections in the queue.
    waiting: Arc<AtomicUsize>,
}

impl SharedBytes {
    /// A pool of `bytes`, at least 1 MiB.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        let len = bytes.clamp(SHARED_BYTES_MIN, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        let pool = Arc::new(Semaphore::new(len));
        let len = u32::try_from(len).expect("clamped");
        Self { pool, len, waiting: Arc::default() }
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
    /// Requests that hold some of the pool.
    sharing: usize,
    queued: Option<Queued>,
}

/// A place in the queue for shared bytes.
struct Queued {
    wanted: u32,
    permit: Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>,
    waiting: Arc<AtomicUsize>,
}

impl Queued {
    fn new(shared: &SharedBytes, wanted: u32) -> Self {
        let permit = Box::pin(Arc::clone(&shared.pool).acquire_many_owned(wanted));
        shared.waiting.fetch_add(1, Ordering::Relaxed);
        Self { wanted, permit, waiting: shared.waiting.clone() }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One admitted request; to be given back with [`Account::release`].
#[must_use]
pub(super) struct Ticket {
    bytes: u32,
    /// Shared bytes; without, the bytes are the reserve's.
    shared: Option<OwnedSemaphorePermit>,
}

impl Account {
    pub(super) fn new(shared: SharedBytes) -> Self {
        Self { shared, requests: 0, bytes: 0, reserve_used: 0, sharing: 0, queued: None }
    }

    /// Requests that are admitted and not released.
    pub(super) fn requests(&self) -> usize {
        self.requests
    }

    /// Whether the connection holds some of the pool.
    pub(super) fn is_sharing(&self) -> bool {
        self.sharing > 0
    }

    /// Whether the connection holds some of the pool while others wait for it.
    pub(super) fn is_in_the_way(&self) -> bool {
        let own = usize::from(self.queued.is_some());
        self.is_sharing() && self.shared.waiting.load(Ordering::Relaxed) > own
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
        let wanted = bytes.min(self.shared.len);
        if self.queued.as_ref().is_none_or(|queued| queued.wanted != wanted) {
            // A semaphore is fair: nobody is overtaken while somebody waits.
            if let Ok(permit) = Arc::clone(&self.shared.pool).try_acquire_many_owned(wanted) {
                self.queued = None;
                return Poll::Ready(self.admit(bytes, Some(permit)));
            }
            self.queued = Some(Queued::new(&self.shared, wanted));
        }
        let Some(queued) = &mut self.queued else { return Poll::Pending };
        match queued.permit.as_mut().poll(cx) {
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
        self.sharing += usize::from(shared.is_some());
        Ticket { bytes, shared }
    }

    /// Takes a ticket back.
    pub(super) fn release(&mut self, ticket: Ticket) {
        let Ticket { bytes, shared } = ticket;
        self.requests -= 1;
        self.bytes -= bytes;
        match shared {
            Some(_) => self.sharing -= 1,
            None => self.reserve_used -= bytes,
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
    fn a_connection_that_holds_the_whole_pool_does_not_keep_another_one_from_small_requests() {
        let shared = SharedBytes::new(32 << 20);
        let mut stuck = Account::new(shared.clone());
        let held: Vec<_> = std::iter::from_fn(|| admit(&mut stuck, 8 << 20)).collect();
        assert_eq!(held.len(), 4, "32 MiB in requests of 8 MiB");
        assert!(!stuck.is_in_the_way(), "nobody waits but itself");
        let mut other = Account::new(shared);
        let small: Vec<_> = std::iter::from_fn(|| admit(&mut other, 4096)).collect();
        assert_eq!(small.len(), 16, "the reserve is its own");
        assert!(stuck.is_in_the_way());
        assert!(!other.is_in_the_way(), "it holds nothing of the pool");
        small.into_iter().for_each(|ticket| other.release(ticket));
        held.into_iter().for_each(|ticket| stuck.release(ticket));
        // Its place in the queue goes with it: it waits for 8 MiB at the head.
        drop(stuck);
        assert!(admit(&mut other, 8 << 20).is_some());
    }

    #[test]
    fn a_request_longer_than_the_pool_is_admitted_alone() {
        let shared = SharedBytes::new(8 << 20);
        let (mut first, mut second) = (Account::new(shared.clone()), Account::new(shared));
        let long = admit(&mut first, PAYLOAD_LEN_MAX).expect("nobody else is there");
        assert!(admit(&mut second, PAYLOAD_LEN_MAX).is_none());
        first.release(long);
        assert!(admit(&mut second, PAYLOAD_LEN_MAX).is_some());
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
