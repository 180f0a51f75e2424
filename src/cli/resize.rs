//! `sealbd resize`: another size for a volume, by the process that serves it or, when none does, here.

use std::process::ExitCode;
use std::time::Instant;

use keymgmt::source::Purpose;
use serde::Serialize;

use super::arguments::ResizeOptions;
use super::context::Context;
use super::format::wrong_size;
use super::home::changing_server;
use super::inspect::uuid_text;
use super::named;
use super::open::{self, Backend};
use super::outcome::Failure;
use super::size::{NewSize, show_size};
use crate::control::client::{Control, ControlError};
use crate::control::protocol::{Code, Refusal};
use crate::store::Access;
use crate::volume::create::Geometry;
use crate::volume::{OpenMode, Resized, Sizes, Volume, VolumeError, WantedSize};

#[derive(Serialize)]
struct Report {
    volume: String,
    uuid: String,
    op: &'static str,
    /// The process that did it, when the volume is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    served_by: Option<u32>,
    /// Whether anything is different now, or would be.
    changed: bool,
    before: Sizes,
    #[serde(flatten)]
    after: Sizes,
    header_generation: u64,
    dry_run: bool,
    duration_ms: u128,
    request_id: String,
}

/// Runs the command.
pub(super) async fn run(options: &ResizeOptions, context: &Context) -> Result<ExitCode, Failure> {
    let begun = Instant::now();
    let wanted = wanted(options)?;
    let seen = open::backend(&options.backend.backend, Access::Inspect).await?;
    let volume = seen.uri.to_string();
    let (uuid, served_by, resized) = match changing_server(&seen, context).await? {
        Some((server, pid)) => {
            let uuid = uuid_text(seen.header(context).await?.claimed());
            (uuid, Some(pid), online(server, wanted, context).await.map_err(|failure| failure.of(&seen.uri))?)
        }
        None => {
            drop(seen);
            let (uuid, resized) = offline(options, wanted, context).await?;
            (uuid, None, resized)
        }
    };
    let Resized { before, after, header_generation } = resized;
    let report = Report {
        volume,
        uuid,
        op: "resize",
        served_by,
        changed: before != after,
        before,
        after,
        header_generation,
        dry_run: wanted.dry_run,
        duration_ms: begun.elapsed().as_millis(),
        request_id: context.request_id.to_string(),
    };
    context.output.result(&report, || prose(&report));
    Ok(ExitCode::SUCCESS)
}

/// What is asked for; a size that no volume has is told before anybody is asked for a key.
fn wanted(options: &ResizeOptions) -> Result<WantedSize, Failure> {
    let ResizeOptions { size, over_provisioning, dry_run, .. } = *options;
    let size = match size {
        NewSize::Max => None,
        NewSize::Bytes(size) => {
            Geometry::for_export(size).map_err(|error| wrong_size(size, &error, "sealbd resize BACKEND "))?;
            Some(size)
        }
    };
    Ok(WantedSize { size, over_provisioning, dry_run })
}

async fn online(mut server: Control, wanted: WantedSize, context: &Context) -> Result<Resized, Failure> {
    if !wanted.dry_run {
        context.trail.begin()?;
    }
    server.resize(wanted).await.map_err(|error| match (error, wanted.size) {
        (ControlError::Refused(Refusal { code: Code::InUse, message }), Some(end)) => {
            Failure::tail_in_use(message, end)
        }
        (error, _) => error.into(),
    })
}

async fn offline(
    options: &ResizeOptions,
    wanted: WantedSize,
    context: &Context,
) -> Result<(String, Resized), Failure> {
    if options.slot.slots.is_empty() {
        return Err(named::no_slot("resize "));
    }
    let (access, mode) = match wanted.dry_run {
        true => (Access::ReadOnly, OpenMode::ReadOnly),
        false => (Access::ReadWrite, OpenMode::ReadWrite),
    };
    let backend = open::backend(&options.backend.backend, access).await?;
    let managers = context.managers(&options.slot.slots, Purpose::Unlock)?;
    let unlocked = backend.unlock(&managers, context).await?;
    if !wanted.dry_run {
        context.trail.begin()?;
    }
    let volume = context.open(&backend, unlocked, mode).await?;
    let uuid = uuid_text(&volume.header());
    let resized = resize(&volume, wanted).await;
    let closed = volume.close().await;
    let resized = resized.map_err(|error| failed(error, &backend))?;
    closed.map_err(|error| failed(error, &backend))?;
    Ok((uuid, resized))
}

async fn resize(volume: &Volume, wanted: WantedSize) -> Result<Resized, VolumeError> {
    let to = volume.geometry_for(wanted).await?;
    volume.become_size(to, wanted.dry_run).await
}

fn failed(error: VolumeError, backend: &Backend) -> Failure {
    let failure = match error {
        VolumeError::StoreTooSmall { .. } => Failure::backend_too_small(error.to_string()),
        error => error.into(),
    };
    failure.of(&backend.uri)
}

fn prose(report: &Report) -> String {
    let Report { volume, served_by, changed, before, after, dry_run, .. } = report;
    if !changed {
        return format!("{volume} has {} already", exact(after.size));
    }
    let would = if *dry_run { "would be " } else { "" };
    let mut text = format!("{volume}: {would}{}, before {}\n", exact(after.size), exact(before.size));
    let spare = after.over_provisioning_percent;
    if after.segments > before.segments {
        let (is, was) = (show_size(after.store_bytes), show_size(before.store_bytes));
        text.push_str(&format!("on a store of up to {is}, before {was}; over-provisioning {spare}\n"));
    } else if after.size < before.size {
        text.push_str(&format!(
            "the segments stay, which makes over-provisioning {spare}; growing keeps that unless --over-provisioning says another\n"
        ));
    }
    if served_by.is_some() && !dry_run && after.size > before.size {
        text.push_str("who is connected keeps the size of before; new connections see this one\n");
    }
    text
}

fn exact(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", show_size(bytes))
}
