"""The compiled layer in each format against a dense MLP of equal FLOPs.

The dense MLP handles as many rows as the layer has assignments (tokens x k), so a ratio of 1 means
that routing, dispatch and combine cost nothing. At capacity factor 1 the experts do exactly the
dense FLOPs; every format drops the same assignments and computes the same function.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

import moegen
from bench.report import table, write_json
from bench.timing import Timing, check_rounds, compare
from moegen.experts import mlp
from moegen.routers import noisy_top_k

FORMATS = ("onehot", "slots", "sorted")
Params = dict[str, dict[str, jax.Array]]
Function = Callable[..., jax.Array]


@dataclass(frozen=True)
class Case:
    """Sizes of one layer: groups, tokens a group, experts, choices, width, hidden width, dtype."""

    groups: int = 2
    tokens: int = 1024
    experts: int = 8
    k: int = 2
    width: int = 256
    hidden: int = 1024
    dtype: str = "float32"


QUICK = Case(groups=2, tokens=128, experts=4, width=64, hidden=128)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this suite's flags to its subcommand."""
    parser.add_argument("--quick", action="store_true", help="a small layer: seconds, not a result")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--rounds", type=int, default=None, help="timed pairs (default 20; quick 5)"
    )
    parser.add_argument(
        "--json", type=Path, default=None, help="also write the result to this file"
    )


def run(arguments: argparse.Namespace) -> None:
    """Time forward and forward with backward, print both tables, write JSON if asked."""
    base = QUICK if arguments.quick else Case()
    case = Case(**{**asdict(base), "dtype": arguments.dtype})
    rounds = arguments.rounds if arguments.rounds is not None else (5 if arguments.quick else 20)
    check_rounds(rounds)
    if arguments.json is not None and not arguments.json.parent.is_dir():
        raise ValueError(f"--json: {arguments.json.parent} is no folder; fix: make it first")
    results = measure(case, rounds)
    for direction, rows in results.items():
        print(table(f"{direction}: {case}", rows))
    if arguments.json is not None:
        write_json(arguments.json, "layer", asdict(case), results)
        print(f"wrote {arguments.json}")


def measure(case: Case, rounds: int) -> dict[str, list[Timing]]:
    """Timings by direction ("forward", "training") of the dense MLP and of every format."""
    params, x = inputs(case)
    assigned = jnp.concatenate([x] * case.k, axis=1)  # as many rows as there are assignments
    results = {}
    for direction, of in (("forward", forward), ("training", training)):
        baseline = partial(of(dense), first_expert(params), assigned)
        layers = {name: partial(of(sparse(case, name)), params, x) for name in FORMATS}
        results[direction] = compare(baseline, layers, rounds)
    return results


def inputs(case: Case) -> tuple[Params, jax.Array]:
    """Random parameters and tokens x[G, S, D] of the case's dtype, the same in every run."""
    e, d, f = case.experts, case.width, case.hidden
    shapes = {
        "router": {"w": (d, e)},
        "expert": {"w1": (e, d, f), "b1": (e, f), "w2": (e, f, d), "b2": (e, d)},
    }
    keys = iter(jax.random.split(jax.random.key(0), 6))
    params = {
        part: {name: normal(next(keys), shape, d, case.dtype) for name, shape in leaves.items()}
        for part, leaves in shapes.items()
    }
    return params, normal(next(keys), (case.groups, case.tokens, d), 1, case.dtype)


def normal(key: jax.Array, shape: tuple[int, ...], fan_in: int, dtype: str) -> jax.Array:
    """A normal draw with variance 1 / fan_in."""
    return (jax.random.normal(key, shape) / fan_in**0.5).astype(dtype)


def first_expert(params: Params) -> dict[str, jax.Array]:
    """The first expert's weights: the dense MLP's parameters."""
    return {name: stacked[0] for name, stacked in params["expert"].items()}


def dense(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """The baseline in plain JAX: the same MLP on every row of x[G, R, D]."""
    hidden = jax.nn.gelu(x @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def sparse(case: Case, layer_format: str) -> Function:
    """The compiled layer, routing without noise, stored in the given format."""
    router = noisy_top_k.bind(k=case.k, noise_std=0.0, capacity_factor=1.0)
    layer = moegen.compile(router, mlp, schedule=moegen.Schedule(format=layer_format))
    return lambda params, x: layer(params, x, key=None)[0]


def forward(function: Function) -> Function:
    """The function, compiled."""
    return jax.jit(function)


def training(function: Function) -> Function:
    """The function's gradients by parameters and input, of the mean square of its output."""

    def loss(params: Params, x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(function(params, x).astype(jnp.float32)))

    return jax.jit(jax.grad(loss, argnums=(0, 1)))
