//! `sealbd.toml`: key managers and volumes by name, and what is said of them (docs/CONFIG.md).
//!
//! A configuration is read whole or not at all: a key that is not known, a value of another type, a name
//! that stands twice are errors, all told at once with file and line. It holds where secrets are and never
//! a secret, and no message repeats a value. Reading reaches nothing but the files.

mod file;
mod section;
#[cfg(test)]
mod tests;
mod volume;

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use keymgmt::provider::Provider;
use keymgmt::registry::Registry;
use uuid::Uuid;

pub(super) use self::section::Problem;
use self::section::{Section, Source};
use self::volume::{Draft, slot_problem};
pub(super) use self::volume::{Listen, VolumeSettings};
use super::size::parse_size;
use crate::store::uri::StoreUri;

/// What the configuration says; empty when there is none.
#[derive(Default, Debug)]
pub(super) struct Settings {
    /// The files that were read, the main one first.
    pub(super) files: Vec<PathBuf>,
    /// `[volume.NAME]`, by name.
    pub(super) volumes: Vec<VolumeSettings>,
    /// `[audit] path`.
    pub(super) audit_path: Option<PathBuf>,
    control_directory: Option<PathBuf>,
    /// `[daemon] memory`, in bytes.
    pub(super) memory: Option<u64>,
}

/// Where something stands in the configuration.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) file: PathBuf,
    pub(super) line: usize,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

impl Settings {
    /// Reads the configuration that `--config`, `SEALBD_CONFIG` or the system names, and makes the registry
    /// of the key managers in it.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of files and lines.
    pub(super) fn load(asked: Option<&Path>) -> Result<(Self, Registry), Vec<Problem>> {
        let variable = std::env::var_os("SEALBD_CONFIG");
        let files = file::read_all(asked, variable.as_deref())?;
        Self::of_files(files.iter().map(|file| Source::new(&file.path, &file.text)))
    }

    fn of_files<'t>(files: impl Iterator<Item = Source<'t>>) -> Result<(Self, Registry), Vec<Problem>> {
        let mut reading = Reading::default();
        files.for_each(|source| reading.file(source));
        reading.end()
    }

    /// The volume of that name.
    pub(super) fn volume(&self, name: &str) -> Option<&VolumeSettings> {
        self.volumes.iter().find(|volume| volume.name == name)
    }

    /// The volume that is pinned to that uuid.
    pub(super) fn volume_of_uuid(&self, uuid: Uuid) -> Option<&VolumeSettings> {
        self.volumes.iter().find(|volume| volume.uuid == Some(uuid))
    }

    /// The volume that lies there, however the place is written.
    pub(super) fn volume_at(&self, backend: &StoreUri) -> Option<&VolumeSettings> {
        let place = place(backend);
        self.volumes.iter().find(|volume| volume.place == place)
    }

    /// Where running servers have their sockets: `SEALBD_CONTROL_DIRECTORY`, else `[daemon]
    /// control_directory`, else `RUNTIME_DIRECTORY` of the service manager, else `/run/sealbd` for root and
    /// `$XDG_RUNTIME_DIR/sealbd` for others. None where nothing of that is known.
    pub(super) fn control_directory(&self) -> Option<PathBuf> {
        let variable = |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
        let own = variable("SEALBD_CONTROL_DIRECTORY").map(PathBuf::from);
        own.or_else(|| self.control_directory.clone()).or_else(|| {
            // systemd separates several by colons; the first one is the service's own.
            let first = |paths: OsString| std::env::split_paths(&paths).next();
            variable("RUNTIME_DIRECTORY").and_then(first).or_else(|| {
                if rustix::process::geteuid().is_root() {
                    return Some("/run/sealbd".into());
                }
                variable("XDG_RUNTIME_DIR").map(|directory| PathBuf::from(directory).join("sealbd"))
            })
        })
    }
}

impl Settings {
    /// Whether somebody named the place of [`Self::control_directory`].
    pub(super) fn control_directory_is_set(&self) -> bool {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        self.control_directory.is_some() || set("SEALBD_CONTROL_DIRECTORY")
    }
}

/// One spelling for one place: links and `..` are followed where the path exists.
fn place(backend: &StoreUri) -> OsString {
    match backend {
        StoreUri::File(path) => {
            let absolute = std::fs::canonicalize(path).or_else(|_| std::path::absolute(path));
            // By its parts: a slash at the end makes no other place.
            absolute.unwrap_or_else(|_| path.clone()).components().collect::<PathBuf>().into()
        }
        other => other.to_string().into(),
    }
}

/// The files so far.
#[derive(Default)]
struct Reading {
    settings: Settings,
    providers: Vec<(Provider, Origin)>,
    drafts: Vec<Draft>,
    /// What no two volumes share, with where or whose it is.
    names: HashMap<String, Origin>,
    places: HashMap<OsString, String>,
    uuids: HashMap<Uuid, String>,
    problems: Vec<Problem>,
    /// Which file has `[daemon]`, and `[audit]`.
    daemon: Option<Origin>,
    audit: Option<Origin>,
    /// A provider is missing since its table is wrong: that its name is unknown is no second error.
    broken_provider: bool,
}

impl Reading {
    fn file(&mut self, source: Source<'_>) {
        self.settings.files.push(source.file.to_owned());
        let mut whole = Section::whole(source.clone());
        if whole.has_problems() {
            // What stands behind a syntax error is not what was meant.
            self.broken_provider = true;
            self.problems.extend(whole.finish_syntax());
            return;
        }
        if let Some(mut daemon) = whole.section("daemon") {
            once(&mut self.daemon, "[daemon]", &source, &mut daemon);
            self.settings.control_directory = daemon.parsed("control_directory", absolute).map(|at| at.value);
            self.settings.memory = daemon.parsed("memory", parse_size).map(|size| size.value);
            self.problems.extend(daemon.finish());
        }
        if let Some(mut audit) = whole.section("audit") {
            once(&mut self.audit, "[audit]", &source, &mut audit);
            self.settings.audit_path = audit.parsed("path", absolute).map(|at| at.value);
            self.problems.extend(audit.finish());
        }
        for (name, section) in whole.named_sections("provider") {
            self.provider(&name, section, &source);
        }
        for (name, section) in whole.named_sections("volume") {
            self.volume(&name, section, &source);
        }
        self.problems.extend(whole.finish());
    }

    fn provider(&mut self, name: &str, mut section: Section<'_>, source: &Source<'_>) {
        let origin = Origin { file: source.file.to_owned(), line: section.line() };
        if let Some((_, first)) = self.providers.iter().find(|(provider, _)| provider.name == name) {
            section.wrong(None, format!("provider {name} is also in {first}"));
        }
        let (table, lines, problems) = section.rest();
        if !problems.is_empty() {
            self.problems.extend(problems);
            self.broken_provider = true;
            return;
        }
        match Provider::parse(name, table) {
            Ok(provider) => self.providers.push((provider, origin)),
            Err(error) => {
                let text = error.to_string();
                let line = line_of(&text, &lines).unwrap_or(origin.line);
                self.problems.push(Problem { file: origin.file, line: Some(line), text });
                self.broken_provider = true;
            }
        }
    }

    fn volume(&mut self, name: &str, mut section: Section<'_>, source: &Source<'_>) {
        let draft = Draft::read(name, &mut section, source.file);
        if let Some(Draft { settings: VolumeSettings { place, uuid, origin, .. }, .. }) = &draft {
            if let Some(first) = self.names.insert(name.to_owned(), origin.clone()) {
                section.wrong(None, format!("volume {name} is also in {first}"));
            } else if let Some(other) = self.places.insert(place.clone(), name.to_owned()) {
                section.wrong(None, format!("the backend is also that of volume {other}"));
            } else if let Some(other) = uuid.and_then(|uuid| self.uuids.insert(uuid, name.to_owned())) {
                section.wrong(None, format!("the uuid is also that of volume {other}"));
            }
        }
        self.problems.extend(section.finish());
        self.drafts.extend(draft);
    }

    fn end(self) -> Result<(Settings, Registry), Vec<Problem>> {
        let Self { mut settings, providers, drafts, mut problems, broken_provider, .. } = self;
        let registry = Registry::built_in();
        // No name is twice in there: the second one was an error and is not kept.
        let registry = registry.with_providers(providers.into_iter().map(|(provider, _)| provider).collect());
        for Draft { settings: VolumeSettings { name, origin, .. }, slots } in &drafts {
            if broken_provider {
                break;
            }
            for slot in slots {
                if let Some(why) = slot_problem(&slot.value, &registry) {
                    let text = format!("slots in [volume.{name}]: {why}");
                    problems.push(Problem { file: origin.file.clone(), line: Some(slot.line), text });
                }
            }
        }
        if !problems.is_empty() {
            let file = |problem: &Problem| settings.files.iter().position(|file| *file == problem.file);
            problems.sort_by_key(|problem| (file(problem), problem.line));
            return Err(problems);
        }
        settings.volumes = drafts.into_iter().map(|draft| draft.settings).collect();
        settings.volumes.sort_by(|one, other| one.name.cmp(&other.name));
        Ok((settings, registry))
    }
}

/// Notes where a section is; an error when another file has it, too.
fn once(seen: &mut Option<Origin>, name: &str, source: &Source<'_>, section: &mut Section<'_>) {
    if let Some(first) = seen {
        section.wrong(None, format!("{name} is also in {first}"));
    }
    *seen = Some(Origin { file: source.file.to_owned(), line: section.line() });
}

/// The line of the key that a message names first between backquotes.
fn line_of(message: &str, lines: &[(String, usize)]) -> Option<usize> {
    let named = message.split('`').nth(1)?;
    lines.iter().find(|(key, _)| key == named).map(|(_, line)| *line)
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("a path in a configuration starts with '/'".into()) }
}
