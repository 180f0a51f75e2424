//! Telling what is wrong with the words of a command line.
//!
//! clap repeats what it does not understand. That may be a secret that somebody typed in the wrong
//! place, so the message is made here, from the names of options and never from what was given for them.

use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::arguments::{Arguments, verb_at};
use super::outcome::{EXIT_USAGE, Failure};
use super::output::Output;

/// Tells why `words` are no command; help and version are no error.
pub(super) fn report(error: &clap::Error, words: &[OsString]) -> ExitCode {
    let asked_for = !error.use_stderr();
    let output = Output::new(words.iter().any(|word| word == "--json"));
    if asked_for || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand && !output.is_json() {
        // Printing to a closed pipe is no failure of the command.
        let _ = error.print();
        return if asked_for { ExitCode::SUCCESS } else { ExitCode::from(EXIT_USAGE) };
    }
    let verb = verb_of(words);
    output.fail(&Failure::usage(message(error), format!("sealbd {verb}--help shows what can be given")))
}

/// The sub-commands that were understood, each with a space behind it.
pub(super) fn verb_of(words: &[OsString]) -> String {
    let mut command = Arguments::command();
    let mut verb = String::new();
    let words = &words[verb_at(words).unwrap_or(words.len())..];
    for word in words.iter().filter(|word| !word.as_encoded_bytes().starts_with(b"-")) {
        let Some(found) = command.find_subcommand(word) else { break };
        verb.push_str(&format!("{} ", found.get_name()));
        command = found.clone();
    }
    verb
}

fn message(error: &clap::Error) -> String {
    let names = |kind| names(error.get(kind));
    let suggested = |kind, text: String| match names(kind) {
        found if found.is_empty() => text,
        found => format!("{text}; is it {found}?"),
    };
    match error.kind() {
        ErrorKind::UnknownArgument => {
            suggested(ContextKind::SuggestedArg, unexpected(&names(ContextKind::InvalidArg)))
        }
        ErrorKind::InvalidSubcommand => {
            suggested(ContextKind::SuggestedSubcommand, "there is no such verb".into())
        }
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            "a verb is missing".into()
        }
        ErrorKind::MissingRequiredArgument => format!("missing: {}", names(ContextKind::InvalidArg)),
        ErrorKind::ValueValidation => {
            let cause = error.source().map_or_else(String::new, |cause| format!(": {cause}"));
            format!("what is given for {} cannot be used{cause}", names(ContextKind::InvalidArg))
        }
        ErrorKind::InvalidValue => format!(
            "what is given for {} is none of {}",
            names(ContextKind::InvalidArg),
            names(ContextKind::ValidValue)
        ),
        ErrorKind::ArgumentConflict => format!(
            "{} cannot be given together with {}",
            names(ContextKind::InvalidArg),
            names(ContextKind::PriorArg)
        ),
        kind => format!("{kind} ({})", names(ContextKind::InvalidArg)),
    }
}

/// An option that does not exist, without what stands behind `=` or a short option; nothing of a word that
/// is no option.
fn unexpected(word: &str) -> String {
    if !word.starts_with('-') {
        return "there is a word too many (it is not repeated here: it may be a secret)".into();
    }
    let name = word.split('=').next().unwrap_or_default();
    let short = !name.starts_with("--");
    format!("there is no option {}", if short { name.chars().take(2).collect() } else { name.to_owned() })
}

/// What the error says of the definition of the command line.
fn names(value: Option<&ContextValue>) -> String {
    match value {
        Some(ContextValue::String(name)) => name.clone(),
        Some(ContextValue::Strings(names)) => names.join(", "),
        _ => String::new(),
    }
}
