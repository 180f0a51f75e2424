//! `sealbd compact`: moves data together, by the process that serves the volume or, when none does, here.
//!
//! Interrupted, it ends in good order within a moment, and tells what was gained.

use std::ops::ControlFlow;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use indicatif::ProgressBar;
use keymgmt::source::Purpose;
use rustix::process::Signal;
use serde::Serialize;

use super::arguments::CompactOptions;
use super::context::Context;
use super::home::changing_server;
use super::inspect::uuid_text;
use super::interrupt;
use super::named;
use super::open::{self, Backend};
use super::outcome::Failure;
use super::size::show_size;
use crate::control::client::Control;
use crate::store::Access;
use crate::volume::OpenMode;
use crate::volume::compact::{Compacted, Density};

#[derive(Serialize)]
struct Report {
    volume: String,
    uuid: String,
    op: &'static str,
    /// The process that did it, when the volume is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    served_by: Option<u32>,
    target: u64,
    before: Density,
    after: Density,
    live_percent_before: u64,
    live_percent: u64,
    /// Whether the target is reached; else it was interrupted, or there is no more to gain.
    reached: bool,
    interrupted: bool,
    segments_given_back: u64,
    bytes_given_back: u64,
    duration_ms: u128,
    request_id: String,
}

/// What came of it, of which volume.
struct Done {
    uuid: String,
    segment_bytes: u64,
    served_by: Option<u32>,
    compacted: Compacted,
    interrupted: Option<Signal>,
}

/// Runs the command: exit 0 when no more is to be gained, 128 and the signal's number when it was interrupted.
pub(super) async fn run(options: &CompactOptions, context: &Context) -> Result<ExitCode, Failure> {
    let begun = Instant::now();
    let seen = open::backend(&options.backend.backend, Access::Inspect).await?;
    let volume = seen.uri.to_string();
    let done = match changing_server(&seen, context).await? {
        Some((server, pid)) => online(options.target, &seen, server, pid, context).await?,
        None => {
            drop(seen);
            offline(options, context).await?
        }
    };
    let Done { uuid, segment_bytes, served_by, compacted, interrupted } = done;
    let Compacted { before, after, reached } = compacted;
    let segments_given_back = after.unused_slots.saturating_sub(before.unused_slots);
    let report = Report {
        volume,
        uuid,
        op: "compact",
        served_by,
        target: options.target,
        before,
        after,
        live_percent_before: before.percent(),
        live_percent: after.percent(),
        reached,
        interrupted: interrupted.is_some(),
        segments_given_back,
        bytes_given_back: segments_given_back * segment_bytes,
        duration_ms: begun.elapsed().as_millis(),
        request_id: context.request_id.to_string(),
    };
    context.output.result(&report, || prose(&report));
    let Some(signal) = interrupted else { return Ok(ExitCode::SUCCESS) };
    let failure = Failure::interrupted(signal.as_raw());
    context.trail.failed(&failure);
    context.output.tell(&failure);
    Ok(ExitCode::from(failure.exit))
}

async fn offline(options: &CompactOptions, context: &Context) -> Result<Done, Failure> {
    if options.slot.slots.is_empty() {
        return Err(named::no_slot("compact "));
    }
    let backend = open::backend(&options.backend.backend, Access::ReadWrite).await?;
    let managers = context.managers(&options.slot.slots, Purpose::Unlock)?;
    let unlocked = backend.unlock(&managers, context).await?;
    // From before it counts as begun.
    let mut signal = pin!(signals()?);
    context.trail.begin()?;
    let volume = context.open(&backend, unlocked, OpenMode::ReadWrite).await?;
    let (uuid, segment_bytes) = (uuid_text(&volume.header()), volume.header().segment_bytes.into());
    let (bar, ends) = (Bar::new(options.target, context), AtomicBool::new(false));
    let mut compacting = pin!(volume.compact(options.target, |now| {
        bar.show(now);
        if ends.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }));
    let mut interrupted = None;
    let compacted = loop {
        tokio::select! {
            compacted = &mut compacting => break compacted,
            by = &mut signal, if interrupted.is_none() => {
                interrupted = Some(by);
                // It ends in good order, after the step that is under way.
                ends.store(true, Ordering::Relaxed);
            }
        }
    };
    bar.0.finish_and_clear();
    let closed = volume.close().await;
    let failed = |error| Failure::from(error).of(&backend.uri);
    let compacted = compacted.map_err(failed)?;
    closed.map_err(failed)?;
    Ok(Done { uuid, segment_bytes, served_by: None, compacted, interrupted })
}

async fn online(
    target: u64,
    backend: &Backend,
    mut server: Control,
    pid: u32,
    context: &Context,
) -> Result<Done, Failure> {
    let (uuid, segment_bytes) = {
        let copies = backend.header(context).await?;
        (uuid_text(copies.claimed()), copies.claimed().segment_bytes.into())
    };
    let signal = signals()?;
    context.trail.begin()?;
    let bar = Bar::new(target, context);
    let compacted = tokio::select! {
        compacted = server.compact(target, |now| bar.show(now)) => compacted,
        signal = signal => {
            bar.0.finish_and_clear();
            // The server hears it from the connection that is gone.
            return Err(Failure::interrupted(signal.as_raw()));
        }
    };
    bar.0.finish_and_clear();
    let compacted = compacted.map_err(|error| Failure::from(error).of(&backend.uri))?;
    Ok(Done { uuid, segment_bytes, served_by: Some(pid), compacted, interrupted: None })
}

fn signals() -> Result<impl Future<Output = Signal>, Failure> {
    interrupt::taken().map_err(|error| {
        Failure::system("cannot handle signals", &error, "ulimit -n shows how many files may be open")
    })
}

/// How far it is: of the bytes that segments must have fewer, those that they have.
struct Bar(ProgressBar, u64);

impl Bar {
    fn new(target: u64, context: &Context) -> Self {
        Self(context.output.progress("compacting", 0), target.max(1))
    }

    fn show(&self, now: Density) {
        let Self(bar, target) = self;
        let surplus = now.used_bytes.saturating_sub(now.live_bytes / target * 100);
        // The first word of it is what there is to do; writers may make it more.
        let all = bar.length().unwrap_or(0).max(surplus);
        bar.set_length(all);
        bar.set_position(all - surplus);
    }
}

fn prose(report: &Report) -> String {
    let Report { volume, after, before, live_percent, live_percent_before, .. } = report;
    let mut text = format!(
        "{volume}: of {} in segments {live_percent} % is live, before of {} {live_percent_before} %\n",
        show_size(after.used_bytes),
        show_size(before.used_bytes)
    );
    let (count, bytes) = (report.segments_given_back, show_size(report.bytes_given_back));
    text.push_str(&match count {
        0 => "no segment became free; the store was told to drop what unused ones had left\n".to_owned(),
        1 => format!("1 segment ({bytes}) was given back to the store\n"),
        _ => format!("{count} segments ({bytes}) were given back to the store\n"),
    });
    if !report.reached && !report.interrupted {
        text.push_str(&format!(
            "{} % cannot be reached now: no other segment is worth emptying\n",
            report.target
        ));
    }
    text
}
