"""Compiles for GPUs that are not here: in a process of its own, with JAX's CUDA plugin.

The plugin is kept out of the environment, where JAX would look for a GPU. XLA compiles whole
programs for a GPU that is only described to it, kernels of Mosaic GPU and Triton included. The PTX
of products is given to ptxas, which says how many registers a thread has and what it spills.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moegen.errors import TuneError
from moegen.tune.compiler import Job, outcomes

FOLDER = "MOEGEN_CUDA"
"""Environment variable with the folder that the plugin and ptxas are installed in."""
MISSING = "there is no CUDA plugin and ptxas to compile for GPUs with"
FIX = "run `make cuda`, or name its folder in " + FOLDER


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU as XLA has to be told of it.

    Attributes:
      kind: as `device_kind` of a JAX device.
      capability: CUDA's compute capability.
      cores: multiprocessors.
      shared: bytes of shared memory of a multiprocessor; a block can have 1 KiB less.
      lanes: f32 units of a multiprocessor.
      cache: bytes of the second-level cache.
      memory: bytes of HBM, and bytes per second.
      clock: GHz.
    """

    kind: str
    capability: tuple[int, int]
    cores: int
    shared: int
    lanes: int
    cache: int
    memory: tuple[int, float]
    clock: float


DEVICES = {
    "a100": Device(
        "NVIDIA A100-SXM4-80GB", (8, 0), 108, 164 << 10, 64, 40 << 20, (80 << 30, 2.039e12), 1.41
    ),
    "h100": Device(
        "NVIDIA H100 80GB HBM3", (9, 0), 132, 228 << 10, 128, 50 << 20, (80 << 30, 3.35e12), 1.98
    ),
    "b200": Device("NVIDIA B200", (10, 0), 148, 228 << 10, 128, 126 << 20, (180 << 30, 8e12), 1.96),
}
"""By target: from NVIDIA's data sheets and the CUDA programming guide's table of capabilities."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What ptxas says of one kernel of a program.

    Attributes:
      name: of its entry point.
      registers: of a thread; 255 is the most there can be.
      stack: bytes of local memory of a thread, which is spilled registers and arrays.
      spills: bytes of spill stores and spill loads.
      products: instructions of tensor cores, in PTX.
      warnings: what else ptxas says of it, such as products that wait for each other.
    """

    name: str
    registers: int
    stack: int
    spills: tuple[int, int]
    products: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Compilation:
    """What the compilers say of one program.

    Attributes:
      name: of the job.
      error: why it does not compile; empty if it does.
      seconds: to lower and compile it.
      hbm: bytes of arguments, results and temporaries.
      kernels: those of the program that use the tensor cores.
    """

    name: str
    error: str = ""
    seconds: float = 0.0
    hbm: tuple[int, int, int] = (0, 0, 0)
    kernels: tuple[Entry, ...] = ()


def plugin_folder() -> Path | None:
    """The folder to put on the path for the plugin, or that has it already; None without one."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    named = os.environ.get(FOLDER)
    beside = Path(__file__).parents[2] / ".cuda" / version
    for folder in (Path(named) if named else beside, beside, *map(Path, sys.path)):
        if (folder / "jax_plugins").is_dir() and ptxas(folder):
            return folder
    return None


def ptxas(folder: Path) -> Path | None:
    """NVIDIA's assembler in that folder; None where there is none."""
    return next(iter(sorted(folder.glob("nvidia/*/bin/ptxas"))), None)


def compile_for(target: str, jobs: Sequence[Job]) -> Iterator[Compilation]:
    """Compiles the jobs one after the other and yields each result as it comes.

    Args:
      target: one of DEVICES.
      jobs: what to compile.

    Raises:
      TuneError: without the plugin or ptxas, or for a target that is not known.
    """
    folder = plugin_folder()
    if folder is None:
        raise TuneError(MISSING, fix=FIX)
    if target not in DEVICES:
        raise TuneError(
            f'"{target}" is no GPU to compile for', fix=f"use one of {', '.join(DEVICES)}"
        )
    with tempfile.TemporaryDirectory() as dumps:
        arguments = [target, dumps, str(ptxas(folder))]
        for found in outcomes(
            "moegen.tune.gpu_compile", arguments, jobs, environment(folder, dumps)
        ):
            yield _compilation(found)


def _compilation(found: dict[str, Any]) -> Compilation:
    kernels = tuple(
        Entry(**{**k, "spills": tuple(k["spills"]), "warnings": tuple(k["warnings"])})
        for k in found.pop("kernels", ())
    )
    return Compilation(**{**found, "hbm": tuple(found.get("hbm", (0, 0, 0)))}, kernels=kernels)


def environment(folder: Path, dumps: str) -> dict[str, str]:
    """The environment variables of a process that compiles for GPUs, on a CPU.

    Args:
      folder: from `plugin_folder`.
      dumps: the folder that XLA and Mosaic write their PTX to.
    """
    path = [str(Path(__file__).parents[2]), str(folder), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "JAX_PLATFORMS": "cpu",
        # Without the second flag jax 0.12 writes no PTX.
        "XLA_FLAGS": f"--xla_dump_to={dumps} --xla_dump_emitter_re=ptx",
        "MOSAIC_GPU_DUMP_PTX": "1",
        "MOSAIC_GPU_DUMP_TO": dumps,
        "PYTHONWARNINGS": "ignore::DeprecationWarning",
    }


def description(device: Device) -> str:
    """The text that tells XLA of a GPU (`GpuTargetConfigProto`)."""
    major, minor = device.capability
    held, rate = device.memory
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {device.shared}
  shared_memory_per_block_optin: {device.shared - 1024}
  threads_per_core_limit: 2048
  core_count: {device.cores}
  fpus_per_core: {device.lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {rate:.0f}
  l2_cache_size: {device.cache}
  clock_rate_ghz: {device.clock}
  device_memory_size: {held}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{device.kind}"
"""
