//! The byte stream under a connection, as little of it as a session needs: vectored reads and
//! writes that can be polled, so that payloads are received in place and many replies go out at once.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::net::{TcpStream, UnixStream};

/// A stream in both directions.
pub trait Transport: Send + Unpin + 'static {
    /// Receives into the buffers in order; 0 bytes mean that the client will send no more.
    ///
    /// # Errors
    /// The operating system's.
    fn poll_receive(&mut self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>>;

    /// Sends some of the slices' bytes.
    ///
    /// # Errors
    /// The operating system's.
    fn poll_send(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>>;

    /// Tells the client that nothing more will be sent.
    ///
    /// # Errors
    /// The operating system's.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

macro_rules! socket_transport {
    ($socket:ty) => {
        impl Transport for $socket {
            fn poll_receive(
                &mut self,
                cx: &mut Context<'_>,
                bufs: &mut [IoSliceMut<'_>],
            ) -> Poll<io::Result<usize>> {
                if let [buf] = bufs {
                    return poll_receive_one(self, cx, buf);
                }
                loop {
                    ready!(self.poll_read_ready(cx))?;
                    match self.try_read_vectored(bufs) {
                        Err(error) if is_transient(&error) => {}
                        result => return Poll::Ready(result),
                    }
                }
            }

            fn poll_send(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
                Pin::new(self).poll_write_vectored(cx, slices)
            }

            fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(self).poll_shutdown(cx)
            }
        }
    };
}

socket_transport!(TcpStream);
socket_transport!(UnixStream);

/// Two pipes, one in each direction: standard input and output.
pub struct Pipes {
    /// From the client.
    pub receiver: pipe::Receiver,
    /// To the client; gone once finished.
    pub sender: Option<pipe::Sender>,
}

impl Transport for Pipes {
    fn poll_receive(&mut self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>> {
        if let [buf] = bufs {
            return poll_receive_one(&mut self.receiver, cx, buf);
        }
        loop {
            ready!(self.receiver.poll_read_ready(cx))?;
            match self.receiver.try_read_vectored(bufs) {
                Err(error) if is_transient(&error) => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match &mut self.sender {
            Some(sender) => Pin::new(sender).poll_write_vectored(cx, slices),
            None => Poll::Ready(Err(ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sender = None;
        Poll::Ready(Ok(()))
    }
}

/// Receives into one buffer. What does not fill it has emptied the socket: it is not asked again before it has more.
fn poll_receive_one(
    stream: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    buf: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut buf = ReadBuf::new(buf);
    ready!(Pin::new(stream).poll_read(cx, &mut buf))?;
    Poll::Ready(Ok(buf.filled().len()))
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
