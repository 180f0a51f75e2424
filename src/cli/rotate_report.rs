//! What a rotation did, for people and programs.

use std::time::Duration;

use keymgmt::manager::KeyDescription;
use serde::Serialize;

use super::list::Problem;
use super::outcome::Failure;

/// What was done to one volume.
#[derive(Serialize)]
pub(super) struct RotateReport {
    pub(super) volume: String,
    pub(super) uuid: String,
    pub(super) op: &'static str,
    pub(super) rotated: Vec<Rotated>,
    pub(super) skipped: Vec<Skipped>,
    /// What should have been done and was not.
    pub(super) failed: Vec<Failed>,
    /// Old versions of runs that were cut off.
    pub(super) finished: Vec<Finished>,
    pub(super) phases: Vec<&'static str>,
    pub(super) header_generation: u64,
    /// Never: only the key was wrapped anew.
    pub(super) data_rewritten: bool,
    /// The volume opens by every rotated keyslot.
    pub(super) reopened_ok: bool,
    pub(super) duration_ms: u128,
    pub(super) request_id: String,
    pub(super) dry_run: bool,
}

/// A keyslot whose key has a new version.
#[derive(Serialize)]
pub(super) struct Rotated {
    pub(super) slot: usize,
    pub(super) manager: &'static str,
    pub(super) from: Version,
    pub(super) to: Option<Version>,
    /// What became of the old version: `kept`, `to be destroyed` (dry run), `destroyed`, or why it could not be.
    pub(super) old: String,
    /// The keyslot where it waits to be destroyed.
    #[serde(skip)]
    pub(super) parked: Option<usize>,
}

/// A keyslot that was left as it is.
#[derive(Serialize)]
pub(super) struct Skipped {
    pub(super) slot: usize,
    pub(super) manager: &'static str,
    pub(super) reason: String,
    #[serde(skip)]
    pub(super) why: Why,
}

pub(super) enum Why {
    OwnSecret,
    /// With the no of one of them that may be another's.
    NoManager(Option<String>),
    Young(Duration),
}

impl Why {
    pub(super) fn text(&self) -> String {
        match self {
            Self::OwnSecret => "your own secret: sealbd key change".into(),
            Self::NoManager(None) => "no key manager that was given opens it".into(),
            Self::NoManager(Some(why)) => format!("no key manager that was given opens it ({why})"),
            Self::Young(age) => format!("made {} ago", humantime::format_duration(*age)),
        }
    }
}

/// A keyslot whose key manager failed.
#[derive(Serialize)]
pub(super) struct Failed {
    pub(super) slot: usize,
    pub(super) manager: &'static str,
    pub(super) problem: Problem,
}

/// An old version that an earlier run left.
#[derive(Serialize)]
pub(super) struct Finished {
    pub(super) slot: usize,
    pub(super) old: String,
}

impl RotateReport {
    /// That not everything was done.
    pub(super) fn failure(&self) -> Option<Failure> {
        let failed: Vec<String> = self
            .failed
            .iter()
            .map(|f| format!("slot {} ({}): {}", f.slot, f.manager, f.problem.message))
            .collect();
        (!failed.is_empty()).then(|| {
            Failure::partly(
                format!("{}: {} keyslots rotated; {}", self.volume, self.rotated.len(), failed.join("; ")),
                "sealbd rotate BACKEND --kek --key-slot N, once the cause is mended; what is done is done",
            )
            .naming(&self.volume)
        })
    }
}

#[derive(Serialize, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) key_id: Option<String>,
    pub(super) version: Option<String>,
}

impl Version {
    pub(super) fn of(described: KeyDescription) -> Self {
        let KeyDescription { key_id, version, text: _ } = described;
        Self { key_id, version }
    }

    pub(super) fn text(&self) -> String {
        let parts: Vec<&str> = self.key_id.iter().chain(&self.version).map(String::as_str).collect();
        if parts.is_empty() { "unnamed".into() } else { parts.join(" version ") }
    }
}

/// The report for people.
pub(super) fn prose(report: &RotateReport) -> String {
    let mut text = String::new();
    for Rotated { slot, manager, from, to, old, parked: _ } in &report.rotated {
        let to = to.as_ref().map_or_else(|| "a new version (dry run)".to_owned(), Version::text);
        text.push_str(&format!(
            "Slot {slot} {manager}: {} → {to}, tested: unwraps; old version {old}\n",
            from.text()
        ));
    }
    for Finished { slot, old } in &report.finished {
        text.push_str(&format!("Slot {slot}: what an earlier rotation left: {old}\n"));
    }
    for Failed { slot, manager, problem } in &report.failed {
        text.push_str(&format!("Slot {slot} {manager}: FAILED: {}\n", problem.message));
    }
    for Skipped { slot, manager, reason, why: _ } in &report.skipped {
        text.push_str(&format!("Slot {slot} {manager}: left ({reason})\n"));
    }
    if report.rotated.is_empty() {
        text.push_str("nothing was due\n");
    } else if !report.dry_run {
        text.push_str("No data was rewritten; older copies of the header are refused from now on\n");
    }
    text.push_str(&format!("header generation {}", report.header_generation));
    text
}
