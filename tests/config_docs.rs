//! docs/CONFIG.md and examples/sealbd.toml hold what they say: every example is a configuration without errors,
//! and every key there is stands in both.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::programs::{outcome, program};

/// Every key of every section but `[provider.NAME]`, whose keys depend on its type.
const KEYS: [&str; 11] = [
    "control_directory",
    "memory",
    "path",
    "backend",
    "uuid",
    "slots",
    "listen",
    "rotate_kek",
    "read_only",
    "direct",
    "anchor",
];

fn text(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `sealbd config check` on a copy of the text; its report.
fn checked(text: &str) -> serde_json::Value {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("sealbd.toml");
    std::fs::write(&file, text).expect("the directory is ours");
    // A checkout may be writable for its group.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("the file is ours");
    let told = outcome(program(env!("CARGO_BIN_EXE_sealbd")).args(["config", "check", "--json"]).arg(&file));
    assert!(told.status.success(), "{}\n{text}", String::from_utf8_lossy(&told.stdout));
    serde_json::from_slice(&told.stdout).expect("JSON")
}

/// What stands between the fences of one language.
fn blocks(document: &str, language: &str) -> Vec<String> {
    let begin = format!("```{language}\n");
    document
        .split(&begin)
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn every_example_of_the_documentation_is_a_configuration_without_errors() {
    let examples = blocks(&text("docs/CONFIG.md"), "toml");
    assert!(examples.len() >= 3, "{}", examples.len());
    examples.iter().for_each(|example| drop(checked(example)));
    // And all of them together.
    assert_eq!(checked(&examples.concat())["volumes"].as_array().map(Vec::len), Some(2));
}

#[test]
fn the_example_has_every_key_and_no_error() {
    let example = text("examples/sealbd.toml");
    let report = checked(&example);
    assert_eq!(report["volumes"].as_array().map(Vec::len), Some(2));
    for key in KEYS {
        assert!(example.lines().any(|line| line.starts_with(&format!("{key} = "))), "{key}");
    }
}

#[test]
fn every_key_has_its_row_in_the_documentation() {
    let document = text("docs/CONFIG.md");
    for key in KEYS.iter().chain(&["type", "timeout", "retry_for"]) {
        assert!(document.lines().any(|line| line.starts_with(&format!("| `{key}` |"))), "{key}");
    }
    // The keys that the program itself names are those of the list above.
    let told = |section: &str| {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("x");
        std::fs::write(&file, format!("{section}\nzzzzzzzzzzzz = 1\n")).expect("the directory is ours");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("the file is ours");
        let told = outcome(program(env!("CARGO_BIN_EXE_sealbd")).args(["config", "check"]).arg(&file));
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        let known =
            told.lines().find_map(|line| line.split_once("; known are ")).map(|(_, known)| known.to_owned());
        known.unwrap_or_else(|| panic!("{told}"))
    };
    let known = ["[daemon]", "[audit]", "[volume.a]"].map(told).join(", ");
    assert_eq!(known.split(", ").collect::<Vec<_>>(), KEYS);
}
