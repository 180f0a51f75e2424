//! What OpenStack's services answer, judged: which of our errors a status is, bodies that must be JSON, and
//! text of theirs made fit to be shown.

use serde::de::DeserializeOwned;

use crate::http::Answer;
use crate::manager::KeyError;

/// As much of a service's own word is shown.
const SHOWN_CHARS_MAX: usize = 64;

/// The error that a status stands for, where it has no special meaning for the call.
pub(crate) fn refusal(service: &str, status: u16, what: &str) -> KeyError {
    match status {
        300..=399 => KeyError::Untrusted(format!(
            "{service} sends us elsewhere ({status}), which is never followed; the address may be wrong"
        )),
        401 | 403 => KeyError::Denied(format!("{service} does not let us {what} ({status})")),
        408 | 425 | 429 | 500..=599 => KeyError::Unreachable(format!("{service} fails ({status})")),
        _ => KeyError::Untrusted(format!("{service} answers {status} when asked to {what}")),
    }
}

/// The body of an answer. What does not fit is not repeated: it may hold anything.
pub(crate) fn json<T: DeserializeOwned>(answer: &Answer, service: &str) -> Result<T, KeyError> {
    serde_json::from_slice(&answer.body)
        .map_err(|_| KeyError::Untrusted(format!("the answer is not what {service} answers")))
}

/// A word from outside, cut and cleaned, to be shown to people.
pub(crate) fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    text.chars().take(SHOWN_CHARS_MAX).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_retried_only_where_time_can_help() {
        for status in [429, 500, 502, 503, 504] {
            assert!(matches!(refusal("k", status, "x"), KeyError::Unreachable(_)), "{status}");
        }
        for status in [301, 302, 307, 308, 400, 404, 418, 200, 999] {
            assert!(matches!(refusal("k", status, "x"), KeyError::Untrusted(_)), "{status}");
        }
        assert!(matches!(refusal("k", 403, "x"), KeyError::Denied(_)));
    }

    #[test]
    fn words_from_outside_are_short_and_harmless() {
        assert_eq!(printable("Region\u{1b}[31m\r\nOné"), "Region?[31m??On?");
        assert_eq!(printable(&"x".repeat(1000)).len(), SHOWN_CHARS_MAX);
    }
}
