//! Claims about the command line, made on the real binary: what every verb does, how it fails, and that no
//! secret shows. `cli/desk.rs` runs the commands.
#![allow(clippy::print_stderr, reason = "a skipped test says why")]

mod common;
#[path = "common/servers.rs"]
mod servers;

#[path = "cli/anchored.rs"]
mod anchored;
#[path = "cli/audit.rs"]
mod audit;
#[path = "cli/backends.rs"]
mod backends;
#[path = "cli/checking.rs"]
mod checking;
#[path = "cli/compacting.rs"]
mod compacting;
#[path = "cli/config.rs"]
mod config;
#[path = "cli/desk.rs"]
mod desk;
#[path = "cli/erasing.rs"]
mod erasing;
#[path = "cli/errors.rs"]
mod errors;
#[path = "cli/fleet.rs"]
mod fleet;
#[path = "cli/forged.rs"]
mod forged;
#[path = "cli/formatting.rs"]
mod formatting;
#[path = "cli/headers.rs"]
mod headers;
#[path = "cli/keys.rs"]
mod keys;
#[path = "cli/killed.rs"]
mod killed;
#[path = "cli/managers.rs"]
mod managers;
#[path = "cli/online.rs"]
mod online;
#[path = "cli/passphrases.rs"]
mod passphrases;
#[path = "cli/pinning.rs"]
mod pinning;
#[path = "cli/plugins.rs"]
mod plugins;
#[path = "cli/resizing.rs"]
mod resizing;
#[path = "cli/revoking.rs"]
mod revoking;
#[path = "cli/rotating.rs"]
mod rotating;
#[path = "cli/rotating_all.rs"]
mod rotating_all;
#[path = "cli/salvaging.rs"]
mod salvaging;
#[path = "cli/secrecy.rs"]
mod secrecy;
#[path = "cli/serving.rs"]
mod serving;
#[path = "cli/terminal.rs"]
mod terminal;
#[path = "cli/users.rs"]
mod users;
#[path = "cli/words.rs"]
mod words;
