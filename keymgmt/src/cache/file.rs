//! The files of the cache: each is put in its place whole, or not at all, and only its owner may read it.
//!
//! Writers of one entry do not hinder each other: each writes a file of its own and renames it, and the last
//! rename stands. What a crash left unfinished, and entries that were good for nobody for a long time, go when
//! something is written.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rand::TryRng;
use rand::rngs::SysRng;
use rustix::fs::OFlags;

use super::{ENTRY_LEN, TTL_MAX};

/// A directory that only we write to.
pub(super) struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Makes the directory where it is missing.
    ///
    /// # Errors
    /// When it cannot be made, is no directory, is another user's, or can be written by others.
    pub(super) fn prepare(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let metadata = path.symlink_metadata()?;
        if !metadata.is_dir() {
            return Err(io::Error::other("not a directory"));
        }
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::other("belongs to another user"));
        }
        if metadata.mode() & 0o022 != 0 {
            return Err(io::Error::other("can be changed by others; next: chmod 700"));
        }
        Ok(Self { path: path.to_owned() })
    }

    /// Puts an entry in place of the one before.
    ///
    /// # Errors
    /// Those of the file system; the entry before stands then.
    pub(super) fn write(&self, name: &str, entry: &[u8]) -> io::Result<()> {
        self.sweep()?;
        let mut random = [0; 8];
        SysRng.try_fill_bytes(&mut random).map_err(io::Error::other)?;
        let unfinished = self.path.join(format!("{name}.{:016x}", u64::from_le_bytes(random)));
        let put = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
            file.write_all(entry)?;
            file.sync_all()?;
            std::fs::rename(&unfinished, self.path.join(name))?;
            File::open(&self.path)?.sync_all()
        };
        put().inspect_err(|_| {
            // Best effort: the error that is told is the first one.
            let _ = std::fs::remove_file(&unfinished);
        })
    }

    /// Reads an entry, if there is one.
    ///
    /// # Errors
    /// Those of the file system; also when it is not a file of the right size that is ours alone.
    pub(super) fn read(&self, name: &str) -> io::Result<Option<[u8; ENTRY_LEN]>> {
        // Neither a link nor a FIFO, which would block here, is ours.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(self.path.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if !is_entry(&file.metadata()?) {
            return Err(io::Error::other("not a file that the cache made"));
        }
        let mut entry = [0; ENTRY_LEN];
        file.read_exact(&mut entry)?;
        Ok(Some(entry))
    }

    /// Removes every file whose name begins so: entries, and what was to become one.
    ///
    /// # Errors
    /// Those of the file system, after all that could be removed are.
    pub(super) fn remove(&self, names: &str) -> io::Result<()> {
        self.remove_where(|name, _| name.starts_with(names))
    }

    /// Removes what is older than any entry may be.
    fn sweep(&self) -> io::Result<()> {
        let is_old = |metadata: &Metadata| {
            metadata.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > TTL_MAX))
        };
        self.remove_where(|name, metadata| is_ours(name) && is_old(metadata))
    }

    fn remove_where(&self, is_meant: impl Fn(&str, &Metadata) -> bool) -> io::Result<()> {
        let mut result = Ok(());
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            let (name, metadata) = (entry.file_name(), entry.metadata());
            let meant = metadata.is_ok_and(|data| name.to_str().is_some_and(|name| is_meant(name, &data)));
            match meant.then(|| std::fs::remove_file(entry.path())) {
                // Somebody else removed or renamed it.
                Some(Err(error)) if error.kind() != ErrorKind::NotFound => result = Err(error),
                _ => {}
            }
        }
        result
    }
}

fn is_entry(metadata: &Metadata) -> bool {
    metadata.is_file() && metadata.len() == ENTRY_LEN as u64 && metadata.mode() & 0o077 == 0
}

/// Whether the cache gives such names: two times 32 digits, and more behind a dot while it is unfinished.
fn is_ours(name: &str) -> bool {
    let entry = name.split_once('.').map_or(name, |(entry, _)| entry);
    let is_hex = |part: &str| part.len() == 32 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    entry.split_once('-').is_some_and(|(slot, rest)| is_hex(slot) && is_hex(rest))
}
