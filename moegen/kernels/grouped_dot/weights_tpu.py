"""Blocks of experts' weights on their way into VMEM, some experts ahead of the one computed.

Pallas's own pipeline asks for one block ahead: while an expert of few rows is computed, little of
the next one's weights comes. And it computes nothing before the first block is there as a whole;
here that block comes in chunks of columns.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from moegen.kernels.grouped_dot.vmem import weights_held


def weights_scratch(shape: tuple[int, int], chunks: int, stored: Any, computed: Any) -> list[Any]:
    """The blocks as they are stored, semaphores and the state; one block of the rows' dtype."""
    held = weights_held()
    widened = [] if stored == computed else [pltpu.VMEM(shape, computed)]
    return [
        pltpu.VMEM((held, *shape), stored), pltpu.SemaphoreType.DMA((held,)),
        pltpu.SemaphoreType.DMA((chunks,)), pltpu.SMEM((4,), jnp.int32), *widened,
    ]  # fmt: skip


def chunk_of(wide: int, depth: int) -> int:
    """Columns of a chunk of a block: up to half a million weights, in whole registers."""
    sizes = [size for size in (512, 384, 256, 128) if wide % size == 0]
    least = sizes[-1] if sizes else wide
    return next((size for size in sizes if size * depth <= 2**19), least)


def first_weights(
    owners: Any, count: Any, columns: Any, weights: Any, scratch: Any, axis: int
) -> None:
    """At the first step: asks for the chunks of its expert's block.

    Args:
      owners: i32[V] in SMEM: the expert of every visit, E for none.
      count: of the visits.
      columns: blocks of columns.
      weights: [E, D, F] in HBM, or [E, F, D].
      scratch: of `weights_scratch`.
      axis: 1 if F is last, else 0.
    """
    state, experts = scratch[3], weights.shape[0]
    state[0], state[1] = 0, 1
    state[2], state[3] = after_block(owners, count, 0, 0, experts)

    @pl.when(owners[0] < experts)
    def start() -> None:
        for k in range(scratch[2].shape[0]):
            chunk_copy(owners[0], k, weights, scratch, axis).start()


def await_chunk(
    k: Any, owners: Any, count: Any, columns: Any, weights: Any, scratch: Any, axis: int
) -> None:
    """At the first step: waits for a chunk; behind the last one, asks for the next blocks."""
    chunks = scratch[2].shape[0]
    wide = scratch[0].shape[1 + axis] // chunks

    @pl.when(owners[0] < weights.shape[0])
    def arrive() -> None:
        chunk_copy(owners[0], k, weights, scratch, axis).wait()
        widen(scratch, 0, pl.multiple_of(k * wide, wide), wide, axis)

        @pl.when(k == chunks - 1)
        def ask() -> None:
            for _ in range(1, weights_held()):
                ask_ahead(owners, count, columns, weights, scratch, axis)


def turn_weights(
    visit: Any, owners: Any, count: Any, columns: Any, weights: Any, scratch: Any, axis: int
) -> None:
    """At any other step: if its expert or columns are new, waits for them and asks for others."""
    blocks, arrived, _, state, *_ = scratch
    owner, before = owners[visit], owners[jnp.maximum(visit - 1, 0)]

    @pl.when(((visit == 0) | (before != owner)) & (owner < weights.shape[0]))
    def turn() -> None:
        state[0] = state[0] + 1
        ask_ahead(owners, count, columns, weights, scratch, axis)
        at = jax.lax.rem(state[0], weights_held())
        pltpu.make_async_copy(blocks.at[at], blocks.at[at], arrived.at[at]).wait()
        widen(scratch, at, 0, blocks.shape[1 + axis], axis)


def weights_here(scratch: Any) -> Any:
    """The block of this step, of the rows' dtype."""
    blocks, _, _, state, *widened = scratch
    return widened[0] if widened else blocks.at[jax.lax.rem(state[0], weights_held())]


def ask_ahead(owners: Any, count: Any, columns: Any, weights: Any, scratch: Any, axis: int) -> None:
    """Starts the copy of the next block, unless all have been asked for."""
    blocks, arrived, _, state, *_ = scratch
    asked, column, visit, wide = state[1], state[2], state[3], blocks.shape[1 + axis]

    @pl.when(column < columns)
    def ask() -> None:
        at = jax.lax.rem(asked, weights_held())
        block = part_of(weights.at[owners[visit]], column * wide, wide, axis)
        pltpu.make_async_copy(block, blocks.at[at], arrived.at[at]).start()
        state[1] = asked + 1
        state[2], state[3] = after_block(owners, count, column, visit, weights.shape[0])


def after_block(owners: Any, count: Any, column: Any, visit: Any, experts: int) -> tuple[Any, Any]:
    """The column and visit of the next block: of the next expert, or the first one's next."""
    owner = owners[visit]

    def same(after: Any) -> Any:
        return (after < count) & (owners[jnp.minimum(after, count - 1)] == owner)

    def step(carry: Any) -> Any:
        return carry[0] + 1, same(carry[0] + 1)

    after, _ = jax.lax.while_loop(lambda carry: carry[1], step, (visit + 1, same(visit + 1)))
    ends = (after >= count) | (owners[jnp.minimum(after, count - 1)] >= experts)
    return column + ends.astype(jnp.int32), jnp.where(ends, 0, after)


def chunk_copy(owner: Any, k: Any, weights: Any, scratch: Any, axis: int) -> Any:
    """The copy of one chunk of the first block."""
    blocks, _, early, *_ = scratch
    wide = blocks.shape[1 + axis] // early.shape[0]
    at = k * wide if isinstance(k, int) else pl.multiple_of(k * wide, wide)
    source, place = (part_of(x, at, wide, axis) for x in (weights.at[owner], blocks.at[0]))
    return pltpu.make_async_copy(source, place, early.at[k])


def widen(scratch: Any, block: Any, at: Any, size: int, axis: int) -> None:
    """Converts columns of a block that is stored in another dtype than the rows'."""
    blocks, _, _, _, *widened = scratch
    if widened:
        made, stored = (part_of(x, at, size, axis) for x in (widened[0], blocks.at[block]))
        made[...] = stored[...].astype(jnp.float32).astype(made.dtype)


def part_of(x: Any, at: Any, size: int, axis: int) -> Any:
    """A reference's rows, or its columns if `axis` is 1, from one on; all if there are no more."""
    if x.shape[axis] == size:
        return x
    return x.at[:, pl.ds(at, size)] if axis else x.at[pl.ds(at, size)]
