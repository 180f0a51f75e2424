//! `sealbd list`: every volume of the configuration, with the age of its keys.
//!
//! Headers are read without a key and several at once, each within a time limit. A volume that cannot be read
//! is listed with the reason.

use std::process::ExitCode;
use std::time::Duration;

use futures_util::StreamExt;
use serde::Serialize;

use super::arguments::ListOptions;
use super::context::Context;
use super::key_age::{KeyAges, one_line};
use super::kms::{self, Probed};
use super::named;
use super::open::{self, pin_differs};
use super::outcome::Failure;
use super::prometheus;
use super::settings::VolumeSettings;
use crate::store::Access;
use crate::volume::unlock::read_header;

/// Headers read at the same time: more would press a store that has many of the volumes.
const AT_ONCE_MAX: usize = 8;
/// No header takes longer; an NBD server that does not answer is given up after this.
const SECONDS_MAX: Duration = Duration::from_secs(20);

/// One volume.
#[derive(Serialize)]
pub(super) struct VolumeReport {
    pub(super) name: String,
    /// As found; where it was not read, as pinned.
    pub(super) uuid: Option<String>,
    pub(super) backend: String,
    pub(super) readable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    header_generation: Option<u64>,
    pub(super) rotate_kek_seconds: Option<u64>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(super) keys: Option<KeyAges>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
}

/// Why something could not be had, as in the report of a failure.
#[derive(Serialize)]
pub(super) struct Problem {
    code: &'static str,
    exit: u8,
    retryable: bool,
    pub(super) message: String,
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let Failure { exit, code, retryable, message, .. } = failure;
        Self { code, exit, retryable, message }
    }
}

#[derive(Serialize)]
struct Report {
    /// No key was used, so nothing here was authenticated.
    authenticated: bool,
    overdue: usize,
    unreadable: usize,
    volumes: Vec<VolumeReport>,
}

/// Runs the command: exit 14 when some could not be read.
pub(super) async fn run(options: &ListOptions, context: &Context) -> Result<ExitCode, Failure> {
    let volumes = read_all(context).await;
    let unreadable = volumes.iter().filter(|volume| !volume.readable).count();
    if let Some(file) = &options.prometheus {
        let providers = kms::probe_all(context, None).await?;
        let providers = providers.iter().map(|(provider, probed)| (provider.name.as_str(), probed));
        let text = exposition(&volumes, &providers.collect::<Vec<_>>());
        prometheus::write(&text, file.as_deref(), context)?;
    } else {
        let overdue = volumes.iter().filter(|volume| volume.keys.as_ref().is_some_and(|k| k.overdue)).count();
        let report = Report { authenticated: false, overdue, unreadable, volumes };
        context.output.result(&report, || prose(&report));
    }
    if unreadable == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let total = context.settings.volumes.len();
    let failure = Failure::partly(
        format!("{unreadable} of {total} volumes could not be read"),
        "sealbd list --json tells why, for each",
    );
    context.output.tell(&failure);
    Ok(ExitCode::from(failure.exit))
}

/// The headers of all configured volumes, in the order of their names.
pub(super) async fn read_all(context: &Context) -> Vec<VolumeReport> {
    let volumes = &context.settings.volumes;
    // Boxed: eight of them wait in one buffer.
    let reading = volumes.iter().map(|volume| Box::pin(report(volume, context)));
    futures_util::stream::iter(reading).buffered(AT_ONCE_MAX).collect().await
}

async fn report(volume: &VolumeSettings, context: &Context) -> VolumeReport {
    let mut report = VolumeReport {
        name: volume.name.clone(),
        uuid: volume.uuid.map(|uuid| uuid.to_string()),
        backend: volume.backend.to_string(),
        readable: false,
        label: None,
        header_generation: None,
        rotate_kek_seconds: volume.rotate_kek.map(|period| period.as_secs()),
        keys: None,
        problem: None,
    };
    let read = match tokio::time::timeout(SECONDS_MAX, read(volume, &mut report, context)).await {
        Ok(read) => read,
        Err(_) => {
            let seconds = SECONDS_MAX.as_secs();
            let store = crate::store::StoreError::Unreachable(format!("no answer in {seconds} s"));
            Err(Failure::from(store))
        }
    };
    report.readable = read.is_ok();
    report.problem = read.err().map(Problem::from);
    report
}

async fn read(volume: &VolumeSettings, report: &mut VolumeReport, context: &Context) -> Result<(), Failure> {
    let backend = open::backend(&named::argument(&volume.backend), Access::Inspect).await?;
    let copies = read_header(&*backend.store).await.map_err(|error| Failure::from(error).of(&backend.uri))?;
    let header = copies.claimed();
    let found = uuid::Uuid::from_bytes(header.volume);
    if let Some(pinned) = volume.uuid.filter(|pinned| *pinned != found) {
        return Err(pin_differs(volume, pinned, found));
    }
    report.uuid = Some(found.to_string());
    report.label = Some(header.label_text());
    report.header_generation = Some(header.generation);
    report.keys = Some(KeyAges::of(&context.registry, header, volume.rotate_kek));
    Ok(())
}

fn prose(report: &Report) -> String {
    if report.volumes.is_empty() {
        return "no volume is configured\n".into();
    }
    let mut text = String::new();
    for volume in &report.volumes {
        let uuid = volume.uuid.as_deref().unwrap_or("uuid not known");
        text.push_str(&format!("{}  {uuid}  {}\n", volume.name, one_line(&volume.backend)));
        let lines = match (&volume.keys, &volume.problem) {
            (Some(keys), _) => keys.lines(),
            (None, Some(problem)) => format!("NOT READ: {}\n", one_line(&problem.message)),
            (None, None) => String::new(),
        };
        lines.lines().for_each(|line| text.push_str(&format!("  {line}\n")));
    }
    text.push_str("(read without a key: nothing here is authenticated)\n");
    text
}

fn exposition(volumes: &[VolumeReport], providers: &[(&str, &Probed)]) -> String {
    let mut gauges = prometheus::Exposition::new();
    gauges.family("sealbd_volume_readable", "Whether the header of the volume could be read.");
    for volume in volumes {
        gauges.sample(&[("volume", &volume.name)], u64::from(volume.readable));
    }
    let known =
        || volumes.iter().filter_map(|volume| Some((volume, volume.uuid.as_deref()?, volume.keys.as_ref()?)));
    gauges.family("sealbd_dek_age_seconds", "Age of the volume's data key, as its header says.");
    for (volume, uuid, keys) in known() {
        if let Some(age) = keys.dek.age_seconds {
            gauges.sample(&[("volume", &volume.name), ("uuid", uuid)], age);
        }
    }
    let mut keks = Vec::new();
    for (volume, uuid, keys) in known() {
        for kek in &keys.keks {
            let (slot, key_id) = (kek.slot.to_string(), kek.key_id.clone().unwrap_or_default());
            keks.push((volume, uuid, slot, key_id, kek));
        }
    }
    gauges.family(
        "sealbd_kek_age_seconds",
        "Time since the data key was wrapped by this version of this key, as the header says.",
    );
    for (volume, uuid, slot, key_id, kek) in &keks {
        gauges.sample(&kek_labels(volume, uuid, slot, key_id, kek.manager), kek.age_seconds);
    }
    gauges.family("sealbd_kek_overdue", "Whether that is longer than the volume's rotate_kek.");
    for (volume, uuid, slot, key_id, kek) in keks.iter().filter(|kek| kek.0.rotate_kek_seconds.is_some()) {
        gauges.sample(&kek_labels(volume, uuid, slot, key_id, kek.manager), u64::from(kek.overdue));
    }
    gauges.family("sealbd_key_manager_up", "Whether the key manager answered and let us in.");
    for (provider, probed) in providers {
        gauges.sample(&[("provider", provider)], u64::from(probed.is_up()));
    }
    gauges.family(
        "sealbd_credential_expiry_timestamp_seconds",
        "When the credential ends that sealbd shows to the key manager, seconds since 1970.",
    );
    for (provider, probed) in providers {
        if let Some(expires) = probed.credential_expires() {
            gauges.sample(&[("provider", provider)], expires);
        }
    }
    gauges.into_text()
}

fn kek_labels<'a>(
    volume: &'a VolumeReport,
    uuid: &'a str,
    slot: &'a str,
    key_id: &'a str,
    manager: &'a str,
) -> [(&'static str, &'a str); 5] {
    [("volume", &volume.name), ("uuid", uuid), ("slot", slot), ("manager", manager), ("key_id", key_id)]
}

#[cfg(test)]
mod tests {
    use keymgmt::manager::{Health, KeyError};

    use super::*;

    fn volume(name: &str) -> VolumeReport {
        VolumeReport {
            name: name.to_owned(),
            uuid: None,
            backend: "/srv/x".into(),
            readable: false,
            label: None,
            header_generation: None,
            rotate_kek_seconds: None,
            keys: None,
            problem: None,
        }
    }

    #[test]
    fn a_key_manager_that_is_down_is_a_zero_and_has_no_expiry() {
        let expires = std::time::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        let up = Ok(Health { text: "fine".into(), credential_expires: Some(expires) });
        let up = Probed::of(up, Duration::from_millis(3));
        let down = Probed::of(Err(KeyError::Unreachable("gone".into())), Duration::from_secs(5));
        let text = exposition(&[volume("db1")], &[("one", &up), ("two", &down)]);
        for line in [
            "sealbd_volume_readable{volume=\"db1\"} 0",
            "sealbd_key_manager_up{provider=\"one\"} 1",
            "sealbd_key_manager_up{provider=\"two\"} 0",
            "sealbd_credential_expiry_timestamp_seconds{provider=\"one\"} 2000000000",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} in {text}");
        }
        assert_eq!(text.matches("expiry_timestamp_seconds{").count(), 1);
    }
}
