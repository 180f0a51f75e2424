//! The `passphrase` manager: something a person knows, stretched by Argon2id (RFC 9106).
//!
//! A keyslot says what its derivation costs, and a keyslot comes from a store that may be hostile:
//! a ceiling on memory, passes and lanes is checked before anything is allocated, and derivations
//! of the whole process run one after another, so that two unlocks never need twice the memory.
//!
//! There is a floor for new wraps, against a slip of units, and none for unwrapping: a keyslot with
//! changed figures derives another KEK, which fits nothing.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use zeroize::Zeroizing;

use crate::manager::{BoxFuture, KeyDescription, KeyError, KeyManager, SlotType, WrapContext, WrappedKey};
use crate::secret::{Dek, Kek, Secret32, SecretBytes, fill_random};
use crate::verify;
use crate::wrap::{unwrap_dek, wrap_dek};

/// Held while a key is derived, by the thread that derives it: a caller that gives up waiting does
/// not let the next derivation start beside its own.
static DERIVING: Mutex<()> = Mutex::new(());

/// What one derivation costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Argon2Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl Argon2Cost {
    /// What new keyslots cost unless asked otherwise: 256 MiB, 4 passes, 1 lane. About a second on
    /// one core of today, and twice the memory of RFC 9106's second recommendation with one lane
    /// instead of four, because lanes help an attacker with many cores more than one waiting person.
    pub const DEFAULT: Self = Self { memory_kib: 256 * 1024, passes: 4, lanes: 1 };

    /// The most that a keyslot may demand unless the caller allows more: 1 GiB, 16 passes, 8 lanes.
    /// Four times the default each way, and still seconds on a machine that runs a server.
    pub const CEILING: Self = Self { memory_kib: 1024 * 1024, passes: 16, lanes: 8 };

    /// The least memory of a new keyslot: 8 MiB. Enough to catch MiB given for KiB; a choice near
    /// it is for tests.
    pub const MEMORY_KIB_MIN: u32 = 8 * 1024;

    /// A cost of `memory_kib` KiB, `passes` passes over it, and `lanes` lanes.
    ///
    /// # Errors
    /// [`KeyError::Unsupported`] when Argon2 knows no such cost: no pass, no lane, more than
    /// 2^24 - 1 lanes, or less than 8 KiB per lane.
    pub fn new(memory_kib: u32, passes: u32, lanes: u32) -> Result<Self, KeyError> {
        let cost = Self { memory_kib, passes, lanes };
        match cost.params() {
            Some(_) => Ok(cost),
            None => Err(KeyError::Unsupported(format!("argon2id has no cost of {cost}"))),
        }
    }

    /// Memory in KiB.
    #[must_use]
    pub fn memory_kib(self) -> u32 {
        self.memory_kib
    }

    /// Passes over the memory.
    #[must_use]
    pub fn passes(self) -> u32 {
        self.passes
    }

    /// Lanes; they are computed one after another here.
    #[must_use]
    pub fn lanes(self) -> u32 {
        self.lanes
    }

    fn within(self, ceiling: Self) -> Result<(), KeyError> {
        let fits = self.memory_kib <= ceiling.memory_kib
            && self.passes <= ceiling.passes
            && self.lanes <= ceiling.lanes;
        if fits {
            return Ok(());
        }
        Err(KeyError::CostTooHigh { what: format!("argon2id {self}"), ceiling: ceiling.to_string() })
    }

    /// Argon2's own form of it, or none where RFC 9106 §3.1 has no such figures.
    fn params(self) -> Option<Params> {
        // The crate multiplies lanes by 8 unchecked, so its range (RFC 9106: 1 to 2^24-1) comes first.
        if !(Params::MIN_P_COST..=Params::MAX_P_COST).contains(&self.lanes) {
            return None;
        }
        Params::new(self.memory_kib, self.passes, self.lanes, Some(32)).ok()
    }
}

/// E.g. `256 MiB t=4`, with `p=` only where it is not 1.
impl fmt::Display for Argon2Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory_kib, passes, lanes } = self;
        if memory_kib % 1024 == 0 {
            write!(f, "{} MiB t={passes}", memory_kib / 1024)?;
        } else {
            write!(f, "{memory_kib} KiB t={passes}")?;
        }
        if *lanes == 1 { Ok(()) } else { write!(f, " p={lanes}") }
    }
}

/// A passphrase, and what it may cost to stretch it.
pub struct Passphrase {
    secret: Arc<SecretBytes>,
    cost: Argon2Cost,
    ceiling: Argon2Cost,
}

impl Passphrase {
    /// A passphrase at [`Argon2Cost::DEFAULT`], which unwraps up to [`Argon2Cost::CEILING`].
    ///
    /// # Errors
    /// [`KeyError::Secret`] when it is empty.
    pub fn new(secret: SecretBytes) -> Result<Self, KeyError> {
        if secret.expose().is_empty() {
            return Err(KeyError::Secret("the passphrase is empty".to_owned()));
        }
        let secret = Arc::new(secret);
        Ok(Self { secret, cost: Argon2Cost::DEFAULT, ceiling: Argon2Cost::CEILING })
    }

    /// What new wraps cost.
    #[must_use]
    pub fn with_cost(self, cost: Argon2Cost) -> Self {
        Self { cost, ..self }
    }

    /// What a keyslot may demand, and a new wrap may cost. Raise it only for a volume that one trusts.
    #[must_use]
    pub fn with_ceiling(self, ceiling: Argon2Cost) -> Self {
        Self { ceiling, ..self }
    }

    async fn wrap_now(&self, dek: &Dek, context: WrapContext) -> Result<WrappedKey, KeyError> {
        self.cost.within(self.ceiling)?;
        if self.cost.memory_kib < Argon2Cost::MEMORY_KIB_MIN {
            return Err(KeyError::Unsupported(format!(
                "argon2id {} is less than the {} MiB that a new keyslot needs",
                self.cost,
                Argon2Cost::MEMORY_KIB_MIN / 1024
            )));
        }
        let mut salt = [0; SALT_LEN];
        fill_random(&mut salt)?;
        let private = PassphrasePrivate { cost: self.cost, salt };
        let kek = self.kek(private).await?;
        Ok(WrappedKey {
            slot_type: SlotType::Passphrase,
            kek_uri: String::new(),
            wrapped: wrap_dek(&kek, dek, context, SlotType::Passphrase)?.to_vec(),
            private: private.encode().to_vec(),
        })
    }

    async fn unwrap_now(&self, key: &WrappedKey, context: WrapContext) -> Result<Option<Dek>, KeyError> {
        if key.slot_type != SlotType::Passphrase {
            return Ok(None);
        }
        verify::no_uri(key)?;
        verify::wrapped_len(key)?;
        let private = PassphrasePrivate::decode(&key.private)?;
        private.cost.within(self.ceiling)?;
        let kek = self.kek(private).await?;
        unwrap_dek(&kek, &key.wrapped, context, SlotType::Passphrase)
    }

    async fn kek(&self, private: PassphrasePrivate) -> Result<Kek, KeyError> {
        let secret = Arc::clone(&self.secret);
        tokio::task::spawn_blocking(move || derive(&secret, private))
            .await
            .map_err(|error| KeyError::Unreachable(format!("the key derivation did not finish: {error}")))?
    }
}

impl KeyManager for Passphrase {
    fn slot_type(&self) -> SlotType {
        SlotType::Passphrase
    }

    /// # Panics
    /// Outside of a tokio runtime, as does `unwrap`.
    fn wrap<'a>(&'a self, dek: &'a Dek, context: WrapContext) -> BoxFuture<'a, Result<WrappedKey, KeyError>> {
        Box::pin(self.wrap_now(dek, context))
    }

    fn unwrap<'a>(
        &'a self,
        key: &'a WrappedKey,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Option<Dek>, KeyError>> {
        Box::pin(self.unwrap_now(key, context))
    }

    fn describe(&self, key: &WrappedKey) -> Result<KeyDescription, KeyError> {
        describe(key)
    }

    fn rotate<'a>(&'a self, _current: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(async { Err(verify::own_secret("a passphrase", "rotated")) })
    }

    fn destroy<'a>(&'a self, _key: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(async { Err(verify::own_secret("a passphrase", "destroyed")) })
    }
}

/// Tells what a passphrase's keyslot costs, e.g. `argon2id 256 MiB t=4`.
///
/// # Errors
/// [`KeyError::Malformed`].
pub fn describe(key: &WrappedKey) -> Result<KeyDescription, KeyError> {
    verify::is_type(key, SlotType::Passphrase)?;
    let private = PassphrasePrivate::decode(&key.private)?;
    Ok(KeyDescription::own(format!("argon2id {}", private.cost)))
}

/// Version of [`PassphrasePrivate`]'s encoding; 1 is Argon2id version 0x13.
const PRIVATE_VERSION: u8 = 1;
const SALT_LEN: usize = 32;
const PRIVATE_LEN: usize = 13 + SALT_LEN;
const _: () = assert!(PRIVATE_LEN <= crate::manager::PRIVATE_MAX);

/// The type-private part of a passphrase's keyslot:
/// version u8 ‖ memory KiB u32 ‖ passes u32 ‖ lanes u32 ‖ salt(32), little endian.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct PassphrasePrivate {
    cost: Argon2Cost,
    salt: [u8; SALT_LEN],
}

impl PassphrasePrivate {
    fn encode(self) -> [u8; PRIVATE_LEN] {
        let Self { cost: Argon2Cost { memory_kib, passes, lanes }, salt } = self;
        let mut bytes = [0; PRIVATE_LEN];
        bytes[0] = PRIVATE_VERSION;
        bytes[1..5].copy_from_slice(&memory_kib.to_le_bytes());
        bytes[5..9].copy_from_slice(&passes.to_le_bytes());
        bytes[9..13].copy_from_slice(&lanes.to_le_bytes());
        bytes[13..].copy_from_slice(&salt);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, KeyError> {
        if let Some(version) = bytes.first().filter(|version| **version != PRIVATE_VERSION) {
            return Err(KeyError::Malformed(format!("key derivation version {version} is not known")));
        }
        let bytes: &[u8; PRIVATE_LEN] = bytes
            .try_into()
            .map_err(|_| KeyError::Malformed(format!("{} private bytes, not {PRIVATE_LEN}", bytes.len())))?;
        let figure = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let cost = Argon2Cost { memory_kib: figure(1), passes: figure(5), lanes: figure(9) };
        if cost.params().is_none() {
            return Err(KeyError::Malformed(format!("argon2id has no cost of {cost}")));
        }
        Ok(Self { cost, salt: bytes[13..].try_into().expect("32 bytes are left") })
    }
}

/// Stretches a passphrase. Takes the calling thread for about a second at the default cost.
///
/// # Errors
/// [`KeyError::OutOfMemory`].
fn derive(secret: &SecretBytes, private: PassphrasePrivate) -> Result<Kek, KeyError> {
    let PassphrasePrivate { cost, salt } = private;
    let params = cost.params().expect("a cost is checked when it is made or decoded");
    // The lock guards no data, so a thread that died in here left nothing broken.
    let _one_at_a_time = DERIVING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut memory = reserve(cost, params.block_count())?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let kek = Secret32::fill(|bytes| {
        argon2.hash_password_into_with_memory(secret.expose(), &salt, bytes, memory.as_mut_slice())
    });
    Ok(Kek(kek.expect("lengths and memory are what RFC 9106 asks for")))
}

/// The derivation's working memory, wiped on drop: its last blocks are the key.
///
/// # Errors
/// [`KeyError::OutOfMemory`] when the system says that it has less, before it has to kill anybody.
fn reserve(cost: Argon2Cost, block_count: usize) -> Result<Zeroizing<Vec<Block>>, KeyError> {
    let needed_kib = u64::from(cost.memory_kib);
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available_kib(&text));
    if let Some(available_kib) = available.filter(|available_kib| *available_kib < needed_kib) {
        return Err(KeyError::OutOfMemory(format!(
            "argon2id {cost} needs {} MiB, {} MiB are available",
            needed_kib.div_ceil(1024),
            available_kib / 1024
        )));
    }
    let mut memory = Zeroizing::new(Vec::new());
    memory.try_reserve_exact(block_count).map_err(|_| {
        KeyError::OutOfMemory(format!("argon2id {cost} needs {} MiB", needed_kib.div_ceil(1024)))
    })?;
    memory.resize(block_count, Block::new());
    Ok(memory)
}

/// What a process can still take according to /proc/meminfo, in KiB (proc_meminfo(5)). Allocating
/// more succeeds on Linux and is paid for by whoever the kernel kills.
fn available_kib(meminfo: &str) -> Option<u64> {
    let figure = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    Some(figure("MemAvailable:")?.saturating_add(figure("SwapFree:").unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::tests::{ascending, hex};

    fn passphrase() -> SecretBytes {
        SecretBytes::take(&mut b"correct horse battery staple".to_vec()).unwrap()
    }

    #[test]
    fn keks_are_the_same_bytes_as_another_implementation_makes() {
        // Made with python3-cryptography (OpenSSL): Argon2id(salt=00..1f, length=32, memory_cost=8192, …).
        let cases = [
            (2, 1, "04f8a678e6e96b19531106cb13a867b27c5c59eb951894da1074f6e413f943e7"),
            (3, 4, "6a659b61cf96d4c82aba4ccd1f54307f1ea8217a616162ee50e0a319d80190f2"),
        ];
        for (passes, lanes, kek) in cases {
            let cost = Argon2Cost::new(8192, passes, lanes).unwrap();
            let derived = derive(&passphrase(), PassphrasePrivate { cost, salt: ascending(0) }).unwrap();
            assert_eq!(derived.0.expose(), &hex(kek), "{cost}");
        }
    }

    #[test]
    fn the_private_part_decodes_to_what_was_encoded() {
        let private = PassphrasePrivate { cost: Argon2Cost::DEFAULT, salt: ascending(0xa0) };
        let bytes = private.encode();
        assert_eq!(bytes[..13], [1, 0, 0, 4, 0, 4, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(bytes[13..], ascending::<32>(0xa0));
        assert_eq!(PassphrasePrivate::decode(&bytes).unwrap(), private);
    }

    #[test]
    fn figures_that_argon2_does_not_know_are_malformed() {
        let good = PassphrasePrivate { cost: Argon2Cost::DEFAULT, salt: [0; 32] }.encode();
        for (memory_kib, passes, lanes) in
            [(7, 1, 1), (15, 1, 2), (8192, 0, 1), (8192, 1, 0), (u32::MAX, 1, u32::MAX), (0, 1, 1 << 29)]
        {
            let mut bytes = good;
            bytes[1..5].copy_from_slice(&u32::to_le_bytes(memory_kib));
            bytes[5..9].copy_from_slice(&u32::to_le_bytes(passes));
            bytes[9..13].copy_from_slice(&u32::to_le_bytes(lanes));
            let result = PassphrasePrivate::decode(&bytes);
            assert!(matches!(result, Err(KeyError::Malformed(_))), "m={memory_kib} t={passes} p={lanes}");
            assert!(Argon2Cost::new(memory_kib, passes, lanes).is_err());
        }
    }

    #[tokio::test]
    async fn a_keyslot_that_demands_too_much_is_refused_with_the_figures() {
        let context = crate::derive::tests::CONTEXT;
        let manager = Passphrase::new(passphrase()).unwrap();
        let bomb = |memory_kib, passes, lanes| WrappedKey {
            slot_type: SlotType::Passphrase,
            kek_uri: String::new(),
            wrapped: vec![0; 60],
            private: PassphrasePrivate { cost: Argon2Cost { memory_kib, passes, lanes }, salt: [0; 32] }
                .encode()
                .to_vec(),
        };
        for (key, demands) in [
            (bomb(64 << 20, 4, 1), "argon2id 65536 MiB t=4"),
            (bomb((1 << 20) + 1, 4, 1), "argon2id 1048577 KiB t=4"),
            (bomb(8192, 17, 1), "argon2id 8 MiB t=17"),
            (bomb(8192, 1, 9), "argon2id 8 MiB t=1 p=9"),
        ] {
            let error = manager.unwrap(&key, context).await.err().unwrap();
            let expected = format!("keyslot demands {demands}, more than the ceiling of 1024 MiB t=16 p=8");
            assert_eq!(error.to_string(), expected);
        }
        let allowed = manager.with_ceiling(Argon2Cost::new(8192, 17, 1).unwrap());
        assert!(allowed.unwrap(&bomb(8192, 17, 1), context).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_new_keyslot_below_the_floor_or_above_the_ceiling_is_refused() {
        let (dek, context) = (Dek::generate().unwrap(), crate::derive::tests::CONTEXT);
        let cheap = Passphrase::new(passphrase()).unwrap().with_cost(Argon2Cost::new(256, 4, 1).unwrap());
        assert!(matches!(cheap.wrap(&dek, context).await, Err(KeyError::Unsupported(_))));
        let dear = Passphrase::new(passphrase()).unwrap().with_cost(Argon2Cost::new(8192, 17, 1).unwrap());
        assert!(matches!(dear.wrap(&dek, context).await, Err(KeyError::CostTooHigh { .. })));
    }

    #[test]
    fn memory_that_the_system_does_not_have_is_an_error_and_not_an_abort() {
        let cost = Argon2Cost { memory_kib: u32::MAX, passes: 1, lanes: 1 };
        let error = reserve(cost, cost.params().unwrap().block_count()).err().unwrap();
        assert!(matches!(error, KeyError::OutOfMemory(_)), "{error}");
        // Beyond any address space, whatever /proc/meminfo says.
        let error = reserve(Argon2Cost::DEFAULT, usize::MAX / 1024).err().unwrap();
        assert_eq!(error.to_string(), "not enough memory: argon2id 256 MiB t=4 needs 256 MiB");
    }

    #[test]
    fn available_memory_is_what_is_available_and_free_swap() {
        let meminfo = "MemTotal:  100 kB\nMemFree:   1 kB\nMemAvailable:   40 kB\nSwapFree:  2 kB\n";
        assert_eq!(available_kib(meminfo), Some(42));
        assert_eq!(available_kib("MemAvailable: 40 kB\n"), Some(40));
        assert_eq!(available_kib("MemFree: 40 kB\n"), None);
        assert_eq!(available_kib("MemAvailable: many kB\n"), None);
    }

    #[test]
    fn an_empty_passphrase_is_refused() {
        assert!(matches!(Passphrase::new(SecretBytes::empty()), Err(KeyError::Secret(_))));
    }
}
