//! The header on a store: reading its two copies, finding a key that fits, writing a new generation.

use std::sync::Arc;

use bytes::Bytes;
use keymgmt::manager::{KeyError, KeyManager, WrapContext};
use keymgmt::secret::Dek;
use subtle::ConstantTimeEq;

use super::VolumeError;
use super::io::{read_store, write_store};
use crate::cipher::{Engine, SUITE_AES_256_GCM_HKDF_SHA256, VolumeKeys};
use crate::format::FormatError;
use crate::format::header::{HEADER_LEN, HEADER_OFFSETS, Header, UnverifiedHeader};
use crate::format::keyslot::{Keyslot, KeyslotState};
use crate::store::{Persist, SlotStore, StoreError};

/// The copies of a header as found.
pub struct HeaderCopies {
    /// Copies whose checksum fits, with their number, newest first.
    good: Vec<(usize, UnverifiedHeader)>,
    /// What is wrong with the others.
    pub bad: Vec<(usize, FormatError)>,
}

/// A volume whose key is known.
pub struct Unlocked {
    /// The authenticated header.
    pub header: Header,
    /// The keys of its active epoch.
    pub keys: Arc<VolumeKeys>,
    /// The data key itself, for wrapping it again.
    pub dek: Dek,
    /// The keyslot that yielded it.
    pub slot: usize,
    /// Keyslots tried before it that should have opened and did not, each with why: their key manager failed,
    /// or they were altered.
    pub failed_slots: Vec<String>,
}

/// Reads both copies.
///
/// # Errors
/// [`VolumeError::NotAVolume`] when no copy has a sealbd header, [`VolumeError::Unsupported`] when one
/// is of a kind that this program does not know, [`VolumeError::Damaged`] when both are damaged.
pub async fn read_header(store: &dyn SlotStore) -> Result<HeaderCopies, VolumeError> {
    let mut copies = HeaderCopies { good: Vec::new(), bad: Vec::new() };
    for (number, offset) in HEADER_OFFSETS.into_iter().enumerate() {
        if offset + HEADER_LEN as u64 > store.capability().size {
            copies.bad.push((number, FormatError::Magic("header")));
            continue;
        }
        let bytes = match read_store(store, offset, HEADER_LEN).await {
            Ok(bytes) => bytes,
            Err(StoreError::OutOfRange { .. } | StoreError::ShortRead { .. }) => {
                copies.bad.push((number, FormatError::Truncated("header")));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        match UnverifiedHeader::decode(&bytes) {
            Ok(copy) => copies.good.push((number, copy)),
            Err(error) => copies.bad.push((number, error)),
        }
    }
    copies.good.sort_by_key(|(_, copy)| std::cmp::Reverse(copy.generation()));
    if copies.good.is_empty() {
        return Err(nothing_usable(&copies.bad));
    }
    Ok(copies)
}

fn nothing_usable(bad: &[(usize, FormatError)]) -> VolumeError {
    let unknown = bad.iter().find(|(_, error)| {
        matches!(error, FormatError::Version { .. } | FormatError::Incompatible(_) | FormatError::Suite(_))
    });
    if let Some((_, error)) = unknown {
        return VolumeError::Unsupported(error.clone());
    }
    match bad.iter().find(|(_, error)| !matches!(error, FormatError::Magic(_) | FormatError::Truncated(_))) {
        Some((number, error)) => VolumeError::damaged("header", HEADER_OFFSETS[*number], error.clone()),
        None => VolumeError::NotAVolume,
    }
}

impl HeaderCopies {
    /// The newest copy as it claims to be; not authenticated.
    ///
    /// # Panics
    /// Never: there is at least one copy.
    #[must_use]
    pub fn claimed(&self) -> &Header {
        self.good[0].1.claimed()
    }

    /// How many copies are well-formed.
    #[must_use]
    pub fn count(&self) -> usize {
        self.good.len()
    }

    /// Whether all well-formed copies are the same, byte for byte.
    #[must_use]
    pub fn copies_are_equal(&self) -> bool {
        self.good.windows(2).all(|pair| pair[0].1.bytes() == pair[1].1.bytes())
    }

    /// The newest copy, byte for byte.
    #[must_use]
    pub fn newest_bytes(&self) -> &[u8] {
        self.good[0].1.bytes()
    }

    /// A copy from a backup, to be unlocked like one on a store.
    #[must_use]
    pub fn of_backup(copy: UnverifiedHeader) -> Self {
        Self { good: vec![(0, copy)], bad: Vec::new() }
    }

    /// The newest copy, authenticated with keys that are known already.
    ///
    /// # Errors
    /// [`VolumeError::Damaged`] when it was altered.
    pub fn authenticate(mut self, keys: &VolumeKeys) -> Result<Header, VolumeError> {
        let (number, copy) = self.good.remove(0);
        copy.verify(keys).map_err(|source| VolumeError::damaged("header", HEADER_OFFSETS[number], source))
    }

    /// As [`unlock`](Self::unlock), with one keyslot alone.
    ///
    /// # Errors
    /// As [`unlock`](Self::unlock).
    pub async fn unlock_slot(
        self,
        engine: Engine,
        managers: &[Box<dyn KeyManager>],
        only: usize,
    ) -> Result<Unlocked, VolumeError> {
        self.unlock_where(engine, managers, |number| number == only).await
    }

    /// Tries the keyslots of the newest copy in order of priority, each with every manager, and
    /// authenticates the header with the key that fits.
    ///
    /// # Errors
    /// [`VolumeError::NoKeyFits`] with a reason per slot, or [`VolumeError::Damaged`] when a key fits
    /// and the header was altered.
    pub async fn unlock(
        self,
        engine: Engine,
        managers: &[Box<dyn KeyManager>],
    ) -> Result<Unlocked, VolumeError> {
        self.unlock_where(engine, managers, |_| true).await
    }

    async fn unlock_where(
        mut self,
        engine: Engine,
        managers: &[Box<dyn KeyManager>],
        wanted: impl Fn(usize) -> bool,
    ) -> Result<Unlocked, VolumeError> {
        let (number, copy) = self.good.remove(0);
        let claimed = copy.claimed();
        let mut order: Vec<(usize, &Keyslot)> = claimed
            .keyslots
            .iter()
            .enumerate()
            .filter_map(|(number, slot)| Some((number, slot.as_ref()?)))
            .filter(|(_, slot)| slot.state == KeyslotState::Active && slot.epoch == claimed.active_epoch)
            .filter(|(number, _)| wanted(*number))
            .collect();
        order.sort_by_key(|(number, slot)| (slot.priority, *number));
        let mut reasons = Reasons::default();
        let mut opened = None;
        for (slot_number, slot) in order {
            if let Some((dek, keys)) =
                try_slot(engine, claimed, slot_number, slot, managers, &mut reasons).await
            {
                opened = Some((dek, keys, slot_number));
                break;
            }
        }
        let Some((dek, keys, slot)) = opened else { return Err(reasons.into_error()) };
        let header = copy
            .verify(&keys)
            .map_err(|source| VolumeError::damaged("header", HEADER_OFFSETS[number], source))?;
        Ok(Unlocked { header, keys: Arc::new(keys), dek, slot, failed_slots: reasons.failed })
    }
}

/// Why no slot yielded a key.
#[derive(Default)]
struct Reasons {
    lines: Vec<String>,
    /// Those of slots that should have opened.
    failed: Vec<String>,
    unreachable: bool,
    denied: bool,
    too_costly: bool,
}

impl Reasons {
    fn add(&mut self, slot: &str, error: &KeyError) {
        match error {
            KeyError::Unreachable(_) => self.unreachable = true,
            KeyError::Denied(_) | KeyError::Untrusted(_) => self.denied = true,
            KeyError::CostTooHigh { .. } | KeyError::OutOfMemory(_) => self.too_costly = true,
            KeyError::Secret(_)
            | KeyError::Malformed(_)
            | KeyError::Settings(_)
            | KeyError::Unsupported(_) => {}
        }
        self.fail(format!("{slot}: {error}"));
    }

    fn fail(&mut self, line: String) {
        self.failed.push(line.clone());
        self.lines.push(line);
    }

    /// What may be mended by trying again comes first, then what others have to mend.
    fn into_error(self) -> VolumeError {
        let Self { mut lines, unreachable, denied, too_costly, failed: _ } = self;
        if lines.is_empty() {
            lines.push("no keyslot is in use".into());
        }
        match (unreachable, denied, too_costly) {
            (true, ..) => VolumeError::KeyManagerUnreachable(lines),
            (_, true, _) => VolumeError::KeyManagerDenied(lines),
            (.., true) => VolumeError::KeyTooCostly(lines),
            _ => VolumeError::NoKeyFits(lines),
        }
    }
}

async fn try_slot(
    engine: Engine,
    header: &Header,
    number: usize,
    slot: &Keyslot,
    managers: &[Box<dyn KeyManager>],
    reasons: &mut Reasons,
) -> Option<(Dek, VolumeKeys)> {
    let name = format!("slot {number} ({})", slot.key.slot_type.name());
    let fitting: Vec<_> = managers.iter().filter(|m| m.slot_type() == slot.key.slot_type).collect();
    if fitting.is_empty() {
        reasons.lines.push(format!("{name}: no such key was given"));
    }
    for manager in fitting {
        match manager.unwrap(&slot.key, wrap_context(header)).await {
            Ok(Some(dek)) => {
                let keys = VolumeKeys::derive(engine, &dek, &header.salt, &header.volume);
                if keys.commit().ct_eq(&slot.commit).into() {
                    // Another manager of the same kind may have said no to it before the right one was asked.
                    reasons.failed.retain(|line| !line.starts_with(&name));
                    return Some((dek, keys));
                }
                reasons.fail(format!("{name}: the keyslot was altered (commitment differs)"));
            }
            Ok(None) => reasons.lines.push(format!("{name}: the key does not fit")),
            Err(error) => reasons.add(&name, &error),
        }
    }
    None
}

/// What a wrapped key of that volume is bound to.
#[must_use]
pub fn wrap_context(header: &Header) -> WrapContext {
    WrapContext { volume: header.volume, epoch: header.active_epoch, suite: SUITE_AES_256_GCM_HKDF_SHA256 }
}

/// Both copies by their place on the store, each authenticated with keys that are known already.
pub(super) async fn examine_copies(
    store: &dyn SlotStore,
    keys: &VolumeKeys,
) -> Result<Vec<(u64, Result<Header, FormatError>)>, VolumeError> {
    let mut found = Vec::with_capacity(HEADER_OFFSETS.len());
    for offset in HEADER_OFFSETS {
        let copy = match read_store(store, offset, HEADER_LEN).await {
            Ok(bytes) => UnverifiedHeader::decode(&bytes).and_then(|copy| copy.verify(keys)),
            Err(StoreError::OutOfRange { .. } | StoreError::ShortRead { .. }) => {
                Err(FormatError::Truncated("header"))
            }
            Err(error) => return Err(error.into()),
        };
        found.push((offset, copy));
    }
    Ok(found)
}

/// Writes the next generation of a header: the copy that is older first, a flush, then the other, so
/// that at any moment one copy is whole.
///
/// # Errors
/// The store's; the header on it is then of the old or of the new generation.
pub async fn write_header(
    store: &dyn SlotStore,
    header: &mut Header,
    keys: &VolumeKeys,
) -> Result<(), VolumeError> {
    header.generation += 1;
    write_copies(store, &header.encode(keys)).await
}

/// Writes both copies of a header, the older one first.
pub(super) async fn write_copies(store: &dyn SlotStore, bytes: &[u8]) -> Result<(), VolumeError> {
    // What is read next must not be in a cache only: the other copy is about to be overwritten.
    store.sync().await?;
    let first = usize::from(!older_copy_is_zero(store).await?);
    let bytes = Bytes::copy_from_slice(bytes);
    for number in [first, 1 - first] {
        write_store(store, HEADER_OFFSETS[number], vec![bytes.clone()], Persist::Volatile).await?;
        store.sync().await?;
    }
    Ok(())
}

/// Whether the copy to be written first is number 0: the newest good one must survive.
async fn older_copy_is_zero(store: &dyn SlotStore) -> Result<bool, VolumeError> {
    match read_header(store).await {
        Ok(copies) => Ok(copies.good[0].0 == 1),
        Err(error @ VolumeError::Store(_)) => Err(error),
        // Neither copy is one.
        Err(_) => Ok(true),
    }
}
