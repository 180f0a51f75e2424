//! An anchor in memory: for tests and simulations, and for programs that keep what it holds elsewhere.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Anchor, AnchorError, Anchored};
use crate::store::BoxFuture;

/// Remembers until it is dropped.
#[derive(Default)]
pub struct MemoryAnchor {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: HashMap<[u8; 16], Anchored>,
    /// Why nothing can be stored at the moment.
    failing: Option<&'static str>,
}

impl MemoryAnchor {
    /// From now on every `store` fails with this reason; with `None` it works again.
    pub fn fail(&self, why: Option<&'static str>) {
        self.state().failing = why;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Anchor for MemoryAnchor {
    fn describe(&self) -> String {
        "memory".into()
    }

    fn load(&self, volume: [u8; 16]) -> BoxFuture<'_, Result<Option<Anchored>, AnchorError>> {
        let held = self.state().held.get(&volume).copied();
        Box::pin(async move { Ok(held) })
    }

    fn store(&self, volume: [u8; 16], newest: Anchored) -> BoxFuture<'_, Result<(), AnchorError>> {
        Box::pin(async move {
            let mut state = self.state();
            if let Some(why) = state.failing {
                return Err(AnchorError::Damaged { place: self.describe(), why: why.into() });
            }
            match state.held.get(&volume) {
                Some(held) if !newest.follows(held) => {
                    Err(AnchorError::Older { held: held.generation, offered: newest.generation })
                }
                _ => {
                    state.held.insert(volume, newest);
                    Ok(())
                }
            }
        })
    }
}
