//! Finding configuration files, and taking only those that nobody else can have written.

use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::section::Problem;

/// The configuration of the system.
const SYSTEM: &str = "/etc/sealbd/sealbd.toml";
/// Longest configuration file in bytes: some ten thousand volumes.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Most files of one directory: a volume of its own in each, and room to spare.
const FILES_MAX: usize = 4096;

/// A configuration file, read.
pub(super) struct ConfigFile {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

/// The main file and those of the directory beside it, in the order of their names.
///
/// `asked` is what `--config` says, `variable` what `SEALBD_CONFIG` holds; when that is empty there is no
/// configuration. The system's own file is left out where this user may not read it: nothing in it is for
/// them.
///
/// # Errors
/// Every file that cannot be read or is not to be trusted.
pub(super) fn read_all(
    asked: Option<&Path>,
    variable: Option<&OsStr>,
) -> Result<Vec<ConfigFile>, Vec<Problem>> {
    let (main, must_be_there) = match (asked, variable) {
        (Some(path), _) => (path.to_owned(), true),
        (None, Some(path)) if path.is_empty() => return Ok(Vec::new()),
        (None, Some(path)) => (PathBuf::from(path), true),
        (None, None) => (PathBuf::from(SYSTEM), false),
    };
    let first = match open(&main) {
        Err(error) if !must_be_there => match error.kind() {
            ErrorKind::NotFound | ErrorKind::PermissionDenied => return Ok(Vec::new()),
            _ => Err(wrong(&main, &error.to_string())),
        },
        Err(error) => Err(wrong(&main, &error.to_string())),
        Ok(file) => read(main.clone(), file),
    };
    let mut problems = Vec::new();
    let mut files = Vec::new();
    let mut keep = |result: Result<ConfigFile, Problem>| match result {
        Ok(file) => files.push(file),
        Err(problem) => problems.push(problem),
    };
    keep(first);
    match beside(&main) {
        Ok(others) => others.into_iter().for_each(|path| {
            keep(open(&path).map_err(|error| wrong(&path, &error.to_string())).and_then(|f| read(path, f)));
        }),
        Err(problem) => keep(Err(problem)),
    }
    if problems.is_empty() { Ok(files) } else { Err(problems) }
}

/// The files `NAME.d/*.toml` beside `NAME.toml`, sorted.
fn beside(main: &Path) -> Result<Vec<PathBuf>, Problem> {
    let directory = main.with_extension("d");
    if directory == main {
        return Ok(Vec::new());
    }
    let entries = match std::fs::read_dir(&directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(wrong(&directory, &error.to_string())),
        Ok(entries) => entries,
    };
    let failed = |error: std::io::Error| wrong(&directory, &error.to_string());
    trusted(&std::fs::metadata(&directory).map_err(failed)?).map_err(|why| wrong(&directory, &why))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|ending| ending == "toml") {
            found.push(path);
        }
        if found.len() > FILES_MAX {
            return Err(wrong(&directory, &format!("there are more than {FILES_MAX} files in it")));
        }
    }
    found.sort();
    Ok(found)
}

fn open(path: &Path) -> std::io::Result<File> {
    // A FIFO would otherwise block here before it can be refused.
    OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)
}

/// Reads what was opened, so that it cannot be exchanged between the look at its owner and the reading.
fn read(path: PathBuf, file: File) -> Result<ConfigFile, Problem> {
    let failed = |error: std::io::Error| wrong(&path, &error.to_string());
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(wrong(&path, "is not a regular file"));
    }
    trusted(&metadata).map_err(|why| wrong(&path, &why))?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(wrong(&path, "is longer than 4 MiB"));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(ConfigFile { path, text }),
        Err(_) => Err(wrong(&path, "is not UTF-8")),
    }
}

/// It names the key managers and volumes that are trusted, so only root and we ourselves may have written it.
fn trusted(metadata: &Metadata) -> Result<(), String> {
    let own = rustix::process::geteuid().as_raw();
    if metadata.uid() != 0 && metadata.uid() != own {
        return Err(format!("belongs to user {}; it must belong to root or to user {own}", metadata.uid()));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(format!(
            "can be written by others (mode {mode:04o}), and says what is trusted; chmod go-w mends it"
        ));
    }
    Ok(())
}

fn wrong(path: &Path, text: &str) -> Problem {
    Problem { file: path.to_owned(), line: None, text: text.to_owned() }
}
