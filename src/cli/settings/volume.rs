//! One `[volume.NAME]` table.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keymgmt::registry::Registry;
use keymgmt::source::SecretSource;
use keymgmt::spec::{Argument, Spec};
use uuid::Uuid;

use super::Origin;
use super::section::{At, Section};
use crate::store::uri::StoreUri;

/// Shortest time between two rotations: below it every look at the volume would find it overdue.
const ROTATE_MIN: Duration = Duration::from_secs(3600);

/// A volume of the configuration.
#[derive(Debug)]
pub(in crate::cli) struct VolumeSettings {
    /// Its name on this host.
    pub(in crate::cli) name: String,
    /// Where it lies.
    pub(in crate::cli) backend: StoreUri,
    /// The same in the one spelling by which places are compared.
    pub(super) place: OsString,
    /// The only volume that is opened there.
    pub(in crate::cli) uuid: Option<Uuid>,
    /// Keys that are tried when none is named, as SPEC.
    pub(in crate::cli) slots: Vec<String>,
    /// Where it is served when nothing else is said.
    pub(in crate::cli) listen: Option<Listen>,
    /// How old a wrap by a key manager may get.
    pub(in crate::cli) rotate_kek: Option<Duration>,
    /// It is served for reading only.
    pub(in crate::cli) read_only: bool,
    /// It is served past the page cache.
    pub(in crate::cli) direct: bool,
    /// Where its newest root is remembered.
    pub(in crate::cli) anchor: Option<PathBuf>,
    /// Where this stands.
    pub(in crate::cli) origin: Origin,
}

/// Where clients find a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::cli) enum Listen {
    /// A unix socket; a name without directory lies in the control directory.
    Unix(PathBuf),
    /// A port of a loopback address.
    Tcp(SocketAddr),
}

/// A volume as read, its slots not yet compared with the key managers there are.
pub(super) struct Draft {
    pub(super) settings: VolumeSettings,
    pub(super) slots: Vec<At<String>>,
}

impl Draft {
    /// Reads a table; what is wrong is noted in it.
    pub(super) fn read(name: &str, section: &mut Section<'_>, file: &Path) -> Option<Self> {
        let line = section.line();
        if Uuid::try_parse(name).is_ok() {
            section.wrong(None, "a volume's name is not a uuid".into());
        }
        let backend = section.parsed("backend", backend);
        let uuid = section.parsed("uuid", |text| {
            let uuid = Uuid::try_parse(text).ok();
            // One spelling: what is compared by eye has one form.
            let uuid = uuid.filter(|uuid| uuid.to_string() == text);
            uuid.ok_or_else(|| "not a uuid as sealbd uuid prints it".to_owned())
        });
        let slots = section.texts("slots").unwrap_or_default();
        let listen = section.parsed("listen", listen);
        let rotate_kek = section.parsed("rotate_kek", period);
        let read_only = section.flag("read_only").unwrap_or(false);
        let direct = section.flag("direct").unwrap_or(false);
        let anchor = section.parsed("anchor", super::absolute);
        if backend.is_none() && !section.has_problems() {
            section.wrong(None, "a volume needs its backend".into());
        }
        let settings = VolumeSettings {
            name: name.to_owned(),
            place: super::place(&backend.as_ref()?.value),
            backend: backend?.value,
            uuid: uuid.map(|uuid| uuid.value),
            slots: slots.iter().map(|slot| slot.value.clone()).collect(),
            listen: listen.map(|listen| listen.value),
            rotate_kek: rotate_kek.map(|period| period.value),
            read_only,
            direct,
            anchor: anchor.map(|anchor| anchor.value),
            origin: Origin { file: file.to_owned(), line },
        };
        Some(Self { settings, slots })
    }
}

/// What is wrong with a SPEC in a configuration; nothing of it is repeated.
pub(super) fn slot_problem(text: &str, registry: &Registry) -> Option<String> {
    let spec = match registry.parse(text) {
        Ok(spec) => spec,
        Err(error) => return Some(error.to_string()),
    };
    let Spec { argument, .. } = &spec;
    match argument {
        Argument::Path(path) | Argument::Secret(SecretSource::File(path)) if !path.is_absolute() => {
            Some("a path in a configuration starts with '/'".into())
        }
        Argument::Secret(SecretSource::Fd(_)) => {
            Some("a file descriptor belongs to one command, not to a configuration".into())
        }
        _ => None,
    }
}

fn backend(text: &str) -> Result<StoreUri, String> {
    let uri: StoreUri = text.parse().map_err(|error: crate::store::uri::UriError| error.to_string())?;
    match &uri {
        StoreUri::File(path) if !path.is_absolute() => {
            Err("a path in a configuration starts with '/'".into())
        }
        StoreUri::Memory(_) => Err("memory is gone when a command ends".into()),
        _ => Ok(uri),
    }
}

fn listen(text: &str) -> Result<Listen, String> {
    let forms = || "unix:/PATH, unix:NAME or tcp:127.0.0.1:PORT".to_owned();
    match text.split_once(':') {
        Some(("unix", path)) if path.starts_with('/') && !path.contains('\0') => {
            Ok(Listen::Unix(path.into()))
        }
        Some(("unix", name)) if is_file_name(name) => Ok(Listen::Unix(name.into())),
        Some(("tcp", address)) => {
            let address: SocketAddr = address.parse().map_err(|_| forms())?;
            if !address.ip().is_loopback() {
                return Err("without TLS only loopback addresses are served".into());
            }
            Ok(Listen::Tcp(address))
        }
        _ => Err(forms()),
    }
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

fn period(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(period) if period >= ROTATE_MIN => Ok(period),
        Ok(_) => Err("at least 1h".into()),
        Err(_) => Err("a time like 90d or 12h".into()),
    }
}
