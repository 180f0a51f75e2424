"""What the figures were measured on: the host, the file system, the programs."""

import datetime
import hashlib
import os
import platform
import subprocess
from pathlib import Path

from servers import Sealbd


def describe(directory: Path, sealbd: Sealbd) -> dict[str, object]:
    """Everything that a reader needs to judge whether figures compare with his own."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": value_of("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": int((value_of("/proc/meminfo", "MemTotal") or "0").split()[0]) // 1024,
        "load_before": os.getloadavg()[0],
        "kernel": platform.release(),
        "file_system": first_line(["df", "--output=fstype", str(directory)], last=True),
        "versions": versions(sealbd),
    }


def versions(sealbd: Sealbd) -> dict[str, str]:
    """Of every program that takes part; without those that are not there."""
    asked = {
        "sealbd": [sealbd.program, "--version"],
        "nbdkit": ["nbdkit", "--version"],
        "qemu-nbd": ["qemu-nbd", "--version"],
        "fio": ["fio", "--version"],
    }
    found = {name: first_line(command) for name, command in asked.items()}
    known = {name: line for name, line in found.items() if line}
    if "sealbd" in known:
        digest = hashlib.sha256(Path(sealbd.program).read_bytes()).hexdigest()
        known["sealbd"] += f", SHA-256 {digest[:16]}…"
    return known


def first_line(command: list[str], last: bool = False) -> str:
    """The first line that a command prints, or the last; empty when it cannot be run."""
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
    lines = text.strip().splitlines() or [""]
    return lines[-1 if last else 0].strip()


def value_of(file: str, name: str) -> str | None:
    """The value of the first `name: value` line of a file of the kernel's."""
    for line in Path(file).read_text().splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == name:
            return value.strip()
    return None
