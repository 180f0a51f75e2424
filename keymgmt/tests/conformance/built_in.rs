//! Managers that keep nothing elsewhere: passphrase, keyfile, credential, recovery words.

use keymgmt::keyfile::Keyfile;
use keymgmt::manager::{KeyError, SlotType, WrappedKey};
use keymgmt::passphrase::{Argon2Cost, Passphrase};
use keymgmt::recovery::Recovery;
use keymgmt::registry::Registry;
use keymgmt::secret::{Secret32, SecretBytes};
use proptest::prelude::*;

use crate::suite::{CONTEXT, KekOf, Subject, assert_refused, canary_dek, keeps_the_contract};

/// Printable, so that a leak in a message is found.
pub(crate) const CANARY_SECRET: [u8; 32] = *b"CANARY-KEY-CANARY-KEY-CANARY-KEY";
const CANARY_WORDS: &str = "legal winner thank year wave sausage worth useful legal winner thank year \
                            wave sausage worth useful legal winner thank year wave sausage worth title";

fn other_secret() -> [u8; 32] {
    let mut other = CANARY_SECRET;
    other[0] ^= 1;
    other
}

fn passphrases() -> Subject {
    let (right, wrong) = (passphrase(&CANARY_SECRET), passphrase(&other_secret()));
    Subject { right: Box::new(right), wrong: Box::new(wrong), kek: KekOf::User }
}

fn keyfiles() -> Subject {
    let keyfile = |mut secret: [u8; 32]| Box::new(Keyfile::from_secret(Secret32::take(&mut secret)));
    Subject { right: keyfile(CANARY_SECRET), wrong: keyfile(other_secret()), kek: KekOf::User }
}

fn recoveries() -> Subject {
    let words = SecretBytes::take(&mut CANARY_WORDS.as_bytes().to_vec()).unwrap();
    let (right, wrong) = (Recovery::parse(&words).unwrap(), Recovery::generate().unwrap());
    Subject { right: Box::new(right), wrong: Box::new(wrong), kek: KekOf::User }
}

/// The cheapest cost that a new keyslot may have, and a ceiling just above it, so that a flipped bit in
/// the figures costs a test nothing.
fn passphrase(secret: &[u8]) -> Passphrase {
    let cost = Argon2Cost::new(Argon2Cost::MEMORY_KIB_MIN, 1, 1).unwrap();
    let ceiling = Argon2Cost::new(2 * Argon2Cost::MEMORY_KIB_MIN, 3, 3).unwrap();
    let secret = SecretBytes::take(&mut secret.to_vec()).unwrap();
    Passphrase::new(secret).unwrap().with_cost(cost).with_ceiling(ceiling)
}

#[tokio::test]
async fn a_passphrase_keeps_the_contract() {
    keeps_the_contract(&passphrases()).await;
}

#[tokio::test]
async fn a_keyfile_keeps_the_contract() {
    keeps_the_contract(&keyfiles()).await;
}

#[tokio::test]
async fn recovery_words_keep_the_contract() {
    keeps_the_contract(&recoveries()).await;
}

/// Of the user's own secrets every length but the right one is a malformed keyslot, not a wrong secret.
#[tokio::test]
async fn another_length_is_malformed_and_not_a_wrong_secret() {
    for subject in [passphrases(), keyfiles(), recoveries()] {
        let key = subject.right.wrap(&canary_dek(), CONTEXT).await.unwrap();
        let malformed = async |changed: WrappedKey| {
            let result = subject.right.unwrap(&changed, CONTEXT).await;
            matches!(result, Err(KeyError::Malformed(_)))
        };
        for len in [0, 1, key.wrapped.len() - 1, key.wrapped.len() + 1, 1 << 20] {
            let mut changed = key.clone();
            changed.wrapped.resize(len, 0);
            assert!(malformed(changed).await, "{len} wrapped bytes");
        }
        for len in [0, 1, key.private.len() - 1, key.private.len() + 1, 1 << 20] {
            let mut changed = key.clone();
            changed.private.resize(len, 0);
            assert!(matches!(subject.right.describe(&changed), Err(KeyError::Malformed(_))));
            assert!(malformed(changed).await, "{len} private bytes");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passphrases_unlock_side_by_side_without_harm() {
    use keymgmt::manager::KeyManager;
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
    let slot_type = prop_oneof![
        Just(SlotType::Passphrase),
        Just(SlotType::Keyfile),
        Just(SlotType::Recovery),
        any::<u8>().prop_map(SlotType::from_u8)
    ];
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
            prop_assert!(description.text.len() < 800);
        }
        for subject in [passphrases(), keyfiles(), recoveries()] {
            runtime.block_on(assert_refused(&subject, &key, CONTEXT, "a keyslot of any bytes"));
        }
    }
}
