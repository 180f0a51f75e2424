//! Key managers of sealbd: everything that can wrap and unwrap a volume's data key.
//!
//! This crate knows no disk, no NBD and no store. A manager sees of a volume only its uuid, the
//! epoch of the key and the cipher suite. Start reading at [`manager`] (what a key
//! manager is) and [`registry`] (which ones there are); a new manager is one file and one row there.

#[cfg(feature = "http")]
#[cfg_attr(not(feature = "barbican"), allow(dead_code, reason = "Vault has stricter addresses of its own"))]
mod address;
#[cfg(feature = "barbican")]
mod barbican;
#[cfg(any(feature = "kmip", feature = "pkcs11", feature = "tpm2"))]
mod blocking;
mod cache;
mod derive;
mod exec;
#[cfg(feature = "http")]
#[cfg_attr(
    not(any(feature = "barbican", feature = "vault")),
    allow(dead_code, reason = "for managers that are features")
)]
mod http;
pub mod hygiene;
pub mod keyfile;
#[cfg(feature = "kmip")]
pub mod kmip;
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
mod stored;
#[cfg(feature = "tls")]
#[cfg_attr(
    not(any(feature = "barbican", feature = "kmip", feature = "vault")),
    allow(dead_code, reason = "for managers that are features")
)]
mod tls;
#[cfg(feature = "tpm2")]
pub mod tpm2;
#[cfg(feature = "vault")]
mod vault;
pub mod verify;
pub mod wrap;
