//! Checks that managers and their callers share: a keyslot's type and uri, and that a new wrap opens.

use crate::manager::{KeyError, KeyManager, SlotType, WrapContext, WrappedKey};
use crate::secret::Dek;
use crate::wrap::WRAPPED_LEN;

/// Wraps a DEK and proves that the result unwraps to the same key before it is returned. Whoever
/// writes a keyslot calls this and not [`KeyManager::wrap`]: a keyslot that does not open must
/// never be reported as made.
///
/// # Errors
/// Those of wrap and unwrap; [`KeyError::Denied`] when what was wrapped does not unwrap to the same key.
pub async fn wrap_tested(
    manager: &dyn KeyManager,
    dek: &Dek,
    context: WrapContext,
) -> Result<WrappedKey, KeyError> {
    let wrapped = manager.wrap(dek, context).await?;
    match manager.unwrap(&wrapped, context).await? {
        Some(unwrapped) if unwrapped.matches(dek) => Ok(wrapped),
        _ => Err(KeyError::Denied(format!(
            "the new {} keyslot does not open again with its own key; nothing was stored",
            wrapped.slot_type.name()
        ))),
    }
}

/// Refuses a keyslot of another type.
pub(crate) fn is_type(key: &WrappedKey, expected: SlotType) -> Result<(), KeyError> {
    if key.slot_type == expected {
        return Ok(());
    }
    Err(KeyError::Malformed(format!("a {} keyslot, not {}", key.slot_type.name(), expected.name())))
}

/// Refuses a key uri where the manager never writes one: nothing in a keyslot may be changed unseen.
pub(crate) fn no_uri(key: &WrappedKey) -> Result<(), KeyError> {
    if key.kek_uri.is_empty() {
        return Ok(());
    }
    Err(KeyError::Malformed(format!("a {} keyslot names no key uri", key.slot_type.name())))
}

/// Refuses a wrapped key that no key can unwrap, before a slow derivation is spent on it.
pub(crate) fn wrapped_len(key: &WrappedKey) -> Result<(), KeyError> {
    if key.wrapped.len() == WRAPPED_LEN {
        return Ok(());
    }
    Err(KeyError::Malformed(format!("the wrapped key is {} bytes, not {WRAPPED_LEN}", key.wrapped.len())))
}

/// The answer to `rotate` and `destroy` where the KEK is the user's own secret.
pub(crate) fn own_secret(what: &str, verb: &str) -> KeyError {
    KeyError::Unsupported(format!(
        "{what} cannot be {verb} by sealbd: it is yours; add a new keyslot and remove the old one"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::tests::CONTEXT;
    use crate::keyfile::Keyfile;
    use crate::manager::{BoxFuture, KeyDescription};
    use crate::secret::Secret32;

    /// Wraps another key than it was given.
    struct Liar(Keyfile);

    impl KeyManager for Liar {
        fn slot_type(&self) -> SlotType {
            self.0.slot_type()
        }

        fn wrap<'a>(
            &'a self,
            _dek: &'a Dek,
            context: WrapContext,
        ) -> BoxFuture<'a, Result<WrappedKey, KeyError>> {
            Box::pin(async move { self.0.wrap(&Dek::generate()?, context).await })
        }

        fn unwrap<'a>(
            &'a self,
            key: &'a WrappedKey,
            context: WrapContext,
        ) -> BoxFuture<'a, Result<Option<Dek>, KeyError>> {
            self.0.unwrap(key, context)
        }

        fn describe(&self, key: &WrappedKey) -> Result<KeyDescription, KeyError> {
            self.0.describe(key)
        }

        fn rotate<'a>(&'a self, current: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
            self.0.rotate(current)
        }

        fn destroy<'a>(&'a self, key: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
            self.0.destroy(key)
        }
    }

    #[tokio::test]
    async fn a_wrap_that_opens_to_another_key_is_not_reported_as_made() {
        let keyfile = Keyfile::from_secret(Secret32::generate().unwrap());
        let dek = Dek::generate().unwrap();
        wrap_tested(&keyfile, &dek, CONTEXT).await.unwrap();
        let error = wrap_tested(&Liar(keyfile), &dek, CONTEXT).await.unwrap_err();
        assert!(matches!(error, KeyError::Denied(_)), "{error}");
    }
}
