"""Slots that go to the devices of their experts inside the product that reads them, on TPUs.

Every device of a mesh axis copies its slots straight into the lists of the others, all at once,
and multiplies meanwhile: its own slots first, then those of one device after the other, as soon as
their semaphore says that they have arrived. Weights are read once for every device and tile of
rows.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from moegen.kernels.grouped_dot.vmem import padded_bytes


def exchanged_dot_tpu(
    x: jax.Array,
    weights: jax.Array,
    axes: str | tuple[str, ...],
    *,
    tile: tuple[int, ...],
    transposed: bool = False,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """all_to_all of slots over the devices along `axes`, and the product of what arrives.

    To be called on every device, inside `jax.shard_map`.

    Args:
      x: bf16 or f32 [E, G, C, D], slots of all experts of this device's groups; G * C a multiple of
        the tile's rows, D and F of 128.
      weights: of the same dtype, [E / devices, D, F] of this device's experts; [.., F, D] if
        `transposed`.
      axes: mesh axes.
      tile: rows and columns of a step.
      transposed: whether the weights are [E / devices, F, D].
      interpret: how to run where there is no TPU: True, or `pltpu.InterpretParams`.

    Returns:
      The products [E / devices, devices * G, C, F], and the slots that arrived, [.., D].
    """
    names = (axes,) if isinstance(axes, str) else axes
    extents = tuple(jax.lax.axis_size(name) for name in names)
    devices, me = jax.lax.axis_size(axes), jax.lax.axis_index(axes)
    experts, groups, slots, depth = x.shape
    own, rows, width = experts // devices, groups * slots, weights.shape[1 if transposed else 2]
    tall, wide = tile
    block = (None, wide, depth) if transposed else (None, depth, wide)
    kernel = functools.partial(
        exchanged_dot_kernel, names=names, extents=extents, transposed=transposed
    )
    steps = (devices, own, rows // tall, pl.cdiv(width, wide))
    anywhere, semaphores = pl.BlockSpec(memory_space=pl.ANY), pltpu.SemaphoreType.DMA
    held = exchanged_bytes(tall, depth, wide, x.dtype)
    products, arrived = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=steps,
            in_specs=[
                anywhere,
                pl.BlockSpec(block, lambda n, e, r, f, _: (e, f, 0) if transposed else (e, 0, f)),
            ],
            out_specs=[
                pl.BlockSpec(
                    (None, None, tall, wide), lambda n, e, r, f, sources: (e, sources[n], r, f)
                ),
                anywhere,
            ],
            scratch_shapes=[
                pltpu.VMEM((2, tall, depth), x.dtype),
                semaphores((2,)),
                semaphores((devices,)),
                semaphores((devices,)),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((own, devices, rows, width), x.dtype),
            jax.ShapeDtypeStruct((own, devices, rows, depth), x.dtype),
        ],
        compiler_params=pltpu.CompilerParams(
            collective_id=0, vmem_limit_bytes=held + 2**22, has_side_effects=True
        ),
        interpret=pltpu.InterpretParams() if interpret is True else interpret,
        name="exchanged_dot_tpu",
    )(
        (me - jnp.arange(devices, dtype=jnp.int32)) % devices,
        x.reshape(devices, own, rows, depth),
        weights,
    )
    shape = (own, devices * groups, slots)
    return products.reshape(*shape, width), arrived.reshape(*shape, depth)


def exchanged_tile(
    rows: int, depth: int, width: int, dtype: jax.typing.DTypeLike, vmem: int
) -> tuple[int, ...]:
    """Rows and columns of a step of `exchanged_dot_tpu`; empty if none fit into `vmem` bytes.

    As many rows as can be, up to 512, for each tile reads the weights. A part of the rows is whole
    registers of 16; all of them may be any number, so that few or uneven ones are one tile.
    """
    parts = [n for n in range(512, 0, -16) if rows % n == 0]
    tall_enough = [n for n in parts if n >= 128]
    for tall in dict.fromkeys((*tall_enough, rows, *parts)):
        for wide in (n for n in (1024, 512, 256, 128) if n <= width):
            if exchanged_bytes(tall, depth, wide, dtype) <= vmem:
                return tall, wide
    return ()


def exchanged_bytes(tall: int, depth: int, wide: int, dtype: jax.typing.DTypeLike) -> int:
    """Bytes of VMEM of a step: rows, weights and products twice, and the product in f32."""
    rows, weights = padded_bytes(tall, depth, dtype), padded_bytes(depth, wide, dtype)
    made = padded_bytes(tall, wide, dtype)
    return 2 * (rows + weights + made) + padded_bytes(tall, wide, jnp.float32)


def exchanged_dot_kernel(
    sources: Any,
    x: Any,
    weights: Any,
    products: Any,
    arrived: Any,
    tiles: Any,
    loaded: Any,
    sent: Any,
    received: Any,
    *,
    names: tuple[str, ...],
    extents: tuple[int, ...],
    transposed: bool,
) -> None:
    """One step: a tile of rows that came from the device at distance n, times some columns."""
    distance, expert, row, column = (pl.program_id(i) for i in range(4))
    devices, row_tiles = pl.num_programs(0), pl.num_programs(2)
    me = sources[0]
    tile, count = expert * row_tiles + row, pl.num_programs(1) * row_tiles

    def copy(by: Any) -> Any:
        """The copy to the device at a distance; the one to wait for from that at minus it."""
        other = (me + by) % devices
        return pltpu.make_async_remote_copy(
            x.at[other],
            arrived.at[:, me],
            sent.at[by],
            received.at[by],
            device_id=device_at(other, names, extents),
        )

    def own_copy() -> Any:
        """The copy of what stays on this device, which takes no link."""
        return pltpu.make_async_copy(x.at[me], arrived.at[:, me], received.at[0])

    def load(number: Any) -> Any:
        """Brings a tile of rows of this distance's device in."""
        tall, slot = tiles.shape[1], number % 2
        place = (number // row_tiles, sources[distance], pl.ds(number % row_tiles * tall, tall))
        return pltpu.make_async_copy(arrived.at[place], tiles.at[slot], loaded.at[slot])

    @pl.when((distance == 0) & (tile == 0) & (column == 0))
    def _() -> None:
        own_copy().start()
        meet(me, devices, names, extents)
        jax.lax.fori_loop(1, devices, lambda by, _: copy(by).start(), None)

    @pl.when(column == 0)
    def _() -> None:
        @pl.when(tile == 0)
        def _() -> None:
            pl.when(distance == 0)(lambda: own_copy().wait())
            pl.when(distance > 0)(lambda: copy(distance).wait_recv())
            load(tile).start()

        pl.when(tile + 1 < count)(lambda: load(tile + 1).start())
        load(tile).wait()

    dims = (((1,), (1 if transposed else 0,)), ((), ()))
    product = jax.lax.dot_general(
        tiles[tile % 2], weights[...], dims, preferred_element_type=jnp.float32
    )
    products[...] = product.astype(products.dtype)

    @pl.when((distance == devices - 1) & (tile == count - 1) & (column == pl.num_programs(3) - 1))
    def _() -> None:
        jax.lax.fori_loop(1, devices, lambda by, _: copy(by).wait_send(), None)


def meet(me: Any, devices: Any, names: tuple[str, ...], extents: tuple[int, ...]) -> None:
    """Waits until all devices are here: before that the others' lists may be something else."""
    barrier = pltpu.get_barrier_semaphore()

    def signal(by: Any, _: None) -> None:
        pl.semaphore_signal(barrier, 1, device_id=device_at((me + by) % devices, names, extents))

    jax.lax.fori_loop(1, devices, signal, None)
    pl.semaphore_wait(barrier, devices - 1)


def device_at(number: Any, names: tuple[str, ...], extents: tuple[int, ...]) -> Any:
    """A device by its number along several mesh axes, the last one fastest."""
    found = {}
    for name, extent in reversed(tuple(zip(names, extents, strict=True))):
        found[name] = number % extent
        number = number // extent
    return found
