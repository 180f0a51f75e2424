//! Ending at a prompt: whoever stops the command there gets a terminal back that echoes.
//!
//! While a secret is asked for, the terminal neither echoes nor edits lines. A signal would end the process
//! like that, and so would the prompt itself, which sends Ctrl-C to us as a signal before it puts the
//! terminal back. From the first prompt on, signals are therefore taken here, until somebody else takes them.

use std::fs::File;
use std::io::Write;
use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use rustix::process::Signal;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};

/// The terminal as it was before the prompt.
static BEFORE: Mutex<Option<(File, Termios)>> = Mutex::new(None);
/// Somebody else ends the process now.
static HANDED_ON: AtomicBool = AtomicBool::new(false);

/// Remembers the terminal as it is, and from now on puts it back before a signal ends the process.
///
/// # Panics
/// Outside a tokio runtime.
pub(super) fn protect_terminal() {
    static WATCH: Once = Once::new();
    let Ok(terminal) = File::options().read(true).write(true).open("/dev/tty") else { return };
    let Ok(state) = tcgetattr(&terminal) else { return };
    BEFORE.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((terminal, state));
    WATCH.call_once(|| {
        watch(SignalKind::interrupt(), Signal::INT);
        watch(SignalKind::terminate(), Signal::TERM);
        watch(SignalKind::hangup(), Signal::HUP);
    });
}

/// From now on signals end nothing here: the caller takes them.
pub(super) fn hand_on() {
    HANDED_ON.store(true, Ordering::SeqCst);
}

/// The next signal that asks to end; from now on signals end nothing by themselves.
///
/// # Errors
/// When signals cannot be taken.
pub(super) fn taken() -> std::io::Result<impl Future<Output = Signal>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    hand_on();
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => Signal::INT,
            _ = terminate.recv() => Signal::TERM,
            _ = hangup.recv() => Signal::HUP,
        }
    })
}

/// Ends the process as shells expect it of one that a signal ended.
pub(super) fn end(by: Signal) -> ! {
    static TOLD: Once = Once::new();
    if let Some((terminal, state)) = &*BEFORE.lock().unwrap_or_else(PoisonError::into_inner) {
        // The terminal may be gone, that is what SIGHUP says.
        let _ = tcsetattr(terminal, OptionalActions::Now, state);
    }
    TOLD.call_once(|| {
        let _ = writeln!(std::io::stderr(), "\nsealbd: interrupted\nnext: start the command again");
    });
    exit(128 + by.as_raw())
}

fn watch(kind: SignalKind, number: Signal) {
    // Without a handler the signal ends the process by itself; only the echo stays off.
    let Ok(mut received) = signal(kind) else { return };
    tokio::spawn(async move {
        while received.recv().await.is_some() {
            if !HANDED_ON.load(Ordering::SeqCst) {
                end(number);
            }
        }
    });
}
