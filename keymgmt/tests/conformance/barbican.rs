//! OpenStack Barbican: the contract against the real service (`real`), and services that lie or
//! fail (`lies`, on the cloud of `fake`).

mod fake;
mod lies;
mod real;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use keymgmt::manager::{Health, KeyError, KeyManager, WrapContext, WrappedKey};
use keymgmt::provider::Provider;
use keymgmt::registry::Opening;
use keymgmt::secret::Dek;
use keymgmt::source::{NoPrompt, Purpose, SecretReader};
use tempfile::TempDir;

use crate::suite::{CONTEXT, canary_dek};

/// Passwords of tests that reach no real service.
pub(crate) const CANARY_PASSWORD: &str = "CANARY-PASSWORD";

/// Files of a test: secrets that only we can read.
pub(crate) struct Files(TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// `auth` of a user of the domain Default.
    pub(crate) fn password(&self, keystone: &str, user: &str, project: &str, password: &str) -> String {
        let path = self.write(&format!("password-{user}-{}", password.len()), password);
        format!(
            "auth = {{ method = 'password', url = '{keystone}', username = '{user}', project = '{project}', \
             password = 'file:{}' }}\n",
            path.display()
        )
    }
}

/// A manager of a provider's table; `key` as in `kms:PROVIDER/KEY`.
pub(crate) fn open(table: &str, key: Option<&str>) -> Result<Box<dyn KeyManager>, KeyError> {
    open_with_id(table, key).map(|(manager, _)| manager)
}

/// The same with the number of the request.
pub(crate) fn open_with_id(
    table: &str,
    key: Option<&str>,
) -> Result<(Box<dyn KeyManager>, String), KeyError> {
    let table = format!("type = 'barbican'\n{table}");
    let provider = Provider::parse("test", table.parse().unwrap()).unwrap_or_else(|error| panic!("{error}"));
    let mut prompter = NoPrompt;
    let mut reader = SecretReader::with_credentials(&mut prompter, None);
    let mut opening = Opening::new(&mut reader, Purpose::Unlock);
    let id = opening.request_id.to_string();
    provider.open(key, &mut opening).map(|manager| (manager, id))
}

pub(crate) async fn wrap(manager: &dyn KeyManager) -> Result<WrappedKey, KeyError> {
    manager.wrap(&canary_dek(), CONTEXT).await
}

/// Whether a keyslot opens to the key of every test here.
pub(crate) async fn opens(manager: &dyn KeyManager, key: &WrappedKey) -> bool {
    opens_in(manager, key, CONTEXT).await
}

pub(crate) async fn opens_in(manager: &dyn KeyManager, key: &WrappedKey, context: WrapContext) -> bool {
    let dek: Option<Dek> = manager.unwrap(key, context).await.unwrap_or_else(|error| panic!("{error}"));
    dek.is_some_and(|dek| dek.matches(&canary_dek()))
}

/// Why a keyslot does not open.
pub(crate) async fn refusal(manager: &dyn KeyManager, key: &WrappedKey) -> KeyError {
    match manager.unwrap(key, CONTEXT).await {
        Ok(None) => panic!("left to others"),
        Ok(Some(_)) => panic!("a key"),
        Err(error) => error,
    }
}

/// What was refused, as the service's no, in words that hold `text`.
pub(crate) fn assert_denied(error: &KeyError, text: &str) {
    assert!(matches!(error, KeyError::Denied(_)) && error.to_string().contains(text), "{error:?}");
}

pub(crate) async fn health(manager: &dyn KeyManager) -> Health {
    manager.probe().await.unwrap_or_else(|error| panic!("{error}"))
}
