//! `sealbd format`: makes a volume.

use std::process::ExitCode;
use std::sync::Arc;

use keymgmt::manager::{KeyManager, SlotType};
use keymgmt::recovery::Recovery;
use keymgmt::source::Purpose;
use serde::Serialize;

use super::arguments::FormatOptions;
use super::context::Context;
use super::outcome::Failure;
use super::size::show_size;
use super::terminal::confirm;
use super::{inspect, open};
use crate::audit::ChangeKind;
use crate::format::header::{EXPORT_BYTES_MAX, Header, LABEL_LEN};
use crate::geometry::SECTOR_BYTES;
use crate::store::file::Existing;
use crate::store::uri::{self, StoreUri};
use crate::store::{Access, SlotStore, StoreError};
use crate::volume::VolumeError;
use crate::volume::create::{EXPORT_BYTES_MIN, Geometry, NewVolume};
use crate::volume::unlock::read_header;

/// Priority of the recovery slot: tried after all others.
const RECOVERY_PRIORITY: u16 = 1000;

#[derive(Serialize)]
struct Report {
    volume: String,
    uuid: String,
    size: u64,
    store_bytes: u64,
    segment_bytes: u32,
    segments: u64,
    cipher: &'static str,
    keyslots: Vec<SlotReport>,
    /// Only printed here, ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery_key: Option<String>,
}

#[derive(Serialize)]
struct SlotReport {
    slot: usize,
    #[serde(rename = "type")]
    slot_type: &'static str,
    description: String,
    tested: bool,
}

/// Runs the command.
pub(super) async fn run(options: FormatOptions, context: &Context) -> Result<ExitCode, Failure> {
    let uri = StoreUri::from_arg(&options.backend)?;
    if let StoreUri::Memory(_) = uri {
        return Err(open::no_memory(&uri));
    }
    // What cannot work is said before anybody types a passphrase.
    if options.label.len() > LABEL_LEN {
        let len = options.label.len();
        return Err(Failure::usage(
            format!("the label has {len} bytes, at most {LABEL_LEN} are possible"),
            "--label TEXT, a shorter one",
        ));
    }
    if let Some(volume) = context.settings.volume_at(&uri).filter(|volume| volume.uuid.is_some()) {
        return Err(Failure::refused(
            format!("volume {} is pinned to its uuid, and a new volume has another", volume.name),
            format!("take uuid out of {} first, if that volume is to be given up", volume.origin),
        ));
    }
    let plan = plan(&uri, &options, context).await?;
    context.trail.begin()?;
    let mut managers = context.managers(&options.slots, Purpose::New)?;
    let recovery = if options.no_recovery { None } else { Some(Recovery::generate()?) };
    let words =
        recovery.as_ref().map(|recovery| String::from_utf8_lossy(recovery.words().expose()).into_owned());
    if let Some(recovery) = recovery {
        managers.push(Box::new(recovery));
    }
    let store = plan.store(&uri)?;
    let align = store.capability().best_unit;
    let mut new = NewVolume::prepare(plan.geometry, align, &options.label, context.engine)?;
    for manager in &managers {
        let priority = if manager.slot_type() == SlotType::Recovery { RECOVERY_PRIORITY } else { 0 };
        new.add_key(&**manager, priority).await?;
    }
    let header = new.write(store.clone()).await.map_err(|error| Failure::from(error).of(&uri))?;
    context.trail.volume(&uri.to_string(), &header);
    for (number, keyslot) in header.keyslots.iter().enumerate() {
        context.changed(ChangeKind::Added, number, keyslot.as_ref());
    }
    let keyslots = test_slots(&*store, managers, context, &header).await?;
    let report = Report {
        volume: uri.to_string(),
        uuid: inspect::uuid_text(&header),
        size: header.export_bytes,
        store_bytes: header.store_bytes(),
        segment_bytes: header.segment_bytes,
        segments: header.slots,
        cipher: inspect::CIPHER,
        keyslots,
        recovery_key: words,
    };
    context.output.result(&report, || prose(&report));
    Ok(ExitCode::SUCCESS)
}

/// Where the volume goes and how large it will be.
struct Plan {
    geometry: Geometry,
    /// A store that exists; a file to be made has none yet.
    existing: Option<Arc<dyn SlotStore>>,
}

impl Plan {
    fn store(&self, uri: &StoreUri) -> Result<Arc<dyn SlotStore>, Failure> {
        match &self.existing {
            Some(store) => Ok(store.clone()),
            None => {
                let made = uri::create(uri, self.geometry.store_bytes(), Existing::Replace);
                made.map_err(|error| match error {
                    StoreError::Open(message) => {
                        Failure::not_ours(message, "name a file in a directory that you may write to")
                    }
                    error => Failure::from(error).of(uri),
                })
            }
        }
    }
}

async fn plan(uri: &StoreUri, options: &FormatOptions, context: &Context) -> Result<Plan, Failure> {
    let geometry = |size| {
        Geometry::with_spare(size, options.over_provisioning)
            .map_err(|error| wrong_size(size, &error, "--size "))
    };
    if let StoreUri::File(path) = uri {
        let metadata = std::fs::metadata(path).ok();
        let is_file = metadata.as_ref().is_none_or(std::fs::Metadata::is_file);
        let empty = metadata.as_ref().is_none_or(|m| m.is_file() && m.len() == 0);
        if is_file && (empty || options.size.is_some()) {
            let Some(size) = options.size else {
                return Err(Failure::usage(
                    format!("{uri}: a new file needs a size"),
                    "--size 10G, for example",
                ));
            };
            let geometry = geometry(size)?;
            if !empty {
                // Refuses when somebody has it open, before asking.
                let present = open::backend(&options.backend, Access::ReadWrite).await?;
                note_replaced(&*present.store, context).await;
                consent(uri, metadata.map_or(0, |m| m.len()), options)?;
            }
            return Ok(Plan { geometry, existing: None });
        }
    }
    let store = open::backend(&options.backend, Access::ReadWrite).await?.store;
    let available = store.capability().size;
    let fitting = Geometry::for_store(available, options.over_provisioning)
        .map_err(|error| Failure::from(error).of(uri))?;
    let chosen = match options.size {
        None => fitting,
        Some(size) if size <= fitting.export_bytes => geometry(size)?,
        Some(size) => {
            return Err(Failure::usage(
                format!(
                    "{uri}: {} do not fit: the store has {}, which holds a volume of at most {}",
                    show_size(size),
                    show_size(available),
                    show_size(fitting.export_bytes)
                ),
                format!("--size {}, or leave --size out", fitting.export_bytes),
            ));
        }
    };
    if !is_blank(&*store).await? {
        note_replaced(&*store, context).await;
        consent(uri, available, options)?;
    }
    Ok(Plan { geometry: chosen, existing: Some(store) })
}

/// Notes for the audit log which volume is about to be written over, where there is one.
async fn note_replaced(store: &dyn SlotStore, context: &Context) {
    if let Ok(copies) = read_header(store).await {
        context.trail.replaces(copies.claimed());
    }
}

/// Names the nearest size that is possible, as it is given.
pub(super) fn wrong_size(size: u64, error: &VolumeError, option: &str) -> Failure {
    let possible = size.clamp(EXPORT_BYTES_MIN, EXPORT_BYTES_MAX).div_ceil(SECTOR_BYTES) * SECTOR_BYTES;
    Failure::usage(error.to_string(), format!("{option}{possible}"))
}

/// Whether the start of a store is all zero.
async fn is_blank(store: &dyn SlotStore) -> Result<bool, Failure> {
    let capability = store.capability();
    let len = (2u64 << 20).min(capability.size).min(capability.io_bytes_max.into());
    let bytes = store.read_at(0, usize::try_from(len).unwrap_or(0)).await?;
    Ok(bytes.iter().all(|byte| *byte == 0))
}

fn consent(uri: &StoreUri, bytes: u64, options: &FormatOptions) -> Result<(), Failure> {
    if options.yes {
        return Ok(());
    }
    let size = show_size(bytes);
    confirm(&format!("This makes a NEW key; whatever is on {uri} ({size}) becomes unreadable."), "YES")
}

/// Opens the new volume with every key on its own.
async fn test_slots(
    store: &dyn SlotStore,
    managers: Vec<Box<dyn KeyManager>>,
    context: &Context,
    header: &Header,
) -> Result<Vec<SlotReport>, Failure> {
    let registry = &context.registry;
    let mut reports = Vec::new();
    for (number, manager) in managers.into_iter().enumerate() {
        let unlocked = read_header(store).await?.unlock(context.engine, &[manager]).await?;
        if unlocked.header != *header {
            return Err(Failure::integrity(
                "the header reads back differently",
                "the backend does not store what it is given",
            ));
        }
        let key = header.keyslots[number].as_ref().map(|slot| &slot.key);
        let key = key.ok_or_else(|| Failure::integrity("a keyslot is missing", "report this as a bug"))?;
        let description = registry.describe(key)?.text;
        reports.push(SlotReport { slot: number, slot_type: key.slot_type.name(), description, tested: true });
    }
    Ok(reports)
}

fn prose(report: &Report) -> String {
    let mut text = String::new();
    for SlotReport { slot, slot_type, description, .. } in &report.keyslots {
        text.push_str(&format!("Slot {slot:<2} {slot_type:<11} {description}   tested: unwraps\n"));
    }
    if let Some(words) = &report.recovery_key {
        text.push_str(&format!("\nRecovery key, shown only now; write it down:\n  {words}\n\n"));
    }
    let Report { volume, uuid, size, store_bytes, .. } = report;
    text.push_str(&format!(
        "{volume}  uuid {uuid}  {}  size {}, on a store of up to {}\n",
        inspect::CIPHER,
        show_size(*size),
        show_size(*store_bytes)
    ));
    text
}
