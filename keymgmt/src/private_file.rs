//! Opening files that hold secrets: regular files that only their owner can read.

use std::fs::{File, Metadata, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::manager::KeyError;

/// Opens a file that holds a secret and tells its size in bytes. `what` names it in errors.
///
/// What is checked is the opened file, not the path, so it cannot be exchanged in between.
///
/// # Errors
/// [`KeyError::Secret`] when it cannot be opened, is not a regular file, or gives any right to
/// its group or to others. A credential of the service manager may show rights of a group.
pub(crate) fn open(what: &str, path: &Path) -> Result<(File, u64), KeyError> {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY");
    open_beside(what, path, credentials.as_deref().map(Path::new))
}

/// Rights that nobody but the owner may have. systemd lets a service's user read its credentials by an
/// access list (`LoadCredential=`, systemd.exec(5)), and the mask of an access list stands where the
/// rights of the group would (acl(5)).
fn forbidden_rights(path: &Path, credentials: Option<&Path>) -> u32 {
    let is_credential = credentials.is_some_and(|directory| path.parent() == Some(directory));
    if is_credential { 0o007 } else { 0o077 }
}

fn open_beside(what: &str, path: &Path, credentials: Option<&Path>) -> Result<(File, u64), KeyError> {
    let (file, metadata) = open_regular(what, path)?;
    closed_to(forbidden_rights(path, credentials), what, path, &metadata)?;
    Ok((file, metadata.len()))
}

/// Opens a regular file, whoever may read it, and tells what it is.
///
/// # Errors
/// [`KeyError::Secret`] when it cannot be opened or is not a regular file.
pub(crate) fn open_regular(what: &str, path: &Path) -> Result<(File, Metadata), KeyError> {
    let shown = path.display();
    let file = OpenOptions::new()
        .read(true)
        // A FIFO would otherwise block here before it can be refused.
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => KeyError::Secret(format!("{what} {shown} does not exist")),
            _ => KeyError::Secret(format!("cannot open {what} {shown}: {error}")),
        })?;
    let metadata = file
        .metadata()
        .map_err(|error| KeyError::Secret(format!("cannot examine {what} {shown}: {error}")))?;
    if !metadata.is_file() {
        return Err(KeyError::Secret(format!("{what} {shown} is not a regular file")));
    }
    Ok((file, metadata))
}

/// Refuses a file of which anybody has one of these rights, e.g. `0o077`.
///
/// # Errors
/// [`KeyError::Secret`], with the remedy.
pub(crate) fn closed_to(rights: u32, what: &str, path: &Path, metadata: &Metadata) -> Result<(), KeyError> {
    let mode = metadata.mode() & 0o7777;
    if mode & rights == 0 {
        return Ok(());
    }
    let shown = path.display();
    Err(KeyError::Secret(format!(
        "{what} {shown} is open to others (mode {mode:04o}); next: chmod 600 {shown}"
    )))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn refusal(path: &Path) -> String {
        open("keyfile", path).expect_err("must be refused").to_string()
    }

    #[test]
    fn any_right_of_the_group_or_of_others_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, b"x").unwrap();
        for mode in [0o640, 0o604, 0o620, 0o601, 0o644] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let shown = path.display();
            let expected =
                format!("keyfile {shown} is open to others (mode {mode:04o}); next: chmod 600 {shown}");
            assert_eq!(refusal(&path), expected);
        }
        for mode in [0o600, 0o400] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(open("keyfile", &path).unwrap().1, 1);
        }
    }

    #[test]
    fn a_credential_may_have_an_access_list_but_no_rights_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, b"x").unwrap();
        let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        mode(0o440);
        assert_eq!(open_beside("keyfile", &path, Some(dir.path())).unwrap().1, 1);
        assert!(open_beside("keyfile", &path, dir.path().parent()).is_err(), "another directory");
        mode(0o444);
        assert!(open_beside("keyfile", &path, Some(dir.path())).is_err());
    }

    #[test]
    fn directories_and_fifos_are_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        assert!(refusal(dir.path()).ends_with("is not a regular file"));
        let fifo = dir.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
        assert!(refusal(&fifo).ends_with("is not a regular file"));
    }

    #[test]
    fn a_missing_file_is_named() {
        assert_eq!(refusal(Path::new("/nonexistent/key")), "keyfile /nonexistent/key does not exist");
    }
}
