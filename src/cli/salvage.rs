//! `sealbd check --salvage OUT`: a raw copy of everything that authenticates, and a list of what does not.
//!
//! OUT is whole or not there: it is written as `OUT.part`, which gets its name at the end and goes when
//! anything fails or the command is interrupted. Nothing is ever written to the backend.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::Serialize;

use super::check::{Told, range_line, told};
use super::context::Context;
use super::inspect::uuid_text;
use super::interrupt;
use super::open::Backend;
use super::outcome::Failure;
use super::size::show_size;
use crate::geometry::SECTOR_BYTES;
use crate::volume::check::{DamagedRange, Finding};
use crate::volume::salvage::{Copied, Salvaged};

#[derive(Serialize)]
struct Report {
    uuid: String,
    out: String,
    /// Whether OUT holds all that was ever flushed.
    complete: bool,
    size: u64,
    copied_bytes: u64,
    /// The root that the volume was opened by.
    root: u64,
    /// The newest one that the backend names.
    newest_root: u64,
    /// When the segment was begun in which that root lies, RFC 3339: the root is not older.
    #[serde(skip_serializing_if = "Option::is_none")]
    root_begun: Option<String>,
    lost_bytes: u64,
    lost: Vec<DamagedRange>,
    problems: Vec<Told>,
    not_listed: u64,
}

/// A served volume is read through its server.
pub(super) fn served(backend: &Backend, out: &Path) -> Failure {
    Failure::in_use(
        format!("{}: it is served, so nothing is to be salvaged into {}", backend.uri, out.display()),
        "copy it through its server with an NBD client such as nbdcopy, or stop the server first",
    )
}

/// Copies the volume.
pub(super) async fn run(
    out: &Path,
    salvaged: Salvaged,
    rolled_back: Option<Finding>,
    backend: &Backend,
    context: &Context,
) -> Result<ExitCode, Failure> {
    let Salvaged { volume, findings, root, newest, begun } = salvaged;
    let size = volume.header().export_bytes;
    let list = beside(out, ".damaged.json");
    for taken in [out, &list] {
        if taken.symlink_metadata().is_ok() {
            return Err(exists(taken));
        }
    }
    let part = Part::create(out, size)?;
    context.output.note(&format!("{} will hold plaintext (mode 0600)", out.display()));
    if root != newest {
        context.output.note(&format!(
            "root {newest} cannot be used: this is the state of root {root}{}, with what of the log follows it",
            begun.map_or(String::new(), |begun| format!(", not older than {}", time(begun)))
        ));
    }
    let bar = context.output.progress("copying", size);
    let copying = volume.salvage(|at| bar.set_position(at), |at, bytes| part.file.write_all_at(bytes, at));
    let interrupted = interrupt::taken().map_err(|error| {
        Failure::system("cannot handle signals", &error, "ulimit -n shows how many files may be open")
    })?;
    let copied = tokio::select! {
        copied = copying => copied,
        signal = interrupted => {
            drop(part);
            bar.finish_and_clear();
            interrupt::end(signal)
        }
    };
    bar.finish_and_clear();
    let copied = copied.map_err(|error| Failure::from(error).of(&backend.uri))?;
    let Copied { sectors, lost, not_listed } = copied;
    part.complete()?;
    let problems: Vec<Finding> = rolled_back.into_iter().chain(findings).collect();
    let complete = problems.is_empty() && lost.is_empty() && root == newest;
    let report = Report {
        uuid: uuid_text(&volume.header()),
        out: out.display().to_string(),
        complete,
        size,
        copied_bytes: sectors * SECTOR_BYTES,
        root,
        newest_root: newest,
        root_begun: begun.map(time),
        lost_bytes: lost.iter().map(|range| range.bytes).sum(),
        lost,
        problems: problems.into_iter().map(|finding| told(finding, &backend.uri)).collect(),
        not_listed,
    };
    if !complete {
        write_list(&list, &report)?;
    }
    context.output.result(&report, || prose(&report, &list));
    if complete {
        return Ok(ExitCode::SUCCESS);
    }
    let failure = Failure::integrity(
        format!("{}: not all of it could be copied", backend.uri),
        format!("{} lists what is missing; take that from a backup", list.display()),
    );
    context.trail.failed(&failure);
    context.output.tell(&failure);
    Ok(ExitCode::from(failure.exit))
}

/// The copy while it is made; goes when it is dropped.
struct Part {
    file: File,
    path: PathBuf,
    out: PathBuf,
    done: bool,
}

impl Part {
    fn create(out: &Path, size: u64) -> Result<Self, Failure> {
        let path = beside(out, ".part");
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => exists(&path),
            _ => failed("cannot make", &path, &error),
        })?;
        let part = Self { file, path, out: out.to_owned(), done: false };
        part.file.set_len(size).map_err(|error| failed("cannot size", &part.path, &error))?;
        Ok(part)
    }

    /// Makes it durable and gives it its name.
    fn complete(mut self) -> Result<(), Failure> {
        self.file.sync_all().map_err(|error| failed("cannot write", &self.path, &error))?;
        let renamed = renameat_with(CWD, &self.path, CWD, &self.out, RenameFlags::NOREPLACE);
        let renamed = match renamed {
            // A file system that cannot rename so.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => match self.out.symlink_metadata() {
                Ok(_) => Err(ErrorKind::AlreadyExists.into()),
                Err(_) => std::fs::rename(&self.path, &self.out),
            },
            other => other.map_err(std::io::Error::from),
        };
        renamed.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => exists(&self.out),
            _ => failed("cannot name", &self.out, &error),
        })?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.done {
            // What is left is told by whoever starts the command again.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn beside(out: &Path, ending: &str) -> PathBuf {
    let mut name: OsString = out.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn exists(path: &Path) -> Failure {
    Failure::exists(format!("{} exists", path.display()), "sealbd check BACKEND --salvage OUT, to a new name")
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::system(
        &format!("{what} {}", path.display()),
        error,
        "--salvage OUT, in a directory with room for the volume",
    )
}

fn write_list(list: &Path, report: &Report) -> Result<(), Failure> {
    let text = serde_json::to_vec_pretty(report).expect("plain fields");
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(list);
    let written = file.and_then(|mut file| std::io::Write::write_all(&mut file, &text));
    written.map_err(|error| failed("cannot write", list, &error))
}

fn time(seconds: u64) -> String {
    let at = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(seconds));
    at.map_or_else(|| "?".to_owned(), |at| humantime::format_rfc3339_seconds(at).to_string())
}

fn prose(report: &Report, list: &Path) -> String {
    let mut text =
        format!("{}: {} of data, from root {}\n", report.out, show_size(report.copied_bytes), report.root);
    report.problems.iter().for_each(|problem| text.push_str(&problem.lines("problem")));
    report.lost.iter().for_each(|range| text.push_str(&range_line("left out", range)));
    if report.not_listed > 0 {
        text.push_str(&format!("and {} more ranges, which are not listed\n", report.not_listed));
    }
    match report.complete {
        true => text.push_str("complete\n"),
        false => text.push_str(&format!(
            "INCOMPLETE: {} left out; {} has the list\n",
            show_size(report.lost_bytes),
            list.display()
        )),
    }
    text
}
