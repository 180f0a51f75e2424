//! A key manager whose key encrypts nothing: the simulation is not about keys.

use keymgmt::manager::{BoxFuture, KeyDescription, KeyError, KeyManager, SlotType, WrapContext, WrappedKey};
use keymgmt::secret::Dek;

/// See the module.
pub(crate) struct OpenKey;

fn unsupported<'a, T>() -> BoxFuture<'a, Result<T, KeyError>> {
    Box::pin(async { Err(KeyError::Unsupported("simulated".into())) })
}

impl KeyManager for OpenKey {
    fn slot_type(&self) -> SlotType {
        SlotType::Keyfile
    }

    fn wrap<'a>(&'a self, dek: &'a Dek, _: WrapContext) -> BoxFuture<'a, Result<WrappedKey, KeyError>> {
        let (wrapped, private) = (dek.0.expose().to_vec(), Vec::new());
        let key = WrappedKey { slot_type: SlotType::Keyfile, kek_uri: String::new(), wrapped, private };
        Box::pin(async move { Ok(key) })
    }

    fn unwrap<'a>(
        &'a self,
        key: &'a WrappedKey,
        _: WrapContext,
    ) -> BoxFuture<'a, Result<Option<Dek>, KeyError>> {
        let bytes: Result<[u8; 32], _> = key.wrapped.as_slice().try_into();
        let dek = bytes.ok().map(|mut bytes| Dek::take(&mut bytes));
        Box::pin(async move { Ok(dek) })
    }

    fn describe(&self, _: &WrappedKey) -> Result<KeyDescription, KeyError> {
        Ok(KeyDescription::own("simulated".into()))
    }

    fn rotate<'a>(&'a self, _: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        unsupported()
    }

    fn destroy<'a>(&'a self, _: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        unsupported()
    }
}
