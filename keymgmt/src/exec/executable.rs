//! Whether a program may be trusted with keys: nobody but root and the user that sealbd runs as can change
//! it, or anything on the way to it.
//!
//! The path is followed as the kernel does, through every link. Whoever could replace the program could have
//! every key, so each file, link and directory on the way belongs to root or to our own user, and none can
//! be written by a group or by others; a directory with the sticky bit (`/tmp`) is the exception, for there
//! nobody can replace what is not theirs. As only those two could change anything in between, nothing can
//! happen between this and the start of the program. What the program itself loads (an interpreter's
//! libraries, its arguments) is beyond this.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Access, access};

use crate::manager::KeyError;

/// Most links on the way; the kernel's own bound.
const LINKS_MAX: usize = 40;
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;
const SET_ID: u32 = 0o6000;

/// Refuses a program that others could have changed.
///
/// # Errors
/// [`KeyError::Settings`], naming the file or directory and what is wrong with it.
pub(super) fn check(path: &Path) -> Result<(), KeyError> {
    check_for(path, rustix::process::geteuid().as_raw())
}

fn check_for(path: &Path, own_uid: u32) -> Result<(), KeyError> {
    let failed = |place: &Path, why: &str| KeyError::Settings(format!("plug-in {place:?} {why}"));
    if !path.is_absolute() {
        return Err(failed(path, "is not an absolute path"));
    }
    let mut ahead: VecDeque<OsString> = steps(path).collect();
    let mut here = PathBuf::from("/");
    let mut links = 0;
    loop {
        let metadata = here.symlink_metadata().map_err(|error| failed(&here, &error.to_string()))?;
        if ![0, own_uid].contains(&metadata.uid()) {
            return Err(failed(&here, "belongs neither to root nor to the user that sealbd runs as"));
        }
        if metadata.is_symlink() {
            links += 1;
            if links > LINKS_MAX {
                return Err(failed(&here, "is behind too many links"));
            }
            let target = here.read_link().map_err(|error| failed(&here, &error.to_string()))?;
            here.pop();
            if target.is_absolute() {
                here = PathBuf::from("/");
            }
            steps(&target).rev().for_each(|step| ahead.push_front(step));
        } else if metadata.is_dir() {
            if metadata.mode() & OTHERS_WRITE != 0 && metadata.mode() & STICKY == 0 {
                return Err(failed(&here, "can be changed by others; next: chmod go-w"));
            }
        } else if ahead.is_empty() {
            return check_file(&here, &metadata).map_err(|why| failed(&here, why));
        }
        match ahead.pop_front() {
            Some(step) if step == ".." => drop(here.pop()),
            Some(step) => here.push(step),
            None => return Err(failed(&here, "is a directory")),
        }
    }
}

fn check_file(path: &Path, metadata: &Metadata) -> Result<(), &'static str> {
    let mode = metadata.mode();
    if !metadata.is_file() {
        return Err("is not a regular file");
    }
    if mode & OTHERS_WRITE != 0 {
        return Err("can be changed by others; next: chmod go-w");
    }
    if mode & SET_ID != 0 {
        return Err("changes its user when it runs, and then could not be stopped");
    }
    access(path, Access::EXEC_OK).map_err(|_| "cannot be executed; next: chmod +x")
}

/// The names on the way, `..` included.
fn steps(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_a_third_user_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        std::fs::write(&program, b"").unwrap();
        let own = rustix::process::geteuid().as_raw();
        if own == 0 {
            std::os::unix::fs::chown(&program, Some(65534), None).unwrap();
            assert!(check_for(&program, 65534).unwrap_err().to_string().contains("cannot be executed"));
        }
        let third = 65533;
        let error = check_for(&program, third).unwrap_err().to_string();
        assert!(error.ends_with("belongs neither to root nor to the user that sealbd runs as"), "{error}");
        check_for(Path::new("/bin/sh"), third).unwrap();
    }
}
