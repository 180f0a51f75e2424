//! Tokens that end: renewal, login again, and never more often than once. Time is the test's own.

use std::time::{Duration, SystemTime};

use keymgmt::manager::{KeyError, KeyManager};

use super::{TOKEN, TRANSIT_HOST, World, wrapped};
use crate::scripted_vault::{Policy, Role, TokenEntry};
use crate::suite::{CONTEXT, outcome};

const LEASE: u64 = 600;
const RENEW: &str = "auth/token/renew-self";
const LOGIN: &str = "auth/approle/login";

fn host(renewable: bool) -> TokenEntry {
    TokenEntry { policies: vec![Policy::parse(TRANSIT_HOST)], ttl: LEASE, renewable, ..TokenEntry::default() }
}

/// A host that logs in with AppRole.
fn world(grants: TokenEntry) -> (World, Box<dyn KeyManager>) {
    let world = World::new();
    world.write("secret-id", "CANARY-secret-id");
    let role = Role { name: "host", secret: "CANARY-secret-id".into(), grants, ..Role::default() };
    world.vault.state().roles.insert("approle", role);
    let auth = "auth = { method = 'approle', role_id = 'host', secret_id = 'cred:secret-id' }";
    let manager = world.open("kms:prod/db", "vault-transit", auth).unwrap();
    (world, manager)
}

/// Both clocks, ours and the server's.
async fn passes(world: &World, seconds: u64) {
    world.vault.state().now += seconds;
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_is_renewed_from_half_of_its_lease_on_and_not_before() {
    let (world, manager) = world(host(true));
    let key = wrapped(&*manager).await;
    passes(&world, LEASE / 2 - 1).await;
    assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
    assert_eq!(world.vault.count(RENEW), 0);
    for (renewals, seconds) in (1..).zip([2, LEASE / 2, LEASE / 2 + 100, LEASE - 1]) {
        passes(&world, seconds).await;
        assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
        assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
        assert_eq!(world.vault.count(RENEW), renewals);
    }
    assert_eq!(world.vault.count(LOGIN), 1, "four and a half leases on one login");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_not_renewed_is_made_anew_at_half_of_its_lease() {
    let (world, manager) = world(host(false));
    let key = wrapped(&*manager).await;
    passes(&world, LEASE / 2 + 1).await;
    assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
    assert_eq!((world.vault.count(RENEW), world.vault.count(LOGIN)), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_token_near_the_end_of_its_longest_life_is_made_anew() {
    let (world, manager) = world(TokenEntry { longest: Some(LEASE), ..host(true) });
    let key = wrapped(&*manager).await;
    passes(&world, LEASE / 2 + 1).await;
    assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
    assert_eq!(world.vault.count(LOGIN), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_costs_nothing_while_the_token_lasts() {
    let (world, manager) = world(host(true));
    let key = wrapped(&*manager).await;
    world.vault.state().roles.clear();
    world.vault.state().tokens.values_mut().for_each(|token| token.renewable = false);
    passes(&world, LEASE / 2 + 1).await;
    assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
    passes(&world, LEASE / 2).await;
    let error = outcome(&*manager, &key, CONTEXT).await.unwrap_err();
    assert!(matches!(error, KeyError::Denied(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_is_not_sent_any_more() {
    let (world, manager) = world(host(true));
    let key = wrapped(&*manager).await;
    passes(&world, 3 * LEASE).await;
    assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
    assert_eq!((world.vault.count(RENEW), world.vault.count(LOGIN)), (0, 2));
}

/// The host slept: its clock stood still while the server's went on.
#[tokio::test]
async fn a_token_that_the_server_forgot_is_made_anew_once_and_the_request_repeated_once() {
    let (world, manager) = world(host(true));
    let key = wrapped(&*manager).await;
    world.vault.state().now += 3 * LEASE;
    let before = world.vault.count("transit/decrypt/db");
    assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
    assert_eq!(world.vault.count(LOGIN), 2);
    assert_eq!(world.vault.count("transit/decrypt/db") - before, 2);
}

#[tokio::test]
async fn a_revoked_right_is_denied_without_a_login_for_every_try() {
    let (world, manager) = world(host(true));
    let key = wrapped(&*manager).await;
    world.vault.state().tokens.values_mut().for_each(|token| token.policies.clear());
    for _ in 0..3 {
        let error = outcome(&*manager, &key, CONTEXT).await.unwrap_err();
        assert!(matches!(error, KeyError::Denied(_)), "{error}");
    }
    assert_eq!(world.vault.count(LOGIN), 1, "the token is known: logging in again would not help");
}

#[tokio::test]
async fn a_login_that_brings_no_right_is_tried_once_and_never_in_a_loop() {
    let (world, manager) = world(host(true));
    let key = wrapped(&*manager).await;
    world.vault.state().tokens.clear();
    world.vault.state().roles.get_mut("approle").unwrap().grants.policies.clear();
    let error = outcome(&*manager, &key, CONTEXT).await.unwrap_err();
    assert!(matches!(error, KeyError::Denied(_)), "{error}");
    assert_eq!(world.vault.count(LOGIN), 2);
}

#[tokio::test]
async fn a_token_that_was_just_made_is_not_doubted() {
    let (world, manager) = world(TokenEntry { policies: Vec::new(), ..host(true) });
    assert!(matches!(wrap_error(&*manager).await, KeyError::Denied(_)));
    assert_eq!((world.vault.count(LOGIN), world.vault.count("auth/token/lookup-self")), (1, 0));
}

#[tokio::test]
async fn a_revoked_role_is_denied_and_the_secret_id_is_not_told() {
    let (world, manager) = world(host(true));
    world.vault.state().roles.get_mut("approle").unwrap().uses = Some(0);
    let error = wrap_error(&*manager).await;
    assert!(matches!(error, KeyError::Denied(_)), "{error}");
    assert!(!format!("{error} {error:?}").contains("CANARY"), "{error}");
}

async fn wrap_error(manager: &dyn KeyManager) -> KeyError {
    manager.wrap(&crate::suite::canary_dek(), CONTEXT).await.unwrap_err()
}

#[tokio::test]
async fn a_token_in_a_file_is_read_again_when_it_was_replaced() {
    let world = World::new();
    let file = world.credentials.path().join("token");
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let auth = format!("auth = {{ method = 'token-file', token = 'file:{}' }}", file.display());
    let manager = world.open("kms:prod/db", "vault-transit", &auth).unwrap();
    let key = wrapped(&*manager).await;
    let entry = world.vault.state().tokens.remove(TOKEN).unwrap();
    let error = outcome(&*manager, &key, CONTEXT).await.unwrap_err();
    assert!(matches!(error, KeyError::Denied(_)), "{error}");
    world.vault.state().tokens.insert("hvs.CANARY-next".into(), entry);
    world.write("token", "hvs.CANARY-next\n");
    assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
}

#[tokio::test]
async fn a_token_without_the_right_to_ask_for_itself_works() {
    let world = World::new();
    world.vault.state().tokens.get_mut(TOKEN).unwrap().without_default = true;
    wrapped(&*world.transit()).await;
}

/// The server of these tests says that tokens end in 1990.
#[tokio::test]
async fn the_end_of_a_token_is_reckoned_on_our_clock_whatever_the_servers_says() {
    let (_world, manager) = world(host(true));
    let health = manager.probe().await.unwrap();
    let left = health.credential_expires.unwrap().duration_since(SystemTime::now()).unwrap().as_secs();
    assert!((LEASE - 60..=LEASE).contains(&left), "{left}");
    assert!(health.text.contains("1.15.2") && health.text.contains("unsealed"), "{}", health.text);
}
