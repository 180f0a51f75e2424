//! Judging requests: a header becomes an [`Operation`] that cannot be wrong, or a refusal.
//!
//! The only place where a client's numbers are checked; the export below asserts. Pure.

use super::errno::Refusal;
use super::{Mode, PAYLOAD_LEN_MAX, ReplyStyle};
use crate::export::{Durability, ExportInfo, ZeroMode};
use crate::geometry::ByteRange;
use crate::wire::payload::StatusFilter;
use crate::wire::transmission::{Command, CommandFlags, HeaderStyle, Request};

/// Longest payload of a refused write that is read and thrown away instead of hung up on, in
/// bytes: four times the longest write, as far as nbdkit goes.
pub const REFUSED_PAYLOAD_LEN_MAX: u64 = 4 * PAYLOAD_LEN_MAX as u64;
/// Bytes of the longest filter that can be right: a length and the one context there is.
const FILTER_LEN_MAX: u64 = 12;
/// Most extents in one answer. An answer may be partial; this one is at most 512 KiB long.
pub const EXTENTS_MAX: usize = 32 << 10;

/// Whether a read may be answered in pieces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragments {
    /// Holes may be left out.
    Allowed,
    /// One content chunk (`NBD_CMD_FLAG_DF`).
    Refused,
}

/// A request that was found good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// `NBD_CMD_READ`, at most [`PAYLOAD_LEN_MAX`] bytes.
    Read(ByteRange, Fragments),
    /// `NBD_CMD_WRITE`, at most [`PAYLOAD_LEN_MAX`] bytes.
    Write(ByteRange, Durability),
    /// `NBD_CMD_FLUSH`.
    Flush,
    /// `NBD_CMD_TRIM`.
    Trim(ByteRange, Durability),
    /// `NBD_CMD_WRITE_ZEROES`.
    WriteZeroes(ByteRange, ZeroMode, Durability),
    /// `NBD_CMD_CACHE`.
    Cache(ByteRange),
    /// `NBD_CMD_BLOCK_STATUS`, at most so many extents.
    BlockStatus(ByteRange, usize),
}

impl Operation {
    /// Bytes that the longest block status takes: an extent in memory and a descriptor on the wire
    /// are 16 bytes each.
    #[expect(clippy::cast_possible_truncation, reason = "a constant of 1 MiB")]
    pub const STATUS_COST_BYTES_MAX: u32 = 32 * EXTENTS_MAX as u32;

    /// Bytes of memory that the request and its reply take while it is under way.
    #[must_use]
    pub fn cost_bytes(&self) -> u32 {
        let data = |range: ByteRange| u32::try_from(range.len()).expect("at most PAYLOAD_LEN_MAX");
        match *self {
            Self::Read(range, _) | Self::Write(range, _) => data(range),
            Self::BlockStatus(_, extents_max) => {
                u32::try_from(32 * extents_max).unwrap_or(Self::STATUS_COST_BYTES_MAX)
            }
            Self::Flush | Self::Trim(..) | Self::WriteZeroes(..) | Self::Cache(_) => 0,
        }
    }

    /// Whether the export's future must be run to its end (see [`crate::export::Export`]).
    #[must_use]
    pub fn must_finish(&self) -> bool {
        !matches!(self, Self::Read(..) | Self::BlockStatus(..))
    }
}

/// What is to be done with a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Do it. A write's payload follows the header.
    Run(Operation),
    /// Receive so many bytes (at most 12) of payload and ask [`judge_filter`].
    Filter(usize),
    /// Throw so many bytes of payload away, then answer with the error.
    Refuse(Refusal, u64),
    /// The client is done: finish what is under way, then close.
    Disconnect,
    /// The payload is absurd: close.
    HangUp,
}

/// Judges a request's header.
#[must_use]
pub fn judge(request: &Request, mode: &Mode, info: &ExportInfo) -> Verdict {
    let payload_len = payload_len(request, mode.headers());
    match parse(request, mode, info) {
        Ok(verdict) => verdict,
        Err(_) if payload_len > payload_len_tolerated(mode.headers()) => Verdict::HangUp,
        Err(refusal) => Verdict::Refuse(refusal, payload_len),
    }
}

/// Judges the payload of a block status request for which [`judge`] said [`Verdict::Filter`].
///
/// # Errors
/// The reason to refuse it.
pub fn judge_filter(
    request: &Request,
    payload: &[u8],
    mode: &Mode,
    info: &ExportInfo,
) -> Result<Operation, Refusal> {
    let filter = StatusFilter::decode(payload).map_err(|_| Refusal::BadFilter)?;
    let id = mode.allocation_context.ok_or(Refusal::NoContext)?;
    // One context exists: a good list names it once.
    if filter.context_ids != [id] {
        return Err(Refusal::BadFilter);
    }
    block_status(request, filter.effect_len, mode, info)
}

/// Bytes that follow the header. Extended writes must say that they have a payload; those of
/// QEMU 10's client do not, and have it all the same.
fn payload_len(request: &Request, headers: HeaderStyle) -> u64 {
    let declared = headers == HeaderStyle::Extended && request.flags.contains(CommandFlags::PAYLOAD_LEN);
    if declared || request.command == Command::WRITE { request.len } else { 0 }
}

/// Extended headers: longer than the maximum SHOULD be hung up on. Compact ones: MAY.
fn payload_len_tolerated(headers: HeaderStyle) -> u64 {
    match headers {
        HeaderStyle::Compact => REFUSED_PAYLOAD_LEN_MAX,
        HeaderStyle::Extended => PAYLOAD_LEN_MAX.into(),
    }
}

fn parse(request: &Request, mode: &Mode, info: &ExportInfo) -> Result<Verdict, Refusal> {
    if request.command == Command::DISC {
        return Ok(Verdict::Disconnect);
    }
    check_flags(request, mode)?;
    let durability =
        if request.flags.contains(CommandFlags::FUA) { Durability::Durable } else { Durability::Accepted };
    let run = |operation| Ok(Verdict::Run(operation));
    match request.command {
        Command::READ => {
            let range = data_range(request, info, Refusal::OutOfRange)?;
            let df = request.flags.contains(CommandFlags::DF);
            run(Operation::Read(range, if df { Fragments::Refused } else { Fragments::Allowed }))
        }
        Command::WRITE => {
            writable(info)?;
            run(Operation::Write(data_range(request, info, Refusal::NoRoom)?, durability))
        }
        // Offset and length are reserved; no client is served better by an error.
        Command::FLUSH => run(Operation::Flush),
        Command::TRIM => {
            writable(info)?;
            run(Operation::Trim(range(request, request.len, info, Refusal::OutOfRange)?, durability))
        }
        Command::WRITE_ZEROES => {
            writable(info)?;
            let range = range(request, request.len, info, Refusal::NoRoom)?;
            let no_hole = request.flags.contains(CommandFlags::NO_HOLE);
            let mode = if no_hole { ZeroMode::NoHole } else { ZeroMode::MayPunch };
            run(Operation::WriteZeroes(range, mode, durability))
        }
        Command::CACHE => {
            let whole = range(request, request.len, info, Refusal::OutOfRange)?;
            // A hint: what would not fit in one read is not brought near in one go either.
            run(Operation::Cache(whole.part(0, whole.len().min(PAYLOAD_LEN_MAX.into()))))
        }
        Command::BLOCK_STATUS if request.flags.contains(CommandFlags::PAYLOAD_LEN) => {
            if mode.allocation_context.is_none() {
                return Err(Refusal::NoContext);
            }
            if request.len > FILTER_LEN_MAX {
                return Err(Refusal::BadFilter);
            }
            let len = usize::try_from(request.len).expect("at most FILTER_LEN_MAX");
            Ok(Verdict::Filter(len))
        }
        Command::BLOCK_STATUS => run(block_status(request, request.len, mode, info)?),
        _ => Err(Refusal::UnknownCommand),
    }
}

fn check_flags(request: &Request, mode: &Mode) -> Result<(), Refusal> {
    let structured = mode.replies != ReplyStyle::Simple;
    let extended = mode.headers() == HeaderStyle::Extended;
    let has_payload = request.flags.contains(CommandFlags::PAYLOAD_LEN);
    let mut allowed = CommandFlags::FUA;
    match request.command {
        Command::READ if structured => allowed = allowed.with(CommandFlags::DF),
        Command::WRITE_ZEROES => {
            allowed = allowed.with(CommandFlags::NO_HOLE).with(CommandFlags::FAST_ZERO);
        }
        Command::BLOCK_STATUS => allowed = allowed.with(CommandFlags::REQ_ONE),
        Command::READ | Command::WRITE | Command::FLUSH | Command::TRIM | Command::CACHE => {}
        _ => return Err(Refusal::UnknownCommand),
    }
    if extended && matches!(request.command, Command::WRITE | Command::BLOCK_STATUS) {
        allowed = allowed.with(CommandFlags::PAYLOAD_LEN);
    }
    if request.flags.only(allowed) {
        Ok(())
    } else if extended && has_payload && request.flags.only(allowed.with(CommandFlags::PAYLOAD_LEN)) {
        Err(Refusal::UnexpectedPayload)
    } else {
        Err(Refusal::UnknownFlag)
    }
}

fn writable(info: &ExportInfo) -> Result<(), Refusal> {
    if info.read_only { Err(Refusal::ReadOnly) } else { Ok(()) }
}

fn range(request: &Request, len: u64, info: &ExportInfo, outside: Refusal) -> Result<ByteRange, Refusal> {
    ByteRange::within(request.offset, len, info.size).ok_or(outside)
}

/// The range of a request whose data is on the wire.
fn data_range(request: &Request, info: &ExportInfo, outside: Refusal) -> Result<ByteRange, Refusal> {
    let range = range(request, request.len, info, outside)?;
    if range.len() > PAYLOAD_LEN_MAX.into() { Err(Refusal::TooLong) } else { Ok(range) }
}

fn block_status(request: &Request, len: u64, mode: &Mode, info: &ExportInfo) -> Result<Operation, Refusal> {
    if mode.allocation_context.is_none() {
        return Err(Refusal::NoContext);
    }
    let range = range(request, len, info, Refusal::OutOfRange)?;
    if range.len() == 0 {
        return Err(Refusal::EmptyStatus);
    }
    let one = request.flags.contains(CommandFlags::REQ_ONE);
    Ok(Operation::BlockStatus(range, if one { 1 } else { EXTENTS_MAX }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn near_interesting() -> impl Strategy<Value = u64> {
        let centres = prop_oneof![
            Just(0),
            Just(1 << 20),
            Just(1 << 25),
            Just(1 << 27),
            Just(u64::from(u32::MAX)),
            Just(1 << 63),
            Just(u64::MAX),
            any::<u64>()
        ];
        (centres, -9i64..9).prop_map(|(centre, delta): (u64, i64)| centre.wrapping_add_signed(delta))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn what_is_run_lies_inside_the_export_and_fits_in_memory(
            flags in 0u16..128, command in 0u16..11,
            offset in near_interesting(), len in near_interesting(),
            extended in any::<bool>(), read_only in any::<bool>(), context in any::<bool>(),
        ) {
            let style = if extended { HeaderStyle::Extended } else { HeaderStyle::Compact };
            let len = if extended { len } else { len & 0xffff_ffff };
            let mode = Mode {
                export: 0,
                replies: ReplyStyle::Structured(style),
                allocation_context: context.then_some(1),
            };
            let info = ExportInfo { size: (1 << 20) + 512, read_only, description: String::new() };
            let request =
                Request { flags: CommandFlags(flags), command: Command(command), cookie: 0, offset, len };
            match judge(&request, &mode, &info) {
                Verdict::Run(operation) => {
                    prop_assert!(operation.cost_bytes() <= PAYLOAD_LEN_MAX);
                    let range = match operation {
                        Operation::Read(range, _) | Operation::Cache(range)
                        | Operation::BlockStatus(range, _) => Some(range),
                        Operation::Write(range, _) | Operation::Trim(range, _)
                        | Operation::WriteZeroes(range, ..) => {
                            prop_assert!(!read_only);
                            Some(range)
                        }
                        Operation::Flush => None,
                    };
                    prop_assert!(range.is_none_or(|range| range.end() <= info.size));
                }
                Verdict::Filter(len) => prop_assert!(len as u64 <= FILTER_LEN_MAX && context && extended),
                Verdict::Refuse(_, payload) => prop_assert!(payload <= REFUSED_PAYLOAD_LEN_MAX),
                Verdict::Disconnect => prop_assert_eq!(command, Command::DISC.0),
                Verdict::HangUp => prop_assert!(len > PAYLOAD_LEN_MAX.into()),
            }
        }
    }
}
