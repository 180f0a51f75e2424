//! Verifying a volume while it is served: progress about once a second, then what was found in pieces, then the
//! end of the report (docs/CONTROL.md §3).

#[cfg(test)]
mod tests;

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::BufReader;
use tokio::net::UnixStream;

use super::gate::NotRunning;
use super::protocol::{Answer, Code, Done, Refusal};
use super::server::{Subject, refusal, send};
use crate::store::BoxFuture;
use crate::volume::check::CheckReport;

/// Between two words of progress; whoever has gone is noticed by then.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Findings in a line: each takes some hundred bytes of the 128 KiB that a line may have.
const FINDINGS_AT_ONCE_MAX: usize = 50;
/// Ranges in a line; each takes about 100 bytes.
const RANGES_AT_ONCE_MAX: usize = 500;

/// Checks the volume and tells of it on the way; the last answer, or why there is none.
pub(super) fn run<'a>(
    stream: &'a mut BufReader<UnixStream>,
    subject: &'a Subject,
    deep: bool,
) -> BoxFuture<'a, io::Result<Result<Done, Refusal>>> {
    Box::pin(check(stream, subject, deep))
}

async fn check(
    stream: &mut BufReader<UnixStream>,
    subject: &Subject,
    deep: bool,
) -> io::Result<Result<Done, Refusal>> {
    let Ok(_turn) = subject.checking.try_acquire() else {
        return Ok(Err(Refusal::new(Code::Busy, "another check of the volume is under way")));
    };
    // Asked for before the volume is held: whoever waits for it from now on is heard.
    let mut wanted = pin!(subject.gate.is_wanted());
    let Ok(volume) = subject.gate.volume().map_err(|NotRunning| ()) else {
        return Ok(Err(subject.not_running()));
    };
    let (of, at) = (volume.check_len(deep), AtomicU64::new(0));
    let mut checked = volume.check(deep, |passed| at.store(passed, Ordering::Relaxed));
    let report = loop {
        tokio::select! {
            report = &mut checked => break report,
            () = &mut wanted => {
                let text = "the check ended, since the volume is being suspended or stopped";
                return Ok(Err(Refusal::new(Code::State, text)));
            }
            () = tokio::time::sleep(PROGRESS_EVERY) => {
                let at = at.load(Ordering::Relaxed);
                send(stream, &Answer::Ok(Done::Checking { at, of })).await?;
            }
        }
    };
    drop(checked);
    drop(volume);
    match report {
        Ok(report) => found(stream, report).await.map(Ok),
        Err(error) => Ok(Err(refusal(&error))),
    }
}

/// Sends the lists of a report in lines; the rest of it.
async fn found(stream: &mut BufReader<UnixStream>, mut report: CheckReport) -> io::Result<Done> {
    let mut problems = std::mem::take(&mut report.problems).into_iter();
    let mut warnings = std::mem::take(&mut report.warnings).into_iter();
    let mut damaged = std::mem::take(&mut report.damaged).into_iter();
    while problems.len() + warnings.len() + damaged.len() > 0 {
        let line = Done::Found {
            problems: problems.by_ref().take(FINDINGS_AT_ONCE_MAX).collect(),
            warnings: warnings.by_ref().take(FINDINGS_AT_ONCE_MAX).collect(),
            damaged: damaged.by_ref().take(RANGES_AT_ONCE_MAX).collect(),
        };
        send(stream, &Answer::Ok(line)).await?;
    }
    Ok(Done::Checked(Box::new(report)))
}
