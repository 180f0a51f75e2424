//! sealbd: a userspace NBD server that seals every sector before it leaves the host.
pub mod cipher;
pub mod cli;
pub mod export;
pub mod format;
pub mod geometry;
pub mod nbd;
pub mod payload;
pub mod server;
pub mod store;
pub mod volume;
pub mod wire;
