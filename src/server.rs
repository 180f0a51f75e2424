//! Serving exports on sockets: accepting, bounds, and coming to an end without losing a reply.
//!
//! [`Server::serve`] runs until it is told to stop, then *drains*: no more connections, options
//! answered with `NBD_REP_ERR_SHUTDOWN`, requests already received finished, later ones answered
//! with `NBD_ESHUTDOWN`, idle connections closed. Whatever is left after a deadline is cut.

mod accept;
pub mod listener;
pub mod notice;
pub mod pidfile;
mod places;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

pub use listener::{ListenError, Listener};

use crate::export::Export;
use crate::nbd::admission::{SHARED_BYTES_MAX, SharedBytes};
use crate::nbd::connection::{Deadlines, NamedExport};
use crate::nbd::stop::{Phase, stop_signal};
use crate::wire::{self, Errno};
use notice::{Notice, Notices, Occasion};
use places::Places;

/// How long cut connections are waited for: changes that were started run to their end.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// Connections at a time: eight clients with as many connections as `nbdcopy` and kernel clients open, sixteen
/// times over.
pub const CONNECTIONS_MAX: usize = 128;

/// What a server allows its clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Connections at a time, those in their handshake included. When all are in use, the oldest unfinished handshake
    /// makes room for a new connection.
    pub connections_max: usize,
    /// From accept to transmission. 10 s, as in qemu since CVE-2024-7409.
    pub handshake_deadline: Duration,
    /// From being told to stop to cutting connections.
    pub drain_deadline: Duration,
    /// Bytes under way on all connections of one export, beyond each connection's reserve
    /// ([`crate::nbd::admission`]).
    pub request_bytes_max: usize,
    /// How long a client that holds some of those bytes, while others wait for them, may neither send what it began
    /// nor take what was answered.
    pub stall_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: CONNECTIONS_MAX,
            handshake_deadline: Duration::from_secs(10),
            drain_deadline: Duration::from_secs(30),
            request_bytes_max: SHARED_BYTES_MAX,
            stall_deadline: Duration::from_secs(10),
        }
    }
}

/// Why exports cannot be served.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ServerError {
    /// A name is too long for the protocol, or holds a NUL.
    #[error("export name {0:?}: {1}")]
    Name(String, wire::WireError),
    /// Two exports have the same name.
    #[error("two exports are named {0:?}")]
    NameTwice(String),
}

/// Exports by name, ready to be served.
///
/// When there is exactly one export it is also the default one, served under the empty name.
pub struct Server<E> {
    exports: Vec<(String, Arc<E>)>,
    limits: Limits,
    notices: Arc<Notices>,
}

impl<E: Export> Server<E> {
    /// A server of `exports`.
    ///
    /// # Errors
    /// [`ServerError`] when clients could not ask for each of them by name.
    pub fn new(exports: Vec<(String, Arc<E>)>, limits: Limits) -> Result<Self, ServerError> {
        for (index, (name, _)) in exports.iter().enumerate() {
            wire::text(name.as_bytes()).map_err(|error| ServerError::Name(name.clone(), error))?;
            if exports[..index].iter().any(|(other, _)| other == name) {
                return Err(ServerError::NameTwice(name.clone()));
            }
        }
        Ok(Self { exports, limits, notices: Arc::new(Notices::new(Box::new(|_| {}))) })
    }

    /// Has `tell` told what clients do that whoever runs the server should know: bounded in number, whatever they do
    /// ([`notice`]). It is called in between serving and must not block for long.
    #[must_use]
    pub fn telling(mut self, tell: impl Fn(&Notice) + Send + Sync + 'static) -> Self {
        self.notices = Arc::new(Notices::new(Box::new(tell)));
        self
    }

    fn named(&self, name: &str, export: &Arc<E>) -> NamedExport<E> {
        let (notices, told) = (Arc::clone(&self.notices), name.to_owned());
        let on_failure = Arc::new(move |error, text: &str| {
            // A server that stops, and an export that was asked to be read-only, are no news.
            if ![Errno::ESHUTDOWN, Errno::EPERM].contains(&error) {
                notices.note(Occasion::Failed(error, format!("{told:?}: {text}")));
            }
        });
        let bytes = SharedBytes::new(self.limits.request_bytes_max);
        NamedExport { name: name.to_owned(), export: Arc::clone(export), bytes, on_failure }
    }

    /// Serves until `shutdown` is ready, or until all connections on standard input and output
    /// ([`Listener::stdio`]) have ended when there is no other listener. Then drains.
    ///
    /// On return listening sockets are closed and removed. Changes that were started on the
    /// exports have come to their end, unless a store kept one beyond the drain deadline and five
    /// seconds more.
    ///
    /// # Cancel safety
    /// When dropped, connections are cut and changes run on to their end on their own.
    pub async fn serve(&self, listeners: Vec<Listener>, shutdown: impl Future<Output = ()>) {
        let (stopper, stop) = stop_signal();
        let (alive, mut all_done) = mpsc::channel(1);
        let shared = accept::Shared {
            exports: self.exports.iter().map(|(name, export)| self.named(name, export)).collect(),
            deadlines: Deadlines {
                handshake: self.limits.handshake_deadline,
                stall: self.limits.stall_deadline,
            },
            places: Arc::new(Places::new(self.limits.connections_max)),
            notices: Arc::clone(&self.notices),
            stop,
            alive,
        };
        for listener in listeners {
            tokio::spawn(accept::run(listener, shared.clone()));
        }
        // From here on only what is running keeps `all_done` from ending.
        drop(shared);
        tokio::select! {
            () = shutdown => {}
            _ = all_done.recv() => {}
            () = self.notices.tell_on() => {}
        }
        stopper.enter(Phase::Draining);
        if timeout(self.limits.drain_deadline, all_done.recv()).await.is_err() {
            stopper.enter(Phase::Closing);
            let _ = timeout(CLOSE_DEADLINE, all_done.recv()).await;
        }
        self.notices.tell_rest();
    }
}
