"""What programs to compile for chips that are not here are made of: shapes, epilogues, operands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

Case = tuple[Callable[..., Any], list[jax.ShapeDtypeStruct]]
"""A function, and what it is called with."""


@dataclass(frozen=True)
class Epilogue:
    """What a kernel does to its product.

    Attributes:
      reads: of each operand whether it has a value per "row" and column, per "expert" and column,
        or per "column".
      results: how many it gives.
      function: of the product and the operands.
    """

    reads: tuple[str, ...]
    results: int
    function: Callable[..., tuple[jax.Array, ...]]

    @property
    def held(self) -> int:
        """Tiles that it reads or makes beside the product."""
        return self.reads.count("row") + self.results - 1


EPILOGUES = {
    "": Epilogue((), 1, lambda acc: (acc,)),
    "gelu": Epilogue((), 1, lambda acc: (jax.nn.gelu(acc),)),
    "kept gelu": Epilogue((), 2, lambda acc: (acc, jax.nn.gelu(acc))),
    "gate": Epilogue(("row",), 1, lambda acc, c0: (acc * jax.nn.silu(c0),)),
    "bias": Epilogue(("expert",), 1, lambda acc, c0: (jax.nn.gelu(acc + c0),)),
    "shared bias": Epilogue(("column",), 1, lambda acc, c0: (jax.nn.gelu(acc + c0),)),
    "scale": Epilogue(("expert",), 1, lambda acc, c0: (acc * c0,)),
}
"""By the name that a case is given."""


@dataclass(frozen=True)
class Shape:
    """A product to compile: the function that makes its case, sizes, and settings of the case."""

    name: str
    product: str
    rows: int
    depth: int
    width: int
    experts: int
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def held(self) -> int:
        """Tiles that its epilogue reads or makes beside the product."""
        return EPILOGUES[dict(self.settings).get("epilogue", "")].held

    def arguments(self, tile: tuple[int, ...]) -> dict[str, Any]:
        """What its case is called with."""
        sizes = {"rows": self.rows, "depth": self.depth, "width": self.width}
        return {**sizes, "experts": self.experts, "tile": tile, **dict(self.settings)}


def fused(
    epilogue: str, rows: int, width: int, experts: int, dtype: str
) -> tuple[dict[str, Any], list[jax.ShapeDtypeStruct]]:
    """What a kernel is told of an epilogue of EPILOGUES, and the operands that it reads."""
    made = EPILOGUES[epilogue]
    of = {"row": (rows, width), "expert": (experts, 1, width), "column": (1, width)}
    settings = {"epilogue": made.function, "dtypes": (dtype,) * made.results}
    return settings, [struct(of[kind], dtype) for kind in made.reads]


def struct(shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
    """An array of a case: its shape and the name of its dtype."""
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
