//! Keys in a PKCS#11 token (a smart card, a hardware security module, SoftHSM): they never leave it, the
//! token wraps and unwraps.
//!
//! `kms:PROVIDER` makes a KEK for each new keyslot, labelled `sealbd`; `kms:PROVIDER/LABEL` uses the one
//! that the organisation labelled so, for as many volumes as it likes. A keyslot finds its KEK by CKA_ID. A
//! rotation makes a KEK of the same label and id of its own, and takes from the older one the right to wrap.
//! Nothing a token says of a key is relied upon but whether the wrap's tag fits.
//!
//! Read `keyslot` for the bytes, `token` for modules and PINs, `kek` for what keys do.

mod failure;
mod kek;
pub(crate) mod keyslot;
mod settings;
mod token;

use std::sync::{Mutex, PoisonError};

pub use self::keyslot::describe;
pub use self::settings::Pkcs11Settings;

use self::kek::{Kek, Way};
use self::keyslot::{Form, Keyslot, OWN_LABEL, hex};
use self::settings::{Choice, ID_PREFIX, Mechanism};
use self::token::{Access, OpenToken, Rights};
use crate::blocking::Blocking;
use crate::manager::{
    BoxFuture, Health, KeyDescription, KeyError, KeyManager, SlotType, WrapContext, WrappedKey,
};
use crate::secret::{Dek, Secret32};
use crate::stored;

/// What calls are made into, for errors and the names of threads.
const DEVICE: &str = "PKCS#11 token";

/// A key manager whose keys are in a PKCS#11 token.
struct Pkcs11(Blocking<Inner>);

struct Inner {
    access: Access,
    choice: Option<Choice>,
    mechanism: Mechanism,
    /// What the last rotation made.
    next: Mutex<Option<Next>>,
}

/// The key that later wraps use.
#[derive(Clone)]
struct Next {
    id: Vec<u8>,
    /// A key of one keyslot alone is used for the volume that asks first, and for no other.
    own: bool,
    volume: Option<[u8; 16]>,
}

impl KeyManager for Pkcs11 {
    fn slot_type(&self) -> SlotType {
        SlotType::Pkcs11
    }

    fn wrap<'a>(&'a self, dek: &'a Dek, context: WrapContext) -> BoxFuture<'a, Result<WrappedKey, KeyError>> {
        Box::pin(async move {
            let dek = Dek(dek.0.duplicate());
            self.0.run(move |inner| inner.wrap(&dek, context)).await
        })
    }

    fn unwrap<'a>(
        &'a self,
        key: &'a WrappedKey,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Option<Dek>, KeyError>> {
        Box::pin(async move {
            if key.slot_type != SlotType::Pkcs11 {
                return Ok(None);
            }
            let keyslot = Keyslot::decode(key)?;
            if !self.0.choice.as_ref().is_none_or(|choice| choice.is_of(&keyslot)) {
                return Ok(None);
            }
            let key = key.clone();
            self.0.run(move |inner| inner.unwrap(&key, &keyslot, context)).await
        })
    }

    fn describe(&self, key: &WrappedKey) -> Result<KeyDescription, KeyError> {
        describe(key)
    }

    fn rotate<'a>(&'a self, current: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(async move {
            let keyslot = Keyslot::decode(current)?;
            self.0.run(move |inner| inner.rotate(&keyslot)).await
        })
    }

    fn destroy<'a>(&'a self, key: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(async move {
            let keyslot = Keyslot::decode(key)?;
            self.0.run(move |inner| inner.destroy(&keyslot)).await
        })
    }

    fn probe(&self) -> BoxFuture<'_, Result<Health, KeyError>> {
        Box::pin(self.0.run(Inner::probe))
    }
}

impl Inner {
    fn wrap(&self, dek: &Dek, context: WrapContext) -> Result<WrappedKey, KeyError> {
        let next = self.next_of(context.volume);
        match (&next, &self.choice) {
            (Some(id), _) => self.access.with(Rights::Read, |token| {
                let kek = present(token, id)?;
                self.wrap_under(token, &kek, dek, context)
            }),
            (None, Some(choice)) => self.access.with(Rights::Read, |token| {
                let kek = chosen(token, choice)?;
                self.wrap_under(token, &kek, dek, context)
            }),
            (None, None) => self.access.with(Rights::Write, |token| {
                let kek = kek::generate(token, OWN_LABEL, self.way(token, None)?)?;
                // Whatever fails now must not leave a key behind that no keyslot knows.
                self.wrap_under(token, &kek, dek, context).inspect_err(|_| {
                    let _ = kek::destroy(token, &kek);
                })
            }),
        }
    }

    fn wrap_under(
        &self,
        token: &OpenToken,
        kek: &Kek,
        dek: &Dek,
        context: WrapContext,
    ) -> Result<WrappedKey, KeyError> {
        let keyslot =
            |form| Keyslot { id: kek.id.clone(), form, serial: token.serial(), label: kek.label.clone() };
        match self.way(token, Some(kek))? {
            Way::Gcm => {
                let keyslot = keyslot(Form::Gcm);
                let (kek_uri, private) = (keyslot.uri(), keyslot.encode());
                let aad = stored::bound(context, SlotType::Pkcs11, &kek_uri, &private);
                let wrapped = kek::encrypt(token, kek, dek, &aad)?;
                Ok(WrappedKey { slot_type: SlotType::Pkcs11, kek_uri, wrapped, private })
            }
            Way::KeyWrap => {
                let secret = Secret32::generate()?;
                let keyslot = keyslot(Form::KeyWrap { blob: kek::wrap(token, kek, &secret)? });
                stored::wrap(&secret, dek, context, SlotType::Pkcs11, keyslot.uri(), &keyslot.encode())
            }
        }
    }

    fn unwrap(
        &self,
        key: &WrappedKey,
        keyslot: &Keyslot,
        context: WrapContext,
    ) -> Result<Option<Dek>, KeyError> {
        self.access.with(Rights::Read, |token| {
            let uri = &key.kek_uri;
            let kek = kek::by_id(token, &keyslot.id)?.ok_or_else(|| absent(token, keyslot))?;
            match &keyslot.form {
                Form::Gcm => {
                    let aad = stored::bound(context, SlotType::Pkcs11, uri, &key.private);
                    kek::decrypt(token, &kek, &key.wrapped, &aad, uri).map(Some)
                }
                Form::KeyWrap { blob } => {
                    let secret = kek::unwrap(token, &kek, blob, uri)?;
                    stored::unwrap(&secret, key, context)
                }
            }
        })
    }

    /// Makes the successor of a keyslot's key, or takes the one that there is already: of a key that many
    /// volumes use, the first rotation makes one, and so does one that was cut off before it was used.
    fn rotate(&self, keyslot: &Keyslot) -> Result<(), KeyError> {
        let (id, own) = self.access.with(Rights::Write, |token| {
            let old = kek::by_id(token, &keyslot.id)?.ok_or_else(|| absent(token, keyslot))?;
            let own = old.label == OWN_LABEL;
            Ok((self.successor(token, &old, own)?.id, own))
        })?;
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(Next { id, own, volume: None });
        Ok(())
    }

    fn successor(&self, token: &OpenToken, old: &Kek, own: bool) -> Result<Kek, KeyError> {
        if own {
            return kek::generate(token, OWN_LABEL, self.way(token, None)?);
        }
        let (mut current, _) = kek::current_by_label(token, &old.label)?;
        match current.len() {
            0 => kek::generate(token, &old.label, self.way(token, None)?),
            1 if current[0].id == old.id => self.succeed(token, old),
            1 => Ok(current.remove(0)),
            _ => Err(ambiguous(&old.label, &current)),
        }
    }

    /// Retires first: cut off in between, there is none that may wrap, and the next rotation makes one.
    /// The other way round there would be two, and nothing that says which.
    fn succeed(&self, token: &OpenToken, old: &Kek) -> Result<Kek, KeyError> {
        let way = self.way(token, None)?;
        kek::set_current(token, old, false).map_err(|error| match error {
            KeyError::Unreachable(why) => KeyError::Unreachable(why),
            error => KeyError::Unsupported(format!(
                "key {} cannot be retired, so a new one of its label could not be told from it ({error}); make \
                 a key of another label in the token, add a keyslot for it and remove this one",
                old.label
            )),
        })?;
        kek::generate(token, &old.label, way).inspect_err(|_| {
            // Best effort: without it the next rotation makes a key.
            let _ = kek::set_current(token, old, true);
        })
    }

    fn destroy(&self, keyslot: &Keyslot) -> Result<(), KeyError> {
        self.access.with(Rights::Write, |token| match kek::by_id(token, &keyslot.id)? {
            Some(kek) if kek.label == OWN_LABEL => kek::destroy(token, &kek),
            Some(kek) => Err(KeyError::Unsupported(format!(
                "key {} (id {}) may serve other volumes; its owner can destroy it in the token",
                kek.label,
                hex(&kek.id)
            ))),
            // In another token it may live on.
            None if keyslot.serial != token.serial() => Err(absent(token, keyslot)),
            None => Ok(()),
        })
    }

    fn probe(&self) -> Result<Health, KeyError> {
        self.access.with(Rights::Read, |token| {
            let mut text = token.text();
            if kek::ways(token).is_empty() {
                return Err(no_way());
            }
            if let Some(choice) = &self.choice {
                let kek = chosen(token, choice)?;
                text = format!("{text}, key {} (id {})", kek.label, hex(&kek.id));
                if let Some(warning) = kek.warning {
                    text = format!("{text}; {warning}");
                }
            }
            Ok(Health { text, credential_expires: None })
        })
    }

    /// What a user should know before the chosen key is used.
    fn warning(&self) -> Result<Option<String>, KeyError> {
        let Some(choice) = &self.choice else { return Ok(None) };
        self.access.with(Rights::Read, |token| chosen(token, choice).map(|kek| kek.warning))
    }

    /// How to wrap with a key, or with one that is to be made.
    fn way(&self, token: &OpenToken, kek: Option<&Kek>) -> Result<Way, KeyError> {
        let has = kek::ways(token);
        let wanted = match self.mechanism {
            Mechanism::Auto => None,
            Mechanism::AesGcm => Some(Way::Gcm),
            Mechanism::AesKeyWrap => Some(Way::KeyWrap),
        };
        let possible = || has.iter().copied().filter(|way| wanted.is_none_or(|wanted| wanted == *way));
        if possible().next().is_none() {
            return Err(no_way());
        }
        let way = possible().find(|way| kek.is_none_or(|kek| kek.may(*way)));
        way.ok_or_else(|| {
            let label = kek.map_or(OWN_LABEL, |kek| &kek.label);
            let right = match wanted {
                Some(Way::Gcm) => "encrypt and decrypt",
                Some(Way::KeyWrap) => "wrap and unwrap",
                None => "encrypt and decrypt, nor to wrap and unwrap",
            };
            KeyError::Denied(format!("key {label} of the token has no right to {right}"))
        })
    }

    /// What the last rotation made, if it is for that volume.
    fn next_of(&self, volume: [u8; 16]) -> Option<Vec<u8>> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let next = next.as_mut()?;
        let fits = !next.own || *next.volume.get_or_insert(volume) == volume;
        fits.then(|| next.id.clone())
    }
}

fn chosen(token: &OpenToken, choice: &Choice) -> Result<Kek, KeyError> {
    match choice {
        Choice::Id(id) => present(token, id),
        Choice::Label(label) => {
            let (mut current, retired) = kek::current_by_label(token, label)?;
            match current.len() {
                1 => Ok(current.remove(0)),
                0 if retired > 0 => Err(KeyError::Denied(format!(
                    "no key {label} of the token may wrap: all {retired} are retired or lack the right"
                ))),
                0 => Err(KeyError::Denied(format!("the token has no secret key {label}"))),
                _ => Err(ambiguous(label, &current)),
            }
        }
    }
}

fn present(token: &OpenToken, id: &[u8]) -> Result<Kek, KeyError> {
    let found = kek::by_id(token, id)?;
    found.ok_or_else(|| KeyError::Denied(format!("the token has no key of id {}", hex(id))))
}

fn ambiguous(label: &str, keks: &[Kek]) -> KeyError {
    /// Enough to see what is wrong.
    const SHOWN_MAX: usize = 4;
    let ids: Vec<_> = keks.iter().take(SHOWN_MAX).map(|kek| hex(&kek.id)).collect();
    KeyError::Denied(format!(
        "the token has {} keys {label} that may wrap, of ids {}; a key is chosen by {ID_PREFIX} and its id",
        keks.len(),
        ids.join(", ")
    ))
}

fn absent(token: &OpenToken, keyslot: &Keyslot) -> KeyError {
    let id = hex(&keyslot.id);
    KeyError::Denied(if token.serial() == keyslot.serial {
        format!("the token has no key of id {id}: it was destroyed")
    } else {
        format!(
            "token {} has no key of id {id}: the keyslot was made with token {}",
            token.serial(),
            keyslot.serial
        )
    })
}

fn no_way() -> KeyError {
    KeyError::Unsupported(
        "the token can do neither AES-GCM nor AES key wrap as the setting mechanism demands".into(),
    )
}
