//! Places for connections: so many at a time, and who leaves when one more comes.
//!
//! A client that connects and says nothing costs a place until its deadline; a program that opens sockets in a loop
//! would keep everybody else out. So when all places are taken, the oldest connection that has not finished its
//! handshake is ended for the new one. A handshake takes milliseconds: whoever means it is through before its turn
//! comes. Connections in transmission are never ended; when there are only those, the new one is refused.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// The places of a server.
pub(super) struct Places {
    max: usize,
    free: Arc<Semaphore>,
    /// Connections that may be ended, oldest first; some of them have finished by now.
    endable: Mutex<VecDeque<oneshot::Sender<()>>>,
}

/// One connection's place.
pub(super) struct Place {
    /// The place is free again when this is dropped.
    pub(super) permit: OwnedSemaphorePermit,
    /// Ready when the connection is to leave; dropped by it when its handshake is finished.
    pub(super) leave: oneshot::Receiver<()>,
    /// Whether another connection had to leave.
    pub(super) made_room: bool,
}

impl Places {
    pub(super) fn new(max: usize) -> Self {
        Self { max, free: Arc::new(Semaphore::new(max)), endable: Mutex::default() }
    }

    /// How many there are.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// A place for a new connection; `None` when all are taken by finished handshakes.
    ///
    /// Waits only for a connection that was told to leave, which does so when it is next run.
    pub(super) async fn take(&self) -> Option<Place> {
        let (permit, made_room) = match Arc::clone(&self.free).try_acquire_owned() {
            Ok(permit) => (permit, false),
            Err(_) if self.end_oldest() => (Arc::clone(&self.free).acquire_owned().await.ok()?, true),
            Err(_) => return None,
        };
        let (end, leave) = oneshot::channel();
        let mut endable = self.endable.lock().unwrap_or_else(PoisonError::into_inner);
        // At most as many are alive as there are places: the queue stays short.
        if endable.len() >= 2 * self.max.max(1) {
            endable.retain(|end| !end.is_closed());
        }
        endable.push_back(end);
        Some(Place { permit, leave, made_room })
    }

    fn end_oldest(&self) -> bool {
        let mut endable = self.endable.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(end) = endable.pop_front() {
            if end.send(()).is_ok() {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_handshake_leaves_and_what_is_in_transmission_stays() {
        let places = Places::new(2);
        let mut finished = places.take().await.expect("free");
        finished.leave.close();
        let Place { permit, mut leave, made_room } = places.take().await.expect("free");
        assert!(!made_room);
        let left = async {
            (&mut leave).await.expect("told");
            drop(permit);
        };
        let (third, ()) = tokio::join!(places.take(), left);
        let mut third = third.expect("room was made");
        assert!(third.made_room && finished.leave.try_recv().is_err());
        third.leave.close();
        assert!(places.take().await.is_none(), "both have finished");
        drop(finished);
        assert!(places.take().await.is_some());
    }

    #[tokio::test]
    async fn the_queue_of_those_who_may_leave_does_not_grow() {
        let places = Places::new(3);
        for _ in 0..1000 {
            drop(places.take().await.expect("free"));
        }
        assert!(places.endable.lock().unwrap().len() <= 6);
    }
}
