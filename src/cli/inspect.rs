//! `sealbd dump`, `uuid` and `status`: what a volume tells of itself.

use std::process::ExitCode;

use keymgmt::registry::Registry;
use keymgmt::source::Purpose;
use serde::Serialize;

use super::anchoring;
use super::arguments::{BackendOption, StatusOptions};
use super::context::Context;
use super::home::serving;
use super::key_age::KeyAges;
use super::open;
use super::outcome::Failure;
use super::size::show_size;
use crate::control::memory::MemoryStatus;
use crate::control::protocol::Status as Serving;
use crate::format::header::Header;
use crate::format::keyslot::{Keyslot, KeyslotState};
use crate::store::Access;
use crate::volume::{OpenMode, VolumeStatus};

/// The cipher as people are told it.
pub(super) const CIPHER: &str = "AES-256-GCM, 4 KiB sectors";

/// A keyslot without anything secret.
#[derive(Serialize)]
pub(super) struct KeyslotReport {
    pub(super) slot: usize,
    #[serde(rename = "type")]
    slot_type: &'static str,
    state: &'static str,
    epoch: u32,
    priority: u16,
    created: u64,
    description: String,
}

#[derive(Serialize)]
struct HeaderReport {
    uuid: String,
    label: String,
    header_generation: u64,
    size: u64,
    segment_bytes: u32,
    segments: u64,
    store_bytes: u64,
    align: u32,
    cipher: &'static str,
    active_epoch: u32,
    /// Dump needs no key, so nothing here was authenticated.
    authenticated: bool,
    damaged_copies: Vec<usize>,
    keyslots: Vec<KeyslotReport>,
}

/// The uuid as text.
pub(super) fn uuid_text(header: &Header) -> String {
    uuid::Uuid::from_bytes(header.volume).to_string()
}

/// The keyslots in use.
pub(super) fn keyslots(registry: &Registry, header: &Header) -> Vec<KeyslotReport> {
    let used = header.keyslots.iter().enumerate().filter_map(|(number, slot)| Some((number, slot.as_ref()?)));
    used.map(|(slot, Keyslot { state, epoch, created, priority, key, .. })| KeyslotReport {
        slot,
        slot_type: key.slot_type.name(),
        state: match state {
            KeyslotState::Active => "active",
            KeyslotState::DecryptOnly => "decrypt-only",
            KeyslotState::Destroyed => "destroyed",
        },
        epoch: *epoch,
        priority: *priority,
        created: *created,
        description: registry
            .describe(key)
            .map_or_else(|error| error.to_string(), |described| described.text),
    })
    .collect()
}

/// Keyslots as lines for people.
pub(super) fn keyslot_lines(slots: &[KeyslotReport]) -> String {
    slots.iter().map(|slot| format!("Slot {:<2} {}\n", slot.slot, slot.line())).collect()
}

impl KeyslotReport {
    /// The keyslot in one line, without its number.
    pub(super) fn line(&self) -> String {
        let Self { slot_type, state, epoch, description, .. } = self;
        format!("{slot_type:<11} {state:<13} epoch {epoch}  {description}")
    }
}

/// `sealbd dump`.
pub(super) async fn dump(options: &BackendOption, context: &Context) -> Result<ExitCode, Failure> {
    let backend = open::backend(&options.backend, Access::Inspect).await?;
    let copies = backend.header(context).await?;
    let header = copies.claimed();
    let report = HeaderReport {
        uuid: uuid_text(header),
        label: header.label_text(),
        header_generation: header.generation,
        size: header.export_bytes,
        segment_bytes: header.segment_bytes,
        segments: header.slots,
        store_bytes: header.store_bytes(),
        align: header.align,
        cipher: CIPHER,
        active_epoch: header.active_epoch,
        authenticated: false,
        damaged_copies: copies.bad.iter().map(|(number, _)| *number).collect(),
        keyslots: keyslots(&context.registry, header),
    };
    context.output.result(&report, || {
        format!(
            "uuid               {}\nlabel              {}\nheader generation  {}\nsize               {} ({} bytes)\n\
             segments           {} of {}\nstore              {}\nalignment          {}\ncipher             {}\n\
             active epoch       {}\n{}(read without a key: nothing here is authenticated)\n",
            report.uuid,
            // A line feed could pass for a line of ours.
            report.label.replace('\n', "\\n"),
            report.header_generation,
            show_size(report.size),
            report.size,
            report.segments,
            show_size(report.segment_bytes.into()),
            show_size(report.store_bytes),
            report.align,
            report.cipher,
            report.active_epoch,
            keyslot_lines(&report.keyslots),
        )
    });
    Ok(ExitCode::SUCCESS)
}

/// `sealbd uuid`.
pub(super) async fn uuid(options: &BackendOption, context: &Context) -> Result<ExitCode, Failure> {
    #[derive(Serialize)]
    struct Report {
        uuid: String,
    }
    let backend = open::backend(&options.backend, Access::Inspect).await?;
    let uuid = uuid_text(backend.header(context).await?.claimed());
    context.output.result(&Report { uuid: uuid.clone() }, || uuid);
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct StatusReport {
    /// What the configuration calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    uuid: String,
    label: String,
    size: u64,
    header_generation: u64,
    keyslots: usize,
    #[serde(flatten)]
    keys: KeyAges,
    /// Whether the header was authenticated: with a key it was.
    authenticated: bool,
    /// The process on this host that serves it.
    #[serde(skip_serializing_if = "Option::is_none")]
    serving: Option<Serving>,
    #[serde(skip_serializing_if = "Option::is_none")]
    volume: Option<VolumeStatus>,
}

/// `sealbd status`.
pub(super) async fn status(options: &StatusOptions, context: &Context) -> Result<ExitCode, Failure> {
    let access = if options.slots.is_empty() { Access::Inspect } else { Access::ReadOnly };
    let backend = open::backend(&options.backend.backend, access).await?;
    // A status is told without the server's, too.
    let mut serving = match serving(&backend, context).await {
        Ok(Some(mut server)) => server.status().await.ok(),
        _ => None,
    };
    // What the server says of the volume is newer than what stands on the store.
    let served = serving.as_mut().and_then(|server| server.volume.take()).map(|volume| *volume);
    let (header, opened) = if options.slots.is_empty() {
        (backend.header(context).await?.claimed().clone(), None)
    } else {
        let managers = context.managers(&options.slots, Purpose::Unlock)?;
        let unlocked = backend.unlock(&managers, context).await?;
        let header = unlocked.header.clone();
        let volume = context.open(&backend, unlocked, OpenMode::ReadOnly).await?;
        (header, Some(volume.status()))
    };
    let configured = context.settings.volume_at(&backend.uri);
    let report = StatusReport {
        name: configured.map(|volume| volume.name.clone()),
        uuid: uuid_text(&header),
        label: header.label_text(),
        size: header.export_bytes,
        header_generation: header.generation,
        keyslots: header.keyslots.iter().flatten().count(),
        keys: KeyAges::of(&context.registry, &header, configured.and_then(|volume| volume.rotate_kek)),
        authenticated: opened.is_some(),
        serving,
        volume: served.or(opened),
    };
    context.output.result(&report, || prose(&report));
    Ok(ExitCode::SUCCESS)
}

fn prose(report: &StatusReport) -> String {
    let mut text = format!(
        "uuid               {}\nsize               {}\nheader generation  {}\nkeyslots in use    {}\n",
        report.uuid,
        show_size(report.size),
        report.header_generation,
        report.keyslots
    );
    if let Some(Serving { pid, export, state, parked, memory, .. }) = &report.serving {
        let waiting = if *parked == 0 { String::new() } else { format!(", {parked} requests wait") };
        text.push_str(&format!(
            "served             as {export:?} by process {pid}: {}{waiting}\n",
            state.name()
        ));
        if let Some(MemoryStatus { budget_bytes, resident_bytes, peak_bytes }) = *memory {
            text.push_str(&format!(
                "memory             {} of {}, {} at most so far\n",
                show_size(resident_bytes),
                show_size(budget_bytes),
                show_size(peak_bytes)
            ));
        }
    }
    text.push_str(&report.keys.lines());
    let Some(volume) = &report.volume else {
        text.push_str(
            "(read without a key: nothing here is authenticated; --slot SPEC shows the use of space, too)\n",
        );
        return text;
    };
    let space = &volume.space;
    let slots = space.slots * space.segment_bytes;
    text.push_str(&format!(
        "root               {}\nsessions           {}\nlast chunk         {}\n",
        volume.root_generation, volume.writer_epoch, volume.log_seq
    ));
    text.push_str(&format!(
        "segments           {} of {}, {} free ({} kept back), {:.2} times the size\n",
        space.slots,
        show_size(space.segment_bytes),
        space.free_slots,
        space.reserve_slots,
        slots as f64 / volume.export_bytes as f64,
    ));
    text.push_str(&format!(
        "live data          {}\ndead data          {}\nindex              {}\n",
        show_size(space.live_bytes),
        show_size(space.dead_bytes),
        show_size(space.index_bytes),
    ));
    if space.reclaim_debt_bytes > 0 {
        text.push_str(&format!("to be moved        {}\n", show_size(space.reclaim_debt_bytes)));
    }
    if let Some(amplification) = volume.write_amplification {
        text.push_str(&format!(
            "written            {} by clients, {amplification:.2} times that to the store ({} index, {} moved)\n",
            show_size(volume.bytes_written),
            show_size(volume.index_bytes_written),
            show_size(volume.moved_bytes_written),
        ));
    }
    if let Some(anchor) = &volume.anchor {
        text.push_str(&anchoring::line(anchor));
    }
    text
}
