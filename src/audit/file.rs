//! The log as a file: opened for appending by one process at a time, read line by line within bounds.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::AuditError;
use super::record::LINE_MAX;

/// How long to wait for others who append: hundreds of records on a slow disk.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(10);
/// Between two tries: about what a record takes to become durable.
const LOCK_TRY: Duration = Duration::from_millis(2);
/// How often a log may be rotated away while it is being opened.
const OPEN_TRIES_MAX: usize = 100;
/// Bytes looked at in one step when lines are counted from the end.
const STEP: usize = 64 * 1024;

/// What a lock is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// Nobody appends meanwhile.
    Read,
    /// Nobody reads the end or appends meanwhile.
    Append,
}

impl AuditError {
    pub(super) fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        move |cause| Self::Io { path: path.to_owned(), cause }
    }

    pub(super) fn not_a_log(path: &Path, why: impl Into<String>) -> Self {
        Self::NotALog { path: path.to_owned(), why: why.into() }
    }
}

/// Opens the log for appending, locked until it is closed; makes it when it is not there (mode 0600, whose
/// directory entry is durable on return). A log that was rotated away while this waited is left alone.
pub(super) fn open_locked(path: &Path) -> Result<File, AuditError> {
    let failed = AuditError::io(path);
    for _ in 0..OPEN_TRIES_MAX {
        let file = match options().append(true).open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => make(path),
            other => other,
        };
        let file = match file {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                return Err(AuditError::not_a_log(path, "a symbolic link, which is not followed"));
            }
            Err(error) => return Err(failed(error)),
        };
        let metadata = file.metadata().map_err(&failed)?;
        if !metadata.is_file() {
            return Err(AuditError::not_a_log(path, "not a regular file"));
        }
        if metadata.mode() & 0o022 != 0 {
            return Err(AuditError::not_a_log(path, "others may write to it; chmod go-w"));
        }
        lock(&file, path, Hold::Append)?;
        let now = std::fs::symlink_metadata(path);
        if now.is_ok_and(|now| now.ino() == metadata.ino() && now.dev() == metadata.dev()) {
            return Ok(file);
        }
    }
    Err(AuditError::Locked(path.to_owned()))
}

/// Never follows a link and never waits for the other end of a pipe.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

fn make(path: &Path) -> io::Result<File> {
    let file = options().append(true).create_new(true).mode(0o600).open(path)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(file)
}

/// Opens a log for reading its end, locked; `None` when there is none.
pub(super) fn open_end(path: &Path) -> Result<Option<File>, AuditError> {
    match options().open(path) {
        Ok(file) if file.metadata().is_ok_and(|metadata| metadata.is_file()) => {
            lock(&file, path, Hold::Read)?;
            Ok(Some(file))
        }
        Ok(_) => Err(AuditError::not_a_log(path, "not a regular file")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(AuditError::io(path)(error)),
    }
}

/// Opens a log for reading what is in it now; a line that is just being written is waited for. What is no
/// regular file, like a pipe of unpacked logs, is read to its end.
pub(super) fn open_whole(path: &Path) -> Result<Box<dyn Read>, AuditError> {
    let failed = AuditError::io(path);
    let file = File::open(path).map_err(&failed)?;
    if !file.metadata().map_err(&failed)?.is_file() {
        return Ok(Box::new(file));
    }
    lock(&file, path, Hold::Read)?;
    let len = file.metadata().map_err(&failed)?.len();
    unlock(&file);
    Ok(Box::new(file.take(len)))
}

/// Waits for the lock of the whole file, for [`LOCK_WAIT_MAX`] at most.
fn lock(file: &File, path: &Path, hold: Hold) -> Result<(), AuditError> {
    let kind = if hold == Hold::Append { libc::F_WRLCK } else { libc::F_RDLCK };
    let started = Instant::now();
    loop {
        match set_lock(file, kind) {
            Ok(()) => return Ok(()),
            Err(Errno::EAGAIN | Errno::EACCES) if started.elapsed() >= LOCK_WAIT_MAX => {
                return Err(AuditError::Locked(path.to_owned()));
            }
            Err(Errno::EAGAIN | Errno::EACCES | Errno::EINTR) => std::thread::sleep(LOCK_TRY),
            Err(errno) => return Err(AuditError::io(path)(errno.into())),
        }
    }
}

fn unlock(file: &File) {
    // The lock ends with the file at the latest.
    let _ = set_lock(file, libc::F_UNLCK);
}

/// An open-file-description lock: of this opening, whatever else the process has open.
fn set_lock(file: &File, kind: libc::c_int) -> Result<(), Errno> {
    let whole = libc::flock {
        l_type: libc::c_short::try_from(kind).expect("lock types are small numbers"),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).expect("SEEK_SET is 0"),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole)).map(|_| ())
}

/// Lines of a log, each with its line feed, in pieces of at most [`LINE_MAX`] bytes: a piece without a line
/// feed is the unfinished end, or a part of a line that is longer than any record.
pub struct LineReader<R> {
    inner: BufReader<R>,
    line: Vec<u8>,
}

impl<R: Read> LineReader<R> {
    /// Reads from `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner: BufReader::new(inner), line: Vec::new() }
    }

    /// The next piece; `None` at the end, where a later call may find more.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn piece(&mut self) -> io::Result<Option<&[u8]>> {
        self.line.clear();
        let bound = LINE_MAX as u64;
        self.inner.by_ref().take(bound).read_until(b'\n', &mut self.line)?;
        Ok((!self.line.is_empty()).then_some(&self.line))
    }
}

/// Where the last `lines` lines of a file of `len` bytes begin; an unfinished one counts.
///
/// # Errors
/// Those of the file.
pub fn offset_of_last(file: &File, len: u64, lines: u64) -> io::Result<u64> {
    if lines == 0 {
        return Ok(len);
    }
    let (mut end, mut found) = (len, 0);
    let mut buffer = vec![0; STEP];
    while end > 0 {
        let step = usize::try_from(end.min(STEP as u64)).unwrap_or(STEP);
        let start = end - step as u64;
        file.read_exact_at(&mut buffer[..step], start)?;
        for at in (0..step).rev() {
            // The line feed at the very end ends the last line; it begins none.
            if buffer[at] == b'\n' && start + at as u64 + 1 != len {
                found += 1;
                if found == lines {
                    return Ok(start + at as u64 + 1);
                }
            }
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_are_counted_from_the_end_over_any_distance() {
        let mut file = tempfile::tempfile().unwrap();
        let long = [vec![b'x'; STEP + 7], b"\n".to_vec()].concat();
        file.write_all(&[b"one\n", &long[..], b"two\nthree"].concat()).unwrap();
        let len = file.metadata().unwrap().len();
        let from = |lines| offset_of_last(&file, len, lines).unwrap();
        assert_eq!((from(0), from(1), from(2)), (len, len - 5, len - 9));
        assert_eq!((from(3), from(4), from(5)), (4, 0, 0));
        file.write_all(b"\n").unwrap();
        assert_eq!(offset_of_last(&file, len + 1, 1).unwrap(), len - 5);
    }

    #[test]
    fn a_line_without_end_costs_no_more_memory_than_the_longest_record() {
        let mut reader = LineReader::new(io::repeat(b'x').take(10 * LINE_MAX as u64 + 1));
        let mut pieces = 0;
        while let Some(piece) = reader.piece().unwrap() {
            assert!(piece.len() <= LINE_MAX);
            pieces += 1;
        }
        assert_eq!(pieces, 11);
    }
}
