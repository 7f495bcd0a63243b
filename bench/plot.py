"""Draws a suite's result as one HTML page that needs nothing else: bars of ratios, and tables."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from bench.report import Row, git_state, machine, table
from moegen.tune.whole import write_text

LABELS, BARS, LINE = 170, 620, 26
"""Pixels: room for the names, for the longest bar, and for one bar with its gap."""
MOST = 4.0
"""Where bars end at the latest: a ratio beyond it is cut off, its number says how far it goes."""

STYLE = """
body { font: 14px system-ui, sans-serif; margin: 2em auto; max-width: 900px; color: #222; }
h2 { font-size: 1em; margin: 2em 0 .4em; }
svg { display: block; } text { font-size: 13px; fill: #222; }
pre { background: #f6f6f6; padding: .6em; overflow-x: auto; font-size: 12px; }
.bar { fill: #8fb3d9; } .yardstick { fill: #bbb; } .quartiles { stroke: #234; stroke-width: 2; }
.one { stroke: #c33; stroke-dasharray: 4 3; }
"""


def write_html(
    path: Path, suite: str, settings: Mapping[str, object], results: Mapping[str, Sequence[Row]]
) -> None:
    """Write the page whole or not at all; raises OSError if that is not possible."""
    write_text(path, page(suite, settings, results))


def page(suite: str, settings: Mapping[str, object], results: Mapping[str, Sequence[Row]]) -> str:
    """The page: what was run where, then a chart and the table of every cell."""
    facts = {**machine(), "git": git_state(), **settings}
    told = ", ".join(f"{name} {value}" for name, value in facts.items())
    cells = "\n".join(
        f"<h2>{escape(key)}</h2>\n{chart(rows)}\n"
        f"<details><summary>table</summary><pre>{escape(table(key, rows))}</pre></details>"
        for key, rows in results.items()
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f"<title>bench {escape(suite)}</title><style>{STYLE}</style></head><body>\n"
        f"<h1>bench {escape(suite)}</h1>\n<p>{escape(told)}</p>\n"
        "<p>Time relative to the yardstick (grey; dashed line at 1), median of pairs; the dark "
        f"line spans the quartiles. Shorter is faster.</p>\n{cells}\n</body></html>\n"
    )


def chart(rows: Sequence[Row]) -> str:
    """One bar per row, as SVG."""
    longest = min(MOST, max(1.0, *(row.ratio_high for row in rows)) * 1.05) if rows else 1.0
    scale = BARS / longest
    height = LINE * len(rows)
    bars = "\n".join(_bar(row, LINE * n, scale, first=n == 0) for n, row in enumerate(rows))
    one = LABELS + scale
    return (
        f'<svg width="{LABELS + BARS + 90}" height="{height}" role="img">\n{bars}\n'
        f'<line class="one" x1="{one:.1f}" x2="{one:.1f}" y1="0" y2="{height}"/></svg>'
    )


def _bar(row: Row, top: int, scale: float, *, first: bool) -> str:
    kind = "yardstick" if first else "bar"
    low, middle, high = (
        min(ratio * scale, BARS) for ratio in (row.ratio_low, row.ratio, row.ratio_high)
    )
    centre, text = top + 11, top + 16
    return (
        f'<text x="{LABELS - 8}" y="{text}" text-anchor="end">{escape(row.name)}</text>'
        f'<rect class="{kind}" x="{LABELS}" y="{top + 2}" width="{middle:.1f}" height="18"/>'
        f'<line class="quartiles" x1="{LABELS + low:.1f}" x2="{LABELS + high:.1f}"'
        f' y1="{centre}" y2="{centre}"/>'
        f'<text x="{LABELS + max(middle, high) + 6:.1f}" y="{text}">{row.ratio:.2f}</text>'
    )
