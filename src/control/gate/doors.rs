//! What clients of a served volume are told of its size, and how many go by what they were told: NBD cannot tell
//! them of another one. So a volume becomes smaller only while nobody is there.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::export::ExportInfo;

/// See the module.
pub(super) struct Doors(Mutex<State>);

struct State {
    info: ExportInfo,
    /// Clients that are in.
    clients: usize,
    /// While the volume is being made smaller: its size to come.
    lowered: Option<u64>,
}

/// A client that is in.
pub(super) struct Client(Arc<Doors>);

/// Whoever comes is told the smaller size.
#[must_use]
pub(super) struct Lowered<'a>(&'a Doors);

impl Doors {
    pub(super) fn new(info: ExportInfo) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { info, clients: 0, lowered: None })))
    }

    /// What whoever comes now is told.
    pub(super) fn told(&self) -> ExportInfo {
        self.state().told()
    }

    /// Tells from now on what the volume is.
    pub(super) fn tell(&self, info: ExportInfo) {
        self.state().info = info;
    }

    /// Lets a client in that goes by `told`; `None` when there is less by now.
    pub(super) fn enter(self: &Arc<Self>, told: &ExportInfo) -> Option<Client> {
        let mut state = self.state();
        if told.size > state.told().size {
            return None;
        }
        state.clients += 1;
        Some(Client(Arc::clone(self)))
    }

    /// Lets nobody in any more who goes by more than `size`.
    ///
    /// # Errors
    /// The number of clients, when there are any.
    pub(super) fn lower(&self, size: u64) -> Result<Lowered<'_>, usize> {
        let mut state = self.state();
        if state.clients > 0 {
            return Err(state.clients);
        }
        state.lowered = Some(size);
        Ok(Lowered(self))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn told(&self) -> ExportInfo {
        let mut info = self.info.clone();
        info.size = self.lowered.map_or(info.size, |lowered| lowered.min(info.size));
        info
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.0.state().clients -= 1;
    }
}

impl Drop for Lowered<'_> {
    fn drop(&mut self) {
        self.0.state().lowered = None;
    }
}
