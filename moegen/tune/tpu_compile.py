"""The process behind `moegen.tune.tpu_compiler`: jobs as JSON on stdin, a line of JSON for each."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies


def main() -> None:
    """Compiles every job for the topology named on the command line."""
    topology, profiles = sys.argv[1:]
    devices = topologies.get_topology_desc(topology, platform="tpu").devices
    for name, case, arguments in json.loads(sys.stdin.read()):
        print(json.dumps({"name": name, **report(devices, case, arguments, profiles)}), flush=True)


def report(
    devices: Sequence[Any], case: str, arguments: dict[str, Any], profiles: str
) -> dict[str, Any]:
    """Seconds, bytes, cycles and kernels of one program, or the error that the compiler gives.

    It is for the first of the devices, or for all, if the case takes `devices` and places shapes.
    """
    module, _, function = case.partition(":")
    begin = time.perf_counter()
    for file in _files(profiles):
        file.unlink()
    try:
        made = getattr(importlib.import_module(module), function)
        several = {"devices": devices} if "devices" in inspect.signature(made).parameters else {}
        call, shapes = made(**arguments, **several)
        alone = jax.sharding.SingleDeviceSharding(devices[0])
        placed = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=s.sharding or alone), shapes
        )
        compiled = jax.jit(call).lower(*placed).compile()
    except Exception as error:  # whatever the compiler raises is the answer
        return {"error": _reason(error)}
    memory: Any = compiled.memory_analysis()
    return {
        "seconds": round(time.perf_counter() - begin, 2),
        "cycles": cycles("".join(f.read_text(errors="replace") for f in _files(profiles))),
        "hbm": [
            memory.argument_size_in_bytes,
            memory.output_size_in_bytes,
            memory.temp_size_in_bytes,
        ],
        "peak": getattr(memory, "peak_memory_in_bytes", 0),
        "kernels": str(compiled.as_text()).count('custom_call_target="tpu_custom_call"'),
    }


def cycles(profile: str) -> int | None:
    """The sum over the ops of a static profile; None without one or where an op has none."""
    found = [int(n) for n in re.findall(r"estimated_cycles: (\d+)", profile)]
    return sum(found) if found else None


def _files(folder: str) -> list[Path]:
    return [p for p in Path(folder).rglob("*") if p.is_file()] if folder else []


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    used = [line for line in lines if "exceed" in line.lower() or "Ran out of memory" in line]
    return f"{type(error).__name__}: {(used or lines or [''])[0]}"[:300]


if __name__ == "__main__":
    main()
