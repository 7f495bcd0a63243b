"""A grouped product with one elementwise op as its epilogue, to compile for TPUs and GPUs."""

import jax
import jax.numpy as jnp

from moegen.backends.expressions import EXPRESSIONS
from moegen.backends.grouped.pallas_gpu import respell
from moegen.kernels import activations
from moegen.kernels.grouped_dot.pallas_tpu import grouped_dot_tpu
from moegen.tune.gpu_cases import DOTS
from moegen.tune.gpu_compile import as_if_on
from moegen.tune.gpu_compiler import DEVICES


def elementwise(op, respell=lambda text: text):
    """The epilogue of one op; a result that is no float is cast to one."""
    text = EXPRESSIONS[op].format("acc", "c0", "c1", dtype="jnp.bfloat16")
    text = text.replace("c0", "(acc > c0)") if op.startswith("logical") else text
    if op in ("select", "logical_not", "logical_and", "logical_or"):
        text = EXPRESSIONS[op].format("(acc > 0)", "(c0 > 1)", "c1", dtype="")
        text = text.replace("(c0 > 1)", "c0") if op == "select" else text
    names = {"jax": jax, "jnp": jnp, **vars(activations)}
    return eval(f"lambda acc, c0, c1: (({respell(text)}).astype(jnp.float32),)", names)


def dot(op):
    """The function and its shapes."""
    function = elementwise(op)

    def call(x, w, sizes, *extra):
        return grouped_dot_tpu(
            x, w, sizes, *extra, tile=(128, 32), epilogue=function, dtypes=(jnp.float32,)
        )

    shapes = [((64, 128), "float32"), ((2, 128, 128), "float32"), ((2,), "int32")]
    shapes += [((64, 128), "float32")] * 2
    return call, [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]


GPU = {
    "pallas_gpu": ((64, 128, 64, 2), respell),
    "pallas_tcgen05": ((128, 128, 64, 2), respell),
    "pallas_triton": ((32, 32, 32, 2), lambda text: text),
}
"""A small tile of each kernel for GPUs, and how its expressions are written."""


def on_gpu(kernel, op):
    """The function and its shapes, by a kernel for GPUs."""
    tile, spelled = GPU[kernel]
    function = elementwise(op, spelled)

    def call(x, w, sizes, *extra):
        return DOTS[kernel](
            x, w, sizes, *extra, tile=tile, epilogue=function, dtypes=(jnp.float32,)
        )

    shapes = [((128, 64), "bfloat16"), ((2, 64, 128), "bfloat16"), ((2,), "int32")]
    shapes += [((128, 128), "float32")] * 2
    return call, [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]


def not_lowered(kernel):
    """The ops that jax refuses to lower for cuda in an epilogue of a kernel."""
    refused = []
    for op in EXPRESSIONS:
        call, shapes = on_gpu(kernel, op)
        try:
            with as_if_on(DEVICES["a100"]):
                jax.jit(call).trace(*shapes).lower(lowering_platforms=("cuda",))
        except Exception:  # jax raises several kinds; that it refuses is what counts
            refused.append(op)
    return sorted(refused)
