//! Claims about a real `sealbd serve` among clients that misbehave: what they cost is bounded, well-behaved clients
//! notice nothing but a busy machine, and the server serves on afterwards.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stderr, reason = "figures are printed")]

mod common;
#[path = "common/nbd_client.rs"]
#[allow(dead_code, reason = "shared with other tests, each uses a part")]
mod nbd_client;

#[path = "abuse/crowd.rs"]
mod crowd;
#[path = "abuse/handshakes.rs"]
mod handshakes;
#[path = "abuse/payloads.rs"]
mod payloads;
#[path = "abuse/soak.rs"]
mod soak;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::programs::report;
use common::served::Served;

/// Size of the volumes.
const VOLUME_LEN: u64 = 256 << 20;
/// Longest wait of a well-behaved client for one write or read. Two busy cores and a debug build: a request that
/// waits for a place, a deadline or a store that somebody else holds up would take ten seconds.
const LATENCY_MAX: Duration = Duration::from_secs(5);
/// Connections that a server has at a time.
const CONNECTIONS_MAX: usize = 128;

/// What a server has of the machine.
#[derive(Clone, Copy, Debug)]
struct Footprint {
    resident_kib: u64,
    /// The most it ever was.
    peak_kib: u64,
    descriptors: usize,
}

fn footprint(served: &Served) -> Footprint {
    let process = format!("/proc/{}", served.pid().as_raw_nonzero());
    let status = std::fs::read_to_string(format!("{process}/status")).expect("our own child");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field of every process");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    };
    let descriptors = std::fs::read_dir(format!("{process}/fd")).expect("our own child").count();
    Footprint { resident_kib: field("VmRSS:"), peak_kib: field("VmHWM:"), descriptors }
}

/// A client that does what clients do while `abuse` goes on, and measures how long it waits. Returns what `abuse`
/// returns.
fn beside_a_good_client<T>(served: &Served, abuse: impl FnOnce() -> T) -> T {
    let mut client = served.connect();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let good = scope.spawn(|| {
            let (mut number, mut longest) = (0u64, Duration::ZERO);
            while !over.load(Ordering::Relaxed) || number < 10 {
                let (at, byte) = (4096 * (number % 1000), u8::try_from(number % 251).expect("below 251"));
                let begun = Instant::now();
                client.write(at, &[byte; 4096], u16::from(number.is_multiple_of(50))).expect("written");
                assert_eq!(client.read(at, 4096).expect("read"), [byte; 4096]);
                longest = longest.max(begun.elapsed());
                number += 1;
            }
            assert!(longest < LATENCY_MAX, "a well-behaved client waited {longest:?}");
            report(&format!("beside it: {number} writes and reads, the longest pair took {longest:?}"));
        });
        let _ends = OnDrop(&over);
        let result = abuse();
        drop(_ends);
        good.join().expect("the well-behaved client is served");
        result
    })
}

/// Says that it is over, also when a claim fails on the way.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The server is as it was: it takes a new client, and it ends cleanly without having panicked.
fn serves_on(served: &mut Served) {
    let mut client = served.connect();
    client.write(0, &[9; 8192], 1).expect("written");
    assert_eq!(client.read(4096, 4096).expect("read"), [9; 4096]);
    client.disconnect().expect("a clean end");
    assert!(served.stop().success(), "{}", served.log_text());
    assert!(!served.log_text().contains("panicked"), "{}", served.log_text());
}
