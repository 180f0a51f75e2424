//! What a configuration may say, and how each error is told.

use std::time::Duration;

use super::*;

const UUID: &str = "6f1c2b0e-0000-4000-8000-000000000001";

fn read(files: &[(&str, &str)]) -> Result<(Settings, Registry), Vec<Problem>> {
    Settings::of_files(files.iter().map(|(file, text)| Source::new(Path::new(file), text)))
}

fn good(text: &str) -> Settings {
    let told = |problems: Vec<Problem>| problems.iter().map(|p| format!("{p}\n")).collect::<String>();
    read(&[("f", text)]).unwrap_or_else(|problems| panic!("{}", told(problems))).0
}

/// The problems of one file, as told.
fn bad(text: &str) -> Vec<String> {
    let problems = read(&[("f", text)]).err().expect("must be refused");
    problems.iter().map(Problem::to_string).collect()
}

fn volume(lines: &str) -> String {
    format!("[volume.db1]\nbackend = '/srv/db1'\n{lines}\n")
}

#[test]
fn every_key_of_a_volume_is_read() {
    let settings = good(&format!(
        "[daemon]\ncontrol_directory = '/run/x'\n[audit]\npath = '/var/log/a'\n\
         [volume.db1]\nbackend = 'nbd://store1/db1'\nuuid = '{UUID}'\nslots = ['keyfile:/k', 'passphrase']\n\
         listen = 'unix:db1.sock'\nrotate_kek = '90d'\nread_only = true\ndirect = true\n"
    ));
    let volume = settings.volume("db1").unwrap();
    assert_eq!(volume.backend, "nbd://store1/db1".parse().unwrap());
    assert_eq!(volume.uuid.unwrap().to_string(), UUID);
    assert_eq!(volume.slots, ["keyfile:/k", "passphrase"]);
    assert_eq!(volume.listen, Some(Listen::Unix("db1.sock".into())));
    assert_eq!(volume.rotate_kek, Some(Duration::from_secs(90 * 86_400)));
    assert!(volume.read_only && volume.direct);
    assert_eq!(volume.origin.to_string(), "f:5");
    assert_eq!(settings.audit_path, Some("/var/log/a".into()));
    assert_eq!(settings.control_directory, Some("/run/x".into()));
    assert!(settings.volume_of_uuid(volume.uuid.unwrap()).is_some());
    let other = good(&volume_with_nothing_but_a_backend());
    let volume = other.volume("db1").unwrap();
    assert!(volume.uuid.is_none() && volume.slots.is_empty() && volume.listen.is_none());
    assert!(volume.rotate_kek.is_none() && !volume.read_only && !volume.direct);
}

fn volume_with_nothing_but_a_backend() -> String {
    volume("")
}

#[test]
fn an_unknown_key_is_told_with_its_line_and_what_it_may_have_meant() {
    for (text, told) in [
        (volume("reed_only = true"), "f:3: unknown key reed_only in [volume.db1]; is it read_only?"),
        (
            volume("lease = 'exclusive'"),
            "f:3: unknown key lease in [volume.db1]; \
             known are backend, uuid, slots, listen, rotate_kek, read_only, direct, anchor",
        ),
        ("[vollume.db1]\n".into(), "f:1: unknown section vollume; is it volume?"),
        (
            "\n[tls]\nmode = 'x'\n".into(),
            "f:2: unknown section tls; known are daemon, audit, provider, volume",
        ),
        (
            "[daemon]\nmetrics = '127.0.0.1:9'\n".into(),
            "f:2: unknown key metrics in [daemon]; known are control_directory, memory",
        ),
        ("colour = 1\n".into(), "f:1: unknown key colour; known are daemon, audit, provider, volume"),
        (
            "[audit]\n'hunter2 is my password' = 1\n".into(),
            "f:2: unknown key in [audit] (its name is not repeated: no key is called like that)",
        ),
    ] {
        assert_eq!(bad(&text), [told]);
    }
}

#[test]
fn a_value_of_another_type_or_out_of_bounds_is_told_and_never_repeated() {
    for (line, told) in [
        ("read_only = 'hunter2'", "read_only in [volume.db1] is true or false, not string"),
        ("slots = 'passphrase:hunter2'", "slots in [volume.db1] is a list of texts, not string"),
        ("slots = [4711]", "slots in [volume.db1] is text in quotes, not integer"),
        ("slots = ['hunter2']", "slots in [volume.db1]: no key manager of that name; known are passphrase"),
        ("slots = ['passphrase:hunter2']", "slots in [volume.db1]: a secret is given as prompt"),
        ("slots = ['keyfile:hunter2']", "slots in [volume.db1]: a path in a configuration starts with '/'"),
        ("slots = ['passphrase:file:hunter2']", "a path in a configuration starts with '/'"),
        ("slots = ['passphrase:fd:3']", "a file descriptor belongs to one command"),
        ("slots = ['kms:hunter2']", "slots in [volume.db1]: no provider of that name in the configuration"),
        ("uuid = 'hunter2'", "uuid in [volume.db1]: not a uuid as sealbd uuid prints it"),
        ("uuid = '6F1C2B0E-0000-4000-8000-000000000001'", "not a uuid as sealbd uuid prints it"),
        ("uuid = '{6f1c2b0e-0000-4000-8000-000000000001}'", "not a uuid as sealbd uuid prints it"),
        ("listen = 'hunter2'", "listen in [volume.db1]: unix:/PATH, unix:NAME or tcp:127.0.0.1:PORT"),
        ("listen = 'tcp:localhost:1'", "listen in [volume.db1]: unix:/PATH, unix:NAME or tcp:127.0.0.1:PORT"),
        ("listen = 'tcp:192.0.2.1:4711'", "without TLS only loopback addresses are served"),
        ("listen = 'unix:'", "listen in [volume.db1]: unix:/PATH, unix:NAME or tcp:127.0.0.1:PORT"),
        ("listen = 'unix:../hunter2'", "listen in [volume.db1]: unix:/PATH, unix:NAME or tcp:127.0.0.1:PORT"),
        ("rotate_kek = 'hunter2'", "rotate_kek in [volume.db1]: a time like 90d or 12h"),
        ("rotate_kek = '59m'", "rotate_kek in [volume.db1]: at least 1h"),
        ("rotate_kek = 4711", "rotate_kek in [volume.db1] is text in quotes, not integer"),
        ("uuid = hunter2", "f:3: "),
        ("uuid = \"hunter2", "f:3: "),
        ("= hunter2", "f:3: "),
    ] {
        let problems = bad(&volume(line)).join("\n");
        assert!(problems.starts_with("f:3: ") && problems.contains(told), "{line}: {problems}");
        assert!(!problems.contains("hunter2") && !problems.contains("4711"), "{problems}");
    }
    for (backend, told) in [
        ("hunter2", "starts with '/'"),
        ("file:hunter2", "starts with '/'"),
        ("mem:1M", "gone"),
        ("nbds://host/x", "TLS"),
        ("nbd://user:hunter2@host/x", "must not carry"),
        ("", "empty"),
    ] {
        let problems = bad(&format!("[volume.a]\nbackend = '{backend}'\n")).join("\n");
        assert!(
            problems.starts_with("f:2: backend in [volume.a]: ") && problems.contains(told),
            "{problems}"
        );
        assert!(!problems.contains("hunter2"), "{problems}");
    }
}

#[test]
fn all_errors_are_told_at_once() {
    let told = bad("[daemon]\ncontrol_directory = 'x'\n[volume.a]\n[volume.b]\nbackend = 3\nuid = 1\n\
         [provider.p]\ntype = 'none'\n[volume.c]\nbackend='/c'\nslots=['kms:p']\n");
    let lines: Vec<_> = told.iter().map(|problem| problem.split(':').nth(1).unwrap()).collect();
    // That p is unknown to c follows from the error in p and is not told.
    assert_eq!(lines, ["2", "3", "5", "6", "7"], "{told:?}");
    assert!(told[1].contains("a volume needs its backend"), "{told:?}");
}

#[test]
fn a_name_or_place_or_pin_that_stands_twice_is_told_with_both_files() {
    let twice = |one: &str, other: &str| -> Vec<String> {
        let problems = read(&[("one", one), ("other", other)]).err().expect("must be refused");
        problems.iter().map(Problem::to_string).collect()
    };
    let a = "[volume.a]\nbackend = '/a'\n";
    assert_eq!(twice(a, "\n[volume.a]\nbackend = '/b'\n"), ["other:2: volume a is also in one:1"]);
    assert_eq!(
        twice(a, "[volume.b]\nbackend = '/./a/'\n"),
        ["other:1: the backend is also that of volume a"]
    );
    let pinned = |name: &str| format!("[volume.{name}]\nbackend = '/{name}'\nuuid = '{UUID}'\n");
    assert_eq!(twice(&pinned("a"), &pinned("b")), ["other:1: the uuid is also that of volume a"]);
    let (daemon, audit) = ("[daemon]\n", "[audit]\npath = '/x'\n");
    assert_eq!(twice(daemon, daemon), ["other:1: [daemon] is also in one:1"]);
    assert_eq!(twice(audit, audit), ["other:1: [audit] is also in one:1"]);
    let both = read(&[("one", a), ("other", "[volume.b]\nbackend = '/b'\n")]);
    assert_eq!(both.unwrap_or_else(|p| panic!("{p:?}")).0.volumes.len(), 2);
}

#[test]
fn names_that_could_be_taken_for_something_else_are_refused() {
    for name in ["\"a b\"", "\"a/b\"", "\"\"", "\"a\\u001b\"", "'é'"] {
        assert_eq!(
            bad(&format!("[volume.{name}]\nbackend = '/a'\n")),
            ["f:1: the name in [volume.NAME] has 1 to 64 letters, digits, - and _"]
        );
    }
    assert_eq!(bad(&format!("[volume.{UUID}]\nbackend = '/a'\n")), ["f:1: a volume's name is not a uuid"]);
    assert_eq!(bad("[volume]\na = 1\n"), ["f:2: [volume.a] is a table, not integer"]);
    assert_eq!(bad("volume = 1\n"), ["f:1: [volume] is a table, not integer"]);
    assert_eq!(bad("[[volume]]\n"), ["f:1: [volume] is a table, not array"]);
}

#[test]
fn an_error_of_a_provider_has_its_line_and_no_value() {
    assert_eq!(
        bad("[provider.p]\ntimeout = '5s'\n"),
        ["f:1: provider p: missing field `type`"],
        "the provider as a whole"
    );
    let told = bad("[provider.p]\ntype = 'tang'\n").join("\n");
    assert!(told.starts_with("f:1: provider p: type tang is planned"), "{told}");
    let told = bad("[provider.p]\ntype = 'hunter2'\n").join("\n");
    assert!(told.contains("no such type") && !told.contains("hunter2"), "{told}");
    let told = bad("[provider.p]\ntype = 'tang'\ntimeout = 'hunter2'\n").join("\n");
    assert!(!told.contains("hunter2"), "{told}");
    assert_eq!(line_of("unknown field `adress`, expected `address`", &[("adress".into(), 7)]), Some(7));
}

#[test]
fn thousands_of_volumes_are_read_at_once() {
    let volume = |number| format!("[volume.v{number}]\nbackend = '/nowhere/v{number}'\nread_only = true\n");
    let begun = std::time::Instant::now();
    let settings = good(&(0..20_000).map(volume).collect::<String>());
    assert_eq!(settings.volumes.len(), 20_000);
    assert_eq!(settings.volume("v19999").unwrap().origin.line, 3 * 19_999 + 1);
    // It takes a second in a debug build; comparing each with each would take minutes.
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

#[test]
fn any_bytes_at_all_are_refused_or_read_without_panic() {
    let whole = format!("{}[provider.p]\ntype = 'tang'\n", volume("slots = ['passphrase']"));
    for cut in 0..whole.len() {
        let _ = read(&[("f", &whole[..cut])]);
        for other in ["\"", "[", "\0", "=", "é", "\n"] {
            let _ = read(&[("f", &format!("{}{other}{}", &whole[..cut], &whole[cut..]))]);
        }
    }
    let deep = format!("a = {}", "[".repeat(100_000));
    assert!(read(&[("f", &deep)]).is_err());
}
