"""Grouped products on NVIDIA GPUs of any kind, by Pallas Triton; JAX has deprecated that backend.

For GPUs without wgmma, an A100 say. A program makes one tile of the result. Tiles of rows start at
an expert's own first row, so that none is shared by two, and only an expert's last one is in part
idle; rows and widths may be any number, as loads and stores are masked. Rows of f32 are multiplied
as TF32, which is JAX's default precision on GPUs.


A stretch of a dim is written (start, length, end): what lies at the end or past it is masked.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt


def grouped_dot_triton(
    rows: jax.Array,
    weights: jax.Array,
    sizes: jax.Array,
    *extra: jax.Array,
    tile: tuple[int, int, int, int],
    transposed: bool = False,
    epilogue: Callable[..., tuple[jax.Array, ...]] | None = None,
    dtypes: tuple[jax.typing.DTypeLike, ...] = (),
    interpret: bool = False,
) -> Any:
    """Rows [N, D] times the weights [E, D, F] of their expert: [N, F]; rows of none give 0.

    Args:
      rows: bf16, f16 or f32, sorted by expert.
      weights: of the same dtype; [E, F, D] if `transposed`.
      sizes: i32[E], rows of each expert.
      *extra: what the epilogue reads beside the product: [N, F], [N, 1], [1, F] or [1, 1] each,
        with the experts in front if it has a value for each: [E, 1, F].
      tile: height and width of a tile of the result, depth of a slice, slices in flight; powers
        of two, 16 or more.
      transposed: whether the weights are [E, F, D].
      epilogue: elementwise, of the product in f32 and of `extra`; gives a result per dtype.
      dtypes: of the epilogue's results.
      interpret: whether to run where there is no GPU.

    Returns:
      One array, or a tuple of one per dtype if there is an epilogue.
    """
    tall, wide, deep, _ = tile
    (count, depth), experts = rows.shape, weights.shape[0]
    width = weights.shape[1 if transposed else 2]
    columns, lists = pl.cdiv(width, wide), row_tiles(sizes, count, tall)

    def grouped_dot(
        owners: Any, firsts: Any, ends: Any, rows: Any, weights: Any, *refs: Any
    ) -> None:
        visit, column = jnp.divmod(pl.program_id(0), columns)
        owner, outs = owners[visit], refs[len(extra) :]
        mine = (firsts[visit], tall, ends[visit])
        across = (column * wide, wide, width)

        @pl.when(owner < experts)
        def _() -> None:
            def step(k: Any, acc: jax.Array) -> jax.Array:
                along = (k * deep, deep, depth)
                places = (across, along) if transposed else (along, across)
                b = masked_load(weights, (owner,), places)
                a = masked_load(rows, (), (mine, along))
                return acc + product_of_tiles(a, b, (1, 1 if transposed else 0))

            acc = jax.lax.fori_loop(0, pl.cdiv(depth, deep), step, jnp.zeros((tall, wide)))
            if epilogue is None:
                return masked_store(outs, (acc,), (mine, across))
            read = [operand_tile(ref, owner, (mine, across)) for ref in refs[: len(extra)]]
            return masked_store(outs, epilogue(acc, *read), (mine, across))

        @pl.when(owner >= experts)
        def _() -> None:
            masked_store(outs, [jnp.zeros((tall, wide))] * len(outs), (mine, across))

    made = pl.pallas_call(
        grouped_dot,
        out_shape=[jax.ShapeDtypeStruct((count, width), d) for d in dtypes or (rows.dtype,)],
        grid=(lists[0].shape[0] * columns,),
        compiler_params=triton_parameters(tile),
        interpret=interpret,
    )(*lists, rows, weights, *extra)
    return tuple(made) if dtypes else made[0]


def grouped_outer_triton(
    a: jax.Array,
    b: jax.Array,
    sizes: jax.Array,
    *,
    tile: tuple[int, int, int, int],
    interpret: bool = False,
) -> jax.Array:
    """Per expert, the sum over its rows of a[N, D] times b[N, F]: [E, D, F].

    Args:
      a, b: bf16, f16 or f32, sorted by expert.
      sizes: i32[E], rows of each expert.
      tile: height and width of a tile of the result, rows of a slice, slices in flight; powers
        of two, 16 or more.
      interpret: whether to run where there is no GPU.
    """
    tall, wide, deep, _ = tile
    experts, height, width = sizes.shape[0], a.shape[1], b.shape[1]
    lines, columns = pl.cdiv(height, tall), pl.cdiv(width, wide)
    ends = jnp.cumsum(sizes)

    def grouped_outer(firsts: Any, ends: Any, a: Any, b: Any, out: Any) -> None:
        expert, part = jnp.divmod(pl.program_id(0), lines * columns)
        line, column = jnp.divmod(part, columns)
        first, end = firsts[expert], ends[expert]
        down, across = (line * tall, tall, height), (column * wide, wide, width)

        def step(k: Any, acc: jax.Array) -> jax.Array:
            along = (first + k * deep, deep, end)
            return acc + product_of_tiles(
                masked_load(a, (), (along, down)), masked_load(b, (), (along, across)), (0, 0)
            )

        slices = pl.cdiv(end - first, deep)
        acc = jax.lax.fori_loop(0, slices, step, jnp.zeros((tall, wide)))
        masked_store((out,), (acc,), (down, across), (expert,))

    made: jax.Array = pl.pallas_call(
        grouped_outer,
        out_shape=jax.ShapeDtypeStruct((experts, height, width), a.dtype),
        grid=(experts * lines * columns,),
        compiler_params=triton_parameters(tile),
        interpret=interpret,
    )((ends - sizes).astype(jnp.int32), ends.astype(jnp.int32), a, b)
    return made


def row_tiles(sizes: jax.Array, count: int, tall: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of every tile of rows: its expert, its first row, and where the expert's rows end.

    Rows of no expert are those of one more. There are as many tiles as any sizes need; those left
    over start where their rows end.
    """
    experts = sizes.shape[0]
    owned = jnp.append(sizes, count - jnp.sum(sizes))
    tiles = pl.cdiv(owned, tall)
    rows_end, tiles_end = jnp.cumsum(owned), jnp.cumsum(tiles)
    most = (count + (experts + 1) * (tall - 1)) // tall
    number = jnp.arange(most)
    owner = jnp.minimum(jnp.searchsorted(tiles_end, number, side="right"), experts)
    end = rows_end[owner]
    first = end - owned[owner] + (number - tiles_end[owner] + tiles[owner]) * tall
    return owner.astype(jnp.int32), first.astype(jnp.int32), end.astype(jnp.int32)


def product_of_tiles(a: jax.Array, b: jax.Array, over: tuple[int, int]) -> jax.Array:
    """The product of two tiles, summed over a dim of each, in f32."""
    dims = (((over[0],), (over[1],)), ((), ()))
    made: jax.Array = jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)
    return made


def masked_load(ref: Any, lead: tuple[Any, ...], stretches: Any) -> jax.Array:
    """A tile, by two stretches of the dims behind `lead`; zeros where it is masked."""
    place = (*lead, *(pl.ds(start, length) for start, length, _ in stretches))
    tile: jax.Array = plt.load(ref.at[place], mask=tile_mask(stretches), other=0)
    return tile


def masked_store(outs: Any, values: Any, stretches: Any, lead: tuple[Any, ...] = ()) -> None:
    """Writes a tile of each result, by two stretches of the dims behind `lead`."""
    place = (*lead, *(pl.ds(start, length) for start, length, _ in stretches))
    for out, value in zip(outs, values, strict=True):
        plt.store(out.at[place], value.astype(out.dtype), mask=tile_mask(stretches))


def tile_mask(stretches: Any) -> jax.Array:
    """Which elements of a tile are inside of both stretches."""
    down, across = (start + jnp.arange(length) < end for start, length, end in stretches)
    mask: jax.Array = down[:, None] & across[None, :]
    return mask


def operand_tile(ref: Any, owner: Any, stretches: Any) -> jax.Array:
    """What the epilogue reads of an operand, in f32; a dim of 1 stays one."""
    lead = (owner,) if len(ref.shape) == 3 else ()
    dims = zip(stretches, ref.shape[-2:], strict=True)
    tile = masked_load(ref, lead, [(0, 1, 1) if size == 1 else span for span, size in dims])
    return tile.astype(jnp.float32)


def triton_parameters(tile: tuple[int, int, int, int]) -> Any:
    """Warps of a program, so that a thread has 64 values of its tile; slices in flight."""
    return plt.CompilerParams(num_warps=8 if tile[0] * tile[1] > 8192 else 4, num_stages=tile[3])
