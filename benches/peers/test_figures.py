"""Medians, ratios and verdicts, from samples with known figures."""

import unittest

from client import Latency, Measurement
from figures import Figures, Quantity, Ratio, Sample, median
from sets import BASIC, DIRECT, REMOTE, STEADY, WIDE_VOLUME, several
from targets import TARGETS, Target, judge
from workloads import WORKLOADS

SETS = {one.name: one for one in (BASIC, several(4), DIRECT, STEADY, REMOTE, WIDE_VOLUME)}


def sample(
    contender: str,
    rate: float = 1.0,
    *,
    workload: str = "randread-q32",
    set_name: str = "basic",
    p99_us: float = 1.0,
    processor_us: float = 1.0,
    memory_mib: float = 1.0,
    round: int = 1,
) -> Sample:
    """With one where nothing else is said."""
    return Sample(
        set_name=set_name,
        round=round,
        workload=workload,
        contender=contender,
        rate=rate,
        unit="IOPS",
        p99_us=p99_us,
        processor_us=processor_us,
        memory_mib=memory_mib,
        memory_was_reset=True,
        began_idle=True,
        processor_seconds=1.0,
        measurement=Measurement(1, 4096, rate, 4096 * rate, 1.0, {"read": Latency(1, 1, 1, p99_us, 1, 1)}),
    )


class Medians(unittest.TestCase):
    def test_the_middle_of_any_order(self) -> None:
        self.assertEqual(median([9.0, 1.0, 5.0]), 5.0)
        self.assertEqual(median([4.0, 1.0, 2.0, 100.0]), 3.0)
        self.assertEqual(median([7.0]), 7.0)

    def test_nothing_has_no_median(self) -> None:
        with self.assertRaises(ValueError):
            median([])

    def test_of_memory_the_largest_round_counts(self) -> None:
        figures = Figures(
            sample("sealbd", rate, memory_mib=rate, round=int(rate)) for rate in (1.0, 2.0, 9.0)
        )
        self.assertEqual(figures.figure("basic", "randread-q32", "sealbd", Quantity.RATE), 2.0)
        self.assertEqual(figures.figure("basic", "randread-q32", "sealbd", Quantity.MEMORY), 9.0)


class Ratios(unittest.TestCase):
    LUKS = Ratio("", "sealbd", ("nbdkit-luks", "qemu-luks"))

    def test_the_better_peer_is_the_faster_one_and_the_one_with_less_latency(self) -> None:
        figures = Figures(
            [
                sample("sealbd", 300, p99_us=10),
                sample("nbdkit-luks", 200, p99_us=40),
                sample("qemu-luks", 100, p99_us=20),
            ]
        )
        self.assertEqual(figures.ratio("basic", "randread-q32", self.LUKS, Quantity.RATE), 1.5)
        self.assertEqual(figures.ratio("basic", "randread-q32", self.LUKS, Quantity.P99), 0.5)

    def test_a_peer_that_was_not_measured_is_not_guessed(self) -> None:
        alone = Figures([sample("sealbd", 300)])
        self.assertIsNone(alone.ratio("basic", "randread-q32", self.LUKS, Quantity.RATE))
        one = Figures([sample("sealbd", 300), sample("qemu-luks", 100)])
        self.assertEqual(one.ratio("basic", "randread-q32", self.LUKS, Quantity.RATE), 3.0)

    def test_figures_of_other_workloads_and_sets_are_not_mixed_in(self) -> None:
        figures = Figures(
            [
                sample("sealbd", 300),
                sample("qemu-luks", 1, workload="read-1m"),
                sample("qemu-luks", 2, set_name="direct"),
            ]
        )
        self.assertIsNone(figures.ratio("basic", "randread-q32", self.LUKS, Quantity.RATE))

    def test_a_peer_may_be_of_another_set(self) -> None:
        figures = Figures([sample("sealbd", 300, set_name="connections"), sample("sealbd", 200)])
        scaling = Ratio("", "sealbd", ("sealbd",), "basic")
        self.assertEqual(figures.ratio("connections", "randread-q32", scaling, Quantity.RATE), 1.5)

    def test_nothing_is_divided_by_zero(self) -> None:
        figures = Figures([sample("sealbd", processor_us=1), sample("qemu-luks", processor_us=0)])
        self.assertIsNone(figures.ratio("basic", "randread-q32", self.LUKS, Quantity.PROCESSOR))


class Verdicts(unittest.TestCase):
    RATE = Target("basic", "randread-q32", Quantity.RATE, peers=("nbdkit-file",), factor=1.0)
    PROCESSOR = Target(
        "basic", "randread-q32", Quantity.PROCESSOR, peers=("nbdkit-file",), factor=1.2, absolute=7.0
    )

    def test_a_rate_is_reached_from_the_bound_on(self) -> None:
        for rate, reached in ((99.99, False), (100.0, True), (101.0, True)):
            verdict = judge(self.RATE, Figures([sample("sealbd", rate), sample("nbdkit-file", 100.0)]))
            self.assertIs(verdict.reached, reached, rate)

    def test_a_latency_is_reached_up_to_the_bound(self) -> None:
        target = Target("basic", "randread-q32", Quantity.P99, peers=("nbdkit-file",), factor=1.0)
        for p99_us, reached in ((99.0, True), (100.0, True), (100.01, False)):
            figures = Figures([sample("sealbd", p99_us=p99_us), sample("nbdkit-file", p99_us=100.0)])
            self.assertIs(judge(target, figures).reached, reached, p99_us)

    def test_what_was_not_measured_is_neither_reached_nor_missed(self) -> None:
        self.assertIsNone(judge(self.RATE, Figures([])).reached)
        self.assertIsNone(judge(self.RATE, Figures([sample("sealbd", 100)])).reached)
        self.assertIsNone(judge(self.RATE, Figures([sample("nbdkit-file", 100)])).reached)

    def test_of_two_bounds_either_does(self) -> None:
        for own, peer, reached in ((6.9, 1.0, True), (12.0, 10.0, True), (7.1, 5.0, False)):
            figures = Figures([sample("sealbd", processor_us=own), sample("nbdkit-file", processor_us=peer)])
            self.assertIs(judge(self.PROCESSOR, figures).reached, reached, (own, peer))

    def test_a_missed_bound_decides_nothing_while_the_other_is_unknown(self) -> None:
        self.assertIsNone(judge(self.PROCESSOR, Figures([sample("sealbd", processor_us=9.0)])).reached)
        self.assertIs(judge(self.PROCESSOR, Figures([sample("sealbd", processor_us=6.0)])).reached, True)

    def test_the_worst_workload_stands_for_all(self) -> None:
        target = Target("basic", None, Quantity.MEMORY, absolute=64.0)
        figures = [sample("sealbd", memory_mib=10.0), sample("sealbd", memory_mib=65.0, workload="write-1m")]
        verdict = judge(target, Figures(figures))
        self.assertEqual((verdict.reached, verdict.value), (False, 65.0))
        self.assertIs(judge(target, Figures(figures[:1])).reached, True)
        self.assertIsNone(judge(target, Figures([])).reached)


class TheTable(unittest.TestCase):
    def test_every_target_names_what_its_set_measures(self) -> None:
        for target in TARGETS:
            chosen = SETS[target.set_name]
            peers_of = SETS[target.peer_set or target.set_name]
            self.assertIn(target.subject, {one.name for one in chosen.contenders}, target)
            self.assertLessEqual(set(target.peers), {one.name for one in peers_of.contenders}, target)
            if target.workload is not None:
                self.assertIn(target.workload, {one.name for one in chosen.workloads}, target)
                self.assertIn(target.workload, {one.name for one in peers_of.workloads}, target)
            self.assertEqual(target.factor is not None, bool(target.peers), target)
            self.assertTrue(target.factor is not None or target.absolute is not None, target)

    def test_no_target_stands_there_twice(self) -> None:
        self.assertEqual(len(set(TARGETS)), len(TARGETS))

    def test_every_workload_is_held_against_plaintext_and_luks(self) -> None:
        for peers in (("nbdkit-file",), ("nbdkit-luks", "qemu-luks")):
            held = {
                t.workload
                for t in TARGETS
                if (t.set_name, t.quantity, t.peers) == ("basic", Quantity.RATE, peers)
            }
            self.assertEqual(held, {workload.name for workload in WORKLOADS})

    def test_every_ratio_names_what_its_set_measures(self) -> None:
        for chosen in SETS.values():
            for ratio in chosen.ratios:
                self.assertIn(ratio.subject, {one.name for one in chosen.contenders})
                peers_of = SETS[ratio.peer_set or chosen.name]
                self.assertLessEqual(set(ratio.peers), {one.name for one in peers_of.contenders})
