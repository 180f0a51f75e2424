//! The words of the verbs that change keys and headers.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{BackendOption, SlotOption};

#[derive(Subcommand, Debug)]
pub(in crate::cli) enum KeyCommand {
    /// Add a key
    Add(KeyAddOptions),
    /// Add a key unless it opens the volume already
    Ensure(KeyAddOptions),
    /// Replace a key by another, in the same keyslot
    Change(KeyAddOptions),
    /// Remove a key
    Remove(KeyRemoveOptions),
    /// Remove the key in a keyslot by means of another key
    Kill(KeyKillOptions),
    /// Set which keyslots are tried first
    Priority(KeyPriorityOptions),
    /// List the keyslots (needs no key)
    List(BackendOption),
    /// Tell which keyslots a key opens
    Test(KeyTestOptions),
}

#[derive(Args, Debug)]
pub(in crate::cli) struct KeyAddOptions {
    #[command(flatten)]
    pub(in crate::cli) backend: BackendOption,
    /// A key that opens the volume now; 'change' replaces it; default: the volume's slots in the
    /// configuration
    #[arg(long = "slot", value_name = "SPEC")]
    pub(in crate::cli) slots: Vec<String>,
    /// The new key; a keyfile that does not exist is made
    #[arg(long, value_name = "SPEC", required = true)]
    pub(in crate::cli) new_slot: String,
    /// Keyslots with a lower number are tried first
    #[arg(long, value_name = "N")]
    pub(in crate::cli) priority: Option<u16>,
    /// Check and tell what would be done, and change nothing
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct KeyRemoveOptions {
    #[command(flatten)]
    pub(in crate::cli) backend: BackendOption,
    #[command(flatten)]
    pub(in crate::cli) slot: SlotOption,
    /// Number of the keyslot to remove; default: the one that --slot opens
    #[arg(long, value_name = "N")]
    pub(in crate::cli) key_slot: Option<usize>,
    /// Remove even the last keyslot: nobody can open the volume afterwards
    #[arg(long)]
    pub(in crate::cli) force_last: bool,
    /// Check and tell what would be done, and change nothing
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct KeyKillOptions {
    #[command(flatten)]
    pub(in crate::cli) backend: BackendOption,
    #[command(flatten)]
    pub(in crate::cli) slot: SlotOption,
    /// Number of the keyslot to remove
    #[arg(long, value_name = "N")]
    pub(in crate::cli) key_slot: usize,
    /// Check and tell what would be done, and change nothing
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct KeyPriorityOptions {
    #[command(flatten)]
    pub(in crate::cli) backend: BackendOption,
    #[command(flatten)]
    pub(in crate::cli) slot: SlotOption,
    /// Number of the keyslot
    #[arg(long, value_name = "N")]
    pub(in crate::cli) key_slot: usize,
    /// Keyslots with a lower number are tried first
    #[arg(long, value_name = "N")]
    pub(in crate::cli) priority: u16,
    /// Check and tell what would be done, and change nothing
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct KeyTestOptions {
    #[command(flatten)]
    pub(in crate::cli) backend: BackendOption,
    #[command(flatten)]
    pub(in crate::cli) slot: SlotOption,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct RotateOptions {
    /// Where the volume lies
    #[arg(value_name = "BACKEND", required_unless_present = "all", conflicts_with = "all")]
    pub(in crate::cli) backend: Option<OsString>,
    /// All volumes of the configuration
    #[arg(long)]
    pub(in crate::cli) all: bool,
    /// A new version of the key-encryption key in the key manager; the same whatever the volume's size
    #[arg(long, conflicts_with = "dek")]
    pub(in crate::cli) kek: bool,
    /// A new data key: rewrites every sector. Reserved: there is no online re-encryption yet
    #[arg(long)]
    pub(in crate::cli) dek: bool,
    /// A key that opens the volume, and the key managers to rotate in; default: the volume's slots in the
    /// configuration
    #[arg(long = "slot", value_name = "SPEC", conflicts_with = "all")]
    pub(in crate::cli) slots: Vec<String>,
    /// Only this keyslot
    #[arg(long, value_name = "N", conflicts_with = "all")]
    pub(in crate::cli) key_slot: Option<usize>,
    /// Only keyslots made longer ago than this, e.g. 90d; with --all by default each volume's rotate_kek
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    pub(in crate::cli) older_than: Option<Duration>,
    /// Destroy the old version in the key manager: backups of older headers open no longer by it. One that another
    /// keyslot needs stays, of this volume or of another one in the configuration; others are not known here
    #[arg(long)]
    pub(in crate::cli) retire_old: bool,
    /// Check and tell what would be done, and change nothing
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct ResumeOptions {
    #[command(flatten)]
    pub(in crate::cli) backend: BackendOption,
    #[command(flatten)]
    pub(in crate::cli) slot: SlotOption,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct RevokeOptions {
    #[command(flatten)]
    pub(in crate::cli) backend: BackendOption,
    /// A key that stays, and the key manager of the one that goes
    #[command(flatten)]
    pub(in crate::cli) slot: SlotOption,
    /// Number of the keyslot to revoke
    #[arg(long, value_name = "N")]
    pub(in crate::cli) key_slot: usize,
    /// Also end the serving of the volume at once
    #[arg(long)]
    pub(in crate::cli) now: bool,
    /// Check and tell what would be done, and change nothing
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct EraseOptions {
    #[command(flatten)]
    pub(in crate::cli) backend: BackendOption,
    /// A key that opens the volume, and the key managers whose keys are to be destroyed
    #[command(flatten)]
    pub(in crate::cli) slot: SlotOption,
    /// Write the certificate there; a new file
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) certificate: Option<PathBuf>,
    /// Ask nothing
    #[arg(long, short = 'y')]
    pub(in crate::cli) yes: bool,
    /// Check and tell what would be done, and change nothing
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
}

#[derive(Subcommand, Debug)]
pub(in crate::cli) enum HeaderCommand {
    /// Copy the header with all keyslots to a file (mode 0600)
    Backup(HeaderFileOptions),
    /// Put a header from a file back
    Restore(HeaderRestoreOptions),
    /// Verify both copies of the header against a key, the newest root and the pin
    Verify(HeaderVerifyOptions),
    /// Tell how a backup differs from the header (needs no key)
    Diff(HeaderFileOptions),
    /// Let this host refuse older headers and other data keys from now on
    Pin(HeaderPinOptions),
}

#[derive(Args, Debug)]
pub(in crate::cli) struct HeaderVerifyOptions {
    #[command(flatten)]
    pub(in crate::cli) backend: BackendOption,
    #[command(flatten)]
    pub(in crate::cli) slot: SlotOption,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct HeaderPinOptions {
    #[command(flatten)]
    pub(in crate::cli) backend: BackendOption,
    /// A key that opens the volume; default: the volume's slots in the configuration
    #[arg(long = "slot", value_name = "SPEC", conflicts_with = "remove")]
    pub(in crate::cli) slots: Vec<String>,
    /// Forget the pin
    #[arg(long)]
    pub(in crate::cli) remove: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct HeaderFileOptions {
    #[command(flatten)]
    pub(in crate::cli) backend: BackendOption,
    /// The backup
    #[arg(value_name = "FILE")]
    pub(in crate::cli) file: PathBuf,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct HeaderRestoreOptions {
    #[command(flatten)]
    pub(in crate::cli) backend: BackendOption,
    /// The backup
    #[arg(value_name = "FILE")]
    pub(in crate::cli) file: PathBuf,
    #[command(flatten)]
    pub(in crate::cli) slot: SlotOption,
    /// Ask nothing
    #[arg(long, short = 'y')]
    pub(in crate::cli) yes: bool,
}
