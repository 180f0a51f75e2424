//! Vault and OpenBao: Transit and key/value version 2 against the mock of `scripted_vault`, key/value
//! version 1 there and, in `rusty`, against RustyVault.

mod hostile;
mod lease;
mod rusty;

use keymgmt::manager::{KeyDescription, KeyError, KeyManager, WrappedKey};
use keymgmt::provider::Provider;
use keymgmt::registry::{Opening, Registry};
use keymgmt::source::{NoPrompt, Purpose, SecretReader};
use keymgmt::verify::wrap_tested;
use serde_json::json;
use tempfile::TempDir;

use crate::scripted_vault::{Fault, Policy, Role, ScriptedVault, Secret, TokenEntry, TransitKey, Version};
use crate::suite::{CONTEXT, KekOf, Subject, assert_refused, canary_dek, keeps_the_contract, outcome};

const TRANSIT_HOST: &str = include_str!("../../../examples/vault/transit-host.hcl");
const TRANSIT_ROTATE: &str = include_str!("../../../examples/vault/transit-rotate.hcl");
const KV2_HOST: &str = include_str!("../../../examples/vault/kv2-host.hcl");
const KV2_DESTROY: &str = include_str!("../../../examples/vault/kv2-destroy.hcl");
const KV1_HOST: &str = include_str!("../../../examples/vault/kv1-host.hcl");
const KV1_DESTROY: &str = include_str!("../../../examples/vault/kv1-destroy.hcl");

const TOKEN: &str = "hvs.CANARY-token-of-the-host";

/// A mock and a host with a token.
struct World {
    vault: ScriptedVault,
    credentials: TempDir,
}

impl World {
    fn new() -> Self {
        Self::with(ScriptedVault::start())
    }

    /// The host's token may do what the policies of the examples allow.
    fn with(vault: ScriptedVault) -> Self {
        let credentials = tempfile::tempdir().unwrap();
        let world = Self { vault, credentials };
        world.write("token", TOKEN);
        world.grant(&[TRANSIT_HOST, TRANSIT_ROTATE, KV2_HOST, KV2_DESTROY, KV1_DESTROY]);
        world.vault.state().transit.insert((String::new(), "db".into()), TransitKey::new());
        world
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.credentials.path().join(name), text).unwrap();
    }

    fn grant(&self, policies: &[&str]) {
        let policies = policies.iter().map(|hcl| Policy::parse(hcl)).collect();
        self.vault.state().tokens.insert(TOKEN.into(), TokenEntry { policies, ..TokenEntry::default() });
    }

    /// The table of a provider; `more` comes after what every one has.
    fn table(&self, kind: &str, more: &str) -> String {
        let auth = if more.contains("auth = ") {
            ""
        } else {
            "auth = { method = 'token-file', token = 'cred:token' }"
        };
        let address = self.vault.address();
        let limits = if more.contains("retry_for") { "" } else { "retry_for = '0s'" };
        format!("type = '{kind}'\naddress = '{address}'\n{auth}\n{limits}\n{more}")
    }

    fn open(&self, spec: &str, kind: &str, more: &str) -> Result<Box<dyn KeyManager>, KeyError> {
        open(&self.table(kind, more), spec, &self.credentials)
    }

    fn transit(&self) -> Box<dyn KeyManager> {
        self.open("kms:prod/db", "vault-transit", "").unwrap()
    }

    fn kv(&self, version: u8) -> Box<dyn KeyManager> {
        self.open("kms:prod", "vault-kv", &kv(version)).unwrap()
    }

    /// Every manager of this kind, ready to wrap.
    fn managers(&self) -> [Box<dyn KeyManager>; 3] {
        [self.transit(), self.kv(1), self.kv(2)]
    }
}

fn kv(version: u8) -> String {
    let mount = if version == 1 { "kv" } else { "secret" };
    format!("version = {version}\nmount = '{mount}'")
}

fn open(table: &str, spec: &str, credentials: &TempDir) -> Result<Box<dyn KeyManager>, KeyError> {
    let provider = Provider::parse("prod", table.parse().unwrap()).unwrap();
    let registry = Registry::built_in().with_providers(vec![provider]);
    let mut prompter = NoPrompt;
    let mut reader = SecretReader::with_credentials(&mut prompter, Some(credentials.path().into()));
    let mut opening = Opening::new(&mut reader, Purpose::Unlock);
    registry.open(&registry.parse(spec).unwrap(), &mut opening)
}

fn refused_settings(table: &str) -> String {
    Provider::parse("prod", table.parse().unwrap()).err().unwrap().to_string()
}

async fn wrapped(manager: &dyn KeyManager) -> WrappedKey {
    wrap_tested(manager, &canary_dek(), CONTEXT).await.unwrap()
}

#[tokio::test]
async fn transit_keeps_the_contract_with_the_rights_of_the_example_policies() {
    let world = World::new();
    let wrong = world.open("kms:prod/other", "vault-transit", "").unwrap();
    let kek = KekOf::ManagerThatKeepsVersions;
    keeps_the_contract(&Subject { right: world.transit(), wrong, kek }).await;
}

#[tokio::test]
async fn key_value_version_2_keeps_the_contract_with_the_rights_of_the_example_policies() {
    let world = World::new();
    let wrong = world.open("kms:prod/other", "vault-kv", &kv(2)).unwrap();
    keeps_the_contract(&Subject { right: world.kv(2), wrong, kek: KekOf::Manager }).await;
}

#[tokio::test]
async fn key_value_version_1_keeps_the_contract_with_the_rights_of_the_example_policies() {
    let world = World::new();
    let wrong = world.open("kms:prod/other", "vault-kv", &kv(1)).unwrap();
    keeps_the_contract(&Subject { right: world.kv(1), wrong, kek: KekOf::Manager }).await;
}

#[tokio::test]
async fn a_host_without_the_administrators_policy_opens_and_neither_rotates_nor_destroys() {
    let world = World::new();
    world.grant(&[TRANSIT_HOST, KV2_HOST, KV1_HOST]);
    let [transit, kv1, kv2] = world.managers();
    let key = wrapped(&*transit).await;
    assert!(matches!(transit.rotate(&key).await, Err(KeyError::Denied(_))));
    for manager in [kv1, kv2] {
        let key = wrapped(&*manager).await;
        assert!(matches!(manager.destroy(&key).await, Err(KeyError::Denied(_))));
        assert!(outcome(&*manager, &key, CONTEXT).await.unwrap(), "nothing was destroyed");
    }
}

#[tokio::test]
async fn a_mistyped_transit_key_is_refused_and_not_made() {
    let world = World::new();
    let manager = world.open("kms:prod/bd", "vault-transit", "").unwrap();
    let error = manager.wrap(&canary_dek(), CONTEXT).await.unwrap_err();
    assert!(matches!(error, KeyError::Denied(_)), "{error}");
    assert_eq!(world.vault.state().transit.len(), 1);
}

#[tokio::test]
async fn a_new_transit_keyslot_needs_a_key_and_an_old_one_brings_its_own() {
    let world = World::new();
    let key = wrapped(&*world.transit()).await;
    let manager = world.open("kms:prod", "vault-transit", "").unwrap();
    assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
    let error = manager.wrap(&canary_dek(), CONTEXT).await.unwrap_err();
    assert!(matches!(&error, KeyError::Settings(why) if why.contains("kms:PROVIDER/KEY")), "{error}");
    // A rotation does, too.
    manager.rotate(&key).await.unwrap();
    let new = wrapped(&*manager).await;
    assert_eq!((new.kek_uri, manager.describe(&key).unwrap().key_id), (key.kek_uri, Some("db".into())));
}

#[tokio::test]
async fn keyslots_are_described_by_key_and_version() {
    let world = World::new();
    let transit = world.transit();
    let key = wrapped(&*transit).await;
    transit.rotate(&key).await.unwrap();
    let new = wrapped(&*transit).await;
    let expected = KeyDescription {
        text: "transit key db v2".into(),
        key_id: Some("db".into()),
        version: Some("2".into()),
    };
    assert_eq!(transit.describe(&new).unwrap(), expected);
    assert_eq!(new.kek_uri, "vault-transit:db");
    let manager = world.kv(2);
    let key = wrapped(&*manager).await;
    let name = key.kek_uri.strip_prefix("vault-kv:").unwrap();
    assert_eq!(manager.describe(&key).unwrap().text, format!("kv secret {name} v1"));
    assert!(world.vault.state().kv2.contains_key(&(String::new(), format!("sealbd/{name}"))));
}

#[tokio::test]
async fn a_version_below_the_minimum_and_a_trimmed_one_are_told_as_denied() {
    let world = World::new();
    let transit = world.transit();
    let key = wrapped(&*transit).await;
    transit.rotate(&key).await.unwrap();
    let set =
        |minimum| world.vault.state().transit.values_mut().next().unwrap().min_decryption_version = minimum;
    set(2);
    let error = outcome(&*transit, &key, CONTEXT).await.unwrap_err();
    assert!(matches!(&error, KeyError::Denied(why) if why.contains("min_decryption_version")), "{error}");
    set(1);
    assert!(outcome(&*transit, &key, CONTEXT).await.unwrap());
    world.vault.state().transit.clear();
    let error = outcome(&*transit, &key, CONTEXT).await.unwrap_err();
    assert!(matches!(&error, KeyError::Denied(why) if why.contains("does not exist")), "{error}");
}

/// As after a restored backup under another name (`transit/restore/NAME`).
#[tokio::test]
async fn the_same_key_under_another_name_does_not_open_a_renamed_keyslot() {
    let world = World::new();
    world.grant(&[&TRANSIT_HOST.replace("db", "*")]);
    let key = wrapped(&*world.transit()).await;
    let copy = world.vault.state().transit.values().next().unwrap().clone();
    world.vault.state().transit.insert((String::new(), "copy".into()), copy);
    let manager = world.open("kms:prod", "vault-transit", "").unwrap();
    let renamed = WrappedKey { kek_uri: "vault-transit:copy".into(), ..key };
    assert!(!outcome(&*manager, &renamed, CONTEXT).await.unwrap());
}

#[tokio::test]
async fn what_transit_cannot_destroy_is_told_with_the_administrators_command() {
    let world = World::new();
    let key = wrapped(&*world.transit()).await;
    let error = world.transit().destroy(&key).await.unwrap_err().to_string();
    assert!(error.contains("vault write transit/keys/db/config min_decryption_version=2"), "{error}");
    assert!(error.contains("vault write transit/keys/db/trim min_available_version=2"), "{error}");
}

/// A host that may encrypt and not decrypt cannot prove that anything is bound.
#[tokio::test]
async fn a_keyslot_that_cannot_be_proven_is_not_made() {
    let world = World::new();
    world.grant(&[TRANSIT_HOST.rsplit_once("path").unwrap().0]);
    let error = world.transit().wrap(&canary_dek(), CONTEXT).await.unwrap_err();
    assert!(matches!(&error, KeyError::Denied(why) if why.contains("transit/decrypt/db")), "{error}");
}

/// Vault before 1.9: a keyslot would then fit every volume.
#[tokio::test]
async fn a_server_that_ignores_associated_data_is_found_out_before_a_keyslot_is_made() {
    let world = World::new();
    world.vault.state().ignores_associated_data = true;
    let error = world.transit().wrap(&canary_dek(), CONTEXT).await.unwrap_err();
    assert!(matches!(&error, KeyError::Unsupported(why) if why.contains("associated_data")), "{error}");
}

#[tokio::test]
async fn key_value_writes_never_overwrite_and_reads_name_their_version() {
    let world = World::new();
    let manager = world.kv(2);
    wrapped(&*manager).await;
    for request in world.vault.state().requests.iter().filter(|request| request.path.starts_with("secret/")) {
        match request.method.as_str() {
            "POST" => assert_eq!(request.body.pointer("/options/cas"), Some(&json!(0))),
            _ => assert_eq!(request.query.get("version").map(String::as_str), Some("1")),
        }
    }
    assert_eq!(world.vault.state().kv2.len(), 1);
}

#[tokio::test]
async fn a_newer_version_of_a_secret_does_not_touch_a_keyslot_of_the_older() {
    let world = World::new();
    let manager = world.kv(2);
    let key = wrapped(&*manager).await;
    let other = json!({ "key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" });
    world.vault.state().kv2.values_mut().next().unwrap().versions.push(Version::new(other));
    assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
}

/// Whoever writes the service's database can change secrets, not what a volume accepts.
#[tokio::test]
async fn swapped_and_overwritten_secrets_of_two_volumes_are_refused() {
    let world = World::new();
    let manager = world.kv(1);
    let (one, two) = (wrapped(&*manager).await, wrapped(&*manager).await);
    {
        let mut state = world.vault.state();
        let mut secrets: Vec<_> = state.kv1.drain().collect();
        let (first, second) = secrets.split_at_mut(1);
        std::mem::swap(&mut first[0].1, &mut second[0].1);
        state.kv1.extend(secrets);
    }
    for key in [one, two] {
        let error = outcome(&*manager, &key, CONTEXT).await.unwrap_err();
        assert!(matches!(&error, KeyError::Denied(why) if why.contains("another key")), "{error}");
    }
}

/// Nothing is decided on what the server says beside the secret itself.
#[tokio::test]
async fn a_version_field_that_lies_changes_nothing() {
    let world = World::new();
    let manager = world.kv(2);
    let key = wrapped(&*manager).await;
    world.vault.state().claims_version = Some(7);
    assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
    // A secret that is there already is pinned by the number that is said: asked for, it is not there.
    let name = key.kek_uri.strip_prefix("vault-kv:").unwrap();
    let given = world.open(&format!("kms:prod/{name}"), "vault-kv", &kv(2)).unwrap();
    let error = given.wrap(&canary_dek(), CONTEXT).await.unwrap_err();
    assert!(matches!(error, KeyError::Denied(_)), "{error}");
}

#[tokio::test]
async fn a_secret_of_castellan_is_used_and_left_to_its_owner() {
    let world = World::new();
    let value =
        json!({ "type": "SymmetricKey", "value": "a5".repeat(32), "algorithm": "AES", "bit_length": 256 });
    let at = |name: &str| (String::new(), format!("sealbd/{name}"));
    let secret = Secret { versions: vec![Version::new(json!({})), Version::new(value)] };
    world.vault.state().kv2.insert(at("cinder/0a1b"), secret);
    let manager = world.open("kms:prod/cinder/0a1b", "vault-kv", &kv(2)).unwrap();
    let key = wrapped(&*manager).await;
    assert_eq!(manager.describe(&key).unwrap().text, "kv secret cinder/0a1b v2");
    for result in [manager.rotate(&key).await, manager.destroy(&key).await] {
        assert!(matches!(result, Err(KeyError::Unsupported(_))), "{result:?}");
    }
    // Without the key in the spec the keyslot brings its own, and it is still not ours to destroy.
    let manager = world.kv(2);
    assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
    assert!(matches!(manager.destroy(&key).await, Err(KeyError::Unsupported(_))));
    // Nor does a keyslot that claims that sealbd made it change that.
    let mut claimed = key;
    *claimed.private.last_mut().unwrap() ^= 1;
    assert!(matches!(manager.destroy(&claimed).await, Err(KeyError::Malformed(_))));
    assert!(world.vault.state().kv2.contains_key(&at("cinder/0a1b")));
}

#[tokio::test]
async fn a_secret_that_outlives_its_destruction_is_not_told_as_destroyed() {
    let world = World::new();
    for (manager, metadata) in [(world.kv(2), "secret/metadata/"), (world.kv(1), "kv/")] {
        let key = wrapped(&*manager).await;
        let fault =
            if metadata == "kv/" { Fault::Status(200, r#"{"data":{}}"#) } else { Fault::Status(204, "") };
        world.vault.state().faults = vec![(metadata, fault)];
        let error = manager.destroy(&key).await.unwrap_err();
        assert!(matches!(&error, KeyError::Denied(why) if why.contains("still there")), "{error}");
    }
}

#[tokio::test]
async fn a_provider_of_the_other_engine_version_says_so() {
    let world = World::new();
    let key = wrapped(&*world.kv(2)).await;
    let error = outcome(&*world.kv(1), &key, CONTEXT).await.unwrap_err();
    assert!(matches!(&error, KeyError::Denied(why) if why.contains("version = 1")), "{error}");
}

#[tokio::test]
async fn the_uri_of_a_keyslot_never_leads_out_of_mount_and_prefix() {
    let world = World::new();
    for manager in world.managers() {
        let key = wrapped(&*manager).await;
        let (scheme, _) = key.kek_uri.split_once(':').unwrap();
        let before = world.vault.state().requests.len();
        for name in
            ["../../sys/mounts", "..", "a/../b", "a?b", "a%2fb", "a#b", "/a", "a/", "http://x", "A b", ""]
        {
            let changed = WrappedKey { kek_uri: format!("{scheme}:{name}"), ..key.clone() };
            let error = outcome(&*manager, &changed, CONTEXT).await;
            assert!(matches!(error, Err(KeyError::Malformed(_))), "{name}");
        }
        assert_eq!(world.vault.state().requests.len(), before, "nothing was asked for");
    }
}

#[tokio::test]
async fn a_namespace_is_sent_and_another_one_is_denied() {
    let world = World::new();
    let namespace = "team-a/prod".to_owned();
    world.vault.state().tokens.get_mut(TOKEN).unwrap().namespace.clone_from(&namespace);
    world.vault.state().transit.insert((namespace, "db".into()), TransitKey::new());
    let right = world.open("kms:prod/db", "vault-transit", "namespace = 'team-a/prod'").unwrap();
    let key = wrapped(&*right).await;
    right.probe().await.unwrap();
    for wrong in ["", "namespace = 'team-b'"] {
        let manager = world.open("kms:prod/db", "vault-transit", wrong).unwrap();
        let error = outcome(&*manager, &key, CONTEXT).await.unwrap_err();
        assert!(matches!(error, KeyError::Denied(_)), "{error}");
    }
    let state = world.vault.state();
    let health = state.requests.iter().find(|request| request.path == "sys/health").unwrap();
    assert!(!health.headers.contains_key("x-vault-namespace"), "health is the whole server's");
}

#[tokio::test]
async fn every_login_method_opens_a_keyslot() {
    let certificates = crate::services::certificates();
    let world = World::with(ScriptedVault::start_tls(certificates.path(), "server"));
    let grants = TokenEntry {
        policies: vec![Policy::parse(TRANSIT_HOST)],
        ttl: 600,
        renewable: true,
        ..TokenEntry::default()
    };
    let role = |name, secret: &str| Role {
        name,
        secret: secret.to_owned(),
        grants: grants.clone(),
        ..Role::default()
    };
    for (method, role) in [
        ("approle", role("sealbd-host-a", "CANARY-secret-id")),
        ("kubernetes", role("sealbd", "CANARY.jwt.of-a-pod")),
        ("cert", role("host-a", "certificate")),
    ] {
        world.vault.state().roles.insert(method, role);
    }
    world.write("secret-id", "CANARY-secret-id\n");
    world.write("jwt", "CANARY.jwt.of-a-pod");
    let path = |name: &str| certificates.path().join(name).display().to_string();
    let ca = format!("ca = '{}'", path("ca.pem"));
    let own = format!("{ca}, cert = '{}', key = '{}'", path("client.pem"), path("client.key"));
    let jwt = world.credentials.path().join("jwt").display().to_string();
    for (auth, tls) in [
        ("method = 'token-file', token = 'cred:token'".to_owned(), &ca),
        ("method = 'approle', role_id = 'sealbd-host-a', secret_id = 'cred:secret-id'".to_owned(), &ca),
        (format!("method = 'kubernetes', role = 'sealbd', jwt = '{jwt}'"), &ca),
        ("method = 'cert', name = 'host-a'".to_owned(), &own),
    ] {
        let more = format!("auth = {{ {auth} }}\ntls = {{ {tls} }}");
        let manager = world.open("kms:prod/db", "vault-transit", &more).unwrap();
        wrapped(&*manager).await;
        let expires = manager.probe().await.unwrap().credential_expires;
        assert_eq!(expires.is_some(), !auth.contains("token-file"), "{auth}");
    }
    let more = format!("auth = {{ method = 'cert', name = 'host-a' }}\ntls = {{ {ca} }}");
    let error = world.open("kms:prod/db", "vault-transit", &more).err().unwrap();
    assert!(matches!(error, KeyError::Settings(_)), "{error}");
}

#[test]
fn settings_are_checked_when_they_are_read() {
    let auth = "auth = { method = 'token-file', token = 'file:/t' }";
    let refused = |kind: &str, rest: &str| refused_settings(&format!("type = '{kind}'\n{rest}"));
    for (rest, told) in [
        (format!("address = 'http://vault.example'\n{auth}"), "https://"),
        (format!("address = 'https://vault'\n{auth}\nmounts = 'x'"), "unknown field `mounts`"),
        (format!("address = 'https://vault'\n{auth}\nmount = '../sys'"), "a path has"),
        ("address = 'https://vault'".to_owned(), "missing field `auth`"),
        (auth.to_owned(), "missing field `address`"),
    ] {
        for kind in ["vault-transit", "vault-kv"] {
            assert!(refused(kind, &rest).contains(told), "{kind} {rest}: {}", refused(kind, &rest));
        }
    }
    assert!(
        refused("vault-kv", &format!("address = 'https://vault'\n{auth}\nversion = 3")).contains("1 or 2")
    );
    let canary = refused("vault-kv", "address = 'https://vault'\nauth = { method = 'CANARY' }");
    assert!(!canary.contains("CANARY"), "{canary}");
}

#[tokio::test]
async fn the_request_id_goes_to_the_service() {
    let world = World::new();
    wrapped(&*world.transit()).await;
    for request in &world.vault.state().requests {
        assert_eq!(request.headers["x-correlation-id"].len(), 36);
        assert_eq!(request.headers["x-vault-request"], "true");
    }
}

#[tokio::test]
async fn keyslots_of_one_key_do_not_open_with_the_other_managers_of_the_same_server() {
    let world = World::new();
    let [transit, kv1, kv2] = world.managers();
    let key = wrapped(&*transit).await;
    let relabelled = WrappedKey { slot_type: kv2.slot_type(), ..key };
    let subject = Subject { right: kv2, wrong: kv1, kek: KekOf::Manager };
    assert_refused(&subject, &relabelled, CONTEXT, "a transit keyslot as key/value").await;
}
