//! Text in a record: bounded, printable ASCII, one spelling.
//!
//! Names of keys, hosts, users and backends come from outside. Whatever is not printable ASCII is escaped, so
//! that no terminal, no line-oriented tool and no reader of JSON takes it for something else.

use std::fmt;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

/// What stands at the end of a text that was cut; a backslash is otherwise followed by another or by `u`.
const CUT: &str = "\\...";

/// At most `MAX` bytes of printable ASCII. Other characters stand as `\u{…}`, a backslash as `\\`; a text that
/// was longer ends with `\...`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(transparent)]
pub struct Text<const MAX: usize>(String);

impl<const MAX: usize> Text<MAX> {
    /// Escapes and cuts.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let (mut kept, mut room) = (String::new(), 0);
        for c in text.chars() {
            match c {
                '\\' => kept.push_str("\\\\"),
                ' '..='~' => kept.push(c),
                other => kept.extend(other.escape_unicode()),
            }
            if kept.len() > MAX {
                kept.truncate(room);
                kept.push_str(CUT);
                break;
            }
            // Where the text may be cut so that the mark still fits.
            if kept.len() + CUT.len() <= MAX {
                room = kept.len();
            }
        }
        Self(kept)
    }

    /// The text, as it stands in the log.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> fmt::Display for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Text<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.len() > MAX || !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err(D::Error::custom("a text that is too long or not printable"));
        }
        Ok(Self(text))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_could_pass_for_something_else_is_escaped() {
        let text = |text| Text::<64>::of(text).0;
        assert_eq!(text("db key v3"), "db key v3");
        assert_eq!(text("a\n{\"seq\":9}"), "a\\u{a}{\"seq\":9}");
        assert_eq!(text("\u{1b}[2K\u{9b}\u{202e}é"), "\\u{1b}[2K\\u{9b}\\u{202e}\\u{e9}");
        assert_eq!(text("a\\u{a}"), "a\\\\u{a}");
    }

    #[test]
    fn what_is_too_long_is_cut_and_says_so() {
        assert_eq!(Text::<8>::of("12345678").0, "12345678");
        assert_eq!(Text::<8>::of("123456789").0, "1234\\...");
        assert_eq!(Text::<8>::of("1234\n").0, "1234\\...");
        assert_eq!(Text::<8>::of("\n\n\n").0, "\\...");
    }

    proptest! {
        #[test]
        fn any_text_is_kept_within_its_bound_and_read_back_the_same(given in any::<String>()) {
            let text = Text::<40>::of(&given);
            prop_assert!(text.0.len() <= 40 && text.0.bytes().all(|byte| matches!(byte, b' '..=b'~')));
            let json = serde_json::to_string(&text).unwrap();
            prop_assert_eq!(serde_json::from_str::<Text<40>>(&json).unwrap(), text);
        }
    }
}
