"""What libtpu makes of exchanges that may overlap: which it begins and ends apart.

`python -m tests.moegen.tune.overlaps v5e:2x2` compiles a layer's gradients for four chips, in each
way of `Schedule(overlap=...)`, and prints a line of JSON for each: exchanges that wait, exchanges
with a start and an end of their own, and the products that run between these, of all. Further
arguments, NAME=VALUE, are options of the compiler.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import moegen as mg
from moegen import experts, routers
from moegen.tune.topology import topology
from moegen.tune.tpu_compiler import environment, libtpu_folder

WAYS = (1, 4, "ring", "inside")
EXCHANGE = re.compile(r"%(\S+) = .*\s(all-to-all|collective-permute)(-start|-done)?\((.*)")
PRODUCT = re.compile(r"kind=kOutput|\sconvolution\(|tpu_custom_call")


def counts(text: str) -> dict[str, int]:
    """Exchanges and products of a scheduled module's entry."""
    found = {"waiting": 0, "started": 0, "products meanwhile": 0, "products": 0}
    travelling: set[str] = set()
    for line in text[text.index("\nENTRY") :].splitlines():
        if (match := EXCHANGE.search(line)) is None:
            found["products"] += (product := bool(PRODUCT.search(line)))
            found["products meanwhile"] += product and bool(travelling)
        elif match[3] == "-start":
            found["started"] += 1
            travelling.add(match[1])
        elif match[3] == "-done":
            travelling -= set(re.findall(r"%([\w.\-]+)", match[4]))
        else:
            found["waiting"] += 1
    return found


def compiled(name: str, overlap: Any, options: dict[str, str]) -> str:
    """The module of a layer's gradients: 8 experts of 1024 x 4096, 2048 tokens on each device."""
    devices = topologies.get_topology_desc(name, platform="tpu").devices[:4]
    mesh = jax.sharding.Mesh(
        np.array(devices), ("expert",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    target = topology(name).target.name
    schedule = mg.Schedule(format="slots", send="rows", mesh=mesh, target=target, overlap=overlap)
    layer = mg.compile(routers.noisy_top_k.bind(k=2), experts.mlp, schedule)
    x = jax.ShapeDtypeStruct((4, 2048, 1024), "bfloat16")
    params = layer.abstract_params(x, experts=8, hidden=4096)

    def loss(params: Any, x: Any) -> Any:
        return layer(params, x, key=None)[0].astype(jnp.float32).sum()

    def place(path: Any, a: Any) -> Any:
        spec = P("expert") if "router" not in jax.tree_util.keystr(path) else P()
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec))

    placed = jax.tree_util.tree_map_with_path(place, (params, x))
    lowered = jax.jit(jax.grad(loss, (0, 1))).lower(*placed)
    return str(lowered.compile(compiler_options=options).as_text())


def measured(name: str, *options: str) -> list[dict[str, Any]]:
    """The lines of the program, run in a process of its own with libtpu in sight."""
    folder = libtpu_folder()
    assert folder is not None
    command = [sys.executable, "-m", "tests.moegen.tune.overlaps", name, *options]
    env = {**environment(folder), "OVERLAPS_INSIDE": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main() -> None:
    name, *given = sys.argv[1:]
    if "OVERLAPS_INSIDE" not in os.environ:
        print("\n".join(map(json.dumps, measured(name, *given))))
        return
    options = dict(option.split("=") for option in given)
    for overlap in WAYS:
        print(json.dumps({"overlap": overlap, **counts(compiled(name, overlap, options))}))


if __name__ == "__main__":
    main()
