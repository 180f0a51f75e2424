"""The command line: what is measured, for how long, where."""

import argparse
import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from servers import PROJECT, SERVERS
from sets import BASIC, DIRECT, REMOTE, STEADY, WIDE_VOLUME, MeasureSet, several
from workloads import BY_NAME, MIB

# Below this a volume has no room for a share of it to be told from the whole.
SIZE_MIN = 32 * MIB
CONNECTIONS_WITH_ALL = 4


def arguments(description: str | None, words: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line, or `words`."""
    parser = argparse.ArgumentParser(
        prog="benches/peers/run",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sets = parser.add_argument_group("sets; without any, the basic one")
    sets.add_argument("--basic", action="store_true", help="one connection, page cache")
    sets.add_argument(
        "--connections", type=several_connections, metavar="N", help="the same over N connections"
    )
    sets.add_argument(
        "--direct", action="store_true", help="stores opened with O_DIRECT, on every server that offers it"
    )
    sets.add_argument(
        "--steady", action="store_true", help="half full and full volumes that were overwritten at random"
    )
    sets.add_argument("--remote", action="store_true", help="a remote NBD store behind a millisecond")
    sets.add_argument("--wide", action="store_true", help="a volume of 4 TiB against one of --size")
    sets.add_argument(
        "--all", action="store_true", help=f"all of these, with {CONNECTIONS_WITH_ALL} connections"
    )
    parser.add_argument("--seconds", type=positive, default=4, help="of each run (default 4)")
    parser.add_argument("--rounds", type=positive, default=3, help="of which medians are taken (default 3)")
    parser.add_argument(
        "--size", type=size, default=size("1G"), help="of each volume, as 512M or 1G (default 1G)"
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where volumes lie while it runs (default TMPDIR)",
    )
    parser.add_argument(
        "--only", type=names(BY_NAME), metavar="WORKLOAD[,…]", help=f"of {', '.join(BY_NAME)}"
    )
    parser.add_argument(
        "--servers", type=names(SERVERS), metavar="SERVER[,…]", help=f"of {', '.join(SERVERS)}"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=PROJECT / "target/peers",
        metavar="DIR",
        help="for report.md, results.json, plot.svg (default target/peers)",
    )
    return parser.parse_args(words)


def positive(text: str) -> int:
    """A number of at least one."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text}: a whole number of at least 1 is needed")
    return int(text)


def several_connections(text: str) -> int:
    """Two or more."""
    if positive(text) == 1:
        raise argparse.ArgumentTypeError("1: the basic set has one connection, this one two or more")
    return int(text)


def size(text: str) -> int:
    """Bytes of 512M, 1G: whole mebibytes."""
    found = re.fullmatch(r"(\d+)([MGT])", text)
    count = int(found[1]) << {"M": 20, "G": 30, "T": 40}[found[2]] if found else 0
    if count < SIZE_MIN:
        raise argparse.ArgumentTypeError(
            f"{text}: a size such as 512M or 1G, of at least {SIZE_MIN // MIB}M, is needed"
        )
    return count


def names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """A list with commas between known names."""

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(known)}")
        return chosen

    return parse


def chosen_sets(options: argparse.Namespace) -> list[MeasureSet]:
    """What to measure, in the order in which the report has it."""
    connections = options.connections or (CONNECTIONS_WITH_ALL if options.all else None)
    others = options.connections or options.direct or options.steady or options.remote or options.wide
    sets = [
        *([BASIC] if options.basic or options.all or not others else []),
        *([several(connections)] if connections else []),
        *([DIRECT] if options.direct or options.all else []),
        *([STEADY] if options.steady or options.all else []),
        *([REMOTE] if options.remote or options.all else []),
        *([WIDE_VOLUME] if options.wide or options.all else []),
    ]
    return [narrowed(one, options) for one in sets]


def narrowed(one: MeasureSet, options: argparse.Namespace) -> MeasureSet:
    """Without what --only and --servers leave out."""
    return dataclasses.replace(
        one,
        workloads=tuple(w for w in one.workloads if options.only is None or w.name in options.only),
        contenders=tuple(c for c in one.contenders if options.servers is None or c.server in options.servers),
    )
