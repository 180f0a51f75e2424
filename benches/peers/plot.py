"""The plot: one panel per set, a group of bars per workload, a bar per contender, written as SVG by hand.

A bar's length is the rate over that of the set's reference, so that workloads of different units share an axis; its label is
the rate itself, its whisker the slowest and the fastest round.
"""

from collections.abc import Sequence
from html import escape

from figures import Figures, Quantity
from measure import SetResult
from report import rate_text, title_of
from sets import Contender

WIDTH = 960
LEFT = 190
RIGHT = 90
BAR = 13
GAP = 14
HEAD = 74
FOOT = 30
FONT = "font-family='system-ui, sans-serif'"
# Okabe and Ito's colours, which people with any colour vision tell apart.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")


def svg(results: Sequence[SetResult], figures: Figures, caption: str) -> str:
    """All panels below one another."""
    parts: list[str] = []
    top = 34
    for result in results:
        if result.samples:
            lines, height = panel(result, figures, top)
            parts += lines
            top += height
    background = f"<rect width='{WIDTH}' height='{top}' fill='white'/>"
    label = text(16, 22, caption, size=12, colour="#555")
    opening = f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{top}' viewBox='0 0 {WIDTH} {top}' {FONT}>"
    return "\n".join([opening, background, label, *parts, "</svg>", ""])


def reference_of(contenders: Sequence[Contender]) -> Contender:
    """What a set's bars are measured by: the plaintext server, else the first other one than sealbd as it is used."""
    for wanted in ("nbdkit-file", "qemu-raw", "qemu-luks", "sealbd, fresh"):
        for contender in contenders:
            if contender.name == wanted:
                return contender
    return contenders[-1]


def panel(result: SetResult, figures: Figures, top: int) -> tuple[list[str], int]:
    """One set; its lines and its height."""
    chosen = result.measured
    contenders = [one for one in chosen.contenders if one.server not in result.left_out]
    reference = reference_of(contenders)
    groups = []
    for workload in chosen.workloads:
        base = figures.figure(chosen.name, workload.name, reference.name, Quantity.RATE)
        if base:
            groups.append((workload, base))
    spread = {
        (workload.name, one.name): [
            value / base for value in figures.values(chosen.name, workload.name, one.name, Quantity.RATE)
        ]
        for workload, base in groups
        for one in contenders
    }
    longest = max((max(values) for values in spread.values() if values), default=1.0)
    scale = (WIDTH - LEFT - RIGHT) / max(longest, 1.0)
    group_height = len(contenders) * BAR + GAP
    height = HEAD + len(groups) * group_height + FOOT
    lines = [text(16, top + 22, chosen.title, size=16, weight="bold"), *legend(contenders, top + 44)]
    bottom = top + HEAD + len(groups) * group_height
    step = tick_step(longest)
    for number in range(int(longest / step) + 1):
        x = LEFT + number * step * scale
        lines.append(f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{top + HEAD - 6}' y2='{bottom}' stroke='#ddd'/>")
        lines.append(text(x, bottom + 14, f"{number * step:g}", size=11, anchor="middle", colour="#555"))
    lines.append(
        text(WIDTH - 16, bottom + 14, f"× {title_of(reference)}", size=11, anchor="end", colour="#555")
    )
    one_x = LEFT + scale
    lines.append(
        f"<line x1='{one_x:.1f}' x2='{one_x:.1f}' y1='{top + HEAD - 6}' y2='{bottom}' stroke='#333' stroke-dasharray='3 3'/>"
    )
    for at, (workload, base) in enumerate(groups):
        y = top + HEAD + at * group_height
        lines.append(
            text(LEFT - 10, y + len(contenders) * BAR / 2 + 4, workload.title, size=12, anchor="end")
        )
        for index, contender in enumerate(contenders):
            rate = figures.figure(chosen.name, workload.name, contender.name, Quantity.RATE)
            values = spread[(workload.name, contender.name)]
            if rate is not None:
                label = rate_text(rate, workload)
                middle = rate / base
                lines += bar(
                    y + index * BAR,
                    middle * scale,
                    min(values) * scale,
                    max(values) * scale,
                    colour(index),
                    label,
                )
    return lines, height


def bar(y: float, length: float, low: float, high: float, fill: str, label: str) -> list[str]:
    """A bar with its whisker and its label."""
    middle = y + (BAR - 2) / 2
    end = LEFT + max(length, high) + 5
    return [
        f"<rect x='{LEFT}' y='{y}' width='{length:.1f}' height='{BAR - 2}' fill='{fill}'/>",
        f"<line x1='{LEFT + low:.1f}' x2='{LEFT + high:.1f}' y1='{middle}' y2='{middle}' stroke='#222'/>",
        text(end, y + BAR - 4, label, size=10),
    ]


def legend(contenders: Sequence[Contender], y: float) -> list[str]:
    """Colours and names in one line."""
    lines, x = [], float(16)
    for index, contender in enumerate(contenders):
        title = title_of(contender)
        lines.append(f"<rect x='{x}' y='{y - 10}' width='11' height='11' fill='{colour(index)}'/>")
        lines.append(text(x + 16, y, title, size=12))
        x += 16 + 7 * len(title) + 20
    return lines


def colour(index: int) -> str:
    """Of the contender at that place."""
    return COLOURS[index % len(COLOURS)]


def tick_step(longest: float) -> float:
    """Between three and eight lines."""
    step = 0.25
    while longest / step > 8:
        step *= 2
    return step


def text(
    x: float,
    y: float,
    content: str,
    size: int,
    anchor: str = "start",
    colour: str = "#111",
    weight: str = "normal",
) -> str:
    """A line of text."""
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' text-anchor='{anchor}' fill='{colour}' "
        f"font-weight='{weight}'>{escape(content)}</text>"
    )
