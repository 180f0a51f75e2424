//! Whoever has the store writes what he likes into keyslots: those of another volume, key ids that are paths, commands or
//! JSON, versions of other keys. No key manager does anything by it but say no.

use crate::desk::{Desk, SIZE};
use crate::keys::with_checksum;
use crate::plugins::{Plugin, with_config};

const LOCAL: Plugin = Plugin::Example("local");
const QUICK: Plugin = Plugin::Quick("quick-keys");

/// Where things lie (docs/FORMAT.md §4).
const HEADER_LEN: usize = 64 * 1024;
const KEYSLOTS: usize = 4096;
const KEYSLOT_LEN: usize = 2048;
const URI_LEN_AT: usize = 16;
const PRIVATE_LEN_AT: usize = 20;
const URI_AT: usize = 24;
const URI_MAX: usize = 256;
const PRIVATE_AT: usize = URI_AT + URI_MAX + 1024 + 32;

/// Puts a header with a fitting checksum over both copies: all that an enemy without the key can do.
fn forge(desk: &Desk, volume: &str, change: impl FnOnce(&mut [u8])) {
    let mut header = desk.bytes(volume)[..HEADER_LEN].to_vec();
    change(&mut header);
    let header = with_checksum(header);
    [0, 1 << 20].iter().for_each(|copy| desk.overwrite(volume, *copy, &header));
}

fn set_text(slot: &mut [u8], len_at: usize, at: usize, max: usize, text: &[u8]) {
    let len = u16::try_from(text.len()).expect("short");
    slot[len_at..][..2].copy_from_slice(&len.to_le_bytes());
    slot[at..][..max].fill(0);
    slot[at..][..text.len()].copy_from_slice(text);
}

#[test]
fn a_keyslot_of_one_volume_opens_no_other_although_the_same_key_wraps_both() {
    // The example binds its wraps to the volume; the other plug-in binds nothing, and sealbd does.
    for (plugin, spec, why) in [
        (LOCAL, "kms:local", "not wrapped by version 1 of key db for this volume"),
        (QUICK, "kms:quick-keys", "or the keyslot is of another volume"),
    ] {
        let desk = Desk::with_plugins(&[plugin], "");
        let key = format!("{spec}/db");
        desk.managed_volume("one", &key);
        desk.managed_volume("two", &key);
        let foreign = desk.bytes("one")[KEYSLOTS..][..KEYSLOT_LEN].to_vec();
        let own = desk.bytes("two")[..HEADER_LEN].to_vec();
        assert_eq!((&foreign[..2], foreign[URI_AT..].starts_with(b"exec:db\0")), (&[1, 10][..], true));
        forge(&desk, "two", |header| header[KEYSLOTS..][..KEYSLOT_LEN].copy_from_slice(&foreign));
        desk.fails(7, why, &with_config(&["key", "test", "two", "--slot", spec]));
        // By its own other key it opens as far as the header, which was altered.
        desk.fails(8, "header", &with_config(&["key", "test", "two", "--slot", "keyfile:key"]));
        // In a free keyslot of its own it changes nothing either.
        [0, 1 << 20].iter().for_each(|copy| desk.overwrite("two", *copy, &own));
        forge(&desk, "two", |header| {
            header[KEYSLOTS + 2 * KEYSLOT_LEN..][..KEYSLOT_LEN].copy_from_slice(&foreign);
        });
        for words in
            [&["serve", "two", "-U", "socket"][..], &["rotate", "two", "--kek"], &["erase", "two", "--yes"]]
        {
            desk.fails(8, "header", &with_config(&[words, &["--slot", spec]].concat()));
        }
        [0, 1 << 20].iter().for_each(|copy| desk.overwrite("two", *copy, &own));
        desk.ok(&with_config(&["check", "two", "--slot", spec]));
        assert_eq!(plugin.live(&desk, "db"), [1]);
    }
}

#[test]
fn key_ids_and_versions_of_an_enemy_are_never_paths_commands_or_json() {
    let desk = Desk::with_plugins(&[LOCAL], "");
    desk.managed_volume("vol", "kms:local/db");
    desk.managed_volume("other", "kms:local/second");
    let header = desk.bytes("vol")[..HEADER_LEN].to_vec();
    let before = desk.contents(&["local"]);
    let forge_uri = |text: &str| {
        forge(&desk, "vol", |header| {
            set_text(&mut header[KEYSLOTS..][..KEYSLOT_LEN], URI_LEN_AT, URI_AT, URI_MAX, text.as_bytes());
        });
    };
    let long = format!("exec:{}", "k".repeat(251));
    for uri in [
        "exec:../../../../etc/passwd",
        "exec:/etc/passwd",
        "exec:..",
        "exec:db/1",
        "exec:db/../second",
        "exec:$(touch${IFS}pwned)",
        "exec:`touch${IFS}pwned`",
        "exec:;touch${IFS}pwned;",
        "exec:db\",\"version\":\"1\"},{\"",
        "exec:db%00",
        "exec:second",
        "exec:never-made",
        "exec:",
        "exec:two words",
        "exec:\u{1b}[2J\u{1b}]0;pwned\u{7}",
        "exec:schl\u{fc}ssel",
        "vault-transit:db",
        "db",
        "",
        &long,
    ] {
        forge_uri(uri);
        refuses(&desk, uri);
        assert_eq!(desk.contents(&["local"]), before, "{uri:?}");
        [0, 1 << 20].iter().for_each(|copy| desk.overwrite("vol", *copy, &header));
    }
    // Of the private part: which version, and what is to be unwrapped.
    let private = |version: &[u8], blob: &[u8]| {
        let len = u8::try_from(version.len()).expect("short");
        [&[1][..], &[7; 8], &[len], version, blob].concat()
    };
    let absurd = [&[1][..], &[7; 8], &[200], b"1"].concat();
    for bytes in [
        private(b"2", &[9; 60]),
        private(b"../second/1", &[9; 60]),
        private(b"1;touch pwned", &[9; 60]),
        private(b"$(touch)", &[9; 60]),
        private(b"-1", &[9; 60]),
        private(b"", &[9; 60]),
        private(b"1", &[]),
        private(b"1\"}", &[9; 60]),
        private(&[0xff; 8], &[9; 60]),
        absurd,
        vec![1],
        Vec::new(),
    ] {
        forge(&desk, "vol", |header| {
            let slot = &mut header[KEYSLOTS..][..KEYSLOT_LEN];
            set_text(slot, PRIVATE_LEN_AT, PRIVATE_AT, KEYSLOT_LEN - PRIVATE_AT, &bytes);
        });
        refuses(&desk, &format!("{bytes:?}"));
        assert_eq!(desk.contents(&["local"]), before, "{bytes:?}");
        [0, 1 << 20].iter().for_each(|copy| desk.overwrite("vol", *copy, &header));
    }
    desk.ok(&with_config(&["check", "vol", "--slot", "kms:local"]));
}

/// The volume does not open by the key manager, is changed by no verb, and what is shown of it is harmless.
fn refuses(desk: &Desk, what: &str) {
    let by_manager = desk.try_out(&["key", "test", "vol", "--slot", "kms:local"]);
    assert!([2, 7].contains(&by_manager.code), "{what:?}: {} {}", by_manager.code, by_manager.stderr);
    let erase = ["erase", "vol", "--yes", "--slot", "keyfile:key", "--slot", "kms:local"];
    let erased = desk.try_out(&erase);
    assert_eq!(erased.code, 8, "{what:?}: {}", erased.stderr);
    let listed = desk.try_out(&["key", "list", "vol"]);
    let json = desk.try_out(&["dump", "vol", "--json"]);
    assert_eq!((listed.code, json.code), (0, 0), "{what:?}: {}", listed.stderr);
    json.object();
    for ended in [by_manager, erased, listed, json] {
        let plain = |c: char| c == '\n' || !c.is_control();
        assert!(ended.stdout.chars().all(plain) && ended.stderr.chars().all(plain), "{what:?}");
    }
    for place in ["", "local"] {
        assert!(!desk.path(place).join("pwned").exists(), "{what:?}");
    }
}

#[test]
fn a_header_that_claims_the_key_of_another_volume_keeps_nothing_from_being_destroyed() {
    let desk = Desk::with_plugins(&[QUICK], "");
    desk.managed_volume("vol", "kms:quick-keys/db");
    desk.ok(&["format", "theirs", "--size", SIZE, "--slot", "keyfile:key", "--no-recovery"]);
    // An enemy's volume in the configuration: its keyslot says what that of the other one says, and cannot be opened.
    let copied = desk.bytes("vol")[KEYSLOTS..][..KEYSLOT_LEN].to_vec();
    forge(&desk, "theirs", |header| header[KEYSLOTS + KEYSLOT_LEN..][..KEYSLOT_LEN].copy_from_slice(&copied));
    let volumes = "[volume.theirs]\nbackend = 'DIR/theirs'\n";
    desk.configure(&format!("{}{volumes}", QUICK.provider("60s", "0s")));
    let report = desk.told(&["rotate", "vol", "--kek", "--retire-old", "--slot", "kms:quick-keys"]);
    assert_eq!(report["rotated"][0]["old"], "destroyed", "{report}");
    assert_eq!(QUICK.live(&desk, "db"), [2]);
}
