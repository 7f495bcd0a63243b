"""Compiles for TPUs that are not here: in a process of its own, with the libtpu of `make tpu`.

libtpu is kept out of the environment, where JAX would look for a TPU. For each job the compiler
says whether the program compiles, what it holds, and how many cycles it estimates. The estimate
walks the program's instructions with the chip's latencies, DMA included; it knows some chips only,
sees fixed numbers of steps only, and takes a branch on data as if the data were zeros.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from moegen.errors import TuneError
from moegen.tune.compiler import Job, outcomes

ESTIMATED = ("tpu_v5e", "tpu_v5p", "tpu_v6e", "tpu7x")
"""Targets that libtpu has latencies of; it aborts when asked for cycles of others."""
TOPOLOGIES = {
    "tpu_v4": "v4:2x2x1",
    "tpu_v5e": "v5e:2x2",
    "tpu_v5p": "v5p:2x2x1",
    "tpu_v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}
"""The topology that stands for a target; one of its chips is compiled for."""
FOLDER = "MOEGEN_LIBTPU"
"""Environment variable with the folder that libtpu is installed in."""
MISSING = "there is no libtpu to compile for TPUs with"
FIX = "run `make tpu`, or name its folder in " + FOLDER


@dataclass(frozen=True, slots=True)
class Compilation:
    """What the compiler says of one program; sizes in bytes, `error` if it refused it.

    `cycles` is None where there is no estimate; `hbm` holds arguments, results and temporaries;
    `kernels` counts the calls of Pallas kernels in the program. `peak` is the most that is held at
    a time, arguments and results included; `hbm` does not count what XLA places in VMEM, where
    large temporaries go if they fit.
    """

    name: str
    error: str = ""
    seconds: float = 0.0
    cycles: int | None = None
    hbm: tuple[int, int, int] = (0, 0, 0)
    kernels: int = 0
    peak: int = 0


def libtpu_folder() -> Path | None:
    """The folder to put on the path for libtpu: None where there is none, "." if none is needed."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    named = os.environ.get(FOLDER)
    beside = Path(__file__).parents[2] / ".tpu" / version
    for folder in (Path(named) if named else beside, beside):
        if (folder / "libtpu").is_dir():
            return folder
    return Path() if find_spec("libtpu") else None


def libtpu_version() -> str:
    """The version of the libtpu that compiles, "unknown" where its folder does not say."""
    folder = libtpu_folder()
    found = metadata.distributions(name="libtpu", path=[str(folder)] if folder else [])
    return next((d.version for d in found), "unknown")


def compile_for(
    target: str, jobs: Sequence[Job], *, estimate: bool = True
) -> Iterator[Compilation]:
    """Compiles the jobs one after the other and yields each result as it comes.

    A program that makes the compiler abort is a result too: the next one gets a new process.

    Args:
      target: one of TOPOLOGIES.
      jobs: what to compile.
      estimate: asks for cycles, which takes longer than compiling.

    Raises:
      TuneError: without libtpu, or if the process cannot start.
    """
    folder = libtpu_folder()
    if folder is None:
        raise TuneError(MISSING, fix=FIX)
    if target not in TOPOLOGIES:
        raise TuneError(f'"{target}" is no TPU', fix=f"use one of {', '.join(TOPOLOGIES)}")
    with tempfile.TemporaryDirectory() as made:
        profiles = made if estimate and target in ESTIMATED else ""
        arguments, given = [TOPOLOGIES[target], profiles], environment(folder, profiles)
        for found in outcomes("moegen.tune.tpu_compile", arguments, jobs, given):
            yield Compilation(**{**found, "hbm": tuple(found.get("hbm", (0, 0, 0)))})


def environment(folder: Path, profiles: str = "") -> dict[str, str]:
    """The environment variables of a process that compiles for TPUs, on a CPU.

    Args:
      folder: from `libtpu_folder`.
      profiles: the folder that the compiler writes its estimates of cycles to; "": none.
    """
    path = [str(Path(__file__).parents[2]), str(folder), os.environ.get("PYTHONPATH", "")]
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    asked = f"--xla_jf_dump_static_llo_profile_to={profiles}" if profiles else ""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "LIBTPU_INIT_ARGS": f"{given} {asked}".strip(),
    }
