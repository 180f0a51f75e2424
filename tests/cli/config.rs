//! The configuration: where it is found, who may write it, what its errors tell, and volumes by name.

use std::os::unix::fs::{PermissionsExt, chown};

use rustix::process::Signal;
use serde_json::json;

use crate::common::programs::{have, outcome, program, skip};
use crate::desk::{Desk, Ended, SIZE, Server};

const SECRET: &str = "correct-horse-battery";
const CONFIG: [&str; 2] = ["--config", "sealbd.toml"];

fn with_config<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [&CONFIG[..], words].concat()
}

/// A desk with the volume `vol`, configured as `db1` with its keyfile.
fn configured(more: &str) -> Desk {
    let desk = Desk::with_volume();
    desk.configure(&format!("[volume.db1]\nbackend = 'DIR/vol'\nslots = ['keyfile:DIR/key']\n{more}\n"));
    desk
}

fn uuid(desk: &Desk, backend: &str) -> String {
    desk.json(&["uuid", backend])["uuid"].as_str().expect("a uuid").to_owned()
}

#[test]
fn config_check_tells_every_error_with_file_and_line_and_never_a_value() {
    let desk = Desk::new();
    desk.configure(&format!(
        "[volume.db1]\nbackend = 'relative'\nslots = ['passphrase:{SECRET}']\nread_only = '{SECRET}'\n\
         [volume.db2]\nbackend = '/srv/x'\nleas = 1\n"
    ));
    let check = with_config(&["config", "check"]);
    let ended = desk.run(&check);
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(
        lines,
        [
            "sealbd.toml:2: backend in [volume.db1]: a path in a configuration starts with '/'",
            "sealbd.toml:4: read_only in [volume.db1] is true or false, not string",
            "sealbd.toml:7: unknown key leas in [volume.db2]; known are backend, uuid, slots, listen, rotate_kek, \
             read_only, direct, anchor",
        ]
    );
    assert!(ended.next().contains("docs/CONFIG.md"));
    let json = desk.run(&with_config(&["config", "check", "--json"]));
    assert_eq!(json.code, 1);
    assert_eq!(json.object()["problems"][1]["line"], 4);
    // Whoever wanted something else is told the first one, and nothing is done.
    assert_eq!(desk.fails_in_both_forms(1, "sealbd.toml:2: ", &with_config(&["dump", "vol"])), "config");
    desk.configure(&format!(
        "[volume.db1]\nbackend = '/srv/x'\nslots = ['passphrase:{SECRET}', '{SECRET}']\n"
    ));
    for words in [&check, &with_config(&["list"]), &with_config(&["list", "--json"])] {
        let ended = desk.run(words);
        assert_eq!(ended.code, 1, "{}", ended.stderr);
        assert!(!ended.stdout.contains(SECRET) && !ended.stderr.contains(SECRET), "{}", ended.stderr);
    }
}

#[test]
fn config_check_prints_what_is_configured() {
    let desk = configured("rotate_kek = '90d'\nlisten = 'tcp:127.0.0.1:10809'");
    desk.configure_file("other.toml", "[audit]\npath = '/var/log/sealbd.jsonl'\n");
    let report = desk.json(&with_config(&["config", "check"]));
    assert_eq!(report["problems"], json!([]));
    let volume = &report["volumes"][0];
    assert_eq!(volume["name"], "db1");
    assert_eq!(volume["listen"], "tcp:127.0.0.1:10809");
    assert_eq!(volume["rotate_kek"], "90d");
    let prose = desk.ok(&with_config(&["config", "check"]));
    assert!(prose.contains("volume db1") && prose.ends_with("no errors\n"), "{prose}");
    // A file that is named is looked at instead.
    assert_eq!(
        desk.json(&with_config(&["config", "check", "other.toml"]))["audit_path"],
        "/var/log/sealbd.jsonl"
    );
    assert_eq!(desk.ok(&["config", "check"]), "there is no configuration\n");
}

#[test]
fn the_option_comes_before_the_variable_and_an_empty_variable_is_none() {
    let desk = configured("");
    desk.configure_file("other.toml", "[volume.db2]\nbackend = '/x'\n");
    let names = |option: &[&str], variable: &str| {
        let mut command = desk.command(&[option, &["config", "check", "--json"]].concat());
        let ended = Ended::of(outcome(command.env("SEALBD_CONFIG", variable)), option);
        ended.object()["volumes"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|v| v["name"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&[], "other.toml"), ["db2"]);
    assert_eq!(names(&CONFIG, "other.toml"), ["db1"]);
    assert!(names(&[], "").is_empty());
    desk.fails(1, "none.toml: No such file", &["--config", "none.toml", "dump", "vol"]);
}

#[test]
fn files_of_the_directory_beside_it_are_read_in_the_order_of_their_names() {
    let desk = configured("");
    std::fs::create_dir(desk.path("sealbd.d")).expect("the directory is ours");
    desk.configure_file("sealbd.d/20.toml", "[volume.db3]\nbackend = '/c'\n");
    desk.configure_file("sealbd.d/10.toml", "[volume.db2]\nbackend = '/b'\n");
    desk.configure_file("sealbd.d/notes.txt", "not toml");
    desk.configure_file("sealbd.d/.hidden.toml", "not toml");
    let report = desk.json(&with_config(&["config", "check"]));
    assert_eq!(report["files"], json!(["sealbd.toml", "sealbd.d/10.toml", "sealbd.d/20.toml"]));
    assert_eq!(report["volumes"].as_array().map(Vec::len), Some(3));
    desk.configure_file("sealbd.d/30.toml", "\n[volume.db1]\nbackend = '/d'\n");
    let told = "sealbd.d/30.toml:2: volume db1 is also in sealbd.toml:1";
    desk.fails(1, told, &with_config(&["dump", "db1"]));
}

#[test]
fn a_file_that_others_can_write_is_refused() {
    let desk = configured("");
    std::fs::create_dir(desk.path("sealbd.d")).expect("the directory is ours");
    desk.configure_file("sealbd.d/10.toml", "");
    let mode = |name: &str, mode| {
        std::fs::set_permissions(desk.path(name), PermissionsExt::from_mode(mode)).expect("it is ours");
    };
    for (name, open) in
        [("sealbd.toml", 0o620), ("sealbd.toml", 0o602), ("sealbd.d/10.toml", 0o666), ("sealbd.d", 0o777)]
    {
        let before = std::fs::metadata(desk.path(name)).expect("it is there").permissions().mode();
        mode(name, open);
        desk.fails(
            1,
            &format!("{name}: can be written by others (mode {open:04o})"),
            &with_config(&["dump", "db1"]),
        );
        mode(name, before);
    }
    for readable in [0o600, 0o640, 0o644, 0o444] {
        mode("sealbd.toml", readable);
        desk.ok(&with_config(&["dump", "db1"]));
    }
    std::fs::create_dir(desk.path("directory")).expect("the directory is ours");
    desk.fails(1, "directory: is not a regular file", &["--config", "directory", "dump", "vol"]);
    desk.configure_file("long.toml", &"#".repeat((4 << 20) + 1));
    desk.fails(1, "longer than 4 MiB", &["--config", "long.toml", "dump", "vol"]);
    std::fs::write(desk.path("latin"), b"# \xe9").expect("the directory is ours");
    desk.fails(1, "latin: is not UTF-8", &["--config", "latin", "dump", "vol"]);
}

#[test]
fn a_file_of_another_user_is_refused_and_one_of_root_is_taken() {
    if !have(&["setpriv"]) || !rustix::process::geteuid().is_root() {
        return skip("another user needs root and setpriv");
    }
    let desk = configured("");
    chown(desk.path("sealbd.toml"), Some(65_533), None).expect("root may");
    desk.fails(
        1,
        "sealbd.toml: belongs to user 65533; it must belong to root or to user 0",
        &with_config(&["dump", "db1"]),
    );
    chown(desk.path("sealbd.toml"), Some(0), None).expect("root may");
    for (path, mode) in [("", 0o755), ("sealbd.toml", 0o644), ("vol", 0o644)] {
        std::fs::set_permissions(desk.path(path), PermissionsExt::from_mode(mode)).expect("it is ours");
    }
    std::fs::copy(env!("CARGO_BIN_EXE_sealbd"), desk.path("sealbd")).expect("room for the program");
    let mut other = program("setpriv");
    other.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(desk.path("sealbd"));
    let told = outcome(other.args(["--config"]).arg(desk.path("sealbd.toml")).args(["uuid", "db1"]));
    let ended = Ended::of(told, &["uuid"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
}

#[test]
fn a_volume_is_named_by_its_name_its_uuid_or_its_backend() {
    let desk = configured("");
    let uuid = uuid(&desk, "vol");
    desk.configure(&format!(
        "[volume.db1]\nbackend = 'DIR/vol'\nuuid = '{uuid}'\nslots = ['keyfile:DIR/key']\n"
    ));
    std::os::unix::fs::symlink("vol", desk.path("link")).expect("the directory is ours");
    for name in ["db1", &uuid, "vol", "./vol", "link"] {
        assert_eq!(desk.json(&with_config(&["uuid", name]))["uuid"], uuid.as_str(), "{name}");
        // Its slots are the default however it is named.
        desk.ok(&with_config(&["check", name]));
        assert_eq!(desk.json(&with_config(&["key", "test", name]))["slot"], 0, "{name}");
        assert_eq!(desk.json(&with_config(&["status", name]))["name"], "db1", "{name}");
    }
    desk.fails(4, "No such file", &with_config(&["dump", "db2"]));
    desk.fails(4, "No such file", &["dump", "db1"]);
}

#[test]
fn a_name_comes_before_a_file_of_the_same_name_and_a_path_is_a_path() {
    let desk = configured("");
    desk.ok(&["format", "other", "--size", SIZE, "--slot", "keyfile:key", "--no-recovery"]);
    std::fs::rename(desk.path("other"), desk.path("db1")).expect("the directory is ours");
    let ended = desk.run(&with_config(&["uuid", "db1"]));
    assert_eq!(ended.stdout.trim(), uuid(&desk, "vol"));
    assert!(
        ended.stderr.contains("db1 is the volume of sealbd.toml:1; the file is ./db1"),
        "{}",
        ended.stderr
    );
    assert_eq!(desk.ok(&with_config(&["uuid", "./db1"])).trim(), uuid(&desk, "./db1"));
    assert_ne!(uuid(&desk, "./db1"), uuid(&desk, "vol"));
}

#[test]
fn a_key_that_is_needed_and_nowhere_named_is_a_usage_error_that_tells_both_ways() {
    let desk = Desk::with_volume();
    desk.configure("[volume.db1]\nbackend = 'DIR/vol'\n");
    for verb in
        [&["check", "db1"][..], &["key", "test", "db1"], &["serve", "db1", "-U", "s"], &["format", "db1"]]
    {
        let next = desk.fails(1, "missing: --slot", &with_config(verb));
        assert!(
            next.contains(&format!(
                "sealbd {} --help",
                verb[..verb.len().min(2)].join(" ").replace(" db1", "")
            ))
        );
        assert!(next.contains("slots = "), "{next}");
        // A check looks for the server of its volume first.
        let unconfigured = if verb[0] == "check" { &["check", "vol"][..] } else { verb };
        desk.fails(1, "missing: --slot", unconfigured);
    }
}

#[test]
fn another_volume_than_the_pinned_one_is_refused_and_not_opened() {
    let desk = Desk::with_volume();
    desk.ok(&["format", "other", "--size", SIZE, "--slot", "keyfile:key", "--no-recovery"]);
    desk.ok(&["header", "backup", "other", "backup"]);
    let pin = uuid(&desk, "other");
    desk.configure(&format!(
        "[volume.db1]\nbackend = 'DIR/vol'\nuuid = '{pin}'\nslots = ['keyfile:DIR/key']\nlisten = 'unix:DIR/socket'\n"
    ));
    let before = desk.bytes("vol");
    for name in ["db1", &pin, "vol", "./vol"] {
        for verb in [
            &["serve", name][..],
            &["serve", name, "--read-only"],
            &["check", name],
            &["status", name, "--slot", "keyfile:key"],
            &["key", "test", name],
            &["key", "add", name, "--new-slot", "keyfile:new"],
            &["key", "change", name, "--new-slot", "keyfile:new"],
            &["key", "remove", name, "--force-last"],
            &["format", name, "--size", SIZE, "--yes"],
        ] {
            assert_eq!(
                desk.fails_in_both_forms(13, "is pinned to", &with_config(verb)),
                "refused",
                "{verb:?}"
            );
        }
    }
    desk.fails(13, "is of volume", &with_config(&["header", "restore", "db1", "backup", "--yes"]));
    assert!(!desk.path("socket").exists() && !desk.path("new").exists());
    assert_eq!(desk.bytes("vol"), before);
    // Without a key it can be looked at.
    desk.ok(&with_config(&["dump", "db1"]));
}

#[test]
fn a_way_in_that_cannot_be_had_is_a_reason_and_the_next_one_is_tried() {
    let desk = Desk::with_volume();
    desk.configure(
        "[volume.db1]\nbackend = 'DIR/vol'\nslots = ['keyfile:DIR/gone', 'passphrase', 'keyfile:DIR/key']\n",
    );
    // Nobody is asked for a passphrase: no keyslot needs one.
    desk.ok(&with_config(&["check", "db1"]));
    std::fs::remove_file(desk.path("key")).expect("the directory is ours");
    let next = desk.fails(2, "gone does not exist", &with_config(&["check", "db1"]));
    assert!(next.contains("sealbd key list"), "{next}");
}

#[test]
fn serve_takes_address_name_and_access_from_the_configuration() {
    let desk = configured("listen = 'unix:db1.sock'\nread_only = true");
    let control = desk.path("control");
    let start = |words: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sealbd"));
        command.args(CONFIG).arg("serve").args(words).env("SEALBD_CONTROL_DIRECTORY", &control);
        Server::start_listening(&desk, command, "control/db1.sock")
    };
    for name in ["db1", "./vol"] {
        let mut server = start(&[name]);
        drop(server.connect("db1"));
        assert!(server.log().contains("serving \"db1\" (16.00 MiB, read-only)"), "{}", server.log());
        assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
    }
    let mut server = start(&["db1", "--name", "x"]);
    drop(server.connect("x"));
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
}

#[test]
fn volumes_with_different_addresses_are_not_served_together_unasked() {
    let desk = configured("listen = 'unix:DIR/one'");
    desk.ok(&["format", "other", "--size", SIZE, "--slot", "keyfile:key", "--no-recovery"]);
    desk.configure_file("sealbd.d.toml", "");
    std::fs::create_dir(desk.path("sealbd.d")).expect("the directory is ours");
    desk.configure_file("sealbd.d/2.toml", "[volume.db2]\nbackend = 'DIR/other'\nlisten = 'unix:DIR/two'\n");
    desk.fails(1, "different addresses", &with_config(&["serve", "db1", "db2"]));
    let mut server = {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sealbd"));
        command.args(CONFIG).args(["serve", "db1", "db2"]);
        Server::start_as(&desk, command)
    };
    drop((server.connect("db1"), server.connect("db2")));
    assert_eq!(server.stop(Signal::TERM), 0, "{}", server.log());
}

#[test]
fn a_configured_volume_is_formatted_with_its_slots() {
    let desk = Desk::new();
    desk.configure("[volume.db1]\nbackend = 'DIR/vol'\nslots = ['keyfile:DIR/key']\n");
    let report = desk.json(&with_config(&["format", "db1", "--size", SIZE]));
    assert_eq!(report["keyslots"][0]["type"], "keyfile");
    desk.ok(&with_config(&["check", "db1"]));
}

#[test]
fn the_control_directory_is_that_of_the_variable_then_of_the_file_then_of_the_service_manager() {
    let desk = Desk::new();
    desk.configure("");
    let told = |variables: &[(&str, &str)]| {
        let mut command = desk.command(&with_config(&["config", "check", "--json"]));
        command
            .env_remove("SEALBD_CONTROL_DIRECTORY")
            .env_remove("RUNTIME_DIRECTORY")
            .envs(variables.iter().copied());
        let ended = Ended::of(outcome(&mut command), &["config check"]);
        ended.object()["control_directory"].clone()
    };
    let (own, service) = (("SEALBD_CONTROL_DIRECTORY", "/a"), ("RUNTIME_DIRECTORY", "/b:/c"));
    assert_eq!(told(&[service]), "/b");
    assert_eq!(told(&[service, own]), "/a");
    if rustix::process::geteuid().is_root() {
        assert_eq!(told(&[]), "/run/sealbd");
    } else {
        assert_eq!(told(&[("XDG_RUNTIME_DIR", "/d")]), "/d/sealbd");
    }
    desk.configure("[daemon]\ncontrol_directory = '/e'\n");
    assert_eq!(told(&[service]), "/e");
    assert_eq!(told(&[service, own]), "/a");
}
