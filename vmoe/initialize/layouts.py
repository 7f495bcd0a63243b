"""Names that other systems gave to the same weights, as rules to ours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vmoe.errors import UserError
from vmoe.init_config import Rule
from vmoe.initialize.rules import destination
from vmoe.weights.leaf import Leaves


class Layout(NamedTuple):
    """A way to name weights.

    Attributes:
      name: what `vmoe convert --names` calls it.
      mark: the beginning of a path that only it has.
      rules: applied one after the other, each to every path.
    """

    name: str
    mark: str
    rules: tuple[Rule, ...]


OURS = "vmoe"
LAYOUTS = (
    Layout(
        "augreg",
        "Transformer/encoderblock_0/MlpBlock_3/",
        (
            Rule("^Transformer/", "Encoder/"),
            Rule("/MultiHeadDotProductAttention_1/", "/SelfAttention/"),
            Rule("/LayerNorm_2/", "/LayerNorm_1/"),
            Rule("/MlpBlock_3/", "/Mlp/"),
        ),
    ),
)
"""The released V-MoE checkpoints need none: `vmoe.model.init` has their names."""


def layout_of(paths: Iterable[str]) -> Layout | None:
    """The layout of a checkpoint; None if it has our names."""
    paths = list(paths)
    found = (lay for lay in LAYOUTS if any(path.startswith(lay.mark) for path in paths))
    return next(found, None)


def in_our_names(leaves: Leaves) -> Leaves:
    """The same arrays by the names that `vmoe.model.init` gives."""
    layout = layout_of(leaves)
    for rule in layout.rules if layout else ():
        leaves = {destination([rule], path)[0]: leaf for path, leaf in leaves.items()}
    return leaves


def in_names_of(name: str, leaves: Leaves) -> Leaves:
    """The same arrays by the names of a layout, or with OURS by our own.

    Raises:
      UserError: if there is no layout of that name.
    """
    leaves = in_our_names(leaves)
    if name == OURS:
        return leaves
    known = {layout.name: layout for layout in LAYOUTS}
    if name not in known:
        raise UserError(f"there are no names {name!r}; fix: use one of {', '.join([OURS, *known])}")
    layout = known[name]
    for rule in reversed(layout.rules):
        back = Rule(("^" if rule.pattern[0] == "^" else "") + rule.path, rule.pattern.lstrip("^"))
        leaves = {destination([back], path)[0]: leaf for path, leaf in leaves.items()}
    return leaves
