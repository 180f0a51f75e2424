use super::*;
use crate::provider::Provider;
use crate::source::{NoPrompt, SecretReader};

fn parse(table: &str) -> Result<Provider, String> {
    let table = format!("type = 'pkcs11'\n{table}").parse().unwrap();
    Provider::parse("hsm", table).map_err(|error| error.to_string())
}

fn open(table: &str, key: Option<&str>) -> KeyError {
    let mut prompter = NoPrompt;
    let mut reader = SecretReader::with_credentials(&mut prompter, None);
    let mut opening = Opening::new(&mut reader, Purpose::Unlock);
    parse(table).unwrap().open(key, &mut opening).err().unwrap()
}

#[test]
fn settings_are_read_strictly() {
    assert!(parse("module = '/m.so'\ntoken = 't'\nserial = 's'\npin = 'file:/p'").is_ok());
    for mechanism in ["auto", "aes-gcm", "aes-key-wrap"] {
        assert!(parse(&format!("mechanism = '{mechanism}'")).is_ok());
    }
    assert!(parse("mechanism = 'aes-cbc'").err().unwrap().contains("variant"));
    assert!(parse("label = 'x'").err().unwrap().contains("label"));
    let error = parse("pin = 'hunter2'").err().unwrap();
    assert!(error.contains("never as itself") && !error.contains("hunter2"), "{error}");
}

#[test]
fn a_module_that_others_could_have_written_is_not_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("module.so");
    std::fs::write(&path, b"").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o646)).unwrap();
    let error = open(&format!("module = '{}'", path.display()), None).to_string();
    assert!(error.ends_with("everybody can write it"), "{error}");
    for module in ["module.so", "/nonexistent/module.so", "/"] {
        assert!(matches!(open(&format!("module = '{module}'"), None), KeyError::Settings(_)), "{module}");
    }
}

#[test]
fn a_pin_with_a_newline_is_refused_before_it_counts_as_a_wrong_one() {
    let dir = tempfile::tempdir().unwrap();
    let (module, pin) = (dir.path().join("module.so"), dir.path().join("pin"));
    std::fs::write(&module, b"").unwrap();
    std::fs::write(&pin, b"1234\n").unwrap();
    std::fs::set_permissions(&pin, std::fs::Permissions::from_mode(0o600)).unwrap();
    let table = format!("module = '{}'\npin = 'file:{}'", module.display(), pin.display());
    let error = open(&table, None);
    assert!(matches!(&error, KeyError::Settings(why) if why.contains("newline")), "{error}");
}

#[test]
fn a_key_is_named_by_label_or_id() {
    assert_eq!(Choice::parse("prod").unwrap(), Choice::Label("prod".into()));
    assert_eq!(Choice::parse("id=0aff").unwrap(), Choice::Id(vec![0x0a, 0xff]));
    for key in ["id=", "id=0AFF", "id=0", "sealbd", &"x".repeat(65)] {
        assert!(matches!(Choice::parse(key), Err(KeyError::Settings(_))), "{key}");
    }
}
