//! `sealbd rotate --kek`: a new version of the key-encryption key in its manager, and the data key wrapped
//! under it. Costs the same whatever the size of the volume.
//!
//! Keyslot by keyslot: *staged* (new version made, key wrapped), *verified* (the staged header opens by it),
//! *committed* (on the store, read back), *retired* (a root refuses the header before). With `--retire-old` the
//! old version is destroyed in the manager last. Until that is done it stands in a keyslot of its own, marked
//! destroyed, which opens nothing; a run that was cut off there is finished by the next one.

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use keymgmt::manager::{KeyError, SlotType};

use super::arguments::{BackendOption, RotateOptions};
use super::context::Context;
use super::destroy::{Fate, destroy_parked, providers_of};
use super::inspect;
use super::key::{Opened, PHASES};
use super::outcome::Failure;
use super::rotate_all;
use super::rotate_report::{Failed, Finished, RotateReport, Rotated, Skipped, Version, Why, prose};
use crate::format::header::Header;
use crate::format::keyslot::{Keyslot, KeyslotState};
use crate::volume::create::{free_keyslot, wrap_keyslot};
use crate::volume::unlock::wrap_context;

/// What to rotate in a volume.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) key_slot: Option<usize>,
    pub(super) older_than: Option<Duration>,
    pub(super) retire_old: bool,
    pub(super) dry_run: bool,
    /// One volume of all.
    pub(super) fleet: bool,
}

/// Runs the command: exit 14 when some keyslot was rotated and another one failed.
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
    let fleet = options.backend.is_none();
    let wanted = Wanted { key_slot, older_than, retire_old, dry_run, fleet };
    let Some(backend) = &options.backend else { return rotate_all::run(wanted, context).await };
    let backend = BackendOption { backend: backend.clone() };
    let report = Box::pin(rotate(&backend, &options.slots, wanted, context)).await?;
    context.output.result(&report, || prose(&report));
    match report.failure() {
        None => Ok(ExitCode::SUCCESS),
        Some(failure) => {
            context.trail.failed(&failure);
            context.output.tell(&failure);
            Ok(ExitCode::from(failure.exit))
        }
    }
}

/// Rotates the keys of one volume.
///
/// # Errors
/// When nothing was changed. Once a keyslot was, whatever fails is in the report.
pub(super) async fn rotate(
    backend: &BackendOption,
    slots: &[String],
    wanted: Wanted,
    context: &Context,
) -> Result<RotateReport, Failure> {
    let begun = Instant::now();
    let mut opened = Opened::find(backend, slots, context).await?;
    let mut plan = plan(&opened, wanted, context).await?;
    let mut finished = Vec::new();
    if !wanted.dry_run {
        if !plan.due.is_empty() || has_parked(&opened) {
            context.trail.begin()?;
        }
        finished = finish_earlier(&mut opened, &mut plan.failed, context).await?;
    }
    let (mut rotated, mut first_failure) = (Vec::new(), None);
    for Due { slot, manager } in plan.due {
        let kind = type_of(&opened, slot);
        let Staged { entry, header } = match stage(&opened, slot, manager, wanted, context).await {
            Ok(staged) => staged,
            Err(failure) => {
                first_failure = first_failure.or_else(|| Some(failure.clone()));
                plan.failed.push(Failed { slot, manager: kind, problem: failure.into() });
                continue;
            }
        };
        if let Some(header) = header
            && let Err(failure) = opened.commit(header, Some(slot), context).await
        {
            if rotated.is_empty() {
                return Err(failure);
            }
            // The header on the store may be the old one or the new one: no further change on top of it.
            plan.failed.push(Failed { slot, manager: kind, problem: failure.into() });
            break;
        }
        rotated.push(entry);
    }
    if let Some(failure) = first_failure.filter(|_| rotated.is_empty() && finished.is_empty()) {
        return Err(failure.of(opened.home.name()));
    }
    let changed = !wanted.dry_run && !rotated.is_empty();
    if changed {
        opened.home.refuse_older(&opened.unlocked, context).await?;
    }
    if changed && wanted.retire_old {
        retire(&mut opened, &mut rotated, &mut plan.failed, context).await?;
    }
    let header = &opened.unlocked.header;
    Ok(RotateReport {
        volume: opened.home.name(),
        uuid: inspect::uuid_text(header),
        op: "rotate-kek",
        rotated,
        skipped: plan.skipped,
        failed: plan.failed,
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

/// A keyslot to rotate, and the manager that opens it.
struct Due {
    slot: usize,
    manager: usize,
}

/// What is to be done, found out before anything is.
struct Plan {
    due: Vec<Due>,
    skipped: Vec<Skipped>,
    failed: Vec<Failed>,
}

/// Which keyslots are to be rotated, by which manager, and those that are left, with the reason.
async fn plan(opened: &Opened, wanted: Wanted, context: &Context) -> Result<Plan, Failure> {
    let mut plan = Plan { due: Vec::new(), skipped: Vec::new(), failed: Vec::new() };
    let mut first_failure = None;
    if let Some(number) = wanted.key_slot {
        opened.keyslot(number)?;
    }
    for (number, slot) in opened.unlocked.header.keyslots.iter().enumerate() {
        let Some(slot) = slot else { continue };
        if slot.state != KeyslotState::Active || wanted.key_slot.is_some_and(|only| only != number) {
            continue;
        }
        let manager = slot.key.slot_type.name();
        let mut skip =
            |why: Why| plan.skipped.push(Skipped { slot: number, manager, reason: why.text(), why });
        let own = matches!(slot.key.slot_type, SlotType::Passphrase | SlotType::Keyfile | SlotType::Recovery);
        if own {
            skip(Why::OwnSecret);
        } else if let Some(age) = younger(slot, wanted.older_than) {
            skip(Why::Young(age));
        } else {
            match manager_of(opened, slot, context).await {
                Ok(Ok(manager)) => plan.due.push(Due { slot: number, manager }),
                Ok(Err(why)) => skip(Why::NoManager(why)),
                Err(error) => {
                    let failure = Failure::from(error);
                    let told = format!("slot {number} ({manager})");
                    first_failure = first_failure.or_else(|| Some(failure.clone().of(told)));
                    plan.failed.push(Failed { slot: number, manager, problem: failure.into() });
                }
            }
        }
    }
    if !plan.due.is_empty() || has_parked(opened) && !wanted.dry_run {
        return Ok(plan);
    }
    if let Some(failure) = first_failure {
        return Err(failure.of(opened.home.name()));
    }
    let kept_well = |skipped: &Skipped| match skipped.why {
        Why::Young(_) => true,
        // Of a fleet some volumes may have no key manager; who names such a volume has made a mistake.
        Why::OwnSecret => wanted.fleet,
        Why::NoManager(_) => false,
    };
    if plan.skipped.iter().any(kept_well) && plan.skipped.iter().all(|s| !matches!(s.why, Why::NoManager(_)))
    {
        return Ok(plan);
    }
    let why: Vec<String> =
        plan.skipped.iter().map(|s| format!("slot {} ({}): {}", s.slot, s.manager, s.reason)).collect();
    Err(Failure::refused(
        format!("no keyslot is kept by a key manager that was given: {}", why.join("; ")),
        "sealbd rotate BACKEND --kek --slot kms:PROVIDER; sealbd key list BACKEND shows the keyslots",
    ))
}

/// How old a keyslot is that is younger than it must be.
fn younger(slot: &Keyslot, older_than: Option<Duration>) -> Option<Duration> {
    let made = UNIX_EPOCH + Duration::from_secs(slot.created);
    // A keyslot from the future has no age.
    let age = SystemTime::now().duration_since(made).unwrap_or_default();
    let age = Duration::from_secs(age.as_secs());
    older_than.is_some_and(|limit| age < limit).then_some(age)
}

/// A keyslot under a new version, on no store yet; without a header in a dry run.
struct Staged {
    entry: Rotated,
    header: Option<Header>,
}

/// Has the manager make a new version, and wraps the data key under it.
async fn stage(
    opened: &Opened,
    number: usize,
    manager: usize,
    wanted: Wanted,
    context: &Context,
) -> Result<Staged, Failure> {
    let old = opened.keyslot(number)?.clone();
    let from = Version::of(context.registry.describe(&old.key)?);
    let old_stays = if wanted.retire_old { "to be destroyed" } else { "kept" };
    let slot_type = old.key.slot_type.name();
    let mut entry =
        Rotated { slot: number, manager: slot_type, from, to: None, old: old_stays.into(), parked: None };
    if wanted.dry_run {
        return Ok(Staged { entry, header: None });
    }
    let (header, dek, keys) = (&opened.unlocked.header, &opened.unlocked.dek, &opened.unlocked.keys);
    let mut next = header.clone();
    let place = if wanted.retire_old { Some(free_keyslot(&next)?) } else { None };
    let manager = &opened.managers[manager];
    manager.rotate(&old.key).await?;
    let new = wrap_keyslot(header, dek, keys, &**manager, old.priority).await?;
    let to = Version::of(context.registry.describe(&new.key)?);
    if to == entry.from {
        return Err(Failure::integrity(
            format!("slot {number}: the key manager made no new version ({})", to.text()),
            "look for the cause in the key manager; nothing was changed",
        ));
    }
    next.keyslots[number] = Some(new);
    if let Some(place) = place {
        next.keyslots[place] = Some(Keyslot { state: KeyslotState::Destroyed, ..old });
    }
    entry.to = Some(to);
    entry.parked = place;
    Ok(Staged { entry, header: Some(next) })
}

/// The manager that opens a keyslot; none, and why, when those that were given do not know it.
async fn manager_of(
    opened: &Opened,
    slot: &Keyslot,
    context: &Context,
) -> Result<Result<usize, Option<String>>, KeyError> {
    let (mut last, mut asked) = (None, 0);
    for (index, manager) in opened.managers.iter().enumerate() {
        if manager.slot_type() != slot.key.slot_type {
            continue;
        }
        asked += 1;
        match manager.unwrap(&slot.key, wrap_context(&opened.unlocked.header)).await {
            Ok(Some(dek)) if dek.matches(&opened.unlocked.dek) => return Ok(Ok(index)),
            Ok(_) => {}
            // What trying again may mend is told before a no, which may be that of a manager of the same kind.
            Err(_) if matches!(last, Some(KeyError::Unreachable(_))) => {}
            Err(error) => last = Some(error),
        }
    }
    match last {
        // The keyslot may be that of a manager which was not given.
        Some(KeyError::Denied(why)) if asked < providers_of(slot.key.slot_type, context) => {
            Ok(Err(Some(why)))
        }
        Some(error) => Err(error),
        None => Ok(Err(None)),
    }
}

/// Destroys the old versions, and notes what became of each.
async fn retire(
    opened: &mut Opened,
    rotated: &mut [Rotated],
    failed: &mut Vec<Failed>,
    context: &Context,
) -> Result<(), Failure> {
    for (number, fate) in destroy_parked(opened, context).await? {
        let Some(entry) = rotated.iter_mut().find(|entry| entry.parked == Some(number)) else { continue };
        entry.old = waiting(number, &fate);
        if let Fate::Failed(failure) = fate {
            failed.push(Failed { slot: number, manager: type_of(opened, number), problem: failure.into() });
        }
    }
    Ok(())
}

/// Destroys what earlier runs left to be destroyed.
async fn finish_earlier(
    opened: &mut Opened,
    failed: &mut Vec<Failed>,
    context: &Context,
) -> Result<Vec<Finished>, Failure> {
    if !has_parked(opened) {
        return Ok(Vec::new());
    }
    let mut finished = Vec::new();
    for (slot, fate) in destroy_parked(opened, context).await? {
        finished.push(Finished { slot, old: waiting(slot, &fate) });
        if let Fate::Failed(failure) = fate {
            failed.push(Failed { slot, manager: type_of(opened, slot), problem: failure.into() });
        }
    }
    Ok(finished)
}

/// What became of an old version, and where it waits if it does.
fn waiting(number: usize, fate: &Fate) -> String {
    match fate {
        Fate::Destroyed | Fate::Kept(_) | Fate::Denied(_) => fate.text(),
        Fate::Waits(_) | Fate::NotGiven | Fate::Failed(_) => {
            format!("{}; it waits in keyslot {number}, which opens nothing", fate.text())
        }
    }
}

fn has_parked(opened: &Opened) -> bool {
    opened.unlocked.header.keyslots.iter().flatten().any(|slot| slot.state == KeyslotState::Destroyed)
}

fn type_of(opened: &Opened, number: usize) -> &'static str {
    opened.keyslot(number).map_or("", |slot| slot.key.slot_type.name())
}
