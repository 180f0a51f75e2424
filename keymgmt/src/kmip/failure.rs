//! What a server's refusals and a connection's failures mean for whoever waits.

use std::io;

use rustls::AlertDescription;

use crate::manager::KeyError;

/// Why a server did not do what it was asked, told apart as far as anything depends on it. The numbers are
/// those of Result Reason: KMIP 1.4 §9.1.3.2.29, 2.0 §11.48.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// No such object, or none that this client may know of, or destroyed.
    NotFound,
    /// No right to the object or to the operation.
    Forbidden,
    /// The state of the key does not allow it.
    State,
    /// The key does not leave the server.
    Kept,
    /// The server cannot do that at all, or not with such parameters.
    Unsupported,
    /// Encrypting or decrypting failed: for decrypting, another key or changed bytes.
    Cryptography,
    /// The server does not speak this version.
    Version,
    /// The server itself fails, or has too much to do.
    Failing,
    /// The request is not one that the server takes.
    Invalid,
    /// None of the reasons that are known.
    Other(u32),
}

impl Refusal {
    pub(crate) fn from_reason(reason: u32) -> Self {
        match reason {
            0x01 | 0x36 | 0x37 => Self::NotFound,
            0x03 | 0x0c | 0x14 | 0x15 | 0x29 | 0x39 => Self::Forbidden,
            0x0b | 0x0d | 0x1a | 0x43 => Self::State,
            0x13 | 0x16 | 0x17 => Self::Kept,
            0x05 | 0x08 | 0x10 | 0x11 | 0x12 | 0x1f | 0x24 | 0x32 | 0x34 | 0x3b | 0x3e => Self::Unsupported,
            0x0a => Self::Cryptography,
            0x3f => Self::Version,
            0x2a | 0x3a | 0x44 => Self::Failing,
            0x02 | 0x04 | 0x06 | 0x07 | 0x0e | 0x26 | 0x28 | 0x2c | 0x2d | 0x30 | 0x3c | 0x3d => {
                Self::Invalid
            }
            other => Self::Other(other),
        }
    }

    /// In words. The server's own are not repeated.
    pub(crate) fn text(self) -> String {
        match self {
            Self::NotFound => "no such object: never made, destroyed, or of another client".into(),
            Self::Forbidden => "permission denied to this client, or for this use of the key".into(),
            Self::State => "the state of the key does not allow it".into(),
            Self::Kept => "the key does not leave the server".into(),
            Self::Unsupported => "the server does not support it".into(),
            Self::Cryptography => "the server could not: another key, or changed bytes".into(),
            Self::Version => "the server does not speak this version of KMIP".into(),
            Self::Failing => "the server fails".into(),
            Self::Invalid => "the server refused the request as invalid".into(),
            Self::Other(reason) => format!("the server refused it (result reason {reason:#x})"),
        }
    }

    /// As an error with that text.
    pub(crate) fn error(self, text: String) -> KeyError {
        match self {
            Self::Unsupported => KeyError::Unsupported(text),
            Self::Failing => KeyError::Unreachable(text),
            Self::Version => KeyError::Settings(text),
            Self::NotFound
            | Self::Forbidden
            | Self::State
            | Self::Kept
            | Self::Cryptography
            | Self::Invalid
            | Self::Other(_) => KeyError::Denied(text),
        }
    }
}

/// A refusal of `what`, e.g. `Get kmip:7`.
pub(crate) fn refused(what: &str, refusal: Refusal) -> KeyError {
    refusal.error(format!("{what}: {}", refusal.text()))
}

/// A failure of the connection to `server`.
pub(crate) fn broken(server: &str, error: &io::Error) -> KeyError {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match (tls, error.kind()) {
        (Some(rustls::Error::AlertReceived(alert)), _) if is_about_us(*alert) => KeyError::Denied(format!(
            "{server} refuses the certificate of this client ({alert:?}): it trusts another signer, or the \
             certificate has expired or is not for clients"
        )),
        (Some(error), _) => KeyError::Untrusted(format!("{server}: {error}")),
        (None, io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => {
            KeyError::Unreachable(format!("{server}: no answer in time"))
        }
        (None, io::ErrorKind::UnexpectedEof) => {
            KeyError::Unreachable(format!("{server} closed the connection"))
        }
        (None, _) => KeyError::Unreachable(format!("{server}: {error}")),
    }
}

/// Alerts by which a server refuses our certificate (RFC 8446 §6.2).
fn is_about_us(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
    )
}
