//! `sealbd revoke`: a key is taken away from whoever has it.
//!
//! Its keyslot is marked destroyed and older headers are refused; then its key is destroyed in the key manager,
//! where that can be done without harm to others, and the keyslot is freed. A process that serves the volume
//! goes on until it is stopped (`--now` stops it): it needs no key manager once it runs.

use std::process::ExitCode;

use keymgmt::manager::SlotType;
use serde::Serialize;

use super::arguments::RevokeOptions;
use super::context::Context;
use super::destroy::{Fate, destroy_parked};
use super::inspect;
use super::key::Opened;
use super::outcome::Failure;
use crate::format::keyslot::KeyslotState;

#[derive(Serialize)]
struct Report {
    uuid: String,
    op: &'static str,
    slot: usize,
    manager: &'static str,
    /// What became of the key that wrapped the data key: `destroyed`, or why it was not.
    kek: String,
    serving: &'static str,
    header_generation: u64,
    request_id: String,
    dry_run: bool,
}

/// Runs the command.
pub(super) async fn run(options: &RevokeOptions, context: &Context) -> Result<ExitCode, Failure> {
    let mut opened = Opened::find(&options.backend, &options.slot.slots, context).await?;
    let number = options.key_slot;
    let slot_type = opened.keyslot(number)?.key.slot_type;
    let Some(proof) = opened.proof_without(number, context).await else {
        return Err(Failure::refused(
            format!("no key that was given opens another keyslot than {number}"),
            "--slot SPEC, a key that stays; sealbd erase BACKEND gives all of them up",
        ));
    };
    let mut report = Report {
        uuid: inspect::uuid_text(&opened.unlocked.header),
        op: "revoke",
        slot: number,
        manager: slot_type.name(),
        kek: "not destroyed: dry run".into(),
        serving: "not served",
        header_generation: opened.unlocked.header.generation,
        request_id: context.request_id.to_string(),
        dry_run: options.dry_run,
    };
    let mut failed = None;
    if !options.dry_run {
        context.trail.begin()?;
        let fate = withdraw(&mut opened, number, proof, context).await?;
        report.kek =
            fate.as_ref().map_or("not destroyed: the user's own secret".into(), |fate| told(fate, number));
        report.header_generation = opened.unlocked.header.generation;
        // Whatever the key manager says: the keyslot is gone.
        report.serving = opened.home.end_serving(options.now).await?;
        if let Some(Fate::Failed(failure)) = fate {
            failed = Some(failure);
        }
    }
    context.output.result(&report, || prose(&report));
    let Some(Failure { message, .. }) = failed else { return Ok(ExitCode::SUCCESS) };
    let failure = Failure::partly(
        format!("keyslot {number} opens nothing any more; its key is not destroyed yet: {message}"),
        format!("sealbd revoke BACKEND --key-slot {number} once more, when the key manager answers"),
    )
    .naming(&opened.home.name());
    context.trail.failed(&failure);
    context.output.tell(&failure);
    Ok(ExitCode::from(failure.exit))
}

/// What became of the key of the keyslot.
fn told(fate: &Fate, number: usize) -> String {
    let text = fate.text();
    match fate {
        Fate::Destroyed | Fate::Kept(_) | Fate::Denied(_) => text,
        Fate::Waits(_) | Fate::NotGiven | Fate::Failed(_) => format!(
            "{text}; revoke or rotate --kek with --slot kms:PROVIDER does it (keyslot {number} opens nothing meanwhile)"
        ),
    }
}

/// Takes the keyslot out of use, then its key; tells what became of that, unless it is the user's own.
async fn withdraw(
    opened: &mut Opened,
    number: usize,
    proof: usize,
    context: &Context,
) -> Result<Option<Fate>, Failure> {
    let mut header = opened.unlocked.header.clone();
    let slot_type = opened.keyslot(number)?.key.slot_type;
    let own = matches!(slot_type, SlotType::Passphrase | SlotType::Keyfile | SlotType::Recovery);
    if own {
        header.keyslots[number] = None;
    } else if let Some(slot) = &mut header.keyslots[number] {
        slot.state = KeyslotState::Destroyed;
    }
    opened.unlocked.slot = proof;
    opened.commit(header, Some(proof), context).await?;
    opened.home.refuse_older(&opened.unlocked, context).await?;
    if own {
        return Ok(None);
    }
    let fates = destroy_parked(opened, context).await?;
    let fate = fates.into_iter().find(|(place, _)| *place == number);
    Ok(Some(fate.map_or(Fate::NotGiven, |(_, fate)| fate)))
}

fn prose(report: &Report) -> String {
    let Report { slot, manager, kek, serving, dry_run, .. } = report;
    if *dry_run {
        return format!("dry run, nothing is changed: slot {slot} ({manager}) would be revoked");
    }
    format!(
        "Slot {slot} ({manager}) opens the volume no longer; older copies of the header are refused from now on\n\
         its key in the key manager: {kek}\nserving: {serving}\n\
         Whoever kept a copy of the data key, or of an old header and its key, still reads old copies of the data."
    )
}
