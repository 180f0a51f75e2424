//! The words of the command line (verbs and options), and nothing of what they do.

mod key_verbs;
mod space_verbs;

use std::ffi::{OsStr, OsString};
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub(super) use key_verbs::{
    EraseOptions, HeaderCommand, HeaderFileOptions, HeaderPinOptions, HeaderRestoreOptions,
    HeaderVerifyOptions, KeyAddOptions, KeyCommand, KeyKillOptions, KeyPriorityOptions, KeyRemoveOptions,
    KeyTestOptions, ResumeOptions, RevokeOptions, RotateOptions,
};

pub(super) use space_verbs::{CompactOptions, ResizeOptions};

use super::outcome::Failure;
use super::size::{parse_over_provisioning, parse_size};
use crate::audit::Hash;
use crate::cipher::Engine;
use crate::volume::anchor::OnRollback;
use crate::volume::create::OverProvisioning;

/// Encrypted block devices over NBD: every sector is sealed before it leaves this host.
#[derive(Parser, Debug)]
#[command(name = "sealbd", version, about, max_term_width = 100, arg_required_else_help = true)]
#[command(
    after_help = "BACKEND is a volume of the configuration by name or uuid, a path, file:/path, nbd://host:port/export, nbd+unix:///export?socket=PATH or mem:SIZE.\n\
    SPEC is keyfile:PATH, credential:NAME, passphrase:SECRET, recovery:SECRET or kms:PROVIDER[/KEY]; SECRET is prompt, file:PATH, fd:N or cred:NAME.\n\
    Exit codes: 0 ok, 1 usage, 2 no key fits, 3 out of memory, 4 no volume there, 5 exists or busy, 6 key manager \
    unreachable, 7 key manager denied, 8 damaged, 9 rolled back, 10 in use elsewhere, 11 backend unreachable, \
    12 unfinished operation, 13 refused, 14 partly done.\n\
    Environment: SEALBD_FORMAT=json as --json, SEALBD_AUDIT=FILE the audit log, SEALBD_AUDIT_JOURNAL=SOCKET the \
    journal that is told of it (empty: none)."
)]
pub(super) struct Arguments {
    /// Print one JSON object instead of prose
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Configuration to read instead of $SEALBD_CONFIG or /etc/sealbd/sealbd.toml
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Where this host remembers the newest root of each volume; a backend that was put back to an older state
    /// is refused (exit 9). Default: the volume's anchor in the configuration
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) anchor: Option<PathBuf>,
    /// Which AES-256-GCM to use: aws-lc or portable
    #[arg(long, global = true, hide = true, value_name = "NAME")]
    engine: Option<String>,
    #[command(subcommand)]
    pub(super) command: Command,
}

impl Arguments {
    /// The engine asked for, else the default one.
    pub(super) fn engine(&self) -> Result<Engine, Failure> {
        match &self.engine {
            None => Ok(Engine::default()),
            Some(name) => Engine::by_name(name).ok_or_else(|| {
                let known: Vec<&str> = Engine::ALL.iter().map(|engine| engine.name()).collect();
                Failure::usage(
                    "no engine of that name in this build",
                    format!("--engine {}", known.join(" | ")),
                )
            }),
        }
    }
}

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Show it all: make a volume, serve it, write, read back, look at the ciphertext, change a key
    Demo(DemoOptions),
    /// Make a volume; what was on the backend becomes unreadable
    Format(FormatOptions),
    /// Serve volumes over NBD
    Serve(ServeOptions),
    /// Print the header: geometry, keyslots (needs no key)
    Dump(BackendOption),
    /// Print state and use of space (more of it with a key)
    Status(StatusOptions),
    /// Verify a volume, served or not; with --deep every sector
    ///
    /// Verified are both headers, the ring of roots, the newest root and the one before it, the segment table, the headers of
    /// segments, every page of the index, and that the table counts what the index needs. A volume that is served is
    /// checked by its server, which has the key, while clients go on.
    ///
    /// A warning is damage of something that is not needed as long as nothing else is damaged: the second copy of the header, an
    /// older root, the header of a segment. Exit 0: nothing that is needed is wrong; there may be warnings. 8: damaged, the ranges of
    /// sectors that cannot be read are listed. 9: the backend is behind its anchor. 14: writers needed the
    /// space that the check kept, so not all was verified.
    Check(CheckOptions),
    /// Give a volume another size, served or not
    ///
    /// Larger: a file under it grows; a block device or a remote export must be large enough already. Smaller: only when nothing is
    /// left behind the new end, so make its file system smaller first and blkdiscard the rest; segments stay, and are room for
    /// data from then on. A volume that is served is resized by its server, which has the key. Its connections keep the size
    /// that they were told, for NBD has no word for another one: new connections see it. So it becomes smaller only while nobody is connected.
    Resize(ResizeOptions),
    /// Move data together and give back the space between, served or not
    ///
    /// What was overwritten or trimmed leaves holes in segments, which are emptied when room is needed. This empties them now, those that
    /// gain most first, until of the segments in use PERCENT is live data. It can be ended at any time with Ctrl-C: what was gained
    /// stays, and the next one goes on. Exit 0 also when there is no more to gain.
    Compact(CompactOptions),
    /// List the volumes of the configuration with the age of their keys (needs no key)
    List(ListOptions),
    /// Ask the key managers of the configuration
    #[command(subcommand)]
    Kms(KmsCommand),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the volume's uuid (needs no key)
    Uuid(BackendOption),
    /// Add, change, remove, list and test keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// Park the requests of a served volume and wipe its key from memory
    Suspend(BackendOption),
    /// Give a suspended volume its key back
    Resume(ResumeOptions),
    /// Wrap the data key under a new version of the key manager's key
    Rotate(RotateOptions),
    /// Take a key away from whoever has it: remove its keyslot, destroy its key in the key manager
    Revoke(RevokeOptions),
    /// Destroy every keyslot and its key: nobody can read the data again
    Erase(EraseOptions),
    /// Back the header up or restore it
    #[command(subcommand)]
    Header(HeaderCommand),
    /// Look at the audit log and verify it
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Print a completion script for a shell
    Completions {
        /// bash, elvish, fish, powershell or zsh
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write all of them to a directory
    Man {
        /// Write sealbd.1 and one page per verb there
        #[arg(long, value_name = "DIR")]
        directory: Option<PathBuf>,
    },
}

impl Command {
    /// The one backend that it is about, as given.
    pub(super) fn backend(&self) -> Option<&OsStr> {
        let backend = match self {
            Self::Format(FormatOptions { backend, .. }) => backend,
            Self::Serve(ServeOptions { backends, .. }) => match backends.as_slice() {
                [backend] => backend,
                _ => return None,
            },
            Self::Dump(BackendOption { backend })
            | Self::Uuid(BackendOption { backend })
            | Self::Key(KeyCommand::List(BackendOption { backend }))
            | Self::Status(StatusOptions { backend: BackendOption { backend }, .. })
            | Self::Check(CheckOptions { backend: BackendOption { backend }, .. })
            | Self::Resize(ResizeOptions { backend: BackendOption { backend }, .. })
            | Self::Compact(CompactOptions { backend: BackendOption { backend }, .. })
            | Self::Key(
                KeyCommand::Add(KeyAddOptions { backend: BackendOption { backend }, .. })
                | KeyCommand::Ensure(KeyAddOptions { backend: BackendOption { backend }, .. })
                | KeyCommand::Change(KeyAddOptions { backend: BackendOption { backend }, .. })
                | KeyCommand::Kill(KeyKillOptions { backend: BackendOption { backend }, .. })
                | KeyCommand::Priority(KeyPriorityOptions { backend: BackendOption { backend }, .. })
                | KeyCommand::Remove(KeyRemoveOptions { backend: BackendOption { backend }, .. })
                | KeyCommand::Test(KeyTestOptions { backend: BackendOption { backend }, .. }),
            )
            | Self::Header(
                HeaderCommand::Backup(HeaderFileOptions { backend: BackendOption { backend }, .. })
                | HeaderCommand::Diff(HeaderFileOptions { backend: BackendOption { backend }, .. })
                | HeaderCommand::Verify(HeaderVerifyOptions { backend: BackendOption { backend }, .. })
                | HeaderCommand::Pin(HeaderPinOptions { backend: BackendOption { backend }, .. })
                | HeaderCommand::Restore(HeaderRestoreOptions { backend: BackendOption { backend }, .. }),
            ) => backend,
            Self::Rotate(options) => return options.backend.as_deref(),
            Self::Suspend(BackendOption { backend })
            | Self::Resume(ResumeOptions { backend: BackendOption { backend }, .. }) => backend,
            Self::Revoke(RevokeOptions { backend: BackendOption { backend }, .. })
            | Self::Erase(EraseOptions { backend: BackendOption { backend }, .. }) => backend,
            Self::List(_) | Self::Kms(_) | Self::Config(_) => return None,
            Self::Demo(_) | Self::Audit(_) | Self::Completions { .. } | Self::Man { .. } => return None,
        };
        Some(backend)
    }

    /// The backends that it is about, and the keys given for them where it takes any: to be completed from
    /// the configuration.
    pub(super) fn volumes(&mut self) -> (&mut [OsString], Option<&mut Vec<String>>) {
        use std::slice::from_mut;
        match self {
            Self::Format(FormatOptions { backend, slots, .. }) => (from_mut(backend), Some(slots)),
            Self::Serve(ServeOptions { backends, slot, .. }) => (backends, Some(&mut slot.slots)),
            // Without a key it tells less.
            Self::Status(StatusOptions { backend: BackendOption { backend }, .. })
            | Self::Dump(BackendOption { backend })
            | Self::Uuid(BackendOption { backend })
            | Self::Suspend(BackendOption { backend })
            | Self::Key(KeyCommand::List(BackendOption { backend }))
            | Self::Header(HeaderCommand::Backup(HeaderFileOptions {
                backend: BackendOption { backend },
                ..
            }))
            | Self::Header(HeaderCommand::Diff(HeaderFileOptions {
                backend: BackendOption { backend },
                ..
            })) => (from_mut(backend), None),
            Self::Check(CheckOptions { backend: BackendOption { backend }, slot, .. })
            | Self::Resize(ResizeOptions { backend: BackendOption { backend }, slot, .. })
            | Self::Compact(CompactOptions { backend: BackendOption { backend }, slot, .. })
            | Self::Key(
                KeyCommand::Remove(KeyRemoveOptions { backend: BackendOption { backend }, slot, .. })
                | KeyCommand::Kill(KeyKillOptions { backend: BackendOption { backend }, slot, .. })
                | KeyCommand::Priority(KeyPriorityOptions { backend: BackendOption { backend }, slot, .. })
                | KeyCommand::Test(KeyTestOptions { backend: BackendOption { backend }, slot, .. }),
            )
            | Self::Revoke(RevokeOptions { backend: BackendOption { backend }, slot, .. })
            | Self::Resume(ResumeOptions { backend: BackendOption { backend }, slot })
            | Self::Erase(EraseOptions { backend: BackendOption { backend }, slot, .. })
            | Self::Header(
                HeaderCommand::Restore(HeaderRestoreOptions {
                    backend: BackendOption { backend }, slot, ..
                })
                | HeaderCommand::Verify(HeaderVerifyOptions {
                    backend: BackendOption { backend }, slot, ..
                }),
            ) => (from_mut(backend), Some(&mut slot.slots)),
            Self::Header(HeaderCommand::Pin(HeaderPinOptions {
                backend: BackendOption { backend },
                slots,
                remove,
            })) => (from_mut(backend), if *remove { None } else { Some(slots) }),
            Self::Rotate(RotateOptions { backend: Some(backend), slots, .. }) => {
                (from_mut(backend), Some(slots))
            }
            Self::Rotate(RotateOptions { backend: None, .. }) => (&mut [], None),
            Self::Key(
                KeyCommand::Add(KeyAddOptions { backend: BackendOption { backend }, slots, .. })
                | KeyCommand::Ensure(KeyAddOptions { backend: BackendOption { backend }, slots, .. })
                | KeyCommand::Change(KeyAddOptions { backend: BackendOption { backend }, slots, .. }),
            ) => (from_mut(backend), Some(slots)),
            Self::List(_) | Self::Kms(_) | Self::Config(_) => (&mut [], None),
            Self::Demo(_) | Self::Audit(_) | Self::Completions { .. } | Self::Man { .. } => (&mut [], None),
        }
    }

    /// Whether it is run without a configuration, or reads one of its own.
    pub(super) fn needs_no_settings(&self) -> bool {
        matches!(self, Self::Demo(_) | Self::Completions { .. } | Self::Man { .. } | Self::Config(_))
    }

    /// The verb in the audit log, for every command that needs a key or changes what keys or volumes there
    /// are. Others are not recorded.
    pub(super) fn audited(&self) -> Option<&'static str> {
        match self {
            Self::Format(_) => Some("format"),
            Self::Serve(_) => Some("serve"),
            Self::Check(_) => Some("check"),
            Self::Resize(_) => Some("resize"),
            Self::Compact(_) => Some("compact"),
            Self::Status(options) => (!options.slots.is_empty()).then_some("status"),
            Self::Key(KeyCommand::Add(_)) => Some("key-add"),
            Self::Key(KeyCommand::Ensure(_)) => Some("key-ensure"),
            Self::Key(KeyCommand::Change(_)) => Some("key-change"),
            Self::Key(KeyCommand::Kill(_)) => Some("key-kill"),
            Self::Key(KeyCommand::Priority(_)) => Some("key-priority"),
            Self::Rotate(_) => Some("rotate"),
            Self::Suspend(_) => Some("suspend"),
            Self::Resume(_) => Some("resume"),
            Self::Revoke(_) => Some("revoke"),
            Self::Erase(_) => Some("erase"),
            Self::Header(HeaderCommand::Verify(_)) => Some("header-verify"),
            Self::Header(HeaderCommand::Pin(_)) => Some("header-pin"),
            Self::Key(KeyCommand::Remove(_)) => Some("key-remove"),
            Self::Key(KeyCommand::Test(_)) => Some("key-test"),
            Self::Header(HeaderCommand::Backup(_)) => Some("header-backup"),
            Self::Header(HeaderCommand::Restore(_)) => Some("header-restore"),
            Self::Demo(_)
            | Self::Dump(_)
            | Self::Uuid(_)
            | Self::Key(KeyCommand::List(_))
            | Self::Header(HeaderCommand::Diff(_))
            | Self::List(_)
            | Self::Kms(_)
            | Self::Config(_)
            | Self::Audit(_)
            | Self::Completions { .. }
            | Self::Man { .. } => None,
        }
    }

    /// Whether a server that has the key may do it all.
    pub(super) fn may_ask_the_server(&self) -> bool {
        matches!(self, Self::Check(_) | Self::Resize(_) | Self::Compact(_))
    }

    /// What a volume that is behind its anchor leads to.
    pub(super) fn on_rollback(&self) -> OnRollback {
        match self {
            Self::Serve(ServeOptions { accept_rollback: true, .. }) => OnRollback::Accept,
            // A finding, told with the others.
            Self::Check(_) => OnRollback::Accept,
            _ => OnRollback::Refuse,
        }
    }

    /// Whether nothing is to be changed.
    pub(super) fn is_dry_run(&self) -> bool {
        match self {
            Self::Key(
                KeyCommand::Add(KeyAddOptions { dry_run, .. })
                | KeyCommand::Ensure(KeyAddOptions { dry_run, .. })
                | KeyCommand::Change(KeyAddOptions { dry_run, .. })
                | KeyCommand::Remove(KeyRemoveOptions { dry_run, .. })
                | KeyCommand::Kill(KeyKillOptions { dry_run, .. })
                | KeyCommand::Priority(KeyPriorityOptions { dry_run, .. }),
            )
            | Self::Resize(ResizeOptions { dry_run, .. })
            | Self::Rotate(RotateOptions { dry_run, .. })
            | Self::Revoke(RevokeOptions { dry_run, .. })
            | Self::Erase(EraseOptions { dry_run, .. }) => *dry_run,
            _ => false,
        }
    }

    /// Whether standard output carries something else than a report.
    pub(super) fn owns_stdout(&self) -> bool {
        match self {
            Self::Serve(options) => options.stdio,
            Self::Demo(_) | Self::Completions { .. } | Self::Man { .. } => true,
            _ => false,
        }
    }
}

#[derive(Args, Debug)]
pub(super) struct BackendOption {
    /// Where the volume lies
    #[arg(value_name = "BACKEND")]
    pub(super) backend: OsString,
}

#[derive(Args, Debug)]
pub(super) struct SlotOption {
    /// A key that opens the volume; may be given several times, all are tried; default: the volume's slots in
    /// the configuration
    #[arg(long = "slot", value_name = "SPEC")]
    pub(super) slots: Vec<String>,
}

#[derive(Args, Debug)]
pub(super) struct DemoOptions {
    /// Exit after the self-check instead of serving on
    #[arg(long)]
    pub(super) check: bool,
}

#[derive(Args, Debug)]
pub(super) struct FormatOptions {
    /// Where the volume will lie
    #[arg(value_name = "BACKEND")]
    pub(super) backend: OsString,
    /// Size that clients see, e.g. 10G; needed for a new file, else what fits
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    pub(super) size: Option<u64>,
    /// Room for data on the store, in sizes of the volume: more makes overwriting a full volume cheaper;
    /// from 1.15 on
    #[arg(long, value_parser = parse_over_provisioning, default_value = "1.25", value_name = "FACTOR")]
    pub(super) over_provisioning: OverProvisioning,
    /// A key that will open the volume; a keyfile that does not exist is made; default: the volume's slots in
    /// the configuration
    #[arg(long = "slot", value_name = "SPEC")]
    pub(super) slots: Vec<String>,
    /// Make no recovery key
    #[arg(long)]
    pub(super) no_recovery: bool,
    /// Free text kept in the header, at most 64 bytes
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub(super) label: String,
    /// Ask nothing
    #[arg(long, short = 'y', visible_alias = "batch-mode")]
    pub(super) yes: bool,
}

#[derive(Args, Debug)]
pub(super) struct ServeOptions {
    /// Where the volumes lie
    #[arg(value_name = "BACKEND", required = true)]
    pub(super) backends: Vec<OsString>,
    #[command(flatten)]
    pub(super) slot: SlotOption,
    /// Listen on a unix socket (mode 0600)
    #[arg(short = 'U', long = "unix", value_name = "SOCK")]
    pub(super) socket: Option<PathBuf>,
    /// Listen on a TCP port of the loopback address; 0 takes any free one
    #[arg(short = 'p', long, value_name = "PORT")]
    pub(super) port: Option<u16>,
    /// Loopback address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", requires = "port")]
    pub(super) bind: IpAddr,
    /// Serve one client on standard input and output
    #[arg(long, conflicts_with_all = ["socket", "port", "run"])]
    pub(super) stdio: bool,
    /// Export name, one per backend in their order; default: the last part of the backend's name
    #[arg(long = "name", short = 'x', value_name = "EXPORT")]
    pub(super) names: Vec<String>,
    /// Refuse every change; nothing is written to the backend
    #[arg(long, short = 'r', visible_alias = "readonly")]
    pub(super) read_only: bool,
    /// Bypass the page cache (O_DIRECT); for files and block devices
    #[arg(long)]
    pub(super) direct: bool,
    /// Take a backend that is behind its anchor as it is: what was written since is given up
    #[arg(long)]
    pub(super) accept_rollback: bool,
    /// Memory that the server stays within, as 256M; default: 64 MiB, and 11 MB per TiB served
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) memory: Option<u64>,
    /// Write the process number there
    #[arg(long, short = 'P', value_name = "FILE")]
    pub(super) pid_file: Option<PathBuf>,
    /// Where the volumes' control sockets are made; default: control_directory of the configuration
    #[arg(long, value_name = "DIR")]
    pub(super) control_directory: Option<PathBuf>,
    /// Make no control sockets: keys cannot be changed while the volumes are served
    #[arg(long, conflicts_with = "control_directory")]
    pub(super) no_control: bool,
    /// Run a shell command with $uri, $unixsocket, $port and $exportname set, and stop when it ends
    #[arg(long, value_name = "CMD")]
    pub(super) run: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct StatusOptions {
    #[command(flatten)]
    pub(super) backend: BackendOption,
    /// A key that opens the volume, for the use of space
    #[arg(long = "slot", value_name = "SPEC")]
    pub(super) slots: Vec<String>,
}

#[derive(Args, Debug)]
pub(super) struct CheckOptions {
    #[command(flatten)]
    pub(super) backend: BackendOption,
    #[command(flatten)]
    pub(super) slot: SlotOption,
    /// Read and authenticate every sector, too
    #[arg(long)]
    pub(super) deep: bool,
    /// Copy all that authenticates into a new raw file, also of a volume that does not open any more; what is missing
    /// stays a hole and is listed in OUT.damaged.json, exit 8. OUT is plaintext
    #[arg(long, value_name = "OUT", conflicts_with = "deep")]
    pub(super) salvage: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(super) struct ListOptions {
    /// Ask the key managers, too, and print gauges for Prometheus: to standard output, or to FILE in one step
    #[arg(long, value_name = "FILE", num_args = 0..=1, conflicts_with = "json")]
    pub(super) prometheus: Option<Option<PathBuf>>,
}

#[derive(Subcommand, Debug)]
pub(super) enum KmsCommand {
    /// List the key managers of the configuration, without asking them anything
    List(KmsOptions),
    /// Ask whether each is there and lets us in
    Test(KmsOptions),
    /// The same, with the volumes that depend on each
    Status(KmsOptions),
}

#[derive(Args, Debug)]
pub(super) struct KmsOptions {
    /// Only this one
    #[arg(long, value_name = "NAME")]
    pub(super) provider: Option<String>,
}

#[derive(Subcommand, Debug)]
pub(super) enum ConfigCommand {
    /// Tell every error of the configuration, or what it says
    Check {
        /// The configuration; default: as --config
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

#[derive(Subcommand, Debug)]
pub(super) enum AuditCommand {
    /// Show the last records; with --json as they stand in the log, one per line
    Tail(AuditTailOptions),
    /// Verify that no record was changed, removed, moved or put in
    ///
    /// Who may write to the log can replace all of it by another one: keep the hash that this prints in another
    /// place, and give it as --to next time. Then an end that was cut off is found, too.
    Verify(AuditVerifyOptions),
}

#[derive(Args, Debug)]
pub(super) struct AuditTailOptions {
    /// The log; default: where this user's commands are recorded
    #[arg(value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// How many records
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    pub(super) lines: u64,
    /// Go on with new records as they come, also when the log is rotated
    #[arg(short = 'f', long)]
    pub(super) follow: bool,
}

#[derive(Args, Debug)]
pub(super) struct AuditVerifyOptions {
    /// The log, or several files of one chain, the oldest first; default: where this user's commands are recorded
    #[arg(value_name = "FILE")]
    pub(super) files: Vec<PathBuf>,
    /// The log must begin behind the record with this hash
    #[arg(long, value_name = "HASH", value_parser = parse_hash)]
    pub(super) from: Option<Hash>,
    /// A hash that was kept: the log must contain that record
    #[arg(long, visible_alias = "expect", value_name = "HASH", value_parser = parse_hash)]
    pub(super) to: Option<Hash>,
}

fn parse_hash(text: &str) -> Result<Hash, &'static str> {
    text.parse()
}

/// cryptsetup's spellings and ours.
const ALIASES: &[(&str, &[&str])] = &[
    ("luksFormat", &["format"]),
    ("luksDump", &["dump"]),
    ("luksUUID", &["uuid"]),
    ("luksAddKey", &["key", "add"]),
    ("luksChangeKey", &["key", "change"]),
    ("luksRemoveKey", &["key", "remove"]),
    ("luksKillSlot", &["key", "kill"]),
    ("luksHeaderBackup", &["header", "backup"]),
    ("luksHeaderRestore", &["header", "restore"]),
];

/// Replaces a verb of cryptsetup by ours; also returns ours, to be told.
pub(super) fn native_spelling(words: impl Iterator<Item = OsString>) -> (Vec<OsString>, Option<String>) {
    let mut words: Vec<OsString> = words.collect();
    let Some(at) = verb_at(&words) else { return (words, None) };
    let Some((_, native)) = ALIASES.iter().find(|(alias, _)| words[at] == OsStr::new(alias)) else {
        return (words, None);
    };
    words.splice(at..=at, native.iter().map(OsString::from));
    (words, Some(native.join(" ")))
}

/// Where the verb stands: the first word that is no option and not what stands behind one.
pub(super) fn verb_at(words: &[OsString]) -> Option<usize> {
    let takes_a_word =
        |word: &OsString| ["--config", "--anchor", "--engine"].iter().any(|option| word == option);
    let is_option = |word: &OsString| word.as_encoded_bytes().starts_with(b"-");
    (1..words.len()).find(|at| !is_option(&words[*at]) && !takes_a_word(&words[at - 1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn cryptsetup_spellings_become_ours() {
        let words = ["sealbd", "--json", "luksAddKey", "vol"].map(OsString::from);
        let (words, native) = native_spelling(words.into_iter());
        assert_eq!(words, ["sealbd", "--json", "key", "add", "vol"]);
        assert_eq!(native.as_deref(), Some("key add"));
        let words = ["sealbd", "--config", "luksDump", "luksUUID", "vol"].map(OsString::from);
        let (words, native) = native_spelling(words.into_iter());
        assert_eq!(words, ["sealbd", "--config", "luksDump", "uuid", "vol"]);
        assert_eq!(native.as_deref(), Some("uuid"));
        let (words, native) = native_spelling(["sealbd", "dump", "luksDump"].map(OsString::from).into_iter());
        assert_eq!(words, ["sealbd", "dump", "luksDump"]);
        assert_eq!(native, None);
    }
}
