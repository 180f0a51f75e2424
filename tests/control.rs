//! Claims about the control socket of a real `sealbd serve`: who is listened to, what it does to a disk in use, what
//! is left in memory of a suspended volume, and that nothing said on it disturbs the clients of the disk.
#![allow(clippy::print_stderr, reason = "a skipped test says why")]

mod common;
#[path = "cli/desk.rs"]
#[allow(dead_code, reason = "the commands of `tests/cli.rs` need more of it")]
mod desk;

#[path = "control/dying.rs"]
mod dying;
#[path = "control/load.rs"]
mod load;
#[path = "control/memory.rs"]
mod memory;
#[path = "control/peers.rs"]
mod peers;
#[path = "control/verbs.rs"]
mod verbs;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use keymgmt::keyfile::Keyfile;
use keymgmt::manager::KeyManager;
use keymgmt::secret::Dek;
use sealbd::cipher::Engine;
use sealbd::control::client::{Control, ControlError, socket_path};
use sealbd::control::protocol::State;
use sealbd::format::header::Header;
use sealbd::store::Access;
use sealbd::store::file::FileStore;
use sealbd::volume::unlock::{Unlocked, read_header};

use common::programs::wait_for;
use desk::{Desk, Server};

/// Under what name the volume is served.
const EXPORT: &str = "vol";
/// Nothing on a control socket takes longer in these tests.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// `sealbd serve` of the desk's volume, with a control socket that answers: clients of the disk may get in before.
fn serve(desk: &Desk) -> Server {
    serve_and_control(desk, &[])
}

fn serve_and_control(desk: &Desk, more: &[&str]) -> Server {
    let server = serve_with(desk, more);
    let path = socket(desk);
    wait_for("the control socket", ANSWER_MAX, || UnixStream::connect(&path).is_ok().then_some(()));
    server
}

fn serve_with(desk: &Desk, more: &[&str]) -> Server {
    Server::start(desk, &[&["vol", "--slot", "keyfile:key", "--name", EXPORT][..], more].concat())
}

/// The volume's own key and header, as the backend has them now.
fn unlocked(desk: &Desk) -> Unlocked {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let store = FileStore::open(&desk.path("vol"), Access::Inspect).expect("the volume");
        let key: [Box<dyn KeyManager>; 1] = [Box::new(Keyfile::open(&desk.path("key")).expect("the key"))];
        let copies = read_header(&store).await.expect("a header");
        copies.unlock(Engine::default(), &key).await.expect("the key fits")
    })
}

fn header(desk: &Desk) -> Header {
    unlocked(desk).header
}

/// Where the socket is.
fn socket(desk: &Desk) -> PathBuf {
    socket_path(&desk.path("control"), header(desk).volume)
}

/// The library's own side of the socket, and the key for it.
struct Post {
    runtime: tokio::runtime::Runtime,
    control: Control,
    dek: Dek,
}

impl Post {
    fn open(desk: &Desk) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let Unlocked { header, dek, .. } = unlocked(desk);
        let connected = runtime.block_on(Control::connect(&desk.path("control"), header.volume));
        let control = connected.expect("a socket").expect("it is served");
        Self { runtime, control, dek }
    }

    fn suspend(&mut self) {
        let state = self.runtime.block_on(self.control.suspend()).expect("suspended");
        assert_eq!(state, State::Suspended);
    }

    fn resume(&mut self) {
        let state = self.runtime.block_on(self.control.resume(&self.dek)).expect("resumed");
        assert_eq!(state, State::Running);
    }

    /// The volume's own key once more.
    fn dek_again(&self) -> Dek {
        let mut bytes = *self.dek.0.expose();
        Dek::take(&mut bytes)
    }

    fn resume_with(&mut self, dek: &Dek) -> Result<State, ControlError> {
        self.runtime.block_on(self.control.resume(dek))
    }

    fn state(&mut self) -> State {
        self.runtime.block_on(self.control.status()).expect("a status").state
    }

    /// Requests that wait.
    fn parked(&mut self) -> u64 {
        self.runtime.block_on(self.control.status()).expect("a status").parked
    }
}

/// A connection of somebody who need not keep to the protocol.
fn raw(desk: &Desk) -> UnixStream {
    let stream = UnixStream::connect(socket(desk)).expect("it listens");
    stream.set_read_timeout(Some(ANSWER_MAX)).expect("our own socket");
    stream
}

/// Says a line; the answer without its line end.
fn say(stream: &mut UnixStream, line: &str) -> String {
    stream.write_all(line.as_bytes()).and_then(|()| stream.write_all(b"\n")).expect("it takes a line");
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).expect("an answer");
    answer.trim_end().to_owned()
}

/// A request without parameters.
fn ask(what: &str) -> String {
    format!(r#"{{"sealbd_control":1,"ask":"{what}"}}"#)
}
