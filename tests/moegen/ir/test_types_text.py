"""Types, the printer and the parser: what is printed reads back as the same program."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moegen.errors import DimError, Location, ParseError
from moegen.ir.parse import parse
from moegen.ir.program import Literal, Op, Program, Value, make_attrs
from moegen.ir.text import format_attr, format_op, format_program
from moegen.ir.types import DTYPES, Key, Route, Tensor, cotangent_type
from moegen.passes.pipeline import STAGES
from tests.moegen.programs import lowered


def test_types_print():
    weight = Tensor("f32", ("G", "S", "K"))
    assert str(Tensor("bf16", ("G", "S", "D"))) == "bf16[G, S, D]"
    assert str(Tensor("f32", ())) == "f32[]"
    assert str(Route(("G", "S", "E", "C"), weight)) == "route[G, S, E, C] of f32[G, S, K]"
    assert str(Key()) == "key"


def test_a_dim_appears_once():
    with pytest.raises(DimError, match=r"f32\[S, S\]: a dim appears twice"):
        Tensor("f32", ("S", "S"))


def test_cotangent_types():
    weight = Tensor("f32", ("G", "S", "K"))
    assert cotangent_type(weight) == weight
    assert cotangent_type(Route(("G", "S", "E", "C"), weight)) == weight
    assert cotangent_type(Tensor("i32", ("S",))) is None
    assert cotangent_type(Key()) is None


def test_attribute_order_and_form():
    attrs = make_attrs({"tile": (8,), "epilogue": ("a",), "out": ("S", "E"), "over": ("D",)})
    op = Op("dot", (), (*attrs, ("source", "tuned")), (Value("y", Tensor("f32", ("S",))),))
    assert format_op(op) == (
        '%y: f32[S] = dot(over="D", out=("S", "E"), epilogue=("a",), tile=(8,), source="tuned")'
    )
    assert make_attrs({"k": None}) == ()
    assert format_attr('a "quoted" \\ name') == r'"a \"quoted\" \\ name"'


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("format", ["onehot", "slots", "sorted"])
def test_every_stage_of_a_layer_round_trips(stage, format):
    program = lowered(format).stages[stage]
    text = format_program(program)
    assert parse(text) == program
    assert format_program(parse(text)) == text  # the author's lines too


def test_parts_round_trip():
    parts = lowered("slots").parts
    for program in (parts.primal, parts.forward, parts.backward):
        assert parse(format_program(program)) == program


names = st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True)
dim_names = st.lists(st.sampled_from(["G", "S", "E", "C", "width"]), unique=True, max_size=4)
tensors = st.builds(Tensor, st.sampled_from(DTYPES), dim_names.map(tuple))
routes = st.builds(Route, st.just(("G", "S", "E", "C")), tensors)
types = st.one_of(tensors, routes, st.just(Key()))
numbers = st.one_of(st.integers(), st.booleans(), st.floats(allow_nan=False))
plain = st.one_of(st.text(max_size=8), numbers)
attributes = st.dictionaries(
    names.filter(lambda n: n not in ("inf", "nan")),
    st.one_of(plain, st.recursive(plain, lambda a: st.lists(a, max_size=3).map(tuple))),
    max_size=4,
)


@st.composite
def programs(draw):
    """Any text the printer can write: the ops need not exist, let alone make sense."""
    taken = []

    def fresh():
        taken.append(Value(f"{draw(names)}_{len(taken)}", draw(types)))
        return taken[-1]

    inputs = tuple(fresh() for _ in range(draw(st.integers(1, 3))))
    cotangents = tuple(fresh() for _ in range(draw(st.integers(0, 2))))
    ops = []
    for _ in range(draw(st.integers(0, 4))):
        reads = st.one_of(st.sampled_from(tuple(taken)), numbers.map(Literal))
        operands = tuple(draw(st.lists(reads, max_size=3)))
        results = tuple(fresh() for _ in range(draw(st.integers(1, 2))))
        ops.append(Op(draw(names), operands, make_attrs(draw(attributes)), results))
    returned = st.tuples(names, st.sampled_from(taken))
    outputs = tuple(draw(st.lists(returned, min_size=1, max_size=2)))
    gradients = tuple(draw(st.lists(returned, max_size=2)))
    dims = tuple((d, draw(st.integers(0, 99))) for d in ("G", "S", "E", "C", "width"))
    return Program(draw(names), dims, inputs, tuple(ops), outputs, cotangents, gradients)


@given(programs())
def test_any_program_round_trips(program):
    assert parse(format_program(program)) == program


def test_locations():
    op = Op("iota", (), (("dim", "S"),), (Value("i", Tensor("i32", ("S",))),), None)
    program = Program("p", (("S", 2),), (), (op,), (("y", op.result),))
    text = format_program(program)
    assert parse(text, "a.moe").ops[0].location == Location("a.moe", 3)
    pointed = text.replace('"S")', '"S")  // router.py:9')
    assert parse(pointed, "a.moe").ops[0].location == Location("router.py", 9)
    assert "//" not in format_program(parse(pointed), locations=False)


def test_comments_and_layout_do_not_matter():
    text = """// a program by hand
    moe @p dims(S=2,) (%x: f32[S],) {  // opens
      %y: f32[S] = neg(
         %x,  // the operand
      )
      return y=%y }"""
    assert parse(text).ops[0].name == "neg"


GOOD = "moe @p dims(S=2) (%x: f32[S]) {\n%y: f32[S] = neg(%x)\nreturn y=%y\n}"


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("moe", "mod", 1, 'expected "moe", found "mod"'),
        ("@p", "p", 1, 'expected a symbol, found "p"'),
        ("S=2", "S=2.5", 1, "expected a whole number as the size of S"),
        ("(%x: f32[S])", "(x: f32[S])", 1, 'expected a value, found "x"'),
        (
            "%y: f32[S]",
            "%y: f33[S]",
            2,
            f"expected a type: one of {', '.join(DTYPES)}, route, key, found",
        ),
        ("%y: f32[S]", "%y: f32[S, S]", 2, "a dim appears twice"),
        ("%y: f32[S]", "%y: route[S] of f32[S]", 2, "expected route[group, token, expert"),
        ("%y: f32[S]", "%x: f32[S]", 2, "expected a new name: %x is defined already"),
        ("neg(%x)", "neg(%z)", 2, "expected a defined value: %z is not defined above"),
        ("neg(%x)", "neg(%x", 3, 'expected ",", found "return"'),
        ("neg(%x)", "neg(%x, over=)", 2, "expected a number, a string, True, False, None"),
        ("neg(%x)", "neg(%x; 1)", 2, 'cannot read "; 1)"'),
        ("= neg", "neg", 2, 'expected "=", found "neg"'),
        ("return y=%y", "", 4, 'expected "return", found "}"'),
        ("y=%y", "y=1", 3, 'expected a value, found "1"'),
        ("\n}", "\n", 4, 'expected "}", found the end of the text'),
        ("\n}", "\n} moe", 4, 'expected the end of the text, found "moe"'),
        ("(%x: f32[S])", "(%x: f32[S], %x: f32[S])", 1, "%x is defined already"),
    ],
)
def test_parse_errors_say_where_and_what(old, new, line, message):
    assert GOOD.count(old) >= 1
    with pytest.raises(ParseError, match=re.escape(message)) as caught:
        raise_as_parse_error(GOOD.replace(old, new, 1))
    assert caught.value.location == Location("bad.moe", line)
    assert f"--> bad.moe:{line}" in str(caught.value)


def raise_as_parse_error(text):
    """A type with a dim twice is the parser's error as well."""
    try:
        parse(text, "bad.moe")
    except DimError as error:
        raise ParseError(error.what, location=error.location) from None
