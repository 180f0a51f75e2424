//! Sealing and opening: AES-256-GCM under per-segment keys. Pure and synchronous.
//!
//! - [`engine`]: the two implementations of AES-256-GCM behind one type.
//! - [`mod@derive`]: every key and every label of the format, in one place.
//! - [`nonce`]: nonces and additional data.
//! - [`segment`]: the types that make "encrypt once" (rules R1–R3, docs/FORMAT.md §3) a property
//!   of the program instead of a promise.
//! - [`surroundings`]: random numbers, host and clock of a session.

pub mod derive;
pub mod engine;
pub mod nonce;
pub mod segment;
pub mod surroundings;

pub use derive::VolumeKeys;
pub use engine::Engine;
pub use segment::{FreshUid, OpenSegmentKey, SealRange, SegmentKey, Uid, UidSource};
pub use surroundings::{NoRandomness, Surroundings};

/// Bytes of an authentication tag.
pub const TAG_LEN: usize = 16;

/// The only cipher suite: AES-256-GCM with HKDF-SHA256. There is no null suite.
pub const SUITE_AES_256_GCM_HKDF_SHA256: u32 = 1;

/// Something did not authenticate. Says nothing more, on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("authentication failed")]
pub struct AuthenticationFailed;
