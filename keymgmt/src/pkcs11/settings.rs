//! What a PKCS#11 provider is set to, and which of the token's keys a spec names.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::Deserialize;

use super::keyslot::{Keyslot, LABEL_MAX, OWN_LABEL, unhex};
use super::token::Access;
use super::{DEVICE, Inner, Pkcs11};
use crate::blocking::Blocking;
use crate::manager::KeyError;
use crate::provider::{Bounds, Settings, optional_secret_source};
use crate::registry::{Opened, Opening};
use crate::secret::SecretBytes;
use crate::source::{Purpose, SecretSource};

/// Where the module is when the settings do not say, the usual variable of programs that use tokens.
const MODULE_VARIABLE: &str = "PKCS11_MODULE_PATH";
/// What stands before an id in place of a label.
pub(super) const ID_PREFIX: &str = "id=";

/// A `[provider.NAME]` of type `pkcs11`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pkcs11Settings {
    /// Path of the module; default: the environment variable PKCS11_MODULE_PATH.
    module: Option<PathBuf>,
    /// Label of the token; needed where the module has several.
    token: Option<String>,
    /// Serial number of the token; needed where several have one label.
    serial: Option<String>,
    /// Where the PIN is; without one the token asks for it by itself.
    #[serde(default, deserialize_with = "optional_secret_source")]
    pin: Option<SecretSource>,
    /// How new keyslots are wrapped.
    #[serde(default)]
    mechanism: Mechanism,
}

/// How new keyslots are wrapped.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Mechanism {
    /// The better one of those that the token and the key allow.
    #[default]
    Auto,
    AesGcm,
    AesKeyWrap,
}

impl Settings for Pkcs11Settings {
    fn open(&self, key: Option<&str>, bounds: Bounds, opening: &mut Opening<'_, '_>) -> Opened {
        let Self { module, token, serial, pin, mechanism } = self;
        let module = match module {
            Some(module) => module.clone(),
            None => std::env::var_os(MODULE_VARIABLE).map(PathBuf::from).ok_or_else(|| {
                KeyError::Settings(format!("no PKCS#11 module: set module, or {MODULE_VARIABLE}"))
            })?,
        };
        let choice = key.map(Choice::parse).transpose()?;
        let module = checked(&module)?;
        let pin = pin.as_ref().map(|pin| read_pin(pin, opening)).transpose()?;
        let access = Access { module, token: token.clone(), serial: serial.clone(), pin };
        let inner = Inner { access, choice, mechanism: *mechanism, next: Mutex::new(None) };
        let manager = Pkcs11(Blocking::new(inner, DEVICE, bounds.timeout));
        if opening.purpose == Purpose::New {
            // While the key cannot be had there is nothing to warn of: its first use tells why.
            let warning = manager.0.wait(Inner::warning);
            opening.warnings.extend(warning.ok().flatten());
        }
        Ok(Box::new(manager))
    }
}

/// Loading a module runs its code as us, so nobody else may be able to write it.
fn checked(module: &Path) -> Result<PathBuf, KeyError> {
    let shown = module.display();
    let failed = |why: &str| KeyError::Settings(format!("PKCS#11 module {shown}: {why}"));
    if !module.is_absolute() {
        return Err(failed("not an absolute path"));
    }
    let module = module.canonicalize().map_err(|error| failed(&error.to_string()))?;
    let metadata = module.metadata().map_err(|error| failed(&error.to_string()))?;
    if !metadata.is_file() {
        return Err(failed("not a file"));
    }
    if metadata.permissions().mode() & 0o002 != 0 {
        return Err(failed("everybody can write it"));
    }
    Ok(module)
}

/// A PIN with a newline would be a wrong PIN, and tokens count those.
fn read_pin(source: &SecretSource, opening: &mut Opening<'_, '_>) -> Result<SecretBytes, KeyError> {
    let pin = opening.reader.read(source, "PIN", Purpose::Unlock)?.secret;
    if pin.expose().ends_with(b"\n") {
        return Err(KeyError::Settings(format!(
            "the PIN from {source} ends with a newline, so that it would be a wrong one; printf '%s' writes none"
        )));
    }
    Ok(pin)
}

/// The key that a spec names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Choice {
    Label(String),
    Id(Vec<u8>),
}

impl Choice {
    pub(super) fn parse(key: &str) -> Result<Self, KeyError> {
        if let Some(id) = key.strip_prefix(ID_PREFIX) {
            let id = unhex(id).ok_or_else(|| {
                KeyError::Settings("a key's id is given as id= and lower-case hexadecimal digits".into())
            })?;
            return Ok(Self::Id(id));
        }
        if key == OWN_LABEL {
            return Err(KeyError::Settings(format!(
                "{OWN_LABEL} is the label of the keys that sealbd makes, one for each keyslot; give no label \
                 for such a key"
            )));
        }
        if key.len() > LABEL_MAX {
            return Err(KeyError::Settings(format!("a key's label has at most {LABEL_MAX} bytes")));
        }
        Ok(Self::Label(key.to_owned()))
    }

    pub(super) fn is_of(&self, keyslot: &Keyslot) -> bool {
        match self {
            Self::Label(label) => *label == keyslot.label,
            Self::Id(id) => *id == keyslot.id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Provider;
    use crate::source::{NoPrompt, SecretReader};

    fn parse(table: &str) -> Result<Provider, String> {
        let table = format!("type = 'pkcs11'\n{table}").parse().unwrap();
        Provider::parse("hsm", table).map_err(|error| error.to_string())
    }

    fn open(table: &str, key: Option<&str>) -> KeyError {
        let mut prompter = NoPrompt;
        let mut reader = SecretReader::with_credentials(&mut prompter, None);
        let mut opening = Opening::new(&mut reader, Purpose::Unlock);
        parse(table).unwrap().open(key, &mut opening).err().unwrap()
    }

    #[test]
    fn settings_are_read_strictly() {
        assert!(parse("module = '/m.so'\ntoken = 't'\nserial = 's'\npin = 'file:/p'").is_ok());
        for mechanism in ["auto", "aes-gcm", "aes-key-wrap"] {
            assert!(parse(&format!("mechanism = '{mechanism}'")).is_ok());
        }
        assert!(parse("mechanism = 'aes-cbc'").err().unwrap().contains("variant"));
        assert!(parse("label = 'x'").err().unwrap().contains("label"));
        let error = parse("pin = 'hunter2'").err().unwrap();
        assert!(error.contains("never as itself") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_module_that_others_could_have_written_is_not_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("module.so");
        std::fs::write(&path, b"").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o646)).unwrap();
        let error = open(&format!("module = '{}'", path.display()), None).to_string();
        assert!(error.ends_with("everybody can write it"), "{error}");
        for module in ["module.so", "/nonexistent/module.so", "/"] {
            assert!(matches!(open(&format!("module = '{module}'"), None), KeyError::Settings(_)), "{module}");
        }
    }

    #[test]
    fn a_pin_with_a_newline_is_refused_before_it_counts_as_a_wrong_one() {
        let dir = tempfile::tempdir().unwrap();
        let (module, pin) = (dir.path().join("module.so"), dir.path().join("pin"));
        std::fs::write(&module, b"").unwrap();
        std::fs::write(&pin, b"1234\n").unwrap();
        std::fs::set_permissions(&pin, std::fs::Permissions::from_mode(0o600)).unwrap();
        let table = format!("module = '{}'\npin = 'file:{}'", module.display(), pin.display());
        let error = open(&table, None);
        assert!(matches!(&error, KeyError::Settings(why) if why.contains("newline")), "{error}");
    }

    #[test]
    fn a_key_is_named_by_label_or_id() {
        assert_eq!(Choice::parse("prod").unwrap(), Choice::Label("prod".into()));
        assert_eq!(Choice::parse("id=0aff").unwrap(), Choice::Id(vec![0x0a, 0xff]));
        for key in ["id=", "id=0AFF", "id=0", "sealbd", &"x".repeat(65)] {
            assert!(matches!(Choice::parse(key), Err(KeyError::Settings(_))), "{key}");
        }
    }
}
