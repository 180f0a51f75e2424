//! The names of backends, as they stand on the command line and in messages.
//!
//! ```text
//! /srv/volume   file:/srv/volume            a file or block device
//! nbd://host:port/export                    an NBD server over TCP; the port defaults to 10809
//! nbd+unix:///export?socket=/run/nbd.sock   an NBD server on a Unix socket
//! mem:  mem:64M                             memory
//! ```
//!
//! URIs follow RFC 3986 and the NBD project's doc/uri.md. Nothing secret may stand in one: they end
//! up in logs, in process lists and in shell histories.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use super::file::{Caching, Existing, FileStore};
use super::memory::MemoryStore;
use super::nbd::{NbdAddress, NbdOptions, NbdStore, NbdTarget};
use super::{Access, SlotStore, StoreError};
use crate::wire::STRING_LEN_MAX;

/// The port of NBD (IANA).
const NBD_PORT: u16 = 10809;

/// Where a volume lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreUri {
    /// A file or block device.
    File(PathBuf),
    /// An export of an NBD server.
    Nbd(NbdTarget),
    /// Memory, of a size in bytes unless [`create`] is told one.
    Memory(Option<u64>),
}

/// Why a text names no backend.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UriError {
    /// There is no text.
    #[error("the backend's name is empty")]
    Empty,
    /// It looks like a URI, of a kind that does not exist here.
    #[error("no backend is called '{0}:'; there are file:, nbd:, nbd+unix: and mem:")]
    UnknownScheme(String),
    /// TLS is not there.
    #[error("'{0}:' asks for TLS, which sealbd does not speak to backends")]
    Tls(String),
    /// A user name or password stands in it. The text is not repeated.
    #[error("a backend URI must not carry a user name or password")]
    Credentials,
    /// `%` is not followed by two hexadecimal digits.
    #[error("'%' must be followed by two hexadecimal digits")]
    Percent,
    /// A part of it is not usable.
    #[error("{0}")]
    Malformed(&'static str),
}

/// Opens what `uri` names.
///
/// `mem:SIZE` opens a new store that is all zero. An NBD backend needs a tokio runtime.
///
/// # Errors
/// Those of [`FileStore::open`] and [`NbdStore::open`]; [`StoreError::Open`] for `mem:` without a size.
pub async fn open(uri: &StoreUri, access: Access) -> Result<Arc<dyn SlotStore>, StoreError> {
    open_with(uri, access, Caching::Cached).await
}

/// The same, with a choice of caching.
///
/// # Errors
/// As [`open`]; [`StoreError::NoDirectAccess`] for a way around the cache where there is none.
pub async fn open_with(
    uri: &StoreUri,
    access: Access,
    caching: Caching,
) -> Result<Arc<dyn SlotStore>, StoreError> {
    match uri {
        StoreUri::File(path) => Ok(Arc::new(FileStore::open_with(path, access, caching)?)),
        _ if caching == Caching::Direct => Err(StoreError::NoDirectAccess(uri.to_string())),
        StoreUri::Nbd(target) => {
            Ok(Arc::new(NbdStore::open(target.clone(), access, NbdOptions::default()).await?))
        }
        StoreUri::Memory(Some(size)) => Ok(Arc::new(MemoryStore::new(*size))),
        StoreUri::Memory(None) => Err(StoreError::Open("mem: needs a size, such as mem:64M".into())),
    }
}

/// Makes what `uri` names, `size` bytes long, and opens it for writing. Only files and memory can
/// be made; the size of an NBD export is its server's.
///
/// # Errors
/// Those of [`FileStore::create`]; [`StoreError::Open`] for what cannot be made.
pub fn create(uri: &StoreUri, size: u64, existing: Existing) -> Result<Arc<dyn SlotStore>, StoreError> {
    match uri {
        StoreUri::File(path) => Ok(Arc::new(FileStore::create(path, size, existing)?)),
        StoreUri::Memory(_) => Ok(Arc::new(MemoryStore::new(size))),
        StoreUri::Nbd(_) => {
            Err(StoreError::Open(format!("{uri} cannot be made from here: make it on its server")))
        }
    }
}

impl StoreUri {
    /// Reads an argument as the shell gave it: a path need not be UTF-8.
    ///
    /// # Errors
    /// As [`str::parse`].
    pub fn from_arg(arg: &OsStr) -> Result<Self, UriError> {
        match arg.to_str() {
            Some(text) => text.parse(),
            None => Ok(Self::File(arg.into())),
        }
    }
}

impl FromStr for StoreUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        if text.is_empty() {
            return Err(UriError::Empty);
        }
        let Some((scheme, rest)) = split_scheme(text) else {
            return Ok(Self::File(text.into()));
        };
        match scheme {
            "file" => file_uri(rest).map(Self::File),
            "nbd" => nbd_uri(rest).map(Self::Nbd),
            "nbd+unix" => nbd_unix_uri(rest).map(Self::Nbd),
            "nbds" | "nbds+unix" => Err(UriError::Tls(scheme.into())),
            "mem" if rest.is_empty() => Ok(Self::Memory(None)),
            "mem" => parse_size(rest).map(|size| Self::Memory(Some(size))),
            // A file may have a colon in its name; `//` behind it is a URI.
            _ if rest.starts_with("//") => Err(UriError::UnknownScheme(scheme.into())),
            _ => Ok(Self::File(text.into())),
        }
    }
}

/// The path or URI; parsing it gives the same backend.
impl fmt::Display for StoreUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => match path.to_str() {
                Some(text) if split_scheme(text).is_some() => write!(f, "./{text}"),
                Some(text) => f.write_str(text),
                None => {
                    let host = if path.is_absolute() { "//" } else { "" };
                    write!(f, "file:{host}{}", encode(path.as_os_str().as_bytes()))
                }
            },
            Self::Nbd(target) => write!(f, "{target}"),
            Self::Memory(Some(size)) => write!(f, "mem:{size}"),
            Self::Memory(None) => write!(f, "mem:"),
        }
    }
}

impl fmt::Display for NbdTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = encode(self.export.as_bytes());
        match &self.address {
            NbdAddress::Tcp { host, port } if host.contains(':') => {
                write!(f, "nbd://[{host}]:{port}/{export}")
            }
            NbdAddress::Tcp { host, port } => write!(f, "nbd://{host}:{port}/{export}"),
            NbdAddress::Unix(path) => {
                write!(f, "nbd+unix:///{export}?socket={}", encode(path.as_os_str().as_bytes()))
            }
        }
    }
}

/// `scheme:rest`, when the text starts like that (RFC 3986 §3.1; upper case is taken for a name).
fn split_scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once(':')?;
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
    (scheme.starts_with(|c: char| c.is_ascii_lowercase()) && scheme.chars().all(letters))
        .then_some((scheme, rest))
}

/// RFC 8089: `file:/path`, `file:///path`; also `file:path` below the working directory.
fn file_uri(rest: &str) -> Result<PathBuf, UriError> {
    let path = match rest.strip_prefix("//") {
        None => rest,
        Some(path) if path.starts_with('/') => path,
        Some(_) => return Err(UriError::Malformed("a file: URI must not name a host; write file:/path")),
    };
    path_of(path).ok_or(UriError::Percent)?.ok_or(UriError::Malformed("a file: URI needs a path"))
}

fn nbd_uri(rest: &str) -> Result<NbdTarget, UriError> {
    let parts = Parts::of(rest)?;
    if parts.query.is_some() {
        return Err(UriError::Malformed("an nbd: URI has no options"));
    }
    let (host, port) = host_and_port(parts.authority)?;
    Ok(NbdTarget { address: NbdAddress::Tcp { host, port }, export: export_name(parts.path)? })
}

fn nbd_unix_uri(rest: &str) -> Result<NbdTarget, UriError> {
    const NO_SOCKET: UriError =
        UriError::Malformed("an nbd+unix: URI needs ?socket=PATH and nothing else behind '?'");
    let parts = Parts::of(rest)?;
    if !parts.authority.is_empty() {
        return Err(UriError::Malformed(
            "an nbd+unix: URI has no host; write nbd+unix:///export?socket=PATH",
        ));
    }
    let socket = parts.query.and_then(|query| query.strip_prefix("socket=")).ok_or(NO_SOCKET)?;
    if socket.contains(['&', ';']) {
        return Err(NO_SOCKET);
    }
    let socket = path_of(socket).ok_or(UriError::Percent)?.ok_or(NO_SOCKET)?;
    Ok(NbdTarget { address: NbdAddress::Unix(socket), export: export_name(parts.path)? })
}

/// What stands behind `scheme:`, cut but not decoded.
struct Parts<'a> {
    authority: &'a str,
    path: &'a str,
    query: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn of(rest: &'a str) -> Result<Self, UriError> {
        let rest = rest.strip_prefix("//").ok_or(UriError::Malformed("'//' must follow the scheme"))?;
        if rest.contains('#') {
            return Err(UriError::Malformed("a backend URI has no fragment; write '#' as %23"));
        }
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query)),
            None => (rest, None),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(UriError::Credentials);
        }
        Ok(Self { authority, path, query })
    }
}

fn host_and_port(authority: &str) -> Result<(String, u16), UriError> {
    const BAD_HOST: UriError =
        UriError::Malformed("the host must be a name, an IPv4 address or [an IPv6 address]");
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, behind) = rest.split_once(']').ok_or(BAD_HOST)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| BAD_HOST)?;
            (host, behind.strip_prefix(':').or(behind.is_empty().then_some("")).ok_or(BAD_HOST)?)
        }
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    let known = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    if host.is_empty() || !host.chars().all(known) || (host.contains(':') && !authority.starts_with('[')) {
        return Err(BAD_HOST);
    }
    let port = match port {
        "" => NBD_PORT,
        digits if digits.bytes().all(|digit| digit.is_ascii_digit()) => digits
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or(UriError::Malformed("the port must be 1 to 65535"))?,
        _ => return Err(UriError::Malformed("the port must be a number")),
    };
    Ok((host.to_owned(), port))
}

/// The path without its first `/`, decoded.
fn export_name(path: &str) -> Result<String, UriError> {
    let bytes = decode(path.strip_prefix('/').unwrap_or(path)).ok_or(UriError::Percent)?;
    match String::from_utf8(bytes) {
        Ok(name) if name.len() <= STRING_LEN_MAX && !name.contains('\0') => Ok(name),
        _ => Err(UriError::Malformed("an export's name is at most 4096 bytes of UTF-8 without NUL")),
    }
}

/// A decoded path: `None` is malformed, `Some(None)` is no path.
fn path_of(text: &str) -> Option<Option<PathBuf>> {
    let bytes = decode(text)?;
    let usable = !bytes.is_empty() && !bytes.contains(&0);
    Some(usable.then(|| std::ffi::OsString::from_vec(bytes).into()))
}

/// Undoes percent-encoding (RFC 3986 §2.1).
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, behind) = rest.split_first_chunk::<2>()?;
        rest = behind;
        let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
        bytes.push(value(digits[0])? << 4 | value(digits[1])?);
    }
    Some(bytes)
}

/// Percent-encodes all but unreserved characters and `/`.
fn encode(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(byte) {
            text.push(char::from(*byte));
        } else {
            write!(text, "%{byte:02X}").expect("writing to a String does not fail");
        }
    }
    text
}

/// Bytes, or with a suffix K, M, G, T a power of 1024 of them.
fn parse_size(text: &str) -> Result<u64, UriError> {
    const BAD_SIZE: UriError =
        UriError::Malformed("the size behind mem: must be a number of bytes, or end in K, M, G or T");
    let (digits, unit) = match text.strip_suffix(['K', 'M', 'G', 'T']) {
        Some(digits) => (digits, text.as_bytes().last().copied()),
        None => (text, None),
    };
    let shift = match unit {
        None => 0,
        Some(b'K') => 10,
        Some(b'M') => 20,
        Some(b'G') => 30,
        Some(_) => 40,
    };
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(BAD_SIZE);
    }
    digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift)).ok_or(BAD_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> StoreUri {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn tcp(host: &str, port: u16, export: &str) -> StoreUri {
        let address = NbdAddress::Tcp { host: host.into(), port };
        StoreUri::Nbd(NbdTarget { address, export: export.into() })
    }

    fn unix(socket: &str, export: &str) -> StoreUri {
        StoreUri::Nbd(NbdTarget { address: NbdAddress::Unix(socket.into()), export: export.into() })
    }

    #[test]
    fn every_way_to_name_a_backend_is_understood() {
        let file = |path: &str| StoreUri::File(path.into());
        for (text, expected) in [
            ("/srv/volume", file("/srv/volume")),
            ("volume", file("volume")),
            ("odd:name", file("odd:name")),
            ("Nbd://x", file("Nbd://x")),
            ("/srv/a%20b", file("/srv/a%20b")),
            ("file:/srv/a%20b", file("/srv/a b")),
            ("file:///srv/volume", file("/srv/volume")),
            ("nbd://host", tcp("host", 10809, "")),
            ("nbd://host:99/a/b%2Fc", tcp("host", 99, "a/b/c")),
            ("nbd://[::1]:99/", tcp("::1", 99, "")),
            ("nbd://[::1]", tcp("::1", 10809, "")),
            ("nbd+unix:///?socket=/run/s", unix("/run/s", "")),
            ("nbd+unix:///disk%201?socket=/run/my%20s", unix("/run/my s", "disk 1")),
            ("mem:", StoreUri::Memory(None)),
            ("mem:3M", StoreUri::Memory(Some(3 << 20))),
        ] {
            assert_eq!(parsed(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_printed_names_the_same_backend() {
        for uri in [
            StoreUri::File("/srv/a%20b".into()),
            StoreUri::File("mem:64M".into()),
            tcp("host", 99, "a b?c#d@e%"),
            tcp("::1", 10809, ""),
            unix("/run/a&b;c=d é", "x/y"),
            StoreUri::Memory(Some(4096)),
            StoreUri::Memory(None),
        ] {
            let back = parsed(&uri.to_string());
            match (&back, &uri) {
                (StoreUri::File(back), StoreUri::File(path)) => {
                    assert_eq!(back.strip_prefix("./").unwrap_or(back), path);
                }
                _ => assert_eq!(back, uri, "{uri}"),
            }
        }
    }

    #[test]
    fn a_password_is_refused_and_not_repeated() {
        for text in ["nbd://user:hunter2@host/x", "nbd://hunter2@host", "nbd+unix://hunter2@/x?socket=/s"] {
            let error = text.parse::<StoreUri>().unwrap_err();
            assert_eq!(error, UriError::Credentials, "{text}");
            assert!(!error.to_string().contains("hunter2"));
        }
    }

    #[test]
    fn malformed_names_are_refused() {
        use UriError::{Empty, Malformed, Percent, Tls, UnknownScheme};
        let malformed = Malformed("");
        for (text, expected) in [
            ("", Empty),
            ("s3://bucket", UnknownScheme("s3".into())),
            ("nbds://host", Tls("nbds".into())),
            ("nbd:host", malformed.clone()),
            ("nbd://", malformed.clone()),
            ("nbd://host:0/", malformed.clone()),
            ("nbd://host:65536/", malformed.clone()),
            ("nbd://host:+1/", malformed.clone()),
            ("nbd://a:b:c/", malformed.clone()),
            ("nbd://[::1/x", malformed.clone()),
            ("nbd://host/x?tls=1", malformed.clone()),
            ("nbd://host/x#y", malformed.clone()),
            ("nbd://host/%zz", Percent),
            ("nbd://host/%2", Percent),
            ("nbd://host/%00", malformed.clone()),
            ("nbd://host/%ff", malformed.clone()),
            ("nbd+unix:///x", malformed.clone()),
            ("nbd+unix:///x?socket=", malformed.clone()),
            ("nbd+unix:///x?socket=/a&tls=1", malformed.clone()),
            ("nbd+unix://host/x?socket=/a", malformed.clone()),
            ("file://host/x", malformed.clone()),
            ("file:", malformed.clone()),
            ("mem:x", malformed.clone()),
            ("mem:-1", malformed.clone()),
            ("mem:99999999999T", malformed.clone()),
        ] {
            let error = text.parse::<StoreUri>().unwrap_err();
            assert_eq!(std::mem::discriminant(&error), std::mem::discriminant(&expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_path_need_not_be_utf8() {
        let arg = OsStr::from_bytes(b"/srv/\xff");
        assert_eq!(StoreUri::from_arg(arg), Ok(StoreUri::File(arg.into())));
    }

    /// Once printed with marks in the place of such bytes, and even as the URI of something else.
    #[test]
    fn a_path_that_is_not_utf8_is_printed_so_that_it_can_be_typed() {
        for path in [&b"a\xbdb"[..], b"/x/\xff", b"//x/\xff", b"ile:/nd\xbdx", b"nbd://h/\xbd", b"a%20\xbd"] {
            let uri = StoreUri::File(OsStr::from_bytes(path).into());
            assert_eq!(parsed(&uri.to_string()), uri, "{uri}");
        }
    }

    #[tokio::test]
    async fn memory_opens_with_a_size_and_not_without() {
        let store = open(&parsed("mem:1M"), Access::ReadWrite).await.unwrap();
        assert_eq!(store.capability().size, 1 << 20);
        assert!(matches!(open(&parsed("mem:"), Access::ReadWrite).await, Err(StoreError::Open(_))));
        assert_eq!(create(&parsed("mem:"), 4096, Existing::Refuse).unwrap().capability().size, 4096);
    }

    #[test]
    fn an_nbd_export_cannot_be_made_by_its_client() {
        let made = create(&parsed("nbd://host/x"), 4096, Existing::Refuse);
        assert!(matches!(made, Err(StoreError::Open(_))));
    }
}
