//! Gauges in Prometheus' text exposition format 0.0.4, for the textfile collector of node_exporter.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::context::Context;
use super::outcome::Failure;
use super::output::printable;

/// What is put together.
pub(super) struct Exposition {
    text: String,
    family: &'static str,
}

impl Exposition {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Self { text: String::new(), family: "" }
    }

    /// Begins a gauge: its samples follow.
    pub(super) fn family(&mut self, name: &'static str, help: &str) {
        self.family = name;
        self.text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} gauge\n"));
    }

    /// A sample of the family begun last.
    pub(super) fn sample(&mut self, labels: &[(&'static str, &str)], value: u64) {
        let labels: Vec<_> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        self.text.push_str(&format!("{}{{{}}} {value}\n", self.family, labels.join(",")));
    }

    /// The whole text.
    pub(super) fn into_text(self) -> String {
        self.text
    }
}

/// A label's value: control characters made visible, then what the format escapes.
fn escaped(value: &str) -> String {
    printable(value).replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Writes to a file, or to standard output. A file is replaced in one step, so that a collector never reads
/// half of it, and everybody may read it: there is no secret in it.
///
/// # Errors
/// When the file cannot be written; the old one is still there then.
pub(super) fn write(text: &str, file: Option<&Path>, context: &Context) -> Result<(), Failure> {
    let Some(file) = file else {
        context.output.text(text);
        return Ok(());
    };
    let replaced = replace(file, text);
    replaced.map_err(|error| {
        let what = format!("cannot write {}", file.display());
        Failure::system(&what, &error, "--prometheus FILE, in a directory that exists and may be written to")
    })
}

fn replace(file: &Path, text: &str) -> std::io::Result<()> {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The collector reads *.prom, so the file in the making is called otherwise.
    let mut new = tempfile::Builder::new().prefix(".sealbd-").suffix(".new").tempfile_in(directory)?;
    new.write_all(text.as_bytes())?;
    new.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    new.as_file().sync_all()?;
    new.persist(file).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_label_stays_one_label_of_one_line() {
        let mut gauges = Exposition::new();
        gauges.family("sealbd_x", "A test.");
        gauges.sample(&[("key_id", "a\"} 1\nforged{} 2 \\ \u{1b}[2J")], 3);
        let text = gauges.into_text();
        assert_eq!(
            text,
            "# HELP sealbd_x A test.\n# TYPE sealbd_x gauge\n\
             sealbd_x{key_id=\"a\\\"} 1\\nforged{} 2 \\\\ \\\\u{1b}[2J\"} 3\n"
        );
    }
}
