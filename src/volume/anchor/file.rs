//! An anchor in a directory of this host: one file per volume, replaced whole.
//!
//! `UUID.anchor` is two lines of text: the fields as one JSON object, and the SHA-256 of that line with its
//! line feed. The sum finds damage; who may write to the directory can forge all of it. Nobody but the file's
//! owner reads or writes it (mode 0600). That one process at a time has a volume open for writing is the
//! matter of the store's lock, so none is taken here.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Anchor, AnchorError, Anchored, GENERATION_MAX};
use crate::store::BoxFuture;

/// Longest file; what is written takes less than 400 bytes.
const FILE_BYTES_MAX: u64 = 4096;
/// Version of the file.
const VERSION: u32 = 1;

/// Remembers in a directory.
#[derive(Clone)]
pub struct FileAnchor {
    directory: PathBuf,
    /// Held while a file is compared and replaced.
    writing: Arc<Mutex<()>>,
}

/// The first line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    sealbd_anchor: u32,
    volume: uuid::Uuid,
    generation: u64,
    root_mac: String,
    log_seq: u64,
    chain: String,
    header_generation: u64,
    writer_epoch: u64,
}

impl FileAnchor {
    /// An anchor in `directory`, which is made (mode 0700) when something is stored and it is not there.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), writing: Arc::default() }
    }

    /// The file of a volume.
    #[must_use]
    pub fn path(&self, volume: [u8; 16]) -> PathBuf {
        self.directory.join(format!("{}.anchor", uuid::Uuid::from_bytes(volume)))
    }

    /// The bytes of a volume's file.
    #[must_use]
    pub fn encode(volume: [u8; 16], anchored: Anchored) -> Vec<u8> {
        encode(volume, anchored)
    }

    /// What a volume's file says.
    ///
    /// # Errors
    /// Why it says nothing, in words.
    pub fn decode(volume: [u8; 16], text: &[u8]) -> Result<Anchored, String> {
        decode(volume, text)
    }

    fn load_now(&self, volume: [u8; 16]) -> Result<Option<Anchored>, AnchorError> {
        let path = self.path(volume);
        let failed = |source| AnchorError::Io { path: path.clone(), source };
        let file = match fs::File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed)?,
        };
        let mut text = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(failed)?;
        let damaged = |why: String| AnchorError::Damaged { place: path.display().to_string(), why };
        decode(volume, &text).map(Some).map_err(damaged)
    }

    fn store_now(&self, volume: [u8; 16], newest: Anchored) -> Result<(), AnchorError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        match self.load_now(volume)? {
            Some(held) if held == newest => return Ok(()),
            Some(held) if !newest.follows(&held) => {
                return Err(AnchorError::Older { held: held.generation, offered: newest.generation });
            }
            _ => {}
        }
        let path = self.path(volume);
        replace(&self.directory, &path, &encode(volume, newest))
            .map_err(|source| AnchorError::Io { path, source })
    }
}

impl Anchor for FileAnchor {
    fn describe(&self) -> String {
        self.directory.display().to_string()
    }

    fn load(&self, volume: [u8; 16]) -> BoxFuture<'_, Result<Option<Anchored>, AnchorError>> {
        let this = self.clone();
        Box::pin(blocking(self.path(volume), move || this.load_now(volume)))
    }

    fn store(&self, volume: [u8; 16], newest: Anchored) -> BoxFuture<'_, Result<(), AnchorError>> {
        let this = self.clone();
        Box::pin(blocking(self.path(volume), move || this.store_now(volume, newest)))
    }
}

/// Runs what waits for a disk where it keeps nobody else from running.
async fn blocking<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce() -> Result<T, AnchorError> + Send + 'static,
) -> Result<T, AnchorError> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|error| Err(AnchorError::Io { path, source: std::io::Error::other(error) }))
}

/// Writes a file by way of another one beside it; both it and its directory are durable then.
fn replace(directory: &Path, path: &Path, text: &[u8]) -> std::io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    // Mode 0600, a name of its own, removed when anything fails.
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(text)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    fs::File::open(directory)?.sync_all()
}

fn encode(volume: [u8; 16], anchored: Anchored) -> Vec<u8> {
    let Anchored { generation, root_mac, log_seq, chain, header_generation, writer_epoch } = anchored;
    let fields = Fields {
        sealbd_anchor: VERSION,
        volume: uuid::Uuid::from_bytes(volume),
        generation,
        root_mac: hex(&root_mac),
        log_seq,
        chain: hex(&chain),
        header_generation,
        writer_epoch,
    };
    let mut text = serde_json::to_vec(&fields).expect("plain fields");
    text.push(b'\n');
    let sum = hex(&Sha256::digest(&text));
    text.extend_from_slice(sum.as_bytes());
    text.push(b'\n');
    text
}

fn decode(volume: [u8; 16], text: &[u8]) -> Result<Anchored, String> {
    let end = text.iter().position(|byte| *byte == b'\n').ok_or("cut short")?;
    let (line, sum) = text.split_at(end + 1);
    if sum != format!("{}\n", hex(&Sha256::digest(line))).as_bytes() {
        return Err("its checksum does not fit".into());
    }
    let fields: Fields = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if fields.sealbd_anchor != VERSION {
        return Err(format!("version {} is not known", fields.sealbd_anchor));
    }
    if fields.volume.as_bytes() != &volume {
        return Err(format!("it is that of volume {}", fields.volume));
    }
    if [fields.generation, fields.log_seq, fields.writer_epoch].iter().any(|count| *count > GENERATION_MAX) {
        return Err("no volume has that many roots, chunks or sessions".into());
    }
    Ok(Anchored {
        generation: fields.generation,
        root_mac: unhex(&fields.root_mac)?,
        log_seq: fields.log_seq,
        chain: unhex(&fields.chain)?,
        header_generation: fields.header_generation,
        writer_epoch: fields.writer_epoch,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Result<[u8; 16], String> {
    let number = u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32 && !text.starts_with('+'));
    number.map(u128::to_be_bytes).ok_or_else(|| "a field is not 32 hexadecimal digits".into())
}
