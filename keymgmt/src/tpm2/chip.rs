//! What is asked of the TPM: a storage key, and objects sealed and unsealed under it.
//!
//! Every call makes its own connection and leaves nothing in the TPM: a TPM without a resource manager has
//! three places for objects, and the library gives back, when the connection is dropped, all that was loaded
//! through it. The storage key is made anew from the owner's seed each time and is the same each time (TCG
//! TPM 2.0 Library, part 1, §14). What is secret travels under parameter encryption in a session that is
//! salted with the storage key, so that nobody who listens between CPU and TPM learns it; and since the
//! keyslot names the storage key, nobody who answers in the TPM's place does.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use tss_esapi::Context;
use tss_esapi::attributes::{ObjectAttributesBuilder, SessionAttributesBuilder};
use tss_esapi::constants::SessionType;
use tss_esapi::handles::{KeyHandle, ObjectHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{
    Auth, Digest, EccPoint, EccScheme, KeyDerivationFunctionScheme, KeyedHashScheme, PcrSelectionList,
    PcrSlot, Private, Public, PublicBuilder, PublicEccParametersBuilder, PublicKeyedHashParameters,
    SensitiveData, SymmetricDefinition, SymmetricDefinitionObject,
};
use tss_esapi::tcti_ldr::TctiNameConf;

use super::failure::{Step, told};
use super::keyslot::{BLOB_MAX, Bank, Policy, Sealed, hex};
use crate::manager::KeyError;
use crate::secret::Secret32;

/// The session's cipher; every TPM 2.0 has it (TCG PC Client Platform TPM Profile).
const SESSION_CIPHER: SymmetricDefinition = SymmetricDefinition::AES_128_CFB;

/// One command at a time: most TPMs take one connection.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Where the TPM is.
#[derive(Clone, Debug)]
pub(crate) struct Tcti {
    name: TctiNameConf,
    /// For a TPM that is a device of the kernel.
    device: Option<PathBuf>,
}

impl Tcti {
    /// # Errors
    /// [`KeyError::Settings`].
    pub(crate) fn parse(text: &str) -> Result<Self, KeyError> {
        let device = text.strip_prefix("device:").map(PathBuf::from);
        // The library's own reader fills in what is missing and passes over what it does not know.
        let whole = match text.split_once(':') {
            Some(("device", path)) => path.starts_with('/'),
            Some(("swtpm" | "mssim", at)) => {
                let mut keys: Vec<_> =
                    at.split(',').filter_map(|pair| pair.split_once('=')).map(|(key, _)| key).collect();
                keys.sort_unstable();
                keys == ["host", "port"]
            }
            Some(("tabrmd", _)) => true,
            _ => false,
        };
        let name = whole.then(|| TctiNameConf::from_str(text).ok()).flatten();
        let name = name.ok_or_else(|| {
            KeyError::Settings(
                "tcti is device:PATH, tabrmd:, or swtpm: or mssim: with host=HOST,port=PORT".into(),
            )
        })?;
        Ok(Self { name, device })
    }

    /// The library tells only that it could not connect, so the usual reasons are looked for before.
    fn reachable(&self) -> Result<(), KeyError> {
        let Some(path) = &self.device else { return Ok(()) };
        let shown = path.display();
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::PermissionDenied => KeyError::Settings(format!(
                "no right to use {shown}: the service's user is to be in its group"
            )),
            _ => KeyError::Unreachable(format!("TPM {shown}: {error}")),
        };
        let kind = fs::metadata(path).map_err(failed)?.file_type();
        if !kind.is_char_device() {
            return Err(KeyError::Settings(format!("{shown} is not a TPM: it is no device")));
        }
        OpenOptions::new().read(true).write(true).open(path).map_err(failed).map(drop)
    }
}

/// A connection, and the storage key in it.
struct Chip {
    context: Context,
    storage: KeyHandle,
    parent: [u8; 32],
}

/// Seals a secret so that it opens under `policy` as it is now.
///
/// # Errors
/// Those of [`told`]; [`KeyError::Settings`] when the TPM does not keep these PCRs.
pub(crate) fn seal(
    tcti: &Tcti,
    policy: Policy,
    auth: Option<&Auth>,
    secret: &Secret32,
) -> Result<Sealed, KeyError> {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut chip = Chip::connect(tcti)?;
    chip.has_registers(&policy)?;
    let trial = chip.session(SessionType::Trial)?;
    let policy_digest = chip.apply(trial, &policy)?;
    let sensitive = SensitiveData::try_from(secret.expose().to_vec()).map_err(told(Step::Sealing))?;
    let public = sealed_public(&policy_digest, &[]).map_err(told(Step::Sealing))?;
    let session = chip.session(SessionType::Hmac)?;
    let storage = chip.storage;
    let auth = auth.cloned();
    let made = chip.context.execute_with_session(Some(session), |context| {
        context.create(storage, public, auth, Some(sensitive), None, None)
    });
    let made = made.map_err(told(Step::Sealing))?;
    let Public::KeyedHash { unique, .. } = &made.out_public else { return Err(nonsense("a sealed object")) };
    let unique: [u8; 32] = unique.value().try_into().map_err(|_| nonsense("a name"))?;
    let blob = made.out_private.value().to_vec();
    if blob.len() > BLOB_MAX {
        return Err(KeyError::Unsupported(format!(
            "the TPM's blob of {} bytes is longer than a keyslot has room for, {BLOB_MAX}",
            blob.len()
        )));
    }
    Ok(Sealed { parent: chip.parent, policy, policy_digest, unique, blob })
}

/// Opens what [`seal`] made. The library's own copies of the secret on the way are not wiped.
///
/// # Errors
/// [`KeyError::Denied`] when it is another TPM, or the PCRs are others than they were; [`KeyError::Settings`]
/// for a wrong PIN or none; those of [`told`].
pub(crate) fn unseal(tcti: &Tcti, sealed: &Sealed, auth: Option<&Auth>) -> Result<Secret32, KeyError> {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut chip = Chip::connect(tcti)?;
    if chip.parent != sealed.parent {
        return Err(KeyError::Denied(format!(
            "the keyslot was made with TPM {}, and this is {}: another TPM, or one that was cleared; use another \
             keyslot",
            hex(&sealed.parent[..4]),
            hex(&chip.parent[..4])
        )));
    }
    let opening = chip.session(SessionType::Policy)?;
    if chip.apply(opening, &sealed.policy)? != sealed.policy_digest {
        return Err(KeyError::Denied(format!(
            "the PCRs {} changed since the keyslot was made: firmware, boot loader or settings are others; use \
             another keyslot, then rotate --kek",
            sealed.policy.text()
        )));
    }
    // Asked only now: a keyslot that was changed to say so has another policy.
    if sealed.policy.pin && auth.is_none() {
        return Err(KeyError::Settings("the keyslot needs a PIN; the setting is pin".into()));
    }
    let session = chip.session(SessionType::Hmac)?;
    let public = sealed_public(&sealed.policy_digest, &sealed.unique).map_err(told(Step::Loading))?;
    let private = Private::try_from(sealed.blob.as_slice()).map_err(told(Step::Loading))?;
    let storage = chip.storage;
    let object = chip
        .context
        .execute_with_session(Some(session), |context| context.load(storage, private, public))
        .map(ObjectHandle::from)
        .map_err(told(Step::Loading))?;
    if let Some(auth) = auth {
        chip.context.tr_set_auth(object, auth.clone()).map_err(told(Step::Unsealing))?;
    }
    let sessions = (Some(opening), Some(session), None);
    let opened = chip.context.execute_with_sessions(sessions, |context| context.unseal(object));
    let opened = opened.map_err(told(Step::Unsealing))?;
    let bytes: &[u8; 32] = opened.value().try_into().map_err(|_| nonsense("a key of another length"))?;
    let Ok(secret) = Secret32::fill(|place| {
        place.copy_from_slice(bytes);
        Ok::<(), std::convert::Infallible>(())
    });
    Ok(secret)
}

/// Tells which TPM answers, and that it keeps the PCRs of a policy.
///
/// # Errors
/// Those of [`told`]; [`KeyError::Settings`] when the TPM does not keep these PCRs.
pub(crate) fn probe(tcti: &Tcti, policy: &Policy) -> Result<[u8; 32], KeyError> {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut chip = Chip::connect(tcti)?;
    chip.has_registers(policy)?;
    Ok(chip.parent)
}

impl Chip {
    fn connect(tcti: &Tcti) -> Result<Self, KeyError> {
        tcti.reachable()?;
        let mut context = Context::new(tcti.name.clone()).map_err(told(Step::Connecting))?;
        let public = storage_public().map_err(told(Step::Storage))?;
        let storage = context.execute_with_session(Some(AuthSession::Password), |context| {
            context.create_primary(Hierarchy::Owner, public, None, None, None, None)
        });
        let storage = storage.map_err(told(Step::Storage))?.key_handle;
        // The library computes it from the public area that the TPM sent: algorithm u16 ‖ digest.
        let name = context.tr_get_name(storage.into()).map_err(told(Step::Storage))?;
        match name.value() {
            [0x00, 0x0b, digest @ ..] if digest.len() == 32 => {
                let parent = digest.try_into().expect("32 bytes");
                Ok(Self { context, storage, parent })
            }
            _ => Err(nonsense("a name")),
        }
    }

    /// A session salted with the storage key: its parameters are encrypted where it is told to.
    fn session(&mut self, kind: SessionType) -> Result<AuthSession, KeyError> {
        let salt = (kind != SessionType::Trial).then_some(self.storage);
        let session = self
            .context
            .start_auth_session(salt, None, None, kind, SESSION_CIPHER, HashingAlgorithm::Sha256)
            .map_err(told(Step::Session))?
            .ok_or_else(|| nonsense("no session"))?;
        if kind == SessionType::Hmac {
            let attributes = SessionAttributesBuilder::new()
                .with_decrypt(true)
                .with_encrypt(true)
                .with_continue_session(true);
            let (attributes, mask) = attributes.build();
            self.context.tr_sess_set_attributes(session, attributes, mask).map_err(told(Step::Session))?;
        }
        Ok(session)
    }

    /// Applies a policy to a session, with the PCRs as they are, and tells its digest.
    fn apply(&mut self, session: AuthSession, policy: &Policy) -> Result<[u8; 32], KeyError> {
        let told = told(Step::Policy);
        let session = PolicySession::try_from(session).map_err(&told)?;
        let selection = selection(policy.bank, policy.registers()).map_err(&told)?;
        // No digest given: that of the current values is taken.
        self.context.policy_pcr(session, Digest::default(), selection).map_err(&told)?;
        if policy.pin {
            self.context.policy_auth_value(session).map_err(&told)?;
        }
        let digest = self.context.policy_get_digest(session).map_err(&told)?;
        digest.value().try_into().map_err(|_| nonsense("a digest"))
    }

    /// A bank that the TPM does not keep counts as empty, and a policy of it would be none.
    fn has_registers(&mut self, policy: &Policy) -> Result<(), KeyError> {
        for register in policy.registers() {
            let one = selection(policy.bank, std::iter::once(register)).map_err(told(Step::Policy))?;
            let (_, _, values) = self.context.pcr_read(one).map_err(told(Step::Policy))?;
            if values.len() != 1 {
                let text = policy.text();
                return Err(KeyError::Settings(format!("the TPM does not keep all PCRs of {text}")));
            }
        }
        Ok(())
    }
}

fn selection(bank: Bank, registers: impl Iterator<Item = u8>) -> tss_esapi::Result<PcrSelectionList> {
    let bank = match bank {
        Bank::Sha256 => HashingAlgorithm::Sha256,
        Bank::Sha384 => HashingAlgorithm::Sha384,
    };
    let slots: Vec<_> =
        registers.map(|register| PcrSlot::try_from(1_u32 << register)).collect::<Result<_, _>>()?;
    PcrSelectionList::builder().with_selection(bank, &slots).build()
}

/// The template of the storage key: the one of storage root keys (TCG TPM v2.0 Provisioning Guidance, §7.5.1),
/// ECC P-256, with nothing in its unique field.
fn storage_public() -> tss_esapi::Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(true)
        .with_decrypt(true)
        .build()?;
    let parameters = PublicEccParametersBuilder::new()
        .with_symmetric(SymmetricDefinitionObject::AES_128_CFB)
        .with_ecc_scheme(EccScheme::Null)
        .with_curve(EccCurve::NistP256)
        .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
        .with_is_decryption_key(true)
        .with_restricted(true)
        .build()?;
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(parameters)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

/// The public area of a sealed object. It opens by its policy only; a wrong PIN does not count towards the
/// lockout of the whole TPM, which others on this host depend on.
fn sealed_public(policy_digest: &[u8; 32], unique: &[u8]) -> tss_esapi::Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_no_da(true)
        .with_admin_with_policy(true)
        .build()?;
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::KeyedHash)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_auth_policy(Digest::try_from(policy_digest.as_slice())?)
        .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::Null))
        .with_keyed_hash_unique_identifier(Digest::try_from(unique)?)
        .build()
}

fn nonsense(what: &str) -> KeyError {
    KeyError::Untrusted(format!("the TPM answered {what} that no TPM answers"))
}
