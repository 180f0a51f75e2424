//! What the tests of the whole binary share: a served volume, a raw NBD client, foreign programs
//! with a deadline, the memory of a process, a mounted file system, and a store that remembers the order of its writes.
#![allow(dead_code, reason = "every test binary uses its own part of this")]
#![allow(clippy::print_stderr, reason = "a skipped test says why")]

pub(crate) mod client;
pub(crate) mod history;
pub(crate) mod logging_server;
pub(crate) mod memory;
pub(crate) mod mounted;
pub(crate) mod pattern;
pub(crate) mod programs;
pub(crate) mod served;
