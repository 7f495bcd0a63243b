"""The cost model by hand, the choice of a format, and what the choice says of itself."""

import pytest

import moegen as mg
from moegen.errors import LoweringError, ScheduleError
from moegen.ir.parse import parse
from moegen.ir.types import value_bytes
from moegen.tune.choose import gathers_inside, kernel_for
from moegen.tune.cost import op_cost, op_flops, program_cost
from moegen.tune.formats import balanced_block, exchange_for, pick_format
from moegen.tune.grouped import GROUPED_CHOICES
from moegen.tune.target import TARGETS, Target, target_named
from tests.moegen.programs import lowered, traced

CPU = target_named("cpu")
SIZES = {"G": 2, "S": 4, "D": 3, "E": 5, "N": 8, "F": 6, "K": 2, "C": 2}


def op(line, inputs):
    dims = ", ".join(f"{n}={s}" for n, s in SIZES.items())
    return parse(f"moe @p dims({dims}) ({inputs}) {{\n{line}\nreturn y=%y\n}}").ops[0]


DOT = op('%y: f32[G, S, E] = dot(%x, %w, over="D")', "%x: f32[G, S, D], %w: f32[D, E]")
SORTED = "%x: f32[N, D], %w: f32[E, D, F], %sizes: i32[E]"


def grouped(block):
    return op(f'%y: f32[N, F] = grouped_dot(%x, %w, %sizes, over="D", block={block})', SORTED)


def test_flops_of_a_dot():
    assert op_flops(DOT, SIZES) == 2 * 2 * 4 * 3 * 5


def test_flops_of_a_grouped_dot_do_not_count_experts():
    assert op_flops(grouped(1), SIZES) == 2 * 8 * 3 * 6
    assert op_cost(grouped(4), SIZES, CPU).flops == 2 * 8 * 3 * 6


def test_ragged_dot_on_a_cpu_is_one_dense_product_per_expert():
    assert op_cost(grouped(1), SIZES, CPU).flops == 5 * 2 * 8 * 3 * 6
    assert op_cost(grouped(1), SIZES, target_named("tpu")).flops == 2 * 8 * 3 * 6


def test_flops_of_the_rest():
    add = op("%y: f32[S, D] = add(%a, %b)", "%a: f32[S, D], %b: f32[D]")
    assert op_flops(add, SIZES) == 4 * 3
    total = op('%y: f32[S] = sum(%a, over="D")', "%a: f32[S, D]")
    assert op_flops(total, SIZES) == 4 * 3 + 4
    mask = op('%y: f32[G, S, E, C] = slot_mask(%a, dtype="f32")', "%a: i32[G, S, K]")
    assert op_flops(mask, SIZES) == 2 * (2 * 4 * 5 * 2)


def test_bytes():
    cost = op_cost(DOT, SIZES, CPU)
    assert cost.bytes == 4 * (2 * 4 * 3 + 3 * 5 + 2 * 4 * 5)
    (x, _) = DOT.inputs
    assert value_bytes(x.type, SIZES) == 96
    assert value_bytes(traced().program.inputs[2].type, SIZES) == 0  # a key


def test_a_batched_product_in_bfloat16_is_widened_on_a_cpu():
    def batched(dtype):
        line = f'%y: {dtype}[G, E, C, F] = dot(%x, %w, over="D")'
        return op(line, f"%x: {dtype}[G, E, C, D], %w: {dtype}[E, D, F]")

    many = {**SIZES, "C": 1000}  # rows, so that memory is the slower part
    short, wide = (op_cost(batched(dtype), many, CPU) for dtype in ("bf16", "f32"))
    elements = wide.bytes / 4
    assert short.bytes == (2 + 8) * elements
    unwidened = op_cost(batched("bf16"), many, target_named("tpu"))
    assert unwidened.bytes == 2 * elements
    assert short.seconds == pytest.approx(CPU.overhead + 10 * elements / CPU.bytes)


def test_seconds_are_the_slower_of_arithmetic_and_memory():
    slow_math = Target("a", "cpu", 1.0, 1e9, 0.5, 1)
    slow_memory = Target("b", "cpu", 1e9, 1.0, 0.5, 1)
    cost = op_cost(DOT, SIZES, slow_math)
    assert cost.seconds == cost.flops + 0.5
    assert op_cost(DOT, SIZES, slow_memory).seconds == cost.bytes + 0.5


def test_a_program_costs_the_sum_of_its_ops():
    program = lowered("slots").program
    costs = [op_cost(o, program.sizes, CPU) for o in program.ops]
    total = program_cost(program, CPU)
    assert total.flops == sum(c.flops for c in costs)
    assert total.seconds == pytest.approx(sum(c.seconds for c in costs))


def joint(**kwargs):
    return traced(**kwargs).lower().stages["shard"]


def test_auto_takes_the_least_estimate():
    choice = pick_format(joint(), "auto", None, CPU)
    seconds = {c.format: c.cost.seconds for c in choice.candidates if c.cost}
    assert choice.format == min(seconds, key=seconds.get)
    sizes = joint().sizes
    rows = sizes["G"] * sizes["S"] * sizes["K"]
    assert (choice.forced, choice.block) == (False, balanced_block(rows, sizes["E"]))
    assert choice.explain().splitlines()[-1] == "least estimated time"


@pytest.mark.parametrize("format", ["onehot", "slots", "sorted"])
def test_a_forced_format_is_taken_whatever_it_costs(format):
    choice = pick_format(joint(), format, 4, CPU)
    assert (choice.format, choice.forced, choice.block) == (format, True, 4)
    lines = choice.explain().splitlines()
    assert lines[0].split() == ["format", "GFLOP", "MB", "moved", "est.", "ms"]
    assert [line.split()[0] for line in lines[1:4]] == ["onehot", "slots", "sorted"]
    assert [line.endswith("<- chosen") for line in lines[1:4]] == [
        c.format == format for c in choice.candidates[:3]
    ]
    assert lines[-1] == "asked for by the schedule"


@pytest.mark.parametrize("target", ["a100", "h100", "b200"])
def test_auto_takes_no_kernel_that_is_only_asked_for(target):
    """Not even where it alone could read the biases of experts without copies of them."""
    program = traced(format="sorted", target=target).lower().program
    kernels = {op.attr["kernel"] for op in program.ops if op.name.startswith("grouped")}
    asked_only = {name for name, choice in GROUPED_CHOICES.items() if choice.asked_only}
    assert kernels
    assert not kernels & asked_only


@mg.expert
def mixing(x: mg.f32["C D"], w: mg.f32["D"]):
    return x * w - mg.mean(x, over="C")


def test_impossible_formats_are_explained():
    choice = pick_format(joint(expert=mixing), "auto", None, CPU)
    assert choice.format != "sorted"
    line = choice.explain().splitlines()[3]
    assert line.startswith("sorted    not possible: mean mixes the rows of one expert")


def test_no_format_is_possible(monkeypatch):
    from moegen.tune import formats

    def refuse(program, format, block, exchange):
        raise LoweringError(f"not as {format}")

    monkeypatch.setattr(formats, "choose_format", refuse)
    with pytest.raises(LoweringError, match="no format can hold it: not as onehot; not as slots"):
        pick_format(traced().program, "auto", None, CPU)


def test_unknown_names():
    with pytest.raises(ScheduleError, match='format "slot" is unknown'):
        pick_format(traced().program, "slot", None, CPU)
    with pytest.raises(ScheduleError, match=r'target "tpu_v7" is unknown \(did you mean "tpu_v'):
        target_named("tpu_v7")
    assert target_named("cuda") is TARGETS["h100"]


def test_kernels():
    tpu = target_named("tpu")
    assert kernel_for(DOT, "ragged_dot", tpu, SIZES).kernel == "xla"
    taken = kernel_for(grouped(1), "auto", tpu, SIZES)
    assert (taken.kernel, taken.tile, taken.source) == ("pallas_tpu", (6, 32, 16), "heuristic")
    assert kernel_for(grouped(1), "auto", target_named("h100"), SIZES).kernel == "ragged_dot"
    assert kernel_for(grouped(1), "auto", CPU, SIZES).kernel == "runs"
    asked = kernel_for(grouped(1), "blocks", tpu, SIZES)
    assert (asked.kernel, asked.source) == ("blocks", "schedule")


def test_a_kernel_of_another_device_is_interpreted_only_if_asked():
    with pytest.raises(LoweringError, match="it is for tpu, the target is cpu") as caught:
        kernel_for(grouped(1), "pallas_tpu", CPU, SIZES)
    assert "Schedule(interpret=True)" in str(caught.value.fix)
    asked = kernel_for(grouped(1), "pallas_tpu", CPU, SIZES, interpret=True)
    assert (asked.kernel, asked.interpret) == ("pallas_tpu", True)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('%y: f32[N] = grouped_dot(%x, %v, %sizes, over="D", block=1)', r"\[2, 2, 1\] dims"),
        ('%y: f16[N, F] = grouped_dot(%h, %u, %sizes, over="D", block=1)', "is f16, it takes"),
        (
            "%y: bool[N, F] = grouped_dot("
            '%x, %w, %sizes, over="D", block=1, epilogue=("gt(acc, 0)",))',
            "is bool, it takes",
        ),
        (
            "%y: f32[N, F] = grouped_dot("
            '%x, %w, %sizes, over="D", block=1, epilogue=("normal_cdf(acc)",))',
            "its epilogue has normal_cdf",
        ),
    ],
)
def test_pallas_tpu_is_refused_where_it_cannot_run(line, why):
    product = op(line, f"{SORTED}, %v: f32[E, D], %h: f16[N, D], %u: f16[E, D, F]")
    with pytest.raises(LoweringError, match=f"pallas_tpu cannot run it: .*{why}"):
        kernel_for(product, "pallas_tpu", target_named("tpu"), SIZES)
    assert kernel_for(product, "auto", target_named("tpu"), SIZES).kernel != "pallas_tpu"


GATHERED = "%x: bf16[G, S, D], %f: f32[G, S, D], %source: i32[N], %sizes: i32[E]"


def gathered(rest="block=1", x="%x", w="%w: bf16[E, D, F]"):
    dtype = w.split()[1].partition("[")[0]
    line = f'%y: {dtype}[N, F] = gathered_dot({x}, %source, %w, %sizes, over="D", {rest})'
    return op(line, f"{GATHERED}, {w}")


@pytest.mark.parametrize(
    ("product", "sizes", "why"),
    [
        (gathered("block=4"), SIZES, "padded to 4, and it gathers no rows of zeros"),
        (gathered(), {**SIZES, "G": 1, "S": 7}, "number of tokens is odd"),
        (gathered(), {**SIZES, "N": 2**18}, "more than 131072 rows to number"),
        (gathered('block=1, epilogue=("normal_cdf(acc)",)'), SIZES, "has normal_cdf"),
        (gathered(), {**SIZES, "D": 2**20, "F": 2**20}, "no tile of it fits"),
    ],
)
def test_gathering_inside_is_refused_where_the_kernel_cannot(product, sizes, why):
    with pytest.raises(LoweringError, match=f"pallas_tpu: .*{why}.*; ragged_dot: it gathers no"):
        gathers_inside(product, "inside", "auto", target_named("tpu"), sizes)


def test_gathering_inside_is_chosen_where_asked():
    tpu, f32 = target_named("tpu"), gathered(x="%f", w="%w: f32[E, D, F]")
    assert gathers_inside(gathered(), "inside", "auto", tpu, SIZES)
    assert gathers_inside(f32, "inside", "pallas_tpu", tpu, {**SIZES, "G": 1, "S": 7})
    assert not gathers_inside(gathered(), "auto", "auto", tpu, SIZES)
    taken = kernel_for(gathered(), "auto", tpu, SIZES)
    assert (taken.kernel, taken.tile) == ("pallas_tpu", (6, 32, 16))
    assert op_flops(gathered(), SIZES) == op_flops(grouped(1), SIZES)


WIDE = {**SIZES, "N": 256, "D": 64, "F": 128}
ON_GPU = (
    "%x: bf16[N, D], %w: bf16[E, D, F], %sizes: i32[E], %f: f32[N, D], %v: f32[E, D, F], "
    "%i: i8[E, D, F]"
)


def gpu_product(rest="block=64", sizes=WIDE, operands="%x, %w"):
    dims = ", ".join(f"{n}={s}" for n, s in sizes.items())
    dtype = "bf16" if "%x" in operands else "f32"
    line = f'%y: {dtype}[N, F] = grouped_dot({operands}, %sizes, over="D", {rest})'
    return parse(f"moe @p dims({dims}) ({ON_GPU}) {{\n{line}\nreturn y=%y\n}}").ops[0]


@pytest.mark.parametrize(
    ("product", "why"),
    [
        (gpu_product("block=32"), r"multiple of 32, .* set Schedule\(block=64\)"),
        (gpu_product(sizes=WIDE | {"D": 96}), "D=96 is not a multiple of 64"),
        (gpu_product(operands="%f, %v"), "rows are f32"),
        (gpu_product('block=64, epilogue=("erf(acc)",)'), "its epilogue has erf"),
    ],
)
def test_pallas_gpu_is_refused_where_it_cannot_run(product, why):
    sizes = WIDE | {"D": 96} if "D=96" in why else WIDE
    with pytest.raises(LoweringError, match=f"pallas_gpu cannot run it: .*{why}"):
        kernel_for(product, "pallas_gpu", target_named("h100"), sizes)


def test_pallas_gpu_is_taken_when_asked_for():
    taken = kernel_for(gpu_product(), "pallas_gpu", target_named("h100"), WIDE)
    assert (taken.kernel, taken.tile) == ("pallas_gpu", (64, 128, 64, 4))
    assert kernel_for(gpu_product(), "auto", target_named("h100"), WIDE).kernel == "ragged_dot"
    with pytest.raises(LoweringError, match="wgmma, which b200 does not have; pallas_tcgen05 is"):
        kernel_for(gpu_product(), "pallas_gpu", target_named("b200"), WIDE)


def test_pallas_tcgen05_is_for_a_b200_and_tiles_of_128_rows():
    b200 = target_named("b200")
    taken = kernel_for(gpu_product("block=128"), "pallas_tcgen05", b200, WIDE)
    assert (taken.kernel, taken.tile) == ("pallas_tcgen05", (128, 128, 64, 3))
    with pytest.raises(LoweringError, match=r"multiples of 128: set Schedule\(block=128\)"):
        kernel_for(gpu_product("block=64"), "pallas_tcgen05", b200, WIDE)
    with pytest.raises(LoweringError, match="tcgen05, which h100 does not have"):
        kernel_for(gpu_product("block=128"), "pallas_tcgen05", target_named("h100"), WIDE)


def test_pallas_triton_is_taken_when_asked_for_and_refused_where_it_cannot_run():
    a100, wide = target_named("a100"), WIDE | {"D": 96}
    taken = kernel_for(gpu_product("block=1", wide), "pallas_triton", a100, wide)
    assert (taken.kernel, taken.tile) == ("pallas_triton", (64, 128, 32, 4))
    assert kernel_for(gpu_product(operands="%f, %v"), "pallas_triton", a100, WIDE).tile
    for product, why in (
        (gpu_product('block=1, epilogue=("erf(acc)",)'), "its epilogue has erf"),
        (gpu_product(operands="%f, %i"), "weights are i8, it takes the dtype of the rows, f32"),
    ):
        with pytest.raises(LoweringError, match=f"pallas_triton cannot run it: {why}"):
            kernel_for(product, "pallas_triton", a100, WIDE)
    with pytest.raises(LoweringError, match="wgmma, which a100 does not have"):
        kernel_for(gpu_product(), "pallas_gpu", a100, WIDE)


def test_pallas_tpu_is_refused_where_no_tile_fits():
    wide = {**SIZES, "D": 2**20, "F": 2**20}
    with pytest.raises(LoweringError, match="no tile of it fits into the 96 MiB of VMEM"):
        kernel_for(grouped(1), "pallas_tpu", target_named("tpu"), wide)


@pytest.mark.parametrize(
    "line",
    [
        '%y: f32[N] = grouped_dot(%x, %v, %sizes, over="D", block=1)',
        "%y: f32[N, D, F] = grouped_dot(%x, %w, %sizes, over=(), block=1)",
        '%y: f32[E] = grouped_outer(%x, %x, %sizes, out=("E",), block=1)',
    ],
)
def test_ragged_dot_is_refused_where_it_cannot_run(line):
    product = op(line, f"{SORTED}, %v: f32[E, D]")
    with pytest.raises(LoweringError, match="ragged_dot cannot run it") as caught:
        kernel_for(product, "ragged_dot", CPU, SIZES)
    assert caught.value.fix == 'use Schedule(kernel="auto")'
    assert kernel_for(product, "auto", target_named("tpu"), SIZES).kernel == "blocks"


@pytest.mark.parametrize(
    ("target", "way", "kernel"),
    [(CPU, "blocks", "all_gather"), (target_named("tpu_v5e"), "ragged", "ragged_all_to_all")],
)
def test_rows_travel_by_the_collective_that_a_target_has(target, way, kernel):
    assert exchange_for("auto", target) == way
    assert exchange_for("blocks", target) == "blocks"
    text = """
moe @send dims(G=1, S=3, K=1, E=2, C=3, Parts=1, Sent=3, N=6, GroupParts=1) mesh(m=1) (
    %x: f32[Sent@m], %counts: i32[Parts, E]) {
  %y: f32[N@m] = send_rows(%x, %counts, axes=("m",), devices=1, block=2)
  return y=%y
}
"""
    (op,) = parse(text).ops
    assert kernel_for(op, "auto", target, {}).kernel == kernel
