//! Panics of the engine's own tasks: the runtime catches them, and nobody would hear of them.

use std::cell::RefCell;
use std::panic;
use std::sync::Once;

thread_local! {
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Lets every panic of a thread that runs a simulation be noted instead of printed.
pub(crate) fn note() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if SIMULATES.with(|simulates| *simulates.borrow()) {
                LAST.with(|last| last.borrow_mut().get_or_insert_with(|| info.to_string()).len());
            } else {
                before(info);
            }
        }));
    });
    SIMULATES.with(|simulates| *simulates.borrow_mut() = true);
    let _earlier = taken();
}

/// Lets panics of this thread be printed again.
pub(crate) fn print_again() {
    SIMULATES.with(|simulates| *simulates.borrow_mut() = false);
}

thread_local! {
    static SIMULATES: RefCell<bool> = const { RefCell::new(false) };
}

/// The first panic of this thread since this was asked last.
pub(crate) fn taken() -> Option<String> {
    LAST.with(|last| last.borrow_mut().take())
}
