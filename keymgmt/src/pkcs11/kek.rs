//! Keys in a token that wrap others: finding, making, retiring and destroying them, and what they do.
//!
//! A key that may only decrypt is retired: it unwraps what it wrapped and is not taken for anything new.
//! That is how the current one of several keys of one label is told, without any order among keys, which
//! PKCS#11 does not have.

use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use zeroize::{Zeroize, Zeroizing};

use super::failure::{misfit, told};
use super::keyslot::{BLOB_LEN, ID_MAX, LABEL_MAX, hex, printable};
use super::token::OpenToken;
use crate::manager::KeyError;
use crate::secret::{Dek, Secret32, fill_random};
use crate::wrap::WRAPPED_LEN;

/// Most keys of one label that are looked at: the versions that were not destroyed, one per rotation.
const KEYS_MAX: usize = 256;
/// Length of the ids of keys that we make.
const OWN_ID_LEN: usize = 16;
const IV_LEN: usize = 12;
const TAG_BITS: u64 = 128;

/// How a key wraps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    Gcm,
    KeyWrap,
}

/// An AES-256 key of the token.
#[derive(Clone, Debug)]
pub(crate) struct Kek {
    handle: ObjectHandle,
    pub(crate) id: Vec<u8>,
    pub(crate) label: String,
    rights: Rights,
    /// What a user should know of it.
    pub(crate) warning: Option<String>,
}

#[derive(Clone, Copy, Default, Debug)]
struct Rights {
    encrypt: bool,
    decrypt: bool,
    wrap: bool,
    unwrap: bool,
}

impl Kek {
    /// Whether it may wrap something new: keys that may not are retired.
    pub(crate) fn is_current(&self) -> bool {
        self.rights.encrypt || self.rights.wrap
    }

    /// Whether it may wrap and unwrap that way.
    pub(crate) fn may(&self, way: Way) -> bool {
        let Rights { encrypt, decrypt, wrap, unwrap } = self.rights;
        match way {
            Way::Gcm => encrypt && decrypt,
            Way::KeyWrap => wrap && unwrap,
        }
    }
}

/// The key of an id.
///
/// # Errors
/// [`KeyError::Denied`] when several have it, [`KeyError::Settings`] when it is no AES-256 key.
pub(crate) fn by_id(token: &OpenToken, id: &[u8]) -> Result<Option<Kek>, KeyError> {
    let handles = find(token, Attribute::Id(id.to_vec()))?;
    match handles.as_slice() {
        [] => Ok(None),
        [handle] => inspect(token, *handle).map(Some),
        _ => Err(KeyError::Denied(format!("the token has several keys of id {}", hex(id)))),
    }
}

/// The keys of a label that may wrap something new, and how many more there are.
pub(crate) fn current_by_label(token: &OpenToken, label: &str) -> Result<(Vec<Kek>, usize), KeyError> {
    let handles = find(token, Attribute::Label(label.as_bytes().to_vec()))?;
    let keks: Vec<_> = handles.iter().map(|handle| inspect(token, *handle)).collect::<Result<_, _>>()?;
    let all = keks.len();
    let current: Vec<_> = keks.into_iter().filter(Kek::is_current).collect();
    let retired = all - current.len();
    Ok((current, retired))
}

/// A new key of that label, with a random id, which never leaves the token.
///
/// # Errors
/// Those of [`told`]; [`KeyError::Denied`] when the token made a key that may leave it.
pub(crate) fn generate(token: &OpenToken, label: &str, way: Way) -> Result<Kek, KeyError> {
    let mut id = vec![0; OWN_ID_LEN];
    fill_random(&mut id)?;
    let (gcm, key_wrap) = (way == Way::Gcm, way == Way::KeyWrap);
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::ValueLen(32.into()),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Id(id),
        Attribute::Label(label.as_bytes().to_vec()),
        Attribute::Encrypt(gcm),
        Attribute::Decrypt(gcm),
        Attribute::Wrap(key_wrap),
        Attribute::Unwrap(key_wrap),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::Derive(false),
    ];
    let handle = token.generate_key(&Mechanism::AesKeyGen, &template).map_err(told("making a key"))?;
    let kek = inspect(token, handle)?;
    if let Some(warning) = &kek.warning {
        token.destroy_object(handle).map_err(told("destroying a key"))?;
        return Err(KeyError::Denied(format!("the token makes keys that are not safe: {warning}")));
    }
    Ok(kek)
}

/// Takes a key's right to wrap, or gives it back.
pub(crate) fn set_current(token: &OpenToken, kek: &Kek, current: bool) -> Result<(), KeyError> {
    let Rights { encrypt, wrap, .. } = kek.rights;
    let mut changes = Vec::new();
    if encrypt {
        changes.push(Attribute::Encrypt(current));
    }
    if wrap {
        changes.push(Attribute::Wrap(current));
    }
    token.update_attributes(kek.handle, &changes).map_err(told("retiring a key"))
}

/// Destroys a key, for good.
pub(crate) fn destroy(token: &OpenToken, kek: &Kek) -> Result<(), KeyError> {
    token.destroy_object(kek.handle).map_err(told("destroying a key"))
}

/// Wraps a DEK in the token: IV ‖ ciphertext ‖ tag.
pub(crate) fn encrypt(token: &OpenToken, kek: &Kek, dek: &Dek, aad: &[u8]) -> Result<Vec<u8>, KeyError> {
    let mut iv = [0; IV_LEN];
    fill_random(&mut iv)?;
    let params = GcmParams::new(&mut iv, aad, TAG_BITS.into()).map_err(told("wrapping"))?;
    let sealed = token.encrypt(&Mechanism::AesGcm(params), kek.handle, dek.0.expose());
    let sealed = sealed.map_err(told("wrapping"))?;
    if IV_LEN + sealed.len() != WRAPPED_LEN {
        return Err(KeyError::Unsupported(format!(
            "the token's AES-GCM makes {} bytes where 48 are right; the setting mechanism = \"aes-key-wrap\" \
             does without it",
            sealed.len()
        )));
    }
    // Read back: a token of a certified kind writes an IV of its own there.
    Ok([&iv[..], &sealed].concat())
}

/// Unwraps what [`encrypt`] made.
pub(crate) fn decrypt(
    token: &OpenToken,
    kek: &Kek,
    wrapped: &[u8],
    aad: &[u8],
    uri: &str,
) -> Result<Dek, KeyError> {
    let (iv, sealed) = wrapped.split_at(IV_LEN);
    let mut iv = iv.to_vec();
    let params = GcmParams::new(&mut iv, aad, TAG_BITS.into()).map_err(told("unwrapping"))?;
    let opened = token.decrypt(&Mechanism::AesGcm(params), kek.handle, sealed).map_err(misfit(uri))?;
    let mut opened = Zeroizing::new(opened);
    let bytes: &mut [u8; 32] = opened.as_mut_slice().try_into().map_err(|_| wrong_length())?;
    Ok(Dek::take(bytes))
}

/// Wraps a KEK of ours by AES Key Wrap (RFC 3394). The token has to see it as a key, so it becomes one for
/// as long as that takes.
pub(crate) fn wrap(token: &OpenToken, kek: &Kek, secret: &Secret32) -> Result<[u8; BLOB_LEN], KeyError> {
    let mut template = passing();
    template.push(Attribute::Value(secret.expose().to_vec()));
    let made = token.create_object(&template);
    wipe(&mut template);
    let passing = Passing { session: token, handle: made.map_err(forbidden("taking a key in"))? };
    let blob = token.wrap_key(&Mechanism::AesKeyWrap, kek.handle, passing.handle);
    let blob = blob.map_err(told("wrapping"))?;
    blob.try_into().map_err(|blob: Vec<u8>| {
        KeyError::Untrusted(format!("the token's key wrap made {} bytes where 40 are right", blob.len()))
    })
}

/// Unwraps what [`wrap`] made. The library's own copies of the key on the way are not wiped.
pub(crate) fn unwrap(
    token: &OpenToken,
    kek: &Kek,
    blob: &[u8; BLOB_LEN],
    uri: &str,
) -> Result<Secret32, KeyError> {
    let made = token.unwrap_key(&Mechanism::AesKeyWrap, kek.handle, blob, &passing());
    let passing = Passing { session: token, handle: made.map_err(misfit(uri))? };
    let read = token.get_attributes(passing.handle, &[AttributeType::Value]);
    let mut read = read.map_err(forbidden("giving a key out"))?;
    let secret = match read.as_mut_slice() {
        [Attribute::Value(bytes)] => {
            let bytes: Result<&mut [u8; 32], _> = bytes.as_mut_slice().try_into();
            bytes.map(Secret32::take).map_err(|_| wrong_length())
        }
        _ => Err(forbidden("giving a key out")(cryptoki::error::Error::NotSupported)),
    };
    wipe(&mut read);
    secret
}

/// Template of a key of ours that passes through the token: of this session only, to be read by us.
fn passing() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ]
}

/// Such a key in the token, destroyed on drop. The end of the session destroys it, too.
struct Passing<'t> {
    session: &'t Session,
    handle: ObjectHandle,
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        let _ = self.session.destroy_object(self.handle);
    }
}

fn wipe(attributes: &mut [Attribute]) {
    for attribute in attributes {
        if let Attribute::Value(bytes) = attribute {
            bytes.zeroize();
        }
    }
}

/// Certified tokens let no key pass in the clear.
fn forbidden(doing: &'static str) -> impl Fn(cryptoki::error::Error) -> KeyError {
    move |error| match told(doing)(error) {
        KeyError::Unreachable(why) => KeyError::Unreachable(why),
        error => KeyError::Unsupported(format!(
            "{error}; AES key wrap needs a token that lets a key of ours pass, and AES-GCM does without"
        )),
    }
}

fn find(token: &OpenToken, attribute: Attribute) -> Result<Vec<ObjectHandle>, KeyError> {
    let template = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Token(true), attribute];
    let found = token.iter_objects(&template).map_err(told("looking for a key"))?;
    let handles: Vec<_> =
        found.take(KEYS_MAX + 1).collect::<Result<_, _>>().map_err(told("looking for a key"))?;
    if handles.len() > KEYS_MAX {
        return Err(KeyError::Denied(format!("more than {KEYS_MAX} keys of one label; destroy old ones")));
    }
    Ok(handles)
}

fn inspect(token: &OpenToken, handle: ObjectHandle) -> Result<Kek, KeyError> {
    const ASKED: [AttributeType; 10] = [
        AttributeType::KeyType,
        AttributeType::ValueLen,
        AttributeType::Id,
        AttributeType::Label,
        AttributeType::Sensitive,
        AttributeType::Extractable,
        AttributeType::Encrypt,
        AttributeType::Decrypt,
        AttributeType::Wrap,
        AttributeType::Unwrap,
    ];
    let (mut is_aes_256, mut is_aes) = (false, false);
    let (mut id, mut label, mut rights) = (Vec::new(), String::new(), Rights::default());
    // What a token does not say is taken for the worse.
    let (mut sensitive, mut extractable) = (false, true);
    for attribute in token.get_attributes(handle, &ASKED).map_err(told("looking at a key"))? {
        match attribute {
            Attribute::KeyType(kind) => is_aes = kind == KeyType::AES,
            Attribute::ValueLen(len) => is_aes_256 = *len == 32,
            Attribute::Id(found) => id = found,
            Attribute::Label(found) => label = printable(&String::from_utf8_lossy(&found), LABEL_MAX),
            Attribute::Sensitive(is) => sensitive = is,
            Attribute::Extractable(is) => extractable = is,
            Attribute::Encrypt(may) => rights.encrypt = may,
            Attribute::Decrypt(may) => rights.decrypt = may,
            Attribute::Wrap(may) => rights.wrap = may,
            Attribute::Unwrap(may) => rights.unwrap = may,
            _ => {}
        }
    }
    if !(is_aes && is_aes_256) {
        return Err(KeyError::Settings(format!("key {label} of the token is no AES key of 256 bits")));
    }
    if !(1..=ID_MAX).contains(&id.len()) {
        return Err(KeyError::Settings(format!(
            "key {label} of the token has no id of 1 to {ID_MAX} bytes, by which keyslots find it"
        )));
    }
    if label.is_empty() {
        "-".clone_into(&mut label);
    }
    let may_leave = match (extractable, sensitive) {
        (false, true) => None,
        (true, _) => Some("extractable"),
        (false, false) => Some("not sensitive"),
    };
    let warning = may_leave.map(|why| {
        format!("key {label} (id {}) is {why}: whoever has the PIN can copy it out of the token", hex(&id))
    });
    Ok(Kek { handle, id, label, rights, warning })
}

/// The ways that a token has, the better first.
pub(crate) fn ways(token: &OpenToken) -> Vec<Way> {
    let gcm = token.mechanism(MechanismType::AES_GCM).is_some_and(|info| info.encrypt() && info.decrypt());
    let key_wrap =
        token.mechanism(MechanismType::AES_KEY_WRAP).is_some_and(|info| info.wrap() && info.unwrap());
    [(gcm, Way::Gcm), (key_wrap, Way::KeyWrap)]
        .into_iter()
        .filter_map(|(has, way)| has.then_some(way))
        .collect()
}

fn wrong_length() -> KeyError {
    KeyError::Untrusted("the token gave a key of another length than 32 bytes".into())
}
