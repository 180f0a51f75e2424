//! Key managers outside sealbd, for the tests: the example plug-in in Python, and one in shell that counts how often it
//! is asked, starts in a millisecond and misbehaves on demand.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealbd::cipher::Engine;
use sealbd::store::Access;
use sealbd::store::file::FileStore;
use sealbd::volume::unlock::read_header;

use keymgmt::keyfile::Keyfile;
use keymgmt::manager::KeyManager;
use serde_json::Value;

use crate::common::programs::{outcome, program, run};
use crate::desk::{AUDIT, Desk, Ended, SIZE};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/key_manager_plugin.py");

/// A whole plug-in without any other program: versions are the files `KEY.N` (`live` or `gone`), wrapped keys
/// `kek.KEY.N.BLOB`. In its directory stand `calls` (verb and request of each), `count`, and what it is to do:
/// `kill` (`N before` or `N after`: end sealbd at the N-th call), `mood` (an error's
/// kind, `hang` or `nonsense`, and the only verb that it is for).
const QUICK: &str = r#"#!/bin/sh
cd "$1" || exit 1
IFS= read -r line
field() {
    value=
    case $line in *"\"$1\":\""*) value=${line#*"\"$1\":\""} value=${value%%\"*} ;; esac
}
denied() {
    echo "{\"error\":{\"kind\":\"denied\",\"message\":\"$1\"}}"
    exit
}
field verb; verb=$value
field request_id; printf '%s %s\n' "$verb" "$value" >> calls
count=0; [ ! -e count ] || read -r count < count
count=$((count + 1)); echo $count > count
at= when=; [ ! -e kill ] || read -r at when < kill
[ "$at $when" != "$count before" ] || { kill -9 $PPID; exit 1; }
mood= only=; [ ! -e mood ] || read -r mood only < mood
[ "${only:-$verb}" = "$verb" ] || mood=
case $mood in
    hang) exec sleep 1000 ;;
    nonsense) echo nonsense; exit ;;
    ?*) echo "{\"error\":{\"kind\":\"$mood\",\"message\":\"as it was told\"}}"; exit ;;
esac
field key_id; key=$value
[ -n "$key" ] || { field key; key=${value:-default}; }
field version; version=$value
field blob; blob=$value
case $key$version$blob in *[!A-Za-z0-9_-]*) denied "no such key" ;; esac
newest=0; while [ -e "$key.$((newest + 1))" ]; do newest=$((newest + 1)); done
state=; [ ! -e "$key.$version" ] || read -r state < "$key.$version"
case $verb in
    wrap)
        last=gone; [ ! -e "$key.$newest" ] || read -r last < "$key.$newest"
        [ "$last" = live ] || { newest=$((newest + 1)); echo live > "$key.$newest"; }
        serial=0; [ ! -e serial ] || read -r serial < serial
        serial=$((serial + 1)); echo $serial > serial
        field kek; blob=$(printf '%08d' $serial); echo "$value" > "kek.$key.$newest.$blob"
        ok="\"key_id\":\"$key\",\"version\":\"$newest\",\"blob\":\"$blob\"" ;;
    unwrap)
        [ "$state" = live ] || denied "version $version of key $key is destroyed or never was"
        [ -e "kek.$key.$version.$blob" ] || denied "not wrapped here"
        read -r kek < "kek.$key.$version.$blob"; ok="\"kek\":\"$kek\"" ;;
    rotate) [ $newest != 0 ] || denied "no such key"; echo live > "$key.$((newest + 1))"; ok= ;;
    destroy) [ -n "$state" ] || denied "no such version"; echo gone > "$key.$version"; ok= ;;
    status) ok='"text":"ready"' ;;
esac
echo "{\"ok\":{$ok}}"
[ "$at $when" != "$count after" ] || kill -9 $PPID
"#;

/// How tests name the configuration.
pub(crate) const CONFIG: [&str; 2] = ["--config", "sealbd.toml"];

/// A command with the configuration of the desk.
pub(crate) fn with_config<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [&CONFIG[..], words].concat()
}

/// A key manager: its provider's name is that of the directory with its keys.
#[derive(Clone, Copy)]
pub(crate) enum Plugin {
    /// The example, in Python.
    Example(&'static str),
    /// The one in shell.
    Quick(&'static str),
}

impl Plugin {
    fn name(self) -> &'static str {
        let (Self::Example(name) | Self::Quick(name)) = self;
        name
    }

    /// Its `[provider]`.
    pub(crate) fn provider(self, timeout: &str, retry_for: &str) -> String {
        let program = if matches!(self, Self::Example(_)) { "example" } else { "quick" };
        let name = self.name();
        format!(
            "[provider.{name}]\ntype = 'exec'\ncommand = ['DIR/{program}', 'DIR/{name}']\n\
             timeout = '{timeout}'\nretry_for = '{retry_for}'\n"
        )
    }

    /// Has it misbehave from now on, or no longer.
    pub(crate) fn mood(self, desk: &Desk, mood: &str) {
        self.tell(desk, "mood", mood);
    }

    /// Leaves a file for it, or takes it away when there is nothing to say.
    pub(crate) fn tell(self, desk: &Desk, file: &str, text: &str) {
        let path = desk.path(self.name()).join(file);
        match text {
            "" => drop(std::fs::remove_file(path)),
            text => std::fs::write(path, format!("{text}\n")).expect("the directory is ours"),
        }
    }

    /// Verb and request id of every call so far.
    pub(crate) fn calls(self, desk: &Desk) -> Vec<(String, String)> {
        let text = std::fs::read_to_string(desk.path(self.name()).join("calls")).unwrap_or_default();
        let call = |line: &str| line.split_once(' ').map(|(verb, id)| (verb.to_owned(), id.to_owned()));
        text.lines().filter_map(call).collect()
    }

    /// Versions of a key that can be used, oldest first.
    pub(crate) fn live(self, desk: &Desk, key: &str) -> Vec<u32> {
        let directory = desk.path(self.name());
        let versions = 1..100;
        match self {
            Self::Example(_) => versions
                .filter(|version| {
                    std::fs::metadata(directory.join(key).join(version.to_string()))
                        .is_ok_and(|file| file.len() == 32)
                })
                .collect(),
            Self::Quick(_) => versions
                .filter(|version| {
                    std::fs::read(directory.join(format!("{key}.{version}")))
                        .is_ok_and(|state| state == b"live\n")
                })
                .collect(),
        }
    }
}

impl Desk {
    /// Puts the plug-ins' programs and directories there and configures them; `more` is the rest of the
    /// configuration.
    pub(crate) fn with_plugins(plugins: &[Plugin], more: &str) -> Self {
        let desk = Self::new();
        desk.install(EXAMPLE, "example");
        std::fs::write(desk.path("quick.source"), QUICK).expect("the directory is ours");
        desk.install("quick.source", "quick");
        for plugin in plugins {
            std::fs::create_dir(desk.path(plugin.name())).expect("the directory is ours");
            let private = PermissionsExt::from_mode(0o700);
            std::fs::set_permissions(desk.path(plugin.name()), private).expect("it is ours");
        }
        let providers: String = plugins.iter().map(|plugin| plugin.provider("60s", "0s")).collect();
        desk.configure(&format!("{providers}{more}"));
        desk
    }

    /// Copies a program, mode 0755. Another process writes it: one that this process has open for writing while
    /// some thread starts a program could not be started itself.
    pub(crate) fn install(&self, from: &str, name: &str) {
        run(program("install").args(["-m", "0755", from, name]).current_dir(self.dir()));
    }

    /// A volume with the configured key manager in slot 0 and the keyfile `key` in slot 1.
    pub(crate) fn managed_volume(&self, name: &str, spec: &str) {
        let slots = ["--slot", spec, "--slot", "keyfile:key", "--no-recovery"];
        self.ok(&with_config(&[&["format", name, "--size", SIZE][..], &slots].concat()));
    }

    /// As [`json`](Self::json), with the configuration.
    pub(crate) fn told(&self, words: &[&str]) -> Value {
        self.json(&with_config(words))
    }

    /// As [`run`](Self::run), with the configuration.
    pub(crate) fn try_out(&self, words: &[&str]) -> Ended {
        self.run(&with_config(words))
    }

    /// Version of the key in a keyslot, as the header names it; none where the keyslot is free or destroyed.
    pub(crate) fn version_in(&self, volume: &str, slot: u64) -> Option<String> {
        let listed = self.told(&["status", volume]);
        let keks = listed["keks"].as_array().expect("a list").iter();
        let found = keks.filter(|kek| kek["slot"] == slot).find_map(|kek| kek["version"].as_str());
        found.map(str::to_owned)
    }

    /// Keyslots in use, those that open nothing included.
    pub(crate) fn slots_in(&self, volume: &str) -> Vec<u64> {
        let list = self.told(&["key", "list", volume]);
        let slots = list["keyslots"].as_array().expect("slots").iter();
        slots.map(|slot| slot["slot"].as_u64().expect("a number")).collect()
    }

    /// Every file below, with its bytes: what a dry run must leave as it is.
    pub(crate) fn contents(&self, names: &[&str]) -> Vec<(PathBuf, Vec<u8>)> {
        let mut open: Vec<PathBuf> = names.iter().map(|name| self.path(name)).collect();
        let mut found = Vec::new();
        while let Some(path) = open.pop() {
            if path.is_dir() {
                open.extend(std::fs::read_dir(&path).expect("ours").map(|entry| entry.expect("ours").path()));
            } else {
                found.push((path.clone(), std::fs::read(&path).expect("ours")));
            }
        }
        found.sort();
        found
    }

    /// The records of the audit log, whose chain is whole.
    pub(crate) fn records(&self) -> Vec<Value> {
        self.ok(&["audit", "verify"]);
        let text = String::from_utf8(self.bytes(AUDIT)).expect("records are ASCII");
        text.lines().map(|line| serde_json::from_str(line).expect("a record is JSON")).collect()
    }

    /// The data key of a volume, by a keyfile.
    pub(crate) fn data_key(&self, volume: &str, keyfile: &str) -> [u8; 32] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let store = FileStore::open(&self.path(volume), Access::ReadOnly).expect("the volume");
            let key: [Box<dyn KeyManager>; 1] =
                [Box::new(Keyfile::open(&self.path(keyfile)).expect("the keyfile"))];
            let copies = read_header(&store).await.expect("a header");
            *copies.unlock(Engine::default(), &key).await.expect("the key fits").dek.0.expose()
        })
    }

    /// How a command ended that may have been killed: `None` then.
    pub(crate) fn ended_or_killed(&self, words: &[&str]) -> Option<Ended> {
        let output = outcome(&mut self.command(words));
        let killed = std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(9);
        (!killed).then(|| Ended::of(output, words))
    }
}

/// The spellings in which bytes might leak.
pub(crate) fn spellings(secret: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    // Without the padding and what depends on it.
    let base64 = STANDARD.encode(secret).as_bytes()[..42].to_vec();
    vec![secret.to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes(), base64]
}

/// Fails when a secret is among the bytes in any spelling.
pub(crate) fn assert_absent(place: &str, bytes: &[u8], secrets: &[Vec<u8>]) {
    for secret in secrets {
        for spelling in spellings(secret) {
            assert!(!bytes.windows(spelling.len()).any(|window| window == spelling), "a key is in {place}");
        }
    }
}
