//! `sealbd key`: adding, changing, removing, listing and testing keys.
//!
//! Every change goes the same way: *staged* in memory, *verified* by opening the staged header through the key
//! manager, *committed* to the store and read back, and the old header *retired*: a root refuses it from then
//! on. A process that ends anywhere in between leaves a volume that opens.

use std::process::ExitCode;

use keymgmt::manager::{KeyManager, SlotType};
use keymgmt::source::Purpose;
use serde::Serialize;

use super::arguments::{
    BackendOption, KeyAddOptions, KeyKillOptions, KeyPriorityOptions, KeyRemoveOptions, KeyTestOptions,
};
use super::context::Context;
use super::home::{Home, prove};
use super::inspect::{self, KeyslotReport, keyslot_lines, keyslots};
use super::open;
use super::outcome::Failure;
use crate::audit::ChangeKind;
use crate::format::header::Header;
use crate::format::keyslot::{Keyslot, KeyslotState};
use crate::store::Access;
use crate::volume::VolumeError;
use crate::volume::create::{free_keyslot, wrap_keyslot};
use crate::volume::unlock::Unlocked;

/// What a change of a key did, for people and programs.
#[derive(Serialize)]
struct ChangeReport {
    uuid: String,
    op: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    added: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    slot: Option<usize>,
    phases: Vec<&'static str>,
    header_generation: u64,
    /// The volume was opened with the new state of its keyslots.
    reopened: bool,
    dry_run: bool,
    #[serde(skip)]
    prose: String,
}

/// The steps of a change, in order.
pub(super) const PHASES: [&str; 4] = ["staged", "verified", "committed", "retired"];

impl ChangeReport {
    fn new(op: &'static str, header: &Header) -> Self {
        Self {
            uuid: inspect::uuid_text(header),
            op,
            added: None,
            removed: None,
            slot: None,
            phases: Vec::new(),
            header_generation: header.generation,
            reopened: false,
            dry_run: false,
            prose: String::new(),
        }
    }

    /// All of it was done; `header` is the new one.
    fn done(mut self, header: &Header, reopened: bool, prose: String) -> Self {
        self.phases = PHASES.to_vec();
        self.header_generation = header.generation;
        self.reopened = reopened;
        self.prose = prose;
        self
    }

    /// Nothing was done; `prose` says what would have been.
    fn dry(mut self, prose: String) -> Self {
        self.dry_run = true;
        self.prose = format!("dry run, nothing is changed: {prose}");
        self
    }

    fn tell(self, context: &Context) -> Result<ExitCode, Failure> {
        context.output.result(&self, || {
            let generation = self.header_generation;
            let text = self.prose.as_str();
            if self.phases.is_empty() {
                text.to_owned()
            } else {
                format!("{text}\nheader generation {generation}")
            }
        });
        Ok(ExitCode::SUCCESS)
    }
}

/// A volume and the keys that were given for it.
pub(super) struct Opened {
    pub(super) home: Home,
    pub(super) managers: Vec<Box<dyn KeyManager>>,
    pub(super) unlocked: Unlocked,
}

impl Opened {
    /// Finds the volume and unlocks it with one of `slots`.
    pub(super) async fn find(
        backend: &BackendOption,
        slots: &[String],
        context: &Context,
    ) -> Result<Self, Failure> {
        let home = Home::find(&backend.backend, context).await?;
        let managers = context.managers(slots, Purpose::Unlock)?;
        let unlocked = home.unlock(&managers, context).await?;
        Ok(Self { home, managers, unlocked })
    }

    /// Verifies, commits and retires: `header` takes the place of the present one. `proof` is the keyslot that
    /// must open it; none where no key that was given opens what is left.
    pub(super) async fn apply(
        mut self,
        header: Header,
        proof: Option<usize>,
        context: &Context,
    ) -> Result<Header, Failure> {
        self.commit(header, proof, context).await?;
        self.home.refuse_older(&self.unlocked, context).await?;
        Ok(self.unlocked.header)
    }

    /// Verifies and commits; headers from before are still taken.
    pub(super) async fn commit(
        &mut self,
        header: Header,
        proof: Option<usize>,
        context: &Context,
    ) -> Result<(), Failure> {
        if let Some(number) = proof {
            let proved = prove(&header, &self.unlocked, &self.managers, number, context).await;
            proved.map_err(|failure| failure.of(self.home.name()))?;
        }
        let before = self.unlocked.header.keyslots.clone();
        self.home.commit(&mut self.unlocked, header).await?;
        let slots = before.iter().zip(&self.unlocked.header.keyslots).enumerate();
        for (number, (old, new)) in
            slots.filter(|(_, (old, new))| old.as_ref().map(|s| &s.key) != new.as_ref().map(|s| &s.key))
        {
            context.changed(ChangeKind::Removed, number, old.as_ref());
            context.changed(ChangeKind::Added, number, new.as_ref());
        }
        Ok(())
    }

    /// The keyslot of that number, which must be in use.
    pub(super) fn keyslot(&self, number: usize) -> Result<&Keyslot, Failure> {
        let slot = self.unlocked.header.keyslots.get(number).and_then(Option::as_ref);
        slot.ok_or_else(|| {
            Failure::usage(
                format!("keyslot {number} is not in use"),
                "sealbd key list BACKEND shows those in use",
            )
        })
    }

    /// Keyslots beside that one which open the volume for somebody.
    pub(super) fn others(&self, number: usize) -> usize {
        let active = |slot: &Keyslot| slot.state == KeyslotState::Active;
        let slots = self.unlocked.header.keyslots.iter().enumerate();
        slots.filter(|(other, slot)| *other != number && slot.as_ref().is_some_and(active)).count()
    }

    /// Refuses to remove the last key.
    pub(super) fn check_not_last(&self, number: usize, force: bool) -> Result<(), Failure> {
        if self.others(number) > 0 || force {
            return Ok(());
        }
        Err(Failure::refused(
            format!("keyslot {number} is the last one: without it nobody can open the volume"),
            "add another key first, or --force-last to give the data up",
        ))
    }

    /// A keyslot other than `number` that one of the given keys opens.
    pub(super) async fn proof_without(&self, number: usize, context: &Context) -> Option<usize> {
        if self.unlocked.slot != number {
            return Some(self.unlocked.slot);
        }
        let others = (0..self.unlocked.header.keyslots.len()).filter(|other| *other != number);
        for other in others {
            let Some(slot) = &self.unlocked.header.keyslots[other] else { continue };
            if slot.state != KeyslotState::Active {
                continue;
            }
            if prove(&self.unlocked.header, &self.unlocked, &self.managers, other, context).await.is_ok() {
                return Some(other);
            }
        }
        None
    }
}

/// `sealbd key add`.
pub(super) async fn add(options: &KeyAddOptions, context: &Context) -> Result<ExitCode, Failure> {
    let opened = Opened::find(&options.backend, &options.slots, context).await?;
    Box::pin(add_to(opened, "key-add", options, context)).await
}

/// `sealbd key ensure`: as add, unless the new key opens the volume already.
pub(super) async fn ensure(options: &KeyAddOptions, context: &Context) -> Result<ExitCode, Failure> {
    let opened = Opened::find(&options.backend, &options.slots, context).await?;
    let exists = match context.registry.parse(&options.new_slot)?.argument {
        // A keyfile that is not there yet opens nothing, and must not be made by asking.
        keymgmt::spec::Argument::Path(path) => path.symlink_metadata().is_ok(),
        _ => true,
    };
    if exists {
        let given = context.managers(std::slice::from_ref(&options.new_slot), Purpose::Unlock)?;
        match opened.home.copies(context).await?.unlock(context.engine, &given).await {
            Ok(Unlocked { header, slot, .. }) => {
                let mut report = ChangeReport::new("key-ensure", &header);
                report.slot = Some(slot);
                report.prose = format!("Slot {slot} has that key already; nothing to do");
                return report.tell(context);
            }
            // Another manager's keyslot of the same kind is denied, and that is no reason not to add this one.
            Err(VolumeError::NoKeyFits(_) | VolumeError::KeyManagerDenied(_)) => {}
            Err(error) => return Err(Failure::from(error).of(opened.home.name())),
        }
    }
    Box::pin(add_to(opened, "key-ensure", options, context)).await
}

async fn add_to(
    mut opened: Opened,
    op: &'static str,
    options: &KeyAddOptions,
    context: &Context,
) -> Result<ExitCode, Failure> {
    let mut report = ChangeReport::new(op, &opened.unlocked.header);
    let number = free_keyslot(&opened.unlocked.header)?;
    report.added = Some(number);
    if options.dry_run {
        context.registry.parse(&options.new_slot)?;
        return report.dry(format!("slot {number} would hold the new key")).tell(context);
    }
    context.trail.begin()?;
    let header = with_new_key(&mut opened, number, options.priority.unwrap_or(0), options, context).await?;
    let header = Box::pin(opened.apply(header, Some(number), context)).await?;
    report.done(&header, true, format!("Slot {number} added, tested: unwraps")).tell(context)
}

/// `sealbd key change`: the new key takes the place of the one that opened, in the same keyslot.
pub(super) async fn change(options: &KeyAddOptions, context: &Context) -> Result<ExitCode, Failure> {
    let mut opened = Opened::find(&options.backend, &options.slots, context).await?;
    let number = opened.unlocked.slot;
    let mut report = ChangeReport::new("key-change", &opened.unlocked.header);
    report.slot = Some(number);
    if options.dry_run {
        context.registry.parse(&options.new_slot)?;
        return report
            .dry(format!("slot {number} would hold the new key instead of the old one"))
            .tell(context);
    }
    context.trail.begin()?;
    let priority = options.priority.unwrap_or(opened.keyslot(number)?.priority);
    let header = with_new_key(&mut opened, number, priority, options, context).await?;
    let header = Box::pin(opened.apply(header, Some(number), context)).await?;
    let prose = format!(
        "Slot {number} changed, tested: the new key unwraps; older copies of the header are refused from now on"
    );
    report.done(&header, true, prose).tell(context)
}

/// The header with the new key in a keyslot; the key's manager is the last of `opened.managers` then.
async fn with_new_key(
    opened: &mut Opened,
    number: usize,
    priority: u16,
    options: &KeyAddOptions,
    context: &Context,
) -> Result<Header, Failure> {
    let made = context.managers(std::slice::from_ref(&options.new_slot), Purpose::New)?;
    let [manager] =
        <[_; 1]>::try_from(made).map_err(|_| Failure::usage("one new key is needed", "--new-slot SPEC"))?;
    let Unlocked { header, dek, keys, .. } = &opened.unlocked;
    let mut next = header.clone();
    next.keyslots[number] = Some(wrap_keyslot(header, dek, keys, &*manager, priority).await?);
    opened.managers.push(manager);
    Ok(next)
}

/// `sealbd key remove`.
pub(super) async fn remove(options: &KeyRemoveOptions, context: &Context) -> Result<ExitCode, Failure> {
    let opened = Opened::find(&options.backend, &options.slot.slots, context).await?;
    let number = options.key_slot.unwrap_or(opened.unlocked.slot);
    opened.keyslot(number)?;
    opened.check_not_last(number, options.force_last)?;
    Box::pin(remove_from(opened, "key-remove", number, options.dry_run, context)).await
}

/// `sealbd key kill`: as remove, and a key that stays must be given.
pub(super) async fn kill(options: &KeyKillOptions, context: &Context) -> Result<ExitCode, Failure> {
    let opened = Opened::find(&options.backend, &options.slot.slots, context).await?;
    let number = options.key_slot;
    opened.keyslot(number)?;
    if opened.proof_without(number, context).await.is_none() {
        return Err(Failure::refused(
            format!("no key that was given opens another keyslot than {number}"),
            "--slot SPEC, a key that stays; sealbd key remove BACKEND removes the key that is given",
        ));
    }
    Box::pin(remove_from(opened, "key-kill", number, options.dry_run, context)).await
}

async fn remove_from(
    opened: Opened,
    op: &'static str,
    number: usize,
    dry_run: bool,
    context: &Context,
) -> Result<ExitCode, Failure> {
    let mut report = ChangeReport::new(op, &opened.unlocked.header);
    report.removed = Some(number);
    if dry_run {
        return report.dry(format!("slot {number} would be removed")).tell(context);
    }
    context.trail.begin()?;
    let proof = opened.proof_without(number, context).await;
    let mut header = opened.unlocked.header.clone();
    header.keyslots[number] = None;
    let header = Box::pin(opened.apply(header, proof, context)).await?;
    let prose = format!("Slot {number} removed; older copies of the header are refused from now on");
    report.done(&header, proof.is_some(), prose).tell(context)
}

/// `sealbd key priority`.
pub(super) async fn priority(options: &KeyPriorityOptions, context: &Context) -> Result<ExitCode, Failure> {
    let opened = Opened::find(&options.backend, &options.slot.slots, context).await?;
    let (number, priority) = (options.key_slot, options.priority);
    let old = opened.keyslot(number)?.priority;
    let mut report = ChangeReport::new("key-priority", &opened.unlocked.header);
    report.slot = Some(number);
    if options.dry_run {
        return report.dry(format!("slot {number} would have priority {priority}, not {old}")).tell(context);
    }
    context.trail.begin()?;
    let mut header = opened.unlocked.header.clone();
    if let Some(slot) = &mut header.keyslots[number] {
        slot.priority = priority;
    }
    let proof = opened.unlocked.slot;
    let header = Box::pin(opened.apply(header, Some(proof), context)).await?;
    let prose = format!("Slot {number} has priority {priority} (was {old}); lower numbers are tried first");
    report.done(&header, true, prose).tell(context)
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

/// `sealbd key test`: tries every keyslot; exit 0 when at least one opens.
pub(super) async fn test(options: &KeyTestOptions, context: &Context) -> Result<ExitCode, Failure> {
    #[derive(Serialize)]
    struct Report {
        uuid: String,
        slot: usize,
        #[serde(rename = "type")]
        slot_type: &'static str,
        keyslots: Vec<Tried>,
    }
    #[derive(Serialize)]
    struct Tried {
        slot: usize,
        #[serde(rename = "type")]
        slot_type: &'static str,
        opens: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    }
    let backend = open::backend(&options.backend.backend, Access::Inspect).await?;
    let managers = context.managers(&options.slot.slots, Purpose::Unlock)?;
    // The first that opens, in order of priority, authenticates the header; the rest is tried after it.
    let Unlocked { header, slot, .. } = backend.unlock(&managers, context).await?;
    let mut tried = Vec::new();
    for (number, keyslot) in header.keyslots.iter().enumerate() {
        let Some(keyslot) = keyslot else { continue };
        let reason = match keyslot.state {
            _ if number == slot => None,
            KeyslotState::Active => {
                let copies = backend.header(context).await?;
                let unlocked = copies.unlock_slot(context.engine, &managers, number).await;
                unlocked.err().map(|error| slot_reason(&error, number, keyslot.key.slot_type))
            }
            KeyslotState::DecryptOnly => Some("of an older data key".into()),
            KeyslotState::Destroyed => Some("opens nothing; its key waits to be destroyed".into()),
        };
        let opens = reason.is_none();
        tried.push(Tried { slot: number, slot_type: keyslot.key.slot_type.name(), opens, reason });
    }
    let slot_type = header.keyslots[slot].as_ref().map_or("", |slot| slot.key.slot_type.name());
    let report = Report { uuid: inspect::uuid_text(&header), slot, slot_type, keyslots: tried };
    context.output.result(&report, || {
        let line = |tried: &Tried| match &tried.reason {
            None => format!("Slot {} {}: unwraps, header authentic\n", tried.slot, tried.slot_type),
            Some(reason) => format!("Slot {} {}: {reason}\n", tried.slot, tried.slot_type),
        };
        report.keyslots.iter().map(line).collect()
    });
    Ok(ExitCode::SUCCESS)
}

/// Why one keyslot did not open, without what is said of it anyway.
fn slot_reason(error: &VolumeError, number: usize, slot_type: SlotType) -> String {
    let (VolumeError::NoKeyFits(lines)
    | VolumeError::KeyManagerUnreachable(lines)
    | VolumeError::KeyManagerDenied(lines)
    | VolumeError::KeyTooCostly(lines)) = error
    else {
        return error.to_string();
    };
    let name = format!("slot {number} ({}): ", slot_type.name());
    let reasons: Vec<&str> = lines.iter().map(|line| line.strip_prefix(&name).unwrap_or(line)).collect();
    reasons.join("; ")
}
