//! KEKs sealed by this host's TPM 2.0: they open in this TPM only, and while the PCRs are as they were.
//!
//! Every wrap makes a fresh KEK and seals it, so every keyslot is a version of its own and there is nothing
//! to rotate but the keyslot itself. The sealed KEK lies in the keyslot. A TPM dies with its board and its
//! PCRs change with firmware and boot loader: there is to be a second keyslot always.
//!
//! Read `keyslot` for the bytes, `chip` for what is asked of the TPM.

mod chip;
mod failure;
pub(crate) mod keyslot;

use std::sync::atomic::{AtomicBool, Ordering};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tss_esapi::structures::Auth;

pub use self::keyslot::describe;

use self::chip::Tcti;
use self::keyslot::{Bank, PCR_COUNT, Policy, Sealed, hex};
use crate::blocking::Blocking;
use crate::manager::{
    BoxFuture, Health, KeyDescription, KeyError, KeyManager, SlotType, WrapContext, WrappedKey,
};
use crate::provider::{Bounds, Settings, optional_secret_source};
use crate::registry::{Opened, Opening};
use crate::secret::{Dek, Secret32, SecretBytes};
use crate::source::SecretSource;
use crate::stored;

/// The kernel's own resource manager.
const TCTI: &str = "device:/dev/tpmrm0";
/// The state of Secure Boot: stays as it is over updates of kernel and firmware.
const PCRS: [u8; 1] = [7];
/// Sets the PIN's hash apart from those of other programs.
const PIN_LABEL: &[u8] = b"sealbd tpm2 pin v1";
/// What calls are made into, for errors and the names of threads.
const DEVICE: &str = "TPM";

/// A `[provider.NAME]` of type `tpm2`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tpm2Settings {
    /// Where the TPM is; default: `device:/dev/tpmrm0`.
    tcti: Option<String>,
    /// Registers that new keyslots are bound to; default: 7.
    pcrs: Option<Vec<u8>>,
    /// The bank of the registers.
    #[serde(default)]
    bank: Bank,
    /// Where a PIN is that the TPM demands besides.
    #[serde(default, deserialize_with = "optional_secret_source")]
    pin: Option<SecretSource>,
}

impl Settings for Tpm2Settings {
    fn open(&self, key: Option<&str>, bounds: Bounds, opening: &mut Opening<'_, '_>) -> Opened {
        let Self { tcti, pcrs, bank, pin } = self;
        if key.is_some() {
            return Err(KeyError::Settings(
                "a TPM has no keys to choose from; it makes one per keyslot".into(),
            ));
        }
        let tcti = Tcti::parse(tcti.as_deref().unwrap_or(TCTI))?;
        let pcrs = pcrs.as_deref().unwrap_or(&PCRS);
        if pcrs.is_empty() || pcrs.iter().any(|pcr| *pcr >= PCR_COUNT) {
            return Err(KeyError::Settings("pcrs names at least one register of 0 to 23".into()));
        }
        let auth = pin.as_ref().map(|pin| read_pin(pin, opening)).transpose()?;
        let pcrs = pcrs.iter().fold(0, |bits, pcr| bits | 1_u32 << pcr);
        let policy = Policy { bank: *bank, pcrs, pin: auth.is_some() };
        let inner = Inner { tcti, policy, auth, pin_refused: AtomicBool::new(false) };
        Ok(Box::new(Tpm2(Blocking::new(inner, DEVICE, bounds.timeout))))
    }
}

fn read_pin(source: &SecretSource, opening: &mut Opening<'_, '_>) -> Result<Auth, KeyError> {
    let input = opening.reader.read(source, "PIN", opening.purpose)?;
    opening.warnings.extend(input.warning);
    auth(&input.secret)
}

/// The authorisation value of a PIN: as long as the TPM takes, and without zero bytes, which the TPM would
/// cut off at the end.
fn auth(pin: &SecretBytes) -> Result<Auth, KeyError> {
    let hash = Sha256::new().chain_update(PIN_LABEL).chain_update(pin.expose()).finalize();
    // 128 bits in 32 digits; the type wipes them.
    Auth::try_from(hex(&hash[..16]).into_bytes())
        .map_err(|_| KeyError::Unsupported("the TPM's library takes no PIN of 32 bytes".into()))
}

/// A key manager whose KEKs a TPM has sealed.
struct Tpm2(Blocking<Inner>);

struct Inner {
    tcti: Tcti,
    /// What new keyslots are bound to.
    policy: Policy,
    auth: Option<Auth>,
    /// A PIN that was wrong once is wrong.
    pin_refused: AtomicBool,
}

impl KeyManager for Tpm2 {
    fn slot_type(&self) -> SlotType {
        SlotType::Tpm2
    }

    fn wrap<'a>(&'a self, dek: &'a Dek, context: WrapContext) -> BoxFuture<'a, Result<WrappedKey, KeyError>> {
        Box::pin(async move {
            let (secret, sealed) = self.0.run(Inner::seal).await?;
            stored::wrap(&secret, dek, context, SlotType::Tpm2, sealed.uri(), &sealed.encode())
        })
    }

    fn unwrap<'a>(
        &'a self,
        key: &'a WrappedKey,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Option<Dek>, KeyError>> {
        Box::pin(async move {
            if key.slot_type != SlotType::Tpm2 {
                return Ok(None);
            }
            let sealed = Sealed::decode(key)?;
            let secret = self.0.run(move |inner| inner.unseal(&sealed)).await?;
            stored::unwrap(&secret, key, context)
        })
    }

    fn describe(&self, key: &WrappedKey) -> Result<KeyDescription, KeyError> {
        describe(key)
    }

    /// The next wrap makes a KEK of its own anyway.
    fn rotate<'a>(&'a self, current: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(async move { Sealed::decode(current).map(drop) })
    }

    fn destroy<'a>(&'a self, key: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(async move {
            Sealed::decode(key)?;
            Err(KeyError::Unsupported(
                "a sealed key lies in its keyslot: it is gone with the keyslot and with every copy of the header; \
                 clearing the TPM (tpm2_clear) makes all that it sealed useless"
                    .into(),
            ))
        })
    }

    fn probe(&self) -> BoxFuture<'_, Result<Health, KeyError>> {
        Box::pin(self.0.run(Inner::probe))
    }
}

impl Inner {
    fn seal(&self) -> Result<(Secret32, Sealed), KeyError> {
        let secret = Secret32::generate()?;
        let sealed = chip::seal(&self.tcti, self.policy, self.auth.as_ref(), &secret)?;
        Ok((secret, sealed))
    }

    fn unseal(&self, sealed: &Sealed) -> Result<Secret32, KeyError> {
        let auth = if sealed.policy.pin { self.auth.as_ref() } else { None };
        if auth.is_some() && self.pin_refused.load(Ordering::Relaxed) {
            return Err(KeyError::Settings("the TPM refused this PIN before; it is not tried again".into()));
        }
        chip::unseal(&self.tcti, sealed, auth).inspect_err(|error| {
            if auth.is_some() && matches!(error, KeyError::Settings(_)) {
                self.pin_refused.store(true, Ordering::Relaxed);
            }
        })
    }

    fn probe(&self) -> Result<Health, KeyError> {
        let parent = chip::probe(&self.tcti, &self.policy)?;
        let text = format!("TPM {}, PCRs {}", hex(&parent[..4]), self.policy.text());
        Ok(Health { text, credential_expires: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Provider;
    use crate::source::{NoPrompt, Purpose, SecretReader};

    fn opened(table: &str, key: Option<&str>) -> Result<(), String> {
        let table = format!("type = 'tpm2'\n{table}").parse().unwrap();
        let provider = Provider::parse("tpm", table).map_err(|error| error.to_string())?;
        let mut prompter = NoPrompt;
        let mut reader = SecretReader::with_credentials(&mut prompter, None);
        let mut opening = Opening::new(&mut reader, Purpose::Unlock);
        provider.open(key, &mut opening).map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn settings_are_read_strictly() {
        opened("", None).unwrap();
        opened("tcti = 'swtpm:host=127.0.0.1,port=2321'\npcrs = [0, 7, 23]\nbank = 'sha384'", None).unwrap();
        for tcti in ["cmd:rm -rf /", "device", "device:", "device:tpm0", "swtpm:path=/x", ""] {
            let error = opened(&format!("tcti = '{tcti}'"), None).unwrap_err();
            assert!(error.contains("tcti is device:PATH"), "{tcti}: {error}");
        }
        for pcrs in ["[]", "[24]", "[0, 255]"] {
            assert!(opened(&format!("pcrs = {pcrs}"), None).unwrap_err().contains("0 to 23"), "{pcrs}");
        }
        assert!(opened("pcrs = [256]", None).is_err());
        assert!(opened("bank = 'sha1'", None).unwrap_err().contains("variant"));
        assert!(opened("handle = 1", None).unwrap_err().contains("handle"));
        assert!(opened("", Some("key")).unwrap_err().contains("no keys to choose from"));
    }

    #[test]
    fn a_pin_becomes_a_value_that_no_tpm_cuts() {
        let value = auth(&SecretBytes::take(&mut b"CANARY-PIN".to_vec()).unwrap()).unwrap();
        assert_eq!(value.value().len(), 32);
        assert!(value.value().iter().all(u8::is_ascii_hexdigit));
    }
}
