"""Grouped products on TPUs of rows that are still where their tokens are: the gather is inside.

A tile's rows are copied one by one from the tokens in HBM into VMEM while the tile before is
computed, and stay there for all columns and all experts that share the tile. So the grid is tiles
outermost, then blocks of columns, then the tile's visits; weights are read once per visit. Where
rows are bf16, two of them share a register's words: the pair is copied and the half is kept.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from moegen.kernels.grouped_dot.pallas_tpu import compute_visit, operand_block
from moegen.kernels.grouped_dot.visits import tile_visits
from moegen.kernels.grouped_dot.vmem import gathered_bytes


def gathered_dot_tpu(
    x: jax.Array,
    source: jax.Array,
    weights: jax.Array,
    sizes: jax.Array,
    *extra: jax.Array,
    choices: int,
    tile: tuple[int, ...],
    transposed: bool = False,
    epilogue: Callable[..., tuple[jax.Array, ...]] | None = None,
    dtypes: tuple[jax.typing.DTypeLike, ...] = (),
    interpret: Any = False,
) -> Any:
    """Tokens [..., D] at the choices i32[N], times the weights [E, D, F] of their expert: [N, F].

    Args:
      x: bf16, an even number of tokens, or f32.
      source: for each row, sorted by expert, the number of its choice; no token's past the last
        row of an expert.
      weights: of the tokens' dtype; [E, F, D] if `transposed`.
      sizes: i32[E], rows of each expert.
      *extra: what the epilogue reads beside the product, as in `grouped_dot_tpu`.
      choices: of a token; its own have consecutive numbers.
      tile: as in `grouped_dot_tpu`, as are the other settings.
      transposed: whether the weights are [E, F, D].
      epilogue: elementwise, of the product in f32 and of `extra`.
      dtypes: of the epilogue's results.
      interpret: how to run where there is no TPU, as in `pl.pallas_call`.

    Returns:
      One array, or a tuple of one per dtype if there is an epilogue; rows of no expert give 0.
    """
    flat = x.reshape(-1, x.shape[-1])
    token = jnp.clip(jax.lax.div(source, choices), 0, flat.shape[0] - 1)
    made = gathered_of_visits(
        tile_visits(sizes, source.shape[0], tile[1]), flat, token, weights, *extra, tile=tile,
        transposed=transposed, epilogue=epilogue, dtypes=dtypes or (x.dtype,), interpret=interpret,
    )  # fmt: skip
    return made if dtypes else made[0]


def gathered_of_visits(
    visits: tuple[Any, ...],
    x: jax.Array,
    token: jax.Array,
    weights: jax.Array,
    *extra: jax.Array,
    tile: tuple[int, ...],
    transposed: bool,
    epilogue: Callable[..., tuple[jax.Array, ...]] | None,
    dtypes: tuple[jax.typing.DTypeLike, ...],
    whole: bool = False,
    interpret: Any = False,
) -> tuple[jax.Array, ...]:
    """The kernel's call for visits that are known; `whole`: each owns all rows of its tile."""
    (wide, *heights), (*lists, count) = tile, visits
    experts, tall, (rows,), depth = weights.shape[0], heights[0], token.shape, x.shape[1]
    width = weights.shape[1 if transposed else 2]
    columns, shape = pl.cdiv(width, wide), (wide, depth) if transposed else (depth, wide)
    at = functools.partial(step_of, columns=columns, whole=whole)

    def weights_at(i: Any, j: Any, *lists: Any) -> tuple[Any, ...]:
        visit, column, _ = at(i, j, lists)
        owner = jnp.minimum(lists[1][visit], experts - 1)
        return (owner, column, 0) if transposed else (owner, 0, column)

    def block(x: Any) -> pl.BlockSpec:
        def place(i: Any, j: Any, *lists: Any) -> tuple[Any, ...]:
            visit, column, _ = at(i, j, lists)
            return lists[0][visit], jnp.minimum(lists[1][visit], experts - 1), column

        return operand_block(x, tall, wide, place)

    results = [jax.ShapeDtypeStruct((rows, width), dtype) for dtype in dtypes]
    moved = [x.dtype, *(e.dtype for e in extra), *(jnp.dtype(dtype) for dtype in dtypes)]
    vmem = gathered_bytes(tall, depth, wide, moved, transposed)
    packed = x.dtype.itemsize == 2
    raw = pltpu.VMEM((2, tall, depth), jnp.uint32 if packed else x.dtype)
    unpacked = [pltpu.VMEM((tall, depth), x.dtype), pltpu.VMEM((2, tall, 128), jnp.int32)]
    made = pl.pallas_call(
        functools.partial(
            gathered_kernel, columns=columns, results=len(results), experts=experts,
            heights=tuple(heights), transposed=transposed, epilogue=epilogue, whole=whole,
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=7,
            grid=(count, columns),
            in_specs=[
                pl.BlockSpec(memory_space=pl.ANY),
                pl.BlockSpec((None, *shape), weights_at),
                *map(block, extra),
            ],
            out_specs=list(map(block, results)),
            scratch_shapes=[raw, pltpu.SemaphoreType.DMA((2,)), *(unpacked if packed else [])],
        ),
        out_shape=results,
        # Numbers of tokens are within bounds; to check that takes as long as to start a copy.
        compiler_params=pltpu.CompilerParams(
            vmem_limit_bytes=vmem + 2**21, disable_bounds_checks=True
        ),
        interpret=interpret,
        name="gathered_dot_tpu",
    )(*lists, jnp.pad(token, (0, -rows % tall)), x, weights, *extra)  # fmt: skip
    return tuple(made)


def step_of(i: Any, j: Any, lists: Any, columns: int, whole: bool) -> tuple[Any, Any, Any]:
    """The visit and the block of columns of a step, and the step's number within its tile.

    `lists` are those of `tile_visits`; a tile's visits follow each other for each block of columns.
    """
    if whole:
        return i, j, j
    lead, many = lists[4][i], lists[5][i]
    step = (i - lead) * columns + j
    return lead + jax.lax.rem(step, many), jax.lax.div(step, many), step


def gathered_kernel(
    tiles: Any,
    owners: Any,
    first: Any,
    past: Any,
    lead: Any,
    many: Any,
    token: Any,
    x: Any,
    weights: Any,
    *refs: Any,
    columns: int,
    results: int,
    experts: int,
    heights: tuple[int, ...],
    whole: bool,
    **settings: Any,
) -> None:
    """One step: at the first of a tile, its rows are awaited and the next tile's are asked for."""
    i, j = pl.program_id(0), pl.program_id(1)
    lists = (tiles, owners, first, past, lead, many)
    visit, _, step = step_of(i, j, lists, columns, whole)
    packed = x.dtype.itemsize == 2
    cut = len(refs) - (4 if packed else 2)
    given, (buffers, arrived, *unpacked) = refs[:cut], refs[cut:]
    tile, count = tiles[visit], pl.num_programs(0)
    after = visit + (1 if whole else many[i])
    following = jnp.minimum(after, count - 1)

    @pl.when(step == 0)
    def turn() -> None:
        begin = functools.partial(fetch_rows, token, x, buffers, arrived, *unpacked[1:])
        pl.when((i == 0) & (owners[visit] < experts))(functools.partial(begin, tile))
        more = (after < count) & (owners[following] < experts)
        pl.when(more)(functools.partial(begin, tile + 1))

        @pl.when(owners[visit] < experts)
        def arrive() -> None:
            mine = buffers.at[tile & 1]
            pltpu.make_async_copy(mine, mine, arrived.at[tile & 1]).wait()
            if packed:
                rows, shifts = unpacked
                words = buffers[tile & 1] << shifts[tile & 1, :, :1].astype(jnp.uint32)
                kept = words & jnp.uint32(0xFFFF0000)
                rows[...] = jax.lax.bitcast_convert_type(kept, jnp.float32).astype(rows.dtype)

    rows = unpacked[0] if packed else buffers.at[tile & 1]
    own = (owners[visit], first[visit], past[visit])
    extra, outs = given[:-results], given[-results:]
    compute_visit(
        *own, rows, weights, extra, outs, experts=experts, heights=heights, whole=whole, **settings
    )


def fetch_rows(token: Any, x: Any, buffers: Any, arrived: Any, *rest: Any) -> None:
    """Starts a tile's copies: of its tokens, or of the pairs of tokens that they are of.

    Of a pair, `shifts` says by how many bits the token's half is to go up.
    """
    *shifts, tile = rest
    slot, tall = tile & 1, buffers.shape[1]

    def one(r: Any) -> None:
        at = token[tile * tall + r]
        if shifts:
            shifts[0][slot, pl.ds(r, 1), :] = jnp.full((1, 128), 16 - 16 * (at & 1), jnp.int32)
        row = x.bitcast(jnp.uint32).at[pl.ds(at >> 1, 1)] if shifts else x.at[pl.ds(at, 1)]
        pltpu.make_async_copy(row, buffers.at[slot, pl.ds(r, 1)], arrived.at[slot]).start()

    def eight(i: Any, _: None) -> None:
        for r in range(8):
            one(8 * i + r)

    jax.lax.fori_loop(0, tall // 8, eight, None)
