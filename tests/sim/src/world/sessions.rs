//! Sessions: making the volume, opening it, and all the ways in which a session ends.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use keymgmt::manager::KeyManager;
use sealbd::cipher::{Engine, Surroundings};
use sealbd::volume::create::NewVolume;
use sealbd::volume::unlock::read_header;
use sealbd::volume::{OpenMode, Volume, VolumeError};
use tokio::time::timeout;

use super::{Live, PATIENCE, World};
use crate::client::Request;
use crate::failure::Violation;
use crate::keys::OpenKey;
use crate::oracle::{Oracle, Survived};
use crate::profile::Profile;
use crate::random::Dice;
use crate::store::{Operation, Session};

impl World<'_> {
    /// Makes a volume over whatever was there, and opens it.
    pub(super) async fn make_volume(&mut self) -> Result<(), Violation> {
        let lies = {
            let mut state = self.medium.state();
            state.watch.detach();
            std::mem::replace(&mut state.manners.lies, false)
        };
        let store = self.medium.session();
        let made = self.format(store.clone()).await;
        made.map_err(|error| Violation { invariant: "making a volume", what: error.to_string() })?;
        {
            let mut state = self.medium.state();
            state.manners.lies = lies;
            // What of the old volume was not flushed is none of the new one's business.
            let image = state.durable_image();
            state.roll_back(&image);
            let (header, keys) = self.volume.clone().expect("made above");
            state.watch.attach(header, keys);
            state.watch.strict = true;
        }
        drop(store);
        self.oracle = Oracle::new(self.setting.geometry.export_bytes);
        self.snapshot = None;
        self.other_sizes.clear();
        self.resizing = None;
        self.tainted = false;
        self.open_live().await
    }

    async fn format(&mut self, store: Arc<Session>) -> Result<(), VolumeError> {
        let surroundings = Surroundings::replayed(self.seeds.any());
        let (geometry, align) = (self.setting.geometry, self.setting.align);
        let mut new = NewVolume::prepare_in(surroundings, geometry, align, "simulated", Engine::default())?;
        new.add_key(&OpenKey, 0).await?;
        new.write(store.clone()).await?;
        let managers: [Box<dyn KeyManager>; 1] = [Box::new(OpenKey)];
        let unlocked = read_header(&*store).await?.unlock(Engine::default(), &managers).await?;
        self.volume = Some((unlocked.header, unlocked.keys));
        Ok(())
    }

    async fn open(&mut self, store: &Arc<Session>, mode: OpenMode) -> Result<Volume, VolumeError> {
        let (_, keys) = self.volume.clone().expect("a volume was made first");
        let surroundings = Surroundings::replayed(self.seeds.any());
        let opening = async {
            // It says which size the volume has.
            let header = read_header(&**store).await?.authenticate(&keys)?;
            let opening = Volume::open_in(surroundings, store.clone(), header, keys, mode, None);
            let volume = Box::pin(opening).await?;
            volume.limit_pages(self.setting.page_bytes);
            Ok(volume)
        };
        timeout(PATIENCE, opening)
            .await
            .unwrap_or_else(|_| Err(VolumeError::Stopped("opening took longer than an hour".into())))
    }

    async fn open_live(&mut self) -> Result<(), Violation> {
        let store = self.medium.session();
        let troubles = self.medium.state().troubles();
        let volume = self.open(&store, OpenMode::ReadWrite).await.map_err(|error| does_not_open(&error))?;
        self.tally.sessions += 1;
        self.adopt_size(&volume)?;
        self.live = Some(Live { volume, store, troubles });
        Ok(())
    }

    /// Closes the session, with requests under way.
    pub(super) async fn close(&mut self) -> Result<(), Violation> {
        self.closing = true;
        let since = self.oracle.tick();
        self.ask(Request::Close { since });
        let closed = self.drain().await;
        self.closing = false;
        closed?;
        if !self.troubled() && !self.medium.state().is_quiet() {
            let what = "something is still under way to the store".into();
            return Err(Violation { invariant: "nothing follows a close", what });
        }
        self.kill().await
    }

    /// Ends every session at once.
    pub(super) async fn kill(&mut self) -> Result<(), Violation> {
        self.medium.state().kill();
        self.forget_sessions().await
    }

    async fn forget_sessions(&mut self) -> Result<(), Violation> {
        self.requests = FuturesUnordered::new();
        self.foreign = FuturesUnordered::new();
        self.reads.clear();
        for ended in [self.live.take(), self.zombie.take()].into_iter().flatten() {
            let Live { volume, store, .. } = ended;
            drop(volume);
            // Its tasks find that nothing arrives any more, and end.
            tokio::time::sleep(Duration::from_secs(10)).await;
            if Arc::strong_count(&store) > 1 {
                let what = "a session that ended still holds its store after ten seconds".into();
                return Err(Violation { invariant: "nothing is left behind", what });
            }
        }
        Ok(())
    }

    pub(super) async fn lose_power(&mut self, recoveries: u8, dice: &mut Dice) -> Result<(), Violation> {
        self.power_goes().await?;
        for _ in 0..recoveries {
            let store = self.medium.session();
            self.medium.state().cut_after(dice.below(14));
            let opened = self.open(&store, OpenMode::ReadWrite).await;
            match opened {
                Err(error) if !self.medium.state().is_cut() && !self.tainted => {
                    return Err(does_not_open(&error));
                }
                _ => {}
            }
            drop(opened);
            self.medium.state().kill();
            self.power_goes().await?;
        }
        self.reopen(Survived::PowerLoss, dice).await
    }

    async fn power_goes(&mut self) -> Result<(), Violation> {
        self.tally.power_losses += 1;
        self.tainted |= self.is_lying();
        {
            let mut state = self.medium.state();
            state.lose_power();
            state.watch.strict &= !self.tainted;
        }
        self.forget_sessions().await
    }

    /// Puts a stopped volume back to an earlier state, which it opens as: there is no anchor.
    pub(super) async fn roll_back(&mut self, dice: &mut Dice) -> Result<(), Violation> {
        let Some((image, oracle, other_sizes)) = self.snapshot.clone() else { return Ok(()) };
        self.kill().await?;
        if self.tainted {
            return self.reopen(Survived::PowerLoss, dice).await;
        }
        self.medium.state().roll_back(&image);
        self.oracle = oracle;
        self.other_sizes = other_sizes;
        self.tainted |= self.is_lying();
        self.tally.rolled_back += 1;
        self.reopen(Survived::PowerLoss, dice).await
    }

    pub(super) fn roll_back_under(&mut self) {
        let Some((image, ..)) = &self.snapshot else { return };
        let mut state = self.medium.state();
        state.roll_back(image);
        state.watch.strict = false;
        state.note_trouble();
        self.tainted = true;
    }

    /// Opens the volume a second time, without the first session's knowledge.
    pub(super) async fn take_over(&mut self) -> Result<(), Violation> {
        if self.tainted || self.live.is_none() {
            return Ok(());
        }
        self.drain().await?;
        let store = self.medium.second_session();
        {
            let mut state = self.medium.state();
            state.watch.strict = false;
            state.note_trouble();
        }
        let opened = self.open(&store, OpenMode::ReadWrite).await;
        self.zombie = self.live.take();
        self.tainted = true;
        let troubles = self.medium.state().troubles();
        // The first session did nothing meanwhile but what it does by itself.
        if let Ok(volume) = opened {
            self.tally.sessions += 1;
            self.adopt_size(&volume)?;
            let content = self.read_all(&volume).await;
            self.live = Some(Live { volume, store, troubles });
            if let Ok(content) = content {
                self.oracle.settle(&content, Survived::ProcessDeath)?;
            }
        } else {
            self.tally.openings_refused += 1;
        }
        Ok(())
    }

    /// Opens the volume after the end of all sessions, and judges what is there.
    pub(super) async fn reopen(&mut self, survived: Survived, dice: &mut Dice) -> Result<(), Violation> {
        if self.tainted {
            return self.reopen_tainted().await;
        }
        let mut survived = survived;
        if self.setting.profile == Profile::Failing && dice.one_in(3) {
            self.open_on_a_failing_store(dice).await?;
        }
        let shown = if dice.one_in(3) { Some(self.look(dice.one_in(2)).await?) } else { None };
        // Only now: an opening that failed may have lost something, too.
        if self.medium.state().take_cache_lost() {
            survived = Survived::PowerLoss;
        }
        self.open_live().await?;
        let volume = self.live.as_ref().expect("opened above").volume.clone();
        let content = self.read_all(&volume).await?;
        // What is shown read-only may have the size that a resize was to end.
        let same = |shown: Vec<u8>| shown.iter().zip(&content).all(|(shown, found)| shown == found);
        if shown.is_some_and(|shown| !same(shown)) {
            let what = "what was shown read-only is not what is there when opened for writing".into();
            return Err(Violation { invariant: "I2", what });
        }
        self.oracle.settle(&content, survived)?;
        self.check(&volume, dice.one_in(4)).await
    }

    /// Opens with an error under way; what comes of it counts for nothing.
    async fn open_on_a_failing_store(&mut self, dice: &mut Dice) -> Result<(), Violation> {
        let store = self.medium.session();
        let operation = dice.pick(&[Operation::Read, Operation::Write, Operation::Sync]);
        self.medium.state().fail_next(operation, 1);
        let troubles = self.medium.state().troubles();
        match self.open(&store, OpenMode::ReadWrite).await {
            Err(error) if self.medium.state().troubles() == troubles => return Err(does_not_open(&error)),
            Ok(_) | Err(_) => {}
        }
        self.medium.state().kill();
        self.forget_sessions().await
    }

    /// What a session that only reads is shown; it changes nothing on the store.
    async fn look(&mut self, deep: bool) -> Result<Vec<u8>, Violation> {
        let store = self.medium.session();
        let before = self.medium.state().counts;
        let volume = self.open(&store, OpenMode::ReadOnly).await.map_err(|error| does_not_open(&error))?;
        let content = self.read_all(&volume).await?;
        self.check(&volume, deep).await?;
        drop(volume);
        let after = self.medium.state().counts;
        if (before.writes, before.syncs) != (after.writes, after.syncs) {
            let what = "a session that only reads changed the store".into();
            return Err(Violation { invariant: "read-only", what });
        }
        Ok(content)
    }

    /// Opens a volume of which nothing is promised: it may be refused, and shows nothing that nobody wrote. Then a
    /// new one is made in its place.
    async fn reopen_tainted(&mut self) -> Result<(), Violation> {
        let store = self.medium.session();
        self.medium.state().watch.strict = false;
        match self.open(&store, OpenMode::ReadWrite).await {
            Ok(volume) => {
                self.tally.opened_tainted += 1;
                self.read_what_there_is(&volume).await?;
                let _ = volume.check(true, |_| {}).await;
            }
            Err(_) => self.tally.openings_refused += 1,
        }
        self.medium.state().kill();
        self.forget_sessions().await?;
        self.make_volume().await
    }

    /// The end of a run: everything ends well, and is there.
    pub(super) async fn end(&mut self) -> Result<(), Violation> {
        self.verify().await?;
        self.close().await?;
        self.reopen(Survived::ProcessDeath, &mut Dice::new(0)).await?;
        if let Some(live) = &self.live {
            self.check(&live.volume, true).await?;
        }
        self.close().await?;
        self.watched()
    }
}

fn does_not_open(error: &VolumeError) -> Violation {
    Violation { invariant: "it opens", what: error.to_string() }
}
