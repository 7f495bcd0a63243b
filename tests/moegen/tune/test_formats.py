"""tune/formats.py: sorted rows by XLA's products against the same by the custom call."""

import jax
import pytest

import moegen as mg
from moegen.errors import LoweringError, ScheduleError
from moegen.experts import mlp
from moegen.routers import expert_choice, noisy_top_k
from moegen.tune import formats, native
from moegen.tune.cost import Cost

ROUTER = noisy_top_k.bind(k=2, noise_std=0.0, dropless=True)
WIDE = jax.ShapeDtypeStruct((1, 256, 64), "float32")


def lowered(x=WIDE, router=ROUTER, expert=mlp, **schedule):
    return mg.compile(router, expert, mg.Schedule(**schedule)).lower(x, experts=8, hidden=256)


def refusal(choice):
    (custom,) = [c for c in choice.candidates if c.kernel]
    assert custom.cost is None
    return custom.refused


@pytest.fixture
def not_compiled(monkeypatch):
    """The compiler must not run."""
    monkeypatch.setattr(native, "missing", lambda: pytest.fail("it was compiled"))


def test_auto_takes_it_and_says_what_it_was_compared_with(custom_call):
    made = lowered()
    assert (made.choice.name, made.choice.block) == ("native", 1)
    assert made.inference_choice.same_as(made.choice)
    products = [op for op in made.program.ops if op.name in formats.PRODUCTS]
    assert len(products) == 6
    assert {(op.attr["kernel"], op.attr["source"]) for op in products} == {("native", "estimate")}
    lines = made.choice.explain().splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["onehot", "slots", "sorted", "native"]
    assert [line.endswith("<- chosen") for line in lines[1:5]] == [False] * 3 + [True]
    assert "format native, target cpu" in made.source()


def test_sorted_rows_take_it_and_other_formats_do_not(custom_call):
    assert lowered(format="sorted").choice.name == "native"
    assert lowered(format="slots").choice.name == "slots"
    assert lowered(format="sorted", kernel="runs").choice.name == "sorted"


def test_off_is_off_and_said(not_compiled):
    made = lowered()
    assert made.choice.name == "sorted"
    assert refusal(made.choice) == "MOEGEN_NATIVE=off"
    assert "native    not possible: MOEGEN_NATIVE=off" in made.explain()


def test_another_word_is_an_error(monkeypatch, not_compiled):
    monkeypatch.setenv("MOEGEN_NATIVE", "of")
    with pytest.raises(ScheduleError, match=r'has MOEGEN_NATIVE="of" \(did you mean "off"'):
        lowered()
    assert lowered(target="cpu").choice.name == "sorted"


def test_a_program_for_other_machines_does_without(custom_call, not_compiled):
    made = lowered(target="cpu")
    assert refusal(made.choice).startswith('target="cpu" is any such device')
    assert "native" not in made.source()
    mesh = jax.sharding.AbstractMesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    assert "the mesh has no devices" in refusal(lowered(mesh=mesh).choice)
    for target in ("tpu_v5e", "h100"):
        assert not any(c.kernel for c in lowered(target=target).choice.candidates)


def test_without_a_compiler_the_next_best_is_taken_and_the_reason_kept(custom_call, monkeypatch):
    monkeypatch.setattr(native, "missing", lambda: "no compiler")
    choice = lowered().choice
    assert (choice.name, refusal(choice)) == ("sorted", "no compiler")


def test_it_is_compiled_only_if_it_is_the_best(custom_call, not_compiled, monkeypatch):
    monkeypatch.setattr(
        formats,
        "program_cost",
        lambda program, target: Cost(0, 0, any("kernel" in op.attr for op in program.ops)),
    )
    choice = lowered().choice
    assert choice.name == "onehot"
    assert choice.candidates[-1].cost.seconds == 1


def test_what_it_cannot_run_is_not_estimated(custom_call, not_compiled):
    half = jax.ShapeDtypeStruct(WIDE.shape, "float16")
    assert "f16, it takes f32 or bf16" in refusal(lowered(half).choice)
    assert "nothing to save" in refusal(lowered(router=expert_choice).choice)


def test_asked_for_it_needs_no_permission(monkeypatch):
    choice = lowered(format="sorted", kernel="native").choice
    assert (choice.name, choice.block, choice.forced) == ("native", 1, True)
    assert [c.name for c in choice.candidates] == ["onehot", "slots", "native"]
    assert lowered(format="sorted", kernel="native", block=8).choice.block == 8
    half = jax.ShapeDtypeStruct(WIDE.shape, "float16")
    with pytest.raises(LoweringError, match=r"native cannot run it: .* f16, it takes f32 or bf16"):
        lowered(half, format="sorted", kernel="native")
