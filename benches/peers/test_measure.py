"""The order of a run, rehearsed; and a volume of nbdkit's, measured for a second: what it leaves, what the next one finds."""

import dataclasses
import shutil
import tempfile
import unittest
from pathlib import Path
from typing import cast

from failure import Failure
from figures import Sample
from measure import Bench, Place, Settings, rotated
from process import Process
from servers import SERVERS, Seat
from sets import BASIC, FRESH, FULL, Contender, MeasureSet, State
from test_figures import sample
from workloads import BY_NAME, MIB, Workload

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


class Rehearsed(Bench):
    """Writes down what it would do."""

    def __init__(self, rounds: int) -> None:
        super().__init__(Settings(1, rounds, 32 * MIB, Path(tempfile.gettempdir())), lambda _: None)
        self.done: list[str] = []

    def prepare(self, chosen: MeasureSet, contender: Contender) -> Place:
        self.done.append(f"prepare {contender.name}")
        nobody = cast(Process, None)
        return Place(contender, SERVERS[contender.server], cast(Seat, None), 0, nobody, None)

    def measure(self, chosen: MeasureSet, number: int, workload: Workload, place: Place) -> Sample:
        self.done.append(f"{workload.name} {place.contender.name}")
        place.written |= workload.writes
        return sample(place.contender.name)

    def clear(self, places: list[Place]) -> None:
        self.done += [f"clear {place.contender.name}" for place in places]

    def able(self, chosen: MeasureSet) -> tuple[list[Contender], dict[str, str]]:
        return list(chosen.contenders), {}


class Turns(unittest.TestCase):
    def rehearse(self, rounds: int, *workloads: str, states: tuple[State, ...], renewed: bool) -> list[str]:
        """What a set of nbdkit's volumes would do."""
        chosen = dataclasses.replace(
            ONE,
            contenders=tuple(Contender("nbdkit-file", state) for state in states),
            workloads=tuple(BY_NAME[name] for name in workloads),
            renewed=renewed,
        )
        bench = Rehearsed(rounds)
        with bench:
            bench.run(chosen)
        return [step.replace("nbdkit-file, ", "") for step in bench.done]

    def test_each_round_begins_with_another_one(self) -> None:
        one, two = State("one"), State("two")
        done = self.rehearse(2, "randread-q1", "randwrite-q1", states=(one, two), renewed=False)
        self.assertEqual(done[:2], ["prepare one", "prepare two"])
        self.assertEqual(
            [step.split()[1] for step in done[2:-2]], ["one", "two", "one", "two", "two", "one", "two", "one"]
        )
        self.assertEqual(done[-2:], ["clear one", "clear two"])
        self.assertEqual(rotated(3, 4), [1, 2, 0])

    def test_a_fresh_volume_is_made_anew_once_it_was_written_to(self) -> None:
        done = self.rehearse(1, "randread-q1", "randwrite-q1", "randwrite-q32", states=(FRESH,), renewed=True)
        before, after = done[:3], done[3:]
        self.assertEqual(before, ["prepare fresh", "randread-q1 fresh", "randwrite-q1 fresh"])
        self.assertEqual(after, ["clear fresh", "prepare fresh", "randwrite-q32 fresh", "clear fresh"])

    def test_an_aged_volume_is_aged_again_for_each_round(self) -> None:
        done = self.rehearse(2, "randwrite-q1", "randwrite-q32", states=(FULL,), renewed=True)
        self.assertEqual([step.split()[0] for step in done].count("prepare"), 2)
