//! What a check found, bounded, for people and programs.

use serde::{Deserialize, Serialize};

use crate::geometry::{SECTOR_BYTES, SectorRange};

/// Findings listed; more are only counted.
const FINDINGS_MAX: usize = 1000;
/// Damaged ranges listed; more are only counted.
const RANGES_MAX: usize = 10_000;

/// What something is wrong with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Structure {
    /// A copy of the header.
    Header,
    /// The ring of roots.
    RootRing,
    /// A root's payload.
    Root,
    /// The table of segments.
    SegmentTable,
    /// The header of a segment.
    SegmentHeader,
    /// How much of a segment the table says is needed.
    LiveCount,
    /// A page of the index.
    IndexPage,
    /// The log behind the root.
    Log,
    /// The store against its anchor.
    Anchor,
}

impl Structure {
    /// As people are told it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::RootRing => "root ring",
            Self::Root => "root",
            Self::SegmentTable => "segment table",
            Self::SegmentHeader => "segment header",
            Self::LiveCount => "live count",
            Self::IndexPage => "index page",
            Self::Log => "log",
            Self::Anchor => "anchor",
        }
    }
}

/// Something that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// With what.
    pub structure: Structure,
    /// Where it lies on the store, in bytes, where it has one place.
    pub offset: Option<u64>,
    /// What.
    pub message: String,
}

/// Sectors that cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DamagedRange {
    /// The first one.
    pub first_sector: u64,
    /// How many.
    pub sectors: u64,
    /// First byte, as clients count.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
}

impl From<SectorRange> for DamagedRange {
    fn from(range: SectorRange) -> Self {
        let (first_sector, sectors) = (range.start.0, range.count);
        Self { first_sector, sectors, offset: first_sector * SECTOR_BYTES, bytes: sectors * SECTOR_BYTES }
    }
}

/// What the newest root does not hold yet.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSummary {
    /// Chunks behind the root.
    pub chunks: u64,
    /// Sectors whose newest data is in them.
    pub sectors: u64,
}

/// What a check found.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckReport {
    /// Number of the root whose state was verified; 0 when there was none to verify.
    pub root: u64,
    /// Segments whose header was read and authenticated.
    pub segments: u64,
    /// Index pages read and authenticated.
    pub pages: u64,
    /// Sectors that the index of that root maps to records.
    pub mapped_sectors: u64,
    /// What stands in the log and not yet in the index.
    pub log: LogSummary,
    /// Sectors read and authenticated (deep), wherever they stand.
    pub verified_sectors: u64,
    /// Whether the index could not be verified to its end, since writers needed the space that this kept.
    pub gave_way: bool,
    /// What is damaged or contradicts itself, and is needed.
    pub problems: Vec<Finding>,
    /// What is damaged and not needed as long as nothing else is.
    pub warnings: Vec<Finding>,
    /// Sectors that cannot be read, in order. Without `deep` those whose index is damaged.
    pub damaged: Vec<DamagedRange>,
    /// Findings and ranges beyond those that are listed.
    pub not_listed: u64,
}

impl CheckReport {
    /// Whether nothing that is needed is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty() && self.damaged.is_empty()
    }

    /// How many sectors are listed as damaged.
    #[must_use]
    pub fn damaged_sectors(&self) -> u64 {
        self.damaged.iter().map(|range| range.sectors).sum()
    }

    pub(in crate::volume) fn problem(&mut self, structure: Structure, offset: Option<u64>, message: String) {
        if self.problems.len() < FINDINGS_MAX {
            self.problems.push(Finding { structure, offset, message });
        } else {
            self.not_listed += 1;
        }
    }

    pub(in crate::volume) fn warning(&mut self, structure: Structure, offset: Option<u64>, message: String) {
        if self.warnings.len() < FINDINGS_MAX {
            self.warnings.push(Finding { structure, offset, message });
        } else {
            self.not_listed += 1;
        }
    }

    /// Notes sectors that cannot be read. They come in ascending order, once per part of the check.
    pub(in crate::volume) fn damage(&mut self, sectors: SectorRange) {
        let next = DamagedRange::from(sectors);
        let full = self.damaged.len() >= 2 * RANGES_MAX;
        match self.damaged.last_mut() {
            Some(last) if last.first_sector + last.sectors == next.first_sector => {
                last.sectors += next.sectors;
                last.bytes += next.bytes;
            }
            _ if full => self.not_listed += 1,
            _ => self.damaged.push(next),
        }
    }

    /// Brings the ranges of both parts together, in order and none twice.
    pub(super) fn settle(&mut self) {
        let mut all = std::mem::take(&mut self.damaged);
        all.sort_by_key(|range| range.first_sector);
        for range in all {
            let end = range.first_sector + range.sectors;
            let full = self.damaged.len() >= RANGES_MAX;
            match self.damaged.last_mut() {
                Some(last) if range.first_sector <= last.first_sector + last.sectors => {
                    last.sectors = last.sectors.max(end - last.first_sector);
                    last.bytes = last.sectors * SECTOR_BYTES;
                }
                _ if full => self.not_listed += 1,
                _ => self.damaged.push(range),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Lba;

    #[test]
    fn ranges_of_both_parts_are_listed_once_and_in_order() {
        let mut report = CheckReport::default();
        for (start, count) in [(512, 512), (4096, 1), (3, 1), (4, 2), (700, 400), (4096, 1)] {
            report.damage(SectorRange::new(Lba(start), count));
        }
        report.settle();
        let listed: Vec<_> = report.damaged.iter().map(|range| (range.first_sector, range.sectors)).collect();
        assert_eq!(listed, [(3, 3), (512, 588), (4096, 1)]);
        assert_eq!(report.damaged[1].offset, 512 * 4096);
        assert_eq!((report.damaged[1].bytes, report.damaged_sectors()), (588 * 4096, 592));
    }

    #[test]
    fn what_is_not_listed_is_counted() {
        let mut report = CheckReport::default();
        for number in 0..1200 {
            report.problem(Structure::LiveCount, None, number.to_string());
        }
        assert_eq!((report.problems.len(), report.not_listed), (FINDINGS_MAX, 200));
        assert!(!report.is_clean());
    }
}
