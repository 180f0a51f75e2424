//! The power goes out under a store while keys change. Every verb that changes a header runs, as the real binary, over a
//! store that keeps each change in order (`common/logging_server.rs`). For every moment of it images are made as a power
//! cut could leave them; each must open by the keys that the verb promises, whole. A process that dies there leaves one of
//! these images, too.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::logging_server::{LoggingServer, Moment};
use common::pattern::Random;
use common::programs::{outcome, program, record_in, report};
use keymgmt::keyfile::Keyfile;
use keymgmt::manager::KeyManager;
use sealbd::cipher::Engine;
use sealbd::store::Access;
use sealbd::store::file::FileStore;
use sealbd::volume::unlock::read_header;
use sealbd::volume::{OpenMode, Volume, VolumeError};

const STORE_LEN: u64 = 192 << 20;
/// Images per moment.
const IMAGES: u64 = 4;

/// A volume on a logging store, with the keys `one` in slot 0 and `two` in slot 1.
struct Scene {
    store: LoggingServer,
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { store: LoggingServer::start(STORE_LEN), dir: tempfile::tempdir().unwrap() };
        let uri = scene.store.uri();
        scene.sealbd(&[
            "format",
            &uri,
            "--size",
            "16M",
            "--slot",
            "keyfile:one",
            "--slot",
            "keyfile:two",
            "--no-recovery",
            "--yes",
        ]);
        // Made beforehand, so that no verb makes it.
        Keyfile::create(&scene.path("three")).unwrap();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn sealbd(&self, words: &[&str]) {
        let mut command = program(env!("CARGO_BIN_EXE_sealbd"));
        command.args(words).current_dir(self.dir.path());
        record_in(&mut command, &self.path("audit.jsonl"));
        let ended = outcome(&mut command);
        assert!(ended.status.success(), "{words:?}: {}", String::from_utf8_lossy(&ended.stderr));
    }

    /// Runs a verb on the volume and hands every image that a cut could leave to `judge`, with the names of the
    /// keys that open it. Tells how many images there were.
    fn cut_everywhere(&self, verb: &[&str], key: &str, judge: impl Fn(&[&str]) -> bool) -> usize {
        let uri = self.store.uri();
        let first = self.store.moment();
        let (name, rest) = verb.split_at(if ["key", "header"].contains(&verb[0]) { 2 } else { 1 });
        self.sealbd(&[name, &[uri.as_str()], rest, &["--slot", key]].concat());
        let last = self.store.moment();
        let mut images = 0;
        for cut in first..=last {
            for seed in 0..IMAGES {
                let image = self.image(cut, seed);
                let keys = opening_keys(&image, self.dir.path());
                assert!(
                    judge(&keys),
                    "{verb:?}, cut at {cut} of {first}..={last}, seed {seed}: opens by {keys:?}"
                );
                images += 1;
            }
        }
        // After the end nothing may be lost.
        let keys = opening_keys(&self.image(last, 0), self.dir.path());
        report(&format!(
            "{verb:?}: {images} images of {} moments; in the end opens by {keys:?}",
            last - first
        ));
        assert!(last - first > 8, "the verb changed the store");
        images
    }

    fn image(&self, cut: Moment, seed: u64) -> PathBuf {
        let path = self.path("image");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(STORE_LEN).unwrap();
        self.store.log().write_image(cut, &mut Random::new(cut * IMAGES + seed), &file).unwrap();
        path
    }
}

/// Which of the keys unlock the header on an image. With each of them the volume opens for writing, too.
fn opening_keys(image: &Path, dir: &Path) -> Vec<&'static str> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let opens = |name: &str| {
        runtime.block_on(async {
            let managers: Vec<Box<dyn KeyManager>> = vec![Box::new(Keyfile::open(&dir.join(name)).unwrap())];
            let store = Arc::new(FileStore::open(image, Access::ReadWrite).unwrap());
            let copies = read_header(&*store).await.unwrap_or_else(|error| panic!("no header: {error}"));
            let unlocked = match copies.unlock(Engine::default(), &managers).await {
                Ok(unlocked) => unlocked,
                Err(VolumeError::NoKeyFits(_)) => return false,
                Err(error) => panic!("{name}: {error}"),
            };
            Volume::open(store, unlocked, OpenMode::ReadWrite)
                .await
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            true
        })
    };
    ["one", "two", "three"].into_iter().filter(|name| opens(name)).collect()
}

#[test]
fn an_added_key_is_there_or_not_and_the_others_always_open() {
    let scene = Scene::new();
    let add = ["key", "add", "--new-slot", "keyfile:three"];
    scene.cut_everywhere(&add, "keyfile:one", |keys| keys.starts_with(&["one", "two"]));
}

#[test]
fn a_changed_key_is_the_old_or_the_new_one_and_never_none_or_both() {
    let scene = Scene::new();
    let change = ["key", "change", "--new-slot", "keyfile:three"];
    scene.cut_everywhere(&change, "keyfile:one", |keys| keys == ["one", "two"] || keys == ["two", "three"]);
}

#[test]
fn a_removed_or_revoked_key_opens_before_or_not_and_the_one_that_stays_always() {
    for verb in [
        &["key", "remove", "--key-slot", "1"][..],
        &["key", "kill", "--key-slot", "1"],
        &["revoke", "--key-slot", "1"],
    ] {
        let scene = Scene::new();
        scene.cut_everywhere(verb, "keyfile:one", |keys| keys == ["one", "two"] || keys == ["one"]);
    }
}

#[test]
fn an_erased_volume_opens_as_before_or_by_no_key() {
    let scene = Scene::new();
    scene
        .cut_everywhere(&["erase", "--yes"], "keyfile:one", |keys| keys == ["one", "two"] || keys.is_empty());
}

#[test]
fn a_restored_header_is_the_old_or_the_new_one() {
    let scene = Scene::new();
    let uri = scene.store.uri();
    scene.sealbd(&["header", "backup", &uri, "backup"]);
    scene.sealbd(&["key", "change", &uri, "--slot", "keyfile:two", "--new-slot", "keyfile:three"]);
    let restore = ["header", "restore", "backup", "--yes"];
    scene.cut_everywhere(&restore, "keyfile:one", |keys| keys == ["one", "three"] || keys == ["one", "two"]);
}
