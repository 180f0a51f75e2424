//! `sealbd header backup | restore`: a copy of the header in a file, and back.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use keymgmt::source::Purpose;
use serde::Serialize;

use super::arguments::{HeaderCommand, HeaderFileOptions, HeaderRestoreOptions};
use super::context::Context;
use super::header_check;
use super::inspect;
use super::known::{HeaderBackup, Known};
use super::open;
use super::outcome::Failure;
use super::terminal::confirm;
use crate::format::header::{HEADER_LEN, Header, UnverifiedHeader};
use crate::store::Access;
use crate::volume::unlock::{HeaderCopies, read_header, write_header};
use crate::volume::{OpenMode, Volume, VolumeError};

#[derive(Serialize)]
struct Report {
    uuid: String,
    op: &'static str,
    header_generation: u64,
    file: String,
}

/// Runs the command.
pub(super) async fn run(command: HeaderCommand, context: &Context) -> Result<ExitCode, Failure> {
    match command {
        HeaderCommand::Backup(options) => backup(&options, context).await,
        HeaderCommand::Restore(options) => Box::pin(restore(&options, context)).await,
        HeaderCommand::Verify(options) => header_check::verify(&options, context).await,
        HeaderCommand::Diff(options) => header_check::diff(&options, context).await,
        HeaderCommand::Pin(options) => header_check::pin(&options, context).await,
    }
}

async fn backup(options: &HeaderFileOptions, context: &Context) -> Result<ExitCode, Failure> {
    let backend = open::backend(&options.backend.backend, Access::Inspect).await?;
    let copies = backend.header(context).await?;
    let shown = options.file.display();
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&options.file);
    let mut file = file.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Failure::exists(format!("{shown} exists"), "sealbd header backup BACKEND FILE, to a new name")
        }
        _ => {
            Failure::system(&format!("cannot make {shown}"), &error, "name a FILE in a directory that exists")
        }
    })?;
    let written = file.write_all(copies.newest_bytes()).and_then(|()| file.sync_all());
    written.map_err(|error| {
        // What is there is no backup.
        let _ = std::fs::remove_file(&options.file);
        Failure::system(&format!("cannot write {shown}"), &error, "make room there, or name another FILE")
    })?;
    let header = copies.claimed();
    remember(header, &options.file, context);
    let report = Report {
        uuid: inspect::uuid_text(header),
        op: "header-backup",
        header_generation: header.generation,
        file: shown.to_string(),
    };
    context.output.result(&report, || {
        format!(
            "header generation {} of {} is in {shown}\nWhoever has this file and a key of today opens the volume, \
             even after the key was removed: keep it as safe as a key.",
            report.header_generation, report.uuid
        )
    });
    Ok(ExitCode::SUCCESS)
}

/// Remembers where the backup is, so that `erase` can name it. A host that cannot is told and goes on: the
/// backup is what was asked for.
fn remember(header: &Header, file: &Path, context: &Context) {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let made = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let backup =
        HeaderBackup { file: file.display().to_string(), header_generation: header.generation, made };
    let stored = Known::load(header.volume).and_then(|mut known| {
        known.add_backup(backup);
        known.store(header.volume)
    });
    if let Err(failure) = stored {
        context.output.note(&format!("where this backup is will not be remembered: {}", failure.message));
    }
}

async fn restore(options: &HeaderRestoreOptions, context: &Context) -> Result<ExitCode, Failure> {
    let backend = open::backend(&options.backend.backend, Access::ReadWrite).await?;
    let shown = options.file.display();
    let copy = read_backup(&options.file)?;
    context.trail.volume(&backend.uri.to_string(), copy.claimed());
    let managers = context.managers(&options.slot.slots, Purpose::Unlock)?;
    let unlocked = HeaderCopies::of_backup(copy).unlock(context.engine, &managers).await;
    let mut unlocked = unlocked.map_err(|error| Failure::from(error).of(shown.to_string()))?;
    open::opened_by(&unlocked, context);
    let uuid = inspect::uuid_text(&unlocked.header);
    // Both copies may be gone: that is what a backup is for.
    backend.check_uuid(&unlocked.header, context)?;
    let present = match read_header(&*backend.store).await {
        Ok(copies) => {
            if copies.claimed().volume != unlocked.header.volume {
                let other = inspect::uuid_text(copies.claimed());
                return Err(Failure::refused(
                    format!("{shown} is of volume {uuid}, on {} is volume {other}", backend.uri),
                    "sealbd uuid BACKEND tells which volume it is; give the FILE with its backup",
                ));
            }
            copies.claimed().generation
        }
        Err(VolumeError::Store(error)) => return Err(Failure::from(error).of(&backend.uri)),
        Err(_) => 0,
    };
    if !options.yes {
        let generation = unlocked.header.generation;
        confirm(
            &format!(
                "This puts the keyslots of header generation {generation} back on {} (now: generation {present}); \
                 keys removed since then open the volume again, keys added since then do not.",
                backend.uri
            ),
            "YES",
        )?;
    }
    let sized = Volume::keep_sizes(&*backend.store, &mut unlocked).await;
    sized.map_err(|error| Failure::from(error).of(&backend.uri))?;
    let known = Volume::header_generation_of_root(&*backend.store, &unlocked).await?;
    unlocked.header.generation = unlocked.header.generation.max(present).max(known);
    if let Some(anchoring) = context.anchoring(&backend.uri) {
        // A header is not put on a state that is refused behind it.
        let held = Volume::held_against(&*backend.store, &unlocked, &anchoring).await;
        held.map_err(|error| Failure::from(error).of(&backend.uri))?;
    }
    context.trail.begin()?;
    write_header(&*backend.store, &mut unlocked.header, &unlocked.keys).await?;
    let proved = read_header(&*backend.store).await?.unlock(context.engine, &managers).await?;
    let header = proved.header.clone();
    context.open(&backend, proved, OpenMode::ReadWrite).await?.close().await?;
    let report =
        Report { uuid, op: "header-restore", header_generation: header.generation, file: shown.to_string() };
    context
        .output
        .result(&report, || format!("restored as header generation {}, tested: opens", header.generation));
    Ok(ExitCode::SUCCESS)
}

/// Reads a backup; nothing in it is authenticated yet.
pub(super) fn read_backup(path: &Path) -> Result<UnverifiedHeader, Failure> {
    let shown = path.display();
    let failed = |error: std::io::Error| {
        Failure::system(&format!("cannot read {shown}"), &error, "name the FILE that header backup made")
    };
    let mut bytes = Vec::with_capacity(HEADER_LEN + 1);
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(HEADER_LEN as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    UnverifiedHeader::decode(&bytes).map_err(|error| {
        Failure::integrity(format!("{shown}: {error}"), "name a FILE that header backup made")
    })
}
