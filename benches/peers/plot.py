"""The plot: one panel per set, a group of bars per workload, a bar per contender, written as SVG by hand.

A bar's length is the rate over that of the set's reference, so that workloads of different units share an axis; its label is
the rate itself, its whisker the slowest and the fastest round.
"""

from collections.abc import Sequence
from html import escape

from figures import Figures, Quantity, median
from measure import SetResult
from report import rate_text, title_of
from sets import Contender
from workloads import Workload

WIDTH = 960
LEFT = 190
RIGHT = 90
BAR = 13
GAP = 14
TITLE = 34
LEGEND_LINE = 18
# Of a letter of the legend, about.
CHARACTER = 7
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
    # Who is left out takes his colour with him.
    colours = {one: COLOURS[index % len(COLOURS)] for index, one in enumerate(chosen.contenders)}
    reference = reference_of(contenders)

    def rates(workload: Workload, contender: Contender) -> list[float]:
        return figures.values(chosen.name, workload.name, contender.name, Quantity.RATE)

    bases = {one: median(rates(one, reference)) for one in chosen.workloads if rates(one, reference)}
    relative = [rate / base for one, base in bases.items() for who in contenders for rate in rates(one, who)]
    longest = max([1.0, *relative])
    scale = (WIDTH - LEFT - RIGHT) / longest
    explained, explained_height = legend({one: colours[one] for one in contenders}, top + TITLE)
    first = top + TITLE + explained_height + GAP
    group_height = len(contenders) * BAR + GAP
    bottom = first + len(bases) * group_height
    lines = [text(16, top + 22, chosen.title, size=16, weight="bold"), *explained]
    lines += axis(first - GAP / 2, bottom, longest, scale, title_of(reference))
    for at, (workload, base) in enumerate(bases.items()):
        y = first + at * group_height
        middle = y + len(contenders) * BAR / 2 + 4
        lines.append(text(LEFT - 10, middle, workload.title, size=12, anchor="end"))
        for index, contender in enumerate(contenders):
            found = rates(workload, contender)
            if found:
                lengths = [rate / base * scale for rate in found]
                lines += bar(y + index * BAR, lengths, colours[contender], rate_text(median(found), workload))
    return lines, bottom + FOOT - top


def axis(top: float, bottom: float, longest: float, scale: float, reference: str) -> list[str]:
    """Lines at even multiples of the reference, which is dashed."""
    step = tick_step(longest)
    lines = []
    for number in range(int(longest / step) + 1):
        multiple = number * step
        x = LEFT + multiple * scale
        stroke = "stroke='#333' stroke-dasharray='3 3'" if multiple == 1 else "stroke='#ddd'"
        lines.append(f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{top}' y2='{bottom}' {stroke}/>")
        lines.append(text(x, bottom + 14, f"{multiple:g}", size=11, anchor="middle", colour="#555"))
    lines.append(text(WIDTH - 16, bottom + 14, f"× {reference}", size=11, anchor="end", colour="#555"))
    return lines


def bar(y: float, lengths: Sequence[float], fill: str, label: str) -> list[str]:
    """A bar as long as the median, with its whisker and its label."""
    middle = y + (BAR - 2) / 2
    low, high = LEFT + min(lengths), LEFT + max(lengths)
    return [
        f"<rect x='{LEFT}' y='{y}' width='{median(lengths):.1f}' height='{BAR - 2}' fill='{fill}'/>",
        f"<line x1='{low:.1f}' x2='{high:.1f}' y1='{middle}' y2='{middle}' stroke='#222'/>",
        text(high + 5, y + BAR - 4, label, size=10),
    ]


def legend(colours: dict[Contender, str], top: int) -> tuple[list[str], int]:
    """Colours and names, in as many lines as they take; and the height of those."""
    lines, x, y = [], 16, top
    for contender, colour in colours.items():
        title = title_of(contender)
        width = 16 + CHARACTER * len(title) + 20
        if x + width > WIDTH:
            x, y = 16, y + LEGEND_LINE
        lines.append(f"<rect x='{x}' y='{y}' width='11' height='11' fill='{colour}'/>")
        lines.append(text(x + 16, y + 10, title, size=12))
        x += width
    return lines, y + LEGEND_LINE - top


def tick_step(longest: float) -> float:
    """A power of two that has at most eight lines."""
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
