"""What the host holds of a file in memory. It gives pages back that were not used for a while, also where nobody needs the
room: those of a log, which are written once, before those of a file whose blocks are written again and again.
"""

import errno
import os
from pathlib import Path

READ_BYTES = 1 << 20


def read_in(path: Path) -> int:
    """Reads all that a file holds, but its holes, so that the page cache has it; returns how many bytes that were."""
    taken = 0
    buffer = bytearray(READ_BYTES)
    with path.open("rb", buffering=0) as file:
        handle = file.fileno()
        end = 0
        while (start := next_data(handle, end)) is not None:
            end = os.lseek(handle, start, os.SEEK_HOLE)
            at = start
            while at < end:
                count = os.preadv(handle, [memoryview(buffer)[: end - at]], at)
                if count == 0:
                    return taken
                at += count
                taken += count
    return taken


def next_data(handle: int, at: int) -> int | None:
    """Where data begins from `at` on."""
    try:
        return os.lseek(handle, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise
