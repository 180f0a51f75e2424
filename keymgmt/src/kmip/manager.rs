//! The key manager on top of a KMIP server: which key wraps what, in which form, and whether its state allows it.
//!
//! All of it blocks; it runs on a thread of its own, see [`crate::blocking`].

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::client::{Client, Session, granted};
use super::failure::{Refusal, refused};
use super::keys::{Attributes, Leaves};
use super::keyslot::{Form, KeyId, Keyslot, Origin};
use super::messages::Version;
use super::tags::{Operation, State, USAGE_ENCRYPT_DECRYPT, USAGE_WRAP_UNWRAP};
use super::{Mode, SLOT_TYPE};
use crate::manager::{Health, KeyError, WrapContext, WrappedKey};
use crate::secret::{Dek, Secret32, fill_random};
use crate::stored;

/// A server, and what this value knows of it.
pub(crate) struct Inner {
    pub(crate) client: Client,
    pub(crate) mode: Mode,
    /// The key that was named.
    pub(crate) named: Option<KeyId>,
    pub(crate) timeout: Duration,
    /// What the last rotation made, until a wrap uses it.
    pub(crate) next: Mutex<Option<KeyId>>,
    pub(crate) notes: Mutex<Vec<String>>,
}

/// How a new wrap is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    KeyWrap,
    Gcm,
    Get,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::KeyWrap => "Encrypt by AES key wrap",
            Self::Gcm => "Encrypt by AES-GCM",
            Self::Get => "Get",
        }
    }
}

/// A key that a new wrap may use.
struct Kek {
    id: KeyId,
    origin: Origin,
    made: u64,
}

impl Inner {
    pub(crate) fn wrap(&self, dek: &Dek, context: WrapContext) -> Result<WrappedKey, KeyError> {
        let mut session = self.client.begin(self.timeout);
        if let Some(id) = &self.named {
            let kek = active(&mut session, id, Origin::Given)?;
            return self.wrap_under(&mut session, &kek, dek, context);
        }
        let next = self.next.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(id) = next {
            let wrapped = active(&mut session, &id, Origin::Made)
                .and_then(|kek| self.wrap_under(&mut session, &kek, dek, context));
            return wrapped.inspect_err(|_| self.uses_next(id));
        }
        let id = self.create(&mut session, context)?;
        let wrapped =
            made_active(&mut session, &id).and_then(|kek| self.wrap_under(&mut session, &kek, dek, context));
        // Whatever failed must not leave a key behind that no keyslot knows.
        wrapped.inspect_err(|_| {
            let _ = withdraw(&mut session, &id);
        })
    }

    fn wrap_under(
        &self,
        session: &mut Session<'_>,
        kek: &Kek,
        dek: &Dek,
        context: WrapContext,
    ) -> Result<WrappedKey, KeyError> {
        let mut refusals = Vec::new();
        for way in self.ways(session)? {
            match wrap_by(session, way, kek, dek, context)? {
                Ok(wrapped) => return Ok(wrapped),
                Err(refusal) => refusals.push((way, refusal)),
            }
        }
        let told: Vec<_> =
            refusals.iter().map(|(way, refusal)| format!("{}: {}", way.name(), refusal.text())).collect();
        // It is what the last one says: that is the way that was left.
        let (_, last) = refusals.last().expect("there is at least one way");
        Err(last.error(format!("kmip:{}: {}", kek.id.as_str(), told.join("; "))))
    }

    /// How to wrap, the best first.
    fn ways(&self, session: &mut Session<'_>) -> Result<Vec<Way>, KeyError> {
        let mut ways = Vec::new();
        if self.mode != Mode::Get {
            if session.offers(&[Operation::Encrypt, Operation::Decrypt])? {
                ways.push(Way::KeyWrap);
                // Earlier versions have no field for the tag.
                ways.extend((session.version()? >= Version::V1_4).then_some(Way::Gcm));
            }
            if self.mode == Mode::Encrypt && ways.is_empty() {
                let text = "the server does not offer Encrypt and Decrypt, as mode = \"encrypt\" demands";
                return Err(KeyError::Unsupported(text.into()));
            }
        }
        ways.extend((self.mode != Mode::Encrypt).then_some(Way::Get));
        Ok(ways)
    }

    fn create(&self, session: &mut Session<'_>, context: WrapContext) -> Result<KeyId, KeyError> {
        let name = name_of(context.volume)?;
        if self.mode == Mode::Encrypt && session.version()? >= Version::V1_4 {
            if let Ok(id) = session.create(self.usage(), Leaves::Never, &name)? {
                return Ok(id);
            }
            self.note(
                "the KMIP server makes no Sensitive keys: whoever may use the new key may also fetch it"
                    .into(),
            );
        }
        granted("Create", session.create(self.usage(), Leaves::Maybe, &name)?)
    }

    fn usage(&self) -> i32 {
        match self.mode {
            Mode::Auto => USAGE_ENCRYPT_DECRYPT | USAGE_WRAP_UNWRAP,
            Mode::Get => USAGE_WRAP_UNWRAP,
            Mode::Encrypt => USAGE_ENCRYPT_DECRYPT,
        }
    }

    pub(crate) fn unwrap(
        &self,
        key: &WrappedKey,
        keyslot: &Keyslot,
        context: WrapContext,
    ) -> Result<Option<Dek>, KeyError> {
        if !keyslot.form.fits(self.mode) {
            return Err(KeyError::Denied(format!(
                "the keyslot is not of mode = \"{}\", as the provider demands",
                self.mode.name()
            )));
        }
        let id = &keyslot.id;
        let what = |verb: &str| format!("{verb} kmip:{}", id.as_str());
        let mut session = self.client.begin(self.timeout);
        let Attributes { state, .. } = granted(&what("Get Attributes"), session.attributes(id)?)?;
        may_unwrap(id, state)?;
        let dek = match &keyslot.form {
            Form::Get => {
                let kek = granted(&what("Get"), session.fetch(id)?)?;
                stored::unwrap(&kek, key, context)?
            }
            Form::KeyWrap { blob } => {
                let kek = decrypted(&what("Decrypt"), session.unwrap(id, blob)?)?;
                stored::unwrap(&kek, key, context)?
            }
            Form::Gcm => {
                let sealed = key.wrapped.as_slice().try_into().expect("a keyslot's length was checked");
                let aad = stored::bound(context, SLOT_TYPE, &key.kek_uri, &key.private);
                Some(Dek(decrypted(&what("Decrypt"), session.open(id, sealed, &aad)?)?))
            }
        };
        if state == State::Deactivated && dek.is_some() {
            self.note(format!(
                "key {} of the KMIP server is Deactivated: it still opens what it wrapped, and wraps nothing new; \
                 next: sealbd rotate --kek",
                id.as_str()
            ));
        }
        Ok(dek)
    }

    /// In the forms where the server encrypts, the key is replaced by Re-key where there is one, which is
    /// asked for first thing. In the other, nothing is made yet: the next wrap makes a key, and the old one
    /// stays Active. Servers deactivate by Re-key, and some then refuse Get, which would lock the volume.
    pub(crate) fn rotate(&self, keyslot: &Keyslot) -> Result<(), KeyError> {
        let id = &keyslot.id;
        if self.named.is_some() {
            return Err(KeyError::Unsupported(format!(
                "key {} was named, so it is its owner's to rotate; add a keyslot for the new key and remove \
                 this one, or name none, and sealbd makes one",
                id.as_str()
            )));
        }
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if matches!(keyslot.form, Form::Get) || keyslot.origin == Origin::Given {
            return Ok(());
        }
        let mut session = self.client.begin(self.timeout);
        if !session.offers(&[Operation::ReKey])? {
            return Ok(());
        }
        let what = format!("Re-key kmip:{}", id.as_str());
        let new = match session.re_key(id)? {
            Err(Refusal::Unsupported) => return Ok(()),
            answer => granted(&what, answer)?,
        };
        made_active(&mut session, &new)?;
        self.uses_next(new);
        Ok(())
    }

    pub(crate) fn destroy(&self, keyslot: &Keyslot) -> Result<(), KeyError> {
        let id = &keyslot.id;
        if keyslot.origin == Origin::Given {
            return Err(KeyError::Unsupported(format!(
                "key {} was not made by sealbd, others may use it; its owner destroys it in the server",
                id.as_str()
            )));
        }
        let mut session = self.client.begin(self.timeout);
        let Attributes { state, made } = match session.attributes(id)? {
            Err(Refusal::NotFound) => return Ok(()),
            answer => granted(&format!("Get Attributes kmip:{}", id.as_str()), answer)?,
        };
        // Identifiers repeat after a reset. The date is no proof, but it can only keep a key alive.
        if keyslot.made != made {
            return Err(KeyError::Denied(format!(
                "the server has another key under the identifier {}: it was not destroyed",
                id.as_str()
            )));
        }
        if matches!(state, State::Destroyed | State::DestroyedCompromised) {
            return Ok(());
        }
        withdraw(&mut session, id)
    }

    pub(crate) fn probe(&self) -> Result<Health, KeyError> {
        let mut session = self.client.begin(self.timeout);
        let version = session.version()?;
        let able = granted("Query", session.abilities()?)?;
        let vendor = if able.vendor.is_empty() { "a server" } else { &able.vendor };
        let wraps = if able.has(Operation::Encrypt) { "encrypts" } else { "does not encrypt" };
        let rotates = if able.has(Operation::ReKey) { "" } else { ", no Re-key" };
        let address = self.client.address();
        let mut text = format!("KMIP {version} at {address}: {vendor}, {wraps}{rotates}");
        if let Some(id) = &self.named {
            let what = format!("Get Attributes kmip:{}", id.as_str());
            let Attributes { state, .. } = granted(&what, session.attributes(id)?)?;
            may_unwrap(id, state)?;
            text = format!("{text}; key {} is {}", id.as_str(), state.name());
        }
        Ok(Health { text, credential_expires: None })
    }

    fn uses_next(&self, id: KeyId) {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
    }

    fn note(&self, note: String) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
}

fn wrap_by(
    session: &mut Session<'_>,
    way: Way,
    kek: &Kek,
    dek: &Dek,
    context: WrapContext,
) -> Result<Result<WrappedKey, Refusal>, KeyError> {
    let keyslot = |form| Keyslot { id: kek.id.clone(), form, origin: kek.origin, made: kek.made };
    let stored = |secret: &Secret32, keyslot: &Keyslot| {
        stored::wrap(secret, dek, context, SLOT_TYPE, keyslot.uri(), &keyslot.encode())
    };
    Ok(Ok(match way {
        Way::Get => match session.fetch(&kek.id)? {
            Ok(secret) => stored(&secret, &keyslot(Form::Get))?,
            Err(refusal) => return Ok(Err(refusal)),
        },
        Way::KeyWrap => {
            let secret = Secret32::generate()?;
            match session.wrap(&kek.id, &secret)? {
                Ok(blob) => stored(&secret, &keyslot(Form::KeyWrap { blob }))?,
                Err(refusal) => return Ok(Err(refusal)),
            }
        }
        Way::Gcm => {
            let keyslot = keyslot(Form::Gcm);
            let (kek_uri, private) = (keyslot.uri(), keyslot.encode());
            let aad = stored::bound(context, SLOT_TYPE, &kek_uri, &private);
            match session.seal(&kek.id, dek, &aad)? {
                // A server that passes over what it does not know would bind nothing.
                Ok(sealed) if session.open(&kek.id, &sealed, &[&aad, "?".as_bytes()].concat())?.is_ok() => {
                    return Ok(Err(Refusal::Unsupported));
                }
                Ok(sealed) => WrappedKey { slot_type: SLOT_TYPE, kek_uri, wrapped: sealed.to_vec(), private },
                Err(refusal) => return Ok(Err(refusal)),
            }
        }
    }))
}

/// A key that is there, for a new wrap.
fn active(session: &mut Session<'_>, id: &KeyId, origin: Origin) -> Result<Kek, KeyError> {
    let answer = session.attributes(id)?;
    let Attributes { state, made } = granted(&format!("Get Attributes kmip:{}", id.as_str()), answer)?;
    if state != State::Active {
        return Err(KeyError::Denied(format!(
            "key {} of the KMIP server is {}: only an Active one wraps",
            id.as_str(),
            state.name()
        )));
    }
    Ok(Kek { id: id.clone(), origin, made })
}

/// A key that was just made, for a new wrap. Servers differ in the state they make one in.
fn made_active(session: &mut Session<'_>, id: &KeyId) -> Result<Kek, KeyError> {
    let answer = session.attributes(id)?;
    let Attributes { state, .. } = granted(&format!("Get Attributes kmip:{}", id.as_str()), answer)?;
    if state == State::PreActive {
        granted(&format!("Activate kmip:{}", id.as_str()), session.activate(id)?)?;
    }
    active(session, id, Origin::Made)
}

/// What the state of a key says about keyslots that it wrapped (KMIP 1.4 §3.22).
fn may_unwrap(id: &KeyId, state: State) -> Result<(), KeyError> {
    match state {
        State::Active | State::Deactivated => Ok(()),
        State::PreActive | State::Compromised | State::Destroyed | State::DestroyedCompromised => {
            Err(KeyError::Denied(format!(
                "key {} of the KMIP server is {}: it opens nothing",
                id.as_str(),
                state.name()
            )))
        }
    }
}

/// What Decrypt returned. Servers tell a key that does not fit by different reasons, none of them of its own.
fn decrypted(what: &str, answer: Result<Secret32, Refusal>) -> Result<Secret32, KeyError> {
    match answer {
        Err(Refusal::Cryptography | Refusal::Invalid | Refusal::Other(_)) => Err(KeyError::Denied(format!(
            "{what}: the server cannot open it: there is another key under this identifier than the one that made \
             this keyslot, or the keyslot was changed or is of another volume"
        ))),
        answer => granted(what, answer),
    }
}

/// Revoke, which servers demand of an Active key before it may go, and Destroy. Done already is done.
fn withdraw(session: &mut Session<'_>, id: &KeyId) -> Result<(), KeyError> {
    // A refusal does not matter: what counts is whether it is destroyed.
    let _ = session.revoke(id)?;
    match session.destroy(id)? {
        Ok(()) | Err(Refusal::NotFound) => Ok(()),
        Err(refusal) => Err(refused(&format!("Destroy kmip:{}", id.as_str()), refusal)),
    }
}

/// A name that no other key has, for people who look into the server; never read by us.
fn name_of(volume: [u8; 16]) -> Result<String, KeyError> {
    let mut random = [0; 8];
    fill_random(&mut random)?;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Ok(format!("sealbd-{}-{}", hex(&volume), hex(&random)))
}
