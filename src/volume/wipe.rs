//! Knowing that the keys of a closed volume are gone.

use tokio::sync::watch;

use super::{OpenMode, Volume};

/// Waits for the keys of an open volume to be wiped: that is when its last clone is dropped and its
/// background work has ended.
pub(crate) struct KeysWiped(watch::Receiver<()>);

impl KeysWiped {
    /// Returns when no key of that volume is in memory.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub(crate) async fn wait(&mut self) {
        // Nothing is ever sent; it ends when the sender goes, the last part of the volume to do so.
        while self.0.changed().await.is_ok() {}
    }
}

impl Volume {
    /// To wait with, once the volume has been closed and dropped.
    pub(crate) fn keys_wiped(&self) -> KeysWiped {
        KeysWiped(self.core.gone.subscribe())
    }

    /// The keys, for a test to see that they are gone.
    #[cfg(test)]
    pub(crate) fn keys(&self) -> std::sync::Weak<crate::cipher::VolumeKeys> {
        std::sync::Arc::downgrade(&self.core.keys)
    }

    /// What it was opened for.
    pub(crate) fn mode(&self) -> OpenMode {
        self.core.mode
    }

    /// Number of the last chunk of the log that took effect; it never goes back.
    pub(crate) fn log_seq(&self) -> u64 {
        self.core.queue().completed_seq()
    }

    /// Generation of the newest header that this volume has used.
    pub(crate) async fn header_generation(&self) -> u64 {
        self.core.checkpointer.lock().await.header_generation
    }
}
