"""A volume of nbdkit's, prepared and measured for a second: what is left, and what a second one finds."""

import dataclasses
import shutil
import tempfile
import unittest
from pathlib import Path

from failure import Failure
from measure import Bench, Settings
from sets import BASIC, Contender
from workloads import BY_NAME, MIB

NEEDED = ("nbdkit", "fio", "nbdinfo")
NBDKIT = Contender("nbdkit-file")
ONE = dataclasses.replace(BASIC, contenders=(NBDKIT,), workloads=(BY_NAME["randwrite-fsync"],))


@unittest.skipUnless(all(shutil.which(program) for program in NEEDED), f"needs {', '.join(NEEDED)}")
class OneServer(unittest.TestCase):
    def bench(self, size_bytes: int = 32 * MIB) -> Bench:
        """One in a directory of its own."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.parent = Path(directory.name)
        return Bench(
            Settings(seconds=1, rounds=1, size_bytes=size_bytes, directory=self.parent), lambda _: None
        )

    def test_a_run_has_its_figures_and_leaves_nothing(self) -> None:
        with self.bench() as bench:
            result = bench.run(ONE)
            sockets = bench.sockets
        (sample,) = result.samples
        self.assertEqual(
            (sample.contender, sample.workload, sample.round), ("nbdkit-file", "randwrite-fsync", 1)
        )
        latency = sample.measurement.latency
        self.assertEqual(set(latency), {"write", "flush"})
        self.assertLessEqual(abs(latency["flush"].count - sample.measurement.operations), 1)
        self.assertGreater(sample.memory_mib, 1)
        self.assertEqual(bench.processes.running, [])
        self.assertEqual(list(self.parent.iterdir()), [])
        self.assertFalse(sockets.exists())

    def test_a_volume_that_is_made_anew_is_served_again(self) -> None:
        with self.bench() as bench:
            for _ in range(2):
                place = bench.prepare(ONE, NBDKIT)
                self.assertGreaterEqual(place.seat.store.stat().st_blocks * 512, 32 * MIB)
                bench.clear([place])

    def test_what_finds_no_room_is_told_before_anything_is_made(self) -> None:
        with self.bench(size_bytes=1 << 60) as bench, self.assertRaisesRegex(Failure, "MiB free"):
            bench.run(ONE)
        self.assertEqual(list(self.parent.iterdir()), [])

    def test_servers_are_stopped_when_a_run_fails(self) -> None:
        with self.assertRaises(KeyError), self.bench() as bench:
            place = bench.prepare(ONE, NBDKIT)
            raise KeyError
        self.assertTrue(place.serving.ended())
        self.assertEqual(list(self.parent.iterdir()), [])
