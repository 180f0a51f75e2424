//! Printing: results to standard output, everything else to standard error, progress bars on terminals.

use std::io::Write;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::json;

use super::outcome::Failure;

/// How results are shown.
pub(super) struct Output {
    json: bool,
}

impl Output {
    /// As `--json` says, or the variable SEALBD_FORMAT.
    pub(super) fn new(json: bool) -> Self {
        Self { json: json || std::env::var_os("SEALBD_FORMAT").is_some_and(|format| format == "json") }
    }

    /// Prints a result: as JSON, with the schema number first, or as prose.
    pub(super) fn result(&self, value: &impl Serialize, prose: impl FnOnce() -> String) {
        let text = if self.json {
            let mut object = json!({ "schema": 1 });
            if let (Some(object), Ok(serde_json::Value::Object(fields))) =
                (object.as_object_mut(), serde_json::to_value(value))
            {
                object.extend(fields);
            }
            object.to_string()
        } else {
            prose()
        };
        // A reader that has gone is no failure of the command.
        let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
    }

    /// Tells something on standard error.
    pub(super) fn note(&self, text: &str) {
        let _ = writeln!(std::io::stderr(), "sealbd: {text}");
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
        let _ = writeln!(std::io::stderr(), "sealbd: {message}\nnext: {hint}");
        ExitCode::from(*exit)
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
}
