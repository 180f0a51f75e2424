//! Where the log is: as configured, else where the system keeps such files.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Where the journal takes records (systemd's native protocol).
const JOURNAL: &str = "/run/systemd/journal/socket";
/// Names the log.
const PATH_VARIABLE: &str = "SEALBD_AUDIT";
/// Names the journal's socket; empty for none.
const JOURNAL_VARIABLE: &str = "SEALBD_AUDIT_JOURNAL";

/// Where records go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The file.
    pub path: PathBuf,
    /// Somebody asked for that file: what changes a volume is refused when it cannot be recorded there.
    pub is_configured: bool,
    /// The journal's socket, used when it is there.
    pub journal: Option<PathBuf>,
}

impl Settings {
    /// The file that `SEALBD_AUDIT` names, else `configured`, else the default: `audit.jsonl` in
    /// `$LOGS_DIRECTORY` (systemd's `LogsDirectory=`), in `/var/log/sealbd` for root, else in
    /// `$XDG_STATE_HOME/sealbd` or `~/.local/state/sealbd`. The journal is that of `SEALBD_AUDIT_JOURNAL`,
    /// else the system's.
    #[must_use]
    pub fn resolve(configured: Option<&Path>) -> Self {
        Self::of(configured, rustix::process::geteuid().is_root(), |name| std::env::var_os(name))
    }

    fn of(configured: Option<&Path>, is_root: bool, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let named = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let configured = named(PATH_VARIABLE).or_else(|| configured.map(Path::to_owned));
        let journal = match variable(JOURNAL_VARIABLE) {
            None => Some(PathBuf::from(JOURNAL)),
            Some(socket) if socket.is_empty() => None,
            Some(socket) => Some(PathBuf::from(socket)),
        };
        let is_configured = configured.is_some();
        let path = configured.unwrap_or_else(|| default_directory(is_root, named).join("audit.jsonl"));
        Self { path, is_configured, journal }
    }
}

fn default_directory(is_root: bool, named: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    // systemd separates several by colons.
    let logs = named("LOGS_DIRECTORY");
    if let Some(first) = logs.as_deref().and_then(Path::to_str).and_then(|logs| logs.split(':').next()) {
        return PathBuf::from(first);
    }
    if is_root {
        return PathBuf::from("/var/log/sealbd");
    }
    let absolute = |path: &PathBuf| path.is_absolute();
    let state = named("XDG_STATE_HOME").filter(absolute);
    let state = state.or_else(|| Some(named("HOME").filter(absolute)?.join(".local/state")));
    // Nobody may write there without being root, which is then told.
    state.map_or_else(|| PathBuf::from("/var/log/sealbd"), |state| state.join("sealbd"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(root: bool, configured: Option<&str>, variables: &[(&str, &str)]) -> (String, bool) {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        };
        let settings = Settings::of(configured.map(Path::new), root, variable);
        (settings.path.display().to_string(), settings.is_configured)
    }

    #[test]
    fn what_is_named_comes_before_what_is_usual() {
        let home = ("HOME", "/h");
        for (root, configured, variables, expected, is_configured) in [
            (true, Some("/c"), &[("SEALBD_AUDIT", "/e"), home][..], "/e", true),
            (true, Some("/c"), &[("SEALBD_AUDIT", ""), home], "/c", true),
            (true, None, &[home], "/var/log/sealbd/audit.jsonl", false),
            (true, None, &[("LOGS_DIRECTORY", "/l:/m"), home], "/l/audit.jsonl", false),
            (false, None, &[home], "/h/.local/state/sealbd/audit.jsonl", false),
            (false, None, &[("XDG_STATE_HOME", "/x"), home], "/x/sealbd/audit.jsonl", false),
            (false, None, &[("XDG_STATE_HOME", "x"), home], "/h/.local/state/sealbd/audit.jsonl", false),
            (false, None, &[], "/var/log/sealbd/audit.jsonl", false),
        ] {
            assert_eq!(path(root, configured, variables), (expected.to_owned(), is_configured));
        }
    }

    #[test]
    fn the_journal_can_be_named_and_left_out() {
        let journal = |value: Option<&str>| {
            Settings::of(None, true, |name| value.filter(|_| name == JOURNAL_VARIABLE).map(OsString::from))
                .journal
        };
        assert_eq!(journal(None), Some(PathBuf::from(JOURNAL)));
        assert_eq!(journal(Some("")), None);
        assert_eq!(journal(Some("/s")), Some(PathBuf::from("/s")));
    }
}
