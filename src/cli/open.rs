//! From names on the command line to stores, key managers and unlocked volumes.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use keymgmt::keyfile::Keyfile;
use keymgmt::manager::KeyManager;
use keymgmt::source::Purpose;
use keymgmt::spec::{Argument, Spec};

use super::context::Context;
use super::known::check_pin;
use super::outcome::Failure;
use super::output::Output;
use super::settings::VolumeSettings;
use crate::format::header::Header;
use crate::format::keyslot::Keyslot;
use crate::store::file::Caching;
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
    backend_with(argument, access, Caching::Cached).await
}

/// The same, with a choice of caching.
pub(super) async fn backend_with(
    argument: &OsStr,
    access: Access,
    caching: Caching,
) -> Result<Backend, Failure> {
    let uri = StoreUri::from_arg(argument)?;
    if let StoreUri::Memory(_) = uri {
        return Err(no_memory(&uri));
    }
    let store = uri::open_with(&uri, access, caching).await.map_err(|error| match &uri {
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
    pub(super) async fn header(&self, context: &Context) -> Result<HeaderCopies, Failure> {
        let copies = read_header(&*self.store).await.map_err(|error| Failure::from(error).of(&self.uri))?;
        for (number, error) in &copies.bad {
            context.output.note(&format!(
                "{}: header copy {number} is not usable ({error}); the next change of a key writes it anew",
                self.uri
            ));
        }
        context.trail.volume(&self.uri.to_string(), copies.claimed());
        Ok(copies)
    }

    /// Unlocks the volume with one of `managers`. An old header that was put back is refused here: a change
    /// of keys would make it the newest one, and removed keys valid again.
    pub(super) async fn unlock(
        &self,
        managers: &[Box<dyn KeyManager>],
        context: &Context,
    ) -> Result<Unlocked, Failure> {
        let unlocked = self.unlock_copies(self.header(context).await?, managers, context).await?;
        let found = unlocked.header.generation;
        if let Some(anchoring) = context.anchoring(&self.uri) {
            let held = Volume::held_against(&*self.store, &unlocked, &anchoring).await;
            held.map_err(|error| Failure::from(error).of(&self.uri))?;
        }
        // Without a usable root nothing is known; whoever opens the volume says what is wrong with it.
        match Volume::header_generation_of_root(&*self.store, &unlocked).await {
            Ok(known) if known > found => {
                Err(Failure::from(VolumeError::HeaderRollback { found, known }).of(&self.uri))
            }
            _ => Ok(unlocked),
        }
    }

    /// Unlocks a header that may come from elsewhere, and holds it against what is pinned.
    pub(super) async fn unlock_copies(
        &self,
        copies: HeaderCopies,
        managers: &[Box<dyn KeyManager>],
        context: &Context,
    ) -> Result<Unlocked, Failure> {
        self.check_uuid(copies.claimed(), context)?;
        let failed = |error| Failure::from(error).of(&self.uri);
        let unlocked = copies.unlock(context.engine, managers).await;
        let unlocked = unlocked.map_err(failed)?;
        // A way in that is broken is mended while there is another one.
        let failed = unlocked.failed_slots.iter();
        context.notes.tell(failed.map(|why| format!("{}: {why}; slot {} opens it", self.uri, unlocked.slot)));
        opened_by(&unlocked, context);
        check_pin(&unlocked).map_err(|failure| failure.of(&self.uri))?;
        Ok(unlocked)
    }
}

impl Backend {
    /// Refuses another volume than the one that the configuration pins to this backend. The claim is that of
    /// a header not yet authenticated; one with another uuid is not even tried.
    pub(super) fn check_uuid(&self, claimed: &Header, context: &Context) -> Result<(), Failure> {
        let Some(volume) = context.settings.volume_at(&self.uri) else { return Ok(()) };
        let found = uuid::Uuid::from_bytes(claimed.volume);
        match volume.uuid {
            Some(pinned) if pinned != found => Err(pin_differs(volume, pinned, found).of(&self.uri)),
            _ => Ok(()),
        }
    }
}

/// What lies on the backend is another volume than it should be.
pub(super) fn pin_differs(volume: &VolumeSettings, pinned: uuid::Uuid, found: uuid::Uuid) -> Failure {
    let VolumeSettings { name, origin, .. } = volume;
    Failure::refused(
        format!("volume {name} is pinned to uuid {pinned}, found is {found}"),
        format!("find out who put another volume there; if it was you, uuid in {origin} is to be changed"),
    )
}

/// Notes in the audit log which keyslot opened a volume.
pub(super) fn opened_by(unlocked: &Unlocked, context: &Context) {
    if let Some(Some(Keyslot { key, .. })) = unlocked.header.keyslots.get(unlocked.slot) {
        context.trail.slot(unlocked.slot, key.slot_type, &context.described(key));
    }
}

/// Makes the keyfile that a new keyslot names, where there is none yet.
pub(super) fn prepare_new(spec: &Spec, purpose: Purpose, output: &Output) -> Result<(), Failure> {
    match (purpose, spec.manager, &spec.argument) {
        (Purpose::New, "keyfile", Argument::Path(path)) => make_keyfile(path, output),
        _ => Ok(()),
    }
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
