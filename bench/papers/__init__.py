"""The papers' claims at small scale, on Fashion-MNIST: paired seeds, exact tests, nulls included.

What is run is fixed in `bench.papers.protocol`, and what each claim compares in its own module.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import ModuleType

from bench import allocator, suite
from bench.papers import arms, bpr, dense, e3, page, routers, upcycling
from bench.papers.jobs import Job, run_all
from bench.papers.page import Section
from bench.papers.protocol import QUICK, Settings
from bench.papers.store import Store

CLAIMS: dict[str, ModuleType] = {
    "bpr": bpr,
    "dense": dense,
    "routers": routers,
    "e3": e3,
    "upcycling": upcycling,
}
DATA = "/usr/share/datasets/fashion-mnist"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this suite's flags to its subcommand."""
    known = tuple(CLAIMS)
    parser.add_argument("--quick", action="store_true", help="tiny runs: not a result")
    parser.add_argument(
        "--claims", type=partial(suite.chosen, "claims", known), default=known,
        metavar="NAME,...", help=f"some of {', '.join(known)} (default: all), in this order",
    )  # fmt: skip
    parser.add_argument(
        "--data", default=DATA, metavar="FOLDER",
        help=f"the IDX files of Fashion-MNIST (default: {DATA}, Debian's dataset-fashion-mnist)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER",
        help="results, one file each; the same command goes on from those that are there",
    )  # fmt: skip
    parser.add_argument(
        "--page", type=Path, default=None, help="also write the results into this Markdown page"
    )
    parser.add_argument(
        "--learning-rates", type=rates, default=Settings.learning_rates, metavar="R,...",
        help="to choose from; others than the protocol's are an experiment of their own",
    )  # fmt: skip
    parser.add_argument("--report-only", action="store_true", help="run nothing, only report")


def rates(text: str) -> tuple[float, ...]:
    """The numbers of "0.001,0.003".

    Raises:
      ValueError: if one is no number above 0.
    """
    found = tuple(map(float, text.split(",")))
    if not all(0 < rate < math.inf for rate in found):
        raise ValueError(text)
    return found


def run(arguments: argparse.Namespace) -> int:
    """Run what is missing, print the results; returns the exit code.

    Raises:
      ValueError: for flags that do not fit, before anything is run.
    """
    settings = QUICK if arguments.quick else Settings()
    settings = replace(settings, learning_rates=arguments.learning_rates)
    claims = {name: CLAIMS[name] for name in arguments.claims}
    data = arms.load(arguments.data, settings)
    store = Store(arguments.out, asdict(settings))
    if arguments.page is not None:
        page.check(arguments.page)
    allocator.keep_freed_memory()
    finished = arguments.report_only or run_all(missing(claims, store, data, settings))
    sections = {name: section(claim, store, data, settings) for name, claim in claims.items()}
    print(page.text(sections))
    if arguments.page is not None:
        page.write(arguments.page, sections)
    return 0 if finished else suite.INTERRUPTED


def missing(
    claims: Mapping[str, ModuleType], store: Store, data: arms.Data, settings: Settings
) -> list[Job]:
    """What has still to be run, each job once, in the order of the claims."""
    found: dict[str, Job] = {}
    for claim in claims.values():
        for job in claim.jobs(store, data, settings):
            found.setdefault(job.name, job)
    return list(found.values())


def section(claim: ModuleType, store: Store, data: arms.Data, settings: Settings) -> Section:
    """The results of a claim, as far as they are there."""
    return Section(
        title=(claim.__doc__ or "").splitlines()[0].rstrip("."),
        table=claim.table(store, data, settings),
        comparisons=claim.comparisons(store, data, settings),
        missing=sum(1 for _ in claim.jobs(store, data, settings)),
        curves=claim.curves(store, settings) if hasattr(claim, "curves") else {},
    )
