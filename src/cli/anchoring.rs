//! The file anchor of a command: which directory holds it, what people are told of it, and taking an older
//! state in spite of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::context::Context;
use super::open::Backend;
use super::outcome::Failure;
use super::output::Output;
use super::size::show_size;
use crate::store::BoxFuture;
use crate::store::uri::StoreUri;
use crate::volume::anchor::{Anchor, AnchorError, AnchorStatus, Anchored, Anchoring, FileAnchor, OnRollback};
use crate::volume::unlock::Unlocked;
use crate::volume::{OpenMode, Volume, VolumeError};

impl Context {
    /// The anchor of the volume that lies there: in the directory of `--anchor`, else in that of the
    /// configuration.
    pub(super) fn anchoring(&self, backend: &StoreUri) -> Option<Anchoring> {
        let configured = || self.settings.volume_at(backend).and_then(|volume| volume.anchor.clone());
        let directory = self.anchor.clone().or_else(configured)?;
        let anchor = Arc::new(Told::new(directory, self.output));
        Some(Anchoring { anchor, on_rollback: self.on_rollback })
    }

    /// Opens an unlocked volume and holds it against its anchor. An older state that is to be taken all the same
    /// is recorded before it is.
    pub(super) async fn open(
        &self,
        backend: &Backend,
        unlocked: Unlocked,
        mode: OpenMode,
    ) -> Result<Volume, Failure> {
        let failed = |error: VolumeError| Failure::from(error).of(&backend.uri);
        let Unlocked { header, keys, .. } = unlocked;
        let open = |anchoring| {
            Volume::open_authentic(backend.store.clone(), header.clone(), keys.clone(), mode, anchoring)
        };
        let anchoring = self.anchoring(&backend.uri);
        let refusing = anchoring.clone().map(|to| Anchoring { on_rollback: OnRollback::Refuse, ..to });
        let error = match (open(refusing).await, self.on_rollback) {
            (Err(error @ VolumeError::Rollback { .. }), OnRollback::Accept) => error,
            (Ok(volume), _) => return Ok(volume),
            (Err(error), _) => return Err(failed(error)),
        };
        self.output.note(&format!("{}: {error}", backend.uri));
        self.output.note(&format!(
            "{}: THIS OLDER STATE IS TAKEN, as --accept-rollback says: what was written since is given up",
            backend.uri
        ));
        self.trail.begin_rollback()?;
        let opened = open(anchoring).await.map_err(failed);
        self.trail.end_rollback(opened.as_ref().err());
        opened
    }
}

/// Tells people when an anchor is made, when it cannot be written, and when it can again.
struct Told {
    anchor: FileAnchor,
    output: Output,
    /// Nothing was held when it was looked at.
    is_new: AtomicBool,
    /// The last try to write failed.
    failing: AtomicBool,
}

impl Told {
    fn new(directory: PathBuf, output: Output) -> Self {
        let anchor = FileAnchor::new(directory);
        Self { anchor, output, is_new: AtomicBool::new(false), failing: AtomicBool::new(false) }
    }

    fn tell(&self, volume: [u8; 16], stored: &Result<(), AnchorError>) {
        let file = self.anchor.path(volume);
        let file = file.display();
        match stored {
            Err(error) if !self.failing.swap(true, Ordering::Relaxed) => self.output.note(&format!(
                "{error}; until that is mended a rollback to the roots written from now on is not noticed"
            )),
            Err(_) => {}
            Ok(()) if self.failing.swap(false, Ordering::Relaxed) => {
                self.output.note(&format!("anchor {file}: written again"));
            }
            Ok(()) if self.is_new.swap(false, Ordering::Relaxed) => self.output.note(&format!(
                "anchor {file}: made; this state was taken on trust, no older one will be from now on"
            )),
            Ok(()) => {}
        }
    }
}

impl Anchor for Told {
    fn describe(&self) -> String {
        self.anchor.describe()
    }

    fn load(&self, volume: [u8; 16]) -> BoxFuture<'_, Result<Option<Anchored>, AnchorError>> {
        Box::pin(async move {
            let held = self.anchor.load(volume).await?;
            self.is_new.store(held.is_none(), Ordering::Relaxed);
            Ok(held)
        })
    }

    fn store(&self, volume: [u8; 16], newest: Anchored) -> BoxFuture<'_, Result<(), AnchorError>> {
        Box::pin(async move {
            let stored = self.anchor.store(volume, newest).await;
            self.tell(volume, &stored);
            stored
        })
    }
}

/// The anchor as a line of a status.
pub(super) fn line(status: &AnchorStatus) -> String {
    let AnchorStatus { generation, undetected_chunks, undetected_bytes, failed, on_trust, .. } = status;
    let root = generation.map_or("none yet".to_owned(), |generation| format!("root {generation}"));
    let window = match undetected_chunks {
        0 => "a rollback would be noticed".to_owned(),
        1 => format!("a rollback of the last chunk ({}) would not be noticed", show_size(*undetected_bytes)),
        _ => format!(
            "a rollback of the last {undetected_chunks} chunks ({}) would not be noticed",
            show_size(*undetected_bytes)
        ),
    };
    let failed = failed.as_ref().map_or(String::new(), |why| format!("; NOT WRITTEN: {why}"));
    let trust = if *on_trust { "; that this state comes from the one before was taken on trust" } else { "" };
    format!("anchor             {root}; {window}{failed}{trust}\n")
}
