//! What this host remembers of a volume: its pin, and where backups of its header went.
//!
//! One JSON file per volume below the state directory: `$SEALBD_STATE_DIRECTORY`, else `$STATE_DIRECTORY`
//! (systemd.exec(5)), else /var/lib/sealbd for root and `$XDG_STATE_HOME/sealbd` for others. A file that
//! cannot be read is an error and never "nothing known": whoever could damage it could unpin a volume.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use super::outcome::Failure;
use crate::volume::VolumeError;
use crate::volume::unlock::Unlocked;

/// Longest file; each backup takes about 300 bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Backups that are remembered; the oldest are forgotten first.
const BACKUPS_MAX: usize = 1000;

/// What is known of one volume.
#[derive(Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Known {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pin: Option<Pin>,
    #[serde(default)]
    pub(super) header_backups: Vec<HeaderBackup>,
}

/// What the volume must be.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(super) struct Pin {
    /// No header below this generation is taken.
    pub(super) header_generation: u64,
    /// The commitment to the data key (docs/FORMAT.md §2), hex: another key is another volume. Stands in
    /// every keyslot, so it is no secret.
    pub(super) key_commitment: String,
}

/// A copy of the header that somebody keeps.
#[derive(Serialize, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub(super) struct HeaderBackup {
    pub(super) file: String,
    pub(super) header_generation: u64,
    /// RFC 3339, UTC.
    pub(super) made: String,
}

impl Pin {
    pub(super) fn of(unlocked: &Unlocked) -> Self {
        let key_commitment = unlocked.keys.commit().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { header_generation: unlocked.header.generation, key_commitment }
    }
}

impl Known {
    /// What is known of a volume; empty when it was never heard of.
    pub(super) fn load(volume: [u8; 16]) -> Result<Self, Failure> {
        let path = path_of(volume);
        let failed = |why: String| {
            Failure::refused(
                format!("what this host knows of the volume cannot be read: {}: {why}", path.display()),
                "restore the file, or remove it to forget the volume's pin",
            )
        };
        let metadata = match fs::metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            other => other.map_err(|error| failed(error.to_string()))?,
        };
        if metadata.len() > FILE_BYTES_MAX {
            return Err(failed(format!("{} bytes are too many", metadata.len())));
        }
        let text = fs::read(&path).map_err(|error| failed(error.to_string()))?;
        serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))
    }

    /// Stores it, whole or not at all.
    pub(super) fn store(&self, volume: [u8; 16]) -> Result<(), Failure> {
        let path = path_of(volume);
        write_whole(&path, &serde_json::to_vec_pretty(self).expect("plain fields")).map_err(|error| {
            Failure::system(
                &format!("cannot write {}", path.display()),
                &error,
                "SEALBD_STATE_DIRECTORY=DIR, one that you may write to",
            )
        })
    }

    /// Remembers a backup.
    pub(super) fn add_backup(&mut self, backup: HeaderBackup) {
        self.header_backups.retain(|known| known.file != backup.file);
        self.header_backups.push(backup);
        let surplus = self.header_backups.len().saturating_sub(BACKUPS_MAX);
        self.header_backups.drain(..surplus);
    }
}

/// Holds an authentic header against the pin, if there is one, and moves the pin on to a newer header.
pub(super) fn check_pin(unlocked: &Unlocked) -> Result<(), Failure> {
    let volume = unlocked.header.volume;
    let mut known = Known::load(volume)?;
    let Some(pin) = &known.pin else { return Ok(()) };
    let now = Pin::of(unlocked);
    if now.key_commitment != pin.key_commitment {
        return Err(Failure::integrity(
            "this is not the volume that was pinned: its data key is another one",
            "find out who exchanged it; sealbd header pin BACKEND --remove forgets the pin",
        ));
    }
    let (found, wanted) = (now.header_generation, pin.header_generation);
    if found < wanted {
        return Err(VolumeError::HeaderRollback { found, known: wanted }.into());
    }
    if found > wanted {
        known.pin = Some(now);
        known.store(volume)?;
    }
    Ok(())
}

fn path_of(volume: [u8; 16]) -> PathBuf {
    state_directory().join("known").join(format!("{}.json", uuid::Uuid::from_bytes(volume)))
}

/// Where this host keeps what must outlive a process.
pub(super) fn state_directory() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(directory) = set("SEALBD_STATE_DIRECTORY") {
        return directory;
    }
    // systemd separates several by colons; ours is the first.
    if let Some(directories) = std::env::var_os("STATE_DIRECTORY").filter(|value| !value.is_empty()) {
        return std::env::split_paths(&directories).next().unwrap_or_default();
    }
    if geteuid().is_root() {
        return "/var/lib/sealbd".into();
    }
    let home = || set("HOME").map(|home| home.join(".local/state"));
    set("XDG_STATE_HOME").or_else(home).unwrap_or_else(|| "/var/tmp".into()).join("sealbd")
}

/// Writes a file by way of another one beside it; both it and its directory are durable then.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    // Mode 0600, a name of its own, removed when anything fails.
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    fs::File::open(directory)?.sync_all()
}
