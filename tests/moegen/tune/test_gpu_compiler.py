"""Compiling for GPUs that are not here, down to machine code; what goes wrong is told."""

import jax
import jax.numpy as jnp
import pytest

from moegen.backends.expressions import EXPRESSIONS
from moegen.errors import TuneError
from moegen.tune import gpu_aot, gpu_compiler, pallas_gpu, pallas_triton
from moegen.tune.compiler import Job
from moegen.tune.gpu_compiler import DEVICES, Compilation, Entry, compile_for, plugin_folder

CASES = "moegen.tune.gpu_cases:"
SMALL = {"rows": 384, "depth": 128, "width": 192, "experts": 3, "kernel": "pallas_gpu"}
TILE = [64, 128, 64, 4]
JOBS = [
    Job("forward", CASES + "dot", {**SMALL, "tile": TILE, "epilogue": "kept gelu"}),
    Job("d-weight", CASES + "outer", {**SMALL, "tile": TILE}),
    Job("too large", CASES + "dot", {**SMALL, "depth": 1024, "tile": [128, 128, 64, 16]}),
]
TRITON = {"rows": 90, "depth": 100, "width": 50, "experts": 3, "kernel": "pallas_triton"}
TRITON_JOBS = [
    Job("forward", CASES + "dot", {**TRITON, "tile": [32, 32, 32, 2], "epilogue": "gate"}),
    Job("d-input", CASES + "dot", {**TRITON, "tile": [32, 32, 32, 2], "transposed": True}),
    Job("d-weight", CASES + "outer", {**TRITON, "tile": [32, 32, 32, 2], "dtype": "float32"}),
]
KERNELS = [("a100", "pallas_triton"), ("h100", "pallas_gpu"), ("b200", "pallas_tcgen05")]
needs_plugin = pytest.mark.skipif(
    plugin_folder() is None, reason=f"{gpu_compiler.MISSING}: {gpu_compiler.FIX}"
)


def layer(target, kernel):
    """A whole layer with its gradients; run by the process that compiles."""
    import moegen as mg
    from moegen.experts import mlp
    from moegen.routers import switch

    schedule = mg.Schedule(format="sorted", block=128, target=target, kernel=kernel)
    made = mg.compile(switch.bind(dropless=True), mlp, schedule)
    x = jax.ShapeDtypeStruct((1, 96, 64), jnp.bfloat16)
    params = jax.eval_shape(lambda x: made.init(jax.random.key(1), x, experts=2, hidden=128), x)

    def loss(params, x):
        return jnp.sum(made(params, x)[0].astype(jnp.float32))

    return jax.value_and_grad(loss, argnums=(0, 1)), [params, x]


@needs_plugin
def test_kernels_compile_for_an_h100_with_no_spills():
    """Down to machine code; a tile too large for shared memory is an answer, not an end."""
    forward, outer, large = compile_for("h100", JOBS)
    for done in (forward, outer):
        assert not done.error
        (entry,) = done.kernels
        assert entry.products >= 4
        assert 32 <= entry.registers <= 255
        assert (entry.stack, entry.spills) == (0, (0, 0))
    assert "shared memory" in large.error


@needs_plugin
def test_tcgen05_kernels_compile_for_a_b200():
    changed = {"kernel": "pallas_tcgen05", "tile": [128, 64, 64, 2]}
    jobs = [Job(job.name, job.case, {**job.arguments, **changed}) for job in JOBS[:2]]
    for done in compile_for("b200", jobs):
        assert not done.error, done.name
        (entry,) = done.kernels
        assert entry.products >= 4
        assert (entry.stack, entry.spills) == (0, (0, 0))


@needs_plugin
def test_triton_kernels_compile_for_an_a100():
    for done in compile_for("a100", TRITON_JOBS):
        assert not done.error, done.name
        (entry,) = done.kernels
        assert "grouped" in entry.name
        assert entry.products >= 2
        assert (entry.stack, entry.spills) == (0, (0, 0))


@pytest.mark.nightly
@needs_plugin
@pytest.mark.parametrize("target,kernel", KERNELS)
def test_a_layer_with_its_gradients_compiles(target, kernel):
    """Six products by the kernel; XLA makes the router's own."""
    job = Job("layer", f"{__name__}:layer", {"target": target, "kernel": kernel})
    (done,) = compile_for(target, [job])
    assert not done.error
    assert sum("grouped" in k.name for k in done.kernels) == 6


@pytest.mark.nightly
@needs_plugin
@pytest.mark.parametrize("target,kernel", KERNELS)
def test_every_elementwise_op_compiles_as_an_epilogue(target, kernel):
    lacking = (pallas_triton if kernel == "pallas_triton" else pallas_gpu).NOT_LOWERED
    jobs = [
        Job(op, "tests.moegen.tune.epilogues:on_gpu", {"kernel": kernel, "op": op})
        for op in EXPRESSIONS
        if op not in lacking
    ]
    assert [(r.name, r.error) for r in compile_for(target, jobs) if r.error] == []


@pytest.mark.nightly
@needs_plugin
@pytest.mark.parametrize("target", DEVICES)
def test_every_kernel_compiles_for_every_gpu(target):
    listed = list(gpu_aot.jobs(target))
    found = compile_for(target, [job for _, job in listed])
    for (kernel, job), done in zip(listed, found, strict=True):
        assert not done.error, (kernel, job.name)
        assert [k.spills for k in done.kernels] == [(0, 0)], (kernel, job.name)


def test_a_row_of_the_table():
    kernel, job = next(gpu_aot.jobs("h100"))
    entry = Entry("body", 154, 0, (8, 16), 8)
    done = Compilation(
        job.name, "", 2.0, (2**20, 2**21, 0), (Entry("fusion", 16, 0, (0, 0), 0), entry)
    )
    assert gpu_aot.row("h100", kernel, job, done) == (
        "| h100 | pallas_gpu | forward | 128 128 64 4 | 2.0 s | 154 | 24 bytes | 8 "
        "| 1.0, 2.0, 0.0 MiB |"
    )
    assert "| no: too large |" in gpu_aot.row(
        "h100", kernel, job, Compilation(job.name, "too large")
    )


def test_without_the_plugin_the_command_to_get_it_is_named(monkeypatch):
    monkeypatch.setattr(gpu_compiler, "plugin_folder", lambda: None)
    with pytest.raises(TuneError, match="there is no CUDA plugin") as caught:
        next(compile_for("h100", JOBS))
    assert "make cuda" in str(caught.value.fix)


@needs_plugin
def test_a_target_that_is_no_gpu():
    with pytest.raises(TuneError, match='"tpu_v5e" is no GPU'):
        next(compile_for("tpu_v5e", JOBS))
