//! How old the keys of a volume are, from what its header says of itself.
//!
//! A header is read without a key, so all of this is the store's word and nothing is decided by it: a report
//! that is too good is found out by whoever opens the volume, which authenticates the same header.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keymgmt::manager::SlotType;
use keymgmt::registry::Registry;
use serde::Serialize;

use super::output::printable;
use crate::format::header::Header;
use crate::format::keyslot::{Keyslot, KeyslotState};

/// The data key.
#[derive(Serialize)]
pub(super) struct DekAge {
    pub(super) epoch: u32,
    /// Seconds since 1970; none where the header does not say.
    pub(super) created: Option<u64>,
    pub(super) age_seconds: Option<u64>,
}

/// One wrap of the data key that opens the volume.
#[derive(Serialize)]
pub(super) struct KekAge {
    pub(super) slot: usize,
    #[serde(rename = "type")]
    pub(super) manager: &'static str,
    pub(super) description: String,
    /// What the manager calls the key; none where it is the user's own secret.
    pub(super) key_id: Option<String>,
    pub(super) version: Option<String>,
    pub(super) priority: u16,
    /// When the data key was wrapped by this version of the key, seconds since 1970.
    pub(super) created: u64,
    pub(super) age_seconds: u64,
    /// Older than `rotate_kek`; never so for a user's own secret, which no rotation can renew.
    pub(super) overdue: bool,
}

/// What the header says of its keys.
#[derive(Serialize)]
pub(super) struct KeyAges {
    pub(super) dek: DekAge,
    pub(super) keks: Vec<KekAge>,
    pub(super) overdue: bool,
}

impl KeyAges {
    /// Of a header, authenticated or not.
    pub(super) fn of(registry: &Registry, header: &Header, rotate_kek: Option<Duration>) -> Self {
        let now = unix_seconds(SystemTime::now());
        let slots = header.keyslots.iter().enumerate();
        let used = slots.filter_map(|(number, slot)| Some((number, slot.as_ref()?)));
        let active = used.filter(|(_, slot)| slot.state == KeyslotState::Active);
        let keks: Vec<_> =
            active.map(|(number, slot)| kek(registry, number, slot, rotate_kek, now)).collect();
        let created = Some(header.dek_created).filter(|created| *created != 0);
        Self {
            dek: DekAge {
                epoch: header.active_epoch,
                created,
                age_seconds: created.map(|created| now.saturating_sub(created)),
            },
            overdue: keks.iter().any(|kek| kek.overdue),
            keks,
        }
    }

    /// A line for the data key and one for each wrap.
    pub(super) fn lines(&self) -> String {
        let DekAge { epoch, age_seconds, .. } = &self.dek;
        let age =
            age_seconds.map_or_else(|| "age not known".to_owned(), |age| format!("{} old", show_age(age)));
        let mut text = format!("data key           epoch {epoch}, {age}\n");
        for KekAge { slot, manager, description, key_id, version, age_seconds, overdue, .. } in &self.keks {
            // The description of a key names it already, most of the time.
            let named =
                |name: &Option<String>| name.clone().filter(|name| !description.contains(name.as_str()));
            let key = named(key_id).map_or_else(String::new, |key| format!("  key {key}"));
            let version = named(version).map_or_else(String::new, |version| format!("  version {version}"));
            let late = if *overdue { "  OVERDUE" } else { "" };
            text.push_str(&format!(
                "Slot {slot:<2} {manager:<13} {age:>5} old  {}{late}\n",
                one_line(&format!("{description}{key}{version}")),
                age = show_age(*age_seconds),
            ));
        }
        text
    }
}

/// Text of a backend as one line of a report.
pub(super) fn one_line(text: &str) -> String {
    // A line feed could pass for a line of ours.
    printable(text).replace('\n', "\\n")
}

/// An age for people: days from two days on, then hours, then minutes.
pub(super) fn show_age(seconds: u64) -> String {
    match seconds {
        0..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Seconds since 1970; 0 before.
pub(super) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn kek(
    registry: &Registry,
    slot: usize,
    keyslot: &Keyslot,
    rotate_kek: Option<Duration>,
    now: u64,
) -> KekAge {
    let Keyslot { created, priority, key, .. } = keyslot;
    let age = now.saturating_sub(*created);
    let (description, key_id, version) = match registry.describe(key) {
        Ok(described) => (described.text, described.key_id, described.version),
        Err(error) => (error.to_string(), None, None),
    };
    let own = matches!(key.slot_type, SlotType::Passphrase | SlotType::Keyfile | SlotType::Recovery);
    KekAge {
        slot,
        manager: key.slot_type.name(),
        description,
        key_id,
        version,
        priority: *priority,
        created: *created,
        age_seconds: age,
        overdue: !own && rotate_kek.is_some_and(|period| age > period.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_in_the_largest_unit_that_is_not_coarse() {
        let shown = [0, 7199, 7200, 172_799, 172_800, 90 * 86_400].map(show_age);
        assert_eq!(shown, ["0m", "119m", "2h", "47h", "2d", "90d"]);
    }
}
