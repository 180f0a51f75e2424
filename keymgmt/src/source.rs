//! Where a secret comes from: `prompt | file:PATH | fd:N | cred:NAME`, and reading it.
//!
//! A secret itself is never an argument. Whatever does not follow the grammar is therefore never
//! echoed: it may be a secret that somebody typed in the wrong place. Bytes are taken exactly as they
//! are; only a prompt loses one trailing newline. This file opens files and descriptors; the terminal
//! is the caller's, by [`Prompter`].

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use crate::manager::KeyError;
use crate::private_file;
use crate::secret::SecretBytes;

/// Longest name of a credential in bytes: the longest file name Linux has.
pub const CREDENTIAL_NAME_MAX: usize = 255;

/// Text from the command line or a configuration that does not follow a grammar of this crate.
/// Never holds the text.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GrammarError {
    /// Not a secret source.
    #[error("a secret is given as prompt, file:PATH, fd:N or cred:NAME, never as itself")]
    NotASource,
    /// Nothing follows the colon.
    #[error("{0} needs a path")]
    NoPath(&'static str),
    /// What follows `fd:` is not a number of 0 to 2147483647.
    #[error("fd: needs the number of an open file descriptor")]
    NotADescriptor,
    /// What follows `cred:` is not a plain file name.
    #[error("a credential is named as in systemd.exec(5), without slashes")]
    NotACredential,
    /// Not the name of a key in a manager.
    #[error("a key in a key manager is named by printable characters, at most 256")]
    NotAKey,
    /// Not a provider of the configuration.
    #[error("no provider of that name in the configuration; known are: {known}")]
    UnknownProvider {
        /// The names that are known, separated by commas.
        known: String,
    },
    /// Not a key manager that is known.
    #[error("no key manager of that name; known are {known}")]
    UnknownManager {
        /// The forms that are known, separated by commas.
        known: String,
    },
}

/// Where a secret comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SecretSource {
    /// A person at the terminal.
    Prompt,
    /// A file that only its owner can read.
    File(PathBuf),
    /// An open file descriptor, read to its end; it can be used once.
    Fd(u32),
    /// A file of that name in `$CREDENTIALS_DIRECTORY` (systemd.exec(5)).
    Credential(String),
}

impl FromStr for SecretSource {
    type Err = GrammarError;

    fn from_str(text: &str) -> Result<Self, GrammarError> {
        if text == "prompt" {
            return Ok(Self::Prompt);
        }
        let (scheme, rest) = text.split_once(':').ok_or(GrammarError::NotASource)?;
        match scheme {
            "file" if rest.is_empty() => Err(GrammarError::NoPath("file:")),
            "file" => Ok(Self::File(PathBuf::from(rest))),
            "fd" => descriptor(rest).map(Self::Fd).ok_or(GrammarError::NotADescriptor),
            "cred" if is_credential_name(rest) => Ok(Self::Credential(rest.to_owned())),
            "cred" => Err(GrammarError::NotACredential),
            _ => Err(GrammarError::NotASource),
        }
    }
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prompt => write!(f, "prompt"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Fd(number) => write!(f, "fd:{number}"),
            Self::Credential(name) => write!(f, "cred:{name}"),
        }
    }
}

/// What a secret is wanted for; a new one is asked for twice by a good prompt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// To open a keyslot that exists.
    Unlock,
    /// To make a new keyslot.
    New,
}

/// Asks a person for a secret, without echo. The caller has the terminal.
pub trait Prompter {
    /// Asks for `what`, e.g. `passphrase`.
    ///
    /// # Errors
    /// [`KeyError::Secret`] when there is nobody to ask.
    fn prompt(&mut self, what: &str, purpose: Purpose) -> Result<SecretBytes, KeyError>;
}

/// For processes without a terminal: refuses every prompt.
pub struct NoPrompt;

impl Prompter for NoPrompt {
    fn prompt(&mut self, what: &str, _purpose: Purpose) -> Result<SecretBytes, KeyError> {
        Err(KeyError::Secret(format!(
            "there is no terminal to ask for the {what}; it can be given as file:PATH, fd:N or cred:NAME"
        )))
    }
}

/// A secret that was read.
pub struct SecretInput {
    /// The secret.
    pub secret: SecretBytes,
    /// Something the user should know; never part of the secret.
    pub warning: Option<String>,
}

/// Reads secrets from their sources, each descriptor once.
pub struct SecretReader<'a> {
    prompter: &'a mut dyn Prompter,
    credentials: Option<PathBuf>,
    used_fds: Vec<u32>,
}

impl<'a> SecretReader<'a> {
    /// A reader that takes credentials from `$CREDENTIALS_DIRECTORY`.
    #[must_use]
    pub fn new(prompter: &'a mut dyn Prompter) -> Self {
        Self::with_credentials(prompter, std::env::var_os("CREDENTIALS_DIRECTORY"))
    }

    /// A reader that takes credentials from a directory named by the caller.
    #[must_use]
    pub fn with_credentials(prompter: &'a mut dyn Prompter, directory: Option<OsString>) -> Self {
        Self { prompter, credentials: directory.map(PathBuf::from), used_fds: Vec::new() }
    }

    /// Reads one secret; `what` names it to the person asked, e.g. `passphrase`. Blocks until it is there.
    ///
    /// # Errors
    /// [`KeyError::Secret`], with the cause and never a byte of the secret: nothing to read, more than
    /// [`crate::secret::SECRET_BYTES_MAX`] bytes, a file that others can read, a descriptor used before.
    pub fn read(
        &mut self,
        source: &SecretSource,
        what: &str,
        purpose: Purpose,
    ) -> Result<SecretInput, KeyError> {
        let name = source.to_string();
        let secret = match source {
            SecretSource::Prompt => {
                let mut secret = self.prompter.prompt(what, purpose)?;
                secret.strip_newline();
                secret
            }
            SecretSource::File(path) => {
                SecretBytes::read(&mut private_file::open("secret file", path)?.0, &name)?
            }
            SecretSource::Fd(number) => SecretBytes::read(&mut self.take_fd(*number)?, &name)?,
            SecretSource::Credential(credential) => {
                SecretBytes::read(&mut self.open_credential(credential)?, &name)?
            }
        };
        if secret.expose().is_empty() {
            return Err(KeyError::Secret(format!("the {what} from {name} is empty")));
        }
        let newline = *source != SecretSource::Prompt && secret.expose().ends_with(b"\n");
        let warning = newline.then(|| {
            format!(
                "the {what} from {name} ends with a newline, which counts as part of it; \
                 printf '%s' writes none"
            )
        });
        Ok(SecretInput { secret, warning })
    }

    fn take_fd(&mut self, number: u32) -> Result<File, KeyError> {
        if self.used_fds.contains(&number) {
            return Err(KeyError::Secret(format!("fd:{number} was read already; each can be used once")));
        }
        self.used_fds.push(number);
        duplicate(number).map_err(|error| KeyError::Secret(format!("cannot open fd:{number}: {error}")))
    }

    /// The mode is not checked: systemd grants the service's user its right by an access control list,
    /// which shows as a right of the group, and the directory is private to the service.
    fn open_credential(&self, name: &str) -> Result<File, KeyError> {
        let directory = self.credentials.as_deref().ok_or_else(|| {
            KeyError::Secret(format!(
                "cred:{name} needs $CREDENTIALS_DIRECTORY, which the service manager sets"
            ))
        })?;
        open_regular(&directory.join(name))
            .map_err(|error| KeyError::Secret(format!("cannot open cred:{name}: {error}")))
    }
}

fn open_regular(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
}

/// A second descriptor of the same open file, made through the kernel's view of our own process:
/// there is no other way from a number to a descriptor without `unsafe`.
fn duplicate(number: u32) -> io::Result<File> {
    let number = i32::try_from(number).map_err(io::Error::other)?;
    let own = pidfd_open(getpid(), PidfdFlags::empty());
    let fd = own.and_then(|own| pidfd_getfd(own, number, PidfdGetfdFlags::empty()));
    match fd {
        Ok(fd) => Ok(File::from(fd)),
        Err(error) if error == rustix::io::Errno::BADF => Err(error.into()),
        // Container filters refuse pidfd_getfd; this way serves pipes and files, though not sockets.
        Err(_) => reopen(number),
    }
}

fn reopen(number: i32) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{number}"))
}

fn descriptor(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.then(|| text.parse::<u32>().ok()).flatten()?;
    i32::try_from(number).is_ok().then_some(number)
}

pub(crate) fn is_credential_name(name: &str) -> bool {
    let plain = !name.is_empty() && name.len() <= CREDENTIAL_NAME_MAX && name != "." && name != "..";
    plain && !name.contains(['/', '\0'])
}

#[cfg(test)]
mod tests;
