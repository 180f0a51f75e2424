//! Where a volume's header is changed: on the backend, or through the process that serves the volume.

use std::ffi::OsStr;

use keymgmt::manager::KeyManager;

use super::context::Context;
use super::known::check_pin;
use super::open::{self, Backend};
use super::outcome::Failure;
use crate::format::header::{Header, UnverifiedHeader};
use crate::store::Access;
use crate::volume::unlock::{HeaderCopies, Unlocked, read_header, write_header};
use crate::volume::{OpenMode, Volume, VolumeError};

/// A volume whose keyslots are about to change: unlocked, and nobody else can change it meanwhile, or
/// whoever does makes our change fail.
pub(super) struct Home {
    backend: Backend,
}

impl Home {
    /// Finds the volume.
    pub(super) async fn find(backend: &OsStr, _context: &Context) -> Result<Self, Failure> {
        Ok(Self { backend: open::backend(backend, Access::ReadWrite).await? })
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
        self.backend.unlock(managers, context).await
    }

    /// The newest header as it claims to be.
    pub(super) async fn copies(&self, context: &Context) -> Result<HeaderCopies, Failure> {
        self.backend.header(context).await
    }

    /// Puts the next generation in the place of the header of `unlocked`; durable and read back when this
    /// returns.
    pub(super) async fn commit(&self, unlocked: &mut Unlocked, header: Header) -> Result<(), Failure> {
        let failed = |error: VolumeError| Failure::from(error).of(&self.backend.uri);
        let store = &*self.backend.store;
        let mut next = header;
        write_header(store, &mut next, &unlocked.keys).await.map_err(failed)?;
        let found = read_header(store).await.map_err(failed)?.authenticate(&unlocked.keys).map_err(failed)?;
        if found != next {
            return Err(Failure::integrity(
                format!("{}: the header reads back differently", self.backend.uri),
                "the backend does not store what it is given; keep a copy of it, then sealbd header verify BACKEND",
            ));
        }
        unlocked.header = next;
        check_pin(unlocked)
    }

    /// From when this returns, headers before that of `unlocked` are refused.
    pub(super) async fn refuse_older(&self, unlocked: &Unlocked) -> Result<(), Failure> {
        let failed = |error: VolumeError| Failure::from(error).of(&self.backend.uri);
        let (store, header, keys) = (&self.backend.store, &unlocked.header, &unlocked.keys);
        let opened = Volume::open_authentic(store.clone(), header.clone(), keys.clone(), OpenMode::ReadWrite);
        let volume = opened.await.map_err(failed)?;
        volume.close().await.map_err(failed)
    }

    /// Ends the serving of the volume when it is `wanted`, and tells how things stand.
    #[expect(clippy::unused_async, reason = "asks the serving process once there is one")]
    pub(super) async fn end_serving(
        &self,
        _wanted: bool,
        _context: &Context,
    ) -> Result<&'static str, Failure> {
        Ok("not served")
    }
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
