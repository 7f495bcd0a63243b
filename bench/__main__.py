"""`python -m bench`: lists the suites; `python -m bench SUITE [flags]` runs one."""

import argparse
import sys
from collections.abc import Sequence

from bench import budget, compare, hbm, kernels, layer, memory, papers, scaling, train_step

SUITES = {
    "budget": budget,
    "compare": compare,
    "hbm": hbm,
    "kernels": kernels,
    "layer": layer,
    "memory": memory,
    "papers": papers,
    "scaling": scaling,
    "train_step": train_step,
}


def parser() -> argparse.ArgumentParser:
    """The command line: one subcommand per suite, described by the suite's own first line."""
    top = argparse.ArgumentParser(prog="python -m bench", description="Benchmarks of moegen.")
    subcommands = top.add_subparsers(dest="suite", metavar="SUITE")
    for name, suite in SUITES.items():
        summary = (suite.__doc__ or "").splitlines()[0]
        suite.add_arguments(subcommands.add_parser(name, help=summary, description=summary))
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite that `argv` names and return the exit code; without one, list the suites.

    2 is a user's mistake, 1 a regression against --baseline, 130 a run that Ctrl-C ended.
    """
    top = parser()
    arguments = top.parse_args(argv)
    if arguments.suite is None:
        top.print_help()
        return 0
    try:
        return SUITES[arguments.suite].run(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
