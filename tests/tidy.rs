//! The house rules that a machine can hold (CONTRIBUTING.md): layers, file sizes, headings, no leftovers, no dead links.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A source file longer than this has a second topic.
const SOURCE_LINES_MAX: usize = 600;

/// Modules of `src/` by layer, lowest first. A module uses lower layers only; siblings do not see each other.
const LAYERS: [&[&str]; 7] = [
    &["geometry", "buffers", "payload", "wire", "audit", "private_socket", "random"],
    &["export", "cipher", "store"],
    &["format"],
    &["volume"],
    &["nbd"],
    &["server", "control"],
    &["cli"],
];

/// What a module may see inside its own layer.
const SIBLINGS_ALLOWED: [(&str, &str); 2] = [("payload", "geometry"), ("payload", "buffers")];

/// What a module may not see although it lies lower, with the reason.
const FORBIDDEN: [(&str, &[&str], &str); 1] =
    [("nbd", &["volume", "format", "cipher", "store"], "nbd knows neither keys, ciphers nor stores")];

/// Crates that a module may not see.
const FORBIDDEN_CRATES: [(&str, &str); 5] = [
    ("nbd", "keymgmt"),
    ("nbd", "aes_gcm"),
    ("nbd", "aws_lc_rs"),
    ("store", "keymgmt"),
    ("audit", "keymgmt"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files of the project with one of the endings (`""`: none), without what is built, fetched or not ours.
fn files(dirs: &[&str], endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = dirs.iter().map(|dir| root().join(dir)).filter(|dir| dir.exists()).collect();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            for entry in entries.map(|entry| entry.expect("directory entry")) {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                let hidden = name.starts_with('.') && name != ".ci";
                if !hidden && !["target", "corpus", "artifacts"].contains(&&*name) {
                    open.push(entry.path());
                }
            }
        } else if endings.iter().any(|ending| path.extension().unwrap_or_default() == *ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn text(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    String::from_utf8_lossy(&bytes).into_owned()
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn assert_none(rule: &str, offences: &[String]) {
    assert!(offences.is_empty(), "{rule}:\n  {}", offences.join("\n  "));
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The top-level module that a file of `src/` belongs to; `None` for `main.rs` and `lib.rs`.
fn module_of(path: &Path) -> Option<String> {
    let below = path.strip_prefix(root().join("src")).ok()?;
    let first = Path::new(below.components().next()?.as_os_str()).with_extension("");
    let name = first.to_str()?.to_owned();
    (name != "main" && name != "lib").then_some(name)
}

/// Whether `module` may use `used`; otherwise why not.
fn judge(module: &str, used: &str) -> Result<(), String> {
    if module == used || SIBLINGS_ALLOWED.contains(&(module, used)) {
        return Ok(());
    }
    let Some(own) = layer_of(module) else { return Err(format!("{module} has no layer in tests/tidy.rs")) };
    let Some(other) = layer_of(used) else { return Err(format!("{used} has no layer in tests/tidy.rs")) };
    for (from, not, why) in FORBIDDEN {
        if from == module && not.contains(&used) {
            return Err(format!("{module} uses {used}: {why}"));
        }
    }
    if other < own { Ok(()) } else { Err(format!("{module} (layer {own}) uses {used} (layer {other})")) }
}

/// Top-level modules that the text names by `crate::`, `use crate::{…}` included.
fn modules_used(source: &str) -> Vec<String> {
    let code: String = source
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut used = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        // `$crate`, `some_crate::` are other words.
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            used.extend(heads_of_list(list));
        } else {
            used.push(word(rest));
        }
    }
    used.retain(|name| name.starts_with(|c: char| c.is_lowercase()));
    used
}

/// First words of the entries of a braced list, up to its closing brace.
fn heads_of_list(list: &str) -> Vec<String> {
    let (mut depth, mut fresh, mut heads) = (0, true, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if fresh && depth == 0 && !c.is_whitespace() => {
                heads.push(word(&list[at..]));
                fresh = false;
            }
            _ => {}
        }
    }
    heads
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn modules_use_lower_layers_only() {
    let mut offences = Vec::new();
    for path in files(&["src"], &["rs"]) {
        let Some(module) = module_of(&path) else { continue };
        let source = text(&path);
        for used in modules_used(&source) {
            if let Err(why) = judge(&module, &used) {
                offences.push(format!("{}: {why}", shown(&path)));
            }
        }
        for (from, not) in FORBIDDEN_CRATES {
            if from == module && source.contains(&format!("{not}::")) {
                offences.push(format!("{}: {module} may not know {not}", shown(&path)));
            }
        }
    }
    assert_none("a module uses lower layers only", &offences);
}

#[test]
fn what_serves_data_takes_its_random_numbers_from_the_operating_system() {
    let name = "Surroundings::replayed";
    let offences: Vec<String> = files(&["src", "keymgmt", "examples"], &["rs"])
        .iter()
        .filter(|path| !path.ends_with("src/cipher/surroundings.rs") && text(path).contains(name))
        .map(|path| shown(path))
        .collect();
    assert_none("keys that follow from a seed are for the simulation", &offences);
    assert!(text(&root().join("src/cipher/surroundings.rs")).contains(name), "the rule names what there is");
}

#[test]
fn keymgmt_knows_no_disk_and_no_network_block_device() {
    let manifest = text(&root().join("keymgmt/Cargo.toml"));
    let offences: Vec<String> = manifest
        .lines()
        .filter(|line| ["sealbd", "nbd", "path"].iter().any(|name| word(line) == *name))
        .map(str::to_owned)
        .collect();
    assert_none("keymgmt lies below the whole of src", &offences);
}

#[test]
fn files_start_by_saying_what_they_are() {
    let offences: Vec<String> = files(&["src", "keymgmt", "tests", "examples"], &["rs"])
        .iter()
        .filter(|path| !text(path).starts_with("//! "))
        .map(|path| shown(path))
        .collect();
    assert_none("a file starts with a `//!` paragraph", &offences);
}

#[test]
fn source_files_keep_to_one_topic() {
    let offences: Vec<String> = files(&["src", "keymgmt/src"], &["rs"])
        .iter()
        .map(|path| (path, text(path).lines().count()))
        .filter(|(_, lines)| *lines > SOURCE_LINES_MAX)
        .map(|(path, lines)| format!("{}: {lines} lines", shown(path)))
        .collect();
    assert_none("a source file has at most 600 lines", &offences);
}

#[test]
fn nothing_is_left_to_be_done() {
    // Put together here, so that this file does not find itself.
    let words = [
        ["to", "do!("].concat(),
        ["unimple", "mented!("].concat(),
        ["TO", "DO"].concat(),
        ["FIX", "ME"].concat(),
    ];
    let mut offences = Vec::new();
    for path in files(&["src", "keymgmt", "tests", "examples", "benches"], &["rs", "sh", "py", ""]) {
        for (number, line) in text(&path).lines().enumerate() {
            if words.iter().any(|word| line.contains(word.as_str())) {
                offences.push(format!("{}:{}: {}", shown(&path), number + 1, line.trim()));
            }
        }
    }
    assert_none("no leftovers", &offences);
}

#[test]
fn no_file_names_a_place_of_one_machine() {
    let places =
        [["/ro", "ot/"].concat(), ["/ho", "me/"].concat(), ["/wo", "rk/"].concat(), ["/tm", "p/wt"].concat()];
    let dirs = ["src", "keymgmt", "tests", "examples", "benches", "docs", "fuzz", ".ci"];
    let mut paths = files(&dirs, &["rs", "md", "toml", "sh", "py", ""]);
    paths.extend(markdown());
    let mut offences = Vec::new();
    for path in paths {
        for (number, line) in text(&path).lines().enumerate() {
            if places.iter().any(|place| line.contains(place.as_str())) {
                offences.push(format!("{}:{}: {}", shown(&path), number + 1, line.trim()));
            }
        }
    }
    assert_none("no paths of one machine", &offences);
}

/// Markdown files at the top and in `docs/`.
fn markdown() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(root())
        .expect("readable project")
        .map(|entry| entry.expect("directory entry").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "md"))
        .collect();
    found.extend(files(&["docs"], &["md"]));
    found
}

/// Targets of `[text](target)` outside code.
fn links(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_code = false;
    for line in source.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for (at, _) in line.match_indices("](") {
            if let Some((target, _)) = line[at + 2..].split_once(')') {
                found.push(target.to_owned());
            }
        }
    }
    found
}

/// The anchor that a Markdown heading gets.
fn anchor(heading: &str) -> String {
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut anchors: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    let mut offences = Vec::new();
    for path in markdown() {
        for link in links(&text(&path)) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, fragment) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            if !target.exists() {
                offences.push(format!("{}: {link}", shown(&path)));
            } else if !fragment.is_empty() && target.extension().is_some_and(|ending| ending == "md") {
                let known = anchors.entry(target.clone()).or_insert_with(|| {
                    text(&target).lines().filter(|line| line.starts_with('#')).map(anchor).collect()
                });
                if !known.iter().any(|a| a == fragment) {
                    offences.push(format!("{}: {link}: no such heading", shown(&path)));
                }
            }
        }
    }
    assert_none("every link resolves", &offences);
}

/// The tests that a document names: words of three or more parts in backticks, each with the file named last before it.
fn claims_named(document: &str) -> Vec<(String, String)> {
    let mut claims = Vec::new();
    let mut file = String::new();
    for quoted in document.split('`').skip(1).step_by(2) {
        let is_name = quoted.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if quoted.ends_with(".rs") {
            quoted.clone_into(&mut file);
        } else if is_name && quoted.matches('_').count() >= 2 {
            claims.push((file.clone(), quoted.to_owned()));
        }
    }
    claims
}

/// Whether the source has a test of that name which is run.
fn has_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let Some(at) = lines.iter().position(|line| line.contains(&format!("fn {name}("))) else { return false };
    let attributes: Vec<&&str> = lines[..at].iter().rev().take_while(|line| line.starts_with("#[")).collect();
    let has = |word: &str| attributes.iter().any(|attribute| attribute.contains(word));
    has("test") && !has("ignore")
}

#[test]
fn every_promise_names_a_test_that_is_run() {
    let claims = claims_named(&text(&root().join("SECURITY.md")));
    assert!(claims.len() > 20, "SECURITY.md names tests: {}", claims.len());
    let offences: Vec<String> = claims
        .iter()
        .filter(|(file, name)| {
            let path = root().join(file);
            !path.is_file() || !has_test(&text(&path), name)
        })
        .map(|(file, name)| format!("SECURITY.md: {file}: {name}"))
        .collect();
    assert_none("a promise names its test", &offences);
}

#[test]
fn the_layer_rule_sees_what_it_should() {
    let source = "use crate::{geometry::{Lba, self}, export::Export,\n  volume};\nuse crate::wire::Be; // crate::cli\n\
                  pub(crate) fn f() -> $crate::x { crate::store::open() }";
    assert_eq!(modules_used(source), ["geometry", "export", "volume", "wire", "store"]);
    assert!(judge("volume", "format").is_ok());
    assert!(judge("volume", "nbd").is_err());
    assert!(judge("cipher", "store").is_err(), "siblings");
    assert!(judge("nbd", "store").is_err(), "named exception");
    assert!(judge("store", "wire").is_ok());
    assert!(judge("unheard", "wire").is_err());
    assert_eq!(anchor("## 2. Keys & `nonces`"), "2-keys--nonces");
    assert_eq!(links("a [b](c.md#d) `x`\n```\n[no](way)\n```"), ["c.md#d"]);
}

#[test]
fn the_rule_of_promises_sees_what_it_should() {
    let document = "`a.rs`: `one_two_three`,\n`two_words`, `four_five_six`\n`b/c.rs`: `x_y_z`";
    let expected = [("a.rs", "one_two_three"), ("a.rs", "four_five_six"), ("b/c.rs", "x_y_z")];
    assert_eq!(claims_named(document), expected.map(|(file, name)| (file.to_owned(), name.to_owned())));
    assert!(has_test("#[test]\nfn a_b_c() {", "a_b_c"));
    assert!(!has_test("#[test]\n#[ignore = \"later\"]\nfn a_b_c() {", "a_b_c"));
    assert!(!has_test("fn a_b_c() {", "a_b_c"));
    assert!(!has_test("#[test]\nfn a_b_c_d() {", "a_b_c"));
}

/// Whoever joins our audit log with a service's looks for what the page names.
#[test]
fn the_headers_that_the_audit_page_names_are_those_that_key_managers_are_sent() {
    let page = text(&root().join("docs/AUDIT.md"));
    let sources: String = files(&["keymgmt/src"], &["rs"]).iter().map(|path| text(path)).collect();
    let mut named: Vec<&str> =
        page.split("header `").skip(1).filter_map(|rest| rest.split('`').next()).collect();
    named.sort_unstable();
    assert_eq!(named, ["X-Correlation-Id", "X-Openstack-Request-Id"]);
    for name in named {
        assert!(sources.contains(&format!("\"{name}\"")), "{name} is sent by nobody");
    }
    // Vault takes names of headers in any case, and is told this one by hand.
    assert!(page.contains("request-headers/x-correlation-id "));
}
