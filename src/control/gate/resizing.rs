//! Another size for a volume while it is served.
//!
//! Who is connected keeps the size that it was told; who comes sees the new one. A volume becomes smaller only while
//! nobody is connected.

use std::sync::Arc;

use super::{Gate, Inner, NotRunning, Slot, finish};
use crate::export::Export;
use crate::volume::{Resized, VolumeError, WantedSize};

/// Why a served volume was not given another size.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// It is suspended or stopped.
    #[error(transparent)]
    NotRunning(#[from] NotRunning),
    /// Clients go by the larger size.
    #[error(
        "the volume cannot become smaller while it is used: NBD cannot tell clients of another size, and there {}",
        match .0 { 1 => "is one connection".to_owned(), count => format!("are {count} connections") }
    )]
    Clients(usize),
    /// The volume's own reasons.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl Gate {
    /// Gives the running volume another size, or tells what it would become.
    ///
    /// # Errors
    /// [`ResizeError`]; as [`Volume::resize`](crate::volume::Volume::resize).
    ///
    /// # Panics
    /// When resizing the volume does.
    ///
    /// # Cancel safety
    /// When dropped, the resize goes on to its end.
    pub async fn resize(&self, wanted: WantedSize) -> Result<Resized, ResizeError> {
        let inner = Arc::clone(&self.inner);
        finish(async move { inner.resize(wanted).await }).await
    }

    /// From now on clients are told what the volume says of itself; for whoever has changed it.
    pub fn tell_anew(&self) {
        if let Ok(volume) = self.volume() {
            self.inner.doors.tell(volume.info());
        }
    }
}

impl Inner {
    async fn resize(&self, wanted: WantedSize) -> Result<Resized, ResizeError> {
        // Changes wait for each other.
        let _turn = self.control.lock().await;
        let slot = self.slot.try_read().map_err(|_| NotRunning)?;
        let volume = Slot::volume(&slot).ok_or(NotRunning)?;
        let to = volume.geometry_for(wanted).await?;
        let smaller = to.export_bytes < volume.header().export_bytes;
        let mut lowered = match smaller {
            true => Some(self.doors.lower(to.export_bytes).map_err(ResizeError::Clients)?),
            false => None,
        };
        if wanted.dry_run {
            lowered = None;
        }
        let resized = volume.become_size(to, wanted.dry_run).await;
        self.doors.tell(volume.info());
        drop(lowered);
        Ok(resized?)
    }
}
