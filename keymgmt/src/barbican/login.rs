//! Who logs in to Keystone, and the body of a login. Source: the Identity API v3 reference, `POST
//! /v3/auth/tokens`.

use serde::Serialize;
use zeroize::Zeroizing;

use crate::manager::KeyError;
use crate::secret::SecretBytes;

/// Longest id of a user or an application credential: a uuid without dashes, or a SHA-256 of LDAP users.
const ID_BYTES_MAX: usize = 64;

/// A user or a project.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Named {
    /// By its id.
    Id { id: String },
    /// By its name in a domain.
    Name { name: String, domain: Domain },
}

/// What users and projects belong to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Domain {
    Id(String),
    Name(String),
}

/// Who logs in.
pub(crate) enum Credential {
    /// A user, for one project.
    Password { user: Named, project: Named, password: SecretBytes },
    /// An application credential, which belongs to one project already.
    Application { id: String, secret: SecretBytes },
}

impl Credential {
    /// The body of a login, in memory that is wiped.
    pub(crate) fn request(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let (secret, body) = match self {
            Self::Password { user, project, password } => {
                let secret = text(password)?;
                let password = Some(ByPassword { user: WithPassword { user, password: secret } });
                let identity = Identity { methods: ["password"], password, application_credential: None };
                (secret, Auth { identity, scope: Some(Scope { project }) })
            }
            Self::Application { id, secret } => {
                let secret = text(secret)?;
                let application_credential = Some(ByApplication { id, secret });
                let methods = ["application_credential"];
                (
                    secret,
                    Auth {
                        identity: Identity { methods, password: None, application_credential },
                        scope: None,
                    },
                )
            }
        };
        // Room for the secret with every character escaped: a buffer that grows leaves copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(6 * secret.len() + 4096));
        serde_json::to_writer(&mut *bytes, &Request { auth: body })
            .map_err(|_| KeyError::Settings("the login cannot be written as JSON".into()))?;
        Ok(bytes)
    }

    /// Who it is, for people.
    pub(crate) fn told(&self) -> String {
        match self {
            Self::Password { user: Named::Id { id } | Named::Name { name: id, .. }, .. } => {
                format!("user {id}")
            }
            Self::Application { id, .. } => format!("application credential {id}"),
        }
    }
}

/// Whether that can be an id of Keystone's. It becomes part of a path.
pub(crate) fn is_id(id: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn text(secret: &SecretBytes) -> Result<&str, KeyError> {
    std::str::from_utf8(secret.expose())
        .map_err(|_| KeyError::Settings("Keystone takes a password or secret that is UTF-8 text only".into()))
}

#[derive(Serialize)]
struct Request<'a> {
    auth: Auth<'a>,
}

#[derive(Serialize)]
struct Auth<'a> {
    identity: Identity<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<Scope<'a>>,
}

#[derive(Serialize)]
struct Identity<'a> {
    methods: [&'static str; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<ByPassword<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    application_credential: Option<ByApplication<'a>>,
}

#[derive(Serialize)]
struct ByPassword<'a> {
    user: WithPassword<'a>,
}

#[derive(Serialize)]
struct WithPassword<'a> {
    #[serde(flatten)]
    user: &'a Named,
    password: &'a str,
}

#[derive(Serialize)]
struct ByApplication<'a> {
    id: &'a str,
    secret: &'a str,
}

#[derive(Serialize)]
struct Scope<'a> {
    project: &'a Named,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> SecretBytes {
        SecretBytes::take(&mut text.as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn logins_are_what_the_identity_api_asks_for() {
        let name = |name: &str| Named::Name { name: name.into(), domain: Domain::Name("Default".into()) };
        let password =
            Credential::Password { user: name("owner"), project: name("tenant"), password: secret("p\"w") };
        assert_eq!(
            std::str::from_utf8(&password.request().unwrap()).unwrap(),
            r#"{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"owner","domain":{"name":"Default"},"password":"p\"w"}}},"scope":{"project":{"name":"tenant","domain":{"name":"Default"}}}}}"#
        );
        let application = Credential::Application { id: "ab".into(), secret: secret("s") };
        assert_eq!(
            std::str::from_utf8(&application.request().unwrap()).unwrap(),
            r#"{"auth":{"identity":{"methods":["application_credential"],"application_credential":{"id":"ab","secret":"s"}}}}"#
        );
        let binary = SecretBytes::take(&mut [0xff, 0xfe]).unwrap();
        let binary = Credential::Application { id: "ab".into(), secret: binary };
        assert!(matches!(binary.request(), Err(KeyError::Settings(_))));
    }

    #[test]
    fn a_login_of_only_escapes_does_not_outgrow_its_buffer() {
        let password = secret(&"\u{1}".repeat(8000));
        let request = Credential::Application { id: "ab".into(), secret: password }.request().unwrap();
        assert!(request.len() > 6 * 8000 && request.capacity() == 6 * 8000 + 4096);
    }
}
