"""Compiling for TPUs that are not here: the kernels compile, and what goes wrong is told."""

import pytest

from moegen.backends.expressions import EXPRESSIONS
from moegen.errors import TuneError
from moegen.tune import aot, tpu_compiler
from moegen.tune.compiler import Job
from moegen.tune.pallas_tpu import UNLOWERED
from moegen.tune.tpu_compile import cycles
from moegen.tune.tpu_compiler import TOPOLOGIES, compile_for, libtpu_folder
from tests.moegen.tune import overlaps

CASES = "moegen.tune.tpu_cases:"
SMALL = {"rows": 250, "depth": 100, "width": 200, "experts": 4}
SLOTS = {"groups": 16, "slots": 136, "depth": 256, "width": 384, "experts": 16}
JOBS = [
    Job("forward", CASES + "dot", {**SMALL, "tile": [200, 64, 32], "epilogue": "kept gelu"}),
    Job("gate", CASES + "dot", {**SMALL, "tile": [200, 64, 32], "epilogue": "gate"}),
    Job("d-input", CASES + "dot", {**SMALL, "tile": [200, 64, 32], "transposed": True}),
    Job("f32", CASES + "dot", {**SMALL, "tile": [200, 64, 32], "dtype": "float32"}),
    Job(
        "i8", CASES + "dot", {**SMALL, "tile": [200, 64, 32], "stored": "int8", "epilogue": "scale"}
    ),
    Job(
        "f8, d-input",
        CASES + "dot",
        {**SMALL, "tile": [200, 64, 32], "stored": "float8_e4m3fn", "transposed": True},
    ),
    Job("d-weight", CASES + "outer", {**SMALL, "tile": [100, 200, 64, 32]}),
    Job("exchanged", CASES + "exchanged", {**SLOTS, "transposed": True}),
    Job(
        "exchanged, f32, uneven slots",
        CASES + "exchanged",
        {**SLOTS, "dtype": "float32", "slots": 7},
    ),
]
needs_libtpu = pytest.mark.skipif(
    libtpu_folder() is None, reason=f"{tpu_compiler.MISSING}: {tpu_compiler.FIX}"
)


@needs_libtpu
def test_every_kernel_compiles_for_a_v5e():
    found = [(r.name, r.error, r.kernels) for r in compile_for("tpu_v5e", JOBS, estimate=False)]
    assert found == [(job.name, "", 1) for job in JOBS]


@pytest.mark.nightly
@needs_libtpu
@pytest.mark.parametrize("target", TOPOLOGIES)
def test_every_kernel_compiles_for_every_tpu(target):
    real = [job for _, job in aot.jobs(target)]
    results = list(compile_for(target, [*JOBS, *real], estimate=False))
    assert [(r.name, r.error) for r in results] == [(job.name, "") for job in (*JOBS, *real)]


@needs_libtpu
def test_cycles_grow_with_the_steps_and_an_abort_is_a_result():
    """The estimate aborts the compiler at lists made by XLA; the jobs after it are still done."""
    whole = {"rows": 64, "depth": 128, "width": 128, "experts": 2, "tile": [128, 32]}
    dynamic = Job("dynamic", CASES + "dot", {**whole, "tile": [128, 32, 16]})
    steps = [Job(f"{n}", CASES + "dot", {**whole, "visits": n}) for n in (2, 4)]
    aborted, two, four = compile_for("tpu_v5e", [dynamic, *steps])
    assert "the compiler aborted: Static LLO profiling" in aborted.error
    assert 0 < two.cycles < four.cycles


@pytest.mark.nightly
@needs_libtpu
def test_a_ring_travels_while_products_run_and_an_exchange_is_waited_for():
    found = {line["overlap"]: line for line in overlaps.measured("v5e:2x2")}
    assert found[4]["waiting"] == 16
    assert found[4]["products meanwhile"] == 0
    assert found["ring"]["waiting"] == 0
    assert found["ring"]["products meanwhile"] > found["ring"]["products"] // 2


@pytest.mark.nightly
@needs_libtpu
def test_every_elementwise_op_compiles_as_an_epilogue():
    jobs = [Job(op, "tests.moegen.tune.epilogues:dot", {"op": op}) for op in EXPRESSIONS]
    refused = [r.name for r in compile_for("tpu_v5e", jobs, estimate=False) if r.error]
    assert tuple(refused) == UNLOWERED


@pytest.mark.nightly
@needs_libtpu
def test_what_does_not_fit_is_refused_with_the_compilers_reason():
    large = {"rows": 16, "depth": 8192, "width": 8192, "experts": 2, "tile": [8192, 16]}
    (result,) = compile_for("tpu_v5e", [Job("large", CASES + "dot", large)], estimate=False)
    assert "would exceed memory" in result.error


def test_a_tile_is_chosen_for_every_shape_on_every_target():
    for target in TOPOLOGIES:
        for shape, job in aot.jobs(target):
            assert job.arguments["tile"], (target, shape.name)
            limit = aot.vmem_for(aot.TARGETS[target])
            assert shape.vmem(job.arguments["tile"]) <= limit


def test_a_row_of_the_table():
    shape, job = next(iter(aot.jobs("tpu_v5e")))
    done = tpu_compiler.Compilation(job.name, "", 2.0, None, (2**20, 2**21, 0))
    assert aot.row("tpu_v5e", shape, job, done, 70000) == (
        "| tpu_v5e | forward | 4096 1024 512 448 384 320 256 224 192 160 128 112 96 80 64 48 32 16 "
        "| 2.0 s | 86.0 MiB "
        "| 1.0, 2.0, 0.0 MiB | 70000 cycles |"
    )
    refused = tpu_compiler.Compilation(job.name, "too large")
    assert "| no: too large |" in aot.row("tpu_v5e", shape, job, refused, None)


def test_a_profile_is_summed():
    assert cycles('op: "a"\n estimated_cycles: 12\nop: "b"\n estimated_cycles: 30\n') == 42
    assert cycles("") is None


def test_without_libtpu_the_command_to_get_it_is_named(monkeypatch):
    monkeypatch.setattr(tpu_compiler, "libtpu_folder", lambda: None)
    with pytest.raises(TuneError, match="there is no libtpu") as caught:
        next(compile_for("tpu_v5e", JOBS))
    assert "make tpu" in str(caught.value.fix)


@needs_libtpu
def test_a_target_that_is_no_tpu():
    with pytest.raises(TuneError, match='"h100" is no TPU'):
        next(compile_for("h100", JOBS))
