"""A grouped product with one elementwise op as its epilogue, to compile for TPUs and GPUs."""

import jax
import jax.numpy as jnp

from moegen.backends.expressions import EXPRESSIONS
from moegen.kernels import activations
from moegen.kernels.grouped_dot.pallas_tpu import grouped_dot_tpu


def elementwise(op):
    """The epilogue of one op; a result that is no float is cast to one."""
    text = EXPRESSIONS[op].format("acc", "c0", "c1", dtype="jnp.bfloat16")
    text = text.replace("c0", "(acc > c0)") if op.startswith("logical") else text
    if op in ("select", "logical_not", "logical_and", "logical_or"):
        text = EXPRESSIONS[op].format("(acc > 0)", "(c0 > 1)", "c1", dtype="")
        text = text.replace("(c0 > 1)", "c0") if op == "select" else text
    names = {"jax": jax, "jnp": jnp, **vars(activations)}
    return eval(f"lambda acc, c0, c1: (({text}).astype(jnp.float32),)", names)


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
