"""Processes that were started here: their ends, and what the kernel counts about them.

Every one is stopped by its own number, or by that of the group that it leads, however the run ends.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
STOP_SECONDS_MAX = 30.0
ASKED_SECONDS_MAX = 5.0
LAST_WORDS_BYTES_MAX = 2000


class Interrupted(BaseException):
    """Somebody wants us to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupts:
    """Turns the first signal into an exception, at a moment when no process is between its start and our list of them.

    What follows is cleaning up, which later signals do not disturb.
    """

    def __init__(self) -> None:
        self.held = False
        self.number: int | None = None

    def install(self) -> None:
        """From here on Ctrl-C, SIGTERM and SIGHUP raise Interrupted, once."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self.arrived)

    def arrived(self, number: int, _frame: FrameType | None) -> None:
        """The handler."""
        if self.number is None:
            self.number = number
            if not self.held:
                raise Interrupted(number)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """A signal that arrives inside raises at the end."""
        before = self.number
        self.held = True
        try:
            yield
        finally:
            self.held = False
        if self.number is not None and before is None:
            raise Interrupted(self.number)


INTERRUPTS = Interrupts()


class Process:
    """A program with its standard error and output in a file."""

    def __init__(self, command: list[str], log: Path, directory: Path, environment: dict[str, str]) -> None:
        self.log = log
        with log.open("wb") as sink:
            # A session of its own: Ctrl-C in the terminal reaches us, and we stop what we started.
            self.child = subprocess.Popen(
                command,
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def number(self) -> int:
        """Its process number."""
        return self.child.pid

    def ended(self) -> bool:
        """Whether it is gone."""
        return self.child.poll() is not None

    def last_words(self) -> str:
        """The end of what it printed."""
        return self.log.read_bytes()[-LAST_WORDS_BYTES_MAX:].decode(errors="replace").strip()

    def stop(self) -> None:
        """Asks it to end, and after half a minute ends it."""
        if self.ended():
            return
        self.child.terminate()
        try:
            self.child.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


class Processes:
    """All that run; leaving the context stops them, the last started first."""

    def __init__(self) -> None:
        self.running: list[Process] = []

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_all()

    def start(self, command: list[str], log: Path, directory: Path, environment: dict[str, str]) -> Process:
        """Starts one."""
        with INTERRUPTS.hold():
            process = Process(command, log, directory, environment)
            self.running.append(process)
        return process

    def stop_all(self) -> None:
        """Stops every one."""
        while self.running:
            self.running[-1].stop()
            self.running.pop()


def completed(
    command: list[str], directory: Path, environment: dict[str, str], seconds_max: float
) -> tuple[int, str, str]:
    """Runs a command to its end: exit code, standard output and error. What it started ends with it on every way out."""
    child: subprocess.Popen[str] | None = None
    try:
        with INTERRUPTS.hold():
            child = subprocess.Popen(
                command,
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        output, errors = child.communicate(timeout=seconds_max)
        return child.returncode, output, errors
    except subprocess.TimeoutExpired:
        return -1, "", f"not finished after {seconds_max:.0f} s"
    finally:
        if child is not None and child.poll() is None:
            end_group(child)


def end_group(child: subprocess.Popen[str]) -> None:
    """Ends what leads a group: fio ends its jobs, which are processes of its group, when it is asked to end."""
    child.terminate()
    try:
        child.communicate(timeout=ASKED_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def stat_ticks(stat: str) -> int:
    """utime + stime of all threads, ended ones too, from the text of /proc/PID/stat.

    The name in parentheses may itself hold blanks and parentheses; the fields behind it do not.
    """
    fields = stat[stat.rindex(")") + 1 :].split()
    return int(fields[11]) + int(fields[12])


def processor_seconds(number: int) -> float:
    """What a process has used of the processors so far."""
    return stat_ticks(Path(f"/proc/{number}/stat").read_text()) / TICKS_PER_SECOND


def status_peak_mib(status: str) -> float:
    """VmHWM of the text of /proc/PID/status."""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise ValueError("no VmHWM in /proc/PID/status")


def peak_memory_mib(number: int) -> float:
    """The most that was resident since the last reset."""
    return status_peak_mib(Path(f"/proc/{number}/status").read_text())


def reset_peak_memory(number: int) -> bool:
    """Makes the peak what is resident now; false where we may not."""
    try:
        Path(f"/proc/{number}/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def wait_until_idle(numbers: list[int], seconds_max: float) -> bool:
    """Waits until none of them uses a processor any more; false when one still does."""
    deadline = time.monotonic() + seconds_max
    interval = 0.2
    before = [processor_seconds(number) for number in numbers]
    while time.monotonic() < deadline:
        time.sleep(interval)
        after = [processor_seconds(number) for number in numbers]
        # One tick is the clock's grain, not work.
        if all(new - old < 1.5 / TICKS_PER_SECOND for old, new in zip(before, after, strict=True)):
            return True
        before = after
    return False
