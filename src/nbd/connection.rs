//! One connection from accept to close: handshake under a deadline, then transmission.

use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use super::Mode;
use super::admission::SharedBytes;
use super::handshake::{Handshake, Offer, Step};
use super::input::Input;
pub use super::session::OnFailure;
use super::session::{End, Session, Used};
use super::stop::{Phase, StopSignal};
use super::transport::Transport;
use crate::export::{Attached, Export, ExportInfo};

/// How long a client in the midst of its handshake is kept to be told `NBD_REP_ERR_SHUTDOWN`.
const HANDSHAKE_DRAIN_GRACE: Duration = Duration::from_millis(500);
/// How long the end of a connection waits for the client to close its side, so that replies under
/// way are not thrown away by a reset.
const CLOSE_LINGER: Duration = Duration::from_millis(500);

/// An export and the name that clients know it by.
pub struct NamedExport<E> {
    /// The name, a string of the protocol.
    pub name: String,
    /// The export, shared by all connections.
    pub export: Arc<E>,
    /// What its connections have under way.
    pub bytes: SharedBytes,
    /// Told of every request that the export fails.
    pub on_failure: OnFailure,
}

/// How long a connection may keep the server waiting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deadlines {
    /// From accept to transmission.
    pub handshake: Duration,
    /// While others wait for bytes that it holds ([`super::admission`]).
    pub stall: Duration,
}

/// How a connection ended, as far as it matters to whoever runs the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// As connections end.
    Over,
    /// The handshake was not finished by the deadline.
    Slow,
    /// The client held what others waited for, and neither sent nor took anything.
    Stalled,
    /// The client's handshake was broken off: not the protocol, or more than is taken.
    Malformed,
}

/// Serves one client until it leaves, or until `stop` ends it, or until `leave` is ready while it has
/// not finished its handshake; `leave` is dropped when it has. Whatever the client does, this
/// returns; every change that was started has come to its end by then.
///
/// # Cancel safety
/// Not cancel safe: changes under way would be dropped, see [`Export`].
pub async fn serve<E: Export, T: Transport>(
    mut transport: T,
    exports: Arc<[NamedExport<E>]>,
    deadlines: Deadlines,
    mut leave: oneshot::Receiver<()>,
    mut stop: StopSignal,
) -> Ending {
    let deadline = Instant::now() + deadlines.handshake;
    let mut input = Input::new();
    let negotiated = {
        let mut cut = stop.clone();
        tokio::select! {
            negotiated = negotiate(&mut transport, &mut input, &exports, &mut stop) => negotiated,
            () = sleep_until(deadline) => Negotiated::Late,
            // Without anybody who could say so, it never is.
            Ok(()) = &mut leave => Negotiated::Lost,
            () = async {
                cut.reached(Phase::Draining).await;
                let _ = timeout(HANDSHAKE_DRAIN_GRACE, cut.reached(Phase::Closing)).await;
            } => Negotiated::Lost,
        }
    };
    match negotiated {
        Negotiated::Transmit(mode, told, attached) => {
            // Told to leave at the very end: somebody waits for this place.
            leave.close();
            if leave.try_recv().is_ok() {
                return Ending::Over;
            }
            drop(leave);
            let NamedExport { export, bytes, on_failure, name: _ } = &exports[mode.export];
            let used = Used {
                export: Arc::clone(export),
                info: told,
                bytes: bytes.clone(),
                on_failure: Arc::clone(on_failure),
            };
            let session = Session::new(transport, input, used, mode, deadlines.stall, stop.clone());
            let ended = session.run().await;
            // Every change has come to its end.
            drop(attached);
            match ended {
                (End::Finished, Some(transport)) => linger(transport, stop).await,
                (End::Stalled, _) => return Ending::Stalled,
                _ => {}
            }
            Ending::Over
        }
        Negotiated::Closed(ending) => {
            tokio::select! {
                () = linger(transport, stop) => {}
                Ok(()) = leave => {}
            }
            ending
        }
        Negotiated::Lost => Ending::Over,
        Negotiated::Late => Ending::Slow,
    }
}

enum Negotiated {
    /// How, what the client was told of the export, and its place among the clients of it.
    Transmit(Mode, ExportInfo, Attached),
    /// Our decision; what was sent should arrive.
    Closed(Ending),
    /// The client's.
    Lost,
    /// The deadline's.
    Late,
}

async fn negotiate<E: Export, T: Transport>(
    transport: &mut T,
    input: &mut Input,
    exports: &[NamedExport<E>],
    stop: &mut StopSignal,
) -> Negotiated {
    // What a client is told holds for as long as it is here, whatever becomes of the export.
    let mut told: Vec<ExportInfo> = exports.iter().map(|named| named.export.info()).collect();
    let offers =
        exports.iter().zip(&told).map(|(named, info)| Offer::new(&named.name, info.clone())).collect();
    let mut handshake = Handshake::new(offers);
    let mut out = Vec::new();
    let mut stopping = false;
    handshake.hello(&mut out);
    loop {
        if send_all(transport, &out).await.is_err() {
            return Negotiated::Lost;
        }
        out.clear();
        let (used, step) = handshake.receive(input.unparsed(), &mut out);
        let _ = input.next(used);
        match step {
            Step::Again => {}
            Step::Receive => tokio::select! {
                biased;
                () = stop.reached(Phase::Draining), if !stopping => {
                    stopping = true;
                    handshake.shut_down();
                }
                received = receive(transport, input) => match received {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return Negotiated::Lost,
                },
            },
            Step::Transmit(mode) => {
                let info = told.swap_remove(mode.export);
                let Some(attached) = exports[mode.export].export.attach(&info) else {
                    // It may come again, to be told of the size of now.
                    return Negotiated::Closed(Ending::Over);
                };
                return match send_all(transport, &out).await {
                    Ok(()) => Negotiated::Transmit(mode, info, attached),
                    Err(_) => Negotiated::Lost,
                };
            }
            Step::Close => {
                // The client need not wait for the answer to NBD_OPT_ABORT.
                let _ = send_all(transport, &out).await;
                let aborted = handshake.was_aborted();
                return Negotiated::Closed(if aborted { Ending::Over } else { Ending::Malformed });
            }
        }
    }
}

async fn receive<T: Transport>(transport: &mut T, input: &mut Input) -> io::Result<usize> {
    let len = poll_fn(|cx| transport.poll_receive(cx, &mut [input.room()])).await?;
    input.received(len);
    Ok(len)
}

async fn send_all<T: Transport>(transport: &mut T, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let sent = poll_fn(|cx| transport.poll_send(cx, &[IoSlice::new(bytes)])).await?;
        if sent == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[sent..];
    }
    Ok(())
}

/// Closes without a reset: says that nothing more will come, and throws away what still arrives
/// until the client has closed too.
async fn linger<T: Transport>(mut transport: T, mut stop: StopSignal) {
    let mut scrap = vec![0; 16 << 10];
    let drained = async {
        let _ = poll_fn(|cx| transport.poll_finish(cx)).await;
        poll_fn(|cx| {
            loop {
                match transport.poll_receive(cx, &mut [IoSliceMut::new(&mut scrap)]) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
    };
    tokio::select! {
        _ = timeout(CLOSE_LINGER, drained) => {}
        () = stop.reached(Phase::Closing) => {}
    }
}
