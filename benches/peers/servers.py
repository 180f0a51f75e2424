"""The servers: what each needs, how a volume for it is made, how it is started.

A server that cannot take part says why in one sentence; the run goes on without it and names it.
"""

import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
EXPORT = "vol"


@dataclass(frozen=True)
class Seat:
    """Where one server's volume lies and how it is reached."""

    store: Path
    socket: Path
    keyfile: Path
    passphrase: Path
    exported_bytes: int
    direct: bool = False
    remote_port: int | None = None

    @property
    def uri(self) -> str:
        """What clients connect to."""
        return f"nbd+unix:///{EXPORT}?socket={self.socket}"

    @property
    def remote_uri(self) -> str:
        """The remote store, where there is one."""
        return f"nbd://127.0.0.1:{self.remote_port}/"


class Server(ABC):
    """One of the programs that are compared."""

    name: str
    title: str
    program: str
    # How much of the volume's size its store takes at most.
    store_factor = 1.0
    direct_missing: str | None = None

    def missing(self) -> str | None:
        """Why it cannot be run here."""
        return None if shutil.which(self.program) else f"{self.program} is not installed"

    def without_direct(self) -> str | None:
        """Why it cannot keep its store out of the page cache."""
        return self.direct_missing

    @abstractmethod
    def make_commands(self, seat: Seat) -> list[list[str]]:
        """Makes the store; a remote one is served already where the server itself has to make it."""

    @abstractmethod
    def command(self, seat: Seat) -> list[str]:
        """Serves it in the foreground."""

    # Whether its volume is made through the remote store, not beside it.
    made_through_remote = False


class Sealbd(Server):
    """sealbd, from SEALBD_BINARY or the release build."""

    name = "sealbd"
    title = "sealbd"
    # Over-provisioning, tags and index.
    store_factor = 1.5
    made_through_remote = True
    # The one place that knows how sealbd is told to bypass the page cache.
    direct_option = "--direct"

    @cached_property
    def program(self) -> str:  # type: ignore[override]
        """An absolute path."""
        return str(Path(os.environ.get("SEALBD_BINARY") or PROJECT / "target/release/sealbd").resolve())

    def missing(self) -> str | None:
        if os.access(self.program, os.X_OK):
            return None
        return f"{self.program} is not there"

    def without_direct(self) -> str | None:
        text = subprocess.run(
            [self.program, "serve", "--help"], capture_output=True, text=True, check=False
        ).stdout
        return (
            None
            if self.direct_option in text.split()
            else f"not offered: sealbd serve has no {self.direct_option}"
        )

    def make_commands(self, seat: Seat) -> list[list[str]]:
        backend = str(seat.store) if seat.remote_port is None else seat.remote_uri
        size, slot = str(seat.exported_bytes), f"keyfile:{seat.keyfile}"
        return [[self.program, "format", backend, "--size", size, "--slot", slot, "--no-recovery", "--yes"]]

    def command(self, seat: Seat) -> list[str]:
        backend = str(seat.store) if seat.remote_port is None else seat.remote_uri
        line = [self.program, "serve", backend, "--slot", f"keyfile:{seat.keyfile}", "--name", EXPORT]
        return line + ["--no-control", "-U", str(seat.socket)] + ([self.direct_option] if seat.direct else [])


class QemuRaw(Server):
    """qemu-nbd on a raw file, in plaintext."""

    name = "qemu-raw"
    title = "qemu-nbd raw"
    program = "qemu-nbd"

    def make_commands(self, seat: Seat) -> list[list[str]]:
        return [["truncate", "-s", str(seat.exported_bytes), str(seat.store)]]

    def command(self, seat: Seat) -> list[str]:
        return ["qemu-nbd", *qemu_options(seat), "-f", "raw", str(seat.store)]


class QemuLuks(Server):
    """qemu-nbd on a LUKS image."""

    name = "qemu-luks"
    title = "qemu-nbd LUKS"
    program = "qemu-nbd"
    store_factor = 1.05

    def missing(self) -> str | None:
        return super().missing() or (None if shutil.which("qemu-img") else "qemu-img is not installed")

    def make_commands(self, seat: Seat) -> list[list[str]]:
        return [make_luks(seat)]

    def command(self, seat: Seat) -> list[str]:
        if seat.remote_port is None:
            file = f"file.filename={seat.store}"
        else:
            file = f"file.driver=nbd,file.server.type=inet,file.server.host=127.0.0.1,file.server.port={seat.remote_port}"
        secret = f"secret,id=passphrase,file={seat.passphrase}"
        image = f"driver=luks,key-secret=passphrase,{file}"
        return ["qemu-nbd", "--object", secret, *qemu_options(seat), "--image-opts", image]


class NbdkitFile(Server):
    """nbdkit's file plugin, in plaintext: the reference."""

    name = "nbdkit-file"
    title = "nbdkit file"
    program = "nbdkit"
    # nbdkit-file-plugin(1): cache=none gives pages back after they were used; the file is opened without O_DIRECT.
    direct_missing = (
        "not offered: nbdkit's file plugin has no O_DIRECT (its cache=none only drops pages after use)"
    )

    def make_commands(self, seat: Seat) -> list[list[str]]:
        return [["truncate", "-s", str(seat.exported_bytes), str(seat.store)]]

    def command(self, seat: Seat) -> list[str]:
        return ["nbdkit", "-f", "-U", str(seat.socket), "file", str(seat.store)]


class NbdkitLuks(Server):
    """nbdkit's LUKS filter over its file plugin."""

    name = "nbdkit-luks"
    title = "nbdkit LUKS"
    program = "nbdkit"
    store_factor = 1.05
    direct_missing = NbdkitFile.direct_missing

    def missing(self) -> str | None:
        return super().missing() or (
            None if shutil.which("qemu-img") else "qemu-img, which makes its image, is not installed"
        )

    def make_commands(self, seat: Seat) -> list[list[str]]:
        return [make_luks(seat)]

    def command(self, seat: Seat) -> list[str]:
        line = ["nbdkit", "-f", "-U", str(seat.socket), "--filter=luks", "file", str(seat.store)]
        return [*line, f"passphrase=+{seat.passphrase}"]


def qemu_options(seat: Seat) -> list[str]:
    """A persistent server for any number of clients; asynchronous I/O as qemu-nbd has it by default."""
    return ["-t", "-e", "0", "-x", EXPORT, "-k", str(seat.socket), *(["--cache=none"] if seat.direct else [])]


def make_luks(seat: Seat) -> list[str]:
    """AES-256-XTS, qemu's default. A short key derivation: it is no part of what is measured."""
    secret = f"secret,id=passphrase,file={seat.passphrase}"
    options = "key-secret=passphrase,iter-time=10"
    line = ["qemu-img", "create", "-q", "-f", "luks", "--object", secret, "-o", options]
    return [*line, str(seat.store), str(seat.exported_bytes)]


# A remote store answers as many requests at once as a client sends: its delay is one of the way, not of a queue.
REMOTE_THREADS = 128
REMOTE_DELAY = "1ms"


def remote_command(store: Path, port: int) -> list[str]:
    """A remote store: reads, writes and trims take a millisecond more; nbdkit's delay filter leaves flushes alone."""
    line = [
        "nbdkit",
        "-f",
        "-i",
        "127.0.0.1",
        "-p",
        str(port),
        "-t",
        str(REMOTE_THREADS),
        "--filter=delay",
        "file",
    ]
    return [*line, str(store), f"rdelay={REMOTE_DELAY}", f"wdelay={REMOTE_DELAY}"]


SERVERS: dict[str, Server] = {
    server.name: server for server in (Sealbd(), QemuRaw(), NbdkitFile(), QemuLuks(), NbdkitLuks())
}
