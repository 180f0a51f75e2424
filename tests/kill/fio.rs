//! fio as a witness that is none of ours: four jobs write at random, verify what they wrote, and keep a log of every
//! answered request with its offset. From that, and from the log of what was sent, follows for every block what it
//! may hold after the server was killed: an answered write is there, an unanswered one may be.
//!
//! After a few deaths in a hundred a job of fio 3.33 does not notice that its connection is gone: it waits for
//! answers for ever, and the logs of all jobs are lost. What they wrote may then be old or new, and no older.

use std::collections::BTreeMap;
use std::ops::Range;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::common::client::{Client, Command as Request};
use super::common::programs::{poll, report, wait_for};
use super::common::served::Served;

/// Jobs, each with a connection of its own and a part of the volume where nobody else writes.
const JOBS: u64 = 4;
/// What fio writes at once.
const BLOCK: usize = 4096;
/// What it writes at once while it fills, and the round that this counts as.
const FILL_BLOCK: u64 = 1 << 20;
const FILL_ROUND: u32 = 1;
/// Requests that a job keeps in flight, and that the check does.
const DEPTH: usize = 16;
/// How long fio may take to have its connections.
const START_SECONDS_MAX: u64 = 60;
/// After the server's death a job ends by itself, having written its logs; one that has not by then never will.
const END_SECONDS_MAX: u64 = 4;
/// Longer than any round.
const RUNTIME_SECONDS: u64 = 3600;

/// What fio has written, block by block.
pub(super) struct Witness {
    region: Range<u64>,
    /// Number of the round that each block was written in; 0: never.
    known: Vec<u32>,
    running: Option<Child>,
    answered: u64,
}

impl Witness {
    /// One for the bytes in `region` of a volume that reads as zeros there.
    pub(super) fn new(region: Range<u64>) -> Self {
        let part = (region.end - region.start) / JOBS / FILL_BLOCK * FILL_BLOCK;
        assert!(part > 0 && region.start.is_multiple_of(FILL_BLOCK), "room for fio");
        let blocks = usize::try_from(part * JOBS).expect("fits in memory") / BLOCK;
        let region = region.start..region.start + part * JOBS;
        Self { region, known: vec![0; blocks], running: None, answered: 0 }
    }

    /// Writes answered so far.
    pub(super) fn answered(&self) -> u64 {
        self.answered
    }

    /// Writes every block once, in sequence, and waits for the end.
    pub(super) fn fill(&mut self, served: &Served) {
        let mut fill = self.command(served, FILL_ROUND);
        fill.args(["--rw=write", &format!("--bs={FILL_BLOCK}"), "--do_verify=0"]);
        let status = fill.status().expect("fio runs");
        assert!(status.success(), "filling ended with {status}: {}", said(served, FILL_ROUND));
        self.known.fill(FILL_ROUND);
    }

    /// Starts the load of a round, from 2 on, and waits until all jobs have their connection.
    pub(super) fn start(&mut self, served: &Served, round: u32) {
        for name in logs(served, "slat").chain(logs(served, "clat")) {
            // Those of the round before.
            let _ = std::fs::remove_file(name);
        }
        let mut load = self.command(served, round);
        load.args(["--rw=randwrite", "--bs=4k", "--verify_backlog=512", "--verify_fatal=1", "--time_based"]);
        load.args([
            format!("--runtime={RUNTIME_SECONDS}"),
            format!("--write_lat_log={}", path(served, "fio")),
        ]);
        load.args(["--log_offset=1", "--per_job_logs=1"]);
        let fio = self.running.insert(load.spawn().expect("fio runs"));
        wait_for("the connections of fio", Duration::from_secs(START_SECONDS_MAX), || {
            let ended = fio.try_wait().expect("our child");
            assert!(ended.is_none(), "fio ended at once: {}", said(served, round));
            let connected = said(served, round).matches("connected to NBD server").count() as u64;
            (connected == JOBS).then_some(())
        });
    }

    /// A fio that writes blocks of `round`.
    fn command(&self, served: &Served, round: u32) -> Command {
        let part = (self.region.end - self.region.start) / JOBS;
        let output = std::fs::File::create(path(served, &format!("fio-{round}.out"))).expect("a file");
        let mut fio = Command::new("fio");
        fio.current_dir(served.dir())
            // Threads: processes of their own would outlive the one that is killed.
            .args(["--name=load", "--ioengine=nbd", "--group_reporting", "--thread"])
            .arg(format!("--uri={}", served.uri()))
            // Else every round would write to the same blocks.
            .arg(format!("--randseed={round}"))
            .arg(format!("--numjobs={JOBS}"))
            .arg(format!("--iodepth={DEPTH}"))
            .arg(format!("--offset={}", self.region.start))
            .arg(format!("--offset_increment={part}"))
            .arg(format!("--size={part}"))
            .args([
                "--verify=pattern",
                &format!("--verify_pattern=0x{round:08x}%o"),
                "--verify_interval=4096",
            ])
            .stdin(Stdio::null())
            .stderr(output.try_clone().expect("a second descriptor"))
            .stdout(output);
        fio
    }

    /// The server is dead: what is known of every block now, given what was answered.
    pub(super) fn end(&mut self, served: &Served, round: u32) -> Touched {
        let mut fio = self.running.take().expect("started");
        let ends = || fio.try_wait().expect("our child").is_some();
        if !poll(Duration::from_secs(END_SECONDS_MAX), ends) {
            report(&format!("round {round}: a job of fio does not end"));
            fio.kill().expect("our child");
        }
        let ended = fio.wait().expect("our child");
        let output = said(served, round);
        let wrong = ["verify: bad", "verify failed", "got pattern", "EILSEQ", "err=84"];
        assert!(!wrong.iter().any(|sign| output.contains(sign)), "fio read what it did not write: {output}");
        assert!(!ended.success(), "fio ended before the server did: {output}");
        let mut touched = Touched::default();
        let mut answered = 0;
        let parts = (0..self.known.len()).step_by(self.known.len() / usize::try_from(JOBS).expect("small"));
        for (part, (sent, done)) in parts.zip(logs(served, "slat").zip(logs(served, "clat"))) {
            if !std::fs::exists(&done).expect("our own directory") {
                let end = part + self.known.len() / usize::try_from(JOBS).expect("small");
                touched.blocks.extend((part..end).map(|block| (block, Held::Either)));
                continue;
            }
            self.writes_in(&sent, |block| {
                touched.blocks.insert(block, Held::Either);
            });
            self.writes_in(&done, |block| {
                touched.blocks.insert(block, Held::New);
                answered += 1;
            });
        }
        self.answered += answered;
        touched
    }

    /// The blocks of the writes in a log of fio: time, latency, direction, length, offset, priority.
    fn writes_in(&self, file: &str, mut each: impl FnMut(usize)) {
        let text = std::fs::read_to_string(file).expect("a log of fio");
        for line in text.lines() {
            let fields: Vec<u64> =
                line.split(',').map(|field| field.trim().parse().expect("numbers")).collect();
            let [_, _, direction, len, offset, ..] = fields[..] else { panic!("{file}: {line}") };
            if direction != 1 {
                continue;
            }
            assert!(len == BLOCK as u64 && self.region.contains(&offset), "{file}: {line}");
            each(usize::try_from((offset - self.region.start) / len).expect("fits in memory"));
        }
    }

    /// Every touched block holds what it may; what that is, is known from now on.
    pub(super) fn check(&mut self, served: &Served, touched: &Touched, round: u32) {
        let blocks: Vec<(usize, Held)> = touched.blocks.iter().map(|(block, held)| (*block, *held)).collect();
        let found = self.read(served, blocks.iter().map(|(block, _)| *block).collect());
        for ((block, held), found) in blocks.into_iter().zip(found) {
            let known = self.known[block];
            let allowed = found == Some(round) || held == Held::Either && is_kept(found, known, round);
            let at = self.region.start + (block * BLOCK) as u64;
            assert!(allowed, "round {round}: the block at {at}, {held:?}, is of {found:?}, was of {known}");
            self.known[block] = found.expect("allowed");
        }
    }

    /// Every block that was ever written holds what is known of it, after `rounds` of them.
    pub(super) fn check_all(&self, served: &Served, rounds: u32) {
        let started = Instant::now();
        let mut newer = 0;
        let written: Vec<usize> = (0..self.known.len()).filter(|&block| self.known[block] > 0).collect();
        let found = self.read(served, written.clone());
        for (block, found) in written.iter().zip(found) {
            let at = self.region.start + (block * BLOCK) as u64;
            let known = self.known[*block];
            assert!(
                is_kept(found, known, rounds),
                "in the end: the block at {at} is of {found:?}, was of {known}"
            );
            newer += u64::from(found != Some(known));
        }
        // A job that dies between sending a write and noting that it did.
        assert!(newer <= JOBS * u64::from(rounds), "{newer} blocks are newer than what fio sent");
        report(&format!(
            "{} blocks of fio are right, {newer} of an unanswered write that it did not note; read in {:.1?}",
            written.len(),
            started.elapsed()
        ));
    }

    /// The rounds that blocks are of; `None` for one that holds nothing of fio's.
    fn read(&self, served: &Served, blocks: Vec<usize>) -> Vec<Option<u32>> {
        let share = blocks.len().div_ceil(usize::try_from(JOBS).expect("small")).max(1);
        let start = self.region.start;
        std::thread::scope(|scope| {
            let readers: Vec<_> = blocks
                .chunks(share)
                .map(|part| {
                    let mut client = served.connect();
                    scope.spawn(move || read_part(&mut client, start, part))
                })
                .collect();
            readers.into_iter().flat_map(|reader| reader.join().expect("a reader that ends")).collect()
        })
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        if let Some(fio) = &mut self.running {
            let _ = fio.kill();
            let _ = fio.wait();
        }
    }
}

/// Whether what was found is nothing older than what is `known` to have been answered, and nothing of the future.
fn is_kept(found: Option<u32>, known: u32, round: u32) -> bool {
    found.is_some_and(|found| (known..=round).contains(&found))
}

/// What a block holds after a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Held {
    /// What was written: it was answered.
    New,
    /// That, or what it held before.
    Either,
}

/// The blocks that a round wrote to.
#[derive(Default)]
pub(super) struct Touched {
    blocks: BTreeMap<usize, Held>,
}

fn read_part(client: &mut Client, start: u64, blocks: &[usize]) -> Vec<Option<u32>> {
    let mut found = vec![None; blocks.len()];
    let mut in_flight: BTreeMap<u64, usize> = BTreeMap::new();
    let mut next = 0;
    let mut buf = vec![0; BLOCK];
    while next < blocks.len() || !in_flight.is_empty() {
        while next < blocks.len() && in_flight.len() < DEPTH {
            let len = u32::try_from(BLOCK).expect("small");
            let cookie = client.send(Request::Read, 0, start + (blocks[next] * BLOCK) as u64, len, &[]);
            in_flight.insert(cookie.expect("sent"), next);
            next += 1;
        }
        let reply = client.receive().expect("answered");
        assert_eq!(reply.error, 0, "every block can be read");
        client.receive_data(&mut buf).expect("data follows");
        let number = in_flight.remove(&reply.cookie).expect("a reply to a request of ours");
        found[number] = round_of(&buf, start + (blocks[number] * BLOCK) as u64);
    }
    found
}

/// The round that a block at `offset` was written in: the round and the offset of the write, again and again; zeros are
/// round 0.
fn round_of(block: &[u8], offset: u64) -> Option<u32> {
    let (head, period) = (&block[..12], 12);
    if block[period..] != block[..block.len() - period] {
        return None;
    }
    if head.iter().all(|byte| *byte == 0) {
        return Some(0);
    }
    let round = u32::from_be_bytes(head[..4].try_into().expect("four bytes"));
    if *head == pattern(round, offset) {
        return Some(round);
    }
    let filled = offset / FILL_BLOCK * FILL_BLOCK;
    let mut pattern = pattern(FILL_ROUND, filled);
    pattern.rotate_left(usize::try_from(offset - filled).expect("small") % period);
    (*head == pattern).then_some(FILL_ROUND)
}

/// What fio repeats in a write at `offset`; the offset in the order of the processor.
fn pattern(round: u32, offset: u64) -> [u8; 12] {
    let mut pattern = [0; 12];
    pattern[..4].copy_from_slice(&round.to_be_bytes());
    pattern[4..].copy_from_slice(&offset.to_ne_bytes());
    pattern
}

fn logs(served: &Served, kind: &str) -> impl Iterator<Item = String> {
    let base = path(served, "fio");
    let kind = kind.to_owned();
    (1..=JOBS).map(move |job| format!("{base}_{kind}.{job}.log"))
}

fn path(served: &Served, name: &str) -> String {
    served.path(name).display().to_string()
}

fn said(served: &Served, round: u32) -> String {
    std::fs::read_to_string(path(served, &format!("fio-{round}.out"))).unwrap_or_default()
}
