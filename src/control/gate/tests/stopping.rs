//! Stopping a volume that runs, is suspended, or is on its way; and suspending one whose store fails.

use super::*;

#[tokio::test]
async fn what_waits_fails_with_shutting_down_when_it_is_stopped() {
    let (store, gate) = running().await;
    let key = dek(&*store).await;
    gate.suspend().await.unwrap();
    let mut tasks = Vec::new();
    for count in 1..=30 {
        let mine = gate.clone();
        tasks.push(park(&gate, count, async move { put(&mine, 0, 1).await }).await);
    }
    soon("stopping", gate.close()).await.unwrap();
    for task in tasks {
        assert_eq!(soon("a request that waited", task).await.unwrap(), Err(ExportError::ShuttingDown));
    }
    assert_eq!((gate.state(), gate.parked()), (GateState::Stopped, 0));
    assert_eq!(fill_of(&gate, 0).await, Err(ExportError::ShuttingDown), "and whatever comes");
    assert!(matches!(gate.resume(key).await, Err(ResumeError::Stopped)));
    assert!(matches!(gate.suspend().await, Err(SuspendError::Stopped)));
    soon("stopping again", gate.close()).await.unwrap();
}

#[tokio::test]
async fn a_server_that_begins_to_stop_fails_what_waits_and_a_resume_comes_too_late() {
    let (store, gate) = running().await;
    let key = dek(&*store).await;
    gate.suspend().await.unwrap();
    let mine = gate.clone();
    let read = park(&gate, 1, async move { fill_of(&mine, 0).await }).await;
    gate.begin_shutdown();
    assert_eq!(soon("what waited", read).await.unwrap(), Err(ExportError::ShuttingDown));
    assert_eq!(soon("what comes", fill_of(&gate, 0)).await, Err(ExportError::ShuttingDown));
    assert!(matches!(gate.resume(key).await, Err(ResumeError::Stopped)));
    assert_eq!(gate.state(), GateState::Suspended, "until it is closed");
    gate.close().await.unwrap();
}

#[tokio::test]
async fn a_running_volume_answers_until_it_is_closed() {
    let (store, gate) = running().await;
    gate.begin_shutdown();
    put(&gate, 0, 6).await.unwrap();
    assert_eq!(fill_of(&gate, 0).await.unwrap(), 6);
    let watched = keys(&gate);
    gate.close().await.unwrap();
    assert!(gone(&watched));
    let gate = open_as(store, OpenMode::ReadOnly).await;
    assert_eq!(fill_of(&gate, 0).await.unwrap(), 6);
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_suspended_volume_dies() {
    let (store, gate) = running().await;
    for lba in 0..50 {
        put(&gate, lba, 5).await.unwrap();
    }
    gate.suspend().await.unwrap();
    // Dropped without a close, and the host loses power, too: suspending wrote a root.
    drop(gate);
    let left = Arc::new(store.crash(&mut |_| 0));
    let gate = open_as(left, OpenMode::ReadOnly).await;
    for lba in 0..50 {
        assert_eq!(fill_of(&gate, lba).await.unwrap(), 5);
    }
}

/// Every operation of suspending fails once: whatever it was, no key is left, what waits waits, and the
/// next session has all that was answered.
#[tokio::test]
async fn a_store_that_fails_while_suspending_leaves_no_key_and_loses_nothing() {
    for operation in [Operation::Write, Operation::Sync] {
        for nth in 0.. {
            let (store, gate) = running().await;
            put(&gate, 0, 1).await.unwrap();
            let (watched, key) = (keys(&gate), dek(&*store).await);
            store.inject(operation, nth, Fault::Io);
            let suspended = gate.suspend().await;
            assert!(gone(&watched), "{operation:?} {nth}: a key is left");
            assert_eq!(gate.state(), GateState::Suspended);
            if suspended.is_ok() {
                assert!(nth > 0, "suspending needs more of {operation:?}");
                break;
            }
            let mine = gate.clone();
            let read = park(&gate, 1, async move { fill_of(&mine, 0).await }).await;
            let left = Arc::new(store.snapshot());
            if operation == Operation::Sync {
                // A store whose sync failed stays failed; another process opens what it holds.
                assert!(gate.resume(key).await.is_err(), "{nth}");
                gate.close().await.unwrap();
                assert_eq!(soon("the read", read).await.unwrap(), Err(ExportError::ShuttingDown));
            } else {
                gate.resume(key).await.unwrap();
                assert_eq!(soon("the read", read).await.unwrap().unwrap(), 1);
                gate.close().await.unwrap();
            }
            let gate = open_as(left, OpenMode::ReadWrite).await;
            assert_eq!(fill_of(&gate, 0).await.unwrap(), 1);
            gate.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn an_error_of_suspending_is_told_once_and_asking_again_is_well() {
    let (store, gate) = running().await;
    put(&gate, 0, 1).await.unwrap();
    store.inject(Operation::Write, 0, Fault::Io);
    gate.suspend().await.unwrap_err();
    gate.suspend().await.unwrap();
    gate.close().await.unwrap();
}

#[tokio::test]
async fn stopping_while_it_is_being_suspended_or_resumed_comes_to_one_end() {
    let store = format(SIZE).await;
    let hold = Arc::new(HoldStore::new(store.clone()));
    for suspended in [false, true] {
        let gate = open_as(hold.clone(), OpenMode::ReadWrite).await;
        put(&gate, 0, 2).await.unwrap();
        if suspended {
            gate.suspend().await.unwrap();
        }
        let key = dek(&*store).await;
        hold.hold();
        let mine = gate.clone();
        let first = tokio::spawn(async move {
            match suspended {
                false => assert!(mine.suspend().await.is_ok()),
                // It had begun before the stop did.
                true => assert!(mine.resume(key).await.is_ok()),
            }
        });
        until("on its way", || hold.held() == 1).await;
        let mine = gate.clone();
        let waiting = park(&gate, 1, async move { fill_of(&mine, 0).await }).await;
        let mine = gate.clone();
        let stop = tokio::spawn(async move { mine.close().await });
        assert_eq!(soon("what waits", waiting).await.unwrap(), Err(ExportError::ShuttingDown));
        assert!(!stop.is_finished(), "one change at a time");
        hold.release();
        soon("the first", first).await.unwrap();
        soon("the stop", stop).await.unwrap().unwrap();
        assert_eq!(gate.state(), GateState::Stopped);
    }
    let gate = open_as(store, OpenMode::ReadOnly).await;
    assert_eq!(fill_of(&gate, 0).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn keys_that_somebody_still_holds_are_told_and_waited_for_again() {
    let (store, gate) = running().await;
    let held = gate.volume().unwrap().clone();
    let error = gate.suspend().await.unwrap_err();
    assert!(matches!(error, SuspendError::KeysInUse), "{error}");
    assert!(!error.to_string().contains("wiped"), "{error}");
    assert_eq!(gate.state(), GateState::Suspended);
    assert!(gate.suspend().await.is_err(), "still");
    drop(held);
    gate.suspend().await.unwrap();
    gate.resume(dek(&*store).await).await.unwrap();
    gate.close().await.unwrap();
}
