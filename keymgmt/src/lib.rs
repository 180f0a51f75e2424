//! Key managers of sealbd: everything that can wrap and unwrap a volume's data key.
//!
//! This crate knows no disk, no NBD and no store. A manager sees of a volume only its uuid, the
//! epoch of the key, the cipher suite and a label.

pub mod manager;
pub mod secret;
