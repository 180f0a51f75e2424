//! Accepting connections, at most so many at a time.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;

use super::listener::{Kind, Listener, Stdio};
use super::notice::{Notices, Occasion};
use super::places::{Place, Places};
use crate::export::Export;
use crate::nbd::connection::{self, Deadlines, Ending, NamedExport};
use crate::nbd::stop::{Phase, StopSignal};
use crate::nbd::transport::Transport;

/// How long accepting rests when the process has no file descriptor or memory left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections of a server share.
pub(super) struct Shared<E> {
    pub(super) exports: Arc<[NamedExport<E>]>,
    pub(super) deadlines: Deadlines,
    /// One for each connection.
    pub(super) places: Arc<Places>,
    pub(super) notices: Arc<Notices>,
    pub(super) stop: StopSignal,
    /// Never sent on; its receiver ends when the last clone is gone.
    pub(super) alive: mpsc::Sender<()>,
}

impl<E> Clone for Shared<E> {
    fn clone(&self) -> Self {
        Self {
            exports: Arc::clone(&self.exports),
            deadlines: self.deadlines,
            places: Arc::clone(&self.places),
            notices: Arc::clone(&self.notices),
            stop: self.stop.clone(),
            alive: self.alive.clone(),
        }
    }
}

impl<E: Export> Shared<E> {
    /// Serves one client in a task of its own. When there is no place for it, the connection is closed at once: a
    /// client that is told so can try again, one left in the backlog hangs.
    async fn spawn(&self, transport: impl Transport) {
        let Some(Place { permit, leave, made_room }) = self.places.take().await else {
            return self.notices.note(Occasion::Full(self.places.max()));
        };
        if made_room {
            self.notices.note(Occasion::MadeRoom(self.places.max()));
        }
        let Self { exports, deadlines, places: _, notices, stop, alive } = self.clone();
        tokio::spawn(async move {
            match connection::serve(transport, exports, deadlines, leave, stop).await {
                Ending::Slow => notices.note(Occasion::Slow(deadlines.handshake)),
                Ending::Stalled => notices.note(Occasion::Stalled(deadlines.stall)),
                Ending::Malformed => notices.note(Occasion::Malformed),
                Ending::Over => {}
            }
            drop((permit, alive));
        });
    }
}

/// Accepts on one listener until the server stops; the socket is closed and removed on return.
pub(super) async fn run<E: Export>(listener: Listener, shared: Shared<E>) {
    let mut stop = shared.stop.clone();
    tokio::select! {
        () = stop.reached(Phase::Draining) => {}
        () = accept_all(listener, &shared) => {}
    }
}

async fn accept_all<E: Export>(listener: Listener, shared: &Shared<E>) {
    match listener.kind {
        Kind::Unix(listener, _path) => loop {
            match listener.accept().await {
                Ok((socket, _)) => shared.spawn(socket).await,
                Err(error) => pause_after(&error, &shared.notices).await,
            }
        },
        Kind::Tcp(listener) => loop {
            match listener.accept().await {
                Ok((socket, _)) => {
                    // Without it every option and small reply waits for an acknowledgement.
                    let _ = socket.set_nodelay(true);
                    shared.spawn(socket).await;
                }
                Err(error) => pause_after(&error, &shared.notices).await,
            }
        },
        Kind::Stdio(Stdio::Unix(socket)) => shared.spawn(socket).await,
        Kind::Stdio(Stdio::Tcp(socket)) => shared.spawn(socket).await,
        Kind::Stdio(Stdio::Pipes(pipes)) => shared.spawn(pipes).await,
    }
}

/// A client that left between connecting and being accepted is no reason to wait.
async fn pause_after(error: &std::io::Error, notices: &Notices) {
    if !matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) {
        notices.note(Occasion::CannotAccept(error.raw_os_error().unwrap_or_default()));
        sleep(ACCEPT_PAUSE).await;
    }
}
