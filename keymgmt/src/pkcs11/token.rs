//! Modules, tokens and sessions: everything between a path and a session that is logged in.
//!
//! A module is loaded and initialised once per process and never given back: PKCS#11 has one state per
//! process, and other managers of this process may be using it. A session lives for one operation; when the
//! last one is closed the token forgets the login. All calls block.
//!
//! Tokens count wrong PINs and lock. So a login is never tried again: a PIN that a token refused is
//! remembered for the life of the process, and the last try of a token is never taken.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::{MechanismInfo, MechanismType};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::RawAuthPin;

use super::failure::{brief, is_gone, told};
use super::keyslot::{printable, printable_serial};
use crate::manager::KeyError;
use crate::secret::SecretBytes;

/// Most tokens of one module that are looked at; modules of hardware modules show one per partition.
const TOKENS_MAX: usize = 256;

/// The modules of this process.
static MODULES: Mutex<BTreeMap<PathBuf, Arc<Module>>> = Mutex::new(BTreeMap::new());

/// Which token, and what opens it.
pub(crate) struct Access {
    /// Path of the module.
    pub(crate) module: PathBuf,
    /// Label of the token.
    pub(crate) token: Option<String>,
    /// Serial number of the token.
    pub(crate) serial: Option<String>,
    /// The PIN; none for a token that asks for it by itself, or asks for none.
    pub(crate) pin: Option<SecretBytes>,
}

/// What a session may change in the token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rights {
    Read,
    Write,
}

/// A module that is loaded and initialised.
struct Module {
    library: Pkcs11,
    /// Held while a session is opened, logged in or closed: whether a login is needed depends on whether
    /// another session was the last. Keeps the PINs that a token refused, by its serial number.
    refused: Mutex<Vec<(String, SecretBytes)>>,
    /// Whoever changes objects of the token is alone: SoftHSM fails to make a key while another thread looks
    /// for one.
    objects: RwLock<()>,
}

/// A session that is logged in; closed on drop.
pub(crate) struct OpenToken {
    session: Option<Session>,
    module: Arc<Module>,
    slot: Slot,
    info: TokenInfo,
}

impl Access {
    /// Opens a session with the token, logs in and does `work` with it.
    ///
    /// # Errors
    /// [`KeyError::Unreachable`] when the token is not there, [`KeyError::Settings`] for a module that is
    /// none and for a wrong PIN, [`KeyError::Denied`] for a PIN that is locked, and those of [`told`] and of
    /// `work`.
    pub(crate) fn with<T>(
        &self,
        rights: Rights,
        work: impl FnOnce(&OpenToken) -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        let module = load(&self.module)?;
        let objects = &module.objects;
        let _read = (rights == Rights::Read).then(|| objects.read().unwrap_or_else(PoisonError::into_inner));
        let _write =
            (rights == Rights::Write).then(|| objects.write().unwrap_or_else(PoisonError::into_inner));
        work(&self.open(rights, Arc::clone(&module))?)
    }

    fn open(&self, rights: Rights, module: Arc<Module>) -> Result<OpenToken, KeyError> {
        let (slot, info) = self.find(&module.library)?;
        let gate = module.gate();
        let open = match rights {
            Rights::Read => Pkcs11::open_ro_session,
            Rights::Write => Pkcs11::open_rw_session,
        };
        let session = open(&module.library, slot).map_err(told("opening a session"))?;
        let logged_in = self.log_in(&session, &info, gate);
        let token = OpenToken { session: Some(session), module, slot, info };
        logged_in.map(|()| token)
    }

    fn find(&self, library: &Pkcs11) -> Result<(Slot, TokenInfo), KeyError> {
        let slots = library.get_slots_with_token().map_err(told("looking for tokens"))?;
        let mut others = Vec::new();
        let mut found = Vec::new();
        for slot in slots.into_iter().take(TOKENS_MAX) {
            // A token that is being pulled out, or one that is broken, does not hide the others.
            let Ok(info) = library.get_token_info(slot) else { continue };
            let is = |wanted: &Option<String>, own: &str| wanted.as_ref().is_none_or(|wanted| wanted == own);
            if !info.token_initialized() {
                continue;
            }
            if is(&self.token, info.label()) && is(&self.serial, info.serial_number().trim()) {
                found.push((slot, info));
            } else {
                others.push(name(&info));
            }
        }
        let wanted = match (&self.token, &self.serial) {
            (Some(token), _) => format!("no token {}", printable(token, 64)),
            (None, Some(serial)) => format!("no token of serial {}", printable_serial(serial)),
            (None, None) => "no token".to_owned(),
        };
        match found.len() {
            1 => Ok(found.swap_remove(0)),
            0 if others.is_empty() => Err(KeyError::Unreachable(format!("{wanted} is present"))),
            0 => Err(KeyError::Unreachable(format!("{wanted} is present; there are {}", list(&others)))),
            _ => {
                let names: Vec<_> = found.iter().map(|(_, info)| name(info)).collect();
                Err(KeyError::Settings(format!(
                    "several tokens fit: {}; the setting serial says which",
                    list(&names)
                )))
            }
        }
    }

    fn log_in(
        &self,
        session: &Session,
        info: &TokenInfo,
        mut refused: MutexGuard<'_, Vec<(String, SecretBytes)>>,
    ) -> Result<(), KeyError> {
        let state = session.get_session_info().map_err(told("opening a session"))?.session_state();
        if !info.login_required() || matches!(state, SessionState::RoUser | SessionState::RwUser) {
            return Ok(());
        }
        let (serial, shown) = (info.serial_number(), name(info));
        let settings = |why: &str| KeyError::Settings(format!("token {shown}: {why}"));
        if info.user_pin_locked() {
            return Err(locked(&shown));
        }
        if info.user_pin_final_try() {
            return Err(settings(
                "one try is left before its PIN locks, which is left to a person: log in once with another \
                 program, then try again",
            ));
        }
        let was_refused = |pin: &SecretBytes| refused.iter().any(|(of, no)| of == serial && no.matches(pin));
        let result = match &self.pin {
            Some(pin) if was_refused(pin) => {
                return Err(settings("it refused this PIN before; this process does not try it again"));
            }
            Some(pin) => {
                // Wiped on drop by the library's own type.
                session.login_with_raw(UserType::User, &RawAuthPin::new(Box::new(pin.expose().to_vec())))
            }
            None if info.protected_authentication_path() => session.login(UserType::User, None),
            None => return Err(settings("it needs a PIN; the setting is pin")),
        };
        match result {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            // Gone before it could count anything.
            Err(error @ Error::Pkcs11(code, _)) if is_gone(code) && code != RvError::DeviceError => {
                Err(told("logging in")(error))
            }
            Err(error) => {
                if let Some(pin) = &self.pin {
                    refused.push((serial.to_owned(), SecretBytes::take(&mut pin.expose().to_vec())?));
                }
                Err(match error {
                    Error::Pkcs11(RvError::PinLocked, _) => locked(&shown),
                    Error::Pkcs11(RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange, _) => {
                        settings("wrong PIN; this process does not try it again")
                    }
                    Error::Pkcs11(RvError::PinExpired, _) => settings("its PIN has expired"),
                    Error::Pkcs11(RvError::UserPinNotInitialized, _) => settings("no PIN is set in it"),
                    error => {
                        settings(&format!("no login: {}; this process does not try again", brief(&error)))
                    }
                })
            }
        }
    }
}

impl OpenToken {
    /// Its serial number, as a keyslot stores it.
    pub(crate) fn serial(&self) -> String {
        printable_serial(self.info.serial_number())
    }

    /// One line for people.
    pub(crate) fn text(&self) -> String {
        let low = if self.info.user_pin_count_low() { "; wrong PINs were tried" } else { "" };
        format!("token {}, {}{low}", name(&self.info), printable(self.info.model(), 16))
    }

    /// What the token says of a mechanism; none where it lacks it.
    pub(crate) fn mechanism(&self, mechanism: MechanismType) -> Option<MechanismInfo> {
        self.module.library.get_mechanism_info(self.slot, mechanism).ok()
    }
}

impl Deref for OpenToken {
    type Target = Session;

    fn deref(&self) -> &Session {
        self.session.as_ref().expect("it is taken on drop only")
    }
}

impl Drop for OpenToken {
    fn drop(&mut self) {
        let _gate = self.module.gate();
        drop(self.session.take());
    }
}

impl Module {
    fn gate(&self) -> MutexGuard<'_, Vec<(String, SecretBytes)>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn load(path: &Path) -> Result<Arc<Module>, KeyError> {
    let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(module) = modules.get(path) {
        return Ok(Arc::clone(module));
    }
    let shown = path.display();
    let library = Pkcs11::new(path)
        .map_err(|error| KeyError::Settings(format!("{shown} is no PKCS#11 module: {}", brief(&error))))?;
    match library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
        Err(error @ Error::Pkcs11(code, _)) if is_gone(code) => {
            return Err(told("starting its module")(error));
        }
        Err(error) => {
            return Err(KeyError::Settings(format!("{shown} does not start: {}", brief(&error))));
        }
    }
    let module = Arc::new(Module { library, refused: Mutex::new(Vec::new()), objects: RwLock::new(()) });
    modules.insert(path.to_owned(), Arc::clone(&module));
    Ok(module)
}

fn locked(token: &str) -> KeyError {
    KeyError::Denied(format!("token {token}: its PIN is locked; its security officer can set a new one"))
}

/// Label and serial number.
fn name(info: &TokenInfo) -> String {
    format!("{} (serial {})", printable(info.label(), 32), printable_serial(info.serial_number()))
}

fn list(names: &[String]) -> String {
    /// Enough to see what is wrong.
    const SHOWN_MAX: usize = 4;
    let shown = names[..names.len().min(SHOWN_MAX)].join(", ");
    if names.len() > SHOWN_MAX { format!("{shown} and {} more", names.len() - SHOWN_MAX) } else { shown }
}
