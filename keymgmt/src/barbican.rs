//! OpenStack Barbican as a key manager: secrets of 32 bytes that wrap data keys, reached with a Keystone login.
//!
//! Start reading at [`manager`]; below it `secrets` is Barbican's API, `keystone` the login and the token (`login`
//! its body, `catalog` where it leads), `clouds` the files of OpenStack's own clients, `settings` the
//! `[provider.NAME]` table.

mod answer;
mod catalog;
mod clouds;
mod keystone;
mod login;
mod manager;
mod secrets;
mod settings;

use crate::manager::SlotType;
use crate::provider::{self, ProviderKind};

/// The row of providers of type `barbican`.
pub(crate) const KIND: ProviderKind = ProviderKind {
    name: "barbican",
    slot_type: SlotType::Barbican,
    settings: provider::settings::<settings::BarbicanSettings>,
    describe: manager::describe,
};
