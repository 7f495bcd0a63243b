"""bench/cells_table.py: one line per layer, bold where the target is met."""

from bench.cells_table import markdown, target
from bench.report import Row


def rows(**ratios):
    return [Row(name, r, r, r, r, 0.0, None) for name, r in ratios.items()]


def test_cells_stand_in_their_line_and_column():
    table = markdown(
        {
            "A/float32/zipf/dropless/training": rows(dense=1.0, floor=1.04, auto=1.154),
            "A/bfloat16/zipf/dropless/forward": rows(dense=1.0, floor=1.02, auto=1.1, native=1.2),
            "B/float32/balanced/1.05/forward": rows(dense=1.0, floor=1.2),
            "B/float32/zipf/1.05/forward": rows(dense=1.0, floor=1.2, auto=1.3, sorted=2.0),
        }
    )
    head, _, *lines = table.splitlines()
    assert head.split(" | ")[3:] == [
        "float32, forward", "float32, training", "bfloat16, forward", "bfloat16, training |",
    ]  # fmt: skip
    assert lines == [
        "| A | dropless | zipf |  | 1.04 / 1.15 | 1.02 / **1.10** / 1.20 |  |",
        "| B | 1.05 | balanced |  |  |  |  |",
        "| B | 1.05 | zipf | 1.20 / 2.00 / 1.30 |  |  |  |",
    ]


def test_few_rows_have_the_wider_targets():
    assert [target(name, "forward") for name in "AB"] == [1.10, 1.25]
    assert [target(name, "training") for name in "ED"] == [1.15, 1.35]
