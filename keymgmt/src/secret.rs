//! Memory for keys: locked, excluded from core dumps, wiped on drop, never printed.
//!
//! Every secret has pages of its own, so that a lock or a wipe never concerns anything else. No
//! type here has `Debug`, `Clone` or `Serialize`, and comparing takes the same time whatever the
//! bytes are:
//!
//! ```compile_fail
//! fn print(dek: &keymgmt::secret::Dek) -> String { format!("{dek:?}") }
//! ```
//! ```compile_fail
//! fn copy(dek: &keymgmt::secret::Dek) -> keymgmt::secret::Dek { dek.clone() }
//! ```
//! ```compile_fail
//! fn print(secret: &keymgmt::secret::SecretBytes) -> String { format!("{secret:?}") }
//! ```

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::{Advice, MmapMut};
use rand::TryRng;
use rand::rngs::SysRng;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use crate::manager::KeyError;

/// Longest secret of a length of its own (a passphrase, recovery words), in bytes. Far above what
/// anybody types, and two pages: small enough to stay within the usual `RLIMIT_MEMLOCK` of 8 MiB.
pub const SECRET_BYTES_MAX: usize = 8192;

/// More stack than any cipher or hash of this project takes, in a build without optimisation too.
const STACK_WIPED: usize = 64 * 1024;

/// How many secrets the kernel would not lock so far; `hygiene` reports it.
static UNLOCKED: AtomicUsize = AtomicUsize::new(0);

/// 32 secret bytes in a page of their own.
///
/// The page is locked in memory and excluded from core dumps as far as the system allows (a lock
/// beyond `RLIMIT_MEMLOCK` is refused by the kernel; see [`crate::hygiene`]), and is wiped on drop.
pub struct Secret32 {
    page: MmapMut,
}

impl Secret32 {
    /// Moves 32 bytes into locked memory and wipes the source.
    ///
    /// # Panics
    /// When the system has no page left to give.
    #[must_use]
    pub fn take(source: &mut [u8; 32]) -> Self {
        let mut page = locked_pages(32);
        page[..32].copy_from_slice(source);
        source.zeroize();
        Self { page }
    }

    /// Lets `write` put the bytes straight into locked memory, so that no copy is left elsewhere.
    ///
    /// # Errors
    /// Whatever `write` returns; the memory is wiped then too.
    ///
    /// # Panics
    /// When the system has no page left to give.
    pub fn fill<E>(write: impl FnOnce(&mut [u8; 32]) -> Result<(), E>) -> Result<Self, E> {
        let mut secret = Self { page: locked_pages(32) };
        write((&mut secret.page[..32]).try_into().expect("the page holds 32 bytes"))?;
        Ok(secret)
    }

    /// 32 bytes from the operating system's random number generator.
    ///
    /// # Errors
    /// [`KeyError::Secret`] when the generator fails.
    pub fn generate() -> Result<Self, KeyError> {
        Self::fill(|bytes| fill_random(bytes))
    }

    /// The bytes. Keep the borrow short and copy nothing out of it.
    ///
    /// # Panics
    /// Never: the page holds 32 bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        self.page[..32].try_into().expect("32 bytes were stored")
    }

    /// The same bytes in a page of their own, for a thread that outlives the borrow.
    #[cfg(any(feature = "kmip", feature = "pkcs11"))]
    pub(crate) fn duplicate(&self) -> Self {
        let mut page = locked_pages(32);
        page[..32].copy_from_slice(self.expose());
        Self { page }
    }

    /// Whether both are the same; takes the same time whatever the bytes are.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.expose().ct_eq(other.expose()).into()
    }
}

impl Drop for Secret32 {
    fn drop(&mut self) {
        self.page[..].zeroize();
    }
}

/// A volume's data-encryption key.
pub struct Dek(pub Secret32);

impl Dek {
    /// A fresh key from the operating system's random number generator.
    ///
    /// # Errors
    /// [`KeyError::Secret`] when the generator fails.
    pub fn generate() -> Result<Self, KeyError> {
        Secret32::generate().map(Self)
    }

    /// The key of these bytes, which are wiped.
    #[must_use]
    pub fn take(bytes: &mut [u8; 32]) -> Self {
        Self(Secret32::take(bytes))
    }

    /// Whether both are the same key; takes the same time whatever the bytes are.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.0.matches(&other.0)
    }
}

/// A key-encryption key.
pub struct Kek(pub Secret32);

impl Kek {
    /// A fresh key from the operating system's random number generator.
    ///
    /// # Errors
    /// [`KeyError::Secret`] when the generator fails.
    pub fn generate() -> Result<Self, KeyError> {
        Secret32::generate().map(Self)
    }
}

/// A secret of up to [`SECRET_BYTES_MAX`] bytes in pages of its own: a passphrase, recovery words.
pub struct SecretBytes {
    pages: MmapMut,
    len: usize,
}

impl SecretBytes {
    /// Moves bytes into locked memory and wipes the source.
    ///
    /// # Errors
    /// [`KeyError::Secret`] when there are more than [`SECRET_BYTES_MAX`]; the source is wiped then too.
    ///
    /// # Panics
    /// When the system has no page left to give.
    pub fn take(source: &mut [u8]) -> Result<Self, KeyError> {
        let mut secret = Self::empty();
        let fits = source.len() <= SECRET_BYTES_MAX;
        if fits {
            secret.pages[..source.len()].copy_from_slice(source);
            secret.len = source.len();
        }
        source.zeroize();
        if fits { Ok(secret) } else { Err(too_long("the secret")) }
    }

    /// Reads to the end straight into locked memory. `from` names the place in errors.
    ///
    /// # Errors
    /// [`KeyError::Secret`] when reading fails or there are more than [`SECRET_BYTES_MAX`] bytes.
    ///
    /// # Panics
    /// When the system has no page left to give.
    pub fn read(reader: &mut impl Read, from: &str) -> Result<Self, KeyError> {
        let mut secret = Self::empty();
        // One byte of the mapping beyond the bound tells "exactly the bound" from "more".
        loop {
            match reader.read(&mut secret.pages[secret.len..]) {
                Ok(0) => return Ok(secret),
                Ok(count) => secret.len += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(KeyError::Secret(format!("cannot read {from}: {error}"))),
            }
            if secret.len > SECRET_BYTES_MAX {
                return Err(too_long(from));
            }
        }
    }

    /// Nothing yet; bytes are added with [`Self::push`].
    ///
    /// # Panics
    /// When the system has no page left to give.
    #[must_use]
    pub fn empty() -> Self {
        Self { pages: locked_pages(SECRET_BYTES_MAX + 1), len: 0 }
    }

    /// Adds one byte at the end.
    ///
    /// # Errors
    /// [`KeyError::Secret`] when there are [`SECRET_BYTES_MAX`] already.
    pub fn push(&mut self, byte: u8) -> Result<(), KeyError> {
        if self.len == SECRET_BYTES_MAX {
            return Err(too_long("the secret"));
        }
        self.pages[self.len] = byte;
        self.len += 1;
        Ok(())
    }

    /// Takes the last byte away if it is a line feed.
    pub fn strip_newline(&mut self) {
        if self.expose().last() == Some(&b'\n') {
            self.len -= 1;
            self.pages[self.len] = 0;
        }
    }

    /// The bytes. Keep the borrow short and copy nothing out of it.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.pages[..self.len]
    }

    /// Whether both are the same; takes the same time whatever the bytes are. Tells lengths apart at once.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.expose().ct_eq(other.expose()).into()
    }
}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        self.pages[..].zeroize();
    }
}

/// How many secrets of this process the kernel would not lock in memory, since its start.
#[must_use]
pub fn unlocked_count() -> usize {
    UNLOCKED.load(Ordering::Relaxed)
}

/// Fills `bytes` from the operating system's random number generator, the only one in this crate.
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<(), KeyError> {
    SysRng.try_fill_bytes(bytes).map_err(|error| {
        KeyError::Secret(format!("the operating system's random number generator failed: {error}"))
    })
}

/// Does `work`, then overwrites the stack that it took. Ciphers and hashes keep what they are given on the
/// stack, and a value that was moved leaves its old place as it was; neither is wiped by anybody else.
pub fn on_wiped_stack<T>(work: impl FnOnce() -> T) -> T {
    let result = below(work);
    wipe_below();
    result
}

/// Its frame lies where that of [`wipe_below`] will.
#[inline(never)]
fn below<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn wipe_below() {
    let mut stack = [0u8; STACK_WIPED];
    stack.zeroize();
    std::hint::black_box(&stack);
}

/// Zeroed pages, locked and left out of core dumps as far as the system allows. Dropping them unlocks them.
fn locked_pages(len: usize) -> MmapMut {
    let pages = MmapMut::map_anon(len).expect("a few pages of memory for a secret");
    if cfg!(miri) {
        // It knows neither of the calls below.
        return pages;
    }
    // Both are hardening: the secret works without them, and hygiene tells.
    if pages.lock().is_err() {
        UNLOCKED.fetch_add(1, Ordering::Relaxed);
    }
    let _ = pages.advise(Advice::DontDump);
    pages
}

fn too_long(what: &str) -> KeyError {
    KeyError::Secret(format!("{what} is longer than {SECRET_BYTES_MAX} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taking_a_secret_wipes_the_source() {
        let mut source = [7; 32];
        let secret = Secret32::take(&mut source);
        assert_eq!(source, [0; 32]);
        assert_eq!(secret.expose(), &[7; 32]);

        let mut source = *b"passphrase";
        let secret = SecretBytes::take(&mut source).unwrap();
        assert_eq!(source, [0; 10]);
        assert_eq!(secret.expose(), b"passphrase");
    }

    #[test]
    fn two_generated_keys_differ_and_are_not_zero() {
        let (one, two) = (Dek::generate().unwrap(), Dek::generate().unwrap());
        assert!(!one.matches(&two));
        assert!(one.matches(&one));
        assert_ne!(one.0.expose(), &[0; 32]);
    }

    #[test]
    fn a_secret_of_the_longest_length_is_read_and_one_byte_more_is_refused() {
        let longest = vec![b'x'; SECRET_BYTES_MAX];
        assert_eq!(SecretBytes::read(&mut longest.as_slice(), "fd:3").unwrap().expose(), longest);
        let longer = vec![b'x'; SECRET_BYTES_MAX + 1];
        let error = SecretBytes::read(&mut longer.as_slice(), "fd:3").err().unwrap();
        assert_eq!(error.to_string(), "fd:3 is longer than 8192 bytes");
        let mut longer = longer;
        assert!(SecretBytes::take(&mut longer).is_err());
        assert!(longer.iter().all(|byte| *byte == 0), "a refused source is wiped too");
    }

    #[test]
    fn an_endless_source_is_cut_off() {
        assert!(SecretBytes::read(&mut std::io::repeat(1), "fd:3").is_err());
    }

    #[test]
    fn exactly_one_newline_is_stripped() {
        let mut secret = SecretBytes::take(&mut b"pass\n\n".to_vec()).unwrap();
        secret.strip_newline();
        assert_eq!(secret.expose(), b"pass\n");
    }

    #[test]
    fn secrets_of_different_lengths_do_not_match() {
        let one = SecretBytes::take(&mut b"one".to_vec()).unwrap();
        let more = SecretBytes::take(&mut b"one\0".to_vec()).unwrap();
        assert!(!one.matches(&more));
    }
}
