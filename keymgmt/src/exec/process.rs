//! One process for one question: the question goes to its stdin, the answer comes from its stdout.
//!
//! Whatever the program does, this ends within the time given and leaves nothing behind: the program runs in
//! a process group of its own, which is killed whole and reaped in every case. It is over when the program
//! itself has ended; a child that it left behind and that holds its pipes open is not waited for. All of it
//! happens on one blocking thread with poll(2), so any runtime will do; when the future is dropped a pipe to
//! that thread closes, and the program is killed at once.

use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use zeroize::{Zeroize, Zeroizing};

/// Longest answer in bytes; the longest that means anything has fewer than 2 KiB.
pub(super) const ANSWER_BYTES_MAX: usize = 16 << 10;
/// How much of what a program says on stderr is kept; the rest is read and dropped. Enough for the trace of
/// an uncaught exception.
pub(super) const STDERR_BYTES_MAX: usize = 4 << 10;
/// Read at a time.
const CHUNK_BYTES: usize = 4 << 10;

/// A program that ended by itself.
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    /// All of its stdout.
    pub(super) answer: Zeroizing<Vec<u8>>,
    /// The beginning of its stderr.
    pub(super) stderr: Zeroizing<Vec<u8>>,
}

/// Why there is nothing to read an answer from.
pub(super) enum Failure {
    /// It could not be started.
    Start(io::Error),
    /// It had not ended in time. What it said on stderr until then.
    Timeout(Zeroizing<Vec<u8>>),
    /// Its answer is longer than [`ANSWER_BYTES_MAX`].
    Flood,
    /// The pipes to it failed.
    Pipe(io::Error),
    /// Nobody waits any longer.
    Stopped,
}

/// Runs `command`, writes `question` to it, and waits for its end for at most `timeout`. Its stdin, stdout,
/// stderr and process group are set here.
///
/// # Errors
/// [`Failure`].
///
/// # Cancel safety
/// Dropping the future kills the program.
pub(super) async fn run(
    command: Command,
    question: Zeroizing<Vec<u8>>,
    timeout: Duration,
) -> Result<Ended, Failure> {
    // Our end closes when this future is dropped. The pipe is not inherited by programs.
    let (stop, wanted) = io::pipe().map_err(Failure::Start)?;
    let thread = tokio::task::spawn_blocking(move || run_now(command, &question, timeout, &stop));
    let result = thread.await.unwrap_or(Err(Failure::Stopped));
    drop(wanted);
    result
}

fn run_now(
    mut command: Command,
    question: &[u8],
    timeout: Duration,
    stop: &PipeReader,
) -> Result<Ended, Failure> {
    let deadline = Instant::now() + timeout;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut group = Group { program: command.spawn().map_err(Failure::Start)?, reaped: false };
    let ended = pidfd_open(group.pid(), PidfdFlags::empty()).map_err(|errno| Failure::Pipe(errno.into()))?;
    let mut pipes = Pipes::of(&mut group.program).map_err(Failure::Pipe)?;
    let mut unsent = question;
    loop {
        let Some(left) = deadline.checked_duration_since(Instant::now()) else {
            return Err(Failure::Timeout(pipes.stderr.take_kept()));
        };
        let ready = pipes.wait(stop.as_fd(), ended.as_fd(), left).map_err(Failure::Pipe)?;
        if ready.stop {
            return Err(Failure::Stopped);
        }
        if ready.stdin {
            pipes.send(&mut unsent);
        }
        if ready.stdout {
            pipes.stdout.read_ready(CHUNK_BYTES).map_err(Failure::Pipe)?;
        }
        if ready.stderr {
            pipes.stderr.read_ready(CHUNK_BYTES).map_err(Failure::Pipe)?;
        }
        if ready.ended {
            // What it wrote before its end is in the pipes now; a survivor may go on writing, so not
            // everything is waited for.
            pipes.stdout.read_ready(ANSWER_BYTES_MAX + 1).map_err(Failure::Pipe)?;
            pipes.stderr.read_ready(STDERR_BYTES_MAX).map_err(Failure::Pipe)?;
        }
        if pipes.stdout.overflowed {
            return Err(Failure::Flood);
        }
        if ready.ended {
            let status = group.end().map_err(Failure::Pipe)?;
            let (answer, stderr) = (pipes.stdout.take_kept(), pipes.stderr.take_kept());
            return Ok(Ended { status, answer, stderr });
        }
    }
}

/// A program and all of its children that stayed in its process group; killed and reaped on drop.
struct Group {
    program: Child,
    reaped: bool,
}

impl Group {
    fn pid(&self) -> Pid {
        Pid::from_child(&self.program)
    }

    /// Kills what is left and reaps the program. Its number is its own until it is reaped, so nobody else is
    /// hit.
    fn end(&mut self) -> io::Result<ExitStatus> {
        let _ = kill_process_group(self.pid(), Signal::KILL);
        // Once more by its own number: it may have left the group.
        let _ = self.program.kill();
        self.reaped = true;
        self.program.wait()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.end();
        }
    }
}

/// What poll(2) says.
struct Ready {
    stop: bool,
    ended: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

/// Our ends of the three pipes, none of which blocks.
struct Pipes {
    stdin: Option<std::process::ChildStdin>,
    stdout: Drain,
    stderr: Drain,
}

impl Pipes {
    fn of(child: &mut Child) -> io::Result<Self> {
        let stdin = child.stdin.take().expect("stdin was piped");
        let stdout = OwnedFd::from(child.stdout.take().expect("stdout was piped"));
        let stderr = OwnedFd::from(child.stderr.take().expect("stderr was piped"));
        for fd in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        Ok(Self {
            stdin: Some(stdin),
            stdout: Drain::new(stdout, ANSWER_BYTES_MAX),
            stderr: Drain::new(stderr, STDERR_BYTES_MAX),
        })
    }

    /// Waits until something can be done.
    fn wait(&self, stop: BorrowedFd<'_>, ended: BorrowedFd<'_>, timeout: Duration) -> io::Result<Ready> {
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        let stdin = self.stdin.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::OUT));
        let stdout = self.stdout.pipe.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::IN));
        let stderr = self.stderr.pipe.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::IN));
        let asked = [Some((stop, PollFlags::IN)), Some((ended, PollFlags::IN)), stdin, stdout, stderr];
        let mut polled: Vec<_> =
            asked.iter().flatten().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        match poll(&mut polled, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut answers = polled.iter().map(|fd| !fd.revents().is_empty());
        let [stop, ended, stdin, stdout, stderr] =
            asked.map(|asked| asked.is_some() && answers.next().unwrap_or(false));
        Ok(Ready { stop, ended, stdin, stdout, stderr })
    }

    /// Writes what the pipe takes and closes it behind the last byte. A program that does not read its
    /// question may still answer, so a closed pipe is no error here.
    fn send(&mut self, unsent: &mut &[u8]) {
        let Some(pipe) = &mut self.stdin else { return };
        match pipe.write(unsent) {
            Ok(count) => *unsent = &unsent[count..],
            Err(error) if is_later(&error) => return,
            Err(_) => *unsent = &[],
        }
        if unsent.is_empty() {
            self.stdin = None;
        }
    }
}

/// A pipe that is read to its end, of which the beginning is kept.
struct Drain {
    pipe: Option<std::fs::File>,
    kept: Zeroizing<Vec<u8>>,
    kept_max: usize,
    /// More came than is kept.
    overflowed: bool,
}

impl Drain {
    fn new(pipe: OwnedFd, kept_max: usize) -> Self {
        // Room for all of it at once: a buffer that grows leaves copies behind.
        let kept = Zeroizing::new(Vec::with_capacity(kept_max));
        Self { pipe: Some(pipe.into()), kept, kept_max, overflowed: false }
    }

    /// Reads what is there, at least up to `enough` bytes of it.
    fn read_ready(&mut self, enough: usize) -> io::Result<()> {
        let mut chunk = [0; CHUNK_BYTES];
        let mut count = 0;
        while let Some(pipe) = self.pipe.as_mut().filter(|_| count < enough) {
            match pipe.read(&mut chunk) {
                Ok(0) => self.pipe = None,
                Ok(read) => {
                    count += read;
                    let room = self.kept_max - self.kept.len();
                    self.kept.extend_from_slice(&chunk[..read.min(room)]);
                    self.overflowed |= read > room;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_later(&error) => break,
                Err(error) => return Err(error),
            }
        }
        chunk.zeroize();
        Ok(())
    }

    fn take_kept(&mut self) -> Zeroizing<Vec<u8>> {
        std::mem::take(&mut self.kept)
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
