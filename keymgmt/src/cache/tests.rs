//! An outage, the clock, and everything that may have happened to the files.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::derive::tests::CONTEXT;
use crate::keyfile::Keyfile;
use crate::provider::Provider;
use crate::registry::Registry;
use crate::source::{NoPrompt, Purpose, SecretReader};

const DEK: [u8; 32] = *b"CANARY-DEK-CANARY-DEK-CANARY-DEK";
const SECRET: [u8; 32] = *b"CANARY-SECRET-CANARY-SECRET-CANA";
const TTL: Duration = Duration::from_secs(24 * 3600);
/// When entries are made here, in seconds since 1970.
const NOON: u64 = 1_800_000_000;

/// What the manager behind the cache does next.
#[derive(Clone, Copy)]
enum Next {
    Works,
    Down,
    Says(fn(String) -> KeyError),
    NotMine,
}

/// A keyfile that goes away as told; works where nothing is.
struct Scripted {
    keyfile: Keyfile,
    next: Arc<Mutex<VecDeque<Next>>>,
}

impl Scripted {
    fn happens(&self) -> Next {
        self.next.lock().unwrap().pop_front().unwrap_or(Next::Works)
    }
}

impl KeyManager for Scripted {
    fn slot_type(&self) -> SlotType {
        SlotType::Keyfile
    }

    fn wrap<'a>(&'a self, dek: &'a Dek, context: WrapContext) -> BoxFuture<'a, Result<WrappedKey, KeyError>> {
        self.keyfile.wrap(dek, context)
    }

    fn unwrap<'a>(
        &'a self,
        key: &'a WrappedKey,
        context: WrapContext,
    ) -> BoxFuture<'a, Result<Option<Dek>, KeyError>> {
        match self.happens() {
            Next::Works => self.keyfile.unwrap(key, context),
            Next::Down => Box::pin(async { Err(KeyError::Unreachable("timed out".into())) }),
            Next::Says(error) => Box::pin(async move { Err(error("so".into())) }),
            Next::NotMine => Box::pin(async { Ok(None) }),
        }
    }

    fn describe(&self, key: &WrappedKey) -> Result<KeyDescription, KeyError> {
        self.keyfile.describe(key)
    }

    fn rotate<'a>(&'a self, _: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(async { Ok(()) })
    }

    fn destroy<'a>(&'a self, _: &'a WrappedKey) -> BoxFuture<'a, Result<(), KeyError>> {
        Box::pin(async { Ok(()) })
    }
}

/// One host with its cache, over restarts and clocks.
struct Host {
    dir: TempDir,
    next: Arc<Mutex<VecDeque<Next>>>,
}

impl Host {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), next: Arc::default() }
    }

    fn directory(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn settings(&self) -> CacheSettings {
        let secret = self.dir.path().join("secret");
        if !secret.exists() {
            std::fs::write(&secret, SECRET).unwrap();
            std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        let table = format!(
            "secret = 'file:{}'\ndirectory = '{}'\nttl = '24h'",
            secret.display(),
            self.directory().display()
        );
        toml::from_str(&table).unwrap()
    }

    fn provider(&self, provider: &str, clock: fn() -> SystemTime) -> Cached {
        let mut prompter = NoPrompt;
        let mut reader = SecretReader::with_credentials(&mut prompter, None);
        let mut opening = Opening::new(&mut reader, Purpose::Unlock);
        let cache = Cache { clock, ..self.settings().open(provider, &mut opening).unwrap() };
        let keyfile = Keyfile::from_secret(Secret32::take(&mut [9; 32]));
        Cached::new(Box::new(Scripted { keyfile, next: Arc::clone(&self.next) }), cache)
    }

    /// A process that starts with its clock there.
    fn at(&self, clock: fn() -> SystemTime) -> Cached {
        self.provider("prod", clock)
    }

    fn then(&self, next: Next) {
        self.next.lock().unwrap().push_back(next);
    }

    /// Paths of everything in the cache.
    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            std::fs::read_dir(self.directory()).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        files
    }

    /// A keyslot whose key was given at noon, and so is in the cache.
    async fn filled(&self) -> WrappedKey {
        let manager = self.at(noon);
        let key = manager.wrap(&dek(), CONTEXT).await.unwrap();
        assert!(manager.unwrap(&key, CONTEXT).await.unwrap().unwrap().matches(&dek()));
        assert_eq!(manager.notes(), [""; 0]);
        key
    }

    /// What an opening says while the manager is down.
    async fn outage(&self, key: &WrappedKey, clock: fn() -> SystemTime) -> Result<Vec<String>, String> {
        self.then(Next::Down);
        let manager = self.at(clock);
        match manager.unwrap(key, CONTEXT).await {
            Ok(Some(found)) => {
                assert!(found.matches(&dek()));
                Ok(manager.notes())
            }
            Ok(None) => panic!("an outage is not a misfit"),
            Err(KeyError::Unreachable(why)) => Err(why),
            Err(error) => panic!("{error}"),
        }
    }
}

fn dek() -> Dek {
    Dek::take(&mut DEK.clone())
}

fn noon() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOON)
}

fn an_hour_later() -> SystemTime {
    noon() + Duration::from_secs(3600)
}

fn just_in_time() -> SystemTime {
    noon() + TTL - Duration::from_secs(1)
}

fn too_late() -> SystemTime {
    noon() + TTL
}

fn a_second_before() -> SystemTime {
    noon() - Duration::from_secs(1)
}

#[tokio::test]
async fn an_outage_is_bridged_for_as_long_as_was_set_and_told() {
    let host = Host::new();
    let key = host.filled().await;
    assert_eq!(
        host.outage(&key, an_hour_later).await.unwrap(),
        [
            "key manager prod unreachable (timed out); the key is from the cache of this host, 1h old and good for \
          another 23h"
        ]
    );
    host.outage(&key, noon).await.unwrap();
    host.outage(&key, just_in_time).await.unwrap();
    let why = host.outage(&key, too_late).await.unwrap_err();
    assert_eq!(why, "timed out; no key from the cache: its entry is 1day old");
}

#[tokio::test]
async fn a_note_is_told_once() {
    let host = Host::new();
    let key = host.filled().await;
    let manager = host.at(an_hour_later);
    host.then(Next::Down);
    manager.unwrap(&key, CONTEXT).await.unwrap().unwrap();
    assert_eq!(manager.notes().len(), 1);
    assert_eq!(manager.notes().len(), 0);
    for _ in 0..2 * NOTES_MAX {
        host.then(Next::Down);
        manager.unwrap(&key, CONTEXT).await.unwrap().unwrap();
    }
    assert_eq!(manager.notes().len(), NOTES_MAX);
}

#[tokio::test]
async fn an_opening_that_the_manager_grants_begins_the_time_anew() {
    let host = Host::new();
    let key = host.filled().await;
    host.at(just_in_time).unwrap(&key, CONTEXT).await.unwrap().unwrap();
    host.outage(&key, too_late).await.unwrap();
    assert_eq!(host.files().len(), 1);
    // One from the cache does not.
    let late = || noon() + TTL + TTL;
    host.outage(&key, late).await.unwrap_err();
}

#[tokio::test]
async fn an_entry_from_the_future_is_refused() {
    let host = Host::new();
    let key = host.filled().await;
    let why = host.outage(&key, a_second_before).await.unwrap_err();
    assert_eq!(why, "timed out; no key from the cache: its entry is from the future, so a clock is wrong");
    host.outage(&key, || UNIX_EPOCH - Duration::from_secs(1)).await.unwrap_err();
}

#[tokio::test]
async fn a_key_that_was_never_given_is_not_there() {
    let host = Host::new();
    let key = host.at(noon).wrap(&dek(), CONTEXT).await.unwrap();
    let why = host.outage(&key, noon).await.unwrap_err();
    assert_eq!(why, "timed out; no key from the cache: it has no entry");
}

#[tokio::test]
async fn a_changed_entry_is_refused_whichever_byte_it_is() {
    let host = Host::new();
    let key = host.filled().await;
    let [file] = &host.files()[..] else { panic!("one entry") };
    let entry = std::fs::read(file).unwrap();
    assert_eq!(entry.len(), ENTRY_LEN);
    for at in 0..entry.len() {
        let mut changed = entry.clone();
        changed[at] ^= 1;
        std::fs::write(file, changed).unwrap();
        let why = host.outage(&key, an_hour_later).await.unwrap_err();
        assert!(why.ends_with("its entry was changed or sealed with another secret"), "byte {at}: {why}");
    }
    for len in [0, entry.len() - 1, entry.len() + 1, 1 << 20] {
        let mut changed = entry.clone();
        changed.resize(len, 0);
        std::fs::write(file, changed).unwrap();
        let why = host.outage(&key, an_hour_later).await.unwrap_err();
        assert!(why.ends_with("not a file that the cache made"), "{len} bytes: {why}");
    }
    std::fs::write(file, &entry).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o640)).unwrap();
    host.outage(&key, an_hour_later).await.unwrap_err();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
    host.outage(&key, an_hour_later).await.unwrap();
    let elsewhere = host.dir.path().join("elsewhere");
    std::fs::rename(file, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, file).unwrap();
    host.outage(&key, an_hour_later).await.unwrap_err();
}

#[tokio::test]
async fn an_entry_of_another_volume_keyslot_or_provider_does_not_serve() {
    let host = Host::new();
    let key = host.filled().await;
    let [of_key] = &host.files()[..] else { panic!("one entry") };
    let other_volume = WrapContext { volume: [7; 16], ..CONTEXT };
    let manager = host.at(noon);
    let second = manager.wrap(&dek(), CONTEXT).await.unwrap();
    let third = manager.wrap(&dek(), other_volume).await.unwrap();
    // Each finds its own file, which holds the first one's entry.
    for (key, context, provider) in [
        (&second, CONTEXT, "prod"),
        (&third, other_volume, "prod"),
        (&key, other_volume, "prod"),
        (&key, CONTEXT, "dr"),
    ] {
        let manager = host.provider(provider, noon);
        let place = manager.cache.place(key, context);
        std::fs::copy(of_key, host.directory().join(&place.name)).unwrap();
        host.then(Next::Down);
        let error = manager.unwrap(key, context).await.err().unwrap().to_string();
        assert!(error.ends_with("its entry was changed or sealed with another secret"), "{error}");
    }
}

#[tokio::test]
async fn another_secret_opens_nothing() {
    let host = Host::new();
    let key = host.filled().await;
    std::fs::write(host.dir.path().join("secret"), [8; 32]).unwrap();
    host.outage(&key, noon).await.unwrap_err();
}

#[tokio::test]
async fn a_denial_deletes_the_entry_and_what_was_left_unfinished() {
    let host = Host::new();
    let key = host.filled().await;
    let [file] = &host.files()[..] else { panic!("one entry") };
    std::fs::write(file.with_extension("0123456789abcdef"), b"unfinished").unwrap();
    let other = host.filled().await;
    assert_eq!(host.files().len(), 3);
    host.then(Next::Says(KeyError::Denied));
    assert!(matches!(host.at(noon).unwrap(&key, CONTEXT).await, Err(KeyError::Denied(_))));
    host.outage(&key, noon).await.unwrap_err();
    host.outage(&other, noon).await.unwrap();
    assert_eq!(host.files().len(), 1);
}

#[tokio::test]
async fn the_denial_of_one_provider_does_not_delete_what_another_one_granted() {
    let host = Host::new();
    let key = host.filled().await;
    host.then(Next::Says(KeyError::Denied));
    assert!(host.provider("dr", noon).unwrap(&key, CONTEXT).await.is_err());
    host.outage(&key, noon).await.unwrap();
}

#[tokio::test]
async fn only_an_outage_is_bridged() {
    let host = Host::new();
    let key = host.filled().await;
    for error in [KeyError::Untrusted, KeyError::Settings, KeyError::Malformed, KeyError::Unsupported] {
        host.then(Next::Says(error));
        let told = host.at(noon).unwrap(&key, CONTEXT).await.err().unwrap();
        assert_eq!(told.to_string(), error("so".into()).to_string());
    }
    host.then(Next::NotMine);
    assert!(host.at(noon).unwrap(&key, CONTEXT).await.unwrap().is_none());
    host.outage(&key, noon).await.unwrap();
}

#[tokio::test]
async fn a_destroyed_key_is_gone_from_the_cache() {
    let host = Host::new();
    let (key, other) = (host.filled().await, host.filled().await);
    host.at(noon).destroy(&key).await.unwrap();
    host.outage(&key, noon).await.unwrap_err();
    host.outage(&other, noon).await.unwrap();
}

#[tokio::test]
async fn files_are_private_and_hold_no_key_as_it_is() {
    let host = Host::new();
    host.filled().await;
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&host.directory()), 0o700);
    let [file] = &host.files()[..] else { panic!("one entry") };
    assert_eq!(mode(file), 0o600);
    let entry = std::fs::read(file).unwrap();
    for secret in [DEK, SECRET] {
        assert!(!entry.windows(8).any(|run| secret.windows(8).any(|other| other == run)));
    }
}

#[tokio::test]
async fn a_cache_that_cannot_be_written_is_told_and_opens_all_the_same() {
    let host = Host::new();
    let manager = host.at(noon);
    let key = manager.wrap(&dek(), CONTEXT).await.unwrap();
    std::fs::remove_dir(host.directory()).unwrap();
    assert!(manager.unwrap(&key, CONTEXT).await.unwrap().unwrap().matches(&dek()));
    let notes = manager.notes();
    assert!(notes.len() == 1 && notes[0].starts_with("the key could not be kept for an outage"), "{notes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_write_one_entry_leave_one_that_is_whole() {
    let host = Host::new();
    let key = host.filled().await;
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (manager, key) = (host.at(noon), key.clone());
        writers.spawn(async move {
            for _ in 0..4 {
                assert!(manager.unwrap(&key, CONTEXT).await.unwrap().is_some());
            }
            manager.notes()
        });
    }
    while let Some(notes) = writers.join_next().await {
        assert_eq!(notes.unwrap(), [""; 0]);
    }
    assert_eq!(host.files().len(), 1);
    host.outage(&key, noon).await.unwrap();
}

#[tokio::test]
async fn what_nobody_could_use_any_more_is_swept_away_and_what_is_not_ours_is_kept() {
    let host = Host::new();
    host.filled().await;
    let [entry] = &host.files()[..] else { panic!("one entry") };
    let (unfinished, foreign) =
        (entry.with_extension("0123456789abcdef"), host.directory().join("notes.txt"));
    let old = SystemTime::now() - TTL_MAX - Duration::from_secs(60);
    for path in [entry, &unfinished, &foreign] {
        File::options().create(true).append(true).open(path).unwrap().set_modified(old).unwrap();
    }
    host.filled().await;
    assert!(!entry.exists() && !unfinished.exists() && foreign.exists());
    assert_eq!(host.files().len(), 2);
}

fn opened(host: &Host, secret: &str, directory: &Path) -> KeyError {
    let table = format!("secret = '{secret}'\ndirectory = '{}'\nttl = '24h'", directory.display());
    let settings: CacheSettings = toml::from_str(&table).unwrap();
    let mut prompter = NoPrompt;
    let credentials = Some(host.dir.path().as_os_str().to_owned());
    let mut reader = SecretReader::with_credentials(&mut prompter, credentials);
    settings.open("prod", &mut Opening::new(&mut reader, Purpose::Unlock)).err().unwrap()
}

#[test]
fn a_secret_or_a_directory_that_cannot_serve_is_told_at_the_start() {
    let host = Host::new();
    host.settings();
    std::fs::write(host.dir.path().join("short"), [1; 31]).unwrap();
    let error = opened(&host, "cred:short", &host.directory());
    assert_eq!(error.to_string(), "the cache's secret from cred:short is 31 bytes, not 32");
    assert!(matches!(opened(&host, "cred:missing", &host.directory()), KeyError::Secret(_)));

    let open = host.dir.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o770)).unwrap();
    let error = opened(&host, "cred:secret", &open);
    assert!(matches!(&error, KeyError::Settings(why) if why.ends_with("next: chmod 700")), "{error}");
    // The superuser's for everybody else, and nobody's for the superuser.
    let foreign = if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&open, Some(65534), None).unwrap();
        &open
    } else {
        Path::new("/")
    };
    let error = opened(&host, "cred:secret", foreign);
    assert!(error.to_string().ends_with("belongs to another user"), "{error}");
    let error = opened(&host, "cred:secret", &host.dir.path().join("short"));
    assert!(matches!(error, KeyError::Settings(_)), "{error}");
}

fn parsed(cache: &str) -> Result<Provider, String> {
    let table = format!("type = 'exec'\ncommand = ['/bin/true']\n{cache}");
    Provider::parse("prod", table.parse().unwrap()).map_err(|error| error.to_string())
}

#[test]
fn there_is_no_cache_unless_one_is_set_and_its_settings_are_strict() {
    assert!(parsed("").unwrap().cache.is_none());
    assert!(parsed("cache = { secret = 'cred:c', directory = '/d', ttl = '24h' }").unwrap().cache.is_some());
    for (cache, why) in [
        ("cache = {}", "missing field `secret`"),
        ("cache = { secret = 'cred:c', directory = '/d' }", "missing field `ttl`"),
        ("cache = { secret = 'cred:c', ttl = '1h' }", "missing field `directory`"),
        ("cache = { secret = 'hunter2', directory = '/d', ttl = '1h' }", "never as itself"),
        ("cache = { secret = 'prompt', directory = '/d', ttl = '1h' }", "file:PATH or cred:NAME"),
        ("cache = { secret = 'cred:c', directory = 'hunter2', ttl = '1h' }", "directory is an absolute path"),
        ("cache = { secret = 'cred:c', directory = '/d', ttl = '0s' }", "ttl is between 1s and 31d"),
        ("cache = { secret = 'cred:c', directory = '/d', ttl = '32d' }", "ttl is between 1s and 31d"),
        (
            "cache = { secret = 'cred:c', directory = '/d', ttl = '1h', kind = 'hunter2' }",
            "unknown field `kind`",
        ),
        ("cache = 'none'", "invalid type"),
    ] {
        let told = parsed(cache).err().unwrap();
        assert!(told.contains(why) && !told.contains("hunter2"), "{cache}: {told}");
    }
}

/// The whole way from a table to a note: the plug-in answers once and then is gone.
#[tokio::test]
async fn a_provider_with_a_cache_opens_through_an_outage() {
    let host = Host::new();
    let CacheSettings { directory, .. } = host.settings();
    let plugin = host.dir.path().join("plugin.source");
    // Keeps the KEK as it is: what is tested is not the plug-in.
    let down = host.dir.path().join("down");
    let lines = format!(
        "#!/bin/sh\nread line\n[ -e {down} ] && {{ echo '{{\"error\":{{\"kind\":\"unreachable\"}}}}'; exit; }}\n\
         kek=$(printf %s \"$line\" | sed -n 's/.*\"kek\":\"\\([^\"]*\\)\".*/\\1/p')\n\
         blob=$(printf %s \"$line\" | sed -n 's/.*\"blob\":\"\\([^\"]*\\)\".*/\\1/p')\n\
         case $line in\n*'\"wrap\"'*) echo '{{\"ok\":{{\"key_id\":\"k\",\"blob\":\"'$kek'\"}}}}';;\n\
         *) echo '{{\"ok\":{{\"kek\":\"'$blob'\"}}}}';;\nesac\n",
        down = down.display()
    );
    std::fs::write(&plugin, lines).unwrap();
    let program = host.dir.path().join("plugin");
    let install =
        std::process::Command::new("install").args(["-m", "0755"]).args([&plugin, &program]).status();
    assert!(install.unwrap().success());
    let table = format!(
        "type = 'exec'\ncommand = ['{}']\nenvironment = ['PATH']\nretry_for = '0s'\n\
         cache = {{ secret = 'file:{}', directory = '{}', ttl = '1h' }}",
        program.display(),
        host.dir.path().join("secret").display(),
        directory.display()
    );
    let registry =
        Registry::built_in().with_providers(vec![Provider::parse("prod", table.parse().unwrap()).unwrap()]);
    let mut prompter = NoPrompt;
    let mut reader = SecretReader::with_credentials(&mut prompter, None);
    let mut opening = Opening::new(&mut reader, Purpose::Unlock);
    let manager = registry.open(&registry.parse("kms:prod").unwrap(), &mut opening).unwrap();
    let key = crate::verify::wrap_tested(&*manager, &dek(), CONTEXT).await.unwrap();
    std::fs::write(&down, b"").unwrap();
    assert!(manager.unwrap(&key, CONTEXT).await.unwrap().unwrap().matches(&dek()));
    let notes = manager.notes();
    assert!(notes.len() == 1 && notes[0].starts_with("key manager prod unreachable"), "{notes:?}");
    std::fs::remove_file(&host.files()[0]).unwrap();
    assert!(matches!(manager.unwrap(&key, CONTEXT).await, Err(KeyError::Unreachable(_))));
}
