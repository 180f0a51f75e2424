//! `sealbd kms`: the key managers of the configuration, and whether they answer.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use keymgmt::manager::{Health, KeyError, KeyManager};
use keymgmt::provider::Provider;
use keymgmt::registry::Opening;
use keymgmt::source::{Purpose, SecretReader};
use keymgmt::spec::Argument;
use serde::Serialize;

use super::arguments::{KmsCommand, KmsOptions};
use super::context::Context;
use super::key_age::{one_line, unix_seconds};
use super::list::Problem;
use super::outcome::{EXIT_KMS_DENIED, EXIT_KMS_UNREACHABLE, Failure};
use super::terminal::TerminalPrompt;

/// What a manager may take beyond its own time limit for one attempt: it may log in first, and ask twice.
const ATTEMPTS_MAX: u32 = 4;

/// How a key manager answered.
pub(super) struct Probed {
    result: Result<Health, KeyError>,
    latency: Duration,
}

impl Probed {
    pub(super) fn of(result: Result<Health, KeyError>, latency: Duration) -> Self {
        Self { result, latency }
    }

    pub(super) fn is_up(&self) -> bool {
        self.result.is_ok()
    }

    /// Seconds since 1970.
    pub(super) fn credential_expires(&self) -> Option<u64> {
        self.result.as_ref().ok()?.credential_expires.map(unix_seconds)
    }
}

#[derive(Serialize)]
struct ProviderReport {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    timeout_ms: u128,
    retry_for_ms: u128,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    answer: Option<Answer>,
    /// Configured volumes whose slots name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    volumes: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Answer {
    up: bool,
    latency_ms: u128,
    text: Option<String>,
    /// Seconds since 1970; none where it does not end.
    credential_expires: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
}

/// Runs the command: exit 7 when a key manager refuses, else 6 when one cannot be reached.
pub(super) async fn run(command: &KmsCommand, context: &Context) -> Result<ExitCode, Failure> {
    #[derive(Serialize)]
    struct Report {
        providers: Vec<ProviderReport>,
    }
    let (options, probing, volumes) = match command {
        KmsCommand::List(options) => (options, false, false),
        KmsCommand::Test(options) => (options, true, false),
        KmsCommand::Status(options) => (options, true, true),
    };
    let wanted = wanted(options, context)?;
    if probing && wanted.is_empty() {
        return Err(Failure::usage(
            "no key manager is configured",
            "write a [provider.NAME] into sealbd.toml, then sealbd config check",
        ));
    }
    let mut failures = Vec::new();
    let mut report = Report { providers: Vec::new() };
    let probed = match probing {
        true => {
            probe_all(context, options.provider.as_deref()).await?.into_iter().map(|(_, p)| Some(p)).collect()
        }
        false => wanted.iter().map(|_| None).collect::<Vec<_>>(),
    };
    for (provider, probed) in wanted.into_iter().zip(probed) {
        let answer = probed.map(|probed| {
            let (answer, failure) = answer(probed);
            failures.extend(failure.map(|failure| failure.of(&provider.name)));
            answer
        });
        report.providers.push(ProviderReport {
            name: provider.name.clone(),
            kind: provider.kind(),
            timeout_ms: provider.bounds.timeout.as_millis(),
            retry_for_ms: provider.bounds.retry_for.as_millis(),
            answer,
            volumes: volumes.then(|| dependants(&provider.name, context)),
        });
    }
    context.output.result(&report, || prose(&report.providers));
    match worst(failures) {
        None => Ok(ExitCode::SUCCESS),
        Some(failure) => {
            context.output.tell(&failure);
            Ok(ExitCode::from(failure.exit))
        }
    }
}

/// Asks the providers, all at the same time, each once: what is told is how they are now.
///
/// # Errors
/// When no provider has the name.
pub(super) async fn probe_all<'c>(
    context: &'c Context,
    name: Option<&str>,
) -> Result<Vec<(&'c Provider, Probed)>, Failure> {
    let options = KmsOptions { provider: name.map(str::to_owned) };
    let probes = wanted(&options, context)?.into_iter().map(|provider| {
        let begun = Instant::now();
        let opened = open(provider, context);
        async move {
            let result = match opened {
                Ok(manager) => probe(&*manager, provider.bounds.timeout * ATTEMPTS_MAX).await,
                Err(error) => Err(error),
            };
            (provider, Probed::of(result, begun.elapsed()))
        }
    });
    Ok(futures_util::future::join_all(probes).await)
}

async fn probe(manager: &dyn KeyManager, longest: Duration) -> Result<Health, KeyError> {
    let silent = |_| KeyError::Unreachable(format!("no answer in {:.1} s", longest.as_secs_f32()));
    tokio::time::timeout(longest, manager.probe()).await.map_err(silent)?
}

/// Without the retries that wraps and unwraps have.
fn open(provider: &Provider, context: &Context) -> keymgmt::registry::Opened {
    let mut prompt = TerminalPrompt;
    let mut reader = SecretReader::new(&mut prompt);
    let mut opening = Opening::new(&mut reader, Purpose::Unlock);
    opening.request_id = context.request_id.clone();
    let opened = provider.open(None, &mut opening);
    opening.warnings.iter().for_each(|warning| context.output.note(warning));
    opened.map(|manager| context.notes.of(manager))
}

fn wanted<'c>(options: &KmsOptions, context: &'c Context) -> Result<Vec<&'c Provider>, Failure> {
    let all = context.registry.providers();
    let Some(name) = &options.provider else { return Ok(all.iter().collect()) };
    match all.iter().find(|provider| provider.name == *name) {
        Some(provider) => Ok(vec![provider]),
        None => {
            Err(Failure::usage("no provider of that name is configured", "sealbd kms list shows their names"))
        }
    }
}

/// The volumes whose slots name the provider.
fn dependants(provider: &str, context: &Context) -> Vec<String> {
    let names_it = |slot: &String| {
        let spec = context.registry.parse(slot).ok();
        matches!(spec.map(|spec| spec.argument), Some(Argument::Key { provider: named, .. }) if named == provider)
    };
    let volumes = context.settings.volumes.iter().filter(|volume| volume.slots.iter().any(names_it));
    volumes.map(|volume| volume.name.clone()).collect()
}

fn answer(probed: Probed) -> (Answer, Option<Failure>) {
    let Probed { result, latency } = probed;
    let latency_ms = latency.as_millis();
    match result {
        Ok(Health { text, credential_expires }) => {
            let credential_expires = credential_expires.map(unix_seconds);
            (Answer { up: true, latency_ms, text: Some(text), credential_expires, problem: None }, None)
        }
        Err(error) => {
            let problem = Some(Problem::from(Failure::from(error.clone())));
            let answer = Answer { up: false, latency_ms, text: None, credential_expires: None, problem };
            (answer, Some(Failure::from(error)))
        }
    }
}

/// A refusal stays, an outage passes; what is wrong on this host comes last.
fn worst(failures: Vec<Failure>) -> Option<Failure> {
    let rank = |failure: &Failure| match failure.exit {
        EXIT_KMS_DENIED => 0,
        EXIT_KMS_UNREACHABLE => 1,
        _ => 2,
    };
    failures.into_iter().min_by_key(rank)
}

fn prose(providers: &[ProviderReport]) -> String {
    if providers.is_empty() {
        return "no key manager is configured\n".into();
    }
    let mut text = String::new();
    for ProviderReport { name, kind, answer, volumes, .. } in providers {
        text.push_str(&format!("{name:<16} {kind:<14}"));
        if let Some(Answer { latency_ms, text: told, credential_expires, problem, .. }) = answer {
            let state = match problem {
                Some(problem) => format!("FAILED after {latency_ms} ms: {}", problem.message),
                None => format!("up, {latency_ms} ms: {}", told.as_deref().unwrap_or_default()),
            };
            text.push_str(&one_line(&state));
            if let Some(expires) = credential_expires {
                let time = std::time::UNIX_EPOCH + Duration::from_secs(*expires);
                text.push_str(&format!("; its credential ends {}", humantime::format_rfc3339_seconds(time)));
            }
        }
        if let Some(volumes) = volumes {
            let volumes = if volumes.is_empty() { "none".to_owned() } else { volumes.join(", ") };
            text.push_str(&format!("; volumes: {volumes}"));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(error: KeyError) -> Failure {
        answer(Probed::of(Err(error), Duration::ZERO)).1.expect("an error is a failure")
    }

    #[test]
    fn a_refusal_outranks_an_outage_and_an_outage_what_is_wrong_here() {
        let denied = || failed(KeyError::Denied("no".into()));
        let untrusted = || failed(KeyError::Untrusted("who".into()));
        let gone = || failed(KeyError::Unreachable("gone".into()));
        let settings = || failed(KeyError::Settings("file".into()));
        let exit = |failures| worst(failures).map(|failure| failure.exit);
        assert_eq!(exit(vec![settings(), gone(), denied()]), Some(7));
        assert_eq!(exit(vec![gone(), untrusted()]), Some(7));
        assert_eq!(exit(vec![settings(), gone()]), Some(6));
        assert_eq!(exit(vec![settings()]), Some(1));
        assert_eq!(exit(Vec::new()), None);
    }

    #[tokio::test]
    async fn a_manager_that_never_answers_is_given_up() {
        struct Silent;
        impl KeyManager for Silent {
            fn slot_type(&self) -> keymgmt::manager::SlotType {
                keymgmt::manager::SlotType::Exec
            }
            fn wrap<'a>(
                &'a self,
                _: &'a keymgmt::secret::Dek,
                _: keymgmt::manager::WrapContext,
            ) -> keymgmt::manager::BoxFuture<'a, Result<keymgmt::manager::WrappedKey, KeyError>> {
                Box::pin(std::future::pending())
            }
            fn unwrap<'a>(
                &'a self,
                _: &'a keymgmt::manager::WrappedKey,
                _: keymgmt::manager::WrapContext,
            ) -> keymgmt::manager::BoxFuture<'a, Result<Option<keymgmt::secret::Dek>, KeyError>> {
                Box::pin(std::future::pending())
            }
            fn describe(
                &self,
                _: &keymgmt::manager::WrappedKey,
            ) -> Result<keymgmt::manager::KeyDescription, KeyError> {
                Ok(keymgmt::manager::KeyDescription::own(String::new()))
            }
            fn rotate<'a>(
                &'a self,
                _: &'a keymgmt::manager::WrappedKey,
            ) -> keymgmt::manager::BoxFuture<'a, Result<(), KeyError>> {
                Box::pin(std::future::pending())
            }
            fn destroy<'a>(
                &'a self,
                _: &'a keymgmt::manager::WrappedKey,
            ) -> keymgmt::manager::BoxFuture<'a, Result<(), KeyError>> {
                Box::pin(std::future::pending())
            }
            fn probe(&self) -> keymgmt::manager::BoxFuture<'_, Result<Health, KeyError>> {
                Box::pin(std::future::pending())
            }
        }
        let told = probe(&Silent, Duration::from_millis(100)).await.err().map(|error| error.to_string());
        assert_eq!(told.as_deref(), Some("key manager unreachable: no answer in 0.1 s"));
    }
}
