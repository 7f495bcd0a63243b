"""The rules' engine: which arrays of a checkpoint make which weight, and that nothing is left."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vmoe.errors import UserError
from vmoe.init_config import DEFAULTS, Rule
from vmoe.initialize.transforms import transformed
from vmoe.weights.leaf import Leaves


class Use(NamedTuple):
    """How one weight is made.

    Attributes:
      rule: the rule that leads to it; None: it keeps its name.
      sources: paths in the checkpoint; more than one for "stack" only.
    """

    rule: Rule | None
    sources: list[str]


def destination(rules: Sequence[Rule], path: str) -> tuple[str, Rule | None]:
    """The new path of an array, "" if it is dropped, and the first rule found in its path."""
    for rule in rules:
        match = re.search(rule.pattern, path)
        if match:
            new = path[: match.start()] + match.expand(rule.path) + path[match.end() :]
            return (new if rule.path else ""), rule
    return path, None


def plan(rules: Sequence[Rule], paths: Iterable[str]) -> dict[str, Use]:
    """For each new path how it is made from the checkpoint's paths.

    Raises:
      UserError: if two arrays would become one weight.
    """
    uses: dict[str, Use] = {}
    for path in sorted(paths, key=natural):
        new, rule = destination([*rules, *DEFAULTS], path)
        if not new:
            continue
        use = uses.setdefault(new, Use(rule, []))
        stacked = rule is not None and rule.transform == "stack" and use.rule == rule
        if use.sources and not stacked:
            raise UserError(
                f"{use.sources[0]} and {path} would both become {new}; fix: a rule that drops one"
            )
        use.sources.append(path)
    return uses


def initialised(
    rules: Sequence[Rule],
    fresh: Sequence[str],
    source: Leaves,
    target: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """The weights that the checkpoint gives, by their paths in the model, in the model's dtypes.

    Args:
      rules: see `vmoe.init_config.InitFromConfig`.
      fresh: patterns of the weights that are not taken from the checkpoint.
      source: the checkpoint; read one array at a time.
      target: the model's weights as they were drawn.

    Raises:
      UserError: for a weight that the checkpoint has not, an array that the model has no place
        for, and shapes that differ.
    """
    uses = {path: use for path, use in plan(rules, source).items() if not _found(fresh, path)}
    wanted = [path for path in target if not _found(fresh, path)]
    _check_complete(uses, wanted)
    return {path: _made(path, uses[path], source, target[path]) for path in wanted}


def natural(text: str) -> list[tuple[bool, int, str]]:
    """A sorting key with numbers in their order: layer_2 before layer_10."""
    parts = re.split(r"([0-9]+)", text)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _made(path: str, use: Use, source: Leaves, target: np.ndarray) -> np.ndarray:
    arrays = [source[name].read() for name in use.sources]
    if use.rule is None:
        (made,) = arrays
    else:
        made = transformed(use.rule.transform, arrays, target, use.rule.arguments)
    if made.shape != target.shape:
        raise UserError(_misfit(path, made.shape, target.shape))
    if (made.dtype.kind in "biu") != (target.dtype.kind in "biu") or made.dtype.kind == "c":
        raise UserError(f"{path} is {made.dtype}, the model's {target.dtype}; fix: a rule drops it")
    return made.astype(target.dtype, copy=False)


def _misfit(path: str, made: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    what = f"{path} is {list(made)} in the checkpoint and {list(wanted)} in the model"
    if path.startswith("head/") and made[:-1] == wanted[:-1]:
        return (
            f"{what}: it has {made[-1]} classes, and model.num_classes={wanted[-1]}; "
            "fix: --config.init_from.fresh=\"('^head/',)\" draws the head anew"
        )
    return f"{what}; fix: a rule in init_from.rules that makes it fit, or init_from.fresh draws it"


def _check_complete(uses: Mapping[str, Use], wanted: Sequence[str]) -> None:
    missing = [path for path in wanted if path not in uses]
    if missing:
        raise UserError(
            f"the checkpoint has no {_some(missing)}; fix: a rule in init_from.rules that makes "
            "it, or a pattern in init_from.fresh that draws it"
        )
    known = set(wanted)
    left = [source for path, use in uses.items() if path not in known for source in use.sources]
    if left:
        raise UserError(
            f"the model has no place for {_some(left)} of the checkpoint; fix: a rule in "
            'init_from.rules that renames it, or with path="" drops it'
        )


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 2} more" if len(paths) > 2 else ""
    return ", ".join(paths[:2]) + more


def _found(patterns: Iterable[str], path: str) -> bool:
    return any(re.search(pattern, path) for pattern in patterns)
