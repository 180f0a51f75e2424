//! What names a key manager on the command line: SPEC = `passphrase:SECRET | keyfile:PATH |
//! credential:NAME | recovery:SECRET | kms:PROVIDER[/KEY]`.
//!
//! A spec holds where a secret is, never a secret; text that does not parse is never echoed.

use std::fmt;
use std::path::PathBuf;

use crate::source::{GrammarError, SecretSource, is_credential_name};

/// What stands after the colon of a spec.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Argument {
    /// Where a secret comes from.
    Secret(SecretSource),
    /// A path of this host.
    Path(PathBuf),
    /// The name of a credential of the service manager (systemd.exec(5)) that holds 32 bytes.
    Credential(String),
    /// A provider of the configuration, and a key in it; holds nothing secret.
    Key {
        /// The provider's name.
        provider: String,
        /// The key as the manager names it; without one, whichever the keyslot names, and new ones where
        /// the manager makes them.
        key: Option<String>,
    },
}

/// Which kind of argument a manager takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArgumentKind {
    /// SECRET; may be left out for `prompt`.
    Secret,
    /// PATH; must be there.
    Path,
    /// NAME; must be there.
    Credential,
}

impl ArgumentKind {
    /// The word that stands for it in the grammar.
    #[must_use]
    pub fn placeholder(self) -> &'static str {
        match self {
            Self::Secret => "SECRET",
            Self::Path => "PATH",
            Self::Credential => "NAME",
        }
    }

    /// Reads an argument of this kind; none where the spec has no colon.
    ///
    /// # Errors
    /// [`GrammarError`].
    pub fn parse(self, manager: &'static str, text: Option<&str>) -> Result<Argument, GrammarError> {
        match (self, text) {
            (Self::Secret, None) => Ok(Argument::Secret(SecretSource::Prompt)),
            (Self::Secret, Some(text)) => text.parse().map(Argument::Secret),
            (Self::Path, None | Some("")) => Err(GrammarError::NoPath(manager)),
            (Self::Path, Some(text)) => Ok(Argument::Path(PathBuf::from(text))),
            (Self::Credential, text) => {
                let name =
                    text.filter(|name| is_credential_name(name)).ok_or(GrammarError::NotACredential)?;
                Ok(Argument::Credential(name.to_owned()))
            }
        }
    }
}

/// A key manager and where its secret is; made by [`crate::registry::Registry::parse`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spec {
    /// The manager's name.
    pub manager: &'static str,
    /// What stands after the colon.
    pub argument: Argument,
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.argument {
            Argument::Secret(source) => write!(f, "{}:{source}", self.manager),
            Argument::Path(path) => write!(f, "{}:{}", self.manager, path.display()),
            Argument::Credential(name) => write!(f, "{}:{name}", self.manager),
            Argument::Key { provider, key: None } => write!(f, "{}:{provider}", self.manager),
            Argument::Key { provider, key: Some(key) } => write!(f, "{}:{provider}/{key}", self.manager),
        }
    }
}
