//! Plug-in programs: the example in Python as a real one, and programs that do everything wrong.

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use keymgmt::manager::{KeyError, KeyManager, WrappedKey};
use keymgmt::provider::Provider;
use keymgmt::registry::{Opened, Opening, Registry};
use keymgmt::source::{NoPrompt, Purpose, SecretReader};
use keymgmt::verify::wrap_tested;
use tempfile::TempDir;

use crate::suite::{CONTEXT, KekOf, Subject, canary_dek, keeps_the_contract, outcome};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/key_manager_plugin.py");
/// Longer than any plug-in here takes that is meant to answer.
const PATIENT: &str = "60s";

/// A directory with plug-ins in it.
struct Host(TempDir);

impl Host {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A copy of a program, mode 0755. Another process writes it: one that this process has open for writing
    /// while some thread starts a program could not be started itself.
    fn install(&self, from: &Path, name: &str) -> PathBuf {
        let to = self.path(name);
        let made = Command::new("install").args(["-m", "0755"]).args([from, &to]).status();
        assert!(made.unwrap().success());
        to
    }

    /// A plug-in that is a shell script.
    fn script(&self, name: &str, lines: &str) -> PathBuf {
        let source = self.path(&format!("{name}.source"));
        std::fs::write(&source, format!("#!/bin/sh\n{lines}\n")).unwrap();
        self.install(&source, name)
    }
}

/// The settings of a plug-in.
struct Table {
    command: Vec<String>,
    timeout: &'static str,
    more: String,
}

impl Table {
    fn of(program: &Path) -> Self {
        Self { command: vec![program.to_str().unwrap().into()], timeout: PATIENT, more: String::new() }
    }

    fn provider(&self) -> Provider {
        let Self { command, timeout, more } = self;
        let text =
            format!("type = 'exec'\ncommand = {command:?}\ntimeout = '{timeout}'\nretry_for = '0s'\n{more}");
        Provider::parse("plugin", text.parse().unwrap()).unwrap()
    }

    fn open(&self, spec: &str) -> Opened {
        manager_of(self.provider(), spec)
    }

    fn manager(&self) -> Box<dyn KeyManager> {
        self.open("kms:plugin").unwrap()
    }
}

/// The example, with keys in a directory of that name.
fn example(host: &Host, keys: &str) -> Table {
    let mut table = Table::of(&host.install(Path::new(EXAMPLE), "key_manager_plugin"));
    table.command.push(host.path(keys).to_str().unwrap().into());
    table
}

/// The manager of a `[provider]` table.
fn manager_of(provider: Provider, spec: &str) -> Opened {
    let registry = Registry::built_in().with_providers(vec![provider]);
    let mut prompter = NoPrompt;
    let mut reader = SecretReader::with_credentials(&mut prompter, None);
    let mut opening = Opening::new(&mut reader, Purpose::Unlock);
    registry.open(&registry.parse(spec).unwrap(), &mut opening)
}

/// A plug-in of somebody's own: a file with its table, named by a variable (docs/PLUGIN.md).
fn own_plugin(variable: &str) -> Option<Box<dyn KeyManager>> {
    let path = std::env::var_os(variable)?;
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Some(manager_of(Provider::parse("plugin", text.parse().unwrap()).unwrap(), "kms:plugin").unwrap())
}

#[tokio::test]
async fn a_plug_in_keeps_the_contract() {
    let host = Host::new();
    let right = own_plugin("SEALBD_PLUGIN").unwrap_or_else(|| example(&host, "right").manager());
    let wrong = own_plugin("SEALBD_OTHER_PLUGIN").unwrap_or_else(|| example(&host, "wrong").manager());
    let keeps = std::env::var_os("SEALBD_PLUGIN_KEEPS_VERSIONS").is_some();
    let kek = if keeps { KekOf::ManagerThatKeepsVersions } else { KekOf::Manager };
    // Otherwise the other one refuses for want of any key.
    wrong.wrap(&canary_dek(), CONTEXT).await.unwrap();
    keeps_the_contract(&Subject { right, wrong, kek }).await;
}

#[tokio::test]
async fn a_key_that_is_named_is_the_one_that_is_used() {
    let host = Host::new();
    let table = example(&host, "keys");
    let (one, two) = (table.open("kms:plugin/one").unwrap(), table.open("kms:plugin/two").unwrap());
    let key = wrap_tested(&*one, &canary_dek(), CONTEXT).await.unwrap();
    assert_eq!(key.kek_uri, "exec:one");
    assert_eq!(one.describe(&key).unwrap().text, "plug-in key one version 1");
    assert!(!outcome(&*two, &key, CONTEXT).await.unwrap(), "left to others");
    assert!(outcome(&*table.manager(), &key, CONTEXT).await.unwrap(), "the keyslot names it");
    assert!(matches!(two.rotate(&key).await, Err(KeyError::Denied(_))));
    assert!(matches!(two.destroy(&key).await, Err(KeyError::Denied(_))));
    let error = table.open(&format!("kms:plugin/{}", "k".repeat(252))).err().unwrap();
    assert!(matches!(error, KeyError::Settings(_)), "{error}");
}

#[tokio::test]
async fn a_plug_in_that_names_another_key_than_it_was_told_to_use_is_not_trusted() {
    let (host, answer) = (Host::new(), wrapped_answer("one", "1", "AAAA"));
    let plugin = Table::of(&host.script("plugin", &format!("echo '{answer}'")));
    assert!(plugin.open("kms:plugin/one").unwrap().wrap(&canary_dek(), CONTEXT).await.is_ok());
    let error = plugin.open("kms:plugin/two").unwrap().wrap(&canary_dek(), CONTEXT).await.unwrap_err();
    assert!(matches!(&error, KeyError::Untrusted(why) if why.contains("another key")), "{error}");
}

#[tokio::test]
async fn versions_count_up_and_a_number_is_never_used_again() {
    let host = Host::new();
    let manager = example(&host, "keys").manager();
    let mut seen = HashSet::new();
    for expected in ["1", "2", "3"] {
        let key = wrap_tested(&*manager, &canary_dek(), CONTEXT).await.unwrap();
        assert_eq!(manager.describe(&key).unwrap().version.as_deref(), Some(expected));
        assert!(seen.insert(key.private.clone()));
        manager.rotate(&key).await.unwrap();
        manager.destroy(&key).await.unwrap();
    }
    // The newest is gone, so the next wrap makes another; a key that never was is not made by rotating it.
    let newest = manager.wrap(&canary_dek(), CONTEXT).await.unwrap();
    manager.destroy(&newest).await.unwrap();
    let next = wrap_tested(&*manager, &canary_dek(), CONTEXT).await.unwrap();
    assert_eq!(manager.describe(&newest).unwrap().version.as_deref(), Some("4"));
    assert_eq!(manager.describe(&next).unwrap().version.as_deref(), Some("5"));
    let foreign = WrappedKey { kek_uri: "exec:foreign".into(), ..next };
    assert!(matches!(manager.rotate(&foreign).await, Err(KeyError::Denied(_))));
    let health = manager.probe().await.unwrap();
    assert!(health.text.ends_with("1 keys"), "{}", health.text);
}

#[tokio::test]
async fn what_is_wrapped_after_a_rotation_is_wrapped_by_the_key_that_was_rotated() {
    let host = Host::new();
    let table = example(&host, "keys");
    let key = table.open("kms:plugin/db").unwrap().wrap(&canary_dek(), CONTEXT).await.unwrap();
    let manager = table.manager();
    manager.rotate(&key).await.unwrap();
    let new = wrap_tested(&*manager, &canary_dek(), CONTEXT).await.unwrap();
    assert_eq!(manager.describe(&new).unwrap().text, "plug-in key db version 2");
    assert_eq!(table.manager().wrap(&canary_dek(), CONTEXT).await.unwrap().kek_uri, "exec:default");
}

#[tokio::test]
async fn keys_that_others_can_read_are_refused_as_a_setting() {
    let host = Host::new();
    let manager = example(&host, "keys").manager();
    manager.wrap(&canary_dek(), CONTEXT).await.unwrap();
    std::fs::set_permissions(host.path("keys"), std::fs::Permissions::from_mode(0o750)).unwrap();
    let error = manager.probe().await.unwrap_err();
    assert!(matches!(&error, KeyError::Settings(why) if why.ends_with("next: chmod 700")), "{error}");
}

fn wrapped_answer(key_id: &str, version: &str, blob: &str) -> String {
    serde_json::json!({ "ok": { "key_id": key_id, "version": version, "blob": blob } }).to_string()
}

/// A keyslot that is read without fault, for plug-ins that never give the right key.
async fn keyslot(host: &Host) -> WrappedKey {
    let plugin = host.script("maker", &format!("echo '{}'", wrapped_answer("k", "1", "AAAA")));
    Table::of(&plugin).manager().wrap(&canary_dek(), CONTEXT).await.unwrap()
}

/// What unwrapping says when the plug-in is a script.
async fn unwrapping(lines: &str) -> KeyError {
    let host = Host::new();
    let key = keyslot(&host).await;
    let manager = Table::of(&host.script("plugin", lines)).manager();
    match outcome(&*manager, &key, CONTEXT).await {
        Ok(fits) => panic!("{lines}: not an error, fits: {fits}"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn nonsense_is_not_trusted() {
    let kek = "Q0FOQVJZLUtFWS1DQU5BUlktS0VZLUNBTkFSWS1LRVk=";
    for (lines, why) in [
        ("", "it ended without an answer; it ended with status 0"),
        ("exit 1", "it ended without an answer; it ended with status 1"),
        ("kill -9 $$", "it ended without an answer; it was ended by signal 9"),
        ("exec >&-; exit 3", "it ended without an answer; it ended with status 3"),
        ("echo hello", "its answer is not a JSON object; it ended with status 0"),
        ("printf '{\"ok\":{\"ke'", "its answer does not end with a newline; it ended with status 0"),
        ("echo '{\"ok\":{\"ke'", "its answer is not JSON (byte 10 of the line); it ended with status 0"),
        (
            "head -c 3000 /dev/urandom | base64 -w 0; echo",
            "its answer is not a JSON object; it ended with status 0",
        ),
        ("echo '{\"ok\":{}}'; echo '{\"ok\":{}}'", "it answered more than one line; it ended with status 0"),
        (
            "echo '{\"ok\":{\"kek\":\"AAAA\"}}'",
            "its kek is not 32 bytes in base64 with padding; it ended with status 0",
        ),
        (
            "echo 'to the log' >&2; exit 1",
            "it ended without an answer; it ended with status 1; it said: to the log",
        ),
        (
            "printf '\\033[2Jx\\r\\377' >&2",
            "it ended without an answer; it ended with status 0; it said: \\u{1b}[2Jx\\r\u{fffd}",
        ),
    ] {
        let error = unwrapping(lines).await;
        assert!(matches!(error, KeyError::Untrusted(_)), "{lines}: {error}");
        assert!(error.to_string().ends_with(&format!("/plugin: {why}")), "{lines}: {error}");
    }
    let error = unwrapping(&format!("echo '{{\"ok\":{{\"kek\":\"{kek}\"}}}}'; exit 1")).await;
    assert!(
        matches!(&error, KeyError::Untrusted(why) if why.contains("it answered, yet it ended with status 1"))
    );
    let error = unwrapping(&format!("echo '{{\"ok\":{{\"kek\":\"{kek}\"}}}}'")).await;
    assert!(
        matches!(&error, KeyError::Denied(why) if why.contains("another key")),
        "a key, but not this one"
    );
    assert!(!error.to_string().contains("CANARY") && !error.to_string().contains(kek));
}

#[tokio::test]
async fn a_plug_in_says_why_not_in_the_five_words_of_the_protocol() {
    let said = async |kind: &str| {
        unwrapping(&format!(
            "echo '{{\"error\":{{\"kind\":\"{kind}\",\"message\":\"sch\u{f6}n \\u001b[31m\\u202e\"}}}}'; exit 9"
        ))
        .await
    };
    assert!(matches!(said("unreachable").await, KeyError::Unreachable(_)));
    assert!(matches!(said("denied").await, KeyError::Denied(_)));
    assert!(matches!(said("settings").await, KeyError::Settings(_)));
    assert!(matches!(said("unsupported").await, KeyError::Unsupported(_)));
    assert!(matches!(said("malformed").await, KeyError::Malformed(_)));
    assert!(matches!(said("sorry").await, KeyError::Untrusted(_)));
    let shown = said("denied").await.to_string();
    assert!(shown.ends_with("/plugin: sch\u{f6}n \\u{1b}[31m\\u{202e}"), "{shown}");
}

#[tokio::test]
async fn a_wrap_that_no_keyslot_could_hold_is_refused_and_nothing_is_made() {
    let blob = |len| wrapped_answer("k", "1", &"A".repeat(len));
    for (answer, why) in [
        (blob(536), "the blob is 402 bytes; 1 to 400 fit into a keyslot"),
        (blob(0), "the blob is 0 bytes; 1 to 400 fit into a keyslot"),
        (blob(3), "the blob is not base64 with padding"),
        (wrapped_answer("", "1", "AAAA"), "a key id has 1 to 251 printable ASCII characters"),
        (wrapped_answer("\u{1b}]0;x\u{7}", "1", "AAAA"), "a key id has 1 to 251 printable ASCII characters"),
        (wrapped_answer("k", "1\n2", "AAAA"), "a version has at most 64 printable ASCII characters"),
    ] {
        let host = Host::new();
        std::fs::write(host.path("answer"), format!("{answer}\n")).unwrap();
        let plugin = host.script("plugin", &format!("cat {}", host.path("answer").display()));
        let error = Table::of(&plugin).manager().wrap(&canary_dek(), CONTEXT).await.unwrap_err();
        assert!(matches!(error, KeyError::Untrusted(_)), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
}

/// Whether there is a process of that number that is more than a zombie.
fn is_running(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

/// Whether there is a trace of a process of that number, a zombie included.
fn is_known(pid: &str) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Waits until a process that was killed is gone.
async fn ended(pid: &str) {
    let begun = Instant::now();
    while is_running(pid) {
        assert!(begun.elapsed() < Duration::from_secs(30), "process {pid} is still there");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_plug_in_that_never_ends_is_killed_with_its_children() {
    let host = Host::new();
    let key = keyslot(&host).await;
    let pids = host.path("pids");
    let lines = format!(
        "sleep 1000 & echo $! $$ > {}; echo waiting >&2; echo '{{\"ok\":{{}}}}'; wait",
        pids.display()
    );
    let mut table = Table::of(&host.script("plugin", &lines));
    table.timeout = "3s";
    let error = outcome(&*table.manager(), &key, CONTEXT).await.unwrap_err();
    let why = error.to_string();
    assert!(matches!(error, KeyError::Unreachable(_)), "{why}");
    assert!(why.contains("it had not ended after 3s; it said: waiting"), "{why}");
    let pids = std::fs::read_to_string(pids).unwrap();
    let (child, own) = pids.trim().split_once(' ').unwrap();
    assert!(!is_known(own), "the plug-in is reaped");
    ended(child).await;
}

#[tokio::test]
async fn a_child_that_keeps_the_pipes_open_is_not_waited_for_and_does_not_survive() {
    let host = Host::new();
    let key = keyslot(&host).await;
    let pid = host.path("pid");
    let lines = format!("sleep 1000 & echo $! > {}; echo '{{\"ok\":{{}}}}'", pid.display());
    let manager = Table::of(&host.script("plugin", &lines)).manager();
    let begun = Instant::now();
    manager.rotate(&key).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    ended(std::fs::read_to_string(pid).unwrap().trim()).await;
}

/// It cannot hide from the end of its time: neither in another process group, nor by standing still.
#[tokio::test]
async fn a_plug_in_that_leaves_its_group_or_stops_itself_is_killed_all_the_same() {
    let host = Host::new();
    for (name, lines) in [
        ("leaver", "import os, time\nos.setpgid(0, os.getpgid(os.getppid()))"),
        ("stopper", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"),
        (
            "deaf",
            "import signal\nfor number in set(signal.valid_signals()) - {9, 19}: signal.signal(number, signal.SIG_IGN)",
        ),
    ] {
        let (source, pid) = (host.path("source"), host.path(name).with_extension("pid"));
        let pids = format!("import os\nopen({pid:?}, 'w').write(str(os.getpid()))\n");
        let text = format!("#!/usr/bin/python3 -I\n{pids}{lines}\nimport time\ntime.sleep(1000)\n");
        std::fs::write(&source, text).unwrap();
        let mut table = Table::of(&host.install(&source, name));
        table.timeout = "3s";
        let error = table.manager().probe().await.unwrap_err();
        assert!(matches!(error, KeyError::Unreachable(_)), "{name}: {error}");
        let pid = std::fs::read_to_string(pid).unwrap();
        assert!(!is_known(&pid), "{name} is reaped");
    }
}

#[tokio::test]
async fn dropping_a_request_kills_its_plug_in() {
    let host = Host::new();
    let fifo = host.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let plugin = host.script("plugin", &format!("echo $$ > {}; exec sleep 1000", fifo.display()));
    let manager = Table::of(&plugin).manager();
    let started = tokio::task::spawn_blocking(move || std::fs::read_to_string(fifo).unwrap());
    let pid = tokio::select! {
        health = manager.probe() => panic!("an answer: {health:?}"),
        pid = started => pid.unwrap(),
    };
    ended(pid.trim()).await;
}

#[tokio::test]
async fn floods_are_bounded() {
    let host = Host::new();
    let key = keyslot(&host).await;
    let error = unwrapping("exec yes").await;
    assert!(matches!(&error, KeyError::Untrusted(why) if why.ends_with("it answered more than 16384 bytes")));
    // An endless flood of complaints ends with the time, and only its beginning is kept.
    let mut table = Table::of(&host.script("plugin", "exec yes >&2"));
    table.timeout = "1s";
    let error = outcome(&*table.manager(), &key, CONTEXT).await.unwrap_err();
    assert!(matches!(error, KeyError::Unreachable(_)), "{error}");
    assert!(error.to_string().len() < 4500, "{} bytes", error.to_string().len());
    // One that ends is no fault.
    let lines = "head -c 1000000 /dev/zero >&2; echo '{\"ok\":{}}'";
    Table::of(&host.script("chatty", lines)).manager().rotate(&key).await.unwrap();
}

#[tokio::test]
async fn a_plug_in_need_not_read_what_it_is_asked() {
    let host = Host::new();
    let key = keyslot(&host).await;
    let lines = "exec <&-; echo '{\"ok\":{}}'";
    Table::of(&host.script("plugin", lines)).manager().destroy(&key).await.unwrap();
}

#[tokio::test]
async fn a_status_is_one_line_with_an_end_of_the_credential() {
    let host = Host::new();
    let lines = "echo '{\"ok\":{\"text\":\"v1\\u0007 up\",\"credential_expires\":86400}}'";
    let health = Table::of(&host.script("plugin", lines)).manager().probe().await.unwrap();
    assert_eq!(health.text, "v1\\u{7} up");
    let expires = health.credential_expires.unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(expires, Duration::from_secs(86400));
}

#[tokio::test]
async fn secrets_go_over_stdin_alone_and_the_environment_is_empty() {
    let host = Host::new();
    let seen = host.path("seen");
    let secret = host.path("secret");
    std::fs::write(&secret, "CANARY-\u{1f511}-secret").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    // `env` itself, for a shell adds variables of its own.
    let lines = format!(
        "/usr/bin/env > {0}.env; tr '\\0' '\\n' < /proc/$$/environ > {0}.given; \
         tr '\\0' '\\n' < /proc/$$/cmdline > {0}.argv; pwd > {0}.pwd; cat > {0}.stdin; \
         echo '{{\"ok\":{{\"text\":\"\"}}}}'",
        seen.display()
    );
    let mut table = Table::of(&host.script("plugin", &lines));
    table.command.push("--an \u{fc}=argument $HOME".into());
    // Cargo and every shell set these two; that `PATH` is there for us shows that leaving it out does something.
    table.more =
        format!("environment = ['CARGO_MANIFEST_DIR', 'NOT_SET']\nsecret = 'file:{}'", secret.display());
    assert!(std::env::var_os("PATH").is_some() && std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    table.open("kms:plugin/db").unwrap().probe().await.unwrap();

    let read = |what: &str| std::fs::read_to_string(format!("{}.{what}", seen.display())).unwrap();
    assert_eq!(read("given"), format!("CARGO_MANIFEST_DIR={}\n", env!("CARGO_MANIFEST_DIR")));
    assert_eq!(read("pwd"), "/\n");
    assert!(read("argv").ends_with("/plugin\n--an \u{fc}=argument $HOME\n"), "{}", read("argv"));
    let request: serde_json::Value = serde_json::from_str(&read("stdin")).unwrap();
    assert_eq!(request["secret"], "Q0FOQVJZLfCflJEtc2VjcmV0");
    assert_eq!((request["verb"].as_str(), request["key"].as_str()), (Some("status"), Some("db")));
    assert_eq!(request["timeout_ms"], 60_000);
    for what in ["env", "given", "argv"] {
        assert!(!read(what).contains("CANARY-") && !read(what).contains("Q0FOQVJZ"), "{what}");
    }
}

#[tokio::test]
async fn what_a_plug_in_was_told_in_confidence_is_not_repeated_in_its_messages() {
    let host = Host::new();
    let secret = host.path("secret");
    std::fs::write(&secret, "CANARY-secret").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    for lines in [
        "cat >&2; exit 1",
        "read line; echo \"$line\" | cut -c 100- >&2; exit 1",
        "echo '{\"error\":{\"kind\":\"denied\",\"message\":\"wrong password CANARY-secret\"}}'",
    ] {
        let mut table = Table::of(&host.script("plugin", lines));
        table.more = format!("secret = 'file:{}'", secret.display());
        let error = table.manager().wrap(&canary_dek(), CONTEXT).await.unwrap_err().to_string();
        assert!(error.ends_with("(left out, for it holds a secret)"), "{lines}: {error}");
    }
}

fn refused(path: &Path) -> String {
    match Table::of(path).open("kms:plugin") {
        Err(KeyError::Settings(why)) => why,
        Err(error) => panic!("{}: {error}", path.display()),
        Ok(_) => panic!("{} is taken", path.display()),
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn a_program_that_others_could_change_is_not_run() {
    let host = Host::new();
    let plugin = host.script("plugin", "touch ran");
    for (mode, why) in [
        (0o775, "can be changed by others; next: chmod go-w"),
        (0o757, "can be changed by others; next: chmod go-w"),
        (0o644, "cannot be executed; next: chmod +x"),
        (0o4755, "changes its user when it runs, and then could not be stopped"),
        (0o2755, "changes its user when it runs, and then could not be stopped"),
    ] {
        set_mode(&plugin, mode);
        assert!(refused(&plugin).ends_with(why), "{mode:o}: {}", refused(&plugin));
    }
    set_mode(&plugin, 0o755);
    assert!(refused(&host.path("nothing")).ends_with("No such file or directory (os error 2)"));
    assert!(refused(host.0.path()).ends_with("is a directory"));
    assert!(refused(&plugin.join("below")).contains("Not a directory"));
    assert!(refused(Path::new("/dev/null")).ends_with("is not a regular file"));
    // Who can write the directory can put another program there.
    set_mode(host.0.path(), 0o777);
    assert!(refused(&plugin).ends_with("can be changed by others; next: chmod go-w"));
    set_mode(host.0.path(), 0o1777);
    Table::of(&plugin).open("kms:plugin").unwrap();
    set_mode(host.0.path(), 0o700);
}

#[tokio::test]
async fn links_are_followed_and_what_they_pass_through_is_looked_at_too() {
    let host = Host::new();
    let plugin = host.script("plugin", "echo '{\"ok\":{\"text\":\"up\"}}'");
    let open = host.path("open");
    std::fs::create_dir(&open).unwrap();
    std::os::unix::fs::symlink(&plugin, open.join("link")).unwrap();
    std::os::unix::fs::symlink("open/../open/link", host.path("relative")).unwrap();
    Table::of(&host.path("relative")).manager().probe().await.unwrap();
    set_mode(&open, 0o770);
    assert!(refused(&host.path("relative")).contains("/open\" can be changed by others"));
    std::os::unix::fs::symlink("round", host.path("round")).unwrap();
    assert!(refused(&host.path("round")).ends_with("is behind too many links"));
}

#[tokio::test]
async fn a_program_is_looked_at_again_before_each_request() {
    let host = Host::new();
    let plugin = host.script("plugin", "echo '{\"ok\":{\"text\":\"up\"}}'");
    let manager = Table::of(&plugin).manager();
    manager.probe().await.unwrap();
    set_mode(&plugin, 0o777);
    assert!(matches!(manager.probe().await, Err(KeyError::Settings(_))));
    set_mode(&plugin, 0o755);
    manager.probe().await.unwrap();
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_a_setting() {
    let host = Host::new();
    let source = host.path("source");
    std::fs::write(&source, "#!/nonexistent/interpreter\n").unwrap();
    let plugin = host.install(&source, "plugin");
    let error = Table::of(&plugin).manager().probe().await.unwrap_err();
    assert!(matches!(&error, KeyError::Settings(why) if why.contains("cannot be started")), "{error}");
}

#[test]
fn settings_are_read_strictly_and_never_repeated() {
    let refused = |table: &str| {
        let table = format!("type = 'exec'\n{table}").parse().unwrap();
        Provider::parse("plugin", table).err().unwrap().to_string()
    };
    for (table, why) in [
        ("", "missing field `command`"),
        ("command = []", "command begins with the absolute path of a program"),
        ("command = ['plugin', 'hunter2']", "command begins with the absolute path of a program"),
        ("command = ['./hunter2']", "command begins with the absolute path of a program"),
        ("command = '/bin/hunter2'", "invalid type: string"),
        ("command = [\"/bin/x\\u0000hunter2\"]", "command has at most 64 words of at most 4096 bytes"),
        ("command = ['/x']\nenvironment = ['PASSWORD=hunter2']", "environment has names of variables"),
        ("command = ['/x']\nenvironment = ['']", "environment has names of variables"),
        ("command = ['/x']\nsecret = 'hunter2'", "never as itself"),
        ("command = ['/x']\nsecret = 'prompt'", "file:PATH or cred:NAME"),
        ("command = ['/x']\nsecret = 'fd:3'", "file:PATH or cred:NAME"),
        ("command = ['/x']\narguments = ['hunter2']", "unknown field `arguments`"),
    ] {
        let told = refused(table);
        assert!(told.contains(why) && !told.contains("hunter2"), "{table}: {told}");
    }
}
