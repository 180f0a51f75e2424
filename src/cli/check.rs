//! `sealbd check`: verifies a volume that is not in use.

use std::process::ExitCode;

use keymgmt::source::Purpose;

use super::arguments::CheckOptions;
use super::context::Context;
use super::open;
use super::outcome::{EXIT_INTEGRITY, Failure};
use crate::store::Access;
use crate::volume::{OpenMode, Volume};

/// Runs the command: exit 0 when nothing is wrong, 8 when something is.
pub(super) async fn run(options: &CheckOptions, context: &Context) -> Result<ExitCode, Failure> {
    let backend = open::backend(&options.backend.backend, Access::ReadOnly).await?;
    let managers = context.managers(&options.slot.slots, Purpose::Unlock)?;
    let unlocked = backend.unlock(&managers, context).await?;
    let volume = Volume::open(backend.store.clone(), unlocked, OpenMode::ReadOnly)
        .await
        .map_err(|error| Failure::from(error).of(&backend.uri))?;
    let bar = context.output.progress("checking", volume.header().export_bytes);
    let report = volume.check(options.deep, |at| bar.set_position(at)).await;
    bar.finish_and_clear();
    let report = report.map_err(|error| Failure::from(error).of(&backend.uri))?;
    context.output.result(&report, || {
        let mut text = format!("{} index pages, {} sectors mapped", report.pages, report.mapped_sectors);
        if options.deep {
            text.push_str(&format!(", {} sectors authenticated", report.verified_sectors));
        }
        text.push('\n');
        report.problems.iter().for_each(|problem| text.push_str(&format!("problem: {problem}\n")));
        for (start, count) in &report.damaged {
            text.push_str(&format!("damaged: sectors {start}+{count}\n"));
        }
        text.push_str(if report.is_clean() { "clean\n" } else { "DAMAGED\n" });
        text
    });
    if report.is_clean() {
        return Ok(ExitCode::SUCCESS);
    }
    let failure = Failure::integrity(
        format!("{}: damaged, see the report", backend.uri),
        "restore the backend; until then sealbd serve BACKEND --slot SPEC --read-only gives what still reads",
    );
    let failure = failure.of(&backend.uri);
    context.trail.failed(&failure);
    context.output.tell(&failure);
    Ok(ExitCode::from(EXIT_INTEGRITY))
}
