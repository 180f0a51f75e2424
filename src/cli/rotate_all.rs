//! `sealbd rotate --kek --all`: every volume of the configuration, one after the other. A volume that fails is listed
//! with the reason and the others go on.

use std::process::ExitCode;

use serde::Serialize;

use super::arguments::BackendOption;
use super::context::Context;
use super::list::Problem;
use super::named;
use super::outcome::Failure;
use super::rotate::{Wanted, rotate};
use super::rotate_report::{RotateReport, prose};
use super::settings::VolumeSettings;

#[derive(Serialize)]
struct Report {
    op: &'static str,
    rotated: usize,
    /// Volumes with nothing due.
    left: usize,
    failed: usize,
    volumes: Vec<Entry>,
    dry_run: bool,
}

#[derive(Serialize)]
struct Entry {
    name: String,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    done: Option<RotateReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
}

/// Runs the command: exit 14 when some volume failed.
pub(super) async fn run(wanted: Wanted, context: &Context) -> Result<ExitCode, Failure> {
    let volumes = &context.settings.volumes;
    if volumes.is_empty() {
        return Err(Failure::usage(
            "the configuration has no volumes",
            "write [volume.NAME] into sealbd.toml, or sealbd rotate BACKEND --kek",
        ));
    }
    let bar = context.output.counting("rotating", volumes.len() as u64);
    let mut entries = Vec::with_capacity(volumes.len());
    for volume in volumes {
        bar.set_message(volume.name.clone());
        context.trail.about(&volume.backend.to_string());
        let (done, failure) = match Box::pin(one(volume, wanted, context)).await {
            Ok(done) => {
                let failure = done.failure();
                (Some(done), failure)
            }
            Err(failure) => (None, Some(failure)),
        };
        context.trail.settle_last(failure.as_ref().map_or(Ok(()), Err));
        let problem = failure.map(|failure| failure.naming(&volume.name).into());
        entries.push(Entry { name: volume.name.clone(), done, problem });
        bar.inc(1);
    }
    bar.finish_and_clear();
    let failed = entries.iter().filter(|entry| entry.problem.is_some()).count();
    let is_rotated = |done: &RotateReport| !done.rotated.is_empty();
    let whole = entries.iter().filter(|entry| entry.problem.is_none());
    let rotated = whole.filter(|entry| entry.done.as_ref().is_some_and(is_rotated)).count();
    let left = entries.len() - failed - rotated;
    let report =
        Report { op: "rotate-kek", rotated, left, failed, volumes: entries, dry_run: wanted.dry_run };
    context.output.result(&report, || text(&report));
    if failed == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let failure = Failure::partly(
        format!("{failed} of {} volumes failed", report.volumes.len()),
        "sealbd rotate --kek --all, once the cause is mended; what is done is done",
    );
    context.output.tell(&failure);
    Ok(ExitCode::from(failure.exit))
}

async fn one(volume: &VolumeSettings, wanted: Wanted, context: &Context) -> Result<RotateReport, Failure> {
    if volume.slots.is_empty() {
        return Err(Failure::usage(
            format!("the configuration has no slots for {}", volume.name),
            "slots = [\"kms:PROVIDER\"] in its [volume.NAME]",
        ));
    }
    let wanted = Wanted { older_than: wanted.older_than.or(volume.rotate_kek), ..wanted };
    let backend = BackendOption { backend: named::argument(&volume.backend) };
    Box::pin(rotate(&backend, &volume.slots, wanted, context)).await
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for Entry { name, done, problem } in &report.volumes {
        if let Some(done) = done {
            prose(done).lines().for_each(|line| text.push_str(&format!("{name}: {line}\n")));
        }
        if let Some(problem) = problem {
            text.push_str(&format!("{name}: FAILED: {}\n", problem.message));
        }
    }
    let Report { rotated, left, failed, .. } = report;
    text.push_str(&format!("{rotated} rotated, {left} with nothing due, {failed} failed"));
    text
}
