//! Both sides of a control socket in one process, in paused time: what a deadline is for takes no time here.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use keymgmt::secret::Dek;
use proptest::prelude::*;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

use super::client::{Control, ControlError, socket_path};
use super::gate::tests::{dek, fill_of, park, put, running, soon, unlock};
use super::gate::{Gate, GateState};
use super::protocol::{
    Answer, Ask, Code, Done, LINE_BYTES_MAX, Refusal, Request, State, read_line, write_line,
};
use super::server::ControlSocket;
use crate::export::ExportError;
use crate::format::header::Header;
use crate::store::memory::MemoryStore;

const STATUS: &[u8] = b"{\"sealbd_control\":1,\"ask\":\"status\"}\n";
const RESUME: &[u8] = b"{\"sealbd_control\":1,\"ask\":\"resume\"}\n";
/// As many connections as the server has places for.
const PLACES: usize = 8;

/// A volume with a control socket.
struct Desk {
    dir: tempfile::TempDir,
    store: Arc<MemoryStore>,
    gate: Arc<Gate>,
    volume: [u8; 16],
    _socket: ControlSocket,
}

impl Desk {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, gate) = running().await;
        let volume = unlock(&*store).await.header.volume;
        let socket = ControlSocket::listen(dir.path(), volume, "vol", gate.clone(), 64 << 20).unwrap();
        Self { dir, store, gate, volume, _socket: socket }
    }

    async fn control(&self) -> Control {
        Control::connect(self.dir.path(), self.volume).await.unwrap().expect("it is served")
    }

    /// A connection of somebody who need not keep to the protocol.
    async fn raw(&self) -> BufReader<UnixStream> {
        BufReader::new(UnixStream::connect(socket_path(self.dir.path(), self.volume)).await.unwrap())
    }

    async fn state(&self) -> State {
        self.control().await.status().await.unwrap().state
    }

    async fn dek(&self) -> Dek {
        dek(&*self.store).await
    }
}

fn refusal<T: std::fmt::Debug>(result: Result<T, ControlError>) -> Refusal {
    match result {
        Err(ControlError::Refused(refusal)) => refusal,
        other => panic!("not a refusal: {other:?}"),
    }
}

/// The next line, and then the end.
async fn last_line(stream: &mut BufReader<UnixStream>) -> String {
    let mut bytes = Vec::new();
    // A peer that closes with bytes unread resets the connection behind its last answer.
    let _ = stream.read_to_end(&mut bytes).await;
    String::from_utf8(bytes).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_command_may_take_its_time_between_two_requests() {
    let desk = Desk::new().await;
    let mut control = desk.control().await;
    control.status().await.unwrap();
    // Somebody looks for a passphrase.
    sleep(Duration::from_secs(600)).await;
    assert!(!control.header().await.unwrap().is_empty());
    control.suspend().await.unwrap();
    sleep(Duration::from_secs(600)).await;
    assert_eq!(control.resume(&desk.dek().await).await.unwrap(), State::Running);
}

#[tokio::test(start_paused = true)]
async fn whoever_takes_no_answers_gives_its_place_up() {
    let desk = Desk::new().await;
    let mut greedy = Vec::new();
    for _ in 0..PLACES {
        let mut stream = desk.raw().await;
        // More than a socket's buffer holds of answers.
        let asks = b"{\"sealbd_control\":1,\"ask\":\"header\"}\n".repeat(100);
        stream.write_all(&asks).await.unwrap();
        greedy.push(stream);
    }
    let begun = Instant::now();
    assert_eq!(desk.state().await, State::Running);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn silent_connections_give_their_places_up() {
    let desk = Desk::new().await;
    let mut silent = Vec::new();
    for _ in 0..10 * PLACES {
        silent.push(desk.raw().await);
    }
    for stream in &mut silent {
        assert_eq!(last_line(stream).await, "");
    }
    assert_eq!(desk.state().await, State::Running);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_comes_byte_by_byte_is_cut_off() {
    let desk = Desk::new().await;
    let stream = desk.raw().await.into_inner();
    let (mut input, mut output) = stream.into_split();
    let begun = Instant::now();
    let drip = tokio::spawn(async move {
        for byte in STATUS {
            sleep(Duration::from_secs(1)).await;
            if output.write_all(&[*byte]).await.is_err() {
                return;
            }
        }
    });
    let mut answer = Vec::new();
    let _ = input.read_to_end(&mut answer).await;
    assert_eq!(answer, b"");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    drip.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_dies_half_way_through_resuming_leaves_it_suspended() {
    let desk = Desk::new().await;
    put(&desk.gate, 0, 7).await.unwrap();
    desk.control().await.suspend().await.unwrap();
    let gate = desk.gate.clone();
    let read = park(&desk.gate, 1, async move { fill_of(&gate, 0).await }).await;
    for (sent, closes) in [(0, true), (1, true), (31, true), (0, false), (31, false)] {
        let mut stream = desk.raw().await;
        stream.write_all(RESUME).await.unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        assert_eq!(line, "{\"ok\":\"send-key\"}\n");
        stream.write_all(&desk.dek().await.0.expose()[..sent]).await.unwrap();
        if closes {
            drop(stream);
        } else {
            assert_eq!(last_line(&mut stream).await, "", "cut off without an answer");
        }
        assert_eq!(desk.state().await, State::Suspended, "{sent} bytes");
    }
    assert_eq!(desk.control().await.resume(&desk.dek().await).await.unwrap(), State::Running);
    assert_eq!(soon("the read", read).await.unwrap().unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_comes_before_it_was_asked_for_is_not_taken() {
    let desk = Desk::new().await;
    desk.control().await.suspend().await.unwrap();
    let mut stream = desk.raw().await;
    let both = [RESUME, desk.dek().await.0.expose()].concat();
    stream.write_all(&both).await.unwrap();
    last_line(&mut stream).await;
    assert_eq!(desk.state().await, State::Suspended);
}

#[tokio::test(start_paused = true)]
async fn a_wrong_key_is_refused_and_the_right_one_taken() {
    let desk = Desk::new().await;
    let mut control = desk.control().await;
    assert_eq!(control.suspend().await.unwrap(), State::Suspended);
    assert_eq!(control.suspend().await.unwrap(), State::Suspended, "again");
    let told = refusal(control.resume(&Dek::take(&mut [1; 32])).await);
    assert_eq!((told.code, told.message.as_str()), (Code::Refused, "the data key is not this volume's"));
    assert_eq!(refusal(control.header().await).code, Code::State);
    assert_eq!(control.resume(&desk.dek().await).await.unwrap(), State::Running);
    assert_eq!(control.resume(&desk.dek().await).await.unwrap(), State::Running, "again");
}

#[tokio::test(start_paused = true)]
async fn a_stopped_volume_says_so_to_whatever_is_asked() {
    let desk = Desk::new().await;
    let mut control = desk.control().await;
    assert_eq!(control.stop().await.unwrap(), State::Stopped);
    assert_eq!(control.stop().await.unwrap(), State::Stopped);
    assert_eq!(control.status().await.unwrap().state, State::Stopped);
    for refused in [
        refusal(control.header().await),
        refusal(control.suspend().await),
        refusal(control.resume(&desk.dek().await).await),
    ] {
        assert_eq!(refused.code, Code::Stopped, "{refused}");
    }
    assert_eq!(fill_of(&desk.gate, 0).await, Err(ExportError::ShuttingDown));
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_still_in_use_are_not_told_as_wiped() {
    let desk = Desk::new().await;
    let held = desk.gate.volume().unwrap().clone();
    let told = refusal(desk.control().await.suspend().await);
    assert_eq!(told.code, Code::Failed);
    assert!(told.message.contains("keys are still in memory"), "{told}");
    drop(held);
    assert_eq!(desk.control().await.suspend().await.unwrap(), State::Suspended);
}

/// The next generation of the header.
async fn next_header(desk: &Desk) -> Vec<u8> {
    let unlocked = unlock(&*desk.store).await;
    let header = Header { generation: unlocked.header.generation + 1, ..unlocked.header };
    header.encode(&unlocked.keys)
}

#[tokio::test(start_paused = true)]
async fn of_two_headers_at_once_one_is_taken_and_the_other_hears_that_somebody_was_first() {
    let desk = Desk::new().await;
    let (one, bytes) = (desk.control().await, next_header(&desk).await);
    let (mut one, mut two) = (one, desk.control().await);
    let (one, two) = tokio::join!(one.replace_header(&bytes), two.replace_header(&bytes));
    let (taken, late) = if one.is_ok() { (one, two) } else { (two, one) };
    taken.unwrap();
    let told = refusal(late);
    assert_eq!(told.code, Code::Busy, "{told}");
    assert_eq!(desk.control().await.header().await.unwrap(), bytes);
}

#[tokio::test(start_paused = true)]
async fn an_older_header_and_one_that_skips_a_generation_are_refused() {
    let desk = Desk::new().await;
    let mut control = desk.control().await;
    let old = control.header().await.unwrap();
    let new = next_header(&desk).await;
    control.replace_header(&new).await.unwrap();
    assert_eq!(refusal(control.replace_header(&old).await).code, Code::Busy, "it may have been slow");
    let unlocked = unlock(&*desk.store).await;
    let header = Header { generation: 9, ..unlocked.header };
    let told = refusal(control.replace_header(&header.encode(&unlocked.keys)).await);
    assert_eq!(told.code, Code::Refused, "{told}");
    let mut altered = next_header(&desk).await;
    altered[100] ^= 1;
    assert_eq!(refusal(control.replace_header(&altered).await).code, Code::Refused);
    assert_eq!(refusal(control.replace_header(b"").await).code, Code::Refused);
    assert_eq!(control.header().await.unwrap(), new);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_the_protocol_is_told_and_ends_the_connection() {
    let desk = Desk::new().await;
    let endless = vec![b'x'; usize::try_from(LINE_BYTES_MAX).unwrap()];
    let deep = [b"[".repeat(100_000), b"\n".to_vec()].concat();
    let long = [b"{\"sealbd_control\":1,\"ask\":\"", &endless[..], b"\"}\n"].concat();
    let malformed = r#"{"error":{"code":"malformed","message":"not a request of this protocol"}}"#;
    for sent in [
        b"\n" as &[u8],
        b"status\n",
        b"GET / HTTP/1.1\n",
        b"{}\n",
        b"\xff\xfe\n",
        b"{\"sealbd_control\":1,\"ask\":\"halt\"}\n",
        b"{\"sealbd_control\":1,\"ask\":\"status\",\"more\":1}\n",
        b"{\"sealbd_control\":-1,\"ask\":\"status\"}\n",
        b"{\"sealbd_control\":1,\"ask\":{\"replace-header\":{}}}\n",
        &endless,
        &deep,
        &long,
    ] {
        let mut stream = desk.raw().await;
        let _ = stream.write_all(sent).await;
        let answer = last_line(&mut stream).await;
        assert_eq!(answer.trim_end(), malformed, "{}", String::from_utf8_lossy(&sent[..sent.len().min(60)]));
    }
    let mut stream = desk.raw().await;
    stream.write_all(b"{\"sealbd_control\":2,\"ask\":\"status\"}\n").await.unwrap();
    let Some(Answer::Error(told)) = read_line(&mut stream).await.unwrap() else { panic!("not refused") };
    assert_eq!(told.message, "this is version 1 of the protocol");
    // A request that breaks off is nobody's.
    let mut stream = desk.raw().await;
    stream.write_all(&STATUS[..20]).await.unwrap();
    drop(stream);
    assert_eq!(desk.state().await, State::Running);
}

#[tokio::test(start_paused = true)]
async fn a_control_directory_whose_path_is_too_long_for_a_socket_serves_nobody() {
    let long = Path::new("/nowhere").join("x".repeat(100));
    assert!(Control::connect(&long, [1; 16]).await.unwrap().is_none());
}

/// Who asks for what is chosen at random; nobody hangs, and what holds in the end is one of the states.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suspend_resume_and_stop_at_once_all_come_to_an_end() {
    for round in 0..40 {
        let desk = Arc::new(Desk::new().await);
        put(&desk.gate, 0, 3).await.unwrap();
        let mut tasks = Vec::new();
        for asker in 0..6 {
            let desk = desk.clone();
            tasks.push(tokio::spawn(async move {
                let mut control = desk.control().await;
                for _ in 0..3 {
                    let answer = match (asker + round) % 3 {
                        0 => control.suspend().await,
                        1 => control.resume(&desk.dek().await).await,
                        _ if asker < 3 => control.stop().await,
                        _ => control.status().await.map(|status| status.state),
                    };
                    if let Err(error) = answer {
                        assert_eq!(refusal::<()>(Err(error)).code, Code::Stopped, "asker {asker}");
                    }
                }
            }));
        }
        let reader = desk.clone();
        let read = tokio::spawn(async move { fill_of(&reader.gate, 0).await });
        for task in tasks {
            soon("an asker", task).await.unwrap();
        }
        assert_eq!(desk.gate.state(), GateState::Stopped);
        let answer = soon("a read", read).await.unwrap();
        assert!(matches!(answer, Ok(3) | Err(ExportError::ShuttingDown)), "{answer:?}");
    }
}

/// Polls what never waits.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(done) => done,
        std::task::Poll::Pending => panic!("reading from memory waits"),
    }
}

fn asks() -> impl Strategy<Value = Ask> {
    prop_oneof![
        Just(Ask::Status),
        Just(Ask::Header),
        Just(Ask::Suspend),
        Just(Ask::Resume),
        Just(Ask::Stop),
        proptest::collection::vec(any::<u8>(), 0..200)
            .prop_map(|bytes| Ask::ReplaceHeader { header: BASE64.encode(bytes) }),
    ]
}

proptest! {
    #[test]
    fn a_request_is_read_as_it_was_written(ask in asks(), version: u32) {
        let mut line = Vec::new();
        now(write_line(&mut line, &Request { sealbd_control: version, ask })).unwrap();
        let mut reader = line.as_slice();
        let read: Request = now(read_line(&mut reader)).unwrap().unwrap();
        let mut again = Vec::new();
        now(write_line(&mut again, &read)).unwrap();
        prop_assert_eq!(&line, &again);
        prop_assert!(reader.is_empty());
    }

    #[test]
    fn no_line_panics_and_nothing_is_read_beyond_it(
        ask in asks(), flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        rest in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut line = serde_json::to_vec(&Request { sealbd_control: 1, ask }).unwrap();
        for (at, byte) in flips {
            let at = at.index(line.len());
            line[at] = byte;
        }
        let end = line.iter().position(|byte| *byte == b'\n').unwrap_or(line.len());
        line.truncate(end);
        line.push(b'\n');
        let both = [line, rest.clone()].concat();
        let mut reader = both.as_slice();
        let _: Result<Option<Request>, _> = now(read_line(&mut reader));
        prop_assert_eq!(reader, rest.as_slice());
    }

    #[test]
    fn whatever_a_server_sends_is_an_answer_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut reader = bytes.as_slice();
        if let Ok(Some(answer)) = now(read_line::<Answer>(&mut reader)) {
            prop_assert!(matches!(answer, Answer::Ok(Done::SendKey | Done::State(_)) | Answer::Error(_)));
        }
    }
}
