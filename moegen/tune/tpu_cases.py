"""Programs to compile for TPUs: each kernel for a shape, as a function and what it is called with.

With `visits`, a kernel runs that many whole tiles, a number the compiler's estimate can see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from moegen.kernels.exchanged_dot_tpu import exchanged_dot_tpu, exchanged_tile
from moegen.kernels.grouped_dot.pallas_tpu import dot_of_visits, grouped_dot_tpu
from moegen.kernels.grouped_dot.pallas_tpu_gather import gathered_dot_tpu, gathered_of_visits
from moegen.kernels.grouped_dot.pallas_tpu_outer import grouped_outer_tpu, outer_of_visits
from moegen.kernels.grouped_dot.visits import row_visits
from moegen.tune.cases import Case, fused, struct


def dot(
    rows: int,
    depth: int,
    width: int,
    experts: int,
    tile: Sequence[int],
    dtype: str = "bfloat16",
    transposed: bool = False,
    epilogue: str = "",
    visits: int | None = None,
    stored: str = "",
) -> Case:
    """The grouped product: forward, or by transposed weights; `stored`: their dtype, if another."""
    weights = (experts, width, depth) if transposed else (experts, depth, width)
    told, extra = fused(epilogue, rows, width, experts, dtype)
    settings = {"tile": tuple(tile), "transposed": transposed, **told}
    shapes = [struct((rows, depth), dtype), struct(weights, stored or dtype)]

    def call(x: Any, w: Any, sizes: Any, *extra: Any) -> Any:
        return grouped_dot_tpu(x, w, sizes, *extra, **settings)

    def fixed(x: Any, w: Any, a: Any, b: Any, c: Any, d: Any, *extra: Any) -> Any:
        return dot_of_visits((a, b, c, d, visits), x, w, *extra, **settings, whole=True)

    if visits is None:
        return call, [*shapes, struct((experts,), "int32"), *extra]
    return fixed, [*shapes, *[struct((visits,), "int32")] * 4, *extra]


def gathered(
    rows: int,
    depth: int,
    width: int,
    experts: int,
    tile: Sequence[int],
    dtype: str = "bfloat16",
    epilogue: str = "",
    visits: int | None = None,
) -> Case:
    """The product of rows that the kernel gathers: two of each token."""
    told, extra = fused(epilogue, rows, width, experts, dtype)
    settings = {"tile": tuple(tile), "transposed": False, **told}
    shapes = [struct((rows // 2, depth), dtype), struct((rows,), "int32")]
    shapes.append(struct((experts, depth, width), dtype))

    def call(x: Any, source: Any, w: Any, sizes: Any, *extra: Any) -> Any:
        return gathered_dot_tpu(x, source, w, sizes, *extra, choices=2, **settings)

    def fixed(x: Any, token: Any, w: Any, *given: Any) -> Any:
        lists, extra = given[:6], given[6:]
        return gathered_of_visits((*lists, visits), x, token, w, *extra, **settings, whole=True)

    if visits is None:
        return call, [*shapes, struct((experts,), "int32"), *extra]
    return fixed, [*shapes, *[struct((visits,), "int32")] * 6, *extra]


def outer(
    rows: int,
    depth: int,
    width: int,
    experts: int,
    tile: Sequence[int],
    dtype: str = "bfloat16",
    visits: int | None = None,
) -> Case:
    """The gradient of the weights."""
    shapes = [struct((rows, depth), dtype), struct((rows, width), dtype)]

    def call(a: Any, b: Any, sizes: Any) -> Any:
        return grouped_outer_tpu(a, b, sizes, tile=tuple(tile))

    def fixed(a: Any, b: Any, *lists: Any) -> Any:
        return outer_of_visits((*lists, visits), a, b, experts, tile=tuple(tile), whole=True)

    if visits is None:
        return call, [*shapes, struct((experts,), "int32")]
    return fixed, [*shapes, *[struct((visits,), "int32")] * 4]


def exchanged(
    groups: int,
    slots: int,
    depth: int,
    width: int,
    experts: int,
    devices: Sequence[Any],
    dtype: str = "bfloat16",
    transposed: bool = False,
    vmem: int = 16 * 2**20,
) -> Case:
    """The product that exchanges its slots, on all devices of the slice; sizes are of them all."""
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.Mesh(np.array(devices), ("expert",), axis_types=auto)
    rows, weights = groups // len(devices) * slots, (depth, width)
    tile = exchanged_tile(rows, depth, width, dtype, vmem)

    def call(x: Any, w: Any) -> Any:
        return exchanged_dot_tpu(x, w, "expert", tile=tile, transposed=transposed)

    def placed(shape: tuple[int, ...], place: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, place))

    places = (P(None, "expert"), P("expert"))
    run = jax.shard_map(call, mesh=mesh, in_specs=places, out_specs=P("expert"), check_vma=False)
    shapes = [(experts, groups, slots, depth), (experts, *weights[:: -1 if transposed else 1])]
    return run, [placed(*pair) for pair in zip(shapes, places, strict=True)]


def steps(
    kind: str,
    rows: int,
    depth: int,
    width: int,
    experts: int,
    tile: Sequence[int],
    visits: int,
    dtypes: Sequence[str],
    reads: int = 0,
    transposed: bool = False,
) -> Case:
    """A `moegen.tune.product.Product` for a fixed number of visits.

    Its epilogue is stood for by one that adds all it reads and stores the sum as every result.
    """
    lists = [struct((visits,), "int32")] * 4
    if kind == "outer":
        return outer(rows, depth, width, experts, tile, dtypes[0], visits)
    dtype, read, made = dtypes[0], dtypes[1 : 1 + reads], dtypes[1 + reads :]
    weights = (experts, width, depth) if transposed else (experts, depth, width)

    def epilogue(acc: jax.Array, *extra: jax.Array) -> tuple[jax.Array, ...]:
        return (sum(extra, acc),) * len(made)

    def call(x: Any, w: Any, a: Any, b: Any, c: Any, d: Any, *extra: Any) -> Any:
        return dot_of_visits(
            (a, b, c, d, visits), x, w, *extra, tile=tuple(tile), transposed=transposed,
            epilogue=epilogue, dtypes=tuple(made), whole=True,
        )  # fmt: skip

    extra = [struct((rows, width), given) for given in read]
    return call, [struct((rows, depth), dtype), struct(weights, dtype), *lists, *extra]


def schedule(rows: int, experts: int, tall: int) -> Case:
    """What is computed from the sizes before a kernel can start."""
    return lambda sizes: row_visits(sizes, rows, tall), [struct((experts,), "int32")]


def dense(rows: int, depth: int, width: int, dtype: str = "bfloat16") -> Case:
    """XLA's own product of the rows with one weight matrix."""
    return jnp.dot, [struct((rows, depth), dtype), struct((depth, width), dtype)]
