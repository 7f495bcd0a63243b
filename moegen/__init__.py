"""moegen: a compiler for Mixture-of-Experts layers in JAX.

Declare a router and an expert, compile them into a layer, look at what was generated:

    import moegen as mg
    from moegen.routers import noisy_top_k

    @mg.expert
    def mlp(x: mg.f32["C D"], w1: mg.f32["D F"], w2: mg.f32["F D"]):
        return mg.dot(mg.gelu(mg.dot(x, w1, over="D")), w2, over="F")

    layer = mg.compile(noisy_top_k.bind(k=2), mlp)
    params = layer.init(key, x, experts=8, hidden=64)
    y, aux = layer(params, x, key=key)
    print(layer.lower(params, x, key=key).source())
"""

from moegen import errors
from moegen.dsl.declare import Expert, Router, expert, router
from moegen.dsl.find import find
from moegen.dsl.functions import (
    abs,
    argmax,
    assign,
    assign_items,
    call,
    capacity,
    cast,
    compute_capacity,
    concat,
    cumsum,
    cv2,
    dequantize,
    dot,
    dropout,
    erf,
    exp,
    gelu,
    iota,
    kept,
    log,
    log_softmax,
    logsumexp,
    max,
    maximum,
    mean,
    merge,
    min,
    minimum,
    normal,
    normal_cdf,
    one_hot,
    relu,
    rsqrt,
    sigmoid,
    silu,
    size,
    soft_route,
    softmax,
    softplus,
    split,
    sqrt,
    square,
    stop_gradient,
    sum,
    take,
    tanh,
    top_k,
    uniform,
    where,
)
from moegen.dsl.quantized import quantized
from moegen.dsl.specs import Key, bf16, bool_, f8e4m3, f16, f32, floating, i8, i32
from moegen.runtime.layer import Layer, compile, no_recompile
from moegen.runtime.measure import autotune
from moegen.runtime.schedule import Schedule

__all__ = [
    "Expert",
    "Key",
    "Layer",
    "Router",
    "Schedule",
    "abs",
    "argmax",
    "assign",
    "assign_items",
    "autotune",
    "bf16",
    "bool_",
    "call",
    "capacity",
    "cast",
    "compile",
    "compute_capacity",
    "concat",
    "cumsum",
    "cv2",
    "dequantize",
    "dot",
    "dropout",
    "erf",
    "errors",
    "exp",
    "expert",
    "f8e4m3",
    "f16",
    "f32",
    "find",
    "floating",
    "gelu",
    "i8",
    "i32",
    "iota",
    "kept",
    "log",
    "log_softmax",
    "logsumexp",
    "max",
    "maximum",
    "mean",
    "merge",
    "min",
    "minimum",
    "no_recompile",
    "normal",
    "normal_cdf",
    "one_hot",
    "quantized",
    "relu",
    "router",
    "rsqrt",
    "sigmoid",
    "silu",
    "size",
    "soft_route",
    "softmax",
    "softplus",
    "split",
    "sqrt",
    "square",
    "stop_gradient",
    "sum",
    "take",
    "tanh",
    "top_k",
    "uniform",
    "where",
]
