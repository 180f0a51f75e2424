//! Destroying key versions in their managers.
//!
//! A version that is to be destroyed stands in a keyslot marked destroyed, which opens nothing. So whatever cuts
//! a command off, the next one knows what is left to do.

use keymgmt::manager::{KeyError, KeyManager, WrapContext, WrappedKey};

use super::context::Context;
use super::key::Opened;
use super::outcome::Failure;
use crate::format::keyslot::KeyslotState;
use crate::volume::unlock::wrap_context;

/// Destroys the key versions that wait for it and frees their keyslots; with each comes why it was kept, if it
/// was. Those of managers that were not given go on waiting.
pub(super) async fn destroy_parked(
    opened: &mut Opened,
    context: &Context,
) -> Result<Vec<(usize, Option<String>)>, Failure> {
    let mut header = opened.unlocked.header.clone();
    let context_of = wrap_context(&header);
    let mut done = Vec::new();
    for (number, place) in header.keyslots.iter_mut().enumerate() {
        let Some(slot) = place else { continue };
        if slot.state != KeyslotState::Destroyed {
            continue;
        }
        let kept = destroy_one(&opened.managers, &slot.key, context_of).await;
        let kept =
            kept.map_err(|error| Failure::from(error).of(format!("old version in keyslot {number}")))?;
        if let Some(kept) = kept {
            done.push((number, kept));
            *place = None;
        }
    }
    if !done.is_empty() {
        let proof = opened.unlocked.slot;
        opened.commit(header, Some(proof), context).await?;
        opened.home.refuse_older(&opened.unlocked).await?;
    }
    Ok(done)
}

/// Destroys the version that wrapped a key. `None` when no manager that was given can, `Some(None)` when it is
/// gone, else why its manager keeps it.
pub(super) async fn destroy_one(
    managers: &[Box<dyn KeyManager>],
    key: &WrappedKey,
    context: WrapContext,
) -> Result<Option<Option<String>>, KeyError> {
    let mut found = None;
    for manager in managers.iter().filter(|manager| manager.slot_type() == key.slot_type) {
        // Only the manager that has the version may be told to destroy it: to another one it is unknown,
        // and unknown means destroyed already.
        match manager.unwrap(key, context).await {
            Ok(Some(_)) => {}
            Ok(None) => continue,
            Err(KeyError::Denied(_)) => {
                found = Some(None);
                continue;
            }
            Err(error) => return Err(error),
        }
        return match manager.destroy(key).await {
            Ok(()) => Ok(Some(None)),
            Err(KeyError::Unsupported(why)) => Ok(Some(Some(format!("kept: {why}")))),
            Err(error) => Err(error),
        };
    }
    Ok(found)
}
