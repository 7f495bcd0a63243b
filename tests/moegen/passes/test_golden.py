"""Each pass as text in, text out. `pytest --update-golden` writes the files anew."""

from pathlib import Path

import pytest

from moegen.ir.parse import parse
from moegen.ir.text import format_program
from moegen.ir.verify import verify
from moegen.passes.canonicalize import canonicalize
from moegen.passes.choose_format import choose_format
from moegen.passes.differentiate import differentiate
from moegen.passes.exchange_inside import overlap_inside
from moegen.passes.fuse import fuse
from moegen.passes.fuse_copies import fuse_copies
from moegen.passes.fuse_gathers import fuse_gathers
from moegen.passes.fuse_scales import fuse_scales
from moegen.passes.layout import MeshAxes, make_layout
from moegen.passes.overlap import overlap
from moegen.passes.overlap_ring import overlap_ring
from moegen.passes.reassociate import reassociate
from moegen.passes.rematerialize import rematerialize
from moegen.passes.select_kernels import select_kernels
from moegen.passes.send_tokens import send_tokens
from moegen.passes.shard import shard
from moegen.passes.share_loops import share_loops
from moegen.tune.choose import kernel_for, loop_pays
from moegen.tune.target import target_named

GOLDEN = Path(__file__).parents[2] / "golden"


def kernels(target):
    where = target_named(target)
    return lambda p: select_kernels(p, lambda q, op: kernel_for(op, "auto", where, q.sizes))


def formatted(format, block=1):
    """A format as the pipeline applies it."""
    return lambda p: canonicalize(choose_format(p, format, block))


def saving(run):
    """A pass that does something for Schedule(save="least") only."""
    return lambda p: run(p, "least")


def always(program, op):
    """What the runtime says of a kernel that can do everything."""
    return True


ON_MESH = MeshAxes(
    (("data", 1), ("expert", 2), ("model", 5)),
    (("data", ("G",)), ("expert", ("G", "E")), ("model", ("F",))),
)


def sharded(p):
    """The layer on a mesh of 1 x 2 x 5 devices: rows go to experts, hidden units are split."""
    return shard(p, make_layout(p, ON_MESH, ["layer", "router", "expert", "expert"]))


CASES = [  # one file is the result of a pass and the input of the next
    ("folds", canonicalize, "folds.canonicalize"),
    ("loss", differentiate, "loss.differentiate"),
    ("layer", canonicalize, "layer.canonicalize"),
    ("layer.canonicalize", differentiate, "layer.differentiate"),
    ("layer.differentiate", formatted("onehot"), "layer.onehot"),
    ("layer.differentiate", formatted("slots"), "layer.slots"),
    ("layer.differentiate", formatted("sorted", block=2), "layer.sorted"),
    ("layer.differentiate", sharded, "layer.shard"),
    ("layer.shard", formatted("slots"), "layer.shard.slots"),
    ("layer.shard.slots", send_tokens, "layer.shard.slots.send_tokens"),
    ("layer.shard.slots", lambda p: overlap(p, 3), "layer.shard.slots.overlap"),
    ("layer.shard.slots", overlap_ring, "layer.shard.slots.overlap_ring"),
    ("layer.shard.slots", overlap_inside, "layer.shard.slots.overlap_inside"),
    ("layer.onehot", fuse, "layer.onehot.fuse"),
    ("layer.slots", fuse, "layer.slots.fuse"),
    ("layer.sorted", fuse, "layer.sorted.fuse"),
    ("layer.sorted.fuse", lambda p: fuse_gathers(p, always), "layer.sorted.fuse_gathers"),
    ("layer.sorted.fuse_gathers", lambda p: fuse_copies(p, always), "layer.sorted.fuse_copies"),
    ("quantized", fuse_scales, "quantized.fuse_scales"),
    ("quantized.fuse_scales", fuse, "quantized.fuse"),
    ("layer.sorted.fuse", kernels("cpu"), "layer.sorted.select_kernels_cpu"),
    (
        "layer.sorted.select_kernels_cpu",
        lambda p: share_loops(p, loop_pays),
        "layer.sorted.share_loops",
    ),
    ("layer.sorted.fuse", kernels("tpu_v5e"), "layer.sorted.select_kernels_tpu"),
    ("mlp", differentiate, "mlp.differentiate"),
    ("mlp.differentiate", saving(reassociate), "mlp.reassociate"),
    ("mlp.reassociate", formatted("slots"), "mlp.slots"),
    ("mlp.slots", saving(rematerialize), "mlp.slots.rematerialize"),
    ("mlp.slots.rematerialize", fuse, "mlp.slots.rematerialize.fuse"),
]


@pytest.mark.parametrize("before, run, after", CASES, ids=[after for *_, after in CASES])
def test_golden(before, run, after, request):
    program = verify(parse((GOLDEN / f"{before}.moe").read_text(), f"{before}.moe"))
    text = format_program(verify(run(program), after))
    path = GOLDEN / f"{after}.moe"
    if request.config.getoption("--update-golden"):
        path.write_text(text)
    assert text == path.read_text()


def test_every_golden_file_belongs_to_a_test():
    named = {name for before, _, after in CASES for name in (before, after)}
    assert {path.stem for path in GOLDEN.glob("*.moe")} == named


def test_passes_leave_alone_what_they_are_not_asked_to_change():
    program = parse((GOLDEN / "layer.differentiate.moe").read_text())
    assert shard(program, None) is program
    assert reassociate(program, "all") is program
    assert rematerialize(program, "all") is program
    assert overlap(program, 2) is program
    assert overlap_ring(program) is program
    assert overlap_inside(program) == program
