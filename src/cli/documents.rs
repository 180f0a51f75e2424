//! `sealbd completions` and `sealbd man`: made from the definition that also parses.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;

use super::arguments::Arguments;
use super::outcome::Failure;

/// Prints a completion script.
#[expect(clippy::unnecessary_wraps, reason = "every command ends the same way")]
pub(super) fn completions(shell: clap_complete::Shell) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "sealbd", &mut script);
    Ok(print(&script))
}

/// Prints the manual page of `sealbd`, or writes one page per verb to a directory.
pub(super) fn man(directory: Option<&Path>) -> Result<ExitCode, Failure> {
    let command = Arguments::command();
    let failed = |error: std::io::Error| {
        Failure::system("cannot write the manual", &error, "sealbd man --directory DIR, one that exists")
    };
    if let Some(directory) = directory {
        clap_mangen::generate_to(command, directory).map_err(failed)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).map_err(failed)?;
    Ok(print(&page))
}

/// A reader that has gone is no failure of the command.
fn print(text: &[u8]) -> ExitCode {
    let _ = std::io::stdout().write_all(text);
    ExitCode::SUCCESS
}
