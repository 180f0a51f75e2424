//! Another size for an open volume (docs/FORMAT.md §10): the header says it first, then a root does.
//!
//! In between, a header that is newer than what the newest root demands names another size than the root:
//! an unfinished resize. A larger size holds from there on, and the next root says so. A smaller one holds once
//! it is proved that nothing lies behind the new end; whoever opens the volume for writing proves it again.

use std::sync::Arc;

use super::checkpoint::Checkpointer;
use super::create::{Geometry, OverProvisioning};
use super::queue::{Health, Queue};
use super::recover::{read_payload, read_ring};
use super::tree::page_sectors;
use super::unlock::{Unlocked, read_header, write_copies};
use super::{Core, OpenMode, Volume, VolumeError};
use crate::export::{Allocation, ExportError};
use crate::format::header::{Header, UnverifiedHeader};
use crate::format::page::{Loc, TOP_LEVEL};
use crate::format::root::Root;
use crate::geometry::{ByteRange, Lba, SECTOR_BYTES, SectorRange};
use crate::store::SlotStore;

/// What size a volume is to get.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WantedSize {
    /// Bytes for clients; `None` for as many as the store holds as it is, and never fewer than now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// As the volume has it when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_provisioning: Option<OverProvisioning>,
    /// Only tell what would come of it.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a resize came to, or would.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Resized {
    /// As it was.
    pub before: Sizes,
    /// As it is.
    pub after: Sizes,
    /// Generation of the header that says so; as it was, when there was nothing to change.
    pub header_generation: u64,
}

/// How large a volume is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Sizes {
    /// Bytes for clients.
    pub size: u64,
    /// Segments on the store.
    pub segments: u64,
    /// Bytes that the store must have for them.
    pub store_bytes: u64,
    /// Of the bytes that data can fill, those that there are segments for: 125 by default, more once a volume has become smaller.
    pub over_provisioning_percent: OverProvisioning,
}

impl Sizes {
    fn of(header: &Header) -> Self {
        Self {
            size: header.export_bytes,
            segments: header.slots,
            store_bytes: header.store_bytes(),
            over_provisioning_percent: OverProvisioning::found_in(header),
        }
    }
}

impl Volume {
    /// The geometry that the volume would have when it were resized so.
    ///
    /// # Errors
    /// [`VolumeError::Refused`] for a size that no volume has, and the store's.
    pub async fn geometry_for(&self, wanted: WantedSize) -> Result<Geometry, VolumeError> {
        let (header, store) = (self.header(), &self.core.store);
        if let Some(size) = wanted.size {
            return Geometry::resized(&header, size, wanted.over_provisioning);
        }
        if !store.extends() && !store.capability().read_only {
            // A device may have grown since it was opened.
            store.extend(u64::MAX).await?;
        }
        Geometry::largest(&header, store.capability().size, wanted.over_provisioning)
    }

    /// Resizes the volume unless it has that size; with `dry_run` it is only looked whether that could be done.
    ///
    /// # Errors
    /// As [`Volume::resize`].
    ///
    /// # Cancel safety
    /// As [`Volume::resize`].
    pub async fn become_size(&self, to: Geometry, dry_run: bool) -> Result<Resized, VolumeError> {
        let (now, newest) = (self.header(), self.newest_header().await?);
        let is_so = |header: &Header| header.export_bytes == to.export_bytes && header.slots >= to.slots;
        let then = match dry_run {
            _ if is_so(&now) && is_so(&newest) => Arc::clone(&now),
            true => Arc::new(self.core.resizable(newest, to).await?),
            false => self.resize(to).await?,
        };
        let (before, after) = (Sizes::of(&now), Sizes::of(&then));
        Ok(Resized { before, after, header_generation: then.generation })
    }

    /// Gives the volume another size: `to.export_bytes` for clients, and `to.slots` slots on the store or as
    /// many as there are, whichever is more. The store is extended where it can be. When this returns, both copies of the header and a root say so.
    ///
    /// # Errors
    /// [`VolumeError::StoreTooSmall`] when the slots do not fit, [`VolumeError::InUse`] when something lies
    /// behind a smaller end, [`VolumeError::Refused`] when the volume can have no such size: nothing has
    /// changed then. After any other error the size is the old or the new one, and this can be repeated; the
    /// volume stops when it cannot know whether the header names a smaller one.
    ///
    /// # Cancel safety
    /// As after an error of the store.
    pub async fn resize(&self, to: Geometry) -> Result<Arc<Header>, VolumeError> {
        let core = &self.core;
        if core.mode == OpenMode::ReadOnly {
            return Err(VolumeError::Refused("the volume is open for reading only".into()));
        }
        // Held to the end: no root may say one size and demand the header of another.
        let mut checkpointer = core.checkpointer.lock().await;
        if let Health::Stopped(error) = &core.queue().health {
            return Err(VolumeError::Stopped(error.to_string()));
        }
        let now = core.newest_header(checkpointer.header_generation).await?;
        let (new, bytes) = core.resized(now, to)?;
        let needed = new.store_bytes();
        core.store.extend(needed).await?;
        let found = core.store.capability().size;
        if found < needed {
            return Err(VolumeError::StoreTooSmall { found, needed });
        }
        if new.export_bytes < core.header().export_bytes {
            core.shrink(&mut checkpointer, new, Some(bytes)).await?;
        } else {
            write_copies(&*core.store, &bytes).await?;
            core.install(&mut checkpointer, new);
            core.checkpoint_locked(&mut checkpointer).await?;
        }
        Ok(core.header())
    }

    /// The first byte from `end` on that is not a hole, if there is one: what keeps the volume from ending
    /// there.
    ///
    /// # Errors
    /// When the index could not be read.
    pub async fn first_used(&self, end: u64) -> Result<Option<u64>, VolumeError> {
        self.core.first_used(end).await
    }
}

impl Volume {
    /// Gives a header from a backup, which is about to be put back and still has its generation, the sizes that hold now: those of the header
    /// on the store or, if there is none any more, what the newest root says and the store has room for.
    ///
    /// # Errors
    /// The store's, and when its root ring is damaged. Without a root that can be read nothing changes; opening
    /// the volume tells why.
    pub async fn keep_sizes(store: &dyn SlotStore, unlocked: &mut Unlocked) -> Result<(), VolumeError> {
        let Unlocked { header, keys, .. } = unlocked;
        let present = read_header(store).await.and_then(|copies| copies.authenticate(keys));
        match present {
            Ok(Header { export_bytes, slots, .. }) => {
                (header.export_bytes, header.slots) = (export_bytes, slots);
                return Ok(());
            }
            Err(error @ VolumeError::Store(_)) => return Err(error),
            Err(_) => {}
        }
        let room = store.capability().size.saturating_sub(header.data_start);
        let slots = (room / u64::from(header.segment_bytes)).clamp(1, u32::MAX.into());
        let widest = Header { slots: header.slots.max(slots), ..header.clone() };
        for (block, _) in read_ring(store, header, keys).await?.iter().take(2) {
            let Ok(root) = read_payload(store, &widest, keys, block).await else { continue };
            if root.min_header_generation > header.generation {
                (header.export_bytes, header.slots) = (root.export_bytes, widest.slots);
            }
            break;
        }
        Ok(())
    }
}

impl Core {
    /// The header that a resize would put in the place of `now`.
    async fn resizable(&self, now: Header, to: Geometry) -> Result<Header, VolumeError> {
        let (new, _) = self.resized(now, to)?;
        let (found, needed) = (self.store.capability().size, new.store_bytes());
        if found < needed && !self.store.extends() {
            return Err(VolumeError::StoreTooSmall { found, needed });
        }
        if new.export_bytes < self.header().export_bytes {
            self.end_at(new.export_bytes).await?;
        }
        Ok(new)
    }

    /// Keeps changes away from what lies behind `end`, where there is nothing.
    async fn end_at(&self, end: u64) -> Result<Fence<'_>, VolumeError> {
        let fence = Fence::put_up(self, Lba(end / SECTOR_BYTES))?;
        match self.first_used(end).await? {
            Some(first) => Err(VolumeError::InUse { end, first }),
            None => Ok(fence),
        }
    }

    /// The next generation of the header `now`, for another size, and its bytes.
    fn resized(&self, now: Header, to: Geometry) -> Result<(Header, Vec<u8>), VolumeError> {
        let Geometry { export_bytes, segment_bytes, slots } = to;
        if segment_bytes != now.segment_bytes {
            let is = now.segment_bytes;
            return Err(VolumeError::Refused(format!("segments have {is} bytes, not {segment_bytes}")));
        }
        let Some(generation) = now.generation.checked_add(1) else {
            return Err(VolumeError::Refused("the header has had its last generation".into()));
        };
        let new = Header { generation, export_bytes, slots: now.slots.max(slots), ..now };
        let bytes = new.encode(&self.keys);
        // What no program would open is not written.
        UnverifiedHeader::decode(&bytes).map_err(|error| VolumeError::Refused(error.to_string()))?;
        Ok((new, bytes))
    }

    /// Lets the volume end earlier. `bytes` is the new header where it is not on the store yet.
    async fn shrink(
        self: &Arc<Self>,
        checkpointer: &mut Checkpointer,
        new: Header,
        bytes: Option<Vec<u8>>,
    ) -> Result<(), VolumeError> {
        let end = new.export_bytes;
        let mut fence = self.end_at(end).await?;
        // What was there once leaves the tree while it is still counted in, and no later replay sees it.
        self.checkpoint_locked(checkpointer).await?;
        if self.map().tree.tops[top_count(end)..].iter().any(|top| *top != Loc::HOLE) {
            return Err(VolumeError::Inconsistent("the index keeps pages of holes".into()));
        }
        fence.stage = Stage::Writing;
        if let Some(bytes) = bytes {
            write_copies(&*self.store, &bytes).await?;
        }
        self.install(checkpointer, new);
        fence.stage = Stage::Kept;
        self.checkpoint_locked(checkpointer).await
    }

    /// Finishes what a session before began: the header on the store names a smaller size than the root.
    pub(super) async fn finish_shrink(self: &Arc<Self>, new: Header) -> Result<(), VolumeError> {
        let mut checkpointer = self.checkpointer.lock().await;
        let end = new.export_bytes;
        match self.shrink(&mut checkpointer, new, None).await {
            Err(VolumeError::InUse { first, .. }) => Err(VolumeError::Inconsistent(format!(
                "the header says that the volume ends at byte {end}, and there is something at byte {first}"
            ))),
            finished => finished,
        }
    }

    async fn first_used(&self, end: u64) -> Result<Option<u64>, VolumeError> {
        let size = self.header().export_bytes;
        let Some(tail) = size.checked_sub(end).and_then(|len| ByteRange::within(end, len, size)) else {
            return Ok(None);
        };
        let extents = self.block_status(tail, 2).await;
        let extents = extents.map_err(|error| VolumeError::Stopped(error.to_string()))?;
        Ok(match extents.as_slice() {
            [hole, _, ..] if hole.allocation == Allocation::Hole => Some(end + hole.len),
            [first, ..] if first.allocation != Allocation::Hole => Some(end),
            _ => None,
        })
    }

    /// Lets this session go by `header`, which is on the store or about to be in the next root's demands.
    pub(super) fn install(&self, checkpointer: &mut Checkpointer, header: Header) {
        checkpointer.header_generation = header.generation;
        self.segments.table_mut().grow(header.slots);
        let mut tree = (*self.map().tree).clone();
        tree.tops.resize(top_count(header.export_bytes), Loc::HOLE);
        self.map_mut().tree = Arc::new(tree);
        self.room.resize(header.slots, header.export_bytes, header.segment_bytes.into());
        self.queue().end = Lba(header.export_bytes / SECTOR_BYTES);
        // Last: who sees the size may use all of it.
        *self.header.write().expect("no panic while the header is held") = Arc::new(header);
    }
}

/// Settles which size holds when header and root name different ones: that of the larger. Returns the header
/// of a smaller size, which [`Core::finish_shrink`] is for; `header` is then what it was before.
///
/// # Errors
/// [`VolumeError::Inconsistent`] when the header is not newer than what the root demands.
pub(super) fn settle_size(header: &mut Header, root: &mut Root) -> Result<Option<Header>, VolumeError> {
    if header.export_bytes == root.export_bytes {
        return Ok(None);
    }
    if header.generation <= root.min_header_generation {
        return Err(VolumeError::Inconsistent("header and root name different sizes".into()));
    }
    if header.export_bytes > root.export_bytes {
        root.export_bytes = header.export_bytes;
        root.tops.resize(top_count(header.export_bytes), Loc::HOLE);
        return Ok(None);
    }
    let smaller = header.clone();
    header.export_bytes = root.export_bytes;
    header.generation = root.min_header_generation;
    Ok(Some(smaller))
}

/// Top pointers of a volume of that size.
pub(super) fn top_count(export_bytes: u64) -> usize {
    let sectors = export_bytes / SECTOR_BYTES;
    usize::try_from(sectors.div_ceil(page_sectors(TOP_LEVEL))).expect("sizes of a checked header")
}

/// Keeps changes away from what lies behind a new end. It goes again unless the new end holds.
struct Fence<'a> {
    core: &'a Core,
    before: Lba,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing was written.
    Looking,
    /// The header on the store may be the new one.
    Writing,
    /// The new end holds.
    Kept,
}

impl<'a> Fence<'a> {
    fn put_up(core: &'a Core, end: Lba) -> Result<Self, VolumeError> {
        let mut queue = core.queue();
        if let Some(first) = first_change(&queue, end) {
            return Err(VolumeError::InUse { end: end.byte_offset(), first: first.byte_offset() });
        }
        let before = std::mem::replace(&mut queue.end, end);
        Ok(Self { core, before, stage: Stage::Looking })
    }
}

impl Drop for Fence<'_> {
    fn drop(&mut self) {
        match self.stage {
            Stage::Looking => self.core.queue().end = self.before,
            // What were written behind the new end now, the next opening could refuse.
            Stage::Writing => self.core.stop(ExportError::Io("a resize was abandoned half-way".into())),
            Stage::Kept => {}
        }
    }
}

/// The first sector from `end` on that somebody is changing.
fn first_change(queue: &Queue, end: Lba) -> Option<Lba> {
    let tail = SectorRange::new(end, u64::MAX - end.0);
    let waiting = queue.waiting.iter().map(|part| part.sectors);
    let merging = queue.merges.iter().map(|merge| merge.sectors);
    let written = queue.in_flight.iter().flat_map(|chunk| &chunk.effects).map(|run| run.sectors);
    let changed = waiting.chain(merging).chain(written).filter(|sectors| sectors.overlaps(tail));
    changed.map(|sectors| sectors.start.max(end)).min()
}
