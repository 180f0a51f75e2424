//! Destroying key versions in their managers.
//!
//! A version that is to be destroyed stands in a keyslot marked destroyed, which opens nothing. So whatever cuts
//! a command off, the next one knows what is left to do. A version that another keyslot needs, of this volume or
//! of another one in the configuration, is not destroyed: one key may wrap many volumes.

use keymgmt::manager::{KeyDescription, KeyError, KeyManager, SlotType, WrapContext, WrappedKey};

use super::context::Context;
use super::key::Opened;
use super::outcome::Failure;
use super::settings::VolumeSettings;
use crate::format::header::Header;
use crate::format::keyslot::{Keyslot, KeyslotState};
use crate::store::Access;
use crate::store::uri;
use crate::volume::VolumeError;
use crate::volume::unlock::{read_header, wrap_context};

/// What became of a key version.
pub(super) enum Fate {
    /// Its manager destroyed it.
    Destroyed,
    /// It stays for good, and why.
    Kept(String),
    /// Every manager of its kind denies it: it was destroyed before, or nobody may use it.
    Denied(String),
    /// It stays for now, and why: somebody needs it, or that cannot be told.
    Waits(String),
    /// None of the managers that were given has it.
    NotGiven,
    /// Its manager failed.
    Failed(Failure),
}

impl Fate {
    /// Whether nothing is left to be done about it.
    fn is_final(&self) -> bool {
        match self {
            Self::Destroyed | Self::Kept(_) | Self::Denied(_) => true,
            Self::Waits(_) | Self::NotGiven | Self::Failed(_) => false,
        }
    }

    /// For reports.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Destroyed => "destroyed".into(),
            Self::Kept(why) => format!("kept: {why}"),
            Self::Denied(why) => format!("destroyed before, or out of reach ({why})"),
            Self::Waits(why) => format!("not destroyed: {why}"),
            Self::NotGiven => "not destroyed: its key manager was not given".into(),
            Self::Failed(failure) => format!("failed: {}", failure.message),
        }
    }
}

/// Destroys the key versions that wait for it and frees the keyslots of those that are done with; tells what
/// became of each.
///
/// # Errors
/// The store's. What a key manager has against it is a fate.
pub(super) async fn destroy_parked(
    opened: &mut Opened,
    context: &Context,
) -> Result<Vec<(usize, Fate)>, Failure> {
    let mut header = opened.unlocked.header.clone();
    let waiting = |slot: &Option<Keyslot>| {
        slot.as_ref().filter(|slot| slot.state == KeyslotState::Destroyed).map(|slot| slot.key.clone())
    };
    let waiting: Vec<_> = header
        .keyslots
        .iter()
        .enumerate()
        .filter_map(|(number, slot)| Some((number, waiting(slot)?)))
        .collect();
    let (mut fates, mut gone) = (Vec::new(), Gone::default());
    for (number, key) in waiting {
        let fate = destroy_one(&opened.managers, &key, &header, &mut gone, context).await;
        if fate.is_final() {
            header.keyslots[number] = None;
        }
        fates.push((number, fate));
    }
    if header != opened.unlocked.header {
        let proof = opened.unlocked.slot;
        opened.commit(header, Some(proof), context).await?;
        opened.home.refuse_older(&opened.unlocked, context).await?;
    }
    Ok(fates)
}

/// Versions that this command destroyed: a second keyslot under one of them is denied then.
#[derive(Default)]
pub(super) struct Gone(Vec<(SlotType, KeyDescription)>);

/// Destroys the version that wrapped a key of the volume whose header is, or will be, `header`.
pub(super) async fn destroy_one(
    managers: &[Box<dyn KeyManager>],
    key: &WrappedKey,
    header: &Header,
    gone: &mut Gone,
    context: &Context,
) -> Fate {
    let version = (key.slot_type, context.described(key));
    match ask_to_destroy(managers, key, header, context).await {
        Fate::Denied(_) if gone.0.contains(&version) => Fate::Destroyed,
        Fate::Destroyed => {
            gone.0.push(version);
            Fate::Destroyed
        }
        fate => fate,
    }
}

async fn ask_to_destroy(
    managers: &[Box<dyn KeyManager>],
    key: &WrappedKey,
    header: &Header,
    context: &Context,
) -> Fate {
    let (mut failed, mut denials) = (None, Vec::new());
    for manager in managers.iter().filter(|manager| manager.slot_type() == key.slot_type) {
        // Only the manager that has the version may be told to destroy it: another one may have a key of the
        // same name.
        match manager.unwrap(key, wrap_context(header)).await {
            Ok(Some(_)) => return destroy_by(&**manager, key, header, context).await,
            Ok(None) => {}
            Err(KeyError::Denied(why)) => match manager.probe().await {
                Ok(_) => denials.push(why),
                // It lets nobody in, so its denial says nothing about the key.
                Err(error) => failed = Some(error),
            },
            Err(error) => failed = Some(error),
        }
    }
    if let Some(error) = failed {
        return Fate::Failed(error.into());
    }
    // One that was not given may have it.
    let asked_all = denials.len() >= providers_of(key.slot_type, context);
    match denials.pop() {
        Some(why) if asked_all => Fate::Denied(why),
        _ => Fate::NotGiven,
    }
}

/// How many key managers of the configuration make such keyslots.
pub(super) fn providers_of(slot_type: SlotType, context: &Context) -> usize {
    context.registry.providers().iter().filter(|provider| provider.slot_type() == slot_type).count()
}

async fn destroy_by(manager: &dyn KeyManager, key: &WrappedKey, header: &Header, context: &Context) -> Fate {
    if let Some(why) = needed_by(manager, key, header, context).await {
        return Fate::Waits(why);
    }
    match manager.destroy(key).await {
        Ok(()) => Fate::Destroyed,
        Err(KeyError::Unsupported(why)) => Fate::Kept(why),
        Err(error) => Fate::Failed(error.into()),
    }
}

/// Who else needs the version that wrapped `key`: keyslots of the same volume that open it, and of the other
/// volumes of the configuration. What a keyslot says of its key is held against the manager itself, so a header
/// that was made up keeps nothing from being destroyed.
async fn needed_by(
    manager: &dyn KeyManager,
    key: &WrappedKey,
    header: &Header,
    context: &Context,
) -> Option<String> {
    if let Some(number) = user_in(manager, key, header, context).await {
        return Some(format!("keyslot {number} is wrapped by the same version"));
    }
    for VolumeSettings { name, backend, .. } in &context.settings.volumes {
        let store = uri::open(backend, Access::Inspect).await;
        let copies = match store {
            Ok(store) => read_header(&*store).await,
            Err(error) => Err(error.into()),
        };
        match copies {
            Err(VolumeError::NotAVolume) => {}
            Err(why) => return Some(format!("volume {name} may need it and cannot be read: {why}")),
            Ok(copies) if copies.claimed().volume == header.volume => {}
            Ok(copies) => {
                if let Some(number) = user_in(manager, key, copies.claimed(), context).await {
                    return Some(format!("volume {name}, keyslot {number}, is wrapped by the same version"));
                }
            }
        }
    }
    None
}

/// The keyslot of a header that opens by the version that wrapped `key`.
async fn user_in(
    manager: &dyn KeyManager,
    key: &WrappedKey,
    header: &Header,
    context: &Context,
) -> Option<usize> {
    let version = context.described(key);
    let bound: WrapContext = wrap_context(header);
    for (number, slot) in header.keyslots.iter().enumerate() {
        let Some(slot) = slot.as_ref().filter(|slot| slot.state != KeyslotState::Destroyed) else { continue };
        if slot.key.slot_type != key.slot_type || context.described(&slot.key) != version {
            continue;
        }
        match manager.unwrap(&slot.key, bound).await {
            Ok(None) | Err(KeyError::Denied(_) | KeyError::Malformed(_)) => {}
            // Also when it cannot be told now.
            Ok(Some(_)) | Err(_) => return Some(number),
        }
    }
    None
}
