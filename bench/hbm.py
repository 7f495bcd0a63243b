"""The memory that a whole layer takes on a TPU that is not here, in MB; nothing runs.

One dropless layer from its router to its combine, 8 experts, 2 choices, in bf16, compiled ahead of
time by the libtpu of `make tpu`. `temporary` is what the program has of HBM beside its arguments
and results, without what XLA places in VMEM, up to 128 MB on a v5e. `peak` is the compiler's own
figure of the most that is held at a time, arguments and results taken off; the forward's goal is
for it: 1.15 times (up-projection activations + outputs). `kept` is what the forward hands to the
backward where these are two programs, parameters left out.
"""

import argparse
import sys

from bench import suite
from bench.tpu_programs import kept_bytes
from moegen.errors import MoegenError
from moegen.tune.compiler import Job
from moegen.tune.tpu_compiler import TOPOLOGIES, compile_for

PROGRAMS: dict[str, dict[str, str]] = {
    "gathered inside": {"gather": "inside"},
    "auto": {},
    "gathered inside, least": {"gather": "inside", "save": "least"},
    "least": {"save": "least"},
    "XLA's ragged dot": {"kernel": "ragged_dot"},
}
"""By name, the schedule; "least" is what is kept for the backward."""
PARTS = ("forward", "training")
SLACK = 1.15


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this suite's flags to its subcommand."""
    parser.add_argument("--target", default="tpu-v5e", metavar="tpu-v5e", help="compiled for it")
    parser.add_argument("--tokens", type=int, default=4096, help="a multiple of 4 (default 4096)")
    parser.add_argument("--width", type=int, default=1024, help="of a token (default 1024)")
    parser.add_argument("--hidden", type=int, default=4096, help="of an expert (default 4096)")
    suite.add_lists(parser, parts=PARTS)


def run(arguments: argparse.Namespace) -> int:
    """Compile the programs, a line each as they come; returns the exit code.

    Raises:
      ValueError: for sizes that are none, an unknown target, or without libtpu.
    """
    sizes = {name: getattr(arguments, name) for name in ("tokens", "width", "hidden")}
    for name, size in sizes.items():
        if size < 1 or (name == "tokens" and size % 4):
            raise ValueError(f"--{name}={size}; fix: 1 or more, tokens a multiple of 4")
    target = arguments.target.replace("-", "_")
    print(f"goal, forward: {goal(**sizes) / 1e6:.1f} MB at the peak\n")
    print(
        f"{'part':<10}{'program':<26}{'arguments':>10}{'results':>9}{'temporary':>11}{'peak':>8}{'kernels':>9}{'kept':>8}"
    )
    jobs = [
        Job(
            f"{part:<10}{name:<26}", "bench.tpu_programs:moe_layer",
            {"target": target, "part": part, "schedule": schedule, **sizes},
        )
        for part in arguments.parts
        for name, schedule in PROGRAMS.items()
        if part != "forward" or "save" not in schedule
    ]  # fmt: skip
    try:
        if target not in TOPOLOGIES:
            raise ValueError(f"--target={arguments.target}; fix: one of {', '.join(TOPOLOGIES)}")
        for number, result in enumerate(compile_for(target, jobs, estimate=False), 1):
            print(f"[{number}/{len(jobs)}]", file=sys.stderr, flush=True)
            if result.error:
                raise ValueError(f"{result.name.strip()}: {result.error}")
            given, made, held = (n / 1e6 for n in result.hbm)
            peak = result.peak / 1e6 - given - made
            row = f"{given:>10.1f}{made:>9.1f}{held:>11.1f}{peak:>8.1f}{result.kernels:>9}"
            print(f"{result.name}{row}{kept(jobs[number - 1])}", flush=True)
    except MoegenError as error:
        raise ValueError(str(error)) from None
    except KeyboardInterrupt:
        return suite.INTERRUPTED
    return 0


def kept(job: Job) -> str:
    """The column of what the forward hands to the backward, for programs that have one."""
    given = dict(job.arguments)
    return f"{kept_bytes(**given) / 1e6:>8.1f}" if given.pop("part") == "training" else ""


def goal(tokens: int, width: int, hidden: int) -> float:
    """Bytes: two rows of activations per token and its output, bf16, with the slack."""
    return SLACK * 2 * (2 * tokens * hidden + tokens * width)
