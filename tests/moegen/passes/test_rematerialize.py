"""Schedule(save="least"): the bytes that are kept for the backward; gradients do not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moegen as mg
from moegen.experts import gated, mlp
from moegen.routers import noisy_top_k, soft, switch

GROUPS, TOKENS, WIDTH, HIDDEN, EXPERTS, CHOICES = 2, 16, 8, 32, 4, 2


@mg.expert
def made_up(
    x: mg.floating["C D"],
    w1: mg.floating["D F"],
    b1: mg.floating["F"],
    w2: mg.floating["F D"],
    b2: mg.floating["D"],
):
    """An activation that nobody has named, scaled, with a residual connection."""
    h = mg.dot(x, w1, over="D") + b1
    bent = mg.tanh(h) * mg.sigmoid(1.5 * h) - 0.1 * mg.square(h) + mg.maximum(h, 0.2)
    return x + mg.dot(bent, w2, over="F") * 0.5 + b2


@mg.expert
def with_learned_scale(
    x: mg.floating["C D"],
    w1: mg.floating["D F"],
    w2: mg.floating["F D"],
    scale: mg.floating["D"],
):
    """The gradient of the scale is about the expert's output itself."""
    return mg.dot(mg.relu(mg.dot(x, w1, over="D")), w2, over="F") * scale


@mg.expert
def gated_with_bias(
    x: mg.floating["C D"],
    w_gate: mg.floating["D F"],
    b_gate: mg.floating["F"],
    w_up: mg.floating["D F"],
    w_down: mg.floating["F D"],
    b_down: mg.floating["D"],
):
    """A gated unit with biases and normalised rows."""
    rows = x * mg.rsqrt(mg.mean(mg.square(x), over="D") + 1e-3)
    gate = mg.gelu(mg.dot(rows, w_gate, over="D") + b_gate)
    return mg.dot(gate * mg.dot(rows, w_up, over="D"), w_down, over="F") + b_down


WITH_DROPOUT = mlp.bind(dropout=0.25)
# Products whose outputs are kept, each M * F elements.
KEPT_PRODUCTS = {mlp: 1, made_up: 1, gated: 2, gated_with_bias: 2}
DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}


@functools.cache
def lowered(expert, format, save, dtype="f32"):
    schedule = mg.Schedule(format=format, save=save, block=1, target="cpu")
    layer = mg.compile(noisy_top_k.bind(k=CHOICES), expert, schedule)
    x = jax.ShapeDtypeStruct((GROUPS, TOKENS, WIDTH), DTYPES[dtype])
    return layer.lower(x, key=jax.random.key(0), experts=EXPERTS, hidden=HIDDEN)


def saved(expert, format, save, dtype="f32"):
    return lowered(expert, format, save, dtype).saved


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", ["slots", "sorted"])
@pytest.mark.parametrize("expert", KEPT_PRODUCTS, ids=lambda e: e.name)
def test_activations_are_within_the_bound(expert, format, dtype):
    """b * (T * D + 2 * M * F): the layer's input and two products; routing is counted beside it."""
    sizes = lowered(expert, format, "least", dtype).program.sizes
    rows = sizes["N"] if format == "sorted" else GROUPS * EXPERTS * sizes["C"]
    one, tokens = DTYPES[dtype].dtype.itemsize, GROUPS * TOKENS * WIDTH
    kept = saved(expert, format, "least", dtype)
    wide = {v: b for v, b in kept.items() if {"D", "F"} & set(getattr(v.type, "dims", ()))}
    bound = one * (tokens + 2 * rows * HIDDEN)
    exact = one * (tokens + KEPT_PRODUCTS[expert] * rows * HIDDEN)
    assert sum(wide.values()) == exact <= bound
    # Numbers of slots and tokens, and the router's [G, S, E] values: nothing of a row's width.
    numbers = 4 * rows + 4 * GROUPS * TOKENS * (5 * CHOICES + 2 * EXPERTS) + 8 * EXPERTS * GROUPS
    assert sum(kept.values()) - sum(wide.values()) <= numbers
    assert sum(kept.values()) < sum(saved(expert, format, "all", dtype).values())


def test_dropout_keeps_its_mask():
    """One byte per element beside the pre-activations: random numbers are not drawn again."""
    wide = [v for v in saved(WITH_DROPOUT, "slots", "least") if "F" in getattr(v.type, "dims", ())]
    assert sorted(v.type.dtype for v in wide) == ["bool", "f32"]


def test_a_learned_scale_keeps_the_output_it_scales():
    kept = saved(with_learned_scale, "slots", "least")
    rows = [v.type.dims[-1] for v in kept if "C" in getattr(v.type, "dims", ()) and v.type.is_float]
    assert sorted(rows) == ["D", "F"]


def test_masks_are_made_again():
    kept = saved(mlp, "onehot", "least")
    assert not any({"S", "C"} <= set(getattr(v.type, "dims", ())) for v in kept)
    assert any({"S", "C"} <= set(getattr(v.type, "dims", ())) for v in saved(mlp, "onehot", "all"))


def arrays(found):
    rng = np.random.default_rng(0)
    made = []
    for slot, value in zip(found.slots, found.program.inputs, strict=True):
        if slot.role == "key":
            made.append(jax.random.key(0))
            continue
        shape = tuple(found.program.sizes[d] for d in value.type.dims)
        made.append(jnp.asarray(rng.normal(size=shape) / 2, jnp.float32))
    return made


@functools.cache
def small(expert, format, save):
    """A router of few ops, for tests that compile."""
    layer = mg.compile(switch, expert, mg.Schedule(format=format, save=save, block=2, target="cpu"))
    x = jax.ShapeDtypeStruct((GROUPS, TOKENS, WIDTH), jnp.float32)
    key = jax.random.key(0) if expert is WITH_DROPOUT else None
    return layer.lower(x, key=key, experts=EXPERTS, hidden=HIDDEN)


def test_the_count_is_what_jax_holds():
    """The arrays that jax.vjp closes over, against the table of `explain`."""
    found = small(gated, "sorted", "least")
    inputs = arrays(found)
    pull = jax.jit(lambda *given: jax.vjp(found.compile().function, *given)[1])(*inputs)
    given = {v.name: a for v, a in zip(found.program.inputs, inputs, strict=True)}
    held = sum(a.nbytes for a in jax.tree.leaves(pull))
    parameters = [v.name for v in found.parts.residuals if v.name in given and v.name != "x"]
    weights = sum(given[name].nbytes for name in parameters)
    assert held - weights == sum(found.saved.values())


@pytest.mark.parametrize(
    "expert, format",
    [(made_up, "slots"), (gated_with_bias, "sorted"), (WITH_DROPOUT, "slots")],
    ids=["made_up", "gated", "dropout"],
)
def test_gradients_do_not_change(expert, format):
    inputs = arrays(small(expert, format, "all"))
    wanted = tuple(i for i, a in enumerate(inputs) if jnp.issubdtype(a.dtype, jnp.floating))
    found = []
    for save in ("all", "least"):
        layer = small(expert, format, save).compile().function

        def loss(*given, layer=layer):
            return jnp.sum(jnp.sin(layer(*given)[0]))

        found.append(jax.jit(jax.grad(loss, wanted))(*inputs))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=2e-5 * (1 + np.abs(a).max()))


def test_xla_computes_again():
    """Under jit, forward and backward are one program: its equal ops must not be merged."""
    counts = {}
    for save in ("all", "least"):
        found = small(mlp, "slots", save)
        layer, inputs = found.compile().function, arrays(found)
        grad = jax.jit(jax.value_and_grad(lambda *given, layer=layer: layer(*given)[0].sum()))
        compiled = grad.lower(*inputs).compile()
        counts[save] = compiled.as_text().count(" tanh(")
    assert counts == {"all": 1, "least": 2}


def test_it_works_under_vmap():
    found = small(mlp, "slots", "least")
    layer, (x, *others) = found.compile().function, arrays(found)

    def grad(one):
        return jax.grad(lambda x: layer(x, *others)[0].sum())(one)

    both = jax.jit(lambda: (jax.vmap(grad)(jnp.stack([x, 2 * x])), grad(2 * x)))()
    np.testing.assert_allclose(both[0][1], both[1], rtol=1e-4, atol=1e-5)


def test_a_soft_route_is_left_as_it_is():
    """Every token is in every slot, so that there is no one token to take a product with."""
    layer = mg.compile(soft, gated, mg.Schedule(format="onehot", save="least", target="cpu"))
    stages = layer.lower(jax.ShapeDtypeStruct((2, 5, 4), jnp.float32), E=3, F=2, C=2).stages
    assert stages["reassociate"] == stages["shard"]
    assert any(op.name == "barrier" for op in stages["rematerialize"].ops)


def test_explain_shows_both():
    text = lowered(mlp, "slots", "least").explain().split("// kept for the backward\n")[1]
    head, *lines = text.splitlines()
    assert 'save="all"' in head
    assert 'save="least" <- chosen' in head
    rows = {line.split()[0]: line.split()[-2:] for line in lines}
    assert rows["%h:"][1] == "-"
    assert rows["%add_1:"] == [rows["%add_1:"][0]] * 2
    assert float(rows["together"][1]) < float(rows["together"][0])
