"""The workloads: five layers, balanced or skewed routing, and their arrays."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, dict[str, jax.Array]]

ROUTINGS = ("balanced", "zipf")
CAPACITIES = ("dropless", "1.05")
DTYPES = ("float32", "bfloat16")
DIRECTIONS = ("forward", "training")


@dataclass(frozen=True)
class Workload:
    """Sizes of a layer: tokens of one group, width, hidden width, experts, choices of a token."""

    tokens: int
    width: int
    hidden: int
    experts: int
    k: int


WORKLOADS = {
    "A": Workload(400, 512, 2048, 8, 2),
    "B": Workload(400, 512, 2048, 32, 2),
    "C": Workload(1568, 384, 1536, 8, 1),
    "D": Workload(788, 768, 3072, 32, 2),
    "E": Workload(6272, 192, 768, 16, 2),
}
QUICK = Workload(64, 32, 64, 4, 2)


@dataclass(frozen=True)
class Cell:
    """One thing to measure: a workload and how it is run."""

    name: str
    workload: Workload
    dtype: str = "float32"
    routing: str = "balanced"
    capacity: str = "dropless"
    direction: str = "forward"

    @property
    def key(self) -> str:
        """Names the cell in results, such as "A/float32/zipf/dropless/training"."""
        return "/".join((self.name, self.dtype, self.routing, self.capacity, self.direction))


def cells(
    workloads: dict[str, Workload],
    dtypes: tuple[str, ...] = DTYPES,
    routings: tuple[str, ...] = ROUTINGS,
    capacities: tuple[str, ...] = CAPACITIES,
    directions: tuple[str, ...] = DIRECTIONS,
) -> Iterator[Cell]:
    """Every combination, workload by workload."""
    for (name, workload), *rest in product(
        workloads.items(), dtypes, routings, capacities, directions
    ):
        yield Cell(name, workload, *rest)


def inputs(cell: Cell) -> tuple[Params, jax.Array]:
    """Parameters, and tokens x[1, S, D] that the router sends as the cell's routing says.

    The router's weights are the identity on the first E features, and those features of a token
    are its scores, so that the loads are known: equal ones, or in proportion to 1 / rank. The
    router computes in float32. D must be at least E.
    """
    load = cell.workload
    e, d, f = load.experts, load.width, load.hidden
    keys = jax.random.split(jax.random.key(0), 3)
    dtype = jnp.dtype(cell.dtype)
    params = {
        "router": {"w": jnp.eye(d, e)},
        "expert": {
            "w1": (jax.random.normal(keys[0], (e, d, f)) / d**0.5).astype(dtype),
            "b1": jnp.zeros((e, f), dtype),
            "w2": (jax.random.normal(keys[1], (e, f, d)) / f**0.5).astype(dtype),
            "b2": jnp.zeros((e, d), dtype),
        },
    }
    x = jax.random.normal(keys[2], (1, load.tokens, d))
    return params, x.at[0, :, :e].set(scores(load, cell.routing)).astype(dtype)


def scores(load: Workload, routing: str) -> np.ndarray:
    """Router scores f32[S, E] whose k largest make the loads balanced, or Zipf-distributed."""
    if routing == "balanced":
        found = np.zeros((load.tokens, load.experts), np.float32)
        token = np.arange(load.tokens)
        for choice in range(load.k):
            found[token, (token * load.k + choice) % load.experts] = 3 - choice
        return found
    rank = np.arange(1, load.experts + 1)
    share = 1 / rank / np.sum(1 / rank)
    # The k largest of log p + Gumbel noise are k draws from p without replacement.
    noise = np.random.default_rng(0).gumbel(size=(load.tokens, load.experts))
    return (np.log(share) + noise).astype(np.float32)
