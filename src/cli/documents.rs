//! `sealbd completions` and `sealbd man`: made from the definition that also parses.

use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;

use super::arguments::Arguments;
use super::outcome::Failure;

/// Prints a completion script.
#[expect(clippy::unnecessary_wraps, reason = "every command ends the same way")]
pub(super) fn completions(shell: clap_complete::Shell) -> Result<ExitCode, Failure> {
    clap_complete::generate(shell, &mut Arguments::command(), "sealbd", &mut std::io::stdout());
    Ok(ExitCode::SUCCESS)
}

/// Prints the manual page of `sealbd`, or writes one page per verb to a directory.
pub(super) fn man(directory: Option<&Path>) -> Result<ExitCode, Failure> {
    let command = Arguments::command();
    let failed = |error: std::io::Error| Failure::system("cannot write the manual", &error);
    match directory {
        Some(directory) => clap_mangen::generate_to(command, directory).map_err(failed)?,
        None => clap_mangen::Man::new(command).render(&mut std::io::stdout()).map_err(failed)?,
    }
    Ok(ExitCode::SUCCESS)
}
