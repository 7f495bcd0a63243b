"""The verifier: one broken program per rule, and what the error says."""

import re

import pytest

from moegen.errors import VerifyError
from moegen.ir.parse import parse
from moegen.ir.program import Op, Value
from moegen.ir.types import Tensor
from moegen.ir.verify import verify
from tests.moegen.programs import lowered, traced

HEAD = "moe @p dims(G=1, S=2, K=1, E=2, C=2, D=3) ("
INPUTS = "%x: f32[G, S, D], %w: f32[D, E], %v: f32[G, S, K], %e: i32[G, S, K]"


def program(*lines, returns="y=%y", inputs=INPUTS, head=HEAD, grad=""):
    return parse(
        "\n".join([f"{head}{inputs}) {grad} {{", *lines, f"return {returns}", "}"]), "p.moe"
    )


GOOD = '%y: f32[G, S, E] = dot(%x, %w, over="D")'
ROUTE = "%r: route[G, S, E, C] of f32[G, S, K] = assign(%v, %e, capacity=2)"
JOINT = program(
    GOOD,
    '%d_x: f32[G, S, D] = dot(%d_y, %w, over="E")',
    '%d_w: f32[D, E] = dot(%x, %d_y, over=("G", "S"))',
    returns="y=%y\n grad x=%d_x, w=%d_w",
    inputs="%x: f32[G, S, D], %w: f32[D, E]",
    grad="grad (%d_y: f32[G, S, E])",
)


def refused(broken, message, op=None, line=None, after=""):
    with pytest.raises(VerifyError, match=re.escape(message)) as caught:
        verify(broken, after)
    if op is not None:
        assert caught.value.op.startswith(op) or f"= {op}" in caught.value.op
        assert str(caught.value.location) == f"p.moe:{line}"
    return caught.value


def test_good_programs_are_returned_unchanged():
    for good in (program(GOOD), JOINT, traced().program, *lowered("sorted").stages.values()):
        assert verify(good) is good


def test_undefined_operand():
    good = program(GOOD)
    (op,) = good.ops
    missing = Op(op.name, (Value("z", op.operands[0].type), op.operands[1]), op.attrs, op.results,
                 op.location)  # fmt: skip
    refused(good.with_(ops=(missing,)), "dot: %z is not defined above", "dot", 2)


def test_operand_of_another_type():
    good = program(GOOD)
    (op,) = good.ops
    other = Value("x", Tensor("f32", ("S", "D")))
    wrong = Op(op.name, (other, op.operands[1]), op.attrs, op.results, op.location)
    message = "dot: %x was defined as f32[G, S, D], used as f32[S, D]"
    refused(good.with_(ops=(wrong,)), message, "dot", 2)


def test_wrong_declared_type():
    broken = program(GOOD.replace("[G, S, E]", "[G, E, S]"))
    message = "dot: results are declared (f32[G, E, S]), the op gives (f32[G, S, E])"
    refused(broken, message, "dot", 2)


def test_wrong_number_of_results():
    broken = program("%y: f32[G, S, K], %z: i32[G, S, K] = neg(%v)")
    refused(broken, "neg: results are declared (f32[G, S, K], i32[G, S, K])", "neg", 2)


def test_double_definition():
    good = program(GOOD)
    refused(good.with_(ops=good.ops * 2), "dot: %y is defined twice", "dot", 2)


def test_result_with_an_arguments_name():
    good = program("%y: f32[G, S, K] = neg(%v)")
    (op,) = good.ops
    taken = Op(op.name, op.operands, op.attrs, (Value("v", op.result.type),), op.location)
    refused(good.with_(ops=(taken,)), "neg: %v is defined twice", "neg", 2)


def test_argument_twice():
    good = program(GOOD)
    refused(good.with_(inputs=good.inputs * 2), "@p: an argument name appears twice")


def test_dim_without_a_size():
    error = refused(program(GOOD, head=HEAD.replace(", D=3", "")), "@p: dims D have no size")
    assert error.fix == "list every dim in dims(...)"


def test_dim_of_a_routes_weight_without_a_size():
    broken = program(ROUTE, "%y: bool[G, S, K] = kept(%r)", head=HEAD.replace(", K=1", ""))
    refused(broken, "@p: dims K have no size")


@pytest.mark.parametrize("dims", ["D=3, D=3", "D=-3"])
def test_dims_negative_or_twice(dims):
    refused(program(GOOD, head=HEAD.replace("D=3", dims)), "@p: dims are negative or listed twice")


def test_unknown_op():
    broken = program(GOOD.replace("= dot", "= dott"))
    refused(broken, 'no op dott (did you mean "dot"?)', "dott", 2)


def test_type_rule_of_the_op():
    error = refused(
        program(GOOD.replace('"D"', '"d"')), 'dot: no dim "d" in f32[G, S, D]', "dot", 2
    )
    assert '(did you mean "D"?)' in error.what


def test_missing_attribute():
    refused(program(GOOD.replace(', over="D"', "")), "dot: operands or attributes", "dot", 2)


def test_size_that_an_op_gives_to_a_dim():
    broken = program(ROUTE.replace("=2)", "=3)"), "%y: bool[G, S, K] = kept(%r)")
    refused(broken, "assign: dim C has size 2 already, now 3", "assign", 2)


def test_returned_route():
    message = "return y=%r: a route is not an array and cannot be returned"
    refused(program(ROUTE, returns="y=%r"), message)


def test_returned_value_that_is_not_defined():
    good = program(GOOD)
    refused(good.with_(ops=()), "return y=%y: not defined with type f32[G, S, E]")


def test_one_name_for_two_outputs():
    refused(program(GOOD, returns="y=%y, y=%x"), "@p: a name is returned twice")


def test_cotangents_of_all_float_outputs():
    message = "@p: outputs need cotangents (f32[G, S, E]), given are (f32[G, S, E], f32[G, S, E])"
    extra = Value("d_z", JOINT.cotangents[0].type)
    refused(JOINT.with_(cotangents=(*JOINT.cotangents, extra)), message)


def test_cotangent_of_another_type():
    other = program(
        GOOD, '%d: f32[S, D] = sum(%x, over="G")', returns="y=%d\n grad x=%x, w=%w",
        inputs="%x: f32[G, S, D], %w: f32[D, E]", grad="grad (%d_y: f32[G, S, E])",
    )  # fmt: skip
    refused(other, "@p: outputs need cotangents (f32[S, D]), given are (f32[G, S, E])")


def test_gradients_of_all_float_inputs():
    message = "@p: gradients must be given for ['w', 'x'] with the inputs' types"
    refused(JOINT.with_(gradients=JOINT.gradients[:1]), message)
    refused(JOINT.with_(gradients=(("x", JOINT.cotangents[0]), JOINT.gradients[1])), message)


def test_gradients_without_cotangents():
    refused(program(GOOD, returns="y=%y\n grad x=%x, w=%w, v=%v"), "outputs need cotangents")


def test_the_pass_is_named():
    refused(program(GOOD, returns="y=%y, y=%x"), "(after fuse)", after="fuse")
