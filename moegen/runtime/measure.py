"""`moegen.autotune`: the format that is fastest here, by running each of them."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from moegen.errors import LoweringError
from moegen.passes.choose_format import FORMATS
from moegen.runtime.layer import Layer
from moegen.runtime.stages import Lowered
from moegen.tune import native
from moegen.tune.store import Measured, add_to_store, read_store

HOPELESS = 20.0
"""A format whose estimate is this many times the best one's is not worth compiling."""
ROUNDS = 7


def autotune(
    layer: Layer,
    params: Mapping[str, Any],
    x: Any,
    *,
    key: Any = None,
    inputs: Mapping[str, Any] | None = None,
    training: bool = True,
    store: str | Path | None = None,
) -> tuple[Layer, Measured]:
    """Returns the layer with the format that is fastest for these arguments, and the times.

    Each format is compiled and run, in turns, on the default device; which rows go where depends
    on the arrays, so use real ones. Where "auto" may take the custom call for CPUs, "native" is one
    of them: sorted rows with its products. Whatever else the schedule says is kept.

    Args:
      layer: its schedule's format is replaced, and its kernel if that is "auto" on such a CPU.
      params: concrete arrays, as for a call.
      x: tokens [G, S, D] or [S, D].
      key: a random key, or None for a deterministic call.
      inputs: the router's per-token inputs by name.
      training: measures outputs and gradients by parameters and tokens, else outputs only.
      store: a file that remembers. An entry counts as long as the emitted code (kernels
        included), the shapes, the kind of device and jax's version are the same.

    Raises:
      LoweringError: if no format can hold the layer.
      TuneError: if the store is damaged or cannot be written; nothing is measured then.
    """
    inputs = dict(inputs or {})
    path = Path(store) if store is not None else None
    layers = _layers(layer)
    lowered, refused = _lower_all(layers, params, x, key, inputs)
    direction = "training" if training else "forward"
    name = _name(lowered, params, x, inputs, direction)
    known = read_store(path) if path is not None else {}
    if name not in known:
        runs = {
            form: _compiled(layers[form], params, x, key, inputs, training=training)
            for form in lowered
        }
        times = _times(runs)
        first = next(iter(lowered.values()))
        known[name] = Measured(
            first.program.name, _device(), jax.__version__, direction,
            min(times, key=lambda form: times[form]), times, refused,
        )  # fmt: skip
        if path is not None:
            add_to_store(path, name, known[name])
    return layers[known[name].format], known[name]


def _layers(layer: Layer) -> dict[str, Layer]:
    """The layer in each format, by name; on CPUs sorted rows twice, by both kinds of products."""
    schedule = layer.schedule
    found = {form: replace(schedule, format=form) for form in FORMATS}
    on_cpu = schedule.kernel == "auto" and schedule.resolve_target().platform == "cpu"
    if on_cpu and not (schedule.elsewhere() or native.barred()):
        found["sorted"] = replace(schedule, format="sorted", kernel="runs")
        found[native.NAME] = replace(schedule, format="sorted", kernel=native.NAME)
    return {form: Layer(layer.router, layer.expert, one) for form, one in found.items()}


def _lower_all(
    layers: Mapping[str, Layer], params: Any, x: Any, key: Any, inputs: dict[str, Any]
) -> tuple[dict[str, Lowered], dict[str, str]]:
    """Each format that is worth a try, lowered; and why the others are not."""
    found: dict[str, Lowered] = {}
    refused: dict[str, str] = {}
    for form, layer in layers.items():
        try:
            found[form] = layer.lower(params, x, key=key, inputs=inputs)
        except LoweringError as error:
            refused[form] = error.what
    if not found:
        name = next(iter(layers.values())).router.name
        raise LoweringError(f"{name}: no format can hold it: " + "; ".join(refused.values()))
    estimates = {form: _estimate(one) for form, one in found.items()}
    best = min(estimates.values())
    for form, seconds in estimates.items():
        if seconds > HOPELESS * best:
            refused[form] = f"estimated at {seconds / best:.0f} times the best"
            del found[form]
    return found, refused


def _estimate(lowered: Lowered) -> float:
    """The cost model's seconds for the format of a lowered layer."""
    costs = {c.name: c.cost for c in lowered.choice.candidates}
    cost = costs[lowered.choice.name]
    return cost.seconds if cost is not None else float("inf")


def _device() -> str:
    return str(jax.devices()[0].device_kind)


def _name(
    lowered: dict[str, Lowered], params: Any, x: Any, inputs: dict[str, Any], direction: str
) -> str:
    """The key in the store: everything that the times depend on, but the values of the arrays."""
    leaves = jax.tree_util.tree_leaves_with_path((params, x, inputs))
    shapes = [(jax.tree_util.keystr(at), a.shape, str(a.dtype)) for at, a in leaves]
    sources = [(form, one.source()) for form, one in lowered.items()]
    facts = (sources, shapes, direction, _device(), jax.__version__)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]


def _compiled(
    layer: Layer, params: Any, x: Any, key: Any, inputs: dict[str, Any], *, training: bool
) -> Callable[[], Any]:
    """A call of the layer, or of its gradients, ready to be timed."""

    def forward(params: Any, x: Any) -> Any:
        return layer(params, x, key=key, **inputs)

    def gradients(params: Any, x: Any) -> Any:
        leaves, tree = jax.tree.flatten((params, x))
        real = [i for i, leaf in enumerate(leaves) if _is_real(leaf)]

        def loss(*given: Any) -> Any:
            full = list(leaves)
            for i, leaf in zip(real, given, strict=True):
                full[i] = leaf
            outputs = jax.tree.leaves(forward(*jax.tree.unflatten(tree, full)))
            return sum(jnp.mean(jnp.square(a.astype("float32"))) for a in outputs if _is_real(a))

        return jax.grad(loss, argnums=tuple(range(len(real))))(*(leaves[i] for i in real))

    compiled = jax.jit(gradients if training else forward).lower(params, x).compile()
    return lambda: compiled(params, x)


def _is_real(a: Any) -> bool:
    return bool(jnp.issubdtype(a.dtype, jnp.floating))


def _times(runs: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Median milliseconds of each, in turns, so that all see the same machine."""
    seen: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        jax.block_until_ready(run())  # touches all memory once
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seen[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(times) for name, times in seen.items()}
