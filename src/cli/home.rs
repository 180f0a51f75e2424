//! Where a volume's header is changed: on the backend, or through the process that serves the volume.
//!
//! Either way the change is made here, by whoever has a key: the serving process only puts a header in place that
//! carries the volume's own authentication code, and needs no key manager for it.

use std::ffi::OsStr;

use keymgmt::manager::KeyManager;
use tokio::sync::Mutex;

use super::context::Context;
use super::known::check_pin;
use super::open::{self, Backend};
use super::outcome::Failure;
use crate::control::client::{Control, ControlError};
use crate::format::header::{Header, UnverifiedHeader};
use crate::store::Access;
use crate::volume::unlock::{HeaderCopies, Unlocked, read_header, write_header};
use crate::volume::{OpenMode, Volume, VolumeError};

/// A volume whose keyslots are about to change: unlocked, and nobody else can change it meanwhile, or
/// whoever does makes our change fail.
pub(super) struct Home {
    backend: Backend,
    /// The process that serves it.
    server: Option<Mutex<Control>>,
}

impl Home {
    /// Finds the volume, and the process that serves it.
    pub(super) async fn find(backend: &OsStr, context: &Context) -> Result<Self, Failure> {
        let seen = open::backend(backend, Access::Inspect).await?;
        if let Some((server, _)) = changing_server(&seen, context).await? {
            return Ok(Self { backend: seen, server: Some(Mutex::new(server)) });
        }
        drop(seen);
        Ok(Self { backend: open::backend(backend, Access::ReadWrite).await?, server: None })
    }

    /// How errors name it.
    pub(super) fn name(&self) -> String {
        self.backend.uri.to_string()
    }

    /// Unlocks the newest header.
    pub(super) async fn unlock(
        &self,
        managers: &[Box<dyn KeyManager>],
        context: &Context,
    ) -> Result<Unlocked, Failure> {
        match &self.server {
            None => self.backend.unlock(managers, context).await,
            // The server has authenticated it, and held it against its root.
            Some(_) => self.backend.unlock_copies(self.copies(context).await?, managers, context).await,
        }
    }

    /// The newest header as it claims to be.
    pub(super) async fn copies(&self, context: &Context) -> Result<HeaderCopies, Failure> {
        let Some(server) = &self.server else { return self.backend.header(context).await };
        let bytes = server.lock().await.header().await.map_err(|error| self.failed(error))?;
        let copy = UnverifiedHeader::decode(&bytes).map_err(|error| {
            Failure::integrity(format!("{}: the server's header: {error}", self.name()), "restart the server")
        })?;
        context.trail.volume(&self.name(), copy.claimed());
        Ok(HeaderCopies::of_backup(copy))
    }

    /// Puts the next generation in the place of the header of `unlocked`; durable and read back when this
    /// returns.
    pub(super) async fn commit(&self, unlocked: &mut Unlocked, header: Header) -> Result<(), Failure> {
        let failed = |error: VolumeError| Failure::from(error).of(&self.backend.uri);
        let mut next = header;
        let found = match &self.server {
            None => {
                let store = &*self.backend.store;
                write_header(store, &mut next, &unlocked.keys).await.map_err(failed)?;
                read_header(store).await.map_err(failed)?
            }
            Some(server) => {
                next.generation += 1;
                let mut server = server.lock().await;
                let replaced = server.replace_header(&next.encode(&unlocked.keys)).await;
                replaced.map_err(|error| self.failed(error))?;
                let bytes = server.header().await.map_err(|error| self.failed(error))?;
                let copy = UnverifiedHeader::decode(&bytes);
                HeaderCopies::of_backup(copy.map_err(|error| failed(VolumeError::Unsupported(error)))?)
            }
        };
        let found = found.authenticate(&unlocked.keys).map_err(failed)?;
        // Through a server somebody else may have changed it since: theirs was made from ours.
        let overtaken = self.server.is_some() && found.generation > next.generation;
        if found != next && !overtaken {
            return Err(Failure::integrity(
                format!("{}: the header reads back differently", self.backend.uri),
                "the backend does not store what it is given; keep a copy of it, then sealbd header verify BACKEND",
            ));
        }
        unlocked.header = next;
        check_pin(unlocked)
    }

    /// From when this returns, headers before that of `unlocked` are refused.
    pub(super) async fn refuse_older(&self, unlocked: &Unlocked, context: &Context) -> Result<(), Failure> {
        if self.server.is_some() {
            // Every change through the server ends with such a root.
            return Ok(());
        }
        let failed = |error: VolumeError| Failure::from(error).of(&self.backend.uri);
        let (store, header, keys) = (&self.backend.store, &unlocked.header, &unlocked.keys);
        let anchoring = context.anchoring(&self.backend.uri);
        let mode = OpenMode::ReadWrite;
        let opened = Volume::open_authentic(store.clone(), header.clone(), keys.clone(), mode, anchoring);
        let volume = opened.await.map_err(failed)?;
        volume.close().await.map_err(failed)
    }

    /// Ends the serving of the volume when it is `wanted`, and tells how things stand.
    pub(super) async fn end_serving(&self, wanted: bool) -> Result<&'static str, Failure> {
        match &self.server {
            None => Ok("not served on this host"),
            Some(_) if !wanted => Ok("goes on until it is stopped"),
            Some(server) => {
                server.lock().await.stop().await.map_err(|error| self.failed(error))?;
                Ok("ended")
            }
        }
    }

    fn failed(&self, error: ControlError) -> Failure {
        Failure::from(error).of(self.name())
    }
}

/// The process that serves the volume on this host, if one does.
pub(super) async fn serving(backend: &Backend, context: &Context) -> Result<Option<Control>, Failure> {
    let Some(directory) = context.settings.control_directory() else { return Ok(None) };
    // A volume without a readable header is not served.
    let Ok(copies) = read_header(&*backend.store).await else { return Ok(None) };
    backend.check_uuid(copies.claimed(), context)?;
    Ok(Control::connect(&directory, copies.claimed().volume).await?)
}

/// The process that serves the volume on this host for writing, with its number. One that only reads changes
/// nothing; the volume is in use then.
pub(super) async fn changing_server(
    backend: &Backend,
    context: &Context,
) -> Result<Option<(Control, u32)>, Failure> {
    let Some(mut server) = serving(backend, context).await? else { return Ok(None) };
    let status = server.status().await.map_err(|error| Failure::from(error).of(&backend.uri))?;
    Ok((!status.read_only).then_some((server, status.pid)))
}

/// Proves that keyslot `number` of a header that is on no store yet opens it.
pub(super) async fn prove(
    header: &Header,
    unlocked: &Unlocked,
    managers: &[Box<dyn KeyManager>],
    number: usize,
    context: &Context,
) -> Result<(), Failure> {
    let staged = header.encode(&unlocked.keys);
    let copy = UnverifiedHeader::decode(&staged).map_err(|error| {
        Failure::integrity(format!("the new header is not well-formed: {error}"), "report this as a bug")
    })?;
    let opened = HeaderCopies::of_backup(copy).unlock_slot(context.engine, managers, number).await?;
    if opened.dek.matches(&unlocked.dek) {
        return Ok(());
    }
    Err(Failure::integrity("the new keyslot opens to another key", "report this as a bug"))
}
