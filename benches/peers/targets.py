"""The targets, in one table, and whether a run reached them.

A target that was not measured is told as such; it counts neither way.
"""

from dataclasses import dataclass

from figures import Figures, Quantity, Ratio
from workloads import WORKLOADS


@dataclass(frozen=True)
class Target:
    """A bound for one figure: as a factor of the best of some peers', or absolute, or either where both are given."""

    set_name: str
    # None: the worst of all the set's workloads.
    workload: str | None
    quantity: Quantity
    subject: str = "sealbd"
    peers: tuple[str, ...] = ()
    factor: float | None = None
    absolute: float | None = None
    peer_set: str | None = None


PLAINTEXT = ("nbdkit-file",)
LUKS = ("nbdkit-luks", "qemu-luks")
AGAINST_LUKS = {
    "randread-q1": 1.2,
    "randread-q32": 1.5,
    "randwrite-q1": 1.2,
    "randwrite-q32": 1.5,
    "randwrite-fsync": 1.2,
    "mixed-q32": 1.5,
    "read-1m": 2.0,
    "write-1m": 2.0,
}
PROCESSOR_US_MAX = {"randread-q32": 7.0, "randwrite-q32": 8.0}
MEMORY_MIB_MAX = 64.0


def steady_targets() -> tuple[Target, ...]:
    """Reads keep 0.7 of the fresh figure, what writes keeps 0.5; a mix counts as what writes."""
    return tuple(
        Target(
            "steady",
            workload.name,
            Quantity.RATE,
            subject,
            ("sealbd, fresh",),
            0.5 if workload.writes else 0.7,
        )
        for subject in ("sealbd, 50 % full", "sealbd, 100 % full")
        for workload in WORKLOADS
    )


def size_targets() -> tuple[Target, ...]:
    """The cost of an operation does not grow with the volume."""
    names = ("randread-q1", "randread-q32", "randwrite-q1", "randwrite-q32")
    return tuple(
        Target("wide", name, Quantity.PROCESSOR, "sealbd, 4 TiB", ("sealbd, fresh",), 1.1) for name in names
    )


TARGETS: tuple[Target, ...] = (
    *(Target("basic", workload.name, Quantity.RATE, peers=PLAINTEXT, factor=1.0) for workload in WORKLOADS),
    *(
        Target("basic", name, Quantity.RATE, peers=LUKS, factor=factor)
        for name, factor in AGAINST_LUKS.items()
    ),
    *(
        Target("basic", name, Quantity.PROCESSOR, peers=PLAINTEXT, factor=1.2, absolute=most)
        for name, most in PROCESSOR_US_MAX.items()
    ),
    *(Target("basic", workload.name, Quantity.P99, peers=PLAINTEXT, factor=1.0) for workload in WORKLOADS),
    *(
        Target(name, None, Quantity.MEMORY, absolute=MEMORY_MIB_MAX)
        for name in ("basic", "connections", "direct", "remote")
    ),
    *(
        Target("steady", None, Quantity.MEMORY, subject, absolute=MEMORY_MIB_MAX)
        for subject in ("sealbd, 50 % full", "sealbd, 100 % full")
    ),
    # What "scales to the cores that are there" comes to on any host: more connections are not slower than one. By how
    # much they are faster, and nbdkit beside it, stands in the set's table.
    *(
        Target("connections", name, Quantity.RATE, peers=("sealbd",), factor=1.0, peer_set="basic")
        for name in ("randread-q1", "randread-q32", "randwrite-q1", "randwrite-q32", "mixed-q32")
    ),
    *steady_targets(),
    Target("remote", "randwrite-q32", Quantity.RATE, peers=("qemu-luks",), factor=3.0),
    Target("remote", "randwrite-fsync", Quantity.RATE, peers=("qemu-luks",), factor=0.9),
    Target("remote", "read-1m", Quantity.RATE, peers=("qemu-luks",), factor=1.0),
    *size_targets(),
)


@dataclass(frozen=True)
class Verdict:
    """What a run says about a target."""

    target: Target
    # None: not measured.
    reached: bool | None
    value: float | None = None
    ratio: float | None = None


def judge(target: Target, figures: Figures) -> Verdict:
    """Compares the unrounded figures; a target with two bounds is reached by either."""
    workload = target.workload
    if workload is None:
        worst = worst_workload(target, figures)
        if worst is None:
            return Verdict(target, None)
        workload = worst
    value = figures.figure(target.set_name, workload, target.subject, target.quantity)
    against = Ratio("", target.subject, target.peers, target.peer_set)
    ratio = figures.ratio(target.set_name, workload, against, target.quantity) if target.peers else None
    answers = [
        within(measured, bound, target.quantity)
        for measured, bound in ((ratio, target.factor), (value, target.absolute))
        if measured is not None and bound is not None
    ]
    bounds = sum(bound is not None for bound in (target.factor, target.absolute))
    # A bound that was missed decides nothing while the other one, which would do, is unknown.
    reached = True if any(answers) else False if len(answers) == bounds else None
    return Verdict(target, reached, value, ratio)


def worst_workload(target: Target, figures: Figures) -> str | None:
    """The measured workload in which the subject's figure is worst."""
    found = [
        (value, workload.name)
        for workload in WORKLOADS
        if (value := figures.figure(target.set_name, workload.name, target.subject, target.quantity))
        is not None
    ]
    if not found:
        return None
    return (min(found) if target.quantity.more_is_better else max(found))[1]


def within(measured: float, bound: float, quantity: Quantity) -> bool:
    """At least the bound where more is better, at most it elsewhere."""
    return measured >= bound if quantity.more_is_better else measured <= bound
