//! The handshake without I/O: fixed newstyle negotiation, bytes in, bytes and steps out.
//!
//! [`Handshake::receive`] is given what has been received so far and answers at most one message
//! of it; the caller sends what was put out before it calls again, so that a client that does not
//! read its answers stops being answered. Nothing is kept of a message that is not complete. An
//! option's payload is looked at only when it is whole and at most [`OPTION_LEN_MAX`] long; longer
//! ones are skipped in a stream.
//!
//! There is no TLS: `NBD_OPT_STARTTLS` is refused with `NBD_REP_ERR_POLICY`.

use super::contexts::{self, Purpose};
use super::{BLOCK_SIZES, Mode, ReplyStyle};
use crate::export::ExportInfo;
use crate::wire::TransmissionFlags;
use crate::wire::option::{
    CLIENT_FLAGS_LEN, ClientFlags, EXPORT_NAME_PADDING_LEN, ExportNameReply, HandshakeFlags, Hello, Info,
    InfoKind, InfoQuery, ListedExport, MetaContext, MetaContextQuery, OPTION_REQUEST_LEN, OptionKind,
    OptionReply, OptionReplyKind, OptionRequest, export_name,
};
use crate::wire::transmission::HeaderStyle;
use crate::wire::{STRING_LEN_MAX, text};

/// Longest option payload that is looked at, in bytes: a name, and metadata queries by the dozen.
pub const OPTION_LEN_MAX: u32 = 64 << 10;
/// Longest option payload that is skipped instead of hung up on, in bytes; as far as qemu goes.
pub const OPTION_SKIP_MAX: u32 = 32 << 20;
/// Options a client may send apart from those about single exports. libnbd needs at most six.
pub const OPTIONS_MAX: usize = 64;
/// Options a client may send in addition for each export on offer (`nbdinfo --list` asks for
/// information and contexts of every one).
pub const OPTIONS_PER_EXPORT_MAX: usize = 8;

/// An export that clients may choose.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    name: String,
    info: ExportInfo,
}

impl Offer {
    /// An export under a name. A description that the protocol cannot carry is cut off.
    #[must_use]
    pub fn new(name: &str, mut info: ExportInfo) -> Self {
        info.description.truncate(info.description.floor_char_boundary(STRING_LEN_MAX));
        if text(info.description.as_bytes()).is_err() {
            info.description.clear();
        }
        Self { name: name.to_owned(), info }
    }
}

/// What is to be done after a call of [`Handshake::receive`], once its output is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Receive more.
    Receive,
    /// Call again: there may be more in what was received.
    Again,
    /// Close the connection.
    Close,
    /// Enter transmission; what was not consumed belongs to it.
    Transmit(Mode),
}

/// The server's side of one negotiation.
pub struct Handshake {
    offers: Vec<Offer>,
    state: State,
    client: ClientFlags,
    options_seen: usize,
    replies: ReplyStyle,
    /// Index of the export for which `base:allocation` is selected.
    allocation_of: Option<usize>,
    shutting_down: bool,
    aborted: bool,
}

#[derive(Clone, Copy)]
enum State {
    ClientFlags,
    Option,
    /// So many bytes of the payload are still to be skipped.
    Skip(OptionKind, u32),
}

impl Handshake {
    /// The start of a negotiation about `offers`.
    #[must_use]
    pub fn new(offers: Vec<Offer>) -> Self {
        Self {
            offers,
            state: State::ClientFlags,
            client: ClientFlags::NONE,
            options_seen: 0,
            replies: ReplyStyle::Simple,
            allocation_of: None,
            shutting_down: false,
            aborted: false,
        }
    }

    /// Appends what the server says first.
    pub fn hello(&self, out: &mut Vec<u8>) {
        let flags = HandshakeFlags::FIXED_NEWSTYLE.with(HandshakeFlags::NO_ZEROES);
        Hello { flags }.encode(out);
    }

    /// From now on every option but `NBD_OPT_ABORT` is answered with `NBD_REP_ERR_SHUTDOWN`.
    pub fn shut_down(&mut self) {
        self.shutting_down = true;
    }

    /// Whether the client ended it with `NBD_OPT_ABORT`.
    #[must_use]
    pub fn was_aborted(&self) -> bool {
        self.aborted
    }

    /// Takes at most one message from the start of `input` and appends the answer to `out`.
    /// Returns how many bytes of `input` are done with, and what to do next.
    pub fn receive(&mut self, input: &[u8], out: &mut Vec<u8>) -> (usize, Step) {
        match self.state {
            State::ClientFlags => self.client_flags(input),
            State::Option => self.option(input, out),
            State::Skip(option, left) => self.skip(option, left, input, out),
        }
    }

    fn client_flags(&mut self, input: &[u8]) -> (usize, Step) {
        let Some(bytes) = input.get(..CLIENT_FLAGS_LEN) else { return (0, Step::Receive) };
        let known = ClientFlags::FIXED_NEWSTYLE.with(ClientFlags::NO_ZEROES);
        match ClientFlags::decode(bytes) {
            Ok(flags) if flags.only(known) => {
                self.client = flags;
                self.state = State::Option;
                (CLIENT_FLAGS_LEN, Step::Again)
            }
            _ => (CLIENT_FLAGS_LEN, Step::Close),
        }
    }

    fn option(&mut self, input: &[u8], out: &mut Vec<u8>) -> (usize, Step) {
        let Some(header) = input.get(..OPTION_REQUEST_LEN) else { return (0, Step::Receive) };
        let Ok(OptionRequest { option, len }) = OptionRequest::decode(header) else {
            return (OPTION_REQUEST_LEN, Step::Close);
        };
        if !self.may_go_on(option, len) {
            return (OPTION_REQUEST_LEN, Step::Close);
        }
        if len > OPTION_LEN_MAX {
            self.options_seen += 1;
            self.state = State::Skip(option, len);
            return (OPTION_REQUEST_LEN, Step::Again);
        }
        let end = OPTION_REQUEST_LEN + len as usize;
        let Some(payload) = input.get(OPTION_REQUEST_LEN..end) else { return (0, Step::Receive) };
        self.options_seen += 1;
        (end, self.answer(option, payload, out))
    }

    /// Whether an option with this header is worth waiting for.
    fn may_go_on(&self, option: OptionKind, len: u32) -> bool {
        let options_max = OPTIONS_MAX + OPTIONS_PER_EXPORT_MAX * self.offers.len();
        let understood =
            option == OptionKind::EXPORT_NAME || self.client.contains(ClientFlags::FIXED_NEWSTYLE);
        let name_too_long = option == OptionKind::EXPORT_NAME && len as usize > STRING_LEN_MAX;
        self.options_seen < options_max && understood && !name_too_long && len <= OPTION_SKIP_MAX
    }

    fn skip(&mut self, option: OptionKind, left: u32, input: &[u8], out: &mut Vec<u8>) -> (usize, Step) {
        let now = u32::try_from(input.len()).map_or(left, |len| len.min(left));
        if now < left {
            self.state = State::Skip(option, left - now);
            return (now as usize, Step::Receive);
        }
        self.state = State::Option;
        let step = match option {
            OptionKind::ABORT => self.abort(out),
            _ if self.shutting_down => reply(option, OptionReplyKind::ERR_SHUTDOWN, STOPPING, out),
            // Replaced even by a failure (proto.md, NBD_OPT_SET_META_CONTEXT).
            OptionKind::SET_META_CONTEXT => {
                self.allocation_of = None;
                reply(option, OptionReplyKind::ERR_TOO_BIG, "option too long", out)
            }
            OptionKind::INFO | OptionKind::GO | OptionKind::LIST_META_CONTEXT => {
                reply(option, OptionReplyKind::ERR_TOO_BIG, "option too long", out)
            }
            OptionKind::LIST | OptionKind::STRUCTURED_REPLY | OptionKind::EXTENDED_HEADERS => {
                reply(option, OptionReplyKind::ERR_INVALID, TAKES_NO_DATA, out)
            }
            OptionKind::STARTTLS => reply(option, OptionReplyKind::ERR_POLICY, NO_TLS, out),
            _ => reply(option, OptionReplyKind::ERR_UNSUP, "unknown option", out),
        };
        (now as usize, step)
    }

    fn answer(&mut self, option: OptionKind, payload: &[u8], out: &mut Vec<u8>) -> Step {
        if option == OptionKind::ABORT {
            return self.abort(out);
        }
        if self.shutting_down {
            return match option {
                OptionKind::EXPORT_NAME => Step::Close,
                _ => reply(option, OptionReplyKind::ERR_SHUTDOWN, STOPPING, out),
            };
        }
        match option {
            OptionKind::EXPORT_NAME => self.export_name(payload, out),
            OptionKind::LIST => self.list(payload, out),
            OptionKind::STARTTLS => reply(option, OptionReplyKind::ERR_POLICY, NO_TLS, out),
            OptionKind::INFO | OptionKind::GO => self.info(option, payload, out),
            OptionKind::STRUCTURED_REPLY => self.structured_reply(payload, out),
            OptionKind::EXTENDED_HEADERS => self.extended_headers(payload, out),
            OptionKind::LIST_META_CONTEXT => self.meta_context(option, Purpose::List, payload, out),
            OptionKind::SET_META_CONTEXT => self.meta_context(option, Purpose::Set, payload, out),
            _ => reply(option, OptionReplyKind::ERR_UNSUP, "unknown option", out),
        }
    }

    fn abort(&mut self, out: &mut Vec<u8>) -> Step {
        self.aborted = true;
        let _ = reply(OptionKind::ABORT, OptionReplyKind::ACK, "", out);
        Step::Close
    }

    /// The only option without an error reply: whatever is wrong closes the connection.
    fn export_name(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Step {
        if self.replies == ReplyStyle::Structured(HeaderStyle::Extended) {
            return Step::Close;
        }
        let Some(index) = export_name(payload).ok().and_then(|name| self.find(name)) else {
            return Step::Close;
        };
        let size = self.offers[index].info.size;
        ExportNameReply { size, flags: self.transmission_flags(index) }.encode(out);
        if !self.client.contains(ClientFlags::NO_ZEROES) {
            out.extend_from_slice(&[0; EXPORT_NAME_PADDING_LEN]);
        }
        Step::Transmit(self.mode(index))
    }

    fn list(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Step {
        let option = OptionKind::LIST;
        if !payload.is_empty() {
            return reply(option, OptionReplyKind::ERR_INVALID, TAKES_NO_DATA, out);
        }
        for Offer { name, info } in &self.offers {
            let mut listed = Vec::new();
            ListedExport { name, description: &info.description }.encode(&mut listed);
            OptionReply::encode(option, OptionReplyKind::SERVER, &listed, out);
        }
        reply(option, OptionReplyKind::ACK, "", out)
    }

    fn info(&mut self, option: OptionKind, payload: &[u8], out: &mut Vec<u8>) -> Step {
        let Ok(InfoQuery { name, infos }) = InfoQuery::decode(payload) else {
            return reply(option, OptionReplyKind::ERR_INVALID, "malformed request", out);
        };
        let Some(index) = self.find(name) else {
            return reply(option, OptionReplyKind::ERR_UNKNOWN, NO_SUCH_EXPORT, out);
        };
        let Offer { name, info } = &self.offers[index];
        let put = |info: Info<'_>, out: &mut Vec<u8>| {
            let mut encoded = Vec::new();
            info.encode(&mut encoded);
            OptionReply::encode(option, OptionReplyKind::INFO, &encoded, out);
        };
        put(Info::Export { size: info.size, flags: self.transmission_flags(index) }, out);
        put(Info::BlockSize(BLOCK_SIZES), out);
        if infos.contains(&InfoKind::NAME) {
            put(Info::Name(name), out);
        }
        if infos.contains(&InfoKind::DESCRIPTION) {
            put(Info::Description(&info.description), out);
        }
        let step = reply(option, OptionReplyKind::ACK, "", out);
        if option == OptionKind::GO { Step::Transmit(self.mode(index)) } else { step }
    }

    fn structured_reply(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Step {
        let option = OptionKind::STRUCTURED_REPLY;
        if !payload.is_empty() {
            return reply(option, OptionReplyKind::ERR_INVALID, TAKES_NO_DATA, out);
        }
        match self.replies {
            ReplyStyle::Simple => {
                self.replies = ReplyStyle::Structured(HeaderStyle::Compact);
                reply(option, OptionReplyKind::ACK, "", out)
            }
            ReplyStyle::Structured(HeaderStyle::Compact) => {
                reply(option, OptionReplyKind::ERR_INVALID, "already negotiated", out)
            }
            ReplyStyle::Structured(HeaderStyle::Extended) => {
                reply(option, OptionReplyKind::ERR_EXT_HEADER_REQD, "extended headers take precedence", out)
            }
        }
    }

    fn extended_headers(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Step {
        let option = OptionKind::EXTENDED_HEADERS;
        if !payload.is_empty() {
            return reply(option, OptionReplyKind::ERR_INVALID, TAKES_NO_DATA, out);
        }
        if self.replies == ReplyStyle::Structured(HeaderStyle::Extended) {
            return reply(option, OptionReplyKind::ERR_INVALID, "already negotiated", out);
        }
        self.replies = ReplyStyle::Structured(HeaderStyle::Extended);
        reply(option, OptionReplyKind::ACK, "", out)
    }

    fn meta_context(
        &mut self,
        option: OptionKind,
        purpose: Purpose,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Step {
        if purpose == Purpose::Set {
            // Replaced even by a failure (proto.md, NBD_OPT_SET_META_CONTEXT).
            self.allocation_of = None;
            if self.replies == ReplyStyle::Simple {
                return reply(option, OptionReplyKind::ERR_INVALID, "needs structured replies", out);
            }
        }
        let Ok(MetaContextQuery { name, queries }) = MetaContextQuery::decode(payload) else {
            return reply(option, OptionReplyKind::ERR_INVALID, "malformed request", out);
        };
        let Some(index) = self.find(name) else {
            return reply(option, OptionReplyKind::ERR_UNKNOWN, NO_SUCH_EXPORT, out);
        };
        let Some(named) = contexts::names_allocation(&queries, purpose) else {
            return reply(option, OptionReplyKind::ERR_INVALID, "query without a namespace", out);
        };
        if named {
            let id = match purpose {
                Purpose::List => 0,
                Purpose::Set => {
                    self.allocation_of = Some(index);
                    contexts::ALLOCATION_ID
                }
            };
            let mut context = Vec::new();
            MetaContext { id, name: contexts::ALLOCATION }.encode(&mut context);
            OptionReply::encode(option, OptionReplyKind::META_CONTEXT, &context, out);
        }
        reply(option, OptionReplyKind::ACK, "", out)
    }

    /// The export of that name; the empty name is the only export there is.
    fn find(&self, name: &str) -> Option<usize> {
        let exact = self.offers.iter().position(|offer| offer.name == name);
        exact.or_else(|| (name.is_empty() && self.offers.len() == 1).then_some(0))
    }

    fn mode(&self, export: usize) -> Mode {
        // Contexts of another export are of no use here (proto.md, NBD_CMD_BLOCK_STATUS).
        let selected = self.allocation_of == Some(export);
        let allocation_context = selected.then_some(contexts::ALLOCATION_ID);
        Mode { export, replies: self.replies, allocation_context }
    }

    fn transmission_flags(&self, export: usize) -> TransmissionFlags {
        let mut flags = TransmissionFlags::HAS_FLAGS
            .with(TransmissionFlags::SEND_FLUSH)
            .with(TransmissionFlags::SEND_FUA)
            .with(TransmissionFlags::SEND_CACHE)
            .with(TransmissionFlags::CAN_MULTI_CONN);
        if self.offers[export].info.read_only {
            flags = flags.with(TransmissionFlags::READ_ONLY);
        } else {
            flags = flags
                .with(TransmissionFlags::SEND_TRIM)
                .with(TransmissionFlags::SEND_WRITE_ZEROES)
                .with(TransmissionFlags::SEND_FAST_ZERO);
        }
        if self.replies != ReplyStyle::Simple {
            flags = flags.with(TransmissionFlags::SEND_DF);
        }
        let extended = self.replies == ReplyStyle::Structured(HeaderStyle::Extended);
        if extended && self.allocation_of == Some(export) {
            flags = flags.with(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
        }
        flags
    }
}

const STOPPING: &str = "the server is shutting down";
const TAKES_NO_DATA: &str = "the option takes no data";
const NO_TLS: &str = "this server has no TLS";
const NO_SUCH_EXPORT: &str = "no such export";

/// Appends the last reply to an option; `text` is for people and only goes with errors.
fn reply(option: OptionKind, kind: OptionReplyKind, text: &str, out: &mut Vec<u8>) -> Step {
    OptionReply::encode(option, kind, text.as_bytes(), out);
    Step::Again
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn offers() -> Vec<Offer> {
        let info = |size| ExportInfo { size, read_only: false, description: "a disk".into() };
        vec![Offer::new("one", info(1 << 20)), Offer::new("two", info(2 << 20))]
    }

    /// Feeds everything, in pieces of `piece` bytes, and returns the output and the last step.
    fn run(input: &[u8], piece: usize) -> (Vec<u8>, Step) {
        let mut handshake = Handshake::new(offers());
        let mut out = Vec::new();
        let mut pending: Vec<u8> = Vec::new();
        let mut last = Step::Receive;
        for part in input.chunks(piece.max(1)) {
            pending.extend_from_slice(part);
            loop {
                let (used, step) = handshake.receive(&pending, &mut out);
                pending.drain(..used);
                last = step;
                match step {
                    Step::Again => {}
                    Step::Receive => break,
                    Step::Close | Step::Transmit(_) => return (out, step),
                }
            }
        }
        (out, last)
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_give_the_same_output(
            script in proptest::collection::vec((0u32..13, proptest::collection::vec(any::<u8>(), 0..40)), 0..6),
            tail in proptest::collection::vec(any::<u8>(), 0..40),
            piece in 1usize..50,
        ) {
            let mut input = 1u32.to_be_bytes().to_vec();
            for (option, payload) in script {
                OptionRequest::encode(OptionKind(option), &payload, &mut input);
            }
            input.extend(tail);
            prop_assert_eq!(run(&input, piece), run(&input, input.len()));
        }
    }

    #[test]
    fn an_option_longer_than_is_kept_is_skipped_and_the_next_one_answered() {
        let mut input = 3u32.to_be_bytes().to_vec();
        OptionRequest::encode(OptionKind(77), &vec![7; 1 << 20], &mut input);
        OptionRequest::encode(OptionKind::GO, &vec![0; 1 << 17], &mut input);
        OptionRequest::encode(OptionKind::STRUCTURED_REPLY, &[], &mut input);
        let (out, step) = run(&input, 60_000);
        assert_eq!(step, Step::Receive);
        let mut expected = Vec::new();
        let _ = reply(OptionKind(77), OptionReplyKind::ERR_UNSUP, "unknown option", &mut expected);
        let _ = reply(OptionKind::GO, OptionReplyKind::ERR_TOO_BIG, "option too long", &mut expected);
        let _ = reply(OptionKind::STRUCTURED_REPLY, OptionReplyKind::ACK, "", &mut expected);
        assert_eq!(out, expected);
    }
}
