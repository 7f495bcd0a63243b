"""share_loops: which ops run in one loop, and in what order."""

from moegen.ir.parse import parse
from moegen.ir.verify import verify
from moegen.passes.share_loops import share_loops

HEAD = """
moe @layer dims(G=1, S=4, D=3, F=2, E=2, N=6) (
    %a: f32[N, D], %w: f32[E, D, F], %v: f32[E, F, D], %b: f32[E, F], %sizes: i32[E]) {
"""
UP = 'over="D", block=1, kernel="runs")'
DOWN = 'over="F", block=1, kernel="runs")'
BIASED = 'epilogue=("add(acc, c0)",)'


def program(*lines, returns):
    return verify(parse(HEAD + "\n".join(lines) + f"\nreturn {returns}\n}}"), "test")


def loops(program, shared=True):
    done = verify(share_loops(program, lambda p, ops: shared), "share_loops")
    return {op.results[0].name: op.attr.get("loop") for op in done.ops}


def test_products_in_a_row_share_a_loop_and_others_wait():
    made = program(
        "%bias: f32[N, F] = per_row(%b, %sizes)",
        f"%h: f32[N, F] = grouped_dot(%a, %w, %sizes, %bias, {BIASED}, {UP}",
        "%e: f32[N, F] = exp(%h)",
        f"%y: f32[N, D] = grouped_dot(%h, %v, %sizes, {DOWN}",
        returns="y=%y, e=%e",
    )
    found = loops(made)
    assert found == {"bias": 0, "h": 0, "y": 0, "e": None}
    assert list(found) == ["bias", "h", "y", "e"]  # e waits for the loop
    assert loops(made, shared=False) == {"bias": None, "h": 0, "y": 1, "e": None}


def test_an_op_between_two_products_ends_the_loop():
    made = program(
        f"%h: f32[N, F] = grouped_dot(%a, %w, %sizes, {UP}",
        "%e: f32[N, F] = exp(%h)",
        f"%y: f32[N, D] = grouped_dot(%e, %v, %sizes, {DOWN}",
        returns="y=%y",
    )
    assert loops(made) == {"h": 0, "e": None, "y": 1}


def test_what_is_summed_over_an_expert_is_read_after_the_loop():
    made = program(
        f"%h: f32[N, F] = grouped_dot(%a, %w, %sizes, {UP}",
        "%s: f32[E, F] = grouped_sum(%h, %sizes, block=1)",
        "%bias: f32[N, F] = per_row(%s, %sizes)",
        f"%z: f32[N, F] = grouped_dot(%a, %w, %sizes, %bias, {BIASED}, {UP}",
        returns="z=%z",
    )
    assert loops(made) == {"h": 0, "s": 0, "bias": 1, "z": 1}
