"""The sets: which servers run which workloads on volumes in which state, and what is compared with what."""

from dataclasses import dataclass

from figures import Ratio
from workloads import BY_NAME, WORKLOADS, Workload

TIB = 1 << 40


@dataclass(frozen=True)
class State:
    """How a volume is prepared: the share that is filled in order, then overwritten at random that many times."""

    title: str
    filled: float = 1.0
    overwritten_times: int = 0
    # What clients see, where it is not the size that is filled.
    exported_bytes: int | None = None
    # Whether it is made anew once something was written to it after its preparation.
    kept: bool = False


FILLED = State("")
FRESH = State("fresh", kept=True)
HALF = State("50 % full", filled=0.5, overwritten_times=2)
FULL = State("100 % full", overwritten_times=2)
WIDE = State("4 TiB", exported_bytes=4 * TIB, kept=True)


@dataclass(frozen=True)
class Contender:
    """A server with a volume in some state."""

    server: str
    state: State = FILLED

    @property
    def name(self) -> str:
        """How it is called in tables, targets and files."""
        return f"{self.server}, {self.state.title}" if self.state.title else self.server


@dataclass(frozen=True)
class MeasureSet:
    """What is run together, and told in one table."""

    name: str
    title: str
    contenders: tuple[Contender, ...]
    ratios: tuple[Ratio, ...]
    workloads: tuple[Workload, ...] = WORKLOADS
    connections: int = 1
    direct: bool = False
    remote: bool = False
    # Whether volumes are made anew for each round, since its workloads undo their state.
    renewed: bool = False
    note: str = ""


EVERYBODY = tuple(
    Contender(name) for name in ("sealbd", "nbdkit-file", "nbdkit-luks", "qemu-luks", "qemu-raw")
)
LUKS = ("nbdkit-luks", "qemu-luks")
AGAINST_PLAINTEXT = Ratio("sealbd ÷ nbdkit file", "sealbd", ("nbdkit-file",))
AGAINST_LUKS = Ratio("sealbd ÷ better LUKS", "sealbd", LUKS)

BASIC = MeasureSet(
    name="basic",
    title="One connection, page cache",
    contenders=EVERYBODY,
    ratios=(AGAINST_PLAINTEXT, AGAINST_LUKS),
)

DIRECT = MeasureSet(
    name="direct",
    title="One connection, stores opened with O_DIRECT",
    contenders=EVERYBODY,
    ratios=(Ratio("sealbd ÷ qemu-nbd raw", "sealbd", ("qemu-raw",)), AGAINST_LUKS),
    direct=True,
)

STEADY = MeasureSet(
    name="steady",
    title="Volumes that were overwritten at random",
    contenders=tuple(
        Contender(server, state) for server in ("sealbd", "nbdkit-file") for state in (FRESH, HALF, FULL)
    ),
    ratios=tuple(
        Ratio(f"{title} {state.title} ÷ fresh", f"{server}, {state.title}", (f"{server}, fresh",))
        for server, title in (("sealbd", "sealbd"), ("nbdkit-file", "nbdkit file"))
        for state in (HALF, FULL)
    ),
    renewed=True,
    note="A share of the volume is filled in order, then overwritten in random sectors by twice as much, anew for each "
    "round; requests go to that share. Fresh is the whole volume, filled in order, anew after each workload that "
    "writes.",
)

REMOTE = MeasureSet(
    name="remote",
    title="A remote store behind 1 ms",
    contenders=(Contender("sealbd"), Contender("qemu-luks")),
    ratios=(Ratio("sealbd ÷ qemu-nbd LUKS", "sealbd", ("qemu-luks",)),),
    workloads=tuple(BY_NAME[name] for name in ("read-1m", "randwrite-q32", "randwrite-fsync")),
    remote=True,
    note="The store is an export of nbdkit's file plugin over loopback TCP, with 1 ms added to each read and write of it; "
    "its flushes are as slow as the disk. CPU is that of the server, not of the store.",
)

WIDE_VOLUME = MeasureSet(
    name="wide",
    title="A volume of 4 TiB",
    contenders=(Contender("sealbd", FRESH), Contender("sealbd", WIDE)),
    ratios=(Ratio("4 TiB ÷ fresh", "sealbd, 4 TiB", ("sealbd, fresh",)),),
    workloads=tuple(
        BY_NAME[name] for name in ("randread-q1", "randread-q32", "randwrite-q1", "randwrite-q32")
    ),
    note="The same requests to the first part of a volume of 4 TiB; only that part is filled. Both volumes are made anew "
    "after each workload that writes.",
)


def several(connections: int) -> MeasureSet:
    """The basic set over several connections."""
    return MeasureSet(
        name="connections",
        title=f"{connections} connections, page cache",
        contenders=EVERYBODY,
        ratios=(
            AGAINST_PLAINTEXT,
            AGAINST_LUKS,
            Ratio("sealbd ÷ its one connection", "sealbd", ("sealbd",), BASIC.name),
            Ratio("nbdkit file ÷ its one connection", "nbdkit-file", ("nbdkit-file",), BASIC.name),
        ),
        connections=connections,
        note=f"fio runs {connections} jobs, each a process with a connection of its own and the whole queue depth on it. Random "
        "requests of every job go to the whole volume; of sequential ones each job has a share of it.",
    )
