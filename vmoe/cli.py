"""The `vmoe` command: train, evaluate, demo, configs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

HELP = """\
usage: vmoe COMMAND [FLAGS]

commands
  train --config=FILE [--workdir=DIR] [--config.FIELD=VALUE ...]
        Train. Started again in the same workdir, it goes on from the last checkpoint.
  evaluate --workdir=DIR [--config.FIELD=VALUE ...]
        Evaluate the last checkpoint of a run on its test images.
  demo [--workdir=DIR] [--config.FIELD=VALUE ...]
        Train a small V-MoE on handwritten digits, evaluate it, print the result.
  configs
        List the configs that come with vmoe.

flags
  --config=FILE           a Python file with get_config(), or the name of a config of vmoe
  --config.FIELD=VALUE    change one field, for example --config.optim.lr=1e-3
  --help, --version
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
    from vmoe.errors import RunError, UserError

    try:
        command = _command(name)
        own, overrides = _split(flags)
        return command(_own_flags(name, own), overrides)
    except UserError as error:
        return _complain(error, 2)
    except RunError as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)


def _complain(error: object, code: int) -> int:
    print(f"vmoe: error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _train(own: dict[str, str], overrides: list[str]) -> int:
    from vmoe.errors import UserError
    from vmoe.overrides import load

    if "config" not in own:
        raise UserError("train needs a config; fix: --config=FILE, for example --config=demo")
    config = load(own["config"], _with_workdir(own, overrides))
    _quiet()
    from vmoe.train import train

    stopped_by = train(config).stopped_by
    return 128 + stopped_by if stopped_by else 0


def _evaluate(own: dict[str, str], overrides: list[str]) -> int:
    from pathlib import Path

    from vmoe.errors import UserError
    from vmoe.overrides import with_overrides
    from vmoe.workdir import read_config

    if "workdir" not in own:
        raise UserError("evaluate needs a workdir; fix: --workdir=DIR")
    trained = read_config(Path(own["workdir"]))
    config = with_overrides(trained, _with_workdir(own, overrides)).validate()
    _quiet()
    from vmoe.demo import evaluate_checkpoint

    evaluate_checkpoint(config)
    return 0


def _demo(own: dict[str, str], overrides: list[str]) -> int:
    import time

    from vmoe.overrides import load

    own.setdefault("workdir", time.strftime("runs/demo-%Y%m%d-%H%M%S"))
    given = [flag for flag in overrides if flag.startswith("--config.workdir")]
    config = load("demo", overrides if given else _with_workdir(own, overrides))
    _quiet()
    from vmoe.demo import demo

    return demo(config)


def _configs(own: dict[str, str], overrides: list[str]) -> int:
    import ast

    from vmoe.overrides import CONFIGS

    for file in sorted(CONFIGS.glob("[a-z]*.py")):
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        print(f"{file.stem:16} {text.splitlines()[0]}")
    return 0


COMMANDS: dict[str, tuple[Callable[[dict[str, str], list[str]], int], tuple[str, ...]]] = {
    "train": (_train, ("config", "workdir")),
    "evaluate": (_evaluate, ("workdir",)),
    "demo": (_demo, ("workdir",)),
    "configs": (_configs, ()),
}
"""Each command's function, and its flags besides --config.FIELD."""


def _command(name: str) -> Callable[[dict[str, str], list[str]], int]:
    import difflib

    from vmoe.errors import UserError

    if name in COMMANDS:
        return COMMANDS[name][0]
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"there is no command {name}; fix: {hint}use one of {', '.join(COMMANDS)}")


def _split(flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tells a command's own flags from --config.FIELD overrides, each with its value."""
    own: list[str] = []
    overrides: list[str] = []
    target = own
    for flag in flags:
        if flag.startswith("-"):
            target = overrides if flag.lstrip("-").startswith(("config.", "noconfig.")) else own
        target.append(flag)
    return own, overrides


def _own_flags(command: str, given: Sequence[str]) -> dict[str, str]:
    from absl import flags as absl_flags

    from vmoe.errors import UserError

    values = absl_flags.FlagValues()
    for name in COMMANDS[command][1]:
        absl_flags.DEFINE_string(name, None, "", flag_values=values)
    try:
        rest = values(["vmoe", *given])[1:]
    except absl_flags.Error as error:
        raise UserError(f"{command}: {error}; see vmoe --help") from None
    if rest:
        raise UserError(f"{command}: {rest[0]!r} is no flag; see vmoe --help")
    return {name: values[name].value for name in COMMANDS[command][1] if values[name].value}


def _with_workdir(own: dict[str, str], overrides: list[str]) -> list[str]:
    return [*overrides, f"--config.workdir={own['workdir']}"] if "workdir" in own else overrides


def _quiet() -> None:
    """Keeps the libraries' notes about their own workings out of the output."""
    from absl import logging

    logging.set_verbosity(logging.ERROR)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("moegen")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
