"""The noisy top-k router against numbers recorded from the released V-MoE code, in every format.

The recorded experiment routes `inputs`, sends `data` to the experts, of which number e multiplies
by 1 + e, and takes the gradients of sum(combined * cotangent) + mean over groups of the auxiliary
loss. The relative error of an array is max|ours - recorded| / max|recorded|.
"""

import functools
import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moegen as mg
from moegen.errors import ShapeError
from moegen.ir.program import Value
from moegen.ir.types import cotangent_type
from moegen.passes.pipeline import STAGES
from moegen.routers import noisy_top_k
from moegen.runtime.stages import Lowered

DATA = Path(__file__).parent.parent / "data"
TOLERANCE = 2e-6
FORMATS = ("onehot", "slots", "sorted")
RECORDED = json.loads((DATA / "router_top_experts.json").read_text())["cases"]
with np.load(DATA / "router_top_experts.npz") as _file:
    ARRAYS = dict(_file)
GROUPS, TOKENS, _ = ARRAYS["data"].shape
EXPERTS = ARRAYS["kernel"].shape[1]
PARAMS = {"router": {"w": ARRAYS["kernel"]}, "expert": {"scale": 1 + np.arange(8, dtype="f")}}


def settings_of(case) -> tuple:
    return tuple(case["settings"].items())


@functools.cache
def layer_for(settings, form):
    """The layer of the recorded experiment: what is routed is not what is dispatched."""

    @mg.router
    def by_inputs(
        x: mg.f32["S W"],
        inputs: mg.f32["S D"],
        w: mg.f32["D E"],
        noise: mg.f32["S E"] = None,
    ):
        return noisy_top_k(inputs, w, None, noise, **dict(settings))

    @mg.expert
    def scaled(x: mg.f32["C W"], scale: mg.f32[""]):
        return x * scale

    return mg.compile(by_inputs, scaled, mg.Schedule(format=form, block=1))


def noise_of(case):
    return ARRAYS[case["arrays"]["noise_unit"]] if case["noisy"] else None


@functools.cache
def observe(number, form):
    """What the emitted code computes in a recorded case, run line by line.

    Beside the outputs and gradients of the layer, this has values from inside: gates, weights,
    and where each choice's row is.
    """
    case = RECORDED[number]
    lowered = inner_program(settings_of(case), form, case["noisy"])
    given = {"x": ARRAYS["data"], "inputs": ARRAYS["inputs"], "noise": noise_of(case)}
    arrays = given | PARAMS["router"] | PARAMS["expert"]
    names = [slot.name for slot in lowered.slots]
    values, pull = jax.vjp(lowered.function, *(jnp.asarray(arrays[n]) for n in names))
    out = dict(zip(lowered.outputs, values, strict=True))

    def gradients(cotangent):
        wanted = {"y": cotangent, "auxiliary_loss": jnp.full(GROUPS, 1 / GROUPS)}
        cotangents = tuple(wanted.get(n, zero_cotangent(v)) for n, v in out.items())
        return dict(zip(names, pull(cotangents), strict=True))

    both, aux_only = (
        gradients(jnp.asarray(ARRAYS["cotangent"])),
        gradients(zero_cotangent(out["y"])),
    )
    np.testing.assert_array_equal(aux_only["x"], 0.0)
    return out | {
        "loss": (out["y"] * ARRAYS["cotangent"]).sum() + out["auxiliary_loss"].mean(),
        "combined": out["y"],
        "grad_kernel": both["w"],
        "grad_inputs": both["inputs"],
        "grad_data": both["x"],
        "grad_kernel_aux_only": aux_only["w"],
    }


def zero_cotangent(value):
    real = jnp.issubdtype(value.dtype, jnp.floating)
    return jnp.zeros_like(value) if real else np.zeros(value.shape, jax.dtypes.float0)


@functools.cache
def inner_program(settings, form, noisy):
    struct = jax.ShapeDtypeStruct((GROUPS, TOKENS, EXPERTS), "float32")
    inputs = {"inputs": ARRAYS["inputs"]} | ({"noise": struct} if noisy else {})
    lowered = layer_for(settings, form).lower(PARAMS, ARRAYS["data"], inputs=inputs)
    slot = "row" if form == "sorted" else "slot"
    return with_outputs(lowered, "gates", "weight", "expert", "position", slot, "xe").compile()


def with_outputs(lowered: Lowered, *names: str) -> Lowered:
    """The same lowered layer, whose emitted code hands out some inner values too."""
    program = lowered.program
    values = {r.name: r for op in program.ops for r in op.results}
    extra = tuple((n, values[n]) for n in names)
    unused = tuple(Value(f"unused_{n}", v.type) for n, v in extra if cotangent_type(v.type))
    program = program.with_(outputs=program.outputs + extra, cotangents=program.cotangents + unused)
    return replace(lowered, stages={**lowered.stages, STAGES[-1]: program})


def relative_error(ours, recorded) -> float:
    ours, recorded = np.asarray(ours, np.float64), np.asarray(recorded, np.float64)
    assert ours.shape == recorded.shape
    assert np.isfinite(ours).all()
    error, scale = np.abs(ours - recorded).max(), np.abs(recorded).max()
    return float(error / scale) if scale > 0 else float(error)


def choice_places(got, form, capacity):
    """Per choice: its expert, its place in that expert's buffer, and whether it has one."""
    if form != "sorted":
        kept = got["slot"] < EXPERTS * capacity
        return got["slot"] // capacity, got["slot"] % capacity, kept
    kept = got["row"] < len(got["xe"])
    count = np.zeros((EXPERTS, GROUPS), int)
    group = np.broadcast_to(np.arange(GROUPS)[:, None, None], kept.shape)
    np.add.at(count, (got["expert"][kept], group[kept]), 1)
    start = (np.cumsum(count) - count.ravel()).reshape(count.shape)  # by expert, then by group
    return got["expert"], got["row"] - start[got["expert"], group], kept


def combine_weights(weight, expert, position, kept, capacity):
    """[G, S, E, C] from what is known per choice."""
    full = np.zeros((GROUPS, TOKENS, EXPERTS, capacity), weight.dtype)
    group, token, _ = np.nonzero(kept)
    full[group, token, expert[kept], position[kept]] = weight[kept]
    return full


def recorded_weights(case):
    """The recorded combine weights [G, S, E, C], in whichever layout they were recorded."""
    weight = ARRAYS[case["arrays"]["combine_weights"]]
    if case["layout"] == "einsum":
        return weight
    expert, position = np.moveaxis(ARRAYS[case["arrays"]["indices"]], -1, 0)
    kept = position < case["capacity"]
    return combine_weights(weight, expert, position, kept, case["capacity"])


def dispatched_rows(got, form):
    """Rows as recorded [E, G * C, W]; sorted rows have no empty slots, so they stay a list."""
    if form == "sorted":
        return got["xe"]
    rows = got["xe"] if form == "slots" else np.swapaxes(got["xe"], 0, 1)
    return rows.reshape(EXPERTS, -1, rows.shape[-1])


def recorded_rows(case, form, full):
    rows = ARRAYS[case["arrays"]["dispatched"]]
    if form != "sorted":
        return rows
    taken = (full > 0).any(axis=1).transpose(1, 0, 2).reshape(EXPERTS, -1)
    return rows[taken]


def name_of(case) -> str:
    s = case["settings"]
    words = [f"k{s['k']}", f"factor{s['capacity_factor']:g}", f"multiple{s['multiple_of']}"]
    words += ["bpr"] * s["batch_priority"] + ["noisy"] * case["noisy"] + [case["layout"]]
    return "-".join(words)


RECORDED_LOGITS = np.load(DATA / "router_logits.npy")
"""The logits before noise, added up in the order of the recorded run (jax 0.10.2)."""
every_case = pytest.mark.parametrize("case", RECORDED, ids=name_of)
every_format = pytest.mark.parametrize("form", FORMATS)


@every_format
@every_case
def test_outputs_losses_and_gradients(case, form, record_property):
    got = observe(case["case"], form)
    assert ("load_loss" in got) == case["noisy"]
    names = [n for n in case["arrays"] if n.startswith(("metrics/", "grad_"))]
    errors = {
        n: relative_error(got[n.removeprefix("metrics/")], ARRAYS[case["arrays"][n]])
        for n in [*names, "combined", "loss"]
    }
    check(errors, record_property)


@every_format
@every_case
def test_gates_weights_and_buffers(case, form, record_property):
    got = {n: np.asarray(v) for n, v in observe(case["case"], form).items()}
    expert, position, kept = choice_places(got, form, case["capacity"])
    full = combine_weights(got["weight"], expert, position, kept, case["capacity"])
    recorded = recorded_weights(case)
    np.testing.assert_array_equal(full > 0, recorded > 0)
    if case["layout"] == "indices":  # places keep counting past the capacity
        indices = np.stack([got["expert"], got["position"]], axis=-1)
        np.testing.assert_array_equal(indices, ARRAYS[case["arrays"]["indices"]])
    rows = dispatched_rows(got, form)
    if form == "sorted":
        np.testing.assert_array_equal(rows[kept.sum() :], 0.0)
        rows = rows[: kept.sum()]
    errors = {
        "gates": relative_error(got["gates"], ARRAYS[case["arrays"]["gates"]]),
        "combine_weights": relative_error(full, recorded),
        "dispatched": relative_error(rows, recorded_rows(case, form, recorded)),
    }
    check(errors, record_property)


def check(errors, record_property):
    """Every error within the tolerance; the report (--junitxml) has the numbers."""
    for name, error in errors.items():
        record_property(name, error)
    assert {n: e for n, e in errors.items() if not e <= tolerance(n)} == {}


def tolerance(name: str) -> float:
    """2e-6 where the logits are those of the recording, to the bit.

    The gradient of the load loss multiplies a rounding of a logit by z / sigma, and sigma is 1/8:
    a jax that adds the 16 terms of a logit in another order (0.12 does) is up to 4.4e-6 from the
    exact gradient, where the recording itself is 1.7e-6 from it.
    """
    return TOLERANCE if same_logits() or name != "grad_kernel_aux_only" else 2 * TOLERANCE


@functools.cache
def same_logits() -> bool:
    ours = jnp.einsum("GSD,DE->GSE", ARRAYS["inputs"], ARRAYS["kernel"])
    np.testing.assert_allclose(ours, RECORDED_LOGITS, atol=1e-6)
    return np.array_equal(ours, RECORDED_LOGITS)


def check_jitted(case, form, record_property):
    """The same through the public call under jit, where XLA fuses what it likes."""
    layer = layer_for(settings_of(case), form)

    @jax.jit
    def step(kernel, inputs, data, noise, cotangent):
        def loss(kernel, inputs, data):
            params = {**PARAMS, "router": {"w": kernel}}
            y, aux = layer(params, data, inputs=inputs, noise=noise)
            return (y * cotangent).sum() + aux["auxiliary_loss"].mean(), (y, aux)

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(kernel, inputs, data)

    args = (ARRAYS["kernel"], ARRAYS["inputs"], ARRAYS["data"], noise_of(case))
    (loss, (y, aux)), gradients = step(*args, ARRAYS["cotangent"])
    _, (aux_only, _, _) = step(*args, np.zeros_like(ARRAYS["cotangent"]))
    got = {f"metrics/{n}": v for n, v in aux.items() if n.endswith("_loss")}
    got |= {"combined": y, "loss": loss, "grad_kernel_aux_only": aux_only}
    got |= dict(zip(("grad_kernel", "grad_inputs", "grad_data"), gradients, strict=True))
    errors = {n: relative_error(v, ARRAYS[case["arrays"][n]]) for n, v in got.items()}
    check(errors, record_property)


JITTED = [c for c in RECORDED if "factor0.5-multiple4" in name_of(c) and c["layout"] == "einsum"]
"""With and without drops by priority, noise and second choices; compiling all takes minutes."""


@every_format
@pytest.mark.parametrize("case", JITTED, ids=name_of)
def test_under_jit(case, form, record_property):
    check_jitted(case, form, record_property)


@pytest.mark.nightly
@every_format
@every_case
def test_every_case_under_jit(case, form, record_property):
    check_jitted(case, form, record_property)


def test_all_cases_are_here():
    assert [c["case"] for c in RECORDED] == list(range(80))
    assert sum(c["noisy"] for c in RECORDED) == 40


def test_relative_error_can_fail():
    assert relative_error([1.0, 2.00001], [1.0, 2.0]) > TOLERANCE
    assert relative_error([0.0, 1e-5], [0.0, 0.0]) > TOLERANCE
    assert relative_error([0.0, 0.0], [0.0, 0.0]) == 0.0


def test_capacity_table():
    """All recorded capacities, errors included (-1)."""
    with np.load(DATA / "router_capacity.npz") as file:
        table = file["table"]
    assert len(table) == 4224
    assert (table[:, -1] == -1).any()
    for tokens, experts, factor, rounding, multiple, expected in table:
        sizes = (int(tokens), int(experts), float(factor))
        how = {"rounding": ("ceil", "round")[int(rounding)], "multiple_of": int(multiple)}
        if expected == -1:
            with pytest.raises(ShapeError, match="is less than 1"):
                mg.compute_capacity(*sizes, **how)
        else:
            assert mg.compute_capacity(*sizes, **how) == expected


# ---- where the published form has NaN gradients: a standard deviation of zero


def loss_with_all_terms(experts: int, form: str):
    router = noisy_top_k.bind(
        importance_loss_weight=1.0, load_loss_weight=1.0, gshard_loss_weight=1.0, dropless=True
    )

    @mg.expert
    def scaled(x: mg.f32["C D"], scale: mg.f32[""]):
        return x * scale

    layer = mg.compile(router, scaled, mg.Schedule(format=form))

    def loss(w, x, noise):
        params = {"router": {"w": w}, "expert": {"scale": jnp.ones(experts)}}
        y, aux = layer(params, x, noise=noise)
        return y.sum() + aux["auxiliary_loss"].sum(), aux

    return jax.value_and_grad(loss, (0, 1), has_aux=True)


@every_format
@pytest.mark.parametrize("experts", [1, 2, 8])
@pytest.mark.parametrize("noisy", [False, True])
def test_losses_are_finite_with_a_zero_router(experts, noisy, form):
    x = jax.random.normal(jax.random.key(0), (2, 6, 4))
    noise = jnp.zeros((2, 6, experts)) if noisy else None
    step = loss_with_all_terms(experts, form)
    (loss, aux), gradients = step(jnp.zeros((4, experts)), x, noise)
    assert np.isfinite(loss)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
    np.testing.assert_allclose(aux["importance_loss"], 0.0, atol=1e-12)
    if noisy:
        np.testing.assert_allclose(aux["load_loss"], 0.0, atol=1e-12)
