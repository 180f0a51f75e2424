//! Forms of keyslots, states of keys, rotation and destruction, against a server of ours that does what is right.

use keymgmt::manager::{KeyError, KeyManager, WrappedKey};

use super::{OTHER, World, assert_denied, id_of, opens, refusal, wrap};
use crate::scripted_kmip::{
    ACTIVATE, COMPROMISED, CREATE, DEACTIVATED, DECRYPT, DESTROY, DESTROYED, ENCRYPT, Fault, GET, PRE_ACTIVE,
    RE_KEY, REVOKE,
};
use crate::suite::{CONTEXT, KekOf, Subject, canary_dek, keeps_the_contract};

/// A form in words, and the settings under which it is made.
const FORMS: [(&str, &str); 3] = [
    ("fetched KEK", "mode = 'get'"),
    ("AES key wrap in the server", "mode = 'encrypt'"),
    (GCM, "mode = 'encrypt'"),
];
const GCM: &str = "AES-GCM in the server";

/// A server that leaves no other form.
fn world_of(form: &str) -> World {
    let world = World::new();
    world.server.state().key_wrap = form != GCM;
    world
}

/// A world for each form, with a manager and what it wrapped.
async fn every_form(lenient: bool) -> Vec<(World, Box<dyn KeyManager>, WrappedKey)> {
    let mut all = Vec::new();
    for (form, more) in FORMS {
        let world = world_of(form);
        world.server.state().strict = !lenient;
        let manager = world.manager("kms:prod", more);
        let key = wrap(&*manager).await;
        assert!(manager.describe(&key).unwrap().text.starts_with(form));
        all.push((world, manager, key));
    }
    all
}

#[tokio::test]
async fn every_form_keeps_the_contract_in_every_version_that_has_it() {
    for (form, more) in FORMS {
        for version in ["1.2", "1.4", "2.0"] {
            if (version, form) == ("1.2", GCM) {
                continue;
            }
            let world = world_of(form);
            let more = format!("{more}\nversion = '{version}'");
            let right = world.manager("kms:prod", &more);
            let text = right.describe(&wrap(&*right).await).unwrap().text;
            assert!(text.starts_with(form), "{text}");
            let subject = Subject { right, wrong: world.other(&more), kek: KekOf::Manager };
            assert_eq!(keeps_the_contract(&subject).await, 14);
        }
    }
}

#[tokio::test]
async fn auto_takes_the_best_that_the_server_can() {
    for (key_wrap, gcm, version, form) in [
        (true, true, "auto", "AES key wrap"),
        (false, true, "auto", "AES-GCM"),
        (false, true, "1.4", "AES-GCM"),
        (false, true, "1.2", "fetched KEK"),
        (false, false, "auto", "fetched KEK"),
    ] {
        let world = World::new();
        (world.server.state().key_wrap, world.server.state().gcm) = (key_wrap, gcm);
        let manager = world.manager("kms:prod", &format!("version = '{version}'"));
        let key = wrap(&*manager).await;
        let text = manager.describe(&key).unwrap().text;
        assert!(text.starts_with(form), "{text}");
        assert!(opens(&*manager, &key).await);
    }
    let world = World::new();
    world.server.state().operations.retain(|operation| ![ENCRYPT, DECRYPT].contains(operation));
    let manager = world.manager("kms:prod", "");
    assert!(opens(&*manager, &wrap(&*manager).await).await);
    assert_eq!(world.server.count(ENCRYPT), 0, "what is not offered is not asked for");
}

#[tokio::test]
async fn a_tag_that_is_missing_is_told_and_no_key_is_left_behind() {
    let world = World::new();
    (world.server.state().key_wrap, world.server.state().gcm) = (false, false);
    let manager = world.manager("kms:prod", "mode = 'encrypt'");
    let error = manager.wrap(&canary_dek(), CONTEXT).await.unwrap_err();
    assert!(
        matches!(&error, KeyError::Unsupported(why) if why.contains("key wrap") && why.contains("GCM")),
        "{error}"
    );
    assert!(world.server.state().keys.values().all(|key| key.state == DESTROYED));
    world.server.state().operations.retain(|operation| *operation != ENCRYPT);
    let error = manager.wrap(&canary_dek(), CONTEXT).await.unwrap_err();
    assert!(matches!(&error, KeyError::Unsupported(why) if why.contains("mode")), "{error}");
}

#[tokio::test]
async fn a_server_that_passes_over_additional_data_is_not_used_for_it() {
    let world = World::new();
    (world.server.state().key_wrap, world.server.state().ignores_aad) = (false, true);
    let key = wrap(&*world.manager("kms:prod", "")).await;
    let manager = world.manager("kms:prod", "mode = 'encrypt'");
    assert!(manager.describe(&key).unwrap().text.starts_with("fetched KEK"));
    assert!(matches!(manager.wrap(&canary_dek(), CONTEXT).await, Err(KeyError::Unsupported(_))));
}

#[tokio::test]
async fn a_keyslot_of_another_form_than_the_mode_is_refused_and_no_key_is_fetched() {
    for (world, _, key) in every_form(true).await {
        let is_get = key.private.get(9) == Some(&1) && key.private[0] == 1;
        let (right, wrong) = if is_get { ("get", "encrypt") } else { ("encrypt", "get") };
        let (gets, decrypts) = (world.server.count(GET), world.server.count(DECRYPT));
        let manager = world.manager("kms:prod", &format!("mode = '{wrong}'"));
        assert_denied(&refusal(&*manager, &key).await, &format!("not of mode = \"{wrong}\""));
        assert_eq!((world.server.count(GET), world.server.count(DECRYPT)), (gets, decrypts));
        for mode in [right, "auto"] {
            assert!(opens(&*world.manager("kms:prod", &format!("mode = '{mode}'")), &key).await);
        }
    }
}

#[tokio::test]
async fn a_key_that_encrypts_never_leaves_the_server_where_it_can_be_said_so() {
    for (version, sensitive, told) in
        [("1.4", true, 0), ("2.0", true, 0), ("1.2", true, 0), ("2.0", false, 1)]
    {
        let world = World::new();
        world.server.state().sensitive = sensitive;
        let manager = world.manager("kms:prod", &format!("mode = 'encrypt'\nversion = '{version}'"));
        let key = wrap(&*manager).await;
        assert!(opens(&*manager, &key).await);
        let notes = manager.notes();
        assert_eq!(notes.len(), told, "{notes:?}");
        let fetched = world.manager(&format!("kms:prod/{}", id_of(&key)), "mode = 'get'");
        let fetched = fetched.wrap(&canary_dek(), CONTEXT).await;
        if version == "1.2" || !sensitive {
            fetched.unwrap();
        } else {
            assert_denied(&fetched.unwrap_err(), "the key does not leave the server");
        }
    }
}

#[tokio::test]
async fn only_an_active_key_wraps() {
    for (state, name) in [
        (PRE_ACTIVE, "Pre-Active"),
        (DEACTIVATED, "Deactivated"),
        (COMPROMISED, "Compromised"),
        (DESTROYED, "Destroyed"),
        (6, "Destroyed Compromised"),
    ] {
        for (world, _, key) in every_form(true).await {
            let id = id_of(&key).to_owned();
            world.server.state().keys.get_mut(&id).unwrap().state = state;
            let asked = world.server.count(ENCRYPT) + world.server.count(GET);
            let named = world.manager(&format!("kms:prod/{id}"), "");
            let error = named.wrap(&canary_dek(), CONTEXT).await.unwrap_err();
            assert_denied(&error, &format!("is {name}"));
            assert_eq!(world.server.count(ENCRYPT) + world.server.count(GET), asked, "{name}");
        }
    }
}

#[tokio::test]
async fn a_compromised_key_opens_nothing_even_where_the_server_hands_it_out() {
    for (state, name) in [
        (PRE_ACTIVE, "Pre-Active"),
        (COMPROMISED, "Compromised"),
        (DESTROYED, "Destroyed"),
        (6, "Destroyed Compromised"),
    ] {
        for (world, manager, key) in every_form(true).await {
            world.server.state().keys.get_mut(id_of(&key)).unwrap().state = state;
            let asked = world.server.count(DECRYPT) + world.server.count(GET);
            assert_denied(&refusal(&*manager, &key).await, &format!("is {name}"));
            assert_eq!(world.server.count(DECRYPT) + world.server.count(GET), asked, "{name}");
        }
    }
}

#[tokio::test]
async fn a_deactivated_key_still_opens_and_that_is_told_once() {
    for (world, manager, key) in every_form(true).await {
        assert!(opens(&*manager, &key).await);
        assert!(manager.notes().is_empty());
        world.server.state().keys.get_mut(id_of(&key)).unwrap().state = DEACTIVATED;
        assert!(opens(&*manager, &key).await);
        assert!(opens(&*manager, &key).await);
        let notes = manager.notes();
        assert!(matches!(notes.as_slice(), [note] if note.contains("Deactivated")), "{notes:?}");
        assert!(manager.notes().is_empty());
    }
}

#[tokio::test]
async fn a_new_key_is_activated_where_it_is_not_active_already() {
    for active in [false, true] {
        let world = World::new();
        world.server.state().active = active;
        wrap(&*world.manager("kms:prod", "")).await;
        assert_eq!(world.server.count(ACTIVATE), usize::from(!active));
    }
}

#[tokio::test]
async fn re_key_replaces_a_key_of_the_encrypting_forms() {
    for (world, manager, old) in every_form(false).await.into_iter().skip(1) {
        manager.rotate(&old).await.unwrap();
        assert_eq!(world.server.count(RE_KEY), 1);
        assert_eq!(world.server.state().keys[id_of(&old)].state, DEACTIVATED);
        let creations = world.server.count(CREATE);
        let new = wrap(&*manager).await;
        assert_eq!(world.server.count(CREATE), creations, "the replacement is used");
        assert_ne!(id_of(&new), id_of(&old));
        assert!(opens(&*manager, &old).await && opens(&*manager, &new).await);
        // It is used for one keyslot alone.
        assert_ne!(id_of(&wrap(&*manager).await), id_of(&new));
    }
}

#[tokio::test]
async fn in_get_mode_rotation_leaves_the_old_key_active() {
    let (world, manager, old) = every_form(false).await.remove(0);
    manager.rotate(&old).await.unwrap();
    assert_eq!(world.server.count(RE_KEY), 0, "a strict server would refuse Get of a key that was replaced");
    let new = wrap(&*manager).await;
    assert_ne!(id_of(&new), id_of(&old));
    assert!(opens(&*manager, &old).await);
}

#[tokio::test]
async fn a_server_without_re_key_makes_a_new_key_with_the_next_wrap() {
    for offered in [false, true] {
        for (world, manager, old) in every_form(false).await {
            if offered {
                world.server.state().faults = vec![(RE_KEY, Fault::Refuse(0x5))];
            } else {
                world.server.state().operations.retain(|operation| *operation != RE_KEY);
            }
            manager.rotate(&old).await.unwrap();
            assert_ne!(id_of(&wrap(&*manager).await), id_of(&old));
            assert!(opens(&*manager, &old).await);
        }
    }
}

#[tokio::test]
async fn a_rotation_whose_answer_is_lost_is_not_repeated() {
    let (world, manager, old) = every_form(false).await.remove(1);
    world.server.state().faults = vec![(RE_KEY, Fault::HangUp)];
    let error = manager.rotate(&old).await.unwrap_err();
    assert!(matches!(error, KeyError::Unreachable(_)), "{error}");
    assert_eq!(world.server.count(RE_KEY), 1);
    assert!(opens(&*manager, &old).await);
}

#[tokio::test]
async fn a_named_key_is_used_and_is_its_owners_to_rotate_and_destroy() {
    for (world, _, key) in every_form(true).await {
        let (id, own) = (id_of(&key).to_owned(), world.manager("kms:prod", ""));
        let creations = world.server.count(CREATE);
        let named = world.manager(&format!("kms:prod/{id}"), "");
        let given = wrap(&*named).await;
        assert_eq!((id_of(&given), world.server.count(CREATE)), (id.as_str(), creations));
        assert!(opens(&*named, &given).await && opens(&*own, &given).await);
        assert!(matches!(named.rotate(&given).await, Err(KeyError::Unsupported(_))));
        for manager in [&named, &own] {
            assert!(matches!(manager.destroy(&given).await, Err(KeyError::Unsupported(_))));
        }
        assert_eq!((world.server.count(RE_KEY), world.server.count(REVOKE)), (0, 0));
        // Keyslots of other keys are left to others.
        let other = wrap(&*own).await;
        assert!(named.unwrap(&other, CONTEXT).await.unwrap().is_none());
        assert!(named.probe().await.unwrap().text.contains(&format!("key {id} is Active")));
    }
}

#[tokio::test]
async fn another_key_under_the_same_identifier_is_told_and_never_used() {
    for (world, manager, key) in every_form(true).await {
        world.server.state().keys.get_mut(id_of(&key)).unwrap().bytes[0] ^= 1;
        assert_denied(&refusal(&*manager, &key).await, "another key");
    }
}

#[tokio::test]
async fn another_key_under_the_same_identifier_is_not_destroyed() {
    for (world, manager, key) in every_form(true).await {
        world.server.state().keys.get_mut(id_of(&key)).unwrap().made += 1;
        assert_denied(&manager.destroy(&key).await.unwrap_err(), "was not destroyed");
        assert_eq!((world.server.count(REVOKE), world.server.count(DESTROY)), (0, 0));
    }
}

#[tokio::test]
async fn destruction_revokes_first_and_is_done_when_it_was_done() {
    for (world, manager, key) in every_form(false).await {
        for _ in 0..2 {
            manager.destroy(&key).await.unwrap();
            assert_eq!((world.server.count(REVOKE), world.server.count(DESTROY)), (1, 1));
        }
        assert_eq!(world.server.state().keys[id_of(&key)].state, DESTROYED);
        world.server.state().keys.clear();
        manager.destroy(&key).await.unwrap();
    }
}

#[tokio::test]
async fn a_key_that_is_still_there_is_not_told_as_destroyed() {
    let (world, manager, key) = every_form(false).await.remove(0);
    world.server.state().faults = vec![(REVOKE, Fault::Refuse(0xc))];
    // The scripted server did revoke; what counts is the answer to Destroy.
    world.server.state().faults.push((DESTROY, Fault::Refuse(0xc)));
    assert_denied(&manager.destroy(&key).await.unwrap_err(), "Destroy kmip:");
}

#[tokio::test]
async fn a_keyslot_of_another_volume_does_not_open_in_any_form() {
    for (_world, manager, key) in every_form(true).await {
        match manager.unwrap(&key, OTHER).await {
            Ok(opened) => assert!(opened.is_none()),
            Err(error) => assert!(matches!(error, KeyError::Denied(_)), "{error}"),
        }
    }
}

/// Nothing is read from the server's clock.
#[tokio::test]
async fn the_clocks_of_the_two_need_not_agree() {
    for now in [0, -1, i64::MAX, 32_503_680_000] {
        let world = World::new();
        world.server.state().now = now;
        let manager = world.manager("kms:prod", "");
        let key = wrap(&*manager).await;
        assert!(opens(&*manager, &key).await);
        manager.destroy(&key).await.unwrap();
        assert_eq!(world.server.state().keys[id_of(&key)].state, DESTROYED);
    }
}
