//! What a key manager is: the seam between a volume's keyslots and the places that keep keys.

use std::future::Future;
use std::pin::Pin;

use crate::secret::Dek;

/// A boxed future: managers are chosen at run time.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a wrapped key belongs to; authenticated by every wrap (AAD = uuid ‖ epoch ‖ suite, docs/FORMAT.md §2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WrapContext {
    /// The volume's uuid.
    pub volume: [u8; 16],
    /// Version of the DEK, from 1 on.
    pub epoch: u32,
    /// Cipher suite of the volume.
    pub suite: u32,
}

impl WrapContext {
    /// The additional authenticated data of a wrap: uuid ‖ epoch ‖ suite, integers little endian.
    #[must_use]
    pub fn aad(&self) -> [u8; 24] {
        let mut aad = [0; 24];
        aad[..16].copy_from_slice(&self.volume);
        aad[16..20].copy_from_slice(&self.epoch.to_le_bytes());
        aad[20..].copy_from_slice(&self.suite.to_le_bytes());
        aad
    }
}

/// Longest key URI in a keyslot.
pub const KEK_URI_MAX: usize = 256;
/// Longest wrapped key in a keyslot.
pub const WRAPPED_MAX: usize = 1024;
/// Longest type-private part of a keyslot.
pub const PRIVATE_MAX: usize = 512;

/// Which kind of manager wrapped a key; the number is stored in the keyslot and never reused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum SlotType {
    /// A passphrase stretched by Argon2id.
    Passphrase = 1,
    /// 32 random bytes in a file.
    Keyfile = 2,
    /// Recovery words, shown once when they are made.
    Recovery = 3,
}

impl SlotType {
    /// The type of that number.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Self> {
        [Self::Passphrase, Self::Keyfile, Self::Recovery].into_iter().find(|t| *t as u8 == number)
    }

    /// The word people use for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Passphrase => "passphrase",
            Self::Keyfile => "keyfile",
            Self::Recovery => "recovery",
        }
    }
}

/// One wrapped DEK as a keyslot stores it. Nothing in it is secret, and nothing in it is trusted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WrappedKey {
    /// Which manager can unwrap it.
    pub slot_type: SlotType,
    /// Which key wraps it, at most [`KEK_URI_MAX`] bytes; empty when the manager needs no name.
    pub kek_uri: String,
    /// The wrapped DEK, at most [`WRAPPED_MAX`] bytes.
    pub wrapped: Vec<u8>,
    /// What else the manager needs to unwrap (salt, cost, version), at most [`PRIVATE_MAX`] bytes.
    pub private: Vec<u8>,
}

/// What a manager says of a wrapped key, for `dump` and `key list`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyDescription {
    /// One line for people, e.g. `argon2id 256 MiB t=4`.
    pub text: String,
}

/// Why a key manager could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The secret cannot be had (file missing, wrong size, readable by others, no terminal …).
    #[error("{0}")]
    Secret(String),
    /// The keyslot's own data is malformed or was made by something newer.
    #[error("keyslot is malformed: {0}")]
    Malformed(String),
    /// The keyslot demands more memory or time than allowed.
    #[error("keyslot demands {what}, more than the ceiling of {ceiling}")]
    CostTooHigh {
        /// What it demands.
        what: String,
        /// What is allowed.
        ceiling: String,
    },
    /// Not enough memory for the key derivation.
    #[error("not enough memory: {0}")]
    OutOfMemory(String),
    /// The manager cannot be reached; trying again later may help.
    #[error("key manager unreachable: {0}")]
    Unreachable(String),
    /// The manager says no; trying again will not help.
    #[error("key manager denied: {0}")]
    Denied(String),
    /// This manager cannot do that.
    #[error("{0}")]
    Unsupported(String),
}

/// Something that keeps key-encryption keys and wraps a volume's DEK with one.
///
/// Held by `keymgmt/tests/conformance.rs` for every manager: what was wrapped unwraps to the same
/// key; under another volume, epoch or suite it does not; a changed byte anywhere never yields a key.
pub trait KeyManager: Send + Sync {
    /// Which keyslots this manager makes.
    fn slot_type(&self) -> SlotType;

    /// Wraps a DEK.
    ///
    /// # Errors
    /// Any [`KeyError`] but `Malformed`.
    fn wrap<'a>(&'a self, dek: &'a Dek, context: WrapContext) -> BoxFuture<'a, Result<WrappedKey, KeyError>>;

    /// Unwraps a DEK. `Ok(None)` means that this is not the manager's slot or its secret does not
    /// fit: try the next.
    ///
    /// # Errors
    /// Any [`KeyError`]; the caller tells it and tries the next slot.
    fn unwrap<'a>(
        &'a self,
        key: &'a WrappedKey,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Option<Dek>, KeyError>>;

    /// Tells what a wrapped key of this type is made of, without any secret.
    ///
    /// # Errors
    /// [`KeyError::Malformed`].
    fn describe(&self, key: &WrappedKey) -> Result<KeyDescription, KeyError>;

    /// Makes a new version of the KEK for later wraps.
    ///
    /// # Errors
    /// [`KeyError::Unsupported`] where the KEK is the user's own secret.
    fn rotate(&self) -> BoxFuture<'_, Result<(), KeyError>>;

    /// Destroys the KEK that wrapped `key`, for good.
    ///
    /// # Errors
    /// [`KeyError::Unsupported`] where the KEK is the user's own secret.
    fn destroy<'a>(&'a self, key: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>>;
}
