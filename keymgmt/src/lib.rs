//! Key managers of sealbd: everything that can wrap and unwrap a volume's data key.
//!
//! This crate knows no disk, no NBD and no store. A manager sees of a volume only its uuid, the
//! epoch of the key and the cipher suite. Start reading at [`manager`] (what a key
//! manager is) and [`registry`] (which ones there are); a new manager is one file and one row there.

#[cfg(any(feature = "pkcs11", feature = "tpm2"))]
mod blocking;
mod derive;
#[cfg(feature = "http")]
#[allow(dead_code, reason = "the managers that use it come next")]
mod http;
pub mod hygiene;
pub mod keyfile;
pub mod manager;
pub mod passphrase;
#[cfg(feature = "pkcs11")]
pub mod pkcs11;
mod private_file;
pub mod provider;
pub mod recovery;
pub mod registry;
pub mod request;
mod retry;
pub mod secret;
pub mod source;
pub mod spec;
#[allow(dead_code, reason = "features choose the managers that use it")]
mod stored;
#[cfg(feature = "tls")]
#[allow(dead_code, reason = "the managers that use it come next")]
mod tls;
#[cfg(feature = "tpm2")]
pub mod tpm2;
pub mod verify;
pub mod wrap;
