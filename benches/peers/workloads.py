"""The workloads: what is asked of every server, and in which unit its rate is told.

They are in the order in which a round runs them. Reads come first, so that what a round reads is as it was prepared, and
large writes last, since they put a volume that was overwritten at random back in order.
"""

from dataclasses import dataclass

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class Workload:
    """One pattern of requests; `depth` is per connection."""

    name: str
    title: str
    pattern: str
    block_bytes: int
    depth: int
    read_percent: int | None = None
    flush_each: bool = False

    @property
    def sequential(self) -> bool:
        """Whether requests follow one another on the disk."""
        return not self.pattern.startswith("rand")

    @property
    def writes(self) -> bool:
        """Whether it changes the volume."""
        return self.pattern not in ("read", "randread")

    @property
    def unit(self) -> str:
        """What its rate is counted in."""
        return "MB/s" if self.sequential else "IOPS"


WORKLOADS: tuple[Workload, ...] = (
    Workload("randread-q1", "randread 4k q1", "randread", 4 * KIB, 1),
    Workload("randread-q32", "randread 4k q32", "randread", 4 * KIB, 32),
    Workload("read-1m", "read 1M q8", "read", MIB, 8),
    Workload("randwrite-q1", "randwrite 4k q1", "randwrite", 4 * KIB, 1),
    Workload("randwrite-q32", "randwrite 4k q32", "randwrite", 4 * KIB, 32),
    Workload("randwrite-fsync", "randwrite 4k q1 + fsync each", "randwrite", 4 * KIB, 1, flush_each=True),
    Workload("mixed-q32", "mixed 70/30 4k q32", "randrw", 4 * KIB, 32, read_percent=70),
    Workload("write-1m", "write 1M q8", "write", MIB, 8),
)

BY_NAME: dict[str, Workload] = {workload.name: workload for workload in WORKLOADS}
