"""What a layer keeps for its backward with each Schedule(save=...), in bytes; nothing is timed.

`kept` is what the forward hands to the backward, parameters left out; `bound` is
b * (T * D + 2 * M * F), with M the rows of the format: slots, or sorted rows with their padding.
With --topology, `temp` is the temporary memory of the gradient of a stack of layers with residual
connections, compiled ahead of time for one of its TPUs; that takes the package libtpu and
JAX_PLATFORMS=cpu. It is not shown for CPUs: XLA orders a program for concurrency there, which
undoes any recomputing, also that of `jax.checkpoint`.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import moegen
from bench import suite
from bench.workloads import QUICK, WORKLOADS, Workload
from moegen.experts import gated, mlp
from moegen.routers import noisy_top_k

EXPERTS = {"mlp": mlp, "gated": gated}
FORMATS = ("slots", "sorted")
SAVES = ("all", "least")
DTYPE = jnp.bfloat16
WITHOUT_A_CHIP = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
"""What libtpu asks of its surroundings, for compiling where there is no TPU."""


@dataclass(frozen=True)
class Case:
    """One layer to look at: slots have a capacity factor of 1.05, sorted rows are dropless."""

    name: str
    workload: Workload
    format: str
    expert: str
    layers: int
    topology: str | None = None

    @property
    def key(self) -> str:
        """Names the case in the table."""
        return "/".join((self.name, self.format, self.expert))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this suite's flags to its subcommand."""
    parser.add_argument("--quick", action="store_true", help="a small layer: not a result")
    parser.add_argument("--layers", type=int, default=4, help="layers in the stack (default 4)")
    parser.add_argument("--topology", metavar="v5e:2x2", help="also compile for this TPU")
    suite.add_lists(
        parser,
        workloads=tuple(WORKLOADS),
        formats=FORMATS,
        experts=tuple(EXPERTS),
    )


def run(arguments: argparse.Namespace) -> int:
    """Look at the cases, a line each; returns the exit code.

    Raises:
      ValueError: if a stack has no layers, or there is no such topology.
    """
    if arguments.layers < 1:
        raise ValueError(f"--layers={arguments.layers}: fix: 1 or more")
    if arguments.topology is not None:
        device(arguments.topology)
    todo = list(_cases(arguments))
    temporary = "" if arguments.topology is None else f"{'temp: all':>11}{'least':>9}"
    print(f"  {'MB':<20}{'bound':>9}{'kept: all':>11}{'least':>9}{temporary}")
    try:
        for number, case in enumerate(todo, 1):
            print(f"[{number}/{len(todo)}] {case.key}", file=sys.stderr, flush=True)
            print(line(case), flush=True)
    except KeyboardInterrupt:
        return suite.INTERRUPTED
    return 0


def _cases(arguments: argparse.Namespace) -> Iterator[Case]:
    loads = {"quick": QUICK} if arguments.quick else WORKLOADS
    names = tuple(loads) if arguments.quick else arguments.workloads
    for name, form, expert in product(names, arguments.formats, arguments.experts):
        yield Case(name, loads[name], form, expert, arguments.layers, arguments.topology)


def line(case: Case) -> str:
    """The row of the table for a case."""
    load = case.workload
    x = jax.ShapeDtypeStruct((1, load.tokens, load.width), DTYPE)
    kept, temporary = {}, {}
    for save in SAVES:
        layer = layer_of(case, save)
        lowered = layer.lower(x, experts=load.experts, hidden=load.hidden)
        kept[save] = sum(lowered.saved.values())
        if case.topology is not None:
            temporary[save] = temporary_bytes(layer, case, x, device(case.topology))
    bound = bound_bytes(case, lowered.program.sizes)
    numbers = (bound, *kept.values(), *temporary.values())
    texts = (f"{n / 1e6:>{w}.2f}" for n, w in zip(numbers, (9, 11, 9, 11, 9), strict=False))
    return f"  {case.key:<20}" + "".join(texts)


def layer_of(case: Case, save: str) -> moegen.Layer:
    """The layer of a case."""
    dropless = case.format == "sorted"
    place: dict[str, Any] = {"dropless": True} if dropless else {"capacity_factor": 1.05}
    router = noisy_top_k.bind(k=case.workload.k, noise_std=0.0, **place)
    target = None if case.topology is None else f"tpu_{case.topology.partition(':')[0]}"
    schedule = moegen.Schedule(format=case.format, save=save, target=target)
    return moegen.compile(router, EXPERTS[case.expert], schedule)


def bound_bytes(case: Case, sizes: dict[str, int]) -> int:
    """Bytes of the layer's input and two products over the rows."""
    load = case.workload
    rows = sizes["N"] if case.format == "sorted" else sizes["E"] * sizes["C"]
    return DTYPE.dtype.itemsize * (load.tokens * load.width + 2 * rows * load.hidden)


def device(topology: str) -> Any:
    """A device of a topology that need not be there.

    Raises:
      ValueError: if libtpu is not installed or does not know it.
    """
    for name, value in WITHOUT_A_CHIP.items():
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    except Exception as error:  # jax raises whatever its plugin did
        reason = str(error).splitlines()[0]
        fix = "install libtpu in the version that jax[tpu] asks for, set JAX_PLATFORMS=cpu"
        raise ValueError(f"--topology={topology}: {reason}; fix: {fix}") from None


def temporary_bytes(layer: moegen.Layer, case: Case, x: Any, on: Any) -> int:
    """Temporary memory of the gradient of a stack; compiled only, never run."""

    def loss(stack: Any, x: jax.Array) -> jax.Array:
        for params in stack:
            x = x + layer(params, x)[0]
        return jnp.mean(jnp.square(x.astype(jnp.float32)))

    def there(a: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=SingleDeviceSharding(on))

    load = case.workload
    params = layer.abstract_params(x, experts=load.experts, hidden=load.hidden)
    stack = [jax.tree.map(there, params)] * case.layers
    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(stack, there(x))
    compiled = traced.lower(lowering_platforms=("tpu",)).compile()
    return int(compiled.memory_analysis().temp_size_in_bytes)
