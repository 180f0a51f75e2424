//! Judging answers.

use sealbd::export::Export;
use sealbd::geometry::ByteRange;

use super::{World, inexcusable};
use crate::client::{self, Answer, Refusal, Request};
use crate::content::{UNIT, UNIT_BYTES, Value, value_of};
use crate::failure::Violation;

impl World<'_> {
    /// Takes the answer to a request of the session that is open.
    pub(super) fn take(&mut self, id: u64, answer: Answer) -> Result<(), Violation> {
        self.reads.remove(&id);
        let Answer { request, result } = answer;
        match &result {
            Ok(_) => self.tally.answered += 1,
            Err(refusal) => self.excuse(&request, refusal)?,
        }
        match (request, &result) {
            (Request::Read { since, offset, .. }, Ok(data)) => self.oracle.judge_read(since, offset, data)?,
            (
                Request::Write { op, fua, .. }
                | Request::Trim { op, fua, .. }
                | Request::Zero { op, fua, .. },
                result,
            ) => self.oracle.answer(op, result.is_ok(), fua && !self.is_lying()),
            (Request::Flush { since } | Request::Checkpoint { since } | Request::Close { since }, Ok(_))
                if !self.is_lying() =>
            {
                self.oracle.flushed(since)
            }
            (Request::Resize { since, size, was_trimmed, .. }, result) => {
                self.resized(since, size, was_trimmed, result.as_ref().err())?;
            }
            (Request::Compact { .. }, Ok(_)) => self.tally.compacted += 1,
            _ => {}
        }
        Ok(())
    }

    /// A refusal must have a cause: the store failed, or the volume is being closed.
    fn excuse(&mut self, request: &Request, refusal: &Refusal) -> Result<(), Violation> {
        let excused = match refusal {
            Refusal::ShuttingDown => self.closing || self.troubled(),
            Refusal::NoSpace(_) if !self.troubled() => {
                self.tally.no_space += 1;
                self.setting.may_be_full
            }
            Refusal::InUse(_) => {
                self.troubled() || matches!(request, Request::Resize { was_trimmed: false, .. })
            }
            Refusal::Wrong(_) | Refusal::NoSpace(_) | Refusal::Other(_) => self.troubled(),
        };
        self.tally.refused += 1;
        if excused {
            return Ok(());
        }
        Err(inexcusable(&format!("{request:?}"), refusal))
    }

    /// Takes an answer to a session that does not know that it was deposed: it may be refused, and may not know
    /// what was written since, but never shows what nobody wrote.
    pub(super) fn take_foreign(&mut self, answer: Answer) -> Result<(), Violation> {
        if let (Request::Read { offset, .. }, Ok(data)) = (answer.request, answer.result) {
            self.judge_anything(offset, &data)?;
        }
        Ok(())
    }

    /// Whether every unit holds zeros or what some request once wrote there.
    pub(super) fn judge_anything(&self, offset: u64, data: &[u8]) -> Result<(), Violation> {
        for (index, unit) in (0u64..).zip(data.chunks_exact(UNIT)) {
            let at = offset + index * UNIT_BYTES;
            let known = match value_of(unit, at) {
                Some(Value::Zero) => true,
                Some(Value::Of(op)) => {
                    self.ranges.get(op as usize).is_some_and(|(from, to)| (*from..*to).contains(&at))
                }
                None => false,
            };
            if !known {
                let what = format!("byte {at} holds what nobody wrote there: {:02x?}…", &unit[..16]);
                return Err(Violation { invariant: "I1", what });
            }
        }
        Ok(())
    }

    /// Reads the whole volume, in pieces; nothing may fail.
    pub(super) async fn read_all(&self, volume: &sealbd::volume::Volume) -> Result<Vec<u8>, Violation> {
        let export = volume.info().size;
        let piece = 1 << 20;
        let mut content = Vec::with_capacity(usize::try_from(export).expect("in memory"));
        for offset in (0..export).step_by(1 << 20) {
            let range = ByteRange::within(offset, piece.min(export - offset), export).expect("inside");
            let data = client::read(volume, range).await;
            content.extend(data.map_err(|refusal| inexcusable(&format!("reading {range:?}"), &refusal))?);
        }
        Ok(content)
    }

    /// Reads what can be read, sector by sector, of a volume of which nothing is promised.
    pub(super) async fn read_what_there_is(&self, volume: &sealbd::volume::Volume) -> Result<(), Violation> {
        let export = volume.info().size;
        for offset in (0..export).step_by(4096) {
            let range = ByteRange::within(offset, 4096, export).expect("inside");
            match client::read(volume, range).await {
                Ok(data) => self.judge_anything(offset, &data)?,
                Err(refusal @ Refusal::Wrong(_)) => return Err(inexcusable("reading", &refusal)),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Lets all requests end, makes everything durable, and reads and verifies all of it.
    pub(super) async fn verify(&mut self) -> Result<(), Violation> {
        self.drain().await?;
        let troubled = self.troubled();
        let since = self.oracle.tick();
        self.ask(Request::Flush { since });
        self.drain().await?;
        if troubled || self.troubled() {
            return Ok(());
        }
        let Some(live) = &self.live else { return Ok(()) };
        let volume = live.volume.clone();
        let since = self.oracle.tick();
        let content = self.read_all(&volume).await;
        // Another fault may have struck meanwhile.
        if self.troubled() {
            return Ok(());
        }
        let content = content?;
        self.oracle.judge_read(since, 0, &content)?;
        if !self.is_lying() {
            self.oracle.know_content(&content);
        }
        self.check(&volume, false).await
    }

    /// Everything that a check knows holds.
    pub(super) async fn check(&self, volume: &sealbd::volume::Volume, deep: bool) -> Result<(), Violation> {
        let report = volume.check(deep, |_| {}).await;
        if self.troubled() {
            return Ok(());
        }
        let report = report.map_err(|error| Violation { invariant: "I5", what: error.to_string() })?;
        if report.is_clean() {
            return Ok(());
        }
        let what = format!("check found {:?}, damaged sectors {:?}", report.problems, report.damaged);
        Err(Violation { invariant: "I4, I5", what })
    }
}
