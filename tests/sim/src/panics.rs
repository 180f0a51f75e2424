//! Panics of the engine's own tasks: the runtime catches them, and nobody would hear of them.

use std::cell::{Cell, RefCell};
use std::io::Write as _;
use std::panic;
use std::sync::Once;

thread_local! {
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
    /// The seed that the thread runs.
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Lets every panic of a thread that runs a simulation be noted instead of printed.
pub(crate) fn note(seed: u64) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let seed = SEED.with(Cell::get);
            let first = LAST.with(|last| last.borrow().is_none());
            match seed {
                Some(_) if first => LAST.with(|last| *last.borrow_mut() = Some(info.to_string())),
                // This one may end the whole program: a panic while another one is under way.
                Some(seed) => {
                    let last = LAST.with(|last| last.borrow().clone()).unwrap_or_default();
                    let _ = writeln!(std::io::stderr(), "seed {seed}: {last}\nand behind it: {info}");
                }
                None => before(info),
            }
        }));
    });
    SEED.with(|running| running.set(Some(seed)));
    let _earlier = taken();
}

/// Lets panics of this thread be printed again.
pub(crate) fn print_again() {
    SEED.with(|running| running.set(None));
}

/// The first panic of this thread since this was asked last.
pub(crate) fn taken() -> Option<String> {
    LAST.with(|last| last.borrow_mut().take())
}
