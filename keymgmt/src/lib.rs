//! Key managers of sealbd: everything that can wrap and unwrap a volume's data key.
//!
//! This crate knows no disk, no NBD and no store. A manager sees of a volume only its uuid, the
//! epoch of the key and the cipher suite. Start reading at [`manager`] (what a key
//! manager is) and [`registry`] (which ones there are); a new manager is one file and one row there.

mod cache;
mod derive;
mod exec;
#[cfg(feature = "http")]
#[cfg_attr(not(feature = "vault"), allow(dead_code, reason = "the managers that use it come next"))]
mod http;
pub mod hygiene;
pub mod keyfile;
pub mod manager;
pub mod passphrase;
mod private_file;
pub mod provider;
pub mod recovery;
pub mod registry;
pub mod request;
mod retry;
pub mod secret;
pub mod source;
pub mod spec;
mod stored;
#[cfg(feature = "tls")]
#[cfg_attr(not(feature = "vault"), allow(dead_code, reason = "the managers that use it come next"))]
mod tls;
#[cfg(feature = "vault")]
mod vault;
pub mod verify;
pub mod wrap;
