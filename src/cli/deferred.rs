//! A key manager whose secret is read when a keyslot of its kind is reached.
//!
//! With several ways in, nobody is asked for a passphrase while the key manager answers, and a keyfile that
//! is missing is a reason among others and not the end.

use std::sync::{Arc, OnceLock};

use keymgmt::manager::{
    BoxFuture, Health, KeyDescription, KeyError, KeyManager, SlotType, WrapContext, WrappedKey,
};
use keymgmt::registry::{Opened, Opening, Registry};
use keymgmt::request::RequestId;
use keymgmt::secret::Dek;
use keymgmt::source::{Purpose, SecretReader};
use keymgmt::spec::Spec;

use super::noted::Notes;
use super::output::Output;
use super::terminal::TerminalPrompt;

/// A spec, and its manager once it was needed.
pub(super) struct Deferred {
    pub(super) registry: Arc<Registry>,
    pub(super) spec: Spec,
    pub(super) slot_type: SlotType,
    pub(super) request_id: RequestId,
    pub(super) output: Output,
    pub(super) notes: Notes,
    /// A failure is kept, too: what was typed wrong is not asked for again for every keyslot.
    pub(super) opened: OnceLock<Opened>,
}

impl Deferred {
    fn manager(&self) -> Result<&dyn KeyManager, KeyError> {
        let opened = self.opened.get_or_init(|| {
            let mut prompt = TerminalPrompt;
            let mut reader = SecretReader::new(&mut prompt);
            let mut opening = Opening::new(&mut reader, Purpose::Unlock);
            opening.request_id = self.request_id.clone();
            let opened = self.registry.open(&self.spec, &mut opening);
            opening.warnings.iter().for_each(|warning| self.output.note(warning));
            opened.map(|manager| self.notes.of(manager))
        });
        opened.as_deref().map_err(Clone::clone)
    }
}

impl KeyManager for Deferred {
    fn slot_type(&self) -> SlotType {
        self.slot_type
    }

    fn wrap<'a>(&'a self, dek: &'a Dek, context: WrapContext) -> BoxFuture<'a, Result<WrappedKey, KeyError>> {
        Box::pin(async move { self.manager()?.wrap(dek, context).await })
    }

    fn unwrap<'a>(
        &'a self,
        key: &'a WrappedKey,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Option<Dek>, KeyError>> {
        Box::pin(async move { self.manager()?.unwrap(key, context).await })
    }

    fn describe(&self, key: &WrappedKey) -> Result<KeyDescription, KeyError> {
        self.registry.describe(key)
    }

    fn rotate<'a>(&'a self, current: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(async move { self.manager()?.rotate(current).await })
    }

    fn destroy<'a>(&'a self, key: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(async move { self.manager()?.destroy(key).await })
    }

    fn probe(&self) -> BoxFuture<'_, Result<Health, KeyError>> {
        Box::pin(async move { self.manager()?.probe().await })
    }
}
