"""Places on a mesh: how they print, what the verifier refuses, what devices can do alone."""

import re

import pytest

from moegen.errors import PlacementError, VerifyError
from moegen.ir.parse import parse
from moegen.ir.placement import WHOLE, Placement, describe, placed_dims, placement, read_placed
from moegen.ir.text import format_program
from moegen.ir.types import Route, Tensor
from moegen.ir.verify import verify

SPLIT = placement({"G": ("data", "expert"), "S": ()}, ("model",))


def program(line, inputs, result="f32[]", returns="x"):
    head = "moe @p dims(G=4, S=2, E=2, K=2, C=2, D=4, F=4) mesh(data=2, model=2) ("
    return parse(f"{head}{inputs}) {{\n%r: {result} = {line}\nreturn x=%{returns}\n}}", "p.moe")


def test_types_print():
    weight = Tensor("f32", ("G", "S", "K"), placement({"G": ("data", "expert")}))
    assert str(weight) == "f32[G@data@expert, S, K]"
    assert str(Tensor("f32", ("G", "S"), SPLIT)) == "f32[G@data@expert, S] partial@model"
    assert str(Tensor("f32", (), placement({}, ("b", "a")))) == "f32[] partial@a@b"
    route = Route(("G", "S", "E", "C"), weight)
    assert str(route) == "route[G@data@expert, S, E, C] of f32[G@data@expert, S, K]"


def test_placements():
    assert not WHOLE
    assert placement({"G": ()}) == WHOLE == Placement()
    assert SPLIT.axes("G") == ("data", "expert")
    assert SPLIT.axes("S") == ()
    assert SPLIT.used == ("data", "expert", "model")
    assert SPLIT.only("S") == placement({}, ("model",))
    assert describe(SPLIT) == "G@data@expert, partial@model"
    assert read_placed(placed_dims(("S", "G"), SPLIT)) == {"G": ("data", "expert")}


def test_an_axis_appears_once():
    with pytest.raises(PlacementError, match=r"axis data appears twice in D@data, G@data"):
        placement({"G": ("data",), "D": ("data",)})
    with pytest.raises(PlacementError, match="appears twice"):
        placement({"G": ("data",)}, ("data",))


def test_a_placed_dim_is_written_with_its_axes():
    with pytest.raises(PlacementError, match='"G" is not a placed dim'):
        read_placed(("G",))


@pytest.mark.parametrize(
    "line, inputs, result",
    [
        ('sum(%x, over="G")', "%x: f32[G@data, D]", "f32[D] partial@data"),
        ('dot(%x, %w, over="D")', "%x: f32[G@data, D], %w: f32[D, F@model]",
         "f32[G@data, F@model]"),
        ('dot(%x, %w, over="F")', "%x: f32[G@data, F@model], %w: f32[F@model, D]",
         "f32[G@data, D] partial@model"),
        ("add(%x, %b)", "%x: f32[G@data, D@model], %b: f32[D@model]", "f32[G@data, D@model]"),
        ('broadcast(%x, dims=("G", "D"), placed=("G@data",))', "%x: f32[D]", "f32[G@data, D]"),
        ('full(0.5, dims=("G",), dtype="f32", placed=("G@data@model",))', "%x: f32[D]",
         "f32[G@data@model]"),
        ('normal(%k, dims=("G", "D"), dtype="f32", stream=0, placed=("D@model",))',
         "%k: key, %x: f32[D]", "f32[G, D@model]"),
        ("assign(%x, %e, capacity=2)", "%x: f32[G@data, S, K], %e: i32[G@data, S, K]",
         "route[G@data, S, E, C] of f32[G@data, S, K]"),
    ],
)  # fmt: skip
def test_devices_work_alone(line, inputs, result):
    good = verify(program(line, inputs, result))
    text = format_program(good)
    assert parse(text) == good
    assert format_program(parse(text)) == text


@pytest.mark.parametrize(
    "line, inputs, why",
    [
        ('softmax(%x, over="D")', "%x: f32[G@data, D@model]", "needs all of D"),
        ('top_k(%x, over="D", k=2, dim="K")', "%x: f32[G, D@model]", "needs all of D"),
        ("add(%x, %y)", "%x: f32[G@data], %y: f32[G]", "G is split over data in one operand and"),
        ("mul(%x, %y)", "%x: f32[G@data], %y: f32[D@data]", "the mesh axis data appears twice"),
        ('dot(%x, %w, over="D", epilogue=("gelu(acc)",))', "%x: f32[G, D@data], %w: f32[D@data, F]",
         "needs all of D"),
        ("positions(%x)", "%x: i32[G, S@data, K]", "needs all of S"),
        ('full(0.5, dims=("D",), dtype="f32", placed=("G@data",))', "%x: f32[D]",
         "cannot place G over data"),
    ],
)  # fmt: skip
def test_devices_would_have_to_talk(line, inputs, why):
    with pytest.raises(VerifyError, match=re.escape(why)):
        verify(program(line, inputs))


OWED = '%p: f32[D] partial@data = sum(%x, over="G")\n%q: f32[D] partial@data = neg(%p)\n'


@pytest.mark.parametrize(
    "line, passes",
    [
        ("add(%p, %q)", True),
        ("mul(%p, 2.0)", True),
        ("div(%p, %w)", True),
        ("select(%c, %p, 0.0)", True),
        ("add(%p, %w)", False),
        ("add(%p, 1.0)", False),
        ("mul(%p, %q)", False),
        ("div(%w, %p)", False),
        ("gelu(%p)", False),
        ("select(%c, %p, 1.0)", False),
    ],
)
def test_a_sum_that_is_owed_passes_linear_ops_only(line, passes):
    head = "moe @p dims(G=4, D=4) mesh(data=2) (%x: f32[G@data, D], %w: f32[D], %c: bool[D]) {\n"
    text = f"{head}{OWED}%r: f32[D] partial@data = {line}\nreturn x=%x\n}}"
    if passes:
        verify(parse(text))
        return
    with pytest.raises(VerifyError, match="not linear in an operand that still owes a sum") as e:
        verify(parse(text))
    assert e.value.fix == "psum over data first"


def test_nothing_is_returned_that_owes_a_sum():
    broken = program('sum(%x, over="G")', "%x: f32[G@data]", "f32[] partial@data", returns="r")
    with pytest.raises(VerifyError, match="a sum over data is still owed") as caught:
        verify(broken)
    assert "psum it" in caught.value.fix


def test_axes_are_those_of_the_mesh_and_divide():
    with pytest.raises(VerifyError, match="the mesh has no axis pipe"):
        verify(program("neg(%x)", "%x: f32[G@pipe]", "f32[G@pipe]"))
    with pytest.raises(VerifyError, match="S is uneven"):
        verify(program("neg(%x)", "%x: f32[S@data@model]", "f32[S@data@model]"))


def test_a_route_is_where_its_weights_are():
    text = "moe @p dims(G=2) (%x: route[G@data, S, E, C] of f32[G, S, K]) {\nreturn x=%x\n}"
    with pytest.raises(Exception, match="a route is where its weights are"):
        parse(text)
