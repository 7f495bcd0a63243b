"""Rows to their experts and back, on devices that are a mapped axis: by hand, and both kernels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moegen.kernels.rows import ragged

DEVICES, EXPERTS, SENT, BLOCK = 3, 6, 7, 2
ROWS = DEVICES * SENT + EXPERTS // DEVICES * (BLOCK - 1)


def as_documented(
    operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name
):
    """jax.lax.ragged_all_to_all as its documentation says; XLA has none on CPU."""
    everyones = jax.lax.all_gather((operand, input_offsets, send_sizes, output_offsets), axis_name)
    data, start, size, to = everyones
    devices, slices = start.shape
    each, me = slices // devices, jax.lax.axis_index(axis_name)
    at = jnp.arange(operand.shape[0])
    received = jnp.zeros((), jnp.int32)
    for sender in range(devices):
        for one in range(each):
            i = me * each + one
            used = (at >= start[sender, i]) & (at < start[sender, i] + size[sender, i])
            row = jnp.where(used, at - start[sender, i] + to[sender, i], output.shape[0])
            output = output.at[row].set(data[sender], mode="drop")
            received += (recv_sizes[sender * each + one] != size[sender, i]).astype(jnp.int32)
    return jnp.where(received == 0, output, jnp.nan)


@functools.cache
def devices(kernel, name, rows):
    """The function on all devices: arrays have the device in front, counts are on each."""
    function = functools.partial(ragged.KERNELS[kernel][name], axes="m", rows=rows, block=BLOCK)
    return jax.jit(jax.vmap(function, in_axes=(0, None), axis_name="m", axis_size=DEVICES))


def by_hand(x, counts):
    """Lists of rows, one per device: experts in order, within each the devices in order."""
    lists = np.zeros((DEVICES, ROWS, 1), np.float32)
    each = EXPERTS // DEVICES
    for device in range(DEVICES):
        at = 0
        for expert in range(device * each, (device + 1) * each):
            for sender in range(DEVICES):
                first = counts[sender, :expert].sum()
                size = counts[sender, expert]
                lists[device, at : at + size] = x[sender, first : first + size]
                at += size
            at = -(-at // BLOCK) * BLOCK
    return lists


@st.composite
def rows_per_expert(draw):
    """At most SENT rows of each device, experts and devices without any among them."""
    experts = st.lists(st.integers(0, EXPERTS - 1), max_size=SENT)
    return np.stack([np.bincount(draw(experts), minlength=EXPERTS) for _ in range(DEVICES)])


@pytest.mark.parametrize("kernel", ragged.KERNELS)
@settings(max_examples=25, deadline=None)
@given(counts=rows_per_expert())
def test_rows_go_to_their_experts_and_come_back(kernel, counts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "ragged_all_to_all", as_documented)
        x = np.arange(1.0, 1 + DEVICES * SENT, dtype=np.float32).reshape(DEVICES, SENT, 1)
        counts = counts.astype(np.int32)
        rows = np.asarray(devices(kernel, "send_rows", ROWS)(x, counts))
        np.testing.assert_array_equal(rows, by_hand(x, counts))
        padding = np.where(rows == 0, -1.0, rows)  # what experts make of padding goes nowhere
        came_back = devices(kernel, "return_rows", SENT)(padding, counts)
    there_is = np.arange(SENT) < counts.sum(1)[:, None]
    np.testing.assert_array_equal(came_back, np.where(there_is[..., None], x, 0))


def test_sizes_are_padded_to_blocks():
    counts = np.array([[1, 0, 2, 0, 0, 3], [1, 1, 1, 0, 0, 0], [1, 0, 1, 0, 0, 0]], np.int32)
    call = jax.vmap(
        lambda c: ragged.own_sizes(c, "m", block=BLOCK), axis_name="m", axis_size=DEVICES,
        in_axes=None,
    )  # fmt: skip
    np.testing.assert_array_equal(np.squeeze(call(counts), 1), [[4, 2], [4, 0], [0, 4]])


@pytest.mark.parametrize("name", ["send_rows", "return_rows"])
def test_on_tpus_and_gpus_it_is_one_collective(name):
    function = ragged.KERNELS["ragged_all_to_all"][name]
    auto = (jax.sharding.AxisType.Auto,)
    mesh, spec = jax.make_mesh((1,), ("m",), axis_types=auto), jax.sharding.PartitionSpec
    run = jax.shard_map(
        lambda x, c: function(x, c, "m", rows=8, block=1), mesh=mesh, in_specs=(spec("m"), spec()),
        out_specs=spec("m"), check_vma=False,
    )  # fmt: skip
    args = (jax.ShapeDtypeStruct((8, 4), jnp.bfloat16), jax.ShapeDtypeStruct((1, 2), jnp.int32))
    for platform in ("tpu", "cuda"):
        text = jax.jit(run).trace(*args).lower(lowering_platforms=(platform,)).as_text()
        assert text.count("ragged_all_to_all") == 1
