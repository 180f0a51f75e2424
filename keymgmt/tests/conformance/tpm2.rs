//! KEKs sealed by a TPM 2.0: swtpm, which is the TPM of the Trusted Computing Group's reference code.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use keymgmt::manager::{KeyError, KeyManager, WrapContext};
use keymgmt::provider::Provider;
use keymgmt::registry::Opening;
use keymgmt::secret::Dek;
use keymgmt::source::{NoPrompt, Purpose, SecretReader};

use crate::services::Service;
use crate::suite::{CONTEXT, KekOf, Subject, canary_dek, keeps_the_contract, outcome};

fn start() -> Service {
    Service::start("swtpm", &[])
}

/// A manager of the TPM at `tcti`, without tries again. Its timeout is long, for where tests share a process:
/// a connection is inherited by what another test starts just then, and the TPM, which serves one at a time,
/// waits until that has ended.
fn at(tcti: &str, more: &str) -> Box<dyn KeyManager> {
    let table = format!("type = 'tpm2'\ntcti = '{tcti}'\ntimeout = '120s'\n{more}");
    let provider = Provider::parse("tpm", table.parse().unwrap()).unwrap();
    let mut prompter = NoPrompt;
    let mut reader = SecretReader::with_credentials(&mut prompter, None);
    let mut opening = Opening::new(&mut reader, Purpose::Unlock);
    provider.open(None, &mut opening).unwrap()
}

fn manager(tpm: &Service, more: &str) -> Box<dyn KeyManager> {
    at(tpm.says("TCTI"), more)
}

/// One of the programs of tpm2-tools.
fn tool(tpm: &Service, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(["-T", tpm.says("TCTI")]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn extend(tpm: &Service, register: u8) {
    tool(tpm, "tpm2_pcrextend", &[&format!("{register}:sha256={}", "a5".repeat(32))]);
}

fn pin_file(dir: &Path, pin: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join(pin);
    std::fs::write(&path, pin).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    format!("pin = 'file:{}'", path.display())
}

async fn denied(manager: &dyn KeyManager, key: &keymgmt::manager::WrappedKey) -> String {
    match outcome(manager, key, CONTEXT).await {
        Err(KeyError::Denied(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_tpm_keeps_the_contract() {
    let (right, wrong) = (start(), start());
    let subject = Subject {
        right: manager(&right, ""),
        wrong: manager(&wrong, ""),
        kek: KekOf::ManagerThatKeepsVersions,
    };
    keeps_the_contract(&subject).await;
}

#[tokio::test]
async fn a_tpm_with_a_pin_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let (right, wrong) = (start(), start());
    let pin = pin_file(dir.path(), "CANARY-PIN");
    let subject = Subject {
        right: manager(&right, &pin),
        wrong: manager(&wrong, &pin),
        kek: KekOf::ManagerThatKeepsVersions,
    };
    keeps_the_contract(&subject).await;
}

#[tokio::test]
async fn a_keyslot_has_room_for_what_the_tpm_returns() {
    let tpm = start();
    let manager = manager(&tpm, "pcrs = [0, 1, 2, 3, 4, 5, 6, 7, 14, 23]");
    let key = manager.wrap(&canary_dek(), CONTEXT).await.unwrap();
    println!("tpm2: uri {}, private {}, wrapped {}", key.kek_uri.len(), key.private.len(), key.wrapped.len());
    assert!(key.private.len() <= 300, "{} bytes of at most 512", key.private.len());
    assert_eq!(key.wrapped.len(), 60);
    let described = manager.describe(&key).unwrap().text;
    assert!(described.ends_with(", PCRs sha256:0+1+2+3+4+5+6+7+14+23"), "{described}");
}

#[tokio::test]
async fn changed_pcrs_are_told_with_what_to_do() {
    let tpm = start();
    let manager = manager(&tpm, "pcrs = [7, 8]");
    let key = manager.wrap(&canary_dek(), CONTEXT).await.unwrap();
    extend(&tpm, 9);
    assert!(outcome(&*manager, &key, CONTEXT).await.unwrap(), "another register");
    extend(&tpm, 8);
    let why = denied(&*manager, &key).await;
    assert_eq!(
        why,
        "the PCRs sha256:7+8 changed since the keyslot was made: firmware, boot loader or settings are others; \
         use another keyslot, then rotate --kek"
    );
    // Sealed anew, under what is so now.
    manager.rotate(&key).await.unwrap();
    let key = manager.wrap(&canary_dek(), CONTEXT).await.unwrap();
    assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
}

#[tokio::test]
async fn a_restarted_tpm_unseals_and_a_cleared_one_is_another() {
    let mut tpm = start();
    let manager = manager(&tpm, "");
    let key = manager.wrap(&canary_dek(), CONTEXT).await.unwrap();
    tpm.run("stop", &[]);
    tpm.run("start", &[]);
    assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
    tool(&tpm, "tpm2_clear", &[]);
    let why = denied(&*manager, &key).await;
    assert!(why.contains("another TPM, or one that was cleared"), "{why}");
    // The board was exchanged.
    tpm.run("stop", &[]);
    std::fs::remove_dir_all(tpm.says("STATE")).unwrap();
    tpm.run("start", &[]);
    let why = denied(&*manager, &key).await;
    assert!(why.contains("another TPM, or one that was cleared"), "{why}");
}

#[tokio::test]
async fn a_tpm_that_is_gone_is_unreachable() {
    let mut tpm = start();
    let manager = manager(&tpm, "");
    let key = manager.wrap(&canary_dek(), CONTEXT).await.unwrap();
    tpm.run("stop", &[]);
    for result in [
        outcome(&*manager, &key, CONTEXT).await.map(drop),
        manager.wrap(&canary_dek(), CONTEXT).await.map(drop),
        manager.probe().await.map(drop),
        at("device:/nonexistent/tpmrm0", "").probe().await.map(drop),
    ] {
        assert!(matches!(result, Err(KeyError::Unreachable(_))), "{result:?}");
    }
    tpm.run("start", &[]);
    assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
}

#[tokio::test]
async fn a_path_that_is_no_device_is_a_setting_and_is_not_written_to() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = at(&format!("device:{}", file.path().display()), "").probe().await.unwrap_err();
    assert!(matches!(&error, KeyError::Settings(why) if why.contains("is no device")), "{error}");
    assert_eq!(file.as_file().metadata().unwrap().len(), 0);
}

#[tokio::test]
async fn a_tpm_that_hangs_is_unreachable_in_bounded_time() {
    // Accepts, and never answers.
    let (server, _control) = port_pair();
    let tcti = format!("swtpm:host=127.0.0.1,port={}", server.local_addr().unwrap().port());
    let table = format!("type = 'tpm2'\ntcti = '{tcti}'\ntimeout = '300ms'");
    let provider = Provider::parse("tpm", table.parse().unwrap()).unwrap();
    let mut prompter = NoPrompt;
    let mut reader = SecretReader::with_credentials(&mut prompter, None);
    let manager = provider.open(None, &mut Opening::new(&mut reader, Purpose::Unlock)).unwrap();
    let begun = Instant::now();
    let error = manager.probe().await.unwrap_err();
    assert_eq!(error.to_string(), "key manager unreachable: TPM: no answer in 300ms");
    assert!(begun.elapsed().as_secs() < 20);
}

#[tokio::test]
async fn a_wrong_pin_is_a_setting_and_is_tried_once() {
    let dir = tempfile::tempdir().unwrap();
    let tpm = start();
    let right = manager(&tpm, &pin_file(dir.path(), "CANARY-right"));
    let key = right.wrap(&canary_dek(), CONTEXT).await.unwrap();
    assert!(right.describe(&key).unwrap().text.ends_with("PCRs sha256:7 and PIN"));
    let wrong = manager(&tpm, &pin_file(dir.path(), "CANARY-wrong"));
    let told = async || match wrong.unwrap(&key, CONTEXT).await {
        Err(KeyError::Settings(why)) => why,
        other => panic!("{:?}", other.map(|dek| dek.is_some())),
    };
    assert_eq!(told().await, "wrong PIN for the sealed key; it is not tried again");
    assert_eq!(told().await, "the TPM refused this PIN before; it is not tried again");
    let without = manager(&tpm, "").unwrap(&key, CONTEXT).await.err().unwrap();
    assert!(matches!(&without, KeyError::Settings(why) if why.contains("needs a PIN")), "{without}");
    // Others on this host depend on the TPM: nothing counts towards its lockout.
    let properties = tool(&tpm, "tpm2_getcap", &["properties-variable"]);
    assert!(properties.contains("TPM2_PT_LOCKOUT_COUNTER: 0x0"), "{properties}");
    assert!(outcome(&*right, &key, CONTEXT).await.unwrap());
}

#[tokio::test]
async fn a_tpm_whose_owner_has_a_password_is_told_as_a_setting() {
    let tpm = start();
    tool(&tpm, "tpm2_changeauth", &["-c", "owner", "secret"]);
    let error = manager(&tpm, "").wrap(&canary_dek(), CONTEXT).await.unwrap_err();
    assert!(matches!(&error, KeyError::Settings(why) if why.contains("owner hierarchy")), "{error}");
}

#[tokio::test]
async fn a_bank_that_the_tpm_does_not_keep_is_refused() {
    let mut tpm = start();
    let manager = manager(&tpm, "bank = 'sha384'");
    manager.wrap(&canary_dek(), CONTEXT).await.unwrap();
    tool(&tpm, "tpm2_pcrallocate", &["sha256:all+sha384:none"]);
    tpm.run("stop", &[]);
    tpm.run("start", &[]);
    for result in [manager.wrap(&canary_dek(), CONTEXT).await.map(drop), manager.probe().await.map(drop)] {
        assert!(
            matches!(&result, Err(KeyError::Settings(why)) if why.contains("does not keep")),
            "{result:?}"
        );
    }
}

#[tokio::test]
async fn nothing_stays_in_the_tpm() {
    let tpm = start();
    let manager = manager(&tpm, "");
    let key = manager.wrap(&canary_dek(), CONTEXT).await.unwrap();
    let mut changed = key.clone();
    *changed.private.last_mut().unwrap() ^= 1;
    for _ in 0..5 {
        assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
        assert!(outcome(&*manager, &changed, CONTEXT).await.is_err());
    }
    for kind in ["handles-transient", "handles-loaded-session", "handles-saved-session", "handles-persistent"]
    {
        assert_eq!(tool(&tpm, "tpm2_getcap", &[kind]).trim(), "", "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn four_threads_use_one_tpm_side_by_side() {
    let tpm = start();
    let tcti = tpm.says("TCTI").to_owned();
    let mut tasks = Vec::new();
    for volume in 0..4 {
        let manager = at(&tcti, "");
        tasks.push(tokio::spawn(async move {
            let context = WrapContext { volume: [volume; 16], ..CONTEXT };
            for _ in 0..5 {
                let dek = Dek::generate().unwrap();
                let key = manager.wrap(&dek, context).await.unwrap();
                assert!(manager.unwrap(&key, context).await.unwrap().unwrap().matches(&dek));
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

/// Numbers of TPM 2.0 Library, part 2: commands, the null handle, bits of a session's attributes.
const CREATE: u32 = 0x153;
const LOAD: u32 = 0x157;
const UNSEAL: u32 = 0x15e;
const START_AUTH_SESSION: u32 = 0x176;
const RH_NULL: u32 = 0x4000_0007;
const DECRYPT: u8 = 0x20;
const ENCRYPT: u8 = 0x40;

#[tokio::test]
async fn no_key_travels_to_or_from_the_tpm_in_the_clear() {
    let tpm = start();
    let (proxied, commands) = listen_in(tpm.says("PORT").parse().unwrap());
    let manager = at(&proxied, "");
    let key = manager.wrap(&canary_dek(), CONTEXT).await.unwrap();
    assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
    let commands = commands.lock().unwrap();
    let of = |code| commands.iter().filter(move |command| number(command, 6) == code).collect::<Vec<_>>();
    // What goes in is encrypted where a key goes in, what comes out where one comes out.
    assert_eq!(of(CREATE).len(), 1);
    assert!(attributes(of(CREATE)[0], 1).iter().any(|bits| bits & DECRYPT != 0));
    assert_eq!(of(LOAD).len(), 1);
    assert_eq!(of(UNSEAL).len(), 1);
    assert!(attributes(of(UNSEAL)[0], 1).iter().any(|bits| bits & ENCRYPT != 0));
    // The session's key is known to nobody who listens: it is salted by the storage key. Trial sessions
    // compute a policy, and open nothing.
    let sessions = of(START_AUTH_SESSION);
    let salted: Vec<_> = sessions.iter().filter(|command| number(command, 10) != RH_NULL).collect();
    assert_eq!((sessions.len(), salted.len()), (4, 3));
}

/// A number of four bytes in a command.
fn number(command: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(command[at..at + 4].try_into().unwrap())
}

/// The attributes of the sessions of a command with so many handles: handle u32 ‖ nonce ‖ attributes u8 ‖
/// HMAC, after a length (TPM 2.0 Library, part 1, §18).
fn attributes(command: &[u8], handles: usize) -> Vec<u8> {
    let area = 10 + 4 * handles;
    let end = area + 4 + usize::try_from(number(command, area)).unwrap();
    let sized = |at: usize| usize::from(u16::from_be_bytes([command[at], command[at + 1]])) + 2;
    let mut at = area + 4;
    let mut found = Vec::new();
    while at < end {
        at += 4;
        at += sized(at);
        found.push(command[at]);
        at += 1;
        at += sized(at);
    }
    found
}

/// Two listeners at neighbouring ports, as the library's connections to an emulator want them.
fn port_pair() -> (TcpListener, TcpListener) {
    for _ in 0..100 {
        let first = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let Some(next) = first.local_addr().unwrap().port().checked_add(1) else { continue };
        if let Ok(second) = TcpListener::bind(("127.0.0.1", next)) {
            return (first, second);
        }
    }
    panic!("no two neighbouring ports are free");
}

/// Stands between the library and the TPM and keeps every command.
fn listen_in(port: u16) -> (String, Arc<Mutex<Vec<Vec<u8>>>>) {
    let commands = Arc::new(Mutex::new(Vec::new()));
    let (server, control) = port_pair();
    let tcti = format!("swtpm:host=127.0.0.1,port={}", server.local_addr().unwrap().port());
    let kept = Arc::clone(&commands);
    thread::spawn(move || forward(&server, port, &mut |command| kept.lock().unwrap().push(command)));
    thread::spawn(move || forward_bytes(&control, port + 1));
    (tcti, commands)
}

/// Forwards commands and responses in turn; both say their length.
fn forward(listener: &TcpListener, port: u16, keep: &mut impl FnMut(Vec<u8>)) {
    for client in listener.incoming() {
        let (mut client, mut tpm) = (client.unwrap(), TcpStream::connect(("127.0.0.1", port)).unwrap());
        while let Some(command) = message(&mut client) {
            tpm.write_all(&command).unwrap();
            keep(command);
            let Some(response) = message(&mut tpm) else { break };
            client.write_all(&response).unwrap();
        }
    }
}

fn message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut header = [0; 10];
    stream.read_exact(&mut header).ok()?;
    let mut message = header.to_vec();
    message.resize(usize::try_from(number(&header, 2)).unwrap(), 0);
    stream.read_exact(&mut message[10..]).ok()?;
    Some(message)
}

fn forward_bytes(listener: &TcpListener, port: u16) {
    for client in listener.incoming() {
        let (mut client, mut tpm) = (client.unwrap(), TcpStream::connect(("127.0.0.1", port)).unwrap());
        let (mut from_tpm, mut to_client) = (tpm.try_clone().unwrap(), client.try_clone().unwrap());
        thread::spawn(move || {
            let _ = std::io::copy(&mut from_tpm, &mut to_client);
            let _ = to_client.shutdown(std::net::Shutdown::Both);
        });
        let _ = std::io::copy(&mut client, &mut tpm);
        let _ = tpm.shutdown(std::net::Shutdown::Both);
    }
}

/// Prints the median: a figure of docs/KEYS.md.
#[tokio::test]
async fn an_unseal_takes_less_than_a_second() {
    let tpm = start();
    let manager = manager(&tpm, "");
    let key = manager.wrap(&canary_dek(), CONTEXT).await.unwrap();
    let mut times = Vec::new();
    for _ in 0..51 {
        let begun = Instant::now();
        assert!(outcome(&*manager, &key, CONTEXT).await.unwrap());
        times.push(begun.elapsed());
    }
    times.sort();
    println!("tpm2: unwrap p50 {:?}", times[25]);
    assert!(times[25].as_secs() < 1, "{:?}", times[25]);
}
