//! `sealbd erase`: every keyslot and its key are destroyed, and with them the data.
//!
//! The header without keyslots comes first: from then on nothing on the backend opens. Then the keys in the key
//! managers. What was done and what is out of reach stands in a certificate.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use keymgmt::manager::SlotType;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::arguments::EraseOptions;
use super::context::Context;
use super::destroy::{Fate, Gone, destroy_one};
use super::inspect;
use super::key::Opened;
use super::known::{HeaderBackup, Known};
use super::outcome::Failure;
use super::terminal::confirm;
use crate::format::header::Header;
use crate::format::keyslot::Keyslot;
use crate::volume::VolumeError;

/// What was erased, for those who have to prove it.
#[derive(Serialize)]
struct Certificate {
    certificate: &'static str,
    uuid: String,
    label: String,
    backend: String,
    time: String,
    host: String,
    uid: u32,
    request_id: String,
    header_generation: u64,
    /// SHA-256 of the last header with keyslots, hex: tells backups of it from others.
    last_header_sha256: String,
    keyslots: Vec<Erased>,
    /// The header was read back and no key that was given opens it.
    verified: bool,
    serving: &'static str,
    known_header_backups: Vec<HeaderBackup>,
    not_reached: [&'static str; 3],
    dry_run: bool,
    /// Keys that the key manager should have destroyed and that may be there still.
    #[serde(skip)]
    uncertain: usize,
}

#[derive(Serialize)]
struct Erased {
    slot: usize,
    #[serde(rename = "type")]
    slot_type: &'static str,
    key_id: Option<String>,
    version: Option<String>,
    keyslot: &'static str,
    kek: String,
}

const NOT_REACHED: [&str; 3] = [
    "backups of the header that this host does not know of",
    "snapshots and copies of the backend that hold an older header",
    "copies of keys that somebody else keeps",
];

/// Runs the command.
pub(super) async fn run(options: &EraseOptions, context: &Context) -> Result<ExitCode, Failure> {
    let mut opened = Opened::find(&options.backend, &options.slot.slots, context).await?;
    let header = opened.unlocked.header.clone();
    let uuid = inspect::uuid_text(&header);
    let known = Known::load(header.volume)?;
    if !options.dry_run && !options.yes {
        let bytes = header.export_bytes;
        confirm(
            &format!(
                "This destroys every keyslot of {} ({bytes} bytes); nobody can read its data afterwards.",
                opened.home.name()
            ),
            &uuid,
        )?;
    }
    // Before anything is destroyed it is certain that the certificate can be written.
    let file = match &options.certificate {
        Some(path) if !options.dry_run => Some(new_file(path)?),
        _ => None,
    };
    let mut certificate = Certificate {
        certificate: "sealbd erase",
        uuid,
        label: header.label_text(),
        backend: opened.home.name(),
        time: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        uid: rustix::process::getuid().as_raw(),
        request_id: context.request_id.to_string(),
        header_generation: header.generation,
        last_header_sha256: hex(&Sha256::digest(header.encode(&opened.unlocked.keys))),
        keyslots: Vec::new(),
        verified: false,
        serving: "not served",
        known_header_backups: known.header_backups,
        not_reached: NOT_REACHED,
        dry_run: options.dry_run,
        uncertain: 0,
    };
    if options.dry_run {
        certificate.keyslots = erased(&header, context, |_| "would be destroyed".into());
    } else {
        context.trail.begin()?;
        erase(&mut opened, &header, &mut certificate, context).await?;
    }
    if let (Some(file), Some(path)) = (file, &options.certificate) {
        write(file, path, &certificate)?;
    }
    context.output.result(&certificate, || prose(&certificate));
    if certificate.uncertain == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let failure = Failure::partly(
        format!(
            "no keyslot is left; of {} keys it is not certain that the key manager destroyed them",
            certificate.uncertain
        ),
        "destroy the keys that the report names by the key manager's own tools",
    );
    context.trail.failed(&failure);
    context.output.tell(&failure);
    Ok(ExitCode::from(failure.exit))
}

/// What became of the key of a keyslot.
struct Ended {
    kek: String,
    /// Not, where the key manager failed or only said no.
    certain: bool,
}

async fn erase(
    opened: &mut Opened,
    header: &Header,
    certificate: &mut Certificate,
    context: &Context,
) -> Result<(), Failure> {
    let mut empty = header.clone();
    empty.keyslots = [const { None }; crate::format::keyslot::KEYSLOT_COUNT];
    opened.commit(empty, None, context).await?;
    opened.home.refuse_older(&opened.unlocked, context).await?;
    certificate.header_generation = opened.unlocked.header.generation;
    certificate.serving = opened.home.end_serving(true).await?;
    let refused = opened.home.copies(context).await?.unlock(context.engine, &opened.managers).await;
    certificate.verified = matches!(refused, Err(VolumeError::NoKeyFits(_)));
    // No keyslot is left, so none of this volume needs any of them.
    let empty = opened.unlocked.header.clone();
    let (mut fates, mut gone) = (Vec::new(), Gone::default());
    for slot in header.keyslots.iter().flatten() {
        let own = matches!(slot.key.slot_type, SlotType::Passphrase | SlotType::Keyfile | SlotType::Recovery);
        fates.push(match own {
            true => Ended { kek: "the user's own secret".to_owned(), certain: true },
            false => match destroy_one(&opened.managers, &slot.key, &empty, &mut gone, context).await {
                Fate::Denied(why) => Ended { kek: Fate::Denied(why).text(), certain: false },
                Fate::Failed(failure) => Ended { kek: Fate::Failed(failure).text(), certain: false },
                fate => Ended { kek: fate.text(), certain: true },
            },
        });
    }
    certificate.uncertain = fates.iter().filter(|ended| !ended.certain).count();
    let mut fates = fates.into_iter().map(|ended| ended.kek);
    certificate.keyslots = erased(header, context, |_| fates.next().unwrap_or_default());
    Ok(())
}

fn erased(header: &Header, context: &Context, mut kek: impl FnMut(&Keyslot) -> String) -> Vec<Erased> {
    let used = header.keyslots.iter().enumerate().filter_map(|(number, slot)| Some((number, slot.as_ref()?)));
    used.map(|(number, slot)| {
        let described = context.registry.describe(&slot.key).ok();
        let (key_id, version) =
            described.map_or((None, None), |described| (described.key_id, described.version));
        let (slot_type, kek) = (slot.key.slot_type.name(), kek(slot));
        Erased { slot: number, slot_type, key_id, version, keyslot: "destroyed", kek }
    })
    .collect()
}

fn new_file(path: &Path) -> Result<File, Failure> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|error| {
        Failure::system(
            &format!("cannot make {}", path.display()),
            &error,
            "--certificate FILE, a new one; nothing was erased",
        )
    })
}

fn write(mut file: File, path: &Path, certificate: &Certificate) -> Result<(), Failure> {
    let text = serde_json::to_vec_pretty(certificate).expect("plain fields");
    let written = file.write_all(&text).and_then(|()| file.write_all(b"\n")).and_then(|()| file.sync_all());
    written.map_err(|error| {
        Failure::system(
            &format!("the volume is erased; cannot write {}", path.display()),
            &error,
            "sealbd dump BACKEND shows that no keyslot is in use",
        )
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn prose(certificate: &Certificate) -> String {
    let Certificate { uuid, keyslots, dry_run, known_header_backups, not_reached, serving, .. } = certificate;
    let mut text = match dry_run {
        true => format!("dry run, nothing is changed: {uuid} would be erased\n"),
        false => format!("{uuid} is erased; no keyslot is left\nserving: {serving}\n"),
    };
    for Erased { slot, slot_type, kek, .. } in keyslots {
        text.push_str(&format!("Slot {slot} {slot_type}: its key: {kek}\n"));
    }
    for HeaderBackup { file, header_generation, made } in known_header_backups {
        text.push_str(&format!(
            "header backup to destroy: {file} (generation {header_generation}, {made})\n"
        ));
    }
    not_reached.iter().for_each(|what| text.push_str(&format!("not reached: {what}\n")));
    text
}
