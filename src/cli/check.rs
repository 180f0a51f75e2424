//! `sealbd check`: verifies a volume, by the process that serves it or, when none does, here.

use std::process::ExitCode;

use keymgmt::source::Purpose;
use serde::Serialize;

use super::arguments::CheckOptions;
use super::context::Context;
use super::home::serving;
use super::inspect::uuid_text;
use super::named;
use super::open::{self, Backend};
use super::outcome::{EXIT_INTEGRITY, EXIT_PARTLY, EXIT_ROLLBACK, Failure};
use super::salvage;
use super::size::show_size;
use crate::control::client::Control;
use crate::store::Access;
use crate::store::uri::StoreUri;
use crate::volume::anchor::{Anchoring, OnRollback};
use crate::volume::check::{CheckReport, DamagedRange, Finding, LogSummary, Structure};
use crate::volume::salvage::Salvaged;
use crate::volume::unlock::Unlocked;
use crate::volume::{Volume, VolumeError};

/// A finding with what to do about it.
#[derive(Serialize)]
pub(super) struct Told {
    #[serde(flatten)]
    finding: Finding,
    next: String,
}

#[derive(Serialize)]
struct Report {
    uuid: String,
    /// The process that made the check, when the volume is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    served_by: Option<u32>,
    deep: bool,
    clean: bool,
    /// Whether all was verified that was asked for.
    complete: bool,
    root: u64,
    segments: u64,
    pages: u64,
    mapped_sectors: u64,
    log: LogSummary,
    verified_sectors: u64,
    damaged_sectors: u64,
    damaged: Vec<DamagedRange>,
    problems: Vec<Told>,
    warnings: Vec<Told>,
    not_listed: u64,
}

/// Runs the command: exit 0 when nothing that is needed is wrong, 8 when something is, 9 when the backend was put
/// back, 14 when not all could be verified.
pub(super) async fn run(options: &CheckOptions, context: &Context) -> Result<ExitCode, Failure> {
    let seen = open::backend(&options.backend.backend, Access::Inspect).await?;
    // Where nobody can be asked the backend itself says whether it is in use.
    if let Ok(Some(server)) = serving(&seen, context).await {
        if let Some(out) = &options.salvage {
            return Err(salvage::served(&seen, out));
        }
        return online(options, &seen, server, context).await;
    }
    drop(seen);
    if options.slot.slots.is_empty() {
        return Err(named::no_slot("check "));
    }
    let backend = open::backend(&options.backend.backend, Access::ReadOnly).await?;
    let managers = context.managers(&options.slot.slots, Purpose::Unlock)?;
    let unlocked = backend.unlock(&managers, context).await?;
    let rolled_back = held_against_anchor(&backend, &unlocked, context).await?;
    let failed = |error: VolumeError| Failure::from(error).of(&backend.uri);
    let salvaged = Volume::open_salvage(backend.store.clone(), unlocked).await.map_err(failed)?;
    if let Some(out) = &options.salvage {
        return Box::pin(salvage::run(out, salvaged, rolled_back, &backend, context)).await;
    }
    let Salvaged { volume, findings, .. } = salvaged;
    let bar = context.output.progress("checking", volume.check_len(options.deep));
    let checked = volume.check(options.deep, |at| bar.set_position(at)).await;
    bar.finish_and_clear();
    let mut found = checked.map_err(failed)?;
    found.problems.retain(|problem| !findings.contains(problem));
    found.problems.splice(0..0, rolled_back.into_iter().chain(findings));
    end(options, uuid_text(&volume.header()), None, found, &backend.uri, context)
}

async fn online(
    options: &CheckOptions,
    backend: &Backend,
    mut server: Control,
    context: &Context,
) -> Result<ExitCode, Failure> {
    let failed = |error| Failure::from(error).of(&backend.uri);
    let uuid = uuid_text(backend.header(context).await?.claimed());
    let status = server.status().await.map_err(failed)?;
    let bar = context.output.progress("checking", 0);
    let checked = server.check(options.deep, |at, of| {
        bar.set_length(of);
        bar.set_position(at);
    });
    let checked = Box::pin(checked).await;
    bar.finish_and_clear();
    end(options, uuid, Some(status.pid), checked.map_err(failed)?, &backend.uri, context)
}

/// A state behind the anchor is a finding: it is looked at all the same.
async fn held_against_anchor(
    backend: &Backend,
    unlocked: &Unlocked,
    context: &Context,
) -> Result<Option<Finding>, Failure> {
    let Some(anchoring) = context.anchoring(&backend.uri) else { return Ok(None) };
    let refusing = Anchoring { on_rollback: OnRollback::Refuse, ..anchoring };
    match Volume::held_against(&*backend.store, unlocked, &refusing).await {
        Ok(()) => Ok(None),
        Err(error @ VolumeError::Rollback { .. }) => {
            Ok(Some(Finding { structure: Structure::Anchor, offset: None, message: error.to_string() }))
        }
        Err(error) => Err(Failure::from(error).of(&backend.uri)),
    }
}

/// Prints the report and gives the exit code.
fn end(
    options: &CheckOptions,
    uuid: String,
    served_by: Option<u32>,
    found: CheckReport,
    backend: &StoreUri,
    context: &Context,
) -> Result<ExitCode, Failure> {
    let failure = failure(&found, backend);
    let (clean, damaged_sectors) = (found.is_clean(), found.damaged_sectors());
    let CheckReport { root, segments, pages, mapped_sectors, log, verified_sectors, gave_way, .. } = found;
    let CheckReport { problems, warnings, damaged, not_listed, .. } = found;
    let tell = |findings: Vec<Finding>| findings.into_iter().map(|found| told(found, backend)).collect();
    let report = Report {
        uuid,
        served_by,
        deep: options.deep,
        clean,
        complete: !gave_way,
        root,
        segments,
        pages,
        mapped_sectors,
        log,
        verified_sectors,
        damaged_sectors,
        damaged,
        problems: tell(problems),
        warnings: tell(warnings),
        not_listed,
    };
    context.output.result(&report, || prose(&report));
    let Some(failure) = failure else { return Ok(ExitCode::SUCCESS) };
    context.trail.failed(&failure);
    context.output.tell(&failure);
    Ok(ExitCode::from(failure.exit))
}

fn failure(found: &CheckReport, backend: &StoreUri) -> Option<Failure> {
    let rolled_back = found.problems.iter().find(|problem| problem.structure == Structure::Anchor);
    let others = found.problems.iter().any(|problem| problem.structure != Structure::Anchor);
    let failure = if others || !found.damaged.is_empty() {
        let text = format!("{backend}: damaged, see the report");
        let next = "restore the backend; until then sealbd check BACKEND --salvage OUT copies all that authenticates";
        Failure { exit: EXIT_INTEGRITY, ..Failure::integrity(text, next) }
    } else if let Some(rollback) = rolled_back {
        let next = next_step(Structure::Anchor);
        Failure { exit: EXIT_ROLLBACK, code: "rollback", ..Failure::integrity(&rollback.message, next) }
    } else if found.gave_way {
        let text = format!(
            "{backend}: the index was not verified to its end: writers needed the space that a check keeps"
        );
        let next = "start the command again when less is written, or when the volume is not served";
        Failure { exit: EXIT_PARTLY, retryable: true, ..Failure::partly(text, next) }
    } else {
        return None;
    };
    Some(failure.of(backend))
}

/// A finding as it is told.
pub(super) fn told(finding: Finding, backend: &StoreUri) -> Told {
    let next = Failure::integrity("", next_step(finding.structure)).naming(&backend.to_string()).hint;
    Told { finding, next }
}

/// What to do about a structure.
fn next_step(structure: Structure) -> &'static str {
    match structure {
        Structure::Header => {
            "sealbd header verify BACKEND; any change of a key writes both copies anew, as sealbd key priority"
        }
        Structure::Anchor => {
            "find out who put the backend back; sealbd serve BACKEND --accept-rollback takes the older state"
        }
        Structure::LiveCount => "report this as a bug, with this report; the data itself can be read",
        Structure::SegmentHeader => {
            "nothing has to be done; when more is damaged, sealbd check BACKEND --salvage OUT"
        }
        Structure::RootRing
        | Structure::Root
        | Structure::SegmentTable
        | Structure::IndexPage
        | Structure::Log => {
            "keep a copy of the backend, then sealbd check BACKEND --salvage OUT, or restore it"
        }
    }
}

impl Told {
    /// One line, and what to do in another.
    pub(super) fn lines(&self, what: &str) -> String {
        let Finding { structure, offset, message } = &self.finding;
        let place = offset.map_or(String::new(), |offset| format!(" at byte {offset} of the store"));
        format!("{what}: {}{place}: {message}\n  next: {}\n", structure.name(), self.next)
    }
}

/// A range of sectors as people are told it.
pub(super) fn range_line(what: &str, range: &DamagedRange) -> String {
    let DamagedRange { first_sector, sectors, offset, bytes } = range;
    format!("{what}: sectors {first_sector}+{sectors}, bytes {offset}+{bytes}\n")
}

fn prose(report: &Report) -> String {
    let mut text = match report.served_by {
        Some(pid) => format!("root {}, checked by process {pid}, which serves the volume\n", report.root),
        None => format!("root {}\n", report.root),
    };
    text.push_str(&format!(
        "{} segment headers, {} index pages, {} sectors in the index\nin the log behind it: {} chunks, {} sectors\n",
        report.segments, report.pages, report.mapped_sectors, report.log.chunks, report.log.sectors
    ));
    if report.deep {
        text.push_str(&format!("{} sectors authenticated\n", report.verified_sectors));
    }
    report.warnings.iter().for_each(|warning| text.push_str(&warning.lines("warning")));
    report.problems.iter().for_each(|problem| text.push_str(&problem.lines("problem")));
    report.damaged.iter().for_each(|range| text.push_str(&range_line("damaged", range)));
    if report.not_listed > 0 {
        text.push_str(&format!("and {} more, which are not listed\n", report.not_listed));
    }
    if !report.complete {
        text.push_str("not complete: the index was not verified to its end\n");
    }
    let warned = match report.warnings.len() {
        0 => String::new(),
        1 => ", 1 warning".into(),
        count => format!(", {count} warnings"),
    };
    match (report.clean, report.damaged_sectors) {
        (true, _) if report.complete => text.push_str(&format!("clean{warned}\n")),
        (true, _) => text.push_str(&format!("clean as far as it was verified{warned}\n")),
        (false, 0) => text.push_str(&format!("DAMAGED{warned}\n")),
        (false, count) => {
            let size = show_size(count * crate::geometry::SECTOR_BYTES);
            text.push_str(&format!("DAMAGED: {count} sectors ({size}) cannot be read{warned}\n"));
        }
    }
    text
}
