//! Base addresses of services that speak HTTP: parsed once, joined with paths of ours.
//!
//! An address comes from settings or from a service that was authenticated, never from a keyslot. Keys and
//! tokens do not travel in the clear: plain `http` is refused unless it ends on this host.

use std::fmt;
use std::net::IpAddr;

use ureq::http::Uri;

/// Longest base address; far above what anybody has.
const ADDRESS_BYTES_MAX: usize = 512;

/// `https://HOST[:PORT][/PATH]`, without a slash at the end; `http` on loopback only.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Address(String);

/// Why a text is no base address. Never holds the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum AddressError {
    #[error("an address has the form https://HOST[:PORT][/PATH], without user, query or fragment")]
    NotAnAddress,
    #[error("plain http would show keys to the network: only https is used, or http to this host")]
    Plaintext,
}

impl Address {
    /// Reads a base address.
    ///
    /// # Errors
    /// [`AddressError`].
    pub(crate) fn parse(text: &str) -> Result<Self, AddressError> {
        let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        if !plain || text.len() > ADDRESS_BYTES_MAX || text.contains(['@', '?', '#', '\\']) {
            return Err(AddressError::NotAnAddress);
        }
        let uri: Uri = text.parse().map_err(|_| AddressError::NotAnAddress)?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or(AddressError::NotAnAddress)?;
        match uri.scheme_str() {
            Some("https") => {}
            Some("http") if is_loopback(host) => {}
            Some("http") => return Err(AddressError::Plaintext),
            _ => return Err(AddressError::NotAnAddress),
        }
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }

    /// The address with `/VERSION` at its end, once.
    pub(crate) fn versioned(self, version: &str) -> Self {
        if self.0.ends_with(&format!("/{version}")) { self } else { Self(format!("{}/{version}", self.0)) }
    }

    /// The url of a path below it; `path` starts with a slash and is ours.
    pub(crate) fn at(&self, path: &str) -> String {
        debug_assert!(path.starts_with('/'), "{path}");
        format!("{}{path}", self.0)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Address {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_https_or_ends_on_this_host() {
        for (text, at) in [
            ("https://keys.example:9311/", "https://keys.example:9311/x"),
            ("https://keys.example/key-manager", "https://keys.example/key-manager/x"),
            ("http://127.0.0.1:9311", "http://127.0.0.1:9311/x"),
            ("http://[::1]:9311", "http://[::1]:9311/x"),
            ("http://localhost", "http://localhost/x"),
        ] {
            assert_eq!(Address::parse(text).unwrap().at("/x"), at);
        }
        for text in
            ["http://keys.example", "http://10.0.0.1:9311", "http://localhost.example", "http://[::2]"]
        {
            assert_eq!(Address::parse(text).unwrap_err(), AddressError::Plaintext, "{text}");
        }
        let long = format!("https://{}", "x".repeat(ADDRESS_BYTES_MAX));
        for text in [
            "",
            "keys.example",
            "/v3",
            "https://",
            "ftp://keys.example",
            "https://user:hunter2@keys.example",
            "https://keys.example/?a=b",
            "https://keys.example/#a",
            "https://keys.example/a b",
            "https://keys.example/\r\nHost: other",
            "file:///etc/passwd",
            &long,
        ] {
            let error = Address::parse(text).unwrap_err();
            assert_eq!(error, AddressError::NotAnAddress, "{text}");
            assert!(!error.to_string().contains("hunter2"));
        }
    }

    #[test]
    fn a_version_is_added_once() {
        for text in
            ["https://k/identity", "https://k/identity/", "https://k/identity/v3", "https://k/identity/v3/"]
        {
            assert_eq!(Address::parse(text).unwrap().versioned("v3").to_string(), "https://k/identity/v3");
        }
    }
}
