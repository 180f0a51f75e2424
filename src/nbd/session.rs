//! Transmission: one task that receives, executes and replies at the same time.
//!
//! A session is polled as a whole. Each round parses everything that one receive call brought. What only asks is
//! answered on the way, unless it has to wait; changes are started first and *then* run, so that the volume sees
//! those that came together as a group. Then what is finished is sent. Receiving goes on while sending is blocked,
//! up to the bounds of [`admission`](super::admission). Replies go out in the order in which the
//! requests finish.
//!
//! Small write payloads are copied out of the read-ahead; the rest of a large one is received
//! straight into the memory that will be sealed. Nothing is started before its payload is complete.
//!
//! When the client is gone, reads are dropped and changes run to their end.

use std::io::IoSliceMut;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::{Sleep, sleep};

use super::Mode;
use super::admission::{Account, SharedBytes, Ticket};
use super::errno::{Refusal, errno};
use super::input::Input;
use super::reply::{Asked, Outcome, Reply, ReplyQueue};
use super::request::{Fragments, Operation, Verdict, judge, judge_filter};
use super::running::{Finished, RunningSet};
use super::stop::{Phase, PhaseWatch, StopSignal};
use super::transport::Transport;
use crate::buffers;
use crate::export::{Durability, Export, ExportError, ExportInfo};
use crate::geometry::ByteRange;
use crate::payload::Payload;
use crate::wire::Errno;
use crate::wire::transmission::Request;

/// A payload with at least so many bytes missing is received in place.
const DIRECT_RECEIVE_LEN_MIN: usize = 32 << 10;
/// Sectors received in place by one call: 512 KiB, more than a socket holds.
const DIRECT_RECEIVE_SECTORS_MAX: usize = 128;
/// How long a stopping server goes on taking in what clients had already sent.
const DRAIN_INTAKE: Duration = Duration::from_secs(1);
/// How long after that it answers `NBD_ESHUTDOWN` before it closes an idle connection.
const DRAIN_LINGER: Duration = Duration::from_millis(200);

/// How transmission ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// Every reply was sent.
    Finished,
    /// The client is gone, or the server cut the connection.
    Lost,
    /// The server cut the connection because the client was in the way of others.
    Stalled,
}

/// What a connection is for.
pub(super) struct Used<E> {
    pub(super) export: Arc<E>,
    /// What the client was told of it.
    pub(super) info: ExportInfo,
    /// What all connections of the export have under way.
    pub(super) bytes: SharedBytes,
    pub(super) on_failure: OnFailure,
}

/// A connection in transmission.
pub(super) struct Session<E, T> {
    transport: T,
    input: Input,
    export: Arc<E>,
    info: ExportInfo,
    mode: Mode,
    account: Account,
    reading: Reading,
    /// Requests that may be dropped.
    queries: RunningSet,
    /// Requests that must run to their end.
    changes: RunningSet,
    replies: ReplyQueue<Ticket>,
    phase: PhaseWatch,
    drain: Drain,
    patience: Patience,
    lost: bool,
    on_failure: OnFailure,
}

/// Told of every request that the export failed: the error value, and the reason in words.
pub type OnFailure = Arc<dyn Fn(Errno, &str) + Send + Sync>;

/// Where in the client's stream the session is.
enum Reading {
    /// At the start of a request.
    Header,
    /// Behind a header, waiting for admission.
    Admission(Request, Verdict),
    /// In a write's payload, so many bytes into it.
    Payload { asked: Asked, ticket: Ticket, payload: Payload, filled: usize, durability: Durability },
    /// In front of a block status filter of so many bytes.
    Filter { request: Request, ticket: Ticket, len: usize },
    /// In a payload that is thrown away; so many bytes are left.
    Skip { asked: Asked, ticket: Ticket, refusal: Refusal, left: u64 },
    /// No more is read.
    Over,
}

/// Where in stopping the session is.
enum Drain {
    No,
    /// Taking in what was already sent.
    Intake(Pin<Box<Sleep>>),
    /// Refusing what comes now.
    Refusing(Pin<Box<Sleep>>),
}

/// How long a client that holds shared bytes may do nothing.
struct Patience {
    deadline: Duration,
    /// When it is looked again; a timer for every request would cost more.
    end: Option<Pin<Box<Sleep>>>,
    /// Whether it has sent or taken anything since.
    moved: bool,
}

/// Why parsing stopped.
#[derive(PartialEq, Eq)]
enum Parsed {
    /// More bytes are needed.
    Hungry,
    /// Admission is needed.
    Stalled,
    /// No more is read.
    Over,
}

impl<E: Export, T: Transport> Session<E, T> {
    pub(super) fn new(
        transport: T,
        input: Input,
        used: Used<E>,
        mode: Mode,
        stall_deadline: Duration,
        stop: StopSignal,
    ) -> Self {
        let Used { export, info, bytes, on_failure } = used;
        Self {
            transport,
            input,
            export,
            info,
            mode,
            account: Account::new(bytes),
            reading: Reading::Header,
            queries: RunningSet::new(),
            changes: RunningSet::new(),
            replies: ReplyQueue::new(),
            phase: stop.watch(),
            drain: Drain::No,
            patience: Patience { deadline: stall_deadline, end: None, moved: false },
            lost: false,
            on_failure,
        }
    }

    /// Runs the session to its end; gives the transport back when it ended well.
    ///
    /// # Cancel safety
    /// Not cancel safe, see [`Export`].
    pub(super) async fn run(mut self) -> (End, Option<T>) {
        let end = std::future::poll_fn(|cx| self.poll(cx)).await;
        let Self { transport, queries, mut changes, on_failure, .. } = self;
        if end == End::Finished {
            return (end, Some(transport));
        }
        drop((transport, queries));
        while let Some(finished) = changes.next().await {
            tell(&finished, &on_failure);
        }
        (end, None)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            self.poll_stop(cx);
            let received = self.poll_input(cx);
            let finished = self.poll_running(cx);
            let sent = self.poll_output(cx);
            let progress = received || finished || sent;
            if self.is_stalled(cx, received || sent) {
                return Poll::Ready(End::Stalled);
            }
            if self.lost {
                return Poll::Ready(End::Lost);
            }
            if matches!(self.reading, Reading::Over) && self.account.requests() == 0 {
                return Poll::Ready(End::Finished);
            }
            if !progress {
                return Poll::Pending;
            }
        }
    }

    /// Whether the client has been in the way of others for too long: it holds bytes that they wait for, and there
    /// is nothing to do for it but to wait for itself.
    fn is_stalled(&mut self, cx: &mut Context<'_>, moved: bool) -> bool {
        let owes = !self.replies.is_empty() || matches!(self.reading, Reading::Payload { .. });
        if !owes || !self.account.is_sharing() {
            self.patience.end = None;
            return false;
        }
        let Patience { deadline, end, moved: moved_since } = &mut self.patience;
        *moved_since |= moved;
        let end = end.get_or_insert_with(|| Box::pin(sleep(*deadline)));
        while end.as_mut().poll(cx).is_ready() {
            if !std::mem::take(moved_since) && self.account.is_in_the_way() {
                return true;
            }
            end.set(sleep(*deadline));
        }
        false
    }

    /// Follows the server's stopping.
    fn poll_stop(&mut self, cx: &mut Context<'_>) {
        match self.phase.poll(cx) {
            Phase::Serving => return,
            Phase::Draining => {}
            Phase::Closing => self.lost = true,
        }
        if let Drain::No = self.drain {
            self.drain = Drain::Intake(Box::pin(sleep(DRAIN_INTAKE)));
        }
        if let Drain::Intake(end) = &mut self.drain
            && end.as_mut().poll(cx).is_ready()
        {
            self.refuse_from_now_on();
        }
        if let Drain::Refusing(end) = &mut self.drain
            && end.as_mut().poll(cx).is_ready()
            && self.queries.is_empty()
            && self.changes.is_empty()
            && !matches!(self.reading, Reading::Payload { .. })
        {
            self.stop_reading();
        }
    }

    fn refuse_from_now_on(&mut self) {
        self.drain = Drain::Refusing(Box::pin(sleep(DRAIN_LINGER)));
    }

    /// Ends reading; a request that is not complete was never received.
    fn stop_reading(&mut self) {
        match std::mem::replace(&mut self.reading, Reading::Over) {
            Reading::Payload { ticket, .. }
            | Reading::Filter { ticket, .. }
            | Reading::Skip { ticket, .. } => {
                self.account.release(ticket);
            }
            Reading::Header | Reading::Admission(..) | Reading::Over => {}
        }
    }

    /// Parses what is there, receives once, and parses that. Whether anything was received or begun.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> bool {
        let before = self.account.requests();
        if self.parse(cx) != Parsed::Hungry {
            return self.account.requests() != before;
        }
        match self.poll_receive(cx) {
            Poll::Pending => {
                // An empty socket, not only a task that has run long enough for now.
                if matches!(self.drain, Drain::Intake(_)) && tokio::task::coop::has_budget_remaining() {
                    self.refuse_from_now_on();
                    return true;
                }
                self.account.requests() != before
            }
            Poll::Ready(Ok(1..)) => {
                self.parse(cx);
                true
            }
            // The client will send no more; like NBD_CMD_DISC, what it asked before is finished.
            Poll::Ready(Ok(0)) => {
                self.stop_reading();
                true
            }
            Poll::Ready(Err(_)) => {
                self.lost = true;
                true
            }
        }
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        let Self { transport, input, reading, .. } = self;
        if let Reading::Payload { payload, filled, .. } = reading {
            let missing = payload_len(payload) - *filled;
            if missing >= DIRECT_RECEIVE_LEN_MIN {
                return poll_receive_direct(transport, input, payload, filled, missing, cx);
            }
        }
        let received = ready!(transport.poll_receive(cx, &mut [input.room()]))?;
        input.received(received);
        Poll::Ready(Ok(received))
    }

    /// Begins every request that is complete.
    fn parse(&mut self, cx: &mut Context<'_>) -> Parsed {
        loop {
            match std::mem::replace(&mut self.reading, Reading::Header) {
                Reading::Header => {
                    let style = self.mode.headers();
                    let Some(header) = self.input.next(style.request_len()) else { return Parsed::Hungry };
                    let Ok(request) = Request::decode(style, header) else {
                        self.reading = Reading::Over;
                        return Parsed::Over;
                    };
                    self.reading = match self.judge(&request) {
                        Verdict::Disconnect | Verdict::HangUp => Reading::Over,
                        verdict => Reading::Admission(request, verdict),
                    };
                }
                Reading::Admission(request, verdict) => {
                    let cost = match verdict {
                        Verdict::Run(operation) => operation.cost_bytes(),
                        // As much as the block status that it may become.
                        Verdict::Filter(_) => Operation::STATUS_COST_BYTES_MAX,
                        Verdict::Refuse(..) | Verdict::Disconnect | Verdict::HangUp => 0,
                    };
                    let Poll::Ready(ticket) = self.account.poll_admit(cx, cost) else {
                        self.reading = Reading::Admission(request, verdict);
                        return Parsed::Stalled;
                    };
                    self.begin(cx, request, verdict, ticket);
                }
                Reading::Payload { asked, ticket, mut payload, mut filled, durability } => {
                    for window in windows_from(&mut payload, filled) {
                        let bytes = self.input.next_up_to(window.len());
                        window[..bytes.len()].copy_from_slice(bytes);
                        filled += bytes.len();
                        if bytes.len() < window.len() {
                            break;
                        }
                    }
                    if filled < payload_len(&payload) {
                        self.reading = Reading::Payload { asked, ticket, payload, filled, durability };
                        return Parsed::Hungry;
                    }
                    self.start_write(asked, ticket, payload, durability);
                }
                Reading::Filter { request, ticket, len } => {
                    let Some(payload) = self.input.next(len) else {
                        self.reading = Reading::Filter { request, ticket, len };
                        return Parsed::Hungry;
                    };
                    let asked = asked(&request);
                    match judge_filter(&request, payload, &self.mode, &self.info) {
                        Ok(operation) => self.start(cx, asked, ticket, operation),
                        Err(refusal) => self.refuse(asked, ticket, refusal),
                    }
                }
                Reading::Skip { asked, ticket, refusal, left } => {
                    let skipped = self.input.next_up_to(usize::try_from(left).unwrap_or(usize::MAX)).len();
                    let left = left - skipped as u64;
                    if left > 0 {
                        self.reading = Reading::Skip { asked, ticket, refusal, left };
                        return Parsed::Hungry;
                    }
                    self.refuse(asked, ticket, refusal);
                }
                Reading::Over => {
                    self.reading = Reading::Over;
                    return Parsed::Over;
                }
            }
        }
    }

    fn judge(&self, request: &Request) -> Verdict {
        let verdict = judge(request, &self.mode, &self.info);
        match (&self.drain, verdict) {
            (Drain::Refusing(_), Verdict::Run(Operation::Write(range, _))) => {
                Verdict::Refuse(Refusal::ShuttingDown, range.len())
            }
            (Drain::Refusing(_), Verdict::Run(_)) => Verdict::Refuse(Refusal::ShuttingDown, 0),
            (Drain::Refusing(_), Verdict::Filter(len)) => Verdict::Refuse(Refusal::ShuttingDown, len as u64),
            _ => verdict,
        }
    }

    fn begin(&mut self, cx: &mut Context<'_>, request: Request, verdict: Verdict, ticket: Ticket) {
        let asked = asked(&request);
        match verdict {
            Verdict::Run(Operation::Write(range, durability)) => {
                let payload = Payload::unfilled(range);
                self.reading = Reading::Payload { asked, ticket, payload, filled: 0, durability };
            }
            Verdict::Run(operation) => self.start(cx, asked, ticket, operation),
            Verdict::Filter(len) => self.reading = Reading::Filter { request, ticket, len },
            Verdict::Refuse(refusal, left) => {
                self.reading = Reading::Skip { asked, ticket, refusal, left };
            }
            Verdict::Disconnect | Verdict::HangUp => unreachable!("never admitted"),
        }
    }

    fn refuse(&mut self, asked: Asked, ticket: Ticket, refusal: Refusal) {
        let outcome = Outcome::Failed(refusal.errno(), refusal.to_string());
        self.replies.push(Reply::new(asked, &self.mode, outcome), ticket);
    }

    fn start_write(&mut self, asked: Asked, ticket: Ticket, payload: Payload, durability: Durability) {
        let export = Arc::clone(&self.export);
        let bytes = u32::try_from(payload.range().len()).unwrap_or(u32::MAX);
        let work = async move { done(export.write(payload, durability).await) };
        self.changes.push(asked, ticket, bytes, work);
    }

    fn start(&mut self, cx: &mut Context<'_>, asked: Asked, ticket: Ticket, operation: Operation) {
        let export = Arc::clone(&self.export);
        let cost = operation.cost_bytes();
        if let Operation::Read(range, fragments) = operation {
            let data = self.replies.buffer(usize::try_from(range.len()).expect("at most PAYLOAD_LEN_MAX"));
            // By itself: a future that can do everything would be three times as long, and is moved.
            let work = async move { read(&*export, range, fragments, data).await };
            if let Some(finished) = self.queries.begin(cx, asked, ticket, cost, work) {
                answer(finished, &self.on_failure, &self.mode, &mut self.replies);
            }
            return;
        }
        let must_finish = operation.must_finish();
        let work = async move { perform(&*export, operation).await };
        if must_finish {
            self.changes.push(asked, ticket, cost, work);
        } else if let Some(finished) = self.queries.begin(cx, asked, ticket, cost, work) {
            answer(finished, &self.on_failure, &self.mode, &mut self.replies);
        }
    }

    /// Lets what was started run; whether anything finished.
    fn poll_running(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        for running in [&mut self.changes, &mut self.queries] {
            while let Poll::Ready(finished) = running.poll_next(cx) {
                answer(finished, &self.on_failure, &self.mode, &mut self.replies);
                progress = true;
            }
        }
        progress
    }

    /// Sends what is finished; whether the socket took anything.
    fn poll_output(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while !self.lost && !self.replies.is_empty() {
            let sent = {
                let slices = self.replies.slices();
                match self.transport.poll_send(cx, &slices) {
                    Poll::Pending => break,
                    Poll::Ready(sent) => sent,
                }
            };
            progress = true;
            match sent {
                Ok(1..) => {
                    let len = sent.unwrap_or_default();
                    self.replies.advance(len, |ticket| self.account.release(ticket));
                }
                Ok(0) | Err(_) => self.lost = true,
            }
        }
        progress
    }
}

fn answer(finished: Finished, on_failure: &OnFailure, mode: &Mode, replies: &mut ReplyQueue<Ticket>) {
    tell(&finished, on_failure);
    let Finished { asked, ticket, outcome } = finished;
    replies.push(Reply::new(asked, mode, outcome), ticket);
}

fn tell(finished: &Finished, on_failure: &OnFailure) {
    if let Outcome::Failed(error, text) = &finished.outcome {
        on_failure(*error, text);
    }
}

fn asked(request: &Request) -> Asked {
    Asked { cookie: request.cookie, offset: request.offset }
}

fn payload_len(payload: &Payload) -> usize {
    usize::try_from(payload.range().len()).expect("at most PAYLOAD_LEN_MAX")
}

/// Receives into a payload, and what follows it into the read-ahead, which is empty.
fn poll_receive_direct(
    transport: &mut impl Transport,
    input: &mut Input,
    payload: &mut Payload,
    filled: &mut usize,
    missing: usize,
    cx: &mut Context<'_>,
) -> Poll<std::io::Result<usize>> {
    debug_assert!(input.unparsed().is_empty(), "parsing took what there was");
    let mut bufs = Vec::with_capacity(DIRECT_RECEIVE_SECTORS_MAX + 1);
    let mut direct_len = 0;
    for window in windows_from(payload, *filled).take(DIRECT_RECEIVE_SECTORS_MAX) {
        direct_len += window.len();
        bufs.push(IoSliceMut::new(window));
    }
    if direct_len == missing {
        bufs.push(input.room());
    }
    let received = ready!(transport.poll_receive(cx, &mut bufs))?;
    drop(bufs);
    *filled += received.min(direct_len);
    input.received(received.saturating_sub(direct_len));
    Poll::Ready(Ok(received))
}

/// The places of a payload's bytes from `filled` on.
fn windows_from(payload: &mut Payload, filled: usize) -> impl Iterator<Item = &mut [u8]> {
    let mut skip = filled;
    payload.windows_mut().filter_map(move |window| {
        let skipped = skip.min(window.len());
        skip -= skipped;
        (skipped < window.len()).then(|| &mut window[skipped..])
    })
}

async fn perform<E: Export>(export: &E, operation: Operation) -> Outcome {
    match operation {
        Operation::Read(..) | Operation::Write(..) => unreachable!("both start with a buffer"),
        Operation::Flush => done(export.flush().await),
        Operation::Trim(range, durability) => done(export.trim(range, durability).await),
        Operation::WriteZeroes(range, mode, durability) => {
            done(export.write_zeroes(range, mode, durability).await)
        }
        Operation::Cache(range) => done(export.cache(range).await),
        Operation::BlockStatus(range, extents_max) => match export.block_status(range, extents_max).await {
            Ok(extents) => Outcome::Status(extents),
            Err(error) => failed(&error),
        },
    }
}

/// Reads into `data`, which has the length of the range and any content.
async fn read<E: Export>(export: &E, range: ByteRange, fragments: Fragments, mut data: BytesMut) -> Outcome {
    match export.read(range, &mut data).await {
        Ok(holes) => Outcome::Data { range, data, holes, fragments },
        Err(error) => {
            buffers::give(data);
            failed(&error)
        }
    }
}

fn done(result: Result<(), ExportError>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(error) => failed(&error),
    }
}

fn failed(error: &ExportError) -> Outcome {
    Outcome::Failed(errno(error), error.to_string())
}
