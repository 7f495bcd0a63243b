"""Programs, the builder, the rewriter and the interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moegen.errors import DimError, DtypeError, Location, ShapeError, VerifyError
from moegen.ir import registry
from moegen.ir.builder import Builder
from moegen.ir.dims import Dims
from moegen.ir.interpret import interpret
from moegen.ir.parse import parse
from moegen.ir.program import Literal, live_ops
from moegen.ir.registry import OpDef
from moegen.ir.rewrite import rename, rewrite, set_attrs
from moegen.ir.text import format_program
from moegen.ir.types import Tensor
from moegen.ir.verify import verify

TEXT = """moe @p dims(S=2, E=3) (
    %x: f32[S, E]) {
  %a: f32[S, E] = exp(%x)  // mine.py:1
  %b: f32[S, E] = neg(%a)  // mine.py:2
  %y: f32[S] = sum(%b, over="E")  // mine.py:3
  return y=%y
}
"""


def test_rewrite_keeps_what_the_rule_leaves():
    program = parse(TEXT)
    assert rewrite(program, lambda b, op: None) == program


def test_rewrite_replaces_drops_dead_ops_and_keeps_lines():
    def rule(b, op):
        if op.name != "neg":
            return None
        doubled = b.one("mul", op.operands[0], -1.0, hint=op.result.name)
        b.one("exp", doubled)  # dead: dropped
        return (doubled,)

    program = verify(rewrite(parse(TEXT), rule))
    assert [op.name for op in program.ops] == ["exp", "mul", "sum"]
    assert program.ops[1].result.name == "b"
    assert program.ops[1].location == Location("mine.py", 2)


def test_rewrite_infers_types_anew():
    program = verify(rewrite(parse(TEXT), lambda b, op: _cast(b, op) if op.name == "exp" else None))
    assert program.outputs[0][1].type == Tensor("bf16", ("S",))


def _cast(b, op):
    return (b.one("cast", op.operands[0], dtype="bf16"),)


def test_rewrite_to_a_number_that_is_returned():
    program = rewrite(parse(TEXT), lambda b, op: (Literal(2.0),) if op.name == "sum" else None)
    assert [op.name for op in program.ops] == ["full"]


def test_rename_numbers_taken_names():
    program = rename(parse(TEXT), {"a": "y", "b": "x"})
    assert [op.result.name for op in program.ops] == ["y", "x_1", "y_1"]
    assert program.outputs[0][0] == "y"
    assert verify(program).outputs[0][1].name == "y_1"


def test_set_attrs_none_removes():
    op = parse(TEXT).ops[2]
    assert set_attrs(op, over="S", kernel="xla").attrs == (("over", "S"), ("kernel", "xla"))
    assert set_attrs(op, over=None).attrs == ()


def test_live_ops_and_users():
    program = parse(TEXT)
    a, b, y = (op.result for op in program.ops)
    assert live_ops(program.ops, [b]) == program.ops[:2]
    assert live_ops(program.ops, [y]) == program.ops
    assert program.users() == {"x": [program.ops[0]], a.name: [program.ops[1]],
                               b.name: [program.ops[2]]}  # fmt: skip
    assert program.definitions()["y"] is program.ops[2]


def test_builder_names_values_once():
    b = Builder(Dims({"S": 2}))
    x = b.argument("x", Tensor("f32", ("S",)))
    names = [b.one("exp", x, hint="x").name, b.one("exp", x).name, b.one("exp", x).name]
    assert names == ["x_1", "exp", "exp_1"]


def test_builder_points_at_the_authors_line():
    line = Location("mine.py", 7, "router")
    b = Builder(Dims({"S": 2}), locate=lambda: line)
    x = b.argument("x", Tensor("i32", ("S",)))
    with pytest.raises(DtypeError) as caught:
        b.one("exp", x)
    assert str(caught.value).splitlines()[:3] == [
        "exp: needs real numbers, got i32[S]",
        "  in  exp(%x: i32[S])",
        "  --> mine.py:7 in router",
    ]


def test_fit_sums_broadcasts_and_casts():
    b = Builder(Dims({"S": 2, "E": 3}))
    x = b.argument("x", Tensor("f32", ("S", "E")))
    fitted = b.fit(x, Tensor("bf16", ("E",)))
    assert [op.name for op in b.ops] == ["sum", "cast"]
    assert b.fit(fitted, Tensor("bf16", ("E", "S"))).type == Tensor("bf16", ("E", "S"))
    assert b.fit(x, Tensor("f32", ("S", "E"))) is x


def test_dims_keep_their_size():
    dims = Dims({"S": 2, "width": 3})
    dims.define("S", 2)
    with pytest.raises(ShapeError, match="dim S has size 2 already, now 3"):
        dims.define("S", 3)
    with pytest.raises(ShapeError, match="dim Q has size -1"):
        dims.define("Q", -1)
    with pytest.raises(DimError, match=r'no dim "widht" \(did you mean "width"\?\)') as caught:
        dims["widht"]
    assert caught.value.fix == "use one of S, width"


def test_an_op_name_is_taken_once():
    class Again(OpDef):
        name = "exp"

    with pytest.raises(VerifyError, match="op exp is registered twice"):
        registry.add(Again())


def test_interpret_by_hand():
    x = jnp.asarray([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    outputs, gradients = interpret(parse(TEXT), x)
    np.testing.assert_allclose(outputs["y"], -np.exp(np.asarray(x)).sum(1), rtol=1e-6)
    assert gradients == {}


def test_interpret_refuses_wrong_arguments():
    program = parse(TEXT)
    with pytest.raises(ShapeError, match="@p takes 1 arguments, 2 are given"):
        interpret(program, jnp.zeros((2, 3)), jnp.zeros((2, 3)))
    with pytest.raises(ShapeError, match=r"%x: f32\[S, E\] has shape \(2, 3\), given is \(3, 2\)"):
        interpret(program, jnp.zeros((3, 2)))


def test_interpret_runs_under_jit():
    program = parse(TEXT)
    x = jnp.ones((2, 3))
    jitted = jax.jit(lambda x: interpret(program, x)[0]["y"])
    np.testing.assert_allclose(jitted(x), interpret(program, x)[0]["y"], rtol=1e-6)


def test_format_program_reads_as_in_the_design():
    assert format_program(parse(TEXT), locations=False).splitlines()[2:5] == [
        "  %a: f32[S, E] = exp(%x)",
        "  %b: f32[S, E] = neg(%a)",
        '  %y: f32[S] = sum(%b, over="E")',
    ]
