"""Where a run's first weights come from: a checkpoint, and rules from its names to the model's."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from typing import Any

from vmoe.errors import UserError
from vmoe.model_config import MoEConfig

TRANSFORMS = ("", "reshape", "squeeze", "stack", "expand_tile", "zoom", "resize_positions")


@dataclass(frozen=True)
class Rule:
    r"""What becomes of the arrays of a checkpoint whose path holds a pattern.

    Attributes:
      pattern: a regular expression, searched for in paths such as "Encoder/encoder_norm/scale".
      path: what replaces it, with \1 for its first group; "" drops the array.
      transform: what is done to the array; one of TRANSFORMS.
      arguments: of the transform: (axis, count) for expand_tile, (axis,) for squeeze and stack.
    """

    pattern: str
    path: str
    transform: str = ""
    arguments: tuple[Any, ...] = ()


DEFAULTS = (
    Rule("pos_embedding$", "pos_embedding", "resize_positions"),
    Rule("Moe/Router/dense/kernel$", "Moe/Router/dense/kernel", "reshape"),
)
"""Positions for another image size, and an ensemble's routers from [D, E] to [D, M, E / M].

Arrays that fit are left as they are.
"""


@dataclass(frozen=True)
class InitFromConfig:
    """The checkpoint that a run starts from.

    Attributes:
      path: any checkpoint that `vmoe inspect` prints; "": the weights are drawn.
      rules: for each array of the checkpoint the first whose pattern is found counts; an array
        without one keeps its name. DEFAULTS come after all of them.
      fresh: patterns of the model's weights that are drawn all the same, such as ("^head/",) for
        other classes. All others must be in the checkpoint, and fit.
      upcycle: whether the checkpoint is of a dense model whose MLPs become every expert of the
        MoE blocks; routers are drawn.
      moments: whether the optimiser starts from the moments of the checkpoint, which must be a
        run's with the same optimiser; the learning rate starts anew.
    """

    path: str = ""
    rules: tuple[Rule, ...] = ()
    fresh: tuple[str, ...] = ()
    upcycle: bool = False
    moments: bool = False

    def validate(self) -> InitFromConfig:
        """Returns the config itself once every rule holds.

        Raises:
          UserError: names the rule, the mismatch and the fix.
        """
        for pattern in (*(rule.pattern for rule in self.rules), *self.fresh):
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(
                    f"init_from: the pattern {pattern!r} is no regular expression ({error}); "
                    "fix: escape what is meant literally"
                ) from None
        for rule in self.rules:
            try:
                re.sub(rule.pattern, rule.path, "")
            except (re.error, IndexError) as error:
                raise UserError(
                    f"init_from: {rule.path!r} cannot replace {rule.pattern!r} ({error}); "
                    "fix: a group in the pattern for each one named"
                ) from None
            if rule.transform not in TRANSFORMS:
                close = difflib.get_close_matches(rule.transform, TRANSFORMS, n=1)
                hint = f'did you mean "{close[0]}"? ' if close else ""
                known = ", ".join(name for name in TRANSFORMS if name)
                raise UserError(
                    f'init_from: there is no transform "{rule.transform}"; fix: {hint}'
                    f"use one of {known}"
                )
        return self


def for_model(init: InitFromConfig, moe: MoEConfig | None) -> InitFromConfig:
    """The config with upcycling written out: a rule for the MLPs of the MoE blocks, drawn routers.

    Raises:
      UserError: if a dense model is to be upcycled.

    Source: arXiv:2212.05055, section 2.1.
    """
    if not init.upcycle:
        return init
    if moe is None:
        raise UserError("there are no MoE blocks to upcycle to; fix: a config with model.moe")
    blocks = "|".join(map(str, sorted(moe.layers)))
    experts = Rule(
        rf"(encoderblock_(?:{blocks}))/Mlp/", r"\1/Moe/Mlp/", "expand_tile", (0, moe.num_experts)
    )
    return replace(init, rules=(*init.rules, experts), fresh=(*init.fresh, "/Moe/Router/"))
