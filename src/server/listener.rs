//! Sockets to be served: made by us, or handed over by systemd or by whoever started us.
//!
//! A unix socket gets mode 0600 before anybody can connect to it. TCP sockets are refused unless
//! they are bound to the loopback interface: there is no TLS.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::net::{AddressFamily, sockopt};
use tokio::net::unix::pipe;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::nbd::transport::Pipes;
use crate::private_socket::{PrivateSocketError, SocketPath, listen_private};

/// Why a socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The unix socket cannot be made.
    #[error(transparent)]
    Unix(#[from] PrivateSocketError),
    /// The address can be reached from other hosts.
    #[error("{0} can be reached from other hosts; without TLS only loopback addresses are served")]
    NotLoopback(IpAddr),
    /// Standard input and output are neither one socket nor two pipes.
    #[error("standard input and output are neither a socket nor pipes")]
    Stdio,
    /// A descriptor handed over is no listening TCP or unix socket.
    #[error("descriptor {0} handed over by LISTEN_FDS is no listening TCP or unix socket")]
    HandedOver(usize),
    /// The operating system's word.
    #[error("{what}: {source}")]
    Io {
        /// Which socket.
        what: String,
        /// The cause.
        source: io::Error,
    },
}

/// A source of connections, bound and listening.
pub struct Listener {
    pub(super) kind: Kind,
}

pub(super) enum Kind {
    /// With the path to remove at the end, when we made it.
    Unix(UnixListener, Option<SocketPath>),
    Tcp(TcpListener),
    /// One connection that exists already.
    Stdio(Stdio),
}

pub(super) enum Stdio {
    Unix(UnixStream),
    Tcp(TcpStream),
    Pipes(Pipes),
}

impl Listener {
    /// Listens on a unix socket at `path`, which only our user can connect to. The socket of a
    /// server that died is replaced.
    ///
    /// # Errors
    /// [`ListenError::Unix`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn unix(path: &Path) -> Result<Self, ListenError> {
        let (listener, guard) = listen_private(path)?;
        Ok(Self { kind: Kind::Unix(listener, Some(guard)) })
    }

    /// Listens on a TCP address of the loopback interface. Port 0 picks one, see
    /// [`tcp_address`](Self::tcp_address).
    ///
    /// # Errors
    /// [`ListenError::NotLoopback`], [`ListenError::Io`].
    pub async fn tcp(address: SocketAddr) -> Result<Self, ListenError> {
        refuse_unless_loopback(address)?;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| ListenError::Io { what: address.to_string(), source })?;
        Ok(Self { kind: Kind::Tcp(listener) })
    }

    /// The sockets that systemd handed over (`LISTEN_FDS`, sd_listen_fds(3)); none when there are
    /// none. To be called once, before other threads are started.
    ///
    /// # Errors
    /// [`ListenError::HandedOver`], [`ListenError::NotLoopback`], [`ListenError::Io`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn handed_over() -> Result<Vec<Self>, ListenError> {
        let mut sockets = listenfd::ListenFd::from_env();
        (0..sockets.len()).map(|index| take_handed_over(&mut sockets, index)).collect()
    }

    /// One connection on standard input and output: a socket as both, or two pipes.
    ///
    /// # Errors
    /// [`ListenError::Stdio`], [`ListenError::Io`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn stdio() -> Result<Self, ListenError> {
        let clone = |fd: io::Result<OwnedFd>| fd.map_err(|source| io_error("standard input", source));
        let input = clone(io::stdin().as_fd().try_clone_to_owned())?;
        let output = clone(io::stdout().as_fd().try_clone_to_owned())?;
        Self::connection(input, output)
    }

    /// One connection that exists already: `input` and `output` are the same socket, or pipes.
    ///
    /// # Errors
    /// [`ListenError::Stdio`], [`ListenError::Io`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn connection(input: OwnedFd, output: OwnedFd) -> Result<Self, ListenError> {
        let wrap = |source| io_error("standard input and output", source);
        let stdio = match sockopt::socket_domain(&input) {
            Ok(AddressFamily::UNIX) => {
                let socket = std::os::unix::net::UnixStream::from(input);
                socket.set_nonblocking(true).map_err(wrap)?;
                Stdio::Unix(UnixStream::from_std(socket).map_err(wrap)?)
            }
            Ok(AddressFamily::INET | AddressFamily::INET6) => {
                let socket = std::net::TcpStream::from(input);
                refuse_unless_loopback(socket.local_addr().map_err(wrap)?)?;
                socket.set_nonblocking(true).map_err(wrap)?;
                let _ = socket.set_nodelay(true);
                Stdio::Tcp(TcpStream::from_std(socket).map_err(wrap)?)
            }
            _ => Stdio::Pipes(Pipes {
                receiver: pipe::Receiver::from_owned_fd(input).map_err(|_| ListenError::Stdio)?,
                sender: Some(pipe::Sender::from_owned_fd(output).map_err(|_| ListenError::Stdio)?),
            }),
        };
        Ok(Self { kind: Kind::Stdio(stdio) })
    }

    /// The address of a TCP listener.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.kind {
            Kind::Tcp(listener) => listener.local_addr().ok(),
            Kind::Unix(..) | Kind::Stdio(_) => None,
        }
    }
}

fn io_error(what: &str, source: io::Error) -> ListenError {
    ListenError::Io { what: what.to_owned(), source }
}

fn refuse_unless_loopback(address: SocketAddr) -> Result<(), ListenError> {
    let ip = address.ip().to_canonical();
    if ip.is_loopback() { Ok(()) } else { Err(ListenError::NotLoopback(ip)) }
}

fn take_handed_over(sockets: &mut listenfd::ListenFd, index: usize) -> Result<Listener, ListenError> {
    let wrap = |source| io_error("LISTEN_FDS", source);
    if let Ok(Some(listener)) = sockets.take_unix_listener(index) {
        listener.set_nonblocking(true).map_err(wrap)?;
        return Ok(Listener { kind: Kind::Unix(UnixListener::from_std(listener).map_err(wrap)?, None) });
    }
    let Ok(Some(listener)) = sockets.take_tcp_listener(index) else {
        return Err(ListenError::HandedOver(index));
    };
    refuse_unless_loopback(listener.local_addr().map_err(wrap)?)?;
    listener.set_nonblocking(true).map_err(wrap)?;
    Ok(Listener { kind: Kind::Tcp(TcpListener::from_std(listener).map_err(wrap)?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tcp_beyond_the_loopback_interface_is_refused() {
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:10809", "[::ffff:192.0.2.1]:1"] {
            let refused = Listener::tcp(address.parse().unwrap()).await;
            assert!(matches!(refused, Err(ListenError::NotLoopback(_))), "{address}");
        }
        assert!(Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap().tcp_address().is_some());
    }
}
