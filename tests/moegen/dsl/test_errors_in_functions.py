"""Mistakes in routers and experts: each has its own error, at the author's line."""

import re
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moegen as mg
from moegen import errors
from tests.moegen.programs import X


@mg.router
def first(x: mg.f32["S D"], w: mg.f32["D E"]):
    weight, expert = mg.top_k(mg.dot(x, w, over="D"), 1, over="E")
    return mg.assign(expert, weight, capacity=2)


@mg.expert
def scale(x: mg.f32["C D"], w: mg.f32["D"]):
    return x * w


def trace(router=first, expert=scale, x=X, **kwargs):
    return mg.compile(router, expert).trace(x, experts=3, hidden=2, **kwargs)


def error_of(kind, body, x=X, **kwargs):
    """Traces a router with this body and returns its error."""
    source = "@mg.router\ndef mine(x: mg.f32['S D'], w: mg.f32['D E']):\n"
    return error_in(kind, source + textwrap.indent(textwrap.dedent(body), "    "), x, **kwargs)


def error_in(kind, source, x=X, **kwargs):
    namespace = {"mg": mg, "jnp": jnp, "np": np}

    def run():
        exec(compile(source, "mine.py", "exec"), namespace)
        trace(namespace.get("mine", first), namespace.get("expert", scale), x, **kwargs)

    with pytest.raises(errors.MoegenError) as caught:
        run()
    assert type(caught.value) is kind, str(caught.value)
    return caught.value


def at(error, line, function="mine"):
    """The error points at this line of the author's function."""
    assert error.location is not None
    assert (str(error.location), error.location.function) == (f"mine.py:{line}", function)


# --- whole messages ---------------------------------------------------------------------


@mg.router
def too_many(x: mg.f32["S D"], w: mg.f32["D E"]):
    gates = mg.softmax(mg.dot(x, w, over="D"), over="E")
    weight, expert = mg.top_k(gates, 6, over="E")
    return mg.assign(expert, weight, capacity=1)


@mg.router
def branches(x: mg.f32["S D"], w: mg.f32["D E"]):
    gates = mg.dot(x, w, over="D")
    if mg.max(gates, over="S E") > 1.0:
        gates = gates * 2.0
    weight, expert = mg.top_k(gates, 1, over="E")
    return mg.assign(expert, weight, capacity=1)


@mg.router
def mixes(x: mg.bf16["S D"], w: mg.f32["D E"]):
    gates = mg.dot(x, w, over="D")
    weight, expert = mg.top_k(gates, 1, over="E")
    return mg.assign(expert, weight, capacity=1)


@mg.expert
def halved(x: mg.floating["C D"], w: mg.f32["D"]):
    return x * mg.cast(w, "bf16")


@mg.expert
def misspelt(x: mg.f32["C width"], w: mg.f32["width"]):
    return x - mg.mean(x, over="widht") * w


def line_of(declared, text):
    """The number of the line in this file, below the function's, that holds the text."""
    with open(__file__) as file:
        lines = file.read().splitlines()
    start = declared.location.line
    return start + 1 + next(i for i, line in enumerate(lines[start:]) if text in line)


def message(declared, kind, expert=scale, x=X):
    with pytest.raises(kind) as caught:
        trace(declared, expert, x) if isinstance(declared, mg.Router) else trace(first, declared, x)
    return str(caught.value)


def test_whole_message_top_k():
    line = line_of(too_many, "mg.top_k")
    assert message(too_many, errors.ShapeError) == "\n".join(
        [
            "top_k: k=6 is more than E=3",
            '  in  top_k(%gates: f32[G, S, E], over="E", dim="K", k=6)',
            f"  --> test_errors_in_functions.py:{line} in too_many",
            '   | weight, expert = mg.top_k(gates, 6, over="E")',
            "  fix: pick k <= 3",
        ]
    )


def test_whole_message_branch():
    line = line_of(branches, "if mg.max")
    assert message(branches, errors.TraceError) == "\n".join(
        [
            "a branch depends on %gt: bool[G], which is not known while tracing",
            f"  --> test_errors_in_functions.py:{line} in branches",
            '   | if mg.max(gates, over="S E") > 1.0:',
            "  fix: select with mg.where(condition, a, b), or branch on a setting",
        ]
    )


def test_whole_message_dtypes():
    line = line_of(mixes, "mg.dot")
    x = jax.ShapeDtypeStruct(X.shape, jnp.bfloat16)
    assert message(mixes, errors.DtypeError, halved, x) == "\n".join(
        [
            "dot: needs two tensors of one real dtype, got bf16 and f32",
            '  in  dot(%x: bf16[G, S, D], %w: f32[D, E], over="D")',
            f"  --> test_errors_in_functions.py:{line} in mixes",
            '   | gates = mg.dot(x, w, over="D")',
            '  fix: convert one side, for example mg.cast(b, "bf16")',
        ]
    )


def test_whole_message_dim_name():
    @mg.router
    def wide(x: mg.f32["S width"], w: mg.f32["width E"]):
        weight, expert = mg.top_k(mg.dot(x, w, over="width"), 1, over="E")
        return mg.assign(expert, weight, capacity=2)

    line = line_of(misspelt, "mg.mean")
    assert message(wide, errors.DimError, misspelt).splitlines()[:4] == [
        'mean: no dim "widht" in f32[G, E, C, width] (did you mean "width"?)',
        '  in  mean(%x: f32[G, E, C, width], over="widht")',
        f"  --> test_errors_in_functions.py:{line} in misspelt",
        '   | return x - mg.mean(x, over="widht") * w',
    ]


# --- one error per mistake --------------------------------------------------------------

END = "\nweight, expert = mg.top_k(mg.dot(x, w, over='D'), 1, over='E')\n"
END += "return mg.assign(expert, weight, capacity=1)"


def test_no_return():
    error = error_of(errors.TraceError, "mg.dot(x, w, over='D')")
    assert error.what == "mine returns nothing"
    at(error, 1)


def test_expert_without_return():
    source = "@mg.expert\ndef expert(x: mg.f32['C D'], w: mg.f32['D']):\n    x * w"
    error = error_in(errors.TraceError, source)
    assert error.what == "expert returns nothing"


@pytest.mark.parametrize(
    ("value", "kind"), [("x", "%x: f32[G, S, D]"), ("3", "a int"), ("'route'", "a str")]
)
def test_something_else_than_a_route(value, kind):
    error = error_of(errors.TraceError, f"mg.dot(x, w, over='D')\nreturn {value}")
    assert error.what == f"mine returns {kind} where the route should be"
    assert error.fix == "return what mg.assign gave"


def test_output_that_is_not_a_tensor():
    body = END.replace("return mg.assign(expert, weight, capacity=1)", "")
    error = error_of(
        errors.TraceError, body + "return mg.assign(expert, weight, capacity=1), {'loss': 1.0}"
    )
    assert error.what == 'mine: output "loss" is a float'


def test_expert_that_sums_its_rows():
    source = "@mg.expert\ndef expert(x: mg.f32['C D'], w: mg.f32['D']):\n"
    error = error_in(errors.ShapeError, source + "    return mg.sum(x * w, over='C')")
    assert error.what == "expert returns [D]"
    assert error.fix == "return one row per row of x: [C, ...]"


def test_unused_argument():
    source = "@mg.expert\ndef expert(x: mg.f32['C D'], w: mg.f32['D'], b: mg.f32['D']):\n"
    error = error_in(errors.TraceError, source + "    return x * w")
    assert error.what == "expert: argument b is never used"
    assert error.fix == "use it, remove it, or call it _b"
    error = error_of(errors.TraceError, "weight, expert = mg.top_k(x, 1, over='D')\n"
                     "return mg.assign(expert, weight, capacity=1)")  # fmt: skip
    assert error.what == "mine: argument w is never used"


def test_argument_that_is_only_returned_counts_as_used():
    @mg.router
    def returns_it(x: mg.f32["S D"], w: mg.f32["D E"], scale: mg.f32[""]):
        weight, expert = mg.top_k(mg.dot(x, w, over="D"), 1, over="E")
        return mg.assign(expert, weight, capacity=1), {"scale": scale}

    assert trace(returns_it).program.outputs[1][1].name == "scale"


def test_wrong_dim():
    error = error_of(errors.DimError, "gates = mg.softmax(mg.dot(x, w, over='D'), over='e')" + END)
    assert error.what == 'softmax: no dim "e" in f32[G, S, E] (did you mean "E"?)'
    at(error, 3)
    error = error_of(errors.DimError, "n = mg.size('F')" + END)
    assert error.what.startswith('no dim "F"')
    at(error, 3)


@pytest.mark.parametrize("k", [4, 0, -1])
def test_k_out_of_range(k):
    body = f"a, b = mg.top_k(mg.dot(x, w, over='D'), {k}, over='E')" + END
    error = error_of(errors.ShapeError, body)
    assert f"k={k} " in error.what
    at(error, 3)


def test_capacity_less_than_one():
    for capacity in ("0", "mg.capacity(1, 0.0)"):
        error = error_of(errors.ShapeError, END.replace("capacity=1", f"capacity={capacity}"))
        assert "capacity 0 is less than 1" in error.what
        assert error.fix == "raise the capacity factor or the number of tokens per group"
        at(error, 5)


def test_capacity_rounding():
    with pytest.raises(errors.ShapeError, match='rounding "floor" is unknown'):
        mg.compute_capacity(8, 4, 1.0, rounding="floor")
    assert mg.compute_capacity(8, 4, 1.05) == 4
    assert mg.compute_capacity(8, 4, 1.05, multiple_of=None) == 3
    assert mg.compute_capacity(10, 4, 1.0, rounding="round", multiple_of=None) == 2


def test_dtypes_do_not_match():
    error = error_of(errors.DtypeError, "gates = x + mg.cast(x, 'bf16')" + END)
    assert error.what == "add: dtypes do not match: f32, bf16"
    error = error_of(errors.DtypeError, "gates = mg.exp(mg.iota('E'))" + END)
    assert error.what == "exp: needs real numbers, got i32[E]"
    error = error_of(errors.DtypeError, "gates = mg.iota('E') + 0.5" + END)
    assert error.what == "add: the number 0.5 does not fit i32[E]"
    error = error_of(errors.DtypeError, "count = mg.sum(x > 0.0, over='S')" + END)
    assert error.what == "sum: needs numbers, got bool[G, S, D]"
    error = error_of(errors.DtypeError, "both = x & x" + END)
    assert error.what == "logical_and: needs bool, got f32[G, S, D]"


@pytest.mark.parametrize("over", ["G", "G S"])
def test_the_group_dim_rides_along(over):
    error = error_of(errors.DimError, f"total = mg.sum(x, over='{over}')" + END)
    assert error.what == 'the dim "G" rides along and cannot be named'
    at(error, 3)


def test_the_expert_dim_rides_along_in_experts():
    source = "@mg.expert\ndef expert(x: mg.f32['C D'], w: mg.f32['D']):\n"
    error = error_in(errors.DimError, source + "    return x * mg.sum(w, over='E')")
    assert error.what == 'the dim "E" rides along and cannot be named'


@pytest.mark.parametrize(
    ("use", "what"),
    [
        ("float(x)", "float() needs the elements of %x: f32[G, S, D]"),
        ("int(x)", "int() needs"),
        ("range(x)", "an index needs"),
        ("x[0]", "indexing needs"),
        ("len(x)", "len() needs"),
        ("list(x)", "iteration needs"),
        ("jnp.exp(x)", "a jax.numpy function needs"),
        ("np.exp(x)", "a numpy or jax.numpy function needs"),
        ("jnp.dot(x, w)", "a jax.numpy function needs"),
    ],
)
def test_looking_at_elements(use, what):
    error = error_of(errors.TraceError, f"a = {use}" + END)
    assert error.what.startswith(what)
    assert error.fix == "use moegen's functions, or mg.call for a JAX function"


@pytest.mark.parametrize("use", ["x and w", "not x", "x if x > 0 else w", "0 < x < 1"])
def test_truth_of_a_traced_value(use):
    error = error_of(errors.TraceError, f"a = {use}" + END)
    assert error.what.startswith("a branch depends on %")
    at(error, 3)


@pytest.mark.parametrize(
    "use",
    [
        "x + jnp.ones(3)",
        "mg.exp(np.ones(3))",
        "mg.dot(x, jnp.ones((3, 3)), over='D')",
        "mg.dot(x, 2.0, over='D')",
        "mg.cast(np.ones(3), 'f32')",
        "mg.cast(2.0, 'f32')",
        "mg.call(jnp.exp, x, 2.0, out=mg.f32['S D'])",
        "mg.normal(w, like=np.ones(3))",
        "mg.cv2([1.0, 2.0], over='E')",
        "mg.where([True], x, x)",
    ],
)
def test_arrays_are_declared_not_used(use):
    error = error_of(errors.TraceError, f"a = {use}" + END)
    assert re.match(r"an? \w+ cannot be used in a traced function", error.what)
    at(error, 3)


def test_a_key_is_a_key():
    error = error_of(errors.ShapeError, "noise = mg.normal(w, like=x)" + END)
    assert error.what == "normal: takes a key"


def test_words_outside_of_a_trace():
    for use in (lambda: mg.exp(1.0), lambda: mg.size("S"), lambda: mg.iota("S"),
                lambda: mg.cast(jnp.ones(3), "bf16"), lambda: mg.capacity(1, 1.0),
                lambda: mg.dot(jnp.ones(3), jnp.ones(3), over="D"),
                lambda: mg.call(jnp.exp, jnp.ones(3), out=mg.f32["S"])):  # fmt: skip
        with pytest.raises(errors.TraceError, match="they do not compute") as caught:
            use()
        assert caught.value.location.file == __file__


def test_priority():
    error = error_of(errors.TraceError, END.replace("capacity=1", "capacity=1, priority='gates'"))
    assert error.what == 'priority "gates" is unknown'
    error = error_of(errors.ShapeError, END.replace("capacity=1", "capacity=1, priority=x"))
    assert error.what == "assign: priority must be one number per token, got f32[G, S, D]"


# --- declarations -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signature", "kind", "what"),
    [
        ("x, w", errors.TraceError, "mine: argument x has no type"),
        ("x: mg.f32['S D'], w=1", errors.TraceError, "mine: argument w has no type"),
        ("x: mg.f32['S D'], w: int = 1", errors.TraceError, "mine: argument w has no type"),
        ("x: mg.f32['S D'], *w", errors.TraceError, "mine: *w cannot be traced"),
        ("x: mg.f32['S D'], w: mg.f32['D'] = 1", errors.TraceError, "mine: argument w has def"),
        ("", errors.TraceError, "mine needs x as its first argument"),
        ("key: mg.Key", errors.TraceError, "mine needs x as its first argument"),
        ("x: mg.f32['D S']", errors.DimError, "mine: x: f32[D, S] must be [S, D]"),
        ("x: mg.f32['G S D']", errors.DimError, 'mine: x: f32[G, S, D] names "G"'),
        ("x: mg.f32['S D'], w: mg.f32['G D']", errors.DimError, 'mine: w: f32[G, D] names "G"'),
        ("x: mg.f32['S D-1']", errors.DimError, '"D-1" is not a dim name'),
        ("x: mg.f32['S D'], *, k", errors.TraceError, "mine: setting k has no default"),
    ],
)
def test_signatures(signature, kind, what):
    error = error_in(kind, f"@mg.router\ndef mine({signature}):\n    pass")
    assert error.what.startswith(what)
    assert error.fix


@pytest.mark.parametrize(
    ("signature", "what"),
    [
        ("x: mg.f32['S D']", "expert: x: f32[S, D] must be [C, D]"),
        ("x: mg.f32['C D'], w: mg.f32['E D']", 'expert: w: f32[E, D] names "E"'),
        ("x: mg.f32['C D'], w: mg.f32['C D']", "expert: w: f32[C, D] has the row dim C"),
    ],
)
def test_expert_signatures(signature, what):
    error = error_in(errors.DimError, f"@mg.expert\ndef expert({signature}):\n    pass")
    assert error.what.startswith(what)


def test_unreadable_annotation():
    source = "from __future__ import annotations\n@mg.router\ndef mine(x: mgg.f32['S D']):\n  pass"
    assert "an annotation cannot be read" in error_in(errors.TraceError, source).what


def test_unknown_setting():
    @mg.router
    def mine(x: mg.f32["S D"], *, capacity: int = 2):
        pass

    with pytest.raises(errors.TraceError, match=r'no setting capasity \(did you mean "capacity"'):
        mine.bind(capasity=3)
    assert dict(mine.bind(capacity=3).settings) == {"capacity": 3}
    assert dict(mine.settings) == {"capacity": 2}


# --- arrays that do not fit the declaration ---------------------------------------------


def given(**changes):
    params = {"router": {"w": jnp.ones((3, 4))}, "expert": {"w": jnp.ones((4, 3))}}
    params["router"] |= {k[2:]: v for k, v in changes.items() if k.startswith("r_")}
    params["expert"] |= {k[2:]: v for k, v in changes.items() if k.startswith("e_")}
    return params


@pytest.mark.parametrize(
    ("changes", "kind", "what"),
    [
        ({"r_w": jnp.ones((5, 4))}, errors.ShapeError,
         "first: w is declared f32[D, E], given is f32[5, 4]: D is 3 elsewhere, here it is 5"),
        ({"e_w": jnp.ones((2, 3))}, errors.ShapeError,
         "scale: w is declared f32[D] with E in front, given is f32[2, 3]: E is 4 elsewhere"),
        ({"e_w": jnp.ones(3)}, errors.ShapeError, "scale: w is declared f32[D] with E in front"),
        ({"r_w": jnp.ones((3, 4), jnp.bfloat16)}, errors.DtypeError,
         "first: w is declared f32[D, E], given is bf16[3, 4]"),
        ({"r_w": np.ones((3, 4), np.complex64)}, errors.DtypeError, "dtype complex64 is not"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit(changes, kind, what):
    with pytest.raises(kind, match=re.escape(what)):
        mg.compile(first, scale).trace(given(**changes), X)


def test_missing_parameter_and_input():
    params = given()
    del params["expert"]["w"]
    with pytest.raises(errors.TraceError, match="scale: w is not given") as caught:
        mg.compile(first, scale).trace(params, X)
    assert caught.value.fix == 'pass params["expert"]["w"]'

    @mg.router
    def noisy(x: mg.f32["S D"], w: mg.f32["D E"], key: mg.Key, bias: mg.f32["S E"]):
        gates = mg.dot(x, w, over="D") + mg.normal(key, like=bias) + bias
        weight, expert = mg.top_k(gates, 1, over="E")
        return mg.assign(expert, weight, capacity=1)

    with pytest.raises(errors.TraceError, match="noisy: key is not given") as caught:
        trace(noisy)
    assert caught.value.fix == "pass key="
    with pytest.raises(errors.TraceError, match="noisy: bias is not given") as caught:
        trace(noisy, key=jax.random.key(0))
    assert caught.value.fix == "pass bias="


def test_tokens_that_do_not_fit_the_expert():
    @mg.expert
    def half(x: mg.bf16["C D"], w: mg.bf16["D"]):
        return x * w

    with pytest.raises(
        errors.DtypeError, match=r"half: x is declared bf16\[C, D\], tokens are f32"
    ):
        trace(first, half)

    @mg.expert
    def wide(x: mg.f32["C W"], w: mg.f32["W"]):
        return x * w

    with pytest.raises(errors.MoegenError, match=r"W"):
        trace(first, wide)
