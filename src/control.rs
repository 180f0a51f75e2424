//! Commanding volumes while they are served: new headers, taking their keys away and giving them back.
//!
//! A serving process has one control socket per volume (docs/CONTROL.md), mode 0600. `client` is the side of a
//! command, `server` that of the process, `gate` what a suspension does.

mod check;
pub mod client;
mod compact;
pub mod gate;
pub mod memory;
pub mod protocol;
pub mod server;

#[cfg(test)]
mod tests;
