//! A key manager of one's own: keeps key-encryption keys in the memory of this process, in numbered
//! versions, wraps a volume's data key, rotates, unwraps an old keyslot, and destroys a version.
//!
//! Run it with `cargo run --example custom_key_manager`.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Mutex, PoisonError};

use keymgmt::manager::{BoxFuture, KeyDescription, KeyError, KeyManager, SlotType, WrapContext, WrappedKey};
use keymgmt::secret::{Dek, Kek};
use keymgmt::verify::wrap_tested;
use keymgmt::wrap::{unwrap_dek, wrap_dek};

/// What its key uris begin with; the version follows.
const SCHEME: &str = "memory:";

/// Keeps the versions of one key-encryption key.
struct MemoryKeys {
    versions: Mutex<BTreeMap<u32, Kek>>,
}

impl MemoryKeys {
    fn new() -> Result<Self, KeyError> {
        Ok(Self { versions: Mutex::new(BTreeMap::from([(1, Kek::generate()?)])) })
    }

    /// Runs `work` on the versions. The lock is never held across an await.
    fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<u32, Kek>) -> T) -> T {
        work(&mut self.versions.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn wrap_now(&self, dek: &Dek, context: WrapContext) -> Result<WrappedKey, KeyError> {
        self.with(|versions| {
            let (version, kek) = versions
                .last_key_value()
                .ok_or_else(|| KeyError::Denied("every version is destroyed".into()))?;
            Ok(WrappedKey {
                slot_type: self.slot_type(),
                kek_uri: format!("{SCHEME}{version}"),
                wrapped: wrap_dek(kek, dek, context, self.slot_type())?.to_vec(),
                private: Vec::new(),
            })
        })
    }

    fn unwrap_now(&self, key: &WrappedKey, context: WrapContext) -> Result<Option<Dek>, KeyError> {
        // Somebody else's keyslot is no error: the caller tries the next manager.
        let Some(version) = version(key) else { return Ok(None) };
        if !key.private.is_empty() {
            return Err(KeyError::Malformed("this manager keeps nothing in the private part".into()));
        }
        self.with(|versions| {
            let kek = versions
                .get(&version)
                .ok_or_else(|| KeyError::Denied(format!("version {version} is destroyed")))?;
            unwrap_dek(kek, &key.wrapped, context, self.slot_type())
        })
    }
}

impl KeyManager for MemoryKeys {
    /// A manager that belongs to sealbd has a number of its own in [`SlotType`]. This one borrows the
    /// keyfile's, whose keys are 32 random bytes like its own, and tells its keyslots by their uri.
    fn slot_type(&self) -> SlotType {
        SlotType::Keyfile
    }

    fn wrap<'a>(&'a self, dek: &'a Dek, context: WrapContext) -> BoxFuture<'a, Result<WrappedKey, KeyError>> {
        Box::pin(async move { self.wrap_now(dek, context) })
    }

    fn unwrap<'a>(
        &'a self,
        key: &'a WrappedKey,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Option<Dek>, KeyError>> {
        Box::pin(async move { self.unwrap_now(key, context) })
    }

    fn describe(&self, key: &WrappedKey) -> Result<KeyDescription, KeyError> {
        let version = version(key).ok_or_else(|| KeyError::Malformed("not a key of this manager".into()))?;
        Ok(KeyDescription::own(format!("key in memory, version {version}")))
    }

    fn rotate<'a>(&'a self, _current: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(async move {
            let kek = Kek::generate()?;
            self.with(|versions| {
                let next = versions.last_key_value().map_or(1, |(version, _)| version + 1);
                versions.insert(next, kek);
            });
            Ok(())
        })
    }

    fn destroy<'a>(&'a self, key: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(async move {
            let version =
                version(key).ok_or_else(|| KeyError::Malformed("not a key of this manager".into()))?;
            // Dropping a key wipes its memory.
            self.with(|versions| versions.remove(&version));
            Ok(())
        })
    }
}

/// The version that a keyslot names, if it is one of this manager's. Only the one spelling that
/// `wrap` writes counts: nothing in a keyslot may be changed unseen.
fn version(key: &WrappedKey) -> Option<u32> {
    let version = key.kek_uri.strip_prefix(SCHEME)?.parse().ok()?;
    (key.slot_type == SlotType::Keyfile && key.kek_uri == format!("{SCHEME}{version}")).then_some(version)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let manager = MemoryKeys::new()?;
    let context = WrapContext { volume: *b"an example uuid!", epoch: 1, suite: 1 };
    let dek = Dek::generate()?;

    let first = wrap_tested(&manager, &dek, context).await?;
    report(&format!("wrapped: {} ({} bytes)", manager.describe(&first)?.text, first.wrapped.len()));

    manager.rotate(&first).await?;
    let second = wrap_tested(&manager, &dek, context).await?;
    report(&format!("rotated: {}", manager.describe(&second)?.text));

    let unwrapped = manager.unwrap(&first, context).await?.ok_or("the first keyslot must still open")?;
    assert!(unwrapped.matches(&dek), "both keyslots hold the same data key");
    report("the keyslot of version 1 still opens to the same key");

    let elsewhere = WrapContext { volume: *b"another volume's", ..context };
    assert!(manager.unwrap(&second, elsewhere).await?.is_none(), "bound to its volume");
    report("in another volume's header it does not open");

    manager.destroy(&first).await?;
    match manager.unwrap(&first, context).await {
        Err(KeyError::Denied(why)) => report(&format!("destroyed: {why}")),
        _ => return Err("a destroyed version must not open anything".into()),
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "an example shows what happens")]
fn report(line: &str) {
    println!("{line}");
}
