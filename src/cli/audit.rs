//! `sealbd audit`: shows the audit log and verifies it (docs/AUDIT.md).

use std::fs::File;
use std::io::{ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use super::arguments::{AuditCommand, AuditTailOptions, AuditVerifyOptions};
use super::context::Context;
use super::outcome::Failure;
use super::output::Output;
use crate::audit::{
    AuditError, ChangeKind, Hash, Key, LINE_MAX, LineReader, Record, Summary, offset_of_last, verify_files,
};

/// How often `tail --follow` looks for new records.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);

/// Runs the command.
pub(super) async fn run(command: AuditCommand, context: &Context) -> Result<ExitCode, Failure> {
    let default = || context.trail.settings().path.clone();
    match command {
        AuditCommand::Tail(options) => {
            tail(&options.file.clone().unwrap_or_else(default), &options, context.output).await
        }
        AuditCommand::Verify(mut options) => {
            if options.files.is_empty() {
                options.files.push(default());
            }
            verify(&options, context.output)
        }
    }
}

fn verify(options: &AuditVerifyOptions, output: Output) -> Result<ExitCode, Failure> {
    #[derive(Serialize)]
    struct Report {
        files: Vec<String>,
        records: u64,
        first_seq: u64,
        /// What the first record is chained to.
        from: Hash,
        last_seq: u64,
        last_hash: Hash,
        recovered: u64,
    }
    let verified = verify_files(&options.files, options.from, options.to).map_err(unreadable)?;
    let summary = verified.map_err(|(path, broken)| {
        Failure::integrity(
            format!("{}: {broken}", path.display()),
            "keep the file as it is, and compare it with its backups and with the journal's records",
        )
    })?;
    let Summary { records, first_seq, from, last_seq, last, recovered } = summary;
    let files = options.files.iter().map(|path| path.display().to_string()).collect();
    let report = Report { files, records, first_seq, from, last_seq, last_hash: last, recovered };
    output.result(&report, || prose(&report.files, &summary, options.from.is_some()));
    Ok(ExitCode::SUCCESS)
}

fn prose(files: &[String], summary: &Summary, is_anchored: bool) -> String {
    let Summary { records, first_seq, from, last_seq, last, recovered } = summary;
    let mut text = format!("{}: {records} records, every one follows the one before\n", files.join(", "));
    if *records == 0 {
        return text;
    }
    if *from != Hash::NONE && !is_anchored {
        text.push_str(&format!(
            "begins with record {first_seq}, behind one with the hash {from}: name the file before it, too, or --from\n"
        ));
    }
    if *recovered > 0 {
        text.push_str(&format!("torn by a crash and continued: {recovered} times\n"));
    }
    text.push_str(&format!(
        "last record {last_seq}, hash {last}\n(whoever may write to the log can cut its end off unseen: keep this hash elsewhere, for --to)\n"
    ));
    text
}

fn unreadable(error: AuditError) -> Failure {
    let hint = "sealbd audit verify FILE names another log; SEALBD_AUDIT names the usual one";
    match error {
        AuditError::Io { path, cause } => {
            Failure::system(&format!("cannot read {}", path.display()), &cause, hint)
        }
        error => Failure::usage(error.to_string(), hint),
    }
}

/// A log that is being shown.
struct Shown {
    reader: LineReader<File>,
    /// Which file it is, whatever its name is by now.
    identity: (u64, u64),
    /// The beginning of a line that is still being written.
    begun: Vec<u8>,
}

impl Shown {
    fn open(path: &Path, lines: Option<u64>) -> std::io::Result<Self> {
        let mut file = File::open(path)?;
        let metadata = file.metadata()?;
        if let Some(lines) = lines.filter(|_| metadata.is_file()) {
            let offset = offset_of_last(&file, metadata.len(), lines)?;
            file.seek(SeekFrom::Start(offset))?;
        }
        let identity = (metadata.dev(), metadata.ino());
        Ok(Self { reader: LineReader::new(file), identity, begun: Vec::new() })
    }

    /// Prints what is there by now; `false` when the reader of our output has gone.
    fn print(&mut self, output: Output) -> std::io::Result<bool> {
        while let Some(piece) = self.reader.piece()? {
            self.begun.extend(piece);
            // A line that is longer than any record is shown in parts.
            if self.begun.ends_with(b"\n") || self.begun.len() >= LINE_MAX {
                let line = std::mem::take(&mut self.begun);
                if !output.line(&shown(&line, output)) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Prints a last line that has no end.
    fn finish(&mut self, output: Output) {
        if !self.begun.is_empty() {
            output.line(&shown(&std::mem::take(&mut self.begun), output));
        }
    }
}

async fn tail(path: &Path, options: &AuditTailOptions, output: Output) -> Result<ExitCode, Failure> {
    let failed = |cause| unreadable(AuditError::Io { path: path.to_owned(), cause });
    let mut log = Shown::open(path, Some(options.lines)).map_err(failed)?;
    loop {
        if !log.print(output).map_err(failed)? {
            return Ok(ExitCode::SUCCESS);
        }
        if !options.follow {
            log.finish(output);
            return Ok(ExitCode::SUCCESS);
        }
        match std::fs::metadata(path) {
            Ok(metadata) if (metadata.dev(), metadata.ino()) != log.identity => {
                // Rotated away; what was written to the old file until now comes first.
                log.print(output).map_err(failed)?;
                log.finish(output);
                log = Shown::open(path, None).map_err(failed)?;
            }
            Ok(_) => tokio::time::sleep(FOLLOW_EVERY).await,
            // The new one is not there yet.
            Err(error) if error.kind() == ErrorKind::NotFound => tokio::time::sleep(FOLLOW_EVERY).await,
            Err(error) => return Err(failed(error)),
        }
    }
}

/// A line of the log as it is shown.
fn shown(line: &[u8], output: Output) -> String {
    match (Record::decode(line), output.is_json()) {
        // Its one spelling is printable.
        (Ok(_), true) => String::from_utf8_lossy(line).trim_end().to_owned(),
        (Ok(record), false) => row(&record),
        (Err(why), true) => json!({ "not_a_record": why.to_string(), "bytes": line.len() }).to_string(),
        (Err(why), false) => format!("(a line of {} bytes {why})", line.len()),
    }
}

/// A record as a row for people.
fn row(record: &Record) -> String {
    let (who, event) = (&record.who, &record.event);
    let user = who.user.as_ref().map_or_else(|| who.uid.to_string(), ToString::to_string);
    let mut text = format!(
        "{}  {:>5}  {:<14} {:<9} {user}@{}",
        record.time(),
        record.seq,
        event.verb.as_str(),
        event.outcome.word(),
        who.host
    );
    let mut more = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            text.push_str(&format!("  {name}{value}"));
        }
    };
    more("sudo by uid ", who.sudo_uid.map(|uid| uid.to_string()));
    more("for uid ", who.peer_uid.map(|uid| uid.to_string()));
    more("", event.error.as_ref().map(|error| format!("{error} (exit {})", event.exit.unwrap_or_default())));
    more("", event.volume.map(|volume| volume.to_string()));
    more("on ", event.backend.as_ref().map(ToString::to_string));
    more("replaces ", event.replaces.map(|volume| volume.to_string()));
    more("slot ", event.key.as_ref().map(key));
    for change in &event.changes {
        let sign = match change.change {
            ChangeKind::Added => "+",
            ChangeKind::Removed => "-",
        };
        more(sign, Some(format!("slot {}", key(&change.key))));
    }
    more("request ", Some(event.request.to_string()));
    text
}

fn key(key: &Key) -> String {
    let mut text = format!("{} {}", key.slot, key.manager);
    if let Some(id) = &key.key_id {
        text.push_str(&format!(" {id}"));
    }
    if let Some(version) = &key.key_version {
        text.push_str(&format!(" v{version}"));
    }
    text
}
