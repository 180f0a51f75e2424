//! Talking to a person at a terminal.

use std::io::{BufRead, ErrorKind, IsTerminal, Write};

use keymgmt::manager::KeyError;
use keymgmt::secret::SecretBytes;
use keymgmt::source::{NoPrompt, Prompter, Purpose};
use rustix::process::Signal;

use super::interrupt;
use super::outcome::Failure;

/// Asks for secrets on the terminal, without echo; a new one twice.
pub(super) struct TerminalPrompt;

impl Prompter for TerminalPrompt {
    fn prompt(&mut self, what: &str, purpose: Purpose) -> Result<SecretBytes, KeyError> {
        if !std::io::stdin().is_terminal() && std::fs::File::open("/dev/tty").is_err() {
            return NoPrompt.prompt(what, purpose);
        }
        let label = match purpose {
            Purpose::Unlock => format!("Enter {what}: "),
            Purpose::New => format!("Enter new {what}: "),
        };
        let first = ask(&label, what)?;
        if purpose == Purpose::New && !ask(&format!("Repeat new {what}: "), what)?.matches(&first) {
            return Err(KeyError::Secret(format!("the two {what}s differ; nothing was changed")));
        }
        Ok(first)
    }
}

fn ask(label: &str, what: &str) -> Result<SecretBytes, KeyError> {
    interrupt::protect_terminal();
    match rpassword::prompt_password(label) {
        Ok(typed) => SecretBytes::take(&mut typed.into_bytes()),
        Err(error) if error.kind() == ErrorKind::Interrupted => interrupt::end(Signal::INT),
        Err(error) => Err(KeyError::Secret(format!("cannot read the {what} from the terminal: {error}"))),
    }
}

/// Asks for a word to be typed before something is destroyed.
///
/// # Errors
/// A failure that says how to go on, when there is nobody to ask or the answer is another one.
pub(super) fn confirm(warning: &str, word: &str) -> Result<(), Failure> {
    let hint = "--yes goes on without asking";
    if !std::io::stdin().is_terminal() {
        return Err(Failure::exists(format!("{warning} (there is no terminal to ask)"), hint));
    }
    let mut terminal = std::io::stderr();
    let _ = write!(terminal, "{warning}\nType {word} to go on: ");
    let _ = terminal.flush();
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    if read.is_ok() && answer.trim() == word {
        return Ok(());
    }
    Err(Failure::exists("not confirmed; nothing was changed", hint))
}
