//! One request of a client against an open volume, and what came of it.

use std::fmt;
use std::ops::ControlFlow;

use sealbd::export::{Durability, Export, ExportError, ZeroMode};
use sealbd::geometry::ByteRange;
use sealbd::payload::Payload;
use sealbd::volume::create::{Geometry, OverProvisioning};
use sealbd::volume::{Volume, VolumeError};

use crate::content::{OpId, UNIT, fill};
use crate::oracle::Time;

/// What a client asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Request {
    Read {
        since: Time,
        offset: u64,
        len: u64,
    },
    Write {
        op: OpId,
        offset: u64,
        len: u64,
        fua: bool,
    },
    Trim {
        op: OpId,
        offset: u64,
        len: u64,
        fua: bool,
    },
    Zero {
        op: OpId,
        offset: u64,
        len: u64,
        fua: bool,
        may_punch: bool,
    },
    Flush {
        since: Time,
    },
    Status {
        offset: u64,
        len: u64,
    },
    Checkpoint {
        since: Time,
    },
    Check,
    /// To a smaller size `was_trimmed` when nothing can lie behind its end.
    Resize {
        since: Time,
        size: u64,
        keep_spare: bool,
        was_trimmed: bool,
    },
    Compact {
        percent: u64,
        steps: u64,
    },
    Close {
        since: Time,
    },
}

/// Why a request was refused.
#[derive(Clone, Debug)]
pub(crate) enum Refusal {
    NoSpace(String),
    ShuttingDown,
    /// There is something behind the end that the volume was to have.
    InUse(String),
    Other(String),
    /// It was answered well, and what it says cannot be.
    Wrong(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShuttingDown => f.write_str("it is shutting down"),
            Self::NoSpace(text) | Self::InUse(text) | Self::Other(text) | Self::Wrong(text) => {
                f.write_str(text)
            }
        }
    }
}

/// A request with its answer.
pub(crate) struct Answer {
    pub(crate) request: Request,
    /// What was read.
    pub(crate) result: Result<Vec<u8>, Refusal>,
}

impl From<ExportError> for Refusal {
    fn from(error: ExportError) -> Self {
        match error {
            ExportError::NoSpace(text) => Self::NoSpace(text),
            ExportError::ShuttingDown => Self::ShuttingDown,
            other => Self::Other(other.to_string()),
        }
    }
}

impl From<VolumeError> for Refusal {
    fn from(error: VolumeError) -> Self {
        match error {
            VolumeError::NoSpace => Self::NoSpace(error.to_string()),
            VolumeError::InUse { .. } => Self::InUse(error.to_string()),
            VolumeError::Stopped(text) if text.contains("shutting down") => Self::ShuttingDown,
            other => Self::Other(other.to_string()),
        }
    }
}

/// Performs a request on a volume of `export` bytes.
pub(crate) async fn perform(volume: Volume, export: u64, request: Request) -> Answer {
    let result = Box::pin(answer(volume, export, request)).await;
    Answer { request, result }
}

async fn answer(volume: Volume, export: u64, request: Request) -> Result<Vec<u8>, Refusal> {
    let within = |offset, len| ByteRange::within(offset, len, export).expect("requests lie in the export");
    let durability = |fua| if fua { Durability::Durable } else { Durability::Accepted };
    match request {
        Request::Read { offset, len, .. } => read(&volume, within(offset, len)).await,
        Request::Write { op, offset, len, fua } => {
            let mut data = vec![0; usize::try_from(len).expect("in memory")];
            fill(&mut data, offset, op);
            let payload = Payload::copy_of(within(offset, len), &data);
            volume.write(payload, durability(fua)).await?;
            Ok(Vec::new())
        }
        Request::Trim { offset, len, fua, .. } => {
            volume.trim(within(offset, len), durability(fua)).await?;
            Ok(Vec::new())
        }
        Request::Zero { offset, len, fua, may_punch, .. } => {
            let mode = if may_punch { ZeroMode::MayPunch } else { ZeroMode::NoHole };
            volume.write_zeroes(within(offset, len), mode, durability(fua)).await?;
            Ok(Vec::new())
        }
        Request::Flush { .. } => {
            volume.flush().await?;
            Ok(Vec::new())
        }
        Request::Status { offset, len } => status(&volume, within(offset, len)).await,
        Request::Checkpoint { .. } => {
            volume.checkpoint().await?;
            Ok(Vec::new())
        }
        Request::Check => {
            let report = volume.check(true, |_| {}).await?;
            if report.is_clean() {
                return Ok(Vec::new());
            }
            let (problems, damaged) = (report.problems, report.damaged);
            Err(Refusal::Wrong(format!("check found {problems:?}, damaged sectors {damaged:?}")))
        }
        Request::Resize { size, keep_spare, .. } => {
            let spare = (!keep_spare).then_some(OverProvisioning::DEFAULT);
            let to = Geometry::resized(&volume.header(), size, spare)?;
            volume.become_size(to, false).await?;
            Ok(Vec::new())
        }
        Request::Compact { percent, steps } => {
            let mut left = steps;
            let count = |_| match left.checked_sub(1) {
                Some(fewer) => {
                    left = fewer;
                    ControlFlow::Continue(())
                }
                None => ControlFlow::Break(()),
            };
            volume.compact(percent, count).await?;
            Ok(Vec::new())
        }
        Request::Close { .. } => {
            volume.close().await?;
            Ok(Vec::new())
        }
    }
}

/// Reads a range whole.
pub(crate) async fn read(volume: &Volume, range: ByteRange) -> Result<Vec<u8>, Refusal> {
    let mut buf = vec![0xee; usize::try_from(range.len()).expect("in memory")];
    for zeros in volume.read(range, &mut buf).await? {
        let at = usize::try_from(zeros.offset() - range.offset()).expect("in memory");
        let len = usize::try_from(zeros.len()).expect("in memory");
        if buf[at..at + len].chunks(UNIT).any(|unit| *unit != [0; UNIT][..unit.len()]) {
            return Err(Refusal::Wrong(format!("a range said to be zeros is not: {zeros:?}")));
        }
    }
    Ok(buf)
}

async fn status(volume: &Volume, range: ByteRange) -> Result<Vec<u8>, Refusal> {
    let extents = volume.block_status(range, 16).await?;
    let sum: u64 = extents.iter().map(|extent| extent.len).sum();
    let joined = extents.windows(2).all(|pair| pair[0].allocation != pair[1].allocation);
    let right = !extents.is_empty() && extents.len() <= 16 && sum <= range.len() && joined;
    if right { Ok(Vec::new()) } else { Err(Refusal::Wrong(format!("{range:?} is told as {extents:?}"))) }
}
