//! Keyslots of OpenStack Barbican: the KEK is a secret of 32 random bytes, fetched for each wrap and unwrap
//! and forgotten at once; wrapping happens here, see [`crate::stored`].
//!
//! A secret's payload can be written once, so a new version is a new secret with a uuid of its own. The
//! keyslot's key uri is `barbican:UUID`; the details are flags u8 (bit 0: sealbd made the secret) ‖
//! expiration u64, seconds since 1970, little endian, 0 for none. Both are authenticated by the wrap.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::manager::{
    BoxFuture, Health, KeyDescription, KeyError, KeyManager, SlotType, WrapContext, WrappedKey,
};
use crate::secret::{Dek, Secret32};
use crate::{stored, verify};

use super::secrets::{SecretId, Secrets};

const URI_PREFIX: &str = "barbican:";
const DETAILS_LEN: usize = 9;
const _: () = assert!(DETAILS_LEN <= stored::DETAILS_MAX);
const MADE_BY_SEALBD: u8 = 1;
/// The last second of the year 9999, the last that can be shown.
const EXPIRES_MAX: u64 = 253_402_300_799;

/// One Barbican and a login to it.
pub(crate) struct Barbican {
    secrets: Secrets,
    /// The one secret that was named.
    named: Option<SecretId>,
    /// Secrets that this value made, by volume; one for each volume that it wrapped for.
    made: Mutex<HashMap<[u8; 16], SecretId>>,
}

/// What a keyslot says of its secret. Not authenticated until the wrap was opened.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Slot {
    id: SecretId,
    details: Details,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Details {
    made_by_sealbd: bool,
    expires: Option<u64>,
}

impl Barbican {
    pub(crate) fn new(secrets: Secrets, named: Option<SecretId>) -> Self {
        Self { secrets, named, made: Mutex::new(HashMap::new()) }
    }

    async fn wrap_now(&self, dek: &Dek, context: WrapContext) -> Result<WrappedKey, KeyError> {
        let (slot, kek) = match &self.named {
            Some(id) => self.fetch_named(id).await?,
            None => self.fetch_or_make(context.volume).await?,
        };
        let wrapped = stored::wrap(
            &kek,
            dek,
            context,
            SlotType::Barbican,
            format!("{URI_PREFIX}{}", slot.id),
            &slot.details.encode(),
        )?;
        // Advice to other users of Barbican; a keyslot is as good without it, and whoever may only read
        // the secret may not be allowed to give it.
        let _ = self.secrets.register(&slot.id, context.volume).await;
        Ok(wrapped)
    }

    async fn fetch_named(&self, id: &SecretId) -> Result<(Slot, Secret32), KeyError> {
        let labels = self.secrets.labels(id).await?;
        let kek = self.secrets.payload(id).await?;
        if is_guessable(kek.expose()) {
            return Err(KeyError::Denied(format!(
                "secret {id} holds text or one byte over and over, not a key; make one with: openstack secret \
                 order create --algorithm aes --bit-length 256 --payload-content-type \
                 application/octet-stream key"
            )));
        }
        let expires = labels.and_then(|labels| labels.expires).map(seconds);
        Ok((Slot { id: id.clone(), details: Details { made_by_sealbd: false, expires } }, kek))
    }

    /// The secret that this value made for the volume before, or a new one. Should its creation succeed and
    /// the answer be lost, a secret stays behind that nothing uses; its name tells the volume.
    async fn fetch_or_make(&self, volume: [u8; 16]) -> Result<(Slot, Secret32), KeyError> {
        let details = Details { made_by_sealbd: true, expires: None };
        let made = self.made().get(&volume).cloned();
        if let Some(id) = made {
            let kek = self.secrets.payload(&id).await?;
            return Ok((Slot { id, details }, kek));
        }
        let kek = Secret32::generate()?;
        let id = self.secrets.create(volume, &kek).await?;
        self.made().insert(volume, id.clone());
        Ok((Slot { id, details }, kek))
    }

    async fn unwrap_now(&self, key: &WrappedKey, context: WrapContext) -> Result<Option<Dek>, KeyError> {
        if key.slot_type != SlotType::Barbican {
            return Ok(None);
        }
        let slot = Slot::parse(key)?;
        verify::wrapped_len(key)?;
        if self.named.as_ref().is_some_and(|named| *named != slot.id) {
            return Ok(None);
        }
        let kek = self.secrets.payload(&slot.id).await?;
        stored::unwrap(&kek, key, context)
    }

    async fn destroy_now(&self, key: &WrappedKey) -> Result<(), KeyError> {
        let Slot { id, details } = Slot::parse(key)?;
        if !details.made_by_sealbd {
            return Err(KeyError::Unsupported(format!(
                "secret {id} was not made by sealbd, others may use it; its owner deletes it with: openstack \
                 secret delete"
            )));
        }
        let Some(labels) = self.secrets.labels(&id).await? else { return Ok(()) };
        // The keyslot may have been changed by whoever holds the store. These labels are no proof either,
        // but they can only keep a secret alive.
        if !labels.named_by_us {
            return Err(KeyError::Unsupported(format!("secret {id} has no name of sealbd's: it stays")));
        }
        if let [first, rest @ ..] = labels.consumers.as_slice()
            && rest.iter().any(|other| other != first)
        {
            return Err(KeyError::Unsupported(format!(
                "secret {id} stays, for it has {} users: {first}, {} …",
                labels.consumers.len(),
                rest[0]
            )));
        }
        self.secrets.delete(&id).await?;
        self.made().retain(|_, made| *made != id);
        Ok(())
    }

    async fn probe_now(&self) -> Result<Health, KeyError> {
        let session = self.secrets.session();
        let endpoint = session.endpoint().await?;
        let found = match &self.named {
            None if self.secrets.may_list().await? => "logged in".to_owned(),
            None => "logged in, without the right to list secrets".to_owned(),
            Some(id) => {
                // Fetched as an unwrap would, and forgotten.
                self.secrets.payload(id).await?;
                let expires = self.secrets.labels(id).await?.and_then(|labels| labels.expires);
                match expires.map(seconds) {
                    Some(end) => format!("secret {id} can be read; {}", expiry(end)),
                    None => format!("secret {id} can be read"),
                }
            }
        };
        let text = format!("Barbican at {endpoint}: {found}");
        Ok(Health { text, credential_expires: session.credential_expires().await? })
    }

    fn made(&self) -> MutexGuard<'_, HashMap<[u8; 16], SecretId>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeyManager for Barbican {
    fn slot_type(&self) -> SlotType {
        SlotType::Barbican
    }

    fn wrap<'a>(&'a self, dek: &'a Dek, context: WrapContext) -> BoxFuture<'a, Result<WrappedKey, KeyError>> {
        Box::pin(self.wrap_now(dek, context))
    }

    fn unwrap<'a>(
        &'a self,
        key: &'a WrappedKey,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Option<Dek>, KeyError>> {
        Box::pin(self.unwrap_now(key, context))
    }

    fn describe(&self, key: &WrappedKey) -> Result<KeyDescription, KeyError> {
        describe(key)
    }

    /// Makes nothing yet: the next wrap makes a new secret, for it knows the volume. So a rotation that goes
    /// no further leaves nothing behind.
    fn rotate<'a>(&'a self, current: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(async {
            Slot::parse(current)?;
            if let Some(id) = &self.named {
                return Err(KeyError::Unsupported(format!(
                    "secret {id} was named, and a secret never changes: name another one, or none, and sealbd \
                     makes one"
                )));
            }
            self.made().clear();
            Ok(())
        })
    }

    fn destroy<'a>(&'a self, key: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(self.destroy_now(key))
    }

    fn probe(&self) -> BoxFuture<'_, Result<Health, KeyError>> {
        Box::pin(self.probe_now())
    }
}

/// Tells what a keyslot of this manager is made of.
///
/// # Errors
/// [`KeyError::Malformed`].
pub(crate) fn describe(key: &WrappedKey) -> Result<KeyDescription, KeyError> {
    let Slot { id, details } = Slot::parse(key)?;
    let origin = if details.made_by_sealbd { "made by sealbd" } else { "not made by sealbd" };
    let end = details.expires.map(|end| format!("; {}", expiry(end))).unwrap_or_default();
    Ok(KeyDescription {
        text: format!("secret {id}, {origin}{end}"),
        key_id: Some(id.as_str().to_owned()),
        version: None,
    })
}

impl Slot {
    fn parse(key: &WrappedKey) -> Result<Self, KeyError> {
        verify::is_type(key, SlotType::Barbican)?;
        let id = key.kek_uri.strip_prefix(URI_PREFIX).and_then(SecretId::parse);
        let id = id.ok_or_else(|| KeyError::Malformed("the key uri is not barbican:UUID".into()))?;
        Ok(Self { id, details: Details::decode(stored::details(key)?)? })
    }
}

impl Details {
    fn encode(self) -> [u8; DETAILS_LEN] {
        let Self { made_by_sealbd, expires } = self;
        let mut bytes = [0; DETAILS_LEN];
        bytes[0] = if made_by_sealbd { MADE_BY_SEALBD } else { 0 };
        bytes[1..].copy_from_slice(&expires.unwrap_or(0).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, KeyError> {
        let wrong = |why: &str| KeyError::Malformed(format!("Barbican's details: {why}"));
        let bytes: &[u8; DETAILS_LEN] = bytes.try_into().map_err(|_| wrong("not 9 bytes"))?;
        let (flags, expires) = bytes.split_first().expect("9 bytes have a first");
        let made_by_sealbd = match *flags {
            0 => false,
            MADE_BY_SEALBD => true,
            _ => return Err(wrong("flags that are not known")),
        };
        let expires = u64::from_le_bytes(expires.try_into().expect("9 bytes less one"));
        if expires > EXPIRES_MAX {
            return Err(wrong("an expiration after the year 9999"));
        }
        Ok(Self { made_by_sealbd, expires: (expires > 0).then_some(expires) })
    }
}

/// Seconds since 1970, at least 1: 0 stands for no expiration.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs().clamp(1, EXPIRES_MAX))
}

/// Whether 32 bytes are what people type (a passphrase, hexadecimal digits) or forgot to fill. Of random keys
/// one in 10^13 is.
fn is_guessable(bytes: &[u8; 32]) -> bool {
    let text = bytes.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
    text || bytes.iter().all(|byte| *byte == bytes[0])
}

fn expiry(seconds: u64) -> String {
    let end = UNIX_EPOCH + Duration::from_secs(seconds.min(EXPIRES_MAX));
    format!("WARNING: the secret expires {}, and the keyslot with it", humantime::format_rfc3339_seconds(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::tests::{CONTEXT, ascending};

    const ID: &str = "3547f40c-37ea-4ce5-88e0-25b9d38b0b7c";

    fn key(details: Details) -> WrappedKey {
        let secret = Secret32::take(&mut ascending(0x80));
        let dek = Dek::take(&mut ascending(0x40));
        let uri = format!("{URI_PREFIX}{ID}");
        stored::wrap(&secret, &dek, CONTEXT, SlotType::Barbican, uri, &details.encode()).unwrap()
    }

    #[test]
    fn details_decode_to_what_was_encoded_and_nothing_else_decodes() {
        for details in [
            Details { made_by_sealbd: true, expires: None },
            Details { made_by_sealbd: false, expires: Some(1) },
            Details { made_by_sealbd: false, expires: Some(EXPIRES_MAX) },
        ] {
            assert_eq!(Details::decode(&details.encode()).unwrap(), details);
        }
        assert_eq!(
            Details { made_by_sealbd: true, expires: Some(258) }.encode(),
            [1, 2, 1, 0, 0, 0, 0, 0, 0]
        );
        let late = [&[0][..], &(EXPIRES_MAX + 1).to_le_bytes()].concat();
        for wrong in [&[][..], &[1], &[0; 8], &[0; 10], &[2, 0, 0, 0, 0, 0, 0, 0, 0], &late, &[0xff; 9]] {
            assert!(matches!(Details::decode(wrong), Err(KeyError::Malformed(_))), "{wrong:?}");
        }
    }

    #[test]
    fn a_secret_that_expires_is_told_so_without_asking_anybody() {
        let told = describe(&key(Details { made_by_sealbd: false, expires: Some(1_798_761_600) })).unwrap();
        assert_eq!(told.key_id.as_deref(), Some(ID));
        assert_eq!(
            told.text,
            format!(
                "secret {ID}, not made by sealbd; WARNING: the secret expires 2027-01-01T00:00:00Z, and the \
                 keyslot with it"
            )
        );
        let told = describe(&key(Details { made_by_sealbd: true, expires: None })).unwrap();
        assert_eq!(told.text, format!("secret {ID}, made by sealbd"));
    }

    #[test]
    fn what_people_type_is_no_key() {
        for weak in
            [*b"correct horse battery staple 123", *b"0123456789abcdef0123456789abcdef", [0; 32], [0xff; 32]]
        {
            assert!(is_guessable(&weak));
        }
        assert!(!is_guessable(&ascending(0x80)));
        assert!(!is_guessable(Secret32::generate().unwrap().expose()));
    }

    #[test]
    fn a_url_in_a_keyslot_is_malformed() {
        let right = key(Details { made_by_sealbd: true, expires: None });
        for uri in [
            "",
            ID,
            "barbican:",
            "barbican:http://169.254.169.254/",
            &format!("Barbican:{ID}"),
            &format!("barbican:{}", ID.to_uppercase()),
            &format!("barbican:{ID}/../x"),
            &format!("barbican:{ID}?x"),
        ] {
            let changed = WrappedKey { kek_uri: uri.to_owned(), ..right.clone() };
            assert!(matches!(describe(&changed), Err(KeyError::Malformed(_))), "{uri}");
        }
    }
}
