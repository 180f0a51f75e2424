//! Another size for the volume, under its clients: which one holds, and what is there.

use sealbd::export::Export;
use sealbd::volume::Volume;

use super::{World, fit};
use crate::client::{Refusal, Request};
use crate::failure::Violation;
use crate::oracle::Time;

impl World<'_> {
    /// A request as it fits into the volume, whatever becomes of a resize that is under way.
    pub(super) fn fit(&self, offset: u64, len: u64) -> (u64, u64) {
        let size = self.oracle.bytes();
        fit(offset, len, self.resizing.map_or(size, |new| new.min(size)))
    }

    /// Asks for another size. Of what lies behind a smaller end nobody wants anything any more from here on.
    pub(super) async fn resize(&mut self, size: u64, keep_spare: bool, trims: bool) -> Result<(), Violation> {
        if self.resizing.is_some() {
            self.drain().await?;
        }
        let now = self.oracle.bytes();
        let mut was_trimmed = false;
        if size < now {
            self.drain().await?;
            self.resizing = Some(size);
            if trims {
                let op = self.change(size, now - size, true);
                self.ask(Request::Trim { op, offset: size, len: now - size, fua: false });
                let refused = self.tally.refused;
                self.drain().await?;
                was_trimmed = self.tally.refused == refused;
            }
        }
        if self.live.is_some() {
            self.resizing = Some(size);
            let since = self.oracle.tick();
            self.other_sizes.push(size);
            self.ask(Request::Resize { since, size, keep_spare, was_trimmed });
        }
        Ok(())
    }

    /// Takes the answer to that.
    pub(super) fn resized(
        &mut self,
        since: Time,
        size: u64,
        was_trimmed: bool,
        refusal: Option<&Refusal>,
    ) -> Result<(), Violation> {
        self.resizing = None;
        let is_now = self.live.as_ref().map(|live| live.volume.info().size);
        let old = self.oracle.bytes();
        match refusal {
            None => {
                self.tally.resized += 1;
                if is_now != Some(size) {
                    let what = format!("resized to {size} bytes, and the volume has {is_now:?}");
                    return Err(Violation { invariant: "a resize", what });
                }
                if size < old && !was_trimmed {
                    // Then it was empty all the same.
                    let zeros = vec![0; usize::try_from(old - size).expect("in memory")];
                    self.oracle.judge_read(since, size, &zeros)?;
                }
                self.other_sizes.clear();
                self.oracle.resize(size);
            }
            // Nothing was written.
            Some(Refusal::InUse(_)) => {
                self.other_sizes.pop();
            }
            // It failed behind the point from which on it holds.
            Some(_) if size != old && is_now == Some(size) => {
                self.other_sizes.clear();
                self.oracle.resize(size);
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// A session begins: the volume has the size that it had, or one that a resize was begun for.
    pub(super) fn adopt_size(&mut self, volume: &Volume) -> Result<(), Violation> {
        let (found, known) = (volume.info().size, self.oracle.bytes());
        if found != known && !self.other_sizes.contains(&found) && !self.tainted {
            let others = &self.other_sizes;
            let what = format!("the volume has {found} bytes, not {known} and none of {others:?}");
            return Err(Violation { invariant: "a resize", what });
        }
        self.other_sizes.clear();
        self.resizing = None;
        self.oracle.resize(found);
        Ok(())
    }
}
