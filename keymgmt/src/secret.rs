//! Memory for keys: locked, excluded from core dumps, wiped on drop, never printed.

use memmap2::{Advice, MmapMut};
use zeroize::Zeroize;

/// 32 secret bytes in a page of their own.
///
/// The page is locked in memory and excluded from core dumps as far as the system allows (a lock
/// beyond `RLIMIT_MEMLOCK` is refused by the kernel; see `hygiene`), and is wiped on drop.
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
        let mut page = MmapMut::map_anon(32).expect("one page of memory for a key");
        // Both are hardening: the key works without them, and hygiene::report tells.
        let _ = page.lock();
        let _ = page.advise(Advice::DontDump);
        page[..32].copy_from_slice(source);
        source.zeroize();
        Self { page }
    }

    /// The bytes. Keep the borrow short and copy nothing out of it.
    ///
    /// # Panics
    /// Never: the page holds 32 bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        self.page[..32].try_into().expect("32 bytes were stored")
    }
}

impl Drop for Secret32 {
    fn drop(&mut self) {
        self.page[..].zeroize();
    }
}

/// A volume's data-encryption key.
pub struct Dek(pub Secret32);

/// A key-encryption key.
pub struct Kek(pub Secret32);

impl Dek {
    /// tmp
    pub fn generate() -> Result<Self, crate::manager::KeyError> {
        use rand::TryRng;
        let mut b = [0; 32];
        rand::rngs::SysRng
            .try_fill_bytes(&mut b)
            .map_err(|_| crate::manager::KeyError::Secret(String::new()))?;
        Ok(Self(Secret32::take(&mut b)))
    }
}
