"""Sorted rows that go straight to their places on the devices that hold their experts, and back.

Unlike `swap_parts` (`ops/exchange`), no block as long as the worst case is sent: a device's rows,
Sent, are in the order of experts without gaps (`row_numbers`), and every device knows from `counts`
of all of them how many rows go where. What runs is one `ragged_all_to_all` each way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moegen.errors import PlacementError, ShapeError
from moegen.ir.dims import Dims
from moegen.ir.locality import Locality, locality, place_results
from moegen.ir.program import Literal
from moegen.ir.registry import Eval, OpDef, register
from moegen.ir.types import EXPERT, Tensor, Type, placement_of
from moegen.ops.exchange import check_devices, define_arrivals, pair_rows
from moegen.ops.named import tensor
from moegen.ops.parts import GROUP_PARTS, LISTS, PARTS, ROWS, SENT, with_splits, without

_COUNTS = Tensor("i32", (PARTS, EXPERT))


class _Counted(OpDef):
    """Base of ops that read `counts`, i32[Parts, E]: rows of each expert on each device.

    Devices along `axes` share the experts and know each other's counts; `block` is what an
    expert's rows start at a multiple of.
    """

    attributes: tuple[str, ...] = ("axes", "devices", "block")
    moves = True

    def define(self, dims: Dims, counts: Type | Literal, attrs: Mapping[str, Any]) -> None:
        """Checks the counts and adds the dims of rows that arrive."""
        if tensor(counts) != _COUNTS:
            raise ShapeError(f"counts must be {_COUNTS}, got {counts}")
        devices, block = attrs["devices"], attrs["block"]
        if block < 1 or not attrs["axes"]:
            raise ShapeError(f"block={block}, axes={attrs['axes']}", fix="both are 1 or more")
        check_devices(dims, devices)
        define_arrivals(dims, devices, devices * pair_rows(dims, devices), block)


@register
class SentSizes(_Counted):
    """`sent_sizes(counts, axes=("expert",), devices=4, block=8)`: rows of each expert, padded.

    Returns i32[GroupParts, E], multiples of `block`.
    """

    name = "sent_sizes"

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        self.define(dims, operands[0], attrs)
        return (Tensor("i32", (GROUP_PARTS, EXPERT)),)

    def place(
        self, operands: Sequence[Type | Literal], results: Sequence[Type], attrs: Mapping[str, Any]
    ) -> tuple[Type, ...]:
        groups = placement_of(operands[0]).axes(PARTS)
        splits = {GROUP_PARTS: groups, EXPERT: attrs["axes"]}
        return tuple(with_splits(r, splits) for r in results)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        counts = arrays[0].reshape(-1, attrs["devices"], arrays[0].shape[-1])
        return _padded(counts.sum(1), attrs["block"]).astype(jnp.int32)


class _Travel(_Counted):
    """Base of the two moves of rows: from tokens to experts and back.

    `kernel` is what runs them, for `source` the reason; `select_kernels` writes both.
    """

    attributes = (*_Counted.attributes, "kernel", "source")
    arity = (2, 2)
    came, went = "", ""

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        self.define(dims, operands[1], attrs)
        x = tensor(operands[0])
        if x.dims[:1] != (self.came,):
            raise ShapeError(f"needs rows [{self.came}, ...], got {x}")
        return (Tensor(x.dtype, (self.went, *x.dims[1:])),)

    def place(
        self, operands: Sequence[Type | Literal], results: Sequence[Type], attrs: Mapping[str, Any]
    ) -> tuple[Type, ...]:
        lists = placement_of(operands[0]).axes(self.came)
        known = (*placement_of(operands[1]).axes(PARTS), *attrs["axes"])
        if lists != known:
            raise PlacementError(
                f"rows over {'@'.join(lists) or 'nothing'} are not those of counts over "
                f"{'@'.join(known)}",
                fix=f"gather counts over {', '.join(attrs['axes'])}, the innermost axes of rows",
            )
        bare = [without(o, LISTS) for o in operands]
        made = place_results(self.locality(operands, attrs), bare, results, attrs)
        return tuple(with_splits(r, {self.went: lists}) for r in made)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=(EXPERT,), linear=((0,),))


@register
class SendRows(_Travel):
    """`send_rows(x, counts, axes=("expert",), devices=4, block=8)`: rows go to their experts.

    x is [Sent, ...], the result [N, ...], grouped by expert; 0 where an expert's rows are padded.
    """

    name = "send_rows"
    came, went = SENT, ROWS

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        x, counts = arrays
        return jnp.einsum("sn,s...->n...", _arrivals(env, counts, attrs, x.dtype), x)


@register
class ReturnRows(_Travel):
    """`return_rows(y, counts, axes=("expert",), devices=4, block=8)`: rows come back.

    y is [N, ...], the result [Sent, ...]; 0 where a device has no row.
    """

    name = "return_rows"
    came, went = ROWS, SENT

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        y, counts = arrays
        return jnp.einsum("sn,n...->s...", _arrivals(env, counts, attrs, y.dtype), y)


def _padded(sizes: Any, block: int) -> Any:
    return -(-sizes // block) * block


def _arrivals(env: Eval, counts: Any, attrs: Mapping[str, Any], dtype: Any) -> Any:
    """One-hot places [Sent, N] of the rows of all devices in the lists of all devices."""
    devices, parts = attrs["devices"], env.sizes[PARTS]
    each, rows = env.sizes[EXPERT] // devices, env.sizes[ROWS] // parts
    places = []
    for first_device, among in zip(
        range(0, parts, devices), counts.reshape(-1, devices, env.sizes[EXPERT]), strict=True
    ):
        size = _padded(among.sum(0), attrs["block"]).reshape(devices, each)
        start = (jnp.cumsum(size, 1) - size).reshape(-1) + jnp.cumsum(among, 0) - among
        home = (first_device + jnp.arange(env.sizes[EXPERT]) // each) * rows + start
        before = jnp.cumsum(among, 1) - among
        at = jnp.arange(env.sizes[SENT] // parts)[None, :, None]
        mine = (at >= before[:, None]) & (at < (before + among)[:, None])
        place = jnp.where(mine, home[:, None] + at - before[:, None], 0).sum(-1)
        places.append(jnp.where(mine.any(-1), place, env.sizes[ROWS]).reshape(-1))
    return jax.nn.one_hot(jnp.concatenate(places), env.sizes[ROWS], dtype=dtype)
