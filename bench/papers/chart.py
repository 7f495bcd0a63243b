"""Draws as SVG: paired differences, a dot per seed, with mean and interval; and curves."""

from collections.abc import Callable, Mapping, Sequence
from html import escape

from bench.papers.scores import Comparison
from bench.papers.statistics import Interval, interval

LABELS, WIDTH, LINE, MARGIN = 260, 420, 26, 24
"""Pixels: room for names, for the axis, for one comparison, and around the axis."""
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#222}.seed{fill:#8fb3d9}.mean{fill:#234}"
    ".interval{stroke:#234;stroke-width:2}.zero{stroke:#c33;stroke-dasharray:4 3}"
    "rect{fill:#fff}polyline{fill:none;stroke-width:2}"
)
COLOURS = ("#8a8a8a", "#2b6cb0", "#d9822b")
Curve = Sequence[tuple[float, float]]


def differences(comparisons: Sequence[Comparison], title: str) -> str:
    """One line for each comparison, all of one score, so on one axis; zero is the dashed line."""
    intervals = [interval(c.differences) for c in comparisons]
    ends = [0.0, *(d for c in comparisons for d in c.differences)]
    ends += [end for i in intervals for end in (i.low, i.high)]
    low, high = min(ends), max(ends)
    scale = (WIDTH - 2 * MARGIN) / ((high - low) or 1.0)

    def at(value: float) -> float:
        return LABELS + MARGIN + (value - low) * scale

    height = LINE * (len(comparisons) + 2)
    bottom = LINE * (len(comparisons) + 1)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LABELS + WIDTH}" height="{height}" '
        f'role="img"><title>{escape(title)}</title><style>{STYLE}</style>',
        f'<rect width="{LABELS + WIDTH}" height="{height}"/>',
        f'<line class="zero" x1="{at(0):.1f}" x2="{at(0):.1f}" y1="{LINE}" y2="{bottom}"/>',
        f'<text x="8" y="17">{escape(title)}</text>',
        *(
            f'<text x="{at(value):.1f}" y="{bottom + 17}" text-anchor="middle">{value:.3g}</text>'
            for value in dict.fromkeys((low, 0.0, high))
            if value == 0.0 or abs(at(value) - at(0.0)) > 30
        ),
    ]
    for number, (one, bounds) in enumerate(zip(comparisons, intervals, strict=True), 1):
        lines += _line(one, bounds, number * LINE + LINE / 2, at)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _line(
    one: Comparison, bounds: Interval, middle: float, at: Callable[[float], float]
) -> list[str]:
    seeds = (f'cx="{at(d):.1f}" cy="{middle}" r="3.5"' for d in one.differences)
    return [
        f'<text x="{LABELS - 8}" y="{middle + 4}" text-anchor="end">{escape(one.name)}</text>',
        *(f'<circle class="seed" {place}/>' for place in seeds),
        f'<line class="interval" x1="{at(bounds.low):.1f}" x2="{at(bounds.high):.1f}" '
        f'y1="{middle}" y2="{middle}"/>',
        f'<circle class="mean" cx="{at(one.mean):.1f}" cy="{middle}" r="4.5"/>',
    ]


def curves(lines: Mapping[str, Curve], title: str) -> str:
    """One line for each name, over the places of the curves' common x, which are evenly apart."""
    places = [x for x, _ in next(iter(lines.values()))]
    values = [y for line in lines.values() for _, y in line]
    low, high = min(values), max(values)
    height, bottom = 280, 240
    step = (WIDTH - 2 * MARGIN) / max(1, len(places) - 1)

    def at(number: int, y: float) -> tuple[float, float]:
        share = (y - low) / ((high - low) or 1.0)
        return LABELS / 2 + MARGIN + number * step, bottom - share * (bottom - 3 * LINE)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LABELS + WIDTH}" height="{height}" '
        f'role="img"><title>{escape(title)}</title><style>{STYLE}</style>',
        f'<rect width="{LABELS + WIDTH}" height="{height}"/>',
        f'<text x="8" y="17">{escape(title)}</text>',
        *(
            f'<text x="{at(n, low)[0]:.1f}" y="{bottom + 22}" text-anchor="middle">{x:g}</text>'
            for n, x in enumerate(places)
        ),
        *(
            f'<text x="{LABELS / 2}" y="{at(0, y)[1] + 4:.1f}" text-anchor="end">{y:.2f}</text>'
            for y in (low, high)
        ),
    ]
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        places_of_line = (at(n, y) for n, (_, y) in enumerate(line))
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places_of_line)
        parts += [
            f'<polyline points="{points}" stroke="{colour}"/>',
            f'<text x="{LABELS / 2 + MARGIN + 90 * number}" y="{2 * LINE - 6}" '
            f'style="fill:{colour}">{escape(name)}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"
