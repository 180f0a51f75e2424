//! `sealbd key`: adding, changing, removing, listing and testing keys of a volume that is not in use.
//!
//! Every change is staged, written, and proved by opening the volume anew before success is reported.

use std::process::ExitCode;
use std::sync::Arc;

use keymgmt::manager::KeyManager;
use keymgmt::source::Purpose;
use serde::Serialize;

use super::arguments::{BackendOption, KeyAddOptions, KeyRemoveOptions, KeyTestOptions};
use super::context::Context;
use super::inspect::{self, KeyslotReport, keyslot_lines, keyslots};
use super::open::{self, Backend};
use super::outcome::Failure;
use crate::audit::ChangeKind;
use crate::format::header::Header;
use crate::format::keyslot::KeyslotState;
use crate::store::{Access, SlotStore};
use crate::volume::create::add_key;
use crate::volume::unlock::{Unlocked, read_header, write_header};
use crate::volume::{OpenMode, Volume};

#[derive(Serialize)]
struct ChangeReport {
    uuid: String,
    op: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    added: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<usize>,
    header_generation: u64,
    /// The volume was opened with the new state of its keyslots.
    reopened: bool,
}

impl ChangeReport {
    fn prose(&self) -> String {
        let mut text = String::new();
        if let Some(slot) = self.added {
            text.push_str(&format!("Slot {slot} added, tested: unwraps\n"));
        }
        if let Some(slot) = self.removed {
            text.push_str(&format!(
                "Slot {slot} removed; older copies of the header are refused from now on\n"
            ));
        }
        text.push_str(&format!("header generation {}\n", self.header_generation));
        text
    }
}

/// `sealbd key add`.
pub(super) async fn add(options: &KeyAddOptions, context: &Context) -> Result<ExitCode, Failure> {
    let backend = open::backend(&options.backend.backend, Access::ReadWrite).await?;
    let managers = context.managers(&options.slots, Purpose::Unlock)?;
    let unlocked = backend.unlock(&managers, context).await?;
    context.trail.begin()?;
    let new = new_manager(&options.new_slot, context)?;
    let (header, slot) = stage(&backend, unlocked, new, context).await?;
    let report = ChangeReport {
        uuid: inspect::uuid_text(&header),
        op: "key-add",
        added: Some(slot),
        removed: None,
        header_generation: header.generation,
        reopened: true,
    };
    context.output.result(&report, || report.prose());
    Ok(ExitCode::SUCCESS)
}

/// `sealbd key change`: the new key is in and proved before the old one goes.
pub(super) async fn change(options: &KeyAddOptions, context: &Context) -> Result<ExitCode, Failure> {
    let backend = open::backend(&options.backend.backend, Access::ReadWrite).await?;
    let managers = context.managers(&options.slots, Purpose::Unlock)?;
    let unlocked = backend.unlock(&managers, context).await?;
    let old = unlocked.slot;
    context.trail.begin()?;
    let new = context.managers(std::slice::from_ref(&options.new_slot), Purpose::New)?;
    let [manager] = new.as_slice() else {
        return Err(Failure::usage("one new key is needed", "--new-slot SPEC"));
    };
    let (_, slot) = add_to(&backend, unlocked, &**manager, context).await?;
    let proved = reopen(&*backend.store, &new, context, slot).await?;
    let header = retire(&backend, proved, old, &new, context).await?;
    let report = ChangeReport {
        uuid: inspect::uuid_text(&header),
        op: "key-change",
        added: Some(slot),
        removed: Some(old),
        header_generation: header.generation,
        reopened: true,
    };
    context.output.result(&report, || report.prose());
    Ok(ExitCode::SUCCESS)
}

/// `sealbd key remove`.
pub(super) async fn remove(options: &KeyRemoveOptions, context: &Context) -> Result<ExitCode, Failure> {
    let backend = open::backend(&options.backend.backend, Access::ReadWrite).await?;
    let managers = context.managers(&options.slot.slots, Purpose::Unlock)?;
    let unlocked = backend.unlock(&managers, context).await?;
    let number = options.key_slot.unwrap_or(unlocked.slot);
    if unlocked.header.keyslots.get(number).is_none_or(Option::is_none) {
        return Err(Failure::usage(
            format!("keyslot {number} is not in use"),
            "sealbd key list BACKEND shows those in use",
        ));
    }
    let active = |slot: &crate::format::keyslot::Keyslot| slot.state == KeyslotState::Active;
    let others = unlocked.header.keyslots.iter().enumerate();
    let others = others.filter(|(other, slot)| *other != number && slot.as_ref().is_some_and(active)).count();
    if others == 0 && !options.force_last {
        return Err(Failure::refused(
            format!("keyslot {number} is the last one: without it nobody can open the volume"),
            "add another key first, or --force-last to give the data up",
        ));
    }
    context.trail.begin()?;
    // Only another key than the removed one can prove that the volume still opens.
    let keeps_access = number != unlocked.slot;
    let header = retire(&backend, unlocked, number, &managers, context).await?;
    let report = ChangeReport {
        uuid: inspect::uuid_text(&header),
        op: "key-remove",
        added: None,
        removed: Some(number),
        header_generation: header.generation,
        reopened: keeps_access,
    };
    context.output.result(&report, || report.prose());
    Ok(ExitCode::SUCCESS)
}

/// `sealbd key list`.
pub(super) async fn list(options: &BackendOption, context: &Context) -> Result<ExitCode, Failure> {
    #[derive(Serialize)]
    struct Report {
        uuid: String,
        keyslots: Vec<KeyslotReport>,
    }
    let backend = open::backend(&options.backend, Access::Inspect).await?;
    let copies = backend.header(context).await?;
    let header = copies.claimed();
    let report = Report { uuid: inspect::uuid_text(header), keyslots: keyslots(&context.registry, header) };
    context.output.result(&report, || keyslot_lines(&report.keyslots));
    Ok(ExitCode::SUCCESS)
}

/// `sealbd key test`: exit 0 when at least one keyslot opens.
pub(super) async fn test(options: &KeyTestOptions, context: &Context) -> Result<ExitCode, Failure> {
    #[derive(Serialize)]
    struct Report {
        uuid: String,
        slot: usize,
        #[serde(rename = "type")]
        slot_type: &'static str,
    }
    let backend = open::backend(&options.backend.backend, Access::Inspect).await?;
    let managers = context.managers(&options.slot.slots, Purpose::Unlock)?;
    let Unlocked { header, slot, .. } = backend.unlock(&managers, context).await?;
    let slot_type = header.keyslots[slot].as_ref().map_or("", |slot| slot.key.slot_type.name());
    let report = Report { uuid: inspect::uuid_text(&header), slot, slot_type };
    context.output.result(&report, || format!("Slot {slot} {slot_type}: unwraps, header authentic"));
    Ok(ExitCode::SUCCESS)
}

fn new_manager(spec: &str, context: &Context) -> Result<Box<dyn KeyManager>, Failure> {
    context.registry.parse(spec)?;
    let mut made = context.managers(&[spec.to_owned()], Purpose::New)?;
    made.pop().ok_or_else(|| Failure::usage("one new key is needed", "--new-slot SPEC"))
}

/// Adds a key, writes the header, and opens it anew with that key alone.
async fn stage(
    backend: &Backend,
    unlocked: Unlocked,
    manager: Box<dyn KeyManager>,
    context: &Context,
) -> Result<(Header, usize), Failure> {
    let (header, slot) = add_to(backend, unlocked, &*manager, context).await?;
    reopen(&*backend.store, &[manager], context, slot).await?;
    Ok((header, slot))
}

async fn add_to(
    backend: &Backend,
    unlocked: Unlocked,
    manager: &dyn KeyManager,
    context: &Context,
) -> Result<(Header, usize), Failure> {
    let Unlocked { mut header, keys, dek, .. } = unlocked;
    let slot = add_key(&mut header, &dek, &keys, manager, 0).await?;
    write_header(&*backend.store, &mut header, &keys).await?;
    context.changed(ChangeKind::Added, slot, header.keyslots[slot].as_ref());
    Ok((header, slot))
}

/// Opens the volume with `managers` and makes sure that it was slot `expected` that opened.
async fn reopen(
    store: &dyn SlotStore,
    managers: &[Box<dyn KeyManager>],
    context: &Context,
    expected: usize,
) -> Result<Unlocked, Failure> {
    let unlocked = read_header(store).await?.unlock_slot(context.engine, managers, expected).await?;
    Ok(unlocked)
}

/// Removes a keyslot and writes a root that refuses headers from before.
async fn retire(
    backend: &Backend,
    unlocked: Unlocked,
    number: usize,
    managers: &[Box<dyn KeyManager>],
    context: &Context,
) -> Result<Header, Failure> {
    let Unlocked { mut header, keys, dek, slot } = unlocked;
    let removed = header.keyslots[number].take();
    write_header(&*backend.store, &mut header, &keys).await?;
    context.changed(ChangeKind::Removed, number, removed.as_ref());
    let store: Arc<dyn SlotStore> = backend.store.clone();
    let keeps_access = slot != number;
    if keeps_access {
        read_header(&*store).await?.unlock(context.engine, managers).await?;
    }
    let unlocked = Unlocked { header: header.clone(), keys, dek, slot };
    Volume::open(store, unlocked, OpenMode::ReadWrite).await?.close().await?;
    Ok(header)
}
