//! Opening what can still be opened, for reading only: a volume whose newest roots are damaged, whose log
//! breaks off, or whose store was cut short. Everything that is wrong is told; nothing is guessed, and
//! nothing is shown that does not authenticate.
//!
//! An older root than [`Volume::open`] allows may lead to slots that were used again: what stood there does not
//! authenticate any more and is missing, and what is there is what it was at that root.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::check::{CheckReport, DamagedRange, Finding, Piece, Structure, is_local};
use super::io::{SegmentReader, read_store};
use super::recover::{LoadedRoot, Ring, host_id, load_root, read_ring_blocks};
use super::replay::replay_what_is_whole;
use super::resize::settle_size;
use super::unlock::Unlocked;
use super::{Core, OpenMode, Volume, VolumeError};
use crate::cipher::{Surroundings, UidSource, VolumeKeys};
use crate::format::header::Header;
use crate::format::root::{RING_BLOCK_LEN, RingBlock};
use crate::format::segment::{SEGMENT_HEADER_LEN, SegmentHeader, SegmentKind};
use crate::geometry::{SECTOR_BYTES, SectorRange};
use crate::store::{SlotStore, StoreError};

/// A volume as far as it could be opened.
pub struct Salvaged {
    /// For reading only.
    pub volume: Volume,
    /// What [`Volume::open`] would have refused, or passed over.
    pub findings: Vec<Finding>,
    /// Number of the root that it was opened by.
    pub root: u64,
    /// Number of the newest root that the ring names.
    pub newest: u64,
    /// When the segment was begun in which that root lies, seconds since 1970: the root is not older.
    pub begun: Option<u64>,
}

/// What [`Volume::salvage`] had, and what not.
#[derive(Debug, Default)]
pub struct Copied {
    /// Sectors handed over.
    pub sectors: u64,
    /// Sectors that cannot be read, in order.
    pub lost: Vec<DamagedRange>,
    /// Ranges of such sectors beyond those that are listed.
    pub not_listed: u64,
}

impl Volume {
    /// Opens an unlocked volume by the newest root that is whole, and with as much of the log as follows it.
    ///
    /// # Errors
    /// [`VolumeError::NoRoot`] when none is whole, and the store's when it cannot be asked at all.
    pub async fn open_salvage(
        store: Arc<dyn SlotStore>,
        unlocked: Unlocked,
    ) -> Result<Salvaged, VolumeError> {
        let Unlocked { mut header, keys, .. } = unlocked;
        let mut findings = Vec::new();
        let size = store.capability().size;
        let needed = header.store_bytes();
        let too_small = || VolumeError::StoreTooSmall { found: size, needed };
        if size < needed {
            tell(&mut findings, Structure::SegmentTable, None, too_small().to_string());
        }
        let ring = match read_ring_blocks(&*store, &header, &keys).await {
            Err(error) if size < needed && is_local(&error) => return Err(too_small()),
            ring => ring?,
        };
        let Some(newest) = ring.valid.first().map(|(block, _)| block.generation) else {
            return Err(VolumeError::NoRoot("no block of the root ring is whole".into()));
        };
        tell_bad_blocks(&mut findings, &header, &ring);
        let whole = newest_whole(&*store, &header, &keys, ring, &mut findings).await;
        let (loaded, block) = match whole {
            // What is missing is why.
            Err(VolumeError::NoRoot(_)) if size < needed => return Err(too_small()),
            whole => whole?,
        };
        let begun = begun(&*store, &keys, &block).await;
        let LoadedRoot { mut root, last_number, mac, segments } = loaded;
        if root.min_header_generation > header.generation {
            let (found, known) = (header.generation, root.min_header_generation);
            let error = VolumeError::HeaderRollback { found, known };
            tell(&mut findings, Structure::Header, None, error.to_string());
        }
        // Of two sizes the larger one: a salvage leaves nothing out.
        settle_size(&mut header, &mut root)?;
        let reader = SegmentReader::new(store.clone(), keys.clone(), segments, header.segment_bytes.into());
        let (replayed, damage) = replay_what_is_whole(&header, &reader, &root.log_spans).await?;
        if let Some(damage) = damage {
            tell(&mut findings, Structure::Log, None, damage.to_string());
        }
        let (generation, epoch, mode) = (root.generation, root.writer_epoch, OpenMode::ReadOnly);
        let uids = UidSource::new(Surroundings::system(host_id()))?;
        let core = Core::assemble(uids, store, header, keys, mode, reader, root, mac, replayed, None, epoch)?;
        core.generation.store(last_number, Ordering::Relaxed);
        Ok(Salvaged { volume: Self { core }, findings, root: generation, newest, begun })
    }

    /// Reads all that authenticates, in the order of addresses, and hands it to `write` with its place in bytes;
    /// holes and zeros are left out. `progress` is told the bytes of the export passed.
    ///
    /// # Errors
    /// That of `write`, as [`VolumeError::Store`], and the store's when it cannot be asked at all. Damage is no
    /// error: what is lost is returned.
    ///
    /// # Cancel safety
    /// May be dropped: it changes nothing.
    pub async fn salvage(
        &self,
        progress: impl Fn(u64) + Send + Sync,
        mut write: impl FnMut(u64, &[u8]) -> std::io::Result<()> + Send,
    ) -> Result<Copied, VolumeError> {
        let mut sectors = 0;
        let mut lost = CheckReport::default();
        let take = |piece: Piece<'_>| {
            piece.damaged.iter().for_each(|range| lost.damage(*range));
            for good in good_parts(&piece) {
                let from = (good.start.0 - piece.sectors.start.0) * SECTOR_BYTES;
                let from = usize::try_from(from).expect("1 MiB");
                let len = usize::try_from(good.count * SECTOR_BYTES).expect("1 MiB");
                let written = write(good.start.byte_offset(), &piece.bytes[from..from + len]);
                written.map_err(|source| StoreError::Io { context: "write the copy", source })?;
                sectors += good.count;
            }
            Ok(())
        };
        self.core.read_everything(progress, take).await?;
        Ok(Copied { sectors, lost: lost.damaged, not_listed: lost.not_listed })
    }
}

/// The sectors of a piece that are not damaged.
fn good_parts(piece: &Piece<'_>) -> Vec<SectorRange> {
    let mut at = piece.sectors.start;
    let mut good = Vec::new();
    let ends = [SectorRange::new(piece.sectors.end(), 0)];
    for bad in piece.damaged.iter().chain(&ends) {
        if bad.start > at {
            good.push(SectorRange::new(at, bad.start.0 - at.0));
        }
        at = bad.end();
    }
    good
}

fn tell(findings: &mut Vec<Finding>, structure: Structure, offset: Option<u64>, message: String) {
    findings.push(Finding { structure, offset, message });
}

/// Blocks that cannot come from a crash; a check tells the others.
fn tell_bad_blocks(findings: &mut Vec<Finding>, header: &Header, ring: &Ring) {
    let slots = u64::from(header.ring_slots);
    let newest = ring.valid.first().map_or(0, |(block, _)| block.generation);
    for (slot, source) in &ring.bad {
        if *slot != (newest + 1) % slots {
            let at = header.ring_offset + slot * RING_BLOCK_LEN as u64;
            tell(findings, Structure::RootRing, Some(at), format!("block {slot} is damaged: {source}"));
        }
    }
}

async fn newest_whole(
    store: &dyn SlotStore,
    header: &Header,
    keys: &VolumeKeys,
    ring: Ring,
    findings: &mut Vec<Finding>,
) -> Result<(LoadedRoot, RingBlock), VolumeError> {
    let mut reasons = Vec::new();
    for (block, mac) in ring.valid {
        match load_root(store, header, keys, &block).await {
            Ok((root, segments)) => {
                let last_number = block.generation;
                return Ok((LoadedRoot { root, last_number, mac, segments }, block));
            }
            Err(error) if is_local(&error) => {
                let at = block.payload.phys + u64::from(block.payload.offset);
                let text = format!("root {} cannot be used: {error}", block.generation);
                tell(findings, Structure::Root, Some(at), text.clone());
                reasons.push(text);
            }
            Err(error) => return Err(error),
        }
    }
    Err(VolumeError::NoRoot(reasons.join("; ")))
}

/// When the segment of a root's payload was begun.
async fn begun(store: &dyn SlotStore, keys: &VolumeKeys, block: &RingBlock) -> Option<u64> {
    let bytes = read_store(store, block.payload.phys, SEGMENT_HEADER_LEN).await.ok()?;
    let key = keys.segment_key(SegmentKind::Index as u8, block.payload.uid);
    let header = SegmentHeader::open(&bytes, keys, &key, SegmentKind::Index).ok()?;
    Some(header.created).filter(|created| *created != 0)
}
