"""The `vmoe` command: its help, its table of commands, and what they share of flags and errors."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple

HELP = """\
usage: vmoe COMMAND [FLAGS]

commands
  train --config=FILE [--workdir=DIR] [--config.FIELD=VALUE ...]
        [--coordinator=HOST:PORT --num_processes=N --process_id=I | --coordinator=auto]
        Train. Started again in the same workdir, it goes on from the last checkpoint. Given to N
        processes, I from 0 to N - 1, it is one run on the devices of all; auto asks the cluster.
  evaluate --workdir=DIR [--sets=NAMES] [--ood=CONFIG] [CHOICES]
           [--config.FIELD=VALUE ...]
        Evaluate the last checkpoint of a run on its test images. NAMES are some of calibration,
        ood, corruptions, fewshot, routing, ensemble, adversarial; or all. CONFIG has the images
        from outside, for ood.
  predict --workdir=DIR IMAGE... [--top=3] [--out=DIR] [CHOICES]
        Classify image files; show the time and which experts saw which patches, --out draws them.
        Each image by itself, unless --noindependent is given.
  sweep RUN... [--capacities=2,1,0.5,0.25] [--budgets=1,0.5,0.25] [--rounds=5] [--out=DIR]
        Accuracy, multiply-adds and time of runs, and of all together, as capacity and budget fall;
        --out writes JSON and a page. Of CHOICES, --k and --independent.
  export --workdir=DIR --out=FILE [--platforms=cpu,tpu,cuda] [CHOICES]
        Write the model as StableHLO, weights inside, for any batch size: jax alone can run it.
        With --budget=input (or --skip=input) the share is an argument of the program.
  report RUN [--out=FILE] [--rounds=3]
        One HTML page: curves, expert load, experts and classes, dropped patches, capacity curve,
        calibration. Written to RUN/report.html.
  demo [--workdir=DIR] [--config.FIELD=VALUE ...]
        Train a small V-MoE on handwritten digits, evaluate it, print the result.
  upcycle --from=DENSE --config=FILE [--out=DIR] [--config.FIELD=VALUE ...]
        Make a dense checkpoint sparse: a run at DIR to be trained, or FILE.npz with --image=SIZE.
  inspect CKPT
        Print the tree of a checkpoint: released V-MoE, .npz, .safetensors, or a run's workdir.
  convert SRC DST [--part=params] [--names=augreg]
        Copy a checkpoint to the format of DST: .npz, .safetensors, .index (released V-MoE).
  convert SRC DIR --config=FILE [--image=SIZE]
        Make a checkpoint a run at step 0, for evaluate, predict, sweep, export and train.
  plan --model=V-MoE-15B --topology=v5p:8x8x8 --mesh=data=16,expert=32 [--batch=4096] [--image=224]
       [--depth=N] [--nocompile] [--output=FILE.json] [--config.FIELD=VALUE ...]
        What a training step takes on TPUs that are not here: memory, exchange, time, better meshes.
        --config=FILE plans that run instead of a published model; --depth cuts blocks off.
  configs
        List the configs that come with vmoe.

flags
  --config=FILE           a Python file with get_config(), or the name of a config of vmoe
  --config.FIELD=VALUE    change one field, for example --config.optim.lr=1e-3
  --help, --version

CHOICES, made when a trained sparse model is used; nothing is trained again
  --k=N                   experts per token
  --capacity=F[,F...]     capacity factor of all MoE blocks, or one for each
  --bpr, --nobpr          batch priority: the largest gates are served first; or token order
  --dropless              no capacity
  --budget=SHARE          only this share of the tokens is served, largest gates first; dropless
                          unless --capacity is given
  --skip=SHARE            this share of the tokens is dropped, the rest served by batch priority
  --independent           each image by itself: no prediction depends on other images
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, 2 for a user's mistake, 1 for a failed run."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if any(flag in ("--help", "-h", "-help", "help") for flag in arguments[:2]) or not arguments:
        print(HELP, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"vmoe {_version()}")
        return 0
    return _guarded(arguments[0], arguments[1:])


def _guarded(name: str, flags: list[str]) -> int:
    from importlib import import_module

    from moegen.errors import LoweringError, ScheduleError
    from vmoe.commands.given import Given
    from vmoe.errors import RunError, UserError

    try:
        command = _command(name)
        own, overrides = _split(flags)
        values, arguments = _parse(name, command, own)
        run = import_module(f"vmoe.commands.{name}").run
        code = int(run(Given(values, overrides, arguments)))
        sys.stdout.flush()
        return code
    except UserError as error:
        return _complain(error, 2)
    except (LoweringError, ScheduleError) as error:  # what moe.format and moe.lowering ask for
        return _complain(error, 2)
    except RunError as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except BrokenPipeError:  # `vmoe inspect CKPT | head` has read all it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _complain(error: object, code: int) -> int:
    line = " ".join(str(error).replace("\n  fix:", "; fix:").split())
    print(f"vmoe: error: {line}", file=sys.stderr)
    return code


class Command(NamedTuple):
    """What may be given to a command besides --config.FIELD; it is `run` of vmoe.commands.NAME.

    Attributes:
      flags: its own flags, each with a value.
      arguments: names of what is no flag; one that ends in "..." stands for one or more.
      switches: its own flags without one: --NAME or --noNAME, given on as "true" or "false".
    """

    flags: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    switches: tuple[str, ...] = ()


CHOICES = ("k", "capacity", "budget", "skip")
CHOICE_SWITCHES = ("bpr", "dropless", "independent")
"""Flags of the commands that use a trained model; `vmoe.commands.choices` reads them."""

COMMANDS = {
    "train": Command(("config", "workdir", "coordinator", "num_processes", "process_id")),
    "evaluate": Command(("workdir", "sets", "ood", *CHOICES), switches=CHOICE_SWITCHES),
    "predict": Command(("workdir", "top", "out", *CHOICES), ("IMAGE...",), CHOICE_SWITCHES),
    "sweep": Command(
        ("capacities", "budgets", "rounds", "out", *CHOICES), ("RUN...",), CHOICE_SWITCHES
    ),
    "export": Command(("workdir", "out", "platforms", *CHOICES), switches=CHOICE_SWITCHES),
    "report": Command(("out", "rounds"), ("RUN",)),
    "demo": Command(("workdir",)),
    "upcycle": Command(("from", "config", "out", "image")),
    "inspect": Command(arguments=("CKPT",)),
    "convert": Command(("part", "names", "config", "image"), ("SRC", "DST")),
    "plan": Command(
        ("model", "config", "topology", "mesh", "batch", "image", "depth", "output"),
        switches=("compile",),
    ),
    "configs": Command(),
}


def _command(name: str) -> Command:
    import difflib

    from vmoe.errors import UserError

    if name in COMMANDS:
        return COMMANDS[name]
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"there is no command {name}; fix: {hint}use one of {', '.join(COMMANDS)}")


def _split(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tells --config.FIELD overrides, each with its value, from everything else."""
    own: list[str] = []
    overrides: list[str] = []
    target = own
    for item in given:
        if item.startswith("-"):
            target = overrides if item.lstrip("-").startswith(("config.", "noconfig.")) else own
        target.append(item)
        if "=" in item or not item.startswith("-"):
            target = own
    return own, overrides


def _parse(name: str, command: Command, given: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The command's own flags by name, and its arguments."""
    from absl import flags as absl_flags

    from vmoe.errors import UserError

    values = absl_flags.FlagValues()
    for flag in command.flags:
        absl_flags.DEFINE_string(flag, None, "", flag_values=values)
    for switch in command.switches:
        absl_flags.DEFINE_boolean(switch, None, "", flag_values=values)
    values.set_gnu_getopt()
    try:
        arguments = values(["vmoe", *given])[1:]
    except absl_flags.Error as error:
        raise UserError(f"{name}: {error}; see vmoe --help") from None
    _check_arguments(name, command.arguments, arguments)
    found = {f: values[f].value for f in command.flags if values[f].value}
    switched = {f: values[f].value for f in command.switches if values[f].value is not None}
    return found | {f: str(on).lower() for f, on in switched.items()}, arguments


def _check_arguments(name: str, wanted: Sequence[str], given: Sequence[str]) -> None:
    from vmoe.errors import UserError

    if len(given) < len(wanted):
        raise UserError(f"{name}: {wanted[len(given)]} is missing; see vmoe --help")
    endless = bool(wanted) and wanted[-1].endswith("...")
    if len(given) > len(wanted) and not endless:
        raise UserError(f"{name}: {given[len(wanted)]!r} is no flag; see vmoe --help")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("moegen")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
