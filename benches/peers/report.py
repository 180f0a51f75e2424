"""The report in Markdown: the host, a block of tables per set, every target with its figure."""

from collections.abc import Callable, Sequence

from figures import Figures, Quantity, Ratio
from measure import SetResult, Settings
from servers import SERVERS
from sets import Contender
from targets import Target, Verdict
from workloads import BY_NAME, MIB, Workload

DASH = "–"


def markdown(
    host: dict[str, object],
    settings: Settings,
    results: Sequence[SetResult],
    figures: Figures,
    verdicts: Sequence[Verdict],
) -> str:
    """The whole report."""
    blocks = [head(host, settings)]
    blocks += [set_block(result, figures) for result in results]
    blocks.append(targets_block(verdicts, {result.measured.name for result in results}))
    return "\n\n".join(blocks) + "\n"


def head(host: dict[str, object], settings: Settings) -> str:
    """What was measured on what."""
    versions = host["versions"]
    assert isinstance(versions, dict)
    rounds = "1 round" if settings.rounds == 1 else f"{settings.rounds} rounds"
    return "\n".join(
        [
            "# sealbd beside its peers",
            "",
            f"- {host['date']}: {host['processor']}, {host['cores']} cores, {host['memory_mib']} MiB of memory, kernel "
            f"{host['kernel']}, {host['file_system']}; load before: {host['load_before']:.2f}",
            f"- {'; '.join(f'{name}: {version}' for name, version in versions.items())}",
            f"- Volumes of {settings.size_bytes // MIB} MiB filled with random bytes; {rounds} of {settings.seconds} s per "
            "workload and server, servers in turn within each; medians, of memory the largest. Servers have their default settings, but for what a set names.",
            "- Each run begins with all of the store read into the page cache, unless that is bypassed: the host gives back pages "
            "that were not used for a while.",
            "- The client is fio's `ioengine=nbd` over a unix socket, on the same host. p99 is fio's completion latency, of the "
            "flush where each write is flushed, of reads or writes, whichever is worse, in the mix. CPU is user and system "
            "time of the server's process, client not included.",
        ]
    )


def title_of(contender: Contender) -> str:
    """As tables have it."""
    title = SERVERS[contender.server].title
    return f"{title}, {contender.state.title}" if contender.state.title else title


def set_block(result: SetResult, figures: Figures) -> str:
    """One set: who is left out, then a table per quantity."""
    chosen = result.measured
    lines = [f"## {chosen.title}", ""]
    if chosen.note:
        lines += [chosen.note, ""]
    for name, why in result.left_out.items():
        lines += [f"Left out: {SERVERS[name].title}: {why}.", ""]
    taking_part = [contender for contender in chosen.contenders if contender.server not in result.left_out]
    if not taking_part:
        return "\n".join([*lines, "Nobody is left to measure."])
    if not all(sample.memory_was_reset for sample in result.samples):
        lines += ["Peaks of memory are since the server's start where resetting them was not allowed.", ""]
    restless = sorted({sample.contender for sample in result.samples if not sample.began_idle})
    if restless:
        lines += [f"Not at rest when a run began: {'; '.join(restless)}.", ""]
    ratios = [
        ratio
        for ratio in chosen.ratios
        if any(figures.ratio(chosen.name, one.name, ratio, Quantity.RATE) for one in chosen.workloads)
    ]
    tables = (
        ("Operations or data per second", Quantity.RATE, rate_text),
        ("p99 latency, µs", Quantity.P99, lambda value, _: microseconds(value)),
        ("Server CPU per operation, µs", Quantity.PROCESSOR, lambda value, _: microseconds(value)),
        ("Peak memory, MiB", Quantity.MEMORY, lambda value, _: f"{value:.1f}"),
    )
    for title, quantity, text in tables:
        columns = ratios if quantity is not Quantity.MEMORY else []
        lines += table(title, chosen.name, chosen.workloads, taking_part, columns, figures, quantity, text)
        lines.append("")
    return "\n".join(lines).rstrip()


def table(
    title: str,
    set_name: str,
    workloads: Sequence[Workload],
    contenders: Sequence[Contender],
    ratios: Sequence[Ratio],
    figures: Figures,
    quantity: Quantity,
    text: Callable[[float, Workload], str],
) -> list[str]:
    """One quantity: a row per workload, a column per contender, then the ratios."""
    heads = [title, *(title_of(contender) for contender in contenders), *(ratio.title for ratio in ratios)]
    lines = [row(heads), "|---|" + "---:|" * (len(heads) - 1)]
    for workload in workloads:
        cells = [workload.title]
        for contender in contenders:
            value = figures.figure(set_name, workload.name, contender.name, quantity)
            cells.append(DASH if value is None else text(value, workload))
        for ratio in ratios:
            quotient = figures.ratio(set_name, workload.name, ratio, quantity)
            cells.append(DASH if quotient is None else f"{quotient:.2f}")
        lines.append(row(cells))
    return lines


def row(cells: Sequence[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def rate_text(value: float, workload: Workload) -> str:
    """11.8k, 164k, 2300 MB/s."""
    if workload.sequential:
        return f"{value:.0f} MB/s"
    if value < 1000:
        return f"{value:.0f}"
    return f"{value / 1000:.1f}k" if value < 100_000 else f"{value / 1000:.0f}k"


def microseconds(value: float) -> str:
    """Three digits or more."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def targets_block(verdicts: Sequence[Verdict], sets_run: set[str]) -> str:
    """Every target, reached or not; those of sets that were not run are counted."""
    lines = [
        "## Targets",
        "",
        row(["Set", "Workload", "Target", "Figure", "Verdict"]),
        "|---|---|---|---|---|",
    ]
    run = [verdict for verdict in verdicts if verdict.target.set_name in sets_run]
    for verdict in run:
        target = verdict.target
        workload = "worst of all" if target.workload is None else BY_NAME[target.workload].title
        lines.append(
            row([target.set_name, workload, demand(target), figure_text(verdict), word(verdict.reached)])
        )
    count = {answer: sum(verdict.reached is answer for verdict in run) for answer in (True, False, None)}
    lines += ["", f"{count[True]} reached, {count[False]} not reached, {count[None]} not measured."]
    if skipped := len(verdicts) - len(run):
        lines.append(f"{skipped} more belong to sets that were not run.")
    return "\n".join(lines)


def word(reached: bool | None) -> str:
    """A verdict."""
    return {True: "reached", False: "**not reached**", None: "not measured"}[reached]


def demand(target: Target) -> str:
    """A target in words."""
    at = "at least" if target.quantity.more_is_better else "at most"
    bounds = []
    if target.absolute is not None:
        bounds.append(f"{at} {target.absolute:g} {'MiB' if target.quantity is Quantity.MEMORY else 'µs'}")
    if target.factor is not None:
        peers = (
            " or ".join(target.peers)
            if target.peer_set is None
            else f"{target.peers[0]} in set {target.peer_set}"
        )
        better = "the better of " if len(target.peers) > 1 else ""
        bounds.append(f"{at} {target.factor:g} × {better}{peers}")
    subject = "" if target.subject == "sealbd" else f"{target.subject}: "
    return f"{subject}{target.quantity.value} {', or '.join(bounds)}"


def figure_text(verdict: Verdict) -> str:
    """The measured figure and its ratio."""
    parts = []
    if verdict.value is not None and verdict.target.quantity is not Quantity.RATE:
        unit = "MiB" if verdict.target.quantity is Quantity.MEMORY else "µs"
        parts.append(f"{verdict.value:.1f} {unit}")
    if verdict.ratio is not None:
        parts.append(f"{verdict.ratio:.2f} ×")
    return ", ".join(parts) or DASH
