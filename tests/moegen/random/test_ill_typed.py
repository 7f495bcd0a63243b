"""Random changes to random programs: refused with a line, or still a program that runs.

Programs at every stage are changed, so that the rules of lowered ops are held to the same: what
the verifier lets pass must run, and give the types it promised.
"""

import jax
import pytest
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st

from moegen.errors import LoweringError, MoegenError
from moegen.ir.parse import parse
from moegen.ir.program import Program
from moegen.ir.types import Tensor
from moegen.ir.verify import verify
from moegen.passes.choose_format import FORMATS
from moegen.runtime.schedule import Schedule
from moegen.runtime.stages import Traced
from tests.moegen.random.checks import all_values
from tests.moegen.random.layers import draw_arrays, make_case
from tests.moegen.random.mutations import MUTATIONS, Mutated, mutate
from tests.moegen.random.plans import plans

DTYPES = {"f32": "float32", "i32": "int32"}
NAME = "changed.moe"


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """The program of a random layer, at any stage of any format that holds it."""
    case = make_case(draw(plans()))
    form = draw(st.sampled_from(list(FORMATS)))
    stage = draw(st.sampled_from(["trace", "trace", "differentiate", "choose_format", "fuse"]))
    try:
        lowered = Traced(case.layer, Schedule(format=form, block=2, target="cpu")).lower()
    except LoweringError:
        return case.program
    return lowered.stages[stage]


def refusal(changed: Mutated) -> MoegenError | None:
    """Parses and verifies; anything but a MoegenError escapes."""
    try:
        verify(parse(changed.text, NAME))
    except MoegenError as error:
        return error
    return None


def check_runs(program: Program) -> None:
    """A program that is verified runs, and its values have the types it says."""
    with jax.disable_jit():
        values = all_values(program, draw_arrays(program, 0))
    for op in program.ops:
        for result in op.results:
            if isinstance(result.type, Tensor):
                array, dims = values[result.name], result.type.dims
                assert array.shape == tuple(program.sizes[d] for d in dims), (op.name, array.shape)
                assert array.dtype.name == DTYPES.get(result.type.dtype, result.type.dtype), op.name


def check(changed: Mutated) -> bool:
    """Whether it is refused; a refusal names a line, from the changed one on."""
    error = refusal(changed)
    if error is None:
        check_runs(parse(changed.text, NAME))
        return False
    assert error.location is not None, f"no line in {error!r}"
    assert error.location.file == NAME
    assert error.location.line >= changed.line, f"{error} is not about line {changed.line}"
    assert str(error).strip()
    return True


ALWAYS_REFUSED = ("undefined_value", "unknown_op", "unknown_attribute", "extra_result")


def mutated(data: st.DataObject, name: str) -> Mutated:
    """A random program with one mutation; says in the failure what was changed."""
    program = data.draw(programs())
    where, how = data.draw(st.integers(0, 200)), data.draw(st.integers(0, 200))
    changed = mutate(program, name, where, how)
    assume(changed is not None)
    assert changed is not None
    note(f"{changed.before}\n{changed.after}\n\n{changed.text}")
    return changed


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), name=st.sampled_from(sorted(MUTATIONS)))
def test_mutations(data, name):
    check(mutated(data, name))


@pytest.mark.parametrize("name", ALWAYS_REFUSED)
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_refused(name, data):
    assert check(mutated(data, name)), f"{name} was not refused"


@pytest.mark.nightly
@pytest.mark.parametrize("name", sorted(MUTATIONS))
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_many_mutations(name, data):
    check(mutated(data, name))
