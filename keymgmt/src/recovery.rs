//! The `recovery` manager: 24 words, shown once when they are made.
//!
//! The words are 256 random bits and a checksum of 8, in the English list of BIP-39. 24 and not 12:
//! the way in of last resort must not be the weakest one, and the longer checksum misses one typing
//! error in 256 instead of one in 16. The secret has full strength, so the KEK is plain HKDF-SHA256
//! (BIP-39's own seed derivation is not used); the keyslot keeps 16 bits of fingerprint, by which a
//! sheet of paper is told from another.

use bip39::{Language, Mnemonic};
use zeroize::Zeroize;

use crate::derive::RECOVERY;
use crate::manager::{BoxFuture, KeyDescription, KeyError, KeyManager, SlotType, WrapContext, WrappedKey};
use crate::secret::{Dek, Secret32, SecretBytes};
use crate::verify;

/// How many words a recovery key has.
pub const RECOVERY_WORDS: usize = 24;

/// Recovery words, made or typed in.
pub struct Recovery {
    secret: Secret32,
}

impl Recovery {
    /// Makes fresh words.
    ///
    /// # Errors
    /// [`KeyError::Secret`] when the operating system's random number generator fails.
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self { secret: Secret32::generate()? })
    }

    /// Reads words as people type them: upper and lower case, with any spaces, dashes, commas or
    /// line breaks between them.
    ///
    /// # Errors
    /// [`KeyError::Secret`] that says what is mistyped: their number, which word is not in the list, or the
    /// checksum. It never holds a word.
    pub fn parse(typed: &SecretBytes) -> Result<Self, KeyError> {
        let words = tidied(typed)?;
        let text = std::str::from_utf8(words.expose())
            .map_err(|_| mistyped("they hold other characters than letters"))?;
        let count = text.split(' ').filter(|word| !word.is_empty()).count();
        if count != RECOVERY_WORDS {
            return Err(mistyped(&format!("there are {count} words, not {RECOVERY_WORDS}")));
        }
        let mnemonic =
            Mnemonic::parse_in_normalized(Language::English, text).map_err(|error| match error {
                bip39::Error::UnknownWord(index) => {
                    mistyped(&format!("word {} is not in the list", index + 1))
                }
                _ => mistyped("the checksum does not fit; a word is wrong or out of place"),
            })?;
        let (mut entropy, len) = mnemonic.to_entropy_array();
        assert_eq!(len, 32, "24 words hold 32 bytes");
        let secret = Secret32::fill(|bytes| {
            bytes.copy_from_slice(&entropy[..32]);
            Ok(())
        });
        entropy.zeroize();
        Ok(Self { secret: secret? })
    }

    /// The words, in lower case with a dash between them. To be shown once, to a person.
    ///
    /// # Panics
    /// Never: 32 bytes make 24 words of at most 8 letters.
    #[must_use]
    pub fn words(&self) -> SecretBytes {
        let mnemonic = Mnemonic::from_entropy_in(Language::English, self.secret.expose())
            .expect("32 bytes make 24 words");
        let mut words = SecretBytes::empty();
        for (index, word) in mnemonic.words().enumerate() {
            let dash = if index == 0 { "" } else { "-" };
            for byte in dash.bytes().chain(word.bytes()) {
                words.push(byte).expect("24 words are shorter than the longest secret");
            }
        }
        words
    }
}

impl KeyManager for Recovery {
    fn slot_type(&self) -> SlotType {
        SlotType::Recovery
    }

    fn wrap<'a>(&'a self, dek: &'a Dek, context: WrapContext) -> BoxFuture<'a, Result<WrappedKey, KeyError>> {
        Box::pin(async move { RECOVERY.wrap(&self.secret, dek, context) })
    }

    fn unwrap<'a>(
        &'a self,
        key: &'a WrappedKey,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Option<Dek>, KeyError>> {
        Box::pin(async move { RECOVERY.unwrap(&self.secret, key, context) })
    }

    fn describe(&self, key: &WrappedKey) -> Result<KeyDescription, KeyError> {
        describe(key)
    }

    fn rotate<'a>(&'a self, _current: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(async { Err(verify::own_secret("a recovery key", "rotated")) })
    }

    fn destroy<'a>(&'a self, _key: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(async { Err(verify::own_secret("a recovery key", "destroyed")) })
    }
}

/// Tells what a recovery keyslot is made of, e.g. `24 words, fingerprint 9F3A`.
///
/// # Errors
/// [`KeyError::Malformed`].
pub fn describe(key: &WrappedKey) -> Result<KeyDescription, KeyError> {
    let fingerprint = RECOVERY.stored_fingerprint(key)?;
    Ok(KeyDescription::own(format!("{RECOVERY_WORDS} words, fingerprint {fingerprint}")))
}

/// The words in lower case with one space between them, whatever stood there.
fn tidied(typed: &SecretBytes) -> Result<SecretBytes, KeyError> {
    let mut words = SecretBytes::empty();
    let mut between = true;
    for &byte in typed.expose() {
        if byte.is_ascii_whitespace() || matches!(byte, b'-' | b',' | b'_') {
            between = true;
            continue;
        }
        if between && !words.expose().is_empty() {
            words.push(b' ')?;
        }
        between = false;
        words.push(byte.to_ascii_lowercase())?;
    }
    Ok(words)
}

fn mistyped(how: &str) -> KeyError {
    KeyError::Secret(format!("the recovery words are mistyped: {how}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> SecretBytes {
        SecretBytes::take(&mut text.as_bytes().to_vec()).unwrap()
    }

    fn text(secret: &SecretBytes) -> String {
        String::from_utf8(secret.expose().to_vec()).unwrap()
    }

    fn complaint(typed: &str) -> String {
        Recovery::parse(&secret(typed)).err().expect("must be refused").to_string()
    }

    #[test]
    fn the_words_are_those_of_bip39() {
        let zeros = Recovery { secret: Secret32::take(&mut [0; 32]) };
        assert_eq!(text(&zeros.words()), format!("{}art", "abandon-".repeat(23)));
        let ones = Recovery { secret: Secret32::take(&mut [0xff; 32]) };
        assert_eq!(text(&ones.words()), format!("{}vote", "zoo-".repeat(23)));
        let half = Recovery { secret: Secret32::take(&mut [0x7f; 32]) };
        let expected = "legal winner thank year wave sausage worth useful legal winner thank year wave \
                        sausage worth useful legal winner thank year wave sausage worth title";
        assert_eq!(text(&half.words()), expected.replace(' ', "-"));
    }

    #[test]
    fn words_read_back_however_they_are_spaced_and_cased() {
        let made = Recovery::generate().unwrap();
        let words = text(&made.words());
        let forms = [
            words.clone(),
            words.to_uppercase(),
            words.replace('-', " "),
            words.replace('-', " \r\n\t "),
            words.replace('-', ", "),
            format!("  --{}-- \n", words.replace('-', " - ")),
        ];
        for form in forms {
            assert!(Recovery::parse(&secret(&form)).unwrap().secret.matches(&made.secret));
        }
    }

    #[test]
    fn a_typing_error_is_named_as_one_and_never_echoed() {
        let cut = "abandon ".repeat(23);
        assert_eq!(complaint(&cut), "the recovery words are mistyped: there are 23 words, not 24");
        let short = format!("{}about", "abandon ".repeat(11));
        assert_eq!(complaint(&short), "the recovery words are mistyped: there are 12 words, not 24");
        let unknown = format!("{}hunter2 art", "abandon ".repeat(22));
        assert_eq!(complaint(&unknown), "the recovery words are mistyped: word 23 is not in the list");
        let swapped = format!("{}zoo", "abandon ".repeat(23));
        assert_eq!(
            complaint(&swapped),
            "the recovery words are mistyped: the checksum does not fit; a word is wrong or out of place"
        );
        assert_eq!(complaint(""), "the recovery words are mistyped: there are 0 words, not 24");
    }

    #[test]
    fn any_bytes_at_all_are_refused_without_panic() {
        let mut noise = vec![0xff; 8192];
        assert!(Recovery::parse(&SecretBytes::take(&mut noise).unwrap()).is_err());
        let mut dashes = vec![b'a'; 8192];
        dashes.iter_mut().step_by(2).for_each(|byte| *byte = b'-');
        assert!(Recovery::parse(&SecretBytes::take(&mut dashes).unwrap()).is_err());
    }
}
