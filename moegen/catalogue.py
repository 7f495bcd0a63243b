"""The catalogue: what is known of each router that comes with the package, read off its trace."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from moegen.dsl.declare import Argument, Expert, Router
from moegen.dsl.specs import ArraySpec
from moegen.ir.types import CAPACITY, CHOICE, GROUP, Route
from moegen.ops.named import JAX_DTYPES
from moegen.runtime.layer import compile
from moegen.runtime.schedule import Schedule
from moegen.runtime.stages import Lowered

_PAPER = re.compile(r"arXiv:\d{4}\.\d{4,5}")
_CHOOSERS = {CHOICE: "tokens choose", CAPACITY: "experts choose"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One router: what it is, who chooses, which formats hold it, what it reports."""

    name: str
    summary: str
    papers: tuple[str, ...]
    chooser: str
    formats: tuple[str, ...]
    losses: tuple[str, ...]
    settings: tuple[str, ...]
    program: str


def example_dims(sizes: Mapping[str, int] | None = None) -> dict[str, int]:
    """Sizes that show a router at work: small, and enough for every router of the package."""
    dims = {"G": 2, "S": 16, "D": 8, "E": 4, "F": 32, "Z": 2, "M": 2, **(sizes or {})}
    dims.setdefault("R", dims["E"] - 1)
    dims.setdefault("Q", dims["E"] // dims["M"])
    return dims


def lower_example(
    router: Router,
    expert: Expert,
    schedule: Schedule,
    sizes: Mapping[str, int] | None = None,
    *,
    key: bool = True,
) -> Lowered:
    """Lowers a layer for small shapes; nothing is allocated.

    Args:
      router: any router; inputs that it requires get the shapes they declare.
      expert: any expert.
      schedule: how to lower.
      sizes: dims that replace those of `example_dims`.
      key: whether a random key is given.
    """
    dims = example_dims(sizes)
    if any(CAPACITY in _dims(a) for a in router.params):
        dims.setdefault(CAPACITY, 2)
    x = jax.ShapeDtypeStruct(tuple(dims[d] for d in ("G", "S", "D")), jnp.float32)
    needed = [a for a in router.arguments if a.role == "input" and not a.optional]
    inputs = {a.name: _struct(a, dims) for a in needed}
    takes_key = key and any(a.role == "key" for a in (*router.arguments, *expert.arguments))
    rest = {d: n for d, n in dims.items() if d not in (GROUP, "S", "D")}
    layer = compile(router, expert, schedule)
    given = jax.random.key(0) if takes_key else None
    return layer.lower(x, key=given, inputs=inputs, **rest)


def entries() -> tuple[Entry, ...]:
    """Returns an entry for every router of `moegen.routers`, by name."""
    holder = importlib.import_module("moegen.routers")
    found = {n: getattr(holder, n) for n in holder.__all__}
    return tuple(entry(n, r) for n, r in sorted(found.items()) if isinstance(r, Router))


def entry(name: str, router: Router) -> Entry:
    """Reads one router's entry off its docstring and its trace."""
    expert = importlib.import_module("moegen.experts").mlp
    lowered = lower_example(router, expert, Schedule(target="cpu"))
    trace = lowered.stages["trace"]
    doc = inspect.getdoc(router.fn) or ""
    module = inspect.getdoc(inspect.getmodule(router.fn)) or ""
    return Entry(
        name=name,
        summary=module.split("\n\n")[0].replace("\n", " "),
        papers=tuple(dict.fromkeys(_PAPER.findall(doc))),
        chooser=_chooser(trace),
        formats=tuple(c.format for c in lowered.choice.candidates if c.cost is not None),
        losses=tuple(n for n, _ in trace.outputs if n.endswith("_loss") and n != "auxiliary_loss"),
        settings=tuple(f"{n}={v!r}" for n, v in router.settings),
        program=lowered.as_text("trace"),
    )


def table(found: tuple[Entry, ...]) -> str:
    """The catalogue as lines for a terminal."""
    rows = [("router", "who chooses", "formats", "losses", "papers")]
    rows += [
        (e.name, e.chooser, " ".join(e.formats), " ".join(e.losses) or "-", " ".join(e.papers))
        for e in found
    ]
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)
    return "\n".join(lines) + "\n"


def markdown(found: tuple[Entry, ...]) -> str:
    """The catalogue as a page, each router with the program it traces to."""
    parts = [
        "# Routers\n",
        "Made by `moegen routers --markdown`; a test holds this page to it. Every router is a file",
        "in `moegen/routers/`, every setting is changed by `.bind()`, and every program below is",
        "printed at any stage by `moegen print NAME`.\n",
        "| router | who chooses | formats | losses | papers |",
        "|---|---|---|---|---|",
    ]
    parts += [
        f"| [{e.name}](#{e.name}) | {e.chooser} | {', '.join(e.formats)} "
        f"| {', '.join(e.losses) or '-'} | {', '.join(_link(p) for p in e.papers)} |"
        for e in found
    ]
    for e in found:
        settings = ", ".join(f"`{s}`" for s in e.settings) or "none"
        parts += [
            f"\n## {e.name}\n",
            f"{e.summary}\n",
            f"Settings: {settings}.\n",
            f"```\n{e.program}```",
        ]
    return "\n".join(parts) + "\n"


def _link(paper: str) -> str:
    return f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})"


def _chooser(trace: Any) -> str:
    routes = [r.type for op in trace.ops for r in op.results if isinstance(r.type, Route)]
    dims = routes[0].weight.dims
    return _CHOOSERS[dims[-1]] if len(dims) == 3 else "soft"


def _dims(argument: Argument) -> tuple[str, ...]:
    return argument.spec.dims if isinstance(argument.spec, ArraySpec) else ()


def _struct(argument: Argument, dims: Mapping[str, int]) -> jax.ShapeDtypeStruct:
    spec = argument.spec
    assert isinstance(spec, ArraySpec)
    shape = tuple(dims[d] for d in (GROUP, *spec.dims))
    return jax.ShapeDtypeStruct(shape, JAX_DTYPES[spec.dtype or "f32"])
