//! The command line: one sub-command per file, settings apart from arguments.
//!
//! Results go to standard output, as prose or, with `--json`, as one object; everything else goes to
//! standard error. Every failure ends with a line that says what to do next (`outcome`).

mod arguments;
mod audit;
mod check;
mod context;
mod demo;
mod documents;
mod format;
mod header;
mod inspect;
mod interrupt;
mod key;
mod open;
mod outcome;
mod output;
mod serve;
mod size;
mod terminal;
mod trail;
mod usage;

use std::process::ExitCode;

use clap::Parser;
use keymgmt::registry::Registry;
use keymgmt::request::RequestId;

use arguments::{Arguments, Command, KeyCommand};
use context::Context;
use outcome::Failure;
use output::Output;
use trail::Trail;

use crate::audit::{Log, Settings};

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let (words, renamed) = arguments::native_spelling(std::env::args_os());
    let arguments = match Arguments::try_parse_from(&words) {
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
    let (registry, request_id) = (Registry::built_in(), RequestId::generate());
    let trail = Trail::new(
        Log::new(Settings::resolve(None)),
        arguments.command.audited(),
        backend.as_ref().map(|backend| backend.to_string_lossy().into_owned()),
        request_id.clone(),
        output,
    );
    let context = Context { output, engine, hygiene, registry, request_id, trail };
    let result = runtime.block_on(run(arguments.command, &context));
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

async fn run(command: Command, context: &Context) -> Result<ExitCode, Failure> {
    match command {
        Command::Demo(options) => Box::pin(demo::run(options, context)).await,
        Command::Format(options) => format::run(options, context).await,
        Command::Serve(options) => serve::run(options, context).await,
        Command::Dump(options) => inspect::dump(&options, context).await,
        Command::Uuid(options) => inspect::uuid(&options, context).await,
        Command::Status(options) => inspect::status(&options, context).await,
        Command::Check(options) => check::run(&options, context).await,
        Command::Key(KeyCommand::Add(options)) => key::add(&options, context).await,
        Command::Key(KeyCommand::Change(options)) => Box::pin(key::change(&options, context)).await,
        Command::Key(KeyCommand::Remove(options)) => Box::pin(key::remove(&options, context)).await,
        Command::Key(KeyCommand::List(options)) => key::list(&options, context).await,
        Command::Key(KeyCommand::Test(options)) => key::test(&options, context).await,
        Command::Header(command) => Box::pin(header::run(command, context)).await,
        Command::Audit(command) => audit::run(command, context).await,
        Command::Completions { shell } => documents::completions(shell),
        Command::Man { directory } => documents::man(directory.as_deref()),
    }
}
