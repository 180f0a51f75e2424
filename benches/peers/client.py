"""The client: fio's NBD engine over a unix socket. Builds its command lines and reads its JSON; starts nothing.

Each of fio's jobs has a connection of its own. With several, random requests go to the whole volume from each of them, with the
workload's depth on each; sequential ones share the volume out, since jobs that follow one another over the same place would
measure the page cache.
"""

import json
from dataclasses import dataclass
from typing import Any

from failure import Failure
from workloads import MIB, Workload

# fio's names of what it counts, and ours.
KINDS = {"read": ("read", "clat_ns"), "write": ("write", "clat_ns"), "flush": ("sync", "lat_ns")}


@dataclass(frozen=True)
class Latency:
    """Completion latencies of one kind of request, in microseconds."""

    count: int
    mean_us: float
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float


@dataclass(frozen=True)
class Measurement:
    """What fio saw in one run. Flushes are not among the operations; they have latencies of their own."""

    operations: int
    data_bytes: int
    operations_per_second: float
    bytes_per_second: float
    client_cpu_percent: float
    latency: dict[str, Latency]

    def rate(self, workload: Workload) -> float:
        """In the workload's unit."""
        return self.bytes_per_second / 1e6 if workload.sequential else self.operations_per_second

    def p99_us(self, workload: Workload) -> float:
        """Of the flush where each write is flushed, else of reads or writes, whichever is worse."""
        kinds = ["flush"] if workload.flush_each else ["read", "write"]
        return max(self.latency[kind].p99_us for kind in kinds if kind in self.latency)


def arguments(uri: str, workload: Workload, seconds: int, span_bytes: int, connections: int) -> list[str]:
    """fio's command line for a timed run on the first `span_bytes` of a volume."""
    line = common(uri, workload.pattern, workload.block_bytes, workload.depth)
    if workload.sequential and connections > 1:
        share_mib = span_bytes // connections // MIB
        line += [f"--size={share_mib}m", f"--offset_increment={share_mib}m"]
    else:
        line += [f"--size={span_bytes}"]
    line += ["--time_based", f"--runtime={seconds}", f"--numjobs={connections}", "--group_reporting"]
    if workload.read_percent is not None:
        line += [f"--rwmixread={workload.read_percent}"]
    if workload.flush_each:
        line += ["--fsync=1"]
    return line


def fill_arguments(uri: str, span_bytes: int) -> list[str]:
    """Writes random bytes once over the first `span_bytes`."""
    return [*common(uri, "write", MIB, 8), f"--size={span_bytes}", "--refill_buffers", "--end_fsync=1"]


def overwrite_arguments(uri: str, span_bytes: int, times: int) -> list[str]:
    """Overwrites at random, in sectors, as much as `times` the span."""
    line = common(uri, "randwrite", 4096, 32)
    return [
        *line,
        f"--size={span_bytes}",
        f"--io_size={span_bytes * times}",
        "--norandommap",
        "--refill_buffers",
        "--end_fsync=1",
    ]


def common(uri: str, pattern: str, block_bytes: int, depth: int) -> list[str]:
    """What every run has in common. Buffers are random bytes, changed before each write (fio's default)."""
    return [
        "fio",
        "--name=peer",
        "--ioengine=nbd",
        f"--uri={uri}",
        f"--rw={pattern}",
        f"--bs={block_bytes}",
        f"--iodepth={depth}",
        "--randrepeat=0",
        "--output-format=json",
    ]


def parse(text: str) -> Measurement:
    """Reads what fio printed: lines of its engine, then one JSON object with one group.

    Raises Failure when there is no such object, when fio counted an error, or when nothing was done.
    """
    advice = "run the server and fio by hand, or leave the server out with --servers"
    start = text.find("{")
    if start < 0:
        raise Failure(f"fio printed no JSON: {text.strip()[-300:]!r}", advice)
    try:
        jobs = json.loads(text[start:])["jobs"]
    except (ValueError, KeyError) as error:
        raise Failure(f"fio's JSON cannot be read: {error}", advice) from error
    if len(jobs) != 1:
        raise Failure(f"fio reported {len(jobs)} groups, not one", advice)
    job: dict[str, Any] = jobs[0]
    if job["error"] != 0:
        raise Failure(f"fio counted an error of number {job['error']}", advice)
    data = [job["read"], job["write"]]
    operations = sum(kind["total_ios"] for kind in data)
    if operations == 0:
        raise Failure("fio finished no request", "try a larger --seconds, or run the server and fio by hand")
    return Measurement(
        operations=operations,
        data_bytes=sum(kind["io_bytes"] for kind in data),
        operations_per_second=sum(kind["iops"] for kind in data),
        bytes_per_second=float(sum(kind["bw_bytes"] for kind in data)),
        client_cpu_percent=job["usr_cpu"] + job["sys_cpu"],
        latency={
            ours: latency_of(job[theirs][field])
            for ours, (theirs, field) in KINDS.items()
            if "percentile" in job.get(theirs, {}).get(field, {})
        },
    )


def latency_of(counted: dict[str, Any]) -> Latency:
    """One of fio's latency objects, whose times are nanoseconds."""
    percentile = counted["percentile"]
    return Latency(
        count=counted["N"],
        mean_us=counted["mean"] / 1000,
        p50_us=percentile["50.000000"] / 1000,
        p99_us=percentile["99.000000"] / 1000,
        p999_us=percentile["99.900000"] / 1000,
        max_us=counted["max"] / 1000,
    )
