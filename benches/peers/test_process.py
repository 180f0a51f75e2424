"""What is read of /proc, and that what was started ends."""

import os
import signal
import sys
import tempfile
import time
import unittest
from pathlib import Path

import process

# A name with blanks and parentheses, and 52 fields as a kernel of today writes them; utime 1234, stime 766.
STAT = (
    "4711 (a (b) 9 9 c) S 1 4711 4711 0 -1 4194560 2154 0 3 0 1234 766 55 66 20 0 5 0 123456 230000000 4096 "
    "18446744073709551615 1 1 0 0 0 0 0 4096 16386 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
)
STATUS = "Name:\tsealbd\nVmPeak:\t  990000 kB\nVmHWM:\t   35840 kB\nVmRSS:\t   12000 kB\n"


class TheKernelsCounts(unittest.TestCase):
    def test_time_is_that_of_the_process_and_not_of_its_children(self) -> None:
        self.assertEqual(process.stat_ticks(STAT), 2000)

    def test_the_peak_is_the_resident_one(self) -> None:
        self.assertEqual(process.status_peak_mib(STATUS), 35.0)
        with self.assertRaises(ValueError):
            process.status_peak_mib("Name:\tkthreadd\n")

    def test_our_own_time_is_what_the_kernel_tells_otherwise(self) -> None:
        deadline = time.process_time() + 0.05
        while time.process_time() < deadline:
            pass
        told = process.processor_seconds(os.getpid())
        times = os.times()
        self.assertAlmostEqual(told, times.user + times.system, delta=0.03)

    def test_a_peak_that_was_reset_forgets_what_was_freed(self) -> None:
        block = bytearray(os.urandom(64 << 20))
        del block
        before = process.peak_memory_mib(os.getpid())
        if not process.reset_peak_memory(os.getpid()):
            self.skipTest("clear_refs may not be written here")
        self.assertLess(process.peak_memory_mib(os.getpid()), before - 32)


class Ends(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)

    def start(self, processes: process.Processes, script: str) -> process.Process:
        """A Python program that has said that it runs."""
        command = [sys.executable, "-c", script]
        started = processes.start(command, self.directory / "log", self.directory, dict(os.environ))
        while "ready" not in started.last_words():
            self.assertFalse(started.ended(), started.last_words())
            time.sleep(0.01)
        return started

    def test_leaving_stops_what_runs_also_after_an_exception(self) -> None:
        processes = process.Processes()
        with self.assertRaises(KeyError), processes:
            started = self.start(processes, "import time; print('ready', flush=True); time.sleep(60)")
            raise KeyError
        self.assertEqual(started.child.returncode, -signal.SIGTERM)
        self.assertEqual(processes.running, [])

    def test_a_command_that_takes_too_long_is_ended(self) -> None:
        begun = time.monotonic()
        status, _, errors = process.completed(["sleep", "60"], self.directory, dict(os.environ), 0.1)
        self.assertEqual(status, -1)
        self.assertIn("not finished", errors)
        self.assertLess(time.monotonic() - begun, 10)

    def test_a_signal_waits_until_a_started_process_is_listed(self) -> None:
        interrupts = process.Interrupts()
        steps = []
        with self.assertRaises(process.Interrupted) as caught, interrupts.hold():
            interrupts.arrived(signal.SIGTERM, None)
            steps.append("listed")
        self.assertEqual((steps, caught.exception.number), (["listed"], signal.SIGTERM))
        # Cleaning up is not interrupted again.
        interrupts.arrived(signal.SIGINT, None)

    def test_a_busy_process_is_not_idle(self) -> None:
        with process.Processes() as processes:
            busy = self.start(processes, "print('ready', flush=True)\nwhile True: pass")
            self.assertFalse(process.wait_until_idle([busy.number], 0.5))
        with process.Processes() as processes:
            idle = self.start(processes, "import time; print('ready', flush=True); time.sleep(60)")
            self.assertTrue(process.wait_until_idle([idle.number], 5))
