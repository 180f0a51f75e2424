//! Time stands still here and moves only when everybody waits, so that pauses are exact and cost nothing.

use std::sync::{Arc, Mutex, PoisonError};

use super::*;
use crate::derive::tests::CONTEXT;

const RETRY_FOR: Duration = Duration::from_secs(30);

type Failing = fn(String) -> KeyError;

/// Fails so many times in the same way, then works; writes down when it was asked.
struct Flaky {
    fails: usize,
    how: Failing,
    asked: Arc<Mutex<Vec<Instant>>>,
}

impl Flaky {
    fn attempt<T: Send + 'static>(&self, done: impl FnOnce() -> T) -> BoxFuture<'_, Result<T, KeyError>> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.push(Instant::now());
        let result = if asked.len() <= self.fails { Err((self.how)("no answer".into())) } else { Ok(done()) };
        Box::pin(async { result })
    }
}

impl KeyManager for Flaky {
    fn slot_type(&self) -> SlotType {
        SlotType::Exec
    }

    fn wrap<'a>(&'a self, _: &'a Dek, _: WrapContext) -> BoxFuture<'a, Result<WrappedKey, KeyError>> {
        self.attempt(slot)
    }

    fn unwrap<'a>(
        &'a self,
        _: &'a WrappedKey,
        _: WrapContext,
    ) -> BoxFuture<'a, Result<Option<Dek>, KeyError>> {
        self.attempt(|| None)
    }

    fn describe(&self, _: &WrappedKey) -> Result<KeyDescription, KeyError> {
        Ok(KeyDescription::own("a test".into()))
    }

    fn rotate<'a>(&'a self, _: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        self.attempt(|| ())
    }

    fn destroy<'a>(&'a self, _: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        self.attempt(|| ())
    }

    fn probe(&self) -> BoxFuture<'_, Result<Health, KeyError>> {
        self.attempt(|| Health { text: "up".into(), credential_expires: None })
    }

    fn notes(&self) -> Vec<String> {
        vec!["a note".into()]
    }
}

fn slot() -> WrappedKey {
    WrappedKey { slot_type: SlotType::Exec, kek_uri: String::new(), wrapped: Vec::new(), private: Vec::new() }
}

/// A manager that fails so many times, and when it is asked.
fn flaky(fails: usize, how: Failing, retry_for: Duration) -> (Retrying, Arc<Mutex<Vec<Instant>>>) {
    let asked = Arc::default();
    let inner = Flaky { fails, how, asked: Arc::clone(&asked) };
    (Retrying::new(Box::new(inner), retry_for), asked)
}

fn count(asked: &Mutex<Vec<Instant>>) -> usize {
    asked.lock().unwrap().len()
}

#[tokio::test(start_paused = true)]
async fn an_outage_that_ends_in_time_is_not_noticed() {
    let (manager, asked) = flaky(3, KeyError::Unreachable, RETRY_FOR);
    assert!(manager.unwrap(&slot(), CONTEXT).await.unwrap().is_none());
    assert_eq!(count(&asked), 4);
    let (manager, asked) = flaky(3, KeyError::Unreachable, RETRY_FOR);
    assert_eq!(manager.wrap(&Dek::generate().unwrap(), CONTEXT).await.unwrap(), slot());
    assert_eq!(count(&asked), 4);
    let (manager, asked) = flaky(3, KeyError::Unreachable, RETRY_FOR);
    manager.destroy(&slot()).await.unwrap();
    assert_eq!(count(&asked), 4);
    let (manager, asked) = flaky(3, KeyError::Unreachable, RETRY_FOR);
    assert_eq!(manager.probe().await.unwrap().text, "up");
    assert_eq!(count(&asked), 4);
}

#[tokio::test(start_paused = true)]
async fn an_outage_that_does_not_end_is_told_within_the_time_set() {
    let begun = Instant::now();
    let (manager, asked) = flaky(usize::MAX, KeyError::Unreachable, RETRY_FOR);
    let why = manager.unwrap(&slot(), CONTEXT).await.err().unwrap().to_string();
    let (tries, took) = (count(&asked), begun.elapsed());
    // Timers count whole milliseconds, upwards.
    assert!(took <= RETRY_FOR + Duration::from_millis(1), "{took:?}");
    // A pause that would have gone beyond the time is not begun, and none is longer than its bound.
    assert!(took >= RETRY_FOR - PAUSE_MAX, "{took:?}");
    assert!(tries > 5, "{tries}");
    let seconds = took.as_secs_f32();
    assert_eq!(why, format!("key manager unreachable: no answer ({tries} tries in {seconds:.1} s)"));
}

#[tokio::test(start_paused = true)]
async fn no_time_is_one_try() {
    let (manager, asked) = flaky(usize::MAX, KeyError::Unreachable, Duration::ZERO);
    let why = manager.probe().await.unwrap_err().to_string();
    assert_eq!(why, "key manager unreachable: no answer (1 try in 0.0 s)");
    assert_eq!(count(&asked), 1);
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_to_a_bound_and_are_never_in_step() {
    let mut seen = Vec::new();
    for _ in 0..20 {
        let (manager, asked) = flaky(usize::MAX, KeyError::Unreachable, RETRY_FOR);
        manager.probe().await.unwrap_err();
        let asked = asked.lock().unwrap();
        let pauses: Vec<Duration> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mut longest = PAUSE_FIRST;
        for pause in &pauses {
            // Timers count whole milliseconds, upwards.
            let slack = Duration::from_millis(1);
            assert!(*pause >= longest / 10 && *pause <= longest + slack, "{pause:?} of {longest:?}");
            longest = (longest * 2).min(PAUSE_MAX);
        }
        seen.push(pauses);
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 20, "twenty hosts in step");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_final() {
    let how: [Failing; 5] =
        [KeyError::Denied, KeyError::Untrusted, KeyError::Settings, KeyError::Malformed, KeyError::Secret];
    for how in how {
        let (manager, asked) = flaky(1, how, RETRY_FOR);
        let told = manager.unwrap(&slot(), CONTEXT).await.err().unwrap();
        assert_eq!(told.to_string(), how("no answer".into()).to_string());
        assert_eq!(count(&asked), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_rotation_is_never_repeated() {
    let (manager, asked) = flaky(1, KeyError::Unreachable, RETRY_FOR);
    assert!(matches!(manager.rotate(&slot()).await, Err(KeyError::Unreachable(_))));
    assert_eq!(count(&asked), 1);
}

#[test]
fn what_concerns_no_service_is_passed_on() {
    let (manager, _) = flaky(0, KeyError::Unreachable, RETRY_FOR);
    assert_eq!(manager.slot_type(), SlotType::Exec);
    assert_eq!(manager.describe(&slot()).unwrap().text, "a test");
    assert_eq!(manager.notes(), ["a note"]);
}
