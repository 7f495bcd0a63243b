"""The kernels of grouped products alone, each against one dense product of equal FLOPs.

Three products of a workload's up projection: `fwd`, rows times weights; `dlhs`, the gradient of the
rows; `drhs`, the gradient of the weights. `batched` is XLA's batched product with an equal share of
the rows for every expert: what a grouped product of that shape costs without any grouping.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench import suite, tpu_kernels
from bench.layer import Built, can_run
from bench.report import Row
from bench.timing import compare
from bench.workloads import DTYPES, QUICK, ROUTINGS, WORKLOADS, Workload
from moegen.kernels.grouped_dot import native
from moegen.kernels.grouped_dot.blocks import grouped_dot_blocks, grouped_outer_blocks
from moegen.kernels.grouped_dot.ragged import grouped_dot_ragged, grouped_outer_ragged
from moegen.kernels.grouped_dot.runs import grouped_dot_runs, grouped_outer_runs
from moegen.tune.formats import balanced_block
from moegen.tune.product import loads as shared_out

PRODUCTS = ("fwd", "dlhs", "drhs")
KERNELS = ("runs", "native", "blocks", "ragged_dot")
SPECS = {"fwd": "nd,df->nf", "dlhs": "nf,df->nd", "drhs": "nd,nf->df"}


@dataclass(frozen=True)
class Case:
    """One product to measure."""

    name: str
    workload: Workload
    dtype: str
    routing: str
    product: str

    @property
    def key(self) -> str:
        """Names the case in results, such as "A/float32/zipf/drhs"."""
        return "/".join((self.name, self.dtype, self.routing, self.product))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this suite's flags to its subcommand."""
    suite.add_arguments(parser, quick="the products of a small layer: not a result")
    parser.add_argument(
        "--target", metavar="tpu-v5e", help="a TPU that is not here: its compiler's cycles"
    )
    suite.add_lists(
        parser,
        workloads=tuple(WORKLOADS),
        dtypes=DTYPES,
        routings=ROUTINGS,
        products=PRODUCTS,
        kernels=KERNELS,
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure the products, one table each; returns the exit code."""
    if arguments.target:
        return tpu_kernels.run(arguments)
    kernels = tuple(name for name in arguments.kernels if can_run(name))
    todo = {c.key: partial(measure, c, kernels) for c in _cases(arguments)}
    return suite.run("kernels", arguments, todo)


def _cases(arguments: argparse.Namespace) -> Iterator[Case]:
    loads, dtypes = {n: WORKLOADS[n] for n in arguments.workloads}, arguments.dtypes
    if arguments.quick:
        loads, dtypes = {"quick": QUICK}, DTYPES[:1]
    for (name, load), *rest in product(
        loads.items(), dtypes, arguments.routings, arguments.products
    ):
        yield Case(name, load, *rest)


def measure(case: Case, kernels: tuple[str, ...], rounds: int) -> list[Row]:
    """The dense product, the batched one and the kernels, interleaved; ratios to the dense one."""
    a, b, sizes, block = operands(case)
    one, equal = plain_operands(case)
    spec = SPECS[case.product]
    made = {
        "dense": Built(partial(jnp.einsum, spec), *one),
        "batched": Built(partial(jnp.einsum, batched_spec(spec)), *equal),
    }
    made |= {name: Built(kernel_call(case, name, block), a, b, sizes) for name in kernels}
    candidates = {name: item.run for name, item in made.items() if name != "dense"}
    return [made[t.name].row(t) for t in compare(made["dense"].run, candidates, rounds, "dense")]


def kernel_call(case: Case, kernel: str, block: int) -> Callable[..., jax.Array]:
    """The kernel of that name as a function of its two operands and the sizes."""
    load, spec = case.workload, SPECS[case.product]
    if kernel == "native":
        dot = partial(native.grouped_dot_native, transposed=case.product == "dlhs")
        return native.grouped_outer_native if case.product == "drhs" else dot
    if case.product == "drhs":
        shape = (load.experts, load.width, load.hidden)
        if kernel == "ragged_dot":
            return grouped_outer_ragged
        outer = {"runs": grouped_outer_runs, "blocks": grouped_outer_blocks}[kernel]
        return lambda a, b, sizes: outer(spec, a, b, sizes, block, shape)
    if kernel == "ragged_dot" and case.product == "dlhs":  # it sums over the weights' middle dim
        return lambda rows, w, sizes: grouped_dot_ragged(rows, jnp.swapaxes(w, 1, 2), sizes)
    if kernel == "ragged_dot":
        return grouped_dot_ragged
    xla = {"runs": grouped_dot_runs, "blocks": grouped_dot_blocks}[kernel]
    return lambda rows, w, sizes: xla(spec, rows, w, sizes, block)


def operands(case: Case) -> tuple[jax.Array, jax.Array, jax.Array, int]:
    """Both operands with rows sorted by expert, the rows of each expert, and the block.

    As in the sorted format, every expert's rows are padded to a multiple of the block, with
    zeros, and there is room for the worst such padding.
    """
    load = case.workload
    wanted = loads(load, case.routing)
    block = balanced_block(load.tokens * load.k, load.experts)
    sizes = -(-wanted // block) * block
    rows = -(-(load.tokens * load.k + load.experts * (block - 1)) // block) * block
    starts = np.cumsum(sizes) - sizes
    used = np.zeros(rows, bool)
    for start, count in zip(starts, wanted, strict=True):
        used[start : start + count] = True
    a, b = draw(case, rows)
    mask = jnp.asarray(used)[:, None]
    a = jnp.where(mask, a, 0)
    b = jnp.where(mask, b, 0) if case.product == "drhs" else b
    return a, b, jnp.asarray(sizes, jnp.int32), block


def draw(case: Case, rows: int) -> tuple[jax.Array, jax.Array]:
    """Random operands: rows and weights, or two of rows for the weights' gradient."""
    load = case.workload
    keys = jax.random.split(jax.random.key(0))
    narrow, wide = (rows, load.width), (rows, load.hidden)
    shapes = {
        "fwd": (narrow, (load.experts, load.width, load.hidden)),
        "dlhs": (wide, (load.experts, load.width, load.hidden)),
        "drhs": (narrow, wide),
    }[case.product]
    a, b = (jax.random.normal(k, s, case.dtype) for k, s in zip(keys, shapes, strict=True))
    return a, b


def plain_operands(case: Case) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Operands without grouping: of one dense product, and of E equal ones."""
    load = case.workload
    experts, rows = load.experts, load.tokens * load.k
    share = -(-rows // experts)
    a, b = draw(case, experts * share)

    def split(array: jax.Array) -> jax.Array:
        return array.reshape(experts, share, -1)

    if case.product == "drhs":
        return (a[:rows], b[:rows]), (split(a), split(b))
    return (a[:rows], b[0]), (split(a), b)


def batched_spec(spec: str) -> str:
    """The same product for every expert at once: "nd,df->nf" becomes "end,edf->enf"."""
    return ",".join("e" + part for part in spec.split(",")).replace("->", "->e")


def loads(load: Workload, routing: str) -> np.ndarray:
    """Rows of each expert, tokens * k in all: equal ones, or in proportion to 1 / rank."""
    ranks = np.arange(1, load.experts + 1)
    return shared_out(load.tokens * load.k, ranks**0 if routing == "balanced" else 1 / ranks)
