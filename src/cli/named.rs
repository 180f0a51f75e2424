//! Volumes by name: what a command says is completed from the configuration before it runs.
//!
//! A word of letters, digits, `-` and `_` that is the name of a configured volume means that volume, even
//! where a file has the same name; `./NAME` is the file. A uuid to which a volume is pinned means that volume.
//! Everything else is a backend as it always was. What the configuration says of a volume holds however
//! the volume is named, by its backend, too.

use std::ffi::{OsStr, OsString};

use keymgmt::provider::is_name;
use uuid::Uuid;

use super::arguments::Command;
use super::outcome::Failure;
use super::output::Output;
use super::settings::{Settings, VolumeSettings};
use crate::store::uri::StoreUri;

/// Puts the backends in the place of names, and the volumes' slots where none were given. `verb` is what the
/// user typed, to be told where help is.
///
/// # Errors
/// When a key is needed and neither given nor configured.
pub(super) fn complete(
    command: &mut Command,
    settings: &Settings,
    output: &Output,
    verb: &str,
) -> Result<(), Failure> {
    let may_be_asked = command.may_ask_the_server();
    let (backends, slots) = command.volumes();
    let mut configured = Vec::new();
    for backend in backends {
        if let Some(volume) = named(backend, settings) {
            if backend.to_str().is_some_and(is_name) && std::path::Path::new(backend).exists() {
                let name = &volume.name;
                output.note(&format!("{name} is the volume of {}; the file is ./{name}", volume.origin));
            }
            *backend = argument(&volume.backend);
        }
        // What is no backend is told when it is opened.
        let uri = StoreUri::from_arg(backend).ok();
        for slot in uri.and_then(|uri| settings.volume_at(&uri)).map_or(&[][..], |volume| &volume.slots) {
            if !configured.contains(slot) {
                configured.push(slot.clone());
            }
        }
    }
    match slots {
        Some(slots) if slots.is_empty() && configured.is_empty() && !may_be_asked => Err(no_slot(verb)),
        Some(slots) if slots.is_empty() => {
            *slots = configured;
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A key is needed and neither given nor configured.
pub(super) fn no_slot(verb: &str) -> Failure {
    Failure::usage(
        "missing: --slot, and the configuration has no slots for the volume",
        format!("sealbd {verb}--help shows --slot; or write slots = [\"SPEC\"] into its [volume.NAME]"),
    )
}

/// The configured volume that a word names, if it names one.
pub(super) fn named<'s>(word: &OsStr, settings: &'s Settings) -> Option<&'s VolumeSettings> {
    let word = word.to_str()?;
    settings.volume(word).or_else(|| settings.volume_of_uuid(Uuid::try_parse(word).ok()?))
}

/// The backend as an argument; a path need not be UTF-8.
pub(super) fn argument(backend: &StoreUri) -> OsString {
    match backend {
        // It starts with '/', so it is not taken for a URI.
        StoreUri::File(path) => path.clone().into(),
        other => other.to_string().into(),
    }
}
