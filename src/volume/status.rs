//! What a volume tells of itself.

use std::sync::atomic::Ordering;

use super::anchor::AnchorStatus;
use super::{OpenMode, Volume};
use crate::format::segment::SegmentKind;

/// Figures of an open volume.
#[derive(Clone, Debug, serde::Serialize)]
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
    /// Log and index bytes written to the store since open.
    pub store_bytes_written: u64,
    /// Sectors that did not authenticate since open.
    pub authentication_failures: u64,
    /// Messages sealed under the active key, counted up front.
    pub sealed_messages: u64,
    /// What its anchor knows; `None` without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anchor: Option<AnchorStatus>,
}

/// Use of the store, in segments and bytes.
#[derive(Clone, Debug, serde::Serialize)]
pub struct SpaceStatus {
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Segments that fit.
    pub slots: u64,
    /// Segments in no use.
    pub free_slots: u64,
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
            segment_bytes: core.header.segment_bytes.into(),
            slots: core.header.slots,
            free_slots: 0,
            live_bytes: 0,
            dead_bytes: 0,
            index_bytes: 0,
        };
        {
            let table = core.segments.table();
            space.free_slots =
                table.free_slots() + table.available_slots() as u64 + table.freed_slots() as u64;
            for (_, row) in table.rows() {
                if row.kind == SegmentKind::Index {
                    space.index_bytes += u64::from(row.live);
                } else {
                    space.live_bytes += u64::from(row.live);
                    space.dead_bytes += u64::from(row.bytes - row.live);
                }
            }
        }
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        VolumeStatus {
            export_bytes: core.header.export_bytes,
            read_only: core.mode == OpenMode::ReadOnly,
            root_generation: count(&core.generation),
            writer_epoch: core.writer_epoch,
            log_seq,
            space,
            bytes_written: count(&core.counters.bytes_written),
            store_bytes_written: count(&core.counters.log_bytes) + count(&core.counters.index_bytes),
            authentication_failures: count(&core.counters.authentication_failures),
            sealed_messages: count(&core.counters.sealed_messages),
            anchor: self.anchor_status(),
        }
    }
}
