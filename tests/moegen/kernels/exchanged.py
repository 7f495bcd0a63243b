"""The kernel that exchanges slots itself, in the TPU interpreter, against what it stands for.

Run as a program, `python -m tests.moegen.kernels.exchanged`, with eight host devices: it prints one
JSON object, for every case the largest error relative to the largest element. Races that the
interpreter sees are errors (jax 0.12), or printed as RACE DETECTED (jax 0.10).
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

import moegen as mg
from moegen import experts, routers
from moegen.kernels import exchanged_dot_tpu

ENVIRONMENT = {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
    "NPROC": "32",
}
"""Devices, and a thread for each that waits: XLA takes no more threads than there are cores."""
INTERPRETED = pltpu.InterpretParams(detect_races=True)
EXPERTS, GROUPS, SLOTS, DEPTH, WIDTH = 8, 8, 32, 128, 192


def mesh_of(sizes: dict[str, int]) -> jax.sharding.Mesh:
    auto = (jax.sharding.AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=auto)


def plain(x: Any, w: Any, axes: Any, transposed: bool) -> Any:
    """What the kernel means."""
    arrived = jax.lax.all_to_all(x, axes, split_axis=0, concat_axis=1, tiled=True)
    spec = "egcd,efd->egcf" if transposed else "egcd,edf->egcf"
    product = jnp.einsum(spec, arrived, w, preferred_element_type=jnp.float32)
    return product.astype(x.dtype), arrived


def kernel_error(
    sizes: dict[str, int], axes: Any, dtype: str, transposed: bool, kernel: Any
) -> float:
    """The largest error of the products; the slots themselves must be the same."""
    both = axes if isinstance(axes, tuple) else (axes,)
    others = tuple(name for name in sizes if name not in both)
    rng = np.random.default_rng(0)
    weights = (WIDTH, DEPTH) if transposed else (DEPTH, WIDTH)
    x = jnp.asarray(rng.normal(size=(EXPERTS, GROUPS, SLOTS, DEPTH)), dtype)
    w = jnp.asarray(rng.normal(size=(EXPERTS, *weights)), dtype)
    settings = {"tile": (16, 128), "transposed": transposed, "interpret": INTERPRETED}

    def run(function: Any) -> Any:
        spread = jax.shard_map(
            function, mesh=mesh_of(sizes), in_specs=(P(None, (*others, *both)), P(both)),
            out_specs=P(both, others or None), check_vma=False,
        )  # fmt: skip
        return [np.asarray(a, np.float32) for a in jax.jit(spread)(x, w)]

    got = run(lambda x, w: kernel(x, w, axes, **settings))
    want = run(lambda x, w: plain(x, w, axes, transposed))
    assert (got[1] == want[1]).all()
    return float(np.abs(got[0] - want[0]).max() / np.abs(want[0]).max())


def layer_error() -> float:
    """Of a layer with two products exchanged inside, forward and backward, and all gradients."""
    router = routers.noisy_top_k.bind(k=2, importance_loss_weight=0.1)
    sizes = {"data": 2, "expert": 4}
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 8, 128)), jnp.float32)

    def run(schedule: mg.Schedule) -> Any:
        layer = mg.compile(router, experts.mlp, schedule)
        shapes = layer.abstract_params(x, experts=4, hidden=128)
        rng = np.random.default_rng(1)
        params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), shapes)

        def loss(params: Any, x: Any) -> Any:
            y, aux = layer(params, x, key=jax.random.key(0))
            return (y * jnp.cos(x)).sum() + aux["auxiliary_loss"].sum(), y

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)

    inside = mg.Schedule(
        format="slots", mesh=mesh_of(sizes), overlap="inside", interpret=True, target="cpu"
    )
    got, want = run(inside), run(mg.Schedule(format="slots"))
    errors = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max() / jnp.abs(b).max()), got, want)
    return max(jax.tree.leaves(errors))


def hasty_kernel() -> Any:
    """The kernel without the wait for what another device sends."""
    source = inspect.getsource(exchanged_dot_tpu)
    waits = "lambda: copy(distance).wait_recv()"
    assert source.count(waits) == 1
    module: dict[str, Any] = {}
    exec(source.replace(waits, "lambda: None"), module)
    return module["exchanged_dot_tpu"]


KERNEL = exchanged_dot_tpu.exchanged_dot_tpu
CASES = {
    "eight devices": functools.partial(kernel_error, {"expert": 8}, "expert", "float32", False),
    "bf16, weights turned, beside another axis": functools.partial(
        kernel_error, {"data": 2, "expert": 4}, "expert", "bfloat16", True
    ),
    "experts on two axes": functools.partial(
        kernel_error, {"e1": 2, "data": 2, "e2": 2}, ("e1", "e2"), "float32", False
    ),
}


def main() -> None:
    if sys.argv[1:] == ["hasty"]:
        CASES["eight devices"](kernel=hasty_kernel())
        return
    found = {name: case(kernel=KERNEL) for name, case in CASES.items()}
    print(json.dumps({**found, "a layer and its gradients": layer_error()}))


if __name__ == "__main__":
    main()
