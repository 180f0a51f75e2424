//! `sealbd rotate --kek`: a new version of the key-encryption key in its manager, and the data key wrapped
//! under it. Costs the same whatever the size of the volume.
//!
//! Keyslot by keyslot: *staged* (new version made, key wrapped), *verified* (the staged header opens by it),
//! *committed* (on the store, read back), *retired* (a root refuses the header before). With `--retire-old` the
//! old version is destroyed in the manager last. Until that is done it stands in a keyslot of its own, marked
//! destroyed, which opens nothing; a run that was cut off there is finished by the next one.

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use keymgmt::manager::{KeyDescription, SlotType};
use serde::Serialize;

use super::arguments::{BackendOption, RotateOptions};
use super::context::Context;
use super::destroy::destroy_parked;
use super::inspect;
use super::key::{Opened, PHASES};
use super::outcome::Failure;
use super::rotate_all;
use crate::format::keyslot::{Keyslot, KeyslotState};
use crate::volume::create::{free_keyslot, wrap_keyslot};
use crate::volume::unlock::wrap_context;

/// What was done to one volume.
#[derive(Serialize)]
pub(super) struct RotateReport {
    pub(super) volume: String,
    uuid: String,
    op: &'static str,
    pub(super) rotated: Vec<Rotated>,
    pub(super) skipped: Vec<Skipped>,
    /// Old versions of runs that were cut off.
    finished: Vec<usize>,
    phases: Vec<&'static str>,
    header_generation: u64,
    /// Never: only the key was wrapped anew.
    data_rewritten: bool,
    /// The volume opens by every rotated keyslot.
    reopened_ok: bool,
    duration_ms: u128,
    request_id: String,
    dry_run: bool,
}

/// A keyslot whose key has a new version.
#[derive(Serialize)]
pub(super) struct Rotated {
    slot: usize,
    manager: &'static str,
    from: Version,
    to: Option<Version>,
    /// What became of the old version: `kept`, `destroyed`, `would be destroyed` or why it could not be.
    old: String,
}

/// A keyslot that was left as it is.
#[derive(Serialize)]
pub(super) struct Skipped {
    slot: usize,
    manager: &'static str,
    reason: String,
}

#[derive(Serialize, PartialEq, Eq)]
struct Version {
    key_id: Option<String>,
    version: Option<String>,
}

impl Version {
    fn of(described: KeyDescription) -> Self {
        let KeyDescription { key_id, version, text: _ } = described;
        Self { key_id, version }
    }

    fn text(&self) -> String {
        let parts: Vec<&str> = self.key_id.iter().chain(&self.version).map(String::as_str).collect();
        if parts.is_empty() { "unnamed".into() } else { parts.join(" version ") }
    }
}

/// What to rotate in a volume.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) key_slot: Option<usize>,
    pub(super) older_than: Option<Duration>,
    pub(super) retire_old: bool,
    pub(super) dry_run: bool,
}

/// Runs the command.
pub(super) async fn run(options: &RotateOptions, context: &Context) -> Result<ExitCode, Failure> {
    if options.dek {
        return Err(Failure::refused(
            "rotate --dek is reserved: there is no online re-encryption yet",
            "sealbd rotate BACKEND --kek --slot SPEC; for a new data key copy the data to a new volume",
        ));
    }
    if !options.kek {
        return Err(Failure::usage(
            "rotate what? --kek wraps the data key under a new key of the key manager, --dek rewrites all data",
            "sealbd rotate BACKEND --kek --slot SPEC",
        ));
    }
    let RotateOptions { key_slot, older_than, retire_old, dry_run, .. } = *options;
    let wanted = Wanted { key_slot, older_than, retire_old, dry_run };
    let Some(backend) = &options.backend else { return rotate_all::run(wanted, context).await };
    let backend = BackendOption { backend: backend.clone() };
    let report = Box::pin(rotate(&backend, &options.slots, wanted, context)).await?;
    context.output.result(&report, || prose(&report));
    Ok(ExitCode::SUCCESS)
}

/// Rotates the keys of one volume.
pub(super) async fn rotate(
    backend: &BackendOption,
    slots: &[String],
    wanted: Wanted,
    context: &Context,
) -> Result<RotateReport, Failure> {
    let begun = Instant::now();
    let mut opened = Opened::find(backend, slots, context).await?;
    let finished = if wanted.dry_run { Vec::new() } else { finish_earlier(&mut opened, context).await? };
    let (due, skipped) = candidates(&opened, wanted)?;
    if !wanted.dry_run && !due.is_empty() {
        context.trail.begin()?;
    }
    let mut rotated = Vec::new();
    for number in due {
        rotated.push(rotate_slot(&mut opened, number, wanted, context).await?);
    }
    let changed = !wanted.dry_run && !rotated.is_empty();
    if changed {
        opened.home.refuse_older(&opened.unlocked).await?;
    }
    if changed && wanted.retire_old {
        for (number, why) in destroy_parked(&mut opened, context).await? {
            if let Some(entry) = rotated.iter_mut().find(|entry| entry.old == parked(number)) {
                entry.old = why.unwrap_or_else(|| "destroyed".into());
            }
        }
    }
    let header = &opened.unlocked.header;
    Ok(RotateReport {
        volume: opened.home.name(),
        uuid: inspect::uuid_text(header),
        op: "rotate-kek",
        rotated,
        skipped,
        finished,
        phases: if changed { PHASES.to_vec() } else { Vec::new() },
        header_generation: header.generation,
        data_rewritten: false,
        reopened_ok: changed,
        duration_ms: begun.elapsed().as_millis(),
        request_id: context.request_id.to_string(),
        dry_run: wanted.dry_run,
    })
}

/// The keyslots to rotate, and those that are left, with the reason.
fn candidates(opened: &Opened, wanted: Wanted) -> Result<(Vec<usize>, Vec<Skipped>), Failure> {
    let (mut due, mut skipped) = (Vec::new(), Vec::new());
    if let Some(number) = wanted.key_slot {
        opened.keyslot(number)?;
    }
    for (number, slot) in opened.unlocked.header.keyslots.iter().enumerate() {
        let Some(slot) = slot else { continue };
        if slot.state != KeyslotState::Active || wanted.key_slot.is_some_and(|only| only != number) {
            continue;
        }
        let manager = slot.key.slot_type.name();
        let given = opened.managers.iter().any(|manager| manager.slot_type() == slot.key.slot_type);
        let reason = match slot.key.slot_type {
            SlotType::Passphrase | SlotType::Keyfile | SlotType::Recovery => {
                Some("your own secret: sealbd key change".to_owned())
            }
            _ if !given => Some("no such key manager was given".to_owned()),
            _ => younger(slot, wanted.older_than),
        };
        match reason {
            None => due.push(number),
            Some(reason) => skipped.push(Skipped { slot: number, manager, reason }),
        }
    }
    let nothing_to_rotate = skipped.iter().all(|skipped| !skipped.reason.starts_with("made "));
    if due.is_empty() && nothing_to_rotate {
        let why: Vec<String> =
            skipped.iter().map(|s| format!("slot {} ({}): {}", s.slot, s.manager, s.reason)).collect();
        return Err(Failure::refused(
            format!("no keyslot is kept by a key manager that was given: {}", why.join("; ")),
            "sealbd rotate BACKEND --kek --slot kms:PROVIDER; sealbd key list BACKEND shows the keyslots",
        ));
    }
    Ok((due, skipped))
}

fn younger(slot: &Keyslot, older_than: Option<Duration>) -> Option<String> {
    let made = UNIX_EPOCH + Duration::from_secs(slot.created);
    // A keyslot from the future has no age.
    let age = SystemTime::now().duration_since(made).unwrap_or_default();
    let age = Duration::from_secs(age.as_secs());
    older_than
        .is_some_and(|limit| age < limit)
        .then(|| format!("made {} ago", humantime::format_duration(age)))
}

async fn rotate_slot(
    opened: &mut Opened,
    number: usize,
    wanted: Wanted,
    context: &Context,
) -> Result<Rotated, Failure> {
    let old = opened.keyslot(number)?.clone();
    let slot_type = old.key.slot_type;
    let from = Version::of(context.registry.describe(&old.key)?);
    let manager = manager_of(opened, &old).await?;
    let fate = if wanted.dry_run && wanted.retire_old { "would be destroyed" } else { "kept" };
    let report = Rotated { slot: number, manager: slot_type.name(), from, to: None, old: fate.into() };
    if wanted.dry_run {
        return Ok(report);
    }
    let manager = &opened.managers[manager];
    manager.rotate(&old.key).await?;
    let (header, dek, keys) = (&opened.unlocked.header, &opened.unlocked.dek, &opened.unlocked.keys);
    let new = wrap_keyslot(header, dek, keys, &**manager, old.priority).await?;
    let to = Version::of(context.registry.describe(&new.key)?);
    if to == report.from {
        return Err(Failure::integrity(
            format!("slot {number}: the key manager made no new version ({})", to.text()),
            "look for the cause in the key manager; nothing was changed",
        ));
    }
    let mut next = header.clone();
    next.keyslots[number] = Some(new);
    let mut report = Rotated { to: Some(to), ..report };
    if wanted.retire_old {
        let place = free_keyslot(&next)?;
        next.keyslots[place] = Some(Keyslot { state: KeyslotState::Destroyed, ..old });
        report.old = parked(place);
    }
    opened.commit(next, Some(number), context).await?;
    Ok(report)
}

/// The manager that opens a keyslot.
async fn manager_of(opened: &Opened, slot: &Keyslot) -> Result<usize, Failure> {
    let mut last = None;
    for (index, manager) in opened.managers.iter().enumerate() {
        if manager.slot_type() != slot.key.slot_type {
            continue;
        }
        match manager.unwrap(&slot.key, wrap_context(&opened.unlocked.header)).await {
            Ok(Some(dek)) if dek.matches(&opened.unlocked.dek) => return Ok(index),
            Ok(_) => {}
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(
        || {
            let name = slot.key.slot_type.name();
            Failure::no_key(
                format!("no {name} that was given opens its keyslot, so none may rotate it"),
                "sealbd key test BACKEND --slot SPEC",
            )
        },
        Failure::from,
    ))
}

/// Stands in a report until the old version is destroyed.
fn parked(place: usize) -> String {
    format!("still in keyslot {place}")
}

/// Destroys what earlier runs left to be destroyed.
async fn finish_earlier(opened: &mut Opened, context: &Context) -> Result<Vec<usize>, Failure> {
    let waiting = opened.unlocked.header.keyslots.iter().flatten();
    if !waiting.into_iter().any(|slot| slot.state == KeyslotState::Destroyed) {
        return Ok(Vec::new());
    }
    let done = destroy_parked(opened, context).await?;
    Ok(done.into_iter().map(|(number, _)| number).collect())
}

/// The report for people.
pub(super) fn prose(report: &RotateReport) -> String {
    let mut text = String::new();
    for Rotated { slot, manager, from, to, old } in &report.rotated {
        let to = to.as_ref().map_or_else(|| "a new version (dry run)".to_owned(), Version::text);
        text.push_str(&format!(
            "Slot {slot} {manager}: {} → {to}, tested: unwraps; old version {old}\n",
            from.text()
        ));
    }
    for number in &report.finished {
        text.push_str(&format!("Slot {number}: what an earlier rotation left is destroyed\n"));
    }
    for Skipped { slot, manager, reason } in &report.skipped {
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
