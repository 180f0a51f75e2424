//! How a command ends: exit codes as cryptsetup has them (0–5) and ours, and for every failure a code
//! word, the cause and the next command.

use keymgmt::manager::KeyError;
use keymgmt::source::GrammarError;

use crate::control::client::ControlError;
use crate::control::protocol::{Code, Refusal};
use crate::store::StoreError;
use crate::store::uri::UriError;
use crate::volume::VolumeError;

/// Wrong words on the command line.
pub(super) const EXIT_USAGE: u8 = 1;
const EXIT_NO_KEY: u8 = 2;
const EXIT_MEMORY: u8 = 3;
const EXIT_NOT_OURS: u8 = 4;
const EXIT_EXISTS: u8 = 5;
/// A key manager cannot be reached; trying again may help.
pub(super) const EXIT_KMS_UNREACHABLE: u8 = 6;
/// A key manager said no.
pub(super) const EXIT_KMS_DENIED: u8 = 7;
/// Header or data failed authentication.
pub(super) const EXIT_INTEGRITY: u8 = 8;
/// An older state was put back.
pub(super) const EXIT_ROLLBACK: u8 = 9;
const EXIT_IN_USE: u8 = 10;
const EXIT_UNREACHABLE: u8 = 11;
const EXIT_REFUSED: u8 = 13;
/// Of several things some were done; the report lists each.
pub(super) const EXIT_PARTLY: u8 = 14;

/// Why a command failed.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) exit: u8,
    /// A word for programs.
    pub(super) code: &'static str,
    /// Whether trying again may help.
    pub(super) retryable: bool,
    pub(super) message: String,
    /// What to do next.
    pub(super) hint: String,
}

impl Failure {
    fn new(exit: u8, code: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        let retryable = matches!(exit, EXIT_KMS_UNREACHABLE | EXIT_IN_USE | EXIT_UNREACHABLE);
        Self { exit, code, retryable, message: message.into(), hint: hint.into() }
    }

    pub(super) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(EXIT_USAGE, "usage", message, hint)
    }

    /// The configuration is wrong.
    pub(super) fn config(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(EXIT_USAGE, "config", message, hint)
    }

    /// What was asked of many could not be had of all; each is listed in the report.
    pub(super) fn partly(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(EXIT_PARTLY, "partly_done", message, hint)
    }

    pub(super) fn exists(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(EXIT_EXISTS, "exists", message, hint)
    }

    pub(super) fn refused(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(EXIT_REFUSED, "refused", message, hint)
    }

    /// A volume cannot end at byte `end`, for there is something behind it.
    pub(super) fn tail_in_use(message: impl Into<String>, end: u64) -> Self {
        let hint = format!(
            "make what is on the volume smaller (resize2fs), give back what lies behind it with blkdiscard --offset {end} DEVICE, \
             disconnect, and start the command again"
        );
        Self::new(EXIT_REFUSED, "tail_in_use", message, hint)
    }

    /// The backend has fewer bytes than a volume of some size needs.
    pub(super) fn backend_too_small(message: impl Into<String>) -> Self {
        let hint =
            "make the backend larger, or take a smaller size; sealbd resize BACKEND max takes what fits";
        Self::new(EXIT_REFUSED, "backend_too_small", message, hint)
    }

    /// Stopped by a signal; what was done stays.
    pub(super) fn interrupted(by: i32) -> Self {
        let exit = u8::try_from(128 + by).unwrap_or(EXIT_PARTLY);
        Self {
            retryable: true,
            ..Self::new(exit, "interrupted", "interrupted; what was done stays", "start the command again")
        }
    }

    /// What cannot be recorded is not done.
    pub(super) fn audit(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(EXIT_REFUSED, "audit", message, hint)
    }

    pub(super) fn no_key(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(EXIT_NO_KEY, "no_key_fits", message, hint)
    }

    pub(super) fn integrity(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(EXIT_INTEGRITY, "integrity", message, hint)
    }

    pub(super) fn not_ours(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(EXIT_NOT_OURS, "not_a_volume", message, hint)
    }

    /// Somebody else has it.
    pub(super) fn in_use(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(EXIT_IN_USE, "in_use", message, hint)
    }

    /// Nobody serves the volume here.
    pub(super) fn not_served(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(EXIT_NOT_OURS, "not_served", message, hint)
    }

    /// The operating system refused something that is not the backend.
    pub(super) fn system(what: &str, error: &std::io::Error, hint: impl Into<String>) -> Self {
        Self::new(EXIT_USAGE, "system", format!("{what}: {error}"), hint)
    }

    /// The backend is there and this user may not open it.
    pub(super) fn permission(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(EXIT_NOT_OURS, "permission", message, hint)
    }

    /// The same failure, saying which backend it was about.
    pub(super) fn of(mut self, backend: impl std::fmt::Display) -> Self {
        let backend = backend.to_string();
        let named =
            |form: String| self.message.starts_with(&form) || self.message.contains(&format!(": {form}"));
        if !named(format!("{backend}: ")) && !named(format!("{backend} ")) {
            self.message = format!("{backend}: {}", self.message);
        }
        self.naming(&backend)
    }

    /// The same failure, its hint with `backend` in the place of the word BACKEND.
    pub(super) fn naming(mut self, backend: &str) -> Self {
        self.hint = self.hint.replace("BACKEND", &shell_word(backend));
        self
    }
}

/// A word as a shell takes it.
fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/:+=@%,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

impl From<UriError> for Failure {
    fn from(error: UriError) -> Self {
        Self::usage(error.to_string(), "sealbd --help shows how to name a backend")
    }
}

impl From<GrammarError> for Failure {
    fn from(error: GrammarError) -> Self {
        Self::usage(error.to_string(), "sealbd --help shows the forms of SPEC")
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::Busy(_) => Self::new(
                EXIT_IN_USE,
                "in_use",
                message,
                "stop the process that has it open; meanwhile sealbd dump BACKEND works",
            ),
            StoreError::Unreachable(_) => Self::new(
                EXIT_UNREACHABLE,
                "backend_unreachable",
                message,
                "check the backend's server, then try again",
            ),
            StoreError::NoSpace => Self::new(
                EXIT_UNREACHABLE,
                "backend_full",
                message,
                "make room on the file system of the backend",
            ),
            StoreError::ShortRead { .. } | StoreError::OutOfRange { .. } => {
                Self::integrity(message, "the backend was cut short: restore it, then sealbd check BACKEND")
            }
            StoreError::NoDirectAccess(_) => {
                Self::usage(message, "sealbd serve without --direct, or without direct in its [volume.NAME]")
            }
            StoreError::Open(_) => Self::not_ours(message, "sealbd --help shows how to name a backend"),
            StoreError::Protocol(_) | StoreError::SyncFailed(_) | StoreError::Io { .. } => Self::new(
                EXIT_UNREACHABLE,
                "backend_failed",
                message,
                "look for the cause in the backend's own log (dmesg for a disk), then sealbd check BACKEND",
            ),
        }
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        let message = error.to_string();
        match error {
            ControlError::Io { .. } => Self::new(
                EXIT_UNREACHABLE,
                "server_unreachable",
                message,
                "look whether the process that serves the volume still runs, and as which user",
            ),
            ControlError::Refused(Refusal { code: Code::State, .. }) => {
                Self::new(EXIT_IN_USE, "suspended", message, "sealbd resume BACKEND --slot SPEC")
            }
            ControlError::Refused(Refusal { code: Code::Stopped, .. }) => {
                Self::new(EXIT_IN_USE, "stopped", message, "end that server, then sealbd serve BACKEND")
            }
            ControlError::Refused(Refusal { code: Code::Busy, .. }) => {
                Self::new(EXIT_IN_USE, "busy", message, "start the command again")
            }
            ControlError::Refused(Refusal { code: Code::Refused, .. }) => {
                Self::refused(message, "sealbd header verify BACKEND --slot SPEC")
            }
            ControlError::Refused(Refusal { code: Code::Clients, .. }) => Self::in_use(
                message,
                "disconnect them (umount, nbd-client -d, stop the virtual machine), then start the command again",
            ),
            ControlError::Refused(Refusal { code: Code::TooSmall, .. }) => Self::backend_too_small(message),
            ControlError::Refused(_) => Self::new(
                EXIT_UNREACHABLE,
                "server_failed",
                message,
                "look for the cause in the server's own output, then try again",
            ),
        }
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        let message = error.to_string();
        match error {
            KeyError::Secret(_) => {
                Self::new(EXIT_NO_KEY, "secret", message, "sealbd --help shows the forms of SPEC")
            }
            KeyError::Malformed(_) => {
                Self::integrity(message, "sealbd header restore BACKEND FILE, from a backup")
            }
            KeyError::CostTooHigh { .. } | KeyError::OutOfMemory(_) => {
                Self::new(EXIT_MEMORY, "kdf_cost", message, "use another keyslot, or a host with more memory")
            }
            KeyError::Unreachable(_) => Self::new(
                EXIT_KMS_UNREACHABLE,
                "kms_unreachable",
                message,
                "try again, or use another keyslot",
            ),
            KeyError::Denied(_) => {
                Self::new(EXIT_KMS_DENIED, "kms_denied", message, "ask the key manager's administrator")
            }
            KeyError::Untrusted(_) => Self::new(
                EXIT_KMS_DENIED,
                "kms_untrusted",
                message,
                "check the provider's address and tls settings, and who answers there",
            ),
            KeyError::Settings(_) => {
                Self::usage(message, "correct the provider's settings, then sealbd kms test")
            }
            KeyError::Unsupported(_) => Self::usage(message, "sealbd --help shows the forms of SPEC"),
        }
    }
}

impl From<VolumeError> for Failure {
    fn from(error: VolumeError) -> Self {
        let message = error.to_string();
        match error {
            VolumeError::Store(error) => error.into(),
            VolumeError::Key(error) => error.into(),
            VolumeError::NotAVolume => {
                let hint = "check the name; sealbd format BACKEND --slot SPEC makes a volume of it, and destroys what is there";
                Self::not_ours(message, hint)
            }
            VolumeError::Unsupported(_) => {
                Self::not_ours(message, "use the sealbd version that made the volume")
            }
            // Who resizes says it otherwise.
            VolumeError::StoreTooSmall { .. } => {
                Self::not_ours(message, "was the backend cut short? restore it, then sealbd check BACKEND")
            }
            VolumeError::StoreUnit { .. } => {
                let hint = "serve it from a backend that takes writes as short as that, such as a file or a block device";
                Self::not_ours(message, hint)
            }
            VolumeError::Damaged { structure: "header", .. } => {
                Self::integrity(message, "sealbd header restore BACKEND FILE, from a backup")
            }
            VolumeError::Damaged { .. } | VolumeError::Inconsistent(_) | VolumeError::NoRoot(_) => {
                Self::integrity(
                    message,
                    "sealbd check BACKEND --deep lists what is damaged, sealbd check BACKEND --salvage OUT copies the rest",
                )
            }
            VolumeError::LogDamaged { .. } => Self::integrity(
                message,
                "restore the backend: what is missing had been flushed; sealbd check BACKEND --salvage OUT copies the rest",
            ),
            VolumeError::HeaderRollback { .. } => Self::new(
                EXIT_ROLLBACK,
                "rollback",
                message,
                "an old header was put back; sealbd header restore BACKEND FILE, from the newest backup",
            ),
            VolumeError::Rollback { .. } => Self::new(
                EXIT_ROLLBACK,
                "rollback",
                message,
                "find out who put the backend back; sealbd serve BACKEND --accept-rollback takes the older state",
            ),
            VolumeError::Anchor(_) => Self::new(
                EXIT_REFUSED,
                "anchor",
                message,
                "restore the file from a backup of this host; without it the backend's state is taken on trust",
            ),
            VolumeError::NotAnchored(_) => Self::new(
                EXIT_REFUSED,
                "anchor",
                message,
                "--anchor DIR, one that you may write to and that has room",
            ),
            VolumeError::NoKeyFits(_) => {
                Self::no_key(message, "sealbd key list BACKEND shows which keys there are")
            }
            VolumeError::KeyManagerUnreachable(_) => Self::new(
                EXIT_KMS_UNREACHABLE,
                "kms_unreachable",
                message,
                "sealbd kms test tells more; sealbd key list BACKEND shows which other keys open the volume",
            ),
            VolumeError::KeyManagerDenied(_) => Self::new(
                EXIT_KMS_DENIED,
                "kms_denied",
                message,
                "ask the key manager's administrator; sealbd key list BACKEND shows which other keys open the volume",
            ),
            VolumeError::KeyTooCostly(_) => {
                Self::new(EXIT_MEMORY, "kdf_cost", message, "use another keyslot, or a host with more memory")
            }
            VolumeError::InUse { end, .. } => Self::tail_in_use(message, end),
            VolumeError::Refused(_) => {
                Self::refused(message, "sealbd key list BACKEND shows the keyslots in use")
            }
            VolumeError::NoSpace => {
                Self::new(EXIT_UNREACHABLE, "no_space", message, "fstrim the file system on the volume")
            }
            VolumeError::Stopped(_) | VolumeError::Randomness(_) => {
                Self::new(EXIT_UNREACHABLE, "stopped", message, "sealbd check BACKEND, then start again")
            }
        }
    }
}
