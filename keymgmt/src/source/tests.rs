//! Claims about the grammar of secrets and about reading them.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;

use super::*;

/// Types the same answer to every question.
struct Types(&'static str);

impl Prompter for Types {
    fn prompt(&mut self, _what: &str, _purpose: Purpose) -> Result<SecretBytes, KeyError> {
        SecretBytes::take(&mut self.0.as_bytes().to_vec())
    }
}

fn read(reader: &mut SecretReader<'_>, source: &SecretSource) -> Result<SecretInput, KeyError> {
    reader.read(source, "passphrase", Purpose::Unlock)
}

fn refusal(result: Result<SecretInput, KeyError>) -> String {
    result.err().expect("must be refused").to_string()
}

fn private_file_with(dir: &tempfile::TempDir, content: &[u8]) -> PathBuf {
    let path = dir.path().join("secret");
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

#[test]
fn every_form_parses_and_prints_as_it_was_written() {
    for (text, source) in [
        ("prompt", SecretSource::Prompt),
        ("file:relative path", SecretSource::File("relative path".into())),
        ("file:prompt", SecretSource::File("prompt".into())),
        ("fd:0", SecretSource::Fd(0)),
        ("fd:2147483647", SecretSource::Fd(i32::MAX.unsigned_abs())),
        ("cred:db1.key", SecretSource::Credential("db1.key".to_owned())),
    ] {
        assert_eq!(text.parse(), Ok(source.clone()));
        assert_eq!(source.to_string(), text);
    }
}

#[test]
fn what_is_no_source_is_refused_with_the_grammar_and_never_echoed() {
    for (text, expected) in [
        ("hunter2", GrammarError::NotASource),
        ("Prompt", GrammarError::NotASource),
        ("hunter2:x", GrammarError::NotASource),
        ("", GrammarError::NotASource),
        ("exec:hunter2", GrammarError::NotASource),
        ("file:", GrammarError::NoPath("file:")),
        ("fd:", GrammarError::NotADescriptor),
        ("fd:+3", GrammarError::NotADescriptor),
        ("fd:hunter2", GrammarError::NotADescriptor),
        ("fd:2147483648", GrammarError::NotADescriptor),
        ("fd:99999999999", GrammarError::NotADescriptor),
        ("cred:", GrammarError::NotACredential),
        ("cred:..", GrammarError::NotACredential),
        ("cred:../hunter2", GrammarError::NotACredential),
        ("cred:hunter2\0", GrammarError::NotACredential),
    ] {
        let error = text.parse::<SecretSource>().unwrap_err();
        assert_eq!(error, expected, "{text:?}");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}

#[test]
fn a_prompt_loses_exactly_one_newline() {
    for (typed, secret) in [("pass\n", "pass"), ("pass\n\n", "pass\n"), ("pass", "pass")] {
        let mut prompter = Types(typed);
        let mut reader = SecretReader::with_credentials(&mut prompter, None);
        let input = read(&mut reader, &SecretSource::Prompt).unwrap();
        assert_eq!(input.secret.expose(), secret.as_bytes());
        assert_eq!(input.warning, None);
    }
}

#[test]
fn a_file_is_read_exactly_and_a_newline_at_its_end_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let mut prompter = NoPrompt;
    let mut reader = SecretReader::with_credentials(&mut prompter, None);

    let path = private_file_with(&dir, b"pass\n");
    let source = SecretSource::File(path.clone());
    let input = read(&mut reader, &source).unwrap();
    assert_eq!(input.secret.expose(), b"pass\n");
    let warning = input.warning.unwrap();
    assert!(warning.contains("ends with a newline") && !warning.contains("pass\n"), "{warning}");

    private_file_with(&dir, b"pass");
    assert_eq!(read(&mut reader, &source).unwrap().warning, None);

    private_file_with(&dir, b"");
    assert!(refusal(read(&mut reader, &source)).ends_with("is empty"));

    private_file_with(&dir, &[b'x'; 8193]);
    assert!(refusal(read(&mut reader, &source)).ends_with("is longer than 8192 bytes"));

    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(refusal(read(&mut reader, &source)).contains("chmod 600"));
}

#[test]
fn a_descriptor_is_read_to_its_end_and_only_once() {
    let (pipe, mut writer) = io::pipe().unwrap();
    writer.write_all(b"pass\0word").unwrap();
    drop(writer);
    let mut prompter = NoPrompt;
    let mut reader = SecretReader::with_credentials(&mut prompter, None);
    let number = pipe.as_raw_fd().unsigned_abs();
    assert_eq!(read(&mut reader, &SecretSource::Fd(number)).unwrap().secret.expose(), b"pass\0word");
    let again = refusal(read(&mut reader, &SecretSource::Fd(number)));
    assert_eq!(again, format!("fd:{number} was read already; each can be used once"));
}

#[test]
fn where_pidfd_getfd_is_refused_a_pipe_is_read_by_reopening_it() {
    let (pipe, mut writer) = io::pipe().unwrap();
    writer.write_all(b"password").unwrap();
    drop(writer);
    let secret = SecretBytes::read(&mut reopen(pipe.as_raw_fd()).unwrap(), "fd:3").unwrap();
    assert_eq!(secret.expose(), b"password");
}

#[test]
fn a_descriptor_that_is_not_open_is_refused() {
    let mut prompter = NoPrompt;
    let mut reader = SecretReader::with_credentials(&mut prompter, None);
    let error = refusal(read(&mut reader, &SecretSource::Fd(i32::MAX.unsigned_abs())));
    assert!(error.starts_with("cannot open fd:2147483647: "), "{error}");
}

#[test]
fn a_credential_is_read_from_the_directory_of_the_service() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db1");
    std::fs::write(&path, b"pass").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o440)).unwrap();
    let source = SecretSource::Credential("db1".to_owned());
    let mut prompter = NoPrompt;

    let mut reader = SecretReader::with_credentials(&mut prompter, Some(dir.path().into()));
    assert_eq!(read(&mut reader, &source).unwrap().secret.expose(), b"pass");
    let missing = SecretSource::Credential("db2".to_owned());
    assert!(refusal(read(&mut reader, &missing)).starts_with("cannot open cred:db2: "));

    let mut reader = SecretReader::with_credentials(&mut prompter, None);
    assert!(refusal(read(&mut reader, &source)).contains("needs $CREDENTIALS_DIRECTORY"));
}
