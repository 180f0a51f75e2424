//! KMIP: the contract against PyKMIP (`real`) and, where a server re-keys and encrypts, against Cosmian KMS (`rekey`)
//! and a server of ours (`scripted`), which can also lie and fail (`lies`).

mod forms;
mod lies;
mod real;
mod rekey;

use std::path::Path;
use std::time::Instant;

use keymgmt::manager::{KeyError, KeyManager, WrapContext, WrappedKey};
use keymgmt::provider::Provider;
use keymgmt::registry::{Opening, Registry};
use keymgmt::source::{NoPrompt, Purpose, SecretReader};

use tempfile::TempDir;

use crate::scripted_kmip::ScriptedKmip;
use crate::services::{Service, certificates};
use crate::suite::{CONTEXT, canary_dek};

const OTHER: WrapContext = WrapContext { volume: *b"another volume !", ..CONTEXT };

/// A provider's table for a server, with a client of `services/certificates`.
fn table(address: &str, tls: &Path, client: &str, more: &str) -> String {
    let file = |name: &str| tls.join(name).display().to_string();
    let ca = if more.contains("ca = ") { String::new() } else { format!("tls.ca = '{}'\n", file("ca.pem")) };
    let retry = if more.contains("retry_for") { "" } else { "retry_for = '0s'\n" };
    format!(
        "type = 'kmip'\naddress = '{address}'\n{retry}{ca}tls.cert = '{}'\ntls.key = '{}'\n{more}",
        file(&format!("{client}.pem")),
        file(&format!("{client}.key")),
    )
}

fn open(table: &str, spec: &str) -> Result<Box<dyn KeyManager>, KeyError> {
    let provider = Provider::parse("prod", table.parse().unwrap()).unwrap_or_else(|error| panic!("{error}"));
    let registry = Registry::built_in().with_providers(vec![provider]);
    let mut prompter = NoPrompt;
    let mut reader = SecretReader::with_credentials(&mut prompter, None);
    let mut opening = Opening::new(&mut reader, Purpose::Unlock);
    registry.open(&registry.parse(spec).unwrap(), &mut opening)
}

/// A real server, and what only its administrators do.
struct Server {
    service: Service,
}

impl Server {
    fn start(script: &str) -> Self {
        Self { service: Service::start(script, &[]) }
    }

    fn address(&self) -> &str {
        self.service.says("ADDRESS")
    }

    fn tls(&self) -> &Path {
        Path::new(self.service.says("TLS"))
    }

    fn table(&self, more: &str) -> String {
        table(self.address(), self.tls(), "client", more)
    }

    fn manager(&self, spec: &str, more: &str) -> Box<dyn KeyManager> {
        open(&self.table(more), spec).unwrap()
    }

    /// Of another client, who owns other keys.
    fn other(&self, more: &str) -> Box<dyn KeyManager> {
        open(&table(self.address(), self.tls(), "client2", more), "kms:prod").unwrap()
    }

    fn run(&mut self, command: &str) {
        self.service.run(command, &[]);
    }

    /// Asks with PyKMIP's client, as the owner of the keys. What it says is the service's to say.
    fn administrate(&mut self, action: &str, id: &str) {
        let arguments: Vec<_> = [action, id].into_iter().filter(|it| !it.is_empty()).collect();
        self.service.ask("pykmip", "client", &arguments);
    }
}

/// A server of ours, and certificates.
struct World {
    server: ScriptedKmip,
    tls: TempDir,
}

impl World {
    fn new() -> Self {
        let tls = certificates();
        Self { server: ScriptedKmip::start(tls.path(), "server"), tls }
    }

    fn table(&self, more: &str) -> String {
        table(&self.server.address().to_string(), self.tls.path(), "client", more)
    }

    fn manager(&self, spec: &str, more: &str) -> Box<dyn KeyManager> {
        open(&self.table(more), spec).unwrap()
    }

    /// Of another client, who owns other keys.
    fn other(&self, more: &str) -> Box<dyn KeyManager> {
        let address = self.server.address().to_string();
        open(&table(&address, self.tls.path(), "client2", more), "kms:prod").unwrap()
    }
}

/// How long an unwrap takes, on a kept connection and on a new one.
async fn latency(server: &Server, name: &str, more: &str) {
    let manager = server.manager("kms:prod", more);
    let key = wrap(&*manager).await;
    let (mut kept, mut new) = (Vec::new(), Vec::new());
    for round in 0..200 {
        let begun = Instant::now();
        assert!(opens(&*manager, &key).await);
        kept.push(begun.elapsed());
        if round < 20 {
            let fresh = server.manager("kms:prod", more);
            let begun = Instant::now();
            assert!(opens(&*fresh, &key).await);
            new.push(begun.elapsed());
        }
    }
    kept.sort_unstable();
    new.sort_unstable();
    println!(
        "{name}, {more}: unwrap p50 {:?}, p99 {:?}; with connecting p50 {:?}",
        kept[100], kept[198], new[10]
    );
    assert!(kept[100].as_millis() < 500, "{:?}", kept[100]);
}

fn id_of(key: &WrappedKey) -> &str {
    key.kek_uri.strip_prefix("kmip:").unwrap()
}

async fn wrap(manager: &dyn KeyManager) -> WrappedKey {
    manager.wrap(&canary_dek(), CONTEXT).await.unwrap_or_else(|error| panic!("{error}"))
}

/// Whether a keyslot opens to the key of every test here.
async fn opens(manager: &dyn KeyManager, key: &WrappedKey) -> bool {
    let dek = manager.unwrap(key, CONTEXT).await.unwrap_or_else(|error| panic!("{error}"));
    dek.is_some_and(|dek| dek.matches(&canary_dek()))
}

/// Why a keyslot does not open.
async fn refusal(manager: &dyn KeyManager, key: &WrappedKey) -> KeyError {
    match manager.unwrap(key, CONTEXT).await {
        Ok(None) => panic!("left to others"),
        Ok(Some(_)) => panic!("a key"),
        Err(error) => error,
    }
}

/// What was refused, as the service's no, in words that hold `text`.
fn assert_denied(error: &KeyError, text: &str) {
    assert!(matches!(error, KeyError::Denied(_)) && error.to_string().contains(text), "{error:?}");
}
