"""The process behind `moegen.tune.gpu_compiler`: jobs as JSON on stdin, a line of JSON for each."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from moegen.tune.gpu_compiler import DEVICES, Device, Entry, description

TENSOR_CORES = re.compile(r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)\b")


def main() -> None:
    """Compiles every job for the target named on the command line."""
    target, dumps, ptxas = sys.argv[1:]
    described = description(DEVICES[target])
    topology = topologies.get_topology_desc(
        platform="cuda", topology="1x1x1", target_config=described
    )
    (device,) = topology.devices
    for name, case, arguments in json.loads(sys.stdin.read()):
        for file in Path(dumps).iterdir():
            file.unlink()
        with as_if_on(DEVICES[target]):
            found = report(device, case, arguments)
        if "error" not in found:
            texts = [p.read_text(errors="replace") for p in sorted(Path(dumps).glob("*.ptx"))]
            kernels = [k for text in texts for k in entries(text, ptxas)]
            found["kernels"] = [asdict(k) for k in kernels]
        print(json.dumps({"name": name, **found}), flush=True)


def report(device: Any, case: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Seconds and bytes of one program, or the error that the compiler gives."""
    module, _, function = case.partition(":")
    begin = time.perf_counter()
    try:
        call, shapes = getattr(importlib.import_module(module), function)(**arguments)
        alone = jax.sharding.SingleDeviceSharding(device)
        placed = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=alone), shapes
        )
        lowered = jax.jit(call).trace(*placed).lower(lowering_platforms=("cuda",))
        memory: Any = lowered.compile().memory_analysis()
    except Exception as error:  # whatever the compiler raises is the answer
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return {"error": f"{type(error).__name__}: {(lines or [''])[0]}"[:300]}
    return {
        "seconds": round(time.perf_counter() - begin, 2),
        "hbm": [
            memory.argument_size_in_bytes,
            memory.output_size_in_bytes,
            memory.temp_size_in_bytes,
        ],
    }


def as_if_on(device: Device) -> contextlib.AbstractContextManager[Any]:
    """Where Triton kernels are lowered for that GPU; jax 0.10 always takes one of Hopper."""
    named = jax.sharding.AbstractDevice(
        device_kind=device.kind, num_cores=device.cores, platform="cuda"
    )
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=named))


def entries(ptx: str, ptxas: str) -> Iterator[Entry]:
    """What ptxas says of the kernels of a PTX module that use the tensor cores.

    Raises:
      RuntimeError: if it does not take the module.
    """
    bodies = {part.partition("(")[0]: part for part in ptx.split(".entry ")[1:]}
    products = {n: len(TENSOR_CORES.findall(body)) for n, body in bodies.items()}
    if not any(products.values()):
        return
    (arch,) = re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)
    command = [ptxas, "--verbose", f"--gpu-name={arch}", "--output-file=/dev/null", "-"]
    done = subprocess.run(command, input=ptx, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ptxas does not take the compiler's PTX: {done.stderr[:300]}")
    for name, count in products.items():
        if count:
            yield entry(name, count, done.stderr)


def entry(name: str, products: int, said: str) -> Entry:
    """One kernel, from what ptxas said of its module."""
    about = said.partition(f"Compiling entry function '{name}'")[2].partition("Compiling entry")[0]
    spilled = r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    ((stack, stores, loads),) = re.findall(spilled, about)
    (registers,) = re.findall(r"Used (\d+) registers", about)
    warnings = re.findall(rf"\((C\d+\) .*) in (?:the )?function '{name}'", said)
    spills = (int(stores), int(loads))
    return Entry(name, int(registers), int(stack), spills, products, tuple(warnings))


if __name__ == "__main__":
    main()
