//! What every command has: where it tells things, how it seals, which key managers there are.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use keymgmt::hygiene::Report as Hygiene;
use keymgmt::manager::{KeyDescription, KeyManager, WrappedKey};
use keymgmt::registry::{Opening, Registry};
use keymgmt::request::RequestId;
use keymgmt::source::{Purpose, SecretReader};
use keymgmt::spec::Spec;

use super::deferred::Deferred;
use super::noted::Notes;
use super::open::prepare_new;
use super::outcome::Failure;
use super::output::Output;
use super::settings::Settings;
use super::terminal::TerminalPrompt;
use super::trail::Trail;
use crate::audit::ChangeKind;
use crate::cipher::Engine;
use crate::format::keyslot::Keyslot;
use crate::volume::anchor::OnRollback;

/// What a command is run with.
pub(super) struct Context {
    /// Where results and notes go.
    pub(super) output: Output,
    /// Which AES-256-GCM seals and opens.
    pub(super) engine: Engine,
    /// What could be done for the safety of keys in memory.
    pub(super) hygiene: Hygiene,
    /// The key managers, those of the configuration among them.
    pub(super) registry: Arc<Registry>,
    /// Volumes by name, and what is said of them.
    pub(super) settings: Settings,
    /// This command's number, sent to key managers and written to the audit log.
    pub(super) request_id: RequestId,
    /// What it leaves in the audit log.
    pub(super) trail: Trail,
    /// What key managers want to be told.
    pub(super) notes: Notes,
    /// `--anchor`.
    pub(super) anchor: Option<PathBuf>,
    /// What a volume that is behind its anchor leads to.
    pub(super) on_rollback: OnRollback,
}

impl Context {
    /// What a keyslot is made of, for the audit log; of one that cannot be told only its type is.
    pub(super) fn described(&self, key: &WrappedKey) -> KeyDescription {
        self.registry.describe(key).unwrap_or_else(|error| KeyDescription::own(error.to_string()))
    }

    /// Notes for the audit log that a keyslot was written or removed.
    pub(super) fn changed(&self, change: ChangeKind, number: usize, keyslot: Option<&Keyslot>) {
        if let Some(Keyslot { key, .. }) = keyslot {
            self.trail.changed(change, number, key.slot_type, &self.described(key));
        }
    }

    /// Key managers for the specs of `--slot`, in order. Their secrets are read now; where several open one
    /// volume, each when its turn comes.
    pub(super) fn managers(
        &self,
        specs: &[String],
        purpose: Purpose,
    ) -> Result<Vec<Box<dyn KeyManager>>, Failure> {
        // All are parsed before anybody is asked for anything.
        let specs: Vec<Spec> =
            specs.iter().map(|text| self.registry.parse(text)).collect::<Result<_, _>>()?;
        if purpose == Purpose::Unlock && specs.len() > 1 {
            return specs.into_iter().map(|spec| self.deferred(spec)).collect();
        }
        let mut prompt = TerminalPrompt;
        let mut reader = SecretReader::new(&mut prompt);
        let mut opening = Opening::new(&mut reader, purpose);
        opening.request_id = self.request_id.clone();
        let mut opened = Vec::with_capacity(specs.len());
        for spec in &specs {
            prepare_new(spec, purpose, &self.output)?;
            opened.push(self.notes.of(self.registry.open(spec, &mut opening)?));
        }
        opening.warnings.iter().for_each(|warning| self.output.note(warning));
        Ok(opened)
    }

    fn deferred(&self, spec: Spec) -> Result<Box<dyn KeyManager>, Failure> {
        let slot_type = self.registry.slot_type(&spec);
        let slot_type = slot_type.ok_or_else(|| Failure::usage("no such key manager", "sealbd kms list"))?;
        Ok(Box::new(Deferred {
            registry: self.registry.clone(),
            spec,
            slot_type,
            request_id: self.request_id.clone(),
            output: self.output,
            notes: self.notes.clone(),
            opened: OnceLock::new(),
        }))
    }
}
