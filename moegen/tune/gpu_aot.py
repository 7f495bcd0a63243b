"""What GPU compilers make of every kernel: a table of status, registers, spills and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from moegen.tune import pallas_gpu, pallas_tcgen05, pallas_triton
from moegen.tune.cases import Shape
from moegen.tune.compiler import Job
from moegen.tune.gpu_compiler import Compilation, compile_for
from moegen.tune.target import MIB

CASES = "moegen.tune.gpu_cases:"
BLOCK = 128
"""Rows that an expert's rows start at a multiple of."""


SHAPES = (
    Shape("forward", "dot", 8192, 1024, 4096, 8),
    Shape("forward, GELU, product kept", "dot", 8192, 1024, 4096, 8, (("epilogue", "kept gelu"),)),
    Shape("forward, bias and GELU", "dot", 8192, 1024, 4096, 8, (("epilogue", "shared bias"),)),
    Shape("forward, gate read, 2048 x 1408", "dot", 8192, 2048, 1408, 32, (("epilogue", "gate"),)),
    Shape("d-input", "dot", 8192, 4096, 1024, 8, (("transposed", True),)),
    Shape("d-weight", "outer", 8192, 1024, 4096, 8),
    Shape("d-weight, 768 x 1536", "outer", 8192, 768, 1536, 32),
)
"""What is compiled: both directions, and widths that are no multiples of the tile's."""
ANY_WIDTH = (
    Shape("forward, 1000 rows, 100 x 201", "dot", 1000, 100, 201, 4),
    Shape("forward, f32, 768 x 3072", "dot", 8192, 768, 3072, 32, (("dtype", "float32"),)),
)
"""For a kernel that takes them."""


def jobs(target: str) -> Iterator[tuple[str, Job]]:
    """The programs for a target, each with its kernel."""
    if target == "h100":
        for shape in SHAPES:
            yield "pallas_gpu", job("pallas_gpu", shape, wgmma_tile(shape))
    if target == "b200":
        for shape in SHAPES:
            yield "pallas_tcgen05", job("pallas_tcgen05", shape, tcgen05_tile(shape))
    for shape in (*SHAPES, *ANY_WIDTH):
        yield "pallas_triton", job("pallas_triton", shape, triton_tile(shape))


def wgmma_tile(shape: Shape) -> tuple[int, ...]:
    """The tile of a product by `pallas_gpu`."""
    if shape.product == "outer":
        return pallas_gpu.outer_tile(shape.depth, shape.width)
    return pallas_gpu.dot_tile(shape.width, BLOCK, shape.held)


def tcgen05_tile(shape: Shape) -> tuple[int, ...]:
    """The tile of a product by `pallas_tcgen05`."""
    if shape.product == "outer":
        return pallas_tcgen05.outer_tile(shape.depth, shape.width)
    return pallas_tcgen05.dot_tile(shape.width)


def triton_tile(shape: Shape) -> tuple[int, ...]:
    """The tile of a product by `pallas_triton`."""
    if shape.product == "outer":
        return pallas_triton.outer_tile(shape.depth, shape.width)
    return pallas_triton.dot_tile(shape.rows, shape.depth, shape.width, shape.experts)


def job(kernel: str, shape: Shape, tile: tuple[int, ...]) -> Job:
    """A product by a kernel."""
    given = {"kernel": kernel, **shape.arguments(tile)}
    return Job(shape.name, CASES + shape.product, given)


def table(targets: tuple[str, ...], progress: Callable[[str], None]) -> str:
    """A page in Markdown; `progress` is told of every program.

    Raises:
      TuneError: without JAX's CUDA plugin.
    """
    lines = [
        "| target | kernel | product | tile | compiles | registers | spilled | tensor-core "
        "instructions | HBM: in, out, temporary |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for target in targets:
        listed = list(jobs(target))
        results = compile_for(target, [job for _, job in listed])
        for (kernel, job), result in zip(listed, results, strict=True):
            lines.append(row(target, kernel, job, result))
            progress(f"{target}: {kernel}: {job.name}: {result.error or 'compiles'}")
    return "\n".join(lines) + "\n"


def row(target: str, kernel: str, job: Job, result: Compilation) -> str:
    """One line of the table."""
    status = f"no: {result.error}" if result.error else f"{result.seconds:.1f} s"
    hbm = "" if result.error else ", ".join(f"{n / MIB:.1f}" for n in result.hbm) + " MiB"
    said = ["", "", ""]
    for entry in result.kernels:
        spilled = f"{sum(entry.spills)} bytes" if any(entry.spills) else "none"
        said = [str(entry.registers), spilled, str(entry.products)]
    shown = " ".join(map(str, job.arguments["tile"]))
    return f"| {' | '.join((target, kernel, job.name, shown, status, *said, hbm))} |"
