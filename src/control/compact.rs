//! Compacting a volume while it is served: how dense it is about once a second, then what came of it
//! (docs/CONTROL.md §3). Who closes the connection ends it, and so does suspending and stopping.

#[cfg(test)]
mod tests;

use std::io;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::gate::NotRunning;
use super::protocol::{Answer, Code, Done, Refusal};
use super::server::{Subject, refusal, send};
use crate::store::BoxFuture;
use crate::volume::compact::Density;

/// Between two words of progress; whoever has gone is noticed by then.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Compacts the volume and tells of it on the way; the last answer, or why there is none.
pub(super) fn run<'a>(
    stream: &'a mut BufReader<UnixStream>,
    subject: &'a Subject,
    target: u64,
) -> BoxFuture<'a, io::Result<Result<Done, Refusal>>> {
    Box::pin(compact(stream, subject, target))
}

async fn compact(
    stream: &mut BufReader<UnixStream>,
    subject: &Subject,
    target: u64,
) -> io::Result<Result<Done, Refusal>> {
    let Ok(_turn) = subject.compacting.try_acquire() else {
        return Ok(Err(Refusal::new(Code::Busy, "the volume is being compacted already")));
    };
    // Asked for before the volume is held: whoever waits for it from now on is heard.
    let mut wanted = pin!(subject.gate.is_wanted());
    let Ok(volume) = subject.gate.volume().map_err(|NotRunning| ()) else {
        return Ok(Err(subject.not_running()));
    };
    let (density, ends) = (watch::Sender::new(Density::default()), AtomicBool::new(false));
    let mut compacting = pin!(volume.compact(target, |now| {
        density.send_replace(now);
        if ends.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }));
    // It is run to its end in any case: a root is part of it.
    let (mut gone, mut given_up) = (None, false);
    let compacted = loop {
        tokio::select! {
            compacted = &mut compacting => break compacted,
            () = &mut wanted, if !given_up => given_up = true,
            () = tokio::time::sleep(PROGRESS_EVERY), if gone.is_none() => {
                let now = *density.borrow();
                gone = send(stream, &Answer::Ok(Done::Compacting(now))).await.err();
            }
        }
        ends.store(given_up || gone.is_some(), Ordering::Relaxed);
    };
    if let Some(error) = gone {
        return Err(error);
    }
    Ok(match compacted {
        Ok(compacted) if given_up && !compacted.reached => {
            let text =
                "compacting ended, since the volume is being suspended or stopped; what was gained stays";
            Err(Refusal::new(Code::State, text))
        }
        Ok(compacted) => Ok(Done::Compacted(compacted)),
        Err(error) => Err(refusal(&error)),
    })
}
