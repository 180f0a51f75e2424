"""The report and the plot of a small run; what the options choose."""

import unittest
import xml.dom.minidom
from pathlib import Path

import plot
import report
from figures import Figures
from measure import SetResult, Settings
from options import arguments, chosen_sets
from sets import BASIC, DIRECT
from targets import TARGETS, judge
from test_figures import sample
from workloads import BY_NAME, GIB, MIB

HOST: dict[str, object] = {
    "date": "2026-01-02T03:04:05+00:00",
    "processor": "a <processor> & more",
    "cores": 2,
    "memory_mib": 4096,
    "load_before": 0.0,
    "kernel": "6.1",
    "file_system": "ext4",
    "versions": {"fio": "fio-3.33"},
}
SETTINGS = Settings(seconds=4, rounds=3, size_bytes=GIB, directory=Path("."))
RESULT = SetResult(
    BASIC,
    [sample("sealbd", 164_000), sample("nbdkit-file", 82_000)],
    {"qemu-raw": "qemu-nbd is not installed"},
)


class TheReport(unittest.TestCase):
    def setUp(self) -> None:
        figures = Figures(RESULT.samples)
        verdicts = [judge(target, figures) for target in TARGETS]
        self.text = report.markdown(HOST, SETTINGS, [RESULT], figures, verdicts)

    def test_a_workload_is_a_row_with_figures_and_ratios(self) -> None:
        self.assertIn("| randread 4k q32 | 164k | 82.0k | – | – | 2.00 |", self.text)

    def test_who_was_left_out_is_named_and_has_no_column(self) -> None:
        self.assertIn("Left out: qemu-nbd raw: qemu-nbd is not installed.", self.text)
        self.assertNotIn("| qemu-nbd raw |", self.text)

    def test_a_ratio_that_nothing_is_known_of_has_no_column(self) -> None:
        self.assertIn("sealbd ÷ nbdkit file", self.text)
        self.assertNotIn("sealbd ÷ better LUKS", self.text)

    def test_every_target_of_the_set_has_its_verdict(self) -> None:
        self.assertIn(
            "| basic | randread 4k q32 | rate at least 1 × nbdkit-file | 2.00 × | reached |", self.text
        )
        of_set = sum(target.set_name == "basic" for target in TARGETS)
        self.assertEqual(self.text.count("\n| basic |"), of_set)
        self.assertIn(f"{len(TARGETS) - of_set} more belong to sets that were not run.", self.text)

    def test_rows_of_a_table_have_as_many_cells_as_its_head(self) -> None:
        for block in self.text.split("\n\n"):
            widths = {line.count("|") for line in block.splitlines() if line.startswith("|")}
            self.assertLessEqual(len(widths), 1, block)

    def test_rates_keep_three_digits(self) -> None:
        at_random, sequential = BY_NAME["randread-q1"], BY_NAME["read-1m"]
        shown = [report.rate_text(value, at_random) for value in (903.4, 1234.0, 22_649.0, 164_321.0)]
        self.assertEqual(shown, ["903", "1.2k", "22.6k", "164k"])
        self.assertEqual(report.rate_text(2431.4, sequential), "2431 MB/s")


class ThePlot(unittest.TestCase):
    def test_it_is_xml_with_a_bar_for_each_figure(self) -> None:
        picture = plot.svg([RESULT], Figures(RESULT.samples), "a <caption> & more")
        document = xml.dom.minidom.parseString(picture)
        bars = [
            one for one in document.getElementsByTagName("rect") if one.getAttribute("x") == str(plot.LEFT)
        ]
        lengths = [float(one.getAttribute("width")) for one in bars]
        self.assertEqual(len(lengths), 2)
        self.assertAlmostEqual(lengths[0] / lengths[1], 2.0, places=2)

    def test_a_set_that_nobody_could_run_has_no_panel(self) -> None:
        nobody = SetResult(DIRECT, [], {one.server: "not there" for one in DIRECT.contenders})
        self.assertNotIn(DIRECT.title, plot.svg([nobody], Figures([]), ""))


class TheOptions(unittest.TestCase):
    def sets(self, *words: str) -> list[str]:
        """Names of what would be measured."""
        return [one.name for one in chosen_sets(arguments(None, list(words)))]

    def test_without_any_it_is_the_basic_set(self) -> None:
        self.assertEqual(self.sets(), ["basic"])
        self.assertEqual(self.sets("--only", "read-1m"), ["basic"])

    def test_a_set_that_is_named_is_measured_alone(self) -> None:
        self.assertEqual(self.sets("--remote"), ["remote"])
        self.assertEqual(self.sets("--basic", "--connections", "2"), ["basic", "connections"])

    def test_all_is_all(self) -> None:
        self.assertEqual(self.sets("--all"), ["basic", "connections", "direct", "steady", "remote", "wide"])

    def test_workloads_and_servers_are_left_out_of_every_set(self) -> None:
        chosen = chosen_sets(
            arguments(None, ["--all", "--only", "read-1m,randread-q32", "--servers", "sealbd"])
        )
        for one in chosen:
            self.assertLessEqual({workload.name for workload in one.workloads}, {"read-1m", "randread-q32"})
            self.assertEqual({contender.server for contender in one.contenders}, {"sealbd"})

    def test_a_size_has_a_unit(self) -> None:
        self.assertEqual(arguments(None, ["--size", "512M"]).size, 512 * MIB)
        self.assertEqual(arguments(None, []).size, GIB)
