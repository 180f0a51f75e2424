"""What is read of fio's output, against output as fio 3.33 prints it."""

import json
import unittest
from typing import Any

import client
from failure import Failure
from workloads import BY_NAME, MIB


def percentiles(p50: int, p99: int, p999: int) -> dict[str, int]:
    """As fio names them."""
    return {"50.000000": p50, "99.000000": p99, "99.500000": p999 - 1, "99.900000": p999}


def printed() -> dict[str, Any]:
    """A run of `--rw=randwrite --fsync=1`, without what nobody reads. Times are nanoseconds."""
    nothing = {"total_ios": 0, "io_bytes": 0, "iops": 0.0, "bw_bytes": 0}
    empty = {"min": 0, "max": 0, "mean": 0.0, "stddev": 0.0, "N": 0}
    write = {
        "io_bytes": 10477568,
        "bw_bytes": 10282206,
        "iops": 2510.30422,
        "runtime": 1019,
        "total_ios": 2558,
        "clat_ns": {
            "max": 4488997,
            "mean": 107253.5,
            "N": 2558,
            "percentile": percentiles(63744, 1171456, 3948544),
        },
    }
    flush = {
        "max": 94009327,
        "mean": 669625.1,
        "N": 2558,
        "percentile": percentiles(337920, 6193152, 39059456),
    }
    job = {
        "jobname": "peer",
        "error": 0,
        "usr_cpu": 2.850123,
        "sys_cpu": 4.914005,
        "read": {**nothing, "clat_ns": empty},
        "write": write,
        "trim": {**nothing, "clat_ns": empty},
        "sync": {"total_ios": 2558, "lat_ns": flush},
    }
    return {"fio version": "fio-3.33", "jobs": [job]}


def as_text(output: dict[str, Any]) -> str:
    """fio's engine prints lines of its own before the object."""
    return "fio: connected to NBD server\n" + json.dumps(output)


class WhatFioPrinted(unittest.TestCase):
    def test_figures_are_in_our_units(self) -> None:
        measured = client.parse(as_text(printed()))
        self.assertEqual((measured.operations, measured.data_bytes), (2558, 10477568))
        self.assertEqual(measured.rate(BY_NAME["randwrite-q1"]), 2510.30422)
        self.assertEqual(measured.rate(BY_NAME["write-1m"]), 10.282206)
        self.assertAlmostEqual(measured.client_cpu_percent, 7.764128)
        self.assertEqual(measured.latency["write"].p99_us, 1171.456)
        self.assertEqual(measured.latency["write"].max_us, 4488.997)

    def test_a_kind_of_request_that_was_not_sent_has_no_latency(self) -> None:
        self.assertEqual(set(client.parse(as_text(printed())).latency), {"write", "flush"})

    def test_p99_is_of_the_flush_only_where_each_write_is_flushed(self) -> None:
        measured = client.parse(as_text(printed()))
        self.assertEqual(measured.p99_us(BY_NAME["randwrite-fsync"]), 6193.152)
        self.assertEqual(measured.p99_us(BY_NAME["randwrite-q1"]), 1171.456)

    def test_a_mix_counts_both_and_tells_the_worse_latency(self) -> None:
        output = printed()
        job = output["jobs"][0]
        job["read"] = {
            **job["write"],
            "total_ios": 1000,
            "iops": 1000.0,
            "clat_ns": {**job["write"]["clat_ns"], "percentile": percentiles(1000, 2000, 3000)},
        }
        measured = client.parse(as_text(output))
        self.assertEqual(measured.operations, 3558)
        self.assertEqual(measured.rate(BY_NAME["mixed-q32"]), 3510.30422)
        self.assertEqual(measured.p99_us(BY_NAME["mixed-q32"]), 1171.456)

    def test_an_error_that_fio_counted_is_no_figure(self) -> None:
        output = printed()
        output["jobs"][0]["error"] = 5
        with self.assertRaisesRegex(Failure, "error of number 5"):
            client.parse(as_text(output))

    def test_a_run_that_did_nothing_is_no_figure(self) -> None:
        output = printed()
        output["jobs"][0]["write"]["total_ios"] = 0
        with self.assertRaisesRegex(Failure, "finished no request"):
            client.parse(as_text(output))

    def test_words_instead_of_json_are_told(self) -> None:
        for text in ("", "fio: connection refused\n", "fio: connected\n{ cut"):
            with self.assertRaises(Failure):
                client.parse(text)

    def test_jobs_that_were_not_grouped_are_refused(self) -> None:
        output = printed()
        output["jobs"] *= 2
        with self.assertRaisesRegex(Failure, "2 groups"):
            client.parse(as_text(output))


class WhatFioIsTold(unittest.TestCase):
    def test_connections_share_out_sequential_requests_only(self) -> None:
        sequential = client.arguments("uri", BY_NAME["read-1m"], 4, 1024 * MIB, 4)
        self.assertIn("--size=256m", sequential)
        self.assertIn("--offset_increment=256m", sequential)
        at_random = client.arguments("uri", BY_NAME["randread-q32"], 4, 1024 * MIB, 4)
        self.assertIn(f"--size={1024 * MIB}", at_random)
        self.assertNotIn("--offset_increment=256m", at_random)
        self.assertIn("--numjobs=4", at_random)

    def test_a_volume_is_overwritten_by_as_much_as_was_asked(self) -> None:
        line = client.overwrite_arguments("uri", 512 * MIB, 2)
        self.assertIn(f"--io_size={1024 * MIB}", line)
        self.assertIn(f"--size={512 * MIB}", line)
        self.assertIn("--norandommap", line)
