"""Layers on a mesh of host devices against the same layers on one device.

Run as a program, `python -m tests.moegen.sharded`, because JAX counts its devices once per
process: it prints one JSON object, for every case the largest error of any output or gradient,
relative to the largest element of that array. `--nightly` takes the cases that few changes concern,
`--random=N` draws N instead.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import moegen as mg
from moegen import routers
from moegen.experts import mlp

COMPILER = shutil.which("c++") is not None
"""Whether the custom call can be made."""
DEVICES = 8
FLAGS = f"--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0"
"""What the process that runs this needs in XLA_FLAGS: devices, and a compiler in a hurry."""


@mg.expert
def dropped_out(x: mg.f32["C D"], w: mg.f32["D F"], v: mg.f32["F D"], key: mg.Key = None):
    """Its random numbers are drawn per group, expert and hidden unit; it looks at all of F."""
    h = mg.dot(x, w, over="D")
    h = mg.dropout(key, mg.softmax(h, over="F"), 0.5) if key is not None else h
    return mg.dot(h, v, over="F") * mg.mean(h, over="F")


def sigmoids(x: Any, w: Any) -> Any:
    return jax.nn.sigmoid(x @ w)


@mg.expert
def opaque(x: mg.f32["C D"], w: mg.f32["D F"], v: mg.f32["F D"]):
    """Its first half is any JAX function."""
    return mg.dot(mg.call(sigmoids, x, w, out=mg.f32["C F"]), v, over="F")


@dataclass(frozen=True)
class Case:
    """One layer on one mesh; sizes are those of G, S, E, F."""

    mesh: Mapping[str, int]
    format: str = "slots"
    router: Any = None
    expert: Any = mlp
    sizes: tuple[int, int, int, int] = (8, 5, 4, 4)
    axes: Mapping[str, str] = field(default_factory=dict)
    dims: Mapping[str, int] = field(default_factory=dict)
    crowded: bool = False
    save: str = "all"
    exchange: str = "auto"
    overlap: int | str = 1
    send: str = "auto"
    kernel: str = "auto"
    nightly: bool = False

    def schedule(self) -> mg.Schedule:
        names, shape = tuple(self.mesh), tuple(self.mesh.values())
        auto = (jax.sharding.AxisType.Auto,) * len(names)
        devices = jax.devices()[: int(np.prod(shape))]
        mesh = jax.make_mesh(shape, names, axis_types=auto, devices=devices)
        return mg.Schedule(
            format=self.format, kernel=self.kernel, mesh=mesh, axes=self.axes, save=self.save,
            exchange=self.exchange, overlap=self.overlap, send=self.send,
        )  # fmt: skip

    def arrays(self, layer: mg.Layer) -> tuple[Any, ...]:
        """Parameters, tokens and what y is multiplied with; crowded tokens all want expert 0."""
        rng = np.random.default_rng(0)
        groups, tokens, experts, hidden = self.sizes
        x = jnp.asarray(rng.normal(size=(groups, tokens, 4)), jnp.float32)
        params = layer.abstract_params(x, experts=experts, hidden=hidden, **self.dims)
        params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), params)
        if self.crowded:
            params["router"]["w"] = jnp.zeros((4, experts)).at[:, 0].set(1.0)
            x = jnp.abs(x)
        return params, x, jnp.asarray(rng.normal(size=x.shape), jnp.float32)

    def run(self, schedule: mg.Schedule) -> Any:
        """Outputs, auxiliary outputs and all gradients."""
        router = NOISY if self.router is None else self.router
        layer = mg.compile(router, self.expert, schedule)
        params, x, ct = self.arrays(layer)
        arguments = (*router.arguments, *self.expert.arguments)
        key = jax.random.key(3) if any(a.role == "key" for a in arguments) else None

        def loss(params: Any, x: Any) -> Any:
            y, aux = layer(params, x, key=key)
            floats = [a for a in aux.values() if jnp.issubdtype(a.dtype, jnp.floating)]
            return (y * ct).sum() + sum((1 + i) * a.sum() for i, a in enumerate(floats)), (y, aux)

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)

    def error(self) -> float:
        """The largest difference from one device, relative to the largest element of an array."""
        got = self.run(self.schedule())
        # Sorted rows take as long again to compile, and are held to slots in test_formats_agree.
        want = self.run(mg.Schedule(format="slots" if self.format == "sorted" else self.format))

        def difference(a: Any, b: Any) -> float:
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            assert a.shape == b.shape
            return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3))

        return max(jax.tree.leaves(jax.tree.map(difference, got, want)))


NOISY = routers.noisy_top_k.bind(
    k=2, batch_priority=True, importance_loss_weight=0.1, load_loss_weight=0.1
)
CASES = {
    "data, expert and model axes": Case({"data": 2, "expert": 2, "model": 2}, nightly=True),
    "groups are not a multiple of the devices": Case(
        {"data": 2, "expert": 4}, sizes=(5, 5, 8, 4), router=NOISY.bind(k=1), nightly=True
    ),
    "fewer experts than devices, and every one chosen": Case(
        {"expert": 8}, sizes=(8, 5, 2, 4), format="onehot"
    ),
    "full sharding of weights, and empty experts": Case(
        {"fsdp": 2, "expert": 2, "model": 2}, crowded=True, router=NOISY.bind(capacity=10),
        save="least", nightly=True,
    ),
    "two axes each for experts and for hidden units": Case(
        {"e1": 2, "m1": 2, "e2": 2, "m2": 1}, format="onehot", router=NOISY.bind(k=1),
        axes={"e1": "G E", "e2": "G E", "m1": "F", "m2": "F"}, nightly=True,
    ),
    "sorted rows on data, expert and model axes": Case(
        {"data": 2, "expert": 2, "model": 2}, format="sorted", nightly=True
    ),
    "sorted rows without a capacity, crowded, groups not a multiple of the devices": Case(
        {"fsdp": 2, "expert": 4}, format="sorted", sizes=(5, 5, 8, 4), crowded=True,
        router=NOISY.bind(dropless=True), save="least",
    ),
    "rows straight to their experts, on data, expert and model axes": Case(
        {"data": 2, "expert": 2, "model": 2}, format="sorted", exchange="ragged"
    ),
    "rows straight to experts on two axes, without a capacity, crowded": Case(
        {"e1": 2, "fsdp": 2, "e2": 2}, format="sorted", sizes=(8, 5, 8, 4), crowded=True,
        router=NOISY.bind(dropless=True), axes={"e1": "G E", "e2": "G E"}, exchange="ragged",
        nightly=True,
    ),
    "sorted rows by the custom call, without a capacity, crowded": Case(
        {"data": 2, "expert": 4}, format="sorted", kernel="native", sizes=(8, 5, 8, 4),
        crowded=True, router=NOISY.bind(dropless=True),
    ),
    "one batch priority over the tokens of all devices": Case(
        {"data": 2, "expert": 4}, format="sorted", sizes=(8, 5, 8, 4),
        router=NOISY.bind(scope="batch", capacity=1),
    ),
    "sorted rows of each device's own groups": Case(
        {"data": 4, "model": 2}, format="sorted", sizes=(4, 5, 4, 4), nightly=True
    ),
    "one device": Case(
        {"data": 1, "expert": 1, "model": 1}, sizes=(2, 5, 4, 4), nightly=True
    ),
    "a soft route": Case(
        {"data": 2, "expert": 2}, format="onehot", sizes=(4, 5, 4, 4),
        router=routers.soft, dims={"C": 2},
    ),
    "experts that choose": Case(
        {"expert": 2, "data": 2}, sizes=(4, 5, 4, 4), router=routers.expert_choice
    ),
    "random numbers within experts": Case(
        {"data": 2, "expert": 2, "model": 2}, expert=dropped_out, sizes=(4, 5, 2, 4),
        nightly=True,
    ),
    "an opaque expert": Case(
        {"expert": 2, "model": 2}, expert=opaque, sizes=(2, 5, 2, 4), nightly=True
    ),
    "slots in two chunks, on data, expert and model axes": Case(
        {"data": 2, "expert": 2, "model": 2}, overlap=2, nightly=True
    ),
    "buffers in four chunks, weights fully sharded, little kept": Case(
        {"fsdp": 2, "expert": 4}, format="onehot", overlap=4, save="least", nightly=True
    ),
    "random numbers within experts, in chunks": Case(
        {"data": 2, "expert": 2, "model": 2}, expert=dropped_out, sizes=(4, 5, 2, 4), overlap=2
    ),
    "slots round a ring of two axes, weights fully sharded": Case(
        {"e1": 2, "fsdp": 2, "e2": 2}, overlap="ring", sizes=(5, 5, 8, 4),
        axes={"e1": "G E", "e2": "G E"},
    ),
    "random numbers within experts, round a ring, little kept": Case(
        {"data": 2, "expert": 4}, expert=dropped_out, format="onehot", overlap="ring",
        save="least", nightly=True,
    ),
    "round a ring, on data, expert and model axes": Case(
        {"expert": 2, "data": 2, "model": 2}, overlap="ring", nightly=True
    ),
    "all tokens to all devices, on data, expert and model axes": Case(
        {"data": 2, "expert": 2, "model": 2}, send="tokens", nightly=True
    ),
    "all tokens to all devices of two axes, weights fully sharded, little kept": Case(
        {"e1": 2, "fsdp": 2, "e2": 2}, send="tokens", sizes=(8, 5, 8, 4), router=NOISY,
        axes={"e1": "G E", "e2": "G E"}, save="least",
    ),
    "tokens on every device, experts shared out": Case(
        {"expert": 4}, axes={"expert": "E"}, sizes=(1, 5, 4, 4), nightly=True
    ),
}  # fmt: skip


@st.composite
def random_cases(draw: st.DrawFn) -> Case:
    """A mesh of up to 8 devices with axes in any order, and sizes that may not fit evenly."""
    names = draw(st.permutations(("data", "expert", "fsdp", "model")))
    mesh, left = {}, DEVICES
    for name in names[: draw(st.integers(1, 4))]:
        mesh[name] = draw(st.sampled_from([n for n in (1, 2, 4, 8) if n <= left]))
        left //= mesh[name]
    mesh = {n: s for n, s in mesh.items() if n != "fsdp" or s <= 4}
    experts = draw(st.sampled_from([1, 2, 4, 8]))
    router = NOISY.bind(k=draw(st.integers(1, min(experts, 3))))
    sizes = (draw(st.integers(1, 9)), draw(st.integers(1, 6)), experts, 8)
    form = draw(st.sampled_from(("slots", "onehot", "sorted")))
    exchange = draw(st.sampled_from(("blocks", "ragged")))
    crowded = draw(st.booleans())
    shared = mesh.get("expert", 1)
    travels = form != "sorted" and shared > 1 and experts % shared == 0
    overlap = draw(st.sampled_from((1, "ring"))) if travels else 1
    return Case(
        mesh or {"data": 1}, form, router, sizes=sizes, crowded=crowded, exchange=exchange,
        overlap=overlap,
    )  # fmt: skip


def random_errors(count: int) -> dict[str, float]:
    """The errors of random cases, by what they are."""
    found: dict[str, float] = {}

    @settings(max_examples=count, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(random_cases())
    def collect(case: Case) -> None:
        ways = f"{case.format} {case.exchange} {case.overlap}"
        found[f"{dict(case.mesh)} {ways} {case.sizes} {case.crowded}"] = case.error()

    collect()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--random", type=int, metavar="N")
    parser.add_argument("--nightly", action="store_true")
    given = parser.parse_args()
    wanted = {
        n: c
        for n, c in CASES.items()
        if c.nightly == given.nightly and (c.kernel != "native" or COMPILER)
    }
    print(json.dumps(
        random_errors(given.random) if given.random else {n: c.error() for n, c in wanted.items()}
    ))  # fmt: skip


if __name__ == "__main__":
    main()
