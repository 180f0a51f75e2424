//! A new generation of the header while the volume is open: keyslots change, nothing else does; for another
//! size there is `resize`.
//!
//! Whoever asks has the data key, for the bytes carry a MAC under a key derived from it; the volume needs
//! no key manager for this. The header on the store is the only record of what it is now; each change is
//! followed by a root that refuses the headers before it (docs/FORMAT.md §4).

use std::sync::Arc;

use super::queue::Health;
use super::unlock::{read_header, write_copies};
use super::{Core, OpenMode, Volume, VolumeError};
use crate::format::header::{Header, UnverifiedHeader};

impl Volume {
    /// The newest header on the store, authenticated.
    ///
    /// # Errors
    /// [`VolumeError::HeaderRollback`] when it is older than one that was in use,
    /// [`VolumeError::Damaged`] when no copy is authentic, and the store's.
    pub async fn newest_header(&self) -> Result<Header, VolumeError> {
        let checkpointer = self.core.checkpointer.lock().await;
        self.core.newest_header(checkpointer.header_generation).await
    }

    /// The same, byte for byte as it stands on the store.
    ///
    /// # Errors
    /// As [`Self::newest_header`].
    pub async fn newest_header_bytes(&self) -> Result<Vec<u8>, VolumeError> {
        Ok(self.newest_header().await?.encode(&self.core.keys))
    }

    /// Puts the next generation of the header on the store: `bytes` as [`Header::encode`] makes them. When
    /// this returns, both copies are durable and a root refuses every header before it.
    ///
    /// # Errors
    /// [`VolumeError::Refused`] when the bytes are not the next generation of this volume's header or change
    /// more than keyslots and label, [`VolumeError::Damaged`] when they do not authenticate, and the
    /// store's: the header on it is then of the old or of the new generation, and this can be repeated
    /// from [`Self::newest_header`].
    ///
    /// # Cancel safety
    /// As after an error of the store.
    pub async fn replace_header(&self, bytes: &[u8]) -> Result<Header, VolumeError> {
        let core = &self.core;
        if core.mode == OpenMode::ReadOnly {
            return Err(VolumeError::Refused("the volume is open for reading only".into()));
        }
        let new = UnverifiedHeader::decode(bytes)
            .and_then(|copy| copy.verify(&core.keys))
            .map_err(|source| VolumeError::damaged("new header", 0, source))?;
        {
            // Held to the end: no root may name a generation that is not on the store, and changes queue.
            let mut checkpointer = core.checkpointer.lock().await;
            if let Health::Stopped(error) = &core.queue().health {
                return Err(VolumeError::Stopped(error.to_string()));
            }
            let now = core.newest_header(checkpointer.header_generation).await?;
            check_change(&now, &new)?;
            write_copies(&*core.store, bytes).await?;
            // With it a larger size that an earlier resize left unfinished.
            core.install(&mut checkpointer, new.clone());
        }
        core.checkpoint().await?;
        Ok(new)
    }
}

impl Core {
    pub(super) async fn newest_header(self: &Arc<Self>, known: u64) -> Result<Header, VolumeError> {
        let header = read_header(&*self.store).await?.authenticate(&self.keys)?;
        let found = header.generation;
        if found < known { Err(VolumeError::HeaderRollback { found, known }) } else { Ok(header) }
    }
}

/// Refuses what is not the next generation, or changes what an open volume relies on.
fn check_change(now: &Header, new: &Header) -> Result<(), VolumeError> {
    if Some(new.generation) != now.generation.checked_add(1) {
        return Err(VolumeError::Refused(format!(
            "the header is of generation {} now, so generation {} is not the next; read it again",
            now.generation, new.generation
        )));
    }
    let same = Header {
        generation: now.generation,
        label: now.label,
        keyslots: now.keyslots.clone(),
        ..new.clone()
    };
    if same == *now {
        return Ok(());
    }
    Err(VolumeError::Refused("the new header changes more than keyslots and label".into()))
}
