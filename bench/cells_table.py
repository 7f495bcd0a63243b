"""The layer suite as one Markdown table: floor, formats and `auto`, both dtypes and directions."""

from collections.abc import Mapping, Sequence
from itertools import product

from bench.report import Row
from bench.workloads import CAPACITIES, DIRECTIONS, DTYPES, ROUTINGS, WORKLOADS

SHOWN = ("onehot", "slots", "sorted", "auto", "native")
"""Schedules in the order of a cell, those that were measured."""
FEW_ROWS = ("B", "D")
"""Workloads of 25 and 49 rows per expert."""


def target(workload: str, direction: str) -> float:
    """The ratio that dropless `auto` is to stay below."""
    if direction == "forward":
        return 1.25 if workload in FEW_ROWS else 1.10
    return 1.35 if workload in FEW_ROWS else 1.15


def markdown(results: Mapping[str, Sequence[Row]]) -> str:
    """One line per workload, capacity and routing; what was not measured stays empty.

    A cell is "floor / auto", all relative to the dense MLP, with what else was measured between or,
    if that is `native`, behind; what meets the target is in bold.
    """
    columns = list(product(DTYPES, DIRECTIONS))
    heads = [f"{dtype}, {direction}" for dtype, direction in columns]
    lines = [
        f"| workload | capacity | routing | {' | '.join(heads)} |",
        "|---" * (3 + len(columns)) + "|",
    ]
    for name, capacity, routing in product(WORKLOADS, CAPACITIES, ROUTINGS):
        keys = ["/".join((name, dtype, routing, capacity, way)) for dtype, way in columns]
        if not any(key in results for key in keys):
            continue
        cells = [_cell(results.get(key, ()), name, key.split("/")[-1]) for key in keys]
        lines.append(f"| {name} | {capacity} | {routing} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(rows: Sequence[Row], workload: str, direction: str) -> str:
    ratios = {row.name: row.ratio for row in rows}
    if "auto" not in ratios:
        return ""
    made = [ratios[name] for name in SHOWN if name in ratios]
    most = target(workload, direction)
    shown = [f"**{ratio:.2f}**" if ratio <= most else f"{ratio:.2f}" for ratio in made]
    return " / ".join([f"{ratios.get('floor', float('nan')):.2f}", *shown])
