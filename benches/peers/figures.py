"""The arithmetic: samples, medians, ratios. Nothing here starts or reads anything."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from client import Measurement


class Quantity(Enum):
    """What is told of a run."""

    RATE = "rate"
    P99 = "p99 latency"
    PROCESSOR = "server CPU per operation"
    MEMORY = "peak memory"

    @property
    def more_is_better(self) -> bool:
        """Only rates."""
        return self is Quantity.RATE


@dataclass(frozen=True)
class Sample:
    """One run of one workload on one contender."""

    set_name: str
    round: int
    workload: str
    contender: str
    rate: float
    unit: str
    p99_us: float
    processor_us: float
    memory_mib: float
    # Whether the peak is that of this run alone; else it is that since the server's start.
    memory_was_reset: bool
    # Whether servers were at rest before the run.
    began_idle: bool
    processor_seconds: float
    measurement: Measurement

    def value(self, quantity: Quantity) -> float:
        """One of its figures."""
        return {
            Quantity.RATE: self.rate,
            Quantity.P99: self.p99_us,
            Quantity.PROCESSOR: self.processor_us,
            Quantity.MEMORY: self.memory_mib,
        }[quantity]


def median(values: Iterable[float]) -> float:
    """The middle one; of an even number, the mean of the two in the middle."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no median of nothing")
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


@dataclass(frozen=True)
class Ratio:
    """A contender's figure over the best of its peers', who may be of another set."""

    title: str
    subject: str
    peers: tuple[str, ...]
    peer_set: str | None = None


class Figures:
    """All samples of a run, and what follows from them."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self.samples = list(samples)

    def values(self, set_name: str, workload: str, contender: str, quantity: Quantity) -> list[float]:
        """One figure per round."""
        return [
            sample.value(quantity)
            for sample in self.samples
            if (sample.set_name, sample.workload, sample.contender) == (set_name, workload, contender)
        ]

    def figure(self, set_name: str, workload: str, contender: str, quantity: Quantity) -> float | None:
        """The median of the rounds; None when it was not measured. Of memory, the largest: a peak is a peak."""
        values = self.values(set_name, workload, contender, quantity)
        if not values:
            return None
        return max(values) if quantity is Quantity.MEMORY else median(values)

    def best(
        self, set_name: str, workload: str, contenders: Iterable[str], quantity: Quantity
    ) -> float | None:
        """The best of those that were measured."""
        found = [self.figure(set_name, workload, contender, quantity) for contender in contenders]
        known = [value for value in found if value is not None]
        if not known:
            return None
        return max(known) if quantity.more_is_better else min(known)

    def ratio(self, set_name: str, workload: str, ratio: Ratio, quantity: Quantity) -> float | None:
        """None when one side was not measured, or the peer's figure is nothing."""
        own = self.figure(set_name, workload, ratio.subject, quantity)
        peer = self.best(ratio.peer_set or set_name, workload, ratio.peers, quantity)
        return None if own is None or not peer else own / peer
