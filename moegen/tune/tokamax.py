"""Reads the autotuning tables that tokamax publishes with its wheel.

A table maps a call, written as JSON, to the best configuration found and its times. What is
taken: bfloat16 operands, no activation, no residuals (they add a copy of the output).
"""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from moegen.errors import TuneError
from moegen.tune.observations import Observation
from moegen.tune.problem import Problem

DEVICES = {
    "tpu_v5_lite": "tpu_v5e",
    "tpu_v5": "tpu_v5p",
    "tpu_v6_lite": "tpu_v6e",
    "tpu7x": "tpu7x",
    "nvidia_h100_80gb_hbm3": "h100",
    "nvidia_b200": "b200",
}
KERNELS = {
    "ragged_dot": "xla",
    "pallas_mosaic_tpu_ragged_dot": "pallas_tpu",
    "pallas_mosaic_tpu_v2_ragged_dot": "pallas_tpu_v2",
    "pallas_mosaic_gpu_ragged_dot": "mosaic_gpu",
    "pallas_triton_ragged_dot": "triton",
    "triton_ragged_dot": "triton",
}
CONTRACTED = {"1,1": "fwd", "1,2": "dlhs", "0,0": "drhs"}
_BF16 = re.compile(r"bf16\[([\d,]+)\]")


def read_tokamax(directory: Path) -> list[Observation]:
    """Reads every table below a directory; the best of several times of a case is kept.

    Raises:
      TuneError: if there is no table, or one cannot be read.
    """
    best: dict[Any, Observation] = {}
    for device, target in DEVICES.items():
        for table, kernel in KERNELS.items():
            for path in sorted(directory.glob(f"**/{device}/{table}.json")):
                for o in _read(path, target, kernel):
                    key = (o.target, o.kernel, *o.case)
                    if key not in best or o.seconds < best[key].seconds:
                        best[key] = o
    if not best:
        raise TuneError(
            f"{directory}: no tokamax tables, such as tpu7x/ragged_dot.json",
            fix="name the directory data/autotuning of an installed tokamax",
        )
    return [best[k] for k in sorted(best, key=str)]


def _read(path: Path, target: str, kernel: str) -> list[Observation]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        cases = [(_problem(json.loads(call)), timed) for call, timed in table.items()]
        found = [
            Observation(target, kernel, problem, output, _tile(json.loads(config)), _median(times))
            for found, timed in cases
            if found is not None
            for problem, output in [found]
            for config, times in timed.items()
        ]
        return _in_order(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TuneError(f"{path}: not a tokamax table ({error})", fix="install it anew") from None


def _in_order(found: list[Observation]) -> list[Observation]:
    """Turns dlhs tiles of tables that state (rows, contracted, out) into (rows, k, n).

    Releases differ in it and do not say which they are; the order is the one in which more
    tiles are no larger than their dims.
    """
    turned = [_turned(o) if o.problem.direction == "dlhs" else o for o in found]
    return turned if sum(map(_too_large, turned)) < sum(map(_too_large, found)) else found


def _turned(o: Observation) -> Observation:
    return replace(o, tile=(o.tile[0], o.tile[2], o.tile[1])) if len(o.tile) == 3 else o


def _too_large(o: Observation) -> bool:
    sizes = (o.problem.k, o.problem.n)
    return len(o.tile) == 3 and any(t >= d + 128 for t, d in zip(o.tile[1:], sizes, strict=True))


def _problem(call: dict[str, Any]) -> tuple[Problem, str] | None:
    operands = [_BF16.fullmatch(str(call[name])) for name in ("lhs", "rhs")]
    unusual = ("return_residuals", "activation", "group_offset", "fuse_gateup_activation")
    if None in operands or any(call.get(name) for name in unusual):
        return None
    a, b = ([int(d) for d in m[1].split(",")] for m in operands if m)
    (x,), (y,) = call["ragged_dot_dimension_numbers"]["dot_dimension_numbers"][0]
    direction = CONTRACTED[f"{x},{y}"]
    k, n = {"fwd": (a[1], b[-1]), "dlhs": (b[1], a[1]), "drhs": (a[1], b[-1])}[direction]
    sizes = call["group_sizes"]
    groups = sizes["num_groups"] if isinstance(sizes, dict) else len(sizes)
    active = None if isinstance(sizes, dict) else sum(1 for s in sizes if s)
    if direction == "drhs" and groups == a[0] > 8:
        return None  # some keys state the rows where the groups belong
    return Problem(direction, a[0], k, n, groups, active), call["preferred_element_type"] or "same"


def _tile(config: dict[str, Any]) -> tuple[float, ...]:
    """Rows, k, n of a TPU tile; rows, columns, depth and stages of a GPU block."""
    if config.get("tile_m"):
        return tuple(float(config[f"tile_{d}"]) for d in "mkn")
    if not config.get("block_m"):
        return ()
    pair = 2 if config.get("collective") else 1  # two blocks share a tile of twice the rows
    block = (config["block_m"] * pair, config["block_n"], config["block_k"], config["num_stages"])
    return tuple(map(float, block))


def _median(times: dict[str, Any]) -> float:
    return float(statistics.median(times["evaluation_times_ms"])) * 1e-3
