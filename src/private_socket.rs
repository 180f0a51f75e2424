//! Unix sockets that only our user can connect to: mode 0600 before anybody can, a dead server's socket replaced,
//! a live one never taken, removed at the end by whoever made it.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use tokio::net::UnixListener;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 128;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum PrivateSocketError {
    /// Another server answers on it.
    #[error("{0} is in use by a running server")]
    InUse(PathBuf),
    /// The path exists and is not a socket.
    #[error("{0} exists and is not a socket")]
    NotASocket(PathBuf),
    /// The operating system's word.
    #[error("{path}: {source}")]
    Io {
        /// Which socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Listens on a unix socket at `path`. The file is removed when the second part is dropped.
///
/// # Errors
/// [`PrivateSocketError`].
///
/// # Panics
/// Outside a tokio runtime.
pub fn listen_private(path: &Path) -> Result<(UnixListener, SocketPath), PrivateSocketError> {
    let wrap = |source: io::Error| PrivateSocketError::Io { path: path.into(), source };
    // Two servers that start at once must not take each other's socket for a dead one.
    let _lock = lock_directory(path).map_err(wrap)?;
    clear_path(path)?;
    let address = SocketAddrUnix::new(path).map_err(|error| wrap(error.into()))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let bound = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).and_then(|socket| {
        // Linux gives the file the mode of the socket, so it never has another one.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        bind(&socket, &address)?;
        Ok(socket)
    });
    let socket = bound.map_err(|error| wrap(error.into()))?;
    let guard = SocketPath::new(path).map_err(wrap)?;
    listen(&socket, BACKLOG).map_err(|error| wrap(error.into()))?;
    let listener = UnixListener::from_std(socket.into()).map_err(wrap)?;
    Ok((listener, guard))
}

/// An exclusive lock on the directory of `path`, until dropped.
fn lock_directory(path: &Path) -> io::Result<fs::File> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let directory = fs::File::open(directory)?;
    flock(&directory, FlockOperation::LockExclusive)?;
    Ok(directory)
}

/// Removes the socket of a dead server.
fn clear_path(path: &Path) -> Result<(), PrivateSocketError> {
    let wrap = |source: io::Error| PrivateSocketError::Io { path: path.into(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(wrap(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(PrivateSocketError::NotASocket(path.into()));
        }
        Ok(_) => {}
    }
    if is_answered(path).map_err(wrap)? {
        return Err(PrivateSocketError::InUse(path.into()));
    }
    fs::remove_file(path).map_err(wrap)
}

/// Whether somebody listens on the socket. Does not block when its backlog is full.
fn is_answered(path: &Path) -> io::Result<bool> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &address) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A socket file that we made; removed when dropped, unless somebody else put another one there.
pub struct SocketPath {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl SocketPath {
    fn new(path: &Path) -> io::Result<Self> {
        let identity = identity(path)?;
        Ok(Self { path: path.into(), identity })
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // Nothing can be done about a failure; the next server replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_unix_socket_is_ours_alone_and_removed_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let (listener, guard) = listen_private(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop((listener, guard));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_live_socket_is_refused_a_dead_one_replaced_and_a_file_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let live = listen_private(&path).unwrap();
        assert!(matches!(listen_private(&path), Err(PrivateSocketError::InUse(_))));
        drop(live);

        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file of a closed socket");
        drop(listen_private(&path).unwrap());

        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen_private(&path), Err(PrivateSocketError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
