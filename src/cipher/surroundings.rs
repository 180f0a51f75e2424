//! What a session takes from outside that is no input of anybody: random numbers, the host's name for
//! itself, the time of day. A value that whoever makes or opens a volume hands in.
//!
//! Everything that serves data uses [`Surroundings::system`]; `tests/tidy.rs` holds that nothing in `src`
//! uses the other one, which the simulation needs to run the same thing twice (tests/sim).

use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use keymgmt::manager::KeyError;
use keymgmt::secret::Dek;
use rand::TryRng;
use rand::rngs::SysRng;
use sha2::{Digest, Sha256};

/// The operating system gave no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("the operating system's random number generator failed")]
pub struct NoRandomness;

/// See the module.
pub struct Surroundings {
    source: Source,
    host_id: Vec<u8>,
}

enum Source {
    System,
    /// A seed, and how many blocks were drawn from it.
    Replayed(Mutex<(u64, u64)>),
}

impl Surroundings {
    /// The operating system's random numbers and clock, on the host that calls itself `host_id`; empty
    /// where there is nothing that differs from host to host.
    #[must_use]
    pub fn system(host_id: Vec<u8>) -> Self {
        Self { source: Source::System, host_id }
    }

    /// Random numbers that follow from `seed`, and a clock that stands still: for running the same thing
    /// again. Whoever knows the seed knows every key, and two sessions of one seed may seal twice under
    /// one key; never for data that is of worth to anybody.
    #[must_use]
    pub fn replayed(seed: u64) -> Self {
        Self { source: Source::Replayed(Mutex::new((seed, 0))), host_id: Vec::new() }
    }

    /// What differs from host to host.
    #[must_use]
    pub fn host_id(&self) -> &[u8] {
        &self.host_id
    }

    /// Random bytes.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn random<const N: usize>(&self) -> Result<[u8; N], NoRandomness> {
        let mut bytes = [0; N];
        match &self.source {
            Source::System => SysRng.try_fill_bytes(&mut bytes).map_err(|_| NoRandomness)?,
            Source::Replayed(state) => {
                let mut state = state.lock().expect("no panic while it is held");
                for block in bytes.chunks_mut(32) {
                    let digest =
                        Sha256::new().chain_update(state.0.to_le_bytes()).chain_update(state.1.to_le_bytes());
                    block.copy_from_slice(&digest.finalize()[..block.len()]);
                    state.1 += 1;
                }
            }
        }
        Ok(bytes)
    }

    /// A fresh data key, made in memory that is wiped.
    ///
    /// # Errors
    /// The operating system's generator failed.
    pub fn dek(&self) -> Result<Dek, KeyError> {
        match &self.source {
            Source::System => Dek::generate(),
            Source::Replayed(_) => {
                let mut bytes = self.random().expect("a seed never runs dry");
                Ok(Dek::take(&mut bytes))
            }
        }
    }

    /// Now, in seconds since 1970; 0 when the clock stands before that.
    #[must_use]
    pub fn unix_seconds(&self) -> u64 {
        match &self.source {
            Source::System => unix_seconds(),
            Source::Replayed(_) => 0,
        }
    }
}

/// Now by the operating system's clock, in seconds since 1970; 0 when it stands before that.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_never_repeats_itself_and_a_seed_always_does() {
        let system = Surroundings::system(Vec::new());
        assert_ne!(system.random::<32>().unwrap(), system.random::<32>().unwrap());
        assert!(!system.dek().unwrap().matches(&system.dek().unwrap()));
        assert!(system.unix_seconds() > 1_700_000_000);
        let (one, same, other) =
            (Surroundings::replayed(1), Surroundings::replayed(1), Surroundings::replayed(2));
        let first = one.random::<40>().unwrap();
        assert_eq!(first, same.random::<40>().unwrap());
        assert_ne!(first, one.random::<40>().unwrap(), "a stream goes on");
        assert_ne!(first, other.random::<40>().unwrap());
    }
}
