//! The `keyfile` manager: 32 random bytes in a file that only its owner can read.
//!
//! The KEK is HKDF-SHA256(salt = volume uuid, ikm = the file, info = `sealbd keyfile kek v1`). The
//! keyslot names no path, for a path on one host is not the name of a key; it keeps a fingerprint of
//! 16 bits instead, so that `key list` tells which of one's keyfiles fits.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::derive::KEYFILE;
use crate::manager::{BoxFuture, KeyDescription, KeyError, KeyManager, SlotType, WrapContext, WrappedKey};
use crate::secret::{Dek, Secret32, SecretBytes};
use crate::{private_file, verify};

/// Size of a keyfile in bytes.
pub const KEYFILE_LEN: usize = 32;

/// A keyfile, read.
pub struct Keyfile {
    secret: Secret32,
}

impl Keyfile {
    /// Reads a keyfile.
    ///
    /// # Errors
    /// [`KeyError::Secret`], with the cause and the remedy, when the file cannot be read, is not a
    /// regular file, gives any right to its group or to others, or is not exactly [`KEYFILE_LEN`] bytes.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let (mut file, len) = private_file::open("keyfile", path)?;
        if len != KEYFILE_LEN as u64 {
            return Err(KeyError::Secret(format!(
                "keyfile {} is {len} bytes, not {KEYFILE_LEN}",
                path.display()
            )));
        }
        let secret = Secret32::fill(|bytes| file.read_exact(bytes))
            .map_err(|error| KeyError::Secret(format!("cannot read keyfile {}: {error}", path.display())))?;
        Ok(Self { secret })
    }

    /// Makes a fresh keyfile, mode 0600, and reads it. File and directory are on stable storage
    /// when this returns.
    ///
    /// # Errors
    /// [`KeyError::Secret`] when the path exists or cannot be written, or when the operating
    /// system's random number generator fails. A file half made is removed.
    pub fn create(path: &Path) -> Result<Self, KeyError> {
        let secret = Secret32::generate()?;
        let failed = |error| KeyError::Secret(format!("cannot make keyfile {}: {error}", path.display()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        if let Err(error) = store(&file, path, &secret) {
            // Best effort: the error that is told is the first one.
            let _ = std::fs::remove_file(path);
            return Err(failed(error));
        }
        Ok(Self { secret })
    }

    /// The keyfile that these bytes are; `from` names the place in errors.
    ///
    /// # Errors
    /// [`KeyError::Secret`] when they are not exactly [`KEYFILE_LEN`].
    pub fn from_bytes(bytes: &SecretBytes, from: &str) -> Result<Self, KeyError> {
        let bytes = bytes.expose();
        if bytes.len() != KEYFILE_LEN {
            return Err(KeyError::Secret(format!("{from} is {} bytes, not {KEYFILE_LEN}", bytes.len())));
        }
        let Ok(secret) = Secret32::fill(|page| {
            page.copy_from_slice(bytes);
            Ok::<(), std::convert::Infallible>(())
        });
        Ok(Self { secret })
    }

    /// A keyfile that exists only in memory, for tests and for callers that keep keys elsewhere.
    #[must_use]
    pub fn from_secret(secret: Secret32) -> Self {
        Self { secret }
    }
}

impl KeyManager for Keyfile {
    fn slot_type(&self) -> SlotType {
        SlotType::Keyfile
    }

    fn wrap<'a>(&'a self, dek: &'a Dek, context: WrapContext) -> BoxFuture<'a, Result<WrappedKey, KeyError>> {
        Box::pin(async move { KEYFILE.wrap(&self.secret, dek, context) })
    }

    fn unwrap<'a>(
        &'a self,
        key: &'a WrappedKey,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Option<Dek>, KeyError>> {
        Box::pin(async move { KEYFILE.unwrap(&self.secret, key, context) })
    }

    fn describe(&self, key: &WrappedKey) -> Result<KeyDescription, KeyError> {
        describe(key)
    }

    fn rotate<'a>(&'a self, _current: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(async { Err(verify::own_secret("a keyfile", "rotated")) })
    }

    fn destroy<'a>(&'a self, _key: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(async { Err(verify::own_secret("a keyfile", "destroyed")) })
    }
}

/// Tells what a keyfile's keyslot is made of, e.g. `32-byte keyfile, fingerprint 9F3A`.
///
/// # Errors
/// [`KeyError::Malformed`].
pub fn describe(key: &WrappedKey) -> Result<KeyDescription, KeyError> {
    let fingerprint = KEYFILE.stored_fingerprint(key)?;
    Ok(KeyDescription::own(format!("{KEYFILE_LEN}-byte keyfile, fingerprint {fingerprint}")))
}

fn store(mut file: &File, path: &Path, secret: &Secret32) -> std::io::Result<()> {
    file.write_all(secret.expose())?;
    file.sync_all()?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_created_keyfile_is_private_and_reads_back_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let created = Keyfile::create(&path).unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
        assert_eq!(metadata.len(), 32);
        assert!(Keyfile::open(&path).unwrap().secret.matches(&created.secret));
    }

    #[test]
    fn an_existing_file_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, b"precious").unwrap();
        assert!(matches!(Keyfile::create(&path), Err(KeyError::Secret(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn every_size_but_32_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        Keyfile::create(&path).unwrap();
        for len in [0, 31, 33, 4096] {
            std::fs::write(&path, vec![1; len]).unwrap();
            let error = Keyfile::open(&path).err().unwrap().to_string();
            assert_eq!(error, format!("keyfile {} is {len} bytes, not 32", path.display()));
        }
    }
}
