//! The `[provider.NAME]` table of type `barbican`, and what it makes.

use serde::Deserialize;
use zeroize::Zeroizing;

use crate::address::Address;
use crate::http::Http;
use crate::manager::KeyError;
use crate::provider::{Bounds, Settings, TlsSettings, secret_source};
use crate::registry::{Opened, Opening};
use crate::secret::SecretBytes;
use crate::source::{Purpose, SecretSource};

use super::catalog::Interface;
use super::clouds::{Cloud, Places};
use super::keystone::{Login, Session};
use super::login::{Credential, Domain, Named, is_id};
use super::manager::Barbican;
use super::secrets::{SecretId, Secrets};

/// One Barbican.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BarbicanSettings {
    auth: Auth,
    region: Option<String>,
    interface: Option<Interface>,
    endpoint: Option<Address>,
    #[serde(default)]
    tls: TlsSettings,
}

/// How to log in to Keystone.
#[derive(Deserialize)]
#[serde(tag = "method", rename_all = "kebab-case", deny_unknown_fields)]
enum Auth {
    Password {
        url: Address,
        username: String,
        #[serde(default = "default_domain")]
        user_domain: String,
        project: String,
        #[serde(default = "default_domain")]
        project_domain: String,
        #[serde(deserialize_with = "secret_source")]
        password: SecretSource,
    },
    ApplicationCredential {
        url: Address,
        id: String,
        #[serde(deserialize_with = "secret_source")]
        secret: SecretSource,
    },
    Cloud {
        cloud: Option<String>,
    },
}

fn default_domain() -> String {
    "Default".to_owned()
}

impl Settings for BarbicanSettings {
    fn open(&self, key: Option<&str>, bounds: Bounds, opening: &mut Opening<'_, '_>) -> Opened {
        let named = key.map(|key| {
            SecretId::parse(key).ok_or_else(|| {
                KeyError::Settings(
                    "a key of Barbican is named by the uuid of its secret, in lower case, not by a url"
                        .into(),
                )
            })
        });
        let named = named.transpose()?;
        let (login, tls) = self.login(opening)?;
        let http = Http::new(&tls, bounds.timeout)?;
        let session = Session::new(http, login, opening.request_id.as_str());
        Ok(Box::new(Barbican::new(Secrets::new(session), named)))
    }
}

impl BarbicanSettings {
    fn login(&self, opening: &mut Opening<'_, '_>) -> Result<(Login, TlsSettings), KeyError> {
        let (url, credential) = match &self.auth {
            Auth::Cloud { cloud } => {
                return self.cloud_login(Places::of_environment().read(cloud.as_deref())?);
            }
            Auth::Password { url, username, user_domain, project, project_domain, password } => {
                let name = |name: &String, domain: &String| Named::Name {
                    name: name.clone(),
                    domain: Domain::Name(domain.clone()),
                };
                let (user, project) = (name(username, user_domain), name(project, project_domain));
                let password = read(password, "OpenStack password", opening)?;
                (url, Credential::Password { user, project, password })
            }
            Auth::ApplicationCredential { url, id, secret } => {
                let id = application_id(id.clone())?;
                let secret = read(secret, "application credential's secret", opening)?;
                (url, Credential::Application { id, secret })
            }
        };
        let login = Login {
            keystone: url.clone().versioned("v3"),
            credential,
            region: self.region.clone(),
            interface: self.interface.unwrap_or_default(),
            endpoint: self.endpoint.clone(),
        };
        Ok((login, self.tls.clone()))
    }

    /// What `clouds.yaml` says, and over it what the table says.
    fn cloud_login(&self, mut cloud: Cloud) -> Result<(Login, TlsSettings), KeyError> {
        if cloud
            .plain("verify")
            .is_some_and(|verify| !["true", "yes", "on"].contains(&&*verify.to_lowercase()))
        {
            return Err(cloud.wrong("verify: certificates are always verified; cacert names a signer"));
        }
        let keystone = address(&cloud.required("auth.auth_url")?, "auth.auth_url", &cloud)?.versioned("v3");
        let credential = cloud_credential(&mut cloud)?;
        let interface = match cloud.plain("interface").or_else(|| cloud.plain("endpoint_type")) {
            None => None,
            Some(text) => Some(cloud_interface(&text).ok_or_else(|| cloud.wrong("interface is not known"))?),
        };
        let endpoint = match cloud.plain("key_manager_endpoint_override") {
            None => None,
            Some(text) => Some(address(&text, "key_manager_endpoint_override", &cloud)?),
        };
        let tls = TlsSettings {
            ca: self.tls.ca.clone().or(cloud.plain("cacert").map(Into::into)),
            cert: self.tls.cert.clone().or(cloud.plain("cert").map(Into::into)),
            key: self.tls.key.clone().or(cloud.plain("key").map(Into::into)),
        };
        let login = Login {
            keystone,
            credential,
            region: self.region.clone().or(cloud.plain("region_name")),
            interface: self.interface.or(interface).unwrap_or_default(),
            endpoint: self.endpoint.clone().or(endpoint),
        };
        Ok((login, tls))
    }
}

fn cloud_credential(cloud: &mut Cloud) -> Result<Credential, KeyError> {
    let id = cloud.plain("auth.application_credential_id");
    let application = match cloud.plain("auth_type").as_deref() {
        None => id.is_some(),
        Some("password" | "v3password") => false,
        Some("v3applicationcredential") => true,
        Some(_) => return Err(cloud.wrong("auth_type is neither password nor v3applicationcredential")),
    };
    let secret = |cloud: &mut Cloud, setting: &str| {
        let mut value: Zeroizing<String> =
            cloud.take(setting).ok_or_else(|| cloud.wrong(&format!("{setting} is missing")))?;
        let mut bytes = Zeroizing::new(std::mem::take(&mut *value).into_bytes());
        SecretBytes::take(&mut bytes)
    };
    if application {
        let id = id.ok_or_else(|| cloud.wrong("auth.application_credential_id is missing"))?;
        let secret = secret(cloud, "auth.application_credential_secret")?;
        return Ok(Credential::Application { id: application_id(id)?, secret });
    }
    let user = cloud_named(cloud, "auth.user_id", "auth.username", "auth.user_domain")?;
    let project = cloud_named(cloud, "auth.project_id", "auth.project_name", "auth.project_domain")?;
    Ok(Credential::Password { user, project, password: secret(cloud, "auth.password")? })
}

fn cloud_named(cloud: &mut Cloud, id: &str, name: &str, domain: &str) -> Result<Named, KeyError> {
    if let Some(id) = cloud.plain(id) {
        return Ok(Named::Id { id });
    }
    let name = cloud.required(name)?;
    let domain = match (cloud.plain(&format!("{domain}_id")), cloud.plain(&format!("{domain}_name"))) {
        (Some(id), _) => Domain::Id(id),
        (None, Some(name)) => Domain::Name(name),
        (None, None) => return Err(cloud.wrong(&format!("{domain}_name is missing"))),
    };
    Ok(Named::Name { name, domain })
}

fn cloud_interface(text: &str) -> Option<Interface> {
    match text.strip_suffix("URL").unwrap_or(text) {
        "public" => Some(Interface::Public),
        "internal" => Some(Interface::Internal),
        "admin" => Some(Interface::Admin),
        _ => None,
    }
}

fn address(text: &str, setting: &str, cloud: &Cloud) -> Result<Address, KeyError> {
    Address::parse(text).map_err(|why| cloud.wrong(&format!("{setting}: {why}")))
}

fn application_id(id: String) -> Result<String, KeyError> {
    let wrong = "an application credential's id is at most 64 letters and digits";
    if is_id(&id) { Ok(id) } else { Err(KeyError::Settings(wrong.into())) }
}

fn read(source: &SecretSource, what: &str, opening: &mut Opening<'_, '_>) -> Result<SecretBytes, KeyError> {
    let input = opening.reader.read(source, what, Purpose::Unlock)?;
    opening.warnings.extend(input.warning);
    Ok(input.secret)
}
