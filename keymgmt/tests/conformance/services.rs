//! Real key managers for tests: started by a script of `keymgmt/tests/services`, stopped on drop.
//!
//! A service that cannot be had fails the test that needs it, with what the script said.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};

use tempfile::TempDir;

/// A service that runs, and its directory.
pub(crate) struct Service {
    script: PathBuf,
    dir: TempDir,
    values: BTreeMap<String, String>,
}

impl Service {
    /// Starts a service by the name of its script, with variables in its environment.
    pub(crate) fn start(name: &str, variables: &[(&str, &str)]) -> Self {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/services").join(name);
        let dir = tempfile::tempdir().unwrap();
        let mut service = Self { script, dir, values: BTreeMap::new() };
        service.start_again(variables);
        service
    }

    /// Starts it in the same directory, with what it kept there.
    pub(crate) fn start_again(&mut self, variables: &[(&str, &str)]) {
        let Output { status, stdout, stderr } = self.run("start", variables);
        let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert!(status.success(), "{} start: {status}\n{stderr}", self.script.display());
        let value =
            |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        self.values = stdout.lines().filter_map(value).collect();
    }

    /// Stops it; what it keeps stays.
    #[allow(dead_code, reason = "not every build tests a service that goes away")]
    pub(crate) fn stop(&self) {
        assert!(self.run("stop", &[]).status.success());
    }

    /// What the script told under that name.
    pub(crate) fn value(&self, name: &str) -> &str {
        self.values.get(name).unwrap_or_else(|| panic!("{} tells no {name}", self.script.display()))
    }

    fn run(&self, verb: &str, variables: &[(&str, &str)]) -> Output {
        let mut command = Command::new(&self.script);
        command.arg(verb).arg(self.dir.path()).envs(variables.iter().copied());
        command.output().unwrap_or_else(|error| panic!("{}: {error}", self.script.display()))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // A test that failed already is not to panic again.
        let _ = self.run("stop", &[]);
    }
}
