//! The `exec` provider: a key manager that is a program of somebody else's, in any language.
//!
//! Each request is one process, asked over stdin and stdout (docs/PLUGIN.md). The program never sees a
//! volume's key: it wraps a fresh random KEK, and the DEK is wrapped here under that (`stored`), bound to the
//! volume and to everything in the keyslot. So a program that binds nothing cannot be made to serve one
//! volume's keyslot for another's. Of the environment only what is named is passed on; secrets go over stdin
//! alone.

mod executable;
mod process;
mod protocol;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use self::process::{ANSWER_BYTES_MAX, Ended, Failure};
use self::protocol::{Answer, Done, Question, Reply, Slot, Status, Verb, printable, secret_text};
use crate::manager::{
    BoxFuture, Health, KeyDescription, KeyError, KeyManager, SlotType, WrapContext, WrappedKey,
};
use crate::provider::{Bounds, KeptSecret, Settings};
use crate::registry::{Opened, Opening};
use crate::request::RequestId;
use crate::secret::{Dek, Secret32, SecretBytes};
use crate::stored;

/// Most words of a command, and most names of variables; far more than any command has.
const WORDS_MAX: usize = 64;
/// Longest of them; Linux's bound for a path.
const WORD_BYTES_MAX: usize = 4096;
/// A secret of fewer bytes is not searched for in what a program says: it would be found by accident.
const SEARCHED_MIN: usize = 8;

/// The settings of a plug-in.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExecSettings {
    /// The program's absolute path, and its arguments.
    #[serde(deserialize_with = "command")]
    command: Vec<String>,
    /// Names of the variables of sealbd's environment that it gets; by default none.
    #[serde(default, deserialize_with = "names")]
    environment: Vec<String>,
    /// A secret that it is given in every request.
    secret: Option<KeptSecret>,
}

fn command<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let words = Vec::<String>::deserialize(deserializer)?;
    if !words.first().is_some_and(|path| path.starts_with('/')) {
        return Err(D::Error::custom("command begins with the absolute path of a program"));
    }
    let fits = |word: &String| word.len() <= WORD_BYTES_MAX && !word.contains('\0');
    if words.len() > WORDS_MAX || !words.iter().all(fits) {
        return Err(D::Error::custom("command has at most 64 words of at most 4096 bytes"));
    }
    Ok(words)
}

fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let fits = |name: &String| (1..=WORD_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain);
    if names.len() > WORDS_MAX || !names.iter().all(fits) {
        return Err(D::Error::custom("environment has names of variables, not their values; at most 64"));
    }
    Ok(names)
}

impl Settings for ExecSettings {
    fn open(&self, key: Option<&str>, bounds: Bounds, opening: &mut Opening<'_, '_>) -> Opened {
        if !key.is_none_or(protocol::is_key_id) {
            return Err(KeyError::Settings(format!(
                "a plug-in's key has at most {} printable ASCII characters",
                protocol::KEY_ID_MAX
            )));
        }
        let (program, arguments) = self.command.split_first().expect("a command has its first word");
        executable::check(Path::new(program))?;
        let secret = match &self.secret {
            None => None,
            Some(KeptSecret(source)) => {
                let input = opening.reader.read(source, "plug-in's secret", opening.purpose)?;
                opening.warnings.extend(input.warning);
                Some(input.secret)
            }
        };
        let plugin = Exec {
            program: PathBuf::from(program),
            arguments: arguments.to_vec(),
            environment: self.environment.clone(),
            secret,
            key: key.map(str::to_owned),
            rotated: Mutex::new(None),
            timeout: bounds.timeout,
            request_id: opening.request_id.clone(),
        };
        Ok(Box::new(plugin))
    }
}

/// A plug-in with its settings.
struct Exec {
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<String>,
    secret: Option<SecretBytes>,
    /// Which of its keys is meant, where the user said so.
    key: Option<String>,
    /// The key that was rotated last: what is wrapped from then on is wrapped by it.
    rotated: Mutex<Option<String>>,
    timeout: Duration,
    request_id: RequestId,
}

impl Exec {
    fn question(&self, verb: Verb) -> Question<'_> {
        let timeout_ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
        let mut question = Question::new(verb, self.request_id.as_str(), timeout_ms);
        question.key = self.key.as_deref();
        question
    }

    /// Asks the program once.
    async fn ask<T: Reply>(&self, mut question: Question<'_>) -> Result<T, KeyError> {
        executable::check(&self.program)?;
        let own = self.secret.as_ref().map(|secret| secret_text(secret.expose()));
        question.secret = own.as_ref().map(|text| text.as_str());
        let plain = self.secret.as_ref().and_then(|secret| std::str::from_utf8(secret.expose()).ok());
        let plain = plain.filter(|text| text.len() >= SEARCHED_MIN);
        let secrets: Vec<&str> = [question.kek, question.secret, plain].into_iter().flatten().collect();
        let line = question.encode();
        let ended = process::run(self.command(), line, self.timeout).await;
        let Ended { status, answer, stderr } = ended.map_err(|failure| self.failure(failure, &secrets))?;
        let said = |what: String| with_stderr(&self.program, &what, &stderr, &secrets);
        let how = how_it_ended(status);
        match protocol::parse::<T>(&answer) {
            Ok(Answer::Ok(reply)) if status.success() => Ok(reply),
            Ok(Answer::Ok(_)) => Err(KeyError::Untrusted(said(format!("it answered, yet {how}")))),
            Ok(Answer::Refused(refusal)) => {
                let program = self.program.display();
                Err(refusal.into_error(|message| format!("{program}: {}", printable(message, &secrets))))
            }
            Err(why) => Err(KeyError::Untrusted(said(format!("{why}; {how}")))),
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).current_dir("/").env_clear();
        for name in &self.environment {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
    }

    fn failure(&self, failure: Failure, secrets: &[&str]) -> KeyError {
        let program = self.program.display();
        match failure {
            Failure::Start(error) => match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
                // Too little of something for a while; or the program is just being replaced.
                Some(
                    rustix::io::Errno::AGAIN
                    | rustix::io::Errno::NOMEM
                    | rustix::io::Errno::MFILE
                    | rustix::io::Errno::NFILE
                    | rustix::io::Errno::TXTBSY,
                ) => KeyError::Unreachable(format!("{program} cannot be started: {error}")),
                _ => KeyError::Settings(format!("{program} cannot be started: {error}")),
            },
            Failure::Timeout(stderr) => {
                let what = format!("it had not ended after {:?}", self.timeout);
                KeyError::Unreachable(with_stderr(&self.program, &what, &stderr, secrets))
            }
            Failure::Flood => {
                KeyError::Untrusted(format!("{program}: it answered more than {ANSWER_BYTES_MAX} bytes"))
            }
            Failure::Pipe(error) => KeyError::Unreachable(format!("{program}: {error}")),
            Failure::Stopped => KeyError::Unreachable(format!("{program}: the request was stopped")),
        }
    }

    fn rotated(&self) -> MutexGuard<'_, Option<String>> {
        self.rotated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the keyslot is of another key than the one that the user named.
    fn is_foreign(&self, slot: &Slot) -> bool {
        self.key.as_ref().is_some_and(|key| *key != slot.key_id)
    }

    async fn wrap_now(&self, dek: &Dek, context: WrapContext) -> Result<WrappedKey, KeyError> {
        let kek = Secret32::generate()?;
        let text = secret_text(kek.expose());
        let rotated = self.rotated().clone();
        let mut question = self.question(Verb::Wrap).about(context);
        question.kek = Some(&text);
        question.key = question.key.or(rotated.as_deref());
        let slot: Slot = self.ask(question).await?;
        if self.is_foreign(&slot) || rotated.is_some_and(|key| key != slot.key_id) {
            let program = self.program.display();
            return Err(KeyError::Untrusted(format!("{program}: it used another key than it was told to")));
        }
        stored::wrap(&kek, dek, context, SlotType::Exec, slot.uri(), &slot.details())
    }

    async fn unwrap_now(&self, key: &WrappedKey, context: WrapContext) -> Result<Option<Dek>, KeyError> {
        if key.slot_type != SlotType::Exec {
            return Ok(None);
        }
        let slot = Slot::of(key)?;
        if self.is_foreign(&slot) {
            return Ok(None);
        }
        let kek: Secret32 = self.ask(self.question(Verb::Unwrap).about(context).of_slot(&slot)).await?;
        stored::unwrap(&kek, key, context)
    }

    /// Rotates or destroys the key of a keyslot.
    async fn change(&self, verb: Verb, key: &WrappedKey) -> Result<(), KeyError> {
        let slot = Slot::of(key)?;
        if self.is_foreign(&slot) {
            return Err(KeyError::Denied(format!("the keyslot is of key {}", slot.key_id)));
        }
        let Done {} = self.ask(self.question(verb).of_slot(&slot)).await?;
        if verb == Verb::Rotate {
            *self.rotated() = Some(slot.key_id);
        }
        Ok(())
    }

    async fn status(&self) -> Result<Health, KeyError> {
        let Status { text, credential_expires } = self.ask(self.question(Verb::Status)).await?;
        let after = |seconds: u32| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into());
        Ok(Health { text: printable(&text, &[]), credential_expires: credential_expires.map(after) })
    }
}

fn with_stderr(program: &Path, what: &str, stderr: &[u8], secrets: &[&str]) -> String {
    let program = program.display();
    if stderr.is_empty() {
        return format!("{program}: {what}");
    }
    format!("{program}: {what}; it said: {}", printable(&String::from_utf8_lossy(stderr), secrets))
}

fn how_it_ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with status {code}"),
        (None, Some(signal)) => format!("it was ended by signal {signal}"),
        (None, None) => "it ended".into(),
    }
}

impl KeyManager for Exec {
    fn slot_type(&self) -> SlotType {
        SlotType::Exec
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

    fn rotate<'a>(&'a self, current: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(self.change(Verb::Rotate, current))
    }

    fn destroy<'a>(&'a self, key: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(self.change(Verb::Destroy, key))
    }

    fn probe(&self) -> BoxFuture<'_, Result<Health, KeyError>> {
        Box::pin(self.status())
    }
}

/// Tells what such a keyslot is made of.
///
/// # Errors
/// [`KeyError::Malformed`].
pub(crate) fn describe(key: &WrappedKey) -> Result<KeyDescription, KeyError> {
    let Slot { key_id, version, .. } = Slot::of(key)?;
    let version = Some(version).filter(|version| !version.is_empty());
    let counted = version.as_ref().map(|version| format!(" version {version}")).unwrap_or_default();
    Ok(KeyDescription { text: format!("plug-in key {key_id}{counted}"), key_id: Some(key_id), version })
}
