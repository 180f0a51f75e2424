//! Keys in a PKCS#11 token: SoftHSM2, and a module before it that does what only real tokens do.
//!
//! A module is initialised once per process and reads its environment then. So every claim runs in a process
//! of its own: the test starts itself again with the environment of its tokens, see [`tokens::with_tokens`].

mod tokens;

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use cryptoki::object::Attribute;
use keymgmt::manager::{KeyError, KeyManager, SlotType, WrapContext};
use keymgmt::provider::Provider;
use keymgmt::registry::{Opening, Registry};
use keymgmt::secret::Dek;
use keymgmt::source::{NoPrompt, Purpose, SecretReader};

use self::tokens::{Tokens, opened, with_tokens};
use crate::suite::{CONTEXT, KekOf, Subject, canary_dek, keeps_the_contract, outcome};

/// Return values and flags of PKCS#11 2.40, in hexadecimal.
const FUNCTION_FAILED: &str = "6";
const GENERAL_ERROR: &str = "5";
const PIN_LOCKED: &str = "a4";
const VENDOR_DEFINED: &str = "80000001";
const TEMPLATE_INCONSISTENT: &str = "d1";
const ACTION_PROHIBITED: &str = "1b";
const AES_GCM: &str = "1087";
const FLAG_PIN_FINAL_TRY: &str = "20000";
const FLAG_PIN_LOCKED: &str = "40000";

const FOR_GCM: [&str; 2] = ["--sensitive", "--usage-decrypt"];
const FOR_WRAP: [&str; 2] = ["--sensitive", "--usage-wrap"];

fn context(volume: u8) -> WrapContext {
    WrapContext { volume: [volume; 16], ..CONTEXT }
}

/// The id of the key that wrapped a key.
fn id_of(manager: &dyn KeyManager, key: &keymgmt::manager::WrappedKey) -> String {
    let key_id = manager.describe(key).unwrap().key_id.unwrap();
    key_id.strip_prefix("pkcs11:").unwrap().to_owned()
}

async fn contract(tokens: &Tokens, more: &str) {
    let subject = Subject {
        right: tokens.manager("one", None, more),
        wrong: tokens.manager("two", None, more),
        kek: KekOf::Manager,
    };
    keeps_the_contract(&subject).await;
}

#[test]
fn a_token_with_aes_gcm_keeps_the_contract() {
    with_tokens("a_token_with_aes_gcm_keeps_the_contract", async |tokens| {
        contract(tokens, "mechanism = 'auto'").await;
        let manager = tokens.manager("one", None, "");
        let key = manager.wrap(&canary_dek(), CONTEXT).await.unwrap();
        assert!(manager.describe(&key).unwrap().text.starts_with("AES-GCM in token "));
    });
}

#[test]
fn a_token_with_aes_key_wrap_keeps_the_contract() {
    with_tokens("a_token_with_aes_key_wrap_keeps_the_contract", async |tokens| {
        contract(tokens, "mechanism = 'aes-key-wrap'").await;
    });
}

#[test]
fn a_token_without_aes_gcm_wraps_by_aes_key_wrap() {
    with_tokens("a_token_without_aes_gcm_wraps_by_aes_key_wrap", async |tokens| {
        tokens.front_does(&format!("lacks {AES_GCM}\n"));
        let manager = tokens.fronted(None, "");
        let key = manager.wrap(&canary_dek(), CONTEXT).await.unwrap();
        assert!(manager.describe(&key).unwrap().text.starts_with("AES key wrap in token "));
        assert!(manager.unwrap(&key, CONTEXT).await.unwrap().unwrap().matches(&canary_dek()));
        let error = tokens.fronted(None, "mechanism = 'aes-gcm'").wrap(&canary_dek(), CONTEXT).await;
        assert!(matches!(error, Err(KeyError::Unsupported(_))), "{error:?}");
    });
}

#[test]
fn a_key_that_sealbd_makes_never_leaves_the_token() {
    with_tokens("a_key_that_sealbd_makes_never_leaves_the_token", async |tokens| {
        for mechanism in ["aes-gcm", "aes-key-wrap"] {
            let manager = tokens.manager("one", None, &format!("mechanism = '{mechanism}'"));
            let key = manager.wrap(&canary_dek(), CONTEXT).await.unwrap();
            let id = id_of(&*manager, &key);
            assert_eq!(id.len(), 32);
            let listed = tokens.listed(&id);
            assert!(listed.contains("sensitive, always sensitive, never extractable, local"), "{listed}");
            assert!(listed.contains("label:      sealbd\n"), "{listed}");
            let usage = if mechanism == "aes-gcm" { "encrypt, decrypt" } else { "wrap, unwrap" };
            assert!(listed.contains(&format!("Usage:      {usage}\n")), "{listed}");
        }
        // Nothing that passed through the token stays there.
        let listed = tokens.tool(&["--list-objects", "--type", "secrkey"]);
        assert_eq!(listed.matches("Secret Key Object").count(), 2, "{listed}");
    });
}

#[test]
fn a_wrong_pin_costs_the_token_one_try_and_no_more() {
    with_tokens("a_wrong_pin_costs_the_token_one_try_and_no_more", async |tokens| {
        let key = tokens.manager("one", None, "").wrap(&canary_dek(), CONTEXT).await.unwrap();
        std::fs::write(tokens.dir.join("one.pin"), "CANARY-PIN").unwrap();
        let table = tokens.table(&tokens.front(), "one", "retry_for = '20s'");
        let provider = Provider::parse("hsm", table.parse().unwrap()).unwrap();
        let registry = Registry::built_in().with_providers(vec![provider]);
        let mut prompter = NoPrompt;
        let mut reader = SecretReader::with_credentials(&mut prompter, None);
        let mut opening = Opening::new(&mut reader, Purpose::Unlock);
        // Several managers of one provider, as an open makes that goes through all keyslots, each asked twice.
        for spec in ["kms:hsm", "kms:hsm", "kms:hsm/prod"] {
            let manager = registry.open(&registry.parse(spec).unwrap(), &mut opening).unwrap();
            for _ in 0..2 {
                let error = manager.wrap(&canary_dek(), CONTEXT).await.unwrap_err();
                assert!(matches!(&error, KeyError::Settings(why) if why.contains("PIN")), "{error}");
                assert!(!error.to_string().contains("CANARY"), "{error}");
            }
            if spec == "kms:hsm" {
                assert!(matches!(manager.unwrap(&key, CONTEXT).await, Err(KeyError::Settings(_))));
                assert!(matches!(manager.probe().await, Err(KeyError::Settings(_))));
                assert!(matches!(manager.rotate(&key).await, Err(KeyError::Settings(_))));
                assert!(matches!(manager.destroy(&key).await, Err(KeyError::Settings(_))));
            }
        }
        assert_eq!(tokens.logins(), 1);
    });
}

#[test]
fn an_answer_to_a_login_that_nobody_knows_is_not_asked_for_again() {
    with_tokens("an_answer_to_a_login_that_nobody_knows_is_not_asked_for_again", async |tokens| {
        let manager = tokens.fronted(None, "");
        for (number, code) in (1..).zip([VENDOR_DEFINED, FUNCTION_FAILED, GENERAL_ERROR]) {
            std::fs::write(tokens.dir.join("one.pin"), format!("wrong {number}")).unwrap();
            tokens.front_does(&format!("login {code}\n"));
            let manager = if number == 1 { &manager } else { &tokens.fronted(None, "") };
            let _ = manager.probe().await;
            let before = tokens.logins();
            assert!(matches!(manager.probe().await, Err(KeyError::Settings(_))), "{code}");
            assert_eq!(tokens.logins(), before, "{code}");
        }
    });
}

#[test]
fn a_locked_pin_is_told_and_the_last_try_is_left_to_a_person() {
    with_tokens("a_locked_pin_is_told_and_the_last_try_is_left_to_a_person", async |tokens| {
        let manager = tokens.fronted(None, "");
        tokens.front_does(&format!("flags {FLAG_PIN_LOCKED}\n"));
        let error = manager.probe().await.unwrap_err();
        assert!(matches!(&error, KeyError::Denied(why) if why.contains("PIN is locked")), "{error}");
        tokens.front_does(&format!("flags {FLAG_PIN_FINAL_TRY}\n"));
        let error = manager.probe().await.unwrap_err();
        assert!(matches!(&error, KeyError::Settings(why) if why.contains("one try is left")), "{error}");
        assert_eq!(tokens.logins(), 0, "neither asked the token");
        tokens.front_does(&format!("login {PIN_LOCKED}\n"));
        let error = manager.probe().await.unwrap_err();
        assert!(matches!(&error, KeyError::Denied(why) if why.contains("PIN is locked")), "{error}");
    });
}

#[test]
fn a_token_that_is_not_there_is_unreachable_and_works_again_when_it_is_back() {
    let name = "a_token_that_is_not_there_is_unreachable_and_works_again_when_it_is_back";
    with_tokens(name, async |tokens| {
        let manager = tokens.fronted(None, "");
        let key = manager.wrap(&canary_dek(), CONTEXT).await.unwrap();
        tokens.front_does("gone 1\n");
        let error = manager.unwrap(&key, CONTEXT).await.err().unwrap();
        assert_eq!(error.to_string(), "key manager unreachable: no token one is present");
        assert!(matches!(error, KeyError::Unreachable(_)));
        tokens.front_does("");
        assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
        let table = tokens.table(&tokens.module, "one", "").replace("token = 'one'", "token = 'three'");
        let missing = opened(&table, None, Purpose::Unlock).0.unwrap();
        let error = missing.probe().await.unwrap_err();
        assert!(matches!(&error, KeyError::Unreachable(why) if why.contains("there are ")), "{error}");
        let table = tokens.table(&tokens.module, "one", "").replace("token = 'one'", "");
        let error = opened(&table, None, Purpose::Unlock).0.unwrap().probe().await.unwrap_err();
        assert!(matches!(&error, KeyError::Settings(why) if why.contains("several tokens fit")), "{error}");
    });
}

#[test]
fn a_token_that_hangs_is_unreachable_in_bounded_time() {
    with_tokens("a_token_that_hangs_is_unreachable_in_bounded_time", async |tokens| {
        let manager = tokens.fronted(None, "").probe().await;
        manager.unwrap();
        let table = tokens.table(&tokens.front(), "one", "").replace("'30s'", "'200ms'");
        let manager = opened(&table, None, Purpose::Unlock).0.unwrap();
        tokens.front_does("hang 1\n");
        let begun = Instant::now();
        let error = manager.probe().await.unwrap_err();
        assert_eq!(error.to_string(), "key manager unreachable: PKCS#11 token: no answer in 200ms");
        assert!(begun.elapsed().as_secs() < 20);
        tokens.front_does("");
        tokens.fronted(None, "").probe().await.unwrap();
    });
}

#[test]
fn what_is_no_module_is_told_as_a_setting() {
    with_tokens("what_is_no_module_is_told_as_a_setting", async |tokens| {
        let table = tokens.table(Path::new("/nonexistent/module.so"), "one", "");
        let error = opened(&table, None, Purpose::Unlock).0.err().unwrap();
        assert!(matches!(&error, KeyError::Settings(why) if why.contains("No such file")), "{error}");
        // A text file, and a library that is no module.
        let text = tokens.dir.join("text.so");
        std::fs::write(&text, "not a library").unwrap();
        let source = tokens.dir.join("empty.c");
        std::fs::write(&source, "int nothing(void) { return 0; }\n").unwrap();
        let library = tokens.dir.join("empty.so");
        let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
        assert!(built.unwrap().success());
        for module in [text, library] {
            let manager = opened(&tokens.table(&module, "one", ""), None, Purpose::Unlock).0.unwrap();
            let error = manager.probe().await.unwrap_err();
            assert!(
                matches!(&error, KeyError::Settings(why) if why.contains("no PKCS#11 module")),
                "{error}"
            );
        }
    });
}

#[test]
fn a_key_of_the_organisation_serves_many_volumes() {
    with_tokens("a_key_of_the_organisation_serves_many_volumes", async |tokens| {
        tokens.make_key("prod", "0a01", &FOR_GCM);
        let manager = tokens.manager("one", Some("prod"), "");
        for volume in 0..3 {
            let key = manager.wrap(&canary_dek(), context(volume)).await.unwrap();
            assert_eq!(key.kek_uri, "pkcs11:0a01");
            assert!(outcome(&*manager, &key, context(volume)).await.unwrap());
            // Found by its id, whatever the spec names.
            assert!(outcome(&*tokens.manager("one", None, ""), &key, context(volume)).await.unwrap());
            let by_id = tokens.manager("one", Some("id=0a01"), "");
            assert!(outcome(&*by_id, &key, context(volume)).await.unwrap());
            // Left to others.
            assert!(
                !outcome(&*tokens.manager("one", Some("test"), ""), &key, context(volume)).await.unwrap()
            );
            let result = manager.destroy(&key).await;
            assert!(matches!(result, Err(KeyError::Unsupported(_))), "others depend on it: {result:?}");
        }
        let error = tokens.manager("one", Some("absent"), "").wrap(&canary_dek(), CONTEXT).await.unwrap_err();
        assert_eq!(error.to_string(), "key manager denied: the token has no secret key absent");
        let health = manager.probe().await.unwrap().text;
        assert!(
            health.starts_with("token one (serial ") && health.ends_with("key prod (id 0a01)"),
            "{health}"
        );
    });
}

#[test]
fn a_label_that_two_keys_have_is_refused_with_their_ids() {
    with_tokens("a_label_that_two_keys_have_is_refused_with_their_ids", async |tokens| {
        tokens.make_key("prod", "01", &FOR_GCM);
        let manager = tokens.manager("one", Some("prod"), "");
        let key = manager.wrap(&canary_dek(), CONTEXT).await.unwrap();
        tokens.make_key("prod", "02", &FOR_GCM);
        let told =
            "the token has 2 keys prod that may wrap, of ids 01, 02; a key is chosen by id= and its id";
        let swapped = told.replace("01, 02", "02, 01");
        for error in [manager.wrap(&canary_dek(), CONTEXT).await.err(), manager.rotate(&key).await.err()] {
            let Some(KeyError::Denied(why)) = error else { panic!("{error:?}") };
            assert!(why == told || why == swapped, "{why}");
        }
        assert!(outcome(&*manager, &key, CONTEXT).await.unwrap(), "what is wrapped already unwraps");
        let chosen = tokens.manager("one", Some("id=02"), "").wrap(&canary_dek(), CONTEXT).await.unwrap();
        assert_eq!(chosen.kek_uri, "pkcs11:02");
        // Two keys of one id: no keyslot can say which it means.
        tokens.make_key("other", "01", &FOR_GCM);
        let error = manager.unwrap(&key, CONTEXT).await.err().unwrap();
        assert!(matches!(&error, KeyError::Denied(why) if why.contains("several keys of id 01")), "{error}");
    });
}

#[test]
fn a_key_that_was_deleted_outside_is_told_as_denied() {
    with_tokens("a_key_that_was_deleted_outside_is_told_as_denied", async |tokens| {
        let manager = tokens.manager("one", None, "");
        let key = manager.wrap(&canary_dek(), CONTEXT).await.unwrap();
        let id = id_of(&*manager, &key);
        tokens.tool(&["--delete-object", "--type", "secrkey", "--id", &id]);
        let error = manager.unwrap(&key, CONTEXT).await.err().unwrap();
        let told = format!("key manager denied: the token has no key of id {id}: it was destroyed");
        assert_eq!(error.to_string(), told);
        manager.destroy(&key).await.unwrap();
        // Another token cannot tell whether the key lives on.
        let other = tokens.manager("two", None, "");
        assert!(matches!(other.destroy(&key).await, Err(KeyError::Denied(_))));
        // Another key under the same id.
        tokens.make_key("impostor", &id, &FOR_GCM);
        let error = manager.unwrap(&key, CONTEXT).await.err().unwrap();
        assert!(matches!(&error, KeyError::Denied(why) if why.contains("another key")), "{error}");
    });
}

#[test]
fn an_extractable_key_is_warned_of() {
    with_tokens("an_extractable_key_is_warned_of", async |tokens| {
        tokens.make_key("loose", "01", &["--extractable", "--usage-decrypt"]);
        tokens.make_key("tight", "02", &FOR_GCM);
        let table = tokens.table(&tokens.module, "one", "");
        let (_, warnings) = opened(&table, Some("loose"), Purpose::New);
        assert_eq!(
            warnings,
            ["key loose (id 01) is extractable: whoever has the PIN can copy it out of the token"]
        );
        assert!(opened(&table, Some("tight"), Purpose::New).1.is_empty());
        let health = tokens.manager("one", Some("loose"), "").probe().await.unwrap().text;
        assert!(health.contains("is extractable"), "{health}");
    });
}

#[test]
fn a_key_is_used_as_its_rights_allow() {
    with_tokens("a_key_is_used_as_its_rights_allow", async |tokens| {
        tokens.make_key("wraps", "01", &FOR_WRAP);
        tokens.change(1, &[Attribute::Encrypt(false), Attribute::Decrypt(false)]);
        tokens.make_key("one way", "02", &FOR_GCM);
        tokens.change(2, &[Attribute::Decrypt(false), Attribute::Unwrap(false)]);
        let manager = tokens.manager("one", Some("wraps"), "");
        let key = manager.wrap(&canary_dek(), CONTEXT).await.unwrap();
        assert!(manager.describe(&key).unwrap().text.starts_with("AES key wrap"));
        assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
        let manager = tokens.manager("one", Some("wraps"), "mechanism = 'aes-gcm'");
        let error = manager.wrap(&canary_dek(), CONTEXT).await.unwrap_err();
        let told = "key manager denied: key wraps of the token has no right to encrypt and decrypt";
        assert_eq!(error.to_string(), told);
        let error =
            tokens.manager("one", Some("one way"), "").wrap(&canary_dek(), CONTEXT).await.unwrap_err();
        assert!(matches!(error, KeyError::Denied(_)), "{error}");
    });
}

#[test]
fn a_key_that_is_no_aes_256_key_is_refused() {
    with_tokens("a_key_that_is_no_aes_256_key_is_refused", async |tokens| {
        tokens.tool(&[
            "--keygen",
            "--key-type",
            "AES:16",
            "--label",
            "short",
            "--id",
            "01",
            "--usage-decrypt",
        ]);
        tokens.tool(&["--keygen", "--key-type", "GENERIC:32", "--label", "generic", "--id", "02"]);
        tokens.tool(&[
            "--keygen",
            "--key-type",
            "AES:32",
            "--label",
            "no id",
            "--sensitive",
            "--usage-decrypt",
        ]);
        for (label, told) in [("short", "no AES key of 256 bits"), ("generic", "no AES key of 256 bits")] {
            let error =
                tokens.manager("one", Some(label), "").wrap(&canary_dek(), CONTEXT).await.unwrap_err();
            assert!(matches!(&error, KeyError::Settings(why) if why.contains(told)), "{error}");
        }
        let error = tokens.manager("one", Some("no id"), "").wrap(&canary_dek(), CONTEXT).await.unwrap_err();
        assert!(matches!(&error, KeyError::Settings(why) if why.contains("has no id")), "{error}");
    });
}

#[test]
fn the_rotation_of_a_shared_key_makes_one_successor_for_all_volumes() {
    with_tokens("the_rotation_of_a_shared_key_makes_one_successor_for_all_volumes", async |tokens| {
        tokens.make_key("prod", "01", &FOR_GCM);
        let mut old = Vec::new();
        for volume in 0..3 {
            let manager = tokens.manager("one", Some("prod"), "");
            old.push(manager.wrap(&canary_dek(), context(volume)).await.unwrap());
        }
        let mut ids = HashSet::new();
        for (volume, old) in (0..).zip(&old) {
            let manager = tokens.manager("one", Some("prod"), "");
            manager.rotate(old).await.unwrap();
            let new = manager.wrap(&canary_dek(), context(volume)).await.unwrap();
            ids.insert(id_of(&*manager, &new));
            for key in [old, &new] {
                assert!(outcome(&*manager, key, context(volume)).await.unwrap());
            }
        }
        assert_eq!(ids.len(), 1, "{ids:?}");
        assert!(!ids.contains("01"));
        // The label names the successor from now on, and the old key only decrypts.
        let fresh = tokens.manager("one", Some("prod"), "").wrap(&canary_dek(), CONTEXT).await.unwrap();
        assert!(ids.contains(&id_of(&*tokens.manager("one", None, ""), &fresh)));
        let listed = tokens.listed("01");
        assert!(listed.contains("Usage:      decrypt, "), "neither encrypt nor wrap: {listed}");
        assert!(!listed.contains(" wrap"), "{listed}");
        let error = tokens.manager("one", Some("id=01"), "").wrap(&canary_dek(), CONTEXT).await.unwrap_err();
        assert!(matches!(error, KeyError::Denied(_)), "a retired key wraps nothing new: {error}");
    });
}

#[test]
fn a_rotation_that_was_cut_off_is_finished_by_the_next() {
    with_tokens("a_rotation_that_was_cut_off_is_finished_by_the_next", async |tokens| {
        tokens.make_key("prod", "01", &FOR_GCM);
        let old = tokens.manager("one", Some("prod"), "").wrap(&canary_dek(), CONTEXT).await.unwrap();
        // Cut off after the new key was made, before it wrapped anything.
        tokens.manager("one", Some("prod"), "").rotate(&old).await.unwrap();
        let listed = || tokens.tool(&["--list-objects", "--type", "secrkey"]).matches("Secret Key").count();
        assert_eq!(listed(), 2);
        let manager = tokens.manager("one", Some("prod"), "");
        manager.rotate(&old).await.unwrap();
        assert_eq!(listed(), 2, "the key that was made already is taken");
        let new = manager.wrap(&canary_dek(), CONTEXT).await.unwrap();
        // Cut off between retiring and making: no key of the label may wrap.
        tokens.tool(&["--delete-object", "--type", "secrkey", "--id", &id_of(&*manager, &new)]);
        let fresh = tokens.manager("one", Some("prod"), "");
        let error = fresh.wrap(&canary_dek(), CONTEXT).await.unwrap_err();
        assert!(matches!(&error, KeyError::Denied(why) if why.contains("retired")), "{error}");
        fresh.rotate(&old).await.unwrap();
        let new = fresh.wrap(&canary_dek(), CONTEXT).await.unwrap();
        assert!(
            outcome(&*fresh, &new, CONTEXT).await.unwrap() && outcome(&*fresh, &old, CONTEXT).await.unwrap()
        );
    });
}

#[test]
fn a_key_that_cannot_be_retired_is_not_rotated() {
    with_tokens("a_key_that_cannot_be_retired_is_not_rotated", async |tokens| {
        tokens.make_key("prod", "01", &FOR_GCM);
        let manager = tokens.fronted(Some("prod"), "");
        let key = manager.wrap(&canary_dek(), CONTEXT).await.unwrap();
        tokens.front_does(&format!("setattr {ACTION_PROHIBITED}\n"));
        let error = manager.rotate(&key).await.unwrap_err();
        assert!(matches!(&error, KeyError::Unsupported(why) if why.contains("another label")), "{error}");
        assert_eq!(manager.wrap(&canary_dek(), CONTEXT).await.unwrap().kek_uri, "pkcs11:01");
    });
}

#[test]
fn a_token_that_lets_no_key_pass_is_told_as_unsupported() {
    with_tokens("a_token_that_lets_no_key_pass_is_told_as_unsupported", async |tokens| {
        tokens.front_does(&format!("create {TEMPLATE_INCONSISTENT}\n"));
        let manager = tokens.fronted(None, "mechanism = 'aes-key-wrap'");
        let error = manager.wrap(&canary_dek(), CONTEXT).await.unwrap_err();
        assert!(
            matches!(&error, KeyError::Unsupported(why) if why.contains("lets a key of ours pass")),
            "{error}"
        );
        let manager = tokens.fronted(None, "");
        let key = manager.wrap(&canary_dek(), CONTEXT).await.unwrap();
        assert!(outcome(&*manager, &key, CONTEXT).await.unwrap(), "AES-GCM does without");
    });
}

#[test]
fn what_a_rotation_made_for_one_volume_is_used_for_no_other() {
    with_tokens("what_a_rotation_made_for_one_volume_is_used_for_no_other", async |tokens| {
        let manager = tokens.manager("one", None, "");
        let old = manager.wrap(&canary_dek(), context(1)).await.unwrap();
        manager.rotate(&old).await.unwrap();
        let one = manager.wrap(&canary_dek(), context(1)).await.unwrap();
        let again = manager.wrap(&canary_dek(), context(1)).await.unwrap();
        let two = manager.wrap(&canary_dek(), context(2)).await.unwrap();
        assert_eq!(one.kek_uri, again.kek_uri);
        assert_ne!(one.kek_uri, two.kek_uri);
        manager.destroy(&one).await.unwrap();
        assert!(outcome(&*manager, &two, context(2)).await.unwrap());
    });
}

#[test]
fn four_threads_use_one_token_side_by_side() {
    with_tokens("four_threads_use_one_token_side_by_side", async |tokens| {
        tokens.make_key("prod", "01", &FOR_GCM);
        let mut tasks = Vec::new();
        for volume in 0..4 {
            // Two managers of one key, two of their own, all of one module.
            let manager = tokens.manager("one", (volume % 2 == 0).then_some("prod"), "");
            tasks.push(tokio::spawn(async move {
                for _ in 0..20 {
                    let dek = Dek::generate().unwrap();
                    let key = manager.wrap(&dek, context(volume)).await.unwrap();
                    assert!(manager.unwrap(&key, context(volume)).await.unwrap().unwrap().matches(&dek));
                    assert!(outcome(&*manager, &key, context(volume + 1)).await.is_err());
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
}

/// Prints the median: figures of docs/KEYS.md.
#[test]
fn an_unwrap_takes_less_than_a_second() {
    with_tokens("an_unwrap_takes_less_than_a_second", async |tokens| {
        for mechanism in ["aes-gcm", "aes-key-wrap"] {
            let manager = tokens.manager("one", None, &format!("mechanism = '{mechanism}'"));
            assert_eq!(manager.slot_type(), SlotType::Pkcs11);
            let key = manager.wrap(&canary_dek(), CONTEXT).await.unwrap();
            let mut times = Vec::new();
            for _ in 0..101 {
                let begun = Instant::now();
                assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
                times.push(begun.elapsed());
            }
            times.sort();
            println!("pkcs11 {mechanism}: unwrap p50 {:?}", times[50]);
            assert!(times[50].as_secs() < 1, "{:?}", times[50]);
        }
    });
}
