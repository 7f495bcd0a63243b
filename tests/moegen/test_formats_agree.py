"""Formats agree: outputs and gradients, with each other and with a plain jax.numpy layer.

The reference below moves rows by one-hot products and is differentiated by jax.grad; the formats
are differentiated by moegen's own rules.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from moegen.ir.interpret import interpret
from tests.moegen.layer_cases import CORNERS, FORMATS, WEIGHTS, Case, cases

RELATIVE, ABSOLUTE = 2e-5, 2e-6
COTANGENT = np.random.default_rng(7).normal(size=(2, 6, 4)).astype(np.float32)


def reference(case: Case, w, expert, x):
    """y and the auxiliary loss, in jax.numpy."""
    logits = jnp.einsum("gsd,de->gse", x, w)
    noisy = logits if case.noise is None else logits + case.noise / 2
    gates = jax.nn.softmax(noisy)
    weight, chosen = jax.lax.top_k(gates, case.k)
    path = jax.nn.one_hot(chosen, case.num_experts)
    if case.mask is not None:
        path = path * case.mask[..., None, None]
    path = path * (places(case, path, weight) < capacity(case))[..., None]
    hidden = jax.nn.gelu(jnp.einsum("gsd,edf->gsef", x, expert["w1"]) + expert["b1"])
    rows = jnp.einsum("gsef,efd->gsed", hidden, expert["w2"]) + expert["b2"]
    y = jnp.einsum("gske,gsk,gsed->gsd", path, weight, rows)
    return y, auxiliary_loss(case, logits, noisy, gates)


def capacity(case: Case) -> int:
    return case.x.shape[1] * case.k if case.capacity is None else case.capacity


def places(case: Case, path, weight):
    """Each choice's place in its queue: first choices first, the largest gate first if asked."""
    groups, tokens = path.shape[:2]
    first = weight[..., 0] if case.batch_priority else jnp.zeros((groups, tokens))
    earlier = first[:, None, :] > first[:, :, None]
    tied = first[:, None, :] == first[:, :, None]
    before = earlier | (tied & (jnp.arange(tokens)[None, None] < jnp.arange(tokens)[None, :, None]))
    ahead = jnp.einsum("gst,gtke->gske", before.astype(jnp.float32), path)
    whole_round = path.sum(1, keepdims=True)  # all tokens' choices of one rank
    ahead = ahead + jnp.cumsum(whole_round, 2) - whole_round
    return (ahead * path).sum(-1)


def auxiliary_loss(case: Case, logits, noisy, gates):
    experts = case.num_experts
    first = jax.nn.one_hot(gates.argmax(-1), experts).mean(1)
    total = WEIGHTS["importance_loss_weight"] * cv2(jax.nn.softmax(logits).sum(1))
    total += WEIGHTS["gshard_loss_weight"] * experts**2 * (first * gates.mean(1)).mean(-1)
    if case.noise is not None:
        threshold = jax.lax.top_k(noisy, case.k)[0].min(-1, keepdims=True)
        chance = 1 - jax.scipy.stats.norm.cdf((threshold - logits) / 0.5)
        total += WEIGHTS["load_loss_weight"] * cv2(chance.mean(1))
    return total


def cv2(x):
    mean = x.mean(-1, keepdims=True)
    return jnp.square(x - mean).mean(-1) / jnp.square(mean[..., 0])


def cotangent(case: Case):
    groups, tokens, width = case.x.shape
    return jnp.asarray(COTANGENT[:groups, :tokens, :width])


def reference_gradients(case: Case):
    def loss(w, expert, x):
        y, auxiliary = reference(case, w, expert, x)
        return (y * cotangent(case)).sum() + auxiliary.sum(), y

    grad = jax.grad(loss, (0, 1, 2), has_aux=True)
    (w, expert, x), y = grad(case.w, case.expert, jnp.asarray(case.x))
    return {"y": y, "d_w": w, "d_x": x} | {f"d_{n}": g for n, g in expert.items()}


def cotangents_by_name(case: Case, outputs):
    wanted = {"y": cotangent(case), "auxiliary_loss": jnp.ones(len(case.x))}
    return {n: wanted.get(n, jnp.zeros_like(v)) for n, v in outputs.items()}


def emitted_gradients(case: Case, form: str):
    lowered = lower(case, form)
    compiled = lowered.compile()
    values, pull = jax.vjp(compiled.function, *case.arrays(compiled.slots))
    outputs = dict(zip(compiled.outputs, values, strict=True))
    gradients = pull(tuple(cotangents_by_name(case, outputs).values()))
    names = [f"d_{slot.name}" for slot in compiled.slots]
    return {"y": outputs["y"], **dict(zip(names, gradients, strict=True))}


def interpreted_gradients(case: Case, form: str, stage: str):
    lowered = lower(case, form)
    program, arrays = lowered.stages[stage], case.arrays(lowered.slots)
    outputs = dict(zip(compiled_names(program), case.run(form).values(), strict=True))
    given_back = cotangents_by_name(case, outputs).values()
    got, gradients = interpret(program, *arrays, *given_back)
    return {"y": got["y"], **{f"d_{n}": g for n, g in gradients.items()}}


def compiled_names(program):
    return [n for n, _ in program.outputs]


def lower(case: Case, form: str):
    inputs = {n: jnp.asarray(a) for n, a in case.inputs.items()}
    return case.layer(form).lower(case.params, case.x, inputs=inputs)


def check(got, want):
    for name, value in want.items():
        scale = np.abs(np.asarray(value)).max()
        np.testing.assert_allclose(got[name], value, 0, RELATIVE * scale + ABSOLUTE, err_msg=name)


@pytest.mark.parametrize("name", CORNERS)
def test_corners(name):
    case = CORNERS[name]
    want = reference_gradients(case)
    for form in FORMATS:
        check(emitted_gradients(case, form), want)


@settings(max_examples=10)  # tests/moegen/random draws the layers themselves, and many more
@given(case=cases())
def test_random_layers(case):
    want = reference_gradients(case)
    for form in FORMATS:
        check(emitted_gradients(case, form), want)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("stage", ["differentiate", "choose_format", "fuse", "select_kernels"])
@pytest.mark.parametrize("name", ["padding", "capacity_overflow_by_priority"])
def test_the_interpreter_agrees_at_every_stage(name, stage, form):
    case = CORNERS[name]
    check(interpreted_gradients(case, form, stage), reference_gradients(case))
