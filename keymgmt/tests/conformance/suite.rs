//! The checks that every manager passes.

use keymgmt::manager::{
    BoxFuture, KEK_URI_MAX, KeyError, KeyManager, PRIVATE_MAX, SlotType, WRAPPED_MAX, WrapContext, WrappedKey,
};
use keymgmt::registry::Registry;
use keymgmt::secret::Dek;
use keymgmt::verify::wrap_tested;

/// The volume of most checks.
pub(crate) const CONTEXT: WrapContext = WrapContext { volume: *b"volume of a test", epoch: 7, suite: 1 };

/// Bytes that no description, error or keyslot may hold. Printable, so that a leak in a message is found.
pub(crate) const CANARY_DEK: [u8; 32] = *b"CANARY-DEK-CANARY-DEK-CANARY-DEK";
/// What a leak would have in common with it and with every secret of a subject.
const CANARY: &str = "CANARY";

/// A manager under test.
pub(crate) struct Subject {
    /// With its right secret or credentials.
    pub(crate) right: Box<dyn KeyManager>,
    /// Of the same kind, with a key of its own that is another one.
    pub(crate) wrong: Box<dyn KeyManager>,
    /// Who keeps the KEK.
    pub(crate) kek: KekOf,
}

/// Who keeps the KEK.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KekOf {
    /// The user: it is neither rotated nor destroyed by us, and no service can refuse.
    User,
    /// A manager that makes new versions, and destroys one version alone.
    Manager,
    /// A manager that makes new versions and cannot destroy one alone.
    #[cfg_attr(not(feature = "vault"), allow(dead_code, reason = "Transit is one"))]
    ManagerThatKeepsVersions,
}

/// What an error means, without its words.
#[cfg(any(feature = "kmip", feature = "vault"))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Unreachable,
    Denied,
    Untrusted,
    Settings,
    Unsupported,
    Other,
}

/// The kind of an error.
#[cfg(any(feature = "kmip", feature = "vault"))]
pub(crate) fn kind(error: &KeyError) -> Kind {
    match error {
        KeyError::Unreachable(_) => Kind::Unreachable,
        KeyError::Denied(_) => Kind::Denied,
        KeyError::Untrusted(_) => Kind::Untrusted,
        KeyError::Settings(_) => Kind::Settings,
        KeyError::Unsupported(_) => Kind::Unsupported,
        _ => Kind::Other,
    }
}

type Check = for<'s> fn(&'s Subject) -> BoxFuture<'s, ()>;

/// Every check by name.
const CHECKS: [(&str, Check); 14] = [
    ("what was wrapped unwraps to the same key", |s| Box::pin(round_trip(s))),
    ("a keyslot fits its bounds", |s| Box::pin(bounds(s))),
    ("a keyslot of another volume, epoch or suite does not fit", |s| Box::pin(other_context(s))),
    ("the keyslots of two volumes cannot be swapped", |s| Box::pin(swapped(s))),
    ("a wrong secret does not fit", |s| Box::pin(wrong_secret(s))),
    ("a keyslot of another type is left to others", |s| Box::pin(other_type(s))),
    ("one flipped byte anywhere never yields a key", |s| Box::pin(flipped(s))),
    ("a truncated or oversize keyslot is refused", |s| Box::pin(resized(s))),
    ("garbage in a keyslot is refused quietly", |s| Box::pin(garbage(s))),
    ("two wraps of one key differ", |s| Box::pin(two_wraps(s))),
    ("the registry describes a keyslot as its manager does", |s| Box::pin(described(s))),
    ("neither keyslots nor descriptions hold secrets", |s| Box::pin(no_secrets(s))),
    ("rotation makes a new version and the old one still unwraps", |s| Box::pin(rotation(s))),
    ("a destroyed version unwraps nothing, and only that one is gone", |s| Box::pin(destruction(s))),
];

/// Passes a subject through every check and tells how many there are.
pub(crate) async fn keeps_the_contract(subject: &Subject) -> usize {
    let name = subject.right.slot_type().name();
    for (number, (claim, check)) in (1..).zip(CHECKS) {
        // Shown when the test fails: the last line names the check.
        println!("{name} {number}/{}: {claim}", CHECKS.len());
        check(subject).await;
    }
    CHECKS.len()
}

pub(crate) fn canary_dek() -> Dek {
    Dek::take(&mut CANARY_DEK.clone())
}

/// The outcome of an unwrap, without the key.
pub(crate) async fn outcome(
    manager: &dyn KeyManager,
    key: &WrappedKey,
    context: WrapContext,
) -> Result<bool, KeyError> {
    manager.unwrap(key, context).await.map(|dek| dek.is_some())
}

/// Never yields a key; an error is one that a changed keyslot may cause, and holds no secret.
pub(crate) async fn assert_refused(subject: &Subject, key: &WrappedKey, context: WrapContext, what: &str) {
    let name = subject.right.slot_type().name();
    match outcome(&*subject.right, key, context).await {
        Ok(fits) => assert!(!fits, "{name}: {what} yields a key"),
        Err(error) => {
            let by_content = matches!(error, KeyError::Malformed(_) | KeyError::CostTooHigh { .. });
            // A service that is asked for a key of another name, or with another blob, says no.
            let by_service = subject.kek != KekOf::User && matches!(error, KeyError::Denied(_));
            assert!(by_content || by_service, "{name}: {what}: {error}");
            let told = format!("{error} {error:?}");
            assert!(!told.contains(CANARY), "{name}: {what} leaks: {told}");
        }
    }
}

async fn round_trip(Subject { right, .. }: &Subject) {
    let dek = Dek::generate().unwrap();
    let key = wrap_tested(&**right, &dek, CONTEXT).await.unwrap();
    assert_eq!(key.slot_type, right.slot_type());
    assert!(right.unwrap(&key, CONTEXT).await.unwrap().unwrap().matches(&dek));
}

async fn bounds(Subject { right, .. }: &Subject) {
    let WrappedKey { kek_uri, wrapped, private, .. } = right.wrap(&canary_dek(), CONTEXT).await.unwrap();
    assert!(kek_uri.len() <= KEK_URI_MAX && wrapped.len() <= WRAPPED_MAX && private.len() <= PRIVATE_MAX);
}

fn other_contexts() -> [WrapContext; 3] {
    let mut volume = CONTEXT.volume;
    volume[15] ^= 1;
    [
        WrapContext { volume, ..CONTEXT },
        WrapContext { epoch: CONTEXT.epoch + 1, ..CONTEXT },
        WrapContext { suite: CONTEXT.suite + 1, ..CONTEXT },
    ]
}

async fn other_context(subject: &Subject) {
    let key = subject.right.wrap(&canary_dek(), CONTEXT).await.unwrap();
    for context in other_contexts() {
        assert_refused(subject, &key, context, &format!("{context:?}")).await;
    }
}

async fn swapped(subject: &Subject) {
    let [other, ..] = other_contexts();
    let one = subject.right.wrap(&canary_dek(), CONTEXT).await.unwrap();
    let two = subject.right.wrap(&Dek::generate().unwrap(), other).await.unwrap();
    assert_refused(subject, &one, other, "the first volume's keyslot in the second").await;
    assert_refused(subject, &two, CONTEXT, "the second volume's keyslot in the first").await;
    // Parts of one in the other.
    let mixed = WrappedKey { wrapped: two.wrapped.clone(), ..one.clone() };
    assert_refused(subject, &mixed, CONTEXT, "a blob of the second volume").await;
    if one.private != two.private {
        let mixed = WrappedKey { private: two.private.clone(), ..one.clone() };
        assert_refused(subject, &mixed, CONTEXT, "a private part of the second volume").await;
    }
    if one.kek_uri != two.kek_uri {
        let mixed = WrappedKey { kek_uri: two.kek_uri, ..one };
        assert_refused(subject, &mixed, CONTEXT, "a key uri of the second volume").await;
    }
}

async fn wrong_secret(subject: &Subject) {
    let key = subject.right.wrap(&canary_dek(), CONTEXT).await.unwrap();
    match outcome(&*subject.wrong, &key, CONTEXT).await {
        Ok(fits) => assert!(!fits),
        Err(KeyError::Denied(_)) if subject.kek != KekOf::User => {}
        Err(error) => panic!("{error}"),
    }
}

async fn other_type(subject: &Subject) {
    for slot_type in [SlotType::Keyfile, SlotType::Recovery, SlotType::Exec, SlotType::Unknown(77)] {
        if slot_type == subject.right.slot_type() {
            continue;
        }
        let key = subject.right.wrap(&canary_dek(), CONTEXT).await.unwrap();
        let foreign = WrappedKey { slot_type, ..key };
        assert!(!outcome(&*subject.right, &foreign, CONTEXT).await.unwrap());
        assert!(matches!(subject.right.describe(&foreign), Err(KeyError::Malformed(_))));
    }
}

async fn flipped(subject: &Subject) {
    let key = subject.right.wrap(&canary_dek(), CONTEXT).await.unwrap();
    for mask in [0x01, 0x80] {
        for at in 0..key.wrapped.len() {
            let mut changed = key.clone();
            changed.wrapped[at] ^= mask;
            assert_refused(subject, &changed, CONTEXT, &format!("wrapped byte {at} ^ {mask:#x}")).await;
        }
        for at in 0..key.private.len() {
            let mut changed = key.clone();
            changed.private[at] ^= mask;
            assert_refused(subject, &changed, CONTEXT, &format!("private byte {at} ^ {mask:#x}")).await;
        }
    }
    for at in 0..key.kek_uri.len() {
        let mut uri = key.kek_uri.clone().into_bytes();
        uri[at] ^= 1;
        let changed = WrappedKey { kek_uri: String::from_utf8(uri).unwrap(), ..key.clone() };
        assert_refused(subject, &changed, CONTEXT, &format!("uri byte {at}")).await;
    }
    let changed = WrappedKey { kek_uri: format!("{}x", key.kek_uri), ..key };
    assert_refused(subject, &changed, CONTEXT, "a longer uri").await;
}

async fn resized(subject: &Subject) {
    let key = subject.right.wrap(&canary_dek(), CONTEXT).await.unwrap();
    for len in (0..key.wrapped.len()).chain([key.wrapped.len() + 1, WRAPPED_MAX, 1 << 20]) {
        let mut changed = key.clone();
        changed.wrapped.resize(len, 0);
        assert_refused(subject, &changed, CONTEXT, &format!("{len} wrapped bytes")).await;
    }
    for len in (0..key.private.len()).chain([key.private.len() + 1, PRIVATE_MAX, 1 << 20]) {
        let mut changed = key.clone();
        changed.private.resize(len, 0);
        assert_refused(subject, &changed, CONTEXT, &format!("{len} private bytes")).await;
        // A length that no keyslot has must not be described either; within bounds it may be.
        if len > PRIVATE_MAX {
            assert!(matches!(subject.right.describe(&changed), Err(KeyError::Malformed(_))), "{len}");
        }
    }
}

async fn garbage(subject: &Subject) {
    let key = subject.right.wrap(&canary_dek(), CONTEXT).await.unwrap();
    let noise = |len: usize, seed: u8| {
        (0..len).map(|at| (at * 167).to_le_bytes()[0] ^ seed.wrapping_mul(29)).collect()
    };
    for seed in 0..8 {
        let wrapped: Vec<u8> = noise(key.wrapped.len(), seed);
        let private: Vec<u8> = noise(key.private.len(), seed);
        assert_refused(subject, &WrappedKey { wrapped, ..key.clone() }, CONTEXT, "noise as blob").await;
        if !private.is_empty() {
            assert_refused(subject, &WrappedKey { private, ..key.clone() }, CONTEXT, "noise as private")
                .await;
        }
    }
    for uri in
        ["x", "../../../etc/passwd", "http://127.0.0.1:1/", "\u{1b}[31m", "a\r\nHost: b", &"u".repeat(256)]
    {
        let changed = WrappedKey { kek_uri: uri.to_owned(), ..key.clone() };
        assert_refused(subject, &changed, CONTEXT, &format!("uri {uri:?}")).await;
    }
}

async fn two_wraps(Subject { right, .. }: &Subject) {
    let one = right.wrap(&canary_dek(), CONTEXT).await.unwrap();
    let two = right.wrap(&canary_dek(), CONTEXT).await.unwrap();
    assert_ne!(one.wrapped, two.wrapped, "{}", right.slot_type().name());
}

async fn described(Subject { right, .. }: &Subject) {
    let key = right.wrap(&canary_dek(), CONTEXT).await.unwrap();
    assert_eq!(Registry::built_in().describe(&key).unwrap(), right.describe(&key).unwrap());
}

async fn no_secrets(Subject { right, .. }: &Subject) {
    let key = right.wrap(&canary_dek(), CONTEXT).await.unwrap();
    let text = right.describe(&key).unwrap().text;
    assert!(!text.contains(CANARY) && !text.contains("winner"), "{text}");
    assert!(text.len() < 200 && !text.contains(char::is_control), "one short line: {text}");
    // Eight bytes of a secret in a row in a keyslot are no accident.
    let WrappedKey { kek_uri, wrapped, private, .. } = &key;
    let recovery_entropy = [0x7f; 32];
    for stored in [kek_uri.as_bytes(), wrapped, private] {
        for secret in [&CANARY_DEK[..], super::built_in::CANARY_SECRET.as_slice(), &recovery_entropy] {
            assert!(!stored.windows(8).any(|run| secret.windows(8).any(|other| other == run)));
        }
    }
}

/// What names the version that wrapped a key.
fn version(subject: &Subject, key: &WrappedKey) -> (Option<String>, Option<String>) {
    let described = subject.right.describe(key).unwrap();
    (described.key_id, described.version)
}

async fn rotation(subject: &Subject) {
    let old = subject.right.wrap(&canary_dek(), CONTEXT).await.unwrap();
    if subject.kek == KekOf::User {
        assert!(matches!(subject.right.rotate(&old).await, Err(KeyError::Unsupported(_))));
        assert!(outcome(&*subject.right, &old, CONTEXT).await.unwrap(), "the keyslot still opens");
        return;
    }
    subject.right.rotate(&old).await.unwrap();
    let new = wrap_tested(&*subject.right, &canary_dek(), CONTEXT).await.unwrap();
    assert_ne!(version(subject, &old), version(subject, &new), "another version, told by key id or version");
    assert!(outcome(&*subject.right, &old, CONTEXT).await.unwrap(), "the old version still unwraps");
}

async fn destruction(subject: &Subject) {
    let old = subject.right.wrap(&canary_dek(), CONTEXT).await.unwrap();
    if subject.kek != KekOf::Manager {
        assert!(matches!(subject.right.destroy(&old).await, Err(KeyError::Unsupported(_))));
        assert!(outcome(&*subject.right, &old, CONTEXT).await.unwrap(), "the keyslot still opens");
        return;
    }
    subject.right.rotate(&old).await.unwrap();
    let new = subject.right.wrap(&canary_dek(), CONTEXT).await.unwrap();
    subject.right.destroy(&old).await.unwrap();
    let result = outcome(&*subject.right, &old, CONTEXT).await;
    assert!(matches!(result, Err(KeyError::Denied(_))), "{result:?}");
    subject.right.destroy(&old).await.unwrap();
    assert!(outcome(&*subject.right, &new, CONTEXT).await.unwrap(), "the new version is untouched");
}
