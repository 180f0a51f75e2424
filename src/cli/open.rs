//! From names on the command line to stores, key managers and unlocked volumes.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use keymgmt::keyfile::Keyfile;
use keymgmt::manager::KeyManager;
use keymgmt::registry::{Opening, Registry};
use keymgmt::source::{Purpose, SecretReader};
use keymgmt::spec::{Argument, Spec};

use super::outcome::Failure;
use super::output::Output;
use super::terminal::TerminalPrompt;
use crate::cipher::Engine;
use crate::store::uri::{self, StoreUri};
use crate::store::{Access, SlotStore, StoreError};
use crate::volume::unlock::{HeaderCopies, Unlocked, read_header};
use crate::volume::{Volume, VolumeError};

/// A backend as named, and its store.
pub(super) struct Backend {
    pub(super) uri: StoreUri,
    pub(super) store: Arc<dyn SlotStore>,
}

/// Opens the store that an argument names.
pub(super) async fn backend(argument: &OsStr, access: Access) -> Result<Backend, Failure> {
    let uri = StoreUri::from_arg(argument)?;
    if let StoreUri::Memory(_) = uri {
        return Err(no_memory(&uri));
    }
    let store = uri::open(&uri, access).await.map_err(|error| match &uri {
        StoreUri::File(path) => file_failure(path, error),
        _ => Failure::from(error).of(&uri),
    })?;
    Ok(Backend { uri, store })
}

/// Memory starts empty in every process, so no command finds a volume there.
pub(super) fn no_memory(uri: &StoreUri) -> Failure {
    Failure::usage(
        format!("{uri} is gone when a command ends, so no volume can be kept there"),
        "name a file, a block device or an NBD export; sealbd demo shows a volume in a temporary file",
    )
}

/// What a user does next depends on why a file cannot be opened.
fn file_failure(path: &Path, error: StoreError) -> Failure {
    if !matches!(error, StoreError::Open(_)) {
        return Failure::from(error).of(path.display());
    }
    let message = error.to_string();
    let failure = match std::fs::metadata(path) {
        Err(cause) if cause.kind() == ErrorKind::NotFound => {
            Failure::not_ours(message, "sealbd format BACKEND --size SIZE --slot SPEC makes a volume")
        }
        Ok(metadata) if metadata.is_dir() => Failure::not_ours(message, "ls BACKEND shows the files in it"),
        Ok(metadata) if metadata.is_file() || metadata.file_type().is_block_device() => {
            Failure::permission(message, "ls -l BACKEND shows who may open it")
        }
        Err(cause) if cause.kind() == ErrorKind::PermissionDenied => {
            Failure::permission(message, "namei -l BACKEND shows who may reach it")
        }
        _ => Failure::from(error),
    };
    failure.of(path.display())
}

impl Backend {
    /// The header copies on the store; tells of a copy that is damaged.
    pub(super) async fn header(&self, output: &Output) -> Result<HeaderCopies, Failure> {
        let copies = read_header(&*self.store).await.map_err(|error| Failure::from(error).of(&self.uri))?;
        for (number, error) in &copies.bad {
            output.note(&format!(
                "{}: header copy {number} is not usable ({error}); the next change of a key writes it anew",
                self.uri
            ));
        }
        Ok(copies)
    }

    /// Unlocks the volume with one of `managers`. An old header that was put back is refused here: a change
    /// of keys would make it the newest one, and removed keys valid again.
    pub(super) async fn unlock(
        &self,
        managers: &[Box<dyn KeyManager>],
        output: &Output,
        engine: Engine,
    ) -> Result<Unlocked, Failure> {
        let copies = self.header(output).await?;
        let failed = |error| Failure::from(error).of(&self.uri);
        let unlocked = copies.unlock(engine, managers).await;
        managers.iter().flat_map(|manager| manager.notes()).for_each(|note| output.note(&note));
        let unlocked = unlocked.map_err(failed)?;
        let found = unlocked.header.generation;
        // Without a usable root nothing is known; whoever opens the volume says what is wrong with it.
        match Volume::header_generation_of_root(&*self.store, &unlocked).await {
            Ok(known) if known > found => Err(failed(VolumeError::HeaderRollback { found, known })),
            _ => Ok(unlocked),
        }
    }
}

/// Key managers for the specs of `--slot`, their secrets read now, in order.
pub(super) fn managers(
    specs: &[String],
    purpose: Purpose,
    output: &Output,
) -> Result<Vec<Box<dyn KeyManager>>, Failure> {
    let registry = Registry::built_in();
    // All are parsed before anybody is asked for anything.
    let specs: Vec<Spec> = specs.iter().map(|text| registry.parse(text)).collect::<Result<_, _>>()?;
    let mut prompt = TerminalPrompt;
    let mut reader = SecretReader::new(&mut prompt);
    let mut opening = Opening::new(&mut reader, purpose);
    let mut opened = Vec::with_capacity(specs.len());
    for spec in &specs {
        if let (Purpose::New, "keyfile", Argument::Path(path)) = (purpose, spec.manager, &spec.argument) {
            make_keyfile(path, output)?;
        }
        opened.push(registry.open(spec, &mut opening)?);
    }
    opening.warnings.iter().for_each(|warning| output.note(warning));
    Ok(opened)
}

/// Makes a keyfile where there is none yet.
fn make_keyfile(path: &Path, output: &Output) -> Result<(), Failure> {
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    Keyfile::create(path)?;
    output.note(&format!("made {}: 32 random bytes, mode 0600; keep a copy in a safe place", path.display()));
    Ok(())
}
