"""What all suites share: flags, one table per cell as it comes, Ctrl-C, files, the baseline."""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench import allocator, baseline
from bench.handover import handover_ns
from bench.picture import check_pillow, write_png
from bench.plot import write_html
from bench.report import Row, check_folder, table, write_json
from bench.timing import check_rounds

INTERRUPTED = 130
"""The exit code of a run that Ctrl-C ended, as a shell gives it: what is done was kept."""

Measure = Callable[[int], list[Row]]
"""From the number of rounds to the rows of a cell, the yardstick first."""


def add_arguments(parser: argparse.ArgumentParser, quick: str) -> None:
    """Add the flags that every suite has; `quick` says what --quick runs."""
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--rounds", type=int, default=None, help="timed pairs (default 9; quick 3)")
    parser.add_argument("--json", type=Path, default=None, help="also write the result here")
    parser.add_argument("--html", type=Path, default=None, help="also draw the result here")
    parser.add_argument("--png", type=Path, default=None, help="the same as a picture (Pillow)")
    parser.add_argument("--baseline", type=Path, default=None, help="an earlier result to compare")
    parser.add_argument(
        "--allocator", choices=("keep", "default"), default="keep",
        help="keep: freed memory stays with the process, for both sides (default)",
    )  # fmt: skip


def add_lists(parser: argparse.ArgumentParser, **lists: tuple[str, ...]) -> None:
    """Add a flag per list, --NAME=A,B: some of its names, all of them by default."""
    for name, known in lists.items():
        parser.add_argument(
            f"--{name}", type=partial(chosen, name, known), default=known,
            metavar="NAME,...", help=f"some of {', '.join(known)} (default: all)",
        )  # fmt: skip


def chosen(flag: str, known: tuple[str, ...], text: str) -> tuple[str, ...]:
    """The names in "a,b", each of which must be known."""
    names = tuple(text.split(","))
    for name in names:
        if name not in known:
            fix = f"use some of {','.join(known)}"
            raise argparse.ArgumentTypeError(f"--{flag}: {name!r} is unknown; fix: {fix}")
    return names


def run(suite: str, arguments: argparse.Namespace, todo: Mapping[str, Measure]) -> int:
    """Measure the cells and write what was asked for, also when Ctrl-C ends it early.

    Returns 0, 1 if a baseline shows a regression, or INTERRUPTED.

    Raises:
      ValueError: for flags that do not fit, before anything is measured.
      OSError: if a file cannot be written.
    """
    rounds = arguments.rounds if arguments.rounds is not None else (3 if arguments.quick else 9)
    check_rounds(rounds)
    for flag in ("json", "html", "png"):
        check_folder(flag, getattr(arguments, flag))
    check_pillow(arguments.png)
    earlier = baseline.read(arguments.baseline)
    kept = arguments.allocator == "keep" and allocator.keep_freed_memory()
    results = measure_all(todo, rounds)
    settings = {"rounds": rounds, "allocator": "keep" if kept else "default"}
    for path, write in ((arguments.json, write_json), (arguments.html, write_html)):
        if path is not None:
            write(path, suite, settings, results)
            print(f"wrote {path}")
    if arguments.png is not None:
        write_png(arguments.png, results)
        print(f"wrote {arguments.png}")
    regressed = baseline.report(earlier, results) if earlier else 0
    return regressed if len(results) == len(todo) else INTERRUPTED


def measure_all(todo: Mapping[str, Measure], rounds: int) -> dict[str, list[Row]]:
    """The rows of every cell, printed as they come; Ctrl-C ends it with those that are done."""
    results: dict[str, list[Row]] = {}
    try:
        for number, (key, measure) in enumerate(todo.items(), 1):
            print(f"[{number}/{len(todo)}] {key}", file=sys.stderr, flush=True)
            before = handover_ns()
            results[key] = _noted(measure(rounds), before, handover_ns())
            print(table(key, results[key]), flush=True)
    except KeyboardInterrupt:
        print(f"interrupted: {len(results)} of {len(todo)} cells are done", file=sys.stderr)
    return results


def _noted(rows: list[Row], before: float | None, after: float | None) -> list[Row]:
    """The rows, with how far apart the cores were in the note of the yardstick."""
    if before is None or after is None:
        return rows
    first, *others = rows
    note = f"{first.note}, cores {before:.1f}..{after:.1f} ns apart".lstrip(", ")
    return [replace(first, note=note), *others]
