"""The process that compiles a planned step, with libtpu: flags as JSON on stdin, JSON lines out.

A line is {"phase": ...} when one begins and every half minute of it, {"refused": ...} where the
compiler says no, or the last one, {"compiled": ...}.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from jax.experimental import topologies

from moegen import plan
from vmoe.plan.asked import Asked, Request, asked
from vmoe.plan.step import batch_shapes, placed_state, state_shapes
from vmoe.sharding import mesh_of
from vmoe.state import step_on

BEAT = 30.0
"""Seconds between signs of life."""


def main() -> None:
    """Compiles what the flags on stdin ask for."""
    wanted = asked(Request(**json.loads(sys.stdin.read())))
    phases = Phases()
    try:
        found = {"compiled": compiled(wanted, phases)}
    except Exception as error:  # whatever the compiler raises is the answer
        found = {"refused": _reason(error)}
    phases.end()
    found["seconds"] = phases.seconds
    found["process_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    say(found)


def compiled(wanted: Asked, phases: Phases) -> dict[str, Any]:
    """Traces, lowers and compiles the step; returns what the compiler says of it."""
    config = wanted.config
    phases.begin("loading libtpu")
    devices = topologies.get_topology_desc(wanted.topology.name, platform="tpu").devices
    mesh = mesh_of(config.mesh, devices)
    phases.begin("tracing")
    state = placed_state(state_shapes(config, wanted.image), mesh)
    traced = step_on(config, mesh).trace(state, batch_shapes(config, wanted.image, mesh))
    phases.begin("lowering")
    lowered = traced.lower(lowering_platforms=("tpu",))
    phases.begin("compiling")
    program = lowered.compile()
    phases.begin("reading the program")
    return described(program, config.mesh)


def described(program: Any, mesh: tuple[tuple[str, int], ...]) -> dict[str, Any]:
    """Memory, work and collectives of a compiled program, of one device."""
    memory, text = program.memory_analysis(), program.as_text()
    costs = program.cost_analysis() or {}
    costs = costs[0] if isinstance(costs, list) else costs
    held = {
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    held["peak"] = sum(held.values()) - 2 * held["aliased"]
    return {
        "memory": held,
        "flops": costs.get("flops"),
        "bytes": costs.get("bytes accessed"),
        "kernels": text.count('custom_call_target="tpu_custom_call"'),
        "collectives": [
            {"kind": kind, "axes": list(axes), "devices": _devices(axes, mesh),
             "nbytes": nbytes, "times": times}
            for (kind, axes), (nbytes, times) in plan.totals(
                plan.collectives(text, mesh)).items()
        ],
    }  # fmt: skip


class Phases:
    """Says what is being done, and that it still is."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name, self._begun = "", 0.0
        threading.Thread(target=self._beat, daemon=True).start()

    def begin(self, name: str) -> None:
        """Ends the phase under way."""
        self.end()
        self._name, self._begun = name, time.perf_counter()
        say({"phase": name, "after": 0.0})

    def end(self) -> None:
        """Notes how long the phase took."""
        if self._name:
            self.seconds[self._name] = round(time.perf_counter() - self._begun, 1)
        self._name = ""

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT)
            if name := self._name:
                say({"phase": name, "after": time.perf_counter() - self._begun})


def say(line: dict[str, Any], write: Callable[[str], Any] = sys.stdout.write) -> None:
    """Writes one line, whole."""
    write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _devices(axes: tuple[str, ...], mesh: tuple[tuple[str, int], ...]) -> int:
    count = 1
    for axis, size in mesh:
        count *= size if axis in axes else 1
    return count


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "Ran out of memory" in line or "xceeded" in line]
    return f"{type(error).__name__}: {(told or lines or [''])[0]}"[:500]


if __name__ == "__main__":
    main()
