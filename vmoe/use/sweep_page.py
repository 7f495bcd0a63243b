"""A sweep as text for the terminal, and drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vmoe.drawing.charts import Line, line_chart, percent
from vmoe.drawing.page import Section, page, table
from vmoe.use.sweep import Row

HEAD = ("", "accuracy", "loss", "dropped", "MMAC/image", "ms/image")


def text_table(rows: Sequence[Row]) -> Iterator[str]:
    """A line per row, grouped by model."""
    wide = max(len(row.choices) for row in rows) + 2
    model = None
    for row in rows:
        if row.model != model:
            model = row.model
            yield f"\n{model}"
            yield "  " + HEAD[0].ljust(wide) + "".join(name.rjust(12) for name in HEAD[1:])
        yield "  " + row.choices.ljust(wide) + "".join(cell.rjust(12) for cell in _cells(row))


def sweep_page(title: str, told: str, rows: Sequence[Row]) -> str:
    """One self-contained HTML page."""
    return page(title, told, {}, [*sections(rows)])


def sections(rows: Sequence[Row]) -> Iterator[Section]:
    """The curves, then the figures."""
    yield Section(
        "Accuracy, work and time",
        "Solid: batch priority, the largest gates are served first. Dashed: token order. "
        "Multiply-adds are counted in the program, empty places of the buffers too; budgets are "
        "dropless, so that their work follows the tokens served.",
        tuple(charts(rows)),
    )
    models = dict.fromkeys(row.model for row in rows)
    for model in models:
        own = [row for row in rows if row.model == model]
        yield Section(
            f"Figures: {model}", "", (table(HEAD, ([row.choices, *_cells(row)] for row in own)),)
        )


def charts(rows: Sequence[Row]) -> Iterator[str]:
    """Accuracy against capacity, against multiply-adds, and against time."""
    capacity = [line for line in _lines(rows, "capacity") if "budget" not in line.name]
    if capacity:
        yield line_chart("accuracy", "capacity factor", capacity, show=percent, log_x=True)
    yield line_chart(
        "accuracy", "million multiply-adds per image", _lines(rows, "macs"), show=percent
    )
    yield line_chart("accuracy", "milliseconds per image", _lines(rows, "time"), show=percent)


def _lines(rows: Sequence[Row], x: str) -> list[Line]:
    """A line per model and way of saving."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        way = "budget" if row.budget is not None else _order(row.batch_priority)
        at = {"macs": row.macs / 1e6, "time": row.milliseconds}.get(x, row.capacity)
        if at is not None:
            found.setdefault((row.model, way), []).append((at, row.accuracy))
    several = len({model for model, _ in found}) > 1
    return [
        Line(f"{model} {way}" if several else way, points, way == "token order", marks=True)
        for (model, way), points in found.items()
    ]


def _order(batch_priority: bool | None) -> str:
    return {None: "as trained", False: "token order", True: "batch priority"}[batch_priority]


def _cells(row: Row) -> list[str]:
    return [
        f"{row.accuracy:.2%}",
        f"{row.loss:.4f}",
        "" if row.dropped is None else f"{row.dropped:.2%}",
        f"{row.macs / 1e6:.2f}",
        f"{row.milliseconds:.3f}",
    ]
