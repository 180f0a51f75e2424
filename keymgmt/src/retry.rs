//! Trying again while a key manager cannot be reached: bounded, with growing pauses and jitter, so that a
//! fleet that starts at once does not press a service that has just come back.
//!
//! Only [`KeyError::Unreachable`] is tried again. A refusal is final: managers lock accounts and tokens
//! after a few wrong tries. A rotation is never repeated, for one whose answer was lost has happened.

use std::time::Duration;

use rand::TryRng;
use rand::rngs::SysRng;
use tokio::time::{Instant, sleep};

use crate::manager::{
    BoxFuture, Health, KeyDescription, KeyError, KeyManager, SlotType, WrapContext, WrappedKey,
};
use crate::secret::Dek;

/// The first pause is a random part of this; each further one of twice as much.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
/// No pause is longer.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A manager whose wraps, unwraps and probes are tried again for a while.
pub(crate) struct Retrying {
    inner: Box<dyn KeyManager>,
    retry_for: Duration,
}

impl Retrying {
    pub(crate) fn new(inner: Box<dyn KeyManager>, retry_for: Duration) -> Self {
        Self { inner, retry_for }
    }

    async fn attempts<'a, T>(
        &'a self,
        attempt: impl Fn() -> BoxFuture<'a, Result<T, KeyError>>,
    ) -> Result<T, KeyError> {
        let begun = Instant::now();
        let mut longest = PAUSE_FIRST;
        for number in 1_u32.. {
            let why = match attempt().await {
                Err(KeyError::Unreachable(why)) => why,
                result => return result,
            };
            let pause = jittered(longest);
            if begun.elapsed() + pause >= self.retry_for {
                let seconds = begun.elapsed().as_secs_f32();
                let tries = if number == 1 { "1 try".to_owned() } else { format!("{number} tries") };
                return Err(KeyError::Unreachable(format!("{why} ({tries} in {seconds:.1} s)")));
            }
            sleep(pause).await;
            longest = (longest * 2).min(PAUSE_MAX);
        }
        unreachable!("a deadline comes before four thousand million tries")
    }
}

/// A random part of `longest`, at least a tenth of it.
fn jittered(longest: Duration) -> Duration {
    let mut byte = [128];
    // Without random numbers the pause is half of the longest.
    let _ = SysRng.try_fill_bytes(&mut byte);
    longest.mul_f32((f32::from(byte[0]) / 255.0).max(0.1))
}

impl KeyManager for Retrying {
    fn slot_type(&self) -> SlotType {
        self.inner.slot_type()
    }

    fn wrap<'a>(&'a self, dek: &'a Dek, context: WrapContext) -> BoxFuture<'a, Result<WrappedKey, KeyError>> {
        Box::pin(self.attempts(move || self.inner.wrap(dek, context)))
    }

    fn unwrap<'a>(
        &'a self,
        key: &'a WrappedKey,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Option<Dek>, KeyError>> {
        Box::pin(self.attempts(move || self.inner.unwrap(key, context)))
    }

    fn describe(&self, key: &WrappedKey) -> Result<KeyDescription, KeyError> {
        self.inner.describe(key)
    }

    fn rotate<'a>(&'a self, current: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        self.inner.rotate(current)
    }

    fn destroy<'a>(&'a self, key: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(self.attempts(move || self.inner.destroy(key)))
    }

    fn probe(&self) -> BoxFuture<'_, Result<Health, KeyError>> {
        Box::pin(self.attempts(move || self.inner.probe()))
    }

    fn notes(&self) -> Vec<String> {
        self.inner.notes()
    }
}

#[cfg(test)]
mod tests;
