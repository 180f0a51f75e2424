//! What a command leaves in the audit log: what it is about as it gets known, `started` before the first
//! change, and how it ended.
//!
//! A verb is recorded when `Command::audited` names it. Volumes and the keyslots that open them are noted where
//! headers are read and unlocked (`open.rs`), the end by `cli::main`. So all that is left to a verb that changes
//! something is `context.trail.begin()?` before it does, and [`Trail::changed`] for keyslots.

use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};

use keymgmt::manager::{KeyDescription, SlotType};
use keymgmt::request::RequestId;
use uuid::Uuid;

use super::outcome::Failure;
use super::output::Output;
use crate::audit::{AuditError, Change, ChangeKind, Event, Key, Log, Outcome, Settings, Text};
use crate::format::header::Header;

/// Taking an older state has a record of its own beside that of the verb.
const ROLLBACK_VERB: &str = "rollback-accept";

/// The record of one command; of several volumes each has its own.
pub(super) struct Trail {
    log: Log,
    /// The verb as it stands in the log; `None` for one that is not recorded.
    verb: Option<&'static str>,
    dry_run: bool,
    request: RequestId,
    output: Output,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What is known before any volume is.
    first: Subject,
    volumes: Vec<Subject>,
    /// A command that ends by itself and yet failed.
    failed: Option<(&'static str, u8)>,
}

/// One volume, and what became of it.
#[derive(Clone, Default)]
struct Subject {
    backend: Option<String>,
    volume: Option<[u8; 16]>,
    replaces: Option<[u8; 16]>,
    key: Option<Key>,
    changes: Vec<Change>,
    ended: bool,
}

impl Trail {
    /// The trail of a command on `backend`, where it names one.
    pub(super) fn new(
        log: Log,
        verb: Option<&'static str>,
        dry_run: bool,
        backend: Option<String>,
        request: RequestId,
        output: Output,
    ) -> Self {
        let state = State { first: Subject { backend, ..Subject::default() }, ..State::default() };
        Self { log, verb, dry_run, request, output, state: Mutex::new(state) }
    }

    /// Where this command is recorded, and where others of this user are.
    pub(super) fn settings(&self) -> &Settings {
        self.log.settings()
    }

    /// From here on it is about what lies there, whatever that turns out to be; one of several.
    pub(super) fn about(&self, backend: &str) {
        let subject = Subject { backend: Some(backend.to_owned()), ..Subject::default() };
        self.state().volumes.push(subject);
    }

    /// From here on it is about this volume.
    pub(super) fn volume(&self, backend: &str, header: &Header) {
        let mut state = self.state();
        match state.volumes.last_mut().filter(|subject| !subject.ended) {
            Some(subject) if subject.volume == Some(header.volume) => return,
            Some(subject) if subject.volume.is_none() => {
                subject.volume = Some(header.volume);
                return;
            }
            _ => {}
        }
        let mut subject = match state.volumes.is_empty() {
            true => state.first.clone(),
            false => Subject::default(),
        };
        subject.backend = Some(backend.to_owned());
        subject.volume = Some(header.volume);
        state.volumes.push(subject);
    }

    /// This keyslot opened it.
    pub(super) fn slot(&self, number: usize, slot_type: SlotType, described: &KeyDescription) {
        self.state().current().key = Some(key(number, slot_type, described));
    }

    /// The volume that a new one is written over.
    pub(super) fn replaces(&self, header: &Header) {
        self.state().current().replaces = Some(header.volume);
    }

    /// A keyslot was made or removed; told with the end.
    pub(super) fn changed(
        &self,
        change: ChangeKind,
        number: usize,
        slot_type: SlotType,
        described: &KeyDescription,
    ) {
        self.state().current().changes.push(Change { change, key: key(number, slot_type, described) });
    }

    /// Records that something is about to be changed or served.
    ///
    /// # Errors
    /// When a log was asked for and cannot be written: nothing may be changed then.
    pub(super) fn begin(&self) -> Result<(), Failure> {
        let mut state = self.state();
        let recorded = self.write(state.current(), Outcome::Started, None);
        self.allowed(recorded)
    }

    /// What was recorded may be done; what was not, where no log was asked for, too.
    fn allowed(&self, recorded: Result<(), AuditError>) -> Result<(), Failure> {
        match recorded {
            Err(error) if self.log.settings().is_configured => Err(refused(&error)),
            Err(error) => {
                self.output.note(&format!("not recorded: {error}"));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Records that a volume's older state is about to be taken in spite of its anchor.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub(super) fn begin_rollback(&self) -> Result<(), Failure> {
        let mut state = self.state();
        let recorded = self.write_as(ROLLBACK_VERB, state.current(), Outcome::Started, None);
        self.allowed(recorded)
    }

    /// Records what came of that.
    pub(super) fn end_rollback(&self, failure: Option<&Failure>) {
        let mut state = self.state();
        let failed = failure.map(|failure| (failure.code, failure.exit));
        let outcome = if failed.is_some() { Outcome::Failed } else { Outcome::Done };
        if let Err(error) = self.write_as(ROLLBACK_VERB, state.current(), outcome, failed) {
            self.output.note(&format!("the end is not recorded: {error}"));
        }
    }

    /// Records how it ended for one of several volumes; the rest ends with the command.
    pub(super) fn settle(&self, header: &Header, result: Result<(), &Failure>) {
        let mut state = self.state();
        let is_it = |subject: &&mut Subject| subject.volume == Some(header.volume) && !subject.ended;
        if let Some(subject) = state.volumes.iter_mut().rev().find(is_it) {
            subject.ended = true;
            self.tell(subject, result.err().map(|failure| (failure.code, failure.exit)));
        }
    }

    /// Records how it ended for the volume that it was about last, if that has not ended; of several volumes one
    /// after the other.
    pub(super) fn settle_last(&self, result: Result<(), &Failure>) {
        let mut state = self.state();
        if let Some(subject) = state.volumes.last_mut().filter(|subject| !subject.ended) {
            subject.ended = true;
            self.tell(subject, result.err().map(|failure| (failure.code, failure.exit)));
        }
    }

    /// The command will end by itself, but this went wrong.
    pub(super) fn failed(&self, failure: &Failure) {
        self.state().failed = Some((failure.code, failure.exit));
    }

    /// Records how it ended, for every volume that is not settled.
    pub(super) fn end(&self, result: &Result<ExitCode, Failure>) {
        let state = self.state();
        let failed = result.as_ref().err().map(|failure| (failure.code, failure.exit)).or(state.failed);
        if state.volumes.is_empty() {
            self.tell(&state.first, failed);
        }
        state.volumes.iter().filter(|subject| !subject.ended).for_each(|subject| self.tell(subject, failed));
    }

    /// Records an end. What happened has happened, so a log that cannot be written is only told.
    fn tell(&self, subject: &Subject, failed: Option<(&'static str, u8)>) {
        let outcome = match failed {
            Some(_) => Outcome::Failed,
            None if self.dry_run => Outcome::Tried,
            None => Outcome::Done,
        };
        if let Err(error) = self.write(subject, outcome, failed) {
            self.output.note(&format!("the end is not recorded: {error}"));
        }
    }

    fn write(
        &self,
        subject: &Subject,
        outcome: Outcome,
        failed: Option<(&'static str, u8)>,
    ) -> Result<(), AuditError> {
        self.verb.map_or(Ok(()), |verb| self.write_as(verb, subject, outcome, failed))
    }

    fn write_as(
        &self,
        verb: &str,
        subject: &Subject,
        outcome: Outcome,
        failed: Option<(&'static str, u8)>,
    ) -> Result<(), AuditError> {
        let Subject { backend, volume, replaces, key, changes, ended: _ } = subject.clone();
        let event = Event {
            error: failed.map(|(code, _)| Text::of(code)),
            exit: failed.map(|(_, exit)| exit),
            backend: backend.map(|backend| Text::of(&backend)),
            volume: volume.map(Uuid::from_bytes),
            replaces: replaces.map(Uuid::from_bytes),
            key,
            changes,
            ..Event::new(verb, self.request.as_str(), outcome)
        };
        if let Err(error) = self.log.tell_journal(&event) {
            self.output.note(&format!("the journal did not take the record: {error}"));
        }
        self.log.append(event)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn current(&mut self) -> &mut Subject {
        self.volumes.last_mut().unwrap_or(&mut self.first)
    }
}

fn key(number: usize, slot_type: SlotType, described: &KeyDescription) -> Key {
    let KeyDescription { text: _, key_id, version } = described;
    Key {
        slot: u16::try_from(number).expect("a volume has sixteen keyslots"),
        manager: Text::of(slot_type.name()),
        key_id: key_id.as_deref().map(Text::of),
        key_version: version.as_deref().map(Text::of),
    }
}

fn refused(error: &AuditError) -> Failure {
    Failure::audit(
        format!("nothing was changed, since it could not be recorded: {error}"),
        "SEALBD_AUDIT names the log: a file in a directory that exists, with room, where you may write",
    )
}
