//! The number of one request of a user, sent to services that log one and kept in our own audit log, so
//! that both logs can be joined.

use std::fmt;

use rand::TryRng;
use rand::rngs::SysRng;

/// A random number in the form of a uuid (RFC 9562 §5.4). Nothing secret, nothing that is relied upon.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestId(String);

impl RequestId {
    /// A new one. Should the operating system have no random numbers it is zero: whoever needs a key then
    /// fails for that reason, with this request in the log.
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes = [0; 16];
        let _ = SysRng.try_fill_bytes(&mut bytes);
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Self(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
    }

    /// The 36 characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_requests_have_two_numbers_in_the_form_of_a_uuid() {
        let (one, two) = (RequestId::generate(), RequestId::generate());
        assert_ne!(one, two);
        assert_eq!(one.as_str().len(), 36);
        assert_eq!(&one.as_str()[14..15], "4");
        assert!(one.as_str().bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-'));
    }
}
