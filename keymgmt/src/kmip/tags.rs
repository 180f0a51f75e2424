//! The numbers of KMIP that sealbd uses: KMIP Specification 1.2 and 1.4 §9.1.3, 2.0 §11 (OASIS standards). They
//! are the same in all versions; those that a version added say which.

pub(crate) const ATTRIBUTE: u32 = 0x42_0008;
pub(crate) const ATTRIBUTE_NAME: u32 = 0x42_000a;
pub(crate) const ATTRIBUTE_VALUE: u32 = 0x42_000b;
pub(crate) const BATCH_COUNT: u32 = 0x42_000d;
pub(crate) const BATCH_ITEM: u32 = 0x42_000f;
pub(crate) const BLOCK_CIPHER_MODE: u32 = 0x42_0011;
pub(crate) const CRYPTOGRAPHIC_ALGORITHM: u32 = 0x42_0028;
pub(crate) const CRYPTOGRAPHIC_LENGTH: u32 = 0x42_002a;
pub(crate) const CRYPTOGRAPHIC_PARAMETERS: u32 = 0x42_002b;
pub(crate) const CRYPTOGRAPHIC_USAGE_MASK: u32 = 0x42_002c;
pub(crate) const INITIAL_DATE: u32 = 0x42_0039;
pub(crate) const IV_COUNTER_NONCE: u32 = 0x42_003d;
pub(crate) const KEY: u32 = 0x42_003f;
pub(crate) const KEY_BLOCK: u32 = 0x42_0040;
pub(crate) const KEY_FORMAT_TYPE: u32 = 0x42_0042;
pub(crate) const KEY_MATERIAL: u32 = 0x42_0043;
pub(crate) const KEY_VALUE: u32 = 0x42_0045;
pub(crate) const KEY_WRAPPING_DATA: u32 = 0x42_0046;
pub(crate) const NAME: u32 = 0x42_0053;
pub(crate) const NAME_TYPE: u32 = 0x42_0054;
pub(crate) const NAME_VALUE: u32 = 0x42_0055;
pub(crate) const OBJECT_TYPE: u32 = 0x42_0057;
pub(crate) const OPERATION: u32 = 0x42_005c;
pub(crate) const PROTOCOL_VERSION: u32 = 0x42_0069;
pub(crate) const PROTOCOL_VERSION_MAJOR: u32 = 0x42_006a;
pub(crate) const PROTOCOL_VERSION_MINOR: u32 = 0x42_006b;
pub(crate) const QUERY_FUNCTION: u32 = 0x42_0074;
pub(crate) const REQUEST_HEADER: u32 = 0x42_0077;
pub(crate) const REQUEST_MESSAGE: u32 = 0x42_0078;
pub(crate) const REQUEST_PAYLOAD: u32 = 0x42_0079;
pub(crate) const RESPONSE_HEADER: u32 = 0x42_007a;
pub(crate) const RESPONSE_MESSAGE: u32 = 0x42_007b;
pub(crate) const RESPONSE_PAYLOAD: u32 = 0x42_007c;
pub(crate) const RESULT_REASON: u32 = 0x42_007e;
pub(crate) const RESULT_STATUS: u32 = 0x42_007f;
pub(crate) const REVOCATION_REASON: u32 = 0x42_0081;
pub(crate) const REVOCATION_REASON_CODE: u32 = 0x42_0082;
pub(crate) const STATE: u32 = 0x42_008d;
pub(crate) const SYMMETRIC_KEY: u32 = 0x42_008f;
pub(crate) const TEMPLATE_ATTRIBUTE: u32 = 0x42_0091;
pub(crate) const UNIQUE_IDENTIFIER: u32 = 0x42_0094;
pub(crate) const VENDOR_IDENTIFICATION: u32 = 0x42_009d;
/// From 1.2 on.
pub(crate) const DATA: u32 = 0x42_00c2;
/// From 1.4 on.
pub(crate) const TAG_LENGTH: u32 = 0x42_00ce;
/// From 1.4 on.
pub(crate) const AEAD_ADDITIONAL_DATA: u32 = 0x42_00fe;
/// From 1.4 on.
pub(crate) const AEAD_TAG: u32 = 0x42_00ff;
/// From 1.4 on.
pub(crate) const SENSITIVE: u32 = 0x42_0120;
/// From 2.0 on, in place of Template-Attribute.
pub(crate) const ATTRIBUTES: u32 = 0x42_0125;

/// Object Type.
pub(crate) const OBJECT_SYMMETRIC_KEY: u32 = 2;
/// Cryptographic Algorithm.
pub(crate) const ALGORITHM_AES: u32 = 3;
/// Key Format Type.
pub(crate) const FORMAT_RAW: u32 = 1;
/// Key Format Type.
pub(crate) const FORMAT_TRANSPARENT: u32 = 7;
/// Block Cipher Mode.
pub(crate) const MODE_GCM: u32 = 9;
/// Block Cipher Mode: AES Key Wrap of NIST SP 800-38F and RFC 3394.
pub(crate) const MODE_NIST_KEY_WRAP: u32 = 0xd;
/// Name Type: uninterpreted text.
pub(crate) const NAME_TEXT: u32 = 1;
/// Revocation Reason Code: cessation of operation.
pub(crate) const REVOKED_CESSATION: u32 = 6;
/// Query Function: operations.
pub(crate) const QUERY_OPERATIONS: u32 = 1;
/// Query Function: server information.
pub(crate) const QUERY_SERVER: u32 = 3;
/// Cryptographic Usage Mask: encrypt and decrypt.
pub(crate) const USAGE_ENCRYPT_DECRYPT: i32 = 0x4 | 0x8;
/// Cryptographic Usage Mask: wrap and unwrap keys.
pub(crate) const USAGE_WRAP_UNWRAP: i32 = 0x10 | 0x20;

/// Operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    Create,
    ReKey,
    Get,
    GetAttributes,
    Activate,
    Revoke,
    Destroy,
    Query,
    DiscoverVersions,
    Encrypt,
    Decrypt,
}

impl Operation {
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Create => 0x1,
            Self::ReKey => 0x4,
            Self::Get => 0xa,
            Self::GetAttributes => 0xb,
            Self::Activate => 0x12,
            Self::Revoke => 0x13,
            Self::Destroy => 0x14,
            Self::Query => 0x18,
            Self::DiscoverVersions => 0x1e,
            Self::Encrypt => 0x1f,
            Self::Decrypt => 0x20,
        }
    }

    /// The name in the specification.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Create => "Create",
            Self::ReKey => "Re-key",
            Self::Get => "Get",
            Self::GetAttributes => "Get Attributes",
            Self::Activate => "Activate",
            Self::Revoke => "Revoke",
            Self::Destroy => "Destroy",
            Self::Query => "Query",
            Self::DiscoverVersions => "Discover Versions",
            Self::Encrypt => "Encrypt",
            Self::Decrypt => "Decrypt",
        }
    }

    /// Whether asking twice does no more than asking once.
    pub(crate) fn changes_nothing(self) -> bool {
        match self {
            Self::Get
            | Self::GetAttributes
            | Self::Query
            | Self::DiscoverVersions
            | Self::Encrypt
            | Self::Decrypt => true,
            Self::Create | Self::ReKey | Self::Activate | Self::Revoke | Self::Destroy => false,
        }
    }
}

/// State of a key (§3.22).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    PreActive,
    Active,
    Deactivated,
    Compromised,
    Destroyed,
    DestroyedCompromised,
}

impl State {
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::PreActive,
            2 => Self::Active,
            3 => Self::Deactivated,
            4 => Self::Compromised,
            5 => Self::Destroyed,
            6 => Self::DestroyedCompromised,
            _ => return None,
        })
    }

    /// The name in the specification.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PreActive => "Pre-Active",
            Self::Active => "Active",
            Self::Deactivated => "Deactivated",
            Self::Compromised => "Compromised",
            Self::Destroyed => "Destroyed",
            Self::DestroyedCompromised => "Destroyed Compromised",
        }
    }
}
