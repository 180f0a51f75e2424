//! What a volume tells of itself.

use std::sync::atomic::Ordering;

use super::anchor::AnchorStatus;
use super::{OpenMode, Volume};
use crate::format::segment::SegmentKind;

/// Figures of an open volume.
#[derive(Clone, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
pub struct VolumeStatus {
    /// Bytes that clients see.
    pub export_bytes: u64,
    /// Whether changes are refused.
    pub read_only: bool,
    /// Number of the last root.
    pub root_generation: u64,
    /// Sessions that ever wrote to the volume.
    pub writer_epoch: u64,
    /// Number of the last chunk in the log.
    pub log_seq: u64,
    /// Space on the store.
    pub space: SpaceStatus,
    /// Client bytes written since open.
    pub bytes_written: u64,
    /// Bytes written to the store since open: log, index, moved sectors, and zeros ahead of the log.
    pub store_bytes_written: u64,
    /// Of these, index.
    pub index_bytes_written: u64,
    /// Of these, sectors that were moved to get space back.
    pub moved_bytes_written: u64,
    /// Bytes written to the store for each byte that clients wrote since open; absent before they did.
    pub write_amplification: Option<f64>,
    /// Bytes of index pages in memory.
    pub page_bytes: u64,
    /// The most of them that are kept.
    pub page_bytes_max: u64,
    /// Sectors that did not authenticate since open.
    pub authentication_failures: u64,
    /// Messages sealed under the active key, counted up front.
    pub sealed_messages: u64,
    /// What its anchor knows; `None` without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anchor: Option<AnchorStatus>,
}

/// Use of the store, in segments and bytes.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct SpaceStatus {
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Segments that fit.
    pub slots: u64,
    /// Segments in no use, or about to be.
    pub free_slots: u64,
    /// Below so many free ones, segments that are dead in part are emptied.
    pub reclaim_below_slots: u64,
    /// Writers wait before fewer than so many are free.
    pub reserve_slots: u64,
    /// Live bytes that have to be moved before as many are free as there should be.
    pub reclaim_debt_bytes: u64,
    /// Bytes of client data that the last root needs.
    pub live_bytes: u64,
    /// Bytes in log segments that nothing needs any more.
    pub dead_bytes: u64,
    /// Bytes of index pages that the last root needs.
    pub index_bytes: u64,
}

impl Volume {
    /// The figures now.
    #[must_use]
    pub fn status(&self) -> VolumeStatus {
        let core = &self.core;
        let log_seq = core.queue().completed_seq();
        let mut space = SpaceStatus {
            segment_bytes: core.header().segment_bytes.into(),
            slots: core.header().slots,
            free_slots: 0,
            reclaim_below_slots: core.room.reclaim_mark(),
            reserve_slots: core.room.reserve(),
            reclaim_debt_bytes: 0,
            live_bytes: 0,
            dead_bytes: 0,
            index_bytes: 0,
        };
        {
            let table = core.segments.table();
            space.free_slots =
                table.slots().free() + table.slots().available() as u64 + table.freed_slots() as u64;
            for (_, row) in table.rows() {
                if row.kind == SegmentKind::Index {
                    space.index_bytes += u64::from(row.live);
                } else {
                    space.live_bytes += u64::from(row.live);
                    space.dead_bytes += u64::from(row.bytes - row.live);
                }
            }
        }
        space.reclaim_debt_bytes = core.reclaim_debt(space.free_slots);
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (page_bytes, page_bytes_max) = core.pages.bytes();
        let index_bytes_written = count(&core.counters.index_bytes);
        let moved_bytes_written = count(&core.counters.moved_bytes);
        let log_bytes_written = count(&core.counters.log_bytes) + count(&core.counters.filled_bytes);
        let store_bytes_written = log_bytes_written + index_bytes_written + moved_bytes_written;
        let bytes_written = count(&core.counters.bytes_written);
        VolumeStatus {
            export_bytes: core.header().export_bytes,
            read_only: core.mode == OpenMode::ReadOnly,
            root_generation: count(&core.generation),
            writer_epoch: core.writer_epoch,
            log_seq,
            space,
            bytes_written,
            store_bytes_written,
            index_bytes_written,
            moved_bytes_written,
            write_amplification: (bytes_written > 0)
                .then(|| store_bytes_written as f64 / bytes_written as f64),
            page_bytes,
            page_bytes_max,
            authentication_failures: count(&core.counters.authentication_failures),
            sealed_messages: count(&core.counters.sealed_messages),
            anchor: self.anchor_status(),
        }
    }
}
