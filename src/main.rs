//! The `sealbd` command.
fn main() {}
