//! The calls of Barbican's API v1 that are needed: create, read, delete a secret, and say who uses it.
//!
//! A secret is named by its uuid alone; the url that Barbican calls its reference is never stored nor
//! followed. What Barbican says of a secret beside its payload is a label that anybody with its database can
//! change: it is told to people and may make us refuse, and decides nothing else.

use std::time::SystemTime;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::json;
use ureq::http::Method;
use zeroize::Zeroizing;

use crate::http::Answer;
use crate::manager::KeyError;
use crate::secret::Secret32;

use super::answer::{json, printable, refusal};
use super::keystone::{Call, Session, time};

/// What sealbd's secrets are named, followed by the volume's uuid.
const NAME_PREFIX: &str = "sealbd ";
const NAME: &str = "Barbican";

/// The uuid of a secret, 36 characters, lower case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SecretId(String);

impl SecretId {
    /// Reads a uuid in the one spelling that Barbican uses.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let fits = |at: usize, byte: u8| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        };
        let fits = bytes.len() == 36 && bytes.iter().enumerate().all(|(at, byte)| fits(at, *byte));
        fits.then(|| Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for SecretId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A volume's uuid as everybody writes it.
pub(crate) fn volume_name(volume: [u8; 16]) -> String {
    let hex: String = volume.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// What Barbican says of a secret.
#[derive(Debug)]
pub(crate) struct Labels {
    /// After it the secret is as good as deleted.
    pub(crate) expires: Option<SystemTime>,
    /// Whether its name is one that sealbd gives.
    pub(crate) named_by_us: bool,
    /// Who registered as using it, fit to be shown.
    pub(crate) consumers: Vec<String>,
}

/// The secrets of one Barbican.
pub(crate) struct Secrets {
    session: Session,
}

impl Secrets {
    pub(crate) fn new(session: Session) -> Self {
        Self { session }
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// Stores a key for a volume as a new secret.
    ///
    /// # Errors
    /// Those of [`Session::ask`]; [`KeyError::Denied`] without the right to create.
    pub(crate) async fn create(&self, volume: [u8; 16], key: &Secret32) -> Result<SecretId, KeyError> {
        #[derive(Deserialize)]
        struct Created {
            secret_ref: String,
        }
        let answer = self.session.ask(&creation(volume, key)).await?;
        match answer.status {
            200 | 201 => {}
            401 | 403 => {
                return Err(KeyError::Denied(
                    "Barbican does not let us create secrets: the login needs the role member (creator in \
                     older releases) on its project, and room in the project's quota"
                        .into(),
                ));
            }
            status => return Err(refusal(NAME, status, "create a secret")),
        }
        let Created { secret_ref } = json(&answer, NAME)?;
        let id = secret_ref.rsplit('/').next().and_then(SecretId::parse);
        id.ok_or_else(|| KeyError::Untrusted("Barbican created a secret and names it by no uuid".into()))
    }

    /// The 32 bytes of a secret.
    ///
    /// # Errors
    /// Those of [`Session::ask`]; [`KeyError::Denied`] when there is no such secret, no right to it, or it
    /// has another length.
    pub(crate) async fn payload(&self, id: &SecretId) -> Result<Secret32, KeyError> {
        let path = format!("/secrets/{id}/payload");
        let answer = self.session.ask(&get(path, "application/octet-stream")).await?;
        match answer.status {
            200 => Secret32::fill(|bytes| {
                if answer.body.len() != bytes.len() {
                    return Err(KeyError::Denied(format!(
                        "Barbican's secret {id} has {} bytes and not 32: it is no key for sealbd",
                        answer.body.len()
                    )));
                }
                bytes.copy_from_slice(&answer.body);
                Ok(())
            }),
            // 406: the payload has another type than raw bytes.
            406 => Err(KeyError::Denied(format!(
                "Barbican's secret {id} does not hold raw bytes: it is no key for sealbd"
            ))),
            status => Err(not_read(id, status)),
        }
    }

    /// What Barbican says of a secret; none where there is no such secret.
    ///
    /// # Errors
    /// Those of [`Session::ask`]; [`KeyError::Denied`] without the right to read it.
    pub(crate) async fn labels(&self, id: &SecretId) -> Result<Option<Labels>, KeyError> {
        let mut call = get(format!("/secrets/{id}"), "application/json");
        // Consumers are shown from this version on; a Barbican that has none does not read the header.
        call.headers.push(("OpenStack-API-Version", "key-manager 1.1"));
        let mut answer = self.session.ask(&call).await?;
        if answer.status == 406 {
            call.headers.pop();
            answer = self.session.ask(&call).await?;
        }
        match answer.status {
            200 => read_labels(&answer).map(Some),
            404 => Ok(None),
            status => Err(not_read(id, status)),
        }
    }

    /// Deletes a secret. Gone already is done.
    ///
    /// # Errors
    /// Those of [`Session::ask`]; [`KeyError::Denied`] without the right to delete it.
    pub(crate) async fn delete(&self, id: &SecretId) -> Result<(), KeyError> {
        let path = format!("/secrets/{id}");
        let call = Call { method: Method::DELETE, path, headers: Vec::new(), body: None };
        match self.session.ask(&call).await?.status {
            200 | 202 | 204 | 404 => Ok(()),
            status => Err(refusal(NAME, status, &format!("delete secret {id}"))),
        }
    }

    /// Says that a volume uses a secret, so that others think before they delete it. Barbican takes it as
    /// advice: it deletes a secret with consumers.
    ///
    /// # Errors
    /// Those of [`Session::ask`]; [`KeyError::Denied`].
    pub(crate) async fn register(&self, id: &SecretId, volume: [u8; 16]) -> Result<(), KeyError> {
        let body = json!({
            "service": "sealbd", "resource_type": "VOLUME", "resource_id": volume_name(volume)
        });
        let call = Call {
            method: Method::POST,
            path: format!("/secrets/{id}/consumers"),
            headers: vec![("Content-Type", "application/json"), ("Accept", "application/json")],
            body: Some(Zeroizing::new(body.to_string().into_bytes())),
        };
        match self.session.ask(&call).await?.status {
            200 | 201 => Ok(()),
            status => Err(refusal(NAME, status, &format!("register a consumer of secret {id}"))),
        }
    }

    /// Whether this login may list secrets, which shows that the key manager lets it in.
    ///
    /// # Errors
    /// Those of [`Session::ask`].
    pub(crate) async fn may_list(&self) -> Result<bool, KeyError> {
        match self.session.ask(&get("/secrets?limit=1".into(), "application/json")).await?.status {
            200 => Ok(true),
            403 => Ok(false),
            status => Err(refusal(NAME, status, "list secrets")),
        }
    }
}

fn get(path: String, accept: &'static str) -> Call {
    Call { method: Method::GET, path, headers: vec![("Accept", accept)], body: None }
}

/// The order to store a key, in memory that is wiped.
fn creation(volume: [u8; 16], key: &Secret32) -> Call {
    // Room for all of it at once: a buffer that grows leaves copies behind.
    let mut body = Zeroizing::new(String::with_capacity(1024));
    body.push_str(r#"{"name":""#);
    body.push_str(NAME_PREFIX);
    body.push_str(&volume_name(volume));
    body.push_str(r#"","secret_type":"symmetric","algorithm":"aes","bit_length":256,"#);
    body.push_str(r#""payload_content_type":"application/octet-stream","#);
    body.push_str(r#""payload_content_encoding":"base64","payload":""#);
    BASE64_STANDARD.encode_string(key.expose(), &mut body);
    body.push_str(r#""}"#);
    Call {
        method: Method::POST,
        path: "/secrets".into(),
        headers: vec![("Content-Type", "application/json"), ("Accept", "application/json")],
        body: Some(Zeroizing::new(std::mem::take(&mut *body).into_bytes())),
    }
}

fn read_labels(answer: &Answer) -> Result<Labels, KeyError> {
    #[derive(Deserialize)]
    struct Body {
        name: Option<String>,
        expiration: Option<String>,
        #[serde(default)]
        consumers: Vec<Consumer>,
    }
    #[derive(Deserialize)]
    struct Consumer {
        service: String,
        resource_type: String,
        resource_id: String,
    }
    let Body { name, expiration, consumers } = json(answer, NAME)?;
    let expires = match expiration {
        None => None,
        Some(text) => Some(time(&text).ok_or_else(|| {
            KeyError::Untrusted(format!("Barbican tells an expiration that is no time: {}", printable(&text)))
        })?),
    };
    let named_by_us = name.is_some_and(|name| name.starts_with(NAME_PREFIX));
    let shown =
        |it: Consumer| [it.service, it.resource_type, it.resource_id].map(|part| printable(&part)).join(" ");
    Ok(Labels { expires, named_by_us, consumers: consumers.into_iter().map(shown).collect() })
}

/// Why a secret cannot be read, with all that the status can mean.
fn not_read(id: &SecretId, status: u16) -> KeyError {
    match status {
        401 | 403 => KeyError::Denied(format!(
            "Barbican does not let us read secret {id}: neither a role on its project nor its access list \
             (ACL) allows it; the owner grants it with: openstack acl user add --operation-type read"
        )),
        404 => KeyError::Denied(format!(
            "Barbican has no secret {id} to give: it is unknown, was deleted, has expired or has no payload"
        )),
        status => refusal(NAME, status, &format!("read secret {id}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3547f40c-37ea-4ce5-88e0-25b9d38b0b7c";

    fn labels(body: &str) -> Result<Labels, KeyError> {
        let body = Zeroizing::new(body.as_bytes().to_vec());
        read_labels(&Answer { status: 200, headers: ureq::http::HeaderMap::new(), body })
    }

    #[test]
    fn a_secret_has_one_spelling() {
        assert_eq!(SecretId::parse(ID).unwrap().as_str(), ID);
        let (upper, braced) = (ID.to_uppercase(), format!("{{{ID}}}"));
        let url = format!("http://127.0.0.1/v1/secrets/{ID}");
        for text in [
            "",
            &upper,
            &braced,
            &url,
            &ID[1..],
            &ID.replace('-', ""),
            "../../../../../../../../../../../..",
            &ID.replace('7', "é"),
        ] {
            assert_eq!(SecretId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_creation_is_json_that_fits_its_buffer() {
        let key = Secret32::take(&mut [7; 32]);
        let call = creation(*b"0123456789abcdef", &key);
        let body = call.body.unwrap();
        assert!(body.len() < 1024 && body.capacity() == 1024, "never moved");
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["name"], "sealbd 30313233-3435-3637-3839-616263646566");
        assert_eq!(body["payload"], BASE64_STANDARD.encode([7; 32]));
        assert_eq!((&body["secret_type"], &body["bit_length"]), (&json!("symmetric"), &json!(256)));
    }

    #[test]
    fn labels_that_lie_are_cleaned_or_refused() {
        let told =
            labels(r#"{"name": "sealbd x", "expiration": "2027-01-01T00:00:00", "bit_length": -1}"#).unwrap();
        assert!(told.named_by_us && told.expires.is_some() && told.consumers.is_empty());
        let told = labels(
            r#"{"name": "\u001b[31m", "expiration": null, "content_types": 7, "consumers":
                [{"service": "a\r\nb", "resource_type": "c", "resource_id": "d"}]}"#,
        );
        let told = told.unwrap();
        assert!(!told.named_by_us && told.expires.is_none());
        assert_eq!(told.consumers, ["a??b c d"]);
        for body in
            ["", "[]", "nonsense", r#"{"expiration": "soon"}"#, r#"{"expiration": 5}"#, r#"{"name": []}"#]
        {
            assert!(matches!(labels(body), Err(KeyError::Untrusted(_))), "{body}");
        }
    }
}
