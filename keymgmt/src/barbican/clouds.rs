//! `clouds.yaml` and `secure.yaml`, the files in which OpenStack's own clients keep where a cloud is and how
//! to log in. Source: openstacksdk, "Configuring OpenStack SDK Applications".
//!
//! Looked for in the order of openstacksdk: `$OS_CLIENT_CONFIG_FILE`, `./`, `$XDG_CONFIG_HOME/openstack/`,
//! `/etc/openstack/`; the first that exists is taken. `secure.yaml` likewise, after
//! `$OS_CLIENT_SECURE_FILE`, laid over it. Two files decide where a password goes and what it is, so each
//! must belong to root or to us, writable by nobody else; one with a secret for our cloud must be readable by
//! nobody else either. Refused, not warned: a warning at boot is read by nobody. What the YAML parser
//! copies is not wiped; a secret in a file of its own, named in the settings, is.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use saphyr_parser::{Event, Parser, ScalarStyle};
use zeroize::Zeroizing;

use crate::manager::KeyError;
use crate::private_file;

/// Largest file; those of large organisations have some KiB.
const FILE_BYTES_MAX: u64 = 256 << 10;
/// Deepest nesting; a cloud's settings lie four deep.
const DEPTH_MAX: usize = 32;
/// What must not be read by others.
const SECRETS: [&str; 2] = ["auth.password", "auth.application_credential_secret"];

/// Where clouds are looked for, and which.
pub(crate) struct Places {
    /// The cloud that `$OS_CLOUD` names.
    cloud: Option<String>,
    clouds: Vec<PathBuf>,
    secure: Vec<PathBuf>,
}

/// What a cloud is set to: names with dots (`auth.password`) and values, as they stand there.
pub(crate) struct Cloud {
    name: String,
    from: PathBuf,
    values: BTreeMap<String, Zeroizing<String>>,
}

impl Places {
    /// As the environment says.
    pub(crate) fn of_environment() -> Self {
        Self::of(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn of(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let home = variable("HOME").map(|home| PathBuf::from(home).join(".config"));
        let user = variable("XDG_CONFIG_HOME").map(PathBuf::from).or(home);
        let directories: Vec<_> = [Some(PathBuf::from(".")), user.map(|user| user.join("openstack"))]
            .into_iter()
            .flatten()
            .chain([PathBuf::from("/etc/openstack")])
            .collect();
        let files = |first: &str, stem: &str| {
            let named = variable(first).map(PathBuf::from);
            let found = directories
                .iter()
                .flat_map(|it| ["yaml", "yml"].map(|end| it.join(stem).with_extension(end)));
            named.into_iter().chain(found).collect()
        };
        Self {
            cloud: variable("OS_CLOUD").and_then(|name| name.into_string().ok()),
            clouds: files("OS_CLIENT_CONFIG_FILE", "clouds"),
            secure: files("OS_CLIENT_SECURE_FILE", "secure"),
        }
    }

    /// Reads a cloud; without a name, the one of `$OS_CLOUD`.
    ///
    /// # Errors
    /// [`KeyError::Settings`] when there is no such cloud or a file is not understood;
    /// [`KeyError::Secret`] when a file cannot be trusted.
    pub(crate) fn read(&self, name: Option<&str>) -> Result<Cloud, KeyError> {
        let name = name
            .or(self.cloud.as_deref())
            .ok_or_else(|| KeyError::Settings("no cloud is named: set cloud in auth, or $OS_CLOUD".into()))?;
        let Some(from) = self.clouds.iter().find(|path| path.exists()) else {
            let looked: Vec<_> = self.clouds.iter().map(|path| path.display().to_string()).collect();
            return Err(KeyError::Settings(format!("no clouds.yaml; looked for {}", looked.join(", "))));
        };
        let mut values = read_file(from, name)?;
        if values.is_empty() {
            return Err(KeyError::Settings(format!("{} has no cloud of that name", from.display())));
        }
        if let Some(secure) = self.secure.iter().find(|path| path.exists()) {
            values.extend(read_file(secure, name)?);
        }
        Ok(Cloud { name: name.to_owned(), from: from.clone(), values })
    }
}

impl Cloud {
    /// What a setting is, taken out.
    pub(crate) fn take(&mut self, setting: &str) -> Option<Zeroizing<String>> {
        self.values.remove(setting)
    }

    /// What a setting that is no secret is.
    pub(crate) fn plain(&mut self, setting: &str) -> Option<String> {
        self.take(setting).map(|mut value| std::mem::take(&mut *value))
    }

    /// As [`Self::plain`], and it must be there.
    ///
    /// # Errors
    /// [`KeyError::Settings`].
    pub(crate) fn required(&mut self, setting: &str) -> Result<String, KeyError> {
        self.plain(setting).ok_or_else(|| self.wrong(&format!("{setting} is missing")))
    }

    pub(crate) fn wrong(&self, why: &str) -> KeyError {
        KeyError::Settings(format!("cloud {} in {}: {why}", self.name, self.from.display()))
    }
}

/// What a file says of a cloud.
fn read_file(path: &Path, cloud: &str) -> Result<BTreeMap<String, Zeroizing<String>>, KeyError> {
    const WHAT: &str = "cloud file";
    let failed = |why: String| KeyError::Settings(format!("{}: {why}", path.display()));
    let (file, metadata) = private_file::open_regular(WHAT, path)?;
    if !may_own(metadata.uid(), rustix::process::geteuid().as_raw()) {
        return Err(KeyError::Secret(format!("{WHAT} {} belongs neither to root nor to us", path.display())));
    }
    private_file::closed_to(0o022, WHAT, path, &metadata)?;
    // Room for all of it at once: a buffer that grows leaves copies behind.
    let room = usize::try_from(metadata.len().min(FILE_BYTES_MAX)).expect("some KiB") + 2;
    let mut text = Zeroizing::new(String::with_capacity(room));
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
    if read.map_err(|error| failed(error.to_string()))? as u64 > FILE_BYTES_MAX {
        return Err(failed(format!("more than {FILE_BYTES_MAX} bytes")));
    }
    let values = values_of(&text, cloud).map_err(failed)?;
    if SECRETS.iter().any(|secret| values.contains_key(*secret)) {
        private_file::closed_to(0o077, WHAT, path, &metadata)?;
    }
    Ok(values)
}

/// Whether a file of that user may tell us where to send a password.
fn may_own(owner: u32, own: u32) -> bool {
    owner == 0 || owner == own
}

/// One open mapping or sequence.
enum Open {
    /// The key whose value comes next.
    Mapping(Option<String>),
    Sequence,
}

/// The scalars below `clouds: NAME:`, as names with dots and values; lists are left out. Nothing is built
/// from the rest, and nothing calls itself: no nesting or alias of a file costs more than its length.
fn values_of(text: &str, cloud: &str) -> Result<BTreeMap<String, Zeroizing<String>>, String> {
    let mut values = BTreeMap::new();
    let mut open: Vec<Open> = Vec::new();
    for event in Parser::new_from_str(text) {
        // The parser's own message may quote the file.
        let (event, span) = event.map_err(|error| format!("no YAML, line {}", error.marker().line()))?;
        let line = span.start.line();
        let scalar = match event {
            Event::Scalar(value, style, ..) => Some((value, style)),
            Event::Alias(_) if setting(&open, cloud).is_some() => {
                return Err(format!("line {line}: anchors and aliases are not understood here"));
            }
            Event::Alias(_) => None,
            Event::MappingStart(..) | Event::SequenceStart(..) => {
                if matches!(open.last(), Some(Open::Mapping(None))) {
                    return Err(format!("line {line}: a key that is no text"));
                }
                if open.len() == DEPTH_MAX {
                    return Err(format!("line {line}: more than {DEPTH_MAX} levels"));
                }
                let mapping = matches!(event, Event::MappingStart(..));
                open.push(if mapping { Open::Mapping(None) } else { Open::Sequence });
                continue;
            }
            Event::MappingEnd | Event::SequenceEnd => {
                open.pop();
                None
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd => continue,
            Event::DocumentStart(_) | Event::DocumentEnd => continue,
        };
        if let Some((value, _)) = &scalar
            && let Some(Open::Mapping(key @ None)) = open.last_mut()
        {
            *key = Some(value.clone().into_owned());
            continue;
        }
        if let Some((value, style)) = scalar
            && let Some(name) = setting(&open, cloud)
            && !is_null(&value, style)
            && values.insert(name, Zeroizing::new(value.into_owned())).is_some()
        {
            return Err(format!("line {line}: a setting of the cloud stands there twice"));
        }
        // A value ended: the next text of this mapping is a key.
        if let Some(Open::Mapping(key)) = open.last_mut() {
            *key = None;
        }
    }
    Ok(values)
}

/// The name, with dots, of the setting of our cloud whose value comes now.
fn setting(open: &[Open], cloud: &str) -> Option<String> {
    let path: Option<Vec<&str>> = open
        .iter()
        .map(|open| match open {
            Open::Mapping(key) => key.as_deref(),
            Open::Sequence => None,
        })
        .collect();
    match path?.as_slice() {
        ["clouds", name, rest @ ..] if *name == cloud && !rest.is_empty() => Some(rest.join(".")),
        _ => None,
    }
}

fn is_null(value: &str, style: ScalarStyle) -> bool {
    style == ScalarStyle::Plain && matches!(value, "" | "~" | "null" | "Null" | "NULL")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    const CLOUDS: &str = "
# a comment
clouds:
  other:
    auth: {auth_url: 'https://other', password: hunter2, x: &a [1, 2], y: *a}
  prod:
    region_name: R1
    interface: ~
    auth:
      auth_url: https://keys.example:5000/v3
      username: \"owner\"
      password: 'it''s: {a} \"secret\"'
      project_name: 007
    regions:
      - name: R1
        values: {auth: {password: of a list}}
    verify: True
prod: {auth: {username: not here}}
";

    fn told(text: &str) -> Vec<(String, String)> {
        let values = values_of(text, "prod").unwrap();
        values.into_iter().map(|(name, value)| (name, value.to_string())).collect()
    }

    fn write(path: &Path, text: &str, mode: u32) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn places(dir: &Path) -> Places {
        let dir = dir.to_owned();
        Places::of(move |name| match name {
            "OS_CLIENT_CONFIG_FILE" => Some(dir.join("clouds.yaml").into()),
            "OS_CLIENT_SECURE_FILE" => Some(dir.join("secure.yaml").into()),
            _ => None,
        })
    }

    #[test]
    fn the_settings_of_one_cloud_are_read_as_they_stand() {
        let expected = [
            ("auth.auth_url", "https://keys.example:5000/v3"),
            ("auth.password", "it's: {a} \"secret\""),
            ("auth.project_name", "007"),
            ("auth.username", "owner"),
            ("region_name", "R1"),
            ("verify", "True"),
        ];
        assert_eq!(told(CLOUDS), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused_and_never_quoted() {
        for text in [
            "clouds: {prod: {auth: {password: hunter2, password: hunter3}}}",
            "clouds: {prod: {auth: {password: hunter2}}}\n---\nclouds: {prod: {auth: {password: hunter3}}}",
            "clouds: {prod: {auth: &x {password: hunter2}, other: *x}}",
            "clouds: {prod: {auth: {<<: *hunter2}}}",
            "clouds: {prod: {auth: {? [hunter2] : x}}}",
            "clouds: {prod: {auth: {password: hunter2",
            "clouds: {prod: {auth: hunter2}}}}",
            &"[".repeat(100_000),
            &"- ".repeat(100_000),
            &format!("clouds:\n  prod: {}1{}", "{a: ".repeat(1000), "}".repeat(1000)),
        ] {
            let error = values_of(text, "prod").err().unwrap_or_else(|| panic!("accepted: {:.60}", text));
            assert!(!error.contains("hunter"), "{error}");
        }
        assert_eq!(told(""), []);
        assert_eq!(told("hunter2"), []);
        assert_eq!(told("clouds: [prod]"), []);
    }

    #[test]
    fn secure_yaml_lies_over_clouds_yaml_and_only_the_one_with_secrets_must_be_private() {
        let dir = tempfile::tempdir().unwrap();
        let (clouds, secure) = (dir.path().join("clouds.yaml"), dir.path().join("secure.yaml"));
        write(&clouds, "clouds: {prod: {auth: {auth_url: u, username: n}}}", 0o644);
        write(&secure, "clouds: {prod: {auth: {password: p, username: m}}}", 0o600);
        let mut cloud = places(dir.path()).read(Some("prod")).unwrap();
        assert_eq!(cloud.required("auth.username").unwrap(), "m");
        assert_eq!(cloud.take("auth.password").unwrap().as_str(), "p");
        let told = cloud.required("auth.password").unwrap_err().to_string();
        assert!(told.contains("auth.password is missing"), "{told}");

        write(&secure, "clouds: {prod: {auth: {password: p}}}", 0o640);
        let told = places(dir.path()).read(Some("prod")).err().unwrap().to_string();
        assert!(told.contains("secure.yaml is open to others (mode 0640); next: chmod 600"), "{told}");
        write(&clouds, "clouds: {prod: {auth: {auth_url: u}}}", 0o666);
        let told = places(dir.path()).read(Some("prod")).err().unwrap().to_string();
        assert!(told.contains("clouds.yaml is open to others (mode 0666)"), "who can write it redirects us");
    }

    #[test]
    fn a_file_of_another_user_is_not_ours_to_follow() {
        assert!(may_own(0, 1000) && may_own(1000, 1000) && may_own(0, 0));
        assert!(!may_own(1000, 0) && !may_own(1000, 1001));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_fail(text in "([a-z:{}\\[\\],&*!|>'\"#?%@ \t\r\n~-]|clouds: |prod: |\\PC){0,80}") {
            if let Err(told) = values_of(&text, "prod") {
                prop_assert!(told.len() < 100, "{told}");
            }
        }
    }

    #[test]
    fn a_cloud_that_is_not_there_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let told = |name| places(dir.path()).read(name).err().unwrap().to_string();
        assert!(told(None).contains("$OS_CLOUD"));
        assert!(told(Some("prod")).contains("no clouds.yaml; looked for"));
        write(&dir.path().join("clouds.yaml"), "clouds: {other: {auth: {auth_url: u}}}", 0o600);
        assert!(told(Some("prod")).contains("has no cloud of that name"));
        write(&dir.path().join("clouds.yaml"), &"x".repeat(300_000), 0o600);
        assert!(told(Some("prod")).contains("more than 262144 bytes"));
    }

    #[test]
    fn places_are_looked_at_in_the_order_of_openstacksdk() {
        let variables = |name: &str| match name {
            "OS_CLIENT_CONFIG_FILE" => Some("/named".into()),
            "HOME" => Some("/var/lib/u".into()),
            "OS_CLOUD" => Some("prod".into()),
            _ => None,
        };
        let places = Places::of(variables);
        let yaml: Vec<_> =
            places.clouds.iter().filter(|path| path.extension() != Some("yml".as_ref())).collect();
        let expected = [
            "/named",
            "./clouds.yaml",
            "/var/lib/u/.config/openstack/clouds.yaml",
            "/etc/openstack/clouds.yaml",
        ];
        assert_eq!(yaml, expected.map(Path::new).iter().collect::<Vec<_>>());
        assert_eq!(places.cloud.as_deref(), Some("prod"));
        assert_eq!(places.secure[0], Path::new("./secure.yaml"));
    }
}
