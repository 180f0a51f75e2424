//! `sealbd header verify | diff | pin`: whether the header is the one it should be.

use std::process::ExitCode;

use keymgmt::source::Purpose;
use serde::Serialize;

use super::arguments::{HeaderFileOptions, HeaderPinOptions, HeaderVerifyOptions};
use super::context::Context;
use super::header::read_backup;
use super::inspect::{self, KeyslotReport, keyslots};
use super::known::{Known, Pin};
use super::open;
use super::outcome::Failure;
use crate::store::Access;
use crate::volume::Volume;

/// `sealbd header verify`: both copies, against the key, the newest root and the pin.
pub(super) async fn verify(options: &HeaderVerifyOptions, context: &Context) -> Result<ExitCode, Failure> {
    #[derive(Serialize)]
    struct Report {
        uuid: String,
        header_generation: u64,
        /// The generation that the newest root demands at least.
        root_demands: u64,
        pinned: Option<u64>,
        copies_good: usize,
        opened_by_slot: usize,
    }
    let backend = open::backend(&options.backend.backend, Access::Inspect).await?;
    let managers = context.managers(&options.slot.slots, Purpose::Unlock)?;
    // Authentic, not older than the root and the pin, or it fails here.
    let unlocked = backend.unlock(&managers, context).await?;
    let copies = backend.header(context).await?;
    let failed = |error| Failure::from(error).of(&backend.uri);
    let root_demands = Volume::header_generation_of_root(&*backend.store, &unlocked).await.map_err(failed)?;
    let (count, bad) =
        (copies.count(), copies.bad.iter().map(|(number, error)| format!("copy {number}: {error}")));
    let bad: Vec<String> = bad.collect();
    let same = copies.copies_are_equal();
    copies.authenticate(&unlocked.keys).map_err(failed)?;
    if count < 2 || !same {
        let why = if bad.is_empty() { "the two copies differ".to_owned() } else { bad.join("; ") };
        return Err(Failure::integrity(
            format!("{}: one copy of the header is good, the other is not ({why})", backend.uri),
            "sealbd key priority BACKEND, or any other change of a key, writes both anew",
        ));
    }
    let header = &unlocked.header;
    let report = Report {
        uuid: inspect::uuid_text(header),
        header_generation: header.generation,
        root_demands,
        pinned: Known::load(header.volume)?.pin.map(|pin| pin.header_generation),
        copies_good: count,
        opened_by_slot: unlocked.slot,
    };
    context.output.result(&report, || {
        let pinned = report.pinned.map_or("not pinned".to_owned(), |pin| format!("pinned at {pin}"));
        format!(
            "header generation {}: both copies authentic and equal, opened by slot {}; the newest root demands {}; {pinned}",
            report.header_generation, report.opened_by_slot, report.root_demands
        )
    });
    Ok(ExitCode::SUCCESS)
}

/// `sealbd header pin`: from now on this host refuses older headers and other keys.
pub(super) async fn pin(options: &HeaderPinOptions, context: &Context) -> Result<ExitCode, Failure> {
    #[derive(Serialize)]
    struct Report {
        uuid: String,
        pinned: Option<u64>,
    }
    let backend = open::backend(&options.backend.backend, Access::Inspect).await?;
    if options.remove {
        let volume = backend.header(context).await?.claimed().volume;
        let mut known = Known::load(volume)?;
        context.trail.begin()?;
        known.pin = None;
        known.store(volume)?;
        let report = Report { uuid: uuid::Uuid::from_bytes(volume).to_string(), pinned: None };
        context.output.result(&report, || format!("{} is not pinned any more", report.uuid));
        return Ok(ExitCode::SUCCESS);
    }
    let managers = context.managers(&options.slots, Purpose::Unlock)?;
    let unlocked = backend.unlock(&managers, context).await?;
    let volume = unlocked.header.volume;
    let mut known = Known::load(volume)?;
    context.trail.begin()?;
    known.pin = Some(Pin::of(&unlocked));
    known.store(volume)?;
    let report =
        Report { uuid: inspect::uuid_text(&unlocked.header), pinned: Some(unlocked.header.generation) };
    context.output.result(&report, || {
        format!(
            "{} is pinned: this host refuses headers before generation {} and any other data key",
            report.uuid, unlocked.header.generation
        )
    });
    Ok(ExitCode::SUCCESS)
}

/// `sealbd header diff`: how a backup differs from the header. Needs no key, so neither is authenticated.
pub(super) async fn diff(options: &HeaderFileOptions, context: &Context) -> Result<ExitCode, Failure> {
    #[derive(Serialize)]
    struct Report {
        uuid: String,
        same: bool,
        header_generation: u64,
        backup_generation: u64,
        changes: Vec<String>,
    }
    let backend = open::backend(&options.backend.backend, Access::Inspect).await?;
    let copies = backend.header(context).await?;
    let now = copies.claimed();
    let copy = read_backup(&options.file)?;
    let then = copy.claimed();
    let mut changes = Vec::new();
    let mut compare = |what: &str, then: String, now: String| {
        if then != now {
            changes.push(format!("{what}: {then} in the backup, {now} on the backend"));
        }
    };
    compare("volume", inspect::uuid_text(then), inspect::uuid_text(now));
    compare("label", then.label_text(), now.label_text());
    compare("size", then.export_bytes.to_string(), now.export_bytes.to_string());
    compare("epoch", then.active_epoch.to_string(), now.active_epoch.to_string());
    let (before, after) = (keyslots(&context.registry, then), keyslots(&context.registry, now));
    for number in 0..now.keyslots.len() {
        let text =
            |slots: &[KeyslotReport]| slots.iter().find(|slot| slot.slot == number).map(KeyslotReport::line);
        let free = || "free".to_owned();
        let same_bytes = then.keyslots[number] == now.keyslots[number];
        let (then, now) = (text(&before).unwrap_or_else(free), text(&after).unwrap_or_else(free));
        if then != now {
            changes.push(format!("slot {number}: {then} in the backup, {now} on the backend"));
        } else if !same_bytes {
            changes.push(format!("slot {number}: {now}, wrapped anew"));
        }
    }
    let report = Report {
        uuid: inspect::uuid_text(now),
        same: changes.is_empty() && then.generation == now.generation,
        header_generation: now.generation,
        backup_generation: then.generation,
        changes,
    };
    context.output.result(&report, || {
        let mut text = format!(
            "backup: generation {}, backend: generation {}\n",
            report.backup_generation, report.header_generation
        );
        report.changes.iter().for_each(|change| text.push_str(&format!("{change}\n")));
        if report.changes.is_empty() {
            text.push_str("the same keyslots\n");
        }
        text
    });
    Ok(ExitCode::SUCCESS)
}
