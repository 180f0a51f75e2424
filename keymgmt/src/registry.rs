//! Which key managers there are, by name and by keyslot type.
//!
//! A new manager that keeps a user's own secret is one file and one row in `BUILT_IN`, one that has
//! settings is a row in [`crate::provider::KINDS`]; a program with a manager of its own adds its row
//! with [`Registry::register`].

use crate::cache::Cached;
use crate::keyfile::{self, Keyfile};
use crate::manager::{KEK_URI_MAX, KeyDescription, KeyError, KeyManager, SlotType, WrappedKey};
use crate::passphrase::{self, Argon2Cost, Passphrase};
use crate::provider::{KINDS, Provider};
use crate::recovery::{self, Recovery};
use crate::request::RequestId;
use crate::retry::Retrying;
use crate::source::{GrammarError, Purpose, SecretReader, SecretSource};
use crate::spec::{Argument, ArgumentKind, Spec};

/// A manager ready for use, or why it is not.
pub type Opened = Result<Box<dyn KeyManager>, KeyError>;

/// One row: a kind of key manager.
#[derive(Clone)]
pub struct ManagerKind {
    /// The word before the colon of a spec.
    pub name: &'static str,
    /// What stands after it.
    pub argument: ArgumentKind,
    /// The keyslots it makes.
    pub slot_type: SlotType,
    /// Makes a manager of this kind ready for use.
    pub open: fn(&Argument, &mut Opening<'_, '_>) -> Opened,
    /// Tells what such a keyslot is made of, without any secret.
    pub describe: fn(&WrappedKey) -> Result<KeyDescription, KeyError>,
}

/// The managers that come with sealbd, in the order in which they are told to people.
const BUILT_IN: [ManagerKind; 4] = [
    ManagerKind {
        name: "passphrase",
        argument: ArgumentKind::Secret,
        slot_type: SlotType::Passphrase,
        open: open_passphrase,
        describe: passphrase::describe,
    },
    ManagerKind {
        name: "keyfile",
        argument: ArgumentKind::Path,
        slot_type: SlotType::Keyfile,
        open: open_keyfile,
        describe: keyfile::describe,
    },
    ManagerKind {
        name: "credential",
        argument: ArgumentKind::Credential,
        slot_type: SlotType::Keyfile,
        open: open_credential,
        describe: keyfile::describe,
    },
    ManagerKind {
        name: "recovery",
        argument: ArgumentKind::Secret,
        slot_type: SlotType::Recovery,
        open: open_recovery,
        describe: recovery::describe,
    },
];

/// What a manager may use while it is made ready.
pub struct Opening<'o, 'p> {
    /// Reads secrets.
    pub reader: &'o mut SecretReader<'p>,
    /// What the secret is wanted for.
    pub purpose: Purpose,
    /// What new passphrase keyslots cost.
    pub argon2_cost: Argon2Cost,
    /// What passphrase keyslots may demand.
    pub argon2_ceiling: Argon2Cost,
    /// Sent to services that log one, and to be logged by the caller.
    pub request_id: RequestId,
    /// What the user should know, one sentence each; never part of a secret.
    pub warnings: Vec<String>,
}

impl<'o, 'p> Opening<'o, 'p> {
    /// An opening with the default costs.
    #[must_use]
    pub fn new(reader: &'o mut SecretReader<'p>, purpose: Purpose) -> Self {
        Self {
            reader,
            purpose,
            argon2_cost: Argon2Cost::DEFAULT,
            argon2_ceiling: Argon2Cost::CEILING,
            request_id: RequestId::generate(),
            warnings: Vec::new(),
        }
    }
}

/// The key managers a program knows.
pub struct Registry {
    kinds: Vec<ManagerKind>,
    providers: Vec<Provider>,
}

/// The word before the colon of a spec that names a provider: `kms:PROVIDER[/KEY]`.
const KMS: &str = "kms";

impl Registry {
    /// The managers that come with sealbd.
    #[must_use]
    pub fn built_in() -> Self {
        Self { kinds: BUILT_IN.to_vec(), providers: Vec::new() }
    }

    /// The same with the providers of a configuration.
    ///
    /// # Panics
    /// When two have one name; a configuration cannot say so.
    #[must_use]
    pub fn with_providers(mut self, providers: Vec<Provider>) -> Self {
        for (index, provider) in providers.iter().enumerate() {
            let twice = providers[..index].iter().any(|other| other.name == provider.name);
            assert!(!twice, "two providers named {}", provider.name);
        }
        self.providers = providers;
        self
    }

    /// The providers of the configuration.
    #[must_use]
    pub fn providers(&self) -> &[Provider] {
        &self.providers
    }

    /// Adds a kind of manager.
    ///
    /// # Panics
    /// When the name is taken.
    pub fn register(&mut self, kind: ManagerKind) {
        assert!(
            kind.name != KMS && self.kinds.iter().all(|known| known.name != kind.name),
            "two key managers named {}",
            kind.name
        );
        self.kinds.push(kind);
    }

    /// The forms of SPEC, e.g. `passphrase:SECRET, keyfile:PATH`.
    #[must_use]
    pub fn forms(&self) -> String {
        let forms: Vec<_> =
            self.kinds.iter().map(|kind| format!("{}:{}", kind.name, kind.argument.placeholder())).collect();
        format!("{}, {KMS}:PROVIDER[/KEY]", forms.join(", "))
    }

    /// Reads a spec. A manager that takes a SECRET may stand alone and then prompts.
    ///
    /// # Errors
    /// [`GrammarError`], which never holds the text: it may be a secret in the wrong place.
    pub fn parse(&self, text: &str) -> Result<Spec, GrammarError> {
        let (name, argument) = match text.split_once(':') {
            Some((name, argument)) => (name, Some(argument)),
            None => (text, None),
        };
        if name == KMS {
            return self.parse_kms(argument);
        }
        let unknown = || GrammarError::UnknownManager { known: self.forms() };
        let kind = self.kinds.iter().find(|kind| kind.name == name).ok_or_else(unknown)?;
        Ok(Spec { manager: kind.name, argument: kind.argument.parse(kind.name, argument)? })
    }

    fn parse_kms(&self, argument: Option<&str>) -> Result<Spec, GrammarError> {
        let known =
            || self.providers.iter().map(|provider| provider.name.as_str()).collect::<Vec<_>>().join(", ");
        let argument = argument.unwrap_or_default();
        let (name, key) = match argument.split_once('/') {
            Some((name, key)) => (name, Some(key)),
            None => (argument, None),
        };
        let plain = |key: &str| {
            !key.is_empty() && key.len() <= KEK_URI_MAX && key.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if !key.is_none_or(plain) {
            return Err(GrammarError::NotAKey);
        }
        let provider = self.providers.iter().find(|provider| provider.name == name);
        let provider = provider.ok_or_else(|| GrammarError::UnknownProvider { known: known() })?;
        let (provider, key) = (provider.name.clone(), key.map(str::to_owned));
        Ok(Spec { manager: KMS, argument: Argument::Key { provider, key } })
    }

    /// Makes the manager of a spec ready for use; its secret is read now. Blocks while somebody is asked.
    ///
    /// # Errors
    /// Any [`KeyError`]; [`KeyError::Unsupported`] when the spec is of another registry.
    pub fn open(&self, spec: &Spec, opening: &mut Opening<'_, '_>) -> Opened {
        if let Argument::Key { provider, key } = &spec.argument {
            let provider = self.providers.iter().find(|known| known.name == *provider).ok_or_else(|| {
                KeyError::Unsupported(format!("no provider {provider} in the configuration"))
            })?;
            let manager = provider.open(key.as_deref(), opening)?;
            let manager = Box::new(Retrying::new(manager, provider.bounds.retry_for));
            return match &provider.cache {
                None => Ok(manager),
                Some(cache) => Ok(Box::new(Cached::new(manager, cache.open(&provider.name, opening)?))),
            };
        }
        let kind = self.kinds.iter().find(|kind| kind.name == spec.manager).ok_or_else(|| {
            KeyError::Unsupported(format!("no key manager {}; known are {}", spec.manager, self.forms()))
        })?;
        (kind.open)(&spec.argument, opening)
    }

    /// Which keyslots the manager of a spec makes; none when the spec is of another registry.
    #[must_use]
    pub fn slot_type(&self, spec: &Spec) -> Option<SlotType> {
        if let Argument::Key { provider, .. } = &spec.argument {
            return self.providers.iter().find(|known| known.name == *provider).map(Provider::slot_type);
        }
        self.kinds.iter().find(|kind| kind.name == spec.manager).map(|kind| kind.slot_type)
    }

    /// Tells what a keyslot is made of, without any secret; needs no secret either.
    ///
    /// # Errors
    /// [`KeyError::Malformed`]; [`KeyError::Unsupported`] when no manager here makes such keyslots.
    pub fn describe(&self, key: &WrappedKey) -> Result<KeyDescription, KeyError> {
        let slot_type = key.slot_type;
        let own = self.kinds.iter().find(|kind| kind.slot_type == slot_type).map(|kind| kind.describe);
        let provided = || KINDS.iter().find(|kind| kind.slot_type == slot_type).map(|kind| kind.describe);
        let describe = own.or_else(provided).ok_or_else(|| {
            let (name, number) = (slot_type.name(), slot_type.number());
            KeyError::Unsupported(format!(
                "no key manager in this build makes {name} keyslots (type {number})"
            ))
        })?;
        describe(key)
    }
}

fn open_passphrase(argument: &Argument, opening: &mut Opening<'_, '_>) -> Opened {
    let input = opening.reader.read(secret_source(argument)?, "passphrase", opening.purpose)?;
    opening.warnings.extend(input.warning);
    let manager = Passphrase::new(input.secret)?;
    Ok(Box::new(manager.with_cost(opening.argon2_cost).with_ceiling(opening.argon2_ceiling)))
}

fn open_keyfile(argument: &Argument, _: &mut Opening<'_, '_>) -> Opened {
    let Argument::Path(path) = argument else {
        return Err(KeyError::Unsupported("keyfile needs a path".to_owned()));
    };
    Ok(Box::new(Keyfile::open(path)?))
}

fn open_credential(argument: &Argument, opening: &mut Opening<'_, '_>) -> Opened {
    let Argument::Credential(name) = argument else {
        return Err(KeyError::Unsupported("credential needs a name".to_owned()));
    };
    let source = SecretSource::Credential(name.clone());
    let input = opening.reader.read(&source, "credential", Purpose::Unlock)?;
    Ok(Box::new(Keyfile::from_bytes(&input.secret, &source.to_string())?))
}

fn open_recovery(argument: &Argument, opening: &mut Opening<'_, '_>) -> Opened {
    // A newline at the end is no part of the words, so a warning about one would be wrong. And words
    // are typed from paper whatever they are for, so nobody is asked for them twice.
    let input = opening.reader.read(secret_source(argument)?, "recovery words", Purpose::Unlock)?;
    Ok(Box::new(Recovery::parse(&input.secret)?))
}

fn secret_source(argument: &Argument) -> Result<&SecretSource, KeyError> {
    match argument {
        Argument::Secret(source) => Ok(source),
        Argument::Path(_) | Argument::Credential(_) | Argument::Key { .. } => {
            Err(KeyError::Unsupported("this key manager needs a secret source".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::NoPrompt;

    #[test]
    fn specs_parse_to_what_they_name() {
        let registry = Registry::built_in();
        let secret = |manager, source| Spec { manager, argument: Argument::Secret(source) };
        for (text, spec) in [
            ("passphrase", secret("passphrase", SecretSource::Prompt)),
            ("passphrase:prompt", secret("passphrase", SecretSource::Prompt)),
            ("passphrase:file:/a:b", secret("passphrase", SecretSource::File("/a:b".into()))),
            ("recovery:fd:3", secret("recovery", SecretSource::Fd(3))),
            ("keyfile:/k", Spec { manager: "keyfile", argument: Argument::Path("/k".into()) }),
        ] {
            assert_eq!(registry.parse(text).unwrap(), spec, "{text}");
            assert_eq!(registry.parse(&spec.to_string()).unwrap(), spec, "{text}");
        }
    }

    #[test]
    fn a_secret_in_place_of_a_spec_is_refused_and_never_echoed() {
        let registry = Registry::built_in();
        let known = "passphrase:SECRET, keyfile:PATH, credential:NAME, recovery:SECRET, kms:PROVIDER[/KEY]";
        for text in ["hunter2", "hunter2:x", "Passphrase:prompt", ""] {
            let error = registry.parse(text).unwrap_err();
            assert_eq!(error, GrammarError::UnknownManager { known: known.to_owned() });
            assert!(!error.to_string().contains("hunter2"));
        }
        for text in ["passphrase:hunter2", "passphrase:hunter2:x", "recovery:abandon abandon", "passphrase:"]
        {
            assert_eq!(registry.parse(text).unwrap_err(), GrammarError::NotASource, "{text}");
        }
        for text in ["keyfile", "keyfile:"] {
            assert_eq!(registry.parse(text).unwrap_err(), GrammarError::NoPath("keyfile"));
        }
    }

    #[test]
    fn a_spec_opens_to_a_manager_of_its_type() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        Keyfile::create(&path).unwrap();
        let registry = Registry::built_in();
        let mut prompter = NoPrompt;
        let mut reader = SecretReader::with_credentials(&mut prompter, None);
        let mut opening = Opening::new(&mut reader, Purpose::Unlock);
        let spec = registry.parse(&format!("keyfile:{}", path.display())).unwrap();
        assert_eq!(registry.open(&spec, &mut opening).unwrap().slot_type(), SlotType::Keyfile);
        let spec = registry.parse("passphrase").unwrap();
        let error = registry.open(&spec, &mut opening).err().unwrap();
        assert!(error.to_string().starts_with("there is no terminal to ask for the passphrase"));
    }

    #[test]
    #[should_panic(expected = "two key managers named keyfile")]
    fn a_name_is_taken_once() {
        Registry::built_in().register(BUILT_IN[1].clone());
    }
}
