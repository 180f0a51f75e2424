//! One suite, every manager: what `KeyManager` promises is held here for each of them.
//!
//! A new manager is one more entry in [`subjects`].

#![expect(clippy::unwrap_used, reason = "the functions that set a test up panic as its own lines do")]

use keymgmt::keyfile::Keyfile;
use keymgmt::manager::{
    KEK_URI_MAX, KeyError, KeyManager, PRIVATE_MAX, SlotType, WRAPPED_MAX, WrapContext, WrappedKey,
};
use keymgmt::passphrase::{Argon2Cost, Passphrase};
use keymgmt::recovery::Recovery;
use keymgmt::registry::Registry;
use keymgmt::secret::{Dek, Secret32, SecretBytes};
use keymgmt::verify::wrap_tested;
use proptest::prelude::*;

const CONTEXT: WrapContext = WrapContext { volume: *b"volume of a test", epoch: 7, suite: 1 };

/// Bytes that no description, error or keyslot may hold. Printable, so that a leak in a message is found.
const CANARY_DEK: [u8; 32] = *b"CANARY-DEK-CANARY-DEK-CANARY-DEK";
const CANARY_SECRET: [u8; 32] = *b"CANARY-KEY-CANARY-KEY-CANARY-KEY";
/// What a leak would have in common with both.
const CANARY: &str = "CANARY";

/// A manager with its right secret, and another of its kind with a wrong one.
struct Subject {
    right: Box<dyn KeyManager>,
    wrong: Box<dyn KeyManager>,
}

fn subjects() -> Vec<Subject> {
    let mut other = CANARY_SECRET;
    other[0] ^= 1;
    vec![
        Subject { right: Box::new(passphrase(&CANARY_SECRET)), wrong: Box::new(passphrase(&other)) },
        Subject { right: Box::new(keyfile(CANARY_SECRET)), wrong: Box::new(keyfile(other)) },
        Subject { right: Box::new(recovery(CANARY_WORDS)), wrong: Box::new(Recovery::generate().unwrap()) },
    ]
}

/// The cheapest cost that a new keyslot may have, and a ceiling just above it, so that a flipped bit in
/// the figures costs a test nothing.
fn passphrase(secret: &[u8]) -> Passphrase {
    let cost = Argon2Cost::new(Argon2Cost::MEMORY_KIB_MIN, 1, 1).unwrap();
    let ceiling = Argon2Cost::new(2 * Argon2Cost::MEMORY_KIB_MIN, 3, 3).unwrap();
    let secret = SecretBytes::take(&mut secret.to_vec()).unwrap();
    Passphrase::new(secret).unwrap().with_cost(cost).with_ceiling(ceiling)
}

fn keyfile(mut secret: [u8; 32]) -> Keyfile {
    Keyfile::from_secret(Secret32::take(&mut secret))
}

const CANARY_WORDS: &str = "legal winner thank year wave sausage worth useful legal winner thank year \
                            wave sausage worth useful legal winner thank year wave sausage worth title";

fn recovery(words: &str) -> Recovery {
    Recovery::parse(&SecretBytes::take(&mut words.as_bytes().to_vec()).unwrap()).unwrap()
}

fn canary_dek() -> Dek {
    Dek::take(&mut CANARY_DEK.clone())
}

/// The outcome of an unwrap, without the key.
async fn outcome(manager: &dyn KeyManager, key: &WrappedKey, context: WrapContext) -> Result<bool, KeyError> {
    manager.unwrap(key, context).await.map(|dek| dek.is_some())
}

/// Never yields a key; an error is well-behaved and holds no secret.
async fn assert_refused(manager: &dyn KeyManager, key: &WrappedKey, what: &str) {
    let name = manager.slot_type().name();
    match outcome(manager, key, CONTEXT).await {
        Ok(fits) => assert!(!fits, "{name}: {what} yields a key"),
        Err(error) => {
            let quiet = matches!(error, KeyError::Malformed(_) | KeyError::CostTooHigh { .. });
            assert!(quiet, "{name}: {what}: {error}");
            let told = format!("{error} {error:?}");
            assert!(!told.contains(CANARY), "{name}: {what} leaks: {told}");
        }
    }
}

async fn assert_malformed(manager: &dyn KeyManager, key: &WrappedKey, what: &str) {
    let result = outcome(manager, key, CONTEXT).await;
    let name = manager.slot_type().name();
    assert!(matches!(result, Err(KeyError::Malformed(_))), "{name}: {what}: {result:?}");
}

#[tokio::test]
async fn what_was_wrapped_unwraps_to_the_same_key() {
    for Subject { right, .. } in subjects() {
        let dek = Dek::generate().unwrap();
        let key = wrap_tested(&*right, &dek, CONTEXT).await.unwrap();
        assert_eq!(key.slot_type, right.slot_type());
        assert!(right.unwrap(&key, CONTEXT).await.unwrap().unwrap().matches(&dek));
    }
}

#[tokio::test]
async fn a_keyslot_fits_its_bounds() {
    for Subject { right, .. } in subjects() {
        let WrappedKey { kek_uri, wrapped, private, .. } = right.wrap(&canary_dek(), CONTEXT).await.unwrap();
        assert!(kek_uri.len() <= KEK_URI_MAX && wrapped.len() <= WRAPPED_MAX && private.len() <= PRIVATE_MAX);
    }
}

#[tokio::test]
async fn a_keyslot_of_another_volume_epoch_or_suite_does_not_fit() {
    for Subject { right, .. } in subjects() {
        let key = right.wrap(&canary_dek(), CONTEXT).await.unwrap();
        let mut volume = CONTEXT.volume;
        volume[15] ^= 1;
        for context in [
            WrapContext { volume, ..CONTEXT },
            WrapContext { epoch: CONTEXT.epoch + 1, ..CONTEXT },
            WrapContext { suite: CONTEXT.suite + 1, ..CONTEXT },
        ] {
            assert!(
                !outcome(&*right, &key, context).await.unwrap(),
                "{}: {context:?}",
                right.slot_type().name()
            );
        }
    }
}

#[tokio::test]
async fn a_wrong_secret_does_not_fit_and_is_no_error() {
    for Subject { right, wrong } in subjects() {
        let key = right.wrap(&canary_dek(), CONTEXT).await.unwrap();
        assert!(!outcome(&*wrong, &key, CONTEXT).await.unwrap(), "{}", right.slot_type().name());
    }
}

#[tokio::test]
async fn a_keyslot_of_another_type_is_left_to_others() {
    let subjects = subjects();
    for Subject { right, .. } in &subjects {
        for other in &subjects {
            if other.right.slot_type() == right.slot_type() {
                continue;
            }
            let key = other.right.wrap(&canary_dek(), CONTEXT).await.unwrap();
            assert!(!outcome(&**right, &key, CONTEXT).await.unwrap());
            assert!(matches!(right.describe(&key), Err(KeyError::Malformed(_))));
            // Relabelled, it must not open either.
            let relabelled = WrappedKey { slot_type: right.slot_type(), ..key };
            assert_refused(&**right, &relabelled, "a relabelled keyslot").await;
        }
    }
}

#[tokio::test]
async fn one_flipped_byte_anywhere_never_yields_a_key() {
    for Subject { right, .. } in subjects() {
        let key = right.wrap(&canary_dek(), CONTEXT).await.unwrap();
        for mask in [0x01, 0x80] {
            for at in 0..key.wrapped.len() {
                let mut changed = key.clone();
                changed.wrapped[at] ^= mask;
                assert_refused(&*right, &changed, &format!("wrapped byte {at} ^ {mask:#x}")).await;
            }
            for at in 0..key.private.len() {
                let mut changed = key.clone();
                changed.private[at] ^= mask;
                assert_refused(&*right, &changed, &format!("private byte {at} ^ {mask:#x}")).await;
            }
        }
        for at in 0..key.kek_uri.len() {
            let mut uri = key.kek_uri.clone().into_bytes();
            uri[at] ^= 1;
            let changed = WrappedKey { kek_uri: String::from_utf8(uri).unwrap(), ..key.clone() };
            assert_refused(&*right, &changed, &format!("uri byte {at}")).await;
        }
        let changed = WrappedKey { kek_uri: format!("{}x", key.kek_uri), ..key.clone() };
        assert_refused(&*right, &changed, "a longer uri").await;
    }
}

#[tokio::test]
async fn truncated_and_oversize_keyslots_are_malformed() {
    for Subject { right, .. } in subjects() {
        let key = right.wrap(&canary_dek(), CONTEXT).await.unwrap();
        for len in (0..key.wrapped.len()).chain([key.wrapped.len() + 1, WRAPPED_MAX, 1 << 20]) {
            let mut changed = key.clone();
            changed.wrapped.resize(len, 0);
            assert_malformed(&*right, &changed, &format!("{len} wrapped bytes")).await;
        }
        for len in (0..key.private.len()).chain([key.private.len() + 1, PRIVATE_MAX, 1 << 20]) {
            let mut changed = key.clone();
            changed.private.resize(len, 0);
            assert_malformed(&*right, &changed, &format!("{len} private bytes")).await;
            let described = right.describe(&changed);
            assert!(matches!(described, Err(KeyError::Malformed(_))), "{len} private bytes");
        }
    }
}

#[tokio::test]
async fn two_wraps_of_one_key_differ() {
    for Subject { right, .. } in subjects() {
        let one = right.wrap(&canary_dek(), CONTEXT).await.unwrap();
        let two = right.wrap(&canary_dek(), CONTEXT).await.unwrap();
        assert_ne!(one.wrapped, two.wrapped);
        assert_ne!(one.wrapped[..12], two.wrapped[..12], "{}: a nonce repeats", right.slot_type().name());
    }
}

#[tokio::test]
async fn the_registry_describes_every_keyslot_as_its_manager_does() {
    let registry = Registry::built_in();
    for Subject { right, .. } in subjects() {
        let key = right.wrap(&canary_dek(), CONTEXT).await.unwrap();
        assert_eq!(registry.describe(&key).unwrap(), right.describe(&key).unwrap());
    }
}

#[tokio::test]
async fn neither_keyslots_nor_descriptions_hold_secrets() {
    for Subject { right, .. } in subjects() {
        let key = right.wrap(&canary_dek(), CONTEXT).await.unwrap();
        let text = right.describe(&key).unwrap().text;
        assert!(!text.contains(CANARY) && !text.contains("winner"), "{text}");
        assert!(text.len() < 80 && !text.contains('\n'), "one short line: {text}");
        // Eight bytes of a secret in a row in a keyslot are no accident.
        let WrappedKey { kek_uri, wrapped, private, .. } = &key;
        let recovery_entropy = [0x7f; 32];
        for stored in [kek_uri.as_bytes(), wrapped, private] {
            for secret in [&CANARY_DEK[..], &CANARY_SECRET, &recovery_entropy] {
                assert!(!stored.windows(8).any(|run| secret.windows(8).any(|other| other == run)));
            }
        }
    }
}

#[tokio::test]
async fn what_is_the_users_own_secret_is_neither_rotated_nor_destroyed() {
    for Subject { right, .. } in subjects() {
        let key = right.wrap(&canary_dek(), CONTEXT).await.unwrap();
        assert!(matches!(right.rotate().await, Err(KeyError::Unsupported(_))));
        assert!(matches!(right.destroy(&key).await, Err(KeyError::Unsupported(_))));
        assert!(outcome(&*right, &key, CONTEXT).await.unwrap(), "the keyslot still opens");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passphrases_unlock_side_by_side_without_harm() {
    let manager = passphrase(&CANARY_SECRET);
    let wrong = passphrase(b"wrong");
    let key = manager.wrap(&canary_dek(), CONTEXT).await.unwrap();
    let (one, two, three) = tokio::join!(
        manager.unwrap(&key, CONTEXT),
        manager.unwrap(&key, CONTEXT),
        wrong.unwrap(&key, CONTEXT)
    );
    assert!(one.unwrap().unwrap().matches(&canary_dek()) && two.unwrap().is_some());
    assert!(three.unwrap().is_none());
}

/// Any keyslot at all of any type.
fn any_key() -> impl Strategy<Value = WrappedKey> {
    let slot_type =
        prop_oneof![Just(SlotType::Passphrase), Just(SlotType::Keyfile), Just(SlotType::Recovery)];
    // Lengths and versions that are right come often, so that decoding gets past them.
    let wrapped =
        prop_oneof![prop::collection::vec(any::<u8>(), 60), prop::collection::vec(any::<u8>(), 0..1025)];
    let body = |len| prop::collection::vec(any::<u8>(), len);
    let private = prop_oneof![
        body(44).prop_map(|body| [vec![1], body].concat()),
        body(2).prop_map(|body| [vec![1], body].concat()),
        prop::collection::vec(any::<u8>(), 0..513),
    ];
    let kek_uri = prop_oneof![Just(String::new()), ".{0,64}"];
    (slot_type, kek_uri, wrapped, private).prop_map(|(slot_type, kek_uri, wrapped, private)| WrappedKey {
        slot_type,
        kek_uri,
        wrapped,
        private,
    })
}

proptest! {
    #[test]
    fn any_bytes_in_a_keyslot_are_refused_quietly(key in any_key()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        // A description may fail, but not panic and not be long.
        if let Ok(description) = Registry::built_in().describe(&key) {
            prop_assert!(description.text.len() < 80);
        }
        for Subject { right, .. } in subjects() {
            runtime.block_on(assert_refused(&*right, &key, "a keyslot of any bytes"));
        }
    }
}
