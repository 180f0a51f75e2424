//! What a key manager is: the seam between a volume's keyslots and the places that keep keys.

use std::future::Future;
use std::pin::Pin;
use std::time::SystemTime;

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

/// Which kind of manager wrapped a key; the number is stored in the keyslot and never reused
/// (docs/FORMAT.md §4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SlotType {
    /// A passphrase stretched by Argon2id.
    Passphrase,
    /// 32 random bytes in a file or a credential.
    Keyfile,
    /// Recovery words, shown once when they are made.
    Recovery,
    /// A secret in OpenStack Barbican.
    Barbican,
    /// A key of the Transit engine of Vault or OpenBao.
    VaultTransit,
    /// A secret of the key/value engine of Vault or OpenBao.
    VaultKv,
    /// A key of a KMIP server.
    Kmip,
    /// A key in a PKCS#11 token.
    Pkcs11,
    /// A key sealed by a TPM 2.0.
    Tpm2,
    /// Whatever a plug-in program keeps.
    Exec,
    /// A number that this version does not know: such a keyslot is kept as it is and never opened.
    Unknown(u8),
}

impl SlotType {
    /// Every type that is known, with its number and the word that people use for it. Numbers 11 (AWS KMS),
    /// 12 (Kubernetes KMS v2) and 13 (Tang) are set aside.
    const KNOWN: [(Self, u8, &'static str); 10] = [
        (Self::Passphrase, 1, "passphrase"),
        (Self::Keyfile, 2, "keyfile"),
        (Self::Recovery, 3, "recovery"),
        (Self::Barbican, 4, "barbican"),
        (Self::VaultTransit, 5, "vault-transit"),
        (Self::VaultKv, 6, "vault-kv"),
        (Self::Kmip, 7, "kmip"),
        (Self::Pkcs11, 8, "pkcs11"),
        (Self::Tpm2, 9, "tpm2"),
        (Self::Exec, 10, "exec"),
    ];

    /// The type of that number.
    #[must_use]
    pub fn from_u8(number: u8) -> Self {
        let known = Self::KNOWN.iter().find(|(_, other, _)| *other == number);
        known.map_or(Self::Unknown(number), |(slot_type, ..)| *slot_type)
    }

    /// The number that a keyslot stores.
    ///
    /// # Panics
    /// Never: every other type has a row in the table, which a test holds.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Unknown(number) => number,
            known => known.row().1,
        }
    }

    /// The word people use for it.
    ///
    /// # Panics
    /// Never: as [`Self::number`].
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown(_) => "unknown",
            known => known.row().2,
        }
    }

    fn row(self) -> (Self, u8, &'static str) {
        *Self::KNOWN.iter().find(|(known, ..)| *known == self).expect("every type has its row")
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

/// What a manager says of a wrapped key, for `dump`, `key list`, reports and the audit log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyDescription {
    /// One line for people, e.g. `argon2id 256 MiB t=4`.
    pub text: String,
    /// What the manager calls the KEK; none where it is the user's own secret.
    pub key_id: Option<String>,
    /// Which version of the KEK wrapped the key, where the manager counts them.
    pub version: Option<String>,
}

impl KeyDescription {
    /// A key that is the user's own secret.
    #[must_use]
    pub fn own(text: String) -> Self {
        Self { text, key_id: None, version: None }
    }
}

/// What a manager says of itself, for `kms test` and metrics.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Health {
    /// One line for people: what answered.
    pub text: String,
    /// When the credential that sealbd uses ends, where it does.
    pub credential_expires: Option<SystemTime>,
}

/// Why a key manager could not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
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
    /// The manager cannot be reached, is sealed, overloaded or failing; trying again later may help.
    #[error("key manager unreachable: {0}")]
    Unreachable(String),
    /// The manager says no: no right to the key, the key is disabled, destroyed or another one than it was.
    /// Trying again will not help.
    #[error("key manager denied: {0}")]
    Denied(String),
    /// What answered is not to be trusted (its certificate does not fit), or answered what no such manager
    /// answers. Trying again will not help.
    #[error("key manager not trusted: {0}")]
    Untrusted(String),
    /// What was configured cannot work: a setting, a PIN, a file. Never tried again, for managers count
    /// wrong tries.
    #[error("key manager settings: {0}")]
    Settings(String),
    /// This manager cannot do that.
    #[error("{0}")]
    Unsupported(String),
}

/// Something that keeps key-encryption keys and wraps a volume's DEK with one.
///
/// Held by `keymgmt/tests/conformance` for every manager: what was wrapped unwraps to the same
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

    /// Makes a new version of the KEK that wrapped `current`: later wraps of this manager use it. Keys
    /// wrapped by the older version still unwrap until that is destroyed.
    ///
    /// # Errors
    /// [`KeyError::Unsupported`] where the KEK is the user's own secret.
    fn rotate<'a>(&'a self, current: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>>;

    /// Destroys the KEK version that wrapped `key`, for good. Done already is done.
    ///
    /// # Errors
    /// [`KeyError::Unsupported`] where the KEK is the user's own secret, or where the version cannot be
    /// destroyed without destroying what others depend on.
    fn destroy<'a>(&'a self, key: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>>;

    /// Asks the service whether it is there and lets us in. What is kept on this host is always there.
    ///
    /// # Errors
    /// Any [`KeyError`].
    fn probe(&self) -> BoxFuture<'_, Result<Health, KeyError>> {
        Box::pin(async { Ok(Health { text: "kept on this host".into(), credential_expires: None }) })
    }

    /// What the user should know of the requests so far, one sentence each and never a secret; each is given
    /// once. Managers that have a way around a failure tell here that they took it.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_one_type_and_back() {
        for number in 0..=255 {
            assert_eq!(SlotType::from_u8(number).number(), number);
        }
        let unknown = (0..=255).filter(|number| SlotType::from_u8(*number).name() == "unknown").count();
        assert_eq!(unknown, 256 - SlotType::KNOWN.len());
    }
}
