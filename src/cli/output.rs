//! Printing: results to standard output, everything else to standard error, progress bars on terminals.

use std::io::Write;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::json;

use super::outcome::Failure;

/// How results are shown.
#[derive(Clone, Copy)]
pub(super) struct Output {
    json: bool,
}

impl Output {
    /// For a command whose standard output carries something else than a report.
    pub(super) fn prose() -> Self {
        Self { json: false }
    }

    /// As `--json` says, or the variable SEALBD_FORMAT.
    pub(super) fn new(json: bool) -> Self {
        Self { json: json || std::env::var_os("SEALBD_FORMAT").is_some_and(|format| format == "json") }
    }

    /// Whether standard output is for programs.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a result: as JSON, with the schema number first, or as prose.
    pub(super) fn result(&self, value: &impl Serialize, prose: impl FnOnce() -> String) {
        #[derive(Serialize)]
        struct Versioned<'a, T> {
            schema: u32,
            #[serde(flatten)]
            fields: &'a T,
        }
        let text = if self.json {
            serde_json::to_string(&Versioned { schema: 1, fields: value }).expect("reports are plain structs")
        } else {
            printable(&prose())
        };
        // A reader that has gone is no failure of the command.
        let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
    }

    /// Prints text for a program, byte for byte.
    pub(super) fn text(&self, text: &str) {
        let _ = std::io::stdout().write_all(text.as_bytes());
    }

    /// Prints one line of many; `false` when the reader has gone.
    pub(super) fn line(self, text: &str) -> bool {
        writeln!(std::io::stdout(), "{}", printable(text)).is_ok()
    }

    /// Tells something on standard error.
    pub(super) fn note(&self, text: &str) {
        let _ = writeln!(std::io::stderr(), "sealbd: {}", printable(text));
    }

    /// Tells a failure and gives the exit code.
    pub(super) fn fail(&self, failure: &Failure) -> ExitCode {
        let Failure { exit, code, retryable, message, hint } = failure;
        if self.json {
            let error = json!({
                "error": { "code": code, "exit": exit, "retryable": retryable, "message": message, "hint": hint }
            });
            let _ = writeln!(std::io::stdout(), "{error}");
        }
        self.tell(failure);
        ExitCode::from(*exit)
    }

    /// Tells a failure on standard error only; for one whose report is on standard output already.
    pub(super) fn tell(&self, failure: &Failure) {
        let Failure { message, hint, .. } = failure;
        let _ = writeln!(std::io::stderr(), "sealbd: {}\nnext: {}", printable(message), printable(hint));
    }

    /// A bar over `total` bytes; hidden with `--json` and where standard error is no terminal.
    pub(super) fn progress(&self, what: &'static str, total: u64) -> ProgressBar {
        let target = if self.json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let template =
            "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} ETA {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what);
        bar
    }

    /// A bar over `total` things; hidden as [`progress`](Self::progress) is.
    pub(super) fn counting(&self, what: &'static str, total: u64) -> ProgressBar {
        let bar = self.progress(what, total);
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} ETA {eta}") {
            bar.set_style(style);
        }
        bar
    }
}

/// Text as a terminal may be given it: labels, names and errors of a backend are not ours, and a control
/// character in them could move the cursor or worse. Lines stay lines.
pub(super) fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}
