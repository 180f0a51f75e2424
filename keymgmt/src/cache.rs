//! Opening volumes while their key manager cannot be reached: a sealed copy of each DEK on this host, good
//! for a while. Off unless a provider's table has `cache = { secret, directory, ttl }`.
//!
//! A key that the manager gave is stored sealed under the secret, again at every opening. The copy is used
//! only when the manager cannot be reached, and the user is told. It is not used once it is older than the
//! time set, nor when it seems to come from the future: then one of two clocks is wrong, and nobody knows its
//! age. When the manager says no, or its key is destroyed from here, the copy is deleted: revocation wins as
//! soon as it is heard of, and at the latest after the time set.
//!
//! Whoever has secret and directory has the keys without asking the manager; root of this host can also set
//! the clock back or put an old file back. A secret in a credential that the TPM seals (`systemd-creds
//! encrypt --with-key=tpm2`) makes it a cache that opens on this machine alone.

mod file;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};

use self::file::Directory;
use crate::derive::expand;
use crate::manager::{
    BoxFuture, Health, KeyDescription, KeyError, KeyManager, SlotType, WrapContext, WrappedKey,
};
use crate::provider::KeptSecret;
use crate::registry::Opening;
use crate::secret::{Dek, Kek, Secret32};
use crate::wrap::{WRAPPED_LEN, unwrap_bound, wrap_bound};

/// No copy is good for longer: beyond a month it is a second key, not a cache.
const TTL_MAX: Duration = Duration::from_secs(31 * 24 * 60 * 60);
const KEK_LABEL: &str = "sealbd cache kek v1";
const SLOT_LABEL: &str = "sealbd cache keyslot v1";
const ENTRY_LABEL: &str = "sealbd cache entry v1";
/// What an entry begins with.
const MAGIC: [u8; 8] = *b"sealbdc1";
/// magic ‖ seconds since 1970 u64 ‖ wrapped DEK.
const ENTRY_LEN: usize = MAGIC.len() + 8 + WRAPPED_LEN;
/// Most notes that wait to be told; more than an opening makes.
const NOTES_MAX: usize = 16;

/// The setting `cache` of a provider.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CacheSettings {
    /// Exactly 32 bytes that seal the copies.
    secret: KeptSecret,
    /// Where they are; made with mode 0700 where it is missing.
    #[serde(deserialize_with = "absolute")]
    directory: PathBuf,
    /// For how long a copy is good.
    #[serde(deserialize_with = "lifetime")]
    ttl: Duration,
}

fn absolute<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    if path.is_absolute() { Ok(path) } else { Err(D::Error::custom("directory is an absolute path")) }
}

fn lifetime<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let ttl: Duration = humantime_serde::deserialize(deserializer)?;
    let fits = (Duration::from_secs(1)..=TTL_MAX).contains(&ttl);
    if fits { Ok(ttl) } else { Err(D::Error::custom("ttl is between 1s and 31d")) }
}

impl CacheSettings {
    /// Reads the secret and makes the directory. `provider` names the manager: entries of one are not seen
    /// by another.
    ///
    /// # Errors
    /// [`KeyError::Secret`] when the secret cannot be read or is not 32 bytes; [`KeyError::Settings`] when
    /// the directory cannot be used.
    pub(crate) fn open(&self, provider: &str, opening: &mut Opening<'_, '_>) -> Result<Cache, KeyError> {
        let Self { secret: KeptSecret(source), directory, ttl } = self;
        let input = opening.reader.read(source, "cache's secret", opening.purpose)?;
        let bytes: &[u8; 32] = input.secret.expose().try_into().map_err(|_| {
            let len = input.secret.expose().len();
            KeyError::Secret(format!("the cache's secret from {source} is {len} bytes, not 32"))
        })?;
        let Ok(secret) = Secret32::fill(|secret| {
            secret.copy_from_slice(bytes);
            Ok::<(), std::convert::Infallible>(())
        });
        let directory = Directory::prepare(directory).map_err(|error| {
            KeyError::Settings(format!("the cache's directory {}: {error}", directory.display()))
        })?;
        let provider = provider.to_owned();
        Ok(Cache { secret, directory: Arc::new(directory), ttl: *ttl, provider, clock: SystemTime::now })
    }
}

/// Sealed copies of DEKs.
pub(crate) struct Cache {
    secret: Secret32,
    directory: Arc<Directory>,
    ttl: Duration,
    provider: String,
    clock: fn() -> SystemTime,
}

impl Cache {
    /// Where the copy of a keyslot's key is. The provider counts, so that one provider's no does not delete
    /// what another one granted.
    fn place(&self, key: &WrappedKey, context: WrapContext) -> Place {
        let slot = self.slot_digest(key);
        let digest = digest(ENTRY_LABEL, &[&slot, &context.aad()]);
        Place { name: format!("{}-{}", short_hex(&slot), short_hex(&digest)), digest }
    }

    fn slot_digest(&self, key: &WrappedKey) -> [u8; 32] {
        let WrappedKey { slot_type, kek_uri, wrapped, private } = key;
        let provider = self.provider.as_bytes();
        digest(SLOT_LABEL, &[provider, &[slot_type.number()], kek_uri.as_bytes(), private, wrapped])
    }

    fn kek(&self, context: WrapContext) -> Kek {
        let Ok(bytes) = Secret32::fill(|bytes| {
            expand(&self.secret, context, KEK_LABEL, bytes);
            Ok::<(), std::convert::Infallible>(())
        });
        Kek(bytes)
    }

    fn seal(&self, dek: &Dek, digest: &[u8; 32], context: WrapContext) -> Result<Vec<u8>, KeyError> {
        let stored = seconds((self.clock)()).to_le_bytes();
        let wrapped = wrap_bound(&self.kek(context), dek, &bound(digest, stored))?;
        Ok([&MAGIC[..], &stored, &wrapped].concat())
    }

    /// The DEK of an entry and the entry's age, or why it is not good.
    fn unseal(
        &self,
        entry: &[u8; ENTRY_LEN],
        digest: &[u8; 32],
        context: WrapContext,
    ) -> Result<(Dek, Duration), String> {
        let (magic, rest) = entry.split_first_chunk::<8>().expect("76 bytes begin with 8");
        let (stored, wrapped) = rest.split_first_chunk::<8>().expect("68 bytes begin with 8");
        let changed = || "its entry was changed or sealed with another secret".to_owned();
        if *magic != MAGIC {
            return Err(changed());
        }
        let dek = unwrap_bound(&self.kek(context), wrapped, &bound(digest, *stored))
            .ok()
            .flatten()
            .ok_or_else(changed)?;
        let (now, stored) = (seconds((self.clock)()), u64::from_le_bytes(*stored));
        let age = now.checked_sub(stored).map(Duration::from_secs);
        match age {
            None => Err("its entry is from the future, so a clock is wrong".into()),
            Some(age) if age >= self.ttl => Err(format!("its entry is {} old", spoken(age))),
            Some(age) => Ok((dek, age)),
        }
    }
}

fn bound(digest: &[u8; 32], stored: [u8; 8]) -> Vec<u8> {
    [&digest[..], &stored].concat()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn spoken(time: Duration) -> impl std::fmt::Display {
    humantime::format_duration(Duration::from_secs(time.as_secs()))
}

/// The file of a copy, and what the seal binds besides the time: keyslot, provider and volume.
struct Place {
    name: String,
    digest: [u8; 32],
}

/// Each part behind its length, so that no byte of one can pass for another's.
fn digest(label: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut digest = Sha256::new_with_prefix(label);
    for part in parts {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

/// The first half: enough for a name, as the seal binds the whole.
fn short_hex(digest: &[u8; 32]) -> String {
    digest[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A manager whose keys are kept for an outage.
pub(crate) struct Cached {
    inner: Box<dyn KeyManager>,
    cache: Cache,
    notes: Mutex<Vec<String>>,
}

impl Cached {
    pub(crate) fn new(inner: Box<dyn KeyManager>, cache: Cache) -> Self {
        Self { inner, cache, notes: Mutex::new(Vec::new()) }
    }

    fn note(&self, note: String) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() < NOTES_MAX {
            notes.push(note);
        }
    }

    async fn unwrap_now(&self, key: &WrappedKey, context: WrapContext) -> Result<Option<Dek>, KeyError> {
        let place = self.cache.place(key, context);
        match self.inner.unwrap(key, context).await {
            Ok(Some(dek)) => {
                if let Err(error) = self.keep(&dek, &place, context).await {
                    self.note(format!("the key could not be kept for an outage: {error}"));
                }
                Ok(Some(dek))
            }
            Err(KeyError::Unreachable(why)) => match self.recall(&place, context).await {
                Ok((dek, age)) => {
                    let (provider, left) = (&self.cache.provider, self.cache.ttl.saturating_sub(age));
                    self.note(format!(
                        "key manager {provider} unreachable ({why}); the key is from the cache of this host, \
                         {} old and good for another {}",
                        spoken(age),
                        spoken(left)
                    ));
                    Ok(Some(dek))
                }
                Err(miss) => Err(KeyError::Unreachable(format!("{why}; no key from the cache: {miss}"))),
            },
            Err(KeyError::Denied(why)) => {
                self.forget(place.name).await;
                Err(KeyError::Denied(why))
            }
            other => other,
        }
    }

    async fn keep(&self, dek: &Dek, place: &Place, context: WrapContext) -> Result<(), KeyError> {
        let entry = self.cache.seal(dek, &place.digest, context)?;
        let name = place.name.clone();
        let written = self.on_disk(move |directory| directory.write(&name, &entry)).await;
        written.map_err(|error| KeyError::Secret(error.to_string()))
    }

    async fn recall(&self, place: &Place, context: WrapContext) -> Result<(Dek, Duration), String> {
        let name = place.name.clone();
        let entry = self.on_disk(move |directory| directory.read(&name)).await;
        match entry {
            Ok(Some(entry)) => self.cache.unseal(&entry, &place.digest, context),
            Ok(None) => Err("it has no entry".into()),
            Err(error) => Err(format!("its entry cannot be read: {error}")),
        }
    }

    /// Deletes all files whose names begin so.
    async fn forget(&self, names: String) {
        if let Err(error) = self.on_disk(move |directory| directory.remove(&names)).await {
            self.note(format!("the copy of a key that is no longer granted could not be deleted: {error}"));
        }
    }

    /// Files block, so they have a thread of their own.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Directory) -> std::io::Result<T> + Send + 'static,
    ) -> std::io::Result<T> {
        let directory = Arc::clone(&self.cache.directory);
        let done = tokio::task::spawn_blocking(move || work(&directory)).await;
        done.unwrap_or_else(|stopped| Err(std::io::Error::other(stopped)))
    }

    async fn destroy_now(&self, key: &WrappedKey) -> Result<(), KeyError> {
        self.inner.destroy(key).await?;
        // Of every volume: the names begin with the keyslot.
        self.forget(short_hex(&self.cache.slot_digest(key))).await;
        Ok(())
    }
}

impl KeyManager for Cached {
    fn slot_type(&self) -> SlotType {
        self.inner.slot_type()
    }

    fn wrap<'a>(&'a self, dek: &'a Dek, context: WrapContext) -> BoxFuture<'a, Result<WrappedKey, KeyError>> {
        self.inner.wrap(dek, context)
    }

    fn unwrap<'a>(
        &'a self,
        key: &'a WrappedKey,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Option<Dek>, KeyError>> {
        Box::pin(self.unwrap_now(key, context))
    }

    fn describe(&self, key: &WrappedKey) -> Result<KeyDescription, KeyError> {
        self.inner.describe(key)
    }

    fn rotate<'a>(&'a self, current: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        self.inner.rotate(current)
    }

    fn destroy<'a>(&'a self, key: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(self.destroy_now(key))
    }

    fn probe(&self) -> BoxFuture<'_, Result<Health, KeyError>> {
        self.inner.probe()
    }

    fn notes(&self) -> Vec<String> {
        let own = std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner));
        [own, self.inner.notes()].concat()
    }
}

#[cfg(test)]
mod tests;
