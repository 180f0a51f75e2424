"""Whether the page cache has a file after it was read in. Needs a file system that gives pages back when it is asked to."""

import os
import tempfile
import unittest
from pathlib import Path

from page_cache import READ_BYTES, read_in

DATA_BYTES = 3 * READ_BYTES
HOLE_BYTES = 1 << 30


def is_cached(handle: int, at: int) -> bool:
    """Whether a read would not have to wait."""
    try:
        return os.preadv(handle, [bytearray(4096)], at, os.RWF_NOWAIT) > 0
    except BlockingIOError:
        return False


class PageCache(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory(dir=Path(__file__).parent)
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "store"

    def test_data_behind_a_hole_is_read_in_and_the_hole_is_not(self) -> None:
        with self.path.open("w+b") as file:
            for at in (0, HOLE_BYTES):
                file.seek(at)
                file.write(os.urandom(DATA_BYTES))
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self.assertFalse(is_cached(file.fileno(), HOLE_BYTES + READ_BYTES))
            self.assertEqual(read_in(self.path), 2 * DATA_BYTES)
            places = [start + at for start in (0, HOLE_BYTES) for at in range(0, DATA_BYTES, 4096)]
            self.assertTrue(all(is_cached(file.fileno(), at) for at in places))

    def test_an_empty_file_and_one_that_is_a_hole_have_nothing_to_read(self) -> None:
        for size in (0, HOLE_BYTES):
            with self.path.open("wb") as file:
                file.truncate(size)
            self.assertEqual(read_in(self.path), 0)
