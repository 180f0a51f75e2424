//! The handshake as bytes: the server's hello, the client's flags, option requests and replies,
//! and the payloads of both (proto.md "Handshake phase", fixed newstyle).

use super::{
    Fields, TransmissionFlags, WireError, flags, numbers, put_string, put_u16, put_u32, put_u64, text,
};

/// `NBDMAGIC`: the first eight bytes a server sends.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: the next eight, and the start of every option request.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Start of every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Bytes of [`Hello`].
pub const HELLO_LEN: usize = 18;
/// Bytes of the client's flags.
pub const CLIENT_FLAGS_LEN: usize = 4;
/// Bytes of [`OptionRequest`].
pub const OPTION_REQUEST_LEN: usize = 16;
/// Bytes of [`OptionReply`].
pub const OPTION_REPLY_LEN: usize = 20;
/// Bytes of [`ExportNameReply`] without padding.
pub const EXPORT_NAME_REPLY_LEN: usize = 10;
/// Zeroes behind [`ExportNameReply`] unless both sides said `NO_ZEROES`.
pub const EXPORT_NAME_PADDING_LEN: usize = 124;

flags! {
    /// Handshake flags of the server.
    HandshakeFlags: u16 {
        /// Fixed newstyle negotiation.
        FIXED_NEWSTYLE = 0,
        /// No padding behind the reply to `NBD_OPT_EXPORT_NAME`.
        NO_ZEROES = 1,
    }
}

flags! {
    /// Flags of the client.
    ClientFlags: u32 {
        /// Fixed newstyle negotiation.
        FIXED_NEWSTYLE = 0,
        /// No padding behind the reply to `NBD_OPT_EXPORT_NAME`.
        NO_ZEROES = 1,
    }
}

numbers! {
    /// Kind of an option request (`NBD_OPT_*`).
    OptionKind: u32 {
        /// Picks an export and enters transmission, without any error reply.
        EXPORT_NAME = 1,
        /// Ends the connection.
        ABORT = 2,
        /// Lists exports.
        LIST = 3,
        /// Upgrades to TLS.
        STARTTLS = 5,
        /// Asks about an export.
        INFO = 6,
        /// Asks about an export and enters transmission.
        GO = 7,
        /// Negotiates structured replies.
        STRUCTURED_REPLY = 8,
        /// Lists metadata contexts.
        LIST_META_CONTEXT = 9,
        /// Selects metadata contexts.
        SET_META_CONTEXT = 10,
        /// Negotiates extended headers.
        EXTENDED_HEADERS = 11,
    }
}

numbers! {
    /// Kind of an option reply (`NBD_REP_*`).
    OptionReplyKind: u32 {
        /// Done.
        ACK = 1,
        /// Describes an export.
        SERVER = 2,
        /// A piece of information about an export.
        INFO = 3,
        /// A metadata context.
        META_CONTEXT = 4,
        /// Option unknown.
        ERR_UNSUP = 0x8000_0001,
        /// Forbidden by the server's policy.
        ERR_POLICY = 0x8000_0002,
        /// Malformed, or not allowed now.
        ERR_INVALID = 0x8000_0003,
        /// Not supported on this platform.
        ERR_PLATFORM = 0x8000_0004,
        /// Not before TLS.
        ERR_TLS_REQD = 0x8000_0005,
        /// No such export.
        ERR_UNKNOWN = 0x8000_0006,
        /// The server is shutting down.
        ERR_SHUTDOWN = 0x8000_0007,
        /// The client must ask for block sizes.
        ERR_BLOCK_SIZE_REQD = 0x8000_0008,
        /// Too much to work on.
        ERR_TOO_BIG = 0x8000_0009,
        /// Not before extended headers.
        ERR_EXT_HEADER_REQD = 0x8000_000a,
    }
}

impl OptionReplyKind {
    /// Whether the reply refuses the option.
    #[must_use]
    pub fn is_error(self) -> bool {
        self.0 & 0x8000_0000 != 0
    }
}

numbers! {
    /// Kind of information about an export (`NBD_INFO_*`).
    InfoKind: u16 {
        /// Size and transmission flags.
        EXPORT = 0,
        /// Canonical name.
        NAME = 1,
        /// Description.
        DESCRIPTION = 2,
        /// Block sizes.
        BLOCK_SIZE = 3,
    }
}

/// The first message of a connection, from the server: magics and flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// What the server can do.
    pub flags: HandshakeFlags,
}

impl Hello {
    /// Appends the message.
    pub fn encode(self, out: &mut Vec<u8>) {
        put_u64(out, INIT_MAGIC);
        put_u64(out, OPTION_MAGIC);
        put_u16(out, self.flags.0);
    }

    /// Reads the message.
    ///
    /// # Errors
    /// [`WireError::Magic`] also for an oldstyle server.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields(bytes);
        fields.magic_u64(INIT_MAGIC)?;
        fields.magic_u64(OPTION_MAGIC)?;
        let flags = HandshakeFlags(fields.u16()?);
        fields.end()?;
        Ok(Self { flags })
    }
}

impl ClientFlags {
    /// Appends the message.
    pub fn encode(self, out: &mut Vec<u8>) {
        put_u32(out, self.0);
    }

    /// Reads the message.
    ///
    /// # Errors
    /// [`WireError::Short`], [`WireError::Trailing`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields(bytes);
        let flags = Self(fields.u32()?);
        fields.end()?;
        Ok(flags)
    }
}

/// Header of an option request; `len` bytes of payload follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionRequest {
    /// What is asked.
    pub option: OptionKind,
    /// Bytes that follow.
    pub len: u32,
}

impl OptionRequest {
    /// Appends the header and its payload.
    ///
    /// # Panics
    /// When the payload is 4 GiB or longer.
    pub fn encode(option: OptionKind, payload: &[u8], out: &mut Vec<u8>) {
        put_u64(out, OPTION_MAGIC);
        put_u32(out, option.0);
        put_u32(out, u32::try_from(payload.len()).expect("option payloads are small"));
        out.extend_from_slice(payload);
    }

    /// Reads the header.
    ///
    /// # Errors
    /// [`WireError::Magic`], and the lengths' errors.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields(bytes);
        fields.magic_u64(OPTION_MAGIC)?;
        let option = OptionKind(fields.u32()?);
        let len = fields.u32()?;
        fields.end()?;
        Ok(Self { option, len })
    }
}

/// Header of an option reply; `len` bytes of payload follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionReply {
    /// The option that is answered.
    pub option: OptionKind,
    /// The answer.
    pub kind: OptionReplyKind,
    /// Bytes that follow.
    pub len: u32,
}

impl OptionReply {
    /// Appends the header and its payload.
    ///
    /// # Panics
    /// When the payload is 4 GiB or longer.
    pub fn encode(option: OptionKind, kind: OptionReplyKind, payload: &[u8], out: &mut Vec<u8>) {
        put_u64(out, OPTION_REPLY_MAGIC);
        put_u32(out, option.0);
        put_u32(out, kind.0);
        put_u32(out, u32::try_from(payload.len()).expect("option payloads are small"));
        out.extend_from_slice(payload);
    }

    /// Reads the header.
    ///
    /// # Errors
    /// [`WireError::Magic`], and the lengths' errors.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields(bytes);
        fields.magic_u64(OPTION_REPLY_MAGIC)?;
        let option = OptionKind(fields.u32()?);
        let kind = OptionReplyKind(fields.u32()?);
        let len = fields.u32()?;
        fields.end()?;
        Ok(Self { option, kind, len })
    }
}

/// The answer to `NBD_OPT_EXPORT_NAME`, without padding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExportNameReply {
    /// Bytes of the export.
    pub size: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
}

impl ExportNameReply {
    /// Appends the message.
    pub fn encode(self, out: &mut Vec<u8>) {
        put_u64(out, self.size);
        put_u16(out, self.flags.0);
    }

    /// Reads the message.
    ///
    /// # Errors
    /// [`WireError::Short`], [`WireError::Trailing`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields(bytes);
        let size = fields.u64()?;
        let flags = TransmissionFlags(fields.u16()?);
        fields.end()?;
        Ok(Self { size, flags })
    }
}

/// Payload of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InfoQuery<'a> {
    /// Name of the export; empty for the default one.
    pub name: &'a str,
    /// What is asked for; may repeat and hold unknown kinds.
    pub infos: Vec<InfoKind>,
}

impl<'a> InfoQuery<'a> {
    /// Appends the payload.
    ///
    /// # Panics
    /// When there are more than 65535 kinds.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_string(out, self.name);
        put_u16(out, u16::try_from(self.infos.len()).expect("a handful of kinds"));
        for info in &self.infos {
            put_u16(out, info.0);
        }
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// Every [`WireError`] but `Magic`.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut fields = Fields(bytes);
        let name = fields.string()?;
        let count = usize::from(fields.u16()?);
        if fields.0.len() < 2 * count {
            return Err(WireError::Short);
        }
        let infos = (0..count).map(|_| fields.u16().map(InfoKind)).collect::<Result<_, _>>()?;
        fields.end()?;
        Ok(Self { name, infos })
    }
}

/// Payload of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MetaContextQuery<'a> {
    /// Name of the export.
    pub name: &'a str,
    /// Contexts asked for, such as `base:allocation`.
    pub queries: Vec<&'a str>,
}

impl<'a> MetaContextQuery<'a> {
    /// Appends the payload.
    ///
    /// # Panics
    /// When there are 2³² queries.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_string(out, self.name);
        put_u32(out, u32::try_from(self.queries.len()).expect("a handful of queries"));
        for query in &self.queries {
            put_string(out, query);
        }
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// Every [`WireError`] but `Magic`.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut fields = Fields(bytes);
        let name = fields.string()?;
        let count = fields.u32()? as usize;
        // A query is at least its length field.
        if fields.0.len() / 4 < count {
            return Err(WireError::Short);
        }
        let queries = (0..count).map(|_| fields.string()).collect::<Result<_, _>>()?;
        fields.end()?;
        Ok(Self { name, queries })
    }
}

/// Payload of `NBD_REP_META_CONTEXT`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MetaContext<'a> {
    /// Number by which block status names the context.
    pub id: u32,
    /// Its name.
    pub name: &'a str,
}

impl<'a> MetaContext<'a> {
    /// Appends the payload.
    pub fn encode(self, out: &mut Vec<u8>) {
        put_u32(out, self.id);
        out.extend_from_slice(self.name.as_bytes());
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// Every [`WireError`] but `Magic`.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut fields = Fields(bytes);
        let id = fields.u32()?;
        let name = fields.rest_as_string()?;
        Ok(Self { id, name })
    }
}

/// Payload of `NBD_REP_SERVER`: one export of a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListedExport<'a> {
    /// Its name.
    pub name: &'a str,
    /// Text for people; may be empty.
    pub description: &'a str,
}

impl<'a> ListedExport<'a> {
    /// Appends the payload.
    pub fn encode(self, out: &mut Vec<u8>) {
        put_string(out, self.name);
        out.extend_from_slice(self.description.as_bytes());
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// Every [`WireError`] but `Magic`.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut fields = Fields(bytes);
        let name = fields.string()?;
        let description = fields.rest_as_string()?;
        Ok(Self { name, description })
    }
}

/// The three block sizes of an export, in bytes (proto.md "Block size constraints").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockSizes {
    /// Requests are multiples of this; a power of two, at most 64 KiB.
    pub minimum: u32,
    /// Requests are fastest as multiples of this.
    pub preferred: u32,
    /// Longest payload of one request.
    pub maximum: u32,
}

/// Payload of `NBD_REP_INFO`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Info<'a> {
    /// `NBD_INFO_EXPORT`.
    Export {
        /// Bytes of the export.
        size: u64,
        /// What it can do.
        flags: TransmissionFlags,
    },
    /// `NBD_INFO_NAME`.
    Name(&'a str),
    /// `NBD_INFO_DESCRIPTION`.
    Description(&'a str),
    /// `NBD_INFO_BLOCK_SIZE`.
    BlockSize(BlockSizes),
    /// A kind that this version does not know; to be ignored.
    Unknown(InfoKind),
}

impl<'a> Info<'a> {
    /// Appends the payload. [`Info::Unknown`] becomes its bare number.
    pub fn encode(self, out: &mut Vec<u8>) {
        match self {
            Self::Export { size, flags } => {
                put_u16(out, InfoKind::EXPORT.0);
                put_u64(out, size);
                put_u16(out, flags.0);
            }
            Self::Name(name) => {
                put_u16(out, InfoKind::NAME.0);
                out.extend_from_slice(name.as_bytes());
            }
            Self::Description(text) => {
                put_u16(out, InfoKind::DESCRIPTION.0);
                out.extend_from_slice(text.as_bytes());
            }
            Self::BlockSize(BlockSizes { minimum, preferred, maximum }) => {
                put_u16(out, InfoKind::BLOCK_SIZE.0);
                put_u32(out, minimum);
                put_u32(out, preferred);
                put_u32(out, maximum);
            }
            Self::Unknown(kind) => put_u16(out, kind.0),
        }
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// Every [`WireError`] but `Magic`.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut fields = Fields(bytes);
        let kind = InfoKind(fields.u16()?);
        let info = match kind {
            InfoKind::EXPORT => Self::Export { size: fields.u64()?, flags: TransmissionFlags(fields.u16()?) },
            InfoKind::NAME => Self::Name(fields.rest_as_string()?),
            InfoKind::DESCRIPTION => Self::Description(fields.rest_as_string()?),
            InfoKind::BLOCK_SIZE => Self::BlockSize(BlockSizes {
                minimum: fields.u32()?,
                preferred: fields.u32()?,
                maximum: fields.u32()?,
            }),
            _ => return Ok(Self::Unknown(kind)),
        };
        fields.end()?;
        Ok(info)
    }
}

/// The name that is the whole payload of `NBD_OPT_EXPORT_NAME`.
///
/// # Errors
/// [`WireError::StringTooLong`], [`WireError::StringMalformed`].
pub fn export_name(payload: &[u8]) -> Result<&str, WireError> {
    text(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut out);
        out
    }

    #[test]
    fn hello_is_the_one_of_proto_md() {
        let hello = Hello { flags: HandshakeFlags::FIXED_NEWSTYLE.with(HandshakeFlags::NO_ZEROES) };
        let wire = bytes(|out| hello.encode(out));
        assert_eq!(wire, b"NBDMAGICIHAVEOPT\0\x03");
        assert_eq!(wire.len(), HELLO_LEN);
        assert_eq!(Hello::decode(&wire), Ok(hello));
    }

    #[test]
    fn infos_round_trip_with_the_lengths_of_proto_md() {
        let sizes = BlockSizes { minimum: 1, preferred: 4096, maximum: 1 << 25 };
        for (info, len) in [
            (Info::Export { size: 1 << 40, flags: TransmissionFlags::HAS_FLAGS }, 12),
            (Info::BlockSize(sizes), 14),
            (Info::Name("disk"), 6),
            (Info::Description("a disk"), 8),
        ] {
            let wire = bytes(|out| info.encode(out));
            assert_eq!(wire.len(), len);
            assert_eq!(Info::decode(&wire), Ok(info));
        }
    }

    #[test]
    fn counts_larger_than_the_payload_are_short_before_anything_is_allocated() {
        let mut wire = bytes(|out| put_string(out, "x"));
        put_u32(&mut wire, u32::MAX);
        assert_eq!(MetaContextQuery::decode(&wire), Err(WireError::Short));
        let mut wire = bytes(|out| put_string(out, "x"));
        put_u16(&mut wire, u16::MAX);
        assert_eq!(InfoQuery::decode(&wire), Err(WireError::Short));
    }

    #[test]
    fn a_query_with_trailing_bytes_is_refused() {
        let query = MetaContextQuery { name: "x", queries: vec!["base:allocation", "base:"] };
        let mut wire = bytes(|out| query.encode(out));
        assert_eq!(MetaContextQuery::decode(&wire), Ok(query));
        wire.push(0);
        assert_eq!(MetaContextQuery::decode(&wire), Err(WireError::Trailing(1)));
    }

    #[test]
    fn strings_longer_than_the_protocol_allows_or_with_nul_are_refused() {
        let mut wire = Vec::new();
        put_u32(&mut wire, 4097);
        wire.extend_from_slice(&[b'a'; 4097]);
        put_u16(&mut wire, 0);
        assert_eq!(InfoQuery::decode(&wire), Err(WireError::StringTooLong(4097)));
        assert_eq!(export_name(b"a\0b"), Err(WireError::StringMalformed));
        assert_eq!(export_name(b"\xff"), Err(WireError::StringMalformed));
    }
}
