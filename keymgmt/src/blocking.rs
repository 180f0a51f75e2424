//! Calls into libraries that block for as long as they like: the module of a token, the TPM's stack.
//!
//! Each runs on a thread of its own that nobody joins, and not on the runtime's pool: a runtime waits for
//! its pool when it ends, so that a device that hangs would keep the process from ending. Whoever awaits
//! waits for a bounded time; a call that is late goes on alone, and what it returns is dropped.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
#[cfg(any(feature = "pkcs11", test))]
use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::manager::KeyError;

/// Most calls that may be running or hanging at once. Far above what opening a host's volumes side by side
/// needs, far below what a process has threads for.
const CALLS_MAX: usize = 64;

static CALLS: AtomicUsize = AtomicUsize::new(0);

/// Counts one call from its start to its true end.
struct Call;

impl Call {
    fn begin() -> Option<Self> {
        let one_more = |running| (running < CALLS_MAX).then_some(running + 1);
        CALLS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok().map(|_| Self)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        CALLS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A device whose calls block, with its name in errors and the time that a call may take.
pub(crate) struct Blocking<D> {
    device: Arc<D>,
    name: &'static str,
    wait: Duration,
}

impl<D: Send + Sync + 'static> Blocking<D> {
    pub(crate) fn new(device: D, name: &'static str, wait: Duration) -> Self {
        Self { device: Arc::new(device), name, wait }
    }

    /// Runs `work` with the device, as [`run`] does.
    ///
    /// # Errors
    /// Those of [`run`].
    ///
    /// # Cancel safety
    /// As [`run`].
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&D) -> Result<T, KeyError> + Send + 'static,
    ) -> Result<T, KeyError> {
        let device = Arc::clone(&self.device);
        run(self.name, self.wait, move || work(&device)).await
    }

    /// As [`Blocking::run`], for callers that block themselves.
    ///
    /// # Errors
    /// Those of [`run`].
    #[cfg(feature = "pkcs11")]
    pub(crate) fn wait<T: Send + 'static>(
        &self,
        work: impl FnOnce(&D) -> Result<T, KeyError> + Send + 'static,
    ) -> Result<T, KeyError> {
        let device = Arc::clone(&self.device);
        wait(self.name, self.wait, move || work(&device))
    }
}

impl<D> Deref for Blocking<D> {
    type Target = D;

    fn deref(&self) -> &D {
        &self.device
    }
}

/// Runs `work` on a thread and waits for it for at most `wait`; `device` names it in errors.
///
/// # Errors
/// Those of `work`; [`KeyError::Unreachable`] when it takes longer or no thread can be had.
///
/// # Cancel safety
/// When the future is dropped the work goes on and its result is dropped.
async fn run<T: Send + 'static>(
    device: &'static str,
    wait: Duration,
    work: impl FnOnce() -> Result<T, KeyError> + Send + 'static,
) -> Result<T, KeyError> {
    let (done, result) = oneshot::channel();
    // Nobody may be waiting any more; then the result is dropped, and a key in it wiped.
    spawn(device, move || drop(done.send(work())))?;
    match timeout(wait, result).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(ended(device)),
        Err(_) => Err(late(device, wait)),
    }
}

/// As [`run`], for callers that block themselves.
///
/// # Errors
/// Those of [`run`].
#[cfg(feature = "pkcs11")]
fn wait<T: Send + 'static>(
    device: &'static str,
    wait: Duration,
    work: impl FnOnce() -> Result<T, KeyError> + Send + 'static,
) -> Result<T, KeyError> {
    let (done, result) = mpsc::sync_channel(1);
    spawn(device, move || drop(done.send(work())))?;
    result.recv_timeout(wait).unwrap_or_else(|error| match error {
        mpsc::RecvTimeoutError::Timeout => Err(late(device, wait)),
        mpsc::RecvTimeoutError::Disconnected => Err(ended(device)),
    })
}

fn spawn(device: &'static str, work: impl FnOnce() + Send + 'static) -> Result<(), KeyError> {
    let call = Call::begin().ok_or_else(|| unreachable(device, "too many calls hang already"))?;
    let thread = std::thread::Builder::new().name(device.to_owned()).spawn(move || {
        let _call = call;
        work();
    });
    thread.map(drop).map_err(|error| unreachable(device, &error.to_string()))
}

fn unreachable(device: &str, why: &str) -> KeyError {
    KeyError::Unreachable(format!("{device}: {why}"))
}

fn ended(device: &str) -> KeyError {
    unreachable(device, "the call ended without an answer")
}

fn late(device: &str, wait: Duration) -> KeyError {
    unreachable(device, &format!("no answer in {}", humantime::format_duration(wait)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_that_hangs_is_left_alone_and_told_as_unreachable() {
        let (release, held) = mpsc::channel::<()>();
        let work = move || {
            let _ = held.recv();
            Ok(())
        };
        let error = run("token", Duration::from_millis(20), work).await.unwrap_err();
        assert_eq!(error.to_string(), "key manager unreachable: token: no answer in 20ms");
        drop(release);
        assert_eq!(run("token", Duration::from_secs(30), || Ok(7)).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_panic_of_the_call_is_no_panic_of_ours() {
        let result = run("token", Duration::from_secs(30), || -> Result<(), KeyError> { panic!("broken") });
        assert!(matches!(result.await, Err(KeyError::Unreachable(_))));
    }
}
