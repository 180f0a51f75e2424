//! Real services for tests: a script of `keymgmt/tests/services` starts one in a directory of its own and
//! says where it is; dropping the guard stops it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A running service.
pub(crate) struct Service {
    script: PathBuf,
    directory: TempDir,
    environment: HashMap<String, String>,
}

impl Service {
    /// Starts the service of that script. A test fails, and says why, where it cannot be had.
    pub(crate) fn start(name: &str, settings: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut service = Self { script: script(name), directory, environment: HashMap::new() };
        service.run("start", settings);
        service
    }

    /// Runs one command of the script, and reads again what it says.
    pub(crate) fn run(&mut self, command: &str, settings: &[(&str, &str)]) {
        let mut process = Command::new(&self.script);
        process.arg(command).arg(self.directory.path()).envs(settings.iter().copied());
        self.read(&mut process);
    }

    /// Runs one command of another script about this service, `COMMAND DIR ARGUMENT…`, and reads what it says.
    #[cfg(feature = "kmip")]
    pub(crate) fn ask(&mut self, name: &str, command: &str, arguments: &[&str]) {
        let mut process = Command::new(script(name));
        process.arg(command).arg(self.directory.path()).args(arguments);
        self.read(&mut process);
    }

    fn read(&mut self, process: &mut Command) {
        let what = format!("{process:?}");
        let output = process.output().unwrap_or_else(|e| panic!("{what}: {e}"));
        let text = stdout(&what, &output);
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        self.environment.extend(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    /// What the script said of that name.
    pub(crate) fn says(&self, name: &str) -> &str {
        self.environment.get(name).unwrap_or_else(|| panic!("{} says no {name}", self.script.display()))
    }

    /// Where the service keeps its files.
    #[allow(dead_code, reason = "the tests of some services alone look there")]
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = Command::new(&self.script).arg("stop").arg(self.directory.path()).output();
    }
}

/// Certificates as `services/certificates` lists them.
#[cfg(any(feature = "kmip", feature = "vault"))]
pub(crate) fn certificates() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(script("certificates")).arg(directory.path()).output().unwrap();
    stdout("certificates", &output);
    directory
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/services").join(name)
}

fn stdout(what: &str, output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{what}: {}\n{}", output.status, text(&output.stderr));
    text(&output.stdout)
}
