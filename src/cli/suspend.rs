//! `sealbd suspend` and `sealbd resume`: a served volume without its key in memory, and with it again.

use std::process::ExitCode;

use keymgmt::source::Purpose;
use serde::Serialize;

use super::arguments::{BackendOption, ResumeOptions};
use super::context::Context;
use super::home::serving;
use super::inspect;
use super::open::{self, Backend};
use super::outcome::Failure;
use crate::control::client::Control;
use crate::control::protocol::State;
use crate::store::Access;

#[derive(Serialize)]
struct Report {
    uuid: String,
    op: &'static str,
    state: State,
    duration_ms: u128,
}

/// `sealbd suspend`: requests are parked, the keys are wiped.
pub(super) async fn suspend(options: &BackendOption, context: &Context) -> Result<ExitCode, Failure> {
    let begun = std::time::Instant::now();
    let backend = open::backend(&options.backend, Access::Inspect).await?;
    let uuid = inspect::uuid_text(backend.header(context).await?.claimed());
    let mut server = served(&backend, context).await?;
    context.trail.begin()?;
    let state = server.suspend().await.map_err(|error| Failure::from(error).of(&backend.uri))?;
    let report = Report { uuid, op: "suspend", state, duration_ms: begun.elapsed().as_millis() };
    context.output.result(&report, || {
        format!(
            "{} is suspended: the server has no key in memory, requests wait; sealbd resume gives it back",
            report.uuid
        )
    });
    Ok(ExitCode::SUCCESS)
}

/// `sealbd resume`: the key is unwrapped here and given to the serving process.
pub(super) async fn resume(options: &ResumeOptions, context: &Context) -> Result<ExitCode, Failure> {
    let begun = std::time::Instant::now();
    let backend = open::backend(&options.backend.backend, Access::Inspect).await?;
    let mut server = served(&backend, context).await?;
    let managers = context.managers(&options.slot.slots, Purpose::Unlock)?;
    let unlocked = backend.unlock(&managers, context).await?;
    context.trail.begin()?;
    let state = server.resume(&unlocked.dek).await.map_err(|error| Failure::from(error).of(&backend.uri))?;
    let uuid = inspect::uuid_text(&unlocked.header);
    let report = Report { uuid, op: "resume", state, duration_ms: begun.elapsed().as_millis() };
    context.output.result(&report, || format!("{} goes on", report.uuid));
    Ok(ExitCode::SUCCESS)
}

async fn served(backend: &Backend, context: &Context) -> Result<Control, Failure> {
    let server = serving(backend, context).await?;
    server.ok_or_else(|| {
        Failure::not_served(
            format!("{}: no process on this host serves it with a control socket", backend.uri),
            "sealbd serve BACKEND; SEALBD_CONTROL_DIRECTORY or control_directory names where its socket is",
        )
    })
}
