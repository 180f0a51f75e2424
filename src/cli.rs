//! The command line: one sub-command per file, settings apart from arguments.
//!
//! Results go to standard output, as prose or, with `--json`, as one object; everything else goes to
//! standard error. Every failure ends with a line that says what to do next (`outcome`).

mod anchoring;
mod arguments;
mod audit;
mod check;
mod compact;
mod config;
mod context;
mod deferred;
mod demo;
mod destroy;
mod documents;
mod erase;
mod format;
mod header;
mod header_check;
mod home;
mod inherited;
mod inspect;
mod interrupt;
mod key;
mod key_age;
mod kms;
mod known;
mod list;
mod memory;
mod named;
mod noted;
mod open;
mod outcome;
mod output;
mod prometheus;
mod resize;
mod revoke;
mod rotate;
mod rotate_all;
mod rotate_report;
mod salvage;
mod serve;
mod settings;
mod size;
mod suspend;
mod terminal;
mod trail;
mod usage;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use keymgmt::registry::Registry;
use keymgmt::request::RequestId;

use arguments::{Arguments, Command, ConfigCommand, KeyCommand};
use context::Context;
use noted::Notes;
use outcome::Failure;
use output::Output;
use settings::Settings;
use trail::Trail;

use crate::audit::{Log, Settings as AuditSettings};

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    inherited::keep_from_children();
    let (words, renamed) = arguments::native_spelling(std::env::args_os());
    let mut arguments = match Arguments::try_parse_from(&words) {
        Ok(arguments) => arguments,
        Err(error) => return usage::report(&error, &words),
    };
    let output = match arguments.command.owns_stdout() {
        true => Output::prose(),
        false => Output::new(arguments.json),
    };
    if let Some(native) = renamed {
        output.note(&format!("this is spelled 'sealbd {native}' here"));
    }
    let hygiene = keymgmt::hygiene::harden_process();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let failure =
                Failure::system("cannot start", &error, "ulimit -a shows what the process may have");
            return output.fail(&failure);
        }
    };
    let backend = arguments.command.backend().map(ToOwned::to_owned);
    let engine = match arguments.engine() {
        Ok(engine) => engine,
        Err(failure) => return output.fail(&failure),
    };
    let loaded = match arguments.command.needs_no_settings() {
        true => Ok((Settings::default(), Registry::built_in())),
        false => Settings::load(arguments.config.as_deref()),
    };
    let (settings, registry) = match loaded {
        Ok(loaded) => loaded,
        Err(problems) => return output.fail(&config::refused(&problems)),
    };
    let completed = named::complete(&mut arguments.command, &settings, &output, &usage::verb_of(&words));
    if let Err(failure) = completed {
        return output.fail(&failure);
    }
    let (registry, request_id) = (Arc::new(registry), RequestId::generate());
    let trail = Trail::new(
        Log::new(AuditSettings::resolve(settings.audit_path.as_deref())),
        arguments.command.audited(),
        arguments.command.is_dry_run(),
        arguments.command.backend().map(|backend| backend.to_string_lossy().into_owned()),
        request_id.clone(),
        output,
    );
    let notes = Notes::new(output);
    let anchor = arguments.anchor;
    let on_rollback = arguments.command.on_rollback();
    let context = Context {
        output,
        engine,
        hygiene,
        registry,
        settings,
        request_id,
        trail,
        notes,
        anchor,
        on_rollback,
    };
    let result = runtime.block_on(run(arguments.command, arguments.config.as_deref(), &context));
    context.trail.end(&result);
    // A blocking read of a terminal or a store must not keep the process.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(failure) => context.output.fail(&match backend {
            Some(backend) => failure.naming(&backend.to_string_lossy()),
            None => failure,
        }),
    }
}

async fn run(command: Command, config: Option<&Path>, context: &Context) -> Result<ExitCode, Failure> {
    match command {
        Command::Demo(options) => Box::pin(demo::run(options, context)).await,
        Command::Format(options) => format::run(options, context).await,
        Command::Serve(options) => serve::run(options, context).await,
        Command::Dump(options) => inspect::dump(&options, context).await,
        Command::Uuid(options) => inspect::uuid(&options, context).await,
        Command::Status(options) => Box::pin(inspect::status(&options, context)).await,
        Command::List(options) => list::run(&options, context).await,
        Command::Kms(command) => kms::run(&command, context).await,
        Command::Config(ConfigCommand::Check { file }) => {
            config::check(file.as_deref().or(config), &context.output)
        }
        Command::Check(options) => Box::pin(check::run(&options, context)).await,
        Command::Resize(options) => Box::pin(resize::run(&options, context)).await,
        Command::Compact(options) => Box::pin(compact::run(&options, context)).await,
        Command::Key(command) => Box::pin(key(command, context)).await,
        Command::Suspend(options) => suspend::suspend(&options, context).await,
        Command::Resume(options) => Box::pin(suspend::resume(&options, context)).await,
        Command::Rotate(options) => Box::pin(rotate::run(&options, context)).await,
        Command::Revoke(options) => Box::pin(revoke::run(&options, context)).await,
        Command::Erase(options) => Box::pin(erase::run(&options, context)).await,
        Command::Header(command) => Box::pin(header::run(command, context)).await,
        Command::Audit(command) => audit::run(command, context).await,
        Command::Completions { shell } => documents::completions(shell),
        Command::Man { directory } => documents::man(directory.as_deref()),
    }
}

async fn key(command: KeyCommand, context: &Context) -> Result<ExitCode, Failure> {
    match command {
        KeyCommand::Add(options) => key::add(&options, context).await,
        KeyCommand::Ensure(options) => key::ensure(&options, context).await,
        KeyCommand::Change(options) => key::change(&options, context).await,
        KeyCommand::Remove(options) => key::remove(&options, context).await,
        KeyCommand::Kill(options) => key::kill(&options, context).await,
        KeyCommand::Priority(options) => key::priority(&options, context).await,
        KeyCommand::List(options) => key::list(&options, context).await,
        KeyCommand::Test(options) => key::test(&options, context).await,
    }
}
