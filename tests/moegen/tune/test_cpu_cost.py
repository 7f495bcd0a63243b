"""tune/cpu_cost.py: what XLA on CPU adds to FLOPs and bytes."""

import pytest

from moegen.ir.parse import parse
from moegen.passes.select_kernels import KernelChoice, select_kernels
from moegen.tune import cpu_cost
from moegen.tune.cost import op_cost, program_cost
from moegen.tune.target import target_named

CPU = target_named("cpu")
SIZES = {"G": 1, "E": 4, "C": 8, "D": 16, "F": 32, "N": 64}
LARGE = 1e18
"""FLOPs of a product that is not small."""
WEIGHTS = 4 * 4 * 16 * 32
"""Bytes of float32 [E, D, F]."""
ROWS_D, ROWS_F = 4 * 64 * 16, 4 * 64 * 32
"""Bytes of float32 [N, D] and [N, F]."""
ARGUMENTS = """%x: f32[N, D], %w: f32[E, D, F], %u: f32[E, F, D], %b: f32[E, F], %sizes: i32[E],
    %s: f32[G, E, C, D]"""


def program(*lines, returns="y=%y", dtype="f32"):
    dims = ", ".join(f"{n}={s}" for n, s in SIZES.items())
    body, arguments = "\n".join(lines), ARGUMENTS.replace("f32", dtype)
    return parse(f"moe @p dims({dims}) ({arguments}) {{\n{body}\nreturn {returns}\n}}")


UP = '%h: f32[N, F] = grouped_dot(%x, %w, %sizes, over="D", block=8)'
ADD = "%a: f32[N, F] = add(%h, %rows)"
BIAS = "%rows: f32[N, F] = per_row(%b, %sizes)"
DOWN = '%y: f32[N, D] = grouped_dot(%a, %u, %sizes, over="F", block=8)'


def test_a_batched_product_is_slower_with_few_rows():
    (dot,) = program('%y: f32[G, E, C, F] = dot(%s, %w, over="D")').ops
    assert cpu_cost.slowdown(dot, LARGE, SIZES) == pytest.approx(1 + 24 / 8, rel=1e-6)
    assert cpu_cost.slowdown(dot, LARGE, {**SIZES, "G": 3}) == pytest.approx(1 + 24 / 24, rel=1e-6)
    once, thrice = (op_cost(dot, {**SIZES, "C": c}, CPU).seconds for c in (10**6, 3 * 10**6))
    assert thrice == pytest.approx(3 * once, rel=0.01)


def test_small_products_of_one_expert_are_left_to_one_core():
    (dot,) = program('%y: f32[G, E, C, F] = dot(%s, %w, over="D")').ops
    (up,) = program(UP, returns="h=%h").ops
    many = {**SIZES, "C": 10**6}
    twice = cpu_cost.SMALL * SIZES["E"]
    assert cpu_cost.slowdown(dot, twice, many) == pytest.approx(2, rel=1e-3)
    assert cpu_cost.slowdown(up, twice, many) == 2
    assert cpu_cost.slowdown(dot, 1.0, many) == pytest.approx(cpu_cost.ONE_CORE_BATCHED, rel=1e-3)
    assert cpu_cost.slowdown(up, 1.0, many) == cpu_cost.ONE_CORE


def test_the_custom_call_copies_no_weights_and_its_rows_are_moved_and_what_is_fused_is_not():
    plain = program(UP, BIAS, ADD, DOWN)
    custom = select_kernels(plain, lambda p, op: KernelChoice("native"))
    up, bias, add, _ = custom.ops
    loops = cpu_cost.Loops.of(custom)
    assert loops.moved(up, SIZES) == ROWS_D + WEIGHTS + 4 * 4 + ROWS_F
    assert loops.moved(bias, SIZES) == 4 * 4 * 32 + 4 * 4
    assert loops.moved(add, SIZES) == 2 * ROWS_F
    assert op_cost(up, SIZES, CPU).bytes == ROWS_D + WEIGHTS + 4 * 4 + ROWS_F
    spared = op_cost(plain.ops[0], SIZES, CPU).seconds - op_cost(up, SIZES, CPU).seconds
    assert spared > 2 * WEIGHTS / CPU.bytes - cpu_cost.NATIVE_START
    assert op_cost(up, SIZES, CPU).seconds > cpu_cost.NATIVE_START


def test_the_custom_call_multiplies_bf16_at_its_own_rate():
    (up,) = program(UP, returns="h=%h").ops
    narrow = program(UP.replace("f32", "bf16"), returns="h=%h", dtype="bf16").ops[0]
    flops, sizes = 1e12, {**SIZES, "N": 64}
    wide, half = (cpu_cost.native_seconds(op, flops, 0.0, sizes, CPU) for op in (up, narrow))
    assert wide == pytest.approx(flops / CPU.flops, rel=1e-3)
    assert half == pytest.approx(flops / CPU.rate("bf16"), rel=1e-3)
    assert half < 0.6 * wide


def test_a_product_that_is_not_batched_over_experts_is_as_fast_as_its_flops():
    (summed,) = program('%y: f32[G, C, F] = dot(%s, %w, over="E D")').ops
    assert cpu_cost.slowdown(summed, 1.0, SIZES) == 1


def test_a_loop_copies_the_slice_of_the_weights_and_not_the_rows():
    (up,) = program(UP, returns="h=%h").ops
    assert cpu_cost.copied_bytes(up, SIZES) == 2 * WEIGHTS
    elsewhere = op_cost(up, SIZES, target_named("tpu")).bytes
    assert op_cost(up, SIZES, CPU).bytes == elsewhere + 2 * WEIGHTS


def test_rows_within_a_loop_are_not_moved():
    whole = program(UP, BIAS, ADD, DOWN)
    up, bias, add, down = whole.ops
    loops = cpu_cost.Loops.of(whole)
    sizes = 4 * 4  # of i32[E]
    assert loops.moved(up, SIZES) == ROWS_D + WEIGHTS + sizes
    assert loops.moved(bias, SIZES) == 4 * 4 * 32 + sizes
    assert loops.moved(add, SIZES) == 0
    assert loops.moved(down, SIZES) == WEIGHTS + sizes + ROWS_D


def test_rows_that_something_else_reads_are_stored_and_still_read_in_the_loop():
    whole = program(UP, BIAS, ADD, DOWN, returns="y=%y, h=%h")
    up, _, add, _ = whole.ops
    loops = cpu_cost.Loops.of(whole)
    assert loops.moved(up, SIZES) == ROWS_D + WEIGHTS + 4 * 4 + ROWS_F
    assert loops.moved(add, SIZES) == 0


def test_a_program_counts_what_passes_through_memory():
    whole = program(UP, BIAS, ADD, DOWN)
    each = sum(op_cost(op, SIZES, CPU).bytes for op in whole.ops)
    inside = 3 * 2 * ROWS_F  # h, the copies of the bias, and their sum: written and read
    assert program_cost(whole, CPU).bytes == each - inside
