"""Runs a set: prepares a volume for each contender, then every workload on every one of them in turn, round by round.

All servers of a set stay up side by side; only one is asked at a time, and only once all are at rest. So a slow minute of
the host falls on all of them, and nobody's late work on the next one's figures.
"""

import itertools
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import client
import process
from failure import Failure
from figures import Sample
from page_cache import read_in
from servers import SERVERS, Seat, Server, remote_command
from sets import Contender, MeasureSet
from workloads import MIB, Workload

SERVES_SECONDS_MAX = 60.0
IDLE_SECONDS_MAX = 20.0
# A command that makes a volume, and what fio takes beyond its running time.
COMMAND_SECONDS_MAX = 120.0
# The slowest rate at which filling is worth waiting for.
FILL_MIB_PER_SECOND_MIN = 2


@dataclass
class Place:
    """A contender with its volume and its processes."""

    contender: Contender
    server: Server
    seat: Seat
    filled_bytes: int
    serving: process.Process
    remote: process.Process | None
    # Whether a workload has written to it.
    written: bool = False

    def processes(self) -> list[process.Process]:
        """Whose rest is waited for."""
        return [self.serving] if self.remote is None else [self.serving, self.remote]


@dataclass(frozen=True)
class Settings:
    """What a run is told."""

    seconds: int
    rounds: int
    size_bytes: int
    directory: Path


@dataclass(frozen=True)
class SetResult:
    """A set with its samples, and who did not take part."""

    measured: MeasureSet
    samples: list[Sample]
    left_out: dict[str, str]


class Bench:
    """Temporary directories and processes of a run; leaving the context stops and removes them."""

    def __init__(self, settings: Settings, progress: Callable[[str], None]) -> None:
        self.settings = settings
        self.progress = progress
        self.processes = process.Processes()
        self.numbers = itertools.count()

    def __enter__(self) -> "Bench":
        with ExitStack() as closing:
            try:
                self.directory = temporary_directory(closing, self.settings.directory)
            except OSError as error:
                raise Failure(
                    f"{self.settings.directory}: {error.strerror}", "name another with --directory"
                ) from error
            # Beside the volumes: a socket's path has at most 107 bytes, and --directory may be long.
            self.sockets = temporary_directory(closing, None)
            closing.enter_context(self.processes)
            self.environment = {
                **os.environ,
                "LC_ALL": "C",
                "SEALBD_CONFIG": "",
                "SEALBD_AUDIT": str(self.directory / "audit.jsonl"),
                "SEALBD_AUDIT_JOURNAL": "",
            }
            self.keyfile = self.secret_file("key", secrets.token_bytes(32))
            self.passphrase = self.secret_file("passphrase", secrets.token_hex(16).encode())
            self.closing = closing.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.close()

    def secret_file(self, name: str, content: bytes) -> Path:
        """A file that only we read."""
        path = self.directory / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        return path

    def run(self, chosen: MeasureSet) -> SetResult:
        """Measures a set, without the servers that cannot take part."""
        able, left_out = self.able(chosen)
        for name, why in left_out.items():
            self.progress(f"{chosen.name}: left out: {name}: {why}")
        samples: list[Sample] = []
        places: list[Place] = []
        if able:
            self.check_room(chosen, able)
        for number in range(1, self.settings.rounds + 1) if able else ():
            if chosen.renewed or not places:
                self.clear(places)
                places = [self.prepare(chosen, contender) for contender in able]
            for workload in chosen.workloads:
                # Each round begins with another one, so that nobody always follows the same.
                for index in rotated(len(places), number - 1):
                    if places[index].written and places[index].contender.state.kept:
                        self.clear([places[index]])
                        places[index] = self.prepare(chosen, places[index].contender)
                    sample = self.measure(chosen, number, workload, places[index])
                    samples.append(sample)
                    self.progress(
                        f"{chosen.name}: round {number}/{self.settings.rounds}  {workload.title}  "
                        f"{sample.contender}  {sample.rate:.0f} {sample.unit}"
                    )
        self.clear(places)
        return SetResult(chosen, samples, left_out)

    def able(self, chosen: MeasureSet) -> tuple[list[Contender], dict[str, str]]:
        """Who can take part, and why the others cannot."""
        able, left_out = [], {}
        for contender in chosen.contenders:
            server = SERVERS[contender.server]
            why = server.missing() or (server.without_direct() if chosen.direct else None)
            if why is None and chosen.remote and shutil.which("nbdkit") is None:
                why = "nbdkit, which is the remote store, is not installed"
            if why is None:
                able.append(contender)
            else:
                left_out[contender.server] = why
        return able, left_out

    def check_room(self, chosen: MeasureSet, able: list[Contender]) -> None:
        """Looks beforehand whether all stores of a set find room side by side."""
        needed = sum(
            int(SERVERS[contender.server].store_factor * self.settings.size_bytes * contender.state.filled)
            for contender in able
        )
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise Failure(
                f"{self.directory.parent} has {free // MIB} MiB free, set {chosen.name} takes {needed // MIB}",
                "name another file system with --directory, or less with --size",
            )

    def prepare(self, chosen: MeasureSet, contender: Contender) -> Place:
        """Makes a volume, serves it, fills it with random bytes, brings it into its state."""
        self.progress(f"{chosen.name}: preparing {contender.name}")
        server, state = SERVERS[contender.server], contender.state
        # Never the same twice: nbdkit leaves its socket behind.
        slug = f"{next(self.numbers)}-{contender.server}"
        filled = int(self.settings.size_bytes * state.filled) // MIB * MIB
        seat = Seat(
            store=self.directory / slug,
            socket=self.sockets / f"{slug}.sock",
            keyfile=self.keyfile,
            passphrase=self.passphrase,
            exported_bytes=state.exported_bytes or self.settings.size_bytes,
            direct=chosen.direct,
        )
        remote = None
        if chosen.remote:
            seat = replace(seat, remote_port=free_port())
            if server.made_through_remote:
                with seat.store.open("wb") as store:
                    store.truncate(int(seat.exported_bytes * server.store_factor) + 64 * MIB)
                remote = self.serve_remote(seat, slug)
                self.make(server, seat)
            else:
                self.make(server, seat)
                remote = self.serve_remote(seat, slug)
        else:
            self.make(server, seat)
        serving = self.start(server.command(seat), slug)
        self.wait_until_serving(serving, contender.name, seat.uri)
        place = Place(contender, server, seat, filled, serving, remote)
        self.fio(place, client.fill_arguments(seat.uri, filled), filled / MIB / FILL_MIB_PER_SECOND_MIN)
        self.check_filled(place)
        if state.overwritten_times:
            line = client.overwrite_arguments(seat.uri, filled, state.overwritten_times)
            self.fio(place, line, state.overwritten_times * filled / MIB / FILL_MIB_PER_SECOND_MIN)
        self.settle(place)
        return place

    def make(self, server: Server, seat: Seat) -> None:
        """Runs the commands that make a volume."""
        for command in server.make_commands(seat):
            status, _, errors = process.completed(
                command, self.directory, self.environment, COMMAND_SECONDS_MAX
            )
            if status != 0:
                raise Failure(
                    f"{server.title}: {' '.join(command[:2])} failed ({status}): {errors.strip()}",
                    f"leave it out with --servers, or look at {command[0]} by hand",
                )

    def start(self, command: list[str], slug: str) -> process.Process:
        """Starts a server, with what it says in a file."""
        return self.processes.start(command, self.directory / f"{slug}.log", self.directory, self.environment)

    def serve_remote(self, seat: Seat, slug: str) -> process.Process:
        """Starts the remote store."""
        assert seat.remote_port is not None
        remote = self.start(remote_command(seat.store, seat.remote_port), f"{slug}-remote")
        self.wait_until_serving(remote, "the remote store", seat.remote_uri)
        return remote

    def wait_until_serving(self, serving: process.Process, name: str, uri: str) -> None:
        """Asks for the export until it is there."""
        deadline = time.monotonic() + SERVES_SECONDS_MAX
        while True:
            status, _, errors = process.completed(
                ["nbdinfo", "--size", uri], self.directory, self.environment, 30
            )
            if status == 0:
                return
            if serving.ended() or time.monotonic() > deadline:
                said = serving.last_words() or errors.strip()
                raise Failure(
                    f"{name} does not serve: {said}", "leave it out with --servers, or start it by hand"
                )
            time.sleep(0.05)

    def fio(self, place: Place, line: list[str], seconds_max: float) -> client.Measurement:
        """Runs the client against a place."""
        limit = seconds_max + COMMAND_SECONDS_MAX
        status, output, errors = process.completed(line, self.directory, self.environment, limit)
        if status != 0 or place.serving.ended():
            said = (errors.strip() or output.strip())[-500:]
            server_said = place.serving.last_words()[-500:]
            gone = "the server ended; " if place.serving.ended() else ""
            raise Failure(
                f"{place.contender.name}: {gone}fio failed ({status}): {said}\nthe server said last: {server_said}",
                "leave it out with --servers, or run the server and fio by hand",
            )
        try:
            return client.parse(output)
        except Failure as failure:
            raise Failure(f"{place.contender.name}: {failure.cause}", failure.next_step) from failure

    def check_filled(self, place: Place) -> None:
        """Nobody may answer reads from holes."""
        allocated = place.seat.store.stat().st_blocks * 512
        if allocated < place.filled_bytes:
            raise Failure(
                f"{place.contender.name}: its store takes {allocated // MIB} MiB on disk after {place.filled_bytes // MIB} MiB "
                "of random bytes were written: something compresses, or leaves holes",
                "name a plain file system with --directory",
            )

    def settle(self, place: Place) -> bool:
        """Writes back what is dirty of the store and waits until its processes are at rest."""
        numbers = [one.number for one in place.processes()]
        idle = process.wait_until_idle(numbers, IDLE_SECONDS_MAX)
        handle = os.open(place.seat.store, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        return idle

    def measure(self, chosen: MeasureSet, number: int, workload: Workload, place: Place) -> Sample:
        """One run, from rest to rest, and with the store in the page cache unless that is bypassed."""
        began_idle = self.settle(place)
        if not chosen.direct:
            read_in(place.seat.store)
        server = place.serving.number
        was_reset = process.reset_peak_memory(server)
        before = process.processor_seconds(server)
        line = client.arguments(
            place.seat.uri, workload, self.settings.seconds, place.filled_bytes, chosen.connections
        )
        measurement = self.fio(place, line, self.settings.seconds)
        used = process.processor_seconds(server) - before
        memory = process.peak_memory_mib(server)
        if workload.writes:
            place.written = True
            self.settle(place)
        return Sample(
            set_name=chosen.name,
            round=number,
            workload=workload.name,
            contender=place.contender.name,
            rate=measurement.rate(workload),
            unit=workload.unit,
            p99_us=measurement.p99_us(workload),
            processor_us=used * 1e6 / measurement.operations,
            memory_mib=memory,
            memory_was_reset=was_reset,
            began_idle=began_idle,
            processor_seconds=used,
            measurement=measurement,
        )

    def clear(self, places: list[Place]) -> None:
        """Stops the servers of a set or round and gives their room back."""
        for place in places:
            for one in place.processes():
                one.stop()
                self.processes.running.remove(one)
            place.seat.store.unlink()


def rotated(count: int, first: int) -> list[int]:
    """Places of a list, from one of them on around to the one before it."""
    return [(first + index) % count for index in range(count)]


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def temporary_directory(closing: ExitStack, parent: Path | None) -> Path:
    """One that is removed with what is in it."""
    made = tempfile.TemporaryDirectory(prefix="sealbd-peers-", dir=parent, ignore_cleanup_errors=True)
    return Path(closing.enter_context(made))
