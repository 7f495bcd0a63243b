"""What TPU compilers make of every kernel: a table of status, memory and cycles."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from moegen.kernels.grouped_dot.tiles_tpu import dot_tile, gathered_tile, outer_tile
from moegen.kernels.grouped_dot.vmem import dot_bytes, gathered_bytes, outer_bytes
from moegen.tune import cases
from moegen.tune.compiler import Job
from moegen.tune.pallas_tpu import vmem_for
from moegen.tune.target import MIB, TARGETS
from moegen.tune.tpu_compiler import ESTIMATED, Compilation, compile_for

CASES = "moegen.tune.tpu_cases:"
STEPS = 4
"""Whole tiles in the program that cycles are estimated of."""


class Shape(cases.Shape):
    """A product to compile for TPUs."""

    def tile(self, target: str) -> tuple[int, ...]:
        """The tile that the kernel takes on a target; empty if none fits."""
        given, vmem = dict(self.settings), vmem_for(TARGETS[target])
        sizes = (self.rows, self.depth, self.width, self.experts)
        dtype = given.get("dtype", "bfloat16")
        if self.product == "outer":
            return outer_tile(*sizes, dtype, vmem)
        choose = gathered_tile if self.product == "gathered" else dot_tile
        return choose(*sizes, (dtype,) * self.moved, vmem, given.get("transposed", False))

    def vmem(self, tile: tuple[int, ...]) -> int:
        """Bytes of VMEM that the kernel asks for."""
        given = dict(self.settings)
        dtype = given.get("dtype", "bfloat16")
        if self.product == "outer":
            return outer_bytes(tile[2], tile[0], tile[1], dtype)
        turned = given.get("transposed", False)
        taken = gathered_bytes if self.product == "gathered" else dot_bytes
        return taken(tile[1], self.depth, tile[0], (dtype,) * self.moved, turned)

    @property
    def moved(self) -> int:
        """Operands and results with a row for each row, the rows themselves first."""
        return 2 + self.held


SCALED = (("epilogue", "scale"),)
SHAPES = (
    Shape("forward", "dot", 8192, 1024, 4096, 8),
    Shape("forward, GELU, product kept", "dot", 8192, 1024, 4096, 8, (("epilogue", "kept gelu"),)),
    Shape("forward, gate read, 2048 x 1408", "dot", 8192, 2048, 1408, 32, (("epilogue", "gate"),)),
    Shape("forward, f32, 768 x 3072", "dot", 8192, 768, 3072, 32, (("dtype", "float32"),)),
    Shape("forward, 1000 rows, 100 x 200", "dot", 1000, 100, 200, 4),
    Shape("forward, down", "dot", 8192, 4096, 1024, 8),
    Shape("forward, bias and GELU", "dot", 8192, 1024, 4096, 8, (("epilogue", "bias"),)),
    Shape("forward, rows gathered", "gathered", 8192, 1024, 4096, 8),
    Shape(
        "forward, rows gathered, f32, 768 x 3072",
        "gathered",
        8192,
        768,
        3072,
        32,
        (("dtype", "float32"),),
    ),
    Shape("d-input", "dot", 8192, 4096, 1024, 8, (("transposed", True),)),
    Shape("forward, i8 weights", "dot", 8192, 1024, 4096, 8, (*SCALED, ("stored", "int8"))),
    Shape(
        "forward, f8 weights", "dot", 8192, 1024, 4096, 8, (*SCALED, ("stored", "float8_e4m3fn"))
    ),
    Shape("d-weight", "outer", 8192, 1024, 4096, 8),
    Shape("d-weight, f32, 768 x 1536", "outer", 8192, 768, 1536, 32, (("dtype", "float32"),)),
)
"""What is compiled: both directions, odd widths, and dtypes."""


def jobs(target: str) -> Iterator[tuple[Shape, Job]]:
    """The programs for a target, with sizes known when they run only."""
    for shape in SHAPES:
        yield shape, Job(shape.name, CASES + shape.product, shape.arguments(shape.tile(target)))


def step_job(shape: Shape, job: Job) -> Job:
    """The same with a few whole tiles, for the estimate of cycles."""
    tile = job.arguments["tile"]
    at = 2 if shape.product == "outer" else 1
    whole = [*tile[:at], tile[at]]
    arguments = {**job.arguments, "tile": whole, "visits": STEPS, "rows": STEPS * tile[at]}
    return Job(job.name, job.case, arguments)


def table(targets: tuple[str, ...], progress: Callable[[str], None]) -> str:
    """A page in Markdown; `progress` is told of every program.

    Raises:
      TuneError: without libtpu.
    """
    lines = [
        f"| target | product | tile | compiles | VMEM | HBM: in, out, temporary | {STEPS} steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for target in targets:
        pairs = list(jobs(target))
        results = compile_for(target, [job for _, job in pairs], estimate=False)
        for (shape, job), result in zip(pairs, results, strict=True):
            cycles = _cycles(target, shape, job) if not result.error else None
            lines.append(row(target, shape, job, result, cycles))
            progress(f"{target}: {shape.name}: {result.error or 'compiles'}")
    return "\n".join(lines) + "\n"


def _cycles(target: str, shape: Shape, job: Job) -> int | None:
    if target not in ESTIMATED:
        return None
    (result,) = compile_for(target, [step_job(shape, job)])
    return result.cycles


def row(target: str, shape: Shape, job: Job, result: Compilation, cycles: int | None) -> str:
    """One line of the table."""
    tile = job.arguments["tile"]
    status = f"no: {result.error}" if result.error else f"{result.seconds:.1f} s"
    hbm = "" if result.error else ", ".join(f"{n / MIB:.1f}" for n in result.hbm) + " MiB"
    vmem = f"{shape.vmem(tile) / MIB:.1f} MiB" if tile else "none fits"
    estimate = f"{cycles} cycles" if cycles else "no estimate"
    cells = (target, shape.name, " ".join(map(str, tile)), status, vmem, hbm, estimate)
    return f"| {' | '.join(cells)} |"
