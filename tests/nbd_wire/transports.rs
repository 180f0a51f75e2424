//! The same server over TCP, standard input and output, and sockets handed over; and an
//! independent client.

use std::io::{Read, Seek, SeekFrom, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sealbd::export::memory::MemoryExport;
use sealbd::server::{Limits, Listener, Server};
use sealbd::wire::Errno;
use sealbd::wire::option::{OPTION_REPLY_LEN, OptionKind, OptionReply, OptionRequest};

use crate::nbd_client::{PATIENCE, RawClient, Style};
use crate::{SIZE, pattern, staged};

/// Says to this test binary that it is the child of `sockets_handed_over_…`.
const CHILD: &str = "SEALBD_TEST_HANDED_OVER";

fn disk() -> Server<MemoryExport> {
    Server::new(vec![("disk".into(), Arc::new(MemoryExport::new(SIZE)))], Limits::default()).unwrap()
}

#[test]
fn the_nbd_crates_client_writes_reads_and_is_refused_beyond_the_end() {
    let (server, export) = staged();
    export.open();
    let mut stream = UnixStream::connect(server.path()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let export = nbd::client::handshake(&mut stream, b"disk").unwrap();
    assert_eq!(
        (export.size, export.readonly, export.send_flush, export.send_trim),
        (SIZE, false, true, true)
    );
    let mut client = nbd::client::NbdClient::new(&mut stream, &export);
    let data = pattern(100_000, 6);
    client.seek(SeekFrom::Start(1234)).unwrap();
    client.write_all(&data).unwrap();
    client.seek(SeekFrom::Start(1234)).unwrap();
    let mut back = vec![0; data.len()];
    client.read_exact(&mut back).unwrap();
    assert!(back == data);
    client.seek(SeekFrom::Start(SIZE - 1)).unwrap();
    assert!(client.write_all(&[1, 2]).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tcp_no_option_waits_for_an_acknowledgement() {
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.tcp_address().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let client = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut hello = [0; 18];
        stream.read_exact(&mut hello).unwrap();
        stream.write_all(&3u32.to_be_bytes()).unwrap();
        let begun = Instant::now();
        let mut option = Vec::new();
        OptionRequest::encode(OptionKind::LIST, &[], &mut option);
        for _ in 0..60 {
            stream.write_all(&option).unwrap();
            for _ in 0..2 {
                let mut header = [0; OPTION_REPLY_LEN];
                stream.read_exact(&mut header).unwrap();
                let mut payload = vec![0; OptionReply::decode(&header).unwrap().len as usize];
                stream.read_exact(&mut payload).unwrap();
            }
        }
        drop(stop);
        begun.elapsed()
    });
    disk().serve(vec![listener], async { drop(stopped.await) }).await;
    // 44 ms each is what Nagle's algorithm and delayed acknowledgements make of it.
    assert!(client.await.unwrap() < Duration::from_millis(60 * 20));
}

/// Serves one connection on descriptors until it ends.
fn serve_connection(input: OwnedFd, output: OwnedFd) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = Listener::connection(input, output).unwrap();
            disk().serve(vec![listener], std::future::pending()).await;
        });
    })
}

#[test]
fn one_connection_on_a_socket_as_standard_input_and_output_is_served_and_ends_the_server() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let output = theirs.try_clone().unwrap();
    let server = serve_connection(theirs.into(), output.into());
    let mut client = RawClient::over(ours);
    client.hello();
    client.client_flags(3);
    client.go("", Style::Extended);
    assert_eq!(client.write(0, &pattern(300_000, 1)), Errno::OK);
    assert!(client.read(0, 300_000).unwrap() == pattern(300_000, 1));
    client.disconnect();
    client.assert_closed();
    server.join().unwrap();
}

#[test]
fn one_connection_on_two_pipes_is_served_and_ends_the_server() {
    let (server_reads, mut to_server) = std::io::pipe().unwrap();
    let (mut from_server, server_writes) = std::io::pipe().unwrap();
    let server = serve_connection(server_reads.into(), server_writes.into());
    let mut hello = [0; 18];
    from_server.read_exact(&mut hello).unwrap();
    let mut bytes = 3u32.to_be_bytes().to_vec();
    OptionRequest::encode(OptionKind::EXPORT_NAME, b"disk", &mut bytes);
    to_server.write_all(&bytes).unwrap();
    let mut reply = [0; 10];
    from_server.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..8], SIZE.to_be_bytes());
    drop(to_server);
    assert_eq!(from_server.read(&mut [0]).unwrap(), 0);
    server.join().unwrap();
}

#[test]
fn files_are_no_connection() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let file = || OwnedFd::from(tempfile::tempfile().unwrap());
        assert!(Listener::connection(file(), file()).is_err());
    });
}

#[test]
fn sockets_handed_over_as_systemd_does_are_served() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut child = Command::new("sh")
        .arg("-c")
        .arg("exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" --exact transports::serves_what_was_handed_over")
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, "1")
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut client = RawClient::connect(&path);
    client.hello();
    client.client_flags(3);
    client.go("disk", Style::Structured);
    assert_eq!(client.write(5, b"handed over"), Errno::OK);
    assert_eq!(client.read(5, 11), Ok(b"handed over".to_vec()));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The child of the test above; on its own it has nothing to do.
#[test]
fn serves_what_was_handed_over() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listeners = Listener::handed_over().unwrap();
        assert_eq!(listeners.len(), 1);
        disk().serve(listeners, std::future::pending()).await;
    });
}
