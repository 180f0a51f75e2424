//! Making a volume: geometry from sizes, a fresh data key, the first root, and the header last, so that
//! a half-made volume is none.

use std::sync::Arc;

use bytes::Bytes;
use keymgmt::manager::{KeyManager, WrappedKey};
use keymgmt::secret::Dek;

use super::io::write_store;
use super::recover::host_id;
use super::space::reclaim_mark;
use super::unlock::wrap_context;
use super::{Core, VolumeError};
use crate::cipher::surroundings::unix_seconds;
use crate::cipher::{Engine, Surroundings, VolumeKeys};
use crate::format::header::{
    DATA_START, EXPORT_BYTES_MAX, HEADER_LEN, HEADER_OFFSETS, Header, RING_OFFSET, RING_SLOTS,
};
use crate::format::keyslot::{KEYSLOT_COUNT, Keyslot, KeyslotState};
use crate::format::segment::SEGMENT_HEADER_LEN;
use crate::geometry::{SECTOR_BYTES, SECTOR_LEN};
use crate::payload::RECORD_LEN;
use crate::store::{Persist, SlotStore};

/// Exports from this size on use segments of 8 MiB; smaller ones of 2 MiB, to have enough of them.
const LARGE_EXPORT: u64 = 4 << 30;
/// Smallest export; below it the fixed parts outweigh the data.
pub const EXPORT_BYTES_MIN: u64 = 1 << 20;

/// Sizes of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Bytes that clients see.
    pub export_bytes: u64,
    /// Bytes of a segment.
    pub segment_bytes: u32,
    /// Number of segments.
    pub slots: u64,
}

/// How much more data the segments of a volume hold than its clients can write, in hundredths
/// (docs/FORMAT.md §11). More of it makes overwriting cheaper; the reserve comes on top.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct OverProvisioning(u32);

impl TryFrom<u32> for OverProvisioning {
    type Error = &'static str;

    fn try_from(hundredths: u32) -> Result<Self, Self::Error> {
        Self::hundredths(hundredths).ok_or("over-provisioning is from 115 to 400 hundredths")
    }
}

impl std::fmt::Display for OverProvisioning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

impl From<OverProvisioning> for u32 {
    fn from(spare: OverProvisioning) -> Self {
        spare.0
    }
}

impl OverProvisioning {
    /// 1.15: below that, a full volume under random overwrites moves more than five sectors for each
    /// one written.
    pub const MIN: Self = Self(115);
    /// 1.25.
    pub const DEFAULT: Self = Self(125);
    /// 4.
    pub const MAX: Self = Self(400);

    /// That many hundredths, from [`MIN`](Self::MIN) to [`MAX`](Self::MAX).
    #[must_use]
    pub fn hundredths(hundredths: u32) -> Option<Self> {
        (Self::MIN.0..=Self::MAX.0).contains(&hundredths).then_some(Self(hundredths))
    }

    /// What the slots of a volume amount to: of all that come to as many the default, else the least.
    pub(super) fn found_in(header: &Header) -> Self {
        let slots = |spare: Self| {
            Geometry::with_segments(header.export_bytes, header.segment_bytes, spare)
                .map_or(u64::MAX, |geometry| geometry.slots)
        };
        let all = || (Self::MIN.0..=Self::MAX.0).map(Self);
        let found = all().map(slots).filter(|slots| *slots <= header.slots).max();
        let fits = |spare: &Self| Some(slots(*spare)) == found;
        [Self::DEFAULT].into_iter().chain(all()).find(fits).unwrap_or(Self::MIN)
    }

    fn of(self, segments: u64) -> u64 {
        (segments * u64::from(self.0)).div_ceil(100)
    }
}

impl Geometry {
    /// The geometry of a volume whose clients see `export_bytes`, with the default over-provisioning.
    ///
    /// # Errors
    /// As [`Geometry::with_spare`].
    pub fn for_export(export_bytes: u64) -> Result<Self, VolumeError> {
        Self::with_spare(export_bytes, OverProvisioning::DEFAULT)
    }

    /// The geometry of a volume whose clients see `export_bytes`: `spare` times the segments that its
    /// data fills (docs/FORMAT.md §11), room for the index, and the slots that reclaim works in.
    ///
    /// # Errors
    /// [`VolumeError::Refused`] when the size is no multiple of 4096 or out of bounds.
    pub fn with_spare(export_bytes: u64, spare: OverProvisioning) -> Result<Self, VolumeError> {
        let segment_bytes = if export_bytes >= LARGE_EXPORT { 8 << 20 } else { 2 << 20 };
        Self::with_segments(export_bytes, segment_bytes, spare)
    }

    /// The geometry of a volume that is there.
    #[must_use]
    pub fn of(header: &Header) -> Self {
        let Header { export_bytes, segment_bytes, slots, .. } = *header;
        Self { export_bytes, segment_bytes, slots }
    }

    /// The geometry of a volume that is made another size: its segments stay as they are, and so does its
    /// over-provisioning where `spare` names none. It may have fewer slots than there are; those stay.
    ///
    /// # Errors
    /// As [`Geometry::with_spare`].
    pub fn resized(
        header: &Header,
        export_bytes: u64,
        spare: Option<OverProvisioning>,
    ) -> Result<Self, VolumeError> {
        let spare = spare.unwrap_or_else(|| OverProvisioning::found_in(header));
        Self::with_segments(export_bytes, header.segment_bytes, spare)
    }

    fn with_segments(
        export_bytes: u64,
        segment_bytes: u32,
        spare: OverProvisioning,
    ) -> Result<Self, VolumeError> {
        if !export_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(VolumeError::Refused(format!("size {export_bytes} is not a multiple of 4096")));
        }
        if !(EXPORT_BYTES_MIN..=EXPORT_BYTES_MAX).contains(&export_bytes) {
            return Err(VolumeError::Refused(format!(
                "size {export_bytes} is outside {EXPORT_BYTES_MIN} … {EXPORT_BYTES_MAX}"
            )));
        }
        let full = (export_bytes / SECTOR_BYTES).div_ceil(records_per_segment(segment_bytes));
        // Dense leaves are 1/512 of the data; two generations of them, and the log's own segments.
        let index = (export_bytes / 256).div_ceil(segment_bytes.into()) + 4;
        let data = spare.of(full) + index;
        let slots = data + reclaim_mark(data, export_bytes, segment_bytes.into()) + data / 50;
        Ok(Self { export_bytes, segment_bytes, slots })
    }

    /// Bytes that the store must have.
    #[must_use]
    pub fn store_bytes(&self) -> u64 {
        DATA_START + self.slots * u64::from(self.segment_bytes)
    }

    /// The largest export that a store of `store_bytes` holds.
    ///
    /// # Errors
    /// [`VolumeError::StoreTooSmall`].
    pub fn for_store(store_bytes: u64, spare: OverProvisioning) -> Result<Self, VolumeError> {
        let too_small = |_| {
            let needed =
                Self::with_spare(EXPORT_BYTES_MIN, spare).map_or(u64::MAX, |least| least.store_bytes());
            VolumeError::StoreTooSmall { found: store_bytes, needed }
        };
        let fits = |export| {
            Self::with_spare(export, spare).is_ok_and(|geometry| geometry.store_bytes() <= store_bytes)
        };
        if !fits(EXPORT_BYTES_MIN) {
            return Err(too_small(()));
        }
        Self::with_spare(largest(EXPORT_BYTES_MIN, store_bytes, fits), spare)
    }

    /// The largest geometry that a volume can be made on a store of `store_bytes`, as [`Geometry::resized`] has it; never
    /// smaller than the volume is.
    ///
    /// # Errors
    /// As [`Geometry::with_spare`].
    pub fn largest(
        header: &Header,
        store_bytes: u64,
        spare: Option<OverProvisioning>,
    ) -> Result<Self, VolumeError> {
        let resized = |export| Self::resized(header, export, spare);
        let fits = |export| resized(export).is_ok_and(|geometry| geometry.store_bytes() <= store_bytes);
        resized(largest(header.export_bytes, store_bytes, fits))
    }
}

/// The most bytes from `least` on that fit, in whole MiB beyond it; `least` when nothing does.
fn largest(least: u64, store_bytes: u64, fits: impl Fn(u64) -> bool) -> u64 {
    let (mut good, mut bad) = (least, EXPORT_BYTES_MAX.min(store_bytes).max(least) + (1 << 20));
    while bad - good > 1 << 20 {
        let middle = (good + (bad - good) / 2) >> 20 << 20;
        if middle <= good {
            break;
        }
        *(if fits(middle) { &mut good } else { &mut bad }) = middle;
    }
    good
}

/// Sectors that a segment holds when it is filled with full chunks.
fn records_per_segment(segment_bytes: u32) -> u64 {
    // A full chunk has 256 records and a header below 8 KiB.
    let chunk = 256 * RECORD_LEN + 2 * SECTOR_LEN;
    let room = segment_bytes as usize - SEGMENT_HEADER_LEN;
    (room / chunk * 256 + (room % chunk).saturating_sub(2 * SECTOR_LEN) / RECORD_LEN) as u64
}

/// A volume about to be made: its key exists, nothing is on the store.
pub struct NewVolume {
    header: Header,
    dek: Dek,
    keys: Arc<VolumeKeys>,
    surroundings: Surroundings,
}

impl NewVolume {
    /// A fresh identity and data key.
    ///
    /// # Errors
    /// [`VolumeError::Randomness`].
    pub fn prepare(geometry: Geometry, align: u32, label: &str, engine: Engine) -> Result<Self, VolumeError> {
        Self::prepare_in(Surroundings::system(host_id()), geometry, align, label, engine)
    }

    /// The same, with everything that is random from `surroundings`.
    ///
    /// # Errors
    /// [`VolumeError::Randomness`].
    pub fn prepare_in(
        surroundings: Surroundings,
        geometry: Geometry,
        align: u32,
        label: &str,
        engine: Engine,
    ) -> Result<Self, VolumeError> {
        let Geometry { export_bytes, segment_bytes, slots } = geometry;
        let mut label_bytes = [0; 64];
        if label.len() > label_bytes.len() {
            return Err(VolumeError::Refused(format!(
                "label has {} bytes, at most 64 are possible",
                label.len()
            )));
        }
        label_bytes[..label.len()].copy_from_slice(label.as_bytes());
        let volume = uuid::Builder::from_random_bytes(surroundings.random()?).into_uuid().into_bytes();
        let header = Header {
            volume,
            generation: 1,
            compat: 0,
            ro_compat: 0,
            align,
            segment_bytes,
            export_bytes,
            slots,
            data_start: DATA_START,
            active_epoch: 1,
            ring_slots: RING_SLOTS,
            ring_offset: RING_OFFSET,
            dek_created: surroundings.unix_seconds(),
            salt: surroundings.random()?,
            label: label_bytes,
            keyslots: [const { None }; KEYSLOT_COUNT],
        };
        let dek = surroundings.dek()?;
        let keys = Arc::new(VolumeKeys::derive(engine, &dek, &header.salt, &header.volume));
        Ok(Self { header, dek, keys, surroundings })
    }

    /// The header so far.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Wraps the data key into the next free keyslot and returns its number.
    ///
    /// # Errors
    /// The manager's.
    pub async fn add_key(&mut self, manager: &dyn KeyManager, priority: u16) -> Result<usize, VolumeError> {
        add_key(&mut self.header, &self.dek, &self.keys, manager, priority).await
    }

    /// Puts the volume on the store. Whatever was there is unreadable afterwards.
    ///
    /// # Errors
    /// [`VolumeError`]; the store then holds no volume.
    pub async fn write(self, store: Arc<dyn SlotStore>) -> Result<Header, VolumeError> {
        let Self { header, keys, dek: _, surroundings } = self;
        let size = store.capability().size;
        if size < header.store_bytes() {
            return Err(VolumeError::StoreTooSmall { found: size, needed: header.store_bytes() });
        }
        // Old headers go first, then the old ring: at no point do old and new mix.
        let nothing = Bytes::from(vec![0; HEADER_LEN]);
        for offset in HEADER_OFFSETS {
            write_store(&*store, offset, vec![nothing.clone()], Persist::Volatile).await?;
        }
        store.sync().await?;
        let ring_and_lease = (RING_SLOTS as usize + 1) * SECTOR_LEN;
        write_store(&*store, RING_OFFSET, vec![Bytes::from(vec![0; ring_and_lease])], Persist::Volatile)
            .await?;
        store.sync().await?;
        let core = Core::unborn(surroundings, store.clone(), header, keys.clone())?;
        core.claim(&mut *core.checkpointer.lock().await).await?;
        let bytes = Bytes::from(core.header().encode(&keys));
        for offset in HEADER_OFFSETS {
            write_store(&*store, offset, vec![bytes.clone()], Persist::Volatile).await?;
        }
        store.sync().await?;
        Ok(Header::clone(&core.header()))
    }
}

/// Wraps a data key into the next free keyslot of a header and returns its number.
///
/// # Errors
/// [`VolumeError::Refused`] when all sixteen are in use, or the manager's error.
pub async fn add_key(
    header: &mut Header,
    dek: &Dek,
    keys: &VolumeKeys,
    manager: &dyn KeyManager,
    priority: u16,
) -> Result<usize, VolumeError> {
    let number = free_keyslot(header)?;
    header.keyslots[number] = Some(wrap_keyslot(header, dek, keys, manager, priority).await?);
    Ok(number)
}

/// Number of the next free keyslot.
///
/// # Errors
/// [`VolumeError::Refused`] when all sixteen are in use.
pub fn free_keyslot(header: &Header) -> Result<usize, VolumeError> {
    let free = header.keyslots.iter().position(Option::is_none);
    free.ok_or_else(|| VolumeError::Refused("all 16 keyslots are in use; remove one first".into()))
}

/// A keyslot for a header, which holds the data key as `manager` wraps it now.
///
/// # Errors
/// The manager's.
pub async fn wrap_keyslot(
    header: &Header,
    dek: &Dek,
    keys: &VolumeKeys,
    manager: &dyn KeyManager,
    priority: u16,
) -> Result<Keyslot, VolumeError> {
    let key: WrappedKey = manager.wrap(dek, wrap_context(header)).await?;
    Ok(Keyslot {
        state: KeyslotState::Active,
        epoch: header.active_epoch,
        created: unix_seconds(),
        priority,
        key,
        commit: *keys.commit(),
    })
}
