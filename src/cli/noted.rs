//! Key managers whose notes are told as they come: whatever verb asks, nobody has to remember to look for them.
//!
//! A note is a sentence for people ("this secret expires on …", "the sealed cache answered"). One that comes
//! again within a command is told once.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use keymgmt::manager::{
    BoxFuture, Health, KeyDescription, KeyError, KeyManager, SlotType, WrapContext, WrappedKey,
};
use keymgmt::secret::Dek;

use super::output::Output;

/// Where notes go; one per command.
#[derive(Clone)]
pub(super) struct Notes {
    output: Output,
    told: Arc<Mutex<HashSet<String>>>,
}

impl Notes {
    pub(super) fn new(output: Output) -> Self {
        Self { output, told: Arc::default() }
    }

    /// Tells what was not told yet.
    pub(super) fn tell(&self, notes: impl IntoIterator<Item = String>) {
        for note in notes {
            if self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(note.clone()) {
                self.output.note(&note);
            }
        }
    }

    /// The same manager, which tells its notes after each request.
    pub(super) fn of(&self, inner: Box<dyn KeyManager>) -> Box<dyn KeyManager> {
        Box::new(Noted { inner, notes: self.clone() })
    }
}

struct Noted {
    inner: Box<dyn KeyManager>,
    notes: Notes,
}

impl Noted {
    async fn told<T>(&self, request: BoxFuture<'_, T>) -> T {
        let answer = request.await;
        self.notes.tell(self.inner.notes());
        answer
    }
}

impl KeyManager for Noted {
    fn slot_type(&self) -> SlotType {
        self.inner.slot_type()
    }

    fn wrap<'a>(&'a self, dek: &'a Dek, context: WrapContext) -> BoxFuture<'a, Result<WrappedKey, KeyError>> {
        Box::pin(self.told(self.inner.wrap(dek, context)))
    }

    fn unwrap<'a>(
        &'a self,
        key: &'a WrappedKey,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Option<Dek>, KeyError>> {
        Box::pin(self.told(self.inner.unwrap(key, context)))
    }

    fn describe(&self, key: &WrappedKey) -> Result<KeyDescription, KeyError> {
        self.inner.describe(key)
    }

    fn rotate<'a>(&'a self, current: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(self.told(self.inner.rotate(current)))
    }

    fn destroy<'a>(&'a self, key: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(self.told(self.inner.destroy(key)))
    }

    fn probe(&self) -> BoxFuture<'_, Result<Health, KeyError>> {
        Box::pin(self.told(self.inner.probe()))
    }
}
