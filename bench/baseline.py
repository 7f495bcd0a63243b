"""Compares a result with an earlier one by the ratios that both took to their own yardstick."""

import json
from pathlib import Path
from typing import Any

from bench.report import Row

SLOWER = 1.10
"""A ratio this many times the earlier one is a regression, if the quartiles are apart too."""


def read(path: Path | None) -> dict[str, list[dict[str, Any]]]:
    """The results of an earlier run's JSON; {} for None.

    Raises ValueError, with the file's name, if it is no result of `python -m bench`.
    """
    if path is None:
        return {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
        for rows in results.values():
            for row in rows:
                float(row["ratio"]), float(row["ratio_high"]), str(row["name"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"--baseline: {path} is no result of python -m bench; fix: give a file of --json"
        ) from error
    return results  # type: ignore[no-any-return]


def regressions(
    earlier: dict[str, list[dict[str, Any]]], results: dict[str, list[Row]]
) -> list[str]:
    """A line for each row that is slower than in the earlier result, beyond both quartiles."""
    found = []
    for key, rows in results.items():
        before = {row["name"]: row for row in earlier.get(key, ())}
        for row in rows:
            old = before.get(row.name)
            if old and row.ratio > SLOWER * old["ratio"] and row.ratio_low > old["ratio_high"]:
                found.append(f"{key} {row.name}: ratio {old['ratio']:.2f} -> {row.ratio:.2f}")
    return found


def report(earlier: dict[str, list[dict[str, Any]]], results: dict[str, list[Row]]) -> int:
    """Prints the regressions; returns 1 if there are any."""
    shared = sum(key in earlier for key in results)
    found = regressions(earlier, results)
    for line in found:
        print(f"slower: {line}")
    print(f"{len(found)} regressions in the {shared} cells that both results have")
    return 1 if found else 0
